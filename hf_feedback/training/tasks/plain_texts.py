"""Base of language-modelling tasks: texts of one column, and the perplexity of their tokens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.nn import functional as F
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ...validation import option
from ..data.columns import Columns, find_columns
from ..data.files import read_file
from ..data.labels import IGNORED, LabelSet
from ..data.splits import FileArguments, Row, Split, read_splits
from ..data.streams import stream_rows, text_rows
from ..data.text_files import TextFormat, read_text
from ..data.texts import texts_of
from ..metrics import MetricInfo
from .task import EncodedSplit, Model, TextTask

Arguments = TypeVar("Arguments", bound="PlainTextArguments", covariant=True)


@dataclass
class PlainTextArguments(FileArguments):
    """Text column and streaming."""

    text_column: str | None = option(None, "Column of the texts (default: a usual name such as text).")
    streaming: bool = option(
        False, "Read the training file during training, in its order, instead of loading it first; needs --max-steps."
    )


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every target token, 0 elsewhere.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, −100 for tokens that are not targets.

    Returns:
        `(B, T)`.
    """
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def perplexity_of_losses(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the mean loss over all target tokens, and its exponential.

    Every token has the same weight, unlike in the loss of the Trainer, which weights batches by their number of texts.

    Args:
        prediction: `token_losses` in place of logits, and labels.
    """
    loss = float(np.asarray(prediction.predictions)[np.asarray(prediction.label_ids) != IGNORED].mean())
    return {"loss": loss, "perplexity": float(np.exp(loss))}


def read_first_row(file: str, text_format: TextFormat) -> Dataset:
    """Reads only the first row of a file, to find its columns.

    Args:
        file: its path.
        text_format: its format.

    Raises:
        ValueError: there is none, or the file cannot be read.
    """
    row = next(stream_rows(file, text_format), None)
    if row is None:
        raise ValueError(f"{file}: the file has no rows.")
    return Dataset.from_list([row])


def stream_texts(file: str, column: str, text_format: TextFormat) -> Iterator[str]:
    """Streams the texts of a file; a missing text is empty.

    Args:
        file: its path.
        column: column of the texts.
        text_format: format of the file.
    """
    for number, row in enumerate(stream_rows(file, text_format)):
        yield from (text or "" for text in texts_of([row.get(column)], column, file, [number]))


class PlainTextTask(TextTask[Arguments]):
    """A task that reads the texts of one column, or of a .txt file with one text per line."""

    metrics = {"perplexity": MetricInfo(greater_is_better=False)}  # noqa: RUF012
    cuts_texts = False  # longer texts become several pieces, or several blocks

    columns: Columns

    def read(self, file: str) -> Dataset:
        """Reads a file as `read_file`, or a .txt file with one text per line."""
        if Path(file).suffix.lower() != ".txt" or not Path(file).is_file():
            return read_file(file, self.data_args.text_format)
        lines = StringIO(read_text(Path(file), self.data_args.text_format), newline=None)  # as those of an open file
        texts = [row["text"] for row in text_rows(lines)]
        if not texts:
            raise ValueError(f"{file}: the file has no texts.")
        return Dataset.from_dict({"text": texts})

    def read_splits(self) -> dict[str, Split]:
        """Reads all splits; of a streamed training file only the first row."""
        args = self.data_args
        if not args.streaming:
            return super().read_splits()
        drawn = [name for name in ("validation_split", "max_train_samples") if getattr(args, name) is not None]
        if drawn:
            raise ValueError(
                f"`{drawn[0]}` and `streaming` exclude each other: of a file that is read while training, rows cannot "
                "be drawn before; give `--validation-file` or `--max-steps`."
            )
        files = replace(args, validation_file=None, test_file=None)
        train = read_splits(files, partial(read_first_row, text_format=args.text_format))
        others = {"validation": args.validation_file, "test": args.test_file}
        return train | {name: Split(self.read(file), file) for name, file in others.items() if file is not None}

    def find_labels(self, train: Split) -> LabelSet | None:
        names = train.data.column_names
        columns = find_columns(names, train.source, self.data_args.text_column, needs_label=False)
        self.columns = Columns(columns.text, None, None)
        return None

    def load_trained(self, split: Split) -> None:
        self.processor, self.model = super().load()
        requested, names = self.data_args.text_column, split.data.column_names
        trained = Columns.of_model(self.model.config)
        text = find_columns(names, split.source, requested, needs_label=False, trained=trained).text
        self.columns = Columns(text, None, None)

    def stream(self, split: Split, read: Callable[..., Iterator[Row]], **options: object) -> EncodedSplit:
        """Returns the training file as a stream of rows.

        Args:
            split: its first row.
            read: path, column and format of the file → rows.
            **options: other settings that the rows depend on.
        """
        text_format, column = self.data_args.text_format, self.columns.text
        file = {"file": split.source, "column": column, "text_format": text_format}
        reading = {"text_column": column, "max_length": self.max_length, **asdict(text_format), **options}
        data = IterableDataset.from_generator(read, gen_kwargs=file)
        return EncodedSplit(data, split.source, None, reading=reading)

    def describe_data(self) -> str:
        return str(self.columns)

    def describe_splits(self, splits: Mapping[str, Split]) -> list[str]:
        streamed = ("train",) if self.data_args.streaming else ()
        return super().describe_splits({name: split for name, split in splits.items() if name not in streamed})

    def load(self) -> tuple[PreTrainedTokenizerBase, Model]:
        tokenizer, model = super().load()
        self.columns.store_in(model.config)
        return tokenizer, model
