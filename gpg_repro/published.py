"""The paper's numbers as data: every source kept apart, marks kept, printed dashes are null.

Sources: ``paper-v3`` (arXiv v3), ``readme`` and ``poster`` (of the authors' repository). README and poster tables carry
no numbers, so their rows stand under the number of the matching paper table. No function here picks a source where
sources print different values: it raises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from eval_harness.errors import UserError, unknown

SOURCES = ("paper-v3", "readme", "poster")
Value = float | bool | str | None
"""What a cell can hold: a number, a component that a method has or has not (Table 2), a formula (Table 9), a dash."""


@dataclass(frozen=True)
class PrintedRow:
    """One printed row of one source."""

    source: str
    table: str
    method: str
    """As printed; two rows of a table can share it, their marks then differ."""
    mark: str
    columns: dict[str, Value]

    @property
    def label(self) -> str:
        """Method and mark."""
        return f"{self.method} {self.mark}".strip()


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


def printed_rows(source: str) -> tuple[PrintedRow, ...]:
    """Every row of one source, in the order of its file.

    Raises:
        UserError: unknown source.
    """
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    return tuple(PrintedRow(source, r["table"], r["method"], r["mark"], dict(r["columns"])) for r in _rows(source))


def published_frame(sources: str | Sequence[str] = SOURCES) -> pd.DataFrame:
    """All printed cells, one per line; every line says which source it is from.

    Args:
        sources: one source or several.

    Returns:
        Columns source, table, row (position in the table, since two rows can share a method), method, mark, column,
        value (numbers in percent; None where a dash is printed).

    Raises:
        UserError: unknown source.
    """
    lines = []
    for source in (sources,) if isinstance(sources, str) else sources:
        seen: dict[str, int] = {}
        for row in printed_rows(source):
            position = seen[row.table] = seen.get(row.table, -1) + 1
            lines += [
                (row.source, row.table, position, row.method, row.mark, column, value)
                for column, value in row.columns.items()
            ]
    columns = ["source", "table", "row", "method", "mark", "column", "value"]
    return pd.DataFrame(lines, columns=columns).astype({"value": object})


def published_value(table: str, method: str, column: str, *, source: str | None = None, mark: str | None = None):
    """One printed cell.

    Args:
        source: where it is printed. None: every source that prints it, provided that they agree.
        mark: needed where two rows of the table share the method.

    Raises:
        UserError: no such cell; sources print different values and none was named; two rows fit.
    """
    frame = published_frame(SOURCES if source is None else source)
    for name, wanted in (("table", table), ("method", method), ("column", column)):
        found = frame[frame[name] == wanted]
        if found.empty:
            raise unknown(f"published {name}", wanted, set(frame[name]))
        frame = found
    if mark is not None:
        frame = frame[frame["mark"] == mark]
    if frame.empty:
        raise UserError(f"{table} has no row {method!r} with the mark {mark!r}; look at published_table({table!r}).")
    if frame.duplicated("source").any():
        marks = ", ".join(repr(name) for name in dict.fromkeys(frame["mark"]))
        raise UserError(f"{table} has several rows {method!r}; name one by its mark: {marks}.")
    if len(frame["value"].map(repr).unique()) > 1:
        printed = ", ".join(f"{line.value} ({line.source})" for line in frame.itertuples())
        raise UserError(f"{table}, {method}, {column} differs between sources: {printed}. Name one: source=…")
    return frame["value"].iloc[0]


@cache
def _facts_text(name: str) -> str:
    path = folder() / f"{name}.json"
    if not path.is_file():
        raise unknown("file of published facts", name, (p.stem for p in folder().glob("*.json")))
    return path.read_text(encoding="utf-8")


def published_facts(name: str) -> dict:
    """A file of facts about the printed numbers: ``items``, ``generations``, ``same_runs``, ``comparisons``, …

    Raises:
        UserError: there is no such file.
    """
    return json.loads(_facts_text(name))
