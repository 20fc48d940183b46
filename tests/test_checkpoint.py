"""Feedback-only checkpoints: small, exact, and never on the wrong backbone."""

import threading

import pytest
import torch
from builders import REPRESENTATIVE, answers, batch_for, headed, run_without_package, task_model, tiny_tokenizer
from closeness import PROBABILITY, assert_exact, in_float64
from families import FAMILIES, randomize_messages, tiny_backbone, tiny_batch, tiny_config
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    pipeline,
)

from hf_feedback import (
    FeedbackForCausalLM,
    FeedbackForMaskedLM,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackModel,
    load_feedback,
)


@pytest.fixture
def bert(tmp_path):
    """Folder of a plain backbone, in float64."""
    tiny_backbone("bert").double().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def make(backbone, seed=1, **options):
    options = {"feedback_rank": 8, "num_iterations": 3, "num_labels": 3, **options}
    model = randomize_messages(FeedbackForSequenceClassification.from_backbone(backbone, **options), seed)
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(seed))
    return model


def test_only_feedback_head_and_config_are_written(bert, tmp_path):
    model = make(bert)
    model.save_feedback(tmp_path / "out")
    written = load_file(tmp_path / "out" / "feedback.safetensors")
    assert written.keys() == {name for name in model.state_dict() if not name.startswith("backbone.")}
    for name, tensor in written.items():
        assert torch.equal(tensor, model.state_dict()[name])
    others = {file.name for file in (tmp_path / "out").iterdir() if file.suffix != ".py"}
    assert others == {"config.json", "feedback.safetensors"}


LOADERS = {
    "load_feedback": load_feedback,
    "class": FeedbackForSequenceClassification.from_pretrained,
    "auto": AutoModelForSequenceClassification.from_pretrained,
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_it_fetches_the_backbone_that_it_names(load, bert, tmp_path):
    model, batch = make(bert), tiny_batch()
    model.save_feedback(tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert type(loaded) is FeedbackForSequenceClassification
    assert_exact(loaded(**batch).logits, model(**batch).logits)
    assert not loaded.training
    loaded.save_pretrained(tmp_path / "whole")  # and from there on it is like any other
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"]
    assert_exact(again(**batch).logits, model(**batch).logits)


@headed
@in_float64(files=True)
def test_every_head(name, head, tmp_path):
    family = REPRESENTATIVE.get(name, "bert")
    model, batch = randomize_messages(task_model(name, head)), batch_for(name, family)
    backbone = model.backbone
    model.save_feedback(tmp_path)
    core = {n for n in model.state_dict() if any(part in n for part in ("encoder.layer", ".layers.", ".h."))}
    assert core
    assert not core & load_file(tmp_path / "feedback.safetensors").keys()
    loaded = load_feedback(tmp_path, backbone)
    assert_exact(answers(loaded(**batch)), answers(model(**batch)))


@pytest.mark.parametrize("family", FAMILIES)
@in_float64(files=True)
def test_every_family(family, tmp_path):
    backbone, batch = tiny_backbone(family), tiny_batch(family=family)
    model = randomize_messages(FeedbackModel.from_backbone(backbone, feedback_rank=8, num_iterations=3))
    model.save_feedback(tmp_path)
    loaded = load_feedback(tmp_path, model.backbone)
    assert_exact(loaded(**batch).last_hidden_state, model(**batch).last_hidden_state)
    other = tiny_backbone(family, seed=5)
    with pytest.raises(ValueError, match="its weights are others"):
        load_feedback(tmp_path, other)


def test_several_on_one_backbone(bert, tmp_path):
    batch, names = tiny_batch(), ("a", "b")
    expected = {}
    for seed, name in enumerate(names):
        model = make(bert, seed, feedback_topology=("top", "dense")[seed], num_labels=2 + seed)
        model.save_feedback(tmp_path / name)
        expected[name] = model(**batch).logits
    backbone = AutoModel.from_pretrained(bert)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    models = {name: load_feedback(tmp_path / name, backbone) for name in names}
    models["b"] = load_feedback(tmp_path / "b", models["a"])  # a feedback model stands for its backbone
    some_layers = FeedbackForSequenceClassification.from_backbone(
        AutoModel.from_pretrained(bert), backbone_layers=[0, 2]
    )
    with pytest.raises(ValueError, match=r"holds the layers \[0, 2\] of its backbone alone"):
        load_feedback(tmp_path / "b", some_layers)
    weight = backbone.get_input_embeddings().weight
    for name in (*names, *names):
        assert models[name].get_input_embeddings().weight is weight
        assert_exact(models[name](**batch).logits, expected[name])
    assert backbone.pooler is not None  # it is as it was
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key])


