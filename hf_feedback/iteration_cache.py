"""A key–value cache with slots for each iteration, for generation.

In iteration k ≥ 2 the looped layers read other hidden states than in iteration 1, so that their keys and values, or
recurrent states, are others too. A cache of transformers for L layers gets S further slots for each of the K − 1
further iterations of S looped layers, and as many as there are messages that read earlier tokens. All slots are
layers of one transformers cache, which reorders, crops, repeats and resets them together.
"""

import copy
from typing import Any, cast

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
    StaticSlidingWindowLayer,
)


def has_recurrent_states(cache: Cache) -> bool:
    """Whether any layer of the backbone keeps a state that every token changes, as in linear attention."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


class IterationCache:
    """The slots of a cache by iteration, for one call of `forward`.

    The layers of the backbone are given `view`, a cache of the same class, whose L slots are those of one iteration.

    Args:
        cache: a cache of transformers; while it is empty it gets the slots of the further iterations.
        num_layers: L.
        looped_range: numbers of the first and the last layer that loop.
        num_iterations: K.
        num_message_slots: slots in each iteration from the second on for messages that read earlier tokens.
        num_state_slots: slots for the states of earlier tokens, whatever the iteration.
        is_kept: whether the cache is used by later calls.

    Raises:
        ValueError: the cache was filled with another number of iterations.

    Example:

    ```python
    >>> from transformers import DynamicCache
    >>> from hf_feedback.iteration_cache import IterationCache
    >>> cache = DynamicCache()
    >>> slots = IterationCache(cache, num_layers=4, looped_range=(1, 3), num_iterations=3)
    >>> len(cache.layers), len(slots.view.layers)
    (10, 4)

    ```
    """

    def __init__(
        self,
        cache: Cache,
        num_layers: int,
        looped_range: tuple[int, int],
        num_iterations: int,
        num_message_slots: int = 0,
        num_state_slots: int = 0,
        is_kept: bool = True,
    ) -> None:
        self.cache, self.num_layers, self.looped_range, self.is_kept = cache, num_layers, looped_range, is_kept
        self.num_iterations, self.num_message_slots = num_iterations, num_message_slots
        self.per_iteration = looped_range[1] - looped_range[0] + 1 + num_message_slots
        self.num_slots = num_layers + (num_iterations - 1) * self.per_iteration + num_state_slots
        if len(cache.layers) != self.num_slots:
            self._add_slots(num_state_slots)
        states = cache.layers[self.num_slots - num_state_slots : self.num_slots]
        self.state_slots = cast(list[CacheLayerMixin], states)
        self.view: Cache = copy.copy(cache)
        # (B, T), true at tokens that keep the keys and values of their last iteration
        self.stopped: torch.Tensor | None = None
        self._latest: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.start_iteration(1)

    def _add_slots(self, num_state_slots: int) -> None:
        layers = self.cache.layers
        if not is_empty(self.cache):
            raise ValueError(
                "`past_key_values` was filled with another number of iterations than this call has, "
                f"{'one pass a token' if num_state_slots else self.num_iterations}: it cannot change in the middle of "
                "a text. Call with the same `num_iterations` and `feedback_shift`, or start with an empty cache. "
                "(Inside `feedback_disabled()` it is 1, as it is in PEFT's prefixes: use adapters or prompts instead.)"
            )
        del layers[self.num_layers :]
        while len(layers) < self.num_layers:  # a cache that was made without a config
            layers.append(cast(Any, self.cache.layer_class_to_replicate)())
        looped = layers[self.looped_range[0] : self.looped_range[1] + 1]
        for _ in range(self.num_iterations - 1):
            layers += [*copy.deepcopy(looped), *(DynamicLayer() for _ in range(self.num_message_slots))]
        layers += [DynamicLayer() for _ in range(num_state_slots)]

    def start_iteration(self, k: int) -> None:
        """From here on, layers and messages read and write the slots of iteration k."""
        slots, (first, last) = list(self.cache.layers[: self.num_layers]), self.looped_range
        start = self.num_layers + (k - 2) * self.per_iteration
        if k > 1:
            slots[first : last + 1] = self.cache.layers[start : start + last - first + 1]
        self.view.layers = slots
        self._next_message_slot = start + last - first + 1

    def hold_stopped_tokens(self) -> None:
        """From here on, tokens that are `stopped` keep the keys and values of their last iteration.

        Raises:
            ValueError: the backbone's layers cache something else.
        """
        for layer in self.cache.layers[self.looped_range[0] : self.looped_range[1] + 1]:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer):
                raise ValueError(
                    f"`halting`: a token that stops keeps its keys and values, and a {type(layer).__name__} caches "
                    "something else; use `halting='none'` with this backbone."
                )
        self.view.update = self._update  # type: ignore[method-assign]

    def _update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Cache.update`, with the latest keys and values `(B, heads, T, d)` for the tokens that have stopped."""
        if self.looped_range[0] <= layer_idx <= self.looped_range[1]:
            if self.stopped is not None:
                stopped, (keys, values) = self.stopped[:, None, :, None].to(key_states.device), self._latest[layer_idx]
                key_states = torch.where(stopped, keys, key_states)
                value_states = torch.where(stopped, values, value_states)
            self._latest[layer_idx] = key_states, value_states
        return type(self.view).update(self.view, key_states, value_states, layer_idx, *args, **kwargs)

    def repeat_keys_and_values(self) -> None:
        """Fills the slots of this iteration with the latest keys and values, without running the layers."""
        for layer, (keys, values) in self._latest.items():
            type(self.view).update(self.view, keys, values, layer)

    def remember(self, tokens: torch.Tensor) -> torch.Tensor:
        """Adds what messages of this iteration read of the new tokens to what they read of the earlier ones.

        It is called for the same tensors in the same order in every call of `forward`.

        Args:
            tokens: `(B, T, n, r)`.

        Returns:
            Of all tokens, `(B, past + T, n, r)`.
        """
        slot = cast(CacheLayerMixin, self.cache.layers[self._next_message_slot])
        self._next_message_slot += 1
        return extend_slot(slot, tokens.transpose(1, 2)).transpose(1, 2)


