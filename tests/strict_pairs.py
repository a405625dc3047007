"""Answers near a gold: the same one written differently, and others with one number, sign, bound or member changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NUMBER = re.compile(r"(?<![\d.])\d+\.\d+|(?<![\d.])\.\d+|\d+")
_BRACES = re.compile(r"\\(?:begin|end|text|mbox|mathrm)\s*\{[^{}]*\}")


def respelled(gold: str) -> Iterator[tuple[str, str]]:
    """(what was done, the same answer): spellings that nobody would mark differently."""
    bare = re.sub(r"(?<!\\)\$", "", gold).strip()
    yield "as it is", bare
    yield "blanks around", f"  {bare} "
    yield "full stop", f"{bare.rstrip('.')}."
    if re.fullmatch(r"-?\d+", bare):
        yield "point zero", f"{bare}.0"
        yield "as a fraction", rf"\frac{{{2 * int(bare)}}}{{2}}"
        yield "with a name", f"n = {bare}"
        yield "units", rf"{bare} \text{{ units}}"
    if re.fullmatch(r"\d{4,}", bare) and not bare.startswith("0"):
        yield "thousands", f"{int(bare):,}"
    if re.fullmatch(r"-?\d+(?:\.\d+)?e-?\d+", bare):
        mantissa, exponent = bare.split("e")
        yield "times ten", rf"{mantissa} \times 10^{{{exponent}}}"
        yield "upper case", bare.replace("e", "E")
    if r"\frac" in bare:
        yield "display style", bare.replace(r"\frac", r"\dfrac")
    if "(" in bare and bare.count("(") == bare.count(")") and "\\left" not in bare:
        yield "sized brackets", bare.replace("(", r"\left(").replace(")", r"\right)")
    members = _members(bare)
    if members:
        yield "reversed list", ", ".join(reversed(members))
        yield "joined by and", r" \text{ and } ".join(members)


def neighbours(gold: str) -> Iterator[tuple[str, str]]:
    """(what was changed, another answer), one change each."""
    bare = re.sub(r"(?<!\\)\$", "", gold).strip()
    protected = [match.span() for match in _BRACES.finditer(bare)]

    def changeable(start: int) -> bool:
        return not any(low <= start < high for low, high in protected)

    for match in _NUMBER.finditer(bare):
        if changeable(match.start()):
            digits = match.group()
            other = digits[:-1] + str((int(digits[-1]) + 1) % 10)
            yield "number", bare[: match.start()] + other + bare[match.end() :]
    for match in re.finditer(r"[-+](?!\d*\s*\\infty)", bare):
        if changeable(match.start()):
            other = "-" if match.group() == "+" else "+"
            yield "sign", bare[: match.start()] + other + bare[match.end() :]
    if (
        re.fullmatch(r"[\d.\\({].*", bare)
        and not re.match(r"\\(?:text|angle|begin|\{)|\(", bare)
        and not _members(bare)
        and bare != "0"
    ):
        yield "sign", f"-{bare}" if re.fullmatch(r"[\d.e]+|\\frac.*", bare) else f"-({bare})"
    if _interval(bare):
        for match in re.finditer(r"[()\[\]]", bare):
            if "infty" not in bare[max(0, match.start() - 8) : match.end() + 8].replace("cup", ""):
                other = {"(": "[", ")": "]", "[": "(", "]": ")"}[match.group()]
                yield "bound", bare[: match.start()] + other + bare[match.end() :]
    members = _members(bare)
    if members:
        yield "member lost", ", ".join(members[:-1])
        yield "member added", ", ".join([*members, "9973"])
    inside = re.fullmatch(r"\(([^()]*)\)", bare)
    if inside and not _interval(bare) and inside[1].count(",") >= 1:
        parts = inside[1].split(",")
        if parts[0].strip() != parts[-1].strip():
            yield "order", f"({','.join(reversed(parts))})"
        yield "member added", f"({inside[1]}, 9973)"


def _members(bare: str) -> list[str]:
    """Members of a list of answers without brackets around it."""
    pieces, depth, start = [], 0, 0
    for i, char in enumerate(bare):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0 and bare[i + 1 : i + 3] != "\\!":
            pieces.append(bare[start:i].strip())
            start = i + 1
    pieces.append(bare[start:].strip())
    thousands = re.fullmatch(r"\d{1,3}(?:,\d{3})+", bare)
    return pieces if len(pieces) > 1 and all(pieces) and not thousands and "where" not in bare else []


def _interval(bare: str) -> bool:
    mixed = (
        re.fullmatch(r"\\?(?:left)?[(\[].*[)\]]", bare)
        and (bare[-1] in "])")
        and bare.startswith("(") != bare.endswith(")")
    )
    return bool("infty" in bare or "cup" in bare or mixed or "\\in" in bare)
