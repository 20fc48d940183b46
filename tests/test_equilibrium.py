"""The loop at its fixed point: implicit gradients against long unrolled ones and torchdeq; contraction against the
Jacobian itself."""

import copy

import pytest
import torch
from builders import feedback_model, gradients, graph_size, without_dropout
from families import tiny_batch
from loop_jacobian import at_the_loop, jacobian, jacobian_radius
from reference import operator_message
from torch.nn import functional as F

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.gradients import ConvergenceWarning
from hf_feedback.stability import jacobian_penalty

TOP = dict(feedback_edges=[[3, 0], [3, 1]])
IMPLICIT = dict(gradient="implicit", num_iterations=60, fixed_point_tolerance=1e-10)


def weights():
    weight = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return weight * tiny_batch()["attention_mask"][..., None]


def close(mine, theirs, tolerance):
    assert mine.keys() == theirs.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (gradient - mine[name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("solver", ["iteration", "anderson"])
@pytest.mark.parametrize("family", ["bert", "xlnet"])
@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_implicit_equals_a_long_unroll(solver, family, damping):
    options = dict(scale=0.02, family=family, feedback_damping=damping)
    batch = tiny_batch()
    mine = gradients(feedback_model(**options, **IMPLICIT, fixed_point_solver=solver), batch, weights())
    theirs = gradients(feedback_model(**options, num_iterations=60), batch, weights())
    close(mine, theirs, 1e-5)


def test_implicit_equals_torchdeq():
    """An independent implementation: the map is the bare backbone with its messages added by hand."""
    from torchdeq import get_deq

    model, batch = feedback_model(scale=0.02, **TOP, **IMPLICIT), tiny_batch()
    bare = copy.deepcopy(model.backbone)
    feedback = {name: p.detach().clone().requires_grad_() for name, p in model.feedback.named_parameters()}
    mask, told = batch["attention_mask"].bool(), {}

    def hook(index):
        def add(module, args, kwargs):
            if "h" not in told:
                return args, kwargs
            message = operator_message(feedback, 3, index, told["h"], args[0], mask, False, {})
            return (args[0] + message, *args[1:]), kwargs

        return add

    for index in (0, 1):
        bare.encoder.layer[index].register_forward_pre_hook(hook(index), with_kwargs=True)

    def f(h):
        told["h"] = h
        return bare(**batch).last_hidden_state

    solver = get_deq(
        f_solver="fixed_point_iter", b_solver="fixed_point_iter", f_max_iter=80, b_max_iter=80, f_tol=1e-12,
        b_tol=1e-12, ift=True,
    )  # fmt: skip
    start = bare(**batch).last_hidden_state.detach()
    (found,), _ = solver(f, start)
    (found * weights()).sum().backward()
    theirs = {f"feedback.{name}": p.grad for name, p in feedback.items()}
    theirs |= {f"backbone.{name}": p.grad for name, p in bare.named_parameters() if p.grad is not None}
    close(gradients(model, batch, weights()), theirs, 1e-5)


def test_one_dropout_mask_for_all_iterations():
    model = feedback_model(scale=0.02, **IMPLICIT).train()
    torch.manual_seed(0)
    found = model(**tiny_batch(), output_iterations=True)
    assert found.residuals[:, -1].max() <= 1e-10  # with new masks each time it would never settle
    after = torch.rand(1)
    torch.manual_seed(0)
    model(**tiny_batch(), output_iterations=True)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("num_iterations", [2, 4])
@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_a_loop_that_does_not_settle_is_warned_of_and_unrolled(num_iterations, damping):
    options = dict(scale=3.0, num_iterations=num_iterations, feedback_damping=damping)
    batch = tiny_batch()
    with pytest.warns(ConvergenceWarning, match=f"not reached within {num_iterations - 1} iterations"):
        mine = gradients(feedback_model(**options, gradient="implicit"), batch, weights())
    close(mine, gradients(feedback_model(**options), batch, weights()), 1e-9)


EACH_BY_ITSELF = {
    "iteration": IMPLICIT,
    "anderson": dict(**IMPLICIT, fixed_point_solver="anderson"),
    "damped": dict(**IMPLICIT, feedback_damping=0.7),
    "of each iteration": {},
    "truncated": dict(gradient="truncated", gradient_iterations=2),
}


@pytest.mark.parametrize("case", EACH_BY_ITSELF)
@pytest.mark.parametrize("bad", ["no number", "does not settle"])
@pytest.mark.filterwarnings("ignore::hf_feedback.gradients.ConvergenceWarning")
def test_a_text_that_does_not_settle_moves_no_other(case, bad):
    """Its state, its residuals, its gradient, and how the loop contracts there."""
    found = []
    for value in (1.0, bad):
        model = feedback_model(scale=0.02, **EACH_BY_ITSELF[case])
        texts = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        if value == "no number":
            texts[1, 4, 7] = torch.nan
        texts.requires_grad_()
        if value == "does not settle":  # louder messages to the second text alone feedback_model it run away
            louder = torch.tensor([1.0, 300.0], dtype=torch.float64)[:, None, None]
            for source in model.feedback.sources.values():
                source.up.register_forward_hook(lambda module, args, output, louder=louder: output * louder)
        output = model(inputs_embeds=texts, output_iterations=True)
        (gradient,) = torch.autograd.grad(output.last_hidden_state.sin().sum(), texts)
        contraction = model.estimate_contraction({"inputs_embeds": texts.detach()})
        found.append((output.last_hidden_state[0], output.residuals[0, :3], gradient[0], contraction[0]))
        assert (value == 1.0) == bool(output.last_hidden_state.isfinite().all() and output.residuals[1, -1] < 1e-3)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", ["iteration", "anderson"])
def test_padding_does_not_decide_when_a_text_has_settled_nor_where(solver):
    options = dict(gradient="implicit", fixed_point_solver=solver, fixed_point_tolerance=1e-2, scale=0.1)
    model, text = feedback_model(num_iterations=20, **options).eval(), {"input_ids": tiny_batch()["input_ids"][:1, :4]}
    alone = model(**text, output_iterations=True)
    fill = {"input_ids": F.pad(text["input_ids"], (0, 30)), "attention_mask": F.pad(torch.ones(1, 4), (0, 30))}
    padded = model(**fill, output_iterations=True)
    assert alone.residuals[0].count_nonzero() > 2
    torch.testing.assert_close(padded.residuals, alone.residuals, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(padded.last_hidden_state[:, :4], alone.last_hidden_state, atol=1e-5, rtol=0)


def test_no_more_iterations_once_nothing_is_finite():
    """One to see it, one for the gradient."""
    calls = []
    model = feedback_model(scale=0.02, **IMPLICIT)
    model.backbone.encoder.layer[1].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    texts = torch.full((2, 9, 32), torch.nan, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="2 of 2 examples is not finite after 1 iterations"):
        model(inputs_embeds=texts)
    assert calls == [True, False, True]


def test_damped_states_are_read_and_new_ones_answer():
    options, batch = dict(num_iterations=3, feedback_damping=0.5), tiny_batch()
    one, other = feedback_model(**options), feedback_model(FeedbackForSequenceClassification, **options, num_labels=3)
    for model in (one, other):
        found = []
        for gradient in ("full", "implicit"):
            model.config.gradient = gradient
            with torch.no_grad():
                output = model(**batch, output_iterations=True)
            found.append((output[0], output.residuals))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_reentrant_checkpoints_are_refused():
    model = feedback_model(scale=0.02, **IMPLICIT).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    loss = model(**tiny_batch()).last_hidden_state.sum()
    with pytest.raises(RuntimeError, match="'use_reentrant': False"):
        loss.backward()


@pytest.mark.parametrize("option", [dict(scale=0.02, **IMPLICIT), dict(jacobian_penalty=1.0)], ids=["implicit", "both"])
def test_compiled_models_run_apart_what_no_graph_can_hold(option):
    torch._dynamo.reset()
    layers = dict(backbone_layers=[0, 1], feedback_edges=[[1, 0]])  # fewer are compiled sooner
    found, model = [], without_dropout(feedback_model(FeedbackForSequenceClassification, **layers, **option))
    for one in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        torch.manual_seed(0)
        loss = one(**tiny_batch(), labels=torch.tensor([0, 1])).loss
        loss.backward()
        found.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_the_graph_does_not_grow():
    model, batch = (
        without_dropout(feedback_model(scale=0.02, gradient="implicit", fixed_point_tolerance=1e-6)),
        tiny_batch(),
    )
    assert graph_size(model, batch, 20) == graph_size(model, batch, 60)


def test_a_fresh_implicit_model_is_its_backbone(tmp_path):
    model = feedback_model(FeedbackForSequenceClassification, scale=0, dtype=torch.float32, gradient="implicit")
    for k in (1, 2, 6):
        model.set_num_iterations(k)
        assert model.check_equivalence(tiny_batch()) == 0.0
    model.train()(**tiny_batch(), labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.save_pretrained(tmp_path)
    assert FeedbackForSequenceClassification.from_pretrained(tmp_path).config.gradient == "implicit"


# Contraction


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["additive", "joint"])
def test_contraction_is_the_spectral_radius(kind, scale, k):
    model = feedback_model(scale=scale, num_iterations=k, feedback_type=kind, **TOP)
    batch = {key: value[:1, :4] for key, value in tiny_batch().items()}
    found = model.estimate_contraction(batch, steps=60).item()
    assert found == pytest.approx(jacobian_radius(model, batch), rel=0.1)


def test_padding_does_not_count_for_contraction():
    model = feedback_model(scale=1.0, **TOP)
    text = {key: value[:1, :3] for key, value in tiny_batch().items()}
    ids = F.pad(text["input_ids"], (0, 12))
    padded = {"input_ids": ids, "attention_mask": (torch.arange(15) < 3).long()[None]}
    found = model.estimate_contraction(padded, steps=60).item()
    assert found == pytest.approx(jacobian_radius(model, text), rel=0.1)
    every = {**padded, "attention_mask": torch.ones_like(ids)}
    assert model.estimate_contraction(every, steps=60).item() > 1.3 * found  # else there would be nothing to leave out


def test_a_contraction_needs_steps():
    with pytest.raises(ValueError, match="`steps` must be an integer of at least 1, got 0"):
        feedback_model().estimate_contraction(tiny_batch(), steps=0)


def test_expansion_is_warned_of(caplog):
    model = feedback_model(scale=8.0, **TOP)
    with caplog.at_level("WARNING", logger="hf_feedback"):
        found = model.train().estimate_contraction(tiny_batch())
    assert found.shape == (2,)
    assert found.max() > 1
    assert "The loop expands on" in caplog.text
    assert model.training
    assert feedback_model(scale=0).estimate_contraction(tiny_batch()).max() == pytest.approx(0, abs=1e-20)


def test_states_on_request_at_the_fixed_point():
    model, batch = feedback_model(scale=0.02, **IMPLICIT), tiny_batch()
    found = model(**batch, output_hidden_states=True)
    assert len(found.hidden_states) == 5
    long = feedback_model(scale=0.02, num_iterations=60)(**batch, output_hidden_states=True)
    for mine, theirs in zip(found.hidden_states, long.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


# The penalty


def test_the_penalty_is_the_mean_square_of_the_jacobian():
    model = feedback_model(scale=0.3, num_iterations=3, **TOP)
    batch = {key: value[:1, :4] for key, value in tiny_batch().items()}

    def both(loop, h):
        torch.manual_seed(0)
        return jacobian(loop, h), torch.stack([jacobian_penalty(loop, h) for _ in range(300)])

    J, estimates = at_the_loop(model, batch, both)
    assert estimates.mean().item() == pytest.approx((J.square().sum() / len(J)).item(), rel=0.05)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_gradient_of_the_penalty(family):
    """Against finite differences, the random numbers and the states held fixed."""
    model = feedback_model(scale=0.3, family=family, num_iterations=2, feedback_type="attention", **TOP)
    weight = model.feedback.sources["3"].up.weight
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))

    def value(loop, h):
        torch.manual_seed(0)
        return jacobian_penalty(loop, h)

    def both(loop, h):
        (gradient,) = torch.autograd.grad(value(loop, h), weight)
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                weight.add_(step * direction)
            values.append(value(loop, h).item())
            with torch.no_grad():
                weight.sub_(step * direction)
        return (gradient * direction).sum().item(), (values[0] - values[1]) / 2e-4

    mine, theirs = at_the_loop(model, tiny_batch(), both)
    assert abs(mine) > 1e-6
    assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_the_penalty_makes_the_loop_contract(checkpointing):
    options = dict(cls=FeedbackForSequenceClassification, scale=2.0, num_iterations=3, dtype=torch.float32, **TOP)
    labels, batch = torch.tensor([0, 1]), tiny_batch()
    found = {}
    for weight in (0.0, 1.0):
        model = feedback_model(jacobian_penalty=weight, **options).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.feedback.parameters(), lr=0.02)
        for _ in range(15):
            optimizer.zero_grad()
            loss = model(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
        found[weight] = model.estimate_contraction(batch).max().item()
    assert found[1.0] < 0.8 * found[0.0]
    with torch.no_grad():  # evaluation takes no notice
        plain = feedback_model(jacobian_penalty=0.0, **options).eval()
        penalized = feedback_model(jacobian_penalty=1.0, **options).eval()
        assert torch.equal(plain(**batch, labels=labels).loss, penalized(**batch, labels=labels).loss)
    with pytest.raises(ValueError, match="`jacobian_penalty` must be a number of at least 0"):
        feedback_model(jacobian_penalty=-1.0)


def test_the_penalty_of_a_model_without_a_head_is_left_to_its_user():
    """The same weights and the same random vector give the same penalty as in the model with a head."""
    options = dict(scale=0.5, jacobian_penalty=1.0, num_iterations=3, **TOP)
    model = without_dropout(feedback_model(**options))
    with_head = without_dropout(feedback_model(FeedbackForSequenceClassification, **options))
    with_head.load_state_dict(model.state_dict(), strict=False)
    torch.manual_seed(0)
    penalty = model(**tiny_batch()).jacobian_penalty
    torch.manual_seed(0)
    assert penalty == with_head(**tiny_batch(), labels=torch.tensor([0, 1])).jacobian_penalty > 0
    penalty.backward()
    assert all(parameter.grad is not None for parameter in model.feedback.parameters())
    assert model.eval()(**tiny_batch()).jacobian_penalty is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_penalty_of_checkpointed_layers(reentrant):
    """Without dropout, where attention would take a kernel that has no second derivative."""
    found = []
    for checkpointing in (False, True):
        model = without_dropout(
            feedback_model(FeedbackForSequenceClassification, jacobian_penalty=1.0, num_iterations=3, **TOP)
        )
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        model(**tiny_batch(), labels=torch.tensor([0, 1])).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_penalty_leaves_padding_out():
    options = dict(cls=FeedbackForSequenceClassification, scale=0.5, num_iterations=2, jacobian_penalty=1.0, **TOP)
    short = {name: value[1:, :6] for name, value in tiny_batch().items()}
    fill = {"input_ids": 1, "attention_mask": 0}
    long = {name: F.pad(value, (0, 24), value=fill[name]) for name, value in short.items()}
    means, copies = [], 50  # each copy of the text has random numbers of its own
    labels = torch.ones(copies, dtype=torch.long)
    for text in (short, long):
        model, found = without_dropout(feedback_model(**options)), []
        batch = {name: value.expand(copies, -1) for name, value in text.items()}
        for _ in range(6):
            with_penalty = model(**batch, labels=labels).loss
            model.config.jacobian_penalty = 0.0
            found.append((with_penalty - model(**batch, labels=labels).loss).item())
            model.config.jacobian_penalty = 1.0
        means.append(torch.tensor(found).mean().item())
    assert means[1] == pytest.approx(means[0], rel=0.05)


@pytest.mark.parametrize("rule", ["last", "uniform"])
def test_no_penalty_without_a_loop(rule):
    options = dict(cls=FeedbackForSequenceClassification, iteration_loss=rule, num_iterations=3, **TOP)
    batch, losses = {**tiny_batch(), "labels": torch.tensor([0, 1])}, []
    for weight in (0.0, 5.0):
        model = without_dropout(feedback_model(**options, jacobian_penalty=weight))
        with model.feedback_disabled():
            losses.append((model(**batch, num_iterations=1).loss, model(**batch).loss))
    assert losses[0] == losses[1]
