"""Fine-tune, evaluate and predict on labelled texts: the one implementation behind the CLI and the example script."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, load_dataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..configuration_feedback import FeedbackConfig
from ..model_card import RunFacts
from ..modeling_feedback import FeedbackForSequenceClassification
from ..topology import resolve_edges
from .arguments import DataArguments, FeedbackTrainingArguments, ModelArguments, TextArguments
from .callbacks import InterruptCallback
from .data import Columns, LabelSet, encode, find_columns, has_labels, read_file
from .metrics import METRICS, default_metrics, make_compute_metrics
from .trainer import FeedbackTrainer

logger = logging.get_logger(__name__)


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
        if args.train_file or args.validation_file or args.test_file:
            raise ValueError("`dataset_name` and files exclude each other; give one or the other.")
        loaded = load_dataset(args.dataset_name, args.dataset_config_name)
        return {split: (loaded[split], f"{args.dataset_name}/{split}") for split in loaded}
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    return {split: (read_file(file), file) for split, file in files.items() if file is not None}


def columns_of(data: Dataset, source: str, args: TextArguments, needs_label: bool = True) -> Columns:
    """The columns that the arguments name, or that are found; see `find_columns`."""
    label = getattr(args, "label_column", None)
    return find_columns(data.column_names, source, args.text_column, args.text_pair_column, label, needs_label)


def max_length_of(
    asked: int | None, tokenizer: PreTrainedTokenizerBase, model: FeedbackForSequenceClassification
) -> int:
    """How many tokens a text may have: what was asked for, or what tokenizer and model read.

    Raises:
        ValueError: the model does not read so many, or nothing but special tokens would be left.
    """
    positions = getattr(model.config.text_config, "max_position_embeddings", None) or math.inf
    for name, module in model.backbone.named_modules():
        # families that count positions from the padding token on (RoBERTa) have fewer of them
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    longest = min(tokenizer.model_max_length, positions)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if asked is not None and not least <= asked <= longest:
        raise ValueError(
            f"`max_length` must be between {least} and the {longest} tokens that the model reads, got {asked}."
        )
    return int(min(asked or math.inf, longest, 1_000_000))


def load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model; transformers makes up an empty one where there is none, which is refused."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"`model`: there is no tokenizer in {name}; save the one that the backbone was trained with.")
    return tokenizer


def check_writable(folder: str, option: str = "output_dir") -> None:
    """Raises `ValueError` before any work is done where the results could not be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`{option}`: {folder} cannot be written to ({error.strerror}); choose another.") from error


# Models


def is_feedback_model(name: str, hub: dict[str, str]) -> bool:
    """Whether the folder or hub repository holds a feedback model."""
    return PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type") == FeedbackConfig.model_type


def _make_model(args: ModelArguments, labels: LabelSet) -> FeedbackForSequenceClassification:
    """The model to train: a feedback model goes on (only its K can be changed), a backbone gets fresh feedback. A head
    that is trained already has to know the labels of the data."""
    hub = {} if args.revision is None else {"revision": args.revision}
    options = args.feedback_options()
    if is_feedback_model(args.model, hub):
        model = FeedbackForSequenceClassification.from_pretrained(args.model, **hub)
        for option, value in options.items():
            if option == "num_iterations":
                model.set_num_iterations(value)
            elif option in ("feedback_topology", "feedback_edges", "feedback_layers"):
                asked = {name: options.get(name) for name in ("feedback_topology", "feedback_edges", "feedback_layers")}
                edges = resolve_edges(len(model._layers()), *asked.values())
                if edges != model.config.edges():
                    raise ValueError(
                        f"`{option}`: {args.model} is a feedback model already, with the edges {model.config.edges()}, "
                        f"not {edges}; leave the option out, or start from its backbone."
                    )
            elif value != (there := getattr(model.config, option)):
                raise ValueError(
                    f"`{option}`: {args.model} is a feedback model already, with {there!r}, and cannot be changed to "
                    f"{value!r}; leave the option out, or start from its backbone."
                )
    else:
        trained_head = FeedbackForSequenceClassification.has_trained_head(AutoConfig.from_pretrained(args.model, **hub))
        if options.get("head") != "backbone" or not trained_head:
            names = labels.names or ("value",)
            options["problem_type"] = labels.problem_type
            options["id2label"] = dict(enumerate(names))
            options["label2id"] = {name: i for i, name in enumerate(names)}
        model = FeedbackForSequenceClassification.from_backbone(args.model, backbone_kwargs=hub, **options)
    known = LabelSet.of_model(model)
    if known.problem_type != labels.problem_type or not set(labels.names) <= set(known.names):
        raise ValueError(
            f"`model`: {args.model} was trained for the labels {', '.join(known.names) or 'numbers'}, the data has "
            f"{', '.join(labels.names) or 'numbers'}; start from its backbone, or map the labels."
        )
    return model


