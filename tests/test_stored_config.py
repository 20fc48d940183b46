"""What stands in a config file: labels by their number, values of the right type and size, and nothing that switches on
code."""

import json

import pytest
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config
from transformers import AutoConfig, BertForSequenceClassification, pipeline

from hf_feedback import (
    FeedbackConfig,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FNNConfig,
    add_feedback,
)

CONFIGS = {"feedback": lambda: FeedbackConfig(backbone_config=tiny_config("bert")), "from scratch": FNNConfig}
TWELVE = [f"class {number}" for number in range(12)]


def edited(folder, **changes):
    """Writes other values into the config of a folder."""
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "left out"}))


# Labels


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("order", ["by text", "reversed"])
def test_a_class_has_the_number_that_is_its_key(kind, order):
    keys = sorted(map(str, range(12))) if order == "by text" else [str(number) for number in reversed(range(12))]
    values = {**CONFIGS[kind]().to_dict(), "id2label": {key: TWELVE[int(key)] for key in keys}, "label2id": None}
    config = type(CONFIGS[kind]()).from_dict(json.loads(json.dumps(values)))
    assert list(config.id2label.items()) == list(enumerate(TWELVE))
    assert config.label2id == {name: number for number, name in enumerate(TWELVE)}


LABELS = {
    # what is given → names by number
    "label2id alone": (dict(label2id={"yes": 1, "no": 0}), {0: "no", 1: "yes"}),
    "label2id as text": (dict(label2id={"yes": "1", "no": "0"}), {0: "no", 1: "yes"}),
    "id2label alone": (dict(id2label={"1": "yes", "0": "no"}), {0: "no", 1: "yes"}),
    "both": (dict(id2label={1: "yes", 0: "no"}, label2id={"no": "0", "yes": "1"}), {0: "no", 1: "yes"}),
    "made-up label2id": (dict(id2label={0: "a", 1: "b"}, label2id={"LABEL_0": 0, "LABEL_1": 1}), {0: "a", 1: "b"}),
    "made-up id2label": (dict(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={"b": 1, "a": 0}), {0: "a", 1: "b"}),
    "names that are numbers": (dict(id2label={0: 5, 1: 7}), {0: "5", 1: "7"}),
    "two classes of one name": (dict(id2label={0: "crane", 1: "crane"}), {0: "crane", 1: "crane"}),
    "their number": (dict(num_labels=3), {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
    "nothing": ({}, {0: "LABEL_0", 1: "LABEL_1"}),
}


@pytest.mark.parametrize("config_class", [FeedbackConfig, FNNConfig])
@pytest.mark.parametrize("case", LABELS)
def test_labels_are_filled_in_from_what_is_given(case, config_class):
    options, expected = LABELS[case]
    config = config_class(**options)
    assert list(config.id2label.items()) == list(expected.items())
    assert config.label2id == {name: number for number, name in expected.items()}
    again = config_class.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert (again.id2label, again.label2id) == (config.id2label, config.label2id)


@pytest.mark.parametrize("config_class", [FeedbackConfig, FNNConfig])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(num_labels=3), ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (dict(num_labels=2), ["no", "yes"]),
        (dict(id2label={0: "a", 1: "b", 2: "c"}), ["a", "b", "c"]),
        (dict(label2id={"b": 1, "a": 0}), ["a", "b"]),
    ],
)
def test_labels_that_are_given_replace_those_of_a_folder(config_class, given, expected, tmp_path):
    config_class(id2label={0: "no", 1: "yes"}).save_pretrained(tmp_path)
    config = config_class.from_pretrained(tmp_path, **given)
    assert list(config.id2label.values()) == expected
    assert config.label2id == {name: number for number, name in enumerate(expected)}


CONTRADICTIONS = {
    "other numbers": (dict(id2label={0: "a", 1: "b"}, label2id={"a": 1, "b": 0}), "`label2id` contradicts `id2label`"),
    "other names": (dict(id2label={0: "a", 1: "b"}, label2id={"a": 0, "c": 1}), "`label2id` contradicts `id2label`"),
    "a name too few": (dict(id2label={0: "a", 1: "b"}, label2id={"a": 0}), "`label2id` contradicts `id2label`"),
    "a gap": (dict(id2label={0: "a", 2: "b"}), "`id2label` must number the labels from 0 on without a gap, got [0, 2]"),
    "one number, two names": (dict(label2id={"a": 0, "b": 0}), "`label2id` gives number 0 to 'a' and to 'b'"),
    "no number": (dict(id2label={"a": "x"}), "`id2label` must pair whole numbers with names of labels"),
    "a list": (dict(id2label=["a", "b"]), "`id2label` must be a dict"),
    "another count": (dict(id2label={0: "a", 1: "b"}, num_labels=3), "`num_labels`=3 contradicts `id2label`"),
    "too many": (dict(num_labels=10**9), "`num_labels` must be at most 1000000"),
}


