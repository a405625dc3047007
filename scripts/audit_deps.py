"""Known vulnerabilities of the locked packages (`make audit-deps`): pip-audit over requirements/*.txt.

Exit status: 0 nothing new, or no database could be asked (said in capitals; 3 with --strict); 1 findings that nobody
accepted, or whose acceptance has ended; 2 a mistake in the call or in the list of accepted findings.

pip-audit itself says "No known vulnerabilities found" of packages its database does not answer for. Here only packages
that were looked up count as checked.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("requirements/cpu.txt", "requirements/gpu.txt")
ACCEPTED = ROOT / "requirements" / "accepted_findings.toml"
SERVICES = ("pypi", "osv")
"""Databases of pip-audit, in the order they are tried."""
_TIMEOUT_S = 900
_KEYS = {"id": str, "package": str, "reason": str, "accepted": datetime.date, "until": datetime.date}


class AuditError(Exception):
    """The audit cannot be made as asked; the message says what to mend."""


@dataclass(frozen=True)
class Accepted:
    """A finding we live with until a day."""

    id: str
    package: str
    reason: str
    accepted: datetime.date
    until: datetime.date


@dataclass(frozen=True)
class Finding:
    """An advisory that concerns a locked version."""

    package: str
    version: str
    id: str
    aliases: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def concerns(self, accepted: Accepted) -> bool:
        """Whether the acceptance is about this advisory of this package."""
        return _name(accepted.package) == _name(self.package) and accepted.id in (self.id, *self.aliases)

    def __str__(self) -> str:
        also = f" ({', '.join(self.aliases)})" if self.aliases else ""
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version"
        return f"{self.package} {self.version}: {self.id}{also}; {fixed}"


@dataclass(frozen=True)
class Audit:
    """What pip-audit said of some packages."""

    checked: frozenset[str]
    skipped: frozenset[str]
    """Packages the database had no answer for."""
    findings: tuple[Finding, ...]


def read_accepted(path: Path) -> list[Accepted]:
    """The written list.

    Raises:
        AuditError: not TOML, an unknown or missing key, an empty reason, a day that is no day.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AuditError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AuditError(f"{path} is not TOML: {error}") from None
    if extra := sorted(set(raw) - {"finding"}):
        raise AuditError(f"{path}: unknown key {extra[0]!r}; only [[finding]] is known")
    found = []
    for number, entry in enumerate(raw.get("finding", []), start=1):
        if set(entry) != set(_KEYS):
            odd = sorted(set(entry) ^ set(_KEYS))
            raise AuditError(f"{path}, finding {number}: missing or unknown: {', '.join(odd)}")
        for key, kind in _KEYS.items():
            if not isinstance(entry[key], kind) or not str(entry[key]).strip():
                raise AuditError(f"{path}, finding {number}: {key} = {entry[key]!r} is not a {kind.__name__}")
        found.append(Accepted(**entry))
    return found


