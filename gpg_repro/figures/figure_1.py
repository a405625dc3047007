"""Figure 1: GPG among 7B models on five math benchmarks (top), and against SFT and GRPO on four visual tasks (bottom).

Published bars are the numbers of Tables 4 to 8. Values drawn in the paper's own picture are not known beyond that; the
README's rendering has labels, which are compared with the tables and not drawn. For the visual tasks paper and README
print different GPG numbers because two generations of the code stand behind them (R0, R2): each has a bar of its own.
Our bars are the miniature of the same tables, on axes of their own, under names of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd

from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.stats import Z95, wilson
from eval_harness.style import BASE_BLACK, GPG_BLUE, GPG_LIGHT, GRPO_GRAY, SFT_GOLD
from gpg_repro.figure_plots import Bar, Look, Panel, bars_figure
from gpg_repro.figures import FigureReport
from gpg_repro.figures.base import scale_note
from gpg_repro.paths import results as default_results
from gpg_repro.published import published_table
from gpg_repro.tables import get_table
from gpg_repro.tables import runs as table_runs
from gpg_repro.tables.base import BASE, Column, RowRuns, Table, published_scores, source_name
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.layouts import provenance
from gpg_repro.tables.numbers import comparable, differences, scores, verdict
from gpg_repro.tables.printed import arithmetic_notes, attainability, implied_difference, implied_interval

TOP = "4"
TOP_COLUMNS = ("AIME24", "Minerva", "OlympiadBench", "AMC23", "MATH-500")
"""Order of the groups; the Average follows."""
TOP_ROWS = {
    "base": "Qwen-2.5-Math-7B",
    "instruct": "Qwen-2.5-Math-7B-Instruct",
    "orz": "OpenReasoner-Zero-7B",
    "simplerl": "SimpleRL-Zero-7B",
    "oat_again": "Oat-Zero-7B",
    "eurus": "Eurus-2-7B-PRIME",
    "gpg_paper": "GPG-7B",
}
"""Row of Table 4 -> what the README's picture calls it, in the order of the bars."""
TOP_OURS = ("base", "gpg_paper", "gpg_released")
"""Rows of the miniature."""
BOTTOM = {
    "7": ("Visual reasoning", "Visual Reasoning"),
    "5": ("Geometry", "Geometry Reasoning"),
    "8": ("Grounding", "Reasoning Grounding"),
    "6": ("Classification", "Classification"),
}
"""Table -> name of its group, and what the README's picture calls it."""
BOTTOM_ROWS = {"base": "Base", "sft": "+SFT", "grpo": "+GRPO", "gpg_r0": None, "gpg_r2": "+GPG"}
"""Row -> its bar in the README's picture, which has one GPG bar: that of the README's own numbers."""
BOTTOM_LABELS = {"base": "base", "sft": "+ SFT", "grpo": "+ GRPO", "gpg_r0": "+ GPG, R0", "gpg_r2": "+ GPG, R2"}
_LOOKS = {
    "base": Look(BASE_BLACK),
    "instruct": Look("#e3e3e0", "", "0.45"),
    "orz": Look("#cfcfcb", "///", "0.45"),
    "simplerl": Look("#b5b5b1", "...", "0.4"),
    "oat_again": Look("#9a9a96", "\\\\\\", "0.35"),
    "eurus": Look("#7d7d7a", "xxx", "0.3"),
    "gpg_paper": Look(GPG_BLUE),
    "gpg_released": Look(GPG_LIGHT, "///", "white"),
    "sft": Look(SFT_GOLD),
    "grpo": Look(GRPO_GRAY),
    "gpg_r0": Look(GPG_LIGHT, "///", "white"),
    "gpg_r2": Look(GPG_BLUE),
}
"""GPG is blue; R0 and our second form are the lighter one, hatched. Other authors' models are grays."""
_TRAINED = ("gpg_paper", "gpg_released", "sft", "grpo", "gpg_r0", "gpg_r2")
_SMALLER_AMC = 40


