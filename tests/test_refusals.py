"""What cannot be looped exactly is refused when the model is built, with the reason and what to do: one table."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from families import FAMILIES, randomize_messages, tiny_backbone, tiny_batch, tiny_config
from tiny_models import tiny_model, tiny_options
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

from hf_feedback import FeedbackConfig, FeedbackModel, UnsupportedBackboneError, add_feedback
from hf_feedback.backbone_layout import is_decoder


def with_layerdrop():
    return tiny_backbone("opt", layerdrop=0.1)


def with_convolution():
    return tiny_backbone("deberta-v2", conv_kernel_size=3)


def without_layers():
    return AutoModel.from_config(AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))


def that_reads_characters():
    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    return AutoModel.from_config(AutoConfig.for_model("canine", **sizes, num_hash_buckets=64))


VIT = dict(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37, image_size=16, patch_size=4
)


def that_masks_at_random():
    return AutoModel.from_config(AutoConfig.for_model("vit_mae", **VIT, mask_ratio=0.5))


def that_keeps_the_grid():
    return AutoModel.from_config(AutoConfig.for_model("vitdet", **VIT))


def that_answers_otherwise():
    backbone = tiny_backbone("bert")
    forward = backbone.forward
    backbone.forward = lambda *args, **kwargs: {"logits": forward(*args, **kwargs).last_hidden_state}
    return backbone


def of_halves():
    sizes = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    config = AutoConfig.for_model("fsmt", src_vocab_size=99, tgt_vocab_size=99, encoder_layerdrop=0.0, **sizes)
    return AutoModel.from_config(config)


def without_a_stack():
    backbone = tiny_backbone("bert")
    backbone.encoder.layer = nn.ModuleList([*backbone.encoder.layer, nn.Identity()])
    return backbone


def with_code_of_its_own():
    backbone = tiny_backbone("bert")
    backbone.config.__class__ = type("NovelConfig", (type(backbone.config),), {"model_type": "novel"})
    return backbone


def with_another_forward(forward):
    backbone = tiny_backbone("bert")
    backbone.encoder.forward = lambda hidden, attention_mask=None, **kwargs: Output(
        last_hidden_state=forward(list(backbone.encoder.layer), hidden, attention_mask)
    )
    return backbone


def with_a_hint():
    def forward(layers, hidden, mask):
        for layer in layers:
            hidden = layer(hidden, hidden.mean() * torch.ones(2, 1, hidden.shape[1], hidden.shape[1]))
        return hidden

    return with_another_forward(forward)


def with_skipped_layers():
    def forward(layers, hidden, mask):
        for layer in layers[::2]:
            hidden = layer(hidden, mask)
        return hidden

    return with_another_forward(forward)


def with_layers_left_out_at_the_top():
    def forward(layers, hidden, mask):
        for layer in layers[:-1]:
            hidden = layer(hidden, mask)
        return hidden

    return with_another_forward(forward)


def that_reads_pictures():
    return tiny_model("llava")


def that_reads_patches():
    return tiny_model("qwen2_5_vl").visual


def that_is_a_part_alone():
    return tiny_model("mllama").language_model


def of_several_streams():
    return tiny_model("deepseek_v4")


def of_shared_keys():
    types = ["sliding_attention", "full_attention"] * 2
    return tiny_model("gemma4_text", num_kv_shared_layers=2, layer_types=types)


def that_dies():
    def forward(layers, hidden, mask):
        raise RuntimeError("out of luck")

    return with_another_forward(forward)


REFUSED = {
    "LayerDrop (OPT as it comes)": (with_layerdrop, "config_overrides={'layerdrop': 0.0}"),
    "DeBERTa-v2's convolution, between looped layers": (with_convolution, "between layers 0 and 1"),
    "models that are no stack of equal layers (ResNet)": (without_layers, "no `num_hidden_layers`"),
    "models whose layers are not in one list": (without_a_stack, "no list of 4 layers"),
    "models that are not part of transformers": (with_code_of_its_own, "not part of transformers"),
    "layers that are given something made of the state": (with_a_hint, "an argument of layer 1 depends"),
    "layers that are skipped or routed": (with_skipped_layers, "out of order"),
    "layers that are not all called": (with_layers_left_out_at_the_top, "called 3 of its 4 layers"),
    "models of characters (CANINE)": (that_reads_characters, "does not give the size of its input_ids"),
    "models whose output is something else": (that_answers_otherwise, "its output has no `last_hidden_state`"),
    "halves that are no models by themselves (FSMT)": (
        of_halves,
        "its FSMTEncoder is not a transformers model by itself",
    ),
    "models that are random in evaluation mode (ViT-MAE)": (that_masks_at_random, "draws random numbers in evaluation"),
    "layers of images that are not tokens (ViTDet)": (
        that_keeps_the_grid,
        "read (2, 32, 4, 4) and not (batch, tokens, 32)",
    ),
    "models that read more than text (LLaVA)": (that_reads_pictures, "its text model alone (`backbone_part='decoder'`"),
    "models of prepared patches (Qwen2.5-VL's vision tower)": (that_reads_patches, "its main input is `hidden_states`"),
    "text models that AutoModel does not load (Mllama's)": (
        that_is_a_part_alone,
        "AutoModel has no model for its MllamaTextConfig",
    ),
    "several streams instead of one (DeepSeek-V4)": (
        of_several_streams,
        "read (2, 8, 4, 64) and not (batch, tokens, 64)",
    ),
    "layers that share keys and values (Gemma 4)": (of_shared_keys, "its layers share what they compute"),
    "models that fail on a tiny batch": (that_dies, "RuntimeError: out of luck"),
}


@pytest.mark.parametrize("refusal", REFUSED)
def test_refused_when_built(refusal, record_property):
    backbone, words = REFUSED[refusal]
    with pytest.raises(UnsupportedBackboneError, match=re.escape(words)) as caught:
        FeedbackModel.from_backbone(backbone(), feedback_rank=8)
    record_property("reason", str(caught.value))


class OwnBert(BertModel):
    """A saved folder would load transformers' own class in its place."""


