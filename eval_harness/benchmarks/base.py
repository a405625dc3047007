"""What a benchmark is: where its items come from, how they are asked, how they are graded.

One file per benchmark defines ``BENCHMARK``; the registry finds it by name. Anything that could move a score (prompt,
gold field, grader, decoding) raises the file's ``version``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from eval_harness.errors import UserError
from eval_harness.records import Item
from eval_harness.sources import Generated, Hub


@dataclass(frozen=True)
class DecodingDefaults:
    """The documented decoding of a benchmark; every field can be overridden on the command line and is recorded."""

    temperature: float
    top_p: float
    max_new_tokens: int
    top_k: int = 0
    seed: int = 1234
    samples: int = 1
    system_prompt: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. ``num_items`` is checked on loading."""

    name: str
    title: str
    """Column heading in tables."""
    version: int
    num_items: int
    source: Hub | Generated
    prompt: str
    """Template of the user's turn with one ``{problem}`` field."""
    prompt_origin: str
    question_field: str
    gold_field: str
    grader: str
    """Name in :mod:`eval_harness.graders`."""
    decoding: DecodingDefaults
    notes: str = ""

    def load(self, data_root: Path | None = None) -> list[Item]:
        """All items in the order of the source.

        Args:
            data_root: folder with ``<file>.jsonl`` in the hub's column names, instead of the hub.

        Raises:
            UserError: the source cannot be reached, the item count is off, a column is missing, or a gold is missing
                or empty; the message names the file, the item and the remedy.
        """
        rows, where = self.source.rows(data_root)
        if len(rows) != self.num_items:
            raise UserError(
                f"{self.name}: {where} holds {len(rows)} items, expected {self.num_items}. The data set "
                "itself is wrong (another split, a partial download?); fetch it again."
            )
        return [self._item(index, row, where) for index, row in enumerate(rows)]

    def _item(self, index: int, row: Mapping[str, Any], where: str) -> Item:
        for field in (self.question_field, self.gold_field):
            if field not in row:
                raise UserError(
                    f"{self.name}, item {index} of {where}: column {field!r} is missing; it has "
                    f"{', '.join(sorted(row))}."
                )
        gold = "" if row[self.gold_field] is None else str(row[self.gold_field])
        if not gold.strip():
            raise UserError(
                f"{self.name}, item {index} of {where}: the gold ({self.gold_field!r}) is empty. Scores "
                "against a missing gold mean nothing; repair the data."
            )
        prompt = self.prompt.replace("{problem}", str(row[self.question_field]))
        return Item(item_id=str(index), prompt=prompt, gold=gold)


def prompts_hash(items: list[Item]) -> str:
    """lighteval's ``hash_examples``: xxh64 of the concatenated, sorted xxh64 hex digests of the prompts.

    Equal hashes mean equal sets of prompts, byte for byte; order, golds and answers are not covered.
    """
    digests = sorted(xxhash.xxh64(item.prompt.encode()).hexdigest() for item in items)
    return xxhash.xxh64("".join(digests).encode()).hexdigest()
