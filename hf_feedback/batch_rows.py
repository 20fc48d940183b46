"""Finding and selecting the rows of a batch in recorded arguments."""

from typing import Any

import torch


class IndivisibleError(ValueError):
    """Rows of a batch cannot be selected from a recorded argument."""


def find_batch_axes(two: Any, three: Any) -> Any:
    """Finds the positions of batch rows in the arguments of a layer, by comparing calls with two and with three rows.

    Args:
        two, three: the arguments: tensors, and tuples, lists and dicts of them.

    Returns:
        The same structure with `(dimension, entries per row)` in place of a tensor, or its shape if that is the same
        for every batch; `None` in place of anything else.

    Raises:
        IndivisibleError: an argument differs in another way.
    """
    if isinstance(two, torch.Tensor) and isinstance(three, torch.Tensor) and two.dim() == three.dim():
        differ = [i for i in range(two.dim()) if two.shape[i] != three.shape[i]]
        if not differ:
            return two.shape
        if len(differ) == 1 and 3 * two.shape[differ[0]] == 2 * three.shape[differ[0]]:
            return differ[0], two.shape[differ[0]] // 2
    elif isinstance(two, tuple | list) and type(two) is type(three) and len(two) == len(three):
        return [find_batch_axes(a, b) for a, b in zip(two, three, strict=True)]
    elif isinstance(two, dict) and isinstance(three, dict) and two.keys() == three.keys():
        return {key: find_batch_axes(two[key], three[key]) for key in two}
    elif two is three or (isinstance(two, bool | int | float | str) and two == three):
        return None
    raise IndivisibleError(f"an argument of type {type(two).__name__} is not made of rows")


def select_rows(value: Any, axes: Any, rows: torch.Tensor, batch_size: int) -> Any:
    """Selects rows of the batch in the arguments of a layer.

    Args:
        value: arguments that were recorded with a batch of `batch_size` rows.
        axes: the result of `find_batch_axes`.
        rows: `(n,)`, the numbers of the rows to keep.
        batch_size: B.

    Raises:
        IndivisibleError: an argument has another shape than when its axes were found.
    """
    if isinstance(value, torch.Tensor):
        return _rows_of_tensor(value, axes, rows, batch_size)
    if isinstance(value, tuple | list):
        known = axes if isinstance(axes, list) and len(axes) == len(value) else [None] * len(value)
        selected = [select_rows(one, axis, rows, batch_size) for one, axis in zip(value, known, strict=True)]
        return tuple(selected) if isinstance(value, tuple) else selected
    if isinstance(value, dict):
        by_key = axes if isinstance(axes, dict) else {}
        return {key: select_rows(one, by_key.get(key), rows, batch_size) for key, one in value.items()}
    return value


def _rows_of_tensor(tensor: torch.Tensor, axis: Any, rows: torch.Tensor, batch_size: int) -> torch.Tensor:
    if isinstance(axis, torch.Size):  # the same for all rows, unless it was expanded for each of them meanwhile
        if len(axis) == tensor.dim() and all(n == 1 or m != 1 for n, m in zip(tensor.shape, axis, strict=True)):
            return tensor
    elif isinstance(axis, tuple) and tensor.dim() > axis[0]:
        dim, entries = axis
        if tensor.shape[dim] == 1:
            return tensor
        if tensor.shape[dim] == batch_size * entries:
            kept = rows.to(tensor.device)[:, None] * entries + torch.arange(entries, device=tensor.device)
            return tensor.index_select(dim, kept.flatten())
    raise IndivisibleError(f"a tensor of shape {tuple(tensor.shape)} was another when the model was built")
