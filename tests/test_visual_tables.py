"""Tables 5 to 8 on records made by hand: two rules, groups, totals, masks, a training per column, two sources."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from test_tables import fake_training
from visual_records import by_group, evaluation, item, masks, sample

from eval_harness import masks as mask_marks
from eval_harness import records
from eval_harness.errors import UserError
from gpg_repro import plots
from gpg_repro.published import published_table
from gpg_repro.recipe import load_recipe
from gpg_repro.tables import get_table, reference
from gpg_repro.tables import runs as table_runs
from gpg_repro.tables.base import BASE, RowRuns, published_scores
from gpg_repro.tables.layouts import comparison_layout, flat, layout, provenance
from gpg_repro.tables.numbers import difference, differences, gains, scores, training_layout, training_summary
from gpg_repro.tables.printed import arithmetic_notes, attainability, implied_difference, implied_interval
from gpg_repro.tables.report import build_table, notes_for
from gpg_repro.tables.rules import disagreement_layout, disagreements
from gpg_repro.tables.runs import base_record, reference_runs, run_table, save_reference

matplotlib.use("agg")
GEOQA, SPECIES, SCENES, GROUNDING = (get_table(number) for number in (5, 6, 7, 8))
VISUAL = [GEOQA, SPECIES, SCENES, GROUNDING]
ROWS = {(table.number, row.key): row for table in VISUAL for row in table.rows}
SETS = ("flowers102", "pets37", "fgvc_aircraft", "cars196")


def scenes(folder: Path, published: list[bool], strict: list[bool] | None = None, name: str = "cvbench") -> Path:
    """CV-Bench with as many items as marks, the four tasks in equal parts, the three strata in turn."""
    items = by_group(name, len(published) // 4)
    pairs = zip(published, published if strict is None else strict, strict=True)
    return evaluation(folder, {name: (items, [sample(i, p, s) for i, (p, s) in enumerate(pairs)])})


def species(folder: Path, names: dict[str, int], num: int = 10, suffix: str = "") -> Path:
    """Classification sets with the first so many of ``num`` items right; the strict rule takes one more away."""
    return evaluation(
        folder,
        {
            name: ([item(i) for i in range(num)], [sample(i, i < right, i < right - 1) for i in range(num)])
            for name, right in names.items()
        },
    )


def species_row(key: str, root: Path, right: dict[str, int], seeds: tuple[int, ...] = (0,), scale="paper") -> RowRuns:
    """A row of Table 6 with one training and one evaluation per set."""
    parts = {}
    for part, column in zip(SPECIES.parts(ROWS[6, key]), SPECIES.columns, strict=True):
        name = column.benchmark_at(scale)
        if name in right:
            folders = {k: species(root / f"{key}-{name}-{k}", {name: right[name] + k}) for k in seeds}
            trainings = {k: fake_training(root / f"t-{key}-{name}-{k}", [{}]) for k in seeds}
            parts[column.title] = RowRuns(part, folders, trainings)
    return RowRuns(ROWS[6, key], parts=parts)


def line(frame: pd.DataFrame, row: str, column: str, rule: str) -> pd.Series:
    (found,) = [entry for _, entry in frame.iterrows() if (entry.row, entry.column, entry.rule) == (row, column, rule)]
    return found


# Specifications -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", VISUAL, ids=lambda t: t.stem)
def test_each_row_has_one_source_and_its_numbers(table):
    printed = published_scores(table)
    paper, readme, poster = (published_table(table.published, s) for s in ("paper-v3", "readme", "poster"))
    wanted = [table.headline, *(column.title for column in table.printed_columns)]
    for row in table.rows:
        source = readme if row.key == "gpg_r2" else paper
        assert row.published_source == ("readme" if row.key == "gpg_r2" else "paper-v3")
        assert printed.loc[row.key, wanted].tolist() == source.loc[row.published, wanted].tolist()
    assert poster.drop(columns="mark").equals(readme.drop(columns="mark"))  # so README rows stand for both
    assert printed.loc["gpg_r0", table.headline] != printed.loc["gpg_r2", table.headline]
    assert set(wanted) == set(paper.columns) - {"mark"}  # no printed column is missing
    assert table.several_sources and not get_table(1).several_sources


@pytest.mark.parametrize("table", VISUAL, ids=lambda t: t.stem)
def test_recipes_start_from_the_base_of_the_family(table):
    parts = [part for row in table.rows for part in table.parts(row) if part.recipe]
    bases = {load_recipe(part.recipe, scale="tiny").setup.base for part in parts}
    assert len(bases) == 1 and bases.pop().startswith("tiny_vl_")
    for part in parts:
        if part.paper_recipe:
            assert load_recipe(part.recipe, scale="paper").scale == "paper"
        else:
            with pytest.raises(UserError):
                load_recipe(part.recipe, scale="paper")


def test_a_row_with_a_recipe_per_column_falls_into_parts():
    parts = SPECIES.parts(ROWS[6, "grpo"])
    assert [part.run for part in parts] == [f"table6_{name}_grpo" for name in SETS]
    assert [SPECIES.measured_on(part, "paper") for part in parts] == [(name,) for name in SETS]
    assert parts[1].label == "GRPO, Pets37" and len({part.tiny_label for part in parts}) == 4
    assert SPECIES.measured_on(ROWS[6, "base"], "paper") == SETS
    with pytest.raises(ValueError, match="4 runs"):
        _ = ROWS[6, "grpo"].run


# Numbers --------------------------------------------------------------------------------------------------------------


def test_totals_by_hand(tmp_path):
    """Published 7 of 12; strict right are 0, 2, 5, 8: strata in turn, so the third has 3 of 4, the first 1 of 4."""
    published, strict = [i < 7 for i in range(12)], [i in (0, 2, 5, 8) for i in range(12)]
    entry = RowRuns(ROWS[7, "gpg_r0"], {0: scenes(tmp_path / "a", published, strict)})
    frame = scores(SCENES, [entry], "paper")
    assert line(frame, "gpg_r0", "total", "published")["mean"] == pytest.approx(7 / 12)
    assert line(frame, "gpg_r0", "total", "strict")["mean"] == pytest.approx(0.25 * 1 / 4 + 0.25 * 0 + 0.5 * 3 / 4)
    task = {c: line(frame, "gpg_r0", f"cvbench/{c}", "published") for c in ("Count", "Relation", "Depth", "Distance")}
    assert [task[c]["mean"] for c in task] == pytest.approx([1, 1, 1 / 3, 0])
    assert {cell["num_items"] for cell in task.values()} == {3}
    assert line(frame, "gpg_r0", "cvbench/Count", "strict")["mean"] == pytest.approx(2 / 3)


def test_differences_weigh_strata_as_the_total_does(tmp_path):
    """Mine right on all of Omni3D (items 2, 5, 8, 11), the other on all of ADE20K (0, 3, 6, 9)."""
    mine = RowRuns(ROWS[7, "gpg_r0"], {0: scenes(tmp_path / "a", [i % 3 == 2 for i in range(12)])})
    other = RowRuns(ROWS[7, "grpo"], {0: scenes(tmp_path / "b", [i % 3 == 0 for i in range(12)])})
    assert difference(SCENES, mine, other, "paper")["difference"] == pytest.approx(0.0)
    strict = difference(SCENES, mine, other, "paper", "strict")
    assert strict["difference"] == pytest.approx(50 - 25)
    # no spread in any stratum: what Wilson leaves open of 0 of 4 items, z^2 / (4 + z^2) = 48.99 %, in all three
    assert (strict["low"], strict["high"]) == (pytest.approx(25 - 48.99, abs=0.01), pytest.approx(25 + 48.99, abs=0.01))
    assert not strict["apart"]
    count = difference(SCENES, mine, other, "paper", column=SCENES.columns[0])
    assert (count["num_items"], count["difference"]) == (3, pytest.approx(0.0))


def test_one_item_per_stratum_tells_nobody_apart(tmp_path):
    mine = RowRuns(ROWS[7, "gpg_r0"], {0: scenes(tmp_path / "a", [True] * 4)})
    other = RowRuns(ROWS[7, "grpo"], {0: scenes(tmp_path / "b", [False] * 4)})
    d = difference(SCENES, mine, other, "paper", "strict")
    assert d["difference"] == pytest.approx(100) and pd.isna(d["low"]) and not d["apart"]
    shown = comparison_layout(SCENES, "paper", differences(SCENES, [mine, other], "paper", rule="strict"))
    assert shown.loc["GPG (R0) − GRPO", ("measured here", "difference [95 % over items]")] == "+100.0"


def test_marks_between_0_and_1(tmp_path):
    """IoU .2 .4 .6 .8 against .1 on each: difference .4, standard deviation .2582, t(3) = 3.1824."""

    def grounding(folder, marks):
        items = [item(i, "test") for i in range(len(marks))]
        return evaluation(folder, {"lisa": (items, [sample(i, m, m / 2) for i, m in enumerate(marks)])})

    mine = RowRuns(ROWS[8, "gpg_r0"], {0: grounding(tmp_path / "a", [0.2, 0.4, 0.6, 0.8])})
    other = RowRuns(ROWS[8, "grpo"], {0: grounding(tmp_path / "b", [0.1] * 4)})
    d = difference(GROUNDING, mine, other, "paper")
    assert d["difference"] == pytest.approx(40) and d["high"] - 40 == pytest.approx(
        3.1824 * 100 * 0.25820 / 2, rel=1e-3
    )
    assert difference(GROUNDING, mine, other, "paper", "strict")["difference"] == pytest.approx(20)
    frame = scores(GROUNDING, [mine], "paper")
    assert line(frame, "gpg_r0", "lisa/test", "published")["mean"] == pytest.approx(0.5)
    assert set(frame["column"]) == {"lisa/test"}  # no val items, no masks: no lines, not zeros


def test_masks_of_images_without_a_polygon_are_left_out(tmp_path):
    items = [item(i, "test") for i in range(3)] + [item(3, "val")]
    folder = evaluation(tmp_path / "a", {"lisa": (items, [sample(i, 0.5, 0.5) for i in range(4)])})
    masks(folder, "lisa", [(0.6, 0.3), (None, None), (0.2, 0.1), (1.0, 1.0)])
    frame = scores(GROUNDING, [RowRuns(ROWS[8, "grpo"], {0: folder})], "paper")
    published, strict = (line(frame, "grpo", "lisa/test/mask_iou", rule) for rule in ("published", "strict"))
    assert (published["mean"], strict["mean"], published["num_items"]) == (pytest.approx(0.4), pytest.approx(0.2), 2)


def test_a_further_mark_has_one_rule(tmp_path):
    """GEOQA's tag-based reading: an answer without it counts as wrong, and no strict twin is made up."""
    samples = [sample(0, True, True, extra={"tag": 1.0}), sample(1, True, False)]
    entry = RowRuns(ROWS[5, "grpo"], {0: evaluation(tmp_path / "a", {"geoqa": ([item(0), item(1)], samples)})})
    frame = scores(GEOQA, [entry], "paper")
    assert line(frame, "grpo", "geoqa/tag", "published")["mean"] == 0.5
    assert frame.query("rule == 'strict'")["column"].tolist() == ["geoqa"]
    shown = layout(GEOQA, "paper", frame)
    titles = [column for top, column in shown.columns if "strict rule" in top]
    assert titles == ["GEOQA_Test"]


