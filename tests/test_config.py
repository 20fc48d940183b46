"""Every option: what it accepts, what it refuses and how it says so."""

import json

import pytest
from families import SIZES, tiny_config

from hf_feedback import FeedbackConfig
from hf_feedback.topology import looped_range_of
from hf_feedback.version import HF_FEEDBACK_VERSION

REFUSED = {
    # option(s) → words of the message
    "K of zero": (dict(num_iterations=0), "`num_iterations` must be an integer of at least 1, got 0"),
    "K that is no integer": (dict(num_iterations=2.0), "num_iterations"),
    "K that is a flag": (dict(num_iterations=True), "num_iterations"),
    "unknown topology": (dict(feedback_topology="ring"), "`feedback_topology` must be one of 'adjacent'"),
    "upward edge": (dict(feedback_edges=[[0, 2]]), "did you mean [2, 0]"),
    "edge to itself": (dict(feedback_edges=[[2, 2]]), "does not point downwards"),
    "edge out of range": (dict(feedback_edges=[[9, 0]]), "[9, 0] is out of range; layers are counted from 0 to 3"),
    "negative edge": (dict(feedback_edges=[[2, -1]]), "out of range"),
    "edge given twice": (dict(feedback_edges=[[2, 0], [2, 0]]), "given twice"),
    "edge of three": (dict(feedback_edges=[[2, 1, 0]]), "[source, target] pairs"),
    "no edges": (dict(feedback_edges=[]), "[source, target] pairs"),
    "edges and topology": (dict(feedback_edges=[[2, 0]], feedback_topology="top"), "exclude each other"),
    "edges and layers": (dict(feedback_edges=[[2, 0]], feedback_layers=[0, 1]), "exclude each other"),
    "layers reversed": (dict(feedback_layers=[2, 1]), "[lowest, highest]"),
    "layers out of range": (dict(feedback_layers=[0, 4]), "[lowest, highest]"),
    "only the last layer as target": (dict(feedback_layers=[3, 3]), "gives no edge"),
    "rank of zero": (dict(feedback_rank=0), "`feedback_rank` must be an integer of at least 1, got 0"),
    "rank above the hidden size": (dict(feedback_rank=33), "at most the backbone's hidden size 32, got 33"),
    "unknown activation": (dict(feedback_activation="swisch"), "'swisch'; did you mean 'swish'"),
    "dropout of one": (dict(feedback_dropout=1.0), "`feedback_dropout` must be a probability"),
    "negative dropout": (dict(classifier_dropout=-0.1), "`classifier_dropout` must be a probability"),
    "scale that is no number": (dict(feedback_scale=float("nan")), "`feedback_scale` must be a finite number"),
    "unknown pooling": (dict(pooling="max"), "`pooling` must be one of 'auto', 'cls', 'mean', 'last'"),
    "unknown head": (dict(head="old"), "`head` must be one of"),
    "unknown type": (dict(feedback_type="additiv"), "got 'additiv'; did you mean 'additive'"),
    "unknown part": (dict(backbone_part="both"), "`backbone_part` must be one of"),
    "backbone layers descending": (dict(backbone_layers=[2, 1]), "ascending"),
    "backbone layers out of range": (dict(backbone_layers=[0, 4]), "below the backbone's 4 layers"),
    "no labels": (dict(num_labels=0), "`num_labels` must be an integer of at least 1, got 0"),
    "unknown problem": (dict(problem_type="multi"), "problem_type"),
    "shortened name": (dict(rank=4), "did you mean `feedback_rank`"),
    "near-miss": (dict(num_iteration=3), "`num_iteration` is not an option of FeedbackConfig; did you mean"),
    "another near-miss": (dict(feedback_topolgy="top"), "did you mean `feedback_topology`"),
    "unknown feedback option": (dict(feedback_strength=3), "the feedback options are: feedback_activation"),
    "backbone without a type": (dict(backbone_config={"hidden_size": 3}), "must hold the `model_type`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_clear_message(case):
    options, words = REFUSED[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        FeedbackConfig(**{"backbone_config": tiny_config("bert"), **options})
    assert words in str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_on_load_too(case, tmp_path):
    options, words = REFUSED[case]
    FeedbackConfig(backbone_config=tiny_config("bert")).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        FeedbackConfig.from_pretrained(tmp_path)
    assert words in str(caught.value)


def test_what_does_not_depend_on_the_backbone_is_checked_without_one():
    with pytest.raises(ValueError, match="does not point downwards"):
        FeedbackConfig(feedback_edges=[[0, 2]])
    assert FeedbackConfig(feedback_edges=[[40, 2]]).feedback_edges == [[40, 2]]


EDGES = {
    "default": ({}, [(3, 0), (3, 1), (3, 2)]),
    "top": (dict(feedback_topology="top"), [(3, 0), (3, 1), (3, 2)]),
    "adjacent": (dict(feedback_topology="adjacent"), [(1, 0), (2, 1), (3, 2)]),
    "dense": (dict(feedback_topology="dense"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]),
    "confined": (dict(feedback_topology="dense", feedback_layers=[1, 1]), [(2, 1), (3, 1)]),
    "explicit": (dict(feedback_edges=[[2, 1], [2, 0]]), [(2, 0), (2, 1)]),
    "of fewer layers": (dict(backbone_layers=[0, 2, 3]), [(2, 0), (2, 1)]),
}


@pytest.mark.parametrize("case", EDGES)
def test_edges(case):
    options, expected = EDGES[case]
    assert FeedbackConfig(backbone_config=tiny_config("bert"), **options).edges() == expected


def test_segment_spans_the_edges():
    assert looped_range_of([(2, 1), (4, 3)]) == (1, 4)


def test_says_what_the_user_said(tmp_path):
    said = dict(
        num_iterations=5,
        feedback_edges=[[3, 0], [2, 1]],
        feedback_activation="mish",
        feedback_rank=None,
        feedback_dropout=0.2,
        feedback_scale=0.5,
        backbone_layers=[0, 1, 2, 3],
        pooling="mean",
        classifier_dropout=0.3,
        id2label={0: "no", 1: "yes", 2: "so"},
        label2id={"no": 0, "yes": 1, "so": 2},
        problem_type="multi_label_classification",
    )
    config = FeedbackConfig(backbone_config=tiny_config("bert"), **said)
    config.save_pretrained(tmp_path)
    loaded = FeedbackConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in said} == said
    assert loaded.feedback_topology is None
    assert loaded.num_labels == 3
    assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["hf_feedback_version"] == HF_FEEDBACK_VERSION


def test_config_of_a_newer_version_loads_with_a_warning(tmp_path, caplog):
    FeedbackConfig(backbone_config=tiny_config("bert")).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    newer = {"hf_feedback_version": "99.1.0", "feedback_phase": 3, "num_iteration": 4}
    file.write_text(json.dumps({**json.loads(file.read_text()), **newer}))
    with caplog.at_level("WARNING", logger="hf_feedback.configuration_feedback"):
        loaded = FeedbackConfig.from_pretrained(tmp_path)
    assert "Ignored: feedback_phase, num_iteration" in caplog.text
    assert not hasattr(loaded, "feedback_phase")


def test_other_keys_go_to_transformers():
    config = FeedbackConfig(backbone_config=dict(SIZES, model_type="bert"), my_note="kept", task_specific_params={})
    assert config.my_note == "kept"
    assert config.hidden_size == 32
    assert config.num_hidden_layers == 4
    assert config.vocab_size == 99
