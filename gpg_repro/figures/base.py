"""Shared by the figures: curves of a recipe by seed, their ranges, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval_harness import records
from eval_harness.errors import unknown
from gpg_repro.published import folder as published_folder
from gpg_repro.tables.numbers import code_of
from gpg_repro.tables.runs import recipe_trainings


@dataclass(frozen=True)
class Curves:
    """Per-step metrics of one recipe, by training seed."""

    recipe: str
    origin: str
    """``committed records``, ``this run`` or ``this machine``."""
    folders: dict[int, Path]
    frames: dict[int, pd.DataFrame]

    @property
    def num_seeds(self) -> int:
        """Training seeds."""
        return len(self.frames)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all seeds together."""
        return sum(len(frame) for frame in self.frames.values())

    @property
    def run_ids(self) -> list[str]:
        """Ids of the runs, by seed."""
        return [records.read_run(folder).run_id for folder in self.folders.values()]

    def pooled(self) -> pd.DataFrame:
        """All steps of all seeds."""
        return pd.concat(self.frames.values(), ignore_index=True)


def curves_of(recipe: str, scale: str, *, seeds: int, results: Path | None, progress: bool) -> Curves:
    """The curves of a recipe; arguments and errors as :func:`gpg_repro.tables.runs.recipe_trainings`."""
    folders, origin = recipe_trainings(recipe, scale, seeds=seeds, results=results, progress=progress)
    return Curves(recipe, origin, folders, {seed: records.steps_frame(path) for seed, path in folders.items()})


def ranges(curves: Curves, quantities: Mapping[str, str]) -> pd.DataFrame:
    """Lowest, mean and highest value of metrics over all steps and seeds, unsmoothed.

    Args:
        quantities: column of the steps -> name to show.

    Returns:
        Columns quantity, name, low, mean, high, num_steps, num_seeds.
    """
    pooled = curves.pooled()
    lines = [
        {
            "quantity": column,
            "name": name,
            "low": pooled[column].min(),
            "mean": pooled[column].mean(),
            "high": pooled[column].max(),
            "num_steps": int(pooled[column].notna().sum()),
            "num_seeds": curves.num_seeds,
        }
        for column, name in quantities.items()
    ]
    return pd.DataFrame(lines)


def published_range(figure: str, quantity: str) -> tuple[float, float]:
    """A range the paper's text quotes for a figure.

    Raises:
        UserError: none is quoted.
    """
    quoted = json.loads((published_folder() / "ranges.json").read_text(encoding="utf-8"))["ranges"]
    found = {(r["figure"], r["quantity"]): (r["low"], r["high"]) for r in quoted}
    if (figure, quantity) not in found:
        raise unknown("published range", f"{figure}, {quantity}", (f"{f}, {q}" for f, q in found))
    return found[figure, quantity]


def provenance(*curves: Curves) -> pd.DataFrame:
    """Where the curves come from: recipe, seed, run, base, code, date."""
    lines = []
    for entry in curves:
        for seed, folder in entry.folders.items():
            run = records.read_run(folder)
            lines.append(
                {
                    "recipe": entry.recipe,
                    "seed": seed,
                    "origin": entry.origin,
                    "run": run.run_id,
                    "base": (run.base["weights"] or run.base["revision"] or "")[:12],
                    "code": code_of(run),
                    "finished": run.finished,
                    "steps": run.num_steps,
                }
            )
    return pd.DataFrame(lines).set_index(["recipe", "seed"])


def scale_note(scale: str) -> list[str]:
    """What to say about a miniature."""
    if scale == "paper":
        return []
    return [
        f"Scale {scale}: a model of under 2 M parameters trained on the spot on generated tasks. A miniature of the "
        "method; its curves are not the paper's."
    ]
