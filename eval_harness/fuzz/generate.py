"""Draws inputs: well-formed answers, near misses, mutations of both and of hostile texts. All chance is the caller's.

Golds come with the way an honest model would state them, so that many answers are right and a mutation of a right
answer is a near miss. Sizes are small as a rule: a bug that needs a million characters is the corpus's to show.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import yaml

T = TypeVar("T")

MAX_CHARACTERS = 4000
"""Length of an input, but for one in ``RARE`` that may have more."""
RARE = 400
_LONG = 100_000

DIGITS = ("٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "⁰¹²³⁴⁵⁶⁷⁸⁹", "〇一二三四五六七八九")
"""Digits of other scripts: Arabic-Indic, Devanagari, fullwidth, bold, superscript, Chinese."""
ODD_CHARACTERS = (
    *("\0", "\ud800", "\udfff", "\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u202d", "\u2066", "\u2069"),
    *(
        "\u2028",
        "\u2029",
        "\x85",
        "\x1b[31m",
        "\r",
        "\t",
        "\v",
        "\f",
        "\u00a0",
        "\u3000",
        "\x7f",
        "\ufffd",
        "\U0010ffff",
    ),
    *(
        "−",
        "–",
        "∞",
        "√",
        "π",
        "½",
        "Ⅷ",
        "²",
        "°",
        "×",
        "÷",
        "≠",
        "∈",
        "∅",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "ﬁ",
        "你好",
        "🤖",
    ),
)
_PIECES = (
    *("\\boxed{", "\\frac{", "\\frac", "\\sqrt{", "\\sqrt[3]{", "\\left(", "\\right)", "\\begin{pmatrix}", "&", "\\\\"),
    *("\\end{pmatrix}", "\\text{", "\\mathbb{R}", "\\cup", "\\infty", "\\pi", "\\sin", "\\log_2", "\\sum_{i=1}^{n}"),
    *("\\int_0^1", "\\lim_{x\\to0}", "\\binom{5}{2}", "\\pmod{7}", "\\overline{3}", "\\%", "\\$", "\\circ", "\\le"),
    *(
        "\\in",
        "\\{",
        "\\}",
        "\\[",
        "\\]",
        "\\(",
        "\\)",
        "$",
        "$$",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "^",
        "_",
        "!",
        "=",
        ",",
    ),
    *("<answer>", "</answer>", "<think>", "</think>", "</ANSWER>", "<answer", "Answer:", "final answer is", "**", "`"),
    *(" and ", " or ", " is ", "%", "cm", "cm^2", "degrees", "1,000", "1 000", "1.000", "1'000", "0.1e5", "007", "-0"),
    *("e", "i", "x", "NaN", "inf", "None", "True", "A", "(B)", "a", "(1,2),(3,4)", "\\u0031", "&lt;", "<b>", "</b>"),
    *(
        "import os",
        "__import__('os')",
        "lambda: 0",
        "().__class__",
        "\\input{x}",
        "\\def\\a{\\a\\a}\\a",
        "%s%n",
        "{{7*7}}",
    ),
)


@dataclass(frozen=True)
class Input:
    """What a grader or parser is called with."""

    gold: str
    prediction: str
    context: Mapping[str, Any] | None = None
    honest: bool = False
    """``prediction`` states ``gold`` as an honest model would."""

    def answer(self) -> tuple:
        """As a grading pool takes it."""
        return (self.gold, self.prediction) if self.context is None else (self.gold, self.prediction, self.context)


class Draw:
    """Short words for drawing from one generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def below(self, bound: int) -> int:
        """A whole number from 0 up to, not including, ``bound``."""
        return int(self.rng.integers(bound))

    def one_in(self, times: int) -> bool:
        """True once in so many times."""
        return self.below(times) == 0

    def of(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]


_SEPARATORS = (",", " ", ".", "'", "{,}", "\\,", "\u202f")
_ENDINGS = ("%", "\\%", "°", "^\\circ", " cm", " cm^2", "!", "\\text{ m}", "米", " m^{2}", "")
_OPERATORS = ("+", "-", "*", "/", " \\cdot ", " \\times ", " \\div ")
_FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac")
_RELATIONS = ("=", "<", "\\le", "\\in", "\\neq", ":", "\\approx")
_FUNCTIONS = ("\\sin", "\\cos", "\\log", "\\ln", "\\log_{2}", "\\exp", "\\arctan", "|")
_ROOTS = ("√", "\\sqrt")
_WORDS = ("even", "no", "A", "(B)", "Tuesday", "p.m.", "and", "meters")
_JOINS = (" and ", " or ", ", ", ";", " \\cup ", "=", "\\pm ")


