"""Format reward of the released 7B project: thinking and answer in tags, each tag on a line of its own.

Not used by the runs of the paper, whose 7B reward is accuracy alone. The release reads completions of chat prompts one
level too deep and fails on all of them; read properly here. With both flags on, ``$`` also matches before a line break,
so text on the lines after ``</answer>`` is let through; kept as released.
"""

from __future__ import annotations

import re

from gpg_repro.rewards._text import text_of

_PATTERN = re.compile(r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", re.DOTALL | re.MULTILINE)


def think_answer_format_reward(completions: list, **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion: 1.0 if the text opens with the pattern."""
    return [float(_PATTERN.match(text_of(completion)) is not None) for completion in completions]


REWARDS = {"think_answer_format": think_answer_format_reward}
