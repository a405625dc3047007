"""open-rs: the training set of GPG-RS3 (Table 3). 7,000 rows."""

from eval_harness.sources import Hub
from gpg_repro.datasets.base import TrainingSet

TRAINING_SETS = (
    TrainingSet(
        name="open_rs",
        source=Hub(
            "knoveleng/open-rs", "train", revision=None, local_file="open_rs.jsonl", columns=("problem", "solution")
        ),
        num_rows=7_000,
    ),
)
