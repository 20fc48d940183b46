"""Checks of a `FeedbackTrainer` that was just made."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers.utils import logging

from ..forward_context import TARGET_ARGUMENTS
from ..modeling_base import FeedbackPreTrainedModel
from ..stacked_linear import ZeroLinear
from .data.iteration_targets import check_iteration_targets
from .parameters.model_parts import any_model_in
from .techniques.class_loss_setup import CLASS_LOSS_OPTIONS

if TYPE_CHECKING:
    from .trainer import FeedbackTrainer

logger = logging.get_logger(__name__)

LARGEST_BACKBONE_RATE = 1e-4  # as pretrained weights are fine-tuned with
# Options that `FeedbackTrainer.compute_loss` applies.
LOSS_OPTIONS = (
    "adversarial",
    "agreement_weight",
    "dropout_agreement_weight",
    "masked_lm_weight",
    *CLASS_LOSS_OPTIONS,
    "train_iterations",
)


def check_batches(trainer: "FeedbackTrainer") -> None:
    """Raises `ValueError` where `dataloader_drop_last` would leave no batch to train on."""
    rows, batch = trainer.train_dataset, trainer.args.train_batch_size * trainer.args.world_size
    if trainer.args.dataloader_drop_last and isinstance(rows, Sized) and len(rows) < batch:
        raise ValueError(
            f"`dataloader_drop_last` leaves out a batch that is not full, and {len(rows)} training examples do not "
            f"fill one of {batch}: nothing would be trained. Leave it out, or lower `per_device_train_batch_size`."
        )


def check_precision(trainer: "FeedbackTrainer") -> None:
    """Warns where trained weights are in half precision, in which most small steps change nothing."""
    trained = {
        p.dtype for p in cast(nn.Module, trainer.model).parameters() if p.requires_grad and p.dtype.itemsize == 2
    }
    if trained and not trainer.is_deepspeed_enabled:  # which keeps a copy in float32
        logger.warning_once(
            f"Weights that are trained are in {', '.join(str(one).removeprefix('torch.') for one in trained)}, in "
            "which most small steps of the optimizer are lost. Load the model in float32 (`dtype=torch.float32`, "
            "`--dtype float32`); `bf16=True` computes in bfloat16 all the same."
        )


def check_rates(trainer: "FeedbackTrainer") -> None:
    """Warns where new feedback is to be trained at a rate for pretrained weights, at which it hardly moves."""
    args, core = trainer.args, any_model_in(cast(nn.Module, trainer.model))[1]
    if not isinstance(core, FeedbackPreTrainedModel) or core.config.num_iterations == 1:
        return
    rates_differ = args.feedback_lr is not None or args.learning_rate_mapping
    is_new = not any(one.weight.any() for one in core.feedback.modules() if isinstance(one, ZeroLinear))
    trains = any(one.requires_grad for one in core.feedback.parameters())
    if args.learning_rate <= LARGEST_BACKBONE_RATE and not rates_differ and is_new and trains:
        logger.warning_once(
            f"`learning_rate`={args.learning_rate:g} is a rate for pretrained weights, at which new feedback hardly "
            "moves away from zero; the defaults of `hf-feedback train` are `learning_rate=1e-3` and `backbone_lr=5e-5`."
        )


def check_loss(trainer: "FeedbackTrainer") -> None:
    """Raises `ValueError` where `compute_loss_func` would replace terms of the model's own loss."""
    if trainer.compute_loss_func is None:
        return
    config = any_model_in(cast(nn.Module, trainer.model))[1].config
    for name, plain in (("iteration_loss", "last"), ("jacobian_penalty", 0.0)):
        if getattr(config, name, plain) != plain:
            raise ValueError(
                f"`{name}`={getattr(config, name)!r} is part of the model's own loss, which `compute_loss_func` "
                "replaces; leave one out."
            )
    for name in CLASS_LOSS_OPTIONS:
        if getattr(trainer.args, name):
            raise ValueError(
                f"`{name}` changes the model's own loss, which `compute_loss_func` replaces; leave one out."
            )


@contextmanager
def check_own_loss(trainer: "FeedbackTrainer", model: nn.Module) -> Iterator[None]:
    """Context of a training step, for trainers with a `compute_loss` of their own.

    Args:
        trainer: the trainer.
        model: the model as the trainer wraps it.

    Raises:
        ValueError: the step did not call `FeedbackTrainer.compute_loss`, and an option is applied there; or it called
            the model without labels, and an option is part of the model's own loss.
    """
    calls: list[bool] = []  # of the model, whether with labels

    def note_call(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(len(arguments) > 1 or any(named.get(name) is not None for name in TARGET_ARGUMENTS))

    hook = model.register_forward_pre_hook(note_call, with_kwargs=True) if _replaces_iteration_loss(trainer) else None
    trainer.applied_options = False
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
    if not trainer.applied_options:
        _refuse_options(trainer, without_labels=bool(calls) and not any(calls))


def _replaces_iteration_loss(trainer: "FeedbackTrainer") -> bool:
    """Whether a subclass has a loss of its own, and the model's has a term for every iteration."""
    config = any_model_in(cast(nn.Module, trainer.model))[1].config
    is_own = getattr(trainer.compute_loss, "__module__", None) != f"{__package__}.trainer"
    return is_own and getattr(config, "iteration_loss", "last") != "last"


def _refuse_options(trainer: "FeedbackTrainer", without_labels: bool) -> None:
    """Raises `ValueError` where an option is set that the trainer's own `compute_loss` leaves out."""
    name = getattr(trainer.compute_loss, "__qualname__", "compute_loss").rpartition("<locals>.")[2]
    advice = "call `super().compute_loss(…)`, use `compute_loss_func`, or leave the option out."
    for option in LOSS_OPTIONS:
        value = getattr(trainer.args, option)
        if value and value not in ("none", "fixed"):
            raise ValueError(
                f"`{option}`={value!r} is applied in `FeedbackTrainer.compute_loss`, which `{name}` replaces without "
                f"calling it; {advice}"
            )
    if without_labels:
        rule = any_model_in(cast(nn.Module, trainer.model))[1].config.iteration_loss
        raise ValueError(
            f"`iteration_loss`={rule!r} is part of the model's own loss, and `{name}` calls the model without labels; "
            "pass them to the model, or leave the option out."
        )


def check_targets(trainer: "FeedbackTrainer") -> None:
    """Raises `ValueError` where the training data has targets of iterations that training would not read."""
    core = any_model_in(cast(nn.Module, trainer.model))[1]
    check_iteration_targets(trainer.train_dataset, core, trainer.args)
