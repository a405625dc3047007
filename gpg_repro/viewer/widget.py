"""Two runs to click through in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gpg_repro import html
from gpg_repro.viewer.collect import Pair, SideBySide, side_by_side, title_of
from gpg_repro.viewer.page import Limits, filters, image_readers, page_style, pair_html

_LIMITS = Limits(characters=20_000)


def viewer(
    first: SideBySide | str | Path,
    second: str | Path | None = None,
    benchmarks: Sequence[str] | None = None,
    *,
    chosen: Pair | None = None,
    data_root: Path | None = None,
    image_root: Path | None = None,
) -> Any:
    """Choose a benchmark, an item and a sample; filter and search. Needs a live Jupyter.

    Args:
        first, second: two runs as in :func:`side_by_side`, or what it returned as the only one.
        chosen: the item shown first.
        data_root, image_root: local copies of benchmarks and images.

    Returns:
        An ipywidgets box; `box.controls` maps names to the controls, `box.card` shows the item.

    Raises:
        UserError: see :func:`side_by_side`.
    """
    import ipywidgets as widgets

    both = first if isinstance(first, SideBySide) else side_by_side(first, second, benchmarks)
    readers = image_readers(both, data_root, image_root)
    wide = {"layout": widgets.Layout(width="26em"), "style": {"description_width": "6.5em"}}
    controls = {
        "benchmark": widgets.Dropdown(
            options=[("all", ""), *((title_of(name), name) for name in both.benchmarks)],
            description="benchmark",
            **wide,
        ),
        "show": widgets.Dropdown(
            options=[(words, value) for value, words in filters(both)], description="show", **wide
        ),
        "search": widgets.Text(placeholder="words, a number", description="search", **wide),
        "item": widgets.Dropdown(description="item", **wide),
        "sample": widgets.Dropdown(description="sample", **wide),
    }
    card, count = widgets.HTML(), widgets.Label()

    def offer(control: widgets.Dropdown, options: list) -> None:
        """Other options; what was chosen stays chosen where it is among them."""
        values, before = [value for _, value in options], control.value
        control.options = options
        control.value = before if before in values else values[0] if values else None

    def choose(change: Any = None) -> None:
        now = {name: controls[name].value for name in ("benchmark", "show", "search")}
        found = [(number, pair) for number, pair in enumerate(both.pairs) if kept(pair, **now)]
        count.value = f"{len(found)} of {len(both.pairs)} items"
        offer(controls["item"], [(f"{title_of(p.benchmark)} {p.item.item_id}", number) for number, p in found])
        draw()

    def draw(change: Any = None) -> None:
        number = controls["item"].value
        if number is None:
            card.value = "<p>No item fits these filters.</p>"
            return
        pair = both.pairs[number]
        numbers = sorted({sample.sample for samples in pair.answers for sample in samples})
        offer(controls["sample"], [(str(number), number) for number in numbers])
        body = pair_html(pair, both.labels, readers.get(pair.benchmark), _LIMITS, only=controls["sample"].value)
        card.value = html.part("viewer", "card", style=Markup(page_style()), body=body)

    for name in ("benchmark", "show", "search"):
        controls[name].observe(choose, names="value")
    for name in ("item", "sample"):
        controls[name].observe(draw, names="value")
    choose()
    if chosen is not None:
        controls["item"].value = next(number for number, pair in enumerate(both.pairs) if pair is chosen)
    box = widgets.VBox([
        widgets.HBox([widgets.VBox([controls["benchmark"], controls["show"], controls["search"]]),
                      widgets.VBox([controls["item"], controls["sample"], count])]),
        card,
    ])  # fmt: skip
    box.controls, box.card, box.count = controls, card, count
    return box


def kept(pair: Pair, benchmark: str = "", show: str = "all", search: str = "") -> bool:
    """Whether a pair passes the filters of the controls.

    Args:
        benchmark: its name; empty: all.
        show: a value of :func:`gpg_repro.viewer.page.filters`.
        search: words that question, gold or a completion must hold, whatever their case.
    """
    of_show = {
        "all": True,
        "differ": pair.cell() in ("first", "second"),
        "rules": pair.rules_part,
        "prompts": pair.other_prompt is not None,
    }
    texts = [pair.item.item_id, pair.item.prompt, pair.item.gold]
    texts += [sample.completion or "" for samples in pair.answers for sample in samples]
    sought = search.strip().lower()
    return (
        benchmark in ("", pair.benchmark)
        and of_show.get(show, pair.cell() == show)
        and (not sought or any(sought in text.lower() for text in texts))
    )
