"""The verdict of a comparison: which alternative decides, and when arms have learned nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_feedback.evaluation.comparison.arm_runs import ArmRun, Job
from hf_feedback.evaluation.comparison.contrasts import Contrast, contrast_table, write_verdict
from hf_feedback.evaluation.comparison.example_scores import EXAMPLE_SCORES, constant_answers
from hf_feedback.evaluation.comparison.result import ComparisonResult
from hf_feedback.evaluation.comparison.statistics import Difference


def contrast(mean, low, high, verdict, other="plain", needed=7):
    found = Difference(mean, (mean,) * 5, low, high, (low, high), 0.0625, 0.0625)
    return Contrast("feedback", other, found, verdict, needed)


def test_the_verdict_is_about_the_alternative_that_decides():
    easy, hard = contrast(9, 7, 11, "ahead", "head-only"), contrast(2, 0.5, 3.5, "ahead", "lora")
    behind, equal = contrast(-1, -1.5, -0.5, "behind", "lora"), contrast(0, -0.5, 0.5, "equivalent", "lora")
    unclear, open_ = contrast(-2, -9, 5, "cannot tell", "plain"), contrast(-3, -9, 3, "cannot tell", "lora")
    assert write_verdict([easy, hard], "accuracy", 1.0).startswith(
        "Feedback helps: it is ahead of every alternative, least of lora, by +2.0 points of accuracy [+0.5, +3.5]"
    )
    assert "does not help: lora is better, feedback minus it -1.0" in write_verdict([unclear, behind], "entity_f1", 1.0)
    assert "no difference that matters: within 1 point of lora" in write_verdict([easy, equal], "entity_f1", 1.0)
    assert (
        "against plain, -2.0 points of entity_f1 [-9.0, +5.0], 5 seeds; about 7 seeds are needed to detect a "
        "difference of 1 point" in (write_verdict([hard, equal, open_, unclear], "entity_f1", 1.0))
    )
    for needed in (None, 5):  # as many as there were
        assert "more test examples or seeds are needed to detect a difference of 1 point" in write_verdict(
            [contrast(1, -2, 4, "cannot tell", needed=needed)], "entity_f1", 1
        )
    begin = "Feedback (deep) helps: it is ahead of every alternative"
    assert write_verdict([hard], "accuracy", 1.0, name="deep").startswith(begin)
    worse = "lora is better, -1.0 points of perplexity"
    assert worse in write_verdict([unclear, behind], "perplexity", 1.0)
    assert contrast_table([behind], 1.0, "accuracy").startswith("| feedback | minus | difference |")
    assert contrast_table([behind], 1.0, "perplexity").startswith("| feedback | beside | better by |")


def test_the_verdict_names_a_lead_over_the_plain_model():
    lead = contrast(3, 2, 4, "ahead", "plain")
    begin = "Feedback is ahead of plain, by +3.0 points of accuracy [+2.0, +4.0], but "
    for mean, verdict, end in (
        (-1, "behind", "lora is better, feedback minus it -1.0"),
        (-2, "cannot tell", "cannot be told from lora, -2.0"),
        (0, "equivalent", "within 1 point of lora, +0.0"),
    ):
        one = contrast(mean, mean - 1, mean + 1, verdict, "lora")
        assert write_verdict([lead, one], "accuracy", 1.0).startswith(begin + end)


def test_arms_that_have_learned_nothing_are_not_equivalent():
    """All answer with the larger class, so that their differences are 0 on every example."""
    labels = np.array([0, 1, 0, 0] * 200)
    learned = np.stack((np.arange(800) % 20 > 0, np.ones(800)), -1).astype(float)
    constant = EXAMPLE_SCORES["accuracy"].of_examples(
        constant_answers(labels, "single_label_classification", ("a", "b"))
    )

    def result(by_arm):
        arms = {"plain": SimpleNamespace(is_feedback=False), "feedback": SimpleNamespace(is_feedback=True)}
        comparison = SimpleNamespace(arms=arms, seeds=(0, 1, 2), margin=1.0, also_test=())
        facts = {"metric": "accuracy"}
        runs = [ArmRun(Job(arm, seed, 1.0), 0.7, {"own": by_arm[arm]}, facts) for arm in arms for seed in range(3)]
        return ComparisonResult(comparison, SimpleNamespace(constant=constant), [], runs)

    nothing = result({"plain": constant, "feedback": constant})
    assert nothing.contrasts[0].verdict == "cannot tell"
    assert contrast_table(nothing.contrasts, 1.0, "accuracy").endswith("| cannot tell | nothing learned |")
    assert (
        "no arm is shown to be ahead of the same answer for every example (75.0 points of accuracy)"
        in nothing.verdict()
    )
    both = result({"plain": learned, "feedback": learned})
    assert both.contrasts[0].verdict == "equivalent"
    assert result({"plain": learned, "feedback": constant}).contrasts[0].verdict == "behind"


@pytest.mark.parametrize(
    ("labels", "problem", "metric", "value"),
    [
        ([2, 0, 2, 1], "single_label_classification", "accuracy", 0.5),
        ([2, 0, 2, 1], "single_label_classification", "matthews", 0.0),
        ([[0, 1, 0], [0], [2, 0]], "single_label_classification", "token_accuracy", 4 / 6),
        ([[0, 1, 0], [0], [2, 0]], "single_label_classification", "entity_f1", 0.0),
        ([[1, 0, 0], [1, 0, 1], [0, 0, 0]], "multi_label_classification", "accuracy", 1 / 3),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "multi_label_classification", "accuracy", 1 / 3),
        ([0.5, 2.0, 3.5], "regression", "pearson", 0.0),
        ([0.5, 2.0, 3.5], "regression", "spearman", 0.0),
    ],
)
def test_the_same_answer_for_every_example(labels, problem, metric, value):
    score = EXAMPLE_SCORES[metric]
    answers = constant_answers(labels, problem, ("O", "B-x", "I-x"))
    assert score.metric(score.of_examples(answers).sum(0)) == pytest.approx(value)
