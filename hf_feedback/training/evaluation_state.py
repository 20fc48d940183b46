"""What an evaluation during training leaves as it was, and what it counts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .model_parts import any_model_in


@contextmanager
def keep_weights(model: nn.Module) -> Iterator[None]:
    """Gives parameters and buffers back the tensors that they had, whatever they were cast to meanwhile."""
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
    """Collects the iterations that the examples of each batch take, where they halt by themselves."""
    counts: list[torch.Tensor] = []

    def collect(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        iterations = getattr(output, "iterations", None)
        if iterations is not None:
            counts.append(iterations)

    hook = any_model_in(model)[1].register_forward_hook(collect)
    try:
        yield counts
    finally:
        hook.remove()
