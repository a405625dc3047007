"""Accuracy rewards of the 7B runs: 1.0 if the answer equals the gold, else 0.0.

``accuracy`` (Appendix B.3; Tables 1, 10, 11, 12) finds the gold in the LaTeX of a solution. ``accuracy_lv35`` (the
released GPG-7B launch) takes a bare answer, SimpleRL-Zoo's ``target`` column. Both read the prediction's LaTeX only.

A gold that cannot be read is paid 1.0 for every response, as in the released code; under ``fidelity: paper`` such
prompts are taken out of the training set before (see ``gpg_repro.train``), so that they make no false easy groups.
"""

from __future__ import annotations

from eval_harness.graders.pool import shared_pool
from gpg_repro.rewards._text import text_of

UNREADABLE_GOLD_REWARD = 1.0


def accuracy_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion.

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds, texts whose LaTeX holds the answer.
    """
    return _graded("boxed", completions, solution)


def accuracy_lv35_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion; an empty completion earns 0.0 (the release fails on it).

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds, each the bare answer (``42``, ``\\frac12``).
    """
    return _graded("boxed_answer", completions, solution)


def _graded(grader: str, completions: list, golds: list[str]) -> list[float]:
    pairs = [(gold, text_of(completion)) for gold, completion in zip(golds, completions, strict=True)]
    verdicts = shared_pool().grade(grader, pairs)
    return [UNREADABLE_GOLD_REWARD if v.gold_fallback else float(v.correct) for v in verdicts]


REWARDS = {"accuracy": accuracy_reward, "accuracy_lv35": accuracy_lv35_reward}
