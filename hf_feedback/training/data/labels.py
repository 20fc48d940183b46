"""The labels of a data set, and their numbers in a model."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from .columns import check_column
from .files import format_rows
from .label_names import (
    LIST,
    LISTS_OF_LABELS,
    RowLabels,
    check_no_label_missing,
    class_label_of,
    label_cells,
    label_name,
    normalize_labels,
)
from .splits import Split

logger = logging.get_logger(__name__)

MAX_SHOWN = 20  # names of labels in a message
DECIMAL_COMMA = re.compile(r"-?\d+(,\d+)?")

ProblemType: TypeAlias = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"

IGNORED = -100  # the label of what is left out of the loss and of every metric


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task and their numbers.

    Args:
        problem_type: type of the problem, as in transformers.
        names: the classes in the order of their numbers; empty for regression.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> labels = LabelSet.of(Dataset.from_dict({"label": ["lost", "late"]}), "label", "train.csv")
    >>> labels.encode(["late", "lost"], "label", "train.csv")
    [0, 1]

    ```
    """

    problem_type: ProblemType
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.problem_type == REGRESSION:
            return "values (regression)"
        several = self.problem_type == MULTI_LABEL
        numbers = not several and len(self.names) > 2 and all(map(reads_as_number, self.names))
        commas = not several and _have_decimal_commas(self.names)
        hint = "; for values to predict, `--problem-type regression`" if numbers or commas else ""
        hint += ", and write decimals with a point" if commas else ""
        return f"{len(self.names)} {'labels, several a text' if several else 'classes'}: {self.shown}{hint}"

    @property
    def shown(self) -> str:
        """The first names, for messages."""
        return ", ".join(f"{name:.40}" for name in self.names[:MAX_SHOWN]) + (
            ", …" if len(self.names) > MAX_SHOWN else ""
        )

    @property
    def num_labels(self) -> int:
        """Number of outputs of a head: 1 for regression."""
        return max(1, len(self.names))

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each label by `label_name`."""
        return {label_name(name): i for i, name in enumerate(self.names)}

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> "LabelSet":
        """Returns the labels that a model was trained for.

        Raises:
            ValueError: it answers with several values.
        """
        by_number = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
        names = tuple(by_number[i] for i in sorted(by_number))
        problem = model.config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL)
        if problem == REGRESSION and len(names) > 1:
            raise ValueError(
                f"`model` answers with {len(names)} values for each example, and its labels are of one; predict with "
                "it, or train it with a loop of your own."
            )
        return cls(problem, () if problem == REGRESSION else names)

    @classmethod
    def of(
        cls,
        data: Dataset,
        column: str,
        source: str,
        problem_type: ProblemType | None = None,
        separator: str | None = None,
    ) -> "LabelSet":
        """Finds the labels of training rows.

        Lists are several labels at once, numbers that are not whole are values for regression, anything else is a
        class.

        Args:
            data: the training rows.
            column: column of the labels.
            source: data set, for messages.
            problem_type: problem type; inferred from the labels by default.
            separator: separator of several labels in one cell, if any.

        Raises:
            ValueError: A label is missing, there are fewer than two classes, or no cell holds the separator.
        """
        if separator is not None and problem_type is None:
            _check_separator(data[column], separator, column, source)
        allow_lists = problem_type in (None, MULTI_LABEL)
        values = normalize_labels(label_cells(data, column, separator), column, source, allow_lists)
        several = any(isinstance(value, list) for value in values)
        check_no_label_missing(values, column, source, may_have_none=several)
        if problem_type != REGRESSION:
            _check_not_multi_hot(data[column], values, column, source)
        _check_same_shape(values, column, source, problem_type)
        class_label = class_label_of(data, column)
        if problem_type is None and class_label is None:
            _check_same_kind(values, column, source)
        problem_type = problem_type or _guess_problem(values, class_label is not None)
        if problem_type == REGRESSION:
            _encode_values(values, column, source)  # or raises
            return cls(problem_type)
        names = (
            _sorted_names(values) if class_label is None else list(dict.fromkeys(map(label_name, class_label.names)))
        )
        if len(names) < 2:
            raise ValueError(
                f"{source}: column {column!r} has fewer than two different labels ({', '.join(names)}); "
                "a classifier needs at least two. To predict numbers, give `--problem-type regression`."
            )
        return cls(problem_type, tuple(names))

    def encode(self, values: Sequence[object], column: str, source: str) -> list[int] | list[float] | list[list[float]]:
        """Returns the numbers of labels.

        Args:
            values: cells of the column.
            column: name of the column, for messages.
            source: data set, for messages.

        Returns:
            One class number per row; for regression one value; for several labels a list of zeros and ones.

        Raises:
            ValueError: A label is missing, unknown or, for regression, not a number; the message names the rows.
        """
        several = self.problem_type == MULTI_LABEL
        labels = normalize_labels(values, column, source, several)
        check_no_label_missing(labels, column, source, may_have_none=several)
        if self.problem_type == REGRESSION:
            return _encode_values(labels, column, source)
        wrong = [i for i, label in enumerate(labels) if isinstance(label, list) != several]
        if wrong:
            raise ValueError(
                f"{source}: column {column!r} must hold {LISTS_OF_LABELS if several else 'one label'} in every row, as "
                f"in training; {format_rows(wrong)}: {labels[wrong[0]]!r:.80}."
            )
        rows = [cast(list[str], label if several else [label]) for label in labels]
        numbers = self.numbers
        unknown = [i for i, row in enumerate(rows) if any(name not in numbers for name in row)]
        if unknown:
            name = next(name for name in rows[unknown[0]] if name not in numbers)
            raise ValueError(
                f"{source}: label {name!r} in {format_rows(unknown)} is not among the training labels: {self.shown}."
            )
        if several:
            return [[float(label_name(name) in row) for name in self.names] for row in rows]
        return [numbers[row[0]] for row in rows]


def _check_separator(cells: Sequence[object], separator: str, column: str, source: str) -> None:
    if not any(isinstance(cell, str) and separator in cell for cell in cells):
        raise ValueError(
            f"`label_separator`: no cell of column {column!r} in {source} holds {separator!r}; leave it out, or, if a "
            f"text may have several labels, give `--problem-type {MULTI_LABEL}`."
        )


def _encode_values(labels: Sequence[RowLabels], column: str, source: str) -> list[float]:
    values = [{"true": "1", "false": "0"}.get(str(label), label) for label in labels]
    wrong = [i for i, value in enumerate(values) if not reads_as_number(value)]
    if wrong:
        advice = "; write decimals with a point" if DECIMAL_COMMA.fullmatch(str(values[wrong[0]])) else ""
        raise ValueError(
            f"{source}: {values[wrong[0]]!r} in column {column!r}, {format_rows(wrong)}, is not a number{advice}."
        )
    return [float(str(value)) for value in values]


def _sorted_names(values: Sequence[RowLabels]) -> list[str]:
    """All labels, numbers in their order first."""
    names = {str(label) for labels in values for label in (labels if isinstance(labels, list) else [labels])}
    return sorted(names, key=lambda name: (float(name) if reads_as_number(name) else math.inf, name))


def _check_same_shape(values: Sequence[RowLabels], column: str, source: str, problem_type: ProblemType | None) -> None:
    """Refuses rows of which only some hold lists, or that contradict the problem type."""
    lists = [isinstance(value, list) for value in values]
    several = any(lists) if problem_type is None else problem_type == MULTI_LABEL
    if set(lists) != {several}:
        raise ValueError(
            f"{source}: column {column!r} must hold {LISTS_OF_LABELS if several else 'one label'} in every row for "
            f"{problem_type or MULTI_LABEL}{several * ' (several in one cell: `--label-separator`)'}."
        )


def _check_same_kind(values: Sequence[RowLabels], column: str, source: str) -> None:
    """Refuses truth values mixed with 0 and 1, and words mixed with numbers to predict."""
    rows: dict[str, int] = {}
    for row, label in enumerate(values):
        if isinstance(label, str):
            rows.setdefault(_kind_of(label), row)
    for pair in (("a truth value", "0 or 1"), ("a number that is not whole", "a word")):
        if set(pair) <= rows.keys():
            first, second = (f"{kind} ({values[rows[kind]]!r:.40} in {format_rows([rows[kind]])})" for kind in pair)
            raise ValueError(
                f"{source}: column {column!r} holds {first} and {second}; write labels of one kind, or give "
                "`--problem-type`."
            )


def _kind_of(label: str) -> str:
    if label in ("true", "false"):
        return "a truth value"
    if label in ("0", "1"):
        return "0 or 1"
    if not reads_as_number(label):
        return "a word"
    return "another whole number" if float(label).is_integer() else "a number that is not whole"


def _check_not_multi_hot(cells: Sequence[object], labels: Sequence[RowLabels], column: str, source: str) -> None:
    """Refuses rows of zeros and ones, or of other numbers, instead of names."""
    rows = [label for label in labels if isinstance(label, list)]
    even = len(rows) == len(labels) and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    names: set[str | None] = set().union(*rows)
    parts = (part for cell in cells if isinstance(cell, list | tuple) for part in cell)
    if (
        (even and names <= {"0", "1", "true", "false"})
        or any(isinstance(part, float) and part % 1 for part in parts)
        or _are_bare_numbers(cells, names)
    ):
        raise ValueError(
            f"{source}: column {column!r} holds rows of numbers; give the labels that each text has by name, "
            'such as ["late", "lost"].'
        )


def _are_bare_numbers(cells: Sequence[object], names: Collection[str | None]) -> bool:
    """Whether lists written as text hold numbers that are not all whole; in quotes they are names, such as '3.11'."""
    lists = [cell for cell in cells if isinstance(cell, str) and LIST.fullmatch(cell)]
    if not lists or any(set(text) & set("'\"") for text in lists) or not all(map(reads_as_number, names)):
        return False
    return any(not float(str(name)).is_integer() for name in names)


def _guess_problem(values: Sequence[RowLabels], has_names: bool) -> ProblemType:
    if all(isinstance(value, list) for value in values):
        return MULTI_LABEL
    numbers = [float(str(value)) for value in values if reads_as_number(value)]
    whole = all(number == int(number) for number in numbers)
    return SINGLE_LABEL if has_names or whole or len(numbers) < len(values) else REGRESSION


def reads_as_number(value: object) -> bool:
    """Whether a label, possibly a text, is a finite number."""
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # anything else raises
    except (TypeError, ValueError):
        return False


def _have_decimal_commas(names: Sequence[str]) -> bool:
    """Whether labels are numbers, some of them with a decimal comma."""
    return any("," in name for name in names) and all(map(DECIMAL_COMMA.fullmatch, names))


def has_labels(split: Split, column: str) -> bool:
    """Whether any row has a label, which test splits of the Hub often hide."""
    return bool(_labelled_rows(split, column))


def drop_unlabelled_rows(split: Split, column: str) -> Split:
    """Leaves out rows without a label, with a warning; a split without any label is returned as it is."""
    labelled, count = _labelled_rows(split, column), len(split.data)
    if len(labelled) in (0, count):
        return split
    logger.warning(f"{split.source}: {count - len(labelled)} of {count} rows have no label and are left out.")
    return split.select(labelled, f"{len(labelled)} of {count} rows, those with a label")


def _labelled_rows(split: Split, column: str) -> list[int]:
    cells = label_cells(split.data, column)
    labels = normalize_labels(cells, column, split.source, allow_lists_in_text=False)
    return [row for row, label in enumerate(labels) if label is not None]


def label_numbers(
    split: Split, column: str, labels: LabelSet, separator: str | None = None
) -> list[int] | list[float] | list[list[float]]:
    """Returns the numbers of the labels in a column, see `LabelSet.encode`.

    Raises:
        ValueError: there is no such column, or a label is missing or unknown.
    """
    check_column(column, split.data.column_names, split.source, "label_column")
    return labels.encode(label_cells(split.data, column, separator), column, split.source)


def single_label_set(split: Split, column: str) -> LabelSet:
    """Returns the classes of a column with one label per row.

    Raises:
        ValueError: there is no such column, a label is missing, or there are fewer than two classes.
    """
    check_column(column, split.data.column_names, split.source, "label_column")
    return LabelSet.of(split.data, column, split.source, SINGLE_LABEL)


def row_classes(split: Split, column: str) -> list[str]:
    """Returns the class name of every row, for rows with one label each."""
    names = normalize_labels(label_cells(split.data, column), column, split.source, allow_lists_in_text=False)
    return list(map(str, names))
