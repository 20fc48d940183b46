"""The numbers of a report, against sums by hand and plain loops."""

import math

import numpy as np
import pytest

from hf_feedback.evaluation.diagnostics import (
    IterationAnswers,
    calibration,
    confusion,
    confusion_changes,
    flips,
    mcnemar,
)
from hf_feedback.whole_files import finite

# Three iterations, four items, three classes; the answers are
#   iteration 1: 0 1 2 0,  iteration 2: 0 2 2 1,  iteration 3: 1 2 2 1;  right: 0 2 1 1.
ROWS = {0: [0.8, 0.1, 0.1], 1: [0.2, 0.5, 0.3], 2: [0.1, 0.3, 0.6]}
ANSWERS = IterationAnswers(
    np.array([[ROWS[c] for c in row] for row in ([0, 1, 2, 0], [0, 2, 2, 1], [1, 2, 2, 1])]), np.array([0, 2, 1, 1])
)


def random_answers(num_items=57, num_classes=4, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(3, num_items, num_classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return IterationAnswers(probabilities, generator.integers(num_classes, size=num_items))


def test_accuracy_and_the_bound_of_the_best_iteration():
    assert ANSWERS.predictions.tolist() == [[0, 1, 2, 0], [0, 2, 2, 1], [1, 2, 2, 1]]
    assert ANSWERS.accuracy == [0.25, 0.75, 0.5]
    # the item that is never right stays wrong; what was right once stays right for the oracle
    assert ANSWERS.oracle_accuracy == [0.25, 0.75, 0.75]


def test_fixed_and_broken_items():
    assert flips(ANSWERS, 1, 2) == ([1, 3], [], 0)
    assert flips(ANSWERS, 2, 3) == ([], [0], 0)
    assert flips(ANSWERS, 1, 3) == ([1, 3], [0], 0)


def test_an_answer_that_changes_from_wrong_to_wrong_is_neither_fixed_nor_broken():
    answers = IterationAnswers(np.array([[ROWS[0]], [ROWS[1]]]), np.array([2]))
    assert flips(answers, 1, 2) == ([], [], 1)


@pytest.mark.parametrize("seed", range(3))
def test_all_counts_agree_with_a_loop(seed):
    answers = random_answers(seed=seed)
    right = [
        [max(range(4), key=lambda c: row[c]) == label for row, label in zip(rows, answers.labels, strict=True)]
        for rows in answers.probabilities
    ]
    assert answers.accuracy == pytest.approx([sum(row) / len(row) for row in right])
    bound = [sum(any(right[j][i] for j in range(k + 1)) for i in range(57)) / 57 for k in range(3)]
    assert answers.oracle_accuracy == pytest.approx(bound)
    fixed = [i for i in range(57) if right[2][i] and not right[0][i]]
    broken = [i for i in range(57) if right[0][i] and not right[2][i]]
    assert flips(answers, 1, 3)[:2] == (fixed, broken)


def test_mcnemar_is_the_two_sided_sign_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 6) == mcnemar(6, 1) == pytest.approx(2 * (1 + 7) / 2**7)


def test_calibration_by_hand():
    # two bins: confidences 0.5 (wrong) in the lower one, 0.6 (wrong), 0.8 (right), 0.8 (wrong) in the upper one
    result = calibration(ANSWERS, 1, num_bins=2)
    assert result["ece"] == pytest.approx(1 / 4 * 0.5 + 3 / 4 * (2.2 / 3 - 1 / 3))
    assert result["confidence"] == pytest.approx((0.5 + 0.6 + 0.8 + 0.8) / 4)
    lower, upper = result["bins"]
    assert lower == {"low": 0.0, "high": 0.5, "count": 1, "confidence": 0.5, "accuracy": 0.0}
    assert upper["count"] == 3
    assert upper["confidence"] == pytest.approx(2.2 / 3)
    assert upper["accuracy"] == pytest.approx(1 / 3)


def test_calibration_agrees_with_a_loop():
    answers = random_answers(200)
    result, total = calibration(answers, 2, num_bins=10), 0.0
    for i in range(10):
        rows = []
        for probabilities, label in zip(answers.probabilities[1], answers.labels, strict=True):
            if i / 10 < max(probabilities) <= (i + 1) / 10:
                rows.append((max(probabilities), int(np.argmax(probabilities)) == label))
        assert result["bins"][i]["count"] == len(rows)
        if rows:
            confidence, accuracy = (sum(column) / len(rows) for column in zip(*rows, strict=True))
            total += len(rows) / 200 * abs(confidence - accuracy)
    assert result["ece"] == pytest.approx(total)
    assert sum(one["count"] for one in result["bins"]) == 200


def test_an_empty_bin_has_no_confidence_and_no_accuracy():
    empty = calibration(ANSWERS, 1, num_bins=10)["bins"][0]
    assert (empty["count"], empty["confidence"], empty["accuracy"]) == (0, None, None)


def test_confusion_counts_labels_in_rows_and_answers_in_columns():
    assert confusion(ANSWERS, 1).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert confusion(ANSWERS, 3).tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_confusion_changes_are_the_largest_first():
    changes = confusion_changes(ANSWERS, 1, 3)
    cells = {(one["label"], one["answer"]): (one["before"], one["after"]) for one in changes}
    assert cells == {(0, 0): (1, 0), (0, 1): (0, 1), (1, 0): (1, 0), (1, 1): (0, 1), (2, 1): (1, 0), (2, 2): (0, 1)}
    sizes = [abs(one["after"] - one["before"]) for one in confusion_changes(random_answers(200), 1, 3)]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 not in sizes


def test_numbers_that_are_not_finite_are_left_out_of_json():
    assert finite({"a": [1.0, math.nan], "b": math.inf, "c": "nan"}) == {"a": [1.0, None], "b": None, "c": "nan"}
