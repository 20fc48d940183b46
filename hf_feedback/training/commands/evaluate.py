"""`hf-feedback evaluate`, and the options that it shares with `predict`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...validation import option
from ..inference import TextInference
from ..model_arguments import HaltingArguments
from ..tasks.text_classification import LabelArguments, TextArguments
from .options import OptionParser, options_from_file
from .train import format_metrics


@dataclass
class InferenceArguments:
    """Which model answers which texts."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model."})
    file: str = field(metadata={"help": "CSV, TSV, JSON-lines or parquet file of texts."})
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    batch_size: int = option(32, "Texts of a batch.")
    num_iterations: int | None = option(None, "K (default: the model's own).")
    bf16: bool = option(False, "Compute in bfloat16.")

    def make_inference(self, halting: HaltingArguments, text_args: TextArguments) -> TextInference:
        """Returns the inference that these options and those of halting and texts describe."""
        return TextInference(args=text_args, halting=halting.config_options(), **vars(self))


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    parts = (InferenceArguments, LabelArguments, HaltingArguments)
    return OptionParser(parts, "hf-feedback evaluate", "Measure a trained model on labelled texts.")


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback evaluate` and returns the exit status.

    Args:
        arguments: those after the name of the command.
    """
    args, label_args, halting = make_parser().parse(options_from_file(arguments))
    print(format_metrics(args.make_inference(halting, label_args).evaluate()))
    return 0
