"""Training passes without targets, in which the model computes no loss."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.utils import logging

from .forward_context import without_targets

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig

logger = logging.get_logger(__name__)

_IS_MEANT: ContextVar[bool] = ContextVar("hf_feedback_is_unlabelled_pass_meant", default=False)


def call_without_targets(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """A forward pass that needs no loss, of a technique that adds one of its own to that of other passes.

    Args:
        model: a feedback model, wrapped or not.
        inputs: arguments of `forward`; targets are left out.
    """
    token = _IS_MEANT.set(True)
    try:
        return model(**without_targets(inputs), return_dict=True)
    finally:
        _IS_MEANT.reset(token)


def warn_of_lost_losses(config: "FeedbackConfig") -> None:
    """Warns, in a training pass of several iterations without labels, of parts of the model's loss that are lost."""
    plain = {"iteration_loss": "last", "jacobian_penalty": 0.0}
    lost = [f"`{name}`={value!r}" for name, no in plain.items() if (value := getattr(config, name)) != no]
    if lost and not _IS_MEANT.get():
        logger.warning_once(
            f"{' and '.join(lost)} {'are parts' if len(lost) > 1 else 'is part'} of the model's own loss, and it is "
            "called in training without labels: what is trained is another loss, without them. The Trainer of "
            "transformers does so with `label_smoothing_factor`; use `FeedbackTrainer`, which smooths the model's own "
            "loss, or train without smoothing."
        )
