"""The protocol shared by the sets of the tiny visual world: drawn items, greedy answers, the paper's prompts cut short.

They are miniatures with names of their own. No score on them says anything about a real benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from PIL import Image

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.sources import Generated
from eval_harness.tiny_vision import PROMPTS, SETS, Task

TINY_SEED = 0


def tiny_vision(
    name: str,
    grader: str,
    columns: Callable[[int, Task], Mapping[str, Any]] = lambda index, task: {},
    num_items: int = 100,
    question_field: str = "question",
    gold_field: str = "answer",
    **rest: Any,
) -> Benchmark:
    """The benchmark over the first ``num_items`` test tasks of a set.

    Args:
        name: the set.
        grader: name in :mod:`eval_harness.graders`.
        columns: (index, task) -> further columns of its row, or another ``answer``.
        num_items: how many tasks.
        question_field, gold_field: columns.
        rest: further fields of the benchmark.
    """

    @lru_cache(1)
    def tasks() -> list[Task]:
        return SETS[name].sample("test", num_items, TINY_SEED)

    def make() -> list[dict]:
        return [
            {
                "index": i,
                "image": f"{task.id}.png",
                "question": task.question,
                "answer": task.answer,
                **columns(i, task),
            }
            for i, task in enumerate(tasks())
        ]

    def draw(row: Mapping[str, Any]) -> Image.Image:
        return tasks()[row["index"]].draw()

    return Benchmark(
        name=name,
        title=SETS[name].title,
        version=1,
        num_items=num_items,
        source=Generated(f"{name}, test split, seed {TINY_SEED}", make, draw),
        prompt=PROMPTS[name],
        prompt_origin="this project",
        question_field=question_field,
        gold_field=gold_field,
        grader=grader,
        decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=40),
        notes=SETS[name].description,
        image_field="image",
        **rest,
    )
