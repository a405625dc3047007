"""How sure a score is: mean, standard error clustered by item, 95 % interval.

An *item* is a question; K samples of one item are not independent, so the item is the unit of resampling.
Marks are 0/1; a sample that failed (the engine gave nothing) counts as 0 and stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats as scipy_stats

Z95 = float(scipy_stats.norm.ppf(0.975))


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


def mean_of_items(marks: Sequence[Sequence[float]]) -> Estimate:
    """Mean mark over items, each item's samples averaged first.

    Args:
        marks: one sequence of marks in [0, 1] per item; K may differ between items but not be 0.

    Returns:
        The estimate. ``se`` is the standard error of the mean over items (sample standard deviation of the per-item
        means / sqrt(number of items)), i.e. clustered by item when K > 1. The interval is Wilson's when every item
        has one 0/1 mark or when all items agree, Student's t on the item means (cut to [0, 1]) otherwise.

    Raises:
        ValueError: no items, an item without samples, or a mark outside [0, 1].
    """
    if not marks or any(len(m) == 0 for m in marks):
        raise ValueError("a mean needs at least one item and every item at least one sample")
    per_item = np.array([float(np.mean(m)) for m in marks])
    if not np.all((per_item >= 0) & (per_item <= 1)):
        raise ValueError("marks must lie in [0, 1]")
    n, num_samples = len(per_item), sum(len(m) for m in marks)
    mean = float(per_item.mean())
    se = float(per_item.std(ddof=1) / math.sqrt(n)) if n > 1 else float("nan")
    if num_samples == n and set(np.unique(per_item)) <= {0.0, 1.0}:
        low, high = wilson(int(per_item.sum()), n)
    elif se == 0:  # all items alike: K samples of an item add no items, so the items' own interval
        low, high = wilson(round(mean * n), n)
    elif n > 1:
        half = float(scipy_stats.t.ppf(0.975, n - 1)) * se
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    else:
        low, high = 0.0, 1.0
    return Estimate(mean, se, low, high, n, num_samples)


def mean_of_strata(
    marks: Sequence[Sequence[float]], strata: Sequence[str | None], weights: Mapping[str, float]
) -> Estimate:
    """Weighted mean of the strata's means (CV-Bench's card: ADE20K and COCO a quarter each, Omni3D a half).

    Args:
        marks: one sequence of marks in [0, 1] per item.
        strata: the stratum of each item.
        weights: weight of every stratum; those without items are left out and the rest weighs in proportion.

    Returns:
        The estimate, with se = sqrt(sum of (weight * se of the stratum)^2) and a normal 95 % interval.

    Raises:
        ValueError: an item of a stratum without a weight, or no items.
    """
    unknown = sorted({str(s) for s in strata} - set(weights))
    if unknown:
        raise ValueError(f"no weight for the strata {', '.join(unknown)}; known are {', '.join(weights)}")
    parts = {s: [m for m, of in zip(marks, strata, strict=True) if of == s] for s in weights}
    present = {s: mean_of_items(part) for s, part in parts.items() if part}
    if not present:
        raise ValueError("a mean needs at least one item")
    total = sum(weights[s] for s in present)
    mean = sum(weights[s] * e.mean for s, e in present.items()) / total
    se = math.sqrt(sum((weights[s] * e.se) ** 2 for s, e in present.items())) / total
    low, high = (max(0.0, mean - Z95 * se), min(1.0, mean + Z95 * se)) if math.isfinite(se) else (0.0, 1.0)
    return Estimate(mean, se, low, high, len(marks), sum(map(len, marks)))


def wilson(num_correct: int, num_items: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), which stays in [0, 1] and is not empty at 0 or 1."""
    if not 0 <= num_correct <= num_items or num_items < 1:
        raise ValueError(f"need 0 <= correct <= items and items >= 1, got {num_correct} of {num_items}")
    p, z2n = num_correct / num_items, z * z / num_items
    centre = (p + z2n / 2) / (1 + z2n)
    half = z / (1 + z2n) * math.sqrt(p * (1 - p) / num_items + z2n / (4 * num_items))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates (a table's *Average* of benchmarks), with a normal 95 % interval.

    The standard error is sqrt(sum of se^2) / number of estimates: item sampling only, not training seeds.
    """
    if not estimates:
        raise ValueError("a mean of estimates needs at least one")
    mean = float(np.mean([e.mean for e in estimates]))
    se = math.sqrt(sum(e.se**2 for e in estimates)) / len(estimates)
    low, high = (max(0.0, mean - Z95 * se), min(1.0, mean + Z95 * se)) if math.isfinite(se) else (0.0, 1.0)
    return Estimate(mean, se, low, high, sum(e.num_items for e in estimates), sum(e.num_samples for e in estimates))
