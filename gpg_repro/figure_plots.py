"""Pictures of Figures 1 and 3: grouped bars, and two answers to one problem. They receive finished numbers and text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eval_harness.markup import visible
from eval_harness.style import use_style

# Figure 1 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One bar, in percent."""

    value: float
    low: float | None = None
    high: float | None = None
    """Of its 95 % interval; None: none is known."""
    digits: int = 1
    seeds: tuple[float, ...] = ()
    """Values of single training seeds, drawn as dots where there are several."""
    mark: str = ""
    """Put behind the number."""


@dataclass(frozen=True)
class Look:
    """How the bars of one row are drawn."""

    color: str
    hatch: str = ""
    edge: str = "white"


@dataclass(frozen=True)
class Panel:
    """Grouped bars on one axis."""

    title: str
    groups: tuple[str, ...]
    bars: Mapping[str, Mapping[str, Bar | None]]
    """Row -> group -> bar; None or absent: no bar."""
    looks: Mapping[str, Look]
    absent: str = ""
    """What to say instead of bars, where there are none at all."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Small print below a group's name."""


_HALO = [patheffects.Stroke(linewidth=2.8, foreground="white"), patheffects.Normal()]
"""Around an interval, to be seen on a dark bar."""


def bars_figure(panels: Sequence[Sequence[Panel]], title: str) -> Figure:
    """Panels in rows, each with an axis and a legend of its own: nothing is shared between published and ours."""
    use_style()
    most = [max(len(row[i].groups) * (len(row[i].bars) + 1.2) for row in panels) for i in range(len(panels[0]))]
    widths = [max(width, 0.62 * max(most)) for width in most]
    figure, axes = plt.subplots(
        len(panels), len(panels[0]), figsize=(19, 5.6 * len(panels)), layout="constrained", squeeze=False,
        width_ratios=widths,
    )  # fmt: skip
    for line, row in zip(axes, panels, strict=True):
        for axis, panel in zip(line, row, strict=True):
            _panel(axis, panel)
    figure.suptitle(title, fontsize=11.5, color="0.35")
    return figure


def _panel(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title, fontsize=11.5)
    rows = list(panel.bars)
    if not any(bar for of_row in panel.bars.values() for bar in of_row.values()):
        axis.text(0.5, 0.5, textwrap.fill(panel.absent or "nothing to draw", 44), ha="center", va="center",
                  color="0.4", transform=axis.transAxes)  # fmt: skip
        axis.set_axis_off()
        return
    width = 0.86 / len(rows)
    top = 0.0
    for number, name in enumerate(rows):
        look, labelled = panel.looks[name], False
        for place, group in enumerate(panel.groups):
            bar = panel.bars[name].get(group)
            if bar is None:
                continue
            x = place + (number - (len(rows) - 1) / 2) * width
            axis.bar(
                x, bar.value, 0.94 * width, color=look.color, hatch=look.hatch, edgecolor=look.edge, lw=0.6, zorder=2,
                label=None if labelled else name,
            )  # fmt: skip
            labelled, high = True, bar.value
            if bar.low is not None and bar.high is not None:
                axis.plot([x, x], [bar.low, bar.high], color="0.15", lw=1.3, zorder=3, solid_capstyle="butt",
                          path_effects=_HALO)  # fmt: skip
                high = max(high, bar.high)
            if len(bar.seeds) > 1:
                spread = [x + (i - (len(bar.seeds) - 1) / 2) * 0.16 * width for i in range(len(bar.seeds))]
                axis.plot(spread, bar.seeds, "o", ms=3.4, mfc="white", mec="0.15", mew=0.8, zorder=4)
                high = max(high, *bar.seeds)
            axis.annotate(
                f"{bar.value:.{bar.digits}f}{bar.mark}", (x, high), xytext=(0, 2), textcoords="offset points",
                ha="center", va="bottom", fontsize=8, rotation=90 if len(rows) > 5 or bar.digits > 1 else 0, zorder=5,
            )  # fmt: skip
            top = max(top, high)
    names = [f"{group}\n{panel.captions[group]}" if group in panel.captions else group for group in panel.groups]
    axis.set(xticks=range(len(panel.groups)), xticklabels=names, ylabel="%", ylim=(0, 1.13 * top))
    axis.set_xlim(-0.55, len(panel.groups) - 0.45)
    axis.tick_params(axis="x", labelsize=9.5, length=0)
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=4 if len(rows) > 5 else 3, frameon=False, fontsize=9
    )
    sns.despine(ax=axis, left=True)


# Figure 3 -------------------------------------------------------------------------------------------------------------

