"""A training run, whatever the task: train, keep the best epoch, measure, save with a model card."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EvalPrediction, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..model_card import RunFacts
from ..modeling_fnn import FNNForSequenceClassification
from ..modeling_task import FeedbackTaskModel
from .arguments import FeedbackTrainingArguments, ModelArguments
from .callbacks import InterruptCallback
from .networks import FNNArguments
from .trainer import FeedbackTrainer

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

    model: FeedbackTaskModel | FNNForSequenceClassification
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


def check_writable(folder: str, option: str = "output_dir") -> None:
    """Raises `ValueError` before any work is done where the results could not be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`{option}`: {folder} cannot be written to ({error.strerror}); choose another.") from error


def prepare_run(args: FeedbackTrainingArguments) -> None:
    """To be called before data and model are made: the output folder can be written, and the seed is set."""
    check_writable(str(args.output_dir))
    set_seed(args.seed)


def run_task(task: Task, model_args: ModelArguments | FNNArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes on the training split, keeps the best epoch by validation, tests it once, and saves model,
    processor, metrics and model card in `args.output_dir`.

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
    if args.process_index == 0:
        print(task.model.feedback_summary(), flush=True)
    checkpoint_to_resume = _checkpoint_to_resume(args, task.model)
    with interrupt:
        metrics = dict(trainer.train(resume_from_checkpoint=checkpoint_to_resume).metrics)
    if interrupt.stopped:
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{trainer.state.global_step}"
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
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    trainer.save_metrics("all", metrics)
    return metrics


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


def _checkpoint_to_resume(
    args: FeedbackTrainingArguments, model: FeedbackTaskModel | FNNForSequenceClassification
) -> str | bool | None:
    """The checkpoint that `resume_from_checkpoint` names (`True`: the latest one), made by the same model."""
    asked = args.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    folder = get_last_checkpoint(str(args.output_dir)) if str(asked).lower() == "true" else str(asked)
    if folder is None or not (Path(folder) / "config.json").is_file():
        raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint at {folder or args.output_dir}.")
    there, here = type(model.config).from_pretrained(folder).options(), model.config.options()
    changed = [name for name in here if here[name] != there[name] and name not in ("num_iterations", "problem_type")]
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint`: {folder} was made with other options ({', '.join(changed)}); resume with the "
            "same command, or train that checkpoint further with `--model`."
        )
    return folder
