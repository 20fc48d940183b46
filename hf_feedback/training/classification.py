"""Fine-tune, evaluate and predict on labelled texts: the one implementation behind the CLI and the example script."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from ..configuration_feedback import FeedbackConfig
from ..model_card import RunFacts, write_model_card
from ..modeling_feedback import FeedbackForSequenceClassification
from .arguments import FeedbackTrainingArguments
from .callbacks import InterruptCallback
from .data import Columns, LabelSet, encode, find_columns, read_file
from .metrics import decide, default_metrics, make_compute_metrics
from .trainer import FeedbackTrainer


class Interrupted(Exception):
    """Training was stopped by Ctrl-C; the message says where it can go on from."""


@dataclass
class DataArguments:
    """Where the texts are."""

    train_file: str | None = field(default=None, metadata={"help": "CSV, TSV, JSON-lines or parquet file to train on."})
    validation_file: str | None = field(default=None, metadata={"help": "File to validate on after every epoch."})
    test_file: str | None = field(default=None, metadata={"help": "File to test the finished model on, once."})
    dataset_name: str | None = field(default=None, metadata={"help": "A hub data set instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the hub data set."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts (found if left out)."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of second texts, for pairs."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels (found if left out)."})
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "Kind of labels (found if left out).",
            "choices": ["single_label_classification", "multi_label_classification", "regression"],
        },
    )
    metrics: list[str] | None = field(default=None, metadata={"help": "Metrics; the first chooses the best epoch."})
    max_length: int | None = field(default=None, metadata={"help": "Cut texts at so many tokens."})


@dataclass
class ModelArguments:
    """The model to start from and the options of `FeedbackConfig`."""

    model: str = field(metadata={"help": "Hub id or folder of a backbone, or of a feedback model to train further."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the hub repository."})
    num_iterations: int = field(default=2, metadata={"help": "K, passes through the looped layers."})
    feedback_topology: str | None = field(default=None, metadata={"help": "top (default), adjacent or dense."})
    feedback_edges: str | None = field(default=None, metadata={"help": "Edges as JSON: [[source, target], …]."})
    feedback_layers: list[int] | None = field(default=None, metadata={"help": "Lowest and highest target layer."})
    feedback_type: str = field(default="additive", metadata={"help": "How a message is made."})
    feedback_activation: str = field(default="swish", metadata={"help": "Activation of the messages."})
    feedback_rank: str = field(default="32", metadata={"help": "Inner width of a message, or 'none' for full rank."})
    feedback_dropout: float = field(default=0.0, metadata={"help": "Dropout inside the messages."})
    feedback_scale: float = field(default=1.0, metadata={"help": "Factor on the messages."})
    backbone_layers: list[int] | None = field(default=None, metadata={"help": "Layers of the backbone to keep."})
    head: str = field(default="new", metadata={"help": "new, or backbone for the family's own task head."})
    pooling: str = field(default="auto", metadata={"help": "auto, cls, mean or last."})
    classifier_dropout: float | None = field(default=None, metadata={"help": "Dropout before the classifier."})

    def feedback_options(self) -> dict[str, Any]:
        """The options as `from_backbone` takes them.

        Raises:
            ValueError: rank or edges cannot be read.
        """
        options = {name: getattr(self, name) for name in FeedbackConfig.option_names() if hasattr(self, name)}
        rank = self.feedback_rank.lower()
        if rank != "none" and not rank.isdecimal():
            raise ValueError(f"`feedback_rank` must be a number or 'none', got {self.feedback_rank!r}.")
        options["feedback_rank"] = None if rank == "none" else int(rank)
        if self.feedback_edges is not None:
            try:
                options["feedback_edges"] = json.loads(self.feedback_edges)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`feedback_edges` must be JSON such as [[3, 0], [3, 1]], got {self.feedback_edges!r} ({error})."
                ) from error
        return options


def bf16_is_fast() -> bool:
    """Whether bfloat16 pays on this machine: on GPUs that have it and CPUs with AMX.

    With AVX-512 instructions alone, autocast trained MiniLM slower than float32 did (0.77 against 0.57 s a step).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


# Data


def _read_splits(args: DataArguments) -> dict[str, tuple[Dataset, str]]:
    """The splits that are there, each with its name for messages."""
    if args.dataset_name is not None:
        loaded = load_dataset(args.dataset_name, args.dataset_config_name)
        return {split: (loaded[split], f"{args.dataset_name}/{split}") for split in loaded}
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    return {split: (read_file(file), file) for split, file in files.items() if file is not None}


