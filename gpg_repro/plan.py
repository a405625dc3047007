"""``python -m gpg_repro plan``: what a table or figure needs at a scale, what of it is done, what the rest costs.

A plan trains, loads and downloads nothing. At paper scale the costs are estimates from stated assumptions
(:mod:`gpg_repro.costs`); at smoke and tiny scale they are times of recorded runs.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval_harness import records
from eval_harness.benchmarks import Benchmark, get_benchmark
from eval_harness.checkpoints import Checkpoint, Settings, load_checkpoints
from eval_harness.engines.base import ENGINES
from eval_harness.errors import UserError, unknown
from eval_harness.identity import changed_since
from eval_harness.models import NO_CODE
from eval_harness.released import Job
from eval_harness.runner import Overrides, decoding_of, parse_samples
from eval_harness.sources import Generated, Hub
from gpg_repro import costs
from gpg_repro.costs import Assumptions, Gpu, Range, Shape, Work
from gpg_repro.paths import results as default_results
from gpg_repro.prompts import SYSTEM_PROMPTS
from gpg_repro.recipe import Recipe, load_recipe
from gpg_repro.tables import TABLES, Table, get_table
from gpg_repro.tables.base import BASE, Row
from gpg_repro.tables.runs import REFERENCE, check_scale, finished_trainings, smoke_limit

_NO_RUNS = {
    "table2": "five trainers make one step each on the smoke base, at every scale: seconds to two minutes on a CPU",
    "table9": "losses are evaluated on one toy batch, the same at every scale: seconds on a CPU",
    "figure1": "its bars are numbers of Tables 4 to 8 (plan those)",
    "figure3": "it shows two answers to one AIME24 problem, those of GPG-RS1 and of its GRPO row (plan table3)",
}
"""What no training and no evaluation stands behind."""
_TEMPLATE_TOKENS = 30
"""Of a chat template around a prompt, where no tokenizer counts them."""
_QUESTION_CHARACTERS = Range(200, 400)
"""Of a training question; those of MATH have a mean of 210."""
_TRAINING_IMAGE_TOKENS = Range(200, 512)
"""Up to the recipes' 401,408 pixels, 28 x 28 to a token."""
_LINE_BYTES = 700
"""Of a stored completion beside its text."""
_REWARDS_WITHOUT_TIES = ("cosine", "giou")
"""Continuous rewards: nearly every group has a signal."""


# --- What a plan holds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One benchmark of one model."""

    benchmark: str
    items: int
    samples: int
    prompt_tokens: Range
    """Mean of a prompt."""
    prompts_counted: str
    """How: with the tokenizer, or from characters."""
    completion_tokens: Range
    """Mean of a completion."""
    completions_known: str
    """``assumed``, ``given`` or ``recorded``."""
    done: int
    """Completions on disk."""
    hours: Range | None
    """GPU-hours of all of it."""

    @property
    def completions(self) -> int:
        """Wanted."""
        return self.items * self.samples

    @property
    def remaining(self) -> int:
        """Still to be made."""
        return max(0, self.completions - self.done)


@dataclass(frozen=True)
class Evaluation:
    """One model on its benchmarks: one engine start."""

    row: str
    model: str
    """Hub id, or the recipe that makes it."""
    revision: str | None
    variant: str | None
    """Settings of the registry that are not the model's own."""
    trained: bool
    seed: int | None
    measurements: tuple[Measurement, ...]
    state: str
    gpus: int
    """Of one engine."""
    decoding: str
    start_hours: Range | None
    """Start and tail of the engine in GPU-hours; at small scales the whole recorded time."""
    weights: float | None
    """Bytes."""
    note: str = ""

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return all(m.remaining == 0 for m in self.measurements)

    @property
    def hours(self) -> Range:
        """GPU-hours of all of it."""
        return costs.total([*(m.hours for m in self.measurements if m.hours), *filter(None, [self.start_hours])])

    @property
    def hours_remaining(self) -> Range:
        """GPU-hours of what is left."""
        if self.finished:
            return Range(0.0, 0.0)
        left = [m.hours * (m.remaining / m.completions) for m in self.measurements if m.hours]
        return costs.total([*left, *filter(None, [self.start_hours])])


