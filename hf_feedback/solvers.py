"""Fixed points of a map, found by iteration.

The **map** `f` is any callable from a state to a state of the same shapes; it does not change while it is iterated (one
dropout mask, or none). A **solver** (`iterate`, `anderson`) goes from a start towards `h* = f(h*)`. The statistics, one
row an example, come back with the state in a `Solution`. Gradients are computed in `gradients.py`.

A state is a tensor or a tuple of tensors whose first dimension is the batch. Examples are independent of each other:
each stops by itself, and stopped or not, none changes the result of another.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

State = torch.Tensor | tuple[torch.Tensor, ...]
Map = Callable[[Any], Any]
# New and old state → relative change of each example, `(B,)`.
Residual = Callable[[State, State], torch.Tensor]
Solver = Callable[..., "Solution"]


@dataclass(frozen=True)
class Solution:
    """The result of a solver.

    Args:
        state: after the last application of the map.
        residuals: `(B, steps)`, how far each application still moved each example; 0 once it has stopped, and not
            finite in the step in which its state ceased to be finite. Nothing is measured, and the shape is `(B, 0)`,
            without a `residual` function.
        iterations: `(B,)`, how many applications each example took.
        states: the states after every application, with `keep_states=True`.
    """

    state: Any
    residuals: torch.Tensor
    iterations: torch.Tensor
    states: tuple[Any, ...] = ()

    def converged(self, tolerance: float) -> torch.Tensor:
        """`(B,)`: which examples had a last step within the tolerance."""
        last = self.residuals.gather(1, (self.iterations - 1).unsqueeze(1)).squeeze(1)
        return last <= tolerance

    def diverged(self) -> torch.Tensor:
        """`(B,)`: which examples have a state that is not finite any more."""
        return ~self.residuals.isfinite().all(1)


def relative_residual(new: State, old: State) -> torch.Tensor:
    """`‖new − old‖ / ‖new‖` per example, `(B,)`, in float32 or better; states may be of any size."""
    a, b = flatten(new), flatten(old)
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    tiny = torch.finfo(a.dtype).tiny
    scale = torch.maximum(a.abs(), b.abs()).amax(1, keepdim=True).clamp_min(tiny)
    return ((a - b) / scale).norm(dim=1) / (a / scale).norm(dim=1).clamp_min(tiny)


class PartialResidual:
    """`relative_residual` of a part of the state, which alone decides how a fixed point is searched for, too."""

    def counted(self, state: Any) -> Any:
        """The state with 0 where it does not count."""
        return state

    def __call__(self, new: Any, old: Any) -> torch.Tensor:
        return relative_residual(self.counted(new), self.counted(old))


def iterate(
    f: Map,
    start: State,
    steps: int,
    *,
    tolerance: float | None = None,
    residual: Residual | None = relative_residual,
    keep_states: bool = False,
    graph_steps: int | None = None,
) -> Solution:
    """Plain iteration `h ← f(h)`, with a graph where gradients are enabled.

    Args:
        f: the map.
        start: the state it is first applied to.
        steps: how many applications; with a `tolerance`, at most so many.
        tolerance: an example stops at its first step whose residual is not above this, or is not finite.
        residual: how a step is measured; `None`, only without `tolerance`: not at all.
        keep_states: also return the state after every step.
        graph_steps: how many of the last steps get a graph; all by default.

    Raises:
        ValueError: `steps` is below 1, or there is a tolerance and nothing to measure it by.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.solvers import iterate
    >>> solution = iterate(torch.cos, torch.zeros(1, 1), 100, tolerance=1e-6)
    >>> round(solution.state.item(), 4), solution.iterations.item()
    (0.7391, 36)

    ```
    """
    _check(steps, tolerance, residual)
    progress = _Progress(start, tolerance, residual, keep_states)
    state = start
    for step in range(1, steps + 1):
        with graph_of_step(step, steps, graph_steps):
            new = f(state)
        state = progress.step(new, state)
        if progress.finished:
            break
    return progress.solution(state)


def graph_of_step(step: int, steps: int, graph_steps: int | None) -> AbstractContextManager[None]:
    """Context of a step, which gets a graph if it is among the last ones.

    Args:
        step: number of the step, from 1.
        steps: how many there are.
        graph_steps: how many of the last steps get a graph; `None`: all.
    """
    return nullcontext() if graph_steps is None or step > steps - graph_steps else torch.no_grad()


@torch.no_grad()
def anderson(
    f: Map,
    start: State,
    steps: int,
    *,
    tolerance: float | None = None,
    residual: Residual | None = relative_residual,
    keep_states: bool = False,
    memory: int = 5,
) -> Solution:
    """Anderson acceleration: the next state is the combination of the last `f(h)` whose differences `f(h) − h` cancel
    best. It needs fewer steps than plain iteration, and has no graph: `implicit` gives its result a gradient.

    Args:
        f, start, steps, tolerance, keep_states: as in `iterate`.
        residual: as in `iterate`; it compares `f(h)` with the `h` it was applied to. Where it is a `PartialResidual`,
            what it leaves out does not weigh in the combination either.
        memory: m, how many steps are combined; 1 is plain iteration.

    Source: Anderson 1965; Walker and Ni 2011, doi 10.1137/10078356X.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.solvers import anderson
    >>> solution = anderson(torch.cos, torch.zeros(1, 1), 100, tolerance=1e-6)
    >>> round(solution.state.item(), 4), solution.iterations.item() < 36
    (0.7391, True)

    ```
    """
    _check(steps, tolerance, residual)
    progress = _Progress(start, tolerance, residual, keep_states)
    state: Any = start
    counted = residual.counted if isinstance(residual, PartialResidual) else lambda state: state
    differences: list[torch.Tensor] = []
    images: list[torch.Tensor] = []
    for _ in range(steps):
        image = progress.step(f(state), state)
        if progress.finished:
            break
        differences = [*differences, flatten(counted(image)) - flatten(counted(state))][-memory:]
        images = [*images, flatten(image)][-memory:]
        weights = _anderson_weights(torch.stack(differences, 1)).unsqueeze(-1)  # (B, m, 1)
        fh = torch.stack(images, 1)  # (B, m, N)
        state = _unflatten((weights.to(fh) * fh).sum(1), image)
    return progress.solution(image)


# By the name of the option: how a fixed point is found.
SOLVERS: dict[str, Solver] = {"iteration": iterate, "anderson": anderson}


def _anderson_weights(differences: torch.Tensor) -> torch.Tensor:
    """`argmin ‖Σ α_i g_i‖` with `Σ α_i = 1`, per example: `(B, m, N)` → `(B, m)`."""
    with torch.autocast(differences.device.type, enabled=False):
        g = differences.to(torch.promote_types(differences.dtype, torch.float32))
        gram = g @ g.mT
        m = gram.shape[-1]
        scale = gram.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(torch.finfo(g.dtype).tiny)
        ridge = 10 * torch.finfo(g.dtype).eps * torch.eye(m, dtype=g.dtype, device=g.device)
        solved, _ = torch.linalg.solve_ex(gram / scale[:, None, None] + ridge, g.new_ones(g.shape[0], m, 1))
        weights = solved.squeeze(-1) / solved.sum(1)
    plain = torch.nn.functional.one_hot(torch.tensor(m - 1, device=g.device), m).to(weights)
    return torch.where(weights.isfinite().all(1, keepdim=True), weights, plain)


class _Progress:
    """The statistics of a solver, and which examples have stopped."""

    def __init__(self, start: State, tolerance: float | None, residual: Residual | None, keep_states: bool) -> None:
        first = tensors_of(start)[0]
        self.tolerance, self.residual, self.keep_states = tolerance, residual, keep_states
        self.iterations = torch.zeros(first.shape[0], dtype=torch.long, device=first.device)
        self.stopped = torch.zeros_like(self.iterations, dtype=torch.bool)
        self.residuals: list[torch.Tensor] = []
        self.states: list[State] = []
        self.latest: State = start
        self.finished = False

    def step(self, new: State, old: State) -> State:
        """Notes a step; returns the new state, in which examples that have stopped keep their old one."""
        if self.tolerance is not None and self.residuals:
            new = select_where(self.stopped, self.latest, new)
            old = select_where(self.stopped, self.latest, old)
        self.iterations = self.iterations + ~self.stopped
        if self.residual is not None:
            with torch.no_grad():
                self.residuals.append(self.residual(new, old).masked_fill(self.stopped, 0.0))
        if self.keep_states:
            self.states.append(new)
        if self.tolerance is not None:
            self.latest = new
            self.stopped = self.stopped | (self.residuals[-1] <= self.tolerance) | ~self.residuals[-1].isfinite()
            self.finished = bool(self.stopped.all())
        return new

    def solution(self, state: State) -> Solution:
        empty = torch.zeros((len(self.iterations), 0), device=self.iterations.device)
        residuals = torch.stack(self.residuals, 1) if self.residuals else empty
        return Solution(state, residuals, self.iterations, tuple(self.states))


def _check(steps: int, tolerance: float | None, residual: Residual | None) -> None:
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps!r}.")
    if tolerance is not None and residual is None:
        raise ValueError("`residual=None` leaves nothing to compare with `tolerance`; leave one of them out.")


# States: a tensor, or a tuple of tensors


def tensors_of(state: State) -> tuple[torch.Tensor, ...]:
    """The tensors of a state."""
    return (state,) if isinstance(state, torch.Tensor) else tuple(state)


def pack_like(state: State, tensors: tuple[torch.Tensor, ...]) -> State:
    """Tensors as a state of the same form as another."""
    return tensors[0] if isinstance(state, torch.Tensor) else tensors


def select_where(rows: torch.Tensor, yes: State, no: State) -> State:
    """`yes` for the examples in which `rows` `(B,)` is true, else `no`."""
    pairs = zip(tensors_of(yes), tensors_of(no), strict=True)
    return pack_like(no, tuple(torch.where(rows.view(-1, *(1,) * (b.dim() - 1)), a, b) for a, b in pairs))


def flatten(state: State) -> torch.Tensor:
    """A state as one vector an example, `(B, N)`."""
    return torch.cat([tensor.flatten(1) for tensor in tensors_of(state)], 1)


def _unflatten(flat: torch.Tensor, model: State) -> State:
    tensors = tensors_of(model)
    parts = flat.split([tensor[0].numel() for tensor in tensors], 1)
    return pack_like(model, tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)))
