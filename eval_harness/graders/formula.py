"""Formulas of the strict rule: LaTeX or plain text to a tree, and the value of a tree. Nothing is evaluated as code.

A tree is a tuple: ``("num", Fraction, digits)`` (``digits``: significant digits of a decimal, 0 for an exact number),
``("sym", name)``, ``("add" | "mul" | "div" | "pow", a, b)``, ``("neg", a)``, ``("pm", sign, a, b)``,
``("fn", name, *arguments)`` for known functions and ``("call", name, *arguments)`` for unknown ones such as f(x).

All work is bounded: length of the text, depth and size of the tree, size of powers and factorials.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import xxhash
from mpmath import MPContext, libmp

from eval_harness.graders.text import DASHES, INVISIBLE, SLANTED, UPRIGHT

MAX_CHARACTERS = 2000
"""Of an answer that is read as a formula; longer ones are compared as text."""
_MAX_DEPTH = 40
_MAX_BRACKETS = 60
_MAX_NODES = 600
_MAX_BITS = 1 << 15
"""Of a whole number or fraction that is computed exactly."""
_MAX_LOG2 = 1e7
"""Of a power that is computed approximately."""
_MAX_FACTORIAL = 10_000
_DIGITS = 50
_ZERO = Fraction(0)

Tree = tuple


class Unreadable(ValueError):
    """No formula, or one whose value is out of bounds."""


# --- spelling ------------------------------------------------------------------------------------------------------

_GREEK = {
    unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"): name
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu")
    + ("nu", "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "pi")
    if name not in ("lambda",)
} | {"λ": "lambda", "Δ": "Delta", "Ω": "Omega", "Γ": "Gamma", "Θ": "Theta", "Λ": "Lambda", "Φ": "Phi", "Ψ": "Psi"}
_SIGNS = (
    {
        "×": "\\times ", "✕": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "÷": "\\div ", "∕": "/",
        "±": "\\pm ", "∓": "\\mp ", "∞": "\\infty ", "√": "\\sqrt ", "∛": "\\sqrt[3]", "≤": "\\le ", "≥": "\\ge ",
        "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ",
        "∅": "\\emptyset ", "°": "^\\circ ", "º": "^\\circ ", "˚": "^\\circ ", "′": "'", "″": "''", "’": "'",
        "⟨": "(", "⟩": ")", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∠": "\\angle ",
        "\u00a0": " ", "\u2009": "\\,", "\u202f": "\\,", "\u2007": "\\,", "Å": "\\AA ",
        "µ": "\\mu ", "‰": "\\permil ", "ℝ": "\\mathbb{R}", "ℏ": "\\hbar ", "…": "\\ldots ",
    }
    | {sign: f"\\{name} " for sign, name in _GREEK.items()}
    | dict.fromkeys(DASHES, "-")
    | dict.fromkeys(INVISIBLE, "")
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_THOUSANDS = r"(?:'|,\\!|,\\,|,\{\}|\{,\}|\\,|\\ |~|\\:|\\;)\s*"
_REWRITES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\[\(\)\[\]](?![a-zA-Z])|(?<!\\)\$", " "),
        (r"(?<![A-Za-z\\])(?:np|numpy|math|sp|sympy)\.(?=[a-z])", ""),
        (r"\*\*(?=\s*[-+({\w\\])(?<=[\w)}]\*\*)", "^"),
        (r"\*\*+|__+|`+", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|strut|q?quad|enspace|thinspace)(?![A-Za-z])", " "),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\})?", " "),
        (r"\\hspace\s*\{[^{}]*\}", " "),
        (r"(?<!\\)\\[,!;: ]", " "),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"\\mathbb\s*\{?\s*R\s*\}?", r"(-\\infty,\\infty)"),
        (r"(?<![A-Za-z\\])d([a-zA-Z])\s*/\s*d([a-zA-Z])(?![A-Za-z])", r"\\frac{d\1}{d\2}"),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"<=|=<", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=(?!=)", r"\\ne "),
        (r"\+/-|\+-", r"\\pm "),
        (r"\\[lr]brace(?![A-Za-z])", lambda m: "\\{" if m.group()[1] == "l" else "\\}"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\(?:langle|lparen)(?![A-Za-z])", "("),
        (r"\\(?:rangle|rparen)(?![A-Za-z])", ")"),
        (r"\\[lr]?vert(?![A-Za-z])|\\mid(?![A-Za-z])", "|"),
        (r"\\degree(?![A-Za-z])", r"^\\circ "),
        (r"(?:\{\s*\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", r"^\\circ "),
        (rf"\\(?:{UPRIGHT})\s*\{{", r"\\text{"),
        (rf"\\(?:{SLANTED})\s*(?=\{{)", ""),
        (r"\\text\{\s*([deij])\s*\}(?!\s*[/^])(?=\s*[\\{^A-Za-z(}])", r"\1"),
        (r"\^\s*\{((?:\s*\\prime)+)\s*\}", lambda m: "'" * m.group(1).count("prime")),
        (r"\^\s*\\prime(?![A-Za-z])", "'"),
        (r"\\(?:varnothing|emptyset)(?![A-Za-z])", r"\\emptyset "),
        (r"\\(?:dots|cdots|ldots|dotsc)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\\varepsilon(?![A-Za-z])", r"\\epsilon "),
        (r"\\varphi(?![A-Za-z])", r"\\phi "),
    )
]  # fmt: skip
_GROUPED = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_THOUSANDS}\d{{3}}(?!\d))+")
_BLANKS = re.compile(r"(?<![\d.^_{])(?<![\d]\s)\d{1,3}(?: \d{3}(?![\d/]))+(?!\s*[\d/])")


@lru_cache(4096)
def tidy(text: str) -> str:
    """A text in one spelling: signs as LaTeX, thousands closed up, dollars, sizes of brackets and spaces taken out."""
    if not text.isascii():
        text = _plain_signs(text)
    text = _GROUPED.sub(lambda m: re.sub(_THOUSANDS, "", m.group()), text)
    for pattern, to in _REWRITES:
        text = pattern.sub(to, text)
    text = _BLANKS.sub(lambda m: m.group().replace(" ", ""), text)
    return re.sub(r"\s+", " ", text).strip()


def _plain_signs(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
    out = []
    for char in text:
        if char in _SIGNS:
            out.append(_SIGNS[char])
        elif unicodedata.decomposition(char).startswith("<fraction>"):
            top, _, bottom = unicodedata.normalize("NFKC", char).partition("\u2044")
            out.append(f"\\frac{{{top}}}{{{bottom}}}" if bottom else char)
        elif "\uff00" <= char <= "\uffef":
            out.append(unicodedata.normalize("NFKC", char))
        else:
            out.append("\ufffd" if char.isdecimal() and not char.isascii() else char)  # digits of another script
    return "".join(out).replace("\u2044", "/")


# --- tokens --------------------------------------------------------------------------------------------------------

_FUNCTIONS = """sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot asin acos atan ln log lg exp
    max min gcd lcm sgn"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "log": "ln"}
