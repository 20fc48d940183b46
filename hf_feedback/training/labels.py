"""Labels of a data set: which there are, and the numbers that models know them by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedModel

from .files import rows_in_words
from .label_names import LISTS_OF_LABELS, label_name, names_of, normal_labels, refuse_missing

SHOWN = 20  # names of labels in a message


@dataclass(frozen=True)
class LabelSet:
    """How labels become numbers.

    Args:
        problem_type: as in transformers.
        names: the classes in the order of their numbers; empty for regression.
    """

    problem_type: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.problem_type == "regression":
            return "values (regression)"
        kind = "labels, several a text" if self.problem_type == "multi_label_classification" else "classes"
        numbers = kind == "classes" and len(self.names) > 2 and all(map(_is_float, self.names))
        hint = "; for values to predict, `--problem-type regression`" if numbers else ""
        return f"{len(self.names)} {kind}: {self.shown}{hint}"

    @property
    def shown(self) -> str:
        """The names, for messages."""
        return ", ".join(f"{name:.40}" for name in self.names[:SHOWN]) + (", …" if len(self.names) > SHOWN else "")

    @property
    def num_labels(self) -> int:
        """1 for regression."""
        return max(1, len(self.names))

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each label, by `label_name`."""
        return {label_name(name): i for i, name in enumerate(self.names)}

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> "LabelSet":
        """The labels that a model was trained for."""
        by_number = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
        names = tuple(by_number[i] for i in sorted(by_number))
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
        may_be_several = problem_type in (None, "multi_label_classification")
        values = normal_labels(names_of(data, column), column, source, may_be_several)
        refuse_missing(values, column, source)
        _refuse_multi_hot(data[column], values, column, source)
        lists = [isinstance(value, list) for value in values]
        several = any(lists) if problem_type is None else problem_type == "multi_label_classification"
        if set(lists) != {several}:
            raise ValueError(
                f"{source}: column {column!r} must hold {LISTS_OF_LABELS if several else 'one label'} in every row for "
                f"{problem_type or 'multi_label_classification'}."
            )
        problem_type = problem_type or _guess_problem(values, isinstance(inner, ClassLabel))
        if problem_type == "regression":
            return cls(problem_type)
        if isinstance(inner, ClassLabel):
            names = list(dict.fromkeys(map(label_name, inner.names)))
        else:
            found = {label for labels in values for label in (labels if isinstance(labels, list) else [labels])}
            names = sorted(found, key=lambda name: (float(name) if _is_float(name) else math.inf, name))
        if len(names) < 2:
            raise ValueError(
                f"{source}: column {column!r} has fewer than two different labels ({', '.join(names)}); "
                "a classifier needs at least two. For numbers to predict, say `--problem-type regression`."
            )
        return cls(problem_type, tuple(names))

    def encode(self, values: Sequence[Any], column: str, source: str) -> list[Any]:
        """Labels → numbers.

        Raises:
            ValueError: a label is missing, unknown or, for regression, not a number; says which rows.
        """
        several = self.problem_type == "multi_label_classification"
        values = normal_labels(values, column, source, several)
        refuse_missing(values, column, source)
        if self.problem_type == "regression":
            values = [{"true": "1", "false": "0"}.get(str(value), value) for value in values]
            wrong = [i for i, value in enumerate(values) if not _is_float(value)]
            if wrong:
                raise ValueError(
                    f"{source}: {values[wrong[0]]!r} in column {column!r}, {rows_in_words(wrong)}, is no number."
                )
            return [float(value) for value in values]
        wrong = [i for i, value in enumerate(values) if isinstance(value, list) != several]
        if wrong:
            raise ValueError(
                f"{source}: column {column!r} must hold {LISTS_OF_LABELS if several else 'one label'} in every row, as "
                f"in training; {rows_in_words(wrong)}: {values[wrong[0]]!r:.80}."
            )
        numbers, rows = self.numbers, values if several else [[value] for value in values]
        unknown = [i for i, row in enumerate(rows) if any(name not in numbers for name in row)]
        if unknown:
            name = next(name for name in rows[unknown[0]] if name not in numbers)
            raise ValueError(
                f"{source}: label {name!r} in {rows_in_words(unknown)} is not among the training labels: {self.shown}."
            )
        if several:
            names = list(map(label_name, self.names))
            return [[float(name in row) for name in names] for row in rows]
        return [numbers[row[0]] for row in rows]


def _refuse_multi_hot(cells: Sequence[Any], labels: Sequence[Any], column: str, source: str) -> None:
    rows = [label for label in labels if isinstance(label, list)]
    same = len(rows) == len(labels) and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    parts = (part for cell in cells if isinstance(cell, list | tuple) for part in cell)
    marks = {"0", "1", "true", "false"}
    if (same and set().union(*rows) <= marks) or any(isinstance(one, float) and one % 1 for one in parts):
        raise ValueError(
            f"{source}: column {column!r} holds rows of numbers; give the labels that each text has by name, "
            'such as ["late", "lost"].'
        )


def _guess_problem(values: Sequence[Any], named: bool) -> str:
    if all(isinstance(value, list) for value in values):
        return "multi_label_classification"
    numbers = [float(value) for value in values if _is_float(value)]
    whole = all(number == int(number) for number in numbers)
    return "single_label_classification" if named or whole or len(numbers) < len(values) else "regression"


def _is_float(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def has_labels(data: Dataset, column: str, source: str) -> bool:
    """Whether any row has a label; the Hub's test splits often hide them all."""
    return any(label is not None for label in normal_labels(names_of(data, column), column, source, several=False))


def label_numbers(data: Dataset, column: str, labels: LabelSet, source: str) -> list[Any]:
    """A column of labels → numbers; see `LabelSet.encode`."""
    _refuse_absent(data, column, source)
    return labels.encode(names_of(data, column), column, source)


def _refuse_absent(data: Dataset, column: str, source: str) -> None:
    if column not in data.column_names:
        there = ", ".join(data.column_names)
        raise ValueError(f"`label_column`: there is no column {column!r}; {source} has the columns: {there}.")


def classes_of(data: Dataset, source: str, column: str) -> LabelSet:
    """The classes of a column that holds one label a row.

    Raises:
        ValueError: there is no such column, a label is missing, or there are fewer than two classes.
    """
    _refuse_absent(data, column, source)
    return LabelSet.of(data, column, source, "single_label_classification")
