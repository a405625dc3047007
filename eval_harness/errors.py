"""Errors a user can mend. Everything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """What was wrong, what was expected and what to do, in one message. The commands print it without a traceback."""


def clipped(value: object, longest: int = 60) -> str:
    """A value of outside as an error may quote it: in one line, and not too long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list, with the nearest one that is."""
    known, text = sorted(known), str(name)

    def nearness(other: str) -> tuple[float, int]:
        """Alike in order; of two such, the one with the same letters (``aime42`` is ``aime24``, not ``aime25``)."""
        letters = Counter(text) & Counter(other)
        return difflib.SequenceMatcher(None, text, other).ratio(), letters.total()

    close = max(difflib.get_close_matches(text, known, n=5, cutoff=0.5), key=nearness, default=None)
    hint = f"; did you mean {close!r}?" if close else "."
    return UserError(f"unknown {kind} {str(name)!r}{hint} Known: {', '.join(known)}.")


_DISK = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("your quota on this disk is used up", "make room"),
    errno.EFBIG: ("the file would be larger than this system allows", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "give a folder that can be written"),
    errno.EACCES: ("there is no permission", "give a folder you may write to"),
    errno.EPERM: ("there is no permission", "give a folder you may write to"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
    errno.EIO: ("the disk reports an error", "check the disk"),
    errno.ESTALE: ("the network file system lost it", "mount it again"),
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) tell the number of an error."""
_TORCH_WRITE = re.compile(r"PytorchStreamWriter|inline_container|file write failed")
_FULL_BYTES = 1 << 20


def disk_problem(error: BaseException, folder: str | os.PathLike | None = None) -> tuple[str, str] | None:
    """What is wrong with the disk, and the remedy, where that is behind an error; None: it is something else.

    Args:
        folder: where was written; asked for its room when a library hides the number of the error.
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        return _DISK[error.errno]
    if (told := _OS_ERROR.search(str(error))) and int(told[1]) in _DISK:
        return _DISK[int(told[1])]
    if _TORCH_WRITE.search(str(error)):
        full = folder is not None and _room(folder) < _FULL_BYTES
        return _DISK[errno.ENOSPC] if full else ("it could not be written", "check room and quota of the disk")
    return None


def _room(folder: str | os.PathLike) -> int:
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):
        return _FULL_BYTES
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def disk_told(
    what: str | os.PathLike, then: str = "start the same command again: it goes on from there", verb: str = "write"
) -> Iterator[None]:
    """Tell trouble with the disk in one line.

    Args:
        what: file or folder that is written; the error's own file is named where it has one.
        then: what to do when the cause is mended.
        verb: what was tried, where it may have been something else.

    Raises:
        UserError: the disk is full, read-only, forbidden or broken; every other error passes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = disk_problem(error, what)
        if problem is None:
            raise
        where = getattr(error, "filename", None) or what
        raise UserError(
            f"cannot {verb} {os.fspath(where)}: {problem[0]}. What was written before is whole; {problem[1]}, then "
            f"{then}."
        ) from error
