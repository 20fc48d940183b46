"""Evaluation of a classifier by class: precision, recall, F1, confusion and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.special import expit, softmax
from seqeval.metrics import classification_report as entity_report
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from transformers import EvalPrediction

from ..training.data.labels import IGNORED, MULTI_LABEL, REGRESSION, LabelSet
from ..training.data.tags import is_bio
from ..training.metrics import logits_of, predict_labels
from ..training.tasks import MultipleChoice, Task, TokenClassification
from .diagnostics import calibrate

ClassReport: TypeAlias = dict[str, Any]
SCORES = ("precision", "recall", "f1", "support")
AVERAGES = ("macro", "micro", "weighted")


@dataclass(frozen=True)
class ClassAnswers:
    """The right and the predicted classes of items: texts, words, images or recordings.

    Args:
        labels: numbers of the right classes, `(N,)`; zeros and ones `(N, C)` for several labels at once.
        predicted: predicted classes, in the same form.
        confidence: probability of each prediction, of the same shape.
        names: names of the classes in the order of their numbers.
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of_logits(cls, prediction: EvalPrediction, labels: LabelSet) -> "ClassAnswers":
        """Returns the predictions of logits."""
        logits = logits_of(prediction).astype(float)
        predicted = predict_labels(logits, labels.problem_type)
        several = labels.problem_type == MULTI_LABEL
        confidence = expit(np.abs(logits)) if several else softmax(logits, -1).max(-1)
        return cls(np.asarray(prediction.label_ids).astype(int), predicted, confidence, labels.names)

    @classmethod
    def of_tags(cls, prediction: EvalPrediction, names: tuple[str, ...]) -> "ClassAnswers":
        """Returns the predictions for words, from tags with their probabilities."""
        labels, predicted = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
        labelled = labels != IGNORED
        tags, confidence = predicted[labelled].T
        return cls(labels[labelled], tags.astype(int), confidence, names)

    def report(self) -> ClassReport:
        """Returns accuracy, the scores of each class and their averages, calibration, and confusion.

        Accuracy counts whole items: of several labels at once, all must be right. Averages leave out classes that are
        neither right nor predicted anywhere, as scikit-learn does.
        """
        right = self.labels == self.predicted
        numbers = np.arange(len(self.names))
        occurring = np.union1d(self.labels, self.predicted) if self.labels.ndim == 1 else numbers

        def scores(average: str | None) -> tuple[Any, ...]:
            labels = numbers if average is None else occurring
            return precision_recall_fscore_support(
                self.labels, self.predicted, labels=labels, average=average, zero_division=0
            )

        each = [dict(zip(SCORES, map(float, values), strict=True)) for values in zip(*scores(None), strict=True)]
        report: ClassReport = {"accuracy": float(right.reshape(len(right), -1).all(-1).mean())}
        report |= {name: dict(zip(SCORES[:3], map(float, scores(name)[:3]), strict=True)) for name in AVERAGES}
        report["classes"] = dict(zip(self.names, each, strict=True))
        report["calibration"] = calibrate(self.confidence.flatten(), right.flatten())
        if self.labels.ndim == 1:
            report["confusion"] = confusion_matrix(self.labels, self.predicted, labels=numbers).tolist()
        return report


def has_confusion(task: Task) -> bool:
    """Whether the report of a task has a confusion matrix: whether it predicts one class per item.

    Args:
        task: the task, with its model.
    """
    if isinstance(task, TokenClassification):
        return True
    if isinstance(task, MultipleChoice) or not task.card.labelled:
        return False
    return LabelSet.of_model(task.model).problem_type not in (MULTI_LABEL, REGRESSION)


def report_of(task: Task, prediction: EvalPrediction) -> ClassReport | None:
    """Returns the report on the predictions of a task.

    Args:
        task: the task, with its model.
        prediction: from `EvaluationRun.predict`.

    Returns:
        For values, their errors; for choices, accuracy and calibration; for entities, scores of each type; `None` for
        other predictions.
    """
    labels = LabelSet.of_model(task.model)
    if isinstance(task, TokenClassification):
        report = ClassAnswers.of_tags(prediction, labels.names).report()
        return report if not all(map(is_bio, labels.names)) else {**report, **_entities(prediction, labels.names)}
    if isinstance(task, MultipleChoice):
        names = tuple(map(str, range(np.asarray(prediction.predictions).shape[-1])))
        choices = ClassAnswers.of_logits(prediction, LabelSet("single_label_classification", names)).report()
        return {name: choices[name] for name in ("accuracy", "calibration")}
    if not task.card.labelled:
        return None
    if labels.problem_type == REGRESSION:
        return _errors(prediction)
    return ClassAnswers.of_logits(prediction, labels).report()


def _entities(prediction: EvalPrediction, names: Sequence[str]) -> ClassReport:
    """Scores of each type of entity and their averages; an entity counts only with its exact words."""
    labels, predicted = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)[..., 0].astype(int)
    references, answers = (
        [[names[number] for number in row[mask]] for row, mask in zip(numbers, labels != IGNORED, strict=True)]
        for numbers in (labels, predicted)
    )
    raw: Mapping[str, Mapping[str, float]] = entity_report(references, answers, output_dict=True, zero_division=0)
    scores = {
        name: dict(zip(SCORES, (float(value) for value in values.values()), strict=True))
        for name, values in raw.items()
    }
    averages = {name: scores.pop(f"{name} avg") for name in AVERAGES}
    return {"classes": scores, **{name: {one: values[one] for one in SCORES[:3]} for name, values in averages.items()}}


def _errors(prediction: EvalPrediction) -> ClassReport:
    values = np.asarray(prediction.predictions, dtype=float)
    differences = values.reshape(len(values), -1) - np.asarray(prediction.label_ids).reshape(len(values), -1)
    return {
        "mean_absolute_error": float(np.abs(differences).mean()),
        "root_mean_squared_error": float(np.sqrt((differences**2).mean())),
    }


def format_report(report: ClassReport) -> str:
    """Formats a report as a table, one class per line."""
    lines = []
    if "classes" in report:
        rows = {**report["classes"], **{f"({name})": report[name] for name in AVERAGES}}
        width = max(len(name[:40]) for name in rows)
        lines.append(f"  {'':{width}}  {'precision':>9}  {'recall':>9}  {'f1':>9}  {'support':>9}")
        for name, scores in rows.items():
            cells = [f"{scores[score]:9.4f}" for score in SCORES[:3]]
            support = f"{scores['support']:9.0f}" if "support" in scores else ""
            lines.append("  ".join([f"  {name[:40]:{width}}", *cells, support]).rstrip())
    if "calibration" in report:
        ece, confidence = report["calibration"]["ece"], report["calibration"]["confidence"]
        lines.append(f"  expected calibration error {ece:.4f}, mean confidence {confidence:.4f}")
    lines += [f"  {name}  {report[name]:.4f}" for name in report if name.endswith("_error")]
    return "\n".join(lines)
