"""Grounding boxes: intersection over union under the released and under a careful reading.

Published (Visual-RFT's LISA evaluation): the first ``(x1,y1),(x2,y2)`` of digits anywhere in the output, in
thousandths of the image, against the box of the annotation's first polygon; any failure is 0. Inverted boxes and boxes
beyond the image are not refused.

Strict: the box in the answer tag, without a tag the last box, corners in order and within 0 to 1000, against the box
around all target polygons (ReasonSeg's own merging; areas labelled ``ignore`` are none).

Boxes are (x1, y1, x2, y2), left, top, right, bottom.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval_harness.graders.base import Verdict
from eval_harness.graders.tags import careful_answer, tag_flags

Box = tuple[float, float, float, float]
SCALE = 1000
"""Boxes in text are in thousandths of the image's width and height."""
RIGHT_FROM = 0.5
"""IoU from which a box is called correct. The score itself is the IoU."""

_PUBLISHED = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*,\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_NUMBER = r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*"
_DECIMAL = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")


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


def strict_box(text: str) -> Box | None:
    """The strict reading, in thousandths; None without a box, or with one that is inverted or out of range."""
    box = _stated(text)
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


def _stated(text: str) -> Box | None:
    tag = careful_answer(text)
    boxes = all_boxes(text if tag is None else tag)
    if not boxes:
        return None
    return boxes[-1] if tag is None else boxes[0]


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
        published, strict = first_box(prediction), _stated(prediction)
        try:
            wanted, wanted_strict = _golds(gold, context or {})
        except (ArithmeticError, AttributeError, KeyError, LookupError, TypeError, ValueError):
            wanted = wanted_strict = None
        score, reason = _mark(published, None, wanted, 1e-6)
        score_strict, reason_strict = _mark(strict, strict and problem(strict), wanted_strict, 0.0)
        return Verdict(
            correct=score >= RIGHT_FROM,
            correct_strict=score_strict >= RIGHT_FROM,
            extracted=_shown(published),
            reason=reason,
            score=score,
            score_strict=score_strict,
            extracted_strict=_shown(strict) if strict != published else None,
            reason_strict=reason_strict if reason_strict != reason else None,
            flags=flags,
        )


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


def _golds(gold: str, context: Mapping[str, Any]) -> tuple[Box | None, Box | None]:
    """Gold boxes of the published and of the strict rule, as fractions; None: there is none."""
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
