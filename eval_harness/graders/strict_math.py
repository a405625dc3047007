"""The strict rule for mathematics: find the stated answer, read it and the gold in the same way, compare all of it.

``docs/graders.md`` is the specification. :mod:`eval_harness.graders.formula` reads and values single formulas; here is
where an answer stands, what it is made of (lists, intervals, equations, units, words), and when two are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from eval_harness.graders import formula
from eval_harness.graders.base import Mark
from eval_harness.graders.formula import Token, Tree, Unreadable, tidy
from eval_harness.graders.tags import MAX_EXTRACTED, careful_answer
from eval_harness.graders.text import EMPTY, PHRASE, boxes, own_part
from eval_harness.graders.units import Unit, read_unit

_MAX_STATEMENT, _MAX_BOX = 1000, formula.MAX_CHARACTERS + 1
_MAX_ITEMS = 64


# --- where the answer stands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """The text that states the answer; an empty one states none, and ``why`` says so."""

    text: str
    why: str = ""


_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bcannot be)(?:\s+(?:equal to|be|equal|simply|just|the))*[\s$:*(]*$", re.I
)
_HEDGED = re.compile(
    r"\b(?:maybe|perhaps|possibly|not|unsure|either|neither|guess|between|could be|might be)\b|\?",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(r"\b(?:so(?! far)|thus|hence|therefore|finally|answer|we get|we conclude)\b", re.IGNORECASE)
_JOINS = re.compile(
    r"[\s$.,;]*(?:\\\)|\\\]|\\text\{)?[\s$.,;]*(?P<word>and|or|,|&)?\s*\}?[\s$.,;]*(?:\\\(|\\\[)?\s*(?:[a-zA-Z]\s*=\s*)?"
)
_NAME_ALONE = re.compile(r"[*_ ]*[A-Za-z]+(?: [A-Za-z]+){0,2}\.?[*_ ]*")
_BOLD = re.compile(r"\*\*(?![\s*])([^*\n]{1,80}?)(?<![\s:])\*\*(?!\s*:)")
_BOLD_JOIN = re.compile(
    r"\*\*(?:(\s*,?\s*(?:or|and)\s+|\s*,\s*)\*\*(?=\S)|(\s*,?\s*(?:or|and)\s+)(?=-?\d|\$|\\\())", re.I
)
_WORD = r"(?!(?:and|or|but|so|the|an?|of|to|in|for|with|is|are|has|have|that|which|then|we)\b)[A-Za-z°%'/^]+"
_ENDS_IN_ANSWER = re.compile(r"(?:\$|\\[)\]]|\d[^\s\d$\\]*(?:\s+" + _WORD + r"){0,3}|[=:]\s*\S+)[*\s]*$")
_VERB = re.compile(r"\b(?:is|are|be|was|equals?|gives?|get|have)\b")
_IS_NAME = re.compile(r".*\b(?:is|are|be)\s*:?\s+(?:[a-z]+ing\s+)?([A-Za-z]+(?: [A-Za-z]+)?)$", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.^])[-+]?(?:\d+(?:,\d{3})+|\d+)?(?:\.\d+|\d)(?:[eE][-+]?\d+)?(?:/\d+)?(?!(?![\u4e00-\u9fff])\w|\.\d)"
)


def find_answer(text: str, finish_reason: str | None = None) -> Stated:
    """The answer that a completion states.

    Args:
        text: the completion.
        finish_reason: ``length`` says that it was cut, ``stop`` that it was not; None: unknown.
    """
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return Stated("", "the thinking is not closed")
    tag = careful_answer(text)
    if tag:
        text, finish_reason = tag, "stop"
    text = own_part(text)
    found = boxes(text, _MAX_BOX)
    full = [box for box in found if not EMPTY.fullmatch(box[2])]
    phrase = _last_phrase(text, full[-1][1] if full else 0)
    if phrase is not None and (not full or (re.search(r"\d|\$|\\", phrase) and readings(phrase))):
        return _of_clause(phrase)
    if full:
        return _of_boxes(text, full)
    if found:
        return Stated("", "the box is empty")
    if tag:
        return _of_clause(tag)
    return _unstated(text.strip(), finish_reason)


def _of_boxes(text: str, full: list[tuple[int, int, str]]) -> Stated:
    start, end, content = full[-1]
    for before in reversed(full[:-1][-_MAX_ITEMS:]):
        between = text[before[1] : start]
        joined = _JOINS.fullmatch(between) if len(between) < 40 else None
        if not joined or not (joined["word"] or "," in between):
            break
        content = f"{before[2]} \\text{{{joined['word'] if joined['word'] in ('and', 'or') else 'and'}}} {content}"
        start = before[0]
    if _NEGATED.search(text[max(0, start - 40) : start]):
        return Stated("", "the answer is negated")
    content = re.sub(r"\\(?:boxed|fbox)(?![A-Za-z])", "", content)
    return Stated(content + _unit_behind(text[end : end + 80]))


_AFTER_UNIT = re.compile(
    r"\\\]|\\end|\\\\(?!\w)|\n|(?<=[\w}])[.,;](?=\s|$|\$)|=|\\(?:simeq|approx|quad\s*\\text\s*\{\s*or)"
)


def _unit_behind(rest: str) -> str:
    """A unit that stands behind a box, in the same formula or right behind it; empty if none is known."""
    inside, dollar, outside = _AFTER_UNIT.split(rest)[0].partition("$")
    words = outside.split("$")[0].split()
    if not re.search(r"[A-Za-z%'\"°]", inside) and not words:
        return ""
    candidates = [f"{inside} {' '.join(words)}", inside]
    candidates += [
        " ".join(words[:n]) for n in (4, 3, 2, 1) if not inside.strip() and len(words[n - 1 : n] and words[0]) > 2
    ]
    for candidate in candidates:
        pieces = re.split(r"(\\text\s*\{[^{}]*\})", tidy(re.sub(r"\{\s*~?\s*([A-Za-z]+)\s*\}", r"{\1}", candidate)))
        unit = "".join(
            piece if i % 2 else re.sub(r"\{?(?<![\\A-Za-z])([A-Za-z]{1,12})(?![A-Za-z])\}?", r"\\text{\1}", piece)
            for i, piece in enumerate(pieces)
        ).strip(" .,;~")
        if unit.startswith("/") and unit.count("/") > 1:
            continue
        if unit and len(unit) < 70 and read_unit(unit) is not None:
            return f" {unit}"
    return ""


def _last_phrase(text: str, since: int) -> str | None:
    """What stands behind the last ``the answer is`` after a position."""
    for end in reversed([match.end() for match in PHRASE.finditer(text, since)][-_MAX_ITEMS:]):
        content = _sentence(text[end : end + _MAX_STATEMENT])
        if content and not EMPTY.fullmatch(content):
            return content
    return None


def _sentence(text: str) -> str:
    """The first sentence, or the formulas it begins with and their unit."""
    text = _BOLD_JOIN.sub(r"\1\2", text.lstrip(" \t\n*:"))
    first = _FORMULA.match(text)
    if first is None:
        end = re.search(r"\n|(?<!\d)[.!](?:\s|$)|(?<=\d)\.(?:\s+[A-Z\\(]|\s*$)|(?<=\S)\*\*|\.\s+I hope|<", text)
        return text[: end.start()].strip() if end else text.strip()
    pieces, place = [next(filter(None, first.groups()))], first.end()
    while following := _FORMULA.search(text, place, place + 200):
        between = text[place : following.start()].strip().lower()
        if between not in (",", "and", "or", ", and", ", or", ";"):
            break
        pieces += [r"\text{or}" if "or" in between else r"\text{and}", next(filter(None, following.groups()))]
        place = following.end()
    rest = re.split(r"[.,;\n]|\*\*|\s[-–—]\s", text[place:])[0].strip()
    so = re.search(r",?\s*\b(?:so|thus|hence|therefore)\b", text[place : place + 20])
    if so:
        following = _FORMULA.search(text, place, place + 200)
        if following and "\n" not in text[place : following.start()]:
            return _sentence(text[following.start() :])
    hedge = re.match(r"(?:or|and not|but not)\s+(.{1,40})", rest)
    if hedge:
        return " ".join(pieces) + " or " + hedge.group(1)
    if rest and len(rest) < 30 and read_unit(f"\\text{{{rest}}}") is not None:
        pieces.append(f"\\text{{{rest}}}")
    return " ".join(pieces)


def _unstated(text: str, finish_reason: str | None) -> Stated:
    """The answer of a text without a box, a tag or a phrase: what its last sentence ends in."""
    if finish_reason == "length":
        return Stated("", "cut at its limit without a stated answer")
    if not text:
        return Stated("", "there is no text")
    line = text[-_MAX_STATEMENT:].rsplit("\n", 1)[-1].strip()
    if text.endswith(("$$", "\\]")):
        tail = text[-2 * _MAX_STATEMENT :]
        last = list(_FORMULA.finditer(tail))
        if last and last[-1].end() == len(tail):
            return Stated(next(filter(None, last[-1].groups())))
        return Stated("", "no answer is stated")
    sentence = re.split(r"(?<=[A-Za-z0-9$)}\]][.!?])\s+(?=[A-Z\\$])", line)[-1]
    if "\n" not in text and sentence == line and (_is_formula(line) or _NAME_ALONE.fullmatch(line)):
        return Stated(line)
    finished = finish_reason == "stop" or sentence.rstrip("* ").endswith((".", "!"))
    if not finished and not (_CONCLUDES.search(sentence) and _ENDS_IN_ANSWER.search(sentence)):
        return Stated("", "the text breaks off without a stated answer")
    if _HEDGED.search(sentence):
        return Stated("", "the last sentence does not state an answer")
    return _of_sentence(sentence)


def _of_clause(text: str) -> Stated:
    """What is said behind "the answer is", or in a tag: all of it, or what it ends in ("the height is 20 m")."""
    if len(text) <= _MAX_STATEMENT and _VERB.search(text) and not readings(text):
        stated = _of_sentence(text)
        if stated.text:
            return stated
    return Stated(text)


def _of_sentence(sentence: str) -> Stated:
    """What a sentence says: what it sets in bold, its last formula, or what stands behind its last verb."""
    sentence = _BOLD_JOIN.sub(r"\1\2", sentence)
    bold = _in_bold(sentence)
    if bold:
        return Stated(bold)
    formulas = list(_FORMULA.finditer(sentence))
    if formulas:
        first = formulas[-1]
        for before in reversed(formulas[:-1]):
            if sentence[before.end() : first.start()].strip().lower() not in (",", "and", "or", ", and", ", or"):
                break
            first = before
        return Stated(_sentence(sentence[first.start() :]))
    if _is_formula(sentence):
        return Stated(sentence)
    plain = sentence.rstrip(".!* ")
    told = re.match(r".*\b(?:is|are|get|have|obtain|gives?|equals?)\s*:?\s+(\S.*)$", plain)
    if told and _is_formula(told.group(1)):
        return Stated(told.group(1))
    numbers = list(_NUMBER.finditer(sentence))
    named = _IS_NAME.match(plain)
    if len(numbers) == 1 and not named:
        number = numbers[0]
        before = re.search(r"(?:[A-Za-z]\w*|\S+)\s*=\s*$", sentence[: number.start()])
        return Stated(sentence[number.start() :].rstrip(".! ") if not before else number.group())
    tail = re.search(r"(?:\bis|\bare|=|:)\s*(\S[^=:]*)$", plain)
    if tail and _is_formula(tail.group(1)):
        return Stated(tail.group(1))
    return Stated(named.group(1)) if named else Stated("", "no answer is stated")


def _in_bold(sentence: str) -> str:
    """The last answer that a sentence sets in bold; a word only if no number or formula follows."""
    runs = [run for run in _BOLD.finditer(sentence) if _is_formula(run.group(1)) or _NAME_ALONE.fullmatch(run.group(1))]
    if not runs:
        return ""
    content = runs[-1].group(1)
    if not _is_formula(content) and re.search(r"\d|\$|\\[(\[]", sentence[runs[-1].end() :]):
        return ""
    return content


def _is_formula(text: str) -> bool:
    """Whether a text can be read in full, and is no sentence."""
    if not re.search(r"\d|\\|[-+*/^=()]", text) and not re.fullmatch(r"\$?[A-Za-z]\$?\.?", text.strip()):
        return False
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\text\s*\{[^{}]*\}", "", text))
    words = [word for word in words if word not in formula.FUNCTIONS | {"pi", "sqrt", "and", "or", "infinity"}]
    if len(words) > (2 if re.match(r"[-$\d]", text) else 0):
        return False
    try:
        return any(not isinstance(reading, Words) for reading in read(text))
    except Hedged:
        return False


# --- what an answer is made of -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """A number or an expression."""

    tree: Tree
    unit: Unit | None = None
    also: tuple[Tree, ...] = ()
    """Other spellings of the same value, as in ``10\\sqrt2 \\approx 14.14``."""
    loose: tuple[Tree, Unit | None] | None = None
    """The reading in which the letters behind a number are a unit: ``5 m``."""


@dataclass(frozen=True)
class Named:
    """``n = 5``, ``f(x) = 2x``, ``(x, y) = (1, 2)``."""

    name: Any
    body: Any


@dataclass(frozen=True)
class Equation:
    """An equation that does more than to name a value."""

    left: Tree
    right: Tree


@dataclass(frozen=True)
class Inequality:
    """``tree > 0`` or, not strict, ``tree >= 0``, where the bounds are not numbers."""

    tree: Tree
    strict: bool


@dataclass(frozen=True)
class Items:
    """Several answers: ``list`` (no brackets), ``set``, or a ``tuple`` between the brackets given."""

    kind: str
    items: tuple
    brackets: str = ""
    choice: bool = False
    """Joined by ``or``."""


@dataclass(frozen=True)
class Region:
    """Real numbers between bounds: (low, high, low is in, high is in), ascending."""

    parts: tuple[tuple[Tree, Tree, bool, bool], ...]


@dataclass(frozen=True)
class Based:
    """Digits of a number in a base; base 0: none is stated."""

    digits: str
    base: int


@dataclass(frozen=True)
class Clock:
    """A time of day or a ratio: its parts, and am or pm."""

    parts: tuple[Fraction, ...]
    half: str = ""


@dataclass(frozen=True)
class Words:
    """An answer in words, or one that cannot be read: compared as text."""

    text: str
    raw: str = ""


class Hedged(ValueError):
    """Nothing is stated: a negation, a range, a bound in words."""


_UNCLEAR = """not neither nor either between unless maybe perhaps possibly probably less more greater fewer than
    least most over under above below from till until through none no any"""
_NO_STATEMENT = frozenset(_UNCLEAR.split())
_EMPTY_WORDS = """the is are be equal equals value of it an exactly only answer all about approximately around
    roughly nearly clearly simply just indeed obviously"""
_FILLERS = frozenset(_EMPTY_WORDS.split())
_REASONS = frozenset({"since", "because", "which"})
_CUTS = _REASONS | frozenset({"where", "when", "if", "with", "for", "that", "but"})
_FACTORS = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_OPEN, _CLOSE = frozenset({"(", "[", "{", "\\{"}), frozenset({")", "]", "}", "\\}"})


@lru_cache(1024)
def read(text: str) -> tuple[Any, ...]:
    """What a text may mean, the likeliest first; ``Words`` when it cannot be read.

    Raises:
        Hedged: it states nothing.
    """
    words = Words(_as_words(text), _squeezed(text))
    if len(text) > formula.MAX_CHARACTERS:
        return (words,)
    if re.fullmatch(r"(?:all )?real(?:s| numbers)", words.text):
        return (_region_of_reals(), words)
    tidied = (
        tidy(re.sub(r"\\\$|(?<![\w$])(?:USD|US\$)(?=\s*\d)", r"\\text{dollars}", text)).lstrip(" ,;:").rstrip(" .,;:")
    )
    tidied = re.sub(r"(?<=[\d} ]) ?\((?!not|or|maybe|perhaps)[A-Za-z][A-Za-z ]{3,}\)$", "", tidied)
    spellings = [tidied]
    grouped = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m.group().replace(",", ""), tidied)
    if grouped != tidied:
        bracketed = tidied[:1] in "([" or tidied.startswith("\\{")
        spellings = [tidied] if bracketed else [grouped, tidied]
    readings: list[Any] = []
    for spelling in spellings:
        try:
            reading = _read_all(_trimmed(formula.tokens(spelling)))
        except (Unreadable, RecursionError):
            continue
        readings.append(reading)
    return (*readings, words)


def _squeezed(text: str) -> str:
    if len(text) > formula.MAX_CHARACTERS:
        return text
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(text)).rstrip(".,;:")


def _as_words(text: str) -> str:
    """Letters and digits of an answer in words, without articles, commands and brackets."""
    text = re.sub(r"\\[A-Za-z]+", " ", text[:_MAX_STATEMENT])
    words = re.findall(r"[^\W_]+", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the") or len(words) == 1)


def _trimmed(found: list[Token]) -> list[Token]:
    """Without full stops at the end, lone braces around everything, and words that say nothing at the start."""
    while found and found[-1].kind in (".", ",", ";", ":") or found and found[-1].text in ("\\ldots", "\\\\"):
        found = found[:-1]
    while found and (found[0].kind == "text" and set(found[0].text.lower().strip(" :").split()) <= _FILLERS):
        found = found[1:]
    while len(found) > 2 and found[0].kind == "{" and _closing(found, 0) == len(found) - 1:
        found = found[1:-1]
    if len(found) == 1 and found[0].kind == "text" and re.fullmatch("[A-Za-z]", found[0].text):
        return [Token("sym", found[0].text)]
    if found and found[0].kind == "text" and found[0].text == "dollars":
        found = [*found[1:], found[0]]
    if len(found) > 1 and found[0].kind in "+-" and found[1].kind == "text" and found[1].text == "dollars":
        found = [found[0], *found[2:], found[1]]
    return found


def _closing(found: Sequence[Token], start: int) -> int:
    """Place of the bracket that closes the one at ``start``; -1: there is none. Any closes any: ``(3, 4]``."""
    depth = 0
    for i in range(start, len(found)):
        kind = found[i].text if found[i].kind == "cmd" else found[i].kind
        depth += (kind in _OPEN) - (kind in _CLOSE)
        if depth == 0:
            return i
    return -1


def _split(found: list[Token], is_separator: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
    """Pieces outside brackets, and the separators between them."""
    pieces: list[list[Token]] = [[]]
    separators, depth, matrix = [], 0, 0
    for token in found:
        kind = token.text if token.kind == "cmd" else token.kind
        depth += (kind in _OPEN) - (kind in _CLOSE)
        matrix += (kind == "\\begin") - (kind == "\\end")
        if depth == 0 and matrix == 0 and is_separator(token):
            pieces.append([])
            separators.append(token)
        else:
            pieces[-1].append(token)
    return pieces, separators


def _read_all(found: list[Token]) -> Any:
    """One answer or several."""
    for i, token in enumerate(found):
        if token.kind == "text" and token.text.lower() in ("so", "thus", "hence", "therefore") and i + 1 < len(found):
            found = found[i + 1 :] if not found[:i] or found[i + 1 :] else found[:i]
            return _read_all(_trimmed(found))
    cut = next((i for i, token in enumerate(found) if token.kind == "text" and token.text.lower() in _CUTS), None)
    if cut and found[cut].text.lower() in _REASONS:
        found = _trimmed(found[:cut])
    elif cut is not None:
        raise Unreadable("a condition or a remark in words")

    def joins(token: Token) -> bool:
        return token.kind in (",", ";") or (
            token.kind == "text" and token.text.lower().strip(",; ") in ("and", "or", "")
        )

    pieces, separators = _split(found, joins)
    choice = any(token.kind == "text" and "or" in token.text.lower() for token in separators)
    pieces = [_trimmed(piece) for piece in pieces]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) > 1:  # "5, not 7"
        pieces = [p for i, p in enumerate(pieces) if i == 0 or not (p[0].kind == "text" and p[0].text.lower() == "not")]
    if not pieces:
        raise Unreadable("nothing")
    if len(pieces) > _MAX_ITEMS:
        raise Unreadable("too many")
    readings: list[Any] = []
    for piece in pieces:
        reading = _read_one(piece)
        if isinstance(reading, Items) and reading.kind == "list":
            readings.extend(reading.items)
        else:
            readings.append(reading)
    if len(readings) == 1:
        return readings[0]
    bounds = [r.body if isinstance(r, Named) else r for r in readings]
    if all(isinstance(r, Region) for r in bounds) and any(t.kind == "rel" for t in found):
        return _united(bounds) if choice or any(t.text == "in" for t in found if t.kind == "rel") else _common(bounds)
    return Items("list", tuple(readings), choice=choice)


def _read_one(found: list[Token]) -> Any:
    """One answer: an equation, an inequality, a set, a tuple, a matrix, a quantity."""
    if not found:
        raise Unreadable("nothing")
    for token in found:
        if token.kind == "text" and set(token.text.lower().split()) & _NO_STATEMENT:
            raise Hedged(f"it says “{token.text}”")
        if token.kind == "?":
            raise Hedged("it is a question")
    if any(token.kind == "text" and token.text.lower() == "to" for token in found):
        raise Hedged("a range")
    sides, relations = _split(found, lambda token: token.kind == "rel")
    if relations:
        return _relation([_trimmed(side) for side in sides], [token.text for token in relations])
    parts, cups = _split(found, lambda token: token.text in ("\\cup", "\\bigcup") or token.text == "U")
    if cups and all(part and part[0].text in ("(", "[", "\\{") for part in parts):
        return _united([_region(_read_one(part)) for part in parts])
    first = found[0].text
    if len(found) == 1 and first == "\\emptyset":
        return Items("set", ())
    if first in _OPEN and _closing(found, 0) == len(found) - 1:
        return _bracketed(found)
    if first == "\\begin":
        return _matrix(found)
    return _special(found) or _quantity(found)


def _bracketed(found: list[Token]) -> Any:
    opening, inside, closing = found[0].text, found[1:-1], found[-1].text
    if opening != "\\{" and inside and inside[0].text == "\\begin":
        return _matrix(inside)
    if opening == "\\{":
        condition, bars = _split(inside, lambda token: token.kind in ("|", ":"))
        if bars and len(condition) == 2:
            return _read_all(condition[1])
    pieces, commas = _split(inside, lambda token: token.kind in (",", ";"))
    pieces = [_trimmed(piece) for piece in pieces]
    if opening == "\\{":
        read_items = [_read_one(piece) for piece in pieces if piece]
        flat = [one for r in read_items for one in (r.items if isinstance(r, Items) and r.kind == "list" else (r,))]
        return Items("set", tuple(flat))
    if not commas:
        if opening != "(" or closing != ")":
            return _quantity(found)
        return _quantity(found) if _is_expression(inside) else _read_all(inside)
    if not all(pieces) or len(pieces) > _MAX_ITEMS:
        raise Unreadable("an empty place")
    items = tuple(_read_one(piece) for piece in pieces)
    return Items("tuple", items, opening + closing)


def _is_expression(found: list[Token]) -> bool:
    try:
        formula.parse(found)
    except Unreadable:
        return False
    return True


def _matrix(found: list[Token]) -> Items:
    """A matrix as a tuple of rows, one column as a tuple."""
    stop = next((i for i, token in enumerate(found) if token.text == "\\end"), -1)
    start = _closing(found, 1) + 1
    name = "".join(token.text for token in found[2 : start - 1])
    if name == "array" and found[start].kind == "{":
        start = _closing(found, start) + 1
    if not name.endswith(("matrix", "array")) or stop < start or _closing(found, stop + 1) != len(found) - 1:
        raise Unreadable("no matrix")
    rows, _ = _split(found[start:stop], lambda token: token.text == "\\\\")
    table = [[_read_one(_trimmed(cell)) for cell in _split(row, lambda t: t.kind == "&")[0]] for row in rows if row]
    if not table or len({len(row) for row in table}) != 1 or sum(map(len, table)) > _MAX_ITEMS:
        raise Unreadable("an uneven matrix")
    if len(table[0]) == 1:
        return Items("tuple", tuple(row[0] for row in table), "()")
    return Items("tuple", tuple(Items("tuple", tuple(row), "()") for row in table), "[]")


def _special(found: list[Token]) -> Any:
    """Times of day, ratios, numbers in a base, half-open intervals behind a letter; None: none of these."""
    kinds = [token.kind for token in found]
    texts = [token.text for token in found]
    told = re.fullmatch(r"([\d.]+(?::[\d.]+)+)(.*)", "".join(texts))
    if told:
        parts, half = told[1].split(":"), re.sub(r"[^apm]", "", told[2].lower())
        clock = re.fullmatch(r"\d{1,2}(:\d\d){1,2}", told[1])
        if not told[2] or (clock and half in ("am", "pm")):
            return Clock(tuple(Fraction(part.rstrip(".")) for part in parts), half or ("?" if clock else ""))
    based = re.fullmatch(r"\(?(-?\d+)\)?_\{?\(?(\w+)\)?\}?", "".join(texts))
    if based and "_" in kinds:
        base = _base(based[2])
        return None if base is None else Based(based[1], base)
    if kinds[0] == "num" and texts[0].isdigit() and "base" in " ".join(texts[1:]).lower():
        base = _base(" ".join(texts[1:]).lower().replace("base", "").strip(" ()"))
        return None if base is None else Based(texts[0], base)
    if len(kinds) > 1 and kinds[0] == "num" and kinds[1] in ("sym", "num") and "_" in kinds:
        place = kinds.index("_")
        digits, base = "".join(texts[:place]), _base("".join(texts[place + 1 :]).strip("{}"))
        if base and base > 10 and re.fullmatch(r"[0-9A-F]+", digits):
            return Based(digits, base)
    bracketed = kinds[0] == "sym" and len(found) > 3 and _closing(found, 1) == len(found) - 1
    if bracketed and texts[1] + texts[-1] in ("(]", "[)", "[]"):  # "t(0,4]": the sign between is lost
        inner = _bracketed(found[1:])
        return inner if isinstance(inner, Items) else None
    return None


_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve"
_BASES = {name: i for i, name in enumerate(_BASE_NAMES.split(), start=2)}


def _base(text: str) -> int | None:
    text = text.strip().lower().replace("base", "").strip()
    if text.isdigit() and len(text) < 3:
        return int(text)
    return _BASES.get(text, 16 if text in ("sixteen", "hex") else None)


def _quantity(found: list[Token]) -> Any:
    """A quantity with its unit, or the two that ``\\pm`` makes."""
    head, unit = _explicit_unit(found)
    try:
        tree = formula.parse(_scaled(head))
    except Unreadable:
        return Quantity(*_loose(found))
    if len(formula.both_signs(tree)) == 2:
        return Items("list", tuple(Quantity(one, unit) for one in formula.both_signs(tree)))
    try:
        loose = _loose(head) if unit is None and head[-1].kind in ("sym", "num", "}") else None
    except Unreadable:
        loose = None
    return Quantity(tree, unit, loose=loose)


def _scaled(found: list[Token]) -> list[Token]:
    """``5 million`` as a product."""
    if len(found) > 1 and found[-1].kind == "text" and found[-1].text.lower() in _FACTORS:
        factor = _FACTORS[found[-1].text.lower()]
        return [*found[:-1], Token("*", "*"), Token("num", str(factor), Fraction(factor))]
    return found


def _spelled(found: Sequence[Token]) -> str:
    """Tokens as the text of a unit."""
    return "".join(
        (" " if t.blank or t.kind == "text" else "") + (f"{t.text} " if t.kind == "text" else t.text) for t in found
    ).strip()


_UNIT_KINDS = frozenset({"text", "^", "/", "*", "%", "num", "{", "}", "-", "sym", "'", '"', "(", ")", "fn"})


def _explicit_unit(found: list[Token]) -> tuple[list[Token], Unit | None]:
    """What stands before a unit that is written as text or as a sign, and the unit."""
    depth = 0
    for i, token in enumerate(found):
        kind = token.text if token.kind == "cmd" else token.kind
        after = found[i + 1] if i + 1 < len(found) else token
        per = kind == "/" and after.kind == "text" and not any(t.kind == "/" for t in found[i + 1 :])
        degree = kind == "^" and i + 1 < len(found) and found[i + 1].text == "\\circ"
        degree = degree and not any(t.kind == "fn" for t in found[:i])  # "\sin 45^\circ"
        primes = kind in ("'", '"') and i > 0 and found[i - 1].kind in ("num", "}")
        raised = kind == "^" and i + 1 < len(found) and found[i + 1].kind == "{" and "'" in _spelled(found[i:])
        begins = (
            kind == "text"
            or (token.text == "mu" and after.kind == "text")
            or per
            or kind in ("\\%", "%", "\\AA", "\\permil")
            or token.text == "AA"
            or degree
            or primes
            or raised
        )
        if depth == 0 and i > 0 and begins and (kind != "text" or token.text.lower() not in _FACTORS):
            rest = found[i:]
            if not all(t.kind in _UNIT_KINDS or t.text in ("\\circ", "\\%", "\\AA", "\\permil") for t in rest):
                continue
            if degree and (minutes := _minutes(found, i)) is not None:
                return minutes, read_unit("degree")
            unit = read_unit(_spelled(rest))
            if unit is None and any(t.kind == "num" and found[i].kind != "text" for t in rest):
                continue
            if unit is None and (degree or kind != "text"):
                continue
            if unit is None and set(_spelled(rest).lower().split()) & (formula.WORDS - {"of", "the", "at"}):
                raise Unreadable("words behind")
            if unit is None and formula.symbols(formula.parse(found[:i])):
                raise Unreadable("words behind an expression")
            return found[:i], unit
        depth += (kind in _OPEN) - (kind in _CLOSE)
    return found, None


def _minutes(found: list[Token], place: int) -> list[Token] | None:
    """``18^\\circ 30'`` in degrees."""
    rest = found[place + 2 :]
    kinds = [token.kind for token in rest]
    if kinds == ["num", "'"] or kinds == ["num", "'", "num", "'", "'"]:
        value = found[place - 1].value + rest[0].value / 60 + (rest[2].value / 3600 if len(rest) > 2 else 0)
        return [*found[: place - 1], Token("num", str(value), value)]
    return None


