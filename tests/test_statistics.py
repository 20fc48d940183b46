"""Intervals, tests and numbers of seeds, against Student, exact enumeration and simulation."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from hf_feedback.evaluation.comparison.statistics import (
    MIN_SEEDS,
    Difference,
    compare_paired,
    draw_examples,
    holm,
    mean_over_data,
    resample_examples,
    seeds_needed,
    sign_flip_p_value,
    widening,
)
from hf_feedback.evaluation.markdown_tables import format_values


def paired(point, examples=400, spread=0.0, seed=0):
    """Replicates of differences whose test examples vary by `spread`."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, spread, (2000, 1)) if spread else np.zeros((2000, 1))
    return compare_paired(np.array(point), np.array(point)[None] + noise)


def test_an_interval_over_many_seeds_is_students():
    point = np.random.default_rng(1).normal(0.01, 0.02, 40)
    found = paired(point)
    half = stats.t.ppf(0.975, 39) * point.std(ddof=1) / 40**0.5
    assert found.mean == pytest.approx(point.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds):
    """Seeds and examples vary; resampling alone would cover far less often with so few seeds."""
    generator, inside = np.random.default_rng(seeds), 0
    trials, examples = 150, 200
    for trial in range(trials):
        by_seed = generator.normal(0, 0.02, seeds)
        scores = generator.binomial(1, 0.5 + by_seed[:, None], (seeds, examples)) - generator.binomial(
            1, 0.5, (seeds, examples)
        )
        sums = np.stack((scores, np.ones_like(scores)), -1).astype(float)
        weights = draw_examples(examples, 400, seed=trial)
        replicates = resample_examples(list(sums), lambda total: total[..., 0] / total[..., 1], weights)
        found = compare_paired(scores.mean(1), replicates, seed=trial)
        inside += found.low <= 0 <= found.high
    assert inside / trials > 0.9


def test_the_widening_makes_the_bootstraps_spread_students():
    for n in (3, 5, 10):
        assert widening(n) * np.sqrt((n - 1) / n) * 1.959964 == pytest.approx(stats.t.ppf(0.975, n - 1), rel=1e-6)
    assert widening(1) == 0.0


def test_the_interval_holds_the_spread_of_test_examples():
    assert paired([0.01] * 4, spread=0.05).low == pytest.approx(0.01 - 1.96 * 0.05, abs=0.01)


@pytest.mark.parametrize("point", [[0.1, 0.2, 0.3], [0.1, -0.2, 0.3, 0.05, 0.02], [1.0, -1.0]])
def test_the_p_value_is_that_of_all_sign_flips(point):
    flips = [abs(np.mean(np.array(point) * signs)) for signs in itertools.product((1, -1), repeat=len(point))]
    exact = np.mean(np.array(flips) >= abs(np.mean(point)) - 1e-12)
    assert sign_flip_p_value(point) == pytest.approx(exact)


def test_holm():
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])


def test_the_seeds_that_are_needed_see_the_difference_that_often():
    differences = [-0.02, 0.0, 0.02, 0.01, -0.01]
    number = seeds_needed(differences, 0.015)
    generator = np.random.default_rng(0)
    draws = generator.normal(0.015, np.std(differences, ddof=1), (4000, number))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.06)
    assert seeds_needed([0.1], 0.01) is None
    assert seeds_needed([-1.0, 1.0], 1e-4) is None
    noise = 0.004  # of the test examples, the same for all seeds
    many = seeds_needed(differences, 0.015, of_examples=1.96 * noise)
    assert many > number
    spread = np.std(differences, ddof=1) / np.sqrt(many)
    means = 0.015 + generator.normal(0, np.hypot(spread, noise), 4000)
    half = np.hypot(stats.t.ppf(0.975, many - 1) * spread, 1.96 * noise)
    assert np.mean(means > half) == pytest.approx(0.8, abs=0.06)
    assert seeds_needed(differences, 0.015, of_examples=0.011) is None


