"""Declaration and checks of options, each a field with a type, a default and a line of help."""

import types
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from difflib import get_close_matches
from reprlib import repr as shortened
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from packaging.version import InvalidVersion, Version
from transformers import PreTrainedConfig

from .version import HF_FEEDBACK_VERSION

T = TypeVar("T")
# Options and keyword arguments by name; their types are those of the functions that get them.
Keywords = dict[str, Any]

# Keys that transformers adds to a config; neither options of ours nor misspellings of them.
TRANSFORMERS_KEYS = {
    "_attn_implementation",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
}


# A config that asks for more is a mistake, or meant to stall whoever loads it.
MAX_ITERATIONS = 1000
MAX_LABELS = 1_000_000
MAX_LAYERS = 1000  # the edges between so many can still be written down

TYPE_WORDS = {
    type(None): "None",
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "a text",
    list: "a list",
    dict: "a dict",
    PreTrainedConfig: "a PreTrainedConfig",
}


def option(default: T, help: str, choices: Mapping[str, object] | None = None) -> T:
    """Declares an option of a config.

    Args:
        default: its default value.
        help: a one-line description.
        choices: the registry of its allowed names; other choices are a `Literal` type.
    """
    return field(default=default, metadata={"help": help, "choices": choices})


def choices_of(option: Field) -> tuple[Any, ...]:
    """The values that an option may have, `None` included where it is optional; empty if they are not enumerated."""
    types_of = get_args(option.type) if get_origin(option.type) in (Union, types.UnionType) else (option.type,)
    registry = option.metadata.get("choices")
    if registry is not None:
        values: tuple[Any, ...] = tuple(registry)
    else:
        values = tuple(value for one in types_of if get_origin(one) is Literal for value in get_args(one))
    only_choices = all(get_origin(one) is Literal or one in (str, type(None)) for one in types_of)
    return (*values, *((None,) if type(None) in types_of else ())) if values and only_choices else ()


def is_integer(value: object) -> bool:
    """Whether a value is an integer, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def is_of_type(value: object, annotation: Any) -> bool:
    """Whether a value is of an annotated type, whatever the elements of a list. Numbers must be finite, and truth
    values are no numbers."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return any(is_of_type(value, one) for one in get_args(annotation))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(annotation)
    if origin is list:
        return isinstance(value, list | tuple)
    if origin is float:
        return is_number(value)
    return is_integer(value) if origin is int else isinstance(value, origin)


def describe_type(annotation: Any) -> str:
    """An annotated type in words, such as "an integer or None"."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe_type, get_args(annotation)))
    if origin is Literal:
        return ", ".join(map(repr, get_args(annotation)))
    return TYPE_WORDS[origin]


def check_types(config: PreTrainedConfig) -> None:
    """Checks all options that the config's class declares.

    Raises:
        ValueError: one is not among its choices, or not of its annotated type.
    """
    for declared in fields(type(config)):
        if declared.name in PreTrainedConfig.__dataclass_fields__:
            continue
        value = getattr(config, declared.name)
        if allowed := choices_of(declared):
            check_choice(declared.name, value, allowed)
        elif not is_of_type(value, declared.type):
            raise ValueError(f"`{declared.name}` must be {describe_type(declared.type)}, got {shortened(value)}.")


def check_shared_options(config: PreTrainedConfig, others: dict[str, Any]) -> None:
    """Checks options of transformers that it accepts unchecked, and that fail later on.

    Args:
        config: the config, its fields set.
        others: further keywords that the config was given.

    Raises:
        ValueError: one has a value that cannot be used.
    """
    for name, value in {"dtype": config.dtype, "torch_dtype": others.get("torch_dtype")}.items():
        dtype = getattr(torch, value, value) if isinstance(value, str) else value
        if not isinstance(dtype, torch.dtype | None):
            raise ValueError(f"`{name}` must be a torch dtype such as 'float32', got {shortened(value)}.")
    quantization = others.get("quantization_config")
    if not isinstance(quantization, dict | None) and not hasattr(quantization, "to_dict"):
        raise ValueError(f"`quantization_config` must be a dict, got {shortened(quantization)}.")
    if others.get("per_layer_config") is not None:
        raise ValueError("`per_layer_config` is an option of a backbone's config, and none of this one; leave it out.")


def check_integer(name: str, value: object, least: int, hint: str, most: float = float("inf")) -> None:
    """Raises `ValueError` where an option is not an integer from `least` to `most`; `hint` says what these mean."""
    if not is_integer(value) or value < least:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {shortened(value)} ({hint}).")
    if value > most:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be at most {most}, got {shortened(value)} ({hint}).")


def check_num_labels(num_labels: object) -> None:
    """Raises `ValueError` before a dict of so many labels is made."""
    if num_labels is not None:
        check_integer("num_labels", num_labels, 1, "1 is a value to predict", MAX_LABELS)


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raises `ValueError` where an option has none of the allowed values."""
    allowed = tuple(allowed)
    if not isinstance(value, str | None) or value not in allowed:
        near = get_close_matches(str(value), [one for one in allowed if isinstance(one, str)], 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {shortened(value)}{hint}")


def check_problem(config: PreTrainedConfig) -> None:
    """Raises `ValueError` where there are no labels, or one alone to choose from."""
    if not config.id2label:
        raise ValueError(f"`num_labels` must be at least 1, got {config.num_labels!r}.")
    names: dict[Any, Any] = config.id2label
    if any(names.get(number) != name for name, number in (config.label2id or {}).items()):
        raise ValueError("`label2id` contradicts `id2label`; set `id2label` alone, which `label2id` follows.")
    if len(config.id2label) == 1 and config.problem_type == "single_label_classification":
        raise ValueError(
            "`problem_type`='single_label_classification' needs at least two labels, got one; use 'regression' for a "
            "value, or 'multi_label_classification' for yes or no."
        )


def is_newer(version: object) -> bool:
    """Whether a config was written by a later version of hf_feedback than this one."""
    try:
        return isinstance(version, str) and Version(version) > Version(HF_FEEDBACK_VERSION)
    except InvalidVersion:
        return False
