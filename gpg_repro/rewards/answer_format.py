"""Format rewards of the multimodal trainings: thinking and answer in tags, and nothing before or after.

Unlike in the 7B project's form the tags need no lines of their own.
"""

from __future__ import annotations

import re

from gpg_repro.rewards._text import text_of

_PATTERN = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def answer_format_reward(completions: list, **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion: 1.0 if the whole text has the form."""
    return [float(_PATTERN.fullmatch(text_of(completion)) is not None) for completion in completions]


def answer_format_after_think_reward(completions: list, **columns: object) -> list[float]:
    """The same for completions of a prompt that ends with ``<think>``, which is put before them (SAT)."""
    return answer_format_reward([f"<think>{text_of(completion)}" for completion in completions])


REWARDS = {"answer_format": answer_format_reward, "answer_format_after_think": answer_format_after_think_reward}
