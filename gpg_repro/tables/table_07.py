"""Table 7: visual reasoning on CV-Bench, Qwen2-VL-2B (the pretrained model), trained on SAT."""

from gpg_repro.tables._visual import COMPARISONS, rows
from gpg_repro.tables.base import Column, Row, Table

TABLE = Table(
    stem="table07",
    number=7,
    title="Visual reasoning on CV-Bench, Qwen2-VL-2B",
    published="Table 7",
    columns=tuple(
        Column(group, "cvbench", "tiny_scenes", group=group, digits=2)
        for group in ("Count", "Relation", "Depth", "Distance")
    ),
    summary="total",
    both_rules=True,
    rows=rows(
        Row(
            key="base",
            label="Qwen2-VL-2B",
            tiny_label="tiny base",
            published="Qwen2-VL-2B",
            hub="Qwen/Qwen2-VL-2B",
            note="the printed numbers are those of the VisualThinker report",
        ),
        {key: f"table7_{key}" for key in ("sft", "grpo", "gpg_r0", "gpg_r2")},
        "the VisualThinker report",
    ),
    comparisons=COMPARISONS,
)
