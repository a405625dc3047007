"""Rewards: values by hand, and the same verdict as the graders."""

import math

import pytest

from eval_harness.errors import UserError
from gpg_repro.prompts import OPEN_RS, PAPER_B3
from gpg_repro.rewards import accuracy_reward, cosine_reward, get_reward, think_format_reward
from gpg_repro.rewards.cosine import cosine_scaled


def test_accuracy():
    completions = ["so $\\boxed{5}$", "so $\\boxed{6}$", "five", [{"role": "assistant", "content": "$\\boxed{5}$"}], ""]
    assert accuracy_reward(completions, ["$5$"] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_unreadable_golds_pay_everyone_as_released():
    assert accuracy_reward(["$\\boxed{5}$", "nonsense"], ["5", "5"]) == [1.0, 1.0]
    assert cosine_reward(["$\\boxed{5}$", "nonsense"], ["5", "5"]) == [1.0, 1.0]


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


def test_think_format():
    texts = ["a\n</think>\nb", "a\n</think>\n\nb", "a</think>b", "a\n</think>\n\n</think>\nb", ""]
    assert think_format_reward(texts) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_unknown_reward():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        get_reward("cosin")


def test_prompts_keep_their_slips():
    assert "\\boxed{{}} ." in OPEN_RS and "Note that respond by English" in OPEN_RS
    assert "</think> <answer>" in OPEN_RS and "</think><answer>" in PAPER_B3
