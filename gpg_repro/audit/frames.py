"""Everything found, and everything looked at, as frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd

from gpg_repro.audit.across import by_position, compare_places, compare_sources, generations, mixed_sets
from gpg_repro.audit.facts import COUNT, Facts
from gpg_repro.audit.rules import Finding, check_row, row_fits, several_samples
from gpg_repro.counts import counts_behind, cut, decimal, is_number, neighbours, share, share_attainable
from gpg_repro.published import PrintedRow


def find(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> list[Finding]:
    """Every finding about these rows, each source by itself first, then across sources.

    Args:
        rows: source -> its rows.
    """
    found: list[Finding] = []
    for part in rows.values():
        for row in part:
            found += check_row(row, facts)
        found += compare_places(part, facts)
        found += mixed_sets(part, facts)
    for row in facts.elsewhere:
        found += check_row(row, facts)
    return [*found, *compare_sources(rows, facts), *generations(rows, facts)]


def findings_frame(found: Sequence[Finding]) -> pd.DataFrame:
    """One finding per line: kind, severity, source, table, method, column, printed, expected, text."""
    columns = ["kind", "severity", "source", "table", "method", "column", "printed", "expected", "text"]
    lines = [[*one.key, one.printed, one.expected, one.text] for one in found]
    return pd.DataFrame(lines, columns=columns)


def checked(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> dict[str, int]:
    """How many things each rule looked at; findings are a share of these."""
    everything = [row for part in rows.values() for row in part]
    keyed = [_keyed_by_table(part) for part in rows.values()]
    compared = sum(
        len(set(a[key].columns) & set(b[key].columns)) for a, b in combinations(keyed, 2) for key in set(a) & set(b)
    )
    return {
        "rows": len(everything),
        "scores against counts": sum(len(row_fits(row, facts)) for row in everything),
        **{f"{name}s": sum(is_number(row.columns.get(name)) for row in everything) for name in facts.summaries},
        "pairs of cells across sources": compared,
    }


def _keyed_by_table(rows: Sequence[PrintedRow]) -> dict:
    tables = dict.fromkeys(row.table for row in rows)
    return {(t, *key): row for t in tables for key, row in by_position([r for r in rows if r.table == t]).items()}


def scores_frame(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> pd.DataFrame:
    """Every score that is a share of right answers, with the count behind it.

    Returns:
        Columns source, table, method, mark, column, value, verdict (rounded, cut, none, several samples), items (the
        sets that can give it), count and exact (the nearest that gives it; for ``none`` the nearest of any set).
    """
    lines = []
    for row in (row for part in rows.values() for row in part):
        several = several_samples(row, facts) is not None
        for column, one in row_fits(row, facts).items():
            value, sizes = decimal(row.columns[column]), sorted(one.sets) or facts.columns[column].sets
            near = [(count, size) for size in sizes for count in neighbours(value, size)]
            if one.by_set:
                near = [(count, size) for size in sizes for count in one.by_set[size].counts]
            count, size = min(near, key=lambda pair: abs(share(*pair) - value))
            verdict = "several samples" if several and one.verdict == "none" else one.verdict
            lines.append(
                {
                    "source": row.source,
                    "table": row.table,
                    "method": row.method,
                    "mark": row.mark,
                    "column": column,
                    "value": float(value),
                    "verdict": verdict,
                    "items": " or ".join(map(str, sorted(one.sets))),
                    "count": count,
                    "exact": float(share(count, size)),
                }
            )
    return pd.DataFrame(lines)


def power(facts: Facts) -> pd.DataFrame:
    """What the test of single scores can see: the share of printable values that some count rounds to.

    Returns:
        Columns column, items, decimals, step (percentage points between counts), passes (share of printable values that
        pass whatever they are: 1 means that the test is blind).
    """
    lines = [
        {
            "column": column,
            "items": size,
            "decimals": about.digits,
            "step": 100 / size,
            "passes": share_attainable(size, about.digits),
        }
        for column, about in facts.columns.items()
        if about.kind == COUNT
        for size in about.sets
    ]
    return pd.DataFrame(lines)


def sets_frame(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> pd.DataFrame:
    """Columns of which more than one size is known or quoted: how many different printed values each size gives.

    Returns:
        Columns column, items, where (known set, or who quotes the size), values, rounded, cut, none.
    """
    lines = []
    for column, about in facts.columns.items():
        sizes = [(size, "known set") for size in about.sets] + list(about.other_sizes)
        if about.kind != COUNT or len(sizes) == 1:
            continue
        printed = {
            row.columns[column]
            for part in rows.values()
            for row in part
            if is_number(row.columns.get(column)) and several_samples(row, facts) is None
        }
        for size, where in sizes:
            verdicts = [counts_behind(value, size, about.digits).verdict for value in printed]
            line = {verdict: verdicts.count(verdict) for verdict in ("rounded", "cut", "none")}
            lines.append({"column": column, "items": size, "where": where, "values": len(printed), **line})
    return pd.DataFrame(lines)


def rounding_styles(rows: Mapping[str, Sequence[PrintedRow]], facts: Facts) -> pd.DataFrame:
    """How rows of one source print their counts: numbers that only rounding gives, only cutting gives, either gives.

    Returns:
        Columns source, table, method, only rounded, only cut, either; rows without a telling number are left out.
    """
    lines = []
    for row in (row for part in rows.values() for row in part):
        tally = {"only rounded": 0, "only cut": 0, "either": 0}
        for column, one in row_fits(row, facts).items():
            digits, value = facts.columns[column].digits, decimal(row.columns[column])
            if one.verdict == "rounded":
                either = any(cut(exact, digits) == value for exact in one.exact)
                tally["either" if either else "only rounded"] += 1
            elif one.verdict == "cut":
                tally["only cut"] += 1
        if tally["only cut"]:
            lines.append({"source": row.source, "table": row.table, "method": row.label, **tally})
    return pd.DataFrame(lines)
