"""The published numbers: all rows, sources apart, and every cell held twice.

A changed cell fails by the hash of its file, and by the tables in cases/printed_tables.json, which were typed from the
paper's text and not from these files. Correct a wrong cell in all three places.
"""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from eval_harness.errors import UserError
from gpg_repro.published import (
    SOURCES,
    _rows,
    folder,
    published_facts,
    published_frame,
    published_table,
    published_value,
)

CASES = json.loads((Path(__file__).parent / "cases" / "printed_tables.json").read_text(encoding="utf-8"))
# SHA-256 of what each file of results/paper holds, whatever its white space.
HASHES = {
    "claims.json": "5e3ed3e98b8ce6d131b8da08b315cbce07a3b95a89729a452d281dfd74a770f9",
    "comparisons.json": "fcdef0b3ae66c8b9bb33f22f7dd5bdd7485de7f83123ab0f71d1d217175d3aa6",
    "elsewhere.json": "c205c578a8bee5543d7acc3c6ec064a655e609fcb169838466bb92e3c60f6f19",
    "generations.json": "e1198f96268c774bba0fad16542adebb02328c0054ee73382a223b44296d6f73",
    "items.json": "372ea50a94cbe2acd79352c27ca17d97ef4b5a5b6968ad50002b11c4b5a2d8b9",
    "paper-v3.json": "aedf30462b16257d5d82f7e5011037d2c3a408a8ca4738e7b84119c9c06716c9",
    "paper-v4.json": "7e0d0d025a48425474646952953ee63a0e9c5d0037745b363450c76c59fc2d10",
    "poster.json": "86ea1765ad3b5698bcdd4bdfe253e8b4c7358b56d443746627de1423a05562ba",
    "ranges.json": "da2658f9a25ee0798cd0418c34f2ed71c3b95ab7eb16b0a24a666bb8b9da3977",
    "readme.json": "b3be6980bf1bc58613663e3923685d78efa6ed43e76d31291d06a66d48fbaf67",
    "remarks.json": "6fb9a065dbf8f381ae453a5b1d1c48ac4e50019d0f55fae3113edf4f7ade3d5c",
    "same_runs.json": "d7dcf463c94220ad5122983c3ed7d0cc0ac38138b6a29812089a930bdfeda450",
}


def content_hash(path: Path) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def test_no_file_has_changed():
    assert {path.name: content_hash(path) for path in folder().iterdir()} == HASHES


def typed(table: str, rows: list[list]) -> list[tuple]:
    columns = CASES["paper-v3"][table]["columns"]
    return [(method, mark, dict(zip(columns, cells, strict=True))) for method, mark, *cells in rows]


def stored(source: str, table: str) -> list[tuple]:
    return [(row["method"], row["mark"], row["columns"]) for row in _rows(source) if row["table"] == table]


@pytest.mark.parametrize("table", CASES["paper-v3"])
def test_every_cell_of_the_paper_is_the_one_typed_from_its_text(table):
    assert stored("paper-v3", table) == typed(table, CASES["paper-v3"][table]["rows"])


@pytest.mark.parametrize("source", ["readme", "poster"])
def test_readme_and_poster_print_what_the_paper_prints_but_for_these_rows(source):
    for table, printed in CASES["paper-v3"].items():
        rows, paper = stored(source, table), typed(table, printed["rows"])
        others = typed(table, CASES[source].get(table, []))
        assert [row for row in rows if row not in paper] == others, table
        renamed = {method.replace("GPG-Zero-7B", "GPG-7B") for method, *_ in others}  # on the poster
        missing = [row for row in paper if row not in rows and row[0] not in renamed]
        assert not rows or not missing, table


def test_every_row_is_there():
    assert {source: len(_rows(source)) for source in SOURCES} == {"paper-v3": 55, "readme": 54, "poster": 40}


def test_table_3():
    table = published_table("Table 3")
    assert list(table.index[-2:]) == ["GPG-RS1", "GPG-RS3"]
    assert table.loc["GPG-RS1", ["Average", "AIME24", "MATH-500", "AMC23", "Minerva", "OlympiadBench"]].tolist() == [
        55.7, 33.3, 87.6, 77.5, 29.4, 50.5,
    ]  # fmt: skip
    assert (table.loc["Open-RS3", "mark"], published_table("Table 3", "readme").loc["Open-RS3", "mark"]) == ("‡", "†")


def test_every_average_of_table_3_is_the_mean_of_its_columns():
    table = published_table("Table 3").drop(columns="mark")
    means = table.drop(columns="Average").mean(axis=1)
    assert ((means - table["Average"]).abs() <= 0.0501).all()


def test_dashes_are_missing_not_zero():
    assert pd.isna(published_table("Table 4").loc["rStar-Math-7B", "Average"])


def test_sources_are_never_mixed():
    assert published_table("Table 7", "paper-v3").iloc[-1]["Total"] == 69.11
    assert published_table("Table 7", "readme").iloc[-1]["Total"] == 76.15
    with pytest.raises(UserError, match="did you mean 'readme'"):
        published_table("Table 7", "readm")
    with pytest.raises(UserError, match="unknown published table"):
        published_table("Table 99")


def test_the_long_frame_holds_every_cell_with_its_source():
    frame = published_frame()
    cells = {source: sum(len(row["columns"]) for row in _rows(source)) for source in SOURCES}
    assert frame["source"].value_counts().to_dict() == cells
    assert len(frame[["source", "table", "row"]].drop_duplicates()) == 149
    gpg = frame[(frame.table == "Table 7") & (frame.method == "+ GPG") & (frame.column == "Total")]
    assert dict(zip(gpg.source, gpg.value, strict=True)) == {"paper-v3": 69.11, "readme": 76.15, "poster": 76.15}
    assert set(published_frame("poster")["source"]) == {"poster"}
    two = frame[(frame.source == "readme") & (frame.table == "Table 4") & (frame.method == "Oat-Zero-7B")]
    assert len(two["row"].unique()) == 2  # one name, two rows
    with pytest.raises(UserError, match="unknown source"):
        published_frame("v3")


def test_a_value_without_a_source_is_given_only_where_sources_agree():
    assert published_value("Table 7", "+ GRPO", "Total") == 59.47
    with pytest.raises(UserError, match=r"69.11 \(paper-v3\), 76.15 \(readme\), 76.15 \(poster\). Name one"):
        published_value("Table 7", "+ GPG", "Total")
    assert published_value("Table 7", "+ GPG", "Total", source="readme") == 76.15
    assert published_value("Table 10", "beta_th=0.8", "Average") == 48.6  # one source has it
    assert published_value("Table 4", "rStar-Math-7B", "Average") is None


def test_a_value_of_two_rows_of_one_name_needs_the_mark():
    with pytest.raises(UserError, match="several rows 'Oat-Zero-7B'; name one by its mark: '', '†'"):
        published_value("Table 4", "Oat-Zero-7B", "Average")
    assert published_value("Table 4", "Oat-Zero-7B", "Average", mark="†") == 47.8
    with pytest.raises(UserError, match="no row 'Oat-Zero-7B' with the mark '‡'"):
        published_value("Table 4", "Oat-Zero-7B", "Average", mark="‡")
    with pytest.raises(UserError, match="did you mean 'GPG-7B'"):
        published_value("Table 4", "GPG7B", "Average")


def test_facts_are_read_afresh_and_unknown_ones_are_refused():
    published_facts("items")["columns"].clear()
    assert published_facts("items")["columns"]["MATH-500"]["sets"] == [{"benchmark": "math500", "items": 500}]
    with pytest.raises(UserError, match="did you mean 'items'"):
        published_facts("item")
