"""Set ``tiny_scenes`` of the tiny visual world, built like CV-Bench, strict total included; see docs/tiny_vision.md."""

from collections.abc import Mapping
from typing import Any

from eval_harness.benchmarks._tiny_vision import tiny_vision
from eval_harness.tiny_vision import DEEP_SOURCE, FLAT_SOURCES, Task, lettered


def _columns(index: int, task: Task) -> Mapping[str, Any]:
    letter = "ABCD"[task.facts["choices"].index(task.answer)]
    return {**task.facts, "task": task.part, "prompt": lettered(task), "answer": f"({letter})"}


BENCHMARK = tiny_vision(
    "tiny_scenes",
    "choice",
    _columns,
    num_items=400,
    question_field="prompt",
    form="concatenate",
    group_field="task",
    groups={"Count": 100, "Relation": 100, "Depth": 100, "Distance": 100},
    context_fields=("choices", "source"),
    stratum_field="source",
    strict_strata={**dict.fromkeys(FLAT_SOURCES, 0.25), DEEP_SOURCE: 0.5},
)
