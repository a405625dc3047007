"""Fuzz every grader and parser: ``python -m eval_harness.fuzz --inputs 100000``."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from unittest import mock

from eval_harness.errors import UserError, unknown
from eval_harness.fuzz.corpus import read_corpus
from eval_harness.fuzz.driver import Fuzzer, Summary
from eval_harness.fuzz.targets import Target, all_targets
from eval_harness.graders import nursery
from eval_harness.graders.pool import GradingPool
from eval_harness.markup import shown_streams

_PROGRESS_SECONDS = 15.0
_PATIENCE = 10.0
"""Half a second of computing may take long on a busy machine."""
_MINIMISED = 10
"""So many failures are made small; the others are saved as they are."""


@shown_streams()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 when something failed, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m eval_harness.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same inputs")
    parser.add_argument("--deadline", type=float, default=0.5, metavar="SECONDS", help="of one answer")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="that a worker may take for an answer")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="hostile texts to draw from and mutate")
    parser.add_argument("--also", action="append", default=[], metavar="MODULE", help="module with more TARGETS")
    parser.add_argument("--only", metavar="NAME,NAME", help="these targets alone")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for inputs that fail")
    args = parser.parse_args(arguments)
    try:
        targets = _targets(args.also, args.only)
        corpus = [entry.text for entry in read_corpus(args.corpus)] if args.corpus else []
        if args.inputs < 1 or args.deadline <= 0 or args.memory < 1:
            raise UserError("--inputs, --deadline and --memory must be positive.")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    said = time.monotonic()

    def progress(summary: Summary) -> None:
        nonlocal said
        if time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            timeouts = sum(reasons["timeout"] for reasons in summary.reasons.values())
            print(
                f"{summary.num_inputs} of {args.inputs} inputs, {summary.num_inputs / summary.seconds:.0f}/s, "
                f"{timeouts} timeouts, {len(summary.failures)} failures",
                flush=True,
            )

    status = 0
    warm = mock.patch.object(nursery, "PRELOAD", (*nursery.PRELOAD, "eval_harness.fuzz.warm", *args.also))
    with (
        warm,
        GradingPool(args.workers, args.deadline, args.memory << 20, _PATIENCE).start(
            t.grader for t in targets.values()
        ) as pool,
    ):
        fuzzer = Fuzzer(pool, targets, corpus, args.seed)
        try:
            fuzzer.run(args.inputs, progress)
        except KeyboardInterrupt:
            status = 130
            print("interrupted; so far:")
        failures = fuzzer.summary.failures
        for i, failure in enumerate(failures if status == 0 else ()):
            small = fuzzer.minimised(failure) if i < _MINIMISED else failure
            print(f"saved: {fuzzer.save(small, args.out)}", flush=True)
    fuzzer.summary.peak_memory = pool.peak_memory
    print(fuzzer.summary.text())
    return status or int(bool(failures))


def _targets(modules: list[str], only: str | None) -> dict[str, Target]:
    targets = all_targets()
    for module in modules:
        targets |= importlib.import_module(module).TARGETS
    if only is None:
        return targets
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in targets:
            raise unknown("target", name, targets)
    return {name: targets[name] for name in names}


if __name__ == "__main__":
    sys.exit(main())
