"""Rows without padding: one sequence in which every common beginning stands once.

What a causal model computes for a token depends on the tokens before it alone. So rows that begin alike (the prompt of
a group, a system prompt of several groups, first tokens of completions) are folded into a token trie, and each token of
the trie goes through the model once, at the position that it has in its rows. A row's last token predicts nothing and
is left out. Each position predicts one token, so rows part one token before they differ:

    prompt[:-1] | last prompt token, completion 1 without its last | last prompt token, completion 2 … | …

A row that shares nothing is a chain of its own. `Layout` says where each segment lies and what comes before it;
`gpg_repro.packed_attention` shows every token that and nothing else. Log-probabilities, and the gradient of any
function of them, are those of the rows one by one.

TRL 1.16 has the same trie (`trl.experimental.async_grpo.packing.TreeRow`), for text on CUDA with a kernel from the hub.
This one compares whole rows at once, knows pictures, leaves out last tokens and also runs on CPUs and in float64; TRL's
counts its tokens in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpg_repro.batch import MODEL_INPUT_KEYS, SEQUENCE_KEYS, Row, collate_completions, collate_images, copy_row

_IMAGE_KEYS = tuple(key for key in MODEL_INPUT_KEYS if key not in SEQUENCE_KEYS)
"""Keys of a row's images; `SEQUENCE_KEYS` go on over the completion."""


# The trie -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Tokens that the same rows have in common, next to each other in the packed sequence.

    Attributes:
        start: place of the first one in the packed sequence.
        depth: place of the first one in its rows.
        length: how many.
        parent: number of the segment before it in its rows; None at their beginning.
        rows: which rows.
    """

    start: int
    depth: int
    length: int
    parent: int | None
    rows: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.length


def build_trie(
    rows: Sequence[np.ndarray], atoms: Sequence[tuple[int, int] | None] | None = None, share: bool = True
) -> list[Segment]:
    """Segments of the rows in depth-first order; every segment's parent comes before it.

    Args:
        rows: the tokens of each, at least two; tokens that count as equal are equal numbers.
        atoms: for each row, the stretch [first, stop) that no two segments divide between them; None for no such.
        share: False makes a chain of every row.
    """
    segments: list[Segment] = []

    def add(numbers: Sequence[int], depth: int, stop: int, parent: int | None) -> int | None:
        if stop == depth:
            return parent
        start = segments[-1].stop if segments else 0
        segments.append(Segment(start, depth, stop - depth, parent, tuple(numbers)))
        return len(segments) - 1

    if not share:
        for number, row in enumerate(rows):
            add([number], 0, len(row) - 1, None)
        return segments
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), lengths.max() + 1), np.iinfo(np.int64).min)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    # Rows that have [0, depth) in common and agree on what follows the last token of it.
    open_sets: list[tuple[np.ndarray, int, int | None]] = [
        (part, 0, None) for part in reversed(_divided(np.arange(len(rows)), tokens[:, :2]))
    ]
    while open_sets:
        numbers, depth, parent = open_sets.pop()
        first = int(numbers[0])
        shortest = lengths[numbers].min()
        differ = (tokens[numbers, depth:shortest] != tokens[first, depth:shortest]).any(axis=0)
        common = depth + int(differ.argmax()) if differ.any() else int(shortest)
        cut, atom = common - 1, atoms[first] if atoms is not None else None
        alike = len(numbers) == 1 or (common == shortest and (lengths[numbers] == shortest).all())
        if not alike and atom is not None and atom[0] < cut < atom[1]:
            cut = max(atom[0], depth)
        parent = add(numbers.tolist(), depth, cut, parent)
        if not alike:
            # `common` is past the end of the rows that end here.
            parts = _divided(numbers, tokens[numbers, common : common + 1])
            open_sets += [(part, cut, parent) for part in reversed(parts)]
    return segments


def _divided(numbers: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Numbers with equal keys together, in the order in which the keys first occur."""
    parts: dict[bytes, list[int]] = {}
    for number, key in zip(numbers.tolist(), keys, strict=True):
        parts.setdefault(key.tobytes(), []).append(number)
    return [np.array(part) for part in parts.values()]


