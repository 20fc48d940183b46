"""Metrics of classes and values as `evaluate` modules over scikit-learn and scipy; they need no network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction
from transformers.utils import logging

from .data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType

logger = logging.get_logger(__name__)

CITATION = "Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python, JMLR 12."

ComputeMetrics: TypeAlias = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True)
class MetricInfo:
    """The properties of a metric that a run uses.

    Args:
        greater_is_better: whether larger values are better; `None` if unknown.
        hub_name: name of the metric on the Hub, if it differs.
    """

    greater_is_better: bool | None = True
    hub_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Metric(MetricInfo):
    """A metric of classes or values; larger is better.

    Args:
        problem_types: problem types that it applies to.
        compute: function of references and predictions.
    """

    problem_types: tuple[ProblemType, ...]
    compute: Callable[[np.ndarray, np.ndarray], float]


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    return sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0)


def _correlation(function: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    def compute(references: np.ndarray, predictions: np.ndarray) -> float:
        if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0  # undefined for a constant
        return function(references, predictions).statistic

    return compute


CLASSES, VALUES = (SINGLE_LABEL, MULTI_LABEL), (REGRESSION,)
METRICS = {
    "accuracy": Metric(problem_types=CLASSES, compute=sklearn_metrics.accuracy_score),
    "macro_f1": Metric(problem_types=CLASSES, compute=_macro_f1, hub_name="f1"),
    "matthews": Metric(
        problem_types=(SINGLE_LABEL,), compute=sklearn_metrics.matthews_corrcoef, hub_name="matthews_correlation"
    ),
    "pearson": Metric(problem_types=VALUES, compute=_correlation(stats.pearsonr), hub_name="pearsonr"),
    "spearman": Metric(problem_types=VALUES, compute=_correlation(stats.spearmanr), hub_name="spearmanr"),
}


class LocalMetric(evaluate.Metric):
    """One metric of `METRICS` as an `evaluate` module, by its name as `config_name`."""

    def _info(self) -> evaluate.MetricInfo:
        is_regression = METRICS[self.config_name].problem_types == VALUES
        feature = datasets.Value("float64" if is_regression else "int64")
        features = [datasets.Features({"predictions": feature, "references": feature})]
        if not is_regression:  # rows of zeros and ones for several labels at once
            row = datasets.Sequence(feature)
            features.append(datasets.Features({"predictions": row, "references": row}))
        return evaluate.MetricInfo(
            description=f"{self.config_name} over scikit-learn or scipy",
            citation=CITATION,
            inputs_description="predictions, references",
            features=features,
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        value = METRICS[self.config_name].compute(np.asarray(references), np.asarray(predictions))
        return {self.config_name: float(value)}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """Returns one of `METRICS` by name, or any other metric that `evaluate.load` can load.

    Raises:
        ValueError: there is no such metric, or it cannot be loaded.

    Example:

    ```python
    >>> load_metric("accuracy").compute(predictions=[0, 1, 1], references=[0, 1, 0])
    {'accuracy': 0.6666666666666666}

    ```
    """
    if name in METRICS:
        return LocalMetric(config_name=name, keep_in_memory=True)
    try:
        return evaluate.load(name)
    except Exception as error:
        raise ValueError(
            f"`metrics`: {name!r} is not one of {', '.join(METRICS)}, and `evaluate.load` could not fetch it "
            f"({type(error).__name__}). Check the name and the network."
        ) from error


def default_metrics(problem_type: ProblemType, num_labels: int) -> list[str]:
    """Returns the default metrics of a problem type; the first one chooses the best checkpoint.

    Example:

    ```python
    >>> default_metrics("single_label_classification", num_labels=3)
    ['accuracy', 'macro_f1']

    ```
    """
    if problem_type == REGRESSION:
        return ["pearson", "spearman"]
    binary = problem_type == SINGLE_LABEL and num_labels == 2
    return ["accuracy", "macro_f1", "matthews"] if binary else ["accuracy", "macro_f1"]


def make_compute_metrics(problem_type: ProblemType, names: Sequence[str]) -> ComputeMetrics:
    """Returns the `compute_metrics` of a Trainer: from logits and labels to metrics.

    Args:
        problem_type: type of the problem.
        names: names of the metrics.

    Raises:
        ValueError: a metric cannot be loaded, or does not apply to the problem type.
    """
    for name in names:
        if name in METRICS and problem_type not in METRICS[name].problem_types:
            suited = ", ".join(other for other, metric in METRICS.items() if problem_type in metric.problem_types)
            raise ValueError(f"`metrics`: {name!r} does not suit {problem_type}; use {suited}.")
    modules = [load_metric(name) for name in names]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers, labels = predict_labels(logits_of(prediction), problem_type), np.asarray(prediction.label_ids)
        labels = labels.squeeze(-1) if labels.ndim > answers.ndim else labels
        labels = labels.astype(int) if problem_type == MULTI_LABEL else labels
        results: dict[str, float] = {}
        for module in modules:
            results.update(module.compute(predictions=answers, references=labels))
        return results

    return compute_metrics


def logits_of(prediction: EvalPrediction) -> np.ndarray:
    """Returns the logits of a prediction; some models return further outputs after them."""
    outputs = prediction.predictions
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)


def predict_labels(logits: np.ndarray, problem_type: ProblemType) -> np.ndarray:
    """Turns logits into predictions.

    Args:
        logits: outputs of a head, `(N, C)`.
        problem_type: type of the problem.

    Returns:
        Class numbers `(N,)`, values `(N,)` for regression, or zeros and ones `(N, C)` for several labels.

    Example:

    ```python
    >>> import numpy as np
    >>> predict_labels(np.array([[0.1, 2.0], [3.0, -1.0]]), "single_label_classification").tolist()
    [1, 0]

    ```
    """
    if unknown := int(np.isnan(logits).any(tuple(range(1, logits.ndim))).sum()):
        logger.warning_once(
            f"{unknown} of {len(logits)} answers are NaN, which metrics take for the first class: the weights of the "
            "model are not finite, or its iterations diverge."
        )
    if problem_type == REGRESSION:
        return logits.squeeze(-1) if logits.shape[-1] == 1 else logits
    return (logits > 0).astype(int) if problem_type == MULTI_LABEL else logits.argmax(-1)


# Endings of what the Trainer counts besides.
NOT_SHOWN = ("_flos", "_per_second", "_preparation_time", "epoch")


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Returns metrics as a table, one a line, without what the Trainer counts besides.

    Example:

    ```python
    >>> print(format_metrics({"eval_accuracy": 0.5, "eval_runtime": 2.25, "epoch": 1.0}))
      eval_accuracy  0.5000
      eval_runtime   2.2500

    ```
    """
    shown = {name: value for name, value in metrics.items() if not name.endswith(NOT_SHOWN)}
    rows = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in shown.items()}
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows.items())
