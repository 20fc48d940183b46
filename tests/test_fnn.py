"""The two networks from scratch, beside step-by-step backward passes that are written by hand, without autograd."""

import json
import sys
import warnings

import pytest
import torch
from builders import LABELS, NETWORKS, fnn_model, run_without_package, tiny_tokenizer
from closeness import PROBABILITY, assert_exact
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

from hf_feedback import FNNConfig, FNNForSequenceClassification, FNNModel
from hf_feedback.gradients import ConvergenceWarning
from hf_feedback.modeling_outputs import FeedbackModelOutput, FeedbackTaskOutput

B, T, D, L = 2, 5, 4, 3
# name → σ and σ' of z
ACTIVATIONS = {
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
    "relu": (torch.relu, lambda z: (z > 0).to(z)),
    "swish": (
        lambda z: z * torch.sigmoid(z),
        lambda z: torch.sigmoid(z) + z * torch.sigmoid(z) * (1 - torch.sigmoid(z)),
    ),
}
CONVERGED = dict(tolerance=1e-13, num_iterations=300)


def inputs(seed=1):
    torch.manual_seed(seed)
    return torch.randn(B, T, D, dtype=torch.float64)


def loss_weights(model):
    """∂L/∂h of a loss that is linear in the states of the last sweep: `(B, T, d)`, or `(B, 1, d)`."""
    torch.manual_seed(2)
    return torch.randn(B, 1 if model.config.fnn_type == "layered" else T, D, dtype=torch.float64)