def _loose(found: list[Token]) -> tuple[Tree, Unit | None]:
    """The number before letters that may be a unit or a word: ``5 m``, ``9 units``; the unit None: not a known one.

    Raises:
        Unreadable: there is no number before letters.
    """
    depth, place = 0, None
    for i, token in enumerate(found):
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        letter = (token.kind in ("sym", "text") or token.text == "min") and (
            token.text not in formula.CONSTANTS or (token.blank and i > 0)
        )
        begins = depth == 0 and i > 0 and letter and (token.blank or found[i - 1].kind in ("num", "}", ")"))
        if begins and all(t.kind in _UNIT_KINDS for t in found[i:]):
            place = i
            break
    if place is None:
        raise Unreadable("no unit")
    if set(_words_of(found[place:])) & (formula.WORDS - {"of", "the", "at", "an"}):
        raise Unreadable("words behind")
    tree = formula.parse(_scaled(found[:place]))
    if formula.symbols(tree):
        raise Unreadable("no number")
    spelled = _spelled(found[place:])
    unit = read_unit(spelled)
    if len(spelled) == 1 and not found[place].blank:
        raise Unreadable("a variable")
    if unit is None and (not found[place].blank or len(spelled) < 4 or not re.fullmatch(r"[A-Za-z' ().]+", spelled)):
        raise Unreadable("no unit")
    return tree, unit


