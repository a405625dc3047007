"""The paper's fourth version, as far as a close reading of it is known: its cells against other sources, its costs.

``results/paper/paper-v4.json`` holds what is known. It is no entry of ``SOURCES``: most of its cells are unknown, and
nothing here fills a gap from v3. A row that is also printed elsewhere says under which table (``as``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from gpg_repro import dynamics
from gpg_repro.audit.facts import Facts
from gpg_repro.audit.rules import Finding, check_average, check_scores
from gpg_repro.counts import counts_behind, decimal, shown
from gpg_repro.figures.base import published_range
from gpg_repro.published import PrintedRow, published_facts

SOURCE = "paper-v4"
SAME, DIFFERS, ALONE = "same", "differs", "v4 alone"
MBPP_ITEMS = 378
"""Problems of MBPP as EvalPlus has them: the one size of which all four printed scores are counts."""
GENERATE, SCORE, UPDATE = 2, 2, 6
"""FLOPs per parameter and token: sampling; a pass without gradient; forward and backward."""


@dataclass(frozen=True)
class Known:
    """A known row of v4."""

    row: PrintedRow
    elsewhere: str | None
    """Table under which the other sources print the row of that method; None: no such row is known of."""


def known_rows() -> tuple[Known, ...]:
    """Every known row, in the order of the file; a row has the columns that are known, and no other."""
    return tuple(
        Known(PrintedRow(SOURCE, row["table"], row["method"], row["mark"], dict(row["columns"])), row["as"])
        for row in published_facts(SOURCE)["rows"]
    )


# Cells ----------------------------------------------------------------------------------------------------------------


def differences(known: Sequence[Known], rows: Mapping[str, Sequence[PrintedRow]]) -> pd.DataFrame:
    """Every known cell beside what the other sources print for the same row.

    Args:
        rows: source -> its rows.

    Returns:
        Columns table, row, column, v4, one per source (None: not printed there), result (same, differs, v4 alone).
    """
    lines = []
    for one in known:
        there = {source: _row_of(part, one) for source, part in rows.items()}
        for column, value in one.row.columns.items():
            others = {source: row.columns.get(column) if row else None for source, row in there.items()}
            printed = [other for other in others.values() if other is not None]
            result = ALONE if not printed else SAME if all(other == value for other in printed) else DIFFERS
            where = {"table": one.row.table, "row": one.row.method, "column": column, "v4": value}
            lines.append({**where, **others, "result": result})
    return pd.DataFrame(lines).astype({source: object for source in rows})


def _row_of(part: Sequence[PrintedRow], known: Known) -> PrintedRow | None:
    if known.elsewhere is None:
        return None
    names = {known.row.method, known.row.method.replace("GPG-7B", "GPG-Zero-7B")}  # on the poster
    return next((row for row in part if row.table == known.elsewhere and row.method in names), None)


def own_findings(known: Sequence[Known], facts: Facts) -> list[Finding]:
    """What v4's own cells say against each other: scores that are no counts; Averages, where all columns are known."""
    scores = {"AIME24", "MATH-500", "AMC23", "Minerva", "OlympiadBench"}
    found = []
    for one in known:
        found += check_scores(one.row, facts)
        if scores <= set(one.row.columns):
            found += check_average(one.row, facts)
    return found


def resolved_pairs(known: Sequence[Known]) -> pd.DataFrame:
    """Pairs of Tables 12 and 19 with what their errors or counts carry.

    Returns:
        Columns table, column, before, after, difference, standard error (None: no error printed, no count known), z.
    """
    cells = {(one.row.table, one.row.method): one.row.columns for one in known}
    errors = published_facts(SOURCE)["errors"]
    lines = []
    for table, before, after in (
        ("Table 12", "R1-Distill-1.5B before", "R1-Distill-1.5B after"),
        ("Table 19", "GRPO", "GPG"),
    ):
        for column, first in cells[table, before].items():
            second, error = cells[table, after][column], None
            if column in errors:
                error = math.hypot(*errors[column].values())
            elif column.startswith("MBPP"):
                shares = [counts_behind(value, MBPP_ITEMS, 2).counts[0] / MBPP_ITEMS for value in (first, second)]
                error = 100 * math.sqrt(sum(p * (1 - p) / MBPP_ITEMS for p in shares))
            gap = float(decimal(second) - decimal(first))
            z = None if error is None else gap / error
            lines.append((table, column, first, second, gap, error, z))
    return pd.DataFrame(lines, columns=["table", "column", "before", "after", "difference", "standard error", "z"])


