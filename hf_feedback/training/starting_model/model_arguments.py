"""Options of a model on the command line, derived from the options of its config."""

from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from ...configuration_base import OptionsConfig
from ...configuration_feedback import EDGE_OPTIONS, FeedbackConfig
from ...configuration_fnn import FNNConfig
from ...recipes import RECIPES, options_of_recipe
from ...validation import choices_of, option
from ..arguments import read_json

Options: TypeAlias = dict[str, Any]  # values by name, as a config takes them
Arguments = TypeVar("Arguments", bound="ConfigArguments")

# Types that the command line parses by itself.
PLAIN_TYPES = (str, int, float, bool, list[int])
HALTING_OPTIONS = tuple(
    name for name in FeedbackConfig.declared_options() if name.startswith("halting") or name == "min_iterations"
)
# The type has an option of its own, and the tokenizer determines the others.
FNN_OPTIONS = tuple(
    name for name in FNNConfig.declared_options() if name not in ("fnn_type", "vocab_size", "pad_token_id")
)


class ShownChoices(tuple[str, ...]):
    """The values of an option for `--help` and completion. `argparse` lets others pass: the config refuses them, and
    names the nearest."""

    def __contains__(self, value: object) -> bool:
        return True


class ConfigArguments:
    """A dataclass with options of a config, each of them `None` unless it is given; see `options_of`."""

    config_class: ClassVar[type[OptionsConfig]]

    def config_options(self) -> Options:
        """Returns the options that are given, as the config takes them.

        Raises:
            ValueError: a value cannot be parsed.
        """
        declared = self.config_class.declared_options()
        values = {name: getattr(self, name, None) for name in declared}
        return {name: parse_option(declared[name], value) for name, value in values.items() if value is not None}


def options_of(
    config_class: type[OptionsConfig], names: Iterable[str] | None = None, default: str | None = None
) -> Callable[[type[Arguments]], type[Arguments]]:
    """Adds options of a config to a dataclass of arguments, with their help and true defaults.

    Args:
        config_class: the config that declares them.
        names: which options; all by default.
        default: default that `--help` shows; that of the config by default.

    Returns:
        A class decorator, to be applied before `dataclass`.

    Example:

    ```python
    >>> @dataclass
    ... @options_of(FeedbackConfig, ["feedback_rank", "feedback_edges"])
    ... class EdgeArguments(ConfigArguments):
    ...     pass
    >>> EdgeArguments(feedback_rank="none", feedback_edges="[[3, 0]]").config_options()
    {'feedback_edges': [[3, 0]], 'feedback_rank': None}

    ```
    """

    def add_options(arguments: type[Arguments]) -> type[Arguments]:
        arguments.config_class = config_class
        declared = config_class.declared_options()
        for name in declared if names is None else names:
            option = declared[name]
            shown = default or option.default
            suffix = "" if shown is None else f" (default: {shown})"
            help_line = f"{option.metadata['help']}{suffix}".replace("%", "%%")
            arguments.__annotations__[name] = argument_type(option) | None
            choices = ShownChoices(choice for choice in choices_of(option) if choice is not None)
            metadata = {"help": help_line, **({"choices": choices} if choices else {})}
            setattr(arguments, name, field(default=None, metadata=metadata))
        return arguments

    return add_options


def argument_type(option: Field) -> type:
    """Returns the type that the command line parses an option as; `str` if `parse_option` parses its text.

    Args:
        option: an option of a config.
    """
    if needs_none(option):
        return str
    native = [member for member in _member_types(option) if member is not NoneType]
    return native[0] if len(native) == 1 and native[0] in PLAIN_TYPES else str


def needs_none(option: Field) -> bool:
    """Whether `None` is a value of an option but not its default, so that it is written as `none`."""
    return NoneType in _member_types(option) and option.default is not None


def parse_option(option: Field, value: object) -> object:
    """Parses the value of an option.

    Args:
        option: an option of a config.
        value: text from the command line; anything else is returned as it is.

    Raises:
        ValueError: the text cannot be parsed.
    """
    members = _member_types(option)
    if not isinstance(value, str) or str in members:
        return value
    if list[list[int]] in members:
        return read_json(option.name, value, "[[3, 0], [3, 1]]")
    if int in members:
        if value.lower() != "none" and not value.isdecimal():
            raise ValueError(f"`{option.name}` must be a number or 'none', got {value!r}.")
        return None if value.lower() == "none" else int(value)
    if bool in members:
        names = [name for member in members if get_origin(member) is Literal for name in get_args(member)]
        return {"true": True, "false": False, **{name: name for name in names}}.get(value.lower(), value)
    return value


def _member_types(option: Field) -> tuple[type, ...]:
    """The types of a union, or the type itself."""
    return get_args(option.type) if get_origin(option.type) in (Union, UnionType) else (option.type,)


DTYPES = ("float32", "bfloat16", "auto")
OPTIONS_WITH_NONE = frozenset(
    name
    for config_class in (FeedbackConfig, FNNConfig)
    for name, option in config_class.declared_options().items()
    if needs_none(option)
)


@dataclass
@options_of(FeedbackConfig, HALTING_OPTIONS, default="the model's own")
class HaltingArguments(ConfigArguments):
    """Halting in evaluation."""


@dataclass(kw_only=True)
@options_of(FeedbackConfig)
class ModelArguments(ConfigArguments):
    """Model. Its options are those of `FeedbackConfig`."""

    # Parameters that start at random, or at zero, need a larger learning rate than those that are fine-tuned.
    default_learning_rate: ClassVar[float] = 1e-3
    default_backbone_lr: ClassVar[float | None] = 5e-5

    model: str = field(metadata={"help": "Hub id or folder of a backbone, or of a feedback model to train further."})
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Named options, each measured on what it is for: "
            f"{'; '.join(f'{name} ({recipe.purpose})' for name, recipe in RECIPES.items())}. "
            "Other options given take precedence.",
            "choices": ShownChoices(RECIPES),
        },
    )
    dtype: str = option(
        "float32",
        "Precision of the weights; auto: as they are stored. Training in half precision loses small steps.",
        choices=dict.fromkeys(DTYPES),
    )

    def config_options(self) -> Options:
        recipe = {} if self.recipe is None else options_of_recipe(self.recipe)
        given = super().config_options()
        if given.get("feedback_edges") is not None:  # they stand in the place of all that says which edges there are
            recipe = {name: value for name, value in recipe.items() if name not in EDGE_OPTIONS}
        return {**recipe, **given}


@dataclass(kw_only=True)
@options_of(FNNConfig, FNN_OPTIONS)
class FNNArguments(ConfigArguments):
    """Network from scratch. Its options are those of `FNNConfig`."""

    model: ClassVar[str | None] = None
    default_learning_rate: ClassVar[float] = 2e-3
    default_backbone_lr: ClassVar[float | None] = None

    fnn: str = field(
        metadata={"help": "Type of network.", "choices": choices_of(FNNConfig.declared_options()["fnn_type"])}
    )
    tokenizer: str = field(metadata={"help": "Hub id or folder of the tokenizer."})
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")

    def config_options(self) -> Options:
        return {"fnn_type": self.fnn, **super().config_options()}
