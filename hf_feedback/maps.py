"""The learned maps that messages are made of, stacked over the edges of one source, and how they start out."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .activations import Swish


class StackedLinear(nn.Module):
    """The maps d → r of all n edges of one source as one matrix: `(..., d)` → `(..., n, r)`, or `(..., 1, r)` for one
    of them.

    It is no `nn.Linear`, whose output is a matrix product's: what finds linear maps by their class, to adapt, quantize
    or prune them, leaves it alone.
    """

    def __init__(self, in_features: int, num_edges: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.rank = in_features, out_features
        linear = nn.Linear(in_features, num_edges * out_features, bias)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        rows = slice(None) if edge is None else slice(edge * self.rank, (edge + 1) * self.rank)
        bias = None if self.bias is None else self.bias[rows]
        return F.linear(x, self.weight[rows], bias).unflatten(-1, (-1, self.rank))


class ZeroLinear(nn.Module):
    """The up-projections of all edges of one source, exactly zero at the start: edge i maps `(..., r)` → `(..., d)`."""

    def __init__(self, in_features: int, num_edges: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_edges, out_features, in_features))

    def forward(self, x: torch.Tensor, edge: int) -> torch.Tensor:
        return F.linear(x, self.weight[edge])


class Gate(nn.Module):
    """`sigmoid(A_i z + b_i)` of edge i, `(..., r)` → `(..., d)`; b = −2 at the start, so that little passes (0.12)."""

    def __init__(self, in_features: int, num_edges: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_edges, out_features, in_features))
        self.bias = nn.Parameter(torch.full((num_edges, out_features), -2.0))

    def forward(self, z: torch.Tensor, edge: int) -> torch.Tensor:
        return torch.sigmoid(F.linear(z, self.weight[edge], self.bias[edge]))


class Recurrence(nn.Module):
    """One r × r matrix per edge, applied to what neighbouring tokens say: `(B, T, n, r)` → `(B, T, n, r)`."""

    def __init__(self, num_edges: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_edges, rank, rank))

    def forward(self, m: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        return torch.einsum("btnr,nsr->btns", m, self.weight if edge is None else self.weight[edge : edge + 1])


class Damping(nn.Module):
    """`lerp(previous, new, α)` of the states that messages read, one α per source; learned, it counts as 0 below 0 and
    as 1 above 1, with a gradient there too, so that it can come back.

    Args:
        num_sources: how many states there are.
        start: α at the start; 1 damps nothing.
    """

    def __init__(self, num_sources: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.alpha = nn.Parameter(torch.full((num_sources,), start))

    def forward(self, previous: torch.Tensor, new: torch.Tensor, source: int) -> torch.Tensor:
        alpha = self.alpha[source]
        return torch.lerp(previous, new, (alpha + (alpha.clamp(0, 1) - alpha).detach()).to(new))


def on_device_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`x` where the module computes; as it is if that cannot be told, since the module keeps its weights in other
    objects than parameters (quantized maps) or loads them for each call (offloaded ones, which move `x` themselves)."""
    parameter = next(module.parameters(), None)
    return x if parameter is None or parameter.is_meta else x.to(parameter.device)


def init_map(module: nn.Module) -> bool:
    """Initializes one of these maps, or a Swish, the way transformers wants it (what was loaded stays).

    Returns:
        Whether the module is one of ours; every other one is for transformers to initialize.
    """
    if isinstance(module, ZeroLinear):
        init.zeros_(module.weight)
    elif isinstance(module, StackedLinear):  # unit-variance input to the activation
        init.normal_(module.weight, mean=0.0, std=1 / math.sqrt(module.in_features))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, Gate):
        init.normal_(module.weight, mean=0.0, std=1 / math.sqrt(module.weight.shape[-1]))
        init.constant_(module.bias, -2.0)
    elif isinstance(module, Recurrence):  # spectral radius of about a half: the sweeps contract
        init.normal_(module.weight, mean=0.0, std=0.5 / math.sqrt(module.weight.shape[-1]))
    elif isinstance(module, Damping):
        init.constant_(module.alpha, module.start)
    elif isinstance(module, Swish):
        init.ones_(module.beta)
    else:
        return False
    return True
