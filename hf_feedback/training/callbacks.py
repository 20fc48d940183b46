"""Callbacks of the feedback trainer."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
