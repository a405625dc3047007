"""Names of classes: either name within the other (published), or the one class that the answer names (strict).

Published (Visual-RFT's classification evaluation): the first answer tag on one line; blanks and underscores out, lower
case; right if either text holds the other. So an empty tag is right for every class, ``737`` is every 737 and ``rose``
is a ``pink primrose``. No tag is wrong.

Strict: the tag over any number of lines names exactly one class of the benchmark's list, by whole words; white space,
underscores, hyphens and case aside. A maker's name and words such as ``aircraft`` or ``flower`` may be added, a remark
may follow; anything else beside the name makes another name of it. Word order and years are not forgiven.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from eval_harness.graders.base import Mark, Verdict, with_strict
from eval_harness.graders.tags import first_tag, shown, tag_flags
from eval_harness.graders.text import UNSURE, closed, plain, said

SHORT = 3
"""Characters below which an answer is flagged ``short_answer``."""
_MAX_CHARACTERS = 1000
"""Of an answer that is read word by word; a longer one is no name."""
_DROPPED = re.compile(r"[\s_\-]+")
_TOKEN = re.compile(r"[^\s_\-,;:!?()\[\]\"]+")
_BREAK = re.compile(r"[,;:!?()\[\]\".\n]|\s-+\s")
_INSIDE = re.compile(r"[\s_\-.]*")
"""What may stand between the words of a name."""
_DENIED = re.compile(r"not|never|neither|nor|unlike|\w+n't")

_FILLER_WORDS = """a an the this that these it its it's is are was be to of in on here i my image picture photo
    photograph shows show shown showing depicts depicting appears looks like seems see seen answer final correct name
    names named called known as common species breed type kind class category variety variant identified classified
    object subject specimen"""
_GENERIC_WORDS = """flower flowers blossom blossoms bloom blooms plant plants flowering pet pets animal aircraft
    airplane aeroplane plane airliner jetliner jet fighter passenger commercial car cars vehicle automobile"""
_HARMLESS = frozenset(f"{_FILLER_WORDS} {_GENERIC_WORDS}".split())
_REASONS = frozenset({"because", "since", "as", "which", "with", "based", "due", "given", "but", "rather", "instead"})
"""Words behind a name that begin a remark."""
_CAT_WORDS, _DOG_WORDS = "cat cats kitten feline", "dog dogs puppy canine"
_CATS = """abyssinian bengal birman bombay britishshorthair egyptianmau mainecoon persian ragdoll russianblue siamese
    sphynx"""
_DOGS = """americanbulldog americanpitbullterrier bassethound beagle boxer chihuahua englishcockerspaniel
    englishsetter germanshorthaired greatpyrenees havanese japanesechin keeshond leonberger miniaturepinscher
    newfoundland pomeranian pug saintbernard samoyed scottishterrier shibainu staffordshirebullterrier wheatenterrier
    yorkshireterrier"""
_ADDED = {
    r"7[0-7]7\d00|boeing717": "boeing",
    r"a3[0-9]{2}.*": "airbus",
    r"an12": "antonov",
    r"bae(?:146|125).*": "british aerospace bae systems hawker siddeley",
    r"beechcraft1900": "beech raytheon",
    r"modelb200": "beech beechcraft raytheon super king air",
    r"c130": "lockheed martin hercules",
    r"c47": "douglas skytrain dakota",
    r"crj\d+": "bombardier canadair",
    r"challenger600|globalexpress": "bombardier canadair",
    r"cessna172": "skyhawk",
    r"cessna208": "caravan",
    r"cessna5[26][05]": "citation",
    r"dc\d+|md\d+": "mcdonnell douglas",
    r"dc3": "dakota",
    r"dh82": "de havilland tiger moth",
    r"dhc[168].*": "de havilland canada",
    r"dhc8.*": "bombardier dash 8",
    r"dhc6": "twin otter",
    r"dhc1": "chipmunk",
    r"dr400": "robin",
    r"dornier328": "fairchild",
    r"e1[79][05]|erj1[34]5|emb120": "embraer",
    r"emb120": "brasilia",
    r"f16.*": "general dynamics lockheed martin fighting falcon",
    r"f/a18": "mcdonnell douglas boeing hornet",
    r"falcon\d+": "dassault",
    r"gulfstream.*": "aerospace",
    r"hawkt1": "bae british aerospace hawker siddeley systems",
    r"il76": "ilyushin",
    r"l1011": "lockheed tristar",
    r"metroliner": "fairchild swearingen",
    r"pa28": "piper cherokee",
    r"sr20": "cirrus",
    r"spitfire": "supermarine",
    r"tornado": "panavia",
    r"tu1\d4": "tupolev",
    r"yak42": "yakovlev",
    r"germanshorthaired": "pointer",
    r"wheatenterrier": "soft coated",
    "|".join(_CATS.split()): _CAT_WORDS,
    "|".join(_DOGS.split()): _DOG_WORDS,
}
"""Class, hyphens and blanks left out -> words of its maker and kind that may stand beside it."""


def published_name(name: str) -> str:
    """A name as the published rule compares it: no blanks, no underscores, lower case."""
    return name.replace(" ", "").replace("_", "").lower()


def strict_name(name: str) -> str:
    """A name as the strict rule compares it."""
    return _DROPPED.sub("", closed(plain(name)).replace(". ", " ")).casefold()


def holds_either_way(gold: str, answer: str) -> bool:
    """The published comparison: either name, normalised, within the other."""
    gold, answer = published_name(gold), published_name(answer)
    return gold in answer or answer in gold


@lru_cache(256)
def _index(classes: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """Names as they are compared -> names, and the most words of one."""
    index = {strict_name(name): name for name in reversed(classes)}
    index.pop("", None)
    return index, max((len(_TOKEN.findall(name)) for name in index.values()), default=0) + 2


@lru_cache(4096)
def _added(name: str) -> frozenset[str]:
    """Words that may stand beside a class's name."""
    own = [words for pattern, words in _ADDED.items() if re.fullmatch(pattern, name)]
    words = " ".join(own or (_CAT_WORDS, _DOG_WORDS))
    return _HARMLESS | frozenset(words.split())


