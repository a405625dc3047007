"""Multiple choice: any parsed letter or option text (published), or the one option that is stated (strict).

Published (VisualThinker-R1-Zero's CV-Bench evaluation): the first answer tag whose contents are on one line, else the
whole output, read by math-verify as LaTeX, an expression, or one of the strings A-F, a-f, (a)-(f), (A)-(F) and the
item's options; right if anything it reads is the option's text (as it is or in lower case), the letter or the letter in
brackets (either case). Its quirks are kept: the article "a" is option A, ``Chair`` is not ``chair``, ``(A) 3`` counts
as (A) whatever option 3 is, and in running text the right-most string wins.

Strict: the tag's contents, without a tag the last box, the last "the answer is", or the last sentence that names an
option. An answer is a letter with or without brackets, an option's text (case and closing punctuation aside), or both
where they agree; a remark may follow. Two options offered, or only a denied one, are no answer. An article is never an
option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from eval_harness.graders.base import Mark, Verdict, with_strict
from eval_harness.graders.symbolic import equal, parse
from eval_harness.graders.tags import shown, tag_flags
from eval_harness.graders.text import CLOSING, EMPTY, NEGATED, PHRASE, UNSURE, boxes, closed, own_part, plain, said

LETTERS = "ABCDEF"
_BRACKETED = tuple(f"({letter})" for letter in LETTERS)
_STRINGS = (*LETTERS, *LETTERS.lower(), *(b.lower() for b in _BRACKETED), *_BRACKETED)
"""In the order of the release; the options follow. It matters: the first string that fits at a place is taken."""
_PUBLISHED_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>")
_GOLD = re.compile(rf"\(([{LETTERS}])\)|([{LETTERS}])")
_MAX_STATEMENT = 1000
_MAX_MENTIONS = 64
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|it|this|that|my|is|it's|would|must|should|be|i|choose|pick|select|say|with"
    r"|(?:the|final|correct|right|best|most likely)(?=\s+(?:answer|choice|option|selection|final|correct|right|best)\b)"
    r"|the(?=\s+[\"'(\[]*[A-Z]\b)|answer|choice|option|selection|letter)\b[\s:,=-]*)+",
    re.IGNORECASE,
)
"""Words before an option that announce it."""
_WEAK_A = r"A(?=\W*$|\s*[,;:.)\]/&-]|\s+(?:is|isn't|because|since|as|and|or|not|but|rather|instead|was|seems|nor)\b)"
"""An A that is no article: nothing follows, or a word that no noun phrase begins with."""
_BARE = rf"(?<![\w'.])(?P<bare>{_WEAK_A}|[B-F])(?![\w'])(?!\.\d)"
_BEGINS = re.compile(rf"(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<small>[a-f])[.:)\]](?=\s|$)|{_BARE})\s*[.:)\]]?")
_JOINED = re.compile(
    r"[\s,;\"')\]]*(?:(?:\b(?:and|or|as well as)\b|[/&+,;])[\s,;]*)+"
    r"(?:(?:the|an?|also|maybe|perhaps|possibly|option|choice|answer|both|either)\s+)*[\"'(\[]*",
    re.IGNORECASE,
)
_DENIED = re.compile(
    rf"(?:{NEGATED}|\bthan)\s*(?:(?:be|is|on|to|in|at|the|an?|option|choice|answer)\s+)*[\"'(\[]*$",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[)\]\"']*\s*(?:(?:is|are|was|does|do|can|seems|looks)\s*(?:n't|n't\b|\s*not\b)|cannot be"
    r"|(?:is|are|was)\s+(?:wrong|incorrect|false|impossible|excluded|eliminated|ruled out|out\b))",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"(?:\bno|\bwait|\bactually|\bsorry|\bcorrection|\bi mean)[\s,:;.-]*"
    r"(?:(?:it|it's|is|the|an?|answer|option|choice|actually|rather|should|be|i|mean)\s+)*[\"'(\[]*$",
    re.IGNORECASE,
)
"""Words before an option that take back what was said before."""
_STATED = re.compile(
    r"(?:\b(?:answer|choice|option|is|it's|are|be|choose|chose|pick|select|go with|so|therefore|thus|hence)\b|=|:)"
    r"[\s,:]*(?:(?:on|to|in|at|the|an?|option|choice|answer|letter)\s+)*[\"'(\[]*$",
    re.IGNORECASE,
)
"""Words right before an option that state it."""
_REASON = re.compile(r"\b(?:because|since|given that|due to|as (?:it|they|the|this))\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[a-z0-9)\]\"'][.!?])\s+(?=[A-Z(\"])|(?<=[A-F][.!])\s+(?=[A-Z][a-z])|\n")


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
        return with_strict(Verdict(correct, False, extracted, reason, flags=flags), mark(gold, prediction, context))


def _answer_text(prediction: str) -> str:
    """What the published rule reads: the first tag, or everything if it is missing or empty."""
    found = _PUBLISHED_TAG.search(prediction)
    return (found and found.group(1)) or prediction


def _accepted(letter: str, choices: tuple[str, ...]) -> list[str]:
    text = choices[LETTERS.index(letter)] if choices else letter
    bracketed = f"({letter})"
    return [text.lower(), text, letter, letter.lower(), bracketed.lower(), bracketed]


# --- strict --------------------------------------------------------------------------------------------------------


def mark(gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Mark:
    """The strict mark of an answer.

    Args:
        gold: such as ``(C)``.
        prediction: what the model wrote.
        context: ``choices``, the options' texts, and ``finish_reason``, where known.
    """
    context = context or {}
    choices = tuple(context.get("choices") or ())
    found = _GOLD.fullmatch(gold.strip())
    letter = (found.group(1) or found.group(2)) if found else ""
    option, why, text = stated_option(prediction, choices, context.get("finish_reason"))
    wanted = f"{letter}: {choices[LETTERS.index(letter)]}" if letter in LETTERS[: len(choices)] else letter
    if option is None:
        text = shown(text)
        return Mark(False, "mismatch" if text else "no_answer", text, wanted, why)
    if option not in LETTERS[: len(choices) or None]:
        return Mark(False, "unknown_option", option, wanted, "a letter beyond the options")
    return Mark(option == letter, "match" if option == letter else "mismatch", option, wanted, why)


def stated_option(
    prediction: str, choices: tuple[str, ...] = (), finish_reason: str | None = None
) -> tuple[str | None, str, str]:
    """The letter of the option that a completion states, None if there is none; why; and the answer if it is no option.

    The letter may lie beyond the choices. A letter with the text of another option is no option.
    """
    answer = said(prediction, finish_reason)
    if not answer.text:
        return None, answer.why, ""
    if answer.tagged:
        return _read(plain(_inside(answer.text)), choices, whole=True)
    text = own_part(answer.text)
    full = [box for box in boxes(text) if not EMPTY.fullmatch(box[2])]
    since = full[-1][1] if full else 0
    for found in reversed([found.end() for found in PHRASE.finditer(text, since)][-_MAX_MENTIONS:]):
        sentence = _sentences(plain(text[found : found + _MAX_STATEMENT]))
        option, why, other = _read(sentence[0] if sentence else "", choices, whole=False)
        if option is not None or why != "no option is named":
            return option, why, other
    if full:
        return _read(plain(full[-1][2]), choices, whole=True)
    if finish_reason == "length":
        return None, "cut at its limit without a stated answer", ""
    pattern = _mentions_in(choices)
    for sentence in reversed(_sentences(plain(text))[-_MAX_MENTIONS:]):
        if pattern.search(sentence) or _LETTER.fullmatch(closed(sentence)):
            return _read(sentence, choices, whole=False)
    return None, "no option is named", ""


def _inside(text: str) -> str:
    """The last box's contents, where the answer is little else."""
    full = boxes(text)
    return full[-1][2] if full and len(text) - (full[-1][1] - full[-1][0]) < 3 else text


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]