def _words_of(found: Sequence[Token]) -> Iterator[str]:
    return (word for token in found if token.kind == "text" for word in token.text.lower().split())


# --- equations, inequalities, regions ------------------------------------------------------------------------------


def _relation(sides: list[list[Token]], relations: list[str]) -> Any:
    if not sides[0] and relations[0] in ("=", "~", "in") and len(sides) > 1:  # "= 5"
        sides, relations = sides[1:], relations[1:]
        if not relations:
            return _read_one(sides[0])
    if not all(sides):
        raise Unreadable("a side is missing")
    if relations[-1] == "in" and len(relations) == 1:
        body = _read_all(sides[1])
        return Named(None, body)
    if set(relations) <= {"=", "~"}:
        return _equation(sides, relations)
    if relations == ["!="]:
        return Named(None, _everywhere_but(_tree(sides[1])))
    if set(relations) <= {"<", ">", "<=", ">="}:
        return _bounds([_tree(side) for side in sides], relations)
    raise Unreadable("relations of several kinds")


def _tree(found: list[Token]) -> Tree:
    quantity = _quantity(found)
    if not isinstance(quantity, Quantity):
        raise Unreadable("no single value")
    return quantity.tree


def _equation(sides: list[list[Token]], relations: list[str]) -> Any:
    name = _name(sides[0])
    if name is not None and len(sides) > 1:
        if len(sides) == 2 and _name(sides[1]) is not None and relations == ["="]:
            left, right = _tree(sides[0]), _tree(sides[1])
            return Named(left, Quantity(right)) if left[0] in ("sym", "call") else Equation(left, right)
        return Named(name, _chain(sides[1:], relations[1:]))
    last = _name(sides[-1])
    if last is not None and last[0] in ("sym", "call") and len(sides) == 2 and relations == ["="]:
        return Named(last, _read_all(sides[0]))
    if any(token.text == "\\ldots" for side in sides[:-1] for token in side):
        return _read_all(sides[-1])
    bodies = [_read_all(side) for side in sides]
    if not all(isinstance(body, Quantity) for body in bodies):
        return bodies[-1]
    if "~" in relations or not any(formula.symbols(body.tree) for body in bodies):
        return _chain(sides, relations)
    if len(sides) != 2:
        raise Unreadable("a chain of equations")
    return Equation(bodies[0].tree, bodies[1].tree)


