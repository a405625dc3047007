"""A look at single answers: image, question, gold, what each model wrote, both verdicts and why.

Made from evaluation records alone. Images are read again through the benchmark (generated ones are drawn again); where
they are not to be had, the card says so. Colours are blue and orange, and every colour is also said in words.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from PIL import Image, ImageDraw

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.images import ImageError, decode
from eval_harness.records import Item, Sample
from eval_harness.sources import default_data_root, default_image_root
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

    def html(self) -> str:
        """The gallery as one piece of HTML, pictures inside."""
        cards = "".join(_card_html(card, self.read_images[card.benchmark]) for card in self.cards)
        empty = "" if self.cards else "<p>Nothing was measured.</p>"
        return f"<style>{_STYLE}</style><div class='gallery'>{cards}{empty}</div>"

    def _repr_html_(self) -> str:
        return self.html()

    def write(self, path: Path) -> Path:
        """Write a page that needs nothing beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        title = html.escape(f"{self.title}: some answers")
        page = f"<!doctype html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1>{self.html()}\n"
        path.write_text(page, encoding="utf-8")
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
        samples = records.read_lines(Path(folder) / "samples" / f"{name}.jsonl", Sample)
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


def _card_html(card: Card, reader: Callable[[Item], list[bytes]] | str) -> str:
    place = " · ".join(part for part in (get_benchmark(card.benchmark).title, card.item.group) if part)
    said = {
        "rules": "the two rules disagree",
        "models": "the models differ",
        "wrong": "all wrong",
        "right": "all right",
    }[card.kind]
    answers = "".join(
        _answer_html(number, label, sample) for number, (label, sample) in enumerate(card.answers.items(), start=1)
    )
    return (
        f"<div class='card'><div class='picture'>{picture_html(card, reader)}</div><div class='words'>"
        f"<div class='head'>{html.escape(place)}, item {html.escape(card.item.item_id)}: {said}</div>"
        f"<b>Question</b><pre>{_clip(card.item.prompt)}</pre><b>Gold</b><pre>{_clip(card.item.gold)}</pre>{answers}"
        "</div></div>"
    )


def _answer_html(number: int, label: str, sample: Sample) -> str:
    if sample.status == "failed":
        return f"<div><b>{number}. {html.escape(label)}</b><pre>no answer: {_clip(sample.reason)}</pre></div>"
    strict_reason = sample.reason_strict or sample.reason
    strict_read = sample.extracted if sample.extracted_strict is None else sample.extracted_strict
    flags = f" <span>{html.escape(', '.join(sample.flags))}</span>" if sample.flags else ""
    return (
        f"<div><b>{number}. {html.escape(label)}</b><pre>{_clip(sample.completion)}</pre>"
        + _verdict_html("published", bool(sample.correct), sample.score, sample.reason, sample.extracted)
        + _verdict_html("strict", bool(sample.correct_strict), sample.score_strict, strict_reason, strict_read)
        + f"{flags}</div>"
    )


def _verdict_html(rule: str, correct: bool, score: float | None, reason: str, read: str | None) -> str:
    word = ("right" if correct else "wrong") + ("" if score is None else f", mark {score:.2f}")
    what = "" if read is None else f", read: {read[:80]}"
    return (
        f"<span class='verdict' style='background:{RIGHT if correct else WRONG}'>{rule}: {word} "
        f"({html.escape(reason + what)})</span>"
    )


def _clip(text: str | None) -> str:
    text = text or ""
    return html.escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text)} characters)")


# Pictures -------------------------------------------------------------------------------------------------------------


def picture_html(card: Card, reader: Callable[[Item], list[bytes]] | str) -> str:
    """The card's images with the boxes on them as HTML, or a sentence that says why they are not to be had."""
    if isinstance(reader, str):
        return f"<div class='none'>image not to be had: {_clip(reader)}</div>"
    parts = []
    try:
        for data, name in zip(reader(card.item), card.item.images, strict=True):
            parts.append(_image_html(picture(decode(data, name), card)))
    except ImageError as error:
        parts.append(f"<div class='none'>image not to be had: {_clip(str(error))}</div>")
    if gold_box(card) is None:
        return "".join(parts)
    drawn = [f"{number}, {_box_colour(number)}: {label}" for number, label, _ in predicted_boxes(card)]
    return "".join(parts) + f"<div>{html.escape('; '.join(['black: gold', *drawn]))}</div>"


def _image_html(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return (
        f"<img alt='the item&#39;s image' src='data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'>"
    )


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
