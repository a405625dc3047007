"""What a training set is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from eval_harness.errors import UserError
from eval_harness.images import decode
from eval_harness.sources import Hub, Local, load_from_hub


@dataclass(frozen=True)
class HubFile(Hub):
    """One parquet file of a hub repository that keeps several sets apart by folder."""

    data_file: str = ""

    def describe(self) -> str:
        """``repo/file@revision`` for lists and records."""
        return f"{self.repo}/{self.data_file}@{(self.revision or 'main')[:8]}"

    def _load(self) -> Any:
        return load_from_hub(self.repo, self.revision, data_files={self.split: self.data_file}, split=self.split)


ImageCell = Image.Image | Callable[[], Image.Image]
"""An image, or a function that reads it when it is needed."""


@dataclass(frozen=True)
class TrainingSet:
    """Rows with a question and a gold. ``num_rows`` None: the number depends on the request or is not known."""

    name: str
    source: Hub | Local | Callable[[int, int], list[dict[str, Any]]]
    """A hub data set, or a generator (num, seed) -> rows of prompt, solution (and image, demonstration)."""
    question: str | Callable[[Mapping[str, Any]], str] = "problem"
    """Column, or a function of the row."""
    solution: str | Callable[[Mapping[str, Any]], str] = "solution"
    num_rows: int | None = None
    ready_made: bool = False
    """The question is the whole prompt: no system prompt, and no chat template. It is given to the model as plain text,
    with an image as one turn, which the recipe's ``prompt_form: concatenate`` leaves as it stands."""
    repeats_questions: bool = False
    """The source holds questions more than once; the first of each is kept."""
    lacks_golds: bool = False
    """The source is known to hold rows without a gold; they come with the gold ``""`` for the caller to take out."""
    image: str | None = None
    """Column of the image or of its file name; None: a set of text."""
    demonstration: str | None = None
    """Column of a whole right completion, for supervised rows."""
    expand: Callable[[int, Mapping[str, Any]], Iterable[tuple[str, str]]] | None = None
    """(index, row) -> (question, gold) pairs of that row, where it is not one each; replaces the two above."""

    def describe(self) -> str:
        """Where the rows come from."""
        return f"generated ({self.name})" if callable(self.source) else self.source.describe()

    def rows(
        self,
        system_prompt: str | None,
        num: int | None,
        seed: int,
        data_root: Path | None = None,
        image_root: Path | None = None,
    ) -> list[dict]:
        """Rows ``{"prompt": conversation or text, "solution": gold text}``, of visual sets with an ``image``.

        Args:
            system_prompt: system turn, or None for none.
            num: how many rows; required for generated sets, the first rows of others.
            seed: for generated sets.
            data_root: folder with a local copy of a hub set.
            image_root: folder with the image folders of a local copy (default: the data root).

        Raises:
            UserError: the set cannot be reached, a gold is missing, or a system prompt for a set that brings its own.
        """
        if self.ready_made and system_prompt:
            raise UserError(f"training set {self.name} brings its whole prompt: system_prompt must be null.")
        rows = self._generated(num, seed) if callable(self.source) else self._read(num, data_root, image_root)
        if self.ready_made and not self.image:
            return rows
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [{**row, "prompt": [*system, {"role": "user", "content": row["prompt"]}]} for row in rows]

    def _generated(self, num: int | None, seed: int) -> list[dict]:
        if num is None:
            raise UserError(f"training set {self.name} is generated: the recipe must say num_prompts.")
        kept = ("solution", "image", "demonstration")
        return [
            {"prompt": row["prompt"][-1]["content"], **{key: row[key] for key in kept if key in row}}
            for row in self.source(num, seed)
        ]

    def _read(self, num: int | None, data_root: Path | None, image_root: Path | None) -> list[dict]:
        raw, where = self.source.rows(data_root)
        if num is None and self.num_rows is not None and len(raw) != self.num_rows:
            raise UserError(f"{self.name}: {where} holds {len(raw)} rows, expected {self.num_rows}.")
        read = self.source.image_reader(data_root, image_root) if self.image else None
        rows: list[dict] = []
        seen: set[str] = set()
        for index, row in enumerate(raw):
            for question, gold in self._pairs(index, row, where):
                if self.repeats_questions and question in seen:
                    continue
                seen.add(question)
                image = {} if read is None else {"image": _ImageCell(read, index, self._image_name(index, row))}
                shown = {"demonstration": row[self.demonstration]} if self.demonstration else {}
                rows.append({"prompt": question, "solution": gold, **image, **shown})
        return rows[:num]

    def _image_name(self, index: int, row: Mapping[str, Any]) -> str:
        name = row.get(self.image)
        return name if isinstance(name, str) else f"{index}"

    def _pairs(self, index: int, row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
        try:
            if self.expand is not None:
                pairs = list(self.expand(index, row))
            else:
                pairs = [tuple(get(row) if callable(get) else row[get] for get in (self.question, self.solution))]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.name}, row {index} of {where} is not built as expected ({type(error).__name__}: {error}); "
                "was the data set changed?"
            ) from None
        return [(question, self._checked(gold, index, where)) for question, gold in pairs]

    def _checked(self, gold: Any, index: int, where: str) -> str:
        if isinstance(gold, str) and gold.strip():
            return gold
        if not self.lacks_golds:
            raise UserError(f"{self.name}, row {index} of {where}: the gold is missing or empty.")
        return ""


@dataclass(frozen=True)
class _ImageCell:
    """Reads one image of a source when it is called."""

    read: Callable[[int, str], bytes]
    index: int
    name: str

    def __call__(self) -> Image.Image:
        return decode(self.read(self.index, self.name), self.name)