_COMMANDS = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi
    chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell odot oplus star aleph vartheta varrho
    pi infty AA triangle angle"""
_LETTERS = frozenset(_COMMANDS.split())
_MARKS = "dot ddot hat vec bar tilde overline underline widehat overrightarrow"
_ACCENTS = frozenset(_MARKS.split())
_ENGLISH = """or and thus hence therefore where since because when with for then but not neither nor either between
    unless maybe perhaps possibly probably about approximately around roughly nearly exactly only the are equal
    equals value less more greater fewer than least most over under above below from till until through which that
    million billion trillion thousand hundred dozen squared cubed factorial base any all none clearly simply just
    indeed obviously"""
WORDS = frozenset(_ENGLISH.split())
"""Words that are no product of variables."""
_SHORT = frozenset({"at", "it", "an", "is", "be", "no", "we", "if", "so", "of", "to"})
"""Words too, if they stand alone between blanks and before a number, a letter or a command."""
_OPERATORS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\ast": "*", "\\backslash": "\\"}
RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "~"} | {
    sign: "~" for sign in ("\\simeq", "\\sim", "\\doteq", "\\cong")
}
_TOKEN = re.compile(
    r"(?P<num>(?:\d+\.\d*(?:\\overline\s*\{\d+\}|\(\d+\)|\\dot\s*\{\d\}|\\ldots)|\d+\.\d+|\.\d+|\d+\.(?=\s*[-+*/^)}\\]|\s*$)|\d+)"
    r"(?:[eE][-+]?\d+(?![\d.]*[A-Za-z]))?)"
    r"|(?P<text>\\text\{(?:[^{}]|\{[^{}]*\})*+\})|(?P<cmd>\\[A-Za-z]+|\\.)|(?P<letters>[A-Za-z]+)|(?P<blank>\s+)|(?P<other>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """``kind`` is num, text, cmd, fn, sym, rel or the character itself."""

    kind: str
    text: str
    value: Fraction = _ZERO
    digits: int = 0
    blank: bool = False
    """White space before it."""


def _deepest(text: str) -> int:
    """Most brackets that are open at once."""
    steps = ((char in "([{") - (char in ")]}") for char in text)
    return max(itertools.accumulate(steps), default=0)


def tokens(text: str) -> list[Token]:
    """Tokens of a tidy text.

    Raises:
        Unreadable: too long, nested too deeply, or a number of too many digits.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("too long")
    if _deepest(text) > _MAX_BRACKETS:
        raise Unreadable("nested too deeply")
    found: list[Token] = []
    blank = False
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup, match.group()
        if kind == "blank":
            blank = True
            continue
        if kind == "num":
            value, digits = _number(piece)
            found.append(Token("num", piece, value, digits, blank))
        elif kind == "text" and _is_number(piece[6:-1].strip()):
            found.extend(tokens(piece[6:-1].strip()))
        elif kind == "text":
            found.append(Token("text", piece[6:-1].strip(), blank=blank))
        elif kind == "letters":
            if piece.lower() in _COUNTED:
                found.append(Token("num", str(_COUNTED[piece.lower()]), Fraction(_COUNTED[piece.lower()]), blank=blank))
                blank = False
                continue
            for i, (sort, name) in enumerate(_words(piece, _alone(text, match.start(), match.end()))):
                found.append(Token(sort, name, blank=blank and i == 0))
        elif piece in RELATIONS:
            found.append(Token("rel", RELATIONS[piece], blank=blank))
        elif kind == "cmd":
            name = piece[1:]
            sort = "fn" if name in FUNCTIONS else "sym" if name in _LETTERS else "cmd"
            found.append(
                Token(_OPERATORS[piece], piece, blank=blank)
                if piece in _OPERATORS
                else Token(sort, name if sort != "cmd" else piece, blank=blank)
            )
        else:
            found.append(Token(piece, piece, blank=blank))
        blank = False
    return found


