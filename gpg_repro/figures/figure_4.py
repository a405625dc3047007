"""Figure 4: training loss, rewards and completion length against the step, GPG (blue) and GRPO (gray), 1.5B models.

The printed losses of the two methods are different quantities, so they have axes of their own. On policy the ratio is 1
and GRPO prints -mean(A) over tokens, which only says whether right or wrong answers are longer, plus its KL term; GPG
prints -mean(A log pi). Their gradients agree up to the KL term; their values do not.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy.stats import t as student_t

from gpg_repro import plots
from gpg_repro.figures import FigureReport
from gpg_repro.figures.base import Curves, curves_of, provenance, scale_note
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.shown import explained

RECIPES = {"GPG": "table3_gpg_rs1", "GRPO": "table3_grpo_rs1"}
_ENDS = 10


def build_figure(
    scale: str = "tiny", *, seeds: int = 0, results: Path | None = None, progress: bool = True, smooth: int = 10
) -> FigureReport:
    """Draw the figure and write ``figure4.{png,md,csv,html}``.

    Args:
        seeds: 0 takes the committed records, or trains one seed where there are none; n trains n seeds here.
        smooth: steps of the moving average that is drawn; stated numbers are means over ten steps.

    Raises:
        UserError: see :func:`gpg_repro.tables.runs.recipe_trainings`.
    """
    curves = {
        method: curves_of(recipe, scale, seeds=seeds, results=results, progress=progress)
        for method, recipe in RECIPES.items()
    }
    functions = reward_functions(curves["GPG"].pooled())
    quantities = {
        "loss": "training loss (not comparable between methods)",
        "reward": "total reward",
        **{f"rewards/{name}": f"reward: {name}" for name in functions},
        "completion_length": "completion length, tokens",
    }
    numbers = ends(curves, quantities)
    origins = ", ".join(sorted({entry.origin for entry in curves.values()}))
    notes = [
        "The printed losses are different quantities and cannot be compared in scale: on policy GRPO prints −mean(A) "
        "over tokens (which only says whether right or wrong answers are longer) plus its KL term, GPG −mean(A·log π). "
        "Each has an axis of its own.",
        "The paper prints no values for these curves, so nothing of it is drawn.",
        f"Ours: recipes {', '.join(RECIPES.values())}, {origins}. Lines are means over seeds of a moving average over "
        f"up to {smooth} steps, faint lines single seeds. Values: mean of the first and last {_ENDS} steps.",
        *scale_note(scale),
    ]
    text = _text(numbers, curves, scale)
    frames = {method: list(entry.frames.values()) for method, entry in curves.items()}
    figure = save_figure(plots.training_curves_figure(frames, functions, scale, smooth), "figure4", scale, results)
    behind = [
        (
            (
                ("steps", f"{line.num_steps}, of all seeds together; first and last are means of {_ENDS} a seed"),
                ("training seeds", str(line.num_seeds)),
                ("change, 95 % over seeds", _interval(line)),
            ),
            curves[line.method].run_ids,
        )
        for line in numbers.itertuples()
    ]
    shown = explained(numbers.drop(columns="quantity").round(3).set_index(["name", "method"]), behind)
    long = numbers.assign(scale=scale, recipe=[RECIPES[m] for m in numbers["method"]], origin=origins)
    write_report("figure4", "Figure 4: loss, rewards and completion length during training",
                 [(None, shown.reset_index().set_index("name"))], [*text.split("\n\n"), *notes], scale, long, results,
                 kind="figures")  # fmt: skip
    return FigureReport(figure, shown, text, notes, provenance(*curves.values()))


def reward_functions(steps: pd.DataFrame) -> list[str]:
    """Names of the reward functions in a frame of steps (columns ``rewards/<name>``)."""
    return [c.removeprefix("rewards/") for c in steps.columns if c.startswith("rewards/") and c.count("/") == 1]


def ends(curves: dict[str, Curves], quantities: dict[str, str]) -> pd.DataFrame:
    """Means of the first and last ten steps of each method, over seeds, and the change with its interval over seeds.

    Returns:
        Columns quantity, name, method, first, last, change, change_low, change_high (Student's t over seeds; None below
        three), num_seeds, num_steps.
    """
    lines = []
    for column, name in quantities.items():
        for method, entry in curves.items():
            first = pd.Series([f[column].head(_ENDS).mean() for f in entry.frames.values()])
            last = pd.Series([f[column].tail(_ENDS).mean() for f in entry.frames.values()])
            change, n = last - first, entry.num_seeds
            half = float(student_t.ppf(0.975, n - 1)) * change.std(ddof=1) / n**0.5 if n >= 3 else None
            lines.append(
                {
                    "quantity": column,
                    "name": name,
                    "method": method,
                    "first": first.mean(),
                    "last": last.mean(),
                    "change": change.mean(),
                    "change_low": None if half is None else change.mean() - half,
                    "change_high": None if half is None else change.mean() + half,
                    "num_seeds": n,
                    "num_steps": entry.num_steps,
                }
            )
    return pd.DataFrame(lines)


def _interval(line) -> str:
    known = line.change_low is not None and not pd.isna(line.change_low)
    return f"[{line.change_low:+.3f}, {line.change_high:+.3f}]" if known else "none below three seeds"


def _text(numbers: pd.DataFrame, curves: dict[str, Curves], scale: str) -> str:
    lines = []
    for column in ("reward", "completion_length"):
        for line in numbers[numbers["quantity"] == column].itertuples():
            interval = (
                ""
                if line.change_low is None or pd.isna(line.change_low)
                else f" [{line.change_low:+.2f}, {line.change_high:+.2f}] over seeds"
            )
            lines.append(
                f"{line.method}: {line.name} {line.first:.2f} → {line.last:.2f} ({line.change:+.2f}{interval}; scale "
                f"{scale}, {line.num_seeds} training seed(s), {line.num_steps} steps)."
            )
    last = {m: pd.Series({k: f["reward"].tail(_ENDS).mean() for k, f in e.frames.items()}) for m, e in curves.items()}
    gap = (last["GPG"] - last["GRPO"]).dropna()
    spread = f", single seeds {gap.min():+.3f} … {gap.max():+.3f}" if len(gap) > 1 else ""
    lines.append(f"Total reward of the last {_ENDS} steps, GPG − GRPO: {gap.mean():+.3f}{spread}.")
    return "\n\n".join(lines)
