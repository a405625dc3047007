"""Grading with a deadline that holds: worker processes that are killed and replaced.

Symbolic comparison of what a model wrote can run for hours on one nested exponent. Signals inside the caller do not
help (they fail off the main thread and cannot stop C code), so answers are graded in worker processes. An answer past
its deadline is the verdict ``timeout``, a recorded zero. One whose worker takes too much memory is ``grader_memory``,
one whose worker dies ``grader_crash``; these two are tried a second time in a new worker before. Verdicts are cached,
since samplers repeat themselves.

Why not a ready-made pool: its workers share queues and locks, so a worker that the operating system kills can take the
whole pool with it (pebble 5.2 then answers "Unexpected error within the Pool"). Here every worker has a connection of
its own and reports answer by answer, so the one that was being graded is known and nothing else is lost. Why not the
workers of ``multiprocessing``: they run the caller's main script again, and outlive a caller that is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil
import xxhash

from eval_harness.errors import unknown
from eval_harness.graders import nursery
from eval_harness.graders.base import CRASHED, GRADERS, LIGHTEVAL, TIMED_OUT, TOO_LARGE, UNFINISHED, Verdict

DEADLINE_SECONDS = 5.0
PATIENCE = 2.0
MEMORY_BYTES = 1 << 30
"""What a worker may take beyond what it starts with."""
CHUNK = 16
"""Answers handed to a worker at once."""
CACHE_ENTRIES, CACHE_BYTES = 200_000, 64 << 20
_CHUNK_CHARACTERS = 1 << 20
_START_SECONDS = 3600.0
"""Until a worker is ready, imports included: minutes on a crowded machine. One that died is noticed at once."""
_READ_SECONDS = 600.0
"""Until a worker has its answers and its grader."""
_POLL_SECONDS = 0.05
"""How often the memory of busy workers is looked at."""
_STUCK_SECONDS = 0.2
"""A worker that is at one answer for longer gives the rest of its chunk to an idle one."""
_CACHED_SECONDS = 2.5
"""Verdicts that took longer are not cached: the inner limits of the libraries (3 s) may have decided them."""
_MAX_FAILED_STARTS = 3


Answer = tuple[str, str] | tuple[str, str, Mapping[str, Any]]
"""Gold and prediction, and what else the benchmark knows about the item, as JSON values."""


class VerdictCache:
    """Verdicts by key, the least recently used leaving first; bounded in entries and in bytes. Not thread-safe."""

    def __init__(self, max_entries: int = CACHE_ENTRIES, max_bytes: int = CACHE_BYTES):
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._verdicts: OrderedDict[bytes, tuple[Verdict, int]] = OrderedDict()
        self.num_bytes = 0
        """Estimated size of what is held."""

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: bytes) -> Verdict | None:
        """The verdict stored under a key, if it is still there."""
        found = self._verdicts.get(key)
        if found is None:
            return None
        self._verdicts.move_to_end(key)
        return found[0]

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Store a verdict, and let others go where it takes their room."""
        self._drop(self._verdicts.pop(key, None))
        size = _size(verdict)
        self._verdicts[key] = verdict, size
        self.num_bytes += size
        while len(self._verdicts) > self.max_entries or self.num_bytes > self.max_bytes:
            self._drop(self._verdicts.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything."""
        self._verdicts.clear()
        self.num_bytes = 0

    def _drop(self, entry: tuple[Verdict, int] | None) -> None:
        self.num_bytes -= 0 if entry is None else entry[1]


def _size(verdict: Verdict) -> int:
    """Bytes of a verdict and its key, roughly: objects, and texts at Python's widest four bytes a character."""
    texts = sum(len(text) for text in (verdict.extracted, verdict.extracted_strict) if text is not None)
    return 700 + 4 * texts + 80 * (len(verdict.flags) + len(verdict.extra))


@dataclass
class _Batch:
    """One call of ``grade_async``: its answers and the verdicts so far. Equal answers are graded once."""

    grader: str
    pairs: list[Answer]
    keys: list[bytes]
    verdicts: list[Verdict | None]
    future: Future = field(default_factory=Future)
    same: dict[int, list[int]] = field(default_factory=dict)
    """First place of an answer without a verdict -> all its places."""
    retried: set[int] = field(default_factory=set)
    """Answers that have cost a worker already."""
    remaining: int = 0


@dataclass(eq=False)
class _Worker:
    """A process, its connection, and what it is busy with: answers ``todo`` of ``batch``, the first since ``since``."""

    child: nursery.Child
    since: float
    lighteval: bool = True
    """Whether it was born with lighteval's graders."""
    ready: bool = False
    process: psutil.Process | None = None
    born_memory: int = 0
    batch: _Batch | None = None
    chunk: int = 0
    begun: bool = False
    computed: float = 0.0
    """Its computing time when it began its answer, in seconds."""
    todo: deque[int] = field(default_factory=deque)
    gave_back: bool = False
    """All but the first of ``todo`` are in the queue again."""

    @property
    def connection(self) -> Connection:
        return self.child.connection

    def send(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # a dead worker is noticed by its connection
            self.connection.send_bytes(json.dumps(message).encode("ascii"))


class GradingPool:
    """Grades in killable worker processes; safe to call from any thread, a notebook or asyncio.

    Args:
        workers: number of processes, default one per available core.
        deadline: seconds an answer may take before its worker is killed. They are seconds of the worker's own computing
            time, so that a busy machine makes no zeros of right answers.
        patience: by the clock on the wall an answer may take so many times the deadline, whatever it does.
        memory: bytes a worker may take beyond what it starts with before it is killed.

    Use as a context manager, or call :meth:`close`. Workers start on the first answer. A forked copy of the process
    has a pool of its own, without answers. ``asyncio.wrap_future`` makes the futures awaitable.
    """

    def __init__(
        self,
        workers: int | None = None,
        deadline: float = DEADLINE_SECONDS,
        memory: int = MEMORY_BYTES,
        patience: float = PATIENCE,
    ):
        if deadline <= 0:
            raise ValueError(f"deadline must be positive, got {deadline}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        if memory <= 0:
            raise ValueError(f"memory must be positive, got {memory}")
        self.num_workers = workers or available_cores()
        self.deadline, self.memory, self.patience = deadline, memory, patience
        self.peak_memory = 0
        """Most resident bytes a worker was seen with, those it shares with the others included."""
        self.born_memory = 0
        """What of it a worker starts with, at most."""
        self._closing = self._lighteval = False
        self._cache = VerdictCache()
        self._workers: list[_Worker] = []
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[tuple[_Batch, list[int]]] = deque()
        self._workers = []
        self._failed_starts = self._num_chunks = 0
        self._thread: threading.Thread | None = None
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)

    def start(self, graders: Iterable[str] = ()) -> GradingPool:
        """Start the workers now (their imports take seconds), e.g. while an engine loads.

        Args:
            graders: what they will be asked for.
        """
        with self._lock:
            self._lighteval |= any(map(_needs_lighteval, graders))
            self._start()
        return self

    def _start(self) -> None:
        if self._closing:
            raise RuntimeError("the grading pool is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._dispatch, name="grading-pool", daemon=True)
            self._thread.start()

    def grade_async(self, grader: str, pairs: Sequence[Answer]) -> Future[list[Verdict]]:
        """Grade (gold, prediction) or (gold, prediction, context) tuples; the future holds the verdicts in order.

        Raises:
            UserError: unknown grader (at once, not in the future).
            RuntimeError: the pool is closed. In the future: a bug in the grader.
        """
        if grader not in GRADERS and ":" not in grader:
            raise unknown("grader", grader, GRADERS)
        pairs = list(pairs)
        keys = [_key(grader, *pair) for pair in pairs]
        with self._lock:
            self._lighteval |= _needs_lighteval(grader)  # before the first worker, if this is the first answer
            self._start()
            batch = _Batch(grader, pairs, keys, [self._cache.get(key) for key in keys])
            batch.future.set_running_or_notify_cancel()  # from here on it ends in a result, whoever waits
            first: dict[bytes, int] = {}
            for i, verdict in enumerate(batch.verdicts):
                if verdict is None:
                    batch.same.setdefault(first.setdefault(keys[i], i), []).append(i)
            batch.remaining = len(batch.same)
            self._queue.extend((batch, chunk) for chunk in _chunks(batch))
        if batch.remaining:
            self._wake()
        else:
            batch.future.set_result(batch.verdicts)
        return batch.future

    def grade(self, grader: str, pairs: Sequence[Answer]) -> list[Verdict]:
        """As :meth:`grade_async`, waiting for the verdicts."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("grade() would wait for itself in a callback of this pool; use grade_async().")
        return self.grade_async(grader, pairs).result()

    def close(self) -> None:
        """Stop the workers, which are gone when this returns; unfinished answers fail with RuntimeError.

        The nursery of this process stays for a while (:mod:`eval_harness.graders.nursery`).
        """
        with self._lock:
            self._closing, thread = True, self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- the dispatching thread; only it touches the workers -------------------------------------------------------

    def _dispatch(self) -> None:
        try:
            while not self._closing:
                while len(self._workers) < self.num_workers:
                    with_lighteval = self._lighteval
                    child = nursery.fork_worker(self.memory, with_lighteval)
                    self._workers.append(_Worker(child, time.monotonic(), with_lighteval))
                for worker in list(self._workers):
                    if worker.ready and worker.batch is None and not self._hand_out(worker):
                        self._take_back()
                        break
                if len(self._workers) == self.num_workers:
                    self._wait()
            self._fail(RuntimeError("the grading pool was closed"))
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for worker in self._workers:
                if worker.ready:
                    self._see(worker.child.kill().peak_memory)
                else:  # perhaps not forked yet; it will not live
                    worker.child.forget()
            self._workers.clear()

    def _hand_out(self, worker: _Worker) -> bool:
        """Give a worker the next chunk; False: there is none."""
        indices: list[int] = []
        while not indices:
            with self._lock:
                if not self._queue:
                    return False
                batch, indices = self._queue.popleft()
            indices = [i for i in indices if batch.verdicts[i] is None and not batch.future.done()]
        if _needs_lighteval(batch.grader) and not worker.lighteval:  # another one, which need not import it by itself
            with self._lock:
                self._queue.appendleft((batch, indices))
            self._lose(worker)
            return True
        self._num_chunks += 1
        worker.batch, worker.todo, worker.chunk = batch, deque(indices), self._num_chunks
        worker.begun, worker.gave_back, worker.since = False, False, time.monotonic()
        worker.send("grade", worker.chunk, batch.grader, [batch.pairs[i] for i in indices])
        return True

    def _take_back(self) -> None:
        """A worker is idle: let it have what waits behind an answer that takes long."""
        now = time.monotonic()
        for worker in self._workers:
            stuck = worker.begun and len(worker.todo) > 1 and now - worker.since > _STUCK_SECONDS
            if stuck and not worker.gave_back:
                worker.gave_back = True
                worker.send("drop", worker.chunk)
                with self._lock:
                    self._queue.append((worker.batch, list(worker.todo)[1:]))
                self._wake()
                return

    def _wait(self) -> None:
        now = time.monotonic()
        limits = [worker.since + self._limit(worker) - now for worker in self._workers if self._limit(worker)]
        if any(worker.begun for worker in self._workers):
            limits.append(_POLL_SECONDS)
        by_connection = {worker.connection: worker for worker in self._workers}
        for source in wait([self._wake_reader, *by_connection], max(0.0, min(limits)) if limits else None):
            if source is self._wake_reader:
                self._wake_reader.recv_bytes()
                continue
            worker = by_connection[source]
            try:
                message = json.loads(worker.connection.recv_bytes())
            except (EOFError, OSError):
                self._lose(worker)
            else:
                self._receive(worker, *message)
        for worker in list(self._workers):
            self._check(worker)

    def _limit(self, worker: _Worker) -> float | None:
        """Seconds on the wall that the worker has for what it is doing; None: it is idle."""
        if worker.begun:
            return self.deadline * self.patience
        if not worker.ready:
            return _START_SECONDS
        return None if worker.batch is None else _READ_SECONDS

    def _check(self, worker: _Worker) -> None:
        """Kill a worker that takes too long or too much, unless it has just said something."""
        limit, spent = self._limit(worker), time.monotonic() - worker.since
        if limit is None or worker not in self._workers or worker.connection.poll():
            return
        if spent >= limit:
            self._lose(worker, TIMED_OUT)
        elif worker.begun and spent >= min(_POLL_SECONDS, self.deadline):
            with contextlib.suppress(psutil.Error):
                memory, times = worker.process.memory_info().rss, worker.process.cpu_times()
                self._see(memory)
                if memory - worker.born_memory > self.memory:
                    self._lose(worker, TOO_LARGE)
                elif times.user + times.system - worker.computed >= self.deadline:
                    self._lose(worker, TIMED_OUT)

    def _receive(self, worker: _Worker, kind: str, *told: Any) -> None:
        batch = worker.batch
        if kind == "ready":
            pid, worker.born_memory = told
            self.born_memory = max(self.born_memory, worker.born_memory)
            with contextlib.suppress(psutil.Error):
                worker.process = psutil.Process(pid)
                worker.ready = True
        elif kind == "begun":
            worker.begun, worker.since, self._failed_starts = True, time.monotonic(), 0
            (worker.computed,) = told
        elif kind == "verdict":
            spent, worker.since = time.monotonic() - worker.since, time.monotonic()
            fields, worker.computed = told
            self._store(batch, worker.todo.popleft(), Verdict(**fields | {"flags": tuple(fields["flags"])}), spent)
        elif kind == "error":  # a bug in a grader: never scored
            if not batch.future.done():
                batch.future.set_exception(RuntimeError(told[0]))
        elif kind == "end":
            (memory,) = told
            worker.batch, worker.begun, worker.todo = None, False, deque()
            self._see(memory)
            if memory - worker.born_memory > self.memory // 2:  # room for the next answer
                self._lose(worker)

    def _store(self, batch: _Batch, index: int, verdict: Verdict, spent: float = 0.0) -> None:
        if batch.verdicts[index] is not None:  # it was given back, and graded twice
            return
        for place in batch.same[index]:
            batch.verdicts[place] = verdict
        # what ended for time or memory depends on the machine's load: no facts about the answer
        if verdict.reason not in UNFINISHED and spent < _CACHED_SECONDS:
            with self._lock:
                self._cache.put(batch.keys[index], verdict)
        batch.remaining -= 1
        if batch.remaining == 0 and not batch.future.done():
            batch.future.set_result(batch.verdicts)

    def _lose(self, worker: _Worker, verdict: Verdict | None = None) -> None:
        """Kill a worker, if it is not dead yet; its answer gets a verdict or a second try, the others are asked again.

        Args:
            worker: which.
            verdict: why it is killed; None: find out from how it died.
        """
        death = worker.child.kill()
        self._workers.remove(worker)
        self._see(death.peak_memory)
        if verdict is None:
            large = death.status in (-signal.SIGKILL, nursery.OUT_OF_MEMORY)  # the kernel's choice, or the limit
            verdict = TOO_LARGE if large else CRASHED
        if not worker.begun and (worker.batch is not None or not worker.ready):
            self._failed_starts += 1
            # A nursery that dies takes all its workers along, and those that were asked of it meanwhile.
            lost = 1 if death.status is not None else 1 + self.num_workers
            if self._failed_starts >= _MAX_FAILED_STARTS * lost:
                raise RuntimeError(
                    "grading workers cannot start; run `python -c 'import eval_harness.graders.warm_lighteval'`"
                )
        if not worker.todo:
            return
        batch, rest = worker.batch, deque(worker.todo)
        again: list[list[int]] = []
        if worker.begun or len(rest) == 1:
            index = rest.popleft()
            if verdict is TIMED_OUT or index in batch.retried:
                self._store(batch, index, verdict)
            else:
                batch.retried.add(index)
                again.append([index])
        if rest and not worker.gave_back:
            again.append(list(rest))
        with self._lock:
            self._queue.extendleft((batch, indices) for indices in reversed(again))

    def _see(self, memory: int) -> None:
        self.peak_memory = max(self.peak_memory, memory)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._closing = True
            batches = [batch for batch, _ in self._queue]
            self._queue.clear()
        batches += [worker.batch for worker in self._workers if worker.batch is not None]
        for batch in batches:
            if not batch.future.done():
                batch.future.set_exception(error)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send_bytes(b"x")

    def _forget_after_fork(self) -> None:
        """In a forked copy of the process: the thread is not there, and the workers are the original's."""
        for worker in self._workers:
            worker.child.forget()
        self._wake_reader.close()
        self._wake_writer.close()
        self._begin()


_pools: weakref.WeakSet[GradingPool] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [pool._forget_after_fork() for pool in list(_pools)])


@cache
def shared_pool() -> GradingPool:
    """One pool per process, for rewards and notebooks; closed when the process ends."""
    pool = GradingPool()
    atexit.register(pool.close)
    return pool


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _needs_lighteval(grader: str) -> bool:
    return grader.rpartition(":")[2] in LIGHTEVAL


def _chunks(batch: _Batch) -> Iterator[list[int]]:
    """The answers of a batch that need grading, in pieces of bounded number and length."""
    chunk: list[int] = []
    length = 0
    for index in batch.same:
        gold, prediction = batch.pairs[index][:2]
        size = len(gold) + len(prediction)
        if chunk and (len(chunk) == CHUNK or length + size > _CHUNK_CHARACTERS):
            yield chunk
            chunk, length = [], 0
        chunk.append(index)
        length += size
    if chunk:
        yield chunk


def _key(grader: str, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> bytes:
    digest = xxhash.xxh3_128(grader.encode())
    for part in (gold, prediction, json.dumps(context, sort_keys=True) if context else ""):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
