"""Pictures of notebooks 01 and 02, and the sliders of 02. They draw numbers of `gpg_repro.dynamics`, or real runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval_harness.style import BAND, EASY_GREEN, GPG_BLUE, GRPO_GRAY, HARD_RED, use_style
from gpg_repro.dynamics import Population, advantage_of_k, resampling, std_of_k, summary
from gpg_repro.plots import smoothed

F_NORM_NAMES = {"none": "1", "group": "group std", "batch": "batch std"}
_PURPLE = "#8250a8"
_BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}


def _finish(axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.title.set_fontsize(11.5)
        sns.despine(ax=axis)


def _legend(axis: Axes, **settings: Any) -> None:
    axis.legend(frameon=False, fontsize=9, **settings)


# Notebook 01 --------------------------------------------------------------------------------------------------------


def correction_figure(gradients: np.ndarray, valid: Sequence[bool]) -> Figure:
    """B/(B - M) seen: the mean over all groups is too short, alpha gives it the length of the mean over valid ones.

    Args:
        gradients: [B, 2] gradient of each group's loss; zero for invalid groups.
        valid: [B].
    """
    use_style()
    gradients, valid = np.asarray(gradients), np.asarray(valid, dtype=bool)
    num_groups, num_valid = len(valid), int(valid.sum())
    alpha, mean = num_groups / num_valid, gradients.mean(axis=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    for number, gradient in enumerate(gradients[valid]):
        label = f"gradients of the {num_valid} valid groups" if number == 0 else None
        _arrow(left, gradient, GRPO_GRAY, 1.4, label)
    label = f"gradients of the {num_groups - num_valid} invalid groups: zero"
    left.plot(0, 0, "o", color=HARD_RED, ms=8, zorder=5, label=label)
    _arrow(left, alpha * mean, BAND, 9, "mean over the valid groups: what is wanted", style="-")
    _arrow(left, alpha * mean, GPG_BLUE, 2, f"the mean over all, times α = {num_groups}/{num_valid} = {alpha:.3g}")
    _arrow(left, mean, HARD_RED, 3, f"mean over all B = {num_groups} groups: pulled towards zero")
    corners = np.vstack([gradients, alpha * mean[None], np.zeros((1, 2))])
    centre, reach = (corners.min(axis=0) + corners.max(axis=0)) / 2, 0.58 * np.ptp(corners, axis=0).max()
    left.set(
        xlim=(centre[0] - reach, centre[0] + reach),
        ylim=(centre[1] - reach, centre[1] + reach),
        xlabel="∂ loss / ∂ θ₁",
        ylabel="∂ loss / ∂ θ₂",
        title="one batch: two parameters, one arrow per group",
    )
    left.set_aspect("equal")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(left, loc="upper center", bbox_to_anchor=(0.5, -0.14))

    num_invalid = np.arange(num_groups)
    shares = (num_groups - num_invalid) / num_groups
    right.plot(num_invalid, shares, "o-", color=HARD_RED, label="mean over all groups: (B − M)/B")
    right.plot(num_invalid, np.ones(num_groups), "o-", color=GPG_BLUE, label="times α = B/(B − M): always 1")
    right.vlines(num_invalid, shares, 1, color=GPG_BLUE, alpha=0.25, lw=1.5)
    for m, share in zip(num_invalid[1:], shares[1:], strict=True):
        right.annotate(
            f"α {1 / share:.2f}", (m, share), xytext=(0, -15), textcoords="offset points", ha="center", fontsize=9
        )
    right.set(
        xlabel=f"M, invalid groups of B = {num_groups}",
        ylabel="length (1: mean over the valid groups)",
        ylim=(0, 1.12),
        title="every batch: how much α restores",
    )
    _legend(right, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    _finish((left, right))
    return figure


def _arrow(axis: Axes, end: np.ndarray, color: str, width: float, label: str | None, style: str = "-|>") -> None:
    axis.annotate(
        "",
        tuple(end),
        (0, 0),
        arrowprops={"arrowstyle": style, "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16},
    )
    axis.plot([], [], color=color, lw=width, label=label)


# Notebook 02: one population ----------------------------------------------------------------------------------------


def population_figure(
    population: Population,
    num_prompts: int,
    beta_th: float,
    max_draws: int,
    f_norm: str,
    quoted: Mapping[str, tuple[float, float]],
) -> Figure:
    """Six panels of one setting of the sliders: accuracies, groups, advantages, alpha, reward_std, draws.

    Args:
        population, num_prompts, beta_th, max_draws, f_norm: the setting.
        quoted: ranges the paper's text quotes for `alpha` and `reward_std`, drawn as bands.
    """
    use_style()
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    (accuracies, groups, advantages), (alphas, spreads, draws) = axes
    num_generations, counts = population.num_generations, np.arange(population.num_generations + 1)
    step = resampling(population.valid, num_prompts, beta_th, max_draws)

    edges = np.linspace(0, 1, 41)
    shares = np.diff(_beta_cdf(population, edges))
    accuracies.bar(edges[:-1], shares, width=edges[1], align="edge", color=GPG_BLUE, alpha=0.45, lw=0)
    accuracies.axvline(population.mean, color=GPG_BLUE, lw=1.5)
    accuracies.set(xlabel="accuracy p of a prompt", ylabel="share of prompts", xlim=(0, 1))
    accuracies.set_title(f"prompts: mean accuracy {population.mean:.2f}")

    colors = [HARD_RED, *[GPG_BLUE] * (num_generations - 1), EASY_GREEN]
    groups.bar(counts, population.num_right, color=colors, alpha=0.8, lw=0)
    groups.set(xlabel=f"k right of G = {num_generations}", ylabel="share of groups")
    for color, name, share in (
        (HARD_RED, "all wrong", population.hard),
        (GPG_BLUE, "with a signal", population.valid),
        (EASY_GREEN, "all right", population.easy),
    ):
        groups.bar([0], [0], color=color, alpha=0.8, label=f"{name} {share:.2f}")
    groups.set_title("groups")
    _legend(groups, loc="upper center")
    groups.set_ylim(0, 1.45 * population.num_right.max())

    for name, style in (("none", "-"), ("group", "--"), ("batch", ":")):
        values = advantage_of_k(num_generations, name, population.mean)
        chosen = name == f_norm
        advantages.plot(
            counts,
            values,
            style,
            color=GPG_BLUE if chosen else GRPO_GRAY,
            lw=2.4 if chosen else 1.4,
            label=f"F_norm = {F_NORM_NAMES[name]}: mean {population.mean_advantage(name):.2f}",
        )
    advantages.set(xlabel=f"k right of G = {num_generations}", ylabel="mean |A| in the group", ylim=(0, 1.6))
    advantages.set_title("size of the advantages")
    _legend(advantages, loc="upper center")

    means = np.linspace(0.02, 0.98, 49)
    worlds = [Population(mean, population.concentration, num_generations) for mean in means]
    pooled = [resampling(world.valid, num_prompts, beta_th, max_draws) for world in worlds]
    alphas.axhspan(*quoted["alpha"], color=BAND, alpha=0.28, lw=0, label="quoted by the paper (7B)")
    alphas.plot(means, [one.first_alpha for one in pooled], color=GRPO_GRAY, lw=1.6, label="one draw")
    if beta_th:
        alphas.plot(means, [one.alpha for one in pooled], color=GPG_BLUE, lw=2, label=f"β_th = {beta_th:g}")
    alphas.plot(population.mean, step.alpha, "o", color=GPG_BLUE, ms=8, label=f"here {step.alpha:.2f}")
    alphas.set(xlabel="mean accuracy", ylabel="mean α = B/(B−M)", xlim=(0, 1), ylim=(0.8, 6.2))
    alphas.set_title(f"α of a batch of {num_prompts} groups")
    _legend(alphas, ncol=2, **_BELOW)

    _consistency(spreads, quoted, num_generations)
    label = f"here: ratio {population.std_of_valid:.2f}"
    spreads.plot(population.valid, population.reward_std, "o", color=GPG_BLUE, ms=8, label=label)
    spreads.set_title("reward_std says the same as α")
    _legend(spreads, ncol=2, **_BELOW)

    stride = -(-num_prompts // 32)
    thresholds = np.append(np.arange(0, num_prompts, stride), num_prompts) / num_prompts
    costs = [resampling(population.valid, num_prompts, at, max_draws).expected_draws for at in thresholds]
    draws.plot(thresholds, costs, color=GPG_BLUE, lw=2, drawstyle="steps-pre" if stride == 1 else "default")
    draws.plot(beta_th, step.expected_draws, "o", color=GPG_BLUE, ms=8, label=f"here {step.expected_draws:.2f}")
    draws.set(xlabel="β_th", ylabel="expected draws per step", xlim=(0, 1), ylim=(0, max(2.0, 1.3 * max(costs))))
    draws.set_title(f"cost: {step.expected_draws * num_prompts * num_generations:,.0f} completions per step")
    _legend(draws, **_BELOW)
    _finish(axes.flat)
    figure.suptitle(
        f"Closed forms, no model: Beta accuracies (mean {population.mean:g}, concentration "
        f"{population.concentration:g}), G = {num_generations}, Q = {num_prompts}",
        fontsize=11,
        color="0.35",
    )
    return figure


def _beta_cdf(population: Population, points: np.ndarray) -> np.ndarray:
    from scipy import stats

    return stats.beta.cdf(points, *population.shape)


def explorer(
    quoted: Mapping[str, tuple[float, float]],
    mean: float = 0.4,
    concentration: float = 1.5,
    num_generations: int = 8,
    num_prompts: int = 16,
    beta_th: float = 0.6,
    max_draws: int = 20,
    f_norm: str = "none",
) -> Any:
    """The sliders: a widget that redraws `population_figure` and its table of numbers when a setting changes.

    Returns:
        An ipywidgets box; `box.settings` maps names to the sliders.
    """
    import ipywidgets as widgets

    wide = {"layout": widgets.Layout(width="31em"), "style": {"description_width": "13em"}, "continuous_update": False}
    settings = {
        "mean": widgets.FloatSlider(mean, min=0.02, max=0.98, step=0.02, description="mean accuracy", **wide),
        "concentration": widgets.FloatLogSlider(
            concentration, base=10, min=-1, max=2, step=0.05, description="concentration (alike →)", **wide
        ),
        "num_generations": widgets.IntSlider(num_generations, min=2, max=32, description="G, answers a prompt", **wide),
        "num_prompts": widgets.IntSlider(num_prompts, min=2, max=128, description="Q, prompts a draw", **wide),
        "beta_th": widgets.FloatSlider(beta_th, min=0, max=1, step=0.05, description="β_th", **wide),
        "max_draws": widgets.IntSlider(max_draws, min=1, max=20, description="most draws", **wide),
        "f_norm": widgets.ToggleButtons(
            options=[(name, value) for value, name in F_NORM_NAMES.items()],
            value=f_norm,
            description="F_norm",
            style={"description_width": "13em", "button_width": "7em"},
        ),
    }
    picture, table = widgets.Image(format="png", layout=widgets.Layout(max_width="100%")), widgets.HTML()

    def redraw(change: Any = None) -> None:
        now = {name: widget.value for name, widget in settings.items()}
        population = Population(now["mean"], now["concentration"], now["num_generations"])
        rest = [now[name] for name in ("num_prompts", "beta_th", "max_draws", "f_norm")]
        picture.value = png(population_figure(population, *rest, quoted))
        table.value = summary(population, *rest).map("{:,.3g}".format).to_frame("expected value").to_html()

    for widget in settings.values():
        widget.observe(redraw, names="value")
    redraw()
    controls = list(settings.values())
    box = widgets.VBox([widgets.HBox([widgets.VBox(controls[:4]), widgets.VBox(controls[4:])]), picture, table])
    box.settings, box.picture, box.table = settings, picture, table
    return box


def png(figure: Figure) -> bytes:
    """The figure as PNG; closes it, so that the notebook does not show it a second time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return buffer.getvalue()


