"""Options for gradual unfreezing and early stopping."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments

from ...validation import Keywords, check_integer, is_number, option
from .unfreezing import UnfreezingCallback, UnfreezingSchedule

if TYPE_CHECKING:
    from ..arguments import FeedbackTrainingArguments
    from ..trainer import FeedbackTrainer


@dataclass
class StagingArguments:
    """Gradual unfreezing and early stopping.

    Args:
        unfreeze_every: interval at which one more layer of the backbone is unfrozen, from the top, after feedback and
            head; see `GradualUnfreezing`.
        feedback_warmup: how long feedback and head train alone; as long as `unfreeze_every` if left out.
        early_stopping_patience: evaluations without improvement after which training stops; the best model is kept.
        early_stopping_threshold: smallest change of the metric that counts as an improvement.
    """

    unfreeze_every: str | None = option(
        None,
        "Train feedback and head first, then unfreeze one more layer, from the top, at every interval: '0.5 epochs', "
        "'200 steps'.",
    )
    feedback_warmup: str | None = option(
        None,
        "Train only feedback and head for this long at first: '1 epoch', '100 steps' (default: as --unfreeze-every).",
    )
    early_stopping_patience: int | None = option(
        None, "Stop training after this number of evaluations without improvement, and keep the best model."
    )
    early_stopping_threshold: float = option(0.0, "Smallest change of the metric that counts as an improvement.")

    @property
    def unfreezes(self) -> bool:
        """Whether parts of the model begin to train later than others."""
        return self.unfreeze_every is not None or self.feedback_warmup is not None

    def check_staging(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed."""
        if self.unfreezes:
            UnfreezingSchedule.parse(self.unfreeze_every, self.feedback_warmup)
        if self.early_stopping_patience is not None:
            check_integer("early_stopping_patience", self.early_stopping_patience, 1, "evaluations")
        if not is_number(self.early_stopping_threshold) or self.early_stopping_threshold < 0:
            raise ValueError(
                "`early_stopping_threshold` must be a finite number of at least 0, got "
                f"{self.early_stopping_threshold!r}."
            )


def check_unfreezing(args: TrainingArguments) -> None:
    """Raises `ValueError` where parameters cannot be unfrozen during training."""
    fsdp_version = int(cast(Keywords, args.fsdp_config).get("version", 2)) if args.fsdp else 2
    if args.deepspeed or fsdp_version < 2:
        raise ValueError(
            "`unfreeze_every` and `feedback_warmup` change which parameters train, which DeepSpeed and FSDP 1 "
            "fix at the start; use DDP or FSDP 2, or leave them out."
        )
    checkpointing = cast(Keywords, args.activation_checkpointing_kwargs or {})
    if args.activation_checkpointing and checkpointing.get("use_reentrant"):
        raise ValueError(
            "`activation_checkpointing_kwargs`: 'use_reentrant' computes no gradients above frozen embeddings; set it "
            "to false with `unfreeze_every` and `feedback_warmup`."
        )
    if args.ddp_find_unused_parameters is False or args.ddp_static_graph:
        raise ValueError(
            "`ddp_find_unused_parameters`=False and `ddp_static_graph`=True: with `unfreeze_every` and "
            "`feedback_warmup` parameters are unused while they are frozen; leave these out."
        )


def check_early_stopping(args: "FeedbackTrainingArguments") -> None:
    """Raises `ValueError` where early stopping has no evaluations to compare."""
    patience = args.early_stopping_patience
    if patience is not None and not args.load_best_model_at_end:
        raise ValueError(
            f"`early_stopping_patience`={patience} compares evaluations and keeps the best model: it needs validation "
            "data, `load_best_model_at_end`=True, and the same `eval_strategy` and `save_strategy`, 'epoch' or 'steps'."
        )


@contextmanager
def staged(trainer: "FeedbackTrainer") -> Iterator[None]:
    """Context of one training: adds the callbacks of the stages, which count from its start, and removes them."""
    args = trainer.args
    if args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    unfreezing = UnfreezingCallback(args.unfreeze_every, args.feedback_warmup) if args.unfreezes else None
    if unfreezing is not None:
        trainer.add_callback(unfreezing)
        if trainer.accelerator.ddp_handler is not None:
            trainer.accelerator.ddp_handler.find_unused_parameters = True
    try:
        yield
    finally:
        if args.early_stopping_patience is not None:
            trainer.pop_callback(EarlyStoppingCallback)  # resuming has added another one
        if unfreezing is not None:
            unfreezing.finish()
            trainer.remove_callback(unfreezing)


def has_stopped_early(state: TrainerState, args: StagingArguments) -> bool:
    """Whether training ended early at a checkpoint.

    Args:
        state: what the checkpoint holds.
        args: the training arguments.
    """
    stopping = cast(Keywords, state.stateful_callbacks).get("EarlyStoppingCallback")
    if args.early_stopping_patience is None or not isinstance(stopping, dict):
        return False
    return stopping["attributes"]["early_stopping_patience_counter"] >= args.early_stopping_patience
