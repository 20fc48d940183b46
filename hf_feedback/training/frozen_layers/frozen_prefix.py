"""Layers that do not depend on trained parameters: they run without dropout, and their states may be cached."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeAlias

import torch
from torch import nn
from transformers.utils import logging

from ...collected_states import asks_for_states
from ...layer_recorder import first_argument, is_replaying
from ...loop_record import LayerOutput, hidden_of, with_hidden
from ...switches import is_feedback_disabled
from ...validation import Keywords
from ..parameters.model_parts import feedback_model_in, parts_of
from .frozen_norms import frozen_norms
from .prefix_cache import PrefixCache, TextStates

logger = logging.get_logger(__name__)

LayerStates: TypeAlias = dict[int, torch.Tensor]


@dataclass
class BackboneCall:
    """One call of the backbone.

    Args:
        depth: number of layers, from below, that do not depend on trained parameters in iteration 1.
        in_evaluation_mode: modules of the backbone that are in evaluation mode until these layers have run.
        texts: the texts of the batch in the cache; `None` if nothing is read or written.
        stored: layer → its states, if the cache has all of the batch.
        computed: layer → its states, to be written to the cache.
        position: number of the layer that is called next.
    """

    depth: int
    in_evaluation_mode: list[nn.Module]
    texts: TextStates | None = None
    stored: LayerStates | None = None
    computed: LayerStates = field(default_factory=dict)
    position: int = 0


class FrozenPrefix:
    """Context in which layers that do not depend on trained parameters run without dropout.

    These are frozen embeddings and lower layers in iteration 1, or the whole iteration 1 if the backbone is frozen.
    Later iterations read messages, which are trained. Frozen batch norms keep their running statistics in all of them.
    Parameters may be frozen and unfrozen inside the context.

    Args:
        model: A feedback model with a backbone, wrapped or not.
        cache: stores the states of these layers, which are then read instead of computed.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import FrozenPrefix, freeze_parameters
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> _ = freeze_parameters(model, ["embeddings", "layers:0"])
    >>> with FrozenPrefix(model) as prefix:
    ...     prefix.depth()  # and train
    1

    ```
    """

    def __init__(self, model: nn.Module, cache: PrefixCache | None = None) -> None:
        self._core, self._cache = feedback_model_in(model)[1], cache
        parts = parts_of(model)
        self._parameters: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            self._parameters.setdefault(parts[name], []).append(parameter)
        self._calls: list[BackboneCall] = []
        self._outputs: dict[int, LayerOutput] = {}  # by layer: its output without the states
        self._has_missed = False
        self._undo = ExitStack()

    def depth(self) -> int | None:
        """Returns the number of layers without trained parameters below; `None` if the embeddings are trained."""
        if any(parameter.requires_grad for parameter in self._parameters.get("embeddings", ())):
            return None
        feedback, (first, last) = self._core.feedback, self._core.layout.looped_range
        limit = first if feedback.acts_in_first_iteration and not is_feedback_disabled(self._core) else last + 1
        trained = (layer for layer in range(limit) if self._trains(layer))
        return next(trained, limit)

    def _trains(self, layer: int) -> bool:
        return any(parameter.requires_grad for parameter in self._core.layers[layer].parameters())

    def __enter__(self) -> Self:
        backbone, layers = self._core.backbone, self._core.layers
        self._undo.enter_context(frozen_norms(self._core))
        handles = [
            backbone.register_forward_pre_hook(self._begin, with_kwargs=True),
            backbone.register_forward_hook(self._end, always_call=True),
        ]
        for layer in dict.fromkeys(layers):
            handles.append(layer.register_forward_pre_hook(self._before_layer))
            # before the hook of the loop, in which later iterations run
            handles.append(layer.register_forward_hook(self._after_layer, prepend=True))
            if self._cache is not None:
                if "forward" in layer.__dict__:  # another library's, which is restored afterwards
                    self._undo.callback(setattr, layer, "forward", layer.forward)
                self._undo.callback(layer.__dict__.pop, "forward")
                layer.forward = partial(self._run_layer, layer, layer.forward)
        for handle in handles:
            self._undo.callback(handle.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()
        self._calls.clear()

    # Hooks

    @staticmethod
    def _reason_of_miss(cache: PrefixCache, depth: int | None, args: tuple[Any, ...], kwargs: Keywords) -> str:
        if depth != cache.depth:
            return f"{depth or 'no'} layers are frozen at the front, and the cache was made for {cache.depth}"
        if args:
            return "the backbone is called with positional arguments"
        if asks_for_states(kwargs):
            return "hidden states or attentions are asked for"
        return f"a text in it is not one of the rows, or it has further inputs: {sorted(kwargs)}"

    def _begin(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: Keywords) -> None:
        depth = self.depth()
        call = BackboneCall(depth or 0, [] if depth is None else [one for one in backbone.modules() if one.training])
        self._calls.append(call)
        if self._cache is not None and depth == self._cache.depth and not args and not asks_for_states(kwargs):
            call.texts = self._cache.find(kwargs)
            if call.texts is not None and len(self._outputs) == depth:
                call.stored = self._cache.read(call.texts)
        if self._cache is not None and call.texts is None and backbone.training:
            self._warn_of_miss(self._reason_of_miss(self._cache, depth, args, kwargs))
        for module in call.in_evaluation_mode:
            module.training = False

    def _end(self, backbone: nn.Module, args: tuple[Any, ...], output: object) -> None:
        call = self._calls.pop()
        self._restore_training_mode(call)
        if self._cache is not None and call.texts is not None and call.stored is None and output is not None:
            self._cache.write(call.texts, call.computed)

    def _before_layer(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self._calls and not is_replaying() and self._calls[-1].position == self._calls[-1].depth:
            self._restore_training_mode(self._calls[-1])

    def _after_layer(self, layer: nn.Module, args: tuple[Any, ...], output: LayerOutput) -> None:
        if self._calls and not is_replaying():
            call = self._calls[-1]
            call.position += 1
            if call.position == call.depth:
                self._restore_training_mode(call)

    def _restore_training_mode(self, call: BackboneCall) -> None:
        for module in call.in_evaluation_mode:
            module.training = True
        call.in_evaluation_mode = []

    def _warn_of_miss(self, reason: str) -> None:
        """Warns at the first training batch that is not cached."""
        if not self._has_missed:
            logger.warning(
                f"`cache_prefix`: a training batch is computed again in every epoch: {reason}; change that, or leave "
                "`cache_prefix` out."
            )
        self._has_missed = True

    def _run_layer(
        self, layer: nn.Module, forward: Callable[..., LayerOutput], *args: Any, **kwargs: Any
    ) -> LayerOutput:
        """A layer's `forward`, or its states from the cache."""
        call = self._calls[-1] if self._calls else None
        if call is None or call.texts is None or is_replaying() or call.position >= call.depth:
            return forward(*args, **kwargs)
        hidden = args[0] if args else kwargs[first_argument(layer)]
        if call.stored is not None:
            return with_hidden(self._outputs[call.position], call.stored.get(call.position, hidden))
        if hidden.requires_grad:  # the inputs of the layers are differentiated
            call.texts = None
            self._warn_of_miss("the inputs of the layers need gradients")
            return forward(*args, **kwargs)
        output = forward(*args, **kwargs)
        call.computed[call.position] = hidden_of(output)
        self._outputs[call.position] = _without_states(output, type(layer).__name__)
        return output


def _without_states(output: LayerOutput, name: str) -> LayerOutput:
    if isinstance(output, tuple | list) and any(part is not None for part in output[1:]):
        raise ValueError(f"`cache_prefix`: {name} returns more than hidden states, which are not cached; leave it out.")
    return with_hidden(output, torch.empty(0))
