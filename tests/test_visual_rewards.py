"""Rewards of the multimodal trainings; their measured cases (cases/visual_rewards.json) are in test_rewards."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_harness.errors import UserError
from eval_harness.graders.box import fractions, giou
from gpg_repro.rewards import (
    answer_format_reward,
    class_accuracy_reward,
    geoqa_accuracy_reward,
    get_reward,
    giou_reward,
    sat_accuracy_reward,
    unreadable_golds,
)


def test_a_batch_keeps_its_order_and_reads_conversations():
    golds = ["<answer>left</answer>", "<answer>B</answer>", "<answer> 7 </answer>"]
    completions = ["<answer>left</answer>", [{"role": "assistant", "content": "<answer>A</answer>"}], "it is 7"]
    assert sat_accuracy_reward(completions, golds) == [1.0, 0.0, 1.0]
    assert geoqa_accuracy_reward(completions, golds) == [1.0, 0.0, 1.0]
    assert class_accuracy_reward(completions, golds) == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="zip"):
        sat_accuracy_reward(completions, golds[:2])


def test_sat_pays_the_last_lone_letter():
    completions = ["<answer>A or (B)</answer>", "<answer>B or [A]</answer>", "<answer>A, then Bob</answer>"]
    assert sat_accuracy_reward(completions, ["<answer>B</answer>"] * 3) == [1.0, 0.0, 0.0]
    assert sat_accuracy_reward(completions, ["<answer>A</answer>"] * 3) == [0.0, 1.0, 0.0]


def test_no_reward_pays_everyone_for_an_unreadable_gold():
    golds = ["<answer>left</answer>", "<answer>π</answer>", "<answer>(1,1),(2,2)</answer>"]
    names = ["sat_accuracy", "geoqa_accuracy", "class_accuracy", "giou"]
    assert unreadable_golds(golds, names) == set()
    for name, gold in zip(names, [golds[0], golds[1], golds[0], golds[2]], strict=True):
        assert get_reward(name)(["no answer at all"], solution=[gold]) == [0.0]


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_giou_of_proper_boxes(numbers):
    boxes = []
    for x1, y1, x2, y2 in (numbers[:4], numbers[4:]):
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    gold, said = ("({:d},{:d}),({:d},{:d})".format(*box) for box in boxes)
    (reward,) = giou_reward([f"<think>so</think><answer>{said}</answer>"], [f"<answer> {gold} </answer>"])
    assert 0 <= reward <= 2
    assert reward == (2 if gold == said else pytest.approx(giou(fractions(boxes[0]), fractions(boxes[1])) + 1))


def test_a_box_gold_has_nothing_to_parse(grading_pool):
    """Why the symbolic first rule is left out of the box reward."""
    golds = [f"<answer> ({a},{b}),({a + 90},{b + 7}) </answer>" for a in range(0, 900, 37) for b in (0, 5, 310)]
    assert all(verdict.gold_fallback for verdict in grading_pool.grade("default_extraction", [(g, g) for g in golds]))


def test_which_boxes_are_right_does_not_follow_from_the_reward():
    """Gold (0,0),(100,100). Inside it, 70 x 70: IoU = GIoU = 0.49, wrong. Shifted by (17,17): common 83² = 6889, union
    20000 − 6889 = 13111, IoU 0.525, right; the box around both is 117² = 13689, GIoU 0.525 − 578 / 13689 = 0.483."""
    golds = ["<answer> (0,0),(100,100) </answer>"] * 5
    said = ["(0,0),(70,70)", "(17,17),(117,117)", "nothing", "(0,0),(50,100)", "(100,100),(0,0)"]
    rewards = giou_reward(said, golds)
    assert rewards[:2] == pytest.approx([1.49, 1 + 6889 / 13111 - 578 / 13689])
    # half of the gold: exactly 0.5, which counts; corners out of order: no overlap
    assert giou_reward.right(said, golds) == [False, True, False, True, False]
    line = "<answer> (5,5),(5,9) </answer>"  # without an area, the gold's own text is right, as it is paid
    assert giou_reward.right([line], [line]) == [True] and giou_reward([line], [line]) == [2.0]
    assert get_reward("giou").right is giou_reward.right


@pytest.mark.parametrize(("digits", "paid"), [(5, 1.0), (99, 1.0), (300, 0.0), (5000, 0.0)])
def test_absurd_numbers_leave_the_reward_finite(digits, paid):
    """Beyond what a float's square holds they are no box; int() would even refuse the longest."""
    side = "9" * digits
    rewards = giou_reward([f"<answer>(0,0),({side},{side})</answer>"], ["<answer>(0,0),(9,9)</answer>"])
    assert rewards == [pytest.approx(paid, abs=1e-6)]


def test_a_gold_without_a_box_stops_the_training():
    with pytest.raises(UserError, match="holds no box"):
        giou_reward(["<answer>(1,1),(2,2)</answer>"], ["<answer>left</answer>"])


def test_format_and_accuracy_are_apart():
    """An empty tag earns both rewards of the classification runs in full."""
    completion = "<think></think><answer></answer>"
    assert answer_format_reward([completion]) == class_accuracy_reward([completion], ["<answer>rose</answer>"]) == [1.0]


def test_giou_of_inverted_boxes_is_the_formula_as_far_as_floats_go():
    """By hand: |a| = 0.999^2, |b| = 0.189 * 0.165 = 0.031185 = C, no overlap: 1 - (|b| - |a| - |b|) / |b|."""
    gold, digits = "<answer> (478,481),(667,646) </answer>", "9" * 200
    said = ["(999,999),(0,0)", f"({digits},{digits}),(0,0)"]
    assert giou_reward(said, [gold, gold]) == [pytest.approx(1 + 0.999**2 / 0.031185), 0.0]
