"""Set ``tiny_grounding`` of the tiny visual world, 100 tasks for val and 100 for test; see docs/tiny_vision.md."""

from collections.abc import Mapping
from typing import Any

from eval_harness.benchmarks._tiny_vision import tiny_vision
from eval_harness.tiny_vision import Task


def _columns(index: int, task: Task) -> Mapping[str, Any]:
    return {**task.facts, "split": "val" if index < 100 else "test"}


BENCHMARK = tiny_vision(
    "tiny_grounding",
    "box",
    _columns,
    num_items=200,
    group_field="split",
    groups={"val": 100, "test": 100},
    context_fields=("width", "height", "polygons"),
)
