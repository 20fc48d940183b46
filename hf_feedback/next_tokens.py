"""The targets of a language model."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NextTokens:
    """The targets of a language model.

    Args:
        token_ids: `(B, T)`, −100 where nothing is to be predicted.
        num_items_in_batch: the number of labels that the loss is divided by; those of this batch by default.
    """

    token_ids: torch.Tensor
    num_items_in_batch: int | torch.Tensor | None

    @property
    def batch_weight(self) -> float | torch.Tensor:
        """Weight of a mean over this batch in the loss: its share of the labels that the loss is divided by."""
        if self.num_items_in_batch is None:
            return 1.0
        return (self.token_ids[:, 1:] != -100).sum() / self.num_items_in_batch
