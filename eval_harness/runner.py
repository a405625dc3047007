"""Evaluate a model on benchmarks: one engine, killable graders, records written as results arrive.

Everything that can be wrong is checked before the engine starts. A killed run, started again with the same settings,
asks the model only for what is not on disk.
"""

from __future__ import annotations

import base64
import json
import math
import queue
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xxhash
from tqdm import tqdm

from eval_harness import identity as identities
from eval_harness import provenance, records
from eval_harness.adapters import check_checkpoint, check_engine
from eval_harness.benchmarks import Benchmark, get_benchmark, prompts_hash
from eval_harness.engines import EngineProcess, EngineSettings, Request, Result, Sampling, resolve_engine
from eval_harness.engines.openai import OpenAIEngine, check_settings
from eval_harness.engines.parallel import EngineGroup, placements
from eval_harness.engines.shared import SharedEngine
from eval_harness.errors import UserError, disk_told, unknown
from eval_harness.graders.base import UNFINISHED, Verdict, classes_of, context_for, grader_identity
from eval_harness.graders.pool import DEADLINE_SECONDS, GradingPool
from eval_harness.images import ImageError, decode
from eval_harness.locks import LOCK, OWNER, locked
from eval_harness.models import check_chat_template
from eval_harness.outside import check_argument, clean
from eval_harness.progress import progress_bar
from eval_harness.records import BenchmarkResult, Decoding, GroupResult, Item, RunRecord, Sample
from eval_harness.shards import Shard, check_others, has_shards
from eval_harness.sources import Generated, default_data_root, default_image_root
from eval_harness.stats import Estimate, mean_of_estimates, mean_of_items, mean_of_strata

DEFAULT_OUT = Path("results") / "runs"
_MIN_FREE_BYTES = 50 << 20
_PROBED_IMAGES = 5
"""If none of so many first images can be read, the image folder is the wrong one."""
_FEW_ITEMS = 100
_SAMPLES_OF_FEW, _SAMPLES_OF_MANY = 16, 4
"""Samples ``auto`` draws where decoding is not greedy: for benchmarks of at most so few items, and for larger ones."""
_CHECKPOINT_DECODING = ("temperature", "top_p", "top_k", "max_new_tokens", "system_prompt")
"""What a checkpoint may have a default for."""


@dataclass(frozen=True)
class Overrides:
    """What replaces a benchmark's documented decoding; ``None`` keeps it. Everything is recorded.

    ``samples`` is the number of completions per item: one for all benchmarks, one for each by name (those left out
    keep the documented one), or ``auto``: 1 for greedy decoding, else 16 for benchmarks of at most 100 items, 4 for
    larger ones.
    """

    samples: int | Literal["auto"] | Mapping[str, int] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    system_prompt: str | None = None

    def check(self) -> None:
        """Raise UserError for values no sampler accepts."""
        if isinstance(self.samples, str) and self.samples != "auto":
            raise UserError(f"--samples {self.samples}: expected auto, an integer of at least 1, or name=K,...")
        by_name = self.samples if isinstance(self.samples, Mapping) else {"": self.samples}
        counts = [(f"--samples {name}=" if name else "--samples", count) for name, count in by_name.items()]
        for name, value, good, want in (
            *((name, count, lambda v: v >= 1, "an integer of at least 1") for name, count in counts if count != "auto"),
            ("--seed", self.seed, lambda v: v >= 0, "an integer of at least 0"),
            (
                "--temperature",
                self.temperature,
                lambda v: 0 <= v < float("inf"),
                "a number of at least 0 (0 is greedy)",
            ),
            ("--top-p", self.top_p, lambda v: 0 < v <= 1, "a number in (0, 1]"),
            ("--max-new-tokens", self.max_new_tokens, lambda v: v >= 1, "an integer of at least 1"),
        ):
            if value is not None and not good(value):
                raise UserError(f"{name} {value}: expected {want}.")


