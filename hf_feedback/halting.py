"""Halting: rules by which examples, or tokens, stop before the last iteration."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from .iteration_trace import States
from .loop_record import hidden_of, with_hidden

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig
    from .feedback_loop import FeedbackLoop

# The output of the loop (B, T, d) → logits (B, C), or (B, T, V) where each token is answered.
LogitsOfState = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class IterationFacts:
    """Inputs of a halting rule after an iteration. Where each token stops by itself, B stands for B, T.

    Args:
        residual: `(B,)`, relative change of the states in the iteration; `None` after the first one.
        logits: `(B, C)`, the answers; `None` if no rule in use reads them.
        num_equal_answers: `(B,)`, the number of consecutive iterations, this one included, with the same answer.
    """

    residual: torch.Tensor | None
    logits: torch.Tensor | None
    num_equal_answers: torch.Tensor


class HaltingRule(ABC):
    """Rule that decides after each iteration which examples, or tokens, may stop. A new one is a subclass and a row in
    `HALTING_RULES`.

    Args:
        config: the options of halting.
    """

    # Whether the rule reads the residual, or the answers, which have to be computed for it after every iteration.
    reads_residual: ClassVar[bool] = False
    reads_answers: ClassVar[bool] = False

    def __init__(self, config: "FeedbackConfig") -> None:
        self.config = config

    @abstractmethod
    def holds(self, facts: IterationFacts) -> torch.Tensor:
        """`(B,)`, true for what may stop."""


class Convergence(HaltingRule):
    """The relative change of the states in the last iteration is at most `halting_threshold`.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback import FeedbackConfig
    >>> from hf_feedback.halting import HALTING_RULES, IterationFacts
    >>> rule = HALTING_RULES["convergence"](FeedbackConfig(halting_threshold=0.1))
    >>> rule.holds(IterationFacts(torch.tensor([0.05, 0.5]), None, torch.tensor([1, 1]))).tolist()
    [True, False]

    ```
    """

    reads_residual = True

    def holds(self, facts: IterationFacts) -> torch.Tensor:
        if facts.residual is None:
            return torch.zeros_like(facts.num_equal_answers, dtype=torch.bool)
        return facts.residual <= self.config.halting_threshold


class Confidence(HaltingRule):
    """The confidence of the prediction is at least `halting_confidence`.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback import FeedbackConfig
    >>> from hf_feedback.halting import HALTING_RULES, IterationFacts
    >>> rule = HALTING_RULES["confidence"](FeedbackConfig(halting_confidence=0.9))
    >>> rule.holds(IterationFacts(None, torch.tensor([[5.0, 0.0], [1.0, 0.9]]), torch.tensor([1, 1]))).tolist()
    [True, False]

    ```
    """

    reads_answers = True

    def holds(self, facts: IterationFacts) -> torch.Tensor:
        several_labels = self.config.problem_type == "multi_label_classification"
        logits = facts.logits
        if logits is None:
            raise ValueError("`halting`='confidence' needs the answers of every iteration.")
        return confidence_of(logits, self.config.halting_measure, several_labels) >= self.config.halting_confidence


class Patience(HaltingRule):
    """The last `halting_patience` predictions are equal.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback import FeedbackConfig
    >>> from hf_feedback.halting import HALTING_RULES, IterationFacts
    >>> rule = HALTING_RULES["patience"](FeedbackConfig(halting_patience=2))
    >>> rule.holds(IterationFacts(None, None, torch.tensor([2, 1]))).tolist()
    [True, False]

    ```
    """

    reads_answers = True

    def holds(self, facts: IterationFacts) -> torch.Tensor:
        return facts.num_equal_answers >= self.config.halting_patience


# By their names in the option `halting`.
HALTING_RULES: dict[str, type[HaltingRule]] = {
    "convergence": Convergence,
    "confidence": Confidence,
    "patience": Patience,
}


def parse_halting(halting: str) -> list[list[str]]:
    """`"convergence|confidence+patience"` → `[["convergence"], ["confidence", "patience"]]`: one group is enough, all
    rules of it are needed."""
    return [group.split("+") for group in halting.split("|")]


def rules_of(config: "FeedbackConfig") -> list[list[HaltingRule]]:
    """The rules of the option `halting`, in groups as `parse_halting` gives them."""
    return [[HALTING_RULES[name](config) for name in group] for group in parse_halting(config.halting)]


def which_may_stop(groups: list[list[HaltingRule]], facts: IterationFacts) -> torch.Tensor:
    """The examples, or the tokens, for which all rules of one of the groups hold; true for these."""
    device = facts.num_equal_answers.device
    held = [torch.stack([rule.holds(facts).to(device) for rule in group]).all(0) for group in groups]
    return torch.stack(held).any(0)


def reads_answers(halting: str) -> bool:
    """Whether a rule of that option reads the answers of every iteration."""
    names = [name for group in parse_halting(halting) for name in group]
    return any(HALTING_RULES[name].reads_answers for name in names if name != "none")


def confidence_of(logits: torch.Tensor, measure: str, several_labels: bool) -> torch.Tensor:
    """Confidence in an answer, in [0, 1].

    Args:
        logits: `(…, C)`.
        measure: `"probability"` of the top class, or its `"margin"` over the next one.
        several_labels: whether each label is a binary decision; the least confident of them counts.

    Returns:
        `(…)`, in float32.
    """
    if several_labels:
        positive = logits.float().sigmoid()
        least = torch.maximum(positive, 1 - positive).amin(-1)
        return least if measure == "probability" else 2 * least - 1
    first, second = logits.float().softmax(-1).topk(2).values.unbind(-1)
    return first if measure == "probability" else first - second


class Halting(ABC):
    """Stops each example, or each token, by itself, at the first iteration at which its rules hold.

    Args:
        config: the options of halting.
        loop: the loop over the whole batch.
        stopped: those that take no part from the beginning on, `(B,)` or, of tokens, `(B, T)`.
        logits_of_state: for rules that read the answers.
    """

    def __init__(
        self,
        config: "FeedbackConfig",
        loop: "FeedbackLoop",
        stopped: torch.Tensor,
        logits_of_state: LogitsOfState | None = None,
    ) -> None:
        self.loop, self.logits_of_state = loop, logits_of_state
        self.groups = rules_of(config)
        self.reads_residual = any(rule.reads_residual for group in self.groups for rule in group)
        self.min_iterations = config.min_iterations
        self.several_labels = config.problem_type == "multi_label_classification"
        self.stopped = stopped
        self.iterations = torch.zeros_like(stopped, dtype=torch.long)
        self._answer: torch.Tensor | None = None  # after the last iteration
        self._num_equal_answers = torch.ones_like(self.iterations)

    @property
    def all_stopped(self) -> bool:
        """Whether all have stopped; false in compiled graphs, where all continue."""
        return not torch.compiler.is_compiling() and bool(self.stopped.all())

    def step(self, h: States, before: States) -> States:
        """One iteration of those that have not stopped; the others keep what they have.

        Args:
            h: the states that messages read, of all examples.
            before: the states after the last iteration.

        Returns:
            As `FeedbackLoop.step`, for the whole batch.
        """
        old_outputs = [call.output for call in self.loop.record.calls]
        new = {source: self._hold(before[source], state) for source, state in self.loop.step(h).items()}
        for call, old in zip(self.loop.record.calls, old_outputs, strict=True):  # those that are kept
            if call.output is not None and old is not None:
                call.output = with_hidden(call.output, self._hold(hidden_of(old), hidden_of(call.output)))
        return new

    def finish_iteration(self, k: int, old: States | None, new: States) -> bool:
        """Records iteration k, and returns whether all examples or tokens have stopped.

        Args:
            k: the iteration.
            old, new: the states before and after it; before the first there are none.
        """
        self.iterations = self.iterations + ~self.stopped
        if not self.all_stopped:
            logits = None if self.logits_of_state is None else self.logits_of_state(new[self.loop.record.last])
            if logits is not None:
                self._note_answers(logits)
            if k >= self.min_iterations:
                residual = self.residual(new, old) if self.reads_residual and old is not None else None
                facts = IterationFacts(residual, logits, self._num_equal_answers)
                self.stopped = self.stopped | which_may_stop(self.groups, facts)
        return self.all_stopped

    @abstractmethod
    def residual(self, new: States, old: States) -> torch.Tensor:
        """How far the last iteration moved each example, or each token."""

    @abstractmethod
    def where_stopped(self, state: torch.Tensor) -> torch.Tensor:
        """What has stopped, in a shape that a state can be compared with."""

    def _hold(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The new state, in which what has stopped has its old one."""
        return torch.where(self.where_stopped(new).to(new.device), old.to(new), new)

    def _note_answers(self, logits: torch.Tensor) -> None:
        """Counts the consecutive equal answers."""
        answer = (logits > 0) if self.several_labels else logits.argmax(-1, keepdim=True)
        answer = answer.to(self._num_equal_answers.device)
        if self._answer is not None:
            self._num_equal_answers = torch.where((answer == self._answer).all(-1), self._num_equal_answers + 1, 1)
        self._answer = answer
