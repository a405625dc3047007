"""What the printed numbers themselves can carry: intervals their item counts imply, and whether they can be counts."""

from __future__ import annotations

import math

import pandas as pd

from eval_harness.stats import Z95, wilson
from gpg_repro.counts import Counts, attainability, counts_behind, cut, decimal, rounded, share, variance_of_mean
from gpg_repro.tables.base import Column, Table, published_scores

__all__ = ["arithmetic_notes", "attainability", "implied_difference", "implied_interval", "implied_se"]


def implied_se(table: Table, published: pd.Series) -> float | None:
    """Standard error of a published headline number, had each item one sample. In percent.

    An Average's is sqrt(sum p(1-p)/n) / columns, a Total's or a single column's sqrt(p(1-p)/n). None where the number
    is no share of right answers, or not printed.
    """
    columns = table.printed_columns if table.summary else table.columns[:1]
    if not all(column.is_count for column in columns) or pd.isna(published[table.headline]):
        return None
    if table.summary == "total":
        return 100 * math.sqrt(variance_of_mean([(published["Total"], sum(column.num_items for column in columns))]))
    parts = [(published[column.title], table.published_items(column, published.name)) for column in columns]
    return 100 * math.sqrt(variance_of_mean(parts))


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
        count (the middle one, where several print alike), low, high; None for each where no count of ``num_items``
        gives the percentage.
    """
    counts = counts_behind(percent, num_items, digits).counts
    if not counts:
        return None, None, None
    count = counts[len(counts) // 2]
    low, high = wilson(count, num_items)
    return count, 100 * low, 100 * high


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
            verdict = counts_behind(printed[column.title], items, column.digits).verdict
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
    values = [decimal(printed[column.title]) for column in table.printed_columns]
    mean = sum(values) / len(values)
    if rounded(mean, digits) == decimal(printed["Average"]):
        return []
    return [f"{label}: the printed columns have the mean {mean:.2f}; the printed Average is {printed['Average']}."]


def _total_note(columns: list[Column], printed: pd.Series, label: str) -> list[str]:
    found: list[Counts] = [counts_behind(printed[column.title], column.num_items, column.digits) for column in columns]
    if any(not task.counts for task in found):
        return [f"{label}: the Total cannot be checked, since a column is no count."]
    counts = [task.counts[0] for task in found]
    whole, digits = sum(column.num_items for column in columns), columns[0].digits
    exact, total = share(sum(counts), whole), rounded(printed["Total"], digits)
    text = f"{label}: {' + '.join(map(str, counts))} = {sum(counts)} of {whole} right is {exact:.3f}"
    if rounded(exact, digits) == total:
        return []
    if cut(exact, digits) == total:
        return [f"{text}; the printed Total {total} is that with its digits cut off."]
    return [f"{text}; the printed Total is {total}."]
