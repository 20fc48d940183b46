"""Files of rows: CSV, TSV, JSON, JSON lines and parquet."""

import json
import re
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException, parquet

from .csv_files import read_csv
from .text_files import DEFAULT_FORMAT, TextFormat, read_text

WHITESPACE = re.compile(r"\s*")


def read_file(file: str | Path, text_format: TextFormat = DEFAULT_FORMAT) -> Dataset:
    """Reads a CSV, TSV, JSON, JSON-lines or parquet file.

    Cells of CSV and TSV files are kept as text, `007`, `NA` and `None` too.

    Args:
        file: path of the file; its suffix decides how it is read.
        text_format: separator and encoding, which parquet files do not need.

    Returns:
        The rows.

    Raises:
        ValueError: the file is missing, empty, a folder, of an unknown type or cannot be read.

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
    if path.is_dir():
        raise ValueError(f"{file}: this is a folder; name a file in it.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{file}: unknown type of file; use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise ValueError(f"{file}: there is no such file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{file}: the file is empty.")
    data = reader(path, text_format)
    if len(data) == 0:
        raise ValueError(f"{file}: the file has no rows.")
    return data


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
    """Returns, in one line, the message of the first exception of a chain (`datasets` gives no other reason)."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _read_json(path: Path, text_format: TextFormat) -> Dataset:
    """Reads a sequence of objects, usually one per line, or one list of objects or texts."""
    rows = list(_json_values(path, read_text(path, text_format)))
    if len(rows) == 1 and isinstance(rows[0], list):
        rows = [{"text": row} if isinstance(row, str) else row for row in rows[0]]
    if len(rows) == 1 and _holds_columns(rows[0]):
        raise ValueError(
            f"{path}: the file holds one object of columns; write one object a row, as pandas does by "
            "`df.to_json(file, orient='records', lines=True)`."
        )
    wrong = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ValueError(f'{path}: row {wrong + 1} must be an object such as {{"text": "…"}}, got {rows[wrong]!r:.80}.')
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return _dataset_of({name: [row.get(name) for row in rows] for name in names})
    except UnicodeEncodeError:
        check_is_text(rows, str(path))
        raise
    except ArrowException as error:
        raise ValueError(f"{path}: cannot be read as json ({root_cause(error)}).") from error


def _holds_columns(value: object) -> bool:
    """Whether an object holds all rows of a table, each column an object by number of the row, as pandas writes them by
    default, instead of one row."""
    columns = list(value.values()) if isinstance(value, dict) else []
    by_number = all(isinstance(column, dict) and column for column in columns)
    return bool(columns) and by_number and all(number.isdecimal() for column in columns for number in column)


def _dataset_of(columns: dict[str, list[Any]]) -> Dataset:
    """Returns the rows of columns; cells of a column that holds several kinds are kept as they are.

    Such a column is stored as JSON, in which `datasets` takes a text that reads as JSON for the value: each is encoded.
    """
    data = Dataset.from_dict(columns, on_mixed_types="use_json")
    mixed = [
        name
        for name, cells in columns.items()
        if _holds_json(data.features[name]) or {bool, float} <= set(map(type, cells))
    ]
    if not mixed:
        return data
    encoded = {name: [_encode_cell(cell) for cell in columns[name]] for name in mixed}
    features = Features({**data.features, **{name: Json() for name in mixed}})
    return Dataset.from_dict({**columns, **encoded}, features=features)


def _holds_json(feature: Any) -> bool:
    """Whether `datasets` stores a column, or a part of its cells, as JSON."""
    if isinstance(feature, dict):
        return any(map(_holds_json, feature.values()))
    return isinstance(feature, Json) or _holds_json(getattr(feature, "feature", {}))


def _encode_cell(cell: object) -> str | None:
    return None if cell is None else json.dumps(cell, ensure_ascii=False)


def check_is_text(rows: Sequence[Any], source: str, first: int = 0) -> None:
    """Refuses rows that hold half of a surrogate pair, which no file of text can.

    Args:
        rows: rows, or examples of them.
        source: where they come from, for the message.
        first: number of the first row, counted from 0.

    Raises:
        ValueError: one does; the message names it.
    """
    for number, row in enumerate(rows, first):
        try:
            json.dumps(row, ensure_ascii=False, default=lambda _: None).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{source}: {format_rows([number])} holds half of a surrogate pair, which is not text; correct the row."
            ) from error


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


def _read_parquet(path: Path, text_format: TextFormat) -> Dataset:
    try:
        parquet.read_schema(path)  # `datasets` would also print the error
        return load_dataset("parquet", data_files=escape(str(path)), split="train")
    except (ArrowException, DatasetGenerationError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as parquet ({root_cause(error)}).") from error


READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
