"""Auxiliary losses, each with a weight: agreement of iterations, agreement of dropout masks, masked-LM."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from ...backbone_probe import reads_causally
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_fnn import FNNPreTrainedModel
from ...unlabelled_passes import call_without_targets
from ..parameters.model_parts import any_model_in
from .batch_loss import BatchLoss, ComputeLoss, Inputs, model_loss, without_sync
from .divergence import final_logits, mean_divergence


class Objective(ABC):
    """An auxiliary loss, added to that of the task. A new one is a subclass.

    Args:
        weight: of the objective.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    # In the logs after `loss_`; with `_weight`, the option.
    name: ClassVar[str]
    # Whether it reads the answers of all iterations.
    needs_all_iterations: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        if not 0 < weight < float("inf"):
            raise ValueError(f"`{self.name}_weight` must be a number above 0, got {weight!r}.")
        self.weight = weight

    def check_model(self, model: nn.Module) -> None:  # noqa: B027
        """Raises `ValueError` where a model cannot be trained with it."""

    def forward_before(self, model: nn.Module, inputs: Inputs, compute_loss: ComputeLoss) -> BatchLoss | None:
        """A forward pass of its own, before that of the task.

        Args:
            model: a feedback model in training mode, wrapped or not.
            inputs: what `forward` takes, labels included.
            compute_loss: the loss of the task.
        """
        return None

    @abstractmethod
    def value(self, model: nn.Module, inputs: Inputs, task: BatchLoss, before: BatchLoss | None) -> torch.Tensor:
        """The objective without its weight, a mean over the batch.

        Args:
            model: a feedback model in training mode, wrapped or not.
            inputs: what `forward` takes, labels included.
            task: the loss of the task, and the outputs.
            before: what `forward_before` returned.
        """

    def task_loss(self, task: torch.Tensor, before: BatchLoss | None) -> torch.Tensor:
        """The loss of the task, also where the objective computes it more than once."""
        return task


class IterationAgreement(Objective):
    """`1/(K−1) Σ_{k<K} ½ (KL(p_k‖p_K) + KL(p_K‖p_k))`, p_k the answer of iteration k: earlier iterations agree with the
    last one.

    Costs the head, and layers above the loop, at every iteration. 0 where K = 1.

    Args:
        weight: of the objective.
        teacher: `"last"`: the last iteration teaches the earlier ones, and no gradient flows into it; `"none"`: they
            move towards each other.

    Source: Zhang et al. 2019, Be Your Own Teacher, arXiv 1905.08094, for the last of several answers as a teacher.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import IterationAgreement, Objectives
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2, num_iterations=3)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = Objectives([IterationAgreement(0.5)]).compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_agreement', 'loss_task']

    ```
    """

    name = "agreement"
    needs_all_iterations = True

    def __init__(self, weight: float, teacher: str = "last") -> None:
        super().__init__(weight)
        if teacher not in TEACHERS:
            raise ValueError(f"`agreement_teacher` must be one of {', '.join(map(repr, TEACHERS))}, got {teacher!r}.")
        self.teacher = teacher

    def check_model(self, model: nn.Module) -> None:
        gradient = any_model_in(model)[1].config.gradient
        if gradient != "full":
            raise ValueError(
                f"`agreement_weight`={self.weight} needs a gradient of every iteration, and `gradient`={gradient!r} "
                "drops that of the earlier ones; use 'full', or leave it out."
            )

    def value(self, model: nn.Module, inputs: Inputs, task: BatchLoss, before: BatchLoss | None) -> torch.Tensor:
        *earlier, last = task.outputs["iteration_logits"]
        if not earlier:
            return final_logits(task.outputs).new_zeros(())
        target = last.detach() if self.teacher == "last" else last
        return torch.stack([mean_divergence(one, target, model, inputs) for one in earlier]).mean() / 2


class DropoutAgreement(Objective):
    """`½ (KL(p‖q) + KL(q‖p))`, p and q the answers under two dropout masks (R-Drop); also for K = 1.

    The loss of the task is the mean over both. Costs a second forward pass, and a backward pass through both.

    Source: Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv 2106.14448, equations 2 and 3,
    which add up what is a mean here, as the authors' code does.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import DropoutAgreement, Objectives
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = Objectives([DropoutAgreement(1.0)]).compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_dropout_agreement', 'loss_task']

    ```
    """

    name = "dropout_agreement"

    def forward_before(self, model: nn.Module, inputs: Inputs, compute_loss: ComputeLoss) -> BatchLoss:
        return compute_loss(model, inputs)

    def value(self, model: nn.Module, inputs: Inputs, task: BatchLoss, before: BatchLoss | None) -> torch.Tensor:
        p, q = final_logits(cast(BatchLoss, before).outputs), final_logits(task.outputs)
        return mean_divergence(p, q, model, inputs) / 2

    def task_loss(self, task: torch.Tensor, before: BatchLoss | None) -> torch.Tensor:
        return (task + cast(BatchLoss, before).loss) / 2