def parse_samples(text: str) -> int | str | dict[str, int]:
    """``auto``, a number, or ``name=number,...`` as :class:`Overrides` takes it.

    Raises:
        UserError: something else.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    try:
        if "=" in text:
            if len({name.strip() for name, _, _ in pairs}) < len(pairs):
                raise UserError(f"--samples {text}: a benchmark stands there twice.")
            return {name.strip(): int(count) for name, _, count in pairs}
        return "auto" if text.strip() == "auto" else int(text)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--samples {text}: expected auto, an integer of at least 1, or name=K,...") from None


def decoding_of(benchmark: Benchmark, overrides: Overrides, defaults: Mapping[str, Any] | None = None) -> Decoding:
    """The benchmark's documented decoding, with a checkpoint's defaults and then the overrides applied."""
    merged = asdict(benchmark.decoding) | dict(defaults or {})
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    samples = given.pop("samples", None)
    merged |= given
    if isinstance(samples, Mapping):
        samples = samples.get(benchmark.name)
    if samples == "auto":
        few = benchmark.num_items <= _FEW_ITEMS
        samples = 1 if merged["temperature"] == 0 else _SAMPLES_OF_FEW if few else _SAMPLES_OF_MANY
    return Decoding(**merged | ({} if samples is None else {"samples": samples}))


def _check_decoding(overrides: Overrides, defaults: Mapping[str, Any] | None, names: Sequence[str]) -> None:
    """Refuse overrides and checkpoint defaults that mean nothing."""
    overrides.check()
    for name in overrides.samples if isinstance(overrides.samples, Mapping) else ():
        if name not in names:
            raise unknown("benchmark in --samples (only those of this run):", name, names)
    for name in defaults or {}:
        if name not in _CHECKPOINT_DECODING:
            raise unknown("decoding setting of a checkpoint", name, _CHECKPOINT_DECODING)
    known = {name: value for name, value in (defaults or {}).items() if name != "top_k"}
    Overrides(**known).check()


def _check_length(overrides: Overrides, settings: EngineSettings, identity: Mapping[str, Any]) -> None:
    """Refuse more new tokens than the context has; the documented number is cut to what the prompt leaves."""
    asked, context = (
        overrides.max_new_tokens,
        min(filter(None, (settings.max_model_len, identity["context"])), default=0),
    )
    if asked and context and asked > context:
        raise UserError(
            f"--max-new-tokens {asked}: {identity['name']} has a context of {context} tokens here, prompt included. "
            "Give less, or leave it away: then a completion may take all that its prompt leaves."
        )


@dataclass
class _Task:
    """One benchmark inside a run."""

    benchmark: Benchmark
    items: list[Item]
    decoding: Decoding
    read_images: Callable[[Item], list[bytes]]
    folder: Path
    done: set[str]

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def samples_path(self) -> Path:
        return self.folder / "samples" / f"{self.name}.jsonl"

    def pending(self) -> list[Item]:
        return [item for item in self.items if item.item_id not in self.done]


def evaluate(
    model: str,
    benchmarks: Sequence[str],
    *,
    engine: str = "auto",
    out: Path | None = None,
    data_root: Path | None = None,
    limit: int | None = None,
    overrides: Overrides | None = None,
    decoding: Mapping[str, Any] | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    chat_template: str | None = None,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    distributed_executor_backend: str | None = None,
    data_parallel_size: int = 1,
    deterministic: bool = False,
    shard: Shard | None = None,
    image_root: Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    base_url: str | None = None,
    concurrency: int | None = None,
    api_key_env: str | None = None,
    label: str | None = None,
    shared: SharedEngine | None = None,
    progress: bool = True,
) -> Path:
    """Run a model on benchmarks and leave records.

    Args:
        model: checkpoint folder or hub id; for ``openai`` the name the server gives it.
        benchmarks: names from ``python -m eval_harness list``.
        engine: ``auto``, ``vllm``, ``transformers`` or ``openai``.
        out: run folder; default ``results/runs/eval-<model>-<fingerprint>``. A folder with the same run is resumed.
        data_root: folder with local copies of the data sets (default ``EVAL_DATA_ROOT``, else the hub).
        limit: only the first so many items of each benchmark, or of each of its groups.
        overrides: replaces documented decoding.
        decoding: the checkpoint's own defaults (``temperature``, ``top_p``, ``top_k``, ``max_new_tokens``,
            ``system_prompt``), which rank between the benchmark's documented decoding and ``overrides``.
        base_model: of a LoRA adapter: folder or hub id to take for the base that it names.
        chat_template: template text, ``none`` for plain text, None for the model's own.
        tensor_parallel_size, pipeline_parallel_size: GPUs that vLLM divides the model over: each layer, and the layers.
        distributed_executor_backend: vLLM's: ``mp`` on one node, ``ray`` over several.
        data_parallel_size: number of engines on this machine, which share the work.
        deterministic: greedy, one sample, and completions that do not depend on what is computed beside them.
        shard: only this part, into a folder inside ``out`` (see :mod:`eval_harness.shards`).
        image_root: folder with the image folders (default ``EVAL_IMAGE_ROOT``, else the data root).
        min_pixels, max_pixels: bounds of an image's size after scaling, in pixels (default: the model's processor).
        base_url, concurrency, api_key_env: for ``openai``: see :class:`EngineSettings`.
        label: name of the run in records (default: the model's name).
        shared: an engine that other runs of this model use, too; it stays open. Marks do not depend on it.
        progress: show progress bars.

    Returns:
        The run's folder.

    Raises:
        UserError: anything the caller can mend, before the engine starts.
        EngineError: the engine failed to start or died; finished records stay, the same call resumes.
    """
    overrides = _greedy(overrides or Overrides()) if deterministic else overrides or Overrides()
    for option, value in (
        *(("--model", model), ("--out", out), ("--revision", revision), ("--base-model", base_model)),
        *(("--base-url", base_url), ("--api-key-env", api_key_env), ("label", label)),
        *(("--data-root", data_root), ("--image-root", image_root)),
    ):
        check_argument(option, value)
    for option, value in (("--system-prompt", overrides.system_prompt), ("--chat-template", chat_template)):
        check_argument(option, value, lines=True)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected an integer of at least 1.")
    if max_model_len is not None and max_model_len < 2:
        raise UserError(f"--max-model-len {max_model_len}: expected an integer of at least 2.")
    for name, pixels in (("--min-pixels", min_pixels), ("--max-pixels", max_pixels)):
        if pixels is not None and pixels < 1:
            raise UserError(f"{name} {pixels}: expected a number of pixels, at least 1.")
    if min_pixels and max_pixels and min_pixels > max_pixels:
        raise UserError(f"--min-pixels {min_pixels} is more than --max-pixels {max_pixels}.")
    if not benchmarks:
        raise UserError("no benchmark given; see `python -m eval_harness list`.")
    chosen = [get_benchmark(name) for name in dict.fromkeys(benchmarks)]
    _check_decoding(overrides, decoding, [b.name for b in chosen])
    data_root, image_root = data_root or default_data_root(), image_root or default_image_root()
    engine = resolve_engine(engine)
    asked = {"base_url": base_url, "concurrency": concurrency, "api_key_env": api_key_env}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and engine != "openai":
        raise UserError(f"--{next(iter(asked)).replace('_', '-')} goes with --engine openai only.")
    if deterministic and engine == "openai":
        raise UserError(
            "--deterministic: how a server batches is up to the server. Start it in such a mode (vLLM: "
            "VLLM_BATCH_INVARIANT=1), and give --temperature 0 --samples 1 here."
        )
    settings = EngineSettings(
        model,
        revision,
        dtype,
        max_model_len,
        chat_template,
        tensor_parallel_size,
        min_pixels,
        max_pixels,
        pipeline_parallel_size=pipeline_parallel_size,
        distributed_executor_backend=distributed_executor_backend,
        deterministic=deterministic,
        base_model=base_model,
        **asked,
    )
    places = placements(engine, settings, data_parallel_size)
    identity = check_settings(settings) if engine == "openai" else check_checkpoint(model, revision, base_model)
    check_engine(identity, engine)
    check_chat_template(identity, chat_template)
    if max_model_len and identity["context"] and max_model_len > identity["context"]:
        raise UserError(
            f"--max-model-len {max_model_len}: {identity['name']} has a context of {identity['context']} "
            "tokens. Give at most that."
        )
    _check_length(overrides, settings, identity)
    blind = [b.name for b in chosen if b.image_field and not identity["vision"]]
    if blind:
        raise UserError(
            f"{identity['name']} is a text model, but {', '.join(blind)} shows images. Choose a vision-language model."
        )
    without_roles = [b.name for b in chosen if b.image_field and (b.form == "concatenate" or chat_template == "none")]
    if engine == "openai" and without_roles:
        raise UserError(
            f"{', '.join(without_roles)} would be asked with images and text without roles, which no server takes. Use "
            "--engine vllm."
        )
    loaded = [(b, first_items(b.load(data_root), limit), decoding_of(b, overrides, decoding)) for b in chosen]
    name = label or identity["name"].replace("/", "--")
    readers = {b.name: _image_reader(b, items, data_root, image_root) for b, items, _ in loaded}
    parts = identities.parts_of(identity, loaded, readers)
    request = identities.request_of(identity, engine, settings, loaded, limit, run_id=name, parts=parts)
    fingerprint = whole = identities.fingerprint(request)
    folder = Path(out) if out is not None else DEFAULT_OUT / f"eval-{name}-{whole[:8]}"
    classes = {b.name: classes_of(b.grader, (item.gold for item in items)) for b, items, _ in loaded}
    if shard is not None:
        check_others(folder, shard)
        loaded = [(b, shard.part(items), decoding) for b, items, decoding in loaded]
        fingerprint = identities.fingerprint_of_shard(whole, shard.index, shard.of)
        folder = folder / shard.folder
    job = _Job(
        folder=folder,
        name=name,
        fingerprint=fingerprint,
        identity=request,
        model={key: value for key, value in identity.items() if key != "files"},
        engine=engine,
        settings=settings,
        places=places,
        loaded=loaded,
        readers=readers,
        recorded={
            "limit": limit,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "chat_template": chat_template,
            "data": "local copy" if data_root else "hub",
            "deterministic": deterministic,
        },
        provenance=provenance.of_run(loaded, data_root, decoding, vars(overrides), classes),
        shard=None if shard is None else {**vars(shard), "fingerprint": whole},
        shared=shared,
        progress=progress,
    )
    if _is_finished(job):
        return folder
    _check_space(folder)
    with locked(folder, "evaluation"), disk_told(folder):
        return _run(job)


@dataclass(frozen=True)
class _Job:
    """A checked run, ready to start."""

    folder: Path
    name: str
    fingerprint: str
    identity: dict[str, Any]
    """What the fingerprint is the hash of (:mod:`eval_harness.identity`)."""
    model: dict[str, Any]
    """``model`` of the record."""
    engine: str
    settings: EngineSettings
    places: list[dict[str, str]]
    """Variables of each engine's process."""
    loaded: list[tuple[Benchmark, list[Item], Decoding]]
    readers: dict[str, Callable[[Item], list[bytes]]]
    recorded: dict[str, Any]
    """``settings`` of the record."""
    provenance: dict[str, Any]
    shard: dict[str, Any] | None
    shared: SharedEngine | None
    progress: bool

    @property
    def as_loaded(self) -> EngineSettings:
        """How the engine is started: a shared one with the model's own template also for a run in plain text."""
        s = self.settings
        plain = s.chat_template == "none" and self.shared is not None and self.model.get("chat_template")
        return replace(s, chat_template=None) if plain else s


def _greedy(overrides: Overrides) -> Overrides:
    """The overrides of a deterministic run."""
    if overrides.temperature or overrides.samples not in (None, 1, "auto"):
        raise UserError("--deterministic is greedy with one sample; leave --temperature and --samples away.")
    return replace(overrides, temperature=0.0, samples=1)


def first_items(items: list[Item], limit: int | None) -> list[Item]:
    """The first ``limit`` items of each group, in their order; None: all."""
    if limit is None:
        return items
    taken: Counter = Counter()
    kept = []
    for item in items:
        taken[item.group] += 1
        if taken[item.group] <= limit:
            kept.append(item)
    return kept


def data_parts(
    names: Iterable[str], *, data_root: Path | None = None, image_root: Path | None = None, limit: int | None = None
) -> dict[str, str]:
    """What benchmarks bring to a run's identity, as :func:`evaluate` with the same arguments would have it.

    Raises:
        UserError: data or images are missing.
    """
    data_root, image_root = data_root or default_data_root(), image_root or default_image_root()
    parts = {}
    for benchmark in map(get_benchmark, names):
        items = first_items(benchmark.load(data_root), limit)
        parts |= identities.data_parts(benchmark, items, benchmark.image_reader(data_root, image_root))
    return parts


def _image_reader(benchmark: Benchmark, items: list[Item], data_root, image_root) -> Callable[[Item], list[bytes]]:
    """The benchmark's reader, after a look at the first images: a bad one costs its item, a wrong folder the run."""
    read, problems = benchmark.image_reader(data_root, image_root), []
    for item in items[:_PROBED_IMAGES]:
        try:
            for data, name in zip(read(item), item.images, strict=True):
                decode(data, name)
            return read
        except ImageError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            f"{benchmark.name}: none of the first {len(problems)} images can be read. Is the image folder the right "
            f"one (--image-root)? The first: {problems[0]}."
        )
    return read