def test_an_average_over_parts(tmp_path):
    """8, 6, 4, 2 of 10 with seed 0 and one more with seed 1: 50 and 60 %; the strict rule takes one of ten."""
    entry = species_row("gpg_r2", tmp_path, dict(zip(SETS, (8, 6, 4, 2), strict=True)), seeds=(0, 1))
    base = RowRuns(ROWS[6, "base"], {0: species(tmp_path / "base", dict.fromkeys(SETS, 2))})
    frame = scores(SPECIES, [base, entry], "paper")
    average = line(frame, "gpg_r2", "average", "published")
    assert (average["mean"], average["seed_low"], average["seed_high"]) == pytest.approx((0.55, 0.5, 0.6))
    assert (average["num_items"], average["num_seeds"]) == (40, 2)
    assert line(frame, "gpg_r2", "average", "strict")["mean"] == pytest.approx(0.45)
    (gain,) = gains(SPECIES, [base, entry], "paper").itertuples()
    assert (gain.difference, gain.seed_min, gain.seed_max) == pytest.approx((35, 30, 40))
    assert provenance([entry])["row"].tolist()[::2] == [f"gpg_r2, {c.title}" for c in SPECIES.columns]


def test_a_row_that_lacks_a_part_has_no_average(tmp_path):
    entry = species_row("grpo", tmp_path, {"flowers102": 3, "pets37": 4})
    frame = scores(SPECIES, [entry], "paper")
    assert set(frame["column"]) == {"flowers102", "pets37"}
    shown = layout(SPECIES, "paper", frame)
    assert shown.loc["GRPO", ("measured here, published rule", "Average")] == "–"
    assert shown.loc["GRPO", ("measured here, published rule", "Pets37")].startswith("40.0 [")
    base = RowRuns(ROWS[6, "base"], {0: species(tmp_path / "base", dict.fromkeys(SETS, 2))})
    assert difference(SPECIES, entry, base, "paper") is None and not len(gains(SPECIES, [base, entry], "paper"))


