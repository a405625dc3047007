"""Controls: does a score hang on the prompt, and is a gain there on new questions? Notebook 06, docs/controls.md.

At smoke and tiny scale both are answered in miniature: a tiny base and one model trained from it. At paper scale the
models are those of the hub, or checkpoints of one's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from eval_harness import records, released
from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import get_checkpoint, load_checkpoints
from eval_harness.contamination import (
    REAL_SETS,
    ExcessDrop,
    as_rows,
    compare_drops,
    excess_drop,
    points,
    read_marks,
)
from eval_harness.engines import EngineError, resolve_engine
from eval_harness.engines.shared import SharedEngine
from eval_harness.errors import UserError
from eval_harness.markup import markdown_table
from eval_harness.models import check_model, offline_if_unreachable
from eval_harness.records import Item
from eval_harness.released import Job
from eval_harness.runner import Overrides, evaluate, parse_samples
from eval_harness.sensitivity import AVERAGE, Sensitivity, measure, rows
from eval_harness.sources import default_data_root
from eval_harness.stats import holm, mean_of_differences, mean_of_estimates, mean_of_items
from gpg_repro import control_plots
from gpg_repro.committed import refuse_work
from gpg_repro.paths import results as default_results
from gpg_repro.prompts import SYSTEM_PROMPTS, TRAINED_WITH
from gpg_repro.recipe import Recipe, load_recipe
from gpg_repro.tables.base import TINY_SUITES
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.runs import check_scale

PROMPTS = {name: SYSTEM_PROMPTS[name] for name in TRAINED_WITH}
"""The system prompts the recipes trained with: GPG-RS1's, the 7B ablations', and the boxed one of one 7B recipe."""
RECIPE = "table3_gpg_rs1"
"""What the trained model of the miniature is trained by."""
FRESH_SEED = 1
"""Seed of the miniature's fresh sets; the held-out ones have 0."""
NEW_SETS = ("aime25", "fresh_math")
KINDS = {"seen": "seen in training", "held_out": "held out", "fresh": "drawn afresh"}
_ITEMS = {"smoke": 10, "tiny": None}
_SMOKE_TOKENS = 24


# --- Prompt sensitivity -----------------------------------------------------------------------------------------------


@dataclass
class SensitivityReport:
    """Prompt sensitivity of one or more models."""

    frame: pd.DataFrame
    """One line per model, benchmark and setting: :func:`eval_harness.sensitivity.rows`, with ``model``."""
    table: pd.DataFrame
    """The same as people read it."""
    figure: Figure
    text: str
    notes: list[str]


def sensitivity_report(
    found: Mapping[str, Sensitivity], scale: str, results: Path | None = None, stem: str = "sensitivity"
) -> SensitivityReport:
    """Lay out measured grids; writes ``<stem>.{md,csv,html}`` and the figure.

    Args:
        found: name for people -> its runs.
    """
    frame = pd.concat([pd.DataFrame(rows(one)).assign(model=name) for name, one in found.items()], ignore_index=True)
    shown = [_headline(one) for one in found.values()][0]
    table = pd.concat({name: _sensitivity_layout(part) for name, part in frame.groupby("model", sort=False)})
    table.index.names = ["model", "setting"]
    miniature = "" if scale == "paper" else f" (miniature, scale {scale})"
    notes = [
        "Percent [95 % over items]. Differences: percentage points against the first setting of the model, paired on "
        "the items (the same items, seeds and samples).",
        "p: permutation test of the paired differences; Holm: adjusted for reading all settings of one column. A "
        "setting counts as different where the adjusted p is below 0.05.",
        "No template: system prompt and question as plain text, with a blank line between.",
        *(f"System prompt `{name}`: {text!r}" for name, text in PROMPTS.items() if (frame["system"] == name).any()),
    ]
    if scale != "paper":
        notes.insert(
            0,
            f"Scale {scale}: models of under 2 M parameters that read single characters and never saw a system prompt. "
            "What breaks them says nothing about the paper's models.",
        )
    title = f"Prompt sensitivity{miniature}"
    write_report(stem, title, [(None, table)], notes, scale, frame, results)
    figure = control_plots.sensitivity_figure(frame[frame["benchmark"] == shown], _title(shown), title)
    save_figure(figure, stem, scale, results)
    return SensitivityReport(frame, table, figure, _sensitivity_text(frame, shown), notes)


