"""Controls: one engine for several settings, prompt sensitivity, contamination; see docs/controls.md."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from engine_here import EngineHere
from scipy import stats as scipy_stats

from eval_harness import records, runner
from eval_harness.__main__ import main as harness_main
from eval_harness.benchmarks import get_benchmark
from eval_harness.contamination import compare_drops, excess_drop
from eval_harness.engines.shared import SharedEngine
from eval_harness.errors import UserError
from eval_harness.records import BenchmarkResult, Decoding, Sample
from eval_harness.runner import Overrides, evaluate
from eval_harness.sensitivity import Sensitivity, grid, measure, rows
from gpg_repro.__main__ import main as gpg_repro_main
from gpg_repro.controls import (
    PROMPTS,
    overlap_of,
    sensitivity_report,
    tiny_contamination,
    tiny_sets,
    training_questions,
)
from gpg_repro.recipe import load_recipe

matplotlib.use("agg")

SUITES = ["tiny_sums", "tiny_chains"]


@pytest.fixture
def engines_here(monkeypatch, grading_pool):
    """Engines without processes and one grading pool for all runs; the list of the engines that were started."""
    started = []

    one_pool = SimpleNamespace(start=lambda graders: nullcontext(grading_pool))
    monkeypatch.setattr(runner, "GradingPool", lambda **_: one_pool)

    class Counted(EngineHere):
        def __init__(self, engine, settings, log, environment=None):
            started.append(settings)
            super().__init__(engine, settings, log, environment)

    monkeypatch.setattr(runner, "EngineProcess", Counted)
    return started


def lines(folder):
    return {
        path.stem: sorted(path.read_text(encoding="utf-8").splitlines())
        for path in (folder / "samples").glob("*.jsonl")
    }


# One engine -----------------------------------------------------------------------------------------------------------


def test_a_shared_engine_starts_once_and_changes_nothing(random_checkpoint, tmp_path, engines_here):
    """Own template, plain text, with a system prompt: each run equals the one with an engine of its own."""
    wanted = {
        "own": {},
        "plain": {"chat_template": "none"},
        "plain-system": {"chat_template": "none", "overrides": Overrides(max_new_tokens=12, system_prompt="be brief")},
    }
    common = {"engine": "transformers", "limit": 4, "progress": False, "overrides": Overrides(max_new_tokens=12)}

    def run(name, **more):
        return evaluate(
            str(random_checkpoint), SUITES[:1], out=tmp_path / name, **common | wanted[name.split("/")[1]] | more
        )

    with SharedEngine() as shared:
        together = {name: run(f"together/{name}", shared=shared) for name in wanted}
        assert len(engines_here) == 1 and engines_here[0].chat_template is None
    alone = {name: run(f"alone/{name}") for name in wanted}
    assert len(engines_here) == 4
    found = [lines(together[name]) for name in wanted]
    assert found == [lines(alone[name]) for name in wanted]
    assert all(found[i] != found[j] for i in range(3) for j in range(i))
    for name in wanted:
        one, other = records.read_run(together[name]), records.read_run(alone[name])
        assert (one.fingerprint, one.benchmarks, one.settings) == (other.fingerprint, other.benchmarks, other.settings)
    assert [records.read_run(folder).provenance["sessions"][0]["settings"]["chat_template"]
            for folder in together.values()] == [None, "none", "none"]  # fmt: skip
    with SharedEngine() as shared:  # finished runs ask nothing, so nothing is started
        run("together/own", shared=shared)
    assert len(engines_here) == 4


def test_a_shared_engine_refuses_another_way_of_loading(random_checkpoint, tmp_path, engines_here):
    common = {"engine": "transformers", "limit": 1, "progress": False, "overrides": Overrides(max_new_tokens=2)}
    with SharedEngine() as shared:
        evaluate(str(random_checkpoint), SUITES[:1], out=tmp_path / "a", shared=shared, **common)
        with pytest.raises(ValueError, match="load the model alike"):
            evaluate(str(random_checkpoint), SUITES[:1], out=tmp_path / "b", shared=shared, max_model_len=256, **common)


# Prompt sensitivity ---------------------------------------------------------------------------------------------------


def test_the_grid_has_the_default_first_and_every_pair_once():
    settings = grid({"a": "x", "b": "y"})
    assert [(s.template, s.system) for s in settings] == [
        ("own", "none"), ("own", "a"), ("own", "b"), ("none", "none"), ("none", "a"), ("none", "b"),
    ]  # fmt: skip
    assert [s.template for s in grid({"a": "x"}, has_template=False)] == ["none", "none"]
    assert set(PROMPTS) == {"open_rs", "open_r1_think", "open_r1_boxed"}
    assert "\\boxed{{}}" in PROMPTS["open_rs"] and "\\boxed" not in PROMPTS["open_r1_think"]


def test_a_grid_is_eight_ordinary_runs_of_one_engine(random_checkpoint, tmp_path, engines_here):
    options = {"engine": "transformers", "limit": 3, "progress": False, "overrides": Overrides(max_new_tokens=4)}
    found = measure(str(random_checkpoint), SUITES, PROMPTS, out=tmp_path / "grid", **options)
    assert len(engines_here) == 1 and len(found.folders) == 8 and found.default.name == "template-own_system-none"
    asked = set()
    for setting, folder in found.folders.items():
        run = records.read_run(folder)
        decodings = [result.decoding for result in run.benchmarks.values()]
        system = PROMPTS.get(setting.system)
        assert run.status == "finished" and all(d.system_prompt == system for d in decodings)
        assert run.settings["chat_template"] == (None if setting.template == "own" else "none")
        samples = records.read_lines(folder / "samples" / "tiny_sums.jsonl", Sample)
        asked.add((setting.template, {s.item_id: s.num_prompt_tokens for s in samples}["0"]))
        assert {(s.item_id, s.seed) for s in samples} == {
            (str(i), runner.item_seed(1234, "tiny_sums", str(i))) for i in range(3)
        }
    assert len(asked) == 8  # every setting is another prompt
    again = measure(str(random_checkpoint), SUITES, PROMPTS, out=tmp_path / "grid", **options)
    assert again == found and len(engines_here) == 1  # finished runs are read
    few = measure(str(random_checkpoint), SUITES, PROMPTS, out=tmp_path / "grid", only=["open_rs"], **options)
    assert [s.system for s in few.folders] == ["none", "open_rs", "open_rs"]
    with pytest.raises(UserError, match="did you mean 'open_rs'"):
        measure(str(random_checkpoint), SUITES, PROMPTS, only=["open_r"], **options)
    with pytest.raises(UserError, match="what is varied"):
        measure(str(random_checkpoint), SUITES, PROMPTS, **options | {"overrides": Overrides(system_prompt="x")})


def marked(folder, marks: dict[str, list[list[int]]], **settings):
    """A finished run with these marks: benchmark -> items -> samples."""
    for name, items in marks.items():
        lines = [
            Sample(
                item_id=str(i), sample=k, seed=k, status="scored", completion="x", finish_reason="stop",
                num_prompt_tokens=1, num_completion_tokens=1, correct=bool(mark), correct_strict=not mark,
                extracted=None, reason="match" if mark else "no_answer", gold_fallback=False,
            )
            for i, of_item in enumerate(items) for k, mark in enumerate(of_item)
        ]  # fmt: skip
        records.replace_lines(folder / "samples" / f"{name}.jsonl", reversed(lines))  # any order on disk
    decoding = {"temperature": 0.6, "top_p": 1.0, "top_k": 0, "max_new_tokens": 9, "samples": 1, "seed": 1}
    results = {
        name: BenchmarkResult(
            version=1, source="s", prompts_hash="h", decoding=Decoding(system_prompt=None, **decoding | settings),
            num_items=len(items), asked=len(items), scored=len(items), failed=0, score=None, score_strict=None,
            num_gold_fallback=0, num_truncated=0, num_no_answer=0, num_timeout=0, mean_completion_tokens=None,
        )
        for name, items in marks.items()
    }  # fmt: skip
    record = records.RunRecord(
        run_id=folder.name, fingerprint="f", status="finished", created="c", finished="c", model={"name": "m"},
        engine={"name": "vllm"}, settings={}, benchmarks=results, average=None, timings={}, environment={},
    )  # fmt: skip
    records.write_json(folder / "run.json", record)
    return folder


def by_count(right: int, num: int = 20) -> list[list[int]]:
    return [[int(i < right)] for i in range(num)]


def test_differences_are_paired_with_the_default(tmp_path):
    """10 of 20 right by default, 4 of these under the first prompt: McNemar's 6 against 0, p = 2/64."""
    settings = grid({"a": "x", "b": "y"}, has_template=False)
    counts = {"none": 10, "a": 4, "b": 10}
    folders = {s: marked(tmp_path / s.name, {"tiny_sums": by_count(counts[s.system])}) for s in settings}
    lines = rows(Sensitivity("m", tmp_path, folders, ("tiny_sums",)))
    default, a, b = lines
    assert default["is_default"] and default["difference"] is None and default["mean"] == 0.5
    assert a["difference"] == pytest.approx(-0.3) and a["p_value"] == pytest.approx(2 / 64) and a["p_kind"] == "exact"
    # item differences: six of -1, fourteen of 0; mean -0.3, variance (6 * 0.49 + 14 * 0.09) / 19 = 0.221, se 0.1051
    assert (a["difference_low"], a["difference_high"]) == pytest.approx(
        (-0.3 - 2.093 * 0.1051, -0.3 + 2.093 * 0.1051), abs=1e-3
    )
    assert a["p_holm"] == pytest.approx(2 * 2 / 64) and b["difference"] == 0 and b["p_value"] == 1
    assert (a["no_answer"], a["failed"], a["truncated"]) == (16, 0, 0)
    strict = rows(Sensitivity("m", tmp_path, folders, ("tiny_sums",)), rule="strict")
    assert strict[1]["difference"] == pytest.approx(0.3)


