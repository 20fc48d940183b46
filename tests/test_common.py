"""Properties that transformers' own common model tests check."""

import copy

import pytest
import torch
from families import speak, tiny_backbone, tiny_batch, tiny_config
from transformers import AutoModelForSequenceClassification

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, FeedbackModel, add_feedback

LABELS = torch.tensor([0, 2])


def make(family="bert", cls=FeedbackForSequenceClassification, **options):
    options = {"feedback_rank": 8, "num_iterations": 3, **options}
    return speak(cls.from_backbone(tiny_backbone(family), **options))


def make_on_head(family="bert", **options):
    torch.manual_seed(0)
    tuned = AutoModelForSequenceClassification.from_config(tiny_config(family, num_labels=3)).eval()
    return speak(add_feedback(tuned, FeedbackConfig(feedback_rank=8, num_iterations=3, **options)))


@pytest.mark.parametrize("build", [make, make_on_head])
@pytest.mark.parametrize("layers", [None, [0, 1, 3]], ids=["all layers", "some layers"])
def test_resized_embeddings(build, layers, tmp_path):
    model, batch = build(backbone_layers=layers), tiny_batch()
    expected = model(**batch).logits
    model.resize_token_embeddings(120)
    assert model.get_input_embeddings().num_embeddings == 120
    assert model.config.vocab_size == model.backbone.config.vocab_size == 120
    torch.testing.assert_close(model(**batch).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().num_embeddings == 120
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_input_embeddings_can_be_replaced():
    model = make()
    new = torch.nn.Embedding(99, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert model.backbone.get_input_embeddings() is new


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(family, dtype):
    model, batch = make(family), tiny_batch()
    expected = model(**batch).logits
    model.to(dtype)
    found = model(**batch, labels=torch.tensor([0, 1]))
    assert found.logits.dtype == dtype
    torch.testing.assert_close(found.logits.float(), expected, rtol=0.1, atol=0.1)
    found.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    fresh = FeedbackModel.from_backbone(tiny_backbone(family).to(dtype), feedback_rank=8, num_iterations=4)
    assert fresh.check_equivalence(batch) == 0.0


@pytest.mark.parametrize("family", ["bert", "llama", "modernbert"])
def test_autocast(family):
    model, batch = make(family), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, labels=torch.tensor([0, 1])).loss
        fresh = FeedbackModel.from_backbone(tiny_backbone(family), feedback_rank=8, num_iterations=3)
        assert fresh.check_equivalence(batch) == 0.0
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert model.feedback.sources["3"].up.weight.grad.abs().max() > 0


def test_feed_forward_chunking():
    model, batch = make(), tiny_batch()
    expected = model(**batch).logits
    for layer in model._layers():
        layer.chunk_size_feed_forward = 3
    torch.testing.assert_close(model(**batch).logits, expected)


def test_device_map(tmp_path):
    model, batch = make(), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("device_map", "warns"), [({"": "cpu"}, False), ({"a": 0, "b": "cpu"}, True), ({"": "disk"}, True)], ids=str
)
def test_offloaded_layers_are_warned_of(device_map, warns, caplog):
    backbone = tiny_backbone("bert")
    backbone.hf_device_map = device_map
    with caplog.at_level("WARNING", logger="hf_feedback.loading"):
        FeedbackModel.from_backbone(backbone, feedback_rank=8)
    assert ("loaded anew in every iteration" in caplog.text) == warns


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "qwen3"])
def test_one_by_one_equals_a_batch(family):
    model, batch = make(family), tiny_batch()
    together = model(**batch).logits
    for i in range(2):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        torch.testing.assert_close(model(**one).logits, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_sdpa_equals_eager():
    model, batch = make(), tiny_batch()
    expected = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**batch).logits, expected)


def test_output_flags_of_the_config():
    model, batch = make(), tiny_batch()
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 5
    model.config.output_hidden_states = False
    assert model(**batch).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(**batch), tuple)


def test_initialization_is_what_it_says():
    """Also when a config alone makes the model, and on the meta device."""
    config = FeedbackConfig(backbone_config=tiny_config("bert"), feedback_rank=8, num_labels=3)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    source = model.feedback.sources["3"]
    assert source.up.weight.abs().max() == 0
    assert source.activation.beta.tolist() == [1.0] * 3
    assert source.down.weight.std().item() == pytest.approx(32**-0.5, rel=0.15)
    assert source.norm.weight.tolist() == [1.0] * 32
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)
    with torch.device("meta"):
        empty = FeedbackForSequenceClassification(copy.deepcopy(config))
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_gradients_reach_every_parameter():
    """Nothing in a feedback model is idle, as distributed training demands."""
    model = make(feedback_topology="dense").train()
    model(**tiny_batch(), labels=LABELS % 2).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
