"""What a benchmark is: where its items come from, how they are asked, how they are graded.

One file per benchmark defines ``BENCHMARK``; the registry finds it by name. Anything that could move a score (prompt,
gold field, grader, decoding) raises the file's ``version``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import xxhash

from eval_harness.errors import UserError
from eval_harness.records import Item
from eval_harness.sources import Generated, Hub, Local


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
    source: Hub | Local | Generated
    prompt: str
    """Template of the user's turn with one ``{problem}`` field."""
    prompt_origin: str
    question_field: str
    gold_field: str
    grader: str
    """Name in :mod:`eval_harness.graders`."""
    decoding: DecodingDefaults
    notes: str = ""
    form: Literal["chat", "concatenate"] = "chat"
    """``concatenate``: image and text as they stand, no roles (a pretrained model's prompt)."""
    image_field: str | None = None
    """Column of the image or of its file name; None: a benchmark of text."""
    group_field: str | None = None
    """Column that sorts items into groups with scores of their own."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Expected items of each group, checked on loading."""
    context_fields: tuple[str, ...] = ()
    """Columns that the grader needs beside the gold."""
    strict_strata: Mapping[str, float] = field(default_factory=dict)
    """Weights of the strata in the strict total (CV-Bench's card); empty: every item weighs the same."""
    stratum_field: str | None = None
    """Column, among ``context_fields``, that says which stratum an item is in."""

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
        items = [self.item(index, row, where) for index, row in enumerate(rows)]
        counts = Counter(item.group for item in items)
        if self.groups and counts != Counter(self.groups):
            raise UserError(
                f"{self.name}: {where} holds {dict(sorted(counts.items()))} items by {self.group_field}, expected "
                f"{dict(self.groups)}. The data set itself is wrong; fetch it again."
            )
        return items

    def with_seed(self, seed: int) -> Benchmark:
        """The benchmark ``<name>_seed<seed>``: the same generator, another set.

        Raises:
            UserError: its items do not come from a generator that takes seeds.
        """
        if not isinstance(self.source, Generated) or self.source.seeded is None:
            raise UserError(f"{self.name} is one fixed set; it has no seeds.")
        title, source = f"{self.title} (seed {seed})", self.source.seeded(seed)
        return replace(self, name=f"{self.name}_seed{seed}", title=title, source=source)

    def image_reader(
        self, data_root: Path | None = None, image_root: Path | None = None
    ) -> Callable[[Item], list[bytes]]:
        """A function that reads the encoded images of one item; it raises ImageError for a bad one.

        Raises:
            UserError: the images as a whole are not to be had.
        """
        if self.image_field is None:
            return lambda item: []
        read = self.source.image_reader(data_root, image_root)
        return lambda item: [read(int(item.item_id), name) for name in item.images]

    def item(self, index: int, row: Mapping[str, Any], where: str = "the rows") -> Item:
        """One row as an item.

        Args:
            index: 0-based place in the source.
            row: columns by name.
            where: what to call the source in messages.

        Raises:
            UserError: a column is missing, or the gold is.
        """
        needed = (self.question_field, self.gold_field, self.group_field, *self.context_fields)
        for name in needed:
            if name is not None and name not in row:
                raise UserError(
                    f"{self.name}, item {index} of {where}: column {name!r} is missing; it has "
                    f"{', '.join(sorted(row))}."
                )
        if row[self.question_field] is None:
            raise UserError(
                f"{self.name}, item {index} of {where}: the question ({self.question_field!r}) is null; repair the "
                "data."
            )
        gold = "" if row[self.gold_field] is None else str(row[self.gold_field])
        if not gold.strip():
            raise UserError(
                f"{self.name}, item {index} of {where}: the gold ({self.gold_field!r}) is empty. Scores "
                "against a missing gold mean nothing; repair the data."
            )
        image = () if self.image_field is None else (self._image_name(index, row),)
        return Item(
            item_id=str(index),
            prompt=self.prompt.replace("{problem}", str(row[self.question_field])),
            gold=gold,
            images=image,
            group=None if self.group_field is None else str(row[self.group_field]),
            context={name: row[name] for name in self.context_fields},
        )

    def _image_name(self, index: int, row: Mapping[str, Any]) -> str:
        name = row.get(self.image_field)
        return name if isinstance(name, str) else f"{index}"


def prompts_hash(items: list[Item]) -> str:
    """lighteval's ``hash_examples``: xxh64 of the concatenated, sorted xxh64 hex digests of the prompts.

    Equal hashes mean equal sets of prompts, byte for byte; order, golds and answers are not covered.
    """
    digests = sorted(xxhash.xxh64(item.prompt.encode()).hexdigest() for item in items)
    return xxhash.xxh64("".join(digests).encode()).hexdigest()
