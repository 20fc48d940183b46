"""Readers that make examples for `model.predict` from the rows of a file, one for each head."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from transformers import PreTrainedConfig

from ..class_predictors import AudioPredictor, ChoicePredictor, ImagePredictor, TagPredictor, TextPredictor
from ..passage_predictors import ContinuationPredictor, MaskPredictor, SpanPredictor
from ..predictor import Predictor
from ..training.data.columns import (
    Columns,
    check_column,
    check_reads_pairs,
    columns_of_plain_texts,
    find_columns,
)
from ..training.data.files import format_rows
from ..training.data.media import MediaCell, read_bytes, read_wave
from ..training.data.splits import Row
from ..training.data.texts import texts_of
from ..training.starting_model.model_arguments import Options
from ..training.tasks.task import Processor
from .prediction_rows import COMMAND_LINE


class ExampleReader(ABC):
    """Makes examples of rows.

    Args:
        config: config of the model.
        processor: its tokenizer, image processor or feature extractor.
        names: names of the columns.
        source: source of the rows, for messages.
        options: the given values of `options_read`.

    Attributes:
        options_read: options of the command that the reader uses.
        num_empty: number of examples without words.
    """

    options_read: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, config: PreTrainedConfig, processor: Processor, names: Sequence[str], source: str, options: Options
    ) -> None:
        self.processor, self.names, self.source, self.options = processor, names, source, options
        self.num_empty = 0
        self.find_columns(config)

    @abstractmethod
    def find_columns(self, config: PreTrainedConfig) -> None:
        """Finds the columns of the examples.

        Raises:
            ValueError: one is missing.
        """

    @abstractmethod
    def read(self, row: Row, number: int) -> Any:
        """Returns the example of a row.

        Args:
            row: the row.
            number: number of the row, counted from 0.

        Raises:
            ValueError: the row holds no such example; the message names it.
        """

    def kept(self, row: Row) -> Row:
        """Returns the part of a row that is written with its prediction."""
        return row

    def text(self, row: Row, column: str, number: int) -> str:
        """Returns the text in a column of a row, empty if it is missing."""
        return texts_of([row.get(column)], column, self.source, [number])[0] or ""

    def fault(self, number: int, what: str) -> ValueError:
        """Returns the error of a row."""
        return ValueError(f"{self.source}: {format_rows([number])}: {what}.")


class TextReader(ExampleReader):
    """Reads texts, or pairs of texts."""

    options_read: ClassVar[tuple[str, ...]] = ("text_column", "text_pair_column", "text_pair")

    def find_columns(self, config: PreTrainedConfig) -> None:
        given = (self.options.get("text_column"), self.options.get("text_pair_column"))
        trained = Columns.of_model(config)
        if self.source == COMMAND_LINE and "text_pair" in self.names:
            check_reads_pairs(trained, "--text-pair")
        if given == (None, None):
            trained = columns_of_plain_texts(self.names, self.source, trained)
        self.columns = find_columns(self.names, self.source, *given, needs_label=False, trained=trained)

    def read(self, row: Row, number: int) -> str | tuple[str, str]:
        first, pair = self.text(row, self.columns.text, number), self.columns.text_pair
        second = "" if pair is None else self.text(row, pair, number)
        self.num_empty += not (first + second).strip()
        return first if pair is None else (first, second)


class PromptReader(TextReader):
    """Reads texts with masks, or prompts."""

    options_read: ClassVar[tuple[str, ...]] = ("text_column",)

    def read(self, row: Row, number: int) -> str:
        text = self.text(row, self.columns.text, number)
        if not text.strip():
            raise self.fault(number, f"`{self.columns.text}` must be a text that has words, got {text!r}")
        return text


class WordReader(ExampleReader):
    """Reads lists of words, or texts that are split."""

    options_read = ("tokens_column", "text_column")

    def find_columns(self, config: PreTrainedConfig) -> None:
        self.tokens = self.options.get("tokens_column", "tokens")
        if "text_column" in self.options or ("tokens_column" not in self.options and self.tokens not in self.names):
            self.tokens = find_columns(self.names, self.source, self.options.get("text_column"), needs_label=False).text
        check_column(self.tokens, self.names, self.source, "--tokens-column")

    def read(self, row: Row, number: int) -> str | list[str]:
        words = row.get(self.tokens)
        if isinstance(words, list):
            if all(isinstance(word, str) for word in words):
                return words
            raise self.fault(number, f"`{self.tokens}` must be a list of words, got {words!r:.80}")
        return self.text(row, self.tokens, number)


class QuestionReader(ExampleReader):
    """Reads questions with their contexts; on the command line, `--text` and `--text-pair`."""

    options_read = ("text_pair",)

    def find_columns(self, config: PreTrainedConfig) -> None:
        from_options = {"text", "text_pair"} <= {*self.names} and "question" not in self.names
        self.columns = ("text", "text_pair") if from_options else ("question", "context")
        for column in self.columns:
            check_column(column, self.names, self.source)

    def read(self, row: Row, number: int) -> tuple[str, str]:
        question, context = (self.text(row, column, number) for column in self.columns)
        for name, text in zip(self.columns, (question, context), strict=True):
            if not text.strip():
                raise self.fault(number, f"`{name}` must be a text, got {row.get(name)!r}")
        return question, context


class ChoiceReader(ExampleReader):
    """Reads texts with choices, which are a JSON list in CSV files."""

    def find_columns(self, config: PreTrainedConfig) -> None:
        for column in ("context", "choices"):
            check_column(column, self.names, self.source)

    def read(self, row: Row, number: int) -> Row:
        choices = row.get("choices")
        if isinstance(choices, str):
            try:
                choices = json.loads(choices)
            except json.JSONDecodeError:
                choices = None
        if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(text, str) for text in choices)):
            what = f"`choices` must be a list of at least two texts, got {row.get('choices')!r:.80}"
            raise self.fault(number, what)
        return {"context": self.text(row, "context", number), "choices": choices}


class MediaReader(ExampleReader):
    """Reads files of images or recordings: their bytes, or paths relative to the folder of the file of rows."""

    column_option: ClassVar[str]
    extensions: ClassVar[Collection[str]]  # of the files of a folder that are read

    def find_columns(self, config: PreTrainedConfig) -> None:
        self.column = self.options.get(self.column_option, self.column_option.removesuffix("_column"))
        check_column(self.column, self.names, self.source, f"--{self.column_option.replace('_', '-')}")

    def read(self, row: Row, number: int) -> Any:
        cell = row.get(self.column)
        try:
            return self.decode(read_bytes(self._cell(cell)))
        except Exception as error:  # decoders may raise any exception
            shown = f" {cell!r:.80}" if isinstance(cell, str) else ""
            raise self.fault(number, f"`{self.column}`{shown} cannot be read ({error})") from error

    def _cell(self, cell: Any) -> MediaCell:
        if isinstance(cell, str):
            return {"bytes": None, "path": str(Path(self.source).parent / cell)}
        if isinstance(cell, dict):
            return {"bytes": cell.get("bytes"), "path": cell.get("path")}
        return {"bytes": cell, "path": None}

    def kept(self, row: Row) -> Row:
        cell = row[self.column]
        path = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
        return {**{name: value for name, value in row.items() if name != self.column}, self.column: path}

    @abstractmethod
    def decode(self, content: bytes) -> Any:
        """Returns the image or recording in the bytes of a file."""


class ImageReader(MediaReader):
    """Reads images."""

    options_read = ("image_column",)
    column_option = "image_column"
    extensions = ImageFolder.EXTENSIONS

    def decode(self, content: bytes) -> Any:
        from PIL import Image  # an extra

        image = Image.open(BytesIO(content))
        image.load()
        return image


class AudioReader(MediaReader):
    """Reads recordings, truncated to `max_seconds`."""

    options_read = ("audio_column", "max_seconds")
    column_option = "audio_column"
    extensions = AudioFolder.EXTENSIONS

    def decode(self, content: bytes) -> Any:
        rate = self.processor.sampling_rate  # type: ignore[union-attr]
        return read_wave(content, rate)[: max(1, int(self.options.get("max_seconds", 20.0) * rate))]


EXAMPLE_READERS: dict[type[Predictor], type[ExampleReader]] = {
    TextPredictor: TextReader,
    TagPredictor: WordReader,
    SpanPredictor: QuestionReader,
    ChoicePredictor: ChoiceReader,
    MaskPredictor: PromptReader,
    ContinuationPredictor: PromptReader,
    ImagePredictor: ImageReader,
    AudioPredictor: AudioReader,
}
"""The reader of each predictor."""
