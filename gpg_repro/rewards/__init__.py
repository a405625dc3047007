"""Rewards by name: every module of this package that defines ``REWARDS``, found by file.

Each is a function (completions, **columns) -> list of floats, as TRL's trainers call them.

Correctness comes from the graders of :mod:`eval_harness`, so the reward and the score share one verdict.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache

from eval_harness.errors import unknown
from gpg_repro.rewards.accuracy import accuracy_lv35_reward, accuracy_reward
from gpg_repro.rewards.answer_format import answer_format_after_think_reward, answer_format_reward
from gpg_repro.rewards.classification import class_accuracy_reward
from gpg_repro.rewards.cosine import cosine_reward
from gpg_repro.rewards.geoqa import geoqa_accuracy_reward
from gpg_repro.rewards.lisa import giou_reward
from gpg_repro.rewards.sat import sat_accuracy_reward
from gpg_repro.rewards.think_answer_format import think_answer_format_reward
from gpg_repro.rewards.think_format import think_format_reward

GRADERS = {"accuracy": "boxed", "accuracy_lv35": "boxed_answer", "cosine": "boxed_in_place"}
"""The grader behind each reward that pays everyone for a gold it cannot read. The others do not look at a gold, or
compare it as text where it cannot be read (SAT, GEOQA, classes), or refuse it (GIoU)."""


@cache
def all_rewards() -> dict[str, Callable[..., list[float]]]:
    """Name -> reward, sorted by name."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found = {name: reward for module in modules for name, reward in getattr(module, "REWARDS", {}).items()}
    return dict(sorted(found.items()))


def get_reward(name: str) -> Callable[..., list[float]]:
    """The reward of that name.

    Raises:
        UserError: no such reward.
    """
    if name not in all_rewards():
        raise unknown("reward", name, all_rewards())
    return all_rewards()[name]


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
    "accuracy_lv35_reward",
    "accuracy_reward",
    "all_rewards",
    "answer_format_after_think_reward",
    "answer_format_reward",
    "class_accuracy_reward",
    "cosine_reward",
    "geoqa_accuracy_reward",
    "get_reward",
    "giou_reward",
    "sat_accuracy_reward",
    "think_answer_format_reward",
    "think_format_reward",
    "unreadable_golds",
]
