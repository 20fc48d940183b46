"""Callbacks of the feedback trainer."""

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import FrameType
from typing import Any, Self

import torch
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .iteration_logs.iteration_curves import CURVES


class InterruptCallback(TrainerCallback):
    """Stops training on Ctrl-C after the current step, with a complete checkpoint to resume from.

    It is a context around `trainer.train()`. A second Ctrl-C stops immediately. In a distributed run all processes stop
    at the same step.

    Attributes:
        interrupted: whether Ctrl-C was pressed.
        stopped: whether training ended early.

    Example:

    ```python
    >>> with InterruptCallback() as interrupt:
    ...     pass  # trainer.train()
    >>> interrupt.stopped
    False

    ```
    """

    def __init__(self) -> None:
        self.interrupted = self.stopped = False
        self._previous_handler: Any = None  # whatever `signal.signal` returns

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        interrupted = self.interrupted
        if args.world_size > 1:
            flag = torch.tensor(int(interrupted), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            interrupted = bool(flag)
        if interrupted and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
        return control


class EpochCallback(TrainerCallback):
    """Passes the seed of the run and the number of each epoch to a collator, whose random draws depend on them.

    Args:
        collator: has a method `start_epoch(seed, epoch)`.
    """

    def __init__(self, collator: Any) -> None:
        self.collator, self.epoch = collator, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.epoch = int(state.epoch)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.collator.start_epoch(args.seed, self.epoch)
        self.epoch += 1  # counted, since a stream has no length from which epochs follow


def format_logs(logs: Mapping[str, object]) -> str:
    """Formats logged values as one line, without those of single edges.

    Example:

    ```python
    >>> format_logs({"loss": 0.6931, "learning_rate": 1e-05, "epoch": 1.0})
    'loss 0.6931, learning_rate 1e-05, epoch 1'

    ```
    """
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in logs.items()
        if name != "total_flos" and not name.startswith(CURVES)
    )


class PlainLogs(ABC):
    """Shows logged values as one line."""

    @abstractmethod
    def show(self, line: str, state: TrainerState) -> None:
        """Shows one line of logged values."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        if logs:
            self.show(format_logs(logs), state)


class MetricsPrinter(PlainLogs, PrinterCallback):
    """Prints logged values."""

    def show(self, line: str, state: TrainerState) -> None:
        if state.is_local_process_zero:
            print(line, flush=True)


class MetricsProgress(PlainLogs, ProgressCallback):
    """Writes logged values above the progress bar."""

    def show(self, line: str, state: TrainerState) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line)


def show_plain_metrics(trainer: Trainer) -> None:
    """Replaces the callbacks of transformers that show logged values as a dictionary."""
    for default, replacement in ((PrinterCallback, MetricsPrinter), (ProgressCallback, MetricsProgress)):
        if trainer.pop_callback(default) is not None:
            trainer.add_callback(replacement)