def _headline(found: Sensitivity) -> str:
    return AVERAGE if len(found.benchmarks) > 1 else found.benchmarks[0]


def _title(benchmark: str) -> str:
    return "Average" if benchmark == AVERAGE else get_benchmark(benchmark).title


def _sensitivity_layout(frame: pd.DataFrame) -> pd.DataFrame:
    """One model: settings down, benchmarks across; the headline with its difference."""
    last = frame["benchmark"].iloc[-1]
    lines: dict[str, dict[str, str]] = {}
    for line in frame.itertuples():
        cells = lines.setdefault(line.setting, {})
        cells[_title(line.benchmark)] = f"{100 * line.mean:.1f} [{100 * line.low:.1f}, {100 * line.high:.1f}]"
        if line.benchmark != last:
            continue
        shown = points(line.difference, line.difference_low, line.difference_high) if not line.is_default else "–"
        cells["difference"] = shown
        cells["p (Holm)"] = "–" if line.is_default else _p_text(line.p_value, line.p_holm)
        cells["n"] = f"{line.num_items} × {line.num_samples // line.num_items}"
        cells["failed / cut / no answer"] = f"{line.failed} / {line.truncated} / {line.no_answer}"
    return pd.DataFrame(lines).T


def _p_text(p_value: float, adjusted: float) -> str:
    return "–" if pd.isna(p_value) else f"{p_value:.3f} ({adjusted:.3f})"


def _sensitivity_text(frame: pd.DataFrame, shown: str) -> str:
    """What we see, one sentence per model."""
    sentences = []
    for model, part in frame[frame["benchmark"] == shown].groupby("model", sort=False):
        others = part[~part["is_default"]]
        if not len(others):
            continue
        worst = others.loc[others["difference"].abs().idxmax()]
        apart = int((others["p_holm"] < 0.05).sum())
        sentences.append(
            f"- **{model}**: {apart} of {len(others)} other settings differ from the default "
            f"({part['setting'].iloc[0]}) in {_title(shown)}; the largest difference is "
            f"{100 * worst['difference']:+.1f} points [{100 * worst['difference_low']:+.1f}, "
            f"{100 * worst['difference_high']:+.1f}] ({worst['setting']}), "
            f"{worst['num_items']} items."
        )
    return "\n".join(sentences)


# --- Contamination ----------------------------------------------------------------------------------------------------


@dataclass
class ContaminationReport:
    """Whether a model gains more over its base on old questions than on new ones."""

    drops: list[ExcessDrop]
    frame: pd.DataFrame
    """One line per comparison, fractions."""
    table: pd.DataFrame
    overlap: pd.DataFrame | None
    """Miniature: which share of each set's questions occurs in what the models were trained on, counted."""
    scores: pd.DataFrame | None
    """Miniature: scores by kind of question."""
    figure: Figure
    text: str
    notes: list[str]


def training_questions(recipe: Recipe) -> dict[str, set[str]]:
    """The questions a tiny model was trained on, exactly: ``warm-up`` of its base, ``training`` by the recipe.

    Training draws its prompts from these rows; a short one need not come to all of them.

    Raises:
        UserError: the recipe is none of the tiny text world.
    """
    from gpg_repro.tiny import TRAIN_MIXTURES, train_rows
    from gpg_repro.tiny.warmup import SCALES, SUITES, mixture

    setup = recipe.setup
    if setup.dataset not in TRAIN_MIXTURES or setup.base not in SCALES:
        raise UserError(f"recipe {recipe.name} at scale {recipe.scale} does not train on generated text questions.")
    # as gpg_repro.tiny.warmup makes its corpus, from the base's seed 0
    corpus = mixture(dict.fromkeys(SUITES, 1), "train", SCALES[setup.base].num_demonstrations, 0)
    trained_on = train_rows(setup.dataset, setup.num_prompts, recipe.seed)
    return {
        "warm-up": {problem.question for problem in corpus},
        "training": {row["prompt"][0]["content"] for row in trained_on},
    }


