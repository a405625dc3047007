"""The paper's numbers as data: every source kept apart, marks kept, printed dashes are null.

Sources: ``paper-v3`` (arXiv v3), ``readme`` and ``poster`` (of the authors' repository). README and poster tables carry
no numbers, so their rows stand under the number of the matching paper table.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pandas as pd

from eval_harness.errors import unknown

SOURCES = ("paper-v3", "readme", "poster")


def folder() -> Path:
    """Where the published numbers lie: in the checkout, or inside a built wheel."""
    packaged = Path(__file__).parent / "published_data"  # inside a built wheel
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "results" / "paper"


@cache
def _rows(source: str) -> tuple[dict, ...]:
    return tuple(json.loads((folder() / f"{source}.json").read_text(encoding="utf-8"))["rows"])


def published_table(table: str, source: str = "paper-v3") -> pd.DataFrame:
    """One published table of one source: index method, one column per printed column plus ``mark``.

    Raises:
        UserError: unknown source or table; sources are never mixed.
    """
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    rows = [row for row in _rows(source) if row["table"] == table]
    if not rows:
        raise unknown("published table", table, {row["table"] for row in _rows(source)})
    return pd.DataFrame([{"method": r["method"], **r["columns"], "mark": r["mark"]} for r in rows]).set_index("method")
