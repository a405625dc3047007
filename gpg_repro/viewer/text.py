"""Long texts made short enough to be shown."""

from __future__ import annotations


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
