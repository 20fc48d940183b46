"""The training loss of `FeedbackTrainer`: the loss of the task with the chosen techniques."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn

from ...modeling_base import FeedbackPreTrainedModel
from ..batch_weights import count_items, weights_by
from ..data.labels import IGNORED
from ..parameters.model_parts import any_model_in
from ..parameters.unused_parameters import searches_unused
from ..resuming.checkpoints import Record
from .adversarial import AdversarialTraining
from .batch_loss import BatchLoss, ComputeLoss, Inputs
from .class_loss import ClassLoss
from .class_loss_setup import LabelCounter, make_class_loss
from .divergence import count_answers
from .loss_log import LossLog
from .objectives import Objectives
from .perturbation import word_embeddings_of

if TYPE_CHECKING:
    from ..trainer import FeedbackTrainer

NumItems: TypeAlias = torch.Tensor | int | None


class TrainerTechniques:
    """The techniques of one trainer.

    Args:
        trainer: the trainer.

    Attributes:
        log: the parts of the losses since the last log.
        class_loss: replacement of the model's cross-entropy, if any.
    """

    def __init__(self, trainer: "FeedbackTrainer") -> None:
        self._trainer, self.log = trainer, LossLog()
        self._adversarial: AdversarialTraining | None = None
        self._answer_weights: torch.Tensor | None = None
        self._objectives: Objectives | None = None
        self.class_loss: ClassLoss | None = None
        self._label_counter = LabelCounter()

    def set_up(self) -> None:
        """Creates the techniques of the arguments for the trainer's model.

        Raises:
            ValueError: the model cannot be trained with one of them.
        """
        trainer = self._trainer
        model = cast(nn.Module, trainer.model)
        if trainer.args.adversarial != "none":
            word_embeddings_of(any_model_in(model)[1])
        self._objectives = trainer.args.make_objectives(trainer.processing_class)
        if self._objectives is not None:
            self._objectives.check_model(model)
        weight, fixed = trainer.args.agreement_weight, trainer.args.train_iterations == "fixed"
        if weight and fixed and any_model_in(model)[1].config.num_iterations == 1:
            raise ValueError(
                f"`agreement_weight`={weight} compares the answers of iterations, `num_iterations`=1 gives only one; "
                "raise it, or leave the weight out."
            )
        self.class_loss = make_class_loss(trainer, self._label_counter)

    @property
    def record(self) -> Record:
        """The settings by name that the run takes from its data."""
        weights = None if self.class_loss is None else self.class_loss.class_weights
        return {} if weights is None else {"weights of the classes": weights}

    def start(self) -> None:
        """Starts training with the current arguments, which a search may change; before and after, nothing is
        perturbed."""
        self.set_up()
        self._adversarial, self.log = self._trainer.args.make_adversarial(), LossLog()

    def end(self) -> None:
        """Ends training."""
        self._adversarial = None

    def begin_step(self, batches: Sequence[Inputs]) -> None:
        """Records the weights of the accumulated batches of this process in means over all answers of the step."""
        self._answer_weights = None
        if batches and self._adversarial is not None and self._adversarial.counts_all_answers:
            count = partial(count_answers, cast(nn.Module, self._trainer.model))
            self._answer_weights = weights_by(self._trainer, batches, count)

    def compute_loss(
        self, model: nn.Module, inputs: Inputs, num_items: NumItems, plain_loss: Callable[..., Any]
    ) -> BatchLoss:
        """The loss of a batch in training.

        Args:
            model: the model as the trainer wraps it.
            inputs: what `forward` takes, and the labels.
            num_items: `num_items_in_batch` of the trainer.
            plain_loss: `compute_loss` of the Trainer of transformers.
        """
        compute_loss: ComputeLoss = partial(self._task_loss, num_items=num_items, plain_loss=plain_loss)
        if self._objectives is not None:
            compute_loss = partial(self._objectives.compute_loss, compute_loss=compute_loss)
        if self._adversarial is None:
            result = compute_loss(model, inputs)
            self.log.add(result.parts, result.batch_weight)
            return result
        backward, weight = partial(self._backward, num_items=num_items), self._answer_weight(num_items)
        result = self._adversarial.compute_loss(model, inputs, compute_loss, backward, weight)
        parts = dict(result.parts)
        if self._adversarial.counts_all_answers:
            self.log.add({"loss_adversarial": parts.pop("loss_adversarial")}, weight)
        self.log.add(parts, result.batch_weight)
        return result

    def _task_loss(
        self, model: nn.Module, inputs: Inputs, num_items: NumItems, plain_loss: Callable[..., Any]
    ) -> BatchLoss:
        """The loss of one forward pass."""
        loss, outputs = plain_loss(model, dict(inputs), True, num_items)
        if self._trainer.compute_loss_func is None:
            # the mean over no labels is not a number, though its gradient is 0
            loss = torch.where(count_items(inputs).to(loss.device) > 0, loss, 0.0)
        loss = loss * self._trainer.batch_weight
        core, drawn = any_model_in(model)[1], self._trainer.args.train_iterations != "fixed"
        unread = drawn or inputs.get("num_iterations", core.config.num_iterations) == 1
        if unread and not searches_unused(self._trainer.accelerator):
            # distributed training refuses parameters that no gradient reaches, and K decides which are read
            feedback = core.feedback.parameters() if isinstance(core, FeedbackPreTrainedModel) else ()
            unused = [parameter for parameter in feedback if parameter.requires_grad]
            loss = loss + sum(parameter.sum() for parameter in unused) * 0.0
        penalty = outputs.get("jacobian_penalty")
        parts = {} if penalty is None else {"loss_jacobian": penalty.detach()}
        return BatchLoss(loss, outputs, parts, self._batch_weight(inputs, num_items))

    def _batch_weight(self, inputs: Inputs, num_items: NumItems) -> float | torch.Tensor:
        """The weight of a mean over this batch in the loss of its step."""
        trainer, labels = self._trainer, inputs.get("labels")
        if not self._divides_by_whole(num_items):
            return trainer.batch_weight
        if num_items is None or labels is None:
            return 1.0 / trainer.current_gradient_accumulation_steps
        processes = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
        counted = inputs.get("shift_labels", labels[..., 1:] if trainer._loss_shifts_labels else labels)
        return (counted != IGNORED).sum() * processes / num_items  # as the trainer counts `num_items`

    def _answer_weight(self, num_items: NumItems) -> float | torch.Tensor:
        """The weight of a mean over all answers of this batch, including those without labels."""
        weight = 1.0 if self._answer_weights is None else self._answer_weights[self._trainer.batch_number]
        return (
            weight / self._trainer.current_gradient_accumulation_steps if self._divides_by_whole(num_items) else weight
        )

    def _divides_by_whole(self, num_items: NumItems) -> bool:
        """Whether the trainer leaves it to the loss to divide by the whole of an accumulated batch."""
        trainer = self._trainer
        return (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func is not None

    def _backward(self, loss: torch.Tensor, num_items: NumItems, **kwargs: Any) -> None:
        """A backward pass before that of the trainer, with the same scale."""
        steps = 1 if self._divides_by_whole(num_items) else self._trainer.current_gradient_accumulation_steps
        self._trainer.accelerator.backward(loss / steps, **kwargs)
