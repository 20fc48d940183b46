"""The splits of a run: training, validation and test rows, from files or from a data set of the Hub."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ...validation import option
from .files import read_file, root_cause
from .text_files import TextFormat

Row: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, list[Any]]


@dataclass
class FileArguments:
    """The files of a training run."""

    train_file: str | None = option(None, "File to train on.")
    validation_file: str | None = option(None, "File to validate on after every epoch.")
    test_file: str | None = option(None, "File to test the finished model on, once.")
    delimiter: str | None = option(
        None, "Separator of CSV and TSV files, \\t for a tab (default: that of their header)."
    )
    encoding: str = option("utf-8", "Encoding of CSV, TSV, JSON and text files.")

    @property
    def text_format(self) -> TextFormat:
        """How the files are written.

        Raises:
            ValueError: `delimiter` or `encoding` is not as it must be.
        """
        return TextFormat(self.delimiter, self.encoding)


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Args:
        data: the rows as they were read.
        source: file or data set that they come from, for messages and the model card.
    """

    data: Dataset
    source: str


def read_splits(args: FileArguments, read: Callable[[str], Dataset] = read_file) -> dict[str, Split]:
    """Reads the files of a run.

    Args:
        args: their paths.
        read: reads one file.

    Returns:
        The splits by name: `train`, `validation`, `test`.

    Raises:
        ValueError: there is no file to train on, or one cannot be read.
    """
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if args.train_file is None:
        raise ValueError("There is nothing to train on: give `--train-file`.")
    return {name: Split(read(file), file) for name, file in files.items() if file is not None}


def load_hub_splits(name: str, configuration: str | None) -> dict[str, Split]:
    """Loads all splits of a data set.

    Args:
        name: Hub id or folder of the data set.
        configuration: which of its configurations.

    Returns:
        The splits by name.

    Raises:
        ValueError: the data set cannot be read, or has no split to train on.
    """
    try:
        loaded = load_dataset(name, configuration)
    except (DatasetGenerationError, ValueError) as error:  # such as of a split without rows
        raise ValueError(f"`dataset_name`: {name} cannot be read ({root_cause(error)}).") from error
    if "train" not in loaded:
        raise ValueError(f"`dataset_name`: {name} has no split to train on, only {', '.join(loaded)}.")
    return {split: Split(loaded[split], f"{name}/{split}") for split in loaded}
