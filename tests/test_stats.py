"""Estimates against hand-worked numbers and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval_harness.stats import Estimate, mean_of_estimates, mean_of_items, wilson


def test_wilson_by_hand():
    # 8 of 10, z = 1.96: centre (0.8 + 3.8416/20) / 1.38416 = 0.71672
    # half 1.96/1.38416 * sqrt(0.016 + 3.8416/400) = 0.22657
    low, high = wilson(8, 10, z=1.96)
    assert low == pytest.approx(0.49015, abs=1e-4)
    assert high == pytest.approx(0.94329, abs=1e-4)
    reference = scipy_stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert wilson(8, 10) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_wilson_is_not_empty_at_the_ends_and_refuses_nonsense():
    assert wilson(0, 30)[1] > 0.05 and wilson(30, 30)[0] < 0.95
    for correct, items in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError):
            wilson(correct, items)


def test_single_samples():
    # 3 of 4: mean .75; sample variance (3*.0625 + .5625)/3 = .25; se = .5/2 = .25
    estimate = mean_of_items([[1], [1], [0], [1]])
    assert (estimate.mean, estimate.se) == (0.75, pytest.approx(0.25))
    assert (estimate.low, estimate.high) == wilson(3, 4)
    assert (estimate.num_items, estimate.num_samples) == (4, 4)


def test_samples_of_an_item_are_clustered():
    """Asking the same items 100 times must not shrink the interval as if they were new items."""
    one = mean_of_items([[1], [0], [1], [0]])
    many = mean_of_items([[1] * 100, [0] * 100, [1] * 100, [0] * 100])
    assert many.se == pytest.approx(one.se)
    # item means 1, 0.5, 0: mean .5, sd .5, se .5/sqrt(3); t(2 df) = 4.3027, cut to [0, 1]
    mixed = mean_of_items([[1, 1], [1, 0], [0, 0]])
    assert mixed.se == pytest.approx(0.5 / math.sqrt(3))
    assert (mixed.low, mixed.high) == (0.0, 1.0)
    wide = mean_of_items([[1, 0]] * 40 + [[1, 1]] * 20)
    half = scipy_stats.t.ppf(0.975, 59) * np.std([0.5] * 40 + [1.0] * 20, ddof=1) / math.sqrt(60)
    assert wide.high - wide.mean == pytest.approx(half)


def test_all_alike_with_many_samples_keeps_an_interval():
    estimate = mean_of_items([[0, 0]] * 8)
    assert estimate.high == pytest.approx(wilson(0, 8)[1]) and estimate.high > 0.2


@pytest.mark.parametrize("marks", [[], [[1], []], [[2.0]], [[float("nan")]]])
def test_refuses_what_has_no_mean(marks):
    with pytest.raises(ValueError):
        mean_of_items(marks)


def test_average_of_benchmarks_weighs_them_equally():
    a = Estimate(0.2, 0.03, 0, 1, 30, 30)
    b = Estimate(0.6, 0.04, 0, 1, 500, 500)
    average = mean_of_estimates([a, b])
    assert average.mean == pytest.approx(0.4)
    assert average.se == pytest.approx(0.025)  # sqrt(.0009 + .0016) / 2
    assert average.high - average.mean == pytest.approx(1.95996 * 0.025, abs=1e-5)
    assert average.num_items == 530


def test_coverage_of_the_clustered_interval():
    """About 95 % of intervals hold the truth when items differ in difficulty."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        difficulty = rng.uniform(0.1, 0.9, size=60)
        estimate = mean_of_items([rng.binomial(1, p, size=8).tolist() for p in difficulty])
        held += estimate.low <= 0.5 <= estimate.high
    assert 0.91 <= held / 400 <= 0.985
