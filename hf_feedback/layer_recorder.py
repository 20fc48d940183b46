"""Hooks on the backbone's layers, which report their calls in iteration 1 so that the loop can replay them.

The hooks are put on once and hold nothing but the name of an argument. What a forward call records lives in a
`LoopRecord`, which belongs to that call and its thread: two threads may run one model at the same time.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from .loop_record import LayerArguments, LayerOutput, LoopRecord
from .validation import Keywords


def first_argument(module: nn.Module) -> str:
    """Name of a layer's first argument, under which hidden states come when they come by name."""
    return next(iter(inspect.signature(module.forward).parameters))


_RECORD: ContextVar[LoopRecord | None] = ContextVar("hf_feedback_record", default=None)


class _RecordWhileCompiling:
    """Replacement of the context variable for `torch.compile`, which cannot trace one."""

    record: LoopRecord | None = None
    # Whether the whole model is traced; else the layers alone may be compiled, and their hooks leave the graph.
    is_traced = False


_WHILE_COMPILING = _RecordWhileCompiling()


@contextmanager
def _record_while_compiling(record: LoopRecord | None) -> Iterator[None]:
    before, _WHILE_COMPILING.record = _WHILE_COMPILING.record, record
    was_traced, _WHILE_COMPILING.is_traced = _WHILE_COMPILING.is_traced, True
    try:
        yield
    finally:
        _WHILE_COMPILING.record, _WHILE_COMPILING.is_traced = before, was_traced


@contextmanager
def _record_in_thread(record: LoopRecord | None) -> Iterator[None]:
    token = _RECORD.set(record)
    try:
        yield
    finally:
        _RECORD.reset(token)


def recording(record: LoopRecord | None) -> AbstractContextManager[None]:
    """Context in which the hooks of the layers report to `record`; to nothing if it is `None`."""
    return _record_while_compiling(record) if torch.compiler.is_compiling() else _record_in_thread(record)


@torch.compiler.disable
def run_uncompiled(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function outside the compiled graph."""
    return function(*args)


def _record_of_call() -> LoopRecord | None:
    return _WHILE_COMPILING.record if torch.compiler.is_compiling() else _RECORD.get()


def is_replaying() -> bool:
    """Whether layers that are called now run for a later iteration than the first."""
    record = _record_of_call()
    return record is not None and record.is_replaying


def _current_record() -> LoopRecord | None:
    """The record that layers report to now, none while they are replayed."""
    return None if is_replaying() else _record_of_call()


class InputHook:
    """Forward pre-hook that reports the input of a layer to the current record.

    Args:
        keyword: the layer's `first_argument`.
    """

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def __call__(
        self, module: nn.Module, args: LayerArguments, kwargs: Keywords
    ) -> tuple[LayerArguments, Keywords] | None:
        if torch.compiler.is_compiling() and not _WHILE_COMPILING.is_traced:
            return run_uncompiled(self, module, args, kwargs)
        record = _current_record()
        return None if record is None else record.before_layer(module, self.keyword, args, kwargs)


class LayerHook:
    """Forward hook that reports a layer's call to the current record.

    Args:
        keyword: the layer's `first_argument`.
    """

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def __call__(
        self, module: nn.Module, args: LayerArguments, kwargs: Keywords, output: LayerOutput
    ) -> LayerOutput | None:
        if torch.compiler.is_compiling() and not _WHILE_COMPILING.is_traced:
            return run_uncompiled(self, module, args, kwargs, output)
        record = _current_record()
        return None if record is None else record.after_layer(module, self.keyword, args, kwargs, output)


def install_hooks(layers: list[nn.Module]) -> None:
    """Puts its hooks on each layer, its forward hook before every other one (they then see the loop's final output).

    A layer that has them already is left alone, so that a backbone can be wrapped again.
    """
    for layer in set(layers):
        if not any(isinstance(hook, LayerHook) for hook in layer._forward_hooks.values()):
            keyword = first_argument(layer)
            layer.register_forward_pre_hook(InputHook(keyword), with_kwargs=True)
            layer.register_forward_hook(LayerHook(keyword), with_kwargs=True, prepend=True)
