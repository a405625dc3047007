"""How sure a score is: estimates, paired differences, several seeds, what it takes to resolve a difference.

An *item* is a question; K samples of one item are not independent, so the item is the unit of resampling.
Marks are 0/1 (or in [0, 1]: IoU); a sample that failed (the engine gave nothing) counts as 0 and stays in the
denominator. Everything here is a fraction, not percent. What draws takes a generator; nothing else is random.

    one score           mean_of_items, mean_of_strata, mean_of_estimates, wilson
    several samples     pass_at_k, mean_pass_at_k, majority_at_k, mean_majority_at_k
    two models          paired_difference, mean_of_differences
    several seeds       two_level_mean
    planning            detectable_difference, items_to_resolve, samples_to_settle, samples_to_resolve, seeds_to_resolve
    several comparisons holm
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy import special
from scipy import stats as scipy_stats

Z95 = float(scipy_stats.norm.ppf(0.975))
RESAMPLES = 9999
"""Draws of a bootstrap or of a permutation that is not exact."""
_EXACT_CELLS = 2_000_000
"""Up to so many items x steps of their sum the null distribution of a permutation is computed, not drawn."""

Marks = Sequence[Sequence[float]]
"""One sequence of marks per item."""


@dataclass(frozen=True)
class Estimate:
    """A mean with what is needed to read it. ``mean``, ``se``, ``low`` and ``high`` are fractions, not percent."""

    mean: float
    se: float
    low: float
    high: float
    num_items: int
    num_samples: int

    def as_dict(self) -> dict:
        """Plain dictionary, as stored in run records."""
        return asdict(self)

    def percent(self, digits: int = 1) -> str:
        """``'46.7 [30.2, 63.9]'``: mean and 95 % interval in percent."""
        return f"{100 * self.mean:.{digits}f} [{100 * self.low:.{digits}f}, {100 * self.high:.{digits}f}]"


def mean_of_items(marks: Marks, *, interval: Literal["wilson", "t"] = "wilson") -> Estimate:
    """Mean mark over items, each item's samples averaged first.

    Args:
        marks: one sequence of marks in [0, 1] per item; K may differ between items but not be 0.
        interval: ``t``: Student's t, cut to [0, 1], where ``wilson`` takes an effective number (records before version
            4 have it).

    Returns:
        The estimate. ``se`` is the standard error of the mean over items (sample standard deviation of the per-item
        means / sqrt(number of items)), i.e. clustered by item when K > 1. The interval is Wilson's: with the number of
        items when every item has one 0/1 mark or when all items agree; otherwise with the *effective* number
        mean (1 - mean) / se^2 (at least the items, for 0/1 marks at most the samples) and Student's quantile, which
        keeps its coverage near 0 and 1, where the plain t interval loses it (Dean and Pagano 2015).

    Raises:
        ValueError: no items, an item without samples, or a mark outside [0, 1].
    """
    per_item, num_samples = _item_means(marks), sum(len(m) for m in marks)
    n, mean = len(per_item), float(per_item.mean())
    se = float(per_item.std(ddof=1) / math.sqrt(n)) if n > 1 else float("nan")
    if num_samples == n and set(np.unique(per_item)) <= {0.0, 1.0}:
        low, high = wilson(int(per_item.sum()), n)
    elif n == 1:
        low, high = 0.0, 1.0
    elif se == 0:  # all items alike: K samples of an item add no items, so the items' own interval
        low, high = _wilson(mean, n, Z95)
    elif interval == "t":
        half = _t95(n - 1) * se
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    else:
        most = num_samples if _is_zero_or_one(marks) else math.inf
        effective = min(max(mean * (1 - mean) / se**2, n), most)
        low, high = _wilson(mean, effective, _t95(n - 1))
    return Estimate(mean, se, low, high, n, num_samples)


def _item_means(marks: Marks) -> np.ndarray:
    if len(marks) == 0 or any(len(m) == 0 for m in marks):
        raise ValueError("a mean needs at least one item and every item at least one sample")
    per_item = np.mean(marks, axis=1) if _is_matrix(marks) else np.array([float(np.mean(m)) for m in marks])
    if not np.all((per_item >= 0) & (per_item <= 1)):
        raise ValueError("marks must lie in [0, 1]")
    return per_item


def _is_matrix(marks: Marks) -> bool:
    return isinstance(marks, np.ndarray) and marks.ndim == 2


def _is_zero_or_one(marks: Marks) -> bool:
    flat = marks if _is_matrix(marks) else np.concatenate([np.asarray(m, dtype=float) for m in marks])
    return bool(((flat == 0) | (flat == 1)).all())


def mean_of_strata(
    marks: Marks,
    strata: Sequence[str | None],
    weights: Mapping[str, float],
    *,
    interval: Literal["mover", "normal"] = "mover",
    of_items: Literal["wilson", "t"] = "wilson",
) -> Estimate:
    """Weighted mean of the strata's means (CV-Bench's card: ADE20K and COCO a quarter each, Omni3D a half).

    Args:
        marks: one sequence of marks in [0, 1] per item.
        strata: the stratum of each item.
        weights: weight of every stratum; those without items are left out and the rest weighs in proportion.
        interval: see :func:`mean_of_estimates`.
        of_items: see :func:`mean_of_items`.

    Returns:
        The estimate, with se = sqrt(sum of (weight * se of the stratum)^2).

    Raises:
        ValueError: an item of a stratum without a weight, or no items.
    """
    unknown = sorted({str(s) for s in strata} - set(weights))
    if unknown:
        raise ValueError(f"no weight for the strata {', '.join(unknown)}; known are {', '.join(weights)}")
    parts = {s: [m for m, of in zip(marks, strata, strict=True) if of == s] for s in weights}
    present = {s: mean_of_items(part, interval=of_items) for s, part in parts.items() if part}
    if not present:
        raise ValueError("a mean needs at least one item")
    total = sum(weights[s] for s in present)
    mean, se, low, high = _weighted([(weights[s] / total, e) for s, e in present.items()], interval)
    return Estimate(mean, se, low, high, len(marks), sum(map(len, marks)))


def wilson(num_correct: int, num_items: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), which stays in [0, 1] and is not empty at 0 or 1."""
    if not 0 <= num_correct <= num_items or num_items < 1:
        raise ValueError(f"need 0 <= correct <= items and items >= 1, got {num_correct} of {num_items}")
    return _wilson(num_correct / num_items, num_items, z)


