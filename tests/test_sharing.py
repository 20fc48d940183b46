"""Saving, loading, the Auto classes, the pipeline, and folders that work where hf_feedback is not installed."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from builders import labelled_model, run_without_package, task_model, tiny_tokenizer
from closeness import PROBABILITY, assert_exact, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    pipeline,
)

import hf_feedback
from hf_feedback import (
    FeedbackConfig,
    FeedbackForSequenceClassification,
    FeedbackModel,
    UnsupportedBackboneError,
    add_feedback,
)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "deberta-v2", "modernbert", "llama", "qwen3"])
@pytest.mark.parametrize("load", [FeedbackForSequenceClassification, AutoModelForSequenceClassification])
def test_saved_equals_loaded(family, load, tmp_path):
    model = labelled_model(family, feedback_topology="dense")
    model.save_pretrained(tmp_path)
    loaded, info = load.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is FeedbackForSequenceClassification
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    with in_float64():  # what was read from a file is aligned otherwise in memory, which may change bits
        assert_exact(loaded.double()(**tiny_batch()).logits, model.double()(**tiny_batch()).logits)
    assert [file.suffix for file in tmp_path.iterdir() if "model" in file.stem and file.suffix != ".py"] == [
        ".safetensors"
    ]


def test_bfloat16_and_attention_implementation(tmp_path):
    model = labelled_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert_exact(loaded.double()(**tiny_batch()).logits, model.double()(**tiny_batch()).logits)
    wide = {dtype: AutoModel.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, found in wide.items():
        assert {p.dtype for p in found.parameters()} == {dtype}
    eager = FeedbackForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float64
    )
    assert eager.backbone.config._attn_implementation == "eager"
    sdpa = FeedbackForSequenceClassification.from_pretrained(tmp_path, attn_implementation="sdpa", dtype=torch.float64)
    assert sdpa.backbone.config._attn_implementation == "sdpa"
    assert_exact(eager(**tiny_batch()).logits, sdpa(**tiny_batch()).logits)


def test_backbone_in_bfloat16_makes_feedback_in_bfloat16():
    model = FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert").to(torch.bfloat16), feedback_rank=8)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.check_equivalence(tiny_batch()) == 0.0


@in_float64(files=True)
def test_base_model_and_head_read_each_others_folders(tmp_path):
    model = labelled_model()
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is FeedbackModel
    expected = model(**tiny_batch(), output_hidden_states=True).hidden_states[-1]
    assert_exact(base(**tiny_batch()).last_hidden_state, expected)
    base.save_pretrained(tmp_path / "base")
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path / "base")
    assert_exact(again(**tiny_batch(), output_hidden_states=True).hidden_states[-1], expected)


@in_float64(files=True)
def test_backbone_layers_are_picked_once_and_for_all(tmp_path):
    backbone = tiny_backbone("qwen3")
    third = backbone.layers[3].mlp.up_proj.weight.clone()
    model = randomize_messages(
        FeedbackForSequenceClassification.from_backbone(backbone, backbone_layers=[0, 2, 3], feedback_rank=8)
    )
    assert model.config.backbone_config.num_hidden_layers == 4
    assert model.backbone.config.num_hidden_layers == 3
    assert model.backbone.config.layer_types == [model.config.backbone_config.layer_types[i] for i in (0, 2, 3)]
    assert torch.equal(model.backbone.layers[2].mlp.up_proj.weight, third)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_exact(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)
    assert loaded.config.backbone_layers == [0, 2, 3]


def test_a_padding_token_that_is_set_later_reaches_a_backbone_of_fewer_layers():
    """Its own head needs the token to find the last one of each text."""
    model = randomize_messages(task_model("SequenceClassification", "backbone", "llama", backbone_layers=[0, 2]))
    mask, logits = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), []
    for pad in (0, 3):
        model.config.pad_token_id = pad
        ids = torch.tensor([[5, 6, 7, 8], [9, 10, pad, pad]])
        logits.append(model(ids, attention_mask=mask).logits)
        assert model.config.backbone_config.pad_token_id == model.backbone.config.pad_token_id == pad
    torch.testing.assert_close(logits[1], logits[0])


def test_plain_backbone_folder_loads_with_fresh_feedback(tmp_path, caplog):
    tiny_backbone("bert").save_pretrained(tmp_path)
    with caplog.at_level("WARNING", logger="hf_feedback.loading"):
        model = FeedbackForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, num_iterations=4, feedback_rank=8, dtype=torch.float64
        )
    assert "is a plain bert model: adding fresh feedback" in caplog.text
    assert model.config.num_iterations == 4
    assert model.num_labels == 5
    assert model.dtype == torch.float64
    assert model.check_equivalence(tiny_batch()) == 0.0
    with_config = FeedbackModel.from_pretrained(tmp_path, config=FeedbackConfig(num_iterations=7, feedback_rank=8))
    assert with_config.config.num_iterations == 7
    with pytest.raises(ValueError, match="the FeedbackConfig has another `backbone_config`; leave that out"):
        FeedbackModel.from_pretrained(tmp_path, config=FeedbackConfig(backbone_config=tiny_config("bert")))
    with pytest.raises(ValueError, match="did you mean `num_iterations`"):
        FeedbackModel.from_pretrained(tmp_path, num_iteration=3)


def test_messages_of_other_edges_are_refused(tmp_path):
    """They have the same shapes, and would be loaded."""
    edges = [[2, 0], [2, 1]]
    options = dict(feedback_edges=edges, feedback_rank=8)
    model = FeedbackModel.from_backbone(tiny_backbone("bert", num_hidden_layers=4), **options)
    model.backbone.save_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "whole")
    FeedbackModel.from_backbone(tmp_path / "backbone", **options).save_feedback(tmp_path / "alone")
    for folder in (tmp_path / "whole", tmp_path / "alone"):
        assert FeedbackModel.from_pretrained(folder, feedback_edges=edges[::-1]).config.edges() == [(2, 0), (2, 1)]
        with pytest.raises(ValueError, match=r"has the edges \[\(2, 0\), \(2, 1\)\], not \[\(3, 0\), \(3, 1\)\]"):
            FeedbackModel.from_pretrained(folder, feedback_edges=[[3, 0], [3, 1]])
        with pytest.raises(ValueError, match="has the edges"):
            FeedbackModel.from_pretrained(folder, feedback_edges=None, feedback_topology="dense")
        with pytest.raises(ValueError, match="has the edges"):
            AutoModel.from_pretrained(folder, feedback_edges=[[3, 0], [3, 1]])
        config = FeedbackConfig.from_pretrained(folder)
        config.feedback_edges = [[3, 0], [3, 1]]
        with pytest.raises(ValueError, match="has the edges"):
            FeedbackModel.from_pretrained(folder, config=config)


def test_other_layers_than_those_of_the_folder_are_refused(tmp_path):
    """Their weights would be taken for those of the layers that are named."""
    options = dict(feedback_edges=[[2, 0]], feedback_rank=8)
    for name, kept in (("all", None), ("three", [0, 1, 2])):
        FeedbackModel.from_backbone(tiny_backbone("bert"), backbone_layers=kept, **options).save_pretrained(
            tmp_path / name
        )
        assert FeedbackModel.from_pretrained(tmp_path / name, backbone_layers=kept).config.backbone_layers == kept
        for load in (FeedbackModel, AutoModel):
            with pytest.raises(ValueError, match=rf"`backbone_layers`: .* was saved with {re.escape(str(kept))}"):
                load.from_pretrained(tmp_path / name, backbone_layers=[0, 1, 3])


def test_a_config_may_be_the_name_of_a_folder(tmp_path):
    FeedbackModel.from_backbone(tiny_backbone("bert"), feedback_rank=8).save_pretrained(tmp_path)
    assert FeedbackModel.from_pretrained(tmp_path, config=str(tmp_path)).config.feedback_rank == 8
    with pytest.raises(ValueError, match="`config` must be a FeedbackConfig, got a BertConfig"):
        FeedbackModel.from_pretrained(tmp_path, config=tiny_config("bert"))
    changed = FeedbackModel.from_pretrained(tmp_path, backbone_config={"hidden_dropout_prob": 0.3})
    assert changed.backbone.config.hidden_dropout_prob == 0.3
    with pytest.raises(ValueError, match="`num_hidden_layers` follows from `backbone_config`, where it is 4, got 2"):
        FeedbackModel.from_pretrained(tmp_path, num_hidden_layers=2)


def test_a_trained_head_that_is_left_out_is_told_of(tmp_path, caplog):
    classifier = AutoModelForSequenceClassification.from_config(tiny_config("bert"))
    classifier.save_pretrained(tmp_path)
    for backbone in (tmp_path, classifier):
        with caplog.at_level("WARNING", logger="hf_feedback"):
            FeedbackForSequenceClassification.from_backbone(backbone, head="backbone", feedback_rank=8)
            FeedbackModel.from_backbone(tmp_path, feedback_rank=8)
            assert "left out" not in caplog.text
            FeedbackForSequenceClassification.from_backbone(backbone, feedback_rank=8)
        assert "has a head for this task, which is left out" in caplog.text
        caplog.clear()


def test_config_overrides(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path)
    model = FeedbackModel.from_backbone(tmp_path, config_overrides={"hidden_dropout_prob": 0.0}, feedback_rank=8)
    assert model.backbone.encoder.layer[0].output.dropout.p == 0.0
    with pytest.raises(ValueError, match="'hiden_dropout' is not an option of BertConfig"):
        FeedbackModel.from_backbone(tmp_path, config_overrides={"hiden_dropout": 0.0})


def test_pooling_of_a_sentence_transformers_folder(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    model = FeedbackForSequenceClassification.from_backbone(tmp_path, feedback_rank=8)
    assert model.config.pooling == "mean"
    asked = FeedbackForSequenceClassification.from_backbone(tmp_path, feedback_rank=8, pooling="cls")
    assert asked.config.pooling == "cls"


def tuned_model(**changes):
    torch.manual_seed(0)
    config = tiny_config("bert", num_labels=3, **changes)
    config.id2label = {0: "a", 1: "b", 2: "c"}
    return BertForSequenceClassification(config).eval()


@in_float64(files=True)
def test_add_feedback_keeps_the_head(tmp_path):
    tuned, batch = tuned_model(), tiny_batch()
    expected = tuned(**batch).logits
    model = add_feedback(tuned, FeedbackConfig(num_iterations=3, feedback_rank=8))
    assert torch.equal(model(**batch).logits, expected)
    assert model.check_equivalence(batch) == 0.0
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    randomize_messages(model)
    found = model(**batch, output_iterations=True, labels=torch.tensor([0, 2]))
    assert_exact(found.iteration_logits[0], expected)
    assert not torch.allclose(found.logits, expected)
    assert_exact(found.loss, torch.nn.functional.cross_entropy(found.logits, torch.tensor([0, 2])))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_exact(loaded(**batch).logits, found.logits)


@in_float64(files=True)
def test_head_of_the_backbone_from_a_folder(tmp_path):
    tuned = tuned_model()
    tuned.save_pretrained(tmp_path)
    model = FeedbackForSequenceClassification.from_backbone(tmp_path, head="backbone", num_labels=3, feedback_rank=8)
    assert_exact(model(**tiny_batch()).logits, tuned(**tiny_batch()).logits)


def test_add_feedback_refuses_what_it_cannot_wrap():
    with pytest.raises(ValueError, match=r"one of the kinds .* got a BertModel"):
        add_feedback(tiny_backbone("bert"))
    with pytest.raises(ValueError, match="`backbone_config`"):
        add_feedback(tuned_model(), FeedbackConfig(backbone_config=tiny_config("bert")))
    with pytest.raises(ValueError, match="at most the backbone's hidden size 32"):
        add_feedback(tuned_model(), FeedbackConfig(feedback_rank=64))
    with pytest.raises(ValueError, match=r"takes a config or options, got both; set \['feedback_rank'\]"):
        add_feedback(tuned_model(), FeedbackConfig(), feedback_rank=8)
    with pytest.raises(ValueError, match="did you mean `feedback_rank`"):
        add_feedback(tuned_model(), rank=8)


def test_add_feedback_checks_labels_that_are_given():
    for options in (dict(num_labels=5), dict(id2label=dict(enumerate("abcd")))):
        for given in (dict(config=FeedbackConfig(**options)), options):
            with pytest.raises(ValueError, match="the head was trained for the labels"):
                add_feedback(tuned_model(), **given)
    with pytest.raises(ValueError, match="the head was trained for the labels"):
        add_feedback(tuned_model(), num_labels=2)
    several = add_feedback(tuned_model(), FeedbackConfig(problem_type="multi_label_classification"))
    assert several.config.problem_type == "multi_label_classification"
    assert add_feedback(tuned_model(), feedback_rank=8).config.num_labels == 3


def test_a_trained_head_keeps_its_labels(tmp_path):
    tuned = tuned_model()
    tuned.save_pretrained(tmp_path)
    for backbone in (tuned, tmp_path):
        kept = FeedbackForSequenceClassification.from_backbone(backbone, head="backbone", feedback_rank=8)
        assert kept.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert kept(**tiny_batch(), labels=torch.tensor([0, 2])).logits.shape == (2, 3)
        for wrong in ({"num_labels": 4}, {"id2label": {0: "c", 1: "b", 2: "a"}}):
            with pytest.raises(ValueError, match="was trained for the labels"):
                FeedbackForSequenceClassification.from_backbone(backbone, head="backbone", feedback_rank=8, **wrong)
        with pytest.raises(ValueError, match="has its task head"):
            FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), head="backbone")


REFUSED_LABELS = {
    "another number": (dict(num_labels=4), "was trained for the labels"),
    "another order": (dict(id2label={0: "b", 1: "a", 2: "x"}), "was trained for the labels"),
    "another problem": (dict(problem_type="regression"), "was trained for 'single_label_classification'"),
    "two numbers": (dict(num_labels=2, id2label={0: "x", 1: "y", 2: "z"}), "contradicts `id2label`"),
}


@pytest.mark.parametrize("case", REFUSED_LABELS)
def test_labels_that_contradict_a_trained_head(case):
    options, words = REFUSED_LABELS[case]
    tuned = tuned_model(problem_type="single_label_classification")
    with pytest.raises(ValueError, match=words):
        FeedbackForSequenceClassification.from_backbone(tuned, head="backbone", feedback_rank=8, **options)


def test_labels_of_a_head():
    def labels(backbone, **options):
        model = FeedbackForSequenceClassification.from_backbone(backbone, feedback_rank=8, **options)
        return model.config.id2label

    assert labels(tuned_model(), head="backbone", num_labels=3) == {0: "a", 1: "b", 2: "c"}
    renamed = {0: "x", 1: "y", 2: "z"}
    assert labels(tuned_model(), head="backbone", id2label=renamed) == renamed
    assert labels(tiny_backbone("bert"), label2id={"x": 0, "y": 1, "z": 2}) == renamed


def test_options_of_a_saved_model_are_checked(tmp_path):
    labelled_model().save_pretrained(tmp_path)
    for options, words in (
        (dict(num_iterations=0), "`num_iterations` must be an integer of at least 1"),
        (dict(pooling="avg"), "`pooling` must be one of"),
        (dict(feedback_topology="tops"), "`feedback_topology` must be one of"),
        (dict(num_iteration=3), "did you mean `num_iterations`"),
        (dict(config_overrides={"hidden_dropout_prob": 0.5}), "`config_overrides` is for adding feedback to a plain"),
        (dict(backbone_kwargs={"dtype": "float16"}), "`backbone_kwargs` is for adding feedback to a plain backbone"),
    ):
        with pytest.raises(ValueError, match=words):
            FeedbackForSequenceClassification.from_pretrained(tmp_path, **options)
    assert FeedbackModel.from_pretrained(tmp_path, num_iterations=5).config.num_iterations == 5


def test_subfolders(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path / "inner")
    (tmp_path / "inner" / "1_Pooling").mkdir()
    (tmp_path / "inner" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path, subfolder="inner", feedback_rank=8)
    assert model.config.pooling == "cls"
    again = FeedbackForSequenceClassification.from_backbone(
        tmp_path, backbone_kwargs={"subfolder": "inner"}, feedback_rank=8
    )
    assert again.check_equivalence(tiny_batch()) == 0.0


def test_what_a_plain_folder_takes(tmp_path):
    tuned_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`config` must be a FeedbackConfig, got a BertConfig"):
        FeedbackModel.from_pretrained(tmp_path, config=tiny_config("bert"))
    config = FeedbackConfig(head="backbone", feedback_rank=8)
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path, config=config)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    wide = FeedbackModel.from_pretrained(tmp_path, backbone_kwargs={"dtype": torch.float64}, feedback_rank=8)
    assert wide.dtype == torch.float64


def test_a_feedback_model_is_no_backbone():
    with pytest.raises(ValueError, match="is a feedback model already"):
        FeedbackModel.from_backbone(labelled_model())


LEAKS = {
    "token": ("hf_secret", "pass `backbone_kwargs={'token'"),
    "revision": ("abc", "pass `backbone_kwargs={'revision'"),
    "rank": (4, "did you mean `feedback_rank`"),
    "iterations": (4, "did you mean `num_iterations`"),
    "edges": ([[1, 0]], "did you mean `feedback_edges`"),
    "num_iteration": (4, "did you mean `num_iterations`"),
    "banana": (1, "is not an option of `from_backbone`"),
}


@pytest.mark.parametrize("key", LEAKS)
def test_what_is_no_option_is_refused(key):
    value, words = LEAKS[key]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        FeedbackModel.from_backbone(tiny_backbone("bert"), **{key: value})
    assert words in str(caught.value)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("backbone", [None, torch.nn.Linear(2, 2), 3], ids=str)
def test_what_is_no_backbone_is_refused(backbone):
    with pytest.raises(TypeError, match="hub id, a folder or a transformers PreTrainedModel"):
        FeedbackModel.from_backbone(backbone)


def test_padding_token_is_set_as_everywhere():
    model = labelled_model("llama")
    model.config.pad_token_id = 7
    assert model.config.pad_token_id == model.backbone.config.pad_token_id == 7


def test_activations_with_parameters_of_their_own_are_saved_exactly(tmp_path):
    model = labelled_model(feedback_activation="xielu")
    model.save_pretrained(tmp_path)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert_exact(loaded.double()(**tiny_batch()).logits, model.double()(**tiny_batch()).logits)


def test_a_config_alone_makes_a_random_model():
    config = FeedbackConfig(backbone_config=tiny_config("bert"), feedback_rank=8, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert model.check_equivalence(tiny_batch()) == 0.0
    assert AutoModel.from_config(config).eval().check_equivalence(tiny_batch()) == 0.0
    with pytest.raises(ValueError, match="from_backbone"):
        FeedbackModel(FeedbackConfig())


def test_feedback_model_is_no_backbone(tmp_path):
    labelled_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load it with `from_pretrained`"):
        FeedbackModel.from_backbone(tmp_path)


def test_truncated_weights(tmp_path):
    labelled_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OSError, match="damaged or truncated"):
        FeedbackForSequenceClassification.from_pretrained(tmp_path)


def test_foreign_weights(tmp_path):
    labelled_model().save_pretrained(tmp_path)
    tiny_backbone("llama").save_pretrained(tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(OSError, match="do not belong to the config beside them"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_unsupported_backbone_is_refused_by_name(tmp_path):
    config = AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackboneError, match=r"ResNetModel cannot be used .* no `num_hidden_layers`"):
        FeedbackModel.from_backbone(tmp_path, feedback_rank=8)


@in_float64(files=True)
def test_pipeline(tmp_path):
    model, tokenizer = labelled_model(), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answers = pipeline("text-classification", str(tmp_path), top_k=None)(["where is my parcel?", ""])
    logits = model(**tokenizer(["where is my parcel?", ""], padding=True, return_tensors="pt")).logits
    for answer, row in zip(answers, logits.softmax(-1), strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        for i, name in enumerate(("late", "lost", "fine")):
            assert scores[name] == pytest.approx(row[i].item(), abs=PROBABILITY)


@in_float64(files=True)
def test_folder_works_without_the_package(tmp_path):
    model, tokenizer = labelled_model(feedback_topology="dense"), tiny_tokenizer()
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    torch.save(tiny_batch(), tmp_path / "batch.pt")
    printed = run_without_package(
        """
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

        batch = torch.load("batch.pt")
        config = AutoConfig.from_pretrained("out", trust_remote_code=True)
        model = AutoModelForSequenceClassification.from_pretrained("out", trust_remote_code=True)
        first = model(**batch).logits
        (answer,) = model.predict(["where?"])
        assert type(AutoModel.from_pretrained("out", trust_remote_code=True)).__name__ == "FeedbackModel"
        model.save_pretrained("again")
        model = AutoModelForSequenceClassification.from_pretrained("again", trust_remote_code=True)
        torch.save([first, model(**batch).logits], "found.pt")
        classify = pipeline("text-classification", "out", trust_remote_code=True)
        print(config.num_iterations, classify("where?")[0]["label"], answer["label"])
        """,
        tmp_path,
    )
    for found in torch.load(tmp_path / "found.pt"):
        assert_exact(found, model(**tiny_batch()).logits)
    assert printed.split()[0] == "3"
    assert printed.split()[1] in ("late", "lost", "fine")
    assert printed.split()[2] == printed.split()[1]  # `model.predict`, with the tokenizer beside the model


def test_only_what_is_needed_travels(tmp_path):
    labelled_model().save_pretrained(tmp_path)
    travelled = {file.name for file in tmp_path.glob("*.py")}
    package = {file.name for file in Path(hf_feedback.__file__).parent.glob("*.py")}
    networks_of_their_own = {"configuration_fnn.py", "modeling_fnn.py", "fnn_layers.py"}
    assert travelled == package - {"__init__.py", "attaching.py", "cli.py", "registration.py"} - networks_of_their_own
    required = {"torch", "transformers", "safetensors", "packaging", "numpy"}  # transformers needs the last three
    allowed = {*required, *sys.stdlib_module_names}
    for name in travelled:
        for line in (tmp_path / name).read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and not words[1].startswith("."):
                assert words[1].split(".")[0] in allowed, f"{name}: {line}"
