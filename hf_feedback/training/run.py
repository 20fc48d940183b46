"""A training run, whatever the task: train, keep the best epoch, measure, save with a model card."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedConfig, set_seed
from transformers.utils import logging

from ..model_card import RunFacts
from ..modeling_base import FeedbackPreTrainedModel
from ..modeling_fnn import FNNForSequenceClassification
from .arguments import FeedbackTrainingArguments, ModelArguments
from .callbacks import InterruptCallback, show_plain_metrics
from .checkpoints import (
    MANIFEST_NAME,
    RESULTS,
    checkpoint_fault,
    checkpoints_in,
    finished_record,
    newest_checkpoint,
    read_manifest,
    write_manifest,
)
from .networks import FNNArguments
from .outputs import UNFINISHED, check_nothing_is_lost, check_writable, finishing, remove_checkpoints
from .records import MAY_CHANGE, differences, model_options, run_record
from .trainer import FeedbackTrainer

logger = logging.get_logger(__name__)

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class Interrupted(Exception):
    """Training was stopped by Ctrl-C; the message says where it can go on from."""


@dataclass(frozen=True)
class Split:
    """A part of the data.

    Args:
        data: as the collator takes it.
        source: the file or data set, for messages and the model card.
        count: how many examples the source holds; the rows of `data` by default.
        compute_metrics: as in `Trainer`; only the loss by default.
    """

    data: Dataset
    source: str
    count: int | None = None
    compute_metrics: ComputeMetrics | None = None


@dataclass(frozen=True)
class Task:
    """What a task brings to a run.

    Args:
        model: a feedback model with the task's head.
        processor: its tokenizer, image processor or feature extractor; saved with the model.
        splits: `train`, and `validation` and `test` where they are there.
        collator: makes batches of rows.
        metrics: name → whether more of it is better, `None` where nobody knows. The first chooses the best epoch, if
            it is known, else the loss does.
        preprocess_logits: as `preprocess_logits_for_metrics` in `Trainer`.
        dataset: hub id of the data, if they came from there.
    """

    model: FeedbackPreTrainedModel | FNNForSequenceClassification
    processor: Any
    splits: Mapping[str, Split]
    collator: Callable[[list[Any]], Mapping[str, Any]]
    metrics: Mapping[str, bool | None] = field(default_factory=dict)
    preprocess_logits: Callable[[Any, Any], torch.Tensor] | None = None
    dataset: str | None = None


def bf16_is_fast() -> bool:
    """Whether bfloat16 pays on this machine: on GPUs that have it and CPUs with AMX.

    With AVX-512 instructions alone, autocast trained MiniLM slower than float32 did (0.77 against 0.57 s a step).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def prepare_run(args: FeedbackTrainingArguments) -> None:
    """To be called before data and model are made: the output folder can be written, and the seed is set.

    Raises:
        ValueError: it cannot, or something is there that is not to be lost.
    """
    folder = Path(str(args.output_dir))
    check_writable(str(folder))
    named = _named_checkpoint(args)
    if _wants_newest(args):
        begun = bool(checkpoints_in(folder)) or (folder / MANIFEST_NAME).is_file()
    else:
        begun = named is not None and named.resolve().parent == folder.resolve()
    if not (args.overwrite_output_dir or begun):
        check_nothing_is_lost(folder)
    set_seed(args.seed)


