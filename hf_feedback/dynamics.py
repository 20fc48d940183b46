"""How the loop moves: the states and residual of each iteration."""

import torch

from .segments import Segments


def relative_residual(
    new: dict[int, torch.Tensor],
    old: dict[int, torch.Tensor],
    mask: torch.Tensor | None = None,
    segments: Segments | None = None,
) -> torch.Tensor:
    """How far the states still moved in one iteration: `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖`, per example.

    Args:
        new, old: states of two successive iterations, `{layer: (B, T, d)}`.
        mask: `(B, T)`, 0 at padding, which is left out.
        segments: which text each row belongs to, where texts were cut.

    Returns:
        `(B,)`, for each text, over all layers together, in float32.
    """

    def square(states: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros((), device=states[0].device)
        for state in states:
            per_token = state.float().square().sum(-1)
            if mask is not None and mask.shape == per_token.shape:
                per_token = per_token.masked_fill(mask.to(per_token.device) == 0, 0.0)
            total = total + per_token.flatten(1).sum(1).to(total.device)
        return total if segments is None else segments.sum(total)

    moved = square([new[layer] - old[layer] for layer in new])
    size = square(list(new.values()))
    return (moved / size.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


class IterationTrace:
    """What `output_iterations=True` notes after each iteration.

    Args:
        batch_dim: which dimension of the states is the batch.
    """

    def __init__(self, batch_dim: int | None = 0) -> None:
        self.mask: torch.Tensor | None = None  # (B, T), 0 at padding, which residuals leave out
        self.segments: Segments | None = None
        self.batch_dim = batch_dim or 0
        self.stacked = False
        self.iterations: torch.Tensor | None = None  # (B,), where examples stop by themselves
        self.latest: dict[int, torch.Tensor] = {}
        self.ends: list[torch.Tensor] = []
        self.residuals: list[torch.Tensor] = []

    def __call__(self, k: int, h: dict[int, torch.Tensor]) -> None:
        states = {layer: state.transpose(0, self.batch_dim) for layer, state in h.items()}
        if k > 1:
            self.residuals.append(relative_residual(states, self.latest, self.mask, self.segments).detach())
        self.latest = states
        self.ends.append(h[max(h)])

    def fields(self) -> dict[str, torch.Tensor]:
        """`residuals` `(B, K − 1)` and `iterations` `(B,)`."""
        end = self.latest[max(self.latest)]
        texts = end.shape[0] if self.segments is None else self.segments.num_texts
        residuals = torch.stack(self.residuals, 1) if self.residuals else end.new_zeros((texts, 0))
        iterations = self.iterations
        if iterations is None:
            iterations = torch.full((texts,), len(self.ends), device=end.device)
        return {"residuals": residuals, "iterations": iterations}