def _is_finished(job: _Job) -> bool:
    """Whether the folder holds this very run, finished and whole; it is only read then, and need not be writable.

    Raises:
        UserError: finished, but a file of its samples is not the one that the scores were made from.
    """
    if not (job.folder / "run.json").exists():
        return False
    run = records.read_run(job.folder)
    if run.kind != "evaluation" or run.fingerprint != job.fingerprint or run.status != "finished":
        return False
    gone = [name for name in run.benchmarks if not (job.folder / "samples" / f"{name}.jsonl").exists()]
    records.check_samples(job.folder, run, [name for name in run.benchmarks if name not in gone])
    if gone:
        print(f"{job.folder}: the samples of {', '.join(gone)} are gone; they are asked again.", file=sys.stderr)
    return not gone


def _changed(previous: records.RunRecord | records.TrainingRecord, job: _Job) -> str:
    """Why a folder's run is not the one asked for."""
    if previous.kind != "evaluation":
        return "it is a training"
    mine, its = (None if of is None else (of["index"], of["of"]) for of in (job.shard, previous.shard))
    if mine != its:
        return "it is another part of a run"
    found = identities.changes(previous, job.identity)
    return found[0] if found == [identities.NOT_KEPT] else f"these are not the same now: {'; '.join(found)}"


