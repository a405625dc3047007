"""What a table is, how its runs are made, how its numbers are read back. A table is a pure function of records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy.stats import t as student_t

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.engines import resolve_engine
from eval_harness.errors import UserError, unknown
from eval_harness.models import check_model
from eval_harness.records import Sample
from eval_harness.runner import Overrides, evaluate
from eval_harness.sources import default_data_root
from eval_harness.stats import Estimate, mean_of_estimates, mean_of_items
from gpg_repro.paths import ROOT
from gpg_repro.paths import results as default_results
from gpg_repro.published import published_table
from gpg_repro.recipe import SCALES, load_recipe

MATH_BENCHMARKS = ("aime24", "math500", "amc23", "minerva", "olympiadbench")
TINY_SUITES = ("tiny_sums", "tiny_differences", "tiny_products", "tiny_chains", "tiny_remainders")
REFERENCE = ROOT / "results" / "reference"
"""Committed records of earlier runs, so that a fresh clone has something to stand beside its own."""
_SMOKE_ITEMS = 10


@dataclass(frozen=True)
class Row:
    """One row: the published method it stands for, the hub model that is it, the recipe that makes it."""

    key: str
    label: str
    tiny_label: str | None = None
    """What the row is called at smoke and tiny scale; None: the row has no miniature."""
    published: str | None = None
    recipe: str | None = None
    hub: str | None = None
    hub_revision: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    number: int
    title: str
    published: str
    benchmarks: tuple[str, ...]
    tiny_benchmarks: tuple[str, ...]
    rows: tuple[Row, ...]

    def benchmarks_at(self, scale: str) -> tuple[str, ...]:
        """The columns: real benchmarks at paper scale, the tiny suites below."""
        return self.benchmarks if scale == "paper" else self.tiny_benchmarks

    def rows_at(self, scale: str) -> list[Row]:
        """The rows that exist at a scale."""
        return [row for row in self.rows if (scale == "paper" or row.tiny_label is not None)]


@dataclass(frozen=True)
class RowRuns:
    """The evaluation folders of one row, by training seed."""

    row: Row
    folders: dict[int, Path]


def run_table(
    table: Table,
    scale: str = "tiny",
    *,
    seeds: int = 1,
    engine: str = "auto",
    results: Path | None = None,
    data_root: Path | None = None,
    progress: bool = True,
) -> list[RowRuns]:
    """Train and evaluate every row that is not in the records yet.

    Args:
        table: which table.
        scale: ``smoke``, ``tiny`` or ``paper``.
        seeds: number of training seeds (0, 1, ...) at smoke and tiny scale; paper scale evaluates released checkpoints.
        engine: evaluation engine. At smoke scale ``auto`` is transformers, with the base through vLLM if installed.
        results: folder for run records.
        data_root: local copies of the benchmarks.

    Raises:
        UserError: unknown scale, seeds < 1, or (paper scale) models or data that cannot be had; everything missing is
            listed before any work.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if seeds < 1:
        raise UserError(f"SEEDS {seeds}: expected an integer of at least 1.")
    resolve_engine(engine)
    runs_root = (results or default_results()) / "runs"
    if scale == "paper":
        return _run_released(table, engine, runs_root, data_root, progress)
    from gpg_repro.train import base_model, check_recipe, train

    recipes = {
        (row.key, seed): load_recipe(row.recipe, scale=scale, seed=seed)
        for row in table.rows_at(scale)
        if row.recipe
        for seed in range(seeds)
    }
    for recipe in recipes.values():
        check_recipe(recipe)
    done = []
    for row in table.rows_at(scale):
        folders = {}
        for seed in range(seeds if row.recipe else 1):
            if row.recipe:
                run = train(recipes[row.key, seed], root=runs_root, progress=progress)
                model, label = str(run / "checkpoint"), run.name.removeprefix("train-")
            else:
                model, label = base_model(next(iter(recipes.values())), progress), f"{scale}-base"
            folders[seed] = evaluate(
                model,
                table.tiny_benchmarks,
                engine=_engine_for(row, scale, engine),
                out=runs_root / f"eval-table{table.number}-{label}",
                label=label,
                progress=progress,
                limit=_SMOKE_ITEMS if scale == "smoke" else None,
            )
        done.append(RowRuns(row, folders))
    return done


def _engine_for(row: Row, scale: str, engine: str) -> str:
    if scale != "smoke" or engine != "auto":
        return engine
    return resolve_engine("auto") if row.recipe is None else "transformers"


