"""Graders that misbehave as the prediction tells them: ``scripted_graders:Scripted`` for a grading pool."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from eval_harness.graders.base import Verdict


class Scripted:
    """``prediction`` is a verb and an argument. What returns is right if gold is ``ok``."""

    def __init__(self, argument: str = ""):
        self.argument, self.num_graded = argument, 0

    def grade(self, gold: str, prediction: str, context=None) -> Verdict:
        self.num_graded += 1
        verb, _, argument = prediction.partition(" ")
        said = getattr(self, verb)(argument)
        return Verdict(gold == "ok", gold == "ok", str(said), "match" if gold == "ok" else "mismatch")

    def say(self, text: str) -> str:
        return text

    def built_with(self, _: str) -> str:
        return self.argument

    def number(self, _: str) -> str:
        """Who graded, and how many it had graded then."""
        return f"{os.getpid()}/{self.num_graded}"

    def environment(self, name: str) -> str:
        return os.environ.get(name, "unset")

    def parent(self, _: str) -> str:
        return str(os.getppid())

    def sleep(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def compute(self, seconds: str) -> None:
        end = time.process_time() + float(seconds)
        while time.process_time() < end:
            pass

    def spin(self, _: str) -> None:
        """C code that holds the interpreter for hours and hears no Python signal handler."""
        pow(3, 3 ** (3**16))

    def eat(self, megabytes: str) -> None:
        """Memory bit by bit, each page used, errors of allocation ignored as a library would."""
        kept = []
        while len(kept) < int(megabytes):
            try:
                kept.append(b"x" * (1 << 20))
            except MemoryError:
                break
        time.sleep(0.2)

    def grab(self, megabytes: str) -> None:
        bytearray(int(megabytes) << 20)

    def segfault(self, _: str) -> None:
        ctypes.string_at(0)

    def abort(self, _: str) -> None:
        os.abort()

    def exit(self, status: str) -> None:
        os._exit(int(status))

    def killed(self, _: str) -> None:
        signal.raise_signal(signal.SIGKILL)

    def die_at(self, moment: str) -> None:
        """Die at this moment of the monotonic clock; whoever comes later lives."""
        wait = float(moment) - time.monotonic()
        if wait > 0:
            time.sleep(wait)
            os.abort()

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def recurse(self, _: str) -> None:
        self.recurse(_)

    def write(self, path: str) -> None:
        """As a careless library would: whatever the system answers is ignored."""
        for act in _writes(path):
            try:
                act()
            except OSError:
                continue

    def run(self, path: str) -> None:
        os.system(f"touch {path}")

    def spawn(self, path: str) -> None:
        subprocess.run(["touch", path], check=False)

    def remove(self, path: str) -> None:
        os.remove(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def cut(self, path: str) -> None:
        os.truncate(path, 1)

    def look_up(self, name: str) -> None:
        socket.getaddrinfo(name, 80)

    def connect(self, port: str) -> None:
        socket.create_connection(("127.0.0.1", int(port)))


def slow_to_build() -> Scripted:
    time.sleep(1)
    return Scripted()


def _writes(path: str) -> list[Callable[[], object]]:
    return [
        lambda: open(path, "w"),  # noqa: SIM115
        lambda: open(path, "ab", buffering=0),  # noqa: SIM115
        lambda: os.open(path, os.O_CREAT | os.O_WRONLY),
    ]


class Hoarder:
    """Keeps as many MiB as the prediction says."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def grade(self, gold: str, prediction: str, context=None) -> Verdict:
        self.kept.append(b"x" * (int(prediction) << 20))
        return Verdict(True, True, None, "match")


class Loaded:
    """Tells whether the worker has lighteval; the argument makes it look like a grader that needs it, or not."""

    def __init__(self, name: str):
        self._name = name

    def grade(self, gold, prediction, context=None) -> Verdict:
        return Verdict(True, True, str("lighteval" in sys.modules), "match")
