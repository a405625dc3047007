"""Numbers with units, roots and pi: GEOQA's released check, and a reading that sees all of the number.

Published (R1-V's GEOQA evaluation): math-verify's default extraction over the whole output against the same over the
gold; answer tags are not looked at. The order (answer, gold) of the release is kept: it matters for equations. A gold
that is not read never matches (``gold_fallback``; 17 of 754), and ``10√{2}`` is read as 10 (60 golds with a root or pi
lose it). ``<answer>140</answer>`` is not read either, since a number must follow white space or ``=``; ``extra["tag"]``
is therefore the same comparison over the first tag's contents.

Strict: the stated answer (tag, box, phrase or end of the text), read like an answer of mathematics; of a statement in
words the last number counts. A decimal may be rounded: to one part in ten thousand and by less than one unit of its
last digit; exact values are compared as such. Where both sides name a unit, units must be of one kind and are
converted. A sum that is not worked out, a tuple, a range, an inequality or several values state no number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from eval_harness.graders import formula, strict_math
from eval_harness.graders.base import Mark, Verdict, with_strict
from eval_harness.graders.symbolic import equal, parse
from eval_harness.graders.tags import MAX_EXTRACTED, first_tag, shown, tag_flags
from eval_harness.graders.text import NEGATED, UNSURE, plain_signs, said
from eval_harness.graders.units import Unit

TOLERANCE = 1e-4
"""Relative difference up to which the strict rule calls a decimal and another number equal."""
_EXACT = 1e-9
_MAX_EXPRESSION = 80
"""Characters of an expression in running text beyond which it is not evaluated."""
_MAX_STATEMENT = 1000
"""Characters of an answer that is read as a whole; of a longer one the last number is."""

_UNITS = {
    ("length", 1e-3): "mm|millimet(?:er|re)s?|毫米",
    ("length", 1e-2): "cm|centimet(?:er|re)s?|厘米",
    ("length", 1e-1): "dm|decimet(?:er|re)s?|分米",
    ("length", 1.0): "m|met(?:er|re)s?|米",
    ("length", 1e3): "km|kilomet(?:er|re)s?|千米|公里",
    ("length", 1852.0): "nmi|nautical miles?|sea miles?|海里",
    ("angle", 1.0): r"\^?\s*\{?\s*\\circ\s*\}?|\\degree|[°º˚]|deg(?:rees?)?|度",
    ("angle", 180 / math.pi): "rad(?:ians?)?|弧度",
    ("time", 1.0): "s|sec(?:onds?)?|秒",
    ("time", 60.0): "min(?:utes?)?|分钟",
    ("time", 3600.0): "h|hours?|hrs?|小时",
    ("share", 0.01): r"\\?%|per ?cent",
}
"""(kind, size in the kind's base unit: metre, degree, second, one) -> how it is written."""
_NAMED = {f"u{i}": unit for i, unit in enumerate(_UNITS)}
_POWER = r"(?:\s*\^?\s*\{?\s*(?P<power>[23²³])\s*\}?\^?)"
_UNIT = re.compile(
    r"\s*(?P<square>square\s+|sq\.?\s+|平方)?(?P<cube>cubic\s+|立方)?(?:"
    + "|".join(f"(?P<{name}>{words})" for name, words in zip(_NAMED, _UNITS.values(), strict=True))
    + rf")(?![A-Za-z]){_POWER}?(?![A-Za-z0-9_])"
)

_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*+\}"
_TOKEN = re.compile(
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]+)?(?![0-9])|[0-9]++(?:\.[0-9]++)?|\.[0-9]++)"
    rf"|(?P<term>\\frac\s*{_BRACES}\s*{_BRACES}|\\sqrt\s*(?:\[[0-9]\]\s*)?{_BRACES}|\\pi(?![A-Za-z]))"
    r"|(?P<power>\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9])(?!\s*[\^°]))"
    r"|(?P<operator>[-+*/]|\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|\\div(?![A-Za-z]))"
    r"|(?P<open>\()|(?P<close>\))"
    r"|(?P<blank>[ \t]+)"
    r"|(?P<word>\\?[A-Za-z_][A-Za-z0-9_]*+)|(?P<other>.)",
    re.DOTALL,
)
_REWRITES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\$|\\\(|\\\)|\\\[|\\\]|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\displaystyle(?![A-Za-z])", ""),
        (r"(?<![0-9)}])\*\*|\*\*(?![0-9({\\])", ""),  # bold, no power
        (r"\\[,;:! ]|~", " "),
        (r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname|rm)\s*\{([^{}]*)\}", r" \1 "),
        (r"×|·|⋅", r"\\times "),
        (r"÷", r"\\div "),
        (r"π|(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"√|(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([0-9]+(?:\.[0-9]+)?)", r"\\sqrt{\1}"),
    )
]
_MINUTES = re.compile(r"([0-9])\s*(?:degrees?|度)\s*([0-9]+)\s*(?:minutes?|分)(?:\s*([0-9]+)\s*(?:seconds?|秒))?")
_UNIT_AT_END = re.compile(_UNIT.pattern + r"\s*$")
_KINDS = {"m": "length", "m^2": "length^2", "m^3": "length^3", "s": "time"}
_RUNS_ON = re.compile(r"[A-Za-z_\\^]|[ \t]+[b-z](?![A-Za-z0-9_'’])")
"""Behind a number without a unit: it is a factor or a base of something else (``5x``, ``2π r``)."""
_APPROXIMATELY = re.compile(r"≈|\\approx|\bapproximately\b|\babout\b")