def test_seeds_that_only_some_parts_have_are_not_used(tmp_path):
    entry = species_row("grpo", tmp_path, dict.fromkeys(SETS, 4), seeds=(0, 1))
    entry.parts["FGVC"].folders.pop(1)
    average = line(scores(SPECIES, [entry], "paper"), "grpo", "average", "published")
    assert (entry.seeds, average["num_seeds"], average["mean"]) == ([0], 1, pytest.approx(0.4))


def test_disagreements_are_counted(tmp_path):
    samples = [
        sample(0, True, False, flags=("empty_answer",)),
        sample(1, False, True),
        sample(2, True, True),
        sample(3, 0.4, 0.3),
    ]
    folder = evaluation(tmp_path / "a", {"geoqa": ([item(i) for i in range(4)], samples)})
    frame = disagreements(GEOQA, [RowRuns(ROWS[5, "grpo"], {0: folder})], "paper")
    (found,) = frame.itertuples()
    assert (found.num_samples, found.kinder, found.harsher, found.flags) == (4, 2, 1, "empty_answer: 1")
    assert disagreement_layout(frame).loc["GRPO", "published rule kinder"] == "2 (50.0 %)"
    assert len(disagreement_layout(disagreements(GEOQA, [], "paper"))) == 0


def test_supervised_trainings_have_dashes(tmp_path):
    sft = fake_training(tmp_path / "sft", [{}])
    (sft / "steps.jsonl").write_text('{"step": 1, "loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-4}\n')
    rl = fake_training(tmp_path / "rl", [{"num_dropped_groups": 3}] * 2)
    entries = [RowRuns(ROWS[7, k], {0: tmp_path}, {0: f}) for k, f in (("sft", sft), ("grpo", rl))]
    summary = training_summary(entries, "tiny")
    shown = training_layout(summary)
    assert shown.loc["SFT", ["mean α applied", "draws per step", "valid groups dropped"]].tolist() == ["–"] * 3
    assert shown.loc["SFT", "sampled reward, last 10 steps"] == "–" and shown.loc["SFT", "steps clipped"] == "100 %"
    assert shown.loc["GRPO", "valid groups dropped"] == "6"
    frames = {label: [records.steps_frame(folder)] for label, folder in (("SFT", sft), ("GRPO", rl))}
    figure = plots.training_figure({"one": frames, "two": frames}, {"SFT": "sft", "GRPO": "grpo"})
    assert len(figure.axes) == 6 and figure.get_suptitle() == "SFT: supervised, no rewards"
    assert figure.axes[3].get_title().startswith("two: ") and len(figure.axes[3].lines) == 1
    plots.plt.close(figure)


