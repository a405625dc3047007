"""Figure 3: one problem, the answer of GPG and the answer of GRPO, 1.5B models of Table 3.

The paper shows an AIME24 problem (a rhombus with its corners on a hyperbola, gold 480) that GPG gets right and GRPO
wrong. One such problem says nothing about which model is better, so the picture says how it was chosen and how often
each of the two is right where the other is wrong. The assistant's opening that the paper shows ("Let's solve this step
by step.") is in no released script and is not used here. The problem is found in the runs' own items by its gold and
its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.identity import changed_since
from eval_harness.style import GPG_BLUE, GRPO_GRAY
from gpg_repro.figure_plots import AnswerColumn, answers_figure
from gpg_repro.figures import FigureReport
from gpg_repro.figures.base import scale_note
from gpg_repro.paths import results as default_results
from gpg_repro.tables import get_table
from gpg_repro.tables import runs as table_runs
from gpg_repro.tables.base import RULES, Row, RowRuns
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.layouts import provenance
from gpg_repro.tables.numbers import count_notes
from gpg_repro.viewer.collect import Pair, SideBySide, cells, marks_of, side_by_side, title_of
from gpg_repro.viewer.page import Page, counts_text, facts, write_page

ROWS = ("gpg_rs1", "grpo_rs1")
"""Rows of Table 3: GPG, and GRPO on the same data."""
BENCHMARK, GOLD, WORDS = "aime24", "480", ("hyperbola", "rhombus")
"""The problem that the paper shows, by what it can be known by."""


@dataclass
class Figure3(FigureReport):
    """The figure, and what the viewer needs."""

    both: SideBySide
    """The two runs of the picture."""
    chosen: Pair
    page: Page
    page_path: Path
    counts: dict[int, pd.DataFrame] = field(default_factory=dict)
    """Training seed -> :func:`gpg_repro.viewer.cells`, published rule."""


def build_figure(
    scale: str = "tiny",
    *,
    seeds: int = 0,
    engine: str = "auto",
    results: Path | None = None,
    progress: bool = True,
) -> Figure3:
    """Draw the figure; write ``figure3.{png,svg,md,csv,html}`` and the viewer's page ``figure3_viewer.html``.

    Args:
        seeds: 0 takes the committed records (of scale tiny where this one has none) and trains only where there are
            none at all; n trains and measures n seeds of both rows here. Paper scale takes what is in results/runs.
        engine: for what is measured here.

    Raises:
        UserError: unknown scale; at paper scale, a model that was not measured on AIME24, or no such problem in it.
    """
    table_runs.check_scale(scale, seeds)
    results = results or default_results()
    runs, origin, shown_scale = evaluations(scale, seeds, engine, results, progress)
    common = sorted(set(runs[0].folders) & set(runs[1].folders))
    labels = tuple(entry.row.label_at(shown_scale) for entry in runs)
    sides = {seed: side_by_side(*(e.folders[seed] for e in runs), labels=labels) for seed in common}
    seed, chosen, how = _choose(sides, shown_scale)
    both = sides[seed]
    counts = {number: cells(one.pairs) for number, one in sides.items()}
    text = _text(counts, labels, chosen, how, seed, origin)
    notes = [
        "A single problem shows what answers look like, not which model is better; the counts are of all items.",
        f"Ours: {', '.join(_source(entry) for entry in runs)}; {origin}; first completion of each item.",
        *count_notes(origin, runs, shown_scale),
        *both.notes,
        *(
            []
            if scale == shown_scale
            else [f"There are no records at scale {scale}; those of {shown_scale} are shown."]
        ),
        *(note.replace("curves", "answers") for note in scale_note(shown_scale)),
    ]
    sentence = f"{how} {counts_text(counts[seed].iloc[-1], both.labels)}"
    figure = save_figure(_picture(both, chosen, shown_scale, seed, sentence), "figure3", scale, results)
    page_path = results / "figures" / scale / "figure3_viewer.html"
    title = f"Figure 3, {_kind(shown_scale)}: {labels[0]} beside {labels[1]}, training seed {seed}"
    page = write_page(both, page_path, chosen=chosen, title=title)
    shown = counts_layout(counts, labels)
    long = pd.concat(
        [cells(one.pairs, rule).assign(rule=rule, seed=number) for number, one in sides.items() for rule in RULES]
    ).assign(scale=shown_scale, first_run=labels[0], second_run=labels[1], origin=origin)
    write_report(
        "figure3",
        "Figure 3: one problem, two answers",
        [("How often each is right", shown), ("The problem that is shown", _marks_layout(both, chosen))],
        [*text.split("\n\n"), *notes, *page.left_out],
        scale,
        long,
        results,
        kind="figures",
    )
    return Figure3(
        figure, shown, text, notes, provenance(runs).set_index(["row", "seed"]), both, chosen, page, page_path, counts
    )


# Which runs -----------------------------------------------------------------------------------------------------------


def evaluations(
    scale: str, seeds: int, engine: str, results: Path, progress: bool = True
) -> tuple[list[RowRuns], str, str]:
    """The evaluations of both rows, where they come from, and the scale they are of.

    Raises:
        UserError: paper scale, and a row was not measured.
    """
    table = get_table("3")
    rows = [next(row for row in table.rows if row.key == key) for key in ROWS]
    if scale == "paper":
        return _of_paper(rows, results / "runs"), "measured on this machine", scale
    if seeds == 0:
        for known in dict.fromkeys((scale, "tiny")):
            committed = {
                entry.row.key: entry for entry in table_runs.reference_runs(table, known, table_runs.REFERENCE)
            }
            found = [committed[key] for key in ROWS if key in committed]
            if len(found) == len(ROWS) and set(found[0].folders) & set(found[1].folders):
                return found, "committed records", known
    made = []
    for row in rows:
        folders, trainings = {}, {}
        for seed in range(max(1, seeds)):
            recipe = table_runs.load_recipe(row.recipe, scale=scale, seed=seed)
            folders[seed], trainings[seed] = table_runs.run_row(
                table, row, recipe, recipe, engine=engine, root=results / "runs", progress=progress
            )
        made.append(RowRuns(row, folders, trainings))
    return made, "this run", scale


def _of_paper(rows: Sequence[Row], root: Path) -> list[RowRuns]:
    """Evaluations on AIME24 among the run folders: of a recipe trained here, else of the hub's checkpoint."""
    measured = [
        (folder, run)
        for folder, run in records.find_runs(root)
        if run.kind == "evaluation" and run.status == "finished" and BENCHMARK in run.benchmarks
    ]
    found, missing = [], []
    for row in rows:
        trained = table_runs.finished_trainings(row.recipe, "paper", root)
        folders = {
            seed: folder
            for seed, training in trained.items()
            for folder, run in measured
            if run.run_id == training.name.removeprefix("train-") and not changed_since(run, training / "checkpoint")
        }
        released = [
            folder
            for folder, run in measured
            if run.model.get("name") == row.hub and row.hub_revision in (None, run.model.get("revision"))
        ]
        folders = folders or dict(enumerate(released[-1:]))
        if folders:
            found.append(RowRuns(row, folders, {s: t for s, t in trained.items() if s in folders}))
        else:
            missing.append(f"{row.label}: measure {row.hub}, or train {row.recipe} and evaluate it")
    if missing:
        models = ",".join(row.hub for row in rows)
        raise UserError(
            f"Figure 3 at paper scale shows one {title_of(BENCHMARK)} problem as two models answer it; not both were "
            "measured:\n"
            + "\n".join(f"- {line}" for line in missing)
            + f"\nThe released checkpoints: `make evaluate-released MODEL={models} BENCHMARKS={BENCHMARK}`."
        )
    if not set(found[0].folders) & set(found[1].folders):  # other seeds, or one trained and one released
        found = [RowRuns(e.row, {0: next(iter(e.folders.values()))}, {}) for e in found]
    return found


