"""Metrics as `evaluate` modules over scikit-learn and scipy; they need no network."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sk
from transformers import EvalPrediction

CITATION = "Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python, JMLR 12."


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    return sk.f1_score(references, predictions, average="macro", zero_division=0)


def _correlation(function: Callable) -> Callable:
    def compute(references: np.ndarray, predictions: np.ndarray) -> float:
        if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0  # undefined for a constant
        return function(references, predictions).statistic

    return compute


SINGLE, SEVERAL, VALUES = "single_label_classification", "multi_label_classification", "regression"

# name → (the problems that it suits, function of references and predictions); more is better for all of them
METRICS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "accuracy": ((SINGLE, SEVERAL), sk.accuracy_score),
    "macro_f1": ((SINGLE, SEVERAL), _macro_f1),
    "matthews": ((SINGLE,), sk.matthews_corrcoef),
    "pearson": ((VALUES,), _correlation(stats.pearsonr)),
    "spearman": ((VALUES,), _correlation(stats.spearmanr)),
}


class LocalMetric(evaluate.Metric):
    """One metric of `METRICS`, by its name as `config_name`.

    Example:

    ```python
    >>> from hf_feedback.training.metrics import load_metric
    >>> load_metric("accuracy").compute(predictions=[0, 1, 1], references=[0, 1, 0])
    {'accuracy': 0.6666666666666666}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        kind = "float64" if METRICS[self.config_name][0] == (VALUES,) else "int64"
        feature = datasets.Value(kind)
        # rows of zeros and ones where a text has several labels at once
        several = {"predictions": datasets.Sequence(feature), "references": datasets.Sequence(feature)}
        features = [datasets.Features({"predictions": feature, "references": feature})]
        features += [datasets.Features(several)] if kind == "int64" else []
        return evaluate.MetricInfo(
            description=f"{self.config_name} over scikit-learn or scipy",
            citation=CITATION,
            inputs_description="predictions, references",
            features=features,
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        compute = METRICS[self.config_name][1]
        return {self.config_name: float(compute(np.asarray(references), np.asarray(predictions)))}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """A metric of ours by name, or any other that `evaluate.load` reaches.

    Raises:
        ValueError: there is no such metric, or it cannot be reached.
    """
    if name in METRICS:
        return LocalMetric(config_name=name, keep_in_memory=True)
    try:
        return evaluate.load(name)
    except Exception as error:
        raise ValueError(
            f"`metrics`: {name!r} is none of {', '.join(METRICS)}, and `evaluate.load` could not fetch it "
            f"({type(error).__name__}). Check the name and the network."
        ) from error


def default_metrics(problem_type: str, num_labels: int) -> list[str]:
    """The metrics that suit a problem; the first one chooses the best checkpoint."""
    if problem_type == VALUES:
        return ["pearson", "spearman"]
    binary = problem_type == SINGLE and num_labels == 2
    return ["accuracy", "macro_f1", "matthews"] if binary else ["accuracy", "macro_f1"]


def make_compute_metrics(problem_type: str, names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for a Trainer: logits and labels → the metrics `names`.

    Raises:
        ValueError: a metric cannot be reached, or does not suit the problem.
    """
    for name in names:
        if name in METRICS and problem_type not in METRICS[name][0]:
            suited = ", ".join(other for other, (problems, _) in METRICS.items() if problem_type in problems)
            raise ValueError(f"`metrics`: {name!r} does not suit {problem_type}; use {suited}.")
    modules = [load_metric(name) for name in names]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        answers, labels = decide(np.asarray(logits), problem_type), np.asarray(prediction.label_ids)
        labels = labels.squeeze(-1) if labels.ndim > answers.ndim else labels
        labels = labels.astype(int) if problem_type == "multi_label_classification" else labels
        found: dict[str, float] = {}
        for module in modules:
            found.update(module.compute(predictions=answers, references=labels))
        return found

    return compute_metrics


def decide(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Logits `(N, C)` → class numbers `(N,)`, values `(N,)` for regression, or zeros and ones `(N, C)`."""
    if problem_type == "regression":
        return logits.squeeze(-1) if logits.shape[-1] == 1 else logits
    return (logits > 0).astype(int) if problem_type == "multi_label_classification" else logits.argmax(-1)
