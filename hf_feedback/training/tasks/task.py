"""Base of all tasks: from the options of a run to a model and encoded data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeAlias, TypeVar

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    BaseImageProcessor,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
)

from ...max_length import resolve_max_length
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_fnn import FNNForSequenceClassification
from ...validation import is_of_type
from ..arguments import FeedbackTrainingArguments
from ..data.duplicates import warn_of_repeated_ids
from ..data.files import read_file
from ..data.labels import LabelSet
from ..data.overview import describe_rows
from ..data.row_encoder import IN_MEMORY, RowEncoder, one_process_first
from ..data.splits import FileArguments, Row, Split, draw_rows, read_splits
from ..data.texts import TextLengths
from ..metrics import ComputeMetrics, MetricInfo
from ..starting_model.model_arguments import FNNArguments, ModelArguments, Options
from ..starting_model.model_setup import load_tokenizer, make_model, set_padding, set_segments
from ..task_card import TaskCard

DataArguments = TypeVar("DataArguments", bound=FileArguments, covariant=True)
Model: TypeAlias = FeedbackPreTrainedModel | FNNForSequenceClassification
Processor: TypeAlias = PreTrainedTokenizerBase | BaseImageProcessor | SequenceFeatureExtractor
Collator: TypeAlias = Callable[[list[Row]], Mapping[str, object]]
PreprocessLogits: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
AnswerTexts: TypeAlias = Callable[[EvalPrediction], tuple[Sequence[Sequence[str]], Sequence[str]]]

# Options of `TrainingArguments` without which metrics get no predictions for a whole split.
NEEDED_FOR_METRICS = {"batch_eval_metrics": False, "eval_do_concat_batches": True, "prediction_loss_only": False}


@dataclass(frozen=True)
class EncodedSplit:
    """A split as the model reads it.

    Args:
        data: rows for the collator.
        source: file or data set that they come from.
        count: number of examples in the source; `None` if it is streamed.
        compute_metrics: as in `Trainer`; `None`: only the loss.
        answer_texts: predictions → the right answers, one list per question, and the predicted answers, if these are
            texts.
        references: the right answers and the texts that they are in, if answers are texts, a list for each example.
        lengths: lengths of the texts, if they may be truncated.
        reading: options by name that streamed rows depend on.
        parts: the sources in their order, each with its number of rows, if there are several.
    """

    data: Dataset | IterableDataset
    source: str
    count: int | None
    compute_metrics: ComputeMetrics | None = None
    answer_texts: AnswerTexts | None = None
    references: Mapping[str, Sequence[object]] | None = None
    lengths: TextLengths | None = None
    reading: Mapping[str, object] = field(default_factory=dict)
    parts: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class PreparedTask:
    """A task that is ready to train.

    Args:
        model: the model with the head of the task.
        processor: its tokenizer, image processor or feature extractor; saved with the model.
        splits: `train`, and `validation` and `test`, if any.
        collator: makes batches of rows.
        card: description of the task.
        metrics: metrics by name; the first chooses the best epoch.
        preprocess_logits: as `preprocess_logits_for_metrics` in `Trainer`.
        keep_all_columns: whether the collator reads columns that `forward` does not name.
        dataset: Hub id of the data, if they come from the Hub.
        write_predictions: writes the predictions that an option asks for into a folder.
    """

    model: Model
    processor: Processor
    splits: Mapping[str, EncodedSplit]
    collator: Collator
    card: TaskCard
    metrics: Mapping[str, MetricInfo] = field(default_factory=dict)
    preprocess_logits: PreprocessLogits | None = None
    keep_all_columns: bool = False
    dataset: str | None = None
    write_predictions: Callable[[Path], None] = lambda folder: None


class Task(ABC, Generic[DataArguments]):
    """One task with the options of one run. A new task is a subclass in a file of its own, listed in `TASKS`.

    Args:
        model_args: options of the model.
        data_args: options of the data.

    Attributes:
        model_arguments: options of the model.
        data_arguments: options of the data.
        model_class: class of the model.
        card: description of the task.
        metrics: metrics by name; the first chooses the best epoch.
        keep_all_columns: whether the collator reads columns that `forward` does not name.
        peft_task_type: name of the task in PEFT.
        evaluation_options: options of the data that metrics depend on, which a trained model keeps.
        labels: labels of the training data; `None` for tasks without labels.
        encoder: encodes the rows; set when the options are checked.
        processor: tokenizer, image processor or feature extractor, when loaded.
        model: the model, when loaded.
    """

    model_arguments: ClassVar[type[ModelArguments] | type[FNNArguments]] = ModelArguments
    data_arguments: ClassVar[type[FileArguments]]
    model_class: ClassVar[type[FeedbackPreTrainedModel] | type[FNNForSequenceClassification]]
    card: TaskCard
    metrics: Mapping[str, MetricInfo] = {}  # replaced, never changed
    keep_all_columns: ClassVar[bool] = False
    peft_task_type: ClassVar[str | None] = None
    evaluation_options: ClassVar[tuple[str, ...]] = ()

    labels: LabelSet | None
    encoder: RowEncoder
    processor: Processor
    model: Model

    def __init__(self, model_args: ModelArguments, data_args: DataArguments) -> None:
        self.model_args, self.data_args = model_args, data_args

    def prepare(self, announce: bool = True, keeps_rows: bool = True) -> PreparedTask:
        """Reads and checks the data, loads processor and model, and encodes the data.

        Args:
            announce: whether to print a description of the training data.
            keeps_rows: whether encoded rows are cached on disk.

        Raises:
            ValueError: an option, a file or a label is invalid.
            UnsupportedBackboneError: the backbone cannot be looped exactly.
        """
        self.check_options()
        self.data_args.check_sampling()
        self.encoder = replace(self.data_args.row_encoder, keeps=keeps_rows)
        splits = {name: self.check_split(split) for name, split in self.read_splits().items()}
        for split in splits.values():
            warn_of_repeated_ids(split)
        self.labels = self.find_labels(splits["train"])
        description, source = self.describe_data(), splits["train"].source
        splits = draw_rows(splits, self.data_args, self.classes_of(splits["train"]))
        if announce and description:
            print("\n  ".join([f"{source}: {description}", *self.describe_splits(splits)]), flush=True)
        self.check_labels(splits)
        self.processor, self.model = self.load()
        self._store_evaluation_options()
        with one_process_first():
            encoded = {name: self.encode(name, split) for name, split in splits.items()}
        if announce:
            for name, one in encoded.items():
                if one is not None and one.lengths is not None:
                    print(f"  {name}: {one.lengths}", flush=True)
        return PreparedTask(
            model=self.model,
            processor=self.processor,
            splits=self.join_splits({name: split for name, split in encoded.items() if split is not None}),
            collator=self.make_collator(),
            card=self.card,
            metrics=self.metrics,
            preprocess_logits=self.preprocess_logits(),
            keep_all_columns=self.keep_all_columns,
            dataset=getattr(self.data_args, "dataset_name", None),
            write_predictions=self.write_predictions,
        )

    def prepare_trained(self, file: str) -> EncodedSplit:
        """Loads a trained processor and model, and encodes a file of examples to evaluate them on.

        Args:
            file: path of the file.

        Raises:
            ValueError: an option, the file or a label is invalid, or there are no labels.
        """
        self.check_options()
        self.encoder = IN_MEMORY
        split = self.check_split(Split(self.read(file), file))
        self.labels = None  # labels are those of the model
        self.load_trained(split)
        encoded = self.encode("test", split)
        if encoded is None:
            raise ValueError(f"{file}: it has no labels to compare answers with.")
        return encoded

    def _store_evaluation_options(self) -> None:
        """Stores the options of the data that metrics depend on in the config of the model."""
        values = {name: getattr(self.data_args, name) for name in self.evaluation_options}
        self.model.config.data_options = {name: value for name, value in values.items() if value is not None}
        if not self.model.config.data_options:  # or those of an earlier task
            del self.model.config.data_options

    @classmethod
    def stored_evaluation_options(cls, config: Mapping[str, object]) -> Options:
        """Returns the options of the data that a trained model was evaluated with in training.

        Args:
            config: content of the config file of the model.

        Raises:
            ValueError: it holds something else.
        """
        stored = config.get("data_options") or {}
        types = {one.name: one.type for one in fields(cls.data_arguments) if one.name in cls.evaluation_options}
        if not isinstance(stored, dict) or not all(
            is_of_type(stored[name], types[name]) for name in stored if name in types
        ):
            raise ValueError(
                f"`data_options` in the model's config must be values of {', '.join(types) or 'options'}, got "
                f"{stored!r:.80}; correct or remove it."
            )
        return {name: value for name, value in stored.items() if name in types}

    def load_trained(self, split: Split) -> None:
        """Loads processor and model, and sets what encoding a split needs."""
        self.processor, self.model = self.load()

    def check_options(self) -> None:
        """Raises `ValueError` where an option of the data has a value that is not allowed."""

    def check_training(self, args: FeedbackTrainingArguments) -> None:
        """Raises `ValueError` where options of training contradict those of the data, or the metrics of the task."""
        for name, needed in NEEDED_FOR_METRICS.items():
            if getattr(args, name) != needed:
                raise ValueError(
                    f"`{name}` must be {needed}, got {not needed}: the metrics are those of all predictions for a "
                    "split; leave the option out."
                )

    def read(self, file: str) -> Dataset:
        """Reads one file."""
        return read_file(file, self.data_args.text_format)

    def read_splits(self) -> dict[str, Split]:
        """Reads all splits."""
        return read_splits(self.data_args, self.read)

    def check_split(self, split: Split) -> Split:
        """Checks the rows of a split before anything is loaded, and returns it."""
        return split

    def find_labels(self, train: Split) -> LabelSet | None:
        """Returns the labels of the training data."""
        return None

    def check_labels(self, splits: Mapping[str, Split]) -> None:
        """Raises `ValueError` where the labels of a split are not those of training, before anything is loaded."""

    def classes_of(self, train: Split) -> Sequence[Hashable] | None:
        """Returns the class of every training row; `None` if rows have none or several."""
        return None

    def describe_data(self) -> str | None:
        """Describes columns and labels of the training data."""
        return None

    def describe_splits(self, splits: Mapping[str, Split]) -> list[str]:
        """Describes the splits, one line each."""
        return [describe_rows(name, split) for name, split in splits.items()]

    @abstractmethod
    def load(self) -> tuple[Processor, Model]:
        """Loads the processor and the model."""

    @abstractmethod
    def encode(self, name: str, split: Split) -> EncodedSplit | None:
        """Encodes a split.

        Args:
            name: name of the split.
            split: its rows.

        Returns:
            `None` to leave the split out.
        """

    def join_splits(self, splits: dict[str, EncodedSplit]) -> dict[str, EncodedSplit]:
        """Returns the splits `train`, `validation` and `test` of what was read."""
        return splits

    @abstractmethod
    def make_collator(self) -> Collator:
        """Returns the collator."""

    def preprocess_logits(self) -> PreprocessLogits | None:
        """Returns `preprocess_logits_for_metrics` of the Trainer."""
        return None

    def advise(self, splits: Mapping[str, EncodedSplit]) -> list[str]:
        """Returns advice from the data of a finished run and the predictions of its model."""
        return []

    def write_predictions(self, folder: Path) -> None:
        """Writes the predictions that an option asks for into a folder."""


class TextTask(Task[DataArguments]):
    """A task whose inputs are tokens.

    Attributes:
        reads_words: whether the tokenizer must read lists of words, or return the positions of tokens.
        cuts_texts: whether pipelines truncate texts as in training.
        max_length: tokens to which texts are truncated, when the model is loaded.
    """

    reads_words: ClassVar[bool] = False
    cuts_texts: ClassVar[bool] = True
    model_class: ClassVar[type[FeedbackPreTrainedModel]]
    processor: PreTrainedTokenizerBase
    max_length: int

    def load(self) -> tuple[PreTrainedTokenizerBase, Model]:
        tokenizer = load_tokenizer(self.model_args.model, self.model_args.revision, of_words=self.reads_words)
        self.check_tokenizer(tokenizer)
        model = make_model(self.model_class, self.model_args, self.labels)
        set_segments(model, tokenizer, self.model_args)
        set_padding(model, tokenizer)
        self.max_length = self.find_max_length(tokenizer, model)
        if self.cuts_texts:
            tokenizer.model_max_length = self.max_length
        return tokenizer, model

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Checks and sets the properties of the tokenizer that the task needs."""

    def find_max_length(self, tokenizer: PreTrainedTokenizerBase, model: FeedbackPreTrainedModel) -> int:
        """Returns the maximum number of tokens of a text."""
        return resolve_max_length(getattr(self.data_args, "max_length", None), tokenizer, model)

    def make_collator(self) -> Collator:
        return DataCollatorWithPadding(self.processor)
