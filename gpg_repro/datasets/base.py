"""What a training set is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_harness.errors import UserError
from eval_harness.sources import Hub


@dataclass(frozen=True)
class TrainingSet:
    """Rows with a question and a gold. ``num_rows`` None: the number depends on the request (generated sets)."""

    name: str
    source: Hub | Callable[[int, int], list[dict[str, Any]]]
    """A hub data set, or a generator (num, seed) -> rows of prompt, solution."""
    question: str = "problem"
    solution: str = "solution"
    num_rows: int | None = None

    def describe(self) -> str:
        """Where the rows come from."""
        return self.source.describe() if isinstance(self.source, Hub) else f"generated ({self.name})"

    def rows(self, system_prompt: str | None, num: int | None, seed: int, data_root: Path | None = None) -> list[dict]:
        """Rows ``{"prompt": conversation, "solution": gold text}``.

        Args:
            system_prompt: system turn, or None for none.
            num: how many rows; required for generated sets, the first rows of others.
            seed: for generated sets.
            data_root: folder with a local copy of a hub set.

        Raises:
            UserError: the set cannot be reached, or a gold is missing.
        """
        if isinstance(self.source, Hub):
            raw, where = self.source.rows(data_root)
            if num is None and self.num_rows is not None and len(raw) != self.num_rows:
                raise UserError(f"{self.name}: {where} holds {len(raw)} rows, expected {self.num_rows}.")
            pairs = [self._pair(i, row, where) for i, row in enumerate(raw[:num])]
        else:
            if num is None:
                raise UserError(f"training set {self.name} is generated: the recipe must say num_prompts.")
            pairs = [(row["prompt"][-1]["content"], row["solution"]) for row in self.source(num, seed)]
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [{"prompt": [*system, {"role": "user", "content": q}], "solution": gold} for q, gold in pairs]

    def _pair(self, index: int, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        question, gold = row[self.question], row[self.solution]
        if not isinstance(gold, str) or not gold.strip():
            raise UserError(f"{self.name}, row {index} of {where}: the gold ({self.solution!r}) is missing or empty.")
        return question, gold
