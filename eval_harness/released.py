"""Evaluate the released and cited checkpoints beside their printed rows: ``python -m eval_harness released``.

Everything that is missing is listed before anything starts. Each checkpoint is one run (one engine start) that tables
share; a killed call, started again, goes on where it was. A checkpoint that fails is told at the end and stops no
other. The printed AMC number stands beside the set it is a count of, 40 problems or 83, and so does the Average.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import AMC_SETS, Checkpoint, PrintedRow, Settings, get_checkpoint, load_checkpoints
from eval_harness.engines import EngineError, resolve_engine
from eval_harness.errors import UserError, unknown
from eval_harness.identity import data_changes, model_changes
from eval_harness.markup import csv_cell, markdown_rows, markdown_text
from eval_harness.models import check_model, is_cached, offline_if_unreachable
from eval_harness.records import BenchmarkResult, RunRecord
from eval_harness.runner import Overrides, data_parts, decoding_of, evaluate, parse_samples
from eval_harness.sources import default_data_root
from eval_harness.stats import Estimate, mean_of_estimates, wilson

_MATH = ("aime24", "math500", "{amc}", "minerva", "olympiadbench")
"""The five columns of an Average; AMC is one of the two sets, never both."""


@dataclass(frozen=True)
class Job:
    """One checkpoint under one of its settings."""

    checkpoint: Checkpoint
    variant: str | None = None
    like: Job | None = None
    """Under the settings of this other job instead of its own: a base measured as the row it is subtracted from."""

    @property
    def settings(self) -> Settings:
        """How it is evaluated."""
        return self.like.settings if self.like else self.checkpoint.settings_of(self.variant)

    @property
    def label(self) -> str:
        """Name of its runs."""
        under = f"-as-{self.like.label}" if self.like else f"-{self.variant}" if self.variant else ""
        return self.checkpoint.label + under

    @property
    def title(self) -> str:
        """Name for people."""
        under = f" (as {self.like.title})" if self.like else f" ({self.variant})" if self.variant else ""
        return self.checkpoint.id + under

    def measured_as(self, other: Job) -> Job:
        """This checkpoint under the settings of another job, as one of its variants where they are that one's."""
        for variant in (self.variant, None, *self.checkpoint.variants):
            if self.checkpoint.settings_of(variant).same_as(other.settings):
                return Job(self.checkpoint, variant)
        return Job(self.checkpoint, like=other)

    @property
    def obstacle(self) -> str | None:
        """Why the checkpoint cannot be measured under these settings, as far as the registry tells; None: it can."""
        if self.settings.max_model_len > self.checkpoint.context:
            return (
                f"{self.checkpoint.id} has a context of {self.checkpoint.context} tokens, "
                f"{self.settings.max_model_len} are needed"
            )
        return None


def choose(only: Sequence[str] = (), table: str | None = None, variant: str | None = None) -> list[Job]:
    """The jobs that were asked for, in the registry's order.

    Args:
        only: hub ids; empty: all.
        table: those with a row in this table: ``4``, ``table4``.
        variant: under these settings instead of each one's own, those that have them; None: each one's own, and those
            that a printed row names.

    Raises:
        UserError: unknown id, table or variant, or nothing is left.
    """
    chosen = [get_checkpoint(name) for name in dict.fromkeys(only)] or list(load_checkpoints().values())
    tables = sorted({number for checkpoint in load_checkpoints().values() for number in checkpoint.tables})
    number = None if table is None else next((n for n in tables if table in (f"{n}", f"0{n}", f"table{n}")), 0)
    if number == 0:
        raise unknown("table of released checkpoints", table, map(str, tables))
    chosen = [checkpoint for checkpoint in chosen if number in (None, *checkpoint.tables)]
    if variant is None:
        jobs = [Job(c, name) for c in chosen for name in dict.fromkeys([None, *(row.variant for row in c.rows)])]
    else:
        jobs = [Job(c, variant) for c in chosen if variant in c.variants]
        if not jobs:
            raise unknown("variant", variant, {name for c in chosen for name in c.variants})
    if not jobs:
        raise UserError(f"--only {','.join(only)} --table {table}: none of these has a row in that table.")
    return jobs


