"""Estimates against hand-worked numbers and closed forms."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from scipy import stats as scipy_stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import averages

from eval_harness import stats
from eval_harness.stats import (
    Difference,
    Estimate,
    detectable_difference,
    difference_components,
    holm,
    items_to_resolve,
    majority_at_k,
    mean_majority_at_k,
    mean_of_differences,
    mean_of_estimates,
    mean_of_items,
    mean_of_strata,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
    samples_to_resolve,
    samples_to_settle,
    seeds_to_resolve,
    two_level_mean,
    wilson,
)


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


def test_one_item_has_a_mean_and_an_interval():
    # one mark: Wilson of 1 of 1, from 1 / (1 + 3.8415) on; several samples of one item say nothing of other items
    alone, sampled = mean_of_items([[1]]), mean_of_items([[1, 0]])
    assert (alone.mean, alone.low, alone.high) == (1.0, pytest.approx(0.20655, abs=1e-5), 1.0)
    assert (sampled.mean, sampled.low, sampled.high) == (0.5, 0.0, 1.0) and math.isnan(sampled.se)


def test_how_numbers_are_shown():
    assert Estimate(0.467, 0.09, 0.302, 0.639, 30, 30).percent() == "46.7 [30.2, 63.9]"
    gap = Difference(0.032, 0.02, -0.01, 0.074, 0.1, 0.0, 0.0, 0.1, "exact", 30, 30, 5, 3)
    assert gap.points() == "+3.2 [-1.0, +7.4]"


def test_samples_of_an_item_are_clustered():
    """Asking the same items 100 times must not shrink the interval as if they were new items."""
    one = mean_of_items([[1], [0], [1], [0]])
    many = mean_of_items([[1] * 100, [0] * 100, [1] * 100, [0] * 100])
    assert many.se == pytest.approx(one.se)
    # item means 1, 0.5, 0: mean .5, sd .5, se .5/sqrt(3) = .2887; effective items .25/.0833 = 3; t(2 df) = 4.3027:
    # z2n = 6.171, half = 4.3027/7.171 * sqrt(.25/3 + 18.513/36) = .4638
    mixed = mean_of_items([[1, 1], [1, 0], [0, 0]])
    assert mixed.se == pytest.approx(0.5 / math.sqrt(3))
    assert (mixed.low, mixed.high) == (pytest.approx(0.0362, abs=1e-4), pytest.approx(0.9638, abs=1e-4))
    wide = mean_of_items([[1, 0]] * 200 + [[1, 1]] * 250 + [[0, 0]] * 150)  # far from 0 and 1, many items: Student's t
    half = scipy_stats.t.ppf(0.975, 599) * np.std([0.5] * 200 + [1.0] * 250 + [0.0] * 150, ddof=1) / math.sqrt(600)
    assert (wide.low, wide.high) == (
        pytest.approx(wide.mean - half, abs=1e-3),
        pytest.approx(wide.mean + half, abs=1e-3),
    )


def test_an_interval_of_several_samples_is_bounded_by_items_and_samples():
    """At least as wide as if every sample were an item of its own, at most as if an item had one sample."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        marks = rng.binomial(1, rng.uniform(0, 1, size=(20, 1)), size=(20, 4))
        found, t = mean_of_items(marks), scipy_stats.t.ppf(0.975, 19)
        one_each, all_apart = (stats._wilson(found.mean, n, t) for n in (20, 80))
        if found.se > 0:
            assert one_each[0] - 1e-12 <= found.low <= all_apart[0] + 1e-12
            assert all_apart[1] - 1e-12 <= found.high <= one_each[1] + 1e-12
        assert found == mean_of_items(marks.tolist())  # arrays and lists alike


