"""Figures of the controls. They receive finished numbers and estimate nothing."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from eval_harness.style import BASE_BLACK, GPG_BLUE, GRPO_GRAY, INTERVAL_ALPHA, use_style


def sensitivity_figure(frame: pd.DataFrame, heading: str, title: str) -> Figure:
    """Scores of one column under every setting, left, and paired differences from the default, right; 95 % intervals.

    Args:
        frame: lines of :func:`eval_harness.sensitivity.rows` for one benchmark, with ``model``; the base comes first.
        heading: name of the column.
    """
    use_style()
    settings, models = list(dict.fromkeys(frame["setting"])), list(dict.fromkeys(frame["model"]))
    size = (12.5, 0.3 * len(settings) * (1 + len(models)) + 2.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    colors = dict(zip(models, (BASE_BLACK, GPG_BLUE) if len(models) == 2 else [GPG_BLUE] * len(models), strict=True))
    for index, model in enumerate(models):
        shift = 0.5 * (0.5 * (len(models) - 1) - index)
        for line in frame[frame["model"] == model].itertuples():
            y, color = len(settings) - settings.index(line.setting) + shift, colors[model]
            left.plot([100 * line.low, 100 * line.high], [y, y], color=color, alpha=INTERVAL_ALPHA, lw=2.5)
            left.plot(100 * line.mean, y, "o", color=color, ms=7, mfc="white" if line.is_default else color)
            if line.is_default:
                right.plot(0, y, "o", color=color, ms=7, mfc="white")
                continue
            low, high = 100 * line.difference_low, 100 * line.difference_high
            right.plot([low, high], [y, y], color=color, alpha=INTERVAL_ALPHA, lw=2.5)
            right.plot(100 * line.difference, y, "o", color=color, ms=7)
        left.plot([], [], "o", color=colors[model], label=model)
    left.plot([], [], "o", color=GRPO_GRAY, mfc="white", label="default setting")
    left.plot([], [], color=GRPO_GRAY, alpha=INTERVAL_ALPHA, lw=2.5, label="95 % over items")
    left.set_yticks(range(len(settings), 0, -1), settings)
    left.set_ylim(0.3, len(settings) + 0.7)
    left.set_xlabel(f"{heading}, %")
    right.axvline(0, color=GRPO_GRAY, lw=1)
    right.set_xlabel("difference from the default, points (paired)")
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    left.set_xlim(left=min(0, left.get_xlim()[0]))
    counts = ", ".join(f"{n:.0f}" for n in dict.fromkeys(frame["num_items"]))
    figure.suptitle(f"{title}: {counts} items per setting")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(models) + 2, frameon=False)
    return figure


def contamination_figure(labels: Sequence[str], frame: pd.DataFrame, title: str) -> Figure:
    """Gain over the base on old and new questions, left, and the difference of the two with its interval, right.

    Args:
        labels: name of each line.
        frame: lines of :func:`eval_harness.contamination.as_rows`, fractions.
    """
    use_style()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 0.6 * len(frame) + 2.2), sharey=True, layout="constrained"
    )
    for y, line in zip(range(len(frame), 0, -1), frame.itertuples(), strict=True):
        for shift, color, marker, gain in ((0.14, GRPO_GRAY, "s", "gain_old"), (-0.14, GPG_BLUE, "o", "gain_new")):
            low, value, high = (100 * getattr(line, gain + end) for end in ("_low", "", "_high"))
            left.plot([low, high], [y + shift] * 2, color=color, alpha=INTERVAL_ALPHA, lw=2.5)
            left.plot(value, y + shift, marker, color=color, ms=8)
        right.plot([100 * line.low, 100 * line.high], [y, y], color=GPG_BLUE, alpha=INTERVAL_ALPHA, lw=2.5)
        right.plot(
            100 * line.excess, y, "o", color=GPG_BLUE, ms=8, mfc="white" if line.low <= 0 <= line.high else GPG_BLUE
        )
        right.annotate(f"{line.num_items_old} / {line.num_items_new} items", (100 * line.excess, y), (0, 9),
                       textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
    left.plot([], [], "s", color=GRPO_GRAY, ls="", label="on old questions")
    left.plot([], [], "o", color=GPG_BLUE, ls="", label="on new questions")
    right.plot([], [], color=GPG_BLUE, alpha=INTERVAL_ALPHA, lw=2.5, label="95 % over items")
    left.set_yticks(range(len(frame), 0, -1), labels)
    left.set_ylim(0.4, len(frame) + 0.7)
    left.set_xlabel("gain over the base, points")
    right.set_xlabel("gain on old − gain on new, points")
    right.axvline(0, color=GRPO_GRAY, lw=1)
    left.axvline(0, color=GRPO_GRAY, lw=1)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    handles = [axis.get_legend_handles_labels() for axis in (left, right)]
    figure.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    figure.suptitle(title)
    return figure
