"""CV-Bench: 2,638 multiple-choice questions on counting, position, depth and distance (Tong et al. 2024).

Data: ``nyu-visionx/CV-Bench``, split ``test`` (2D and 3D together). Gold: column ``answer``, the letter of the right
option in brackets. Strict total: the data card's, half Omni3D and a quarter each of ADE20K and COCO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.errors import UserError
from eval_harness.records import Item
from eval_harness.sources import Hub

_LETTERS = "ABCDEF"

REASONING_PROMPT = (
    "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer.\nUser: {problem} \nAssistant: Let me solve this step by step.\n<think>"
)
"""A pretrained model's prompt, in training (SAT) and here; ``<image>`` is literal text after the vision placeholder."""
DIRECT_PROMPT = (
    "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
    "solves it.\nUser: {problem} \nAssistant: "
)
INSTRUCT_PROMPT = (
    "{problem}\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)


class _CVBench(Benchmark):
    """Adds to the rows' checks that the gold is one of the options."""

    def item(self, index: int, row: Mapping[str, Any], where: str = "the rows") -> Item:
        """One row as an item; a row without ``prompt`` gets it built from ``question`` and ``choices``.

        Raises:
            UserError: no options, more than six, or a gold that is not the letter of one; a column is missing.
        """
        named = f"{self.name}, item {index} of {where}"
        choices = row.get("choices")
        if "choices" in row and not _are_choices(choices):
            raise UserError(
                f"{named}: choices is {choices!r}; expected 2 to {len(_LETTERS)} option texts. Without them there "
                "is no question to ask; repair the data."
            )
        if row.get("prompt") is None and row.get("question") and choices:
            row = {**row, "prompt": lettered(row["question"], choices)}
        if "prompt" in row and not str(row["prompt"] or "").strip():
            raise UserError(f"{named}: neither prompt nor question says what is asked; repair the data.")
        item = super().item(index, row, where)
        letters = _LETTERS[: len(choices)]
        if not re.fullmatch(rf"\([{letters}]\)", item.gold):
            raise UserError(
                f"{named}: the gold {item.gold!r} is none of its {len(choices)} options, (A) to ({letters[-1]}). The "
                "data set itself is wrong; fetch it again."
            )
        return item


def lettered(question: str, choices: list[str]) -> str:
    """Question and options as the column ``prompt`` holds them."""
    options = (f"({letter}) {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    return "\n".join([f"{question} Select from the following choices.", *options])


def _are_choices(choices: Any) -> bool:
    return (
        isinstance(choices, (list, tuple))
        and 2 <= len(choices) <= len(_LETTERS)
        and all(isinstance(choice, str) and choice.strip() for choice in choices)
    )


BENCHMARK = _CVBench(
    name="cvbench",
    title="CV-Bench",
    version=1,
    num_items=2_638,
    source=Hub(
        "nyu-visionx/CV-Bench",
        "test",
        revision=None,
        local_file="cv_bench.jsonl",
        columns=("question", "prompt", "choices", "answer", "task", "source", "filename"),
        image_column="image",
        images="cv_bench",
    ),
    prompt=REASONING_PROMPT,
    prompt_origin="VisualThinker-R1-Zero, prompt of a base model with reasoning",
    question_field="prompt",
    gold_field="answer",
    grader="choice",
    decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=1024),
    notes="Published total: every item the same weight; strict total: the card's. No 401,408-pixel cap at test time.",
    form="concatenate",
    image_field="filename",
    group_field="task",
    groups={"Count": 788, "Relation": 650, "Depth": 600, "Distance": 600},
    context_fields=("choices", "source"),
    strict_strata={"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5},
    stratum_field="source",
)

VARIANTS = (
    replace(
        BENCHMARK,
        name="cvbench_direct",
        title="CV-Bench (direct)",
        prompt=DIRECT_PROMPT,
        prompt_origin="VisualThinker-R1-Zero, prompt of a base model without reasoning",
    ),
    replace(
        BENCHMARK,
        name="cvbench_instruct",
        title="CV-Bench (instruct)",
        prompt=INSTRUCT_PROMPT,
        prompt_origin="VisualThinker-R1-Zero, prompt of an instruct model",
        form="chat",
    ),
)