def test_yes_or_no_marks_are_worth_no_more_than_the_samples():
    """Item means that differ little would make 20 samples as good as 99."""
    # item means .5 (nine) and 1: mean .55, se^2 = (9 * .0025 + .2025)/9/10 = .0025; .2475/.0025 = 99, capped at 20
    # t(9 df) = 2.26216: z2n = .255868, centre (.55 + .127934)/1.255868 = .539813
    # half = 2.26216/1.255868 * sqrt(.2475/20 + .255868/80) = .224785
    found = mean_of_items([[1, 0]] * 9 + [[1, 1]])
    assert (found.low, found.high) == (pytest.approx(0.31503, abs=1e-5), pytest.approx(0.76460, abs=1e-5))


def test_marks_that_are_no_yes_or_no():
    """IoU: the effective number of items may exceed the items, since such marks vary less than 0/1 ones."""
    found = mean_of_items([[0.5], [0.6], [0.4], [0.5]])
    # sd^2 = .02/3, se^2 = .001667; effective .25/.001667 = 150; t(3 df) = 3.1824
    assert (found.low, found.high) == pytest.approx(stats._wilson(0.5, 150, 3.18245), abs=1e-4)
    assert found.low > 0.37


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
    average = mean_of_estimates([a, b], interval="normal")
    assert average.mean == pytest.approx(0.4)
    assert average.se == pytest.approx(0.025)  # sqrt(.0009 + .0016) / 2
    assert average.high - average.mean == pytest.approx(1.95996 * 0.025, abs=1e-5)
    assert average.num_items == 530
    # from the parts' intervals, which are wider than exact ones: .4 - sqrt((.1/2)^2 + (.06/2)^2) and
    # .4 + sqrt((.2/2)^2 + (.08/2)^2)
    found = mean_of_estimates([Estimate(0.2, 0.03, 0.1, 0.4, 500, 500), Estimate(0.6, 0.01, 0.54, 0.68, 5000, 5000)])
    assert (found.low, found.high) == (pytest.approx(0.4 - 0.0583095), pytest.approx(0.4 + 0.1077033))


def test_an_average_of_parts_all_wrong_or_all_right_keeps_a_width():
    # 0 of 16: the exact upper end has (1 - u)^16 = .025, so u = 1 - exp(ln .025 / 16) = .2059072, beyond Wilson's
    # .1936077; of the mean of two sqrt(2 (u / 2)^2) = u / sqrt(2) = .1455984. Of 0 of 32 it were .1088834.
    nothing = mean_of_items([[0]] * 16)
    both = mean_of_estimates([nothing, nothing])
    assert (both.mean, both.se, both.low) == (0.0, 0.0, 0.0) and both.high == pytest.approx(0.1455984, abs=1e-6)
    assert mean_of_estimates([nothing, nothing], interval="normal").high == 0.0
    everything = mean_of_estimates([mean_of_items([[1]] * 16)] * 2)
    assert (everything.low, everything.high) == (pytest.approx(1 - 0.1455984, abs=1e-6), 1.0)
    strata = mean_of_strata([[0]] * 32, ["a", "b"] * 16, {"a": 0.5, "b": 0.5})
    assert (strata.low, strata.high) == (0.0, both.high)
    alone = mean_of_estimates([nothing])
    assert (alone.low, alone.high) == (nothing.low, pytest.approx(nothing.high)) == (0.0, pytest.approx(0.1936077))


@pytest.mark.parametrize("p", [0, 0.01, 0.5, 1])
@pytest.mark.parametrize("items", [(8, 8), (16, 16), (16, 16, 16, 16, 16), (30, 500, 40, 272, 674)])
def test_coverage_of_an_average(p, items):
    """A few draws; bench/averages.py makes 20,000. At p = 0 and 1 nothing can be outside."""
    draws = 500 if len(set(items)) > 1 else 2000
    held = averages.coverage([p] * len(items), items, draws=draws, rng=np.random.default_rng(0))
    assert held["mover"] >= (1.0 if p in (0, 1) else 0.94)
    if p == 0.01 and items[0] == 8:
        assert held["normal"] < 0.3  # mostly nothing right, and an interval without a width


