"""Checks of backbones in config files, which may not switch on code, become keywords, or change paths."""

import inspect
import re
from collections.abc import Container
from dataclasses import fields
from pathlib import PurePosixPath
from reprlib import repr as shortened
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import logging

from .validation import MAX_LAYERS, Keywords, check_num_labels, is_integer

logger = logging.get_logger(__name__)

# Keywords of `from_pretrained` that locate a backbone.
PLACE_KEYS = ("name_or_path", "revision", "subfolder", "gguf_file")
# A class in a file of the folder itself, and of no other one.
CLASS_REFERENCE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)
# By these a config would have transformers run code from elsewhere, or read other files than those of the model.
CODE_KEYS = ("distributed_config", "transformers_weights", "backbone", "backbone_kwargs", "use_pretrained_backbone")
# By these, where the value is the name of a repository: its kernels are downloaded and run.
KERNELS = ("attn_implementation", "experts_implementation")
# What families call a number of layers; configs make lists of that length.
LAYER_COUNT = re.compile(r"(?!max_window_).*(layers|n_layer|num_blocks)")


def check_place(source: Keywords | None) -> None:
    """Raises `ValueError` where `backbone_source` says more than a place in strings, and a fingerprint."""
    for key, value in (source or {}).items():
        if key == "fingerprint":
            strings = isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair)
        else:
            strings = isinstance(value, str)
        if key not in (*PLACE_KEYS, "fingerprint") or not strings:
            raise ValueError(
                f"`backbone_source` may hold {', '.join(PLACE_KEYS)} as texts, and a fingerprint; got "
                f"{shortened(key)}: {shortened(value)}. Remove it from the config."
            )
        path = PurePosixPath(value) if key in PLACE_KEYS[1:] else PurePosixPath()
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"`backbone_source`: `{key}` must stay inside of the repository, got {shortened(value)}.")


def place_keywords(source: Keywords) -> Keywords:
    """The keywords of `from_pretrained` by which what stands at a place is loaded.

    Args:
        source: a checked `backbone_source` with a `name_or_path`.

    Example:

    ```python
    >>> place_keywords({"name_or_path": "bert-base-uncased", "revision": "main", "fingerprint": {}})
    {'pretrained_model_name_or_path': 'bert-base-uncased', 'revision': 'main'}

    ```
    """
    keywords = {key: source[key] for key in PLACE_KEYS[1:] if source.get(key) is not None}
    return {"pretrained_model_name_or_path": source["name_or_path"], **keywords}


def check_class_references(option: str, references: dict[Any, Any] | None) -> None:
    """Raises `ValueError` where something else is named than classes in files beside the config."""
    for name, reference in (references or {}).items():
        if not isinstance(name, str) or not isinstance(reference, str) or not CLASS_REFERENCE.fullmatch(reference):
            raise ValueError(
                f"`{option}` must name operators and their 'module.Class', got {shortened(name)}: "
                f"{shortened(reference)}; remove it."
            )


def refuse_attributes(config_class: type[PreTrainedConfig], values: Keywords, where: str) -> None:
    """Raises `ValueError` where a value from a file would take the place of what the class is made of: a method, a
    property that cannot be set, or `attribute_map`, by which transformers takes one name for another."""
    options = {field.name for field in fields(config_class)} | {"model_type"}
    for key, value in values.items():
        attribute = inspect.getattr_static(config_class, str(key), None)
        can_be_set = attribute is None or getattr(attribute, "fset", None) is not None
        is_option = key in options or can_be_set or attribute == value
        if not isinstance(key, str) or key.startswith("__") or not is_option:
            raise ValueError(f"`{where}`: {shortened(key)} is not an option of a {config_class.__name__}; remove it.")


def backbone_config_from_dict(values: Keywords) -> PreTrainedConfig:
    """The config of a backbone, of a type that transformers has; whatever in it would switch on code is left out.

    Args:
        values: as in a `config.json`.

    Raises:
        ValueError: transformers has no such model type, or the values are none that it takes.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            "`backbone_config` must hold the `model_type` of a model in transformers, got "
            f"{shortened(model_type)}; pass `AutoConfig.from_pretrained(...)` or upgrade transformers."
        )
    config_class = CONFIG_MAPPING[model_type]
    refuse_attributes(config_class, values, "backbone_config")
    check_num_labels(values.get("num_labels"))
    check_sizes(values)
    try:
        return config_class.from_dict(_inner(values))
    except Exception as error:  # whatever a family's config raises at a value that it does not expect
        reason = str(error).strip().replace("\n", " ")
        raise ValueError(
            f"`backbone_config` is not a valid {config_class.__name__} ({type(error).__name__}: {reason})."
        ) from error


def check_sizes(values: Any) -> None:
    """Raises `ValueError` where a config, at any depth, asks for more labels or layers than any model has, of which
    lists would be made."""
    if isinstance(values, list | tuple):
        for value in values:
            check_sizes(value)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        if not is_integer(value):
            check_sizes(value)
        elif key in ("num_labels", "_num_labels"):
            check_num_labels(value)
        elif LAYER_COUNT.fullmatch(str(key)) and value > MAX_LAYERS:
            raise ValueError(f"`backbone_config`: `{key}` must be at most {MAX_LAYERS}, got {value}.")


def without_code_keys(values: Keywords) -> Keywords:
    """Returns the contents of a config file without keys that would switch on code, at any depth. An `auto_map` stays
    on the outside alone, where transformers asks whoever loads the file (`trust_remote_code`)."""
    dropped = [key for key, value in values.items() if _is_code_key(key, value)]
    if dropped:
        logger.warning(f"{', '.join(map(repr, dropped))} is not taken from a config file; pass it yourself.")
    return {key: _inner(value) for key, value in values.items() if key not in dropped}


def _inner(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_inner(one) for one in value]
    if not isinstance(value, dict):
        return value
    return without_code_keys({key: inner for key, inner in value.items() if key != "auto_map"})


def _is_code_key(key: Any, value: Any) -> bool:
    name = str(key).removeprefix("_").removesuffix("_internal")
    return value is not None and (name in CODE_KEYS or (name in KERNELS and "/" in str(value)))


def drop_code_keys(config: PreTrainedConfig, asked: Container[str]) -> None:
    """Takes out of a backbone's own config what would switch on code and was not asked for by who loads it."""
    for name in KERNELS:
        if name not in asked and "/" in str(getattr(config, f"_{name}")):
            logger.warning(f"{name!r} is not taken from a config file; pass it yourself.")
            setattr(config, f"_{name}", None)
    for name in ("distributed_config", "transformers_weights"):
        vars(config).pop(name, None)
