"""`hf-feedback evaluate`, and the options that it shares with `predict`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...validation import option
from ..inference import TextInference
from ..model_arguments import HaltingArguments
from ..tasks.text_classification import LabelArguments, TextArguments
from .options import OptionParser
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


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback evaluate` and returns the exit status.

    Args:
        arguments: those after the name of the command.
    """
    parser = OptionParser((InferenceArguments, HaltingArguments, LabelArguments), prog="hf-feedback evaluate")
    args, halting, label_args = parser.parse(arguments)
    print(format_metrics(args.make_inference(halting, label_args).evaluate()))
    return 0
