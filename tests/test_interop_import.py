"""Logs of lm-evaluation-harness and inspect as run folders: matched, graded, verifiable, or refused by name."""

from __future__ import annotations

import json

import pytest
from interop_logs import (
    NUM_PROBLEMS,
    answer,
    lm_eval_lines,
    problem,
    write_inspect,
    write_lighteval,
    write_lm_eval,
    write_problems,
)

from eval_harness import records
from eval_harness.__main__ import main
from eval_harness.errors import UserError
from eval_harness.interop.importers import import_logs
from eval_harness.records import Item, Sample
from eval_harness.runner import verify


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def inspect_log(tmp_path_factory):
    return write_inspect(tmp_path_factory.mktemp("inspect"))


def _read(out):
    run = records.read_run(out)
    items = records.read_lines(out / "items" / "aime24.jsonl", Item)
    samples = records.read_lines(out / "samples" / "aime24.jsonl", Sample)
    return run, items, {(s.item_id, s.sample): s for s in samples}


def _import(tool, path, out, problems, **more):
    return import_logs(tool, [path], ["aime24"], out, data_root=problems, **more)


def test_lm_eval(tmp_path, problems, capsys):
    """Two filters of one task are the same completions; their scores stay beside ours."""
    path = write_lm_eval(tmp_path / "log", lm_eval_lines(("strict-match", "flexible-extract")))
    command = ["import", "--from", "lm-eval", "--input", str(path), "--benchmark", "aime24", "--out"]
    assert main([*command, str(tmp_path / "run"), "--data-root", str(problems)]) == 0
    printed = capsys.readouterr().out
    assert "matched 30 by text" in printed and "exact_match,strict-match 50.0 %" in printed
    run, items, samples = _read(tmp_path / "run")
    assert run.engine == {"name": "imported", "tool": "lm-eval", "version": "0.4.13"}
    assert run.model["name"] == "someone/some-model" and run.status == "finished"
    result = run.benchmarks["aime24"]
    assert (result.num_items, result.asked, result.scored, result.failed) == (30, 30, 30, 0)
    assert result.score["mean"] == 0.5 and result.decoding.temperature == 0 and result.decoding.max_new_tokens == 64
    assert samples["4", 0].completion == answer(4) and samples["4", 0].correct and not samples["5", 0].correct
    assert items[3].prompt == f"Question: {problem(3)['problem']}\nAnswer:" and items[3].gold == problem(3)["answer"]
    note = run.settings["import"]["aime24"]
    assert note["file"] == path.name and len(note["sha256"]) == 64 and note["same_prompts"] is False
    assert str(tmp_path) not in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert list(records.samples_frame(tmp_path / "run").correct) == [i % 2 == 0 for i in range(NUM_PROBLEMS)]


def test_lm_eval_with_chat_and_repeats(tmp_path, problems):
    """A chat is a JSON list in a string, for models behind an API in a list of one; repeats are samples."""
    lines = lm_eval_lines()
    for i, line in enumerate(lines):
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": problem(i)["problem"]}]
        line["arguments"]["gen_args_0"]["arg_0"] = [json.dumps(turns)] if i % 2 else json.dumps(turns)
        line["arguments"]["gen_args_0"]["arg_1"] = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
        if i % 3 == 0:  # as older versions had it
            line["arguments"] = [list(line["arguments"]["gen_args_0"].values())]
        line["resps"] = [[answer(i), answer(i, 1)]]
    path = write_lm_eval(tmp_path / "log", lines, results=False)
    with pytest.raises(UserError, match="--model NAME"):
        _import("lm-eval", path, tmp_path / "run", problems)
    with pytest.raises(UserError, match="does not tell how was sampled.*Give --max-new-tokens N"):
        _import("lm-eval", path, tmp_path / "run", problems, model="m")
    assert not (tmp_path / "run").exists()
    out = _import("lm-eval", path, tmp_path / "run", problems, model="m", decoding={"max_new_tokens": 64})
    run, items, _ = _read(out)
    result = run.benchmarks["aime24"]
    assert [item.prompt for item in items] == [problem(i)["problem"] for i in range(NUM_PROBLEMS)]
    assert result.decoding.samples == 2 and result.score["mean"] == 0.25 and result.single["mean"] == 0.5


