"""Gradual unfreezing: feedback and head are trained first, then the layers of the backbone, from the top."""

import re
import sys
from dataclasses import dataclass
from typing import Self, cast

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .model_parts import feedback_model_in, layer_of, parts_of

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Duration:
    """A duration in training.

    Args:
        amount: number of epochs, also a fraction of one, or of optimizer steps.
        unit: `"epochs"` or `"steps"`.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, option: str, text: str) -> Self:
        """Parses a text such as "0.5 epochs" or "200 steps".

        Args:
            option: name of the option, for the message.
            text: the text.

        Raises:
            ValueError: the text is not a duration.

        Example:

        ```python
        >>> Duration.parse("unfreeze_every", "0.5 epochs")
        Duration(amount=0.5, unit='epochs')

        ```
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:(epoch)s?|(step)s?)", str(text).strip())
        if match is None or (match[3] and "." in match[1]):
            raise ValueError(f"`{option}` must be a duration such as '0.5 epochs' or '200 steps', got {text!r}.")
        return cls(float(match[1]), "epochs" if match[2] else "steps")


@dataclass(frozen=True)
class UnfreezingSchedule:
    """The times at which parts of the backbone are unfrozen.

    Args:
        first: time of the first part.
        every: interval between parts; `None`: all at once.
    """

    first: Duration
    every: Duration | None

    @classmethod
    def parse(cls, unfreeze_every: str | None, feedback_warmup: str | None) -> Self:
        """Parses the two options of the schedule, one of which may be `None`.

        Args:
            unfreeze_every: interval between parts.
            feedback_warmup: time of the first part; `unfreeze_every` by default.

        Raises:
            ValueError: an option is not a duration, or the two are in different units.
        """
        every = None if unfreeze_every is None else Duration.parse("unfreeze_every", unfreeze_every)
        warmup = None if feedback_warmup is None else Duration.parse("feedback_warmup", feedback_warmup)
        if every is not None and every.amount == 0:
            raise ValueError(f"`unfreeze_every` must be above 0, got {unfreeze_every!r}; `feedback_warmup` may be 0.")
        if every is not None and warmup is not None and every.unit != warmup.unit:
            raise ValueError(
                f"`unfreeze_every`={unfreeze_every!r} and `feedback_warmup`={feedback_warmup!r} must both be epochs, "
                "or both steps."
            )
        first = every if warmup is None else warmup
        if first is None:
            raise ValueError("One of `unfreeze_every` and `feedback_warmup` must be given.")
        return cls(first, every)

    def start_of(self, stage: int) -> float:
        """Returns the number of epochs or steps before a part is unfrozen; the first one is stage 0."""
        return self.first.amount + stage * (self.every.amount if self.every else 0.0)

    def num_open(self, stages: int, step: int, epoch: float) -> int:
        """Returns the number of unfrozen parts.

        Args:
            stages: total number of parts.
            step: optimizer steps that are over.
            epoch: epochs that are over, with fractions.
        """
        over = epoch if self.first.unit == "epochs" else step
        return sum(over >= self.start_of(stage) - 1e-6 for stage in range(stages))  # fractions of epochs are rounded


