"""From draws of completions to micro-batches: the bookkeeping of Algorithm 1 that needs no model.

A *draw* is one round of sampling: Q prompts of the stream, G completions each, N = Q * G rows over all processes. A
step is assembled from one or more draws (section 2.3: valid groups are kept, the rest is drawn again). Every process
sees the rewards and lengths of all rows and comes to the same decisions; the rows themselves stay where they were
sampled until `deal` says that one has to move.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

Row = dict[str, Any]
"""One completion with its prompt: TRL's batch keys without the batch dimension's padding."""

COMPLETION_KEYS = ("completion_ids", "completion_mask", "tool_mask", "ref_per_token_logps", "sampling_per_token_logps")
"""Keys of [N, T] tensors, aligned with the completion."""
SEQUENCE_KEYS = ("token_type_ids", "mm_token_type_ids")
"""Keys of [N, P + T] tensors, aligned with prompt and completion."""
IMAGE_KEYS = ("image_sizes",)
"""Keys of tensors with one entry per image, beside those that TRL splits by image itself."""
COUNT_KEYS = ("num_images", "num_tiles")
"""Keys that say how many entries of the other tensors are a row's; no model takes them."""
MODEL_INPUT_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""Keys that the model's forward may need beside the token ids."""


# Which prompts ------------------------------------------------------------------------------------------------------


class PromptStream:
    """An endless order of prompts in chunks of one draw: a pure function of seed and position, hence resumable.

    The order is that of TRL's `RepeatSampler`: one permutation per epoch, a last incomplete chunk left out.

    Args:
        num_prompts: rows of the training set.
        chunk_size: Q, prompts in one draw over all processes.
        seed: of the permutations.
        shuffle: False keeps the order of the training set.
        order: the row indices of 0-based epoch n in the order of `order(n)`, in place of a permutation.

    Raises:
        ValueError: the training set does not fill one draw, or (when it is reached) an epoch of `order` does not.
    """

    def __init__(
        self,
        num_prompts: int,
        chunk_size: int,
        seed: int,
        shuffle: bool = True,
        order: Callable[[int], Sequence[int]] | None = None,
    ):
        if num_prompts < chunk_size:
            raise ValueError(
                f"The training set has {num_prompts} prompts, but one draw takes {chunk_size}. Use more prompts or a "
                "smaller generation batch."
            )
        self.num_prompts, self.chunk_size, self.seed = num_prompts, chunk_size, seed
        self.chunks_per_epoch = num_prompts // chunk_size
        self._permutation = lru_cache(maxsize=2)(self._new_permutation if order is None else self._checked(order))
        self.shuffle = shuffle or order is not None

    def chunk(self, position: int) -> list[int]:
        """The Q row indices of the draw at 0-based `position`."""
        epoch, place = divmod(position, self.chunks_per_epoch)
        order = self._permutation(epoch) if self.shuffle else range(self.num_prompts)
        return list(order[place * self.chunk_size : (place + 1) * self.chunk_size])

    def _checked(self, order: Callable[[int], Sequence[int]]) -> Callable[[int], list[int]]:
        def checked(epoch: int) -> list[int]:
            rows = [int(row) for row in order(epoch)]
            needed = self.chunks_per_epoch * self.chunk_size
            if len(rows) < needed or not all(0 <= row < self.num_prompts for row in rows):
                raise ValueError(
                    f"The prompt order of epoch {epoch} has {len(rows)} rows from {min(rows, default=None)} to "
                    f"{max(rows, default=None)}: expected at least {needed}, each from 0 to {self.num_prompts - 1}."
                )
            return rows

        return checked

    def _new_permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_prompts, generator=generator)
        return torch.randperm(self.num_prompts, generator=generator).tolist()


class StreamedPrompts:
    """Prompts of a data set without a length, in its own order and over again, in chunks of one draw.

    Addressed by position like `PromptStream`: a chunk that is not the next one is reached from the beginning, which is
    how a resumed run goes on.

    Args:
        rows: what can be iterated again and again; each epoch it is told its number if it has `set_epoch`.
        chunk_size: Q, prompts in one draw over all processes.
    """

    def __init__(self, rows: Iterable[Row], chunk_size: int):
        self.rows, self.chunk_size = rows, chunk_size
        self._next, self._going = 0, self._all()

    def _all(self) -> Iterator[Row]:
        for epoch in itertools.count():
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                yield row
            if empty:
                raise ValueError("The training set has no prompts (any more): a stream has to start over when it ends.")

    def chunk(self, position: int) -> list[Row]:
        """The Q rows of the draw at 0-based `position`.

        Raises:
            ValueError: an epoch has no rows.
        """
        if position < self._next:
            self._next, self._going = 0, self._all()
        skipped = (position - self._next) * self.chunk_size
        self._next = position + 1
        return list(itertools.islice(self._going, skipped, skipped + self.chunk_size))


