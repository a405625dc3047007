"""ReasonSeg (Lai et al. 2024): photographs with instructions and polygons, as folders of ``.jpg`` and ``.json`` pairs.

An annotation is an object with ``text`` (instructions), ``is_sentence`` and ``shapes``: polygons with a label
(``target``; ``ignore`` areas do not count; ``flag`` means nothing). Points are pixels of the upright image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_harness.errors import UserError
from eval_harness.graders.box import polygon_box
from eval_harness.images import ImageError, read_file, size_of
from eval_harness.outside import parse_json
from eval_harness.sources import Local

FOLDER = "reasonseg"
OBTAIN = (
    "ReasonSeg is linked from the README of github.com/dvlab-research/LISA; unpack it so that DIR/reasonseg/train, val "
    "and test each hold 0.jpg and 0.json side by side."
)
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ReasonSeg(Local):
    """One row per image, or per instruction, of some of the splits.

    A row holds ``split``, ``instruction``, ``image`` (relative to the folder), ``gold`` (box of the first polygon as
    ``(x1,y1),(x2,y2)`` in thousandths, ``""`` where there is none), ``gold_box`` (the same as fractions, or None),
    ``width`` and ``height`` in pixels (None: the image is unreadable) and ``polygons``, a list of label and points.
    """

    splits: tuple[str, ...] = ()
    every_instruction: bool = False
    """A row per instruction, images without a gold left out (training); False: the first instruction of each image."""
    num_images: int | None = None
    """Expected images over all splits, checked on loading; None: the caller checks."""

    def describe(self) -> str:
        """Name for lists and records."""
        return f"local ({self.local_file}/{{{','.join(self.splits)}}})"

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """Rows in the order of the splits, by file name within a split, and a name for where they came from.

        Raises:
            UserError: no data root, a split's folder is missing or empty, the number of images is off, or an
                annotation is damaged; the message names the file.
        """
        found = []
        for split in self.splits:
            folder = None if data_root is None else Path(data_root) / self.local_file / split
            if folder is None or not folder.is_dir():
                raise UserError(
                    f"{self.name} needs --data-root DIR (under make: EVAL_DATA_ROOT=DIR) with the folder "
                    f"{self.local_file}/{split}. {self.obtain}"
                )
            found += [(split, *pair) for pair in _pairs(folder)]
        if self.num_images not in (None, len(found)):
            raise UserError(
                f"{self.name}: {self.describe()} holds {len(found)} images, expected {self.num_images}. Unpack the "
                "data set again."
            )
        return [row for each in found for row in self._of_image(*each)], self.describe()

    def _of_image(self, split: str, path: Path, image: Path) -> list[dict[str, Any]]:
        annotation = read_annotation(path)
        try:
            width, height = size_of(read_file(image, image.name), image.name)
        except ImageError:
            width = height = None  # a bad image costs its item: the run's reader will say what is wrong with it
        polygons = annotation["polygons"]
        box = list(polygon_box(polygons[0]["points"], width, height)) if polygons and width and height else None
        row = {
            "split": split,
            "image": f"{split}/{image.name}",
            "gold": "" if box is None else thousandths(box),
            "gold_box": box,
            "width": width,
            "height": height,
            "polygons": polygons,
        }
        if not self.every_instruction:
            return [row | {"instruction": annotation["text"][0]}]
        return [row | {"instruction": text} for text in annotation["text"]] if box else []


def read_annotation(path: Path) -> dict[str, Any]:
    """One annotation as ``{"text": [instruction, ...], "polygons": [{"label", "points": [[x, y], ...]}, ...]}``.

    Read as UTF-8, else as Windows-1252, in which some of the published files are.

    Raises:
        UserError: neither encoding fits, no JSON object, no instruction, or a polygon whose points are no numbers.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError as error:
            raise _damaged(path, f"neither UTF-8 nor Windows-1252 (byte {error.start})") from None
    try:
        raw = parse_json(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"not valid JSON ({error.msg}, line {error.lineno})") from None
    except ValueError as error:  # a number of thousands of digits, too many brackets
        raise _damaged(path, f"JSON that cannot be read ({error})") from None
    if not isinstance(raw, dict):
        raise _damaged(path, f"a JSON object was expected, got {type(raw).__name__}")
    instructions = raw.get("text")
    if isinstance(instructions, str):
        instructions = [instructions]
    if not isinstance(instructions, list) or not instructions:
        raise _damaged(path, "no instruction (text)")
    if not all(isinstance(each, str) and each.strip() for each in instructions):
        raise _damaged(path, "an instruction (text) is empty or no text")
    shapes = raw.get("shapes") or []
    if not isinstance(shapes, list):
        raise _damaged(path, "shapes is no list")
    return {"text": instructions, "polygons": [_polygon(path, i, shape) for i, shape in enumerate(shapes)]}


def thousandths(box: Sequence[float]) -> str:
    """A box of fractions as ``(x1,y1),(x2,y2)`` in thousandths, cut to whole numbers as in the release."""
    x1, y1, x2, y2 = (int(value * 1000) for value in box)
    return f"({x1},{y1}),({x2},{y2})"


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Annotations with their images; the image of an annotation without one is named although it does not exist."""
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}
    annotations = {path.stem: path for path in sorted(folder.glob("*.json"))}
    alone = sorted(set(images) - set(annotations))
    if alone:
        raise UserError(f"{folder}: {images[alone[0]].name} has no annotation beside it. Unpack the data set again.")
    if not annotations:
        raise UserError(f"{folder} holds no annotations (*.json). {OBTAIN}")
    return [(path, images.get(stem, path.with_suffix(".jpg"))) for stem, path in annotations.items()]


def _polygon(path: Path, index: int, shape: Any) -> dict[str, Any]:
    try:
        points = [[float(x), float(y)] for x, y in shape["points"]]
        label = str(shape["label"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _damaged(path, f"shape {index} lacks a label or points [x, y]") from None
    if not points or not all(math.isfinite(value) for point in points for value in point):
        raise _damaged(path, f"shape {index} has no points, or one that is no number")
    return {"label": label, "points": points}


def _damaged(path: Path, problem: str) -> UserError:
    name = "/".join(path.parts[-3:])
    return UserError(f"the annotation {name} is damaged: {problem}. Unpack the data set again or repair the file.")
