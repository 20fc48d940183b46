"""The precision that states are computed in."""

import torch


def relative_spacing(state: torch.Tensor) -> float:
    """The relative distance of neighbouring numbers in the precision that a state was computed in.

    Args:
        state: what a layer has made; under autocast its matrix products are less precise than what it is stored in.

    Example:

    ```python
    >>> relative_spacing(torch.zeros(1, dtype=torch.bfloat16))
    0.0078125

    ```
    """
    stored, device = torch.finfo(state.dtype).eps, state.device.type
    if state.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return stored
    return max(stored, torch.finfo(torch.get_autocast_dtype(device)).eps)