def _plain(text: str) -> str:
    return " ".join(plain(text).split()).strip(CLOSING + "'\"").casefold()


@lru_cache(4096)
def _options(choices: tuple[str, ...]) -> dict[str, str]:
    """Option texts as they are compared -> letters, several where they agree; with number words for whole numbers."""
    options: dict[str, str] = {}
    for letter, choice in zip(LETTERS, choices, strict=False):
        if text := _plain(choice):
            options[text] = options.get(text, "") + letter
    words = {_COUNTS[int(text)]: letters for text, letters in options.items() if text in _SMALL}
    return words | options


_SMALL = frozenset(map(str, range(len(_COUNTS))))


def _letters_of(text: str, choices: tuple[str, ...]) -> str:
    """The letters of the options with this text, with or without an article before it."""
    options, plain_text = _options(choices), _plain(text)
    return options.get(plain_text) or options.get(_ARTICLE.sub("", plain_text, count=1), "")


@lru_cache(4096)
def _mentions_in(choices: tuple[str, ...]) -> re.Pattern[str]:
    """Finds letters and whole option texts, the longest first; ``i`` only for the texts."""
    texts = sorted({_plain(choice) for choice in choices} - {""}, key=len, reverse=True)
    escaped = "|".join(re.escape(text).replace("\\ ", r"\s") for text in texts) or "(?!)"
    return re.compile(rf"[(\[](?P<bracketed>[A-Za-z])[)\]]|(?<![\w.])(?P<text>(?i:{escaped}))(?!\w|\.\d)|{_BARE}")


