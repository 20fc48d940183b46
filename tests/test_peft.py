"""PEFT on a feedback model: adapters in the backbone, feedback and head trained in full beside them."""

import copy
import logging
import re

import pytest
import torch
from builders import REPRESENTATIVE, answers, batch_for, targets_for, task_model
from closeness import assert_exact
from families import TEXT_FAMILIES, randomize_messages, tiny_backbone, tiny_batch, tiny_config
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    get_peft_model,
)
from training_runs import rows, write
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_feedback import FeedbackForCausalLM, FeedbackForSequenceClassification, FeedbackModel
from hf_feedback.cli import main
from hf_feedback.training import (
    FeedbackTrainer,
    FeedbackTrainingArguments,
    freeze_parameters,
    from_peft,
    parameter_groups,
    peft_options,
)

METHODS = {
    "lora": lambda model: LoraConfig(r=4, **peft_options(model)),
    "dora": lambda model: LoraConfig(r=4, use_dora=True, **peft_options(model)),
    "ia3": lambda model: IA3Config(feedforward_modules=[], **peft_options(model)),
}


def make():
    return randomize_messages(
        FeedbackForSequenceClassification.from_backbone(
            tiny_backbone("bert"), feedback_rank=8, num_labels=3, num_iterations=3
        )
    )


def train(model, tmp_path, **options):
    args = FeedbackTrainingArguments(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, **options,
    )  # fmt: skip
    rows = [
        {"input_ids": tiny_batch(seed)["input_ids"][0], "attention_mask": torch.ones(9).long(), "labels": seed % 3}
        for seed in range(12)
    ]
    FeedbackTrainer(model=model, args=args, train_dataset=rows).train()
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_train_save_load_merge(method, tmp_path, capsys):
    base, batch = make(), tiny_batch()
    expected = base(**batch).logits
    model = get_peft_model(copy.deepcopy(base), METHODS[method](base)).eval()
    torch.testing.assert_close(model(**batch).logits, expected)
    model.print_trainable_parameters()
    assert "trainable params" in capsys.readouterr().out
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_" in name or "ia3_" in name for name in trainable)
    assert any(".feedback.modules_to_save" in name for name in trainable)
    assert any(".classifier.modules_to_save" in name for name in trainable)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trainable), name
    found = model(**batch).logits
    assert not torch.allclose(found, expected, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match="If it holds PEFT adapters"):
        FeedbackForSequenceClassification.from_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, found)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, found, rtol=1e-4, atol=1e-5)
    assert type(merged) is FeedbackForSequenceClassification
    merged.save_pretrained(tmp_path / "merged")
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert_exact(again.double()(**batch).logits, merged.double()(**batch).logits)


def save_adapters(method, folder):
    """A trained model with its base in `base` and its adapters in `adapters`."""
    make().save_pretrained(folder / "base")
    base = FeedbackForSequenceClassification.from_pretrained(folder / "base")
    model = train(get_peft_model(base, METHODS[method](base)), folder)
    model.save_pretrained(folder / "adapters")
    return model


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dora"])
def test_a_folder_of_adapters_is_loaded_with_its_model(method, tmp_path):
    model = save_adapters(method, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapters")
    assert isinstance(loaded, FeedbackForSequenceClassification)
    torch.testing.assert_close(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)


def test_a_folder_of_adapters_that_would_be_loaded_in_part_is_refused(tmp_path):
    """Of DoRA, transformers leaves out the magnitudes of any model."""
    save_adapters("dora", tmp_path)
    with pytest.raises(OSError, match=r"has not loaded .* whole: 8 of .*magnitude.*`PeftModel.from_pretrained\("):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapters")


@pytest.mark.parametrize("merged", [False, True])
def test_options_that_are_set_later_reach_the_feedback_that_peft_copied(merged):
    plain, batch = make().double(), tiny_batch()
    model = get_peft_model(copy.deepcopy(plain), METHODS["lora"](plain)).double().eval()
    model = model.merge_and_unload() if merged else model
    for options in ({"feedback_scale": 0.25}, {"feedback_damping": 0.5}):
        before = plain(**batch).logits
        for name, value in options.items():
            setattr(plain.config, name, value)
            setattr(model.config, name, value)
        assert not torch.allclose(plain(**batch).logits, before)
        torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)
    other = copy.deepcopy(plain)
    other.config.feedback_scale = 2.0
    assert plain.config.feedback_scale == 0.25
    assert not torch.allclose(other(**batch).logits, plain(**batch).logits)


