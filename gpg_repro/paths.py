"""Where things lie. A checkout keeps everything under its root; an installed wheel uses the current folder."""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()
STOP_FILE = "GPG_STOP_FILE"
"""Variable that names the file by which a training is asked to end (:mod:`gpg_repro.stopping`)."""


def results() -> Path:
    """The results folder: ``$GPG_RESULTS``, else ``results`` under the root."""
    return Path(os.environ.get("GPG_RESULTS") or ROOT / "results")


def cache() -> Path:
    """Where base models made on the spot are kept: ``$GPG_CACHE``, else ``.cache/gpg_repro`` under the root."""
    return Path(os.environ.get("GPG_CACHE") or ROOT / ".cache" / "gpg_repro")
