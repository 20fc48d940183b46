"""Shell completion of commands and options."""

from argparse import ArgumentParser
from collections.abc import Mapping

import shtab

from .listed_options import ListedOption, listed_commands

# Endings of the names of options that take a file or a folder.
PATH_ENDINGS = ("-file", "-dir", "--file", "--model", "--output", "--tokenizer", "--join", "--card", "--also-test")


def completion_script(shell: str, commands: Mapping[str, str]) -> str:
    """Returns a script for a shell, which then completes commands and options.

    Args:
        shell: name of the shell.
        commands: descriptions of the commands, by name.

    Raises:
        ValueError: shtab does not support the shell.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"`print_completion` must be one of {', '.join(shtab.SUPPORTED_SHELLS)}, got {shell!r}.")
    parser = ArgumentParser("hf-feedback")
    parser.add_argument("--version", action="store_true", help="Show the version.")
    subparsers = parser.add_subparsers()
    for name, description in commands.items():
        subparser = subparsers.add_parser(name, help=description)
        for option in _options_of(name):
            action = option.add_to(subparser)
            if not option.choices and option.names[0].endswith(PATH_ENDINGS):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _options_of(command: str) -> list[ListedOption]:
    """All options of a command, in all its variants."""
    variants = [listed for name, listed in listed_commands().items() if name.split()[0] == command]
    options = [option for listed in variants for group in listed.groups.values() for option in group]
    return list({option.names[0]: option for option in options}.values())
