"""What holds for any model of transformers: evaluation mode, and how many tokens it reads."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode and no graph is built."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def max_positions(model: nn.Module, config: PreTrainedConfig | None) -> float:
    """How many tokens a model reads at most, by its text config and its position embeddings; infinite if neither
    limits it."""
    for name, module in model.named_modules():
        # families that count positions from the padding token on (RoBERTa) have fewer of them
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return cast(int, module.num_embeddings) - cast(int, module.padding_idx) - 1
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    return positions if positions > 0 else math.inf  # XLNet has -1
