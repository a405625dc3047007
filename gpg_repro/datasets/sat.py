"""SAT: the training set of CV-Bench's rows (Table 7). The rows of one image among the first 15,000, about 12,000.

The release shuffles the options without a seed; here each row's order follows from its place in the file. The prompt is
the one CV-Bench is asked with, and it is whole: a pretrained model has no roles.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_harness.benchmarks.cvbench import REASONING_PROMPT
from eval_harness.images import ImageError
from eval_harness.sources import ImageReader
from gpg_repro.datasets.base import HubFile, TrainingSet

FIRST_ROWS = 15_000


@dataclass(frozen=True)
class _Sat(HubFile):
    """Rows with ``num_images`` and, in a local copy, ``image``: the name of the first."""

    def rows(self, data_root: Path | None) -> tuple[list[dict[str, Any]], str]:
        """The first rows and a name for where they came from; raises UserError as the base does."""
        if data_root is not None:
            rows, where = super().rows(data_root)
            return [row | _first_image(row["images"]) for row in rows[:FIRST_ROWS]], where
        import pyarrow.compute

        data = self._from_hub()
        data = data.select(range(min(FIRST_ROWS, len(data))))
        cells = data.select_columns([self.image_column]).with_format("arrow")[:][self.image_column]
        counts = pyarrow.compute.list_value_length(cells).to_pylist()
        texts = data.select_columns([name for name in self.columns if name != "images"])
        return [row | {"num_images": n} for row, n in zip(texts, counts, strict=True)], self.describe()

    def image_reader(self, data_root: Path | None, image_root: Path | None) -> ImageReader:
        """Reads the first image of a row: bytes, or a structure with bytes, as the hub's viewers write it."""
        if data_root is not None:
            return super().image_reader(data_root, image_root)
        data = self._from_hub().select_columns([self.image_column]).with_format("arrow")

        def read(index: int, name: str) -> bytes:
            first, *_ = data[index : index + 1][self.image_column][0].as_py() or [None]
            content = first.get("bytes") if isinstance(first, Mapping) else first
            if not content:
                raise ImageError(f"row {index}: the data set holds no image here")
            return content

        return read


def _first_image(names: Any) -> dict[str, Any]:
    names = [names] if isinstance(names, str) else list(names or [])
    return {"num_images": len(names), "image": names[0] if names else None}


def _pairs(index: int, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if row["num_images"] != 1:
        return
    options = list(row["answers"])
    if row["correct_answer"] not in options:
        raise ValueError(f"the right answer {row['correct_answer']!r} is none of the options {options}")
    random.Random(f"sat/{index}").shuffle(options)
    question = f" Answer in natural language. {row['question']} {listed(options)}"
    yield REASONING_PROMPT.replace("{problem}", question), f"<answer>{row['correct_answer']}</answer>"


def listed(options: Sequence[str]) -> str:
    """``Choose between the following options: a, b or c``."""
    *before, last = options
    return f"Choose between the following options: {', '.join(before)} or {last}"


TRAINING_SETS = (
    TrainingSet(
        name="sat",
        source=_Sat(
            "array/SAT",
            "train",
            revision=None,
            local_file="sat.jsonl",
            columns=("question", "answers", "correct_answer", "images"),
            image_column="image_bytes",
            images="sat",
            data_file="SAT_train.parquet",
        ),
        expand=_pairs,
        ready_made=True,
        image="image",
    ),
)
