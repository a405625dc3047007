"""Frames of texts that know what is behind each cell: the number, its counts and interval, the runs it came from.

A notebook, the HTML file of a table and the site all show them: hovering a cell tells, and columns sort by the number
rather than by its text.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what is behind it."""

    text: str
    value: float | None = None
    """The number the column is sorted by; None: taken from the text."""
    details: tuple[tuple[str, str], ...] = ()
    """Name and text of what a reader may ask for: counts, interval, source."""
    runs: tuple[str, ...] = ()
    """Ids of the runs the number was computed from."""

    def __str__(self) -> str:
        return self.text


class ShownFrame(pd.DataFrame):
    """A frame of texts that shows itself with what is behind its cells. What is computed from it is a plain frame."""

    _metadata = ["cells"]

    def _repr_html_(self) -> str:
        return to_html(self)


def shown(lines: Sequence[Mapping], index: pd.Index) -> ShownFrame:
    """A frame for reading; its own cells are plain texts.

    Args:
        lines: one mapping of headings (texts, or tuples of one length) to a text or a :class:`Cell` per row.
        index: the rows' labels, named.
    """
    texts = [{name: str(value) for name, value in line.items()} for line in lines]
    frame = ShownFrame(texts, index=index)
    places = {name: k for k, name in enumerate(frame.columns)}
    if len(places) and isinstance(frame.columns[0], tuple):
        frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    frame.cells = {
        (row, places[name]): value
        for row, line in enumerate(lines)
        for name, value in line.items()
        if isinstance(value, Cell)
    }
    return frame


def explained(frame: pd.DataFrame, behind: Sequence[tuple[Sequence[tuple[str, str]], Sequence[str]]]) -> ShownFrame:
    """A frame of numbers, still numbers, whose fractions say what is behind them.

    Args:
        behind: details and runs of each row.
    """
    made = ShownFrame(frame)
    made.cells = {
        (row, column): Cell(f"{value:.3f}", value, tuple(details), tuple(runs))
        for row, (values, (details, runs)) in enumerate(
            zip(frame.itertuples(index=False, name=None), behind, strict=True)
        )
        for column, value in enumerate(values)
        if isinstance(value, float) and not pd.isna(value)
    }
    return made


def to_html(frame: pd.DataFrame) -> str:
    """A frame as an HTML table: ``title`` holds a cell's details, ``data-sort`` its number, ``data-runs`` its runs.

    The names of the index stand in the last row of the head, so that every column has one heading at its foot.
    """
    cells = getattr(frame, "cells", {})
    head, body = [], []
    for level in range(frame.columns.nlevels):
        last = level == frame.columns.nlevels - 1
        names = [name or "" for name in frame.index.names] if last else [""] * frame.index.nlevels
        headings = "".join(_heading(text, width, last) for text, width in _spans(frame.columns, level, last))
        head.append("<tr>" + "".join(_heading(str(name), 1, last) for name in names) + headings + "</tr>")
    for row, (label, values) in enumerate(zip(frame.index, frame.itertuples(index=False, name=None), strict=True)):
        labels = label if isinstance(label, tuple) else (label,)
        stub = "".join(f'<th scope="row">{html.escape(str(text))}</th>' for text in labels)
        own = "".join(_td(value, cells.get((row, column))) for column, value in enumerate(values))
        body.append(f"<tr>{stub}{own}</tr>")
    return (
        '<table class="dataframe"><thead>' + "".join(head) + "</thead>\n<tbody>" + "\n".join(body) + "</tbody></table>"
    )


def _spans(columns: pd.Index, level: int, last: bool) -> list[tuple[str, int]]:
    """Headings of one level and how many columns each covers; those of the last level cover one each."""
    values = [str(value) for value in columns.get_level_values(level)]
    spans: list[tuple[str, int]] = []
    for place, text in enumerate(values):
        above = [columns.get_level_values(k) for k in range(level)]
        same = place and text == values[place - 1] and all(k[place] == k[place - 1] for k in above)
        if same and not last:
            spans[-1] = (text, spans[-1][1] + 1)
        else:
            spans.append((text, 1))
    return spans


def _heading(text: str, width: int, last: bool) -> str:
    span = f' colspan="{width}"' if width > 1 else ""
    scope = "col" if last else "colgroup"
    return f'<th scope="{scope}"{span}>{html.escape(text)}</th>' if text or last else f"<td{span}></td>"


def _td(value: object, cell: Cell | None) -> str:
    attributes = ""
    if cell is not None:
        if cell.value is not None:
            attributes += f' data-sort="{cell.value:.10g}"'
        if cell.details:
            lines = "\n".join(f"{name}: {text}" for name, text in cell.details)
            attributes += f' title="{html.escape(lines)}"'
        if cell.runs:
            attributes += f' data-runs="{html.escape(" ".join(cell.runs))}"'
    return f"<td{attributes}>{html.escape(_text(value) if cell is None else cell.text)}</td>"


def _text(value: object) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
