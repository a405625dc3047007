"""Every checkpoint of a run: which are kept, which are found, what is measured, what is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from engine_here import EngineHere
from safetensors.torch import load_file

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.runner import Overrides
from gpg_repro import evaluate as subject
from gpg_repro.__main__ import main
from gpg_repro.evaluate import benchmarks_of, evaluate_run, find_run, report, scores
from gpg_repro.plots import checkpoints_figure
from gpg_repro.recipe import load_recipe
from gpg_repro.train import _Recorder, train

SUITES = ("tiny_sums", "tiny_chains")
TRAINS = pytest.mark.full("trains a recipe from the smoke base and evaluates its checkpoints")


def smoke(*overrides: str):
    return load_recipe("table3_gpg_age_rs1", ["max_steps=3", "save_steps=1", *overrides], scale="smoke")


def kept(run: Path) -> dict[str, dict]:
    found = (run / "checkpoints").glob("*")
    return {path.name: load_file(path / "model.safetensors") for path in found}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def run(smoke_base, results) -> Path:
    """A run of three steps that kept the first two."""
    return train(smoke(), root=results / "runs", progress=False, log_to="none")


def interrupted(root: Path, *overrides: str, step: int = 2) -> Path:
    """A run that stopped while the save of a step was made: its weights are there, the mark of wholeness is not."""
    saved = _Recorder.on_save

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt
        saved(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Recorder, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(smoke(*overrides), root=root, progress=False, log_to="none")
    return next(root.glob("train-*"))


# --- Keeping ---------------------------------------------------------------------------------------------------------


@TRAINS
def test_kept_weights_are_whole_and_nothing_but_the_model(run):
    assert sorted(kept(run)) == ["checkpoint-1", "checkpoint-2"]
    names = {path.name for path in (run / "checkpoints" / "checkpoint-1").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin")) or "trainer" in name]
    final = load_file(run / "checkpoint" / "model.safetensors")
    assert any((final[key] != kept(run)["checkpoint-2"][key]).any() for key in final)


@TRAINS
def test_an_interrupted_run_keeps_the_same_set(run, tmp_path):
    cut = interrupted(tmp_path)
    (cut / "checkpoints" / "checkpoint-9.partial").mkdir()
    stale = shutil.copytree(cut / "checkpoints" / "checkpoint-1", cut / "checkpoints" / "checkpoint-8")
    train(smoke(), root=tmp_path, progress=False, log_to="none")
    assert not stale.exists()  # the resumed run never was at step 8
    expected, got = kept(run), kept(cut)
    assert sorted(got) == sorted(expected)
    assert all((expected[name][key] == got[name][key]).all() for name in expected for key in expected[name])


@TRAINS
def test_what_is_kept_is_the_recipes_choice_and_moves_no_weight(smoke_base, tmp_path):
    assert smoke().setup.training.keep_checkpoints
    assert not load_recipe("table1_gpg", scale="paper").setup.training.keep_checkpoints
    assert load_recipe("table1_gpg", ["keep_checkpoints=true"], scale="paper").setup.training.keep_checkpoints
    assert load_recipe("table3_gpg_rs1", scale="paper").setup.training.keep_checkpoints  # its file says so
    without = smoke("keep_checkpoints=false")
    assert without.fingerprint("base") == smoke().fingerprint("base")
    assert without.describes(smoke().model_dump())
    folder = train(without, root=tmp_path, progress=False, log_to="none")
    assert not (folder / "checkpoints").exists() and (folder / "checkpoint").is_dir()


# --- Measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curve(run, results):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval_harness.runner.EngineProcess", EngineHere)
        return evaluate_run(run, SUITES, limit=2, results=results, progress=False)


@TRAINS
def test_every_checkpoint_is_measured_once(curve, run, results, monkeypatch):
    assert [(m.checkpoint.step, m.checkpoint.name) for m in curve.measured] == [
        (0, "base"),
        (1, "checkpoint-1"),
        (2, "checkpoint-2"),
        (3, "checkpoint"),
    ]
    runs = [records.read_run(m.folder) for m in curve.measured]
    assert len({r.model["weights"] for r in runs}) == 4 and len({m.folder for m in curve.measured}) == 4
    assert runs[0].model["weights"] == records.read_run(run).base["weights"]
    assert all(m.folder.parent == results / "runs" and set(r.benchmarks) == set(SUITES)
               for m, r in zip(curve.measured, runs, strict=True))  # fmt: skip
    monkeypatch.setattr(subject, "evaluate", lambda *a, **k: pytest.fail("measured again"))
    again = evaluate_run(run.name, SUITES, limit=2, results=results, progress=False)
    assert again.measured == curve.measured
    one = evaluate_run(
        run, ["tiny_sums"], limit=2, results=results, steps=[2], progress=False
    )  # held by the same record
    assert [m.folder for m in one.measured] == [curve.measured[2].folder]
    assert scores(one)["benchmark"].tolist() == ["tiny_sums"] * 2  # a rule each, and no mean of one


@TRAINS
def test_other_questions_are_asked_anew(curve, run, results, monkeypatch):
    asked = []
    monkeypatch.setattr(
        subject, "evaluate", lambda model, names, **k: asked.append(k["out"]) or curve.measured[0].folder
    )
    for arguments in ({"limit": 1}, {"overrides": Overrides(samples=2)}, {"limit": 2, "dtype": "float32"}):
        evaluate_run(run, SUITES, steps=[1], results=results, progress=False, **arguments)
    assert len(set(asked)) == 3 and not any(path.exists() for path in asked)


@TRAINS
def test_the_table_holds_what_the_records_hold(curve, results):
    frame = scores(curve)
    assert len(frame) == 2 * 4 * 3  # rules, checkpoints, two suites and their mean
    for measured in curve.measured:
        record = records.read_run(measured.folder)
        lines = frame[(frame["step"] == measured.checkpoint.step) & (frame["rule"] == "published")].set_index(
            "benchmark"
        )
        for name in SUITES:
            assert lines.loc[name, "mean"] == record.benchmarks[name].score["mean"]
            assert lines.loc[name, ["asked", "scored", "failed"]].tolist() == [2, 2, 0]
        assert lines.loc["mean", "mean"] == pytest.approx(record.average["mean"])
        assert lines.loc["mean", "asked"] == 4
    text, paths = report(curve, results)
    assert "| 3 " in text and "Tiny Sums (2 items)" in text and "16 completions asked, 16 scored, 0 failed" in text
    assert {suffix: path.exists() for suffix, path in paths.items()} == dict.fromkeys(
        ("md", "csv", "html", "png", "svg"), 1
    )
    assert pd.read_csv(paths["csv"])["mean"].tolist() == pytest.approx(frame["mean"].tolist())


def test_the_picture_holds_the_numbers():
    frame = pd.DataFrame(
        {
            "step": [0, 5, 0, 5],
            "benchmark": ["a", "a", "mean", "mean"],
            "title": ["A", "A", "Mean", "Mean"],
            "mean": [0.25, 0.75, 0.5, 0.625],
            "low": [0.2, 0.7, 0.4, 0.5],
            "high": [0.3, 0.9, 0.6, 0.7],
        }
    )
    figure = checkpoints_figure(frame, "title")
    try:
        first, second = figure.axes
        assert (first.get_title(), second.get_title()) == ("Mean", "A")  # the mean comes first
        line = second.lines[0]
        assert line.get_xdata().tolist() == [0, 5] and line.get_ydata().tolist() == [25, 75]
        bars = second.collections[-1].get_segments()
        assert [tuple(bar[:, 1].round(6)) for bar in bars] == [(20, 30), (70, 90)]
    finally:
        plt.close(figure)


# --- Unfinished runs -------------------------------------------------------------------------------------------------


@TRAINS
def test_a_run_that_still_trains_may_delete_what_is_being_measured(tmp_path, monkeypatch, curve):
    cut = interrupted(tmp_path / "runs", "keep_checkpoints=false")
    seen = []

    def measure(model, names, **arguments):
        shutil.rmtree(cut / "trainer", ignore_errors=True)  # as the training does when it saves again
        seen.append((Path(model).name, sorted(load_file(Path(model) / "model.safetensors"))[:1]))
        return curve.measured[0].folder

    monkeypatch.setattr(subject, "evaluate", measure)
    found = evaluate_run(cut, SUITES, limit=2, results=tmp_path, progress=False, steps=[1])
    assert [name for name, _ in seen] == ["checkpoint-1"] and found.measured[0].checkpoint.step == 1
    assert "not finished: checkpoints up to step 1" in " ".join(found.notes)  # step 2 was never whole
    assert not list(cut.glob(".evaluating/*"))


@TRAINS
def test_a_run_without_kept_weights_says_how_to_keep_them(run, results, tmp_path, monkeypatch, curve):
    bare = shutil.copytree(run, tmp_path / run.name)
    shutil.rmtree(bare / "checkpoints")
    monkeypatch.setattr(subject, "evaluate", lambda *a, **k: curve.measured[0].folder)
    found = evaluate_run(bare, SUITES, limit=2, results=tmp_path, progress=False)
    assert [m.checkpoint.step for m in found.measured] == [0, 3]
    assert "keep_checkpoints=true" in " ".join(found.notes)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_the_suites_are_those_of_the_recipes_tables():
    five = ("tiny_sums", "tiny_differences", "tiny_products", "tiny_chains", "tiny_remainders")
    assert benchmarks_of(smoke()) == five
    assert benchmarks_of(load_recipe("table9_dapo")) == five  # of no table
    assert benchmarks_of(load_recipe("table3_gpg_rs1", scale="paper"))[:2] == ("aime24", "math500")
    assert benchmarks_of(load_recipe("table5_gpg_r0")) == ("tiny_figures",)
    assert benchmarks_of(load_recipe("table6_pets37_gpg_r0", scale="paper")) == ("pets37",)
    other = load_recipe("table5_gpg_r0").model_copy(update={"name": "mine"})
    with pytest.raises(UserError, match="stands in no table: say which benchmarks with --benchmarks"):
        benchmarks_of(other)


@TRAINS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [7]}, r"--steps 7: .* has checkpoints of the steps 0, 1, 2, 3 \(0 is the base\)"),
        ({"engine": "openai"}, "a server holds one model"),
        ({"benchmarks": ["tiny_sum"]}, "did you mean 'tiny_sums'"),
    ],
)
def test_wrong_arguments_are_refused_before_an_engine_starts(arguments, message, run, results, monkeypatch):
    monkeypatch.setattr(subject, "evaluate", lambda *a, **k: pytest.fail("too late"))
    with pytest.raises(UserError, match=message):
        evaluate_run(run, results=results, progress=False, **arguments)


@TRAINS
def test_runs_are_found_by_path_and_by_name_or_refused(run, results, curve, capsys, monkeypatch):
    assert find_run(run.name, results) == find_run(run) == run
    with pytest.raises(UserError, match=f"did you mean '{run.name}'"):
        find_run(run.name[:-1] + "x", results)
    with pytest.raises(UserError, match="is an evaluation"):
        find_run(curve.measured[0].folder)
    monkeypatch.setenv("GPG_RESULTS", str(results / "none"))
    assert main(["evaluate", "nothing"]) == 2 and "nothing is not a training run" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--steps", "one"]) == 2 and "expected numbers" in capsys.readouterr().err


@TRAINS
def test_another_base_than_the_runs_own_is_not_step_0(run, results, tmp_path):
    other = shutil.copytree(run, tmp_path / run.name)
    record = records.read_run(other)
    records.write_json(other / "run.json", record.model_copy(update={"base": record.base | {"weights": "0" * 32}}))
    with pytest.raises(UserError, match="other weights than the one .* leave the base out: --steps"):
        evaluate_run(other, SUITES, limit=2, results=results, progress=False)
    shutil.rmtree(other / "checkpoint")
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(UserError, match="records but no weights"):
        evaluate_run(other, SUITES, limit=2, results=results, progress=False)
