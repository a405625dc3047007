"""Table 11: the group size G, with F_norm = std and alpha = 1. Completions per step are the same in every row."""

from dataclasses import replace

from gpg_repro.tables._math7b import BASE_ROW
from gpg_repro.tables.base import MATH_COLUMNS, Row, Table
from gpg_repro.tables.table_01 import GPG_STD


def _row(size: int) -> Row:
    label = f"G = {size}"
    return Row(key=f"g{size}", label=label, tiny_label=label, published=f"G={size}", recipe=f"table11_gpg_g{size}")


TABLE = Table(
    stem="table11",
    number=11,
    title="The group size G, Qwen2.5-Math-7B (zero-shot pass@1)",
    published="Table 11",
    columns=MATH_COLUMNS,
    rows=(
        BASE_ROW,
        _row(2),
        _row(4),
        replace(
            GPG_STD,
            key="g8",
            label="G = 8",
            tiny_label="G = 8",
            published="G=8",
            published_in=None,
            note="the run of GPG (F_norm = std, α = 1) in Table 1",
        ),
        _row(16),
    ),
    comparisons=(("g4", "g2"), ("g8", "g4"), ("g16", "g8"), ("g16", "g2")),
)
