"""Training sets of the tiny visual world: twins of SAT, GEOQA 8K, the four-shot sets and ReasonSeg's training images.

See docs/tiny_vision.md. A row's demonstration, for supervised rows, is the answer without reasoning.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from eval_harness.errors import UserError
from eval_harness.tiny_vision import KINGDOMS, PROMPTS, SETS, in_words
from gpg_repro.datasets.base import TrainingSet

TWINS = {
    "tiny_spatial": "tiny_scenes",
    "tiny_figures_train": "tiny_figures",
    **{f"{name}_4shot": name for name in KINGDOMS},
    "tiny_grounding_train": "tiny_grounding",
}
"""Training set -> the set whose train split it draws from."""
NUM_SHOTS = 4
SPACED_GOLDS = ("tiny_figures", "tiny_grounding")
"""Their golds have blanks inside the tags, as the paper's sets have: math-verify reads a number only after one."""


def vision_rows(name: str, num: int, seed: int) -> list[dict[str, Any]]:
    """`num` distinct rows of the training set `name`, the same ones for the same seed.

    Each row has `prompt` (one user turn), `solution` (`<answer>left</answer>`), `image` (RGB, 112 x 112) and
    `demonstration` (a completion without reasoning). A four-shot set holds four images of each class and no more.

    Raises:
        UserError: unknown training set, or more rows asked for than it has.
    """
    if name not in TWINS:
        raise UserError(f"unknown visual training set {name!r}; expected one of {', '.join(TWINS)}.")
    twin = SETS[TWINS[name]]
    if name.endswith("_4shot"):
        size = NUM_SHOTS * len(twin.parts)
        if num > size:
            raise UserError(f"training set {name} holds {size} images, {num} were asked for.")
        tasks = twin.sample("train", size, seed)[:num]
    else:
        try:
            tasks = twin.sample("train", num, seed)
        except ValueError as error:
            raise UserError(f"training set {name}: {error}.") from None
    whole = name == "tiny_spatial"
    rows = []
    for task in tasks:
        question = in_words(task) if whole else task.question
        answer = f"<answer>{task.answer}</answer>"
        gold = f"<answer> {task.answer} </answer>" if twin.name in SPACED_GOLDS else answer
        rows.append(
            {
                "prompt": [{"role": "user", "content": PROMPTS[twin.name].replace("{problem}", question)}],
                "solution": gold,
                "image": task.draw(),
                "demonstration": f"{'' if whole else '<think>'}</think>{answer}",
            }
        )
    return rows


TRAINING_SETS = tuple(
    TrainingSet(name=name, source=partial(vision_rows, name), image="image", ready_made=name == "tiny_spatial")
    for name in TWINS
)
