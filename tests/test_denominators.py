"""Asked = scored + failed: a run in which some completions failed says so wherever its numbers stand."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import pytest
import runs_here

from eval_harness import compare, records, released
from eval_harness.__main__ import format_run, main
from eval_harness.checkpoints import load_checkpoints
from eval_harness.interop import exporters
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.shards import parse_shard
from gpg_repro import plots
from gpg_repro.evaluate import Checkpoint, Curve, Measured
from gpg_repro.evaluate import report as checkpoints_report
from gpg_repro.figures import figure_1, figure_3
from gpg_repro.tables import get_table, report
from gpg_repro.tables.base import TINY_SUITES, RowRuns
from gpg_repro.tables.rules import rule_versions

FAILS = ("2", "5", "9")
LIMIT, SAMPLES = 12, 2
ASKED, FAILED = len(TINY_SUITES) * LIMIT * SAMPLES, len(TINY_SUITES) * len(FAILS) * SAMPLES  # 5 suites: 120 and 30
COUNTS = f"{ASKED} asked, {ASKED - FAILED} scored, {FAILED} failed"


def scripted(model: str, out: Path, suites=TINY_SUITES, **options) -> Path:
    overrides = Overrides(samples=SAMPLES, temperature=1.0, max_new_tokens=8)
    return evaluate(
        model, suites, engine="transformers", out=out, limit=LIMIT, overrides=overrides, progress=False, **options
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return runs_here.checkpoint(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory) -> tuple[Path, Path]:
    """A run in which three items of each suite failed, and one without failures."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        runs_here.use(patch, FAILS)
        failing = scripted(model, root / "failing")
        runs_here.use(patch)
        return failing, scripted(model, root / "whole")


def rows(table, runs: tuple[Path, Path], keys: tuple[str, str]) -> list[RowRuns]:
    by_key = {row.key: row for row in table.rows}
    return [RowRuns(by_key[key], {0: folder}, {}) for key, folder in zip(keys, runs, strict=True)]


def written(folder: Path, stem: str) -> dict[str, str]:
    return {path.suffix: path.read_text(encoding="utf-8") for path in folder.glob(f"{stem}.*") if path.suffix != ".png"}


def test_the_record_and_what_the_commands_print(runs, capsys):
    record = records.read_run(runs[0])
    for result in record.benchmarks.values():
        assert (result.asked, result.scored, result.failed) == (24, 18, 6)
        assert result.score["num_samples"] == 24  # the failed are in the denominator
        assert result.score["mean"] <= 18 / 24
    assert format_run(record).count("asked 24, scored 18, failed 6") == len(TINY_SUITES)
    assert format_run(records.read_run(runs[1])).count("asked 24, scored 24, failed 0") == len(TINY_SUITES)
    with pytest.MonkeyPatch.context() as patch:
        runs_here.use(patch)
        assert main(["verify", str(runs[0])]) == 0
        assert all(row["asked"] == row["scored"] + row["failed"] for row in verify(runs[0]).values())
    assert capsys.readouterr().out.count("asked 24, scored 18, failed 6") == len(TINY_SUITES)


def test_a_table(runs, tmp_path, monkeypatch):
    table = get_table(4)
    monkeypatch.setattr(report, "run_table", lambda *a, **k: rows(table, runs, ("base", "gpg_paper")))
    made = report.build_table(4, "smoke", seeds=1, results=tmp_path, reference=tmp_path / "none", progress=False)
    label = next(row for row in table.rows if row.key == "base").label_at("smoke")
    total = f"Completions (this run): {2 * ASKED} asked, {2 * ASKED - FAILED} scored, {FAILED} failed."
    assert (
        total in made.notes
        and f"{label}, seed 0: {FAILED} of {ASKED} completions failed and count as wrong." in made.notes
    )
    assert sum("failed and count as wrong" in note for note in made.notes) == 1
    rules = f"Marks (this run): published rule boxed 1, strict rule strict_math 1 ({', '.join(sorted(TINY_SUITES))})."
    assert rules in made.notes
    cells = made.frame.astype(str).to_string()
    assert cells.count(f"{FAILED} failed") == 1
    files = written(tmp_path / "tables" / "smoke", "table04")
    assert total in files[".md"] and f"{FAILED} failed" in files[".html"]
    long = pd.read_csv(tmp_path / "tables" / "smoke" / "table04.csv")
    assert (long["asked"] == long["scored"] + long["failed"]).all()
    assert set(long[long["row"] == "base"]["failed"]) == {FAILED} and set(long["asked"]) == {ASKED}
    plots.plt.close("all")


