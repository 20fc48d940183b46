"""Paired statistics of two arms: intervals over seeds and test examples, tests, and numbers of seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

Values: TypeAlias = np.ndarray  # (R, S): a metric by replicate and seed
NUM_REPLICATES = 2000
MIN_SEEDS = 3  # with fewer, the variance over seeds is not known well enough for a verdict
LEVEL = 0.95
# From the half-width of a 95% interval to the least difference that it leaves out zero for with probability 0.8.
FOR_POWER = 1 + float(stats.norm.ppf(0.8) / stats.norm.ppf(0.975))
VERDICTS = ("ahead", "behind", "equivalent", "cannot tell")


@dataclass(frozen=True)
class Difference:
    """A paired difference of two arms, in the metric's own units; larger is better.

    Args:
        mean: mean over the seeds, on the whole test split.
        by_seed: difference of each seed, on the whole test split.
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
        equivalence: 90% interval; the two are equivalent within a margin that contains it.
        p_value: p-value of a two-sided sign-flip permutation test over the seeds; `None` with one seed.
        least_p_value: smallest p-value of this test with that number of seeds.
        of_examples: half-width of the interval from the test examples alone, with as many seeds; with more it is at
            most that.
        resolution: largest difference that the number of test examples can fail to show.
    """

    mean: float
    by_seed: tuple[float, ...]
    low: float
    high: float
    equivalence: tuple[float, float]
    p_value: float | None
    least_p_value: float
    of_examples: float = 0.0
    resolution: float = 0.0

    @property
    def num_seeds(self) -> int:
        return len(self.by_seed)

    @property
    def is_finite(self) -> bool:
        """Whether the metric was finite with every seed."""
        return bool(np.isfinite(self.by_seed).all())

    def needs_more_examples(self, margin: float) -> bool:
        """Whether the spread over test examples, with models of these seeds, hides a difference of the margin."""
        return max(FOR_POWER * self.of_examples, self.resolution) >= margin

    def verdict(self, margin: float) -> str:
        """`"ahead"`, `"behind"`, `"equivalent"` or `"cannot tell"`.

        Args:
            margin: smallest difference that matters.

        Example:

        ```python
        >>> Difference(0.02, (0.01, 0.02, 0.03), -0.005, 0.045, (0.0, 0.04), 0.25, 0.25).verdict(margin=0.01)
        'cannot tell'

        ```
        """
        if self.num_seeds < MIN_SEEDS or not np.isfinite((self.low, self.high, *self.equivalence)).all():
            return "cannot tell"
        if max(self.resolution, *map(abs, self.equivalence)) < margin:
            return "equivalent"
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "cannot tell"


def resample_examples(
    examples: Sequence[np.ndarray], metric: Callable[[np.ndarray], np.ndarray], weights: np.ndarray
) -> Values:
    """Computes a metric on resampled test examples.

    Args:
        examples: `(N, s)` for each seed, contributions of the examples to the sums that the metric is a function of.
        metric: sums `(R, s)` → values `(R,)`.
        weights: `(R, N)`, how often each example is drawn.

    Returns:
        `(R, S)`.
    """
    return np.stack([metric(weights @ one) for one in examples], axis=1)


def draw_examples(number: int, num_replicates: int = NUM_REPLICATES, seed: int = 0) -> np.ndarray:
    """Returns how often each of N examples is drawn in each bootstrap replicate, `(R, N)`."""
    generator = np.random.default_rng(seed)
    draws = np.empty((num_replicates, number), np.float32)
    for row in draws:  # all at once would take twice the memory
        row[:] = generator.multinomial(number, np.full(number, 1 / number))
    return draws


def compare_paired(point: np.ndarray, replicates: Values, seed: int = 1, resolution: float = 0.0) -> Difference:
    """Returns the difference of two arms with the same seeds and data.

    Seeds and test examples are both resampled. Since resampling underestimates the variance over few seeds, that part
    of the interval is widened as Student's is. The interval is cautious: what varies with the seed and the example
    together is counted up to three times, so that it is at most about 1.7 times as wide as it need be.

    Args:
        point: `(S,)`, the difference for each seed on the whole test split.
        replicates: `(R, S)`, the same on resampled test examples.
        seed: seed of the resampling.
        resolution: largest difference that the number of test examples can fail to show.

    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, The American Statistician 69(4), for the
        bias of intervals from few values; Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), for
        resampling two factors.

    Example:

    ```python
    >>> point = np.array([0.02, 0.03, 0.025, 0.02])
    >>> found = compare_paired(point, np.tile(point, (2000, 1)))
    >>> round(found.mean, 4), found.low > 0, found.least_p_value
    (0.0238, True, 0.125)

    ```
    """
    num_replicates, num_seeds = replicates.shape
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_replicates) / num_seeds
    over_examples = replicates.mean(1)
    over_seeds = (weights * replicates).sum(1) - over_examples

    def interval(level: float) -> tuple[float, float]:
        tail = (1 - level) / 2
        spread = over_examples + widening(num_seeds, level) * over_seeds
        low, high = np.quantile(spread, (tail, 1 - tail))
        return float(low), float(high)

    low, high = interval(LEVEL)
    return Difference(
        mean=float(point.mean()),
        by_seed=tuple(map(float, point)),
        low=low,
        high=high,
        equivalence=interval(2 * LEVEL - 1),
        p_value=sign_flip_p_value(point),
        least_p_value=2.0 ** (1 - num_seeds),
        of_examples=float(np.diff(np.quantile(over_examples, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))[0]) / 2,
        resolution=resolution,
    )


def mean_over_data(differences: Sequence[Difference]) -> Difference:
    """Returns the mean of the differences on several data sets, which count alike.

    Its interval is that of these data sets, not of others like them. Distances from the mean to the ends of an interval
    add up as independent errors do. Where all have as many seeds, the mean of each seed is tested; else there is no
    p-value, and means by seed are over the first seeds of each set.

    Args:
        differences: of the same two arms, by data set.

    Source: Zou and Donner 2008, Construction of confidence limits about effect measures: a general approach, Statistics
        in Medicine 27(10).

    Example:

    ```python
    >>> one = Difference(0.02, (0.02,) * 3, -0.01, 0.05, (0.0, 0.04), 0.25, 0.25)
    >>> other = Difference(0.04, (0.04,) * 3, 0.0, 0.08, (0.01, 0.07), 0.25, 0.25)
    >>> found = mean_over_data([one, other])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.03, 0.005, 0.055)

    ```
    """
    number, num_seeds = len(differences), min(difference.num_seeds for difference in differences)
    mean = sum(difference.mean for difference in differences) / number
    by_seed = np.mean([difference.by_seed[:num_seeds] for difference in differences], axis=0)

    def spread(distances: Sequence[float]) -> float:
        return math.sqrt(sum(distance**2 for distance in distances)) / number

    return Difference(
        mean=mean,
        by_seed=tuple(map(float, by_seed)),
        low=mean - spread([one.mean - one.low for one in differences]),
        high=mean + spread([one.high - one.mean for one in differences]),
        equivalence=(
            mean - spread([one.mean - one.equivalence[0] for one in differences]),
            mean + spread([one.equivalence[1] - one.mean for one in differences]),
        ),
        p_value=sign_flip_p_value(by_seed) if len({one.num_seeds for one in differences}) == 1 else None,
        least_p_value=2.0 ** (1 - num_seeds),
        of_examples=spread([one.of_examples for one in differences]),
        resolution=sum(one.resolution for one in differences) / number,
    )


def widening(num_seeds: int, level: float = LEVEL) -> float:
    """Returns the factor from a bootstrap interval over seeds to Student's; 0 for one seed, whose variance is
    unknown."""
    if num_seeds < 2:
        return 0.0
    upper = (1 + level) / 2
    return math.sqrt(num_seeds / (num_seeds - 1)) * float(stats.t.ppf(upper, num_seeds - 1) / stats.norm.ppf(upper))


def sign_flip_p_value(differences: Sequence[float] | np.ndarray) -> float | None:
    """Returns the two-sided p-value of a paired sign-flip permutation test of zero mean; `None` for one difference,
    and where one is not finite.

    Example:

    ```python
    >>> sign_flip_p_value([1.0, 2.0, 3.0])
    0.25

    ```
    """
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    found = stats.permutation_test(
        (np.asarray(differences),), np.mean, permutation_type="samples", n_resamples=100_000, rng=0
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of several tests for the family-wise error rate.

    Args:
        p_values: one per test.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.

    Example:

    ```python
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    ```
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seeds_needed(differences: Sequence[float], smallest: float, of_examples: float = 0.0) -> int | None:
    """Returns the number of seeds that a paired t-test at 5% needs to detect a difference with probability 0.8.

    Args:
        differences: differences by seed, at least two, whose variance is used as the true one.
        smallest: the difference to detect, above 0.
        of_examples: half-width of the 95% interval from the test examples alone.

    Returns:
        `None` if more than 1,000 are needed, the variance is unknown, or the test examples do not allow it.

    Example:

    ```python
    >>> seeds_needed([-0.01, 0.0, 0.01], smallest=0.01)
    10

    ```
    """
    if len(differences) < 2 or FOR_POWER * of_examples >= smallest:
        return None
    smallest = math.sqrt(smallest**2 - (FOR_POWER * of_examples) ** 2)
    spread = float(np.std(differences, ddof=1))
    for number in range(MIN_SEEDS, 1001):
        if spread <= 1e-9 * smallest:  # differences that are the same up to rounding
            return number
        shift = smallest / spread * math.sqrt(number)
        limit = stats.t.ppf(0.975, number - 1)
        lower = np.nan_to_num(stats.nct.cdf(-limit, number - 1, shift))  # SciPy has none of the least ones
        if stats.nct.sf(limit, number - 1, shift) + lower >= 0.8:
            return number
    return None
