"""The engine's subprocess, seen from the run: start, send, receive, close. JSON lines over pipes, nothing pickled."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from eval_harness import guard
from eval_harness.engines.base import Completion, EngineError, EngineSettings, Request, Result
from eval_harness.engines.fork_server import engine_environment, fork_engine
from eval_harness.private import hide

START_TIMEOUT_SECONDS = 3600.0
"""A large checkpoint on a slow disk takes long to load; a dead process is noticed at once anyway."""
_ERROR_LINE = re.compile(r"\b\w*(Error|Exception): .+")
_WINDOW = 2048
"""Requests in flight at most, so that memory stays bounded on large benchmarks."""
IMAGE_WINDOW = 128
"""The same for requests with images: a picture of a megapixel takes 24 MB once it is cut into patches."""


class EngineProcess:
    """An engine in a process group of its own, which does not outlive this process. Use as a context manager.

    Args:
        engine: ``vllm`` or ``transformers``.
        settings: what to load.
        log: file for everything the engine prints, without what is private (:mod:`eval_harness.private`); its tail is
            quoted when the engine dies.
        environment: variables for this process beside those of the caller.

    Raises:
        EngineError: the engine could not load the model; the message carries its last words.
    """

    def __init__(self, engine: str, settings: EngineSettings, log: Path, environment: Mapping[str, str] | None = None):
        self.engine, self.log = engine, Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        env = engine_environment(environment)
        with open(self.log, "ab") as log_file:  # a folder that cannot be written is told before anything starts
            self._log_start = log_file.tell()
        self._process = fork_engine(engine, env) or subprocess.Popen(
            [*guard.command(), sys.executable, "-m", "eval_harness.engines.worker", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        self._logger = threading.Thread(target=self._write_log, daemon=True)
        self._logger.start()
        self.messages: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        """What the engine said and was not read yet; None: it is dead."""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.send({"settings": asdict(settings)})
            hello = self._receive(START_TIMEOUT_SECONDS)
            if "error" in hello:
                raise EngineError(f"the {engine} engine could not load {settings.model}: {hello['error']}")
        except BaseException:
            self.close()
            raise
        self.description: dict = hello["ready"]
        self.start_seconds = time.monotonic() - started

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stdout:
                self.messages.put(json.loads(line))
        self.messages.put(None)

    def _write_log(self) -> None:
        """Keep what the engine prints; go on reading when the disk is full, or the engine would wait for us."""
        with contextlib.suppress(ValueError), self._process.stderr as lines:
            for line in lines:
                with contextlib.suppress(OSError), open(self.log, "ab", buffering=0) as file:
                    file.write(hide(line.decode("utf-8", errors="replace")).encode("utf-8", errors="replace"))

    def send(self, message: dict) -> None:
        """Write to the engine; EngineError when it is dead."""
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            raise self.died() from None

    def _receive(self, timeout: float | None = None) -> dict:
        try:
            message = self.messages.get(timeout=timeout)
        except queue.Empty:
            raise EngineError(
                f"the {self.engine} engine gave no sign of life for {timeout:.0f} s; see {self.log}"
            ) from None
        if message is None:
            raise self.died()
        return message

    def died(self) -> EngineError:
        """The error that tells why the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._logger.join(timeout=10)
        text = self.log.read_bytes()[self._log_start :].decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        # the first error is the cause; what follows is the engine's processes telling each other
        cause = next((m.group() for line in lines if (m := _ERROR_LINE.search(line))), None)
        tail = "\n  ".join(lines[-6:]) or "(it printed nothing)"
        return EngineError(
            f"the {self.engine} engine stopped (exit status {self._process.poll()})"
            + (f": {cause}" if cause else "")
            + f". Its last lines, from {self.log}:\n  {tail}"
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Complete requests, yielding results in the order they finish.

        Raises:
            EngineError: the process died; results yielded before are good.
        """
        pending, source, exhausted, window = 0, iter(requests), False, _WINDOW
        while True:
            batch = []
            while not exhausted and pending + len(batch) < window:
                request = next(source, None)
                if request is None:
                    exhausted = True
                else:
                    window = IMAGE_WINDOW if request.images else _WINDOW
                    batch.append(asdict(request))
            if batch:
                self.send({"requests": batch})
                pending += len(batch)
            if pending == 0:
                return
            for raw in self._receive()["results"]:
                pending -= 1
                yield result_of(raw)

    def close(self) -> None:
        """End the process and everything it started; memory is back when this returns."""
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._logger.join(timeout=10)
        with contextlib.suppress(OSError):
            self._process.stdout.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def result_of(raw: dict) -> Result:
    """A result as the engine sent it."""
    return Result(**raw | {"completions": [Completion(**completion) for completion in raw["completions"]]})
