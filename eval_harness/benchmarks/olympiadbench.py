"""OlympiadBench: the 675 text-only English mathematics problems of OlympiadBench (He et al. 2024).

Data: ``knoveleng/OlympiadBench``, split ``train``. Gold: column ``answer``, read as LaTeX.
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.sources import Hub

BENCHMARK = Benchmark(
    name="olympiadbench",
    title="OlympiadBench",
    version=1,
    num_items=675,
    source=Hub(
        "knoveleng/OlympiadBench",
        "train",
        revision=None,
        local_file="olympiad_bench.jsonl",
        columns=("question", "answer"),
    ),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="question",
    gold_field="answer",
    grader="math_latex_gold",
    decoding=MATH_DECODING,
    notes="409 golds are bare (no dollar signs): the published rule compares raw text, the strict rule reads them.",
)