def test_the_report_of_a_grid(tmp_path):
    settings = grid({"open_rs": "x"})
    suites = {"tiny_sums": 10, "tiny_chains": 12}
    found = {}
    for model, loss in (("base", 0), ("ours", 9)):
        folders = {
            s: marked(
                tmp_path / model / s.name,
                {n: by_count(c - (loss if s.system != "none" else 0)) for n, c in suites.items()},
            )
            for s in settings
        }
        found[model] = Sensitivity(model, tmp_path / model, folders, tuple(suites))
    report = sensitivity_report(found, "tiny", tmp_path / "results")
    assert report.table.loc[("ours", "own template, open_rs"), "difference"].startswith("-45.0 [")
    assert report.table.loc[("ours", "own template, no system prompt"), "difference"] == "–"
    assert "**base**: 0 of 3 other settings differ" in report.text and "**ours**: 2 of 3 other settings" in report.text
    assert report.notes[0].startswith("Scale tiny: models of under 2 M parameters")
    for name in ("tables/tiny/sensitivity.md", "figures/tiny/sensitivity.png", "figures/tiny/sensitivity.svg"):
        assert (tmp_path / "results" / name).stat().st_size > 1000
    assert "miniature, scale tiny" in (tmp_path / "results/tables/tiny/sensitivity.md").read_text(encoding="utf-8")
    assert not any("miniature" in note for note in sensitivity_report(found, "paper", tmp_path / "results").notes)


