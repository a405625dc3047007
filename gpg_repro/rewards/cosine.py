"""Cosine-scaled accuracy of the 1.5B runs, as released: correctness, bent by the length in *characters*.

Facts to keep in mind (the recipe's, not a choice of ours): at equal length a correct answer is worth exactly 1.0 more
than a wrong one; nothing is clipped beyond ``max_len``, so for outputs of thousands of characters the term is periodic
and amounts to a pseudo-random offset of +-0.25; below ``max_len`` a longer *wrong* answer is punished more.
"""

from __future__ import annotations

import math

from eval_harness.graders.pool import shared_pool
from gpg_repro.rewards._text import text_of

MAX_LEN = 1000
"""Characters; the released default, which the 1.5B recipe does not change."""
CORRECT_RANGE = (0.5, 1.0)
WRONG_RANGE = (-0.5, 0.0)
UNREADABLE_GOLD_REWARD = 1.0


def cosine_scaled(correct: bool, num_characters: int, max_len: int = MAX_LEN) -> float:
    """Reward of one answer: low + (high - low)/2 * (1 + cos(pi * L / max_len)) of its range."""
    low, high = CORRECT_RANGE if correct else WRONG_RANGE
    return low + (high - low) / 2 * (1 + math.cos(math.pi * num_characters / max_len))


def cosine_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """Rewards in [-0.5, 1.0], one per completion.

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds, texts whose LaTeX holds the answer.
    """
    texts = [text_of(completion) for completion in completions]
    verdicts = shared_pool().grade("boxed_in_place", list(zip(solution, texts, strict=True)))
    return [
        UNREADABLE_GOLD_REWARD if v.gold_fallback else cosine_scaled(v.correct, len(text))
        for v, text in zip(verdicts, texts, strict=True)
    ]


REWARDS = {"cosine": cosine_reward}
