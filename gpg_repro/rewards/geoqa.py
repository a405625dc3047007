"""Accuracy reward of the GEOQA training: the same number by math-verify, or the same text in the tag.

A number is only extracted after white space or ``=``, so ``<answer>140</answer>`` alone can be paid by its text only.
"""

from __future__ import annotations

from gpg_repro.rewards._text import symbolic_then


def geoqa_accuracy_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion.

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds in answer tags (``<answer> 140° </answer>``).
    """
    return symbolic_then(str.__eq__, completions, solution)


REWARDS = {"geoqa_accuracy": geoqa_accuracy_reward}
