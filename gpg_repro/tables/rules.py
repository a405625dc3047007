"""Where the published and the strict rule part ways: how often, and what else the graders noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from eval_harness import records
from eval_harness.provenance import rules_of
from gpg_repro.tables.base import SAME_MARK, RowRuns, Table
from gpg_repro.tables.shown import Cell, ShownFrame, shown


def disagreements(table: Table, runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """How often the two rules give one completion different marks, seeds pooled.

    Returns:
        Columns row, label, benchmark, num_samples, kinder (the published mark is the higher one), harsher (it is the
        lower one), flags (``name: count``, what the graders counted beside the mark), all counts of samples; runs (ids,
        separated by blanks).
    """
    lines = []
    for entry in (run for row in runs for run in row.runs):
        for name in table.measured_on(entry.row, scale):
            counts: Counter[str] = Counter()
            flags: Counter[str] = Counter()
            for folder in entry.folders.values():
                for sample in records.iter_samples(folder, name):
                    gap = sample.mark - sample.mark_strict
                    counts["samples"] += 1
                    counts["kinder"] += gap > SAME_MARK
                    counts["harsher"] += gap < -SAME_MARK
                    flags.update(sample.flags)
            if not counts["samples"]:
                continue
            lines.append(
                {
                    "row": entry.row.key,
                    "label": entry.row.label_at(scale),
                    "benchmark": name,
                    "num_samples": counts["samples"],
                    "kinder": counts["kinder"],
                    "harsher": counts["harsher"],
                    "flags": ", ".join(f"{flag}: {count}" for flag, count in sorted(flags.items())),
                    "runs": " ".join(records.read_run(folder).run_id for folder in entry.folders.values()),
                }
            )
    counts = ["num_samples", "kinder", "harsher"]
    return pd.DataFrame(lines, columns=["row", "label", "benchmark", *counts, "flags", "runs"])


def rule_versions(origin: str, runs: Sequence[RowRuns]) -> list[str]:
    """Which rules, of which version, gave the marks of some rows; one note, none without runs.

    Args:
        origin: what the rows are: ``this run``, ``committed records``.
    """
    found: dict[tuple[str, str] | None, set[str]] = {}
    for folder in {folder for row in runs for entry in row.runs for folder in entry.folders.values()}:
        run = records.read_run(folder)
        for name in run.benchmarks:
            found.setdefault(rules_of(run, name), set()).add(name)
    if not found:
        return []
    told = [
        f"published rule {rules[0]}, strict rule {rules[1]} ({', '.join(sorted(names))})"
        for rules, names in sorted(found.items(), key=str)
        if rules
    ]
    if None in found:
        told.append(f"rules not recorded ({', '.join(sorted(found[None]))}; `eval_harness regrade` marks again)")
    return [f"Marks ({origin}): {'; '.join(told)}."]


def disagreement_layout(frame: pd.DataFrame) -> ShownFrame:
    """:func:`disagreements` as people read it; the base of a table with several sets has a line per set."""
    lines = [
        {
            "set": line.benchmark,
            "answers": str(line.num_samples),
            "published rule kinder": _share(line, line.kinder),
            "published rule harsher": _share(line, line.harsher),
            "peculiarities": line.flags or "none",
        }
        for line in frame.itertuples()
    ]
    return shown(lines, pd.Index(frame["label"].to_list(), name="row"))


def _share(line, count: int) -> Cell:
    text = f"{count} ({100 * count / line.num_samples:.1f} %)"
    return Cell(text, count, (("answers", f"{count} of {line.num_samples}"),), tuple(line.runs.split()))
