"""Cells of a column as texts, and texts as token ids."""

import math
from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .columns import Columns
from .files import format_rows
from .labels import LabelSet, label_numbers
from .splits import Batch, Split

logger = logging.get_logger(__name__)


def texts_of(cells: Sequence[object], column: str, source: str, first_row: int = 0) -> list[str | None]:
    """Returns the texts of cells: numbers, dates and truth values as JSON spells them, `None` for a gap.

    Args:
        cells: cells of one column.
        column: name of the column, for messages.
        source: data set of the column, for messages.
        first_row: row of the first cell, counted from 0.

    Raises:
        ValueError: A cell holds something else; the message names its row.

    Example:

    ```python
    >>> texts_of(["late", 7, True, None], "text", "train.csv")
    ['late', '7', 'true', None]

    ```
    """

    def text_of(row: int, cell: object) -> str | None:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return None
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, str | int | float | Decimal | date):
            return str(cell)
        raise ValueError(
            f"{source}: {format_rows([row])}: column {column!r} must hold a text, got {type(cell).__name__} "
            f"{cell!r:.80}; name another column or make texts of it."
        )

    return [text_of(row, cell) for row, cell in enumerate(cells, first_row)]


def encode_texts(
    split: Split,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: LabelSet | None = None,
) -> Dataset:
    """Turns texts (and labels) into token ids (and numbers).

    Texts that are cut and texts that are empty are counted in a warning. An empty text remains as its special tokens.

    Args:
        split: the rows.
        columns: columns of the texts and labels.
        tokenizer: tokenizer of the model.
        max_length: texts are cut at this number of tokens.
        labels: numbers of the labels; left out, the rows get no labels.

    Returns:
        The encoded rows.

    Raises:
        ValueError: A cell is no text, or a label is missing or unknown.
    """
    text_columns = [column for column in (columns.text, columns.text_pair) if column]
    counts = {"long": 0, "empty": 0}

    def tokenize(batch: Batch, rows: list[int]) -> Batch:
        cells = [texts_of(batch[column], column, split.source, rows[0]) for column in text_columns]
        texts = [[text or "" for text in column] for column in cells]
        counts["empty"] += sum(not any(text.strip() for text in row) for row in zip(*texts, strict=True))
        encoding = tokenizer(*texts, truncation=True, max_length=max_length)
        lengths = [len(ids) == max_length for ids in encoding["input_ids"]]
        counts["long"] += sum(map(bool, [e.overflowing for e in encoding.encodings or ()] or lengths))
        return _without_empty_rows(dict(encoding), tokenizer)

    encoded = split.data.map(
        tokenize, batched=True, with_indices=True, remove_columns=split.data.column_names, load_from_cache_file=False
    )
    warn_of_cut_texts(split, counts["long"], max_length)
    if counts["empty"]:
        logger.warning(f"{split.source}: {counts['empty']} of {len(split.data)} texts are empty.")
    if labels is not None and columns.label is not None:
        encoded = encoded.add_column("labels", label_numbers(split, columns.label, labels))
    return encoded


def _without_empty_rows(encoding: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Gives one filler token to rows that a tokenizer without special tokens leaves empty."""
    filler = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    for row, ids in enumerate(encoding["input_ids"]):
        if not ids:
            for key in encoding:
                encoding[key][row] = [filler if key == "input_ids" else int(key == "attention_mask")]
    return encoding


def warn_of_cut_texts(split: Split, count: int, max_length: int) -> None:
    """Warns where texts of a split were cut at `max_length` tokens."""
    if count:
        logger.warning(
            f"{split.source}: {count} of {len(split.data)} texts are longer than {max_length} tokens and were cut."
        )
