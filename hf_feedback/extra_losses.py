"""Terms that are added to the loss of the task."""

from collections.abc import Iterator

import torch

from .configuration_feedback import FeedbackConfig
from .loop_runner import LoopResult

# What the weight of the balancing loss of a mixture of experts is called in configs of transformers.
BALANCE_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


def extra_losses(config: FeedbackConfig, result: LoopResult) -> Iterator[torch.Tensor]:
    """Weighted terms that are added to the loss of the task: scalars.

    Args:
        config: the options.
        result: result of the iterations.

    Raises:
        ValueError: a mixture of experts asks for a balancing loss, and its config has no weight for it.
    """
    if result.penalty is not None:
        yield config.jacobian_penalty * result.penalty
    balance = result.output.get("aux_loss")  # of a mixture of experts, with `output_router_logits` in its config
    if balance is not None:
        text_config = config.text_config
        weights = [getattr(text_config, name) for name in BALANCE_WEIGHTS if hasattr(text_config, name)]
        if not weights:
            raise ValueError(
                f"`output_router_logits`: the config of the backbone has no weight for its balancing loss (one of "
                f"{', '.join(BALANCE_WEIGHTS)}); set one there, or `output_router_logits` to `False`."
            )
        yield weights[0] * balance
