"""Freezing parts of a model by name, by number of the layer, or by regular expression."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from .model_parts import layer_of, matches_pattern, parts_of

FREEZABLE_PARTS = ("backbone", "embeddings", "feedback", "head")
LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?")


def freeze_parameters(model: nn.Module, freeze: str | Sequence[str] | None) -> list[str]:
    """Freezes parameters, until `requires_grad_(True)` unfreezes them.

    Args:
        model: A feedback model, wrapped or not.
        freeze: `"backbone"`, `"embeddings"`, `"feedback"`, `"head"`, `"layers:0-3"` (both included), `"layers:2"`, a
            regular expression that is searched for in parameter names, or a list of these.

    Returns:
        The names of the parameters that this call freezes.

    Raises:
        ValueError: an item of `freeze` matches no parameter, or names layers that the model does not have.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> freeze_parameters(model, "head")
    ['classifier.bias', 'classifier.weight']

    ```
    """
    items = [freeze] if isinstance(freeze, str) else list(freeze or [])
    parts = parts_of(model)
    frozen: set[str] = set()
    for item in items:
        _check_layers(item, parts.values())
        names = {name for name, part in parts.items() if _matches(item, name, part)}
        if not names:
            raise ValueError(
                f"`freeze`: {item!r} matches no parameter. Use one of {', '.join(map(repr, FREEZABLE_PARTS))}, "
                f"{lowest_layers(parts.values())!r}, or a regular expression over parameter names such as "
                f"{next(iter(parts))!r}."
            )
        frozen |= names
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)


def lowest_layers(parts: Iterable[str]) -> str:
    """Returns the item of `freeze` for the lower half of the layers.

    Args:
        parts: the parts of the model, as in `parts_of`.

    Example:

    ```python
    >>> lowest_layers(["embeddings", "layer 0", "layer 1", "layer 2", "head"])
    'layers:0-1'

    ```
    """
    last = _last_layer(parts) // 2
    return f"layers:0-{last}" if last > 0 else "layers:0"


def _last_layer(parts: Iterable[str]) -> int:
    """The number of the highest layer; -1 if there is none."""
    return max((layer for layer in map(layer_of, parts) if layer is not None), default=-1)


def _check_layers(item: str, parts: Iterable[str]) -> None:
    """Refuses layers above those of the model."""
    layers, last = LAYERS.fullmatch(item), _last_layer(parts)
    if layers and last >= 0 and (end := int(layers[2] or layers[1])) > last:
        raise ValueError(
            f"`freeze`: {item!r} names layers up to {end}; this model has 0 to {last}, such as "
            f"{lowest_layers(parts)!r}."
        )


def _matches(item: str, name: str, part: str) -> bool:
    if item in FREEZABLE_PARTS:
        return part == item or (item == "backbone" and (part == "embeddings" or layer_of(part) is not None))
    layers = LAYERS.fullmatch(item)
    if layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])
        return part in {f"layer {i}" for i in range(first, last + 1)}
    return matches_pattern("freeze", item, name)
