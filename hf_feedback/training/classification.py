"""Fine-tune, evaluate and predict on labelled texts: the one implementation behind the CLI and the example script."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from ..configuration_feedback import FeedbackConfig
from ..model_card import RunFacts, write_model_card
from ..modeling_feedback import FeedbackForSequenceClassification
from .arguments import DataArguments, FeedbackTrainingArguments, ModelArguments
from .callbacks import InterruptCallback
from .data import Columns, LabelSet, encode, find_columns, read_file
from .metrics import decide, default_metrics, make_compute_metrics
from .trainer import FeedbackTrainer


class Interrupted(Exception):
    """Training was stopped by Ctrl-C; the message says where it can go on from."""


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


def _is_feedback_model(name: str, revision: str | None = None) -> bool:
    hub = {} if revision is None else {"revision": revision}
    return PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type") == FeedbackConfig.model_type


def _make_model(
    args: ModelArguments, labels: LabelSet, tokenizer: PreTrainedTokenizerBase
) -> FeedbackForSequenceClassification:
    hub = {} if args.revision is None else {"revision": args.revision}
    if _is_feedback_model(args.model, args.revision):
        model = _load_to_go_on(args, labels, hub)
    else:
        names = labels.names or ("value",)
        about_labels: dict[str, Any] = {
            "problem_type": labels.problem_type,
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
        model = FeedbackForSequenceClassification.from_backbone(
            args.model, backbone_kwargs=hub, **args.feedback_options(), **about_labels
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        for config in (model.config.text_config, model.backbone.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id
    return model


def _load_to_go_on(args: ModelArguments, labels: LabelSet, hub: dict[str, str]) -> FeedbackForSequenceClassification:
    """A feedback model to train further: only K can be changed."""
    model = FeedbackForSequenceClassification.from_pretrained(args.model, **hub)
    for option, value in args.feedback_options().items():
        if option == "num_iterations":
            model.set_num_iterations(value)
        elif value != (there := getattr(model.config, option)):
            raise ValueError(
                f"`{option}`: {args.model} is a feedback model already, with {there!r}, and cannot be changed to "
                f"{value!r}; leave the option out, or start from its backbone."
            )
    names = tuple(map(str, (model.config.id2label or {}).values()))
    if names != (labels.names or ("value",)):
        raise ValueError(
            f"`model`: {args.model} was trained for the labels {', '.join(names)}, the data has "
            f"{', '.join(labels.names) or 'numbers'}; start from its backbone, or map the labels."
        )
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
    output_dir = str(args.output_dir)
    _check_writable(output_dir)
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
        args.eval_strategy = "epoch"
        if args.save_strategy == "epoch":  # keep the best epoch
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
        checkpoint = get_last_checkpoint(output_dir)
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
        write_model_card(Path(output_dir), model.config, facts)
    return found


def load_for_inference(folder: str) -> tuple[FeedbackForSequenceClassification, PreTrainedTokenizerBase]:
    """A trained model and its tokenizer.

    Raises:
        ValueError: the folder has no usable model; OSError: it is damaged.
    """
    if not _is_feedback_model(folder):
        raise ValueError(f"`model`: {folder} is no feedback model; make one with `hf-feedback train`.")
    model = FeedbackForSequenceClassification.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


def _labels_of(model: FeedbackForSequenceClassification) -> LabelSet:
    problem = model.config.problem_type or (
        "regression" if model.config.num_labels == 1 else "single_label_classification"
    )
    names = () if problem == "regression" else tuple(map(str, (model.config.id2label or {}).values()))
    return LabelSet(problem, names)


def _inference_trainer(
    model: FeedbackForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    bf16: bool,
    compute_metrics: Any = None,
) -> FeedbackTrainer:
    args = FeedbackTrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_eval_batch_size=batch_size,
        bf16=bf16,
        report_to=[],
        use_cpu=not torch.accelerator.is_available(),
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
            yield {
                **line,
                "labels": [n for n, yes in zip(labels.names, answer, strict=True) if yes],
                "probabilities": named,
            }
        else:
            yield {**line, "label": labels.names[int(answer)], "score": max(named.values()), "probabilities": named}
