"""Grading with a deadline that holds: worker processes that are killed and replaced.

Symbolic comparison of what a model wrote can run for hours on one nested exponent. Signals inside the caller do not
help (they fail off the main thread and cannot stop C code), so answers are graded in worker processes. An answer past
its deadline is the verdict ``timeout``, a recorded zero. Verdicts are cached, since samplers repeat themselves.

Why not a ready-made pool: its workers share queues and locks, so a worker that the operating system kills can take the
whole pool with it (pebble 5.2 then answers "Unexpected error within the Pool"). Here every worker has a pipe of its
own and reports answer by answer, so the one that was being graded is known and nothing else is lost.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

import xxhash

from eval_harness.errors import unknown
from eval_harness.graders.base import GRADERS, Verdict, get_grader

DEADLINE_SECONDS = 5.0
CHUNK = 16
"""Answers handed to a worker at once."""
_CACHE_SIZE = 200_000
_MAX_FAILED_STARTS = 3
_TIMEOUT = Verdict(False, False, None, "timeout")
_KILLED = Verdict(False, False, None, "grader_memory")


Answer = tuple[str, str] | tuple[str, str, Mapping[str, Any]]
"""Gold and prediction, and what else the benchmark knows about the item, as JSON values."""


@dataclass
class _Batch:
    """One call of ``grade_async``: its answers and the verdicts so far."""

    grader: str
    pairs: list[Answer]
    keys: list[bytes]
    verdicts: list[Verdict | None]
    future: Future = field(default_factory=Future)
    remaining: int = 0


@dataclass
class _Worker:
    """A process, its pipe, and what it is busy with: answers ``todo`` of ``batch``, the first one since ``since``."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    ready: bool = False
    batch: _Batch | None = None
    todo: deque[int] = field(default_factory=deque)
    since: float = 0.0


