"""MATH-lighteval: the training set of the 7B ablations (Tables 1, 10, 11, 12). 7,500 rows."""

from eval_harness.sources import Hub
from gpg_repro.datasets.base import TrainingSet

TRAINING_SETS = (
    TrainingSet(
        name="math_lighteval",
        source=Hub(
            "DigitalLearningGmbH/MATH-lighteval",
            "train",
            revision="0530c78699ea5e8eb5530600900e1f328b48acad",  # our pin; the paper names none
            local_file="math_lighteval.jsonl",
            columns=("problem", "solution"),
        ),
        num_rows=7_500,
    ),
)
