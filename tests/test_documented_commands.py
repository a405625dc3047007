"""Every command that README and docs show can be typed: the parsers take it, the names in it exist, make knows it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from pygments.lexers import PythonLexer
from pygments.token import Error

import eval_harness.__main__
import gpg_repro.__main__
from eval_harness.benchmarks import get_benchmark
from gpg_repro.plan import subject_of
from gpg_repro.recipe import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PARSERS = {"gpg_repro": gpg_repro.__main__._parser, "eval_harness": eval_harness.__main__._parser}
_FENCE = re.compile(r"^```(?:bash|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ENDS = ("|", "||", "&&", ";", ">", "&", "2>&1")


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined, comments left out."""
    found = []
    for block in _FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            with contextlib.suppress(ValueError):  # a block of another language in a shell's clothes
                words = shlex.split(line, comments=True)
                found += [line] if words else []
    return found


def words_of(line: str) -> list[str]:
    """Words of a command, up to the first pipe and after assignments to the environment."""
    words = shlex.split(line, comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in _ENDS), len(words))]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


def module_calls() -> list[tuple[str, str, list[str]]]:
    """(page, module, arguments) of every ``python -m module …`` and ``torchrun … -m module …`` that is shown."""
    found = []
    for page in PAGES:
        for line in commands(page):
            words = words_of(line)
            if "-m" in words and re.search(r"python3?$|torchrun$|accelerate$", words[0] if words else ""):
                at = words.index("-m")
                found.append((page, words[at + 1], words[at + 2 :]))
    return found


def make_calls() -> list[tuple[str, list[str]]]:
    """(page, arguments) of every ``make …`` that is shown."""
    lines = [(page, words_of(line)) for page in PAGES for line in commands(page)]
    return [(page, words[1:]) for page, words in lines if words and words[0] == "make"]


def batch_calls() -> list[tuple[str, str, list[str]]]:
    """(page, script, arguments) of every ``sbatch … script …`` that is shown."""
    found = []
    for page in PAGES:
        for words in filter(None, map(words_of, commands(page))):
            scripts = [word for word in words if word.endswith(".sbatch")] if words[0] == "sbatch" else []
            found += [(page, script, words[words.index(script) + 1 :]) for script in scripts]
    return found


def identify(call) -> str:
    return " ".join(" ".join(part) if isinstance(part, list) else part for part in call)


@pytest.mark.parametrize("call", module_calls(), ids=identify)
def test_a_shown_module_call_is_accepted(call):
    _, module, arguments = call
    check_call(module, arguments)


def check_call(module: str, arguments: list[str]) -> None:
    """Fail unless the module's own parser takes the arguments; other projects' modules (verl, pytest) pass."""
    if module.split(".")[0] not in PARSERS:
        return
    assert importlib.util.find_spec(module) is not None, module
    if module not in PARSERS or arguments[-1:] == ["..."]:
        return
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = PARSERS[module]().parse_args(arguments)
    except SystemExit:
        pytest.fail(errors.getvalue())
    check_names(parsed)


@pytest.mark.parametrize("call", batch_calls(), ids=identify)
def test_a_shown_batch_job_is_accepted(call):
    _, script, arguments = call
    assert (ROOT / script).exists()
    module, command = {"train": ("gpg_repro", "train"), "evaluate": ("eval_harness", "run")}[Path(script).stem]
    check_call(module, [command, *arguments])


def check_names(parsed: argparse.Namespace) -> None:
    """Recipes, overrides, tables and benchmarks that a command names exist."""
    recipe = getattr(parsed, "recipe", None)
    if recipe and not recipe.endswith((".yaml", ".yml")) and recipe != recipe.upper():  # upper case: a placeholder
        assert recipe in recipe_names()
        load_recipe(recipe, parsed.overrides)
    if parsed.command == "plan":
        subject_of(parsed.name)
    for name in (getattr(parsed, "benchmarks", None) or "").split(","):
        if name and name != name.upper():
            get_benchmark(name)


@pytest.mark.parametrize("call", make_calls(), ids=identify)
def test_a_shown_make_call_is_known(call):
    _, arguments = call
    handed_down = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "SCALE", "ENGINE", "SEEDS", "DEVICE")
    environment = {name: value for name, value in os.environ.items() if name not in handed_down}
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.replace("\\\n", " ").splitlines():  # what make would run, ARGS included
        if ran := re.match(r"\.venv/bin/python -m (gpg_repro|eval_harness) (.*)", line):
            check_call(ran[1], shlex.split(ran[2]))


def test_there_are_commands_to_check():
    """So that a change of the pages' form does not empty the tests above."""
    pages = {page for page, *_ in module_calls()} & {page for page, *_ in make_calls()}
    assert {"README.md", "docs/scale.md"} <= pages
    assert len(module_calls()) > 30 and batch_calls()


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md"], ids=lambda page: page.name)
def test_shown_python_can_be_read(page):
    """What pygments cannot read is a warning of the report, and of no use to whoever copies it."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        unread = [text for kind, text in PythonLexer().get_tokens(block) if kind is Error]
        assert not unread, block
