"""From printed rows to findings: pure functions of the rows and of the facts about their columns.

A finding is computed, its sentence too. ``across`` compares sources, ``frames`` gathers everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from gpg_repro.audit.facts import COUNT, MEAN_OF_COLUMNS, Facts
from gpg_repro.counts import (
    Counts,
    counts_behind,
    cut,
    decimal,
    is_number,
    neighbours,
    one_slip,
    rounded,
    rounded_twice,
    share,
    share_attainable,
    shown,
)
from gpg_repro.published import PrintedRow

IMPOSSIBLE, CONTRADICTS, CUT, DIFFERS = "impossible", "contradicts", "digits cut", "differs"
NOT_COMPARABLE, NOT_TESTABLE, NOTE = "not comparable", "not testable", "note"
SEVERITIES = {
    IMPOSSIBLE: "no count of right answers prints as this number",
    CONTRADICTS: "printed numbers of one row do not fit each other",
    DIFFERS: "printed differently in different places",
    NOT_COMPARABLE: "numbers of one column, or under one mark, are of different test sets",
    CUT: "right only with its digits cut off instead of rounded",
    NOT_TESTABLE: "an average over several samples, so single counts say nothing",
    NOTE: "true, and needed to read the numbers",
}
KINDS = {
    "average": "an Average against its columns",
    "total": "a Total against the counts of its parts",
    "attainability": "a score against the counts of its test set",
    "multi_sample": "a row that single samples cannot give",
    "conflict": "one number, printed differently",
    "row": "a row that a source leaves out",
    "name": "one row under two names",
    "mark": "one row under two marks",
    "mixed_sets": "one column, several test sets",
    "generation": "one name, several states of the code",
    "stated": "a difference that the text states",
}


@dataclass(frozen=True)
class Finding:
    """One thing found. ``printed`` and ``expected`` are texts with the printed decimals."""

    kind: str
    severity: str
    sources: tuple[str, ...]
    table: str
    method: str
    column: str
    printed: str
    expected: str
    text: str

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """What the finding is about, without its sentence."""
        return self.kind, self.severity, ", ".join(self.sources), self.table, self.method, self.column


@dataclass(frozen=True)
class Fit:
    """The counts behind a printed score, on every known test set that can give it under the better of two verdicts."""

    verdict: str
    """``"rounded"``, ``"cut"`` or ``"none"``, as in :class:`gpg_repro.counts.Counts`."""
    by_set: Mapping[int, Counts]

    @property
    def sets(self) -> frozenset[int]:
        """Sizes of the test sets that can give the score; empty: none can."""
        return frozenset(self.by_set)

    @property
    def exact(self) -> list[Decimal]:
        """Every exact percentage that can stand behind the score."""
        return [value for counts in self.by_set.values() for value in counts.exact]


@dataclass(frozen=True)
class Samples:
    """One number of samples per item that gives every score tried."""

    num_samples: int
    counts: Mapping[str, Counts]
    """Column -> counts over items × samples, on the first set that fits."""


@dataclass(frozen=True)
class Explanation:
    """One changed value with which a row adds up."""

    column: str
    written: str
    meant: str
    count: int
    num_items: int
    slip: str
    """``fraction``: printed as a share of one. ``digit``: one character added, dropped or replaced."""

    @property
    def text(self) -> str:
        """``AIME24 20.0 (6 of 30; 0.2 read as a share of one)``."""
        how = f"{self.written} read as a share of one" if self.slip == "fraction" else "one character away"
        return f"{self.column} {self.meant} ({self.count} of {self.num_items}; {how})"


def fit(value: object, column: str, facts: Facts) -> Fit | None:
    """The counts behind a printed score; None for a dash and for columns that are no counts."""
    about = facts.columns.get(column)
    if about is None or about.kind != COUNT or not is_number(value):
        return None
    found = {num_items: counts_behind(value, num_items, about.digits) for num_items in about.sets}
    for verdict in ("rounded", "cut"):
        by_set = {num_items: counts for num_items, counts in found.items() if counts.verdict == verdict}
        if by_set:
            return Fit(verdict, by_set)
    return Fit("none", {})


def row_fits(row: PrintedRow, facts: Facts) -> dict[str, Fit]:
    """Column -> fit, for the row's scores that are shares of right answers (not its Average or Total)."""
    found = {column: fit(value, column, facts) for column, value in row.columns.items()}
    return {column: one for column, one in found.items() if one is not None}


