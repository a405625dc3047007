"""The four-shot training sets of Table 6: four images of each class, the question as the hub's rows hold it."""

from eval_harness.sources import Hub
from gpg_repro.datasets.base import TrainingSet

_SHOTS = 4
_REPOS = {
    "flowers102_4shot": ("laolao77/ViRFT_CLS_flower_4_shot", 102),
    "pets37_4shot": ("laolao77/ViRFT_CLS_pets37_4shot", 37),
    "fgvc_aircraft_4shot": ("laolao77/ViRFT_CLS_fgvc_aircraft_4_shot", 100),
    "cars196_4shot": ("laolao77/ViRFT_CLS_car196_4shot", 196),
}

TRAINING_SETS = tuple(
    TrainingSet(
        name=name,
        source=Hub(
            repo,
            "train",
            revision=None,
            local_file=f"{name}.jsonl",
            columns=("image", "problem", "solution"),
            image_column="image",
            images=name,
        ),
        num_rows=_SHOTS * num_classes,
        image="image",
    )
    for name, (repo, num_classes) in _REPOS.items()
)
