"""Unchecked text made fit to be shown: nothing in it is invisible, reorders its neighbours or cannot be written."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile(r"[^ -~\n\t]")
_UNSEEN = {"Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories that are named instead of shown: format (bidirectional overrides, zero-width), surrogates, unassigned."""
_JOINERS = "\u200c\u200d"
"""Format characters that words of some scripts and emoji cannot do without."""


def visible(text: str) -> str:
    """Text in which every character can be seen and written as UTF-8.

    Control characters become their pictures (NUL is ``␀``); what turns the direction of writing, has no width or is no
    character is named (``⟨U+202E⟩``). New lines and tabs stay; ``\\r\\n`` is a new line.
    """
    return _PLAIN.sub(lambda found: _seen(found.group()), text.replace("\r\n", "\n"))


def _seen(character: str) -> str:
    if character in _JOINERS:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    category = unicodedata.category(character)
    return f"⟨U+{code:04X}⟩" if category in _UNSEEN or category == "Cc" else character


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
