"""What a report notes of a model's iterations, against plain loops over the model's own outputs."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from builders import EDGES, feedback_model
from families import tiny_batch

from hf_feedback import FeedbackForMultipleChoice, FeedbackForSequenceClassification, FeedbackForTokenClassification
from hf_feedback.connections import CONNECTIONS
from hf_feedback.evaluation.report.observation import observe
from hf_feedback.evaluation.report.token_traces import trace_tokens
from hf_feedback.training.iteration_logs.message_recorder import record_attention, record_messages, swish_betas

CLASSIFIER = FeedbackForSequenceClassification


def padded_batch():
    """Two texts, the second shorter."""
    batch = tiny_batch()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, -3:] = 0
    return batch


def split_by_row(batch):
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(len(batch["input_ids"]))]


@pytest.mark.parametrize("halting", ["none", "convergence"])
def test_answers_and_residuals_are_those_of_every_iteration(halting):
    model = feedback_model(CLASSIFIER, halting=halting, halting_threshold=10.0)
    batch, labels = padded_batch(), torch.tensor([2, 0])
    batches = [{**row, "labels": labels[i : i + 1]} for i, row in enumerate(split_by_row(batch))]
    observation = observe(model, batches, num_iterations=5)
    model.config.halting, expected = "none", []
    for k in range(1, 6):
        expected.append(torch.cat([model(**row, num_iterations=k).logits for row in split_by_row(batch)]).softmax(-1))
    torch.testing.assert_close(
        torch.from_numpy(observation.answers.probabilities), torch.stack(expected).float().detach()
    )
    assert observation.answers.labels.tolist() == [2, 0]
    assert observation.examples.tolist() == [0, 1]
    assert observation.numbers.tolist() == [0, 0]
    residuals = torch.cat([model(**row, num_iterations=5, output_iterations=True).residuals for row in batches])
    torch.testing.assert_close(torch.from_numpy(observation.residuals), residuals.float())


def test_halting_is_on_again_afterwards():
    model = feedback_model(CLASSIFIER, halting="convergence")
    observe(model, [{**tiny_batch(), "labels": torch.tensor([0, 1])}], num_iterations=2)
    assert model.config.halting == "convergence"


def test_each_labelled_token_is_an_item():
    model = feedback_model(FeedbackForTokenClassification)
    labels = torch.full((2, 9), -100)
    labels[0, 2], labels[0, 5], labels[1, 3] = 1, 2, 0
    observation = observe(model, [{**tiny_batch(), "labels": labels}], num_iterations=2)
    assert observation.answers.labels.tolist() == [1, 2, 0]
    assert observation.examples.tolist() == [0, 0, 1]
    assert observation.numbers.tolist() == [0, 1, 0]
    logits = model(**tiny_batch(), num_iterations=2).logits
    expected = torch.stack([logits[0, 2], logits[0, 5], logits[1, 3]]).softmax(-1).float().detach()
    torch.testing.assert_close(torch.from_numpy(observation.answers.probabilities[1]), expected)


def test_choices_are_classes():
    batch = {key: torch.stack([value, value.flip(0)], 1) for key, value in tiny_batch().items()}
    model = feedback_model(FeedbackForMultipleChoice)
    batch["labels"] = torch.tensor([1, 0])
    observation = observe(model, [batch, batch], num_iterations=3)
    assert observation.answers.probabilities.shape == (3, 4, 2)
    assert observation.examples.tolist() == [0, 1, 2, 3]
    moved = model(**batch, num_iterations=3, output_iterations=True).residuals  # of every choice
    most = moved.view(2, 2, 2).amax(1).detach().float().numpy()
    np.testing.assert_allclose(observation.residuals, np.concatenate((most, most)), rtol=1e-6)


def test_a_solver_that_ends_early_has_the_same_answer_from_then_on():
    options = dict(gradient="implicit", fixed_point_tolerance=0.5, scale=0.01)
    model = feedback_model(CLASSIFIER, **options)
    observation = observe(model, [{**tiny_batch(), "labels": torch.tensor([0, 1])}], num_iterations=8)
    assert observation.answers.probabilities.shape[0] == 8
    assert (observation.answers.probabilities[-1] == observation.answers.probabilities[-2]).all()
    assert observation.residuals.shape == (2, 7)


@pytest.mark.parametrize("operator", [*CONNECTIONS, "additive+context"])
def test_messages_have_the_size_of_what_they_add(operator):
    """By a loop over targets: with one source, the sum of the messages to a target is the message of its edge."""
    model = feedback_model(feedback_edges=[[3, 0], [3, 2]], feedback_type=operator)
    batch, added = padded_batch(), {}
    add_messages, iteration = type(model.feedback).add_messages, [1]

    def measure(x, target, source_messages, context):
        result = add_messages(model.feedback, x, target, source_messages, context)
        if source_messages is not None or model.feedback.acts_in_first_iteration:
            real = batch["attention_mask"] != 0
            norms, inputs = (result - x).norm(dim=-1)[real], x.norm(dim=-1)[real]
            added[target, iteration[0]] = (norms.mean().item(), (norms / inputs).mean().item())
        return result

    model.feedback.add_messages = measure
    hook = model.feedback.register_forward_pre_hook(lambda *_: iteration.__setitem__(0, iteration[0] + 1))
    model(**batch, num_iterations=3)
    del model.feedback.add_messages
    hook.remove()
    with record_messages(model) as record:
        model(**batch, num_iterations=3)
    for target in (0, 2):
        norms, shares = record.means((3, target), 3)
        measured = {(target, k): (norms[k - 1], shares[k - 1]) for k in (1, 2, 3) if norms[k - 1] is not None}
        expected = {key: sizes for key, sizes in added.items() if key[0] == target}
        assert measured.keys() == expected.keys()
        for key, sizes in expected.items():
            assert measured[key] == pytest.approx(sizes, rel=1e-5)


def test_every_edge_has_its_own_size_and_nothing_stays_on_the_model():
    model = feedback_model()
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    with record_messages(model) as record:
        model(**padded_batch(), num_iterations=2)
        model(**padded_batch(), num_iterations=2)
    assert {edge for edge, _ in record.sizes} == {tuple(edge) for edge in EDGES}
    assert {k for _, k in record.sizes} == {2}
    assert all(size.count == 2 * 15 for size in record.sizes.values())
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == before
    assert not model._forward_pre_hooks
    assert not model.feedback._forward_pre_hooks


def test_a_recording_within_another_one():
    model, counts = feedback_model(), []
    with record_messages(model) as outer:
        model(**padded_batch(), num_iterations=2)
        with record_messages(model) as inner:
            model(**padded_batch(), num_iterations=2)
        model(**padded_batch(), num_iterations=2)
    for record in (outer, inner):
        counts.append({size.count for size in record.sizes.values()})
    assert counts == [{3 * 15}, {15}]


def test_weights_shared_between_targets_are_told_apart_by_target():
    model = feedback_model(feedback_edges=[[3, 0], [3, 2]], feedback_sharing="targets")
    with record_messages(model) as record:
        model(**padded_batch(), num_iterations=2)
    assert {edge for edge, _ in record.sizes} == {(3, 0), (3, 2)}


def test_betas_are_those_of_the_edges():
    model = feedback_model()
    betas = {(2, 0): model.feedback.connection(2).activation.beta[0].item()}
    betas |= {(3, t): model.feedback.connection(3).activation.beta[i].item() for i, t in enumerate((0, 2))}
    assert swish_betas(model) == betas
    assert swish_betas(feedback_model(feedback_activation="gelu")) == {}


def test_attention_weights_of_messages_give_what_the_message_reads():
    """The weights times the values are what scaled dot-product attention returns."""
    model = feedback_model(feedback_type="attention", feedback_heads=2, feedback_activation="linear")
    batch, seen = padded_batch(), []
    operator = model.feedback.connection(2)
    hook = operator.dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    inputs = []
    combine = operator.combine

    def keep(*args):
        inputs.append(args)
        return combine(*args)

    operator.combine = keep
    model(**batch, num_iterations=2)
    hook.remove()
    del operator.combine
    projected, edge, x, context = inputs[0]
    weights = operator.attention_weights(projected, edge, x, context)
    value = projected.squeeze(-2)[..., 8:].unflatten(-1, (2, -1))
    expected = torch.einsum("bhtu,buhr->bthr", weights, value).flatten(2)
    torch.testing.assert_close(seen[-1][..., 0, :], expected)
    assert (weights[1, :, :6, 6:] == 0).all()  # padding
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_attention_is_recorded_by_iteration_and_edge():
    model = feedback_model(feedback_type="attention+additive")
    with record_attention(model) as weights:
        model(**padded_batch(), num_iterations=3)
    assert {k: len(edges) for k, edges in weights.items()} == {2: 3, 3: 3}
    with record_attention(feedback_model()) as weights:
        feedback_model()(**padded_batch())
    assert weights == {}


TRACED = [
    ("bert", "additive"),
    ("bert", "attention"),
    ("llama", "additive"),
    ("xlnet", "additive"),
    ("lfm2", "additive"),
]


WITHOUT_ATTENTION = ["xlnet", "lfm2"]
FINAL_NORMS = {"llama": "norm", "lfm2": "embedding_norm"}  # `hidden_states` end after them


def last_states(model, text, norm, k):
    """`(T, d)`, the output of the last layer in iteration k."""
    found = []
    with (
        nullcontext()
        if norm is None
        else model.backbone.get_submodule(norm).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    ):
        output = model(**text, num_iterations=k, output_hidden_states=True)
    return found[-1][0] if found else output.hidden_states[4][0]


@pytest.mark.parametrize(("family", "operator"), TRACED)
def test_tokens_move_as_their_states_do(family, operator):
    model = feedback_model(CLASSIFIER, family, torch.float32, feedback_type=operator)
    text = split_by_row(tiny_batch())[0]
    trace = trace_tokens(model, text, num_iterations=4)
    states = [last_states(model, text, FINAL_NORMS.get(family), k) for k in range(1, 5)]
    for k in range(3):
        for t in range(9):
            moved = (states[k + 1][t] - states[k][t]).norm() / states[k + 1][t].norm()
            assert trace.movement[k, t].item() == pytest.approx(moved.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("family", "operator"), [(family, operator) for family, operator in TRACED if family not in WITHOUT_ATTENTION]
)
def test_tokens_attend_to_tokens(family, operator):
    model = feedback_model(CLASSIFIER, family, torch.float32, feedback_type=operator)
    trace = trace_tokens(model, split_by_row(tiny_batch())[0], num_iterations=4)
    assert [tuple(one.shape) for one in trace.attention] == [(9, 9)] * 3
    assert all(one.sum(-1).tolist() == pytest.approx([1.0] * 9, abs=1e-5) for one in trace.attention)
    assert trace.attention_source.startswith("the messages" if operator == "attention" else "layer 3")


@pytest.mark.parametrize("family", WITHOUT_ATTENTION)
def test_a_backbone_whose_attention_cannot_be_read_gives_none(family):
    model = feedback_model(CLASSIFIER, family, torch.float32)
    assert trace_tokens(model, split_by_row(tiny_batch())[0], num_iterations=4).attention == []


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_token_alone_moves_as_its_text(family):
    """Also where a norm follows the last layer, which is not part of the loop."""
    model = feedback_model(CLASSIFIER, family, torch.float32, feedback_edges=[[3, 0]])
    text = {name: value[:1, :1] for name, value in tiny_batch().items()}
    residuals = model(**text, num_iterations=4, output_iterations=True).residuals[0]
    torch.testing.assert_close(trace_tokens(model, text, num_iterations=4).movement[:, 0], residuals.detach())


def test_at_a_fixed_point_tokens_stay_and_attend_as_they_did():
    options = dict(feedback_type="attention", gradient="implicit", fixed_point_tolerance=1e-3)
    model = feedback_model(CLASSIFIER, dtype=torch.float32, scale=0.02, **options)
    text = split_by_row(tiny_batch())[0]
    trace = trace_tokens(model, text, num_iterations=12)
    steps = model(**text, num_iterations=12, output_iterations=True).residuals.shape[1]
    assert 1 <= steps < 11
    assert trace.movement.shape == (11, 9)
    assert len(trace.attention) == 11
    assert (trace.movement[:steps] > 0).all()
    assert (trace.movement[steps:] == 0).all()
    assert torch.equal(trace.attention[-1], trace.attention[steps - 1])


def test_the_attention_implementation_is_as_before():
    model = feedback_model(CLASSIFIER)
    before = model.backbone.config._attn_implementation
    trace_tokens(model, split_by_row(tiny_batch())[0], num_iterations=2)
    assert model.backbone.config._attn_implementation == before


def test_a_text_in_several_segments_has_no_trace():
    options = dict(feedback_span="segment", segment_length=6, segment_special_tokens=[0, 0], segment_overlap=0)
    model = feedback_model(CLASSIFIER, **options)
    assert trace_tokens(model, split_by_row(padded_batch())[0], num_iterations=2) is None


def test_the_trace_of_one_segment_shows_attention_to_tokens():
    """And not that of segment memory, which is to the summaries of segments."""
    options = dict(feedback_span="segment", segment_length=16, segment_special_tokens=[0, 0], segment_overlap=0)
    model = feedback_model(CLASSIFIER, dtype=torch.float32, feedback_type="memory", **options)
    trace = trace_tokens(model, split_by_row(tiny_batch())[0], num_iterations=2)
    assert trace.attention_source.startswith("layer 3")
    (weights,) = trace.attention
    assert weights.shape[0] == weights.shape[1] == trace.movement.shape[1]
