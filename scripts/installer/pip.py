"""Run pip quietly: one line a phase, a heartbeat, the full output in a log, and a diagnosis when it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from installer.plan import InstallError

HEARTBEAT_SECONDS = 15.0
TERMINAL_HEARTBEAT_SECONDS = 0.5

_NETWORK_TROUBLE = re.compile(
    r"Retrying \(|ConnectionError|NewConnectionError|Failed to establish a new connection|name resolution"
    r"|ProxyError|ReadTimeoutError|SSLError|Network is unreachable",
    re.IGNORECASE,
)
_NO_FILE = re.compile(r"No matching distribution found for (\S+)")
_RAISED = re.compile(r"[\w.]*(?:Error|Exception): .")
_COLLECTING = re.compile(r"(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9][\w.-]*)")
_DOWNLOADING = re.compile(r"Downloading (?:\S*/)?([A-Za-z0-9]\w*)-\S+ \(([\d.]+ [kMG]B)\)")


def diagnose(log: str) -> str:
    """Say in one line why pip failed and what to do, from the output of the failed run."""
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return "disk full while installing; make room and run `make install` again, it goes on from here"
    no_file = _NO_FILE.search(log)
    if _NETWORK_TROUBLE.search(log):
        wanted = f" (asked for {no_file[1]})" if no_file else ""
        return (
            f"no network, or the package index cannot be reached{wanted}; check the connection and pip's settings"
            " (`pip config list`), then run `make install` again, it goes on from here"
        )
    if no_file:
        return (
            f"the package index offers no {no_file[1]} for this platform and Python; see the platforms in"
            " docs/environment.md, or point pip at another index (TORCH_INDEX for torch)"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last_words = " | ".join(raised[-1:] + errors[-2:] or lines[-2:]) or "it said nothing"
    return f"pip failed: {last_words}"


class Progress:
    """Prints phases to `stream`: in place on a terminal, one line now and then elsewhere."""

    def __init__(self, num_phases: int, stream: TextIO = sys.stdout):
        self.num_phases, self.stream = num_phases, stream
        self.phase, self.title, self.started = 0, "", time.monotonic()
        self.in_place = stream.isatty()

    @property
    def heartbeat_seconds(self) -> float:
        return TERMINAL_HEARTBEAT_SECONDS if self.in_place else HEARTBEAT_SECONDS

    def start(self, title: str) -> None:
        self.phase, self.title, self.started = self.phase + 1, title, time.monotonic()
        self._write("…", final=not self.in_place)

    def beat(self, detail: str) -> None:
        self._write(f"… {time.monotonic() - self.started:.0f} s {detail}", final=not self.in_place)

    def finish(self, result: str = "done") -> None:
        self._write(f": {result} in {time.monotonic() - self.started:.0f} s", final=True)

    def note(self, text: str) -> None:
        """A line of its own, for what the reader should know or do."""
        self.stream.write(("\r\033[K" if self.in_place else "") + f"      {text}\n")
        self.stream.flush()

    def _write(self, tail: str, final: bool) -> None:
        line = f"[{self.phase}/{self.num_phases}] {self.title}{tail}"
        self.stream.write(f"\r\033[K{line[:110]}" if self.in_place else line)
        self.stream.write("\n" if final else "")
        self.stream.flush()


class Pip:
    """pip of one virtual environment. The user's own pip configuration stays in force."""

    def __init__(
        self, python: Path, site_packages: Path, log_file: Path, progress: Progress, inherited: Sequence[int] = ()
    ):
        """`inherited`: file descriptors pip keeps open, so that a lock outlives an installer killed before its pip."""
        self.python, self.site_packages, self.log_file = python, site_packages, log_file
        self.progress, self.inherited = progress, tuple(inherited)

    def run(self, *arguments: str, hints: dict[str, str] | None = None) -> None:
        """Run `pip <arguments>` to its end.

        Args:
            hints: text to show once -> when a line of the output contains this key.

        Raises:
            InstallError: with the diagnosis, if pip fails.
        """
        command = [str(self.python), "-I", "-m", "pip", *arguments]
        if arguments[0] == "install":
            command += ["--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
        output: list[str] = []
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write("$ pip " + " ".join(arguments) + "\n")
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
                pass_fds=self.inherited,
            )
            reader = threading.Thread(target=self._read, args=(process.stdout, output, log, dict(hints or {})))
            reader.start()
            try:
                while reader.is_alive():
                    reader.join(self.progress.heartbeat_seconds)
                    if reader.is_alive():
                        self.progress.beat(self._detail(output))
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()
                reader.join()
        if process.returncode != 0:
            raise InstallError(f"{diagnose(''.join(output))} (full log: {self.log_file})")

    def _read(self, lines: TextIO, output: list[str], log: TextIO, hints: dict[str, str]) -> None:
        for line in lines:
            output.append(line)
            log.write(line)
            log.flush()
            for key in [key for key in hints if key in line]:
                self.progress.note(hints.pop(key))

    def _detail(self, output: list[str]) -> str:
        """What pip is at, from its last telling line: collecting, downloading or installing."""
        num_collected = sum(1 for line in output if _COLLECTING.match(line))
        for line in reversed(output):
            if line.startswith("Installing collected packages:"):
                num_installed = sum(1 for _ in self.site_packages.glob("*.dist-info"))
                return f"installing {line.count(',') + 1} packages ({num_installed} in place)"
            if downloading := _DOWNLOADING.search(line):
                return f"{num_collected} packages seen, downloading {downloading[1]} ({downloading[2]})"
            if collecting := _COLLECTING.match(line):
                return f"{num_collected} packages seen, now {collecting[1]}"
        return "starting"
