"""The loop: K iterations over the recorded layers.

    iteration 1:      the plain backbone, recorded
    iteration k ≥ 2:  input of layer l = h_{l-1}^(k) + Σ_{s → l} message_{s→l}(h_s^(k-1), h_{l-1}^(k))

Layers below the looped ones have run once, before; layers above them run once, afterwards.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from .batch_rows import IndivisibleError
from .feedback_connection import MessageContext
from .gradients import Gradient, SameRandomNumbers
from .halting import Halting
from .iteration_trace import States, batch_first
from .loop_record import LayerOutput, LoopRecord, hidden_of, with_hidden
from .model_connections import FeedbackConnections
from .segments import Segments
from .solvers import PartialResidual, graph_of_step

# Called after iteration k with k and the states.
Observer = Callable[[int, States], None]
PackedStates = tuple[torch.Tensor, ...]


class FeedbackLoop:
    """One iteration as a map from the sources' states to the sources' states.

    Args:
        record: the complete record of iteration 1.
        feedback: the connections.
        message_context: what messages may read besides the states.
        token_mask: `(B, T)`, true at the real tokens of the loop's input, if that is known; what moves in padding
            does not count.
        classify: the loop's output `(B, T, d)` → class probabilities `(B, C)`, for messages that read these.
        carries: whether the loop reads its output of the previous iteration instead of its first input.
        batch_axes: positions of batch rows in the recorded arguments; `None`: they cannot be divided.
    """

    def __init__(
        self,
        record: LoopRecord,
        feedback: FeedbackConnections,
        message_context: MessageContext,
        token_mask: torch.Tensor | None = None,
        classify: Callable[[torch.Tensor], torch.Tensor] | None = None,
        carries: bool = False,
        batch_axes: tuple[Any, ...] | None = None,
    ) -> None:
        self.record, self.feedback, self.message_context = record, feedback, message_context
        self.token_mask, self.classify, self.carries, self.batch_axes = token_mask, classify, carries, batch_axes
        self.sources = feedback.source_layers
        self.entry = record.entry  # (B, T, d), the same in every iteration
        self.iteration = 1  # k, the latest one

    def initial_states(self) -> States:
        """h^(1), the states of iteration 1; the highest source is the last looped layer."""
        return {
            call.layer: hidden_of(cast(LayerOutput, call.output))
            for call in self.record.calls
            if call.layer in self.sources
        }

    def step(self, h: States) -> States:
        """One iteration: h^(k−1), as messages read it, → h^(k)."""
        self.record.num_replays += 1
        context = self._start_next_iteration()
        if self.classify:
            context = replace(context, class_probabilities=self.classify(h[self.record.last]))
        source_messages = self.feedback({source: h[source] for source in self.sources}, context)
        x, new = h[self.record.last] if self.carries else self.entry, {}
        for call in self.record.calls:
            x = self.feedback.add_messages(x, call.layer, source_messages, context)
            x = hidden_of(call.replay(x, hooked=call.layer != self.record.last))
            if call.layer in self.sources:
                new[call.layer] = x
        return new

    def repeat(self, h: States) -> None:
        """One iteration of tokens that have all stopped: their states stay, and the cache gets what later tokens read.

        Args:
            h: the states that messages read.
        """
        context = self._start_next_iteration()
        self.feedback(h, context)
        if context.cache is not None:
            context.cache.repeat_keys_and_values()

    def _start_next_iteration(self) -> MessageContext:
        """Counts the next iteration, moves the cache to its slots, and returns the inputs of its messages."""
        self.iteration += 1
        if self.message_context.cache is not None:
            self.message_context.cache.start_iteration(self.iteration)
        return self.message_context

    def output(self, h: States) -> LayerOutput:
        """The output of the last looped layer with the states of some iteration, as the backbone expects it."""
        return with_hidden(cast(LayerOutput, self.record.calls[-1].output), h[self.record.last])

    def select_rows(self, rows: torch.Tensor) -> "FeedbackLoop":
        """The same loop over some rows of the batch alone.

        Raises:
            IndivisibleError: the backbone's recorded arguments do not allow that.
        """
        if self.classify is not None:
            raise IndivisibleError("messages read the answers of the whole batch")
        if self.record.keep is None:
            raise IndivisibleError("the states of all layers are asked for")
        if self.batch_axes is None:
            raise IndivisibleError("the arguments of its layers do not show the rows of the batch")

        def part(mask: torch.Tensor | None) -> torch.Tensor | None:
            return None if mask is None else mask[rows.to(mask.device)]

        segments = self.message_context.segments
        context = replace(
            self.message_context,
            mask=part(self.message_context.mask),
            packed_texts=part(self.message_context.packed_texts),
            segments=None if segments is None else segments.select_rows(rows),
        )
        record = self.record.select_rows(rows, self.batch_axes)
        return FeedbackLoop(record, self.feedback, context, part(self.token_mask), carries=self.carries)

    # States as `solvers.py` takes them: a tuple of tensors, batch first

    def pack(self, h: States) -> PackedStates:
        """The states by source, the lowest first; each `(B, T, d)`."""
        return tuple(batch_first(h[source], self.message_context.batch_dim) for source in sorted(h))

    def unpack(self, packed: PackedStates) -> States:
        """The inverse of `pack`."""
        pairs = zip(sorted(self.sources), packed, strict=True)
        return {source: batch_first(state, self.message_context.batch_dim) for source, state in pairs}


def run_iterations(
    loop: FeedbackLoop,
    num_iterations: int,
    gradient: Gradient,
    observe: Observer | None = None,
    halting: Halting | None = None,
) -> States:
    """Iterations 2 … K over the record of iteration 1.

    Args:
        loop: the map of one iteration.
        num_iterations: K.
        gradient: which iterations get a graph.
        observe: called after each iteration, the first included.
        halting: stops each example, or each token, by itself.

    Returns:
        h^(K); with `halting`, the states in which each example or token stopped.
    """
    new = loop.initial_states()
    if observe:
        observe(1, new)
    if (halting and halting.finish_iteration(1, None, new)) or num_iterations == 1:
        return new
    graph_steps = gradient.graph_steps(num_iterations - 1)
    if graph_steps is not None:  # iteration 1 is not among those that keep a graph
        new = {source: state.detach() for source, state in new.items()}
        loop.record.detach_outputs()
    read = new  # what messages read: the states, damped
    for k in range(2, num_iterations + 1):
        before = new
        with graph_of_step(k - 1, num_iterations - 1, graph_steps):
            read = loop.feedback.damp(read, before)
            new = halting.step(read, before) if halting else loop.step(read)
        if observe:
            observe(k, new)
        if halting and halting.finish_iteration(k, before, new):
            break
    return new


class TextResidual(PartialResidual):
    """`solvers.relative_residual` of texts: padding is left out, and a text has moved as far as any of its segments.

    Args:
        mask: `(B, T)`, 0 at padding.
        segments: the text of each row, if texts were cut.
    """

    def __init__(self, mask: torch.Tensor | None, segments: Segments | None) -> None:
        self.mask, self.segments = mask, segments

    def counted(self, state: PackedStates) -> PackedStates:
        mask = self.mask
        return tuple(
            h if mask is None or mask.shape != h.shape[:2] else h.masked_fill(mask.to(h.device)[..., None] == 0, 0.0)
            for h in state
        )

    def __call__(self, new: PackedStates, old: PackedStates) -> torch.Tensor:
        moved = super().__call__(new, old)
        if self.segments is None:
            return moved
        text = self.segments.text.to(moved.device)
        return moved.new_zeros(self.segments.num_texts).scatter_reduce(0, text, moved, "amax")[text]


def find_fixed_point(
    loop: FeedbackLoop,
    num_iterations: int,
    gradient: Gradient,
    observe: Observer | None = None,
) -> States:
    """Iterations 2 … K towards the fixed point `h* = step(h*)`, with the gradient of the fixed point itself.

    One dropout mask serves all of them, since an implicit gradient needs one fixed map. See `gradients.implicit` for
    what happens where the fixed point is not reached.

    Args:
        loop, observe: as in `run_iterations`.
        num_iterations: K, at most.
        gradient: finds the fixed point.

    Returns:
        The states at the fixed point.
    """
    first, number, damps = loop.initial_states(), len(loop.sources), loop.feedback.damps
    if observe:
        observe(1, first)
    if num_iterations == 1:
        return first

    def iteration(state: PackedStates) -> PackedStates:
        h = loop.unpack(state[:number])
        new = loop.step(h)
        # messages read damped states; the backbone continues with the new ones
        return (*loop.pack(loop.feedback.damp(h, new)), *loop.pack(new)) if damps else loop.pack(new)

    start = loop.pack(first)  # with the graph of iteration 1, which the full gradient needs
    solution = gradient.solve(
        SameRandomNumbers(iteration, loop.entry.device),
        (*start, *start) if damps else start,
        num_iterations - 1,
        residual=TextResidual(loop.token_mask, loop.message_context.segments),
        keep_states=observe is not None,
    )
    for k, state in enumerate(solution.states, 2):
        if observe:
            observe(k, loop.unpack(state[-number:]))
    return loop.unpack(solution.state[-number:])
