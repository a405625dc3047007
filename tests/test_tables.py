"""Tables are pure functions of records: tested on records made by hand, then refused what they must refuse."""

from __future__ import annotations

import json

import pytest

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.records import Sample
from gpg_repro.tables import get_table
from gpg_repro.tables.base import (
    TINY_SUITES,
    RowRuns,
    flat,
    gains,
    implied_interval,
    layout,
    published_scores,
    reference_runs,
    run_table,
    scores,
    write_table,
)

TABLE = get_table(3)
ROWS = {row.key: row for row in TABLE.rows}


def _fake_run(folder, right: dict[str, int], items: int = 20, failed: int = 0):
    """An evaluation in which the first ``right[suite]`` items are right and the last ``failed`` failed."""
    for suite in TINY_SUITES:
        lines = [
            Sample(
                item_id=str(i),
                sample=0,
                seed=0,
                status="failed" if i >= items - failed else "scored",
                completion="x",
                finish_reason="stop",
                num_prompt_tokens=1,
                num_completion_tokens=1,
                correct=None if i >= items - failed else i < right[suite],
                correct_strict=i < right[suite],
                extracted=None,
                reason="match",
                gold_fallback=False,
            )  # fmt: skip
            for i in range(items)
        ]
        records.append_lines(folder / "samples" / f"{suite}.jsonl", lines)
    records.write_json(
        folder / "run.json",
        records.RunRecord(
            run_id="x",
            fingerprint="f",
            status="finished",
            created="2026-01-01T00:00:00+00:00",
            finished=None,
            model={"name": "m", "weights": "w"},
            engine={"name": "vllm", "version": "0", "dtype": "float32"},
            settings={},
            benchmarks={},
            average=None,
            timings={},
            environment={},
        ),  # fmt: skip
    )
    return folder


@pytest.fixture
def runs(tmp_path):
    base = _fake_run(tmp_path / "base", dict.fromkeys(TINY_SUITES, 8))
    seeds = {k: _fake_run(tmp_path / f"gpg{k}", dict.fromkeys(TINY_SUITES, 12 + 2 * k), failed=1) for k in (0, 1)}
    return [RowRuns(ROWS["base"], {0: base}), RowRuns(ROWS["gpg_rs1"], seeds)]


def test_scores_by_hand(runs):
    frame = scores(TABLE, runs, "tiny").set_index(["row", "column"])
    base, gpg = frame.loc["base", "average"], frame.loc["gpg_rs1", "average"]
    assert base["mean"] == pytest.approx(8 / 20) and base["num_items"] == 100 and base["failed"] == 0
    assert gpg["mean"] == pytest.approx(13 / 20)  # mean of 12/20 and 14/20
    assert (gpg["seed_low"], gpg["seed_high"]) == (pytest.approx(0.6), pytest.approx(0.7))
    assert (gpg["num_seeds"], gpg["num_samples"], gpg["num_items"], gpg["failed"]) == (2, 200, 100, 10)


def test_gains_are_paired(runs):
    """12 items right with both seeds, 2 with one, base right on 8: gain .25; the common items cancel."""
    (row,) = gains(TABLE, runs, "tiny").itertuples()
    assert row.gain == pytest.approx(25.0)
    # per suite the differences are 4 x 1, 2 x 0.5, 14 x 0: variance (4 + .5 - 20 * .25^2)/19 = 0.17105
    se = (5 * 0.17105 / 20) ** 0.5 / 5
    assert (row.high - row.gain) / 100 == pytest.approx(1.985 * se, rel=2e-3)
    assert row.gain - row.low == pytest.approx(row.high - row.gain)
    assert row.num_items == 100 and row.num_seeds == 2


