"""From records to numbers: scores, paired differences, training summaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd
from scipy.stats import t as student_t

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.stats import Estimate, mean_of_differences, mean_of_estimates, mean_of_items, mean_of_strata
from gpg_repro.tables.base import BASE, RULES, Column, RowRuns, Table
from gpg_repro.tables.marks import by_item, by_seed, column_marks, samples, total_marks
from gpg_repro.tables.settings import matching, unequal
from gpg_repro.tables.shown import MISSING, Cell, ShownFrame, shown

MIN_SEEDS = 3
"""From so many training seeds on, an interval over seeds is given too."""
NO_CLIPPING = 1e6
"""A limit of the gradient norm from which on nothing is clipped; set so high, it still has the norm logged."""
_RL_METRICS = (
    "num_valid_groups",
    "num_groups",
    "num_draws",
    "num_dropped_groups",
    "alpha",
    "alpha_applied",
    "reward_std",
)


def scores(table: Table, runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """One line per rule, row and column (the table's columns, then ``average`` or ``total``), seeds pooled.

    Marks of all seeds are the samples of an item, so the interval is over items (clustered), not over training seeds;
    ``seeds`` are the scores of the single seeds, ``seed_low`` and ``seed_high`` the extremes. A column that a row was
    not measured on has no line; an average needs every column that the paper has.

    Returns:
        Columns rule, row, label, column, mean, se, low, high (fractions), num_items, num_samples, num_seeds, seeds,
        seed_low, seed_high, failed, engine, code (commits) and runs (ids, separated by blanks).
    """
    lines = []
    for rule in RULES:
        for entry in runs:
            shared = {
                "num_seeds": len(entry.seeds),
                "failed": _failed(table, entry, scale),
                "engine": ", ".join(sorted(_engines(entry))),
            }
            columns = {column.name_at(scale): column for column in table.columns_at(scale)}
            for name, (estimate, per_seed) in _estimates(table, entry, scale, rule).items():
                lines.append(
                    {
                        "rule": rule,
                        "row": entry.row.key,
                        "label": entry.row.label_at(scale),
                        "column": name,
                        **estimate.as_dict(),
                        "seeds": tuple(per_seed),
                        "seed_low": min(per_seed),
                        "seed_high": max(per_seed),
                        **shared,
                        **_origin(entry, columns.get(name)),
                    }
                )
    names = [
        "rule",
        "row",
        "label",
        "column",
        *Estimate.__dataclass_fields__,
        "num_seeds",
        "seeds",
        "seed_low",
        "seed_high",
    ]
    return pd.DataFrame(lines, columns=[*names, "failed", "engine", "code", "runs"])


def _estimates(table: Table, entry: RowRuns, scale: str, rule: str) -> dict[str, tuple[Estimate, list[float]]]:
    """Name of a column -> its estimate and the score of every single seed."""
    found = {}
    for column in table.columns_at(scale):
        marks = column_marks(entry, column, scale, rule)
        if marks is not None:
            found[column.name_at(scale)] = (
                mean_of_items(by_item(marks)),
                marks.groupby("seed")["mark"].mean().tolist(),
            )
    wanted = [column.name_at(scale) for column in table.printed_columns]
    if table.summary == "average" and set(wanted) <= set(found):
        estimates, per_seed = zip(*(found[name] for name in wanted), strict=True)
        single = [sum(values) / len(values) for values in zip(*per_seed, strict=True)]
        found["average"] = (mean_of_estimates(estimates), single)
    elif table.summary == "total" and (marks := total_marks(table, entry, scale, rule)) is not None:
        found["total"] = (_total(table, marks, scale), [_total(table, m, scale).mean for _, m in marks.groupby("seed")])
    return found


def _total(table: Table, marks: pd.DataFrame, scale: str) -> Estimate:
    if marks["stratum"].isna().all():
        return mean_of_items(by_item(marks))
    strata = marks.drop_duplicates("item_id")["stratum"].tolist()
    return mean_of_strata(by_item(marks), strata, get_benchmark(table.benchmarks_at(scale)[0]).strict_strata)


def _engines(entry: RowRuns) -> set[str]:
    return {records.read_run(folder).engine["name"] for run in entry.runs for folder in run.folders.values()}


def _origin(entry: RowRuns, column: Column | None) -> dict[str, str]:
    """Commits and ids of the evaluations behind a column of a row (None: behind all of them)."""
    runs = entry.runs if column is None else filter(None, [entry.of(column)])
    found = [records.read_run(run.folders[seed]) for run in runs for seed in entry.seeds]
    return {"code": ", ".join(sorted({code_of(run) for run in found})), "runs": " ".join(run.run_id for run in found)}


def code_of(run: records.RunRecord | records.TrainingRecord) -> str:
    """The commit that made a record, ``+`` where files were changed; says so where there was no checkout."""
    commit = (run.environment.get("commit") or "no git checkout")[:10]
    return commit + ("+" if run.environment.get("uncommitted_changes") else "")


def _failed(table: Table, entry: RowRuns, scale: str) -> int:
    """Samples of the row that failed, over all its benchmarks and seeds."""
    return sum(
        int(samples(run.folders[seed], name)["failed"].sum())
        for run in entry.runs
        for seed in entry.seeds
        for name in table.measured_on(run.row, scale)
    )


def _cells(table: Table, entry: RowRuns, scale: str, rule: str, column: Column | None) -> dict[object, tuple] | None:
    """What a number is a weighted mean of: name -> weight and marks by item and seed; None: not measured.

    Args:
        column: which number; None is the table's headline.
    """
    if column is None and table.summary == "average":
        parts = {c.title: column_marks(entry, c, scale, rule) for c in table.printed_columns}
        if any(marks is None for marks in parts.values()):
            return None
        return {title: (1 / len(parts), by_seed(marks)) for title, marks in parts.items()}
    if column is None and table.summary == "total":
        marks = total_marks(table, entry, scale, rule)
    else:
        marks = column_marks(entry, column or table.columns[0], scale, rule)
    if marks is None:
        return None
    if "stratum" not in marks or marks["stratum"].isna().all():
        return {None: (1.0, by_seed(marks))}
    weights = get_benchmark(table.benchmarks_at(scale)[0]).strict_strata
    parts = dict(list(marks.groupby("stratum", sort=False)))
    whole = sum(weights[stratum] for stratum in parts)
    return {stratum: (weights[stratum] / whole, by_seed(part)) for stratum, part in parts.items()}


def difference(
    table: Table, mine: RowRuns, other: RowRuns, scale: str, rule: str = "published", column: Column | None = None
) -> dict[str, float | int | bool | None] | None:
    """Difference of two rows' headline numbers on the same items: paired, so tighter than two intervals.

    Per item, marks of all samples and seeds are averaged and the other row's mean mark subtracted; then the columns (or
    strata) are weighed as in the number itself. ``low``, ``high`` and ``p_value`` are Student's t on the item
    differences (``eval_harness.stats.mean_of_differences``): they cover items, not training seeds. The differences of
    single seeds (seed k against seed k; an untrained base against every seed) give ``seeds_low`` and ``seeds_high``,
    Student's t over seeds, from three seeds on; ``seeds`` are they, ``seed_min`` and ``seed_max`` the extremes.

    Args:
        column: compare this column instead of the headline.
        other: the base row stands for the base under the settings of ``mine``, where that was measured.

    Returns:
        difference, low, high, seeds, seed_min, seed_max, seeds_low, seeds_high (percentage points; None below three
        seeds), p_value, num_items, num_seeds, and ``apart``: every interval given excludes zero. None where a row lacks
        the number, or where the two were measured under different settings (``tables.settings.refusals`` says how).
    """
    return _difference(table, mine, other, scale, column, lambda row: _cells(table, row, scale, rule, column))


def _difference(
    table: Table,
    mine: RowRuns,
    other: RowRuns,
    scale: str,
    column: Column | None,
    cells_of: Callable[[RowRuns], dict[object, tuple] | None],
) -> dict[str, float | int | bool | None] | None:
    """:func:`difference`, with the marks of a row from ``cells_of``."""
    other = matching(mine, other)
    if unequal(table, mine, other, scale, column):
        return None
    my_cells, other_cells = cells_of(mine), cells_of(other)
    untrained = set(other.seeds) == {0} and not other.row.trained
    seeds = mine.seeds if untrained else sorted(set(mine.seeds) & set(other.seeds))
    if my_cells is None or other_cells is None or not seeds:
        return None
    gaps, weights, single = [], [], [0.0] * len(seeds)
    for name, (weight, a) in my_cells.items():
        b = other_cells[name][1]
        gaps.append((a.mean(axis=1) - b.mean(axis=1)).dropna().to_numpy())
        weights.append(weight)
        single = [s + weight * (a[k] - b[k if k in b else 0]).mean() for s, k in zip(single, seeds, strict=True)]
    found = mean_of_differences(gaps, weights=weights, permute=False)
    of_seeds = pd.Series(single, dtype=float)
    result = {"difference": found.difference, "low": found.low, "high": found.high}
    result |= {"seed_min": of_seeds.min(), "seed_max": of_seeds.max(), "seeds_low": None, "seeds_high": None}
    if len(seeds) >= MIN_SEEDS:
        half = float(student_t.ppf(0.975, len(seeds) - 1)) * of_seeds.std(ddof=1) / math.sqrt(len(seeds))
        result |= {"seeds_low": of_seeds.mean() - half, "seeds_high": of_seeds.mean() + half}
    percent = {key: None if value is None else 100 * value for key, value in result.items()}
    percent["seeds"] = tuple(100 * value for value in single)
    apart = percent["low"] > 0 or percent["high"] < 0  # false too where one item per stratum leaves no interval
    if percent["seeds_low"] is not None:
        apart = apart and not percent["seeds_low"] <= 0 <= percent["seeds_high"]
    counts = {"p_value": found.t_p_value, "num_items": found.num_items, "num_seeds": len(seeds)}
    return {**percent, **counts, "apart": bool(apart)}


def verdict(apart: bool, num_seeds: int) -> str:
    """Whether two rows are told apart, in words; below three seeds only these checkpoints are, not the methods."""
    if not apart:
        return "not told apart"
    return "told apart" if num_seeds >= MIN_SEEDS else f"told apart on items alone (fewer than {MIN_SEEDS} seeds)"


def bases(entry: RowRuns) -> set[str]:
    """Which base weights a row was trained from (an untrained row: what it is); empty when no training is known."""
    if not entry.row.trained:
        models = [records.read_run(folder).model for folder in entry.folders.values()]
    else:
        models = [records.read_run(folder).base for run in entry.runs for folder in run.trainings.values()]
    return {model["weights"] or f"{model['name']}@{model['revision']}" for model in models}


def comparable(mine: RowRuns, other: RowRuns) -> bool:
    """Whether two rows started from the same base; one made on another machine can differ.

    Of a released checkpoint the registry says what it was trained from, which is all that is asked against the base.
    """
    released = None if mine.row.trained else mine.row.checkpoint
    if released and released.base and other.row.key == BASE:
        return released.base == other.row.hub
    a, b = bases(mine), bases(other)
    return not a or not b or a == b


def gains(table: Table, runs: Sequence[RowRuns], scale: str, base: str = BASE, rule: str = "published") -> pd.DataFrame:
    """Every row against one baseline row; no lines if the baseline was not measured.

    Returns:
        Columns row, label, against, ``as_row`` (the base was measured again under the row's settings), and those of
        :func:`difference`.
    """
    by_row = {entry.row.key: entry for entry in runs}
    pairs = [(key, base) for key in by_row if key != base] if base in by_row else []
    return differences(table, runs, scale, pairs, rule)


def differences(
    table: Table,
    runs: Sequence[RowRuns],
    scale: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    rule: str = "published",
    column: Column | None = None,
) -> pd.DataFrame:
    """Paired differences of pairs of rows (None: the table's comparisons) in the headline number, or in one column.

    Pairs that were not measured, rows that did not start from the same base, and rows measured under different settings
    are left out.

    Returns:
        Columns row, label, against, against_label, as_row, those of :func:`difference`, and runs (ids of the
        evaluations behind both rows, separated by blanks).
    """
    by_row = {entry.row.key: entry for entry in runs}
    cells: dict[int, dict[object, tuple] | None] = {}

    def cells_of(entry: RowRuns) -> dict[object, tuple] | None:
        """A row's marks, read once however many pairs it is in."""
        if id(entry) not in cells:
            cells[id(entry)] = _cells(table, entry, scale, rule, column)
        return cells[id(entry)]

    lines = []
    for key, against in table.comparisons if pairs is None else pairs:
        if key not in by_row or against not in by_row or not comparable(by_row[key], by_row[against]):
            continue
        mine, other = by_row[key], by_row[against]
        found = _difference(table, mine, other, scale, column, cells_of)
        if found is not None:
            measured = matching(mine, other)
            labels = {"label": mine.row.label_at(scale), "against_label": other.row.label_at(scale)}
            found["runs"] = " ".join(_origin(entry, column)["runs"] for entry in (mine, measured))
            lines.append({"row": key, "against": against, **labels, "as_row": measured is not other, **found})
    return pd.DataFrame(lines)


def all_pairs(table: Table, runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """Paired differences of every row against every row above it."""
    keys = [entry.row.key for entry in runs]
    return differences(table, runs, scale, [(mine, other) for i, mine in enumerate(keys) for other in keys[:i]])


def training_summary(runs: Sequence[RowRuns], scale: str) -> pd.DataFrame:
    """What the trainings behind the rows did, pooled over steps and seeds.

    Supervised trainings have no groups: what needs them is NaN.

    Returns:
        One line per training recipe of a row: row, label, num_seeds, num_steps (all seeds together), alpha, alpha_low,
        alpha_high (mean and range of B/(B-M) in the first draw over steps with a valid group), alpha_applied (mean),
        reward_std (mean), clipped (share of steps whose gradient norm exceeded the limit), grad_norm (mean, before
        clipping), max_grad_norm, num_draws (mean), num_dropped_groups (total), prompts (mean per step), reward_last
        (mean sampled reward of the last ten steps), train_s (mean per run), runs (ids, separated by blanks).
    """
    lines = []
    for entry in (run for row in runs for run in row.runs):
        if not entry.trainings:
            continue
        runs_of_row = [records.read_run(folder) for folder in entry.trainings.values()]
        frames = [records.steps_frame(folder) for folder in entry.trainings.values()]
        steps = pd.concat(frames, ignore_index=True)
        steps = steps.reindex(columns=list(dict.fromkeys([*steps.columns, *_RL_METRICS])))
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
                "num_dropped_groups": steps["num_dropped_groups"].sum(min_count=1),
                "prompts": prompts.mean(),
                "reward_last": pd.concat(
                    [frame.get("reward", pd.Series(dtype=float)).tail(10) for frame in frames]
                ).mean(),
                "train_s": sum(run.timings.get("train_s", float("nan")) for run in runs_of_row) / len(frames),
                "runs": " ".join(run.run_id for run in runs_of_row),
            }
        )
    return pd.DataFrame(lines)


def training_layout(summary: pd.DataFrame) -> ShownFrame:
    """:func:`training_summary` as people read it."""
    lines = [_training_line(line) for line in summary.itertuples()]
    return shown(lines, pd.Index([line.label for line in summary.itertuples()], name="row"))


def _training_line(line) -> dict[str, Cell]:
    behind = (("steps", f"{line.num_steps} in all"), ("training seeds", str(line.num_seeds)))
    runs = tuple(line.runs.split())

    def cell(text: str, value: float, *details: tuple[str, str]) -> Cell:
        known = not pd.isna(value)
        return Cell(text if known else MISSING, value if known else None, (*behind, *details), runs)

    return {
        "seeds × steps": cell(f"{line.num_seeds} × {line.num_steps // line.num_seeds}", line.num_steps),
        "mean α called for [range]": cell(
            f"{line.alpha:.2f} [{line.alpha_low:.2f}, {line.alpha_high:.2f}]",
            line.alpha,
            ("range", "over the steps that had a group with a signal"),
        ),
        "mean α applied": cell(f"{line.alpha_applied:.2f}", line.alpha_applied),
        "reward std": cell(f"{line.reward_std:.3f}", line.reward_std),
        "steps clipped": cell(f"{100 * line.clipped:.0f} %", line.clipped),
        "gradient norm (limit)": cell(f"{line.grad_norm:.3f} ({_limit(line.max_grad_norm)})", line.grad_norm),
        "draws per step": cell(f"{line.num_draws:.2f}", line.num_draws),
        "prompts per step": cell(f"{line.prompts:.1f}", line.prompts),
        "valid groups dropped": cell(f"{line.num_dropped_groups:.0f}", line.num_dropped_groups),
        "sampled reward, last 10 steps": cell(f"{line.reward_last:.3f}", line.reward_last),
        "seconds per run": cell(f"{line.train_s:.0f}", line.train_s),
    }


def _limit(norm: float) -> str:
    return "none" if norm >= NO_CLIPPING else f"{norm:g}"
