"""Base of both configurations: declared options, labels, and loading from files."""

from dataclasses import Field, fields
from inspect import getattr_static
from typing import Any

from transformers import PreTrainedConfig

from .label_options import LABEL_OPTIONS, numbers_by_name, replace_labels
from .stored_config import without_code_keys
from .validation import Keywords, check_choice, check_types, choices_of, describe_type
from .version import HF_FEEDBACK_VERSION

PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


class OptionsConfig(PreTrainedConfig):
    """A configuration whose options are fields with a type, a default and a line of help, see `option`."""

    hf_feedback_version: str | None = None

    @classmethod
    def declared_options(cls) -> dict[str, Field]:
        """The fields of all options that are declared with a line of help, by name."""
        return {one.name: one for one in fields(cls) if "help" in one.metadata}

    @classmethod
    def option_names(cls) -> set[str]:
        """The names of all options that are ours or about labels."""
        return {*cls.declared_options(), *LABEL_OPTIONS} - {"num_labels"}

    @classmethod
    def accepted_keywords(cls) -> set[str]:
        """`option_names`, and `num_labels`, which stands for labels without names."""
        return cls.option_names() | {"num_labels"}

    def options(self) -> Keywords:
        """The values of all options in `option_names`."""
        return {name: getattr(self, name) for name in sorted(self.option_names())}

    @classmethod
    def from_dict(cls, config_dict: Keywords, **kwargs: Any) -> Any:
        """As in transformers; nothing in a file code_keys on code, and given options replace those of the file before
        anything is checked."""
        config_dict = replace_labels(without_code_keys(config_dict), kwargs)
        given = {name for name in kwargs if name in cls.option_names() or _is_read_only(cls, name)}
        options = {name: kwargs.pop(name) for name in given}
        return super().from_dict({**config_dict, **options}, **kwargs)

    def to_dict(self) -> Keywords:
        """As in transformers, with the version of hf_feedback that writes it."""
        return {**super().to_dict(), "hf_feedback_version": HF_FEEDBACK_VERSION}

    def check_options(self) -> None:
        """Raises `ValueError` naming the option, its value, what is allowed and what to do."""
        check_types(self)
        check_choice("problem_type", self.problem_type, PROBLEM_TYPES)

    def set_checked(self, **options: Any) -> None:
        """Sets options; all stay as they were if a value is not allowed.

        Raises:
            ValueError: as `check_options`.
        """
        before = {name: getattr(self, name) for name in options}
        try:
            for name, value in options.items():
                setattr(self, name, value)
            self.check_options()
        except ValueError:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        if key == "id2label" and getattr(self, "_post_init_done", False):  # other names, set on a built model's config
            self.label2id = numbers_by_name(value)


def _is_read_only(config_class: type[OptionsConfig], name: str) -> bool:
    """Whether it is a property that cannot be set, which the check of unknown keys has a message for."""
    attribute = getattr_static(config_class, name, None)
    return isinstance(attribute, property) and attribute.fset is None


def document_options(config_class: type[OptionsConfig]) -> type[OptionsConfig]:
    """Adds the declared options to the docstring of a config class."""
    lines = []
    for name, declared in config_class.declared_options().items():
        allowed = ", ".join(map(repr, choices_of(declared))) or describe_type(declared.type)
        lines.append(f"    {name} ({allowed}; default {declared.default!r}): {declared.metadata['help']}")
    before, marker, after = (config_class.__doc__ or "").partition("    Raises:\n")
    config_class.__doc__ = f"{before}    Args:\n" + "\n".join(f"    {line}" for line in lines) + f"\n\n{marker}{after}"
    return config_class
