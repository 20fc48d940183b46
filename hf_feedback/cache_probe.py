"""Probe that checks whether iterations can have their own slots in the cache of a language model."""

from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .backbone_layout import BackboneLayout, without_cache
from .backbone_probe import disturb_states
from .evaluation_mode import evaluating
from .iteration_cache import IterationCache
from .layer_recorder import recording
from .loop_record import LayerOutput, LoopRecord, hidden_of
from .probe_inputs import probe_inputs

CACHE_ARGUMENTS = ("past_key_values", "cache_params")


def probe_cache(backbone: PreTrainedModel, layout: BackboneLayout) -> BackboneLayout:
    """Determines how a language model caches earlier tokens, and whether its layers read all tokens of a call.

    Args:
        backbone: the model with its own head.
        layout: from `probe_backbone`.
    """
    ids = probe_inputs(layout.looped_model(backbone))["input_ids"][:1]
    with evaluating(backbone):
        name = next((name for name in CACHE_ARGUMENTS if name in layout.arguments), None)
        if name is not None and not _has_slots(backbone, layout, ids, name):
            name = None
        arguments = layout.arguments
        if "logits_to_keep" in arguments and _drops_tokens(backbone, layout, ids):
            arguments = arguments - {"logits_to_keep"}
    return replace(layout, cache_argument=name, arguments=arguments)


def _has_slots(backbone: PreTrainedModel, layout: BackboneLayout, ids: torch.Tensor, name: str) -> bool:
    """Whether all that the layers keep of earlier tokens lies in the cache: a second iteration with other states and
    slots of its own then changes nothing in the first one."""
    language_model = cast(Any, backbone)
    if not layout.has_cache or not language_model._supports_default_dynamic_cache():
        return False

    def read_with_cache(num_iterations: int) -> torch.Tensor:
        """The logits of all tokens, the last one read by itself."""
        cache = DynamicCache(config=backbone.config.get_text_config(decoder=True))
        logits = []
        for tokens in (ids[:, :-1], ids[:, -1:]):
            slots = IterationCache(cache, layout.num_layers, layout.looped_range, num_iterations)

            def run_again(record: LoopRecord, slots: IterationCache = slots) -> LayerOutput:
                output, hidden = cast(LayerOutput, record.calls[-1].output), disturb_states(record.entry)
                if num_iterations > 1:
                    slots.start_iteration(2)
                    for call in record.calls:
                        hidden = hidden_of(call.replay(hidden, hooked=False))
                    slots.start_iteration(1)
                return output

            with recording(LoopRecord(layout.layers(backbone), layout.looped_range, run_again)):
                logits.append(backbone(input_ids=tokens, **{name: slots.view}, use_cache=True).logits)
        return torch.cat(logits, 1)

    try:
        return torch.allclose(read_with_cache(2), read_with_cache(1), rtol=1e-4, atol=1e-5)
    except Exception:  # whatever it is: the whole text is then read for every token
        return False


def _drops_tokens(backbone: PreTrainedModel, layout: BackboneLayout, ids: torch.Tensor) -> bool:
    """Whether the layers that loop read only the tokens whose logits are asked for."""
    record = LoopRecord(layout.layers(backbone), layout.looped_range)
    with recording(record):
        backbone(input_ids=ids, logits_to_keep=1, **without_cache(backbone))
    return record.entry.shape[1 - layout.batch_dim] < ids.shape[1]