def _run(job: _Job) -> Path:
    folder, fingerprint = job.folder, job.fingerprint
    created, timings = records.now(), {"engine_start_s": 0.0, "generate_and_grade_s": 0.0}
    known = job.provenance
    if (folder / "run.json").exists():
        previous = records.read_run(folder)
        if previous.kind != "evaluation" or previous.fingerprint != fingerprint:
            raise UserError(
                f"{folder} holds another run ({previous.run_id}, fingerprint {previous.fingerprint}, this one "
                f"{fingerprint}): {_changed(previous, job)}. Nothing was touched; give another --out, or move that "
                "folder away."
            )
        created, timings = previous.created, dict(previous.timings)
        known = known | {"sessions": previous.provenance.get("sessions", [])}
    elif has_shards(folder):
        raise UserError(
            f"{folder} holds shards of a run. Join them with `python -m eval_harness merge {folder}`, or give another "
            "--out."
        )
    elif any(p.name not in (LOCK, OWNER) for p in folder.iterdir()):
        raise UserError(f"{folder} is not empty and not a run folder; give another --out.")
    else:
        previous = None
    record = RunRecord(
        run_id=job.name,
        fingerprint=fingerprint,
        status="running",
        created=created,
        finished=None,
        identity=job.identity,
        model=job.model,
        engine={"name": job.engine},
        benchmarks={},
        average=None,
        timings=timings,
        environment=records.environment(),
        settings=job.recorded,
        provenance=known,
        shard=job.shard,
    )
    if previous is None:  # before anything else is in the folder: without it a killed try could not be resumed
        records.write_json(folder / "run.json", record)
    tasks = [_open_task(folder, *entry, job.readers[entry[0].name]) for entry in job.loaded]
    pending = {task.name: task.pending() for task in tasks}
    if any(pending.values()):
        records.write_json(folder / "run.json", record)
        record = _generate(job, record, tasks, pending)
    elif previous is not None:
        kept = {name: getattr(previous, name) for name in ("engine", "environment", "provenance")}
        record = record.model_copy(update=kept)
    results = {  # a small benchmark may leave nothing to a shard
        task.name: summarise(task.benchmark, task.items, task.decoding, _samples(task)) for task in tasks if task.items
    }
    finished = {
        "status": "finished",
        "finished": records.now(not_before=record.created),
        "benchmarks": results,
        "provenance": provenance.with_samples(record.provenance, folder, results),
        **averages(results),
    }
    records.write_json(folder / "run.json", record.model_copy(update=finished))
    return folder


def _open_task(
    folder: Path, benchmark: Benchmark, items: list[Item], decoding: Decoding, read_images: Callable
) -> _Task:
    """Read what an earlier try left; an item counts as done when all its K samples are on disk."""
    task = _Task(benchmark, items, decoding, read_images, folder, set())
    items_path = folder / "items" / f"{benchmark.name}.jsonl"
    if not items_path.exists():
        records.replace_lines(items_path, items)
    kept = records.read_lines(task.samples_path, Sample, repair=True)
    per_item: dict[str, set[int]] = {}
    for sample in kept:
        indices = per_item.setdefault(sample.item_id, set())
        if sample.sample in indices:
            raise UserError(
                f"{task.samples_path}: sample {sample.sample} of item {sample.item_id} stands there twice; "
                "the file was edited. Move it away and run again."
            )
        indices.add(sample.sample)
    task.done = {item_id for item_id, indices in per_item.items() if len(indices) == decoding.samples}
    torn = {item_id for item_id in per_item if item_id not in task.done}
    if torn:  # a kill inside a write of K lines: ask that item again as a whole
        records.replace_lines(task.samples_path, [s for s in kept if s.item_id not in torn])
    return task


def _graders(job: _Job) -> AbstractContextManager[GradingPool]:
    def start() -> GradingPool:
        return GradingPool(deadline=DEADLINE_SECONDS).start({benchmark.grader for benchmark, _, _ in job.loaded})

    return start() if job.shared is None else job.shared.graders(start)


def _engine(job: _Job) -> AbstractContextManager[EngineProcess | EngineGroup | OpenAIEngine]:
    """The job's engine: one of its own, or the shared one."""
    if job.shared is None:
        return _start_engine(job)
    return job.shared.lend((job.engine, job.as_loaded, job.places), lambda: _start_engine(job))


def _start_engine(job: _Job) -> EngineProcess | EngineGroup | OpenAIEngine:
    log, settings = job.folder / "engine.log", job.as_loaded
    if job.engine == "openai":
        return OpenAIEngine(settings, log)
    if len(job.places) > 1:
        return EngineGroup(job.engine, settings, log, job.places)
    return EngineProcess(job.engine, settings, log)


