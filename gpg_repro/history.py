"""Which recipes were ever run, and where: read from the records, never from a hand-written line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.records import TrainingRecord
from gpg_repro.paths import ROOT, results
from gpg_repro.recipe import Recipe


@dataclass(frozen=True)
class History:
    """Training records found under some folders, with the folder each was found under."""

    runs: Sequence[tuple[Path, Path, TrainingRecord]]
    """(folder searched, folder of the run, record)."""
    unreadable: Sequence[str] = ()

    @classmethod
    def read(cls, roots: Sequence[Path] | None = None) -> History:
        """Every training record under the roots: by default the committed ones and those made here."""
        if roots is None:
            roots = list(dict.fromkeys((ROOT / "results" / "reference", results() / "runs")))
        runs, unreadable = [], []
        for root in roots:
            for path in sorted(Path(root).glob("**/run.json")):
                try:
                    record = records.read_run(path.parent)
                except UserError as error:
                    unreadable.append(str(error))
                    continue
                if record.kind == "training":
                    runs.append((Path(root), path.parent, record))
        return cls(runs, unreadable)

    def of(self, recipe: Recipe) -> str:
        """What was run of a recipe at its scale, in one line: ``3 seeds in results/reference/tiny/table1_gpg``."""
        mine = [
            (root, folder, record)
            for root, folder, record in self.runs
            if (record.recipe.get("name"), record.recipe.get("scale")) == (recipe.name, recipe.scale)
        ]
        found = []
        for root in dict.fromkeys(root for root, _, _ in mine):
            here = [(folder, record) for where, folder, record in mine if where == root]
            as_is = [(f, r) for f, r in here if r.status == "finished" and _as_written(recipe, r)]
            seeds = {record.recipe["seed"] for _, record in as_is}
            others = sum(r.status == "finished" for _, r in here) - len(as_is)
            unfinished = sum(r.status != "finished" for _, r in here)
            counts = [
                *([_count(len(seeds), "seed")] if seeds else []),
                *([f"{_count(others, 'run')} with other settings"] if others else []),
                *([f"{_count(unfinished, 'unfinished run')}"] if unfinished else []),
            ]
            found.append(f"{', '.join(counts)} in {_shown(_common(root, [folder for folder, _ in here]))}")
        return "; ".join(found) or "never run"


def _as_written(recipe: Recipe, record: TrainingRecord) -> bool:
    planned = recipe.setup.training.num_processes
    return recipe.describes(record.recipe) and record.environment.get("num_processes", planned) == planned


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _common(root: Path, folders: Sequence[Path]) -> Path:
    """The deepest folder at or under the root that holds all the runs' folders."""
    parents = [folder.relative_to(root).parts[:-1] for folder in folders]
    shared = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1 or parts[0].startswith("seed"):
            break
        shared.append(parts[0])
    return root.joinpath(*shared)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
