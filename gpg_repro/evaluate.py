"""Every checkpoint of a training run measured on the same benchmarks: scores against the step.

The base is step 0; then come the saves that the run kept (``keep_checkpoints``) or, of a run that is not finished,
those that lie in its trainer folder, and the final weights. Each is an evaluation of its own under ``results/runs``;
one that is there already, from this command or from a table, is read and not made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xxhash
from pydantic import ValidationError

from eval_harness import records, style
from eval_harness.adapters import check_checkpoint
from eval_harness.benchmarks import get_benchmark, prompts_hash
from eval_harness.engines import resolve_engine
from eval_harness.errors import UserError, unknown
from eval_harness.identity import data_changes, model_changes, model_parts
from eval_harness.locks import locked
from eval_harness.markup import markdown_table, markdown_text, one_line, plot_text
from eval_harness.models import check_model
from eval_harness.records import RunRecord, TrainingRecord
from eval_harness.runner import Overrides, data_parts, decoding_of, evaluate, first_items
from eval_harness.sources import default_data_root, default_image_root
from eval_harness.stats import Estimate, mean_of_estimates
from gpg_repro.paths import results as default_results
from gpg_repro.recipe import Recipe
from gpg_repro.tables import TABLES, get_table
from gpg_repro.tables.base import BASE, MATH_COLUMNS, RULES
from gpg_repro.tables.files import write_report
from gpg_repro.tables.runs import smoke_limit

MEAN = "mean"
"""Name of the mean over the benchmarks, in the CSV file and in the picture."""
_SNAPSHOT = ".evaluating"
_OF_DATA = ("limit", "data")
"""Settings of an evaluation that its prompts' hash covers."""
_NOT_WEIGHTS = {".pt", ".pth", ".bin", ""}
"""Suffixes of what a trainer folder holds beside the model: optimiser, random states, arguments, marks."""


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights of a run."""

    step: int
    name: str
    """``base``, ``checkpoint-<step>`` or ``checkpoint`` (the final one)."""
    model: str
    """Folder or hub id."""
    revision: str | None = None


@dataclass(frozen=True)
class Measured:
    """A checkpoint and its evaluation's folder."""

    checkpoint: Checkpoint
    folder: Path


@dataclass(frozen=True)
class Curve:
    """What is known of a run's checkpoints: their evaluations in the order of steps."""

    run: Path
    record: TrainingRecord
    benchmarks: tuple[str, ...]
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]

    @property
    def scale(self) -> str:
        """Scale of the recipe."""
        return self.record.recipe["scale"]

    @property
    def stem(self) -> str:
        """Name of the files: ``checkpoints-<recipe>-<scale>-seed<k>-<hash>``."""
        return f"checkpoints-{self.run.name.removeprefix('train-')}"


def find_run(run: str | Path, results: Path | None = None) -> Path:
    """Folder of a training run, given by its path or by its name under ``results/runs``.

    Raises:
        UserError: there is none, or it holds an evaluation.
    """
    root = (results or default_results()) / "runs"
    folder = next((path for path in (Path(run), root / run) if (path / "run.json").exists()), None)
    if folder is None:
        known = sorted(path.parent.name for path in root.glob("train-*/run.json"))
        raise UserError(f"{unknown('training run', str(run), known)}" if known else f"{run} is not a training run.")
    if records.read_run(folder).kind != "training":
        raise UserError(f"{run} is an evaluation; name the folder of a training run (train-...).")
    return folder.resolve()


def recipe_of(record: TrainingRecord) -> Recipe:
    """The recipe a run was made by.

    Raises:
        UserError: the record holds a recipe of another version of the project.
    """
    recorded = {key: value for key, value in record.recipe.items() if key != "status"}
    try:
        return Recipe.model_validate(recorded)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{record.run_id}: its recipe does not fit this version of the project "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']})."
        ) from None


def benchmarks_of(recipe: Recipe) -> tuple[str, ...]:
    """The benchmarks that the tables with this recipe measure it on, at its scale; text recipes of no table: the math
    ones.

    Raises:
        UserError: a recipe with images that stands in no table.
    """
    tables = [get_table(name) for name in TABLES]
    parts = [(table, part) for table in tables for row in table.rows for part in table.parts(row)]
    found = [
        name for table, part in parts if part.recipe == recipe.name for name in table.measured_on(part, recipe.scale)
    ]
    if not found and recipe.setup.image_column:
        raise UserError(f"recipe {recipe.name} stands in no table: say which benchmarks with --benchmarks.")
    return tuple(dict.fromkeys(found or [column.benchmark_at(recipe.scale) for column in MATH_COLUMNS]))


