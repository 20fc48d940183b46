"""Rules that combine the losses of several iterations in training, one class each."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch


class LastIterationLoss:
    """The loss of the last iteration. A new rule is a subclass and a row in `ITERATION_LOSSES`."""

    # Whether the loss needs the logits of all iterations.
    needs_all_iterations: ClassVar[bool] = False

    def combine(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of training.

        Args:
            losses: of iterations 1 … K, or of the last one alone where not all are needed; scalars.
        """
        return losses[-1]


class UniformIterationLoss(LastIterationLoss):
    """The mean loss of all iterations."""

    needs_all_iterations = True

    def weights(self, num_iterations: int) -> Sequence[int]:
        """The weight of each iteration."""
        return [1] * num_iterations

    def combine(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weighted mean of the losses."""
        weights = self.weights(len(losses))
        total: Any = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        return total / sum(weights)


class LinearIterationLoss(UniformIterationLoss):
    """The mean loss of all iterations, iteration k with the weight k."""

    def weights(self, num_iterations: int) -> Sequence[int]:
        return range(1, num_iterations + 1)


# By the name of the option `iteration_loss`.
ITERATION_LOSSES: dict[str, type[LastIterationLoss]] = {
    "last": LastIterationLoss,
    "uniform": UniformIterationLoss,
    "linear": LinearIterationLoss,
}