class OwnConfig(BertConfig):
    model_type = "own_bert"


class RegisteredBert(BertModel):
    config_class = OwnConfig


def test_a_class_that_a_folder_would_not_load_is_refused(tmp_path):
    sizes = tiny_config("bert").to_dict()
    with pytest.raises(UnsupportedBackboneError, match="its code is not part of transformers"):
        FeedbackModel.from_backbone(OwnBert(BertConfig.from_dict(sizes)))
    AutoConfig.register("own_bert", OwnConfig)
    AutoModel.register(OwnConfig, RegisteredBert)
    model = randomize_messages(
        FeedbackModel.from_backbone(RegisteredBert(OwnConfig.from_dict({**sizes, "model_type": "own_bert"})))
    )
    model.save_pretrained(tmp_path)
    loaded = FeedbackModel.from_pretrained(tmp_path)
    assert type(loaded.backbone) is RegisteredBert
    assert torch.equal(loaded(**tiny_batch()).last_hidden_state, model(**tiny_batch()).last_hidden_state)


def test_the_code_of_a_backbone_never_runs(tmp_path):
    """Without code of its own in transformers it is refused, whoever trusts it; with it, that is what is loaded."""
    tiny_backbone("bert").save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('the code ran')\n")
    file, auto_map = tmp_path / "config.json", {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    values = {**json.loads(file.read_text()), "auto_map": auto_map}
    file.write_text(json.dumps(values))
    model = FeedbackModel.from_backbone(tmp_path, backbone_kwargs={"trust_remote_code": True})
    assert type(model.backbone) is BertModel
    file.write_text(json.dumps({**values, "model_type": "unheard-of"}))
    for trust in ({}, {"trust_remote_code": True}):
        with pytest.raises(UnsupportedBackboneError, match="the code of a backbone never runs"):
            FeedbackModel.from_backbone(tmp_path, backbone_kwargs=trust)


def test_above_the_convolution_it_works():
    model = FeedbackModel.from_backbone(with_convolution(), feedback_rank=8, feedback_layers=[1, 3])
    assert model.check_equivalence(tiny_batch()) == 0.0
    assert randomize_messages(model).check_equivalence(tiny_batch()) > 0


def test_above_shared_keys_it_works():
    model = FeedbackModel.from_backbone(of_shared_keys(), feedback_rank=8, feedback_layers=[2, 3])
    assert model.check_equivalence(tiny_batch()) == 0.0
    assert randomize_messages(model).check_equivalence(tiny_batch()) > 0


def test_without_layerdrop_it_works(tmp_path):
    with_layerdrop().save_pretrained(tmp_path)
    model = FeedbackModel.from_backbone(tmp_path, feedback_rank=8, config_overrides={"layerdrop": 0.0})
    assert model.backbone.config.layerdrop == 0.0
    assert torch.isfinite(randomize_messages(model)(**tiny_batch()).last_hidden_state).all()


def test_the_guide_has_every_row():
    """The written table is of these families and refusals, all of them exact."""
    guide = (Path(__file__).parent.parent / "examples" / "guides" / "backbones.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in guide.splitlines() if line.startswith("| ")]
    exact = {row[0]: row[4] for row in rows if len(row) == 7 and row[0] != "family"}
    assert exact == dict.fromkeys(FAMILIES, "yes")
    assert {row[0] for row in rows if len(row) == 2 and row[0] != "what"} == set(REFUSED)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl", "qwen3_vl_moe", "gemma3", "blip-2", "voxtral", "clip"])
def test_the_text_model_inside_a_model_of_more_inputs(model_type, tmp_path):
    """It is found in the whole model, passed by itself, and loaded without the rest."""
    whole = tiny_model(model_type)
    inside = FeedbackModel.from_backbone(copy.deepcopy(whole), feedback_rank=8, backbone_part="decoder")
    model = randomize_messages(FeedbackModel.from_backbone(whole.get_decoder(), feedback_rank=8))
    inside.feedback.load_state_dict(model.feedback.state_dict())
    batch = tiny_batch()
    expected = model(**batch).last_hidden_state
    assert torch.equal(inside(**batch).last_hidden_state, expected)
    inside.save_pretrained(tmp_path)
    loaded = FeedbackModel.from_pretrained(tmp_path)
    assert type(loaded.backbone) is type(model.backbone)
    assert torch.equal(loaded(**batch).last_hidden_state, expected)


@pytest.mark.parametrize("model_type", ["qwen2_vl_text", "gemma3_text", "llama"])
def test_text_models_inside_others_read_from_left_to_right(model_type):
    model = FeedbackModel.from_backbone(tiny_model(model_type), feedback_rank=8)
    assert model.layout.causal
    assert is_decoder(model.config.backbone_config)


def test_the_text_model_of_a_folder_of_more_inputs(tmp_path):
    tiny_model("llava").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackboneError, match="it reads more than text"):
        FeedbackModel.from_backbone(tmp_path, feedback_rank=8)
    model = FeedbackModel.from_backbone(tmp_path, feedback_rank=8, backbone_part="decoder")
    assert type(model.backbone).__name__ == "LlamaModel"
    assert model.check_equivalence(tiny_batch()) == 0.0


def test_a_head_that_reads_more_than_text_is_refused():
    config = AutoConfig.for_model("gemma3", **tiny_options(Gemma3Config))
    for part in ("auto", "decoder"):
        with pytest.raises(UnsupportedBackboneError, match="it reads more than text"):
            add_feedback(Gemma3ForSequenceClassification(config), FeedbackConfig(feedback_rank=8, backbone_part=part))


def test_a_head_that_reads_all_layers_is_refused():
    tiny = tiny_options(Wav2Vec2Config)
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**tiny, use_weighted_layer_sum=True)).eval()
    with pytest.raises(UnsupportedBackboneError, match="its own head sums the states of all layers"):
        add_feedback(model, FeedbackConfig(feedback_rank=8))


def test_a_pooler_that_the_model_cannot_do_without_is_replaced():
    model = FeedbackModel.from_backbone(tiny_model("layoutlm"), feedback_rank=8)
    assert model.check_equivalence(tiny_batch()) == 0.0
    assert not [name for name in model.state_dict() if "pooler" in name]


def test_a_model_around_a_model_is_unwrapped():
    """DPR's encoder is a BERT in two wrappings."""
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    config = AutoConfig.for_model("dpr", **sizes)
    model = FeedbackModel.from_backbone(AutoModel.from_config(config), feedback_rank=8)
    assert type(model.backbone).__name__ == "BertModel"
    assert model.check_equivalence(tiny_batch()) == 0.0
    assert FeedbackModel(model.config).eval().check_equivalence(tiny_batch()) == 0.0
