"""What stands behind a claim: printed numbers with the intervals their item counts imply, and measured ones.

Nothing is trained or measured here. Miniature numbers come from the committed records, numbers at paper scale from the
finished runs of this machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
from scipy.stats import t as student_t

from eval_harness import records
from eval_harness.identity import changed_since
from eval_harness.released import Job
from eval_harness.stats import Z95
from gpg_repro.claims.data import Claim, Test, Training
from gpg_repro.claims.rule import Direction, Finding, Interval, Spread, Verdict, interval, judge
from gpg_repro.figures.base import published_range
from gpg_repro.plan import evaluation_folders
from gpg_repro.published import published_table
from gpg_repro.tables import get_table
from gpg_repro.tables.base import Column, Row, RowRuns, Table, published_scores
from gpg_repro.tables.numbers import MIN_SEEDS, comparable, difference
from gpg_repro.tables.printed import implied_difference
from gpg_repro.tables.runs import finished_trainings, reference_runs

_ENDS = 10
"""Steps at each end of a training that a change is taken between."""


@dataclass(frozen=True)
class Pair:
    """Two rows of a table in one number: what every comparison comes down to."""

    table: str
    row: str
    against: str
    column: str | None
    """Title as published; None: the headline number."""

    @property
    def spec(self) -> Table:
        """The table."""
        return get_table(self.table)

    @property
    def on(self) -> Column | None:
        """The column; None: the headline number."""
        return next((column for column in self.spec.columns if column.title == self.column), None)

    def number_at(self, scale: str) -> str:
        """What the number is called at a scale."""
        return self.spec.headline_title(scale) if self.on is None else self.on.title_at(scale)

    def label_at(self, scale: str) -> str:
        """``GPG − GRPO``; a miniature has names of its own."""
        rows = {row.key: row.label_at(scale) for row in self.spec.rows}
        return f"{rows[self.row]} − {rows[self.against]}"


def pairs_of(claim: Claim) -> list[list[Pair]]:
    """The tests of a comparison: per test its pairs, all of which have to hold (a chain of rows has several)."""
    return [
        [Pair(test.table, a, b, column) for a, b in itertools.pairwise(test.rows)]
        for test in claim.compare.tests
        for column in _columns(test)
    ]


def _columns(test: Test) -> tuple[str | None, ...]:
    return test.columns or (None,)


def bound_of(claim: Claim) -> float:
    """The difference that has to be exceeded, in points: a margin the text quotes, or 0."""
    return published_range(*claim.compare.margin)[0] if claim.compare.margin else 0.0


# Printed numbers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """A printed difference, and what its item counts carry."""

    difference: float | None
    """Percentage points; None: a row is not printed."""
    finding: Finding | None
    """With the interval that the item counts imply; None: they imply none."""
    why_not: str = ""
    """Why there is no finding."""


@cache
def printed(pair: Pair, bound: float = 0.0) -> Printed:
    """The difference of two printed numbers, unpaired and with one sample per item, since no marks are printed."""
    table = pair.spec
    scores = published_scores(table)
    if pair.row not in scores.index or pair.against not in scores.index:
        return Printed(None, None, "not printed")
    mine, other = scores.loc[pair.row], scores.loc[pair.against]
    gap = float(mine[pair.column or table.headline] - other[pair.column or table.headline])
    if math.isnan(gap):
        return Printed(None, None, "not printed")
    columns = [pair.on] if pair.on else table.printed_columns
    if any(table.published_items(c, pair.row) != table.published_items(c, pair.against) for c in columns):
        return Printed(gap, None, "the two numbers are of different test sets")
    if pair.on is None:
        _, low, high = implied_difference(table, mine, other)
    else:
        low, high = _implied_on(table, pair.on, mine, other)
    if low is None:
        return Printed(gap, None, "no counts of right answers, so no interval follows")
    return Printed(gap, Finding(gap, (interval("items", low, high, None, bound),), bound))


def _implied_on(table: Table, column: Column, *rows: pd.Series) -> tuple[float, float] | tuple[None, None]:
    if not column.is_count:
        return None, None
    shares = [row[column.title] / 100 for row in rows]
    variance = sum(p * (1 - p) / table.published_items(column, row.name) for p, row in zip(shares, rows, strict=True))
    gap, half = 100 * (shares[0] - shares[1]), 100 * Z95 * math.sqrt(variance)
    return gap - half, gap + half


def agrees(direction: Direction, found: Printed, bound: float = 0.0) -> bool | None:
    """Whether a printed difference alone lies on the claimed side; None: it is not printed.

    For "not greater" and "not less" a difference that its item counts do not resolve counts as none.
    """
    if found.difference is None:
        return None
    gap = found.difference
    if direction in ("greater", "less"):
        return gap > bound if direction == "greater" else gap < bound
    plain = gap <= bound if direction == "not greater" else gap >= bound
    return plain or (found.finding is not None and judge(direction, found.finding) != Verdict.CONTRADICTED)


def printed_cells(claim: Claim) -> str:
    """What is printed for a claim that is no comparison of rows."""
    shown = claim.published
    if shown is None:
        return "no number is printed"
    if shown.quoted:
        low, high = published_range(*shown.quoted)
        return f"text: {low:g} to {high:g}; no values of the curve"
    table = published_table(shown.table)
    cells = [
        f"{row}: " + ", ".join(f"{column} {_yes(table.loc[row, column])}" for column in shown.columns)
        for row in shown.rows
    ]
    return f"{shown.table}: " + "; ".join(cells)


def _yes(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value))


# Measured numbers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A difference measured here."""

    finding: Finding | None
    numbers: Mapping[str, float | int | bool | None] | None = None
    """As :func:`gpg_repro.tables.numbers.difference` gives them."""
    why_not: str = ""
    """Why there is no finding."""
    absent: tuple[str, ...] = ()
    """Rows without records."""