def _run_released(table: Table, engine: str, runs_root: Path, data_root: Path | None, progress: bool) -> list[RowRuns]:
    data_root = data_root or default_data_root()
    with_checkpoint = [row for row in table.rows if row.hub]
    missing = []
    for row in with_checkpoint:
        try:
            check_model(row.hub, row.hub_revision)
        except UserError as error:
            missing.append(f"model for {row.label}: {error}")
    for name in table.benchmarks:
        try:
            get_benchmark(name).load(data_root)
        except UserError as error:
            missing.append(f"benchmark {name}: {error}")
    if missing:
        raise UserError(
            f"Table {table.number} at paper scale cannot start; {len(missing)} things are missing:\n"
            + "\n".join(f"- {m}" for m in missing)
        )
    return [
        RowRuns(
            row,
            {
                0: evaluate(
                    row.hub,
                    table.benchmarks,
                    revision=row.hub_revision,
                    engine=engine,
                    out=runs_root / f"eval-table{table.number}-{row.key}",
                    label=row.key,
                    data_root=data_root,
                    progress=progress,
                    overrides=Overrides(),
                )
            },
        )
        for row in with_checkpoint
    ]


def reference_runs(table: Table, scale: str, reference: Path = REFERENCE) -> list[RowRuns]:
    """The committed records of a table: ``<reference>/<scale>/table<N>/<row>-seed<k>/``; empty where there are none."""
    root = reference / scale / f"table{table.number}"
    runs = []
    for row in table.rows_at(scale):
        folders = {
            int(p.parent.name.rsplit("seed", 1)[1]): p.parent for p in sorted(root.glob(f"{row.key}-seed*/run.json"))
        }
        if folders:
            runs.append(RowRuns(row, folders))
    return runs


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
        label = entry.row.label if scale == "paper" else entry.row.tiny_label
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
                    "label": label,
                    "column": name,
                    **estimate.as_dict(),
                    "num_seeds": len(entry.folders),
                    "seed_low": min(per_seed[name]),
                    "seed_high": max(per_seed[name]),
                    "failed": failed,
                    "engine": ", ".join(sorted(engines)),
                }
            )
    return pd.DataFrame(lines)


def column_title(name: str) -> str:
    """Heading of a column."""
    return "Average" if name == "average" else get_benchmark(name).title


def published_scores(table: Table, source: str = "paper-v3") -> pd.DataFrame:
    """The published rows in the table's order: index row key, columns Average and the benchmarks, in percent."""
    printed = published_table(table.published, source)
    rows = {row.key: printed.loc[row.published] for row in table.rows if row.published}
    return pd.DataFrame(rows).T


def implied_interval(published: pd.Series, benchmarks: Sequence[str]) -> tuple[float, float]:
    """95 % interval of a published Average that its item counts alone imply, had each item one sample. In percent."""
    variance = 0.0
    for name in benchmarks:
        benchmark = get_benchmark(name)
        p = published[benchmark.title] / 100
        variance += p * (1 - p) / benchmark.num_items
    half = 1.96 * math.sqrt(variance) / len(benchmarks) * 100
    return published["Average"] - half, published["Average"] + half


