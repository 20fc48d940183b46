"""Restarts of training with smaller batches (`auto_find_batch_size`) from the initial state."""

import random
import shutil
from copy import deepcopy
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import Trainer


class TrainingStart:
    """Weights, optimizer, schedule and random states before training; the weights are kept in the memory of the CPU.

    transformers itself would continue with the weights, the optimizer and the random state after the failed steps.

    Args:
        trainer: the trainer, before its first step.

    Attributes:
        checkpoints: folders that the training has written since.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.checkpoints: list[Path] = []
        self._tensors = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(trainer).items()}
        self._optimizer, self._scheduler = trainer.optimizer, trainer.lr_scheduler  # `None`, or the user's
        self._states = [deepcopy(one.state_dict()) for one in (self._optimizer, self._scheduler) if one is not None]
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore(self, trainer: Trainer) -> None:
        """Restores the initial state of the trainer, and removes the checkpoints written since."""
        for name, tensor in _tensors(trainer).items():
            tensor.copy_(self._tensors[name])
        trainer.optimizer, trainer.lr_scheduler = self._optimizer, self._scheduler
        stateful = [one for one in (self._optimizer, self._scheduler) if one is not None]
        for one, state in zip(stateful, self._states, strict=True):
            one.load_state_dict(deepcopy(state))
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if trainer.args.should_save:
            for checkpoint in self.checkpoints:
                shutil.rmtree(checkpoint, ignore_errors=True)
        self.checkpoints = []


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    model = cast(nn.Module, trainer.model)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
