"""A table, finished: runs made or found, numbers laid out, files written, figures drawn. What the notebooks call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from gpg_repro import gallery, plots
from gpg_repro.paths import results as default_results
from gpg_repro.published import published_table
from gpg_repro.tables import get_table
from gpg_repro.tables.base import BASE, RowRuns, Table, published_scores
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.layouts import comparison_layout, flat, layout, provenance
from gpg_repro.tables.numbers import (
    MIN_SEEDS,
    all_pairs,
    bases,
    count_notes,
    differences,
    gains,
    scores,
    training_layout,
    training_summary,
    verdict,
)
from gpg_repro.tables.printed import arithmetic_notes, implied_difference
from gpg_repro.tables.rules import disagreement_layout, disagreements, rule_versions
from gpg_repro.tables.runs import REFERENCE, check_scale, reference_runs, run_table, save_reference
from gpg_repro.tables.settings import engine_note, refusals


@dataclass
class Report:
    """Everything a notebook shows about a table. Frames are described where they are made, in ``tables.numbers``."""

    table: Table
    scale: str
    runs: list[RowRuns]
    """Made or found here; empty when only the committed records are shown."""
    reference: list[RowRuns]
    measured: pd.DataFrame | None
    pooled: pd.DataFrame | None
    """Scores of the committed records, if there are any for this scale."""
    frame: pd.DataFrame
    notes: list[str]
    results: Path
    _differences: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    """By rule; several sections ask for them."""

    @property
    def source(self) -> list[RowRuns]:
        """What differences and curves are taken from: the set with more training seeds, the committed one at a tie."""
        return max((self.reference, self.runs), key=most_seeds)

    @property
    def origin(self) -> str:
        """Name of ``source``."""
        return "committed records" if self.source is self.reference else "this run"

    def figure(self) -> Figure:
        """The headline numbers, published left and ours right; also written to ``results/figures/<scale>/``."""
        return self._saved(plots.table_figure(self.table, self.scale, self.measured, self.pooled), "")

    def columns_figure(self) -> Figure:
        """Column by column, published above and ours below, both rules."""
        frame = self.pooled if self.source is self.reference else self.measured
        return self._saved(plots.columns_figure(self.table, self.scale, frame), "_columns")

    def gallery(self, *rows: str, num: int = 6, data_root: Path | None = None) -> gallery.Gallery:
        """Some items as seen by these rows (first training seed), disagreements of the two rules first.

        Args:
            rows: keys of rows; those that were not measured are left out.
            num: items in all, spread over the table's benchmarks and groups.
            data_root: local copies of the benchmarks, for the images.
        """
        shown = [entry for key in rows for entry in self.source if entry.row.key == key]
        folders = {
            name: {
                entry.row.label_at(self.scale): run.folders[min(run.folders)]
                for entry in shown
                for run in entry.runs
                if name in self.table.measured_on(run.row, self.scale)
            }
            for name in self.table.benchmarks_at(self.scale)
        }
        made = gallery.build(folders, num=num, data_root=data_root, title=f"{self.table.name}, scale {self.scale}")
        made.write(self.results / "figures" / self.scale / f"{self.table.stem}_gallery.html")
        return made

    def differences_figure(self) -> Figure | None:
        """The table's comparisons, published left and ours right; None if nothing can be compared."""
        frame = self.differences()
        if not len(frame):
            return None
        return self._saved(plots.differences_figure(self.table, self.scale, frame, self.origin), "_differences")

    def training_figure(self) -> Figure | None:
        """Curves of the trainings behind ``source``; None if there are none."""
        titles, keys = {c.title: c.title_at(self.scale) for c in self.table.columns_at(self.scale)}, {}
        curves: dict[str | None, dict[str, list[pd.DataFrame]]] = {}
        for entry in self.source:
            for run in entry.runs:
                if run.trainings:
                    label = entry.row.label_at(self.scale)
                    frames = [records.steps_frame(folder) for folder in run.trainings.values()]
                    curves.setdefault(titles.get(run.row.column), {})[label] = frames
                    keys[label] = entry.row.key
        return self._saved(plots.training_figure(curves, keys), "_training") if curves else None

    def gains(self, rule: str = "published") -> pd.DataFrame:
        """Paired gains of every row over our own base."""
        return gains(self.table, self.source, self.scale, rule=rule)

    def differences(self, rule: str = "published") -> pd.DataFrame:
        """Paired differences of the pairs the table is read for."""
        if rule not in self._differences:
            self._differences[rule] = differences(self.table, self.source, self.scale, rule=rule)
        return self._differences[rule].copy()

    def comparisons(self) -> pd.DataFrame:
        """The same as people read it, the published differences beside ours."""
        strict = self.differences("strict") if self.table.both_rules else None
        return comparison_layout(self.table, self.scale, self.differences(), strict)

    def rules(self) -> pd.DataFrame:
        """How often the two rules disagree, row by row, and what the graders noticed."""
        return disagreement_layout(disagreements(self.table, self.source, self.scale))

    def trainings(self) -> pd.DataFrame:
        """What the trainings did: alpha, clipping, draws, cost."""
        return training_layout(training_summary(self.source, self.scale))

    def provenance(self) -> pd.DataFrame:
        """Where each number comes from, this run and the committed records."""
        parts = [("this run", self.runs), ("committed records", self.reference)]
        frames = [provenance(runs).assign(origin=origin) for origin, runs in parts if runs]
        return pd.concat(frames, ignore_index=True).set_index(["origin", "row", "seed"])

    def summary(self) -> str:
        """What we see, computed from the numbers above."""
        parts = [_gains_text(self), _differences_text(self), _rules_text(self), _published_text(self.table)]
        return "\n\n".join(part for part in parts if part)

    def save_reference(self, target: Path = REFERENCE) -> list[Path]:
        """Copy this run's records (not weights, not logs) to the committed ones."""
        return save_reference(self.runs, self.scale, target)

    def _saved(self, figure: Figure, suffix: str) -> Figure:
        return save_figure(figure, f"{self.table.stem}{suffix}", self.scale, self.results)


