"""The published numbers: all rows, sources apart."""

import pandas as pd
import pytest

from eval_harness.errors import UserError
from gpg_repro.published import (
    SOURCES,
    _rows,
    published_facts,
    published_frame,
    published_table,
    published_value,
)


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