@dataclass
class Figure1(FigureReport):
    """The figure, and its numbers as tables to read."""

    sections: list[tuple[str, pd.DataFrame]] = field(default_factory=list)


@dataclass(frozen=True)
class Ours:
    """What stands behind our bars of one table."""

    table: Table
    runs: tuple[RowRuns, ...]
    scale: str
    """Of the runs; may be another than was asked for."""
    origin: str
    why_none: str = ""
    """Why there are no runs."""


def build_figure(
    scale: str = "tiny",
    *,
    seeds: int = 0,
    engine: str = "auto",
    results: Path | None = None,
    progress: bool = True,
) -> Figure1:
    """Draw the figure and write ``figure1.{png,svg,md,csv,html}``.

    Args:
        seeds: 0 takes the committed records of Tables 4 to 8 (those of scale tiny where this scale has none) and trains
            nothing; what has no records is said to have none. n makes those tables' runs with n seeds here, as
            ``make reproduce-table4 …`` does; runs that are there are read. Paper scale measures what can be had.
        engine: for what is measured here.

    Raises:
        UserError: unknown scale, or a negative number of seeds.
    """
    table_runs.check_scale(scale, seeds)
    results = results or default_results()
    ours = {name: ours_of(name, scale, seeds, engine, results, progress) for name in (TOP, *BOTTOM)}
    published, measured = published_numbers(), our_numbers(ours)
    paired = our_differences(ours)
    sections = [
        ("Published, top: Table 4 of paper v3", layout(published, "top")),
        ("Published, bottom: Tables 5 to 8", layout(published, "bottom")),
        *(
            (f"Ours, {panel}", layout(measured, panel))
            for panel in ("top", "bottom")
            if (measured.panel == panel).any()
        ),
        *([("Ours: paired differences", paired)] if len(paired) else []),
    ]
    text = "\n\n".join(filter(None, [_top_text(), _bottom_text(), *_ours_text(ours)]))
    notes = _notes(ours, scale)
    drawn = bars_figure([_top_panels(published, measured, ours), _bottom_panels(published, measured, ours)],
                        "Figure 1. Lines: 95 % over items (published: implied by the item counts alone); "
                        "circles: single training seeds")  # fmt: skip
    figure = save_figure(drawn, "figure1", scale, results)
    long = pd.concat([published.assign(block="published"), measured.assign(block="ours")], ignore_index=True)
    write_report("figure1", "Figure 1: GPG among 7B models, and on four visual tasks", sections,
                 [*text.split("\n\n"), *notes], scale, long, results, kind="figures")  # fmt: skip
    parts = [provenance(entry.runs).assign(table=name) for name, entry in ours.items() if entry.runs]
    origins = pd.concat(parts).set_index(["table", "row", "seed"]) if parts else pd.DataFrame()
    return Figure1(figure, published, text, notes, origins, sections)


# Numbers --------------------------------------------------------------------------------------------------------------

_COLUMNS = (
    "panel", "group", "row", "label", "source", "value", "low", "high", "digits", "num_items", "num_seeds", "seeds",
    "scale",
)  # fmt: skip