def build_table(
    name: int | str,
    scale: str = "tiny",
    *,
    seeds: int = 0,
    engine: str = "auto",
    results: Path | None = None,
    data_root: Path | None = None,
    reference: Path = REFERENCE,
    progress: bool = True,
) -> Report:
    """Make what is missing, read everything, write ``<stem>.md``, ``.csv`` and ``.html``.

    Args:
        name: a name of ``gpg_repro.tables.TABLES``.
        seeds: 0 shows the committed records, and trains one seed only at a scale that has none; n trains n seeds here
            and shows them beside the committed records.

    Raises:
        UserError: see :func:`gpg_repro.tables.runs.run_table`.
    """
    check_scale(scale, seeds)
    table, results = get_table(name), results or default_results()
    committed = reference_runs(table, scale, reference)
    trained = [entry for entry in committed if entry.row.trained]
    runs = []
    if seeds or not trained:
        runs = run_table(
            table, scale, seeds=max(1, seeds), engine=engine, results=results, data_root=data_root, progress=progress
        )
    elif progress:
        print(
            f"{table.name}, scale {scale}: showing the committed records of {len(trained)} trained rows "
            f"(SEEDS=n trains n seeds here)."
        )
    committed = committed if trained else []
    measured = scores(table, runs, scale) if runs else None
    pooled = scores(table, committed, scale) if committed else None
    report = Report(
        table,
        scale,
        runs,
        committed,
        measured,
        pooled,
        layout(table, scale, measured, pooled),
        notes_for(table, scale, runs, committed),
        results,
    )
    named = (("this run", measured), ("committed records", pooled))
    long = pd.concat([flat(table, part, scale, origin) for origin, part in named if part is not None])
    sections = [(None, report.frame)]
    if len(report.differences()):
        sections.append((f"Comparisons ({report.origin})", report.comparisons()))
    if table.both_rules and report.source:
        sections.append((f"The two rules ({report.origin})", report.rules()))
    if any(run.trainings for entry in report.source for run in entry.runs):
        sections.append((f"Trainings ({report.origin})", report.trainings()))
    write_report(table.stem, table.heading, sections, report.notes, scale, long, results)
    return report


def notes_for(table: Table, scale: str, runs: Sequence[RowRuns], committed: Sequence[RowRuns] = ()) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = []
    if table.published:
        notes += _published_notes(table)
    elif not len(published_scores(table)):
        notes.append("The paper prints no numbers for this table; it is ours.")
    if scale != "paper":
        notes.append(
            f"Scale {scale}: models of under 2 M parameters trained on the spot on generated tasks. A miniature of the "
            "method, not a reproduction of the paper's scores; its columns share nothing with the benchmarks."
        )
    notes.append("Ours: percent [95 % interval over items]; n = training seeds × items.")
    notes += _rule_notes(table, scale)
    notes.append(
        "Differences are paired on items; the first interval covers items only, the second (Student's t, from "
        f"{MIN_SEEDS} seeds on) training seeds. Two rows count as told apart when every interval given excludes zero; "
        "no correction is made for reading several pairs."
    )
    notes += [f"{row.label}: {row.note}." for row in table.rows_at(scale) if row.note]
    if table.published:
        notes += [f"Arithmetic of the paper's own numbers. {note}" for note in arithmetic_notes(table)]
    for origin, entries in (("this run", runs), ("committed records", committed)):
        notes += count_notes(origin, entries, scale) + rule_versions(origin, entries) + _base_notes(origin, entries)
        notes += refusals(table, entries, scale) + engine_note(entries)
    if scale == "paper":
        notes += _sample_notes(runs)
        found = {part.row.recipe for entry in runs for part in entry.runs}
        notes += [
            f"{part.label}: not measured; no checkpoint was published, train it with `make train RECIPE={part.recipe} "
            "SCALE=paper`."
            for row in table.rows
            for part in table.parts(row)
            if part.recipe and part.paper_recipe and not part.hub and part.recipe not in found
        ]
        notes += [
            f"{row.label}: not measured; the paper copied the row from another report whose settings are not stated, "
            "so there is no recipe at paper scale."
            for row in table.rows
            if not row.paper_recipe
        ]
    elif not runs:
        absent = {row.key for row in table.rows_at(scale)} - {entry.row.key for entry in committed}
        notes += [f"{row.label}: no committed record yet." for row in table.rows_at(scale) if row.key in absent]
    return notes