# --- expressions -------------------------------------------------------------------------------------------------


def number(d: Draw) -> str:
    """A number as models write them."""
    whole = str(d.below(d.of((10, 100, 10_000, 10**9))))
    kind = d.below(12)
    if kind == 0:
        return f"{whole}.{d.below(1000)}"
    if kind == 1:
        return str(d.below(999) + 1) + d.of(_SEPARATORS) + f"{d.below(1000):03d}"
    if kind == 2:
        return f"-{whole}"
    if kind == 3:
        script = d.of(DIGITS)
        return "".join(script[int(digit)] for digit in whole)
    if kind == 4:
        return d.of(("0", "00", "0.0", ".5", "5.", "1e5", "1E-3", "10^6", "\\infty", "\\pi", "e", "i", "x", "n+1"))
    if kind == 5:
        return whole + d.of(_ENDINGS)
    return whole


def expression(d: Draw, depth: int = 3) -> str:
    """LaTeX or plain text that is mostly well-formed."""
    if depth <= 0 or d.one_in(3):
        return number(d)

    def inner() -> str:
        return expression(d, depth - 1)

    kind = d.below(16)
    if kind < 3:
        return inner() + d.of(_OPERATORS) + inner()
    if kind < 5:
        return d.of(_FRACTIONS) + f"{{{inner()}}}{{{inner()}}}"
    if kind == 5:
        return "\\sqrt" + d.of(("", "[3]", "[n]")) + f"{{{inner()}}}"
    if kind == 6:  # an exponent that is itself large is for one in many, or nothing else is tried in the time
        return f"{{{inner()}}}^{{{inner() if d.one_in(25) else d.below(7)}}}"
    if kind == 7:
        return f"({inner()})" if d.one_in(2) else "\\left(" + inner() + "\\right)"
    if kind == 8:
        return f"{d.of('xyzabnk')} {d.of(_RELATIONS)} {inner()}"
    if kind == 9:
        opening, closing = d.of(("()", "[]", "[)", "(]", ("\\{", "\\}"), ("", ""), ("\\langle ", "\\rangle ")))
        return opening + ", ".join(inner() for _ in range(1 + d.below(4))) + closing
    if kind == 10:
        rows = "\\\\".join("&".join(number(d) for _ in range(2)) for _ in range(1 + d.below(3)))
        name = d.of(("pmatrix", "bmatrix", "vmatrix", "cases"))
        return "\\begin{" + name + "}" + rows + "\\end{" + name + "}"
    if kind == 11:
        return d.of(_FUNCTIONS) + f"{{{inner()}}}"
    if kind == 12:
        return f"{d.below(8)}!" if d.one_in(2) else "\\binom" + f"{{{d.below(9)}}}{{{d.below(9)}}}"
    if kind == 13:
        return f"{d.below(50)}{d.of(_ROOTS)}{{{d.below(50)}}}" + d.of(_ENDINGS)
    if kind == 14:
        return "\\text{" + d.of(_WORDS) + "}"
    return inner() + d.of(_JOINS) + inner()


# --- texts -------------------------------------------------------------------------------------------------------

_OPENINGS = (
    "",
    "",
    "We add the two parts. ",
    "<think>First, 12 + 30 = 42, so x = 42.</think>\n",
    "Let $x = 3$. Then ",
    "<think>\nHm.\n</think>\n",
    "Step 1: a chair. Step 2: ",
    "Okay, ",
    "1. We get 17.\n2. So ",
    "\\begin{align}a&=b\\end{align} ",
)
_STATEMENTS = (
    "\\boxed{%s}",
    "$\\boxed{%s}$",
    "Therefore, the final answer is: $\\boxed{%s}$. I hope it is correct",
    "<answer>%s</answer>",
    "<answer> %s </answer>",
    "<answer>\n%s\n</answer>",
    "The answer is %s",
    "The answer is $%s$.",
    "%s",
    "\\[%s\\]",
    "= %s",
    "**%s**",
    "<answer>$%s$</answer>",
    "\\fbox{%s}",
    "so \\(%s\\)",
    "<answer>\\boxed{%s}</answer>",
    "\\boxed %s",
    "answer: %s.",
)
_CLOSINGS = (
    "",
    "",
    "",
    ".",
    "\n",
    " Hence done.",
    "</answer>",
    "\n\nUser: another question?",
    " \\boxed{}",
    "<answer></answer>",
)
HONEST = {
    "math": ("so $\\boxed{%s}$", "Therefore, the final answer is: $\\boxed{%s}$. I hope it is correct"),
    "tag": ("<think>so</think> <answer> %s </answer>", "<answer>%s</answer>"),
}


