"""Which parameters train, and at which rate: freezing and discriminative learning rates."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..modeling_base import FeedbackPreTrainedModel
from ..modeling_fnn import FNNPreTrainedModel

PARTS = ("backbone", "embeddings", "feedback", "head")


def feedback_model_in(model: nn.Module) -> tuple[str, FeedbackPreTrainedModel]:
    """The feedback model inside whatever wraps it (DDP, PEFT, …), with the prefix of its parameter names.

    Raises:
        ValueError: there is none, or one without a backbone.
    """
    prefix, core = any_model_in(model)
    if isinstance(core, FNNPreTrainedModel):
        raise ValueError(f"{type(core).__name__} has no backbone; use `from_backbone` to make a model that has one.")
    return prefix, core


def any_model_in(model: nn.Module) -> tuple[str, FeedbackPreTrainedModel | FNNPreTrainedModel]:
    """As `feedback_model_in`, also for the networks that are trained from scratch."""
    for name, module in model.named_modules():
        if isinstance(module, FeedbackPreTrainedModel | FNNPreTrainedModel):
            return f"{name}." if name else "", module
    raise ValueError(f"There is no feedback model in this {type(model).__name__}; use `from_backbone` to make one.")


def parts_of(model: nn.Module) -> dict[str, str]:
    """The part that each parameter belongs to: parameter name → `"embeddings"`, `"layer 0"`, …, `"backbone"` (what
    lies above the layers), `"feedback"` or `"head"`. Parameters below the layers count as embeddings.
    """
    prefix, core = any_model_in(model)
    if isinstance(core, FNNPreTrainedModel):
        return {name: core.part_of(name.removeprefix(prefix)) for name, _ in model.named_parameters()}
    layers = f"backbone.{core.layout.stack}."
    base = next(
        f"backbone.{name}." if name else "backbone."
        for name, m in core.backbone.named_modules()
        if m is core.backbone.base_model
    )
    embeddings = {
        f"backbone.{name}."
        for name, module in core.backbone.named_modules()
        if isinstance(module, nn.Embedding) and not f"backbone.{name}.".startswith(layers)
    }
    stack = core.backbone.get_submodule(core.layout.stack)
    in_order = core.layers
    # a layer that is called several times counts as the highest of them
    highest = [max(i for i, layer in enumerate(in_order) if layer is module) for module in stack.children()]
    parts, below = {}, True
    for full_name, _ in model.named_parameters():
        name = full_name.removeprefix(prefix)
        if name.startswith("feedback."):
            part = "feedback"
        elif name.startswith(layers):
            part, below = f"layer {highest[int(name.removeprefix(layers).split('.')[0])]}", False
        elif not name.startswith(base):
            part = "head"
        else:
            part = "embeddings" if below or name.startswith(tuple(embeddings)) else "backbone"
        parts[full_name] = part
    return parts


def freeze_parameters(model: nn.Module, freeze: str | Sequence[str] | None) -> list[str]:
    """Stops parameters from training. What is frozen already stays so; `requires_grad_(True)` thaws.

    Args:
        model: a feedback model, wrapped or not.
        freeze: `"backbone"`, `"embeddings"`, `"feedback"`, `"head"`, `"layers:0-3"` (both included), `"layers:2"`, a
            regular expression that is searched for in parameter names, or a list of these.

    Returns:
        The names of the parameters that are frozen by this call.

    Raises:
        ValueError: something in `freeze` matches no parameter.
    """
    items = [freeze] if isinstance(freeze, str) else list(freeze or [])
    parts = parts_of(model)
    frozen: set[str] = set()
    for item in items:
        names = {name for name, part in parts.items() if _matches(item, name, part)}
        if not names:
            raise ValueError(
                f"`freeze`: {item!r} matches no parameter. Use one of {', '.join(map(repr, PARTS))}, 'layers:0-3', or "
                f"a regular expression over parameter names such as {next(iter(parts))!r}."
            )
        frozen |= names
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)


def _matches(item: str, name: str, part: str) -> bool:
    if item in PARTS:
        return part == item or (item == "backbone" and (part == "embeddings" or part.startswith("layer ")))
    layers = re.fullmatch(r"layers:(\d+)(?:-(\d+))?", item)
    if layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])
        return part in {f"layer {i}" for i in range(first, last + 1)}
    return _search("freeze", item, name)


def _search(option: str, pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"`{option}`: {pattern!r} is not a regular expression ({error}).") from error


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
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer.

    Layer l of L trains at `backbone_lr · layer_lr_decay^(L−1−l)`, the embeddings at `backbone_lr · layer_lr_decay^L`.
    A frozen parameter is in no group; a rate from `learning_rate_mapping` wins over every other. Vectors (norms,
    biases, the β of Swish) never decay.

    Args:
        model: a feedback model, wrapped or not.
        learning_rate: the rate of every part that has none of its own.
        weight_decay: decoupled weight decay of matrices.
        backbone_lr, feedback_lr, head_lr: rates of the parts; `learning_rate` by default.
        layer_lr_decay: factor in (0, 1] from one layer to the one below.
        learning_rate_mapping: regular expression over parameter names → rate; the first that matches counts.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `name`.

    Raises:
        ValueError: a rate is not allowed, a pattern matches nothing, or nothing is left to train.

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
    rates = {"learning_rate": learning_rate, "backbone_lr": backbone_lr, "feedback_lr": feedback_lr, "head_lr": head_lr}
    rates |= {f"learning_rate_mapping[{pattern!r}]": rate for pattern, rate in mapping.items()}
    _check_rates(rates, layer_lr_decay)
    parts = parts_of(model)
    for pattern in mapping:
        if not any(_search("learning_rate_mapping", pattern, name) for name in parts):
            raise ValueError(f"`learning_rate_mapping`: {pattern!r} matches no parameter, e.g. {next(iter(parts))!r}.")
    num_layers = 1 + max(int(part.removeprefix("layer ")) for part in parts.values() if part.startswith("layer "))
    named = {"backbone": backbone_lr, "feedback": feedback_lr, "head": head_lr}
    named = {part: learning_rate if rate is None else rate for part, rate in named.items()}

    def rate_of(part: str) -> float:
        if part in named:
            return named[part]  # type: ignore[return-value]
        below = num_layers if part == "embeddings" else num_layers - 1 - int(part.removeprefix("layer "))
        return named["backbone"] * layer_lr_decay**below  # type: ignore[operator]

    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        winner = next((p for p in mapping if _search("learning_rate_mapping", p, name)), None)
        part, rate = (parts[name], rate_of(parts[name])) if winner is None else (winner, mapping[winner])
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        group = {"params": [], "lr": rate, "weight_decay": decay, "name": part}
        groups.setdefault((part, rate, decay), group)["params"].append(parameter)
    if not groups:
        raise ValueError("Every parameter is frozen: nothing is left to train. Freeze less.")
    return list(groups.values())


def _check_rates(rates: Mapping[str, float | None], layer_lr_decay: float) -> None:
    for option, rate in rates.items():
        if rate is not None and not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
            raise ValueError(f"`{option}` must be a finite number of at least 0, got {rate!r}.")
    if not 0 < layer_lr_decay <= 1:
        raise ValueError(f"`layer_lr_decay` must be in (0, 1], got {layer_lr_decay!r}; 1 gives all layers one rate.")


def format_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """The groups as a table: name pattern, tensors, parameters, rate, decay."""

    def rows() -> Iterator[tuple[str, ...]]:
        yield "parameters", "tensors", "numbers", "rate", "decay"
        for group in groups:
            count = sum(parameter.numel() for parameter in group["params"])
            yield (
                str(group.get("name", "")),
                str(len(group["params"])),
                f"{count:,}",
                f"{group['lr']:.3g}",
                f"{group['weight_decay']:g}",
            )

    table = list(rows())
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    )
