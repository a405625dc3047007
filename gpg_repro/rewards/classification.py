"""Accuracy reward of the classification trainings: the GEOQA rule, or either name within the other.

So an empty tag is paid in full, ``737`` is paid for every 737, and an answer without a tag is paid for mentioning the
class anywhere.
"""

from __future__ import annotations

from eval_harness.graders.class_name import holds_either_way
from gpg_repro.rewards._text import symbolic_then


def class_accuracy_reward(completions: list, solution: list[str], **columns: object) -> list[float]:
    """Rewards in {0.0, 1.0}, one per completion.

    Args:
        completions: N completions, as text or as conversations.
        solution: N golds in answer tags (``<answer>pink primrose</answer>``).
    """
    return symbolic_then(holds_either_way, completions, solution)


REWARDS = {"class_accuracy": class_accuracy_reward}
