"""Extraction of `hidden_states` and `attentions` of the last iteration from a backbone's output.

transformers appends at every call of a layer, replays included; some families collect in their own loop, which runs in
iteration 1 only.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers.utils import ModelOutput

from .iteration_trace import batch_first
from .loop_record import LayerCall, LayerOutput, LoopRecord, hidden_of
from .validation import Keywords


class UnknownCollectionError(RuntimeError):
    """A backbone collects its hidden states or attentions in a way that is not known."""


def asks_for_states(inputs: Keywords) -> bool:
    """Whether a backbone is asked for its hidden states or attentions."""
    return bool(inputs.get("output_hidden_states") or inputs.get("output_attentions"))


def collected_key(outputs: ModelOutput, name: str, part: str) -> str:
    """The field with the `hidden_states` or `attentions` of the looped layers: whole encoder–decoders have two of each.

    Args:
        outputs: the backbone's.
        name: `"hidden_states"` or `"attentions"`.
        part: the `backbone_part` of the config.
    """
    half = f"{'decoder' if part == 'decoder' else 'encoder'}_{name}"
    return half if half in outputs and name not in outputs else name


def keep_last_iteration(outputs: ModelOutput, record: LoopRecord, part: str) -> None:
    """Makes `hidden_states` and `attentions` of a backbone's output those of the last iteration, one for each layer.

    Raises:
        UnknownCollectionError: the backbone collects them in a way that is not known.
    """
    key = collected_key(outputs, "hidden_states", part)
    if outputs.get(key) is not None:
        states, _ = _without_replays(outputs[key], len(record.layers) + 1, record.first + 1, record)
        for call in record.calls[:-1]:
            states[call.layer + 1] = batch_first(hidden_of(cast(LayerOutput, call.output)), record.batch_dim)
        outputs[key] = tuple(states)
    key = collected_key(outputs, "attentions", part)
    if outputs.get(key):  # empty where the attention implementation gives none
        attentions, were_replayed = _without_replays(outputs[key], len(record.layers), record.first, record)
        if not were_replayed:
            for call in record.calls[:-1]:
                attentions[call.layer] = _attention_of(call, attentions[call.layer])
        outputs[key] = tuple(attentions)


def _attention_of(call: LayerCall, first: torch.Tensor) -> torch.Tensor:
    """The attention weights in a layer's latest output, which are at the same index as in iteration 1."""
    indices = [i for i, extra in enumerate(call.extras) if extra is first]
    if len(indices) != 1:
        raise UnknownCollectionError(
            f"A {type(call.module).__name__} does not return its attentions as the backbone does; call the model "
            "without `output_attentions`."
        )
    return cast(tuple[Any, ...], call.output)[1 + indices[0]]


def _without_replays(
    collected: Sequence[torch.Tensor], expected: int, start: int, record: LoopRecord
) -> tuple[list[torch.Tensor], bool]:
    """Drops what was collected from all iterations but the last.

    Args:
        collected: what the backbone collected.
        expected: the number without replays.
        start: index of the first entry that the looped layers made.
        record: record of the loop.

    Returns:
        The rest, and whether replays were among it.
    """
    extra = len(collected) - expected
    # the last looped layer replays inside its own call, so what hangs on the layer itself misses it
    if extra not in {0, (len(record.calls) - 1) * record.num_replays, len(record.calls) * record.num_replays}:
        raise UnknownCollectionError(
            f"The backbone collected {len(collected)} tensors where {expected} or a multiple of its replays was "
            "expected; call it without `output_hidden_states` and `output_attentions`."
        )
    return [*collected[:start], *collected[start + extra :]], extra > 0
