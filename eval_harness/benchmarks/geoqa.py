"""GEOQA: 754 geometry questions with one figure each, in the English of Geo170K.

Data: the list ``geoqa_test_prompts.jsonl`` of the R1-V project (not on the hub) and the test images of
``Luckyjhg/Geo170K``. R1-V calls the set "735"; the file and all printed scores have 754.
"""

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.sources import Local

BENCHMARK = Benchmark(
    name="geoqa",
    title="GEOQA",
    version=1,
    num_items=754,
    source=Local(
        "geoqa",
        local_file="geoqa_test_prompts.jsonl",
        columns=("image_path", "question", "ground_truth"),
        images="",
        obtain=(
            "The list is src/eval/prompts/geoqa_test_prompts.jsonl of github.com/Deep-Agent/R1-V; the images are "
            "images.zip of the hub's Luckyjhg/Geo170K, unpacked to Geo170K/images/test/0.png ... 753.png."
        ),
    ),
    prompt=(
        "{problem} Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> "
        "tags."
    ),
    prompt_origin="R1-V, evaluation on GEOQA (one blank before Output; two in training)",
    question_field="question",
    gold_field="ground_truth",
    grader="number",
    decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=1024),
    notes="The published rule cannot read 17 golds and reads 60 others by their leading coefficient.",
    image_field="image_path",
)
