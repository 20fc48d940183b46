"""Writes the stored list of all options: `python -m hf_feedback.command_help.make_list`."""

import json
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeAlias

from ..cli import COMMANDS
from ..training.commands.options import OptionParser
from ..training.tasks import TASK_NAMES
from .listed_options import LIST_FILE

Entry: TypeAlias = dict[str, Any]

# Options that change which other options a command has.
VARIANTS = {
    "train": ("--fnn",),
    "compare": (*(f"--task {name}" for name in list(TASK_NAMES)[1:]), "--join"),
}


def option_parsers() -> dict[str, OptionParser]:
    """Returns the parser of every command and variant by name."""
    parsers = {}
    for command, (package, _) in COMMANDS.items():
        module = import_module(f"..{package}.commands.{command.replace('-', '_')}", __package__)
        for variant in ("", *VARIANTS.get(command, ())):
            parsers[f"{command} {variant}".strip()] = module.make_parser(variant.split())
    return parsers


def make_list() -> str:
    """Returns the content of the file, with options and groups that commands share stored once."""
    options: dict[str, Entry] = {}
    groups: dict[str, Entry] = {}
    commands: dict[str, Entry] = {}
    for name, parser in option_parsers().items():
        listed = parser.listed()
        keys = []
        for title, group in listed.groups.items():
            members = [_key_of(option.names[0], option.as_json(), options) for option in group]
            keys.append(_key_of(title, {"title": title, "options": members}, groups))
        commands[name] = {"description": listed.description, "groups": keys}
    tables = {"options": options, "groups": groups, "commands": commands}
    parts = [f'"transformers": "{version("transformers")}"']
    parts += [f'"{name}": {{\n{_one_a_line(table)}\n}}' for name, table in tables.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _key_of(name: str, entry: Entry, table: dict[str, Entry]) -> str:
    """Adds an entry to a table unless it is there, and returns its key: its name, numbered where names repeat."""
    number, key = 1, name
    while table.setdefault(key, entry) != entry:
        number += 1
        key = f"{name} ({number})"
    return key


def _one_a_line(table: dict[str, Entry]) -> str:
    return ",\n".join(f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in table.items())


if __name__ == "__main__":
    LIST_FILE.write_text(make_list(), encoding="utf-8")
