"""Advice after a training run, derived from its own numbers."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from transformers import EvalPrediction

from .data.labels import SINGLE_LABEL, LabelSet
from .metrics import ComputeMetrics, logits_of

UNEVEN = 10  # times as many rows in the largest class as in the smallest
MUCH_CUT = 0.05  # share of the texts
OVERFITTED = 1.1  # times the least validation loss

LogHistory: TypeAlias = Sequence[Mapping[str, float]]


@dataclass
class PredictionCounter:
    """Metrics of a classifier that also counts its predictions.

    Args:
        compute_metrics: the metrics.
        labels: labels of the classifier.

    Attributes:
        predicted: how often each label was predicted in the last evaluation.
        right: how often each label was the right one in the last evaluation.
    """

    compute_metrics: ComputeMetrics
    labels: LabelSet
    predicted: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        if self.labels.problem_type == SINGLE_LABEL:
            self.predicted = Counter(self.labels.names[number] for number in logits_of(prediction).argmax(-1))
            self.right = Counter(self.labels.names[int(number)] for number in np.asarray(prediction.label_ids))
        return self.compute_metrics(prediction)

    def forget(self) -> None:
        """Forgets the last evaluation, where it is not one of a model that was trained."""
        self.predicted, self.right = Counter(), Counter()


def advice_on_classes(counter: PredictionCounter) -> list[str]:
    """Returns advice that follows from the predictions of a classifier on its validation rows.

    Example:

    ```python
    >>> counter = PredictionCounter(dict, LabelSet("single_label_classification", ("late", "lost")))
    >>> counter.predicted, counter.right = Counter(late=4), Counter(late=3, lost=1)
    >>> advice_on_classes(counter)[0].split(":")[0]
    'All 4 predictions are late'

    ```
    """
    total = counter.right.total()
    if total > 1 and len(counter.predicted) == 1 and len(counter.right) > 1:
        only = next(iter(counter.predicted))
        return [
            f"All {total} predictions are {only:.40}: raise `--learning-rate` or train longer, and check that texts "
            "and labels belong together."
        ]
    never = [name for name in counter.right if not counter.predicted[name]]
    if not never:
        return []
    shown = ", ".join(f"{name:.40} (in {counter.right[name]} rows)" for name in never[:5])
    more = ", …" if len(never) > 5 else ""
    return [
        f"Never predicted: {shown}{more}. Give these classes more rows or more weight (`--class-weights balanced`), or "
        "train longer."
    ]


def read_history(folder: Path) -> LogHistory:
    """Returns the log of a finished run, `log_history` of its trainer.

    The evaluation of the final model, which follows training, is left out.
    """
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    evaluations = [i for i, entry in enumerate(history) if "eval_runtime" in entry]
    return history[: evaluations[-1]] if evaluations else history


def advice_on_course(history: LogHistory, metric: str | None, greater_is_better: bool | None) -> list[str]:
    """Returns advice that follows from the training and validation curves.

    Args:
        history: the log of the trainer, `log_history`.
        metric: the metric that chooses the best epoch; the loss if there is none.
        greater_is_better: whether larger values are better.

    Example:

    ```python
    >>> rising = [{"eval_accuracy": accuracy, "eval_loss": 1.0} for accuracy in (0.5, 0.6, 0.7)]
    >>> advice_on_course(rising, "accuracy", greater_is_better=True)
    ['Validation is best at the last evaluation (accuracy 0.6000, then 0.7000): train longer (`--num-train-epochs`).']

    ```
    """
    name = f"eval_{(metric or 'loss').removeprefix('eval_')}"
    values = [entry[name] for entry in history if name in entry]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    advice = []
    sign = 1 if greater_is_better else -1
    if len(values) > 1 and sign * values[-1] > max(sign * value for value in values[:-1]):
        advice.append(
            f"Validation is best at the last evaluation ({name.removeprefix('eval_')} {values[-2]:.4f}, then "
            f"{values[-1]:.4f}): train longer (`--num-train-epochs`)."
        )
    train = [entry["loss"] for entry in history if "loss" in entry]
    if len(losses) > 1 and train and losses[-1] > OVERFITTED * min(losses) and train[-1] < min(losses):
        advice.append(
            f"The model overfits: its training loss is {train[-1]:.4f}, its validation loss rose "
            f"from {min(losses):.4f} to {losses[-1]:.4f}. Train for fewer epochs, freeze lower layers (`--freeze`), "
            "lower `--backbone-lr`, or use more rows."
        )
    if len(train) > 1 and train[-1] >= train[0]:
        advice.append(
            f"The training loss has not fallen ({train[0]:.4f} at first, {train[-1]:.4f} at last): try another "
            "`--learning-rate`, a lower one if the loss rose."
        )
    return advice


def advice_on_data(counts: Mapping[str, int], cut_share: float, max_length: int) -> list[str]:
    """Returns advice that follows from the training rows.

    Args:
        counts: rows of each class; empty where there are no classes.
        cut_share: share of the texts that are truncated.
        max_length: number of tokens to which they are truncated.

    Example:

    ```python
    >>> advice_on_data({"late": 8, "lost": 8}, cut_share=0.25, max_length=128)[0].split(":")[0]
    '25.0% of the texts are cut at 128 tokens'

    ```
    """
    advice = []
    if cut_share >= MUCH_CUT:
        advice.append(
            f"{cut_share:.1%} of the texts are cut at {max_length} tokens: raise `--max-length`, or read long texts in "
            "segments (`--feedback-span segment`)."
        )
    if counts and max(counts.values()) >= UNEVEN * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        advice.append(
            f"Classes are uneven ({most:.40} has {counts[most]} rows, {least:.40} {counts[least]}): judge by "
            "`--metrics macro_f1`, and try `--class-weights balanced`."
        )
    return advice