def test_the_command(random_checkpoint, tmp_path, engines_here, monkeypatch, capsys):
    monkeypatch.setenv("GPG_RESULTS", str(tmp_path))
    command = ["sensitivity", "--model", str(random_checkpoint), "--benchmarks", "tiny_sums", "--limit", "2"]
    command += [
        "--engine",
        "transformers",
        "--max-new-tokens",
        "3",
        "--system",
        "open_rs",
        "--out",
        str(tmp_path / "g"),
    ]
    assert gpg_repro_main(command) == 0
    shown = capsys.readouterr().out
    assert "own template, open_rs" in shown and "open_r1_think" not in shown
    assert gpg_repro_main([*command, "--system", "nothing"]) == 2 and "unknown system prompt" in capsys.readouterr().err


# Contamination --------------------------------------------------------------------------------------------------------


def test_excess_drop_by_hand():
    """The old set: model 15, base 10 of 20 right; the new set: model 9, base 6 of 12. Gains of 25 and 25 points."""
    drop = excess_drop({"old": (by_count(15), by_count(10))}, {"new": (by_count(9, 12), by_count(6, 12))})
    assert (drop.gain_old, drop.gain_new, drop.excess) == pytest.approx((0.25, 0.25, 0.0))
    assert (drop.drop, drop.base_drop) == pytest.approx((0.0, 0.0)) and drop.reading == "not resolved"
    # variances 20 * .25 * .75 / 19 = 0.19737 and 12 * .25 * .75 / 11 = 0.20455; se = sqrt(/20 + /12) = 0.16407
    # Welch: se^4 / ((0.19737/20)^2/19 + (0.20455/12)^2/11) = 22.9 degrees of freedom, t = 2.0693
    assert (drop.low, drop.high) == pytest.approx((-0.3395, 0.3395), abs=2e-4)
    assert (drop.num_items_old, drop.num_items_new, drop.num_samples) == (20, 12, 32)
    assert drop.p_value == pytest.approx(1.0)


