"""`hf-feedback predict`."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...validation import option
from ..model_arguments import HaltingArguments
from ..tasks.text_classification import TextArguments
from .evaluate import InferenceArguments
from .options import OptionParser, options_from_file


@dataclass
class OutputArguments:
    """Where the predictions are written."""

    output: str = option("predictions.jsonl", "JSON-lines file to write.")
    force: bool = option(False, "Write over a file that exists.")


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    parts = (InferenceArguments, OutputArguments, TextArguments, HaltingArguments)
    return OptionParser(parts, "hf-feedback predict", "Predict the labels of texts.")


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback predict` and returns the exit status.

    Args:
        arguments: those after the name of the command.
    """
    args, output, text_args, halting = make_parser().parse(options_from_file(arguments))
    count = args.make_inference(halting, text_args).predict(output.output, output.force)
    print(f"{count} predictions are in {output.output}")
    return 0