def completion(d: Draw, answer: str) -> str:
    """A text around an answer that looks like a model's."""
    return d.of(_OPENINGS) + d.of(_STATEMENTS).replace("%s", answer) + d.of(_CLOSINGS)


def soup(d: Draw) -> str:
    """Pieces of LaTeX, tags, numbers and odd characters in any order."""
    kinds: tuple[Callable[[], str], ...] = (
        lambda: d.of(_PIECES),
        lambda: d.of(_PIECES),
        lambda: number(d),
        lambda: d.of(ODD_CHARACTERS),
        lambda: " ",
        lambda: chr(d.of((d.below(128), d.below(0x3000), d.below(0x110000)))),
    )
    return "".join(d.of(kinds)() for _ in range(1 + d.below(30)))


def mutated(d: Draw, text: str, others: Sequence[str]) -> str:
    """A text with one to four changes."""
    for _ in range(1 + d.below(4)):
        start = d.below(len(text) + 1)
        stop = min(len(text), start + d.below(12))
        piece = text[start:stop]
        kind = d.below(10)
        if kind == 0:
            piece = ""
        elif kind == 1:
            piece *= 2 + d.below(60)
        elif kind == 2:
            piece = d.of(ODD_CHARACTERS) + piece
        elif kind == 3:
            piece = d.of(_PIECES) + piece
        elif kind == 4:
            piece = piece[::-1]
        elif kind == 5:
            script = d.of(DIGITS)
            piece = "".join(script[int(c)] if c in "0123456789" else c for c in piece)
        elif kind == 6:
            other = d.of(others) if others else ""
            cut = d.below(len(other) + 1)
            piece = other[cut : cut + d.below(200)]
        elif kind == 7:
            return text[:start]
        elif kind == 8:
            piece = piece.swapcase()
        else:
            text, piece = text[:start] + text[stop:], piece
            stop = start = d.below(len(text) + 1)
        text = text[:start] + piece + text[stop:]
    return text