def _chain(sides: list[list[Token]], relations: list[str]) -> Any:
    """The last of equal sides; where it is a rounded one, the exact one as well."""
    bodies = [_read_all(side) for side in sides]
    last = bodies[-1]
    if relations and all(isinstance(body, Quantity) for body in bodies[-2:]):
        exact, rounded = bodies[-2:]
        a, b = formula.number(exact.tree), formula.number(rounded.tree)
        if a is None or b is None or a == b or exact.unit != rounded.unit:
            return last
        if abs(a - b) > 0.02 * max(abs(a), abs(b)):
            raise Unreadable("sides that are not equal")
        if relations[-1] == "~" or not formula.same(exact.tree, rounded.tree):
            return replace(exact, unit=exact.unit or rounded.unit, also=(rounded.tree,))
    return last


def _name(found: list[Token]) -> Any:
    """What ``n =``, ``f(x) =``, ``(x, y) =`` or ``\\text{area} =`` name; None: no name."""
    if found and all(token.kind == "text" for token in found):
        return ("sym", " ".join(token.text for token in found))
    if found[0].text == "(" and _closing(found, 0) == len(found) - 1:
        pieces, commas = _split(found[1:-1], lambda token: token.kind == ",")
        names = [_name(piece) if piece else None for piece in pieces]
        return ("names", *names) if commas and all(name is not None for name in names) else None
    try:
        tree = formula.parse(found)
    except Unreadable:
        return None
    if tree[0] == "call" or (tree[0] == "sym" and tree[1] not in formula.CONSTANTS - {"e", "i"}):
        return tree
    return None


