"""Processes that are started to be killed: a command, everything it starts, and the moment at which it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

HOOK = Path(__file__).resolve().parent / "hook"
REPOSITORY = Path(__file__).resolve().parents[2]
ORPHAN_SECONDS = 120.0
"""How long what a killed process started may take to end by itself."""
ATTEMPT_SECONDS = 900.0


@dataclass(frozen=True)
class Plan:
    """How an attempt is to end."""

    kind: Literal["event", "write", "time", "finish"]
    """Before the n-th change to a file; inside the n-th file that is written; some time after the first change (or
    after the start); not at all."""
    at: float = 0.0
    """n, or seconds."""
    bytes: int = 0
    """``write``: how many bytes of it still reach the file."""
    after_start: bool = False
    """``time``: counted from the start."""
    whole: bool = True
    """Everything is killed at once; else one process, and the others are left to notice."""
    at_once: bool = False
    """The next attempt starts without waiting for what is left of this one."""


@dataclass
class Ending:
    """How it did end."""

    status: Literal["finished", "killed", "failed"]
    phase: str
    seconds: float
    first_change_s: float | None
    num_events: int
    num_writes: int
    problems: list[str] = field(default_factory=list)


class Forked:
    """A child of this process that runs a module's main as ``python -m`` would, with everything imported already."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path):
        sys.stdout.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(module, arguments, environment, log)

    @staticmethod
    def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        import runpy

        code = 1
        try:
            os.setsid()
            with open(log, "ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(REPOSITORY)
            spec = importlib.util.spec_from_file_location("torture_hook", HOOK / "sitecustomize.py")
            spec.loader.exec_module(importlib.util.module_from_spec(spec))  # the environment says what to do
            sys.argv = sys.orig_argv = [sys.executable, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Exit status, negative the signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, warm: bool):
    """Start ``python -m module arguments`` in a session of its own."""
    if warm:
        return Forked(module, arguments, environment, log)
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def attempt(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    root: Path,
    trace: Path,
    plan: Plan,
    *,
    warm: bool = False,
) -> Ending:
    """Run a command until it ends or is ended.

    Args:
        root: the folder whose files are watched.
        trace: folder for logs of this attempt; must be new.
        warm: fork from this process instead of starting Python anew.
    """
    trace.mkdir(parents=True)
    root.mkdir(parents=True, exist_ok=True)
    told = {"root": str(root), "trace": str(trace)}
    if plan.kind in ("event", "write"):
        told |= {plan.kind: int(plan.at), "bytes": plan.bytes}
    environment = {
        **environment,
        "TORTURE": json.dumps(told),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HOOK), str(REPOSITORY), environment.get("PYTHONPATH")])),
    }
    started, first, phase = time.monotonic(), None, ""
    victim = start(module, arguments, environment, trace / "output.log", warm)
    mine = _Family(trace, victim.pid)
    try:
        while (code := victim.poll()) is None:
            now = time.monotonic()
            if first is None and any(trace.glob("*.events")):
                first = now
            since = started if plan.after_start else first
            if plan.kind == "time" and since is not None and now - since >= plan.at:
                phase = mine.stack()
                if plan.whole:
                    mine.kill()
                else:
                    os.kill(victim.pid, signal.SIGKILL)
                code = _ended(victim)
                break
            if plan.whole and (dead := mine.died_inside()):
                phase = dead
                mine.kill()
                code = _ended(victim)
                break
            if now - started > ATTEMPT_SECONDS:
                phase = mine.stack()
                mine.kill()
                _ended(victim)
                return mine.ending("failed", phase, started, first, [f"hung for {ATTEMPT_SECONDS:.0f} s: {phase}"])
            time.sleep(0.004)
    except BaseException:  # interrupted: nothing of it may stay
        mine.kill()
        _ended(victim)
        raise
    if code == 0:
        return mine.ending("finished", "finished", started, first, [])
    phase = phase or mine.died_inside() or ""
    if phase or code == -signal.SIGXFSZ:
        return mine.ending("killed", phase, started, first, [])
    tail = (trace / "output.log").read_text(encoding="utf-8", errors="replace").splitlines()[-6:]
    return mine.ending("failed", "", started, first, [f"ended with status {code}: " + " | ".join(tail)])


def _ended(victim) -> int | None:
    deadline = time.monotonic() + 20
    while victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return victim.poll()


class _Family:
    """Everything that an attempt started, wherever it was reparented to."""

    def __init__(self, trace: Path, pid: int):
        self._trace, self._pid = trace, pid

    def stack(self) -> str:
        """What the process that works is doing now, as a list of its functions, the innermost first."""
        counts = {
            int(path.stem): len(path.read_text(encoding="utf-8").splitlines()) for path in self._trace.glob("*.events")
        }
        alive = [pid for pid in {self._pid, *counts} if (self._trace / f"{pid}.stack").exists() and _alive(pid)]
        if not alive:
            return "starting Python"
        busiest = max(alive, key=lambda pid: counts.get(pid, 0))
        path = self._trace / f"{busiest}.stack"
        with contextlib.suppress(ProcessLookupError):
            os.kill(busiest, signal.SIGUSR1)
        deadline = time.monotonic() + 0.3
        while not path.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.002)
        return path.read_text(encoding="utf-8", errors="replace") or "no stack"

    def died_inside(self) -> str | None:
        """Where a process of the family ended itself; None: none did."""
        for path in self._trace.glob("*.killed"):
            if not _alive(int(path.stem)):
                return path.read_text(encoding="utf-8").strip()
        return None

    def kill(self) -> None:
        """SIGKILL for all, until none is left."""
        deadline = time.monotonic() + 20
        while left := [pid for pid in {self._pid, *left_of(self._trace)} if _alive(pid)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {left} do not end")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def ending(self, status: str, phase: str, started: float, first: float | None, problems: list[str]) -> Ending:
        """The attempt's facts."""
        events = [
            line for path in self._trace.glob("*.events") for line in path.read_text(encoding="utf-8").splitlines()
        ]
        half = [path.read_text(encoding="utf-8").strip() for path in self._trace.glob("*.half")]
        return Ending(
            status,
            phase,
            time.monotonic() - started,
            None if first is None else first - started,
            len(events),
            sum(line.startswith("write ") for line in events),
            problems + half,
        )


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_of(trace: Path) -> list[int]:
    """Processes of an attempt that live."""
    mark, found = json.dumps({"trace": str(trace)})[1:-1].encode(), []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:
                if mark in file.read():
                    found.append(int(entry.name))
    return found


def wait_for_orphans(trace: Path, seconds: float = ORPHAN_SECONDS) -> list[str]:
    """Wait until nothing of an attempt is left; what is there after so many seconds is named, and killed."""
    deadline = time.monotonic() + seconds
    while (left := left_of(trace)) and time.monotonic() < deadline:
        time.sleep(0.02)
    names = []
    for pid in left:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            names.append(f"{pid} ({' '.join(process.cmdline())[:80]})")
            process.kill()
    return [f"orphans after {seconds:.0f} s: {', '.join(names)}"] if names else []