def _source(entry: RowRuns) -> str:
    trained = f"recipe {entry.row.recipe}"
    return trained if entry.trainings else f"{entry.row.hub} (released checkpoint)" if entry.row.hub else trained


# Which problem --------------------------------------------------------------------------------------------------------


def find_problem(pairs: Sequence[Pair], gold: str = GOLD, words: Sequence[str] = WORDS) -> Pair | None:
    """The AIME24 problem with this gold and all these words, whatever their case; None: it is not there.

    Raises:
        UserError: there are several.
    """
    found = [
        pair
        for pair in pairs
        if pair.benchmark == BENCHMARK
        and pair.item.gold.strip().lstrip("0") == gold
        and all(word in pair.item.prompt.lower() for word in words)
    ]
    if len(found) > 1:
        raise UserError(
            f"{len(found)} {title_of(BENCHMARK)} problems have gold {gold} and the words {', '.join(words)}."
        )
    return found[0] if found else None


def _choose(sides: dict[int, SideBySide], scale: str) -> tuple[int, Pair, str]:
    """Seed, item, and how it was chosen."""
    seed, both = next(iter(sides.items()))
    labels = both.labels
    if scale == "paper":
        chosen = find_problem(both.pairs)
        if chosen is None:
            raise UserError(
                f"the runs have no {title_of(BENCHMARK)} problem with gold {GOLD} and the words {', '.join(WORDS)}; "
                "they were measured on part of the benchmark. Measure it whole (without --limit)."
            )
        return seed, chosen, "The problem that the paper shows, whatever the two models make of it here."
    for number, one in sides.items():
        if (chosen := one.first("first")) is not None:
            return number, chosen, (
                f"Chosen because {labels[0]} is right and {labels[1]} wrong: the first such item in the order of the "
                "records."
            )  # fmt: skip
    chosen = both.first("second") or both.pairs[0]
    return seed, chosen, f"No item has {labels[0]} right and {labels[1]} wrong, so another one is shown."


