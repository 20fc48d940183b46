"""A training run of any task: trains, keeps the best epoch, evaluates, and saves with a model card."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from datasets import IterableDataset

from .advice import PredictionCounter
from .arguments import FeedbackTrainingArguments
from .callbacks import InterruptCallback, show_plain_metrics
from .frozen_layers.prefix_arguments import PREFIX_FOLDER
from .lora import adapter_record, describe_adapters, merge_adapters
from .metrics import MetricInfo
from .model_card import RunFacts
from .output_folder import mark_unfinished, remove_checkpoints
from .parameters.model_parts import has_trained_backbone_head
from .resuming.checkpoint_choice import (
    checkpoint_to_resume,
    is_finished,
    named_checkpoint,
    resumes_newest,
    warn_in_first_process,
)
from .resuming.checkpoints import RESULT_FILES, Record, write_manifest
from .resuming.fingerprints import fingerprint_file
from .resuming.run_record import run_record
from .tasks.task import EncodedSplit, Model, PreparedTask
from .trainer import FeedbackTrainer


class Interrupted(Exception):
    """Training was stopped by Ctrl-C; the message names the checkpoint to resume from."""


def bf16_is_fast() -> bool:
    """Whether bfloat16 is faster on this machine: on GPUs that support it and CPUs with AMX.

    With AVX-512 instructions alone, autocast trained MiniLM more slowly than float32 (0.77 against 0.57 s a step).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def run_task(task: PreparedTask, base_model: str | None, args: FeedbackTrainingArguments) -> dict[str, float]:
    """Trains a model, keeps the best epoch by validation, tests it once, and saves it with metrics and model card.

    If a finished run is resumed, nothing is trained and its metrics are returned.

    Args:
        task: model, processor and encoded data.
        base_model: Hub id or folder that the model started from, for the card; `None` for random weights.
        args: the training arguments; everything is saved in `args.output_dir`.

    Returns:
        The metrics by name: `train_…`, `eval_…` (validation) and `test_…`.

    Raises:
        ValueError: an option has a value that is not allowed.
        Interrupted: Ctrl-C; a checkpoint is in the output folder.
    """
    folder = Path(str(args.output_dir))
    set_best_epoch_arguments(args, task.metrics, "validation" in task.splits)
    interrupt = InterruptCallback()
    trainer = make_trainer(task, args, interrupt)
    splits = ("train", "validation") if args.load_best_model_at_end else ("train",)
    record = trainer.run_record = {**record_of_task(task, args, splits), **trainer.techniques.record}
    if resumes_newest(args) and is_finished(folder, record):
        warn_in_first_process(args, f"{folder}: this run is finished; nothing is left to train.")
        return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    checkpoint = checkpoint_to_resume(args, task.model.config, record)
    trainer.accelerator.wait_for_everyone()  # all processes have checked before anything is removed or written
    starts_anew = not resumes_newest(args) and named_checkpoint(args) is None
    if args.overwrite_output_dir and starts_anew and trainer.is_world_process_zero():
        remove_checkpoints(folder)
    metrics = _train(trainer, checkpoint, interrupt)
    merge_adapters(trainer, args)
    metrics.update(_evaluate(trainer, task.splits))
    if trainer.is_world_process_zero():
        task.write_predictions(folder)
    trainer.card_facts = _card_facts(task, base_model, args, metrics)
    _save(trainer, metrics)
    return metrics


def make_trainer(
    task: PreparedTask,
    args: FeedbackTrainingArguments,
    interrupt: InterruptCallback | None = None,
    model_init: Callable[..., Model] | None = None,
) -> FeedbackTrainer:
    """Returns the trainer of a run, and prints the size and cost of the feedback.

    Args:
        task: model, processor and encoded data.
        args: the training arguments.
        interrupt: stops the run by Ctrl-C.
        model_init: makes the model of each trial of a search, instead of that of the task.
    """
    if isinstance(task.splits["train"].data, IterableDataset) and args.max_steps < 1:
        raise ValueError(
            "`streaming` reads a file whose length is not known; set the length of training with `max_steps`."
        )
    validation = task.splits.get("validation")
    if task.keep_all_columns:
        args.remove_unused_columns = False
    if model_init is None and args.head_lr is None and has_trained_backbone_head(task.model):
        args.head_lr = args.backbone_lr
    summary = task.model.feedback_summary()  # before adapters are added
    trainer = FeedbackTrainer(
        model=None if model_init else task.model,
        model_init=model_init,
        args=args,
        train_dataset=task.splits["train"].data,
        eval_dataset=None if validation is None else validation.data,
        processing_class=task.processor,
        data_collator=task.collator,
        compute_metrics=None if validation is None else validation.compute_metrics,
        preprocess_logits_for_metrics=task.preprocess_logits,
        callbacks=[interrupt] if interrupt else [],
    )
    trainer.training_parts = task.splits["train"].parts
    show_plain_metrics(trainer)
    if args.process_index == 0:
        print("\n".join([summary, *describe_adapters(trainer.model, args)]), flush=True)
    return trainer