def test_records_that_name_no_rule_say_so(runs, tmp_path):
    table, old = get_table(4), tmp_path / "old"
    shutil.copytree(runs[1], old)
    record = records.read_run(old)
    records.write_json(old / "run.json", record.model_copy(update={"provenance": {}}))
    (note,) = rule_versions("committed records", rows(table, (runs[0], old), ("base", "gpg_paper")))
    names = ", ".join(sorted(TINY_SUITES))
    assert note == (
        f"Marks (committed records): published rule boxed 1, strict rule strict_math 1 ({names}); "
        f"rules not recorded ({names}; `eval_harness regrade` marks again)."
    )
    assert rule_versions("this run", []) == []


def test_figure_1(runs, tmp_path, monkeypatch):
    table = get_table(figure_1.TOP)

    def ours_of(name, scale, *args):
        found = rows(table, runs, ("base", "gpg_paper")) if name == figure_1.TOP else []
        return figure_1.Ours(get_table(name), tuple(found), scale, "this run", "" if found else "not made")

    monkeypatch.setattr(figure_1, "ours_of", ours_of)
    made = figure_1.build_figure("smoke", results=tmp_path, progress=False)
    assert any(f"{2 * ASKED} asked" in note and f"{FAILED} failed." in note for note in made.notes)
    files = written(tmp_path / "figures" / "smoke", "figure1")
    assert files[".md"].count(f"{FAILED} of the row failed") == len(TINY_SUITES) + 1  # its bars, and their mean
    long = pd.read_csv(tmp_path / "figures" / "smoke" / "figure1.csv")
    ours = long[long["block"] == "ours"]
    assert len(ours) and (ours["asked"] == ours["scored"] + ours["failed"]).all() and ours["failed"].max() == FAILED
    plots.plt.close("all")


def test_figure_3(runs, tmp_path, monkeypatch):
    table = get_table(3)
    monkeypatch.setattr(
        figure_3, "evaluations", lambda *a, **k: (rows(table, runs, figure_3.ROWS), "this run", "smoke")
    )
    made = figure_3.build_figure("smoke", results=tmp_path, progress=False)
    assert any(f"{2 * ASKED} asked" in note and f"{FAILED} failed." in note for note in made.notes)
    assert f"{FAILED} of {ASKED} completions failed" in written(tmp_path / "figures" / "smoke", "figure3")[".md"]
    plots.plt.close("all")


def test_compare(runs, tmp_path):
    found = compare.compare(compare.open_side(str(runs[1])), compare.open_side(str(runs[0])))
    for row in found.rows:
        assert row["asked_a"] == row["asked_b"] == row["scored_b"] + row["failed_b"] and row["failed_a"] == 0
    assert (found.rows[0]["failed_b"], found.rows[-1]["failed_b"]) == (6, FAILED)
    told = compare.text(found)
    assert f"model: {ASKED} samples asked, {ASKED} scored, 0 failed." in told
    assert f"model: {ASKED} samples asked, {ASKED - FAILED} scored, {FAILED} failed, which count as wrong." in told
    compare.write(found, tmp_path)
    assert "which count as wrong" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert pd.read_csv(tmp_path / "comparison.csv")["failed_b"].tolist()[-1] == FAILED


