"""`hf-feedback train | evaluate | predict | report | choose-iterations | compare`."""

import os
import sys
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

DESCRIPTION = "Fine-tune pretrained transformers with top-down feedback, evaluate them, and predict."
EPILOG = """`hf-feedback COMMAND --help` lists the options of a command. Its first argument may be a YAML or JSON file
of options. Every option of transformers' TrainingArguments works with `train`. `hf-feedback train --fnn temporal
--help` lists the options of networks that are trained from scratch."""

# The sub-package that implements each command, and its description.
COMMANDS = {
    "train": (
        "training",
        "fine-tune a backbone with feedback on labelled texts, or train a feedback network from scratch (--fnn)",
    ),
    "evaluate": ("evaluation", "evaluate a trained model on labelled examples"),
    "predict": (
        "prediction",
        "predict with a trained model, for texts, words, questions, choices, images or recordings",
    ),
    "report": ("evaluation", "write an HTML page that shows the effect of every iteration on labelled examples"),
    "choose-iterations": (
        "evaluation",
        "choose K and a halting rule for a trained text classifier under a time budget",
    ),
    "compare": (
        "evaluation",
        "find out whether feedback helps, against matched alternatives, with confidence intervals",
    ),
}

PACKAGES = ("hf-feedback", "transformers", "torch")


class CommandParser(ArgumentParser):
    """A parser that raises its errors."""

    def error(self, message: str) -> NoReturn:
        """Raises `ArgumentError` instead of ending the program."""
        raise ArgumentError(None, message)


def make_parser() -> ArgumentParser:
    """Returns the parser of the command name; each command parses its own options."""
    parser = CommandParser(
        prog="hf-feedback",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the installed versions")
    parser.add_argument(
        "--print-completion",
        metavar="SHELL",
        help="print a script for shell completion: bash, zsh, tcsh, or another that the installed shtab supports",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=description, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `hf-feedback` and returns the exit status.

    Args:
        arguments: those of the command line by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(arguments[: 2 if arguments[0] == "--print-completion" else 1])
    except ArgumentError as error:
        if arguments[0].startswith("-"):
            print(f"error: {error.message}; `hf-feedback --help` lists the options.", file=sys.stderr)
            return 2
        close = get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}."
        print(f"error: there is no command {arguments[0]}; {hint}", file=sys.stderr)
        return 2
    if options.version:
        print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
        return 0
    if options.print_completion is not None:
        return print_completion(options.print_completion)
    return run(options.command, arguments[1:])


def print_completion(shell: str) -> int:
    """Prints a script for shell completion and returns the exit status."""
    try:
        completion = import_module(".command_help.completion", __package__)
        print(completion.completion_script(shell, {name: what for name, (_, what) in COMMANDS.items()}))
    except ImportError:
        print("error: completion needs shtab: pip install -e '.[completion]'", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(command: str, arguments: Sequence[str]) -> int:
    """Runs a command and returns the exit status.

    Args:
        command: its name.
        arguments: those after its name.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if command != "train" and processes != "1":
        print(
            f"error: `hf-feedback {command}` runs in one process, got WORLD_SIZE={processes}; start it without "
            "`torchrun` or `accelerate launch`.",
            file=sys.stderr,
        )
        return 2
    # The modules of a command are imported only when it runs; its help does not need them.
    if {"-h", "--help"} & {*arguments}:
        text = import_module(".command_help.listed_options", __package__).help_of(command, arguments)
        if text is not None:
            print(text, end="")
            return 0
    run_command = import_module(".training.commands.errors", __package__).run_command
    package, _ = COMMANDS[command]
    return run_command(import_module(f".{package}.commands.{command.replace('-', '_')}", __package__).run, arguments)


if __name__ == "__main__":
    sys.exit(main())
