"""Metrics as sums over examples are those that training reports, also on resampled examples."""

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_feedback.evaluation.comparison.example_scores import EXAMPLE_SCORES, SplitAnswers
from hf_feedback.training.data.answers import answer_scores
from hf_feedback.training.metrics import make_compute_metrics
from hf_feedback.training.tasks.plain_texts import perplexity_of_losses
from hf_feedback.training.tasks.token_classification import make_tag_metrics

TAGS = ("O", "B-X", "I-X", "B-Y")
GENERATOR = np.random.default_rng(0)


def classes(problem_type="single_label_classification"):
    logits = GENERATOR.normal(size=(60, 4))
    labels = GENERATOR.integers(0, 3, 60)  # one class is never right
    if problem_type == "multi_label_classification":
        labels = GENERATOR.integers(0, 2, (60, 4)).astype(float)
    if problem_type == "regression":
        labels = GENERATOR.normal(size=60)
        logits = labels[:, None] + GENERATOR.normal(size=(60, 1))
    return EvalPrediction(logits, labels), problem_type


def tags():
    labels = GENERATOR.integers(0, 4, (30, 9))
    predictions = np.where(GENERATOR.random((30, 9)) < 0.7, labels, GENERATOR.integers(0, 4, (30, 9)))
    labels[:, 7:] = -100
    return EvalPrediction(predictions, labels)


def losses():
    labels = GENERATOR.integers(0, 9, (20, 7))
    labels[:, 5:] = -100
    return EvalPrediction(GENERATOR.random((20, 7)), labels)


def select(prediction, rows):
    return EvalPrediction(np.asarray(prediction.predictions)[rows], np.asarray(prediction.label_ids)[rows])


CASES = {
    **{
        f"{name}, {kind.split('_')[0]}": (
            name,
            *classes(kind),
            lambda kind=kind, name=name: make_compute_metrics(kind, [name]),
        )
        for kind, names in {
            "single_label_classification": ("accuracy", "macro_f1", "matthews"),
            "multi_label_classification": ("accuracy", "macro_f1"),
            "regression": ("pearson", "spearman"),
        }.items()
        for name in names
    },
    **{
        f"{name} of tags": (name, tags(), "single_label_classification", lambda: make_tag_metrics(TAGS))
        for name in ("entity_f1", "token_accuracy")
    },
    "perplexity": ("perplexity", losses(), "single_label_classification", lambda: perplexity_of_losses),
}


@pytest.mark.parametrize("case", CASES)
def test_a_metric_of_sums_is_the_metric(case):
    name, prediction, problem_type, metric = CASES[case]
    score = EXAMPLE_SCORES[name]
    examples = score.of_examples(SplitAnswers(prediction, problem_type, TAGS))
    rows = np.random.default_rng(1).integers(0, len(examples), len(examples))
    weights = np.bincount(rows, minlength=len(examples))
    assert score.metric(examples.sum(0)) == pytest.approx(metric()(prediction)[name], abs=1e-12)
    if name != "spearman":  # there, ranks are those of the whole split
        assert score.metric(weights @ examples) == pytest.approx(metric()(select(prediction, rows))[name], abs=1e-12)
    assert score.metric(np.stack((weights, weights)) @ examples).shape == (2,)


def test_answers_in_words():
    references, texts = [["the red fan", "fan"], [], ["Monday"]], ["a fan", "", "on Tuesday"]
    answers = SplitAnswers(
        EvalPrediction(np.zeros(3), np.zeros(3)), "single_label_classification", (), (references, texts)
    )
    for name, value in answer_scores(references, texts).items():
        score = EXAMPLE_SCORES[name]
        assert score.metric(score.of_examples(answers).sum(0)) == pytest.approx(value)
