"""The quick tests under each other supported Python of this machine (`make test-pythons`).

Each gets an environment of its own, build/venv-3.x, by the same installer as .venv; when nothing changed that takes a
moment. `make test-pythons ARGS="-k stats"` hands arguments on to pytest.

Exit status: 0 nothing failed, or there is no other Python; 1 something failed under one of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import install as front_door

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ["--tier", "quick", "--numprocesses", "auto", "--maxprocesses", "2", "--dist", "loadfile"]


def run_under(version: str, python: str, arguments: Sequence[str]) -> str:
    """Install and test under one interpreter. Returns "passed" or what failed."""
    venv = f"build/venv-{version}"
    installer = [python, str(ROOT / "scripts" / "install.py"), "--venv", venv, "--quiet"]
    if subprocess.run(installer, cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        return "NOT INSTALLED"
    command = [str(ROOT / venv / "bin" / "python"), "-m", "pytest", "-o", f"cache_dir={venv}/.pytest_cache", *PYTEST]
    status = subprocess.run([*command, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL).returncode
    return "passed" if status == 0 else f"FAILED (pytest ended with {status})"


def main(arguments: Sequence[str]) -> int:
    """Command line; see the head of this file for the exit status."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = [(version, path) for version, path in front_door.find_pythons() if version != own]
    if not others:
        wanted = ", ".join(version for version in front_door.supported() if version != own)
        print(f"test-pythons: nothing to do: .venv is Python {own}, and no other is here (looked for {wanted})")
        return 0
    results = {}
    for version, path in others:
        print(f"== Python {version}: {path}", flush=True)
        results[version] = run_under(version, path, arguments)
    print("test-pythons: " + "; ".join(f"Python {version} {result}" for version, result in results.items()))
    return 0 if set(results.values()) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