def _t95(freedom: float) -> float:
    """The 97.5 % quantile of Student's t."""
    return float(special.stdtrit(freedom, 0.975))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    z2n = z * z / n
    centre = (p + z2n / 2) / (1 + z2n)
    half = z / (1 + z2n) * math.sqrt(p * (1 - p) / n + z2n / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_of_estimates(estimates: Sequence[Estimate], *, interval: Literal["mover", "normal"] = "mover") -> Estimate:
    """Plain mean of independent estimates (a table's *Average* of benchmarks), with a 95 % interval.

    The standard error is sqrt(sum of se^2) / number of estimates: item sampling only, not training seeds. It is zero
    where every part is all wrong or all right, so the interval does not come from it but from bounds of the parts
    (MOVER, Zou and Donner 2008): with weights w, means p and bounds l, u it reaches from
    mean - sqrt(sum (w (p - l))^2) to mean + sqrt(sum (w (u - p))^2), and stays in [0, 1]. Bounds are the part's own or
    Clopper and Pearson's, whichever is wider: from Wilson's alone an average near 0 or 1 covers as little as 83 %
    (bench/averages.py). The interval of a single estimate stays as it is.

    Args:
        interval: ``normal``: mean -+ 1.96 se, cut to [0, 1] (records before version 5 have it).
    """
    if not estimates:
        raise ValueError("a mean of estimates needs at least one")
    mean, se, low, high = _weighted([(1 / len(estimates), e) for e in estimates], interval)
    return Estimate(mean, se, low, high, sum(e.num_items for e in estimates), sum(e.num_samples for e in estimates))


def _weighted(parts: Sequence[tuple[float, Estimate]], interval: str) -> tuple[float, float, float, float]:
    """Mean, standard error and bounds of independent estimates whose weights sum to 1."""
    mean = sum(w * e.mean for w, e in parts)
    se = math.sqrt(sum((w * e.se) ** 2 for w, e in parts))
    if not math.isfinite(se):  # a part with one item
        return mean, se, 0.0, 1.0
    if interval == "mover":
        bounds = [(w, e.mean, *_widest(e)) for w, e in parts] if len(parts) > 1 else [
            (w, e.mean, e.low, e.high) for w, e in parts
        ]  # fmt: skip
        below = math.sqrt(sum((w * (of - low)) ** 2 for w, of, low, _ in bounds))
        above = math.sqrt(sum((w * (high - of)) ** 2 for w, of, _, high in bounds))
        return mean, se, max(0.0, mean - below), min(1.0, mean + above)
    return mean, se, max(0.0, mean - Z95 * se), min(1.0, mean + Z95 * se)


def _widest(e: Estimate) -> tuple[float, float]:
    """Bounds of a part: its own or Clopper and Pearson's (1934), with the effective number of items that its standard
    error implies, whichever reach further."""
    effective = max(e.mean * (1 - e.mean) / e.se**2, e.num_items) if e.se > 0 else e.num_items
    right, wrong = e.mean * effective, (1 - e.mean) * effective
    low = float(special.betaincinv(right, wrong + 1, 0.025)) if right > 0 else 0.0
    high = float(special.betaincinv(right + 1, wrong, 0.975)) if wrong > 0 else 1.0
    return min(low, e.low), max(high, e.high)


# --- Several samples of an item ---------------------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from n samples with c right (Chen et al. 2021, Eq. 1).

    1 - C(n - c, k) / C(n, k). With k = 1 it is c / n.

    Raises:
        ValueError: k outside 1..n (fewer samples than k say nothing about pass@k), or c outside 0..n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples and 0 <= correct <= samples, got {num_correct} of {num_samples}"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mean_pass_at_k(marks: Marks, k: int) -> Estimate:
    """Mean over items of the unbiased pass@k; marks must be 0/1 and every item have at least k."""
    if not _is_zero_or_one(marks):
        raise ValueError("pass@k needs marks of 0 and 1")
    return _mean_of_values([pass_at_k(len(m), int(sum(m)), k) for m in marks], marks)


def majority_at_k(
    answers: Sequence[str | None],
    marks: Sequence[float],
    k: int | None = None,
    *,
    rng: np.random.Generator | None = None,
    draws: int = 1000,
) -> float:
    """Expected mark of the answer that most of k samples of one item give.

    Answers count as the same when their texts are (outer blanks apart). A tie is broken by lot: its expected mark is
    the mean of the tied answers' marks. A sample without an answer has no vote; with no votes the mark is 0.

    Args:
        answers: extracted answer of each sample; None: no answer.
        marks: mark of each sample.
        k: samples that vote; None or all of them: exact. Fewer: the mean over ``draws`` subsets drawn from ``rng``.

    Raises:
        ValueError: k outside 1..n, fewer votes than samples asked without a generator, or lengths that differ.
    """
    n = len(answers)
    if n != len(marks) or not 1 <= (k or n) <= n:
        raise ValueError(f"majority@{k} needs 1 <= k <= samples, got {n} answers and {len(marks)} marks")
    if k is None or k == n:
        return _majority(answers, marks)
    if rng is None:
        raise ValueError(f"majority@{k} of {n} samples draws subsets: give a generator (rng)")
    subsets = (rng.choice(n, size=k, replace=False) for _ in range(draws))
    return float(np.mean([_majority([answers[i] for i in chosen], [marks[i] for i in chosen]) for chosen in subsets]))


def _majority(answers: Sequence[str | None], marks: Sequence[float]) -> float:
    texts = [None if answer is None else answer.strip() for answer in answers]
    votes = Counter(text for text in texts if text is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [text for text, count in votes.items() if count == most]
    return float(np.mean([np.mean([m for text, m in zip(texts, marks, strict=True) if text == w]) for w in winners]))


def mean_majority_at_k(
    answers: Sequence[Sequence[str | None]], marks: Marks, k: int | None = None, *, rng=None, draws: int = 1000
) -> Estimate:
    """Mean over items of :func:`majority_at_k`."""
    values = [majority_at_k(a, m, k, rng=rng, draws=draws) for a, m in zip(answers, marks, strict=True)]
    return _mean_of_values(values, marks)


def _mean_of_values(values: Sequence[float], marks: Marks) -> Estimate:
    found = mean_of_items([[value] for value in values])
    return Estimate(found.mean, found.se, found.low, found.high, len(marks), sum(map(len, marks)))


# --- Two models on the same items -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One model's mean mark minus another's on the same items. Fractions; ``num_samples`` is per model."""

    difference: float
    se: float
    low: float
    high: float
    """95 % Student's t interval of the item differences, as of ``scipy.stats.ttest_rel`` on the item means. Where all
    differences are alike it has no width; then what Wilson's interval leaves open for items not seen."""
    t_p_value: float
    """Of that test; NaN where all differences are alike."""
    boot_low: float
    boot_high: float
    """95 % bootstrap interval over items (BCa); NaN where no generator was given."""
    p_value: float
    """Two-sided, of the permutation test that swaps the two models item by item."""
    p_kind: str
    """``exact`` (with one 0/1 sample an item it is McNemar's exact test), ``drawn (n)``, or why there is none."""
    num_items: int
    num_samples: int
    num_better: int
    num_worse: int
    """Items on which the first model has the higher, the lower mean mark."""

    def as_dict(self) -> dict:
        """Plain dictionary, as written by ``compare``."""
        return asdict(self)

    def points(self, digits: int = 1) -> str:
        """``'+3.2 [-1.0, +7.4]'``: percentage points and 95 % interval."""
        return f"{100 * self.difference:+.{digits}f} [{100 * self.low:+.{digits}f}, {100 * self.high:+.{digits}f}]"


def item_differences(a: Marks, b: Marks) -> np.ndarray:
    """Difference of the mean marks item by item, shape [items].

    Raises:
        ValueError: the models have different numbers of items, or an item different numbers of samples: the comparison
            is of equal budgets.
    """
    if len(a) != len(b) or any(len(x) != len(y) for x, y in zip(a, b, strict=True)):
        raise ValueError("a paired difference needs the same items and as many samples of each on both sides")
    return _item_means(a) - _item_means(b)


def paired_difference(
    a: Marks, b: Marks, *, rng: np.random.Generator | None = None, resamples: int = RESAMPLES
) -> Difference:
    """Mean mark of model a minus that of model b on the same items, with the same number of samples of each item.

    Args:
        a: one sequence of marks in [0, 1] per item.
        b: the same items in the same order.
        rng: for the bootstrap and, where it cannot be exact, the permutation test.
        resamples: draws of each.

    Raises:
        ValueError: items or numbers of samples that differ; fewer than two items.
    """
    return mean_of_differences([item_differences(a, b)], [sum(map(len, a))], rng=rng, resamples=resamples)


def mean_of_differences(
    parts: Sequence[np.ndarray],
    num_samples: Sequence[int] | None = None,
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
    resamples: int = RESAMPLES,
    permute: bool = True,
) -> Difference:
    """Mean over benchmarks (or strata) of paired differences: the difference of two *Averages*.

    The interval is Student's t with Welch-Satterthwaite degrees of freedom; bootstrap and permutation draw items within
    each benchmark. One benchmark is :func:`paired_difference`.

    Args:
        parts: item differences of each benchmark, from :func:`item_differences`.
        num_samples: samples behind each; None: one an item.
        weights: of the benchmarks, summing to 1 (to 0 for a difference of differences); None: all alike.
        rng: see :func:`paired_difference`. Without one the p-value of several benchmarks is NaN.
        permute: False leaves the permutation test out (``p_value`` NaN), which costs most of the time.

    Returns:
        The difference; with a single item of some benchmark there is no interval (NaN).

    Raises:
        ValueError: no benchmark, or one without items.
    """
    parts = [np.asarray(part, dtype=float) for part in parts]
    if not parts or any(len(part) == 0 for part in parts):
        raise ValueError("a difference needs items of every benchmark")
    weights = [1 / len(parts)] * len(parts) if weights is None else list(weights)
    difference = sum(w * float(part.mean()) for w, part in zip(weights, parts, strict=True))
    variances = [w**2 * float(part.var(ddof=1)) / len(part) if len(part) > 1 else math.nan
                 for w, part in zip(weights, parts, strict=True)]  # fmt: skip
    se = math.sqrt(sum(variances))
    if math.isnan(se):
        half = t_p_value = math.nan
    elif se > 0:
        freedom = se**4 / sum(v**2 / (len(part) - 1) for v, part in zip(variances, parts, strict=True))
        half = _t95(freedom) * se
        t_p_value = float(2 * special.stdtr(freedom, -abs(difference) / se))
    else:  # all items alike: no spread to go by, but at most so large a share of all items can be otherwise (Wilson)
        half = sum(abs(w) * wilson(0, len(part))[1] for w, part in zip(weights, parts, strict=True))
        t_p_value = math.nan  # as scipy's
    drawn = rng is not None and not math.isnan(se)
    boot = _bootstrap(parts, weights, se, rng, resamples) if drawn else (math.nan, math.nan)
    p_value, p_kind = _permutation(parts, weights, rng, resamples) if permute else (math.nan, "not made")
    whole = np.concatenate(parts)
    return Difference(
        difference,
        se,
        difference - half,
        difference + half,
        t_p_value,
        *boot,
        p_value,
        p_kind,
        len(whole),
        len(whole) if num_samples is None else sum(num_samples),
        int((whole > 0).sum()),
        int((whole < 0).sum()),
    )


def _bootstrap(
    parts: list[np.ndarray], weights: list[float], se: float, rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    def mean(*drawn, axis=-1):
        return sum(w * part.mean(axis=axis) for w, part in zip(weights, drawn, strict=True))

    if se == 0:
        value = float(mean(*parts))
        return value, value

    found = scipy_stats.bootstrap(parts, mean, n_resamples=resamples, method="BCa", rng=rng, batch=500)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _permutation(
    parts: list[np.ndarray], weights: list[float], rng: np.random.Generator | None, resamples: int
) -> tuple[float, str]:
    """Two-sided p-value: under the null every difference has its sign by lot, as either model could have given it."""
    if len(parts) == 1 and (exact := _exact_sign_flips(parts[0])) is not None:
        return exact, "exact"
    if rng is None:
        return math.nan, "needs a generator"
    weighted = np.concatenate([w * part / len(part) for w, part in zip(weights, parts, strict=True)])
    weighted = weighted[weighted != 0]
    if len(weighted) < 2:  # a single one is as extreme with either sign
        return 1.0, "exact"
    found = scipy_stats.permutation_test(
        (weighted,), np.sum, permutation_type="samples", vectorized=True, n_resamples=resamples, batch=500, rng=rng
    )
    return float(found.pvalue), "exact" if 2 ** len(weighted) <= resamples else f"drawn ({resamples})"


def _exact_sign_flips(differences: np.ndarray) -> float | None:
    """Exact p-value of the sum of differences whose signs are drawn by lot; None where they have no common step.

    Marks of 0 and 1 make every item difference a multiple of 1/K, so the sum's null distribution is a convolution of
    two-point distributions on integers.
    """
    nonzero = np.abs(differences[differences != 0])
    if not len(nonzero):
        return 1.0
    for k in range(1, 129):
        steps = nonzero * k
        if np.allclose(steps, np.round(steps), rtol=0, atol=1e-9):
            break
    else:
        return None
    steps = np.round(steps).astype(int)
    steps //= np.gcd.reduce(steps)
    span, observed = int(steps.sum()), abs(int(np.sum(np.sign(differences[differences != 0]) * steps)))
    if steps.max() == 1:  # all alike: the binomial (sign, McNemar) test
        wins = (span + observed) // 2
        return float(scipy_stats.binomtest(wins, span, 0.5).pvalue)
    if span * len(steps) > _EXACT_CELLS:
        return None
    chances = np.zeros(2 * span + 1)
    chances[span] = 1.0
    for step in steps:
        chances = 0.5 * (np.roll(chances, step) + np.roll(chances, -step))  # the ends stay empty until the last step
    return float(min(1.0, chances[: span - observed + 1].sum() + chances[span + observed :].sum())) if observed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for reading all of them (Holm 1979): rejecting below 0.05 errs in at most 5 % of such families.

    NaN stays NaN and counts as no comparison.
    """
    values = np.asarray(p_values, dtype=float)
    adjusted, known = np.full(len(values), np.nan), np.flatnonzero(~np.isnan(values))
    highest = 0.0
    for rank, index in enumerate(known[np.argsort(values[known], kind="stable")]):
        highest = max(highest, min(1.0, (len(known) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted.tolist()


# --- Several training seeds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoLevel:
    """A mean over training seeds and items, both drawn from larger populations. Fractions."""

    mean: float
    se: float
    low: float
    high: float
    """95 %: Student's t with Satterthwaite's degrees of freedom."""
    se_items: float
    se_seeds: float
    """What items alone and seeds alone leave open: standard errors of the mean over the other level's fixed units."""
    num_seeds: int
    num_items: int

    def as_dict(self) -> dict:
        """Plain dictionary."""
        return asdict(self)


def two_level_mean(values: np.ndarray) -> TwoLevel:
    """Mean of marks (or of paired differences) of several training seeds on the same items, both levels at random.

    The two are crossed: every seed answers every item. With mean squares of seeds, items and rest, the variance of the
    mean is (MS_seeds + MS_items - MS_rest) / (seeds x items), at least MS_rest / (seeds x items) (two-way random
    effects without replication; Cornfield and Tukey 1956).

    Args:
        values: shape [seeds, items], each the mean over the item's samples.

    Raises:
        ValueError: fewer than two seeds or two items, or values that are not numbers.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(f"needs at least two seeds and two items, all numbers; got an array of shape {values.shape}")
    s, n = values.shape
    mean, of_seeds, of_items = float(values.mean()), values.mean(axis=1), values.mean(axis=0)
    rest = values - of_seeds[:, None] - of_items[None, :] + mean
    squares = np.array([n * of_seeds.var(ddof=1), s * of_items.var(ddof=1), (rest**2).sum() / ((s - 1) * (n - 1))])
    freedoms = np.array([s - 1, n - 1, (s - 1) * (n - 1)])
    total = squares[0] + squares[1] - squares[2]
    if total > squares[2]:
        freedom = total**2 / (squares**2 / freedoms).sum()
    else:
        total, freedom = squares[2], freedoms[2]
    se = math.sqrt(total / (s * n))
    half = _t95(max(1.0, freedom)) * se
    se_items, se_seeds = (math.sqrt(of.var(ddof=1) / len(of)) for of in (of_items, of_seeds))
    return TwoLevel(mean, se, mean - half, mean + half, se_items, se_seeds, s, n)


# --- Planning ---------------------------------------------------------------------------------------------------------


def difference_components(a: Marks, b: Marks) -> tuple[float, float]:
    """Variance of an item difference taken apart: between items, and within (of one sample of each model).

    The variance of the mean difference with K samples is (between + within / K) / items.

    Raises:
        ValueError: see :func:`item_differences`; an item with a single sample, which cannot show how samples vary.
    """
    differences = item_differences(a, b)
    if any(len(m) < 2 for m in a):
        raise ValueError("how samples vary is seen from two samples of an item on")
    within = float(np.mean([np.var(x, ddof=1) + np.var(y, ddof=1) for x, y in zip(a, b, strict=True)]))
    of_means = float(np.mean([(np.var(x, ddof=1) + np.var(y, ddof=1)) / len(x) for x, y in zip(a, b, strict=True)]))
    return max(0.0, float(differences.var(ddof=1)) - of_means), within


def detectable_difference(variance: float, power: float = 0.8) -> float:
    """Smallest true difference that a two-sided 5 % test finds with this power, from a normal estimate's variance."""
    return (Z95 + float(scipy_stats.norm.ppf(power))) * math.sqrt(variance)


def items_to_resolve(difference: float, variance: float, power: float = 0.8) -> int | None:
    """Items needed to find a true difference, given the variance of one item's difference; None for no difference."""
    if difference == 0:
        return None
    return max(2, math.ceil(variance * (detectable_difference(1.0, power) / difference) ** 2))


def samples_to_settle(difference: float, variance: float, z: float = Z95) -> int | None:
    """Smallest K at which the interval of an observed difference excludes zero, were it to stay as it is.

    Args:
        difference: observed difference.
        variance: variance of the estimate with one sample of each item, all of it shrinking with K: the items are
            taken as fixed and their answers as independent draws.

    Returns:
        Smallest K >= 1 with z sqrt(variance / K) < |difference|; None for no difference.
    """
    if difference == 0:
        return None
    ratio = z * z * variance / difference**2
    return max(1, math.floor(ratio) + 1)


def samples_to_resolve(
    difference: float, between: float, within: float, num_items: int, power: float = 0.8
) -> int | None:
    """Samples of each item needed to find a true difference on a given number of items.

    Args:
        difference: true difference.
        between: variance of the item differences between items, which samples do not shrink.
        within: variance of one sample's difference within an item (:func:`difference_components`).

    Returns:
        The smallest K; None where no number of samples does it (more items are needed) or the difference is zero.
    """
    room = num_items * (difference / detectable_difference(1.0, power)) ** 2 - between
    return max(1, math.ceil(within / room)) if room > 0 else None


def seeds_to_resolve(difference: float, sd: float, power: float = 0.8, most: int = 10_000) -> int | None:
    """Paired training seeds needed to find a true difference by Student's t over seeds.

    Args:
        difference: true difference of the two methods.
        sd: standard deviation of the difference over seeds.
        most: where to give up.

    Returns:
        The smallest number of seeds (at least two); None where more than ``most`` are needed or the difference is zero.
    """
    if difference == 0:
        return None
    if sd == 0:
        return 2

    def found(n: int) -> float:
        freedom, shift = n - 1, abs(difference) / sd * math.sqrt(n)
        limit = scipy_stats.t.ppf(0.975, freedom)
        return float(scipy_stats.nct.sf(limit, freedom, shift) + scipy_stats.nct.cdf(-limit, freedom, shift))

    low, high = 1, 2
    while found(high) < power:
        low, high = high, high * 2
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high if high <= most else None