@dataclass(frozen=True)
class Quantity:
    """A number as the strict rule reads it: its value and, where stated, its unit."""

    value: float
    unit: str | None
    """``length``, ``length^2``, ``angle``, ...; None: none is stated."""
    size: float
    """The unit in base units (metre, degree, second), 1.0 without a unit."""
    text: str
    place: float = 0.0
    """One unit of the last digit of a decimal; 0.0: the value is exact."""

    def equals(self, other: Quantity) -> bool:
        """The same value: exact ones but for rounding errors, decimals within ``TOLERANCE`` and a unit of their last
        digit. Units are compared where both name one."""
        a, b, places = self.value, other.value, [self.place, other.place]
        if self.unit is not None and other.unit is not None:
            if self.unit != other.unit:
                return False
            a, b, places = a * self.size, b * other.size, [self.place * self.size, other.place * other.size]
        if not any(places) or math.isclose(a, b, rel_tol=_EXACT):
            return math.isclose(a, b, rel_tol=_EXACT)
        return math.isclose(a, b, rel_tol=TOLERANCE) and abs(a - b) < max(places) * (1 - _EXACT)


def read_quantity(text: str) -> Quantity | None:
    """The last number of a text that can be read in full; None if there is none.

    Read are decimal numbers, fractions, roots and pi, in LaTeX, plain signs (``√{3}``, ``√3``, ``π``) or words
    (``sqrt(3)``, ``pi``), joined by + - * / and powers of one digit, and one unit behind. Of an exact value and its
    approximation (``10√2 ≈ 14.14``) the exact one is taken. A number that runs into a word (``5x``, ``x2``) is none.
    """
    return _last_quantity(_rewritten(text))


def _rewritten(text: str) -> str:
    text = plain_signs(text)
    for pattern, to in _REWRITES:
        text = pattern.sub(to, text)
    return text


def _last_quantity(text: str) -> Quantity | None:
    *_, before, after = ["", *_APPROXIMATELY.split(text)]
    exact = _candidates(before)
    if exact and not before[exact[-1].end :].strip() and len(_candidates(after)) == 1:
        text = before
    return next(filter(None, map(_read, reversed(_candidates(text)))), None)


@dataclass(frozen=True)
class _Candidate:
    """What may be a number: its text without the unit, the unit, and where it begins and both end."""

    expression: str
    unit: re.Match[str] | None
    start: int
    end: int


def _read(candidate: _Candidate) -> Quantity | None:
    value = _value(candidate.expression)
    if value is None:
        return None
    kind, size = _unit_of(candidate.unit)
    text = candidate.expression + (candidate.unit.group() if candidate.unit else "")
    return Quantity(value, kind, size, text, _place(candidate.expression, value))


def _unit_of(unit: re.Match[str] | None) -> tuple[str | None, float]:
    """Kind and size of a unit."""
    if unit is None:
        return None, 1.0
    kind, size = next(known for name, known in _NAMED.items() if unit[name])
    power = 2 if unit["square"] else 3 if unit["cube"] else {"2": 2, "²": 2, "3": 3, "³": 3}.get(unit["power"] or "", 1)
    return kind if power == 1 else f"{kind}^{power}", size**power


def _place(expression: str, value: float) -> float:
    """One unit of the last digit of a value that an expression with decimals has; 0.0 without any."""
    decimals = re.findall(r"([0-9]*\.([0-9]++))(?!\s*\\overline)", expression)
    relative = (10.0 ** -len(digits) / (abs(float(number)) or 1.0) for number, digits in decimals)
    return max(relative, default=0.0) * (abs(value) or 1.0)


