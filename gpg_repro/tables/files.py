"""The files a table or figure leaves: Markdown, CSV, HTML, PNG and SVG under ``results/{tables,figures}/<scale>/``."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eval_harness import style
from gpg_repro.paths import results as default_results
from gpg_repro.tables.shown import to_html

Section = tuple[str | None, pd.DataFrame]
"""Heading (None: no heading of its own) and a frame laid out for reading."""
_STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:1.5em}"
    "td,th{padding:.35em .7em;border-bottom:1px solid #ddd;text-align:right}"
)


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
    markdown, page = [f"# {heading}"], [f"<h1>{html.escape(heading)}</h1>"]
    for title, frame in sections:
        if title:
            markdown.append(f"## {title}")
            page.append(f"<h2>{html.escape(title)}</h2>")
        markdown.append(_flat_columns(frame).to_markdown(disable_numparse=True))
        page.append(to_html(frame))
    markdown.append("\n".join(f"- {note}" for note in notes))
    page.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    paths["md"].write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    paths["html"].write_text(
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(heading)}</title><style>{_STYLE}</style>"
        + "".join(page)
        + "\n",
        encoding="utf-8",
    )
    long.to_csv(paths["csv"], index=False)
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
