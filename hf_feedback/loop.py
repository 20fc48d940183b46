"""The loop: K iterations over the recorded segment.

    iteration 1:      the plain backbone, recorded
    iteration k ≥ 2:  input of layer l = h_{l-1}^(k) + Σ_{s → l} message_{s→l}(h_s^(k-1), h_{l-1}^(k))

Layers below the segment have run once, before; layers above it run once, afterwards.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from .connections import FeedbackConnections, Reading
from .halting import Halting
from .recorder import IndivisibleError, Run, hidden_of

States = dict[int, torch.Tensor]
Observer = Callable[[int, States], None]
Believe = Callable[[torch.Tensor], torch.Tensor]


class Loop:
    """One iteration as a map from the sources' states to the sources' states.

    Args:
        run: the record of iteration 1; its segment is complete.
        feedback: the connections.
        reading: what messages may know besides the states.
        believe: the end of the segment `(B, T, d)` → the model's answer `(B, C)`, for messages that read it.
        carries: whether the end of the last iteration enters the segment again, in place of what entered it first.
        places: where the recorded arguments hold rows of the batch, for `take`; `None`: they cannot be divided.
    """

    def __init__(
        self,
        run: Run,
        feedback: FeedbackConnections,
        reading: Reading,
        believe: Believe | None = None,
        carries: bool = False,
        places: list[Any] | None = None,
    ) -> None:
        self.run, self.feedback, self.reading, self.believe, self.carries = run, feedback, reading, believe, carries
        self.places = places
        self.sources = [int(source) for source in feedback.sources]
        self.entry = run.entry  # (B, T, d), the same in every iteration

    def recorded(self) -> States:
        """h^(1), the states of iteration 1; the highest source is the segment's last layer."""
        return {call.layer: hidden_of(call.output) for call in self.run.segment if call.layer in self.sources}

    def step(self, h: States) -> tuple[Any, States]:
        """h^(k−1) → the segment's output as the backbone expects it (tensor or tuple), and h^(k)."""
        self.run.replays += 1
        reading = self.reading
        if self.believe:
            reading = replace(reading, beliefs=self.believe(h[self.run.last]))
        said = self.feedback({source: h[source] for source in self.sources}, reading)
        x, new, output = h[self.run.last] if self.carries else self.entry, {}, None
        for call in self.run.segment:
            output = call.replay(self.feedback.add(said, call.layer, x, reading), hooked=call.layer != self.run.last)
            x = hidden_of(output)
            if call.layer in self.sources:
                new[call.layer] = x
        return output, new

    def take(self, rows: torch.Tensor) -> "Loop":
        """The same loop over some rows of the batch alone.

        Raises:
            IndivisibleError: the backbone's recorded arguments do not allow that.
        """
        if self.places is None or self.believe is not None or self.run.keep is None:
            reason = "what its layers are called with does not tell the rows of the batch"
            if self.believe is not None:
                reason = "messages read the answers of the whole batch"
            elif self.run.keep is None:
                reason = "the states of all layers are asked for"
            raise IndivisibleError(reason)
        reading = self.reading
        kept = replace(
            reading,
            mask=None if reading.mask is None else reading.mask[rows.to(reading.mask.device)],
            segments=None if reading.segments is None else reading.segments.take(rows),
        )
        return Loop(self.run.take(rows, self.places), self.feedback, kept, carries=self.carries)

    # The same map on a tuple of states, batch first, as `fixed_point` takes them

    def pack(self, h: States) -> tuple[torch.Tensor, ...]:
        """The states by source, the lowest first; each `(B, T, d)`."""
        return tuple(h[source].transpose(0, self.reading.batch_dim) for source in sorted(h))

    def unpack(self, packed: tuple[torch.Tensor, ...]) -> States:
        """The inverse of `pack`."""
        pairs = zip(sorted(self.sources), packed, strict=True)
        return {source: state.transpose(0, self.reading.batch_dim) for source, state in pairs}


def iterate(
    loop: Loop,
    num_iterations: int,
    gradient_iterations: int | None = None,
    observe: Observer | None = None,
    halting: Halting | None = None,
) -> Any:
    """Iterations 2 … K over the record of iteration 1.

    Args:
        loop: the map of one iteration.
        num_iterations: K.
        gradient_iterations: how many iterations, counted from the last, keep a graph; `None`: all.
        observe: called after each iteration, the first included, with k and the states `{source: (B, T, d)}`.
        halting: stops each example by itself.

    Returns:
        The output of the segment's last layer in iteration K, as the backbone expects it (tensor or tuple).
    """
    with_graph = num_iterations if gradient_iterations is None else min(gradient_iterations, num_iterations)
    new, output = loop.recorded(), loop.run.segment[-1].output
    if observe:
        observe(1, new)
    if halting and halting.finished(1, None, new):
        return output
    h = new
    for k in range(2, num_iterations + 1):
        if k <= num_iterations - with_graph + 1:  # iteration k − 1 lies before those that keep a graph
            h, new = ({source: state.detach() for source, state in states.items()} for states in (h, new))
            loop.run.forget()
        h, before = loop.feedback.damp(h, new), new
        with nullcontext() if k > num_iterations - with_graph else torch.no_grad():
            output, new = halting.step(h, before) if halting else loop.step(h)
        if observe:
            observe(k, new)
        if halting and halting.finished(k, before, new):
            break
    return output
