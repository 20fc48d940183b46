"""Movement and attention of the tokens of a text by iteration."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import torch

from ...collected_states import UnknownCollectionError
from ...evaluation_mode import evaluating
from ...forward_context import without_targets
from ...iteration_trace import IterationTrace, batch_first
from ...modeling_base import FeedbackPreTrainedModel
from ...training.iteration_logs.message_recorder import record_attention
from ...validation import Keywords
from .observation import repeat_last, without_halting


@dataclass(frozen=True)
class TokenTrace:
    """The tokens of one text in every iteration.

    Args:
        movement: `‖h_t^(k) − h_t^(k−1)‖ / ‖h_t^(k)‖` of the segment's last layer, before any norm that follows it,
            `(K − 1, T)`.
        attention: attention weights in each iteration from the second on, `(T, T)`, rows sum to 1; empty if unknown.
        attention_source: description of the attention.
    """

    movement: torch.Tensor
    attention: list[torch.Tensor]
    attention_source: str


def trace_tokens(model: FeedbackPreTrainedModel, inputs: Keywords, num_iterations: int) -> TokenTrace | None:
    """Traces the tokens of one text.

    Args:
        model: the model.
        inputs: what `forward` takes, a batch of one text.
        num_iterations: number of traced iterations.

    Returns:
        `None` for a text in several segments, or a question with choices.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> trace_tokens(model, {"input_ids": torch.tensor([[5, 6, 7]])}, num_iterations=3).movement
    tensor([[0., 0., 0.],
            [0., 0., 0.]])

    ```
    """
    inputs = {name: value.to(model.device) for name, value in without_targets(inputs).items()}
    with evaluating(model), torch.no_grad(), without_halting(model):
        trace = cast(IterationTrace, model._run(inputs, num_iterations, keep_trace=True)[1].trace)
        states = [batch_first(state, trace.batch_dim).float() for state in trace.outputs]
        if states[0].shape[0] != 1:
            return None
        attention, source = _attention_of_messages(model, inputs, num_iterations)
        if not attention:
            attention, source = _attention_of_backbone(model, inputs, num_iterations)
    states, attention = repeat_last(states, num_iterations), repeat_last(attention, num_iterations - 1)
    tiny = torch.finfo(torch.float32).tiny
    pairs = zip(states[1:], states[:-1], strict=True)
    movement = [(new - old).norm(dim=-1) / new.norm(dim=-1).clamp_min(tiny) for new, old in pairs]
    moved = torch.cat([states[0].new_zeros(0, states[0].shape[1]), *movement])
    return TokenTrace(moved.cpu(), [one.cpu() for one in attention], source)


def _attention_of_messages(
    model: FeedbackPreTrainedModel, inputs: Keywords, num_iterations: int
) -> tuple[list[torch.Tensor], str]:
    if model.config.feedback_span == "segment":
        return [], ""  # they are of segments, or of their summaries
    with record_attention(model) as weights:
        model(**inputs, num_iterations=num_iterations)
    mean = {k: torch.stack(edges).mean(0)[0] for k, edges in weights.items()}
    return [mean[k] for k in sorted(mean)], "the messages, mean over edges and heads"


def _attention_of_backbone(
    model: FeedbackPreTrainedModel, inputs: Keywords, num_iterations: int
) -> tuple[list[torch.Tensor], str]:
    """The weights of the segment's last layer; empty if the backbone does not return them."""
    layer = model.layout.looped_range[1]
    attention = []
    with _eager_attention(model), suppress(UnknownCollectionError):
        for k in range(2, num_iterations + 1):
            output = model(**inputs, num_iterations=k, output_attentions=True, return_dict=True)
            if output.attentions:
                attention.append(output.attentions[layer][0].float().mean(0))
    return attention, f"layer {layer} of the backbone, mean over heads"


@contextmanager
def _eager_attention(model: FeedbackPreTrainedModel) -> Iterator[None]:
    """Context with the eager attention of the backbone, since other implementations return no weights."""
    before = cast(str, model.backbone.config._attn_implementation)
    model.backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.backbone.set_attn_implementation(before)
