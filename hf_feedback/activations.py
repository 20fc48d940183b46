"""Activations of a message, by name."""

from difflib import get_close_matches

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN


class Swish(nn.Module):
    """Swish with one learnable β per edge: `x · sigmoid(βx)`, β = 1 at the start.

    Args:
        num_edges: n, the number of edges that share the input.

    Shapes:
        x: `(..., n, r)` → `(..., n, r)`, edge i with its own β; `(..., 1, r)` with `edge`, the number of one.

    Source: Ramachandran et al. 2017, arXiv 1710.05941.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.activations import Swish
    >>> [round(y, 4) for y in Swish(1)(torch.tensor([[-2.0, 0.0, 2.0]]))[0].tolist()]
    [-0.2384, 0.0, 1.7616]

    ```
    """

    def __init__(self, num_edges: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(num_edges))

    def init_feedback_weights(self) -> None:
        """Sets every β to 1."""
        init.ones_(self.beta)

    def forward(self, x: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        beta = self.beta if edge is None else self.beta[edge : edge + 1]
        return x * torch.sigmoid(beta.unsqueeze(-1) * x)


# Activations with their own parameters, one set per edge: name → class, called with the number of edges.
# Every other name is looked up in transformers.
ACTIVATIONS: dict[str, type[nn.Module]] = {"swish": Swish}


def check_activation(name: str, option: str = "feedback_activation") -> None:
    """Raises `ValueError` with the nearest valid names where `name`, the value of `option`, is not an activation."""
    if name not in ACTIVATIONS and name not in ACT2FN:
        names = sorted({*ACTIVATIONS, *ACT2FN})
        near = get_close_matches(str(name), names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of: {', '.join(names)}."
        raise ValueError(f"`{option}` must be the name of an activation, got {name!r}; {hint}")


def make_activation(name: str, num_edges: int) -> nn.Module:
    """The activation of that name, for `num_edges` edges at once; it maps `(..., n, r)` to `(..., n, r)`."""
    check_activation(name)
    activation = ACTIVATIONS[name](num_edges) if name in ACTIVATIONS else ACT2FN[name]
    return activation.to(torch.get_default_dtype())  # some come with parameters in bfloat16
