"""Halting of single tokens, in models that predict the next one."""

from typing import TYPE_CHECKING, cast

import torch

from .halting import IterationFacts, LogitsOfState, rules_of, which_may_stop
from .iteration_cache import IterationCache
from .iteration_trace import States, relative_change_of_tokens
from .segment_record import LayerOutput, hidden_of, with_hidden

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig
    from .feedback_loop import FeedbackLoop


class TokenHalting:
    """Stops each token by itself, at the first iteration at which its rules hold.

    In the iterations that a token does not take, it keeps the hidden states, keys and values of its last one: later
    tokens find these in the cache, and messages read them. Whether a token stops depends on it and on earlier ones
    alone, so that token by token and all at once give the same. Where all tokens of a call have stopped, the layers are
    not run any more. With rules that never hold, all K iterations are taken.

    Args:
        config: the options of halting.
        loop: the loop over the tokens of this call.
        cache: cache of this call; if the model is called without one, it is dropped after the call.
        mask: `(B, T)`, false at padding.
        logits_of_state: the output of the segment → logits `(B, T, V)`, for rules that read the answers.

    Raises:
        ValueError: the backbone's layers, or the messages, keep something else of earlier tokens.
    """

    def __init__(
        self,
        config: "FeedbackConfig",
        loop: "FeedbackLoop",
        cache: IterationCache,
        mask: torch.Tensor | None = None,
        logits_of_state: LogitsOfState | None = None,
    ) -> None:
        self.loop, self.cache, self.logits_of_state = loop, cache, logits_of_state
        if config.feedback_signal == "error" and loop.feedback.num_message_slots:
            raise ValueError(
                f"`halting`={config.halting!r}: with `feedback_signal='error'`, what other tokens read of a token "
                "depends on the layer, which a token that has stopped does not run; use `feedback_signal='state'`, or "
                "`halting='none'`."
            )
        self.groups = rules_of(config)
        self.min_iterations = config.min_iterations
        rows, length = loop.entry.shape[:2]
        self.stopped = torch.zeros((rows, length), dtype=torch.bool, device=loop.entry.device)  # (B, T)
        self.iterations = torch.zeros_like(self.stopped, dtype=torch.long)  # (B, T)
        if mask is not None:
            self.stopped = ~mask[:, -length:].to(self.stopped.device)
        self._answer: torch.Tensor | None = None  # (B, T) after the last iteration
        self._num_equal_answers = torch.ones_like(self.iterations)

    @property
    def all_stopped(self) -> bool:
        """Whether all tokens have stopped; false in compiled graphs, where all tokens continue."""
        return not torch.compiler.is_compiling() and bool(self.stopped.all())

    def step(self, h: States, before: States) -> States:
        """One iteration of the tokens that have not stopped; the others keep what they have.

        Args:
            h: the states that messages read.
            before: the states after the last iteration.
        """
        if self.all_stopped:
            self.loop.repeat(h)
            return before
        self.cache.stopped = self.stopped
        old_outputs = [call.output for call in self.loop.record.calls]
        new = {source: self._hold(before[source], state) for source, state in self.loop.step(h).items()}
        for call, old in zip(self.loop.record.calls, old_outputs, strict=True):
            if call.output is not None:
                held = self._hold(hidden_of(cast(LayerOutput, old)), hidden_of(call.output))
                call.output = with_hidden(call.output, held)
        return new

    def _hold(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.where(self.stopped[..., None].to(new.device), old.to(new), new)

    def finish_iteration(self, k: int, old: States | None, new: States) -> bool:
        """Records iteration k, and returns whether all tokens have stopped and no cache is to be filled.

        Args:
            k: the iteration.
            old, new: the states before and after it; before the first there are none.
        """
        self.iterations = self.iterations + ~self.stopped
        logits = None
        if self.logits_of_state is not None and not self.all_stopped:
            logits = self.logits_of_state(new[self.loop.record.last])
            self._note_answers(logits)
        if k >= self.min_iterations and not self.all_stopped:
            residual = None if old is None else relative_change_of_tokens(new, old)
            facts = IterationFacts(residual, logits, self._num_equal_answers)
            self.stopped = self.stopped | which_may_stop(self.groups, facts)
        return not self.cache.is_kept and self.all_stopped

    def _note_answers(self, logits: torch.Tensor) -> None:
        answer = logits.argmax(-1).to(self._num_equal_answers.device)
        if self._answer is not None:
            self._num_equal_answers = torch.where(answer == self._answer, self._num_equal_answers + 1, 1)
        self._answer = answer
