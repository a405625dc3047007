"""Two runs as HTML: one item for a notebook, or all of them as one page that needs nothing beside it.

Every item is written out as HTML by templates, which escape; the page's script only shows and hides. A page without
scripts shows all items, one below another. Its policy lets nothing be loaded and no other script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.markup import visible
from eval_harness.records import Item, Sample
from eval_harness.sources import default_data_root, default_image_root
from gpg_repro import html
from gpg_repro.gallery import Card, image_reader, picture_html
from gpg_repro.tables.base import RULES
from gpg_repro.viewer.collect import Pair, Side, SideBySide, cells, marks_of, title_of
from gpg_repro.viewer.text import clip

Reader = Callable[[Item], list[bytes]] | str
"""Reads an item's images, or says why they are not to be had."""


@dataclass(frozen=True)
class Limits:
    """How much a page holds; what is left out is said on it."""

    items: int = 1_000
    samples: int = 4
    """Of each item and run."""
    characters: int = 8_000
    """Of each text: its beginning and its end are kept."""
    images: int = 60
    """Items whose images are drawn."""
    bytes: int = 10_000_000
    """Of all items together."""

    def __post_init__(self):
        if min(self.items, self.samples, self.characters, self.bytes) < 1 or self.images < 0:
            raise ValueError(f"{self}: expected at least one item, sample, character and byte.")


@dataclass(frozen=True)
class Page:
    """A page and what it holds."""

    html: str
    num_items: int
    left_out: tuple[str, ...]
    """Sentences about what is not on it."""


def page_style() -> str:
    """The style of everything inside an element of class ``viewer``."""
    return _file("page.css")


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def shown(text: str | None, limits: Limits) -> str:
    """Unchecked text, not too long; the templates make it visible and escape it."""
    return clip(text or "", limits.characters)


# One item -------------------------------------------------------------------------------------------------------------


def pair_html(
    pair: Pair,
    labels: tuple[str, str],
    reader: Reader | None = None,
    limits: Limits | None = None,
    only: int | None = None,
) -> Markup:
    """One item as HTML.

    Args:
        labels: what the two runs are called.
        reader: of the benchmark's images; None: images are not drawn.
        only: number of the only sample that is shown; None: all up to the limit.
    """
    limits = limits or Limits()
    numbers = _sample_numbers(pair)[: limits.samples] if only is None else [only]
    place = " · ".join(part for part in (title_of(pair.benchmark), pair.item.group) if part)
    return html.part(
        "viewer",
        "pair",
        place=shown(place, limits),
        item_id=shown(pair.item.item_id, limits),
        said=shown(said(pair, labels), limits),
        image=_image(pair, labels, reader),
        prompt=shown(pair.item.prompt, limits),
        gold=shown(pair.item.gold, limits),
        other_prompt=None if pair.other_prompt is None else shown(pair.other_prompt, limits),
        other_label=shown(labels[1], limits),
        answers=[_answers_html(pair, labels, number, limits) for number in numbers],
    )


def said(pair: Pair, labels: tuple[str, str]) -> str:
    """Which run is right, in words."""
    who = {
        "both": "both right",
        "first": f"{labels[0]} right, {labels[1]} wrong",
        "second": f"{labels[1]} right, {labels[0]} wrong",
        "neither": "both wrong",
    }[pair.cell()]
    if pair.num_samples > 1:
        tallies = [f"{sum(marks_of(s)[0].correct for s in mine)} of {len(mine)} right" for mine in pair.answers]
        who = f"first completions: {who}; of all: {labels[0]} {tallies[0]}, {labels[1]} {tallies[1]}"
    return who + (" (the rules disagree)" if pair.rules_part else "")


def _sample_numbers(pair: Pair) -> list[int]:
    return sorted({sample.sample for samples in pair.answers for sample in samples})


def _image(pair: Pair, labels: tuple[str, str], reader: Reader | None) -> Markup | str:
    if not pair.item.images:
        return ""
    answers = {visible(label): samples[0] for label, samples in zip(labels, pair.answers, strict=True)}
    drawn = None if reader is None else picture_html(Card(pair.benchmark, pair.item, answers), reader)
    return html.part("viewer", "picture", drawn=drawn)


def _answers_html(pair: Pair, labels: tuple[str, str], number: int, limits: Limits) -> Markup:
    columns = [
        _answer_html(label, next((s for s in samples if s.sample == number), None), limits)
        for label, samples in zip(labels, pair.answers, strict=True)
    ]
    return html.part("viewer", "answers", number=number, columns=columns)