@dataclass(frozen=True)
class _Mention:
    """Options named at one place of a text: one letter, or those that have the text."""

    letters: str
    start: int
    end: int
    is_text: bool


def _mentions(text: str, choices: tuple[str, ...]) -> list[_Mention]:
    found = []
    for match in _mentions_in(choices).finditer(text):
        letter = match["bracketed"] or match["bare"]
        letters = letter.upper() if letter else _letters_of(match["text"], choices)
        found.append(_Mention(letters, match.start(), match.end(), not letter))
        if len(found) == _MAX_MENTIONS:
            break
    return found


_NO_OPTION = "no option is named"
_SEVERAL = "several options are named"


def _read(text: str, choices: tuple[str, ...], whole: bool) -> tuple[str | None, str, str]:
    """The option that a statement states, why, and the statement if it is none.

    Args:
        text: without markup.
        choices: texts of the options.
        whole: the text is all of the answer: what is no option then is another answer.
    """
    other = text if whole else ""
    text = closed(text[:_MAX_STATEMENT])
    if not text:
        return None, "nothing is stated", ""
    for candidate in dict.fromkeys((text, closed(text[_lead(text) :]))):
        if found := _LETTER.fullmatch(candidate):
            return found.group(1).upper(), "a letter", ""
        if letters := _letters_of(candidate, choices):
            return (letters, "an option's text", "") if len(letters) == 1 else (None, "a text of several options", "")
    start = _lead(text)
    if UNSURE.search(text[:start]):
        return None, "it is not sure", ""
    first = _BEGINS.match(text, start) or _BEGINS.match(text)
    mentions = _mentions(text, choices)
    corrected = [i for i, mention in enumerate(mentions) if _CORRECTED.search(text[: mention.start])]
    if corrected:
        first, mentions = None, mentions[corrected[-1] :]
    if first is not None:
        letter = (first["bracketed"] or first["small"] or first["bare"]).upper()
        behind = [mention for mention in mentions if mention.start >= first.end()]
        if not _DENIED.search(text[: first.start()]) and not _DENIED_BEHIND.match(text, first.end()):
            return _with_remark(text, letter, first.end(), behind, choices, other)
    return _among(text, mentions, choices, other)


def _lead(text: str) -> int:
    """Where the words that announce an option end."""
    found = _LEAD.match(text)
    return found.end() if found else 0


