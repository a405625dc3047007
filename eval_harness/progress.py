"""Progress bars: widgets in a notebook, text in a terminal, and text in a notebook that a terminal is watching."""

from __future__ import annotations

import os
import sys

import tqdm as _tqdm
import tqdm.auto as _auto

TEXT_PROGRESS = "GPG_TEXT_PROGRESS"
"""Environment variable: print bars as text, a line every few seconds (set when papermill runs a notebook)."""


def progress_bar(*args, **kwargs) -> _tqdm.tqdm:
    """A tqdm bar that suits where it is shown; arguments are tqdm's."""
    if os.environ.get(TEXT_PROGRESS):
        return _tqdm.tqdm(*args, **{"file": sys.stderr, "mininterval": 5.0, "ncols": 100} | kwargs)
    return _auto.tqdm(*args, **kwargs)