_COUNTS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty"""
_COUNTED = {word: i for i, word in enumerate(_COUNTS.split())}


def _is_number(text: str) -> bool:
    return text in _COUNTED or text == "infinity" or re.match(r"[-+]?\.?\d", text) is not None


def _alone(text: str, start: int, end: int) -> bool:
    return (start == 0 or text[start - 1] == " ") and re.match(r" [\w\\]", text[end : end + 2]) is not None


def _words(run: str, alone: bool) -> Iterator[tuple[str, str]]:
    """A run of letters: a word, a function, pi, or one variable after the other."""
    low = run.lower()
    if low in WORDS or (alone and low in _SHORT):
        yield "text", low
    elif run in FUNCTIONS:
        yield "fn", run
    elif low in ("pi", "infty", "infinity", "inf"):
        yield "sym", "pi" if low == "pi" else "infty"
    elif low == "sqrt":
        yield "cmd", "\\sqrt"
    elif run in ("theta", "alpha", "beta", "gamma", "omega", "lambda", "sigma", "tau", "mu", "phi"):
        yield "sym", run
    else:
        match = re.match(r"(sin|cos|tan|ln|log|exp|pi)(?=[a-zA-Z]{1,2}$)", run)
        if match:
            yield ("sym" if match.group() == "pi" else "fn"), match.group()
            run = run[match.end() :]
        for letter in run:
            yield "sym", letter


def _number(piece: str) -> tuple[Fraction, int]:
    """Value and significant digits: 0 digits for whole numbers and repeating decimals, which are exact."""
    mantissa, exponent = piece, "0"
    split = re.search(r"[eE](?=[-+]?\d+$)", piece)
    if split:
        mantissa, exponent = piece[: split.start()], piece[split.end() :]
    if len(mantissa) > 2000 or len(exponent) > 6 or abs(int(exponent)) > 5000:
        raise Unreadable("a number of too many digits")
    power = Fraction(10) ** int(exponent)
    repeating = re.fullmatch(r"(\d+)\.(\d*)(?:\\overline\s*\{(\d+)\}|\((\d+)\)|\\dot\s*\{(\d)\}|\\ldots)", mantissa)
    if repeating:
        whole, start, *cycles = repeating.groups()
        cycle = next(filter(None, cycles), None)
        if cycle is None:  # dots: the shortest cycle that is written out at least twice
            found = re.search(r"(\d+?)\1+$", start)
            if found is None or len(start) < 3:
                return Fraction(f"{whole}.{start or 0}") * power, 30
            cycle, start = found.group(1), start[: found.start()]
        shift = 10 ** len(start)
        value = Fraction(int(whole + start), shift) + Fraction(int(cycle), shift * (10 ** len(cycle) - 1))
        return value * power, 0
    value = Fraction(mantissa.rstrip(".") if mantissa.endswith(".") else mantissa)
    decimal = split is not None or "." in mantissa.rstrip(".")
    return value * power, max(1, len(mantissa.replace(".", "").lstrip("0"))) if decimal else 0


# --- trees ---------------------------------------------------------------------------------------------------------

_CALLED = frozenset({"f", "g", "h"})
"""Letters before a bracket that name a function whatever stands in it; others only before one letter."""
_NEVER_CALLED = frozenset({"e", "i", "pi", "infty"})
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_STOPS = frozenset({"+", "-", "*", "/", ")", "]", "}", ",", ";", "rel", "fn", "text", "|", "(", "["})


class Parser:
    """Reads a list of tokens as one expression."""

    def __init__(self, found: list[Token]):
        self.found, self.place, self.depth, self.nodes, self.in_function, self.in_bars = found, 0, 0, 0, 0, 0

    def whole(self) -> Tree:
        """The expression that all tokens form.

        Raises:
            Unreadable: they form none, or one too large.
        """
        tree = self._sum()
        if self.place < len(self.found):
            raise Unreadable(f"unexpected {self.found[self.place].text}")
        return tree

    def _kind(self, ahead: int = 0) -> str:
        place = self.place + ahead
        if place >= len(self.found):
            return ""
        token = self.found[place]
        return token.text if token.kind == "cmd" else token.kind

    def _next(self) -> Token:
        if self.place >= len(self.found):
            raise Unreadable("unfinished")
        self.place += 1
        return self.found[self.place - 1]

    def _take(self, kind: str) -> bool:
        if self._kind() != kind:
            return False
        self.place += 1
        return True

    def _expect(self, kind: str) -> None:
        if not self._take(kind):
            raise Unreadable(f"{kind} is missing")

    def _node(self, *node: Any) -> Tree:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise Unreadable("too large")
        return node

    def _deeper(self, read: Callable[[], Tree]) -> Tree:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unreadable("nested too deeply")
        tree = read()
        self.depth -= 1
        return tree

    def _sum(self) -> Tree:
        kind = self._kind()
        if kind in ("\\pm", "\\mp"):
            self.place += 1
            left = self._node("pm", 1 if kind == "\\pm" else -1, ("num", _ZERO, 0), self._product())
        else:
            left = self._product()
        while True:
            kind = self._kind()
            if kind == "+":
                self.place += 1
                left = self._node("add", left, self._product())
            elif kind == "-":
                self.place += 1
                left = self._node("add", left, ("neg", self._product()))
            elif kind in ("\\pm", "\\mp"):
                self.place += 1
                left = self._node("pm", 1 if kind == "\\pm" else -1, left, self._product())
            else:
                return left

    def _product(self) -> Tree:
        left = self._signed()
        while kind := self._kind():
            if kind == "*":
                self.place += 1
                left = self._node("mul", left, self._signed())
            elif kind == "/":
                self.place += 1
                left = self._node("div", left, self._signed())
            elif self._starts(kind):
                left = self._node("mul", left, self._power())
            else:
                return left
        return left

    def _starts(self, kind: str) -> bool:
        """Whether a factor without a sign begins here."""
        return kind in ("num", "sym", "fn", "(", "{", "[") or (
            kind in ("\\frac", "\\sqrt", "\\binom", "\\lfloor", "\\lceil") or kind.lstrip("\\") in _ACCENTS
        ) or (kind == "|" and not self.in_bars)  # fmt: skip

    def _signed(self) -> Tree:
        if self._take("-"):
            return self._node("neg", self._deeper(self._signed))
        if self._take("+"):
            return self._deeper(self._signed)
        return self._power()

    def _power(self) -> Tree:
        base = self._deeper(self._atom)
        while True:
            if self._take("!"):
                base = self._node("fn", "factorial", base)
            elif self._kind() == "^" and self._kind(1) == "\\circ":
                self.place += 2
                if self.in_function:
                    base = self._node("mul", base, ("div", ("sym", "pi"), ("num", Fraction(180), 0)))
            elif self._take("^"):
                base = self._node("pow", base, self._deeper(self._exponent))
            elif self._take("\\%"):
                base = self._node("div", base, ("num", Fraction(100), 0))
            else:
                return base

    def _exponent(self) -> Tree:
        if self._take("-"):
            return self._node("neg", self._deeper(self._exponent))
        self._take("+")
        if self._take("{"):
            return self._closed("}")
        return self._atom(alone=True)

    def _closed(self, closing: str) -> Tree:
        bars, self.in_bars = self.in_bars, 0
        tree = self._sum()
        self._expect(closing)
        self.in_bars = bars
        return tree

    def _argument(self) -> Tree:
        """An argument of a command: braces, or one character of what follows (``\\frac43``)."""
        if self._take("{"):
            return self._deeper(lambda: self._closed("}"))
        token = self.found[self.place] if self.place < len(self.found) else None
        if token is not None and token.kind == "num" and re.fullmatch(r"\d{2,}", token.text):
            rest = Token("num", token.text[1:], Fraction(int(token.text[1:])))
            self.found[self.place : self.place + 1] = [Token("num", token.text[0], Fraction(int(token.text[0]))), rest]
        return self._deeper(lambda: self._atom(alone=True))

    def _atom(self, alone: bool = False) -> Tree:
        token = self._next()
        kind = token.text if token.kind == "cmd" else token.kind
        if kind == "num":
            return self._mixed(token, alone)
        if kind == "sym":
            return self._symbol(token.text, alone)
        if kind == "fn":
            return self._function(token.text)
        if kind == "(" and self._kind() == "-" and self._kind(1) == ")":
            raise Unreadable("a lone sign")
        if kind in ("(", "[", "{"):
            return self._deeper(lambda: self._closed(_CLOSING[kind]))
        if kind in ("\\lfloor", "\\lceil"):
            return self._node("fn", "floor" if kind == "\\lfloor" else "ceil", self._closed(_CLOSING[kind]))
        if kind == "|":
            self.in_bars += 1
            inside = self._deeper(self._sum)
            self._expect("|")
            self.in_bars -= 1
            return self._node("fn", "abs", inside)
        if kind == "\\frac":
            derivative = self._derivative()
            if derivative is not None:
                return derivative
            return self._node("div", self._argument(), self._argument())
        if kind == "\\sqrt":
            return self._root()
        if kind in ("\\binom", "\\dbinom", "\\tbinom"):
            return self._node("fn", "binom", self._argument(), self._argument())
        if kind.lstrip("\\") in _ACCENTS:
            braced = self._take("{")
            name = kind.lstrip("\\") + " " + (self._raw("}") if braced else self._next().text)
            return self._symbol(name, alone)
        raise Unreadable(f"unexpected {token.text}")

    def _mixed(self, token: Token, alone: bool) -> Tree:
        """A number, or a whole number with a proper fraction of whole numbers behind: ``1\\frac{4}{5}``, ``1 4/5``."""
        number = self._node("num", token.value, token.digits)
        if alone or not token.text.isdigit():
            return number
        start, nodes = self.place, self.nodes
        top = bottom = None
        if self._take("\\frac"):
            try:
                top, bottom = self._argument(), self._argument()
            except Unreadable:
                top = None
        elif [self._kind(i) for i in range(3)] == ["num", "/", "num"]:
            top, _, bottom = (("num", t.value, t.digits) for t in self.found[self.place : self.place + 3])
            self.place += 3
        whole = all(t is not None and t[0] == "num" and not t[2] and t[1].denominator == 1 for t in (top, bottom))
        if whole and 0 < top[1] < bottom[1]:
            return self._node("num", token.value + top[1] / bottom[1], 0)
        self.place, self.nodes = start, nodes
        return number

    def _root(self) -> Tree:
        degree: Tree = ("num", Fraction(2), 0)
        if self._take("["):
            degree = self._deeper(lambda: self._closed("]"))
        if self._kind() == "num":  # more than one digit is meant
            token = self._next()
            radicand = self._node("num", token.value, token.digits)
        else:
            radicand = self._argument()
        return self._node("fn", "root", radicand, degree)

    def _raw(self, closing: str) -> str:
        """The text up to a closing bracket, which is taken as well."""
        pieces, depth = [], 0
        while True:
            token = self._next()
            if token.kind == closing and depth == 0:
                return "".join(pieces)
            depth += (token.kind == "{") - (token.kind == "}")
            pieces.append(token.text.replace(" ", ""))

    def _symbol(self, name: str, alone: bool) -> Tree:
        if name == "angle" or name == "triangle":
            while self._kind() == "sym" and self.found[self.place].text not in _NEVER_CALLED:
                name += self._next().text + self._subscript()
            return self._node("sym", name)
        name += self._subscript()
        while not alone and self._take("'"):
            name += "'"
        if name not in _NEVER_CALLED and not alone and self._kind() == "(" and self._calls(name):
            self.place += 1
            arguments = [self._deeper(self._sum)]
            while self._take(","):
                arguments.append(self._deeper(self._sum))
            self._expect(")")
            return self._node("call", name, *arguments)
        return self._node("sym", name)

    def _subscript(self) -> str:
        if self._kind() != "_":
            return ""
        self.place += 1
        return "_" + (self._raw("}") if self._take("{") else self._next().text)

    def _calls(self, name: str) -> bool:
        """Whether the bracket behind a letter holds arguments and no factor."""
        depth, inside = 0, []
        for token in self.found[self.place :]:
            depth += (token.kind in ("(", "{", "[")) - (token.kind in (")", "}", "]"))
            if depth == 0:
                break
            inside.append(token)
        else:
            return False
        kinds = [token.kind for token in inside[1:]]
        if name.rstrip("'") in _CALLED or "'" in name or "," in kinds:
            return True
        if kinds == ["num"]:
            return inside[1].text == "0" or name.isupper()
        return kinds == ["sym"]

    def _derivative(self) -> Tree | None:
        """``\\frac{d^2 x}{d t^2}`` as one symbol."""
        start = self.place
        try:
            if self._take("{"):
                top = self._raw("}")
                if self._take("{"):
                    bottom = self._raw("}")
                    match = re.fullmatch(r"(d|\\partial)(?:\^\{?(\d)\}?)?(\S+)", top)
                    below = re.fullmatch(r"(d|\\partial)([A-Za-z]+?)(?:\^\{?(\d)\}?)?", bottom)
                    if match and below and match[1] == below[1] and match[2] == below[3]:
                        return self._node("sym", f"d{match[2] or ''} {match[3]}/d{below[2]}")
        except Unreadable:
            pass
        self.place = start
        return None

    def _function(self, name: str) -> Tree:
        name = _SAME_FUNCTION.get(name, name)
        power = base = None
        for _ in range(2):
            if self._kind() == "^" and power is None:
                self.place += 1
                power = self._exponent()
            elif self._kind() == "_" and base is None:
                self.place += 1
                base = self._argument()
        if power is not None and name in _INVERSE and power == ("neg", ("num", Fraction(1), 0)):
            name, power = _INVERSE[name], None
        self.in_function += 1
        arguments = self._function_arguments()
        self.in_function -= 1
        if name in ("ln", "lg") and base is None and name == "lg":
            base = ("num", Fraction(10), 0)
        tree = self._node("fn", "ln" if name == "lg" else name, *arguments)
        if base is not None:
            tree = self._node("div", tree, ("fn", "ln", base))
        return tree if power is None else self._node("pow", tree, power)

    def _function_arguments(self) -> list[Tree]:
        kind = self._kind()
        if kind in ("(", "{", "["):
            self.place += 1
            arguments = [self._deeper(self._sum)]
            while self._take(","):
                arguments.append(self._deeper(self._sum))
            self._expect(_CLOSING[kind])
            return arguments
        if kind == "|":
            return [self._deeper(self._atom)]
        tree = self._deeper(self._signed)
        while (kind := self._kind()) and kind not in _STOPS and self._starts(kind):
            tree = self._node("mul", tree, self._power())
        return [tree]


def parse(found: list[Token]) -> Tree:
    """The expression that the tokens form.

    Raises:
        Unreadable: there is none.
    """
    if not found:
        raise Unreadable("nothing")
    return Parser(list(found)).whole()


def walk(tree: Any) -> Iterator[Tree]:
    """All nodes of a tree."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(part for part in node[1:] if isinstance(part, tuple))


