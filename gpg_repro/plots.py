"""Figures. They receive finished numbers and estimate nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from gpg_repro.tables.base import Table, implied_interval, published_scores

GPG_BLUE, GRPO_GRAY, BASE_BLACK = "#2563ab", "#8a8a8a", "#222222"


def row_color(key: str) -> str:
    """GPG blue, GRPO gray (the paper's Figure 4), the base and others black."""
    return GPG_BLUE if key.startswith("gpg") else GRPO_GRAY if key.startswith("grpo") else BASE_BLACK


def table_figure(table: Table, measured: pd.DataFrame, scale: str, reference: pd.DataFrame | None = None) -> Figure:
    """Averages of a table: the published ones left, ours right, each on an axis of its own, with 95 % intervals."""
    sns.set_theme(style="whitegrid", context="notebook")
    rows = [row for row in table.rows_at(scale) if row.published or (measured.row == row.key).any()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 0.52 * len(rows) + 2.1), layout="constrained")
    positions = {row.key: len(rows) - i for i, row in enumerate(rows)}
    published = published_scores(table)
    for row in rows:
        if row.key not in published.index:
            left.text(
                0.02,
                positions[row.key],
                "not in the paper",
                va="center",
                color="0.5",
                bbox={"facecolor": "white", "edgecolor": "none"},
                fontsize=10,
                transform=left.get_yaxis_transform(),
            )
            continue
        printed = published.loc[row.key]
        low, high = implied_interval(printed, table.benchmarks)
        left.plot([low, high], [positions[row.key]] * 2, color=row_color(row.key), alpha=0.45, lw=2.5)
        left.plot(printed["Average"], positions[row.key], "o", color=row_color(row.key), ms=8)
        left.annotate(
            f"{printed['Average']:.1f}",
            (printed["Average"], positions[row.key]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    left.set(
        title=f"Published (paper v3): mean of {len(table.benchmarks)} benchmarks, %",
        yticks=list(positions.values()),
        yticklabels=[row.label for row in rows],
    )
    sets = [(measured, 0.0, "o", "this run" if reference is not None and len(reference) else None)]
    if reference is not None and len(reference):
        sets = [
            (measured, 0.14, "o", _seeds("this run", measured)),
            (reference, -0.14, "D", _seeds("committed records", reference)),
        ]
    for frame, shift, marker, label in sets:
        averages = frame[frame.column == "average"].set_index("row")
        for key, cell in averages.iterrows():
            y = positions[key] + shift
            right.plot([100 * cell["low"], 100 * cell["high"]], [y, y], color=row_color(key), alpha=0.45, lw=2.5)
            right.plot(100 * cell["mean"], y, marker, color=row_color(key), ms=7)
            right.annotate(
                f"{100 * cell['mean']:.1f}",
                (100 * cell["high"], y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        if label:
            right.plot([], [], marker, color="0.4", label=label, ls="")
    columns = "benchmarks" if scale == "paper" else "suites"
    kind = "measured here" if scale == "paper" else f"Miniature ({scale}, not comparable)"
    right.set(
        title=f"{kind}: mean of {len(table.benchmarks_at(scale))} {columns}, %",
        yticks=list(positions.values()),
        yticklabels=[row.label if scale == "paper" else row.tiny_label for row in rows],
    )
    if len(sets) > 1:
        right.legend(loc="upper right", bbox_to_anchor=(1.0, -0.1), ncol=2, frameon=False, fontsize=9)
    for axis in (left, right):
        axis.set_ylim(0.4, len(rows) + 0.6)
        axis.margins(x=0.15)
        axis.title.set_fontsize(11)
        sns.despine(ax=axis, left=True)
    figure.suptitle(
        f"Table {table.number}. Bars: 95 % intervals over items (published: implied by the item counts alone)",
        fontsize=11,
        color="0.35",
    )
    return figure


def _seeds(name: str, frame: pd.DataFrame) -> str:
    most = int(frame["num_seeds"].max())
    return f"{name} ({most} training seed{'s' if most > 1 else ''})"


def training_figure(curves: Mapping[str, Sequence[pd.DataFrame]], keys: Mapping[str, str], window: int = 10) -> Figure:
    """Reward, alpha and within-group reward standard deviation against the step, one line per run, faint per seed.

    Args:
        curves: label -> one frame of steps per seed (columns step, reward, alpha, reward_std).
        keys: label -> row key, for the colour.
        window: steps of the centred moving average.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    panels = (("reward", "sampled reward"), ("alpha", "α = B/(B−M)"), ("reward_std", "mean within-group reward std"))
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    styles = ["-", "--", ":", "-."]
    used: dict[str, int] = {}
    for label, frames in curves.items():
        color = row_color(keys[label])
        style = styles[used.setdefault(color, 0) % len(styles)]
        used[color] += 1
        for axis, (column, _) in zip(axes, panels, strict=True):
            smooth = [f.set_index("step")[column].rolling(window, min_periods=1, center=True).mean() for f in frames]
            for line in smooth if len(smooth) > 1 else []:
                axis.plot(line.index, line, color=color, alpha=0.2, lw=1, ls=style)
            mean = pd.concat(smooth, axis=1).mean(axis=1)
            axis.plot(mean.index, mean, color=color, ls=style, lw=1.8, label=label)
    for axis, (_, title) in zip(axes, panels, strict=True):
        axis.set(xlabel="optimiser step", title=title)
        axis.title.set_fontsize(11.5)
        sns.despine(ax=axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False, fontsize=10)
    return figure