def published_numbers() -> pd.DataFrame:
    """The published bars, each from its row's own source.

    Returns:
        Columns panel (top, bottom), group, row, label, source, value, low, high (percent; None: no interval follows
        from the item counts), digits, num_items (None: no count), num_seeds, seeds, scale (empty here).
    """
    table, lines = get_table(TOP), []
    printed = published_scores(table)
    by_title = {column.title: column for column in table.columns}
    rows = {row.key: row for row in table.rows}
    for key in TOP_ROWS:
        shared = {"panel": "top", "row": key, "label": rows[key].label, "source": source_name(rows[key])}
        for title in TOP_COLUMNS:
            column = by_title[title]
            items, value = table.published_items(column, key), float(printed.loc[key, title])
            low, high = implied_column(value, items, column.digits) or (None, None)
            lines.append({**shared, "group": title, "value": value, "low": low, "high": high, "digits": column.digits,
                          "num_items": items})  # fmt: skip
        low, high = implied_interval(table, printed.loc[key])
        items = sum(table.published_items(by_title[title], key) for title in TOP_COLUMNS)
        lines.append({**shared, "group": "Average", "value": float(printed.loc[key, "Average"]), "low": low,
                      "high": high, "digits": 1, "num_items": items})  # fmt: skip
    for name, (group, _) in BOTTOM.items():
        table = get_table(name)
        printed = published_scores(table)
        for row in table.rows:
            low, high = implied_interval(table, printed.loc[row.key]) or (None, None)
            digits = table.columns[0].digits
            lines.append({"panel": "bottom", "group": group, "row": row.key, "label": BOTTOM_LABELS[row.key],
                          "source": source_name(row), "value": float(printed.loc[row.key, table.headline]),
                          "low": low, "high": high, "digits": digits, "num_items": _headline_items(table)})  # fmt: skip
    return pd.DataFrame(lines).reindex(columns=_COLUMNS)


def implied_column(percent: float, num_items: int, digits: int = 1) -> tuple[float, float] | None:
    """95 % interval (Wilson) of a printed percentage that is a count of items, in percent; None: it is no count."""
    if attainability(percent, num_items, digits) == "none":
        return None
    low, high = wilson(min(num_items, round(percent * num_items / 100)), num_items)
    return 100 * low, 100 * high


def _headline_items(table: Table) -> int | None:
    """Items behind the number that is drawn; None: it is no count of right answers."""
    columns = table.printed_columns if table.summary else table.columns[:1]
    return sum(column.num_items for column in columns) if all(column.is_count for column in columns) else None


def ours_of(name: str, scale: str, seeds: int, engine: str, results: Path, progress: bool) -> Ours:
    """Runs of one table: committed, made here, or none with the reason."""
    table = get_table(name)
    if scale == "paper" or seeds:
        try:
            runs = table_runs.run_table(
                table, scale, seeds=max(1, seeds), engine=engine, results=results, progress=progress
            )
        except UserError as error:
            if scale != "paper":
                raise
            return Ours(table, (), scale, "", str(error).rstrip("."))
        return Ours(table, tuple(runs), scale, "this run")
    for known in dict.fromkeys((scale, "tiny")):
        committed = table_runs.reference_runs(table, known, table_runs.REFERENCE)
        if any(entry.row.trained for entry in committed):
            return Ours(table, tuple(committed), known, "committed records")
    return Ours(table, (), scale, "", f"{table.name} has no committed records yet; SEEDS=1 makes its runs here")


def our_numbers(ours: Mapping[str, Ours]) -> pd.DataFrame:
    """Our bars under the published rule; columns as in :func:`published_numbers`, ``seeds`` a tuple of percentages."""
    lines = []
    for name, entry in ours.items():
        if not entry.runs:
            continue
        table, scale, top = entry.table, entry.scale, name == TOP
        of_seed = {
            seed: _published_rule(scores(table, [_only(e, seed) for e in entry.runs if seed in e.seeds], scale))
            for seed in sorted({seed for e in entry.runs for seed in e.seeds})
        }
        columns = [next(c for c in table.columns if c.title == title) for title in TOP_COLUMNS] if top else []
        wanted = {column.name_at(scale): column.title_at(scale) for column in columns}
        wanted[table.headline_at(scale)] = _headline_name(table, scale)
        of_top = TOP_OURS if scale != "paper" else (*TOP_ROWS, "gpg_released")
        wanted_rows = of_top if top else tuple(BOTTOM_ROWS)
        for line in _published_rule(scores(table, entry.runs, scale)).itertuples():
            if line.column not in wanted or line.row not in wanted_rows:
                continue
            single = [
                100 * float(frame.loc[(frame["row"] == line.row) & (frame["column"] == line.column), "mean"].iloc[0])
                for frame in of_seed.values()
                if ((frame["row"] == line.row) & (frame["column"] == line.column)).any()
            ]
            lines.append(
                {
                    "panel": "top" if top else "bottom",
                    "group": wanted[line.column],
                    "row": line.row,
                    "label": line.label if top else BOTTOM_LABELS[line.row],
                    "source": entry.origin,
                    "value": 100 * line.mean,
                    "low": 100 * line.low,
                    "high": 100 * line.high,
                    "digits": 1,
                    "num_items": line.num_items,
                    "num_seeds": line.num_seeds,
                    "seeds": tuple(single),
                    "scale": scale,
                }
            )
    return pd.DataFrame(lines, columns=_COLUMNS)


