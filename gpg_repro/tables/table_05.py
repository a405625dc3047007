"""Table 5: geometry problems with a figure (GEOQA), Qwen2.5-VL-3B.

The paper and the authors' README print two GPG numbers, 50.80 and 51.33. The code behind them changed in between: R0
divides by the group's standard deviation and does not correct for groups without a signal, R2 does neither divide nor
leave alpha out and draws again below a threshold. Two methods, so two rows.
"""

from gpg_repro.tables._visual import COMPARISONS, rows
from gpg_repro.tables.base import Column, Row, Table

TABLE = Table(
    stem="table05",
    number=5,
    title="GEOQA test accuracy, Qwen2.5-VL-3B",
    published="Table 5",
    columns=(
        Column("GEOQA_Test", "geoqa", "tiny_figures", digits=2),
        Column("GEOQA_Test, tag only (ours)", "geoqa", "tiny_figures", metric="tag", printed=False),
    ),
    summary=None,
    both_rules=True,
    rows=rows(
        Row(
            key="base",
            label="Qwen2.5-VL-3B-Instruct",
            tiny_label="tiny base",
            published="Qwen2.5-VL-3B-Instruct",
            hub="Qwen/Qwen2.5-VL-3B-Instruct",
            note="the printed numbers are those of the R1-V README",
        ),
        {key: f"table5_{key}" for key in ("grpo", "gpg_r0", "gpg_r2")},
        "the R1-V README",
    ),
    comparisons=tuple(pair for pair in COMPARISONS if "sft" not in pair),
)
