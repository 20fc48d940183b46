"""Contributions of test examples to a metric, from which it is computed on any resampling of the examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import rankdata
from seqeval.metrics.sequence_labeling import get_entities
from transformers import EvalPrediction

from ...training.data.answers import answer_f1, normalize_answer
from ...training.data.labels import IGNORED, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType
from ...training.metrics import logits_of, predict_labels

Sums: TypeAlias = np.ndarray  # (…, s)


@dataclass(frozen=True)
class SplitAnswers:
    """The predictions of a model on a split.

    Args:
        prediction: prediction of the Trainer, as for `compute_metrics`.
        problem_type: problem type of the labels.
        label_names: names of the labels in the order of their numbers.
        texts: the right answers, one list per question, and the predicted answers, if they are texts.
    """

    prediction: EvalPrediction
    problem_type: ProblemType
    label_names: tuple[str, ...]
    texts: tuple[Sequence[Sequence[str]], Sequence[str]] | None = None

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predictions: `(N,)`, or zeros and ones `(N, C)` for several labels at once."""
        predicted = predict_labels(logits_of(self.prediction), self.problem_type)
        labels = np.asarray(self.prediction.label_ids)
        return (labels.squeeze(-1) if labels.ndim > predicted.ndim else labels), predicted

    def one_hot(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predictions as zeros and ones, `(N, C)`."""
        labels, predicted = self.classes()
        if self.problem_type == MULTI_LABEL:
            return labels.astype(int), predicted
        each = np.arange(len(self.label_names))
        return (labels[:, None] == each).astype(int), (predicted[:, None] == each).astype(int)


@dataclass(frozen=True)
class ExampleScore:
    """A metric as a function of sums over examples.

    Args:
        of_examples: predictions → contributions of the examples, `(N, s)`.
        metric: sums `(…, s)` → values `(…)`.
        greater_is_better: whether larger values are better.
        is_of_values: whether it is a metric of regression.
    """

    of_examples: Callable[[SplitAnswers], np.ndarray]
    metric: Callable[[Sums], np.ndarray]
    greater_is_better: bool = True
    is_of_values: bool = False


def constant_answers(labels: Sequence[Any], problem_type: ProblemType, label_names: tuple[str, ...]) -> SplitAnswers:
    """Answers that do not depend on the example: the most frequent label, or set of labels, of all, or the mean value.

    Args:
        labels: of the examples: class numbers, zeros and ones for several labels, a list of class numbers for each
            text, or values.
        problem_type: problem type of the labels.
        label_names: names of the labels in the order of their numbers.

    Example:

    ```python
    >>> answers = constant_answers([1, 0, 1], "single_label_classification", ("late", "lost"))
    >>> answers.classes()[1].tolist()
    [1, 1, 1]

    ```
    """
    if isinstance(labels[0], Sequence) and problem_type == SINGLE_LABEL:  # tags of texts
        longest = max(map(len, labels))
        padded = np.array([[*row, *[IGNORED] * (longest - len(row))] for row in labels])
        most_frequent = np.bincount(padded[padded != IGNORED]).argmax()
        return SplitAnswers(EvalPrediction(np.full_like(padded, most_frequent), padded), problem_type, label_names)
    targets = np.asarray(labels)
    if problem_type == REGRESSION:
        logits = np.full((len(targets), 1), targets.mean())
    elif problem_type == SINGLE_LABEL:
        counts = np.bincount(targets, minlength=len(label_names))
        logits = np.tile(counts, (len(targets), 1))
    else:
        rows, counts = np.unique(targets, axis=0, return_counts=True)
        logits = np.tile(rows[counts.argmax()] - 0.5, (len(targets), 1))
    return SplitAnswers(EvalPrediction(logits, targets), problem_type, label_names)


def _ratio(sums: Sums) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def _f1(sums: Sums) -> np.ndarray:
    """F1 of true positives, predicted and actual positives in the last dimension; 0 if there are none."""
    return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


def _correct(answers: SplitAnswers) -> np.ndarray:
    labels, predicted = answers.classes()
    correct = labels == predicted
    return np.stack((correct.all(-1) if correct.ndim > 1 else correct, np.ones(len(labels))), -1).astype(float)


def _class_counts(answers: SplitAnswers) -> np.ndarray:
    labels, predicted = answers.one_hot()
    counts = np.ones_like(labels) if answers.problem_type == MULTI_LABEL else labels + predicted
    return np.concatenate((labels * predicted, predicted, labels, counts), -1)


def _macro_f1(sums: Sums) -> np.ndarray:
    """Mean F1 over all classes for several labels at once, else over those that occur or are predicted."""
    by_class = sums.reshape(*sums.shape[:-1], 4, -1)
    counts = by_class[..., 3, :] > 0
    return (_f1(np.moveaxis(by_class, -2, -1)) * counts).sum(-1) / np.maximum(counts.sum(-1), 1)


def _confusion(answers: SplitAnswers) -> np.ndarray:
    labels, predicted = answers.one_hot()
    return (labels[:, :, None] * predicted[:, None, :]).reshape(len(labels), -1)


def _matthews(sums: Sums) -> np.ndarray:
    """Gorodkin's coefficient of a confusion matrix; 0 if labels or predictions are constant."""
    size = round(sums.shape[-1] ** 0.5)
    matrix = sums.reshape(*sums.shape[:-1], size, size).astype(float)
    total, correct = matrix.sum((-1, -2)), np.trace(matrix, axis1=-2, axis2=-1)
    true, predicted = matrix.sum(-1), matrix.sum(-2)
    spread = (total**2 - (true**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    return (correct * total - (true * predicted).sum(-1)) / np.sqrt(np.where(spread > 0, spread, np.inf))


def _moments(answers: SplitAnswers, ranked: bool) -> np.ndarray:
    x, y = (np.asarray(values, float) for values in answers.classes())
    x, y = (rankdata(x), rankdata(y)) if ranked else (x, y)
    x, y = x - x.mean(), y - y.mean()  # so that sums of squares lose fewer digits
    return np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), -1)


def _correlation(sums: Sums) -> np.ndarray:
    """Pearson's correlation; 0 for constants."""
    number, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (xx - x * x / number) * (yy - y * y / number)
    return (xy - x * y / number) / np.sqrt(np.where(spread > 0, spread, np.inf))


def _labelled_tokens(answers: SplitAnswers) -> np.ndarray:
    labels, predicted = np.asarray(answers.prediction.label_ids), np.asarray(answers.prediction.predictions)
    labelled = labels != IGNORED
    return np.stack((((labels == predicted) & labelled).sum(-1), labelled.sum(-1)), -1).astype(float)


def _entities(answers: SplitAnswers) -> np.ndarray:
    """True positives, predicted and actual entities of every text."""
    names, prediction = answers.label_names, answers.prediction
    counts = []
    for labels, predicted in zip(np.asarray(prediction.label_ids), np.asarray(prediction.predictions), strict=True):
        labelled = labels != IGNORED
        true, found = (set(get_entities([names[i] for i in row[labelled]])) for row in (labels, predicted))
        counts.append((len(true & found), len(found), len(true)))
    return np.asarray(counts, float)


def _token_losses(answers: SplitAnswers) -> np.ndarray:
    losses = np.asarray(answers.prediction.predictions, float)
    labels = np.asarray(answers.prediction.label_ids)
    labelled = labels != IGNORED
    return np.stack(((losses * labelled).sum(-1), labelled.sum(-1)), -1)


def _make_text_score(score: Callable[[str, str], float]) -> Callable[[SplitAnswers], np.ndarray]:
    def score_examples(answers: SplitAnswers) -> np.ndarray:
        references, texts = answers.texts or ((), ())
        best = [max(score(one, text) for one in right or [""]) for right, text in zip(references, texts, strict=True)]
        return np.stack((best, np.ones(len(best))), -1)

    return score_examples


# By the name of the metric.
EXAMPLE_SCORES = {
    "accuracy": ExampleScore(_correct, _ratio),
    "macro_f1": ExampleScore(_class_counts, _macro_f1),
    "matthews": ExampleScore(_confusion, _matthews),
    "pearson": ExampleScore(lambda answers: _moments(answers, ranked=False), _correlation, is_of_values=True),
    "spearman": ExampleScore(lambda answers: _moments(answers, ranked=True), _correlation, is_of_values=True),
    "entity_f1": ExampleScore(_entities, _f1),
    "token_accuracy": ExampleScore(_labelled_tokens, _ratio),
    "f1": ExampleScore(_make_text_score(answer_f1), _ratio),
    "exact_match": ExampleScore(
        _make_text_score(lambda right, text: float(normalize_answer(right) == normalize_answer(text))), _ratio
    ),
    "perplexity": ExampleScore(_token_losses, lambda sums: np.exp(_ratio(sums)), greater_is_better=False),
}