_MINUS_INFINITY: Tree = ("neg", ("sym", "infty"))
_PLUS_INFINITY: Tree = ("sym", "infty")


def _everywhere_but(tree: Tree) -> Region:
    return Region(((_MINUS_INFINITY, tree, False, False), (tree, _PLUS_INFINITY, False, False)))


def _bounds(trees: list[Tree], relations: list[str]) -> Any:
    """``a < x <= b`` as a region, or as an inequality where a bound is no number."""
    ascending = all(relation in ("<", "<=") for relation in relations)
    if not ascending:
        if not all(relation in (">", ">=") for relation in relations):
            raise Unreadable("bounds of both directions")
        trees, relations = trees[::-1], [relation.replace(">", "<") for relation in relations[::-1]]
    values = [formula.number(tree) for tree in trees]
    closed = [relation == "<=" for relation in relations]
    if len(trees) == 3 and values[1] is None and None not in (values[0], values[2]):
        return Named(trees[1], Region(((trees[0], trees[2], closed[0], closed[1]),)))
    if len(trees) == 2 and (values[0] is None) != (values[1] is None):
        if values[0] is None and trees[0][0] in ("sym", "call"):
            return Named(trees[0], Region(((_MINUS_INFINITY, trees[1], False, closed[0]),)))
        if values[1] is None and trees[1][0] in ("sym", "call"):
            return Named(trees[1], Region(((trees[0], _PLUS_INFINITY, closed[0], False),)))
    if len(trees) == 2:
        return Inequality(formula.difference(trees[1], trees[0]), not closed[0])
    raise Unreadable("bounds")


