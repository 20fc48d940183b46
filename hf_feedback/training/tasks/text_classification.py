"""Text classification and regression."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ...configuration_feedback import FeedbackConfig
from ...configuration_fnn import FNNConfig
from ...max_length import resolve_max_length
from ...modeling_feedback import FeedbackForSequenceClassification
from ...modeling_fnn import FNNForSequenceClassification
from ...validation import option
from ..advice import PredictionCounter, advice_on_classes, advice_on_data
from ..arguments import FeedbackTrainingArguments
from ..data.columns import Columns, find_columns
from ..data.iteration_targets import NO_TARGET, check_target_columns, iteration_target_numbers
from ..data.labels import (
    IGNORED,
    SINGLE_LABEL,
    LabelSet,
    ProblemType,
    drop_unlabelled_rows,
    has_labels,
    label_numbers,
    row_classes,
)
from ..data.overview import UNLABELLED, describe_duplicates, describe_rows
from ..data.splits import SPLITS, FileArguments, Split, load_hub_splits
from ..data.texts import tokenize_texts, with_labels
from ..metrics import METRICS, ComputeMetrics, MetricInfo, default_metrics, make_compute_metrics
from ..starting_model.model_arguments import FNNArguments
from ..starting_model.model_setup import (
    load_tokenizer,
    make_model,
    new_network,
    set_padding,
    set_segments,
    trained_network,
)
from ..starting_model.model_sources import read_config
from ..task_card import TaskCard, pipeline_usage
from .task import EncodedSplit, Model, TextTask

logger = logging.get_logger(__name__)


@dataclass
class TextArguments:
    """Text columns."""

    text_column: str | None = option(
        None, "Column of the texts (default: a usual name such as text; of a trained model, that of its training)."
    )
    text_pair_column: str | None = option(None, "Column of the second texts, for pairs.")
    max_length: int | None = option(None, "Tokens to which texts are truncated (default: as many as the model reads).")


@dataclass
class LabelArguments(TextArguments):
    """Labels and metrics."""

    label_column: str | None = option(
        None, "Column of the labels (default: a usual name such as label; of a trained model, that of its training)."
    )
    label_separator: str | None = option(
        None,
        "Separator of several labels in one cell, such as ; (default: none; of a trained model, that of its training).",
    )
    metrics: list[str] | None = option(
        None,
        f"Metrics: {', '.join(METRICS)}, or others of the evaluate library; the first, if named here, chooses the best "
        "epoch, else the loss (default: those that suit the labels).",
    )


@dataclass
class TextDataArguments(FileArguments, LabelArguments):
    """Training, validation and test data."""

    train_file: str | None = option(None, "CSV, TSV, JSON-lines or parquet file of the training data.")
    unlabelled_file: str | None = option(
        None, "File of further training texts without labels, all of them read, for `--adversarial smart`."
    )
    dataset_name: str | None = option(None, "Hub id, or local folder, of a data set with its splits, instead of files.")
    dataset_config_name: str | None = option(None, "Configuration of that data set.")
    iteration_target_columns: list[str] | None = option(
        None,
        f"Columns of the classes that iterations 1, 2, … answer in training, `{NO_TARGET}` for one without; later ones "
        "answer the label. For `--iteration-loss uniform` or `linear` (default: all answer the label).",
    )
    problem_type: str | None = option(
        None, "Type of the labels (default: inferred from the labels).", choices=dict.fromkeys(get_args(ProblemType))
    )


def columns_of(split: Split, args: TextArguments, needs_label: bool = True, trained: Columns | None = None) -> Columns:
    """Returns the columns of texts and labels, see `find_columns`.

    Args:
        split: the rows.
        args: options that may name columns.
        needs_label: whether a column of labels is required.
        trained: the columns of training.

    Raises:
        ValueError: a column is missing or cannot be chosen.
    """
    label, separator = getattr(args, "label_column", None), getattr(args, "label_separator", None)
    names, text, text_pair = split.data.column_names, args.text_column, args.text_pair_column
    return find_columns(names, split.source, text, text_pair, label, needs_label, trained, separator)


class TextClassification(TextTask[TextDataArguments]):
    """Predicts one class, several labels or a value of each text.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> data_args = TextDataArguments(train_file="train.csv", validation_file="validation.csv")
    >>> task = TextClassification(ModelArguments(model="bert-base-uncased"), data_args)
    >>> task.card.pipeline_tag
    'text-classification'

    ```
    """

    data_arguments = TextDataArguments
    model_class = FeedbackForSequenceClassification
    card = TaskCard(
        pipeline_tag="text-classification",
        model="text classifier",
        usage=pipeline_usage("text-classification", 'print(answer("Where is my parcel?"))'),
        pooled=True,
        labelled=True,
    )
    peft_task_type = "SEQ_CLS"

    labels: LabelSet
    columns: Columns
    compute_metrics: ComputeMetrics

    def read_splits(self) -> dict[str, Split]:
        args = self.data_args
        if args.dataset_name is None:
            self._check_no_folder()
            splits = super().read_splits()
        elif args.train_file or args.validation_file or args.test_file:
            raise ValueError("`dataset_name` and files exclude each other; give one or the other.")
        else:
            loaded = load_hub_splits(args.dataset_name, args.dataset_config_name)
            splits = {name: loaded[name] for name in SPLITS if name in loaded}
            others = sorted(loaded.keys() - splits.keys())
            if others and "validation" not in splits:
                logger.warning(
                    f"{args.dataset_name} has no split named validation, and {', '.join(others)} are left out. To "
                    "evaluate after every epoch, give files (--train-file, --validation-file), or hold out training "
                    "rows (--validation-split 0.1)."
                )
        if args.unlabelled_file is not None:
            splits[UNLABELLED] = Split(self.read(args.unlabelled_file), args.unlabelled_file)
        return splits

    def _check_no_folder(self) -> None:
        for name in ("train_file", "validation_file", "test_file"):
            file = getattr(self.data_args, name)
            if file is not None and Path(file).is_dir():
                raise ValueError(
                    f"`{name}`: {file} is a folder; name a file in it, or read it as a data set with its splits, "
                    f"`--dataset-name {file}` and no files."
                )

    def check_training(self, args: FeedbackTrainingArguments) -> None:
        super().check_training(args)
        if self.data_args.unlabelled_file is not None and args.adversarial != "smart":
            raise ValueError(
                f"`adversarial`={args.adversarial!r} trains on labels, which the rows of `unlabelled_file` do not "
                "have; choose 'smart', or leave the file out."
            )
        if self.data_args.unlabelled_file is not None and self.data_args.iteration_target_columns:
            raise ValueError(
                "`iteration_target_columns` need a label for every text, and those of `unlabelled_file` have none; "
                "leave one out."
            )

    def check_split(self, split: Split) -> Split:
        """Leaves out rows of a data set of the Hub that have no label, as some of SNLI."""
        if self.data_args.dataset_name is None or split.source == self.data_args.unlabelled_file:
            return split
        label = columns_of(split, self.data_args, needs_label=False).label
        return split if label is None else drop_unlabelled_rows(split, label)

    def find_labels(self, train: Split) -> LabelSet:
        self.columns = columns_of(train, self.data_args)
        problem_type = cast(ProblemType | None, self.data_args.problem_type)
        labels = LabelSet.of(
            train.data, self.columns.label or "", train.source, problem_type, self.columns.label_separator
        )
        if self.data_args.unlabelled_file is not None and labels.problem_type != SINGLE_LABEL:
            raise ValueError(
                f"`unlabelled_file` is for texts of one class each, and the labels are {labels.problem_type}; leave it "
                "out."
            )
        check_target_columns(train, self.data_args.iteration_target_columns or [], labels)
        self._choose_metrics(labels)
        return labels

    def check_labels(self, splits: Mapping[str, Split]) -> None:
        if self._may_have_labels():
            return
        iteration_target_numbers(splits["train"], self.data_args.iteration_target_columns or [], self.labels)
        for name, split in splits.items():
            columns = self._columns_of(name, split, self.columns)
            if columns.label is not None and has_labels(split, columns.label):
                label_numbers(split, columns.label, self.labels, columns.label_separator)

    def _may_have_labels(self) -> bool:
        """Whether the model may have labels before it is trained on these, and more of them."""
        args = self.model_args
        if args.model is None:
            return False
        model_type = read_config(args.model, args.revision).get("model_type")
        uses_backbone_head = getattr(args, "head", None) == "backbone"
        return uses_backbone_head or model_type in (FeedbackConfig.model_type, FNNConfig.model_type)

    def _choose_metrics(self, labels: LabelSet) -> None:
        names = self.data_args.metrics or default_metrics(labels.problem_type, labels.num_labels)
        unknown = MetricInfo(greater_is_better=None)
        self.metrics = {name: METRICS.get(name, unknown) for name in names}
        self.compute_metrics = make_compute_metrics(labels.problem_type, names)

    def load_trained(self, split: Split) -> None:
        self.processor, self.model = self.load_model()
        self._choose_metrics(LabelSet.of_model(self.model))
        self.max_length = resolve_max_length(self.data_args.max_length, self.processor, self.model)

    def classes_of(self, train: Split) -> list[str] | None:
        single = self.labels.problem_type == SINGLE_LABEL
        return row_classes(train, self.columns.label or "") if single else None

    def describe_data(self) -> str:
        targets = ", ".join(self.data_args.iteration_target_columns or [])
        return f"{self.columns}; {self.labels}" + (f"; targets of the first iterations: {targets}" if targets else "")

    def describe_splits(self, splits: Mapping[str, Split]) -> list[str]:
        columns = {
            name: self._columns_of(name, split, self.columns, needs_label=False) for name, split in splits.items()
        }
        rows = [
            describe_rows(name, split, columns[name].label, self.labels, columns[name].label_separator)
            for name, split in splits.items()
        ]
        return [*rows, *describe_duplicates(splits, columns)]

    def _columns_of(self, name: str, split: Split, trained: Columns | None, needs_label: bool = True) -> Columns:
        if name == UNLABELLED:
            return replace(columns_of(split, self.data_args, needs_label=False, trained=trained), label=None)
        return columns_of(split, self.data_args, needs_label, trained)

    def load(self) -> tuple[PreTrainedTokenizerBase, Model]:
        tokenizer, model = self.load_model()
        self.columns.store_in(model.config)
        self.max_length = tokenizer.model_max_length = resolve_max_length(self.data_args.max_length, tokenizer, model)
        return tokenizer, model

    def load_model(self) -> tuple[PreTrainedTokenizerBase, Model]:
        """Loads the tokenizer and the model."""
        args = self.model_args
        model_type = read_config(args.model, args.revision).get("model_type")
        if model_type == FNNConfig.model_type:
            return trained_network(args, self.labels)
        tokenizer = load_tokenizer(args.model, args.revision)
        model = make_model(self.model_class, args, self.labels)
        set_segments(model, tokenizer, args)
        set_padding(model, tokenizer)
        return tokenizer, model

    def encode(self, name: str, split: Split) -> EncodedSplit | None:
        columns = self._columns_of(name, split, Columns.of_model(self.model.config))
        if name == "test" and not has_labels(split, columns.label or ""):
            logger.warning(f"{split.source} has no labels and is left out.")
            return None
        encoded = tokenize_texts(split, columns, self.processor, self.max_length, self.encoder)
        labels = LabelSet.of_model(self.model)
        data, counter = with_labels(encoded, split, columns, labels), PredictionCounter(self.compute_metrics, labels)
        if name == "train" and self.data_args.iteration_target_columns:
            targets = iteration_target_numbers(split, self.data_args.iteration_target_columns, labels)
            data = data.add_column("iteration_targets", targets)
        return EncodedSplit(data, split.source, len(data), counter, lengths=encoded.lengths)

    def join_splits(self, splits: dict[str, EncodedSplit]) -> dict[str, EncodedSplit]:
        """Adds the texts without labels to the training rows."""
        more = splits.pop(UNLABELLED, None)
        if more is None:
            return splits
        train = splits["train"]
        labelled, unlabelled = cast(Dataset, train.data), cast(Dataset, more.data)
        unlabelled = unlabelled.add_column("labels", [IGNORED] * len(unlabelled)).cast(labelled.features)
        data, source = concatenate_datasets([labelled, unlabelled]), f"{train.source} and {Path(more.source).name}"
        parts = ((train.source, len(labelled)), (more.source, len(unlabelled)))
        return {**splits, "train": replace(train, data=data, source=source, count=len(data), parts=parts)}

    def advise(self, splits: Mapping[str, EncodedSplit]) -> list[str]:
        train, validation = splits["train"], splits.get("validation")
        labels, counts = LabelSet.of_model(self.model), Counter[str]()
        if labels.problem_type == SINGLE_LABEL:
            counts.update(labels.names[number] for number in train.data["labels"] if number != IGNORED)
        share = 0.0 if train.lengths is None else train.lengths.cut / len(train.lengths.tokens)
        counter = None if validation is None else validation.compute_metrics
        on_classes = advice_on_classes(counter) if isinstance(counter, PredictionCounter) else []
        return [*on_classes, *advice_on_data(counts, share, self.max_length)]


class NetworkTextClassification(TextClassification):
    """Text classification with a feedback network from scratch."""

    model_arguments = FNNArguments
    # A network from scratch starts from no model.
    model_class = FNNForSequenceClassification  # type: ignore[assignment]
    model_args: FNNArguments  # type: ignore[assignment]

    def load_model(self) -> tuple[PreTrainedTokenizerBase, Model]:
        return new_network(self.model_args, self.labels)