# The printed numbers --------------------------------------------------------------------------------------------------


def test_the_printed_totals_against_the_tasks_counts():
    notes = arithmetic_notes(SCENES)
    base = "Qwen2-VL-2B: 431 + 146 + 1 + 190 = 768 of 2638 right is 29.113; the printed Total is 31.38."
    assert base in notes
    assert "GPG (R2): 525 + 541 + 490 + 453 = 2009 of 2638 right is 76.156; the printed Total 76.15 is that with" in (
        " ".join(notes)
    )
    assert not [note for note in notes if note.startswith("GPG (R0)")]  # 1823 of 2638 is 69.105 and prints as 69.11
    assert len(arithmetic_notes(GEOQA)) == len(arithmetic_notes(GROUNDING)) == 0


@pytest.mark.parametrize(
    ("percent", "items", "verdict"),
    [(35.41, 754, "rounded"), (35.42, 754, "none"), (50.80, 754, "rounded"), (60.02, 788, "cut"), (54.16, 600, "cut")],
)
def test_attainability_with_two_decimals(percent, items, verdict):
    assert attainability(percent, items, 2) == verdict


def test_implied_intervals_where_there_are_counts():
    printed = published_scores(SCENES)
    low, high = implied_interval(SCENES, printed.loc["gpg_r2"])
    assert (high - low) / 2 == pytest.approx(1.96 * 100 * (0.7615 * 0.2385 / 2638) ** 0.5, rel=1e-3)
    printed = published_scores(GEOQA)
    gap, low, high = implied_difference(GEOQA, printed.loc["gpg_r2"], printed.loc["gpg_r0"])
    assert gap == pytest.approx(0.53) and low < 0 < high
    printed = published_scores(GROUNDING)
    assert implied_interval(GROUNDING, printed.loc["base"]) is None  # IoU: no counts behind it
    assert implied_difference(GROUNDING, printed.loc["gpg_r2"], printed.loc["gpg_r0"])[1:] == (None, None)