class GradingPool:
    """Grades in killable worker processes; safe to call from any thread, a notebook or asyncio.

    Args:
        workers: number of processes, default one per available core.
        deadline: seconds an answer may take before its worker is killed.

    Use as a context manager, or call :meth:`close`. Workers start on the first answer.
    """

    def __init__(self, workers: int | None = None, deadline: float = DEADLINE_SECONDS):
        if deadline <= 0:
            raise ValueError(f"deadline must be positive, got {deadline}")
        self.num_workers = workers or available_cores()
        self.deadline = deadline
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()
        self._queue: deque[tuple[_Batch, list[int]]] = deque()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)

    def start(self) -> GradingPool:
        """Start the workers now (their imports take seconds), e.g. while an engine loads."""
        with self._lock:
            if self._closing:
                raise RuntimeError("the grading pool is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._dispatch, name="grading-pool", daemon=True)
                self._thread.start()
        return self

    def grade_async(self, grader: str, pairs: Sequence[Answer]) -> Future[list[Verdict]]:
        """Grade (gold, prediction) or (gold, prediction, context) tuples; the future holds the verdicts in order.

        Raises:
            UserError: unknown grader (at once, not in the future).
        """
        if grader not in GRADERS:
            raise unknown("grader", grader, GRADERS)
        self.start()
        pairs = list(pairs)
        keys = [_key(grader, *pair) for pair in pairs]
        with self._lock:
            batch = _Batch(grader, pairs, keys, [self._cache.get(key) for key in keys])
            todo = [i for i, verdict in enumerate(batch.verdicts) if verdict is None]
            batch.remaining = len(todo)
            self._queue.extend((batch, todo[i : i + CHUNK]) for i in range(0, len(todo), CHUNK))
        if todo:
            self._wake()
        else:
            batch.future.set_result(batch.verdicts)
        return batch.future

    def grade(self, grader: str, pairs: Sequence[Answer]) -> list[Verdict]:
        """As :meth:`grade_async`, waiting for the verdicts."""
        return self.grade_async(grader, pairs).result()

    def close(self) -> None:
        """Stop the workers; unfinished answers fail with RuntimeError."""
        with self._lock:
            self._closing, thread = True, self._thread
        self._wake()
        if thread is not None:
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
                    self._workers.append(_start_worker())
                for worker in self._workers:
                    if worker.ready and worker.batch is None:
                        self._hand_out(worker)
                self._wait()
            self._fail(RuntimeError("the grading pool was closed"))
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for worker in self._workers:
                _kill(worker)
            self._workers.clear()

    def _hand_out(self, worker: _Worker) -> None:
        with self._lock:
            if not self._queue:
                return
            batch, indices = self._queue.popleft()
        worker.batch, worker.todo, worker.since = batch, deque(indices), time.monotonic()
        with contextlib.suppress(OSError):  # a dead worker is noticed by its pipe below
            worker.connection.send((batch.grader, [batch.pairs[i] for i in indices]))

    def _wait(self) -> None:
        now = time.monotonic()
        busy = [worker for worker in self._workers if worker.batch is not None]
        timeout = min((worker.since + self.deadline - now for worker in busy), default=None)
        by_connection = {worker.connection: worker for worker in self._workers}
        for source in wait([self._wake_reader, *by_connection], timeout if timeout is None else max(0.0, timeout)):
            if source is self._wake_reader:
                self._wake_reader.recv_bytes()
                continue
            worker = by_connection[source]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._replace(worker, _KILLED)
            else:
                self._receive(worker, message)
        for worker in busy:
            if worker.batch is not None and time.monotonic() - worker.since >= self.deadline:
                self._replace(worker, _TIMEOUT)

    def _receive(self, worker: _Worker, message: Verdict | Exception | None) -> None:
        if message is None:
            worker.ready, self._failed_starts = True, 0
        elif isinstance(message, Exception):  # a bug in a grader: never scored
            batch = worker.batch
            worker.batch, worker.todo = None, deque()
            if not batch.future.done():
                batch.future.set_exception(message)
        else:
            self._store(worker, message)

    def _store(self, worker: _Worker, verdict: Verdict) -> None:
        batch, index = worker.batch, worker.todo.popleft()
        worker.since = time.monotonic()
        if not worker.todo:
            worker.batch = None
        batch.verdicts[index] = verdict
        if verdict not in (_TIMEOUT, _KILLED):  # those depend on the machine's load: no facts about the answer
            with self._lock:
                self._cache[batch.keys[index]] = verdict
                while len(self._cache) > _CACHE_SIZE:
                    self._cache.popitem(last=False)
        batch.remaining -= 1
        if batch.remaining == 0 and not batch.future.done():
            batch.future.set_result(batch.verdicts)

    def _replace(self, worker: _Worker, verdict: Verdict) -> None:
        """Kill a worker; the answer it was at gets the verdict, the rest of its chunk goes back to the queue."""
        _kill(worker)
        self._workers.remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise RuntimeError("grading workers cannot start; run `python -c 'import eval_harness.graders.math'`")
        if worker.batch is not None:
            batch, rest = worker.batch, list(worker.todo)[1:]
            self._store(worker, verdict)
            if rest:
                with self._lock:
                    self._queue.appendleft((batch, rest))

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


@cache
def shared_pool() -> GradingPool:
    """One pool per process, for rewards and notebooks; closed when the process ends."""
    pool = GradingPool()
    atexit.register(pool.close)
    return pool


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _context() -> multiprocessing.context.BaseContext:
    # forkserver: workers fork from a small process that has imported the graders once, so replacing a killed worker is
    # cheap and the caller's threads and CUDA state are never forked
    if sys.platform in ("win32", "darwin"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"eval_harness.graders.{name}" for name in ("math", "choice", "number")])
    return context


def _start_worker() -> _Worker:
    context = _context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True, name="grader")
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _serve(connection: Connection) -> None:
    """A worker: grade chunks, answer by answer, until the pipe closes."""
    import logging
    import signal

    import eval_harness.graders.math  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller
    logging.disable(logging.WARNING)  # lighteval warns once per answer it cannot read; the verdict says so already
    connection.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            grader, pairs = connection.recv()
            for pair in pairs:
                try:
                    verdict = get_grader(grader).grade(*pair)
                except Exception as error:
                    connection.send(RuntimeError(f"grader {grader} failed: {type(error).__name__}: {error}"))
                    break
                connection.send(verdict)


def _key(grader: str, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> bytes:
    digest = xxhash.xxh3_128(grader.encode())
    for part in (gold, prediction, json.dumps(context, sort_keys=True) if context else ""):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
