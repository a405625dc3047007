"""What sources, places of a source, and rows of a column say against each other: pure functions, as in ``rules``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from gpg_repro.audit.facts import Dated, Facts
from gpg_repro.audit.rules import DIFFERS, NOT_COMPARABLE, NOTE, Finding, fit, row_finding
from gpg_repro.counts import decimal, is_number, rounded, shown
from gpg_repro.published import PrintedRow

# Several sources and places -------------------------------------------------------------------------------------------


def compare_sources(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> list[Finding]:
    """Cells, marks, names and rows that sources print differently, table by table, where at least two have the table.

    Rows are matched by table and method, in their order where two share a method.

    Args:
        rows: source -> its rows.
    """
    found: list[Finding] = []
    for table in dict.fromkeys(row.table for part in rows.values() for row in part):
        keyed = {source: by_position([row for row in part if row.table == table]) for source, part in rows.items()}
        keyed = {source: part for source, part in keyed.items() if part}
        renamed: set[tuple[str, int]] = set()
        for key in dict.fromkeys(key for part in keyed.values() for key in part):
            there = {source: part[key] for source, part in keyed.items() if key in part}
            absent = [source for source in keyed if source not in there]
            if absent:
                found += _absent(key, there, absent, keyed, renamed)
            found += _cells_differ(there, facts)
            found += _marks_differ(there, facts)
    return found


def by_position(rows: Sequence[PrintedRow]) -> dict[tuple[str, int], PrintedRow]:
    """Rows of one table by method and, where two share it, their order."""
    seen: dict[str, int] = {}
    keyed = {}
    for row in rows:
        seen[row.method] = seen.get(row.method, 0) + 1
        keyed[row.method, seen[row.method]] = row
    return keyed


def _absent(
    key: tuple[str, int],
    there: Mapping[str, PrintedRow],
    absent: Sequence[str],
    keyed: Mapping[str, Mapping[tuple[str, int], PrintedRow]],
    renamed: set[tuple[str, int]],
) -> list[Finding]:
    """A row that some sources do not have: under another name there, with the same numbers, or left out."""
    row, names, missing = next(iter(there.values())), {source: one.method for source, one in there.items()}, []
    for source in absent:
        twins = [
            (other, one)
            for other, one in keyed[source].items()
            if one.columns == row.columns and all(other not in keyed[known] for known in there)
        ]
        if twins:
            names[source] = twins[0][1].method
            renamed.add(twins[0][0])
        else:
            missing.append(source)
    if key in renamed:  # told already, from the other name's side
        return []
    found = []
    if len(set(names.values())) > 1:
        printed = _by_value(names)
        text = f"The same numbers stand under two names: {printed}."
        found.append(Finding("name", DIFFERS, tuple(names), row.table, row.method, "", printed, "", text))
    if missing:
        text = f"Printed in {', '.join(names)}; left out in {', '.join(missing)}."
        found.append(Finding("row", DIFFERS, tuple(names), row.table, row.label, "", "", "", text))
    return found


def _cells_differ(there: Mapping[str, PrintedRow], facts: Facts) -> list[Finding]:
    found, row = [], next(iter(there.values()))
    for column in row.columns:
        values = {source: other.columns[column] for source, other in there.items() if column in other.columns}
        if len(set(map(repr, values.values()))) > 1:
            digits = facts.digits_of(column)
            printed = _by_value({source: shown(value, digits) for source, value in values.items()})
            text = f"Sources print different values: {printed}"
            text += f"; {_gap(values, digits)}." if all(map(is_number, values.values())) else "."
            found.append(Finding("conflict", DIFFERS, tuple(values), row.table, row.method, column, printed, "", text))
    return found


def _gap(values: Mapping[str, object], digits: int) -> str:
    numbers = [decimal(value) for value in dict.fromkeys(values.values())]
    return f"{shown(numbers[-1] - numbers[0], digits, sign=True)} points from the first to the last"


def _marks_differ(there: Mapping[str, PrintedRow], facts: Facts) -> list[Finding]:
    marks = {source: row.mark for source, row in there.items()}
    if len(set(marks.values())) == 1:
        return []
    row = next(iter(there.values()))
    printed = _by_value({source: mark or "no mark" for source, mark in marks.items()})
    meanings = "; ".join(
        f"{mark}: {facts.marks[mark]}" for mark in dict.fromkeys(marks.values()) if mark in facts.marks
    )
    text = f"The row carries different marks: {printed}" + (f" ({meanings})." if meanings else ".")
    for other in facts.elsewhere:
        if (other.table, other.method) == (row.table, row.method):
            common = [c for c in row.columns if c in other.columns]
            apart = sum(row.columns[c] != other.columns[c] for c in common)
            text += (
                f" {other.source} prints other values in {apart} of {len(common)} columns, so the row is no copy of it."
            )
    return [Finding("mark", DIFFERS, tuple(there), row.table, row.method, "", printed, "", text)]


def compare_places(rows: Sequence[PrintedRow], facts: Facts) -> list[Finding]:
    """Numbers of one run that one source prints differently in several places, to the fewer decimals of the two."""
    found = []
    for places in facts.same_runs:
        there = [(place, row) for place in places for row in rows if place.is_of(row)]
        for (first, a), (second, b) in combinations(there, 2):
            pairs = (
                [(first.column or second.column, second.column or first.column)]
                if first.column or second.column
                else [(column, column) for column in a.columns if column in b.columns]
            )
            for mine, other in pairs:
                digits = min(facts.digits_of(mine), facts.digits_of(other))
                values = a.columns[mine], b.columns[other]
                if all(map(is_number, values)) and len({rounded(value, digits) for value in values}) > 1:
                    texts = [shown(v, facts.digits_of(c)) for v, c in zip(values, (mine, other), strict=True)]
                    printed = f"{texts[0]} ({a.table}), {texts[1]} ({b.table})"
                    text = f"One run, printed differently in one source: {printed}; there it is {b.method}."
                    found.append(row_finding("conflict", DIFFERS, a, mine, printed, "", text))
    return found


def mixed_sets(rows: Sequence[PrintedRow], facts: Facts) -> list[Finding]:
    """Columns, and marks, under which scores of different test sets stand in one source.

    Two scores are of different sets when no known set can give both. Rows that are averages over several samples are
    not judged.
    """
    found = []
    for table in dict.fromkeys(row.table for row in rows):
        part = [row for row in rows if row.table == table]
        for column, sets in _columns_with_sets(part, facts).items():
            if _apart(sets):
                found.append(_mixed_column(table, column, sets, facts))
    for mark in dict.fromkeys(row.mark for row in rows if row.mark):
        part = [row for row in rows if row.mark == mark and not row.table.startswith("Figure")]
        for column, sets in _columns_with_sets(part, facts).items():
            if _apart(sets):
                tables = ", ".join(dict.fromkeys(row.table for row, _ in sets))
                text = (
                    f"Rows under one mark, {mark} ({facts.marks.get(mark, 'not explained')}), are of different sets: "
                )
                text += f"{_by_sets(sets, column, facts, with_table=True)}."
                sources = (sets[0][0].source,)
                found.append(Finding("mixed_sets", NOT_COMPARABLE, sources, tables, mark, column, "", "", text))
    return found


def _columns_with_sets(rows: Sequence[PrintedRow], facts: Facts) -> dict[str, list[tuple[PrintedRow, frozenset[int]]]]:
    """Columns of several known sets -> the rows whose set can be told, with the sets that can give their score."""
    several = [column for column, about in facts.columns.items() if len(about.sets) > 1]
    found: dict[str, list[tuple[PrintedRow, frozenset[int]]]] = {}
    for column in several:
        pairs = [(row, fit(row.columns.get(column), column, facts)) for row in rows]
        found[column] = [(row, one.sets) for row, one in pairs if one is not None and one.sets]
    return {column: sets for column, sets in found.items() if sets}


def _apart(sets: Sequence[tuple[PrintedRow, frozenset[int]]]) -> bool:
    return any(not a & b for (_, a), (_, b) in combinations(sets, 2))


def _by_sets(sets, column: str, facts: Facts, with_table: bool = False) -> str:
    digits, groups = facts.columns[column].digits, {}
    for row, of in sets:
        where = f", {row.table}" if with_table else ""
        groups.setdefault(of, []).append(f"{shown(row.columns[column], digits)} ({row.label}{where})")
    return "; ".join(f"of {' or '.join(map(str, sorted(of)))} items: {', '.join(g)}" for of, g in groups.items())


def _mixed_column(table: str, column: str, sets, facts: Facts) -> Finding:
    pairs = [(a, b) for (a, x), (b, y) in combinations(sets, 2) if not x & y]
    averages = [
        pair for pair in pairs if all(any(is_number(row.columns.get(n)) for n in facts.summaries) for row in pair)
    ]
    text = (
        f"Scores are counts of different sets: {_by_sets(sets, column, facts)}. {len(pairs)} of "
        f"{len(list(combinations(sets, 2)))} pairs of rows cannot be compared on {column}, nor {len(averages)} pairs "
        "on the Average that holds it."
    )
    return Finding("mixed_sets", NOT_COMPARABLE, (sets[0][0].source,), table, "", column, "", "", text)


# States of the code ---------------------------------------------------------------------------------------------------


def dated(row: PrintedRow, facts: Facts) -> Dated | None:
    """The state of the code a row is tied to: directly, or through another place that prints the same run."""
    names = [(row.table, row.method)]
    for places in facts.same_runs:
        if any(place.is_of(row) for place in places):
            names += [(place.table, place.method) for place in places]
    for entry in facts.dated:
        if row.source in entry.sources and any(t == entry.table and m in entry.methods for t, m in names):
            return entry
    return None


def generations(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> list[Finding]:
    """Tables whose rows stem from several states of the code, and names that do."""
    found = []
    for source, part in rows.items():
        for table in dict.fromkeys(row.table for row in part):
            tied = [(row, entry) for row in part if row.table == table and (entry := dated(row, facts)) is not None]
            if len({entry.generation for _, entry in tied}) > 1:
                listed = "; ".join(f"{row.method}: {_dated_text(entry)}" for row, entry in tied)
                text = f"Rows of one table stem from several states of the code: {listed}."
                found.append(Finding("generation", NOTE, (source,), table, "", "", "", "", text))
    everything = [*(row for part in rows.values() for row in part), *facts.elsewhere]
    by_name: dict[tuple[str, str], dict[str, list[tuple[PrintedRow, Dated]]]] = {}
    for row in everything:
        if (entry := dated(row, facts)) is not None and not row.table.startswith("Figure"):
            by_name.setdefault((row.table, row.method), {}).setdefault(entry.generation, []).append((row, entry))
    for (table, method), by_generation in by_name.items():
        if len(by_generation) > 1:
            parts = []
            for tied in by_generation.values():
                row, entry = tied[0]
                column = next(iter(row.columns))
                sources = ", ".join(dict.fromkeys(r.source for r, _ in tied))
                parts.append(
                    f"{column} {shown(row.columns[column], facts.digits_of(column))} ({sources}): {_dated_text(entry)}"
                )
            text = f"One name stands for several methods. {'; '.join(parts)}."
            sources = tuple(dict.fromkeys(r.source for tied in by_generation.values() for r, _ in tied))
            found.append(Finding("generation", NOTE, sources, table, method, "", "", "", text))
    return found


def _dated_text(entry: Dated) -> str:
    return f"{entry.name}, first seen {entry.first_seen} ({entry.origin}: {entry.why})"


def _by_value(texts: Mapping[str, str]) -> str:
    """``51.33 (readme, poster), 50.80 (paper-v3)``: each value once, with its sources."""
    groups: dict[str, list[str]] = {}
    for source, text in texts.items():
        groups.setdefault(text, []).append(source)
    return ", ".join(f"{text} ({', '.join(sources)})" for text, sources in groups.items())