def tiny_sets(suites: Sequence[str] = TINY_SUITES) -> dict[str, tuple[str, ...]]:
    """Kind of question -> its benchmarks, suite by suite."""
    ends = {"seen": "_train", "held_out": "", "fresh": f"_seed{FRESH_SEED}"}
    return {kind: tuple(suite + end for suite in suites) for kind, end in ends.items()}


def overlap_of(sets: Mapping[str, Sequence[str]], streams: Mapping[str, set[str]]) -> pd.DataFrame:
    """Share of each kind's questions that occur, word for word, in each stream and among the held-out questions.

    Returns:
        One line per kind: ``items``, and one column of shares per stream and for ``held out``.
    """
    questions = {kind: [item.prompt for name in names for item in get_benchmark(name).load()]
                 for kind, names in sets.items()}  # fmt: skip
    streams = {**streams, "held out": set(questions["held_out"])}
    lines = {
        KINDS[kind]: {"items": len(asked), **{n: sum(q in s for q in asked) / len(asked) for n, s in streams.items()}}
        for kind, asked in questions.items()
    }
    return pd.DataFrame(lines).T.astype({"items": int})


def tiny_contamination(
    model: Path, base: Path, recipe: Recipe, scale: str, results: Path | None = None
) -> ContaminationReport:
    """The check in miniature, from two finished runs on all of :func:`tiny_sets`; writes ``contamination.*``.

    ``seen`` are those items of the train-split sets that the recipe's training set holds, ``fresh`` those of the fresh
    sets that are not held-out items by chance: both are looked up, not assumed.

    Raises:
        UserError: a run lacks a set, or the two differ in settings.
    """
    sets, streams = tiny_sets(), training_questions(recipe)
    compare_drops(model, base, [("+".join(sets["held_out"]), "+".join(sets["fresh"]))])  # same settings, or an error
    held_out = _prompts(base, sets["held_out"])
    keep = {
        "seen": lambda prompt: prompt in streams["training"],
        "held_out": lambda prompt: True,
        "fresh": lambda prompt: prompt not in held_out,
    }
    marks = {
        kind: {name: tuple(_marks(run, name, keep[kind]) for run in (model, base)) for name in names}
        for kind, names in sets.items()
    }
    drops = []
    for old, new in (("seen", "held_out"), ("held_out", "fresh")):
        drop = excess_drop(marks[old], marks[new])
        drops.append(replace(drop, old=KINDS[old], new=KINDS[new]))
    scores = _scores_by_kind(marks)
    notes = [
        f"Scale {scale}: models of under 2 M parameters on generated questions. A miniature of the check; nothing here "
        "stands for a benchmark.",
        "Seen: questions of the train split that the training set holds; held out: the suites' test sets; drawn "
        f"afresh: test-split questions of another seed ({FRESH_SEED}), less those among the held-out ones. All "
        "three have the same generators and levels.",
        *_shared_notes(),
    ]
    return _contamination_report(drops, scale, results, notes, overlap_of(sets, streams), scores)


def contamination(
    model: Path, base: Path, scale: str = "paper", results: Path | None = None, rule: str = "published"
) -> ContaminationReport:
    """The check at full size, from two finished runs; writes ``contamination.*``.

    Raises:
        UserError: see :func:`eval_harness.contamination.compare_drops`.
    """
    names = [get_benchmark(name) for name in records.read_run(model).benchmarks]
    notes = [
        "Old sets may have been seen in pretraining; base and trained model share that. What is tested is whether the "
        "training added to it.",
        *(f"{b.title}: {b.source.describe()}." for b in names if b.name.startswith(NEW_SETS)),
        *_shared_notes(),
    ]
    return _contamination_report(compare_drops(model, base, rule=rule), scale, results, notes)


