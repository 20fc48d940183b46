"""Conversion of cells to texts, and of texts to token ids."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .columns import Columns
from .files import format_rows
from .labels import LabelSet, label_numbers
from .row_encoder import IN_MEMORY, RowEncoder
from .splits import Batch, Split

logger = logging.get_logger(__name__)

NUM_TOKENS, IS_EMPTY = "num_tokens", "is_empty"  # columns added to the tokens until they are counted


def texts_of(cells: Sequence[object], column: str, source: str, rows: Sequence[int] | None = None) -> list[str | None]:
    """Returns the texts of cells: numbers, dates and truth values as in JSON, `None` for a missing one.

    Args:
        cells: cells of one column.
        column: name of the column, for messages.
        source: data set of the column, for messages.
        rows: rows of the cells, counted from 0; by default the first ones.

    Raises:
        ValueError: a cell holds something else; the message names its row.

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
            f"{cell!r:.80}; name another column, or convert it to texts."
        )

    return list(map(text_of, range(len(cells)) if rows is None else rows, cells))


@dataclass(frozen=True)
class TextLengths:
    """Lengths of the texts of a split.

    Args:
        tokens: tokens of every text before truncation.
        max_length: tokens to which texts are truncated.

    Example:

    ```python
    >>> str(TextLengths(np.array([3, 5, 9, 9]), max_length=8))
    'tokens: 7 in the median text, 9 in the longest; 2 texts (50.0%) are cut at 8'

    ```
    """

    tokens: np.ndarray
    max_length: int

    @property
    def cut(self) -> int:
        """Number of texts that are truncated."""
        return int((self.tokens > self.max_length).sum())

    def __str__(self) -> str:
        share = self.cut / max(1, len(self.tokens))
        cut = f"{self.cut} texts ({share:.1%}) are cut" if self.cut else "none is cut"
        return (
            f"tokens: {np.median(self.tokens):.0f} in the median text, {self.tokens.max()} in the longest; {cut} at "
            f"{self.max_length}"
        )


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as token ids.

    Args:
        data: the encoded rows.
        lengths: lengths of the texts.
        empty: number of texts without a character.
    """

    data: Dataset
    lengths: TextLengths
    empty: int = 0


def tokenize_texts(
    split: Split,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoder: RowEncoder = IN_MEMORY,
) -> EncodedTexts:
    """Tokenizes texts. An empty text keeps its special tokens.

    Args:
        split: the rows.
        columns: columns of the texts.
        tokenizer: tokenizer of the model.
        max_length: texts are cut at this number of tokens.
        encoder: encodes the rows, with or without a cache on disk.

    Raises:
        ValueError: a cell is not a text.
    """
    text_columns = [column for column in (columns.text, columns.text_pair) if column]

    def tokenize(batch: Batch, rows: list[int]) -> Batch:
        cells = [texts_of(batch[column], column, split.source, split.rows_of(rows)) for column in text_columns]
        texts = [[text or "" for text in column] for column in cells]
        encoding = tokenizer(*texts, truncation=True, max_length=max_length)
        return {
            **_without_empty_rows(dict(encoding), tokenizer),
            NUM_TOKENS: whole_lengths(
                encoding["input_ids"], max_length, lambda *some: tokenizer(*some, verbose=False), texts
            ),
            IS_EMPTY: [not any(text.strip() for text in row) for row in zip(*texts, strict=True)],
        }

    options = {"columns": text_columns, "max_length": max_length}
    encoded = encoder.encode(split.data, text_columns, tokenize, tokenizer, options)
    lengths = TextLengths(np.asarray(encoded[NUM_TOKENS][:]), max_length)
    return EncodedTexts(encoded.remove_columns([NUM_TOKENS, IS_EMPTY]), lengths, sum(encoded[IS_EMPTY]))


def whole_lengths(
    cut: Sequence[Sequence[int]],
    max_length: int,
    tokenize: Callable[..., Mapping[str, Sequence[Sequence[int]]]],
    texts: Sequence[Sequence[object]],
) -> list[int]:
    """Returns the lengths of texts before truncation; only those that may be truncated are tokenized again.

    Args:
        cut: token ids after truncation.
        max_length: tokens to which texts are truncated.
        tokenize: tokenizes without truncation.
        texts: the texts, and the second texts of pairs.
    """
    lengths = [len(ids) for ids in cut]
    full = [row for row, length in enumerate(lengths) if length >= max_length]
    if full:
        whole = tokenize(*([column[row] for row in full] for column in texts))["input_ids"]
        for row, ids in zip(full, whole, strict=True):
            lengths[row] = len(ids)
    return lengths


def encode_texts(
    split: Split,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: LabelSet | None = None,
) -> Dataset:
    """Tokenizes texts, and adds the numbers of their labels.

    A warning counts truncated and empty texts.

    Args:
        split: the rows.
        columns: columns of the texts and labels.
        tokenizer: tokenizer of the model.
        max_length: texts are cut at this number of tokens.
        labels: numbers of the labels; `None`: the rows get no labels.

    Returns:
        The encoded rows.

    Raises:
        ValueError: a cell is not a text, or a label is missing or unknown.
    """
    return with_labels(tokenize_texts(split, columns, tokenizer, max_length), split, columns, labels)


def with_labels(encoded: EncodedTexts, split: Split, columns: Columns, labels: LabelSet | None = None) -> Dataset:
    """Adds the numbers of labels to texts, and warns about truncated and empty ones, see `encode_texts`."""
    warn_of_cut_texts(split, encoded.lengths.cut, encoded.lengths.max_length)
    if encoded.empty:
        logger.warning_once(f"{split.source}: {encoded.empty} of {len(split.data)} texts are empty.")
    if labels is None or columns.label is None:
        return encoded.data
    return encoded.data.add_column("labels", label_numbers(split, columns.label, labels, columns.label_separator))


def _without_empty_rows(encoding: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Adds a filler token to rows that a tokenizer without special tokens leaves empty."""
    filler = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    for row, ids in enumerate(encoding["input_ids"]):
        if not ids:
            for key in encoding:
                encoding[key][row] = [filler if key == "input_ids" else int(key == "attention_mask")]
    return encoding


def warn_of_cut_texts(split: Split, count: int, max_length: int) -> None:
    """Warns about texts of a split that were truncated to `max_length` tokens."""
    if count:
        logger.warning_once(  # a comparison encodes the same file for every run
            f"{split.source}: {count} of {len(split.data)} texts are longer than {max_length} tokens and were cut."
        )
