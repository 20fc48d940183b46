"""Parameter groups with discriminative learning rates."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from .model_parts import layer_of, matches_pattern, parts_of

ParameterGroup: TypeAlias = dict[str, Any]  # `params`, `lr`, `weight_decay` and `name`


@dataclass(frozen=True)
class LearningRates:
    """The learning rate of each parameter.

    Args:
        learning_rate: rate of parts without a rate of their own.
        backbone_lr: rate of the backbone's last layer.
        feedback_lr: rate of the feedback.
        head_lr: rate of the head.
        layer_lr_decay: factor in (0, 1] from one layer to the one below.
        learning_rate_mapping: regular expression over parameter names → rate; the first match counts.

    Raises:
        ValueError: A rate is not allowed.

    Example:

    ```python
    >>> rates = LearningRates(1e-3, backbone_lr=2e-5, layer_lr_decay=0.5)
    >>> [rates.of_part(part, num_layers=2) for part in ("embeddings", "layer 0", "layer 1", "head")]
    [5e-06, 1e-05, 2e-05, 0.001]

    ```
    """

    learning_rate: float
    backbone_lr: float | None = None
    feedback_lr: float | None = None
    head_lr: float | None = None
    layer_lr_decay: float = 1.0
    learning_rate_mapping: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in ("learning_rate", "backbone_lr", "feedback_lr", "head_lr")}
        mapping = self.learning_rate_mapping or {}
        rates |= {f"learning_rate_mapping[{pattern!r}]": rate for pattern, rate in mapping.items()}
        for option, rate in rates.items():
            if rate is not None and not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
                raise ValueError(f"`{option}` must be a finite number of at least 0, got {rate!r}.")
        if not 0 < self.layer_lr_decay <= 1:
            raise ValueError(
                f"`layer_lr_decay` must be in (0, 1], got {self.layer_lr_decay!r}; 1 gives all layers one rate."
            )

    def check_patterns(self, names: Sequence[str]) -> None:
        """Refuses patterns of the mapping that match no parameter.

        Raises:
            ValueError: a pattern matches nothing, or is not a regular expression.
        """
        for pattern in self.learning_rate_mapping or {}:
            if not any(matches_pattern("learning_rate_mapping", pattern, name) for name in names):
                raise ValueError(f"`learning_rate_mapping`: {pattern!r} matches no parameter, e.g. {names[0]!r}.")

    def pattern_of(self, name: str) -> str | None:
        """Returns the first pattern of the mapping that matches a parameter, `None` if none does."""
        patterns = self.learning_rate_mapping or {}
        return next((p for p in patterns if matches_pattern("learning_rate_mapping", p, name)), None)

    def of_part(self, part: str, num_layers: int) -> float:
        """Returns the rate of a part of the model, see `parts_of`."""
        own = {"backbone": self.backbone_lr, "feedback": self.feedback_lr, "head": self.head_lr}
        rate = own[part if part in own else "backbone"]
        rate = self.learning_rate if rate is None else rate
        if part in own:
            return rate
        layer = layer_of(part)
        layers_above = num_layers if layer is None else num_layers - 1 - layer  # the embeddings are below all of them
        return rate * self.layer_lr_decay**layers_above


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    backbone_lr: float | None = None,
    feedback_lr: float | None = None,
    head_lr: float | None = None,
    layer_lr_decay: float = 1.0,
    learning_rate_mapping: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """Returns parameter groups for any torch optimizer.

    Layer l of L trains at `backbone_lr · layer_lr_decay^(L−1−l)`, the embeddings at `backbone_lr · layer_lr_decay^L`.
    A frozen parameter is in no group; a rate from `learning_rate_mapping` wins over every other. Biases and vectors
    (norms, the β of Swish) never decay.

    Args:
        model: A feedback model, wrapped or not.
        learning_rate: rate of parts without a rate of their own.
        weight_decay: decoupled weight decay of matrices.
        backbone_lr: rate of the backbone's last layer; `learning_rate` by default.
        feedback_lr: rate of the feedback; `learning_rate` by default.
        head_lr: rate of the head; `learning_rate` by default.
        layer_lr_decay: factor in (0, 1] from one layer to the one below.
        learning_rate_mapping: regular expression over parameter names → rate; the first match counts.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `name`.

    Raises:
        ValueError: A rate is not allowed, a pattern matches nothing, or nothing is left to train.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import parameter_groups
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> groups = parameter_groups(model, 1e-3, backbone_lr=2e-5, layer_lr_decay=0.5)
    >>> {group["name"]: group["lr"] for group in groups}
    {'embeddings': 5e-06, 'layer 0': 1e-05, 'layer 1': 2e-05, 'feedback': 0.001, 'head': 0.001}
    >>> optimizer = torch.optim.AdamW(groups)

    ```
    """
    mapping = dict(learning_rate_mapping or {})
    rates = LearningRates(learning_rate, backbone_lr, feedback_lr, head_lr, layer_lr_decay, mapping)
    parts = parts_of(model)
    rates.check_patterns(list(parts))
    num_layers = 1 + max(layer for layer in map(layer_of, parts.values()) if layer is not None)
    groups: dict[tuple[str, float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = rates.pattern_of(name)
        rate = rates.of_part(parts[name], num_layers) if pattern is None else mapping[pattern]
        group_name = parts[name] if pattern is None else pattern
        decays = parameter.ndim >= 2 and not name.endswith(".bias")  # biases of several edges are one matrix
        decay = weight_decay if decays else 0.0
        group = {"params": [], "lr": rate, "weight_decay": decay, "name": group_name}
        groups.setdefault((group_name, rate, decay), group)["params"].append(parameter)
    if not groups:
        raise ValueError("Every parameter is frozen and nothing is left to train: freeze fewer parts.")
    return list(groups.values())


def format_groups(groups: Sequence[ParameterGroup]) -> str:
    """Returns the groups as a table: parameters, tensors, numbers, rate, decay."""

    def rows() -> Iterator[tuple[str, ...]]:
        yield "parameters", "tensors", "numbers", "rate", "decay"
        for group in groups:
            count = sum(parameter.numel() for parameter in group["params"])
            name, tensors = str(group.get("name", "")), str(len(group["params"]))
            yield name, tensors, f"{count:,}", f"{group['lr']:.3g}", f"{group['weight_decay']:g}"

    table = list(rows())
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    )
