"""Records of visual benchmarks made by hand, for tables and galleries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hand_made import result_of

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.records import Item, Sample


def item(index: int, group: str | None = None, gold: str = "g", **context) -> Item:
    """One item with one image."""
    return Item(
        item_id=str(index), prompt=f"question {index}?", gold=gold, images=(f"{index}",), group=group, context=context
    )


def sample(index: int, published: float | bool, strict: float | bool, text: str = "said", **more) -> Sample:
    """A scored completion; a float is a mark in [0, 1], a bool a yes or no."""
    fractional = not isinstance(published, bool)
    return Sample(
        item_id=str(index),
        sample=0,
        seed=0,
        status="scored",
        completion=text,
        finish_reason="stop",
        num_prompt_tokens=1,
        num_completion_tokens=1,
        correct=published >= 0.5,
        correct_strict=strict >= 0.5,
        score=published if fractional else None,
        score_strict=strict if fractional else None,
        **{"extracted": "read", "reason": "match", "gold_fallback": False} | more,
    )


def evaluation(
    folder: Path,
    suites: Mapping[str, tuple[Sequence[Item], Sequence[Sample]]],
    weights: str = "base-weights",
    finished: bool = True,
) -> Path:
    """An evaluation of some benchmarks; one that is not finished has no results."""
    for name, (items, samples) in suites.items():
        records.append_lines(folder / "items" / f"{name}.jsonl", items)
        records.append_lines(folder / "samples" / f"{name}.jsonl", samples)
    record = records.RunRecord(
        run_id=folder.name,
        fingerprint="f",
        status="finished" if finished else "running",
        created="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
        model={"name": "m", "weights": weights, "revision": None},
        engine={"name": "vllm", "version": "0"},
        settings={},
        benchmarks={name: result_of(name, samples, items) for name, (items, samples) in suites.items() if finished},
        average=None,
        timings={},
        environment={},
    )
    records.write_json(folder / "run.json", record)
    return folder


def masks(folder: Path, benchmark: str, marks: Sequence[tuple[float | None, float | None]]) -> None:
    """The lines that ``eval_harness.masks`` leaves."""
    path = folder / "masks" / f"{benchmark}.jsonl"
    path.parent.mkdir()
    lines = [
        {"item_id": str(i), "sample": 0, "mask_iou": published, "mask_iou_strict": strict}
        for i, (published, strict) in enumerate(marks)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def by_group(benchmark: str, per_group: int) -> list[Item]:
    """So many items of each group, with the strata of the strict total in turn where the benchmark has them."""
    made, known = [], get_benchmark(benchmark)
    strata = list(known.strict_strata)
    for group in known.groups:
        for _ in range(per_group):
            index = len(made)
            context = {known.stratum_field: strata[index % len(strata)]} if strata else {}
            made.append(item(index, group, **context))
    return made
