"""Hostile texts as data: a JSON list of entries whose long texts are told as pieces and how often they stand there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_harness.errors import UserError

_KEYS = {"name", "why", "text", "gold", "graders", "correct", "correct_strict"}


@dataclass(frozen=True)
class Hostile:
    """One hostile text."""

    name: str
    why: str
    text: str
    gold: str | None = None
    """Gold to grade against; None: a plain one, which the text does not hold."""
    graders: tuple[str, ...] = ()
    """The graders it is meant for; none: all."""
    correct: dict[str, bool] = field(default_factory=dict)
    """By grader, the verdict of the published rule where it is defined; without an entry it must be wrong."""
    correct_strict: dict[str, bool] = field(default_factory=dict)
    """The same of the strict rule."""


def read_corpus(path: Path) -> list[Hostile]:
    """Read a corpus.

    A ``text`` is a string, or a list of strings and of pairs ``[piece, times]``.

    Raises:
        UserError: not such a file, or two entries of one name.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the corpus {path} does not exist.") from None
    except ValueError as error:
        raise UserError(f"the corpus {path} is not valid JSON ({error}).") from None
    entries = []
    for row in raw:
        if not isinstance(row, dict) or not {"name", "why", "text"} <= row.keys() <= _KEYS:
            raise UserError(
                f"{path}: an entry needs name, why and text, and may have {', '.join(sorted(_KEYS))}: {row}"
            )
        entries.append(Hostile(**row | {"text": built(row["text"]), "graders": tuple(row.get("graders", ()))}))
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two entries of one name: {max(names, key=names.count)}.")
    return entries


def built(text: Any) -> str:
    """A text from its pieces."""
    if isinstance(text, str):
        return text
    return "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in text)
