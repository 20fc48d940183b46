"""Stops training at the first step whose loss or gradient is not finite, before the weights change."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer

from .resuming.checkpoints import checkpoints_in
from .resuming.data_order import rows_of_batch

MAX_ROWS = 64  # named in a message
NOT_IN_WEIGHTS = "Nothing of this step is in the weights, and"


class NonFiniteStepError(ValueError):
    """The loss or gradient of a step is infinite or not a number.

    Checkpoints are as before the step, and weights too, unless DeepSpeed has changed them.
    """


def check_step(trainer: Trainer, losses: Sequence[torch.Tensor], grad_norm: torch.Tensor | float | None) -> None:
    """Raises for a step whose loss or gradient is not finite, in all processes.

    With fp16 only the loss is checked, since the search for the loss scale produces infinite gradients. DeepSpeed has
    changed the weights by then.

    Args:
        trainer: the trainer, before its optimizer has used the gradient.
        losses: the losses of the batches that this process has accumulated.
        grad_norm: norm of the gradient; `None` if DeepSpeed does not return it, so that only the loss is checked.

    Raises:
        NonFiniteStepError: one of them is infinite or not a number.
    """
    finite = torch.stack([loss.detach().float() for loss in losses]).isfinite()
    norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # where the model is sharded
    scaled = trainer.args.fp16 or trainer.accelerator.scaler is not None
    gradient_fails = not scaled and not bool(norm.isfinite())
    counts = torch.tensor([int((~finite).sum()), int(gradient_fails)], device=trainer.args.device)
    if trainer.args.world_size > 1:
        counts = trainer.accelerator.reduce(counts)
    if not counts.any():
        return
    numbers = [i for i, is_finite in enumerate(finite.tolist()) if not is_finite or not counts[0]]
    rows = _rows(trainer, numbers)
    value = next((loss.item() for loss in losses if not loss.isfinite()), float("nan"))
    step = trainer.state.global_step + 1
    if counts[0]:
        what = f"loss of step {step} is {value}"
    else:
        what = f"gradient of step {step} is {norm.item()}, though its loss is finite"
    raise NonFiniteStepError(f"The {what}{_describe_rows(trainer, rows)}. {_advice(trainer)}")


def _rows(trainer: Trainer, numbers: Sequence[int]) -> list[int]:
    """The rows of these batches of the current step, of all processes; empty if unknown."""
    loader = cast(DataLoader, trainer.callback_handler.train_dataloader)
    steps = trainer.set_initial_training_values(trainer.args, loader)[1]
    epoch, step = divmod(trainer.state.global_step, steps)
    first = step * trainer.args.gradient_accumulation_steps
    mine = [rows_of_batch(loader, epoch, first + number) or [] for number in numbers]
    everyones = gather_object([row for batch in mine for row in batch])
    return sorted(set(everyones))


def _describe_rows(trainer: Trainer, rows: Sequence[int]) -> str:
    if not rows:
        return " (which rows it read is not known)"
    shown, begin = [], 0
    for source, count in getattr(trainer, "training_parts", ()) or [("the encoded training data", sys.maxsize)]:
        own = [row - begin + 1 for row in rows[:MAX_ROWS] if begin <= row < begin + count]
        if own:
            shown.append((source, own))
        begin += count
    named = " and ".join(f"rows {', '.join(map(str, own))} of {source}" for source, own in shown)
    more, text = ", …" if len(rows) > MAX_ROWS else "", _beginning(trainer, rows[0])
    begins = f"; row {shown[0][1][0]} begins {text!r}" if text else ""
    return f" ({named}{more}, counted from 1{begins})"


def _beginning(trainer: Trainer, row: int) -> str:
    """The first words of a row of tokens."""
    example: Any = cast(Any, trainer.train_dataset)[row]
    if not isinstance(trainer.processing_class, PreTrainedTokenizerBase) or "input_ids" not in example:
        return ""
    words = cast(str, trainer.processing_class.decode(example["input_ids"][:32], skip_special_tokens=True))
    return words[:60]


def _advice(trainer: Trainer) -> str:
    args, saved = trainer.args, checkpoints_in(Path(str(trainer.args.output_dir)))
    kept = f"{saved[-1]} is the last checkpoint" if saved else "there is no checkpoint yet"
    changes = [
        f"lower `learning_rate` ({args.learning_rate:g}) or `max_grad_norm` ({args.max_grad_norm:g})",
        "raise `warmup_steps`",
        *(f"leave out `{half}`" for half in ("fp16", "bf16") if getattr(args, half)),
    ]
    weights = "This step may be in the weights, but" if trainer.is_deepspeed_enabled else NOT_IN_WEIGHTS
    return f"{weights} nothing was saved since: {kept}. Look at these rows; or {', '.join(changes)}."