# As people read them --------------------------------------------------------------------------------------------------


@pytest.fixture
def two_rows(tmp_path):
    base = RowRuns(ROWS[7, "base"], {0: scenes(tmp_path / "base", [i < 4 for i in range(24)], name="tiny_scenes")})
    made = scenes(tmp_path / "r2", [i < 16 for i in range(24)], [i < 12 for i in range(24)], name="tiny_scenes")
    return [base, RowRuns(ROWS[7, "gpg_r2"], {0: made}, {0: fake_training(tmp_path / "t", [{}])})]


def test_published_with_its_source_and_both_rules_beside(two_rows):
    frame = layout(SCENES, "tiny", scores(SCENES, two_rows, "tiny"))
    published = "published (source by row)"
    assert frame.loc["GPG (R0)", published][["source", "Total", "Depth"]].tolist() == ["paper v3", "69.11", "67.83"]
    assert frame.loc["GPG (R2)", published][["source", "Total", "Depth"]].tolist() == ["README", "76.15", "81.66"]
    blocks = list(dict.fromkeys(top for top, _ in frame.columns))
    assert blocks[1:] == [f"miniature, scale tiny, {rule} rule (not comparable)" for rule in ("published", "strict")]
    for block, total in zip(blocks[1:], ("66.7", "50.0"), strict=True):
        assert not {"Count", "Relation", "Depth", "Distance"} & set(frame[block].columns)  # names of their own
        assert frame.loc["GPG (R2)", (block, "Total")].startswith(total)
        assert frame.loc["GRPO", (block, "Total")] == "–"
    long = flat(SCENES, scores(SCENES, two_rows, "tiny"), "tiny", "this run")
    cell = long.query("row == 'gpg_r2' and column == 'total'").set_index("rule")
    assert cell.loc["published", ["published_total_percent", "published_source"]].tolist() == [76.15, "README"]
    assert pd.isna(cell.loc["strict", "published_total_percent"])


def test_comparisons_under_both_rules(two_rows):
    pairs = [("gpg_r2", "base")]
    ours, strict = (differences(SCENES, two_rows, "tiny", pairs, rule) for rule in ("published", "strict"))
    assert (ours["difference"].item(), strict["difference"].item()) == pytest.approx(
        (50.0, 34.375)
    )  # 1/2 - (2/8 + 1/8) / 4 - 1/8 / 2
    frame = comparison_layout(SCENES, "tiny", ours, strict)
    assert frame.loc["GPG (R2) − GPG (R0)", ("published (source by row)", "difference")] == "+7.04"
    assert frame.index.name == "Total of one row − another"