CONSTANTS = frozenset({"pi", "e", "i", "infty"})


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the variables and unknown functions in a tree."""
    return frozenset(n[1] for n in walk(tree) if n[0] in ("sym", "call") and not (n[0] == "sym" and n[1] in CONSTANTS))


def decimal_digits(tree: Tree) -> int:
    """Most significant digits of a decimal in the tree; 0: it is exact."""
    return max((node[2] for node in walk(tree) if node[0] == "num"), default=0)


def both_signs(tree: Tree) -> list[Tree]:
    """The tree with its ``\\pm`` read as plus and as minus; the tree alone if there is none."""
    if not any(node[0] == "pm" for node in walk(tree)):
        return [tree]
    return [_signed(tree, sign) for sign in (1, -1)]


def _signed(node: Any, sign: int) -> Any:
    if not isinstance(node, tuple):
        return node
    if node[0] == "pm":
        right = _signed(node[3], sign)
        return ("add", _signed(node[2], sign), right if node[1] * sign > 0 else ("neg", right))
    return (node[0], *(_signed(part, sign) for part in node[1:]))


# --- values --------------------------------------------------------------------------------------------------------

_CONTEXT = MPContext()
_CONTEXT.dps = _DIGITS
_INFINITY = _CONTEXT.inf
_PLAIN = {
    "sin": _CONTEXT.sin, "cos": _CONTEXT.cos, "tan": _CONTEXT.tan, "cot": _CONTEXT.cot, "sec": _CONTEXT.sec,
    "csc": _CONTEXT.csc, "sinh": _CONTEXT.sinh, "cosh": _CONTEXT.cosh, "tanh": _CONTEXT.tanh, "coth": _CONTEXT.coth,
    "arcsin": _CONTEXT.asin, "arccos": _CONTEXT.acos, "arctan": _CONTEXT.atan, "arccot": _CONTEXT.acot,
    "ln": _CONTEXT.ln, "exp": _CONTEXT.exp,
}  # fmt: skip
Value = Any
"""A Fraction where the value is exact, else an mpmath number."""


def _mp(value: Value) -> Any:
    if isinstance(value, Fraction):
        return _CONTEXT.mpf(value.numerator) / value.denominator
    return value


def _size(value: Value) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


@lru_cache(4096)
def _point(name: str, trial: int, whole: bool) -> Value:
    """What a variable stands for in a trial: a positive number that depends on its name."""
    draw = xxhash.xxh3_64_intdigest(f"{trial} {name}")
    if whole:
        return Fraction(draw % 17 + 3)
    return Fraction(draw % 9973 + 1501, 4001)


def evaluate(tree: Tree, trial: int = 0, whole: bool = False) -> Value:
    """The value of a tree, with a positive number for each variable.

    Args:
        tree: an expression without ``pm``.
        trial: another trial puts in other numbers.
        whole: put in whole numbers.

    Raises:
        Unreadable: it has no value, or one out of bounds.
    """
    try:
        value = _evaluate(tree, trial, whole)
    except (ArithmeticError, ValueError, TypeError, libmp.NoConvergence, NotImplementedError) as error:
        raise Unreadable(str(error)) from None
    if not isinstance(value, Fraction) and _CONTEXT.isnan(value):
        raise Unreadable("no value")
    return value


def _evaluate(node: Tree, trial: int, whole: bool) -> Value:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "sym":
        name = node[1]
        if name in CONSTANTS:
            return {"pi": _CONTEXT.pi, "e": _CONTEXT.e, "i": _CONTEXT.j, "infty": _INFINITY}[name] * 1
        return _point(name, trial, whole)
    if kind == "call":
        parts = [_evaluate(part, trial, whole) for part in node[2:]]
        total: Value = _point(f"{node[1]}()", trial, False)
        for i, part in enumerate(parts):
            total = _add(total, _multiply(_point(f"{node[1]}({i}", trial, False), part))
            total = _add(total, _multiply(_point(f"{node[1]}^{i}", trial, False), _multiply(part, part)))
        return total
    parts = [_evaluate(part, trial, whole) for part in node[(2 if kind == "fn" else 1) :]]
    if kind == "add":
        return _add(*parts)
    if kind == "neg":
        return -parts[0]
    if kind == "mul":
        return _multiply(*parts)
    if kind == "div":
        return _divide(*parts)
    if kind == "pow":
        return _raise(*parts)
    if kind == "fn":
        return _call(node[1], parts)
    raise Unreadable(f"{kind} has no value")


def _add(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if _size(a) + _size(b) > _MAX_BITS:
            raise Unreadable("too large")
        return a + b
    a, b = _mp(a), _mp(b)
    total = a + b
    if abs(total) <= max(abs(a), abs(b)) * _CONTEXT.mpf(10) ** (5 - _DIGITS):
        return _ZERO  # terms that cancel
    return total


def _multiply(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if _size(a) + _size(b) > _MAX_BITS:
            return _mp(a) * _mp(b)
        return a * b
    if a == 0 or b == 0:
        return _ZERO
    return _mp(a) * _mp(b)


def _divide(a: Value, b: Value) -> Value:
    if b == 0:
        raise Unreadable("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction) and _size(a) + _size(b) <= _MAX_BITS:
        return a / b
    return _mp(a) / _mp(b)


def _raise(a: Value, b: Value) -> Value:
    if isinstance(b, Fraction) and isinstance(a, Fraction):
        if b.denominator == 1 and abs(b.numerator) * _size(a) <= _MAX_BITS:
            if a == 0 and b <= 0:
                raise Unreadable("zero to the power of zero or less")
            return a ** int(b)
        if a >= 0 and b.denominator <= 64 and abs(b.numerator) <= 64:
            root = _exact_root(a, b.denominator)
            if root is not None:
                return _raise(root, Fraction(b.numerator))
    if a == 0:
        raise Unreadable("a power of zero")
    base, exponent = _mp(a), _mp(b)
    if not (_CONTEXT.isfinite(base) and _CONTEXT.isfinite(exponent)):
        raise Unreadable("infinite")
    if abs(exponent) * (abs(_CONTEXT.ln(abs(base))) + 4) > _MAX_LOG2:
        raise Unreadable("too large a power")
    if isinstance(b, Fraction) and b.denominator == 1:
        return base ** int(b)
    return _CONTEXT.power(base, exponent)


def _exact_root(a: Fraction, degree: int) -> Fraction | None:
    parts = []
    for part in (a.numerator, a.denominator):
        if part.bit_length() > 4096:
            return None
        root = math.isqrt(part) if degree == 2 else round(_CONTEXT.root(part, degree))
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(*parts)


def _call(name: str, parts: list[Value]) -> Value:
    first = parts[0]
    if name == "root":
        degree = parts[1]
        if degree == 0:
            raise Unreadable("root of degree zero")
        if isinstance(first, Fraction) and first < 0 and isinstance(degree, Fraction) and degree % 2 == 1:
            return -_call("root", [-first, degree])  # a real root
        return _ZERO if first == 0 else _raise(first, _divide(Fraction(1), degree))
    if name == "abs":
        return abs(first) if isinstance(first, Fraction) else abs(_mp(first))
    if name == "factorial":
        return _factorial(first)
    if name == "binom":
        n, k = parts
        if all(isinstance(p, Fraction) and p.denominator == 1 for p in parts) and 0 <= k <= n <= _MAX_FACTORIAL:
            return Fraction(math.comb(int(n), int(k)))
        if max(abs(_mp(n)), abs(_mp(k))) > 1e6:
            raise Unreadable("too large")
        return _CONTEXT.binomial(_mp(n), _mp(k))
    if name in ("floor", "ceil"):
        if isinstance(first, Fraction):
            return Fraction(math.floor(first) if name == "floor" else math.ceil(first))
        if isinstance(first, _CONTEXT.mpc) or abs(first) > 1e40:
            raise Unreadable("no whole part")
        near = _CONTEXT.nint(first)
        if abs(first - near) < 1e-30:
            return Fraction(int(near))
        return Fraction(int(_CONTEXT.floor(first) if name == "floor" else _CONTEXT.ceil(first)))
    if name in ("max", "min"):
        return (max if name == "max" else min)(parts, key=_mp)
    if name in ("gcd", "lcm"):
        return Fraction(getattr(math, name)(*(int(part) for part in parts if part.denominator == 1)))
    if name == "sgn":
        return Fraction((first > 0) - (first < 0))
    if name not in _PLAIN or len(parts) != 1:
        raise Unreadable(f"{name} of {len(parts)}")
    value = _mp(first)
    if not _CONTEXT.isfinite(value) or abs(value) > (_MAX_LOG2 if name not in ("ln",) else _CONTEXT.mpf(10) ** 9999999):
        raise Unreadable("too large an argument")
    return _PLAIN[name](value)


def _factorial(n: Value) -> Value:
    if isinstance(n, Fraction) and n.denominator == 1:
        if not 0 <= n <= _MAX_FACTORIAL:
            raise Unreadable("too large a factorial")
        if n <= 2000:
            return Fraction(math.factorial(int(n)))
        return _CONTEXT.factorial(int(n))
    if abs(_mp(n)) > _MAX_FACTORIAL:
        raise Unreadable("too large a factorial")
    return _CONTEXT.gamma(_mp(n) + 1)


# --- equality ------------------------------------------------------------------------------------------------------

TOLERANCE = Fraction(1, 1_000_000)
"""Relative difference of two decimals that are called equal."""
FULL_DIGITS = 12
"""So many digits of a decimal count as the exact number that they belong to."""
_EXACT = _CONTEXT.mpf(10) ** -30
_TRIALS = 3
_WHOLE = frozenset({"floor", "ceil", "binom", "factorial", "gcd", "lcm"})


def _close(a: Value, b: Value, tolerance: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == b:
            return True
        if not isinstance(tolerance, Fraction):
            return False
        return abs(a - b) <= tolerance * max(abs(a), abs(b))
    a, b = _mp(a), _mp(b)
    if a == b:
        return True
    if not (_CONTEXT.isfinite(a) and _CONTEXT.isfinite(b)):
        return False
    return abs(a - b) <= _mp(tolerance) * max(abs(a), abs(b))


def _tolerance(a: Tree, b: Tree) -> list[Any]:
    """Relative differences to allow, by what the two sides are made of."""
    one, other = decimal_digits(a), decimal_digits(b)
    if one and other:
        return TOLERANCE
    return Fraction(1, 10 ** (FULL_DIGITS - 1)) / 2 if max(one, other) >= FULL_DIGITS else _EXACT


def _last_digit_differs(a: Tree, b: Tree, x: Value, y: Value) -> bool:
    """Whether two decimals differ by half a unit of the last digit of the shorter one, or more."""
    if x == 0 or not (isinstance(x, Fraction) and isinstance(y, Fraction)):
        return False
    digits = min(decimal_digits(a), decimal_digits(b))
    leading = math.floor(_CONTEXT.log10(abs(_mp(x))))
    return abs(x - y) * 2 >= Fraction(10) ** (leading - digits + 1)


def same(a: Tree, b: Tree) -> bool:
    """Whether two expressions have the same value, at every trial if there are variables.

    Raises:
        Unreadable: one of them has no value.
    """
    if a == b:
        return True
    tolerance = _tolerance(a, b)
    names = symbols(a) | symbols(b)
    if not names:
        x, y = evaluate(a), evaluate(b)
        return _close(x, y, tolerance) and not (tolerance == TOLERANCE and _last_digit_differs(a, b, x, y))
    return all(_close(x, y, tolerance) for x, y in _trials(a, b))


def _mirrored(node: Any) -> Any:
    """The tree with the negative of every variable."""
    if not isinstance(node, tuple):
        return node
    if node[0] == "sym" and node[1] not in CONSTANTS:
        return ("neg", node)
    return (node[0], *(_mirrored(part) for part in node[1:]))


def _trials(a: Tree, b: Tree) -> Iterator[tuple[Value, Value]]:
    bars = [any(n[:2] == ("fn", "abs") for n in walk(tree)) for tree in (a, b)]
    pairs = [(a, b), (_mirrored(a), _mirrored(b))] if bars[0] != bars[1] else [(a, b)]  # |x| is no x
    whole = any(n[0] == "fn" and n[1] in _WHOLE for n in itertools.chain(walk(a), walk(b)))
    done = 0
    wanted = _TRIALS + 9 * whole
    for trial in range(3 * wanted):
        try:
            one, other = pairs[trial % len(pairs)]
            pair = evaluate(one, trial, whole), evaluate(other, trial, whole)
        except Unreadable:
            continue
        yield pair
        done += 1
        if done == wanted:
            return
    if done == 0:
        raise Unreadable("no value at any trial")


def proportional(a: Tree, b: Tree, positive: bool = False) -> bool:
    """Whether two expressions with variables differ by a constant factor (a positive one): a = 0 and b = 0 are one.

    Raises:
        Unreadable: one of them has no value.
    """
    if a == b:
        return True
    ratios = []
    for x, y in _trials(a, b):
        if x == 0 or y == 0:
            if x != y:
                return False
            continue
        ratios.append(_divide(x, y))
    if not ratios or (positive and not all(isinstance(r, Fraction | _CONTEXT.mpf) and r > 0 for r in ratios)):
        return False
    return len(ratios) > 1 and all(_close(ratio, ratios[0], _EXACT) for ratio in ratios[1:])


def number(tree: Tree) -> float | None:
    """The real value of an expression without variables, to order by; None: it has none."""
    if symbols(tree):
        return None
    try:
        value = evaluate(tree)
    except Unreadable:
        return None
    if not isinstance(value, Fraction) and isinstance(value, _CONTEXT.mpc):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)


def negated(tree: Tree) -> Tree:
    """Minus the expression."""
    return ("neg", tree)


def difference(a: Tree, b: Tree) -> Tree:
    """``a - b``."""
    return ("add", a, ("neg", b))
