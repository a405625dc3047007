"""The runs behind a table: made if asked, found if there. One run per recipe and seed, shared by all tables.

Run folders      results/runs/train-<recipe>-<scale>-seed<k>-<hash>/  and  eval-<same>-<engine>/
Committed        results/reference/<scale>/<recipe or base/weights>/seed<k>/  (an evaluation, with training/ inside)
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval_harness import records, released
from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import load_checkpoints
from eval_harness.engines import resolve_engine
from eval_harness.engines.fork_server import warm_engines
from eval_harness.errors import UserError, unknown
from eval_harness.models import check_model, offline_if_unreachable
from eval_harness.released import Job
from eval_harness.runner import Overrides, evaluate
from eval_harness.sources import default_data_root, default_image_root
from gpg_repro.committed import refuse_work
from gpg_repro.paths import ROOT
from gpg_repro.paths import results as default_results
from gpg_repro.recipe import SCALES, Recipe, load_recipe
from gpg_repro.tables.base import BASE, MASK_IOU, Row, RowRuns, Table

REFERENCE = ROOT / "results" / "reference"
"""Committed records of earlier runs, so that a fresh clone has something to show."""
SAM = "facebook/sam-vit-huge"
"""The segmenter of the mask metric at paper scale: the ViT-H weights of the released script, as the hub has them."""
_SMOKE_ITEMS = 10
"""Of each benchmark, or spread over its groups."""


def check_scale(scale: str, seeds: int) -> None:
    """Refuse an unknown scale or a negative number of seeds."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if seeds < 0:
        raise UserError(f"SEEDS {seeds}: expected 0 (show the committed records) or a number of seeds to train.")


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
    """Train and evaluate every row that is not among the runs yet.

    Args:
        table: which table.
        scale: ``smoke``, ``tiny`` or ``paper``.
        seeds: number of training seeds (0, 1, ...) at smoke and tiny scale. Paper scale trains nothing: it evaluates
            released checkpoints, and recipes that were trained here at that scale, all seeds found.
        engine: evaluation engine. At smoke scale ``auto`` is transformers, with the base through vLLM if installed.
        results: folder for run records.
        data_root: local copies of the benchmarks.

    Raises:
        NoRecords: only records may be shown (see :mod:`gpg_repro.committed`).
        UserError: unknown scale, seeds < 1, or (paper scale) models or data that cannot be had; everything missing is
            listed before any work.
    """
    check_scale(scale, seeds)
    if seeds < 1:
        raise UserError(f"SEEDS {seeds}: expected at least 1 seed to train; 0 only shows committed records.")
    refuse_work(f"{table.name} at scale {scale}")
    resolve_engine(engine)
    root = (results or default_results()) / "runs"
    if scale == "paper":
        return _run_released(table, engine, root, data_root, progress)
    from gpg_repro.train import check_recipe

    rows = [(row, table.parts(row)) for row in table.rows_at(scale)]
    recipes = {
        (part.recipe, seed): load_recipe(part.recipe, scale=scale, seed=seed)
        for _, parts in rows
        for part in parts
        if part.recipe
        for seed in range(seeds)
    }
    for recipe in recipes.values():
        check_recipe(recipe)
    any_recipe = next(iter(recipes.values()))
    trainings: dict[tuple[str, str | None, int], Path] = {}
    folders: dict[tuple[str, str | None, int], Future[Path]] = {}
    aside = 0 if not any(row.recipes for row, _ in rows) else 2 if scale == "smoke" else 1
    with warm_engines(), _Measuring(aside) as measuring:
        for row, parts in rows:
            for part in parts:
                for seed in range(seeds) if part.recipe else (0,):
                    recipe = recipes[part.recipe, seed] if part.recipe else None
                    made = _make(recipe, recipe or any_recipe, engine, root, progress)
                    folders[row.key, part.column, seed] = measuring.start(_measure, table, part, made, root, progress)
                    if made.training is not None:
                        trainings[row.key, part.column, seed] = made.training

    def by_seed(found: Mapping, *key) -> dict:
        return {seed: value for (*other, seed), value in found.items() if other == [*key]}

    done = []
    for row, parts in rows:
        found = {}
        for part in parts:
            of_part = {seed: future.result() for seed, future in by_seed(folders, row.key, part.column).items()}
            found[part.column] = RowRuns(part, of_part, by_seed(trainings, row.key, part.column))
        done.append(_joined(row, found))
    return done


def _joined(row: Row, found: dict[str | None, RowRuns]) -> RowRuns:
    """The runs of a row's parts as the runs of the row."""
    return RowRuns(row, parts=found) if row.recipes else found[None]


