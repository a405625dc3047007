"""Format reward of the released 7B project: thinking and answer in tags, each tag on a line of its own.

Not used by the runs of the paper, whose 7B reward is accuracy alone. The release reads completions of chat prompts one
level too deep and fails on all of them; read properly here. With both flags on, ``$`` also matches before a line break,
so text on the lines after ``</answer>`` is let through; kept as released.
"""

from __future__ import annotations

from gpg_repro.rewards._text import text_of

_OPEN, _BETWEEN, _CLOSE = "<think>\n", "\n</think>\n<answer>\n", "\n</answer>"


def think_answer_format_reward(completions: list, **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion: 1.0 if the text opens with the pattern."""
    return [float(_fits(text_of(completion))) for completion in completions]


def _fits(text: str) -> bool:
    """``^<think>\\n.*?\\n</think>\\n<answer>\\n.*?\\n</answer>$`` at the start of the text, in linear time."""
    start = text.find(_BETWEEN, len(_OPEN)) if text.startswith(_OPEN) else -1
    rest = text[start + len(_BETWEEN) :] if start >= 0 else ""
    return rest.endswith(_CLOSE) or f"{_CLOSE}\n" in rest


REWARDS = {"think_answer_format": think_answer_format_reward}
