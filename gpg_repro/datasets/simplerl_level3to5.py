"""SimpleRL-Zoo, MATH levels 3 to 5: the set of GPG-7B by README and launch command (Table 4). About 8,500 rows.

Each row brings its whole prompt in Qwen's chat form (question, "reason step by step", the box), which is given to the
model as it stands. The model's end-of-text token is not the prompt's end-of-turn token, so the latter does not stop
generation; kept as released. The gold is the bare answer in ``target``; a few rows have none.
"""

from gpg_repro.datasets.base import HubFile, TrainingSet

TRAINING_SETS = (
    TrainingSet(
        name="simplerl_level3to5",
        source=HubFile(
            "hkust-nlp/SimpleRL-Zoo-Data",
            "train",
            revision=None,
            local_file="simplelr_qwen_level3to5.jsonl",
            columns=("prompt", "target"),
            data_file="simplelr_qwen_level3to5/train.parquet",
        ),
        question=lambda row: row["prompt"][0]["content"],
        solution="target",
        ready_made=True,
        lacks_golds=True,
    ),
)
