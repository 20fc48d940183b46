"""Fixed points of a map: finding them, and their gradients.

Four things are kept apart. The **map** `f` is any callable from a state to a state of the same shapes; it does not
change while it is iterated (one dropout mask, or none). A **solver** (`iterate`, `anderson`) goes from a start towards
`h* = f(h*)`. A **gradient rule** (`full`, `truncated`, `implicit`) says which of its steps get a graph. The
**statistics**, one row an example, come back with the state in a `Solution`.

A state is a tensor or a tuple of tensors whose first dimension is the batch. Examples are independent of each other:
each stops by itself, and stopped or not, none changes what comes out for another.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

State = torch.Tensor | tuple[torch.Tensor, ...]
Map = Callable[[Any], Any]
# New and old state → how far each example moved, `(B,)`.
Residual = Callable[[State, State], torch.Tensor]
Solver = Callable[..., "Solution"]


class ConvergenceWarning(UserWarning):
    """A fixed point or its adjoint was not reached; the message says what was done instead."""


@dataclass(frozen=True)
class Solution:
    """Where a solver arrived.

    Args:
        state: after the last application of the map.
        residuals: `(B, steps)`, how far each application still moved each example; 0 once it has stopped, and no finite
            number in the step in which its state ceased to be finite. Nothing is measured, and the shape is `(B, 0)`,
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

    def lost(self) -> torch.Tensor:
        """`(B,)`: which examples have a state that is not finite any more."""
        return ~self.residuals.isfinite().all(1)


def relative_residual(new: State, old: State) -> torch.Tensor:
    """`‖new − old‖ / ‖new‖` per example, `(B,)`, in float32 or better; states may be of any size."""
    a, b = _flat(new), _flat(old)
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    tiny = torch.finfo(a.dtype).tiny
    scale = torch.maximum(a.abs(), b.abs()).amax(1, keepdim=True).clamp_min(tiny)
    return ((a - b) / scale).norm(dim=1) / (a / scale).norm(dim=1).clamp_min(tiny)


# Solvers


