"""Text files: separator, encoding, and errors that name the place of a wrong byte."""

import codecs
from dataclasses import dataclass
from pathlib import Path

from ...validation import option

CHUNK = 2**16  # bytes
TAB_NAMES = ("\\t", "tab")


@dataclass(frozen=True)
class TextFormat:
    """Format of a text file.

    Args:
        delimiter: separator of CSV and TSV files, `\\\\t` or `tab` for a tab; inferred from the header by default.
        encoding: name of the encoding. A byte order mark is skipped.

    Raises:
        ValueError: the delimiter is not one character, or there is no such encoding.

    Example:

    ```python
    >>> TextFormat(encoding="utf-88")
    Traceback (most recent call last):
    ValueError: `encoding`: there is no encoding 'utf-88'; name one such as utf-8, cp1252, latin-1 or utf-16.

    ```
    """

    delimiter: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        delimiter = "\t" if self.delimiter in TAB_NAMES else self.delimiter
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(
                "`delimiter` must be one character such as ; (or \\t for a tab), no quote and no end of line, got "
                f"{delimiter!r:.40}."
            )
        object.__setattr__(self, "delimiter", delimiter)
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"`encoding`: there is no encoding {self.encoding!r:.40}; name one such as utf-8, cp1252, latin-1 or "
                "utf-16."
            ) from error

    @property
    def codec(self) -> str:
        """The encoding for `open`, which skips a byte order mark."""
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding


DEFAULT_FORMAT = TextFormat()


@dataclass(kw_only=True)
class TextFormatArguments:
    """Format of input files."""

    delimiter: str | None = option(
        None, "Separator of CSV and TSV files, \\t for a tab (default: inferred from the header)."
    )
    encoding: str = option("utf-8", "Encoding of CSV, TSV, JSON and text files.")

    @property
    def text_format(self) -> TextFormat:
        """The format of the files.

        Raises:
            ValueError: `delimiter` or `encoding` is not as it must be.
        """
        return TextFormat(self.delimiter, self.encoding)


def read_text(path: Path, text_format: TextFormat = DEFAULT_FORMAT) -> str:
    """Returns the text of a file.

    Args:
        path: the file.
        text_format: its encoding.

    Raises:
        ValueError: the file has another encoding; the message names the line and the byte.
    """
    try:
        text = path.read_bytes().decode(text_format.codec).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise decoding_error(path, text_format) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{path}: line {line} holds a NUL character, as files of another encoding do; name the encoding, such "
            "as `--encoding utf-16`, or remove the character."
        )
    return text


def decoding_error(path: Path, text_format: TextFormat) -> ValueError:
    """Returns the error for a file of another encoding, with the first line and byte that cannot be decoded."""
    decoder, line, size = codecs.getincrementaldecoder(text_format.codec)(), 1, 0
    with path.open("rb") as file:
        chunk = start = file.read(CHUNK)
        while True:
            size += len(chunk)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                before = error.object[: error.start]
                line += before.decode(text_format.codec, "ignore").count("\n")
                byte = size - len(error.object) + error.start + 1
                return ValueError(
                    f"{path}: line {line} is not {text_format.encoding.upper()} (byte {byte} of the file, "
                    f"0x{error.object[error.start]:02x}: {error.reason}); name the encoding of the file, such as "
                    f"`--encoding {_likely_encoding(start, text_format)}`, or save it as UTF-8."
                )
            if not chunk:
                return ValueError(f"{path}: the file changed while it was read; try again.")
            chunk = file.read(CHUNK)


def _likely_encoding(start: bytes, text_format: TextFormat) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "cp1252" if text_format.codec == "utf-8-sig" else "utf-8"
