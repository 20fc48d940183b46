"""What other libraries read of a feedback model, and what they make of its layers, which they find by their class."""

import copy

import pytest
import torch
from builders import NAMES, REPRESENTATIVE, answers, batch_for, targets_for, task_model
from families import TEXT_FAMILIES, randomize_messages, tiny_backbone, tiny_batch, tiny_config
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from torch import nn
from transformers import BertForMaskedLM

from hf_feedback import FeedbackConfig, FeedbackForMaskedLM, FeedbackModel, add_feedback
from hf_feedback.configuration_feedback import BACKBONE_FACTS


@pytest.mark.parametrize("family", [*TEXT_FAMILIES, "vit", "wav2vec2"])
def test_a_config_has_the_facts_of_its_backbone(family):
    backbone = tiny_config(family)
    config = FeedbackConfig(backbone_config=backbone)
    facts, values = backbone.get_text_config(), config.to_dict()
    for name in {*BACKBONE_FACTS} - {"tie_word_embeddings"}:
        if hasattr(facts, name):
            assert getattr(config, name) == values[name] == getattr(facts, name), name
    assert hasattr(config, "max_position_embeddings") == hasattr(facts, "max_position_embeddings")
    assert {"hidden_size", "num_hidden_layers"} <= values.keys()


def test_facts_are_read_again_and_not_written_twice(tmp_path):
    config = FeedbackConfig(backbone_config=tiny_config("bert"), backbone_layers=[0, 2, 3], feedback_rank=8)
    assert config.to_dict()["num_hidden_layers"] == 3
    for again in (FeedbackConfig.from_dict(config.to_dict()), copy.deepcopy(config)):
        assert again.to_dict() == config.to_dict()
    assert not {*BACKBONE_FACTS} & config.to_diff_dict().keys()
    config.save_pretrained(tmp_path)
    assert FeedbackConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert not {*BACKBONE_FACTS} & FeedbackConfig().to_dict().keys()
    for name, value in {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 7}.items():
        with pytest.raises(ValueError, match=f"`{name}` follows from `backbone_config`, where it is .*, got {value}"):
            FeedbackConfig.from_dict({**config.to_dict(), name: value})


def test_vocabulary_size_can_be_set():
    model = task_model("MaskedLM", "backbone")
    model.config.vocab_size = 107
    assert model.config.vocab_size == model.backbone.config.vocab_size == 107


def masked_lm(kind):
    """A masked-LM model: `"backbone"` and `"untied"` keep the backbone's head, `"new"` has a decoder's backbone that
    is not tied itself."""
    torch.manual_seed(0)
    if kind == "new":
        backbone = tiny_backbone("llama", tie_word_embeddings=False)
    else:
        backbone = BertForMaskedLM(tiny_config("bert", tie_word_embeddings=kind == "backbone"))
    return randomize_messages(FeedbackForMaskedLM.from_backbone(backbone, feedback_rank=8, num_iterations=3))


KINDS = ["new", "backbone", "untied"]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_tied_as_the_config_says(kind, tmp_path):
    model = masked_lm(kind)
    model.save_pretrained(tmp_path)
    for one in (model, FeedbackForMaskedLM.from_pretrained(tmp_path)):
        tied = one.get_output_embeddings().weight is one.get_input_embeddings().weight
        assert (
            one.config.tie_word_embeddings == one.config.to_dict()["tie_word_embeddings"] == tied == (kind != "untied")
        )
        assert bool(one._tied_weights_keys) == tied
        assert (one._tied_weights_keys or {}) == one.all_tied_weights_keys


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_that_were_untied_stay_so(kind, tmp_path):
    """As PEFT does where a merged model has other output embeddings than input embeddings."""
    model, batch = masked_lm(kind), tiny_batch()
    output = model.get_output_embeddings()
    output.weight, output.bias = nn.Parameter(output.weight * 1.5), nn.Parameter(output.bias + 1.0)
    model.config.tie_word_embeddings = False
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = FeedbackForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.tie_word_embeddings is False
    torch.testing.assert_close(loaded(**batch).logits, expected)


def test_a_task_model_that_was_untied_is_taken_as_it_is():
    masked_lm = BertForMaskedLM(tiny_config("bert", tie_word_embeddings=True)).eval()
    decoder = masked_lm.cls.predictions.decoder
    decoder.weight = nn.Parameter(-decoder.weight.detach())
    masked_lm.config.tie_word_embeddings = False
    expected = masked_lm(**tiny_batch()).logits
    assert torch.equal(add_feedback(masked_lm)(**tiny_batch()).logits, expected)
    with pytest.raises(TypeError, match="`task_model` must be a loaded transformers model, got a str"):
        add_feedback("bert-base-uncased")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["trainable tokens", "lora"])
def test_trained_tokens_reach_tied_embeddings(kind, method):
    model, batch = masked_lm(kind), tiny_batch()
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    tokens = [*range(5, 50)]
    if method == "lora":
        config = LoraConfig(target_modules=["query", "q_proj"], trainable_token_indices={name: tokens})
    else:
        config = TrainableTokensConfig(target_modules=[name], token_indices=tokens)
    tuned = get_peft_model(model, config).eval()
    before = tuned(**batch).logits
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], 5e-2)
    for _ in range(2):
        optimizer.zero_grad()
        tuned(**batch, **targets_for("MaskedLM")).loss.backward()
        optimizer.step()
    expected = tuned(**batch).logits
    assert (expected - before).abs().max() > 0.1
    merged = tuned.merge_and_unload()(**batch).logits
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()


class Packed(nn.Module):
    """What takes the place of a linear map in tools that quantize: no parameter, and no weight to ask."""

    def __init__(self, linear):
        super().__init__()
        self.maps = [linear]

    def forward(self, x):
        return self.maps[0](x)


@pytest.mark.parametrize("name", NAMES)
def test_linear_maps_can_be_replaced(name):
    model, batch = randomize_messages(task_model(name)), batch_for(name, REPRESENTATIVE.get(name, "bert"))
    expected = answers(model(**batch))
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    for key, value in answers(quantized(**batch)).items():  # eight bits a weight
        assert (value - expected[key]).abs().max() <= 0.1 * expected[key].abs().max()
    for place, module in [*model.named_modules()]:
        if isinstance(module, nn.Linear):
            model.set_submodule(place, Packed(module))
    for key, value in answers(model(**batch)).items():
        torch.testing.assert_close(value, expected[key])


def test_the_maps_of_feedback_are_no_linear_layers():
    for operator in ("additive", "gated", "attention", "temporal", "context", "joint"):
        model = FeedbackModel.from_backbone(tiny_backbone("bert"), feedback_type=operator, feedback_rank=8)
        assert [name for name, module in model.feedback.named_modules() if isinstance(module, nn.Linear)] == []
