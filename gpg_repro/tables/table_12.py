"""Table 12: the divisor F_norm of the advantages; and the KL ablation that the paper's text places there.

The text says that a KL constraint hurts and points to Table 12, which holds F_norm instead: no KL number was printed.
So the ablation below reports a direction only. Its GRPO row is a check: on policy, GRPO with the same beta_kl has the
gradient of GPG (F_norm = std, alpha = 1) with the KL term.
"""

from collections.abc import Sequence
from dataclasses import replace

from eval_harness import records
from gpg_repro.tables._math7b import BASE_ROW
from gpg_repro.tables.base import MATH_COLUMNS, Row, RowRuns, Table
from gpg_repro.tables.numbers import difference
from gpg_repro.tables.table_01 import GPG, GPG_STD, GRPO

TABLE = Table(
    stem="table12",
    number=12,
    title="The divisor F_norm of the advantages, Qwen2.5-Math-7B (zero-shot pass@1)",
    published="Table 12",
    columns=MATH_COLUMNS,
    rows=(
        BASE_ROW,
        replace(GPG, key="none", label="F_norm = 1", tiny_label="F_norm = 1", published="F_norm=1", published_in=None),
        replace(
            GPG_STD,
            key="group",
            label="F_norm = std of the group",
            tiny_label="F_norm = std of the group",
            published="F_norm=Group",
            published_in=None,
        ),
        Row(
            key="batch",
            label="F_norm = std of the batch",
            tiny_label="F_norm = std of the batch",
            published="F_norm=Batch",
            recipe="table12_gpg_batch_std",
            note="the baseline is still the mean of the group",
        ),
    ),
    comparisons=(("group", "none"), ("batch", "none"), ("batch", "group")),
)

KL_ABLATION = Table(
    stem="table12_kl",
    title="KL ablation (in the paper's text, in none of its tables)",
    columns=MATH_COLUMNS,
    rows=(
        replace(BASE_ROW, published=None),
        replace(GPG_STD, key="gpg_std", label="GPG, β_KL = 0", tiny_label="GPG, β_KL = 0", published=None),
        Row(
            key="gpg_kl",
            label="GPG, β_KL = 0.04",
            tiny_label="GPG, β_KL = 0.04",
            recipe="table12_gpg_kl",
            note="k3 estimate against the initial model, added per token",
        ),
        replace(
            GRPO,
            label="GRPO, β_KL = 0.04",
            tiny_label="GRPO, β_KL = 0.04",
            published=None,
            note="a check: on policy its gradient is that of GPG with the same KL term",
        ),
    ),
    comparisons=(("gpg_kl", "gpg_std"), ("gpg_kl", "grpo")),
)


def kl_direction(runs: Sequence[RowRuns], scale: str) -> str:
    """Which way the KL term moved the Average, and whether GRPO's first step has the gradient it should have."""
    by_row = {entry.row.key: entry for entry in runs}
    if not {"gpg_kl", "gpg_std"} <= set(by_row):
        return "The KL ablation was not measured."
    d = difference(KL_ABLATION, by_row["gpg_kl"], by_row["gpg_std"], scale)
    size = f"by {abs(d['difference']):.1f} points"
    way = f"lowered the Average {size}" if d["difference"] < 0 else f"raised the Average {size}"
    way = way if d["difference"] else "left the Average where it was"
    sure = "" if d["apart"] else ", but the two rows are not told apart"
    seeds = "" if d["seeds_low"] is None else f", over seeds [{d['seeds_low']:+.1f}, {d['seeds_high']:+.1f}]"
    text = (
        f"The KL term {way} ([{d['low']:+.1f}, {d['high']:+.1f}] over {d['num_items']} items{seeds}; {d['num_seeds']} "
        f"training seed(s)){sure}. The paper's text says that it hurts; it prints no number."
    )
    norms = {
        key: {k: records.steps_frame(p)["grad_norm"].iloc[0] for k, p in by_row[key].trainings.items()}
        for key in ("gpg_kl", "grpo")
        if key in by_row
    }
    common = sorted(set.intersection(*(set(n) for n in norms.values()))) if len(norms) == 2 else []
    if common:
        gap = max(abs(norms["gpg_kl"][k] / norms["grpo"][k] - 1) for k in common)
        text += (
            f" Gradient norms of the first step, GPG with the KL term against GRPO on the same completions: relative "
            f"difference at most {gap:.1e} ({len(common)} seed(s))."
        )
    return text
