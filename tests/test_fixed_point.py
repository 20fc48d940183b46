"""Fixed points and their gradients, beside closed forms, unrolled autograd and torchdeq."""

import warnings

import pytest
import torch
from closeness import assert_exact

from hf_feedback.gradients import ConvergenceWarning, implicit, truncated, with_implicit_gradient
from hf_feedback.solvers import anderson, iterate, relative_residual

SOLVERS = {"iterate": iterate, "anderson": anderson}
B, D = 3, 5


def contraction(factor=0.5, seed=0):
    """A nonlinear map with its parameters, one row an example, and the norm of its matrix."""
    torch.manual_seed(seed)
    matrix = factor * torch.nn.init.orthogonal_(torch.empty(D, D, dtype=torch.float64))
    matrix.requires_grad_()
    shift = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    return (lambda h: torch.tanh(h @ matrix.T + shift)), (matrix, shift)


def pair_of(f):
    """The same map on a tuple of tensors of different sizes."""

    def on_pair(h):
        new = f(torch.cat([h[0], h[1].flatten(1)], 1))
        return new[:, :1], new[:, 1:].reshape(B, 2, 2)

    return on_pair


def gradients(state, parameters, coefficients):
    tensors = (state,) if isinstance(state, torch.Tensor) else state
    flat = torch.cat([tensor.flatten(1) for tensor in tensors], 1)
    return torch.autograd.grad((flat * coefficients).sum(), parameters, retain_graph=True)