@pytest.mark.full("imports inspect_ai and runs its evaluation")
@pytest.mark.parametrize("log_format", ["eval", "json"])
def test_inspect(log_format, inspect_log, tmp_path, problems):
    """Epochs are samples; what the log says of decoding, tokens and stops is kept."""
    path = inspect_log
    if log_format == "json":
        from inspect_ai.log import read_eval_log, write_eval_log

        path = tmp_path / "log.json"
        write_eval_log(read_eval_log(str(inspect_log)), str(path))
    run, items, samples = _read(_import("inspect", path, tmp_path / "run", problems))
    assert run.model["name"] == "mockllm/model" and run.engine["version"].startswith("0.3.")
    result = run.benchmarks["aime24"]
    assert result.decoding.model_dump() == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 64, "samples": 2, "seed": -1,
        "system_prompt": None,
    }  # fmt: skip
    assert result.score["mean"] == 0.25 and result.single["mean"] == 0.5 and result.asked == 60
    assert items[2].prompt == f"Solve this: {problem(2)['problem']}"
    one = samples["2", 0]
    assert (one.completion, one.finish_reason, one.num_completion_tokens, one.seed) == (answer(2), "stop", 5, -1)
    assert samples["2", 1].num_completion_tokens == 6
    assert run.settings["import"]["aime24"]["scores_of_tool"]["match"] < 1
    assert verify(tmp_path / "run")["aime24"]["reproduced"]


@pytest.mark.full("imports inspect_ai and runs its evaluation")
def test_a_sample_that_inspect_could_not_run_is_failed(tmp_path, problems):
    path = write_inspect(tmp_path / "log", fail=4)
    run, _, samples = _read(_import("inspect", path, tmp_path / "run", problems))
    result = run.benchmarks["aime24"]
    assert (result.asked, result.scored, result.failed) == (60, 58, 2)
    assert samples["4", 0].status == "failed" and "the provider said no" in samples["4", 0].reason
    assert result.single["mean"] == 14 / 30  # problem 4 was one of the fifteen right ones


def test_lighteval(tmp_path, problems):
    """A task with a template of its own, in its own order: the problem is found inside the prompt."""
    run, items, samples = _read(_import("lighteval", write_lighteval(tmp_path / "log"), tmp_path / "run", problems))
    assert run.model["name"] == "someone/some-model" and run.settings["import"]["aime24"]["task"] == "mine|0"
    result = run.benchmarks["aime24"]
    assert (result.decoding.temperature, result.decoding.top_p, result.decoding.max_new_tokens) == (0.6, 0.95, 64)
    assert result.score["mean"] == 0.25 == run.settings["import"]["aime24"]["scores_of_tool"]["avg@n:n=2"]
    assert items[5].prompt == f"Solve: {problem(5)['problem']}\nANSWER:" and samples["4", 1].completion == answer(4, 1)
    assert run.settings["import"]["aime24"]["matched_by"] == {"text": 30}
    assert verify(tmp_path / "run")["aime24"]["reproduced"]


def _without(lines, *numbers):
    return [line for i, line in enumerate(lines) if i not in numbers]


def _strange(lines):
    strange = json.loads(json.dumps(lines[3]).replace("Problem 3.", "Riddle 3."))
    return [*_without(lines, 3), strange | {"doc_id": 77}]


