"""AIME24: the 30 problems of the 2024 American Invitational Mathematics Examination, I and II.

Data: ``HuggingFaceH4/aime_2024``, split ``train``. Gold: column ``answer``, read as a plain
expression (leading zeros do not matter).
"""

from eval_harness.benchmarks._math import MATH_DECODING, MATH_PROMPT, MATH_PROMPT_ORIGIN
from eval_harness.benchmarks.base import Benchmark
from eval_harness.sources import Hub

BENCHMARK = Benchmark(
    name="aime24",
    title="AIME24",
    version=1,
    num_items=30,
    source=Hub(
        "HuggingFaceH4/aime_2024",
        "train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        local_file="aime_2024.jsonl",
        columns=("problem", "answer"),
    ),
    prompt=MATH_PROMPT,
    prompt_origin=MATH_PROMPT_ORIGIN,
    question_field="problem",
    gold_field="answer",
    grader="math_expression_gold",
    decoding=MATH_DECODING,
    notes="Steps of 3.33 points: one problem is most of a table's differences.",
)