@dataclass(frozen=True)
class _Mention:
    """A class named by the words from ``start`` up to ``stop``."""

    key: str
    start: int
    stop: int


def named_class(text: str, classes: Sequence[str]) -> tuple[str | None, str]:
    """The one class that an answer names, and how or why not.

    Args:
        text: the answer.
        classes: names it may be one of.
    """
    index, longest = _index(tuple(classes))
    text = closed(plain(text[: 4 * _MAX_CHARACTERS]))
    if (whole := strict_name(text)) in index:
        return index[whole], "the name itself"
    if len(text) > _MAX_CHARACTERS:
        return None, "too long for a name"
    found = [(m.start(), m.end(), m.group().casefold().strip(".'")) for m in _TOKEN.finditer(text)]
    found = [word for word in found if word[2]]
    gaps = [text[a[1] - _closing(text, a) : b[0]] for a, b in zip(found, found[1:], strict=False)]
    words = [word for _, _, word in found]
    mentions = _mentions(words, gaps, index, longest)
    denied = {mention: _denial(words, mention.start) for mention in mentions}
    stated = [mention for mention in mentions if not denied[mention]]
    names = sorted({mention.key for mention in stated})
    if len(names) > 1:
        return None, f"several classes are named: {', '.join(index[name] for name in names)}"
    if not names:
        return None, "only what it is not is said" if mentions else "no class of the list"
    first = stated[0]
    if UNSURE.search(text[: found[first.start][0]]):
        return None, "it is not sure"
    skipped = {i for mention in mentions for i in range(mention.start - denied[mention], mention.stop)}
    beside = [i for i in range(first.start) if i not in skipped]
    if not _BREAK.search(gaps[first.stop - 1]) if first.stop < len(words) else False:
        for i in range(first.stop, len(words)):
            if i in skipped:
                continue
            if words[i] in _REASONS:
                break
            beside.append(i)
            if i < len(gaps) and _BREAK.search(gaps[i]):
                break
    allowed = _added(first.key)
    other = [words[i] for i in beside if words[i] not in allowed and not (mentions[1:] and words[i] in _REASONS)]
    if other:
        return None, f"not a class of the list: “{' '.join(other)}” is added"
    return index[first.key], "the name with words that add nothing"


