"""The runs behind a table: made if asked, found if there. One run per recipe and seed, shared by all tables.

Run folders      results/runs/train-<recipe>-<scale>-seed<k>-<hash>/  and  eval-<same>-<engine>/
Committed        results/reference/<scale>/<recipe or base/weights>/seed<k>/  (an evaluation, with training/ inside)
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.engines import resolve_engine
from eval_harness.errors import UserError, unknown
from eval_harness.models import check_model
from eval_harness.runner import evaluate
from eval_harness.sources import default_data_root
from gpg_repro.paths import ROOT
from gpg_repro.paths import results as default_results
from gpg_repro.recipe import SCALES, Recipe, load_recipe
from gpg_repro.tables.base import BASE, Row, RowRuns, Table

REFERENCE = ROOT / "results" / "reference"
"""Committed records of earlier runs, so that a fresh clone has something to show."""
_SMOKE_ITEMS = 10


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
        UserError: unknown scale, seeds < 1, or (paper scale) models or data that cannot be had; everything missing is
            listed before any work.
    """
    check_scale(scale, seeds)
    if seeds < 1:
        raise UserError(f"SEEDS {seeds}: expected at least 1 seed to train; 0 only shows committed records.")
    resolve_engine(engine)
    root = (results or default_results()) / "runs"
    if scale == "paper":
        return _run_released(table, engine, root, data_root, progress)
    from gpg_repro.train import check_recipe

    recipes = {
        (row.key, seed): load_recipe(row.recipe, scale=scale, seed=seed)
        for row in table.rows_at(scale)
        if row.recipe
        for seed in range(seeds)
    }
    for recipe in recipes.values():
        check_recipe(recipe)
    any_recipe = next(iter(recipes.values()))
    done = []
    for row in table.rows_at(scale):
        folders, trainings = {}, {}
        for seed in range(seeds) if row.recipe else (0,):
            recipe = recipes[row.key, seed] if row.recipe else None
            folders[seed], training = run_row(
                table, recipe, recipe or any_recipe, engine=engine, root=root, progress=progress
            )
            if training is not None:
                trainings[seed] = training
        done.append(RowRuns(row, folders, trainings))
    return done


def run_row(
    table: Table, recipe: Recipe | None, like: Recipe, *, engine: str, root: Path, progress: bool = True
) -> tuple[Path, Path | None]:
    """Train a recipe (None: take the untrained base of ``like``) below paper scale and measure it on the tiny suites.

    Returns:
        The evaluation folder and the training folder (None for the base).
    """
    from gpg_repro.train import base_model, train

    scale = like.scale
    if recipe is None:
        training, model = None, base_model(like, progress)
        label = f"{BASE}-{scale}-{check_model(model, None)['weights'][:8]}"
        engine = resolve_engine(engine)
    else:
        training = train(recipe, root=root, progress=progress)
        model, label = str(training / "checkpoint"), training.name.removeprefix("train-")
        engine = "transformers" if scale == "smoke" and engine == "auto" else resolve_engine(engine)
    folder = evaluate(
        model,
        table.tiny_benchmarks,
        engine=engine,
        out=root / f"eval-{label}-{engine}",
        label=label,
        progress=progress,
        limit=_SMOKE_ITEMS if scale == "smoke" else None,
    )
    return folder, training


def _run_released(table: Table, engine: str, root: Path, data_root: Path | None, progress: bool) -> list[RowRuns]:
    data_root = data_root or default_data_root()
    here = {row.key: finished_trainings(row.recipe, "paper", root) for row in table.rows if row.recipe and not row.hub}
    missing = []
    for row in table.rows:
        if row.hub:
            try:
                check_model(row.hub, row.hub_revision)
            except UserError as error:
                missing.append(f"model for {row.label}: {error}")
    recipe_rows = [row for row in table.rows if row.recipe]
    if not any(row.hub or here.get(row.key) for row in recipe_rows):
        missing += [f"model for {row.label}: {_train_it(row)}" for row in recipe_rows]
    for name in table.benchmarks:
        try:
            get_benchmark(name).load(data_root)
        except UserError as error:
            missing.append(f"benchmark {name}: {error}")
    if missing:
        raise UserError(
            f"{table.name} at paper scale cannot start; {len(missing)} things are missing:\n"
            + "\n".join(f"- {m}" for m in missing)
        )
    done, engine = [], resolve_engine(engine)
    for row in table.rows:
        models = {
            seed: (str(run / "checkpoint"), run.name.removeprefix("train-"))
            for seed, run in here.get(row.key, {}).items()
        }
        if row.hub:
            models = {0: (row.hub, row.hub.replace("/", "--"))}
        folders = {
            seed: evaluate(
                model,
                table.benchmarks,
                revision=row.hub_revision if row.hub else None,
                engine=engine,
                out=root / f"eval-{label}-{engine}",
                label=label,
                data_root=data_root,
                progress=progress,
            )
            for seed, (model, label) in models.items()
        }
        if folders:
            done.append(RowRuns(row, folders, here.get(row.key, {})))
    return done


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
    for row in table.rows_at(scale):
        folders = _seeds_of(reference / scale / row.run, "run.json")
        if row.recipe and folders:
            runs[row.key] = RowRuns(row, folders, _seeds_of(reference / scale / row.run, "training/run.json"))
    started_from = {
        records.read_run(folder).base["weights"] for entry in runs.values() for folder in entry.trainings.values()
    }
    for row in table.rows_at(scale):
        if row.recipe is None and (folder := base_record(scale, started_from, reference)):
            runs[row.key] = RowRuns(row, {0: folder}, {})
    return [runs[row.key] for row in table.rows_at(scale) if row.key in runs]


def base_record(scale: str, weights: Collection[str], reference: Path = REFERENCE) -> Path | None:
    """The committed measurement of a base with one of these weights (of any base, if there is none); else None.

    A base made on the spot differs between machines, so there may be several: ``base/<8 digits of the weights>/seed0``.
    """
    found = {records.read_run(p.parent).model["weights"]: p.parent for p in _base_files(scale, reference)}
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
    for entry in runs:
        for seed, folder in entry.folders.items():
            copy = reference_folder(entry.row, scale, seed, target, records.read_run(folder).model["weights"])
            shutil.rmtree(copy, ignore_errors=True)
            for part in ("items", "samples"):
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
            raise UserError(
                f"no training of {recipe} at paper scale in {root.name}/; start it with "
                f"`make train RECIPE={recipe} SCALE=paper`."
            )
        return found, "this machine"
    committed = _seeds_of(REFERENCE / scale / recipe, "training/run.json")
    if seeds == 0 and committed:
        return committed, "committed records"
    from gpg_repro.train import train

    chosen = [load_recipe(recipe, scale=scale, seed=seed) for seed in range(max(1, seeds))]
    return {r.seed: train(r, root=root, progress=progress) for r in chosen}, "this run"