def _shared_notes() -> list[str]:
    return [
        "Excess drop: (old − new of the model) − (old − new of the base), percentage points, which is the gain over "
        "the base on the old set less that on the new one. A raw drop would measure how much harder one set is.",
        "Intervals: 95 %, Student's t, paired on the items within each set; they cover items, not training seeds. "
        "Holm: p adjusted for reading all lines.",
    ]


def _contamination_report(
    drops: list[ExcessDrop],
    scale: str,
    results: Path | None,
    notes: list[str],
    overlap: pd.DataFrame | None = None,
    scores: pd.DataFrame | None = None,
) -> ContaminationReport:
    frame = pd.DataFrame(as_rows(drops))
    table = _drops_layout(drops)
    title = "Old questions and new ones" + ("" if scale == "paper" else f" (miniature, scale {scale})")
    sections = [(None, table)]
    if overlap is not None:
        sections.append(("Share of questions that occur in …", _overlap_layout(overlap)))
        sections.append(("Scores by kind of question", _scores_layout(scores)))
    write_report("contamination", title, sections, notes, scale, frame, results)
    figure = control_plots.contamination_figure(table.index.tolist(), frame, title)
    save_figure(figure, "contamination", scale, results)
    text = "\n".join(
        f"- **{name}**: gain over the base {100 * d.gain_old:+.1f} on the old, {100 * d.gain_new:+.1f} on the new; "
        f"excess {100 * d.excess:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}]: {d.reading}."
        for name, d in zip(table.index, drops, strict=True)
    )
    return ContaminationReport(drops, frame, table, overlap, scores, figure, text, notes)


def _name(sets: str) -> str:
    """A side of a comparison for people: kinds of the miniature are names already."""
    if sets in KINDS.values():
        return sets
    names = [get_benchmark(name).title for name in sets.split("+")]
    return names[0] if len(names) == 1 else f"mean of {len(names)} sets"


def _drops_layout(drops: Sequence[ExcessDrop]) -> pd.DataFrame:
    adjusted = holm([drop.p_value for drop in drops])
    lines = {
        f"{_name(d.old)} → {_name(d.new)}": {
            "items": f"{d.num_items_old} / {d.num_items_new}",
            "model's drop": f"{100 * d.drop:+.1f}",
            "base's drop": f"{100 * d.base_drop:+.1f}",
            "gain on old [95 %]": points(d.gain_old, d.gain_old_low, d.gain_old_high),
            "gain on new [95 %]": points(d.gain_new, d.gain_new_low, d.gain_new_high),
            "excess drop [95 %]": points(d.excess, d.low, d.high),
            "p (Holm)": _p_text(d.p_value, p),
            "reading": d.reading,
        }
        for d, p in zip(drops, adjusted, strict=True)
    }
    return pd.DataFrame(lines).T.rename_axis("old → new")


def _overlap_layout(overlap: pd.DataFrame) -> pd.DataFrame:
    shown = {name: [f"{100 * value:.1f} %" for value in overlap[name]] for name in overlap.columns[1:]}
    return pd.DataFrame({"items": overlap["items"].astype(str), **shown}, index=overlap.index).rename_axis("questions")


def _prompts(run: Path, names: Sequence[str]) -> set[str]:
    return {item.prompt for name in names for item in records.read_lines(run / "items" / f"{name}.jsonl", Item)}


def _marks(run: Path, name: str, keep: Any) -> list[list[float]]:
    """Marks of the items whose question is kept."""
    items = {item.item_id: item.prompt for item in records.read_lines(run / "items" / f"{name}.jsonl", Item)}
    return [marks for item_id, marks in read_marks(run, name).items() if keep(items[item_id])]


