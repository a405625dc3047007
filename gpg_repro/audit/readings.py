"""What a printed difference can carry: the interval its item counts imply, and what would settle it.

The paper prints one number per row, so an interval must come from the counts of items alone: each item one sample, the
two rows unpaired. Both rows answered the same items, so a paired interval would be narrower; its marks are not printed.
Training seeds are in no interval here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

import pandas as pd

from eval_harness.errors import UserError, unknown
from eval_harness.stats import Z95, detectable_difference, samples_to_settle
from gpg_repro.audit.facts import COUNT, MEAN_OF_COLUMNS, Facts
from gpg_repro.audit.rules import CONTRADICTS, DIFFERS, Finding, check_row, row_fits, several_samples
from gpg_repro.counts import decimal, is_number, shown, variance_of_mean
from gpg_repro.published import PrintedRow

OUTSIDE, INSIDE = "outside", "inside"
NO_INTERVAL, NOT_COMPARABLE, NOT_PRINTED = "no interval", "not comparable", "not printed"
VERDICTS = {
    OUTSIDE: "zero lies outside the interval",
    INSIDE: "zero lies inside the interval: the item counts do not tell the two rows apart",
    NO_INTERVAL: "the numbers are no shares of right answers, so their item counts imply no interval",
    NOT_COMPARABLE: "the two numbers are not of one test set, or one of them contradicts its row",
    NOT_PRINTED: "a dash is printed",
}


@dataclass(frozen=True)
class Reading:
    """A printed difference and how sure it is. Percentage points, except ``times``."""

    id: str
    topic: str
    where: str
    """Where the paper reads it out, or the table it can be read from."""
    source: str
    table: str
    row: str
    against: str
    column: str
    value: float | None
    other: float | None
    difference: float | None
    stated: float | None
    """The difference as the text states it."""
    holds: bool | None
    """The statement follows from the printed numbers; None: nothing is stated."""
    low: float | None
    high: float | None
    verdict: str
    """A key of :data:`VERDICTS`."""
    times: int | None
    """Smallest K at which the interval would exclude zero, were the difference to stay as it is: K samples of each item
    (items fixed, variance of a sample at most p(1−p)), or, where decoding is greedy, K times the items."""
    greedy: bool | None
    decoding: str
    detectable: float | None
    """Smallest true difference that such a pair of measurements finds with 80 % power."""
    note: str

    @property
    def pair(self) -> str:
        """``GPG-RS1 − Open-RS1 †``."""
        return f"{self.row.removeprefix('+ ')} − {self.against.removeprefix('+ ')}"


@dataclass(frozen=True)
class Trend:
    """A straight line through printed numbers, with the interval that their item counts imply for its slope."""

    id: str
    where: str
    source: str
    table: str
    column: str
    x_name: str
    values: tuple[float, ...]
    slope: float
    low: float
    high: float
    verdict: str
    rising: tuple[str, ...]
    """Columns of the table that rise at every step."""
    not_rising: tuple[str, ...]


def read_all(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts, comparisons: Sequence[Mapping]) -> list[Reading]:
    """The readings of every comparison, column by column.

    Where two Averages hold scores of different sets, the mean of the other columns is read as well.

    Args:
        rows: source -> its rows.
        comparisons: entries of ``results/paper/comparisons.json``.
    """
    found = []
    for entry in comparisons:
        mine, other = find_row(rows, entry["row"]), find_row(rows, entry["against"])
        for column in entry["columns"]:
            reading = read(mine, other, column, facts, entry)
            found.append(reading)
            if reading.verdict == NOT_COMPARABLE and _is_average(column, facts):
                rest = read_rest(mine, other, column, facts, entry)
                found += [] if rest is None else [rest]
    return found


def find_row(rows: Mapping[str, Sequence[PrintedRow]], place: Mapping[str, str]) -> PrintedRow:
    """The row at a place (source, table, method and, where two share it, mark).

    Raises:
        UserError: no row is there, or two are.
    """
    part = rows.get(place["source"])
    if part is None:
        raise unknown("source", place["source"], rows)
    named = [row for row in part if (row.table, row.method) == (place["table"], place["method"])]
    found = [row for row in named if place.get("mark") in (None, row.mark)]
    if not found:
        raise unknown(f"row of {place['table']}", place["method"], (row.method for row in part))
    if len(found) > 1:
        raise UserError(f"{place['table']} has several rows {place['method']!r}; name one by its mark.")
    return found[0]


def read(mine: PrintedRow, other: PrintedRow, column: str, facts: Facts, entry: Mapping) -> Reading:
    """The reading of one printed column."""
    if not (is_number(mine.columns.get(column)) and is_number(other.columns.get(column))):
        return _reading(mine, other, column, facts, entry, verdict=NOT_PRINTED)
    values = decimal(mine.columns[column]), decimal(other.columns[column])
    return _read(mine, other, column, _columns_of(mine, column, facts), values, facts, entry)


def read_rest(mine: PrintedRow, other: PrintedRow, summary: str, facts: Facts, entry: Mapping) -> Reading | None:
    """The mean of those columns of an Average whose sets can be the same; None: none, or a row contradicts itself."""
    kept = [c for c in _columns_of(mine, summary, facts) if _common_sets(mine, other, c, facts)]
    dropped = [c for c in _columns_of(mine, summary, facts) if c not in kept]
    if not kept or not dropped or any(_contradicts(row, facts) for row in (mine, other)):
        return None
    values = tuple(sum(decimal(row.columns[c]) for c in kept) / len(kept) for row in (mine, other))
    name = f"mean without {', '.join(dropped)}"
    return _read(mine, other, name, kept, values, facts, {**entry, "stated": None, "at_least": None})


def _read(
    mine: PrintedRow,
    other: PrintedRow,
    column: str,
    parts: Sequence[str],
    values: tuple[Decimal, Decimal],
    facts: Facts,
    entry: Mapping,
) -> Reading:
    for row in (mine, other) if len(parts) > 1 else ():
        if contradiction := _contradicts(row, facts):
            note = f"{row.label} contradicts itself: {contradiction}"
            return _reading(mine, other, column, facts, entry, values, NOT_COMPARABLE, note=note)
    if any(facts.columns[part].kind != COUNT for part in parts):
        return _reading(mine, other, column, facts, entry, values, NO_INTERVAL)
    for part in parts:
        if not _common_sets(mine, other, part, facts):
            sets = [" or ".join(map(str, sorted(row_fits(row, facts)[part].sets))) for row in (mine, other)]
            note = f"{part} is of {sets[0]} items in one row and of {sets[1]} in the other"
            return _reading(mine, other, column, facts, entry, values, NOT_COMPARABLE, note=note)
    variance = sum(_variance(row, column, parts, mine, other, facts) for row in (mine, other))
    several = [row.label for row in (mine, other) if several_samples(row, facts) is not None]
    note = ""
    if several:
        note = f"{', '.join(several)}: averages over several samples, so the interval is at most this wide"
        if any(len(facts.columns[part].sets) > 1 for part in parts):
            note += ", and which of the sets it was cannot be told"
    return _reading(mine, other, column, facts, entry, values, None, variance, note)


def _reading(
    mine: PrintedRow,
    other: PrintedRow,
    column: str,
    facts: Facts,
    entry: Mapping,
    values: tuple[Decimal, Decimal] | None = None,
    verdict: str | None = None,
    variance: float | None = None,
    note: str = "",
) -> Reading:
    gap = None if values is None else values[0] - values[1]
    low = high = times = detectable = None
    if variance is not None:
        half = 100 * Z95 * math.sqrt(variance)
        low, high = float(gap) - half, float(gap) + half
        verdict = INSIDE if low <= 0 <= high else OUTSIDE
        times, detectable = samples_to_settle(float(gap) / 100, variance), 100 * detectable_difference(variance)
    stated, at_least = entry.get("stated"), entry.get("at_least")
    holds = None
    if gap is not None and (stated is not None or at_least is not None):
        holds = gap == decimal(stated) if stated is not None else gap > decimal(at_least)
    decoding = facts.decoding.get(mine.table)
    across = mine.source != other.source
    return Reading(
        id=entry["id"],
        topic=entry["topic"],
        where=entry["where"],
        source=f"{mine.source}, {other.source}" if across else mine.source,
        table=mine.table,
        row=f"{mine.label} ({mine.source})" if across else mine.label,
        against=f"{other.label} ({other.source})" if across else other.label,
        column=column,
        value=None if values is None else float(values[0]),
        other=None if values is None else float(values[1]),
        difference=None if gap is None else float(gap),
        stated=stated if stated is not None else at_least,
        holds=holds,
        low=low,
        high=high,
        verdict=verdict,
        times=times,
        greedy=None if decoding is None else decoding.greedy,
        decoding="not stated" if decoding is None else decoding.how,
        detectable=detectable,
        note=note,
    )


def _columns_of(row: PrintedRow, column: str, facts: Facts) -> list[str]:
    """The scores behind a printed column: itself, or those that it sums up."""
    return [c for c in row.columns if c not in facts.summaries] if column in facts.summaries else [column]


def _is_average(column: str, facts: Facts) -> bool:
    return column in facts.summaries and facts.summaries[column].kind == MEAN_OF_COLUMNS


def _contradicts(row: PrintedRow, facts: Facts) -> str:
    """What a row says against itself, so that it cannot be compared; empty: nothing."""
    return next((f.text for f in check_row(row, facts) if f.severity == CONTRADICTS), "")


def _common_sets(mine: PrintedRow, other: PrintedRow, column: str, facts: Facts) -> frozenset[int]:
    """Sets that can have given both scores. A score that no set gives is taken to be of any."""
    every = frozenset(facts.columns[column].sets)
    a, b = (row_fits(row, facts)[column].sets or every for row in (mine, other))
    return a & b


def _variance(
    row: PrintedRow, column: str, parts: Sequence[str], mine: PrintedRow, other: PrintedRow, facts: Facts
) -> float:
    """p(1−p)/N of a row's number, squared fractions; of several possible sets the usual one."""
    sizes = {
        part: next(size for size in facts.columns[part].sets if size in _common_sets(mine, other, part, facts))
        for part in parts
    }
    if column in facts.summaries and not _is_average(column, facts):
        return variance_of_mean([(row.columns[column], sum(sizes.values()))])
    return variance_of_mean([(row.columns[part], size) for part, size in sizes.items()])