def _find_columns(data: Dataset, source: str, args: DataArguments, needs_label: bool = True) -> Columns:
    return find_columns(
        data.column_names, source, args.text_column, args.text_pair_column, args.label_column, needs_label
    )


def _max_length(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: FeedbackConfig) -> int:
    positions = getattr(config.text_config, "max_position_embeddings", None) or math.inf
    longest = min(tokenizer.model_max_length, positions)
    if asked is not None and not 0 < asked <= longest:
        raise ValueError(f"`max_length` must be between 1 and the {longest} tokens that the model reads, got {asked}.")
    return int(min(asked or math.inf, longest, 1_000_000))


def _check_writable(folder: str) -> None:
    """Raises `ValueError` before any work is done where the results could not be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`output_dir`: {folder} cannot be written to ({error.strerror}); choose another.") from error


# Models


def _make_model(
    args: ModelArguments, labels: LabelSet, tokenizer: PreTrainedTokenizerBase
) -> FeedbackForSequenceClassification:
    hub = {} if args.revision is None else {"revision": args.revision}
    names = labels.names or ("value",)
    about_labels = {
        "problem_type": labels.problem_type,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    config_file = Path(args.model) / "config.json"
    if config_file.is_file() and json.loads(config_file.read_text()).get("model_type") == FeedbackConfig.model_type:
        model = FeedbackForSequenceClassification.from_pretrained(args.model, **hub)
        if tuple(model.config.id2label.values()) != names:
            raise ValueError(
                f"`model`: {args.model} was trained for the labels {', '.join(model.config.id2label.values())}, the "
                f"data has {', '.join(names)}; start from its backbone, or map the labels."
            )
    else:
        model = FeedbackForSequenceClassification.from_backbone(
            args.model, backbone_kwargs=hub, **args.feedback_options(), **about_labels
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        for config in {id(c): c for c in (model.config.text_config, model.backbone.config.get_text_config())}.values():
            config.pad_token_id = tokenizer.pad_token_id
    return model


# The three commands


def train(model_args: ModelArguments, data_args: DataArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes on the training split, keeps the best epoch by validation, tests it once, and saves model,
    tokenizer, metrics and model card in `args.output_dir`.

    Returns:
        The metrics by name: `train_…`, `eval_…` (validation) and `test_…`.

    Raises:
        ValueError: an option, a file or a label is not as it must be.
        UnsupportedBackboneError: the backbone cannot be looped exactly.
        Interrupted: Ctrl-C; a checkpoint is in the output folder.
    """
    _check_writable(args.output_dir)
    set_seed(args.seed)
    splits = _read_splits(data_args)
    if "train" not in splits:
        raise ValueError("There is nothing to train on: give `--train-file` or `--dataset-name`.")
    columns = _find_columns(*splits["train"], data_args)
    labels = LabelSet.of(splits["train"][0], columns.label or "", splits["train"][1], data_args.problem_type)
    names = data_args.metrics or default_metrics(labels.problem_type, labels.num_labels)
    compute_metrics = make_compute_metrics(labels.problem_type, names)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model, revision=model_args.revision or "main")
    model = _make_model(model_args, labels, tokenizer)
    max_length = _max_length(data_args.max_length, tokenizer, model.config)
    encoded = {
        split: encode(data, _find_columns(data, source, data_args), tokenizer, max_length, source, labels)
        for split, (data, source) in splits.items()
        if split in ("train", "validation", "test")
    }
    if "validation" in encoded and args.eval_strategy == "no":
        args.eval_strategy = args.save_strategy = "epoch"  # type: ignore[assignment]
        args.load_best_model_at_end = True
        args.metric_for_best_model, args.greater_is_better = f"eval_{names[0]}", True
        args.save_total_limit = args.save_total_limit or 1
    interrupt = InterruptCallback()
    trainer = FeedbackTrainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[interrupt],
    )
    print(model.feedback_summary(), flush=True)
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if interrupt.interrupted:
        checkpoint = get_last_checkpoint(args.output_dir)
        raise Interrupted(
            f"Stopped after step {trainer.state.global_step}. To go on: the same command with "
            f"--resume-from-checkpoint {checkpoint}"
        )
    found = dict(result.metrics)
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in encoded:
            found.update(trainer.evaluate(encoded[split], metric_key_prefix=prefix))
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("all", found)
    if trainer.is_world_process_zero():
        facts = RunFacts(
            backbone=model_args.model,
            data={split: (source, len(data)) for split, (data, source) in splits.items()},
            metrics={key: value for key, value in found.items() if key.split("_", 1)[-1] in names},
            arguments=args,
        )
        write_model_card(Path(args.output_dir), model.config, facts)
    return found


