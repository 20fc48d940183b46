"""Labels of a data set: which there are, and the numbers that models know them by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedModel


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
                raise ValueError(
                    f"{source}: {values[wrong[0]]!r} in column {column!r}, {rows_in_words(wrong)}, is no number."
                )
            return [float(value) for value in values]
        number = {name: i for i, name in enumerate(self.names)}
        several = self.problem_type == "multi_label_classification"
        rows = [[_name(v) for v in value] if several else [_name(value)] for value in values]
        unknown = [i for i, row in enumerate(rows) if any(name not in number for name in row)]
        if unknown:
            name = next(name for name in rows[unknown[0]] if name not in number)
            raise ValueError(
                f"{source}: label {name!r} in {rows_in_words(unknown)} is not among the training labels: "
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
        raise ValueError(
            f"{source}: the label is missing in column {column!r}, {rows_in_words(missing)}; fill or drop them."
        )


def rows_in_words(indices: Sequence[int]) -> str:
    """Rows counted from 1, the header left out."""
    shown = ", ".join(str(i + 1) for i in indices[:5])
    return f"row {shown}" if len(indices) == 1 else f"rows {shown}{', …' if len(indices) > 5 else ''}"


def names_of(data: Dataset, column: str) -> list[Any]:
    """The labels of a column by name, also where they are numbers of a `ClassLabel`; -1, which the Hub's hidden test
    labels are, → `None`."""
    values, feature = data[column], data.features[column]
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
    return column is not None and any(value is not None for value in names_of(data, column))


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
