"""The audit: every finding about the printed numbers is pinned; each rule on small tables worked by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import matplotlib
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from gpg_repro.__main__ import main
from gpg_repro.audit import across, frames, readings, rules
from gpg_repro.audit.facts import ColumnFacts, Dated, Decoding, Facts, Place, Summary, read_facts
from gpg_repro.audit.report import build_audit
from gpg_repro.counts import (
    attainability,
    counts_behind,
    cut,
    neighbours,
    one_slip,
    rounded,
    rounded_twice,
    share_attainable,
    shown,
    variance_of_mean,
)
from gpg_repro.published import SOURCES, PrintedRow, printed_rows, published_facts

matplotlib.use("agg")
ROWS = {source: printed_rows(source) for source in SOURCES}
FACTS = read_facts()

SMALL = Facts(
    columns={
        "A": ColumnFacts("count", 1, (30,)),
        "B": ColumnFacts("count", 1, (40, 83)),
        "C": ColumnFacts("count", 1, (500,)),
        "P": ColumnFacts("count", 2, (600,)),
        "Q": ColumnFacts("count", 2, (400,)),
        "iou": ColumnFacts("mean_iou", 1, (200,)),
    },
    summaries={"Average": Summary("mean_of_columns", 1), "Total": Summary("share_of_all_items", 2)},
    numbers_of_samples=(2, 4, 8, 16),
    decoding={"T": Decoding("sampled", False), "greedy": Decoding("greedy", True)},
    marks={"†": "measured again"},
)


def row(columns: dict, method: str = "m", table: str = "T", source: str = "s", mark: str = "") -> PrintedRow:
    return PrintedRow(source, table, method, mark, columns)


def kinds(found: list[rules.Finding]) -> list[tuple[str, str, str]]:
    return [(one.kind, one.severity, one.column) for one in found]


# Every finding over all sources ---------------------------------------------------------------------------------------

V3, README, POSTER = SOURCES
NO_TEMPLATE = "Qwen2.5-Math-7B (no template) *"
ONE, THRESHOLD = "GPG(F_norm=1, alpha=1)", "GPG(F_norm=1, alpha=B/(B-M), beta_th=0.6)"
ALL3 = ", ".join(SOURCES)


def _per_source() -> list[tuple]:
    found = []
    for source in (V3, README):  # the poster has no Table 1
        found += [
            ("attainability", "impossible", source, "Table 1", "GRPO", "Minerva"),
            ("attainability", "impossible", source, "Table 1", ONE, "MATH-500"),
            ("attainability", "digits cut", source, "Table 1", ONE, "OlympiadBench"),
            ("average", "digits cut", source, "Table 1", THRESHOLD, "Average"),
            ("generation", "note", source, "Table 1", "", ""),
        ]
    found += [  # Tables 10 and 12 are in the paper alone
        ("average", "digits cut", V3, "Table 10", "beta_th=0.6", "Average"),
        ("attainability", "impossible", V3, "Table 12", "F_norm=1", "MATH-500"),
        ("attainability", "digits cut", V3, "Table 12", "F_norm=1", "OlympiadBench"),
        ("generation", "note", V3, "Table 12", "", ""),
    ]
    for source in SOURCES:
        for method in ("DeepSeek-R1-Distill-Qwen-1.5B", "Still-3-1.5B-Preview"):
            found.append(("multi_sample", "not testable", source, "Table 3", method, "AIME24, AMC23"))
        found += [
            ("attainability", "digits cut", source, "Table 3", "Still-3-1.5B-Preview", "OlympiadBench"),
            ("attainability", "digits cut", source, "Table 3", "Open-RS1 †", "OlympiadBench"),
            ("mixed_sets", "not comparable", source, "Table 4", "", "AMC23"),
            ("total", "contradicts", source, "Table 7", "Qwen2-VL-2B", "Total"),
            ("total", "digits cut", source, "Table 7", "+ SFT", "Total"),
            ("total", "digits cut", source, "Table 7", "+ GRPO", "Total"),
        ]
        tasks = {"Qwen2-VL-2B": ("Count", "Depth", "Distance"), "+ SFT": ("Count",)}
        tasks["+ GRPO"] = ("Relation", "Depth", "Distance")
        for method, columns in tasks.items():
            found += [("attainability", "digits cut", source, "Table 7", method, column) for column in columns]
    for source in (README, POSTER):
        found += [
            ("attainability", "impossible", source, "Table 4", NO_TEMPLATE, "AIME24"),
            ("average", "contradicts", source, "Table 4", NO_TEMPLATE, "Average"),
            ("attainability", "digits cut", source, "Table 7", "+ GPG", "Depth"),
            ("total", "digits cut", source, "Table 7", "+ GPG", "Total"),
        ]
    return found + [
        ("mixed_sets", "not comparable", README, "Figure 1 (top)", "", "AMC23"),
        ("mixed_sets", "not comparable", V3, "Table 1, Table 3, Table 4", "†", "AMC23"),
        ("mixed_sets", "not comparable", V3, "Table 3, Table 4", "‡", "AMC23"),
        ("mixed_sets", "not comparable", README, "Table 1, Table 3, Table 4", "†", "AMC23"),
        ("mixed_sets", "not comparable", POSTER, "Table 3, Table 4", "†", "AMC23"),
    ]


def _across_sources() -> list[tuple]:
    cells = {
        "Table 5": ("GEOQA_Test",),
        "Table 6": ("Average", "Flower102", "Pets37", "FGVC", "Cars196"),
        "Table 7": ("Total", "Count", "Relation", "Depth", "Distance"),
        "Table 8": ("mIoU_test", "mIoU_val", "gIoU_test"),
    }
    return [
        *(("conflict", "differs", ALL3, table, "+ GPG", c) for table, columns in cells.items() for c in columns),
        *(("generation", "note", ALL3, table, "+ GPG", "") for table in cells),
        ("generation", "note", f"{V3}, {README}, readme 2025-04-18", "Table 4", "GPG-7B", ""),
        ("mark", "differs", ALL3, "Table 3", "Open-RS3", ""),
        ("mark", "differs", ALL3, "Table 4", "Qwen-2.5-Math-7B-Instruct", ""),
        ("name", "differs", ALL3, "Table 4", "GPG-7B", ""),
        ("row", "differs", f"{README}, {POSTER}", "Table 4", NO_TEMPLATE, ""),
    ]


@pytest.fixture(scope="module")
def audit():
    return build_audit()


def test_the_findings_are_these_and_no_others(audit):
    wanted, found = Counter([*_per_source(), *_across_sources()]), Counter(one.key for one in audit.findings)
    assert found - wanted == Counter()  # nothing more: no false alarm
    assert wanted - found == Counter()  # nothing less


def _text(audit, kind: str, method: str, column: str) -> set[str]:
    return {one.text for one in audit.findings if (one.kind, one.method, one.column) == (kind, method, column)}


def test_what_the_findings_say(audit):
    printed = {(one.kind, one.method, one.column): (one.printed, one.expected) for one in audit.findings}
    # 30.0 + 76.2 + 62.5 + 34.2 + 39.0 = 241.9, a fifth is 48.38
    assert printed["average", THRESHOLD, "Average"] == ("48.3", "48.4")
    (text,) = _text(audit, "average", THRESHOLD, "Average")
    assert "have the mean 48.38 (the counts behind them 48.371)" in text
    # 20.0 + 69.0 + 45.8 + 21.3 + 34.7 = 190.8, a fifth is 38.16
    (text,) = _text(audit, "average", NO_TEMPLATE, "Average")
    assert text.endswith("with one value changed: AIME24 20.0 (6 of 30; 0.2 read as a share of one).")
    assert printed["attainability", ONE, "MATH-500"] == ("76.3", "76.2 or 76.4")
    (text,) = _text(audit, "attainability", "GRPO", "Minerva")  # 82/272 = 30.147, then 30.15, then 30.2
    assert "82 of 272 gives it when rounded to 2 decimals and then to 1" in text
    for value, method in (("37.4", ONE), ("50.9", "Open-RS1 †"), ("45.4", "Still-3-1.5B-Preview")):
        assert printed["attainability", method, "OlympiadBench"][0] == value
    totals = {method: printed["total", method, "Total"][0] for method in ("+ SFT", "+ GRPO", "+ GPG")}
    assert totals == {"+ SFT": "57.84", "+ GRPO": "59.47", "+ GPG": "76.15"}
    (text,) = _text(audit, "total", "Qwen2-VL-2B", "Total")
    assert text.startswith("431 + 146 + 1 + 190 = 768 of 2638 right is 29.113")
    assert "plain mean of the parts is 27.24" in text
    # 828 of 2638 is 31.387: sixty more right, 61/600 = 10.167 or 250/600 = 41.667
    assert "Depth 10.16 (61 of 600" in text and "Distance 41.66 (250 of 600" in text
    assert printed["multi_sample", "DeepSeek-R1-Distill-Qwen-1.5B", "AIME24, AMC23"][0] == "28.8, 62.9"
    assert printed["multi_sample", "Still-3-1.5B-Preview", "AIME24, AMC23"][0] == "32.5, 66.7"


def test_mixed_sets_tell_who_is_on_which(audit):
    mixed = [one for one in audit.findings if one.kind == "mixed_sets" and one.sources == (V3,)]
    (text,) = [one.text for one in mixed if one.table == "Table 4"]
    of_83, of_40 = text.removeprefix("Scores are counts of different sets: ").split("; ")
    for value in ("50.6", "57.8", "62.7", "55.4", "54.2", "60.2"):
        assert value in of_83 and of_83.startswith("of 83 items")
    for value in ("45.0", "47.5", "82.5"):
        assert value in of_40 and of_40.startswith("of 40 items")
    assert "18 of 36 pairs of rows cannot be compared" in of_40  # 6 × 3 of the 9 · 8 / 2 pairs


def test_one_run_is_printed_alike_everywhere_in_a_source():
    assert not [finding for part in ROWS.values() for finding in across.compare_places(part, FACTS)]


def test_every_place_of_the_facts_exists():
    known = {(r.table, r.method) for part in ROWS.values() for r in part}
    assert {(place.table, place.method) for run in FACTS.same_runs for place in run} <= known
    elsewhere = {(r.source, r.table, r.method) for r in FACTS.elsewhere}
    for entry in FACTS.dated:
        for source in entry.sources:
            here = {(r.table, r.method) for r in ROWS.get(source, ())}
            assert any((entry.table, m) in here or (source, entry.table, m) in elsewhere for m in entry.methods), (
                entry,
                source,
            )
        assert entry.generation in FACTS.generations and entry.origin in ("paper", "inferred")


def test_the_item_counts_are_those_of_the_benchmarks():
    for column, entry in published_facts("items")["columns"].items():
        for part in entry["sets"]:
            benchmark = get_benchmark(part["benchmark"])
            items = benchmark.groups[part["group"]] if "group" in part else benchmark.num_items
            assert items == part["items"], column


def test_the_scores_fit_754_images_not_735(audit):
    geoqa = audit.sets_layout().loc["GEOQA_Test"].set_index("items")
    assert geoqa.loc[754, "rounded"] == geoqa.loc[754, "values"] == 4  # 35.41, 47.48, 50.80, 51.33
    assert geoqa.loc[735, "none"] == 3


# Arithmetic of percentages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "items", "digits", "verdict"),
    [
        (28.8, 240, 1, "rounded"),  # 69/240 = 28.75 exactly: half up
        (28.7, 240, 1, "cut"),
        (0.0, 30, 1, "rounded"),
        (100.0, 30, 1, "rounded"),
        (99.9, 30, 1, "none"),  # 29/30 = 96.67
        (66.6, 3, 1, "cut"),
        (66.7, 3, 1, "rounded"),
        (0.16, 600, 2, "cut"),
        (76.3, 500, 1, "none"),
        (82.5, 83, 1, "none"),
        (82.5, 40, 1, "rounded"),
        (62.9, 664, 1, "cut"),  # 418/664 = 62.952
    ],
)
def test_rounding_and_cutting(percent, items, digits, verdict):
    assert attainability(percent, items, digits) == verdict


def test_all_counts_behind_a_coarse_percentage():
    # of 2463: 73.0 rounds from [72.95, 73.05), that is 1796.8 … 1799.2
    assert counts_behind(73.0, 2463).counts == (1797, 1798, 1799)
    with pytest.raises(ValueError, match="more than 1 decimals"):
        counts_behind(73.05, 2463)


@given(items=st.integers(1, 3000), digits=st.integers(0, 3), data=st.data())
def test_a_count_is_found_behind_its_own_percentage(items, digits, data):
    count = data.draw(st.integers(0, items))
    exact = Decimal(100 * count) / items
    found = counts_behind(rounded(exact, digits), items, digits)
    assert found.verdict == "rounded" and count in found.counts
    assert counts_behind(cut(exact, digits), items, digits).verdict in ("rounded", "cut")


@given(items=st.integers(1, 150), tenths=st.integers(0, 1000))
def test_the_verdict_is_that_of_trying_every_count(items, tenths):
    wanted = Decimal(tenths) / 10
    everything = [Decimal(100 * k) / items for k in range(items + 1)]
    verdict = "rounded" if any(rounded(e, 1) == wanted for e in everything) else "none"
    if verdict == "none" and any(cut(e, 1) == wanted for e in everything):
        verdict = "cut"
    assert attainability(wanted, items) == verdict


def test_numbers_are_shown_half_up():
    assert shown(46.65, 1) == "46.7" and shown(-2.125, 2, sign=True) == "−2.13" and shown(55, 2) == "55.00"
    assert shown(None, 1) == "–" and shown(True, 1) == "True" and shown(0.0, 1, sign=True) == "+0.0"


def test_small_helpers():
    assert rounded_twice("30.2", 272) == 82 and rounded_twice("30.1", 272) is None
    assert rounded_twice("50.0", 40) is None  # 20/40 gives it at once
    assert neighbours("76.3", 500) == (381, 382) and neighbours("50.0", 40) == (20, 20)
    assert share_attainable(30) == pytest.approx(31 / 1001) and share_attainable(8041) == 1.0
    assert one_slip("0.16", "10.16") and one_slip("31.66", "41.66") and not one_slip("0.2", "20.0")
    assert not one_slip("31.6", "31.6")
    # p(1−p)/N: 0.25/100 and 0.16/100, summed and divided by 2² = 0.001025
    assert variance_of_mean([(50.0, 100), (20.0, 100)]) == pytest.approx(0.001025)


# Rules on small tables ------------------------------------------------------------------------------------------------


def test_a_clean_row_says_nothing():
    # 9/30, 27/40 (also 56/83), 381/500; mean (30.0 + 67.5 + 76.2) / 3 = 57.9
    assert not rules.check_row(row({"Average": 57.9, "A": 30.0, "B": 67.5, "C": 76.2}), SMALL)
    assert not rules.check_row(row({"Average": None, "A": 30.0, "B": None, "C": 76.2}), SMALL)
    assert not rules.check_row(row({"iou": 47.13}), SMALL)
    assert not rules.check_row(row({"Surrogate": True, "loss": "-A"}), SMALL)


def test_an_impossible_score():
    (one,) = rules.check_row(row({"A": 30.0, "C": 76.3}), SMALL)
    assert (one.severity, one.column, one.printed, one.expected) == ("impossible", "C", "76.3", "76.2 or 76.4")


def test_a_score_that_any_known_set_gives_is_fine():
    assert rules.fit(55.4, "B", SMALL).sets == {83}  # 46/83 = 55.42
    assert rules.fit(82.5, "B", SMALL).sets == {40}
    assert rules.fit(67.5, "B", SMALL).sets == {40, 83}  # 27/40; 56/83 = 67.47
    assert rules.fit(65.0, "B", SMALL).sets == {40}  # 54/83 = 65.06 is cut only: rounding wins
    assert rules.fit(62.9, "B", SMALL).verdict == "none"


def test_several_samples_need_two_impossible_scores_and_one_number_that_gives_both():
    # A alone: 69/240 = 28.75 with 8 samples. B: 418/664 = 62.952 is cut only, so 16: 835/1328 = 62.877, 138/480 = 28.75
    samples = rules.several_samples(row({"A": 28.8, "B": 62.9, "C": 80.0}), SMALL)
    assert samples.num_samples == 16
    assert {c: (k.num_items, k.counts[0]) for c, k in samples.counts.items()} == {"A": (480, 138), "B": (1328, 835)}
    assert rules.several_samples(row({"A": 28.8, "B": 62.5, "C": 80.0}), SMALL) is None  # one alone is a slip
    few = replace(SMALL, numbers_of_samples=(2, 4))
    assert rules.several_samples(row({"A": 28.8, "B": 62.9}), few) is None
    assert kinds(rules.check_scores(row({"A": 28.8, "B": 62.9}), few)) == [
        ("attainability", "impossible", "A"),
        ("attainability", "impossible", "B"),
    ]
    assert kinds(rules.check_scores(row({"A": 28.8, "B": 62.9}), SMALL)) == [("multi_sample", "not testable", "A, B")]


def test_an_average_of_printed_columns_or_of_counts_is_accepted():
    # 5/30 prints as 16.7. Printed columns: (16.7 + 76.2)/2 = 46.45, that is 46.5; counts: 46.433, that is 46.4
    columns = {"A": 16.7, "C": 76.2}
    for average in (46.5, 46.4):
        assert not rules.check_average(row({"Average": average, **columns}), SMALL)
    for average in (46.3, 46.6):
        (one,) = rules.check_average(row({"Average": average, **columns}), SMALL)
        assert (one.kind, one.severity, one.expected) == ("average", "contradicts", "46.5")
    # 9/30 = 30 and 381/500 = 76.2 exactly: printed columns and counts both have the mean 53.1
    assert not rules.check_average(row({"Average": 53.1, "A": 30.0, "C": 76.2}), SMALL)
    for average in (53.0, 53.2):
        (one,) = rules.check_average(row({"Average": average, "A": 30.0, "C": 76.2}), SMALL)
        assert (one.severity, one.expected) == ("contradicts", "53.1")


def test_an_average_with_its_digits_cut():
    # 30.0 + 37.5 + 72.8 = 140.3, a third is 46.767: prints as 46.8, cut as 46.7
    columns = {"A": 30.0, "B": 37.5, "C": 72.8}
    (one,) = rules.check_average(row({"Average": 46.7, **columns}), SMALL)
    assert (one.severity, one.expected) == ("digits cut", "46.8")
    assert not rules.check_average(row({"Average": 46.8, **columns}), SMALL)


def test_the_search_finds_the_one_slip():
    # 46.7 is right with A = 30.0: a share of one was printed
    (one,) = rules.explain_average(row({"Average": 46.7, "A": 0.3, "B": 37.5, "C": 72.6}), SMALL)
    assert (one.column, one.meant, one.count, one.slip) == ("A", "30.0", 9, "fraction")
    # 3.3 + 37.5 + 72.6 = 113.4, and 140.1 is wanted: A = 30.0, B = 64.2 and C = 99.3 are all more than one slip away
    assert rules.explain_average(row({"Average": 46.7, "A": 3.3, "B": 37.5, "C": 72.6}), SMALL) == []
    # 140.1 is ten too many for 43.4: A = 20.0 for 30.0 and C = 62.6 for 72.6 are one character each
    found = rules.explain_average(row({"Average": 43.4, "A": 30.0, "B": 37.5, "C": 72.6}), SMALL)
    assert {(o.column, o.meant) for o in found} >= {("A", "20.0"), ("C", "62.6")}


def test_explanations_that_repair_an_impossible_score_come_alone():
    # AIME 0.2: with A = 20.0 the row is whole; C = 89.0 for 69.0 adds up too but leaves 0.2 impossible
    slip = row({"Average": 44.9, "A": 0.2, "B": 45.8, "C": 69.0})  # (20.0 + 45.8 + 69.0)/3 = 44.93
    assert [(o.column, o.meant) for o in rules.explain_average(slip, SMALL)] == [("A", "20.0")]
    possible = row({"Average": 44.9, "A": 0.0, "B": 45.8, "C": 69.0})
    assert ("C", "89.0") in {(o.column, o.meant) for o in rules.explain_average(possible, SMALL)}


@pytest.mark.parametrize(
    ("total", "severity"),
    # 100/600 = 16.67 and 300/400 = 75.00: 400/1000 = 40.00
    [(40.0, None), (40.1, "contradicts"), (45.84, "contradicts")],
)
def test_totals(total, severity):
    found = rules.check_total(row({"Total": total, "P": 16.67, "Q": 75.0}), SMALL)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_a_total_with_its_digits_cut_and_one_that_one_digit_explains():
    facts = replace(SMALL, columns={**SMALL.columns, "Q": ColumnFacts("count", 2, (300,))})
    # 61/600 = 10.17 and 150/300 = 50.00: 211/900 = 23.444 -> 23.44; 215/900 = 23.889 -> 23.89, cut 23.88
    assert not rules.check_total(row({"Total": 23.44, "P": 10.17, "Q": 50.0}), facts)
    (one,) = rules.check_total(row({"Total": 23.88, "P": 10.83, "Q": 50.0}), facts)
    assert one.severity == "digits cut"
    # printed 0.17 = 1/600 instead of 10.17
    (one,) = rules.check_total(row({"Total": 23.44, "P": 0.17, "Q": 50.0}), facts)
    assert one.severity == "contradicts" and "P 10.17 (61 of 600" in one.text
    # P is no count: that is said by itself, and the Total is not judged
    assert not rules.check_total(row({"Total": 23.44, "P": 10.2, "Q": 50.0}), facts)


def test_sources_are_compared_row_by_row():
    a = [
        row({"A": 30.0, "P": 0.5}, "x"),
        row({"A": 40.0}, "x", mark="†"),
        row({"A": 50.0}, "old"),
        row({"A": 60.0}, "z"),
    ]
    b = [
        row({"A": 30.0, "P": 0.67}, "x", source="t"),
        row({"A": 40.0}, "x", source="t"),
        row({"A": 50.0}, "new", source="t"),
    ]
    found = across.compare_sources({"s": a, "t": b}, SMALL)
    assert [(one.kind, one.method, one.column, one.printed) for one in found] == [
        ("conflict", "x", "P", "0.50 (s), 0.67 (t)"),
        ("mark", "x", "", "† (s), no mark (t)"),
        ("name", "old", "", "old (s), new (t)"),
        ("row", "z", "", ""),
    ]
    assert "left out in t" in found[-1].text
    assert not across.compare_sources({"s": a, "t": [replace(r, source="t") for r in a]}, SMALL)
    assert not across.compare_sources({"s": a, "t": [row({"A": 1.0}, table="U", source="t")]}, SMALL)  # no shared table


def test_places_of_one_run_are_compared_to_the_fewer_decimals():
    facts = replace(SMALL, same_runs=((Place("T", "m", column="Total"), Place("F", "n", column="label")),))
    total = row({"Total": 76.15, "P": 1.0})
    assert not across.compare_places([total, row({"label": 76.2}, "n", "F")], facts)
    (one,) = across.compare_places([total, row({"label": 76.1}, "n", "F")], facts)
    assert (one.kind, one.column, one.printed) == ("conflict", "Total", "76.15 (T), 76.1 (F)")


def test_mixed_sets():
    first, second, either = row({"B": 82.5}, "x"), row({"B": 55.4}, "y"), row({"B": 67.5}, "z")
    assert kinds(across.mixed_sets([first, second, either], SMALL)) == [("mixed_sets", "not comparable", "B")]
    assert not across.mixed_sets([first, either], SMALL) and not across.mixed_sets([second, either], SMALL)
    assert not across.mixed_sets([first, row({"B": 62.9}, "several")], SMALL)  # of no known set: not judged
    marked = [replace(first, mark="†"), replace(second, mark="†", table="U")]
    (one,) = across.mixed_sets(marked, SMALL)
    assert (one.method, one.table) == ("†", "T, U")


def test_generations():
    def entry(methods, source, name):
        return Dated("T", methods, (source,), "then", name, False, "inferred", "why")

    facts = replace(SMALL, dated=(entry(("x",), "s", "R0"), entry(("y",), "s", "R1"), entry(("x",), "t", "R2")))
    rows = {"s": [row({"A": 1.0}, "x"), row({"A": 2.0}, "y")], "t": [row({"A": 3.0}, "x", source="t")]}
    assert [(o.sources, o.method) for o in across.generations(rows, facts)] == [(("s",), ""), (("s", "t"), "x")]
    copied = replace(facts, same_runs=((Place("T", "x"), Place("U", "copy")),))
    assert across.dated(row({"A": 1.0}, "copy", "U"), copied).name == "R0"
    assert across.dated(row({"A": 1.0}, "copy", "U"), facts) is None


# No false alarm: rows that come from counts ---------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), from_printed=st.booleans())
def test_rows_made_of_counts_raise_nothing(seed, from_printed):
    """Scores of random counts, half up; the Average of the printed or of the exact columns; the Total of the counts."""
    draw = random.Random(seed)
    math5 = {"AIME24": 30, "MATH-500": 500, "AMC23": draw.choice((40, 83)), "Minerva": 272, "OlympiadBench": 675}
    species = {"Flower102": 2463, "Pets37": 3669, "FGVC": 3333, "Cars196": 8041}
    tasks = {"Count": 788, "Relation": 650, "Depth": 600, "Distance": 600}
    for sizes, digits, summary in ((math5, 1, "Average"), (species, 1, "Average"), (tasks, 2, "Total")):
        counts = {column: draw.randint(0, size) for column, size in sizes.items()}
        exact = {column: Decimal(100 * counts[column]) / size for column, size in sizes.items()}
        printed = {column: float(rounded(value, digits)) for column, value in exact.items()}
        if summary == "Total":
            value = Decimal(100 * sum(counts.values())) / sum(sizes.values())
        else:
            values = [Decimal(str(v)) for v in printed.values()] if from_printed else list(exact.values())
            value = sum(values) / len(values)
        made = row({summary: float(rounded(value, digits)), **printed})
        assert rules.check_row(made, FACTS) == []


# Readings -------------------------------------------------------------------------------------------------------------

ENTRY = {"id": "i", "topic": "t", "where": "w"}


def test_a_reading_by_hand():
    # A: 60 % and 40 % of 30: variance 2 · 0.24/30 = 0.016, se 12.649 points, half-width 1.95996 · 12.649 = 24.79
    one = readings.read(row({"A": 60.0}, "x"), row({"A": 40.0}, "y"), "A", SMALL, ENTRY)
    assert (one.low, one.high) == pytest.approx((20 - 24.791, 20 + 24.791), abs=2e-3)
    assert one.verdict == "inside" and one.times == 2  # (24.79/20)² = 1.54
    assert one.detectable == pytest.approx((1.95996 + 0.84162) * 12.649, abs=1e-2)
    assert one.greedy is False and one.pair == "x − y"
    # twice the samples: half-width 17.53 < 20
    assert 24.791 / math.sqrt(2) < 20 < 24.791


def test_an_average_is_the_mean_of_independent_columns():
    a, b = row({"Average": 50.0, "A": 60.0, "C": 40.0}, "x"), row({"Average": 45.0, "A": 60.0, "C": 30.0}, "y")
    one = readings.read(a, b, "Average", SMALL, ENTRY)
    # (0.24/30 + 0.24/500)/4 + (0.24/30 + 0.21/500)/4 = 0.004225; se 6.5 points
    assert (one.high - one.low) / 2 == pytest.approx(1.95996 * 6.5, abs=1e-3)


def test_a_total_is_a_share_of_all_items():
    a, b = row({"Total": 50.0, "P": 50.0, "Q": 50.0}, table="greedy"), row({"Total": 40.0, "P": 40.0, "Q": 40.0})
    one = readings.read(a, b, "Total", SMALL, ENTRY)
    assert (one.high - one.low) / 2 == pytest.approx(195.996 * math.sqrt((0.25 + 0.24) / 1000), abs=1e-3)
    assert one.verdict == "outside" and one.times == 1 and one.greedy is True


def test_what_cannot_be_compared_is_not():
    first, second = row({"Average": 70.0, "A": 60.0, "B": 82.5}, "x"), row({"Average": 57.7, "A": 60.0, "B": 55.4}, "y")
    assert readings.read(first, second, "B", SMALL, ENTRY).verdict == "not comparable"
    first = row({"Average": 71.3, "A": 60.0, "B": 82.5}, "x")  # 142.5/2 = 71.25
    one, rest = (
        readings.read(first, second, "Average", SMALL, ENTRY),
        readings.read_rest(first, second, "Average", SMALL, ENTRY),
    )
    assert one.verdict == "not comparable" and one.low is None and "40" in one.note and "83" in one.note
    assert (rest.column, rest.difference, rest.verdict) == ("mean without B", 0.0, "inside")
    assert rest.times is None  # no number of samples settles a difference of zero
    wrong = row({"Average": 11.1, "A": 60.0, "B": 82.5}, "wrong")
    assert "contradicts itself" in readings.read(wrong, first, "Average", SMALL, ENTRY).note
    assert readings.read_rest(wrong, second, "Average", SMALL, ENTRY) is None
    assert readings.read(row({"iou": 50.0}), row({"iou": 40.0}), "iou", SMALL, ENTRY).verdict == "no interval"
    assert readings.read(row({"A": None}), row({"A": 40.0}), "A", SMALL, ENTRY).verdict == "not printed"


def test_averages_over_samples_are_read_with_a_remark():
    one = readings.read(row({"A": 28.8, "B": 62.9}, "k"), row({"A": 40.0, "B": 82.5}), "A", SMALL, ENTRY)
    assert one.verdict == "inside" and "at most this wide" in one.note


def test_stated_differences():
    a, b = row({"A": 60.0}, "x"), row({"A": 40.0}, "y")
    holds = readings.read(a, b, "A", SMALL, {**ENTRY, "stated": 20.0})
    wrong = readings.read(a, b, "A", SMALL, {**ENTRY, "stated": 21.0})
    over = readings.read(a, b, "A", SMALL, {**ENTRY, "at_least": 20})
    assert (holds.holds, wrong.holds, over.holds) == (True, False, False)  # "over 20" is not 20
    found = readings.stated_findings([holds, wrong, over], SMALL)
    assert [(one.kind, one.printed, one.expected) for one in found] == [
        ("stated", "21.0", "20.0"),
        ("stated", "20.0", "20.0"),
    ]


def test_a_trend_by_hand():
    values = [30.0, 40.0, 40.0, 50.0]
    rows = {"s": [row({"A": value, "C": 50.0 - i}, f"g{i}") for i, value in enumerate(values)]}
    points = [{"method": f"g{i}", "x": i} for i in range(4)]
    one = readings.read_trend(
        rows, SMALL, {**ENTRY, "source": "s", "table": "T", "column": "A", "x_name": "step", "points": points}
    )
    # slope = (−1.5·30 − 0.5·40 + 0.5·40 + 1.5·50)/5 = 6
    assert one.slope == pytest.approx(6.0)
    # variance = (2.25·0.21 + 0.25·0.24 + 0.25·0.24 + 2.25·0.25)/30/25
    spread = math.sqrt((2.25 * 0.21 + 0.25 * 0.24 * 2 + 2.25 * 0.25) / 30 / 25)
    assert one.high - one.slope == pytest.approx(195.996 * spread, abs=1e-3)
    assert (one.rising, one.not_rising) == ((), ("A", "C"))  # 40, 40 is no rise


def test_rows_are_found_by_source_table_method_and_mark():
    place = {"source": V3, "table": "Table 4", "method": "Oat-Zero-7B"}
    with pytest.raises(UserError, match="several rows"):
        readings.find_row(ROWS, place)
    assert readings.find_row(ROWS, {**place, "mark": "†"}).columns["Average"] == 47.8
    with pytest.raises(UserError, match="unknown row of Table 4"):
        readings.find_row(ROWS, {**place, "method": "GPG-8B"})
    with pytest.raises(UserError, match="unknown source"):
        readings.find_row(ROWS, {**place, "source": "paper"})


def test_the_published_readings(audit):
    by_id = {(one.id, one.column): one for one in audit.readings}
    assert all(one.holds for one in audit.readings if one.holds is not None)
    stated = {
        one.id: one.difference for one in audit.readings if one.stated is not None and one.where.startswith("Sec")
    }
    assert {k: stated[k] for k in ("t1_std_one", "t5_grpo", "t6_grpo", "t7_grpo")} == {
        "t1_std_one": 1.4, "t5_grpo": 3.32, "t6_grpo": 4.1, "t7_grpo": 9.64,
    }  # fmt: skip
    keys = [("t1_gpg_grpo", "Average"), ("t10_08_06", "Average"), ("t7_grpo", "Total"), ("t3_rs1_distill", "Average")]
    assert [by_id[key].verdict for key in keys] == ["inside", "inside", "outside", "outside"]
    assert 0 < by_id[keys[-1]].low < 0.5  # just outside
    assert by_id["t1_gpg_grpo", "Average"].difference == 4.6
    assert {by_id[key].verdict for key in by_id if key[0].startswith("t8")} == {"no interval"}
    lead = by_id["t4_oat", "Average"]
    assert lead.verdict == "not comparable" and by_id["t4_oat", "mean without AMC23"].difference == 2.925
    assert ("t4_base", "mean without AMC23") not in by_id  # both of 40 problems
    (trend,) = audit.trends
    assert trend.rising == ("AIME24", "MATH-500", "Minerva") and trend.slope == pytest.approx(9.1 / 5)


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_command_writes_its_files(tmp_path, capsys):
    assert main(["audit", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "149 rows" in said and "Table 1, GRPO, Minerva 30.2" in said
    long = pd.read_csv(tmp_path / "tables" / "paper_audit.csv")
    assert len(long) == len([*_per_source(), *_across_sources()])
    text = (tmp_path / "tables" / "paper_audit.md").read_text(encoding="utf-8")
    assert "AIME24 20.0 (6 of 30" in text and "Not established" in text and "nan" not in text.lower().split()
    assert (tmp_path / "tables" / "paper_audit.html").exists()
    scores = pd.read_csv(tmp_path / "tables" / "paper_audit_scores.csv")
    assert Counter(scores["verdict"])["none"] == 7 and Counter(scores["verdict"])["several samples"] == 12
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        "paper_audit_differences", "paper_audit_attainability",
    }  # fmt: skip


def test_layouts_merge_places(audit):
    impossible = audit.findings_layout("impossible")
    assert len(impossible) == 4  # 30.2, 76.3 in Tables 1 and 12, 0.2
    assert impossible["printed in"].tolist()[0] == f"{V3}, {README}"
    whole = audit.findings_layout()
    assert list(dict.fromkeys(whole.index)) == [name for name in rules.SEVERITIES if name in set(whole.index)]
    assert frames.checked(ROWS, FACTS)["rows"] == 149
