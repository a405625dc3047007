"""What a table is: its rows, its columns, the comparisons it is read for. Nothing here runs or reads anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import Checkpoint, load_checkpoints
from gpg_repro.published import published_table

BASE = "base"
"""Key of the untrained row, and the name of its run."""
RULES = ("published", "strict")
"""What produced the paper's number; what a careful reader would call correct."""
SCORE, MASK_IOU = "score", "mask_iou"
"""The grader's mark; the mark that ``eval_harness.masks`` adds. Other metrics are names of ``Sample.extra``."""
SAME_MARK = 0.01
"""Marks of the two rules that differ by no more are one mark (IoUs differ in the sixth digit by their formulas)."""
_METRICS = {MASK_IOU: "mask IoU", "tag": "tag only"}
_SOURCES = {"paper-v3": "paper v3", "readme": "README", "poster": "poster"}


@dataclass(frozen=True)
class Column:
    """One column: a benchmark, or one of its groups, under one metric."""

    title: str
    """As published."""
    benchmark: str
    tiny_benchmark: str | None
    """None: the column exists at paper scale only."""
    group: str | None = None
    metric: str = SCORE
    digits: int = 1
    """Decimals of the published percentages."""
    is_count: bool = True
    """The published percentage is a count of right answers, so the item count says how sure it is."""
    printed: bool = True
    """The paper has this column."""

    def benchmark_at(self, scale: str) -> str | None:
        """The real benchmark at paper scale, the tiny one below."""
        return self.benchmark if scale == "paper" else self.tiny_benchmark

    def name_at(self, scale: str) -> str:
        """Name in the CSV file: ``aime24``, ``lisa/val``, ``lisa/test/mask_iou``."""
        metric = None if self.metric == SCORE else self.metric
        return "/".join(part for part in (self.benchmark_at(scale), self.group, metric) if part)

    def title_at(self, scale: str) -> str:
        """Heading; a tiny column has a name of its own."""
        if scale == "paper":
            return self.title
        parts = (self.group, None if self.metric == SCORE else _METRICS.get(self.metric, self.metric))
        return ": ".join([get_benchmark(self.tiny_benchmark).title, *(part for part in parts if part)])

    @property
    def num_items(self) -> int:
        """Items behind the published number."""
        benchmark = get_benchmark(self.benchmark)
        return benchmark.groups[self.group] if self.group else benchmark.num_items


MATH_COLUMNS = (
    Column("AIME24", "aime24", "tiny_sums"),
    Column("MATH-500", "math500", "tiny_differences"),
    Column("AMC23", "amc23", "tiny_products"),
    Column("Minerva", "minerva", "tiny_chains"),
    Column("OlympiadBench", "olympiadbench", "tiny_remainders"),
)
TINY_SUITES = tuple(column.tiny_benchmark for column in MATH_COLUMNS)


