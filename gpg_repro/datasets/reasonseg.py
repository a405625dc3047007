"""ReasonSeg's 239 training images, the training set of Table 8: every instruction is a row, about 1,300.

The gold is the box of the image's first polygon in thousandths. The line break in the prompt is real, the instruction
is followed by a blank and no full stop; the test has a full stop and a system prompt.
"""

from eval_harness.reasonseg import FOLDER, OBTAIN, ReasonSeg
from gpg_repro.datasets.base import TrainingSet

_PROMPT = (
    "Output the bounding box in the image corresponding to the instruction: {instruction} Output the thinking process "
    'in <think> </think> and your grouding box. Following "<think> thinking process </think>\n'
    '<answer>(x1,y1),(x2,y2)</answer>)" format.'
)

TRAINING_SETS = (
    TrainingSet(
        name="reasonseg",
        source=ReasonSeg(
            "reasonseg",
            local_file=FOLDER,
            columns=(),
            images=FOLDER,
            obtain=OBTAIN,
            splits=("train",),
            every_instruction=True,
            num_images=239,
        ),
        question=lambda row: _PROMPT.replace("{instruction}", row["instruction"]),
        solution=lambda row: f"<answer> {row['gold']} </answer>",
        image="image",
    ),
)
