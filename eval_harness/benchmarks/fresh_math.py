"""Fresh Math: 100 problems drawn from a seed, ten of each of ten families. A control for contamination.

Asked, decoded and graded as MATH-500. ``fresh_math`` has the default seed (see :func:`eval_harness.fresh_tasks.
default_seed`); its problems are as public as this repository, so a model trained later may know them. A set that no
model can know is ``fresh_math_seed<N>`` with a number nobody has used. The version is the generator's.
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.fresh_tasks import FAMILIES, GENERATOR, NUM_PROBLEMS, default_seed, fresh_problems
from eval_harness.sources import Generated


def seeded(seed: int) -> Generated:
    """The set of a seed as a source."""

    def make() -> list[dict]:
        return [
            {"question": p.question, "gold": rf"$\boxed{{{p.latex}}}$", "family": p.family, "level": p.level}
            for p in fresh_problems(seed)
        ]

    return Generated(f"fresh_math, generator {GENERATOR}, seed {seed}", make, seeded=seeded)


BENCHMARK = Benchmark(
    name="fresh_math",
    title="Fresh Math",
    version=GENERATOR,
    num_items=NUM_PROBLEMS,
    source=seeded(default_seed()),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="question",
    gold_field="gold",
    grader="math_latex_gold",
    decoding=MATH_DECODING,
    group_field="family",
    groups=dict.fromkeys(FAMILIES, NUM_PROBLEMS // len(FAMILIES)),
    notes="Generated; beside a real set it says how much of a score is owed to having seen the questions.",
)