@pytest.mark.parametrize("config_class", [FeedbackConfig, FNNConfig])
@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictory_labels_are_refused(case, config_class):
    options, words = CONTRADICTIONS[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config_class(**options)
    assert words in str(caught.value)


def test_a_tuned_head_keeps_the_numbers_of_its_classes(tmp_path):
    """A config file that stands in the order of its text, 0, 1, 10, 11, 2."""
    config = tiny_config("bert")
    config.id2label = dict(enumerate(TWELVE))
    config.label2id = {name: number for number, name in enumerate(TWELVE)}
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    numbers = sorted(map(str, range(12)))
    edited(tmp_path, id2label={n: TWELVE[int(n)] for n in numbers}, label2id={TWELVE[int(n)]: n for n in numbers})
    for model in (
        FeedbackForSequenceClassification.from_backbone(tmp_path, head="backbone"),
        add_feedback(BertForSequenceClassification.from_pretrained(tmp_path)),
    ):
        assert list(model.config.id2label.items()) == list(enumerate(TWELVE))
        assert model.config.label2id == {name: number for number, name in enumerate(TWELVE)}


# Types and sizes

WRONG = [None, True, -1, 10**9, 10**30, 1.5, float("nan"), "", "x", [], [1], [[1]], [[3, 0]] * 3, {}, {"a": 1}, [None]]
FIELDS = [(kind, name) for kind, make in CONFIGS.items() for name in [*make().to_dict(), "num_labels", "torch_dtype"]]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_values_of_any_type_are_taken_or_refused_by_name(kind, name):
    """Never an error of another kind: not of Python's, not of torch's."""
    good = json.loads(CONFIGS[kind]().to_json_string(use_diff=False))
    for value in WRONG:
        said = ""
        try:
            type(CONFIGS[kind]()).from_dict(json.loads(json.dumps({**good, name: value})))
        except ValueError as error:
            said = str(error)
        # a dictionary with all values says how many layers there are, too
        assert not said or name in said or (name == "backbone_layers" and "`num_hidden_layers` follows" in said), value


SIZES = {
    "K without end": dict(num_iterations=10**9),
    "a million edges": dict(feedback_edges=[[source, target] for source in range(1415) for target in range(source)]),
    "an edge a million times": dict(feedback_edges=[[1, 0]] * 1_000_000),
    "labels without end": dict(num_labels=10**9),
    "layers without end": dict(backbone_config={"model_type": "bert", "num_hidden_layers": 10**9}),
    "layer types without end": dict(backbone_config={"model_type": "qwen3", "num_hidden_layers": 10**9}),
    "blocks without end": dict(backbone_config={"model_type": "gpt2", "n_layer": 10**9}),
    "labels inside without end": dict(backbone_config={"model_type": "clip", "text_config": {"num_labels": 10**9}}),
    "sweeps without end": dict(feedback_type="temporal", feedback_sweeps=10**9),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_would_stall_are_refused(case):
    with pytest.raises(ValueError, match=r"`num_|`feedback_|layer|range"):
        FeedbackConfig(**{"backbone_config": tiny_config("bert"), **SIZES[case]})


# Places and code

PLACES = {
    "remote code": {"name_or_path": "x", "trust_remote_code": True},
    "another keyword": {"name_or_path": "x", "use_safetensors": False},
    "a code revision": {"name_or_path": "x", "code_revision": "main"},
    "a name that is no text": {"name_or_path": ["x"]},
    "a subfolder above": {"name_or_path": "x", "subfolder": "../../etc"},
    "an absolute subfolder": {"name_or_path": "x", "subfolder": "/etc"},
    "a revision above": {"name_or_path": "x", "revision": "../../refs"},
    "a GGUF file above": {"name_or_path": "x", "gguf_file": "../weights.gguf"},
    "a fingerprint that is no text": {"fingerprint": {"float16": 5}},
}


@pytest.mark.parametrize("case", PLACES)
def test_a_place_is_made_of_texts(case):
    with pytest.raises(ValueError, match="`backbone_source`"):
        FeedbackConfig(backbone_source=PLACES[case])


@pytest.mark.parametrize("name", ["to_dict", "get_text_config", "save_pretrained", "__class__"])
def test_no_value_takes_the_place_of_a_method(name):
    for values in ({name: 1}, {"backbone_config": {"model_type": "t5", name: 1}}):
        with pytest.raises(ValueError, match=r"is not an option of a \w+Config; remove it"):
            FeedbackConfig.from_dict(values)


def test_what_switches_on_code_is_left_out_of_a_stored_backbone():
    switches = {
        "auto_map": {"AutoModel": "evil.Model"},
        "transformers_weights": "../weights.safetensors",
        "distributed_config": {"tp_size": 2},
        "attn_implementation": "somebody/kernels",
        "_experts_implementation": "somebody/kernels:run",
    }
    values = {**tiny_config("t5").to_dict(), **switches, "nested": {"auto_map": 1, "kept": 2}}
    config = FeedbackConfig.from_dict({"backbone_config": values}).backbone_config
    assert not hasattr(config, "auto_map")
    assert getattr(config, "transformers_weights", None) is None
    assert getattr(config, "distributed_config", None) is None
    assert config._attn_implementation is None
    assert config._experts_implementation is None
    assert config.nested == {"kept": 2}
    outer = FeedbackConfig.from_dict({**switches, "backbone_config": tiny_config("bert").to_dict()})
    assert (outer._attn_implementation, outer._experts_implementation) == (None, None)
    assert not hasattr(outer, "transformers_weights")
    asked = FeedbackConfig.from_dict({"backbone_config": tiny_config("bert").to_dict()}, attn_implementation="eager")
    assert asked.backbone_config._attn_implementation == "eager"  # by whoever loads it


@pytest.mark.parametrize("alias", ["_attn_implementation", "_attn_implementation_internal", "transformers_weights"])
def test_no_name_stands_for_another(alias):
    """transformers sets what `attribute_map` names in the place of the name that is given."""
    for values in ({}, {"backbone_config": tiny_config("bert").to_dict()}):
        inner = values.get("backbone_config", values)
        inner.update(attribute_map={"foo": alias}, foo="somebody/kernels")
        with pytest.raises(ValueError, match="'attribute_map' is not an option"):
            FeedbackConfig.from_dict(values)


ATTRIBUTES = sorted({*dir(FeedbackConfig), *dir(FNNConfig), "__dict__"} - {"backbone_config", "model_type"})


@pytest.mark.parametrize("config_class", [FeedbackConfig, FNNConfig])
def test_names_of_a_class_are_taken_or_refused_by_name(config_class):
    for name in ATTRIBUTES:
        said = ""
        try:
            config_class.from_dict({name: 1})
        except ValueError as error:
            said = str(error)
        assert not said or name[:12] in said, name  # long ones are shortened


def test_a_backbone_is_not_read_from_another_repository():
    values = {"model_type": "detr", "backbone": "evil/repo", "use_timm_backbone": False, "backbone_kwargs": {"a": 1}}
    assert FeedbackConfig.from_dict({"backbone_config": values}).backbone_config.model_type == "detr"


def test_kernels_of_a_plain_backbone_are_not_taken_from_its_file(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path)
    edited(tmp_path, attn_implementation="somebody/kernels", transformers_weights="../other.safetensors")
    for head in ("new", "backbone"):
        model = FeedbackForSequenceClassification.from_backbone(tmp_path, head=head, feedback_rank=8)
        assert model.backbone.config._attn_implementation == "sdpa"
    assert FeedbackForSequenceClassification.from_pretrained(tmp_path, feedback_rank=8).config.feedback_rank == 8


# Checks are of the user's own config, and answers of trained heads


def test_what_is_wrong_in_a_file_can_be_mended_by_who_loads_it(tmp_path):
    FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), feedback_rank=8).save_pretrained(tmp_path)
    edited(tmp_path, label2id={"a": 1, "b": 0}, id2label={"0": "a", "1": "b"}, num_iterations=10**6)
    with pytest.raises(ValueError, match="contradicts"):
        FeedbackForSequenceClassification.from_pretrained(tmp_path, num_iterations=2)
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path, num_iterations=2, id2label={0: "b", 1: "a"})
    assert (model.config.num_iterations, model.config.label2id) == (2, {"b": 0, "a": 1})


