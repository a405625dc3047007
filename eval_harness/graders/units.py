"""Units of the strict rule for mathematics: what is written behind a number, as a dimension and a size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """``kind`` is a dimension (``m^2``, ``kg m s^-2``, ``share``, ``angle``), ``size`` in base units, times pi^pi."""

    kind: str
    size: Fraction
    text: str
    pi: int = 0


_BASE = {
    "m": "m", "g": "kg/1000", "s": "s", "A": "A", "K": "K", "mol": "mol", "L": "m^3/1000", "l": "m^3/1000",
    "N": "kg m s^-2", "J": "kg m^2 s^-2", "W": "kg m^2 s^-3", "Pa": "kg m^-1 s^-2", "Hz": "s^-1",
    "V": "kg m^2 s^-3 A^-1",
    "C": "A s", "F": "kg^-1 m^-2 s^4 A^2", "eV": "ev", "erg": "kg m^2 s^-2/10000000", "bit": "bit", "Ohm": "ohm",
}  # fmt: skip
_PREFIX = {
    "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "d": -1, "c": -2, "m": -3, "μ": -6, "u": -6, "n": -9, "p": -12, "f": -15,
}  # fmt: skip
_PREFIXED = frozenset({"m", "g", "s", "A", "mol", "L", "l", "N", "J", "W", "Pa", "Hz", "V", "F", "eV", "K"})
_WORDS = {
    "met(?:er|re)s?": "m", "kilomet(?:er|re)s?|kms": "km", "centimet(?:er|re)s?": "cm", "millimet(?:er|re)s?": "mm",
    "nanomet(?:er|re)s?": "nm", "micromet(?:er|re)s?|microns?": "μm", "grams?": "g", "kilograms?|kgs": "kg",
    "seconds?|secs?": "s", "lit(?:er|re)s?": "L", "millilit(?:er|re)s?": "mL", "moles?": "mol", "joules?": "J",
    "newtons?": "N", "watts?": "W", "volts?": "V", "hertz": "Hz", "ergs?": "erg", "kelvins?": "K", "pascals?": "Pa",
    "coulombs?": "C", "amperes?|amps?": "A", "bits?": "bit", "mg": "mg",
}  # fmt: skip
_OTHER = {
    r"inch(?:es)?|in": ("m", Fraction(254, 10000)), r"feet|foot|ft": ("m", Fraction(3048, 10000)),
    r"yards?|yds?": ("m", Fraction(9144, 10000)), r"miles?|mi": ("m", Fraction(1609344, 1000)),
    r"angstroms?|AA|Å": ("m", Fraction(1, 10**10)),
    r"minutes?|mins?|min": ("s", Fraction(60)), r"hours?|hrs?|h|hr": ("s", Fraction(3600)),
    r"days?": ("s", Fraction(86400)), r"weeks?": ("s", Fraction(604800)), r"months?": ("month", Fraction(1)),
    r"years?|yrs?|yr": ("month", Fraction(12)), r"Gyr": ("month", Fraction(12 * 10**9)),
    r"pounds?|lbs?": ("pound", Fraction(1)), r"ounces?|oz": ("pound", Fraction(1, 16)),
    r"dollars?|USD": ("money", Fraction(1)), r"cents?|¢": ("money", Fraction(1, 100)),
    r"\\?%|percent|per cent|percentage": ("share", Fraction(1, 100)), r"\\permil": ("share", Fraction(1, 1000)),
    r"degrees?|deg|°": ("angle", Fraction(1, 180)), r"arcmin(?:utes?|s)?|'": ("angle", Fraction(1, 180 * 60)),
    r"arcsec(?:onds?|s)?|''|\"": ("angle", Fraction(1, 180 * 3600)), r"rad(?:ians?)?": ("angle", Fraction(1)),
    r"mph": ("m s^-1", Fraction(1609344, 3600000)), r"kmh|kph": ("m s^-1", Fraction(1000, 3600)),
    r"(?:degrees? )?celsius|°C": ("celsius", Fraction(1)), r"(?:degrees? )?fahrenheit|°F": ("fahrenheit", Fraction(1)),
    r"parsecs?|pc": ("parsec", Fraction(1)), r"acres?": ("acre", Fraction(1)), r"kcals?": ("kcal", Fraction(1)),
    r"amu": ("amu", Fraction(1)), r"gallons?": ("gallon", Fraction(1)), r"quarts?": ("gallon", Fraction(1, 4)),
}  # fmt: skip
_KNOWN_WORDS = [(re.compile(words), name) for words, name in _WORDS.items()]
_KNOWN_OTHER = [(re.compile(words, re.IGNORECASE if len(words) > 12 else 0), *unit) for words, unit in _OTHER.items()]
_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_PIECE = re.compile(
    r"\\?%|\\permil|\\AA|''|'|\"|°[CF]?|[A-Za-zμΩ°Å¢]+\.?|\^\s*\{?\s*\(?\s*(-?\s*\d)\s*\)?\s*\}?|[/*()]|\s+|."
)


@lru_cache(4096)
def read_unit(text: str) -> Unit | None:
    """The unit that a text names in full; None: it names none that is known.

    Read are SI units with prefixes, the usual others, their powers, products and quotients, in words or signs.
    """
    if len(text) > 80:
        return None
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    plain = (
        plain.replace("~", " ").replace("\\cdot", "*").replace("\\mu ", "μ").replace("\\mu", "μ").replace("mu ", "μ")
    )
    plain = re.sub(r"μ\s+(?=[A-Za-z])", "μ", plain)
    plain = re.sub(r"\^\s*\\circ\s*", "°", plain)
    plain = re.sub(r"\^\s*\{?\s*('{1,2})\s*\}?", r"\1", plain).replace("{", " ").replace("}", " ")
    plain = re.sub(r"\bper\b(?!\s*cent)", "/", plain).strip(" .,")
    plain = re.sub(r"°\s+(?=[CF]\b)", "°", plain)
    plain = re.sub(r"\^\s+", "^", plain)
    if plain == "mole" or not plain:
        return _single(plain) and Unit("mol", Fraction(1), text)
    dimension: dict[str, int] = {}
    size, pi, sign, pending, last = Fraction(1), 0, 1, 1, None
    for match in _PIECE.finditer(plain):
        piece = match.group()
        if piece.isspace() or piece in "*()":
            continue
        if piece == "/":
            sign, last = -1, None
            continue
        if piece.startswith("^") and match.group(1) is None:
            return None
        if piece.startswith("^") or piece.lower() in ("squared", "cubed"):
            power = int(re.sub(r"\s", "", match.group(1))) if piece.startswith("^") else _POWER_WORDS[piece.lower()]
            if last is None or abs(power) > 6:
                return None
            kinds, unit_size, times, around = last
            for base, exponent in kinds.items():
                dimension[base] = dimension.get(base, 0) + exponent * times * (power - 1)
            size *= unit_size ** (times * (power - 1))
            pi += around * times * (power - 1)
            last = None
            continue
        if piece.lower() in _POWER_WORDS:
            pending = _POWER_WORDS[piece.lower()]
            continue
        found = _single(piece.rstrip("."))
        if found is None:
            return None
        kinds, unit_size, around = found
        times = sign * pending
        for base, exponent in kinds.items():
            dimension[base] = dimension.get(base, 0) + exponent * times
        size *= unit_size**times
        pi += around * times
        last, pending = (kinds, unit_size, times, around), 1
    kind = " ".join(base + (f"^{power}" if power != 1 else "") for base, power in sorted(dimension.items()) if power)
    return Unit(kind, size, text.strip(), pi) if dimension and pending == 1 else None


@lru_cache(1024)
def _single(word: str) -> tuple[dict[str, int], Fraction, int] | None:
    """One unit: its dimension, its size, and the power of pi in it."""
    for pattern, name in _KNOWN_WORDS:
        if pattern.fullmatch(word.lower()) and len(word) > 1:
            word = name
            break
    for pattern, kind, size in _KNOWN_OTHER:
        if pattern.fullmatch(word):
            return _dimension(kind), size, int(kind == "angle" and size != 1)
    if word in _BASE:
        return _based(word, 0)
    for prefix, power in _PREFIX.items():
        if prefix and word.startswith(prefix) and word[len(prefix) :] in _PREFIXED:
            return _based(word[len(prefix) :], power)
    return None


def _based(word: str, power: int) -> tuple[dict[str, int], Fraction, int]:
    kind, _, divisor = _BASE[word].partition("/")
    return _dimension(kind), Fraction(10) ** power / int(divisor or 1), 0


def _dimension(kind: str) -> dict[str, int]:
    parts = (part.partition("^") for part in kind.split())
    return {base: int(power or 1) for base, _, power in parts}
