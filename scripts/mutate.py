"""Mutation run (`make mutate`): change the code a little, and see whether a test notices.

mutmut makes the mutants. Its own runner knows no time budget and no sample, and passes over decorated functions and
code outside functions, so this one runs them, in a copy of the checkout (build/mutate/tree). `[tool.mutate]` in
pyproject.toml maps files to tests. Those run once without a mutant, to see which test reaches which line. A mutant gets
the tests that reach its statement, the quickest first, until one fails, in a fork of this process, which has imported
the libraries and none of our packages.

The same command goes on with build/mutate/results.jsonl while code, tests and seed stay the same.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import datetime
import difflib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import coverage
import libcst
import psutil
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import create_mutations, deep_replace

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", "runs")
QUICK_SECONDS = 20.0
"""A mutant gets no further test when those it has took this long without a mutant."""
PART_SECONDS = 120.0
"""What the tests reach is stored after each such time, so that an end of the budget costs no more."""
MEMORY = 8 << 30
HIDDEN = "#@mutate "


class OutOfTime(BaseException):
    """The budget is used up."""


class Stopped(BaseException):
    """Somebody asked for an end."""


def _end(number: int, _: object) -> None:
    raise OutOfTime if number == signal.SIGALRM else Stopped


class Module:
    """A file's mutants, but for those inside ``raise``: the text of an error is no behaviour."""

    def __init__(self, folder: Path, path: str):
        self.source = (folder / path).read_text(encoding="utf-8")
        program = ast.parse(self.source)
        heads = {d.lineno for node in ast.walk(program) for d in getattr(node, "decorator_list", ())}
        lines = enumerate(self.source.splitlines(keepends=True), 1)
        hidden = "".join(line.replace("@", HIDDEN, 1) if i in heads else line for i, line in lines)
        self.tree, mutations, *_ = create_mutations(path, hidden)  # it passes over decorated functions
        positions = MetadataWrapper(self.tree, unsafe_skip_copy=True).resolve(PositionProvider)
        statements = [node for node in ast.walk(program) if isinstance(node, ast.stmt)]
        self.mutations, self.lines = [], []
        for mutation in mutations:
            place = positions.get(mutation.original_node) or positions[self.tree]
            first, last = place.start.line, place.end.line
            around = [node for node in statements if node.lineno <= first and last <= node.end_lineno]
            inner = max(around, key=lambda node: (node.lineno, -node.end_lineno), default=None)
            if isinstance(inner, ast.Raise):
                continue
            if inner is not None:  # of a compound statement its head
                end = inner.body[0].lineno - 1 if getattr(inner, "body", None) else inner.end_lineno
                first, last = inner.lineno, max(last, end)
            self.mutations.append(mutation)
            self.lines.append((first, last))

    def mutant(self, index: int) -> tuple[str, int, str] | None:
        """Source, line and diff of a mutant; None where it is the same program, or none at all."""
        mutation = self.mutations[index]
        tree = deep_replace(self.tree, mutation.original_node, mutation.mutated_node)
        text = libcst.ensure_type(tree, libcst.Module).code.replace(HIDDEN, "@")
        try:
            if ast.dump(ast.parse(text)) == ast.dump(ast.parse(self.source)):
                return None
            compile(text, "mutant", "exec")
        except SyntaxError:
            return None
        _, _, head, *diff = difflib.unified_diff(self.source.splitlines(), text.splitlines(), n=0, lineterm="")
        return text, int(head.split()[1][1:].split(",")[0]), "\n".join(diff)


def in_order(sizes: dict[str, int], seed: int) -> list[tuple[str, int]]:
    """Every (path, index), shuffled in each file. Each beginning of the list has the same share of every file."""
    places = []
    for path, size in sizes.items():
        indices = random.Random(f"{seed} {path}").sample(range(size), size)
        places += [((rank + 0.5) / size, path, index) for rank, index in enumerate(indices)]
    return [(path, index) for _, path, index in sorted(places)]


class Watch:
    """A pytest plugin: how long each test takes and, as coverage's contexts, which lines it reaches.

    Leaves out the tests ``done``, and stops after ``PART_SECONDS``.
    """

    def __init__(self, files: list[str], done: set[str]):
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=files)
        self.seconds, self.no_use, self.done, self.end = Counter(), set(), done, time.monotonic() + PART_SECONDS

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid not in self.done]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")  # what set-up reaches may serve every test
            if time.monotonic() > self.end:
                item.session.shouldstop = "to be continued"

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.no_use.add(report.nodeid)


class Chosen:
    """A pytest plugin: the given tests in the given order."""

    def __init__(self, tests: list[str]):
        self.rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])
        if len(items) < len(self.rank):
            raise pytest.UsageError("chosen tests are gone")  # parameters that the mutant has taken away