def missing(
    jobs: Sequence[Job],
    benchmarks: Sequence[str] = (),
    data_root: Path | None = None,
    max_model_len: int | None = None,
) -> list[str]:
    """What the jobs lack, one line each: models, room on the disk, data sets. Empty: everything is there.

    Args:
        benchmarks, max_model_len: in place of each checkpoint's own.
    """
    lacking = missing_models(jobs, max_model_len)
    for name in dict.fromkeys(name for job in jobs for name in benchmarks or job.checkpoint.benchmarks):
        try:
            get_benchmark(name).load(data_root)
        except UserError as error:
            lacking.append(f"benchmark {name}: {error}")
    return lacking


def missing_models(jobs: Sequence[Job], max_model_len: int | None = None) -> list[str]:
    """The models that cannot be had or do not fit their settings, and the room that fetching them lacks."""
    lacking, sizes = [], {}
    for entry in {job.checkpoint.id: job.checkpoint for job in jobs}.values():
        try:
            identity = check_model(entry.id, entry.revision)
        except UserError as error:
            lacking.append(f"model for {_rows_text(entry)}: {error}")
            continue
        if not is_cached(entry.id, entry.revision):
            sizes[entry.id] = entry.bytes
        settings = [job.settings for job in jobs if job.checkpoint.id == entry.id]
        problems = dict.fromkeys(_unfit(identity, s, max_model_len or s.max_model_len) for s in settings)
        lacking += [f"model {entry.id}: {problem}" for problem in problems if problem]
    free = _free_for_models()
    if sum(sizes.values()) > free:
        lacking.append(
            f"disk: {len(sizes)} models of {sum(sizes.values()) / 1e9:.0f} GB are still to be fetched, "
            f"{free / 1e9:.0f} GB are free where the hub's cache lies. Make room, set HF_HOME to a larger disk, or "
            "choose fewer (--only)."
        )
    return lacking


def _rows_text(checkpoint: Checkpoint) -> str:
    return ", ".join(dict.fromkeys(row.method for row in checkpoint.rows)) or checkpoint.id


def _unfit(identity: Mapping[str, Any], settings: Settings, max_model_len: int) -> str | None:
    """Why a model cannot be evaluated with these settings."""
    if identity["context"] and max_model_len > identity["context"]:
        return (
            f"its context is {identity['context']} tokens, {max_model_len} are asked for. Give --max-model-len "
            f"{identity['context']}."
        )
    if settings.template is None and identity.get("chat_template") is False:
        return "its tokenizer has no chat template. Choose --variant no-template, or another revision in the registry."
    return None


def _free_for_models() -> int:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return shutil.disk_usage(next(p for p in (cache, *cache.absolute().parents) if p.exists())).free


