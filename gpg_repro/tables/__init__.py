"""Tables: which rows come from which recipe or checkpoint, which columns from which benchmark. One file per table."""

from __future__ import annotations

import importlib

from eval_harness.errors import unknown
from gpg_repro.tables.base import Table

NUMBERS = (3,)


def get_table(number: int) -> Table:
    """The specification of a table.

    Raises:
        UserError: it is not built yet.
    """
    if number not in NUMBERS:
        raise unknown("table", number, map(str, NUMBERS))
    return importlib.import_module(f"{__name__}.table_{number:02d}").TABLE


__all__ = ["NUMBERS", "Table", "get_table"]
