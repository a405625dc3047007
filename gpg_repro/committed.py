"""Showing committed records and nothing else: a process with ``GPG_RECORDS_ONLY`` set trains and evaluates nothing."""

from __future__ import annotations

import os

from eval_harness.errors import UserError

RECORDS_ONLY = "GPG_RECORDS_ONLY"


class NoRecords(UserError):
    """There are no committed records to show, and this process makes none."""


def refuse_work(what: str) -> None:
    """Raise :class:`NoRecords` where records may only be shown; ``what`` says what would have to be made."""
    if os.environ.get(RECORDS_ONLY):
        raise NoRecords(f"no committed records of {what}, and none are made while {RECORDS_ONLY} is set.")