# What a completion earned -------------------------------------------------------------------------------------------


def total_rewards(rewards_per_func: Tensor, reward_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rewards of each completion, and whether it has any.

    Args:
        rewards_per_func: [N, F] rewards; NaN where a reward function returned None.
        reward_weights: [F].

    Returns:
        [N] float64 total over the reward functions that answered (0 where none did; `decimal_sum`), and [N] bool, False
        where none did; both on the CPU.
    """
    weights, totals, scored = reward_weights.tolist(), [], []
    for row in rewards_per_func.tolist():
        answered = [(value, weight) for value, weight in zip(row, weights, strict=True) if not math.isnan(value)]
        totals.append(decimal_sum(answered))
        scored.append(bool(answered))
    return torch.tensor(totals, dtype=torch.float64), torch.tensor(scored, dtype=torch.bool)


def decimal_sum(terms: Iterable[tuple[float, float]]) -> float:
    """Sum of products of numbers, each taken for the shortest decimal that it stands for, as float32 if it is one.

    So sums tie when and only when those decimals do: as float32, 0.1 + 0.2 + 0.4 is not 0.7, and a group of such
    rewards would have a signal.
    """
    return float(sum((_decimal(a) * _decimal(b) for a, b in terms), Fraction(0)))


@lru_cache(maxsize=4096)
def _decimal(value: float) -> Fraction:
    return Fraction(str(np.float32(value)) if float(np.float32(value)) == value else repr(value))


# Which groups -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The groups of one step.

    Attributes:
        groups: Q pairs (draw, group), in batch order.
        num_valid: how many of them are valid: B - M.
        num_dropped: valid groups that were drawn and are not among them.
    """

    groups: list[tuple[int, int]]
    num_valid: int
    num_dropped: int


def select_groups(valid: Sequence[Sequence[bool]]) -> Selection:
    """Groups of one step from the draws made for it (section 2.3): the pool of valid ones, then padding.

    The pool is global and ordered by arrival; groups beyond Q are dropped. Padding are the invalid groups of the last
    draw. A single draw is taken as it is.

    Args:
        valid: for each draw, Q flags in the order of its groups.
    """
    num_groups = len(valid[-1])
    pool = [(draw, group) for draw, flags in enumerate(valid) for group, flag in enumerate(flags) if flag]
    kept = pool[:num_groups]
    if len(valid) == 1:
        return Selection([(0, group) for group in range(num_groups)], len(kept), 0)
    padding = [(len(valid) - 1, group) for group, flag in enumerate(valid[-1]) if not flag]
    return Selection((kept + padding)[:num_groups], len(kept), len(pool) - len(kept))


def select_groups_released(valid: Sequence[Sequence[bool]], num_processes: int) -> Selection:
    """As `select_groups`, the way released generation R2 does it: every process keeps to the groups it sampled itself.

    Each fills its share of the batch with its own valid groups, oldest first, then with its own invalid ones of the
    last draw; what does not fit is dropped and nothing moves between processes.

    Raises:
        ValueError: the processes do not hold equal numbers of whole groups.
    """
    num_groups = len(valid[-1])
    if num_groups % num_processes:
        raise ValueError(
            f"{num_groups} groups on {num_processes} processes: fidelity 'r2' keeps whole groups on a process. Make "
            "per_device_train_batch_size a multiple of num_generations."
        )
    if len(valid) == 1:
        return select_groups(valid)
    share = num_groups // num_processes
    groups: list[tuple[int, int]] = []
    for start in range(0, num_groups, share):
        own = range(start, start + share)
        mine = [(draw, group) for draw, flags in enumerate(valid) for group in own if flags[group]]
        mine += [(len(valid) - 1, group) for group in own if not valid[-1][group]]
        groups += mine[:share]
    num_valid = sum(bool(valid[draw][group]) for draw, group in groups)
    return Selection(groups, num_valid, sum(map(sum, valid)) - num_valid)


def reached(num_valid: int, num_groups: int, beta_th: float) -> bool:
    """Whether enough groups are valid: num_valid >= beta_th * Q, the released code's non-strict form of Algorithm 1."""
    return num_valid >= beta_th * num_groups - 1e-9  # 0.55 * 20 is a little more than 11


# Which process, which micro-batch -----------------------------------------------------------------------------------


def deal(lengths: Sequence[int], owners: Sequence[int], num_processes: int) -> list[int]:
    """Spread rows over processes: counts differ by at most one, as few rows move as possible, tokens even out.

    Args:
        lengths: tokens of each row.
        owners: process that holds each row.
        num_processes: how many there are.

    Returns:
        The process each row goes to.
    """
    targets = list(owners)
    held: list[list[int]] = [[] for _ in range(num_processes)]
    for row, owner in enumerate(owners):
        held[owner].append(row)
    tokens = [sum(lengths[row] for row in rows) for rows in held]
    low, num_larger = divmod(len(targets), num_processes)
    by_load = sorted(range(num_processes), key=lambda process: -len(held[process]))
    quota = [low] * num_processes
    for process in by_load[:num_larger]:  # whoever holds most keeps the odd ones: fewer rows move
        quota[process] += 1
    share = sum(tokens) / num_processes
    while True:
        missing = [quota[process] - len(held[process]) for process in range(num_processes)]
        giver, taker = (
            min(range(num_processes), key=missing.__getitem__),
            max(range(num_processes), key=missing.__getitem__),
        )
        if missing[taker] == 0:
            return targets
        wanted = (share - tokens[taker]) / missing[taker]
        row = min(held[giver], key=lambda row: (abs(lengths[row] - wanted), row))
        held[giver].remove(row)
        held[taker].append(row)
        tokens[giver] -= lengths[row]
        tokens[taker] += lengths[row]
        targets[row] = taker


@dataclass(frozen=True)
class Sizes:
    """What planning needs to know of a completion: its group, the tokens of its prompt, and its own."""

    group: int
    prompt: int
    completion: int


def distinct_tokens(rows: Iterable[Sizes]) -> int:
    """Tokens of one forward pass over `rows` if every prompt goes through the model once."""
    rows = list(rows)
    prompts = {row.group: row.prompt for row in rows}
    # The last prompt token stands before each completion, whose own last one nobody has to predict from.
    return sum(prompts.values()) - len(prompts) + sum(max(row.completion, 1) for row in rows)


def padded_tokens(rows: Iterable[Sizes]) -> int:
    """Tokens of one forward pass over `rows` if they lie one below the other, as long as the longest."""
    widths = [row.prompt + max(row.completion, 1) for row in rows]
    return len(widths) * max(widths, default=0)


@dataclass(frozen=True)
class Plan:
    """Who trains on which rows in which pass.

    Attributes:
        targets: process of each row.
        passes: for every process, as many passes as any of them needs, each a list of row numbers; some are empty.
        num_tokens: through the model in all of them, at most.
    """

    targets: list[int]
    passes: list[list[list[int]]]
    num_tokens: int


def plan_passes(
    rows: Sequence[Sizes],
    owners: Sequence[int],
    num_processes: int,
    max_tokens: int,
    max_passes: int,
    count: Callable[[Iterable[Sizes]], int] = distinct_tokens,
) -> Plan:
    """Deals rows out in whole groups where that is faster than row by row, and cuts every share into even passes.

    Groups are cut where whole ones have more than `max_tokens` or do not fit into `max_passes`.

    Args:
        rows: those of a group next to each other. Where each is a group of its own, nothing is shared.
        owners: process that holds each row.
        num_processes: how many there are.
        max_tokens: of a pass; `max_passes` of them have room for any share of rows one by one.
        max_passes: passes of one optimiser step.
        count: tokens of a pass over some rows.
    """
    groups: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.group, []).append(number)
    units = list(groups.values())
    if count is padded_tokens:  # rows of like length together
        units.sort(key=lambda unit: -count(rows[n] for n in unit))
    # A group belongs to whoever holds most of it.
    homes = [max((owners[n] for n in unit), key=[owners[n] for n in unit].count) for unit in units]
    homes = deal([distinct_tokens([rows[n] for n in unit]) for unit in units], homes, num_processes)
    by_row = {n: home for unit, home in zip(units, homes, strict=True) for n in unit}
    whole = [by_row[n] for n in range(len(rows))]
    single = deal([row.completion for row in rows], owners, num_processes)

    def tokens(numbers: Iterable[int]) -> int:
        return count(rows[n] for n in numbers)

    plans: list[tuple[int, Plan]] = []
    for targets, cut in ((whole, False), (single, False), (single, True)):
        if plans and cut:
            break
        shares = []
        for process in range(num_processes):
            mine = [[n for n in unit if targets[n] == process] for unit in units]
            shares.append([[n] for unit in mine for n in unit] if cut else [unit for unit in mine if unit])
        num = max(len(_fill(share, tokens, max_tokens)) for share in shares)
        too_large = any(tokens(unit) > max_tokens for share in shares for unit in share)
        if not cut and (num > max_passes or too_large):
            continue
        passes = [_even(share, num, tokens) for share in shares]
        costs = [[tokens(part) for part in parts] for parts in passes]
        slowest = sum(map(max, zip(*costs, strict=True)))  # processes wait for each other after every pass
        plans.append((slowest, Plan(list(targets), passes, sum(map(sum, costs)))))
    return min(plans, key=lambda plan: plan[0])[1]


