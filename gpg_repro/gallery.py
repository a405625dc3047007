"""A look at single answers: image, question, gold, what each model wrote, both verdicts and why.

Made from evaluation records alone. Images are read again through the benchmark (generated ones are drawn again); where
they are not to be had, the card says so. Colours are blue and orange, and every colour is also said in words.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from markupsafe import Markup
from PIL import Image, ImageDraw

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.images import ImageError, decode
from eval_harness.records import Item, Sample
from eval_harness.sources import default_data_root, default_image_root
from gpg_repro import html
from gpg_repro.tables.base import SAME_MARK

SIDE = 300
"""Longer side of a picture, in pixels; small drawings are enlarged to it."""
RIGHT, WRONG = "#2563ab", "#c75b00"
_BOX_COLOURS = {"orange": WRONG, "blue": RIGHT, "purple": "#a0518f", "green": "#007a5e"}
"""Of the first, second, ... model's box."""
_LONGEST = 900
"""Characters of an answer that are shown."""
_STYLE = (
    ".gallery{font:14px/1.45 sans-serif;color:#222}.gallery .card{display:flex;gap:1.2em;padding:1em 0;"
    "border-bottom:1px solid #ddd}.gallery .picture{flex:0 0 300px}.gallery .picture img{max-width:300px}"
    ".gallery .words{flex:1;min-width:0}.gallery pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2em 0;"
    "background:#f6f6f6;color:#222;padding:.4em .6em;font-size:13px}.gallery .head{color:#555;margin-bottom:.3em}"
    ".gallery .verdict{display:inline-block;padding:.05em .5em;border-radius:.3em;color:#fff;margin:.15em .5em .4em 0}"
    ".gallery .none{padding:3em 1em;background:#f1f1f1;color:#555}"
)


@dataclass(frozen=True)
class Card:
    """One item with the answers of some models."""

    benchmark: str
    item: Item
    answers: dict[str, Sample]
    """Label of a model -> its first completion."""

    @property
    def kind(self) -> str:
        """``rules`` (the two rules disagree on an answer), ``models`` (one model is right), ``wrong`` or ``right``."""
        marks = [(sample.mark, sample.mark_strict) for sample in self.answers.values()]
        if any(abs(published - strict) > SAME_MARK for published, strict in marks):
            return "rules"
        right = {published >= 0.5 for published, _ in marks}
        return "models" if len(right) > 1 else "right" if True in right else "wrong"


@dataclass(frozen=True)
class Gallery:
    """Some cards; shows itself in a notebook."""

    title: str
    cards: list[Card]
    read_images: Mapping[str, Callable[[Item], list[bytes]] | str]
    """Benchmark -> its image reader, or why there is none."""

    def html(self) -> Markup:
        """The gallery as one piece of HTML, pictures inside."""
        cards = [_card_html(card, self.read_images[card.benchmark]) for card in self.cards]
        return html.part("gallery", "gallery", style=Markup(_STYLE), cards=cards)

    def _repr_html_(self) -> str:
        return str(self.html())

    def write(self, path: Path) -> Path:
        """Write a page that needs nothing beside it; its policy lets nothing be loaded and no script run."""
        records.write_whole(
            path, html.part("gallery", "page", title=f"{self.title}: some answers", gallery=self.html())
        )
        return path


