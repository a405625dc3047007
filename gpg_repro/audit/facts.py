"""What the rules must know about the printed columns: read from ``results/paper``, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpg_repro.published import PrintedRow, published_facts

COUNT, MEAN_IOU = "count", "mean_iou"
MEAN_OF_COLUMNS, SHARE_OF_ALL_ITEMS = "mean_of_columns", "share_of_all_items"


@dataclass(frozen=True)
class ColumnFacts:
    """What a printed column is made of."""

    kind: str
    """``count``: a share of right answers. ``mean_iou``: a mean of overlaps, behind which stands no count."""
    digits: int
    """Printed decimals."""
    sets: tuple[int, ...]
    """Items of every test set that goes by the column's name; the usual one first."""
    other_sizes: tuple[tuple[int, str], ...] = ()
    """Sizes quoted elsewhere, and where: tried against the scores, never taken for a set."""


@dataclass(frozen=True)
class Summary:
    """A printed column that sums up the others."""

    kind: str
    digits: int


@dataclass(frozen=True)
class Decoding:
    """How the rows of a table were decoded, as far as it is known."""

    how: str
    greedy: bool


@dataclass(frozen=True)
class Place:
    """Where a run is printed: a row of a table or figure, or one number of it."""

    table: str
    method: str
    mark: str | None = None
    column: str | None = None

    def is_of(self, row: PrintedRow) -> bool:
        """Whether a printed row is at this place."""
        return (self.table, self.method) == (row.table, row.method) and self.mark in (None, row.mark)


@dataclass(frozen=True)
class Dated:
    """Printed numbers tied to a state of the released code."""

    table: str
    methods: tuple[str, ...]
    sources: tuple[str, ...]
    first_seen: str
    generation: str
    like: bool
    """The code had that form, without being known to be the released one."""
    origin: str
    """``paper`` or ``inferred``."""
    why: str

    @property
    def name(self) -> str:
        """``R0``, ``R2-like``."""
        return f"{self.generation}-like" if self.like else self.generation


@dataclass(frozen=True)
class Facts:
    """Everything the rules take besides the printed rows; empty parts switch their rules off."""

    columns: Mapping[str, ColumnFacts] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    numbers_of_samples: tuple[int, ...] = ()
    """Customary numbers of samples per item that an average over several samples is tried with."""
    min_columns: int = 2
    """From so many impossible scores on, a row is taken for an average over several samples."""
    decoding: Mapping[str, Decoding] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    same_runs: tuple[tuple[Place, ...], ...] = ()
    dated: tuple[Dated, ...] = ()
    generations: Mapping[str, str] = field(default_factory=dict)
    elsewhere: tuple[PrintedRow, ...] = ()
    """Rows of the same names printed outside the three sources; ``source`` says where."""

    def digits_of(self, column: str) -> int:
        """Printed decimals of a column; 1 for one that is not described."""
        about = self.columns.get(column) or self.summaries.get(column)
        return about.digits if about else 1


def read_facts() -> Facts:
    """The facts in ``results/paper``."""
    items, same, code = (published_facts(name) for name in ("items", "same_runs", "generations"))
    return Facts(
        columns={
            name: ColumnFacts(
                kind=entry["kind"],
                digits=entry["digits"],
                sets=tuple(part["items"] for part in entry["sets"]),
                other_sizes=tuple((part["items"], part["where"]) for part in entry.get("other_sizes", ())),
            )
            for name, entry in items["columns"].items()
        },
        summaries={name: Summary(**entry) for name, entry in items["summaries"].items()},
        numbers_of_samples=tuple(items["several_samples"]["numbers"]),
        min_columns=items["several_samples"]["min_columns"],
        decoding={table: Decoding(**entry) for table, entry in items["decoding"].items()},
        marks=items["marks"],
        same_runs=tuple(tuple(Place(**place) for place in run["places"]) for run in same["runs"]),
        dated=tuple(
            Dated(**{**entry, "methods": tuple(entry["methods"]), "sources": tuple(entry["sources"])})
            for entry in code["numbers"]
        ),
        generations={entry["name"]: entry["what"] for entry in code["generations"]},
        elsewhere=tuple(
            PrintedRow(row["source"], row["table"], row["method"], row["mark"], row["columns"])
            for row in published_facts("elsewhere")["rows"]
        ),
    )
