"""The protocol shared by the suites of the tiny world: generated questions, greedy answers, boxed integers.

They are miniatures with names of their own. No score on them says anything about a real benchmark. A suite exists in
three kinds, for the contamination check in miniature (docs/controls.md): ``tiny_sums`` is the held-out set,
``tiny_sums_seed1`` a fresh draw of held-out problems, ``tiny_sums_train`` problems of the split that is trained on.
"""

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.sources import Generated
from eval_harness.tiny_tasks import SUITES

TINY_ITEMS = 100
TINY_SEED = 0


def tiny_suite(name: str, split: str = "test") -> Benchmark:
    """The benchmark over the first ``TINY_ITEMS`` problems of a suite's split; ``<name>_train`` for the train split."""

    def seeded(seed: int) -> Generated:
        def make() -> list[dict]:
            problems = SUITES[name].sample(split, TINY_ITEMS, seed)
            return [{"question": p.question, "gold": rf"$\boxed{{{p.answer}}}$"} for p in problems]

        return Generated(f"{name}, {split} split, seed {seed}", make, seeded=seeded)

    return Benchmark(
        name=name if split == "test" else f"{name}_{split}",
        title=SUITES[name].title + ("" if split == "test" else f" ({split} split)"),
        version=1,
        num_items=TINY_ITEMS,
        source=seeded(TINY_SEED),
        prompt="{problem}",
        prompt_origin="this project",
        question_field="question",
        gold_field="gold",
        grader="boxed",
        decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=64),
        notes=SUITES[name].description,
    )
