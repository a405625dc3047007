"""Table 8: reasoning grounding on LISA's ReasonSeg, Qwen2-VL-2B, trained on its 239 training images.

mIoU is the mean IoU of boxes. gIoU, despite its name, is the mean IoU of masks (a segmenter turns the predicted box
into a mask). Neither is a count of right answers, so no interval follows from the printed numbers.
"""

from gpg_repro.tables._visual import COMPARISONS, rows
from gpg_repro.tables.base import MASK_IOU, Column, Row, Table

TABLE = Table(
    stem="table08",
    number=8,
    title="Reasoning grounding on LISA (ReasonSeg), Qwen2-VL-2B",
    published="Table 8",
    columns=(
        Column("mIoU_test", "lisa", "tiny_grounding", group="test", is_count=False),
        Column("mIoU_val", "lisa", "tiny_grounding", group="val", is_count=False),
        Column("gIoU_test", "lisa", "tiny_grounding", group="test", metric=MASK_IOU, is_count=False),
    ),
    summary=None,
    both_rules=True,
    rows=rows(
        Row(
            key="base",
            label="Qwen2-VL-2B",
            tiny_label="tiny base",
            published="Qwen2-VL-2B",
            hub="Qwen/Qwen2-VL-2B-Instruct",
        ),
        {key: f"table8_{key}" for key in ("sft", "grpo", "gpg_r0", "gpg_r2")},
    ),
    comparisons=COMPARISONS,
)
