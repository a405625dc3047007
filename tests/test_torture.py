"""The short form of ``make torture``: a killed evaluation and training are resumed and compared; and its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torture import campaigns
from torture.__main__ import State, plan_of, summary
from torture.campaigns import EVALUATION, NOTEBOOK, TRAINING, Snapshot, differences, phase_of
from torture.victims import Plan, attempt, left_of, wait_for_orphans

from eval_harness import records
from eval_harness.records import Sample

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torture reads /proc")


@pytest.mark.long("four kills, each with a resumed run")
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    """Two kills each; 0: records, weights and metrics are those of an undisturbed run, and no orphan is left."""
    command = [sys.executable, "tests/torture", "evaluation", "training", "--short", "--kills", "2", "--seed", "3"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for name in ("evaluation", "training"):
        assert f"{name}: 2 kills survived" in done.stdout
    assert done.stdout.count("equal to the undisturbed run") >= 2 and done.stdout.count("bytes lost: none") == 2
    assert {path.name for path in (tmp_path / "out" / "training").iterdir()} == {"state.json"}


# --- The instrument --------------------------------------------------------------------------------------------------

VICTIM = """
import json, os, subprocess, sys, time
from pathlib import Path
root = Path(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
for i in range(int(sys.argv[2])):
    with open(root / "lines.jsonl", "ab", buffering=0) as file:
        data = json.dumps({"i": i, "text": "x" * 100}).encode() + b"\\n"
        while data:
            data = data[file.write(data):]
(root / "sub").mkdir(exist_ok=True)
(root / "sub" / "a").touch()
os.rename(root / "sub" / "a", root / "b")
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def victim(tmp_path):
    """Runs the script above under a plan."""
    (tmp_path / "victim.py").write_text(VICTIM, encoding="utf-8")

    def run(plan: Plan, name: str, lines: int = 5, seconds: float = 0.0):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        arguments = [str(tmp_path / name), str(lines), str(seconds)]
        return attempt("victim", arguments, environment, tmp_path / name, tmp_path / f"trace-{name}", plan)

    return run


def test_every_change_to_a_file_is_seen(victim, tmp_path):
    ending = victim(Plan("finish"), "a")
    assert (ending.status, ending.num_events, ending.num_writes) == (
        "finished",
        8,
        5,
    )  # mkdir, touch and rename besides
    (path,) = (tmp_path / "trace-a").glob("*.events")
    assert path.read_text().splitlines()[-3:] == ["os.mkdir sub", "open sub/a", "os.rename sub/a"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_kill_before_a_change(whole, victim, tmp_path):
    """Before the fourth line: three are there, and what the victim started ends with it."""
    ending = victim(Plan("event", 4, whole=whole), "a", seconds=60)
    assert (ending.status, ending.phase) == ("killed", "before write lines.jsonl")
    assert len((tmp_path / "a" / "lines.jsonl").read_bytes().splitlines()) == 3
    assert wait_for_orphans(tmp_path / "trace-a", 20) == []


def test_a_kill_inside_a_write(victim, tmp_path):
    ending = victim(Plan("write", 3, bytes=17), "a", seconds=60)
    assert (ending.status, ending.phase) == ("killed", "inside lines.jsonl")
    *whole, torn = (tmp_path / "a" / "lines.jsonl").read_bytes().split(b"\n")
    assert len(whole) == 2 and len(torn) == 17


def test_a_kill_at_a_moment(victim, tmp_path):
    ending = victim(Plan("time", 0.3), "a", seconds=60)
    assert ending.status == "killed" and "in <module>" in ending.phase and 'victim.py"' in ending.phase
    assert left_of(tmp_path / "trace-a") == []


def test_orphans_are_named(tmp_path):
    trace = tmp_path / "trace"
    environment = {**os.environ, "MARK": json.dumps({"trace": str(trace)})}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], env=environment, **pipes)
    try:
        process.stdout.readline()  # for a moment after it begins, its environment cannot be read
        (problem,) = wait_for_orphans(trace, 0.5)
        assert str(process.pid) in problem and process.wait(20) < 0
    finally:
        process.kill()