def common_samples(row: PrintedRow, columns: Iterable[str], facts: Facts) -> Samples | None:
    """The smallest customary number of samples per item that gives every one of these scores, rounded; None: none."""
    wanted = {column: facts.columns[column] for column in columns}
    for number in facts.numbers_of_samples:
        counts = {}
        for column, about in wanted.items():
            tried = (counts_behind(row.columns[column], number * size, about.digits) for size in about.sets)
            found = next((one for one in tried if one.verdict == "rounded"), None)
            if found is not None:
                counts[column] = found
        if len(counts) == len(wanted):
            return Samples(number, counts)
    return None


def several_samples(row: PrintedRow, facts: Facts) -> Samples | None:
    """How a row is an average over several samples per item; None: it need not be one.

    A row is, when at least ``facts.min_columns`` of its scores are no count of any known test set, rounded or cut, and
    one customary number of samples per item gives all of them. A slip of the pen spoils one number; two at once, on
    different sets, mean another way of measuring.
    """
    impossible = [column for column, one in row_fits(row, facts).items() if one.verdict == "none"]
    return common_samples(row, impossible, facts) if len(impossible) >= facts.min_columns else None


# One row --------------------------------------------------------------------------------------------------------------


def check_row(row: PrintedRow, facts: Facts) -> list[Finding]:
    """Everything a row says about itself: its scores, its Average, its Total."""
    return [*check_scores(row, facts), *check_average(row, facts), *check_total(row, facts)]


def check_scores(row: PrintedRow, facts: Facts) -> list[Finding]:
    """Scores that are no count, or one only with digits cut off; or the whole row as an average over samples."""
    fits, samples, found = row_fits(row, facts), several_samples(row, facts), []
    impossible = [column for column, one in fits.items() if one.verdict == "none"]
    if samples is not None:
        found.append(_multi_sample(row, impossible, samples, facts))
    for column, one in fits.items():
        printed = shown(row.columns[column], facts.columns[column].digits)
        if one.verdict == "none" and samples is None:
            found.append(_impossible(row, column, printed, facts))
        elif one.verdict == "cut":
            size, counts = next(iter(one.by_set.items()))
            expected = shown(rounded(counts.exact[0], facts.columns[column].digits), facts.columns[column].digits)
            text = (
                f"{counts.counts[0]} of {size} is {counts.exact[0]:.3f}, which rounds to {expected}; {printed} is that "
            )
            text += "with its digits cut off."
            if samples is not None:
                text += " (The row is an average over several samples, which can also be the cause.)"
            found.append(row_finding("attainability", CUT, row, column, printed, expected, text))
    return found


def _impossible(row: PrintedRow, column: str, printed: str, facts: Facts) -> Finding:
    about, parts, twice = facts.columns[column], [], []
    for size in about.sets:
        near = dict.fromkeys(neighbours(printed, size))
        parts.append(" and ".join(f"{count} of {size} is {share(count, size):.3f}" for count in near))
        if (count := rounded_twice(printed, size, about.digits)) is not None:
            twice.append(
                f"{count} of {size} gives it when rounded to {about.digits + 1} decimals and then to {about.digits}."
            )
    sizes = " or ".join(map(str, about.sets))
    text = f"No count of {sizes} items prints as {printed}, rounded or cut: {'; '.join(parts)}."
    exact = {
        shown(rounded(share(count, size), about.digits), about.digits)
        for size in about.sets
        for count in neighbours(printed, size)
    }
    expected = " or ".join(sorted(exact, key=Decimal))
    return row_finding("attainability", IMPOSSIBLE, row, column, printed, expected, " ".join([text, *twice]))