def _generate(job: _Job, record: RunRecord, tasks: list[_Task], pending: dict[str, list[Item]]) -> RunRecord:
    folder = job.folder
    by_name = {task.name: task for task in tasks}
    items = {(task.name, item.item_id): item for task in tasks for item in pending[task.name]}
    classes = {name: told.get("classes") for name, told in record.provenance["benchmarks"].items()}
    bars: dict[str, tqdm] = {}
    graded: queue.SimpleQueue[tuple[_Task, Item, Result, Any]] = queue.SimpleQueue()
    in_flight = 0

    def write(block: bool) -> None:
        nonlocal in_flight
        while in_flight and (block or not graded.empty()):
            task, item, result, future = graded.get()
            in_flight -= 1
            records.append_lines(task.samples_path, _samples_of(task, item, result, future.result()))
            bars[task.name].update(len(result.completions) or task.decoding.samples)

    def unreadable(task: _Task, item: Item, error: ImageError) -> None:
        records.append_lines(task.samples_path, _samples_of(task, item, Result("", error=str(error)), []))
        tqdm.write(f"{task.name}, item {item.item_id}: {error}; it is recorded as failed and counts as wrong.")
        bars[task.name].update(task.decoding.samples)

    if job.progress and not (job.shared and job.shared.running):
        several = f"{len(job.places)} engines of " if len(job.places) > 1 else ""
        tqdm.write(f"Starting {several}{job.engine} with {record.model['name']} (log in {folder}) ...")
    with _graders(job) as pool, _engine(job) as process:
        bars.update(_bars(tasks, pending, job.progress))
        session = provenance.of_session(job.settings, process.description, record.environment)
        earlier = record.provenance["sessions"]
        if job.engine == "openai" and earlier and any(by_name[name].done for name in pending):
            _check_server(earlier[-1]["engine"], process.description, folder)
        record = record.model_copy(
            update={
                "engine": process.description,
                "provenance": record.provenance | {"sessions": [*earlier, session]},
                "timings": record.timings | {"engine_start_s": round(process.start_seconds, 2)},
            }
        )
        records.write_json(folder / "run.json", record)
        started = time.monotonic()
        plain = job.settings.chat_template == "none"
        try:
            for result in process.generate(_requests(tasks, pending, plain, unreadable)):
                name, item_id = json.loads(result.key)
                task, item = by_name[name], items[name, item_id]
                future = pool.grade_async(
                    task.benchmark.grader,
                    _answers(
                        task.benchmark.grader,
                        item,
                        ((clean(c.text), c.finish_reason) for c in result.completions),
                        classes[name],
                    ),
                )
                in_flight += 1
                future.add_done_callback(
                    lambda f, task=task, item=item, result=result: graded.put((task, item, result, f))
                )
                write(block=False)
        finally:
            write(block=True)  # also when interrupted: what was generated is graded and kept
            for bar in bars.values():
                bar.close()
        spent = record.timings["generate_and_grade_s"] + time.monotonic() - started
    timings = record.timings | {"generate_and_grade_s": round(spent, 2)}
    sessions = [*earlier, session | {"engine": dict(process.description)}]  # engines find out things on the way
    return record.model_copy(
        update={
            "engine": process.description,
            "timings": timings,
            "provenance": record.provenance | {"sessions": sessions},
        }
    )


def _check_server(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a server that says of itself something else than the one that began; more is not known."""
    other = [
        f"{key}: {then[key]} and {now[key]}"
        for key in ("owned_by", "version", "max_model_len")
        if key in then and key in now and then[key] != now[key]
    ]
    if other:
        raise UserError(
            f"{folder} was begun by another server ({', '.join(other)}). Its samples stay; start that one again, or "
            "give another --out."
        )


def _answers(
    grader: str, item: Item, said: Iterable[tuple[str, str | None]], classes: list[str] | None = None
) -> list[tuple]:
    """Completions of an item, each with the reason why it ended, as the grading pool takes them."""
    shared = {"question": item.prompt, "classes": classes}
    known = [(text, context_for(grader, item.context, finish_reason=why, **shared)) for text, why in said]
    return [(item.gold, text, context) if context else (item.gold, text) for text, context in known]


def _requests(
    tasks: list[_Task], pending: dict[str, list[Item]], plain: bool, unreadable: Callable
) -> Iterator[Request]:
    """Requests in order, each image read when its turn comes; items whose image cannot be read go to ``unreadable``."""
    for task in tasks:
        d = task.decoding
        sampling = Sampling(d.temperature, d.top_p, d.top_k, d.max_new_tokens, d.samples, d.seed)
        system = [{"role": "system", "content": d.system_prompt}] if d.system_prompt else []
        for item in pending[task.name]:
            messages = [*system, {"role": "user", "content": item.prompt}]
            seeded = replace(sampling, seed=item_seed(d.seed, task.name, item.item_id))
            try:
                images = [base64.b64encode(data).decode("ascii") for data in task.read_images(item)]
            except ImageError as error:
                unreadable(task, item, error)
                continue
            form = "plain" if plain and task.benchmark.form == "chat" else task.benchmark.form
            yield Request(json.dumps([task.name, item.item_id]), messages, seeded, images, form)


def item_seed(seed: int, benchmark: str, item_id: str) -> int:
    """A seed per item, so that a completion does not depend on which other items are asked."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{benchmark}/{item_id}") % (1 << 31)