def evaluate_run(
    run: str | Path,
    benchmarks: Sequence[str] | None = None,
    *,
    steps: Sequence[int] | None = None,
    engine: str = "auto",
    overrides: Overrides | None = None,
    limit: int | None = None,
    data_root: Path | None = None,
    image_root: Path | None = None,
    results: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Curve:
    """Measure every checkpoint of a training run; what is measured already is not measured again.

    Args:
        run: folder of the run, or its name under ``results/runs``. It may still be training.
        benchmarks: names; default: those of the recipe's tables.
        steps: only these (0 is the base); default: all there are.
        engine: ``auto``, ``vllm`` or ``transformers``; at smoke scale ``auto`` is transformers.
        limit: only the first so many items of each benchmark (of each of its groups).
        results: folder for records, tables and pictures.
        options: further arguments of :func:`eval_harness.runner.evaluate` (``tensor_parallel_size``, ``dtype``, ...).

    Raises:
        UserError: no such run, step, benchmark or data; a base that cannot be had; another process is evaluating the
            run. All found before the first engine starts.
        EngineError: an engine failed; what was finished is kept, the same call goes on.
    """
    folder = find_run(run, results)
    record = records.read_run(folder)
    recipe = recipe_of(record)
    if engine == "openai":
        raise UserError("--engine openai: a server holds one model; checkpoints need vllm or transformers.")
    engine = "transformers" if recipe.scale == "smoke" and engine == "auto" else resolve_engine(engine)
    names = tuple(dict.fromkeys(benchmarks or benchmarks_of(recipe)))
    if limit is None and recipe.scale == "smoke":
        limit = smoke_limit(names)
    data_root, image_root = data_root or default_data_root(), image_root or default_image_root()
    overrides = overrides or Overrides()
    wanted = _wanted(names, overrides, limit, data_root)
    data = data_parts(names, data_root=data_root, image_root=image_root, limit=limit)
    root = (results or default_results()) / "runs"
    moving = {name: value for name, value in options.items() if name != "data_parallel_size"}
    with _snapshot(folder) as saves:
        found, notes = _checkpoints(folder, record, recipe, saves, steps, progress)
        identities = {checkpoint.step: check_checkpoint(checkpoint.model, checkpoint.revision) for checkpoint in found}
        measured = []
        for checkpoint in found:
            identity = identities[checkpoint.step]
            label = _label(folder, checkpoint, identity, recipe.scale)
            there = None if moving else _measured_before(root, folder, label, identity, engine, wanted, data)
            measured.append(
                Measured(
                    checkpoint,
                    there
                    or evaluate(
                        checkpoint.model,
                        names,
                        engine=engine,
                        out=root / f"eval-{label}-{engine}-{_key(checkpoint, identity, wanted, data, moving)}",
                        label=label,
                        data_root=data_root,
                        image_root=image_root,
                        limit=limit,
                        overrides=overrides,
                        revision=checkpoint.revision,
                        progress=progress,
                        **options,
                    ),
                )
            )
    return Curve(folder, record, names, tuple(measured), tuple(notes))


# --- Which checkpoints there are --------------------------------------------------------------------------------------


@contextmanager
def _snapshot(run: Path) -> Iterator[dict[int, Path]]:
    """The trainer's own saves, by step, held by links: a run that goes on deletes the older ones meanwhile."""
    from gpg_repro.train import whole_saves

    folder = run / _SNAPSHOT
    if not whole_saves(run / "trainer"):
        yield {}
        return
    with locked(run, "evaluation of its checkpoints", name=".evaluate.lock"):
        shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
        try:
            for path in whole_saves(run / "trainer").values():
                _link(path, folder / path.name)
            yield {step: folder / path.name for step, path in whole_saves(folder).items()}
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Link or copy the model files of a save, the mark of wholeness last: without it the save vanished on the way."""
    target.mkdir(parents=True)
    try:
        for path in sorted(p for p in source.iterdir() if p.is_file() and p.suffix not in _NOT_WEIGHTS):
            try:
                os.link(path, target / path.name)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copy(path, target / path.name)
        shutil.copy(source / "complete", target / "complete")
    except FileNotFoundError:
        return


def _checkpoints(
    run: Path,
    record: TrainingRecord,
    recipe: Recipe,
    saves: dict[int, Path],
    steps: Sequence[int] | None,
    progress: bool,
) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints to measure, in the order of steps, and what a reader should know of them."""
    from gpg_repro.train import KEPT

    notes = []
    kept = {int(path.name.rsplit("-", 1)[1]): path for path in (run / KEPT).glob("checkpoint-*") if not path.suffix}
    found = {
        step: Checkpoint(step, path.name, str(path))
        for step, path in (saves | kept).items()
        if any(path.glob("*.safetensors"))
    }
    if sharded := sorted((saves | kept).keys() - found.keys()):
        notes.append(f"left out, since their weights lie in shards: the saves of steps {', '.join(map(str, sharded))}.")
    if record.status == "finished" and (run / "checkpoint").is_dir():
        found[record.num_steps] = Checkpoint(record.num_steps, "checkpoint", str(run / "checkpoint"))
        if len(found) == 1:
            notes.append(
                "only the base and the final weights: this run kept no others. Train with keep_checkpoints=true "
                "(and save_steps=...) into another folder (--root): a finished run is not trained again."
            )
    elif record.status != "finished":
        last = max(found, default=0)
        notes.append(f"the training is not finished: checkpoints up to step {last}; run this again for later ones.")
    elif not found:
        raise UserError(f"{run} holds records but no weights; its checkpoints were removed or never copied here.")
    available = [0, *sorted(found)]
    if missing := sorted(set(steps or ()) - set(available)):
        raise UserError(
            f"--steps {', '.join(map(str, missing))}: {run.name} has checkpoints of the steps "
            f"{', '.join(map(str, available))} (0 is the base)."
        )
    chosen = [step for step in available if steps is None or step in steps]
    return [found[step] if step else _base(record, recipe, progress) for step in chosen], notes


def _base(record: TrainingRecord, recipe: Recipe, progress: bool) -> Checkpoint:
    from gpg_repro.train import base_model

    leave_out = "or leave the base out: --steps with the other steps."
    try:
        base = base_model(recipe, progress)
        identity = check_model(base, recipe.setup.base_revision)
    except UserError as error:
        raise UserError(f"the base of {record.run_id} cannot be had: {error} Restore it, {leave_out}") from None
    if identity["weights"] != record.base["weights"]:
        raise UserError(
            f"the base {identity['name']} here has other weights than the one that {record.run_id} started from. "
            f"Restore that one, {leave_out}"
        )
    return Checkpoint(0, "base", base, recipe.setup.base_revision)


# --- What was measured before -----------------------------------------------------------------------------------------


def _wanted(names: Sequence[str], overrides: Overrides, limit: int | None, data_root: Path | None) -> dict[str, list]:
    """What decides whether an evaluation is the one asked for: version, prompts and decoding of every benchmark."""
    wanted = {}
    for name in names:
        benchmark = get_benchmark(name)
        items = first_items(benchmark.load(data_root), limit)
        wanted[name] = [benchmark.version, prompts_hash(items), decoding_of(benchmark, overrides).model_dump()]
    return wanted


def _measured_before(
    root: Path, run: Path, label: str, identity: dict, engine: str, wanted: dict[str, list], data: dict[str, str]
) -> Path | None:
    """A finished evaluation of the same model with the same benchmarks, items and decoding, made by this command or by
    a table with the engine's usual settings; None: there is none."""
    ours = f"eval-{run.name.removeprefix('train-')}", f"eval-{label}"
    for path in sorted(path for path in root.glob("eval-*/run.json") if path.parent.name.startswith(ours)):
        try:
            done = records.read_run(path.parent)
        except UserError:
            continue  # its own command says what is wrong with it
        if done.status != "finished" or done.engine.get("name") != engine or model_changes(done, identity):
            continue
        usual = all(
            str(value) in ("None", "auto", "False", "1") for key, value in done.settings.items() if key not in _OF_DATA
        )
        there = {name: [r.version, r.prompts_hash, r.decoding.model_dump()] for name, r in done.benchmarks.items()}
        if usual and all(there.get(name) == value for name, value in wanted.items()) and not data_changes(done, data):
            return path.parent
    return None


def _label(run: Path, checkpoint: Checkpoint, identity: dict, scale: str) -> str:
    """Name of an evaluation in records; that of a base is the one the tables give it."""
    if checkpoint.step:
        return f"{run.name.removeprefix('train-')}-step{checkpoint.step}"
    return f"{BASE}-{scale}-{identity['weights'][:8]}" if identity["weights"] else identity["name"].replace("/", "--")


def _key(checkpoint: Checkpoint, identity: dict, wanted: dict, data: dict, moving: dict) -> str:
    """Eight digits per model and question, so that a call with other benchmarks never meets these records."""
    asked = [model_parts(identity), checkpoint.name, wanted, data, sorted(moving.items())]
    return xxhash.xxh3_64(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]


# --- What it comes to -------------------------------------------------------------------------------------------------


def scores(curve: Curve) -> pd.DataFrame:
    """One line per rule, checkpoint and benchmark, then their mean (where there are several).

    Returns:
        Columns rule, step, checkpoint, benchmark, title, mean, se, low, high (fractions), num_items, num_samples,
        asked, scored, failed, truncated, engine, records (name of the evaluation's folder). Scores are missing where
        every sample failed.
    """
    lines = []
    for rule in RULES:
        for one in curve.measured:
            run: RunRecord = records.read_finished(one.folder)
            estimates, counts = [], {"asked": 0, "scored": 0, "failed": 0, "truncated": 0}
            shared = {"rule": rule, "step": one.checkpoint.step, "checkpoint": one.checkpoint.name}
            origin = {"engine": run.engine["name"], "records": one.folder.name}
            for name in curve.benchmarks:
                result = run.benchmarks[name]
                score = result.score if rule == "published" else result.score_strict
                own = {"asked": result.asked, "scored": result.scored, "failed": result.failed}
                own["truncated"] = result.num_truncated
                counts = {key: counts[key] + own[key] for key in counts}
                estimates.append(Estimate(**score) if score else None)
                title = get_benchmark(name).title
                lines.append({**shared, "benchmark": name, "title": title, **(score or {}), **own, **origin})
            if len(curve.benchmarks) > 1 and all(estimates):
                mean = mean_of_estimates(estimates).as_dict()
                lines.append({**shared, "benchmark": MEAN, "title": "Mean", **mean, **counts, **origin})
    columns = ["rule", "step", "checkpoint", "benchmark", "title", *Estimate.__dataclass_fields__]
    return pd.DataFrame(lines, columns=[*columns, "asked", "scored", "failed", "truncated", "engine", "records"])


def layout(frame: pd.DataFrame, rule: str = "published") -> pd.DataFrame:
    """Step x benchmark for reading: percent with 95 % interval; headings tell the items, cells what failed."""
    chosen = frame[frame["rule"] == rule]
    columns: dict[str, dict[int, str]] = {}
    for line in chosen.itertuples():
        per_item = f", {line.num_samples // line.num_items} samples" if line.num_samples > line.num_items else ""
        cell = (
            f"{100 * line.mean:.1f} [{100 * line.low:.1f}, {100 * line.high:.1f}]" if line.mean == line.mean else "none"
        )
        cell += f" ({line.failed} of {line.asked} failed)" if line.failed else ""
        items = f"{line.num_items:.0f} items{per_item}" if line.num_items == line.num_items else "no score"
        columns.setdefault(line.benchmark, {"heading": f"{line.title} ({items})"})[line.step] = cell
    table = pd.DataFrame({cells.pop("heading"): cells for cells in columns.values()})
    table.index.name = "step"
    return table


def report(curve: Curve, results: Path | None = None) -> tuple[str, dict[str, Path]]:
    """Write the table (Markdown, HTML), the numbers (CSV) and the picture (PNG, SVG).

    Returns:
        The table as text with its notes, and the files by suffix.
    """
    from gpg_repro.plots import checkpoints_figure

    frame = scores(curve)
    heading = f"Checkpoints of {one_line(curve.run.name)}, %"
    published, strict = (layout(frame, rule) for rule in RULES)
    differ = not published.equals(strict)
    sections = [(None if not differ else "published rule", published), *([("strict rule", strict)] if differ else [])]
    asked = frame[(frame["rule"] == RULES[0]) & (frame["benchmark"] != MEAN)]
    engines = ", ".join(sorted(map(markdown_text, set(asked["engine"]))))
    notes = [
        "step 0 is the base; brackets: 95 % intervals over items; every step answers the same items.",
        f"{asked['asked'].sum()} completions asked, {asked['scored'].sum()} scored, {asked['failed'].sum()} failed, "
        f"{asked['truncated'].sum()} cut at the token limit; engine {engines}.",
        *curve.notes,
    ]
    if curve.scale != "paper":
        notes.append(f"a miniature ({curve.scale}): not comparable with published numbers.")
    results = results or default_results()
    paths = write_report(curve.stem, heading, sections, notes, curve.scale, frame, results)
    figure = checkpoints_figure(frame[frame["rule"] == RULES[0]], plot_text(heading))
    drawn = style.save_figure(figure, results / "figures" / curve.scale / curve.stem)
    paths |= {path.suffix[1:]: path for path in drawn}
    text = [markdown_text(heading)]
    for title, table in sections:
        text += [*([title] if title else []), markdown_table(table)]
    return "\n\n".join([*text, "\n".join(f"- {note}" for note in notes)]), paths
