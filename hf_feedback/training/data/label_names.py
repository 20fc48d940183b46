"""One spelling of each label for all types of files."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import yaml
from datasets import ClassLabel, Dataset

from .files import format_rows

WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
LIST = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)
NO_LABELS = re.compile(r"\s*\[\s*\]\s*")
LISTS_OF_LABELS = 'lists of labels such as ["late", "lost"]'

RowLabels: TypeAlias = str | list[str | None] | None
"""The labels of one row: one, several, or `None` if missing."""


def label_name(label: object) -> str:
    """Returns the spelling of a label: `1` for 1.0 and "1.0", `true` for True.

    Example:

    ```python
    >>> [label_name(label) for label in (True, "TRUE", 1.0, "1.0", " late ")]
    ['true', 'true', '1', '1', 'late']

    ```
    """
    name = unicodedata.normalize("NFC", str(label).strip())
    if isinstance(label, float) and label.is_integer():
        name = str(int(label))
    elif name.lower() in ("true", "false"):
        name = name.lower()
    whole = WHOLE_NUMBER.fullmatch(name)
    return whole[1] if whole else name


def normalize_labels(
    values: Sequence[object], column: str, source: str, allow_lists_in_text: bool = True
) -> list[RowLabels]:
    """Returns the labels of rows by `label_name`: one or a list per row; a missing one is `None`.

    Args:
        values: cells of the column.
        column: name of the column, for messages.
        source: data set of the column, for messages.
        allow_lists_in_text: whether a text such as "['late', 'lost']" is a list of labels instead of one name.

    Raises:
        ValueError: a cell is neither a label nor a list of labels; the message names its row.

    Example:

    ```python
    >>> normalize_labels(["late", 1.0, "['late', 'lost']", ""], "label", "train.csv", allow_lists_in_text=False)
    ['late', '1', "['late', 'lost']", None]

    ```
    """

    def name_of(row: int, value: object) -> str | None:
        if isinstance(value, list | tuple | dict | bytes):
            raise ValueError(
                f"{source}: {format_rows([row])}: column {column!r} must hold a label or {LISTS_OF_LABELS}, got "
                f"{type(value).__name__} {value!r:.80}."
            )
        name = "" if value is None else label_name(value)
        return None if name.lower() in ("", "nan") else name

    def labels_of(row: int, value: object) -> RowLabels:
        if isinstance(value, list | tuple) and not any(isinstance(label, list | tuple) for label in value):
            return [name_of(row, label) for label in value]
        return name_of(row, value)

    cells = _parse_lists(values, column, source) if allow_lists_in_text else values
    return [labels_of(row, value) for row, value in enumerate(cells)]


def _parse_lists(values: Sequence[object], column: str, source: str) -> list[object]:
    """Parses texts that are written as lists of labels, unlike names in brackets such as [OTHER]."""
    inside = [LIST.fullmatch(value) if isinstance(value, str) else None for value in values]
    if not any(match and (not match[1].strip() or set(match[1]) & set(",'\"")) for match in inside):
        return list(values)
    lists = [_parse_list(str(value)) if match else value for value, match in zip(values, inside, strict=True)]
    for row, value in enumerate(lists):
        if values[row] is not None and (value is None or (isinstance(value, str) and value.strip())):
            raise ValueError(
                f"{source}: {format_rows([row])}: column {column!r} holds lists written as text, but "
                f"{values[row]!r:.80} is not one; write {LISTS_OF_LABELS}."
            )
    return lists


@cache
def _parse_list(text: str) -> list[str] | None:
    """Parses a list of texts in the syntax of JSON or Python; returns `None` for anything else."""
    try:
        value = yaml.load(text, yaml.BaseLoader)  # creates only texts, lists and dictionaries
    except (yaml.YAMLError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(label, str) for label in value) else None


def class_label_of(data: Dataset, column: str) -> ClassLabel | None:
    """Returns the feature of a column whose labels are stored as numbers; `None` for other columns."""
    feature = data.features[column]
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, ClassLabel) else None


def split_labels(cell: object, separator: str) -> object:
    """Splits the labels of a cell; `[]`, as without a separator, and a cell with only the separator have no labels, an
    empty cell is missing.

    Example:

    ```python
    >>> split_labels("late; lost", ";"), split_labels("[]", ";"), split_labels(";", ";"), split_labels("", ";")
    (['late', 'lost'], [], [], None)

    ```
    """
    if isinstance(cell, list | tuple | dict | bytes) or cell is None:
        return cell
    parts = [part.strip() for part in str(cell).split(separator)]
    if NO_LABELS.fullmatch(str(cell)):
        return []
    return None if parts == [""] else [part for part in parts if part]


def label_cells(data: Dataset, column: str, separator: str | None = None) -> list[object]:
    """Returns the labels of a column, by name if they are numbers of a `ClassLabel`.

    −1, the number of hidden test labels in data sets of the Hub, becomes `None`.

    Args:
        data: the rows.
        column: column of the labels.
        separator: separator of several labels in one cell, if any.

    Example:

    ```python
    >>> from datasets import ClassLabel, Dataset, Features
    >>> features = Features({"label": ClassLabel(names=["late", "lost"])})
    >>> label_cells(Dataset.from_dict({"label": [1, 0, -1]}, features=features), "label")
    ['lost', 'late', None]

    ```
    """
    feature = class_label_of(data, column)
    if feature is None:
        return [cell if separator is None else split_labels(cell, separator) for cell in data[column]]

    def name_of(value: int | list[int] | None) -> object:
        if isinstance(value, list):
            return [name_of(number) for number in value]
        return None if value is None or value < 0 else feature.int2str(value)

    return [name_of(value) for value in data[column]]


def check_no_label_missing(labels: Sequence[RowLabels], column: str, source: str, may_have_none: bool = False) -> None:
    """Refuses rows without a label.

    Args:
        labels: labels of the rows.
        column: their column, for messages.
        source: data set, for messages.
        may_have_none: whether a text may have none of the labels, which is then an empty list.

    Raises:
        ValueError: a label is `None`; the message names the rows.
    """
    missing = [i for i, value in enumerate(labels) if value is None or (isinstance(value, list) and None in value)]
    if missing:
        raise ValueError(
            f"{source}: the label is missing in column {column!r}, {format_rows(missing)}; fill or drop them "
            f"(filter the file){may_have_none * '; write [] where a text has none of the labels'}."
        )
