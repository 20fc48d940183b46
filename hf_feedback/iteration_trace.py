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
        `(B,)`, for each text, over all layers together, in float32 at least.
    """

    def of_texts(squares: torch.Tensor) -> torch.Tensor:
        if mask is not None and mask.shape == squares.shape:
            squares = squares.masked_fill(mask.to(squares.device) == 0, 0.0)
        total = squares.flatten(1).sum(1)
        return total if segments is None else segments.sum(total)

    return _ratio(*map(of_texts, _squares_of_tokens(new, old)))


def relative_change_of_tokens(new: States, old: States) -> torch.Tensor:
    """The same for each token: `(B, T)`."""
    return _ratio(*_squares_of_tokens(new, old))


def _squares_of_tokens(new: States, old: States) -> tuple[torch.Tensor, torch.Tensor]:
    """`‖h^(k) − h^(k−1)‖²` and `‖h^(k)‖²` of each token over all layers, `(B, T)`."""

    def total(states: list[torch.Tensor]) -> torch.Tensor:
        exact = torch.promote_types(states[0].dtype, torch.float32)
        squares = [state.to(exact).square().sum(-1).to(states[0].device) for state in states]
        return torch.stack(squares).sum(0)

    return total([new[layer] - old[layer] for layer in new]), total(list(new.values()))


def _ratio(moved: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    return (moved / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()


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
