"""Rules that combine the losses of several iterations in training, one class each."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch


class LastIterationLoss:
    """The loss of the last iteration. A new rule is a subclass and a row in `ITERATION_LOSSES`."""

    # Whether the loss needs the logits of all iterations.
    needs_all_iterations: ClassVar[bool] = False

    def combine(self, losses: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The loss of training.

        Args:
            losses: of iterations 1 … K, or of the last one alone where not all are needed; scalars, `None` for an
                iteration without a target.
        """
        return cast(torch.Tensor, losses[-1])


class UniformIterationLoss(LastIterationLoss):
    """The mean loss of all iterations."""

    needs_all_iterations = True

    def weights(self, num_iterations: int) -> Sequence[int]:
        """The weight of each iteration."""
        return [1] * num_iterations

    def combine(self, losses: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The weighted mean of the losses."""
        weights = self.weights(len(losses))
        counted = [(weight, loss) for weight, loss in zip(weights, losses, strict=True) if loss is not None]
        total: Any = sum(weight * loss for weight, loss in counted)
        return total / sum(weight for weight, _ in counted)


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


def targets_of_iterations(
    labels: Any, iteration_targets: torch.Tensor | None, num_iterations: int
) -> list[torch.Tensor | None]:
    """What each of K iterations is trained to answer: its own target where there is one, the labels from there on.

    Args:
        labels: of the examples, `(B, …)`.
        iteration_targets: `(B, J, …)`, the targets of iterations 1 … J; −100 where there is none.
        num_iterations: K.

    Returns:
        One target for each iteration; `None` if no example has one.

    Raises:
        ValueError: the shapes do not belong together, or none of the iterations has a target.

    Example:

    ```python
    >>> found, answer = torch.tensor([[-100, 7]]), torch.tensor([5])
    >>> targets_of_iterations(answer, found, 4)
    [None, tensor([7]), tensor([5]), tensor([5])]

    ```
    """
    if iteration_targets is None:
        return [labels] * num_iterations
    if iteration_targets.dim() != labels.dim() + 1 or iteration_targets[:, 0].shape != labels.shape:
        raise ValueError(
            f"`iteration_targets` must have the shape of `labels`, {tuple(labels.shape)}, with a dimension for the "
            f"iterations after the first, got {tuple(iteration_targets.shape)}."
        )
    own = [one.contiguous() if bool((one != -100).any()) else None for one in iteration_targets.unbind(1)]
    targets = [*own, *[labels] * num_iterations][:num_iterations]
    if all(target is None for target in targets):
        raise ValueError(
            f"`iteration_targets` has no target for any of {num_iterations} iterations; run more, or give one of these "
            "a target."
        )
    return targets