def _multi_sample(row: PrintedRow, columns: Sequence[str], samples: Samples, facts: Facts) -> Finding:
    printed = {column: shown(row.columns[column], facts.columns[column].digits) for column in columns}
    ways = [
        f"{printed[column]} = {counts.counts[0]} of {counts.num_items // samples.num_samples} × {samples.num_samples}"
        for column, counts in samples.counts.items()
    ]
    blind = [
        f"{share_attainable(counts.num_items, facts.columns[column].digits):.0%} of all printable values on {column}"
        for column, counts in samples.counts.items()
    ]
    text = (
        f"{len(columns)} scores of the row are no count of any known set ({', '.join(columns)}), so it is no single "
        f"run. {samples.num_samples} samples per item give all of them: {'; '.join(ways)}. So many samples give "
        f"{' and '.join(blind)}, so this is consistent, not proven, and the scores cannot be tested."
    )
    listed = ", ".join(printed.values())
    return row_finding("multi_sample", NOT_TESTABLE, row, ", ".join(columns), listed, "", text)


def check_average(row: PrintedRow, facts: Facts) -> list[Finding]:
    """An Average that is neither the mean of the printed columns nor that of the counts behind them."""
    name = next((name for name, about in facts.summaries.items() if about.kind == MEAN_OF_COLUMNS), None)
    scores = {c: v for c, v in row.columns.items() if c not in facts.summaries}
    if name is None or not is_number(row.columns.get(name)) or not all(map(is_number, scores.values())) or not scores:
        return []
    digits, printed = facts.summaries[name].digits, decimal(row.columns[name])
    mean, fits = _mean(scores.values()), row_fits(row, facts)
    exact = [fits[c].exact if c in fits and fits[c].exact else [decimal(v)] for c, v in scores.items()]
    low, high = _mean(min(values) for values in exact), _mean(max(values) for values in exact)
    if rounded(mean, digits) == printed or rounded(low, digits) <= printed <= rounded(high, digits):
        return []
    expected, given = shown(rounded(mean, digits), digits), shown(printed, digits)
    text = f"The printed columns have the mean {mean:.{digits + 1}f}"
    if all(fits[c].exact for c in scores if c in fits) and set(fits) == set(scores):
        between = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
        text += f" (the counts behind them {between})"
    text += f", which prints as {expected}; printed is {given}"
    if printed in (cut(mean, digits), cut(low, digits)):
        return [row_finding("average", CUT, row, name, given, expected, f"{text}, the mean with its digits cut off.")]
    text += ". " + _explained(explain_average(row, facts), name)
    return [row_finding("average", CONTRADICTS, row, name, given, expected, text)]


def explain_average(row: PrintedRow, facts: Facts) -> list[Explanation]:
    """Single changed scores with which the printed Average is right: each a count, each one slip from what is printed.

    Where some of them also repair a score that is impossible by itself, only these are kept.
    """
    name = next(name for name, about in facts.summaries.items() if about.kind == MEAN_OF_COLUMNS)
    digits, target = facts.summaries[name].digits, decimal(row.columns[name])
    scores = {c: decimal(v) for c, v in row.columns.items() if c not in facts.summaries}
    found = []
    for column, written in scores.items():
        about = facts.columns.get(column)
        if about is None or about.kind != COUNT:
            continue
        others = sum(scores.values()) - written
        for size in about.sets:
            for count in range(size + 1):
                meant = rounded(share(count, size), about.digits)
                if rounded((others + meant) / len(scores), digits) == target:
                    found += _slips(column, written, meant, count, size, about.digits)
    return _fewest_left(row, _each_once(found), facts)


