"""Weights of the batches of a step, so that the loss of the step is the mean over all their items."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from ..forward_context import tokens_of
from .data.labels import IGNORED


def count_items(batch: Mapping[str, Any]) -> torch.Tensor:
    """Returns the number of items of a batch in the mean of its loss: labels that count, answers in the text, or rows.

    Example:

    ```python
    >>> count_items({"labels": torch.tensor([[3, 4, -100], [5, -100, -100]])})
    tensor(3)
    >>> count_items({"input_ids": torch.ones(2, 7), "labels": torch.tensor([0.5, 1.5])})
    tensor(2)
    >>> start, end = torch.tensor([1, 7]), torch.tensor([2, 7])
    >>> count_items({"input_ids": torch.ones(2, 7), "start_positions": start, "end_positions": end})
    tensor(1)

    ```
    """
    labels = batch.get("labels")
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        return (labels != IGNORED).sum()
    answered = has_answer(batch)
    if answered is not None:
        return answered.sum()
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    return torch.tensor(len(tensors[0]) if tensors else 1)


def has_answer(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Whether the answer of each row lies in its text, `(B,)`, others being left out of the loss; `None` if the batch
    has no answers to questions."""
    start, end = batch.get("start_positions"), batch.get("end_positions")
    text = tokens_of(batch)
    if start is None or end is None or text is None:
        return None
    return (torch.stack((start.flatten(), end.flatten())) < text.shape[1]).all(0)


def batch_weights(trainer: Trainer, batches: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
    """Returns the weights of the batches of a step in this process.

    The mean over processes and accumulated batches of their losses, each times its weight, is the mean over all items:
    batches may have different numbers of labels, and the last ones of an epoch fewer rows.

    Args:
        trainer: the trainer.
        batches: batches that this process accumulates.

    Returns:
        `None` if all weights are 1: for a single batch, and if the loss itself is divided by the number of items.
    """
    if trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None:
        return None
    return weights_by(trainer, batches, count_items)


def weights_by(
    trainer: Trainer, batches: Sequence[Mapping[str, Any]], count: Callable[[Mapping[str, Any]], torch.Tensor]
) -> torch.Tensor | None:
    """Returns the weights with which the mean of the batch means is the mean over all items of a step.

    Args:
        trainer: the trainer.
        batches: batches that this process accumulates.
        count: returns the number of items of a batch.

    Returns:
        `None` for a single batch, whose weight is 1.
    """
    number, processes = len(batches), trainer.args.world_size
    if number * processes < 2:
        return None
    items = torch.stack([count(batch).to(trainer.args.device) for batch in batches])
    total = items.sum()
    if processes > 1:
        total = trainer.accelerator.reduce(total)
    return items * (number * processes) / total.clamp_min(1)