class Records:
    """Finished runs at one scale, read once per table.

    Args:
        scale: ``tiny``: the committed records; ``paper``: the runs of this machine.
        reference: folder of the committed records.
        runs: folder of this machine's runs.
    """

    def __init__(self, scale: str, reference: Path, runs: Path):
        self.scale, self._reference, self._runs = scale, reference, runs
        self._tables: dict[str, dict[str, RowRuns]] = {}
        self._pairs: dict[tuple[Pair, float], Measured] = {}

    def of(self, table: str) -> dict[str, RowRuns]:
        """Rows of a table that were measured, by key."""
        if table not in self._tables:
            spec = get_table(table)
            found = (
                finished_runs(spec, self._runs)
                if self.scale == "paper"
                else reference_runs(spec, self.scale, self._reference)
            )
            self._tables[table] = {entry.row.key: entry for entry in found}
        return self._tables[table]

    @property
    def read(self) -> dict[str, list[RowRuns]]:
        """Everything read so far, by table."""
        return {table: list(rows.values()) for table, rows in self._tables.items()}

    def measured(self, pair: Pair, bound: float = 0.0) -> Measured:
        """The paired difference of two rows, with its intervals over items and, from three seeds on, over seeds."""
        if (pair, bound) not in self._pairs:
            self._pairs[pair, bound] = self._measured(pair, bound)
        return self._pairs[pair, bound]

    def _measured(self, pair: Pair, bound: float) -> Measured:
        rows = self.of(pair.table)
        absent = tuple(_label(pair, key, self.scale) for key in (pair.row, pair.against) if key not in rows)
        if absent:
            return Measured(None, None, f"no records of {', '.join(absent)}", absent)
        mine, other = rows[pair.row], rows[pair.against]
        if not comparable(mine, other):
            return Measured(None, None, "the two rows did not start from the same base")
        found = difference(pair.spec, mine, other, self.scale, column=pair.on)
        if found is None:
            return Measured(None, None, "a row was not measured on it, or they share no training seed")
        return Measured(_finding(pair, found, bound), found)

    def trainings(self, recipe: str) -> dict[int, Path]:
        """Finished trainings of a recipe, by seed."""
        if self.scale == "paper":
            return finished_trainings(recipe, "paper", self._runs)
        paths = (self._reference / self.scale / recipe).glob("seed*/training/run.json")
        return {int(path.parents[1].name.removeprefix("seed")): path.parent for path in sorted(paths)}

    def training(self, claim: Training) -> Finding | Spread | None:
        """A quantity of trainings: its mean over steps, its change, or its spread; None: no training is recorded."""
        frames = [records.steps_frame(folder) for folder in self.trainings(claim.recipe).values()]
        if claim.quantity == "alpha":  # where no group has a signal there is none
            frames = [frame[frame["num_valid_groups"] > 0] for frame in frames]
        series = [frame[claim.quantity].dropna() for frame in frames if claim.quantity in frame]
        series = [values for values in series if len(values)]
        if not series:
            return None
        steps = sum(map(len, series))
        if claim.statistic == "change":
            per_seed = [values.tail(_ENDS).mean() - values.head(_ENDS).mean() for values in series]
            return _over_seeds(per_seed, f"last {_ENDS} steps minus first {_ENDS}, {steps} steps")
        mean = _over_seeds([values.mean() for values in series], f"mean over {steps} steps")
        if claim.statistic == "mean":
            return replace(mean, least=0.0, most=1.0) if claim.quantity.startswith("frac_") else mean
        pooled = pd.concat(series)
        return Spread(float(pooled.min()), float(pooled.max()), mean, published_range(*claim.quoted))


