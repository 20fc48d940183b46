"""Files of predictions: JSON lines, CSV or TSV by their ending, written in chunks, and resumed after an interruption.

An incomplete file is named `NAME.partial`; `NAME.partial.json` records the settings that its rows depend on, and the
number of complete ones. The same command resumes after them; another model, file or option is refused.
"""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..training.data.splits import Row
from ..training.output_folder import check_writable
from ..training.resuming.checkpoints import Record
from ..training.resuming.run_record import describe_differences
from ..whole_files import finite

logger = logging.get_logger(__name__)

STANDARD_OUTPUT = "-"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_FORMATS = (".xlsx", ".xls", ".ods", ".parquet", ".arrow")  # which are not written


def merge_row(row: Row, answer: Row) -> Row:
    """Merges a row and its prediction; a column with the name of a part of the prediction becomes `given_…`, or
    `given_given_…` if the row has that one too.

    Example:

    ```python
    >>> merge_row({"id": 7, "label": "late"}, {"label": "lost"})
    {'id': 7, 'given_label': 'late', 'label': 'lost'}

    ```
    """
    kept: Row = {}
    for name, value in row.items():
        if name in answer:
            while name in answer or name in row or name in kept:
                name = f"given_{name}"
        kept[name] = value
    return {**kept, **answer}


def check_other_file(output: str, source: str | None, option: str = "output") -> None:
    """Refuses to overwrite the file that is read.

    Args:
        output: the file to write.
        source: the file that is read, if it is one.
        option: name of the option of `output`.

    Raises:
        ValueError: they are the same.
    """
    if source is not None and Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
        raise ValueError(f"`{option}`: {output} is the input file itself; name another.")


class RowWriter:
    """Formats rows as lines.

    Args:
        output: name of the file; its ending determines the format.
        columns: columns of a CSV file that is resumed.
    """

    def __init__(self, output: str, columns: Sequence[str] | None = None) -> None:
        self.delimiter = DELIMITERS.get(Path(output).suffix.lower())
        self.columns = columns

    def format(self, rows: Sequence[Row]) -> str:
        """Returns complete lines. A CSV file has the columns of the first chunk; others are left out with a warning."""
        if self.delimiter is None:
            return "".join(f"{_as_json(row)}\n" for row in rows)
        text, flat = StringIO(newline=""), [_flatten(row) for row in rows]
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator="\n")
        if self.columns is None and flat:
            self.columns = list(dict.fromkeys(name for row in flat for name in row))
            writer.writerow(self.columns)
        columns = self.columns or ()
        if unknown := {name: None for row in flat for name in row if name not in columns}:
            logger.warning_once(
                f"`output`: {', '.join(unknown)} of later rows are not columns of the first ones and are left out; "
                "write JSON lines (.jsonl) to have all."
            )
        writer.writerows([row.get(name) for name in columns] for row in flat)
        return text.getvalue()


def _as_json(row: Row) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        logger.warning_once(
            "`output`: JSON has no NaN and no Infinity, which are written as null. Answers are NaN where the weights "
            "of the model are not finite, or its iterations diverge."
        )
        return json.dumps(finite(row), ensure_ascii=False, default=str)


def _flatten(row: Row) -> Row:
    """A column for each probability, and JSON for other lists."""
    probabilities = row.get("probabilities")
    columns = (
        {f"probability_{label}": value for label, value in probabilities.items()}
        if isinstance(probabilities, dict)
        else {}
    )
    cells = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in row.items()
        if not (columns and name == "probabilities")
    }
    return merge_row(cells, columns)


class PredictionsFile:
    """A file of predictions.

    Args:
        output: its name; `-` is standard output.
        force: whether to overwrite an existing file, and to start an incomplete one again.
        source: the input file, which is never overwritten.

    Raises:
        ValueError: the file exists, is a folder or cannot be written.
    """

    def __init__(self, output: str, force: bool = False, source: str | None = None) -> None:
        self.output, self.force, self.path = output, force, Path(output)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.record_file = self.path.with_name(f"{self.path.name}.partial.json")
        self.writer, self.num_rows = RowWriter(output), 0
        self.record: Record | None = None
        self.stream: Any = None
        if output != STANDARD_OUTPUT:
            self._check(source)

    def _check(self, source: str | None) -> None:
        check_writable(str(self.path.parent), "output")
        if self.path.is_dir():
            raise ValueError(f"`output`: {self.output} is a folder; name a file.")
        if self.path.suffix.lower() == ".gz":
            raise ValueError(f"`output`: {self.output} would be compressed, which is not supported; leave .gz out.")
        if self.path.suffix.lower() in OTHER_FORMATS:
            raise ValueError(
                f"`output`: {self.output} would hold JSON lines; name it .jsonl, or .csv or .tsv for those."
            )
        check_other_file(self.output, source)
        if self.path.exists() and not self.force:
            raise ValueError(f"`output`: {self.output} already exists; name another, or overwrite it (`--force`).")

    @contextmanager
    def opened(self, record: Record | None) -> Iterator["PredictionsFile"]:
        """Context that opens the file, and renames it when the block ends without an error.

        Args:
            record: settings that the rows depend on; `None` if the input cannot be read a second time.

        Raises:
            ValueError: an incomplete file was written with other settings.
        """
        if self.output == STANDARD_OUTPUT:
            self.stream = sys.stdout
            yield self
            return
        self.record = record
        self._resume()
        try:
            with self.partial.open("ab") as self.stream:
                yield self
        except BaseException:
            if self.record is None or self.num_rows == 0:  # nothing to resume
                self.partial.unlink(missing_ok=True)
            raise
        self.partial.replace(self.path)
        self.record_file.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Truncates an incomplete file after its last complete row, or removes it."""
        begun = None if self.force or self.record is None else self._read_record()
        if begun is None:
            if not self.force and self.partial.is_file() and self._read_record() is not None:
                raise ValueError(
                    f"`output`: {self.partial} has the first rows of a run that was stopped, and these rows cannot go "
                    "on with it; name another file, or start again (`--force`)."
                )
            self.partial.unlink(missing_ok=True)
            self.record_file.unlink(missing_ok=True)
            return
        differences = describe_differences(begun["record"], self.record or {})
        if differences:
            raise ValueError(
                f"`output`: {self.partial} was written with other settings ({'; '.join(differences.values())}); use "
                "the same, or start again (`--force`)."
            )
        os.truncate(self.partial, begun["bytes"])
        self.num_rows = begun["rows"]
        self.writer.columns = begun["columns"]

    def _read_record(self) -> dict[str, Any] | None:
        """The record of an incomplete file; `None` if there is none to resume."""
        try:
            begun = json.loads(self.record_file.read_text(encoding="utf-8"))
            return begun if self.partial.stat().st_size >= begun["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, rows: Sequence[Row]) -> None:
        """Writes rows, and records that they are complete."""
        text = self.writer.format(rows)
        self.num_rows += len(rows)
        if self.output == STANDARD_OUTPUT:
            self.stream.write(text)
            self.stream.flush()
            return
        self.stream.write(text.encode("utf-8", "surrogatepass"))
        self.stream.flush()
        if self.record is not None:
            begun = {
                "rows": self.num_rows,
                "bytes": self.stream.tell(),
                "columns": self.writer.columns,
                "record": self.record,
            }
            new = self.record_file.with_suffix(".new")
            new.write_text(json.dumps(begun), encoding="utf-8")
            new.replace(self.record_file)
