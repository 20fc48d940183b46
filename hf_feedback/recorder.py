"""Records the layer calls of iteration 1, so that the loop can replay them.

The hooks are put on the backbone's layers once and hold nothing but a place in the stack. What a forward call records
lives in a `Run`, which belongs to that call and its thread: two threads may run one model at the same time.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in a layer's output, which is a tensor or a tuple (or list) that starts with it."""
    return output[0] if isinstance(output, tuple | list) else output


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """A layer's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden


def first_argument(module: nn.Module) -> str:
    """Name of a layer's first argument, under which hidden states come when they come by name."""
    return next(iter(inspect.signature(module.forward).parameters))


@dataclass
class LayerCall:
    """One call of a layer, as the backbone made it.

    Args:
        layer: its place in the stack, from 0.
        module: the layer itself.
        args, kwargs: what it was called with besides the hidden states.
        keyword: name under which it got the hidden states; `None` where they came first by position.
        hidden: the hidden states that it got, `(B, T, d)`; `None` if they are not kept.
        output: what it returned in the latest iteration; `None` if that is not kept.
        extras: what it returned in iteration 1 besides the hidden states, if that is kept.
    """

    layer: int
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    keyword: str | None
    hidden: Any
    output: Any
    extras: tuple

    def replay(self, hidden: torch.Tensor, hooked: bool = True) -> Any:
        """Calls the layer again with other hidden states and everything else as recorded.

        Args:
            hidden: `(B, T, d)`.
            hooked: call the module with its hooks, or its bare `forward` when the caller runs inside one of them.

        Returns:
            The layer's output.
        """
        call = self.module if hooked else self.module.forward
        if self.keyword is None:
            output = call(hidden, *self.args, **self.kwargs)
        else:
            output = call(*self.args, **self.kwargs, **{self.keyword: hidden})
        if self.output is not None:
            self.output = output
        return output


class IndivisibleError(ValueError):
    """Rows of a batch cannot be taken out of a recorded argument."""


def row_places(two: Any, three: Any) -> Any:
    """Where a layer's arguments hold rows of the batch, found by comparing a call with two rows and one with three.

    Args:
        two, three: the arguments, tensors and tuples, lists and dicts of them.

    Returns:
        The same structure with `(dimension, entries per row)` in place of a tensor, or its shape where it is the same
        for all rows; `None` for what is no tensor.

    Raises:
        IndivisibleError: an argument differs in another way.
    """
    if isinstance(two, torch.Tensor) and isinstance(three, torch.Tensor) and two.dim() == three.dim():
        differ = [i for i in range(two.dim()) if two.shape[i] != three.shape[i]]
        if not differ:
            return two.shape
        if len(differ) == 1 and 3 * two.shape[differ[0]] == 2 * three.shape[differ[0]]:
            return differ[0], two.shape[differ[0]] // 2
    elif isinstance(two, tuple | list) and type(two) is type(three) and len(two) == len(three):
        return [row_places(a, b) for a, b in zip(two, three, strict=True)]
    elif isinstance(two, dict) and isinstance(three, dict) and two.keys() == three.keys():
        return {key: row_places(two[key], three[key]) for key in two}
    elif two is three or (isinstance(two, bool | int | float | str) and two == three):
        return None
    raise IndivisibleError(f"an argument of type {type(two).__name__} is not made of rows")


def take_rows(value: Any, place: Any, rows: torch.Tensor, size: int) -> Any:
    """The arguments for some rows of the batch alone.

    Args:
        value: arguments that were recorded with a batch of `size` rows.
        place: what `row_places` found.
        rows: the numbers of the rows to be kept.

    Raises:
        IndivisibleError: an argument is not of the kind that it was.
    """
    if isinstance(value, torch.Tensor):
        return _rows_of(value, place, rows, size)
    if isinstance(value, tuple | list):
        known = place if isinstance(place, list) and len(place) == len(value) else [None] * len(value)
        taken = [take_rows(v, p, rows, size) for v, p in zip(value, known, strict=True)]
        return tuple(taken) if isinstance(value, tuple) else taken
    if isinstance(value, dict):
        places = place if isinstance(place, dict) else {}
        return {key: take_rows(v, places.get(key), rows, size) for key, v in value.items()}
    return value


