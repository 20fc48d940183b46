"""Temporary evaluation mode of a model, and calls that leave it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode and no graph is built."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def keeping_modules(model: nn.Module) -> Iterator[None]:
    """Context after which a model is as before that replaces modules of its own for a short text, as BigBird does."""
    before = [(module, dict(module._modules), _settings(module)) for module in model.modules()]
    try:
        yield
    finally:
        if any(module._modules != children for module, children, _ in before):
            for module, children, settings in before:
                module._modules = children
                vars(module).update(settings)


def _settings(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, str | int)}
