"""Files that are read row by row while a model trains, however large they are."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from pyarrow import ArrowException, parquet

from .csv_files import LONGEST_CELL
from .files import format_rows, root_cause
from .splits import Row
from .text_files import DEFAULT_FORMAT, TextFormat, decoding_error


def stream_rows(file: str, text_format: TextFormat = DEFAULT_FORMAT) -> Iterator[Row]:
    """Reads a .txt file of one text a line, or a JSON-lines, CSV, TSV or parquet file, row by row.

    Cells of CSV and TSV files are kept as text; in TSV files quotes are part of it. Empty lines are left out.

    Args:
        file: path of the file; its suffix decides how it is read.
        text_format: separator and encoding; parquet files need none.

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
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"`streaming`: {file} is of another type than {', '.join(READERS)}; convert it.")
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    count = 0
    try:
        for row in reader(path, text_format):
            count += 1
            yield row
    except UnicodeDecodeError as error:
        raise decoding_error(path, text_format) from error
    except (ArrowException, OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file}: {format_rows([count])} cannot be read ({root_cause(error)}).") from error


def _stream_lines(path: Path, text_format: TextFormat) -> Iterator[Row]:
    with path.open(encoding=text_format.codec) as lines:
        yield from ({"text": line.rstrip("\n")} for line in lines if line.strip())


def _stream_json(path: Path, text_format: TextFormat) -> Iterator[Row]:
    with path.open(encoding=text_format.codec) as lines:
        for line in lines:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f'it must be an object such as {{"text": "…"}}, got {row!r:.80}')
                yield row


class TsvDialect(csv.excel_tab):
    """Tabs between cells, quotes as part of them."""

    quoting = csv.QUOTE_NONE


def _stream_csv(path: Path, text_format: TextFormat) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding=text_format.codec, newline="") as lines:
        dialect: type[csv.Dialect] = TsvDialect if path.suffix.lower() == ".tsv" else csv.excel
        delimiter = text_format.delimiter or dialect.delimiter
        rows = csv.DictReader(lines, dialect=dialect, delimiter=delimiter, strict=True)
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"it has not as many cells as the header, {len(rows.fieldnames or ())}")
            yield row


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
