"""The loss of a batch, with the parts that are logged."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.utils import ModelOutput

from ...forward_context import TARGET_ARGUMENTS
from ..data.labels import IGNORED

# Arguments of `forward` by name.
Inputs: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch.

    Args:
        loss: scalar, to call `backward` on.
        outputs: outputs of the model.
        parts: parts of the loss for the log, by name (`"loss_agreement"`), without weights and graph.
        batch_weight: factor on what is added to the loss as a mean over this batch: its part of all labels of the step
            where `loss` is divided by these.
    """

    loss: torch.Tensor
    outputs: ModelOutput
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    batch_weight: float | torch.Tensor = 1.0

    @property
    def mean(self) -> torch.Tensor:
        """The loss as a mean over this batch, without a graph."""
        weight = torch.as_tensor(self.batch_weight, dtype=self.loss.dtype, device=self.loss.device)
        return self.loss.detach() / weight.clamp_min(torch.finfo(weight.dtype).tiny)


# A model and its inputs → the loss.
ComputeLoss: TypeAlias = Callable[[nn.Module, Inputs], BatchLoss]


def model_loss(model: nn.Module, inputs: Inputs) -> BatchLoss:
    """The model's own loss.

    Args:
        model: a feedback model, wrapped or not.
        inputs: arguments of `forward`, labels included.
    """
    outputs = model(**inputs, return_dict=True)
    return BatchLoss(outputs.loss, outputs)


def has_targets(inputs: Inputs) -> bool:
    """Whether a batch has a label other than −100, which the loss ignores."""
    names = [name for name in TARGET_ARGUMENTS if name != "iteration_targets"]  # which only rows with labels have
    given = [inputs[name] for name in names if inputs.get(name) is not None]
    return any(bool((one != IGNORED).any()) for one in given)


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Context for all forward passes of a step but the last: gradients are not synchronized before the last backward
    pass, which sums them over the processes.

    Args:
        model: a model wrapped by `DistributedDataParallel`; others are not affected.
    """
    no_sync: Callable[[], AbstractContextManager[None]] = getattr(model, "no_sync", nullcontext)
    return no_sync()
