"""Tables are pure functions of records: tested on records made by hand, then refused what they must refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from hand_made import result_of

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.records import Sample
from gpg_repro import fingerprints, plots
from gpg_repro.published import published_table
from gpg_repro.recipe import load_recipe
from gpg_repro.tables import TABLES, control, get_table, reference, report, table_02, table_09, table_12
from gpg_repro.tables.base import TINY_SUITES, RowRuns, published_scores
from gpg_repro.tables.files import write_report
from gpg_repro.tables.layouts import comparison_layout, flat, layout
from gpg_repro.tables.numbers import (
    all_pairs,
    difference,
    differences,
    gains,
    scores,
    training_layout,
    training_summary,
)
from gpg_repro.tables.printed import (
    arithmetic_notes,
    attainability,
    implied_difference,
    implied_interval,
)
from gpg_repro.tables.report import build_table, notes_for
from gpg_repro.tables.runs import (
    base_record,
    finished_trainings,
    recipe_trainings,
    reference_runs,
    run_table,
    save_reference,
)

matplotlib.use("agg")
TABLE = get_table(3)
ROWS = {row.key: row for row in TABLE.rows}


def fake_evaluation(folder: Path, right: int | dict[str, int], items: int = 20, failed: int = 0) -> Path:
    """An evaluation in which the first ``right`` items (of each suite) are right and the last ``failed`` failed."""
    results = {}
    for suite in TINY_SUITES:
        first = right if isinstance(right, int) else right[suite]
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
                correct=None if i >= items - failed else i < first,
                correct_strict=i < first,
                extracted=None,
                reason="match",
                gold_fallback=False,
            )  # fmt: skip
            for i in range(items)
        ]
        records.append_lines(folder / "samples" / f"{suite}.jsonl", lines)
        results[suite] = result_of(suite, lines)
        (folder / "items").mkdir(exist_ok=True)
        (folder / "items" / f"{suite}.jsonl").touch()
    records.write_json(
        folder / "run.json",
        records.RunRecord(
            run_id="x",
            fingerprint="f",
            status="finished",
            created="2026-01-01T00:00:00+00:00",
            finished=None,
            model={"name": "m", "weights": "base-weights"},
            engine={"name": "vllm", "version": "0"},
            settings={},
            benchmarks=results,
            average=None,
            timings={},
            environment={},
        ),  # fmt: skip
    )
    return folder


def fake_training(folder: Path, steps: list[dict], recipe: dict | None = None, status: str = "finished") -> Path:
    """A training run with the given metrics; keys that are left out are filled with quiet values."""
    quiet = {
        "reward": 0.5,
        "alpha": 1.0,
        "alpha_applied": 1.0,
        "reward_std": 0.3,
        "grad_norm": 0.1,
        "num_draws": 1,
        "num_dropped_groups": 0,
        "num_groups": 4,
        "num_valid_groups": 4,
    }
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i, **quiet, **step}) + "\n" for i, step in enumerate(steps, start=1)]
    (folder / "steps.jsonl").write_text("".join(lines), encoding="utf-8")
    records.write_json(
        folder / "run.json",
        records.TrainingRecord(
            run_id="t",
            fingerprint="f",
            status=status,
            created="2026-01-01T00:00:00+00:00",
            finished="2026-01-01T00:01:00+00:00",
            recipe=recipe or {"setup": {"training": {"max_grad_norm": 0.3}}},
            base={"name": "b", "weights": "base-weights", "revision": None},
            checkpoint="checkpoint",
            num_steps=len(steps),
            timings={"train_s": 2.0},
            environment={},
        ),
    )
    return folder


@pytest.fixture
def made(tmp_path):
    base = fake_evaluation(tmp_path / "base", 8)
    seeds = {k: fake_evaluation(tmp_path / f"gpg{k}", 12 + 2 * k, failed=1) for k in (0, 1)}
    return [RowRuns(ROWS["base"], {0: base}), RowRuns(ROWS["gpg_rs1"], seeds)]


# Specifications -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_specifications_fit_the_recipes_and_the_published_tables(name):
    table = get_table(name)
    keys = [row.key for row in table.rows]
    assert len(set(keys)) == len(keys)
    assert {key for pair in table.comparisons for key in pair} <= set(keys)
    for row in table.rows_at("tiny"):
        for scale in ("smoke", "tiny") if row.recipe else ():
            assert load_recipe(row.recipe, scale=scale).scale == scale
    printed = published_scores(table)
    assert set(printed.index) == {row.key for row in table.rows if row.published}
    if table.published:
        own = [row for row in table.rows if row.published and row.published_in in (None, table.published)]
        shown = {row.published for row in own if row.published_source == "paper-v3"}
        assert shown == set(published_table(table.published).index)


def test_tables_share_runs():
    """G = 8 is F_norm = std of the group is GPG(std, 1); the base is one run for all."""
    row = {(name, row.key): row for name in TABLES for row in get_table(name).rows}
    assert row["11", "g8"].run == row["12", "group"].run == row["1", "gpg_std"].run == "table1_gpg_std"
    assert row["10", "th06"].run == row["1", "gpg_age_th"].run
    assert row["control", "age_clipped"].run == row["10", "off"].run == row["1", "gpg_age"].run
    assert {row[name, "base"].run for name in TABLES} == {"base"}


def test_the_control_differs_in_alpha_and_clipping_only():
    """Recipes behind the rows: clipped and unclipped twins differ in the norm limit alone."""
    row = {r.key: r for r in control.TABLE.rows}
    for alpha in ("age", "one"):
        a, b = (load_recipe(row[f"{alpha}_{kind}"].recipe, scale="tiny") for kind in ("clipped", "unclipped"))
        assert a.objective == b.objective and a.setup.training.max_grad_norm < 1 < 1e6 < b.setup.training.max_grad_norm
        assert a.setup.training.model_copy(update={"max_grad_norm": 1.0}) == b.setup.training.model_copy(
            update={"max_grad_norm": 1.0}
        )


def test_table_4_keeps_the_two_amc_sets_apart():
    """Behind each printed AMC number stands its set, and intervals follow it; ours have a column for each."""
    table = get_table(4)
    frame = layout(table, "paper", None)
    shown = frame["published (source by row)", "AMC23"]
    assert (
        shown["GPG-7B"] == "82.5 (40)" and shown["Oat-Zero-7B †"] == "55.4 (83)" and shown["Oat-Zero-7B"] == "62.7 (83)"
    )
    assert frame["published (source by row)", "Average"]["rStar-Math-7B"] == "–"
    printed = published_scores(table)
    for key in ("oat", "gpg_paper"):
        items = {
            "AIME24": 30,
            "MATH-500": 500,
            "AMC23": 83 if key == "oat" else 40,
            "Minerva": 272,
            "OlympiadBench": 675,
        }
        variance = sum(printed.loc[key, t] * (100 - printed.loc[key, t]) / n for t, n in items.items())
        low, high = implied_interval(table, printed.loc[key])
        assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5 / 5, rel=1e-3)
    assert implied_interval(table, printed.loc["rstar"]) is None
    notes = arithmetic_notes(table)
    assert not any("AMC23" in note or "rStar" in note for note in notes)  # every AMC number is a count of its own set
    assert [note for note in notes if "0.2 on AIME24 is no count of 30" in note]
    assert table.benchmarks_at("paper")[-1] == "amc_83" and table.benchmarks_at("tiny") == TINY_SUITES
    assert [row.key for row in table.rows_at("tiny")] == ["base", "gpg_paper", "gpg_released"]
    assert table.comparisons_at("tiny") == [
        ("gpg_paper", "base"), ("gpg_released", "base"), ("gpg_paper", "gpg_released")
    ]  # fmt: skip
    # no published difference across the two sets
    known = {key for key in printed.index if table.published_items(table.columns[2], key) == 40}
    pairs = [pair for pair in table.comparisons if set(pair) <= set(printed.index)]
    assert pairs and all(set(pair) <= known for pair in pairs)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_scores_by_hand(made):
    frame = scores(TABLE, made, "tiny").query("rule == 'published'").set_index(["row", "column"])
    base, gpg = frame.loc["base", "average"], frame.loc["gpg_rs1", "average"]
    assert base["mean"] == pytest.approx(8 / 20) and base["num_items"] == 100 and base["failed"] == 0
    assert gpg["mean"] == pytest.approx(13 / 20)  # mean of 12/20 and 14/20
    assert (gpg["seed_low"], gpg["seed_high"]) == (pytest.approx(0.6), pytest.approx(0.7))
    assert (gpg["num_seeds"], gpg["num_samples"], gpg["num_items"], gpg["failed"]) == (2, 200, 100, 10)


def test_gains_are_paired(made):
    """12 items right with both seeds, 2 with one, base right on 8: gain .25; the common items cancel."""
    (row,) = gains(TABLE, made, "tiny").itertuples()
    assert row.difference == pytest.approx(25.0)
    # per suite the differences are 4 x 1, 2 x 0.5, 14 x 0: variance (4 + .5 - 20 * .25^2)/19 = 0.17105
    se = (5 * 0.17105 / 20) ** 0.5 / 5
    assert (row.high - row.difference) / 100 == pytest.approx(1.985 * se, rel=2e-3)
    assert row.difference - row.low == pytest.approx(row.high - row.difference)
    assert (row.num_items, row.num_seeds, row.apart) == (100, 2, True)
    assert (row.seed_min, row.seed_max, row.seeds_low) == (pytest.approx(20.0), pytest.approx(30.0), None)


def test_from_three_seeds_on_an_interval_over_seeds_decides_too(tmp_path):
    """Seeds 10, 14, 15 right against 9 with each: differences 5, 25, 30 points."""
    mine = RowRuns(ROWS["gpg_rs1"], {k: fake_evaluation(tmp_path / f"a{k}", n) for k, n in enumerate((10, 14, 15))})
    other = RowRuns(ROWS["grpo_rs1"], {k: fake_evaluation(tmp_path / f"b{k}", 9) for k in range(3)})
    d = difference(TABLE, mine, other, "tiny")
    assert d["difference"] == pytest.approx(20.0) and (d["seed_min"], d["seed_max"]) == pytest.approx((5.0, 30.0))
    # standard deviation sqrt((225 + 25 + 100)/2) = 13.229, over sqrt(3) 7.638, t(2) = 4.3027: half width 32.86
    assert (d["seeds_low"], d["seeds_high"]) == pytest.approx((20 - 32.86, 20 + 32.86), abs=0.01)
    assert d["low"] > 0 and not d["apart"]  # items alone would have said so; three seeds do not
    same = RowRuns(ROWS["gpg_rs1"], {k: fake_evaluation(tmp_path / f"c{k}", 13) for k in range(3)})
    assert difference(TABLE, same, other, "tiny")["apart"]


def test_seeds_are_paired_by_number_and_the_base_stands_against_all(tmp_path):
    mine = RowRuns(ROWS["gpg_rs1"], {k: fake_evaluation(tmp_path / f"a{k}", 10 + k) for k in (0, 1, 2)})
    other = RowRuns(ROWS["grpo_rs1"], {k: fake_evaluation(tmp_path / f"b{k}", 10 + k) for k in (1, 2)})
    d = difference(TABLE, mine, other, "tiny")
    assert (d["num_seeds"], d["seed_min"], d["seed_max"]) == (2, 0.0, 0.0)
    base = RowRuns(ROWS["base"], {0: fake_evaluation(tmp_path / "base", 10)})
    d = difference(TABLE, mine, base, "tiny")
    assert (d["num_seeds"], d["seed_min"], d["seed_max"]) == (3, pytest.approx(0.0), pytest.approx(10.0))


def test_rows_of_different_bases_are_not_compared(tmp_path):
    base = RowRuns(ROWS["base"], {0: fake_evaluation(tmp_path / "base", 8)})
    rows = []
    for key, weights in (("gpg_rs1", "base-weights"), ("grpo_rs1", "of-another-machine")):
        training = fake_training(tmp_path / f"t{key}", [{}])
        record = records.read_run(training)
        records.write_json(
            training / "run.json", record.model_copy(update={"base": record.base | {"weights": weights}})
        )
        rows.append(RowRuns(ROWS[key], {0: fake_evaluation(tmp_path / key, 12)}, {0: training}))
    assert gains(TABLE, [base, *rows], "tiny")["row"].tolist() == ["gpg_rs1"]
    assert not len(differences(TABLE, [base, *rows], "tiny"))
    (note,) = [n for n in notes_for(TABLE, "tiny", [], [base, *rows]) if "another base" in n]
    assert note.startswith("Open-RS1 (GRPO on open-s1) (committed records)")
    assert not [n for n in notes_for(TABLE, "tiny", [base, rows[0]]) if "another base" in n]


def test_pairs_that_were_not_measured_are_left_out(made):
    assert not len(differences(TABLE, made, "tiny"))
    frame = comparison_layout(TABLE, "tiny", differences(TABLE, made, "tiny"))
    assert frame.iloc[0].to_dict()["published (paper v3)", "difference"] == "+2.6"
    assert frame.iloc[0].to_dict()["miniature, scale tiny (not comparable)", "told apart"] == "–"
    assert len(all_pairs(TABLE, made, "tiny")) == 1


def test_published_and_ours_stay_in_separate_blocks(made):
    measured = scores(TABLE, made, "tiny")
    frame = layout(TABLE, "tiny", measured, measured)
    blocks = list(dict.fromkeys(top for top, _ in frame.columns))
    assert blocks[0] == "published (paper v3)" and "not comparable" in blocks[1]
    ours = [column for top, column in frame.columns if top == blocks[1]]
    assert not {"AIME24", "MATH-500", "AMC23"} & set(ours)
    assert frame.loc["GPG on tiny_s1", ("published (paper v3)", "Average")] == "55.7"
    assert frame.loc["GPG on tiny_s1", ("published (paper v3)", "implied 95 %")] == "[51.2, 60.2]"
    assert frame.loc["GPG on tiny_s1", (blocks[1], "Average")].startswith("65.0 [")
    assert frame.loc["GPG on tiny_s1", (blocks[1], "n")] == "2 × 100, 10 failed"
    assert frame.loc["GRPO on tiny_s1", (blocks[1], "Average")] == "–"
    assert frame.loc["GPG + AGE on tiny_s1 (ours)", ("published (paper v3)", "Average")] == "–"
    assert "Still-3-1.5B-Preview" not in frame.index
    assert [c for top, c in frame.columns if top == blocks[2]] == ["Average", "n"]


def test_committed_records_alone_stand_in_full(made):
    frame = layout(TABLE, "tiny", None, scores(TABLE, made, "tiny"))
    (block,) = {top for top, _ in frame.columns} - {"published (paper v3)"}
    assert block == "miniature, committed records (not comparable)"
    ours = [c for top, c in frame.columns if top == block]
    assert len(ours) == 8 and ours[-2:] == ["Average, strict rule", "n"]
    assert frame.loc["GPG on tiny_s1", (block, "Average")].endswith("; seeds 60.0–70.0")


def test_training_summary_by_hand(tmp_path):
    steps = [
        {"grad_norm": 0.2, "alpha": 2.0, "num_valid_groups": 2, "alpha_applied": 2.0},
        {"grad_norm": 0.4, "alpha": 4.0, "num_valid_groups": 1, "num_draws": 3, "alpha_applied": 4.0},
        {"grad_norm": 0.3, "alpha": 0.0, "num_valid_groups": 0, "num_dropped_groups": 5, "alpha_applied": 0.0},
        {"grad_norm": 0.9, "alpha": 3.0, "num_valid_groups": 3, "reward": 0.9, "alpha_applied": 3.0},
    ]
    entry = RowRuns(ROWS["gpg_rs1"], {0: tmp_path}, {0: fake_training(tmp_path / "t", steps)})
    (line,) = training_summary([entry, RowRuns(ROWS["base"], {0: tmp_path})], "tiny").itertuples()
    assert (line.num_seeds, line.num_steps) == (1, 4)
    assert (line.alpha, line.alpha_low, line.alpha_high) == (3.0, 2.0, 4.0)  # the step without a signal has no alpha
    assert line.clipped == 0.5  # 0.4 and 0.9 of 0.2, 0.4, 0.3, 0.9: at the limit nothing is clipped
    assert line.alpha_applied == 2.25
    assert (line.num_draws, line.prompts, line.num_dropped_groups) == (1.5, 6.0, 5)
    assert training_layout(training_summary([entry], "tiny")).iloc[0]["steps clipped"] == "50 %"


# The printed numbers --------------------------------------------------------------------------------------------------


def test_implied_interval_by_hand():
    """GPG-RS1: se = sqrt(sum p(1-p)/n)/5; AIME24 .333*.667/30 = .0074 is most of it."""
    low, high = implied_interval(TABLE, published_scores(TABLE).loc["gpg_rs1"])
    assert (low + high) / 2 == pytest.approx(55.7)
    assert (high - low) / 2 == pytest.approx(4.5, abs=0.2)


def test_implied_difference_adds_the_variances():
    published = published_scores(TABLE)
    mine, other = published.loc["gpg_rs1"], published.loc["grpo_rs1"]
    gap, low, high = implied_difference(TABLE, mine, other)
    halves = [(b - a) / 2 for a, b in (implied_interval(TABLE, row) for row in (mine, other))]
    assert gap == pytest.approx(2.6)
    assert (high - low) / 2 == pytest.approx((halves[0] ** 2 + halves[1] ** 2) ** 0.5)
    assert 6.0 < (high - low) / 2 < 6.8 and low < 0 < high


@pytest.mark.parametrize(
    ("percent", "items", "verdict"),
    [
        (76.3, 500, "none"),  # steps of 0.2
        (76.2, 500, "rounded"),
        (30.2, 272, "none"),  # 82/272 = 30.147, 83/272 = 30.515
        (30.1, 272, "rounded"),
        (37.4, 675, "cut"),  # 253/675 = 37.48
        (37.5, 675, "rounded"),
        (50.9, 675, "cut"),
        (28.8, 30, "none"),
        (23.3, 30, "rounded"),
        (0.0, 30, "rounded"),
        (100.0, 30, "rounded"),
        (57.8, 83, "rounded"),
    ],
)
def test_attainability(percent, items, verdict):
    assert attainability(percent, items) == verdict


def test_arithmetic_notes_find_the_known_slips_and_no_others():
    notes = arithmetic_notes(get_table(1))
    assert len(notes) == 4
    for part in (
        "30.2 on Minerva is no count",
        "76.3 on MATH-500 is no count",
        "37.4 on OlympiadBench is a count of 675",
        "have the mean 48.38; the printed Average is 48.3",
    ):
        assert sum(part in note for note in notes) == 1, part
    assert len(arithmetic_notes(get_table(10))) == 1 and not arithmetic_notes(get_table(11))


# Files and figures ----------------------------------------------------------------------------------------------------


def test_files(made, tmp_path):
    measured = scores(TABLE, made, "tiny")
    sections = [(None, layout(TABLE, "tiny", measured)), ("More", pd.DataFrame({"a": [1]}))]
    long = flat(TABLE, measured, "tiny", "this run")
    paths = write_report(TABLE.stem, TABLE.heading, sections, ["a <note>"], "tiny", long, tmp_path)
    assert {p.name for p in paths.values()} == {"table03.md", "table03.csv", "table03.html"}
    text = paths["md"].read_text(encoding="utf-8")
    assert "| GPG on tiny_s1" in text and "- a <note>" in text and "55.7" in text and "## More" in text
    assert "this run" in paths["csv"].read_text(encoding="utf-8")
    page = paths["html"].read_text(encoding="utf-8")
    assert page.count("<table") == 2 and "a &lt;note&gt;" in page


def test_figures_say_what_is_told_apart(tmp_path):
    other = RowRuns(ROWS["grpo_rs1"], {k: fake_evaluation(tmp_path / f"b{k}", 9) for k in range(3)})
    for name, right, hollow in (("far", 15, False), ("near", 9, True)):
        mine = RowRuns(ROWS["gpg_rs1"], {k: fake_evaluation(tmp_path / f"{name}{k}", right) for k in range(3)})
        figure = plots.differences_figure(TABLE, "tiny", differences(TABLE, [mine, other], "tiny"), "committed records")
        left, right_axis = figure.axes
        markers = [line for line in right_axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
        assert [marker.get_markerfacecolor() == "white" for marker in markers] == [hollow]
        assert "not comparable" in right_axis.get_title() and "3 training seeds" in right_axis.get_title()
        assert sum(text.get_text() == "not in the paper" for text in left.texts) == 0
        assert sum(text.get_text() == "not measured" for text in right_axis.texts) == 1  # gpg_rs3 - grpo_rs3
        plots.plt.close(figure)


def test_table_figure_keeps_the_published_on_an_axis_of_its_own(made):
    measured = scores(TABLE, made, "tiny")
    figure = plots.table_figure(TABLE, "tiny", measured, measured)
    left, right = figure.axes
    assert "Published" in left.get_title() and "Miniature" in right.get_title()
    plots.plt.close(figure)
    only = RowRuns(control.TABLE.rows[0], made[0].folders)
    figure = plots.table_figure(control.TABLE, "tiny", None, scores(control.TABLE, [only], "tiny"))
    assert len(figure.axes) == 1
    plots.plt.close(figure)


# Making and finding runs ----------------------------------------------------------------------------------------------


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


def test_paper_scale_takes_local_copies_from_the_environment(tmp_path, monkeypatch, own_data_root):
    monkeypatch.setenv("EVAL_DATA_ROOT", str(own_data_root))
    with pytest.raises(UserError, match="5 things are missing"):
        run_table(TABLE, "paper", engine="transformers", results=tmp_path)


def _paper_training(root: Path, name: str, overrides: tuple[str, ...] = (), seed: int = 0) -> Path:
    recipe = load_recipe(name, overrides, scale="paper", seed=seed).model_dump()
    folder = fake_training(root / f"train-{name}-paper-seed{seed}-{len(overrides)}", [{}], recipe)
    (folder / "checkpoint").mkdir()
    return folder


def test_unpublished_rows_at_paper_scale_name_the_training_command(tmp_path, monkeypatch, own_data_root):
    """Nothing but the base could be measured: every row is named. With one trained here, only the base is missing."""
    monkeypatch.setenv("EVAL_DATA_ROOT", str(own_data_root))
    with pytest.raises(UserError) as error:
        run_table(get_table(1), "paper", engine="transformers", results=tmp_path)
    assert "8 things are missing" in str(error.value)
    assert "no checkpoint was published; train it with `make train RECIPE=table1_gpg_age SCALE=paper`" in str(
        error.value
    )
    _paper_training(tmp_path / "runs", "table1_gpg_age")
    with pytest.raises(UserError, match="1 things are missing"):
        run_table(get_table(1), "paper", engine="transformers", results=tmp_path)


def test_trainings_with_other_settings_do_not_count(tmp_path):
    _paper_training(tmp_path, "table1_gpg_age", ("max_steps=3",))
    assert finished_trainings("table1_gpg_age", "paper", tmp_path) == {}
    good = _paper_training(tmp_path, "table1_gpg_age", seed=2)
    assert finished_trainings("table1_gpg_age", "paper", tmp_path) == {2: good}
    (good / "checkpoint").rmdir()
    assert finished_trainings("table1_gpg_age", "paper", tmp_path) == {}


def test_figures_at_paper_scale_train_nothing(tmp_path):
    with pytest.raises(UserError, match="make train RECIPE=table1_gpg_age SCALE=paper"):
        recipe_trainings("table1_gpg_age", "paper", results=tmp_path)
    folder = _paper_training(tmp_path / "runs", "table1_gpg_age")
    assert recipe_trainings("table1_gpg_age", "paper", results=tmp_path) == ({0: folder}, "this machine")


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        run_table(TABLE, "tinny", results=tmp_path)
    with pytest.raises(UserError, match="SEEDS 0"):
        run_table(TABLE, "tiny", seeds=0, results=tmp_path)
    with pytest.raises(UserError, match="SEEDS -1"):
        build_table(3, "tiny", seeds=-1, results=tmp_path)
    with pytest.raises(UserError, match="unknown engine"):
        run_table(TABLE, "tiny", engine="vlm", results=tmp_path)
    with pytest.raises(UserError, match="unknown table"):
        get_table(13)


def test_reference_goes_and_comes_by_recipe_and_seed(made, tmp_path):
    target = tmp_path / "reference"
    bystander = fake_evaluation(target / "tiny" / "table3_gpg_rs1" / "seed7", 1)
    steps = fake_training(tmp_path / "training", [{}])
    (steps / "checkpoint").mkdir()
    made[1].trainings[1] = steps
    saved = save_reference(made, "tiny", target)
    names = ["base/base-wei/seed0", "table3_gpg_rs1/seed0", "table3_gpg_rs1/seed1"]
    assert [str(p.relative_to(target / "tiny")) for p in saved] == names
    assert bystander.is_dir()
    assert sorted(p.name for p in (saved[2] / "training").iterdir()) == ["run.json", "steps.jsonl"]
    save_reference(made, "tiny", target)  # replaces, does not pile up
    found = {entry.row.key: entry for entry in reference_runs(TABLE, "tiny", target)}
    assert set(found) == {"base", "gpg_rs1"}
    assert list(found["gpg_rs1"].folders) == [0, 1, 7] and list(found["gpg_rs1"].trainings) == [1]
    assert not reference_runs(TABLE, "smoke", target)


def test_a_table_takes_the_base_its_rows_started_from(tmp_path):
    for right, weights in ((3, "aaaaaaaa-first"), (7, "bbbbbbbb-second")):
        folder = fake_evaluation(tmp_path / "tiny" / "base" / weights[:8] / "seed0", right)
        run = json.loads((folder / "run.json").read_text())
        run["model"]["weights"] = weights
        (folder / "run.json").write_text(json.dumps(run))
    assert base_record("tiny", [], TINY_SUITES, tmp_path).parent.name == "aaaaaaaa"  # nothing to go by
    row = tmp_path / "tiny" / "table3_gpg_rs1" / "seed0"
    fake_evaluation(row, 9)
    training = fake_training(row / "training", [{}])
    run = json.loads((training / "run.json").read_text())
    run["base"]["weights"] = "bbbbbbbb-second"
    (training / "run.json").write_text(json.dumps(run))
    found = {entry.row.key: entry for entry in reference_runs(TABLE, "tiny", tmp_path)}
    assert found["base"].folders[0].parent.name == "bbbbbbbb"
    assert [entry.row.key for entry in reference_runs(TABLE, "tiny", tmp_path)] == ["base", "gpg_rs1"]


def test_no_seeds_shows_the_committed_records_without_running(made, tmp_path, monkeypatch, capsys):
    target = tmp_path / "reference"
    save_reference(made, "tiny", target)
    monkeypatch.setattr(report, "run_table", lambda *a, **k: pytest.fail("nothing should run"))
    shown = build_table(3, "tiny", results=tmp_path / "results", reference=target)
    assert shown.runs == [] and shown.origin == "committed records" and "committed" in capsys.readouterr().out
    assert "GRPO on open-s1): no committed record yet." in " ".join(shown.notes)
    assert "+25.0 points over our own base" in shown.summary()
    asked = []
    monkeypatch.setattr(report, "run_table", lambda *a, seeds, **k: asked.append(seeds) or made)
    for scale, seeds in (("smoke", 0), ("tiny", 2)):  # no records at smoke: one seed; asked for two: two
        made_here = build_table(3, scale, seeds=seeds, results=tmp_path / "results", reference=target, progress=False)
        assert made_here.runs is made
    assert asked == [1, 2]


def test_committed_records_hold_three_seeds_and_reproduce():
    """Every committed sample is there, every mark adds up, and RL gains at least ten points with every seed."""
    found = reference_runs(TABLE, "tiny")
    by_key = {entry.row.key: entry for entry in found}
    assert set(by_key) == {row.key for row in TABLE.rows_at("tiny")}
    frame = scores(TABLE, found, "tiny")
    averages = frame.query("column == 'average' and rule == 'published'").set_index("row")
    for key, entry in by_key.items():
        assert len(entry.folders) == (1 if key == "base" else 3)
        assert list(entry.trainings) == ([] if key == "base" else [0, 1, 2])
        assert averages.loc[key, "failed"] == 0
        if key != "base":
            assert averages.loc[key, "seed_low"] >= averages.loc["base", "mean"] + 0.10, key
    for entry in found:
        for folder in entry.folders.values():
            assert "/" not in json.dumps(records.read_run(folder).model["name"])


# The driver of committed records --------------------------------------------------------------------------------------


def test_jobs_name_every_recipe_and_seed_once():
    jobs = [(row.run, seed) for _, row, seed in reference.jobs(["1", "11", "12", "control"], "tiny", range(2))]
    assert len(jobs) == len(set(jobs)) and jobs[0] == ("base", 0) and ("base", 1) not in jobs
    assert [run for run, seed in jobs if seed == 0 and run == "table1_gpg_std"] == ["table1_gpg_std"]
    assert jobs.index(("control_mean_clipped", 0)) < jobs.index(("table1_gpg", 1))  # seed by seed


def _weights(monkeypatch):
    import gpg_repro.train

    monkeypatch.setattr(gpg_repro.train, "base_model", lambda *a: "x")
    monkeypatch.setattr(reference, "check_model", lambda *a: {"weights": "base-weights"})


def test_driver_goes_on_after_a_failure_and_resumes(tmp_path, monkeypatch, capsys):
    _weights(monkeypatch)
    made, broken = [], {"table12_gpg_kl"}

    def run_row(table, row, recipe, like, *, engine, root, progress):
        name = recipe.name if recipe else "base"
        if name in broken:
            raise RuntimeError("out of memory")
        made.append(name)
        folder = fake_evaluation(root / f"{name}{len(made)}", 9)
        return folder, recipe and fake_training(root / f"t{name}{len(made)}", [{}], recipe.model_dump())

    monkeypatch.setattr(reference, "run_row", run_row)
    arguments = {"results": tmp_path / "results", "target": tmp_path / "reference"}
    failures = reference.make(["kl"], "smoke", [0], **arguments)
    assert made == ["base", "table1_gpg_std", "table1_grpo"]
    assert failures == ["table12_gpg_kl seed 0: RuntimeError: out of memory"]
    broken.clear()
    assert not reference.make(["kl"], "smoke", [0], **arguments)
    assert made[3:] == ["table12_gpg_kl"]  # the others were there already
    assert "table1_grpo seed 0: committed" in capsys.readouterr().out
    assert {e.row.key for e in reference_runs(get_table("kl"), "smoke", arguments["target"])} == {
        "base", "gpg_std", "gpg_kl", "grpo",
    }  # fmt: skip


def test_a_record_of_another_recipe_or_base_is_made_again(tmp_path):
    row = get_table(1).rows[2]
    folder = fake_evaluation(tmp_path / "smoke" / row.run / "seed0", 9)
    assert not reference.is_committed(row, "smoke", 0, "base-weights", tmp_path)  # no training beside it
    fake_training(folder / "training", [{}], load_recipe(row.recipe, scale="smoke").model_dump())
    assert reference.is_committed(row, "smoke", 0, "base-weights", tmp_path)
    assert not reference.is_committed(row, "smoke", 0, "other-weights", tmp_path)
    assert not reference.is_committed(row, "smoke", 1, "base-weights", tmp_path)
    other = load_recipe(row.recipe, ["learning_rate=0.5"], scale="smoke").model_dump()
    record = records.read_run(folder / "training").model_copy(update={"recipe": other})
    records.write_json(folder / "training" / "run.json", record)
    assert not reference.is_committed(row, "smoke", 0, "base-weights", tmp_path)


def test_driver_refuses_before_any_work(tmp_path, capsys):
    assert reference.main(["--scale", "paper"]) == 2
    assert reference.main(["--tables", "13", "--target", str(tmp_path)]) == 2
    assert "unknown table '13'" in capsys.readouterr().err


# Texts computed from data ---------------------------------------------------------------------------------------------


def _control(tmp_path, norms: dict[str, float], right: dict[str, int]):
    rows = {row.key: row for row in control.TABLE.rows}
    return [
        RowRuns(
            rows[key],
            {0: fake_evaluation(tmp_path / key, right[key])},
            {0: fake_training(tmp_path / f"t{key}", [{"grad_norm": norm}] * 3)},
        )
        for key, norm in norms.items()
    ]


@pytest.mark.parametrize(
    ("norm", "sentence"),
    [(0.9, "Clipping acted on every step"), (0.1, "Clipping never acted"), (None, "on some steps only")],
)
def test_control_tells_whether_clipping_acted(tmp_path, norm, sentence):
    norms = {"age_clipped": norm or 0.9, "one_clipped": norm or 0.1}
    text = control.findings(_control(tmp_path, norms, {"age_clipped": 15, "one_clipped": 9}), "tiny")
    assert sentence in text
    assert "α = B/(B−M) against α = 1: +30.0 points" in text and "Without" not in text
    assert text.endswith("1 training seed: told apart on items alone (fewer than 3 seeds).")


@pytest.mark.parametrize(
    ("with_kl", "words"),
    [(9, "lowered the Average by 5.0"), (12, "raised the Average by 10.0"), (10, "where it was")],
)
def test_kl_direction_falls_either_way(tmp_path, with_kl, words):
    rows = {row.key: row for row in table_12.KL_ABLATION.rows}
    found = [
        RowRuns(rows["gpg_std"], {0: fake_evaluation(tmp_path / "a", 10)}),
        RowRuns(
            rows["gpg_kl"], {0: fake_evaluation(tmp_path / "b", with_kl)}, {0: fake_training(tmp_path / "t", [{}])}
        ),
        RowRuns(rows["grpo"], {0: tmp_path}, {0: fake_training(tmp_path / "u", [{"grad_norm": 0.1001}])}),
    ]
    text = table_12.kl_direction(found, "tiny")
    assert words in text and "at most 1.0e-03 (1 seed(s))" in text


# Tables 2 and 9 -------------------------------------------------------------------------------------------------------


def test_losses_of_table_9():
    batch = table_09.toy_batch()
    identities = table_09.identities(batch)
    assert identities["holds"].all() and len(identities) == 5
    assert (identities["off_policy"].iloc[:4] > 0.05).all()  # ratios tell them apart; the last has none
    frame = table_09.compare(batch).set_index(["method", "policy"])
    assert frame.loc[("GPG", "on"), "loss"] == frame.loc[("GPG", "off"), "loss"]
    assert (
        frame.loc[("GRPO", "on"), "gradient_norm"] != frame.loc[("GRPO, β = 0", "on"), "gradient_norm"]
    )  # the KL term
    assert 0 < frame.loc[("GRPO", "off"), "clipped"] < 1
    eq24 = table_09.equation_24(batch)
    assert 0.9 < eq24["cosine"] < 1 - 1e-6 and 1.7 < eq24["ratio"] < 2.01  # stds 0.500 and 0.577


def test_pull_on_a_token_against_its_ratio():
    """PPO: rho inside the range, 0 above 1.2 for A = 1 and below 0.8 for A = -1; DAPO's upper end is 1.28; GPG: 1."""
    import torch

    ratios = torch.tensor([0.5, 0.9, 1.1, 1.25, 1.5], dtype=torch.float64)
    pulls = table_09.multipliers(ratios)
    assert pulls["PPO, GRPO, Dr. GRPO"][0] == pytest.approx([0.5, 0.9, 1.1, 0, 0])
    assert pulls["PPO, GRPO, Dr. GRPO"][1] == pytest.approx([0, -0.9, -1.1, -1.25, -1.5])
    assert pulls["DAPO"][0] == pytest.approx([0.5, 0.9, 1.1, 1.25, 0])
    assert pulls["GPG"] == (pytest.approx([1.0] * 5), pytest.approx([-1.0] * 5))