def build(
    folders: Mapping[str, Mapping[str, Path]],
    *,
    num: int = 6,
    data_root: Path | None = None,
    image_root: Path | None = None,
    title: str = "Gallery",
) -> Gallery:
    """Choose items and gather what is known about them.

    Benchmarks and groups take turns. Items on which the two rules disagree come first and take up to half of the cards;
    then items on which the models differ, wrong ones and right ones in turn.

    Args:
        folders: benchmark -> label of a model -> its evaluation folder. A benchmark without folders is left out.
        num: cards in all.
        data_root, image_root: local copies of data and images (default ``EVAL_DATA_ROOT``, ``EVAL_IMAGE_ROOT``,
            else the working folder for images that are no part of a data set).
    """
    data_root, image_root = data_root or default_data_root(), image_root or default_image_root()
    shelves: dict[tuple[str, str | None], list[Card]] = {}
    readers: dict[str, Callable[[Item], list[bytes]] | str] = {}
    for name, by_label in folders.items():
        if not by_label:
            continue
        for card in _cards(name, by_label):
            shelves.setdefault((name, card.item.group), []).append(card)
        readers[name] = image_reader(name, list(by_label.values()), data_root, image_root)
    return Gallery(title, choose(list(shelves.values()), num), readers)


def choose(shelves: Sequence[Sequence[Card]], num: int) -> list[Card]:
    """``num`` cards: shelves take turns; ``rules`` first, up to half unless nothing else is left; then the other kinds.

    Raises:
        ValueError: ``num`` is negative.
    """
    if num < 0:
        raise ValueError(f"num must not be negative, got {num}")
    by_kind = {
        kind: _in_turn([[card for card in shelf if card.kind == kind] for shelf in shelves])
        for kind in ("rules", "models", "wrong", "right")
    }
    first, others = by_kind.pop("rules"), _in_turn(list(by_kind.values()))
    num_first = max(-(-num // 2), num - len(others))
    return (first[:num_first] + others)[:num]


def _in_turn(lists: Sequence[Sequence[Card]]) -> list[Card]:
    return [card for card in chain.from_iterable(zip_longest(*lists)) if card is not None]


def _cards(name: str, by_label: Mapping[str, Path]) -> list[Card]:
    """Items that every folder has, in the order of the first one."""
    first, answers = next(iter(by_label.values())), {}
    for label, folder in by_label.items():
        samples = records.read_samples(folder, name)
        answers[label] = {sample.item_id: sample for sample in samples if sample.sample == 0}
    return [
        Card(name, item, {label: known[item.item_id] for label, known in answers.items()})
        for item in records.read_lines(Path(first) / "items" / f"{name}.jsonl", Item)
        if all(item.item_id in known for known in answers.values())
    ]


def image_reader(
    name: str, folders: Sequence[Path], data_root: Path | None, image_root: Path | None
) -> Callable[[Item], list[bytes]] | str:
    """A function that reads an item's images as these runs saw them, or why there is none."""
    benchmark = get_benchmark(name)
    made_by = {run.benchmarks[name].version for run in map(records.read_run, folders) if name in run.benchmarks}
    if made_by - {benchmark.version}:
        return f"the records are of version {max(made_by)} of {name}, the images now of version {benchmark.version}"
    try:
        return benchmark.image_reader(data_root, image_root or data_root or Path.cwd())
    except UserError as error:
        return str(error)


# Cards as HTML --------------------------------------------------------------------------------------------------------


def _card_html(card: Card, reader: Callable[[Item], list[bytes]] | str) -> Markup:
    said = {
        "rules": "the two rules disagree",
        "models": "the models differ",
        "wrong": "all wrong",
        "right": "all right",
    }[card.kind]
    return html.part(
        "gallery",
        "card",
        picture=picture_html(card, reader),
        place=" · ".join(part for part in (get_benchmark(card.benchmark).title, card.item.group) if part),
        item_id=card.item.item_id,
        said=said,
        prompt=_clip(card.item.prompt),
        gold=_clip(card.item.gold),
        answers=[
            _answer_html(number, label, sample) for number, (label, sample) in enumerate(card.answers.items(), start=1)
        ],
    )


def _answer_html(number: int, label: str, sample: Sample) -> Markup:
    if sample.status == "failed":
        completion = f"no answer: {_clip(sample.reason)}"
        return html.part("gallery", "answer", number=number, label=label, completion=completion, verdicts=(), flags="")
    strict_reason = sample.reason_strict or sample.reason
    strict_read = sample.extracted if sample.extracted_strict is None else sample.extracted_strict
    return html.part(
        "gallery",
        "answer",
        number=number,
        label=label,
        completion=_clip(sample.completion),
        verdicts=[
            _verdict("published", bool(sample.correct), sample.score, sample.reason, sample.extracted),
            _verdict("strict", bool(sample.correct_strict), sample.score_strict, strict_reason, strict_read),
        ],
        flags=", ".join(sample.flags),
    )


def _verdict(rule: str, correct: bool, score: float | None, reason: str, read: str | None) -> dict[str, str]:
    word = ("right" if correct else "wrong") + ("" if score is None else f", mark {score:.2f}")
    what = "" if read is None else f", read: {read[:80]}"
    return {"colour": RIGHT if correct else WRONG, "text": f"{rule}: {word} ({reason}{what})"}


def _clip(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text)} characters)"