def iterate(
    f: Map,
    start: State,
    steps: int,
    *,
    tolerance: float | None = None,
    residual: Residual | None = relative_residual,
    keep_states: bool = False,
) -> Solution:
    """Plain iteration `h ← f(h)`, with a graph where gradients are enabled.

    Args:
        f: the map.
        start: the state it is first applied to.
        steps: how many applications; with a `tolerance`, at most so many.
        tolerance: an example stops at its first step whose residual is not above this, or is no finite number.
        residual: how a step is measured; `None`, only without `tolerance`: not at all.
        keep_states: also return the state after every step.

    Raises:
        ValueError: `steps` is below 1, or there is a tolerance and nothing to measure it by.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.fixed_point import iterate
    >>> found = iterate(torch.cos, torch.zeros(1, 1), 100, tolerance=1e-6)
    >>> round(found.state.item(), 4), found.iterations.item()
    (0.7391, 36)

    ```
    """
    _check(steps, tolerance, residual)
    progress = _Progress(start, tolerance, residual, keep_states)
    state = start
    for _ in range(steps):
        state = progress.step(f(state), state)
        if progress.finished:
            break
    return progress.solution(state)


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
        memory: m, how many steps are combined; 1 is plain iteration.
        (the others): as in `iterate`. A residual compares `f(h)` with the `h` it was applied to.

    Source: Anderson 1965; Walker and Ni 2011, doi 10.1137/10078356X.
    """
    _check(steps, tolerance, residual)
    progress = _Progress(start, tolerance, residual, keep_states)
    state: Any = start
    inputs: list[torch.Tensor] = []
    images: list[torch.Tensor] = []
    for _ in range(steps):
        image = progress.step(f(state), state)
        if progress.finished:
            break
        inputs, images = [*inputs, _flat(state)][-memory:], [*images, _flat(image)][-memory:]
        h, fh = torch.stack(inputs, 1), torch.stack(images, 1)  # (B, m, N)
        weights = _anderson_weights(fh - h).unsqueeze(-1)  # (B, m, 1)
        state = _unflat((weights.to(fh) * fh).sum(1), image)
    return progress.solution(image)


def _anderson_weights(differences: torch.Tensor) -> torch.Tensor:
    """`argmin ‖Σ α_i g_i‖` with `Σ α_i = 1`, per example: `(B, m, N)` → `(B, m)`."""
    with torch.autocast(differences.device.type, enabled=False):
        g = differences.to(torch.promote_types(differences.dtype, torch.float32))
        gram = g @ g.mT
        m = gram.shape[-1]
        scale = gram.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(torch.finfo(g.dtype).tiny)
        ridge = 10 * torch.finfo(g.dtype).eps * torch.eye(m, dtype=g.dtype, device=g.device)
        found, _ = torch.linalg.solve_ex(gram / scale[:, None, None] + ridge, g.new_ones(g.shape[0], m, 1))
        weights = found.squeeze(-1) / found.sum(1)
    plain = torch.nn.functional.one_hot(torch.tensor(m - 1, device=g.device), m).to(weights)
    return torch.where(weights.isfinite().all(1, keepdim=True), weights, plain)


class _Progress:
    """The statistics of a solver, and which examples have stopped."""

    def __init__(self, start: State, tolerance: float | None, residual: Residual | None, keep_states: bool) -> None:
        first = _tensors(start)[0]
        self.tolerance, self.residual, self.keep_states = tolerance, residual, keep_states
        self.iterations = torch.zeros(first.shape[0], dtype=torch.long, device=first.device)
        self.stopped = torch.zeros_like(self.iterations, dtype=torch.bool)
        self.residuals: list[torch.Tensor] = []
        self.states: list[State] = []
        self.latest: State = start
        self.finished = False

    def step(self, new: State, old: State) -> State:
        """Notes a step; returns the new state, where examples that have stopped keep what they had."""
        if self.tolerance is not None and self.residuals:
            new = _where(self.stopped, self.latest, new)
            old = _where(self.stopped, self.latest, old)
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


# Gradient rules


def full(f: Map, start: State, steps: int, **options: Any) -> Solution:
    """The gradient of every step: back-propagation through the whole iteration.

    Args:
        f, start, steps: as in `iterate`.
        **options: those of `iterate`.
    """
    return iterate(f, start, steps, **options)


def truncated(f: Map, start: State, steps: int, *, last: int, **options: Any) -> Solution:
    """The gradient of the last steps alone; the earlier ones run without a graph. `last ≥ steps` equals `full`.

    With a tolerance, the last steps of each example are meant. How many there will be is known at the end alone, so
    they are taken a second time, with a graph.

    Args:
        last: how many steps get a graph, n.
        (the others): as in `iterate`.
    """
    if last < 1:
        raise ValueError(f"`last` must be at least 1, got {last!r}.")
    if last >= steps or not torch.is_grad_enabled():
        return iterate(f, start, steps, **options)
    if options.get("tolerance") is not None:
        return _truncated_where_they_stop(f, start, steps, last, **options)
    with torch.no_grad():
        before = iterate(f, start, steps - last, **options)
    after = iterate(f, before.state, last, **options)
    return Solution(
        after.state,
        torch.cat([before.residuals, after.residuals], 1),
        before.iterations + after.iterations,
        before.states + after.states,
    )


def _truncated_where_they_stop(f: Map, start: State, steps: int, last: int, **options: Any) -> Solution:
    with torch.no_grad():
        found = iterate(f, start, steps, **{**options, "keep_states": True})
    skipped = (found.iterations - last).clamp_min(0)
    state, states = start, (start, *found.states)
    for k in range(1, int(skipped.max()) + 1):
        state = _where(skipped == k, states[k], state)
    for k in range(min(last, int(found.iterations.max()))):
        state = _where(k < found.iterations - skipped, f(state), state)
    kept = (*found.states[:-1], state) if options.get("keep_states") else ()
    return replace(found, state=state, states=kept)


def implicit(
    f: Map,
    start: State,
    steps: int,
    *,
    tolerance: float,
    solver: Solver = iterate,
    adjoint_steps: int | None = None,
    residual: Residual = relative_residual,
    keep_states: bool = False,
) -> Solution:
    """The gradient of the fixed point itself, whatever steps led there (implicit differentiation, which is recurrent
    back-propagation): at `h* = f(h*)` with Jacobian J, `dL/dθ = gᵀ ∂f/∂θ` where `g = v + Jᵀ g` and `v = ∂L/∂h*`.

    The fixed point is found without a graph, `f` is applied once more with one, and the backward pass solves for `g` by
    plain iteration. Memory does not grow with the number of steps.

    Where an example has not converged after `steps`, this gradient would be wrong: a `ConvergenceWarning` says so, and
    it gets that of the iteration, which runs again as in `full`, from `start` with its graph. Where the adjoint does
    not converge, examples concerned get the gradient of the one step with a graph (`g = v`), and a warning says that.
    An example whose state is not finite stops there, which is warned of, too. None of this changes another example.

    Args:
        tolerance: the residual within which a fixed point, and `g`, count as found.
        solver: `iterate` or `anderson`.
        adjoint_steps: at most so many for `g`; twice `steps` by default.
        (the others): as in `iterate`.

    Raises:
        ValueError: there is no tolerance.

    Source: Almeida 1987; Pineda 1987; Bai, Kolter and Koltun 2019, arXiv 1909.01377.
    """
    if tolerance is None:
        raise ValueError("`tolerance` is needed for an implicit gradient, such as 1e-6: it says what is converged.")
    options: dict[str, Any] = dict(tolerance=tolerance, residual=residual, keep_states=keep_states)
    with torch.no_grad():
        found = solver(f, start, steps, **options)
    if not torch.is_grad_enabled():
        return found
    lost = found.lost()
    unrolled = ~found.converged(tolerance) & ~lost
    if bool(lost.any()):
        _warn(
            f"The fixed point was not reached: the state of {int(lost.sum())} of {len(lost)} examples is not finite "
            f"after {int(found.iterations[lost].min())} iterations, where they stop. Check their inputs, lower the "
            "learning rate, or make the map contract (smaller feedback weights, weight decay)."
        )
    state = found.state
    if not bool(unrolled.all()):
        state = with_implicit_gradient(f, state, adjoint_steps or 2 * steps, tolerance=tolerance, residual=residual)
    if bool(unrolled.any()):
        _warn(
            f"The fixed point was not reached within {steps} iterations: the last one moved the state by "
            f"{_in_words(found.residuals[unrolled, -1])}, `tolerance` is {tolerance:g}. The gradient of the iterations "
            "themselves (`gradient='full'`) is used instead. Allow more iterations, ask for less, or make the map "
            "contract (smaller feedback weights, weight decay)."
        )
        state = _where(unrolled, iterate(f, start, steps, **options).state, state)
    return replace(found, state=state, states=(*found.states[:-1], state) if keep_states else ())


def with_implicit_gradient(
    f: Map, state: State, steps: int, *, tolerance: float, residual: Residual = relative_residual
) -> State:
    """One application of `f` at a fixed point, whose backward pass solves the adjoint equation `g = v + Jᵀ g`.

    Args:
        f: the map.
        state: its fixed point; must be one, see `Solution.converged`.
        steps: at most so many applications of `Jᵀ`.
        tolerance: the residual within which `g` counts as found.
        residual: how a step is measured.
    """
    at = tuple(tensor.detach().requires_grad_() for tensor in _tensors(state))
    image = _tensors(f(_like(state, at)))

    def transposed(g: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:  # Jᵀ g
        try:
            return torch.autograd.grad(image, at, g, retain_graph=True, materialize_grads=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise RuntimeError(
                "`gradient='implicit'` cannot go through reentrant checkpoints; enable them with "
                "`gradient_checkpointing_kwargs={'use_reentrant': False}`."
            ) from error

    def solve(v: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return _solve_adjoint(transposed, v, steps, tolerance, residual)

    return _like(state, cast(tuple, _Adjoint.apply(solve, *image)))


class _Adjoint(torch.autograd.Function):
    """The identity, whose backward pass is `solve`."""

    @staticmethod
    def forward(ctx: Any, solve: Callable, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.solve = solve
        return tuple(state.view_as(state) for state in states)

    @staticmethod
    def backward(ctx: Any, *v: torch.Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True; what follows from g would be missing, silently
            raise RuntimeError("The implicit gradient has no second derivative; use `gradient='full'`.")
        return (None, *ctx.solve(v))


def _solve_adjoint(
    transposed: Map, v: tuple[torch.Tensor, ...], steps: int, tolerance: float, residual: Residual
) -> tuple[torch.Tensor, ...]:
    """`g = v + Jᵀ g`, by plain iteration from `v`; `v` where it does not converge."""

    def adjoint(g: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(a + b for a, b in zip(v, transposed(g), strict=True))

    found = iterate(adjoint, v, steps, tolerance=tolerance, residual=residual)
    converged = found.converged(tolerance)
    if not bool(converged.all()):
        _warn(
            f"The adjoint equation of the fixed point was not solved within {steps} steps (residual "
            f"{_in_words(found.residuals[:, -1])}, `tolerance` {tolerance:g}): the gradient of "
            f"{int((~converged).sum())} of {len(converged)} examples is that of one iteration, and inexact. Allow more "
            "iterations, or use `gradient='full'`."
        )
    return _tensors(_where(converged, found.state, v))


# States


def _tensors(state: Any) -> tuple[torch.Tensor, ...]:
    return (state,) if isinstance(state, torch.Tensor) else tuple(state)


def _like(model: State, tensors: tuple[torch.Tensor, ...]) -> State:
    return tensors[0] if isinstance(model, torch.Tensor) else tensors


def _where(rows: torch.Tensor, yes: State, no: State) -> State:
    """`yes` for the examples that `rows` `(B,)` names, else `no`."""
    pairs = zip(_tensors(yes), _tensors(no), strict=True)
    return _like(no, tuple(torch.where(rows.view(-1, *(1,) * (b.dim() - 1)), a, b) for a, b in pairs))


def _flat(state: State) -> torch.Tensor:
    """A state as one vector an example, `(B, N)`."""
    return torch.cat([tensor.flatten(1) for tensor in _tensors(state)], 1)


def _unflat(flat: torch.Tensor, model: State) -> State:
    tensors = _tensors(model)
    parts = flat.split([tensor[0].numel() for tensor in tensors], 1)
    return _like(model, tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)))


def _check(steps: int, tolerance: float | None, residual: Residual | None) -> None:
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps!r}.")
    if tolerance is not None and residual is None:
        raise ValueError("`residual=None` leaves nothing to compare with `tolerance`; leave one of them out.")


def _in_words(residuals: torch.Tensor) -> str:
    """The worst residual with one digit, so that the warnings of a long run repeat each other and are shown once."""
    return f"{residuals.nan_to_num(torch.inf, torch.inf).max():.0e}"


def _warn(message: str) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=4)
