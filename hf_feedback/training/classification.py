"""Fine-tuning on labelled texts: the one implementation behind the CLI and the example script."""

from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_feedback import FeedbackConfig
from ..configuration_fnn import FNNConfig
from ..modeling_feedback import FeedbackForSequenceClassification
from ..modeling_fnn import FNNForSequenceClassification
from ..segments import special_tokens_of
from .arguments import DataArguments, FeedbackTrainingArguments, ModelArguments, TextArguments
from .columns import Columns, find_columns
from .data import encode, read_splits
from .files import root_cause
from .labels import LabelSet, has_labels
from .metrics import METRICS, default_metrics, make_compute_metrics
from .networks import FNNArguments, new_fnn, trained_fnn
from .run import ComputeMetrics, Split, Task, prepare_run, run_task
from .sources import model_type_of
from .starting import load_tokenizer, make_model, max_length_of, set_padding

logger = logging.get_logger(__name__)


def _read_splits(args: DataArguments) -> dict[str, tuple[Dataset, str]]:
    """The splits that are there, each with its name for messages."""
    if args.dataset_name is None:
        return read_splits(args)
    if args.train_file or args.validation_file or args.test_file:
        raise ValueError("`dataset_name` and files exclude each other; give one or the other.")
    try:
        loaded = load_dataset(args.dataset_name, args.dataset_config_name)
    except DatasetGenerationError as error:
        raise ValueError(f"`dataset_name`: {args.dataset_name} cannot be read ({root_cause(error)}).") from error
    if "train" not in loaded:
        raise ValueError(f"`dataset_name`: {args.dataset_name} has no split to train on, only {', '.join(loaded)}.")
    return {split: (loaded[split], f"{args.dataset_name}/{split}") for split in loaded}


def columns_of(
    data: Dataset, source: str, args: TextArguments, needs_label: bool = True, trained: Columns | None = None
) -> Columns:
    """The columns that the arguments name, or those of training, or those that are found; see `find_columns`."""
    label = getattr(args, "label_column", None)
    given = (args.text_column, args.text_pair_column, label)
    return find_columns(data.column_names, source, *given, needs_label=needs_label, trained=trained)


def _start(
    args: ModelArguments | FNNArguments, labels: LabelSet
) -> tuple[FeedbackForSequenceClassification | FNNForSequenceClassification, PreTrainedTokenizerBase]:
    """The model to train, and its tokenizer."""
    if isinstance(args, FNNArguments):
        return new_fnn(args, labels)
    model_type = model_type_of(args.model, args.revision)
    if model_type == FNNConfig.model_type:
        return trained_fnn(args, labels)
    tokenizer = load_tokenizer(args.model, args.revision)
    model = make_model(FeedbackForSequenceClassification, args, labels)
    if model.config.feedback_span == "segment" and model.config.segment_special_tokens is None:
        model.config.segment_special_tokens = special_tokens_of(tokenizer)
    if model.cutting is not None and model_type != FeedbackConfig.model_type:
        tokenizer.model_max_length = model.cutting.longest  # not of one segment
    set_padding(model, tokenizer)
    return model, tokenizer


def train(
    model_args: ModelArguments | FNNArguments, data_args: DataArguments, args: FeedbackTrainingArguments
) -> dict[str, Any]:
    """Fine-tunes a classifier or regressor over whole texts; see `run_task`.

    Raises:
        ValueError: an option, a file or a label is not as it must be.
        UnsupportedBackboneError: the backbone cannot be looped exactly.
        Interrupted: Ctrl-C; a checkpoint is in the output folder.
    """
    prepare_run(args)
    splits = _read_splits(data_args)
    columns = columns_of(*splits["train"], data_args)
    labels = LabelSet.of(splits["train"][0], columns.label or "", splits["train"][1], data_args.problem_type)
    if args.process_index == 0:
        print(f"{splits['train'][1]}: {columns}; {labels}", flush=True)
    names = data_args.metrics or default_metrics(labels.problem_type, labels.num_labels)
    compute_metrics = make_compute_metrics(labels.problem_type, names)
    model, tokenizer = _start(model_args, labels)
    columns.keep(model.config)
    task = Task(
        model=model,
        processor=tokenizer,
        splits=_encode_splits(splits, data_args, tokenizer, model, compute_metrics),
        collator=DataCollatorWithPadding(tokenizer),
        metrics={name: True if name in METRICS else None for name in names},
        dataset=data_args.dataset_name,
    )
    return run_task(task, model_args, args)


def _encode_splits(
    splits: dict[str, tuple[Dataset, str]],
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    compute_metrics: ComputeMetrics,
) -> dict[str, Split]:
    """The splits as token ids and label numbers; a test split without labels is left out."""
    labels, trained = LabelSet.of_model(model), Columns.of_model(model.config)
    max_length = tokenizer.model_max_length = max_length_of(args.max_length, tokenizer, model)
    encoded: dict[str, Split] = {}
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        data, source = splits[split]
        columns = columns_of(data, source, args, trained=trained)
        if split == "test" and not has_labels(data, columns.label or "", source):
            logger.warning(f"{source} has no labels and is left out.")
            continue
        found = encode(data, columns, tokenizer, max_length, source, labels)
        encoded[split] = Split(found, source, compute_metrics=compute_metrics)
    return encoded