def _published_rule(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["rule"] == "published"]


def _only(entry: RowRuns, seed: int) -> RowRuns:
    """The runs of one training seed."""
    parts = {title: _only(part, seed) for title, part in entry.parts.items()}
    return replace(entry, folders={s: f for s, f in entry.folders.items() if s == seed}, parts=parts)


def _headline_name(table: Table, scale: str) -> str:
    """What our headline number is called: never as the paper's is, below paper scale."""
    titles = [get_benchmark(name).title for name in table.benchmarks_at(scale)]
    if table.summary == "average":
        kind = ("" if scale == "paper" else "tiny ") + ("suites" if table.number == int(TOP) else "sets")
        return f"mean of {len(table.printed_columns)} {kind}"
    return f"{titles[0]}: total" if table.summary == "total" else table.headline_title(scale)


def our_differences(ours: Mapping[str, Ours]) -> pd.DataFrame:
    """Paired differences of our rows: GPG against the base (top), against GRPO (bottom).

    Returns:
        Index difference; columns points [95 % over items], single seeds, told apart, n; empty without runs.
    """
    lines = []
    for name, entry in ours.items():
        for line in differences(entry.table, entry.runs, entry.scale, _pairs(name)).itertuples():
            spread = f"{line.seed_min:+.1f} … {line.seed_max:+.1f}" if line.num_seeds > 1 else "one seed"
            lines.append(
                {
                    "difference": f"{_headline_name(entry.table, entry.scale)}: {line.label} − {line.against_label}",
                    "points [95 % over items]": f"{line.difference:+.1f} [{line.low:+.1f}, {line.high:+.1f}]",
                    "single seeds": spread,
                    "told apart": verdict(line.apart, line.num_seeds),
                    "n": f"{line.num_seeds} × {line.num_items}",
                }
            )
    return pd.DataFrame(lines).set_index("difference") if lines else pd.DataFrame()


def _pairs(name: str) -> list[tuple[str, str]]:
    """What our rows of a table are compared with: the base at the top, GRPO at the bottom."""
    return [("gpg_paper", BASE), ("gpg_released", BASE)] if name == TOP else [("gpg_r0", "grpo"), ("gpg_r2", "grpo")]


def layout(numbers: pd.DataFrame, panel: str) -> pd.DataFrame:
    """Rows × groups of one panel as people read them: percent [95 %], n."""
    chosen = numbers[numbers["panel"] == panel]
    lines: dict[str, dict[str, str]] = {}
    for line in chosen.itertuples():
        label = line.label if pd.notna(line.num_seeds) else f"{line.label} ({line.source})"
        interval = "" if pd.isna(line.low) else f" [{line.low:.1f}, {line.high:.1f}]"
        seeds = "" if pd.isna(line.num_seeds) else f"{line.num_seeds:.0f} × "
        count = "" if pd.isna(line.num_items) else f"; n = {seeds}{line.num_items:.0f}"
        lines.setdefault(label, {})[line.group] = f"{line.value:.{int(line.digits)}f}{interval}{count}"
    return pd.DataFrame(lines).T.reindex(columns=list(dict.fromkeys(chosen["group"]))).fillna("–").rename_axis("row")


# Pictures -------------------------------------------------------------------------------------------------------------