class GradualUnfreezing:
    """Freezes the backbone, then unfreezes its layers one after the other, from the top, the embeddings last.

    Modules above the layers, such as a final norm, are unfrozen with the top layer. Parameters that were frozen before
    stay frozen. Create the optimizer first, so that its groups hold every parameter: a frozen one gets no gradient,
    hence no step, no weight decay and no momentum.

    Args:
        model: A feedback model with a backbone, wrapped or not.
        unfreeze_every: interval between layers, such as "0.5 epochs" or "200 steps"; `None`: all at once.
        feedback_warmup: time of the top layer; `unfreeze_every` by default.

    Attributes:
        stages: parts in the order in which they are unfrozen: name → parameters.

    Raises:
        ValueError: an option is not a duration, or nothing is left to train, now or later.

    Source: Howard and Ruder 2018, Universal Language Model Fine-tuning for Text Classification, arXiv 1801.06146,
        section 3.3.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import GradualUnfreezing
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> unfreezing = GradualUnfreezing(model, "100 steps")
    >>> for step in range(301):
    ...     if unfreezing.update(step):  # before the batch
    ...         print(step, [name for name, stage in unfreezing.stages.items() if stage[0].requires_grad])
    100 ['layer 1']
    200 ['layer 1', 'layer 0']
    300 ['layer 1', 'layer 0', 'embeddings']

    ```
    """

    def __init__(self, model: nn.Module, unfreeze_every: str | None = None, feedback_warmup: str | None = None) -> None:
        self.schedule = UnfreezingSchedule.parse(unfreeze_every, feedback_warmup)
        self.stages = _stages(model)
        if self.schedule.every is None:
            self.stages = {"backbone": [parameter for stage in self.stages.values() for parameter in stage]}
        staged = {id(parameter) for parameters in self.stages.values() for parameter in parameters}
        if not staged:
            raise ValueError(
                "`unfreeze_every` and `feedback_warmup` unfreeze the backbone, which is frozen for good; freeze less, "
                "or leave them out."
            )
        if not any(p.requires_grad and id(p) not in staged for p in model.parameters()) and self.schedule.start_of(0):
            raise ValueError(
                "Feedback and head are frozen, so that nothing trains before the backbone; freeze less, set "
                "`feedback_warmup` to '0 steps', or leave `unfreeze_every` and `feedback_warmup` out."
            )
        self._num_open = len(self.stages)
        self.update(0, 0.0)

    def update(self, step: int, epoch: float = 0.0) -> bool:
        """Freezes and unfreezes parts as the schedule says.

        Args:
            step: optimizer steps that are over.
            epoch: epochs that are over, with fractions.

        Returns:
            Whether the number of unfrozen parts changed.
        """
        before, self._num_open = self._num_open, self.schedule.num_open(len(self.stages), step, epoch)
        for stage, parameters in enumerate(self.stages.values()):
            for parameter in parameters:
                parameter.requires_grad_(stage < self._num_open)
        return before != self._num_open

    def finish(self) -> None:
        """Unfreezes all parts."""
        for parameters in self.stages.values():
            for parameter in parameters:
                parameter.requires_grad_(True)


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of the backbone by part, the top layer first."""
    feedback_model_in(model)  # a network from scratch has no backbone
    parts = parts_of(model)
    layers = {layer for layer in map(layer_of, parts.values()) if layer is not None}
    top = f"layer {max(layers)}"
    stages: dict[str, list[nn.Parameter]] = {f"layer {layer}": [] for layer in sorted(layers, reverse=True)}
    stages["embeddings"] = []
    for name, parameter in model.named_parameters():
        part = top if parts[name] == "backbone" else parts[name]
        if part in stages and parameter.requires_grad:
            stages[part].append(parameter)
    return {part: parameters for part, parameters in stages.items() if parameters}


class UnfreezingCallback(TrainerCallback):
    """Gradual unfreezing in a `transformers.Trainer`; see `GradualUnfreezing`.

    Args:
        unfreeze_every: as in `GradualUnfreezing`.
        feedback_warmup: as in `GradualUnfreezing`.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel, Trainer, TrainingArguments
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import UnfreezingCallback
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> args = TrainingArguments("out", max_steps=3, report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True)
    >>> rows = [{"input_ids": [5, 6, 7], "labels": 1}] * 8
    >>> trainer = Trainer(model, args, train_dataset=rows, callbacks=[UnfreezingCallback("1 steps")])

    ```
    """

    def __init__(self, unfreeze_every: str | None = None, feedback_warmup: str | None = None) -> None:
        self.unfreeze_every, self.feedback_warmup = unfreeze_every, feedback_warmup
        self.unfreezing: GradualUnfreezing | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Starts the schedule.

        Raises:
            ValueError: it counts epochs, and a stream has no length.
        """
        self.finish()  # of an earlier attempt
        self.unfreezing = GradualUnfreezing(cast(nn.Module, model), self.unfreeze_every, self.feedback_warmup)
        if self.unfreezing.schedule.first.unit == "epochs" and state.num_train_epochs == sys.maxsize:
            raise ValueError(
                "`unfreeze_every` and `feedback_warmup` count epochs, whose length a stream does not tell; count steps."
            )
        num_open = self.unfreezing.schedule.num_open(
            len(self.unfreezing.stages), state.max_steps - 1, state.num_train_epochs - 1e-3
        )
        if state.is_world_process_zero and (never := list(self.unfreezing.stages)[num_open:]):
            logger.warning(f"Training ends before these parts are unfrozen: {', '.join(never)}.")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.unfreezing is not None:
            self.unfreezing.update(state.global_step, state.epoch)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Unfreezes all parts, also after an error in training."""
        if self.unfreezing is not None:
            self.unfreezing.finish()
            self.unfreezing = None
