"""The files a table or figure leaves: Markdown, CSV, HTML, PNG and SVG under ``results/{tables,figures}/<scale>/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from eval_harness import records, style
from eval_harness.markup import csv_table, markdown_table, markdown_text
from gpg_repro import html
from gpg_repro.paths import results as default_results
from gpg_repro.tables.shown import to_html

Section = tuple[str | None, pd.DataFrame]
"""Heading (None: no heading of its own) and a frame laid out for reading."""


def write_report(
    stem: str,
    heading: str,
    sections: Sequence[Section],
    notes: Sequence[str],
    scale: str,
    long: pd.DataFrame,
    results: Path | None = None,
    kind: str = "tables",
) -> dict[str, Path]:
    """Write ``<stem>.md``, ``.csv`` and ``.html``.

    Args:
        sections: what the Markdown and HTML files show.
        notes: what a reader must know; below the sections.
        long: what the CSV file holds, one number per line with its counts.
        kind: ``tables`` or ``figures``, the folder.
    """
    folder = (results or default_results()) / kind / scale
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"{stem}.{suffix}" for suffix in ("md", "csv", "html")}
    markdown = [f"# {markdown_text(heading)}"]
    for title, frame in sections:
        markdown += [f"## {markdown_text(title)}"] if title else []
        markdown.append(markdown_table(_flat_columns(frame)))
    markdown.append("\n".join(f"- {' '.join(note.split())}" for note in notes))
    tables = [(title, Markup(to_html(frame))) for title, frame in sections]
    records.write_whole(paths["md"], "\n\n".join(markdown) + "\n")
    records.write_whole(paths["html"], html.part("table", "page", heading=heading, sections=tables, notes=notes))
    records.write_whole(paths["csv"], csv_table(long))
    return paths


def save_figure(figure: Figure, stem: str, scale: str, results: Path | None = None) -> Figure:
    """Write ``<stem>.png`` and ``.svg``; returns the figure, for a notebook to show."""
    style.save_figure(figure, (results or default_results()) / "figures" / scale / stem)
    return figure


def _flat_columns(frame: pd.DataFrame) -> pd.DataFrame:
    if frame.columns.nlevels == 1:
        return frame
    flat = frame.copy()
    flat.columns = [f"{top}: {column}" for top, column in frame.columns]
    return flat
