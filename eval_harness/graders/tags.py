"""The answer between tags, as the released patterns find it and as a careful reader does."""

from __future__ import annotations

import contextlib

OPEN, CLOSE = "<answer>", "</answer>"
MAX_EXTRACTED = 500
"""Characters of an extracted answer that are kept."""


def first_tag(text: str, one_line: bool = True) -> str | None:
    """What stands in the first answer tag, not stripped; None without a complete tag.

    Args:
        text: a completion.
        one_line: only a tag without line breaks counts, as in the released patterns (``.*?`` without DOTALL).

    The same as ``re.search("<answer>(.*?)</answer>", text)``, in time linear in the text.
    """
    for part in text.split("\n") if one_line else (text,):
        start = part.find(OPEN)
        end = part.find(CLOSE, start + len(OPEN)) if start >= 0 else -1
        if end >= 0:
            return part[start + len(OPEN) : end]
    return None


def careful_answer(text: str) -> str | None:
    """What the strict rules read as the answer: the first answer tag over any number of lines, stripped; None: no tag.

    The first and not the last, since a pretrained model may go on after its answer with a question of its own.
    """
    tag = first_tag(text, one_line=False)
    return None if tag is None else tag.strip()


def tag_flags(text: str) -> tuple[str, ...]:
    """``empty_answer``: the first tag holds nothing. ``several_answers``: there is a second tag."""
    answer = careful_answer(text)
    flags = ("empty_answer",) if answer == "" else ()
    return flags + ("several_answers",) if text.count(CLOSE) > 1 and answer is not None else flags


def shown(answer: object) -> str:
    """An answer as text for the record, cut to a bearable length."""
    with contextlib.suppress(Exception):  # a sympy number of more digits than Python prints
        return str(answer)[:MAX_EXTRACTED]
    return f"<{type(answer).__name__}>"