def test_groups_of_a_wrapped_model():
    model = get_peft_model(make(), METHODS["lora"](make()))
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, 1e-3, backbone_lr=1e-4)}
    assert rates["feedback"] == rates["head"] == 1e-3
    assert rates["layer 2"] == 1e-4
    assert "embeddings" not in rates


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_patterns_read_the_names_without_what_peft_adds(prefix):
    pattern, last = f"^{prefix}backbone.encoder.layer.3.", f"^{prefix}classifier.weight"
    if prefix:  # names as PEFT has them still match too
        last = last.replace("weight", "modules_to_save.default.weight")
    model = get_peft_model(make(), METHODS["lora"](make()))
    rates = {
        g["name"]: g["lr"] for g in parameter_groups(model, 1e-3, learning_rate_mapping={pattern: 2e-3, last: 5e-3})
    }
    assert rates == {
        "layer 0": 1e-3,
        "layer 1": 1e-3,
        "layer 2": 1e-3,
        pattern: 2e-3,
        "feedback": 1e-3,
        "head": 1e-3,
        last: 5e-3,
    }
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    freeze_parameters(model, [pattern, last])
    frozen = trained - {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert frozen == {
        "base_model.model.classifier.modules_to_save.default.weight",
        *(name for name in trained if ".layer.3." in name),
    }


def test_prompts_are_tuned_and_loaded(tmp_path):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model = get_peft_model(make(), config)
    before = model(**tiny_batch()).logits
    train(model, tmp_path)
    assert not torch.allclose(model(**tiny_batch()).logits, before)
    model.save_pretrained(tmp_path / "prompts")
    loaded = PeftModel.from_pretrained(make(), tmp_path / "prompts").eval()
    torch.testing.assert_close(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)


def test_prefix_tuning_is_refused():
    model = get_peft_model(make(), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="prefix-tuning"):
        model(**tiny_batch())


HEAD_MODULES = {
    ("SequenceClassification", "new"): ["classifier"],
    ("SequenceClassification", "backbone"): ["backbone.classifier"],
    ("TokenClassification", "new"): ["classifier"],
    ("QuestionAnswering", "new"): ["qa_outputs"],
    ("QuestionAnswering", "backbone"): ["backbone.qa_outputs"],
    ("MultipleChoice", "new"): ["classifier"],
    ("MaskedLM", "new"): ["lm_head.dense", "lm_head.norm"],
    ("MaskedLM", "backbone"): ["backbone.cls.predictions.transform"],
    ("CausalLM", "backbone"): [],
    ("ImageClassification", "backbone"): ["backbone.classifier"],
    ("AudioClassification", "backbone"): ["backbone.projector", "backbone.classifier"],
}


@pytest.mark.parametrize(("name", "head"), HEAD_MODULES)
def test_options_of_every_head(name, head, tmp_path):
    """What they say is trained, learns; it is all saved; what is tied stays tied."""
    model, batch = randomize_messages(task_model(name, head)), batch_for(name, REPRESENTATIVE.get(name, "bert"))
    options = peft_options(model)
    assert options["modules_to_save"] == ["feedback", *HEAD_MODULES[name, head]]
    start = copy.deepcopy(model)
    expected = answers(model(**batch))
    tuned = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **options))
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-2)
    for _ in range(2):
        tuned.train()(**batch, **targets_for(name)).loss.backward()
        optimizer.step()
    assert [p.shape for p in trainable if p.grad is None] == []
    tuned.eval()
    found = answers(tuned(**batch))
    assert any(not torch.allclose(found[key], expected[key], atol=1e-3) for key in expected)
    core = tuned.base_model.model
    if name == "MaskedLM":
        assert core.get_output_embeddings().weight is core.get_input_embeddings().weight
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(start, tmp_path).eval()
    merged = PeftModel.from_pretrained(copy.deepcopy(loaded.unload()), tmp_path).merge_and_unload()
    loaded = PeftModel.from_pretrained(loaded.unload(), tmp_path).eval()
    for key, value in found.items():
        torch.testing.assert_close(answers(loaded(**batch))[key], value)
        torch.testing.assert_close(answers(merged(**batch))[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_adapters_go_into_the_layers_of_every_family(family):
    model = FeedbackModel.from_backbone(tiny_backbone(family), feedback_rank=8)
    stack = f"backbone.{model.layout.stack}."
    options = peft_options(model)
    tuned = get_peft_model(model, LoraConfig(r=2, **options))
    adapted = {name for name, p in tuned.base_model.model.named_parameters() if "lora_" in name}
    assert adapted
    assert all(name.startswith(stack) for name in adapted)
    touched = {re.match(rf"{re.escape(stack)}(\d+)", name)[1] for name in adapted}
    assert len(touched) == len(model.backbone.get_submodule(model.layout.stack))


# Adapters that were there first


def adapted(method, kind="plain"):
    """A tiny backbone or classifier with an adapter that has learnt something."""
    if kind == "plain":
        base, options = tiny_backbone("bert"), {}
    else:
        torch.manual_seed(0)
        base = AutoModelForSequenceClassification.from_config(tiny_config("bert", num_labels=3)).eval()
        options = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    config = {
        "lora": lambda: LoraConfig(r=4, target_modules=["query", "output.dense"], init_lora_weights=False, **options),
        "ia3": lambda: IA3Config(
            target_modules=["key", "output.dense"],
            feedforward_modules=["output.dense"],
            init_ia3_weights=False,
            **options,
        ),
    }[method]()
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("kind", ["plain", "task", "task model's backbone"])
def test_feedback_after_the_adapters(method, kind, tmp_path, capsys):
    peft_model, batch = adapted(method, kind), tiny_batch()
    head = "backbone" if kind == "task" else "new"
    if head == "backbone":
        expected = peft_model(**batch).logits
    else:
        inner = peft_model.base_model.model.base_model
        expected = inner(**batch).last_hidden_state
    model = from_peft(
        FeedbackForSequenceClassification, peft_model, head=head, num_labels=3, feedback_rank=8, num_iterations=3
    )
    assert isinstance(model, PeftModel)
    core = model.base_model.model

    def answer(of):
        return of(**batch).logits if head == "backbone" else of(**batch, output_hidden_states=True).hidden_states[-1]

    torch.testing.assert_close(answer(model), expected)
    assert core.check_equivalence(batch) == 0.0
    model.print_trainable_parameters()
    assert "trainable params" in capsys.readouterr().out
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name
    found = model(**batch).logits
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, found)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, found, rtol=1e-4, atol=1e-5)


