"""The loop at its fixed point: implicit gradients, and how strongly it contracts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .fixed_point import anderson, implicit
from .fixed_point import iterate as plain
from .loop import Loop, Observer, States
from .recorder import with_hidden

SOLVERS = {"iteration": plain, "anderson": anderson}


class RandomState:
    """Context in which random numbers are the same each time; what follows goes on as after the first time."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.first: list[torch.Tensor] | None = None

    def _read(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def _write(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def __enter__(self) -> None:
        self.before = self._read()
        self.repeats = self.first is not None
        if self.first is None:
            self.first = self.before
        self._write(self.first)

    def __exit__(self, *error: object) -> None:
        if self.repeats:
            self._write(self.before)


def converge(
    loop: Loop, num_iterations: int, tolerance: float, solver: str = "iteration", observe: Observer | None = None
) -> Any:
    """Iterations 2 … K towards the fixed point `h* = step(h*)`, with the gradient of the fixed point itself.

    One dropout mask serves all of them, for an implicit gradient needs one fixed map. See `fixed_point.implicit` for
    what happens where the fixed point is not reached.

    Args:
        loop: the map of one iteration.
        num_iterations: K, at most.
        tolerance: the relative residual, per example, within which the fixed point counts as reached.
        solver: a name in `SOLVERS`.
        observe: as in `iterate`.

    Returns:
        The output of the segment's last layer at the fixed point, as the backbone expects it (tensor or tuple).
    """
    latest: list[Any] = [loop.run.segment[-1].output]
    same_dropout = RandomState(loop.entry.device)
    damps, sources = loop.feedback.damps, len(loop.sources)

    def step(state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        h = loop.unpack(state[:sources])
        with same_dropout:
            latest[0], new = loop.step(h)
        # damped states are what messages read next; what the backbone goes on with, and the answer, are the new ones
        return (*loop.pack(loop.feedback.damp(h, new)), *loop.pack(new)) if damps else loop.pack(new)

    first = loop.recorded()
    if observe:
        observe(1, first)
    if num_iterations == 1:
        return latest[0]
    start = loop.pack(first)  # with the graph of iteration 1, which the fallback needs
    found = implicit(
        step,
        (*start, *start) if damps else start,
        num_iterations - 1,
        tolerance=tolerance,
        solver=SOLVERS[solver],
        keep_states=observe is not None,
    )
    for k, state in enumerate(found.states, 2):
        if observe:
            observe(k, loop.unpack(state[-sources:]))
    return with_hidden(latest[0], loop.unpack(found.state[-sources:])[loop.run.last])


@contextmanager
def _without_checkpointing(loop: Loop) -> Iterator[None]:
    """Layers are run as they are: recomputed in the backward pass, they would take another attention kernel, and
    reentrant checkpoints have no second derivative."""
    modules = {module for call in loop.run.segment for module in call.module.modules()}
    changed: list[Any] = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
    for module in changed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in changed:
            module.gradient_checkpointing = True


def jacobian_penalty(loop: Loop, h: States, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`‖εᵀJ‖² / n` with ε ~ N(0, I): an unbiased estimate of `‖J‖²_F / n`, J the loop's Jacobian at the states h and n
    their number of entries, padding left out where it is known. Minimized, it makes the loop contract (Bai et al.
    2021, Stabilizing Equilibrium Models by Jacobian Regularization, arXiv 2106.14342).

    Args:
        loop: the map of one iteration.
        h: states of the last iteration; no gradient flows into them.
        mask: `(B, T)`, true at real tokens.

    Returns:
        Scalar, with a graph for the parameters.
    """
    at = tuple(state.detach().requires_grad_() for state in loop.pack(h))
    before = loop.unpack(at)
    with sdpa_kernel(SDPBackend.MATH), _without_checkpointing(loop):  # the others have no second derivative
        image = loop.pack(loop.feedback.damp(before, loop.step(before)[1]))
    epsilon = tuple(torch.randn_like(part) for part in image)
    if mask is not None:
        epsilon = tuple(part * mask[..., None].to(part) for part in epsilon)
    products = torch.autograd.grad(image, at, epsilon, create_graph=True, materialize_grads=True)
    exact = torch.promote_types(image[0].dtype, torch.float32)
    squares: Any = sum(part.to(exact).square().sum() for part in products)
    return squares / sum((part != 0).sum() for part in epsilon)


def contraction(loop: Loop, num_iterations: int, steps: int) -> torch.Tensor:
    """How much one more iteration changes a small difference between states after K iterations, `(B,)`: an estimate of
    the spectral radius of the loop's Jacobian J, by power iteration with products `Jᵀ v`. Below 1 the loop contracts.

    Args:
        loop: the map of one iteration.
        num_iterations: K.
        steps: of the power iteration; the estimate is the geometric mean of the later half.
    """
    h = loop.recorded()
    h = loop.feedback.damp(h, h)
    with torch.no_grad():
        for _ in range(2, num_iterations + 1):
            h = loop.feedback.damp(h, loop.step(h)[1])
    at = tuple(state.detach().requires_grad_() for state in loop.pack(h))
    with torch.enable_grad():
        before = loop.unpack(at)
        image = loop.pack(loop.feedback.damp(before, loop.step(before)[1]))

    segments = loop.reading.segments

    def norm(v: tuple[torch.Tensor, ...]) -> torch.Tensor:
        squares: Any = sum(part.double().flatten(1).square().sum(1) for part in v)
        return squares.sqrt() if segments is None else segments.sum(squares).sqrt()  # segments of a text: one state

    def scaled(v: tuple[torch.Tensor, ...], by: torch.Tensor) -> tuple[torch.Tensor, ...]:
        by = by if segments is None else by[segments.text]
        return tuple(part / by.clamp_min(1e-30).to(part)[:, None, None] for part in v)

    generator = torch.Generator("cpu").manual_seed(0)
    v = tuple(torch.randn(part.shape, generator=generator, device="cpu").to(part) for part in at)
    growth = []
    for _ in range(steps):
        v = scaled(v, norm(v))
        v = torch.autograd.grad(image, at, v, retain_graph=True, materialize_grads=True)
        growth.append(norm(v))
    later = torch.stack(growth[len(growth) // 2 :])
    return later.clamp_min(1e-30).log().mean(0).exp().float()