class Layout:
    """Where the segments lie in a packed sequence, and what attention needs to know, each made once.

    Args:
        segments: from `build_trie`.
        keep_copies: whether attention may keep its copies of keys and values for the backward pass: where layers run
            again in it, or where activations are offloaded, nothing is gained by making them again.
    """

    def __init__(self, segments: Sequence[Segment], keep_copies: bool = False):
        self.segments = list(segments)
        self.keep_copies = keep_copies
        self.num_calls = 0
        """Calls of the packed attention so far."""
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all layers."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def __len__(self) -> int:
        return self.segments[-1].stop if self.segments else 0

    @cached_property
    def children(self) -> dict[int | None, list[int]]:
        """Numbers of the segments behind each segment, and under None those at the beginning of rows."""
        found: dict[int | None, list[int]] = {}
        for number, segment in enumerate(self.segments):
            found.setdefault(segment.parent, []).append(number)
        return found

    @cached_property
    def num_rows(self) -> int:
        return len({row for segment in self.segments for row in segment.rows})

    def path(self, number: int | None) -> np.ndarray:
        """[depth + length] places of all tokens from the beginning of a segment's rows to its end."""
        parts = []
        while number is not None:
            segment = self.segments[number]
            parts.append(np.arange(segment.start, segment.stop))
            number = segment.parent
        return np.concatenate([*reversed(parts), np.arange(0)])

    def places(self, num_rows: int) -> list[np.ndarray]:
        """For every row, the places of its tokens, [tokens - 1]."""
        last: dict[int, int] = {row: number for number, s in enumerate(self.segments) for row in s.rows}
        paths = {number: self.path(number) for number in set(last.values())}
        return [paths[last[row]] for row in range(num_rows)]


# From rows to what the model takes ----------------------------------------------------------------------------------


def same_prompt(row: Row, other: Row) -> bool:
    """Whether two rows have the same prompt: the same tokens, and the same images."""
    if not torch.equal(row["prompt_ids"], other["prompt_ids"]):
        return False
    for key in _IMAGE_KEYS:
        mine, theirs = row.get(key), other.get(key)
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            if not torch.equal(mine, theirs):
                return False
        elif not isinstance(mine, Tensor | None) or not isinstance(theirs, Tensor | None):
            if mine != theirs:
                return False
        elif mine is not theirs:
            return False
    return True


def clusters(rows: Sequence[Row]) -> list[list[int]]:
    """Numbers of the rows in runs of one prompt; rows of a prompt are taken for one where they follow each other."""
    runs: list[list[int]] = []
    for number, row in enumerate(rows):
        if runs and same_prompt(rows[runs[-1][0]], row):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def copy_rows(rows: Sequence[Row], device: torch.device | str) -> list[Row]:
    """Rows on `device`, with one copy of the prompt for neighbours that have it in common: pickled, it is sent once."""
    copies = [copy_row(row, device) for row in rows]
    for run in clusters(rows):
        head = copies[run[0]]
        kept = {key: head[key] for key in ("prompt_ids", *_IMAGE_KEYS) if key in head}
        for number in run[1:]:
            copies[number] |= kept
    return copies


def _has_images(row: Row) -> bool:
    return row.get("pixel_values") is not None and bool(row.get("num_images", 1))


def _image_tokens(row: Row, model: PreTrainedModel) -> np.ndarray:
    """Places in a prompt of the tokens that stand for its images; where they cannot be known, of all but the last."""
    prompt = row["prompt_ids"]
    if row.get("mm_token_type_ids") is not None:
        return row["mm_token_type_ids"][: len(prompt)].cpu().numpy().nonzero()[0]
    token = getattr(model.config, "image_token_id", None)
    return np.arange(len(prompt) - 1) if token is None else (prompt.cpu().numpy() == token).nonzero()[0]


