"""`make mutate` on a package of two functions: what survives, what is killed, and what is left behind."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.full("mutants of a toy module, each in a process")

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "mutate.py"

CODE = '''\
"""A toy."""

from functools import cache


def price(number: int) -> int:
    if number > 10:
        return number * 2
    return number


@cache
def rest(number: int) -> int:
    if number < 0:
        raise ValueError("a number of at least" + " 0")
    while number >= 3:
        number -= 3
    return number
'''

# 10 itself is not asked for: > and >= are one to these tests, and so are 10 and 11.
TESTS = """\
import pytest
from toy import price, rest


def test_price():
    assert (price(3), price(20)) == (3, 40)


def test_rest():
    assert [rest(n) for n in range(5)] == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="at least 0"):
        rest(-1)


def test_that_fails_anyhow():
    assert price(3) == 4
"""

SETTINGS = """
[tool.mutmut]
source_paths = ["toy.py"]

[tool.mutate]
pytest = []
grace_seconds = 1
preload = []

[tool.mutate.tests]
"toy.py" = "tests/test_toy.py"
"""


@pytest.fixture
def toy(tmp_path):
    """A checkout with the script in it."""
    root = tmp_path / "toy checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "tests").mkdir()
    shutil.copy(SCRIPT, root / "scripts")
    for name, text in (("toy.py", CODE), ("tests/test_toy.py", TESTS), ("pyproject.toml", SETTINGS)):
        (root / name).write_text(text)
    return root


def test_the_documented_run_is_the_committed_one():
    root = SCRIPT.parent.parent
    result = json.loads((root / "bench" / "results" / "mutate.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "reliability.md").read_text(encoding="utf-8").split("## What the tests notice")[1]
    killed, survived, timeout, unreached = result["counts"].values()
    tried = killed + survived + timeout
    for said in (
        f"Run on {result['date']} at {result['commit']} for {result['minutes']} minutes",
        f"of {tried + unreached:,} mutants {tried} were tried",
        f"{killed} killed, {survived} survived, {timeout} ran",
        f"{unreached:,} mutants were not tried",
    ):
        assert said in page
    kinds = ("no_fault", "noticed_elsewhere", "tested_since", "gap", "code_gone")
    rows = re.findall(r"^\| (?:`(\S+)`.*?|all) \| ([\d| ]+) \|$", page, re.MULTILINE)
    for part, numbers in rows:
        files = [counts for path, counts in result["files"].items() if path.startswith(part)]
        found = Counter(one["kind"] for one in result["survivors"] if one["at"].startswith(part))
        expected = [sum(counts[name] for counts in files) for name in ("killed", "survived")]
        assert [int(n) for n in numbers.split("|")] == [*expected, *(found[kind] for kind in kinds)], part
    *parts, everything = (part for part, _ in rows)
    assert everything == "" and all(sum(path.startswith(part) for part in parts) == 1 for path in result["files"])
    found = Counter(one["kind"] for one in result["survivors"])
    assert result["survivors_by_kind"] == {kind: found[kind] for kind in kinds}


def mutate(root, *arguments, **keywords):
    return subprocess.run(
        [sys.executable, "scripts/mutate.py", *arguments], cwd=root, capture_output=True, text=True, **keywords
    )


def files(root):
    """Content and time of every file outside build/."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "build")
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in found}


@pytest.mark.full("runs mutants, each in a pytest of its own")
def test_known_mutants_survive_and_the_others_do_not(toy):
    before = files(toy)
    done = mutate(toy, "--minutes", "5", "--out", "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((toy / "result.json").read_text())
    (toy / "result.json").unlink()
    survivors = {(one["at"], one["diff"]) for one in result["survivors"]}
    assert survivors == {
        ("toy.py:7", "-    if number > 10:\n+    if number >= 10:"),
        ("toy.py:7", "-    if number > 10:\n+    if number > 11:"),
    }
    # Killed: line 8, * and 2; line 14 (decorated), < and 0; line 16, >= and 3; line 17, 3 to 4. For ever: line 17, -=
    # to += and to =. Line 15 has none: it is the text of an error.
    assert result["counts"] == {"killed": 7, "survived": 2, "timeout": 2, "unreached": 0}
    assert result["counts"] == result["files"]["toy.py"]
    assert result["survivors"][0]["tests"] == {"tests/test_toy.py": 1}  # the one of the two that reaches the line
    assert result["tests_not_used"] == ["tests/test_toy.py::test_that_fails_anyhow"]
    assert str(toy) not in json.dumps(result)
    assert files(toy) == before and not (toy / "build/mutate/tree").exists()


def slow(toy):
    """Each mutant takes more than half a second."""
    path = toy / "tests/test_toy.py"
    path.write_text("import time\n" + TESTS.replace("    assert", "    time.sleep(0.6)\n    assert"))


@pytest.mark.full("runs mutants, each in a pytest of its own")
def test_the_budget_holds_and_the_same_command_goes_on(toy):
    slow(toy)
    counts = []
    for _ in range(10):  # a busy machine may need more than two
        begun = time.monotonic()
        done = mutate(toy, "--minutes", str(8 / 60), "--out", "result.json")
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - begun < 8 + 30
        counts.append(json.loads((toy / "result.json").read_text())["counts"])
        if counts[0]["unreached"] > counts[-1]["unreached"]:
            break
    assert counts[0]["unreached"] > counts[-1]["unreached"]
    assert {sum(numbers.values()) for numbers in counts} == {11}
    tried = [json.loads(line)["index"] for line in (toy / "build/mutate/results.jsonl").read_text().splitlines()[1:]]
    assert len(tried) == len(set(tried))


@pytest.mark.full("runs mutants, each in a pytest of its own")
def test_a_kill_leaves_code_and_no_process_behind(toy):
    slow(toy)
    before = files(toy)
    process = subprocess.Popen([sys.executable, "scripts/mutate.py"], cwd=toy, stderr=subprocess.DEVNULL)
    results = toy / "build/mutate/results.jsonl"
    while not results.exists() or results.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert files(toy) == before


def test_each_beginning_of_the_order_has_its_share_of_every_file():
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"large.py": 300, "small.py": 30}
    order = module.in_order(sizes, 0)
    assert sorted(order) == sorted((path, index) for path, size in sizes.items() for index in range(size))
    for length in (11, 110, 220):
        assert Counter(path for path, _ in order[:length])["small.py"] == length // 11
    own = [[index for path, index in module.in_order(sizes, seed) if path == "large.py"] for seed in (0, 0, 1)]
    assert own[0] == own[1] != own[2] and own[0] != sorted(own[0])
