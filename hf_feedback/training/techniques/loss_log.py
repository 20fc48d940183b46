"""The parts of the loss in the logs of training."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator


class LossLog:
    """Means of the parts of the loss over the batches of all processes since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, parts: Mapping[str, torch.Tensor], batch_weight: float | torch.Tensor = 1.0) -> None:
        """Adds the parts of one batch.

        Args:
            parts: scalars without a graph, by name.
            batch_weight: as in `BatchLoss`.
        """
        for name, value in parts.items():
            weight = torch.as_tensor(batch_weight, dtype=torch.float64, device=value.device)
            pair = torch.stack((weight * value.double(), weight))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means and resets them; every process must call it.

        Args:
            accelerator: accelerator of the trainer.
        """
        sums, self._sums = self._sums, {}
        means = {}
        for name in sorted(sums):
            total, weight = accelerator.reduce(sums[name], "sum").tolist()
            means[name] = total / weight if weight else 0.0
        return means
