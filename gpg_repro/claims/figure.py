"""The forest plot of the claims. Receives findings and words, estimates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval_harness.style import GPG_BLUE, GRPO_GRAY, HARD_RED, use_style
from gpg_repro.claims.rule import Finding, Verdict

_LOOKS = {
    Verdict.SUPPORTED: (GPG_BLUE, "o", GPG_BLUE),
    Verdict.NOT_RESOLVED: (GRPO_GRAY, "o", "white"),
    Verdict.CONTRADICTED: (HARD_RED, "s", HARD_RED),
    Verdict.NOT_TESTED: (GRPO_GRAY, "x", GRPO_GRAY),
}
"""Colour of the line, marker, and its filling: the words differ in shape and filling, not in colour alone."""


@dataclass(frozen=True)
class Line:
    """One comparison."""

    label: str
    label_measured: str
    claimed: str
    bound: float
    printed: float | None
    printed_finding: Finding | None
    printed_verdict: Verdict
    measured: Finding | None
    measured_verdict: Verdict


def forest_figure(lines: Sequence[Line], place: str, title: str) -> Figure:
    """Printed differences left, measured ones right, each on an axis of its own.

    Args:
        lines: from top to bottom.
        place: how words of the right panel are introduced, e.g. ``in miniature``.
    """
    use_style()
    figure, axes = plt.subplots(1, 2, figsize=(17.5, 0.38 * len(lines) + 2.4), layout="constrained", squeeze=False)
    left, right = axes[0]
    for number, line in enumerate(lines):
        y = len(lines) - number
        _draw_printed(left, line, y)
        _draw_measured(right, line, y)
    rows = range(len(lines), 0, -1)
    left.set_yticks(rows, [f"{line.label}   {line.claimed}" for line in lines], fontsize=8.5)
    labels = [line.label_measured if line.measured else "not measured" for line in lines]
    right.set_yticks(rows, labels, fontsize=8.5)
    for text, line in zip(right.get_yticklabels(), lines, strict=True):
        text.set_color("0.1" if line.measured else "0.55")
    left.set_title("Printed, points\n95 % implied by item counts")
    right.set_title(f"Measured here, {place}, points\n95 %: thick over items, thin over seeds")
    for axis in (left, right):
        axis.axvline(0, color="0.3", lw=1)
        axis.set_ylim(0.4, len(lines) + 0.6)
        axis.margins(x=0.12)
        axis.title.set_fontsize(11)
        sns.despine(ax=axis, left=True)
    for word, (color, marker, face) in _LOOKS.items():
        meaning = {Verdict.NOT_TESTED: "no interval, or not measured"}.get(word, str(word))
        right.plot([], [], marker, color=color, mfc=face, ls="", ms=7, label=meaning)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False, fontsize=9.5)
    figure.suptitle(f"{title}. Beside each row: the claimed side", fontsize=11.5, color="0.35")
    return figure


def _draw_printed(axis: Axes, line: Line, y: int) -> None:
    if line.printed is None:
        _say(axis, "not printed", y)
        return
    color, marker, face = _LOOKS[line.printed_verdict]
    end = line.printed
    for found in line.printed_finding.intervals if line.printed_finding else ():
        axis.plot([found.low, found.high], [y, y], color=color, alpha=0.5, lw=2.5)
        end = max(end, found.high)
    axis.plot(line.printed, y, marker, color=color, mfc=face, ms=6.5)
    _bound(axis, line, y)
    _beside(axis, line.printed, end, y)


def _draw_measured(axis: Axes, line: Line, y: int) -> None:
    if line.measured is None:
        return
    color, marker, face = _LOOKS[line.measured_verdict]
    for found in line.measured.intervals:
        over_items = found.over == "items"
        height = y if over_items else y - 0.26
        axis.plot([found.low, found.high], [height, height], color=color, alpha=0.5 if over_items else 0.9,
                  lw=2.5 if over_items else 1.1)  # fmt: skip
    axis.plot(line.measured.value, y, marker, color=color, mfc=face, ms=6.5)
    _bound(axis, line, y)
    _beside(axis, line.measured.value, max(found.high for found in line.measured.intervals), y)


def _bound(axis: Axes, line: Line, y: int) -> None:
    """A tick where the claim sets a bound other than zero."""
    if line.bound:
        axis.plot([line.bound] * 2, [y - 0.35, y + 0.35], color="0.3", lw=1.2, ls=":")


def _beside(axis: Axes, value: float, end: float, y: int) -> None:
    text = f"{value:+.1f}".replace("-", "−")
    axis.annotate(text, (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)


def _say(axis: Axes, text: str, y: int) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axis.text(0.01, y, text, va="center", color="0.5", fontsize=8.5, bbox=box, transform=axis.get_yaxis_transform())
