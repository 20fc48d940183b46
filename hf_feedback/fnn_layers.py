"""The layers of the two feedback neural networks, and one sweep over their states as a map."""

from collections.abc import Sequence

import torch
from torch import nn

from .activations import make_activation
from .solvers import Map


class RecurrentLinear(nn.Linear):
    """A d × d map without bias that reads a state of the network itself.

    It starts as `gain` times an orthogonal matrix, so its norm is `gain`: that of a sweep is known.
    """

    def __init__(self, size: int, gain: float) -> None:
        super().__init__(size, size, bias=False)
        self.gain = gain


class FNNLayer(nn.Module):
    """The weights of one layer, under the letters of its equation; the bias b is that of the map from below.

    Args:
        size: d.
        activation: by name.
    """

    def __init__(self, size: int, activation: str) -> None:
        super().__init__()
        self.size = size
        self.activation = make_activation(activation, 1)

    def f(self, z: torch.Tensor) -> torch.Tensor:
        """The activation, one β for the whole layer: `(..., d)` → `(..., d)`."""
        return self.activation(z.unsqueeze(-2)).squeeze(-2)


class TemporalLayer(FNNLayer):
    """`h_t = f(U x_t + W h_{t-1} + V h_{t+1} + b)`, `h_0 = h_{T+1} = 0`.

    `h_{t+1}` is always of the sweep before (0 before the first). ‖W‖ + ‖V‖ starts at 0.9: with an activation of slope
    at most 1 sweeps contract.
    """

    def __init__(self, size_below: int, size: int, activation: str) -> None:
        super().__init__(size, activation)
        self.U = nn.Linear(size_below, size)  # its bias is b
        self.W = RecurrentLinear(size, 0.45)
        self.V = RecurrentLinear(size, 0.45)

    def sequential(self, x: torch.Tensor, real: torch.Tensor) -> Map:
        """A sweep from left to right, `h_{t-1}` of the same sweep.

        Args:
            x: `(B, T, e)`.
            real: `(B, T, 1)`, false at padding, where h is 0: a text ends there.
        """
        Ux_b = self.U(x)

        def sweep(h: torch.Tensor) -> torch.Tensor:
            rest = Ux_b + self.V(shift_left(h))  # all of z but W h_{t-1}
            previous, new = torch.zeros_like(h[:, 0]), []
            for t in range(h.shape[1]):
                previous = self.f(rest[:, t] + self.W(previous)).where(real[:, t], 0.0)
                new.append(previous)
            return torch.stack(new, 1)

        return sweep

    def parallel(self, x: torch.Tensor, real: torch.Tensor) -> Map:
        """A sweep over all t at once, `h_{t-1}` of the sweep before. Arguments as in `sequential`."""
        Ux_b = self.U(x)

        def sweep(h: torch.Tensor) -> torch.Tensor:
            return self.f(Ux_b + self.W(shift_right(h)) + self.V(shift_left(h))).where(real, 0.0)

        return sweep


class LayeredLayer(FNNLayer):
    """`z^(l) = W^(l) h^(l-1) + b^(l) + U^(l) h^(l+1)`, `h^(l) = σ(z^(l))`; no U in the top layer.

    ‖U‖ starts at 0.2, and W keeps the variance of its input: sweeps of such weights contract.
    """

    def __init__(self, size_below: int, size: int, activation: str, is_top: bool) -> None:
        super().__init__(size, activation)
        self.W = nn.Linear(size_below, size)  # its bias is b
        self.U = None if is_top else RecurrentLinear(size, 0.2)

    def forward(self, below: torch.Tensor, above: torch.Tensor | None) -> torch.Tensor:
        z = self.W(below)
        if self.U is not None:
            z = z + self.U(above)
        return self.f(z)


def sweep_upwards(layers: Sequence[nn.Module], h_0: torch.Tensor) -> Map:
    """A sweep over the states `h^(1) … h^(L)`: `h^(l-1)` of the same sweep, `h^(l+1)` of the sweep before."""

    def sweep(h: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        new = [h_0]
        for layer, above in zip(layers, (*h[1:], None), strict=True):
            new.append(layer(new[-1], above))
        return tuple(new[1:])

    return sweep


def shift_right(h: torch.Tensor) -> torch.Tensor:
    """`h_{t-1}` at every t, `h_0 = 0`: `(B, T, d)` → `(B, T, d)`."""
    return nn.functional.pad(h[:, :-1], (0, 0, 1, 0))


def shift_left(h: torch.Tensor) -> torch.Tensor:
    """`h_{t+1}` at every t, `h_{T+1} = 0`: `(B, T, d)` → `(B, T, d)`."""
    return nn.functional.pad(h[:, 1:], (0, 0, 0, 1))