# Notebook 02: runs --------------------------------------------------------------------------------------------------


def runs_figure(
    real: Sequence[pd.DataFrame],
    predicted: Sequence[pd.DataFrame],
    simulated: pd.DataFrame,
    quoted: Mapping[str, tuple[float, float]],
    caption: str,
    num_generations: int = 8,
    window: int = 10,
) -> Figure:
    """Real runs beside what the Beta world predicts from their reward curve, and beside a run made up from nothing.

    Args:
        real: steps of each seed.
        predicted: `dynamics.predicted_run` of each.
        simulated: `dynamics.simulate_run`.
        quoted: ranges the paper's text quotes for `alpha` and `reward_std`.
        caption: what the runs are, with their counts.
        num_generations: G of the runs.
        window: steps of the centred moving average.
    """
    use_style()
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.6), layout="constrained")
    panels = (("reward", "sampled reward"), ("inverse_alpha", "share of valid groups, 1/α"), ("reward_std",) * 2)
    for axis, (column, title) in zip(axes, panels, strict=False):
        for number, frame in enumerate(real):
            label = "real run, one line per seed" if number == 0 else None
            axis.plot(smoothed(frame, column, window), color=GPG_BLUE, lw=1.4, alpha=0.65, label=label)
        for number, frame in enumerate(predicted if column != "reward" else ()):
            label = "Beta world from the reward curve" if number == 0 else None
            axis.plot(frame["step"], frame[column], "--", color=HARD_RED, lw=1.3, alpha=0.8, label=label)
        line = smoothed(simulated, column, window)
        axis.plot(line, ":", color="0.25", lw=1.6, label="simulated: log-odds rise evenly")
        axis.set(xlabel="optimiser step", ylim=(0, 1) if column != "reward_std" else (0, 0.5), title=title)
    for number, frame in enumerate(real):
        label = "steps of the real runs" if number == 0 else None
        axes[3].plot(frame["inverse_alpha"], frame["reward_std"], "o", color=GPG_BLUE, ms=3.5, alpha=0.35, label=label)
    _consistency(axes[3], quoted, num_generations)
    axes[3].set_title("one quantity, two names")
    for axis in axes:
        _legend(axis, **_BELOW)
    _finish(axes)
    figure.suptitle(caption, fontsize=11, color="0.35")
    return figure


