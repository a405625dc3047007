"""Table 5: geometry problems with a figure (GEOQA), Qwen2.5-VL-3B.

The paper and the authors' README print two GPG numbers, 50.80 and 51.33. The code behind them changed in between: R0
divides by the group's standard deviation and does not correct for groups without a signal, R2 does neither divide nor
leave alpha out and draws again below a threshold. Two methods, so two rows.
"""

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
    rows=(
        Row(
            key="base",
            label="Qwen2.5-VL-3B-Instruct",
            tiny_label="tiny base",
            published="Qwen2.5-VL-3B-Instruct",
            hub="Qwen/Qwen2.5-VL-3B-Instruct",
            note="the printed number is that of the R1-V README",
        ),
        Row(
            key="grpo",
            label="GRPO",
            tiny_label="GRPO",
            published="+ GRPO",
            recipe="table5_grpo",
            note="the printed number is that of the R1-V README",
        ),
        Row(
            key="gpg_r0",
            label="GPG (R0)",
            tiny_label="GPG (R0)",
            published="+ GPG",
            recipe="table5_gpg_r0",
            note="F_norm = std, α = 1: the code of the time when the paper's number was made",
        ),
        Row(
            key="gpg_r2",
            label="GPG (R2)",
            tiny_label="GPG (R2)",
            published="+ GPG",
            published_source="readme",
            recipe="table5_gpg_r2",
            note="F_norm = 1, α = B/(B−M), resampling below a share of valid groups: the code that was released last",
        ),
    ),
    comparisons=(("gpg_r0", "grpo"), ("gpg_r2", "grpo"), ("gpg_r2", "gpg_r0")),
)