# Pictures -------------------------------------------------------------------------------------------------------------


def picture_html(card: Card, reader: Callable[[Item], list[bytes]] | str) -> Markup:
    """The card's images with the boxes on them as HTML, or a sentence that says why they are not to be had."""
    if isinstance(reader, str):
        return html.part("gallery", "no_image", why=_clip(reader))
    parts = []
    try:
        for data, name in zip(reader(card.item), card.item.images, strict=True):
            parts.append(_image_html(picture(decode(data, name), card)))
    except ImageError as error:
        parts.append(html.part("gallery", "no_image", why=_clip(str(error))))
    boxes = ""
    if gold_box(card) is not None:
        drawn = [f"{number}, {_box_colour(number)}: {label}" for number, label, _ in predicted_boxes(card)]
        boxes = "; ".join(["black: gold", *drawn])
    return html.part("gallery", "picture", parts=parts, boxes=boxes)


def _image_html(image: Image.Image) -> Markup:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return html.part("gallery", "image", data=base64.b64encode(stream.getvalue()).decode())


def picture(image: Image.Image, card: Card) -> Image.Image:
    """The image at ``SIDE`` pixels with the gold box (black) and the models' boxes (numbered) drawn on it."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    gold = gold_box(card)
    if gold:
        _draw_box(pen, gold, size, "black")
    for number, _, box in predicted_boxes(card):
        _draw_box(pen, box, size, _BOX_COLOURS[_box_colour(number)], str(number))
    return image


def gold_box(card: Card) -> tuple[float, ...] | None:
    """Left, top, right, bottom of the gold box as fractions of the image; None: the gold is no box."""
    if get_benchmark(card.benchmark).grader != "box":
        return None
    box = card.item.context.get("gold_box")
    return tuple(map(float, box)) if box else _box_of(card.item.gold)


def predicted_boxes(card: Card) -> list[tuple[int, str, tuple[float, ...]]]:
    """Number, label and box (fractions) of every answer that holds one, where the gold is a box."""
    if gold_box(card) is None:
        return []
    found = [(n, label, _box_of(s.completion or "")) for n, (label, s) in enumerate(card.answers.items(), start=1)]
    return [(number, label, box) for number, label, box in found if box]


def _box_of(text: str) -> tuple[float, ...] | None:
    from eval_harness.graders.box import first_box, fractions

    box = first_box(text)
    return fractions(box) if box else None


def _box_colour(number: int) -> str:
    return list(_BOX_COLOURS)[(number - 1) % len(_BOX_COLOURS)]


def _draw_box(
    pen: ImageDraw.ImageDraw, box: Sequence[float], size: tuple[int, int], colour: str, tag: str = ""
) -> None:
    xs, ys = ([edge * side for edge in box[start::2]] for start, side in zip((0, 1), size, strict=True))
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white")
    pen.rectangle((left, top, right, bottom), outline=colour, width=3)
    if tag:
        pen.rectangle((left, top, left + 12, top + 14), fill=colour)
        pen.text((left + 3, top + 1), tag, fill="white")
