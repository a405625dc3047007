"""Frames of texts that know what is behind each cell: the number, its counts and interval, the runs it came from.

A notebook, the HTML file of a table and the site all show them: hovering a cell tells, and columns sort by the number
rather than by its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd

from eval_harness.markup import one_line
from gpg_repro import html

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
        names = [str(name or "") for name in frame.index.names] if last else [""] * frame.index.nlevels
        spans = [*((name, 1) for name in names), *_spans(frame.columns, level, last)]
        head.append([{"text": text, "width": width, "last": last} for text, width in spans])
    for row, (label, values) in enumerate(zip(frame.index, frame.itertuples(index=False, name=None), strict=True)):
        labels = [str(text) for text in (label if isinstance(label, tuple) else (label,))]
        own = [_td(value, cells.get((row, column))) for column, value in enumerate(values)]
        body.append({"labels": labels, "cells": own})
    return str(html.part("table", "frame", head=head, body=body))


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


def _td(value: object, cell: Cell | None) -> dict[str, str | None]:
    """Text and attributes of a cell; a run's id is one word, as ``data-runs`` is split at spaces."""
    if cell is None:
        return {"text": _text(value)}
    return {
        "text": cell.text,
        "sort": None if cell.value is None else f"{cell.value:.10g}",
        "title": "\n".join(f"{one_line(name)}: {one_line(text)}" for name, text in cell.details),
        "runs": " ".join(quote(run, safe="") for run in cell.runs),
    }


def _text(value: object) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