def _rows_of(tensor: torch.Tensor, place: Any, rows: torch.Tensor, size: int) -> torch.Tensor:
    if isinstance(place, torch.Size):  # the same for all rows, unless it was expanded for each of them meanwhile
        if len(place) == tensor.dim() and all(n == 1 or m != 1 for n, m in zip(tensor.shape, place, strict=True)):
            return tensor
    elif isinstance(place, tuple) and tensor.dim() > place[0]:
        dim, entries = place
        if tensor.shape[dim] == 1:
            return tensor
        if tensor.shape[dim] == size * entries:
            kept = rows.to(tensor.device)[:, None] * entries + torch.arange(entries, device=tensor.device)
            return tensor.index_select(dim, kept.flatten())
    raise IndivisibleError(f"a tensor of shape {tuple(tensor.shape)} was another when the model was built")


class OutOfOrderError(RuntimeError):
    """The backbone did not call its layers one after the other."""


class Run:
    """The state of one forward call: how far up the stack it is, and what it recorded.

    Args:
        layers: the layer stack, in the order of the calls.
        first, last: the segment that the loop repeats.
        on_segment: called after layer `last` with this run, its segment filled; returns that layer's new output.
        on_input: called before each layer of the segment in iteration 1 with its place and hidden states; returns those
            that the layer is to read.
        keep: the layers whose outputs are kept; `None`: all of them, and their inputs too.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        first: int,
        last: int,
        on_segment: Callable[["Run"], Any] | None = None,
        keep: set[int] | None = None,
        on_input: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.layers, self.first, self.last = layers, first, last
        self.on_segment, self.on_input, self.keep = on_segment, on_input, keep
        self.entry: Any = None  # what entered the segment, `(B, T, d)`
        self.segment: list[LayerCall] = []
        self.position = 0
        self.replaying = False
        self.replays = 0  # how often the segment was repeated
        # Ends of earlier iterations, `(B, T, d)` each, that the layers above the segment shall read as well: what they
        # make of them then stands before the last layer's own output, as a larger batch.
        self.companions: list[torch.Tensor] = []
        self.batch_dim = 0

    def take(self, rows: torch.Tensor, places: list[Any]) -> "Run":
        """The same record for some rows of the batch alone.

        Args:
            rows: their numbers.
            places: for each call of the segment, where its arguments hold rows; see `row_places`.

        Raises:
            IndivisibleError: an argument is not of the kind that it was when `places` were found.
        """
        part = Run(self.layers, self.first, self.last, keep=self.keep)
        size, self_dim = self.entry.shape[self.batch_dim], self.batch_dim
        part.entry, part.batch_dim = self.entry.index_select(self_dim, rows), self_dim
        for call, place in zip(self.segment, places, strict=True):
            args, kwargs = take_rows((call.args, call.kwargs), place, rows, size)
            part.segment.append(replace(call, args=args, kwargs=kwargs, output=None))
        return part

    def forget(self) -> None:
        """Drops the outputs of iteration 1, and with them its graph, unless everything is kept; recorded arguments keep
        theirs."""
        if self.keep is not None:
            for call in self.segment:
                call.output = None

    def enter(self, module: nn.Module, keyword: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Notes what enters the segment, and lets `on_input` change what a layer reads."""
        if not self.first <= self.position <= self.last or module is not self.layers[self.position]:
            return None
        hidden = args[0] if args else kwargs[keyword]
        if self.position == self.first:
            self.entry = hidden
        if self.on_input is None:
            return None
        hidden = self.on_input(self.position, hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, keyword: hidden})

    def record(self, module: nn.Module, keyword: str, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Takes down one layer call; after the segment's last layer, lets the loop replace its output."""
        if self.position >= len(self.layers) or module is not self.layers[self.position]:
            raise OutOfOrderError(
                f"The backbone called its layers out of order: expected layer {self.position} of {len(self.layers)}, "
                f"got a {type(module).__name__}. Layers that are skipped at random (LayerDrop) or routed cannot be "
                "looped; set the option that skips them to 0."
            )
        layer, self.position = self.position, self.position + 1
        if self.first <= layer <= self.last:
            self.segment.append(self._call(layer, module, keyword, args, kwargs, output))
        self.replaying = True
        try:
            if layer == self.last and self.on_segment is not None:
                output = self.on_segment(self)
            elif self.companions:
                call = self._call(layer, module, keyword, args, kwargs, output)
                self.companions = [hidden_of(call.replay(state, hooked=False)) for state in self.companions]
        finally:
            self.replaying = False
        if self.companions and self.position == len(self.layers):
            output = with_hidden(output, torch.cat((*self.companions, hidden_of(output)), self.batch_dim))
        return output

    def _call(
        self, layer: int, module: nn.Module, keyword: str, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> LayerCall:
        hidden, others = (
            (args[0], kwargs) if args else (kwargs[keyword], {k: kwargs[k] for k in kwargs if k != keyword})
        )
        return LayerCall(
            layer=layer,
            module=module,
            args=args[1:],
            kwargs=others,
            keyword=None if args else keyword,
            hidden=hidden if self.keep is None else None,
            output=output if self.keep is None or layer in self.keep else None,
            extras=tuple(output[1:]) if self.keep is None and isinstance(output, tuple | list) else (),
        )


_RUN: ContextVar[Run | None] = ContextVar("hf_feedback_run", default=None)


class _Compiled:
    """Stands in for the context variable while `torch.compile` traces, which cannot follow one."""

    run: Run | None = None
    traced = False  # whether the whole model is; else the layers alone may be compiled, and their hooks leave the graph


_COMPILED = _Compiled()


@contextmanager
def _traced(run: Run | None) -> Iterator[None]:
    before, _COMPILED.run = _COMPILED.run, run
    outside, _COMPILED.traced = _COMPILED.traced, True
    try:
        yield
    finally:
        _COMPILED.run, _COMPILED.traced = before, outside


@contextmanager
def _active(run: Run | None) -> Iterator[None]:
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def recording(run: Run | None) -> Any:
    """Context in which the layers' hooks report to `run`; to nobody where it is `None`."""
    return _traced(run) if torch.compiler.is_compiling() else _active(run)


@torch.compiler.disable
def eagerly(call: Callable[..., Any], *args: Any) -> Any:
    """Calls something outside the compiled graph."""
    return call(*args)


def _current() -> Run | None:
    run = _COMPILED.run if torch.compiler.is_compiling() else _RUN.get()
    return None if run is None or run.replaying else run


class InputHook:
    """Forward pre-hook that tells the run of the current thread, if there is one, what a layer is about to read.

    Args:
        keyword: the layer's `first_argument`.
    """

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling() and not _COMPILED.traced:
            return eagerly(self, module, args, kwargs)
        run = _current()
        return None if run is None else run.enter(module, self.keyword, args, kwargs)


class LayerHook:
    """Forward hook that reports a layer's call to the run of the current thread, if there is one.

    Args:
        keyword: the layer's `first_argument`.
    """

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if torch.compiler.is_compiling() and not _COMPILED.traced:
            return eagerly(self, module, args, kwargs, output)
        run = _current()
        return None if run is None else run.record(module, self.keyword, args, kwargs, output)


def install_hooks(layers: list[nn.Module]) -> None:
    """Puts its hooks on each layer, before every other one (they then see the loop's final output).

    A layer that has one already is left alone, so that a backbone can be wrapped again.
    """
    for layer in set(layers):
        if not any(isinstance(hook, LayerHook) for hook in layer._forward_hooks.values()):
            keyword = first_argument(layer)
            layer.register_forward_pre_hook(InputHook(keyword), with_kwargs=True)
            layer.register_forward_hook(LayerHook(keyword), with_kwargs=True, prepend=True)
