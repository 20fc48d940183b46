"""Recording of messages during forward passes: size by edge and iteration, and attention weights."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...activations import Swish
from ...connections import AttentionConnection
from ...feedback_connection import FeedbackConnection, MessageContext, SourceMessage
from ...forward_context import token_mask
from ...modeling_base import FeedbackPreTrainedModel

Edge = tuple[int, int]  # source, target


@dataclass
class MessageSize:
    """Sums over the tokens that received messages of one edge in one iteration.

    Args:
        norm: Σ ‖message‖.
        share: Σ ‖message‖ / ‖x‖, x the input of the target layer.
        count: number of tokens.
    """

    norm: float = 0.0
    share: float = 0.0
    count: int = 0


class MessageRecord:
    """The size of messages, by edge and iteration."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[Edge, int], MessageSize] = {}

    def add(self, edge: Edge, k: int, message: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Adds the messages of a batch.

        Args:
            edge: source and target.
            k: the iteration.
            message: `(B, T, d)`, or `(B, 1, d)` where all tokens get the same.
            x: `(B, T, d)`, the input of the target layer.
            mask: `(B, T)`, true at real tokens; `None`: all are.
        """
        norms = message.float().norm(dim=-1).expand(x.shape[:2])
        shares = norms / x.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        real = torch.ones_like(norms, dtype=torch.bool) if mask is None else mask.to(norms.device)
        size = self.sizes.setdefault((edge, k), MessageSize())
        size.norm += norms[real].sum().item()
        size.share += shares[real].sum().item()
        size.count += int(real.sum())

    def means(self, edge: Edge, num_iterations: int) -> tuple[list[float | None], list[float | None]]:
        """The mean of ‖message‖, and of ‖message‖ / ‖x‖, in iterations 1 to K; `None` where there is no message."""
        sizes = [self.sizes.get((edge, k)) for k in range(1, num_iterations + 1)]
        return (
            [size.norm / size.count if size else None for size in sizes],
            [size.share / size.count if size else None for size in sizes],
        )


@contextmanager
def record_messages(model: FeedbackPreTrainedModel) -> Iterator[MessageRecord]:
    """Context that records the size of every message of a model, over all calls of the model.

    Args:
        model: the model; no other thread may use it meanwhile.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), feedback_edges=[[2, 0]])
    >>> with record_messages(model) as record:
    ...     _ = model(input_ids=torch.tensor([[5, 6, 7]]))
    >>> record.means((2, 0), num_iterations=2)
    ([None, 0.0], [None, 0.0])

    ```
    """
    record = MessageRecord()

    def recording_message(
        source: int, connection: FeedbackConnection, position: _CallPosition
    ) -> Callable[..., torch.Tensor]:
        make_message = connection.message

        def message_and_note(
            source_message: SourceMessage | None, edge: int, x: torch.Tensor, context: MessageContext
        ) -> torch.Tensor:
            message, mask = make_message(source_message, edge, x, context), context.mask
            if mask is None:
                mask = token_mask(model.backbone, position.attention_mask, x.shape[1])
            record.add((source, position.target), position.iteration, message.detach(), x.detach(), mask)
            return message

        return message_and_note

    with _track_position(model) as position, ExitStack() as stack:
        for source in model.feedback.source_layers:
            connection = model.feedback.connection(source)
            stack.enter_context(_replace_method(connection, "message", recording_message(source, connection, position)))
        yield record


@contextmanager
def record_attention(model: FeedbackPreTrainedModel) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Context that records the attention weights of messages.

    Args:
        model: the model; no other thread may use it meanwhile.

    Yields:
        The weights `(B, T, T)` of every edge, for each iteration of the latest call, as a mean over heads; empty if no
        message attends to tokens.
    """
    weights: dict[int, list[torch.Tensor]] = {}

    def recording_attention(operator: AttentionConnection, position: "_CallPosition") -> Callable[..., torch.Tensor]:
        combine = operator.combine

        def combine_and_note(*args: Any) -> torch.Tensor:
            weights.setdefault(position.iteration, []).append(operator.attention_weights(*args).detach().mean(1))
            return combine(*args)

        return combine_and_note

    operators = [one for one in model.feedback.modules() if isinstance(one, AttentionConnection)]
    with _track_position(model) as position, ExitStack() as stack:
        for operator in operators:
            stack.enter_context(_replace_method(operator, "combine", recording_attention(operator, position)))
        yield weights


def swish_betas(model: FeedbackPreTrainedModel) -> dict[Edge, float]:
    """The β of Swish by edge; empty if messages have another activation. Edges that share weights share β, and several
    operators on one edge are averaged."""
    betas: dict[Edge, float] = {}
    for target, incoming in model.feedback.incoming.items():
        for source, edge in incoming:
            activations = [one for one in model.feedback.connection(source).modules() if isinstance(one, Swish)]
            if activations:
                betas[source, target] = sum(one.beta[edge].item() for one in activations) / len(activations)
    return dict(sorted(betas.items()))


@dataclass
class _CallPosition:
    """The iteration and the target layer that a running call has reached."""

    iteration: int = 1
    target: int = 0
    attention_mask: Any = None


@contextmanager
def _track_position(model: FeedbackPreTrainedModel) -> Iterator[_CallPosition]:
    """Context that tracks the current iteration, and the layer that receives messages next."""
    position, feedback = _CallPosition(), model.feedback
    add_messages = feedback.add_messages

    def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        position.iteration, position.attention_mask = 1, kwargs.get("attention_mask")

    def next_iteration(module: nn.Module, args: tuple[Any, ...]) -> None:
        position.iteration += 1

    def to_target(x: torch.Tensor, target: int, *args: Any) -> torch.Tensor:
        position.target = target
        return add_messages(x, target, *args)

    hooks = (
        model.register_forward_pre_hook(start, with_kwargs=True),
        feedback.register_forward_pre_hook(next_iteration),
    )
    try:
        with _replace_method(feedback, "add_messages", to_target):
            yield position
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _replace_method(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Context that replaces a method of one module."""
    before = {key: value for key, value in vars(module).items() if key == name}  # of an outer recording
    module.__dict__[name] = method
    try:
        yield
    finally:
        del module.__dict__[name]
        module.__dict__.update(before)
