"""The splits of a run: training, validation and test rows, from files or from a data set of the Hub."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ...validation import option
from .files import read_file, root_cause
from .held_out import SamplingArguments, held_out_rows
from .row_encoder import EncodingArguments
from .text_files import TextFormatArguments

SPLITS = ("train", "validation", "test")
Row: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, list[Any]]


@dataclass
class FileArguments(SamplingArguments, EncodingArguments, TextFormatArguments):
    """Training, validation and test data."""

    train_file: str | None = option(None, "File of the training data.")
    validation_file: str | None = option(None, "File of the validation data, evaluated after every epoch.")
    test_file: str | None = option(None, "File of the test data, evaluated once after training.")


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Args:
        data: the rows as they were read.
        source: file or data set that they come from, for messages and the model card.
        rows: positions of the rows in the source, counted from 0; `None` if they are all of its rows.
    """

    data: Dataset
    source: str
    rows: Sequence[int] | None = None

    def rows_of(self, indices: Sequence[int]) -> Sequence[int]:
        """Returns the positions of rows in the source, by their numbers in `data`."""
        return indices if self.rows is None else [self.rows[i] for i in indices]

    def select(self, indices: Sequence[int], share: str) -> "Split":
        """Returns some of the rows; `share` describes them in messages."""
        indices = sorted(int(i) for i in indices)
        return Split(self.data.select(indices), f"{self.source} ({share})", self.rows_of(indices))


def read_splits(args: FileArguments, read: Callable[[str], Dataset] = read_file) -> dict[str, Split]:
    """Reads the files of a run.

    Args:
        args: their paths.
        read: reads one file.

    Returns:
        The splits by name: `train`, `validation`, `test`.

    Raises:
        ValueError: there is no training file, or a file cannot be read.
    """
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if args.train_file is None:
        raise ValueError("There is no training data: give `--train-file`.")
    return {name: Split(read(file), file) for name, file in files.items() if file is not None}


def load_hub_splits(name: str, configuration: str | None) -> dict[str, Split]:
    """Loads all splits of a data set.

    Args:
        name: Hub id or folder of the data set.
        configuration: name of its configuration.

    Returns:
        The splits by name.

    Raises:
        ValueError: the data set cannot be read, or has no training split.
    """
    try:
        loaded = load_dataset(name, configuration)
    except (DatasetGenerationError, ValueError) as error:  # such as of a split without rows
        raise ValueError(f"`dataset_name`: {name} cannot be read ({root_cause(error)}).") from error
    if "train" not in loaded:
        raise ValueError(f"`dataset_name`: {name} has no split named train, only {', '.join(loaded)}.")
    return {split: Split(loaded[split], f"{name}/{split}") for split in loaded}


def draw_rows(
    splits: Mapping[str, Split], args: SamplingArguments, classes: Sequence[Hashable] | None
) -> dict[str, Split]:
    """Samples the rows of the splits as the options say.

    Args:
        splits: the splits by name, as they were read.
        args: options of sampling and of the validation split.
        classes: the class of every training row; `None` if rows have none.

    Raises:
        ValueError: there is a validation split already, or too few rows for two splits.
    """
    drawn = dict(splits)
    if args.validation_split is not None:
        drawn |= _hold_out(splits, args.validation_split, classes, args.split_seed)
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_eval_samples}
    for name, split in drawn.items():
        most, count = limits.get(name), len(split.data)
        if most is not None and most < count:
            order = np.random.default_rng(args.split_seed).permutation(count)
            drawn[name] = split.select(order[:most].tolist(), f"{most} of {count} rows")
    return drawn


def _hold_out(
    splits: Mapping[str, Split], share: float, classes: Sequence[Hashable] | None, seed: int
) -> dict[str, Split]:
    """Divides the training rows into a training and a validation split."""
    train, count = splits["train"], len(splits["train"].data)
    if "validation" in splits:
        raise ValueError(
            f"`validation_split` and {splits['validation'].source} exclude each other: both are validation data; "
            "give one."
        )
    held_out = held_out_rows([None] * count if classes is None else classes, share, seed)
    if not held_out:
        raise ValueError(
            f"`validation_split`: {share:g} of the {count} rows of {train.source} leaves no validation rows; "
            "give a larger share, or a file (`--validation-file`)."
        )
    kept = sorted(set(range(count)) - set(held_out))
    shares = {"train": f"{len(kept)} of {count} rows", "validation": f"{len(held_out)} of {count} rows"}
    return {name: train.select(rows, shares[name]) for name, rows in (("train", kept), ("validation", held_out))}
