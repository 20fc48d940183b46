"""Duplicate rows of a data set."""

from collections.abc import Hashable, Iterable

from transformers.utils import logging

from .files import format_rows
from .splits import Split

logger = logging.get_logger(__name__)

ID_NAMES = ("id", "idx", "guid", "uid", "uuid", "example_id")


def repeated_rows(values: Iterable[Hashable]) -> list[int]:
    """Returns the rows, counted from 0, whose value repeats that of an earlier row.

    Example:

    ```python
    >>> repeated_rows(["a", "b", "a", "a"])
    [2, 3]

    ```
    """
    first: dict[Hashable, int] = {}
    return [row for row, value in enumerate(values) if first.setdefault(value, row) != row]


def warn_of_repeated_ids(split: Split) -> None:
    """Warns about rows with the id of an earlier row, which usually means that data were joined twice."""
    column = next((name for name in split.data.column_names if name.strip().lower() in ID_NAMES), None)
    if column is None:
        return
    ids = {row: str(cell) for row, cell in enumerate(split.data[column]) if cell not in (None, "")}
    rows = [list(ids)[i] for i in repeated_rows(ids.values())]
    if rows:
        logger.warning(
            f"{split.source}: column {column!r} repeats an id in {format_rows(split.rows_of(rows))} ({len(rows)} of "
            f"{len(split.data)}), first {ids[rows[0]]!r:.40}; all rows are used, remove those that are there twice."
        )
