"""Order of the training rows, which depends only on seed and epoch, so that a resumed run repeats it."""

import math
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthGroups(LengthGroupedSampler):
    """Sampler that groups rows of similar length, in an order that depends only on seed and epoch.

    The sampler of transformers depends on all random numbers drawn before: a resumed run would read other batches, and
    the processes of a distributed run would read some rows twice and others never.

    Args:
        groups: the sampler of transformers to replace.
        seed: seed of the training.
    """

    def __init__(self, groups: LengthGroupedSampler, seed: int) -> None:
        super().__init__(groups.batch_size, lengths=groups.lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that is read next."""
        self.epoch = epoch

    def __iter__(self) -> Any:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


def row_sampler(loader: DataLoader) -> Sampler | None:
    """Returns the sampler that orders the rows, inside its wrappers; `None` for a stream."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return batches if hasattr(batches, "set_epoch") else getattr(batches, "sampler", None)


def set_order(loader: DataLoader, epoch: int) -> bool:
    """Sets the epoch whose order a loader follows.

    Returns:
        Whether the order is known: `False` for a stream and for a custom sampler without `set_epoch`.
    """
    sampler: Any = row_sampler(loader)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
        return True
    return isinstance(sampler, SequentialSampler)


def rows_of_batch(loader: DataLoader, epoch: int, number: int) -> list[int] | None:
    """Returns the rows of one batch that this process has read, counted from 0.

    Args:
        loader: the loader of the training data.
        epoch: the epoch.
        number: number of the batch in the epoch, counted from 0.

    Returns:
        `None` if the order is not known.
    """
    if loader.batch_sampler is None or not set_order(loader, epoch):
        return None
    return list(next(islice(iter(loader.batch_sampler), number, None), []))


def stream_position(state: TrainerState, accumulation: int) -> tuple[int, int]:
    """Returns the position in a stream at which a checkpoint was made; transformers handles the first pass only.

    Args:
        state: state of the checkpoint. Its `epoch` is the number of passes, with the current one as a share of all
            steps.
        accumulation: batches per step.

    Returns:
        Complete passes, and batches read of the current pass.

    Example:

    ```python
    >>> stream_position(TrainerState(epoch=1.25, max_steps=8), accumulation=1)
    (1, 2)

    ```
    """
    passes = max(0, math.ceil(state.epoch or 0) - 1)  # at least one batch of the current pass is read
    return passes, round(((state.epoch or 0) - passes) * state.max_steps * accumulation)


class EpochOrder(TrainerCallback):
    """Sets the order of a resumed epoch in a distributed run.

    accelerate does not set the epoch of a sampler whose first batches are skipped, so that the resumed epoch would be
    read in the order of the first one.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        set_order(kwargs["train_dataloader"], int(state.epoch or 0))
