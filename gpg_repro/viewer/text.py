"""Unchecked text made fit to be shown: nothing in it is invisible, reorders its neighbours or cannot be written."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile(r"[^ -~\n\t]")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories that are named: control, format (bidirectional overrides, zero width), surrogate, private, unassigned,
line and paragraph separators."""
_JOINERS = "\u200c\u200d"
"""Format characters that words of some scripts and emoji cannot do without."""


def visible(text: str) -> str:
    """Text in which every character can be seen and written as UTF-8.

    What is a control character, turns the direction of writing, has no width or is no character is named: NUL is
    ``⟨U+0000⟩``. New lines and tabs stay; ``\\r\\n`` is a new line.
    """
    return _PLAIN.sub(lambda found: _seen(found.group()), text.replace("\r\n", "\n"))


def _seen(character: str) -> str:
    named = unicodedata.category(character) in _UNSEEN and character not in _JOINERS
    return f"⟨U+{ord(character):04X}⟩" if named else character


def clip(text: str, longest: int) -> str:
    """The beginning and the end of a text, and how much was left out between: an answer stands at the end.

    Args:
        longest: characters that are kept.
    """
    if len(text) <= longest:
        return text
    head = longest * 3 // 5
    tail = longest - head
    end = text[len(text) - tail :] if tail else ""
    return f"{text[:head]}\n[… {len(text) - longest:,} characters left out …]\n{end}"