class _Measuring:
    """Measures models at once, or beside the training of the next ones.

    With a training per column most of the time goes into starting engines, one per model. What went wrong in an
    evaluation is raised before a later one starts; leaving the block waits for the last one.

    Args:
        aside: measurements that may run beside the caller; 0: each one at once, in the caller's thread.
    """

    def __init__(self, aside: int):
        self._pool = ThreadPoolExecutor(aside) if aside else None
        self._started: list[Future[Path]] = []

    def __enter__(self) -> _Measuring:
        return self

    def start(self, measure: Callable[..., Path], *arguments) -> Future[Path]:
        """Begin one measurement; its result is the evaluation folder."""
        for earlier in self._started:
            if earlier.done():
                earlier.result()
        if self._pool is not None:
            future = self._pool.submit(measure, *arguments)
        else:
            future = Future()
            future.set_result(measure(*arguments))
        self._started.append(future)
        return future

    def __exit__(self, kind, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)


@dataclass(frozen=True)
class _Made:
    """A model below paper scale, ready to be measured."""

    model: str
    label: str
    engine: str
    scale: str
    training: Path | None
    """None: an untrained base."""


def run_row(
    table: Table,
    row: Row,
    recipe: Recipe | None,
    like: Recipe,
    *,
    engine: str,
    root: Path,
    progress: bool = True,
) -> tuple[Path, Path | None]:
    """Train a recipe (None: take the untrained base of ``like``) below paper scale and measure it on the tiny suites.

    Args:
        row: a row with one run, or a part of one with several; says which columns are measured.

    Returns:
        The evaluation folder and the training folder (None for the base).
    """
    made = _make(recipe, like, engine, root, progress)
    return _measure(table, row, made, root, progress), made.training


def _make(recipe: Recipe | None, like: Recipe, engine: str, root: Path, progress: bool) -> _Made:
    from gpg_repro.train import base_model, train

    if recipe is None:
        model = base_model(like, progress)
        label = f"{BASE}-{like.scale}-{check_model(model, None)['weights'][:8]}"
        return _Made(model, label, resolve_engine(engine), like.scale, None)
    training = train(recipe, root=root, progress=progress)
    engine = "transformers" if like.scale == "smoke" and engine == "auto" else resolve_engine(engine)
    return _Made(str(training / "checkpoint"), training.name.removeprefix("train-"), engine, like.scale, training)


def _measure(table: Table, row: Row, made: _Made, root: Path, progress: bool) -> Path:
    benchmarks = table.measured_on(row, made.scale)
    folder = evaluate(
        made.model,
        benchmarks,
        engine=made.engine,
        out=root / f"eval-{made.label}-{made.engine}",
        label=made.label,
        progress=progress,
        limit=smoke_limit(benchmarks) if made.scale == "smoke" else None,
    )
    _add_masks(table, folder, made.scale, progress=progress)
    return folder


def smoke_limit(benchmarks: Sequence[str]) -> int:
    """Items of each group (of the whole benchmark, where there are none) at smoke scale."""
    return math.ceil(_SMOKE_ITEMS / max(len(get_benchmark(name).groups) or 1 for name in benchmarks))


def _add_masks(
    table: Table,
    folder: Path,
    scale: str,
    progress: bool,
    data_root: Path | None = None,
    image_root: Path | None = None,
) -> None:
    """Make the mask metric of a finished evaluation where the table has a column of it; done masks stay."""
    if all(column.metric != MASK_IOU for column in table.columns):
        return
    results = records.read_run(folder).benchmarks.values()
    if results and all(MASK_IOU in result.extra for result in results):
        return  # the segmenter alone takes a while to load
    from eval_harness import masks

    segmenter = masks.SamSegmenter(SAM) if scale == "paper" else masks.ForegroundSegmenter()
    masks.add_masks(folder, segmenter, masks.benchmark_images(data_root, image_root), progress=progress)


