"""DAPO-Math-17k: what the paper's citation for GPG-7B's data points to; a variant, since README and launch disagree.

The hub's file repeats its about 17,400 questions a hundred times (1,791,700 rows: reading it takes minutes); the first
row of each question is kept. Its prompts ask for a last line "Answer: ...", which a reward that reads LaTeX cannot see,
so the question is taken out of that frame and put into SimpleRL-Zoo's prompt instead: our choice.
"""

from collections.abc import Mapping
from typing import Any

from eval_harness.sources import Hub
from gpg_repro.datasets.base import TrainingSet
from gpg_repro.prompts import QWEN_BOXED

_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def _question(row: Mapping[str, Any]) -> str:
    text = row["prompt"][0]["content"]
    if not (text.startswith(_BEFORE) and text.endswith(_AFTER)):
        raise ValueError(f"the prompt {text[:60]!r}... lacks the frame around its question")
    return QWEN_BOXED.replace("{question}", text[len(_BEFORE) : -len(_AFTER)])


TRAINING_SETS = (
    TrainingSet(
        name="dapo_math_17k",
        source=Hub(
            "BytedTsinghua-SIA/DAPO-Math-17k",
            "train",
            revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",  # our pin; the paper names none
            local_file="dapo_math_17k.jsonl",
            columns=("prompt", "reward_model"),
        ),
        question=_question,
        solution=lambda row: row["reward_model"]["ground_truth"],
        ready_made=True,
        repeats_questions=True,
    ),
)
