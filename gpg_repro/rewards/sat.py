"""Accuracy reward of the SAT training: the GEOQA rule, or the gold as the last lone letter of the answer.

The golds of SAT are option texts, so the exact text decides in practice; upper and lower case differ.
"""

from __future__ import annotations

import re

from gpg_repro.rewards._text import symbolic_then

_LETTERS = re.compile(r"(?:^|\s|\[|\()([A-H])(?:\s|\]|\)|$)")


def sat_accuracy_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion.

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds in answer tags (``<answer>left</answer>``).
    """
    return symbolic_then(_same, completions, solution)


def _same(gold: str, answer: str) -> bool:
    return answer == gold or _LETTERS.findall(answer)[-1:] == [gold]


REWARDS = {"sat_accuracy": sat_accuracy_reward}
