"""The stored list of all options, for help and shell completion.

The commands derive their options from classes that take seconds to import, so that names and help are stored in
`listed_options.json`. `python -m hf_feedback.command_help.make_list` writes it, and a test compares it with the
commands.
"""

import json
from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

LIST_FILE = Path(__file__).with_name("listed_options.json")
MAX_CHOICES_SHOWN = 8


@dataclass(frozen=True)
class ListedOption:
    """The description of an option.

    Args:
        names: as on the command line, with dashes.
        help: its line of help with the default.
        metavar: name of its value.
        nargs: number of its values, as in `argparse`.
        choices: its allowed values; empty if they are not enumerated.
    """

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    nargs: str | int | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "ListedOption":
        """Returns an option from its entry in the file."""
        lists = {name: tuple(entry[name]) for name in ("names", "choices") if name in entry}
        return cls(**{**entry, **lists})

    def as_json(self) -> dict[str, Any]:
        """Returns the entry of the option in the file."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ()}

    def add_to(self, parser: Any) -> Action:
        """Adds the option to a parser or an argument group, for display only."""
        settings: dict[str, Any] = {"action": "store_true"}
        if self.nargs != 0:
            few = 0 < len(self.choices) <= MAX_CHOICES_SHOWN
            settings = {
                "metavar": None if few else self.metavar,
                "nargs": self.nargs,
                "choices": self.choices or None,
            }
        return parser.add_argument(*self.names, help=self.help.replace("%", "%%"), default=SUPPRESS, **settings)


OptionGroups: TypeAlias = Mapping[str, Sequence[ListedOption]]
"""The options of a command by their subject."""


@dataclass(frozen=True)
class ListedCommand:
    """The description of a command.

    Args:
        description: its purpose.
        groups: its options by subject.
    """

    description: str | None
    groups: OptionGroups

    def format_help(self, prog: str) -> str:
        """Returns the text of `--help`.

        Args:
            prog: name of the program.
        """
        parser = ArgumentParser(
            prog=prog,
            usage=f"{prog} [OPTIONS.yaml] [options]",
            description=self.description,
            formatter_class=RawDescriptionHelpFormatter,
        )
        for title, options in self.groups.items():
            group = parser.add_argument_group(title)
            for option in options:
                option.add_to(group)
        return parser.format_help()


@cache
def _read_list() -> Mapping[str, Any]:
    return json.loads(LIST_FILE.read_text(encoding="utf-8"))


def listed_commands() -> Mapping[str, ListedCommand]:
    """Returns the commands by name, such as `train` or, with an option that changes the others, `train --fnn`."""
    content = _read_list()
    options = {key: ListedOption.from_json(entry) for key, entry in content["options"].items()}
    groups = {
        key: (group["title"], [options[name] for name in group["options"]]) for key, group in content["groups"].items()
    }
    return {
        name: ListedCommand(command["description"], dict(groups[key] for key in command["groups"]))
        for name, command in content["commands"].items()
    }


def help_of(command: str, arguments: Sequence[str]) -> str | None:
    """Returns the help of a command.

    Args:
        command: name of the command.
        arguments: those after it; some determine which options the command has.

    Returns:
        `None` where another version of transformers is installed, whose options may differ.
    """
    if _read_list()["transformers"] != version("transformers"):
        return None
    commands, given = listed_commands(), f"{command} {' '.join(arguments).replace('=', ' ')} "

    def applies(name: str) -> bool:
        own, _, option = name.partition(" ")
        return own == command and (not option or f" {option} " in given)

    return commands[max(filter(applies, commands), key=len)].format_help(f"hf-feedback {command}")
