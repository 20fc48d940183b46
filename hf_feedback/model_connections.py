"""All feedback connections of a model: their operators, inputs and messages to each layer."""

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .connections import CONNECTIONS
from .feedback_connection import FeedbackConnection, MessageContext, SourceMessage
from .iteration_trace import States, batch_first
from .segment_connections import SEGMENT_CONNECTIONS
from .stacked_linear import Damping

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


def operators_of(config: "FeedbackConfig") -> list[type[FeedbackConnection]]:
    """The operators whose messages are added.

    Raises:
        ValueError: one is not registered.
    """
    names = config.operator_names
    if config.feedback_span == "segment":
        return [SEGMENT_CONNECTIONS[name] for name in names]
    if unknown := [name for name in names if name not in CONNECTIONS]:
        raise ValueError(
            f"`feedback_type`: {unknown[0]!r} is not among the operators {', '.join(CONNECTIONS)}; import the module "
            "that registers it in `hf_feedback.connections.CONNECTIONS`, or pass `trust_remote_code=True` to "
            "`from_pretrained` if the folder holds its code."
        )
    return [CONNECTIONS[name] for name in names]


def previous_tokens(h: torch.Tensor, context: MessageContext) -> torch.Tensor:
    """`h_{t−1}` for every token t, `(B, T, d)`, 0 for the first one of a text and after padding."""
    if context.mask is not None:
        h = h * context.mask.to(h.device)[..., None]
    return context.shift(h, 1)


class SumConnection(nn.ModuleList):
    """Several operators on the same edges, as in `feedback_type="additive+context"`: their messages are added."""

    def forward(self, h: torch.Tensor, context: MessageContext) -> SourceMessage:
        """The part of each operator."""
        return [operator(h, context) for operator in self]

    def message(
        self, source_message: SourceMessage | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """The sum of the messages of one edge; see `FeedbackConnection.message`."""
        messages = [
            operator.message(None if source_message is None else source_message[i], edge, x, context)
            for i, operator in enumerate(cast(list[FeedbackConnection], self))
            if source_message is not None or operator.acts_in_first_iteration
        ]
        return cast(torch.Tensor, sum(messages))

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """The sums of `FeedbackConnection.flops`."""
        costs = [operator.flops(length, num_segments) for operator in cast(list[FeedbackConnection], self)]
        return sum(source for source, _ in costs), sum(edge for _, edge in costs)


class FeedbackConnections(nn.Module):
    """All feedback connections of a model, one module per source.

    Args:
        config: the feedback options.
        edges: `(source, target)` pairs, layers counted from 0.
        hidden_size: d, the backbone's hidden size.
        causal: whether messages must not inform a token about later ones.

    Shapes:
        `forward(h, context)`: the sources' states of iteration k − 1, `{source: (B, T, d)}` → their parts of the
        messages, for `add_messages`.
    """

    def __init__(
        self, config: "FeedbackConfig", edges: list[tuple[int, int]], hidden_size: int, causal: bool = False
    ) -> None:
        super().__init__()
        targets: dict[int, list[int]] = {}
        for source, target in sorted(edges):
            targets.setdefault(source, []).append(target)
        shared = config.feedback_sharing == "targets"
        operators = operators_of(config)
        self.acts_in_first_iteration = any(operator.acts_in_first_iteration for operator in operators)
        self.mixes_tokens = any(operator.mixes_tokens for operator in operators)
        self.separates_texts = all(operator.separates_texts or not operator.mixes_tokens for operator in operators)
        self.can_generate = all(operator.remembers_tokens or not operator.mixes_tokens for operator in operators)
        remembered = sum(operator.remembers_tokens for operator in operators)
        # of each iteration: what its messages read of a source, which with the error signal depends on the target too
        self.num_message_slots = remembered * len(edges if config.feedback_signal == "error" else targets)
        self.reads_classes = config.feedback_context == "classes" and any(one.may_read_classes for one in operators)

        def connection(num_edges: int) -> nn.Module:
            made = [operator(config, hidden_size, 1 if shared else num_edges, causal) for operator in operators]
            return made[0] if len(made) == 1 else SumConnection(made)

        self.source_layers = list(targets)  # numbers of the sources, ascending
        self.sources = nn.ModuleDict({str(source): connection(len(its)) for source, its in targets.items()})
        self.config = config
        self.damping = Damping(len(targets), config.feedback_damping) if config.learn_damping else None
        # target → (source, number of the edge among those of the source)
        self.incoming: dict[int, list[tuple[int, int]]] = {}
        for source, its_targets in targets.items():
            for edge, target in enumerate(its_targets):
                self.incoming.setdefault(target, []).append((source, 0 if shared else edge))

    def connection(self, source: int) -> FeedbackConnection:
        """The connection of a source, or several as a `SumConnection`."""
        return cast(FeedbackConnection, self.sources[str(source)])

    def forward(self, h: States, context: MessageContext) -> dict[int, SourceMessage]:
        states = {source: batch_first(h[source], context.batch_dim) for source in h}
        if self.config.feedback_shift:
            states = {source: previous_tokens(state, context) for source, state in states.items()}
        return self.project(states, context)

    def project(self, states: States, context: MessageContext) -> dict[int, SourceMessage]:
        """Each source's part of the messages, from the states that its messages read, `(B, T, d)`."""
        return {source: self.connection(source)(state, context) for source, state in states.items()}

    def add_messages(
        self, x: torch.Tensor, target: int, source_messages: dict[int, SourceMessage] | None, context: MessageContext
    ) -> torch.Tensor:
        """`x + Σ_{s → target} message_{s→target}`, in the dtype and on the device of `x`.

        Args:
            x: `(B, T, d)`, the input of layer `target`.
            target: its number.
            source_messages: from `forward`; `None` in iteration 1, where only some operators have messages.
            context: what messages may read besides.
        """
        target_input = batch_first(x, context.batch_dim)
        for source, edge in self.incoming.get(target, ()):
            projected = None if source_messages is None else source_messages[source]
            message = self.connection(source).message(projected, edge, target_input, context)
            x = x + batch_first(message, context.batch_dim).to(x)
        return x

    @property
    def damps(self) -> bool:
        """Whether messages read other states than the new ones."""
        return self.damping is not None or self.config.feedback_damping < 1.0

    def damp(self, previous: States, new: States) -> States:
        """The states that messages read next: the new ones, damped towards the previous ones."""
        if self.damping is not None:
            return {s: self.damping(previous[s], new[s], i) for i, s in enumerate(sorted(new))}
        alpha = self.config.feedback_damping
        return {s: torch.lerp(previous[s], new[s], alpha) for s in new} if self.damps else new

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeedbackConnections":
        """A copy of just the connections, as PEFT makes of `modules_to_save`, follows the config of the same model; as
        part of a larger copy, of which `memo` has something already, they follow a copied one."""
        if not memo:
            memo[id(self.config)] = self.config
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def weight(self) -> None:
        """Nothing; PEFT reads and sets it on every module in `modules_to_save` when adapters such as IA³ are merged."""
        return None

    @weight.setter
    def weight(self, value: None) -> None:
        pass