@dataclass(frozen=True)
class Training:
    """One training of a recipe."""

    recipe: str
    seed: int
    base: str
    revision: str | None
    method: str
    processes: int
    steps: int
    steps_done: int
    prompts_per_step: int
    generations: int
    state: str
    work: Work | None
    cost: costs.TrainingCost | None
    memory: Mapping[str, Range] = field(default_factory=dict)
    """Bytes per GPU by strategy."""
    recorded: Range | None = None
    """Hours that recorded runs of this recipe took (smoke and tiny scale)."""
    kept: float = 0.0
    """Bytes of checkpoints that stay."""
    resumable: float = 0.0
    """Bytes of resumable checkpoints while it trains."""

    @property
    def hours(self) -> Range:
        """GPU-hours; at small scales hours."""
        return self.cost.hours if self.cost else self.recorded or Range(0.0, 0.0)

    @property
    def hours_remaining(self) -> Range:
        """Of the steps that are left."""
        return self.hours * (1 - self.steps_done / self.steps)


@dataclass(frozen=True)
class Plan:
    """What a table or figure needs."""

    name: str
    """``table3``, ``figure2``, ``kl``."""
    title: str
    scale: str
    gpu: Gpu | None
    """None below paper scale."""
    samples: str
    generation: str
    strategy: str
    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluation, ...]
    unmeasured: tuple[str, ...]
    """Rows that are printed only, with the reason."""
    downloads: Mapping[str, tuple[float, float]]
    """Repository -> (bytes, bytes of them in the cache)."""
    data: Mapping[str, str]
    """Data set -> where it comes from."""
    assumptions: Assumptions
    warnings: tuple[str, ...] = ()
    note: str = ""
    """Says so when nothing runs at all."""

    @property
    def hours(self) -> Range:
        """Of everything."""
        return costs.total(job.hours for job in (*self.trainings, *self.evaluations))

    @property
    def hours_remaining(self) -> Range:
        """Of what is left."""
        return costs.total(job.hours_remaining for job in (*self.trainings, *self.evaluations))

    @property
    def disk(self) -> dict[str, Range]:
        """Bytes by kind, to be free before the work starts; what is there already is not counted."""
        open_trainings = [t for t in self.trainings if t.steps_done < t.steps]
        texts = [
            m.remaining * (m.completion_tokens * self.assumptions.characters_per_token + _LINE_BYTES)
            for e in self.evaluations
            for m in e.measurements
        ]
        return {
            "models to download": Range.of(sum(size - there for size, there in self.downloads.values())),
            "checkpoints that stay": Range.of(sum(t.kept for t in open_trainings)),
            "resumable checkpoints of the largest training, while it runs": Range.of(
                max((t.resumable for t in open_trainings), default=0.0)
            ),
            "records": costs.total(texts),
        }


# --- Making one ------------------------------------------------------------------------------------------------------


def build_plan(
    name: str,
    scale: str = "paper",
    *,
    gpu: str = costs.DEFAULT_GPU,
    samples: str = "auto",
    seeds: int = 1,
    completion_tokens: Mapping[str, float] | None = None,
    generation: str = "transformers",
    strategy: str = "zero2",
    assumptions: Assumptions | None = None,
    results: Path | None = None,
    data_root: Path | None = None,
) -> Plan:
    """Plan a table or figure.

    Args:
        name: ``table4``, ``04``, ``4``, ``figure2``, or one of our own tables (``kl``, ``control``).
        scale: ``smoke``, ``tiny`` or ``paper``.
        gpu: class of :data:`gpg_repro.costs.GPUS`; paper scale only.
        samples: per item as ``eval_harness run --samples`` takes it.
        seeds: training seeds.
        completion_tokens: mean length by benchmark, or ``""`` for all, in the place of the assumed ones.
        generation: how trainings sample: ``transformers`` or ``vllm``.
        strategy: layout of trainings whose checkpoints are counted: one of :data:`gpg_repro.costs.STRATEGIES`.
        results: folder with run records.
        data_root: local copies of the benchmarks, whose prompts are then counted.

    Raises:
        UserError: an unknown name, scale, GPU class, benchmark, generation or strategy; no seed.
    """
    check_scale(scale, seeds)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: expected at least 1 training seed.")
    if generation not in costs.GENERATION:
        raise unknown("way of generating", generation, costs.GENERATION)
    if strategy not in costs.STRATEGIES:
        raise unknown("strategy", strategy, costs.STRATEGIES)
    wanted = parse_samples(samples)
    Overrides(samples=wanted).check()
    subject = subject_of(name)
    given = dict(completion_tokens or {})
    maker = _Planner(
        scale=scale,
        gpu=costs.get_gpu(gpu),
        samples=samples,
        seeds=seeds,
        given=given,
        generation=generation,
        strategy=strategy,
        assumed=assumptions or Assumptions(),
        root=(results or default_results()) / "runs",
        data_root=data_root,
    )
    plan = maker.plan(subject)
    measured = {m.benchmark for e in plan.evaluations for m in e.measurements}
    for option, names in (("--completion-tokens", given), ("--samples", wanted if isinstance(wanted, dict) else {})):
        for stranger in sorted(set(names) - measured - {""}):
            raise unknown(f"benchmark of {plan.name} in {option}:", stranger, measured)
    return plan


