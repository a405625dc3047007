"""Figures. They receive finished numbers and estimate nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from eval_harness.style import (
    BAND,
    BASE_BLACK,
    EASY_GREEN,
    GPG_BLUE,
    GPG_LIGHT,
    GRPO_GRAY,
    HARD_RED,
    SFT_GOLD,
    use_style,
)
from gpg_repro.tables.base import Table, published_scores, source_name
from gpg_repro.tables.printed import implied_difference, implied_interval

SEED_SHIFT = 0.2
"""How far above a mark its single seeds stand, in rows."""
_RIVALS = ("grpo", "dr_grpo", "dapo", "rstar", "eurus", "oat", "orz", "simplerl")
_UNTRAINED = ("base", "still3", "instruct", "no_template")


def row_color(key: str) -> str:
    """Black for the base and other authors' models, gold for SFT, gray for the rivals (as in the paper), GPG blue.

    Where GPG stands as two methods, R0 is the lighter blue.
    """
    if key in _UNTRAINED:
        return BASE_BLACK
    if key in ("sft", "gpg_r0"):
        return SFT_GOLD if key == "sft" else GPG_LIGHT
    return GRPO_GRAY if key.startswith(_RIVALS) else GPG_BLUE


def table_figure(
    table: Table, scale: str, measured: pd.DataFrame | None, committed: pd.DataFrame | None = None
) -> Figure:
    """Headline numbers of a table: published left, ours right, each on an axis of its own, with 95 % intervals.

    A table that shows both rules has the strict one as hollow marks below.
    """
    use_style()
    published = published_scores(table)
    sets = [(name, frame) for name, frame in (("this run", measured), ("committed records", committed))
            if frame is not None and len(frame)]  # fmt: skip
    known = set(published.index).union(*(set(frame.row) for _, frame in sets))
    rows = [row for row in table.rows_at(scale) if row.key in known]
    positions = {row.key: len(rows) - i for i, row in enumerate(rows)}
    longest = max(len(row.label) for row in rows)
    width = (13 if longest < 32 else 15.5) if len(published) else 9
    height = (0.8 if table.both_rules else 0.52) * len(rows) + 2.1
    figure, axes = plt.subplots(
        1, 2 if len(published) else 1, figsize=(width, height), layout="constrained", squeeze=False
    )
    right = axes[0, -1]
    if len(published):
        _published_axis(axes[0, 0], table, published, {row: positions[row.key] for row in rows})
    rules = ("published", "strict") if table.both_rules else ("published",)
    layers = [(name, frame, marker, rule) for (name, frame), marker in zip(sets, "oD", strict=False) for rule in rules]
    for number, (name, frame, marker, rule) in enumerate(layers):
        shift = 0.28 * ((len(layers) - 1) / 2 - number) / (1 if len(layers) < 3 else 1.4)
        chosen = frame[(frame["column"] == table.headline_at(scale)) & (frame["rule"] == rule)]
        for key, cell in chosen.set_index("row").iterrows():
            _mark(right, cell, positions[key] + shift, row_color(key), marker, hollow=rule == "strict")
        of_rule = f", {rule} rule" if table.both_rules else ""
        face = "white" if rule == "strict" else "0.4"
        right.plot([], [], marker, color="0.4", mfc=face, label=_seeds(name, frame, of_rule), ls="")
    if any((frame["num_seeds"] > 1).any() for _, frame in sets):
        right.plot([], [], ".", color="0.4", ls="", label="single seeds")
    kind = "Measured here" if scale == "paper" else f"Miniature ({scale}, not comparable)"
    right.set(
        title=f"{kind}\n{_headline(table, scale)}, %",
        yticks=list(positions.values()),
        yticklabels=[row.label_at(scale) for row in rows],
    )
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncol=2, frameon=False, fontsize=9)
    for axis in axes.flat:
        _finish(axis, len(rows))
    implied = len(published) and all(column.is_count for column in table.printed_columns)
    figure.suptitle(
        f"{table.name}. Bars: 95 % intervals over items"
        + (" (published: implied by the item counts alone)" if implied else ""),
        fontsize=11,
        color="0.35",
    )
    return figure


def _mark(axis: Axes, cell: pd.Series, y: float, color: str, marker: str, hollow: bool) -> None:
    axis.plot([100 * cell["low"], 100 * cell["high"]], [y, y], color=color, alpha=0.45, lw=2.5)
    axis.plot(100 * cell["mean"], y, marker, color=color, mfc="white" if hollow else color, ms=7)
    _single_seeds(axis, [100 * score for score in cell["seeds"]], y, color)
    _beside(axis, f"{100 * cell['mean']:.1f}", 100 * cell["high"], y)


def _single_seeds(axis: Axes, values: Sequence[float], y: float, color: str) -> None:
    """Small dots above the mark, one per training seed, where there are several."""
    if len(values) > 1:
        axis.plot(values, [y + SEED_SHIFT] * len(values), ".", color=color, alpha=0.75, ms=4.5)


def _headline(table: Table, scale: str) -> str:
    """What the headline number is: ``mean of 5 suites``, ``Total of Scenes``, or the column itself."""
    if table.summary == "average":
        return f"mean of {len(table.printed_columns)} {'benchmarks' if scale == 'paper' else 'suites'}"
    if table.summary == "total":
        return f"Total over {sum(column.printed for column in table.columns)} tasks"
    return table.headline_title(scale)


def _published_axis(axis: Axes, table: Table, published: pd.DataFrame, positions: Mapping) -> None:
    for row, y in positions.items():
        value = published.loc[row.key, table.headline] if row.key in published.index else None
        if pd.isna(value):
            _absent(axis, y, "not in the paper" if value is None else f"no {table.headline} printed")
            continue
        printed = published.loc[row.key]
        low, high = implied_interval(table, printed) or (value, value)
        axis.plot([low, high], [y, y], color=row_color(row.key), alpha=0.45, lw=2.5)
        axis.plot(value, y, "o", color=row_color(row.key), ms=8)
        _beside(axis, f"{value:.{table.columns[0].digits}f}", high, y)
    axis.set(
        title=f"{table.published_as.capitalize()}\n{_headline(table, 'paper')}, %",
        yticks=list(positions.values()),
        yticklabels=[
            ", ".join(
                [
                    row.label,
                    *([source_name(row)] if table.several_sources and row.published else []),
                    *(f"{title} of {items}" for title, items in row.published_items),
                ]
            )
            for row in positions
        ],
    )


def columns_figure(table: Table, scale: str, ours: pd.DataFrame | None) -> Figure:
    """Every column of a table: published values above, ours below with 95 % intervals, strict rule hollow.

    Args:
        ours: from ``tables.numbers.scores``; None or a row without lines: not measured.
    """
    use_style()
    published, columns = published_scores(table), table.printed_columns
    rows = table.rows_at(scale)
    positions = {row.key: len(rows) - i for i, row in enumerate(rows)}
    figure, axes = plt.subplots(
        2,
        len(columns),
        figsize=(2.6 + 2.9 * len(columns), 1.15 * len(rows) + 2.2),
        layout="constrained",
        squeeze=False,
        sharey="row",
        height_ratios=[0.7, 1],
    )
    for above, below, column in zip(*axes, columns, strict=True):
        for row in rows:
            y, color = positions[row.key], row_color(row.key)
            if row.key in published.index:
                value = published.loc[row.key, column.title]
                above.plot(value, y, "o", color=color, ms=7)
                _beside(above, f"{value:.{column.digits}f}", value, y)
            for rule, shift in (("published", 0.16), ("strict", -0.16)) if ours is not None else ():
                cells = ours[(ours["row"] == row.key) & (ours["rule"] == rule)].set_index("column")
                if column.name_at(scale) in cells.index:
                    _mark(below, cells.loc[column.name_at(scale)], y + shift, color, "o", hollow=rule == "strict")
        above.set(title=f"published\n{column.title}, %")
        below.set(title=f"{column.title_at(scale)}, %")
        for axis in (above, below):
            _finish(axis, len(rows))
            axis.margins(x=0.3)
    axes[0, 0].set(
        yticks=list(positions.values()),
        yticklabels=[
            f"{row.label} ({source_name(row)})" if table.several_sources and row.published else row.label
            for row in rows
        ],
    )
    axes[1, 0].set(yticks=list(positions.values()), yticklabels=[row.label_at(scale) for row in rows])
    axes[1, 0].plot([], [], "o", color="0.4", label="published rule")
    axes[1, 0].plot([], [], "o", color="0.4", mfc="white", label="strict rule")
    figure.legend(
        *axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False, fontsize=9
    )
    kind = "measured here" if scale == "paper" else f"a miniature ({scale}, not comparable)"
    figure.suptitle(f"{table.name}: above published, below {kind}; bars: 95 % over items", fontsize=11, color="0.35")
    return figure


def differences_figure(table: Table, scale: str, ours: pd.DataFrame, origin: str) -> Figure:
    """The table's comparisons: published differences left, ours right; filled where two rows are told apart.

    Args:
        ours: from ``tables.numbers.differences``.
        origin: where ``ours`` comes from.
    """
    use_style()
    published, names = published_scores(table), {row.key: row for row in table.rows}
    found = {(line.row, line.against): line for line in ours.itertuples()}
    pairs = [pair for pair in table.comparisons if pair in found or set(pair) <= set(published.index)]
    positions = {pair: len(pairs) - i for i, pair in enumerate(pairs)}
    figure, axes = plt.subplots(
        1,
        2 if len(published) else 1,
        figsize=(15.5 if len(published) else 10, 0.6 * len(pairs) + 2.5),
        layout="constrained",
        squeeze=False,
    )
    if len(published):
        left = axes[0, 0]
        _pair_labels(left, {f"{names[a].label}\n− {names[b].label}": y for (a, b), y in positions.items()})
        for pair, y in positions.items():
            if not set(pair) <= set(published.index):
                _absent(left, y)
                continue
            gap, low, high = implied_difference(table, published.loc[pair[0]], published.loc[pair[1]])
            inside = low is not None and low <= 0 <= high
            if low is not None:
                left.plot([low, high], [y, y], color=GPG_BLUE, alpha=0.45, lw=2.5)
            left.plot(gap, y, "x" if low is None else "o", color=GPG_BLUE, ms=8, mfc="white" if inside else GPG_BLUE)
            _beside(left, f"{gap:+.1f}", gap if low is None else high, y)
        bars = (
            "bars: implied by item counts, unpaired" if low is not None else "no interval: no counts of right answers"
        )
        left.set_title(f"{table.published_as.capitalize()}, points\n{bars}")
    right = axes[0, -1]
    for pair, y in positions.items():
        if pair not in found:
            right.text(0.02, y, "not measured", va="center", color="0.5", transform=right.get_yaxis_transform())
            continue
        line = found[pair]
        right.plot([line.low, line.high], [y, y], color=GPG_BLUE, alpha=0.45, lw=2.5)
        right.plot(line.difference, y, "o", color=GPG_BLUE, ms=8, mfc=GPG_BLUE if line.apart else "white")
        if line.seeds_low is not None and not pd.isna(line.seeds_low):
            right.plot([line.seeds_low, line.seeds_high], [y - 0.22] * 2, color=GRPO_GRAY, alpha=0.7, lw=1.5)
        _single_seeds(right, line.seeds, y, GPG_BLUE)
        _beside(right, f"{line.difference:+.1f}", line.high, y)
    kind = "Measured here" if scale == "paper" else f"Miniature ({scale}, not comparable)"
    seeds = int(ours["num_seeds"].max())
    right.set_title(f"{kind}, points\n{origin}, {seeds} training seed{'s' if seeds > 1 else ''}")
    right.plot([], [], color=GPG_BLUE, alpha=0.45, lw=2.5, label="95 % over items, paired")
    if seeds > 1:
        right.plot([], [], ".", color=GPG_BLUE, ls="", label="single seeds")
    if ours["seeds_low"].notna().any():
        right.plot([], [], color=GRPO_GRAY, alpha=0.7, lw=1.5, label="95 % over training seeds")
    right.plot([], [], "o", color=GPG_BLUE, ls="", label="told apart" if seeds > 2 else "told apart (items alone)")
    right.plot([], [], "o", color=GPG_BLUE, mfc="white", ls="", label="not told apart")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncol=5, frameon=False, fontsize=9)
    labels = {f"{names[a].label_at(scale)}\n− {names[b].label_at(scale)}": y for (a, b), y in positions.items()}
    _pair_labels(right, labels)
    for axis in axes.flat:
        axis.axvline(0, color="0.3", lw=1)
        _finish(axis, len(pairs))
    figure.suptitle(f"{table.name}: differences of {table.headline_title(scale)}", fontsize=11, color="0.35")
    return figure


def _pair_labels(axis: Axes, labels: Mapping[str, int]) -> None:
    axis.set(yticks=list(labels.values()), yticklabels=list(labels))
    axis.tick_params(axis="y", labelsize=9)


def _beside(axis: Axes, text: str, x: float, y: float) -> None:
    axis.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)


def _absent(axis: Axes, y: float, text: str = "not in the paper") -> None:
    axis.text(
        0.02,
        y,
        text,
        va="center",
        color="0.5",
        bbox={"facecolor": "white", "edgecolor": "none"},
        fontsize=10,
        transform=axis.get_yaxis_transform(),
    )


def _finish(axis: Axes, num_rows: int) -> None:
    axis.set_ylim(0.4, num_rows + 0.6)
    axis.margins(x=0.15)
    axis.title.set_fontsize(11)
    sns.despine(ax=axis, left=True)


def _seeds(name: str, frame: pd.DataFrame, rule: str = "") -> str:
    most = int(frame["num_seeds"].max())
    return f"{name}{rule} ({most} training seed{'s' if most > 1 else ''})"


def training_figure(
    curves: Mapping[str | None, Mapping[str, Sequence[pd.DataFrame]]], keys: Mapping[str, str], window: int = 10
) -> Figure:
    """Reward, alpha and within-group reward standard deviation against the step, one line per row, faint per seed.

    Supervised trainings have none of the three and are named below.

    Args:
        curves: set -> label -> one frame of steps per seed (columns step, reward, alpha, reward_std); a line of axes
            per set, ``None`` where all rows train on one.
        keys: label -> row key, for the colour.
        window: steps of the centred moving average.
    """
    use_style()
    panels = (("reward", "sampled reward"), ("alpha", "α = B/(B−M)"), ("reward_std", "mean within-group reward std"))
    height = 4.1 if len(curves) == 1 else 2.7 * len(curves) + 0.6
    figure, axes = plt.subplots(len(curves), 3, figsize=(13, height), layout="constrained", squeeze=False)
    supervised: dict[str, None] = {}
    for line_of_axes, (name, rows) in zip(axes, curves.items(), strict=True):
        drawn = {label: frames for label, frames in rows.items() if all("reward" in frame for frame in frames)}
        supervised |= dict.fromkeys(label for label in rows if label not in drawn)
        looks = _looks(drawn, keys)
        for axis, (column, title) in zip(line_of_axes, panels, strict=True):
            for label, frames in drawn.items():
                color, style = looks[label]
                smooth = [smoothed(frame, column, window) for frame in frames]
                for line in smooth if len(smooth) > 1 and len(drawn) <= 5 else []:
                    axis.plot(line.index, line, color=color, alpha=0.2, lw=1, ls=style)
                mean = pd.concat(smooth, axis=1).mean(axis=1)
                axis.plot(mean.index, mean, color=color, ls=style, lw=1.8, label=label)
            axis.set(title=title if name is None else f"{name}: {title}", xlabel="optimiser step")
            axis.title.set_fontsize(11.5)
            sns.despine(ax=axis)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False, fontsize=10
    )
    if supervised:
        figure.suptitle(f"{', '.join(supervised)}: supervised, no rewards", fontsize=10, color="0.35")
    return figure


def _looks(labels: Iterable[str], keys: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each row: the rows' own colours, told apart by style; a palette where they are many."""
    labels, styles = list(labels), ["-", "--", ":", "-."]
    if len(labels) > 5:  # too many for two colours
        return {
            label: (color, "-")
            for label, color in zip(labels, sns.color_palette("colorblind", len(labels)), strict=True)
        }
    looks, used = {}, Counter()
    for label in labels:
        color = row_color(keys[label])
        looks[label] = (color, styles[used[color] % len(styles)])
        used[color] += 1
    return looks


