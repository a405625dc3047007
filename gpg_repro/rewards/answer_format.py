"""Format rewards of the multimodal trainings: thinking and answer in tags, and nothing before or after.

Unlike in the 7B project's form the tags need no lines of their own.
"""

from __future__ import annotations

import re

from gpg_repro.rewards._text import text_of

_OPEN, _CLOSE = "<think>", "</answer>"
_BETWEEN = re.compile(r"</think>\s*<answer>")


def answer_format_reward(completions: list, **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion: 1.0 if the whole text has the form."""
    return [float(_fits(text_of(completion))) for completion in completions]


def _fits(text: str) -> bool:
    """``<think>.*?</think>\\s*<answer>.*?</answer>`` over the whole text, in time linear in its length: as a pattern it
    takes quadratic time on repeated tags, minutes for an answer of 100,000 characters."""
    if not (text.startswith(_OPEN) and text.endswith(_CLOSE)):
        return False
    return _BETWEEN.search(text, len(_OPEN), len(text) - len(_CLOSE)) is not None


def answer_format_after_think_reward(completions: list, **columns: object) -> list[float]:
    """The same for completions of a prompt that ends with ``<think>``, which is put before them (SAT)."""
    return answer_format_reward([f"<think>{text_of(completion)}" for completion in completions])


REWARDS = {"answer_format": answer_format_reward, "answer_format_after_think": answer_format_after_think_reward}
