"""From records to numbers: scores, paired differences, training summaries, and the table as people read it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from scipy.stats import t as student_t

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.records import Sample
from eval_harness.stats import Estimate, mean_of_estimates, mean_of_items
from gpg_repro.tables.base import BASE, RowRuns, Table, column_title, published_scores
from gpg_repro.tables.printed import implied_difference, implied_interval

MIN_SEEDS = 3
"""From so many training seeds on, an interval over seeds is given too."""
NO_CLIPPING = 1e6
"""A limit of the gradient norm from which on nothing is clipped; set so high, it still has the norm logged."""


def _marks(entry: RowRuns, name: str) -> pd.DataFrame:
    """Mean mark of every item (index) with every training seed (columns)."""
    columns = {}
    for seed, folder in entry.folders.items():
        samples = records.read_lines(folder / "samples" / f"{name}.jsonl", Sample)
        marks = pd.Series([float(bool(s.correct)) for s in samples], [s.item_id for s in samples], dtype=float)
        columns[seed] = marks.groupby(level=0, sort=False).mean()
    return pd.DataFrame(columns)


def scores(table: Table, runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """One line per row and column (the benchmarks, then ``average``), seeds pooled.

    Marks of all seeds are the samples of an item, so the interval is over items (clustered), not over training seeds;
    ``seed_low`` and ``seed_high`` are the smallest and largest score of a single seed.

    Returns:
        Columns row, label, column, mean, se, low, high (fractions), num_items, num_samples, num_seeds, seed_low,
        seed_high, failed, engine.
    """
    lines = []
    for entry in runs:
        per_benchmark: dict[str, Estimate] = {}
        per_seed: dict[str, list[float]] = {}
        failed = 0
        engines = {records.read_run(folder).engine["name"] for folder in entry.folders.values()}
        for name in table.benchmarks_at(scale):
            marks: dict[str, list[float]] = {}
            for folder in entry.folders.values():
                samples = records.read_lines(folder / "samples" / f"{name}.jsonl", Sample)
                failed += sum(s.status == "failed" for s in samples)
                per_seed.setdefault(name, []).append(sum(bool(s.correct) for s in samples) / len(samples))
                for s in samples:
                    marks.setdefault(s.item_id, []).append(float(bool(s.correct)))
            per_benchmark[name] = mean_of_items(list(marks.values()))
        per_benchmark["average"] = mean_of_estimates(list(per_benchmark.values()))
        per_seed["average"] = [sum(v) / len(v) for v in zip(*per_seed.values(), strict=True)]
        for name, estimate in per_benchmark.items():
            lines.append(
                {
                    "row": entry.row.key,
                    "label": entry.row.label_at(scale),
                    "column": name,
                    **estimate.as_dict(),
                    "num_seeds": len(entry.folders),
                    "seed_low": min(per_seed[name]),
                    "seed_high": max(per_seed[name]),
                    "failed": failed,
                    "engine": ", ".join(sorted(engines)),
                }
            )
    columns = ["row", "label", "column", *Estimate.__dataclass_fields__]
    return pd.DataFrame(lines, columns=[*columns, "num_seeds", "seed_low", "seed_high", "failed", "engine"])


def difference(table: Table, mine: RowRuns, other: RowRuns, scale: str) -> dict[str, float | int | bool | None]:
    """Difference of two rows' Averages on the same items: paired, so tighter than two intervals.

    Per item, marks of all samples and seeds are averaged and the other row's mean mark subtracted; every column weighs
    the same. ``low`` and ``high`` are Student's t on the item differences: they cover items, not training seeds. The
    differences of single seeds (seed k against seed k; an untrained base against every seed) give ``seeds_low`` and
    ``seeds_high``, Student's t over seeds, from three seeds on; ``seed_min`` and ``seed_max`` are the extremes.

    Returns:
        difference, low, high, seed_min, seed_max, seeds_low, seeds_high (percentage points; None below three seeds),
        num_items, num_seeds, and ``apart``: every interval given excludes zero.
    """
    seeds = sorted(
        mine.folders
        if set(other.folders) == {0} and other.row.recipe is None
        else set(mine.folders) & set(other.folders)
    )
    means, variances, per_seed, num_items = [], [], [], 0
    for name in table.benchmarks_at(scale):
        a, b = _marks(mine, name), _marks(other, name)
        differences = a.mean(axis=1) - b.mean(axis=1)
        means.append(differences.mean())
        variances.append(differences.var(ddof=1) / len(differences))
        num_items += len(differences)
        per_seed.append([(a[k] - b[k if k in b else 0]).mean() for k in seeds])
    gain, se = sum(means) / len(means), math.sqrt(sum(variances)) / len(means)
    half = float(student_t.ppf(0.975, max(1, num_items - len(means)))) * se
    of_seeds = pd.Series([sum(v) / len(v) for v in zip(*per_seed, strict=True)], dtype=float)
    result = {"difference": gain, "low": gain - half, "high": gain + half}
    result |= {"seed_min": of_seeds.min(), "seed_max": of_seeds.max(), "seeds_low": None, "seeds_high": None}
    if len(seeds) >= MIN_SEEDS:
        half = float(student_t.ppf(0.975, len(seeds) - 1)) * of_seeds.std(ddof=1) / math.sqrt(len(seeds))
        result |= {"seeds_low": of_seeds.mean() - half, "seeds_high": of_seeds.mean() + half}
    percent = {key: None if value is None else 100 * value for key, value in result.items()}
    apart = not percent["low"] <= 0 <= percent["high"]
    if percent["seeds_low"] is not None:
        apart = apart and not percent["seeds_low"] <= 0 <= percent["seeds_high"]
    return {**percent, "num_items": num_items, "num_seeds": len(seeds), "apart": bool(apart)}


def verdict(apart: bool, num_seeds: int) -> str:
    """Whether two rows are told apart, in words; below three seeds only these checkpoints are, not the methods."""
    if not apart:
        return "not told apart"
    return "told apart" if num_seeds >= MIN_SEEDS else f"told apart on items alone (fewer than {MIN_SEEDS} seeds)"


def bases(entry: RowRuns) -> set[str]:
    """Which base weights a row was trained from (an untrained row: what it is); empty when no training is known."""
    if entry.row.recipe is None:
        models = [records.read_run(folder).model for folder in entry.folders.values()]
    else:
        models = [records.read_run(folder).base for folder in entry.trainings.values()]
    return {model["weights"] or f"{model['name']}@{model['revision']}" for model in models}


def comparable(mine: RowRuns, other: RowRuns) -> bool:
    """Whether two rows started from the same base; one made on another machine can differ."""
    a, b = bases(mine), bases(other)
    return not a or not b or a == b


def gains(table: Table, runs: Sequence[RowRuns], scale: str, base: str = BASE) -> pd.DataFrame:
    """Every row against one baseline row; no lines if the baseline was not measured.

    Returns:
        Columns row, label, against, and those of :func:`difference`.
    """
    by_row = {entry.row.key: entry for entry in runs}
    pairs = [(key, base) for key in by_row if key != base] if base in by_row else []
    return differences(table, runs, scale, pairs)


def differences(
    table: Table, runs: Sequence[RowRuns], scale: str, pairs: Sequence[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """Paired differences of pairs of rows (None: the table's comparisons).

    Pairs that were not measured, and rows that did not start from the same base, are left out.

    Returns:
        Columns row, label, against, against_label and those of :func:`difference`.
    """
    by_row = {entry.row.key: entry for entry in runs}
    lines = [
        {
            "row": mine,
            "label": by_row[mine].row.label_at(scale),
            "against": other,
            "against_label": by_row[other].row.label_at(scale),
            **difference(table, by_row[mine], by_row[other], scale),
        }
        for mine, other in (table.comparisons if pairs is None else pairs)
        if mine in by_row and other in by_row and comparable(by_row[mine], by_row[other])
    ]
    return pd.DataFrame(lines)


def all_pairs(table: Table, runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """Paired differences of every row against every row above it."""
    keys = [entry.row.key for entry in runs]
    return differences(table, runs, scale, [(mine, other) for i, mine in enumerate(keys) for other in keys[:i]])


def training_summary(runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """What the trainings behind the rows did, pooled over steps and seeds.

    Returns:
        One line per trained row: row, label, num_seeds, num_steps (all seeds together), alpha, alpha_low, alpha_high
        (mean and range of B/(B-M) in the first draw over steps with a valid group), alpha_applied (mean), reward_std
        (mean), clipped (share of steps whose gradient norm exceeded the limit), grad_norm (mean, before clipping),
        max_grad_norm, num_draws (mean), num_dropped_groups (total), prompts (mean per step), reward_last (mean sampled
        reward of the last ten steps), train_s (mean per run).
    """
    lines = []
    for entry in runs:
        if not entry.trainings:
            continue
        runs_of_row = [records.read_run(folder) for folder in entry.trainings.values()]
        frames = [records.steps_frame(folder) for folder in entry.trainings.values()]
        steps = pd.concat(frames, ignore_index=True)
        limit = runs_of_row[0].recipe["setup"]["training"]["max_grad_norm"]
        with_signal = steps.loc[steps["num_valid_groups"] > 0, "alpha"]
        prompts = steps["num_groups"] * steps["num_draws"]
        lines.append(
            {
                "row": entry.row.key,
                "label": entry.row.label_at(scale),
                "num_seeds": len(frames),
                "num_steps": len(steps),
                "alpha": with_signal.mean(),
                "alpha_low": with_signal.min(),
                "alpha_high": with_signal.max(),
                "alpha_applied": steps["alpha_applied"].mean(),
                "reward_std": steps["reward_std"].mean(),
                "clipped": (steps["grad_norm"] > limit).mean(),
                "grad_norm": steps["grad_norm"].mean(),
                "max_grad_norm": limit,
                "num_draws": steps["num_draws"].mean(),
                "num_dropped_groups": int(steps["num_dropped_groups"].sum()),
                "prompts": prompts.mean(),
                "reward_last": pd.concat([frame["reward"].tail(10) for frame in frames]).mean(),
                "train_s": sum(run.timings.get("train_s", float("nan")) for run in runs_of_row) / len(frames),
            }
        )
    return pd.DataFrame(lines)


def training_layout(summary: pd.DataFrame) -> pd.DataFrame:
    """:func:`training_summary` as people read it."""
    lines = {
        line.label: {
            "seeds × steps": f"{line.num_seeds} × {line.num_steps // line.num_seeds}",
            "mean α called for [range]": f"{line.alpha:.2f} [{line.alpha_low:.2f}, {line.alpha_high:.2f}]",
            "mean α applied": f"{line.alpha_applied:.2f}",
            "reward std": f"{line.reward_std:.3f}",
            "steps clipped": f"{100 * line.clipped:.0f} %",
            "gradient norm (limit)": f"{line.grad_norm:.3f} ({_limit(line.max_grad_norm)})",
            "draws per step": f"{line.num_draws:.2f}",
            "prompts per step": f"{line.prompts:.1f}",
            "valid groups dropped": str(line.num_dropped_groups),
            "sampled reward, last 10 steps": f"{line.reward_last:.3f}",
            "seconds per run": f"{line.train_s:.0f}",
        }
        for line in summary.itertuples()
    }
    return pd.DataFrame(lines).T.rename_axis("row")


def _limit(norm: float) -> str:
    return "none" if norm >= NO_CLIPPING else f"{norm:g}"


# The table as people read it ------------------------------------------------------------------------------------------


def layout(
    table: Table, scale: str, measured: pd.DataFrame | None, committed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Published numbers in one block, ours in others, never in each other's column.

    With scores of this run, the committed records are summed up in two columns; alone, they stand in full.
    """
    columns = [*table.benchmarks_at(scale), "average"]
    published = published_scores(table)
    miniature = "" if scale == "paper" else "miniature, "
    remark = "" if scale == "paper" else " (not comparable)"
    blocks = []
    if measured is not None and len(measured):
        name = "measured here" if scale == "paper" else f"miniature, scale {scale}"
        blocks.append((f"{name}{remark}", measured, _add_block))
    if committed is not None and len(committed):
        blocks.append((f"{miniature}committed records" + ("" if blocks else remark), committed,
                       _add_summary if blocks else _add_block))  # fmt: skip
    lines, index = [], []
    for row in table.rows_at(scale):
        line: dict[tuple[str, str], object] = {}
        if len(published):
            _add_published(line, table, published.loc[row.key] if row.key in published.index else None)
        for block, frame, add in blocks:
            add(line, block, frame[frame.row == row.key], columns)
        lines.append(line)
        index.append(row.label_at(scale))
    frame = pd.DataFrame(lines, index=pd.Index(index, name="row"))
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def _add_published(line: dict, table: Table, printed: pd.Series | None) -> None:
    block = "published (paper v3)"
    for title in ["Average", *(get_benchmark(b).title for b in table.benchmarks)]:
        value = None if printed is None else printed[title]
        line[block, title] = "–" if value is None or pd.isna(value) else f"{value:.1f}"
        if title == "Average":
            low, high = (None, None) if printed is None else implied_interval(printed, table.benchmarks)
            line[block, "implied 95 %"] = "–" if low is None else f"[{low:.1f}, {high:.1f}]"


def _add_block(line: dict, block: str, mine: pd.DataFrame, columns: Sequence[str]) -> None:
    by_column = mine.set_index("column")
    for name in columns:
        line[block, column_title(name)] = _cell(by_column.loc[name]) if len(mine) else "–"
    if len(mine):
        line[block, column_title("average")] += _seed_range(by_column.loc["average"])
    line[block, "n"] = _counts(by_column.loc["average"]) if len(mine) else "–"


def _add_summary(line: dict, block: str, mine: pd.DataFrame, columns: Sequence[str]) -> None:
    cell = mine.set_index("column").loc["average"] if len(mine) else None
    line[block, "Average"] = "–" if cell is None else _cell(cell) + _seed_range(cell)
    line[block, "n"] = "–" if cell is None else _counts(cell)


def _cell(cell: pd.Series) -> str:
    return f"{100 * cell['mean']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _seed_range(cell: pd.Series) -> str:
    return f"; seeds {100 * cell['seed_low']:.1f}–{100 * cell['seed_high']:.1f}" if cell["num_seeds"] > 1 else ""


def _counts(cell: pd.Series) -> str:
    failed = f", {cell['failed']} failed" if cell["failed"] else ""
    return f"{cell['num_seeds']} × {cell['num_items']}{failed}"


def comparison_layout(table: Table, scale: str, ours: pd.DataFrame) -> pd.DataFrame:
    """The table's comparisons: the published difference and what its item counts imply, beside our paired one."""
    published, names = published_scores(table), {row.key: row for row in table.rows}
    lines, index = [], []
    for mine, other in table.comparisons:
        line: dict[tuple[str, str], object] = {}
        if len(published):
            line["published (paper v3)", "difference"] = line["published (paper v3)", "implied 95 %, unpaired"] = "–"
            if mine in published.index and other in published.index:
                gap, low, high = implied_difference(published.loc[mine], published.loc[other], table.benchmarks)
                line["published (paper v3)", "difference"] = f"{gap:+.1f}"
                line["published (paper v3)", "implied 95 %, unpaired"] = (
                    f"[{low:+.1f}, {high:+.1f}]{' holds 0' if low <= 0 <= high else ''}"
                )
        block = "measured here" if scale == "paper" else f"miniature, scale {scale} (not comparable)"
        found = ours[(ours["row"] == mine) & (ours["against"] == other)] if len(ours) else ours
        cell = found.iloc[0] if len(found) else None
        line[block, "difference [95 % over items]"] = "–" if cell is None else (
            f"{cell['difference']:+.1f} [{cell['low']:+.1f}, {cell['high']:+.1f}]"
        )  # fmt: skip
        line[block, "single seeds [95 % over seeds]"] = "–" if cell is None else _over_seeds(cell)
        line[block, "told apart"] = "–" if cell is None else _yes(cell)
        line[block, "n"] = "–" if cell is None else f"{cell['num_seeds']} × {cell['num_items']}"
        lines.append(line)
        index.append(f"{names[mine].label_at(scale)} − {names[other].label_at(scale)}")
    frame = pd.DataFrame(lines, index=pd.Index(index, name="Average of one row − another"))
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def _yes(cell: pd.Series) -> str:
    return "no" if not cell["apart"] else "yes" if cell["num_seeds"] >= MIN_SEEDS else "on items alone"


def _over_seeds(cell: pd.Series) -> str:
    spread = f"{cell['seed_min']:+.1f} … {cell['seed_max']:+.1f}"
    if cell["seeds_low"] is None or pd.isna(cell["seeds_low"]):
        return f"{spread}" if cell["num_seeds"] > 1 else "one seed"
    return f"{spread} [{cell['seeds_low']:+.1f}, {cell['seeds_high']:+.1f}]"


def flat(table: Table, measured: pd.DataFrame, scale: str, origin: str) -> pd.DataFrame:
    """Long form for CSV: one line per row and column with every count, the published value in a column of its own."""
    published = published_scores(table)
    out = measured.copy()
    out.insert(0, "origin", origin)
    out.insert(0, "scale", scale)
    out["published_average_percent"] = [
        published.loc[r, "Average"] if c == "average" and r in published.index else None
        for r, c in zip(out["row"], out["column"], strict=True)
    ]
    return out


def provenance(runs: Sequence[RowRuns]) -> pd.DataFrame:
    """Where each number comes from: recipe, run folder, model weights, engine, commit, date."""
    lines = []
    for entry in runs:
        for seed, folder in entry.folders.items():
            run = records.read_run(folder)
            code = (run.environment.get("commit") or "no git checkout")[:10]
            lines.append(
                {
                    "row": entry.row.key,
                    "seed": seed,
                    "run": run.run_id,
                    "weights": (run.model["weights"] or run.model["revision"] or "")[:12],
                    "engine": f"{run.engine['name']} {run.engine.get('version')}",
                    "dtype": run.engine.get("dtype"),
                    "code": code + ("+" if run.environment.get("uncommitted_changes") else ""),
                    "finished": run.finished,
                    "generate_and_grade_s": run.timings.get("generate_and_grade_s"),
                }
            )
    return pd.DataFrame(lines)
