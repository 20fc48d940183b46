"""State that an evaluation during training restores, and counts that it collects."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size
from torch import nn

from .parameters.model_parts import any_model_in


@contextmanager
def keep_weights(model: nn.Module) -> Iterator[None]:
    """Context that restores the tensors of parameters and buffers, which evaluation may cast to another type."""
    tensors = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        yield
    finally:
        for parameter, tensor in tensors:
            parameter.data = tensor
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


@contextmanager
def count_iterations(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the number of iterations of the examples of each batch, or of their tokens, if the model halts."""
    counts: list[torch.Tensor] = []

    def collect(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        iterations = getattr(output, "iterations", None)
        if iterations is not None:
            counts.append(iterations[iterations > 0].float())  # 0 is padding

    hook = any_model_in(model)[1].register_forward_hook(collect)
    try:
        yield counts
    finally:
        hook.remove()


def count_real_rows(accelerator: Accelerator, batch: Mapping[str, Any]) -> int | None:
    """Returns how many rows of the last batch of a distributed evaluation are no padding; `None` for other batches.

    All processes read batches of the same size, so that the last one is filled up with the first rows.

    Args:
        accelerator: the accelerator during the evaluation of the batch.
        batch: the batch of this process.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder < 1:
        return None
    size = find_batch_size(batch)
    return min(max(state.remainder - accelerator.process_index * size, 0), size)


def first_rows(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns the first rows of a batch."""
    size = find_batch_size(batch)
    has_rows = {name: isinstance(value, torch.Tensor) and len(value) == size for name, value in batch.items()}
    return {name: value[:count] if has_rows[name] else value for name, value in batch.items()}