def record_of_task(task: PreparedTask, args: FeedbackTrainingArguments, splits: Sequence[str]) -> Record:
    """Returns what a run of a task depends on by name, its data included.

    Args:
        task: model, processor and encoded data.
        args: the training arguments.
        splits: names of the splits that count.
    """
    rows = {name: split.data for name, split in task.splits.items() if name in splits}
    streams = [name for name, data in rows.items() if isinstance(data, IterableDataset)]
    files = {f"file of {name}": fingerprint_file(Path(task.splits[name].source)) for name in streams}
    reading = {f"{option} of {name}": value for name in streams for option, value in task.splits[name].reading.items()}
    record = run_record(args, task.model.config, rows, task.collator)
    return {**record, **adapter_record(task.model, args), **files, **reading}


def _train(trainer: FeedbackTrainer, checkpoint: str | None, interrupt: InterruptCallback) -> dict[str, float]:
    """Trains from the start or from a checkpoint; a checkpoint after the last step is only loaded."""
    if checkpoint is not None and trainer.load_finished(checkpoint):
        warn_in_first_process(trainer.args, f"{checkpoint}: training is complete; the model is evaluated and saved.")
        return {}
    with interrupt:
        output = trainer.train(resume_from_checkpoint=checkpoint or False)
    if interrupt.stopped:
        step = trainer.state.global_step
        raise Interrupted(
            f"Stopped after step {step}. To resume: the same command with --resume "
            f"{shlex.quote(str(Path(str(trainer.args.output_dir)) / f'checkpoint-{step}'))}"
        )
    return dict(output.metrics) if output.global_step else {}  # without steps there is no loss


def _evaluate(trainer: FeedbackTrainer, splits: Mapping[str, EncodedSplit]) -> dict[str, float]:
    """Evaluates the model on the validation and test splits, if any."""
    metrics: dict[str, float] = {}
    for name, prefix in (("validation", "eval"), ("test", "test")):
        if name in splits:
            trainer.compute_metrics = splits[name].compute_metrics
            metrics.update(trainer.evaluate(splits[name].data, metric_key_prefix=prefix))
            if not trainer.state.global_step and isinstance(trainer.compute_metrics, PredictionCounter):
                trainer.compute_metrics.forget()  # an untrained model suggests nothing
    return metrics


def _card_facts(
    task: PreparedTask, base_model: str | None, args: FeedbackTrainingArguments, metrics: Mapping[str, float]
) -> RunFacts:
    return RunFacts(
        backbone=base_model,
        data={name: (split.source, split.count) for name, split in task.splits.items()},
        dataset=task.dataset,
        metrics=metrics,
        arguments=args,
        task=task.card,
        hub_metrics={name: metric.hub_name for name, metric in task.metrics.items() if metric.hub_name is not None},
    )


def _save(trainer: FeedbackTrainer, metrics: dict[str, float]) -> None:
    """Writes model, card, state and metrics into the output folder, and last of all the manifest; states of frozen
    layers are removed."""
    folder, first = Path(str(trainer.args.output_dir)), trainer.is_world_process_zero()
    with mark_unfinished(folder) if first else contextlib.nullcontext():
        trainer.save_model()
        trainer.create_model_card()
        trainer.save_state()
        trainer.save_metrics("all", metrics)
        if first:
            shutil.rmtree(folder / PREFIX_FOLDER, ignore_errors=True)
            write_manifest(folder, trainer.run_record, RESULT_FILES)


def set_best_epoch_arguments(
    args: FeedbackTrainingArguments, metrics: Mapping[str, MetricInfo], validated: bool
) -> None:
    """Sets the arguments that keep the best epoch, if there is a validation split and no option contradicts;
    `load_best_model_at_end` is `None` where it was not given.

    The first metric chooses the best epoch if it is known whether larger is better, else the loss does; also the best
    step, and when a rate is reduced that waits for a plateau.

    Args:
        args: the training arguments, changed in place.
        metrics: metrics of the task by name.
        validated: whether there is a validation split.

    Raises:
        ValueError: `metric_for_best_model` is not a metric of the task, or there is no validation split to choose by.
    """
    if not validated:
        if args.load_best_model_at_end:
            raise ValueError("`load_best_model_at_end` needs validation data; give it, or leave the option out.")
        args.eval_strategy = "no"
    if (args.eval_strategy, args.save_strategy) == ("epoch", "epoch"):
        args.load_best_model_at_end = args.load_best_model_at_end is not False
        if args.load_best_model_at_end:
            args.save_total_limit = args.save_total_limit or 1
    else:
        args.load_best_model_at_end = bool(args.load_best_model_at_end)
        if not args.load_best_model_at_end and args.default_metric is None:  # nothing is chosen
            return
    directions = {name: metric.greater_is_better for name, metric in metrics.items()}
    if args.metric_for_best_model is None or args.metric_for_best_model == args.default_metric:  # it was not given
        first = next(iter(directions), "loss")
        args.metric_for_best_model = "loss" if directions.get(first) is None else first
    chosen = args.metric_for_best_model.removeprefix("eval_")
    if None not in directions.values() and chosen not in (*directions, "loss"):
        known = ", ".join((*directions, "loss"))
        raise ValueError(f"`metric_for_best_model` must be one of {known}, got {args.metric_for_best_model!r}.")
    if args.greater_is_better == args.default_direction:
        direction = directions.get(chosen)
        args.greater_is_better = not chosen.endswith("loss") if direction is None else direction
