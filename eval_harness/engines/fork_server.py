"""Engines that start in half a second: forked from one process that has imported torch and transformers.

A table measures dozens of models, each with the transformers engine in a process of its own, and seven seconds of
processor time of each start are imports. Within ``warm_engines()`` one process imports them once and forks an engine
when asked. That process runs no other code, has loaded no model and touched no GPU; the caller is never forked. It
serves starts in the environment that the block began in. vLLM and others (a GPU of their own, another number of
threads) start as always.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval_harness import guard

PRELOAD = (
    "eval_harness.engines.transformers",
    "transformers.generation.utils",
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    "transformers.tokenization_mistral_common",
)
_NUMBER = struct.Struct("!i")
_LONGEST = 1 << 20
"""Bytes of a request: the environment and a folder."""
_READ_AT_IMPORT = re.compile(
    r"(OMP|MKL|KMP_A|OPENBLAS|NUMEXPR|CUDA|NVIDIA|HIP|ROCR|HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|TORCH_|PYTHON)"
    r"|(HOME|TMPDIR|XDG_CACHE_HOME)$"
)
"""Variables that Python, torch or transformers read when they start or are imported. Where one of these has changed, a
fork would not see it; the others, which libraries also set under way, are handed to the engine as they are."""
_active: ForkServer | None = None


def engine_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of an engine's process: those of this one, with this package importable, and ``more``."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, **(more or {}), "PYTHONPATH": paths}


@contextlib.contextmanager
def warm_engines() -> Iterator[None]:
    """Transformers engines that start inside this block, in the environment that it began in, are forked.

    Nested blocks share the outer one's process.
    """
    global _active
    if _active is not None:
        yield
        return
    _active = ForkServer()
    try:
        yield
    finally:
        server, _active = _active, None
        server.close()


def fork_engine(engine: str, environment: Mapping[str, str]) -> ForkedProcess | None:
    """An engine's process, or None where it has to be started in the ordinary way."""
    server = _active
    if server is None or engine != "transformers":
        return None
    return server.fork(engine, environment)


class ForkServer:
    """The process that engines are forked from. It starts with the first engine and ends with ``close``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._environment = engine_environment()

    def fork(self, engine: str, environment: Mapping[str, str]) -> ForkedProcess | None:
        """A new engine; None if the environment is another one, or if the process is gone."""
        differ = {name for name, _ in environment.items() ^ self._environment.items()}
        if any(map(_READ_AT_IMPORT.match, differ)):
            return None
        with self._lock:
            if self._process is None:
                self._start()
            with contextlib.suppress(OSError):
                request = {"engine": engine, "folder": os.getcwd(), "environment": dict(environment)}
                return ForkedProcess(self._control, request)
        return None

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    *guard.command(theirs.fileno()),
                    sys.executable,
                    "-c",
                    f"from eval_harness.engines import fork_server as s; s.serve({theirs.fileno()})",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the caller
            )

    def close(self) -> None:
        """End the process, and engines that still run."""
        if self._process is not None:
            self._control.close()
            self._process.wait()


class ForkedProcess:
    """A forked engine in the shape of ``subprocess.Popen``, as far as :class:`EngineProcess` looks."""

    def __init__(self, control: socket.socket, request: Mapping[str, Any]):
        (read_in, write_in), (read_out, write_out), (read_err, write_err) = (os.pipe() for _ in range(3))
        self._status, theirs = socket.socketpair()
        given = [read_in, write_out, write_err, theirs.fileno()]
        try:
            socket.send_fds(control, [json.dumps(request).encode()], given)
        except OSError:
            for fd in (write_in, read_out, read_err):
                os.close(fd)
            self._status.close()
            raise
        finally:
            for fd in given[:3]:
                os.close(fd)
            theirs.close()
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(write_in, "wb"),
            os.fdopen(read_out, "rb"),
            os.fdopen(read_err, "rb"),
        )
        self._lock = threading.Lock()
        self.returncode: int | None = None
        pid = self._number(None)
        if pid is None:
            raise BrokenPipeError("the process that engines are forked from is gone")
        self.pid = pid

    def _number(self, timeout: float | None) -> int | None:
        """The next number that the server tells; None when it has gone."""
        self._status.settimeout(timeout)
        data = b""
        while len(data) < _NUMBER.size:
            part = self._status.recv(_NUMBER.size - len(data))
            if not part:
                return None
            data += part
        return _NUMBER.unpack(data)[0]

    def poll(self) -> int | None:
        """Exit status, minus the signal for a killed engine; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self.returncode is None:
                left = None if deadline is None else max(0.001, deadline - time.monotonic())
                try:
                    status = self._number(left)
                except TimeoutError:
                    raise subprocess.TimeoutExpired("forked engine", timeout) from None
                self.returncode = -signal.SIGKILL if status is None else status
            return self.returncode


def serve(control_fd: int) -> None:
    """The server: import, then fork an engine for each request until the other end closes."""
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # what was imported stays: collections of an engine need not walk it, nor copy its pages
    control = socket.socket(fileno=control_fd)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    holders: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if wake in ready:
                wake.recv(4096)
                _report_ended(holders)
            if control in ready:
                data, fds, _, _ = socket.recv_fds(control, _LONGEST, 4)
                if not data:
                    return
                holder = socket.socket(fileno=fds[3])
                server, pid = os.getpid(), os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for other in (control, wake, waker, holder, *holders.values()):
                        other.close()
                    selector.close()
                    _become_engine(json.loads(data), fds[:3], server)
                for fd in fds[:3]:
                    os.close(fd)
                holders[pid] = holder
                _tell(holder, pid)


def _report_ended(holders: dict[int, socket.socket]) -> None:
    for pid in list(holders):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with holders.pop(pid) as holder:
                _tell(holder, os.waitstatus_to_exitcode(status))


def _tell(holder: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        holder.sendall(_NUMBER.pack(number))


def _become_engine(request: Mapping[str, Any], fds: list[int], server: int) -> None:
    """The guard of an engine, and the engine; does not return."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["folder"])
    sys.argv = ["worker", request["engine"]]
    guard.run(
        lambda: runpy.run_module("eval_harness.engines.worker", run_name="__main__", alter_sys=True), server, lifeline=0
    )
