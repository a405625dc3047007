"""A table, finished: runs made or found, numbers laid out, files written, figures drawn. What the notebooks call."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eval_harness import records
from gpg_repro import plots
from gpg_repro.paths import results as default_results
from gpg_repro.tables import get_table
from gpg_repro.tables.base import (
    REFERENCE,
    RowRuns,
    Table,
    flat,
    gains,
    layout,
    notes_for,
    provenance,
    reference_runs,
    run_table,
    scores,
    write_table,
)


@dataclass
class Report:
    """Everything a notebook shows about a table. Frames are described where they are made, in ``tables.base``."""

    table: Table
    scale: str
    runs: list[RowRuns]
    reference: list[RowRuns]
    measured: pd.DataFrame
    pooled: pd.DataFrame | None
    """Scores of the committed records, if there are any for this scale."""
    frame: pd.DataFrame
    notes: list[str]
    results: Path

    def figure(self) -> Figure:
        """The averages, published left and ours right; also written to ``results/figures/<scale>/``."""
        return self._saved(plots.table_figure(self.table, self.measured, self.scale, self.pooled), "")

    def training_figure(self) -> Figure | None:
        """Curves of this run's trainings (those of the committed records, if they hold more seeds); None if none."""
        source = max((self.runs, self.reference), key=lambda runs: max((len(r.folders) for r in runs), default=0))
        curves, keys = {}, {}
        for entry in source:
            folders = [training_folder(self.results, folder) for folder in entry.folders.values()]
            frames = [records.steps_frame(folder) for folder in folders if folder is not None]
            if frames:
                curves[entry.row.tiny_label or entry.row.label] = frames
                keys[entry.row.tiny_label or entry.row.label] = entry.row.key
        return self._saved(plots.training_figure(curves, keys), "_training") if curves else None

    def gains(self) -> pd.DataFrame:
        """Paired gains over our own base: committed records where they exist, else this run."""
        return gains(self.table, self.reference or self.runs, self.scale)

    def provenance(self) -> pd.DataFrame:
        """Where each number of this run comes from."""
        return provenance(self.runs)

    def summary(self) -> str:
        """What we see, computed from the numbers above."""
        source = "committed records" if self.reference else "this run"
        frame = self.gains()
        if not len(frame):
            return "No base row was measured, so no gain can be computed."
        lines = [
            f"- **{g.label}**: {g.gain:+.1f} points over our own base [{g.low:+.1f}, {g.high:+.1f}], "
            f"{g.num_items} items, {g.num_seeds} training seed{'s' if g.num_seeds > 1 else ''}"
            for g in frame.itertuples()
        ]
        unsure = [g.label for g in frame.itertuples() if g.low <= 0 <= g.high]
        verdict = f"Not told apart from the base: {', '.join(unsure)}." if unsure else "Every interval excludes zero."
        return f"Paired gains ({source}, scale {self.scale}):\n\n" + "\n".join(lines) + f"\n\n{verdict}"

    def save_reference(self, target: Path = REFERENCE) -> Path:
        """Copy this run's records (not weights, not logs) to where committed records live, replacing the table's."""
        root = target / self.scale / f"table{self.table.number}"
        shutil.rmtree(root, ignore_errors=True)
        for entry in self.runs:
            for seed, folder in entry.folders.items():
                copy = root / f"{entry.row.key}-seed{seed}"
                for part in ("items", "samples"):
                    shutil.copytree(folder / part, copy / part)
                shutil.copy(folder / "run.json", copy)
                training = training_folder(self.results, folder)
                if training is not None:
                    (copy / "training").mkdir()
                    for name in ("run.json", "steps.jsonl"):
                        shutil.copy(training / name, copy / "training")
        return root

    def _saved(self, figure: Figure, suffix: str) -> Figure:
        folder = self.results / "figures" / self.scale
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"table{self.table.number:02d}{suffix}.png", dpi=150)
        return figure


def training_folder(results: Path, evaluation: Path) -> Path | None:
    """The training run behind an evaluation folder: beside it in the committed records, by name among the runs."""
    if (evaluation / "training" / "steps.jsonl").exists():
        return evaluation / "training"
    name = evaluation.name.split("-", 2)[-1]
    folder = results / "runs" / f"train-{name}"
    return folder if (folder / "steps.jsonl").exists() else None


def build_table(
    number: int,
    scale: str = "tiny",
    *,
    seeds: int = 1,
    engine: str = "auto",
    results: Path | None = None,
    data_root: Path | None = None,
    progress: bool = True,
) -> Report:
    """Make what is missing, read everything, write ``table<NN>.md``, ``.csv`` and ``.html``.

    Raises:
        UserError: see :func:`gpg_repro.tables.base.run_table`.
    """
    table, results = get_table(number), results or default_results()
    runs = run_table(table, scale, seeds=seeds, engine=engine, results=results, data_root=data_root, progress=progress)
    reference = reference_runs(table, scale)
    measured = scores(table, runs, scale)
    pooled = scores(table, reference, scale) if reference else None
    frame = layout(table, measured, scale, pooled)
    notes = notes_for(table, scale, runs)
    parts = [flat(table, measured, scale, "this run")]
    if pooled is not None:
        parts.append(flat(table, pooled, scale, "committed records"))
    write_table(table, frame, pd.concat(parts, ignore_index=True), scale, notes, results)
    return Report(table, scale, runs, reference, measured, pooled, frame, notes, results)