def _region_of_reals() -> Region:
    return Region(((_MINUS_INFINITY, _PLUS_INFINITY, False, False),))


def _region(reading: Any) -> Region:
    """An interval, a finite set or a region as a region.

    Raises:
        Unreadable: it is none.
    """
    if isinstance(reading, Named):
        return _region(reading.body)
    if isinstance(reading, Region):
        return reading
    if isinstance(reading, Items) and all(isinstance(item, Quantity) for item in reading.items):
        trees = [item.tree for item in reading.items]
        if reading.kind == "set":
            return _united([Region(((tree, tree, True, True),)) for tree in trees])
        if reading.kind == "tuple" and len(trees) == 2:
            low, high = (formula.number(tree) for tree in trees)
            if low is None or high is None or low < high:
                infinite = [value in (float("inf"), float("-inf")) for value in (low, high)]
                opening, closing = reading.brackets
                return Region(((*trees, opening == "[" and not infinite[0], closing == "]" and not infinite[1]),))
    raise Unreadable("no region")


def _united(regions: Sequence[Any]) -> Region:
    parts = [part for region in regions for part in _region(region).parts]
    if any(formula.number(bound) is None for part in parts for bound in part[:2]):
        return Region(tuple(parts))
    parts.sort(key=lambda part: (formula.number(part[0]), not part[2], formula.number(part[1])))
    merged: list[tuple] = []
    for part in parts:
        if merged:
            low, high, low_in, high_in = merged[-1]
            gap, start = formula.number(high), formula.number(part[0])
            if start < gap or (start == gap and (high_in or part[2])):
                if formula.number(part[1]) > gap or (formula.number(part[1]) == gap and part[3]):
                    merged[-1] = (low, part[1], low_in, part[3])
                continue
        merged.append(part)
    return Region(tuple(merged))


def _common(regions: Sequence[Any]) -> Region:
    """What lies in all of some regions of numbers."""
    left = _region(regions[0]).parts
    for region in regions[1:]:
        found = []
        for a in left:
            for b in _region(region).parts:
                low = max(a, b, key=lambda part: (formula.number(part[0]), not part[2]))
                high = min(a, b, key=lambda part: (formula.number(part[1]), part[3]))
                x, y = formula.number(low[0]), formula.number(high[1])
                if x < y or (x == y and low[2] and high[3]):
                    found.append((low[0], high[1], low[2], high[3]))
        left = tuple(found)
    return Region(left)


# --- when two answers are the same ---------------------------------------------------------------------------------


