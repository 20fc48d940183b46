"""Base of image and audio classification."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from datasets import Audio, Dataset, Image

from ...validation import option
from ..data.labels import SINGLE_LABEL, LabelSet, label_numbers, row_classes, single_label_set
from ..data.media import check_media, read_media
from ..data.overview import describe_rows
from ..data.splits import FileArguments, Split
from ..metrics import METRICS, make_compute_metrics
from .task import EncodedSplit, Task


@dataclass
class MediaArguments(FileArguments):
    """Label column."""

    label_column: str = option("label", "Column of the labels.")


Arguments = TypeVar("Arguments", bound=MediaArguments, covariant=True)


class MediaClassification(Task[Arguments]):
    """Classifies images or recordings.

    Attributes:
        column_option: option that names the column of the images or recordings.
        media_name: name of the inputs, in the plural.
        folder_type: type of folders, as `datasets` names it.
        feature: feature of the undecoded column.
    """

    metrics = {name: METRICS[name] for name in ("accuracy", "macro_f1")}  # noqa: RUF012
    column_option: ClassVar[str]
    media_name: ClassVar[str]
    folder_type: ClassVar[Literal["imagefolder", "audiofolder"]]
    feature: ClassVar[Image | Audio]

    @property
    def media_column(self) -> str:
        """Column of the images or recordings."""
        return getattr(self.data_args, self.column_option)

    @staticmethod
    @abstractmethod
    def decode(content: bytes) -> object:
        """Decodes the bytes of a file; raises an error if they are not an image or recording."""

    @abstractmethod
    def encode_media(self, data: Dataset) -> Dataset:
        """Encodes the images or recordings of rows."""

    def read(self, file: str) -> Dataset:
        return read_media(file, self.folder_type, self.data_args.text_format)

    def check_split(self, split: Split) -> Split:
        option = f"--{self.column_option.replace('_', '-')}"
        return check_media(split, self.media_column, self.feature, self.decode, option)

    def find_labels(self, train: Split) -> LabelSet:
        return single_label_set(train, self.data_args.label_column)

    def classes_of(self, train: Split) -> list[str]:
        return row_classes(train, self.data_args.label_column)

    def describe_splits(self, splits: Mapping[str, Split]) -> list[str]:
        column = self.data_args.label_column
        return [describe_rows(name, split, column, self.labels) for name, split in splits.items()]

    def describe_data(self) -> str:
        return f"{self.media_name} in {self.media_column!r}, labels in {self.data_args.label_column!r}; {self.labels}"

    def encode(self, name: str, split: Split) -> EncodedSplit:
        numbers = label_numbers(split, self.data_args.label_column, LabelSet.of_model(self.model))
        data = self.encode_media(split.data).add_column("labels", numbers)
        compute_metrics = make_compute_metrics(SINGLE_LABEL, list(self.metrics))
        return EncodedSplit(data, split.source, len(split.data), compute_metrics)
