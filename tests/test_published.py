"""The published numbers: all rows, sources apart."""

import pandas as pd
import pytest

from eval_harness.errors import UserError
from gpg_repro.published import SOURCES, _rows, published_table


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
