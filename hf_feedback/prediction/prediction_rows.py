"""Rows to predict for: those of a file, a folder of files, standard input, or texts."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from ..training.data.files import read_file
from ..training.data.splits import Row
from ..training.data.streams import READERS, file_type, stream_rows, stream_standard_input
from ..training.data.text_files import DEFAULT_FORMAT, TextFormat
from ..training.resuming.checkpoints import Record

logger = logging.get_logger(__name__)
STANDARD_INPUT = "-"
COMMAND_LINE = "`--text`"  # source of texts that are given as options
LIST_TYPE = ".json"


@dataclass(frozen=True)
class PredictionRows:
    """The rows to predict for: those of a file, a folder of files, standard input, or texts.

    Args:
        file: file of rows, `-` for standard input, or a folder of images or recordings.
        texts: texts, instead of a file.
        text_pairs: second texts, for pairs.
        text_format: separator and encoding of the file.

    Raises:
        ValueError: file and texts are both given or both missing, the number of second texts differs, or the file is
            missing or of another type.
    """

    file: str | None = None
    texts: list[str] | None = None
    text_pairs: list[str] | None = None
    text_format: TextFormat = DEFAULT_FORMAT

    def __post_init__(self) -> None:
        if (self.file is None) == (self.texts is None):
            raise ValueError("Give either `--file` (`-` is standard input) or `--text`.")
        if self.text_pairs is not None and len(self.text_pairs) != len(self.texts or ()):
            raise ValueError(
                f"`text_pair` must be as many texts as `text`, {len(self.texts or ())}, got {len(self.text_pairs)}."
            )
        if self.file is None or self.file == STANDARD_INPUT or Path(self.file).is_dir():
            return
        if not self._is_list and file_type(Path(self.file)) not in READERS:
            known = ", ".join((*READERS, LIST_TYPE))
            raise ValueError(f"{self.file}: unknown type of file; use one of {known}, or one with .gz.")
        if not Path(self.file).is_file():
            raise ValueError(f"{self.file}: there is no such file.")
        if Path(self.file).stat().st_size == 0:
            raise ValueError(f"{self.file}: the file is empty.")

    @property
    def _is_list(self) -> bool:
        """Whether the file is one JSON list, which is read at once."""
        return self.file is not None and Path(self.file).suffix.lower() == LIST_TYPE

    @property
    def source(self) -> str:
        """The source of the rows, for messages."""
        if self.file is None:
            return COMMAND_LINE
        return "standard input" if self.file == STANDARD_INPUT else self.file

    def __iter__(self) -> Iterator[Row]:
        if self.texts is not None:
            pairs = [{}] * len(self.texts) if self.text_pairs is None else [{"text_pair": t} for t in self.text_pairs]
            return ({"text": text, **pair} for text, pair in zip(self.texts, pairs, strict=True))
        if self._is_list:
            return iter(read_file(str(self.file), self.text_format))
        return (
            stream_standard_input(self.text_format)
            if self.file == STANDARD_INPUT
            else stream_rows(str(self.file), self.text_format)
        )

    def files_of_folder(self, column: str, extensions: Collection[str]) -> Iterator[Row] | None:
        """Returns a row for each file of a folder, in order, with its path in a column; `None` if it is not a folder.

        Args:
            column: name of the column.
            extensions: those of the files that are wanted; others are left out with a warning, unless there are only
                others.
        """
        folder = Path(str(self.file))
        if self.file in (None, STANDARD_INPUT) or not folder.is_dir():
            return None
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        wanted = [file for file in files if file.suffix.lower() in extensions] or files
        if others := [file.name for file in files if file not in {*wanted}]:
            logger.warning(f"{folder}: {len(others)} other files are left out, such as {others[0]}.")
        return ({column: str(file.relative_to(folder.parent))} for file in wanted)

    def fingerprint(self) -> Record | None:
        """Returns a fingerprint of the rows; `None` if they cannot be read a second time."""
        if self.file is None or self.file == STANDARD_INPUT or Path(self.file).is_dir():
            return None
        with Path(self.file).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"file": digest, "delimiter": self.text_format.delimiter, "encoding": self.text_format.encoding}
