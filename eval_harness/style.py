"""One look for every picture: theme, colours that stay apart for colour-blind readers, PNG and SVG of each figure.

Colours have one meaning everywhere: GPG blue and GRPO gray as in the paper, black an untrained base, gold supervised
training. The rest is from the Okabe-Ito set. tests/test_style.py holds them apart under simulated colour blindness.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from eval_harness import records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GPG_BLUE, GRPO_GRAY, BASE_BLACK, SFT_GOLD = "#2563ab", "#8a8a8a", "#222222", "#c08a1e"
GPG_LIGHT = "#7db4e6"
"""GPG's earlier code generation, where two stand side by side."""
EASY_GREEN, HARD_RED, BAND = "#009e73", "#a63a00", "#f0c36d"
"""Groups all right, groups all wrong, a range quoted by the paper."""
INTERVAL_ALPHA = 0.45
"""Opacity of the bar behind a mark that is its interval."""
_DPI = 150


def use_style(grid: bool = True) -> None:
    """Set the theme of all figures drawn after this.

    Text in SVG files stays text (searchable, small), and the same figure gives the same bytes.
    """
    import seaborn as sns

    rc = {"svg.fonttype": "none", "svg.hashsalt": "gpg", "figure.constrained_layout.use": False}
    sns.set_theme(style="whitegrid" if grid else "white", context="notebook", palette="colorblind", rc=rc)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as ``<path>.png`` and ``<path>.svg`` (same bytes for the same figure); the folder is made.

    The figure keeps the layout it has in the PNG, and loses its layout engine: laying out takes longer than drawing.

    Args:
        path: without suffix.

    Returns:
        The two files.
    """
    files = []
    for suffix, options in (("png", {"dpi": _DPI}), ("svg", {"metadata": {"Date": None}})):
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix, **options)
        figure.set_layout_engine(None)  # the first has laid it out
        files.append(path.with_name(f"{path.name}.{suffix}"))
        records.write_whole(files[-1], picture.getvalue())
    return files
