"""Halting of whole examples."""

from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from .batch_rows import IndivisibleError
from .halting import Halting, LogitsOfState
from .iteration_trace import States, batch_first, relative_change

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig
    from .feedback_loop import FeedbackLoop

logger = logging.get_logger(__name__)


class ExampleHalting(Halting):
    """Stops each example by itself, at the first iteration at which its rules hold.

    A stopped example keeps its states and leaves the batch: the others continue as a smaller batch; when all have
    stopped, the loop ends. If the recorded arguments of the backbone's layers cannot be divided, and in compiled
    graphs, whose shapes are fixed, stopped examples are still computed and their new states discarded. Either way the
    result of an example does not depend on the others in its batch. The segments of one text stop together.

    Args:
        config: the options of halting.
        loop: the loop over the whole batch.
        logits_of_state: the output of the loop → logits `(B, C)`, for rules that read the answers.
    """

    def __init__(
        self, config: "FeedbackConfig", loop: "FeedbackLoop", logits_of_state: LogitsOfState | None = None
    ) -> None:
        self.batch_dim, self.segments = loop.message_context.batch_dim, loop.message_context.segments
        texts = loop.entry.shape[self.batch_dim] if self.segments is None else self.segments.num_texts
        nothing = torch.zeros(texts, dtype=torch.bool, device=loop.entry.device)
        super().__init__(config, loop, nothing, logits_of_state)
        self.leaves = not torch.compiler.is_compiling()  # whether stopped examples leave the batch

    def step(self, h: States, before: States) -> States:
        """As in `Halting`, by a smaller batch where the backbone allows it."""
        if self.leaves and bool(self._rows_stopped().any()):
            rows = (~self._rows_stopped()).nonzero().squeeze(1)
            try:
                part = self.loop.select_rows(rows)
            except IndivisibleError as error:
                self.leaves = False
                logger.warning_once(
                    f"Stopped examples cannot leave the batch, so that halting saves time only when all have stopped: "
                    f"{error}."
                )
            else:
                return self._step_of_rows(part, rows, h, before)
        return super().step(h, before)

    def _step_of_rows(self, part: "FeedbackLoop", rows: torch.Tensor, h: States, before: States) -> States:
        """One iteration of some rows; `part` is the loop over them."""
        new = part.step({s: h[s].index_select(self.batch_dim, rows.to(h[s].device)) for s in h})
        return {s: before[s].index_copy(self.batch_dim, rows.to(before[s].device), new[s].to(before[s])) for s in new}

    def _rows_stopped(self) -> torch.Tensor:
        return self.stopped if self.segments is None else self.stopped[self.segments.text]

    def where_stopped(self, state: torch.Tensor) -> torch.Tensor:
        shape = [1] * state.dim()
        shape[self.batch_dim] = -1
        return self._rows_stopped().view(shape)

    def residual(self, new: States, old: States) -> torch.Tensor:
        after, before = ({s: batch_first(x, self.batch_dim) for s, x in h.items()} for h in (new, old))
        return relative_change(after, before, self.loop.token_mask, self.segments)
