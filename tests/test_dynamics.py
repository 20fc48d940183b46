"""How iterations follow one another: damping, carried state, losses at every iteration, truncated gradients."""

import copy

import pytest
import torch
from builders import EDGES, feedback_model, gradients, graph_size, without_dropout
from closeness import assert_exact, assert_rounding, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config
from reference import run_operators
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification, AutoModelForSequenceClassification

from hf_feedback import (
    FeedbackConfig,
    FeedbackForAudioClassification,
    FeedbackForSequenceClassification,
    FeedbackModel,
)
from hf_feedback.training.starting_model.model_setup import set_options

LABELS = torch.tensor([0, 2])


# Damping


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("learn", [False, True])
def test_damping_equals_the_reference(alpha, learn):
    model, batch = feedback_model(feedback_damping=alpha, learn_damping=learn), tiny_batch()
    feedback = dict(model.feedback.named_parameters())
    alpha = feedback["damping.alpha"][0].item() if learn else alpha  # it was rounded to float32 at first
    expected = run_operators(model.backbone, "encoder.layer", feedback, EDGES, batch, 4, {}, alpha=alpha)
    assert_exact(model(**batch).last_hidden_state, expected)


@pytest.mark.parametrize("options", [dict(feedback_damping=0.3), dict(learn_damping=True, feedback_damping=0.7)])
def test_damping_leaves_a_fresh_model_exact(options, tmp_path):
    model, batch = feedback_model(dtype=torch.float32, scale=0, **options), tiny_batch()
    for k in (1, 2, 5):
        model.set_num_iterations(k)
        assert model.check_equivalence(batch) == 0.0
    randomize_messages(model).save_pretrained(tmp_path)
    loaded = FeedbackModel.from_pretrained(tmp_path).double()
    assert_exact(loaded(**batch).last_hidden_state, model.double()(**batch).last_hidden_state)


def test_learned_damping_learns():
    model, batch = feedback_model(learn_damping=True, feedback_damping=0.5), tiny_batch()
    for k, moves in ((2, False), (3, True)):
        model.zero_grad()
        model(**batch, num_iterations=k).last_hidden_state.square().sum().backward()
        assert (model.feedback.damping.alpha.grad.abs().max() > 0) == moves  # never idle: zero with K = 2, and there


@pytest.mark.parametrize("start", [1.0, 1.3, -0.2])
def test_learned_damping_comes_back_from_its_bounds(start):
    model, batch = feedback_model(learn_damping=True), tiny_batch()
    expected = feedback_model(feedback_damping=1.0)(**batch).last_hidden_state if start >= 1 else None
    with torch.no_grad():
        model.feedback.damping.alpha.fill_(start)
    found = model(**batch).last_hidden_state
    if expected is not None:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found.square().sum().backward()
    assert (model.feedback.damping.alpha.grad.abs() > 0).all()


@pytest.mark.parametrize("mode", [dict(gradient="one_step"), dict(gradient="truncated", gradient_iterations=1)])
def test_damping_is_learned_through_one_iteration(mode):
    """The last blend keeps its graph, and none before it does."""
    model, batch = feedback_model(learn_damping=True, feedback_damping=0.5, **mode), tiny_batch()
    model(**batch).last_hidden_state.square().sum().backward()
    assert (model.feedback.damping.alpha.grad.abs() > 0).all()
    held = [graph_size(model, batch, k) for k in (3, 8)]
    assert held[0] == held[1]


def test_options_that_are_changed_later():
    model, batch = feedback_model(FeedbackForSequenceClassification), tiny_batch()
    expected = {
        name: feedback_model(FeedbackForSequenceClassification, **{name: 0.4})(**batch).logits for name in CHANGED
    }
    for name in CHANGED:
        setattr(model.config, name, 0.4)
        assert_exact(model(**batch).logits, expected[name])
        setattr(model.config, name, 1.0)
    model.config.gradient = "truncated"
    with pytest.raises(ValueError, match="`gradient_iterations` must be an integer"):
        model(**batch)
    model.config.gradient, model.config.iteration_loss = "full", "all"
    with pytest.raises(ValueError, match="`iteration_loss` must be one of"):
        model(**batch)


def test_options_that_are_not_allowed_change_nothing():
    model = feedback_model(FeedbackForSequenceClassification)
    with pytest.raises(ValueError, match="`feedback_damping`"):
        set_options(model, "a folder", {"gradient": "one_step", "feedback_damping": 2.0})
    assert (model.config.gradient, model.config.feedback_damping) == ("full", 1.0)
    learned = feedback_model(learn_damping=True)
    learned.config.feedback_damping = 0.5
    with pytest.raises(ValueError, match=r"`feedback_damping` was 1\.0 when the model was built"):
        learned(**tiny_batch())


