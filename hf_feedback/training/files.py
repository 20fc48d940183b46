"""Files of rows: CSV, TSV, JSON and parquet."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from glob import escape
from io import StringIO
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException, parquet

QUOTED = re.compile(r'"([^"]|"")*"')  # a whole cell in quotes, those inside doubled
FIRST_LINE = re.compile(r"[\r\n]*([^\r\n]*)")
SPACE = re.compile(r"\s*")


def read_file(file: str | Path) -> Dataset:
    """Reads a CSV, TSV, JSON, JSON-lines or parquet file. Cells of CSV and TSV stay the text that they are: `007`, `NA`
    and `None` too.

    Raises:
        ValueError: the file is missing, empty, of an unknown kind or cannot be read.
    """
    path = Path(file)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{file}: unknown kind of file; use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{file}: the file is empty.")
    data = read(path)
    if len(data) == 0:
        raise ValueError(f"{file}: the file has no rows.")
    return data


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        ValueError: it is not UTF-8; says in which line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def rows_in_words(indices: Sequence[int]) -> str:
    """Rows counted from 1, the header left out."""
    shown = ", ".join(str(i + 1) for i in indices[:5])
    return f"row {shown}" if len(indices) == 1 else f"rows {shown}{', …' if len(indices) > 5 else ''}"


def root_cause(error: BaseException) -> str:
    """What an error was raised from in the first place, in one line; `datasets` names it nowhere else."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _read_csv(path: Path) -> Dataset:
    text, usual = read_text(path), "\t" if path.suffix.lower() == ".tsv" else ","
    first_line = FIRST_LINE.match(text)[1]  # type: ignore[index]  # matches anything
    delimiter = next((mark for mark in (usual, ";", "\t", ",") if mark in first_line), usual)
    parse = _parse_tsv if usual == "\t" else _parse_csv
    header, *rows = parse(path, text, delimiter) or [[]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: the header names a column twice: {', '.join(header)}; rename one.")
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: row {wrong + 1} has {len(rows[wrong])} cells, the header has {len(header)}; put texts that hold "
            f"the separator {delimiter!r} in quotes."
        )
    return Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(header)})


def _parse_csv(path: Path, text: str, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> list[list[str]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} cannot be read as csv ({error}).") from error


def _parse_tsv(path: Path, text: str, delimiter: str) -> list[list[str]]:
    """Quotes are part of the text, as in tweets, unless every cell that has any stands in quotes as a whole, as pandas
    and spreadsheets write them."""
    plain = _parse_csv(path, text, delimiter, csv.QUOTE_NONE)
    with_quotes = [cell for row in plain for cell in row if '"' in cell]
    if _is_even(plain) and not (with_quotes and all(map(QUOTED.fullmatch, with_quotes))):
        return plain
    try:
        unquoted = _parse_csv(path, text, delimiter)
    except ValueError:
        return plain
    return unquoted if _is_even(unquoted) else plain


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    return len({len(row) for row in rows}) <= 1


def _read_json(path: Path) -> Dataset:
    """Objects one after the other, usually one a line, or a list of them (or of texts)."""
    rows = list(_json_values(path, read_text(path)))
    if len(rows) == 1 and isinstance(rows[0], list):
        rows = [{"text": row} if isinstance(row, str) else row for row in rows[0]]
    wrong = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ValueError(f'{path}: row {wrong + 1} must be an object such as {{"text": "…"}}, got {rows[wrong]!r:.80}.')
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}, on_mixed_types="use_json")
    except (ArrowException, UnicodeEncodeError) as error:
        raise ValueError(f"{path}: cannot be read as json ({root_cause(error)}).") from error


def _json_values(path: Path, text: str) -> Iterator[Any]:
    # Arrow has no whole numbers of more than 64 bits
    decoder = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 19 else digits)
    place = SPACE.match(text).end()  # type: ignore[union-attr]  # matches anything
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: cannot be read as json ({error}).") from error
        except RecursionError as error:
            line = text.count("\n", 0, place) + 1
            raise ValueError(f"{path}: cannot be read as json (line {line} is nested too deeply).") from error
        yield value
        place = SPACE.match(text, place).end()  # type: ignore[union-attr]


def _read_parquet(path: Path) -> Dataset:
    try:
        parquet.read_schema(path)  # `datasets` would print this fault, too
        return load_dataset("parquet", data_files=escape(str(path)), split="train")
    except (ArrowException, DatasetGenerationError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as parquet ({root_cause(error)}).") from error


READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
