"""When an example stops: iterations that change nothing any more are not read."""

from typing import Any

import torch

from .dynamics import relative_residual
from .recorder import Run, hidden_of, with_hidden


class Halting:
    """Stops each example by itself, at the first iteration in which its states moved by no more than a threshold.

    A stopped example keeps its states while the others go on; when all have stopped, the loop ends. What comes out for
    an example does not depend on the others in its batch.

    Args:
        threshold: relative residual, `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖` over the sources' states.
        min_iterations: nobody stops before this iteration.
        mask: `(B, T)`, 0 at padding, which residuals leave out.
        batch_dim: which dimension of the states is the batch.
    """

    def __init__(
        self, threshold: float, min_iterations: int, mask: torch.Tensor | None = None, batch_dim: int = 0
    ) -> None:
        self.threshold, self.min_iterations = threshold, min_iterations
        self.mask, self.batch_dim = mask, batch_dim
        self.stopped = torch.zeros(0, dtype=torch.bool)  # (B,), see `start`
        self.iterations = torch.zeros(0, dtype=torch.long)  # (B,)

    def start(self, h: dict[int, torch.Tensor]) -> None:
        """Takes note of iteration 1."""
        state = next(iter(h.values()))
        self.stopped = torch.zeros(state.shape[self.batch_dim], dtype=torch.bool, device=state.device)
        self.iterations = torch.ones_like(self.stopped, dtype=torch.long)

    def hold(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The new state, with those of stopped examples left as they were."""
        shape = [1] * new.dim()
        shape[self.batch_dim] = -1
        return torch.where(self.stopped.to(new.device).view(shape), old.to(new), new)

    def hold_outputs(self, run: Run, were: list[Any]) -> None:
        """The same for all outputs of the segment's layers that are kept (`output_hidden_states=True`)."""
        for call, old in zip(run.segment, were, strict=True):
            if call.output is not None:
                call.output = with_hidden(call.output, self.hold(hidden_of(old), hidden_of(call.output)))

    def finished(self, k: int, old: dict[int, torch.Tensor], new: dict[int, torch.Tensor]) -> bool:
        """Takes note of iteration k, its states held already; whether all examples have stopped."""
        self.iterations = self.iterations + ~self.stopped
        first = {layer: state.transpose(0, self.batch_dim) for layer, state in new.items()}
        before = {layer: state.transpose(0, self.batch_dim) for layer, state in old.items()}
        if k >= self.min_iterations:
            still = relative_residual(first, before, self.mask) <= self.threshold
            self.stopped = self.stopped | still.to(self.stopped.device)
        return bool(self.stopped.all())
