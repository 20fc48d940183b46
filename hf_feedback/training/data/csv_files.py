"""CSV and TSV files as rows of cells; messages name the line."""

import csv
import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Literal, NamedTuple

from datasets import Dataset

from .text_files import TextFormat, read_text

QUOTED_CELL = re.compile(r'"([^"]|"")*"')
FIRST_LINE = re.compile(r"[\r\n]*([^\r\n]*)")
LONGEST_CELL = 2**31 - 1


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
    parse = _parse_tsv if is_tsv else _parse_csv
    header, *rows = parse(path, text, delimiter) or [CsvRow(1, [])]
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


def _parse_csv(path: Path, text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> list[CsvRow]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
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


def _parse_tsv(path: Path, text: str, delimiter: str) -> list[CsvRow]:
    """Reads quotes as part of the text, as in tweets, unless every cell with a quote is quoted as a whole."""
    plain = _parse_csv(path, text, delimiter, csv.QUOTE_NONE)
    with_quotes = [cell for row in plain for cell in row.cells if '"' in cell]
    if _is_even(plain) and not (with_quotes and all(map(QUOTED_CELL.fullmatch, with_quotes))):
        return plain
    try:
        unquoted = _parse_csv(path, text, delimiter)
    except ValueError:
        return plain
    return unquoted if _is_even(unquoted) else plain


def _is_even(rows: Sequence[CsvRow]) -> bool:
    return len({len(row.cells) for row in rows}) <= 1