def forked(work: Callable[[], int], folder: Path, log: Path, seconds: float) -> int | None:
    """Exit status of ``work`` in a fork, minus the signal that ended it. All it started ends.

    None: more than ``seconds`` of computing, or three times that and 30 by the clock.
    """
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
                os.dup2(source, stream)
            os.chdir(folder)
            sys.path[:0] = [str(folder), str(folder / "tests")]
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + 30 + 3 * seconds
    try:
        while time.monotonic() < end:
            done, how = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(how)
                return None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status
            time.sleep(0.005)
        return None
    finally:
        for process in psutil.Process().children(recursive=True):  # orphans are children of this process
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):
                pass


class Run:
    """The copy, its mutants, and what was tried of them until ``end`` (``time.time()``)."""

    def __init__(self, seed: int, end: float, only: str):
        self.seed, self.end = seed, end
        self.settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutate"]
        patterns = self.settings["tests"].items()
        mapped = {str(file.relative_to(ROOT)): tests for glob, tests in patterns for file in sorted(ROOT.glob(glob))}
        self.tests = {path: tests for path, tests in mapped.items() if only in path}
        self.folder = ROOT / "build" / "mutate"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.tree, self.log, self.results = (self.folder / name for name in ("tree", "log", "results.jsonl"))
        shutil.rmtree(self.tree, ignore_errors=True)
        shutil.copytree(ROOT, self.tree, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self.modules = {path: Module(self.tree, path) for path in self.tests}
        others = {file.name for file in self.tree.glob("tests/test_*.py")} - set(
            re.findall(r"\w+\.py", str(self.tests))
        )
        code = [file.read_bytes() for file in sorted(self.tree.rglob("*.py")) if file.name not in others]
        key = hashlib.sha256(repr([seed, self.settings, only, code]).encode()).hexdigest()
        lines = self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else []
        if lines[:1] != [json.dumps({"key": key})]:
            lines = [json.dumps({"key": key})]
            (self.folder / "reached.json").unlink(missing_ok=True)
        whole = [line for line in lines if line.endswith("}")]  # a kill may have cut the last one
        self.results.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
        self.tried = {(one["file"], one["index"]): one for one in map(json.loads, whole[1:])}
        self.reached: dict[str, dict] = {}

    def pytest(self, arguments: list[str], plugin: object) -> int:
        return int(pytest.main(["-q", "-p", "no:cacheprovider", *self.settings["pytest"], *arguments], [plugin]))

    def watch(self, arguments: str, known: dict, told: Path) -> int:
        """Run tests without a mutant, and add to ``known`` how long they take and what they reach."""
        paths = [path for path, tests in self.tests.items() if tests == arguments]
        plugin = Watch([str(self.tree / path) for path in paths], {*known["seconds"], *known["no_use"]})
        with plugin.coverage.collect():
            status = self.pytest(shlex.split(arguments), plugin)
        data = plugin.coverage.get_data()
        for path in paths:
            at = known["reached"].setdefault(path, {})
            for line, contexts in data.contexts_by_lineno(str(self.tree / path)).items():
                at[str(line)] = sorted({*at.get(str(line), ()), *contexts})
        known["no_use"] += sorted(plugin.no_use)
        known["seconds"] |= {test: value for test, value in plugin.seconds.items() if test not in plugin.no_use}
        known["whole"] = not plugin.seconds or status != pytest.ExitCode.INTERRUPTED
        told.write_text(json.dumps(known))
        return status

    def prepare(self) -> None:
        """Import the libraries, and run the tests without a mutant where that is not done yet."""
        for name in self.settings["preload"]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        gc.freeze()  # pages stay shared with the forks
        stored, told = self.folder / "reached.json", self.folder / "told.json"
        self.reached = json.loads(stored.read_text()) if stored.exists() else {}
        for arguments in dict.fromkeys(self.tests.values()):
            known = self.reached.setdefault(arguments, {"seconds": {}, "no_use": [], "reached": {}, "whole": False})
            while not known["whole"]:
                number = len(known["seconds"])
                print(
                    f"mutate: without a mutant, {number} done: {' '.join(arguments.split())}",
                    file=sys.stderr,
                    flush=True,
                )
                told.unlink(missing_ok=True)
                work = partial(self.watch, arguments, known, told)
                forked(work, self.tree, self.log, self.end - time.time())
                known = self.reached[arguments] = json.loads(told.read_text()) if told.exists() else {}
                if not known.get("seconds"):
                    raise SystemExit(f"mutate: these tests do not pass without a mutant; see {self.log}")
                stored.write_text(json.dumps(self.reached))

    def chosen(self, path: str, index: int) -> list[str]:
        """Tests that reach the statement; then all others, where an import or a set-up reaches it or nothing does."""
        known = self.reached[self.tests[path]]
        seconds, at = known["seconds"], known["reached"][path]
        first, last = self.modules[path].lines[index]
        contexts = {test for line in range(first, last + 1) for test in at.get(str(line), ())} or {""}
        tests = sorted(seconds.keys() & contexts, key=seconds.get)
        tests += sorted(seconds.keys() - contexts, key=seconds.get) if "" in contexts else []
        spent = [sum(seconds[test] for test in tests[: n + 1]) for n in range(len(tests))]
        return [test for n, test in enumerate(tests) if n == 0 or spent[n] <= QUICK_SECONDS]

    def test(self, path: str, index: int) -> dict:
        """Outcome of a mutant: killed, survived, timeout, or same (no other program)."""
        made = self.modules[path].mutant(index)
        if made is None:
            return {"file": path, "index": index, "outcome": "same"}
        (text, line, diff), tests, begun = made, self.chosen(path, index), time.time()
        arguments = [word for word in shlex.split(self.tests[path]) if not word.startswith("tests/")]
        arguments += ["-x", *dict.fromkeys(test.split("::")[0] for test in tests)]
        grace = self.settings["grace_seconds"] + 2 * sum(self.reached[self.tests[path]]["seconds"][t] for t in tests)
        target = self.tree / path
        target.write_text(text, encoding="utf-8")
        os.utime(target, (1, 1))  # no compiled file is that old
        status = forked(lambda: self.pytest(arguments, Chosen(tests)), self.tree, self.log, grace) if tests else 0
        target.write_text(self.modules[path].source, encoding="utf-8")
        outcome = "timeout" if status is None else "killed" if status else "survived"
        one = {"file": path, "index": index, "outcome": outcome, "line": line, "diff": diff, "tests": tests}
        return one | {"seconds": round(time.time() - begun, 2)}

    def go(self) -> None:
        """Try mutants until none is left."""
        sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        is_terminal, shown = sys.stderr.isatty(), 0.0
        with self.results.open("a", encoding="utf-8") as file:
            for path, index in in_order({path: len(m.mutations) for path, m in self.modules.items()}, self.seed):
                if (path, index) in self.tried:
                    continue
                one = self.tried[path, index] = self.test(path, index)
                file.write(json.dumps(one) + "\n")
                file.flush()
                if time.time() > shown + (0.2 if is_terminal else 60):
                    shown = time.time()
                    counts = ", ".join(f"{n} {outcome}" for outcome, n in self.counts().items())
                    line = f"mutate: {counts}; {(self.end - shown) / 60:.1f} minutes left"
                    print(line, end="\r" if is_terminal else "\n", file=sys.stderr, flush=True)

    def counts(self, path: str = "") -> dict[str, int]:
        """Mutants by outcome, of one file or of all. Those that are the same program count nowhere."""
        number = Counter(one["outcome"] for one in self.tried.values() if path in ("", one["file"]))
        total = sum(len(module.mutations) for name, module in self.modules.items() if path in ("", name))
        return {name: number[name] for name in ("killed", "survived", "timeout")} | {
            "unreached": total - number.total()
        }

    def report(self, command: str) -> dict:
        """What was found, in a form to commit."""
        survivors = []
        for one in sorted(self.tried.values(), key=lambda one: (one["file"], one.get("line", 0), one["index"])):
            if one["outcome"] == "survived":
                ran = Counter(test.split("::")[0] for test in one["tests"])
                survivors.append({"at": f"{one['file']}:{one['line']}", "diff": one["diff"], "tests": dict(ran)})
        no_use = sorted({test for known in self.reached.values() for test in known["no_use"]})
        about = {"date": datetime.date.today().isoformat(), "command": command, "seed": self.seed}
        about |= {"mutmut": metadata.version("mutmut"), "counts": self.counts()}
        files = {path: self.counts(path) for path in self.modules}
        return about | {"files": files, "tests_not_used": no_use, "survivors": survivors}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutate", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="time for everything (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the mutants (default 0)")
    parser.add_argument("--only", default="", help="part of a path: only these files")
    parser.add_argument("--out", type=Path, help="write the result here too, as JSON")
    options = parser.parse_args(arguments)
    out = options.out and options.out.resolve()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _end)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    os.chdir(ROOT)  # where mutmut looks for its settings
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "build/mutate/tree"), os.getenv("PYTHONPATH"))))
    os.environ.setdefault("EVAL_DATA_ROOT", str(ROOT.parent / "shared" / "data"))
    run = Run(options.seed, psutil.Process().create_time() + 60 * options.minutes, options.only)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, run.end - time.time()))
        run.prepare()
        run.go()
    except (OutOfTime, Stopped) as end:
        print(f"\nmutate: {end.__doc__} The same command goes on.", file=sys.stderr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        shutil.rmtree(run.tree, ignore_errors=True)
    result = run.report(f"make mutate MINUTES={options.minutes:g} ARGS='{shlex.join(arguments[2:])}'")
    for place in filter(None, (run.folder / "result.json", out)):
        place.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for one in result["survivors"]:
        ran = ", ".join(f"{n} of {file}" for file, n in one["tests"].items())
        print(f"{one['at']} survived {ran or 'no test'}\n{one['diff']}\n")
    for path, numbers in (result["files"] | {"all": result["counts"]}).items():
        print(f"{path:40} " + ", ".join(f"{n} {name}" for name, n in numbers.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