def test_other_spellings_in_a_task_model_are_no_contradiction():
    config = tiny_config("bert")
    config.id2label, config.label2id = {0: "neg", 1: "pos"}, {"NEG": 0, "pos": 1, "positive": 1}
    assert add_feedback(BertForSequenceClassification(config)).config.label2id == {"neg": 0, "pos": 1}


def test_a_backbone_narrower_than_the_default_rank_loads_again(tmp_path):
    backbone = tiny_backbone("bert", hidden_size=16)
    model = randomize_messages(FeedbackForSequenceClassification.from_backbone(backbone, feedback_rank=8))
    model.save_pretrained(tmp_path)
    for again in (
        FeedbackForSequenceClassification.from_pretrained(tmp_path),
        FeedbackForTokenClassification.from_pretrained(tmp_path),
    ):
        assert again.config.feedback_rank == 8
    assert AutoConfig.from_pretrained(tmp_path).feedback_rank == 8


def test_a_pipeline_does_not_answer_from_a_head_that_was_never_trained(tmp_path):
    FeedbackForTokenClassification.from_backbone(tiny_backbone("bert"), feedback_rank=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was trained as a FeedbackForTokenClassification"):
        pipeline("text-classification", str(tmp_path), tokenizer=object())
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path)  # to train it
    assert model(**tiny_batch()).logits.shape == (2, 2)


class OwnClassifier(FeedbackForSequenceClassification):
    """A user's class, which has a trained head of the same kind."""


def test_a_pipeline_answers_from_the_head_of_a_subclass(tmp_path):
    OwnClassifier.from_backbone(tiny_backbone("bert"), feedback_rank=8).save_pretrained(tmp_path)
    assert pipeline("text-classification", str(tmp_path), tokenizer=object()).model.config.feedback_rank == 8
