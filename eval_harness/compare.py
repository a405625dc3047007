"""Compare two stored runs on the same items: paired difference, interval and p-value, per benchmark and on the mean.

A side is one run, or several training seeds of one method (``run0,run1,run2``). Marks come from the stored samples;
nothing is graded again. Items that one side lacks, and samples beyond the smaller number, are left out and counted.
Settings that differ are told: a difference then is of the settings too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval_harness import records, stats
from eval_harness.benchmarks import all_benchmarks
from eval_harness.errors import UserError
from eval_harness.markup import csv_table, markdown_table, markdown_text, one_line, plot_text, safe_name
from eval_harness.records import Item, RunRecord

MEAN = "mean"
RULES = ("published", "strict")
_COUNTS = ("asked", "scored", "failed")
MIN_SEEDS = 3
"""From so many runs a side on, an interval over items and seeds is given."""
SEED = 20250404
"""Of the generator behind bootstrap and permutations, unless another is asked for."""
_SETTINGS = ("dtype", "max_model_len", "chat_template", "min_pixels", "max_pixels", "limit", "deterministic")


@dataclass(frozen=True)
class Side:
    """One of the two things compared: the runs of one model, or of one method's training seeds."""

    folders: tuple[Path, ...]
    runs: tuple[RunRecord, ...]

    @property
    def name(self) -> str:
        """Names of its runs, as Markdown."""
        return ", ".join(markdown_text(run.run_id) for run in self.runs)


