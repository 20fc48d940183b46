"""`hf-feedback predict`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...training.commands.options import OptionParser, options_with_model
from ...training.data.text_files import TextFormat, TextFormatArguments
from ...training.starting_model.model_arguments import HaltingArguments
from ...validation import option
from ..example_arguments import ColumnArguments, PreprocessingArguments
from ..prediction_rows import PredictionRows
from ..prediction_run import PredictionRun
from ..predictions_file import STANDARD_OUTPUT
from ..trained_model import TrainedModelArguments

DESCRIPTION = """Predict with a trained model; the model determines the task. Inputs are texts, pairs, words to tag,
questions, choices, texts with masks, prompts, images or recordings. Rows are read, predicted and written in chunks, so
that files may be larger than memory; the same command resumes an incomplete output file."""


@dataclass
class RowArguments:
    """Input."""

    file: str | None = option(
        None,
        "Text, CSV, TSV, JSON-lines or parquet file, also with .gz; a folder of images or recordings; - for standard "
        "input, one text or JSON object per line.",
    )
    text: list[str] | None = option(None, "Texts, instead of a file.")
    text_pair: list[str] | None = option(None, "Second texts of pairs; in question answering, the contexts.")

    def rows(self, text_format: TextFormat) -> PredictionRows:
        """Returns the rows that these options and the format of files describe."""
        return PredictionRows(self.file, self.text, self.text_pair, text_format)


@dataclass
class OutputArguments:
    """Output."""

    output: str = option("predictions.jsonl", "File to write: .csv, .tsv or JSON lines; - for standard output.")
    force: bool = option(False, "Overwrite an existing file, and start an incomplete one again from its first row.")


@dataclass(kw_only=True)
class ExampleArguments(ColumnArguments, PreprocessingArguments):
    """Columns and preprocessing (each task reads some of these)."""

    tokens_column: str | None = option(
        None, "Column of the words to tag (default: tokens, or else the texts, split into words)."
    )
    max_new_tokens: int | None = option(None, "Maximum number of tokens of a continuation (default: 40).")


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    parts = (
        TrainedModelArguments,
        RowArguments,
        TextFormatArguments,
        OutputArguments,
        ExampleArguments,
        HaltingArguments,
    )
    return OptionParser(parts, "hf-feedback predict", DESCRIPTION)


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback predict` and returns the exit status.

    Args:
        arguments: those after the name of the command; the first may be the model, or a file of options.
    """
    model, rows, file_format, output, examples, halting = make_parser().parse(options_with_model(arguments))
    options = {name: value for name, value in asdict(examples).items() if value is not None}
    count = PredictionRun(model.trained(halting), rows.rows(file_format.text_format), options).write(
        output.output, output.force
    )
    if output.output != STANDARD_OUTPUT:
        print(f"{count} predictions are in {output.output}")
    return 0
