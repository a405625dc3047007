"""Runs in a process of its own that sees one hub cache: the whole registry, then Tables 3 and 4 at paper scale.

Every benchmark is cut to its first four items and four new tokens. The first checkpoint runs as a user's would; for the
others, to save time, the transformers backend runs inside this process and one grading pool serves all. Prints one line
of JSON.
"""

import contextlib
import functools
import json
import sys

from engine_here import EngineHere

from eval_harness import __main__ as harness
from eval_harness import records, released, runner
from eval_harness.graders.pool import shared_pool
from gpg_repro.tables.report import build_table

SMALL = ("--limit", "4", "--max-new-tokens", "4", "--dtype", "float32")


class InProcess(EngineHere):
    """Counts its starts."""

    started = 0

    def __init__(self, *args):
        super().__init__(*args)
        InProcess.started += 1


class OnePool:
    def __init__(self, deadline):
        pass

    def start(self, graders=()):
        return contextlib.nullcontext(shared_pool())


def main() -> None:
    report = {"one": harness.main(["released", "--engine", "transformers", "--only", "GD-ML/Open-RS1", *SMALL])}
    runner.EngineProcess, runner.GradingPool = InProcess, OnePool
    report |= {"all": harness.main(["released", "--engine", "transformers", *SMALL]), "engines": InProcess.started}
    small = functools.partial(released.evaluate_job, limit=4, max_new_tokens=4, dtype="float32")
    released.evaluate_job = small
    for table in (3, 4):
        made = build_table(table, "paper", engine="transformers", progress=False)
        report[f"table{table}"] = {
            "rows": {entry.row.key: [folder.name for folder in entry.folders.values()] for entry in made.runs},
            "columns": sorted(set(made.measured["column"])),
            "models": {e.row.key: records.read_run(e.folders[0]).model["name"] for e in made.runs},
            "notes": made.notes,
        }
    report["engines in all"] = InProcess.started
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
