"""Halting of single tokens, in models that predict the next one."""

from typing import TYPE_CHECKING

import torch

from .halting import Halting, LogitsOfState
from .iteration_cache import IterationCache
from .iteration_trace import States, relative_change_of_tokens

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig
    from .feedback_loop import FeedbackLoop


class TokenHalting(Halting):
    """Stops each token by itself, at the first iteration at which its rules hold.

    In the iterations that a token does not take, it keeps the hidden states, keys and values of its last one: later
    tokens find these in the cache, and messages read them. Whether a token stops depends on it and on earlier ones
    alone, so that token by token and all at once give the same. Where all tokens of a call have stopped, the layers are
    not run any more. With rules that never hold, all K iterations are taken.

    Args:
        config: the options of halting.
        loop: the loop over the tokens of this call.
        cache: cache of this call; if the model is called without one, it is dropped after the call.
        logits_of_state: the output of the loop → logits `(B, T, V)`, for rules that read the answers.

    Raises:
        ValueError: the backbone's layers, or the messages, keep something else of earlier tokens.
    """

    def __init__(
        self,
        config: "FeedbackConfig",
        loop: "FeedbackLoop",
        cache: IterationCache,
        logits_of_state: LogitsOfState | None = None,
    ) -> None:
        if config.feedback_signal == "error" and loop.feedback.num_message_slots:
            raise ValueError(
                f"`halting`={config.halting!r}: with `feedback_signal='error'`, what other tokens read of a token "
                "depends on the layer, which a token that has stopped does not run; use `feedback_signal='state'`, or "
                "`halting='none'`."
            )
        self.cache, mask = cache, loop.message_context.mask  # of earlier tokens too
        rows, length = loop.entry.shape[:2]
        stopped = torch.zeros((rows, length), dtype=torch.bool, device=loop.entry.device)
        if mask is not None:
            stopped = ~mask[:, -length:].to(stopped.device)
        super().__init__(config, loop, stopped, logits_of_state)

    def step(self, h: States, before: States) -> States:
        """As in `Halting`; where all tokens have stopped, the cache alone is filled."""
        if self.all_stopped:
            self.loop.repeat(h)
            return before
        self.cache.stopped = self.stopped
        return super().step(h, before)

    def finish_iteration(self, k: int, old: States | None, new: States) -> bool:
        """As in `Halting`; a cache that is kept is filled by all K iterations."""
        return super().finish_iteration(k, old, new) and not self.cache.is_kept

    def where_stopped(self, state: torch.Tensor) -> torch.Tensor:
        return self.stopped[..., None]

    def residual(self, new: States, old: States) -> torch.Tensor:
        return relative_change_of_tokens(new, old)