REFUSED = {
    "missing": (lambda lines: _without(lines, 3, 9), "2 items without a row \\(3, 9\\)", (28, 28, 0)),
    "unmatched": (_strange, "1 rows that are no item of aime24 \\(doc_id 77\\)", (29, 29, 0)),
    "duplicate": (
        lambda lines: [*lines, lines[5] | {"resps": [["another"]]}],
        "1 rows of an item that has one already \\(doc_id 5 \\(item 5\\)\\)",
        (30, 30, 0),
    ),
    "incomplete": (
        lambda lines: [x | {"resps": [["a"] if i == 8 else ["a", "b"]]} for i, x in enumerate(lines)],
        "1 items with fewer answers than others \\(8\\)",
        (30, 60, 1),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case, tmp_path, problems):
    """Refused with nothing written; with partial left out and counted."""
    change, message, counts = REFUSED[case]
    path = write_lm_eval(tmp_path / "log", change(lm_eval_lines()))
    with pytest.raises(UserError, match=message):
        _import("lm-eval", path, tmp_path / "run", problems)
    assert not (tmp_path / "run").exists()
    run, _, samples = _read(_import("lm-eval", path, tmp_path / "run", problems, partial=True))
    result = run.benchmarks["aime24"]
    assert (result.num_items, result.asked, result.failed) == counts
    note = run.settings["import"]["aime24"]
    assert [key for key in ("missing", "unmatched", "duplicates", "incomplete") if note[key]] == {
        "missing": ["missing"],
        "unmatched": ["missing", "unmatched"],
        "duplicate": ["duplicates"],
        "incomplete": ["incomplete"],
    }[case]
    if case == "duplicate":
        assert samples["5", 0].completion == answer(5)  # the first one stays


def test_rewritten_problems_are_matched_by_place_when_the_gold_is_the_same(tmp_path, problems):
    lines = [json.loads(json.dumps(line).replace("Let $x", "Say that $x")) for line in lm_eval_lines()]
    for line in lines:
        line["target"] = f"{line['target']}.0"  # another spelling of the same number
    path = write_lm_eval(tmp_path / "log", lines)
    run, _, _ = _read(_import("lm-eval", path, tmp_path / "run", problems))
    assert run.settings["import"]["aime24"]["matched_by"] == {"index": 30}
    lines[6]["target"] = "5"
    path = write_lm_eval(tmp_path / "other", lines)
    with pytest.raises(UserError, match="no item of aime24 \\(doc_id 6\\).*without a row \\(6\\)"):
        _import("lm-eval", path, tmp_path / "refused", problems)


def test_golds_that_differ_are_told(tmp_path, problems):
    """The text decides which item it is; our gold grades it."""
    lines = lm_eval_lines()
    lines[6]["target"] = "5"
    run, _, samples = _read(_import("lm-eval", write_lm_eval(tmp_path / "l", lines), tmp_path / "run", problems))
    assert run.settings["import"]["aime24"]["gold_differs"] == ["6"] and samples["6", 0].correct


def test_bad_input_is_refused(tmp_path, problems):
    path = write_lm_eval(tmp_path / "log", lm_eval_lines())
    choices = write_lm_eval(tmp_path / "mc", lm_eval_lines(resps=[[["-1.5", "False"]], [["-2.5", "False"]]]))
    empty = write_lm_eval(tmp_path / "empty", lm_eval_lines(resps=[[]]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    for message, call in {
        "log-likelihoods": lambda out: _import("lm-eval", choices, out, problems),
        "no such file": lambda out: _import("inspect", tmp_path / "none.eval", out, problems),
        "inspect_ai cannot read it": lambda out: _import("inspect", path, out, problems),
        "not a parquet file": lambda out: _import("lighteval", path, out, problems),
        "did you mean 'lm-eval'": lambda out: _import("lm-evals", path, out, problems),
        "no completions": lambda out: _import("lm-eval", empty, out, problems),
        "not empty": lambda out: _import("lm-eval", path, tmp_path / "full", problems),
        "one of each": lambda out: import_logs("lm-eval", [path, path], ["aime24"], out, data_root=problems),
        "stands there twice": lambda out: import_logs("lm-eval", [path] * 2, ["aime24"] * 2, out, data_root=problems),
        "is it another": lambda out: import_logs("lm-eval", [path], ["tiny_sums"], out, data_root=problems),
    }.items():
        with pytest.raises(UserError, match=message):
            call(tmp_path / "run")
    assert not (tmp_path / "run").exists() and len(lm_eval_lines()) == NUM_PROBLEMS
