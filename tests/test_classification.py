"""`FeedbackForSequenceClassification`: its inputs, outputs and losses."""

import copy

import pytest
import torch
from closeness import assert_exact, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config
from torch import nn
from transformers import BertForSequenceClassification

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, add_feedback
from hf_feedback.pooling import pool


def make(family="bert", **options):
    options = {"feedback_rank": 8, "num_labels": 3, **options}
    return FeedbackForSequenceClassification.from_backbone(tiny_backbone(family), **options)


@in_float64()
def test_regression_and_several_labels():
    batch = tiny_batch()
    one = make(num_labels=1)
    loss = one(**batch, labels=torch.tensor([1, 2])).loss
    assert_exact(loss, ((one(**batch).logits.squeeze(-1) - torch.tensor([1.0, 2.0])) ** 2).mean())
    several = make(problem_type="multi_label_classification")
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    logits = several(**batch).logits
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert_exact(several(**batch, labels=targets).loss, expected)


@in_float64()
def test_pairs_and_embeddings_as_input():
    model = randomize_messages(make())
    batch = tiny_batch()
    types = torch.zeros_like(batch["input_ids"])
    types[:, 4:] = 1
    assert not torch.equal(model(**batch, token_type_ids=types).logits, model(**batch).logits)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    assert_exact(found, model(**batch).logits)
    without_types = randomize_messages(make("llama"))
    assert torch.equal(without_types(**batch, token_type_ids=types).logits, without_types(**batch).logits)


@in_float64()
def test_output_iterations():
    model, batch = randomize_messages(make(num_iterations=4)), tiny_batch()
    found = model(**batch, output_iterations=True)
    assert len(found.iteration_logits) == 4
    for k, logits in enumerate(found.iteration_logits, 1):
        assert_exact(logits, model(**batch, num_iterations=k).logits)
    assert found.residuals.shape == (2, 3)
    assert (found.residuals > 0).all()
    assert found.iterations.tolist() == [4, 4]
    one = model(**batch, num_iterations=1, output_iterations=True)
    assert len(one.iteration_logits) == 1
    assert one.residuals.shape == (2, 0)
    quiet = model(**batch)
    assert quiet.iteration_logits is quiet.residuals is quiet.iterations is None
    fresh = make(num_iterations=3)
    assert fresh(**batch, output_iterations=True).residuals.abs().max() == 0


def test_tuple_output():
    model, batch = make(), tiny_batch()
    found = model(**batch, labels=torch.tensor([0, 1]), return_dict=False)
    assert isinstance(found, tuple)
    assert len(found) == 2
    assert found[1].shape == (2, 3)


def test_dropout_inside_the_messages():
    model, batch = randomize_messages(make(feedback_dropout=0.5)), tiny_batch()
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module is not model.feedback.sources["3"].dropout:
            module.p = 0.0
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    assert torch.equal(model(**batch, num_iterations=1).logits, model(**batch, num_iterations=1).logits)


@in_float64()
def test_last_token_without_a_mask():
    model = randomize_messages(make("llama"))
    batch = tiny_batch()
    alone = model(input_ids=batch["input_ids"][1:, :6]).logits
    padded = model(input_ids=batch["input_ids"][1:]).logits  # padding is known by its token
    assert_exact(padded, alone)


@in_float64()
def test_whole_number_targets_for_several_labels():
    model = make(problem_type="multi_label_classification")
    targets = torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert_exact(model(**tiny_batch(), labels=targets).loss, model(**tiny_batch(), labels=targets.float()).loss)


def test_check_equivalence_leaves_modes_alone():
    model = make().train()
    model.backbone.eval()
    model.check_equivalence(tiny_batch())
    assert model.training
    assert not model.backbone.training


def test_the_mean_of_many_tokens_in_half_precision():
    """Their sum is more than float16 holds; bfloat16 cannot count them."""
    hidden, mask = torch.full((1, 4096, 2), 40.0), torch.ones(1, 4096)
    mask[:, 3001:] = 0
    for dtype in (torch.float16, torch.bfloat16):
        assert pool(hidden.to(dtype), mask, "mean").tolist() == [[40.0, 40.0]]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_targets_are_not_rounded_in_half_precision(problem_type, half):
    """bfloat16 has 256 and 258, float16 2050 and 2052; transformers' own losses read the targets as they are."""
    several = problem_type == "multi_label_classification"
    config = tiny_config("bert", num_labels=3 if several else 1, problem_type=problem_type)
    torch.manual_seed(0)
    plain = BertForSequenceClassification(config).eval()
    model = add_feedback(copy.deepcopy(plain), FeedbackConfig())
    targets = torch.tensor([[0.1, 0.7, 0.3], [0.9, 0.001, 0.6]] if several else [257.0, 2051.0])
    with torch.autocast("cpu", half):
        output, expected = (one(**tiny_batch(), labels=targets) for one in (model, plain))
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss)
    loss = nn.functional.binary_cross_entropy_with_logits if several else nn.functional.mse_loss
    torch.testing.assert_close(output.loss, loss(output.logits.float().squeeze(-1), targets))
    output = model.to(half)(**tiny_batch(), labels=targets)  # all of the model
    torch.testing.assert_close(output.loss, loss(output.logits.float().squeeze(-1), targets))
    output.loss.backward()
    assert model.backbone.classifier.weight.grad.isfinite().all()
