"""Feedback connections: what a higher layer tells the lower ones.

One class per message operator. A connection holds all edges of one source, its parameters stacked over their targets,
so that edges sharing a source are one matrix product. A further operator is one class here and one row in
`CONNECTIONS`.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .activations import Swish, make_activation

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


class StackedLinear(nn.Linear):
    """The down-projections of all n edges of one source as one matrix: `(..., d)` → `(..., n·r)`."""

    def __init__(self, in_features: int, num_edges: int, out_features: int) -> None:
        super().__init__(in_features, num_edges * out_features)


class ZeroLinear(nn.Module):
    """The up-projections of all edges of one source, exactly zero at the start: edge i maps `(..., r)` → `(..., d)`."""

    def __init__(self, in_features: int, num_edges: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_edges, out_features, in_features))

    def forward(self, x: torch.Tensor, edge: int) -> torch.Tensor:
        return F.linear(x, self.weight[edge])


class AdditiveConnection(nn.Module):
    """`message_{s→l} = scale · up_l(activation(down_l(LayerNorm(h_s))))`, added to the input of layer l.

    Args:
        config: the feedback options.
        hidden_size: d, the backbone's hidden size.
        num_edges: n, how many targets the source speaks to.

    Shapes:
        `forward(h)`: the source's state `(B, T, d)` → what it says to all targets, `(B, T, n, r)`.
        `message(said, edge, receiver)`: → the message of one edge, `(B, T, d)`.
    """

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int) -> None:
        super().__init__()
        rank = hidden_size if config.feedback_rank is None else config.feedback_rank
        self.num_edges = num_edges
        self.scale = config.feedback_scale
        self.norm = nn.LayerNorm(hidden_size)
        self.down = StackedLinear(hidden_size, num_edges, rank)
        self.activation = make_activation(config.feedback_activation, num_edges)
        self.dropout = nn.Dropout(config.feedback_dropout)
        self.up = ZeroLinear(rank, num_edges, hidden_size)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        z = self.down(self.norm(h.to(self.norm.weight.device))).unflatten(-1, (self.num_edges, -1))
        return self.dropout(self.activation(z))

    def message(self, said: torch.Tensor, edge: int, receiver: torch.Tensor) -> torch.Tensor:
        message = self.up(said[..., edge, :], edge)
        return message if self.scale == 1.0 else self.scale * message


CONNECTIONS: dict[str, type[nn.Module]] = {"additive": AdditiveConnection}


class FeedbackConnections(nn.Module):
    """All feedback connections of a model, one module per source.

    Args:
        config: the feedback options.
        edges: `(source, target)` pairs, layers counted from 0.
        hidden_size: d, the backbone's hidden size.

    Shapes:
        `forward(h)`: the sources' states of iteration k − 1, `{source: (B, T, d)}` → what they say, for `add`.
        `add(said, target, x)`: the input of layer `target`, `(B, T, d)` → the same with its messages, `(B, T, d)`.
    """

    def __init__(self, config: "FeedbackConfig", edges: list[tuple[int, int]], hidden_size: int) -> None:
        super().__init__()
        targets: dict[int, list[int]] = {}
        for source, target in sorted(edges):
            targets.setdefault(source, []).append(target)
        operator = CONNECTIONS[config.feedback_type]
        self.sources = nn.ModuleDict({str(s): operator(config, hidden_size, len(t)) for s, t in targets.items()})
        # target → the (source, number among the source's edges) pairs that speak to it
        self.incoming: dict[int, list[tuple[int, int]]] = {}
        for source, its_targets in targets.items():
            for edge, target in enumerate(its_targets):
                self.incoming.setdefault(target, []).append((source, edge))

    def forward(self, h: dict[int, torch.Tensor]) -> dict[int, Any]:
        return {source: self.sources[str(source)](h[source]) for source in h}

    @property
    def weight(self) -> None:
        """Nothing; PEFT reads and sets it on every module in `modules_to_save` when adapters such as IA³ are merged."""
        return None

    @weight.setter
    def weight(self, value: None) -> None:
        pass

    def add(self, said: dict[int, Any], target: int, x: torch.Tensor) -> torch.Tensor:
        """`x + Σ_{s → target} message_{s→target}`, in the dtype and on the device of `x`."""
        receiver = x
        for source, edge in self.incoming.get(target, ()):
            connection: Any = self.sources[str(source)]
            x = x + connection.message(said[source], edge, receiver).to(x)
        return x


def init_connection_weights(module: nn.Module) -> bool:
    """Initializes a module of this file the way transformers wants it (weights that were loaded stay as they are).

    Returns:
        Whether the module is one of ours; every other one is for transformers to initialize.
    """
    if isinstance(module, ZeroLinear):
        init.zeros_(module.weight)
    elif isinstance(module, StackedLinear):  # unit-variance input to the activation
        init.normal_(module.weight, mean=0.0, std=1 / math.sqrt(module.in_features))
        init.zeros_(module.bias)
    elif isinstance(module, Swish):
        init.ones_(module.beta)
    else:
        return False
    return True