def _keys(rows: Sequence[Row], tokens: Sequence[np.ndarray], model: PreTrainedModel) -> tuple[list, list]:
    """What counts as an equal token, and the stretch of each row that its images take.

    Prompts with images are equal where they follow each other; up to the first image, any two may begin alike.
    """
    keys, atoms = [row.astype(np.int64) for row in tokens], [None] * len(rows)
    for number_of_run, run in enumerate(clusters(rows)):
        for number in run if _has_images(rows[run[0]]) else ():
            where = _image_tokens(rows[number], model)
            if len(where):
                keys[number][where] = -1 - number_of_run
                atoms[number] = (int(where[0]), int(where[-1]) + 1)
    return keys, atoms


def collate_packed(
    rows: Sequence[Row],
    model: PreTrainedModel,
    pad_token_id: int,
    share: bool = True,
    keep_copies: bool | None = None,
    uses: bool = False,
) -> dict[str, Any]:
    """Rows as one sequence without padding.

    Args:
        rows: from `gpg_repro.batch.split_rows`.
        model: for its rotary positions of images; without the wrappers of data parallelism.
        pad_token_id: stands in for the completion of a row that has none; its prediction counts for nothing.
        share: False sends each row through the model whole.
        keep_copies: see `Layout`; by default where layers are checkpointed.
        uses: for the auxiliary loss of a mixture of experts. The last token of every row goes through the model, too,
            and `inputs` holds as `attention_mask` (which packed attention does not read) how many rows use each token.

    Returns:
        What `gpg_repro.batch.collate_completions` makes of the rows, and
        `inputs`: what the model takes;
        `layout`: what its attention needs to know;
        `places`: [rows, T] where in the sequence each completion token is predicted; 0 beyond a completion's end;
        `num_tokens`: of the sequence.
    """
    batch = collate_completions(rows, pad_token_id)
    device = batch["completion_ids"].device
    nothing = batch["completion_ids"].new_full((1,), pad_token_id)
    ends = [row["completion_ids"] if len(row["completion_ids"]) else nothing for row in rows]
    lengths = [(len(row["prompt_ids"]), len(end)) for row, end in zip(rows, ends, strict=True)]
    flat = torch.cat([part for row, end in zip(rows, ends, strict=True) for part in (row["prompt_ids"], end)])
    tokens = np.split(flat.cpu().numpy(), np.cumsum([sum(pair) for pair in lengths])[:-1])
    if uses:  # the trie leaves out the last token of what it gets
        has_end = [len(row["completion_ids"]) > 0 for row in rows]
        tokens = [np.append(ids, -1) if more else ids for ids, more in zip(tokens, has_end, strict=True)]
    keys, atoms = _keys(rows, tokens, model)
    layout = Layout(
        build_trie(keys, atoms, share), model.is_gradient_checkpointing if keep_copies is None else keep_copies
    )

    ids, labels, positions, images = [], [], [], []
    position_of = _Positions(rows, model)
    for segment in layout.segments:
        first, stretch = segment.rows[0], slice(segment.depth, segment.depth + segment.length)
        ids.append(tokens[first][stretch])
        following = tokens[first][stretch.start + 1 : stretch.stop + 1].copy()
        following[: max(min(lengths[row][0] for row in segment.rows) - 1 - segment.depth, 0)] = -100
        following[following < 0] = -100
        labels.append(following)
        positions.append(position_of(first, stretch))
        if atoms[first] is not None and stretch.start <= atoms[first][0] < stretch.stop:
            images.append(rows[first])
    position_ids = np.concatenate(positions, axis=1)
    places = np.zeros(batch["completion_ids"].shape, dtype=np.int64)
    for row, (where, (prompt, end)) in enumerate(zip(layout.places(len(rows)), lengths, strict=True)):
        places[row, :end] = where[prompt - 1 : prompt - 1 + end]

    def moved(*values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate(values)).to(device)

    batch["inputs"] = {
        "input_ids": moved(*ids).unsqueeze(0),
        # [1, L], or [3, 1, L] with rows and columns of images.
        "position_ids": moved(position_ids) if len(position_ids) == 1 else moved(position_ids).unsqueeze(1),
        "shift_labels": moved(*labels).unsqueeze(0),
        **(collate_images(images) if images else {}),
    }
    if uses:
        counts = [np.full(segment.length, len(segment.rows), dtype=np.float32) for segment in layout.segments]
        batch["inputs"]["attention_mask"] = moved(*counts).unsqueeze(0)
    for key in SEQUENCE_KEYS if images else ():
        if key in rows[0]:
            kinds = [rows[s.rows[0]][key][s.depth : s.depth + s.length] for s in layout.segments]
            batch["inputs"][key] = torch.cat(kinds).unsqueeze(0)
    return batch | {"layout": layout, "places": moved(places), "num_tokens": len(layout)}