def load_for_inference(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model and its tokenizer.

    Raises:
        ValueError: the folder has no usable model; OSError: it is damaged.
    """
    if not Path(folder).is_dir() and os.path.sep in folder and not folder.count("/") == 1:
        raise ValueError(f"`model`: there is no folder {folder}.")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


def _labels_of(model: PreTrainedModel) -> LabelSet:
    problem = model.config.problem_type or (
        "regression" if model.config.num_labels == 1 else "single_label_classification"
    )
    names = () if problem == "regression" else tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    return LabelSet(problem, names)


def _inference_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, bf16: bool, compute_metrics: Any = None
) -> FeedbackTrainer:
    args = FeedbackTrainingArguments(
        output_dir=tempfile.gettempdir(), per_device_eval_batch_size=batch_size, bf16=bf16, report_to=[], use_cpu=not torch.accelerator.is_available()
    )
    return FeedbackTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )


def evaluate(
    folder: str, file: str, data_args: DataArguments, batch_size: int = 32, num_iterations: int | None = None,
    bf16: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Metrics of a trained model on a labelled file.

    Args:
        folder: the model, a folder or hub id.
        file: the texts with labels.
        data_args: columns, metrics and `max_length`.
        num_iterations: K; the model's own by default.

    Raises:
        ValueError: the model, the file or a label is not as it must be.
    """
    model, tokenizer = load_for_inference(folder)
    if num_iterations is not None:
        model.set_num_iterations(num_iterations)
    data, labels = read_file(file), _labels_of(model)
    names = data_args.metrics or default_metrics(labels.problem_type, labels.num_labels)
    max_length = _max_length(data_args.max_length, tokenizer, model.config)
    encoded = encode(data, _find_columns(data, file, data_args), tokenizer, max_length, file, labels)
    compute_metrics = make_compute_metrics(labels.problem_type, names)
    trainer = _inference_trainer(model, tokenizer, batch_size, bf16, compute_metrics)
    return trainer.evaluate(encoded)


def predict(
    folder: str, file: str, output: str, data_args: DataArguments, batch_size: int = 32,
    num_iterations: int | None = None, bf16: bool = False,
) -> int:  # fmt: skip
    """Writes a trained model's answers as JSON lines: the text, the label and all probabilities.

    The output appears when it is complete; a run that dies half-way leaves none.

    Args:
        folder: the model, a folder or hub id.
        file: the texts; labels are not needed.
        output: the JSON-lines file to write.
        data_args: columns and `max_length`.
        num_iterations: K; the model's own by default.

    Returns:
        The number of lines.

    Raises:
        ValueError: the model or the file is not as it must be.
    """
    _check_writable(str(Path(output).parent))
    model, tokenizer = load_for_inference(folder)
    if num_iterations is not None:
        model.set_num_iterations(num_iterations)
    data, labels = read_file(file), _labels_of(model)
    columns = _find_columns(data, file, data_args, needs_label=False)
    max_length = _max_length(data_args.max_length, tokenizer, model.config)
    encoded = encode(data, columns, tokenizer, max_length, file)
    logits = _inference_trainer(model, tokenizer, batch_size, bf16).predict(encoded).predictions
    lines = [json.dumps(answer, ensure_ascii=False) for answer in _answers(data, columns, np.asarray(logits), labels)]
    partial = Path(f"{output}.partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(output)
    return len(lines)


def _answers(data: Dataset, columns: Columns, logits: np.ndarray, labels: LabelSet) -> Iterator[dict[str, Any]]:
    texts: Sequence[str | None] = data[columns.text]
    pairs = data[columns.text_pair] if columns.text_pair else [None] * len(texts)
    decided = decide(logits, labels.problem_type)
    scores = torch.as_tensor(logits).float()
    several = labels.problem_type == "multi_label_classification"
    probabilities = scores.sigmoid() if several else F.softmax(scores, -1)
    for text, pair, answer, row in zip(texts, pairs, decided, probabilities.tolist(), strict=True):
        line: dict[str, Any] = {"text": text} if pair is None else {"text": text, "text_pair": pair}
        if labels.problem_type == "regression":
            yield {**line, "value": float(answer)}
            continue
        named = {name: round(p, 6) for name, p in zip(labels.names, row, strict=True)}
        if several:
            yield {**line, "labels": [n for n, yes in zip(labels.names, answer, strict=True) if yes], "probabilities": named}
        else:
            yield {**line, "label": labels.names[int(answer)], "score": max(named.values()), "probabilities": named}
