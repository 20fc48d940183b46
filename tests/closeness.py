"""When two results count as the same, on any processor.

- Bits (`torch.equal`) are compared where the very same kernels run on the same shapes and layouts in the same process:
  a model and its backbone, its saved self, its copy. Another batch size, padded length, layout, number of threads or
  process may add in another order.
- Equations are compared in float64 (`in_float64`, `assert_exact`): a wrong one is off by far more than 1e-12, rounding
  by far less.
- In float32 no number is right for every processor: rounding adds up as it does in any other computation of the same
  result, which is what `assert_rounding` compares with.
- In half precision rounding is measured by what the feedback does (`assert_half`): a result that it has not changed, or
  zeros, are off by several times the bound.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

# How far a probability of transformers' pipelines may be off: a softmax in float32 of logits, below 10, in float32.
PROBABILITY = 32 * torch.finfo(torch.float32).eps


class NoFloat32(TorchFunctionMode):
    """Gives float64 to every call of torch that asks for float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


@contextmanager
def without_float32() -> Iterator[None]:
    """The same by other names in torch, which costs the calls nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("float32", "float"):
            patch.setattr(torch, name, torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@contextmanager
def in_float64(files: bool = False) -> Iterator[None]:
    """Context, or decorator of a test, in which everything is made and computed in float64: also where a family asks
    for float32 inside, as many do in their norms, positions and softmax.

    Args:
        files: whether files are written or read, which say by name what numbers they hold.
    """
    single = torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        with NoFloat32() if files else without_float32():
            yield
    finally:
        torch.set_default_dtype(single)


def assert_exact(found: Any, expected: Any) -> None:
    """Both are float64 (a tensor, or several by name) and the same to 1e-12 of the largest."""
    found, expected = _by_name(found), _by_name(expected)
    assert {tensor.dtype for tensor in (found | expected).values()} == {torch.float64}
    _assert_within(1e-12 * _largest(expected), found, expected)


def assert_rounding(found: Any, other: Any, exact: Any) -> None:
    """Nothing but rounding in float32: `found` is as far from the exact result as another float32 computation is.

    The two may round to different sides at every step, and both may be lucky; 4 times the larger of the other's error
    and one rounding of the largest allows for that.

    Args:
        found: the result in question, a tensor or several by name.
        other: the same, computed in float32 by other means.
        exact: the same, computed in float64.
    """
    found, other, exact = _by_name(found), _by_name(other), _by_name(exact)
    errors = {name: other[name].double() - exact[name] for name in exact}
    bound = 4 * max(_largest(errors), torch.finfo(torch.float32).eps * _largest(exact))
    _assert_within(bound, found, exact)


def assert_half(found: Any, full: Any, plain: Any, dtype: torch.dtype) -> None:
    """`found` is `full` but for rounding to a half precision, by far less than the feedback changes it.

    K = 3 iterations of a tiny model's 4 layers (`families.SIZES`) round the state twice a call, after the attention and
    after the feed-forward network; with the embeddings, the messages and the head that is at most 32 roundings in a
    row. Each is at most eps of its result, and mostly to no common side. Under autocast, whose sums stay in float32,
    there are no more of them on the way forward and back. All entries count together, so that a single one near zero
    does not.

    Args:
        found: the result in question, a tensor or several by name.
        full: the same in float32.
        plain: the same in float32 without the feedback's effect, as of K = 1.
        dtype: what `found` was computed in.
    """
    found, full, plain = _by_name(found), _by_name(full), _by_name(plain)
    assert found.keys() == full.keys() == plain.keys()
    error, effect = _distance(found, full), _distance(plain, full)
    size, bound = _distance(full, {}), 32 * torch.finfo(dtype).eps * effect
    assert effect > size / 4, f"the feedback changes {size:.1e} by {effect:.1e}, too little to measure rounding by"
    assert bound < size, f"zeros would be within {bound:.1e}"
    assert error <= bound, f"off by {error:.1e}, more than {bound:.1e}, where the feedback changes {effect:.1e}"


def from_same_weights(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two float32 results, each of a process of its own, are of one tiny model: 4 layers whose sums have up to
    37 terms (`families.SIZES`) lose at most that many roundings. Of other weights they are off by far more."""
    bound = 4 * 37 * torch.finfo(torch.float32).eps * expected.abs().max()
    return found.shape == expected.shape and bool((found - expected).abs().max() <= bound)


def _by_name(result: Any) -> dict[str, torch.Tensor]:
    return dict(result) if isinstance(result, Mapping) else {"result": result}


def _largest(tensors: dict[str, torch.Tensor]) -> float:
    return max(tensor.detach().abs().max().item() for tensor in tensors.values())


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Root of the sum of squares of all differences; from zero where the other has no such tensor."""
    differences = [tensor.detach().double() - other.get(name, torch.zeros(())).double() for name, tensor in one.items()]
    return sum(difference.square().sum().item() for difference in differences) ** 0.5


def _assert_within(bound: float, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        error = (found[name].double() - tensor.double()).abs().max().item()
        assert error <= bound, f"{name} is off by {error:.1e}, more than {bound:.1e}"
