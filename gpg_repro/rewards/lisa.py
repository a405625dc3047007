"""Reward of the LISA training: generalised IoU of the answer's box with the gold's, plus 1.

The paper speaks of an IoU reward; the released code pays GIoU + 1. Departures: with two or more boxes the release pairs
the top-left corners of the first two, here the first box counts; its symbolic first rule is left out, since math-verify
reads nothing in a gold of this form. Inverted boxes are not refused, and the formula then gives any value: one inverted
along both axes has a positive area and no overlap, and pays more than an exact match, without bound.
"""

from __future__ import annotations

import math

from eval_harness.errors import UserError
from eval_harness.graders.box import RIGHT_FROM, Box, first_box, fractions, giou, iou
from eval_harness.graders.tags import first_tag
from gpg_repro.rewards._text import stated, text_of


def giou_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """GIoU + 1, one per completion: in [0, 2] for boxes with ordered corners, 0.0 without a box or beyond floats.

    The box is looked for in the answer tag, which may have line breaks, or in the whole text if there is none. The
    gold's very text earns 2.0 in any case.

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds in thousandths of the image (``<answer> (x1,y1),(x2,y2) </answer>``).

    Raises:
        UserError: a gold holds no box.
    """
    return [_reward(text_of(completion), gold) for completion, gold in zip(completions, solution, strict=True)]


def _reward(text: str, gold: str) -> float:
    wanted, box = _boxes(text, gold)
    if stated(text) == stated(gold):
        return 2.0
    reward = 0.0 if box is None else giou(wanted, box) + 1
    return reward if math.isfinite(reward) else 0.0  # areas that no float holds


def right_boxes(completions: list, solution: list[str], **columns: object) -> list[bool]:
    """Whether each answer's box counts as right: IoU of at least 0.5 with the gold's, as in the evaluation.

    GIoU + 1 cannot tell: a box of IoU 0.4 may earn more than another of 0.5.
    """
    return [_is_right(text_of(completion), gold) for completion, gold in zip(completions, solution, strict=True)]


def _is_right(text: str, gold: str) -> bool:
    wanted, box = _boxes(text, gold)
    return stated(text) == stated(gold) or (box is not None and iou(wanted, box) >= RIGHT_FROM)


def _boxes(text: str, gold: str) -> tuple[Box, Box | None]:
    """The gold's box and the answer's, as fractions of the image."""
    wanted = first_box(gold)
    if wanted is None:
        raise UserError(
            f"giou: the solution {gold[:80]!r} holds no box; expected <answer> (x1,y1),(x2,y2) </answer> in "
            "thousandths. Repair the training set."
        )
    tag = first_tag(text, one_line=False)
    box = first_box(text if tag is None else tag)
    return fractions(wanted), None if box is None else fractions(box)


giou_reward.right = right_boxes

REWARDS = {"giou": giou_reward}