# Costs ----------------------------------------------------------------------------------------------------------------


def expected_draws(valid: float, size: int, needed: int) -> float:
    """Mean number of draws of ``size`` groups until ``needed`` of all drawn carry a signal, each with this probability.

    Raises:
        ValueError: nothing ever does.
    """
    if not 0 < valid <= 1:
        raise ValueError(f"valid={valid}: expected a probability above 0, or the draws never end.")
    draws, still = 1.0, 1.0
    for made in range(1, 100_000):
        still = float(stats.binom.cdf(needed - 1, made * size, valid))
        if still < 1e-12:
            break
        draws += still
    return draws


def cost_table(shares: Sequence[float], num_prompts: int, beta_th: float, over: Sequence[int] = (1, 3)) -> pd.DataFrame:
    """GPG with a threshold over DAPO's dynamic sampling, per step and at one length of completions.

    DAPO draws until every one of its ``num_prompts`` groups carries a signal, ``over`` times as many prompts a draw
    (its recipe in verl takes three times). Both update on ``num_prompts`` groups.

    Args:
        shares: probabilities that a group carries a signal.
        num_prompts: groups of a batch.
        beta_th: GPG's threshold.

    Returns:
        Index share; columns "draws, GPG" and for each ``over`` k: "draws, DAPO ×k", "data ×k" (prompts and tokens
        sampled, a ratio), "FLOPs ×k" (as verl runs both: old log-probabilities, all groups through the update) and
        "FLOPs, skipping ×k" (ours: groups without a signal and old log-probabilities left out of GPG's).
    """
    needed, lines = math.ceil(beta_th * num_prompts), []
    for share in shares:
        own = expected_draws(share, num_prompts, needed)
        used = dynamics.resampling(share, num_prompts, beta_th, max_draws=200).num_used
        part = float(used @ np.arange(num_prompts + 1)) / num_prompts
        line = {"share": share, "draws, GPG": own}
        for k in over:
            other = expected_draws(share, k * num_prompts, num_prompts)
            rival = GENERATE * other * k + SCORE + UPDATE
            line |= {
                f"draws, DAPO ×{k}": other,
                f"data ×{k}": own / (other * k),
                f"FLOPs ×{k}": (GENERATE * own + SCORE + UPDATE) / rival,
                f"FLOPs, skipping ×{k}": (GENERATE * own + UPDATE * part) / rival,
            }
        lines.append(line)
    return pd.DataFrame(lines).set_index("share")


def sampling_share(training: float, data: float, update: float = 1.0) -> float:
    """Part of DAPO's time that sampling takes, if sampling costs ``data`` of its, all else ``update`` of its, and the
    whole ``training`` of its. Outside [0, 1] no split gives the three."""
    return (update - training) / (update - data)


