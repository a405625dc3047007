"""LISA grounding: a box for what an instruction hints at, on the 200 val and 779 test images of ReasonSeg.

One item per image: its first instruction, against the box of its first polygon, whatever that is labelled. Images
without polygons stay in and score 0. The mask scores are added by :mod:`eval_harness.masks`. The released script
decodes with the model's own generation config, which for Qwen2-VL Instruct is close to greedy; greedy stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.reasonseg import FOLDER, OBTAIN, ReasonSeg
from eval_harness.records import Item

SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think><answer> answer here </answer>"
)
_NO_GOLD = "none"


class _Lisa(Benchmark):
    """Keeps images without polygons in, as items that nobody can get right."""

    def item(self, index: int, row: Mapping[str, Any], where: str = "the rows") -> Item:
        """One row as an item; its gold is ``""`` where the image has no polygon or cannot be read."""
        if row.get(self.gold_field) != "":
            return super().item(index, row, where)
        item = super().item(index, {**row, self.gold_field: _NO_GOLD}, where)
        return item.model_copy(update={"gold": ""})


BENCHMARK = _Lisa(
    name="lisa",
    title="LISA",
    version=1,
    num_items=979,
    source=ReasonSeg(
        "lisa",
        local_file=FOLDER,
        columns=(),
        images=FOLDER,
        obtain=OBTAIN,
        splits=("val", "test"),
    ),
    prompt=(
        "Output the bounding box in the image corresponding to the instruction: {problem}. Output the thinking process "
        'in <think> </think> and your grouding box. Following "<think> thinking process </think>\n'
        '<answer>(x1,y1),(x2,y2)</answer>)" format.'
    ),
    prompt_origin="Visual-RFT, evaluation on ReasonSeg (its slips included)",
    question_field="instruction",
    gold_field="gold",
    grader="box",
    decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=128, system_prompt=SYSTEM_PROMPT),
    notes="mIoU of boxes per split; mask IoU by python -m eval_harness.masks.",
    image_field="image",
    group_field="split",
    groups={"val": 200, "test": 779},
    context_fields=("width", "height", "polygons", "gold_box"),
)
