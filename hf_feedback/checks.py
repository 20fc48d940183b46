"""What both configurations share: the version, and checks of option values."""

import types
from dataclasses import fields
from reprlib import repr as shortened
from typing import Any, Union, get_args, get_origin

import torch
from transformers import PreTrainedConfig

HF_FEEDBACK_VERSION = "0.1.0"

# What transformers adds to a config by itself; neither ours nor a misspelling of ours.
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
MOST_ITERATIONS = 1000
MOST_LABELS = 1_000_000

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


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def is_of_type(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotated type, whatever the elements of a list. Numbers must be finite, and flags are
    none."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return any(is_of_type(value, one) for one in get_args(annotation))
    if origin is list:
        return isinstance(value, list | tuple)
    if origin is float:
        return is_number(value)
    return is_integer(value) if origin is int else isinstance(value, origin)


def _in_words(annotation: Any) -> str:
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, get_args(annotation)))
    return TYPE_WORDS[origin]


def check_types(config: PreTrainedConfig) -> None:
    """Raises `ValueError` where an option that the config's class declares is not of its annotated type."""
    for field in fields(type(config)):
        inherited = field.name in PreTrainedConfig.__dataclass_fields__
        if not inherited and not is_of_type(value := getattr(config, field.name), field.type):
            raise ValueError(f"`{field.name}` must be {_in_words(field.type)}, got {shortened(value)}.")


def check_shared_options(config: PreTrainedConfig, others: dict[str, Any]) -> None:
    """The same for options of transformers that it takes as they come, and stumbles over.

    Args:
        config: whose fields are set.
        others: what the config got besides.
    """
    for name, value in {"dtype": config.dtype, "torch_dtype": others.get("torch_dtype")}.items():
        found = getattr(torch, value, value) if isinstance(value, str) else value
        if not isinstance(found, torch.dtype | None):
            raise ValueError(f"`{name}` must be a torch dtype such as 'float32', got {shortened(value)}.")
    quantization = others.get("quantization_config")
    if not isinstance(quantization, dict | None) and not hasattr(quantization, "to_dict"):
        raise ValueError(f"`quantization_config` must be a dict, got {shortened(quantization)}.")
    if others.get("per_layer_config") is not None:
        raise ValueError("`per_layer_config` is an option of a backbone's config, and none of this one; leave it out.")


def check_integer(name: str, value: object, least: int, hint: str, most: float = float("inf")) -> None:
    if not is_integer(value) or value < least:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {shortened(value)} ({hint}).")
    if value > most:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be at most {most}, got {shortened(value)} ({hint}).")


def check_labels(num_labels: object) -> None:
    """Raises `ValueError` before a dict of so many labels is made."""
    if num_labels is not None:
        check_integer("num_labels", num_labels, 1, "1 is a value to predict", MOST_LABELS)


def check_choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {shortened(value)}.")


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


def is_newer(version: str | None) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return isinstance(version, str) and numbers(version) > numbers(HF_FEEDBACK_VERSION)
