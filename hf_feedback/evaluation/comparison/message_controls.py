"""Controls of feedback with other messages, which isolate the effect of top-down messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ...feedback_connection import MessageContext, SourceMessage
from ...iteration_trace import States, batch_first
from ...model_connections import FeedbackConnections
from ...modeling_base import FeedbackPreTrainedModel


class BottomUpConnections(FeedbackConnections):
    """The same operators and parameters, reading the target layer's own input in the first iteration."""

    def add_messages(
        self, x: torch.Tensor, target: int, source_messages: dict[int, SourceMessage] | None, context: MessageContext
    ) -> torch.Tensor:
        own = batch_first(x, context.batch_dim)
        sources = [source for source, _ in self.incoming.get(target, ())]
        return super().add_messages(x, target, self.project(dict.fromkeys(sources, own), context), context)


class SilentConnections(FeedbackConnections):
    """No messages."""

    def add_messages(
        self, x: torch.Tensor, target: int, source_messages: dict[int, SourceMessage] | None, context: MessageContext
    ) -> torch.Tensor:
        return x


class SwappedConnections(FeedbackConnections):
    """Every example of a batch receives the messages of the previous example, the first one those of the last.

    A token reads the state of the other example's token at the same position, modulo the length of that example;
    padding is never read. Segments of long texts are paired in the same way.
    """

    def forward(self, h: States, context: MessageContext) -> dict[int, SourceMessage]:
        states = {source: _states_of_previous_example(state, context) for source, state in h.items()}
        classes = context.class_probabilities
        swapped = replace(context, class_probabilities=None if classes is None else classes.roll(1, 0))
        return super().forward(states, swapped)


def _rows_of_previous_example(context: MessageContext, count: int) -> torch.Tensor:
    """For each row the row of the previous example, `(N,)`."""
    if context.segments is None:
        return torch.arange(count).roll(1)
    text, num_texts = context.segments.text.cpu(), context.segments.num_texts
    counts = torch.bincount(text, minlength=num_texts)
    first, other = counts.cumsum(0) - counts, (text - 1) % num_texts
    return first[other] + (torch.arange(count) - first[text]) % counts[other]


def _states_of_previous_example(state: torch.Tensor, context: MessageContext) -> torch.Tensor:
    h = batch_first(state, context.batch_dim)
    rows = _rows_of_previous_example(context, len(h)).to(h.device)
    h = h[rows]
    if context.mask is None:
        return batch_first(h, context.batch_dim)
    own = context.mask.to(h.device)
    other = own[rows]
    place = (own.cumsum(1) - 1).clamp_min(0) % other.sum(1, keepdim=True).clamp_min(1)
    index = (~other).int().argsort(dim=1, stable=True).gather(1, place)  # positions of real tokens first
    return batch_first(h.gather(1, index[..., None].expand_as(h)), context.batch_dim)


def read_bottom_up(model: FeedbackPreTrainedModel) -> None:
    """Makes the messages of a model bottom-up; with K = 1 they are read once, in each target layer's input."""
    model.feedback.__class__ = BottomUpConnections
    model.feedback.acts_in_first_iteration = True


@contextmanager
def other_messages(model: FeedbackPreTrainedModel, connections: type[FeedbackConnections]) -> Iterator[None]:
    """Context that replaces the messages of a model.

    Args:
        model: A feedback model.
        connections: `SilentConnections` or `SwappedConnections`.
    """
    changed = [
        module for module in model.feedback.modules() if isinstance(module, FeedbackConnections)
    ]  # PEFT has two copies
    before = [(type(module), module.mixes_tokens) for module in changed]
    try:
        for module in changed:
            module.__class__, module.mixes_tokens = connections, True  # so that the padding is known
        yield
    finally:
        for module, (own_type, mixes_tokens) in zip(changed, before, strict=True):
            module.__class__, module.mixes_tokens = own_type, mixes_tokens
