"""The parts of the loss in the logs of training."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator


class LossLog:
    """Means of the parts of the loss, since they were last read, over the batches of all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Adds the parts of one batch.

        Args:
            parts: scalars without a graph, by name.
        """
        for name, value in parts.items():
            pair = torch.stack((value.double(), torch.ones_like(value, dtype=torch.float64)))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means and starts anew; every process has to call it.

        Args:
            accelerator: sums up over the processes.
        """
        sums, self._sums = self._sums, {}
        means = {}
        for name in sorted(sums):
            total, count = accelerator.reduce(sums[name], "sum").tolist()
            means[name] = total / count
        return means
