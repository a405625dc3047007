"""Graders: hand-made cases, agreement with lighteval itself, and the deadline."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from eval_harness.errors import UserError
from eval_harness.graders import GRADERS
from eval_harness.graders.base import LIGHTEVAL, grader_identity
from eval_harness.graders.math import BoxedAccuracy
from eval_harness.graders.pool import GradingPool
from eval_harness.sources import read_jsonl

CASES = json.loads((Path(__file__).parent / "cases" / "math_graders.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['grader']}: {c['why']}")
def test_case(case, grading_pool):
    (verdict,) = grading_pool.grade(case["grader"], [(case["gold"], case["prediction"])])
    assert verdict.correct is case["correct"]
    assert verdict.correct_strict is case.get("correct_strict", case["correct"])
    assert verdict.gold_fallback is case.get("gold_fallback", False)
    assert verdict.reason == case.get("reason", "match" if case["correct"] else verdict.reason)
    if verdict.reason == "no_answer":
        assert verdict.extracted is None


def test_a_record_names_the_packages_that_decide_a_mark():
    """Version 1 of each grader; boxes and class names are our own code alone."""
    symbolic = {"math-verify", "latex2sympy2_extended", "sympy"}
    wanted = dict.fromkeys(GRADERS, symbolic) | {"box": set(), "class_name": set()}
    wanted |= dict.fromkeys(("boxed", "number"), symbolic | {"mpmath"})  # what their strict rules compute with
    wanted |= dict.fromkeys(("math_expression_gold", "math_latex_gold"), symbolic | {"lighteval", "mpmath"})
    found = {name: grader_identity(name) for name in GRADERS}
    assert {name: set(one["packages"]) for name, one in found.items()} == wanted
    assert all((one["name"], one["version"]) == (name, 1) for name, one in found.items())
    assert {name for name, packages in wanted.items() if "lighteval" in packages} == LIGHTEVAL


def test_a_verifier_that_raises_makes_a_wrong_answer(monkeypatch):
    """As the release scores it: wrong, not unmarked."""
    grader = BoxedAccuracy()

    def raises(*_):
        raise ValueError("no comparison")

    monkeypatch.setattr(grader._lib, "verify", raises)
    verdict = grader.grade("$7$", "$\\boxed{7}$")
    assert (verdict.correct, verdict.correct_strict, verdict.reason) == (False, False, "mismatch")


def _lighteval_metric(latex_gold: bool):
    from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
    from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig

    return MultilingualExtractiveMatchMetric(
        gold_extraction_target=(LatexExtractionConfig() if latex_gold else ExprExtractionConfig(),),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        precision=5,
    )


GOLDS = {
    "aime_2024": ("answer", "math_expression_gold"),
    "amc_23": ("answer", "math_expression_gold"),
    "math_500": ("solution", "math_latex_gold"),
    "minerva_math": ("solution", "math_latex_gold"),
    "olympiad_bench": ("answer", "math_latex_gold"),
}
"""File -> its column of golds and their grader."""
EQUALITY = pytest.mark.real_data("equality with lighteval's metric", *(f"{file}.jsonl" for file in GOLDS))
COUNTS = pytest.mark.real_data("OlympiadBench's bare golds", "olympiad_bench.jsonl")


@pytest.mark.full("thousands of answers through lighteval")
@pytest.mark.parametrize("file", GOLDS)
@pytest.mark.parametrize(
    "root",
    ["hand_made", pytest.param("real", marks=[EQUALITY, pytest.mark.long("hundreds of answers, read twice")])],
    indirect=True,
)
def test_verdicts_are_those_of_lightevals_metric(file, root, grading_pool):
    """Right and wrong answers, bare answers, chatter, second thoughts and near misses: identical marks, one by one."""
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    gold, grader = GOLDS[file]
    rows = read_jsonl(root / f"{file}.jsonl")
    styles = ("Therefore, the final answer is: $\\boxed{%s}$. I hope it is correct", "The answer is %s", "\\boxed{%s}")
    pairs = []
    for i, row in enumerate(rows[:120]):
        own, other = (str(r["answer"]).replace("$", "") for r in (row, rows[i - 1]))
        pairs += [(row[gold], styles[i % 3] % own), (row[gold], styles[(i + 1) % 3] % other)]
        first, second = (own, other) if i % 2 else (other, own)
        pairs += [(row[gold], f"Perhaps the final answer is ${first}$. But no: $\\boxed{{{second}}}$")]
        if re.fullmatch(r"\d+\.\d+", own):  # beyond five digits, and within them
            pairs += [(row[gold], styles[0] % f"{own}{digits}") for digits in ("000000001", "01")]
    metric = _lighteval_metric(grader == "math_latex_gold")
    expected = [metric.compute(Doc(query="", choices=[g], gold_index=0), ModelResponse(text=[p])) for g, p in pairs]
    got = grading_pool.grade(grader, pairs)
    assert [float(v.correct) for v in got] == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.full("hundreds of golds through lighteval")
@pytest.mark.parametrize(
    ("root", "num_bare", "num_right", "num_strict"),
    [("hand_made", 7, 15, 16), pytest.param("real", 409, 660, 660, marks=COUNTS)],
    indirect=["root"],
)
def test_bare_olympiad_golds_are_flagged_and_read_fairly(root, num_bare, num_right, num_strict, grading_pool):
    """Of our 16, 2, 224, 5.5, 5/9, -4, 4 and 24 are bare; as raw text, 5/9 is not the fraction that is read."""
    rows = read_jsonl(root / "olympiad_bench.jsonl")
    verdicts = grading_pool.grade(
        "math_latex_gold", [(r["answer"], f"$\\boxed{{{r['answer'].strip('$')}}}$") for r in rows]
    )
    assert sum(v.gold_fallback for v in verdicts) == num_bare
    assert sum(v.correct_strict for v in verdicts) >= sum(v.correct for v in verdicts) >= num_right
    assert sum(v.correct_strict for v in verdicts) >= num_strict
    integers = [r["answer"] for r in rows if r["answer"].isdigit()]
    decimals = grading_pool.grade("math_latex_gold", [(gold, f"$\\boxed{{{gold}.0}}$") for gold in integers])
    assert not any(v.correct for v in decimals) and all(v.correct_strict for v in decimals)


def test_an_answer_past_its_deadline_is_a_recorded_zero_and_the_others_are_graded():
    nasty = "$\\boxed{" + "(" * 2000 + "1" + ")!" * 2000 + "}$"
    slow = "\\boxed{" * 30_000
    with GradingPool(workers=2, deadline=1.0) as pool:
        pool.grade("math_latex_gold", [("$1$", "$\\boxed{1}$")])
        started = time.monotonic()
        pairs = [("$5$", "$\\boxed{5}$"), ("$5$", slow), ("$5$", "$\\boxed{7}$"), ("$5$", nasty)]
        verdicts = pool.grade("math_latex_gold", pairs)
        assert time.monotonic() - started < 30
        assert [v.correct for v in verdicts] == [True, False, False, False]
        assert verdicts[1].reason == "timeout"
        assert pool.grade("math_latex_gold", [("$5$", "$\\boxed{5}$ again")])[0].correct


def test_a_killed_worker_is_replaced_and_only_its_answer_is_lost():
    with GradingPool(workers=1) as pool:
        pool.grade("boxed", [("$1$", "$\\boxed{1}$")])
        future = pool.grade_async(
            "boxed", [("$5$", "\\boxed{" * 30_000), ("$2$", "$\\boxed{2}$"), ("$3$", "$\\boxed{3}$")]
        )
        for _ in range(2):  # what the kernel does when memory runs out; the second time is the answer's fault
            time.sleep(0.4)
            os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        verdicts = future.result(timeout=60)
        assert [v.correct for v in verdicts] == [False, True, True]
        assert verdicts[0].reason == "grader_memory"


def test_closing_fails_what_is_unfinished():
    pool = GradingPool(workers=1)
    pool.grade("boxed", [("$1$", "$\\boxed{1}$")])
    future = pool.grade_async("boxed", [("$5$", "\\boxed{" * 30_000)])
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        future.result(timeout=10)


def test_grades_from_a_thread(grading_pool):
    """Libraries that rely on signals fail here."""
    out = []
    thread = threading.Thread(
        target=lambda: out.extend(grading_pool.grade("boxed", [("$3$", "from a thread: $\\boxed{3}$")]))
    )
    thread.start()
    thread.join()
    assert out[0].correct


def test_order_and_repeats(grading_pool):
    pairs = [(f"${i % 7}$", f"$\\boxed{{{i % 5}}}$ order") for i in range(100)]
    assert [v.correct for v in grading_pool.grade("boxed", pairs)] == [i % 7 == i % 5 for i in range(100)]


def test_unknown_grader_and_bad_deadline(grading_pool):
    with pytest.raises(ValueError, match="deadline"):
        GradingPool(deadline=0)
    with pytest.raises(UserError, match="did you mean 'boxed'"):
        grading_pool.grade("boxd", [("1", "1")])