def _bars(
    numbers: pd.DataFrame, panel: str, marks: Mapping[tuple[str, str], str] | None = None
) -> tuple[dict[str, dict[str, Bar]], dict[str, Look]]:
    """Label -> group -> bar, and label -> look."""
    bars: dict[str, dict[str, Bar]] = {}
    looks: dict[str, Look] = {}
    names = {key: _name(of) for key, of in numbers[numbers["panel"] == panel].groupby("row", sort=False)}
    for line in numbers[numbers["panel"] == panel].itertuples():
        label = names[line.row]
        low, high = (None, None) if pd.isna(line.low) else (line.low, line.high)
        seeds = line.seeds if isinstance(line.seeds, tuple) else ()
        mark = (marks or {}).get((line.row, line.group), "")
        bars.setdefault(label, {})[line.group] = Bar(line.value, low, high, int(line.digits), seeds, mark)
        looks[label] = _LOOKS[line.row]
    return bars, looks


def _name(lines: pd.DataFrame) -> str:
    """What the legend calls a row: with its source where the panel has several, with its seeds where it is trained."""
    first = lines.iloc[0]
    if pd.isna(first["num_seeds"]):
        return first["label"] if first["panel"] == "top" else f"{first['label']} ({first['source']})"
    if first["row"] not in _TRAINED:
        return first["label"]
    counts = sorted({int(count) for count in lines["num_seeds"]})
    return f"{first['label']}, {'/'.join(map(str, counts))} seed{'s' if counts[-1] > 1 else ''}"


def _groups(numbers: pd.DataFrame, panel: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(numbers.loc[numbers["panel"] == panel, "group"]))


def _top_panels(published: pd.DataFrame, measured: pd.DataFrame, ours: Mapping[str, Ours]) -> list[Panel]:
    table = get_table(TOP)
    amc = next(column for column in table.columns if column.title == "AMC23")
    small = [key for key in TOP_ROWS if table.published_items(amc, key) == _SMALLER_AMC]
    marks = {(key, group): "*" for key in small for group in ("AMC23", "Average")}
    bars, looks = _bars(published, "top", marks)
    items = {column.title: column.num_items for column in table.columns}
    captions = {title: f"n = {items[title]}" for title in TOP_COLUMNS if title != "AMC23"}
    others = sorted({table.published_items(amc, key) for key in TOP_ROWS} - {_SMALLER_AMC})
    captions["AMC23"] = f"n = {'/'.join(map(str, others))}; * n = {_SMALLER_AMC}"
    captions["Average"] = f"* AMC of {_SMALLER_AMC}"
    title = "Published (paper v3, Table 4): 7B models, %"
    return [
        Panel(title, _groups(published, "top"), bars, looks, captions=captions),
        _our_panel(measured, {TOP: ours[TOP]}, "top", "7B models", "Table 4"),
    ]


def _bottom_panels(published: pd.DataFrame, measured: pd.DataFrame, ours: Mapping[str, Ours]) -> list[Panel]:
    bars, looks = _bars(published, "bottom")
    captions = {}
    for name, (group, _) in BOTTOM.items():
        table = get_table(name)
        items = _headline_items(table)
        what = "Average of 4 sets" if table.summary == "average" else f"{_short(table)} {table.headline}".strip()
        captions[group] = f"{what}\n" + (f"n = {items:,}" if items else "a mean of IoUs: no counts")
    title = "Published (Tables 5 to 8): each bar from the source that its name says, %"
    visual = {name: ours[name] for name in BOTTOM}
    return [
        Panel(title, _groups(published, "bottom"), bars, looks, captions=captions),
        _our_panel(measured, visual, "bottom", "the visual tasks", "Tables 5 to 8"),
    ]


def _short(table: Table) -> str:
    return {"table07": "CV-Bench", "table08": "LISA"}.get(table.stem, "")


