"""What the techniques of training compute: the loss of a batch, with the parts that are logged."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..data.labels import IGNORED

# What `forward` takes, by name.
Inputs: TypeAlias = Mapping[str, Any]

LABEL_NAMES = ("labels", "start_positions", "end_positions")


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch.

    Args:
        loss: scalar, to call `backward` on.
        outputs: of the model.
        parts: losses that are logged beside it, without their weights, by name (`"loss_agreement"`); without a graph.
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


# A model and what it takes → the loss.
ComputeLoss: TypeAlias = Callable[[nn.Module, Inputs], BatchLoss]


def model_loss(model: nn.Module, inputs: Inputs) -> BatchLoss:
    """The model's own loss.

    Args:
        model: a feedback model, wrapped or not.
        inputs: what `forward` takes, labels included.
    """
    outputs = model(**inputs, return_dict=True)
    return BatchLoss(outputs.loss, outputs)


def without_labels(inputs: Inputs) -> dict[str, Any]:
    """What `forward` takes, except the targets."""
    return {name: value for name, value in inputs.items() if name not in LABEL_NAMES}


def has_labels(inputs: Inputs) -> bool:
    """Whether a batch has a target that is not −100, the label of what is left out of the loss."""
    given = [inputs[name] for name in LABEL_NAMES if inputs.get(name) is not None]
    return any(bool((one != IGNORED).any()) for one in given)


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Context for all forward passes of a step but the last: each process keeps their gradients to itself, and the last
    backward pass sums up those of all passes over the processes.

    Args:
        model: as `DistributedDataParallel` wraps it; any other model is left alone.
    """
    no_sync: Callable[[], AbstractContextManager[None]] = getattr(model, "no_sync", nullcontext)
    return no_sync()
