"""Minerva: 272 undergraduate science problems (Lewkowycz et al. 2022, MIT OpenCourseWare).

Data: ``knoveleng/Minerva-Math``, split ``train``. Gold: column ``solution``, read as LaTeX; the
boxed value of the solution, units often outside the box.
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.sources import Hub

BENCHMARK = Benchmark(
    name="minerva",
    title="Minerva",
    version=1,
    num_items=272,
    source=Hub(
        "knoveleng/Minerva-Math",
        "train",
        revision=None,
        local_file="minerva_math.jsonl",
        columns=("problem", "solution"),
    ),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="problem",
    gold_field="solution",
    grader="math_latex_gold",
    decoding=MATH_DECODING,
    notes="Physics constants: expect unit and rounding misses at precision 5.",
)
