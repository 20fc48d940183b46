"""States of all iterations, and their relative changes."""

import torch

from .segments import Segments

# By the number of the source layer: its hidden states, (B, T, d).
States = dict[int, torch.Tensor]


def batch_first(state: torch.Tensor, batch_dim: int) -> torch.Tensor:
    """Hidden states `(B, T, d)` or, with `batch_dim=1`, `(T, B, d)` → the other of the two; its own inverse."""
    return state if batch_dim == 0 else state.transpose(0, batch_dim)


def relative_change(
    new: States, old: States, mask: torch.Tensor | None = None, segments: Segments | None = None
) -> torch.Tensor:
    """Relative change of the states in one iteration, `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖`, per example.

    Args:
        new, old: states of two successive iterations, `{layer: (B, T, d)}`.
        mask: `(B, T)`, 0 at padding, which is left out.
        segments: the text of each row, if texts were cut.

    Returns:
        `(B,)`, for each text, over all layers together, in float32.
    """

    def sum_of_squares(states: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros((), device=states[0].device)
        for state in states:
            per_token = state.float().square().sum(-1)
            if mask is not None and mask.shape == per_token.shape:
                per_token = per_token.masked_fill(mask.to(per_token.device) == 0, 0.0)
            total = total + per_token.flatten(1).sum(1).to(total.device)
        return total if segments is None else segments.sum(total)

    moved = sum_of_squares([new[layer] - old[layer] for layer in new])
    size = sum_of_squares(list(new.values()))
    return (moved / size.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


class IterationTrace:
    """The outputs of the segment in all iterations, and the relative changes of the states.

    Args:
        batch_dim: batch dimension of the states.
        segments: the text of each row, if texts were cut.
        mask: `(B, T)`, 0 at padding, which residuals leave out.
    """

    def __init__(self, batch_dim: int, segments: Segments | None = None, mask: torch.Tensor | None = None) -> None:
        self.batch_dim, self.mask, self.segments = batch_dim, mask, segments
        self.outputs: list[torch.Tensor] = []  # (B, T, d) each
        self.residuals: list[torch.Tensor] = []  # (B,) each, from iteration 2 on
        self._latest: States = {}

    def __call__(self, k: int, h: States) -> None:
        """Notes iteration k."""
        states = {layer: batch_first(state, self.batch_dim) for layer, state in h.items()}
        if k > 1:
            self.residuals.append(relative_change(states, self._latest, self.mask, self.segments).detach())
        self._latest = states
        self.outputs.append(h[max(h)])

    def statistics(self, iterations: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """`residuals` `(B, K − 1)` and `iterations` `(B,)`.

        Args:
            iterations: number of iterations of each example with halting; K for all otherwise.
        """
        output = batch_first(self.outputs[-1], self.batch_dim)
        texts = output.shape[0] if self.segments is None else self.segments.num_texts
        residuals = torch.stack(self.residuals, 1) if self.residuals else output.new_zeros((texts, 0))
        if iterations is None:
            iterations = torch.full((texts,), len(self.outputs), device=output.device)
        return {"residuals": residuals, "iterations": iterations}
