"""`hf-feedback train | evaluate | predict | report | choose-iterations | compare`."""

import sys
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

DESCRIPTION = "Fine-tune pretrained transformers with top-down feedback, evaluate them, and predict."
EPILOG = """`hf-feedback COMMAND --help` lists the options. Every option of transformers' TrainingArguments works with
`train`, which also takes a YAML or JSON file of options as its first argument. `hf-feedback train --fnn temporal
--help` lists the options of networks that are trained from scratch."""

# By their names: the sub-package that has them among its `commands`, and what they do.
COMMANDS = {
    "train": (
        "training",
        "fine-tune a backbone with feedback on labelled texts, or train a feedback network from scratch (--fnn)",
    ),
    "evaluate": ("training", "measure a trained model on labelled texts"),
    "predict": ("training", "predict the labels of texts, as JSON lines"),
    "report": ("evaluation", "show what every iteration of a trained model does to labelled examples, as an HTML page"),
    "choose-iterations": ("evaluation", "choose K and a rule of halting for a trained model under a time budget"),
    "compare": ("evaluation", "find out whether feedback helps, against matched ways to train, with intervals"),
}


class CommandParser(ArgumentParser):
    """Raises its errors."""

    def error(self, message: str) -> NoReturn:
        """Raises `ArgumentError` instead of ending the program."""
        raise ArgumentError(None, message)


def make_parser() -> ArgumentParser:
    """Returns the parser of the command's name; each command parses its own options."""
    parser = CommandParser(
        prog="hf-feedback",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
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
        command = parser.parse_args(arguments[:1]).command
    except ArgumentError:
        close = get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}."
        print(f"error: there is no command {arguments[0]}; {hint}", file=sys.stderr)
        return 2
    # What a command needs is imported when it runs.
    run_command = import_module(".training.commands.errors", __package__).run_command
    package, _ = COMMANDS[command]
    return run_command(
        import_module(f".{package}.commands.{command.replace('-', '_')}", __package__).run, arguments[1:]
    )


if __name__ == "__main__":
    sys.exit(main())