class _Positions:
    """Rotary positions of tokens as their row has them: [1, tokens], or [3, tokens] (time, row, column)."""

    def __init__(self, rows: Sequence[Row], model: PreTrainedModel):
        self.rows, self.backbone = rows, getattr(base_model(model), "model", None)
        self.rotates_in_three = hasattr(self.backbone, "get_rope_index")
        self.runs = {number: run[0] for run in clusters(rows) for number in run} if self.rotates_in_three else {}
        self.of_prompts: dict[int, np.ndarray] = {}

    def __call__(self, row: int, stretch: slice) -> np.ndarray:
        if not self.rotates_in_three:
            return np.arange(stretch.start, stretch.stop)[None]
        head = self.runs[row]
        if head not in self.of_prompts:
            self.of_prompts[head] = self._of_prompt(self.rows[head])
        before = self.of_prompts[head]
        after = before[:, -1:] + np.arange(1, max(stretch.stop - before.shape[1], 0) + 1)
        return np.concatenate([before, after], axis=1)[:, stretch]

    def _of_prompt(self, row: Row) -> np.ndarray:
        """[3, P + 1]: of a prompt and of the first token behind it."""
        prompt = row["prompt_ids"]
        if not _has_images(row):
            return np.arange(len(prompt) + 1)[None].repeat(3, axis=0)
        kinds = row["mm_token_type_ids"][: len(prompt)]
        positions, _ = self.backbone.get_rope_index(
            torch.cat([prompt, prompt[-1:]]).unsqueeze(0),  # any text token, for the one after the prompt
            mm_token_type_ids=torch.cat([kinds, torch.zeros_like(kinds[:1])]).unsqueeze(0),
            image_grid_thw=row["image_grid_thw"],
        )
        return positions[:, 0].cpu().numpy()


def collate_plain(rows: Sequence[Row], pad_token_id: int) -> dict[str, Any]:
    """Rows one below the other, padded on the right: for models that do not take the packed form.

    Returns:
        As `collate_packed`, but for the layout; `places` are those in [rows, L - 1] predictions.
    """
    batch = collate_completions(rows, pad_token_id)
    whole = [torch.cat([row["prompt_ids"], row["completion_ids"]]) for row in rows]
    width = max(max(len(ids) for ids in whole), max(len(row["prompt_ids"]) for row in rows) + 1)
    shape = (len(rows), width)
    input_ids = whole[0].new_full(shape, pad_token_id)
    mask, labels, places = torch.zeros_like(input_ids), torch.full_like(input_ids, -100), batch["completion_ids"] * 0
    for number, (row, ids) in enumerate(zip(rows, whole, strict=True)):
        start = len(row["prompt_ids"])
        input_ids[number, : len(ids)] = ids
        mask[number, : len(ids)] = 1
        labels[number, start : len(ids)] = ids[start:]
        places[number, : len(ids) - start] = torch.arange(start - 1, len(ids) - 1) + number * (width - 1)
    batch["inputs"] = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    pictured = [row for row in rows if _has_images(row)]
    batch["inputs"] |= collate_images(pictured) if pictured else {}
    for key in SEQUENCE_KEYS:
        if key in rows[0]:
            kinds = rows[0][key].new_zeros(shape)
            for number, row in enumerate(rows):
                kinds[number, : len(row[key])] = row[key]
            batch["inputs"][key] = kinds
    return batch | {"places": places, "num_tokens": input_ids.numel()}


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model under its PEFT adapter, if it has one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
