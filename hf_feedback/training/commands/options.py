"""Parsing of options from a file and the command line, with messages about wrong ones."""

import json
import re
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Self, cast

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType, string_to_bool

from ...command_help.listed_options import ListedCommand, ListedOption
from ...command_help.subjects import OTHERS, subjects_of
from ..starting_model.model_arguments import OPTIONS_WITH_NONE

OPTION_FILES = (".json", ".yaml", ".yml")
# Usual names of options in other training scripts, in the order in which they are looked for here.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "--backbone": ("--model",),
    "--base-model": ("--model",),
    "--model-name": ("--model",),
    "--model-name-or-path": ("--model",),
    "--data-file": ("--train-file", "--file"),
    "--train-data": ("--train-file",),
    "--dev-file": ("--validation-file",),
    "--eval-file": ("--validation-file",),
    "--test-data": ("--test-file",),
    "--lr": ("--learning-rate",),
    "--epochs": ("--num-train-epochs",),
    "--num-epochs": ("--num-train-epochs",),
    "--batch-size": ("--per-device-train-batch-size",),
    "--train-batch-size": ("--per-device-train-batch-size",),
    "--eval-batch-size": ("--per-device-eval-batch-size", "--batch-size"),
    "--max-seq-length": ("--max-length",),
    "--patience": ("--early-stopping-patience",),
    "--rank": ("--feedback-rank",),
    "--wandb": ("--report-to wandb",),
}
# What is done without an option, by its usual name.
WITHOUT_OPTION = {
    "--num-labels": "the labels are found in the data",
    "--dataset-name": "only `hf-feedback train` and `hf-feedback compare` read data sets of the Hub; give files",
}
SIMILARITY = 0.75  # of an option that is proposed for an unknown one

METAVARS: dict[object, str] = {int: "INTEGER", float: "NUMBER", string_to_bool: "true|false"}


class SpelledFloat(float):
    """A number that keeps its spelling, since its option may be a text, such as a revision."""

    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


class OptionLoader(yaml.SafeLoader):
    """Loads YAML with the numbers of YAML 1.2 and JSON, such as `1e-6`; a name may not stand twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in PyYAML, which keeps the last of several values for one name.

        Raises:
            yaml.YAMLError: there are several.
        """
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"`{name}` is given twice, in lines {lines[name]} and {line}; keep one")
            lines[name] = line
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