def autograd_of(model, x, c, **forward):
    model.zero_grad()
    (model(inputs_embeds=x, **forward).last_hidden_state * c).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_error(found, expected):
    found, expected = (torch.cat([side[name].flatten() for name in sorted(expected)]) for side in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


# The backward passes by hand


def temporal_by_hand(model, x, c, num_iterations, parallel, path_through_V=1.0):
    """BPTT through the sweeps of `h_t = f(U x_t + W h_{t-1} + V h_{t+1} + b)`: h and z by (sweep, t) with h = 0 at the
    ends and before the first sweep; `dL/dh` is the direct term, the path through W from where `h_t` was the one before
    and the path through V from where it was the one after."""
    layer = model.layers[0]
    U, b, W, V = (p.detach() for p in (layer.U.weight, layer.U.bias, layer.W.weight, layer.V.weight))
    f, slope = ACTIVATIONS[model.config.activation]
    zero = torch.zeros(B, D, dtype=torch.float64)
    h = {(k, t): zero for k in range(num_iterations + 1) for t in range(T + 2)}
    z = {}
    for k in range(1, num_iterations + 1):
        for t in range(1, T + 1):
            left = h[k - 1 if parallel else k, t - 1]
            z[k, t] = x[:, t - 1] @ U.T + left @ W.T + h[k - 1, t + 1] @ V.T + b
            h[k, t] = f(z[k, t])
    dz = {(k, t): zero for k in range(num_iterations + 2) for t in range(T + 2)}
    grads = dict.fromkeys("UWVb", 0.0)
    for k in range(num_iterations, 0, -1):
        for t in range(T, 0, -1):
            dh = c[:, t - 1] if k == num_iterations else zero
            dh = dh + dz[k + 1 if parallel else k, t + 1] @ W + path_through_V * dz[k + 1, t - 1] @ V
            dz[k, t] = dh * slope(z[k, t])
            grads["U"] = grads["U"] + dz[k, t].T @ x[:, t - 1]
            grads["W"] = grads["W"] + dz[k, t].T @ h[k - 1 if parallel else k, t - 1]
            grads["V"] = grads["V"] + dz[k, t].T @ h[k - 1, t + 1]
            grads["b"] = grads["b"] + dz[k, t].sum(0)
    names = {"U": "layers.0.U.weight", "b": "layers.0.U.bias", "W": "layers.0.W.weight", "V": "layers.0.V.weight"}
    return {names[letter]: grad for letter, grad in grads.items()}


def layered_weights(model):
    W, b, U = {}, {}, {}
    for i, layer in enumerate(model.layers):
        W[i + 1], b[i + 1] = layer.W.weight.detach(), layer.W.bias.detach()
        if layer.U is not None:
            U[i + 1] = layer.U.weight.detach()
    return W, b, U


def named(W, b, U):
    return {
        **{f"layers.{i - 1}.W.weight": grad for i, grad in W.items()},
        **{f"layers.{i - 1}.W.bias": grad for i, grad in b.items()},
        **{f"layers.{i - 1}.U.weight": grad for i, grad in U.items()},
    }


def layered_by_hand(model, x, c, num_iterations):
    """Unrolled: layer l of sweep k reads `h^(l-1)` of sweep k and `h^(l+1)` of sweep k − 1."""
    W, b, U = layered_weights(model)
    f, slope = ACTIVATIONS[model.config.activation]
    zero = torch.zeros(B, D, dtype=torch.float64)
    h = {(k, i): zero for k in range(num_iterations + 1) for i in range(1, L + 1)}
    z = {}
    for k in range(1, num_iterations + 1):
        h[k, 0] = x.mean(1)
        for i in range(1, L + 1):
            z[k, i] = h[k, i - 1] @ W[i].T + b[i]
            if i < L:
                z[k, i] = z[k, i] + h[k - 1, i + 1] @ U[i].T
            h[k, i] = f(z[k, i])
    delta = {(k, i): zero for k in range(num_iterations + 2) for i in range(L + 2)}
    dW, db, dU = (dict.fromkeys(weights, 0.0) for weights in (W, b, U))
    for k in range(num_iterations, 0, -1):
        for i in range(L, 0, -1):
            dh = c[:, 0] if (k, i) == (num_iterations, L) else zero
            if i < L:
                dh = dh + delta[k, i + 1] @ W[i + 1]
            if i > 1:
                dh = dh + delta[k + 1, i - 1] @ U[i - 1]
            delta[k, i] = dh * slope(z[k, i])
            dW[i] = dW[i] + delta[k, i].T @ h[k, i - 1]
            db[i] = db[i] + delta[k, i].sum(0)
            if i < L:
                dU[i] = dU[i] + delta[k, i].T @ h[k - 1, i + 1]
    return named(dW, db, dU)


def layered_deltas(model, x, c, top_path=True):
    """The δ equations at the fixed point, solved as one linear system, and the gradients that follow from them.

    Args:
        top_path: whether δ^(L) has the path from δ^(L−1) through `U^(L-1)`, which the article leaves out.
    """
    W, b, U = layered_weights(model)
    f, slope = ACTIVATIONS[model.config.activation]
    h = {0: x.mean(1), **{i: torch.zeros(B, D, dtype=torch.float64) for i in range(1, L + 1)}}
    for _ in range(500):
        z = {i: h[i - 1] @ W[i].T + b[i] + (h[i + 1] @ U[i].T if i < L else 0) for i in range(1, L + 1)}
        h = {0: h[0], **{i: f(z[i]) for i in z}}
    dW, db, dU = ({i: torch.zeros_like(w) for i, w in weights.items()} for weights in (W, b, U))
    for row in range(B):
        system = torch.eye(L * D, dtype=torch.float64)
        right = torch.zeros(L * D, dtype=torch.float64)
        blocks = {i: slice((i - 1) * D, i * D) for i in range(1, L + 1)}
        for i in range(1, L + 1):
            s = slope(z[i][row])
            if i == L:
                right[blocks[i]] = s * c[row, 0]
            else:
                system[blocks[i], blocks[i + 1]] = -s[:, None] * W[i + 1].T
            if i > 1 and (i < L or top_path):
                system[blocks[i], blocks[i - 1]] = -s[:, None] * U[i - 1].T
        delta = torch.linalg.solve(system, right)
        for i in range(1, L + 1):
            d = delta[blocks[i]]
            dW[i] += torch.outer(d, h[i - 1][row])
            db[i] += d
            if i < L:
                dU[i] += torch.outer(d, h[i + 1][row])
    return named(dW, db, dU)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_iterations", [1, 2, 5])
@pytest.mark.parametrize("kind", NETWORKS)
def test_backward_by_hand(kind, num_iterations, activation):
    model = fnn_model(kind, activation=activation)
    x, c = inputs(), loss_weights(model)
    if kind == "layered":
        expected = layered_by_hand(model, x, c, num_iterations)
    else:
        expected = temporal_by_hand(model, x, c, num_iterations, parallel="parallel" in kind)
    found = autograd_of(model, x, c, num_iterations=num_iterations)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("activation", ["tanh", "swish"])
def test_deltas_of_the_fixed_point_are_the_implicit_gradient(activation):
    x = inputs()
    model = fnn_model("layered", gradient="implicit", activation=activation, **CONVERGED)
    c = loss_weights(model)
    deltas = layered_deltas(model, x, c)
    assert relative_error(autograd_of(model, x, c), deltas) < 1e-10
    unrolled = fnn_model("layered", num_iterations=300, activation=activation)
    assert relative_error(autograd_of(unrolled, x, c), deltas) < 1e-10
    # without the path from layer L − 1 back into δ^(L) the gradient is another
    assert relative_error(layered_deltas(model, x, c, top_path=False), deltas) > 1e-3


def test_back_propagation_needs_the_path_through_V():
    model = fnn_model("temporal")
    x, c = inputs(), loss_weights(model)
    found = autograd_of(model, x, c)
    assert relative_error(found, temporal_by_hand(model, x, c, 4, parallel=False)) < 1e-12
    assert relative_error(found, temporal_by_hand(model, x, c, 4, parallel=False, path_through_V=0.0)) > 1e-2


@pytest.mark.parametrize("options", [dict(num_iterations=3), dict(gradient="implicit", **CONVERGED)], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradcheck(kind, options):
    model = fnn_model(kind, **options)
    parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if "embeddings" not in n}
    mask = torch.tensor([[1] * T, [1] * 3 + [0] * (T - 3)])

    def output(x, *values):
        given = dict(zip(parameters, values, strict=True))
        return functional_call(model, given, kwargs=dict(inputs_embeds=x, attention_mask=mask)).last_hidden_state

    assert torch.autograd.gradcheck(output, (inputs().requires_grad_(), *parameters.values()))


# Sweeps and their gradients


def test_sequential_and_parallel_sweeps_have_the_same_fixed_point():
    x = inputs()
    found = {
        sweep: fnn_model("temporal", sweep=sweep, **CONVERGED)(inputs_embeds=x, output_iterations=True)
        for sweep in ("sequential", "parallel")
    }
    states = [output.last_hidden_state for output in found.values()]
    torch.testing.assert_close(*states, atol=1e-12, rtol=0)
    assert (found["sequential"].iterations <= found["parallel"].iterations).all()
    two = [fnn_model("temporal", sweep=sweep, num_iterations=2)(inputs_embeds=x) for sweep in found]
    assert not torch.allclose(two[0].last_hidden_state, two[1].last_hidden_state)


@pytest.mark.parametrize("kind", NETWORKS)
def test_one_iteration_reads_no_feedback(kind):
    x, model = inputs(), fnn_model(kind, num_iterations=1)
    before = model(inputs_embeds=x).last_hidden_state
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if model.part_of(name) == "feedback":
                parameter.fill_(7.0)
    assert torch.equal(model(inputs_embeds=x).last_hidden_state, before)
    assert not torch.equal(model(inputs_embeds=x, num_iterations=2).last_hidden_state, before)


@pytest.mark.parametrize("kind", NETWORKS)
def test_truncated(kind):
    x, c = inputs(), loss_weights(fnn_model(kind))
    gradients = {
        n: autograd_of(fnn_model(kind, gradient="truncated", gradient_iterations=n), x, c) for n in (1, 3, 4, 9)
    }
    whole = autograd_of(fnn_model(kind), x, c)
    assert fnn_model(kind).config.num_iterations == 4
    for n in (4, 9):
        assert relative_error(gradients[n], whole) == 0  # the same calls
    assert relative_error(gradients[3], whole) < relative_error(gradients[1], whole)


@pytest.mark.parametrize("solver", ["iteration", "anderson"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_implicit_equals_unrolled(kind, solver):
    x, c = inputs(), loss_weights(fnn_model(kind))
    for dtype, tolerance, error in ((torch.float64, 1e-10, 1e-8), (torch.float32, 1e-6, 1e-5)):
        model = fnn_model(kind, dtype=dtype, gradient="implicit", solver=solver, tolerance=tolerance, num_iterations=80)
        unrolled = fnn_model(kind, dtype=dtype, num_iterations=80)
        x, c = x.to(dtype), c.to(dtype)
        assert relative_error(autograd_of(model, x, c), autograd_of(unrolled, x, c)) <= error


@pytest.mark.parametrize("kind", NETWORKS)
def test_implicit_equals_torchdeq(kind):
    from torchdeq import get_deq

    model = fnn_model(kind, gradient="implicit", **CONVERGED)
    x, c = inputs(), loss_weights(model)
    found = autograd_of(model, x, c)
    f, start, _ = model.sweep_map(x, torch.ones(B, T, 1, dtype=torch.bool))
    deq = get_deq(ift=True, f_max_iter=300, b_max_iter=300, f_tol=1e-11, b_tol=1e-11)
    if kind == "layered":  # torchdeq hands lists over as several arguments
        states, _ = deq(lambda *h: f(h), [tensor.clone() for tensor in start])
    else:
        states, _ = deq(f, start)
    model.zero_grad()
    ((states[-1][-1] if kind == "layered" else states[-1]) * c).sum().backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert relative_error(found, theirs) <= 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
def test_where_sweeps_do_not_converge_it_is_said_and_the_full_gradient_is_used(kind):
    x, c = inputs(), loss_weights(fnn_model(kind))
    model = fnn_model(kind, gradient="implicit", tolerance=1e-12, num_iterations=3)
    with pytest.warns(ConvergenceWarning, match="not reached within 3 iterations"):
        found = autograd_of(model, x, c)
    assert relative_error(found, autograd_of(fnn_model(kind, num_iterations=3), x, c)) < 1e-12
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(inputs_embeds=x)


@pytest.mark.parametrize("kind", NETWORKS)
def test_iterations_on_request(kind):
    model = fnn_model(kind, head=True)
    output = model(inputs_embeds=inputs(), output_iterations=True, output_hidden_states=True)
    assert isinstance(output, FeedbackTaskOutput)
    assert output.residuals.shape == (B, 3)
    assert output.iterations.tolist() == [4, 4]
    for k, logits in enumerate(output.iteration_logits):
        assert_exact(logits, model(inputs_embeds=inputs(), num_iterations=k + 1).logits)
    assert torch.equal(output.iteration_logits[-1], output.logits)
    assert len(output.hidden_states) == (L + 1 if kind == "layered" else 2)
    plain = model(inputs_embeds=inputs())
    assert (plain.iteration_logits, plain.residuals, plain.iterations, plain.hidden_states) == (None,) * 4
    base = model.fnn(inputs_embeds=inputs(), output_iterations=True, output_hidden_states=True)
    assert isinstance(base, FeedbackModelOutput)
    torch.testing.assert_close(base.residuals, output.residuals)
    assert torch.equal(base.hidden_states[-1], base.last_hidden_state)


@pytest.mark.parametrize("kind", NETWORKS)
def test_sweeps_end_at_convergence_and_each_text_by_itself(kind):
    model = fnn_model(kind, head=True, tolerance=1e-4, num_iterations=50)
    x = inputs() * torch.tensor([0.01, 3.0]).view(2, 1, 1)
    output = model(inputs_embeds=x, output_iterations=True)
    assert output.iterations.max() == output.residuals.shape[1] + 1 == len(output.iteration_logits) < 50
    for i in range(B):
        alone = model(inputs_embeds=x[i : i + 1], output_iterations=True)
        assert_exact(alone.logits[0], output.logits[i])
        assert alone.iterations.item() == output.iterations[i]
        assert alone.residuals[0, -1] <= 1e-4


# Padding

POOLED = [
    (kind, pooling)
    for kind in NETWORKS
    for pooling in ("mean", "cls", "last")
    if kind != "layered" or pooling == "mean"
]


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("options", [dict(), dict(gradient="implicit", **CONVERGED)], ids=["K", "converged"])
@pytest.mark.parametrize(("kind", "pooling"), POOLED)
def test_padding_changes_nothing(kind, pooling, options, side):
    model = fnn_model(kind, head=True, pooling=pooling, **options)
    text, (left, right) = torch.tensor([[5, 6, 7, 8]]), {"left": (3, 0), "right": (0, 3), "both": (2, 1)}[side]
    padded = torch.nn.functional.pad(text, (left, right), value=9)
    mask = torch.nn.functional.pad(torch.ones_like(text), (left, right))
    mask = torch.cat([mask, torch.ones_like(mask)])
    batch = dict(input_ids=torch.cat([padded, torch.arange(7)[None]]), attention_mask=mask)
    labels = torch.tensor([1])
    alone = model(text, labels=labels)
    alone.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    together = model(**batch)
    assert_exact(together.logits[:1], alone.logits)
    torch.nn.functional.cross_entropy(together.logits[:1], labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-11, rtol=0, msg=name)


@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_of_the_padding_is_read(kind):
    model, x = fnn_model(kind, head=True), inputs()
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]])
    clean = model(inputs_embeds=x, attention_mask=mask)
    dirty = torch.where(mask.bool().unsqueeze(-1), x, torch.nan).requires_grad_()
    found = model(inputs_embeds=dirty, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(found.logits, clean.logits)
    found.logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (dirty.grad[mask == 0] == 0).all()
    if kind != "layered":
        assert (found.hidden_states[-1][mask == 0] == 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("length", [1, 2, 40])
def test_any_length(kind, length):
    model = fnn_model(kind, head=True)
    assert model(torch.arange(2 * length).view(2, length) % 30).logits.shape == (2, 3)


# Losses, options, refusals

LOSSES = {
    "one label": (dict(), torch.tensor([0, 2]), lambda y, t: torch.nn.functional.cross_entropy(y, t)),
    "several labels": (
        dict(problem_type="multi_label_classification"),
        torch.tensor([[1, 0, 1], [0, 0, 1]]),
        lambda y, t: torch.nn.functional.binary_cross_entropy_with_logits(y, t.to(y)),
    ),
    "regression": (
        dict(id2label={0: "value"}, label2id={"value": 0}, problem_type="regression"),
        torch.tensor([0.5, 2.0]),
        lambda y, t: torch.nn.functional.mse_loss(y.squeeze(-1), t.to(y)),
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("case", LOSSES)
def test_losses(case, kind):
    options, labels, expected = LOSSES[case]
    output = fnn_model(kind, head=True, **options)(inputs_embeds=inputs(), labels=labels)
    assert_exact(output.loss, expected(output.logits, labels))


def test_values_are_not_rounded_in_half_precision():
    options, _, _ = LOSSES["regression"]
    model, values = fnn_model(head=True, **options).bfloat16(), torch.tensor([257.0, 2051.0])
    output = model(inputs_embeds=inputs().bfloat16(), labels=values)
    torch.testing.assert_close(output.loss, torch.nn.functional.mse_loss(output.logits.float().squeeze(-1), values))


REFUSED = {
    "unknown kind": (dict(fnn_type="spatial"), "`fnn_type` must be one of 'temporal', 'layered', got 'spatial'"),
    "unknown activation": (dict(activation="swisch"), "`activation` must be the name .* did you mean 'swish'"),
    "K of zero": (dict(num_iterations=0), "`num_iterations` must be an integer of at least 1, got 0"),
    "negative tolerance": (dict(tolerance=-1.0), "`tolerance` must be a finite number above 0, got -1.0"),
    "padding": (dict(pad_token_id=10**6), "`pad_token_id` must be at most"),
    "no spread": (dict(initializer_range=0.0), "`initializer_range` must be a finite number above 0"),
    "unknown sweep": (dict(sweep="diagonal"), "`sweep` must be one of"),
    "sweep of layers": (dict(fnn_type="layered", sweep="parallel"), "`sweep` is an option of the temporal network"),
    "pooling of layers": (dict(fnn_type="layered", pooling="last"), "`pooling` must be 'mean' for the layered network"),
    "temporal layers": (dict(num_layers=2), "`num_layers` must be 1 for the temporal network"),
    "no layers": (dict(fnn_type="layered", num_layers=0), "`num_layers` must be an integer of at least 1"),
    "unknown gradient": (dict(gradient="one"), "`gradient` must be one of"),
    "truncated at nothing": (dict(gradient="truncated"), "`gradient_iterations` must be an integer of at least 1"),
    "truncation unasked": (dict(gradient_iterations=2), "`gradient_iterations` is for gradient='truncated', got 2"),
    "implicit without tolerance": (dict(gradient="implicit"), "`tolerance` is needed with gradient='implicit'"),
    "solver without implicit": (dict(solver="anderson"), "`solver`='anderson' is for gradient='implicit'"),
    "dropout of one": (dict(embedding_dropout=1.0), "`embedding_dropout` must be a probability"),
    "halting": (dict(halting="patience"), "`halting` is not an option of FNNConfig but of FeedbackConfig"),
    "name with a prefix": (
        dict(feedback_activation="relu"),
        "that of FNNConfig is `activation`",
    ),
    "solver with a prefix": (dict(fixed_point_solver="anderson"), "that of FNNConfig is `solver`"),
    "iteration loss": (dict(iteration_loss="uniform"), "`iteration_loss` is not an option of FNNConfig"),
    "no labels": (dict(num_labels=0), "`num_labels` must be an integer of at least 1"),
    "misspelt": (dict(num_iteration=3), "`num_iteration` is not an option of FNNConfig; did you mean `num_iterations`"),
    "shortened": (dict(iterations=3), "did you mean `num_iterations`"),
    "misspelt size": (dict(hiden_size=3), "did you mean `hidden_size`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_options(case):
    options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        FNNConfig(**options)


def test_options_of_a_newer_version_are_let_through():
    assert FNNConfig(num_iteration=3, hf_feedback_version="99.0").num_iterations == 4


def test_refused_inputs():
    model, ids = fnn_model(head=True), torch.tensor([[5, 6]])
    for call, error, words in (
        (lambda: model(), ValueError, "either `input_ids` or `inputs_embeds`"),
        (lambda: model(ids, inputs_embeds=inputs()), ValueError, "either `input_ids` or `inputs_embeds`"),
        (lambda: model(inputs_embeds=torch.zeros(1, 2, 9)), ValueError, r"shape \(batch, tokens, 4\)"),
        (lambda: model(ids, attention_mask=torch.ones(1, 3)), ValueError, "`attention_mask` must have shape"),
        (lambda: model(ids, num_iterations=0), ValueError, "`num_iterations` must be an integer of at least 1, got 0"),
        (lambda: model(ids, num_iteration=2), TypeError, "unexpected argument `num_iteration`; did you mean"),
        (lambda: model.set_num_iterations(0), ValueError, "`num_iterations` must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(error, match=words):
            call()
    assert model.config.num_iterations == 4
    model(ids, token_type_ids=ids * 0, output_attentions=True, return_dict=True)


# Saving and loading


@pytest.mark.parametrize("activation", ["tanh", "swish", "xielu"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_saved_equals_loaded(kind, activation, tmp_path):
    model = fnn_model(kind, head=True, dtype=torch.float32, activation=activation, embedding_size=3)
    model.set_num_iterations(6)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    for loader in (FNNForSequenceClassification, AutoModelForSequenceClassification):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is FNNForSequenceClassification
        assert not any(info.values())
        assert_exact(loaded.double()(ids).logits, model.double()(ids).logits)
        assert loaded.config.num_iterations == 6
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is FNNModel
    assert_exact(base.double()(ids).last_hidden_state, model.fnn(ids).last_hidden_state)
    assert type(AutoConfig.from_pretrained(tmp_path)) is FNNConfig
    assert json.loads((tmp_path / "config.json").read_text())["hf_feedback_version"]
    with pytest.raises(ValueError, match="did you mean `num_iterations`"):
        FNNForSequenceClassification.from_pretrained(tmp_path, num_iteration=3)
    assert FNNModel.from_pretrained(tmp_path, num_iterations=2).config.num_iterations == 2
    assert AutoModel.from_config(base.config).config.fnn_type == base.config.fnn_type


def test_bfloat16(tmp_path):
    fnn_model(head=True, dtype=torch.bfloat16).save_pretrained(tmp_path)
    loaded = FNNForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded(torch.tensor([[5, 6]])).logits.isfinite().all()
    fresh = AutoModel.from_config(loaded.config, dtype=torch.bfloat16)
    assert {p.dtype for p in fresh.parameters()} == {torch.bfloat16}


def test_only_what_is_needed_travels(tmp_path):
    fnn_model(head=True).save_pretrained(tmp_path)
    travelled = {file.name for file in tmp_path.glob("*.py")}
    assert travelled == {
        *(
            "configuration_fnn.py",
            "modeling_fnn.py",
            "fnn_layers.py",
            "gradients.py",
            "precision.py",
            "random_numbers.py",
            "solvers.py",
            "modeling_outputs.py",
        ),
        *("predictor.py", "class_predictors.py", "words.py", "max_length.py", "evaluation_mode.py"),
        *(
            "activations.py",
            "pooling.py",
            "validation.py",
            "version.py",
            "configuration_base.py",
            "label_options.py",
            "stored_config.py",
        ),
    }
    allowed = {"numpy", "torch", "transformers", "packaging", *sys.stdlib_module_names}
    for file in tmp_path.glob("*.py"):
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and not words[1].startswith("."):
                assert words[1].split(".")[0] in allowed, f"{file.name}: {line}"


@pytest.mark.parametrize("kind", NETWORKS)
def test_folder_works_without_the_package(kind, tmp_path):
    model, tokenizer = fnn_model(kind, head=True, activation="swish"), tiny_tokenizer()
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    batch = dict(tokenizer(["where is my parcel", "refund"], padding=True, return_tensors="pt"))
    torch.save(batch, tmp_path / "batch.pt")
    printed = run_without_package(
        """
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

        batch = torch.load("batch.pt")
        config = AutoConfig.from_pretrained("out", trust_remote_code=True)
        model = AutoModelForSequenceClassification.from_pretrained("out", trust_remote_code=True)
        first = model(**batch).logits
        assert type(AutoModel.from_pretrained("out", trust_remote_code=True)).__name__ == "FNNModel"
        model.save_pretrained("again")
        model = AutoModelForSequenceClassification.from_pretrained("again", trust_remote_code=True)
        torch.save([first, model(**batch).logits], "found.pt")
        classify = pipeline("text-classification", "out", trust_remote_code=True)
        print(config.num_iterations, classify("where?")[0]["label"])
        """,
        tmp_path,
    )
    for found in torch.load(tmp_path / "found.pt"):
        assert_exact(found, model(**batch).logits)
    assert printed.split()[0] == "4"
    assert printed.split()[1] in LABELS["label2id"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_pipeline(kind, tmp_path):
    model, tokenizer = fnn_model(kind, head=True), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["where is my parcel", "refund"]
    answers = pipeline("text-classification", str(tmp_path), top_k=None)(texts, batch_size=2)
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for answer, row in zip(answers, logits.softmax(-1), strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        for i, name in LABELS["id2label"].items():
            assert scores[name] == pytest.approx(row[i].item(), abs=PROBABILITY)


def two_tokens(kind):
    """Inputs and weights of the loss; fewer tokens are compiled sooner."""
    return inputs()[:, :2], loss_weights(fnn_model(kind))[:, :2]


@pytest.mark.parametrize("options", [dict(), dict(gradient="truncated", gradient_iterations=2)], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_compile(kind, options):
    model, (x, c) = fnn_model(kind, num_iterations=3, **options), two_tokens(kind)
    expected = autograd_of(model, x, c)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (compiled(inputs_embeds=x).last_hidden_state * c).sum().backward()  # adds to the gradients that are there
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * grad)


@pytest.mark.parametrize("kind", NETWORKS)
def test_compile_with_convergence_and_implicit_gradient(kind):
    model, (x, c) = fnn_model(kind, gradient="implicit", **CONVERGED), two_tokens(kind)
    expected = autograd_of(model, x, c)
    torch._dynamo.reset()
    (torch.compile(model, backend="aot_eager")(inputs_embeds=x).last_hidden_state * c).sum().backward()
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * grad)


def test_swish_learns():
    for kind, betas in (("temporal", 1), ("layered", L)):
        model = fnn_model(kind, activation="swish")
        x, c = inputs().requires_grad_(), loss_weights(model)
        found = {name: grad for name, grad in autograd_of(model, x, c).items() if "beta" in name}
        assert len(found) == betas
        assert all(grad.abs().sum() > 0 for grad in found.values())


def test_sweeps_contract_at_the_start():
    for kind in NETWORKS:
        model = fnn_model(kind, hidden_size=64, num_layers=None, tolerance=1e-6, num_iterations=200)
        x = torch.randn(3, 20, 64, dtype=torch.float64)
        assert model(inputs_embeds=x, output_iterations=True).iterations.max() < 60, kind