def test_published_and_ours_stay_in_separate_blocks(runs):
    frame = layout(TABLE, scores(TABLE, runs, "tiny"), "tiny", scores(TABLE, runs, "tiny"))
    blocks = list(dict.fromkeys(top for top, _ in frame.columns))
    assert blocks[0] == "published (paper v3)" and "not comparable" in blocks[1]
    ours = [column for top, column in frame.columns if top == blocks[1]]
    assert not {"AIME24", "MATH-500", "AMC23"} & set(ours)
    assert frame.loc["GPG on tiny_s1", ("published (paper v3)", "Average")] == "55.7"
    assert frame.loc["GPG on tiny_s1", (blocks[1], "Average")].startswith("65.0 [")
    assert frame.loc["GPG on tiny_s1", (blocks[1], "n")] == "2 × 100, 10 failed"
    assert frame.loc["GRPO on tiny_s1", (blocks[1], "Average")] == "–"
    assert frame.loc["GPG + AGE on tiny_s1 (ours)", ("published (paper v3)", "Average")] == "–"
    assert "Still-3-1.5B-Preview" not in frame.index


def test_files(runs, tmp_path):
    measured = scores(TABLE, runs, "tiny")
    paths = write_table(
        TABLE, layout(TABLE, measured, "tiny"), flat(TABLE, measured, "tiny", "this run"), "tiny", ["a note"], tmp_path
    )
    assert {p.name for p in paths.values()} == {"table03.md", "table03.csv", "table03.html"}
    text = paths["md"].read_text(encoding="utf-8")
    assert "| GPG on tiny_s1" in text and "- a note" in text and "55.7" in text
    assert "this run" in paths["csv"].read_text(encoding="utf-8")
    assert "<table" in paths["html"].read_text(encoding="utf-8")


def test_implied_interval_by_hand():
    """GPG-RS1: se = sqrt(sum p(1-p)/n)/5; AIME24 .333*.667/30 = .0074 is most of it."""
    low, high = implied_interval(published_scores(TABLE).loc["gpg_rs1"], TABLE.benchmarks)
    assert (low + high) / 2 == pytest.approx(55.7)
    assert (high - low) / 2 == pytest.approx(4.5, abs=0.2)


def test_paper_scale_lists_everything_missing_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("EVAL_DATA_ROOT", raising=False)
    with pytest.raises(UserError) as error:
        run_table(TABLE, "paper", engine="transformers", results=tmp_path)
    text = str(error.value)
    for part in (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "GD-ML/Open-RS1",
        "knoveleng/Open-RS3",
        "benchmark aime24",
        "--data-root",
    ):
        assert part in text
    assert "10 things are missing" in text and not any(tmp_path.iterdir())


def test_paper_scale_takes_local_copies_from_the_environment(tmp_path, monkeypatch, data_root):
    monkeypatch.setenv("EVAL_DATA_ROOT", str(data_root))
    with pytest.raises(UserError, match="5 things are missing"):
        run_table(TABLE, "paper", engine="transformers", results=tmp_path)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        run_table(TABLE, "tinny", results=tmp_path)
    with pytest.raises(UserError, match="SEEDS 0"):
        run_table(TABLE, "tiny", seeds=0, results=tmp_path)
    with pytest.raises(UserError, match="unknown engine"):
        run_table(TABLE, "tiny", engine="vlm", results=tmp_path)
    with pytest.raises(UserError, match="unknown table"):
        get_table(13)


def test_committed_records_hold_three_seeds_and_reproduce():
    """Every committed sample is there, every mark adds up, and RL gains at least ten points with every seed."""
    runs = reference_runs(TABLE, "tiny")
    by_key = {entry.row.key: entry for entry in runs}
    assert set(by_key) == {row.key for row in TABLE.rows_at("tiny")}
    frame = scores(TABLE, runs, "tiny")
    averages = frame[frame.column == "average"].set_index("row")
    for key, entry in by_key.items():
        assert len(entry.folders) == (1 if key == "base" else 3)
        assert averages.loc[key, "failed"] == 0
        if key != "base":
            assert averages.loc[key, "seed_low"] >= averages.loc["base", "mean"] + 0.10, key
    for entry in runs:
        for folder in entry.folders.values():
            assert "/" not in json.dumps(records.read_run(folder).model["name"])