def _candidates(text: str) -> list[_Candidate]:
    """Maximal runs of tokens that can form a number, in order, with the unit behind."""
    found: list[_Candidate] = []
    run: list[tuple[str, str]] = []
    position, last, in_word = 0, "", False
    while token := _TOKEN.match(text, position):
        kind, piece = token.lastgroup, token.group()
        if run and (kind in ("word", "other") or kind == last == "number"):
            candidate = _candidate(run, text, position)
            if candidate is not None:
                found.append(candidate)
                position = max(position, candidate.end)
            run, last = [], ""
            continue
        position = token.end()
        if kind in ("word", "blank", "other"):
            in_word = kind == "word" or piece == "^"
        if kind not in ("word", "other") and not in_word:  # what hangs on a word is part of its name
            run.append((kind, piece))
            last = last if kind == "blank" else kind
    candidate = _candidate(run, text, position)
    return found if candidate is None else [*found, candidate]


def _candidate(run: list[tuple[str, str]], text: str, end: int) -> _Candidate | None:
    """The number that a run of tokens forms; the run ends at ``end`` of the text."""
    start, stop = 0, len(run)
    while start < stop and run[stop - 1][0] in ("operator", "open", "blank"):
        stop -= 1
        end -= len(run[stop][1])
    while start < stop and run[start][0] in ("power", "operator", "close", "blank") and run[start][1] not in "+-":
        start += 1
    if [kind for kind, _ in run[start : start + 2]] == ["operator", "blank"]:  # a dash, no sign
        start += 2
    depth = sum({"open": 1, "close": -1}.get(kind, 0) for kind, _ in run[start:stop])
    while depth > 0 and run[start][0] == "open":
        start, depth = start + 1, depth - 1
    while depth < 0 and run[stop - 1][0] == "close":
        stop, end, depth = stop - 1, end - 1, depth + 1
    if depth or not any(kind in ("number", "term") for kind, _ in run[start:stop]):
        return None
    unit = _UNIT.match(text, end)
    if unit is None and _RUNS_ON.match(text, end):
        return None
    expression = "".join(piece.replace(",", "") for _, piece in run[start:stop])
    begin = end - sum(len(piece) for _, piece in run[start:stop])
    return _Candidate(expression, unit, begin, unit.end() if unit else end)


_ODD = re.compile(r"\)\s*\^|\*\s*\*")


@lru_cache(4096)
def _value(expression: str) -> float | None:
    """Value of an expression of tokens; None if it has none, or an unusual one (huge, complex, with letters)."""
    if len(expression) > _MAX_EXPRESSION or expression.count("^") > 1 or _ODD.search(expression):
        return None
    try:
        return _number(formula.parse(formula.tokens(formula.tidy(expression))))
    except (formula.Unreadable, RecursionError):
        return None


def _number(tree: formula.Tree) -> float | None:
    value = formula.number(tree)
    return value if value is not None and math.isfinite(value) else None


# --- statements ----------------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """A statement that states no number."""


_UNCLEAR = re.compile(
    rf"{UNSURE.pattern}|\b(?:between|either|neither|(?:less|more|greater|fewer|larger|smaller) than|at least|at most)\b"
    r"|<|>|\\(?:le|ge|leq|geq|ne|neq|lt|gt)(?![A-Za-z])|[≤≥≠]|\?\s*$",
    re.IGNORECASE,
)
_JOINED = re.compile(r"[\s,$()\\]*(?:\b(?:and|or|to)\b|,)[\s,$()\\]*|\s*[-/|~]\s*", re.IGNORECASE)
_DENIED = re.compile(rf"{NEGATED}(?:\s+(?:equal to|be|just|the))*[\s$:*(]*$", re.IGNORECASE)
_EQUALS = re.compile(r"=|≈|\\(?:approx|simeq|sim|doteq|cong)(?![A-Za-z])")
_BLANKS = re.compile(r"\s{2,}")
_REASON = re.compile(r"\b(?:since|because|given|which|where|as)\b", re.IGNORECASE)


