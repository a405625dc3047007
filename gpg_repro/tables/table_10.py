"""Table 10: the threshold beta_th on the share of groups with a signal. The row without one is Table 1's."""

from dataclasses import replace

from gpg_repro.tables._math7b import BASE_ROW
from gpg_repro.tables.base import MATH_COLUMNS, Row, Table
from gpg_repro.tables.table_01 import GPG_AGE, GPG_AGE_TH

TABLE = Table(
    stem="table10",
    number=10,
    title="The threshold β_th, Qwen2.5-Math-7B (zero-shot pass@1)",
    published="Table 10",
    columns=MATH_COLUMNS,
    rows=(
        BASE_ROW,
        replace(
            GPG_AGE,
            key="off",
            label="no threshold",
            tiny_label="no threshold",
            note="GPG (F_norm = 1, α = B/(B−M)) of Table 1; Table 10 has no row for it",
        ),
        replace(
            GPG_AGE_TH,
            key="th06",
            label="β_th = 0.6",
            tiny_label="β_th = 0.6",
            published="beta_th=0.6",
            published_in=None,
        ),
        Row(
            key="th08",
            label="β_th = 0.8",
            tiny_label="β_th = 0.8",
            published="beta_th=0.8",
            recipe="table10_gpg_age_th08",
        ),
    ),
    comparisons=(("th06", "off"), ("th08", "off"), ("th08", "th06")),
)
