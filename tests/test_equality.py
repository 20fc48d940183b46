"""No harm, and the right equations: feedback models against their bare backbone and against the plain reference."""

import copy

import pytest
import torch
from families import FAMILIES, TEXT_FAMILIES, speak, tiny_backbone, tiny_batch, to
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
    speak(model)
    assert model.check_equivalence(batch) > 1e-3
    assert torch.equal(model(**batch, num_iterations=1).last_hidden_state, expected)
    with model.feedback_disabled():
        assert torch.equal(model(**batch).last_hidden_state, expected)
    assert model.check_equivalence(batch) > 1e-3


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


def gradients_of(loss, parameters):
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def compare_with_reference(family, edges, dtype, padding="right", attention=None, **changes):
    """K = 3: outputs, hidden states and all gradients, to 1e-6 of the largest (1e-12 in float64)."""
    row = FAMILIES[family]
    bare = tiny_backbone(family, attn_implementation=attention, **changes).to(dtype)
    model = FeedbackModel.from_backbone(
        copy.deepcopy(bare), num_iterations=3, feedback_rank=8, feedback_scale=0.7, **EDGE_SETS[edges]
    )
    speak(model, scale=0.1)
    batch = to(tiny_batch(padding=padding, family=family), dtype)
    assert model.check_equivalence(batch) > 1e-2
    found = model(**batch, output_hidden_states=True)
    feedback = {name: p.detach().clone().requires_grad_() for name, p in model.feedback.named_parameters()}
    expected, states = run_reference(bare, row.stack, row.passes, feedback, model.config.edges(), batch, 3, scale=0.7)
    tolerance = 1e-12 if dtype == torch.float64 and not row.casts else 1e-6

    def check(name, one, other, largest):
        assert (one - other).abs().max() <= tolerance * largest, name

    check("output", found.last_hidden_state, expected, 10 * expected.abs().max())
    assert len(found.hidden_states) == len(states) + 1
    for layer, (mine, theirs) in enumerate(zip(found.hidden_states[1:-1], states[:-1], strict=True)):
        theirs = theirs.transpose(0, 1) if family == "xlnet" else theirs
        if "conv_kernel_size" in changes and layer == 0:  # the family collects this one after its convolution
            continue
        check(f"state {layer}", mine, theirs, 10 * theirs.abs().max())

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    names = {name: p for name, p in bare.named_parameters() if p.requires_grad and not name.startswith("pooler.")}
    mine = gradients_of(
        (found.last_hidden_state * weight).sum(),
        [*dict(model.feedback.named_parameters()).values(), *(model.backbone.get_parameter(name) for name in names)],
    )
    theirs = gradients_of((expected * weight).sum(), [*feedback.values(), *names.values()])
    largest = max(g.abs().max() for g in theirs if g is not None)
    assert any(g.abs().max() > 0 for g in theirs[: len(feedback)])
    for name, one, other in zip([*feedback, *names], mine, theirs, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            check(name, one, other, largest)


def test_messages_match_the_reference_above_a_convolution():
    """DeBERTa-v2's, between layers 0 and 1."""
    for dtype in (torch.float32, torch.float64):
        compare_with_reference("deberta-v2", "above layer 0", dtype, conv_kernel_size=3, conv_act="gelu")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edges", ["top", "dense", "two into one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_messages_match_the_reference(family, edges, dtype):
    compare_with_reference(family, edges, dtype)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("padding", ["left", "none"])
@pytest.mark.parametrize("attention", ["eager", None], ids=["eager", "default"])
def test_masks_and_attention_match_the_reference(family, padding, attention):
    compare_with_reference(family, "middle", torch.float32, padding, attention)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "gelu", "swish", "mish"])
@pytest.mark.parametrize("rank", [None, 4])
def test_activations_and_ranks_match_the_reference(activation, rank):
    bare = tiny_backbone("bert").double()
    model = FeedbackModel.from_backbone(
        copy.deepcopy(bare), feedback_topology="dense", feedback_activation=activation, feedback_rank=rank
    )
    speak(model)
    batch = tiny_batch()
    feedback = dict(model.feedback.named_parameters())
    edges = model.config.edges()
    expected, _ = run_reference(bare, "encoder.layer", 1, feedback, edges, batch, 2, activation=activation)
    torch.testing.assert_close(model(**batch).last_hidden_state, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_padding_changes_nothing(family):
    """A text alone answers as the same text beside a longer one."""
    model = FeedbackForSequenceClassification.from_backbone(
        tiny_backbone(family), num_iterations=3, feedback_rank=8, feedback_topology="dense", num_labels=3
    )
    speak(model)
    # with absolute positions, left padding is another text
    for padding in ("right", "left") if FAMILIES[family].stack == "layers" and FAMILIES[family].decoder else ("right",):
        batch = tiny_batch(padding=padding)
        together = model(**batch, output_iterations=True)
        real = batch["attention_mask"][1].bool()
        alone = model(
            input_ids=batch["input_ids"][1:, real], attention_mask=torch.ones(1, 6).long(), output_iterations=True
        )
        torch.testing.assert_close(together.logits[1:], alone.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.residuals[1:], alone.residuals, rtol=1e-4, atol=1e-5)