def relative_error(found, expected):
    found, expected = (torch.cat([tensor.flatten() for tensor in side]) for side in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


START = torch.zeros(B, D, dtype=torch.float64)
START_OF_PAIR = (START[:, :1], START[:, 1:].reshape(B, 2, 2))
COEFFICIENTS = torch.linspace(-1, 2, B * D, dtype=torch.float64).view(B, D)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_fixed_point_is_found(solver):
    f, _ = contraction()
    found = SOLVERS[solver](f, START, 100, tolerance=1e-12)
    assert found.converged(1e-12).all()
    torch.testing.assert_close(f(found.state), found.state, atol=1e-11, rtol=0)
    assert found.residuals.shape == (B, int(found.iterations.max()))
    of_pair = SOLVERS[solver](pair_of(f), START_OF_PAIR, 100, tolerance=1e-12)
    torch.testing.assert_close(of_pair.state[1].flatten(1), found.state[:, 1:])
    assert torch.equal(of_pair.iterations, found.iterations)


def test_anderson_takes_fewer_steps_and_solves_linear_maps_exactly():
    f, _ = contraction(0.95)
    plain, fast = (solve(f, START, 500, tolerance=1e-10) for solve in (iterate, anderson))
    assert (fast.iterations < plain.iterations).all()
    torch.testing.assert_close(fast.state, plain.state, atol=1e-8, rtol=0)
    matrix = 3 * torch.eye(D, dtype=torch.float64) + torch.diag(torch.ones(D - 1, dtype=torch.float64), 1)
    found = anderson(lambda h: h @ matrix + 1, START, 30, tolerance=1e-9, memory=D + 2)  # plain iteration diverges
    expected = torch.linalg.solve((torch.eye(D, dtype=torch.float64) - matrix).T, torch.ones(D, dtype=torch.float64))
    torch.testing.assert_close(found.state, expected.expand(B, D), atol=1e-6, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_example_stops_by_itself(solver):
    rates = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)

    def only(rows):
        return lambda h: torch.tanh(rates[rows] * h + 1)

    together = SOLVERS[solver](only(slice(None)), START, 200, tolerance=1e-6)
    assert together.iterations[0] < together.iterations[2]
    for i in range(B):
        alone = SOLVERS[solver](only(slice(i, i + 1)), START[:1], 200, tolerance=1e-6)
        assert alone.iterations.item() == together.iterations[i]
        assert_exact(alone.state[0], together.state[i])
        torch.testing.assert_close(alone.residuals[0], together.residuals[i, : alone.iterations.item()])
        assert (together.residuals[i, together.iterations[i] :] == 0).all()


def test_states_and_residuals():
    f, _ = contraction()
    found = iterate(f, START, 4, keep_states=True)
    assert len(found.states) == 4
    assert found.iterations.tolist() == [4] * B
    for k, (old, new) in enumerate(zip((START, *found.states), found.states, strict=False)):
        torch.testing.assert_close(new, f(old))
        torch.testing.assert_close(found.residuals[:, k].double(), (new - old).norm(dim=1) / new.norm(dim=1))
    assert iterate(f, START, 4, residual=None).residuals.shape == (B, 0)
    assert relative_residual(START, START).tolist() == [0.0] * B


@pytest.mark.parametrize("tolerance", [None, 1e-3])
@pytest.mark.parametrize("last", [1, 3, 7, 50])
def test_truncated(last, tolerance):
    f, parameters = contraction()
    steps = 7 if tolerance is None else 50
    found = truncated(f, START, steps, last=last, tolerance=tolerance, keep_states=True)
    whole = iterate(f, START, steps, tolerance=tolerance, keep_states=True)
    assert torch.equal(found.state, whole.state)  # the same calls
    torch.testing.assert_close(found.residuals, whole.residuals)
    assert torch.equal(found.iterations, whole.iterations)
    assert len(found.states) == len(whole.states)
    # by hand: the last steps of every example from where it stood before them
    by_hand = []
    for i in range(B):
        taken = int(whole.iterations[i])
        skipped = max(0, taken - last)
        state = START if skipped == 0 else whole.states[skipped - 1].detach()
        for _ in range(taken - skipped):
            state = f(state)
        by_hand.append(state[i])
    expected = gradients(torch.stack(by_hand), parameters, COEFFICIENTS)
    assert relative_error(gradients(found.state, parameters, COEFFICIENTS), expected) < 1e-12
    if last == 50:
        whole_gradient = gradients(whole.state, parameters, COEFFICIENTS)
        assert relative_error(gradients(found.state, parameters, COEFFICIENTS), whole_gradient) == 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("paired", [False, True])
def test_implicit_equals_a_long_unroll(solver, paired):
    f, parameters = contraction(0.8)
    g, start = (pair_of(f), START_OF_PAIR) if paired else (f, START)
    found = implicit(g, start, 200, tolerance=1e-10, solver=SOLVERS[solver])
    expected = gradients(iterate(g, start, 300).state, parameters, COEFFICIENTS)
    assert relative_error(gradients(found.state, parameters, COEFFICIENTS), expected) < 1e-8


def test_implicit_equals_the_closed_form():
    f, (matrix, shift) = contraction(0.8)
    found = implicit(f, START, 300, tolerance=1e-14)
    slope = 1 - found.state.detach() ** 2
    for i in range(B):  # g = (I − Jᵀ)⁻¹ v, J = diag(σ') A
        jacobian = slope[i][:, None] * matrix.detach()
        g = torch.linalg.solve(torch.eye(D, dtype=torch.float64) - jacobian.T, COEFFICIENTS[i])
        (by_autograd,) = torch.autograd.grad((found.state[i] * COEFFICIENTS[i]).sum(), shift, retain_graph=True)
        torch.testing.assert_close(by_autograd[i], slope[i] * g, atol=1e-11, rtol=0)


def test_implicit_equals_torchdeq():
    from torchdeq import get_deq

    f, parameters = contraction(0.8)
    found = implicit(f, START, 200, tolerance=1e-10)
    deq = get_deq(ift=True, f_max_iter=300, b_max_iter=300, f_tol=1e-11, b_tol=1e-11)
    theirs, _ = deq(f, START.clone())
    expected = gradients(theirs[-1], parameters, COEFFICIENTS)
    assert relative_error(gradients(found.state, parameters, COEFFICIENTS), expected) <= 1e-5


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15])
def test_the_adjoint_does_not_depend_on_the_size_of_the_loss(size):
    f, parameters = contraction(0.8)
    found = implicit(f, START, 200, tolerance=1e-10)
    plain = torch.autograd.grad((found.state * COEFFICIENTS).sum(), parameters, retain_graph=True)
    scaled = torch.autograd.grad(size * (found.state * COEFFICIENTS).sum(), parameters)
    assert relative_error([g / size for g in scaled], plain) < 1e-12


def test_no_fixed_point_warns_and_falls_back_to_the_full_gradient():
    f, parameters = contraction(0.99)
    with pytest.warns(ConvergenceWarning, match=r"not reached within 5 iterations.*`gradient='full'`"):
        found = implicit(f, START, 5, tolerance=1e-6)
    expected = gradients(iterate(f, START, 5).state, parameters, COEFFICIENTS)
    assert relative_error(gradients(found.state, parameters, COEFFICIENTS), expected) < 1e-12


def test_a_state_that_is_no_number_warns_too():
    with pytest.warns(ConvergenceWarning, match="not reached"):
        implicit(lambda h: h * torch.inf - torch.inf, torch.ones(1, 1, requires_grad=True), 5, tolerance=1e-3)


BAD = {"no number": torch.nan, "infinite": torch.inf, "growing": 3.0}


