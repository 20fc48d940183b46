"""Statistics on the predictions of a model by iteration.

Iterations are counted from 1, as in the equations: `k` is row `k − 1` of an array. An item is the unit that gets one
class: a text, an image, a question with choices, or a word that is tagged.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from scipy.stats import binomtest

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class IterationAnswers:
    """The predictions of a model after every iteration.

    Args:
        probabilities: class probabilities, `(K, N, C)` for K iterations and N items.
        labels: number of the right class, `(N,)`.
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """Number of the most probable class, `(K, N)`."""
        return self.probabilities.argmax(-1)

    @property
    def is_right(self) -> np.ndarray:
        """Whether a prediction is right, `(K, N)`."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> list[float]:
        """Accuracy after each iteration."""
        return self.is_right.mean(1).tolist()

    @property
    def oracle_accuracy(self) -> list[float]:
        """For each k, the accuracy if the best of the iterations 1 to k were known for every item."""
        return np.logical_or.accumulate(self.is_right).mean(1).tolist()


class Bin(TypedDict):
    """A bin of a reliability diagram: confidences in (low, high]; `None` if it is empty."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


class Calibration(TypedDict):
    """Expected calibration error, mean confidence and reliability of one iteration."""

    ece: float
    confidence: float
    bins: list[Bin]


class ConfusionChange(TypedDict):
    """How often a label got a prediction, in two iterations."""

    label: int
    answer: int
    before: int
    after: int


def flips(answers: IterationAnswers, first: int, last: int) -> tuple[list[int], list[int], int]:
    """Compares the predictions of two iterations.

    Args:
        answers: predictions of all iterations.
        first: the earlier iteration.
        last: the later one.

    Returns:
        Numbers of the items that became right, numbers of those that became wrong, and the count of those that changed
        from one wrong class to another.
    """
    before, after = answers.is_right[first - 1], answers.is_right[last - 1]
    changed = answers.predictions[first - 1] != answers.predictions[last - 1]
    fixed, broken = np.flatnonzero(~before & after), np.flatnonzero(before & ~after)
    return fixed.tolist(), broken.tolist(), int((changed & ~before & ~after).sum())


def mcnemar(num_fixed: int, num_broken: int) -> float:
    """Returns the p-value of McNemar's exact test for two predictions of the same items.

    Args:
        num_fixed: number of items that only the second prediction gets right.
        num_broken: number of items that only the first prediction gets right.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated proportions.

    Example:

    ```python
    >>> mcnemar(5, 0)
    0.0625

    ```
    """
    if num_fixed + num_broken == 0:
        return 1.0
    return float(binomtest(num_fixed, num_fixed + num_broken).pvalue)


def calibration(answers: IterationAnswers, k: int, num_bins: int = CALIBRATION_BINS) -> Calibration:
    """Returns the calibration of the predictions of an iteration, see `calibrate`.

    Args:
        answers: predictions of all iterations.
        k: the iteration.
        num_bins: number of bins of equal width of the probability of the top class.
    """
    return calibrate(answers.probabilities[k - 1].max(-1), answers.is_right[k - 1], num_bins)


def calibrate(confidence: np.ndarray, right: np.ndarray, num_bins: int = CALIBRATION_BINS) -> Calibration:
    """Compares the confidence of predictions with their accuracy.

    Args:
        confidence: probability of each prediction, `(N,)`.
        right: whether it is right, `(N,)`.
        num_bins: number of bins of equal width of the confidence.

    Returns:
        The expected calibration error, Σ (items in the bin / N) · |accuracy − confidence|, the mean confidence, and the
        bins.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for i in range(num_bins):
        inside = number == i
        count, mean, accuracy = int(inside.sum()), None, None
        if count:
            mean, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            error += count / len(confidence) * abs(accuracy - mean)
        low, high = float(edges[i]), float(edges[i + 1])
        bins.append(Bin(low=low, high=high, count=count, confidence=mean, accuracy=accuracy))
    return Calibration(ece=error, confidence=float(confidence.mean()), bins=bins)


def confusion(answers: IterationAnswers, k: int) -> np.ndarray:
    """Returns the confusion matrix of iteration k, `(C, C)`, labels in rows."""
    num_classes = answers.probabilities.shape[-1]
    counts = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(counts, (answers.labels, answers.predictions[k - 1]), 1)
    return counts


def confusion_changes(answers: IterationAnswers, first: int, last: int) -> list[ConfusionChange]:
    """Returns the cells of the confusion matrix that differ between two iterations, the largest change first."""
    before, after = confusion(answers, first), confusion(answers, last)
    changes = [
        ConfusionChange(
            label=int(label), answer=int(answer), before=int(before[label, answer]), after=int(after[label, answer])
        )
        for label, answer in np.argwhere(before != after)
    ]
    return sorted(changes, key=lambda change: -abs(change["after"] - change["before"]))