@lru_cache(4096)
def read_statement(text: str) -> tuple[Quantity | strict_math.Clock | None, str]:
    """The number that a stated answer states, or a ratio of three and more; None and why there is none.

    It is read as a whole (:func:`eval_harness.graders.strict_math.read`); what cannot be read so is running text, of
    which the last number counts.
    """
    # Blanks in a row are one: patterns that begin with blanks are slow on many.
    text = _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else run[0][0], text)
    rewritten = _rewritten(text).strip().rstrip(".,;: ")
    rewritten = _MINUTES.sub(lambda m: f"{m[1]}^\\circ {m[2]}'" + (f" {m[3]}''" if m[3] else ""), rewritten)
    if not rewritten:
        return None, "nothing is stated"
    try:
        without_reason = _REASON.split(rewritten, maxsplit=1)[0].rstrip(" \n,;(") or rewritten
        for candidate in dict.fromkeys((rewritten, without_reason)):
            if len(candidate) <= _MAX_STATEMENT and (found := _whole(candidate)) is not None:
                return found, ""
        return _in_words(without_reason), ""
    except _Refused as refused:
        return None, str(refused)


def _whole(text: str) -> Quantity | strict_math.Clock | None:
    """A statement read as a whole; None: it cannot be."""
    unit = _UNIT_AT_END.search(text)
    if unit is not None and not unit.group()[0].isspace() and re.search(r"[A-Za-z\\]$", text[: unit.start()]):
        unit = None
    for expression, found in ([(text[: unit.start()], unit)] if unit else []) + [(text, None)]:
        try:
            readings = strict_math.read(re.sub(r'(?<=[0-9])\s*"', "''", expression))
        except strict_math.Hedged as hedge:
            raise _Refused(str(hedge)) from None
        for reading in readings:
            quantity = _quantity(reading, expression, found)
            if quantity is not None:
                return quantity
    return None


def _quantity(reading: Any, text: str, unit: re.Match[str] | None) -> Quantity | strict_math.Clock | None:
    """A reading as a number; None: it has no value, or is none.

    Raises:
        _Refused: it states something else than one number.
    """
    if isinstance(reading, strict_math.Named):
        return _quantity(reading.body, text.rpartition("=")[2], unit)
    if isinstance(reading, strict_math.Items):
        if reading.kind == "tuple" or len(reading.items) != 1:
            raise _Refused(f"a {reading.kind} of {len(reading.items)}")
        return _quantity(reading.items[0], text, unit)
    if isinstance(reading, strict_math.Region | strict_math.Inequality):
        raise _Refused("an interval or an inequality")
    if isinstance(reading, strict_math.Equation):
        if any(node[0] == "num" for node in formula.walk(reading.left)) or formula.symbols(reading.right):
            raise _Refused("an equation")
        return _quantity(strict_math.Quantity(reading.right), text.rpartition("=")[2], unit)
    if isinstance(reading, strict_math.Clock):
        if len(reading.parts) != 2 or reading.half in ("am", "pm") or not reading.parts[1]:
            return reading
        return Quantity(float(reading.parts[0] / reading.parts[1]), None, 1.0, text)
    if not isinstance(reading, strict_math.Quantity):
        return None
    tree, own = reading.tree, reading.unit
    if formula.symbols(tree) and reading.loose is not None:
        tree, own = reading.loose
    if _is_sum(tree):
        if not reading.also:
            raise _Refused("a sum that is not worked out")
        tree = reading.also[-1]
    if formula.symbols(tree) or (value := _number(tree)) is None:
        return None
    kind, size = _unit_of(unit) if unit else _own_unit(own)
    sides = _EQUALS.split(text)
    text = sides[-2 if tree is reading.tree and reading.also else -1]
    place = _place(text, value) if formula.decimal_digits(tree) else 0.0
    return Quantity(value, kind, size, (text + (unit.group() if unit else "")).strip(), place)


def _is_sum(tree: formula.Tree) -> bool:
    """Whether rational numbers are added in a tree: it is not worked out."""
    sums = (node[1:] for node in formula.walk(tree) if node[0] == "add")
    return any(all(_is_rational(part) and part[1] != 0 for part in parts) for parts in sums)


def _is_rational(tree: formula.Tree) -> bool:
    if formula.symbols(tree) or any(node[0] in ("sym", "fn", "call") for node in formula.walk(tree)):
        return False
    try:
        return isinstance(formula.evaluate(tree), Fraction)
    except formula.Unreadable:
        return False


def _own_unit(unit: Unit | None) -> tuple[str | None, float]:
    if unit is None:
        return None, 1.0
    if unit.kind == "angle":
        return "angle", float(unit.size) * math.pi**unit.pi * 180 / math.pi
    return _KINDS.get(unit.kind, unit.kind), float(unit.size)