def _our_panel(measured: pd.DataFrame, ours: Mapping[str, Ours], panel: str, what: str, tables: str) -> Panel:
    bars, looks = _bars(measured, panel)
    chosen = measured[measured["panel"] == panel]
    captions = {
        group: "/".join(f"{items:.0f}" for items in sorted(set(of["num_items"]))) + " items"
        for group, of in chosen.groupby("group", sort=False)
    }
    scales = list(dict.fromkeys(entry.scale for entry in ours.values() if entry.runs))
    kind = "Measured here" if scales == ["paper"] else f"Miniature of {what} ({'/'.join(scales)}, not comparable)"
    origins = ", ".join(dict.fromkeys(entry.origin for entry in ours.values() if entry.runs))
    absent = "; ".join(entry.why_none.splitlines()[0] for entry in ours.values() if entry.why_none)
    title = f"{kind}, %\n{origins}" if scales else f"Ours, {tables}: not measured"
    return Panel(title, tuple(_broken(group) for group in _groups(measured, panel)),
                 {label: {_broken(group): bar for group, bar in of.items()} for label, of in bars.items()}, looks,
                 absent, {_broken(group): text for group, text in captions.items()})  # fmt: skip


def _broken(group: str) -> str:
    """A long name in two lines."""
    return group.replace("Tiny ", "Tiny\n").replace("mean of ", "mean of\n")


# Words ----------------------------------------------------------------------------------------------------------------


def _top_text() -> str:
    table = get_table(TOP)
    printed = published_scores(table).loc[list(TOP_ROWS)]
    mine = printed.loc["gpg_paper"]
    best = printed.drop("gpg_paper")["Average"].astype(float).idxmax()
    labels = {row.key: row.label for row in table.rows}
    amc = next(column for column in table.columns if column.title == "AMC23")
    others = [column for column in table.printed_columns if column is not amc]
    gap = mine["Average"] - printed.loc[best, "Average"]
    sets = [table.published_items(amc, key) for key in ("gpg_paper", best)]
    text = (
        f"Top: GPG-7B's printed Average is {mine['Average']}, {gap:+.1f} points over the next of the seven rows "
        f"({labels[best]}, {printed.loc[best, 'Average']})."
    )
    if sets[0] == sets[1]:
        return text
    value, low, high = mean_difference(others, mine, printed.loc[best])
    return (
        f"{text} The AMC scores in the two Averages are of {sets[0]} and of {sets[1]} problems; over the other "
        f"{len(others)} columns the difference is {value:+.1f}, with [{low:+.1f}, {high:+.1f}] implied by the item "
        "counts alone (unpaired)."
    )


def mean_difference(columns: Sequence[Column], mine: pd.Series, other: pd.Series) -> tuple[float, float, float]:
    """Difference of the means of some printed columns, with the 95 % interval their item counts imply, in points."""
    gap = sum(mine[c.title] - other[c.title] for c in columns) / len(columns)
    shares = [(float(row[c.title]) / 100, c.num_items) for row in (mine, other) for c in columns]
    half = 100 * Z95 * math.sqrt(sum(p * (1 - p) / n for p, n in shares)) / len(columns)
    return gap, gap - half, gap + half


def _bottom_text() -> str:
    parts = []
    for name, (group, _) in BOTTOM.items():
        table = get_table(name)
        printed = published_scores(table)
        said = []
        for row in (row for row in table.rows if row.key in ("gpg_r0", "gpg_r2")):
            gap, low, high = implied_difference(table, printed.loc[row.key], printed.loc["grpo"])
            interval = "" if low is None else f" [{low:+.1f}, {high:+.1f}]"
            said.append(f"{gap:+.{table.columns[0].digits}f}{interval} ({source_name(row)}, {row.label[-3:-1]})")
        parts.append(f"{group} {' and '.join(said)}")
    return (
        f"Bottom: printed GPG − GRPO, in points, with what item counts alone imply: {'; '.join(parts)}. The two "
        "numbers of a task are two methods, not two readings of one run."
    )


