"""Rewards by name. Each is a function (completions, **columns) -> list of floats, as TRL's trainers call them.

Correctness comes from the graders of :mod:`eval_harness`, so the reward and the score share one verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from eval_harness.errors import unknown
from gpg_repro.rewards.accuracy import accuracy_lv35_reward, accuracy_reward
from gpg_repro.rewards.cosine import cosine_reward
from gpg_repro.rewards.think_answer_format import think_answer_format_reward
from gpg_repro.rewards.think_format import think_format_reward

REWARDS: dict[str, Callable[..., list[float]]] = {
    "accuracy": accuracy_reward,
    "accuracy_lv35": accuracy_lv35_reward,
    "cosine": cosine_reward,
    "think_answer_format": think_answer_format_reward,
    "think_format": think_format_reward,
}
GRADERS = {"accuracy": "boxed", "accuracy_lv35": "boxed_answer", "cosine": "boxed_in_place"}
"""The grader behind each reward that reads a gold; the others do not look at it."""


def get_reward(name: str) -> Callable[..., list[float]]:
    """The reward of that name.

    Raises:
        UserError: no such reward.
    """
    if name not in REWARDS:
        raise unknown("reward", name, REWARDS)
    return REWARDS[name]


def unreadable_golds(golds: Iterable[str], rewards: Iterable[str]) -> set[str]:
    """The golds that at least one of the rewards cannot read, each judged by its own grader."""
    from eval_harness.graders.pool import shared_pool

    distinct = sorted(set(golds))
    unreadable: set[str] = set()
    for grader in sorted({GRADERS[name] for name in rewards if name in GRADERS}):
        verdicts = shared_pool().grade(grader, [(gold, "") for gold in distinct])
        unreadable |= {gold for gold, verdict in zip(distinct, verdicts, strict=True) if verdict.gold_fallback}
    return unreadable


__all__ = [
    "GRADERS",
    "REWARDS",
    "accuracy_lv35_reward",
    "accuracy_reward",
    "cosine_reward",
    "get_reward",
    "think_answer_format_reward",
    "think_format_reward",
    "unreadable_golds",
]