@dataclass(frozen=True)
class Row:
    """One row: the published method it stands for, the hub model that is it, the recipe or recipes that make it."""

    key: str
    label: str
    tiny_label: str | None = None
    """What the row is called at smoke and tiny scale; None: the row has no miniature."""
    published: str | None = None
    """Method of the published table."""
    published_in: str | None = None
    """Another published table that prints the row."""
    published_source: str = "paper-v3"
    """Where its numbers are printed; a row has one source."""
    recipe: str | None = None
    recipes: tuple[str, ...] = ()
    """One recipe per column, in the columns' order, where each column has a training of its own."""
    column: str | None = None
    """Title of the only column this row is measured on; set for the parts of a row with several recipes."""
    paper_recipe: bool = True
    """Its recipes exist at paper scale; not so where the paper copied a row whose settings are not stated."""
    hub: str | None = None
    """Hub id; where ``eval_harness/checkpoints.yaml`` knows it, its revision and settings are the entry's."""
    variant: str | None = None
    """The entry's variant that is the row's settings; None: the entry's own."""
    published_mark: str | None = None
    """Mark of the printed row, where two rows have one name."""
    published_items: tuple[tuple[str, int], ...] = ()
    """Title of a column and the items behind its printed number, where they are not the column's (another AMC set)."""
    note: str = ""

    @property
    def hub_revision(self) -> str | None:
        """The registry's revision of the hub model; None: main."""
        return self.checkpoint.revision if self.checkpoint else None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The registry's entry of the hub model."""
        return load_checkpoints().get(self.hub) if self.hub else None

    @property
    def trained(self) -> bool:
        """Whether a recipe of ours stands behind the row."""
        return bool(self.recipe or self.recipes)

    @property
    def run(self) -> str:
        """Name under which the row's records are kept; rows of several tables share one."""
        if self.recipes:
            raise ValueError(f"row {self.key} has {len(self.recipes)} runs; ask its parts")
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
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    summary: Literal["average", "total"] | None = "average"
    """``average``: plain mean of the columns. ``total``: the benchmark's own total (published rule: every item weighs
    the same; strict rule: its card's strata). None: no column sums the table up and the first one is compared."""
    number: int | None = None
    published: str | None = None
    """Name of the published table; None: the paper prints no such numbers."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (row, baseline) of keys: what the table is read for."""
    both_rules: bool = False
    """The two rules can differ much, so the strict one has a block of its own."""

    @property
    def name(self) -> str:
        """``Table 3``, or the title of a table of ours."""
        return f"Table {self.number}" if self.number else self.title

    @property
    def heading(self) -> str:
        """Title of the written files."""
        return f"Table {self.number}: {self.title}" if self.number else self.title

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The real benchmarks behind the columns."""
        return self.benchmarks_at("paper")

    def benchmarks_at(self, scale: str) -> tuple[str, ...]:
        """The benchmarks behind the columns, each once: the real ones at paper scale, the tiny ones below."""
        return tuple(dict.fromkeys(column.benchmark_at(scale) for column in self.columns_at(scale)))

    def columns_at(self, scale: str) -> tuple[Column, ...]:
        """The columns that exist at a scale."""
        return tuple(column for column in self.columns if column.benchmark_at(scale))

    def rows_at(self, scale: str) -> list[Row]:
        """The rows that exist at a scale."""
        return [row for row in self.rows if (scale == "paper" or row.tiny_label is not None)]

    def comparisons_at(self, scale: str) -> list[tuple[str, str]]:
        """The comparisons whose rows exist at a scale."""
        keys = {row.key for row in self.rows_at(scale)}
        return [pair for pair in self.comparisons if set(pair) <= keys]

    def parts(self, row: Row) -> list[Row]:
        """The runs behind a row as rows of their own: itself, or one part per column."""
        if not row.recipes:
            return [row]
        tiny = row.tiny_label
        return [
            replace(
                row,
                recipe=recipe,
                recipes=(),
                column=column.title,
                label=f"{row.label}, {column.title}",
                tiny_label=None if tiny is None else f"{tiny}, {column.title_at('tiny')}",
            )
            for column, recipe in zip(self.columns, row.recipes, strict=True)
        ]

    def measured_on(self, row: Row, scale: str) -> tuple[str, ...]:
        """The benchmarks one run (a row with one recipe, or a part) is measured on."""
        own = [c.benchmark_at(scale) for c in self.columns_at(scale) if row.column in (None, c.title)]
        return tuple(dict.fromkeys(own))

    def published_items(self, column: Column, key: str) -> int:
        """Items behind the printed number of a row."""
        own = next((row.published_items for row in self.rows if row.key == key), ())
        return dict(own).get(column.title, column.num_items)

    def mixes_items(self, column: Column) -> bool:
        """Whether printed numbers of one column are counts of different sets."""
        return any(column.title in dict(row.published_items) for row in self.rows)

    @property
    def printed_columns(self) -> tuple[Column, ...]:
        """The columns that the paper has."""
        return tuple(column for column in self.columns if column.printed)

    @property
    def headline(self) -> str:
        """Title of the number that is compared: Average, Total, or the first column as published."""
        return self.summary.capitalize() if self.summary else self.columns[0].title

    def headline_at(self, scale: str) -> str:
        """The same under its name in the CSV file: ``average``, ``total`` or the first column's."""
        return self.summary or self.columns[0].name_at(scale)

    def headline_title(self, scale: str) -> str:
        """Heading of that number at a scale."""
        return self.headline if self.summary else self.columns[0].title_at(scale)

    @property
    def published_as(self) -> str:
        """Heading of the published numbers: names the source, or says that each row names its own."""
        sources = list(dict.fromkeys(row.published_source for row in self.rows if row.published))
        return f"published ({_SOURCES[sources[0]]})" if len(sources) == 1 else "published (source by row)"

    @property
    def several_sources(self) -> bool:
        """Whether published rows come from more than one source."""
        return len({row.published_source for row in self.rows if row.published}) > 1


@dataclass(frozen=True)
class RowRuns:
    """The evaluation folders of one row, by training seed, and the training folders behind them."""

    row: Row
    folders: dict[int, Path] = field(default_factory=dict)
    trainings: dict[int, Path] = field(default_factory=dict)
    parts: dict[str, RowRuns] = field(default_factory=dict)
    """Column title -> its run, where each column has a training of its own; the folders are then those of the parts."""
    base: RowRuns | None = None
    """The base measured under this row's settings, where they are not the base row's; gains are over it."""

    def of(self, column: Column) -> RowRuns | None:
        """The run that measured a column; None: it was not measured."""
        return self.parts.get(column.title) if self.row.recipes else self

    @property
    def runs(self) -> Sequence[RowRuns]:
        """One entry per recipe."""
        return list(self.parts.values()) if self.row.recipes else [self]

    @property
    def seeds(self) -> list[int]:
        """Training seeds that every run of the row has."""
        return sorted(set.intersection(*(set(run.folders) for run in self.runs))) if self.runs else []


def source_name(row: Row) -> str:
    """Where a row's published numbers are printed, for people."""
    return _SOURCES[row.published_source]


def published_scores(table: Table) -> pd.DataFrame:
    """The published rows in the table's order, each from its own source: index row key, columns as printed, percent."""
    return pd.DataFrame({row.key: _published_row(table, row) for row in table.rows if row.published}).T


def _published_row(table: Table, row: Row) -> pd.Series:
    printed = published_table(row.published_in or table.published, row.published_source)
    if row.published_mark is not None:
        printed = printed[printed["mark"] == row.published_mark]
    return printed.loc[row.published]