def _label(pair: Pair, key: str, scale: str) -> str:
    row = next(row for row in pair.spec.rows if row.key == key)
    return row.label_at(scale)


def _finding(pair: Pair, found: Mapping, bound: float) -> Finding:
    averaged = pair.on is None and pair.spec.summary == "average"
    cells = len(pair.spec.printed_columns) if averaged else 1
    intervals: list[Interval] = [
        interval("items", found["low"], found["high"], max(1, found["num_items"] - cells), bound)
    ]
    if found["seeds_low"] is not None:
        intervals.append(interval("seeds", found["seeds_low"], found["seeds_high"], found["num_seeds"] - 1, bound))
    return Finding(float(found["difference"]), tuple(intervals), bound, found["num_seeds"])


def _over_seeds(per_seed: Sequence[float], detail: str) -> Finding:
    values = pd.Series(per_seed, dtype=float)
    intervals = ()
    if len(values) >= MIN_SEEDS:
        half = float(student_t.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
        intervals = (interval("seeds", values.mean() - half, values.mean() + half, len(values) - 1),)
    return Finding(float(values.mean()), intervals, 0.0, len(values), detail)


# Runs at paper scale ------------------------------------------------------------------------------------------------


def finished_runs(table: Table, root: Path) -> list[RowRuns]:
    """Rows of a table that were measured at paper scale to the end on all their benchmarks, among the run folders.

    A row that stands for a hub model is that model's run, any other the finished trainings of its recipe; where one
    was measured several times, the newest run counts.
    """
    found = []
    for row in table.rows:
        parts = {}
        for part in table.parts(row):
            trainings = {} if part.hub or not part.recipe else finished_trainings(part.recipe, "paper", root)
            labels = {seed: folder.name.removeprefix("train-") for seed, folder in trainings.items()}
            if part.hub:
                labels = {0: Job(part.checkpoint, part.variant).label if part.checkpoint else _hub_label(part)}
            measured_on = table.measured_on(part, "paper")
            folders = {seed: _newest(root, label, measured_on, part.hub_revision) for seed, label in labels.items()}
            folders = {seed: folder for seed, folder in folders.items() if folder is not None}
            if folders:
                parts[part.column] = RowRuns(part, folders, {s: t for s, t in trainings.items() if s in folders})
        if parts:
            found.append(RowRuns(row, parts=parts) if row.recipes else parts[None])
    return found


def _hub_label(row: Row) -> str:
    return row.hub.replace("/", "--")


def _newest(root: Path, label: str, benchmarks: Sequence[str], revision: str | None) -> Path | None:
    """The last whole evaluation of the checkpoint as it is now: of this revision, or in the training's folder."""

    def whole() -> Iterator[tuple[str, Path]]:
        for folder in evaluation_folders(root, label):
            run = records.read_run(folder)
            if revision not in (None, run.model.get("revision")):
                continue
            if changed_since(run, root / f"train-{label}" / "checkpoint"):
                continue
            limited = run.settings.get("limit") is not None
            if run.status == "finished" and not limited and set(benchmarks) <= set(run.benchmarks):
                yield run.finished, folder

    return max(whole(), default=(None, None))[1]
