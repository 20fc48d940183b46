"""When an example stops: iterations that change nothing any more, or would not change the answer, are not read."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from .configuration_feedback import FeedbackConfig, rules_of
from .dynamics import relative_residual
from .recorder import IndivisibleError, Run, hidden_of, with_hidden

if TYPE_CHECKING:
    from .loop import Loop, States

logger = logging.get_logger(__name__)

Answer = Callable[[torch.Tensor], torch.Tensor]


def confidence_of(logits: torch.Tensor, measure: str, several_labels: bool) -> torch.Tensor:
    """How sure an answer is, in [0, 1].

    Args:
        logits: `(B, C)`.
        measure: `"probability"` of the answer, or its `"margin"` over the next one.
        several_labels: whether each label is a yes or no of its own; the least sure of them counts.

    Returns:
        `(B,)`, in float32.
    """
    if several_labels:
        yes = logits.float().sigmoid()
        sure = torch.maximum(yes, 1 - yes).amin(-1)
        return sure if measure == "probability" else 2 * sure - 1
    first, second = logits.float().softmax(-1).topk(2).values.unbind(-1)
    return first if measure == "probability" else first - second


class Halting:
    """Stops each example by itself, at the first iteration at which its rule holds.

    A stopped example keeps its states and leaves the batch: the others go on as a smaller one; when all have stopped,
    the loop ends. Where the recorded arguments of the backbone's layers cannot be divided, and in compiled graphs,
    whose shapes are fixed, stopped examples are run along and their new states thrown away. Either way what comes out
    for an example does not depend on the others in its batch. The segments of one text stop together.

    Args:
        config: the options of halting.
        loop: the loop over the whole batch.
        mask: `(B, T)`, 0 at padding, which residuals leave out.
        answer: the end of the segment `(B, T, d)` → logits `(B, C)`, for rules that read it.
    """

    def __init__(
        self, config: FeedbackConfig, loop: "Loop", mask: torch.Tensor | None = None, answer: Answer | None = None
    ) -> None:
        self.config, self.loop, self.mask, self.answer = config, loop, mask, answer
        config.check_halting()  # options may have been set since the model was built
        self.rules = rules_of(config.halting)
        self.several_labels = config.problem_type == "multi_label_classification"
        self.batch_dim, self.segments = loop.reading.batch_dim, loop.reading.segments
        rows = loop.entry.shape[self.batch_dim]
        texts = rows if self.segments is None else self.segments.num_texts
        self.stopped = torch.zeros(texts, dtype=torch.bool, device=loop.entry.device)  # (B,)
        self.iterations = torch.zeros_like(self.stopped, dtype=torch.long)  # (B,)
        self.leaves = not torch.compiler.is_compiling()  # whether stopped examples leave the batch
        self.latest: torch.Tensor | None = None  # (B, C) answers after the last iteration
        self.agreed = torch.ones_like(self.iterations)  # (B,) how often the latest answer came in a row

    def _read_answer(self, end: torch.Tensor, answer: Answer) -> None:
        """Takes note of the answer after an iteration."""
        logits = answer(end)
        chosen = (logits > 0) if self.several_labels else logits.argmax(-1, keepdim=True)  # (B, 1 or C)
        if self.latest is not None:
            self.agreed = torch.where((chosen == self.latest).all(-1), self.agreed + 1, 1)
        self.latest, self.logits = chosen, logits

    def _rows_stopped(self) -> torch.Tensor:
        return self.stopped if self.segments is None else self.stopped[self.segments.text]

    def step(self, h: "States", before: "States") -> tuple[Any, "States"]:
        """One iteration of those that have not stopped; the others keep their states.

        Args:
            h: what messages read, states of all.
            before: the states after the last iteration.

        Returns:
            As `Loop.step`, for the whole batch.
        """
        loop, stopped = self.loop, self._rows_stopped()
        if self.leaves and bool(stopped.any()):
            rows = (~stopped).nonzero().squeeze(1)
            try:
                part = loop.take(rows)
            except IndivisibleError as error:
                self.leaves = False
                logger.warning_once(
                    f"Stopped examples cannot leave the batch, so that halting saves time only when all have stopped: "
                    f"{error}."
                )
            else:
                _, new = part.step({s: h[s].index_select(self.batch_dim, rows.to(h[s].device)) for s in h})
                new = {
                    s: before[s].index_copy(self.batch_dim, rows.to(before[s].device), new[s].to(before[s]))
                    for s in new
                }
                return with_hidden(loop.run.segment[-1].output, new[loop.run.last]), new
        were = [call.output for call in loop.run.segment]
        output, new = loop.step(h)
        new = {s: self._hold(before[s], state) for s, state in new.items()}
        self._hold_outputs(loop.run, were)
        return with_hidden(output, new[loop.run.last]), new

    def _hold(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The new state, with those of stopped examples left as they were."""
        shape = [1] * new.dim()
        shape[self.batch_dim] = -1
        return torch.where(self._rows_stopped().to(new.device).view(shape), old.to(new), new)

    def _hold_outputs(self, run: Run, were: list[Any]) -> None:
        """The same for all outputs of the segment's layers that are kept (`output_hidden_states=True`)."""
        for call, old in zip(run.segment, were, strict=True):
            if call.output is not None:
                call.output = with_hidden(call.output, self._hold(hidden_of(old), hidden_of(call.output)))

    def finished(self, k: int, old: "States | None", new: "States") -> bool:
        """Takes note of iteration k, the states of those that had stopped being held; whether all have stopped now.

        Args:
            k: the iteration.
            old, new: the states before and after it; before the first there are none.
        """
        self.iterations = self.iterations + ~self.stopped
        if self.answer is not None:
            self._read_answer(new[self.loop.run.last], self.answer)
        if k >= self.config.min_iterations:
            held = [[self._holds(rule, old, new) for rule in group] for group in self.rules]
            groups = [torch.stack(group).all(0) for group in held]
            self.stopped = self.stopped | torch.stack(groups).any(0)
        return not torch.compiler.is_compiling() and bool(self.stopped.all())

    def _holds(self, rule: str, old: "States | None", new: "States") -> torch.Tensor:
        """`(B,)`, where one rule holds after an iteration."""
        config = self.config
        if rule == "convergence":
            if old is None:
                return torch.zeros_like(self.stopped)
            first = {layer: state.transpose(0, self.batch_dim) for layer, state in new.items()}
            before = {layer: state.transpose(0, self.batch_dim) for layer, state in old.items()}
            found = relative_residual(first, before, self.mask, self.segments) <= config.halting_threshold
        elif rule == "confidence":
            sure = confidence_of(self.logits, config.halting_measure, self.several_labels)
            found = sure >= config.halting_confidence
        else:
            found = self.agreed >= config.halting_patience
        return found.to(self.stopped.device)
