"""Streaming of files row by row."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from pyarrow import ArrowException, parquet

from .csv_files import delimiter_of, quoting_of, read_cells
from .files import format_rows, root_cause
from .splits import Row
from .text_files import DEFAULT_FORMAT, TextFormat, decoding_error

ROWS_FOR_QUOTES = 10_000  # as many rows decide what quotes are in a TSV file


def stream_rows(file: str, text_format: TextFormat = DEFAULT_FORMAT) -> Iterator[Row]:
    """Streams a .txt file with one text per line, or a JSON-lines, CSV, TSV or parquet file, row by row.

    All but parquet may be compressed (.csv.gz). Cells of CSV and TSV files are kept as text. What quotes are in a TSV
    file (`quoting_of`) is decided by its first 10,000 rows, and by all where `read_file` reads it. Empty lines are
    skipped.

    Args:
        file: path of the file; its suffix decides how it is read.
        text_format: separator and encoding, which parquet files do not need.

    Raises:
        ValueError: the file is missing, of another type, or cannot be read; the message names the row.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "train.txt"
    >>> _ = file.write_text("where is my parcel?\\n\\nit is late\\n")
    >>> list(stream_rows(str(file)))
    [{'text': 'where is my parcel?'}, {'text': 'it is late'}]

    ```
    """
    path = Path(file)
    reader = READERS.get(file_type(path))
    if reader is None:
        raise ValueError(f"`streaming`: {file} must end in one of {', '.join(READERS)}; convert it.")
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    count = 0
    try:
        for row in reader(path, text_format):
            count += 1
            yield row
    except (ArrowException, OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        if isinstance(error, UnicodeDecodeError) and not is_compressed(path):
            raise decoding_error(path, text_format) from error
        raise ValueError(f"{file}: {format_rows([count])} cannot be read ({root_cause(error)}).") from error


def stream_standard_input(text_format: TextFormat = DEFAULT_FORMAT) -> Iterator[Row]:
    """Streams standard input row by row: JSON objects if the first line is one, else one text per line.

    Args:
        text_format: its encoding.

    Raises:
        ValueError: a line cannot be read; the message names the row.
    """
    count = 0
    try:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding=text_format.codec)  # not that of the locale
        lines = (line for line in sys.stdin if line.strip())
        first = next(lines, "")
        read = _json_rows if first.lstrip().startswith("{") else text_rows
        for row in read(line for part in ([first] if first else [], lines) for line in part):
            count += 1
            yield row
    except ValueError as error:
        advice = "; name its encoding (`--encoding`)" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(
            f"standard input: {format_rows([count])} cannot be read ({root_cause(error)}){advice}."
        ) from error


def is_compressed(path: Path) -> bool:
    """Whether the name of a file says that it is compressed by gzip."""
    return path.suffix.lower() == ".gz"


def file_type(path: Path) -> str:
    """Returns the ending that determines the type of a file: `.csv` of `texts.csv.gz`."""
    return Path(path.stem if is_compressed(path) else path).suffix.lower()


def open_text(path: Path, text_format: TextFormat, newline: str | None = None) -> TextIO:
    """Opens a text file that may be compressed."""
    if is_compressed(path):
        return gzip.open(path, "rt", encoding=text_format.codec, newline=newline)
    return path.open(encoding=text_format.codec, newline=newline)


def text_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Returns a row for each line with words."""
    return ({"text": line.rstrip("\n")} for line in lines if line.strip())


def _json_rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f'it must be an object such as {{"text": "…"}}, got {row!r:.80}')
            yield row


def _stream_lines(path: Path, text_format: TextFormat) -> Iterator[Row]:
    with open_text(path, text_format) as lines:
        yield from text_rows(lines)


def _stream_json(path: Path, text_format: TextFormat) -> Iterator[Row]:
    with open_text(path, text_format) as lines:
        yield from _json_rows(lines)


def _lines(path: Path, text_format: TextFormat) -> Iterator[str]:
    with open_text(path, text_format, newline="") as lines:
        yield from lines


def _undamaged_lines(path: Path, text_format: TextFormat) -> Iterator[str]:
    """The lines up to one that cannot be read, which is reported where the rows are read."""
    with suppress(OSError, EOFError, UnicodeDecodeError, zlib.error):
        yield from _lines(path, text_format)


def _stream_csv(path: Path, text_format: TextFormat) -> Iterator[Row]:
    read_lines, is_tsv = partial(_lines, path, text_format), file_type(path) == ".tsv"
    header = next((line for line in read_lines() if line.strip("\r\n")), "")
    delimiter = text_format.delimiter or delimiter_of(header, "\t" if is_tsv else ",")
    undamaged = partial(_undamaged_lines, path, text_format)
    quoting = quoting_of(undamaged, delimiter, ROWS_FOR_QUOTES) if is_tsv else csv.QUOTE_MINIMAL
    rows = (cells for cells in read_cells(read_lines(), delimiter, quoting) if cells)
    names: list[str] = next(rows, [])
    if len(set(names)) < len(names):
        raise ValueError(f"the header names a column twice: {', '.join(names)}; rename one")
    for cells in rows:
        if len(cells) != len(names):
            raise ValueError(f"the number of its cells differs from that of the header, {len(names)}")
        yield dict(zip(names, cells, strict=True))


def _stream_parquet(path: Path, text_format: TextFormat) -> Iterator[Row]:
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
        yield from batch.to_pylist()


READERS: dict[str, Callable[[Path, TextFormat], Iterator[Row]]] = {
    ".txt": _stream_lines,
    ".jsonl": _stream_json,
    ".csv": _stream_csv,
    ".tsv": _stream_csv,
    ".parquet": _stream_parquet,
}