@dataclass
class _Comparison:
    """One gold against one answer; remembers when it was a unit that differed."""

    question: str = ""
    wrong_unit: bool = False
    steps: int = field(default=0)

    def same(self, gold: Any, said: Any) -> bool:
        """Whether they are the same in full."""
        self.steps += 1
        if self.steps > 4000:
            raise Unreadable("too much to compare")
        if isinstance(gold, Words) or isinstance(said, Words):
            return isinstance(gold, Words) and isinstance(said, Words) and _same_words(gold, said)
        if isinstance(gold, Named) or isinstance(said, Named):
            return self._named(gold, said)
        if isinstance(gold, Region) or isinstance(said, Region):
            return self._regions(gold, said)
        if isinstance(gold, Items) or isinstance(said, Items):
            return self._items(gold, said)
        if isinstance(gold, Equation) and isinstance(said, Equation):
            one, other = (formula.difference(e.left, e.right) for e in (gold, said))
            return formula.proportional(one, other)
        if isinstance(said, Equation):
            return isinstance(gold, Quantity) and self._named_sum(gold, said)
        if isinstance(gold, Inequality) and isinstance(said, Inequality):
            return gold.strict == said.strict and formula.proportional(gold.tree, said.tree, positive=True)
        if isinstance(gold, Based) or isinstance(said, Based):
            return _same_digits(gold, said)
        if isinstance(gold, Clock) and isinstance(said, Clock):
            return _same_clock(gold, said)
        if isinstance(gold, Quantity) and isinstance(said, Quantity):
            return self._quantities(gold, said)
        if isinstance(gold, Clock):
            gold, said = said, gold
        if isinstance(gold, Quantity) and isinstance(said, Clock):
            ratio = len(said.parts) == 2 and not said.half and said.parts[1] != 0
            return ratio and formula.same(gold.tree, ("num", said.parts[0] / said.parts[1], 0))
        return False

    def _named(self, gold: Any, said: Any) -> bool:
        if isinstance(gold, Named) and isinstance(said, Named):
            trees = [
                n.name is not None and n.name[0] in ("sym", "call") and isinstance(n.body, Quantity)
                for n in (gold, said)
            ]
            if all(trees):
                one, other = (formula.difference(n.name, n.body.tree) for n in (gold, said))
                if formula.proportional(one, other):
                    return True
                return _names_agree(gold, said) and self.same(*_one_argument(gold, said))
            return self.same(gold.body, said.body)
        named, other = (gold, said) if isinstance(gold, Named) else (said, gold)
        if isinstance(other, Equation):
            if named.name is None or named.name[0] not in ("sym", "call") or not isinstance(named.body, Quantity):
                return False
            return formula.proportional(
                formula.difference(named.name, named.body.tree), formula.difference(other.left, other.right)
            )
        return self.same(gold.body if named is gold else gold, said.body if named is said else said)

    def _named_sum(self, gold: Quantity, said: Equation) -> bool:
        """``x + y = 5`` states 5, ``2x = 10`` does not state 10."""
        bare = all(n[0] != "num" for n in formula.walk(said.left) if n[0] != "pow") or said.left[0] in ("fn", "pow")
        return bare and not formula.symbols(said.right) and self.same(gold, Quantity(said.right))

    def _regions(self, gold: Any, said: Any) -> bool:
        try:
            one, other = _region(gold), _region(said)
        except Unreadable:
            return False
        return len(one.parts) == len(other.parts) and all(
            a[2:] == b[2:] and formula.same(a[0], b[0]) and formula.same(a[1], b[1])
            for a, b in zip(one.parts, other.parts, strict=True)
        )

    def _items(self, gold: Any, said: Any) -> bool:
        if not isinstance(gold, Items):
            if said.kind == "tuple":
                return False
            return len(said.items) > 0 and all(self.same(gold, item) for item in said.items)
        if not isinstance(said, Items):
            return gold.kind != "tuple" and len(gold.items) == 1 and self.same(gold.items[0], said)
        if {gold.kind, said.kind} == {"tuple", "list"}:
            return _assigns(said if said.kind == "list" else gold) and self._in_order(gold, said)
        if gold.kind == "tuple" or said.kind == "tuple":
            if gold.kind != said.kind:
                return False
            brackets = gold.brackets == said.brackets or (
                len(gold.items) != 2 and {gold.brackets, said.brackets} <= {"()", "[]"}
            )
            return brackets and self._in_order(gold, said)
        one, other = list(gold.items), list(said.items)
        if "set" in (gold.kind, said.kind):
            one, other = self._distinct(one), self._distinct(other)
        if len(one) != len(other):
            return False
        for item in one:
            place = next((i for i, candidate in enumerate(other) if self.same(item, candidate)), None)
            if place is None:
                return False
            del other[place]
        return True

    def _distinct(self, items: list[Any]) -> list[Any]:
        kept: list[Any] = []
        for item in items:
            if not any(self.same(known, item) for known in kept):
                kept.append(item)
        return kept

    def _in_order(self, gold: Items, said: Items) -> bool:
        return len(gold.items) == len(said.items) and all(map(self.same, gold.items, said.items))

    def _quantities(self, gold: Quantity, said: Quantity) -> bool:
        if (
            said.unit is None
            and said.loose is not None
            and not formula.symbols(gold.tree)
            and formula.symbols(said.tree)
        ):
            said = Quantity(*said.loose)
        elif (
            gold.loose is not None
            and formula.symbols(gold.tree)
            and (said.unit or (said.loose and not formula.symbols(said.tree)))
        ):
            gold = Quantity(*gold.loose)
        for tree in (said.tree, *said.also):
            if any(
                self._values(replace(gold, tree=wanted), replace(said, tree=tree)) for wanted in (gold.tree, *gold.also)
            ):
                return True
        return False

    def _values(self, gold: Quantity, said: Quantity) -> bool:
        one, other = gold.unit, said.unit
        if one is not None and other is not None:
            if one.kind != other.kind:
                self.wrong_unit = True
                return False
            if one.size == other.size:
                return formula.same(gold.tree, said.tree)
            right = formula.same(_sized(gold.tree, one), _sized(said.tree, other))
            self.wrong_unit |= not right and formula.same(gold.tree, said.tree)
            return right
        turned = [unit is not None and unit.kind == "angle" for unit in (one, other)]
        if any(turned) and ("sym", "pi") in formula.walk(said.tree if turned[0] else gold.tree):  # in radians
            sides = (_sized(gold.tree, one), said.tree) if turned[0] else (gold.tree, _sized(said.tree, other))
            return formula.same(*sides)
        percent = [unit is not None and unit.kind == "share" for unit in (one, other)]
        if any(percent):
            return self._percent(gold.tree, said.tree, percent[0])
        return formula.same(gold.tree, said.tree)

    def _percent(self, gold: Tree, said: Tree, gold_has_it: bool) -> bool:
        """One side has a percent sign: the other is in percent if the question is, else a share."""
        with_sign, bare = (gold, said) if gold_has_it else (said, gold)
        asked = re.search(r"percent|per cent|%", self.question, re.IGNORECASE) is not None
        number = formula.number(bare)
        as_percent = asked or (not self.question and number is not None and abs(number) > 1)
        as_share = gold_has_it or not asked
        if as_percent and formula.same(with_sign, bare):
            return True
        return as_share and formula.same(("div", with_sign, ("num", Fraction(100), 0)), bare)


def _sized(tree: Tree, unit: Unit) -> Tree:
    size: Tree = ("num", unit.size, 0)
    if unit.pi:
        size = ("mul", size, ("pow", ("sym", "pi"), ("num", Fraction(unit.pi), 0)))
    return ("mul", tree, size)


def _same_words(gold: Words, said: Words) -> bool:
    if not gold.text or gold.raw == said.raw:
        return bool(gold.text)
    if not re.fullmatch(r"\(?\\text\{[\w\s,.()]*\}\)?,?", gold.raw):
        return False
    one, other = gold.text.split(), said.text.split()
    letters = all(len(word) == 1 for word in one)  # "A, C": a list without an order
    return one == other or (letters and sorted(one) == sorted(word for word in other if word != "and"))


def _names_agree(gold: Named, said: Named) -> bool:
    one, other = gold.name, said.name
    if one[0] == "call" or other[0] == "call":
        return one[0] != other[0] or one[1] == other[1]
    if one[1].startswith("angle") and other[1].startswith("angle"):
        return one == other
    letters = [re.sub(r"[_'].*", "", name[1]) for name in (one, other)]
    return letters[0] == letters[1] or max(map(len, letters)) > 2


def _one_argument(gold: Named, said: Named) -> tuple[Any, Any]:
    """The bodies, in the same variable where both name a function of one: f(x) = 2x is f(n) = 2n."""
    one, other = gold.name, said.name
    both = one[0] == other[0] == "call" and len(one) == len(other) == 3 and one[2][0] == other[2][0] == "sym"
    if both and one[2] != other[2] and one[2][1] not in formula.symbols(said.body.tree):
        return gold.body, replace(said.body, tree=_renamed(said.body.tree, other[2], one[2]))
    return gold.body, said.body