def check_total(row: PrintedRow, facts: Facts) -> list[Finding]:
    """A Total that is not the share of all right answers, given the counts behind the parts."""
    name = next((name for name, about in facts.summaries.items() if about.kind != MEAN_OF_COLUMNS), None)
    if name is None or not is_number(row.columns.get(name)):
        return []
    fits = {column: one for column, one in row_fits(row, facts).items() if column != name}
    if not fits or any(one.verdict == "none" for one in fits.values()):
        return []  # a part is no count: that is a finding of its own
    digits, printed = facts.summaries[name].digits, decimal(row.columns[name])
    parts = [next(iter(one.by_set.values())) for one in fits.values()]
    whole = sum(part.num_items for part in parts)
    low, high = (sum(choose(part.counts) for part in parts) for choose in (min, max))
    sums = range(low, high + 1)
    if any(rounded(share(right, whole), digits) == printed for right in sums):
        return []
    given, exact = shown(printed, digits), share(low, whole)
    added = " + ".join(str(part.counts[0]) if len(part.counts) == 1 else f"{min(part.counts)}…" for part in parts)
    expected = shown(rounded(exact, digits), digits)
    text = f"{added} = {low} of {whole} right is {exact:.3f}, which prints as {expected}; printed is {given}"
    if any(cut(share(right, whole), digits) == printed for right in sums):
        return [row_finding("total", CUT, row, name, given, expected, f"{text}, that with its digits cut off.")]
    mean = _mean(row.columns[column] for column in fits)
    text += f", and the plain mean of the parts is {mean:.2f}. " + _explained(explain_total(row, facts), name)
    return [row_finding("total", CONTRADICTS, row, name, given, expected, text)]


def explain_total(row: PrintedRow, facts: Facts) -> list[Explanation]:
    """Single changed parts with which the printed Total is right: each one slip from what is printed."""
    name = next(name for name, about in facts.summaries.items() if about.kind != MEAN_OF_COLUMNS)
    fits = {column: next(iter(one.by_set.values())) for column, one in row_fits(row, facts).items() if column != name}
    whole, right = sum(part.num_items for part in fits.values()), sum(part.counts[0] for part in fits.values())
    found = []
    for target in counts_behind(row.columns[name], whole, facts.summaries[name].digits).counts:
        for column, part in fits.items():
            count, digits = part.counts[0] + target - right, facts.columns[column].digits
            if not 0 <= count <= part.num_items:
                continue
            for printed in (rounded, cut):
                meant = printed(share(count, part.num_items), digits)
                found += _slips(column, decimal(row.columns[column]), meant, count, part.num_items, digits)
    return _each_once(found)


def _slips(column: str, written: Decimal, meant: Decimal, count: int, size: int, digits: int) -> list[Explanation]:
    before, after = shown(written, digits), shown(meant, digits)
    if written != 0 and rounded(100 * written, digits) == meant:
        return [Explanation(column, before, after, count, size, "fraction")]
    return [Explanation(column, before, after, count, size, "digit")] if one_slip(before, after) else []


def _each_once(found: Iterable[Explanation]) -> list[Explanation]:
    return list({(one.column, one.meant): one for one in found}.values())


def _fewest_left(row: PrintedRow, found: Sequence[Explanation], facts: Facts) -> list[Explanation]:
    """Those that leave the fewest impossible scores in the row."""
    left = {
        one: sum(
            f.verdict == "none"
            for f in row_fits(replace(row, columns={**row.columns, one.column: float(one.meant)}), facts).values()
        )
        for one in found
    }
    return [one for one in found if left[one] == min(left.values())]


def _explained(found: Sequence[Explanation], summary: str) -> str:
    if not found:
        return f"No single slip in a column explains it; the {summary} itself may be one."
    several = f"; the numbers tell neither which, nor whether the {summary} is the slip" if len(found) > 1 else ""
    return f"It is right with one value changed: {' or '.join(one.text for one in found)}{several}."


# Small things ---------------------------------------------------------------------------------------------------------


def row_finding(
    kind: str, severity: str, row: PrintedRow, column: str, printed: str, expected: str, text: str
) -> Finding:
    """A finding about one row of one source."""
    return Finding(kind, severity, (row.source,), row.table, row.label, column, printed, expected, text)


def _mean(values: Iterable[object]) -> Decimal:
    numbers = [decimal(value) for value in values]
    return sum(numbers) / len(numbers)
