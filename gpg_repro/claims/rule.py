"""The rule that gives a claim its word. It stands here and nowhere else; nobody can write a word by hand.

A *finding* is one measured number with its intervals: over items, over training seeds (from three on), over repeats of
a simulation, or none wider than the number itself where a computation is exact. The claim says on which side of a
bound the number should lie (``direction``). Then

* **supported**: every interval lies wholly on the claimed side of the bound;
* **contradicted**: every interval lies wholly on the other side;
* **not resolved**: an interval holds the bound, is not finite, or there are fewer training seeds than it takes to speak
  of methods (one run each only tells two checkpoints apart);
* **not tested**: there is no number.

A claim of several tests takes ``every`` one of them, or ``most``: see :func:`combine`. A claim of a range is judged by
:func:`judge_range`. For a claim that something is *no* better or worse ("not greater", "not less") the bound itself is
on the claimed side; the paper states no margin within which two scores count as equal, so none is assumed.

A quantity that has an end at the bound (a share above nothing) contradicts "greater" where it lies at that end.
:func:`outcomes` has a result for each word, so that no claim can come out one way only.

The same words stand in four places that never mix: what the printed numbers carry, given their item counts; what was
found by computation, at any size; what was measured in miniature; what was measured at paper scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from scipy.stats import norm
from scipy.stats import t as student_t

from gpg_repro.tables.numbers import MIN_SEEDS

LEVEL = 0.05
"""Of the two-sided tests that belong to the 95 % intervals."""
Direction = Literal["greater", "less", "not greater", "not less", "within"]
"""Claimed side of the bound; ``within`` is for ranges alone."""
Quantifier = Literal["every", "most"]


class Verdict(StrEnum):
    """The four words."""

    SUPPORTED = "supported"
    NOT_RESOLVED = "not resolved"
    CONTRADICTED = "contradicted"
    NOT_TESTED = "not tested"


PLACES = {"computed": "by computation", "miniature": "in miniature", "paper": "at paper scale"}
"""Where a word was earned -> how it is always introduced."""
_PRINTED = {
    Verdict.SUPPORTED: "yes",
    Verdict.NOT_RESOLVED: "no",
    Verdict.CONTRADICTED: "yes, against the claim",
    Verdict.NOT_TESTED: "cannot be told",
}


def labelled(verdict: Verdict, place: str) -> str:
    """A word with where it was earned in front of it, so that it keeps its meaning when it is copied."""
    return f"{PLACES[place]}: {verdict}"


def resolved(verdict: Verdict) -> str:
    """The rule's word on printed numbers as the answer to "resolved by their item counts?"."""
    return _PRINTED[verdict]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and the two-sided p-value of its test against the bound."""

    over: str
    """``items``, ``seeds``, ``repeats`` or ``exact``."""
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Finding:
    """One measured number."""

    value: float
    intervals: tuple[Interval, ...]
    bound: float = 0.0
    num_seeds: int | None = None
    """Training seeds behind it; None: training is no part of it, so no number of seeds is needed."""
    detail: str = ""
    """What was measured, for people: counts, both values, what a reader should know."""
    least: float = -math.inf
    most: float = math.inf
    """The ends of what the quantity can be, whatever was measured: a distance is not below zero."""

    @property
    def p_value(self) -> float:
        """Of the claim that every interval excludes the bound: the largest of their p-values (intersection-union)."""
        return max(interval.p_value for interval in self.intervals)


def exact(
    value: float, bound: float = 0.0, detail: str = "", least: float = -math.inf, most: float = math.inf
) -> Finding:
    """A number that was computed, not sampled: its interval is itself."""
    value = float(value)
    of = Interval("exact", value, value, float(value == bound))
    return Finding(value, (of,), bound, None, detail, least, most)


def interval(over: str, low: float, high: float, df: float | None, bound: float = 0.0) -> Interval:
    """A symmetric 95 % interval with the p-value that belongs to it.

    Args:
        df: degrees of freedom of Student's t; None: normal.
    """
    scale = norm if df is None else student_t(df)
    value, half = (low + high) / 2, (high - low) / 2
    if not math.isfinite(half):
        p_value = math.nan
    elif half == 0:
        p_value = float(value == bound)
    else:
        p_value = float(2 * scale.sf(abs(value - bound) / (half / scale.ppf(1 - LEVEL / 2))))
    return Interval(over, float(low), float(high), p_value)


def judge(direction: Direction, finding: Finding | None, min_seeds: int = MIN_SEEDS) -> Verdict:
    """The word for one number.

    Args:
        direction: claimed side of ``finding.bound``.
        finding: None: nothing was measured.
        min_seeds: training seeds that it takes, where training is part of the number.
    """
    if finding is None:
        return Verdict.NOT_TESTED
    ends = [end for i in finding.intervals for end in (i.low, i.high)]
    too_few = finding.num_seeds is not None and finding.num_seeds < min_seeds
    if not ends or too_few or not all(map(math.isfinite, (finding.value, finding.bound, *ends))):
        return Verdict.NOT_RESOLVED
    low, high, bound = min(ends), max(ends), finding.bound
    claimed, other = {
        "greater": (low > bound, high < bound or high == bound == finding.least),
        "less": (high < bound, low > bound or low == bound == finding.most),
        "not greater": (high <= bound, low > bound),
        "not less": (low >= bound, high < bound),
    }[direction]
    return Verdict.SUPPORTED if claimed else Verdict.CONTRADICTED if other else Verdict.NOT_RESOLVED


@dataclass(frozen=True)
class Outcome:
    """What earns a word: as a sentence, and as a result that the rule can be fed with. None: no number at all."""

    text: str
    result: Finding | Spread | None


def outcomes(
    direction: Direction, bound: float = 0.0, least: float = -math.inf, most: float = math.inf
) -> dict[Verdict, Outcome]:
    """A result for each word that a quantity between ``least`` and ``most`` can earn. A missing word: a tautology."""
    below, above = max(least, bound - 1.0), min(most, bound + 1.0)
    up, strict = direction in ("greater", "not less"), direction in ("greater", "less")
    at = f"{bound:g}"
    if strict and bound in (least, most):
        sides = {above if bound == least else below: "above" if bound == least else "below", bound: "at"}
    else:
        sides = {below: "below" if strict or up else "not above", above: "above" if strict or not up else "not below"}
    found = {}
    for value, side in sides.items():
        result = exact(value, bound, "", least, most)
        if (word := judge(direction, result)) != Verdict.NOT_RESOLVED:
            found.setdefault(word, Outcome(f"every interval {side} {at}", result))
    wide = replace(exact(bound, bound, "", least, most), intervals=(Interval("repeats", below, above, 1.0),))
    found.setdefault(judge(direction, wide), Outcome(f"an interval on both sides of {at}, or too few seeds", wide))
    found[judge(direction, None)] = Outcome("no number", None)
    return found


def range_outcomes(low: float, high: float) -> dict[Verdict, Outcome]:
    """The same for a claimed range."""
    inside, outside = (low + high) / 2, high + 1.0
    steady, beyond = (replace(exact(value), num_seeds=MIN_SEEDS) for value in (inside, outside))
    results = {
        "every step inside": Spread(inside, inside, steady, (low, high)),
        "the mean over steps outside with its interval": Spread(outside, outside, beyond, (low, high)),
        "single steps outside, or too few seeds": Spread(inside, outside, steady, (low, high)),
        "no number": None,
    }
    return {judge_range(result): Outcome(text, result) for text, result in results.items()}


@dataclass(frozen=True)
class Spread:
    """A quantity over the steps of trainings, against a quoted range."""

    low: float
    high: float
    """Its extremes over all steps and seeds."""
    mean: Finding
    """Mean over steps, with an interval over seeds."""
    claimed: tuple[float, float]


def judge_range(spread: Spread | None, min_seeds: int = MIN_SEEDS) -> Verdict:
    """The word for a claimed range: supported if every step of every seed lies inside; contradicted if the mean over
    steps lies outside with every interval; else not resolved."""
    if spread is None:
        return Verdict.NOT_TESTED
    low, high = spread.claimed
    numbers = (spread.low, spread.high, spread.mean.value, low, high)
    if not all(map(math.isfinite, numbers)) or (spread.mean.num_seeds or 0) < min_seeds:
        return Verdict.NOT_RESOLVED
    if low <= spread.low and spread.high <= high:
        return Verdict.SUPPORTED
    below, above = (
        judge(side, replace(spread.mean, bound=end), min_seeds) for side, end in (("less", low), ("greater", high))
    )
    return Verdict.CONTRADICTED if Verdict.SUPPORTED in (below, above) else Verdict.NOT_RESOLVED


def combine(verdicts: Sequence[Verdict], of: Quantifier = "every") -> Verdict:
    """The word for a claim of several tests.

    ``every``: contradicted by one contradiction, supported by support alone. ``most``: supported if more than half are,
    contradicted if so many are that no majority can be left. Not tested if no test was made; else not resolved, also
    where a part was not tested.
    """
    supported, contradicted = (verdicts.count(word) for word in (Verdict.SUPPORTED, Verdict.CONTRADICTED))
    if all(word == Verdict.NOT_TESTED for word in verdicts):
        return Verdict.NOT_TESTED
    if of == "most":
        if 2 * supported > len(verdicts):
            return Verdict.SUPPORTED
        return Verdict.CONTRADICTED if 2 * contradicted >= len(verdicts) else Verdict.NOT_RESOLVED
    if contradicted:
        return Verdict.CONTRADICTED
    return Verdict.SUPPORTED if supported == len(verdicts) else Verdict.NOT_RESOLVED


def corrected(verdict: Verdict, adjusted_p: float) -> Verdict:
    """The word after a correction for the number of comparisons: a side that no longer stands out is not resolved."""
    decided = verdict in (Verdict.SUPPORTED, Verdict.CONTRADICTED)
    return Verdict.NOT_RESOLVED if decided and not adjusted_p <= LEVEL else verdict