def run_task(task: Task, model_args: ModelArguments | FNNArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes on the training split, keeps the best epoch by validation, tests it once, and saves model,
    processor, metrics and model card in `args.output_dir`.

    A run that is finished is not trained again where it would go on; its metrics are returned.

    Returns:
        The metrics by name: `train_…`, `eval_…` (validation) and `test_…`.

    Raises:
        ValueError: an option is not as it must be.
        Interrupted: Ctrl-C; a checkpoint is in the output folder.
    """
    splits = task.splits
    _keep_best_epoch(args, task.metrics, "validation" in splits)
    interrupt = InterruptCallback()
    trainer = FeedbackTrainer(
        model=task.model,
        args=args,
        train_dataset=splits["train"].data,
        eval_dataset=splits["validation"].data if "validation" in splits else None,
        processing_class=task.processor,
        data_collator=task.collator,
        compute_metrics=splits["validation"].compute_metrics if "validation" in splits else None,
        preprocess_logits_for_metrics=task.preprocess_logits,
        callbacks=[interrupt],
    )
    show_plain_metrics(trainer)
    if args.process_index == 0:
        print(task.model.feedback_summary(), flush=True)
    compared = ("train", "validation") if args.load_best_model_at_end else ("train",)
    rows = {name: split.data for name, split in splits.items() if name in compared}
    trainer.run_record = run_record(args, task.model.config, rows, task.collator)
    folder = Path(str(args.output_dir))
    if _wants_newest(args) and _is_finished(folder, trainer.run_record):
        _say(args, f"{folder}: this run is finished; nothing is left to train.")
        return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    checkpoint_to_resume = _checkpoint_to_resume(args, task.model.config, trainer.run_record)
    trainer.accelerator.wait_for_everyone()  # all have looked before anything is removed or written
    starts_anew = not _wants_newest(args) and _named_checkpoint(args) is None
    if args.overwrite_output_dir and starts_anew and trainer.is_world_process_zero():
        remove_checkpoints(folder)
    metrics: dict[str, float] = {}
    if checkpoint_to_resume is not None and trainer.load_finished(checkpoint_to_resume):
        _say(args, f"{checkpoint_to_resume}: all steps are trained; the model is measured and saved.")
    else:
        with interrupt:
            trained = trainer.train(resume_from_checkpoint=checkpoint_to_resume)
        metrics = dict(trained.metrics) if trained.global_step else {}  # there is no loss of no steps
    if interrupt.stopped:
        checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
        raise Interrupted(
            f"Stopped after step {trainer.state.global_step}. To go on: the same command with "
            f"--resume-from-checkpoint {checkpoint}"
        )
    for name, prefix in (("validation", "eval"), ("test", "test")):
        if name in splits:
            trainer.compute_metrics = splits[name].compute_metrics
            metrics.update(trainer.evaluate(splits[name].data, metric_key_prefix=prefix))
    trainer.card_facts = RunFacts(
        backbone=model_args.model,
        data={name: (split.source, split.count or len(split.data)) for name, split in splits.items()},
        dataset=task.dataset,
        metrics=metrics,
        arguments=args,
        head=type(task.model).__name__,
    )
    _save(trainer, metrics)
    return metrics


def _save(trainer: FeedbackTrainer, metrics: dict[str, float]) -> None:
    """Model, card, state and metrics into the output folder, and last of all the word that they are there."""
    folder, first = Path(str(trainer.args.output_dir)), trainer.is_world_process_zero()
    with finishing(folder) if first else contextlib.nullcontext():
        trainer.save_model()
        trainer.create_model_card()
        trainer.save_state()
        trainer.save_metrics("all", metrics)
        if first:
            write_manifest(folder, trainer.run_record, RESULTS)


def _keep_best_epoch(args: FeedbackTrainingArguments, metrics: Mapping[str, bool | None], validated: bool) -> None:
    """Keeps the best epoch, where there is one to know it by and the user said nothing else."""
    if not validated:
        args.eval_strategy, args.load_best_model_at_end = "no", False
    if (args.eval_strategy, args.save_strategy) != ("epoch", "epoch"):
        return
    args.load_best_model_at_end = True
    args.save_total_limit = args.save_total_limit or 1
    if args.metric_for_best_model is None:
        first = next(iter(metrics), "loss")
        args.metric_for_best_model = "loss" if metrics.get(first) is None else first
    chosen = args.metric_for_best_model.removeprefix("eval_")
    if None not in metrics.values() and chosen not in (*metrics, "loss"):
        known = ", ".join((*metrics, "loss"))
        raise ValueError(f"`metric_for_best_model` must be one of {known}, got {args.metric_for_best_model!r}.")
    if args.greater_is_better is None:
        known_way = metrics.get(chosen)
        args.greater_is_better = not chosen.endswith("loss") if known_way is None else known_way


def _say(args: FeedbackTrainingArguments, message: str) -> None:
    """Once, however many processes there are."""
    if args.process_index == 0:
        logger.warning(message)


def _wants_newest(args: FeedbackTrainingArguments) -> bool:
    return str(args.resume_from_checkpoint).lower() == "true"


def _named_checkpoint(args: FeedbackTrainingArguments) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` names, if it names one."""
    asked = args.resume_from_checkpoint
    return None if asked is None or str(asked).lower() in ("true", "false") else Path(asked)


def _is_finished(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the results of this very run are in the folder."""
    return not (folder / UNFINISHED).exists() and finished_record(folder) == record


def _checkpoint_to_resume(
    args: FeedbackTrainingArguments, config: PreTrainedConfig, record: Mapping[str, Any]
) -> str | None:
    """The checkpoint to go on from; `None` to start from the beginning.

    Raises:
        ValueError: the one that is named is not complete, it was made with other options, or there is none and
            starting would write over other files.
    """
    checkpoint = _named_checkpoint(args)
    if checkpoint is not None:
        fault = checkpoint_fault(checkpoint, args.world_size, args.load_best_model_at_end)
        if fault is not None:
            raise ValueError(f"`resume_from_checkpoint`: {checkpoint} is not complete: {fault}; name another.")
    elif _wants_newest(args):
        folder = Path(str(args.output_dir))
        say = partial(_say, args)
        checkpoint = newest_checkpoint(folder, args.world_size, args.load_best_model_at_end, say)
        if checkpoint is None:
            if not args.overwrite_output_dir:
                check_nothing_is_lost(folder, checkpoints=False)  # those that are there were passed over
            say(f"{folder} has no complete checkpoint; training starts from the beginning.")
    if checkpoint is not None:
        _check_made_alike(args, checkpoint, config, record)
    return None if checkpoint is None else str(checkpoint)


def _check_made_alike(
    args: FeedbackTrainingArguments, checkpoint: Path, config: PreTrainedConfig, record: Mapping[str, Any]
) -> None:
    """Raises `ValueError` where a run would go on otherwise than it began, and says what is used where it may."""
    manifest = read_manifest(checkpoint)
    there = None if manifest is None else manifest["training"]
    if there is None:
        there = model_options(type(config).from_pretrained(checkpoint))
        _say(args, f"{checkpoint} does not tell how it was made; only the options of the model were compared.")
    changed = differences(there, record)
    said = [changed.pop(name) for name in sorted(MAY_CHANGE & changed.keys())]
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint`: {checkpoint} was made with other options: {'; '.join(changed.values())}. "
            "Give these options as they were (also where a default is another on this machine), or train that "
            "checkpoint further with `--model`."
        )
    if said:
        _say(args, f"Training goes on otherwise than it began: {'; '.join(said)}. One run may give another result.")
