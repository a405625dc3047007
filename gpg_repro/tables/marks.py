"""Marks of a row's items, column by column and rule by rule: the one place that reads samples for the tables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.records import Item
from gpg_repro.tables.base import MASK_IOU, SCORE, Column, RowRuns, Table


def samples(folder: Path, benchmark: str) -> pd.DataFrame:
    """The samples of one benchmark in one run, one line per completion in the order of the file; cached.

    Returns:
        Columns item_id, failed, ``score`` and ``score_strict`` (marks in [0, 1]), and one per further mark of the
        graders and of the masks; a mask that could not be compared (no polygon) is NaN and left out of every mean.
    """
    masks = folder / "masks" / f"{benchmark}.jsonl"
    paths = folder / "run.json", folder / "samples" / f"{benchmark}.jsonl", masks
    return _samples(folder, benchmark, masks, tuple(map(_state, paths)))


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes with a file even where the clock went back: place and size, not only its time."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=512)
def _samples(folder: Path, benchmark: str, masks: Path, _changed: tuple) -> pd.DataFrame:
    columns: dict[str, list] = {name: [] for name in ("item_id", "sample", "failed", SCORE, f"{SCORE}_strict")}
    further: dict[str, list] = {}
    for number, s in enumerate(records.iter_samples(folder, benchmark)):
        row = (s.item_id, s.sample, s.status == "failed", s.mark, s.mark_strict)
        for values, value in zip(columns.values(), row, strict=True):
            values.append(value)
        for name, value in s.extra.items():
            values = further.setdefault(name, [])
            values += [None] * (number - len(values))
            values.append(value)
    num_samples = len(columns["item_id"])
    further = {name: values + [None] * (num_samples - len(values)) for name, values in further.items()}
    frame = pd.DataFrame({**columns, **{name: pd.Series(values, dtype=float) for name, values in further.items()}})
    frame = frame.fillna(0.0)  # a further mark that a sample lacks, as in the run's own scores
    if masks.exists():
        from eval_harness.masks import MaskMark

        added = pd.DataFrame([mark.model_dump() for mark in records.read_lines(masks, MaskMark)])
        frame = frame.merge(added, on=["item_id", "sample"], how="left").astype({MASK_IOU: float})
    return frame.drop(columns="sample")


def items(folder: Path, benchmark: str) -> dict[str, Item]:
    """The items of one benchmark in one run by id; cached."""
    path = folder / "items" / f"{benchmark}.jsonl"
    return _items(path, _state(path))


@lru_cache(maxsize=512)
def _items(path: Path, _changed: tuple | None) -> dict[str, Item]:
    return {item.item_id: item for item in records.read_lines(path, Item)}


def column_marks(entry: RowRuns, column: Column, scale: str, rule: str) -> pd.DataFrame | None:
    """All marks of a row in one column.

    Returns:
        Columns seed, item_id, mark, one line per completion; None where the row has no such marks (the column was not
        measured, its metric was not made, or the metric does not know the rule).
    """
    run, name = entry.of(column), column.metric if rule == "published" else f"{column.metric}_strict"
    if run is None or not entry.seeds:
        return None
    parts = []
    for seed in entry.seeds:
        folder, benchmark = run.folders[seed], column.benchmark_at(scale)
        frame = samples(folder, benchmark)
        if column.group is not None:
            groups = {item_id: item.group for item_id, item in items(folder, benchmark).items()}
            frame = frame[frame["item_id"].map(groups) == column.group]
        if name not in frame or not len(frame):
            return None
        parts.append(frame[["item_id"]].assign(seed=seed, mark=frame[name]))
    marks = pd.concat(parts, ignore_index=True)
    marks = marks[marks["mark"].notna()]
    return marks if len(marks) else None


def total_marks(table: Table, entry: RowRuns, scale: str, rule: str) -> pd.DataFrame | None:
    """All marks of a row over a whole benchmark, for its total.

    Returns:
        Columns seed, item_id, mark, and under the strict rule stratum (None: every item weighs the same).
    """
    whole = Column("Total", table.columns[0].benchmark, table.columns[0].tiny_benchmark)
    marks, benchmark = column_marks(entry, whole, scale, rule), get_benchmark(whole.benchmark_at(scale))
    if marks is None:
        return None
    strata = None
    if rule == "strict" and benchmark.strict_strata:
        known = items(next(iter(entry.folders.values())), benchmark.name)
        strata = marks["item_id"].map({i: item.context.get(benchmark.stratum_field) for i, item in known.items()})
    return marks.assign(stratum=strata)


def by_item(marks: pd.DataFrame) -> list[list[float]]:
    """Marks of every item, all seeds and samples together: what an estimate is made from."""
    return [group.tolist() for _, group in marks.groupby("item_id", sort=False)["mark"]]


def by_seed(marks: pd.DataFrame) -> pd.DataFrame:
    """Mean mark of every item (index) with every training seed (columns)."""
    return marks.groupby(["item_id", "seed"], sort=False)["mark"].mean().unstack("seed", sort=False)
