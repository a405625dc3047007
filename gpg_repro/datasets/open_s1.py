"""open-s1: the training set of GPG-RS1 (Table 3). 18,615 rows; the ``messages`` column is not used."""

from eval_harness.sources import Hub
from gpg_repro.datasets.base import TrainingSet

TRAINING_SETS = (
    TrainingSet(
        name="open_s1",
        source=Hub(
            "knoveleng/open-s1", "train", revision=None, local_file="open_s1.jsonl", columns=("problem", "solution")
        ),
        num_rows=18_615,
    ),
)
