"""Mask IoU of LISA: a predicted box becomes a mask, the mask is compared with the annotation's polygons.

    python -m eval_harness.masks RUN --sam facebook/sam-vit-huge

A second pass over a finished run, so that scoring masks needs no language model and no graders. It leaves
``masks/<benchmark>.jsonl`` in the run's folder, one :class:`MaskMark` per completion, and adds ``mask_iou`` and
``mask_iou_strict`` to the ``extra`` estimates of the benchmark and of its groups (the paper's gIoU_test is ``mask_iou``
of ``test``). Killed and started again, it computes only what is missing.

Published: SAM's mask for the first box of the completion against the image's first polygon. Strict: for the box the
strict rule reads, against all target polygons together, ``ignore`` areas left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.graders.box import SCALE, first_box, strict_box, target_polygons
from eval_harness.images import ImageError, decode
from eval_harness.locks import locked
from eval_harness.markup import shown_streams
from eval_harness.models import NO_CODE, ONLY_WEIGHTS
from eval_harness.progress import progress_bar
from eval_harness.records import BenchmarkResult, Item, RunRecord, Sample
from eval_harness.sources import default_data_root, default_image_root
from eval_harness.stats import mean_of_items

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""
Polygons = Sequence[Mapping[str, Any]]
"""``{"label": str, "points": [[x, y], ...]}`` in pixels."""
_MARKS = ("mask_iou", "mask_iou_strict")


class Segmenter(Protocol):
    """What turns boxes into masks."""

    name: str
    """Model or rule, for the record."""

    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> list[np.ndarray]:
        """One boolean mask [height, width] per box."""
        ...


class SamSegmenter:
    """Segment Anything (Kirillov et al. 2023) with a box as its prompt and a single mask as its output.

    An image is embedded once for all its boxes. The paper's gIoU is with ViT-H, ``facebook/sam-vit-huge``.

    Raises:
        UserError: no such model, or another kind of model.
    """

    def __init__(self, model: str, revision: str | None = None, device: str | None = None) -> None:
        import torch
        from transformers import SamModel, SamProcessor

        self.name = model
        self._torch = torch
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._processor = SamProcessor.from_pretrained(model, revision=revision, **NO_CODE)
            self._model = SamModel.from_pretrained(model, revision=revision, **ONLY_WEIGHTS)
            self._model.to(self._device).eval()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"--sam {model}: not a SAM checkpoint, or neither cached nor reachable "
                f"({str(error).splitlines()[0][:200]}). Give a folder or an id such as facebook/sam-vit-huge."
            ) from None

    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> list[np.ndarray]:
        """One boolean mask [height, width] per box."""
        if not boxes:
            return []
        torch = self._torch
        inputs = self._processor(image, input_boxes=[[list(map(float, box)) for box in boxes]], return_tensors="pt")
        with torch.inference_mode():
            embedding = self._model.get_image_embeddings(inputs["pixel_values"].to(self._device))
            out = self._model(
                image_embeddings=embedding,
                input_boxes=inputs["input_boxes"].to(self._device, torch.float32),
                multimask_output=False,
            )
        (masks,) = self._processor.image_processor.post_process_masks(
            out.pred_masks.cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        return [mask[0].numpy().astype(bool) for mask in masks]


class ForegroundSegmenter:
    """What a box holds that is not background, for drawings on white: the tiny world's stand-in for SAM."""

    name = "foreground"
    _THRESHOLD = 40
    """Steps of 255 that a pixel must be darker than white in some channel."""

    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> list[np.ndarray]:
        """One boolean mask [height, width] per box."""
        drawn = (255 - np.asarray(image.convert("RGB"))).max(axis=-1) > self._THRESHOLD
        masks = []
        for x1, y1, x2, y2 in boxes:
            inside = np.zeros_like(drawn)
            inside[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
            masks.append(drawn & inside)
        return masks


class MaskMark(BaseModel):
    """One line of ``masks/<benchmark>.jsonl``. None: the image has no polygon of that kind or another size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: str
    sample: int
    mask_iou: float | None
    mask_iou_strict: float | None


def polygon_mask(points: Sequence[Sequence[float]], width: int, height: int) -> np.ndarray:
    """A filled polygon as a boolean mask [height, width].

    Points are cut to whole pixels and the outline belongs to the mask, as with OpenCV's fillPoly, with which 99.9 % of
    the area agrees (Pillow draws lines a little differently).
    """
    corners = [(int(x), int(y)) for x, y in (*points, points[0])]
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    draw.polygon(corners, fill=1)
    draw.line(corners, fill=1)
    return np.array(canvas)


def reasonseg_mask(polygons: Polygons, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The annotation's masks (target, ignored), each boolean [height, width].

    Polygons are painted from the largest to the smallest, so that a small one shows on a large one; labels that hold
    ``ignore`` paint the ignored area, ``flag`` paints nothing, everything else is target.
    """
    ignores = [p for p in polygons if "ignore" in p["label"].lower()]
    painted = [(False, polygon_mask(p["points"], width, height)) for p in target_polygons(polygons)]
    painted += [(True, polygon_mask(p["points"], width, height)) for p in ignores]
    target, ignored = np.zeros((2, height, width), dtype=bool)
    for is_ignored, mask in sorted(painted, key=lambda entry: -int(entry[1].sum())):
        target[mask], ignored[mask] = not is_ignored, is_ignored
    return target, ignored


def mask_iou(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Intersection over (union + 1e-6) of two masks [height, width]; 0.0 if both are empty."""
    return float((predicted & gold).sum() / ((predicted | gold).sum() + 1e-6))


def pixel_box(thousandths: Sequence[float], width: int, height: int) -> Box:
    """A box in thousandths of the image as whole pixels, cut off as in the release.

    A model may name any number; beyond ten times the image's size it makes no difference to the mask, but overflows.
    """
    x1, y1, x2, y2 = (max(-10.0, min(value / SCALE, 10.0)) for value in thousandths)
    return int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height)


def marks_of(item: Item, samples: Sequence[Sample], image: Image.Image | None, segmenter: Segmenter) -> list[MaskMark]:
    """Both mask IoUs of an item's completions.

    Args:
        item: its context holds ``polygons``, ``width`` and ``height``.
        samples: its completions.
        image: the decoded image, None if it is unreadable: every completion then counts as one without a box.
        segmenter: turns boxes into masks; called once.
    """
    width, height = item.context["width"], item.context["height"]
    polygons = item.context["polygons"]
    if image is None or not polygons or image.size != (width, height):
        mark = 0.0 if image is None and polygons else None
        return [MaskMark(item_id=item.item_id, sample=s.sample, mask_iou=mark, mask_iou_strict=mark) for s in samples]
    read = [(first_box(s.completion or ""), strict_box(s.completion or "", s.finish_reason)) for s in samples]
    wanted = sorted({pixel_box(box, width, height) for pair in read for box in pair if box})
    masks = dict(zip(wanted, segmenter(image, wanted) if wanted else (), strict=True))
    first = polygon_mask(polygons[0]["points"], width, height)
    target, ignored = reasonseg_mask(polygons, width, height)

    def iou(box: Sequence[float] | None, gold: np.ndarray, counted: np.ndarray | None = None) -> float:
        if box is None:
            return 0.0
        mask = masks[pixel_box(box, width, height)]
        return mask_iou(mask if counted is None else mask & counted, gold)

    return [
        MaskMark(
            item_id=item.item_id,
            sample=sample.sample,
            mask_iou=iou(published, first),
            mask_iou_strict=iou(strict, target, ~ignored) if target.any() else None,
        )
        for sample, (published, strict) in zip(samples, read, strict=True)
    ]


def add_masks(
    folder: Path,
    segmenter: Segmenter,
    image_reader: Callable[[str, Item], list[bytes]],
    progress: bool = True,
) -> RunRecord:
    """Score the masks of a finished run and add the estimates to its record.

    Args:
        folder: the run; benchmarks whose items carry polygons are scored.
        segmenter: turns boxes into masks.
        image_reader: (benchmark, item) -> its encoded images; raises ImageError for a bad one.
        progress: show a progress bar.

    Returns:
        The record as written.

    Raises:
        UserError: not a finished evaluation, none of its benchmarks has polygons, or it was scored with another
            segmenter.
    """
    folder = Path(folder)
    records.read_run(folder)  # before the lock makes a folder of a mistyped name
    with locked(folder, "masks"):
        return _add_masks(folder, segmenter, image_reader, progress)


def _add_masks(folder: Path, segmenter: Segmenter, image_reader: Callable, progress: bool) -> RunRecord:
    run = records.read_finished(folder)
    items = {name: records.read_lines(folder / "items" / f"{name}.jsonl", Item) for name in run.benchmarks}
    items = {name: found for name, found in items.items() if any("polygons" in item.context for item in found)}
    if not items:
        raise UserError(f"{folder} has no benchmark with polygons; mask IoU is for LISA.")
    earlier = run.settings.get("segmenter")
    if earlier not in (None, segmenter.name):
        raise UserError(
            f"{folder} was scored with the masks of {earlier}, this is {segmenter.name}. Remove its folder masks and "
            "the segmenter from run.json's settings, or use the same."
        )
    run = run.model_copy(update={"settings": run.settings | {"segmenter": segmenter.name}})
    records.write_json(folder / "run.json", run)
    results = dict(run.benchmarks)
    for name, of_benchmark in items.items():
        samples = records.read_samples(folder, name)
        marks = _marks(folder, name, of_benchmark, samples, segmenter, image_reader, progress)
        results[name] = with_estimates(run.benchmarks[name], of_benchmark, marks)
    run = run.model_copy(update={"benchmarks": results})
    records.write_json(folder / "run.json", run)
    return run


def _marks(folder, name, items, samples, segmenter, image_reader, progress) -> list[MaskMark]:
    """The marks on disk, completed item by item."""
    path = folder / "masks" / f"{name}.jsonl"
    marks = records.read_lines(path, MaskMark, repair=True)
    done = {(mark.item_id, mark.sample) for mark in marks}
    by_item: dict[str, list[Sample]] = {item.item_id: [] for item in items}
    for sample in samples:
        if (sample.item_id, sample.sample) not in done:
            by_item[sample.item_id].append(sample)
    pending = [item for item in items if by_item[item.item_id]]
    for item in progress_bar(pending, desc="masks", unit="image", disable=not progress or not pending):
        try:
            image = decode(*image_reader(name, item), item.images[0])
        except ImageError:
            image = None
        new = marks_of(item, by_item[item.item_id], image, segmenter)
        records.append_lines(path, new)
        marks += new
    return marks


def with_estimates(result: BenchmarkResult, items: Sequence[Item], marks: Sequence[MaskMark]) -> BenchmarkResult:
    """The result with the estimates of the marks, over the images that have a gold mask; ``flags`` counts the others.

    The estimates' ``num_items`` are the images that were scored.
    """

    def estimates(part: Sequence[Item]) -> dict[str, dict[str, float]]:
        found = {}
        for name in _MARKS:
            of_items = [[getattr(m, name) for m in by_item[item.item_id]] for item in part]
            scored = [values for values in of_items if values and None not in values]
            if scored:
                found[name] = mean_of_items(scored).as_dict()
        return found

    by_item: dict[str, list[MaskMark]] = {item.item_id: [] for item in items}
    for mark in marks:
        by_item[mark.item_id].append(mark)
    groups = {
        name: group.model_copy(update={"extra": group.extra | estimates([i for i in items if i.group == name])})
        for name, group in result.groups.items()
    }
    skipped = sum(mark.mask_iou is None for mark in marks)
    flags = {name: count for name, count in result.flags.items() if name != "no_gold_mask"}
    return result.model_copy(
        update={
            "extra": result.extra | estimates(items),
            "groups": groups,
            "flags": flags | ({"no_gold_mask": skipped} if skipped else {}),
        }
    )


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """Score the masks of a run; 2 means that the user can mend what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m eval_harness.masks", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished evaluation")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--sam", metavar="MODEL", help="SAM checkpoint: folder or hub id (the paper's: facebook/sam-vit-huge)"
    )
    how.add_argument(
        "--foreground", action="store_true", help="for drawings on white: what a box holds, without a model"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="as in the run")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="as in the run")
    args = parser.parse_args(argv)
    try:
        segmenter = ForegroundSegmenter() if args.foreground else SamSegmenter(args.sam)
        run = add_masks(args.run, segmenter, benchmark_images(args.data_root, args.image_root))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, result in run.benchmarks.items():
        for part, extra in [(name, result.extra), *((f"{name} {g}", r.extra) for g, r in result.groups.items())]:
            for mark in _MARKS:
                if mark in extra:
                    e = extra[mark]
                    print(
                        f"{part:16} {mark:16} {100 * e['mean']:5.1f} % [{100 * e['low']:.1f}, {100 * e['high']:.1f}]  "
                        f"{e['num_items']} images"
                    )
    return 0


def benchmark_images(data_root: Path | None, image_root: Path | None) -> Callable[[str, Item], list[bytes]]:
    """(benchmark, item) -> encoded images, through each benchmark's own source."""
    from eval_harness.benchmarks import get_benchmark

    data_root, image_root = data_root or default_data_root(), image_root or default_image_root()
    readers: dict[str, Callable[[Item], list[bytes]]] = {}

    def read(name: str, item: Item) -> list[bytes]:
        if name not in readers:
            readers[name] = get_benchmark(name).image_reader(data_root, image_root)
        return readers[name](item)

    return read


if __name__ == "__main__":
    sys.exit(main())
