"""From files of labelled texts to what a model reads."""

import math
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import FileArguments
from .columns import Columns, find_columns
from .files import read_file, rows_in_words
from .labels import LabelSet, label_numbers

__all__ = ["Columns", "check_rows", "encode", "find_columns", "read_file", "read_splits", "texts_of"]

logger = logging.get_logger(__name__)


def read_splits(args: FileArguments, read: Callable[[str], Dataset] = read_file) -> dict[str, tuple[Dataset, str]]:
    """The files that were given, each with its name for messages.

    Raises:
        ValueError: there is none to train on, or one cannot be read.
    """
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if args.train_file is None:
        raise ValueError("There is nothing to train on: give `--train-file`.")
    return {split: (read(file), file) for split, file in files.items() if file is not None}


def check_rows(data: Dataset, source: str, columns: Sequence[str], fault: Callable[..., str | None]) -> None:
    """Looks through the rows before any work is done.

    Args:
        data: the rows.
        source: their file.
        columns: those that the task needs.
        fault: what is wrong with the values of these columns in a row, `None` if nothing is.

    Raises:
        ValueError: a column is missing, or a row has a fault; says which.
    """
    for column in columns:
        if column not in data.column_names:
            raise ValueError(f"{source}: there is no column {column!r}; it has {', '.join(data.column_names)}.")
    for i, row in enumerate(data.select_columns(list(columns))):
        wrong = fault(*(row[column] for column in columns))
        if wrong is not None:
            raise ValueError(f"{source}: {rows_in_words([i])}: {wrong}.")


def texts_of(cells: Sequence[Any], column: str, source: str, first_row: int = 0) -> list[str | None]:
    """The texts of cells; numbers, dates and truth values as JSON spells them, `None` for a gap.

    Args:
        cells: of one column.
        column, source: its name and its file, for messages.
        first_row: number of the first cell's row, counted from 0.

    Raises:
        ValueError: a cell holds something else; says which.
    """

    def text_of(row: int, cell: Any) -> str | None:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return None
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, str | int | float | Decimal | date):
            return str(cell)
        raise ValueError(
            f"{source}: {rows_in_words([row])}: column {column!r} must hold a text, got {type(cell).__name__} "
            f"{cell!r:.80}; name another column or make texts of it."
        )

    return [text_of(row, cell) for row, cell in enumerate(cells, first_row)]


def encode(
    data: Dataset,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    source: str,
    labels: LabelSet | None = None,
) -> Dataset:
    """Texts (and labels, where `labels` says how) → token ids, cut at `max_length`.

    Texts that are cut and texts that are empty are counted in a warning; an empty text stays, as its special tokens.
    """
    filler = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    counts = {"long": 0, "empty": 0}

    def tokenize(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
        read = [texts_of(batch[c], c, source, rows[0]) for c in (columns.text, columns.text_pair) if c]
        texts = [[text or "" for text in column] for column in read]
        counts["empty"] += sum(not any(t.strip() for t in row) for row in zip(*texts, strict=True))
        found = tokenizer(*texts, truncation=True, max_length=max_length)
        cut = [e.overflowing for e in found.encodings or ()] or [len(i) == max_length for i in found["input_ids"]]
        counts["long"] += sum(map(bool, cut))
        for i, ids in enumerate(found["input_ids"]):  # a tokenizer without special tokens leaves nothing of ""
            if not ids:
                for key in found:
                    found[key][i] = [filler if key == "input_ids" else int(key == "attention_mask")]
        return dict(found)

    encoded = data.map(
        tokenize, batched=True, with_indices=True, remove_columns=data.column_names, load_from_cache_file=False
    )
    if counts["long"]:
        logger.warning(
            f"{source}: {counts['long']} of {len(data)} texts are longer than {max_length} tokens and were cut."
        )
    if counts["empty"]:
        logger.warning(f"{source}: {counts['empty']} of {len(data)} texts are empty.")
    if labels is not None and columns.label is not None:
        encoded = encoded.add_column("labels", label_numbers(data, columns.label, labels, source))
    return encoded