def _consistency(axis: Axes, quoted: Mapping[str, tuple[float, float]], num_generations: int) -> None:
    """reward_std against the share of valid groups: about 0.45 times it for 0/1 rewards, and what the paper quotes."""
    share, (low, high), spread = np.array([0.0, 1.0]), quoted["alpha"], quoted["reward_std"]
    text = f"paper: α {low:g}–{high:g} and {spread[0]:g}–{spread[1]:g}"
    axis.fill_between([1 / high, 1 / low], *spread, color=BAND, alpha=0.4, lw=0, label=text)
    stds, text = std_of_k(num_generations)[1:-1], f"possible (G = {num_generations})"
    axis.fill_between(share, stds.min() * share, stds.max() * share, color=GRPO_GRAY, alpha=0.2, lw=0, label=text)
    axis.plot(share, 0.45 * share, "--", color=GRPO_GRAY, lw=1.4, label="0.45 × share")
    axis.set(xlabel="share of valid groups", ylabel="reward_std", xlim=(0, 1), ylim=(0, 0.6))


def adamw_figure(study: pd.DataFrame, alphas: Sequence[float]) -> Figure:
    """Left: how far alpha moves the end of the path, by clipping. Right: what each batch weighs, with and without.

    Args:
        study: `dynamics.adamw_study(alphas)`.
        alphas: factor of each step.
    """
    use_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained")
    lines = study[study["factor"] != "1"].reset_index(drop=True)
    for y, line in lines.iloc[::-1].reset_index(drop=True).iterrows():
        color = GPG_BLUE if line["factor"] == "varying" else GRPO_GRAY
        left.plot([max(line["low"], 1e-12), line["high"]], [y, y], color=color, lw=3, alpha=0.5)
        left.plot(line["distance"], y, "o", color=color, ms=8)
        text = f"{line['distance']:.1e}" if line["distance"] < 1e-3 else f"{100 * line['distance']:.1f} %"
        left.annotate(text, (line["high"], y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    names = [f"clipping: {line.clipping}\n{line.factor} α" for line in lines.itertuples()][::-1]
    left.set(xscale="log", xlim=(1e-10, 10), yticks=range(len(names)), yticklabels=names)
    left.set(xlabel="distance from the end with α = 1, relative to the way gone", title="where the path ends")
    left.tick_params(axis="y", labelsize=9.5)

    alphas = np.asarray(alphas, dtype=float)
    steps = np.arange(1, len(alphas) + 1)
    right.bar(steps, alphas / alphas.mean(), color=GPG_BLUE, alpha=0.55, lw=0, label="α of each batch, not clipped")
    right.axhline(1, color=GRPO_GRAY, lw=2, label="α constant, or clipped on every step: all alike")
    right.set(xlabel="optimiser step", ylabel="weight in AdamW's average", title="what α does: it weighs the batches")
    _legend(right, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    _finish((left, right))
    count = int(study["num_repeats"].iloc[0])
    figure.suptitle(
        f"torch.optim.AdamW on made-up gradients, {len(alphas)} steps; means and 95 % intervals of {count} repeats",
        fontsize=11,
        color="0.35",
    )
    return figure


def control_figure(
    curves: Mapping[str, Sequence[pd.DataFrame]], limits: Mapping[str, float], caption: str, window: int = 10
) -> Figure:
    """The control runs: the factor applied, the gradient norm against the limit, the reward. One line per seed.

    Args:
        curves: row key (`age_clipped`, …) -> steps of each seed.
        limits: row key -> max_grad_norm.
        caption: what the runs are, with their counts.
        window: steps of the centred moving average.
    """
    use_style()
    colors = {"age": (GPG_BLUE, "α = B/(B−M)"), "mean": (_PURPLE, "α = its run's mean"), "one": (GRPO_GRAY, "α = 1")}
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    panels = (("alpha_applied", "factor in the loss"), ("grad_norm", "gradient norm before clipping"))
    for axis, (column, title) in zip(axes, (*panels, ("reward", "sampled reward")), strict=True):
        for key, frames in curves.items():
            rule, clipping = key.split("_")
            color, name = colors[rule]
            style = "-" if clipping == "clipped" else "--"
            for number, frame in enumerate(frames):
                label = f"{name}, {'' if clipping == 'clipped' else 'not '}clipped" if number == 0 else None
                axis.plot(smoothed(frame, column, window), style, color=color, lw=1.4, alpha=0.75, label=label)
        axis.set(xlabel="optimiser step", title=title)
    limited = sorted({limit for key, limit in limits.items() if key.endswith("_clipped")})
    for limit in limited:
        axes[1].axhline(limit, color=HARD_RED, lw=1.2, label=f"limit of the gradient norm, {limit:g}")
    axes[1].set_ylim(0, None)
    _finish(axes)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False, fontsize=10)
    figure.suptitle(caption, fontsize=11, color="0.35")
    return figure