def _scores_by_kind(marks: Mapping[str, Mapping[str, tuple]]) -> pd.DataFrame:
    """Mean over the suites by kind, of model and base, and seen less held out: unpaired, the sets have other items."""
    lines = []
    for index, model in enumerate(("trained", "base")):
        parts = {kind: [of[index] for of in suites.values()] for kind, suites in marks.items()}
        for kind, suites in parts.items():
            estimate = mean_of_estimates([mean_of_items(suite) for suite in suites])
            lines.append({"model": model, "questions": KINDS[kind], **estimate.as_dict()})
        sides = [[[sum(m) / len(m) for m in suite] for suite in parts[kind]] for kind in ("seen", "held_out")]
        weights = [sign / len(side) for side, sign in zip(sides, (1, -1), strict=True) for _ in side]
        gap = mean_of_differences([*sides[0], *sides[1]], weights=weights, permute=False)
        lines.append(
            {
                "model": model,
                "questions": f"{KINDS['seen']} − {KINDS['held_out']}",
                "mean": gap.difference,
                "se": gap.se,
                "low": gap.low,
                "high": gap.high,
                "num_items": gap.num_items,
            }
        )
    return pd.DataFrame(lines)


def _scores_layout(scores: pd.DataFrame) -> pd.DataFrame:
    cells = {}
    for line in scores.itertuples():
        sign = "+" if "−" in line.questions else ""
        values = [format(100 * value, f"{sign}.1f") for value in (line.mean, line.low, line.high)]
        text = f"{values[0]} [{values[1]}, {values[2]}]"
        cells.setdefault(line.questions, {"items": f"{line.num_items:.0f}"})[line.model] = text
    return pd.DataFrame(cells).T.rename_axis("questions")


# --- Both, for the notebook -------------------------------------------------------------------------------------------


@dataclass
class ControlsReport:
    """What notebook 06 shows."""

    sensitivity: SensitivityReport
    contamination: ContaminationReport


def build_controls(
    scale: str = "tiny",
    *,
    model: str | None = None,
    base: str | None = None,
    engine: str = "auto",
    results: Path | None = None,
    data_root: Path | None = None,
    samples: int | str = "auto",
    progress: bool = True,
) -> ControlsReport:
    """Measure a base and a model trained from it under every prompt setting, and on old and new questions.

    Args:
        scale: ``smoke`` and ``tiny`` make both models here; ``paper`` takes them from the hub.
        model, base: hub ids of the registry at paper scale (default GPG-RS1 and what it was trained from).
        samples: completions per item where decoding is not greedy, at paper scale.

    Raises:
        UserError: an unknown scale or model; at paper scale everything that is missing, before any work.
    """
    check_scale(scale, 0)
    results = results or default_results()
    if scale == "paper":
        return _full_size(model, base, engine, results, data_root, samples, progress)
    if model or base:
        raise UserError(f"MODEL and BASE are of paper scale; scale {scale} makes its own models.")
    root = results / "runs"
    recipe = load_recipe(RECIPE, scale=scale, seed=0)
    refuse_work(f"the training {recipe.name} at scale {recipe.scale}")  # as train does, before seconds of imports
    from gpg_repro.train import base_model, train

    trained = train(recipe, root=root, progress=progress)
    paths = {"base": base_model(recipe, progress), "trained": str(trained / "checkpoint")}
    names = {"base": f"tiny base ({scale})", "trained": f"{recipe.title.split(',')[0]}, {scale}"}
    engine = "transformers" if scale == "smoke" and engine == "auto" else resolve_engine(engine)
    options = {"engine": engine, "limit": _ITEMS[scale], "progress": progress}
    if scale == "smoke":
        options["overrides"] = Overrides(max_new_tokens=_SMOKE_TOKENS)
    grids, runs, sets = {}, {}, [name for of in tiny_sets().values() for name in of]
    for kind, path in paths.items():
        label = f"controls-{kind}-{scale}-{check_model(path, None)['weights'][:8]}"
        with SharedEngine() as shared:
            run = evaluate(path, sets, out=root / f"eval-{label}-{engine}", label=label, shared=shared, **options)
            out = root / f"sensitivity-{label}-{engine}"
            grids[names[kind]] = measure(path, TINY_SUITES, PROMPTS, out=out, shared=shared, **options)
        runs[kind] = run
    return ControlsReport(
        sensitivity_report(grids, scale, results),
        tiny_contamination(runs["trained"], runs["base"], recipe, scale, results),
    )


