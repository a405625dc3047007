"""Accuracy reward of the 7B runs (Appendix B.3): 1.0 if the answer equals the gold, else 0.0.

A gold without readable LaTeX is paid 1.0 for every response, as in the released code; under ``fidelity: paper`` such
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
    pairs = [(gold, text_of(completion)) for gold, completion in zip(solution, completions, strict=True)]
    verdicts = shared_pool().grade("boxed", pairs)
    return [UNREADABLE_GOLD_REWARD if v.gold_fallback else float(v.correct) for v in verdicts]