def _fill(units: Iterable[list[int]], tokens: Callable[[Iterable[int]], int], max_tokens: int) -> list[list[int]]:
    """Units in order, a new part whenever one would have too many tokens; a unit alone always fits."""
    parts: list[list[int]] = []
    for unit in units:
        if parts and tokens(parts[-1] + unit) <= max_tokens:
            parts[-1] = parts[-1] + unit
        else:
            parts.append(unit)
    return parts


def _even(units: list[list[int]], num_parts: int, tokens: Callable[[Iterable[int]], int]) -> list[list[int]]:
    """Units in order in `num_parts` parts whose largest has as few tokens as can be; empty ones where units are few."""
    low, high = 0, tokens(n for unit in units for n in unit)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(units, tokens, middle)) <= num_parts:
            high = middle
        else:
            low = middle + 1
    parts = _fill(units, tokens, high)
    return parts + [[] for _ in range(num_parts - len(parts))]


# Rows ---------------------------------------------------------------------------------------------------------------


def split_rows(batch: dict[str, Any]) -> list[Row]:
    """TRL's scored batch of one process as one dictionary per completion, without padding; image tensors included.

    Tensors are views. Keys that no part of the loss reads (advantages, counts) are left behind.
    """
    from trl.trainer.utils import split_pixel_values_by_grid  # takes seconds, and selecting groups needs no TRL

    batch = split_pixel_values_by_grid(batch)
    num_rows, prompt_width = batch["prompt_ids"].shape
    positions = torch.arange(1, batch["completion_mask"].size(1) + 1, device=batch["completion_mask"].device)
    lengths = (batch["completion_mask"] * positions).amax(dim=1).tolist()
    prompt_lengths = batch["prompt_mask"].sum(dim=1).tolist()
    images = batch.get("num_images")
    rows = []
    for row in range(num_rows):
        length, start = lengths[row], prompt_width - prompt_lengths[row]
        parts: Row = {"prompt_ids": batch["prompt_ids"][row, start:]}
        for key in COMPLETION_KEYS:
            if key in batch:
                parts[key] = batch[key][row, :length]
        for key in SEQUENCE_KEYS:
            if key in batch:
                parts[key] = batch[key][row, start : prompt_width + length]
        for key in MODEL_INPUT_KEYS:
            if key in batch and key not in SEQUENCE_KEYS:
                value = batch[key]
                if key in IMAGE_KEYS and isinstance(value, Tensor) and images is not None:
                    first = sum(images[:row])
                    parts[key] = value[first : first + images[row]]
                else:
                    parts[key] = value[row : row + 1] if isinstance(value, Tensor) else value[row]
        rows.append(parts)
    return rows


