"""The fourth version: known cells typed a second time, no gap filled, costs worked by hand."""

import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import dapo_cost

from gpg_repro.audit import fourth
from gpg_repro.audit.facts import read_facts
from gpg_repro.audit.report import build_audit
from gpg_repro.published import SOURCES, PrintedRow, printed_rows, published_facts

ROWS = {source: printed_rows(source) for source in SOURCES}
KNOWN = fourth.known_rows()
MATH = ("Average", "AIME24", "MATH-500", "AMC23", "Minerva", "OlympiadBench")
# Typed from the close reading, in its order.
TYPED = {
    "Table 1": [44.1, 23.3, 74.2, 52.5, 30.9, 39.7],
    "Table 9": [56.0, 30.0, 84.6, 82.5, 34.9, 47.8, 57.7, 36.7, 84.6, 82.5, 39.0, 45.8],
    "Table 10": [48.6, 33.3, 73.6, 67.5, 29.4],
    "Table 11": [
        *(41.9, 16.7, 71.6, 60.0, 25.0, 36.0, 43.3, 20.0, 73.2, 55.0, 29.8, 38.5),
        *(45.3, 23.3, 73.6, 60.0, 30.5, 39.3, 47.3, 26.7, 74.6, 65.0, 32.4, 37.8),
    ],
    "Table 12": [38.31, 32.91, 38.53, 33.29],
    "Table 13": [45.3, 44.9, 35.3, 43.9],
    "Table 15": [43.7, 45.3, 43.9, 47.8, 48.3],
    "Table 16": [58.7, 80.6, 41.7, 43.4, 46.0, 52.0, 42.5, 44.3, 47.6, 66.5],
    "Table 18": [26.67, 20.33],
    "Table 19": [24.60, 21.96, 41.914, 47.307, 26.19, 23.81, 42.551, 50.146],
}


def test_every_known_cell_is_the_one_typed_again():
    found: dict[str, list[float]] = {}
    for one in KNOWN:
        found.setdefault(one.row.table, []).extend(one.row.columns.values())
    assert found == TYPED


def test_no_gap_is_filled():
    """A cell that was not read is absent: neither v3's value nor a dash."""
    cells = {(one.row.table, one.row.method): one.row.columns for one in KNOWN}
    assert set(cells["Table 10", "beta_th=0.8"]) == set(MATH) - {"OlympiadBench"}
    assert set(cells["Table 13", "F_norm=1"]) == {"Average"}
    assert not any(table == "Table 4" for table, _ in cells)
    assert all(value is not None for columns in cells.values() for value in columns.values())
    assert fourth.SOURCE not in SOURCES


def test_the_known_cells_beside_the_other_sources():
    frame = fourth.differences(KNOWN, ROWS)
    assert frame["result"].value_counts().to_dict() == {"same": 44, "v4 alone": 36}
    gpg = frame[(frame["table"] == "Table 9") & (frame["row"] == "GPG-7B") & (frame["column"] == "Average")].iloc[0]
    assert [gpg[source] for source in SOURCES] == [57.7] * 3  # called GPG-Zero-7B on the poster
    new = frame[frame["row"] == "GPG(F_norm=std, alpha=B/(B-M))"]
    assert len(new) == 6 and new[list(SOURCES)].isna().all(axis=None)


def test_a_difference_is_told():
    changed = [
        PrintedRow(row.source, row.table, row.method, row.mark, {**row.columns, "AMC23": 61.0})
        if (row.table, row.method) == ("Table 11", "G=2")
        else row
        for row in ROWS["paper-v3"]
    ]
    frame = fourth.differences(KNOWN, {**ROWS, "paper-v3": changed})
    (line,) = frame[frame["result"] == "differs"].itertuples()
    assert (line.table, line.row, line.column, line.v4) == ("Table 11", "G=2", "AMC23", 60.0)
    text = fourth.summary(frame, [], KNOWN)
    assert "43 as in every source that prints them, 1 different (Table 11, G=2, AMC23)" in text


def test_its_own_cells():
    """DAPO's OlympiadBench 47.8: 322 of 675 is 47.70 and 323 is 47.85, so only cutting gives it. Averages fit."""
    (found,) = fourth.own_findings(KNOWN, read_facts())
    assert (found.kind, found.severity, found.method, found.column) == (
        "attainability", "digits cut", "DAPO-7B", "OlympiadBench",
    )  # fmt: skip
    wrong = [
        fourth.Known(PrintedRow(one.row.source, "T", "m", "", {**one.row.columns, "Average": 50.0}), None)
        for one in KNOWN
        if one.row.method == "G=2"
    ]
    assert [one.kind for one in fourth.own_findings(wrong, read_facts())] == ["average"]


