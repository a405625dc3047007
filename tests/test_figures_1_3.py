"""Figures 1 and 3: bars are the numbers of the data files, sources stay apart; the problem that is shown is honest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib
import pytest
from visual_records import evaluation, sample

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.records import Item
from gpg_repro import plots
from gpg_repro.figure_plots import AnswerColumn, answers_figure, drawable
from gpg_repro.figures import figure_1, figure_3
from gpg_repro.published import folder as published_folder
from gpg_repro.tables import get_table
from gpg_repro.tables import runs as table_runs
from gpg_repro.tables.base import TINY_SUITES, Row
from gpg_repro.viewer import Pair

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plots.plt.close("all")


def printed(source: str, table: str, method: str, mark: str | None = None) -> dict:
    """The columns of a row, straight from the data file."""
    rows = json.loads((published_folder() / f"{source}.json").read_text(encoding="utf-8"))["rows"]
    (found,) = [r for r in rows if (r["table"], r["method"]) == (table, method) and mark in (None, r["mark"])]
    return found["columns"]


def training(folder: Path, weights: str = "base-weights") -> None:
    record = records.TrainingRecord(
        run_id="t", fingerprint="f", status="finished", created="2026-01-01T00:00:00+00:00", finished=None, recipe={},
        base={"name": "b", "weights": weights, "revision": None}, checkpoint=None, num_steps=0, timings={},
        environment={},
    )  # fmt: skip
    records.write_json(folder / "training" / "run.json", record)


def suites(right: int, names=TINY_SUITES, num: int = 10) -> dict:
    """Every suite with so many of its items right, the first ones."""
    items = [Item(item_id=str(i), prompt=f"{i}?", gold=str(i)) for i in range(num)]
    return {name: (items, [sample(i, i < right, i < right) for i in range(num)]) for name in names}


@pytest.fixture
def reference(tmp_path, monkeypatch) -> Path:
    """Committed records of Table 4's GPG in paper form (three seeds: 6, 7, 8 of ten right) and of its base (4)."""
    root = tmp_path / "reference"
    monkeypatch.setattr(table_runs, "REFERENCE", root)
    for seed in range(3):
        folder = evaluation(root / "tiny" / "table4_gpg_paper" / f"seed{seed}", suites(6 + seed))
        training(folder)
    evaluation(root / "tiny" / "base" / "base-wei" / "seed0", suites(4))
    return root


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """No committed records."""
    monkeypatch.setattr(table_runs, "REFERENCE", tmp_path / "none")