def _closing(text: str, word: tuple[int, int, str]) -> int:
    """How many full stops and quotes end a word: they belong to what follows it."""
    raw = text[word[0] : word[1]]
    return len(raw) - len(raw.rstrip(".'"))


def _mentions(words: list[str], gaps: list[str], index: dict[str, str], longest: int) -> list[_Mention]:
    """Names of classes by whole words, the longest first at every place."""
    found, i = [], 0
    while i < len(words):
        for j in range(min(len(words), i + longest), i, -1):
            key = "".join(words[i:j])
            if key in index and all(_INSIDE.fullmatch(gap) for gap in gaps[i : j - 1]):
                found.append(_Mention(key, i, j))
                i = j
                break
        else:
            i += 1
    return found


def _denial(words: list[str], place: int) -> int:
    """How many words before a place deny what stands there; 0: none."""
    i = place
    while i > 0 and words[i - 1] in ("a", "an", "the", "be", "really", "any", "of", "than"):
        i -= 1
    if i > 0 and _DENIED.fullmatch(words[i - 1]):
        return place - i + 1
    pair = tuple(words[max(0, i - 1) : i + 1])
    return place - i + 1 if pair in (("instead", "of"), ("rather", "than")) else 0


def mark(gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Mark:
    """The strict mark of an answer.

    Args:
        gold: the class.
        prediction: what the model wrote.
        context: ``classes``, the names it may be one of (without them the gold alone), and ``finish_reason``.
    """
    context = context or {}
    wanted = strict_name(gold)
    answer = said(prediction, context.get("finish_reason"))
    text = shown(answer.text) if answer.tagged else ""
    if not wanted:
        return Mark(False, "bad_gold", text, "", "the gold is empty")
    if not answer.tagged or not answer.text:
        return Mark(False, "no_answer", "", gold, answer.why or "there is no answer tag")
    listed = context.get("classes")
    usable = isinstance(listed, (list, tuple)) and all(isinstance(name, str) for name in listed)
    classes = tuple(listed) if usable else ()
    name, why = named_class(answer.text, classes if gold in classes else (gold, *classes))
    if name is not None:
        right = strict_name(name) == wanted
        return Mark(right, "match" if right else "mismatch", text, gold, f"{name}: {why}")
    if not strict_name(answer.text):
        return Mark(False, "no_answer", "", gold, "nothing is named")
    stated = why.startswith(("no class", "not a class", "too long"))
    return Mark(False, "mismatch" if stated else "no_answer", text if stated else "", gold, f"{text}: {why}")


class ClassNameGrader:
    """Both rules for a class name; flags ``empty_answer`` and ``short_answer`` (one or two characters)."""

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules."""
        answer = first_tag(prediction)
        flags = tag_flags(prediction)
        if answer is not None and not published_name(answer) and "empty_answer" not in flags:
            flags += ("empty_answer",)
        if answer is not None and 0 < len(published_name(answer)) < SHORT:
            flags += ("short_answer",)
        strict = mark(gold, prediction, context)
        if strict.reason == "bad_gold":
            return Verdict(False, False, None, "bad_gold", flags=flags)
        correct = answer is not None and holds_either_way(gold, answer)
        reason = "no_answer" if answer is None else "match" if correct else "mismatch"
        extracted = None if answer is None else shown(answer.strip())
        return with_strict(Verdict(correct, False, extracted, reason, flags=flags), strict)