_WIDTH, _MARGIN, _GAP = 13.0, 0.35, 0.4
"""Of the picture, in inches."""
_POINTS, _LINE = 9.5, 0.182
"""Size of the type, and height of a line in inches."""
_CHARACTER = _POINTS * 0.602 / 72
"""Width of a character of the fixed-width face, in inches."""
_MONO = {"family": "DejaVu Sans Mono", "fontsize": _POINTS, "parse_math": False, "va": "top", "linespacing": 1.0}


@dataclass(frozen=True)
class AnswerColumn:
    """One of the two answers."""

    label: str
    color: str
    """Of the bar above it."""
    verdicts: tuple[tuple[str, bool], ...]
    """What each rule says, and whether that is right."""
    facts: tuple[tuple[str, str], ...]
    completion: str


def answers_figure(
    title: str, question: str, gold: str, columns: Sequence[AnswerColumn], footer: str, longest: int = 34
) -> Figure:
    """One problem and the answers of two models side by side.

    Args:
        question, gold: as text; nothing in them is typeset.
        footer: how the item was chosen.
        longest: lines of a completion that are drawn; of a longer one the beginning and the end.
    """
    use_style(grid=False)
    whole = _WIDTH - 2 * _MARGIN
    column = (whole - _GAP * (len(columns) - 1)) / len(columns)
    head = [*_lines("Question: " + question, whole, 30), *_lines(f"Gold: {gold}", whole, 6)]
    facts = [[line for name, value in c.facts for line in _lines(f"{name}: {value}", column, 3)] for c in columns]
    texts = [_lines(c.completion, column - 0.2, longest) for c in columns]
    foot = textwrap.wrap(footer, int(whole / _CHARACTER * 1.12))
    tallest = max(len(f) + len(t) for f, t in zip(facts, texts, strict=True))
    height = 0.55 + _LINE * (len(head) + 1) + 0.75 + _LINE * (tallest + 1.5) + _LINE * (len(foot) + 1) + 0.25
    figure = plt.figure(figsize=(_WIDTH, height))
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, _WIDTH), ylim=(height, 0))  # inches, downwards
    canvas.set_axis_off()
    canvas.text(_MARGIN, 0.2, title, va="top", fontsize=12, color="0.2", parse_math=False)
    y = _write(canvas, _MARGIN, 0.6, head) + 0.2
    bottom = y
    for number, (entry, of_facts, text) in enumerate(zip(columns, facts, texts, strict=True)):
        x = _MARGIN + number * (column + _GAP)
        canvas.add_patch(Rectangle((x, y), column, 0.34, facecolor=entry.color, lw=0))
        canvas.text(x + 0.1, y + 0.17, entry.label, va="center", color="white", fontsize=10.5, fontweight="bold",
                    parse_math=False)  # fmt: skip
        said = "   ".join(f"{'✓' if right else '✗'} {words}" for words, right in entry.verdicts)
        canvas.text(x, y + 0.44, said, va="top", fontsize=10, fontweight="bold", color="0.1", parse_math=False)
        below = _write(canvas, x, y + 0.7, of_facts, color="0.35") + 0.08
        box = _LINE * len(text) + 0.2
        canvas.add_patch(Rectangle((x, below), column, box, facecolor="#f4f4f2", edgecolor="0.8", lw=0.8))
        bottom = max(bottom, _write(canvas, x + 0.1, below + 0.1, text) + 0.1)
    for number, line in enumerate(foot):
        canvas.text(_MARGIN, bottom + 0.15 + number * _LINE, line, va="top", fontsize=9.5, color="0.35",
                    parse_math=False)  # fmt: skip
    return figure


def _write(canvas: Axes, x: float, y: float, lines: Sequence[str], color: str = "0.1") -> float:
    """Write lines downwards from y; where the next one would stand."""
    for number, line in enumerate(lines):
        if line:
            canvas.text(x, y + number * _LINE, line, color=color, **_MONO)
    return y + len(lines) * _LINE


def _lines(text: str, inches: float, longest: int) -> list[str]:
    """Text wrapped to a width; of too many lines the first and the last."""
    columns = int(inches / _CHARACTER)
    lines: list[str] = []
    for part in drawable(text).expandtabs(4).split("\n"):
        lines += textwrap.wrap(part, columns, replace_whitespace=False, drop_whitespace=False) or [""]
    if len(lines) <= longest:
        return lines
    head = longest * 3 // 5
    tail = longest - head - 1
    return [*lines[:head], f"[… {len(lines) - head - tail} lines left out …]", *lines[len(lines) - tail :]]


def drawable(text: str) -> str:
    """Text in which every character can be seen and is in the face; others are white squares."""
    face = _face()
    return "".join(c if c in "\n\t" or face.get_char_index(ord(c)) else "□" for c in visible(text))


@cache
def _face():
    return font_manager.get_font(font_manager.findfont("DejaVu Sans Mono"))