def _in_words(text: str) -> Quantity | None:
    """The last number of running text.

    Raises:
        _Refused: it is denied, unclear, one of several that are offered, or a sum that is not worked out.
    """
    sentence = re.split(r"(?<=[^0-9\s])[.!]\s+|(?<=[0-9])\.\s+(?=[A-Z])|\n", text)[-1]
    text = sentence if _candidates(sentence) else text
    found = _last_quantity(text)
    if found is None:
        return None
    if _UNCLEAR.search(text):
        raise _Refused("no one number is stated")
    candidates = _candidates(text)
    last = next(one for one in reversed(candidates) if _value(one.expression) is not None)
    if _DENIED.search(text[max(0, last.start - 80) : last.start]):
        raise _Refused("the number is denied")
    before = [one for one in candidates if one.end <= last.start]
    if before and _JOINED.fullmatch(text[before[-1].end : last.start]):
        raise _Refused("several numbers are offered")
    tree = formula.parse(formula.tokens(formula.tidy(last.expression)))
    if _is_sum(tree):
        raise _Refused("a sum that is not worked out")
    return found


# --- the mark ------------------------------------------------------------------------------------------------------


def mark(gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Mark:
    """The strict mark of an answer.

    Args:
        gold: such as ``140°``, ``10√{2}`` or ``5cm``.
        prediction: what the model wrote.
        context: ``finish_reason``, where known.
    """
    wanted, _ = read_statement(gold)
    shown_gold = _shown(wanted) or gold[:MAX_EXTRACTED]
    finish_reason = (context or {}).get("finish_reason")
    outside = said(prediction, finish_reason)
    if not outside.text:
        return Mark(False, "bad_gold" if wanted is None else "no_answer", "", shown_gold, outside.why)
    text = plain_signs(outside.text)
    stated = strict_math.find_answer(f"<answer>{text}</answer>" if outside.tagged else text, finish_reason)
    answer, why = read_statement(stated.text) if stated.text.strip() else (None, stated.why or "no answer is stated")
    if wanted is None:
        return Mark(False, "bad_gold", _shown(answer), shown_gold, "the gold states no number")
    if answer is None:
        why = f"{shown(stated.text)}: {why or 'no number'}" if stated.text.strip() else why
        return Mark(False, "no_answer", "", shown_gold, why)
    text = _shown(answer)
    if isinstance(wanted, strict_math.Clock) or isinstance(answer, strict_math.Clock):
        right = type(wanted) is type(answer) and strict_math.equal(wanted, answer) is True
        return Mark(right, "match" if right else "mismatch", text, shown_gold, "ratio against ratio")
    right = wanted.equals(answer)
    differs = wanted.unit is not None and answer.unit is not None and wanted.unit != answer.unit
    reason = "match" if right else "wrong_unit" if differs else "mismatch"
    return Mark(right, reason, text, shown_gold, f"{_told(wanted)} against {_told(answer)}")


def _shown(answer: Quantity | strict_math.Clock | None) -> str:
    if answer is None:
        return ""
    text = answer.text if isinstance(answer, Quantity) else ":".join(map(str, answer.parts))
    return text[:MAX_EXTRACTED]


def _told(quantity: Quantity) -> str:
    return f"{quantity.value:.10g}" + (f" ({quantity.unit})" if quantity.unit else "")


class NumberGrader:
    """Both rules for a gold such as ``140°``, ``10√{2}`` or ``5cm``; ``extra["tag"]`` is the tag-based score."""

    def __init__(self) -> None:
        self._golds = lru_cache(4096)(parse)

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules."""
        golds = self._golds(gold)
        answers = parse(prediction)
        tag = first_tag(prediction)
        correct = equal(answers, golds)
        published = Verdict(
            correct=correct,
            correct_strict=False,
            extracted=shown(answers[0]) if answers else None,
            reason="match" if correct else "mismatch" if answers else "no_answer",
            gold_fallback=not golds,
            flags=tag_flags(prediction),
            extra={"tag": float(tag is not None and equal(parse(tag.strip()), golds))},
        )
        return with_strict(published, mark(gold, prediction, context))


class DefaultExtraction:
    """math-verify's default extraction over both texts, in the order (answer, gold): the first rule of the released
    rewards. The strict rule is the same rule."""

    def __init__(self) -> None:
        self._golds = lru_cache(4096)(parse)

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer. A gold without anything to extract never matches (``gold_fallback``)."""
        golds = self._golds(gold)
        answers = parse(prediction) if golds else []
        correct = equal(answers, golds)
        reason = "match" if correct else "mismatch" if answers else "no_answer"
        return Verdict(correct, correct, shown(answers[0]) if answers else None, reason, gold_fallback=not golds)
