"""Numbers with units, roots and pi: GEOQA's released check, and a reading that sees all of the number.

Published (R1-V's GEOQA evaluation): math-verify's default extraction over the whole output against the same over the
gold; answer tags are not looked at. The order (answer, gold) of the release is kept: it matters for equations. A gold
that is not read never matches (``gold_fallback``; 17 of 754), and ``10√{2}`` is read as 10 (60 golds with a root or pi
lose it). ``<answer>140</answer>`` is not read either, since a number must follow white space or ``=``; ``extra["tag"]``
is therefore the same comparison over the first tag's contents.

Strict: the number in the answer tag, without a tag the last one in the text (of the last box, if there is one), to one
part in ten thousand; where both sides name a unit, units must be of one kind and are converted.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import latex2sympy
from latex2sympy2_extended.math_normalization import extract_boxed_content

from eval_harness.graders.base import Verdict
from eval_harness.graders.symbolic import equal, parse
from eval_harness.graders.tags import careful_answer, first_tag, shown, tag_flags

TOLERANCE = 1e-4
"""Relative difference up to which the strict rule calls two numbers equal."""
_MAX_EXPRESSION = 80
"""Characters of an expression beyond which it is not evaluated."""

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
        (r"\\[,;:! ]|~|\u00a0", " "),
        (r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname|rm)\s*\{([^{}]*)\}", r" \1 "),
        (r"\u2212|\u2013", "-"),
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

    def equals(self, other: Quantity) -> bool:
        """Within ``TOLERANCE``; units are compared where both name one."""
        a, b = self.value, other.value
        if self.unit is not None and other.unit is not None:
            if self.unit != other.unit:
                return False
            a, b = a * self.size, b * other.size
        return math.isclose(a, b, rel_tol=TOLERANCE)


def read_quantity(text: str) -> Quantity | None:
    """The last number of a text that can be read in full; None if there is none.

    Read are decimal numbers, fractions, roots and pi, in LaTeX, plain signs (``√{3}``, ``√3``, ``π``) or words
    (``sqrt(3)``, ``pi``), joined by + - * / and powers of one digit, and one unit behind. Of an exact value and its
    approximation (``10√2 ≈ 14.14``) the exact one is taken. A number that runs into a word (``5x``, ``x2``) is none.
    """
    for pattern, to in _REWRITES:
        text = pattern.sub(to, text)
    *_, before, after = ["", *_APPROXIMATELY.split(text)]
    exact = _candidates(before)
    if exact and not before[exact[-1].end :].strip() and len(_candidates(after)) == 1:
        text = before
    return next(filter(None, map(_read, reversed(_candidates(text)))), None)


@dataclass(frozen=True)
class _Candidate:
    """What may be a number: its text without the unit, the unit, and where both end."""

    expression: str
    unit: re.Match[str] | None
    end: int


def _read(candidate: _Candidate) -> Quantity | None:
    value = _value(candidate.expression)
    if value is None:
        return None
    unit = candidate.unit
    if unit is None:
        return Quantity(value, None, 1.0, candidate.expression)
    kind, size = next(known for name, known in _NAMED.items() if unit[name])
    power = 2 if unit["square"] else 3 if unit["cube"] else {"2": 2, "²": 2, "3": 3, "³": 3}.get(unit["power"] or "", 1)
    kind = kind if power == 1 else f"{kind}^{power}"
    return Quantity(value, kind, size**power, candidate.expression + unit.group())


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
    return _Candidate(expression, unit, unit.end() if unit else end)


@lru_cache(4096)
def _value(expression: str) -> float | None:
    """Value of an expression of tokens; None if it has none, or an unusual one (huge, complex, with letters)."""
    if len(expression) > _MAX_EXPRESSION or expression.count("^") > 1 or re.search(r"\)\s*\^", expression):
        return None
    with contextlib.suppress(Exception):
        if re.fullmatch(r"\s*[-+]?\s*[0-9.]+\s*", expression):
            value = float(expression.replace(" ", ""))
        else:
            parsed = latex2sympy(expression, is_real=True, convert_degrees=False, normalization_config=None)
            value = float(parsed.evalf(15))
        return value if math.isfinite(value) else None
    return None


def _answer(prediction: str) -> Quantity | None:
    tag = careful_answer(prediction)
    if tag is not None:
        return read_quantity(tag)
    boxed = prediction.rfind("\\boxed")
    return (read_quantity(extract_boxed_content(prediction[boxed:])) if boxed >= 0 else None) or read_quantity(
        prediction
    )


class NumberGrader:
    """Both rules for a gold such as ``140°``, ``10√{2}`` or ``5cm``; ``extra["tag"]`` is the tag-based score."""

    def __init__(self) -> None:
        self._golds = lru_cache(4096)(lambda gold: (parse(gold), read_quantity(gold)))

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules."""
        golds, wanted = self._golds(gold)
        answers, answer = parse(prediction), _answer(prediction)
        tag = first_tag(prediction)
        correct = equal(answers, golds)
        correct_strict = wanted is not None and answer is not None and wanted.equals(answer)
        reason = "match" if correct else "mismatch" if answers else "no_answer"
        reason_strict = "match" if correct_strict else "mismatch" if answer else "no_answer"
        if wanted is None:
            reason_strict = "bad_gold"
        elif answer and not correct_strict and wanted.unit and answer.unit and wanted.unit != answer.unit:
            reason_strict = "wrong_unit"
        extracted = shown(answers[0]) if answers else None
        return Verdict(
            correct=correct,
            correct_strict=correct_strict,
            extracted=extracted,
            reason=reason,
            gold_fallback=not golds,
            extracted_strict=answer.text if answer and answer.text != extracted else None,
            reason_strict=reason_strict if reason_strict != reason else None,
            flags=tag_flags(prediction),
            extra={"tag": float(tag is not None and equal(parse(tag.strip()), golds))},
        )


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
