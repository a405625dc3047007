"""Format reward of the 1.5B runs: the thinking is closed exactly once.

The paper describes a check of the whole think/answer pattern; the recipe that ran asks only that ``</think>`` on a
line of its own occurs once. The recipe is followed.
"""

from __future__ import annotations

from gpg_repro.rewards._text import text_of


def think_format_reward(completions: list, **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion: 1.0 if the text holds ``\\n</think>\\n`` exactly once."""
    return [float(text_of(completion).count("\n</think>\n") == 1) for completion in completions]


REWARDS = {"think_format": think_format_reward}