def _renamed(node: Any, old: Tree, new: Tree) -> Any:
    if node == old:
        return new
    return tuple(_renamed(part, old, new) for part in node) if isinstance(node, tuple) else node


def _assigns(said: Items) -> bool:
    """Whether a list gives values to different names: ``x = 1, y = 2``."""
    names = [item.name for item in said.items if isinstance(item, Named) and item.name is not None]
    return len(names) == len(said.items) == len(set(names))


def _same_digits(gold: Any, said: Any) -> bool:
    if isinstance(gold, Quantity):
        return (
            isinstance(said, Based) and said.base == 10 and formula.same(gold.tree, ("num", Fraction(said.digits), 0))
        )
    if not isinstance(gold, Based):
        return False
    if isinstance(said, Quantity):
        return said.unit is None and _is_whole(said.tree, gold.digits)
    return isinstance(said, Based) and gold.base == said.base and _plain_digits(gold) == _plain_digits(said)


def _plain_digits(based: Based) -> str:
    return re.sub(r"^(-?)0+(?=.)", r"\1", based.digits)


def _is_whole(tree: Tree, digits: str) -> bool:
    if not digits.lstrip("-").isdigit() or formula.symbols(tree) or formula.decimal_digits(tree):
        return False
    return formula.same(tree, ("num", Fraction(int(digits)), 0))


def _same_clock(gold: Clock, said: Clock) -> bool:
    if "am" in (gold.half, said.half) or "pm" in (gold.half, said.half) or gold.half == said.half == "?":
        halves = {gold.half, said.half} - {"?", ""}
        return gold.parts == said.parts and len(halves) == 1 or _minutes_of(gold) == _minutes_of(said)
    if len(gold.parts) != len(said.parts) or not all(gold.parts + said.parts):
        return gold.parts == said.parts
    return len({a / b for a, b in zip(gold.parts, said.parts, strict=True)}) == 1


def _minutes_of(clock: Clock) -> Fraction:
    hours, *rest = clock.parts
    hours = hours % 12 + (12 if clock.half == "pm" else 0) if clock.half in ("am", "pm") else hours
    return hours * 60 + sum(part / 60**i for i, part in enumerate(rest))


# --- the mark ------------------------------------------------------------------------------------------------------


@lru_cache(4096)
def _gold_of(gold: str) -> tuple[str, tuple[Any, ...]]:
    full = [box for box in boxes(gold, _MAX_BOX) if not EMPTY.fullmatch(box[2])]
    text = gold.strip()
    if full:
        _, end, content = full[-1]
        text = content + _unit_behind(gold[end : end + 80])
    try:
        return text, read(text)
    except Hedged:
        return text, (Words(_as_words(text), _squeezed(text)),)


def mark(gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Mark:
    """The strict mark of an answer.

    Args:
        gold: the bare answer, or a solution whose last box is the answer.
        prediction: what the model wrote.
        context: ``question`` (decides what a percent sign means) and ``finish_reason``, where known.
    """
    context = context or {}
    wanted, golds = _gold_of(gold)
    shown = tidy(wanted)[:MAX_EXTRACTED] if len(wanted) < 20_000 else wanted[:MAX_EXTRACTED]
    stated = find_answer(prediction, context.get("finish_reason"))
    if not stated.text.strip():
        return Mark(False, "no_answer", "", shown, stated.why)
    said = tidy(stated.text)[:MAX_EXTRACTED]
    if not said:
        return Mark(False, "no_answer", "", shown, "only signs without a meaning")
    if not wanted:
        return Mark(False, "bad_gold", said, shown, "the gold is empty")
    if _is_name(wanted):
        return _words_mark(wanted, stated.text, said, shown)
    if _squeezed(stated.text) == _squeezed(wanted):
        return Mark(True, "match", said, shown, "the same text")
    try:
        readings = read(stated.text)
    except Hedged as hedge:
        return Mark(False, "no_answer", "", shown, f"{said}: {hedge}")
    question = context.get("question")
    comparison = _Comparison(question if isinstance(question, str) else "")
    for one in golds:
        for other in readings:
            try:
                right = comparison.same(one, other)
            except (Unreadable, RecursionError):
                continue
            if right:
                return Mark(True, "match", said, shown, f"{_kind(one)} against {_kind(other)}")
    detail = f"{_kind(golds[0])} against {_kind(readings[0])}"
    if isinstance(readings[0], Items) and readings[0].choice and not isinstance(golds[0], Items):
        return Mark(False, "no_answer", "", shown, f"{said}: several answers are offered")
    return Mark(False, "wrong_unit" if comparison.wrong_unit else "mismatch", said, shown, detail)


def readings(text: str) -> tuple[Any, ...]:
    """What a stated answer may mean, without the text itself; nothing if it states none."""
    try:
        return tuple(reading for reading in read(text) if not isinstance(reading, Words))
    except Hedged:
        return ()


def equal(gold: Any, said: Any) -> bool | None:
    """Whether two readings are the same; None: one of them has no value that could be compared."""
    try:
        return _Comparison().same(gold, said)
    except (Unreadable, RecursionError):
        return None


_NAME = re.compile(
    r"\$?\s*\\(?:text|textbf|mbox|mathrm|textrm)\s*\{\s*\(?[A-Za-z][A-Za-z\s.'-]*\)?\s*\}\s*\$?|\$?[A-Z]?[a-z]{4,}\$?"
)


def _is_name(gold: str) -> bool:
    return _NAME.fullmatch(gold.strip(" (),.")) is not None


def _words_mark(wanted: str, text: str, said: str, shown: str) -> Mark:
    gold, words = _as_words(wanted), _as_words(text)
    if re.search(r"\b(?:not|or|either|neither|maybe|perhaps)\b", words) and words != gold:
        return Mark(False, "no_answer", "", shown, f"{said}: no one answer is stated")
    plain = re.sub(r"\\[A-Za-z]+|[{}$*]", "", text)
    option = re.match(r"\s*(?:option|choice)?\s*\(?([A-Za-z])(?:[).:]|\s*$)", plain, re.IGNORECASE)
    right = words == gold or (len(gold) == 1 and option is not None and option.group(1).lower() == gold)
    return Mark(right, "match" if right else "mismatch", said, shown, "words")


def _kind(reading: Any) -> str:
    if isinstance(reading, Named):
        return f"{_kind(reading.body)} with a name" if reading.name is not None else _kind(reading.body)
    if isinstance(reading, Items):
        return f"{reading.kind} of {len(reading.items)}"
    if isinstance(reading, Quantity):
        what = "expression" if formula.symbols(reading.tree) else "number"
        unit = f" in {reading.unit.text}" if reading.unit else ""
        return f"{'decimal' if formula.decimal_digits(reading.tree) else 'exact'} {what}{unit}"
    return type(reading).__name__.lower()