def _run_released(table: Table, engine: str, root: Path, data_root: Path | None, progress: bool) -> list[RowRuns]:
    data_root, image_root = data_root or default_data_root(), default_image_root()
    parts = {row.key: table.parts(row) for row in table.rows}
    here = {
        part.recipe: finished_trainings(part.recipe, "paper", root)
        for row in table.rows
        if not row.hub and row.paper_recipe
        for part in parts[row.key]
        if part.recipe
    }
    offline_if_unreachable()
    jobs = {row.key: Job(row.checkpoint, row.variant) for row in table.rows if row.checkpoint}
    missing = released.missing_models(list(jobs.values()))
    for row in table.rows:
        if row.hub and row.key not in jobs:
            try:
                check_model(row.hub, row.hub_revision)
            except UserError as error:
                missing.append(f"model for {row.label}: {error}")
    trained = [part for row in table.rows for part in parts[row.key] if part.recipe and part.paper_recipe]
    if not any(part.hub or here.get(part.recipe) for part in trained):
        missing += [f"model for {part.label}: {_train_it(part)}" for part in trained]
    for name in table.benchmarks:
        try:
            benchmark = get_benchmark(name)
            benchmark.load(data_root)
            benchmark.image_reader(data_root, image_root)
        except UserError as error:
            missing.append(f"benchmark {name}: {error}")
    if missing:
        raise UserError(
            f"{table.name} at paper scale cannot start; {len(missing)} things are missing:\n"
            + "\n".join(f"- {m}" for m in missing)
        )
    done, engine = [], resolve_engine(engine)
    base_row = next((row for row in table.rows if row.key == BASE), None)
    for row in table.rows:
        found = {}
        for part in parts[row.key]:
            benchmarks = table.measured_on(part, "paper")
            if row.key in jobs:
                options = {"engine": engine, "root": root, "data_root": data_root, "progress": progress}
                folders = {0: released.evaluate_job(jobs[row.key], benchmarks, **options)}
            else:
                models = {
                    seed: (str(run / "checkpoint"), run.name.removeprefix("train-"))
                    for seed, run in here.get(part.recipe, {}).items()
                }
                if part.hub:
                    models = {0: (part.hub, part.hub.replace("/", "--"))}
                folders = {
                    seed: evaluate(
                        model,
                        benchmarks,
                        engine=engine,
                        out=root / f"eval-{label}-{engine}",
                        label=label,
                        data_root=data_root,
                        image_root=image_root,
                        progress=progress,
                        **_settings_of_base(part),
                    )
                    for seed, (model, label) in models.items()
                }
            for folder in folders.values():
                _add_masks(table, folder, "paper", progress, data_root=data_root, image_root=image_root)
            if folders:
                found[part.column] = RowRuns(part, folders, here.get(part.recipe, {}))
        if found:
            entry = _joined(row, found)
            job = base_under_settings_of(row, base_row)
            if job is not None and row.key in jobs:
                options = {"engine": engine, "root": root, "data_root": data_root, "progress": progress}
                measured = released.evaluate_job(job, table.measured_on(row, "paper"), **options)
                entry = replace(entry, base=RowRuns(base_row, {0: measured}))
            done.append(entry)
    return done


def base_under_settings_of(row: Row, base: Row | None) -> Job | None:
    """The base's measurement that a released row's gain is over, where the base row's own is under other settings.

    None: the base row's own does; the row was not trained from this base; or the base cannot be measured so (then there
    is no gain, and the table's notes say why).
    """
    known = row.checkpoint, base.checkpoint if base else None
    if None in known or row.key == base.key or known[0].base != known[1].id:
        return None
    own = Job(known[1], base.variant)
    job = own.measured_as(Job(known[0], row.variant))
    return None if job == own or job.obstacle else job


def _settings_of_base(part: Row) -> dict[str, Any]:
    """A model trained here is measured as the registry measures its base, where it knows it."""
    base = load_checkpoints().get(load_recipe(part.recipe, scale="paper").setup.base) if part.recipe else None
    if base is None:
        return {}
    settings = base.settings
    return {
        "overrides": Overrides(samples="auto"),
        "decoding": settings.decoding,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "chat_template": settings.template,
    }


def _train_it(row: Row) -> str:
    return f"no checkpoint was published; train it with `make train RECIPE={row.recipe} SCALE=paper`"


def finished_trainings(recipe: str, scale: str, root: Path) -> dict[int, Path]:
    """Finished trainings of a recipe as packaged (no overrides) among the run folders, by seed; the newest of each."""
    found: dict[int, tuple[str, Path]] = {}
    for path in sorted(root.glob(f"train-{recipe}-{scale}-seed*/run.json")):
        run = records.read_run(path.parent)
        seed = run.recipe["seed"]
        stands = run.status == "finished" and (path.parent / "checkpoint").is_dir()
        if stands and load_recipe(recipe, scale=scale, seed=seed).describes(run.recipe):
            found[seed] = max(found.get(seed, ("", path)), (run.finished, path.parent))
    return {seed: folder for seed, (_, folder) in sorted(found.items())}


