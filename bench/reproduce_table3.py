"""Time and memory of ``make reproduce-table3``: at smoke, at tiny from nothing, and at tiny again from its records.

Records, cache and tables go to a temporary folder, so nothing is reused. Ends in one JSON line; ``ratio`` is tiny from
nothing over its limit of 15 minutes (lower is better). Memory is the largest sum of proportional set sizes (memory
shared between processes counted once) over all processes at one moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from eval_harness.graders.pool import available_cores

LIMITS = {"smoke": 180.0, "tiny": 900.0, "tiny again": 30.0}
ROOT = Path(__file__).resolve().parent.parent


def run(scale: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak GiB of one table run."""
    command = [
        sys.executable,
        "-m",
        "gpg_repro.notebooks",
        "run",
        "notebooks/table_03.ipynb",
        "--parameters",
        f"SCALE={scale}",
        "SEEDS=1",
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = 0
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.Error):
            for p in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    memory = p.memory_full_info()
                    total += getattr(memory, "pss", memory.uss)
        peak = max(peak, total)
        time.sleep(0.5)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"scale {scale} failed:\n{process.stderr.read()[-3000:]}")
    return seconds, peak / 2**30


def main() -> None:
    """Run the scales asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("smoke", "tiny"), help="leave the other out")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "GPG_RESULTS": f"{folder}/results",
            "GPG_CACHE": f"{folder}/cache",
            "HF_HUB_OFFLINE": "1",
        }
        for name, scale in (("smoke", "smoke"), ("tiny", "tiny"), ("tiny again", "tiny")):
            if args.only in (None, scale):
                seconds, peak = run(scale, environment)
                rows[name] = {"seconds": round(seconds, 1), "limit_s": LIMITS[name], "peak_gib": round(peak, 2)}
                print(f"{name}: {seconds:.0f} s (limit {LIMITS[name]:.0f} s), peak {peak:.2f} GiB (limit 6 GiB)")
    headline = rows.get("tiny") or rows["smoke"]
    print(
        json.dumps(
            {
                "bench": "reproduce_table3",
                "ratio": round(headline["seconds"] / headline["limit_s"], 3),
                "better": "lower",
                "target": 1.0,
                "runs": rows,
                "cores": available_cores(),
            }
        )
    )


if __name__ == "__main__":
    main()
