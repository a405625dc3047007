"""Figures of training runs: which curves come from which recipe. One file per figure; drawn in ``gpg_repro.plots``."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass
class FigureReport:
    """What a notebook shows about a figure."""

    figure: Figure
    numbers: pd.DataFrame
    """The numbers that the text states, with their counts."""
    text: str
    """What we see, computed from the numbers."""
    notes: list[str]
    provenance: pd.DataFrame


__all__ = ["FigureReport"]
