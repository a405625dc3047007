"""Benchmark files of our own in the hub's columns: questions written for these tests, no item of a real benchmark.

The hand-made rows are in ``cases/own_data``. They come first; generated rows follow up to the expected number.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hub_cache

from eval_harness.benchmarks import get_benchmark
from eval_harness.sources import read_jsonl

FOLDER = Path(__file__).parent / "cases" / "own_data"
TEXT = ("aime24", "math500", "amc23", "minerva", "olympiadbench")
BELLS = ("bell", "blue bell", "blue bell tree")
"""Three classes of flowers, each name in the next."""


def hand_made(name: str) -> list[dict[str, Any]]:
    """The rows of a benchmark that were written by hand."""
    return read_jsonl(FOLDER / get_benchmark(name).source.local_file)


def write(folder: Path) -> None:
    """Write a data root: the five text benchmarks, GEOQA, the four class lists and samples of two training sets."""
    for name in TEXT:
        rows = hand_made(name)
        _write(folder / get_benchmark(name).source.local_file, rows + hub_cache.rows_of(name)[len(rows) :])
    geoqa, rows = get_benchmark("geoqa"), hand_made("geoqa")
    squares = [_square(i) for i in range(len(rows), geoqa.num_items)]
    _write(folder / geoqa.source.local_file, rows + squares)
    for name, (image, class_name) in _CLASSES.items():
        benchmark = get_benchmark(name)
        labels = itertools.islice(itertools.cycle(range(benchmark.num_classes)), benchmark.num_items)
        rows = [{"image": image(i, k), "label": k, "class_name": class_name(k)} for i, k in enumerate(labels)]
        _write(folder / benchmark.source.local_file, rows)
        names = "".join(class_name(k) + "\n" for k in range(benchmark.num_classes))
        listed = folder / "classes" / f"{benchmark.source.images}.txt"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text(names, encoding="utf-8")
    problems = [row for name in ("math500", "minerva", "aime24", "amc23") for row in hand_made(name)]
    without = {"problem": "Which number was lost?", "answer": None}
    _write(folder / "train" / "math_train.jsonl", [*problems, without])
    _write(folder / "train" / "sat_sample.jsonl", map(_spatial, range(NUM_SPATIAL)))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _square(i: int) -> dict[str, Any]:
    question = f"As drawn, a square has the side {i} cm, then its perimeter is ()"
    return {"image_path": f"./Geo170K/images/test/{i}.png", "question": question, "ground_truth": f"{4 * i}cm"}


_CLASSES = {
    "flowers102": (
        lambda i, k: f"jpg/image_{i:05}.jpg",
        lambda k: BELLS[k - 1] if 1 <= k <= len(BELLS) else f"made-up flower {k:03}",
    ),
    # the list's class is in the name of the file
    "pets37": (lambda i, k: f"images/Made_Up_Pet_{k:03}_{i}.jpg", lambda k: f"made_up_pet_{k:03}"),
    "fgvc_aircraft": (lambda i, k: f"images/{i:07}.jpg", lambda k: f"MX-{k:03} A/B"),
    "cars196": (lambda i, k: f"cars_test/{i:05}.jpg", lambda k: f"{1990 + k % 25} Made-Up Model {k:03} Sedan"),
}
"""Benchmark -> (name of the image of item i of class k, name of class k)."""

NUM_SPATIAL = 60


def _spatial(i: int) -> dict[str, Any]:
    """The right answer first, as in the real sample; every fifth question is about two images."""
    two, three = ["the mug", f"the lamp {i}"], ["left", "right", f"behind by {i} steps"]
    answers = three if i % 3 == 0 else two
    images = [f"own/{i}_{n}.jpg" for n in range(2 if i % 5 == 0 else 1)]
    question = f"Question {i}: which is nearer, or where is it?"
    return {"question": question, "answers": answers, "correct_answer": answers[0], "images": images}