def _set_padding(model: FeedbackForSequenceClassification, tokenizer: PreTrainedTokenizerBase) -> None:
    """Decoders often come without a padding token: the end of text serves. Model and tokenizer have to agree."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id != tokenizer.pad_token_id:
        model.config.pad_token_id = tokenizer.pad_token_id
        model.backbone.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the backbone only {rows}: they do not belong together."
        )


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
    check_writable(output_dir)
    set_seed(args.seed)
    splits = _read_splits(data_args)
    if "train" not in splits:
        raise ValueError("There is nothing to train on: give `--train-file` or `--dataset-name`.")
    columns = columns_of(*splits["train"], data_args)
    if args.process_index == 0:
        print(f"Columns: {columns}", flush=True)
    labels = LabelSet.of(splits["train"][0], columns.label or "", splits["train"][1], data_args.problem_type)
    names = data_args.metrics or default_metrics(labels.problem_type, labels.num_labels)
    compute_metrics = make_compute_metrics(labels.problem_type, names)
    tokenizer = load_tokenizer(model_args.model, model_args.revision)
    model = _make_model(model_args, labels)
    _set_padding(model, tokenizer)
    encoded = _encode_splits(splits, data_args, tokenizer, model)
    _keep_best_epoch(args, names, "validation" in encoded)
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
    if args.process_index == 0:
        print(model.feedback_summary(), flush=True)
    checkpoint_to_resume = _checkpoint_to_resume(args, model)
    with interrupt:
        metrics = dict(trainer.train(resume_from_checkpoint=checkpoint_to_resume).metrics)
    if interrupt.stopped:
        checkpoint = Path(output_dir) / f"checkpoint-{trainer.state.global_step}"
        raise Interrupted(
            f"Stopped after step {trainer.state.global_step}. To go on: the same command with "
            f"--resume-from-checkpoint {checkpoint}"
        )
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in encoded:
            metrics.update(trainer.evaluate(encoded[split], metric_key_prefix=prefix))
    trainer.card_facts = RunFacts(
        backbone=model_args.model,
        data={split: (splits[split][1], len(data)) for split, data in encoded.items()},
        dataset=data_args.dataset_name,
        metrics=metrics,
        arguments=args,
    )
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    trainer.save_metrics("all", metrics)
    return metrics


def _encode_splits(
    splits: dict[str, tuple[Dataset, str]],
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: FeedbackForSequenceClassification,
) -> dict[str, Dataset]:
    """The splits as token ids and label numbers; a test split without labels is left out."""
    max_length, labels = max_length_of(args.max_length, tokenizer, model), LabelSet.of_model(model)
    encoded: dict[str, Dataset] = {}
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        data, source = splits[split]
        columns = columns_of(data, source, args)
        if split == "test" and not has_labels(data, columns.label):
            logger.warning(f"{source} has no labels and is left out.")
            continue
        encoded[split] = encode(data, columns, tokenizer, max_length, source, labels)
    return encoded


def _keep_best_epoch(args: FeedbackTrainingArguments, metrics: Sequence[str], validated: bool) -> None:
    """Keeps the best epoch, where there is one to know it by and the user said nothing else."""
    if not validated:
        args.eval_strategy, args.load_best_model_at_end = "no", False
    if (args.eval_strategy, args.save_strategy) != ("epoch", "epoch"):
        return
    args.load_best_model_at_end = True
    args.save_total_limit = args.save_total_limit or 1
    if args.metric_for_best_model is None:  # of a metric that is not ours, nobody knows which way is better
        args.metric_for_best_model = metrics[0] if metrics[0] in METRICS else "loss"
    chosen = args.metric_for_best_model.removeprefix("eval_")
    if all(name in METRICS for name in metrics) and chosen not in (*metrics, "loss"):
        known = ", ".join((*metrics, "loss"))
        raise ValueError(f"`metric_for_best_model` must be one of {known}, got {args.metric_for_best_model!r}.")
    if args.greater_is_better is None:
        args.greater_is_better = not chosen.endswith("loss")


def _checkpoint_to_resume(
    args: FeedbackTrainingArguments, model: FeedbackForSequenceClassification
) -> str | bool | None:
    """The checkpoint that `resume_from_checkpoint` names (`True`: the latest one), made by the same model."""
    asked = args.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    folder = get_last_checkpoint(str(args.output_dir)) if str(asked).lower() == "true" else str(asked)
    if folder is None or not (Path(folder) / "config.json").is_file():
        raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint at {folder or args.output_dir}.")
    there, here = FeedbackConfig.from_pretrained(folder).options(), model.config.options()
    changed = [name for name in here if here[name] != there[name] and name not in ("num_iterations", "problem_type")]
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint`: {folder} was made with other options ({', '.join(changed)}); resume with the "
            "same command, or train that checkpoint further with `--model`."
        )
    return folder
