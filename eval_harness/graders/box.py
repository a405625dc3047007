"""Grounding boxes: intersection over union under the released and under a careful reading.

Published (Visual-RFT's LISA evaluation): the first ``(x1,y1),(x2,y2)`` of digits anywhere in the output, in
thousandths of the image, against the box of the annotation's first polygon; any failure is 0. Inverted boxes and boxes
beyond the image are not refused.

Strict: the one box that is stated (in the answer tag; without a tag the last), corners in order and within 0 to 1000,
against the box around all target polygons (ReasonSeg's own merging; areas labelled ``ignore`` are none). It may be
written as two corners, as a list of four numbers or as JSON. Coordinates are thousandths; four numbers from 0 to 1 with
a decimal point among them are fractions of the image. Two different boxes offered are no answer.

Boxes are (x1, y1, x2, y2), left, top, right, bottom.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval_harness.graders.base import Mark, Verdict, with_strict
from eval_harness.graders.tags import shown, tag_flags
from eval_harness.graders.text import NEGATED, own_part, plain_signs, said

Box = tuple[float, float, float, float]
SCALE = 1000
"""Boxes in text are in thousandths of the image's width and height."""
RIGHT_FROM = 0.5
"""IoU from which a box is called correct. The score itself is the IoU."""

_PUBLISHED = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*,\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_NUMBER = r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*"
_DECIMAL = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
_ANY = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf(?:inity)?|nan)(?![a-z])"
_ANY = rf"\s*((?i:{_ANY}))\s*"
_PAIR = re.compile(rf"\({_ANY},{_ANY}\)|\[{_ANY},{_ANY}\]")
_LIST = re.compile(rf"[\[(]{_ANY}[,\s]{_ANY}[,\s]{_ANY}[,\s]{_ANY}[\])]")
_BARE = re.compile(rf"{_ANY}[,\s]{_ANY}[,\s]{_ANY}[,\s]{_ANY}")
_SIDES = (("x_?1|x_?min|left", "y_?1|y_?min|top"), ("x_?2|x_?max|right", "y_?2|y_?max|bottom"))
_NAMED = re.compile(
    r"[\s,;]*".join(
        rf"[\"']?\b(?:{name})\b[\"']?\s*[:=]\s*\(?{_ANY}(?![0-9.])" for corner in _SIDES for name in corner
    ),
    re.IGNORECASE,
)
_BETWEEN_PAIRS = re.compile(r"[\s,;]*(?:(?:and|to)\b|-+>?)?[\s,;]*")
_OFFERED = re.compile(r"[\s,;|&\[\]{}()]*(?:\b(?:and|or)\b)?[\s,;|&\[\]{}()]*", re.IGNORECASE)
_DENIED = re.compile(rf"{NEGATED}\W*(?:(?:at|in|the|an?|box|is)\W+)*$", re.IGNORECASE)
_MAX_BOXES = 64


def area(box: Box) -> float:
    """Width times height; negative for a box inverted along one axis."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Common area of two boxes, 0.0 if there is none."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def iou(a: Box, b: Box, epsilon: float = 0.0) -> float:
    """Intersection over (union + epsilon), in [0, 1]; 0.0 for boxes that do not meet, whatever their areas."""
    common = intersection(a, b)
    return common / (area(a) + area(b) - common + epsilon) if common else 0.0


def giou(a: Box, b: Box) -> float:
    """Generalised IoU (Rezatofighi et al. 2019): IoU - (C - U) / C with C the area of the box around both.

    In [-1, 1] for boxes with ordered corners. As released, inverted boxes go in as they are, which may give any value;
    C = 0 gives the IoU.
    """
    union = area(a) + area(b) - intersection(a, b)
    around = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return iou(a, b) - (around - union) / around if around else iou(a, b)


def polygon_box(points: Sequence[Sequence[float]], width: float, height: float) -> Box:
    """The box around points in pixels, as fractions of the image's width and height."""
    xs, ys = zip(*((float(x), float(y)) for x, y in points), strict=True)
    return min(xs) / width, min(ys) / height, max(xs) / width, max(ys) / height