def parse(report: str) -> Audit:
    """What ``pip-audit --format json`` printed.

    Raises:
        AuditError: it printed something else.
    """
    try:
        dependencies = json.loads(report)["dependencies"]
        checked = {_name(one["name"]) for one in dependencies if "skip_reason" not in one}
        skipped = {_name(one["name"]) for one in dependencies if "skip_reason" in one}
        findings = {
            Finding(
                one["name"],
                one["version"],
                vulnerability["id"],
                tuple(sorted(vulnerability.get("aliases", ()))),
                tuple(vulnerability.get("fix_versions", ())),
            )
            for one in dependencies
            for vulnerability in one.get("vulns", ())
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(f"pip-audit's report is not understood ({type(error).__name__}: {error})") from None
    ordered = sorted(findings, key=lambda finding: (_name(finding.package), finding.version, finding.id))
    return Audit(frozenset(checked), frozenset(skipped - checked), tuple(ordered))


def joined(audits: Iterable[Audit]) -> Audit:
    """Several files' audits as one."""
    audits = list(audits)
    checked = frozenset().union(*(audit.checked for audit in audits))
    skipped = frozenset().union(*(audit.skipped for audit in audits)) - checked
    findings = {finding: None for audit in audits for finding in audit.findings}
    return Audit(checked, skipped, tuple(findings))


def judge(audit: Audit, accepted: Sequence[Accepted], today: datetime.date) -> tuple[list[str], int]:
    """Lines to print and the exit status: 1 where a finding is not accepted, or not any more."""
    lines, status = [], 0
    for finding in audit.findings:
        entries = [entry for entry in accepted if finding.concerns(entry)]
        if current := [entry for entry in entries if entry.until >= today]:
            lines.append(f"accepted until {current[0].until}: {finding}: {current[0].reason}")
        elif entries:
            status = 1
            lines.append(f"ACCEPTANCE ENDED on {max(entry.until for entry in entries)}: {finding}")
        else:
            status = 1
            lines.append(f"NEW: {finding}")
    for entry in accepted:
        if any(finding.concerns(entry) for finding in audit.findings):
            continue
        asked = _name(entry.package) in audit.checked
        why = "no such finding any more: take the entry out" if asked else "the package was not looked up"
        lines.append(f"accepted but not found: {entry.package} {entry.id} ({why})")
    if audit.skipped:
        names = ", ".join(sorted(audit.skipped))
        lines.append(f"not in the database, hence not checked: {len(audit.skipped)} packages ({names})")
    lines.append(
        f"audit-deps: {len(audit.checked)} packages checked, {len(audit.findings)} findings, "
        f"{sum(line.startswith(('NEW', 'ACCEPTANCE')) for line in lines)} of them not accepted"
    )
    return lines, status


def run_pip_audit(requirements: Path, service: str) -> Audit | str:
    """One database asked about one file; a text tells why it could not be."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--vulnerability-service", service]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"{service}: no answer in {_TIMEOUT_S} s"
    if not done.stdout.strip():  # no report: it did not come to the end
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"{service}: {last[:200]}"
    audit = parse(done.stdout)
    return audit if audit.checked else f"{service}: it answered for none of {len(audit.skipped)} packages"


def audit_files(files: Sequence[Path]) -> Audit | list[str]:
    """All files by the first database that answers; else what each database said."""
    reasons = []
    for service in SERVICES:
        answers = []
        for path in files:
            answer = run_pip_audit(path, service)
            if isinstance(answer, str):
                reasons.append(answer)
                break
            answers.append(answer)
        if len(answers) == len(files):
            return joined(answers)
    return reasons


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the head of this file for the exit status."""
    parser = argparse.ArgumentParser(prog="audit_deps", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help=f"default: {' '.join(REQUIREMENTS)}")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED, metavar="FILE")
    parser.add_argument("--report", type=Path, metavar="FILE", help="judge a stored report of pip-audit; asks nobody")
    parser.add_argument("--strict", action="store_true", help="exit 3 where no database can be asked")
    args = parser.parse_args(arguments)
    try:
        accepted = read_accepted(args.accepted)
        if args.report:
            found: Audit | list[str] = parse(args.report.read_text(encoding="utf-8"))
        elif importlib.util.find_spec("pip_audit") is None:
            raise AuditError("pip-audit is not installed here; run `make install`")
        else:
            found = audit_files(args.files or [ROOT / name for name in REQUIREMENTS])
    except (AuditError, OSError) as error:
        print(f"audit-deps: {error}", file=sys.stderr)
        return 2
    if isinstance(found, list):
        print("audit-deps: NOT CHECKED: no vulnerability database reachable")
        print("\n".join(f"  {reason}" for reason in found))
        return 3 if args.strict else 0
    lines, status = judge(found, accepted, datetime.date.today())
    print("\n".join(lines))
    return status


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


if __name__ == "__main__":
    sys.exit(main())
