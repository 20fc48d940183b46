"""Training that begins again with smaller batches (`auto_find_batch_size`) begins as the first time."""

import random

import numpy as np
import torch
from torch import nn


class TrainingStart:
    """Weights and random states before training, kept in the memory of the CPU.

    transformers goes on with the weights, the optimizer and the random numbers that the steps until then have left.

    Args:
        model: the model that is about to train.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(model).items()}
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Gives the model its weights back, and the sources of random numbers their states."""
        for name, tensor in _tensors(model).items():
            tensor.copy_(self._tensors[name])
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