def _samples_of(task: _Task, item: Item, result: Result, verdicts: list[Verdict]) -> list[Sample]:
    first = item_seed(task.decoding.seed, task.name, item.item_id)
    if result.error is not None:
        nothing = dict.fromkeys(
            ("completion", "finish_reason", "num_completion_tokens", "correct", "correct_strict", "extracted")
        )
        return [
            Sample(
                item_id=item.item_id,
                sample=i,
                seed=first + i,
                status="failed",
                reason=provenance.shown(result.error),  # libraries put paths and addresses into their messages
                num_prompt_tokens=result.num_prompt_tokens,
                gold_fallback=False,
                **nothing,
            )
            for i in range(task.decoding.samples)
        ]
    return [
        Sample(
            item_id=item.item_id,
            sample=i,
            seed=first + i,
            status="scored",
            completion=clean(c.text),  # half a surrogate pair is no JSON
            finish_reason=c.finish_reason,
            num_prompt_tokens=result.num_prompt_tokens,
            num_completion_tokens=c.num_tokens,
            **asdict(v),
        )
        for i, (c, v) in enumerate(zip(result.completions, verdicts, strict=True))
    ]


def _samples(task: _Task) -> Iterator[Sample]:
    return records.iter_lines(task.samples_path, Sample)


class _Mark(NamedTuple):
    """What of a sample a score is made from: without its text, so that a million of them fit."""

    sample: int
    status: str
    mark: float
    mark_strict: float
    extra: dict[str, float]


def summarise(
    benchmark: Benchmark,
    items: list[Item],
    decoding: Decoding,
    samples: Iterable[Sample],
    *,
    schema_version: int = records.SCHEMA_VERSION,
) -> BenchmarkResult:
    """Scores and denominators from samples, read once. A failed sample counts as wrong and is shown as failed.

    Args:
        schema_version: intervals are those of records of this version.
    """
    stats = _Intervals.of(schema_version)
    asked = len(items) * decoding.samples
    by_item: dict[str, list[_Mark]] = {item.item_id: [] for item in items}
    counts: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    gold_fallback: set[str] = set()
    tokens, tokens_known, stray = 0, True, 0
    for s in samples:
        counts["samples"] += 1
        if s.item_id not in by_item:
            stray += 1
            continue
        by_item[s.item_id].append(_Mark(s.sample, s.status, s.mark, s.mark_strict, s.extra))
        if s.status != "scored":
            continue
        counts["scored"] += 1
        counts["truncated"] += s.finish_reason == "length"
        counts["no_answer"] += s.reason == "no_answer"
        counts["timeout"] += s.reason in UNFINISHED
        flags.update(s.flags)
        flags.update([s.finish_reason] if s.finish_reason in records.WITHHELD else ())
        if s.gold_fallback:
            gold_fallback.add(s.item_id)
        if s.num_completion_tokens is None:
            tokens_known = False
        else:
            tokens += s.num_completion_tokens
    if counts["samples"] != asked or stray:
        of_none = f" ({stray} of them of no item)" if stray else ""
        raise UserError(
            f"{benchmark.name}: {counts['samples']} samples on disk{of_none}, {asked} asked; resume the run first."
        )
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group is not None:
            groups.setdefault(item.group, []).append(item)
    scored = counts["scored"]
    return BenchmarkResult(
        version=benchmark.version,
        source=benchmark.source.describe(),
        prompts_hash=prompts_hash(items),
        decoding=decoding,
        **_scores(items, by_item, stats, benchmark),
        **(_single(items, by_item, stats, benchmark) if scored and decoding.samples > 1 else {}),
        groups={name: GroupResult(**_scores(part, by_item, stats)) for name, part in groups.items()},
        flags=dict(sorted(flags.items())),
        num_gold_fallback=len(gold_fallback),
        num_truncated=counts["truncated"],
        num_no_answer=counts["no_answer"],
        num_timeout=counts["timeout"],
        mean_completion_tokens=tokens / scored if scored and tokens_known else None,
    )


class _Intervals(NamedTuple):
    """Which intervals records of a schema version hold, in the words of :mod:`eval_harness.stats`."""

    items: Literal["wilson", "t"]
    averages: Literal["mover", "normal"]

    @classmethod
    def of(cls, schema_version: int) -> _Intervals:
        return cls(
            "wilson" if schema_version >= records.INTERVALS_SINCE else "t",
            "mover" if schema_version >= records.AVERAGES_SINCE else "normal",
        )


def averages(
    results: Mapping[str, BenchmarkResult], *, schema_version: int = records.SCHEMA_VERSION
) -> dict[str, dict | None]:
    """``average`` and ``average_single`` of a run record: plain means over its benchmarks, null where one has none."""
    interval = _Intervals.of(schema_version).averages

    def mean(estimates: list[dict | None]) -> dict | None:
        if not estimates or not all(estimates):
            return None
        return mean_of_estimates([Estimate(**e) for e in estimates], interval=interval).as_dict()

    several = any(result.single for result in results.values())
    return {
        "average": mean([result.score for result in results.values()]),
        "average_single": mean([r.single or r.score for r in results.values()]) if several else None,
    }


def _scores(
    items: list[Item], by_item: dict[str, list[_Mark]], stats: _Intervals, benchmark: Benchmark | None = None
) -> dict[str, Any]:
    """Counts and estimates over some items: the fields of GroupResult. ``benchmark`` given: its strata weigh."""

    def mean(marks: Callable[[_Mark], float]) -> dict[str, float]:
        return mean_of_items([[marks(s) for s in of_item] for of_item in samples], interval=stats.items).as_dict()

    samples = [by_item[item.item_id] for item in items]
    scored = [s for of_item in samples for s in of_item if s.status == "scored"]
    asked = sum(map(len, samples))
    return {
        "num_items": len(items),
        "asked": asked,
        "scored": len(scored),
        "failed": asked - len(scored),
        "score": mean(lambda s: s.mark) if scored else None,
        "score_strict": _strict_estimate(items, samples, stats, benchmark).as_dict() if scored else None,
        "extra": {
            name: mean(lambda s, name=name: s.extra.get(name, 0.0))
            for name in sorted({name for s in scored for name in s.extra})
        },
    }