def test_earlier_intervals_are_students():
    # means .5 (8 items), 1 and 0: mean .5, variance .5 / 9, se .0745356; t(9) = 2.262157, half .1686114
    marks = [[1, 0]] * 8 + [[1, 1], [0, 0]]
    found = mean_of_items(marks, interval="t")
    assert (found.low, found.high) == (pytest.approx(0.3313886, abs=1e-6), pytest.approx(0.6686114, abs=1e-6))
    assert mean_of_items([[0], [1]], interval="t") == mean_of_items([[0], [1]])  # Wilson's then, too
    assert found.low > mean_of_items(marks).low


def test_strata_are_weighed_by_hand():
    # a: 1 0, mean .5, se .5; b: 1 1 0 1, mean .75, se .25; c has no item, so a weighs 1/3 and b 2/3
    # mean .5/3 + 1.5/3 = 2/3; se = sqrt((.5/3)^2 + (.5/3)^2) = .235702; 2/3 - 1.95996 * .235702 = .204699
    marks, strata = [[1], [1], [0], [1], [0], [1]], ["a", "b", "a", "b", "b", "b"]
    found = mean_of_strata(marks, strata, {"a": 0.25, "b": 0.5, "c": 0.25}, interval="normal")
    assert (found.mean, found.se) == (pytest.approx(2 / 3), pytest.approx(0.235702, abs=1e-6))
    assert (found.low, found.high) == (pytest.approx(0.204699, abs=1e-5), 1.0)
    assert (found.num_items, found.num_samples) == (6, 6)
    # the other way round the upper end is inside: 1 - .204699
    other = mean_of_strata([[1 - m[0]] for m in marks], strata, {"a": 0.25, "b": 0.5}, interval="normal")
    assert (other.low, other.high) == (0.0, pytest.approx(0.795301, abs=1e-5))
    # exact of 1 of 2: 1 - (1 - l)^2 = .025 and u^2 = .975, [.0125791, .9874209]; of 3 of 4: 4 l^3 - 3 l^4 = .025 and
    # u^4 = .975, [.1941204, .9936905]; a third and two thirds of the distances
    found = mean_of_strata(marks, strata, {"a": 0.25, "b": 0.5, "c": 0.25})
    assert found.low == pytest.approx(2 / 3 - math.hypot((0.5 - 0.0125791) / 3, (0.75 - 0.1941204) * 2 / 3), abs=1e-6)
    assert found.high == pytest.approx(2 / 3 + math.hypot((0.9874209 - 0.5) / 3, (0.9936905 - 0.75) * 2 / 3), abs=1e-6)
    single = mean_of_strata([[1], [0], [1]], ["a", "b", "b"], {"a": 0.5, "b": 0.5})  # one item shows no spread
    assert (single.mean, single.low, single.high) == (0.75, 0.0, 1.0)
    with pytest.raises(ValueError, match="no weight for the strata d; known are a, b"):
        mean_of_strata([[1], [1]], ["a", "d"], {"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="at least one item"):
        mean_of_strata([], [], {"a": 1.0})


@pytest.mark.full("thousands of simulated experiments")
@pytest.mark.parametrize("num_items, low, high", [(30, 0.92, 0.98), (500, 0.94, 0.965)])
@pytest.mark.parametrize("num_samples", [1, 8, 32])
def test_coverage_by_simulation(num_items, low, high, num_samples):
    """95 % intervals hold the mean over all items there could be: 20,007 draws, averaged over p = 0.1 … 0.9.

    Item difficulties are drawn from a beta distribution with mean p, from nearly all-or-nothing to nearly alike.
    """
    rng, held, draws = np.random.default_rng(num_items + num_samples), 0, 0
    order = np.arange(num_samples)
    for p in np.arange(1, 10) / 10:
        for spread in (0.5, 2.0, 20.0):
            for _ in range(741):
                right = rng.binomial(num_samples, rng.beta(p * spread, (1 - p) * spread, size=num_items))
                found = mean_of_items((order < right[:, None]).astype(float))
                held += found.low <= p <= found.high
                draws += 1
    assert draws == 20_007 and low <= held / draws <= high, held / draws


@pytest.mark.full("thousands of simulated experiments")
@pytest.mark.parametrize("num_items, low, high", [(30, 0.92, 0.98), (500, 0.94, 0.965)])
@pytest.mark.parametrize("num_samples", [1, 8])
def test_coverage_of_paired_differences(num_items, low, high, num_samples):
    """The same for differences: difficulties of the two models share a part, p = 0.1 … 0.9 against 0.5."""
    rng, held, draws = np.random.default_rng(num_items + num_samples), 0, 0
    for p in np.arange(1, 10) / 10:
        for _ in range(2223):
            shared = rng.uniform(-0.1, 0.1, size=num_items)
            a, b = (rng.binomial(num_samples, mean + shared) / num_samples for mean in (p, 0.5))
            found = mean_of_differences([a - b], permute=False)
            held += found.low <= p - 0.5 <= found.high
            draws += 1
    assert draws == 20_007 and low <= held / draws <= high, held / draws


# --- Several samples --------------------------------------------------------------------------------------------------


def test_pass_at_k_by_hand_and_by_counting():
    # 4 samples, 1 right, k = 2: of 6 pairs 3 hold the right one
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert (pass_at_k(8, 0, 3), pass_at_k(8, 6, 3), pass_at_k(5, 2, 1)) == (0.0, 1.0, pytest.approx(0.4))
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))
    for n, c, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(n, c, k)


