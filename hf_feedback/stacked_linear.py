"""The learned maps that messages are made of, stacked over the edges of one source.

Each has a method `init_feedback_weights`, which the model calls where transformers initializes weights; it uses
`transformers.initialization`, which leaves alone what was loaded.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


class StackedLinear(nn.Module):
    """The maps d → r of all n edges of one source as one matrix.

    Deliberately not an `nn.Linear`: libraries that adapt, quantize or prune every `nn.Linear` must leave it alone,
    since its output is not that of one matrix product.

    Args:
        in_features: d.
        num_edges: n.
        out_features: r.
        bias: whether each map has a bias.

    Shapes:
        `(..., d)` → `(..., n, r)`, or `(..., 1, r)` with `edge`, the number of one edge.
    """

    def __init__(self, in_features: int, num_edges: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.rank = in_features, out_features
        linear = nn.Linear(in_features, num_edges * out_features, bias)
        self.weight, self.bias = linear.weight, linear.bias

    def init_feedback_weights(self) -> None:
        """Gives the activation an input of unit variance."""
        init.normal_(self.weight, mean=0.0, std=1 / math.sqrt(self.in_features))
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        rows = slice(None) if edge is None else slice(edge * self.rank, (edge + 1) * self.rank)
        bias = None if self.bias is None else self.bias[rows]
        return F.linear(x, self.weight[rows], bias).unflatten(-1, (-1, self.rank))

    def extra_repr(self) -> str:
        edges = len(self.weight) // self.rank
        return f"in_features={self.in_features}, num_edges={edges}, out_features={self.rank}"


class ZeroLinear(nn.Module):
    """The maps r → d of all n edges of one source, without a bias and exactly zero at the start.

    Args:
        in_features: r.
        num_edges: n.
        out_features: d.

    Shapes:
        `(..., r)` → `(..., d)`, of edge number `edge`.
    """

    def __init__(self, in_features: int, num_edges: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_edges, out_features, in_features))

    def init_feedback_weights(self) -> None:
        """Makes every output zero."""
        init.zeros_(self.weight)

    def forward(self, x: torch.Tensor, edge: int) -> torch.Tensor:
        return F.linear(x, self.weight[edge])

    def extra_repr(self) -> str:
        edges, out_features, in_features = self.weight.shape
        return f"in_features={in_features}, num_edges={edges}, out_features={out_features}"


class Gate(nn.Module):
    """`sigmoid(A_i z + b_i)` of edge i; b = −2 at the start, so that the gate is nearly closed (0.12).

    Shapes:
        `(..., r)` → `(..., d)`, of edge number `edge`.
    """

    def __init__(self, in_features: int, num_edges: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_edges, out_features, in_features))
        self.bias = nn.Parameter(torch.full((num_edges, out_features), -2.0))

    def init_feedback_weights(self) -> None:
        """Nearly closes the gate."""
        init.normal_(self.weight, mean=0.0, std=1 / math.sqrt(self.weight.shape[-1]))
        init.constant_(self.bias, -2.0)

    def forward(self, z: torch.Tensor, edge: int) -> torch.Tensor:
        return torch.sigmoid(F.linear(z, self.weight[edge], self.bias[edge]))


class Recurrence(nn.Module):
    """One r × r matrix per edge, applied to the messages of neighbouring tokens.

    Shapes:
        `(B, T, n, r)` → `(B, T, n, r)`, or n = 1 with `edge`, the number of one edge.
    """

    def __init__(self, num_edges: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_edges, rank, rank))

    def init_feedback_weights(self) -> None:
        """Gives each matrix a spectral radius of about a half, so that the sweeps contract."""
        init.normal_(self.weight, mean=0.0, std=0.5 / math.sqrt(self.weight.shape[-1]))

    def forward(self, m: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        return torch.einsum("btnr,nsr->btns", m, self.weight if edge is None else self.weight[edge : edge + 1])


class Damping(nn.Module):
    """`lerp(previous, new, α)` of the states that messages read, one learned α per source; it counts as 0 below 0 and
    as 1 above 1, with a gradient there too, so that it can come back.

    Args:
        num_sources: how many states there are.
        start: α at the start; 1 damps nothing.
    """

    def __init__(self, num_sources: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.alpha = nn.Parameter(torch.full((num_sources,), start))

    def init_feedback_weights(self) -> None:
        """Sets every α to its start."""
        init.constant_(self.alpha, self.start)

    def forward(self, previous: torch.Tensor, new: torch.Tensor, source: int) -> torch.Tensor:
        alpha = self.alpha[source]
        return torch.lerp(previous, new, (alpha + (alpha.clamp(0, 1) - alpha).detach()).to(new))


def on_device_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`x` on the device of a module; as it is if that is not known, since the module keeps its weights in other objects
    than parameters (quantized maps) or loads them for each call (offloaded ones, which move `x` themselves)."""
    parameter = next(module.parameters(), None)
    return x if parameter is None or parameter.is_meta else x.to(parameter.device)