def _ours_text(ours: Mapping[str, Ours]) -> list[str]:
    found = []
    for name, entry in ours.items():
        frame = differences(entry.table, entry.runs, entry.scale, _pairs(name))
        found += [
            f"{_headline_name(entry.table, entry.scale)}: {line.label} − {line.against_label} {line.difference:+.1f} "
            f"[{line.low:+.1f}, {line.high:+.1f}], {verdict(line.apart, line.num_seeds)}"
            for line in frame.itertuples()
        ]
    return ["Ours, paired on items: " + "; ".join(found) + "."] if found else []


def label_conflicts() -> list[str]:
    """Where labels of the README's picture are not the numbers of the tables behind them, rounded half up."""
    conflicts = []
    top, table = published_table("Figure 1 (top)", "readme"), get_table(TOP)
    printed = published_scores(table)
    for key, name in TOP_ROWS.items():
        conflicts += [
            f"{name} on {group}: label {top.loc[name, group]:g}, Table 4 of paper v3 {printed.loc[key, group]:g}"
            for group in (*TOP_COLUMNS, "Average")
            if top.loc[name, group] != printed.loc[key, group]
        ]
    bottom = published_table("Figure 1 (bottom)", "readme")
    for number, (_, group) in BOTTOM.items():
        table = get_table(number)
        readme = published_table(table.published, "readme")[table.headline]
        for row in table.rows:
            bar = BOTTOM_ROWS[row.key]
            if bar is None:
                continue
            value = readme[row.published]
            if not _rounds_to(value, bottom.loc[bar, group]):
                conflicts.append(f"{bar} on {group}: label {bottom.loc[bar, group]:g}, the README's table {value:g}")
    return conflicts


def _rounds_to(value: float, label: float) -> bool:
    return Decimal(str(value)).quantize(Decimal("0.1"), ROUND_HALF_UP) == Decimal(str(label)).quantize(Decimal("0.1"))


def _notes(ours: Mapping[str, Ours], scale: str) -> list[str]:
    conflicts = label_conflicts()
    agree = "all are the numbers of Table 4 and of the README's Tables 5 to 8, rounded"
    told = f"these differ: {'; '.join(conflicts)}" if conflicts else agree
    notes = [
        "Published bars are the printed numbers of Tables 4 to 8; what the paper's own picture draws is not known "
        "beyond them. Values come from paper v3, but for the bar of GPG R2, which is the README's: its code divides by "
        "nothing and draws again below a threshold, that of R0 divides by the group's deviation.",
        f"The README's picture has labels on its bars; {told}.",
        f"The star: AMC23 of {_SMALLER_AMC} problems; the others are of 83. Numbers of different sets, and Averages "
        "that hold them, are not comparable.",
        "Published lines: 95 % that item counts alone imply, one sample per problem (Wilson's for one math benchmark, "
        "normal for the others). Grounding is a mean of IoUs, so nothing follows for it. Geometry has no SFT row.",
        "Ours: percent under the published rule, 95 % over items; n = training seeds × items; circles are single seeds "
        "where there are several.",
    ]
    for name in (TOP, *BOTTOM):
        drawn = ("Average", "Total") if get_table(name).summary else ("GEOQA_Test",)
        notes += [
            f"Arithmetic of the printed numbers. {note}"
            for note in arithmetic_notes(get_table(name))
            if any(word in note for word in drawn) and (name != TOP or note.split(":")[0] in _top_labels())
        ]
    notes += [f"{entry.why_none}." for entry in ours.values() if entry.why_none]
    for entry in ours.values():
        base = next((e for e in entry.runs if e.row.key == BASE), None)
        strangers = [e.row.label for e in entry.runs if e.row.trained and base and not comparable(e, base)]
        if strangers:
            notes.append(f"{entry.table.name}: {', '.join(strangers)} started from another base than the one drawn.")
    others = sorted({entry.scale for entry in ours.values() if entry.runs} - {scale})
    notes += [f"There are no records at scale {scale}; those of scale {name} are shown." for name in others]
    return notes + [note.replace("curves", "bars") for note in scale_note(others[0] if others else scale)]


def _top_labels() -> set[str]:
    return {row.label for row in get_table(TOP).rows if row.key in TOP_ROWS}
