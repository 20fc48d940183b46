"""From files of labelled texts to what a model reads."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import FileArguments
from .labels import LabelSet, label_numbers, rows_in_words

logger = logging.get_logger(__name__)

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
TEXT_NAMES = ("text", "sentence", "content", "review", "question", "message", "tweet", "utterance")
PAIR_NAMES = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("question1", "question2"),
    ("question", "sentence"),
)
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "score")


@dataclass(frozen=True)
class Columns:
    """Where a data set keeps its texts and labels."""

    text: str
    text_pair: str | None
    label: str | None


def read_file(file: str | Path) -> Dataset:
    """Reads a CSV, TSV, JSON-lines or parquet file. Cells of CSV and TSV stay the text that they are: `007`, `NA` and
    `None` too. Quotes mean nothing in a TSV file.

    Raises:
        ValueError: the file is missing, empty, of an unknown kind or cannot be read.
    """
    path = Path(file)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{file}: unknown kind of file; use one of {', '.join(FORMATS)}.")
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{file}: the file is empty.")
    try:
        data = _read_cells(path) if kind == "csv" else load_dataset(kind, data_files=escape(str(path)), split="train")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error}); save it as UTF-8.") from error
    except (DatasetGenerationError, ArrowInvalid, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read as {kind} ({error.__cause__ or error}).") from error
    if len(data) == 0:
        raise ValueError(f"{file}: the file has no rows.")
    return data


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


def _read_cells(path: Path) -> Dataset:
    csv.field_size_limit(2**31 - 1)
    options: dict[str, Any] = {"strict": True}
    if path.suffix.lower() == ".tsv":
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header, *rows = [row for row in csv.reader(stream, **options) if row] or [[]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: the header names a column twice: {', '.join(header)}; rename one.")
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: row {wrong + 1} has {len(rows[wrong])} cells, the header has {len(header)}; put texts that hold "
            "the separator in quotes."
        )
    return Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(header)})


def find_columns(
    names: Sequence[str],
    source: str,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    needs_label: bool = True,
) -> Columns:
    """The columns that were given, or found by their usual names.

    Raises:
        ValueError: a column is missing or cannot be found; names those that are there.
    """
    there = f"{source} has the columns: {', '.join(names)}."
    for option, value in (("--text-column", text), ("--text-pair-column", text_pair), ("--label-column", label)):
        if value is not None and value not in names and (option != "--label-column" or needs_label):
            raise ValueError(f"`{option}`: there is no column {value!r}; {there}")
    if text is None and text_pair is not None:
        text = next((name for name in TEXT_NAMES if name in names and name != text_pair), None)
    elif text is None:
        pair = next((pair for pair in PAIR_NAMES if set(pair) <= set(names)), None)
        text, text_pair = pair or (next((name for name in TEXT_NAMES if name in names), None), None)
    if text is None:
        raise ValueError(f"No column of texts was found; name it with `--text-column`. {there}")
    if label is None:
        label = next((name for name in LABEL_NAMES if name in names and name not in (text, text_pair)), None)
    if label is None and needs_label:
        raise ValueError(f"No column of labels was found; name it with `--label-column`. {there}")
    return Columns(text, text_pair, label if label in names else None)


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

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [["" if v is None else str(v) for v in batch[c]] for c in (columns.text, columns.text_pair) if c]
        counts["empty"] += sum(not any(t.strip() for t in row) for row in zip(*texts, strict=True))
        found = tokenizer(*texts, truncation=True, max_length=max_length)
        cut = [e.overflowing for e in found.encodings or ()] or [len(i) == max_length for i in found["input_ids"]]
        counts["long"] += sum(map(bool, cut))
        for i, ids in enumerate(found["input_ids"]):  # a tokenizer without special tokens leaves nothing of ""
            if not ids:
                for key in found:
                    found[key][i] = [filler if key == "input_ids" else int(key == "attention_mask")]
        return dict(found)

    encoded = data.map(tokenize, batched=True, remove_columns=data.column_names, load_from_cache_file=False)
    if counts["long"]:
        logger.warning(
            f"{source}: {counts['long']} of {len(data)} texts are longer than {max_length} tokens and were cut."
        )
    if counts["empty"]:
        logger.warning(f"{source}: {counts['empty']} of {len(data)} texts are empty.")
    if labels is not None and columns.label is not None:
        encoded = encoded.add_column("labels", label_numbers(data, columns.label, labels, source))
    return encoded
