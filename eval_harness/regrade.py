"""Stored evaluations under today's rules: ``python -m eval_harness regrade RUN…``. Nothing is generated.

Samples get the marks of today, scores follow from them, and the record names the rules. Completions, items and the
run's fingerprint stay. A run whose files do not fit its record is refused, so that nothing edited gets a new hash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval_harness import provenance, records
from eval_harness.errors import UserError
from eval_harness.graders.base import grader_identity, rule_names
from eval_harness.graders.pool import GradingPool
from eval_harness.locks import locked
from eval_harness.records import BenchmarkResult, RunRecord
from eval_harness.runner import GradedAgain, averages, grade_again, samples_are_the_records, summarise

BEFORE = ".before"
"""Ending of a file of samples while its run is marked again; one that is left over belongs to a killed command."""


class Regraded(NamedTuple):
    """One benchmark of a run, before and after."""

    changed: int
    """Samples whose marks differ."""
    before: BenchmarkResult
    after: BenchmarkResult
    rules: tuple[str, str]
    """Published and strict rule of today, with their versions."""


def regrade(folder: Path, *, dry_run: bool = False) -> dict[str, Regraded]:
    """Mark a finished evaluation again. Intervals are of the kind that the record's schema version has.

    Args:
        folder: of the run.
        dry_run: grade and tell, but write nothing.

    Raises:
        UserError: not a finished evaluation, in use, or its files do not fit its record.
    """
    folder = Path(folder)
    records.read_run(folder)  # before a lock makes the folder
    with locked(folder, "regrade"):
        run = records.read_run(folder)
        if run.kind != "evaluation" or run.status != "finished":
            raise UserError(f"{folder} is not a finished evaluation; finish it first.")
        _undo_a_killed_one(folder, run)
        with GradingPool() as pool:
            again = {name: grade_again(folder, run, name, pool) for name in run.benchmarks}
        for name, found in again.items():
            problems = found.problems + (
                [] if samples_are_the_records(folder, run, name) else ["the samples are not those of the record"]
            )
            if problems:
                raise UserError(f"{folder}: {name} does not fit its record ({'; '.join(problems)}). Restore its files.")
        results = {name: _result(run, name, found) for name, found in again.items()}
        if not dry_run:
            _write(folder, run, again, results)
    return {
        name: Regraded(found.changed, run.benchmarks[name], results[name], rule_names(found.benchmark.grader))
        for name, found in again.items()
    }


def _undo_a_killed_one(folder: Path, run: RunRecord) -> None:
    """Its record is written last: until then the old samples are the run's."""
    for old in (folder / "samples").glob(f"*{BEFORE}"):
        name = old.name.removesuffix(f".jsonl{BEFORE}")
        known = run.provenance.get("benchmarks", {}).get(name, {}).get("samples_hash")
        if known == records.lines_hash(old.with_suffix("")):
            old.unlink()
        else:
            os.replace(old, old.with_suffix(""))


def _result(run: RunRecord, name: str, found: GradedAgain) -> BenchmarkResult:
    """The stored result where no mark changed, so that not even last digits move; else what follows from the marks."""
    stored = run.benchmarks[name]
    if not found.changed:
        return stored
    if masks := [mark for mark in stored.extra if mark.startswith("mask_iou")]:
        raise UserError(
            f"{name}: boxes changed, and {masks[0]} was measured on the old ones. Nothing was written; evaluate again "
            "into another folder and run eval_harness.masks there."
        )
    made = summarise(found.benchmark, found.items, stored.decoding, found.fresh, schema_version=run.schema_version)
    return made.model_copy(update={"version": stored.version, "source": stored.source})


def _write(folder: Path, run: RunRecord, again: dict[str, GradedAgain], results: dict[str, BenchmarkResult]) -> None:
    kept: list[Path] = []
    benchmarks: dict[str, Any] = dict(run.provenance.get("benchmarks", {}))
    then: dict[str, Any] = {}
    for name, found in again.items():
        path = folder / "samples" / f"{name}.jsonl"
        if found.changed:  # else the file stays: its marks are today's
            kept.append(path.with_suffix(f".jsonl{BEFORE}"))
            os.replace(path, kept[-1])
            records.replace_lines(path, found.fresh)
        known = benchmarks.get(name) or {
            "version": run.benchmarks[name].version,
            "prompts_hash": run.benchmarks[name].prompts_hash,
            "items_hash": provenance.items_hash(found.items),
        }
        then[name] = {"changed": found.changed, "grader": known.get("grader")}
        benchmarks[name] = known | {
            "grader": grader_identity(found.benchmark.grader),
            "samples_hash": records.lines_hash(path),
        }
    history = [*run.provenance.get("regraded", []), {"time": records.now(), "benchmarks": then}]
    record = run.model_copy(
        update={
            "benchmarks": results,
            "provenance": run.provenance | {"benchmarks": benchmarks, "regraded": history},
            **(
                averages(results, schema_version=run.schema_version)
                if any(found.changed for found in again.values())
                else {}
            ),
        }
    )
    records.write_json(folder / "run.json", record)
    _forget(kept)


def _forget(kept: Sequence[Path]) -> None:
    for path in kept:
        path.unlink()


def add_parser(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("regrade", help="mark stored runs again by today's rules; nothing is generated")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--dry-run", action="store_true", help="tell what would change, write nothing")


def run(runs: Sequence[Path], *, dry_run: bool) -> int:
    """The command: one line per benchmark of each run."""
    for folder in runs:
        for name, found in regrade(folder, dry_run=dry_run).items():
            moved = [
                f"{rule} {_percent(getattr(found.before, key))} -> {_percent(getattr(found.after, key))}"
                for rule, key in (("published", "score"), ("strict", "score_strict"))
            ]
            print(
                f"{folder.name}  {name}: {found.changed} of {found.before.scored} marks change; {', '.join(moved)}; "
                f"by {', '.join(found.rules)}"
            )
    if dry_run:
        print("Nothing was written.")
    return 0


def _percent(score: dict[str, float] | None) -> str:
    return "none" if score is None else f"{100 * score['mean']:.2f} %"