OptionLoader.add_implicit_resolver(
    "!exponent", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
OptionLoader.add_constructor("!exponent", lambda loader, node: SpelledFloat(node.value))


def options_from_file(arguments: Sequence[str]) -> list[str]:
    """Replaces a leading YAML or JSON file by the options in it.

    Nested values become JSON; null values are left out.

    Args:
        arguments: as on the command line.

    Returns:
        The options of the file, and all other arguments after them.

    Raises:
        ValueError: the file cannot be read, does not hold options, or holds one twice.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "run.yaml"
    >>> _ = file.write_text("freeze: [embeddings]\\nlr_scheduler_kwargs: {min_lr: 1e-6}")
    >>> options_from_file([str(file), "--seed", "1"])
    ['--freeze', 'embeddings', '--lr_scheduler_kwargs={"min_lr": 1e-06}', '--seed', '1']

    ```
    """
    if not arguments or arguments[0].startswith("-") or not arguments[0].endswith(OPTION_FILES):
        return list(arguments)
    file = arguments[0]
    try:
        values = yaml.load(Path(file).read_text(encoding="utf-8"), OptionLoader)  # JSON is YAML too
    except FileNotFoundError as error:
        raise ValueError(f"{file}: there is no such file of options.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({error}).") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{file}: must map option names to values.")
    names = [key.replace("-", "_") for key in values]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{file}: `{twice[0]}` is given twice, once with dashes; keep one.")
    options = [_as_arguments(name, value) for name, value in zip(names, values.values(), strict=True)]
    return [*(argument for option in options for argument in option), *arguments[1:]]


def options_with_model(arguments: Sequence[str]) -> list[str]:
    """Returns the options of a command whose first argument may be the trained model, or a file of options.

    Args:
        arguments: as on the command line.

    Raises:
        ValueError: as in `options_from_file`.

    Example:

    ```python
    >>> options_with_model(["runs/support", "--file", "test.csv"])
    ['--model', 'runs/support', '--file', 'test.csv']

    ```
    """
    options = options_from_file(arguments)
    return ["--model", *options] if options and not options[0].startswith("-") else options


def _as_arguments(name: str, value: object) -> list[str]:
    """Converts one option of a file to arguments of the command line."""
    if value is None and name in OPTIONS_WITH_NONE:
        value = "none"
    if value is None or value == []:  # as if left out
        return []
    if name.endswith("strategy") and value is False:  # YAML reads `no` as false
        value = "no"
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return [f"--{name}", *map(str, value)]
    text = json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
    return [f"--{name}={text}"]


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a description, and shows defaults other than `None`."""

    def _get_help_string(self, action: Action) -> str | None:
        if action.default is None or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class OptionParser(HfArgumentParser):
    """Parses options into dataclasses; errors are one line that names the option.

    Args:
        dataclass_types: dataclasses of the options.
        prog: name of the program.
        description: description of the program.

    Example:

    ```python
    >>> from hf_feedback.training.data.splits import FileArguments
    >>> OptionParser([FileArguments], prog="train").parse(["--train-file", "t.csv", "--test-fill", "t.csv"])
    Traceback (most recent call last):
    ValueError: there is no option --test-fill (did you mean --test-file?); `train --help` lists the options.

    ```
    """

    def __init__(
        self, dataclass_types: Iterable[type], prog: str | None = None, description: str | None = None
    ) -> None:
        types = cast(list[DataClassType], list(dataclass_types))
        super().__init__(types, prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def format_help(self) -> str:
        """Returns the text of `--help`, with the options by subject."""
        return self.listed().format_help(self.prog)

    def describe_default(self, name: str, words: str) -> None:
        """Describes the default of an option in words, where it depends on the machine."""
        for action in self._actions:
            if action.dest == name and "(default: " not in (action.help or ""):
                action.help = f"{action.help} (default: {words})"

    def listed(self) -> ListedCommand:
        """Returns the options by subject, for the stored list."""
        groups: dict[str, list[ListedOption]] = {}
        for options in self.dataclass_types:
            for name, subject in subjects_of(options).items():
                group = groups.setdefault(subject, [])
                group += [self._listed_option(action) for action in self._actions if action.dest == name]
        last = groups.pop(OTHERS, None)
        return ListedCommand(self.description, groups if last is None else {**groups, OTHERS: last})

    def _listed_option(self, action: Action) -> ListedOption:
        names = tuple(name for name in action.option_strings if "_" not in name)
        if action.nargs == 0:
            return ListedOption(names, f"The same as --{action.dest.replace('_', '-')} false.", nargs=0)
        formatter = HelpFormatter(self.prog)
        return ListedOption(
            names=names,
            help=" ".join(formatter._expand_help(action).split()) if action.help else "",
            metavar=METAVARS.get(action.type, "TEXT"),
            nargs=action.nargs,
            choices=tuple(map(str, action.choices or ())),
        )

    def error(self, message: str) -> NoReturn:
        """Raises `ValueError` instead of printing the usage of all options."""
        raise ValueError(f"{message}{self._hint(message)}; `{self.prog} --help` lists the options.")

    def _hint(self, message: str) -> str:
        """What argparse does not say of a missing or wrong value."""
        name = re.match(r"argument (--[\w-]+)", message)
        action = self._option_string_actions.get(name[1]) if name else None
        if action is None:
            return ""
        if action.dest == "resume" and message.endswith("expected one argument"):
            return ": auto, or the folder of a checkpoint"
        if action.nargs in ("+", "*") and re.search(r"invalid (int|float) value: '.*,", message):
            return " (separate several values by spaces)"
        return ""

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Returns one instance of every dataclass.

        Args:
            arguments: as on the command line.

        Raises:
            ValueError: an option is unknown, missing or has a wrong value.
        """
        known = self._option_string_actions
        for argument in arguments:  # before argparse says what is missing, which may be the option misspelt
            if argument.startswith("--") and argument.split("=")[0] not in known:
                self.error(self._describe_unknown(argument))
        *parts, rest = self.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if rest:
            self.error(self._describe_unknown(rest[0]))
        return tuple(parts)

    def _describe_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} does not belong to an option"
        name = argument.split("=")[0]
        if name.startswith("--config"):
            return f"there is no option {name}: a file of options is the first argument after the command"
        name, plain = f"there is no option {name}", name.replace("_", "-")
        if plain in WITHOUT_OPTION:
            return f"{name}: {WITHOUT_OPTION[plain]}"
        known = [option for option in self._option_string_actions if "_" not in option]
        other = [option for option in OTHER_NAMES.get(plain, ()) if option.split()[0] in known]
        close = other or get_close_matches(plain, known, 1, SIMILARITY)
        return name + (f" (did you mean {close[0]}?)" if close else "")
