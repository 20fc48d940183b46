"""Choice of the number of iterations and the halting rule of a trained model under a time budget."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction

from ..configuration_feedback import FeedbackConfig
from ..modeling_base import FeedbackPreTrainedModel
from ..training.starting_model.model_arguments import Options
from ..training.starting_model.model_setup import set_options
from ..training.trainer import FeedbackTrainer

TIMING_NOISE = 0.1  # share of a measured time by which another one may differ for nothing

# Halting rules, and the thresholds to try.
HALTING_CANDIDATES: Mapping[str, Sequence[Options]] = {
    "convergence": [{"halting_threshold": value} for value in (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)],
    "confidence": [{"halting_confidence": value} for value in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)],
    "patience": [{"halting_patience": value} for value in (2, 3)],
    "confidence|patience": [{"halting_confidence": v, "halting_patience": 2} for v in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)],
}


@dataclass(frozen=True)
class IterationChoice:
    """Measurements of a model with some options.

    Args:
        options: K and the options of halting.
        metric: metric on the labelled texts, 0 to 1; larger is better.
        iterations: mean number of iterations per text.
        milliseconds: time per text, the best of several rounds.
    """

    options: Options
    metric: float
    iterations: float
    milliseconds: float

    @property
    def name(self) -> str:
        """The options in words."""
        rest = [
            f"{name.removeprefix('halting_')} {self.options[name]:g}" for name in self.options if "halting_" in name
        ]
        k = f"K = {self.options['num_iterations']}"
        return k if self.options["halting"] == "none" else ", ".join([f"{k} at most", self.options["halting"], *rest])


def candidates(max_iterations: int, config: FeedbackConfig) -> Iterator[Options]:
    """Returns every K up to the largest, then every halting rule with the largest.

    Args:
        max_iterations: largest K.
        config: config of the model, which may predict values that only convergence suits.

    Example:

    ```python
    >>> [options["num_iterations"] for options in candidates(3, FeedbackConfig()) if options["halting"] == "none"]
    [1, 2, 3]

    ```
    """
    for k in range(1, max_iterations + 1):
        yield {"num_iterations": k, "halting": "none"}
    if max_iterations > 1:
        for rule, thresholds in HALTING_CANDIDATES.items():
            if rule != "convergence" and config.predicts_values:
                continue
            for threshold in thresholds:
                yield {"num_iterations": max_iterations, "halting": rule, "min_iterations": 1, **threshold}


@torch.no_grad()
def measure_choice(trainer: FeedbackTrainer, data: Dataset, options: Options, rounds: int = 3) -> IterationChoice:
    """Measures a model on labelled texts with some options, which it keeps.

    Args:
        trainer: the trainer with the model and its metrics, of which the first counts.
        data: encoded texts with labels.
        options: K and the options of halting.
        rounds: number of time measurements, of which the fastest counts.

    Raises:
        ValueError: the model does not support the halting rule.
    """
    model = cast(FeedbackPreTrainedModel, trainer.model).eval()
    model.set_num_iterations(options["num_iterations"])
    set_options(model, "the model", {name: value for name, value in options.items() if name != "num_iterations"})
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_eval_dataloader(data)]
    seconds = []
    for _ in range(rounds):
        logits, iterations = [], 0.0
        started = time.perf_counter()
        for batch in batches:
            output = model(**batch)
            taken = output.iterations
            iterations += float(len(output.logits) * options["num_iterations"] if taken is None else taken.sum())
            logits.append(output.logits.float().cpu())
        seconds.append(time.perf_counter() - started)
    labels = np.concatenate([batch["labels"].cpu().numpy() for batch in batches])
    prediction = EvalPrediction(torch.cat(logits).numpy(), labels)
    metric = next(iter(cast(Any, trainer.compute_metrics)(prediction).values()))
    if np.isnan(cast(np.ndarray, prediction.predictions)).any():
        metric = -math.inf  # the loop diverges, and the class of NaN says nothing
    count = len(labels)
    return IterationChoice(options, metric, iterations / count, 1000 * min(seconds) / count)


def choose(choices: Sequence[IterationChoice], budget: float | None, tolerance: float) -> IterationChoice:
    """Returns the fastest choice whose metric is within the tolerance of the best one within the budget.

    Of those that are as fast, up to the noise of the measurement, it is one without halting, or else the one with the
    fewest iterations.

    Args:
        choices: the measured choices.
        budget: maximum milliseconds per text; `None`: any.
        tolerance: difference to the best, in the metric's units, that counts as equal.

    Raises:
        ValueError: no choice is within the budget, or the answers of the model are NaN.

    Example:

    ```python
    >>> slow = IterationChoice({"num_iterations": 3, "halting": "none"}, 0.91, 3.0, 9.0)
    >>> fast = IterationChoice({"num_iterations": 2, "halting": "none"}, 0.90, 2.0, 6.0)
    >>> choose([slow, fast], None, 0.0).name, choose([slow, fast], None, 0.02).name, choose([slow, fast], 7, 0.0).name
    ('K = 3', 'K = 2', 'K = 2')

    ```
    """
    within = [choice for choice in choices if budget is None or choice.milliseconds <= budget]
    if not within:
        fastest = min(choices, key=lambda choice: choice.milliseconds)
        raise ValueError(
            f"`milliseconds`={budget:g} is less than {fastest.name} takes, {fastest.milliseconds:.2f} a text, which is "
            "the fastest; allow more, or use a smaller backbone."
        )
    best = max(choice.metric for choice in within)
    if best == -math.inf:
        raise ValueError("`model`: its answers are NaN with any number of iterations; train it again.")
    good = sorted((one for one in within if one.metric >= best - tolerance), key=_simplicity)
    plain = [one for one in good if one.options["halting"] == "none"]
    # a rule that saves no iteration cannot be faster, whatever the clock says
    good = [one for one in good if one in plain or not any(_does_as_well(other, one) for other in plain)]
    least = min(choice.milliseconds for choice in good)
    return next(choice for choice in good if choice.milliseconds <= (1 + TIMING_NOISE) * least)


def _does_as_well(plain: IterationChoice, choice: IterationChoice) -> bool:
    return plain.metric >= choice.metric and plain.iterations <= choice.iterations


def _simplicity(choice: IterationChoice) -> tuple[bool, float]:
    return choice.options["halting"] != "none", choice.iterations


def save_choice(folder: str, choice: IterationChoice) -> None:
    """Writes the options into the config in a model's folder."""
    config = FeedbackConfig.from_pretrained(folder)
    for name, value in choice.options.items():
        setattr(config, name, value)
    config.check_options()
    config.save_pretrained(folder)
