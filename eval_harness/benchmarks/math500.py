"""MATH-500: 500 problems of the MATH test set (Hendrycks et al. 2021; selection of Lightman et al. 2023).

Data: ``HuggingFaceH4/MATH-500``, split ``test``. Gold: column ``solution``, read as LaTeX; the
last box of the full solution.
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.sources import Hub

BENCHMARK = Benchmark(
    name="math500",
    title="MATH-500",
    version=1,
    num_items=500,
    source=Hub(
        "HuggingFaceH4/MATH-500",
        "test",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        local_file="math_500.jsonl",
        columns=("problem", "solution"),
    ),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="problem",
    gold_field="solution",
    grader="math_latex_gold",
    decoding=MATH_DECODING,
    notes="Steps of 0.2 points.",
)
