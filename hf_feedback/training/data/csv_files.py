"""CSV and TSV files as rows of cells; messages name the line."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from datasets import Dataset

from .text_files import TextFormat, read_text

if TYPE_CHECKING:
    from _csv import Reader

QUOTED_CELL = re.compile(r'"([^"]|"")*"')
FIRST_LINE = re.compile(r"[\r\n]*([^\r\n]*)")
LONGEST_CELL = 2**31 - 1

Quoting: TypeAlias = Literal[0, 3]
"""Whether quotes enclose cells (`csv.QUOTE_MINIMAL`) or are part of them (`csv.QUOTE_NONE`)."""


class CsvRow(NamedTuple):
    """The cells of a row, and the line of the file that it begins in."""

    line: int
    cells: list[str]


def read_csv(path: Path, text_format: TextFormat) -> Dataset:
    """Reads a CSV or TSV file with a header; cells are kept as text, empty lines are skipped.

    Args:
        path: the file.
        text_format: separator and encoding of the file.

    Raises:
        ValueError: the file cannot be decoded, a quote is not closed, the header names a column twice, or a row has
            more or fewer cells than the header; the message names the line.
    """
    text, is_tsv = read_text(path, text_format), path.suffix.lower() == ".tsv"
    delimiter = text_format.delimiter or delimiter_of(text, "\t" if is_tsv else ",")
    quoting = quoting_of(lambda: StringIO(text, newline=""), delimiter) if is_tsv else csv.QUOTE_MINIMAL
    header, *rows = _parse(path, text, delimiter, quoting) or [CsvRow(1, [])]
    names = header.cells
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the header names a column twice: {', '.join(names)}; rename one.")
    wrong = next((i for i, row in enumerate(rows) if len(row.cells) != len(names)), None)
    if wrong is not None:
        raise ValueError(_describe_uneven_row(path, wrong, rows[wrong], names, delimiter))
    return Dataset.from_dict({name: [row.cells[i] for row in rows] for i, name in enumerate(names)})


def delimiter_of(text: str, usual: str) -> str:
    """Returns the separator found in the header, or else the usual one."""
    header = FIRST_LINE.match(text)[1]  # type: ignore[index]  # matches anything
    return next((mark for mark in (usual, ";", "\t", ",") if mark in header), usual)


def _describe_uneven_row(path: Path, index: int, row: CsvRow, names: Sequence[str], delimiter: str) -> str:
    if len(row.cells) > len(names):
        advice = f"quote texts that hold the separator {delimiter!r}, or name another with `--delimiter`"
    else:
        missing = ", ".join(names[len(row.cells) :])
        advice = f"it has none for {missing:.80}; quote texts that hold the separator {delimiter!r}"
    return (
        f"{path}: row {index + 1} has {len(row.cells)} cells, the header has {len(names)} (line {row.line} of the "
        f"file); {advice}."
    )


def read_cells(lines: Iterable[str], delimiter: str, quoting: Quoting = csv.QUOTE_MINIMAL) -> "Reader":
    """Returns a reader of the rows in the lines of a file, which have their own ends.

    Args:
        lines: the lines.
        delimiter: what separates cells.
        quoting: whether quotes enclose cells.
    """
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def quoting_of(read_lines: Callable[[], Iterable[str]], delimiter: str, max_rows: int | None = None) -> Quoting:
    """Finds out what quotes are in a TSV file.

    They enclose cells if every cell with a quote is quoted as a whole, or if only then all rows have as many cells as
    the header; otherwise they are part of the text, as in tweets.

    Args:
        read_lines: returns the lines of the file, which is read twice at most.
        delimiter: what separates cells.
        max_rows: number of rows, the first ones, that decide; all by default.

    Example:

    ```python
    >>> lines = ["text\\tlabel\\n", '"so he said\\tx\\n']
    >>> quoting_of(lambda: lines, "\\t") == csv.QUOTE_NONE
    True

    ```
    """
    widths, whole = set(), set()
    try:
        for cells in islice(read_cells(read_lines(), delimiter, csv.QUOTE_NONE), max_rows):
            widths |= {len(cells)} if cells else set()
            whole |= {QUOTED_CELL.fullmatch(cell) is not None for cell in cells if '"' in cell}
        if len(widths) > 1 or whole == {True}:
            widths = {len(cells) for cells in islice(read_cells(read_lines(), delimiter), max_rows) if cells}
            return csv.QUOTE_MINIMAL if len(widths) == 1 else csv.QUOTE_NONE
    except csv.Error:  # whoever reads the cells meets it again
        pass
    return csv.QUOTE_NONE


def _parse(path: Path, text: str, delimiter: str, quoting: Quoting) -> list[CsvRow]:
    reader = read_cells(StringIO(text, newline=""), delimiter, quoting)
    rows, begin = [], 1
    try:
        for cells in reader:
            if cells:
                rows.append(CsvRow(begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        is_open = "unexpected end of data" in str(error)
        reason = "a quote in it is not closed" if is_open else str(error)
        begins = "" if is_open or begin == reader.line_num else f", in the row that begins in line {begin}"
        line = begin if is_open else reader.line_num
        raise ValueError(f"{path}: line {line} cannot be read as csv ({reason}{begins}).") from error
    return rows
