"""The order in which training reads rows: it depends on seed and epoch alone, so that a resumed run repeats it."""

import math
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthGroups(LengthGroupedSampler):
    """Rows of similar length one after another, in an order that depends on seed and epoch alone.

    That of transformers depends on all random numbers that were drawn before: a resumed run would read other batches,
    and the processes of a distributed one would read some rows twice and others never.

    Args:
        groups: what is grouped, and how many rows at a time.
        seed: seed of the training.
    """

    def __init__(self, groups: LengthGroupedSampler, seed: int) -> None:
        super().__init__(groups.batch_size, lengths=groups.lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order is read next."""
        self.epoch = epoch

    def __iter__(self) -> Any:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


def row_sampler(loader: DataLoader) -> Sampler | None:
    """Returns the sampler that orders the rows, inside whatever shares or skips its batches; `None` for a stream."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return batches if hasattr(batches, "set_epoch") else getattr(batches, "sampler", None)


def set_order(loader: DataLoader, epoch: int) -> bool:
    """Has a loader read the rows in the order of an epoch.

    Returns:
        Whether that order is known; not so for a sampler of one's own that has no `set_epoch`, and for a stream.
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
    """Returns where in a stream a checkpoint was made; transformers knows the first pass alone.

    Args:
        state: of the checkpoint. Its `epoch` counts passes; in the running one, shares of the batches of all steps.
        accumulation: batches of a step.

    Returns:
        Passes that were read before, and batches that were read of the running one.

    Example:

    ```python
    >>> stream_position(TrainerState(epoch=1.25, max_steps=8), accumulation=1)
    (1, 2)

    ```
    """
    passes = max(0, math.ceil(state.epoch or 0) - 1)  # batches of the running pass are one at least
    return passes, round(((state.epoch or 0) - passes) * state.max_steps * accumulation)


class EpochOrder(TrainerCallback):
    """Sets the order of each epoch also where the first batches of a resumed epoch are skipped in several processes.

    accelerate does not reach the sampler there: the resumed epoch would be read in the order of the first one.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        set_order(kwargs["train_dataloader"], int(state.epoch or 0))
