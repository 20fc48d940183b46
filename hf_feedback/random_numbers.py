"""The state of the random numbers of the CPU and of one device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Returns the state of the random numbers of the CPU and, if it is another one, of a device."""
    module: Any = torch.get_device_module(device)
    numbered = () if device.type == "mps" else (device,)  # there is one such device, without a number
    return [torch.get_rng_state(), *([] if device.type == "cpu" else [module.get_rng_state(*numbered)])]


def set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    """Sets what `random_state` returned for the same device."""
    torch.set_rng_state(state[0])
    module: Any = torch.get_device_module(device)
    for numbers in state[1:]:
        module.set_rng_state(numbers, *(() if device.type == "mps" else (device,)))


@contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """Context after which the random numbers are those from before it."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, state)
