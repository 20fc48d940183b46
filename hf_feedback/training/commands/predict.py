"""`hf-feedback predict`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ...validation import option
from ..data.text_files import TextFormat
from ..model_arguments import HaltingArguments
from ..prediction.predicting import Prediction, PredictionRows
from ..prediction.predictions_file import STANDARD_OUTPUT
from ..prediction.trained_model import TrainedModel
from .options import OptionParser, options_from_file

DESCRIPTION = """Predict with a trained model of any task, which is known from the model: texts, pairs, words to tag,
questions, choices, texts with masks, prompts, images or recordings. Rows are read, answered and written in chunks,
however many there are; the same command goes on with a file that was cut off."""


@dataclass
class TrainedModelArguments:
    """Which trained model answers, and how."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model."})
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    batch_size: int = option(32, "Examples of a batch.")
    num_iterations: int | None = option(None, "K (default: the model's own).")
    bf16: bool = option(False, "Compute in bfloat16.")

    def trained(self, halting: HaltingArguments) -> TrainedModel:
        """Returns the model that these options and those of halting describe."""
        options = halting.config_options()
        return TrainedModel(self.model, self.revision, self.num_iterations, options, self.batch_size, self.bf16)


@dataclass
class RowArguments:
    """What the model answers to."""

    file: str | None = option(
        None,
        "Text, CSV, TSV, JSON-lines or parquet file, also with .gz; a folder of images or recordings; - for standard "
        "input, of one text or JSON object a line.",
    )
    text: list[str] | None = option(None, "Texts, instead of a file.")
    text_pair: list[str] | None = option(None, "Second texts of pairs, or the texts that hold the answers.")
    delimiter: str | None = option(
        None, "Separator of CSV and TSV files, \\t for a tab (default: that of their header)."
    )
    encoding: str = option("utf-8", "Encoding of CSV, TSV, JSON and text files.")

    def rows(self) -> PredictionRows:
        """Returns the rows that these options describe."""
        return PredictionRows(self.file, self.text, self.text_pair, TextFormat(self.delimiter, self.encoding))


@dataclass
class OutputArguments:
    """Where the predictions are written."""

    output: str = option("predictions.jsonl", "File to write: .csv, .tsv or JSON lines; - for standard output.")
    force: bool = option(False, "Write over a file that exists, and begin one that was cut off anew.")


@dataclass
class ExampleArguments:
    """The columns, and how examples are read; which options there are depends on the task."""

    text_column: str | None = option(None, "Column of the texts (default: that of training, or by its name).")
    text_pair_column: str | None = option(None, "Column of second texts, for pairs.")
    tokens_column: str | None = option(None, "Column of the words to tag (default: tokens, or the texts, split).")
    image_column: str | None = option(None, "Column of the images (default: image).")
    audio_column: str | None = option(None, "Column of the recordings (default: audio).")
    max_length: int | None = option(None, "Cut texts at so many tokens (default: as many as in training).")
    stride: int | None = option(None, "Tokens that windows of a text share (default: a third of a window).")
    max_answer_length: int | None = option(None, "Tokens of an answer at most (default: 30).")
    may_be_empty: bool | None = option(None, "Whether a question may have no answer (default: false).")
    max_new_tokens: int | None = option(None, "Tokens of a continuation at most (default: 40).")
    max_seconds: float | None = option(None, "Cut recordings at so many seconds (default: 20).")


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    parts = (TrainedModelArguments, RowArguments, OutputArguments, ExampleArguments, HaltingArguments)
    return OptionParser(parts, "hf-feedback predict", DESCRIPTION)


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback predict` and returns the exit status.

    Args:
        arguments: those after the name of the command.
    """
    model, rows, output, examples, halting = make_parser().parse(options_from_file(arguments))
    options = {name: value for name, value in asdict(examples).items() if value is not None}
    count = Prediction(model.trained(halting), rows.rows(), options).write(output.output, output.force)
    if output.output != STANDARD_OUTPUT:
        print(f"{count} predictions are in {output.output}")
    return 0