def cost_text() -> str:
    """What the printed costs would have to count, in sentences computed from the closed forms."""
    costs = published_facts(SOURCE)["costs"]
    printed, (num_prompts, beta_th) = costs["rows"]["GPG-7B"], (costs["prompts"], costs["beta_th"])
    table = cost_table([step / 100 for step in range(5, 100)], num_prompts, beta_th)
    plain, larger = table["data ×1"], table["data ×3"]
    below = table.index[larger <= printed["data"]]
    flops = table["FLOPs ×3"].min(), table["FLOPs, skipping ×3"].min()
    split = sampling_share(printed["training"], printed["data"])
    ends = [1 / alpha for alpha in published_range("Figure 2", "alpha")]
    quoted = cost_table(ends, num_prompts, beta_th)["data ×3"]
    return (
        f"Table 9 prints {printed['training']}× of DAPO's training cost and {printed['data']}× of its data cost, "
        f"without a unit, at {costs['steps']:,} steps of {num_prompts} prompts. Counted as prompts or tokens sampled, "
        f"at equal steps and equal lengths: where DAPO draws {num_prompts} prompts at a time, GPG needs at least "
        f"{plain.min():.2f} of them whatever share of groups carries a signal, so {printed['data']} cannot be. Where "
        f"DAPO draws three times as many, as its recipe in verl does, GPG needs {larger.min():.2f} to "
        f"{larger.max():.2f}, and at most {printed['data']} if at least {below.min():.0%} of the groups carry a signal "
        f"(α up to {1 / below.min():.2f}; at the ends of the quoted α it is "
        f"{' and '.join(f'{value:.2f}' for value in quoted)}). The training cost then follows if it is time, "
        f"everything but sampling costs both the same, and sampling is {split:.0%} of DAPO's time. As FLOPs it does "
        f"not follow as verl runs both ({flops[0]:.2f} at best), and does if groups without a signal and old "
        f"log-probabilities are left out of GPG's update ({flops[1]:.2f} at best). Fewer steps, shorter completions or "
        "a smaller batch would give any number; none is stated."
    )


# The page -------------------------------------------------------------------------------------------------------------


def summary(frame: pd.DataFrame, found: Sequence[Finding], known: Sequence[Known]) -> str:
    """The differences in sentences."""
    tally = frame["result"].value_counts()
    there = frame[frame["result"] == DIFFERS]
    listed = "; ".join(f"{line.table}, {line.row}, {line.column}" for line in there.itertuples())
    pairs = resolved_pairs(known)
    tested = pairs[pairs["z"].notna()]
    text = (
        f"Fourth version (through a close reading), {len(frame)} known cells: {tally.get(SAME, 0)} as in every source "
        f"that prints them, {tally.get(DIFFERS, 0)} different{f' ({listed})' if listed else ''}, {tally.get(ALONE, 0)} "
        f"in v4 alone. Its own cells: {len(found)} finding{'' if len(found) == 1 else 's'}"
    )
    text += "".join(f"; {one.table}, {one.method}, {one.column} {one.printed}: {one.severity}" for one in found)
    apart = (tested["z"].abs() > 1.96).sum()
    text += (
        f". Of the {len(tested)} pairs of Tables 12 and 19 with an error or a count, {apart} are apart at 95 %. "
        f"{cost_text()}"
    )
    return text


def layout(frame: pd.DataFrame) -> pd.DataFrame:
    """The known cells as people read them: a dash where a source does not print the cell."""
    made = frame.copy()
    for column in made.columns.difference(["table", "row", "column", "result"]):
        made[column] = [_cell(value) for value in frame[column]]
    return made.set_index("table")


def pairs_layout(known: Sequence[Known]) -> pd.DataFrame:
    """Tables 12 and 19 as people read them."""
    made = resolved_pairs(known)
    for column, digits in (("difference", 3), ("standard error", 3), ("z", 2)):
        made[column] = ["–" if pd.isna(value) else f"{value:.{digits}f}" for value in made[column]]
    return made.set_index("table")


def costs_layout() -> pd.DataFrame:
    """Costs at some shares of groups with a signal."""
    costs = published_facts(SOURCE)["costs"]
    made = cost_table([0.25, 0.33, 0.4, 0.5, 0.6, 0.67, 0.8], costs["prompts"], costs["beta_th"])
    return made.map("{:.2f}".format)


def says_layout() -> pd.DataFrame:
    """What is known of v4 that is no cell."""
    return pd.DataFrame(published_facts(SOURCE)["says"]).set_index("about")


def _cell(value: object) -> str:
    return "–" if pd.isna(value) else shown(value, max(1, len(f"{value}".partition(".")[2])))
