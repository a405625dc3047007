"""Errors a user can mend. Everything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable


class UserError(ValueError):
    """What was wrong, what was expected and what to do, in one message. The commands print it without a traceback."""


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
