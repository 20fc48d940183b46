"""Runs a trained model on rows in chunks, and writes its predictions."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..predictor import BATCHES_AT_ONCE, Predictor
from ..training.data.files import check_is_text
from ..training.data.splits import Row
from ..training.resuming.checkpoints import Record
from ..training.resuming.fingerprints import fingerprint_weights
from ..training.resuming.run_record import model_options
from ..training.starting_model.model_arguments import Options
from ..training.starting_model.model_sources import read_config
from ..training.tasks.task import Model, Processor, Task
from .example_readers import EXAMPLE_READERS, ExampleReader, MediaReader
from .prediction_rows import PredictionRows
from .predictions_file import STANDARD_OUTPUT, PredictionsFile, merge_row
from .trained_model import TrainedModel

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PredictionRun:
    """A trained model and the rows to predict for.

    Args:
        trained: the model.
        rows: the rows.
        options: options of the columns and of the predictor by name.
    """

    trained: TrainedModel
    rows: PredictionRows
    options: Options = field(default_factory=dict)

    def write(self, output: str, force: bool = False) -> int:
        """Predicts for all rows, and writes them with the predictions.

        Args:
            output: the file to write, see `PredictionsFile`; `-` for standard output.
            force: whether to overwrite an existing file.

        Returns:
            The number of rows in the file.

        Raises:
            ValueError: the model, a row or the output is invalid.
        """
        file = PredictionsFile(output, force, self.rows.file)
        task, model, processor = self.trained.load()
        reader_class = _reader_of(model, self.trained.name)
        self._check_options(model, reader_class, task)
        return self._with_options_of(task, model, reader_class)._write(file, output, model, processor, reader_class)

    def _with_options_of(self, task: type[Task], model: Model, reader_class: type[ExampleReader]) -> "PredictionRun":
        """The same run with the options of the data that the model was evaluated with, where none are given."""
        stored = task.stored_evaluation_options(read_config(self.trained.name, self.trained.revision))
        known = {*reader_class.options_read, *_options_of(model)} - {"max_length"}  # of blocks of text
        if "max_length" in self.options:  # which the windows of training may not suit
            known.discard("stride")
        return replace(self, options={**{name: stored[name] for name in stored if name in known}, **self.options})

    def _write(
        self,
        file: PredictionsFile,
        output: str,
        model: Model,
        processor: Processor,
        reader_class: type[ExampleReader],
    ) -> int:
        predictor = self._make_predictor(model, processor)
        fingerprint = self.rows.fingerprint()
        record = None if fingerprint is None else {**fingerprint, **self._record(model, reader_class)}
        rows = self._read(reader_class)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{self.rows.source}: the file has no rows.")
        reader = reader_class(model.config, processor, list(first), self.rows.source, self.options)
        with file.opened(record):
            if file.num_rows:
                print(f"{file.partial}: resuming after {file.num_rows} rows.", file=sys.stderr)
            answered = self._answer(chain([first], rows), predictor, reader, file.num_rows)
            for some in tqdm(answered, unit=" chunks", disable=None if output != STANDARD_OUTPUT else True):
                file.write(some)
        self._warn(predictor, reader, file.num_rows)
        return file.num_rows

    def _warn(self, predictor: Predictor, reader: ExampleReader, count: int) -> None:
        """Warns about texts that are empty or were truncated."""
        if cut := getattr(predictor, "num_cut", 0):
            longest = predictor.max_length  # type: ignore[attr-defined]  # it cuts
            logger.warning(f"{self.rows.source}: {cut} of {count} texts are longer than {longest} tokens and were cut.")
        if reader.num_empty:
            logger.warning(f"{self.rows.source}: {reader.num_empty} of {count} texts are empty.")

    def _answer(
        self, rows: Iterable[Row], predictor: Predictor, reader: ExampleReader, skipped: int
    ) -> Iterator[list[Row]]:
        """Yields chunks of rows with their predictions, after the rows that are finished."""
        remaining, number = islice(rows, skipped, None), skipped
        while some := list(islice(remaining, BATCHES_AT_ONCE * self.trained.batch_size)):
            examples = [reader.read(row, i) for i, row in enumerate(some, number)]
            check_is_text(examples, self.rows.source, number)
            try:
                with torch.autocast(predictor.model.device.type, torch.bfloat16, enabled=self.trained.bf16):
                    answers = predictor(examples)
            except ValueError as error:
                raise ValueError(f"{self.rows.source}: rows {number + 1} to {number + len(some)}: {error}") from error
            yield [merge_row(reader.kept(row), answer) for row, answer in zip(some, answers, strict=True)]
            number += len(some)

    def _read(self, reader_class: type[ExampleReader]) -> Iterator[Row]:
        if issubclass(reader_class, MediaReader):
            column = self.options.get(reader_class.column_option, reader_class.column_option.removesuffix("_column"))
            files = self.rows.files_of_folder(column, reader_class.extensions)
            if files is not None:
                return files
        if self.rows.file is not None and Path(self.rows.file).is_dir():
            raise ValueError(f"`file`: {self.rows.file} is a folder; name a file.")
        return iter(self.rows)

    def _check_options(self, model: Model, reader_class: type[ExampleReader], task: type[Task]) -> None:
        known = {*reader_class.options_read, *_options_of(model)}
        given = [*self.options, *([] if self.rows.text_pairs is None else ["text_pair"])]
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise ValueError(
                f"`{unknown}`: {self.trained.name} is {task.card.model_with_article}; leave the option out."
            )

    def _make_predictor(self, model: Model, processor: Processor) -> Predictor:
        options = {name: value for name, value in self.options.items() if name in _options_of(model)}
        return model.predictor(model, processor, self.trained.batch_size, **options)  # type: ignore[misc]

    def _record(self, model: Model, reader_class: type[ExampleReader]) -> Record:
        """The settings that predictions depend on, without the rows."""
        names = sorted({*reader_class.options_read, *_options_of(model)} - {"model", "processor", "batch_size"})
        options = {name: self.options.get(name) for name in names}
        weights = fingerprint_weights(model.state_dict().items())
        return {"weights": weights, **model_options(model.config), **options, "bf16": self.trained.bf16}


def _reader_of(model: Model, name: str) -> type[ExampleReader]:
    for predictor in getattr(model.predictor, "__mro__", ()):
        if predictor in EXAMPLE_READERS:
            return EXAMPLE_READERS[predictor]
    raise ValueError(f"`model`: {name} has a head of its own, whose examples cannot be read from a file.")


def _options_of(model: Model) -> Mapping[str, inspect.Parameter]:
    """The options of a model's predictor."""
    return inspect.signature(model.predictor).parameters  # type: ignore[arg-type]  # there is one