def test_several_at_the_same_time(bert, tmp_path):
    make(bert, 0).save_feedback(tmp_path / "a")
    make(bert, 1, num_iterations=4).save_feedback(tmp_path / "b")
    backbone, batch = AutoModel.from_pretrained(bert), tiny_batch()
    models = [load_feedback(tmp_path / name, backbone) for name in "ab"]
    expected = [model(**batch).logits for model in models]
    wrong = []

    def ask(which):
        for _ in range(20):
            with torch.no_grad():
                if not torch.equal(models[which](**batch).logits, expected[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@in_float64(files=True)
def test_a_head_of_a_task_model_does_not_leak_into_the_next(tmp_path):
    """Two trained heads on one task model: the model itself keeps its own."""
    one = randomize_messages(task_model("SequenceClassification", "backbone"))
    batch = batch_for("SequenceClassification")
    backbone = one.backbone
    plain = backbone(**batch).logits
    one.save_feedback(tmp_path / "a")
    with torch.no_grad():
        one.backbone.classifier.weight.mul_(-2)
    changed = one(**batch).logits
    one.save_feedback(tmp_path / "b")
    with torch.no_grad():
        one.backbone.classifier.weight.div_(-2)
    second = load_feedback(tmp_path / "b", backbone)
    assert_exact(second(**batch).logits, changed)
    assert torch.equal(backbone(**batch).logits, plain)


@in_float64(files=True)
def test_tied_embeddings_are_not_saved_but_stay_tied(tmp_path):
    for head in ("new", "backbone"):
        model = randomize_messages(task_model("MaskedLM", head))
        model.save_feedback(tmp_path / head)
        assert not [n for n in load_file(tmp_path / head / "feedback.safetensors") if n.endswith("decoder.weight")]
        loaded = load_feedback(tmp_path / head, model.backbone)
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert_exact(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_the_backbone_is_known_in_another_precision(saved, loaded, tmp_path):
    tiny_backbone("bert").to(saved).save_pretrained(tmp_path / "bert")
    make(tmp_path / "bert").save_feedback(tmp_path / "out")
    model = load_feedback(tmp_path / "out", dtype=loaded)
    assert {p.dtype for p in model.parameters()} == {loaded}


def test_options_may_change_when_it_is_loaded(bert, tmp_path):
    make(bert).save_feedback(tmp_path / "out")
    model = FeedbackForSequenceClassification.from_pretrained(
        tmp_path / "out", num_iterations=5, attn_implementation="eager"
    )
    assert model.config.num_iterations == 5
    assert model.backbone.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="`num_iterations`: `config` is given too; set the option there"):
        load_feedback(tmp_path / "out", config=model.config, num_iterations=7)
    kept = make(bert, backbone_layers=[0, 2, 3])
    kept.save_feedback(tmp_path / "kept")
    assert_exact(load_feedback(tmp_path / "kept")(**tiny_batch()).logits, kept(**tiny_batch()).logits)
    on_it = load_feedback(tmp_path / "kept", AutoModel.from_pretrained(bert))
    assert_exact(on_it(**tiny_batch()).logits, kept(**tiny_batch()).logits)


def test_another_class_takes_the_feedback_and_makes_a_head(bert, tmp_path, caplog):
    model, batch = make(bert), tiny_batch()
    model.save_feedback(tmp_path / "out")
    states = model(**batch, output_hidden_states=True).hidden_states[-1]
    base, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert_exact(base(**batch).last_hidden_state, states)
    assert info["missing_keys"] == []
    tokens = FeedbackForTokenClassification.from_pretrained(tmp_path / "out")
    assert_exact(tokens(**batch, output_hidden_states=True).hidden_states[-1], states)
    with caplog.at_level("WARNING", logger="hf_feedback.feedback_checkpoint"):
        masked = FeedbackForMaskedLM.from_pretrained(tmp_path / "out")
    assert "has no head for this task" in caplog.text
    assert_exact(masked(**batch, output_hidden_states=True).hidden_states[-1], states)


# What is refused


def test_a_different_backbone_is_refused(bert, tmp_path):
    make(bert).save_feedback(tmp_path / "out")
    others = {
        "its weights are others": tiny_backbone("bert", seed=3),
        "it has `model_type` 'electra'": tiny_backbone("electra"),
        "it has `num_hidden_layers` 3": tiny_backbone("bert", num_hidden_layers=3),
        "it has `hidden_size` 64": tiny_backbone("bert", hidden_size=64),
    }
    for words, other in others.items():
        with pytest.raises(ValueError, match=f"was trained on .*bert.*{words}.*train new feedback"):
            load_feedback(tmp_path / "out", other)
    tiny_backbone("bert", seed=3).save_pretrained(bert)  # the folder it names has become another
    with pytest.raises(ValueError, match="its weights are others"):
        load_feedback(tmp_path / "out")


def test_a_trained_backbone_is_refused(bert, tmp_path):
    model = make(bert)
    with torch.no_grad():
        model.backbone.encoder.layer[0].output.dense.weight[0, 0] += 0.01
    with pytest.raises(ValueError, match="the backbone was trained"):
        model.save_feedback(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="the backbone was trained"):
        model.save_feedback(tmp_path / "out")
    resized = make(bert)
    resized.resize_token_embeddings(105)
    with pytest.raises(ValueError, match="were its embeddings resized"):
        resized.save_feedback(tmp_path / "out")
    assert not (tmp_path / "out").exists()


SOURCES = {
    "as it is": (tiny_backbone, {}),
    "in several files": (tiny_backbone, dict(max_shard_size="20KB")),
    "under a prefix": (lambda family: AutoModelForSequenceClassification.from_config(tiny_config(family)), {}),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backbone_is_not_loaded_again_to_be_compared(source, dtype, tmp_path, monkeypatch):
    build, how = SOURCES[source]
    build("bert").save_pretrained(tmp_path / "bert", **how)
    model = make(tmp_path / "bert", backbone_kwargs={"dtype": dtype})
    with monkeypatch.context() as patch:
        patch.delattr("hf_feedback.feedback_checkpoint.wrap_backbone")
        model.save_feedback(tmp_path / "out")
    expected = model(**tiny_batch()).logits
    torch.testing.assert_close(load_feedback(tmp_path / "out", dtype=dtype)(**tiny_batch()).logits, expected)


def test_files_that_do_not_tell_are_loaded(tmp_path):
    """Layers under other numbers, and tensors that are missing."""
    tiny_backbone("bert").save_pretrained(tmp_path / "bert")
    layers = make(tmp_path / "bert", backbone_layers=[1, 3])
    layers.save_feedback(tmp_path / "layers")
    torch.testing.assert_close(load_feedback(tmp_path / "layers")(**tiny_batch()).logits, layers(**tiny_batch()).logits)
    tensors = load_file(tmp_path / "bert" / "model.safetensors")
    del tensors["embeddings.LayerNorm.bias"]  # new, and zero
    save_file(tensors, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    missing = make(tmp_path / "bert")
    missing.save_feedback(tmp_path / "missing")
    found, expected = (model(**tiny_batch()).logits for model in (load_feedback(tmp_path / "missing"), missing))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        missing.backbone.encoder.layer[0].output.dense.weight.add_(1.0)
    with pytest.raises(ValueError, match="the backbone was trained"):
        missing.save_feedback(tmp_path / "trained")


def test_adapters_are_refused(bert, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(bert), LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="holds adapters"):
        model.save_feedback(tmp_path / "out")


def test_a_head_that_the_given_backbone_ties_is_not_left_out(tmp_path):
    AutoModelForCausalLM.from_config(tiny_config("llama", tie_word_embeddings=True)).save_pretrained(tmp_path / "tied")
    model = FeedbackForCausalLM.from_backbone(tmp_path / "tied", feedback_rank=8)
    model.backbone.lm_head.weight = torch.nn.Parameter(-model.backbone.lm_head.weight.detach())
    model.config.tie_word_embeddings = False
    model.save_feedback(tmp_path / "out")
    assert torch.equal(load_feedback(tmp_path / "out")(**tiny_batch()).logits, model(**tiny_batch()).logits)
    with pytest.raises(OSError, match="do not belong to the config beside them"):
        load_feedback(tmp_path / "out", AutoModelForCausalLM.from_pretrained(tmp_path / "tied"))


def test_it_takes_keywords_of_a_config_and_has_its_name(bert, tmp_path):
    make(bert).save_feedback(tmp_path / "out")
    loaded = load_feedback(tmp_path / "out", output_hidden_states=True, pad_token_id=3)
    assert (loaded.config.output_hidden_states, loaded.config.pad_token_id) == (True, 3)
    assert loaded.name_or_path == str(tmp_path / "out")  # adapters that are saved on it name it


def test_a_backbone_without_a_name_has_to_be_passed(tmp_path):
    model = make(tiny_backbone("bert"))
    model.save_feedback(tmp_path)
    with pytest.raises(ValueError, match="without a name; pass it as `backbone`"):
        load_feedback(tmp_path)


def test_generation_settings_are_those_of_the_whole_model(tmp_path):
    """Also with a backbone that is given, which keeps its own; without a file they are those of the backbone."""
    backbone = AutoModelForCausalLM.from_config(tiny_config("llama", eos_token_id=2))
    backbone.save_pretrained(tmp_path / "llama")
    model = FeedbackForCausalLM.from_backbone(tmp_path / "llama", feedback_rank=8)
    model.generation_config.update(eos_token_id=[3, 5], temperature=0.3, do_sample=True)
    model.save_pretrained(tmp_path / "whole")
    model.save_feedback(tmp_path / "feedback")
    expected = FeedbackForCausalLM.from_pretrained(tmp_path / "whole").generation_config.to_dict()
    assert expected["eos_token_id"] == [3, 5]
    for loaded in (load_feedback(tmp_path / "feedback"), load_feedback(tmp_path / "feedback", backbone)):
        assert loaded.generation_config.to_dict() == expected
    assert backbone.generation_config.eos_token_id == 2
    given = GenerationConfig(eos_token_id=7)
    assert load_feedback(tmp_path / "feedback", generation_config=given).generation_config.eos_token_id == 7
    (tmp_path / "feedback" / "generation_config.json").unlink()
    assert load_feedback(tmp_path / "feedback").generation_config.eos_token_id == 2


OTHER_FEEDBACK = {  # options with which tensors of trained feedback would be left out, or new
    "left out": dict(feedback_type="additive"),
    "new": dict(feedback_type="context"),
    "of another size": dict(feedback_rank=4),
}


@pytest.mark.parametrize(
    "model_class", [FeedbackForSequenceClassification, FeedbackForTokenClassification, FeedbackModel]
)
@pytest.mark.parametrize("case", OTHER_FEEDBACK)
def test_trained_feedback_is_loaded_whole_or_refused(bert, tmp_path, case, model_class):
    model = make(bert, feedback_type="gated")
    model.save_feedback(tmp_path / "feedback")
    model.save_pretrained(tmp_path / "whole")
    for name in ("feedback", "whole"):
        with pytest.raises((OSError, RuntimeError)) as caught:
            model_class.from_pretrained(tmp_path / name, **OTHER_FEEDBACK[case])
        if (name, case) != ("whole", "of another size"):  # which transformers itself refuses
            assert "Load the folder with the options it was saved with, or start anew" in str(caught.value)
        loaded = model_class.from_pretrained(tmp_path / name, num_iterations=4, halting="convergence")
        for key, tensor in model.feedback.state_dict().items():
            assert torch.equal(loaded.feedback.state_dict()[key], tensor)


def test_what_is_missing_or_damaged(bert, tmp_path):
    model = make(bert)
    model.save_feedback(tmp_path / "out")
    file = tmp_path / "out" / "feedback.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(OSError, match="damaged or truncated"):
        load_feedback(tmp_path / "out")
    file.unlink()
    with pytest.raises(OSError, match=r"feedback\.safetensors"):
        load_feedback(tmp_path / "out")
    file.write_bytes(whole)
    with pytest.raises(OSError, match="do not belong to the config beside them"):
        load_feedback(tmp_path / "out", feedback_rank=4)
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds no feedback-only checkpoint"):
        load_feedback(tmp_path / "whole")
    with pytest.raises(ValueError, match="`backbone` is for feedback-only checkpoints"):
        FeedbackForSequenceClassification.from_pretrained(tmp_path / "whole", backbone=tiny_backbone("bert"))
    with pytest.raises(ValueError, match="`dtype` is for loading a backbone"):
        load_feedback(tmp_path / "out", model.backbone, dtype=torch.float16)
    with pytest.raises(TypeError, match="`backbone` must be a hub id"):
        load_feedback(tmp_path / "out", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="did you mean `num_iterations`"):
        load_feedback(tmp_path / "out", num_iteration=3)


def test_a_backbone_that_moved(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make("bert")
    model.save_feedback("out")
    monkeypatch.chdir("/")
    assert_exact(load_feedback(tmp_path / "out")(**tiny_batch()).logits, model(**tiny_batch()).logits)
    bert.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"The backbone that this feedback names, .* pass it as `backbone`"):
        load_feedback(tmp_path / "out")
    assert load_feedback(tmp_path / "out", tmp_path / "elsewhere").check_equivalence(tiny_batch()) > 0


def test_the_rest_of_a_feedback_only_folder(bert, tmp_path, caplog):
    model = make(bert)
    model.save_feedback(tmp_path / "out")
    more = FeedbackForSequenceClassification.from_pretrained(
        tmp_path / "out", num_labels=7, ignore_mismatched_sizes=True
    )
    assert more(**tiny_batch()).logits.shape == (2, 7)
    made = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path / "out"))
    made.save_pretrained(tmp_path / "whole")
    assert FeedbackForSequenceClassification.from_pretrained(tmp_path / "whole").config.num_labels == 3
    half = make(bert)
    half.to(torch.bfloat16)
    half.config.backbone_source = None
    half.save_feedback(tmp_path / "half")
    with pytest.raises(ValueError, match="cannot be compared with float16"):
        load_feedback(tmp_path / "half", bert, dtype=torch.float16)


# Elsewhere


def test_pipeline_and_without_the_package(bert, tmp_path):
    model, batch = make(bert), tiny_batch()
    model.save_feedback(tmp_path / "out")
    tiny_tokenizer().save_pretrained(tmp_path / "out")
    answer = pipeline("text-classification", str(tmp_path / "out"))("where is my parcel?")[0]
    torch.save(batch, tmp_path / "batch.pt")
    printed = run_without_package(
        """
        import torch
        from transformers import AutoModelForSequenceClassification, pipeline

        model = AutoModelForSequenceClassification.from_pretrained("out", trust_remote_code=True)
        torch.save(model(**torch.load("batch.pt")).logits, "found.pt")
        print(pipeline("text-classification", "out", trust_remote_code=True)("where is my parcel?")[0]["score"])
        """,
        tmp_path,
    )
    assert_exact(torch.load(tmp_path / "found.pt"), model(**batch).logits)
    assert float(printed) == pytest.approx(answer["score"], abs=PROBABILITY)


def test_trained_alone(bert, tmp_path):
    """Feedback and head train, the backbone does not: what `save_feedback` is made for."""
    model = make(bert)
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        model.train()(**tiny_batch(), labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    model.eval().save_feedback(tmp_path / "out")
    assert_exact(load_feedback(tmp_path / "out")(**tiny_batch()).logits, model(**tiny_batch()).logits)
