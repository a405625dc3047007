"""What a second engine brings: two data-parallel transformers engines against one, each on one thread.

Whole evaluations of the five tiny suites by the trained tiny base: prompts, generation, grading, records; only the
start of engines and graders is left out (a run starts them at the same time), they stay from run to run. Verdicts are
not kept. The two take turns, and their records are compared line by line.
Ends in one JSON line; ``ratio`` is the throughput of two workers over that of one (higher is better, 2 is ideal).
A worker is an engine, a grader and a core: the run has one core with one worker, two with two. ``cpu_s`` is what the
engines and the rest take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest import mock

import _paired as paired
import psutil

from eval_harness import records, runner
from eval_harness.engines import EngineProcess, EngineSettings
from eval_harness.engines.parallel import EngineGroup
from eval_harness.graders.pool import GradingPool
from eval_harness.runner import Overrides

SUITES = ["tiny_sums", "tiny_differences", "tiny_products", "tiny_chains", "tiny_remainders"]
TARGET = 1.6
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
CORES = psutil.Process().cpu_affinity()
STANDING: list[EngineProcess | EngineGroup] = []
"""All engines that are up."""


def processes(engine: EngineProcess | EngineGroup) -> set[int]:
    """The engine's processes: its guards, and what they have started."""
    guards = [psutil.Process(one._process.pid) for one in getattr(engine, "_engines", [engine])]
    return {process.pid for one in guards for process in (one, *one.children(recursive=True))}


def cpu_seconds(engine: EngineProcess | EngineGroup) -> dict[str, float]:
    """CPU time so far of the engine, and of this process with its graders."""
    spent = {"engines": 0.0, "rest": 0.0}
    idle = {pid for other in STANDING for pid in processes(other)} - processes(engine)
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            if process.pid not in idle:
                times = process.cpu_times()
                spent["engines" if process.pid in processes(engine) else "rest"] += times.user + times.system
    return spent


def confine(number: int) -> None:
    """Keep this process, its graders and all engines to so many cores, as far as there are."""
    cores = CORES[:number]
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.cpu_affinity(cores)


@contextmanager
def stays(engine: EngineProcess | EngineGroup, spent: dict[str, float]):
    """An engine that is not closed when a run is over; ``spent`` gets the CPU time of the run."""
    before = cpu_seconds(engine)
    yield engine
    spent |= {part: seconds - before[part] for part, seconds in cpu_seconds(engine).items()}


class Graders:
    """A pool that is not closed when a run is over, and forgets its verdicts before the next."""

    def __init__(self, workers: int):
        self._pool = GradingPool(workers)

    def start(self, graders=()) -> Graders:
        self._pool._cache.clear()
        return self

    def __enter__(self) -> GradingPool:
        return self._pool

    def __exit__(self, *exc_info: object) -> None:
        """Stays."""

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def start_engines(model: str, folder: Path) -> dict[str, EngineProcess | EngineGroup]:
    """One engine, and a group of two."""
    settings = EngineSettings(model)
    return {
        "one": EngineProcess("transformers", settings, folder / "one.log", ONE_THREAD),
        "two": EngineGroup("transformers", settings, folder / "two.log", [ONE_THREAD] * 2),
    }


def evaluate(
    engine: EngineProcess | EngineGroup, graders: Graders, model: str, out: Path, samples: int, limit: int | None
):
    """One run on a standing engine: its record, its sample lines, sorted, and its CPU time."""
    overrides, spent = Overrides(samples=samples, temperature=1.0), {}
    confine(len(processes(engine)))
    with (
        mock.patch.object(runner, "_start_engine", lambda job: stays(engine, spent)),
        mock.patch.object(runner, "GradingPool", lambda deadline: graders),
    ):
        runner.evaluate(model, SUITES, engine="transformers", out=out, overrides=overrides, limit=limit, progress=False)
    lines = sorted(line for path in (out / "samples").glob("*.jsonl") for line in path.read_bytes().splitlines())
    return records.read_run(out), lines, spent


def measure(model: str, folder: Path, rounds: int, samples: int, limit: int | None = None) -> dict:
    """Seconds of both in turn, the first round left out, which warms up."""
    pairs, loads, spent, same = [], [], [], True
    with ExitStack() as stack:
        engines = {name: stack.enter_context(engine) for name, engine in start_engines(model, folder).items()}
        STANDING[:] = engines.values()
        graders = {name: Graders(len(processes(engine))) for name, engine in engines.items()}
        stack.callback(lambda: [pool.close() for pool in graders.values()])
        for number in range(rounds + 1):
            order = list(engines) if number % 2 else list(engines)[::-1]  # going first favours nobody
            loads.append(os.getloadavg()[0])
            found = {
                name: evaluate(engines[name], graders[name], model, folder / f"{name}-{number}", samples, limit)
                for name in order
            }
            same = same and found["one"][1] == found["two"][1]
            confine(len(CORES))
            pairs.append({name: record.timings["generate_and_grade_s"] for name, (record, *_) in found.items()})
            spent.append({name: seconds for name, (*_, seconds) in found.items()})
            print(f"round {number}: one {pairs[-1]['one']:.2f} s, two {pairs[-1]['two']:.2f} s, load {loads[-1]:.1f}")
    results = found["one"][0].benchmarks.values()
    pairs, loads, spent = pairs[1:], loads[1:], spent[1:]
    middle, *interval = paired.median_interval([pair["one"] / pair["two"] for pair in pairs])
    completions = sum(result.scored for result in results)
    return {
        "ratio": round(middle, 3),
        "interval": [round(end, 3) for end in interval] if len(pairs) >= 6 else None,
        "pairs": len(pairs),
        "wall_s": {name: round(statistics.median(pair[name] for pair in pairs), 2) for name in ("one", "two")},
        "cpu_s": {
            name: {part: round(statistics.median(run[name][part] for run in spent), 2) for part in ("engines", "rest")}
            for name in ("one", "two")
        },
        "completions": completions,
        "mean_tokens": round(sum(r.mean_completion_tokens * r.scored for r in results) / completions, 1),
        "same_records": same,
        "load_before_rounds": [round(load, 1) for load in loads],
    }


def main() -> None:
    """Measure both, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="pairs, at least 6 for an interval")
    parser.add_argument("--samples", type=int, default=8, help="completions per prompt (500 prompts)")
    args = parser.parse_args()
    from gpg_repro.paths import cache
    from gpg_repro.tiny.warmup import build_base

    paired.quiet()
    model = str(build_base(cache(), progress=False))
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(model, Path(folder), args.rounds, args.samples)
    line = {"bench": "data_parallel", "better": "higher", "target": TARGET, "samples": args.samples}
    print(json.dumps(line | numbers | paired.machine()))


if __name__ == "__main__":
    main()
