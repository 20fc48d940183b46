"""Models whose feedback is switched off, by thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_DISABLED: ContextVar[frozenset[int]] = ContextVar("hf_feedback_disabled", default=frozenset())


class _DisabledWhileCompiling(threading.local):
    """For compiled graphs, which cannot read a context variable: the models of each thread are a guard of theirs."""

    def __init__(self) -> None:  # once in every thread
        self.models: frozenset[int] = frozenset()


_WHILE_COMPILING = _DisabledWhileCompiling()


@contextmanager
def disable_feedback(model: object) -> Iterator[None]:
    """Context in which the feedback of a model is switched off, for the current thread alone."""
    before, token = _WHILE_COMPILING.models, _DISABLED.set(_DISABLED.get() | {id(model)})
    _WHILE_COMPILING.models = before | {id(model)}
    try:
        yield
    finally:
        _WHILE_COMPILING.models = before
        _DISABLED.reset(token)


def is_feedback_disabled(model: object) -> bool:
    """Whether the feedback of a model is switched off in the current thread."""
    return id(model) in (_WHILE_COMPILING.models if torch.compiler.is_compiling() else _DISABLED.get())