def test_a_failure_is_no_kill(victim):
    ending = victim(Plan("finish"), "a", lines=-1, seconds=-1.0)  # time.sleep refuses
    assert ending.status == "failed" and "sleep length must be non-negative" in ending.problems[0]


# --- The judgement ---------------------------------------------------------------------------------------------------


def sample(index: int, number: int) -> Sample:
    return Sample(
        item_id=str(index), sample=number, seed=0, status="scored", completion="x", finish_reason="stop",
        num_prompt_tokens=1, num_completion_tokens=1, correct=True, correct_strict=True, extracted=None,
        reason="match", gold_fallback=False,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A killed evaluation with two whole items of two samples and one of a third."""
    folder = tmp_path / "root" / "run"
    record = records.RunRecord(
        run_id="r", fingerprint="f", status="running", created="2026", finished=None, model={}, engine={}, settings={},
        benchmarks={}, average=None, timings={}, environment={},
    )  # fmt: skip
    records.write_json(folder / "run.json", record)
    lines = [sample(0, 0), sample(0, 1), sample(1, 0), sample(1, 1), sample(2, 0)]
    records.append_lines(folder / "samples" / "s.jsonl", lines)
    return tmp_path / "root"


def test_what_was_whole_must_stay(root):
    path = root / "run" / "samples" / "s.jsonl"
    before, problems, lost = campaigns.inspect(root, Snapshot())
    assert not problems and not lost and len(before.lines["run/samples/s.jsonl"]) == 4
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + b'{"item')  # the lone sample went: its item was not whole
    assert campaigns.inspect(root, before)[1:] == ([], 0)
    path.write_bytes(b"".join(lines[:3]))
    _, problems, lost = campaigns.inspect(root, before)
    assert lost and "2 whole lines of before are gone" in problems[0]  # with one of its two, item 1 is not whole
    path.write_bytes(b"".join([*lines, lines[0]]))
    assert "stands there twice" in campaigns.inspect(root, before)[1][0]
    path.write_bytes(b"".join([lines[0][:50] + b"\n", *lines]))
    assert "a torn line inside" in campaigns.inspect(root, before)[1][0]
    (root / "run" / "run.json").write_text("{", encoding="utf-8")
    assert "not valid JSON" in campaigns.inspect(root, before)[1][0]


def test_steps_that_a_save_covers_must_be_there(tmp_path):
    folder = tmp_path / "root" / "train-x"
    record = records.TrainingRecord(
        run_id="t", fingerprint="f", status="running", created="2026", finished=None, recipe={}, base={},
        checkpoint=None, num_steps=0, timings={}, environment={},
    )  # fmt: skip
    records.write_json(folder / "run.json", record)
    (folder / "steps.jsonl").write_text('{"step": 1}\n{"step": 3}\n', encoding="utf-8")
    assert not campaigns.inspect(tmp_path / "root", Snapshot())[1]  # no save covers the second
    save = folder / "trainer" / "checkpoint-2"
    save.mkdir(parents=True)
    (save / "complete").touch()
    _, problems, _ = campaigns.inspect(tmp_path / "root", Snapshot())
    assert any("lacks steps [2]" in problem for problem in problems)
    assert any("config.json" in problem for problem in problems)  # and the save is not one


def test_differences_are_found_and_time_is_none(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for root, clock in ((one, "1"), (other, "2")):
        folder = root / "run"
        (folder / "samples").mkdir(parents=True)
        run = {"created": clock, "timings": {"s": clock}, "provenance": {"sessions": [clock], "seeds": 1}, "score": 1}
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
        (folder / "steps.jsonl").write_text(json.dumps({"step": 1, "step_time": clock, "loss": 0.5}) + "\n")
        lines = ["a\n", "b\n"] if clock == "1" else ["b\n", "a\n"]
        (folder / "samples" / "s.jsonl").write_text("".join(lines))
        (folder / "engine.log").write_text(clock)
        table = f"| row | seconds per run | x |\n|:--|--:|--|\n| a | {clock}0000 | 5 |\n"
        (folder / "t.md").write_text(table)
        cells = f'<td data-sort="0.5">0.500\n</td>\n<td data-sort="7.{clock}" title="steps: 4">{clock}\n</td>\n</tr>'
        (folder / "t.html").write_text(f"<table><th>seconds per run</th><tr>{cells}</table>")
    assert differences(one, other) == []
    for name, change, told in (
        ("run.json", lambda t: t.replace('"score": 1', '"score": 2'), "run.json differs: score"),
        ("steps.jsonl", lambda t: t.replace("0.5", "0.6"), "steps.jsonl differs: loss"),
        ("samples/s.jsonl", lambda t: t + "c\n", "2 and 3 entries"),
        ("t.md", lambda t: t.replace("| 5 |", "| 6 |"), "t.md differs"),
        ("t.html", lambda t: t.replace("0.500", "0.600"), "t.html differs"),
    ):
        path = other / "run" / name
        text = path.read_text()
        path.write_text(change(text))
        (problem,) = differences(one, other)
        assert told in problem
        path.write_text(text)
    (other / "run" / ".run.json.7.tmp").touch()
    (one / "run" / "more").touch()
    assert differences(one, other) == ["run/more is missing", "run/.run.json.7.tmp is left over"]


def test_phases():
    assert phase_of(TRAINING, "before os.rename runs/t/.run.json.1.tmp") == "before a rename: run.json"
    assert phase_of(TRAINING, "inside runs/t/steps.jsonl") == "inside a write: steps.jsonl"
    assert phase_of(TRAINING, "before open runs/t/trainer/checkpoint-2/complete") == (
        "before a write: mark of a whole checkpoint"
    )
    stack = 'File "x/transformers/generation/utils.py", line 1 in _sample\n  File "trainer.py" in training_step'
    assert phase_of(TRAINING, stack) == phase_of(NOTEBOOK, stack) == "at a moment: sampling"
    assert phase_of(TRAINING, stack + '\n  File "<frozen runpy>", line 88 in _run_code') == "at a moment: sampling"
    assert phase_of(TRAINING, 'File "<frozen importlib._bootstrap>", line 1 in x') == "at a moment: starting: imports"
    assert phase_of(EVALUATION, 'File "y" in nothing_known') == "at a moment: other"


def test_plans_are_drawn_from_the_generator_and_reach_every_kind():
    facts = {"seconds": 20.0, "first_change_s": 5.0, "num_events": 300, "num_writes": 100}
    plans = [plan_of(np.random.default_rng([0, 1, i]), facts, 10) for i in range(300)]
    assert plans == [plan_of(np.random.default_rng([0, 1, i]), facts, 10) for i in range(300)]
    assert {plan.kind for plan in plans} == {"event", "write", "time"} and {plan.whole for plan in plans} == {
        True,
        False,
    }
    assert max(plan.at for plan in plans if plan.kind == "event") <= 15 + 60


def test_a_campaign_goes_on_where_it_was(tmp_path):
    state = State(tmp_path / "c", {"kills": 3})
    state.update(kills=[{"phase": "p", "whole": True}], attempts=4)
    assert State(tmp_path / "c", {"kills": 3})["attempts"] == 4
    assert "c: 1 kills survived in 0 rounds (1 of everything at once, 0 of one process), bytes lost: none" in summary(
        {"c": state}
    )
    state.update(done=True)
    assert State(tmp_path / "c", {"kills": 3})["attempts"] == 0  # a finished one starts anew
    state.update(done=False)
    assert State(tmp_path / "c", {"kills": 4})["attempts"] == 0  # so does another