def test_notes_and_summary_say_what_differs(two_rows, tmp_path):
    save_reference(two_rows, "tiny", tmp_path / "reference")
    report = build_table(7, "tiny", results=tmp_path / "results", reference=tmp_path / "reference", progress=False)
    notes = " ".join(report.notes)
    assert "each has a row of its own" in notes and "Strict rule: the benchmark's own" in notes
    assert "the printed Total is 31.38" in notes and "SFT: no committed record yet." in notes
    text = report.summary()
    assert "in Total (committed records" in text and "(strict rule +34.4 [" in text
    assert "kinder to 4 and harsher to 0 of 24 answers" in text
    written = (tmp_path / "results" / "tables" / "tiny" / "table07.md").read_text(encoding="utf-8")
    assert "## The two rules (committed records)" in written
    assert "| 55.00 " in written  # as printed, not as a number
    figures = [report.figure(), report.columns_figure(), report.training_figure()]
    assert report.differences_figure() is None  # its pairs were not measured
    assert all(figures) and len(list((tmp_path / "results" / "figures" / "tiny").glob("table07*.png"))) == 3
    plots.plt.close("all")


def test_figures_show_the_strict_rule_hollow(two_rows):
    measured = scores(SCENES, two_rows, "tiny")
    figure = plots.table_figure(SCENES, "tiny", measured)
    marks = [m for m in figure.axes[1].lines if m.get_marker() == "o" and len(m.get_xdata())]
    assert sorted(m.get_markerfacecolor() == "white" for m in marks) == [False, False, True, True]
    assert any("README" in text.get_text() for text in figure.axes[0].get_yticklabels())
    columns = plots.columns_figure(SCENES, "tiny", measured)
    assert len(columns.axes) == 8 and columns.axes[0].get_title() == "published\nCount, %"
    below = [m for m in columns.axes[4].lines if m.get_marker() == "o" and len(m.get_xdata())]
    assert [m.get_xdata()[0] for m in below] == pytest.approx([4 / 6 * 100, 4 / 6 * 100, 100, 100])
    plots.plt.close("all")


def test_a_gallery_of_parts(tmp_path):
    """The base's one run and a row's four stand side by side, set by set; the page is written."""
    tiny = [column.tiny_benchmark for column in SPECIES.columns]
    entry = species_row("gpg_r2", tmp_path, dict.fromkeys(tiny, 6), scale="tiny")
    base = RowRuns(ROWS[6, "base"], {0: species(tmp_path / "base", dict.fromkeys(tiny, 2))})
    save_reference([base, entry], "tiny", tmp_path / "reference")
    report = build_table(6, "tiny", results=tmp_path / "results", reference=tmp_path / "reference", progress=False)
    made = report.gallery("base", "gpg_r2", "not_a_row", num=8)
    assert {card.benchmark for card in made.cards} == set(tiny)
    assert all(list(card.answers) == ["tiny base", "GPG (R2)"] for card in made.cards)
    assert (tmp_path / "results" / "figures" / "tiny" / "table06_gallery.html").exists()
    curves = report.training_figure()
    assert len(curves.axes) == 4 * 3
    plots.plt.close("all")


# Making, keeping and finding runs -------------------------------------------------------------------------------------


def test_records_of_parts_go_and_come(tmp_path):
    tiny = [column.tiny_benchmark for column in SPECIES.columns]
    entry = species_row("grpo", tmp_path, dict.fromkeys(tiny, 4), seeds=(0, 1), scale="tiny")
    base = RowRuns(ROWS[6, "base"], {0: species(tmp_path / "base", dict.fromkeys(tiny, 2))})
    target = tmp_path / "reference"
    save_reference([base, entry], "tiny", target)
    assert (target / "tiny" / "table6_pets37_grpo" / "seed1" / "training" / "steps.jsonl").exists()
    found = {e.row.key: e for e in reference_runs(SPECIES, "tiny", target)}
    assert set(found) == {"base", "grpo"} and found["grpo"].seeds == [0, 1]
    assert list(found["grpo"].parts) == [column.title for column in SPECIES.columns]
    kept = scores(SPECIES, list(found.values()), "tiny")
    assert kept.equals(scores(SPECIES, [base, entry], "tiny"))