def _sample_notes(runs: Sequence[RowRuns]) -> list[str]:
    """Says where scores are means over several samples."""
    drawn = {
        name: result.decoding.samples
        for entry in (run for row in runs for run in row.runs)
        for folder in entry.folders.values()
        for name, result in records.read_run(folder).benchmarks.items()
        if result.decoding.samples > 1
    }
    named = ", ".join(f"{count} on {get_benchmark(name).title}" for name, count in drawn.items())
    return (
        [
            f"Measured scores of sampled decoding are means over several samples per item ({named}); the run's record "
            "holds that of a single one beside it. Greedy decoding has one."
        ]
        if drawn
        else []
    )


def _published_notes(table: Table) -> list[str]:
    notes = [f"Published numbers: {table.published} of arXiv 2504.02546v3, in percent, one sample per problem."]
    strangers = [row for row in table.rows if row.published and row.published_source != "paper-v3"]
    if all(row.published not in published_table(table.published).index for row in strangers) and strangers:
        notes.append("Rows marked README stand in the authors' README only.")
    elif table.several_sources:
        notes.append(
            "Rows marked README: the same table in the authors' README (the poster has its numbers too). The sources "
            "print different GPG numbers because two methods stand behind them, so each has a row of its own."
        )
    for column in filter(table.mixes_items, table.printed_columns):
        notes.append(
            f"{column.title}: printed numbers are of different sets; behind each stands how many problems its set has. "
            "Numbers of different sets, and Averages that hold them, are not compared."
        )
    if all(column.is_count for column in table.printed_columns):
        notes.append(
            f"Implied 95 %: what the item counts alone imply for a published {table.headline}; training seeds are not "
            "in it."
        )
    return notes


def _rule_notes(table: Table, scale: str) -> list[str]:
    if not table.both_rules:
        return ["Strict rule: a careful reader's; a column of its own where the graders mark by it as well."]
    notes = [
        "Published rule: what produced the paper's number, quirks and all. Strict rule: what a careful reader would "
        "call correct (docs/graders.md). Both mark the same completions.",
    ]
    strata = get_benchmark(table.benchmarks_at(scale)[0]).strict_strata
    if table.summary == "total" and strata:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in strata.items())
        notes.append(
            f"Total, published rule: every item weighs the same. Strict rule: the benchmark's own ({weights})."
        )
    return notes


def _base_notes(origin: str, entries: Sequence[RowRuns]) -> list[str]:
    """Says which rows did not start from the base that the base row shows."""
    own = next((bases(entry) for entry in entries if entry.row.key == BASE), set())
    trained = [entry for entry in entries if entry.row.trained and bases(entry)]
    strangers = [entry.row.label for entry in trained if own and bases(entry) != own]
    if not strangers:
        return []
    return [
        f"{', '.join(strangers)} ({origin}): trained from another base than the base row shows (a base made on the "
        "spot differs between machines); rows of different bases are not compared."
    ]


def most_seeds(runs: Sequence[RowRuns]) -> int:
    """Training seeds of the row that has most."""
    return max((len(entry.seeds) for entry in runs), default=0)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _gains_text(report: Report) -> str:
    frame = report.gains()
    strict = report.gains("strict") if report.table.both_rules else None
    if not len(frame):
        return "The base these rows started from was not measured, so no gain over it can be computed."
    lines = [
        f"- **{g.label}**: {g.difference:+.1f} points over our own base{' under its settings' if g.as_row else ''} "
        f"[{g.low:+.1f}, {g.high:+.1f}], "
        f"{g.num_items} items, {_plural(g.num_seeds, 'training seed')}{_seed_text(g)}{_strict_text(g, strict)}"
        for g in frame.itertuples()
    ]
    unsure = [g.label for g in frame.itertuples() if not g.apart]
    verdict = (
        f"Not told apart from the base: {', '.join(unsure)}." if unsure else "Every row is told apart from the base."
    )
    number = "" if report.table.summary == "average" else f" in {report.table.headline_title(report.scale)}"
    head = f"Paired gains{number} ({report.origin}, scale {report.scale}). {_bases_text(report)}"
    return f"{head}\n\n" + "\n".join(lines) + f"\n\n{verdict}"


