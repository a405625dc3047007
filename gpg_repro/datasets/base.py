"""What a training set is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_harness.errors import UserError
from eval_harness.sources import Hub


@dataclass(frozen=True)
class HubFile(Hub):
    """One parquet file of a hub repository that keeps several sets apart by folder."""

    data_file: str = ""

    def describe(self) -> str:
        """``repo/file@revision`` for lists and records."""
        return f"{self.repo}/{self.data_file}@{(self.revision or 'main')[:8]}"

    def _load(self) -> Any:
        import datasets

        return datasets.load_dataset(
            self.repo, data_files={self.split: self.data_file}, split=self.split, revision=self.revision
        )


@dataclass(frozen=True)
class TrainingSet:
    """Rows with a question and a gold. ``num_rows`` None: the number depends on the request or is not known."""

    name: str
    source: Hub | Callable[[int, int], list[dict[str, Any]]]
    """A hub data set, or a generator (num, seed) -> rows of prompt, solution."""
    question: str | Callable[[Mapping[str, Any]], str] = "problem"
    """Column, or a function of the row."""
    solution: str | Callable[[Mapping[str, Any]], str] = "solution"
    num_rows: int | None = None
    ready_made: bool = False
    """The question is the whole prompt, given to the model as plain text: no chat template, no system prompt."""
    repeats_questions: bool = False
    """The source holds questions more than once; the first of each is kept."""
    lacks_golds: bool = False
    """The source is known to hold rows without a gold; they come with the gold ``""`` for the caller to take out."""

    def describe(self) -> str:
        """Where the rows come from."""
        return self.source.describe() if isinstance(self.source, Hub) else f"generated ({self.name})"

    def rows(self, system_prompt: str | None, num: int | None, seed: int, data_root: Path | None = None) -> list[dict]:
        """Rows ``{"prompt": conversation or text, "solution": gold text}``.

        Args:
            system_prompt: system turn, or None for none.
            num: how many rows; required for generated sets, the first rows of others.
            seed: for generated sets.
            data_root: folder with a local copy of a hub set.

        Raises:
            UserError: the set cannot be reached, a gold is missing, or a system prompt for a set that brings its own.
        """
        if self.ready_made and system_prompt:
            raise UserError(f"training set {self.name} brings its whole prompt: system_prompt must be null.")
        if isinstance(self.source, Hub):
            raw, where = self.source.rows(data_root)
            if num is None and self.num_rows is not None and len(raw) != self.num_rows:
                raise UserError(f"{self.name}: {where} holds {len(raw)} rows, expected {self.num_rows}.")
            pairs = [self._pair(i, row, where) for i, row in enumerate(raw)]
            if self.repeats_questions:
                first: dict[str, str] = {}
                for question, gold in pairs:
                    first.setdefault(question, gold)
                pairs = list(first.items())
            pairs = pairs[:num]
        else:
            if num is None:
                raise UserError(f"training set {self.name} is generated: the recipe must say num_prompts.")
            pairs = [(row["prompt"][-1]["content"], row["solution"]) for row in self.source(num, seed)]
        if self.ready_made:
            return [{"prompt": question, "solution": gold} for question, gold in pairs]
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [{"prompt": [*system, {"role": "user", "content": q}], "solution": gold} for q, gold in pairs]

    def _pair(self, index: int, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        try:
            question, gold = (get(row) if callable(get) else row[get] for get in (self.question, self.solution))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.name}, row {index} of {where} is not built as expected ({type(error).__name__}: {error}); "
                "was the data set changed?"
            ) from None
        if not isinstance(gold, str) or not gold.strip():
            if not self.lacks_golds:
                raise UserError(f"{self.name}, row {index} of {where}: the gold is missing or empty.")
            gold = ""
        return question, gold
