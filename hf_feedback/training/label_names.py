"""The one spelling of labels, whatever kind of file they come from."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from datasets import ClassLabel, Dataset

from .files import rows_in_words

WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
LIST = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)
LISTS_OF_LABELS = 'lists of labels such as ["late", "lost"]'


def label_name(label: Any) -> str:
    """The one spelling of a label, whatever kind of file it comes from: `1` for 1.0 and "1.0", `true` for True.

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
    whole = WHOLE.fullmatch(name)
    return whole[1] if whole else name


def normal_labels(values: Sequence[Any], column: str, source: str, several: bool = True) -> list[Any]:
    """Labels by `label_name`: one a row, or a list of them; a missing one is `None`.

    Args:
        values: the cells of a column.
        column, source: its name and its file, for messages.
        several: whether a text such as "['late', 'lost']" is a list of labels, and not the name of one.

    Raises:
        ValueError: a cell is neither a label nor a list of labels; says which.
    """

    def normal(row: int, value: Any) -> Any:
        if isinstance(value, list | tuple) and not any(isinstance(one, list | tuple) for one in value):
            return [normal(row, one) for one in value]
        if isinstance(value, list | tuple | dict | bytes):
            raise ValueError(
                f"{source}: {rows_in_words([row])}: column {column!r} must hold a label or {LISTS_OF_LABELS}, got "
                f"{type(value).__name__} {value!r:.80}."
            )
        name = "" if value is None else label_name(value)
        return None if name.lower() in ("", "nan") else name

    cells = _lists_in_text(values, column, source) if several else values
    return [normal(row, value) for row, value in enumerate(cells)]


def _lists_in_text(values: Sequence[Any], column: str, source: str) -> list[Any]:
    """Where texts are written as lists of labels, those lists; names in brackets such as [OTHER] are no lists."""
    inside = [LIST.fullmatch(value) if isinstance(value, str) else None for value in values]
    if not any(found and (not found[1].strip() or set(found[1]) & set(",'\"")) for found in inside):
        return list(values)
    lists = [_list_in_text(value) if found else value for value, found in zip(values, inside, strict=True)]
    for row, value in enumerate(lists):
        if values[row] is not None and (value is None or (isinstance(value, str) and value.strip())):
            raise ValueError(
                f"{source}: {rows_in_words([row])}: column {column!r} holds lists written as text, but "
                f"{values[row]!r:.80} is none; write {LISTS_OF_LABELS}."
            )
    return lists


@cache
def _list_in_text(text: str) -> list[str] | None:
    """A list of texts as JSON or Python writes it."""
    try:
        found = yaml.load(text, yaml.BaseLoader)  # makes texts, lists and dictionaries alone
    except (yaml.YAMLError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


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


def refuse_missing(values: Sequence[Any], column: str, source: str) -> None:
    """Raises `ValueError` where one of `normal_labels` is missing."""
    missing = [i for i, value in enumerate(values) if value is None or (isinstance(value, list) and None in value)]
    if missing:
        raise ValueError(
            f"{source}: the label is missing in column {column!r}, {rows_in_words(missing)}; fill or drop them."
        )