def test_released_checkpoints(runs, tmp_path):
    """Beside the printed rows; a benchmark of which nothing was scored has a line of its own."""
    job = released.Job(next(iter(load_checkpoints().values())), None)
    record = records.read_run(runs[0])
    renamed = dict(
        zip(("aime24", "math500", "amc23", "minerva", "olympiadbench"), record.benchmarks.values(), strict=True)
    )
    nothing = renamed["aime24"].model_copy(update={"scored": 0, "failed": 24, "score": None, "single": None})
    lines = released.lines_of(job, record.model_copy(update={"benchmarks": renamed}))
    assert {line.column for line in lines} >= {"aime24", "average"}
    for line in lines:
        assert line.asked == line.scored + line.failed
        assert (line.asked, line.failed) == ((ASKED, FAILED) if line.column == "average" else (24, 6))
    cells = released.table_of(lines)
    assert "asked = scored + failed" in cells[0] and all(
        "24 = 18 + 6" in row or "120 = 90 + 30" in row for row in cells[1:]
    )
    lost = released.lines_of(job, record.model_copy(update={"benchmarks": renamed | {"aime24": nothing}}))
    assert [(line.measured, line.failed) for line in lost if line.column == "aime24"][0] == (None, 24)
    assert "average" not in {line.column for line in lost}  # nothing to average
    paths = released.write_tables(lost, [job], tmp_path)
    assert "24 = 0 + 24 | none | none" in paths[0].read_text(encoding="utf-8")
    assert "failed" in paths[1].read_text(encoding="utf-8").splitlines()[0].split(",")


def test_the_checkpoints_of_a_training(runs, tmp_path):
    record = records.TrainingRecord(
        run_id="t", fingerprint="f", status="finished", created="2026", finished="2026", recipe={"scale": "smoke"},
        base={}, checkpoint="checkpoint", num_steps=1, timings={}, environment={},
    )  # fmt: skip
    measured = [Measured(Checkpoint(step, name, "m"), folder) for step, name, folder in
                ((0, "base", runs[1]), (1, "checkpoint", runs[0]))]  # fmt: skip
    curve = Curve(tmp_path / "train-t", record, TINY_SUITES, tuple(measured), ())
    text, paths = checkpoints_report(curve, tmp_path)
    assert f"{2 * ASKED} completions asked, {2 * ASKED - FAILED} scored, {FAILED} failed" in text
    assert text.count("(6 of 24 failed)") >= len(TINY_SUITES) and f"({FAILED} of {ASKED} failed)" in text
    assert paths["md"].read_text(encoding="utf-8").count("(6 of 24 failed)") >= len(TINY_SUITES)
    plots.plt.close("all")


def test_merged_shards(model, tmp_path, monkeypatch, capsys):
    runs_here.use(monkeypatch, FAILS)
    for part in ("0/2", "1/2"):
        scripted(model, tmp_path / "run", ["tiny_sums"], shard=parse_shard(part))
    assert main(["merge", str(tmp_path / "run")]) == 0
    assert "asked 24, scored 18, failed 6" in capsys.readouterr().out
    result = records.read_run(tmp_path / "run").benchmarks["tiny_sums"]
    assert (result.asked, result.scored, result.failed) == (24, 18, 6)


def test_exports(runs, tmp_path):
    """Every Eval Ever and the model card; the hub's leaderboards get no tiny suite."""
    made = exporters.every_eval_ever(runs[0], tmp_path / "eee", model_id="owner/name")
    assert sum("6 of 24 samples failed and count as wrong" in remark for remark in made.remarks) == len(TINY_SUITES)
    for path in (path for path in made.files if path.suffix == ".json"):
        text = path.read_text(encoding="utf-8")
        assert '"asked": "24"' in text and '"scored": "18"' in text and '"failed": "6"' in text
    card = exporters.model_card(runs[0], tmp_path / "card", model_id="owner/name")
    text = card.files[0].read_text(encoding="utf-8")
    assert text.count("18 / 24") == len(TINY_SUITES) and text.count("6 of 24 samples failed") == len(TINY_SUITES)
