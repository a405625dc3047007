"""Coverage of the interval of an average: MOVER from exact bounds of the parts, from Wilson's, and the normal one.

Draws the number of right answers of every benchmark from a binomial with a known p, one sample an item, and counts how
often the interval of the plain mean holds the mean of the p. Parts alike (two or five of 8 to 100 items) and the five
benchmarks of Table 3 with their items, at p = 0, 0.01, 0.1, 0.5, 0.99 and 1, and with p from 0 to 1 among the parts.
Nothing is timed. Ends in one JSON line; `lowest` is the lowest coverage of ours over all cases (95 % is asked for).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from eval_harness.stats import Estimate, mean_of_estimates, mean_of_items

TABLE_3 = (30, 500, 40, 272, 674)
"""Items of AIME24, MATH-500, AMC23, Minerva and OlympiadBench."""
PARTS = ((8, 8), (16, 16), (30, 30), (100, 100), (8,) * 5, (16,) * 5, (30,) * 5, TABLE_3)
LEVELS = (0.0, 0.01, 0.1, 0.5, 0.99, 1.0)
MIXED = (0.0, 0.01, 0.5, 0.9, 1.0)


def coverage(p: Sequence[float], items: Sequence[int], draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Share of draws whose interval holds the mean of ``p``, by kind, and the mean width of ours (fractions)."""
    drawn = np.stack([rng.binomial(n, of, size=draws) for n, of in zip(items, p, strict=True)], axis=1)
    combinations, counts = np.unique(drawn, axis=0, return_counts=True)
    part = cache(lambda k, n: mean_of_items([[1.0]] * k + [[0.0]] * (n - k)))
    truth, held, width = float(np.mean(p)), Counter(mover=0, wilson=0, normal=0), 0.0
    for row, count in zip(combinations, counts.tolist(), strict=True):
        parts = [part(k, n) for k, n in zip(row.tolist(), items, strict=True)]
        ours, normal = (mean_of_estimates(parts, interval=kind) for kind in ("mover", "normal"))
        width += count * (ours.high - ours.low)
        for kind, low, high in (
            ("mover", ours.low, ours.high),
            ("wilson", *_from_wilson(parts)),
            ("normal", normal.low, normal.high),
        ):
            held[kind] += count * (low - 1e-12 <= truth <= high + 1e-12)
    return {kind: number / draws for kind, number in held.items()} | {"width": width / draws}


def _from_wilson(parts: Sequence[Estimate]) -> tuple[float, float]:
    """MOVER from the parts' own intervals, as Zou and Donner have it."""
    mean = sum(e.mean for e in parts) / len(parts)
    below = math.sqrt(sum((e.mean - e.low) ** 2 for e in parts)) / len(parts)
    above = math.sqrt(sum((e.high - e.mean) ** 2 for e in parts)) / len(parts)
    return mean - below, mean + above


def main(arguments: Sequence[str] | None = None) -> dict:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000)
    draws = parser.parse_args(arguments).draws
    rows = []
    for items in PARTS:
        levels = [(f"{p:g}", [p] * len(items)) for p in LEVELS]
        levels += [("0, 0.01, 0.5, 0.9, 1", list(MIXED))] if len(items) == len(MIXED) else [("0, 1", [0.0, 1.0])]
        for name, p in levels:
            found = coverage(p, items, draws, np.random.default_rng(len(rows)))
            rows.append({"items": list(items), "p": name, **{key: round(value, 4) for key, value in found.items()}})
            shown = "  ".join(f"{kind} {found[kind]:.2%}" for kind in ("mover", "wilson", "normal"))
            print(f"{items!s:28} p {name:22} {shown}", flush=True)
    result = {"bench": "averages", "draws": draws, "rows": rows, "lowest": min(row["mover"] for row in rows)}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
