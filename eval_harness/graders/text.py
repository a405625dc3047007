"""Outside text in one spelling, and where in it the answer stands: what every strict rule begins with."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from eval_harness.graders.tags import CLOSE, OPEN, careful_answer

# --- spelling ------------------------------------------------------------------------------------------------------

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63"
"""Hyphens, dashes and minus signs beside the ASCII one."""
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff\u00ad"
"""Characters without a width: joiners, marks of direction, soft hyphens."""
_SINGLE_QUOTES = "\u2018\u2019\u201a\u201b\u2032"
_DOUBLE_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u300c\u300d"
UPRIGHT = r"text|textrm|textnormal|textup|mathrm|mbox|hbox|operatorname\*?|rm|textsf|mathsf|texttt"
"""LaTeX commands for upright words."""
SLANTED = r"mathbf|boldsymbol|bm|mathit|mathcal|mathbb|textbf|textit|emph|bf|it|mathring|underline"
"""LaTeX commands that only change how their contents look."""

_BLANKS = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_LETTER_RANGES = ((0xFF01, 0xFF5E), (0x24B6, 0x24E9), (0x1D400, 0x1D6A3))  # full width, in circles, bold and the like


def _compatible() -> dict[int, str]:
    pairs = ((code, unicodedata.normalize("NFKC", chr(code))) for a, b in _LETTER_RANGES for code in range(a, b + 1))
    return {code: plain for code, plain in pairs if len(plain) == 1 and plain.isascii()}


_SIGNS = (
    _compatible()
    | {ord(sign): "-" for sign in DASHES}
    | {ord(sign): "" for sign in INVISIBLE}
    | {ord(sign): " " for sign in _BLANKS}
    | {ord(sign): "'" for sign in _SINGLE_QUOTES}
    | {ord(sign): '"' for sign in _DOUBLE_QUOTES}
    | {ord("\u3001"): ",", ord("\u3002"): ".", ord("\u3010"): "[", ord("\u3011"): "]"}
)
_MARKUP = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"</?(?:b|i|u|em|strong|code|p|span|box|ref)>|<\|?/?(?:box|object_ref|quad)_(?:start|end)\|?>|<br ?/?>", " "),
        (r"\\[()\[\]](?![A-Za-z])|(?<!\\)\$", " "),
        (r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\([%&#_$])", r"\1"),
        (r"(?m)^[ \t]*#{1,6}[ \t]+", ""),
        (r"```[a-z]*|`+|\*+", ""),
        (r"(?<![^\W_])_+|_+(?![^\W_])", ""),
    )
]
_WRAPPER = re.compile(
    rf"\\(?:{UPRIGHT}|{SLANTED}|boxed|fbox|left|right)(?![A-Za-z])\s*(?:\{{([^{{}}]*)\}}|(?=[()\[\]]))"
)
CLOSING = " \t\n.,;:!"
"""Punctuation and blanks that close an answer and are no part of it."""


def plain_signs(text: str) -> str:
    """The text with one dash, one blank, ASCII quotes and letters, and nothing invisible."""
    return text if text.isascii() else text.translate(_SIGNS)


def plain(text: str) -> str:
    """A text in words without markup: Markdown, LaTeX's wrappers, tags of HTML; blanks single, lines kept apart."""
    text = plain_signs(text)
    if "\\" in text:
        for _ in range(4):
            text, count = _WRAPPER.subn(lambda m: m.group(1) or "", text)
            if not count:
                break
    for pattern, to in _MARKUP:
        text = pattern.sub(to, text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def closed(text: str) -> str:
    """The text without quotes around it and punctuation behind it."""
    while (shorter := text.strip(CLOSING + "'\"").removesuffix("</s>")) != text:
        text = shorter
    return text


# --- where the answer stands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a completion says outside of its thoughts."""

    text: str
    tagged: bool = False
    """It stood in the answer tag."""
    why: str = ""
    """Why nothing is said; the text is empty then."""


_TAGS = re.compile(rf"<think>|</think>|{OPEN}")


def said(prediction: str, finish_reason: str | None = None) -> Said:
    """The answer tag's contents, or without a tag the text, both outside of thoughts.

    The first tag outside of a thought counts: a pretrained model may go on with a question of its own. A tag that is
    not closed reaches to the end, unless the text was cut. In a thought that is not closed nothing is said, but for a
    tag in which the text ends.

    Args:
        prediction: the completion.
        finish_reason: ``length`` says that it was cut.
    """
    text = prediction
    if "think>" in text:
        text, closed_thought = _outside_thoughts(text)
        if not closed_thought:
            end = text.rstrip()
            start = end.rfind(OPEN)
            if start < 0 or not end.endswith(CLOSE) or end.find(CLOSE, start) != len(end) - len(CLOSE):
                return Said("", why="the thinking is not closed")
            text = end[start:]
    tag = careful_answer(text)
    if tag is None and finish_reason != "length" and OPEN in text:
        tag = text.partition(OPEN)[2].strip()
    if tag is not None:
        return Said(tag, True, "" if tag else "the answer tag is empty")
    return Said(text) if text.strip() else Said("", why="there is no text")


def _outside_thoughts(text: str) -> tuple[str, bool]:
    """The text behind the thought before its first answer tag, and whether the thought is closed; else all of it."""
    first = re.search("</?think>", text)
    thinking = first is not None and first.group() == "</think>"  # the prompt has opened it
    start, opened, answered = 0, len(text), False
    for found in _TAGS.finditer(text):
        tag = found.group()
        if tag == "</think>":
            thinking, start = False, found.end()
        elif tag == OPEN:
            answered = not thinking
        elif not thinking:
            thinking, opened = True, found.start()
        if answered:
            return text[start:], True
    if thinking and start and text[start:opened].strip():
        return text[start:opened], True
    return (text, False) if thinking else (text[start:], True)


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{)|\\(?:boxed|fbox)\s*(?P<bare>[0-9A-Za-z]+)|\\.|[{}]", re.DOTALL)
EMPTY = re.compile(
    r"(?:\\(?:text|boxed|fbox)\s*\{\s*\}|\\[ ,;:!]|[\s${}.?~]|\\l?dots"
    r"|(?:your |final )*answer|\\text\{\s*answer\s*\})*"
)
"""Contents of a box that state nothing."""
PHRASE = re.compile(
    r"(?:\banswers?\**\s*(?:to (?:the|this) (?:problem|question) )?(?:is|are|equals|would be|will be|=|:)|####)"
    r"\s*:?\s*\**\s*:?"
    r"|^[#* \t]*(?:final )?answer[* \t:]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""What announces an answer."""
_NEXT = re.compile(r"\n[ \t#*]*(?:Human|User|Problem|Question|Q)[ \t]*\d*[ \t]*(?::|\.)")
UNSURE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|unsure|not (?:quite |really )?sure|guess(?:ing)?|don't know"
    r"|(?:cannot|can't|unable to) (?:tell|say|determine|decide|see))\b",
    re.IGNORECASE,
)
"""Words before an answer that take it back."""
NEGATED = (
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bcannot be|\brather than|\binstead of|\bexcept|\bunlike"
    r"|\brul(?:e[sd]?|ing) out|\beliminat(?:e[sd]?|ing))"
)
"""Words before an answer that deny it."""


def own_part(text: str) -> str:
    """The text up to where a pretrained model goes on with a question of its own, if it has answered before."""
    following = _NEXT.search(text)
    before = text[: following.start()] if following else ""
    return before if "\\boxed{" in before or PHRASE.search(before) else text


def boxes(text: str, longest: int = 2001) -> list[tuple[int, int, str]]:
    """Outermost complete boxes (start, end, contents up to ``longest`` characters), in one pass."""
    found: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int, bool]] = []
    if "\\boxed" not in text and "\\fbox" not in text:
        return found
    for match in _BOX.finditer(text):
        piece = match.group()
        if match["bare"]:
            found.append((match.start(), match.end(), match["bare"]))
        elif piece == "{" or match.group(1):
            open_braces.append((match.start(), match.end(), piece != "{"))
        elif piece == "}" and open_braces:
            start, inside, is_box = open_braces.pop()
            if is_box:
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end(), text[inside : match.start()][:longest]))
    return found
