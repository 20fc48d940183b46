"""Training that goes on from a feedback model, asked for the same options again."""

import pytest
import torch
from builders import tiny_tokenizer
from families import tiny_backbone
from training_runs import arguments

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.training import FeedbackTrainer, trainer_checks
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.starting_model.model_setup import make_model, set_segments

LABELS = LabelSet("single_label_classification", ("0", "1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A feedback model whose options were found when it was built, with labels in another spelling."""
    folder = tmp_path_factory.mktemp("model")
    options = {"feedback_rank": 4, "pooling": "mean", "id2label": {0: "0.0", 1: "1.0"}}
    FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), **options).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("option", ["pooling", "feedback_future", "backbone_part"])
def test_what_was_found_may_be_found_again(folder, option):
    model = make_model(FeedbackForSequenceClassification, ModelArguments(model=folder, **{option: "auto"}), LABELS)
    assert model.config.pooling == "mean"
    assert model.config.id2label == {0: "0.0", 1: "1.0"}


def test_another_option_is_refused(folder):
    with pytest.raises(ValueError, match=r"`pooling`: .* with 'mean', and cannot be changed to 'last'"):
        make_model(FeedbackForSequenceClassification, ModelArguments(model=folder, pooling="last"), LABELS)


def test_segments_of_a_trained_model_may_get_another_size(tmp_path):
    """No weight depends on it: first short texts, later longer ones. The tokenizer reads so many tokens."""
    options = dict(feedback_span="segment", feedback_type="memory", segment_length=9, segment_special_tokens=[1, 1])
    data = dict(id2label={0: "0", 1: "1"}, max_segments=2)
    model = FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), feedback_rank=4, **options, **data)
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 12
    same = dict(segment_length=9, max_segments=2)
    for sizes, longest in (
        ({}, 12),
        (same, 12),
        (dict(segment_length=16, segment_overlap=0, max_segments=3), 3 * 14 + 2),
    ):
        args = ModelArguments(model=str(tmp_path), **sizes)
        again = make_model(FeedbackForSequenceClassification, args, LABELS)
        set_segments(again, tokenizer, args)
        assert tokenizer.model_max_length == longest
        assert {name: getattr(again.config, name) for name in sizes} == sizes
        assert again.state_dict().keys() == model.state_dict().keys()
        assert again(torch.tensor([[2, *range(5, 15), 3]])).logits.isfinite().all()


@pytest.fixture
def half(tmp_path):
    """A folder with a backbone whose weights are stored in bfloat16, as those of many decoders are."""
    tiny_backbone("bert").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    return str(tmp_path / "half")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [({}, torch.float32), ({"dtype": "auto"}, torch.bfloat16), ({"dtype": "bfloat16"}, torch.bfloat16)],
)
def test_weights_are_trained_in_float32_unless_an_option_says_otherwise(half, tmp_path, dtype, expected):
    model = make_model(FeedbackForSequenceClassification, ModelArguments(model=half, feedback_rank=4, **dtype), LABELS)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    model.save_pretrained(tmp_path / "again")
    again = make_model(
        FeedbackForSequenceClassification, ModelArguments(model=str(tmp_path / "again"), **dtype), LABELS
    )
    assert {parameter.dtype for parameter in again.parameters()} == {expected}


@pytest.mark.parametrize("frozen", [False, True])
def test_the_trainer_warns_of_trained_weights_in_half_precision(half, frozen, tmp_path, caplog, monkeypatch):
    """Not of those that are frozen: they do not change."""
    monkeypatch.setattr(trainer_checks.logger, "warning_once", lambda message: caplog.records.append(message))
    model = make_model(FeedbackForSequenceClassification, ModelArguments(model=half, dtype="auto"), LABELS)
    if frozen:
        model.float()
        model.backbone.to(torch.bfloat16).requires_grad_(False)
    FeedbackTrainer(model=model, args=arguments(tmp_path))
    warned = [record for record in caplog.records if "are in bfloat16" in str(record)]
    assert len(warned) == (not frozen)


def test_the_precision_is_one_of_those_that_there_are(half):
    with pytest.raises(ValueError, match="`dtype` must be one of 'float32', 'bfloat16', 'auto', got 'bf16'"):
        make_model(FeedbackForSequenceClassification, ModelArguments(model=half, dtype="bf16"), LABELS)
