"""Contraction of the loop: an estimate, and a penalty that increases it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .feedback_loop import FeedbackLoop, PackedStates
from .iteration_trace import States


def jacobian_penalty(loop: FeedbackLoop, h: States) -> torch.Tensor:
    """`‖εᵀJ‖² / n` with ε ~ N(0, I): an unbiased estimate of `‖J‖²_F / n`, J the loop's Jacobian at the states h and n
    their number of entries, padding left out if it is known. Minimized, it makes the loop contract.

    Args:
        loop: the map of one iteration.
        h: states of the last iteration; no gradient flows into them.

    Returns:
        Scalar, with a graph for the parameters.

    Source: Bai et al. 2021, Stabilizing Equilibrium Models by Jacobian Regularization, arXiv 2106.14342.
    """
    at = tuple(state.detach().requires_grad_() for state in loop.pack(h))
    with sdpa_kernel(SDPBackend.MATH), _without_checkpointing(loop):  # the others have no second derivative
        image = _damped_step(loop, at)
    epsilon = tuple(torch.randn_like(part) for part in image)
    epsilon = _without_padding(epsilon, loop.token_mask)
    products = torch.autograd.grad(image, at, epsilon, create_graph=True, materialize_grads=True)
    exact = torch.promote_types(image[0].dtype, torch.float32)
    squares: Any = sum(part.to(exact).square().sum() for part in products)
    return squares / sum((part != 0).sum() for part in epsilon)


def estimate_contraction(loop: FeedbackLoop, num_iterations: int, steps: int) -> torch.Tensor:
    """Estimates the factor `(B,)` by which one more iteration after K changes a small difference between states: the
    spectral radius of the loop's Jacobian J, by power iteration with products `Jᵀ v`. Below 1 the loop contracts.
    Differences in padding, which no answer reads, are left out.

    Args:
        loop: the map of one iteration.
        num_iterations: K.
        steps: number of steps of the power iteration; the estimate is the geometric mean of the later half.
    """
    h = loop.initial_states()
    h = loop.feedback.damp(h, h)
    with torch.no_grad():
        for _ in range(2, num_iterations + 1):
            h = loop.feedback.damp(h, loop.step(h))
    at = tuple(state.detach().requires_grad_() for state in loop.pack(h))
    with torch.enable_grad():
        image = _damped_step(loop, at)
    segments, mask = loop.message_context.segments, loop.token_mask

    def norm(v: PackedStates) -> torch.Tensor:
        squares: Any = sum(part.double().flatten(1).square().sum(1) for part in v)
        return squares.sqrt() if segments is None else segments.sum(squares).sqrt()  # segments of a text: one state

    def scaled(v: PackedStates, by: torch.Tensor) -> PackedStates:
        by = by if segments is None else by[segments.text]
        return tuple(part / by.clamp_min(1e-30).to(part)[:, None, None] for part in v)

    generator = torch.Generator("cpu").manual_seed(0)
    v = tuple(torch.randn(part.shape, generator=generator, device="cpu").to(part) for part in at)
    v = _without_padding(v, mask)
    growth = []
    for _ in range(steps):
        v = scaled(v, norm(v))
        v = _without_padding(torch.autograd.grad(image, at, v, retain_graph=True, materialize_grads=True), mask)
        growth.append(norm(v))
    later = torch.stack(growth[len(growth) // 2 :])
    return later.clamp_min(1e-30).log().mean(0).exp().float()


def _without_padding(state: PackedStates, mask: torch.Tensor | None) -> PackedStates:
    return state if mask is None else tuple(part * mask[..., None].to(part) for part in state)


def _damped_step(loop: FeedbackLoop, at: PackedStates) -> PackedStates:
    before = loop.unpack(at)
    return loop.pack(loop.feedback.damp(before, loop.step(before)))


@contextmanager
def _without_checkpointing(loop: FeedbackLoop) -> Iterator[None]:
    """Layers are run as they are: recomputed in the backward pass, they would take another attention kernel, and
    reentrant checkpoints have no second derivative."""
    modules: set[nn.Module] = {module for call in loop.record.calls for module in call.module.modules()}
    changed: list[Any] = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
    for module in changed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in changed:
            module.gradient_checkpointing = True