def smoothed(frame: pd.DataFrame, column: str, window: int = 10) -> pd.Series:
    """Centred moving average of one metric over optimiser steps, of a quarter of a run at most; index step.

    A step without a group with a signal has no alpha (it is logged as 0) and is left out of the average of alpha.
    """
    values = frame.set_index("step")[column]
    if column == "alpha":
        values = values.where(values > 0)
    return values.rolling(max(1, min(window, len(frame) // 4)), min_periods=1, center=True).mean()


def dynamics_figure(
    frames: Sequence[pd.DataFrame], quoted: Mapping[str, tuple[float, float]], scale: str, window: int = 10
) -> Figure:
    """Figure 2: shares of groups without signal, alpha, within-group reward deviation, against the step.

    Args:
        frames: steps of each seed (columns step, frac_easy, frac_hard, alpha, reward_std).
        quoted: ranges the paper's text quotes for alpha and reward_std, drawn as bands.
        window: steps of the centred moving average.
    """
    use_style()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    lines = (
        (axes[0], "frac_easy", EASY_GREEN, "all right (easy)"),
        (axes[0], "frac_hard", HARD_RED, "all wrong (hard)"),
        (axes[1], "alpha", GPG_BLUE, "ours"),
        (axes[2], "reward_std", GPG_BLUE, "ours"),
    )
    for axis, column, color, label in lines:
        _seed_lines(axis, frames, column, color, label, window)
    for axis, column in ((axes[1], "alpha"), (axes[2], "reward_std")):
        low, high = quoted[column]
        axis.axhspan(low, high, color=BAND, alpha=0.28, lw=0, label=f"quoted for the paper's 7B run: {low:g}–{high:g}")
    axes[0].set(title="left: share of groups without signal", ylabel="share of groups", ylim=(0, 1))
    axes[1].set(title="in the text only: α = B/(B−M)", ylabel="α", ylim=(0.9, None))
    axes[2].set(title="right: mean within-group reward std", ylabel="reward std (0/1 reward)", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("optimiser step")
        axis.title.set_fontsize(11.5)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9.5)
        sns.despine(ax=axis)
    figure.suptitle(
        f"Figure 2. {_of_seeds(scale, len(frames))}, moving average of up to {window} steps", fontsize=11, color="0.35"
    )
    return figure


def training_curves_figure(
    curves: Mapping[str, Sequence[pd.DataFrame]], functions: Sequence[str], scale: str, window: int = 10
) -> Figure:
    """Figure 4: losses (an axis each), total reward, reward of each function, completion length, against the step.

    Args:
        curves: ``GPG`` and ``GRPO`` -> steps of each seed.
        functions: reward functions, columns ``rewards/<name>``.
        window: steps of the centred moving average.
    """
    use_style()
    both = tuple(curves)
    panels = [(f"loss of {method} (own scale)", "loss", (method,)) for method in both]
    panels += [("total reward", "reward", both), *((f"reward: {name}", f"rewards/{name}", both) for name in functions)]
    panels += [("completion length, tokens", "completion_length", both)]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(14, 3.6 * rows), layout="constrained", squeeze=False)
    colors = {"GPG": GPG_BLUE, "GRPO": GRPO_GRAY}
    for axis, (title, column, methods) in zip(axes.flat, panels, strict=False):
        for method in reversed(methods):  # the wider gray line lies under the blue one
            _seed_lines(axis, curves[method], column, colors[method], method, window, 3.2 if method == "GRPO" else 1.8)
        axis.set(title=title, xlabel="optimiser step")
        axis.title.set_fontsize(11.5)
        sns.despine(ax=axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    shared = axes.flat[len(both)]
    figure.legend(*shared.get_legend_handles_labels(), loc="outside lower center", ncol=2, frameon=False, fontsize=10.5)
    seeds = max(len(frames) for frames in curves.values())
    figure.suptitle(
        f"Figure 4. {_of_seeds(scale, seeds)}, moving average of up to {window} steps", fontsize=11, color="0.35"
    )
    return figure


def _seed_lines(
    axis: Axes, frames: Sequence[pd.DataFrame], column: str, color: str, label: str, window: int, width: float = 2.0
) -> None:
    smooth = [smoothed(frame, column, window) for frame in frames]
    for line in smooth if len(smooth) > 1 else []:
        axis.plot(line.index, line, color=color, alpha=0.25, lw=1)
    mean = pd.concat(smooth, axis=1).mean(axis=1)
    axis.plot(mean.index, mean, color=color, lw=width, label=label)


def _of_seeds(scale: str, seeds: int) -> str:
    kind = "Measured here" if scale == "paper" else f"Miniature (scale {scale}), not the paper's run"
    return f"{kind}: {seeds} training seed{'s, faint lines single ones' if seeds > 1 else ''}"


def components_figure(frame: pd.DataFrame, passes: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Table 2 as a picture: published and found components, and what a step of each trainer costs.

    Args:
        frame: method x (block, component), cells "yes", "no" or "–".
        passes: method -> forward passes per completion with and without gradient, parameters held over the policy's.
    """
    use_style(grid=False)
    blocks = list(dict.fromkeys(top for top, _ in frame.columns))
    figure, axes = plt.subplots(
        1, 3, figsize=(15, 0.55 * len(frame) + 2.2), layout="constrained", width_ratios=[1, 1, 0.95], sharey=True
    )
    colors = {"yes": "#c9d9ee", "no": "#ffffff", "–": "#f1f1f1"}
    for axis, block in zip(axes, blocks, strict=False):
        for i, method in enumerate(frame.index):
            for j, component in enumerate(frame[block].columns):
                text = frame.loc[method, (block, component)]
                axis.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colors[text], edgecolor="0.8"))
                axis.text(j, i, text, ha="center", va="center", fontsize=10.5, color="0.55" if text == "–" else "0.1")
        names = [component.replace(" ", "\n") for component in frame[block].columns]
        axis.set(xlim=(-0.5, len(names) - 0.5), xticks=range(len(names)), xticklabels=names, title=block)
        axis.tick_params(length=0, labelsize=9.5)
    cost = axes[2]
    for i, method in enumerate(frame.index):
        if method not in passes:
            cost.text(0.03, i, "not trained here", va="center", color="0.5", fontsize=10)
            continue
        with_gradient, without, held = passes[method]
        cost.barh(i, with_gradient, color=GPG_BLUE, height=0.55)
        cost.barh(i, without, left=with_gradient, color=GRPO_GRAY, height=0.55)
        cost.annotate(
            f"{with_gradient + without:.2f}  ({held:.0f}× parameters)",
            (with_gradient + without, i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
        )
    most = max(a + b for a, b, _ in passes.values())
    cost.set(xlim=(0, 1.75 * most), xlabel="forward passes per completion", title="cost of one step, smoke base")
    cost.barh([0], [0], color=GPG_BLUE, label="with gradient")
    cost.barh([0], [0], color=GRPO_GRAY, label="without (reference model)")
    cost.legend(loc="upper right", bbox_to_anchor=(1.0, -0.14), ncol=2, frameon=False, fontsize=9)
    axes[0].set(ylim=(len(frame) - 0.5, -0.5), yticks=range(len(frame)), yticklabels=list(frame.index))
    for axis in axes:
        axis.title.set_fontsize(11.5)
        sns.despine(ax=axis, left=True, bottom=axis is not cost)
    return figure


def multipliers_figure(
    ratios: Sequence[float], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """Table 9 as a picture: how strongly one token is pushed, against the ratio to the policy that sampled it.

    Args:
        ratios: rho = pi / pi_old.
        curves: method -> pull on log pi (minus the derivative of the loss) for advantage +1 and for -1.
    """
    use_style()
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained", sharex=True)
    looks = {
        "GPG": (GPG_BLUE, "-", 2.6),
        "PPO, GRPO, Dr. GRPO": (GRPO_GRAY, "-", 2.0),
        "DAPO": (HARD_RED, "--", 1.6),
    }
    for axis, side, title in ((axes[0], 0, "advantage +1"), (axes[1], 1, "advantage −1")):
        for method, pulls in curves.items():
            color, style, width = looks[method]
            axis.plot(ratios, pulls[side], color=color, ls=style, lw=width, label=method)
        axis.axvline(1.0, color="0.4", lw=1, ls=":")
        axis.set(title=title, xlabel="ρ = π / π_old of the token", ylabel="pull on log π (−∂loss/∂log π)")
        axis.title.set_fontsize(11.5)
        sns.despine(ax=axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, frameon=False, fontsize=10)
    figure.suptitle(
        "Table 9. On policy (dotted) all agree; off policy only GPG has no ratio", fontsize=11, color="0.35"
    )
    return figure


def checkpoints_figure(frame: pd.DataFrame, title: str) -> Figure:
    """Score against the optimiser step: the mean first, then an axis per benchmark, with 95 % intervals.

    Args:
        frame: one rule of ``gpg_repro.evaluate.scores``; step 0, where it is there, is drawn on as a dashed line.
    """
    use_style()
    names = sorted(dict.fromkeys(frame["benchmark"]), key=lambda name: name != "mean")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns + 0.6, 3.3 * rows + 0.7), layout="constrained", squeeze=False, sharex=True
    )
    for axis, name in zip(axes.flat, names, strict=False):
        lines = frame[(frame["benchmark"] == name) & frame["mean"].notna()].sort_values("step")
        color = BASE_BLACK if name == "mean" else GPG_BLUE
        steps, means = lines["step"], 100 * lines["mean"]
        axis.fill_between(steps, 100 * lines["low"], 100 * lines["high"], color=color, alpha=0.13, lw=0)
        axis.errorbar(
            steps,
            means,
            yerr=np.maximum(0.0, [means - 100 * lines["low"], 100 * lines["high"] - means]),  # rounding at 0 and 100 %
            fmt="o-",
            color=color,
            ms=5,
            lw=1.8,
            elinewidth=1.2,
            capsize=2.5,
        )
        if len(lines) and steps.iloc[0] == 0:
            axis.axhline(means.iloc[0], color="0.5", lw=1, ls="--")
        for step, mean in zip(steps, means, strict=True):
            axis.annotate(f"{mean:.1f}", (step, mean), xytext=(5, 5), textcoords="offset points", fontsize=8.5)
        axis.set(title=lines["title"].iloc[0] if len(lines) else f"{name}: no score", ylabel="%")
        axis.margins(x=0.12, y=0.12)
        axis.title.set_fontsize(11.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True) if len(steps) > 10 else FixedLocator(list(steps)))
        axis.tick_params(labelbottom=True)
        sns.despine(ax=axis)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
        axis.set_xlabel("optimiser step")
    figure.suptitle(f"{title}\nbars: 95 % over items; dashed: the base", fontsize=11, color="0.35")
    return figure
