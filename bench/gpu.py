"""GPGTrainer against TRL's GRPOTrainer on one NVIDIA GPU, in 9 minutes: time, memory, kernel launches of an update.

Both trainers live in one process, see the same prompts, rewards and completions, and step in turn (`_paired`). Times
are wall times between synchronisations; a ratio is the median over pairs, with the smallest and the largest. The first
step of each trainer is a short one that makes the optimiser's state, the second is the first of its shape and reported
apart; neither counts. Where a comparison has several alphas, one step of TRL serves them all: it does the same work for
groups without a signal.

The most important rows come first, and each is printed as soon as it is measured. What no longer fits into the minutes
is left out by name. Ends in one JSON line, which `--out` also writes to a file, after every row. Without a GPU, or with
`--toy`, everything runs in small: that says nothing about a GPU, and every line says so.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import _paired as paired
import psutil
import torch
import transformers
import trl
import vision_update as vision
from _paired import Case, Step, Workload
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.masking_utils import AttentionMaskInterface
from trl.experimental.async_grpo.packing import TreeRow
from update_step import PIECES, Shape

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None


@dataclass(frozen=True)
class Wanted:
    """A row's target, and what was measured before there was one packed path (H200, 2026-11-27; None: nothing)."""

    target: float | None
    before: float | None = None
    at_least: bool = False  # else at most

    def reached(self, value: float) -> bool:
        """Whether the value is on the right side of the target."""
        return value >= self.target if self.at_least else value <= self.target


WANTED = {
    "shared 4 x 8, 512:64": Wanted(0.40, 1.10),
    "shared 4 x 8, 512:512": Wanted(0.66, 1.14),
    "shared 4 x 8, 2048:512": Wanted(0.38, 0.50),
    "alpha 1": Wanted(0.98, 0.978),
    "alpha 1.33": Wanted(0.78, 0.837),
    "alpha 2": Wanted(0.51, 0.508),
    "alpha 4": Wanted(0.26, 0.248),
    "ragged, alpha 2": Wanted(0.36, 0.72),
    "ragged, longest update": Wanted(1.5, 3.05),  # 5.8 s after a first one of 7.2 s; later ones 1.9 s
    "shared 16 x 8, 512:512": Wanted(0.62),
    "shared 16 x 8, 2048:512": Wanted(0.35),
    "shared 16 x 8, 512:64": Wanted(0.28),
    "shared 16 x 8, 512:64, alpha 2": Wanted(0.16, 0.60),  # 0.60 with 4 groups
    "Qwen2-VL 4 x 8, 512:64": Wanted(0.35, 0.81),
    "Qwen2-VL 4 x 8, 512:64, alpha 2": Wanted(0.20),
    "model FLOPs, alpha 1": Wanted(0.45, 0.37, at_least=True),
    "peak memory 4 x 8, 2048:512": Wanted(None),  # tokens left + 0.1
    "kernel launches 4 x 8, 512:64": Wanted(None),  # ours alone: 24,762
    "device time 4 x 8, 512:64": Wanted(None),
    "tokens beside TRL's tree": Wanted(1.0),
    "update beside TRL's tree": Wanted(1.05),
}
"""The rows: issue 18's table, then what explains it."""
MEMORY_SLACK = 0.1
MIN_PAIRS = 3
GRADIENT_GAP = {"float32": 1e-3, "bfloat16": 0.05}
"""Relative difference of gradient norms from which two updates did not do the same work."""


# Steps ----------------------------------------------------------------------------------------------------------------

SCALE, TOY_GROUPS = 16, 4
"""A toy has a sixteenth of the tokens, and no more groups."""
TOY = replace(
    paired.PROTOTYPE,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    gradient_checkpointing=True,
)
TOY_VISION = replace(vision.PROTOTYPE, hidden_size=32, num_layers=1, vision_width=32, vision_depth=1)


