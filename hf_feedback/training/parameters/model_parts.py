"""The parts of a feedback model, wrapped or not, and the parameters of each."""

import re
from typing import cast

from torch import nn
from transformers import PreTrainedConfig

from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_fnn import FNNPreTrainedModel


def feedback_model_in(model: nn.Module) -> tuple[str, FeedbackPreTrainedModel]:
    """Returns the prefix of the parameter names, and the feedback model inside its wrappers (DDP, PEFT, …).

    Args:
        model: the model, wrapped or not.

    Raises:
        ValueError: there is none, or it has no backbone.
    """
    prefix, core = any_model_in(model)
    if isinstance(core, FNNPreTrainedModel):
        raise ValueError(f"{type(core).__name__} has no backbone; use `from_backbone` to make a model that has one.")
    return prefix, core


def any_model_in(model: nn.Module) -> tuple[str, FeedbackPreTrainedModel | FNNPreTrainedModel]:
    """As `feedback_model_in`, also for networks trained from scratch.

    Args:
        model: the model, wrapped or not.

    Raises:
        ValueError: there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, FeedbackPreTrainedModel | FNNPreTrainedModel):
            return f"{name}." if name else "", module
    raise ValueError(f"There is no feedback model in this {type(model).__name__}; use `from_backbone` to make one.")


def layer_of(part: str) -> int | None:
    """The number of the layer that a part, as `parts_of` names it, is; `None`: it is none."""
    return int(part.removeprefix("layer ")) if part.startswith("layer ") else None


def parts_of(model: nn.Module) -> dict[str, str]:
    """Returns the part that each parameter belongs to.

    Args:
        model: A feedback model, wrapped or not.

    Returns:
        Parameter name → `"embeddings"` (with all parameters below the layers), `"layer 0"`, …, `"backbone"` (those
        above the layers, and the LM head of a causal language model), `"feedback"` or `"head"`.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> sorted(set(parts_of(model).values()))
    ['embeddings', 'feedback', 'head', 'layer 0', 'layer 1']

    ```
    """
    prefix, core = any_model_in(model)
    names = {name: name.removeprefix(prefix) for name, _ in model.named_parameters()}
    if isinstance(core, FNNPreTrainedModel):
        return {full_name: core.part_of(name) for full_name, name in names.items()}
    layers, base = f"backbone.{core.layout.stack}.", _prefix_of_base_model(core)
    embeddings, numbers = _prefixes_of_embeddings(core, layers), _layer_numbers(core)
    runs_below, runs_above = (
        tuple(f"backbone.{module}." for module in modules)
        for modules in (core.layout.modules_below, core.layout.modules_above)
    )
    parts, below = {}, True
    for full_name, name in names.items():
        if name.startswith("feedback."):
            part = "feedback"
        elif name.startswith(layers):
            part, below = f"layer {numbers[int(name.removeprefix(layers).split('.')[0])]}", False
        elif not name.startswith(base) and not core.traits.predicts_next_token:  # a pretrained LM head
            part = "head"
        elif name.startswith(runs_below):
            part = "embeddings"
        elif name.startswith(runs_above):
            part = "backbone"
        else:  # it is not called itself, such as a parameter of the whole model
            part = "embeddings" if below or name.startswith(embeddings) else "backbone"
        parts[full_name] = part
    return parts


def has_trained_backbone_head(model: nn.Module) -> bool:
    """Returns whether the head of a feedback model is one of the backbone's own that was trained with it."""
    core = any_model_in(model)[1]
    if isinstance(core, FNNPreTrainedModel) or core.config.head != "backbone":
        return False
    return core.traits.has_trained_head(cast(PreTrainedConfig, core.config.backbone_config))


# What PEFT, DDP, `torch.compile` and FSDP add to the names of parameters.
WRAPPERS = re.compile(
    r"^(?:base_model\.(?:model\.)?|module\.|_orig_mod\.|_fsdp_wrapped_module\.)+|(?<=\.)modules_to_save\.\w+\."
)


def matches_pattern(option: str, pattern: str, name: str) -> bool:
    """Returns whether a regular expression is found in the name of a parameter, with or without what wrappers add.

    Args:
        option: name of the option that holds the pattern, for the message of the error.
        pattern: the regular expression.
        name: of the parameter.

    Raises:
        ValueError: the pattern is not a regular expression.

    Example:

    ```python
    >>> matches_pattern("freeze", "^classifier.weight", "base_model.model.classifier.modules_to_save.default.weight")
    True

    ```
    """
    try:
        return any(re.search(pattern, one) is not None for one in (name, WRAPPERS.sub("", name)))
    except re.error as error:
        raise ValueError(f"`{option}`: {pattern!r} is not a regular expression ({error}).") from error


def _prefix_of_base_model(core: FeedbackPreTrainedModel) -> str:
    base_model = core.backbone.base_model
    name = next(name for name, module in core.backbone.named_modules() if module is base_model)
    if not name and core.config.head == "backbone":  # a task model that names no model inside it
        name = core.layout.part
    return f"backbone.{name}." if name else "backbone."


def _prefixes_of_embeddings(core: FeedbackPreTrainedModel, layers: str) -> tuple[str, ...]:
    """The names of embeddings outside the layers."""
    names = {f"backbone.{n}." for n, module in core.backbone.named_modules() if isinstance(module, nn.Embedding)}
    return tuple(name for name in names if not name.startswith(layers))


def _layer_numbers(core: FeedbackPreTrainedModel) -> list[int]:
    """The number of each module of the stack; one that is called several times counts as the highest of its layers."""
    stack, layers = core.backbone.get_submodule(core.layout.stack), core.layers
    return [max(i for i, layer in enumerate(layers) if layer is module) for module in stack.children()]
