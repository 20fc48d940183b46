"""No harm, and the right equations: feedback models against their bare backbone and against the plain reference."""

import copy

import pytest
import torch
from closeness import assert_exact, assert_rounding, in_float64
from families import FAMILIES, TEXT_FAMILIES, randomize_messages, tiny_backbone, tiny_batch, to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import run_reference

from hf_feedback import FeedbackForSequenceClassification, FeedbackModel

EDGE_SETS = {
    "top": dict(feedback_topology="top"),
    "adjacent": dict(feedback_topology="adjacent"),
    "dense": dict(feedback_topology="dense"),
    "middle": dict(feedback_edges=[[2, 1]]),
    "two into one": dict(feedback_edges=[[2, 0], [3, 0], [3, 2]]),
    "above layer 0": dict(feedback_layers=[1, 3]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edges", ["dense", "middle"])
def test_fresh_model_is_its_backbone(family, edges):
    backbone = tiny_backbone(family)
    batch = tiny_batch(family=family)
    expected = backbone(**batch).last_hidden_state
    model = FeedbackModel.from_backbone(backbone, num_iterations=3, feedback_rank=8, **EDGE_SETS[edges])
    assert torch.equal(model(**batch).last_hidden_state, expected)
    assert model.check_equivalence(batch) == 0.0
    randomize_messages(model)
    assert model.check_equivalence(batch) > 1e-3
    assert torch.equal(model(**batch, num_iterations=1).last_hidden_state, expected)
    with model.feedback_disabled():
        assert torch.equal(model(**batch).last_hidden_state, expected)
    assert model.check_equivalence(batch) > 1e-3


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_experts_that_are_multiplied_in_groups(family):
    """transformers' default kernel, which takes no float64 and routes the tokens of each iteration anew."""
    bare = tiny_backbone(family, experts_implementation="grouped_mm")
    model = FeedbackModel.from_backbone(copy.deepcopy(bare), num_iterations=3, feedback_rank=8)
    assert model.backbone.get_experts_implementation()[""] == "grouped_mm"
    batch = tiny_batch(family=family)
    assert model.check_equivalence(batch) == 0.0
    randomize_messages(model, scale=0.1)
    feedback = dict(model.feedback.named_parameters())
    output, _ = run_reference(bare, "layers", 1, feedback, model.config.edges(), batch, 3)
    torch.testing.assert_close(model(**batch).last_hidden_state, output.last_hidden_state)


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    edges=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda e: e[0] > e[1]), min_size=1),
    activation=st.sampled_from(["sigmoid", "tanh", "relu", "gelu", "swish", "mish", "leaky_relu"]),
    num_iterations=st.integers(1, 6),
    rank=st.sampled_from([None, 1, 5, 32]),
    padding=st.sampled_from(["right", "left", "none"]),
    attention=st.sampled_from([None, "eager"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_fresh_model_is_its_backbone(family, edges, activation, num_iterations, rank, padding, attention):
    model = FeedbackForSequenceClassification.from_backbone(
        tiny_backbone(family, attn_implementation=attention),
        feedback_edges=[list(edge) for edge in edges],
        feedback_activation=activation,
        num_iterations=num_iterations,
        feedback_rank=rank,
        num_labels=3,
    )
    assert model.check_equivalence(tiny_batch(padding=padding, family=family)) == 0.0


def gradients_of(output, weight, parameters):
    """Of the weighted sum of the output, by the parameter's name; without those that it does not depend on."""
    parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    found = torch.autograd.grad((output * weight).sum(), list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def run_model(model, batch, weight):
    """Its output, the states between its layers and all gradients."""
    found = model(**batch, output_hidden_states=True)
    states = dict(enumerate(found.hidden_states[1:-1]))
    output = found.last_hidden_state
    return {
        "output": output,
        "states": states,
        "gradients": gradients_of(output, weight, dict(model.named_parameters())),
    }


def run_plainly(bare, row, model, batch, weight):
    """The same by the reference, with the parameters of the model's feedback."""
    feedback = {name: p.detach().clone().requires_grad_() for name, p in model.feedback.named_parameters()}
    output, states = run_reference(
        bare, row.stack, row.passes, feedback, model.config.edges(), batch, 3, scale=model.config.feedback_scale
    )
    parameters = {f"feedback.{name}": p for name, p in feedback.items()}
    parameters |= {f"backbone.{name}": p for name, p in bare.named_parameters()}
    output = output.last_hidden_state
    gradients = gradients_of(output, weight, parameters)
    assert any(gradient.abs().max() > 0 for name, gradient in gradients.items() if name.startswith("feedback."))
    if model.layout.batch_dim == 1:
        states = [state.transpose(0, 1) for state in states]
    return {"output": output, "states": dict(enumerate(states[:-1])), "gradients": gradients}


def compare_with_reference(family, edges, in_float32=True, padding="right", attention=None, uncollected=(), **changes):
    """K = 3: outputs, hidden states and all gradients, in float64 and, if asked, in float32. The states of
    `uncollected` layers are left out."""
    row = FAMILIES[family]
    bare = tiny_backbone(family, attn_implementation=attention, **changes)
    model = FeedbackModel.from_backbone(
        copy.deepcopy(bare), num_iterations=3, feedback_rank=8, feedback_scale=0.7, **EDGE_SETS[edges]
    )
    randomize_messages(model, scale=0.1)
    batch = tiny_batch(padding=padding, family=family)
    assert model.check_equivalence(batch) > 1e-2
    weight = torch.randn(model(**batch).last_hidden_state.shape, generator=torch.Generator().manual_seed(3))
    if in_float32:
        found, other = run_model(model, batch, weight), run_plainly(bare, row, model, batch, weight)
    with in_float64():
        batch, weight = to(batch, torch.float64), weight.double()
        exact = run_plainly(bare.double(), row, model.double(), batch, weight)
        wide = run_model(model, batch, weight)
    for layer in uncollected:
        for result in (found, wide, exact):
            del result["states"][layer]
    for name, expected in exact.items():
        assert_exact(wide[name], expected)
        if in_float32:
            assert_rounding(found[name], other[name], expected)


def test_messages_match_the_reference_above_a_convolution():
    """DeBERTa-v2's, between layers 0 and 1; it collects the state of layer 0 after it."""
    options = dict(uncollected=[0], conv_kernel_size=3, conv_act="gelu")
    compare_with_reference("deberta-v2", "above layer 0", **options)


CALLED_DIFFERENTLY = ("bert", "albert", "xlnet", "t5", "qwen3")
# Every family with all edges; some of them, which are added up apart from the layers, with each way to call layers.
WITH_EDGES = [("dense", family) for family in FAMILIES]
WITH_EDGES += [(edges, family) for edges in ("top", "two into one") for family in CALLED_DIFFERENTLY]


@pytest.mark.parametrize(("edges", "family"), WITH_EDGES)
def test_messages_match_the_reference(family, edges):
    compare_with_reference(family, edges)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("padding", ["left", "none"])
@pytest.mark.parametrize("attention", ["eager", None], ids=["eager", "default"])
def test_masks_and_attention_match_the_reference(family, padding, attention):
    compare_with_reference(family, "middle", in_float32=False, padding=padding, attention=attention)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "gelu", "swish", "mish"])
@pytest.mark.parametrize("rank", [None, 4])
def test_activations_and_ranks_match_the_reference(activation, rank):
    bare = tiny_backbone("bert").double()
    model = FeedbackModel.from_backbone(
        copy.deepcopy(bare), feedback_topology="dense", feedback_activation=activation, feedback_rank=rank
    )
    randomize_messages(model)
    batch = tiny_batch()
    feedback = dict(model.feedback.named_parameters())
    edges = model.config.edges()
    output, _ = run_reference(bare, "encoder.layer", 1, feedback, edges, batch, 2, activation=activation)
    expected = output.last_hidden_state
    assert_exact(model(**batch).last_hidden_state, expected)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@in_float64()
def test_padding_changes_nothing(family):
    """A text alone answers as the same text beside a longer one."""
    model = FeedbackForSequenceClassification.from_backbone(
        tiny_backbone(family), num_iterations=3, feedback_rank=8, feedback_topology="dense", num_labels=3
    )
    randomize_messages(model)
    # with absolute positions, left padding is another text
    for padding in ("right", "left") if FAMILIES[family].stack == "layers" and FAMILIES[family].decoder else ("right",):
        batch = tiny_batch(padding=padding)
        together = model(**batch, output_iterations=True)
        real = batch["attention_mask"][1].bool()
        alone = model(
            input_ids=batch["input_ids"][1:, real], attention_mask=torch.ones(1, 6).long(), output_iterations=True
        )
        assert_exact(together.logits[1:], alone.logits)
        assert_exact(together.residuals[1:], alone.residuals)
