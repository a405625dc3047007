"""Rewards by name. Each is a function (completions, **columns) -> list of floats, as TRL's trainers call them.

Correctness comes from the graders of :mod:`eval_harness`, so the reward and the score share one verdict.
"""

from __future__ import annotations

from collections.abc import Callable

from eval_harness.errors import unknown
from gpg_repro.rewards.accuracy import accuracy_reward
from gpg_repro.rewards.cosine import cosine_reward
from gpg_repro.rewards.think_format import think_format_reward

REWARDS: dict[str, Callable[..., list[float]]] = {
    "accuracy": accuracy_reward,
    "cosine": cosine_reward,
    "think_format": think_format_reward,
}


def get_reward(name: str) -> Callable[..., list[float]]:
    """The reward of that name.

    Raises:
        UserError: no such reward.
    """
    if name not in REWARDS:
        raise unknown("reward", name, REWARDS)
    return REWARDS[name]


__all__ = ["REWARDS", "accuracy_reward", "cosine_reward", "get_reward", "think_format_reward"]
