"""Where the published and the strict rule part ways: how often, and what else the graders noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from eval_harness import records
from eval_harness.records import Sample
from gpg_repro.tables.base import SAME_MARK, RowRuns, Table


def disagreements(table: Table, runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """How often the two rules give one completion different marks, seeds pooled.

    Returns:
        Columns row, label, benchmark, num_samples, kinder (the published mark is the higher one), harsher (it is the
        lower one), flags (``name: count``, what the graders counted beside the mark), all counts of samples.
    """
    lines = []
    for entry in (run for row in runs for run in row.runs):
        for name in table.measured_on(entry.row, scale):
            counts: Counter[str] = Counter()
            flags: Counter[str] = Counter()
            for folder in entry.folders.values():
                for sample in records.iter_lines(folder / "samples" / f"{name}.jsonl", Sample):
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
                }
            )
    return pd.DataFrame(lines, columns=["row", "label", "benchmark", "num_samples", "kinder", "harsher", "flags"])


def disagreement_layout(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`disagreements` as people read it; the base of a table with several sets has a line per set."""
    return pd.DataFrame(
        {
            "set": frame["benchmark"].to_list(),
            "answers": frame["num_samples"].astype(str).to_list(),
            "published rule kinder": _shares(frame, "kinder"),
            "published rule harsher": _shares(frame, "harsher"),
            "peculiarities": [flags or "none" for flags in frame["flags"]],
        },
        index=pd.Index(frame["label"].to_list(), name="row"),
    )


def _shares(frame: pd.DataFrame, counts: str) -> list[str]:
    pairs = zip(frame[counts], frame["num_samples"], strict=True)
    return [f"{count} ({100 * count / whole:.1f} %)" for count, whole in pairs]
