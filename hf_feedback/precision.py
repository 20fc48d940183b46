"""The precision that states are computed in."""

import torch


def is_half_precision(state: torch.Tensor) -> bool:
    """Whether matrix products that make such states are in bfloat16 or float16, by their type or by autocast."""
    return rounding(state) > torch.finfo(torch.float32).eps


def rounding(state: torch.Tensor) -> float:
    """The relative distance of neighbouring numbers in the precision that such states are computed in.

    Args:
        state: a tensor as it comes out of a layer, whatever type it is stored in.

    Example:

    ```python
    >>> rounding(torch.zeros(1, dtype=torch.bfloat16))
    0.0078125

    ```
    """
    device = state.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else state.dtype
    return max(torch.finfo(dtype).eps, torch.finfo(state.dtype).eps)