def test_masks_are_kept_with_the_records(tmp_path):
    folder = evaluation(tmp_path / "a", {"tiny_grounding": ([item(0, "test")], [sample(0, 0.5, 0.5)])})
    masks(folder, "tiny_grounding", [(0.6, 0.3)])
    save_reference([RowRuns(ROWS[8, "grpo"], {0: folder})], "tiny", tmp_path / "reference")
    (found,) = reference_runs(GROUNDING, "tiny", tmp_path / "reference")
    frame = scores(GROUNDING, [found], "tiny")
    assert line(frame, "grpo", "tiny_grounding/test/mask_iou", "published")["mean"] == pytest.approx(0.6)


def test_a_base_of_another_family_is_no_base_of_this_table(tmp_path):
    folder = tmp_path / "tiny" / BASE
    evaluation(
        folder / "aaaaaaaa" / "seed0",
        {"tiny_scenes": (by_group("tiny_scenes", 1), [sample(i, True, True) for i in range(4)])},
        "aaaaaaaa-text",
    )
    assert base_record("tiny", [], SPECIES.benchmarks_at("tiny"), tmp_path) is None
    assert base_record("tiny", ["aaaaaaaa-text"], SPECIES.benchmarks_at("tiny"), tmp_path) is None
    assert base_record("tiny", [], SCENES.benchmarks_at("tiny"), tmp_path) == folder / "aaaaaaaa" / "seed0"
    assert not reference_runs(SPECIES, "tiny", tmp_path)


def test_jobs_of_families_and_parts():
    jobs = reference.jobs(["1", "6", "7", "11"], "tiny", range(2))
    bases = [table.stem for table, row, _ in jobs if row.run == BASE]
    assert len(bases) == 3 and {"table06", "table07"} < set(bases)
    names = [(row.run, seed) for _, row, seed in jobs if row.run != BASE]
    assert len(names) == len(set(names)) and ("table6_cars196_sft", 1) in names
    assert reference.any_recipe(SPECIES, "tiny").setup.base != reference.any_recipe(SCENES, "tiny").setup.base


def _no_models(monkeypatch, made: list) -> None:
    """Training and evaluation that leave records and nothing else."""
    from gpg_repro import train

    monkeypatch.setattr(train, "check_recipe", lambda recipe: None)
    monkeypatch.setattr(train, "base_model", lambda recipe, progress=True: "base")
    monkeypatch.setattr(table_runs, "check_model", lambda *a: {"weights": "base-weights"})
    monkeypatch.setattr(table_runs, "resolve_engine", lambda engine: "vllm" if engine == "auto" else engine)

    def trained(recipe, root, progress):
        folder = root / f"train-{recipe.name}-{recipe.scale}-seed{recipe.seed}"
        return folder if folder.exists() else fake_training(folder, [{}])

    def evaluated(model, benchmarks, *, engine, out, limit=None, **_):
        made.append((Path(model).parent.name if "train" in model else model, tuple(benchmarks), engine, limit))
        suites = {name: (by_group(name, 1) or [item(0)], None) for name in benchmarks}
        marks = {
            name: (items, [sample(i, True, True) for i in range(len(items))]) for name, (items, _) in suites.items()
        }
        return evaluation(out, marks)

    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(table_runs, "evaluate", evaluated)


def test_each_part_is_measured_on_its_own_set(tmp_path, monkeypatch):
    made: list = []
    _no_models(monkeypatch, made)
    found = run_table(SPECIES, "smoke", seeds=1, results=tmp_path, progress=False)
    tiny = SPECIES.benchmarks_at("smoke")
    assert made[0] == ("base", tiny, "vllm", 10)  # one base for the four sets
    assert [benchmarks for _, benchmarks, _, _ in made[1:5]] == [(name,) for name in tiny]
    assert made[1][0] == "train-table6_flowers102_sft-smoke-seed0" and len(made) == 1 + 16
    assert {engine for _, _, engine, _ in made[1:]} == {"transformers"}
    assert [entry.seeds for entry in found] == [[0]] * 5
    assert len(scores(SPECIES, found, "smoke").query("column == 'average'")) == 10


