"""Building the site: notebooks executed, sources written, Sphinx run, the result checked for machine paths."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from eval_harness.errors import UserError, unknown
from gpg_repro.paths import ROOT
from gpg_repro.paths import results as default_results
from gpg_repro.site import pages as page
from gpg_repro.site.execute import Executed, execute
from gpg_repro.tables.runs import REFERENCE, check_scale

_THEME = Path(__file__).parent / "theme"
_TEXT = {".html", ".js", ".css", ".svg", ".csv", ".md", ".txt", ".json", ".inv"}
_NEEDED = ("sphinx", "myst_nb", "furo", "latex2mathml")


@dataclass(frozen=True)
class Site:
    """A built site."""

    out: Path
    notebooks: list[Executed]
    warnings: list[str]
    """What Sphinx complained about."""
    seconds: float

    @property
    def failed(self) -> list[Executed]:
        """Notebooks that failed; their pages say so."""
        return [entry for entry in self.notebooks if entry.state == "failed"]


def build_site(
    out: Path | None = None,
    *,
    scale: str = "tiny",
    seeds: int = 0,
    only: Sequence[str] | None = None,
    jobs: int = 2,
    progress: bool = True,
    root: Path = ROOT,
) -> Site:
    """Execute the notebooks and build the site.

    Args:
        out: folder of the site (default ``build/report``); what is kept between builds lies beside it, in
            ``<out>_work``.
        scale: of the notebooks.
        seeds: 0 shows committed records and trains nothing; n lets notebooks train n seeds here, as SEEDS does.
        only: names of notebooks; None is all.
        jobs: notebooks at a time.
        progress: print a line as each notebook is done.
        root: the checkout that holds ``notebooks/`` and ``docs/``.

    Raises:
        UserError: unknown scale or notebook, no checkout, tools that are not installed, or a page with a machine path.
    """
    began = time.monotonic()
    check_scale(scale, seeds)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the report needs {', '.join(missing)}; `make install` installs what it needs.")
    sources = _sources(root, only)
    out = (out or ROOT / "build" / "report").resolve()
    _check_out(out)
    work = out.with_name(out.name + "_work")
    pages, extra = work / "pages", work / "extra"
    for stale in (pages, extra):
        shutil.rmtree(stale, ignore_errors=True)
        stale.mkdir(parents=True)

    def tell(entry: Executed) -> None:
        how = "kept" if entry.reused else f"{entry.seconds:.0f} s"
        text = f": {entry.message.splitlines()[0]}" if entry.message and entry.state != "not run" else ""
        if progress:
            print(f"report: {entry.name} {entry.state} ({how}){text}", flush=True)

    executed = execute(sources, work, scale=scale, seeds=seeds, jobs=jobs, root=root, report=tell)
    found = page.find_records(scale, None if seeds == 0 else default_results() / "runs", REFERENCE)
    about = page.NotebookContext(scale, seeds, {entry.run.run_id for entry in found}, _machine_paths(root, work))
    parts = page.Parts()
    for entry, source in zip(executed, sources, strict=True):
        page.write_notebook(entry, source, pages, extra, about, parts)
    docs = page.write_docs(root, pages)
    page.write_runs(found, pages, scale, parts)
    titles = {source.stem: page.notebook_title(source) for source in sources}
    by_name = {entry.name: entry for entry in executed}
    page.write_front(by_name, titles, docs, found, pages, extra, parts, scale=scale, made=_made(root))
    warnings = run_sphinx(pages, extra, parts, out, work / "doctrees", jobs, _machine_paths(root, work))
    if leaks := list(machine_paths(out, _machine_paths(root, work))):
        raise UserError("pages of the report hold paths of this machine:\n" + "\n".join(f"- {leak}" for leak in leaks))
    return Site(out, executed, warnings, time.monotonic() - began)


def _sources(root: Path, only: Sequence[str] | None) -> list[Path]:
    found = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if not found:
        raise UserError("the report is made of a checkout's notebooks, and there are none here; run it in a checkout.")
    for name in only or ():
        if name not in found:
            raise unknown("notebook", name, found)
    return [path for name, path in found.items() if only is None or name in only]


def _check_out(out: Path) -> None:
    """A site replaces what is there, so that must be a site."""
    if out.exists() and any(out.iterdir()) and not (out / ".buildinfo").exists():
        raise UserError(f"{out} is not empty and holds no site; name another folder with --out.")


def run_sphinx(
    pages: Path, extra: Path, parts: page.Parts, out: Path, doctrees: Path, jobs: int, paths: dict[str, str]
) -> list[str]:
    """Run Sphinx; returns its warnings.

    Args:
        pages: folder of sources.
        extra: folder of files that are copied as they are.
        parts: the markup that sources refer to.
        out, doctrees: folders that are made anew.
        jobs: pages at a time.
        paths: in warnings, machine path -> what stands for it.
    """
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    # Built from nothing each time: pages that are gone must not stay, and with the notebooks run it takes seconds.
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(doctrees, ignore_errors=True)
    status, warning = io.StringIO(), io.StringIO()
    overrides = {"html_extra_path": [str(extra)], "html_title": "GPG paper companion", "gpg_parts": parts.markup}
    with patch_docutils(str(_THEME)), docutils_namespace():
        app = Sphinx(
            pages, _THEME, out, doctrees, "html", confoverrides=overrides, status=status, warning=warning, parallel=jobs
        )
        app.build(force_all=True)
    text = warning.getvalue()
    for path, name in paths.items():
        text = text.replace(path, name)
    return [line for line in text.splitlines() if line.strip()]


def _machine_paths(root: Path, work: Path) -> dict[str, str]:
    """Paths of this machine and what stands for each, longest first."""
    known = {str(work): "build", str(ROOT): ".", str(root.resolve()): ".", os.path.expanduser("~") + os.sep: "~/"}
    return dict(sorted(known.items(), key=lambda pair: -len(pair[0])))


def machine_paths(out: Path, paths: Sequence[str] | dict[str, str]) -> Iterator[str]:
    """Files of a site that hold one of the paths, with the path."""
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.suffix in _TEXT:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (f"{path.relative_to(out)}: {known}" for known in paths if known in text)


def _made(root: Path) -> str:
    """When and from which code, for the front page."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True)
    code = f"commit {asked.stdout.strip()}" if asked.returncode == 0 else "no git checkout"
    return f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {code}; rebuild with `make report`."
