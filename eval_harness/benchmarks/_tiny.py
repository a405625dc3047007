"""The protocol shared by the suites of the tiny world: generated questions, greedy answers, boxed integers.

They are miniatures with names of their own. No score on them says anything about a real benchmark.
"""

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.sources import Generated
from eval_harness.tiny_tasks import SUITES

TINY_ITEMS = 100
TINY_SEED = 0


def tiny_suite(name: str) -> Benchmark:
    """The benchmark over the first ``TINY_ITEMS`` test problems of a suite."""

    def make() -> list[dict]:
        problems = SUITES[name].sample("test", TINY_ITEMS, TINY_SEED)
        return [{"question": p.question, "gold": rf"$\boxed{{{p.answer}}}$"} for p in problems]

    return Benchmark(
        name=name,
        title=SUITES[name].title,
        version=1,
        num_items=TINY_ITEMS,
        source=Generated(f"{name}, test split, seed {TINY_SEED}", make),
        prompt="{problem}",
        prompt_origin="this project",
        question_field="question",
        gold_field="gold",
        grader="boxed",
        decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=64),
        notes=SUITES[name].description,
    )
