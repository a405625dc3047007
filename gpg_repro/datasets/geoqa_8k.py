"""GEOQA_R1V_Train_8K: the training set of Table 5, about 8,000 rows. Two blanks before "Output"; the test has one."""

from eval_harness.sources import Hub
from gpg_repro.datasets.base import TrainingSet

_ASK = "  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."

TRAINING_SETS = (
    TrainingSet(
        name="geoqa_8k",
        source=Hub(
            "leonardPKU/GEOQA_R1V_Train_8K",
            "train",
            revision=None,
            local_file="geoqa_8k.jsonl",
            columns=("image", "problem", "solution"),
            image_column="image",
            images="geoqa_8k",
        ),
        question=lambda row: row["problem"] + _ASK,
        image="image",
    ),
)
