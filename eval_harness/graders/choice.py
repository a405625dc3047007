"""Multiple choice: any parsed letter or option text (published), or the option that is meant (strict).

Published (VisualThinker-R1-Zero's CV-Bench evaluation): the first answer tag whose contents are on one line, else the
whole output, read by math-verify as LaTeX, an expression, or one of the strings A-F, a-f, (a)-(f), (A)-(F) and the
item's options; right if anything it reads is the option's text (as it is or in lower case), the letter or the letter in
brackets (either case). Its quirks are kept: the article "a" is option A, ``Chair`` is not ``chair``, ``(A) 3`` counts
as (A) whatever option 3 is, and in running text the right-most string wins.

Strict: the tag's contents, without a tag the option stated last. An answer is a letter with or without brackets, an
option's text (case and closing punctuation aside), or both where they agree. An article is never an option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from eval_harness.graders.base import Verdict
from eval_harness.graders.symbolic import equal, parse
from eval_harness.graders.tags import careful_answer, shown, tag_flags

LETTERS = "ABCDEF"
_BRACKETED = tuple(f"({letter})" for letter in LETTERS)
_STRINGS = (*LETTERS, *LETTERS.lower(), *(b.lower() for b in _BRACKETED), *_BRACKETED)
"""In the order of the release; the options follow. It matters: the first string that fits at a place is taken."""
_PUBLISHED_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>")
_GOLD = re.compile(rf"\(([{LETTERS}])\)|([{LETTERS}])")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,;]?")
_LETTER_AND_TEXT = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Z])[.:)])[.:,;]?\s+(.+)", re.DOTALL)
_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)
# a lone A before a word in lower case is an article
_STATED = r"[(\[](?P<bracketed>[A-Za-z])[)\]]|(?<![\w'’])(?P<bare>A(?!\s+[a-z])|[B-F])(?![\w'’])"


class ChoiceGrader:
    """Both rules for a gold like ``(C)``; the context's ``choices`` are the options' texts in order.

    Without choices only letters can be read. A gold that is no letter from A to F, or not among the choices, is the
    verdict ``bad_gold``; an answer with a letter beyond the choices is ``unknown_option`` under the strict rule.
    """

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules."""
        flags = tag_flags(prediction)
        found = _GOLD.fullmatch(gold.strip())
        choices = (context or {}).get("choices") or ()
        usable = isinstance(choices, (list, tuple)) and all(isinstance(choice, str) for choice in choices)
        if found is None or not usable:
            return Verdict(False, False, None, "bad_gold", flags=flags)
        letter, choices = found.group(1) or found.group(2), tuple(choices)
        if choices and LETTERS.index(letter) >= len(choices):
            return Verdict(False, False, None, "bad_gold", flags=flags)

        answers = parse(_answer_text(prediction), _STRINGS + choices)
        correct = equal(_accepted(letter, choices), answers)
        reason = "no_answer" if not answers else "match" if correct else "mismatch"
        extracted = shown(answers[0]) if answers else None
        meant = stated_option(prediction, choices)
        correct_strict = meant == letter
        said = meant or shown(careful_answer(prediction) or "") or None
        reason_strict = "match" if correct_strict else "no_answer" if said is None else "mismatch"
        if meant is not None and meant not in LETTERS[: len(choices) or None]:
            reason_strict = "unknown_option"
        return Verdict(
            correct=correct,
            correct_strict=correct_strict,
            extracted=extracted,
            reason=reason,
            extracted_strict=said if said != extracted else None,
            reason_strict=reason_strict if reason_strict != reason else None,
            flags=flags,
        )


def _answer_text(prediction: str) -> str:
    """What the published rule reads: the first tag, or everything if it is missing or empty."""
    found = _PUBLISHED_TAG.search(prediction)
    return (found and found.group(1)) or prediction


def _accepted(letter: str, choices: tuple[str, ...]) -> list[str]:
    text = choices[LETTERS.index(letter)] if choices else letter
    bracketed = f"({letter})"
    return [text.lower(), text, letter, letter.lower(), bracketed.lower(), bracketed]


def stated_option(prediction: str, choices: tuple[str, ...] = ()) -> str | None:
    """The letter of the option that a careful reader takes the answer for; None if there is none.

    It may lie beyond the choices. A letter with the text of another option is no option.
    """
    tag = careful_answer(prediction)
    if tag is None:
        return _last_stated(prediction, choices)
    answer = tag.strip(" \t\n*_`\"'“”")
    if found := _LETTER.fullmatch(answer):
        return found.group(1).upper()
    if option := _option_of(answer, choices):
        return option
    if (found := _LETTER_AND_TEXT.fullmatch(answer)) and (text := _option_of(found.group(3), choices)):
        letter = (found.group(1) or found.group(2)).upper()
        return letter if text == letter or _same_text(letter, text, choices) else None
    return _last_stated(answer, choices)


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .,;:!*").casefold()


def _option_of(text: str, choices: tuple[str, ...]) -> str | None:
    """The option with this text, with or without an article before it."""
    options = {_plain(choice): letter for choice, letter in reversed(list(zip(choices, LETTERS, strict=False)))}
    plain = _plain(text)
    return options.get(plain) or options.get(_ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain)


def _same_text(first: str, second: str, choices: tuple[str, ...]) -> bool:
    texts = {letter: _plain(choice) for letter, choice in zip(LETTERS, choices, strict=False)}
    return first in texts and texts[first] == texts.get(second)


@lru_cache(4096)
def _statements(choices: tuple[str, ...]) -> re.Pattern[str]:
    """Finds letters and whole option texts, the longest option first; ``i`` only for the texts."""
    texts = sorted({_plain(choice) for choice in choices} - {""}, key=len, reverse=True)
    escaped = "|".join(re.escape(text) for text in texts) or "(?!)"  # without choices no text is found
    return re.compile(rf"{_STATED}|(?<![\w.])(?P<text>(?i:{escaped}))(?!\w|\.\d)")


def _last_stated(text: str, choices: tuple[str, ...]) -> str | None:
    """The option stated last in running text; None too if its letter and its text, side by side, disagree."""
    before = last = None
    for found in _statements(choices).finditer(text):
        before, last = last, found
    if last is None:
        return None
    option = _option_stated(last, choices)
    if before is not None and bool(before["text"]) != bool(last["text"]):
        other = _option_stated(before, choices)
        side_by_side = not text[before.end() : last.start()].strip(" \t.:,*")
        if side_by_side and other != option and not _same_text(other or "", option or "", choices):
            return None
    return option


def _option_stated(found: re.Match[str], choices: tuple[str, ...]) -> str | None:
    letter = found["bracketed"] or found["bare"]
    return letter.upper() if letter else _option_of(found["text"], choices)