def _with_remark(
    text: str, letter: str, end: int, behind: list[_Mention], choices: tuple[str, ...], other: str
) -> tuple[str | None, str, str]:
    """A statement that begins with a letter: what follows is the option's text, or a remark."""
    if text[end:].lstrip().startswith("?"):
        return None, "it is not sure", ""
    if not behind:
        return letter, "a letter with a remark", ""
    following = behind[0]
    between = text[end : following.start]
    joined = _JOINED.fullmatch(between) and not _denied(text, following)
    sentence = following.is_text and between.lstrip().startswith(",") and not _is_option_text(text, following)
    if letter not in following.letters and joined and not sentence:
        return None, f"{_SEVERAL}: {letter} and {following.letters}", ""
    if following.is_text and _ARTICLE.sub("", between.strip(" .,:;*()-\"'").strip() + " ").strip() == "":
        if letter not in following.letters and _is_option_text(text, following):
            return None, f"{letter} beside the text of {following.letters}", other
        return letter, "a letter with a text" if letter in following.letters else "a letter with a remark", ""
    return letter, "a letter with a remark", ""


def _is_option_text(text: str, mention: _Mention) -> bool:
    """Whether a text ends where an option's text does: it is no sentence about it."""
    return re.match(r"[)\]\"']*\s*(?:$|[.,;:!(\n])", text[mention.end :]) is not None


def _denied(text: str, mention: _Mention) -> bool:
    before = text[max(0, mention.start - 60) : mention.start]
    return _DENIED.search(before) is not None or _DENIED_BEHIND.match(text, mention.end) is not None


def _among(text: str, mentions: list[_Mention], choices: tuple[str, ...], other: str) -> tuple[str | None, str, str]:
    """The option that is stated among those that a text names."""
    if not mentions:
        return None, _NO_OPTION, other
    stated = [mention for mention in mentions if not _denied(text, mention)]
    if not stated:
        return None, "only what it is not is said", ""
    reason = _REASON.search(text, stated[0].end)
    stated = [mention for mention in stated if reason is None or mention.start < reason.start()]
    pairs = _side_by_side(text, stated)
    for letter, named in pairs:
        if letter.letters not in named.letters:
            return None, f"{letter.letters} beside the text of {named.letters}", other
    stated = [mention for mention in stated if all(mention is not named for _, named in pairs)]
    offered = [
        (a, b)
        for a, b in zip(stated, stated[1:], strict=False)
        if a.letters != b.letters and _JOINED.fullmatch(text[a.end : b.start])
    ]
    alone = [mention for mention in stated if all(mention is not one for pair in offered for one in pair)]
    if offered:
        alone = [mention for mention in alone if mention.start > offered[-1][1].start]
        if not alone:
            return None, f"{_SEVERAL}: {offered[-1][0].letters} and {offered[-1][1].letters}", ""
    if UNSURE.search(text[: alone[-1].start]) or text[alone[-1].end :].lstrip(" )\"'").startswith("?"):
        return None, "it is not sure", ""
    named = {mention.letters for mention in alone}
    if len(named) > 1:
        told = [mention for mention in alone if _STATED.search(text[: mention.start])]
        if not told:
            return None, f"{_SEVERAL}: {', '.join(sorted(named))}", ""
        named = {told[-1].letters}
    (letters,) = named
    return (letters, "the option named", "") if len(letters) == 1 else (None, "a text of several options", "")


def _side_by_side(text: str, mentions: list[_Mention]) -> list[tuple[_Mention, _Mention]]:
    """Letters and the option texts right beside them."""
    pairs = []
    for a, b in zip(mentions, mentions[1:], strict=False):
        between = text[a.end : b.start].strip(" .,:;*()[]-\"'\n")
        if a.is_text != b.is_text and between.casefold() in ("", "a", "an", "the"):
            pairs.append((b, a) if a.is_text else (a, b))
    return pairs
