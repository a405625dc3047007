"""What a table is: its rows, its columns, the comparisons it is read for. Nothing here runs or reads anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from eval_harness.benchmarks import get_benchmark
from gpg_repro.published import published_table

MATH_BENCHMARKS = ("aime24", "math500", "amc23", "minerva", "olympiadbench")
TINY_SUITES = ("tiny_sums", "tiny_differences", "tiny_products", "tiny_chains", "tiny_remainders")
BASE = "base"
"""Key of the untrained row, and the name of its run."""


@dataclass(frozen=True)
class Row:
    """One row: the published method it stands for, the hub model that is it, the recipe that makes it."""

    key: str
    label: str
    tiny_label: str | None = None
    """What the row is called at smoke and tiny scale; None: the row has no miniature."""
    published: str | None = None
    """Method of the published table."""
    published_in: str | None = None
    """Another published table that prints the row."""
    recipe: str | None = None
    hub: str | None = None
    hub_revision: str | None = None
    note: str = ""

    @property
    def run(self) -> str:
        """Name under which the row's records are kept; rows of several tables share one."""
        return self.recipe or BASE

    def label_at(self, scale: str) -> str:
        """What the row is called at a scale."""
        return self.label if scale == "paper" else self.tiny_label or self.label


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one of ours in its form."""

    stem: str
    """Name of its files: ``table03``."""
    title: str
    benchmarks: tuple[str, ...]
    tiny_benchmarks: tuple[str, ...]
    rows: tuple[Row, ...]
    number: int | None = None
    published: str | None = None
    """Name of the published table; None: the paper prints no such numbers."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (row, baseline) of keys: what the table is read for."""

    @property
    def name(self) -> str:
        """``Table 3``, or the title of a table of ours."""
        return f"Table {self.number}" if self.number else self.title

    @property
    def heading(self) -> str:
        """Title of the written files."""
        return f"Table {self.number}: {self.title}" if self.number else self.title

    def benchmarks_at(self, scale: str) -> tuple[str, ...]:
        """The columns: real benchmarks at paper scale, the tiny suites below."""
        return self.benchmarks if scale == "paper" else self.tiny_benchmarks

    def rows_at(self, scale: str) -> list[Row]:
        """The rows that exist at a scale."""
        return [row for row in self.rows if (scale == "paper" or row.tiny_label is not None)]


@dataclass(frozen=True)
class RowRuns:
    """The evaluation folders of one row, by training seed, and the training folders behind them."""

    row: Row
    folders: dict[int, Path]
    trainings: dict[int, Path] = field(default_factory=dict)


def column_title(name: str) -> str:
    """Heading of a column."""
    return "Average" if name == "average" else get_benchmark(name).title


def published_scores(table: Table, source: str = "paper-v3") -> pd.DataFrame:
    """The published rows in the table's order: index row key, columns Average and the benchmarks, in percent."""
    rows = {
        row.key: published_table(row.published_in or table.published, source).loc[row.published]
        for row in table.rows
        if row.published
    }
    return pd.DataFrame(rows).T
