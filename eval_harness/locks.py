"""The right to write to a folder. The operating system holds it, so it ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from eval_harness import records
from eval_harness.errors import UserError, disk_told

LOCK, OWNER = ".lock", ".lock.owner"
"""The lock, and who has it: a note for people, which a killed process leaves behind and nobody obeys."""


@contextlib.contextmanager
def locked(folder: Path, what: str, name: str = LOCK) -> Iterator[None]:
    """Hold a folder, which is made if need be; temporary files of writes that were killed are removed.

    Args:
        what: what is done in it, for whom it is refused: ``evaluation``, ``training``.
        name: of the lock; another one guards another use of the same folder.

    Raises:
        UserError: another process has it (named, with what it does and since when), or the folder cannot be written.
    """
    folder = Path(folder)
    owner = folder / f"{name}.owner"
    with disk_told(folder, "start again"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / name).acquire(timeout=0)
        except Timeout:
            raise UserError(f"{folder} is in use: {_told(owner)}. Wait for it, or give another folder.") from None
    with lock:
        with contextlib.suppress(OSError):  # on a full disk the lock holds without it
            mine = {"what": what, "process": os.getpid(), **_here(), "since": records.now()}
            owner.write_text(json.dumps(mine), encoding="utf-8")
        try:
            if name == LOCK:
                records.sweep(folder)
            yield
        finally:
            with contextlib.suppress(OSError):
                owner.unlink(missing_ok=True)


def _here() -> dict[str, str]:
    """Where a process id means something: host name, running kernel and, in a container, its own process numbers."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        numbers = ""
    return {"host": socket.gethostname(), "boot": records.boot(), "numbers": numbers}


def _told(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        where = "here" if _here().items() <= {**found}.items() else f"on {found['host']}"
        return f"process {found['process']} {where} has been writing to it since {found['since']} ({found['what']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process is writing to it"
