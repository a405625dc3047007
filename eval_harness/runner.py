"""Evaluate a model on benchmarks: one engine, killable graders, records written as results arrive.

Everything that can be wrong is checked before the engine starts. A killed run, started again with the same settings,
asks the model only for what is not on disk.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout
from tqdm import tqdm

from eval_harness import records
from eval_harness.benchmarks import Benchmark, get_benchmark, prompts_hash
from eval_harness.engines import EngineProcess, EngineSettings, Request, Result, Sampling, resolve_engine
from eval_harness.engines.openai import OpenAIEngine, check_settings, server_of
from eval_harness.errors import UserError
from eval_harness.graders.base import Verdict
from eval_harness.graders.pool import DEADLINE_SECONDS, GradingPool
from eval_harness.images import ImageError, decode
from eval_harness.models import check_model
from eval_harness.progress import progress_bar
from eval_harness.records import BenchmarkResult, Decoding, GroupResult, Item, RunRecord, Sample
from eval_harness.sources import default_data_root, default_image_root
from eval_harness.stats import Estimate, mean_of_estimates, mean_of_items, mean_of_strata

DEFAULT_OUT = Path("results") / "runs"
_MIN_FREE_BYTES = 50 << 20
_PROBED_IMAGES = 5
"""If none of so many first images can be read, the image folder is the wrong one."""


@dataclass(frozen=True)
class Overrides:
    """What replaces a benchmark's documented decoding; ``None`` keeps it. Everything is recorded."""

    samples: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    system_prompt: str | None = None

    def check(self) -> None:
        """Raise UserError for values no sampler accepts."""
        for name, value, good, want in (
            ("--samples", self.samples, lambda v: v >= 1, "an integer of at least 1"),
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


def decoding_of(benchmark: Benchmark, overrides: Overrides) -> Decoding:
    """The benchmark's documented decoding with the overrides applied."""
    merged = asdict(benchmark.decoding)
    merged |= {name: value for name, value in asdict(overrides).items() if value is not None}
    return Decoding(**merged)


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
    revision: str | None = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    chat_template: str | None = None,
    tensor_parallel_size: int = 1,
    image_root: Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    base_url: str | None = None,
    concurrency: int | None = None,
    api_key_env: str | None = None,
    label: str | None = None,
    progress: bool = True,
) -> Path:
    """Run a model on benchmarks and leave records.

    Args:
        model: checkpoint folder or hub id; for ``openai`` the name the server gives it.
        benchmarks: names from ``python -m eval_harness list``.
        engine: ``auto``, ``vllm``, ``transformers`` or ``openai``.
        out: run folder; default ``results/runs/<model>-<fingerprint>``. A folder with the same run is resumed.
        data_root: folder with local copies of the data sets (default ``EVAL_DATA_ROOT``, else the hub).
        limit: only the first so many items of each benchmark, or of each of its groups.
        overrides: replaces documented decoding.
        chat_template: template text, ``none`` for plain text, None for the model's own.
        image_root: folder with the image folders (default ``EVAL_IMAGE_ROOT``, else the data root).
        min_pixels, max_pixels: bounds of an image's size after scaling, in pixels (default: the model's processor).
        base_url, concurrency, api_key_env: for ``openai``: see :class:`EngineSettings`.
        label: name of the run in records (default: the model's name).
        progress: show progress bars.

    Returns:
        The run's folder.

    Raises:
        UserError: anything the caller can mend, before the engine starts.
        EngineError: the engine failed to start or died; finished records stay, the same call resumes.
    """
    overrides = overrides or Overrides()
    overrides.check()
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
    data_root, image_root = data_root or default_data_root(), image_root or default_image_root()
    engine = resolve_engine(engine)
    asked = {"base_url": base_url, "concurrency": concurrency, "api_key_env": api_key_env}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and engine != "openai":
        raise UserError(f"--{next(iter(asked)).replace('_', '-')} goes with --engine openai only.")
    settings = EngineSettings(
        model, revision, dtype, max_model_len, chat_template, tensor_parallel_size, min_pixels, max_pixels, **asked
    )
    identity = check_settings(settings) if engine == "openai" else check_model(model, revision)
    if max_model_len and identity["context"] and max_model_len > identity["context"]:
        raise UserError(
            f"--max-model-len {max_model_len}: {identity['name']} has a context of {identity['context']} "
            "tokens. Give at most that."
        )
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
    loaded = [(b, first_items(b.load(data_root), limit), decoding_of(b, overrides)) for b in chosen]
    readers = {b.name: _image_reader(b, items, data_root, image_root) for b, items, _ in loaded}
    request = _request_of(identity, engine, settings, loaded, limit)
    fingerprint = xxhash.xxh3_64(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
    name = label or identity["name"].replace("/", "--")
    folder = Path(out) if out is not None else DEFAULT_OUT / f"eval-{name}-{fingerprint[:8]}"
    _check_space(folder)
    with _locked(folder):
        return _run(folder, name, fingerprint, identity, engine, settings, loaded, readers, limit, data_root, progress)


def _request_of(identity: dict, engine: str, settings: EngineSettings, loaded: list, limit: int | None) -> dict:
    """Everything that can move a mark; its hash decides whether a folder can be resumed."""
    return {
        "model": {k: identity[k] for k in ("name", "revision", "weights")},
        "engine": engine,
        "settings": {
            k: v
            for k, v in asdict(settings).items()
            if k not in ("model", "gpu_memory_utilization", "base_url", "concurrency", "api_key_env")
            and not (k.endswith("_pixels") and v is None)
        },
        # a server of one's own may move to another port or machine between two tries
        **({"server": server_of(settings.base_url)["host"]} if engine == "openai" else {}),
        "limit": limit,
        "benchmarks": {
            b.name: [b.version, b.grader, prompts_hash(items), decoding.model_dump()] for b, items, decoding in loaded
        },
    }


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


def _run(folder, name, fingerprint, identity, engine, settings, loaded, readers, limit, data_root, progress) -> Path:
    created, timings = records.now(), {"engine_start_s": 0.0, "generate_and_grade_s": 0.0}
    if (folder / "run.json").exists():
        previous = records.read_run(folder)
        if previous.kind != "evaluation" or previous.fingerprint != fingerprint:
            raise UserError(
                f"{folder} holds another run ({previous.run_id}, fingerprint {previous.fingerprint}, this one "
                f"{fingerprint}): model, data, engine or decoding differ. Nothing was touched; give another "
                "--out."
            )
        created, timings = previous.created, dict(previous.timings)
    elif folder.exists() and any(p.name != ".lock" for p in folder.iterdir()):
        raise UserError(f"{folder} is not empty and not a run folder; give another --out.")
    tasks = [_open_task(folder, *entry, readers[entry[0].name]) for entry in loaded]
    record = RunRecord(
        run_id=name,
        fingerprint=fingerprint,
        status="running",
        created=created,
        finished=None,
        model=identity,
        engine={"name": engine},
        benchmarks={},
        average=None,
        timings=timings,
        environment=records.environment(),
        settings={
            "limit": limit,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "chat_template": settings.chat_template,
            "data": "local copy" if data_root else "hub",
        },
    )
    pending = {task.name: task.pending() for task in tasks}
    if any(pending.values()):
        records.write_json(folder / "run.json", record)
        record = _generate(record, folder, tasks, pending, engine, settings, progress)
    elif (folder / "run.json").exists():
        record = record.model_copy(update={"engine": previous.engine, "environment": previous.environment})
        if previous.status == "finished":
            return folder
    results = {task.name: summarise(task.benchmark, task.items, task.decoding, _samples(task)) for task in tasks}
    scored = [Estimate(**r.score) for r in results.values() if r.score]
    average = mean_of_estimates(scored).as_dict() if len(scored) == len(results) else None
    finished = record.model_copy(
        update={"status": "finished", "finished": records.now(), "benchmarks": results, "average": average}
    )
    records.write_json(folder / "run.json", finished)
    return folder


def _open_task(
    folder: Path, benchmark: Benchmark, items: list[Item], decoding: Decoding, read_images: Callable
) -> _Task:
    """Read what an earlier try left; an item counts as done when all its K samples are on disk."""
    task = _Task(benchmark, items, decoding, read_images, folder, set())
    items_path = folder / "items" / f"{benchmark.name}.jsonl"
    if not items_path.exists():
        temporary = items_path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        records.append_lines(temporary, items)
        os.replace(temporary, items_path)
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
        temporary = task.samples_path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        records.append_lines(temporary, [s for s in kept if s.item_id not in torn])
        os.replace(temporary, task.samples_path)
    return task


def _generate(record, folder, tasks, pending, engine, settings, progress) -> RunRecord:
    by_name = {task.name: task for task in tasks}
    items = {(task.name, item.item_id): item for task in tasks for item in pending[task.name]}
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

    log = folder / "engine.log"
    if progress:
        tqdm.write(f"Starting {engine} with {record.model['name']} (log: {log}) ...")
    with (
        GradingPool(deadline=DEADLINE_SECONDS).start() as pool,
        OpenAIEngine(settings, log) if engine == "openai" else EngineProcess(engine, settings, log) as process,
    ):
        bars.update(_bars(tasks, pending, progress))
        record = record.model_copy(
            update={
                "engine": process.description,
                "timings": record.timings | {"engine_start_s": round(process.start_seconds, 2)},
            }
        )
        records.write_json(folder / "run.json", record)
        started = time.monotonic()
        try:
            for result in process.generate(_requests(tasks, pending, unreadable)):
                name, item_id = json.loads(result.key)
                task, item = by_name[name], items[name, item_id]
                future = pool.grade_async(task.benchmark.grader, _answers(item, (c.text for c in result.completions)))
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
    return record.model_copy(update={"engine": process.description, "timings": timings})


def _answers(item: Item, texts) -> list[tuple]:
    """Completions of an item as the grading pool takes them."""
    context = (item.context,) if item.context else ()
    return [(item.gold, text, *context) for text in texts]


def _requests(tasks: list[_Task], pending: dict[str, list[Item]], unreadable: Callable) -> Iterator[Request]:
    """Requests in order, each image read when its turn comes; items whose image cannot be read go to ``unreadable``."""
    for task in tasks:
        d = task.decoding
        sampling = Sampling(d.temperature, d.top_p, d.top_k, d.max_new_tokens, d.samples, d.seed)
        system = [{"role": "system", "content": d.system_prompt}] if d.system_prompt else []
        for item in pending[task.name]:
            messages = [*system, {"role": "user", "content": item.prompt}]
            seeded = replace(sampling, seed=_seed(d.seed, task.name, item.item_id))
            try:
                images = [base64.b64encode(data).decode("ascii") for data in task.read_images(item)]
            except ImageError as error:
                unreadable(task, item, error)
                continue
            yield Request(json.dumps([task.name, item.item_id]), messages, seeded, images, task.benchmark.form)


def _seed(seed: int, benchmark: str, item_id: str) -> int:
    """A seed per item, so that a completion does not depend on which other items are asked."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{benchmark}/{item_id}") % (1 << 31)


def _samples_of(task: _Task, item: Item, result: Result, verdicts: list[Verdict]) -> list[Sample]:
    first = _seed(task.decoding.seed, task.name, item.item_id)
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
                reason=result.error,
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
            completion=c.text.encode("utf-8", "replace").decode("utf-8"),  # half a surrogate pair is no JSON
            finish_reason=c.finish_reason,
            num_prompt_tokens=result.num_prompt_tokens,
            num_completion_tokens=c.num_tokens,
            **asdict(v),
        )
        for i, (c, v) in enumerate(zip(result.completions, verdicts, strict=True))
    ]


def _samples(task: _Task) -> list[Sample]:
    return records.read_lines(task.samples_path, Sample)


def summarise(benchmark: Benchmark, items: list[Item], decoding: Decoding, samples: list[Sample]) -> BenchmarkResult:
    """Scores and denominators from samples. A failed sample counts as wrong and is shown as failed."""
    asked = len(items) * decoding.samples
    scored = [s for s in samples if s.status == "scored"]
    if len(samples) != asked:
        raise UserError(f"{benchmark.name}: {len(samples)} samples on disk, {asked} asked; resume the run first.")
    by_item: dict[str, list[Sample]] = {item.item_id: [] for item in items}
    for sample in samples:
        by_item[sample.item_id].append(sample)
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group is not None:
            groups.setdefault(item.group, []).append(item)
    tokens = [s.num_completion_tokens for s in scored]
    return BenchmarkResult(
        version=benchmark.version,
        source=benchmark.source.describe(),
        prompts_hash=prompts_hash(items),
        decoding=decoding,
        **_scores(items, by_item, benchmark),
        groups={name: GroupResult(**_scores(part, by_item)) for name, part in groups.items()},
        flags=dict(sorted(Counter(flag for s in scored for flag in s.flags).items())),
        num_gold_fallback=len({s.item_id for s in scored if s.gold_fallback}),
        num_truncated=sum(s.finish_reason == "length" for s in scored),
        num_no_answer=sum(s.reason == "no_answer" for s in scored),
        num_timeout=sum(s.reason in ("timeout", "grader_memory") for s in scored),
        mean_completion_tokens=sum(tokens) / len(tokens) if tokens and None not in tokens else None,
    )


def _scores(items: list[Item], by_item: dict[str, list[Sample]], benchmark: Benchmark | None = None) -> dict[str, Any]:
    """Counts and estimates over some items: the fields of GroupResult. ``benchmark`` given: its strata weigh."""
    samples = [by_item[item.item_id] for item in items]
    scored = [s for of_item in samples for s in of_item if s.status == "scored"]
    asked = sum(map(len, samples))
    strict = [[s.mark_strict for s in of_item] for of_item in samples]
    if benchmark is not None and benchmark.strict_strata:
        strata = [item.context.get(benchmark.stratum_field) for item in items]
        total_strict = mean_of_strata(strict, strata, benchmark.strict_strata)
    else:
        total_strict = mean_of_items(strict)
    return {
        "num_items": len(items),
        "asked": asked,
        "scored": len(scored),
        "failed": asked - len(scored),
        "score": mean_of_items([[s.mark for s in of_item] for of_item in samples]).as_dict() if scored else None,
        "score_strict": total_strict.as_dict() if scored else None,
        "extra": {
            name: mean_of_items([[s.extra.get(name, 0.0) for s in of_item] for of_item in samples]).as_dict()
            for name in sorted({name for s in scored for name in s.extra})
        },
    }


def verify(folder: Path) -> dict[str, dict[str, Any]]:
    """Grade a stored run again, from its items and completions.

    Returns:
        Per benchmark: ``stored`` and ``regraded`` score, ``changed`` (number of samples whose marks differ) and
        ``reproduced``. Samples that ended in a timeout are graded again too.
    """
    run = records.read_run(folder)
    if run.kind != "evaluation" or run.status != "finished":
        raise UserError(f"{folder} is not a finished evaluation; finish it first.")
    report = {}
    with GradingPool() as pool:
        for name, result in run.benchmarks.items():
            items = {i.item_id: i for i in records.read_lines(Path(folder) / "items" / f"{name}.jsonl", Item)}
            samples = records.read_lines(Path(folder) / "samples" / f"{name}.jsonl", Sample)
            scored = [s for s in samples if s.status == "scored"]
            answers = [answer for s in scored for answer in _answers(items[s.item_id], [s.completion])]
            verdicts = pool.grade(get_benchmark(name).grader, answers)
            pairs = list(zip(scored, verdicts, strict=True))
            changed = sum(_marks(s) != _marks(v) for s, v in pairs)
            marks: dict[str, list[float]] = {item_id: [] for item_id in items}
            for s, v in pairs:
                marks[s.item_id].append(float(v.correct) if v.score is None else v.score)
            for s in samples:
                if s.status == "failed":
                    marks[s.item_id].append(0.0)
            regraded = mean_of_items(list(marks.values())).mean
            stored = result.score["mean"] if result.score else None
            report[name] = {
                "stored": stored,
                "regraded": regraded,
                "changed": changed,
                "reproduced": changed == 0 and stored is not None and abs(stored - regraded) < 1e-12,
            }
    return report


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


def _locked(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is writing to {folder}. Wait for it, or give another --out.") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}). Give --out a folder you may write to.") from None


def _check_space(folder: Path) -> None:
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"only {free >> 20} MiB are free where {folder} lies; at least {_MIN_FREE_BYTES >> 20} MiB are "
            "needed for records."
        )