def _strict_estimate(
    items: list[Item], samples: list[list[_Mark]], stats: _Intervals, benchmark: Benchmark | None
) -> Estimate:
    """The strict rule's mean; ``samples`` are those of each item."""
    strict = [[s.mark_strict for s in of_item] for of_item in samples]
    if benchmark is not None and benchmark.strict_strata:
        strata = [item.context.get(benchmark.stratum_field) for item in items]
        weights = benchmark.strict_strata
        return mean_of_strata(strict, strata, weights, interval=stats.averages, of_items=stats.items)
    return mean_of_items(strict, interval=stats.items)


def _single(
    items: list[Item], by_item: dict[str, list[_Mark]], stats: _Intervals, benchmark: Benchmark
) -> dict[str, dict]:
    """Both rules' means over the first sample of each item: ``single`` and ``single_strict``."""
    first = [[s for s in by_item[item.item_id] if s.sample == 0] for item in items]
    return {
        "single": mean_of_items([[s.mark for s in of_item] for of_item in first], interval=stats.items).as_dict(),
        "single_strict": _strict_estimate(items, first, stats, benchmark).as_dict(),
    }


def verify(folder: Path) -> dict[str, dict[str, Any]]:
    """Grade a stored run again, from its items and completions, and compare everything that follows from them.

    Returns:
        Per benchmark: ``stored`` and ``regraded`` score, the record's ``asked``, ``scored`` and ``failed``,
        ``changed`` (number of samples whose marks differ), ``problems`` (what of the record does not follow from items
        and samples: counts, prompts, golds, either rule's score and interval, the single-sample score, the samples
        themselves),
        ``versions`` (what is another version now than when the run was graded) and ``reproduced``: no mark changed
        and no problem. Samples that ended in a timeout are graded again too.
        ``average``, where it does not follow from the benchmarks, has an entry of its own, and so has ``record``:
        model, weights, settings, run id or the training beside the run are not those of its fingerprint.

    Raises:
        UserError: not a finished evaluation, or files that cannot be read.
    """
    run = records.read_run(folder)
    if run.kind != "evaluation" or run.status != "finished":
        raise UserError(f"{folder} is not a finished evaluation; finish it first.")
    with GradingPool() as pool:
        report = {name: _verify_benchmark(Path(folder), run, name, pool) for name in run.benchmarks}
    stored = {"average": run.average, "average_single": run.average_single}
    found = averages(run.benchmarks, schema_version=run.schema_version)
    if wrong := [name for name, value in found.items() if not _same(value, stored[name])]:
        means = (run.average or {}).get("mean"), (found["average"] or {}).get("mean")
        report["average"] = _broken(*means, [f"{' and '.join(wrong)} is not the mean of the benchmarks"])
    if problems := [*identities.misfits(run), *_training_misfits(Path(folder), run)]:
        report["record"] = _broken(None, None, problems)
    return report


def _broken(stored: float | None, regraded: float | None, problems: list[str]) -> dict[str, Any]:
    """An entry of ``verify``'s report that is of no benchmark."""
    return {
        "stored": stored, "regraded": regraded, "changed": 0, "problems": problems, "versions": [], "reproduced": False
    }  # fmt: skip


def _training_misfits(folder: Path, run: RunRecord) -> list[str]:
    """What of the training that lies beside a committed run (``training/``) does not fit it; none there: nothing."""
    if not (folder / "training" / "run.json").exists():
        base = re.fullmatch(r"base-[a-z]+-([0-9a-f]{8})", run.run_id)  # the tables' name for an untrained base
        other = base is not None and base[1] != (run.model.get("weights") or "")[:8]
        return ["run_id is not that of the base's weights"] if other else []
    training = records.read_run(folder / "training")
    if training.kind != "training" or training.status != "finished":
        return ["training: not a finished training"]
    problems = []
    if run.run_id != training.run_id.removeprefix("train-"):
        problems.append(f"run_id is not that of its training ({training.run_id})")
    if not training.run_id.endswith(f"-{training.fingerprint[:8]}"):
        problems.append("training: run_id and fingerprint differ")
    try:
        records.steps_frame(folder / "training")
    except UserError as error:
        problems.append(f"training: {error}")
    return problems


class GradedAgain(NamedTuple):
    """A benchmark of a stored run under the present rules."""

    benchmark: Benchmark
    items: list[Item]
    samples: list[Sample]
    fresh: list[Sample]
    """The same samples with the marks of today; empty where there are problems."""
    changed: int
    """Samples whose marks differ."""
    problems: list[str]
    """What of items and samples does not fit the record."""


def grade_again(folder: Path, run: RunRecord, name: str, pool: GradingPool) -> GradedAgain:
    """Items and samples of a stored run's benchmark, held against the record, and its completions graded by today's
    rules. Nothing is written."""
    result, benchmark = run.benchmarks[name], get_benchmark(name)
    items = records.read_lines(folder / "items" / f"{name}.jsonl", Item)
    samples = records.read_lines(folder / "samples" / f"{name}.jsonl", Sample)
    by_id = {item.item_id: item for item in items}
    known = run.provenance.get("benchmarks", {}).get(name, {})
    problems = _misfits(items, samples, result) + _items_misfits(items, run, benchmark, known)
    scored = [s for s in samples if s.status == "scored" and s.item_id in by_id]
    told = ((by_id[s.item_id], [(s.completion, s.finish_reason)]) for s in scored)
    classes = known.get("classes") or classes_of(benchmark.grader, (item.gold for item in items))
    answers = [answer for item, said in told for answer in _answers(benchmark.grader, item, said, classes)]
    verdicts = pool.grade(benchmark.grader, answers)
    changed = sum(_marks(s) != _marks(v) for s, v in zip(scored, verdicts, strict=True))
    again = iter(verdicts)
    fresh = (
        [] if problems else [s.model_copy(update=asdict(next(again))) if s.status == "scored" else s for s in samples]
    )
    return GradedAgain(benchmark, items, samples, fresh, changed, problems)


