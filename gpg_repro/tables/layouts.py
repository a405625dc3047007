"""The table as people read it, and its long form for CSV."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from eval_harness import records
from gpg_repro.tables.base import Column, Row, RowRuns, Table, published_scores, source_name
from gpg_repro.tables.numbers import MIN_SEEDS, code_of
from gpg_repro.tables.printed import implied_count, implied_difference, implied_interval
from gpg_repro.tables.shown import MISSING, Cell, ShownFrame, shown


def layout(
    table: Table, scale: str, measured: pd.DataFrame | None, committed: pd.DataFrame | None = None
) -> ShownFrame:
    """Published numbers in one block, ours in others, never in each other's column.

    With scores of this run, the committed records are summed up; alone, they stand in full. A table whose two rules
    can differ much has a block per rule, any other the strict headline number in one more column.
    """
    published = published_scores(table)
    miniature, remark = ("", "") if scale == "paper" else ("miniature, ", " (not comparable)")
    blocks = []
    if measured is not None and len(measured):
        blocks.append(("measured here" if scale == "paper" else f"miniature, scale {scale}", remark, measured, False))
    if committed is not None and len(committed):
        blocks.append((f"{miniature}committed records", "" if blocks else remark, committed, bool(blocks)))
    lines, index = [], []
    for row in table.rows_at(scale):
        line: dict[tuple[str, str], str | Cell] = {}
        if len(published):
            _add_published(line, table, row, published.loc[row.key] if row.key in published.index else None)
        for name, after, frame, brief in blocks:
            mine = {rule: part.set_index("column") for rule, part in frame[frame.row == row.key].groupby("rule")}
            _add_ours(line, name, after, mine, table, scale, brief)
        lines.append(line)
        index.append(row.label_at(scale))
    return shown(lines, pd.Index(index, name="row"))


def _add_published(line: dict, table: Table, row: Row, printed: pd.Series | None) -> None:
    block = table.published_as
    if table.several_sources:
        line[block, "source"] = MISSING if printed is None else source_name(row)
    columns = {column.title: column for column in table.printed_columns}
    for title in [table.headline, *(title for title in columns if title != table.headline)]:
        value = None if printed is None else printed[title]
        known = value is not None and not pd.isna(value)
        line[block, title] = _published_cell(table, row, printed, title, columns.get(title)) if known else MISSING
        if title == table.headline and _has_counts(table):
            interval = None if printed is None else implied_interval(table, printed)
            line[block, "implied 95 %"] = MISSING if interval is None else f"[{interval[0]:.1f}, {interval[1]:.1f}]"


def _published_cell(table: Table, row: Row, printed: pd.Series, title: str, column: Column | None) -> Cell:
    """A printed number; ``column`` is None for an Average or a Total."""
    value = float(printed[title])
    text = f"{value:.{table.columns[0].digits}f}"
    details = [("printed in", f"{source_name(row)}, {row.published_in or table.published}")]
    if column is None:
        items = sum(table.published_items(c, row.key) for c in table.printed_columns)
        interval = implied_interval(table, printed) if _has_counts(table) else None
        details.append(("items", str(items)))
        details += [] if interval is None else [("95 % implied by the items", _interval(*interval))]
    else:
        items = table.published_items(column, row.key)
        text += f" ({items})" if table.mixes_items(column) else ""
        details.append(("items", str(items)))
        if column.is_count:
            count, low, high = implied_count(value, items, column.digits)
            details += (
                [("count", f"none of {items} items gives this number")]
                if count is None
                else [("count", f"{count} of {items}"), ("95 % implied by the count", _interval(low, high))]
            )
    return Cell(text, value, tuple(details))


def _interval(low: float, high: float) -> str:
    return f"[{low:.1f}, {high:.1f}]"


def _has_counts(table: Table) -> bool:
    return all(column.is_count for column in table.printed_columns)


def _add_ours(line: dict, name: str, after: str, mine: dict, table: Table, scale: str, brief: bool) -> None:
    """One block, or one per rule: the columns and the headline number, or (brief) the headline number alone."""
    own = {column.name_at(scale): column.title_at(scale) for column in table.columns_at(scale)}
    summary = {table.summary: table.headline} if table.summary else {}
    headline, headline_title = table.headline_at(scale), table.headline_title(scale)
    published, strict = (mine.get(rule) for rule in ("published", "strict"))
    if brief:
        block = f"{name}{after}"
        line[block, headline_title] = _cell_of(published, headline, seeds=True)
        if table.both_rules:
            line[block, f"{headline_title}, strict rule"] = _cell_of(strict, headline, seeds=True)
        line[block, "n"] = _counts(published, headline)
        return
    for rule, frame in (("published", published), ("strict", strict)) if table.both_rules else ((None, published),):
        block = f"{name}, {rule} rule{after}" if rule else f"{name}{after}"
        for column, title in {**own, **summary}.items():
            if rule == "strict" and not _knows_strict(table, column, scale):
                continue
            line[block, title] = _cell_of(frame, column, seeds=column == headline)
        if rule is None:
            line[block, f"{headline_title}, strict rule"] = _cell_of(strict, headline)
        if rule != "strict":
            line[block, "n"] = _counts(frame, headline)


def _knows_strict(table: Table, name: str, scale: str) -> bool:
    """A mark beside the score that is not in the paper (the tag-based reading) has one rule only."""
    return all(column.printed for column in table.columns_at(scale) if column.name_at(scale) == name)


def _cell_of(frame: pd.DataFrame | None, column: str, seeds: bool = False) -> str | Cell:
    if frame is None or column not in frame.index:
        return MISSING
    cell = frame.loc[column]
    text = f"{100 * cell['mean']:.1f} {_interval(100 * cell['low'], 100 * cell['high'])}"
    details = {
        "rule": cell["rule"],
        "items": cell["num_items"],
        "completions": f"{cell['num_samples']}" + (f", {cell['failed']} of the row failed" if cell["failed"] else ""),
        "training seeds": cell["num_seeds"],
        "95 % over items": _interval(100 * cell["low"], 100 * cell["high"]),
        "single seeds": f"{100 * cell['seed_low']:.1f} to {100 * cell['seed_high']:.1f}",
        "engine": cell["engine"],
        "code": cell["code"],
    }
    if cell["num_seeds"] == 1:
        del details["single seeds"]
    named = tuple((name, str(value)) for name, value in details.items())
    return Cell(text + (_seed_range(cell) if seeds else ""), 100 * cell["mean"], named, tuple(cell["runs"].split()))


def _seed_range(cell: pd.Series) -> str:
    return f"; seeds {100 * cell['seed_low']:.1f}–{100 * cell['seed_high']:.1f}" if cell["num_seeds"] > 1 else ""


def _counts(frame: pd.DataFrame | None, column: str) -> str:
    if frame is None or column not in frame.index:
        return MISSING
    cell = frame.loc[column]
    failed = f", {cell['failed']} failed" if cell["failed"] else ""
    return f"{cell['num_seeds']} × {cell['num_items']}{failed}"


def comparison_layout(table: Table, scale: str, ours: pd.DataFrame, strict: pd.DataFrame | None = None) -> ShownFrame:
    """The table's comparisons: the published difference and what its item counts imply, beside our paired one.

    Args:
        ours: from ``numbers.differences``.
        strict: the same under the strict rule, where the table shows both.
    """
    published, names = published_scores(table), {row.key: row for row in table.rows}
    lines, index = [], []
    for mine, other in table.comparisons_at(scale):
        line: dict[tuple[str, str], str | Cell] = {}
        if len(published):
            pair = [published.loc[key] for key in (mine, other) if key in published.index]
            _add_published_pair(line, table, pair)
        block = "measured here" if scale == "paper" else f"miniature, scale {scale} (not comparable)"
        cell = _pair(ours, mine, other)
        line[block, "difference [95 % over items]"] = _gap(cell)
        line[block, "single seeds [95 % over seeds]"] = MISSING if cell is None else _over_seeds(cell)
        line[block, "told apart"] = MISSING if cell is None else _yes(cell)
        line[block, "n"] = MISSING if cell is None else f"{cell['num_seeds']} × {cell['num_items']}"
        if strict is not None:
            cell = _pair(strict, mine, other)
            line["the same, strict rule", "difference [95 % over items]"] = _gap(cell)
            line["the same, strict rule", "told apart"] = MISSING if cell is None else _yes(cell)
        lines.append(line)
        index.append(f"{names[mine].label_at(scale)} − {names[other].label_at(scale)}")
    return shown(lines, pd.Index(index, name=f"{table.headline_title(scale)} of one row − another"))


def _add_published_pair(line: dict, table: Table, pair: list[pd.Series]) -> None:
    block, gap, low = table.published_as, None, None
    if len(pair) == 2:
        gap, low, high = implied_difference(table, *pair)
    line[block, "difference"] = "–" if gap is None else f"{gap:+.{table.columns[0].digits}f}"
    if _has_counts(table):
        line[block, "implied 95 %, unpaired"] = "–" if low is None else (
            f"[{low:+.1f}, {high:+.1f}]{' holds 0' if low <= 0 <= high else ''}"
        )  # fmt: skip


def _pair(frame: pd.DataFrame, mine: str, other: str) -> pd.Series | None:
    found = frame[(frame["row"] == mine) & (frame["against"] == other)] if len(frame) else frame
    return found.iloc[0] if len(found) else None


def _gap(cell: pd.Series | None) -> str | Cell:
    if cell is None:
        return MISSING
    known = not pd.isna(cell["low"])
    interval = f" [{cell['low']:+.1f}, {cell['high']:+.1f}]" if known else ""
    details = [
        (
            "paired on",
            f"{cell['num_items']} items, {cell['num_seeds']} training seed{'s' if cell['num_seeds'] > 1 else ''}",
        ),
        ("95 % over items", interval.strip() or "none: one item in a stratum"),
    ]
    if cell["num_seeds"] > 1:
        details.append(("single seeds [95 % over seeds]", _over_seeds(cell)))
    return Cell(f"{cell['difference']:+.1f}{interval}", cell["difference"], tuple(details), tuple(cell["runs"].split()))


def _yes(cell: pd.Series) -> str:
    return "no" if not cell["apart"] else "yes" if cell["num_seeds"] >= MIN_SEEDS else "on items alone"


def _over_seeds(cell: pd.Series) -> str:
    spread = f"{cell['seed_min']:+.1f} … {cell['seed_max']:+.1f}"
    if cell["seeds_low"] is None or pd.isna(cell["seeds_low"]):
        return f"{spread}" if cell["num_seeds"] > 1 else "one seed"
    return f"{spread} [{cell['seeds_low']:+.1f}, {cell['seeds_high']:+.1f}]"


def flat(table: Table, measured: pd.DataFrame, scale: str, origin: str) -> pd.DataFrame:
    """Long form for CSV: one line per rule, row and column with every count; the published value in its own column.

    A published value stands beside the column it was printed for and under the published rule, with its source.
    """
    published, rows = published_scores(table), {row.key: row for row in table.rows}
    titles = {column.name_at(scale): column.title for column in table.printed_columns}
    titles[table.headline_at(scale)] = table.headline
    out = measured.assign(seeds=[" ".join(f"{score:.6f}" for score in scores) for scores in measured["seeds"]])
    out.insert(0, "origin", origin)
    out.insert(0, "scale", scale)
    shown = out["row"].isin(published.index) & (out["rule"] == "published") & out["column"].isin(titles)
    if not table.both_rules:
        shown &= out["column"] == table.headline_at(scale)
    out[f"published_{table.summary or 'value'}_percent"] = [
        published.loc[r, titles[c]] if s else None for r, c, s in zip(out["row"], out["column"], shown, strict=True)
    ]
    if table.several_sources:
        out["published_source"] = [source_name(rows[r]) if s else None for r, s in zip(out["row"], shown, strict=True)]
    return out


def provenance(runs: Sequence[RowRuns]) -> pd.DataFrame:
    """Where each number comes from: recipe, run folder, model weights, engine, commit, date."""
    lines = []
    for entry in (run for row in runs for run in row.runs):
        for seed, folder in entry.folders.items():
            run = records.read_run(folder)
            lines.append(
                {
                    "row": f"{entry.row.key}, {entry.row.column}" if entry.row.column else entry.row.key,
                    "seed": seed,
                    "run": run.run_id,
                    "weights": (run.model["weights"] or run.model["revision"] or "")[:12],
                    "engine": " ".join(filter(None, (run.engine["name"], run.engine.get("version")))),
                    "dtype": run.engine.get("dtype"),
                    "code": code_of(run),
                    "finished": run.finished,
                    "generate_and_grade_s": run.timings.get("generate_and_grade_s"),
                }
            )
    return pd.DataFrame(lines)
