"""Adversarial training on word embeddings: FGM, PGD, FreeLB and SMART, one class each."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from .adversarial_passes import Backward, Passes
from .batch_loss import BatchLoss, ComputeLoss, Inputs, model_loss
from .divergence import final_logits, mean_divergence
from .perturbation import project_texts, scale_texts


class AdversarialTraining(ABC):
    """Training on texts whose word embeddings are perturbed in the direction that raises the loss most.

    All passes of a batch have the same dropout masks; one more random number is drawn than without perturbation. Norms
    are those of whole texts without padding, so that a text's perturbation does not depend on the rest of the batch.
    Under `DistributedDataParallel` gradients are synchronized once per step, in the last backward pass.

    Args:
        epsilon: maximum L2 norm of a text's perturbation.
        step_size: L2 norm of a step.
        steps: number of steps.
        weight: weight of the adversarial loss.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    # Whether its loss is a mean over all answers of a batch, including those without labels.
    counts_all_answers: ClassVar[bool] = False

    def __init__(self, epsilon: float, step_size: float, steps: int, weight: float) -> None:
        self.epsilon, self.step_size, self.steps, self.weight = epsilon, step_size, steps, weight
        for name in ("epsilon", "step_size", "weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`adversarial_{name}` must be a number above 0, got {getattr(self, name)!r}.")
        if steps < 1:
            raise ValueError(f"`adversarial_steps` must be an integer of at least 1, got {steps!r}.")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        compute_loss: ComputeLoss = model_loss,
        backward: Backward = torch.Tensor.backward,
        answer_weight: float | torch.Tensor = 1.0,
    ) -> BatchLoss:
        """Runs all passes of a batch but the last backward pass, which is the caller's:
        `compute_loss(…).loss.backward()`.

        The earlier passes accumulate their gradients in the parameters. The loss has its full value, and the graph of
        the last forward pass.

        Args:
            model: a feedback model in training mode, wrapped or not.
            inputs: arguments of `forward`, labels included.
            compute_loss: the loss to raise; the model's own by default.
            backward: runs the earlier backward passes. It gets a loss and perhaps `inputs`, as `torch.Tensor.backward`
                does; a scaler or accelerator has its own, and a part of an accumulated batch divides the loss.
            answer_weight: as `BatchLoss.batch_weight`, of a mean over all answers, with labels or not.

        Returns:
            The loss, with `"loss_adversarial"` among its parts.

        Raises:
            ValueError: the model or the batch has no word embeddings.
        """
        return self._run(Passes(model, inputs, compute_loss, backward, self._start, answer_weight))

    @abstractmethod
    def _run(self, passes: Passes) -> BatchLoss:
        """The passes of one batch."""

    def _start(self, zeros: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns the initial perturbation `(B, T, e)`, given zeros, the mask of real tokens, and random numbers."""
        return zeros

    def _ascend(self, vectors: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns `Π(r + α g/‖g‖)`: a step along the gradient, projected onto the ball."""
        return project_texts(vectors + scale_texts(gradient, self.step_size), self.epsilon)


class FGM(AdversarialTraining):
    """`L(x) + weight · L(x + r)`, `r = ε g/‖g‖`, g the gradient of the loss at a text's word embeddings.

    Two forward and two backward passes per step. The cheapest method, to be tried first. The source also normalizes the
    embeddings of its networks from scratch; those of a pretrained backbone are not changed.

    Args:
        epsilon: ε, the L2 norm of a text's perturbation.
        weight: weight of the loss of the perturbed texts.

    Source: Miyato et al. 2017, Adversarial Training Methods for Semi-Supervised Text Classification, arXiv 1605.07725,
    equations 2 and 5.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import FGM
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = FGM(epsilon=0.5).compute_loss(model.train(), batch)
    >>> result.loss.backward()  # then a step of the optimizer, as without
    >>> sorted(result.parts)
    ['loss_adversarial']

    ```
    """

    def __init__(self, epsilon: float = 0.05, weight: float = 1.0) -> None:
        super().__init__(epsilon, step_size=epsilon, steps=1, weight=weight)

    def _run(self, passes: Passes) -> BatchLoss:
        clean = passes.train()
        passes.perturbation.move(lambda _, gradient: scale_texts(gradient, self.epsilon))
        perturbed = passes.forward()
        return _joined(clean, self.weight * perturbed.loss + clean.loss.detach(), perturbed.mean)


class PGD(AdversarialTraining):
    """`clean_weight · L(x) + weight · L(x + r)`, r after k steps `r ← Π(r + α g/‖g‖)` from 0, Π onto `‖r‖ ≤ ε`.

    k + 1 forward and backward passes per step; k − 1 of the backward passes (k with `clean_weight=0`) compute no
    gradients of parameters. Stronger than `FGM`, which it equals for k = 1 and α = ε.

    Args:
        epsilon: ε.
        step_size: α.
        steps: k.
        weight: weight of the loss of the perturbed texts.
        clean_weight: weight of the loss of the original texts; 0 is the source's objective.

    Source: Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083, in the
    Euclidean norm.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import PGD
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = PGD(steps=2).compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_adversarial']

    ```
    """

    def __init__(
        self,
        epsilon: float = 0.05,
        step_size: float = 0.02,
        steps: int = 3,
        weight: float = 1.0,
        clean_weight: float = 1.0,
    ) -> None:
        super().__init__(epsilon, step_size, steps, weight)
        if not 0 <= clean_weight < float("inf"):
            raise ValueError(f"`clean_weight` must be a number of at least 0, got {clean_weight!r}.")
        self.clean_weight = clean_weight

    def _run(self, passes: Passes) -> BatchLoss:
        clean = passes.train(self.clean_weight).loss.detach() if self.clean_weight else passes.attack()
        passes.perturbation.move(self._ascend)
        for _ in range(self.steps - 1):
            passes.attack()
            passes.perturbation.move(self._ascend)
        perturbed = passes.forward()
        return _joined(perturbed, self.weight * perturbed.loss + self.clean_weight * clean, perturbed.mean)


class FreeLB(AdversarialTraining):
    """`1/k Σ L(x + r_t)`, t = 0 … k − 1, `r_{t+1} = Π(r_t + α g/‖g‖)`, r_0 drawn uniformly with a norm of up to ε.

    k forward and k backward passes per step: each moves the perturbation and trains the parameters.

    Args:
        epsilon: ε.
        step_size: α.
        steps: k.

    Source: Zhu et al. 2020, FreeLB: Enhanced Adversarial Training for Natural Language Understanding, arXiv 1909.11764,
    algorithm 1.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import FreeLB
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = FreeLB(steps=2).compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_adversarial']

    ```
    """

    def __init__(self, epsilon: float = 0.05, step_size: float = 0.02, steps: int = 3) -> None:
        super().__init__(epsilon, step_size, steps, weight=1.0)

    def _start(self, zeros: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn = zeros.uniform_(-self.epsilon, self.epsilon, generator=generator) * real
        numbers = real.sum((-2, -1), keepdim=True) * zeros.shape[-1]  # real tokens of each text
        return drawn / numbers.clamp_min(1).sqrt()

    def _run(self, passes: Passes) -> BatchLoss:
        earlier = []
        for _ in range(self.steps - 1):
            earlier.append(passes.train(1 / self.steps).loss.detach())
            passes.perturbation.move(self._ascend)
        last = passes.forward()
        loss = torch.stack([*earlier, last.loss]).mean()
        return _joined(last, loss, replace(last, loss=loss).mean)


class SMART(AdversarialTraining):
    """`L(x) + weight · D(f(x), f(x + r))`, D the symmetric divergence of the two predictions, r the perturbation that
    raises it most.

    Virtual adversarial training: it needs no labels. Rows with the label −100, or a whole batch without labels, train
    by D alone. r starts with Gaussian noise, and k steps `r ← Π(r + α g/‖g‖)` follow; the source's code, too, divides
    gradients by their norm. For values to predict D is the squared difference. The other half of the source, an
    optimizer that keeps close to the previous step, is not implemented.

    k + 2 forward and k + 1 backward passes per step, k of them without gradients of parameters; the last one goes
    through two forward passes, whose activations are kept at the same time.

    Args:
        epsilon: ε.
        step_size: α.
        steps: k.
        weight: weight of D.
        noise: standard deviation of the initial r.

    Source: Jiang et al. 2020, SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models, arXiv
    1911.03437, equations 2 and 3, algorithm 1; Miyato et al. 2017, as in `FGM`, for texts without labels.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import SMART
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=2)
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    >>> result = SMART(weight=0.5).compute_loss(model.train(), batch)
    >>> result.loss.backward()
    >>> sorted(result.parts)
    ['loss_adversarial']

    ```
    """

    counts_all_answers = True

    def __init__(
        self,
        epsilon: float = 0.05,
        step_size: float = 0.05,
        steps: int = 1,
        weight: float = 1.0,
        noise: float = 1e-3,
    ) -> None:
        super().__init__(epsilon, step_size, steps, weight)
        if not 0 < noise < float("inf"):
            raise ValueError(f"`noise` must be a number above 0, got {noise!r}.")
        self.noise = noise

    def _start(self, zeros: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return project_texts(zeros.normal_(0.0, self.noise, generator=generator) * real, self.epsilon)

    def _run(self, passes: Passes) -> BatchLoss:
        clean = passes.clean()
        target = final_logits(clean.outputs)
        for _ in range(self.steps):
            passes.attack(lambda: self._divergence(passes, target.detach()))
            passes.perturbation.move(self._ascend)
        divergence = self._divergence(passes, target)
        return _joined(clean, clean.loss + self.weight * passes.answer_weight * divergence, divergence)

    def _divergence(self, passes: Passes, target: torch.Tensor) -> torch.Tensor:
        return mean_divergence(target, passes.answers(), passes.model, passes.inputs, labelled_only=False)


def _joined(clean: BatchLoss, loss: torch.Tensor, adversarial: torch.Tensor) -> BatchLoss:
    return replace(clean, loss=loss, parts={**clean.parts, "loss_adversarial": adversarial.detach()})


ADVERSARIAL: dict[str, type[AdversarialTraining]] = {"fgm": FGM, "pgd": PGD, "freelb": FreeLB, "smart": SMART}