def test_table_9_writes_its_files(tmp_path):
    losses = table_09.build_losses("smoke", results=tmp_path)
    assert "NOT hold" not in losses.text and losses.formulas.count("\n") == len(table_09.METHODS) + 1
    assert {p.suffix for p in tmp_path.glob("*/smoke/table09.*")} == {".md", ".csv", ".html", ".png", ".svg"}
    plots.plt.close("all")


@pytest.mark.full("every trainer takes a step")
def test_inspection_of_table_2(tmp_path, monkeypatch):
    """Asked by gradients: GRPO has a ratio, clipping, a KL term and a reference model; GPG none, and fewer passes."""
    monkeypatch.setattr(
        table_02, "RECIPES", {"GRPO": "table1_grpo", "Dr. GRPO": "table1_dr_grpo", "GPG": "table1_gpg_age"}
    )
    monkeypatch.setattr(table_02, "inspected", lambda method: table_02.inspect_method(method, table_02.RECIPES[method]))
    matrix = table_02.build_matrix("smoke", results=tmp_path)
    ours = matrix.frame["our code, found by inspection"]
    assert ours.loc["GRPO"].tolist() == ["no", "yes", "yes", "yes"]
    assert ours.loc["Dr. GRPO"].tolist() == ["no", "no", "yes", "yes"]
    assert ours.loc["GPG"].tolist() == ["no", "no", "no", "no"]
    assert ours.loc["PPO"].tolist() == ["–"] * 4
    for method in ("GRPO", "GPG"):
        assert f"{method}: our trainer has exactly the printed components." in matrix.text
    cost = matrix.cost
    assert cost.loc["GRPO", "× policy"] == "2.00" and cost.loc["GPG", "× policy"] == "1.00"
    assert cost.loc["GRPO", "without gradient"] == "1.00" and cost.loc["GPG", "without gradient"] == "0.00"
    share = cost.loc["GPG", "share of valid groups"]
    assert cost.loc["GPG", "forward passes per completion, with gradient"] == share and float(share) < 1
    plots.plt.close("all")


