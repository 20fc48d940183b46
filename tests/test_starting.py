"""Training that goes on from a feedback model, asked for the same options again."""

import pytest
from families import tiny_backbone

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.model_arguments import ModelArguments
from hf_feedback.training.model_setup import make_model

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
