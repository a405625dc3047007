"""AMC23: 40 problems of the 2023 American Mathematics Competitions 12 A and B with integer answers.

Data: ``knoveleng/AMC-23``, split ``train``. Gold: column ``answer``, read as a plain expression (27.0 equals 27).
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.sources import Hub

BENCHMARK = Benchmark(
    name="amc23",
    title="AMC23",
    version=1,
    num_items=40,
    source=Hub("knoveleng/AMC-23", "train", revision=None, local_file="amc_23.jsonl", columns=("problem", "answer")),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="problem",
    gold_field="answer",
    grader="math_expression_gold",
    decoding=MATH_DECODING,
    notes="Not the 83-problem AMC set (2022 and 2023) behind scores such as 50.6 or 62.7.",
)
