"""Dry run of a training run: model, parameter groups, data, and the measured cost of one batch."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import cast

import torch
from datasets import IterableDataset
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from ..validation import Keywords
from .arguments import FeedbackTrainingArguments
from .flops import count_flops
from .frozen_layers.prefix_arguments import make_frozen_prefix
from .run import make_trainer, set_best_epoch_arguments
from .tasks.task import PreparedTask
from .trainer import FeedbackTrainer

MOMENTS = 2  # kept by Adam for every trained parameter


@dataclass(frozen=True)
class StepCost:
    """The cost of a batch, forward and backward.

    Args:
        flops: FLOPs of its matrix products, attention included.
        activations: bytes kept for the backward pass.
        seconds: time on this machine.
    """

    flops: int
    activations: int
    seconds: float


@contextmanager
def as_in_training(trainer: FeedbackTrainer) -> Iterator[None]:
    """Context in which a step runs as in training: with techniques, precision, checkpointing and frozen layers.

    Args:
        trainer: the model, and how it is trained.
    """
    args, model = trainer.args, cast(PreTrainedModel, trainer.model)
    if args.activation_checkpointing:
        options = dict(cast(Keywords, args.activation_checkpointing_kwargs or {}))
        every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
        model.activation_checkpointing_enable(options or None, every_n_layers=every, offload=offload)
    trainer.techniques.start()
    try:
        with make_frozen_prefix(trainer), trainer.accelerator.autocast():
            yield
    finally:
        trainer.techniques.end()
        if args.activation_checkpointing:
            model.activation_checkpointing_disable()


def measure_step(trainer: FeedbackTrainer, batch: Keywords) -> StepCost:
    """Runs a batch twice, forward and backward: once to count operations, once to measure time. Nothing is trained.

    Args:
        trainer: the model, and how it is trained.
        batch: a batch of the training data.
    """
    model, saved = cast(nn.Module, trainer.model), dict[int, int]()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    trainer.current_gradient_accumulation_steps = 1
    with as_in_training(trainer):
        flops = count_flops(lambda: trainer.training_step(model, dict(batch)))
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            started = time.perf_counter()
            trainer.training_step(model, dict(batch))
            seconds = time.perf_counter() - started
    model.zero_grad()
    return StepCost(flops, sum(saved.values()), seconds)


def dry_run(task: PreparedTask, args: FeedbackTrainingArguments) -> str:
    """Prints the model and the parameter groups of a run, and returns a description of data and cost.

    Args:
        task: model, processor and encoded data.
        args: the training arguments; the output folder is not written to.
    """
    set_best_epoch_arguments(args, task.metrics, "validation" in task.splits)
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder  # transformers would create the folder
        trainer = make_trainer(task, args)
        trainer.create_optimizer()
        batches = trainer.get_train_dataloader()
        cost = measure_step(trainer, next(iter(batches)))
        streams = isinstance(task.splits["train"].data, IterableDataset)
        num_batches = None if streams else len(batches)
    return "\n".join([*_describe_data(task), *_describe_cost(cast(nn.Module, trainer.model), args, cost, num_batches)])


def _describe_data(task: PreparedTask) -> list[str]:
    return [
        f"{name}: {split.source}, " + ("read while training" if split.count is None else f"{split.count} examples")
        for name, split in task.splits.items()
    ]


def _describe_cost(
    model: nn.Module, args: FeedbackTrainingArguments, cost: StepCost, num_batches: int | None
) -> list[str]:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    updates = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    # PEFT keeps a copy of what it trains in full, which is not part of the model
    own = [parameter for name, parameter in model.named_parameters() if ".original_module." not in name]
    count, accumulated = sum(parameter.numel() for parameter in own), args.gradient_accumulation_steps
    steps = count_steps(args, num_batches)
    batch = args.per_device_train_batch_size * accumulated
    measured = "the batch of the longest texts" if args.train_sampling_strategy == "group_by_length" else "one batch"
    total = weights + (1 + MOMENTS) * updates + cost.activations
    return [
        f"parameters: {count:,}, of which {sum(parameter.numel() for parameter in trained):,} train",
        f"steps: {steps:,} of {batch} examples a process",
        f"a step: {accumulated * cost.flops:.3g} FLOPs of matrix products, {accumulated * cost.seconds:.2f} s on this "
        f"machine (from {measured}; about {_duration(steps * accumulated * cost.seconds)} in all, evaluation aside)",
        f"memory: at least {_megabytes(total)}: weights {_megabytes(weights)}, gradients and Adam's moments "
        f"{_megabytes((1 + MOMENTS) * updates)}, activations of a batch {_megabytes(cost.activations)}",
        "Nothing was trained or written (`--dry-run`).",
    ]


def count_steps(args: FeedbackTrainingArguments, num_batches: int | None) -> int:
    """Returns the number of steps of a run.

    Args:
        args: the training arguments.
        num_batches: batches of an epoch; `None` if unknown.

    Example:

    ```python
    >>> count_steps(FeedbackTrainingArguments("out", num_train_epochs=3, gradient_accumulation_steps=2), 5)
    9

    ```
    """
    if args.max_steps > 0 or num_batches is None:
        return args.max_steps
    return ceil(args.num_train_epochs * max(1, ceil(num_batches / args.gradient_accumulation_steps)))


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