def test_what_from_peft_refuses():
    config = PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=2, token_dim=32, num_layers=4, num_attention_heads=4
    )
    with pytest.raises(ValueError, match="PREFIX_TUNING adapters, which are none of the layers'"):
        from_peft(FeedbackModel, get_peft_model(tiny_backbone("bert"), config))
    two = adapted("lora")
    two.add_adapter("second", LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="one adapter, got default, second"):
        from_peft(FeedbackModel, two)
    with pytest.raises(TypeError, match="use `hf_feedback"):
        FeedbackModel.from_backbone(adapted("lora"))
    backbone = tiny_backbone("bert")
    backbone.add_adapter(LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="holds adapters, which would be lost"):
        FeedbackModel.from_backbone(backbone)


@pytest.mark.parametrize("family", ["roberta", "electra", "mpnet", "xlm-roberta"])
def test_heads_of_several_layers(family, tmp_path):
    """PEFT adds `classifier` by itself for sequence classification; wrappers must not nest."""
    model = randomize_messages(task_model("SequenceClassification", "backbone", family))
    batch = batch_for("SequenceClassification")
    start = copy.deepcopy(model)
    tuned = get_peft_model(model, LoraConfig(r=4, **peft_options(model))).train()
    tuned(**batch, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, p in tuned.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02)
    tuned.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(start, tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, tuned(**batch).logits)