def _verify_benchmark(folder: Path, run: RunRecord, name: str, pool: GradingPool) -> dict[str, Any]:
    result = run.benchmarks[name]
    benchmark, items, samples, fresh, changed, problems = grade_again(folder, run, name, pool)
    regraded = None
    if not problems:
        found = summarise(benchmark, items, result.decoding, fresh, schema_version=run.schema_version)
        regraded = found.score["mean"] if found.score else None
        names = ("score", "score_strict") + (() if result.single is None else ("single", "single_strict"))
        problems = [f"{n} differs" for n in names if not _same(getattr(found, n), getattr(result, n))]
        groups = {**found.groups, **result.groups}
        problems += [f"group {g} differs" for g in groups if not _same_group(found.groups.get(g), result.groups.get(g))]
        counts = ("num_items", "asked", "scored", "failed")
        problems += [f"{n} is {getattr(found, n)}" for n in counts if getattr(found, n) != getattr(result, n)]
    if samples and not samples_are_the_records(folder, run, name):
        problems.append("the samples are not those of the record (samples_hash)")
    return {
        "stored": result.score["mean"] if result.score else None,
        "regraded": regraded,
        **{name: getattr(result, name) for name in ("asked", "scored", "failed")},
        "changed": changed,
        "problems": problems,
        "versions": _other_versions(run, name, benchmark, result),
        "reproduced": changed == 0 and not problems,
    }


def samples_are_the_records(folder: Path, run: RunRecord, name: str) -> bool:
    """Whether a benchmark's samples are those that its scores were made from; records before version 3 do not say."""
    known = run.provenance.get("benchmarks", {}).get(name, {})
    digest = records.lines_hash(folder / "samples" / f"{name}.jsonl")
    return known.get("samples_hash", digest) == digest


def _misfits(items: list[Item], samples: list[Sample], result: BenchmarkResult) -> list[str]:
    """What of the stored files does not fit the record, before any grading."""
    expected = Counter((item.item_id, i) for item in items for i in range(result.decoding.samples))
    found = Counter((s.item_id, s.sample) for s in samples)
    problems = []
    if missing := (expected - found).total():
        problems.append(f"{missing} of {result.asked} samples are missing")
    if extra := (found - expected).total():
        problems.append(f"{extra} samples are of no item, or there twice")
    if len(items) != result.num_items:
        problems.append(f"{len(items)} items on disk, {result.num_items} in the record")
    if prompts_hash(items) != result.prompts_hash:
        problems.append("the prompts are not those of the record (prompts_hash)")
    return problems


def _other_versions(run: RunRecord, name: str, benchmark: Benchmark, result: BenchmarkResult) -> list[str]:
    """What decides marks and is another version now, as ``what then -> now``."""
    now = grader_identity(benchmark.grader)
    then = run.provenance.get("benchmarks", {}).get(name, {}).get("grader") or {
        **now,
        "packages": {package: run.environment.get("packages", {}).get(package) for package in now["packages"]},
    }
    pairs = [("benchmark", result.version, benchmark.version), ("grader", then["name"], now["name"])]
    pairs += [("grader version", then["version"], now["version"])]
    pairs += [("strict rule", *(_rule(identity, now) for identity in (then, now)))]
    pairs += [(package, then["packages"].get(package), version) for package, version in now["packages"].items()]
    return [f"{what} {old} -> {new}" for what, old, new in pairs if old is not None and old != new]


def _rule(identity: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The strict rule that a grader's identity names; earlier records name none."""
    rule = identity.get("strict")
    return f"{rule['name']} {rule['version']}" if rule else "of the grader" if "strict" in now else None


def _items_misfits(items: list[Item], run: RunRecord, benchmark: Benchmark, known: Mapping[str, Any]) -> list[str]:
    """Golds and contexts that are not those that were asked, as far as prompts alone do not tell."""
    result = run.benchmarks[benchmark.name]
    if prompts_hash(items) != result.prompts_hash:
        return []  # told already
    if known:
        held = identities.recorded_parts(run) if run.shard is None else {}
        held = {known["items_hash"], held.get(f"items of {benchmark.name}", known["items_hash"])}
        return [] if held == {provenance.items_hash(items)} else [
            "golds or contexts are not those of the record (items_hash)"
        ]  # fmt: skip
    if not isinstance(benchmark.source, Generated) or benchmark.version != result.version:
        return []  # nothing here says what they were
    made = {item.item_id: (item.gold, item.context) for item in benchmark.load()}
    if all((item.gold, item.context) == made.get(item.item_id) for item in items):
        return []
    return ["golds or contexts are not those that the benchmark makes"]


def _same_group(one: GroupResult | None, other: GroupResult | None) -> bool:
    return bool(one and other) and all(
        _same(getattr(one, name), getattr(other, name)) for name in ("score", "score_strict")
    )


def _same(one: Mapping[str, float] | None, other: Mapping[str, float] | None) -> bool:
    """Whether two stored estimates agree but for the last bits."""
    if one is None or other is None:
        return one is other
    return all(math.isclose(one[k], other[k], abs_tol=1e-9) or one[k] != one[k] for k in ("mean", "se", "low", "high"))


def _marks(graded: Sample | Verdict) -> tuple:
    return graded.correct, graded.correct_strict, graded.score, graded.score_strict


def _bars(tasks: list[_Task], pending: dict[str, list[Item]], progress: bool) -> dict[str, tqdm]:
    return {
        task.name: progress_bar(
            total=len(task.items) * task.decoding.samples,
            desc=task.benchmark.title,
            unit="sample",
            initial=(len(task.items) - len(pending[task.name])) * task.decoding.samples,
            disable=not progress or not pending[task.name],
        )
        for task in tasks
    }


def _check_space(folder: Path) -> None:
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"only {free >> 20} MiB are free where {folder} lies; at least {_MIN_FREE_BYTES >> 20} MiB are "
            "needed for records."
        )
