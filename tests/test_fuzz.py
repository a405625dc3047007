"""The fuzzer itself: it repeats itself, finds planted bugs, makes them small, and finds none in what we have."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from eval_harness.fuzz import generate
from eval_harness.fuzz.__main__ import main
from eval_harness.fuzz.corpus import read_corpus
from eval_harness.fuzz.driver import Fuzzer, input_of, schedule
from eval_harness.fuzz.generate import Draw, Input
from eval_harness.fuzz.targets import Target, all_targets, problem_of, says_nothing
from eval_harness.graders import nursery
from eval_harness.graders.base import CRASHED, GRADERS, Verdict
from eval_harness.graders.pool import GradingPool
from gpg_repro.fuzzing import REWARDS, TARGETS
from gpg_repro.rewards import all_rewards

CASES = Path(__file__).parent / "cases" / "hostile.json"
SEED = 20


@pytest.fixture(scope="module")
def pool():
    nursery.stop()  # the next one imports what the parsers need before the clock runs
    warm = mock.patch.object(nursery, "PRELOAD", (*nursery.PRELOAD, "eval_harness.fuzz.warm"))
    with warm, GradingPool(deadline=0.5, memory=512 << 20, patience=20).start() as pool:
        yield pool


@pytest.mark.long("a short fuzz of every target")
def test_a_short_run_finds_nothing(pool):
    """The short form of ``make fuzz``, with another seed."""
    corpus = [entry.text for entry in read_corpus(CASES)]
    targets = all_targets() | TARGETS
    summary = Fuzzer(pool, targets, corpus, SEED).run(1000)
    assert [(f.target, f.problem, f.number) for f in summary.failures] == []
    assert summary.num_inputs == 1000 and all(reasons.total() for reasons in summary.reasons.values())
    unfinished = sum(summary.reasons[name]["timeout"] for name in targets)
    assert unfinished < 0.05 * 1000
    assert min(summary.checked.values()) > 2 and len(summary.checked) == 4
    assert 0 < summary.born_memory < summary.peak_memory < summary.born_memory + (512 + 512 + 64 << 20)


def test_every_grader_and_reward_is_a_target():
    targets = all_targets()
    assert set(GRADERS) == {name for name, target in targets.items() if target.judges}
    assert {f"reward_{name}" for name in all_rewards()} == set(REWARDS)


def test_inputs_are_a_function_of_seed_and_number():
    corpus = ["\\boxed{" * 50, "<answer>x</answer>"]
    for target in (all_targets() | TARGETS).values():
        drawn = [input_of(target, 3, number, corpus) for number in range(30)]
        assert repr(drawn) == repr([input_of(target, 3, number, corpus) for number in range(30)])
        assert len({one.prediction for one in drawn}) > 5
        assert repr(drawn) != repr([input_of(target, 4, number, corpus) for number in range(30)])


def test_drawn_texts_are_of_many_kinds():
    """Among 400: right answers, boxes, tags, odd characters, other scripts; none without bound."""
    d = Draw(np.random.default_rng(0))
    texts = [generate.math_input("latex")(d, ["{" * 9000]).prediction for _ in range(400)]
    for pattern in (
        r"\\boxed\{",
        "<answer>",
        r"\\frac",
        "\0|\ud800|\u202e",
        "[٠-٩०-९０-９]",
        r"\{{50}",
        r"\d,\d{3}|\d\.\d",
    ):
        assert sum(bool(re.search(pattern, text)) for text in texts) >= 4, pattern
    assert all(len(text) <= generate.MAX_CHARACTERS or len(text) == 100_000 for text in texts)


def test_the_schedule_covers_every_number_once():
    targets = {"a": Target("boxed", generate.text_input, 3), "b": Target("box", generate.text_input, 1)}
    batches = list(schedule(targets, 1000))
    assert [number for _, numbers in batches for number in numbers] == list(range(1000))
    counts = Counter()
    for name, numbers in batches:
        counts[name] += len(numbers)
    assert 2.5 < counts["a"] / counts["b"] < 3.7
    assert [number for _, numbers in schedule(targets, 3) for number in numbers] == [0, 1, 2]


RIGHT = Verdict(True, True, "1", "match")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"correct": 1}, "not bools"),
        ({"reason": "banana"}, "unknown reason"),
        ({"reason_strict": "banana"}, "unknown reason"),
        ({"correct": False}, "correct is False for the reason match"),
        ({"reason": "mismatch"}, "correct is True for the reason mismatch"),
        ({"correct_strict": False, "reason_strict": "match"}, "correct_strict is False"),
        ({"reason_strict": "wrong_unit"}, "correct_strict is True for the reason wrong_unit"),
        ({"extracted": "x" * 501}, "length 501"),
        ({"score": float("nan")}, "a score is nan"),
        ({"score_strict": 1.5}, "a score is 1.5"),
        ({"extra": {"tag": -0.5}}, "a score is -0.5"),
    ],
    ids=str,
)
def test_the_form_of_a_verdict(changes, problem):
    found = problem_of(replace(RIGHT, **changes), all_targets()["box"])
    assert found is None if problem is None else problem in found
    assert problem_of(CRASHED, all_targets()["box"]) is None


def test_texts_that_say_nothing():
    assert all(map(says_nothing, ("", " \n", "()=+-!?.,;$%&_*^~", "\u200b\u202e\0", "→≠≤±")))
    assert not any(map(says_nothing, ("7", "x", "π", "∞", "٧", "½", "Ⅷ", "七", "\\alpha", "²")))


class _Buggy:
    """What the planted graders do wrong, by name."""

    def __init__(self, bug: str):
        self._bug, self._num_graded = bug, 0

    def grade(self, gold, prediction, context=None) -> Verdict:
        self._num_graded += 1
        wrong = Verdict(False, False, None, "mismatch")
        if "!" not in prediction:
            return Verdict(True, True, "x", "match") if gold and gold in prediction else wrong
        if self._bug == "raises":
            raise KeyError("!")
        if self._bug == "crashes":
            import os

            os.abort()
        if self._bug == "forgets":
            return replace(wrong, extracted=str(self._num_graded))
        if self._bug == "strips":
            return RIGHT if prediction[0].isspace() else wrong
        if self._bug == "believes":
            return RIGHT
        if self._bug == "hangs":
            pow(3, 3 ** (3**16))
        return wrong


def _exclaims(d: Draw, corpus) -> Input:
    text = "".join(d.of("!!.,; ") for _ in range(20))
    return Input("7", f".{text}")


@pytest.mark.full("grading workers that crash and hang")
@pytest.mark.parametrize(
    ("bug", "settings", "problem", "smallest"),
    [
        ("raises", {}, "grader test_fuzz:_Buggy:raises failed: KeyError", "!"),
        ("crashes", {}, "the worker crashes", "!"),
        ("forgets", {}, "graded again it is another verdict", "!"),
        ("strips", {"symmetric": ("correct",)}, "white space around the answer moves correct", None),
        ("believes", {"numeric": True}, "right without a number", "!"),
        ("hangs", {"judges": False}, "timeout, outside any deadline", None),
    ],
)
def test_planted_bugs_are_found_and_made_small(bug, settings, problem, smallest, tmp_path, monkeypatch):
    from eval_harness.fuzz import driver

    monkeypatch.setattr(driver, "_SECOND_DEADLINE_SECONDS", 0.3)
    said: list[str] = []
    target = Target(f"test_fuzz:_Buggy:{bug}", _exclaims, **settings)
    with GradingPool(workers=2, deadline=0.2, patience=20) as pool:
        fuzzer = Fuzzer(pool, {"buggy": target}, [], seed=1, say=said.append)
        summary = fuzzer.run(2 if bug == "hangs" else 30)
        assert summary.failures and summary.failures[0].problem.startswith(problem)
        assert said[0].startswith(f"buggy, input {summary.failures[0].number}: {problem}"[:60])
        if smallest is not None:
            assert fuzzer.minimised(summary.failures[0]).input.prediction == smallest
        saved = json.loads(fuzzer.save(summary.failures[0], tmp_path).read_text())
    again = input_of(target, saved["seed"], saved["number"], [])
    assert (saved["prediction"], saved["gold"]) == (again.prediction, again.gold) and saved["target"] == "buggy"


def test_an_honest_answer_that_is_refused_is_found():
    target = Target("test_fuzz:_Buggy:none", lambda d, corpus: Input("8", "eight", honest=True), honest=("correct",))
    with GradingPool(workers=1) as pool:
        summary = Fuzzer(pool, {"buggy": target}, [], seed=1, say=lambda line: None).run(3)
    assert [failure.problem for failure in summary.failures] == ["the gold itself is not correct"] * 3


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--inputs", "60", "--only", "class_name,box", "--out", str(out), "--workers", "1"]
    assert main([*common, "--corpus", str(CASES), "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"seed 5: 60 inputs in \d+ s .* 0 crashes; largest worker \d+ MiB, .* 0 failures", shown)
    assert not out.exists()
    assert main(["--only", "class_nam"]) == 2 and "did you mean 'class_name'" in capsys.readouterr().err
    assert main(["--inputs", "0"]) == 2 and "must be positive" in capsys.readouterr().err
    assert main(["--corpus", str(tmp_path / "none")]) == 2 and "does not exist" in capsys.readouterr().err


def test_a_failing_run_has_a_status_and_leaves_the_input(tmp_path, capsys, monkeypatch):
    module = tmp_path / "more_targets.py"
    module.write_text(
        "from eval_harness.fuzz.targets import Target\nfrom test_fuzz import _exclaims\n"
        "TARGETS = {'planted': Target('test_fuzz:_Buggy:raises', _exclaims)}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    common = ["--also", "more_targets", "--only", "planted", "--out", str(out), "--workers", "1"]
    assert main([*common, "--inputs", "5"]) == 1
    shown = capsys.readouterr().out
    assert "planted, input 0: grader test_fuzz" in shown and "5 failures" in shown
    assert len(list(out.glob("planted-*.json"))) >= 1


@pytest.mark.full("a process that is interrupted")
def test_an_interrupted_run_tells_what_it_has(tmp_path):
    program = (
        "import sys, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells ignore it for what runs behind
        "from eval_harness.graders import nursery\n"
        "nursery.PRELOAD = ()\n"
        "from eval_harness.fuzz import __main__ as command, driver\n"
        "landed, land = [], driver.Fuzzer._land\n"
        "def count(self, *batch):\n"
        "    land(self, *batch)\n"
        "    landed.append(1)\n"
        "    if len(landed) == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "driver.Fuzzer._land = count\n"
        "sys.exit(command.main(['--only', 'box', '--inputs', '100000', '--workers', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 130, done.stderr
    assert "interrupted; so far:" in done.stdout and re.search(r"seed 0: 192 inputs", done.stdout)