def test_pairs_by_hand():
    pairs = fourth.resolved_pairs(KNOWN).set_index("column")
    # 93 and 99 of 378: 6 problems, 1.587 points; se = 100 sqrt((.246 x .754 + .2619 x .7381) / 378) = 3.166
    assert pairs.loc["MBPP", "difference"] == pytest.approx(1.59)
    assert pairs.loc["MBPP", "standard error"] == pytest.approx(3.166, abs=1e-3)
    # 0.637 over sqrt(0.492^2 + 0.493^2) = 0.6965
    assert pairs.loc["HellaSwag", "z"] == pytest.approx(0.637 / 0.6965, abs=1e-3)
    assert pd.isna(pairs.loc["MMLU", "z"])


def test_draws_by_hand():
    # one group, one needed, valid every second time: 1 + 1/2 + 1/4 + ... = 2
    assert fourth.expected_draws(0.5, 1, 1) == pytest.approx(2)
    # two groups, two needed: after one draw both with 1/4, so 1 + 3/4 + P(at most 1 of 4) 5/16 + P(1 of 6) 7/64 + ...
    rest = sum((1 + 2 * made) / 4**made for made in range(1, 30))
    assert fourth.expected_draws(0.5, 2, 2) == pytest.approx(1 + rest)
    assert fourth.expected_draws(1.0, 5, 5) == 1
    with pytest.raises(ValueError, match="never end"):
        fourth.expected_draws(0.0, 5, 5)


def test_costs_by_hand():
    """All groups carry a signal: one draw each. Draws of the batch: FLOPs 2 + 2 + 6 on both sides, 2 + 6 when skipping.
    Draws of three batches: a third of the data; 10 and 8 over 6 + 2 + 6."""
    line = fourth.cost_table([1.0], 144, 0.6).iloc[0]
    assert (line["data ×1"], line["FLOPs ×1"], line["FLOPs, skipping ×1"]) == (1, 1, pytest.approx(0.8))
    assert (line["data ×3"], line["FLOPs ×3"]) == (pytest.approx(1 / 3), pytest.approx(10 / 14))
    assert line["FLOPs, skipping ×3"] == pytest.approx(8 / 14)
    # sampling 0.9 of DAPO's time: 0.9 x 0.4 + 0.1 x 1 = 0.46
    assert fourth.sampling_share(0.46, 0.4) == pytest.approx(0.9)


def test_what_the_printed_costs_need():
    """The least of GPG's prompts over DAPO's, batch by batch, is a half: one draw against two."""
    table = fourth.cost_table([step / 100 for step in range(5, 100)], 144, 0.6)
    assert table["data ×1"].min() == pytest.approx(0.5, abs=0.01) and table["data ×3"].min() < 0.39
    text = fourth.cost_text()
    assert "at least 0.50 of them" in text and "at least 64% of the groups" in text and "90% of DAPO's time" in text
    assert math.isclose(published_facts("paper-v4")["costs"]["rows"]["GPG-7B"]["data"], 0.39)


def test_the_audit_prints_it(tmp_path):
    audit = build_audit(tmp_path)
    assert "Fourth version (through a close reading), 80 known cells: 44 as in every source" in audit.summary()
    paths = audit.write()
    text = paths["md"].read_text(encoding="utf-8") if "md" in paths else ""
    assert "Fourth version (v4), through a close reading: every known cell" in text
    assert len(pd.read_csv(paths["v4"])) == 80
    assert any("close reading" in note for note in audit.notes())


def test_the_page_has_the_committed_counts():
    result = json.loads(dapo_cost.RESULT.read_text(encoding="utf-8"))
    page = Path(__file__).resolve().parent.parent / "docs" / "audit.md"
    assert dapo_cost.table(result) in page.read_text(encoding="utf-8") and not result["commit"].endswith("dirty")
    first = dapo_cost.REFERENCE / "tiny" / result["recipe"] / "seed0" / "training"
    assert {"seed": 0, **dapo_cost.count(first)} == result["trainings"][0]


def test_counts_of_a_training_by_hand(tmp_path):
    """Two steps of 2 groups: 2 and 1 valid, 1 and 2 draws of 100 tokens: v = 3/4, 1.5 draws, 150 tokens sampled."""
    steps = [
        {
            "step": 1,
            "num_groups": 2,
            "num_valid_groups": 2,
            "num_draws": 1,
            "tokens/generated": 100,
            "tokens/trained": 80,
        },
        {
            "step": 2,
            "num_groups": 2,
            "num_valid_groups": 1,
            "num_draws": 2,
            "tokens/generated": 200,
            "tokens/trained": 60,
        },
    ]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    found = dapo_cost.count(tmp_path)
    assert (found["share_valid"], found["draws"], found["generated"], found["trained"]) == (0.75, 1.5, 150, 70)
    other = fourth.expected_draws(0.75, 2, 2)  # 1 + 7/16 + P(at most 1 of 4) + ...
    assert other == pytest.approx(1 + 7 / 16 + 13 / 256 + 19 / 4096 + 25 / 65536 + 31 / 4**10 + 37 / 4**12, abs=1e-5)
    assert found["data_1"] == pytest.approx(1.5 / other, abs=1e-6)
    assert found["flops_1"] == pytest.approx((2 * 150 + 6 * 70) / (2 * 100 * other + 8 * 100), abs=1e-6)
