"""The plugin of tests/needs.py: what is missing leaves tests out, and a line says which."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full("runs of pytest in processes of their own")

TESTS = Path(__file__).parent
MODULE = """
import pytest

@pytest.mark.real_data("hashes", "here.jsonl")
def test_on_a_file_that_is_here(data_root):
    assert (data_root / "here.jsonl").read_text() == "{}"

@pytest.mark.real_data("hashes", "absent.jsonl")
def test_on_one_that_is_not(data_root):
    raise AssertionError

@pytest.mark.parametrize("kind", ["own", *(pytest.param(k, marks=pytest.mark.real_data("counts", "here.jsonl", "x"))
                                           for k in ("real", "also real"))])
def test_of_both_kinds(kind):
    assert kind == "own"

@pytest.mark.long("so")
@pytest.mark.real_data("times", "absent.jsonl")
def test_long(data_root):
    raise AssertionError

@pytest.mark.needs("verl")
def test_verl():
    raise AssertionError
"""
NO_DATA = "not run without the real benchmark files (set EVAL_DATA_ROOT): "
NO_VERL = "not run without verl (make test-verl): 1 test"


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess:
    """pytest with the two plugins on a module of its own, in a folder with one data file."""
    (folder / "test_made.py").write_text(module, encoding="utf-8")
    (folder / "here.jsonl").write_text("{}", encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tiers", "-p", "needs", "-p", "no:cacheprovider", *arguments]
    env = {**os.environ, "EVAL_DATA_ROOT": str(folder), "PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("workers", [(), ("--numprocesses", "2")], ids=("alone", "two workers"))
def test_what_is_missing_is_told_in_one_line_each(tmp_path, workers):
    done = run(tmp_path, MODULE, *workers)
    assert done.returncode == 0 and "2 passed" in done.stdout and "skipped" not in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("not run")]
    assert told == [f"{NO_DATA}4 tests: hashes, counts, times", NO_VERL]


@pytest.mark.parametrize(
    ("tier", "passed", "told"),
    [("quick", "1 passed", [NO_VERL]), ("full", "2 passed", [f"{NO_DATA}3 tests: hashes, counts", NO_VERL])],
)
def test_what_nobody_asked_for_is_not_missed(tmp_path, tier, passed, told):
    """Real data is in the tier ``full``, or ``long`` by its own mark."""
    done = run(tmp_path, MODULE, "--tier", tier)
    assert done.returncode == 0 and passed in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("not run")] == told


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("def test_it(data_root): pass", "data_root needs real_data"),
        ("import pytest\n@pytest.mark.real_data('hashes')\ndef test_it(): pass", "and the files that it reads"),
        ("import pytest\n@pytest.mark.needs('luck')\ndef test_it(): pass", "needs takes one of verl"),
    ],
)
def test_a_wrong_mark_stops_the_run(tmp_path, module, message):
    done = run(tmp_path, module)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and message in done.stderr