def _bases_text(report: Report) -> str:
    """What the gains are over: our own base, again under other settings where a row has them, the published one beside.

    At paper scale only does the published number stand there: a miniature has none.
    """
    table, scale = report.table, report.scale
    rows = [next(entry for entry in report.source if entry.row.key == BASE)]
    rows += [entry.base for entry in report.source if entry.base is not None]
    names = ["", *(f" under the settings of {e.row.label_at(scale)}" for e in report.source if e.base is not None)]
    texts = []
    for entry, name in zip(rows, names, strict=True):
        frame = scores(table, [entry], scale)
        cell = frame[(frame["rule"] == "published") & (frame["column"] == table.headline_at(scale))]
        for line in cell.itertuples():
            texts.append(f"{100 * line.mean:.1f} [{100 * line.low:.1f}, {100 * line.high:.1f}]{name}")
    text = f"Our own base: {', '.join(texts)}" if texts else "Our own base has no such number"
    published = published_scores(table)
    if scale == "paper" and BASE in published.index and pd.notna(published.loc[BASE, table.headline]):
        digits = table.columns[0].digits
        text += f"; published: {published.loc[BASE, table.headline]:.{digits}f} (beside, never subtracted)"
    return text + "."


def _seed_text(cell) -> str:
    if cell.num_seeds == 1:
        return ""
    text = f"; single seeds {cell.seed_min:+.1f} … {cell.seed_max:+.1f}"
    low = cell.seeds_low
    return text if low is None or pd.isna(low) else f"{text}, over seeds [{low:+.1f}, {cell.seeds_high:+.1f}]"


def _strict_text(cell, strict: pd.DataFrame | None) -> str:
    """The same difference under the strict rule, where it was asked for."""
    if strict is None or not len(strict):
        return ""
    found = strict[(strict["row"] == cell.row) & (strict["against"] == cell.against)]
    if not len(found):
        return ""
    line = found.iloc[0]
    return f" (strict rule {line['difference']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}])"


def _differences_text(report: Report) -> str:
    frame = report.differences()
    strict = report.differences("strict") if report.table.both_rules else None
    if not len(frame):
        return ""
    lines = [
        f"- **{d.label} − {d.against_label}**: {d.difference:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"
        f"{_seed_text(d)}: {verdict(d.apart, d.num_seeds)}{_strict_text(d, strict)}."
        for d in frame.itertuples()
    ]
    trained = [entry for entry in report.source if entry.row.key != BASE]
    pairs = all_pairs(report.table, trained, report.scale)
    count = (
        f"Of all {len(pairs)} pairs of trained rows, {int(pairs['apart'].sum())} are told apart (no correction for the "
        "number of pairs)."
        if len(pairs)
        else ""
    )
    return "Pairs of rows:\n\n" + "\n".join(lines) + f"\n\n{count}"


def _rules_text(report: Report) -> str:
    """How often the rules part, row by row, in one sentence each."""
    if not report.table.both_rules:
        return ""
    frame = disagreements(report.table, report.source, report.scale)
    counts = frame.groupby("row", sort=False)[["num_samples", "kinder", "harsher"]].sum()
    labels = {entry.row.key: entry.row.label_at(report.scale) for entry in report.source}
    lines = [
        f"- **{labels[line.Index]}**: the published rule is kinder to {line.kinder} and harsher to {line.harsher} of "
        f"{line.num_samples} answers"
        for line in counts.itertuples()
    ]
    return "The two rules:\n\n" + "\n".join(lines) if lines else ""


def _published_text(table: Table) -> str:
    published = published_scores(table)
    pairs = [(a, b) for a, b in table.comparisons if len(published) and {a, b} <= set(published.index)]
    found = [implied_difference(table, published.loc[mine], published.loc[other]) for mine, other in pairs]
    if not found or any(low is None for _, low, _ in found):
        return ""
    inside = sum(low <= 0 <= high for _, low, high in found)
    return (
        f"Of the {len(pairs)} published differences of {table.headline} among these pairs, {inside} lie inside the "
        "95 % interval that the item counts alone imply (unpaired, one sample per problem)."
    )