def evaluate_job(
    job: Job,
    benchmarks: Sequence[str] = (),
    *,
    engine: str = "auto",
    root: Path,
    samples: int | str | Mapping[str, int] | None = "auto",
    limit: int | None = None,
    max_new_tokens: int | None = None,
    max_model_len: int | None = None,
    dtype: str | None = None,
    data_root: Path | None = None,
    progress: bool = True,
    **parallel: int,
) -> Path:
    """The run of a checkpoint on some benchmarks: a finished one that holds them all, else a new or resumed one.

    Args:
        benchmarks: default: the checkpoint's own.
        root: folder of run folders.
        samples, limit, max_new_tokens, max_model_len, dtype: in place of the registry's settings.
        parallel: ``tensor_parallel_size``, ``data_parallel_size`` and their like, as ``evaluate`` takes them.

    Raises:
        UserError, EngineError: see :func:`eval_harness.runner.evaluate`.
    """
    engine, names = resolve_engine(engine), tuple(benchmarks or job.checkpoint.benchmarks)
    settings, overrides = job.settings, Overrides(samples=samples, max_new_tokens=max_new_tokens)
    loading = {
        "dtype": dtype or settings.dtype,
        "max_model_len": max_model_len or settings.max_model_len,
        "chat_template": settings.template,
    }
    identity = check_model(job.checkpoint.id, job.checkpoint.revision)
    decodings = {name: decoding_of(get_benchmark(name), overrides, settings.decoding) for name in names}
    wanted, parts = {"limit": limit, **loading}, None
    for path in sorted(Path(root).glob(f"eval-{job.label}-{engine}-*/run.json")):
        run = records.read_run(path.parent)
        same = (
            run.status == "finished"
            and not model_changes(run, identity)
            and run.engine["name"] == engine
            and all(run.settings.get(key) == value for key, value in wanted.items())
            and all(name in run.benchmarks and run.benchmarks[name].decoding == decodings[name] for name in names)
            and all(run.benchmarks[name].version == get_benchmark(name).version for name in names)
        )
        if same:
            parts = parts or data_parts(names, data_root=data_root, limit=limit)
            if not data_changes(run, parts):
                return path.parent
    asked = {**wanted, "benchmarks": {name: decodings[name].model_dump() for name in names}}
    key = xxhash.xxh3_64(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return evaluate(
        job.checkpoint.id,
        names,
        engine=engine,
        out=Path(root) / f"eval-{job.label}-{engine}-{key}",
        data_root=data_root,
        limit=limit,
        overrides=overrides,
        decoding=settings.decoding,
        revision=job.checkpoint.revision,
        label=job.label,
        progress=progress,
        **loading,
        **parallel,
    )


@dataclass(frozen=True)
class Line:
    """A measured number beside a printed one; numbers in percent, None: there is none."""

    checkpoint: str
    variant: str | None
    revision: str
    column: str
    """A benchmark, or ``average``: the mean of five columns with the AMC set of the printed row."""
    samples: str
    """K; of an average over benchmarks of different K, all of them: ``4/16``."""
    num_items: int
    asked: int
    """Completions; asked = scored + failed, and one that failed counts as wrong."""
    scored: int
    failed: int
    measured: float | None
    """None: no completion was scored."""
    measured_low: float | None
    measured_high: float | None
    single: float | None
    single_low: float | None
    single_high: float | None
    row: str | None = None
    """The printed row, with its mark."""
    source: str | None = None
    published: float | None = None
    published_low: float | None = None
    published_high: float | None = None
    """95 % interval that the item counts alone imply for the printed number."""
    note: str = ""


def lines_of(job: Job, run: RunRecord) -> list[Line]:
    """A run beside the printed rows of its checkpoint: every benchmark once per row, and the Average."""
    rows: list[PrintedRow | None] = [*job.checkpoint.rows_of(job.variant)] or [None]
    found = []
    for row in rows:
        amc = AMC_SETS[row.amc] if row and row.amc else None
        for name, result in run.benchmarks.items():
            printed, note = None if row is None else row.printed.get(name), ""
            if row and name == amc:
                printed = row.printed.get("amc")
            elif row and name in AMC_SETS.values():
                of = f"the {row.amc} problems" if row.amc else "a set that is not known"
                note = f"printed {row.printed.get('amc')} is of {of}"
            of_run = (_estimate(result.score), _estimate(result.single or result.score)) if result.score else None
            found.append(_line(job, run, name, [result], of_run, row, printed, note))
        columns = [name.format(amc=amc or AMC_SETS[40]) for name in _MATH]
        results = [run.benchmarks[name] for name in columns if name in run.benchmarks]
        if len(results) == len(_MATH) and all(r.score for r in results):
            of_run = (
                mean_of_estimates([_estimate(r.score) for r in results]),
                mean_of_estimates([_estimate(r.single or r.score) for r in results]),
            )
            note = f"with {columns[2]}"
            if row and amc is None:
                note += "; which AMC set the printed one holds is not known"
            found.append(_line(job, run, "average", results, of_run, row, row and row.printed.get("average"), note))
    return found


def _estimate(score: Mapping[str, float]) -> Estimate:
    return Estimate(**score)


def _line(
    job: Job,
    run: RunRecord,
    column: str,
    results: Sequence[BenchmarkResult],
    of_run: tuple[Estimate, Estimate] | None,
    row: PrintedRow | None,
    printed: float | None,
    note: str,
) -> Line:
    """One line; ``results`` are the benchmarks behind it, ``of_run`` None where no completion was scored."""
    numbers = {
        f"{name}{of}": None if of_run is None else 100 * getattr(estimate, of[1:] or "mean")
        for name, estimate in zip(("measured", "single"), of_run or (None, None), strict=True)
        for of in ("", "_low", "_high")
    }
    counts = {name: sum(getattr(result, name) for result in results) for name in ("asked", "scored", "failed")}
    low, high = (None, None) if printed is None else implied(column, row)
    return Line(
        checkpoint=job.checkpoint.id,
        variant=job.variant,
        revision=run.model["revision"],
        column=column,
        samples="/".join(map(str, sorted({result.decoding.samples for result in results}))),
        num_items=sum(result.num_items for result in results),
        **counts,
        **numbers,
        row=None if row is None else f"{row.method}{' ' if row.mark else ''}{row.mark}",
        source=None if row is None else row.source,
        published=printed,
        published_low=low,
        published_high=high,
        note=note,
    )


def implied(column: str, row: PrintedRow) -> tuple[float, float]:
    """95 % interval that item counts alone imply for a printed number, had each item one sample. In percent.

    Wilson's for a benchmark; for the Average a normal one of sqrt(sum p(1-p)/n) / 5. A row without a known AMC set is
    taken to have the smaller one.
    """
    items = {name: get_benchmark(name.format(amc=AMC_SETS[row.amc or 40])).num_items for name in _MATH}
    names = {name.format(amc="amc"): items[name] for name in _MATH}
    if column != "average":
        count = names["amc" if column in AMC_SETS.values() else column]
        low, high = wilson(round(row.printed["amc" if column in AMC_SETS.values() else column] * count / 100), count)
        return 100 * low, 100 * high
    parts = []
    for name, count in names.items():
        p = row.printed[name] / 100
        parts.append(Estimate(p, math.sqrt(p * (1 - p) / count), 0.0, 1.0, count, count))
    whole = mean_of_estimates(parts, interval="normal")
    half = 100 * (whole.high - whole.mean)
    return row.printed["average"] - half, row.printed["average"] + half


def table_of(lines: Sequence[Line]) -> list[list[str]]:
    """The lines as people read them, heading first."""
    head = ["checkpoint", "column", "items", "asked = scored + failed", "measured [95 %]", "single sample [95 %]"]
    rows = [[*head, "published [implied 95 %]", "printed row", "note"]]
    for line in lines:
        k = f"avg@{line.samples} " if line.samples != "1" else ""
        text = "–"
        if line.published is not None:
            text = _percent(line.published, line.published_low, line.published_high)
        rows.append(
            [
                line.checkpoint + (f" ({line.variant})" if line.variant else ""),
                line.column,
                str(line.num_items),
                f"{line.asked} = {line.scored} + {line.failed}",
                "none" if line.measured is None else k + _percent(line.measured, line.measured_low, line.measured_high),
                "none" if line.single is None else _percent(line.single, line.single_low, line.single_high),
                text,
                (line.row or "–") + (" (README)" if line.source == "readme" else ""),
                line.note,
            ]
        )
    return rows


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def write_tables(lines: Sequence[Line], jobs: Sequence[Job], folder: Path) -> tuple[Path, Path]:
    """Write ``released.md`` and ``released.csv``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    head, *rows = table_of(lines)
    markdown = [
        "# Released and cited checkpoints",
        "",
        markdown_rows([head, *rows]),
        "",
    ]
    markdown += [
        "- Measured: mean over K samples per item, and the first sample of each item alone, the paper's protocol. "
        "Intervals over items. Completions that failed count as wrong.",
        "- Published: as printed, with what the item counts alone imply for a single sample.",
        "- AMC: a printed number stands beside the set it is a count of; the Average holds that set and no other.",
    ]
    for job in jobs:
        entry = job.checkpoint
        revision = entry.revision or f"main ({entry.revision_note})"
        markdown.append(
            f"- {job.title}: {entry.believed}. Settings: {job.settings.source}. Revision: {markdown_text(revision)}."
        )
    paths = folder / "released.md", folder / "released.csv"
    records.write_whole(paths[0], "\n".join(markdown) + "\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, list(Line.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in asdict(line).items()} for line in lines)
    records.write_whole(paths[1], table.getvalue())
    return paths


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def add_parser(commands: Any) -> None:
    """Add ``released`` to the harness's commands."""
    parser = commands.add_parser(
        "released", help="evaluate the released and cited checkpoints of Tables 3 and 4 beside their printed rows"
    )
    parser.add_argument("--list", action="store_true", help="show the registry and stop")
    parser.add_argument("--check", action="store_true", help="list what is missing and stop")
    parser.add_argument("--only", default="", metavar="ID,...", help="hub ids (default: all of the registry)")
    parser.add_argument("--table", metavar="3|4", help="only checkpoints with a row in this table")
    parser.add_argument("--variant", metavar="NAME", help="other settings of the registry: sampled, no-template, ...")
    parser.add_argument("--benchmarks", default="", help="names, separated by commas (default: the registry's)")
    parser.add_argument("--engine", default="auto", help="auto (default), vllm or transformers")
    parser.add_argument("--samples", default="auto", metavar="auto|K|NAME=K,...", help="completions per item (auto)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each benchmark")
    parser.add_argument("--max-new-tokens", type=int, metavar="N")
    parser.add_argument("--max-model-len", type=int, metavar="N")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="local copies of the data sets, not the hub")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results folder (default $GPG_RESULTS, else results)")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--data-parallel-size", type=int, default=1, metavar="N", help="engines that share the work")