@dataclass(frozen=True)
class Setup:
    """What a comparison steps through: tokens of a prompt and of its completions, groups, completions in a pass."""

    kind: str  # text or vision
    prompt: int
    completion: int
    groups: int
    micro_batch_size: int
    alphas: tuple[float, ...] = (1,)
    shortest: int | None = None  # of ragged completions
    pairs: int | None = None  # None: what was asked for

    def toy(self) -> Setup:
        """The same in small."""
        return replace(
            self,
            prompt=max(self.prompt // SCALE, 16),
            completion=self.completion // SCALE,
            shortest=self.shortest and self.shortest // SCALE,
            groups=min(self.groups, TOY_GROUPS),
        )

    def workload(self, toy: bool) -> Workload:
        """The model and the shape of its steps."""
        sizes = {
            "prompt_tokens": self.prompt,
            "longest": self.completion,
            "num_groups": self.groups,
            "micro_batch_size": self.micro_batch_size,
        }
        if self.kind == "text":
            return replace(TOY if toy else paired.QWEN_1_5B, **sizes)
        return replace(TOY_VISION if toy else vision.QWEN2_VL_2B, image_side=56 if toy else 616, **sizes)


SHARED = {shape: Setup("text", *map(int, shape.split(":")), 4, 8) for shape in ("512:64", "512:512", "2048:512")}
ALPHAS = Setup("text", 16, 2048, 8, 4, alphas=(1, 4 / 3, 2, 4))
RAGGED = replace(ALPHAS, alphas=(2,), shortest=512, pairs=5)
VISION = Setup("vision", 512, 64, 4, 16, alphas=(1, 2))


def opening(kind: str, workload: Workload) -> Dataset:
    """One short step: it makes the optimiser's state and whatever else a trainer makes once."""
    sizes = {"prompt_tokens": 8} if kind == "text" else {"prompt_tokens": 16, "image_side": 56}
    workload = replace(workload, longest=4, **sizes)
    return PIECES[kind]["rows_of"](workload, [Case("opening", workload.num_groups, 4, 4)], 1)


def rows_for(setup: Setup, workload: Workload, rounds: int) -> tuple[Dataset, Dataset]:
    """Rows of ours and of TRL's trainer: the opening and `rounds` rounds, in each a step of ours for every alpha.

    All steps of a round have the same prompts and completions; TRL's have the signals of the first alpha.
    """
    shortest, num = setup.shortest or setup.completion, workload.num_groups
    runs = [
        PIECES[setup.kind]["rows_of"](
            workload, [Case(f"alpha {a:.3g}", round(num / a), shortest, setup.completion)], rounds
        )
        for a in setup.alphas
    ]
    short = opening(setup.kind, workload)
    ours = [run.select(range(r * num, (r + 1) * num)) for r in range(rounds) for run in runs]
    return concatenate_datasets([short] * len(runs) + ours), concatenate_datasets([short, runs[0]])


def seconds(step: Step) -> float:
    """Wall time of the update."""
    return step.spent("update")[0]


@dataclass
class Compared:
    """Updates of one alpha beside TRL's, pair by pair; the first of the shape apart."""

    ours: list[Step]
    theirs: list[Step]
    first: tuple[Step, Step]
    numbers: dict[str, Any]  # as they go into a row


class Bench:
    """What the rows have in common: toy or not, pairs, the time that is left, and the steps of alpha 1."""

    def __init__(self, toy: bool, pairs: int, over: Callable[[], bool] | None = None):
        self.toy, self.pairs, self.over = toy, pairs, over
        self.alpha_one: list[Step] = []

    def scaled(self, setup: Setup) -> tuple[Setup, Workload]:
        """The setup as it is run here, and its workload."""
        setup = setup.toy() if self.toy else setup
        return setup, setup.workload(self.toy)

    def compare(self, setup: Setup, theirs: type | None = None) -> list[Compared]:
        """Updates of all alphas of a setup; `theirs` is the class of the other trainer, if not TRL's own."""
        setup, workload = self.scaled(setup)
        num, trainer_of = len(setup.alphas), PIECES[setup.kind]["trainer_of"]
        rows = dict(zip(("gpg", "grpo"), rows_for(setup, workload, 1 + (setup.pairs or self.pairs)), strict=True))
        more = {"gpg": {}, "grpo": {"trainer_class": theirs} if theirs else {}}
        with tempfile.TemporaryDirectory() as folder:
            trainers = {
                kind: trainer_of(kind, workload, of_kind, f"{folder}/{kind}", **more[kind])
                for kind, of_kind in rows.items()
            }
            steps = paired.take_turns(trainers, hold={"gpg": num}, over=self.over)
        others = steps["grpo"][1:]
        return [
            self._compared(setup, workload, alpha, ours, others)
            for alpha, ours in zip(setup.alphas, paired.by_case(steps["gpg"], num), strict=True)
        ]

    def _compared(
        self, setup: Setup, workload: Workload, alpha: float, ours: list[Step], theirs: list[Step]
    ) -> Compared:
        complete = min(len(ours), len(theirs))  # they may differ by a turn where the time ran out
        if complete <= MIN_PAIRS:
            raise OutOfTime(f"out of time after {max(complete - 1, 0)} pairs")
        (first, *ours), (their_first, *theirs) = ours[:complete], theirs[:complete]
        numbers = paired.ratio(ours, theirs, "update")
        padded = workload.num_rows * (setup.prompt + setup.completion)
        gap = paired.gradient_gap(ours, theirs) if alpha == setup.alphas[0] else None
        counted = statistics.mean(step.logs["tokens/forward"] for step in ours) / padded
        return Compared(
            ours,
            theirs,
            (first, their_first),
            {
                "value": numbers["wall_ratio"],
                "range": numbers["wall_range"],
                "tokens_left": round(counted, 4),
                "seconds": numbers["wall_s"],
                "pairs": numbers["pairs"],
                "first_seconds": [round(seconds(first), 3), round(seconds(their_first), 3)],
                "shared": all(step.logs["share_prompt"] == 1 for step in ours),
                "same_gradient": gap,
                "same_work": gap is None or gap < GRADIENT_GAP[workload.dtype],
                "prompt": setup.prompt,
                "completion": setup.completion,
                "groups": setup.groups,
                "per_device_train_batch_size": setup.micro_batch_size,
            },
        )


class OutOfTime(Exception):
    """Too few pairs before the end."""


def tokens_left(setup: Setup, workload: Workload, alpha: float = 1) -> float:
    """Part of TRL's tokens that is left: (P + G C) / G (P + C) / alpha, where prompts are shared."""
    return Shape(setup.prompt, setup.completion, 0, {}, alpha).parts(workload.num_generations)["useful"]


# Rows -----------------------------------------------------------------------------------------------------------------


def ratios(setup: Setup, names: Sequence[str]) -> Callable[[Bench], list[dict[str, Any]]]:
    """The part that measures one row for each alpha of a setup."""

    def measure(bench: Bench) -> list[dict[str, Any]]:
        compared = bench.compare(setup)
        if setup is ALPHAS:
            bench.alpha_one = compared[0].ours
        scaled, workload = bench.scaled(setup)
        return [
            {"name": name, **of_alpha.numbers, "arithmetic": round(tokens_left(scaled, workload, alpha), 4)}
            for name, alpha, of_alpha in zip(names, setup.alphas, compared, strict=True)
        ]

    return measure


def ragged(bench: Bench) -> list[dict[str, Any]]:
    """Lengths differ from step to step: the ratio, and the longest update over the median one."""
    (compared,) = bench.compare(RAGGED)
    times = [seconds(step) for step in compared.ours]
    middle, first = statistics.median(times), seconds(compared.first[0])
    return [
        {"name": "ragged, alpha 2", **compared.numbers},
        {
            "name": "ragged, longest update",
            "value": round(max(times) / middle, 4),
            "first_over_median": round(first / middle, 4),
            "updates": [round(value, 3) for value in (first, *times)],
        },
    ]


def model_flops(workload: Workload, prompt: int, completion: int) -> float:
    """Floating-point operations of an update, forward and backward, without the recomputation of checkpointing.

    Matrix products alone: 6 per weight and token, the head on completions only; attention of each token over half of
    its row. No prompt is shared, no row skipped.
    """
    w, length = workload, prompt + completion
    head_size = w.hidden_size // w.num_heads
    layer = w.hidden_size * (2 * w.hidden_size + 2 * w.num_kv_heads * head_size + 3 * w.intermediate_size)
    attention = 2 * w.hidden_size * length * length  # two products of T x T/2
    weights = 2 * (w.num_layers * layer * length + w.vocab_size * w.hidden_size * completion)
    return 3 * w.num_rows * (weights + w.num_layers * attention)


def matmul_ceiling(toy: bool) -> float:
    """Floating-point operations a second of a product of two large squares, in bf16; the best of five."""
    size, times, dtype = (256, 2, torch.float32) if toy else (8192, 20, torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for attempt in range(6):
        start, _ = paired.now()
        for _ in range(times):
            left @ right
        end, _ = paired.now()
        if attempt:  # the first one loads and chooses kernels
            best = min(best, (end - start) / times)
    return 2 * size**3 / best


def flops(bench: Bench) -> list[dict[str, Any]]:
    """Model FLOPs of our update at alpha 1 over the ceiling."""
    if not bench.alpha_one:
        bench.alpha_one = bench.compare(replace(ALPHAS, alphas=(1,)))[0].ours
    setup, workload = bench.scaled(ALPHAS)
    workload = replace(workload, vocab_size=workload.vocab_size or len(paired.build_tokenizer()))
    per_second = model_flops(workload, setup.prompt, setup.completion) / statistics.median(
        map(seconds, bench.alpha_one)
    )
    ceiling = matmul_ceiling(bench.toy)
    return [
        {
            "name": "model FLOPs, alpha 1",
            "value": round(per_second / ceiling, 4),
            "tflops": round(per_second / 1e12, 4),
            "ceiling_tflops": round(ceiling / 1e12, 4),
        }
    ]


def both_alone(bench: Bench, setup: Setup, watched: Callable[[Any], paired.Watched]) -> list[dict[str, float]]:
    """What a callback finds in ours and in TRL's trainer, one after the other."""
    _, workload = bench.scaled(setup)
    found = []
    for kind in ("gpg", "grpo"):
        with tempfile.TemporaryDirectory() as folder:
            found.append(paired.watch_steps(watched, kind, workload, workload.num_groups, folder))
        clean()
    return found


def memory(bench: Bench) -> list[dict[str, Any]]:
    """Peak of the update above what was allocated before it (weights, optimiser), all rows in one pass."""
    setup = replace(SHARED["2048:512"], micro_batch_size=SHARED["2048:512"].groups * paired.PROTOTYPE.num_generations)
    ours, theirs = both_alone(bench, setup, paired.PeakMemory)
    left = tokens_left(*bench.scaled(setup))
    return [
        {
            "name": "peak memory 4 x 8, 2048:512",
            "value": round((ours["allocated"] - ours["persistent"]) / (theirs["allocated"] - theirs["persistent"]), 4),
            "target": round(left + MEMORY_SLACK, 4),
            "tokens_left": round(left, 4),
            "peak_mib": [round(ours["allocated"], 1), round(theirs["allocated"], 1)],
            "before_mib": [round(ours["persistent"], 1), round(theirs["persistent"], 1)],
            "per_device_train_batch_size": setup.micro_batch_size,
        }
    ]


def launches(bench: Bench) -> list[dict[str, Any]]:
    """Kernels of one update and the time in which the device works on them."""
    ours, theirs = both_alone(bench, SHARED["512:64"], paired.Launches)
    size = SHARED["512:64"].micro_batch_size
    return [
        {
            "name": f"{name} 4 x 8, 512:64",
            "value": round(ours[key] / theirs[key], 4),
            key: [ours[key], theirs[key]],
            "per_device_train_batch_size": size,
        }
        for name, key in (("kernel launches", "launches"), ("device time", "device_s"))
    ]


# TRL's tree -----------------------------------------------------------------------------------------------------------

TREE = "gpg_bench_tree"
_KERNEL_REPEATS = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in 2.11


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    tree_kv_index: Tensor,
    tree_cu_seqlens_q: Tensor,
    tree_cu_seqlens_k: Tensor,
    tree_max_seqlen_q: int,
    tree_max_seqlen_k: int,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """TRL's `tree_attention` with torch's own variable-length kernel in place of FlashAttention 3 from the hub.

    Queries, keys and values are [1, heads, tokens, size]; the output is [1, tokens, heads, size].
    """
    dtype = get_target_dtype(query, module) or query.dtype
    query, key, value = (x.transpose(1, 2)[0].to(dtype) for x in (query, key, value))
    key, value = (x.index_select(0, tree_kv_index) for x in (key, value))
    more = {"enable_gqa": True} if _KERNEL_REPEATS else {}
    if not (query.is_cuda and _KERNEL_REPEATS):
        key, value = (x.repeat_interleave(query.size(1) // key.size(1), dim=1) for x in (key, value))
    if query.is_cuda:
        ends = (tree_cu_seqlens_q, tree_cu_seqlens_k, tree_max_seqlen_q, tree_max_seqlen_k)
        return varlen_attn(query, key, value, *ends, window_size=(-1, 0), **more)[None], None
    mask = tree_mask(tree_cu_seqlens_q.tolist(), tree_cu_seqlens_k.tolist())
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2), None


def tree_mask(queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """[tokens, gathered keys] bool: each segment sees its own path, causal and aligned to the end."""
    mask = torch.zeros(queries[-1], keys[-1], dtype=torch.bool)
    for start, end, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
        rows, columns = end - start, last - first
        mask[start:end, first:last] = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    return mask


class TreeClocked(paired.TheirsClocked):
    """TRL's GRPOTrainer whose passes are packed by TRL's `TreeRow`, as AsyncGRPO's are; its loss stays.

    Packing is not part of the update: AsyncGRPO packs in its data loader.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        AttentionInterface.register(TREE, tree_attention)
        AttentionMaskInterface.register(TREE, lambda **_: None)
        self.accelerator.unwrap_model(self.model).set_attn_implementation(TREE)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        with self._clock("rollout"):
            scored = attention_mask[:, -logits_to_keep:].bool()
            tree = TreeRow()
            for ids, mask in zip(input_ids.cpu(), attention_mask.cpu(), strict=True):
                trained = torch.ones_like(ids)
                trained[:-logits_to_keep] = 0
                tree.add(
                    {
                        "input_ids": ids[mask == 1],
                        "completion_mask": trained[mask == 1],
                        "old_log_probs": torch.zeros(int(mask.sum())),
                        "advantage": 0.0,
                        "group_id": 0,
                    }
                )
            packed = tree.pack()
            self._metrics["train"]["tokens/forward"].append(len(tree.tokens))
            widest = dict(
                zip(("tree_max_seqlen_q", "tree_max_seqlen_k"), packed["tree_max_seqlens"].tolist(), strict=True)
            )
            packed = {name: values.to(input_ids.device) for name, values in packed.items()}
        with self.accelerator.autocast():
            outputs = model(
                **{name: packed[name][None] for name in ("input_ids", "position_ids", "shift_labels")},
                **{name: packed[name] for name in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")},
                **widest,
                fused_lm_head=True,
            )
        # TRL lists the targets sample by sample, as they stand in the padded batch.
        spread = (
            values.new_zeros(scored.shape).masked_scatter(scored, values.flatten()[packed["token_index"]])
            for values in (outputs.log_probs, outputs.entropy)
        )
        logps, entropies = spread
        return logps, entropies if compute_entropy else None, None


def tree(bench: Bench) -> list[dict[str, Any]]:
    """Ours beside TRL's own packing of the same samples, all in one pass, attention by the same kernel."""
    names = ("tokens beside TRL's tree", "update beside TRL's tree")
    if torch.cuda.is_available() and varlen_attn is None:
        return [{"name": name, "verdict": "not measured: no torch.nn.attention.varlen here"} for name in names]
    setup = replace(SHARED["512:512"], micro_batch_size=SHARED["512:512"].groups * paired.PROTOTYPE.num_generations)
    (compared,) = bench.compare(setup, TreeClocked)
    counts = [[step.logs["tokens/forward"] for step in steps] for steps in (compared.ours, compared.theirs)]
    worst = max(ours / theirs for ours, theirs in zip(*counts, strict=True))
    return [
        {"name": names[0], "value": round(worst, 4), "tokens": [round(of_one[0]) for of_one in counts]},
        {"name": names[1], **compared.numbers},
    ]


# Parts ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Rows that are measured together, in how many seconds about (H200), and how."""

    family: str
    rows: tuple[str, ...]
    seconds: float
    measure: Callable[[Bench], list[dict[str, Any]]]


def _part(family: str, setup: Setup, seconds: float, *rows: str) -> Part:
    return Part(family, rows, seconds, ratios(setup, rows))


def _sixteen(shape: str, seconds: float, *alphas: float) -> Part:
    name = f"shared 16 x 8, {shape}"
    rows = (name, *(f"{name}, alpha {alpha:g}" for alpha in alphas))
    return _part("shared16", replace(SHARED[shape], groups=16, alphas=(1, *alphas)), seconds, *rows)


PARTS = (
    *(
        _part("shared", SHARED[shape], seconds, f"shared 4 x 8, {shape}")
        for shape, seconds in (("512:64", 12), ("512:512", 18), ("2048:512", 30))
    ),
    _part("alpha", ALPHAS, 90, *(f"alpha {alpha:.3g}" for alpha in ALPHAS.alphas)),
    Part("ragged", ("ragged, alpha 2", "ragged, longest update"), 50, ragged),
    _sixteen("512:512", 45),
    _sixteen("2048:512", 85),
    _sixteen("512:64", 28, 2),
    _part("vision", VISION, 35, "Qwen2-VL 4 x 8, 512:64", "Qwen2-VL 4 x 8, 512:64, alpha 2"),
    Part("flops", ("model FLOPs, alpha 1",), 5, flops),
    Part("memory", ("peak memory 4 x 8, 2048:512",), 25, memory),
    Part("launches", ("kernel launches 4 x 8, 512:64", "device time 4 x 8, 512:64"), 20, launches),
    Part("tree", ("tokens beside TRL's tree", "update beside TRL's tree"), 20, tree),
)
MAIN_ROW = "shared 4 x 8, 512:512"


class Budget:
    """Minutes since the process began; how long parts take beside what was expected."""

    def __init__(self, minutes: float, started: float, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.end, self.expected, self.taken = clock, started + 60 * minutes, 0.0, 0.0

    def over(self) -> bool:
        """Whether the time is up."""
        return self.clock() >= self.end

    def fits(self, seconds: float) -> bool:
        """Whether a part that should take so long ends in time, as slow as the parts before it were."""
        pace = self.taken / self.expected if self.expected else 1.0
        return self.clock() + pace * seconds <= self.end

    def took(self, expected: float, seconds: float) -> None:
        """Learn from a part."""
        self.expected, self.taken = self.expected + expected, self.taken + seconds


def measure(parts: Iterable[Part], bench: Bench, budget: Budget, report: Callable[[dict[str, Any]], None]) -> None:
    """Measure the parts that fit, and report every row in order, also those without a number."""
    for part in parts:
        if not budget.fits(part.seconds):
            rows = missing(part, "not measured: out of time")
        else:
            start = budget.clock()
            try:
                rows = [judged(row) for row in part.measure(bench)]
            except OutOfTime as error:
                rows = missing(part, f"not measured: {error}")
            except Exception as error:  # the others may still work
                traceback.print_exc()
                rows = missing(part, f"failed: {type(error).__name__}: {error}".splitlines()[0])
            budget.took(part.seconds, budget.clock() - start)
            clean()
        for row in rows:
            report(row)


def missing(part: Part, why: str) -> list[dict[str, Any]]:
    """Rows without a number."""
    return [{"name": name, "verdict": why} for name in part.rows]


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its target, what was measured before, and whether the target is reached."""
    wanted = WANTED[row["name"]]
    row = {"target": wanted.target, "before": wanted.before} | row
    if "verdict" in row:
        return row
    if not row.get("same_work", True):
        verdict = f"not the same work: gradient norms differ by {row['same_gradient']:.2g}"
    elif row["target"] is None:
        verdict = "no target"
    else:
        reached = replace(wanted, target=row["target"]).reached(row["value"])
        verdict = "ok" if reached else "missed"
    return row | {"verdict": verdict}


def clean() -> None:
    """Give back what the last part held; trainers are in reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated() / 2**30
        if held > 1:
            print(f"{held:.1f} GiB are still allocated after a part", file=sys.stderr)


def shown(row: dict[str, Any], toy: bool) -> str:
    """A row for people."""
    start = f"{'toy: ' if toy else ''}{row['name']}: "
    if "value" not in row:
        return start + row["verdict"]
    text = start + f"{row['value']:.3f}"
    if "range" in row:
        text += " [{:.3f}, {:.3f}]".format(*row["range"])
    if row["target"] is not None:
        text += f", target {'>=' if WANTED[row['name']].at_least else '<='} {row['target']:.3g}"
    text += f": {row['verdict']}"
    details = [f"tokens left {row['tokens_left']:.3f}"] if "tokens_left" in row else []
    if "seconds" in row:
        details += ["{:.3f} s and {:.3f} s".format(*row["seconds"]), f"{row['pairs']} pairs"]
        details += ["first {:.1f} s and {:.1f} s".format(*row["first_seconds"])]
    if row.get("shared") is False and "shared" in row["name"]:
        details += ["NOT SHARED"]
    for key in ("first_over_median", "updates", "tflops", "ceiling_tflops", "peak_mib", "before_mib", "launches"):
        details += [f"{key} {row[key]}"] if key in row else []
    details += [f"{key} {row[key]}" for key in ("device_s", "tokens") if key in row]
    if row["before"] is not None:
        details.append(f"before {row['before']:g}")
    return "; ".join([text, *details])


def main(arguments: Sequence[str] | None = None, started: float | None = None) -> int:
    """Measure the rows, or those of one family, within the minutes.

    Args:
        arguments: of the command line.
        started: `time.perf_counter()` from which the minutes count; now unless given.

    Returns:
        1 if a row failed, else 0.
    """
    started = time.perf_counter() if started is None else started
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="for everything, imports included (default: 9)")
    parser.add_argument("--only", choices=list(dict.fromkeys(p.family for p in PARTS)), help="leave the others out")
    parser.add_argument("--pairs", type=int, default=MIN_PAIRS, help=f"of each comparison, at least {MIN_PAIRS}")
    parser.add_argument("--toy", action="store_true", help="small sizes: does everything work? Default without CUDA")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON line there, too")
    args = parser.parse_args(arguments)
    if args.pairs < MIN_PAIRS:
        parser.error(f"--pairs {args.pairs}: at least {MIN_PAIRS}")
    paired.quiet()
    toy = args.toy or not torch.cuda.is_available()
    if toy:
        print("toy sizes: nothing here says anything about a GPU", file=sys.stderr)
    if not args.toy and toy:
        print("no CUDA device was found", file=sys.stderr)
    command = f"python bench/gpu.py --minutes {args.minutes:g} --pairs {args.pairs}"
    line: dict[str, Any] = {
        "bench": "gpu",
        "toy": toy,
        **paired.machine(),
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command + (f" --only {args.only}" if args.only else "") + (" --toy" if args.toy else ""),
        "complete": False,
        "rows": [],
    }

    def save() -> None:
        if args.out:
            args.out.write_text(json.dumps(line) + "\n", encoding="utf-8")

    def report(row: dict[str, Any]) -> None:
        print(shown(row, toy), flush=True)
        line["rows"].append(row)
        save()

    budget = Budget(args.minutes, started)
    parts = [part for part in PARTS if args.only in (None, part.family)]
    measure(parts, Bench(toy, args.pairs, budget.over), budget, report)
    line |= {"complete": True, "seconds": round(time.perf_counter() - started, 1)}
    for row in line["rows"]:
        if row["name"] == MAIN_ROW and "value" in row:
            line |= {"ratio": row["value"], "better": "lower", "target": row["target"]}
    save()
    print(json.dumps(line))
    return int(any(row["verdict"].startswith("failed") for row in line["rows"]))


if __name__ == "__main__":
    since_start = time.time() - psutil.Process().create_time()  # imports take 20 s on a lent machine
    sys.exit(main(started=time.perf_counter() - since_start))