def test_pass_at_k_is_unbiased():
    rng, p = np.random.default_rng(5), 0.3
    found = [pass_at_k(10, c, 4) for c in rng.binomial(10, p, size=20_000)]
    assert np.mean(found) == pytest.approx(1 - (1 - p) ** 4, abs=4 * np.std(found) / math.sqrt(20_000))


def test_mean_pass_at_k():
    found = mean_pass_at_k([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], 2)
    assert (found.mean, found.num_items, found.num_samples) == (pytest.approx(0.5), 3, 12)
    with pytest.raises(ValueError, match="0 and 1"):
        mean_pass_at_k([[0.5, 0.2]], 1)


def test_majority_by_hand():
    assert majority_at_k(["4", " 4 ", "5"], [1, 1, 0]) == 1.0
    assert majority_at_k(["4", "5", "5"], [1, 0, 0]) == 0.0
    assert majority_at_k(["4", "5"], [1, 0]) == 0.5  # a tie, by lot
    assert majority_at_k([None, None, "4"], [0, 0, 1]) == 1.0  # no answer, no vote
    assert majority_at_k([None, None], [0, 0]) == 0.0
    # two of three: {4,4}, {4,5} twice: 1, 1/2, 1/2
    rng = np.random.default_rng(0)
    assert majority_at_k(["4", "4", "5"], [1, 1, 0], 2, rng=rng, draws=4000) == pytest.approx(2 / 3, abs=0.02)
    with pytest.raises(ValueError, match="rng"):
        majority_at_k(["4", "4", "5"], [1, 1, 0], 2)
    found = mean_majority_at_k([["4", "4", "5"], ["1", "2", "2"]], [[1, 1, 0], [1, 0, 0]])
    assert (found.mean, found.num_items, found.num_samples) == (0.5, 2, 6)


def test_mean_of_majorities_of_fewer_samples():
    # one vote of 4 4 5: right with chance 2/3, while all three votes are right always
    rows, marks = [["4", "4", "5"]] * 2, [[1, 1, 0]] * 2
    found = mean_majority_at_k(rows, marks, 1, rng=np.random.default_rng(0), draws=4000)
    assert found.mean == pytest.approx(2 / 3, abs=0.02) and mean_majority_at_k(rows, marks).mean == 1
    once = mean_majority_at_k(rows, marks, 1, rng=np.random.default_rng(0), draws=1)
    assert once.mean in (0, 0.5, 1)  # a single draw of each item is right or wrong


# --- Two models -------------------------------------------------------------------------------------------------------