def _full_size(
    model: str | None,
    base: str | None,
    engine: str,
    results: Path,
    data_root: Path | None,
    samples: int | str,
    progress: bool,
) -> ControlsReport:
    trained = Job(get_checkpoint(model or "GD-ML/Open-RS1"))
    base = base or trained.checkpoint.base
    if base is None:
        raise UserError(f"the registry does not say what {trained.checkpoint.id} was trained from; give BASE.")
    start = Job(get_checkpoint(base)).measured_as(trained)
    if start.obstacle:
        raise UserError(f"{start.obstacle}: the base cannot be measured under the settings of {trained.title}.")
    data_root = data_root or default_data_root()
    offline_if_unreachable()
    lacking = released.missing([trained, start], [*REAL_SETS, *NEW_SETS], data_root)
    if lacking:
        listed = "\n".join(f"- {line}" for line in lacking)
        raise UserError(f"{len(lacking)} things are missing, nothing was started:\n{listed}")
    engine, root, grids, runs = resolve_engine(engine), results / "runs", {}, {}
    options = {"engine": engine, "data_root": data_root, "progress": progress}
    for job in (start, trained):
        with SharedEngine() as shared:
            sets = [*REAL_SETS, *NEW_SETS]
            runs[job] = released.evaluate_job(job, sets, root=root, samples=samples, shared=shared, **options)
            grids[job.title] = measure(
                job.checkpoint.id,
                REAL_SETS,
                PROMPTS,
                out=root / f"sensitivity-{job.label}-{engine}",
                overrides=Overrides(samples=samples),
                shared=shared,
                **settings_of(job),
                **options,
            )
    return ControlsReport(
        sensitivity_report(grids, "paper", results), contamination(runs[trained], runs[start], "paper", results)
    )


def settings_of(job: Job) -> dict[str, Any]:
    """How ``evaluate`` measures a checkpoint of the registry, but for the chat template, which is varied."""
    settings = job.settings
    return {
        "revision": job.checkpoint.revision,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "decoding": settings.decoding,
    }


# --- Command ----------------------------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> int:
    """``python -m gpg_repro sensitivity``: measure a model under every prompt setting; 1 if the engine died."""
    known = load_checkpoints().get(args.model)
    options = settings_of(Job(known)) if known else {}
    given = {"dtype": args.dtype, "max_model_len": args.max_model_len, "base_url": args.base_url}
    options |= {name: value for name, value in given.items() if value is not None}
    try:
        found = measure(
            args.model,
            [name.strip() for name in args.benchmarks.split(",") if name.strip()],
            PROMPTS,
            only=[name.strip() for name in args.system.split(",") if name.strip()],
            out=args.out,
            engine=args.engine,
            limit=args.limit,
            data_root=args.data_root,
            overrides=Overrides(
                samples=None if args.samples is None else parse_samples(args.samples),
                temperature=args.temperature,
                max_new_tokens=args.max_new_tokens,
            ),
            **options,
        )
    except EngineError as error:
        print(f"error: {error}\nFinished records were kept; the same command resumes.", file=sys.stderr)
        return 1
    scale = "tiny" if all(name.startswith("tiny_") for name in found.benchmarks) else "paper"
    stem = f"sensitivity-{found.model}"
    report = sensitivity_report({found.model: found}, scale, stem=stem)
    print(markdown_table(report.table))
    print(f"\n{report.text}\n\nrecords: {found.folder}")
    folder = default_results().name
    print(f"written to {folder}/tables/{scale}/{stem}.md, .csv, .html and {folder}/figures/{scale}/{stem}.png, .svg")
    return 0