def read_trend(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts, entry: Mapping) -> Trend:
    """Least squares through printed numbers; the slope's interval from their item counts, rows unpaired.

    Args:
        entry: of ``trends`` in ``results/paper/comparisons.json``.
    """
    place = {"source": entry["source"], "table": entry["table"]}
    there = [find_row(rows, {**place, "method": point["method"]}) for point in entry["points"]]
    column, x = entry["column"], [point["x"] for point in entry["points"]]
    centre = sum(x) / len(x)
    spread = sum((value - centre) ** 2 for value in x)
    weights = [(value - centre) / spread for value in x]
    y = [row.columns[column] for row in there]
    parts = _columns_of(there[0], column, facts)
    variances = [_variance(row, column, parts, row, row, facts) for row in there]
    slope = sum(w * value for w, value in zip(weights, y, strict=True))
    half = 100 * Z95 * math.sqrt(sum(w * w * v for w, v in zip(weights, variances, strict=True)))
    scores = [c for c in there[0].columns if c not in facts.summaries]
    rising = [c for c in scores if all(a.columns[c] < b.columns[c] for a, b in zip(there, there[1:], strict=False))]
    return Trend(
        id=entry["id"],
        where=entry["where"],
        source=entry["source"],
        table=entry["table"],
        column=column,
        x_name=entry["x_name"],
        values=tuple(y),
        slope=slope,
        low=slope - half,
        high=slope + half,
        verdict=INSIDE if slope - half <= 0 <= slope + half else OUTSIDE,
        rising=tuple(rising),
        not_rising=tuple(c for c in scores if c not in rising),
    )


def stated_findings(readings: Sequence[Reading], facts: Facts) -> list[Finding]:
    """Differences that the text states and the printed numbers do not give."""
    found = []
    for one in (reading for reading in readings if reading.holds is False):
        digits = facts.digits_of(one.column)
        printed, expected = shown(one.stated, digits), shown(one.difference, digits)
        text = f"{one.where} states a difference of {printed} for {one.pair}; the printed numbers give {expected}."
        where = ((one.source,), one.table, one.row, one.column)
        found.append(Finding("stated", DIFFERS, *where, printed, expected, text))
    return found


def readings_frame(readings: Sequence[Reading]) -> pd.DataFrame:
    """One reading per line, every field a column."""
    return pd.DataFrame([asdict(one) for one in readings])
