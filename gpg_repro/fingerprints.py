"""What a kept result was made from: files, installed packages, Python. Another fingerprint, and it is made anew."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

_SUFFIXES = (".py", ".yaml", ".json")
_STARTED = psutil.Process().create_time()  # of the fork server where this process was forked: it read the modules


def code(root: Path) -> list[Path]:
    """Source, recipes and data files of both packages under ``root``; those that only make the site are left out."""
    return [
        path
        for package in ("gpg_repro", "eval_harness")
        for path in sorted((root / package).rglob("*"))
        if path.suffix in _SUFFIXES and root / "gpg_repro" / "site" not in path.parents
    ]


def contents(paths: Iterable[Path], root: Path) -> Iterator[bytes]:
    """Names (relative to ``root`` where they lie under it) and bytes of files, in turn."""
    for path in paths:
        yield str(path.relative_to(root) if path.is_relative_to(root) else path.name).encode()
        yield path.read_bytes()


@cache
def packages() -> tuple[bytes, ...]:
    """Python's version, and name and version of every installed package."""
    found = {f"{package.name} {package.version}".encode() for package in metadata.distributions()}
    return (sys.version.encode(), *sorted(found))


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, each with its length, so that no two lists of parts read the same."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def changed_since_start(paths: Iterable[Path]) -> bool:
    """Whether a file is younger than this process, which may then run other code than lies there."""
    return any(path.stat().st_mtime > _STARTED - 1 for path in paths)  # a second: the start is known no better
