"""The protocol shared by the four fine-grained classification sets of Table 6.

One image, one question; the text starts with a literal ``<image>`` line, as it ran. The released scripts sample with
the model's own generation config, which for Qwen2-VL Instruct is close to greedy; greedy stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.errors import UserError
from eval_harness.records import Item
from eval_harness.sources import Local

_QUESTION = (
    "<image>\nThis is an image containing {noun}. Please identify the {kind} based on the image.\n"
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "The output answer format should be as follows:\n<think> ... </think> <answer>species name</answer>\n"
    "Please strictly follow the format."
)


@dataclass(frozen=True)
class Classification(Benchmark):
    """Adds to the list's checks that every class is there."""

    num_classes: int = 0

    def load(self, data_root: Path | None = None) -> list[Item]:
        """All items in the order of the list.

        Raises:
            UserError: as for every benchmark, or the number of classes is off.
        """
        items = super().load(data_root)
        found = len({item.gold for item in items})
        if found != self.num_classes:
            raise UserError(
                f"{self.name}: {self.source.local_file} names {found} classes, expected {self.num_classes}. The list "
                "itself is wrong; build it again (python -m eval_harness.class_lists)."
            )
        return items


def classification(
    name: str, title: str, num_items: int, num_classes: int, folder: str, *, noun: str, kind: str, obtain: str
) -> Classification:
    """The benchmark over ``<folder>_test.jsonl``; its file names are relative to ``folder`` under the image root.

    Args:
        noun: what is on the image, with its article.
        kind: what to name.
        obtain: where the images come from.
    """
    return Classification(
        name=name,
        title=title,
        version=1,
        num_items=num_items,
        num_classes=num_classes,
        source=Local(
            name,
            local_file=f"{folder}_test.jsonl",
            columns=("image", "label", "class_name"),
            images=folder,
            obtain=f"{obtain} The list is built by `python -m eval_harness.class_lists {name} --from DIR --out FILE`.",
        ),
        prompt=_QUESTION.format(noun=noun, kind=kind),
        prompt_origin="Visual-RFT, evaluation on classification",
        # the question is the same for every image; the field is only there to be present
        question_field="class_name",
        gold_field="class_name",
        grader="class_name",
        decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=1024),
        notes="The published rule takes an empty answer for right; see the flag empty_answer.",
        image_field="image",
    )
