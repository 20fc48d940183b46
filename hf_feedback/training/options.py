"""Options of the commands: from a file, from the command line, and what is said about wrong ones."""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser


class _YamlLoader(yaml.SafeLoader):
    """Numbers as in YAML 1.2, which JSON is a part of: `1e-6` is one."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def options_from_file(arguments: Sequence[str]) -> list[str]:
    """Options, with those of a leading YAML or JSON file (`{"model": …, "freeze": ["embeddings"]}`) before them.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    if not arguments or arguments[0].startswith("-") or not arguments[0].endswith((".json", ".yaml", ".yml")):
        return list(arguments)
    file = arguments[0]
    try:
        text = Path(file).read_text(encoding="utf-8")
        values, nested = yaml.safe_load(text), yaml.load(text, _YamlLoader)  # JSON is YAML too
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({error}).") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{file}: must hold option names with their values.")
    found: list[str] = []
    for key, value in values.items():
        # What has a structure goes on as JSON; the spelling of anything else is for the option to read.
        found += _as_arguments(key.replace("-", "_"), nested[key] if isinstance(value, dict | list) else value)
    return [*found, *arguments[1:]]


def _as_arguments(name: str, value: Any) -> list[str]:
    """One option of a file as on the command line."""
    if name == "feedback_rank" and value is None:
        value = "none"
    if value is None or value == []:  # as if it were not there
        return []
    if name.endswith("strategy") and value is False:  # YAML reads `no` as false
        value = "no"
    if isinstance(value, dict) or name == "feedback_edges":
        value = json.dumps(value, default=str)
    return [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]


class OptionParser(HfArgumentParser):
    """Says what is wrong with an option in one line."""

    def error(self, message: str) -> NoReturn:
        """As in argparse, without the usage of all options."""
        raise ValueError(f"{message}; `{self.prog} --help` lists the options.")

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """One instance of every dataclass.

        Raises:
            ValueError: an option is unknown, missing or has a wrong value.
        """
        *parts, rest = self.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if rest:
            self.error(self._about_unknown(next((one for one in rest if one.startswith("-")), rest[0])))
        return tuple(parts)

    def _about_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} belongs to no option"
        name = argument.split("=")[0]
        known = [option for option in self._option_string_actions if "_" not in option]
        close = get_close_matches(name.replace("_", "-"), known, 1)
        return f"there is no option {name}" + (f" (did you mean {close[0]}?)" if close else "")
