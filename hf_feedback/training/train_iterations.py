"""Rules for the number of iterations of each training step: fixed, drawn at random, or rising."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class IterationRange:
    """The iterations that a training step may take.

    Args:
        minimum: smallest K.
        mean: the model's own K.
        maximum: largest K.
    """

    minimum: int
    mean: int
    maximum: int


class IterationRule(ABC):
    """A rule for the number of iterations of each training step."""

    def default_maximum(self, mean: int) -> int:
        """Returns the default of the largest K."""
        return mean

    def varies(self, limits: IterationRange) -> bool:
        """Whether different steps may take different numbers of iterations."""
        return limits.minimum < limits.maximum

    @abstractmethod
    def draw(self, limits: IterationRange, generator: np.random.Generator, progress: float) -> int:
        """Returns the K of one step.

        Args:
            limits: the range of K.
            generator: random generator of this step.
            progress: completed share of the training, from 0 to 1.
        """


class FixedIterations(IterationRule):
    """The model's own K in every step."""

    def draw(self, limits: IterationRange, generator: np.random.Generator, progress: float) -> int:
        return limits.mean


class UniformIterations(IterationRule):
    """Every K from the minimum to the maximum is equally likely."""

    def draw(self, limits: IterationRange, generator: np.random.Generator, progress: float) -> int:
        return int(generator.integers(limits.minimum, limits.maximum + 1))


class PoissonIterations(IterationRule):
    """The minimum and a Poisson-distributed number more, so that the mean is the model's K; its rate is log-normal.

    Source: Geiping et al. 2025, Scaling up Test-Time Compute with Latent Reasoning, arXiv 2502.05171.
    """

    sigma = 0.5

    def default_maximum(self, mean: int) -> int:
        return 4 * mean

    def varies(self, limits: IterationRange) -> bool:
        return limits.minimum < limits.mean

    def draw(self, limits: IterationRange, generator: np.random.Generator, progress: float) -> int:
        log_mean = math.log(max(limits.mean - limits.minimum, 1e-9))
        rate = math.exp(generator.normal(log_mean - self.sigma**2 / 2, self.sigma))
        return min(limits.maximum, limits.minimum + int(generator.poisson(rate)))


class RisingIterations(IterationRule):
    """From the minimum to the maximum in equal parts of the training."""

    def draw(self, limits: IterationRange, generator: np.random.Generator, progress: float) -> int:
        steps = limits.maximum - limits.minimum + 1
        return min(limits.maximum, limits.minimum + int(progress * steps))


ITERATION_RULES: dict[str, IterationRule] = {
    "fixed": FixedIterations(),
    "uniform": UniformIterations(),
    "poisson": PoissonIterations(),
    "curriculum": RisingIterations(),
}


def iteration_range(rule: str, minimum: int, mean: int, maximum: int | None = None) -> IterationRange:
    """Returns the range of K of a rule.

    Args:
        rule: key of `ITERATION_RULES`.
        minimum: smallest K.
        mean: the model's own K.
        maximum: largest K; the rule's default if `None`.

    Raises:
        ValueError: the limits contradict each other, or leave nothing to choose.

    Example:

    ```python
    >>> iteration_range("poisson", 2, mean=4)
    IterationRange(minimum=2, mean=4, maximum=16)

    ```
    """
    maximum = ITERATION_RULES[rule].default_maximum(mean) if maximum is None else maximum
    if not 1 <= minimum <= min(mean, maximum):
        raise ValueError(
            f"`min_train_iterations` must be between 1 and the model's K ({mean}) and `max_train_iterations` "
            f"({maximum}), got {minimum}."
        )
    limits = IterationRange(minimum, mean, maximum)
    if not ITERATION_RULES[rule].varies(limits):
        raise ValueError(
            f"`train_iterations`={rule!r} has nothing to draw from {minimum} to {maximum} with the model's K = {mean}; "
            "raise K or `max_train_iterations`, lower `min_train_iterations`, or use 'fixed'."
        )
    return limits


def draw_iterations(rule: str, limits: IterationRange, seed: int, step: int, progress: float) -> int:
    """Returns the K of one optimizer step. It depends on seed and step alone: every process draws the same.

    Args:
        rule: key of `ITERATION_RULES`.
        limits: the range of K.
        seed: seed of the training.
        step: number of the optimizer step.
        progress: completed share of the training, from 0 to 1.

    Example:

    ```python
    >>> [draw_iterations("curriculum", IterationRange(2, 4, 4), 0, step, step / 6) for step in range(6)]
    [2, 2, 3, 3, 4, 4]

    ```
    """
    return ITERATION_RULES[rule].draw(limits, np.random.default_rng((seed, step)), progress)
