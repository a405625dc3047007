"""Where grading workers come from: one process that has imported the graders once and forks a worker when asked.

The caller is never forked, so its threads, its CUDA state and its ``__main__`` stay out of the workers, and a killed
worker is replaced in milliseconds. A nursery lasts as long as the process that uses it, or ``LINGER_SECONDS`` without
a worker. Every worker hangs on a lifeline, a socket whose other end its user holds: when that end closes, also because
its user was killed, the nursery kills the worker, however busy it is; and a worker does not outlive its nursery.

What a worker may do is little: its memory is limited, it cannot write a file, run a program or open a connection, and
what libraries print goes nowhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from eval_harness import guard

PRELOAD = ("eval_harness.graders.warm",)
"""Modules that every worker has from the start."""
LIGHTEVAL = "eval_harness.graders.warm_lighteval"
"""Module that is imported once, too, but when the first worker is asked for that needs it."""
LINGER_SECONDS = 30.0
"""How long a nursery without workers stays, so that the next pool starts at once."""
TRANSFER_SECONDS = 60
"""A message that a worker neither takes nor finishes in this time is given up."""
_HEADROOM = 512 << 20
"""Address space beyond the memory limit. What grows page by page is caught by the pool before; this stops the rest."""
REFUSED, OUT_OF_MEMORY = 77, 78
"""Exit status of a worker whose answer made a library act on the machine; of one that ran into its memory limit."""
_REQUEST = struct.Struct("!Q?")
_DEATH = struct.Struct("!iQ")
_ACTIONS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "subprocess.", "pty."),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil."),
)
"""What audit events (PEP 578) of deeds begin with."""


@dataclass(frozen=True)
class Death:
    """How a worker ended."""

    status: int | None
    """Exit status, or minus the signal that killed it; None: unknown, its nursery is gone too."""
    peak_memory: int
    """Most resident bytes it ever had, pages shared with the nursery included; 0: unknown."""


class Child:
    """A worker as its user holds it: ``connection`` for messages, and the lifeline."""

    def __init__(self, connection: Connection, lifeline: socket.socket):
        self.connection, self._lifeline = connection, lifeline

    def kill(self) -> Death:
        """Kill the worker if it lives; it is gone when this returns."""
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)
        told = b""
        with contextlib.suppress(OSError):
            self._lifeline.settimeout(TRANSFER_SECONDS)
            while part := self._lifeline.recv(_DEATH.size):
                told += part
        self.forget()
        return Death(*_DEATH.unpack(told)) if len(told) == _DEATH.size else Death(None, 0)

    def forget(self) -> None:
        """Close both ends here, in a forked copy of the user's process for instance."""
        with contextlib.suppress(OSError):
            self.connection.close()
        self._lifeline.close()


class _Nursery:
    """The nursery's process as its user holds it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        settings = {"path": sys.path, "preload": PRELOAD, "linger": LINGER_SECONDS, "control": theirs.fileno()}
        program = (
            "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings.pop('path'); "
            "from eval_harness.graders.nursery import run; run(**settings)"
        )
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        with theirs:
            self.process = subprocess.Popen(
                [*guard.command(theirs.fileno()), sys.executable, "-c", program, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **alone},
                start_new_session=True,  # Ctrl-C is for the caller
            )

    def fork(self, memory: int, lighteval: bool) -> Child:
        """Ask for a worker. Raises OSError when the nursery is gone."""
        ours, theirs = socket.socketpair()
        lifeline, held = socket.socketpair()
        with theirs, held:
            try:
                socket.send_fds(self._control, [_REQUEST.pack(memory, lighteval)], [theirs.fileno(), held.fileno()])
            except OSError:
                ours.close()
                lifeline.close()
                raise
        limit = struct.pack("ll", TRANSFER_SECONDS, 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        return Child(Connection(ours.detach()), lifeline)

    def close(self) -> None:
        self._control.close()


_lock = threading.Lock()
_nursery: _Nursery | None = None


def fork_worker(memory: int, lighteval: bool = True) -> Child:
    """A new worker, from a new nursery where there is none; it says ``ready`` when it can be used.

    Args:
        memory: bytes that it may take beyond what it is born with.
        lighteval: it is born with lighteval's graders.
    """
    global _nursery
    with _lock:
        if _nursery is not None and _nursery.process.poll() is None:
            with contextlib.suppress(OSError):
                return _nursery.fork(memory, lighteval)
        if _nursery is not None:
            _nursery.close()
        _nursery = _Nursery()
        return _nursery.fork(memory, lighteval)


def stop() -> None:
    """End this process's nursery, and with it all workers, and wait until it is gone."""
    global _nursery
    with _lock:
        nursery, _nursery = _nursery, None
    if nursery is not None:
        nursery.close()
        nursery.process.wait()


def _forget_after_fork() -> None:
    """A forked copy of the caller has no nursery: the old one is its parent's."""
    global _nursery, _lock
    _lock = threading.Lock()
    if _nursery is not None:
        _nursery.close()
        _nursery.process.returncode = 0  # not a child of this process: nothing to wait for
        _nursery = None