class MaskedWords(Objective):
    """The loss of a masked language model on the texts of the task: cross-entropy of the words that were masked.

    The LM head is tied to the word embeddings, `W h`, and has no parameters of its own, so that the model is saved as
    without. Of the words to predict, 80% become the mask, 10% another word and 10% stay. Costs a second forward pass,
    and a backward pass through both.

    Args:
        weight: of the objective.
        mask_token_id: token that stands for a masked one.
        special_token_ids: tokens that are never masked.
        probability: share of the words to predict.

    Source: Devlin et al. 2019, BERT, arXiv 1810.04805, for the masks; Sun et al. 2019, How to Fine-Tune BERT for Text
    Classification?, arXiv 1905.05583, for training on the task's own texts.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import MaskedWords, Objectives
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = Objectives([MaskedWords(0.1, mask_token_id=4)]).compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_masked_lm', 'loss_task']

    ```
    """

    name = "masked_lm"

    def __init__(
        self, weight: float, mask_token_id: int, special_token_ids: Collection[int] = (), probability: float = 0.15
    ) -> None:
        super().__init__(weight)
        self.mask_token_id, self.special_token_ids = mask_token_id, sorted(special_token_ids)
        self.probability = probability

    def check_model(self, model: nn.Module) -> None:
        core = any_model_in(model)[1]
        if reason := _why_no_masked_words(core):
            raise ValueError(f"`masked_lm_weight`={self.weight}: {reason}; leave it out.")

    def forward_before(self, model: nn.Module, inputs: Inputs, compute_loss: ComputeLoss) -> BatchLoss:
        weight = cast(torch.Tensor, any_model_in(model)[1].get_input_embeddings().weight)
        masked, chosen = self.mask(inputs["input_ids"], inputs.get("attention_mask"), len(weight))
        outputs = call_without_targets(model, {**inputs, "input_ids": masked, "output_hidden_states": True})
        words = inputs["input_ids"][chosen]
        states = outputs.hidden_states[-1].flatten(0, 1)[chosen.flatten()]
        logits = F.linear(states, weight)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(exact, words, reduction="sum") / max(1, len(words))
        return BatchLoss(loss, outputs)

    def value(self, model: nn.Module, inputs: Inputs, task: BatchLoss, before: BatchLoss | None) -> torch.Tensor:
        return cast(BatchLoss, before).loss

    def mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, vocab_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the texts with words masked, and which words are to be predicted.

        Args:
            input_ids: of any shape.
            attention_mask: 0 at padding.
            vocab_size: number of words to draw from.
        """
        special = torch.tensor(self.special_token_ids, device=input_ids.device, dtype=input_ids.dtype)
        chosen = torch.rand(input_ids.shape, device=input_ids.device) < self.probability
        chosen &= ~torch.isin(input_ids, special)
        if attention_mask is not None:
            chosen &= attention_mask != 0
        fate = torch.rand(input_ids.shape, device=input_ids.device)
        masked = input_ids.masked_fill(chosen & (fate < 0.8), self.mask_token_id)
        drawn = torch.randint_like(input_ids, vocab_size)
        return torch.where(chosen & (fate >= 0.9), drawn, masked), chosen


TEACHERS = ("last", "none")


def _why_no_masked_words(core: FeedbackPreTrainedModel | FNNPreTrainedModel) -> str | None:
    """Why a model cannot have the objective of a masked language model; `None` if it can."""
    name = type(core).__name__
    if not isinstance(core, FeedbackPreTrainedModel) or core.main_input_name != "input_ids":
        return f"{name} has no word embeddings of a backbone to predict words with"
    config = cast(PreTrainedConfig, core.config.backbone_config)
    if reads_causally(core.layout.looped_model(core.backbone), config, core.config.backbone_part):
        return f"{name} has a backbone that reads from left to right, which cannot see what follows a masked word"
    if core.cutting is not None:
        return "`feedback_span`='segment' cuts texts, whose words have several states"
    if name == "FeedbackForMaskedLM":
        return "masked words are the task of FeedbackForMaskedLM already"
    width = core.get_input_embeddings()(torch.zeros((1, 1), dtype=torch.long, device=core.device)).shape[-1]
    if width != core.config.hidden_size:
        return (
            f"the word embeddings of {name} are {width} wide and its states {core.config.hidden_size}, so that they "
            "cannot predict words"
        )
    return None


class Objectives:
    """The loss of the task with further objectives: `L + Σ weight · objective`.

    Args:
        objectives: what is added.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import DropoutAgreement, IterationAgreement, Objectives
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2, num_iterations=3)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> objectives = Objectives([IterationAgreement(0.5), DropoutAgreement(1.0)])
    >>> result = objectives.compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_agreement', 'loss_dropout_agreement', 'loss_task']

    ```
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = tuple(objectives)

    def check_model(self, model: nn.Module) -> None:
        """Raises `ValueError` where a model cannot be trained with one of them."""
        for objective in self.objectives:
            objective.check_model(model)

    def compute_loss(self, model: nn.Module, inputs: Inputs, compute_loss: ComputeLoss = model_loss) -> BatchLoss:
        """The loss of a batch.

        Args:
            model: a feedback model in training mode, wrapped or not.
            inputs: what `forward` takes, labels included.
            compute_loss: the loss of the task; the model's own by default.

        Returns:
            The loss, with `"loss_task"` and that of each objective among its parts.
        """
        if any(one.needs_all_iterations for one in self.objectives):
            inputs = {**inputs, "output_iterations": True}
        with without_sync(model):
            before = [one.forward_before(model, inputs, compute_loss) for one in self.objectives]
        task = compute_loss(model, inputs)
        for objective, earlier in zip(self.objectives, before, strict=True):
            task = replace(task, loss=objective.task_loss(task.loss, earlier))
        loss, parts = task.loss, {"loss_task": task.mean, **task.parts}
        for objective, earlier in zip(self.objectives, before, strict=True):
            value = objective.value(model, inputs, task, earlier)
            loss = loss + objective.weight * task.batch_weight * value
            parts[f"loss_{objective.name}"] = value.detach()
        return replace(task, loss=loss, parts=parts)
