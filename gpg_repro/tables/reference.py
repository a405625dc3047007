"""Make the committed records of the tables: ``python -m gpg_repro.tables.reference --scale tiny --seeds 3``.

Trains and measures every recipe of the tables that has no committed record for the seed, then copies its records (no
weights, no logs) to ``results/reference/<scale>/<recipe>/seed<k>/``. A killed call, started again, goes on where it
was. A run that fails is told at the end and stops no other.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.markup import shown_streams
from eval_harness.models import check_model
from gpg_repro.paths import results as default_results
from gpg_repro.recipe import Recipe, load_recipe, recipe_names
from gpg_repro.tables import TABLES, get_table
from gpg_repro.tables.base import BASE, Row, RowRuns, Table
from gpg_repro.tables.runs import REFERENCE, reference_folder, run_row, save_reference

Job = tuple[Table, Row, int]


def jobs(tables: Iterable[str], scale: str, seeds: Iterable[int]) -> list[Job]:
    """What the tables need, each recipe and seed once, in the tables' order, seed by seed; the base is seed 0."""
    rows = {
        (part.run, table.benchmarks_at(scale) if part.run == BASE else None): (table, part)
        for table in map(get_table, tables)
        for row in table.rows_at(scale)
        for part in table.parts(row)
    }  # bases of two tables are one where they are measured on the same suites
    return [
        (table, row, seed) for seed in seeds for (run, _), (table, row) in rows.items() if run != BASE or seed == 0
    ]  # fmt: skip


def any_recipe(table: Table, scale: str) -> Recipe:
    """A recipe of the table: all start from one base."""
    parts = (part for row in table.rows_at(scale) for part in table.parts(row))
    return load_recipe(next(part.recipe for part in parts if part.recipe), scale=scale)


def is_committed(row: Row, scale: str, seed: int, base_weights: str, target: Path = REFERENCE) -> bool:
    """Whether the record exists and comes from the recipe and the base as they are now."""
    folder = reference_folder(row, scale, seed, target, base_weights)
    if not (folder / "run.json").exists() or records.read_run(folder).status != "finished":
        return False
    if row.recipe is None:
        return records.read_run(folder).model["weights"] == base_weights
    training = folder / "training"
    if not (training / "steps.jsonl").exists():
        return False
    run = records.read_run(training)
    recipe = load_recipe(row.recipe, scale=scale, seed=seed)
    return recipe.describes(run.recipe) and run.base["weights"] == base_weights


def make(
    tables: Iterable[str],
    scale: str,
    seeds: Iterable[int],
    *,
    engine: str = "auto",
    results: Path | None = None,
    target: Path = REFERENCE,
    again: bool = False,
    progress: bool = False,
) -> list[str]:
    """Make what is missing; returns the runs that failed, each with its reason.

    Args:
        tables: names of ``gpg_repro.tables.TABLES``.
        scale: ``smoke`` or ``tiny``.
        seeds: training seeds.
        engine: evaluation engine.
        results: where run folders live; finished ones are used.
        target: where committed records live.
        again: copy also where a committed record exists already (a finished run is still not repeated).

    Raises:
        UserError: a recipe that does not exist, or paper scale.
    """
    from gpg_repro.train import base_model

    if scale == "paper":
        raise UserError("committed records exist for smoke and tiny; paper scale is trained recipe by recipe.")
    todo = jobs(tables, scale, seeds)
    absent = sorted({row.recipe for _, row, _ in todo if row.recipe} - set(recipe_names()))
    if absent:
        raise UserError(f"no such recipes yet: {', '.join(absent)}. Choose other --tables.")
    likes = {table.stem: any_recipe(table, scale) for table, _, _ in todo}
    weights = {
        base: check_model(base_model(like, progress))["weights"]
        for base, like in {like.setup.base: like for like in likes.values()}.items()
    }
    failures = []
    for number, (table, row, seed) in enumerate(todo, start=1):
        like = likes[table.stem]
        name = f"{row.run} seed {seed}"
        head = f"[{number}/{len(todo)}] {name}"
        if not again and is_committed(row, scale, seed, weights[like.setup.base], target):
            print(f"{head}: committed", flush=True)
            continue
        print(f"{head} ...", flush=True)
        started = time.monotonic()
        try:
            recipe = load_recipe(row.recipe, scale=scale, seed=seed) if row.recipe else None
            root = (results or default_results()) / "runs"
            folder, training = run_row(table, row, recipe, like, engine=engine, root=root, progress=progress)
            runs = RowRuns(row, {seed: folder}, {} if training is None else {seed: training})
            save_reference([runs], scale, target)
        except Exception as error:  # hours of other runs must not be lost; told below, and the exit status says so
            failures.append(f"{name}: {type(error).__name__}: {error}")
            if not isinstance(error, UserError):
                traceback.print_exc()
            continue
        average = (records.read_run(folder).average or {}).get("mean", float("nan"))
        print(f"{head}: {100 * average:.1f} % in {time.monotonic() - started:.0f} s", flush=True)
    return failures


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """Command line; 1 if a run failed, 2 for a mistake of the caller."""
    parser = argparse.ArgumentParser(prog="python -m gpg_repro.tables.reference", description=__doc__.split(":")[0])
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"comma-separated; default {','.join(TABLES)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … n-1")
    parser.add_argument("--seed", type=int, action="append", help="only this seed (may be repeated)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--target", type=Path, default=REFERENCE, help="default results/reference")
    parser.add_argument("--again", action="store_true", help="replace committed records too")
    parser.add_argument("--progress", action="store_true", help="show bars")
    args = parser.parse_args(argv)
    try:
        failures = make(
            [name.strip() for name in args.tables.split(",")],
            args.scale,
            args.seed or range(args.seeds),
            engine=args.engine,
            target=args.target,
            again=args.again,
            progress=args.progress,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
