"""Figures of the audit. They receive finished numbers and estimate nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval_harness.style import (
    BAND,
    BASE_BLACK,
    GPG_BLUE,
    GRPO_GRAY,
    HARD_RED,
    INTERVAL_ALPHA,
    SFT_GOLD,
    use_style,
)
from gpg_repro.audit.readings import INSIDE, NO_INTERVAL, NOT_COMPARABLE, NOT_PRINTED, OUTSIDE, Reading
from gpg_repro.counts import shown

_LOOKS = {
    OUTSIDE: (GPG_BLUE, "o", GPG_BLUE, "zero outside the interval"),
    INSIDE: (GRPO_GRAY, "o", "white", "zero inside"),
    NO_INTERVAL: (BASE_BLACK, "D", "white", "no interval: mean of IoUs"),
    NOT_COMPARABLE: (HARD_RED, "x", HARD_RED, "not comparable"),
}
_VERDICTS = {
    "rounded": (GPG_BLUE, "o", "a count, rounded"),
    "cut": (SFT_GOLD, "s", "a count only with its digits cut off"),
    "none": (HARD_RED, "D", "no count of single samples"),
    "several samples": (BASE_BLACK, "^", "no count: row averages several samples"),
}
_REACH = 3.0
"""Units of the last printed digit that the strip shows on either side; what lies beyond is drawn at its edge."""


def differences_figure(panels: Sequence[tuple[str, Sequence[Reading]]], digits: Mapping[str, int]) -> Figure:
    """Printed differences with the intervals that item counts imply, one panel beside the other, grouped by topic.

    Args:
        panels: title and readings of each panel, in order.
        digits: printed decimals of a column, for the labels.
    """
    use_style()
    blocks = [(title, _lines(readings)) for title, readings in panels]
    most = max(len(lines) for _, lines in blocks)
    figure, axes = plt.subplots(
        1, len(blocks), figsize=(9.2 * len(blocks), 0.31 * most + 1.9), layout="constrained", squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], blocks, strict=True):
        _forest(axis, lines, digits)
        axis.set_title(title, fontsize=12, loc="left")
        axis.set_ylim(most - 0.4, -0.7)
    used = {reading.verdict for _, readings in panels for reading in readings}
    for verdict, (color, marker, face, label) in _LOOKS.items():
        if verdict in used:
            axes[0, 0].plot([], [], marker, color=color, mfc=face, label=label, ls="", ms=7)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False)
    figure.suptitle(
        "Printed differences, percentage points. Bars: 95 % implied by the item counts alone, unpaired, no training "
        "seeds.\nRight: K = samples of each item (greedy decoding: times the items) at which the bar would leave zero",
        fontsize=11,
        color="0.35",
    )
    return figure


def _lines(readings: Sequence[Reading]) -> list[str | Reading]:
    """Readings with the heading of their topic before them."""
    lines: list[str | Reading] = []
    for reading in (one for one in readings if one.verdict != NOT_PRINTED):
        if not any(isinstance(line, Reading) and line.topic == reading.topic for line in lines):
            lines.append(reading.topic)
        lines.append(reading)
    return lines


def _forest(axis: Axes, lines: Sequence[str | Reading], digits: Mapping[str, int]) -> None:
    labels, bold = [], []
    for y, line in enumerate(lines):
        if isinstance(line, str):
            labels.append(line)
            bold.append(y)
            continue
        color, marker, face, _ = _LOOKS[line.verdict]
        if line.low is not None:
            axis.plot([line.low, line.high], [y, y], color=color, lw=2.6, alpha=INTERVAL_ALPHA, solid_capstyle="butt")
        axis.plot(line.difference, y, marker, color=color, mfc=face, ms=6.5, mew=1.6)
        labels.append(f"{_greek(line.pair)}, {line.column}")
        text = shown(line.difference, digits.get(line.column, 1), sign=True)
        if line.times is not None and line.verdict == INSIDE:
            text += f"   K = {line.times:,}{' × items' if line.greedy else ''}"
        axis.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color="0.25")
    axis.axvline(0, color="0.35", lw=1)
    axis.set_yticks(range(len(lines)), labels, fontsize=9)
    for y in bold:
        axis.get_yticklabels()[y].set_fontweight("bold")
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="x", labelsize=9)
    sns.despine(ax=axis, left=True)


def _greek(text: str) -> str:
    for written, sign in (("alpha", "α"), ("beta", "β"), ("B-M", "B−M")):
        text = text.replace(written, sign)
    return text


def attainability_figure(scores: pd.DataFrame, power: pd.DataFrame) -> Figure:
    """How far each printed score lies from the nearest count, in units of its last printed digit.

    Args:
        scores: from ``frames.scores_frame``.
        power: from ``frames.power``.
    """
    use_style()
    digits = {line.column: int(line.decimals) for line in power.itertuples()}
    columns = list(digits)
    seen = scores.assign(unit=scores["column"].map(lambda column: 10.0 ** -digits[column]))
    seen["off"] = (seen["exact"] - seen["value"]) / seen["unit"]
    seen = seen.groupby(["column", "value", "verdict"], as_index=False).agg(
        off=("off", "first"), places=("off", "size")
    )
    figure, axis = plt.subplots(figsize=(12.5, 0.47 * len(columns) + 2.4), layout="constrained")
    axis.axvspan(-0.5, 0.5, color=GPG_BLUE, alpha=0.10, lw=0)
    axis.axvspan(0.5, 1.0, color=BAND, alpha=0.28, lw=0)
    for verdict, (color, marker, label) in _VERDICTS.items():
        part = seen[seen["verdict"] == verdict]
        if len(part):
            rows = part["column"].map(columns.index)
            lift = part.groupby("column").cumcount() % 3 * 0.14 - 0.14 if verdict == "rounded" else 0.0
            axis.plot(
                part["off"].clip(-_REACH, _REACH),
                rows + lift,
                marker,
                color=color,
                ls="",
                ms=6,
                alpha=0.75,
                label=label,
            )
    marked = seen[seen["verdict"] != "rounded"].sort_values("off")
    for column, part in marked.groupby("column", sort=False):
        _name_them(axis, part, columns.index(column), digits[column])
    for y, column in enumerate(columns):
        mine = power[power["column"] == column]
        passes = ", ".join(f"{value:.0%}" for value in mine["passes"])
        sizes = " or ".join(f"{value:,}" for value in mine["items"])
        axis.annotate(
            f"{sizes} items; {passes} pass", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    axis.set(
        yticks=range(len(columns)),
        yticklabels=columns,
        ylim=(len(columns) - 0.4, -0.7),
        xlim=(-_REACH - 0.15, _REACH + 0.15),
        xlabel="nearest count − printed score, in units of the last printed digit (beyond ±3: drawn at the edge)",
    )
    axis.grid(axis="y", visible=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncol=2, frameon=False, fontsize=9.5)
    figure.suptitle(
        "Can a printed score be a count of right answers? Blue band: rounding gives it; yellow: only cutting digits."
        "\nRight: items behind the column, and the share of all printable values that rounding lets pass",
        fontsize=11,
        color="0.35",
    )
    sns.despine(ax=axis, left=True)
    return figure


def _name_them(axis: Axes, part: pd.DataFrame, y: int, digits: int) -> None:
    """Values above their marks; neighbours share a label."""
    at = part["off"].clip(-_REACH, _REACH)
    for _, same in part.groupby((at.diff().abs() > 0.4).cumsum()):
        text = ", ".join(shown(value, digits) for value in sorted(same["value"]))
        where = (at[same.index].mean(), y)
        axis.annotate(text, where, xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color="0.25")