def text_for(d: Draw, honest: str, corpus: Sequence[str]) -> str:
    """A prediction: a completion, a mutation of an honest one or of a hostile text, or soup."""
    kind = d.below(10)
    if kind < 3:
        text = completion(d, expression(d))
    elif kind < 6:
        text = mutated(d, honest, corpus)
    elif kind < 7:
        text = mutated(d, completion(d, expression(d)), corpus)
    elif kind < 9 or not corpus:
        text = soup(d)
    else:
        hostile = d.of(corpus)
        start = d.below(max(1, len(hostile) - MAX_CHARACTERS))
        text = mutated(d, hostile[start : start + MAX_CHARACTERS], corpus)
    if d.one_in(RARE):
        return (text * (1 + _LONG // max(1, len(text))))[:_LONG]
    return text[:MAX_CHARACTERS]


# --- inputs by kind ----------------------------------------------------------------------------------------------

_MATH_GOLDS = (
    "7",
    "025",
    "27.0",
    "\\frac{1}{2}",
    "\\sqrt{3}",
    "2\\pi",
    "(1,2)",
    "\\{1,2\\}",
    "x+1",
    "10\\%",
    "-3",
    "[0,1)",
)
CLASSES = (
    "pink primrose",
    "737-200",
    "Acura TL Sedan 2012",
    "american_bulldog",
    "Egyptian Mau",
    "canna lily",
    "A",
    "rose",
)
_CHOICES = (
    ("chair", "the table", "Sofa"),
    ("3", "2", "1", "0"),
    ("left", "right"),
    ("a", "b"),
    ("(A)", "", "x", "y", "z", "w"),
)
QUANTITIES = ("140°", "10√{2}", "5cm", "\\frac{3}{4}", "12", "6π", "2.5", "30\\sqrt{3}米", "8 cm^{2}")


def math_input(style: str) -> Callable[[Draw, Sequence[str]], Input]:
    """Inputs of the math graders; ``style`` is how the gold stands: ``number``, ``plain``, ``latex`` or ``boxed``.

    A ``number`` is stated honestly as a number only: of the other golds its grader reads what is a number in them.
    """

    def draw(d: Draw, corpus: Sequence[str]) -> Input:
        bare = d.of(_MATH_GOLDS) if d.one_in(2) else str(d.below(1000))
        forms = {"number": "%s", "plain": "%s", "latex": "$%s$", "boxed": "so it is $\\boxed{%s}$."}
        gold = forms[style].replace("%s", bare)
        honest = d.of(HONEST["math"]).replace("%s", bare)
        if d.one_in(15):
            return Input(gold, honest, honest=style != "number" or bare.replace(".", "", 1).isdigit())
        return Input(text_for(d, gold, corpus) if d.one_in(12) else gold, text_for(d, honest, corpus))

    return draw


def tag_input(golds: Sequence[str], form: str = "%s") -> Callable[[Draw, Sequence[str]], Input]:
    """Inputs with a gold of a list and an answer in a tag."""

    def draw(d: Draw, corpus: Sequence[str]) -> Input:
        gold = d.of(golds) if d.one_in(2) else form.replace("%s", str(d.below(300)))
        honest = d.of(HONEST["tag"]).replace("%s", gold)
        if d.one_in(15):
            return Input(gold, honest, honest=True)
        return Input(text_for(d, gold, corpus) if d.one_in(12) else gold, text_for(d, honest, corpus))

    return draw


def choice_input(d: Draw, corpus: Sequence[str]) -> Input:
    """A gold letter, options and an answer."""
    choices = list(d.of(_CHOICES))
    letter = "ABCDEF"[d.below(len(choices))]
    honest = d.of(HONEST["tag"]).replace("%s", f"({letter})")
    if d.one_in(15):
        return Input(f"({letter})", honest, {"choices": choices}, honest=True)
    text = d.of(_STATEMENTS).replace("%s", d.of((*choices, letter, f"({letter})"))) if d.one_in(3) else honest
    if d.one_in(8):
        choices[d.below(len(choices))] = soup(d)[:80]
    gold = text_for(d, f"({letter})", corpus)[:50] if d.one_in(12) else f"({letter})"
    return Input(gold, text_for(d, text, corpus), None if d.one_in(10) else {"choices": choices})


def _corner(d: Draw) -> str:
    return d.of(
        (str(d.below(1001)), str(d.below(10**6)), f"{d.below(999)}.{d.below(99)}", f"-{d.below(9)}", "9" * d.below(400))
    )


def box_text(d: Draw) -> str:
    """A box as models write them, ordered or not."""
    if d.one_in(2):
        left, right = sorted((d.below(1001), d.below(1001)))
        top, bottom = sorted((d.below(1001), d.below(1001)))
        return f"({left},{top}),({right},{bottom})"
    form = d.of(
        ("(%s,%s),(%s,%s)", "[%s, %s, %s, %s]", "( %s , %s ) , ( %s,%s)", "(%s,%s) (%s,%s)", '{"bbox": [%s,%s,%s,%s]}')
    )
    return form % tuple(_corner(d) for _ in range(4))


def box_input(d: Draw, corpus: Sequence[str]) -> Input:
    """A gold box, as text, fractions or polygons, and boxes in an answer."""
    x, y = d.below(900), d.below(900)
    gold = f"({x},{y}),({x + 1 + d.below(1000 - x)},{y + 1 + d.below(1000 - y)})"
    if d.one_in(15):
        return Input(gold, d.of(HONEST["tag"]).replace("%s", gold), honest=True)
    text = "".join(f"{d.of(('', 'the dog is at ', '<answer>', chr(10)))}{box_text(d)}" for _ in range(1 + d.below(3)))
    context: dict[str, Any] | None = None
    if d.one_in(2):
        odd = (0, -1, 1e308, float("nan"), None, "12", [], True, 10**400)
        points = [[d.below(640), d.below(480)] for _ in range(d.below(5))]
        if d.one_in(4):
            points.append([d.of(odd), d.below(9)])
        polygons = [{"label": d.of(("target", "ignore_x", "flag", "", 3)), "points": points} for _ in range(d.below(3))]
        context = {"polygons": polygons, "width": 640, "height": d.of((480, *odd)) if d.one_in(4) else 480}
        if d.one_in(4):
            context["gold_box"] = [d.of((0.1, 0.5, 1.0, *odd)) for _ in range(4 - d.below(2))]
    return Input(gold, text_for(d, text, corpus), context)


# --- files -------------------------------------------------------------------------------------------------------


def value(d: Draw, depth: int = 3) -> Any:
    """Any JSON value, odd ones included."""
    kind = d.below(12 if depth else 8)
    simple = (None, True, False, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", "0", "text", [], {})
    if kind < 4:
        return d.of(simple)
    if kind < 6:
        return soup(d)[:60]
    if kind < 8:
        return d.below(100)
    if kind < 10:
        return [value(d, depth - 1) for _ in range(d.below(4))]
    return {d.of(("text", "doc", "points", "label", "arg_0", "0", soup(d)[:8])): value(d, depth - 1) for _ in range(3)}


def changed(d: Draw, record: Any, depth: int = 4) -> Any:
    """A JSON value with some of its parts lost or turned into something else."""
    if depth == 0 or d.one_in(12):
        return value(d, 2)
    if isinstance(record, dict):
        return {k: changed(d, v, depth - 1) if d.one_in(4) else v for k, v in record.items() if not d.one_in(25)}
    if isinstance(record, list):
        return [changed(d, v, depth - 1) if d.one_in(4) else v for v in record if not d.one_in(25)]
    return record if d.one_in(2) else value(d, 1)


def file_input(records: Sequence[Any], lines: bool) -> Callable[[Draw, Sequence[str]], Input]:
    """Texts of JSON files near some records; ``lines``: several records, one a line."""

    def draw(d: Draw, corpus: Sequence[str]) -> Input:
        if d.one_in(8):
            return Input("", text_for(d, json.dumps(d.of(records)), corpus))
        found = [changed(d, d.of(records)) if d.one_in(2) else d.of(records) for _ in range(1 + d.below(4) * lines)]
        text = "\n".join(json.dumps(each, ensure_ascii=d.one_in(2)) for each in found) + d.of(
            ("", "\n", "\n\n", "\r\n")
        )
        return Input("", mutated(d, text, corpus) if d.one_in(3) else text)

    return draw


def packed_input(records: Sequence[Any]) -> Callable[[Draw, Sequence[str]], Input]:
    """JSON as gzip and as it is, a character for each byte, now and then damaged; the context says how it is packed."""

    def draw(d: Draw, corpus: Sequence[str]) -> Input:
        data = json.dumps(changed(d, d.of(records))).encode() * (1 + d.below(3) * d.one_in(4))
        coding = d.of(("gzip", "deflate", "identity", "br"))
        kind = d.below(3)
        data = gzip.compress(data, mtime=0) if kind == 0 else zlib.compress(data) if kind == 1 else data
        text = data.decode("latin-1")
        return Input(coding, mutated(d, text, corpus) if d.one_in(2) else text)

    return draw


def bytes_input(make: Callable[[], Sequence[bytes]]) -> Callable[[Draw, Sequence[str]], Input]:
    """Files of bytes, a character for each, mostly damaged near their beginning, where headers are."""

    def draw(d: Draw, corpus: Sequence[str]) -> Input:
        text = d.of(make()).decode("latin-1")
        if d.one_in(10):
            return Input("", text)
        head = 1 + d.below(d.of((16, 64, len(text))))
        return Input("", mutated(d, text[:head], corpus) + text[head:])

    return draw


_YAML = (
    *("&a ", "*a", "<<: *a", "<<: ", "!!int ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/name:os "),
    *("? ", "- ", ": ", "[", "]", "{", "}", "|\n", ">-\n", "%YAML 1.1\n", "---\n", "...\n", "\t", "#", "0b_"),
    *("1:60:60", "2026-99-99"),
    *("~", ".nan", "1e400", "'", '"', "\\x", "\n", "\n  ", "\n      ", "a: &a [", "*a, *a, *a]"),
)  # fmt: skip


def yaml_input(records: Sequence[Any]) -> Callable[[Draw, Sequence[str]], Input]:
    """Texts of YAML files near some records: JSON, which is YAML, or its block form with pieces of YAML put in."""
    as_json = file_input(records, lines=False)

    def draw(d: Draw, corpus: Sequence[str]) -> Input:
        if d.one_in(4):
            return as_json(d, corpus)
        found = changed(d, d.of(records)) if d.one_in(2) else d.of(records)
        text = yaml.safe_dump(json.loads(json.dumps(found)), sort_keys=False, default_flow_style=d.one_in(4))
        for _ in range(d.below(5)):
            at = d.below(len(text) + 1)
            text = text[:at] + d.of(_YAML) + text[at:]
        if d.one_in(30):
            text = d.of(("[", "- ", "{a: ", "&a [*a, ", "? ")) * (1 + d.below(20_000)) + text
        return Input("", mutated(d, text, corpus) if d.one_in(3) else text)

    return draw


def text_input(d: Draw, corpus: Sequence[str]) -> Input:
    """A text for a parser."""
    kind = d.below(4)
    honest = (
        box_text(d) if kind == 0 else expression(d) if kind == 1 else completion(d, d.of((number(d), "(B)", "rose")))
    )
    return Input("", text_for(d, honest, corpus))