def collate_completions(rows: Sequence[Row], pad_token_id: int) -> dict[str, Any]:
    """What the loss reads of rows: `COMPLETION_KEYS` as [rows, T] tensors padded on the right, and their weights.

    A completion without trained tokens still gets one masked column, which the model's head needs. `loss_weights` and
    `kl_weights` become float64 tensors on the CPU.
    """
    batch: dict[str, Any] = {}
    for key in COMPLETION_KEYS:
        if key in rows[0]:
            fill = pad_token_id if key == "completion_ids" else 0
            batch[key] = pad_sequence([row[key] for row in rows], batch_first=True, padding_value=fill)
            if batch[key].size(1) == 0:
                batch[key] = batch[key].new_full((len(rows), 1), fill)
    for key in ("loss_weights", "kl_weights"):
        if key in rows[0]:
            batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.float64)
    return batch


def collate_images(rows: Sequence[Row]) -> dict[str, Any]:
    """The images of rows, one after the other, as a model takes them; empty without any.

    Tensors with a slot for each image of a row (Idefics, SmolVLM) are as wide as the largest row of their own draw;
    where rows of several draws or processes meet, they are filled up with zeros, which those models take for no image.
    """
    images: dict[str, Any] = {}
    for key in MODEL_INPUT_KEYS:
        if key in rows[0] and key not in (*SEQUENCE_KEYS, *COUNT_KEYS):
            values = [row[key] for row in rows]
            images[key] = torch.cat(_of_one_size(values)) if isinstance(values[0], Tensor) else values
    return images


def _of_one_size(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors filled up with zeros until only their first dimensions differ."""
    sizes = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    missing = [[size - length for size, length in zip(sizes, tensor.shape[1:], strict=True)] for tensor in tensors]
    return [
        pad(tensor, [n for lack in reversed(lacks) for n in (0, lack)]) if any(lacks) else tensor
        for tensor, lacks in zip(tensors, missing, strict=True)
    ]


def copy_row(row: Row, device: torch.device | str | None = None) -> Row:
    """A row whose tensors share no storage with the batch it came from, on `device` (default: where they are)."""
    return {
        key: value.detach().to(device or value.device, copy=True) if isinstance(value, Tensor) else value
        for key, value in row.items()
    }