def _answer_html(label: str, sample: Sample | None, limits: Limits) -> Markup:
    if sample is None:
        return html.part("viewer", "absent", label=shown(label, limits))
    marks = marks_of(sample)
    return html.part(
        "viewer",
        "answer",
        label=shown(label, limits),
        right=marks[0].correct,
        marks=marks,
        failure=shown(sample.reason, limits) if sample.status == "failed" else None,
        facts=[(name, shown(value, limits)) for name, value in facts(sample)],
        completion=shown(sample.completion, limits),
    )


def facts(sample: Sample) -> list[tuple[str, str]]:
    """What is known about a completion beside its text: name and value, in the order they are shown."""
    published, strict = marks_of(sample)
    lines = [("answer read", "nothing" if published.extracted is None else published.extracted)]
    if strict.extracted != published.extracted:
        lines.append(("strict reads", "nothing" if strict.extracted is None else strict.extracted))
    lines.append(("reason", published.reason))
    if strict.reason != published.reason:
        lines.append(("strict reason", strict.reason))
    ends = {"stop": "finished", "length": "cut at the token limit"}
    lines.append(("end", ends.get(sample.finish_reason, sample.finish_reason or "not known")))
    tokens = [("?" if n is None else f"{n:,}") for n in (sample.num_prompt_tokens, sample.num_completion_tokens)]
    lines.append(("tokens", f"{tokens[0]} asked, {tokens[1]} answered"))
    if sample.gold_fallback:
        lines.append(("gold", "could not be read by the published rule; its raw text was compared"))
    if sample.flags:
        lines.append(("flags", ", ".join(sample.flags)))
    if sample.extra:
        lines.append(("other marks", ", ".join(f"{name} {mark:.2f}" for name, mark in sample.extra.items())))
    return lines


# A page ---------------------------------------------------------------------------------------------------------------


def image_readers(
    both: SideBySide, data_root: Path | None = None, image_root: Path | None = None
) -> Mapping[str, Reader]:
    """A reader of images for every benchmark that has some."""
    roots = data_root or default_data_root(), image_root or default_image_root()
    pictured = dict.fromkeys(pair.benchmark for pair in both.pairs if pair.item.images)
    readers: dict[str, Reader] = {}
    for name in pictured:
        try:
            readers[name] = image_reader(name, [side.folder for side in both.sides], *roots)
        except UserError as error:  # a benchmark of an imported run that is not registered here
            readers[name] = str(error)
    return readers


def build_page(
    both: SideBySide,
    *,
    chosen: Pair | None = None,
    title: str | None = None,
    limits: Limits | None = None,
    data_root: Path | None = None,
    image_root: Path | None = None,
) -> Page:
    """The page of two runs.

    Where not all items find room, the chosen one comes first, then those that one run has right and the other wrong,
    then the rest; on the page they stand in the order of the records.

    Args:
        chosen: the item it opens at; None: the first one.
        data_root, image_root: local copies of benchmarks and images (default: as everywhere).
    """
    limits = limits or Limits()
    readers = image_readers(both, data_root, image_root)
    articles, size, pictures = {}, 0, 0
    for pair in _by_interest(both, chosen):
        if len(articles) == limits.items:
            break
        draw = bool(pair.item.images) and pictures < limits.images
        article = _article(pair, both, readers.get(pair.benchmark) if draw else None, limits, pair is chosen)
        if articles and size + len(article) > limits.bytes:
            break
        pictures += draw
        size += len(article)
        articles[id(pair)] = article
    left_out = _left_out(both, articles, pictures, limits)
    heading = title or f"{both.labels[0]} beside {both.labels[1]}"
    style, script = page_style(), _file("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = html.part(
        "viewer",
        "page",
        policy=policy,
        title=shown(heading, limits),
        style=Markup(style),
        body=_body(both, heading, [articles[id(p)] for p in both.pairs if id(p) in articles], left_out, limits),
        script=Markup(script),
    )
    return Page(str(page), len(articles), tuple(left_out))


def write_page(both: SideBySide, path: Path, **options) -> Page:
    """Write :func:`build_page` to a file; options are its."""
    page = build_page(both, **options)
    records.write_whole(path, page.html)
    return page


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _by_interest(both: SideBySide, chosen: Pair | None) -> list[Pair]:
    def rank(pair: Pair) -> int:
        return 0 if pair is chosen else 1 if pair.cell() in ("first", "second") else 2

    return sorted(both.pairs, key=rank)


def _article(pair: Pair, both: SideBySide, reader: Reader | None, limits: Limits, is_chosen: bool) -> Markup:
    short = {"both": "both right", "first": "first only", "second": "second only", "neither": "both wrong"}
    data = {
        "benchmark": pair.benchmark,
        "item": pair.item.item_id,
        "cell": pair.cell(),
        "rules": str(int(pair.rules_part)),
        "prompts": str(int(pair.other_prompt is not None)),
        "chosen": str(int(is_chosen)),
        "label": f"{title_of(pair.benchmark)} {pair.item.item_id}: {short[pair.cell()]}",
    }
    return html.part("viewer", "article", data=data, body=pair_html(pair, both.labels, reader, limits))