CHANGED = ("feedback_damping", "feedback_scale")


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 2]], ids=["to the top", "a layer follows"])
def test_losses_of_all_iterations_are_compiled(family, layers):
    torch._dynamo.reset()
    options = dict(iteration_loss="linear", num_iterations=2, feedback_edges=[[1, 0]], dtype=torch.float32)
    options["backbone_layers"] = layers  # fewer, since tracing them takes long
    model = without_dropout(feedback_model(FeedbackForSequenceClassification, family, **options))

    def results(model, inner):
        output = model(**tiny_batch(), labels=LABELS, output_iterations=True)
        return {"loss": output.loss, **dict(enumerate(output.iteration_logits))}, gradients_of(output.loss, inner)

    found = results(torch.compile(model, fullgraph=True, backend="aot_eager"), model)
    other = results(model, model)
    with in_float64():
        exact = results(model.double(), model)
    for compiled, eager, right in zip(found, other, exact, strict=True):
        assert_rounding(compiled, eager, right)


# Carried state


def test_carried_state_is_a_model_of_looped_layers():
    model, batch = feedback_model(feedback_state="carry", scale=0, feedback_edges=[[3, 0]]), tiny_batch()
    bert = model.backbone
    mask = (1.0 - batch["attention_mask"].double())[:, None, None] * torch.finfo(torch.float64).min
    hidden = bert.embeddings(batch["input_ids"])
    for k in range(1, 4):
        for layer in bert.encoder.layer:
            hidden = layer(hidden, mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        found = model(**batch, num_iterations=k).last_hidden_state
        real = batch["attention_mask"].bool()
        assert_exact(found[real], hidden[real])
    model.set_num_iterations(1)
    assert model.check_equivalence(batch) == 0.0


# A loss at every iteration


@pytest.mark.parametrize("rule", ["last", "uniform", "linear"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "xlnet"])
def test_losses_of_all_iterations(rule, family):
    model = without_dropout(feedback_model(FeedbackForSequenceClassification, family, iteration_loss=rule))
    batch = tiny_batch()
    losses = torch.stack([F.cross_entropy(model(**batch, num_iterations=k).logits, LABELS) for k in range(1, 5)])
    weights = {"last": [0, 0, 0, 1], "uniform": [1, 1, 1, 1], "linear": [1, 2, 3, 4]}[rule]
    weights = torch.tensor(weights, dtype=torch.float64)
    expected = (losses * weights).sum() / weights.sum()
    found = model(**batch, labels=LABELS)
    assert_exact(found.loss, expected)
    assert found.iteration_logits is None
    assert_exact(model.eval()(**batch, labels=LABELS).loss, losses[-1])
    assert_exact(gradients_of(found.loss, model), gradients_of(expected, model))


@pytest.mark.parametrize("edges", [None, [[2, 1]]], ids=["to the top", "layers follow"])
@pytest.mark.parametrize("head", ["new", "backbone"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "xlnet", "t5", "modernbert", "albert", "distilbert", "llama"])
@in_float64()
def test_answers_of_all_iterations_in_one_pass(family, head, edges):
    """Each is that of a call with so many iterations; layers below the loop run once, whatever follows it K times."""
    options = dict(feedback_edges=edges, num_iterations=3)
    if head == "new":
        model = feedback_model(FeedbackForSequenceClassification, family, **options)
    else:
        config = copy.deepcopy(tiny_backbone(family).config)
        config.num_labels = 3
        torch.manual_seed(0)
        tuned = AutoModelForSequenceClassification.from_config(config).double().eval()
        model = FeedbackForSequenceClassification.from_backbone(tuned, head="backbone", feedback_rank=8, **options)
        randomize_messages(model)
    batch, passes = tiny_batch(), []
    if family == "t5" and head == "backbone":  # it reads the last </s>
        batch["input_ids"][:, 5] = 3
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    found = model(**batch, output_iterations=True).iteration_logits
    handle.remove()
    for k, logits in enumerate(found, 1):
        assert_exact(logits, model(**batch, num_iterations=k).logits)
    # the own heads of these look for the last token among the ids, of which there are as many as texts
    assert model.layout.can_batch_iterations == (head == "new" or family not in ("gpt2", "llama", "t5"))
    if family != "t5":  # whose halves have embeddings of their own
        assert len(passes) == (1 if model.layout.can_batch_iterations else 3)


@in_float64()
def test_answers_of_an_audio_head_that_reads_the_mask():
    torch.manual_seed(0)
    tuned = AutoModelForAudioClassification.from_config(tiny_config("wav2vec2")).eval()
    model = randomize_messages(FeedbackForAudioClassification.from_backbone(tuned, head="backbone", num_iterations=3))
    batch = {**tiny_batch(family="wav2vec2"), "attention_mask": torch.ones(2, 400, dtype=torch.long)}
    batch["attention_mask"][1, 300:] = 0
    for k, logits in enumerate(model(**batch, output_iterations=True).iteration_logits, 1):
        assert_exact(logits, model(**batch, num_iterations=k).logits)


# Gradients


def gradients_of(loss, model):
    """By the parameter's name, without those that the loss does not depend on."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("family", ["bert", "t5"])
@in_float64()
def test_truncated_gradients_equal_the_reference(n, family):
    """Also for T5, whose position bias is made by the first layer of iteration 1 and used in all others."""
    options = dict(gradient="one_step") if n == 1 else dict(gradient="truncated", gradient_iterations=n)
    model, batch = feedback_model(family=family, **options), tiny_batch()
    weight = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = weight * batch["attention_mask"][..., None]
    mine = gradients(model, batch, weight)
    bare = copy.deepcopy(model.backbone)
    bare.zero_grad()
    feedback = {name: p.detach().clone().requires_grad_() for name, p in model.feedback.named_parameters()}
    stack = "encoder.layer" if family == "bert" else "block"
    output = run_operators(bare, stack, feedback, EDGES, batch, 4, {}, keep_graph=n)
    (output * weight).sum().backward()
    theirs = {f"feedback.{name}": p.grad for name, p in feedback.items()}
    theirs |= {f"backbone.{name}": p.grad for name, p in bare.named_parameters() if p.grad is not None}
    assert_exact(mine, theirs)


def test_truncated_graphs_stop_growing():
    batch = tiny_batch()
    full, one, two = (
        feedback_model(**options)
        for options in ({}, dict(gradient="one_step"), dict(gradient="truncated", gradient_iterations=2))
    )
    sizes = {name: [graph_size(m, batch, k) for k in (1, 2, 3, 6)] for name, m in
             (("full", full), ("one", one), ("two", two))}  # fmt: skip
    assert sizes["full"][0] < sizes["full"][1] < sizes["full"][2] < sizes["full"][3]
    assert sizes["one"][1] == sizes["one"][2] == sizes["one"][3]
    assert sizes["two"][1] == sizes["full"][1]
    assert sizes["two"][2] == sizes["two"][3] < sizes["full"][2]


def test_truncated_gradients_with_checkpointing_and_autocast():
    options = dict(gradient="truncated", gradient_iterations=2)
    model, batch = without_dropout(feedback_model(**options)), tiny_batch()
    weight = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = gradients(model, batch, weight)
    model.activation_checkpointing_enable()
    assert_exact(gradients(model, batch, weight), plain)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.isfinite(g).all() for g in gradients(model, batch, 1.0).values())


@pytest.mark.parametrize("options", [dict(gradient="one_step"), dict(iteration_loss="linear", learn_damping=True)])
def test_states_on_request_in_any_mode(options):
    model = feedback_model(FeedbackForSequenceClassification, **options)
    plain = feedback_model(FeedbackForSequenceClassification)
    batch = tiny_batch()
    one, other = (m(**batch, output_hidden_states=True, labels=LABELS) for m in (model, plain))
    for mine, theirs in zip(one.hidden_states, other.hidden_states, strict=True):
        assert_exact(mine, theirs)
    assert_exact(one.loss, other.loss)


WRONG = {
    "damping": (dict(feedback_damping=0.0), r"`feedback_damping` must be in \(0, 1\], got 0.0"),
    "learn": (dict(learn_damping="yes"), "`learn_damping` must be True or False"),
    "state": (dict(feedback_state="loop"), "`feedback_state` must be one of 'reentry', 'carry'"),
    "loss": (dict(iteration_loss="all"), "`iteration_loss` must be one of"),
    "gradient": (dict(gradient="half"), "`gradient` must be one of"),
    "loss without graph": (dict(iteration_loss="uniform", gradient="one_step"), "needs a gradient of every iteration"),
    "loss at fixed point": (dict(iteration_loss="linear", gradient="implicit"), "needs a gradient of every iteration"),
    "classes without context": (dict(feedback_context="classes"), "is for `feedback_type='context'`"),
    "error of classes": (
        dict(feedback_type="context", feedback_context="classes", feedback_signal="error"),
        "`feedback_signal`='error' compares states",
    ),
    "solver": (dict(fixed_point_solver="anderson"), "`fixed_point_solver`='anderson' is for `gradient='implicit'`"),
    "no n": (dict(gradient="truncated"), "`gradient_iterations` must be an integer of at least 1, got None"),
    "idle n": (dict(gradient_iterations=2), "`gradient_iterations` is for `gradient='truncated'`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        FeedbackConfig(**options)


@pytest.mark.parametrize("options", [dict(gradient="one_step"), dict(gradient="truncated", gradient_iterations=2)])
def test_the_answer_of_iteration_1_keeps_its_graph(options):
    model, batch = feedback_model(FeedbackForSequenceClassification, num_iterations=3, **options), tiny_batch()
    embeddings = model.get_input_embeddings().weight
    answers = model(**batch, output_iterations=True).iteration_logits
    found = [torch.autograd.grad(one.square().sum(), embeddings, retain_graph=True)[0].abs().sum() for one in answers]
    assert found[0] > 0
    assert (found[1] > 0) == (options["gradient"] == "truncated")
    assert found[2] > 0
