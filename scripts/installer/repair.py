"""Find what an interrupted installation left half done, so that pip installs it again."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path


def is_complete(dist_info: Path) -> bool:
    """Whether a distribution was unpacked to its end: pip's closing mark is there, each recorded file has its size."""
    if not all((dist_info / name).is_file() for name in ("INSTALLER", "METADATA", "RECORD")):
        return False
    with (dist_info / "RECORD").open(newline="", encoding="utf-8") as record:
        for row in csv.reader(record):
            # Shipped byte code has a recorded size too, but pip compiles over it.
            if len(row) == 3 and row[2] and not row[0].endswith(".pyc"):
                try:
                    size = (dist_info.parent / row[0]).stat().st_size
                except OSError:
                    return False
                if size != int(row[2]):
                    return False
    return True


def forget_incomplete(site_packages: Path) -> list[str]:
    """Remove the metadata of half-installed distributions and pip's left-over `~name` folders; return their names.

    pip trusts metadata, so without it the next run unpacks the distribution again, over the files that are there.
    """
    forgotten = []
    for leftover in site_packages.glob("~*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for dist_info in sorted(site_packages.glob("*.dist-info")):
        if not is_complete(dist_info):
            shutil.rmtree(dist_info)
            forgotten.append(dist_info.name.split("-")[0])
    return forgotten
