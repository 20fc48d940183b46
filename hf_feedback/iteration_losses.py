"""Rules that combine the losses of several iterations in training, one class each, and the targets of these."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


class LastIterationLoss:
    """The loss of the last iteration. A new rule is a subclass and a row in `ITERATION_LOSSES`."""

    # Whether the loss needs the logits of all iterations.
    needs_all_iterations: ClassVar[bool] = False

    def combine(self, losses: Sequence[torch.Tensor], has_target: Sequence[float | torch.Tensor]) -> torch.Tensor:
        """The loss of training.

        Args:
            losses: of iterations 1 … K, or of the last one alone where not all are needed; scalars.
            has_target: 1 for each of these that has a target, 0 for one that has none.
        """
        return losses[-1]


class UniformIterationLoss(LastIterationLoss):
    """The mean loss of all iterations that have a target."""

    needs_all_iterations = True

    def weights(self, num_iterations: int) -> Sequence[int]:
        """The weight of each iteration."""
        return [1] * num_iterations

    def combine(self, losses: Sequence[torch.Tensor], has_target: Sequence[float | torch.Tensor]) -> torch.Tensor:
        """The weighted mean of the losses; 0 where no iteration has a target."""
        weights = [weight * present for weight, present in zip(self.weights(len(losses)), has_target, strict=True)]
        losses = [self._finite(loss, present) for loss, present in zip(losses, has_target, strict=True)]
        total: Any = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        divisor: Any = sum(weights)
        return total / (divisor.clamp_min(1.0) if isinstance(divisor, torch.Tensor) else divisor)

    @staticmethod
    def _finite(loss: torch.Tensor, present: float | torch.Tensor) -> torch.Tensor:
        """The loss, 0 where there is no target: the mean over none is not a number, though its gradient is 0."""
        return torch.where(present > 0, loss, 0.0) if isinstance(present, torch.Tensor) else loss


class LinearIterationLoss(UniformIterationLoss):
    """The mean loss of all iterations that have a target, iteration k with the weight k."""

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
) -> tuple[list[Any], list[float | torch.Tensor]]:
    """What each of K iterations is trained to answer: its own target where there is one, the labels from there on.

    Args:
        labels: of the examples, `(B, …)`.
        iteration_targets: `(B, J, …)`, class numbers that iterations 1 … J answer; −100 where there is none.
        num_iterations: K.

    Returns:
        The targets of iterations 1 … K, and a weight of each: 0 where no example has a target, else 1. An iteration
        without targets gets the labels in their place, so that no value has to be read from the device.

    Raises:
        ValueError: the targets are not class numbers, or their shape is not that of the labels.

    Example:

    ```python
    >>> found, answer = torch.tensor([[-100, 7]]), torch.tensor([5])
    >>> targets, has_target = targets_of_iterations(answer, found, 4)
    >>> [target.item() for target in targets], [float(present) for present in has_target]
    ([5, 7, 5, 5], [0.0, 1.0, 1.0, 1.0])

    ```
    """
    if iteration_targets is None:
        return [labels] * num_iterations, [1.0] * num_iterations
    shape = tuple(iteration_targets.shape)
    if len(shape) != labels.dim() + 1 or shape[:1] + shape[2:] != tuple(labels.shape):
        raise ValueError(
            f"`iteration_targets` must have the shape of `labels`, {tuple(labels.shape)}, with a dimension for the "
            f"iterations after the first, got {shape}."
        )
    if iteration_targets.is_floating_point() or labels.is_floating_point():
        raise ValueError(
            "`iteration_targets` and `labels` must be class numbers: values, and several labels at once, have no "
            "number that says that an iteration has no target."
        )
    first = iteration_targets[:, :num_iterations].to(labels.device).unbind(1)
    has_target = [(target != -100).any() for target in first]
    targets = [torch.where(present, target, labels) for present, target in zip(has_target, first, strict=True)]
    rest = num_iterations - len(first)
    has_target += [(labels != -100).any()] * rest
    return [*targets, *[labels] * rest], [present.float() for present in has_target]


def loss_of_iterations(
    objective: LastIterationLoss,
    loss_of: Callable[[torch.Tensor, Any], torch.Tensor],
    logits: Sequence[torch.Tensor],
    labels: Any,
    iteration_targets: torch.Tensor | None,
) -> torch.Tensor:
    """The loss of the iterations that count.

    Args:
        objective: says which these are, and combines their losses.
        loss_of: logits and targets → the loss of one iteration.
        logits: of iterations 1 … K, or of the last one alone.
        labels, iteration_targets: as in `targets_of_iterations`.
    """
    if not objective.needs_all_iterations:
        return loss_of(logits[-1], labels)
    targets, has_target = targets_of_iterations(labels, iteration_targets, len(logits))
    losses = [loss_of(one, target) for one, target in zip(logits, targets, strict=True)]
    marks = [one if isinstance(one, float) else one.to(losses[-1].device) for one in has_target]
    return objective.combine(losses, marks)


def check_targets_are_read(
    config: "FeedbackConfig", is_training: bool, labels: Any, iteration_targets: torch.Tensor | None
) -> None:
    """Refuses targets of iterations that training would not read, or would take for values.

    Args:
        config: the options.
        is_training: whether the model is in training mode.
        labels, iteration_targets: as in `targets_of_iterations`.

    Raises:
        ValueError: there are targets and no labels, no loss reads them, or the model does not answer with one class.
    """
    if iteration_targets is None:
        return
    if labels is None:
        raise ValueError("`iteration_targets` need `labels` too, which later iterations answer; give both.")
    if is_training and config.iteration_loss == "last":
        raise ValueError(
            "`iteration_targets` are read where every iteration has a loss, and `iteration_loss` is 'last'; use "
            "'uniform' or 'linear', or leave them out."
        )
    several = config.problem_type == "multi_label_classification"
    if several or config.predicts_values:
        raise ValueError(
            "`iteration_targets` are class numbers, and the model predicts "
            f"{'several labels at once' if several else 'values'}; leave them out."
        )