def target_polygons(polygons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The polygons that ReasonSeg counts as target: neither ``flag`` nor with ``ignore`` in the label."""
    labels = (str(polygon["label"]).lower() for polygon in polygons)
    return [p for p, label in zip(polygons, labels, strict=True) if label != "flag" and "ignore" not in label]


def merged_box(boxes: Sequence[Box]) -> Box:
    """The box around boxes with ordered corners."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def first_box(text: str) -> Box | None:
    """The published reading, in thousandths; None without a box, or with numbers beyond what a float holds."""
    found = _PUBLISHED.search(text)
    return None if found is None else _numbers(found)


def all_boxes(text: str) -> list[Box]:
    """Every box of a text, in thousandths, decimals and signs included."""
    return [box for box in map(_numbers, _DECIMAL.finditer(text)) if box is not None]


def strict_box(text: str, finish_reason: str | None = None) -> Box | None:
    """The strict reading, in thousandths; None without a box, or with one that is inverted or out of range.

    Args:
        text: the completion.
        finish_reason: ``length`` says that it was cut: then only a box in the answer tag counts.
    """
    box, _ = stated_box(text, finish_reason)
    return None if box is None or problem(box) else box


def problem(box: Box) -> str | None:
    """What is wrong with a box in thousandths: ``inverted_box``, ``out_of_range`` or nothing (None)."""
    if box[0] > box[2] or box[1] > box[3]:
        return "inverted_box"
    return None if min(box) >= 0 and max(box) <= SCALE else "out_of_range"


def fractions(box: Box) -> Box:
    """Thousandths as fractions of the image."""
    x1, y1, x2, y2 = (value / SCALE for value in box)
    return x1, y1, x2, y2


def _numbers(found: re.Match[str]) -> Box | None:
    x1, y1, x2, y2 = map(float, found.groups())
    # beyond this the products of coordinates overflow
    return (x1, y1, x2, y2) if max(map(abs, (x1, y1, x2, y2))) < 1e100 else None


@dataclass(frozen=True)
class _Place:
    """A box, as it is written, from ``start`` up to ``end`` of a text; None: one without finite numbers."""

    box: Box | None
    start: int
    end: int


def stated_box(prediction: str, finish_reason: str | None = None) -> tuple[Box | None, str]:
    """The one box that a completion states, in thousandths, in whatever order its corners are; None and why not."""
    answer = said(prediction, finish_reason)
    if not answer.text:
        return None, answer.why
    if not answer.tagged and finish_reason == "length":
        return None, "cut at its limit without a stated answer"
    text = plain_signs(answer.text if answer.tagged else own_part(answer.text))
    places = _places(text)
    stated = [place for place in places if not _DENIED.search(text[max(0, place.start - 40) : place.start])]
    if not stated:
        return None, "only what it is not is said" if places else "no box"
    if not answer.tagged:
        stated = _offered_last(text, stated)
    boxes = list(dict.fromkeys(place.box for place in stated))
    if len(boxes) > 1:
        return None, "several boxes are offered"
    return boxes[0], "" if boxes[0] else "a coordinate is no finite number"


def _offered_last(text: str, places: list[_Place]) -> list[_Place]:
    """The last box of a text with those that are offered beside it."""
    first = len(places) - 1
    while first > 0 and _OFFERED.fullmatch(text[places[first - 1].end : places[first].start]):
        first -= 1
    return places[first:]


def _places(text: str) -> list[_Place]:
    """Boxes in every spelling that is known, in order."""
    found = [
        _place(match.groups(), match.start(), match.end())
        for pattern in (_LIST, _NAMED)
        for match in pattern.finditer(text)
    ]
    run: list[re.Match[str]] = []
    for pair in [*_PAIR.finditer(text), None]:
        if run and (pair is None or not _BETWEEN_PAIRS.fullmatch(text[run[-1].end() : pair.start()])):
            if len(run) % 2 == 0:  # a lone point is no box, nor are three
                found += [
                    _place((*one.groups(), *other.groups()), one.start(), other.end())
                    for one, other in zip(run[::2], run[1::2], strict=True)
                ]
            run = []
        if pair is not None:
            run.append(pair)
    if not found and len(text) < 200 and (bare := _BARE.fullmatch(text.strip(" \t\n.;`$"))):
        found = [_place(bare.groups(), 0, len(text))]
    return sorted(found, key=lambda place: place.start)[-_MAX_BOXES:]


def _place(groups: Sequence[str | None], start: int, end: int) -> _Place:
    written = [group for group in groups if group is not None]
    x1, y1, x2, y2 = map(float, written)
    if not max(map(abs, (x1, y1, x2, y2))) < 1e100:  # beyond this the products of coordinates overflow
        return _Place(None, start, end)
    if all(0 <= side <= 1 for side in (x1, y1, x2, y2)) and any("." in side for side in written):
        return _Place((x1 * SCALE, y1 * SCALE, x2 * SCALE, y2 * SCALE), start, end)
    return _Place((x1, y1, x2, y2), start, end)


def _shown(box: Box | None) -> str | None:
    return None if box is None else "({:g},{:g}),({:g},{:g})".format(*box)


class BoxGrader:
    """IoU of a box under both rules; ``correct`` is an IoU of at least 0.5.

    The gold is a box in thousandths, whole or decimal. The context may say more: ``gold_box`` ``[x1, y1, x2, y2]`` as
    fractions (published rule); ``polygons``, a list of ``{"label", "points"}`` in pixels, with ``width`` and
    ``height``: the box of the first one is the published gold where there is no ``gold_box``, the box around the
    targets is the strict gold. A gold that is no box is the verdict ``bad_gold``, score 0.
    """

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules; ``score`` and ``score_strict`` are the IoUs."""
        flags = tag_flags(prediction)
        if len(all_boxes(prediction)) > 1:
            flags += ("several_boxes",)
        box = first_box(prediction)
        wanted, _ = _golds(gold, context)
        score, reason = _mark(box, None, wanted, 1e-6)
        published = Verdict(
            correct=score >= RIGHT_FROM,
            correct_strict=False,
            extracted=_shown(box),
            reason=reason,
            score=score,
            flags=flags,
        )
        return with_strict(published, mark(gold, prediction, context))


def mark(gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Mark:
    """The strict mark of an answer; its score is the IoU.

    Args:
        gold: a box in thousandths, where the context has no polygons.
        prediction: what the model wrote.
        context: as :class:`BoxGrader` takes it, and ``finish_reason``, where known.
    """
    _, wanted = _golds(gold, context)
    box, why = stated_box(prediction, (context or {}).get("finish_reason"))
    score, reason = _mark(box, box and problem(box), wanted, 0.0)
    shown_gold = (
        shown(gold) if wanted is None else "({:.4g},{:.4g}),({:.4g},{:.4g})".format(*(SCALE * x for x in wanted))
    )
    if wanted is None:
        why = "there is no gold box"
    elif box is not None:
        why = f"IoU {score:.4f}" if reason in ("match", "mismatch") else reason.replace("_", " ")
    return Mark(score >= RIGHT_FROM, reason, _shown(box) or "", shown_gold, why, score)


def _mark(box: Box | None, wrong: str | None, wanted: Box | None, epsilon: float) -> tuple[float, str]:
    """IoU of a box in thousandths with a gold of fractions, and the reason."""
    if wanted is None:
        return 0.0, "bad_gold"
    if box is None:
        return 0.0, "no_answer"
    if wrong:
        return 0.0, wrong
    score = iou(fractions(box), wanted, epsilon)
    return score, "match" if score >= RIGHT_FROM else "mismatch"


def _golds(gold: str, context: Mapping[str, Any] | None) -> tuple[Box | None, Box | None]:
    """Gold boxes of the published and of the strict rule, as fractions; None: there is none."""
    try:
        return _read_golds(gold, context or {})
    except (ArithmeticError, AttributeError, KeyError, LookupError, TypeError, ValueError):
        return None, None


def _read_golds(gold: str, context: Mapping[str, Any]) -> tuple[Box | None, Box | None]:
    polygons, width, height = context.get("polygons"), context.get("width"), context.get("height")
    sized = bool(polygons) and bool(width) and bool(height)
    if context.get("gold_box") is not None:
        x1, y1, x2, y2 = map(float, context["gold_box"])
        published = (x1, y1, x2, y2)
    elif sized:
        published = polygon_box(polygons[0]["points"], width, height)
    else:
        (box,) = all_boxes(gold) or [None]
        published = None if box is None else fractions(box)
    strict = published
    if sized:
        targets = [polygon_box(polygon["points"], width, height) for polygon in target_polygons(polygons)]
        strict = merged_box(targets) if targets else None
    return _usable(published), _usable(strict)


def _usable(box: Box | None) -> Box | None:
    """The box, None if its corners are no numbers or out of order."""
    if box is None or not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
        return None
    return box