def _left_out(both: SideBySide, articles: Mapping, pictures: int, limits: Limits) -> list[str]:
    notes = []
    if missing := len(both.pairs) - len(articles):
        differ = sum(p.cell() in ("first", "second") and id(p) not in articles for p in both.pairs)
        notes.append(
            f"{missing} of {len(both.pairs)} items are not on this page, {differ} of them with one run right and the "
            "other wrong; the counts above are of all."
        )
    on_page = [pair for pair in both.pairs if id(pair) in articles]
    most = max((pair.num_samples for pair in on_page), default=0)
    if most > limits.samples:
        notes.append(f"Of each item the first {limits.samples} of up to {most} completions.")
    if undrawn := sum(bool(pair.item.images) for pair in on_page) - pictures:
        notes.append(f"Images of {undrawn} items are not drawn.")
    texts = (
        t for pair in on_page for samples in pair.answers for s in samples[: limits.samples] for t in (s.completion,)
    )
    if clipped := sum(len(text or "") > limits.characters for text in texts):
        notes.append(
            f"{clipped} completions are longer than {limits.characters:,} characters; their middle is left out."
        )
    return notes


def _body(
    both: SideBySide, heading: str, articles: Sequence[Markup], left_out: Sequence[str], limits: Limits
) -> Markup:
    frames = [cells(both.pairs, rule) for rule in RULES]
    same = frames[0].equals(frames[1])
    return html.part(
        "viewer",
        "body",
        heading=shown(heading, limits),
        counts=shown(counts_text(frames[0].iloc[-1], both.labels), limits),
        published=cells_html(frames[0], both.labels),
        strict=None if same else cells_html(frames[1], both.labels),
        runs=_runs_html(both, limits),
        notes=[shown(note, limits) for note in (*both.notes, *left_out)],
        controls=_controls_html(both, limits),
        articles=articles,
    )


def counts_text(line: pd.Series, labels: tuple[str, str]) -> str:
    """One line of :func:`gpg_repro.viewer.cells` as a sentence."""
    return (
        f"Of {line['num_items']} items both are right on {line['both']}, only {labels[0]} on {line['first']}, only "
        f"{labels[1]} on {line['second']}, neither on {line['neither']} (published rule, first completions; sign test "
        f"of {line['first']} against {line['second']}: p = {line['p_value']:.2g})."
    )


def cells_html(frame: pd.DataFrame, labels: tuple[str, str]) -> Markup:
    """:func:`gpg_repro.viewer.cells` as an HTML table."""
    heads = ("benchmark", "both right", f"only {labels[0]}", f"only {labels[1]}", "both wrong", "items", "p")
    lines = [
        (line.title, line.both, line.first, line.second, line.neither, line.num_items, f"{line.p_value:.2g}")
        for line in frame.itertuples()
    ]
    return html.part("viewer", "table", heads=heads, lines=lines)


def side_facts(side: Side) -> dict[str, str]:
    """What a run is: name to show -> value."""
    run = side.run
    engine = " ".join(str(run.engine[key]) for key in ("name", "version", "dtype") if run.engine.get(key))
    commit = (run.environment.get("commit") or "no git checkout")[:10]
    return {
        "run": run.run_id,
        "model": str(run.model.get("name")),
        "weights or revision": str(run.model.get("weights") or run.model.get("revision") or "not known")[:12],
        "engine": engine,
        "code": commit + ("+" if run.environment.get("uncommitted_changes") else ""),
        "finished": run.finished or "not yet",
    }


def _runs_html(both: SideBySide, limits: Limits) -> Markup:
    columns = [side_facts(side) for side in both.sides]
    heads = ["", *(shown(label, limits) for label in both.labels)]
    lines = [(name, *(shown(facts[name], limits) for facts in columns)) for name in columns[0]]
    return html.part("viewer", "table", heads=heads, lines=lines, kind="runs")


def filters(both: SideBySide) -> list[tuple[str, str]]:
    """The choices of what is shown: value and words."""
    first, second = both.labels
    choices = [
        ("all", "all items"),
        ("differ", "only where one is right"),
        ("first", f"only {first} right"),
        ("second", f"only {second} right"),
        ("neither", "both wrong"),
        ("both", "both right"),
        ("rules", "the two rules disagree"),
    ]
    return choices + ([("prompts", "different prompts")] if any(p.other_prompt is not None for p in both.pairs) else [])


def _controls_html(both: SideBySide, limits: Limits) -> Markup:
    benchmarks = [(name, shown(title_of(name), limits)) for name in both.benchmarks]
    shows = [(value, shown(words, limits)) for value, words in filters(both)]
    return html.part("viewer", "controls", benchmarks=benchmarks, shows=shows)
