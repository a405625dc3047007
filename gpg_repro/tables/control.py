"""A control the paper lacks: does alpha act through the gradient's direction, or only through its scale?

AdamW divides the gradient by a running mean of its size, so a constant factor cancels; and when the gradient norm is
clipped on every step, any factor cancels. Three choices of alpha (B/(B-M) of each batch; 1; the mean of that run's
alpha, held fixed), each with clipping at the recipes' norm and without.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from gpg_repro.tables._math7b import BASE_ROW
from gpg_repro.tables.base import MATH_COLUMNS, Row, RowRuns, Table
from gpg_repro.tables.numbers import difference, training_summary, verdict
from gpg_repro.tables.table_01 import GPG, GPG_AGE


def _row(key: str, label: str, recipe: str, note: str = "") -> Row:
    return Row(key=key, label=label, tiny_label=label, recipe=recipe, note=note)


TABLE = Table(
    stem="control_alpha",
    title="Control: α under AdamW, with and without clipping (ours)",
    columns=MATH_COLUMNS,
    rows=(
        replace(BASE_ROW, published=None),
        _row("age_clipped", "α = B/(B−M), clipped", GPG_AGE.recipe, "the run of Table 1"),
        _row("one_clipped", "α = 1, clipped", GPG.recipe, "the run of Table 1"),
        _row("mean_clipped", "α = its run's mean, clipped", "control_mean_clipped"),
        _row("age_unclipped", "α = B/(B−M), not clipped", "control_age_unclipped"),
        _row("one_unclipped", "α = 1, not clipped", "control_one_unclipped"),
        _row("mean_unclipped", "α = its run's mean, not clipped", "control_mean_unclipped"),
    ),
    comparisons=(
        ("age_clipped", "one_clipped"),
        ("mean_clipped", "one_clipped"),
        ("age_clipped", "mean_clipped"),
        ("age_unclipped", "one_unclipped"),
        ("mean_unclipped", "one_unclipped"),
        ("age_unclipped", "mean_unclipped"),
        ("age_clipped", "age_unclipped"),
        ("one_clipped", "one_unclipped"),
    ),
)


def findings(runs: Sequence[RowRuns], scale: str) -> str:
    """What the control shows, computed, whichever way it falls: clipping, alpha, and who is told apart from whom."""
    by_row = {entry.row.key: entry for entry in runs}
    summary = training_summary(runs, scale)
    if not len(summary):
        return "No training of the control was measured."
    trained = summary.set_index("row")
    parts = [_clipping(trained)]
    for kind, name in (("clipped", "With clipping"), ("unclipped", "Without clipping")):
        for a, b, claim in (
            ("age", "one", "α = B/(B−M) against α = 1"),
            ("mean", "one", "a constant α against α = 1, which AdamW should cancel"),
            ("age", "mean", "α of each batch against its mean held fixed"),
        ):
            mine, other = by_row.get(f"{a}_{kind}"), by_row.get(f"{b}_{kind}")
            if mine and other:
                parts.append(f"{name}, {claim}: {_verdict(difference(TABLE, mine, other, scale))}")
    return "\n\n".join(parts)


def _clipping(trained: pd.DataFrame) -> str:
    shares = "; ".join(
        f"{line.label} {100 * line.clipped:.0f} % of {line.num_steps} steps (mean α applied {line.alpha_applied:.2f})"
        for line in trained.itertuples()
    )
    limited = trained.loc[trained.index.str.endswith("_clipped"), "clipped"]
    if len(limited) and (limited == 1).all():
        meaning = "Clipping acted on every step, so with clipping any α had to cancel."
    elif len(limited) and (limited == 0).all():
        meaning = "Clipping never acted, so clipped and unclipped runs are the same."
    else:
        meaning = "Clipping acted on some steps only: on the others α can act, and it decides which are clipped."
    return f"Share of steps on which clipping acted: {shares}. {meaning}"


def _verdict(d: dict) -> str:
    seeds = (
        f", over {d['num_seeds']} training seeds [{d['seeds_low']:+.1f}, {d['seeds_high']:+.1f}]"
        if d["seeds_low"] is not None
        else f", {d['num_seeds']} training seed{'s' if d['num_seeds'] > 1 else ''}"
    )
    interval = f"[{d['low']:+.1f}, {d['high']:+.1f}] over {d['num_items']} items"
    return f"{d['difference']:+.1f} points {interval}{seeds}: {verdict(d['apart'], d['num_seeds'])}."