def test_excess_drop_agrees_with_welchs_test():
    rng = np.random.default_rng(0)
    marks = [rng.integers(0, 2, (n, 4)) for n in (30, 30, 25, 25)]
    drop = excess_drop({"a": (marks[0], marks[1])}, {"b": (marks[2], marks[3])})
    gaps = [(marks[i] - marks[i + 1]).mean(axis=1) for i in (0, 2)]
    welch = scipy_stats.ttest_ind(*gaps, equal_var=False)
    assert drop.p_value == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval()
    assert (drop.low, drop.high) == pytest.approx((interval.low, interval.high))


def test_a_harder_set_is_no_contamination_and_a_seen_one_is():
    """Both models lose 60 points on a hard new set: nothing. One that gains on the old set alone: that gain."""
    hard = excess_drop({"o": (by_count(90, 100), by_count(80, 100))}, {"n": (by_count(30, 100), by_count(20, 100))})
    assert hard.drop == pytest.approx(0.6) and hard.excess == pytest.approx(0.0) and hard.reading == "not resolved"
    seen = excess_drop({"o": (by_count(90, 100), by_count(60, 100))}, {"n": (by_count(30, 100), by_count(30, 100))})
    assert seen.excess == pytest.approx(0.3) and seen.low > 0 and seen.reading == "gains more on the old set"
    other = excess_drop({"n": (by_count(30, 100), by_count(30, 100))}, {"o": (by_count(90, 100), by_count(60, 100))})
    assert other.excess == pytest.approx(-0.3) and other.reading == "gains more on the new set"
    same = excess_drop({"o": (by_count(5), by_count(5))}, {"n": (by_count(5), by_count(5))})
    assert same.low < 0 < same.high and same.reading == "not resolved"  # nothing moved: no proof that nothing could


def test_several_old_sets_weigh_alike():
    old = {"a": (by_count(10, 10), by_count(5, 10)), "b": (by_count(50, 100), by_count(40, 100))}  # gains 50 and 10
    drop = excess_drop(old, {"n": (by_count(3), by_count(3))})
    assert (drop.old, drop.gain_old, drop.excess) == ("a+b", pytest.approx(0.3), pytest.approx(0.3))
    with pytest.raises(ValueError, match="same items"):
        excess_drop({"a": (by_count(1, 3), by_count(1, 4))}, {"n": (by_count(3), by_count(3))})
    with pytest.raises(ValueError, match="two items"):
        excess_drop({"a": (by_count(1, 1), by_count(1, 1))}, {"n": (by_count(3), by_count(3))})


def test_runs_are_compared_under_the_same_settings_only(tmp_path, capsys):
    marks = {"aime24": 15, "aime25": 9, "math500": 18, "fresh_math_seed7": 12}
    model = marked(tmp_path / "model", {name: by_count(n) for name, n in marks.items()})
    base = marked(tmp_path / "base", {name: by_count(n - 5) for name, n in marks.items()})
    drops = compare_drops(model, base)
    assert [(d.old, d.new) for d in drops] == [
        ("aime24", "aime25"), ("aime24", "fresh_math_seed7"), ("math500", "fresh_math_seed7"),
    ]  # fmt: skip
    assert all(d.excess == pytest.approx(0.0) for d in drops)
    assert compare_drops(model, base, [("aime24+math500", "aime25")])[0].gain_old == pytest.approx(0.25)
    assert harness_main(["contamination", str(model), str(base)]) == 0
    shown = capsys.readouterr().out
    assert "AIME24" in shown and "Fresh Math (seed 7)" in shown and "+25.0 [" in shown and "not resolved" in shown
    greedy = marked(tmp_path / "greedy", {name: by_count(n) for name, n in marks.items()}, temperature=0.0)
    assert harness_main(["contamination", str(model), str(greedy)]) == 2
    assert "temperature 0.6 against 0.0" in capsys.readouterr().err
    with pytest.raises(UserError, match="was not measured on minerva"):
        compare_drops(model, base, [("minerva", "aime25")])
    with pytest.raises(UserError, match="no old and new set in common"):
        compare_drops(*(marked(tmp_path / f"lone{i}", {"aime24": by_count(3)}) for i in "ab"))
    assert harness_main(["contamination", str(model), str(base), "--pairs", "aime24"]) == 2


