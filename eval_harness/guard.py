"""Nothing outlives its caller: a small process between a caller and the program that it starts.

The guard kills the program and everything below it when its caller ends, however that ends, and when the program
itself ends. It is another process, so a program that imports, computes in C or holds the interpreter lock is killed as
well; it adopts orphans (Linux), so neither ``setsid`` nor a double fork escapes. The program dies with its guard. The
guard ends with the program's status, so for the caller it is the program.

The parent-death signal alone would not do: it is sent when the *thread* that started a process ends, and what a killed
program has started does not get it.

Run as a script, without site packages: 40 ms, 10 MB. Only modules of the standard library may be imported here.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LINUX = sys.platform == "linux"
_LOOK_MS = 500
"""How often the caller is looked for where the kernel does not tell of its end."""


def command(lifeline: int | None = 0) -> list[str]:
    """Words to put before a command that this process starts, so that it is guarded.

    Args:
        lifeline: number of a pipe or socket in the new process; when its other end is closed, the program is killed. It
            is only looked at, so the program may read it. None: only the end of this process counts.
    """
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), str(lifeline)]


def run(program: Callable[[], object], caller: int, lifeline: int | None) -> NoReturn:
    """Guard a fork of this process, which must have one thread; does not return, in neither of the two.

    Args:
        program: what the fork does; its end is the end of the process, with status 0, or 1 after an exception.
        caller: process id of the parent, taken before this process was forked from it.
        lifeline: see :func:`command`.
    """
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard, pid = os.getpid(), os.fork()
    if pid == 0:
        status = 1
        try:
            die_with(guard)
            program()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(status)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # their readers wait for the program's end, not for ours
        os.dup2(null, stream)
    status = _watch(pid, caller, lifeline)
    if _LINUX:
        _end_descendants()
    elif status is None:
        os.killpg(0, signal.SIGKILL)
    _end_as(status)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, which must have one thread, ends (Linux)."""
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _prctl(what: int, value: int) -> None:
    import ctypes  # elsewhere it may be missing

    ctypes.CDLL(None).prctl(what, value, 0, 0, 0)


def _watch(pid: int, caller: int, lifeline: int | None) -> int | None:
    """Wait for the end of the program, which gives its wait status, or for that of the caller, which gives None."""
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the program as well
    for number in _FORWARDED:
        signal.signal(number, lambda given, _: os.kill(pid, given))
    watched = select.poll()
    watched.register(wake, select.POLLIN)
    if lifeline is not None:
        watched.register(lifeline, 0)  # only its end
    told, look = None, _LOOK_MS
    with contextlib.suppress(AttributeError, OSError):  # not Linux, an old kernel, a sandbox
        told = os.pidfd_open(caller)
        watched.register(told, select.POLLIN)
        look = None
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == pid:
                    return ended[1]
        if os.getppid() != caller:  # also where it ended before the kernel was asked
            return None
        for fd, _ in watched.poll(look):
            if fd in (lifeline, told):
                return None
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)


def _end_descendants() -> None:
    """Kill children until there are none; what they had started becomes ours when they are dead."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return list(map(int, file.read().split()))
    except OSError:  # a kernel without that list
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _parent_of(pid) == os.getpid()]


def _parent_of(pid: int) -> int | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return None


def _end_as(status: int | None) -> NoReturn:
    """End with a wait status; with 0 after the caller's end, which nobody reads."""
    code = 0 if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _main() -> None:
    caller, lifeline, *words = sys.argv[1:]

    def become() -> None:
        try:
            os.execvp(words[0], words)
        except OSError as error:
            sys.stderr.write(f"{words[0]} cannot be started: {error.strerror}\n")
            sys.stderr.flush()
            os._exit(127)

    run(become, int(caller), None if lifeline == "None" else int(lifeline))


if __name__ == "__main__":
    _main()
