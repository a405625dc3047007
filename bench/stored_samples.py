"""A million stored samples: to a frame, to scores again, to a table, in bounded memory; re-grading speed beside it.

Writes two evaluations of the five tiny suites (100 items each) as every run writes them, then does each piece of work
in a process of its own, whose peak memory is the operating system's count. The answers are made up; nothing but time
and memory is measured. Ends in one JSON line; ``ratio`` is the seconds of all three pieces over the 120 allowed (lower
is better), and no piece may take more than 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SUITES = ("tiny_sums", "tiny_differences", "tiny_products", "tiny_chains", "tiny_remainders")
ROWS = ("table3_gpg_rs1", "table3_grpo_rs1")
"""The two rows of Table 3 whose records are made; the others stay empty."""
SCALE = "tiny"
ALLOWED_S, ALLOWED_GIB = 120.0, 2.0
PIECES = ("frame", "scores", "table")
_BLOCK = 4096
_WORDS = ["first", "we", "add", "the", "two", "numbers", "and", "check", "that", "nothing", "was", "lost", "on", "the"]


def write_run(folder: Path, samples: int, chars: int, seed: int) -> None:
    """One finished evaluation with so many samples per item, written as the runner writes it."""
    from eval_harness import records
    from eval_harness.benchmarks import get_benchmark
    from eval_harness.runner import Overrides, averages, decoding_of, summarise

    rng = np.random.default_rng(seed)
    results = {}
    for name in SUITES:
        benchmark = get_benchmark(name)
        items = benchmark.load()
        records.replace_lines(folder / "items" / f"{name}.jsonl", items)
        path = folder / "samples" / f"{name}.jsonl"
        block = []
        for item, ease in zip(items, rng.beta(2, 2, len(items)), strict=True):
            for k, right in enumerate(rng.random(samples) < ease):
                block.append(_sample(item, k, bool(right), chars, rng))
                if len(block) == _BLOCK:
                    records.append_lines(path, block)
                    block = []
        records.append_lines(path, block)
        decoding = decoding_of(benchmark, Overrides(samples=samples, temperature=1.0))
        results[name] = summarise(benchmark, items, decoding, records.iter_lines(path, records.Sample))
    record = records.RunRecord(
        run_id=folder.parent.name,
        fingerprint=f"{seed:012d}",
        status="finished",
        created=records.now(),
        finished=records.now(),
        model={"name": folder.parent.name, "revision": None, "weights": f"{seed:032d}"},
        engine={"name": "made up"},
        settings={},
        benchmarks=results,
        timings={},
        environment=records.environment(),
        **averages(results),
    )
    records.write_json(folder / "run.json", record)


def _sample(item, k: int, right: bool, chars: int, rng: np.random.Generator):
    from eval_harness.records import Sample

    length = int(rng.integers(chars // 2, 3 * chars // 2))
    start = int(rng.integers(len(_WORDS)))
    text = " ".join(_WORDS[start:] + _WORDS) * (1 + length // 80)
    answer = item.gold if right else str(int(rng.integers(1000)))
    return Sample(
        item_id=item.item_id,
        sample=k,
        seed=int(rng.integers(1 << 31)),
        status="scored",
        completion=f"{text[:length]} \\boxed{{{answer}}}",
        finish_reason="stop",
        num_prompt_tokens=40,
        num_completion_tokens=length // 2,
        correct=right,
        correct_strict=right,
        extracted=answer,
        reason="match" if right else "mismatch",
        gold_fallback=False,
    )


def work(piece: str, reference: Path) -> dict:
    """One piece of work on all records; returns its seconds, the peak memory of this process and what it counted."""
    from eval_harness import records
    from eval_harness.benchmarks import get_benchmark
    from eval_harness.runner import summarise
    from gpg_repro.tables.report import build_table

    folders = [reference / SCALE / name / "seed0" for name in ROWS]
    before = _peak_gib()
    started = time.perf_counter()
    if piece == "frame":
        import pandas as pd

        frame = pd.concat([records.samples_frame(folder) for folder in folders], ignore_index=True)
        counted = len(frame)
        assert frame["completion"].str.len().min() > 0
    elif piece == "scores":
        counted = 0
        for folder in folders:
            run = records.read_run(folder)
            for name, stored in run.benchmarks.items():
                items = records.read_lines(folder / "items" / f"{name}.jsonl", records.Item)
                samples = records.iter_lines(folder / "samples" / f"{name}.jsonl", records.Sample)
                again = summarise(get_benchmark(name), items, stored.decoding, samples)
                assert again == stored, f"{folder.parent.name}, {name}"
                counted += again.asked
    else:
        report = build_table(3, SCALE, reference=reference, results=reference.parent / "results", progress=False)
        pooled = report.pooled[(report.pooled["rule"] == "published") & (report.pooled["column"] != "average")]
        counted = int(pooled["num_samples"].sum())
    return {
        "seconds": time.perf_counter() - started,
        "gib": _peak_gib(),
        "gib_before": before,
        "samples": counted,
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # Linux counts in KiB


def regrade(reference: Path, num: int) -> float:
    """Answers per second of the grading pool on stored completions, its workers already up."""
    from itertools import islice

    from eval_harness import records
    from eval_harness.benchmarks import get_benchmark
    from eval_harness.graders.pool import GradingPool

    folder, name = reference / SCALE / ROWS[0] / "seed0", SUITES[0]
    golds = {i.item_id: i.gold for i in records.read_lines(folder / "items" / f"{name}.jsonl", records.Item)}
    lines = records.iter_lines(folder / "samples" / f"{name}.jsonl", records.Sample)
    step = max(1, records.read_run(folder).benchmarks[name].asked // num)
    stored = list(islice(lines, 0, None, step))
    answers = [(golds[s.item_id], s.completion) for s in stored]
    grader = get_benchmark(name).grader
    with GradingPool() as pool:
        pool.grade(grader, answers[:200])
        started = time.perf_counter()
        verdicts = pool.grade(grader, answers)
        seconds = time.perf_counter() - started
    assert sum(v.correct for v in verdicts) >= sum(s.correct for s in stored)  # a wrong number may be right by chance
    return len(answers) / seconds


def main() -> None:
    """Write, then measure each piece in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000, help="per item; 2 runs x 5 suites x 100 items of them")
    parser.add_argument("--chars", type=int, default=600, help="mean length of a completion")
    parser.add_argument("--regraded", type=int, default=5000)
    parser.add_argument("--keep", type=Path, help="write the records here and keep them; found ones are used")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(work(args.one[0], Path(args.one[1]))), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        reference = (args.keep or Path(scratch)) / "reference"
        started = time.perf_counter()
        for seed, name in enumerate(ROWS):
            folder = reference / SCALE / name / "seed0"
            if not (folder / "run.json").exists():
                write_run(folder, args.samples, args.chars, seed)
        print(f"records ready after {time.perf_counter() - started:.0f} s")
        size = sum(path.stat().st_size for path in reference.rglob("*.jsonl")) / (1 << 30)
        found = {}
        for piece in PIECES:
            command = [sys.executable, __file__, "--one", piece, str(reference)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{piece} failed:\n{done.stderr[-3000:]}")
            found[piece] = json.loads(done.stdout.splitlines()[-1])
            f = found[piece]
            print(f"{piece}: {f['samples']:,} samples in {f['seconds']:.1f} s, peak {f['gib']:.2f} GiB", flush=True)
        graded = regrade(reference, args.regraded)
    seconds = sum(f["seconds"] for f in found.values())
    print(
        json.dumps(
            {
                "bench": "stored_samples",
                "ratio": round(seconds / ALLOWED_S, 3),
                "better": "lower",
                "target": 1.0,
                "samples": found["frame"]["samples"],
                "gib_on_disk": round(size, 2),
                **{f"{piece}_s": round(f["seconds"], 1) for piece, f in found.items()},
                **{f"{piece}_peak_gib": round(f["gib"], 2) for piece, f in found.items()},
                "allowed_gib": ALLOWED_GIB,
                "within_memory": all(f["gib"] <= ALLOWED_GIB for f in found.values()),
                "regraded_per_s": round(graded),
            }
        )
    )


if __name__ == "__main__":
    main()
