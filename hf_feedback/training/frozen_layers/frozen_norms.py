"""Batch norms that are not trained: they keep their running statistics in training too."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


@contextmanager
def frozen_norms(model: nn.Module) -> Iterator[None]:
    """Context in which batch norms whose parameters are frozen run as in evaluation.

    In training mode they would move their running statistics, and the backbone would no longer be the one that is
    frozen. Parameters may be frozen and unfrozen inside the context. A batch norm without parameters counts as frozen
    if all parameters of the closest module around it that has some are.

    Args:
        model: the model, wrapped or not.

    Example:

    ```python
    >>> import torch
    >>> norm = nn.BatchNorm1d(2).requires_grad_(False)
    >>> with frozen_norms(norm):
    ...     _ = norm(torch.rand(8, 2))
    >>> norm.running_mean, norm.training
    (tensor([0., 0.]), True)

    ```
    """
    modules = dict(model.named_modules())
    with ExitStack() as undo:
        for name, module in modules.items():
            if isinstance(module, _BatchNorm):
                for handle in _register(module, _closest_with_parameters(modules, name)):
                    undo.callback(handle.remove)
        yield


def _register(norm: nn.Module, owner: nn.Module) -> tuple[RemovableHandle, ...]:
    """Hooks that put a batch norm into evaluation mode for each of its calls while its owner is frozen."""
    paused = False

    def pause(*call: object) -> None:
        nonlocal paused
        paused = norm.training and not any(parameter.requires_grad for parameter in owner.parameters())
        norm.training = norm.training and not paused

    def resume(*call: object) -> None:
        norm.training = norm.training or paused

    return norm.register_forward_pre_hook(pause), norm.register_forward_hook(resume, always_call=True)


def _closest_with_parameters(modules: dict[str, nn.Module], name: str) -> nn.Module:
    while name and next(modules[name].parameters(), None) is None:
        name = name.rpartition(".")[0]
    return modules[name]
