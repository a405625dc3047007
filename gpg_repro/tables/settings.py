"""Same settings or no difference: what a table may subtract from what.

Every gain is over our own base measured under the row's settings. Where a row's settings are not the base's, the base
is measured again under them (``RowRuns.base``); where that cannot be, or two other rows differ in settings, there is no
difference, and a note says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from eval_harness import records
from eval_harness.markup import markdown_text
from eval_harness.records import RunRecord
from eval_harness.settings import in_words, unequal_settings
from gpg_repro.tables.base import BASE, Column, RowRuns, Table


def matching(mine: RowRuns, other: RowRuns) -> RowRuns:
    """What is subtracted from ``mine``: the base under this row's settings where there is one, else ``other``."""
    return mine.base if other.row.key == BASE and mine.base is not None else other


def unequal(table: Table, mine: RowRuns, other: RowRuns, scale: str, column: Column | None = None) -> str | None:
    """How two rows differ in settings, in words; None: they do not, as far as their records tell.

    Args:
        column: look at this column alone instead of all that the headline number is made of.
    """
    if column is not None:
        columns: Sequence[Column] = [column]
    else:
        columns = table.printed_columns if table.summary else table.columns[:1]
    for one in columns:
        benchmark, runs = one.benchmark_at(scale), [entry.of(one) for entry in (mine, other)]
        if benchmark is None or None in runs:
            continue
        for a in _records(runs[0]):
            for b in _records(runs[1]):
                if found := unequal_settings(a, b, benchmark):
                    return f"{one.title_at(scale)}: {in_words(found)}"
    return None


def refusals(table: Table, runs: Sequence[RowRuns], scale: str) -> list[str]:
    """One line for each comparison of the table, or gain over the base, that is not computed for unequal settings."""
    by_row = {entry.row.key: entry for entry in runs}
    pairs = [(key, BASE) for key in by_row if key != BASE]
    lines = []
    for mine, other in dict.fromkeys([*pairs, *table.comparisons]):
        if mine in by_row and other in by_row:
            a, b = by_row[mine], matching(by_row[mine], by_row[other])
            if why := unequal(table, a, b, scale):
                labels = [by_row[key].row.label_at(scale) for key in (mine, other)]
                lines.append(f"{labels[0]} − {labels[1]}: not computed, the settings differ ({why}).")
    return lines


def engine_note(runs: Iterable[RowRuns]) -> list[str]:
    """Says where rows that are subtracted were computed by different engines."""
    engines = {entry.row.key: {run.engine["name"] for part in entry.runs for run in _records(part)} for entry in runs}
    if len(set().union(*engines.values())) < 2:
        return []
    named = "; ".join(f"{key}: {', '.join(map(markdown_text, sorted(names)))}" for key, names in engines.items())
    return [
        f"Rows were computed by different engines ({named}). Greedy answers agree up to rounding; sampled ones are "
        "other draws for the same seed."
    ]


def _records(run: RowRuns) -> list[RunRecord]:
    return [_record(path, path.stat().st_mtime_ns) for path in (folder / "run.json" for folder in run.folders.values())]


@lru_cache(maxsize=512)
def _record(path: Path, _changed: int) -> RunRecord:
    return records.read_run(path.parent)
