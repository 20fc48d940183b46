"""From files of labelled texts to what a model reads."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

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


@dataclass(frozen=True)
class LabelSet:
    """How labels become numbers.

    Args:
        problem_type: as in transformers.
        names: the classes in the order of their numbers; empty for regression.
    """

    problem_type: str
    names: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """1 for regression."""
        return max(1, len(self.names))

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> "LabelSet":
        """The labels that a model was trained for."""
        names = tuple(map(str, (model.config.id2label or {}).values()))
        problem = model.config.problem_type or ("regression" if len(names) == 1 else "single_label_classification")
        return cls(problem, () if problem == "regression" else names)

    @classmethod
    def of(cls, data: Dataset, column: str, source: str, problem_type: str | None = None) -> "LabelSet":
        """Finds out from the training labels: lists → several labels at once, numbers that are not whole →
        regression, anything else → classes.

        Raises:
            ValueError: a label is missing, or there are fewer than two classes.
        """
        feature = data.features[column]
        inner = getattr(feature, "feature", feature)
        values = data[column]
        _refuse_missing(values, column, source)
        _refuse_multi_hot(values, column, source)
        lists = [isinstance(value, list | tuple) for value in values]
        several = problem_type == "multi_label_classification"
        if any(lists) != all(lists) or (problem_type is not None and several != all(lists)):
            raise ValueError(
                f"{source}: column {column!r} must hold {'lists of labels' if several or any(lists) else 'one label'} "
                f"in every row for {problem_type or 'multi_label_classification'}, as JSON lines or parquet files can."
            )
        if isinstance(inner, ClassLabel) and problem_type != "regression":
            kind = "multi_label_classification" if all(lists) else "single_label_classification"
            return cls(kind, tuple(inner.names))
        if problem_type is None:
            problem_type = _guess_problem(values)
        if problem_type == "regression":
            return cls(problem_type)
        if problem_type == "multi_label_classification":
            found = {_name(label) for labels in values for label in labels}
        else:
            found = {_name(value) for value in values}
        if len(found) < 2:
            raise ValueError(
                f"{source}: column {column!r} has fewer than two different labels ({', '.join(sorted(found))}); "
                "a classifier needs at least two. For numbers to predict, say `--problem-type regression`."
            )
        number = {name: float(name) for name in found if _is_float(name)}
        return cls(problem_type, tuple(sorted(found, key=lambda name: (number.get(name, math.inf), name))))

    def encode(self, values: Sequence[Any], column: str, source: str) -> list[Any]:
        """Labels → numbers.

        Raises:
            ValueError: a label is missing, unknown or, for regression, not a number; says which rows.
        """
        _refuse_missing(values, column, source)
        if self.problem_type == "regression":
            wrong = [i for i, value in enumerate(values) if not _is_float(value)]
            if wrong:
                raise ValueError(f"{source}: {values[wrong[0]]!r} in column {column!r}, {_rows(wrong)}, is no number.")
            return [float(value) for value in values]
        number = {name: i for i, name in enumerate(self.names)}
        several = self.problem_type == "multi_label_classification"
        rows = [[_name(v) for v in value] if several else [_name(value)] for value in values]
        unknown = [i for i, row in enumerate(rows) if any(name not in number for name in row)]
        if unknown:
            name = next(name for name in rows[unknown[0]] if name not in number)
            raise ValueError(
                f"{source}: label {name!r} in {_rows(unknown)} is not among the training labels: "
                f"{', '.join(self.names[:20])}{', …' if len(self.names) > 20 else ''}."
            )
        if several:
            return [[float(name in row) for name in self.names] for row in rows]
        return [number[row[0]] for row in rows]


def _refuse_multi_hot(values: Sequence[Any], column: str, source: str) -> None:
    rows = [value for value in values if isinstance(value, list | tuple)]
    same = len(rows) == len(values) and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    cells = [cell for row in rows for cell in row]
    if (same and set(cells) <= {0, 1}) or any(isinstance(cell, float) for cell in cells):
        raise ValueError(
            f"{source}: column {column!r} holds rows of numbers; give the labels that each text has by name, "
            'such as ["late", "lost"].'
        )


def _guess_problem(values: Sequence[Any]) -> str:
    if all(isinstance(value, list | tuple) for value in values):
        return "multi_label_classification"
    numbers = [float(value) for value in values if _is_float(value)]
    whole = all(number == int(number) for number in numbers)
    return "regression" if len(numbers) == len(values) and not whole else "single_label_classification"


def _is_float(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _name(value: Any) -> str:
    """The number 1.0 is the label "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _refuse_missing(values: Sequence[Any], column: str, source: str) -> None:
    def is_missing(value: Any) -> bool:
        if isinstance(value, str):
            return value.strip() == "" or value.strip().lower() == "nan"
        if isinstance(value, list | tuple):
            return any(is_missing(one) for one in value)
        return value is None or (isinstance(value, float) and math.isnan(value))

    missing = [i for i, value in enumerate(values) if is_missing(value)]
    if missing:
        raise ValueError(f"{source}: the label is missing in column {column!r}, {_rows(missing)}; fill or drop them.")


def _rows(indices: Sequence[int]) -> str:
    """Rows counted from 1, the header left out."""
    shown = ", ".join(str(i + 1) for i in indices[:5])
    return f"row {shown}" if len(indices) == 1 else f"rows {shown}{', …' if len(indices) > 5 else ''}"


def _named(values: Sequence[Any], feature: Any) -> list[Any]:
    """Numbers of a `ClassLabel` column → names; -1, which the Hub's hidden test labels are, → `None`."""
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, ClassLabel):
        return list(values)

    def name(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [name(one) for one in value]
        return None if value is None or value < 0 else inner.int2str(value)

    return [name(value) for value in values]


def has_labels(data: Dataset, column: str | None) -> bool:
    """Whether any row has a label; the Hub's test splits often hide them all."""
    return column is not None and any(value is not None for value in _named(data[column], data.features[column]))


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
        values = data[columns.label]
        values = _named(values, data.features[columns.label])
        encoded = encoded.add_column("labels", labels.encode(list(values), columns.label, source))
    return encoded
