"""One pass per token with `feedback_shift`: a token gets the messages of the token before it, whose states are final.

That is the limit of many iterations over the whole text: after K of them the first K − 1 tokens are final.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .collected_states import asks_for_states
from .feedback_connection import MessageContext, SourceMessage
from .forward_context import tokens_of
from .iteration_cache import IterationCache, extend_slot, has_recurrent_states
from .iteration_trace import States
from .layer_recorder import recording
from .loop_record import LayerOutput, LoopRecord, hidden_of
from .model_connections import FeedbackConnections
from .validation import Keywords


def run_in_one_pass(
    backbone: PreTrainedModel,
    layers: list[nn.Module],
    looped_range: tuple[int, int],
    feedback: FeedbackConnections,
    inputs: Keywords,
    mask: Any,
    cache: IterationCache,
) -> ModelOutput:
    """Calls a language model for one token after the other, each with the messages of the one before.

    Args:
        backbone: the language model.
        layers: layers of the backbone.
        looped_range: numbers of the lowest and of the highest layer with messages.
        feedback: the connections.
        inputs: inputs of the backbone for T tokens.
        mask: `(B, past + T)`, 0 at padding; `None`: there is none.
        cache: holds the sources' states of earlier tokens, and gets those of the new ones.

    Returns:
        The backbone's output for the last token, with the logits of all that are asked for.

    Raises:
        ValueError: hidden states, attentions or a loss of the router are asked for, padding stands before the texts of
            a backbone whose layers carry a state, or the mask has other dimensions.
    """
    _check_inputs(inputs, mask, cache)
    length, keep = tokens_of(inputs).shape[1], 0
    if "logits_to_keep" in inputs:
        keep, inputs = inputs["logits_to_keep"], {**inputs, "logits_to_keep": 0}
    outputs = []
    for t in range(length):
        until_token = None if mask is None else mask[:, : mask.shape[1] - length + t + 1]
        with recording(_make_record(layers, looped_range, feedback, cache, until_token)):
            outputs.append(backbone(**_inputs_of_token(inputs, t, length)))
    if outputs[-1].get("aux_loss") is not None:
        raise ValueError(
            "`output_router_logits` cannot be had in one pass with `feedback_shift`=1, which has a loss of the router "
            "for each token alone; call with `use_cache=False`."
        )
    logits = torch.cat([output.logits for output in outputs], 1)
    kept = slice(-keep, None) if isinstance(keep, int) else keep  # -0 is the first
    outputs[-1].logits = logits[:, kept]
    return outputs[-1]


def _check_inputs(inputs: Keywords, mask: Any, cache: IterationCache) -> None:
    """Raises `ValueError` for what cannot be had token by token; see `run_in_one_pass`."""
    if (given := inputs.get("attention_mask")) is not None and given.dim() != 2:
        raise ValueError(
            f"`attention_mask` must be (batch, tokens) in one pass with `feedback_shift`=1, got {tuple(given.shape)}."
        )
    if asks_for_states(inputs):
        raise ValueError(
            "`output_hidden_states` and `output_attentions` cannot be had in one pass with `feedback_shift`=1; call "
            "with `use_cache=False`."
        )
    is_padded_before = mask is not None and bool(((mask[:, :-1] == 0) & (mask[:, 1:] != 0)).any())
    if has_recurrent_states(cache.cache) and is_padded_before:
        raise ValueError(
            "The backbone carries a state through its layers, which in one pass with `feedback_shift`=1 would read the "
            "padding before a text; call with texts of one length, one at a time, or with `use_cache=False`."
        )


def _inputs_of_token(inputs: Keywords, t: int, length: int) -> Keywords:
    """The inputs of the t-th of `length` tokens, with the mask of that and of all earlier ones."""
    cut = dict(inputs)
    for name in ("input_ids", "inputs_embeds", "token_type_ids"):
        if name in cut:
            cut[name] = cut[name][:, t : t + 1]
    if "position_ids" in cut:
        cut["position_ids"] = cut["position_ids"][..., t : t + 1]
    if "attention_mask" in cut:
        cut["attention_mask"] = cut["attention_mask"][:, : cut["attention_mask"].shape[1] - length + t + 1]
    return cut


def _make_record(
    layers: list[nn.Module],
    looped_range: tuple[int, int],
    feedback: FeedbackConnections,
    cache: IterationCache,
    mask: torch.Tensor | None,
) -> LoopRecord:
    """Adds the messages of the token before to the inputs of the layers, and keeps the sources' states of this one."""
    sources = feedback.source_layers
    messages: list[dict[int, SourceMessage]] = []

    def on_input(layer: int, x: torch.Tensor) -> torch.Tensor:
        if not messages:  # at the first looped layer
            messages.append(feedback.project(_states_before(x, sources, cache, mask), MessageContext()))
        return feedback.add_messages(x, layer, messages[0], MessageContext())

    def on_last_layer(record: LoopRecord) -> LayerOutput:
        outputs = {call.layer: cast(LayerOutput, call.output) for call in record.calls}
        for source, slot in zip(sources, cache.state_slots, strict=True):
            extend_slot(slot, hidden_of(outputs[source])[:, None])
        return outputs[record.last]

    return LoopRecord(layers, looped_range, on_last_layer, on_input, keep=set(sources))


def _states_before(x: torch.Tensor, sources: list[int], cache: IterationCache, mask: torch.Tensor | None) -> States:
    """The sources' states of the token before, 0 where there is none.

    Args:
        x: `(B, 1, d)`, what the first looped layer is to read.
        sources: numbers of the layers.
        cache: holds their states.
        mask: `(B, past + 1)`, 0 at padding.
    """
    if cache.state_slots[0].get_seq_length() == 0:
        return {source: torch.zeros_like(x) for source in sources}
    slots = zip(sources, cache.state_slots, strict=True)
    states = {source: cast(torch.Tensor, slot.keys)[:, 0, -1:] for source, slot in slots}
    if mask is None:
        return states
    return {source: h * (mask[:, -2, None, None] != 0).to(h) for source, h in states.items()}
