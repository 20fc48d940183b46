"""The loss of several iterations in training, one class a rule."""

from collections.abc import Sequence
from typing import ClassVar

import torch


class LastIterationLoss:
    """The loss of the last iteration. A new rule is a subclass and a row in `ITERATION_LOSSES`."""

    # Whether the loss needs the answers of all iterations.
    needs_all_iterations: ClassVar[bool] = False

    def weights(self, num_iterations: int) -> list[int]:
        """The weight of each iteration."""
        return [0] * (num_iterations - 1) + [1]

    def combine(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weighted mean of the losses of iterations 1 … K, scalars."""
        weights = self.weights(len(losses))
        total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True) if w]).sum()
        return total / sum(weights)


class UniformIterationLoss(LastIterationLoss):
    """The mean loss of all iterations."""

    needs_all_iterations = True

    def weights(self, num_iterations: int) -> list[int]:
        return [1] * num_iterations


class LinearIterationLoss(LastIterationLoss):
    """The mean loss of all iterations, iteration k with the weight k."""

    needs_all_iterations = True

    def weights(self, num_iterations: int) -> list[int]:
        return [*range(1, num_iterations + 1)]


# By the name of the option `iteration_loss`.
ITERATION_LOSSES: dict[str, type[LastIterationLoss]] = {
    "last": LastIterationLoss,
    "uniform": UniformIterationLoss,
    "linear": LinearIterationLoss,
}