def bert_with(**options):
    torch.manual_seed(0)
    options = {"target_modules": ["query"], "init_lora_weights": False, **options}
    return get_peft_model(tiny_backbone("bert"), LoraConfig(r=4, **options)).eval()


def test_from_peft_keeps_what_was_learnt(tmp_path):
    batch = tiny_batch()
    options = dict(num_labels=3, feedback_rank=8)

    def state(model):
        return model(**batch, output_hidden_states=True).hidden_states[-1]

    plain = bert_with(modules_to_save=["LayerNorm"])
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    merged = bert_with()
    merged.merge_adapter()
    ranked = bert_with(rank_pattern={r"^encoder.layer.0.attention.self.query": 2})
    for model in (plain, merged, ranked):
        expected = model(**batch).last_hidden_state
        wrapped = from_peft(FeedbackForSequenceClassification, model, **options)
        torch.testing.assert_close(state(wrapped), expected)
        assert any("lora_" in name and p.requires_grad for name, p in wrapped.named_parameters())
    whole = bert_with()
    expected = whole(**batch).last_hidden_state
    whole.save_pretrained(tmp_path)
    again = from_peft(
        FeedbackForSequenceClassification, PeftModel.from_pretrained(tiny_backbone("bert"), tmp_path), **options
    )
    torch.testing.assert_close(state(again), expected)
    assert any(p.requires_grad for p in again.parameters())  # though adapters load frozen


SHARED_BY_ALL_LAYERS = {
    "vector bank": VBLoRAConfig(vector_length=4, num_vectors=8, topk=2, target_modules=["query"]),
    "tiny": TinyLoraConfig(target_modules=["query"]),
    "uni": UniLoraConfig(theta_d_length=64, target_modules=["query"]),
}


@pytest.mark.parametrize("method", SHARED_BY_ALL_LAYERS)
def test_from_peft_keeps_what_all_layers_share(method):
    plain = get_peft_model(tiny_backbone("bert").double(), copy.deepcopy(SHARED_BY_ALL_LAYERS[method])).eval()
    untrained = plain(**tiny_batch()).last_hidden_state
    for parameter in plain.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    expected = plain(**tiny_batch()).last_hidden_state
    assert (expected - untrained).abs().max() > 1e-4
    torch.testing.assert_close(from_peft(FeedbackModel, plain)(**tiny_batch()).last_hidden_state, expected)


@pytest.mark.parametrize("merged", [False, True])
def test_embeddings_that_peft_untied_stay_so(merged):
    """The output embeddings keep the weights that the trained input embeddings had before."""
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_config(tiny_config("llama", tie_word_embeddings=True)), config)
    for parameter in tuned.eval().parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    expected = tuned(**tiny_batch()).logits
    if merged:
        model = FeedbackForCausalLM.from_backbone(tuned.merge_and_unload())
    else:
        model = from_peft(FeedbackForCausalLM, tuned)
    torch.testing.assert_close(model(**tiny_batch()).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [({"init_lora_weights": "pissa"}, {}, "changed the weights of the backbone itself"),
     ({}, {"feedback_rank": 999}, "at most the backbone's hidden size 32"),
     ({}, {"feedback_rnk": 8}, "did you mean `feedback_rank`"),
     ({}, {"head": "backbone"}, "takes a transformers model that has its task head"),
     ({}, {"feedback_span": "segment"}, "FeedbackModel does not answer")],
)  # fmt: skip
def test_from_peft_refuses_before_it_takes_apart(options, more, words):
    model, batch = bert_with(**{"init_lora_weights": False, **options}), tiny_batch()
    expected = model(**batch).last_hidden_state
    with pytest.raises(ValueError, match=words):
        from_peft(FeedbackModel, model, **more)
    assert torch.equal(model(**batch).last_hidden_state, expected)