@pytest.fixture(scope="module")
def published_only(tmp_path_factory):
    """Figure 1 without any records."""
    folder = tmp_path_factory.mktemp("figure1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_runs, "REFERENCE", folder / "none")
        return figure_1.build_figure("tiny", results=folder, progress=False)


def heights(axis) -> dict[str, list[float]]:
    """Label of a legend entry -> heights of its bars in the order of the groups."""
    found: dict[str, list[float]] = {}
    color = {patch.get_facecolor() + (patch.get_hatch(),): text.get_text() for patch, text in
             zip(axis.get_legend().get_patches(), axis.get_legend().get_texts(), strict=True)}  # fmt: skip
    for bar in axis.patches:
        found.setdefault(color[bar.get_facecolor() + (bar.get_hatch(),)], []).append(bar.get_height())
    return found


# Figure 1 -------------------------------------------------------------------------------------------------------------


def test_the_published_bars_are_the_data_files(published_only):
    top, _, bottom, _ = published_only.figure.axes
    groups = ("AIME24", "Minerva", "OlympiadBench", "AMC23", "MATH-500", "Average")
    drawn = heights(top)
    assert len(drawn) == 7
    for label, method, mark in (
        ("GPG-7B", "GPG-7B", ""),
        ("Oat-Zero-7B †", "Oat-Zero-7B", "†"),
        ("Qwen2.5-Math-7B", "Qwen2.5-Math-7B", ""),
        ("Eurus-2-7B-PRIME", "Eurus-2-7B-PRIME", ""),
    ):
        row = printed("paper-v3", "Table 4", method, mark)
        assert drawn[label] == [row[group] for group in groups]
    drawn = heights(bottom)
    of = {"base": "Qwen2-VL-2B", "+ SFT": "+ SFT", "+ GRPO": "+ GRPO", "+ GPG, R0": "+ GPG"}
    columns = (("Table 7", "Total"), ("Table 5", "GEOQA_Test"), ("Table 8", "mIoU_test"), ("Table 6", "Average"))
    for label, method in of.items():
        names = [
            ("Qwen2.5-VL-3B-Instruct" if (table, label) == ("Table 5", "base") else method) for table, _ in columns
        ]
        wanted = [
            printed("paper-v3", table, name)[column]
            for (table, column), name in zip(columns, names, strict=True)
            if (table, label) != ("Table 5", "+ SFT")  # not in the paper
        ]
        assert drawn[f"{label} (paper v3)"] == wanted
    assert drawn["+ GPG, R2 (README)"] == [printed("readme", table, "+ GPG")[column] for table, column in columns]
    assert drawn["+ GPG, R2 (README)"] == [76.15, 51.33, 51.8, 89.0]
    assert drawn["+ GPG, R0 (paper v3)"] == [69.11, 50.8, 51.5, 86.0]


def test_sources_are_never_mixed():
    frame = figure_1.published_numbers()
    assert set(frame.loc[frame["panel"] == "top", "source"]) == {"paper v3"}
    bottom = frame[frame["panel"] == "bottom"].groupby("row")["source"].agg(set)
    assert bottom.to_dict() == {
        "base": {"paper v3"}, "sft": {"paper v3"}, "grpo": {"paper v3"}, "gpg_r0": {"paper v3"}, "gpg_r2": {"README"},
    }  # fmt: skip


def test_intervals_follow_from_counts_and_only_from_counts():
    frame = figure_1.published_numbers().set_index(["row", "group"])
    # 33 of 40, Wilson: centre (0.825 + 1.9207/40)/(1 + 3.8415/40) = 0.7965, half width 0.1160
    line = frame.loc["gpg_paper", "AMC23"]
    assert line["num_items"] == 40 and (line["low"], line["high"]) == pytest.approx((68.05, 91.25), abs=0.02)
    assert frame.loc["oat_again", "AMC23"]["num_items"] == 83  # 55.4 = 46/83
    grounding = frame.xs("Grounding", level="group")
    assert grounding["low"].isna().all() and grounding["num_items"].isna().all()
    assert figure_1.implied_column(76.3, 500) is None  # no count gives it
    assert figure_1.implied_column(100.0, 30)[1] == pytest.approx(100.0)


def test_the_smaller_amc_set_is_marked(published_only):
    report = published_only
    marked = sorted(t.get_text() for t in report.figure.axes[0].texts if t.get_text().endswith("*"))
    assert marked == ["30.9*", "45.0*", "57.7*", "82.5*"]
    names = [label.get_text() for label in report.figure.axes[0].get_xticklabels()]
    assert "AMC23\nn = 83; * n = 40" in names
    # 36.7 + 39.0 + 45.8 + 84.6 against 26.7 + 38.6 + 42.1 + 79.2: 19.5/4
    assert "of 40 and of 83 problems; over the other 4 columns the difference is +4.9" in report.text


def test_labels_of_the_readmes_picture_are_checked(monkeypatch):
    assert figure_1.label_conflicts() == []
    real = figure_1.published_table

    def other(table, source="paper-v3"):
        frame = real(table, source).copy()
        if table == "Figure 1 (bottom)":
            frame.loc["+GPG", "Visual Reasoning"] = 69.1  # the other source's
        if table == "Figure 1 (top)":
            frame.loc["GPG-7B", "AIME24"] = 36.0
        return frame

    monkeypatch.setattr(figure_1, "published_table", other)
    assert figure_1.label_conflicts() == [
        "GPG-7B on AIME24: label 36, Table 4 of paper v3 36.7",
        "+GPG on Visual Reasoning: label 69.1, the README's table 76.15",
    ]


def test_our_bars_are_the_records_with_their_seeds(reference, tmp_path):
    report = figure_1.build_figure("tiny", results=tmp_path, progress=False)
    axis = report.figure.axes[1]
    drawn = heights(axis)
    # 6, 7 and 8 of ten in every suite: 70 on average
    assert drawn["GPG, paper form (β_th = 0.6), 3 seeds"] == pytest.approx([70.0] * 6)
    assert drawn["tiny base"] == pytest.approx([40.0] * 6)
    circles = [line for line in axis.lines if line.get_marker() == "o"]
    assert len(circles) == 6 and sorted(circles[0].get_ydata()) == pytest.approx([60.0, 70.0, 80.0])
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert names[0] == "Tiny\nSums\n10 items"
    assert not any(title in " ".join(names) for title in ("AIME", "MATH-500", "AMC", "Minerva", "Olympiad"))
    assert "not comparable" in axis.get_title()
    assert "mean of 5 tiny suites: GPG, paper form (β_th = 0.6) − tiny base +30.0" in report.text.replace("  ", " ")
    assert any("Table 5 has no committed records yet" in note for note in report.notes)
    (texts,) = [t.get_text() for t in report.figure.axes[3].texts]
    assert "Table 7 has no committed" in texts.replace("\n", " ")
    files = {path.name for path in (tmp_path / "figures" / "tiny").iterdir()}
    assert {"figure1.png", "figure1.svg", "figure1.md", "figure1.csv", "figure1.html"} <= files


@pytest.mark.full("executed notebooks")
def test_nothing_is_trained_without_being_asked(nothing, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        table_runs, "run_table", lambda table, scale, **k: made.append((table.number, k["seeds"])) or []
    )
    for scale in ("smoke", "tiny"):
        figure_1.build_figure(scale, results=tmp_path, progress=False)
    assert made == []
    figure_1.build_figure("smoke", seeds=2, results=tmp_path, progress=False)
    assert made == [(4, 2), (7, 2), (5, 2), (8, 2), (6, 2)]


def test_a_scale_without_records_shows_those_of_tiny_and_says_so(reference, tmp_path):
    report = figure_1.build_figure("smoke", results=tmp_path, progress=False)
    assert "(tiny, not comparable)" in report.figure.axes[1].get_title()
    assert "There are no records at scale smoke; those of scale tiny are shown." in report.notes


def test_at_paper_scale_what_is_missing_is_said(tmp_path, monkeypatch):
    def refuse(table, scale, **_):
        raise UserError(f"{table.name} at paper scale cannot start; 9 things are missing:\n- a")

    monkeypatch.setattr(table_runs, "run_table", refuse)
    report = figure_1.build_figure("paper", results=tmp_path, progress=False)
    assert sum("cannot start" in note for note in report.notes) == 5 and not report.provenance.size
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown scale"):
        figure_1.build_figure("papre", results=tmp_path)


# Figure 3 -------------------------------------------------------------------------------------------------------------


def two_runs(root: Path, marks: dict[str, tuple[str, str]], seed: int = 0) -> None:
    """GPG and GRPO on some suites; marks are strings of 1 and 0, an item each."""
    for place, recipe in enumerate(figure_3.ROWS):
        of_suite = {}
        for name in TINY_SUITES:
            own = marks.get(name, ("1", "1"))[place]
            items = [Item(item_id=str(i), prompt=f"{name} {i}?", gold=str(i)) for i in range(len(own))]
            of_suite[name] = (items, [sample(i, m == "1", m == "1", f"{recipe} {i}") for i, m in enumerate(own)])
        training(evaluation(root / "tiny" / f"table3_{recipe}" / f"seed{seed}", of_suite))


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> Path:
    """Seed 0: sums 11, differences 1001 against 1110, so item 3 is the first that GPG alone has right; seed 1: none."""
    root = tmp_path / "reference"
    monkeypatch.setattr(table_runs, "REFERENCE", root)
    two_runs(root, {"tiny_differences": ("1001", "1110")})
    two_runs(root, {"tiny_differences": ("1000", "1110")}, seed=1)
    return root


def test_the_first_item_that_only_gpg_has_right_and_how_often_it_is_otherwise(pairs, tmp_path):
    report = figure_3.build_figure("tiny", results=tmp_path, progress=False)
    assert (report.chosen.benchmark, report.chosen.item.item_id) == ("tiny_differences", "3")
    # 8 items: 4 suites of one that both have right, then 1001 against 1110: both 1, only GPG 1, only GRPO 2
    line = report.counts[0].iloc[-1]
    assert line[["both", "first", "second", "neither", "num_items"]].tolist() == [5, 1, 2, 0, 8]
    assert report.counts[1].iloc[-1][["both", "first", "second", "neither"]].tolist() == [5, 0, 2, 1]
    assert "Chosen because GPG on tiny_s1 is right and GRPO on tiny_s1 wrong" in report.text
    assert "Only GPG on tiny_s1 right: 1, 0 items by seed; only GRPO on tiny_s1 right: 2, 2" in report.text
    assert "greater number in 0 of 2 seeds" in report.text
    drawn = "\n".join(text.get_text() for text in report.figure.axes[0].texts)
    for words in ("tiny_differences 3?", "gpg_rs1 3", "grpo_rs1 3", "✓ published: right", "✗ published: wrong",
                  "only GPG on tiny_s1 on 1, only GRPO"):  # fmt: skip
        assert words in drawn.replace("\n", " ")
    assert report.page_path.exists() and "data-chosen='1'" in report.page_path.read_text(encoding="utf-8")
    assert list(report.provenance.index.get_level_values("row")) == ["gpg_rs1"] * 2 + ["grpo_rs1"] * 2


def test_another_seed_is_looked_at_before_another_kind_of_item(tmp_path, monkeypatch):
    root = tmp_path / "reference"
    monkeypatch.setattr(table_runs, "REFERENCE", root)
    two_runs(root, {"tiny_sums": ("01", "11")})
    two_runs(root, {"tiny_sums": ("11", "10")}, seed=1)
    report = figure_3.build_figure("tiny", results=tmp_path, progress=False)
    assert report.chosen.item.item_id == "1" and "training seed 1" in report.text
    two_runs(root, {"tiny_sums": ("01", "11")}, seed=2)  # alone, it would not do
    monkeypatch.setattr(table_runs, "REFERENCE", tmp_path / "other")
    two_runs(tmp_path / "other", {"tiny_sums": ("01", "11")})
    report = figure_3.build_figure("tiny", results=tmp_path, progress=False)
    assert report.chosen.cell() == "second" and "No item has GPG on tiny_s1 right" in report.text


def test_smoke_shows_the_committed_records_and_trains_only_when_asked(pairs, tmp_path, monkeypatch):
    report = figure_3.build_figure("smoke", results=tmp_path, progress=False)
    assert any("no records at scale smoke" in note for note in report.notes)
    made = []

    def run_row(table, row, recipe, like, **_):
        made.append((row.key, recipe.scale, recipe.seed))
        return pairs / "tiny" / row.recipe / f"seed{recipe.seed}", pairs / "tiny" / row.recipe / "seed0" / "training"

    monkeypatch.setattr(table_runs, "run_row", run_row)
    report = figure_3.build_figure("smoke", seeds=2, results=tmp_path, progress=False)
    assert made == [(row, "smoke", seed) for row in figure_3.ROWS for seed in (0, 1)]
    assert "this run" in report.text


def aime(gold: str, prompt: str, right: bool = True) -> Pair:
    one = sample(0, right, right)
    return Pair("aime24", Item(item_id="0", prompt=prompt, gold=gold), ((one,), (one,)))


def test_the_papers_problem_is_known_by_gold_and_words():
    wanted = aime("480", "A RHOMBUS on the hyperbola")
    others = [aime("480", "a rhombus on a circle"), aime("048", "rhombus, hyperbola"), aime("48", "hyperbola, rhombus")]
    assert figure_3.find_problem([*others, wanted]) is wanted
    others.append(aime("1480", "rhombus, hyperbola"))
    assert figure_3.find_problem(others) is None
    assert figure_3.find_problem([aime("0480", "rhombus hyperbola")]) is not None
    with pytest.raises(UserError, match="2 AIME24 problems"):
        figure_3.find_problem([wanted, wanted])


@pytest.mark.real_data("Figure 3's problem", "aime_2024.jsonl")
def test_the_papers_problem_is_in_the_benchmark_once(data_root):
    one = sample(0, True, True)
    items = get_benchmark("aime24").load(data_root)
    found = figure_3.find_problem([Pair("aime24", item, ((one,), (one,))) for item in items])
    assert found is not None and found.item.gold.strip() == "480"


def paper_run(folder: Path, name: str, items, marks, revision: str = "r") -> None:
    evaluation(folder, {"aime24": (items, [sample(i, m, m) for i, m in enumerate(marks)])})
    record = records.read_run(folder)
    decoding = records.Decoding(temperature=0.6, top_p=0.95, top_k=0, max_new_tokens=1, samples=1, seed=1,
                                system_prompt=None)  # fmt: skip
    result = records.BenchmarkResult(
        version=1, source="s", prompts_hash="h", decoding=decoding, num_items=2, asked=2, scored=2, failed=0,
        score=None, score_strict=None, num_gold_fallback=0, num_truncated=0, num_no_answer=0, num_timeout=0,
        mean_completion_tokens=None,
    )  # fmt: skip
    update = {"model": {"name": name, "weights": None, "revision": revision}, "benchmarks": {"aime24": result}}
    records.write_json(folder / "run.json", record.model_copy(update=update))


def test_at_paper_scale_it_is_that_problem_whatever_the_models_make_of_it(tmp_path, monkeypatch):
    rows = {row.key: row for row in get_table("3").rows}
    items = [Item(item_id="0", prompt="other", gold="7"),
             Item(item_id="1", prompt="rhombus, hyperbola", gold="480")]  # fmt: skip
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="GPG-RS1 .*measure GD-ML/Open-RS1(.|\n)*make evaluate-released"):
        figure_3.build_figure("paper", results=tmp_path, progress=False)
    paper_run(runs / "eval-a", rows["gpg_rs1"].hub, items, [True, False])
    with pytest.raises(UserError, match="measure knoveleng/Open-RS1, or train table3_grpo_rs1"):
        figure_3.build_figure("paper", results=tmp_path, progress=False)
    monkeypatch.setattr(Row, "hub_revision", "r")
    paper_run(runs / "eval-b", rows["grpo_rs1"].hub, items, [False, True], revision="another")
    with pytest.raises(UserError, match="measure knoveleng/Open-RS1"):
        figure_3.build_figure("paper", results=tmp_path, progress=False)
    shutil.rmtree(runs / "eval-b")
    paper_run(runs / "eval-b", rows["grpo_rs1"].hub, items, [False, True])
    report = figure_3.build_figure("paper", results=tmp_path, progress=False)
    assert report.chosen.item.item_id == "1" and report.chosen.cell() == "second"
    assert "whatever the two models make of it" in report.text
    assert report.both.labels == (rows["gpg_rs1"].label, rows["grpo_rs1"].label)
    for name in ("eval-a", "eval-b"):
        (runs / name / "items" / "aime24.jsonl").unlink()
        records.append_lines(runs / name / "items" / "aime24.jsonl", items[:1])
    with pytest.raises(UserError, match="no AIME24 problem with gold 480"):
        figure_3.build_figure("paper", results=tmp_path, progress=False)


def test_the_picture_shows_unchecked_text_as_it_is(tmp_path):
    assert drawable("a漢$x^2$") == "a□$x^2$"  # not in the face
    assert "\0" not in drawable("\0") and "U+202E" in drawable("\u202e")
    long = "\n".join(f"line {i}" for i in range(100))
    column = AnswerColumn("A $\\frac$ _", "#000000", (("published: right", True),), (("tokens", "1"),), long)
    figure = answers_figure("T $", "$\\notmath{", "\\boxed{$", [column, column], "footer", longest=10)
    figure.savefig(tmp_path / "a.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "Question: $\\notmath{" in texts and "Gold: \\boxed{$" in texts
    # six lines of the beginning, a sentence, three of the end
    assert "line 5" in texts and "line 6" not in texts and "[… 91 lines left out …]" in texts and "line 97" in texts