def subject_of(name: str) -> tuple[str, Table | None]:
    """Canonical name and, for tables of runs, the table.

    Raises:
        UserError: there is no such table or figure.
    """
    canonical = name.strip().lower()
    if numbered := re.fullmatch(r"(table|figure|fig)?[\s_-]*0*(\d+)", canonical):
        kind, number = numbered.groups()
        canonical = f"{'figure' if kind in ('figure', 'fig') else 'table'}{number}"
    if canonical.removeprefix("table") in TABLES:
        return canonical, get_table(canonical.removeprefix("table"))
    if canonical in _NO_RUNS or canonical in _figure_recipes():
        return canonical, None
    known = [f"table{key}" if key.isdigit() else key for key in TABLES]
    raise unknown("table or figure", name, [*known, *_NO_RUNS, *_figure_recipes()])


def _figure_recipes() -> dict[str, tuple[str, ...]]:
    """Figure -> the recipes whose curves it draws."""
    return {"figure2": ("table1_gpg_age",), "figure4": ("table3_gpg_rs1", "table3_grpo_rs1")}


@dataclass
class _Planner:
    """The settings of one plan, and what was found out on the way."""

    scale: str
    gpu: Gpu
    samples: str
    seeds: int
    given: Mapping[str, float]
    generation: str
    strategy: str
    assumed: Assumptions
    root: Path
    data_root: Path | None

    def __post_init__(self):
        self._warnings: list[str] = []
        self._unrecorded: list[str] = []
        self._trainings: dict[tuple[str, int], Training] = {}
        self._finished_trainings: dict[str, dict[int, Path]] = {}
        self._prompts: dict[str, list[str] | None] = {}
        self._cached = cached_bytes() if self.scale == "paper" else {}
        self._registry = load_checkpoints()

    def plan(self, subject: tuple[str, Table | None]) -> Plan:
        name, table = subject
        evaluations: list[Evaluation] = []
        unmeasured: list[str] = []
        title, note = "", ""
        if table is not None:
            title = table.title
            for row in table.rows_at(self.scale):
                for part in table.parts(row):
                    if found := self._row(table, part):
                        _add(evaluations, found)
                    else:
                        unmeasured.append(f"{part.label_at(self.scale)}: {_why_printed_only(part)}")
        elif name in _NO_RUNS:
            note = _NO_RUNS[name]
        else:
            title = "curves of trainings; nothing is evaluated"
            for recipe in _figure_recipes()[name]:
                for seed in range(self.seeds):
                    self._training(load_recipe(recipe, scale=self.scale, seed=seed))
        paper = self.scale == "paper"
        if self._unrecorded:
            names = list(dict.fromkeys(self._unrecorded))
            self._warnings.append(f"{self.scale} scale: no time recorded, counted as nothing: {', '.join(names)}")
        return Plan(
            name=name,
            title=title,
            scale=self.scale,
            gpu=self.gpu if paper else None,
            samples=self.samples,
            generation=self.generation,
            strategy=self.strategy,
            trainings=tuple(self._trainings.values()),
            evaluations=tuple(evaluations),
            unmeasured=tuple(unmeasured),
            downloads=self._downloads(evaluations) if paper else {},
            data=self._data(evaluations) if paper else {},
            assumptions=self.assumed,
            warnings=tuple(dict.fromkeys(self._warnings)),
            note=note,
        )

    # --- rows ---

    def _row(self, table: Table, row: Row) -> list[Evaluation]:
        """The evaluations behind a row (or a part of one): one per model."""
        if self.scale != "paper":
            return self._small_row(table, row)
        names = table.measured_on(row, self.scale)
        if row.hub:
            entry = row.checkpoint
            settings = entry.settings_of(row.variant) if entry else None
            label = Job(entry, row.variant).label if entry else row.hub.replace("/", "--")
            return [self._evaluation(row, row.hub, settings, names, label)]
        if not row.recipe or not row.paper_recipe:
            return []
        found = []
        for seed in range(self.seeds):
            recipe = load_recipe(row.recipe, scale=self.scale, seed=seed)
            training = self._training(recipe)
            base = self._registry.get(recipe.setup.base)
            run = self._finished(row.recipe).get(seed)
            label = run.name.removeprefix("train-") if run else None
            settings = base.settings if base else None
            found.append(self._evaluation(row, row.recipe, settings, names, label, training.base, seed))
        return found

    def _evaluation(
        self,
        row: Row,
        model: str,
        settings: Settings | None,
        names: Sequence[str],
        label: str | None,
        base: str | None = None,
        seed: int | None = None,
    ) -> Evaluation:
        """One model on its benchmarks.

        Args:
            model: hub id, or the recipe that makes it from ``base``.
            settings: of the registry, as the tables ask; None: the benchmarks' documented ones.
            label: what its run folders are called; None: there is no such model yet.
        """
        shape = shape_of(base or model, self._registry)
        revision = None if base else row.hub_revision
        tokenizer = local_tokenizer(base or model, revision)
        runs = self._runs(label, revision, settings)
        limit = min(filter(None, (settings and settings.max_model_len, shape.context)))
        gpus = costs.gpus_needed(shape, self.gpu, limit, self.assumed)
        measurements = [
            self._measurement(get_benchmark(n), shape, settings, limit, tokenizer, runs, gpus) for n in names
        ]
        longest = max(min(limit, _decoding(get_benchmark(n), settings, self.samples).max_new_tokens) for n in names)
        return Evaluation(
            row=row.label,
            model=model,
            revision=revision,
            variant=row.variant,
            trained=base is not None,
            seed=seed,
            measurements=tuple(measurements),
            state=_state_of(measurements, label, trained=base is not None),
            gpus=gpus,
            decoding=_describe(settings, names, self.samples),
            start_hours=costs.start_hours(self.assumed, gpus)
            + costs.tail_hours(shape, self.gpu, longest, self.assumed, gpus),
            weights=shape.weights,
            note=row.checkpoint.believed if row.checkpoint and not base else "",
        )

    def _measurement(
        self,
        benchmark: Benchmark,
        shape: Shape,
        settings: Settings | None,
        limit: int,
        tokenizer: Any,
        runs: Sequence[tuple[Path, records.RunRecord]],
        gpus: int,
    ) -> Measurement:
        decoding = _decoding(benchmark, settings, self.samples)
        prompt, how = self._prompt_tokens(benchmark, tokenizer)
        room = min(decoding.max_new_tokens, max(1, limit - int(prompt.low)))
        done, recorded = 0, None
        for folder, run in runs:
            finished = run.benchmarks.get(benchmark.name)
            if finished is not None and (finished.decoding, finished.version) != (decoding, benchmark.version):
                continue
            done = max(
                done,
                min(_lines(folder / "samples" / f"{benchmark.name}.jsonl"), benchmark.num_items * decoding.samples),
            )
            recorded = (finished and finished.mean_completion_tokens) or recorded
        length, known = self._completion_tokens(benchmark, shape, recorded)
        length = length.clip(1, room)
        return Measurement(
            benchmark=benchmark.name,
            items=benchmark.num_items,
            samples=decoding.samples,
            prompt_tokens=prompt,
            prompts_counted=how,
            completion_tokens=length,
            completions_known=known,
            done=done,
            hours=costs.evaluation_hours(
                shape, self.gpu, benchmark.num_items * decoding.samples, prompt, length, self.assumed, gpus
            ),
        )

    def _completion_tokens(self, benchmark: Benchmark, shape: Shape, recorded: float | None) -> tuple[Range, str]:
        if benchmark.name in self.given or "" in self.given:
            return Range.of(self.given.get(benchmark.name, self.given.get(""))), "given"
        if recorded:
            return Range.of(recorded), "recorded"
        assumed = costs.COMPLETION_TOKENS[shape.family].get(benchmark.name)
        return assumed or Range(0.1, 0.5) * benchmark.decoding.max_new_tokens, "assumed"

    def _prompt_tokens(self, benchmark: Benchmark, tokenizer: Any) -> tuple[Range, str]:
        """Mean tokens of a prompt and how they were counted: real prompts where there is a local copy of the data."""
        image = self.assumed.image_tokens if benchmark.image_field else Range(0, 0)
        prompts = self._local_prompts(benchmark)
        if prompts and tokenizer is not None:
            mean = statistics.fmean(len(ids) for ids in tokenizer(prompts)["input_ids"])
            return Range.of(mean) + _TEMPLATE_TOKENS + image, "its prompts, by the tokenizer"
        characters = (
            statistics.fmean(map(len, prompts)) if prompts else costs.PROMPT_CHARACTERS.get(benchmark.name, 600)
        )
        how = "characters of its prompts" if prompts else "characters as counted for this project"
        return Range.of(characters) / self.assumed.characters_per_token + _TEMPLATE_TOKENS + image, how

    def _local_prompts(self, benchmark: Benchmark) -> list[str] | None:
        if self.data_root is None:
            return None
        if benchmark.name not in self._prompts:
            try:
                self._prompts[benchmark.name] = [item.prompt for item in benchmark.load(self.data_root)]
            except UserError as error:
                self._prompts[benchmark.name] = None
                self._warnings.append(f"prompts of {benchmark.name} were not counted: {error}")
        return self._prompts[benchmark.name]

    # --- trainings ---

    def _training(self, recipe: Recipe) -> Training:
        key = recipe.name, recipe.seed
        if key not in self._trainings:
            if recipe.objective.alpha_from:
                self._training(load_recipe(recipe.objective.alpha_from, scale=self.scale, seed=recipe.seed))
            self._trainings[key] = self._new_training(recipe)
        return self._trainings[key]

    def _new_training(self, recipe: Recipe) -> Training:
        t, setup = recipe.setup.training, recipe.setup
        done, state = self._progress(recipe)
        common = {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "base": setup.base,
            "revision": setup.base_revision,
            "method": recipe.method,
            "processes": t.num_processes,
            "steps": t.max_steps,
            "steps_done": done,
            "prompts_per_step": t.prompts_per_step,
            "generations": t.num_generations,
            "state": state,
        }
        if self.scale != "paper":
            return Training(**common, work=None, cost=None, recorded=self._recorded_training(recipe))
        shape = shape_of(setup.base, self._registry)
        work = work_of(recipe, self.assumed)
        saves = -(-t.max_steps // t.save_steps) if t.keep_checkpoints else 1
        return Training(
            **common,
            work=work,
            cost=costs.training_cost(shape, self.gpu, work, self.generation, self.assumed),
            memory={s: costs.training_memory(shape, work, t.per_device_train_batch_size, s) for s in costs.STRATEGIES},
            kept=saves * shape.weights,
            resumable=2 * costs.trainer_state(shape, self.strategy),  # the trainer keeps the last two
        )

    def _progress(self, recipe: Recipe) -> tuple[int, str]:
        """Steps that need not be made again, and words for it."""
        steps = recipe.setup.training.max_steps
        if run := self._finished(recipe.name).get(recipe.seed):
            return steps, f"finished ({run.name})"
        best = 0
        for path in sorted(self.root.glob(f"train-{recipe.name}-{self.scale}-seed{recipe.seed}-*/run.json")):
            if (run := self._readable(path.parent)) and run.kind == "training" and run.status == "running":
                saved = _last_saved(path.parent) if recipe.describes(run.recipe) else 0
                best = max(best, saved)
        return best, f"{best} of {steps} steps saved" if best else "not started"

    # --- what is there ---

    def _finished(self, recipe: str) -> dict[int, Path]:
        """Finished trainings of a recipe as the tables find them, by seed."""
        if recipe not in self._finished_trainings:
            try:
                self._finished_trainings[recipe] = finished_trainings(recipe, self.scale, self.root)
            except UserError as error:
                self._warnings.append(f"left out: {error}")
                self._finished_trainings[recipe] = {}
        return self._finished_trainings[recipe]

    def _runs(
        self, label: str | None, revision: str | None, settings: Settings | None
    ) -> list[tuple[Path, records.RunRecord]]:
        """Evaluations of a label among the run folders: of this revision, of whole benchmarks, with these settings."""
        wanted: dict[str, Any] = {"limit": None}
        if settings is not None:
            wanted |= {
                "dtype": settings.dtype,
                "max_model_len": settings.max_model_len,
                "chat_template": settings.template,
            }
        found = []
        for folder in evaluation_folders(self.root, label) if label else ():
            run = self._readable(folder)
            if run is None or run.kind != "evaluation" or (revision and run.model.get("revision") != revision):
                continue
            if changed_since(run, self.root / f"train-{label}" / "checkpoint"):
                continue
            if all(run.settings.get(name) == value for name, value in wanted.items()):
                found.append((folder, run))
        return found

    def _readable(self, folder: Path):
        try:
            return records.read_run(folder)
        except UserError as error:
            self._warnings.append(f"left out: {error}")
            return None

    def _downloads(self, evaluations: Iterable[Evaluation]) -> dict[str, tuple[float, float]]:
        """Models that have to be there, those of finished work left out."""
        wanted = [e.model for e in evaluations if not e.trained and not e.finished]
        wanted += [t.base for t in self._trainings.values() if t.steps_done < t.steps]
        sizes = {}
        for model in dict.fromkeys(wanted):
            entry = self._registry.get(model)
            size = float(entry.bytes) if entry else shape_of(model, self._registry).weights
            sizes[model] = size, min(size, self._cached.get(model, 0.0))
        return sizes

    def _data(self, evaluations: Iterable[Evaluation]) -> dict[str, str]:
        benchmarks = [get_benchmark(m.benchmark) for e in evaluations if not e.finished for m in e.measurements]
        sources = {b.name: b.source for b in benchmarks}
        for training in self._trainings.values():
            if training.steps_done < training.steps:
                found = load_recipe(training.recipe, scale=self.scale).setup.training_set()
                sources[found.name] = found.source
        return {name: self._where(source) for name, source in sources.items() if not isinstance(source, Generated)}

    def _where(self, source: Any) -> str:
        if self.data_root is not None and (Path(self.data_root) / source.local_file).exists():
            return f"local copy, {source.local_file}"
        if not isinstance(source, Hub):
            return f"to be fetched by hand: {source.describe()}"
        return f"{source.describe()}, {'in the cache' if source.repo in self._cached else 'to download'}"

    # --- smoke and tiny scale: recorded times ---

    def _small_row(self, table: Table, row: Row) -> list[Evaluation]:
        names = table.measured_on(row, self.scale)
        found = []
        for seed in range(self.seeds) if row.recipe else (None,):
            label = None
            if row.recipe:
                recipe = load_recipe(row.recipe, scale=self.scale, seed=seed)
                self._training(recipe)
                run = self._finished(row.recipe).get(seed)
                label = run.name.removeprefix("train-") if run else None
            limit = smoke_limit(names) if self.scale == "smoke" else None
            done = self._small_runs(label if row.recipe else BASE, names, limit)
            measurements = [_small_measurement(get_benchmark(name), limit, done) for name in names]
            found.append(
                Evaluation(
                    row=row.label_at(self.scale),
                    model=row.recipe or BASE,
                    revision=None,
                    variant=None,
                    trained=bool(row.recipe),
                    seed=seed,
                    measurements=tuple(measurements),
                    state=_state_of(measurements, label, bool(row.recipe)),
                    gpus=0,
                    decoding="",
                    start_hours=self._recorded_evaluation(row),
                    weights=None,
                )
            )
        return found

    def _small_runs(self, label: str | None, names: Sequence[str], limit: int | None) -> set[str]:
        """Benchmarks of a label that were measured to the end; of the base, whichever weights it has."""
        if label == BASE:
            folders = [path.parent for path in sorted(self.root.glob(f"eval-{BASE}-{self.scale}-*/run.json"))]
        else:
            folders = evaluation_folders(self.root, label) if label else []
        finished = set()
        for folder in folders:
            run = self._readable(folder)
            if (
                run is None
                or run.kind != "evaluation"
                or changed_since(run, self.root / f"train-{label}" / "checkpoint")
            ):
                continue
            if run.status == "finished" and run.settings.get("limit") == limit:
                finished |= set(run.benchmarks) & set(names)
        return finished

    def _recorded_training(self, recipe: Recipe) -> Range | None:
        """Hours that finished trainings of the recipe took, here or in the committed records."""
        places = [
            *REFERENCE.glob(f"{self.scale}/{recipe.name}/seed*/training/run.json"),
            *self.root.glob(f"train-{recipe.name}-{self.scale}-seed*/run.json"),
        ]
        return self._recorded(places, f"training of {recipe.name}")

    def _recorded_evaluation(self, row: Row) -> Range | None:
        name = row.recipe or f"{BASE}/*"
        places = [
            *REFERENCE.glob(f"{self.scale}/{name}/seed*/run.json"),
            *self.root.glob(f"eval-{row.recipe or BASE}-{self.scale}-*/run.json"),
        ]
        return self._recorded(places, f"evaluation of {row.recipe or BASE}")

    def _recorded(self, places: Iterable[Path], what: str) -> Range | None:
        runs = [run for path in places if (run := self._readable(path.parent)) and run.status == "finished"]
        hours = [seconds / 3600 for run in runs if (seconds := sum(run.timings.values()))]
        if not hours:
            self._unrecorded.append(what)
            return None
        return Range(min(hours), max(hours))


def _add(evaluations: list[Evaluation], found: Iterable[Evaluation]) -> None:
    """Add evaluations; two rows of one model under one of its settings are measured once."""
    for one in found:
        same = (
            i for i, e in enumerate(evaluations) if (e.model, e.variant, e.seed) == (one.model, one.variant, one.seed)
        )
        index = next(same, None)
        if index is None:
            evaluations.append(one)
        else:
            evaluations[index] = replace(evaluations[index], row=f"{evaluations[index].row}; {one.row}")


def evaluation_folders(root: Path, label: str) -> list[Path]:
    """Run folders ``eval-<label>-<engine>`` and ``eval-<label>-<engine>-<hash>``, those of longer labels left out."""
    pattern = re.compile(rf"eval-{re.escape(label)}-({'|'.join(ENGINES)})(-[0-9a-f]+)?")
    return [path.parent for path in sorted(root.glob("eval-*/run.json")) if pattern.fullmatch(path.parent.name)]


def work_of(recipe: Recipe, assumed: Assumptions) -> Work:
    """What a recipe does, in the numbers that cost something."""
    t, setup = recipe.setup.training, recipe.setup
    system = len(SYSTEM_PROMPTS[setup.system_prompt]) if setup.system_prompt else 0
    prompt = (_QUESTION_CHARACTERS + system) / assumed.characters_per_token + _TEMPLATE_TOKENS
    if setup.image_column:
        prompt += _TRAINING_IMAGE_TOKENS
    prompt = prompt.clip(1, t.max_prompt_length or prompt.high)
    ours = recipe.method == "gpg"
    share = Range(1.0, 1.0)
    if ours:
        without_ties = any(name in setup.rewards for name in _REWARDS_WITHOUT_TIES)
        share = Range(0.9, 1.0) if without_ties else assumed.valid_share
        if setup.image_column and not without_ties:
            share = Range(share.low, 1.0)  # two rewards, and no published alpha
    draws = costs.num_draws(recipe.objective.beta_th, recipe.objective.max_draws, share)
    return Work(
        steps=t.max_steps,
        completions_per_step=t.completions_per_step(),
        generations=t.num_generations,
        processes=t.num_processes,
        prompt_tokens=prompt,
        completion_limit=t.max_completion_length,
        valid_share=share.clip(recipe.objective.beta_th, 1.0),
        draws=draws,
        checkpointing=t.gradient_checkpointing,
        reference_model=recipe.objective.beta_kl > 0,
        shares_prompts=ours and t.share_prompt != "off",
    )


def shape_of(model: str, registry: Mapping[str, Checkpoint]) -> Shape:
    """The architecture of a base or of a registered checkpoint.

    Raises:
        UserError: nothing is known about the model.
    """
    if model in costs.SHAPES:
        return costs.SHAPES[model]
    if model not in registry:
        raise UserError(
            f"nothing is known about the size of {model!r}: add it to gpg_repro/costs.py or, if it was released, to "
            "eval_harness/checkpoints.yaml."
        )
    entry = registry[model]
    relative = (costs.DISTILL_1_5B, costs.QWEN_7B)
    shape = min(relative, key=lambda s: abs(s.parameters - entry.parameters))
    family = (
        "7B reasoning" if shape is costs.QWEN_7B and entry.settings.max_model_len > 2 * shape.context else shape.family
    )
    return replace(shape, family=family, parameters=entry.parameters, context=entry.context)


def local_tokenizer(model: str, revision: str | None) -> Any:
    """The model's tokenizer if it is in the hub's cache; None otherwise. Nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(model, "tokenizer_config.json", revision=revision), str):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, local_files_only=True, **NO_CODE)
    except (OSError, ValueError):  # half a download
        return None


def cached_bytes() -> dict[str, float]:
    """Repository -> bytes of it in the hub's cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return {repo.repo_id: float(repo.size_on_disk) for repo in scan_cache_dir().repos}
    except CacheNotFound:
        return {}


def _decoding(benchmark: Benchmark, settings: Settings | None, samples: str) -> records.Decoding:
    return decoding_of(benchmark, Overrides(samples=parse_samples(samples)), settings.decoding if settings else None)


def _describe(settings: Settings | None, names: Sequence[str], samples: str) -> str:
    """The decoding in a few words."""
    decodings = [_decoding(get_benchmark(name), settings, samples) for name in names]
    temperatures = sorted({d.temperature for d in decodings})
    drawn = "greedy" if temperatures == [0.0] else f"temperature {' or '.join(f'{t:g}' for t in temperatures)}"
    limits = sorted(
        {min(d.max_new_tokens, settings.max_model_len if settings else d.max_new_tokens) for d in decodings}
    )
    return f"{drawn}, at most {' or '.join(f'{n:,}' for n in limits)} tokens"


def _why_printed_only(row: Row) -> str:
    if row.trained:
        return "printed only: the settings of the row are not stated, so its recipe has no paper scale"
    return "printed only: no checkpoint and no recipe"


def _state_of(measurements: Sequence[Measurement], label: str | None, trained: bool) -> str:
    left = sum(m.remaining for m in measurements)
    if not left:
        return "finished"
    if trained and label is None:
        return "needs its training"
    done = sum(m.completions for m in measurements) - left
    return f"{done:,} completions done" if done else "not started"


def _small_measurement(benchmark: Benchmark, limit: int | None, done: set[str]) -> Measurement:
    groups = len(benchmark.groups) or 1
    items = benchmark.num_items if limit is None else min(limit * groups, benchmark.num_items)
    zero = Range(0, 0)
    count = items * benchmark.decoding.samples
    made = count if benchmark.name in done else 0
    return Measurement(benchmark.name, items, benchmark.decoding.samples, zero, "", zero, "", made, None)


def _last_saved(folder: Path) -> int:
    """Step of the newest whole checkpoint that a training can resume from."""
    from gpg_repro.train import whole_saves

    return max(whole_saves(folder / "trainer"), default=0)


def _lines(path: Path) -> int:
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(1 for _ in file)