def test_a_training_per_column_is_measured_beside_the_next_one(tmp_path, monkeypatch):
    """The second training starts while the first is being measured; a failed measurement stops the third."""
    made: list = []
    _no_models(monkeypatch, made)
    from gpg_repro import train

    second, trained, quick = threading.Event(), [], train.train

    def training(recipe, **arguments):
        trained.append(recipe.name)
        if len(trained) == 2:
            second.set()
        if len(trained) == 3:
            time.sleep(0.5)  # the failure must be seen after this one
        return quick(recipe, **arguments)

    def measuring(model, *arguments, **settings):
        if "train" in model:
            assert second.wait(10), "the next training waits for the measurement"
            raise UserError("no engine")
        return evaluation(settings["out"], {})

    monkeypatch.setattr(train, "train", training)
    monkeypatch.setattr(table_runs, "evaluate", measuring)
    with pytest.raises(UserError, match="no engine"):
        run_table(SPECIES, "smoke", seeds=1, results=tmp_path, progress=False)
    assert len(trained) <= 3


def test_the_mask_metric_is_made_where_a_column_needs_it(tmp_path, monkeypatch):
    made, asked = [], []
    _no_models(monkeypatch, made)
    monkeypatch.setattr(mask_marks, "add_masks", lambda folder, segmenter, *a, **k: asked.append(segmenter.name))
    run_table(SCENES, "smoke", seeds=1, results=tmp_path / "a", progress=False)
    assert not asked and {limit for *_, limit in made} == {3}  # ten items over four groups
    run_table(GROUNDING, "smoke", seeds=1, results=tmp_path / "b", progress=False)
    assert asked == ["foreground"] * 5


def test_paper_scale_names_models_images_and_every_training(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("EVAL_DATA_ROOT", "EVAL_IMAGE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as error:
        run_table(SPECIES, "paper", engine="transformers", results=tmp_path)
    text = str(error.value)
    assert "17 things are missing" in text  # the base, 12 trainings (SFT has no recipe at this scale), 4 benchmarks
    assert "RECIPE=table6_cars196_gpg_r2 SCALE=paper" in text and "table6_cars196_sft" not in text
    assert "benchmark pets37" in text and not any(tmp_path.iterdir())
    missing = notes_for(SPECIES, "paper", [])
    assert [note for note in missing if note.startswith("SFT: not measured; the paper copied")]


def test_paper_scale_evaluates_what_was_trained_here(tmp_path, monkeypatch):
    """One set of one row trained at paper scale: that row stands with one column and no average."""
    made: list = []
    _no_models(monkeypatch, made)
    recipe = load_recipe("table6_pets37_gpg_r0", scale="paper").model_dump()
    run = fake_training(tmp_path / "runs" / "train-table6_pets37_gpg_r0-paper-seed0-x", [{}], recipe)
    (run / "checkpoint").mkdir()

    class Anything:
        groups: dict = {}

        def load(self, data_root):
            return []

        def image_reader(self, data_root, image_root):
            return list

    with monkeypatch.context() as m:
        m.setattr(table_runs, "get_benchmark", lambda name: Anything())
        found = run_table(SPECIES, "paper", engine="transformers", results=tmp_path, progress=False)
    assert [entry.row.key for entry in found] == ["base", "gpg_r0"] and list(found[1].parts) == ["Pets37"]
    assert made[1][1] == ("pets37",)
    frame = scores(SPECIES, found, "paper")
    assert set(frame.query("row == 'gpg_r0'")["column"]) == {"pets37"}
    assert "GPG (R0), FGVC: not measured" in " ".join(notes_for(SPECIES, "paper", found))


def test_the_driver_makes_every_part_and_resumes(tmp_path, monkeypatch, capsys):
    made: list = []
    _no_models(monkeypatch, made)
    monkeypatch.setattr(reference, "check_model", lambda *a: {"weights": "base-weights"})

    def trained(recipe, root, progress):
        folder = root / f"train-{recipe.name}-{recipe.scale}-seed{recipe.seed}"
        return folder if folder.exists() else fake_training(folder, [{}], json.loads(recipe.model_dump_json()))

    from gpg_repro import train

    monkeypatch.setattr(train, "train", trained)
    arguments = {"results": tmp_path / "results", "target": tmp_path / "reference"}
    assert not reference.make(["6"], "smoke", [0], **arguments)
    assert len(made) == 17 and len(reference_runs(SPECIES, "smoke", arguments["target"])) == 5
    assert not reference.make(["6"], "smoke", [0], **arguments)
    assert len(made) == 17 and "table6_cars196_gpg_r2 seed 0: committed" in capsys.readouterr().out