def extend_slot(slot: CacheLayerMixin, tokens: torch.Tensor) -> torch.Tensor:
    """Appends `(B, n, T, r)` to a slot along T, and returns all that it holds."""
    return slot.update(tokens, tokens[..., :0])[0]


def num_tokens(cache: Cache) -> int:
    """The number of tokens in a cache; 0 if its layers, all recurrent, do not count them."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return 0


def is_empty(cache: Cache) -> bool:
    """Whether a cache holds no token yet."""
    return num_tokens(cache) == 0 and not (any(cache.is_linear) and cache.has_previous_state())


def check_cache_type(cache: object) -> None:
    """Raises `TypeError` for what is neither `None` nor a cache with layers."""
    if cache is not None and not (isinstance(cache, Cache) and hasattr(cache, "layers")):
        raise TypeError(
            f"`past_key_values` must be a Cache of transformers with layers, such as a DynamicCache, got a "
            f"{type(cache).__name__}."
        )


def check_size(cache: Cache, length: int, batch_size: int) -> None:
    """Checks that a cache of fixed size has room.

    Args:
        cache: a cache of transformers.
        length: tokens that it is going to hold.
        batch_size: rows, beams included.

    Raises:
        ValueError: it is too small.
    """
    for layer in cache.layers:
        if not isinstance(layer, StaticLayer):
            continue
        if not layer.is_sliding and layer.max_cache_len < length:
            raise ValueError(
                f"`past_key_values` has room for {layer.max_cache_len} tokens, and prompt and new tokens are up to "
                f"{length}; make a cache with `max_cache_len={length}`, or lower `max_new_tokens`."
            )
        if layer.is_initialized and layer.batch_size != batch_size:
            raise ValueError(
                f"`past_key_values` has room for {layer.batch_size} rows, and there are {batch_size}, beams included; "
                "make a cache for as many, or change `num_beams`."
            )
