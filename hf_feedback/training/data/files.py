"""Files of rows: CSV, TSV, JSON, JSON lines and parquet."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from glob import escape
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException, parquet

QUOTED_CELL = re.compile(r'"([^"]|"")*"')
FIRST_LINE = re.compile(r"[\r\n]*([^\r\n]*)")
WHITESPACE = re.compile(r"\s*")


def read_file(file: str | Path) -> Dataset:
    """Reads a CSV, TSV, JSON, JSON-lines or parquet file.

    Cells of CSV and TSV files are kept as text, `007`, `NA` and `None` too.

    Args:
        file: path of the file; its suffix decides how it is read.

    Returns:
        The rows.

    Raises:
        ValueError: the file is missing, empty, of an unknown type or cannot be read.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "train.csv"
    >>> _ = file.write_text("text,label\\nwhere is my parcel?,007\\n")
    >>> read_file(file)[0]
    {'text': 'where is my parcel?', 'label': '007'}

    ```
    """
    path = Path(file)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{file}: unknown type of file; use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{file}: the file is empty.")
    data = reader(path)
    if len(data) == 0:
        raise ValueError(f"{file}: the file has no rows.")
    return data


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        ValueError: the file is not UTF-8; the message names the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def format_rows(indices: Sequence[int]) -> str:
    """Names rows in a message, counted from 1 without the header.

    Example:

    ```python
    >>> format_rows([2]), format_rows(range(9))
    ('row 3', 'rows 1, 2, 3, 4, 5, …')

    ```
    """
    shown = ", ".join(str(i + 1) for i in indices[:5])
    return f"row {shown}" if len(indices) == 1 else f"rows {shown}{', …' if len(indices) > 5 else ''}"


def root_cause(error: BaseException) -> str:
    """Returns, in one line, the message of the exception at the start of a chain (`datasets` gives no other reason)."""
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


def _parse_csv(path: Path, text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> list[list[str]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} cannot be read as csv ({error}).") from error


def _parse_tsv(path: Path, text: str, delimiter: str) -> list[list[str]]:
    """Reads quotes as part of the text, as in tweets, unless every cell with a quote is quoted as a whole."""
    plain = _parse_csv(path, text, delimiter, csv.QUOTE_NONE)
    with_quotes = [cell for row in plain for cell in row if '"' in cell]
    if _is_even(plain) and not (with_quotes and all(map(QUOTED_CELL.fullmatch, with_quotes))):
        return plain
    try:
        unquoted = _parse_csv(path, text, delimiter)
    except ValueError:
        return plain
    return unquoted if _is_even(unquoted) else plain


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    return len({len(row) for row in rows}) <= 1


def _read_json(path: Path) -> Dataset:
    """Reads objects one after the other, usually one a line, or one list of objects or texts."""
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
    position = WHITESPACE.match(text).end()  # type: ignore[union-attr]  # matches anything
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: cannot be read as json ({error}).") from error
        except RecursionError as error:
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"{path}: cannot be read as json (line {line} is nested too deeply).") from error
        yield value
        position = WHITESPACE.match(text, position).end()  # type: ignore[union-attr]


def _read_parquet(path: Path) -> Dataset:
    try:
        parquet.read_schema(path)  # `datasets` would also print what is wrong with the file
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
