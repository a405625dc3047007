"""AIME25: the 30 problems of the 2025 American Invitational Mathematics Examination, I and II.

A control, not a benchmark of the paper: the questions are younger than AIME24's and than the bases' training data.
Asked, decoded and graded as AIME24. Data: ``yentinglin/aime_2025``, split ``train`` (columns problem, answer, ...), the
set of lighteval's task of this name. Gold: column ``answer``, read as a plain expression.
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.sources import Hub

BENCHMARK = Benchmark(
    name="aime25",
    title="AIME25",
    version=1,
    num_items=30,
    source=Hub(
        "yentinglin/aime_2025",
        "train",
        revision="6f71d77b0b89b9dabe07ab466c51df33f514df7f",  # our pin; the paper does not use the set
        local_file="aime_2025.jsonl",
        columns=("problem", "answer"),
    ),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="problem",
    gold_field="answer",
    grader="math_expression_gold",
    decoding=MATH_DECODING,
    notes="Beside AIME24 it says how much of a score is owed to having seen the questions; see docs/controls.md.",
)
