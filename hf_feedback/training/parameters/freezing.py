"""Freezing parts of a model by name, by number of the layer, or by regular expression."""

import re
from collections.abc import Sequence

from torch import nn

from .model_parts import matches_pattern, parts_of

FREEZABLE_PARTS = ("backbone", "embeddings", "feedback", "head")


def freeze_parameters(model: nn.Module, freeze: str | Sequence[str] | None) -> list[str]:
    """Freezes parameters, until `requires_grad_(True)` unfreezes them.

    Args:
        model: A feedback model, wrapped or not.
        freeze: `"backbone"`, `"embeddings"`, `"feedback"`, `"head"`, `"layers:0-3"` (both included), `"layers:2"`, a
            regular expression that is searched for in parameter names, or a list of these.

    Returns:
        The names of the parameters that this call freezes.

    Raises:
        ValueError: an item of `freeze` matches no parameter.

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
        names = {name for name, part in parts.items() if _matches(item, name, part)}
        if not names:
            raise ValueError(
                f"`freeze`: {item!r} matches no parameter. Use one of {', '.join(map(repr, FREEZABLE_PARTS))}, "
                f"'layers:0-3', or a regular expression over parameter names such as {next(iter(parts))!r}."
            )
        frozen |= names
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)


def _matches(item: str, name: str, part: str) -> bool:
    if item in FREEZABLE_PARTS:
        return part == item or (item == "backbone" and (part == "embeddings" or part.startswith("layer ")))
    layers = re.fullmatch(r"layers:(\d+)(?:-(\d+))?", item)
    if layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])
        return part in {f"layer {i}" for i in range(first, last + 1)}
    return matches_pattern("freeze", item, name)