@dataclass
class Comparison:
    """What ``compare`` found."""

    a: Side
    b: Side
    rule: str
    rows: list[dict[str, Any]]
    """One per benchmark, then the mean (of at least two benchmarks). Fields in docs/statistics.md."""
    notes: list[str] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """The rows as a frame, fractions."""
        return pd.DataFrame(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """What ``comparison.json`` holds."""
        return {
            "a": [run.run_id for run in self.a.runs],
            "b": [run.run_id for run in self.b.runs],
            "rule": self.rule,
            "rows": self.rows,
            "notes": self.notes,
        }


def open_side(text: str) -> Side:
    """Read the runs of one side, folders separated by commas.

    Raises:
        UserError: no run there, a training run, or an evaluation that is not finished.
    """
    folders = tuple(Path(part.strip()) for part in str(text).split(",") if part.strip())
    if not folders:
        raise UserError("a side of the comparison is empty: give a run folder, or several separated by commas.")
    return Side(folders, tuple(records.read_finished(folder) for folder in folders))


def compare(
    a: Side,
    b: Side,
    *,
    rule: str = "published",
    benchmarks: Sequence[str] | None = None,
    rng: np.random.Generator | None = None,
    resamples: int = stats.RESAMPLES,
) -> Comparison:
    """Paired differences a - b.

    Args:
        rule: ``published`` or ``strict`` marks.
        benchmarks: only these; None: all that every run has.
        rng: for bootstrap and permutations; None: a generator of a fixed seed, so that a comparison can be repeated.

    Raises:
        UserError: no shared benchmark or no shared item, or the same item with other wording.
    """
    rng = rng or np.random.default_rng(SEED)
    runs, notes = [*a.runs, *b.runs], []
    if len(a.runs) != len(b.runs) and min(len(a.runs), len(b.runs)) > 1:
        raise UserError(
            f"{len(a.runs)} runs against {len(b.runs)}: give as many training seeds on both sides, or one run that "
            "all are compared with."
        )
    if len(a.runs) != len(b.runs):
        notes.append(f"{len(a.runs)} runs against {len(b.runs)}: the sides have other numbers of samples of an item.")
    shared = [name for name in a.runs[0].benchmarks if all(name in run.benchmarks for run in runs)]
    wanted = shared if benchmarks is None else list(benchmarks)
    if unknown := [name for name in wanted if name not in shared]:
        raise UserError(f"not in every run: {', '.join(unknown)}; shared are {', '.join(shared) or 'none'}.")
    if not wanted:
        raise UserError(
            f"the runs share no benchmark: {', '.join(a.runs[0].benchmarks)} against {', '.join(b.runs[0].benchmarks)}."
        )
    alone = sorted({name for run in runs for name in run.benchmarks} - set(shared))
    notes += [f"Not in every run and left out: {', '.join(alone)}."] if alone else []
    notes += _setting_notes(a, b, wanted)
    parts, rows, matrices = [], [], []
    titles = {name: benchmark.title for name, benchmark in all_benchmarks().items()}
    for name in wanted:
        marks = _marks(a, b, name, rule, notes)
        gaps = np.subtract(*(_pooled(side).mean(axis=1) for side in marks))
        parts.append((gaps, max(_pooled(side).size for side in marks)))
        matrices.append(_seed_gaps(*marks))
        found = stats.mean_of_differences([gaps], [parts[-1][1]], rng=rng, resamples=resamples)
        rows.append(
            {
                "benchmark": name,
                "title": titles.get(name, name),
                "a": stats.mean_of_items(_pooled(marks[0])).as_dict(),
                "b": stats.mean_of_items(_pooled(marks[1])).as_dict(),
                **found.as_dict(),
                **{
                    f"{what}_{key}": _counted(side, name, what)
                    for key, side in (("a", a), ("b", b))
                    for what in _COUNTS
                },
                **_plan(marks, found, len(runs)),
                **_seed_fields(a, b, [matrices[-1]]),
            }
        )
    if len(rows) > 1:
        found = stats.mean_of_differences(
            [gaps for gaps, _ in parts], [count for _, count in parts], rng=rng, resamples=resamples
        )
        estimates = {
            side: stats.mean_of_estimates([stats.Estimate(**row[side]) for row in rows]).as_dict() for side in "ab"
        }
        counts = {f"{what}_{key}": sum(row[f"{what}_{key}"] for row in rows) for key in "ab" for what in _COUNTS}
        rows.append(
            {
                "benchmark": MEAN,
                "title": f"mean of {len(parts)}",
                **estimates,
                **found.as_dict(),
                **counts,
                "samples_to_resolve": None,
                "detectable": stats.detectable_difference(found.se**2) or None,
                **_seed_fields(a, b, matrices),
            }
        )
    of_benchmarks = [row for row in rows if row["benchmark"] != MEAN]
    for row, adjusted in zip(of_benchmarks, stats.holm([row["p_value"] for row in of_benchmarks]), strict=True):
        row["p_holm"] = adjusted
    if len(of_benchmarks) > 1:
        rows[-1]["p_holm"] = None
        notes.append(
            f"{len(of_benchmarks)} benchmarks are read at once: the Holm column is corrected for that, the p column is "
            "not. The mean is one comparison and needs no correction."
        )
    for side in (a, b):
        asked, lost = (sum(_counted(side, name, what) for name in wanted) for what in ("asked", "failed"))
        wrong = ", which count as wrong" if lost else ""
        notes.append(f"{side.name}: {asked} samples asked, {asked - lost} scored, {lost} failed{wrong}.")
    if max(len(a.runs), len(b.runs)) < MIN_SEEDS:
        notes.append("Intervals cover items (and samples), not training seeds: this is about these checkpoints.")
    return Comparison(a, b, rule, rows, notes)


def _marks(a: Side, b: Side, name: str, rule: str, notes: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Marks of both sides, per run an array [items, samples]: shared items in one order, the same number of samples."""
    items = [
        {item.item_id: item for item in records.read_lines(folder / "items" / f"{name}.jsonl", Item)}
        for folder in (*a.folders, *b.folders)
    ]
    order = [key for key in items[0] if all(key in of_run for of_run in items)]
    if not order:
        raise UserError(f"{name}: the runs share no item; were they made from other data?")
    for key in order:
        first = items[0][key]
        if any((of_run[key].prompt, of_run[key].gold) != (first.prompt, first.gold) for of_run in items[1:]):
            raise UserError(
                f"{name}, item {key}: the runs asked other words or hold another gold under the same id, so they are "
                "not of the same items. Compare runs of one version of the benchmark."
            )
    if left := len({key for of_run in items for key in of_run}) - len(order):
        notes.append(f"{name}: {left} items are not in every run and left out; {len(order)} are compared.")
    tables = []
    for folder in (*a.folders, *b.folders):
        table: dict[str, dict[int, float]] = {key: {} for key in order}
        for sample in records.iter_samples(folder, name):
            if sample.item_id in table:
                table[sample.item_id][sample.sample] = sample.mark if rule == "published" else sample.mark_strict
        if short := [key for key in order if not table[key]]:
            raise UserError(f"{folder}: {name} has no sample of item {short[0]}; the run is damaged, see `verify`.")
        tables.append(table)
    counts = {len(of_item) for table in tables for of_item in table.values()}
    budget = min(counts)
    if len(counts) > 1:
        notes.append(
            f"{name}: up to {max(counts)} samples an item on one side; the first {budget} of each are compared."
        )
    arrays = [np.array([[table[key][k] for k in sorted(table[key])[:budget]] for key in order]) for table in tables]
    return arrays[: len(a.folders)], arrays[len(a.folders) :]


def _pooled(runs: list[np.ndarray]) -> np.ndarray:
    """Marks of all runs of a side as the samples of each item, shape [items, runs x samples]."""
    return np.concatenate(runs, axis=1)


def _seed_gaps(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray | None:
    """Item differences, shape [runs, items]: run k against run k, or all against a single one; None of one run."""
    num_runs = max(len(a), len(b))
    if num_runs < 2:
        return None
    a, b = (side * num_runs if len(side) == 1 else side for side in (a, b))
    return np.stack([x.mean(axis=1) - y.mean(axis=1) for x, y in zip(a, b, strict=True)])


def _seed_fields(a: Side, b: Side, matrices: list[np.ndarray | None]) -> dict[str, Any]:
    """The second level, over runs."""
    if any(matrix is None for matrix in matrices):
        return {"num_seeds": None, "seeds": None, "two_level": None}
    single = np.mean([matrix.mean(axis=1) for matrix in matrices], axis=0)
    enough = len(matrices) == 1 and len(matrices[0]) >= MIN_SEEDS and matrices[0].shape[1] > 1
    two_level = stats.two_level_mean(matrices[0]).as_dict() if enough else None
    return {"num_seeds": len(single), "seeds": single.tolist(), "two_level": two_level}


def _plan(marks: tuple[list[np.ndarray], list[np.ndarray]], found: stats.Difference, num_runs: int) -> dict[str, Any]:
    """What it would take to find a difference of this size with 80 % power."""
    plan: dict[str, Any] = {"samples_to_resolve": None}
    plan["detectable"] = stats.detectable_difference(found.se**2) or None  # no spread seen: not known
    first = [_pooled(side) for side in marks]
    if num_runs == 2 and first[0].shape[1] > 1 and found.difference:
        between, within = stats.difference_components(*first)
        plan["samples_to_resolve"] = stats.samples_to_resolve(found.difference, between, within, found.num_items)
    return plan


def _counted(side: Side, name: str, what: str) -> int:
    """``asked``, ``scored`` or ``failed`` of a benchmark over a side's runs."""
    return sum(getattr(run.benchmarks[name], what) for run in side.runs)


def _setting_notes(a: Side, b: Side, benchmarks: Sequence[str]) -> list[str]:
    """Says which settings differ between the two sides, or between the runs of one."""
    notes = []
    runs = [*a.runs, *b.runs]
    for name in benchmarks:
        decodings = [run.benchmarks[name].decoding.model_dump(exclude={"samples"}) for run in runs]
        differ = [key for key in decodings[0] if any(d[key] != decodings[0][key] for d in decodings)]
        if differ:
            values = "; ".join(
                f"{key} {' / '.join(dict.fromkeys(markdown_text(d[key]) for d in decodings))}" for key in differ
            )
            notes.append(f"{name}: the runs were decoded differently ({values}): the difference is of that too.")
        versions = {run.benchmarks[name].version for run in runs}
        if len(versions) > 1:
            notes.append(f"{name}: versions {', '.join(map(str, sorted(versions)))} of the benchmark are compared.")
    engines = {(run.engine.get("name"), run.engine.get("dtype")) for run in runs}
    if len(engines) > 1:
        shown = ", ".join(
            " ".join(markdown_text(part) for part in engine if part) for engine in sorted(engines, key=str)
        )
        notes.append(f"The runs come from different engines or number formats ({shown}).")
    differ = [key for key in _SETTINGS if len({str(run.settings.get(key)) for run in runs}) > 1]
    if differ:
        notes.append(f"Settings differ: {', '.join(differ)}.")
    return notes


def layout(comparison: Comparison) -> pd.DataFrame:
    """The comparison as people read it, in percent and percentage points."""
    lines = []
    for row in comparison.rows:
        boot = f"[{100 * row['boot_low']:+.1f}, {100 * row['boot_high']:+.1f}]"
        line = {
            "benchmark": row["title"],
            "items × samples": f"{row['num_items']} × {row['num_samples'] / row['num_items']:g}",
            "A": stats.Estimate(**row["a"]).percent(),
            "B": stats.Estimate(**row["b"]).percent(),
            "A − B, points": f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]",
            "bootstrap": boot,
            "better / worse": f"{row['num_better']} / {row['num_worse']}",
            "p": _p(row["p_value"]),
            "p (t)": _p(row["t_p_value"]),
            "p (Holm)": _p(row["p_holm"]),
            "found at 80 %": "–" if row["detectable"] is None else f"{100 * row['detectable']:.1f}",
        }
        if row["seeds"] is not None:
            line["seeds"] = ", ".join(f"{100 * gap:+.1f}" for gap in row["seeds"])
            if row["two_level"]:
                low, high = (100 * row["two_level"][end] for end in ("low", "high"))
                line["items and seeds"] = f"[{low:+.1f}, {high:+.1f}]"
        lines.append(line)
    return pd.DataFrame(lines).fillna("–").set_index("benchmark")


def _p(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def text(comparison: Comparison) -> str:
    """The table with what must be known to read it."""
    head = [
        f"A: {comparison.a.name}",
        f"B: {comparison.b.name}",
        f"{comparison.rule} rule; brackets: 95 %, Student's t over items (paired); p: permutation test "
        f"({', '.join(dict.fromkeys(row['p_kind'] for row in comparison.rows))}); found at 80 %: the difference, in "
        "points, that such a comparison finds four times in five.",
    ]
    return "\n\n".join(
        [
            "\n".join(head),
            markdown_table(layout(comparison)),
            "\n".join(f"- {note}" for note in comparison.notes),
        ]
    ).rstrip()


def figure(comparison: Comparison):
    """Differences with 95 % intervals, the mean below; filled where the interval excludes zero; runs as small dots."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    from eval_harness.style import BASE_BLACK, GPG_BLUE, GRPO_GRAY, INTERVAL_ALPHA, use_style

    use_style()
    rows = comparison.rows
    drawn, axis = plt.subplots(figsize=(9.5, 0.55 * len(rows) + 2.2), layout="constrained")
    for y, row in zip(range(len(rows), 0, -1), rows, strict=True):
        color = BASE_BLACK if row["benchmark"] == MEAN else GPG_BLUE
        low, high, gap = (100 * row[key] for key in ("low", "high", "difference"))
        apart = low > 0 or high < 0
        axis.plot([low, high], [y, y], color=color, alpha=INTERVAL_ALPHA, lw=3)
        axis.plot([100 * row["boot_low"], 100 * row["boot_high"]], [y - 0.17] * 2, color=GRPO_GRAY, lw=1.5)
        axis.plot(gap, y, "o", color=color, mfc=color if apart else "white", ms=8)
        for single in row["seeds"] or ():
            axis.plot(100 * single, y + 0.2, ".", color=color, alpha=0.7, ms=6)
        axis.annotate(
            f"{gap:+.1f}  (p {_p(row['p_value'])})",
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9.5,
        )
    axis.axvline(0, color="0.3", lw=1)
    axis.set(
        yticks=range(len(rows), 0, -1),
        yticklabels=[f"{plot_text(row['title'])} (n = {row['num_items']})" for row in rows],
        ylim=(0.4, len(rows) + 0.6),
        xlabel="A − B, percentage points",
    )
    axis.plot([], [], color=GPG_BLUE, alpha=INTERVAL_ALPHA, lw=3, label="95 %, Student's t over items")
    axis.plot([], [], color=GRPO_GRAY, lw=1.5, label="95 %, bootstrap over items")
    axis.plot([], [], "o", color=GPG_BLUE, mfc="white", ls="", label="interval holds zero")
    if any(row["seeds"] for row in rows):
        axis.plot([], [], ".", color=GPG_BLUE, ls="", label="single runs")
    drawn.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False, fontsize=9)
    names = [one_line(", ".join(run.run_id for run in side.runs)) for side in (comparison.a, comparison.b)]
    names = [plot_text(name if len(name) < 90 else f"{name[:87]}…") for name in names]
    drawn.suptitle(f"A: {names[0]}\nB: {names[1]}", fontsize=9.5, color="0.35")
    sns.despine(ax=axis, left=True)
    return drawn


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``comparison.{json,md,csv,png,svg}`` into a folder; returns the files."""
    import matplotlib.pyplot as plt

    from eval_harness.style import save_figure

    out.mkdir(parents=True, exist_ok=True)
    records.write_json(out / "comparison.json", _plain(comparison.as_dict()))
    records.write_whole(out / "comparison.md", text(comparison) + "\n")
    records.write_whole(out / "comparison.csv", csv_table(pd.json_normalize(comparison.rows)))
    drawn = figure(comparison)
    files = save_figure(drawn, out / "comparison")
    plt.close(drawn)
    return [out / f"comparison.{suffix}" for suffix in ("json", "md", "csv")] + files


def default_folder(comparison: Comparison) -> Path:
    """``results/comparisons/<A>-vs-<B>``, named for the first run of each side."""
    a, b = (safe_name(side.runs[0].run_id.removeprefix("eval-")) for side in (comparison.a, comparison.b))
    return Path("results") / "comparisons" / f"{a}-vs-{b}"


def _plain(value: Any) -> Any:
    """NaN as null: JSON has no other word for missing."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value