def _pair(num_items=40, num_samples=1, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.uniform(0.1, 0.7, size=(num_items, 1))
    return tuple(rng.binomial(1, shared + extra, size=(num_items, num_samples)) for extra in (0.25, 0.0))


@pytest.mark.parametrize("num_samples", [1, 4])
def test_a_difference_is_scipys(num_samples):
    a, b = _pair(num_samples=num_samples)
    found = paired_difference(a, b, rng=np.random.default_rng(7))
    test = scipy_stats.ttest_rel(a.mean(axis=1), b.mean(axis=1))
    interval = test.confidence_interval()
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.t_p_value == pytest.approx(test.pvalue)
    gaps = a.mean(axis=1) - b.mean(axis=1)
    boot = scipy_stats.bootstrap((gaps,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(7))
    assert (found.boot_low, found.boot_high) == pytest.approx(tuple(boot.confidence_interval), abs=5e-3)
    drawn = scipy_stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    assert found.p_kind == "exact"
    assert found.p_value == pytest.approx(drawn.pvalue, abs=5 * math.sqrt(drawn.pvalue / 20_000) + 1e-4)
    assert (found.num_items, found.num_samples) == (40, 40 * num_samples)


def test_a_bootstrap_has_as_many_draws_as_asked():
    a, b = _pair()
    found = paired_difference(a, b, rng=np.random.default_rng(7), resamples=99)
    gaps = (a.mean(axis=1) - b.mean(axis=1),)
    boot = scipy_stats.bootstrap(gaps, np.mean, n_resamples=99, method="BCa", rng=np.random.default_rng(7))
    assert (found.boot_low, found.boot_high) == pytest.approx(tuple(boot.confidence_interval))


def test_exact_p_values_are_scipys_exact_ones():
    rng = np.random.default_rng(2)
    for k in (1, 2, 3):
        for _ in range(20):
            steps = rng.integers(-k, k + 1, size=9)  # whole numbers for scipy: it compares sums of thirds as floats
            exact = scipy_stats.permutation_test((steps,), np.sum, permutation_type="samples", n_resamples=np.inf)
            assert mean_of_differences([steps / k]).p_value == pytest.approx(exact.pvalue), steps
    a, b = _pair(60)
    better, worse = int(((a - b) > 0).sum()), int(((a - b) < 0).sum())
    assert paired_difference(a, b).p_value == scipy_stats.binomtest(better, better + worse).pvalue  # McNemar
    assert (paired_difference(a, b).num_better, paired_difference(a, b).num_worse) == (better, worse)


def test_mcnemar_is_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = _pair(80, seed=4)
    table = [[int(((a == i) & (b == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    assert paired_difference(a, b).p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_marks_with_no_common_step_are_permuted_by_draws():
    gaps = np.random.default_rng(0).normal(0.1, 0.3, size=30)
    found = mean_of_differences([gaps], rng=np.random.default_rng(1))
    exactish = scipy_stats.ttest_1samp(gaps, 0).pvalue
    assert found.p_kind == "drawn (9999)" and found.p_value == pytest.approx(exactish, rel=0.2)
    assert math.isnan(mean_of_differences([gaps]).p_value)
    again = mean_of_differences([gaps], rng=np.random.default_rng(1))
    assert again == found  # the generator alone decides


def test_the_mean_of_benchmarks_by_hand():
    # benchmark 1: gaps 1,0,0,1: mean .5, var 1/3, /4 = 1/12; benchmark 2: 0,-1: mean -.5, var .5, /2 = .25
    # mean 0; se = sqrt(1/12 + 1/4)/2 = .28868; df = (1/3)^2 / ((1/12)^2/3 + (1/4)^2/1) = 1.7143
    found = mean_of_differences([np.array([1, 0, 0, 1]), np.array([0, -1])], rng=np.random.default_rng(0))
    assert (found.difference, found.se) == (pytest.approx(0.0), pytest.approx(0.288675, abs=1e-6))
    assert found.high == pytest.approx(scipy_stats.t.ppf(0.975, 1.714286) * 0.288675, abs=1e-5)
    # three signs by lot, items of weight 1/8, 1/8 and -1/4: |sum| >= 0 always
    assert (found.p_value, found.p_kind) == (1.0, "exact")
    weighted = mean_of_differences([np.array([1, 0, 0, 1]), np.array([0, -1])], weights=[0.75, 0.25])
    assert weighted.difference == pytest.approx(0.75 * 0.5 - 0.25 * 0.5)


def test_differences_without_spread_or_with_one_item():
    same = paired_difference([[1], [0], [1]], [[1], [0], [1]], rng=np.random.default_rng(0))
    # three items without a difference: Wilson leaves 0 of 3 up to .5615
    assert (same.difference, same.p_value) == (0, 1) and math.isnan(same.t_p_value)
    assert (same.low, same.high) == (pytest.approx(-0.5615, abs=1e-4), pytest.approx(0.5615, abs=1e-4))
    assert (same.boot_low, same.boot_high) == (0, 0)
    single = mean_of_differences([np.array([1.0])])
    assert single.difference == 1 and math.isnan(single.low)
    with pytest.raises(ValueError, match="same items"):
        paired_difference([[1], [0]], [[1]])
    with pytest.raises(ValueError, match="as many samples"):
        paired_difference([[1, 1], [0]], [[1], [0]])


def test_weights_may_be_negative_and_one_item_may_be_all_that_differs():
    # a difference of differences: no spread, weights 1 and -1 with 4 and 4 items: both leave Wilson's 48.99 % open
    found = mean_of_differences([np.ones(4), np.zeros(4)], weights=[1, -1])
    assert (found.difference, found.high) == (1, pytest.approx(1 + 2 * 0.4899, abs=1e-4)) and found.low < found.high
    # of two benchmarks one single item differs, by a third: its sign by lot gives the same size always
    alone = mean_of_differences([np.array([1 / 3, 0]), np.array([0, 0])], rng=np.random.default_rng(0))
    assert alone.p_value == 1.0


@settings(max_examples=60, deadline=None)
@given(
    strategies.lists(
        strategies.tuples(*[strategies.lists(strategies.integers(0, 1), min_size=2, max_size=2)] * 2),
        min_size=2,
        max_size=25,
    )
)
def test_properties_of_a_difference(rows):
    a, b = [row[0] for row in rows], [row[1] for row in rows]
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.difference == pytest.approx(-other.difference) and one.p_value == pytest.approx(other.p_value)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert one.low <= one.difference <= one.high and 0 < one.p_value <= 1
    assert one.difference == pytest.approx(mean_of_items(a).mean - mean_of_items(b).mean)
    order = list(reversed(range(len(rows))))
    shuffled = paired_difference([a[i] for i in order], [b[i] for i in order])
    assert shuffled.p_value == pytest.approx(one.p_value) and shuffled.se == pytest.approx(one.se)


def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests

    values = [0.01, 0.04, 0.03, 0.005, 0.9]
    # sorted .005, .01, .03, .04, .9 times 5, 4, 3, 2, 1: .025, .04, .09, .08 -> .09, .9
    assert holm(values) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    with_gap = holm([0.02, float("nan"), 0.03])
    assert with_gap[0] == pytest.approx(0.04) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.04)


# --- Seeds ------------------------------------------------------------------------------------------------------------


def test_two_levels_by_hand():
    # rows (seeds) 0,1 / 1,1: mean .75; seed means .5, 1; item means .5, 1; rest +-.25
    # MS_seeds = 2 * .125 = .25, MS_items = .25, MS_rest = 4 * .0625 / 1 = .25: total .25, se = sqrt(.25/4)
    found = two_level_mean(np.array([[0, 1], [1, 1]]))
    assert (found.mean, found.se) == (0.75, pytest.approx(0.25))
    assert (found.se_seeds, found.se_items) == (pytest.approx(0.25), pytest.approx(0.25))
    for bad in (np.ones((1, 5)), np.ones((5, 1)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="two seeds"):
            two_level_mean(bad)


def test_the_interval_of_two_levels_by_hand():
    # seeds 0,0,1 / 1,0,1: mean .5, seed means 1/3, 2/3, item means .5, 0, 1; rest -+1/3, +-1/6, +-1/6
    # MS_seeds = 3 * 1/18 = 1/6, MS_items = 2 * 1/4 = 1/2, MS_rest = 2 * (1/9 + 2/36) / 2 = 1/6
    # total 1/6 + 1/2 - 1/6 = 1/2, se = sqrt(1/2 / 6), degrees of freedom (1/4) / ((1/36)/1 + (1/4)/2 + (1/36)/2) = 1.5
    found = two_level_mean(np.array([[0, 0, 1], [1, 0, 1]]))
    half = scipy_stats.t.ppf(0.975, 1.5) * math.sqrt(1 / 12)
    assert (found.mean, found.se) == (pytest.approx(0.5), pytest.approx(math.sqrt(1 / 12)))
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert (found.se_seeds, found.se_items) == (pytest.approx(1 / 6), pytest.approx(0.5 / math.sqrt(3)))
    assert (found.num_seeds, found.num_items) == (2, 3)


def test_two_levels_cover_new_seeds_and_new_items():
    """Both levels drawn anew: about 95 % hold the truth, while intervals of one level alone do not."""
    rng, held, items_only = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        values = 0.5 + rng.normal(0, 0.03, size=(5, 1)) + rng.normal(0, 0.1, size=(1, 60)) + rng.normal(0, 0.2, (5, 60))
        found = two_level_mean(values)
        held += found.low <= 0.5 <= found.high
        items_only += abs(found.mean - 0.5) <= 1.96 * found.se_items
    assert 0.93 <= held / 2000 <= 0.985, held / 2000
    assert items_only / 2000 < 0.92


# --- Planning ---------------------------------------------------------------------------------------------------------


def test_planning_by_hand():
    # (1.96 + .8416) * .05 = .1401
    assert detectable_difference(0.05**2) == pytest.approx(0.14008, abs=1e-5)
    # variance .4 an item, 5 points: .4 * (2.8016/.05)^2 = 1255.8
    assert items_to_resolve(0.05, 0.4) == 1256 and items_to_resolve(0, 0.4) is None
    # 1.96^2 * .02 / .1^2 = 7.68: K = 8 and no less
    assert samples_to_settle(0.1, 0.02) == 8 and samples_to_settle(0.0, 0.02) is None
    assert stats.Z95 * math.sqrt(0.02 / 8) < 0.1 < stats.Z95 * math.sqrt(0.02 / 7)
    assert samples_to_settle(0.5, 0.02) == 1
    # 30 items, 20 points: room 30 * (.2/2.8016)^2 - .05 = .1029; .3/.1029 = 2.9: three samples
    assert samples_to_resolve(0.2, 0.05, 0.3, 30) == 3
    assert samples_to_resolve(0.05, 0.05, 0.3, 30) is None  # more items are needed, however many samples


def test_planning_is_statsmodels():
    from statsmodels.stats.power import NormalIndPower, TTestPower

    for difference, sd in ((0.02, 0.01), (0.01, 0.012), (0.03, 0.1)):
        wanted = TTestPower().solve_power(effect_size=difference / sd, alpha=0.05, power=0.8)
        assert seeds_to_resolve(difference, sd) == math.ceil(wanted)
    assert seeds_to_resolve(0.02, 0) == 2 and seeds_to_resolve(0, 0.1) is None and seeds_to_resolve(1e-5, 1) is None
    power = NormalIndPower(ddof=0).power(detectable_difference(0.05**2) / 0.05, nobs1=1, alpha=0.05, ratio=0)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_components_of_a_difference():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 0.8, size=(4000, 1))
    q = np.clip(p - 0.1 + rng.normal(0, 0.1, size=p.shape), 0.05, 0.95)
    a, b = (rng.binomial(1, chance, size=(4000, 6)) for chance in (p, q))
    between, within = difference_components(a, b)
    assert within == pytest.approx(float((p * (1 - p) + q * (1 - q)).mean()), rel=0.03)
    assert between == pytest.approx(float((p - q).var()), rel=0.25)
    with pytest.raises(ValueError, match="two samples"):
        difference_components([[1], [0]], [[0], [1]])
