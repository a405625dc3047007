"""Processes of one launch without their imports: forked from a process that has torch, transformers and TRL loaded.

``launch`` starts a program as torchrun would, on gloo, with the variables that torchrun sets. It is for tests of what
the processes do; a few start the real launchers as well. Run as a script, this file is the process that forks.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from eval_harness.graders import nursery

ROOT = Path(__file__).resolve().parent.parent
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PRELOAD = (
    "scripted",
    "gpg_repro.train",
    "gpg_repro.tiny.vision_model",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
)

_server: subprocess.Popen | None = None


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of every process of a launch: this process's, one thread, no GPU, this checkout's packages."""
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    return {**os.environ, **ALONE, "PYTHONPATH": paths, **(changes or {})}


def torchrun(processes: int, *arguments: str, timeout: float = 600, **unused) -> subprocess.CompletedProcess:
    """The real one, to be called as ``launch`` is."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, *arguments], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def launch(
    processes: int,
    *arguments: str,
    folder: Path,
    timeout: float = 600,
    changes: Mapping[str, str] | None = None,
    grades: bool = False,
) -> subprocess.CompletedProcess:
    """The same by forks; the first process that fails ends the others.

    Args:
        processes: how many.
        arguments: a script or ``-m`` and a module, and its arguments.
        folder: where what they print is kept.
        timeout: seconds until all are killed.
        changes: further variables of theirs.
        grades: they grade completions, so what grading imports is there, too.

    Returns:
        The status of the first that failed, else 0, and what all of them printed.

    Raises:
        TimeoutError: they took too long.
    """
    global _server
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    of_all = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables = environment(changes) | {name: str(value) for name, value in of_all.items()}
    if _server is None or _server.poll() is not None:
        _server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # one signal ends it and all that it forked
        )
        atexit.register(stop)
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    for file in (out, err):
        file.write_bytes(b"")
    request = {"arguments": arguments, "variables": variables, "processes": processes, "grades": grades}
    request |= {"out": str(out), "err": str(err)}
    _server.stdin.write(json.dumps(request).encode() + b"\n")
    _server.stdin.flush()
    answered, _, _ = select.select([_server.stdout], [], [], timeout)
    answer = _server.stdout.readline() if answered else b""
    if not answer:
        stop()
        raise TimeoutError(f"{arguments} took more than {timeout} s, or the server ended:\n{err.read_text()[-4000:]}")
    return subprocess.CompletedProcess(arguments, json.loads(answer), out.read_text(), err.read_text())


def stop() -> None:
    """End the process that forks, and all of its children."""
    global _server
    if _server is not None and _server.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_server.pid, signal.SIGKILL)
        _server.wait()
    _server = None


LAUNCHERS = [
    pytest.param(launch, marks=pytest.mark.full("two processes that train"), id="forked"),
    pytest.param(torchrun, marks=pytest.mark.long("the same under the real launcher"), id="torchrun"),
]


# The process that forks ---------------------------------------------------------------------------------------------


def serve() -> None:
    """A launch for every line of standard input, its status as a line of standard output; ends with its caller."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.disable()
    for name in PRELOAD:
        importlib.import_module(name)
    gc.enable()
    gc.freeze()
    assert threading.active_count() == 1, "a fork would lose threads"
    for line in sys.stdin:
        print(_launch(**json.loads(line)), file=answers, flush=True)


def _launch(arguments: list[str], variables: dict[str, str], processes: int, grades: bool, out: str, err: str) -> int:
    if grades:
        for name in nursery.PRELOAD:
            importlib.import_module(name)
        logging.disable(logging.NOTSET)  # what the import did
        gc.freeze()
    running = {}
    for rank in range(processes):
        pid = os.fork()
        if not pid:
            _become(arguments, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, grades, out, err)
        running[pid] = rank
    failed = 0
    while running:
        pid, status = os.wait()
        running.pop(pid)
        failed = failed or os.waitstatus_to_exitcode(status)
        if failed:
            for other in running:
                os.kill(other, signal.SIGKILL)
    return failed


class _Nursery(nursery._Nursery):
    """Where a process's grading workers come from, as another fork."""

    def __init__(self):
        self._control, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            self._control.close()
            nursery.run(theirs.detach(), nursery.PRELOAD, linger=3600.0)
            os._exit(0)
        theirs.close()
        self.process = _Process(pid)


class _Process:
    """A child in the shape of ``subprocess.Popen``, as far as the nursery's user looks."""

    returncode: int | None = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        if self.returncode is None and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.returncode = 0
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            os.waitpid(self.pid, 0)
            self.returncode = 0
        return self.returncode


def _become(arguments: list[str], variables: dict[str, str], grades: bool, out: str, err: str) -> None:
    """Run the program as `python` would; does not return."""
    status = 1
    try:
        for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
            os.dup2(os.open(path, mode | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(ROOT)
        if grades:
            nursery._nursery = _Nursery()  # before there is any thread
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(arguments)
            runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
