"""A killed caller leaves nothing behind: guarded programs of every kind, and engines at their worst moments."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torture.victims import left_of

from eval_harness import guard

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc; elsewhere a process group is all there is"
)

HOLD = "import ctypes; ctypes.PyDLL(None).sleep(600)"
"""Holds the interpreter lock: no other thread of that process runs again."""
FAMILY = f"""
import os, signal, subprocess, sys
ends_late = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", ends_late])
subprocess.Popen([sys.executable, "-c", ends_late], start_new_session=True)
daemon = "import os, time\\nif os.fork(): os._exit(0)\\nos.setsid()\\nif os.fork(): os._exit(0)\\ntime.sleep(600)"
subprocess.run([sys.executable, "-c", daemon])
print("started", flush=True)
{HOLD}
"""
"""A child that ignores signals, one in a session of its own, a daemon, and a parent that cannot do anything."""
CALLER = """
import os, subprocess, sys, time
from eval_harness import guard
command = [*guard.command(), sys.executable, "-c", sys.argv[1]]
program = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
if sys.argv[2] == "inherited":  # the other end of its lifeline lives on in a fork
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
        os._exit(0)
time.sleep(600)
"""


@pytest.fixture
def marked(tmp_path) -> Iterator[dict[str, str]]:
    """Variables by which everything that a test started is found; what is left of it is ended."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    yield os.environ | {"TRACE": f'"trace": "{tmp_path}"', "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for pid in left_of(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def all_gone(tmp_path: Path, but: int = 0, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while set(left_of(tmp_path)) - {but}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for_all_six(tmp_path: Path) -> None:
    """Caller, guard, program and its three; while the daemon forks there may be more, or less to be read."""
    deadline = time.monotonic() + 5
    while len(left_of(tmp_path)) != 6:
        assert time.monotonic() < deadline


@contextlib.contextmanager
def killed_after(command: list[str], marked: dict[str, str], **more) -> Iterator[subprocess.Popen]:
    started = subprocess.Popen(command, env=marked, **more)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def guarded(program: str, marked: dict[str, str], **more) -> Iterator[subprocess.Popen]:
    command = [*guard.command(), sys.executable, "-c", program]
    with killed_after(command, marked, stdin=subprocess.PIPE, **more) as started:
        yield started


def test_nothing_is_left_of_a_killed_caller(marked, tmp_path):
    """None of them could have ended by itself."""
    with killed_after([sys.executable, "-c", CALLER, FAMILY, ""], marked, stdout=subprocess.PIPE) as caller:
        assert caller.stdout.readline() == b"started\n"
        wait_for_all_six(tmp_path)
        caller.kill()
        assert all_gone(tmp_path)


def test_a_lifeline_that_was_inherited_keeps_nothing_alive(marked, tmp_path):
    """A fork of the caller, a worker that loads data for instance, holds the pipe open."""
    with killed_after([sys.executable, "-c", CALLER, FAMILY, "inherited"], marked, stdout=subprocess.PIPE) as caller:
        lines = {caller.stdout.readline() for _ in range(2)}
        fork = int((lines - {b"started\n"}).pop())
        caller.kill()
        assert all_gone(tmp_path, but=fork)
        assert psutil.pid_exists(fork)
        os.kill(fork, signal.SIGKILL)


def test_a_closed_lifeline_ends_the_program_while_its_caller_lives(marked, tmp_path):
    with guarded(FAMILY, marked, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"started\n"
        program.stdin.close()
        assert program.wait(5) == 0 and not left_of(tmp_path)


def test_a_program_outlives_the_thread_that_started_it(marked):
    """The kernel's signal for the parent's death would end it here."""
    answer = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"
    with contextlib.ExitStack() as stack:
        started = []
        program = guarded(answer, marked, stdout=subprocess.PIPE, bufsize=0)
        thread = threading.Thread(target=lambda: started.append(stack.enter_context(program)))
        thread.start()
        thread.join()
        (program,) = started
        for word in (b"one\n", b"two\n"):
            program.stdin.write(word)
            assert program.stdout.readline() == word
            time.sleep(1.0)
        assert program.poll() is None


def test_what_a_program_leaves_ends_with_it(marked, tmp_path):
    """It was killed for its memory, say, and its caller lives."""
    with guarded(FAMILY, marked, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"started\n"
        (child,) = psutil.Process(program.pid).children()[:1]
        child.kill()
        assert program.wait(5) == -signal.SIGKILL and not left_of(tmp_path)


def test_a_killed_guard_takes_the_program_along(marked, tmp_path):
    with guarded(f"print('started', flush=True); {HOLD}", marked, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"started\n"
        program.kill()
        assert all_gone(tmp_path)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
    ],
)
def test_the_status_is_the_programs(program, status, marked):
    """The last one: a signal that the guard gets is passed on."""
    with guarded(program, marked) as started:
        assert started.wait(10) == status


def test_a_program_that_is_not_there(marked):
    done = subprocess.run([*guard.command(None), "/no/such"], env=marked, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (127, "/no/such cannot be started: No such file or directory\n")


def test_without_the_kernels_word_the_caller_is_looked_for(marked, tmp_path):
    """Old kernels and some sandboxes have no file descriptors of processes, some no list of children."""
    body = f"""
import os, subprocess, sys, time
from eval_harness import guard
def refused(*_): raise OSError
os.pidfd_open = refused
opened = open
guard.open = lambda path, *more: refused() if str(path).endswith("/children") else opened(path, *more)
caller = os.getpid()
if os.fork() == 0:
    guard.run(lambda: subprocess.run([sys.executable, "-c", {FAMILY!r}]), caller, None)
time.sleep(600)
"""
    with killed_after([sys.executable, "-c", body], marked, stdout=subprocess.PIPE) as caller:
        assert caller.stdout.readline() == b"started\n"
        caller.kill()
        assert all_gone(tmp_path)


LAUNCHER = """
import os, sys, threading
from gpg_repro import launch
kind, launch.server_command = sys.argv[1], lambda *_: [sys.executable, "-c", sys.argv[2]]
launch._wait_for = lambda *_: threading.Event().wait()
place = type("T", (), {"vllm_server_host": "h", "vllm_server_port": 1})
if kind == "training":
    launch._run(launch.server_command(), os.environ)
with launch._server(type("L", (), {"recipe": type("R", (), {"setup": type("S", (), {"training": place})})}), None, []):
    pass
"""


@pytest.mark.parametrize("kind", ["training", "server"])
def test_a_killed_launch_leaves_neither_training_nor_server(kind, marked, tmp_path):
    with killed_after([sys.executable, "-c", LAUNCHER, kind, FAMILY], marked, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout.readline() == b"started\n"
        wait_for_all_six(tmp_path)
    assert all_gone(tmp_path)


# --- Engines ---------------------------------------------------------------------------------------------------------

STALL = """
import os, sys, threading, time
moment, stalled = os.environ["STALL"], os.environ["STALLED"]
def stall():
    open(stalled, "w").close()
    import ctypes
    ctypes.PyDLL(None).sleep(600)  # holds the interpreter lock
def hook(event, arguments):
    kind, word = moment.split(":")
    if event == kind and word in str(arguments[0]) and not os.path.exists(stalled):
        stall()
def wait():
    while not os.path.exists(stalled + ".now"):
        time.sleep(0.01)
    stall()
command = " ".join(sys.orig_argv)
if "engines" in command and moment != "told":
    sys.addaudithook(hook)
elif "engines.worker" in command:
    threading.Thread(target=wait, daemon=True).start()
"""
ENGINE = """
import contextlib, os, sys, time
from pathlib import Path
from eval_harness.engines import EngineProcess, EngineSettings
from eval_harness.engines.fork_server import warm_engines
from eval_harness.graders.pool import GradingPool
os.environ["PYTHONPATH"] = sys.argv[3] + os.pathsep + os.environ["PYTHONPATH"]
pool = GradingPool(workers=1).start(["math"])
with warm_engines() if sys.argv[2] == "forked" else contextlib.nullcontext():
    engine = EngineProcess("transformers", EngineSettings(sys.argv[1]), Path(sys.argv[3]) / "engine.log")
    Path(os.environ["STALLED"] + ".now").touch()
    time.sleep(600)
"""


@pytest.mark.full("starts engines, each a Python process with torch")
@pytest.mark.parametrize(
    ("how", "moment"),
    [
        ("started", "import:torch"),
        ("started", "open:generation_config.json"),
        ("started", "told"),
        ("forked", "import:torch"),
        ("forked", "open:generation_config.json"),
    ],
)
def test_an_engine_does_not_outlive_its_caller(how, moment, marked, tmp_path, random_checkpoint):
    """Killed while the engine imports, loads its model, or is ready, in C code that holds the interpreter lock."""
    (tmp_path / "sitecustomize.py").write_text(STALL)
    stalled = tmp_path / "stalled"
    command = [sys.executable, "-c", ENGINE, str(random_checkpoint), how, str(tmp_path)]
    with killed_after(command, marked | {"STALL": moment, "STALLED": str(stalled)}) as caller:
        deadline = time.monotonic() + 120
        while not stalled.exists():
            assert time.monotonic() < deadline and caller.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        assert len(left_of(tmp_path)) >= 5  # caller, engine or what forks it, nursery, two guards
    assert all_gone(tmp_path)