# What is shown --------------------------------------------------------------------------------------------------------


def _kind(scale: str) -> str:
    return "measured here" if scale == "paper" else f"miniature (scale {scale}), not the paper's models"


def _picture(both: SideBySide, chosen: Pair, scale: str, seed: int, footer: str):
    columns = []
    for label, samples, color in zip(both.labels, chosen.answers, (GPG_BLUE, GRPO_GRAY), strict=True):
        first = samples[0]
        marks = marks_of(first)
        columns.append(
            AnswerColumn(
                label,
                color,
                tuple((f"{mark.rule}: {mark.word}", mark.correct) for mark in marks),
                tuple(facts(first)),
                first.completion if first.completion is not None else f"(no completion: {first.reason})",
            )
        )
    title = f"Figure 3, {_kind(scale)}. {title_of(chosen.benchmark)}, item {chosen.item.item_id}, training seed {seed}"
    return answers_figure(title, chosen.item.prompt, chosen.item.gold, columns, footer)


def counts_layout(counts: dict[int, pd.DataFrame], labels: tuple[str, str]) -> pd.DataFrame:
    """The four cells as people read them, one line per training seed and benchmark."""
    names = {
        "both": "both right",
        "first": f"only {labels[0]}",
        "second": f"only {labels[1]}",
        "neither": "both wrong",
        "num_items": "items",
    }
    frame = pd.concat([one.assign(seed=seed) for seed, one in counts.items()])
    frame["p (sign test)"] = frame["p_value"].map("{:.2g}".format)
    shown = frame.rename(columns={"title": "benchmark", "benchmark": "name", **names})
    return shown[["seed", "benchmark", *names.values(), "p (sign test)"]].set_index(["seed", "benchmark"]).reset_index(
        "benchmark"
    )  # fmt: skip


def _marks_layout(both: SideBySide, chosen: Pair) -> pd.DataFrame:
    """Marks of the chosen item; texts are in the picture and on the viewer's page."""
    lines = []
    for label, samples in zip(both.labels, chosen.answers, strict=True):
        right = sum(marks_of(sample)[0].correct for sample in samples)
        first = samples[0]
        lines.append(
            {
                "run": label,
                **{f"{mark.rule} rule": mark.word for mark in marks_of(first)},
                "end": first.finish_reason or "–",
                "tokens": "–" if first.num_completion_tokens is None else first.num_completion_tokens,
                "right of all completions": f"{right} of {len(samples)}",
            }
        )
    return pd.DataFrame(lines).set_index("run")


def _text(counts, labels, chosen: Pair, how: str, seed: int, origin: str) -> str:
    place = f"{title_of(chosen.benchmark)}, item {chosen.item.item_id}, training seed {seed} ({origin})"
    lines = [f"Shown is {place}. {how}"]
    lines += [f"Seed {number}: {counts_text(frame.iloc[-1], labels)}" for number, frame in counts.items()]
    if len(counts) > 1:
        totals = [frame.iloc[-1] for frame in counts.values()]
        more = sum(line["first"] > line["second"] for line in totals)
        ones, others = (", ".join(str(line[cell]) for line in totals) for cell in ("first", "second"))
        lines.append(
            f"Only {labels[0]} right: {ones} items by seed; only {labels[1]} right: {others}. {labels[0]} has the "
            f"greater number in {more} of {len(totals)} seeds."
        )
    return "\n\n".join(lines)