os.register_at_fork(after_in_child=_forget_after_fork)


# --- the nursery's side ----------------------------------------------------------------------------------------------


def run(control: int, preload: list[str], linger: float) -> None:
    """The nursery: fork on request, kill when a lifeline ends, tell how a worker died; end with the caller."""
    import gc

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = socket.socket(fileno=control)
    for name in preload:
        importlib.import_module(name)
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()  # pages stay shared with the workers
    with_lighteval = False
    lifelines: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    while True:
        events = selector.select(None if lifelines else linger)
        if not events and not lifelines:
            return
        for key, _ in events:
            if key.fileobj is wake:
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
            elif key.fileobj is requests:
                data, fds = b"", []
                with contextlib.suppress(OSError):
                    data, fds, *_ = socket.recv_fds(requests, _REQUEST.size, 2)
                if len(data) < _REQUEST.size or len(fds) < 2:  # the caller is gone
                    for pid in lifelines:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                lifeline = socket.socket(fileno=fds[1])
                memory, wanted = _REQUEST.unpack(data)
                if wanted and not with_lighteval and preload:  # without any preload nothing is imported before a fork
                    importlib.import_module(LIGHTEVAL)
                    with_lighteval = True
                    gc.collect()
                    gc.freeze()
                parent, pid = os.getpid(), os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for other in (requests, wake, woken, lifeline, *lifelines.values()):
                        other.close()
                    selector.close()
                    _work(fds[0], memory, parent)
                os.close(fds[0])
                lifelines[pid] = lifeline
                selector.register(lifeline, selectors.EVENT_READ, pid)
            else:
                selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
        _bury(lifelines, selector)


def _bury(lifelines: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Reap the dead, and tell their users."""
    while lifelines:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        lifeline = lifelines.pop(pid, None)
        if lifeline is None:
            continue
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(lifeline)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        with contextlib.suppress(OSError):
            lifeline.sendall(_DEATH.pack(os.waitstatus_to_exitcode(status), peak))
        lifeline.close()


# --- the worker's side -----------------------------------------------------------------------------------------------


def _work(fd: int, memory: int, nursery: int) -> None:
    """A worker's whole life; does not return."""
    status = 1
    with contextlib.suppress(BaseException):
        guard.die_with(nursery)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        limit_self(memory)
        status = serve(Connection(fd))
    os._exit(status)


def limit_self(memory: int) -> None:
    """Take from this process what grading does not need: memory, files to write, programs, connections."""
    space = psutil.Process().memory_info().vms + memory + _HEADROOM
    for what, limit in ((resource.RLIMIT_AS, space), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is there already, or the system has none
            resource.setrlimit(what, (limit, limit))
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An answer is text. One that makes a library act on the machine ends the worker; its mark is zero."""
    if event.startswith(_ACTIONS):
        os._exit(REFUSED)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError("grading workers write no files")


def serve(connection: Connection) -> int:
    """Grade chunks, answer by answer, until the connection closes; returns the exit status. Messages are JSON lists.

    In: ``["grade", chunk, grader, answers]`` and ``["drop", chunk]``: leave the rest of that chunk.
    Out: ``["ready", pid, memory]``, once; for each chunk ``["begun", seconds]``, a ``["verdict", fields, seconds]`` per
    answer, with the computing time so far, and ``["end", memory]``; instead of a verdict ``["error", text]``, a bug of
    ours, ends the chunk.
    """
    import logging

    from eval_harness.graders.base import get_grader

    def send(*message: Any) -> None:
        connection.send_bytes(json.dumps(message).encode("ascii"))

    logging.disable(logging.WARNING)  # lighteval warns once per answer it cannot read; the verdict says so already
    memory = psutil.Process().memory_info
    send("ready", os.getpid(), memory().rss)
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = json.loads(connection.recv_bytes())
            if message[0] == "drop":  # the chunk was done before the word came
                continue
            _, chunk, name, answers = message
            try:
                grader = get_grader(name)
            except Exception as error:
                send("error", f"grader {name} cannot be built: {type(error).__name__}: {error}")
                answers = []
            send("begun", time.process_time())
            for answer in answers:
                if connection.poll() and json.loads(connection.recv_bytes()) == ["drop", chunk]:
                    break
                try:
                    told = ["verdict", vars(_graded(grader, answer)), time.process_time()]
                except MemoryError:
                    return OUT_OF_MEMORY
                except Exception as error:
                    told = ["error", f"grader {name} failed: {type(error).__name__}: {error}"]
                send(*told)
                if told[0] == "error":
                    break
            send("end", memory().rss)
    return 0


def _graded(grader: Any, answer: list) -> Any:
    from eval_harness.graders.base import CRASHED, TIMED_OUT

    try:
        return grader.grade(*answer)
    except RecursionError:
        return CRASHED
    except TimeoutError:  # of a library's own limit
        return TIMED_OUT
