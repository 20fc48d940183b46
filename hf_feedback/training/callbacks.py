"""Callbacks of the feedback trainer."""

import signal
import threading
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


class InterruptCallback(TrainerCallback):
    """Ctrl-C ends training after the running step, with a complete checkpoint to resume from.

    To be used as a context around `trainer.train()`. A second Ctrl-C stops at once. `stopped` tells afterwards whether
    training ended early. In a distributed run all processes stop at the same step.
    """

    def __init__(self) -> None:
        self.interrupted = self.stopped = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        interrupted = self.interrupted
        if args.world_size > 1:
            flag = torch.tensor(int(interrupted), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            interrupted = bool(flag)
        if interrupted and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
        return control


def metrics_in_words(logs: Mapping[str, Any]) -> str:
    """One line of what is logged: `loss 0.693, learning_rate 1e-05, epoch 1`."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in logs.items()
        if name != "total_flos"
    )


class MetricsPrinter(PrinterCallback):
    """As in transformers, in words."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_local_process_zero and logs:
            print(metrics_in_words(logs), flush=True)


class MetricsProgress(ProgressCallback):
    """As in transformers, in words."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.write(metrics_in_words(logs))


def show_plain_metrics(trainer: Trainer) -> None:
    """Metrics are shown in words, and not as a dictionary of texts."""
    for theirs, ours in ((PrinterCallback, MetricsPrinter), (ProgressCallback, MetricsProgress)):
        if trainer.pop_callback(theirs) is not None:
            trainer.add_callback(ours)
