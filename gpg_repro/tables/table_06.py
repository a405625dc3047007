"""Table 6: four-shot fine-grained classification, Qwen2-VL-2B. Each set has a training of its own in every row."""

from gpg_repro.tables._visual import COMPARISONS, rows
from gpg_repro.tables.base import Column, Row, Table

COLUMNS = (
    Column("Flower102", "flowers102", "tiny_blossoms"),
    Column("Pets37", "pets37", "tiny_critters"),
    Column("FGVC", "fgvc_aircraft", "tiny_gliders"),
    Column("Cars196", "cars196", "tiny_carts"),
)

TABLE = Table(
    stem="table06",
    number=6,
    title="Four-shot fine-grained classification, Qwen2-VL-2B",
    published="Table 6",
    columns=COLUMNS,
    both_rules=True,
    rows=rows(
        Row(
            key="base",
            label="Qwen2-VL-2B",
            tiny_label="tiny base",
            published="Qwen2-VL-2B",
            hub="Qwen/Qwen2-VL-2B-Instruct",
            note="the printed numbers are those of the Visual-RFT report",
        ),
        {
            key: tuple(f"table6_{column.benchmark}_{key}" for column in COLUMNS)
            for key in ("sft", "grpo", "gpg_r0", "gpg_r2")
        },
        "the Visual-RFT report",
    ),
    comparisons=COMPARISONS,
)
