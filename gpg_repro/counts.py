"""Arithmetic on printed percentages: which counts of right answers can stand behind one. Exact decimals throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cache

Number = float | int | str | Decimal


@dataclass(frozen=True)
class Counts:
    """The counts of right answers behind a printed percentage."""

    verdict: str
    """``"rounded"``: they round to it (half up). ``"cut"``: they give it only with their digits cut off. ``"none"``."""
    num_items: int
    counts: tuple[int, ...]

    @property
    def exact(self) -> tuple[Decimal, ...]:
        """The counts as percentages, nothing rounded."""
        return tuple(share(count, self.num_items) for count in self.counts)


def decimal(value: Number) -> Decimal:
    """The number as it is written."""
    return value if isinstance(value, Decimal) else Decimal(str(value))


def is_number(value: object) -> bool:
    """Whether a printed cell is a number (no dash, no text, no component of Table 2)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def shown(value: object, digits: int, sign: bool = False) -> str:
    """A cell with its printed decimals, half up; a dash for what is missing, texts as they are."""
    if not is_number(value) and not isinstance(value, Decimal):
        return "–" if value is None else str(value)
    return f"{rounded(value, digits):{'+' if sign else ''}.{digits}f}".replace("-", "−")


def rounded(value: Number, digits: int) -> Decimal:
    """Half up: 28.75 prints as 28.8."""
    return decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def cut(value: Number, digits: int) -> Decimal:
    """The digits after the last printed one dropped: 28.79 prints as 28.7."""
    return decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_DOWN)


def share(count: int, num_items: int) -> Decimal:
    """``count`` of ``num_items`` in percent."""
    return Decimal(100 * count) / num_items


def counts_behind(percent: Number, num_items: int, digits: int = 1) -> Counts:
    """Every count of right answers that prints as ``percent``: by rounding if there is one, else by cutting.

    Args:
        percent: as printed; digits beyond ``digits`` are an error of the caller.
        digits: printed decimals.
    """
    wanted, unit = rounded(percent, digits), Decimal(1).scaleb(-digits)
    if wanted != decimal(percent):
        raise ValueError(f"{percent} has more than {digits} decimals")
    first, last = (int((wanted + side * unit) * num_items / 100) for side in (-1, 1))
    near = range(max(0, first), min(num_items, last + 1) + 1)
    for verdict, printed in (("rounded", rounded), ("cut", cut)):
        found = tuple(count for count in near if printed(share(count, num_items), digits) == wanted)
        if found:
            return Counts(verdict, num_items, found)
    return Counts("none", num_items, ())


def attainability(percent: Number, num_items: int, digits: int = 1) -> str:
    """Whether a printed percentage is a count of right answers over ``num_items``.

    Args:
        digits: printed decimals.

    Returns:
        ``"rounded"`` if some count rounds to it (half up), ``"cut"`` if one gives it only with its digits cut off,
        ``"none"`` if no count does (an average over several samples, or a slip).
    """
    return counts_behind(percent, num_items, digits).verdict


def neighbours(percent: Number, num_items: int) -> tuple[int, int]:
    """The counts just below and just above a percentage; equal where it is one itself, or beyond the ends."""
    below = min(num_items, max(0, int(decimal(percent) * num_items / 100)))
    exact = share(below, num_items) == decimal(percent)
    return below, below if exact else min(num_items, below + 1)


def rounded_twice(percent: Number, num_items: int, digits: int = 1) -> int | None:
    """A count that prints as ``percent`` only if rounded to one more digit first (30.147, 30.15, 30.2)."""
    for count in neighbours(percent, num_items):
        exact = share(count, num_items)
        twice = rounded(rounded(exact, digits + 1), digits)
        if twice == decimal(percent) != rounded(exact, digits):
            return count
    return None


@cache
def share_attainable(num_items: int, digits: int = 1) -> float:
    """Share of the percentages with so many decimals, 0 to 100, that some count rounds to: what the test lets through.

    At 1 a printed percentage cannot fail the test.
    """
    return len({rounded(share(count, num_items), digits) for count in range(num_items + 1)}) / (100 * 10**digits + 1)


def one_slip(written: str, meant: str) -> bool:
    """Whether one character added, dropped or replaced makes one text from the other."""
    short, long = sorted((written, meant), key=len)
    if len(long) - len(short) > 1 or short == long:
        return False
    if len(short) == len(long):
        return sum(a != b for a, b in zip(short, long, strict=True)) == 1
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def variance_of_share(percent: Number, num_items: int) -> float:
    """p(1−p)/N of a printed percentage, in squared fractions: the variance with one sample per item."""
    p = float(percent) / 100
    return p * (1 - p) / num_items


def variance_of_mean(parts: Sequence[tuple[Number, int]]) -> float:
    """Variance of the plain mean of independent benchmarks, each given as (percent, items); squared fractions."""
    return sum(variance_of_share(percent, num_items) for percent, num_items in parts) / len(parts) ** 2
