"""A check becomes a reward and a mark; measuring asks every held-out row once."""

import math

import pytest

from eval_harness.errors import UserError
from gpg_repro.own_task import OwnReward, boxed_number, measure


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7+8=15\n</think>\n\n\\boxed{15}", 15),
        ("\\boxed{3} no, \\boxed{40}", 40),
        ("\\boxed{007}", 7),
        ("15", math.nan),
        ("\\boxed{}", math.nan),
        ("\\boxed{-3}", math.nan),
        ("\\boxed{1.5}", math.nan),
        ("\\boxed{²}", math.nan),
        ("\\boxed{12", math.nan),
    ],
)
def test_boxed_number(text, number):
    assert boxed_number(text) == pytest.approx(number, nan_ok=True)


def test_reward_hands_every_answer_its_own_row():
    reward = OwnReward(lambda text, row: row["low"] < boxed_number(text) < row["high"])
    texts = ["\\boxed{5}", "\\boxed{5}", "nothing"]
    columns = {"low": [1, 5, 0], "high": [9, 9, 9], "trainer_state": object(), "log_extra": None}
    assert reward(texts, **columns) == [1.0, 0.0, 0.0]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert reward(completions=conversations, prompts=["a"] * 3, **columns) == [1.0, 0.0, 0.0]
    assert reward.__name__ == "accuracy_reward"
    assert OwnReward(len, name="length").__name__ == "length"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "1", [1.0]])
def test_a_check_that_gives_no_number_is_told(value):
    with pytest.raises(UserError, match="the check returned .* for 'answer': expected a finite number"):
        OwnReward(lambda text, row: value)(["answer"])


def test_measure_asks_every_row_once_and_counts_full_marks(random_checkpoint):
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}+1=?"}], "mark": mark} for i, mark in enumerate([1, 0.5, 0, 1])
    ]
    seen = []

    def check(text, row):
        seen.append(row["mark"])
        return row["mark"]

    measured = measure(random_checkpoint, rows, OwnReward(check), max_new_tokens=4)
    assert measured.answers["question"].tolist() == ["0+1=?", "1+1=?", "2+1=?", "3+1=?"]
    assert measured.answers["reward"].tolist() == seen == [1, 0.5, 0, 1]
    assert (measured.estimate.mean, measured.estimate.num_items) == (0.5, 4)
    # Wilson with z = 1.96: centre (0.5 + 3.8415 / 8) / 1.9604 = 0.5, half 1.96 / 1.9604 * sqrt(1/16 + 3.8415 / 64)
    assert (measured.estimate.low, measured.estimate.high) == pytest.approx((0.15, 0.85), abs=1e-3)
    again = measure(random_checkpoint, rows, OwnReward(check), max_new_tokens=4)
    assert again.answers.equals(measured.answers)


def test_measure_refuses_what_it_cannot_ask(random_checkpoint):
    reward = OwnReward(lambda text, row: 1.0)
    with pytest.raises(UserError, match="no held-out rows"):
        measure(random_checkpoint, [], reward, 4)
    with pytest.raises(UserError, match="held-out row 1: the prompt has .* tokens"):
        measure(random_checkpoint, [{"prompt": [{"role": "user", "content": q}]} for q in ("1", "1" * 9000)], reward, 4)
