"""Figure 2: groups without signal and alpha against the step (left), within-group reward deviation (right).

Easy: all completions of the group right. Hard: all wrong. The paper's caption swaps the two; its code is right. The
paper prints no values of the curves, only the ranges its text quotes; which run it shows is not stated. Ours is GPG
with AGE and without a threshold, first draw of every step.
"""

from __future__ import annotations

from pathlib import Path

from eval_harness.errors import UserError
from gpg_repro import plots
from gpg_repro.figures import FigureReport
from gpg_repro.figures.base import Curves, curves_of, provenance, published_range, ranges, scale_note
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.shown import explained

RECIPE = "table1_gpg_age"
QUANTITIES = {
    "frac_easy": "share of groups all right",
    "frac_hard": "share of groups all wrong",
    "alpha": "α = B/(B−M)",
    "reward_std": "mean within-group reward std",
}
MEAN_STD_OF_VALID = 0.45
"""About the reward deviation of a valid group of eight 0/1 rewards (0.354 to 0.535), ddof 1."""


def build_figure(
    scale: str = "tiny",
    *,
    seeds: int = 0,
    results: Path | None = None,
    progress: bool = True,
    recipe: str = RECIPE,
    smooth: int = 10,
) -> FigureReport:
    """Draw the figure and write ``figure2.{png,md,csv,html}``.

    Args:
        seeds: 0 takes the committed records, or trains one seed where there are none; n trains n seeds here.
        recipe: whose training is shown.
        smooth: steps of the moving average that is drawn; stated numbers are not smoothed.

    Raises:
        UserError: see :func:`gpg_repro.tables.runs.recipe_trainings`; a run without any group with a signal.
    """
    curves = curves_of(recipe, scale, seeds=seeds, results=results, progress=progress)
    quoted = {name: published_range("Figure 2", name) for name in ("alpha", "reward_std")}
    with_signal = {seed: frame[frame["num_valid_groups"] > 0] for seed, frame in curves.frames.items()}
    signal = Curves(curves.recipe, curves.origin, curves.folders, with_signal)
    if not signal.num_steps:
        raise UserError(f"no step of {recipe} at scale {scale} had a group with a signal: there is no α to draw.")
    numbers = ranges(curves, QUANTITIES).set_index("quantity")
    numbers.loc["alpha"] = ranges(signal, {"alpha": QUANTITIES["alpha"]}).set_index("quantity").loc["alpha"]
    numbers["quoted by the paper"] = [
        f"{quoted[q][0]:g} … {quoted[q][1]:g}" if q in quoted else "–" for q in numbers.index
    ]
    text = _text(curves, numbers, quoted, curves.num_steps - signal.num_steps, scale)
    notes = [
        "Easy = all completions of a group right, hard = all wrong; the paper's caption swaps the two.",
        "The paper prints no values for these curves; only the ranges quoted in its text are drawn, as bands.",
        f"Ours: recipe {recipe}, first draw of every step, {curves.num_seeds} training seed(s), {curves.origin}. Lines "
        f"are means over seeds of a moving average over up to {smooth} steps, faint lines single seeds.",
        "Which run the paper shows (α on or off, threshold) is not stated.",
        *scale_note(scale),
    ]
    drawn = plots.dynamics_figure(list(curves.frames.values()), quoted, scale, smooth)
    figure = save_figure(drawn, "figure2", scale, results)
    behind = [
        (
            (
                ("steps", f"{line.num_steps}, of all seeds together"),
                ("training seeds", str(line.num_seeds)),
                ("range", f"lowest {line.low:.3f}, highest {line.high:.3f} of a single step"),
            ),
            curves.run_ids,
        )
        for line in numbers.itertuples()
    ]
    shown = explained(numbers.round({"low": 3, "mean": 3, "high": 3}).set_index("name"), behind)
    long = numbers.reset_index().assign(scale=scale, recipe=recipe, origin=curves.origin)
    write_report("figure2", "Figure 2: groups without signal, α and reward deviation during training",
                 [(None, shown)], [*text.split("\n\n"), *notes], scale, long, results, kind="figures")  # fmt: skip
    return FigureReport(figure, shown, text, notes, provenance(curves))


def _text(curves, numbers, quoted, num_without_signal: int, scale: str) -> str:
    seeds = f"{curves.num_seeds} training seed{'s' if curves.num_seeds > 1 else ''}"
    lines = []
    for name, symbol in (("alpha", "α"), ("reward_std", "The mean within-group deviation of the reward")):
        low, high = quoted[name]
        pooled = curves.pooled()
        pooled = pooled[pooled["num_valid_groups"] > 0] if name == "alpha" else pooled
        inside = pooled[name].between(low, high).mean()
        own = numbers.loc[name]
        lines.append(
            f"{symbol} ran from {own['low']:.2f} to {own['high']:.2f} (mean {own['mean']:.2f}) over "
            f"{own['num_steps']} steps ({seeds}), scale {scale}; the paper quotes {low:g} to {high:g} for its 7B run, "
            f"and {100 * inside:.0f} % of our steps lie in that range."
        )
    if num_without_signal:
        lines.append(f"{num_without_signal} of all {curves.num_steps} steps had no group with a signal and so no α.")
    first, last = _ends(curves, "frac_easy"), _ends(curves, "frac_hard")
    lines.append(
        f"From the first to the last ten steps the share of all-right groups went from {first[0]:.2f} to "
        f"{first[1]:.2f}, that of all-wrong groups from {last[0]:.2f} to {last[1]:.2f}."
    )
    pooled = curves.pooled()
    valid = pooled["num_valid_groups"] / pooled["num_groups"]
    ratio = pooled["reward_std"].sum() / valid.sum() if valid.sum() else float("nan")
    lines.append(
        f"Consistency: reward deviation over share of valid groups is {ratio:.2f}; for groups of eight 0/1 rewards "
        f"about {MEAN_STD_OF_VALID} is expected, so α 1.5 … 4.0 and a deviation of 0.35 … 0.10 say the same thing."
    )
    return "\n\n".join(lines)


def _ends(curves: Curves, column: str, steps: int = 10) -> tuple[float, float]:
    """Mean over seeds of a metric in the first and in the last steps."""
    first = [frame[column].head(steps).mean() for frame in curves.frames.values()]
    last = [frame[column].tail(steps).mean() for frame in curves.frames.values()]
    return sum(first) / len(first), sum(last) / len(last)
