"""Rewards: measured cases, values by hand, and the same verdict as the graders."""

import json
import math
from pathlib import Path

import pytest

from eval_harness import graders
from eval_harness.errors import UserError
from eval_harness.sources import read_jsonl
from gpg_repro import rewards
from gpg_repro.prompts import OPEN_R1_BOXED, OPEN_R1_THINK, OPEN_RS, PAPER_B3, QWEN_BOXED
from gpg_repro.rewards import (
    GRADERS,
    accuracy_lv35_reward,
    accuracy_reward,
    all_rewards,
    cosine_reward,
    get_reward,
    unreadable_golds,
)
from gpg_repro.rewards.cosine import cosine_scaled

CASES = [
    case
    for name in ("rewards", "visual_rewards")
    for case in json.loads((Path(__file__).parent / "cases" / f"{name}.json").read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("package", [graders, rewards], ids=lambda package: package.__name__)
def test_what_a_package_exports_is_there(package):
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['reward']}: {c['why']}")
def test_case(case):
    columns = {"solution": [case["gold"]]} if "gold" in case else {}
    assert get_reward(case["reward"])([case["completion"]], **columns) == pytest.approx([case["value"]])


@pytest.mark.parametrize("name", all_rewards())
def test_a_conversation_is_paid_like_its_text(name):
    """The released format reward indexes chat completions one level too deep and fails on all of them."""
    mine = [case for case in CASES if case["reward"] == name]
    assert mine, f"no measured case of {name}"
    columns = {"solution": [case.get("gold", "") for case in mine]}
    chats = [[{"role": "assistant", "content": case["completion"]}] for case in mine]
    assert get_reward(name)(chats, **columns) == pytest.approx([case["value"] for case in mine])


def test_accuracy_of_a_batch():
    completions = ["so $\\boxed{5}$", "so $\\boxed{6}$", "five", [{"role": "assistant", "content": "$\\boxed{5}$"}], ""]
    assert accuracy_reward(completions, ["$5$"] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert accuracy_lv35_reward(completions, ["5"] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_cosine_by_hand():
    # L = 0: cos 0 = 1 -> top of the range; L = 500: cos(pi/2) = 0 -> middle; L = 1000: bottom; L = 2000: top again
    for length, share in ((0, 1.0), (500, 0.5), (1000, 0.0), (2000, 1.0)):
        assert cosine_scaled(True, length) == pytest.approx(0.5 + 0.5 * share)
        assert cosine_scaled(False, length) == pytest.approx(-0.5 + 0.5 * share)
    for length in (3, 700, 3584):
        assert cosine_scaled(True, length) - cosine_scaled(False, length) == pytest.approx(1.0)


def test_cosine_counts_characters():
    right, wrong = "$\\boxed{5}$", "$\\boxed{6}$"
    expected = [0.5 + 0.25 * (1 + math.cos(math.pi * 11 / 1000)), -0.5 + 0.25 * (1 + math.cos(math.pi * 11 / 1000))]
    assert cosine_reward([right, wrong], ["$5$", "$5$"]) == pytest.approx(expected)


def test_each_reward_reads_golds_its_own_way():
    """A bare 5 has no LaTeX for the solution reader; the bare-answer reader boxes it first."""
    golds = ["5", "$5$", "\\boxed{7}", ""]
    assert unreadable_golds(golds, ["accuracy"]) == {"5", ""}
    assert unreadable_golds(golds, ["cosine", "think_format"]) == {"5", ""}
    assert unreadable_golds(golds, ["accuracy_lv35"]) == {""}
    assert unreadable_golds(golds, ["accuracy", "accuracy_lv35"]) == {"5", ""}
    assert unreadable_golds(golds, ["think_format", "think_answer_format"]) == set()


def test_what_is_unreadable_is_what_is_paid_to_everyone():
    for name in GRADERS:
        for gold in ("5", "$5$", "", "\\text{even}"):
            paid = get_reward(name)(["no answer at all"], solution=[gold]) == [1.0]
            assert paid == (gold in unreadable_golds([gold], [name])), (name, gold)


REAL = pytest.mark.real_data("MATH's training golds", "train/math_train.jsonl")


@pytest.mark.parametrize(
    ("root", "step", "at_least"), [("own", 1, 40), pytest.param("real", 30, 60, marks=REAL)], indirect=["root"]
)
def test_bare_golds_are_readable(root, step, at_least):
    """The bare answers of a training set as MATH's: all can be read, and each pays its own text in a box."""
    rows = read_jsonl(root / "train" / "math_train.jsonl")
    golds = sorted({row["answer"] for row in rows if row["answer"]})[::step]
    assert len(golds) > at_least
    assert unreadable_golds(golds, ["accuracy_lv35"]) == set()
    paid = accuracy_lv35_reward([f"so $\\boxed{{{gold}}}$" for gold in golds], golds)
    lost = [gold for gold, reward in zip(golds, paid, strict=True) if not reward]
    assert len(lost) < 0.05 * len(golds)
    assert all("frac" in gold or "sqrt" in gold for gold in lost)  # \frac17: mended in the gold, not in the prediction
    assert sum(accuracy_lv35_reward([f"so $\\boxed{{{gold}}}$" for gold in golds[1:]], golds[:-1])) < 0.05 * len(golds)


def test_unknown_reward():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        get_reward("cosin")


def test_prompts_keep_their_slips():
    assert "\\boxed{{}} ." in OPEN_RS and "Note that respond by English" in OPEN_RS
    assert "</think> <answer>" in OPEN_RS and "</think><answer>" in PAPER_B3
    assert "designed to provided" in OPEN_R1_THINK and OPEN_R1_THINK.endswith("<think> and </think> tags.")
    assert "designed to provided" in OPEN_R1_BOXED and OPEN_R1_BOXED.endswith("within \\boxed{}.")
    assert QWEN_BOXED.endswith("\\boxed{}.<|im_end|>\n<|im_start|>assistant\n") and "{question}\nPlease" in QWEN_BOXED