def test_an_inspection_is_kept_until_something_it_depends_on_changes(tmp_path, monkeypatch):
    asked = []

    def inspect(method: str, recipe: str) -> table_02.Inspection:
        asked.append(recipe)
        yes_no, counts = (False, True, True, True, True, False), (len(asked), 2, 3, 4)
        return table_02.Inspection(
            method, *yes_no, *counts, share_valid=1 / 3, passes_with_gradient=0.1, passes_without_gradient=2.0
        )

    def ask(method: str = "GRPO") -> int:
        """Which inspection the answer is from."""
        table_02.inspected.cache_clear()  # as a new process would
        found = table_02.inspected(method)
        assert (found.method, found.share_valid, found.surrogate) == (method, 1 / 3, True)
        return found.policy_parameters

    def write(path: Path, text: str, age: float = 3600) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (fingerprints._STARTED - age,) * 2)

    sources, cache = tmp_path / "sources", tmp_path / "cache"
    code = [
        sources / name for name in ("gpg_repro/trainer.py", "gpg_repro/recipes/a.yaml", "eval_harness/graders/b.py")
    ]
    for path in code:
        write(path, "1")
    monkeypatch.setattr(table_02, "inspect_method", inspect)
    monkeypatch.setattr(table_02, "_SOURCES", sources)
    monkeypatch.setenv("GPG_CACHE", str(cache))
    assert [ask(), ask(), ask("GPG"), ask("GPG"), ask()] == [1, 1, 2, 2, 1]
    for count, path in enumerate(code, start=3):
        write(path, "2")
        assert [ask(), ask()] == [count, count], path
    monkeypatch.setattr(fingerprints, "packages", lambda: (b"trl 99.0",))
    assert [ask(), ask()] == [6, 6]
    write(cache / "tiny-base-smoke-seed0-x" / "model.safetensors", "other weights")
    assert [ask(), ask()] == [7, 7]
    monkeypatch.setattr(table_02, "_processor", lambda: "another")
    assert [ask(), ask()] == [8, 8]
    # The process may run what was there when it started: nothing is read, nothing kept.
    write(code[0], "3", age=-60)
    assert [ask(), ask()] == [9, 10]
    write(code[0], "2", age=-60)
    assert ask() == 11
    write(code[0], "2")
    assert ask() == 8
    table_02.inspected.cache_clear()


def test_sources_that_change_during_an_inspection(tmp_path, monkeypatch):
    """What was found is of neither the old code nor the new: it is shown, not kept."""
    path = tmp_path / "gpg_repro" / "a.py"
    path.parent.mkdir()
    path.write_text("1")
    os.utime(path, (fingerprints._STARTED - 3600,) * 2)
    found = table_02.Inspection("GPG", *[False] * 6, 1, 2, 3, 4, 0.5, 0.5, 0.5)

    def inspect(method: str, recipe: str) -> table_02.Inspection:
        path.write_text("2")
        os.utime(path)
        return found

    monkeypatch.setattr(table_02, "inspect_method", inspect)
    monkeypatch.setattr(table_02, "_SOURCES", tmp_path)
    monkeypatch.setenv("GPG_CACHE", str(tmp_path / "cache"))
    table_02.inspected.cache_clear()
    assert table_02.inspected("GPG") is found
    assert not list((tmp_path / "cache" / "inspections").glob("*.json"))
    table_02.inspected.cache_clear()


def test_a_critic_would_be_seen():
    import torch

    plain, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    assert not table_02._has_scalar_head(plain) and table_02._has_scalar_head(torch.nn.Sequential(plain, head))