# Adapters without the model that they belong to


@pytest.mark.parametrize("from_folder", [False, True])
def test_adapters_of_a_model_from_no_folder(from_folder, tmp_path, caplog):
    """What is saved of them holds no feedback options; a warning says so where it can still be mended."""
    logging.Logger.warning_once.cache_clear()
    model = make()
    if from_folder:
        model.save_pretrained(tmp_path / "model")
        model = FeedbackForSequenceClassification.from_pretrained(tmp_path / "model")
    tuned = get_peft_model(model, LoraConfig(r=2, **peft_options(model)))
    with caplog.at_level("WARNING", logger="hf_feedback"):
        tuned.save_pretrained(tmp_path / "adapter")
    assert ("a feedback model that was not loaded from a folder" in caplog.text) != from_folder
    logging.Logger.warning_once.cache_clear()
    caplog.clear()
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert caplog.text == ""


@pytest.mark.parametrize("with_feedback", [False, True])
def test_adapters_that_freeze_the_feedback(with_feedback, caplog):
    """The usual config trains no feedback, whose messages would stay zero."""
    logging.Logger.warning_once.cache_clear()
    model = make()
    options = peft_options(model) if with_feedback else dict(target_modules=["query"], task_type="SEQ_CLS")
    tuned = get_peft_model(model, LoraConfig(r=2, **options))
    with caplog.at_level("WARNING", logger="hf_feedback"):
        tuned.eval()(**tiny_batch())
        assert caplog.text == ""
        tuned.train()(**tiny_batch())
    assert ("These adapters freeze the feedback" in caplog.text) != with_feedback


def test_adapters_of_an_option_freeze_the_feedback_without_a_warning(tmp_path, caplog):
    """`freeze` asks for it, and there is no adapter config that the user wrote."""
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level("WARNING", logger="hf_feedback"):
        train(make(), tmp_path, lora_rank=2, freeze=["feedback"])
    assert caplog.text == ""


OTHER_FEEDBACK = {
    "rank": (dict(feedback_rank=4), {}),
    "edges": (dict(feedback_edges=[[3, 0]]), {}),
    "fewer edges": ({}, dict(feedback_edges=[[3, 0]])),
    "fewer sources": (dict(feedback_topology="dense"), {}),
    "operator": (dict(feedback_type="gated"), {}),
    "activation": ({}, dict(feedback_activation="tanh")),
    "sharing": ({}, dict(feedback_sharing="targets")),
}


@pytest.mark.parametrize("kind", OTHER_FEEDBACK)
def test_adapters_of_other_feedback_are_refused(kind, tmp_path):
    theirs, ours = (
        FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), **{"feedback_rank": 8, **options})
        for options in OTHER_FEEDBACK[kind]
    )
    get_peft_model(theirs, LoraConfig(r=2, **peft_options(theirs))).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="saved with other feedback than that of this model, which has `feedback_type`"
    ):
        PeftModel.from_pretrained(ours, tmp_path)


@pytest.mark.parametrize("command", ["predict --text hello", "train --train-file train.csv --output-dir out"])
def test_the_commands_say_that_an_adapter_is_no_model(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", rows(4))
    model = FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), num_labels=3)
    get_peft_model(model, LoraConfig(r=2, **peft_options(model))).save_pretrained("adapter")
    assert main([*command.split(), "--model", "adapter"]) == 2
    error = capsys.readouterr().err
    assert "`model`: the folder adapter holds an adapter of PEFT" in error
    assert "merge_and_unload" in error