def reference_runs(table: Table, scale: str, reference: Path = REFERENCE) -> list[RowRuns]:
    """Committed records of a table, rows that have any: ``<reference>/<scale>/<recipe or base>/seed<k>/``."""
    runs: dict[str, RowRuns] = {}
    for row in (row for row in table.rows_at(scale) if row.trained):
        found = {}
        for part in table.parts(row):
            if folders := _seeds_of(reference / scale / part.run, "run.json"):
                trainings = _seeds_of(reference / scale / part.run, "training/run.json")
                found[part.column] = RowRuns(part, folders, trainings)
        if found:
            runs[row.key] = _joined(row, found)
    started_from = {
        records.read_run(folder).base["weights"]
        for entry in runs.values()
        for run in entry.runs
        for folder in run.trainings.values()
    }
    for row in table.rows_at(scale):
        if not row.trained and (folder := base_record(scale, started_from, table.benchmarks_at(scale), reference)):
            runs[row.key] = RowRuns(row, {0: folder}, {})
    return [runs[row.key] for row in table.rows_at(scale) if row.key in runs]


def base_record(
    scale: str, weights: Collection[str], benchmarks: Collection[str], reference: Path = REFERENCE
) -> Path | None:
    """The committed measurement of a base with one of these weights (of any base, if there is none); else None.

    A base made on the spot differs between machines, so there may be several: ``base/<8 digits of the weights>/seed0``.
    Bases of other families lie there too; one that was not measured on these benchmarks is none of ours.
    """
    found = {
        records.read_run(path.parent).model["weights"]: path.parent
        for path in _base_files(scale, reference)
        if all((path.parent / "samples" / f"{name}.jsonl").exists() for name in benchmarks)
    }
    return next((folder for known, folder in found.items() if known in weights), next(iter(found.values()), None))


def _base_files(scale: str, reference: Path) -> list[Path]:
    return sorted((reference / scale / BASE).glob("*/seed0/run.json"))


def reference_folder(row: Row, scale: str, seed: int, target: Path, weights: str | None) -> Path:
    """Where a committed record lives; ``weights`` are the measured model's, needed for the base."""
    name = row.run if row.recipe else f"{BASE}/{(weights or 'unknown')[:8]}"
    return target / scale / name / f"seed{seed}"


def _seeds_of(folder: Path, record: str) -> dict[int, Path]:
    """Seed -> folder that holds the record (``run.json`` or ``training/run.json``)."""
    found = {path.relative_to(folder).parts[0]: path.parent for path in folder.glob(f"seed*/{record}")}
    return dict(sorted((int(name.removeprefix("seed")), path) for name, path in found.items()))


def save_reference(runs: Sequence[RowRuns], scale: str, target: Path = REFERENCE) -> list[Path]:
    """Copy records (not weights, not logs) to the committed ones, replacing those of the same run and seed."""
    saved = []
    for entry in (run for row in runs for run in row.runs):
        for seed, folder in entry.folders.items():
            copy = reference_folder(entry.row, scale, seed, target, records.read_run(folder).model["weights"])
            shutil.rmtree(copy, ignore_errors=True)
            for part in ("items", "samples", "masks"):
                if part != "masks" or (folder / part).is_dir():
                    shutil.copytree(folder / part, copy / part)
            shutil.copy(folder / "run.json", copy)
            if seed in entry.trainings:
                (copy / "training").mkdir()
                for name in ("run.json", "steps.jsonl"):
                    shutil.copy(entry.trainings[seed] / name, copy / "training")
            saved.append(copy)
    return saved


def recipe_trainings(
    recipe: str, scale: str, *, seeds: int = 0, results: Path | None = None, progress: bool = True
) -> tuple[dict[int, Path], str]:
    """Trainings of one recipe by seed, without measuring them, and where they come from: what figures are drawn from.

    Args:
        seeds: 0 takes the committed records, or trains one seed where there are none; n trains n seeds here.

    Raises:
        UserError: paper scale, where nothing is trained on the way, without a finished training.
    """
    check_scale(scale, seeds)
    root = (results or default_results()) / "runs"
    if scale == "paper":
        found = finished_trainings(recipe, scale, root)
        if not found:
            refuse_work(f"the training {recipe} at scale {scale}")
            raise UserError(
                f"no training of {recipe} at paper scale in {root.name}/; start it with "
                f"`make train RECIPE={recipe} SCALE=paper`."
            )
        return found, "this machine"
    committed = _seeds_of(REFERENCE / scale / recipe, "training/run.json")
    if seeds == 0 and committed:
        return committed, "committed records"
    refuse_work(f"the training {recipe} at scale {scale}")
    from gpg_repro.train import train

    chosen = [load_recipe(recipe, scale=scale, seed=seed) for seed in range(max(1, seeds))]
    return {r.seed: train(r, root=root, progress=progress) for r in chosen}, "this run"