def layout(table: Table, measured: pd.DataFrame, scale: str, reference: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table as people read it: published numbers in one block, ours in another, never in each other's column."""
    columns = [*table.benchmarks_at(scale), "average"]
    published = published_scores(table)
    ours = "measured here" if scale == "paper" else f"miniature, scale {scale} (not comparable)"
    pooled = "miniature, committed records"
    lines, index = [], []
    for row in table.rows_at(scale):
        line: dict[tuple[str, str], object] = {}
        printed = published.loc[row.key] if row.key in published.index else None
        for title in ["Average", *(get_benchmark(b).title for b in table.benchmarks)]:
            value = None if printed is None else printed[title]
            line["published (paper v3)", title] = "–" if value is None or pd.isna(value) else f"{value:.1f}"
        _add_block(line, ours, measured[measured.row == row.key], columns)
        if reference is not None and len(reference):
            _add_summary(line, pooled, reference[reference.row == row.key])
        lines.append(line)
        index.append(row.label if scale == "paper" else row.tiny_label)
    frame = pd.DataFrame(lines, index=pd.Index(index, name="row"))
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def _add_block(line: dict, block: str, mine: pd.DataFrame, columns: Sequence[str]) -> None:
    by_column = mine.set_index("column") if len(mine) else mine
    for name in columns:
        if not len(mine):
            line[block, column_title(name)] = "–"
            continue
        cell = by_column.loc[name]
        line[block, column_title(name)] = (
            f"{100 * cell['mean']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
        )
    counts = by_column.loc["average"] if len(mine) else None
    line[block, "n"] = "–" if counts is None else _counts(counts)


def _add_summary(line: dict, block: str, mine: pd.DataFrame) -> None:
    if not len(mine):
        line[block, "Average"], line[block, "n"] = "–", "–"
        return
    cell = mine.set_index("column").loc["average"]
    spread = f"; seeds {100 * cell['seed_low']:.1f}–{100 * cell['seed_high']:.1f}" if cell["num_seeds"] > 1 else ""
    line[block, "Average"] = f"{100 * cell['mean']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]{spread}"
    line[block, "n"] = _counts(cell)


def _counts(cell: pd.Series) -> str:
    failed = f", {cell['failed']} failed" if cell["failed"] else ""
    return f"{cell['num_seeds']} × {cell['num_items']}{failed}"


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


def write_table(
    table: Table, frame: pd.DataFrame, long: pd.DataFrame, scale: str, notes: Sequence[str], results: Path | None = None
) -> dict[str, Path]:
    """Write ``table03.md``, ``.csv`` and ``.html`` under ``results/tables/<scale>/``."""
    folder = (results or default_results()) / "tables" / scale
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"table{table.number:02d}"
    heading = f"Table {table.number}: {table.title}"
    flat_columns = frame.copy()
    flat_columns.columns = [f"{top}: {column}" for top, column in frame.columns]
    markdown = flat_columns.to_markdown()
    paths = {kind: stem.with_suffix(f".{kind}") for kind in ("md", "csv", "html")}
    paths["md"].write_text(
        f"# {heading}\n\n{markdown}\n\n" + "\n".join(f"- {n}" for n in notes) + "\n", encoding="utf-8"
    )
    long.to_csv(paths["csv"], index=False)
    page = frame.to_html(justify="center", border=0)
    items = "".join(f"<li>{n}</li>" for n in notes)
    paths["html"].write_text(
        f"<!doctype html><meta charset='utf-8'><title>{heading}</title><style>body{{font:15px sans-serif;margin:2em}}"
        "table{border-collapse:collapse}td,th{padding:.35em .7em;border-bottom:1px solid #ddd;text-align:right}"
        f"</style><h1>{heading}</h1>{page}<ul>{items}</ul>\n",
        encoding="utf-8",
    )
    return paths


def gains(table: Table, runs: Sequence[RowRuns], scale: str, base: str = "base") -> pd.DataFrame:
    """Difference of each row's Average to our own base, on the same items: paired, so tighter than two intervals.

    Per item, marks of all samples and seeds are averaged and the base's mean mark subtracted; every column weighs the
    same. The interval is Student's t on the item differences: it covers items, not training seeds.

    Returns:
        Columns row, label, gain, low, high (percentage points), num_items, num_seeds.
    """
    by_row = {entry.row.key: entry for entry in runs}
    if base not in by_row:
        return pd.DataFrame()
    lines = []
    for key, entry in by_row.items():
        if key == base:
            continue
        means, variances, num_items = [], [], 0
        for name in table.benchmarks_at(scale):
            mine, theirs = _item_means(entry, name), _item_means(by_row[base], name)
            differences = pd.Series(mine) - pd.Series(theirs)
            means.append(differences.mean())
            variances.append(differences.var(ddof=1) / len(differences))
            num_items += len(differences)
        gain, se = sum(means) / len(means), math.sqrt(sum(variances)) / len(means)
        half = float(student_t.ppf(0.975, max(1, num_items - len(means)))) * se
        label = entry.row.label if scale == "paper" else entry.row.tiny_label
        lines.append(
            {
                "row": key,
                "label": label,
                "gain": 100 * gain,
                "low": 100 * (gain - half),
                "high": 100 * (gain + half),
                "num_items": num_items,
                "num_seeds": len(entry.folders),
            }
        )
    return pd.DataFrame(lines)


def _item_means(entry: RowRuns, name: str) -> dict[str, float]:
    marks: dict[str, list[float]] = {}
    for folder in entry.folders.values():
        for sample in records.read_lines(folder / "samples" / f"{name}.jsonl", Sample):
            marks.setdefault(sample.item_id, []).append(float(bool(sample.correct)))
    return {item: sum(m) / len(m) for item, m in marks.items()}


def provenance(runs: Sequence[RowRuns]) -> pd.DataFrame:
    """Where each number comes from: run folder, model weights, engine, commit, date."""
    lines = []
    for entry in runs:
        for seed, folder in entry.folders.items():
            run = records.read_run(folder)
            code = (run.environment.get("commit") or "no git checkout")[:10]
            lines.append(
                {
                    "row": entry.row.key,
                    "seed": seed,
                    "run": folder.name,
                    "weights": (run.model["weights"] or "")[:12],
                    "engine": f"{run.engine['name']} {run.engine.get('version')}",
                    "dtype": run.engine.get("dtype"),
                    "code": code + ("+" if run.environment.get("uncommitted_changes") else ""),
                    "finished": run.finished,
                    "generate_and_grade_s": run.timings.get("generate_and_grade_s"),
                }
            )
    return pd.DataFrame(lines)


def notes_for(table: Table, scale: str, runs: Sequence[RowRuns]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = [f"Published numbers: {table.published} of arXiv 2504.02546v3, in percent, one sample per problem."]
    if scale != "paper":
        notes.append(
            f"Scale {scale}: models of under 2 M parameters trained on the spot on generated tasks. A miniature of the "
            "method, not a reproduction of the paper's scores; its columns share nothing with the benchmarks."
        )
    notes.append("Ours: percent [95 % interval over items]; n = training seeds × items.")
    notes += [f"{row.label}: {row.note}." for row in table.rows_at(scale) if row.note]
    for entry in runs:
        for seed, folder in entry.folders.items():
            run = records.read_run(folder)
            failed = sum(result.failed for result in run.benchmarks.values())
            if failed:
                notes.append(f"{entry.row.label}, seed {seed}: {failed} samples failed and count as wrong.")
    return notes