def test_differences_that_are_the_same_up_to_rounding_need_the_fewest_seeds():
    differences = [0.850 - 0.845, 0.831 - 0.826, 0.813 - 0.808]
    assert len(set(differences)) > 1
    assert seeds_needed(differences, 0.01) == MIN_SEEDS


def test_distances_from_the_mean_add_up_as_independent_errors():
    wide = Difference(1.0, (0.0, 2.0), -3.0, 7.0, (-2.0, 4.0), 1.0, 0.5, of_examples=3.0, resolution=0.2)
    narrow = Difference(3.0, (2.0, 4.0), 0.0, 11.0, (-1.0, 7.0), 0.25, 0.25, of_examples=4.0, resolution=0.4)
    found = mean_over_data([wide, narrow])
    assert (found.mean, found.low, found.high, found.equivalence) == (2.0, -0.5, 7.0, (-0.5, 4.5))
    assert (found.by_seed, found.p_value, found.least_p_value) == ((1.0, 3.0), 0.5, 0.5)
    assert (found.of_examples, found.resolution) == (2.5, pytest.approx(0.3))
    more = replace(narrow, by_seed=(2.0, 4.0, 3.0))
    assert mean_over_data([wide, more]).p_value is None  # of which seeds would it be?


def test_the_mean_over_data_covers_the_truth_as_often_as_it_says():
    generator, truth, inside = np.random.default_rng(0), np.array([0.0, 2.0, -1.0]), 0
    for _ in range(400):
        points = truth[:, None] + generator.normal(0, [[1.0], [2.0], [0.5]], (3, 5))
        found = mean_over_data([paired(point) for point in points])
        inside += found.low <= truth.mean() <= found.high
    assert 0.92 < inside / 400 < 0.995


def test_verdicts():
    def verdict(low, high, equivalence, seeds=5):
        return Difference((low + high) / 2, (0.0,) * seeds, low, high, equivalence, 0.5, 0.06).verdict(1.0)

    assert verdict(0.1, 2, (0.2, 1.9)) == "ahead"
    assert verdict(-2, -0.1, (-1.9, -0.2)) == "behind"
    assert verdict(-0.8, 0.9, (-0.7, 0.8)) == "equivalent"
    assert verdict(-0.8, 1.2, (-0.7, 1.1)) == "cannot tell"
    assert verdict(5, 6, (5, 6), seeds=2) == "cannot tell"
    assert verdict(0.1, 0.3, (0.1, 0.3)) == "equivalent"  # though it leaves out zero
    nothing_seen = Difference(0.0, (0.0,) * 5, 0.0, 0.0, (0.0, 0.0), 1.0, 0.06, resolution=3.0)
    assert nothing_seen.verdict(1.0) == "cannot tell"
    assert nothing_seen.verdict(4.0) == "equivalent"
    assert nothing_seen.needs_more_examples(1.0)
    assert not nothing_seen.needs_more_examples(4.0)


def test_the_part_of_the_test_examples_is_known():
    found = paired([0.01, 0.05, -0.03], spread=0.02)
    assert found.of_examples == pytest.approx(1.96 * 0.02, rel=0.1)
    assert found.high - found.low > 4 * found.of_examples


def test_what_is_not_finite_has_no_p_value():
    assert sign_flip_p_value([math.nan, 1.0, 2.0]) is None
    assert sign_flip_p_value([math.inf, 1.0, 2.0]) is None
    assert compare_paired(np.full(6, math.nan), np.full((9, 6), math.nan)).verdict(1.0) == "cannot tell"
    assert format_values([math.nan, 1.0]) == "nan ± nan"
    assert format_values([-0.01]) == "0.0"


def test_no_fewer_seeds_are_said_to_be_enough_than_a_verdict_needs():
    assert seeds_needed([5.0, 5.1], 1.0) == seeds_needed([5.0, 5.0], 1.0) == MIN_SEEDS
