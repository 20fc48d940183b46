"""What the tasks of language models share: texts of one column, and the perplexity of their tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ...validation import option
from ..data.columns import Columns, find_columns
from ..data.files import read_file
from ..data.labels import LabelSet
from ..data.splits import FileArguments, Split
from ..data.text_files import read_text
from ..metrics import MetricInfo
from .task import IGNORED, Model, TextTask

Arguments = TypeVar("Arguments", bound="PlainTextArguments", covariant=True)


@dataclass
class PlainTextArguments(FileArguments):
    """The files of texts, and their column."""

    text_column: str | None = option(None, "Column of the texts (default: by its name).")


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every token that is to be predicted, 0 elsewhere.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, −100 for tokens that are not to be predicted.

    Returns:
        `(B, T)`.
    """
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def perplexity_of_losses(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the mean loss over all tokens that were to be predicted and its exponential.

    Every token has the same weight; the Trainer's own loss would weigh batches by their number of texts.

    Args:
        prediction: `token_losses` in place of logits, and labels.
    """
    loss = float(np.asarray(prediction.predictions)[np.asarray(prediction.label_ids) != IGNORED].mean())
    return {"loss": loss, "perplexity": float(np.exp(loss))}


class PlainTextTask(TextTask[Arguments]):
    """A task that reads the texts of one column, or of a .txt file with one text a line."""

    metrics = {"perplexity": MetricInfo(greater_is_better=False)}  # noqa: RUF012
    cuts_texts = False  # longer texts become several pieces, or several blocks

    columns: Columns

    def read(self, file: str) -> Dataset:
        """Reads a file as `read_file` does, or a .txt file of one text a line."""
        if Path(file).suffix.lower() != ".txt" or not Path(file).is_file():
            return read_file(file, self.data_args.text_format)
        lines = [line for line in read_text(Path(file), self.data_args.text_format).splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{file}: the file has no texts.")
        return Dataset.from_dict({"text": lines})

    def find_labels(self, train: Split) -> LabelSet | None:
        names = train.data.column_names
        columns = find_columns(names, train.source, self.data_args.text_column, needs_label=False)
        self.columns = Columns(columns.text, None, None)
        return None

    def describe_data(self) -> str:
        return str(self.columns)

    def load(self) -> tuple[PreTrainedTokenizerBase, Model]:
        tokenizer, model = super().load()
        self.columns.store_in(model.config)
        return tokenizer, model
