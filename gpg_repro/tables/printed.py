"""What the printed numbers themselves can carry: intervals their item counts imply, and whether they can be counts."""

from __future__ import annotations

import math
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pandas as pd

from eval_harness.stats import Z95, wilson
from gpg_repro.tables.base import Column, Table, published_scores


def implied_se(table: Table, published: pd.Series) -> float | None:
    """Standard error of a published headline number, had each item one sample. In percent.

    An Average's is sqrt(sum p(1-p)/n) / columns, a Total's or a single column's sqrt(p(1-p)/n). None where the number
    is no share of right answers, or not printed.
    """
    columns = table.printed_columns if table.summary else table.columns[:1]
    if not all(column.is_count for column in columns) or pd.isna(published[table.headline]):
        return None
    if table.summary == "total":
        p, num_items = published["Total"] / 100, sum(column.num_items for column in columns)
        return math.sqrt(p * (1 - p) / num_items) * 100
    variance = 0.0
    for column in columns:
        p = published[column.title] / 100
        variance += p * (1 - p) / table.published_items(column, published.name)
    return math.sqrt(variance) / len(columns) * 100


def implied_interval(table: Table, published: pd.Series) -> tuple[float, float] | None:
    """95 % interval of a published headline number that its item counts alone imply, in percent; None: they do not."""
    se = implied_se(table, published)
    if se is None:
        return None
    return published[table.headline] - Z95 * se, published[table.headline] + Z95 * se


def implied_difference(
    table: Table, mine: pd.Series, other: pd.Series
) -> tuple[float, float, float] | tuple[float, None, None]:
    """Difference of two published headline numbers with the 95 % interval their item counts imply, percentage points.

    Taken as unpaired: the paper does not print marks per problem. A paired interval would be narrower.
    """
    difference, errors = mine[table.headline] - other[table.headline], [implied_se(table, row) for row in (mine, other)]
    if None in errors:
        return difference, None, None
    half = Z95 * math.hypot(*errors)
    return difference, difference - half, difference + half


def implied_count(
    percent: float, num_items: int, digits: int = 1
) -> tuple[int, float, float] | tuple[None, None, None]:
    """The count of right answers behind a printed percentage with its Wilson interval in percent, one sample per item.

    Returns:
        count, low, high; None for each where no count of ``num_items`` gives the percentage.
    """
    _, count = _count(percent, num_items, digits)
    if count is None:
        return None, None, None
    low, high = wilson(count, num_items)
    return count, 100 * low, 100 * high


def attainability(percent: float, num_items: int, digits: int = 1) -> str:
    """Whether a printed percentage is a count of right answers over ``num_items``.

    Args:
        digits: printed decimals.

    Returns:
        ``"rounded"`` if some count rounds to it (half up), ``"cut"`` if one gives it only with its digits cut off,
        ``"none"`` if no count does (an average over several samples, or a slip).
    """
    return _count(percent, num_items, digits)[0]


def _count(percent: float, num_items: int, digits: int) -> tuple[str, int | None]:
    """The verdict of :func:`attainability` and the count behind the percentage, if there is one."""
    wanted, nearest = _decimal(percent, digits), round(percent * num_items / 100)
    counts = range(max(0, nearest - 1), min(num_items, nearest + 1) + 1)
    for verdict, rounding in (("rounded", ROUND_HALF_UP), ("cut", ROUND_DOWN)):
        for count in counts:
            if _decimal(Decimal(100 * count) / num_items, digits, rounding) == wanted:
                return verdict, count
    return "none", None


def _decimal(percent: float | Decimal, digits: int, rounding: str = ROUND_HALF_UP) -> Decimal:
    value = percent if isinstance(percent, Decimal) else Decimal(str(percent))
    return value.quantize(Decimal(1).scaleb(-digits), rounding)


def arithmetic_notes(table: Table) -> list[str]:
    """Where printed numbers of this table do not add up, computed.

    Averages against their columns, percentages that no item count gives, Totals against the tasks' counts.
    """
    notes = []
    for key, printed in published_scores(table).iterrows():
        label = next(row.label for row in table.rows if row.key == key)
        if table.summary == "average":
            notes += _average_note(table, printed, label)
        counted = [column for column in table.printed_columns if column.is_count]
        for column in counted:
            if pd.isna(printed[column.title]):
                continue
            items = table.published_items(column, key)
            verdict, _ = _count(float(printed[column.title]), items, column.digits)
            text = f"{label}: {_shown(printed, column)} on {column.title}"
            if verdict == "none":
                notes.append(f"{text} is no count of {items} items, however rounded.")
            elif verdict == "cut":
                notes.append(f"{text} is a count of {items} items only with its digits cut off.")
        if table.summary == "total":
            notes += _total_note(counted, printed, label)
    return notes


def _shown(printed: pd.Series, column: Column) -> str:
    return f"{printed[column.title]:.{column.digits}f}"


def _average_note(table: Table, printed: pd.Series, label: str) -> list[str]:
    if pd.isna(printed["Average"]):
        return []
    digits = table.columns[0].digits
    values = [Decimal(str(printed[column.title])) for column in table.printed_columns]
    mean = sum(values) / len(values)
    if _decimal(mean, digits) == _decimal(printed["Average"], digits):
        return []
    return [f"{label}: the printed columns have the mean {mean:.2f}; the printed Average is {printed['Average']}."]


def _total_note(columns: list[Column], printed: pd.Series, label: str) -> list[str]:
    counts = [_count(float(printed[column.title]), column.num_items, column.digits)[1] for column in columns]
    if None in counts:
        return [f"{label}: the Total cannot be checked, since a column is no count."]
    whole, digits = sum(column.num_items for column in columns), columns[0].digits
    exact, total = Decimal(100 * sum(counts)) / whole, _decimal(printed["Total"], digits)
    text = f"{label}: {' + '.join(map(str, counts))} = {sum(counts)} of {whole} right is {exact:.3f}"
    if _decimal(exact, digits) == total:
        return []
    if _decimal(exact, digits, ROUND_DOWN) == total:
        return [f"{text}; the printed Total {total} is that with its digits cut off."]
    return [f"{text}; the printed Total is {total}."]