def run(args: argparse.Namespace) -> int:
    """``python -m eval_harness released``; 1 if a checkpoint failed.

    Raises:
        UserError: something is missing or cannot be; nothing was started.
    """
    jobs = choose([n.strip() for n in args.only.split(",") if n.strip()], args.table, args.variant)
    if args.list:
        print(aligned(_registry_rows(jobs)))
        return 0
    names = tuple(dict.fromkeys(name.strip() for name in args.benchmarks.split(",") if name.strip()))
    for name in names:
        get_benchmark(name)
    engine, samples = resolve_engine(args.engine), parse_samples(args.samples)
    if engine == "openai":
        raise UserError("released loads checkpoints itself; for a server use `run --engine openai --base-url URL`.")
    Overrides(samples=samples, max_new_tokens=args.max_new_tokens).check()
    data_root = args.data_root or default_data_root()
    offline_if_unreachable()
    lacking = missing(jobs, names, data_root, args.max_model_len)
    if lacking:
        raise UserError(
            f"{len(lacking)} things are missing, nothing was started:\n" + "\n".join(f"- {line}" for line in lacking)
        )
    if args.check:
        print(f"{len(jobs)} evaluations can start: {', '.join(job.title for job in jobs)}.")
        return 0
    results = args.out or Path(os.environ.get("GPG_RESULTS") or "results")
    lines: list[Line] = []
    done, failures = [], []
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {job.title}: {job.checkpoint.believed}", flush=True)
        try:
            folder = evaluate_job(
                job,
                names,
                engine=engine,
                root=results / "runs",
                samples=samples,
                limit=args.limit,
                max_new_tokens=args.max_new_tokens,
                max_model_len=args.max_model_len,
                dtype=args.dtype,
                data_root=data_root,
                tensor_parallel_size=args.tensor_parallel_size,
                data_parallel_size=args.data_parallel_size,
            )
        except (UserError, EngineError) as error:  # hours of other models must not be lost
            failures.append(f"{job.title}: {error}")
            print(f"failed: {error}", flush=True)
            continue
        mine = lines_of(job, records.read_finished(folder))
        print(aligned(table_of(mine)) + f"\nrecords: {folder}", flush=True)
        lines += mine
        done.append(job)
        paths = write_tables(lines, done, results / "tables" / "paper")
    if len(done) > 1:
        print("\n" + aligned(table_of(lines)))
    if lines:
        print(f"written to {paths[0]} and {paths[1].name}")
    for failure in failures:
        print(f"failed: {failure}\nFinished records were kept; the same command resumes.")
    return 1 if failures else 0


def _registry_rows(jobs: Sequence[Job]) -> list[list[str]]:
    rows = [["checkpoint", "revision", "table", "rows (AMC set)", "GB", "context", "decoding", "template"]]
    for job in jobs:
        c, s = job.checkpoint, job.settings
        decoding = "greedy" if s.temperature == 0 else f"{s.temperature:g}/{s.top_p:g}"
        printed = "; ".join(f"{row.method}{row.mark} ({row.amc or '?'})" for row in c.rows_of(job.variant))
        rows.append(
            [
                job.title,
                (c.revision or "main")[:8],
                ", ".join(map(str, c.tables)),
                printed,
                f"{c.bytes / 1e9:.1f}",
                str(s.max_model_len),
                f"{decoding}, {s.max_new_tokens}",
                s.chat_template,
            ]
        )
    return rows