def with_a_bad_row(value):
    """A map whose second example runs away (at once, or by a factor in each step), and its parameters."""
    f, (matrix, shift) = contraction(0.8)
    factor = torch.ones(B, 1, dtype=torch.float64)
    factor[1] = value
    return (lambda h: factor * torch.tanh(h @ matrix.T + shift) if value != 3 else f(h) + (factor - 1) * h), shift


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.filterwarnings("ignore::hf_feedback.gradients.ConvergenceWarning")
def test_a_row_that_runs_away_moves_no_other(solver, bad):
    f, shift = with_a_bad_row(BAD[bad])
    g, (_, same_shift) = contraction(0.8)
    options = dict(tolerance=1e-10, solver=SOLVERS[solver], keep_states=True)
    found, expected = implicit(f, START, 200, **options), implicit(g, START, 200, **options)
    good = torch.tensor([0, 2])
    assert found.converged(1e-10)[good].all()
    assert found.diverged()[1] == (bad != "growing")
    assert_exact(found.state[good], expected.state[good])
    assert torch.equal(found.iterations[good], expected.iterations[good])
    (gradient,) = torch.autograd.grad((found.state * COEFFICIENTS).sum(), shift)
    (expected_gradient,) = torch.autograd.grad((expected.state * COEFFICIENTS).sum(), same_shift)
    torch.testing.assert_close(gradient[good], expected_gradient[good], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_state_that_is_not_finite_stops(solver):
    calls = []

    def f(h):
        calls.append(torch.is_grad_enabled())
        return h * torch.inf - torch.inf

    start = torch.ones(2, 1, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match="2 of 2 examples is not finite after 1 iterations.*learning rate"):
        found = implicit(f, start, 50, tolerance=1e-3, solver=SOLVERS[solver])
    assert calls == [False, True]  # one to see it, one with a graph
    assert found.iterations.tolist() == [1, 1]
    assert found.residuals.shape == (2, 1)


def test_a_row_that_is_not_finite_stops_alone():
    f, _ = with_a_bad_row(torch.nan)
    found = iterate(f, START, 200, tolerance=1e-10)
    assert found.iterations[1] == 1
    assert found.residuals[1, 0].isnan()
    assert (found.residuals[1, 1:] == 0).all()
    assert iterate(f, START, 5).iterations.tolist() == [5, 5, 5]  # nobody asked it to stop


def test_an_adjoint_without_solution_warns_and_falls_back_to_one_step():
    # Anderson finds the fixed point 1 of a map that expands there
    matrix = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    start = torch.full((1, 1), 0.1, dtype=torch.float64)

    def f(h):
        return h @ matrix - 1

    found = implicit(f, start, 50, tolerance=1e-10, solver=anderson)
    torch.testing.assert_close(found.state, torch.ones(1, 1, dtype=torch.float64))
    with pytest.warns(ConvergenceWarning, match="1 of 1 examples is that of one iteration, and inexact"):
        (gradient,) = torch.autograd.grad(found.state.sum(), matrix)
    torch.testing.assert_close(gradient, torch.ones(1, 1, dtype=torch.float64))  # ∂f/∂matrix at h = 1


def test_without_gradients_nothing_is_said_and_no_graph_is_made():
    f, _ = contraction(0.99)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not implicit(f, START, 5, tolerance=1e-6).state.requires_grad


def test_the_implicit_gradient_has_no_second_derivative():
    f, (_, shift) = contraction()
    found = implicit(f, START, 100, tolerance=1e-10)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(found.state.sum(), shift, create_graph=True)


REFUSED = {
    "no steps": (lambda f: iterate(f, START, 0), "`steps` must be at least 1, got 0"),
    "nothing to measure": (lambda f: iterate(f, START, 2, tolerance=0.1, residual=None), "`residual=None`"),
    "no last steps": (lambda f: truncated(f, START, 3, last=0), "`last` must be at least 1, got 0"),
    "no tolerance": (lambda f: implicit(f, START, 3, tolerance=None), "`tolerance` is needed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        call(contraction()[0])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_the_warning_says_what_half_precision_keeps_from_settling(half):
    """States that rounding alone moves will not settle, whatever else the warning advises."""
    matrix = torch.eye(4, dtype=torch.bfloat16 if half else torch.float32) * 0.9
    start = torch.ones(1, 4, dtype=matrix.dtype, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match=r"by up to 1e[-+]0\d, ") as warned:
        implicit(lambda state: state @ matrix + start, start.detach(), 3, tolerance=1e-6)
    assert ("In half precision rounding alone" in str(warned[0].message)) is half


def test_the_warning_of_the_adjoint_knows_the_precision_of_the_forward_pass():
    """The backward pass runs outside of autocast."""
    matrix = torch.eye(4) * 0.99
    start = torch.ones(1, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_implicit_gradient(lambda state: state @ matrix + start, start, 2, tolerance=1e-6)
    with pytest.warns(ConvergenceWarning, match="inexact.* In half precision rounding alone"):
        found.sum().backward()
