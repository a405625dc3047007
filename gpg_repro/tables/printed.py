"""What the printed numbers themselves can carry: intervals their item counts imply, and whether they can be counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pandas as pd

from eval_harness.benchmarks import get_benchmark
from eval_harness.stats import Z95
from gpg_repro.tables.base import Table, published_scores

_DIGIT = Decimal("0.1")


def implied_se(published: pd.Series, benchmarks: Sequence[str]) -> float:
    """Standard error of a published Average, had each item one sample: sqrt(sum p(1-p)/n) / columns. In percent."""
    variance = 0.0
    for name in benchmarks:
        benchmark = get_benchmark(name)
        p = published[benchmark.title] / 100
        variance += p * (1 - p) / benchmark.num_items
    return math.sqrt(variance) / len(benchmarks) * 100


def implied_interval(published: pd.Series, benchmarks: Sequence[str]) -> tuple[float, float]:
    """95 % interval of a published Average that its item counts alone imply. In percent."""
    half = Z95 * implied_se(published, benchmarks)
    return published["Average"] - half, published["Average"] + half


def implied_difference(mine: pd.Series, other: pd.Series, benchmarks: Sequence[str]) -> tuple[float, float, float]:
    """Difference of two published Averages with the 95 % interval their item counts imply, in percentage points.

    Taken as unpaired: the paper does not print marks per problem. A paired interval would be narrower.
    """
    difference = mine["Average"] - other["Average"]
    half = Z95 * math.hypot(implied_se(mine, benchmarks), implied_se(other, benchmarks))
    return difference, difference - half, difference + half


def attainability(percent: float, num_items: int) -> str:
    """Whether a printed percentage (one decimal) is a count of right answers over ``num_items``.

    Returns:
        ``"rounded"`` if some count rounds to it (half up), ``"cut"`` if one gives it only with its digits cut off,
        ``"none"`` if no count does (an average over several samples, or a slip).
    """
    wanted = Decimal(str(percent)).quantize(_DIGIT)
    nearest = round(percent * num_items / 100)
    values = [Decimal(100 * k) / num_items for k in range(max(0, nearest - 1), min(num_items, nearest + 1) + 1)]
    if any(value.quantize(_DIGIT, ROUND_HALF_UP) == wanted for value in values):
        return "rounded"
    return "cut" if any(value.quantize(_DIGIT, ROUND_DOWN) == wanted for value in values) else "none"


def arithmetic_notes(table: Table) -> list[str]:
    """Where printed numbers of this table do not add up, computed: Averages, and percentages no item count gives."""
    notes = []
    for key, printed in published_scores(table).iterrows():
        label = next(row.label for row in table.rows if row.key == key)
        values = [Decimal(str(printed[get_benchmark(name).title])) for name in table.benchmarks]
        mean = sum(values) / len(values)
        if mean.quantize(_DIGIT, ROUND_HALF_UP) != Decimal(str(printed["Average"])).quantize(_DIGIT):
            notes.append(
                f"{label}: the printed columns have the mean {mean:.2f}; the printed Average is {printed['Average']}."
            )
        for name in table.benchmarks:
            benchmark = get_benchmark(name)
            verdict = attainability(float(printed[benchmark.title]), benchmark.num_items)
            text = f"{label}: {printed[benchmark.title]} on {benchmark.title}"
            if verdict == "none":
                notes.append(f"{text} is no count of {benchmark.num_items} items, however rounded.")
            elif verdict == "cut":
                notes.append(f"{text} is a count of {benchmark.num_items} items only with its digits cut off.")
    return notes
