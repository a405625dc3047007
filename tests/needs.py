"""What a test needs beside the checkout. Without it the test is left out, and a line at the end of the run says so.

    @pytest.mark.needs("verl")
    @pytest.mark.real_data("prompt hashes", "aime_2024.jsonl")

``real_data`` names what is checked and the files that it reads, under EVAL_DATA_ROOT or ``../shared/data``. Such a test
is in the tier ``full`` unless it says ``long``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def real_root() -> Path:
    """The folder where the real benchmark files are looked for."""
    return Path(os.environ.get("EVAL_DATA_ROOT") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real benchmark files; a test that uses it is marked ``real_data``."""
    return real_root()


@cache
def _can_mount() -> bool:
    if shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", "--lazy", folder], check=True)
    return True


NEEDS: dict[str, tuple[str, Callable[[], object]]] = {
    "verl": ("verl (make test-verl)", lambda: find_spec("verl")),
    # in continuous integration, a missing browser is an error
    "chromium": (
        "Chromium (apt-get install chromium chromium-driver)",
        lambda: os.environ.get("CI") or shutil.which("chromium") or shutil.which("chromium-browser"),
    ),
    "mounting": ("the right to mount (run as root)", _can_mount),
}
"""Name -> (what it is and how to get it, whether it is here)."""
REAL_DATA = "the real benchmark files (set EVAL_DATA_ROOT)"
LEFT_OUT = pytest.StashKey[dict[str, tuple[int, list[str]]]]()
"""What is missing -> number of tests left out for it, and what they check."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = {}


def missing_for(item: pytest.Item) -> tuple[str, str | None] | None:
    """What a collected test needs and does not find, and what it checks; None: it can run.

    Raises:
        pytest.UsageError: a marker is not of the form above, or ``data_root`` is used without one.
    """
    for marker in item.iter_markers("needs"):
        if len(marker.args) != 1 or marker.args[0] not in NEEDS:
            raise pytest.UsageError(f"{item.nodeid}: needs takes one of {', '.join(NEEDS)}.")
        what, here = NEEDS[marker.args[0]]
        if not here():
            return what, None
    real = item.get_closest_marker("real_data")
    if real is None:
        if "data_root" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid}: data_root needs real_data(what it checks, the files it reads).")
        return None
    if len(real.args) < 2:
        raise pytest.UsageError(f"{item.nodeid}: real_data names what it checks and the files that it reads.")
    checks, *files = real.args
    return None if all((real_root() / file).exists() for file in files) else (REAL_DATA, checks)


@pytest.hookimpl(trylast=True)  # after the tiers: what nobody asked for is not missed
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left = [], []
    for item in items:
        missing = missing_for(item)
        if missing is None:
            kept.append(item)
            continue
        left.append(item)
        num, checks = config.stash[LEFT_OUT].get(missing[0], (0, []))
        if missing[1] and missing[1] not in checks:
            checks = [*checks, missing[1]]
        config.stash[LEFT_OUT][missing[0]] = num + 1, checks
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Under pytest-xdist every worker collects the same tests, and the main process none."""
    node.config.stash[LEFT_OUT].update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for what, (num, checks) in config.stash[LEFT_OUT].items():
        tests = f"{num} test{'' if num == 1 else 's'}" + (f": {', '.join(checks)}" if checks else "")
        terminalreporter.write_line(f"not run without {what}: {tests}")