# The miniature --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["smoke", "tiny"])
def test_training_questions_are_those_of_the_warm_up_and_of_the_training_set(scale):
    from gpg_repro.datasets import get_training_set
    from gpg_repro.tiny import warmup
    from gpg_repro.tiny.tokenizer import build_tokenizer

    recipe = load_recipe("table3_gpg_rs1", scale=scale, seed=2)
    streams, tokenizer = training_questions(recipe), build_tokenizer()
    shown = warmup._demonstrations(tokenizer, warmup.SCALES[scale], 0, bare=False)
    prompts = {tokenizer.decode(ids) for ids, _ in shown[:200]}
    assert all(any(question in prompt for question in streams["warm-up"]) for prompt in list(prompts)[:20])
    assert len(streams["warm-up"]) == len(shown) == warmup.SCALES[scale].num_demonstrations
    rows_of_set = get_training_set("tiny_s1").source(recipe.setup.num_prompts, 2)
    assert streams["training"] == {row["prompt"][0]["content"] for row in rows_of_set}
    with pytest.raises(UserError, match="does not train on generated text questions"):
        training_questions(load_recipe("table5_gpg_r2", scale=scale))


def test_overlap_is_counted():
    streams = training_questions(load_recipe("table3_gpg_rs1", scale="tiny", seed=0))
    overlap = overlap_of(tiny_sets(), streams)
    assert overlap["items"].tolist() == [500, 500, 500]
    assert overlap["training"].tolist() == [1.0, 0.0, 0.0] and overlap["warm-up"].tolist() == [1.0, 0.0, 0.0]
    assert overlap["held out"].tolist()[:2] == [0.0, 1.0] and 0 < overlap["held out"].iloc[2] < 0.5
    other = training_questions(load_recipe("table3_gpg_rs1", scale="tiny", seed=1))
    assert 0 < overlap_of(tiny_sets(), other)["training"].iloc[0] < 0.5  # another training seed saw other questions


def test_seen_and_fresh_are_looked_up(tmp_path):
    """A model right on what it was trained on and nothing else, its base right on nothing: excess of 100 points."""
    recipe = load_recipe("table3_gpg_rs1", scale="smoke", seed=0)
    streams = training_questions(recipe)
    marks = {"model": {}, "base": {}}
    for name in [name for names in tiny_sets().values() for name in names]:
        items = get_benchmark(name).load()
        marks["model"][name] = [[int(item.prompt in streams["training"])] for item in items]
        marks["base"][name] = [[0] for _ in items]
        for run in marks:
            records.append_lines(tmp_path / run / "items" / f"{name}.jsonl", items)
    runs = {run: marked(tmp_path / run, of) for run, of in marks.items()}
    report = tiny_contamination(runs["model"], runs["base"], recipe, "smoke", tmp_path / "results")
    seen, fresh = report.drops
    assert (seen.gain_old, seen.gain_new, seen.num_items_old) == (
        1.0,
        0.0,
        200,
    )  # 40 of each suite's 100 were trained on
    assert seen.reading == "gains more on the old set" and seen.excess == pytest.approx(1.0)
    assert fresh.excess == 0 and fresh.num_items_new == round(500 * (1 - report.overlap["held out"].iloc[2]))
    scores = report.scores.set_index(["model", "questions"])["mean"]
    assert scores["trained", "seen in training − held out"] == 1.0 and scores["base", "held out"] == 0.0
    assert (tmp_path / "results/figures/smoke/contamination.png").stat().st_size > 1000
