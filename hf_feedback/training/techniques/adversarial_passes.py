"""The forward and backward passes that adversarial training makes with one batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import nn

from ...random_numbers import keep_random_state
from ...unlabelled_passes import call_without_targets
from .batch_loss import BatchLoss, ComputeLoss, Inputs, has_targets, without_sync
from .divergence import final_logits
from .perturbation import WordPerturbation

# Runs the backward pass of a loss; takes the keywords of `torch.Tensor.backward`.
Backward: TypeAlias = Callable[..., None]
# Zeros `(B, T, e)`, which tokens are real `(B, T, 1)`, random numbers → the perturbation to start with.
Start: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


class Passes:
    """The passes of one batch. All start with the same random numbers, so that their dropout masks are the same.

    Args:
        model: a feedback model, wrapped or not.
        inputs: what `forward` takes.
        compute_loss: the loss of a pass.
        backward: runs a backward pass.
        start: the perturbation to start with.
        answer_weight: as `BatchLoss.batch_weight`, of a mean over all answers of the batch.

    Attributes:
        perturbation: what is added to the word embeddings.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        compute_loss: ComputeLoss,
        backward: Backward,
        start: Start,
        answer_weight: float | torch.Tensor = 1.0,
    ) -> None:
        self.answer_weight = answer_weight
        self.model, self.inputs, self._compute_loss, self._backward = model, inputs, compute_loss, backward
        seed = int(torch.randint(2**62, ()))  # not the numbers of dropout, which has the same shape

        def start_perturbation(zeros: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
            return start(zeros, real, torch.Generator(zeros.device).manual_seed(seed))

        self.perturbation = WordPerturbation(model, inputs, start_perturbation)
        self._device = inputs["input_ids"].device

    def train(self, weight: float = 1.0) -> BatchLoss:
        """A forward and a backward pass, which adds gradients to those of the parameters.

        Args:
            weight: weight of the loss in the backward pass.
        """
        with self._not_last_pass():
            result = self.forward()
            self._backward(weight * result.loss)
        return result

    def attack(self, compute_loss: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
        """A forward and a backward pass for the gradient of the perturbation alone; returns the loss, without a graph.

        Args:
            compute_loss: the forward pass; that of the loss if left out.
        """
        with self._not_last_pass():
            loss = self.forward().loss if compute_loss is None else compute_loss()
            self._backward(loss, inputs=[self.perturbation.vectors])
        return loss.detach()

    def forward(self) -> BatchLoss:
        """A forward pass of the perturbed texts."""
        with self.perturbation.added():
            return self._compute_loss(self.model, self.inputs)

    def answers(self) -> torch.Tensor:
        """A forward pass without labels: the logits."""
        with self.perturbation.added():
            return final_logits(call_without_targets(self.model, self.inputs))

    def clean(self) -> BatchLoss:
        """The forward pass of the texts as they are; its backward pass is that of the last pass. Without labels, the
        loss is 0."""
        with self._not_last_pass():
            if has_targets(self.inputs):
                return self._compute_loss(self.model, self.inputs)
            outputs = call_without_targets(self.model, self.inputs)
        return BatchLoss(final_logits(outputs).new_zeros(()), outputs)

    @contextmanager
    def _not_last_pass(self) -> Iterator[None]:
        """Context of a pass that others follow: nothing is synchronized, and random numbers are drawn again."""
        with keep_random_state(self._device), without_sync(self.model):
            yield
