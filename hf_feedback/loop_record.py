"""The record of the looped layers in one forward call, from which they are called again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .batch_rows import select_rows
from .validation import Keywords

# The arguments of a layer call, and what it returns: a tensor, or a tuple that starts with one.
LayerArguments = tuple[Any, ...]
LayerOutput = torch.Tensor | tuple[Any, ...] | list[Any]


def hidden_of(output: LayerOutput) -> torch.Tensor:
    """The hidden states in a layer's output."""
    return output[0] if isinstance(output, tuple | list) else output


def with_hidden(output: LayerOutput, hidden: torch.Tensor) -> LayerOutput:
    """A layer's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden


@dataclass
class LayerCall:
    """One call of a layer, as the backbone made it.

    Args:
        layer: its number in the stack, from 0.
        module: the layer itself.
        args, kwargs: its arguments except the hidden states.
        keyword: the name under which it got the hidden states; `None` if they came first by position.
        hidden: the hidden states that it got, `(B, T, d)`; `None` if they are not kept.
        output: its output in the latest iteration; `None` if that is not kept.
        extras: what it returned in iteration 1 besides the hidden states, if that is kept.
    """

    layer: int
    module: nn.Module
    args: LayerArguments
    kwargs: Keywords
    keyword: str | None
    hidden: torch.Tensor | None
    output: LayerOutput | None
    extras: tuple[Any, ...]

    def replay(self, hidden: torch.Tensor, hooked: bool = True) -> LayerOutput:
        """Calls the layer again with other hidden states and everything else as recorded.

        Args:
            hidden: `(B, T, d)`.
            hooked: call the module with its hooks, or its bare `forward` when the caller runs inside one of them.
        """
        call = self.module if hooked else self.module.forward
        if self.keyword is None:
            output = call(hidden, *self.args, **self.kwargs)
        else:
            output = call(*self.args, **self.kwargs, **{self.keyword: hidden})
        if self.output is not None:
            self.output = output
        return output


class OutOfOrderError(RuntimeError):
    """The backbone did not call its layers one after the other."""


class LoopRecord:
    """The record of the looped layers in one forward call, and the position of the next layer.

    Args:
        layers: all layers, in the order of the calls.
        looped_range: numbers of the first and the last layer that the loop repeats.
        on_last_layer: called after the last looped layer with this record; returns the new output of that layer.
        on_input: called before each looped layer in iteration 1 with its number and hidden states; returns the
            hidden states that the layer is to read.
        keep: numbers of the layers whose outputs are kept; `None`: all of them, and their inputs too.
        batch_dim: which dimension of the hidden states is the batch.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        looped_range: tuple[int, int],
        on_last_layer: "Callable[[LoopRecord], LayerOutput] | None" = None,
        on_input: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
        keep: set[int] | None = None,
        batch_dim: int = 0,
    ) -> None:
        self.layers, (self.first, self.last) = layers, looped_range
        self.on_last_layer, self.on_input, self.keep, self.batch_dim = on_last_layer, on_input, keep, batch_dim
        self.entry: Any = None  # the hidden states that entered the looped layers, (B, T, d)
        self.calls: list[LayerCall] = []
        self.position = 0  # of the layer that is called next
        self.is_replaying = False
        self.num_replays = 0
        # Outputs of the loop in earlier iterations, (B, T, d) each, that the layers above it are to read as well:
        # their results then come before the last layer's own output, as a larger batch.
        self.earlier_states: list[torch.Tensor] = []

    def select_rows(self, rows: torch.Tensor, batch_axes: tuple[Any, ...]) -> "LoopRecord":
        """The same record for some rows of the batch alone.

        Args:
            rows: `(n,)`, their numbers.
            batch_axes: for each call of a looped layer, where its arguments hold rows; see `find_batch_axes`.

        Raises:
            IndivisibleError: an argument has another shape than when the axes were found.
        """
        part = LoopRecord(self.layers, (self.first, self.last), keep=self.keep, batch_dim=self.batch_dim)
        batch_size = self.entry.shape[self.batch_dim]
        part.entry = self.entry.index_select(self.batch_dim, rows)
        for call, axes in zip(self.calls, batch_axes, strict=True):
            args, kwargs = select_rows((call.args, call.kwargs), axes, rows, batch_size)
            part.calls.append(replace(call, args=args, kwargs=kwargs, output=None))
        return part

    def detach_outputs(self) -> None:
        """Drops the graph of iteration 1 from the outputs, unless all are kept; recorded arguments keep theirs."""
        if self.keep is not None:
            for call in self.calls:
                if isinstance(call.output, tuple | list):
                    parts = [one.detach() if isinstance(one, torch.Tensor) else one for one in call.output]
                    call.output = parts if isinstance(call.output, list) else tuple(parts)
                elif call.output is not None:
                    call.output = call.output.detach()

    def before_layer(
        self, module: nn.Module, keyword: str, args: LayerArguments, kwargs: Keywords
    ) -> tuple[LayerArguments, Keywords] | None:
        """Records the hidden states that enter the loop, and applies `on_input` to those that a layer reads."""
        if not self.first <= self.position <= self.last or module is not self.layers[self.position]:
            return None
        hidden = args[0] if args else kwargs[keyword]
        if self.position == self.first:
            self.entry = hidden
        if self.on_input is None:
            return None
        hidden = self.on_input(self.position, hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, keyword: hidden})

    def after_layer(
        self, module: nn.Module, keyword: str, args: LayerArguments, kwargs: Keywords, output: LayerOutput
    ) -> LayerOutput:
        """Records one layer call; after the last looped layer, lets the loop replace its output."""
        if self.position >= len(self.layers) or module is not self.layers[self.position]:
            raise OutOfOrderError(
                f"The backbone called its layers out of order: expected layer {self.position} of {len(self.layers)}, "
                f"got a {type(module).__name__}. Layers that are skipped at random (LayerDrop) or routed cannot be "
                "looped; set the option that skips them to 0."
            )
        layer, self.position = self.position, self.position + 1
        if self.first <= layer <= self.last:
            self.calls.append(self._layer_call(layer, module, keyword, args, kwargs, output))
        self.is_replaying = True
        try:
            if layer == self.last and self.on_last_layer is not None:
                output = self.on_last_layer(self)
            elif self.earlier_states:
                call = self._layer_call(layer, module, keyword, args, kwargs, output)
                self.earlier_states = [hidden_of(call.replay(state, hooked=False)) for state in self.earlier_states]
        finally:
            self.is_replaying = False
        if self.earlier_states and self.position == len(self.layers):
            output = with_hidden(output, torch.cat((*self.earlier_states, hidden_of(output)), self.batch_dim))
        return output

    def _layer_call(
        self, layer: int, module: nn.Module, keyword: str, args: LayerArguments, kwargs: Keywords, output: LayerOutput
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
