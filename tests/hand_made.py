"""Results of records made by hand: what a run's record must say of its samples."""

from __future__ import annotations

from collections.abc import Sequence

from eval_harness.benchmarks import get_benchmark
from eval_harness.records import BenchmarkResult, Decoding, Item, Sample
from eval_harness.runner import summarise


def result_of(name: str, samples: Sequence[Sample], items: Sequence[Item] = ()) -> BenchmarkResult:
    """Counts and scores of samples, each item having as many; items that are not given are made up."""
    ids = dict.fromkeys(sample.item_id for sample in samples)
    items = list(items) or [Item(item_id=item_id, prompt=item_id, gold="") for item_id in ids]
    decoding = Decoding(
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=8,
        samples=len(samples) // len(items),
        seed=0,
        system_prompt=None,
    )
    return summarise(get_benchmark(name), items, decoding, list(samples))
