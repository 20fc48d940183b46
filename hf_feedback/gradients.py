"""Gradients of an iterated map, one class per rule, for the loop over a backbone and the networks from scratch.

See `solvers.py` for maps, states and solutions.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch

from .precision import relative_spacing
from .random_numbers import keep_random_state, random_state, set_random_state
from .solvers import (
    SOLVERS,
    Map,
    Residual,
    Solution,
    Solver,
    State,
    iterate,
    pack_like,
    relative_residual,
    select_where,
    tensors_of,
)
from .validation import Keywords


class ConvergenceWarning(UserWarning):
    """A fixed point or its adjoint was not reached; the message says what was done instead."""


class Gradient:
    """Rule for the gradient of an iterated map; by default through every step.

    A new rule is a subclass and a row in `GRADIENTS`.

    Args:
        last: number of last steps with a graph.
        tolerance: relative residual at which a fixed point is accepted.
        solver: a name in `SOLVERS`.
    """

    # Whether it is the gradient of a fixed point, which needs the same map in every step, one dropout mask included.
    finds_fixed_point: ClassVar[bool] = False

    def __init__(self, last: int | None = None, tolerance: float | None = None, solver: str = "iteration") -> None:
        self.last, self.tolerance, self.solver = last, tolerance, solver

    def graph_steps(self, steps: int) -> int | None:
        """The number of last steps with a graph; `None`: all, and the start keeps its graph."""
        return None

    def solve(self, f: Map, start: State, steps: int, **options: Any) -> Solution:
        """Iterates the map.

        Args:
            f, start, steps: as in `iterate`.
            **options: `tolerance`, `residual` and `keep_states` of `iterate`.
        """
        return iterate(f, start, steps, **options)


class FullGradient(Gradient):
    """The gradient of every step: back-propagation through the whole iteration. Its memory grows with the steps.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.gradients import GRADIENTS
    >>> start = torch.ones(1, 1, requires_grad=True)
    >>> GRADIENTS["full"]().solve(lambda h: 0.5 * h, start, 3).state.backward()
    >>> start.grad.item()
    0.125

    ```
    """


class TruncatedGradient(Gradient):
    """The gradient of the last n steps alone; memory does not grow with the others. In the loop over a
    backbone, iteration 1 has no graph where n ≤ K − 1; with more it is the full gradient.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.gradients import GRADIENTS
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> GRADIENTS["truncated"](last=2).solve(lambda h: a * h, torch.ones(1, 1), 3).state.backward()
    >>> a.grad.item()  # ∂(a · a · h)/∂a with h = a as a number
    0.5

    ```
    """

    def graph_steps(self, steps: int) -> int | None:
        return self.last if self.last is not None and self.last <= steps else None

    def solve(self, f: Map, start: State, steps: int, **options: Any) -> Solution:
        return truncated(f, start, steps, last=self.last or steps, **options)


class OneStepGradient(TruncatedGradient):
    """The gradient of the last step alone, whatever `last` is.

    Source: Fung et al. 2022, Jacobian-free backpropagation, arXiv 2103.12803.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.gradients import GRADIENTS
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> GRADIENTS["one_step"]().solve(lambda h: a * h, torch.ones(1, 1), 3).state.backward()
    >>> a.grad.item()
    0.25

    ```
    """

    def __init__(self, last: int | None = None, tolerance: float | None = None, solver: str = "iteration") -> None:
        super().__init__(1, tolerance, solver)


class ImplicitGradient(Gradient):
    """The gradient of the fixed point; see `implicit`.

    Example:

    ```python
    >>> import torch
    >>> from hf_feedback.gradients import GRADIENTS
    >>> b = torch.tensor([[1.0]], requires_grad=True)
    >>> gradient = GRADIENTS["implicit"](tolerance=1e-6)
    >>> gradient.solve(lambda h: 0.5 * h + b, torch.zeros(1, 1), 50).state.backward()
    >>> round(b.grad.item(), 4)  # h* = 2b
    2.0

    ```
    """

    finds_fixed_point = True

    def solve(self, f: Map, start: State, steps: int, **options: Any) -> Solution:
        return implicit(f, start, steps, solver=SOLVERS[self.solver], **{"tolerance": self.tolerance, **options})


# By the name of the option `gradient`.
GRADIENTS: dict[str, type[Gradient]] = {
    "full": FullGradient,
    "truncated": TruncatedGradient,
    "one_step": OneStepGradient,
    "implicit": ImplicitGradient,
}


def truncated(f: Map, start: State, steps: int, *, last: int, **options: Any) -> Solution:
    """The gradient of the last steps alone; the earlier ones run without a graph. `last ≥ steps`: that of all
    steps, as `FullGradient`.

    With a tolerance, the last steps of each example are meant. How many there will be is known at the end alone, so
    they are taken a second time, with a graph.

    Args:
        f, start, steps: as in `iterate`.
        last: how many steps get a graph, n.
        **options: the others of `iterate`.

    Raises:
        ValueError: `last` is below 1.
    """
    if last < 1:
        raise ValueError(f"`last` must be at least 1, got {last!r}.")
    if last < steps and torch.is_grad_enabled() and options.get("tolerance") is not None:
        return _truncated_where_they_stop(f, start, steps, last, **options)
    return iterate(f, start, steps, graph_steps=last if last < steps else None, **options)


def _truncated_where_they_stop(f: Map, start: State, steps: int, last: int, **options: Any) -> Solution:
    with torch.no_grad():
        solution = iterate(f, start, steps, **{**options, "keep_states": True})
    skipped = (solution.iterations - last).clamp_min(0)
    state, states = start, (start, *solution.states)
    for k in range(1, int(skipped.max()) + 1):
        state = select_where(skipped == k, states[k], state)
    for k in range(min(last, int(solution.iterations.max()))):
        state = select_where(k < solution.iterations - skipped, f(state), state)
    kept = (*solution.states[:-1], state) if options.get("keep_states") else ()
    return replace(solution, state=state, states=kept)


def implicit(
    f: Map,
    start: State,
    steps: int,
    *,
    tolerance: float,
    solver: Solver = iterate,
    residual: Residual = relative_residual,
    keep_states: bool = False,
) -> Solution:
    """The gradient of the fixed point itself, whatever steps led there (implicit differentiation, which is recurrent
    back-propagation): at `h* = f(h*)` with Jacobian J, `dL/dθ = gᵀ ∂f/∂θ` where `g = v + Jᵀ g` and `v = ∂L/∂h*`.

    The fixed point is found without a graph, `f` is applied once more with one, and the backward pass solves for `g` by
    plain iteration, in at most twice as many steps. Memory does not grow with their number.

    Where an example has not converged after `steps`, this gradient would be wrong. A `ConvergenceWarning` is issued,
    and that example gets the full gradient of the iterations, which run again, from `start` with its graph. Where the
    adjoint does not converge, the examples concerned get the gradient of the one step with a graph (`g = v`), and a
    warning says that. An example whose state is not finite stops there, with a warning, too. None of this changes
    another example.

    Args:
        f, start, steps, residual, keep_states: as in `iterate`.
        tolerance: the residual within which a fixed point, and `g`, count as found.
        solver: `iterate` or `anderson`.

    Raises:
        ValueError: there is no tolerance.

    Source: Almeida 1987; Pineda 1987; Bai, Kolter and Koltun 2019, arXiv 1909.01377.
    """
    if tolerance is None:
        raise ValueError("`tolerance` is needed for an implicit gradient, such as 1e-6: it says what is converged.")
    options: Keywords = dict(tolerance=tolerance, residual=residual, keep_states=keep_states)
    with torch.no_grad():
        solution = solver(f, start, steps, **options)
    if not torch.is_grad_enabled():
        return solution
    diverged = solution.diverged()
    unrolled = ~solution.converged(tolerance) & ~diverged
    _warn_of_diverged(solution, diverged)
    state = solution.state
    if not bool(unrolled.all()):
        state = with_implicit_gradient(f, state, 2 * steps, tolerance=tolerance, residual=residual)
    if bool(unrolled.any()):
        _warn(
            f"The fixed point was not reached within {steps} iterations: the last one moved the state by up to "
            f"{_format_residual(solution.residuals[unrolled, -1])}, `tolerance` is {tolerance:g}. The gradient of the "
            "iterations themselves (`gradient='full'`) is used instead. Allow more iterations, ask for less, or make "
            f"the map contract (smaller feedback weights, weight decay).{_half_precision_hint(start)}"
        )
        state = select_where(unrolled, iterate(f, start, steps, **options).state, state)
    return replace(solution, state=state, states=(*solution.states[:-1], state) if keep_states else ())


def _warn_of_diverged(solution: Solution, diverged: torch.Tensor) -> None:
    if bool(diverged.any()):
        _warn(
            f"The fixed point was not reached: the state of {int(diverged.sum())} of {len(diverged)} examples is not "
            f"finite after {int(solution.iterations[diverged].min())} iterations, where they stop. Check their inputs, "
            "lower the learning rate, or make the map contract (smaller feedback weights, weight decay)."
        )


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
    at = tuple(tensor.detach().requires_grad_() for tensor in tensors_of(state))
    image, hint = tensors_of(f(pack_like(state, at))), _half_precision_hint(state)  # the backward pass has no autocast

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
        return _solve_adjoint(transposed, v, steps, tolerance, residual, hint)

    return pack_like(state, cast(tuple, _Adjoint.apply(solve, *image)))


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
    transposed: Map, v: tuple[torch.Tensor, ...], steps: int, tolerance: float, residual: Residual, hint: str
) -> tuple[torch.Tensor, ...]:
    """`g = v + Jᵀ g`, by plain iteration from `v`; `v` where it does not converge, which a warning with `hint` says."""

    def adjoint(g: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(a + b for a, b in zip(v, transposed(g), strict=True))

    solution = iterate(adjoint, v, steps, tolerance=tolerance, residual=residual)
    converged = solution.converged(tolerance)
    if not bool(converged.all()):
        _warn(
            f"The adjoint equation of the fixed point was not solved within {steps} steps (residual up to "
            f"{_format_residual(solution.residuals[:, -1])}, `tolerance` {tolerance:g}): the gradient of "
            f"{int((~converged).sum())} of {len(converged)} examples is that of one iteration, and inexact. Allow more "
            f"iterations, or use `gradient='full'`.{hint}"
        )
    return tensors_of(select_where(converged, solution.state, v))


class SameRandomNumbers:
    """A map with the same random numbers (dropout masks) in every call; other random numbers are as after the first
    call.

    Args:
        f: the map.
        device: where it draws them, besides the CPU.
    """

    def __init__(self, f: Map, device: torch.device) -> None:
        self.f, self.device = f, device
        self.first: list[torch.Tensor] | None = None

    def __call__(self, state: State) -> State:
        if self.first is None:
            self.first = random_state(self.device)
            return self.f(state)
        with keep_random_state(self.device):
            set_random_state(self.device, self.first)
            return self.f(state)


def _format_residual(residuals: torch.Tensor) -> str:
    """The worst residual up to a power of ten: the warnings of a long run repeat each other and are shown once."""
    worst = float(residuals.nan_to_num(torch.inf, torch.inf).max())
    return f"{10.0 ** math.ceil(math.log10(worst)):.0e}" if 0 < worst < math.inf else f"{worst:g}"


def _half_precision_hint(state: State) -> str:
    """What keeps states from settling in half precision, as the last sentence of a warning."""
    if all(relative_spacing(one) <= torch.finfo(torch.float32).eps for one in tensors_of(state)):
        return ""
    return " In half precision rounding alone moves states by about 1e-3: use float32, or a larger tolerance."


def _warn(message: str) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=4)
