"""Sources of the site: executed notebooks made fit to show, the front page, the page of runs, the documentation.

The sources mirror the checkout (``notebooks/``, ``docs/``, ``README.md``), so links between its files hold as written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

from eval_harness import records
from eval_harness.records import RunRecord, TrainingRecord
from gpg_repro import html
from gpg_repro.site.execute import Executed
from gpg_repro.tables.numbers import code_of
from gpg_repro.tables.runs import REFERENCE

GROUPS = {
    "Tables": re.compile(r"table_"),
    "Figures": re.compile(r"figure_"),
    "Learn by hand": re.compile(r"0[0125]_"),
    "The paper, checked": re.compile(r""),
}
"""Heading -> names of its notebooks; the first that matches takes one."""
_ORDER = ("The paper, checked", "Tables", "Figures", "Learn by hand")
_THUMB_WIDTH = 560
_SHOWN_FILES = (".csv", ".md", ".png", ".svg")
_SHOWN_OUTPUTS = ("text/plain", "text/html", "text/markdown", "text/latex", "image/png", "image/jpeg", "image/svg+xml")
"""Kinds of output that show something and run nothing."""
_ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_STATES = {
    "no records": "No records of this are committed yet, so there is nothing to show.",
    "failed": "This notebook failed; what it showed until then stands below.",
    "not run": "Not run for this site: it trains a model. Its text and code, without results.",
}


@dataclass(frozen=True)
class Record:
    """A run record and where it lies."""

    folder: Path
    run: RunRecord | TrainingRecord
    shown: str
    """Where it lies, without the machine's part of the path."""


def find_records(scale: str, made_here: Path | None, reference: Path = REFERENCE) -> list[Record]:
    """The committed records of a scale, and those made here where asked for (the folder of runs)."""
    found = [
        Record(folder, run, f"results/reference/{folder.relative_to(reference).as_posix()}")
        for folder, run in records.find_runs(reference / scale)
    ]
    if made_here is not None:
        found += [Record(folder, run, f"results/runs/{folder.name}") for folder, run in records.find_runs(made_here)]
    return found


@dataclass
class Parts:
    """Markup that templates made for pages. A page refers to it by name (:mod:`gpg_repro.site.outside`), so that no
    text that stands in a page is taken for markup."""

    markup: dict[str, str] = field(default_factory=dict)
    """By name."""

    def add(self, markup: Markup) -> str:
        """Keep a part; returns what stands for it in Markdown."""
        name = f"part{len(self.markup)}"
        self.markup[name] = str(markup)
        return f"```{{part}} {name}\n```"


def notebook_title(path: Path) -> str:
    """The first heading of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return next(
        (
            line.removeprefix("# ").strip()
            for cell in cells
            if cell["cell_type"] == "markdown"
            for line in "".join(cell["source"]).splitlines()
            if line.startswith("# ")
        ),
        path.stem,
    )


# --- Notebooks -------------------------------------------------------------------------------------------------------


def write_notebook(
    entry: Executed, source: Path, pages: Path, extra: Path, about: NotebookContext, parts: Parts
) -> None:
    """Write a notebook's page: code folded, machine paths out, run ids linked, a line on where it comes from on top."""
    import nbformat

    notebook = nbformat.read(entry.copy, as_version=4)
    title = notebook_title(source)
    cells, heading, pictured = [], title, 0
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if "papermill-error-cell-tag" in tags:
            continue
        if cell.cell_type == "markdown":
            heading = _last_heading(cell.source) or heading
            cells.append(nbformat.v4.new_markdown_cell(cell.source))
            continue
        if tags & {"parameters", "injected-parameters"} and entry.state != "not run":
            continue  # the line on top says what they were
        pictured += 1
        kept = nbformat.v4.new_code_cell(
            cell.source,
            outputs=[_clean(output, about) for output in cell.get("outputs", []) if output.output_type != "error"],
            execution_count=cell.get("execution_count"),
            metadata={
                "tags": [] if entry.state == "not run" else ["hide-input"],
                "mystnb": {"image": {"alt": f"{title}: {heading} (plot of cell {pictured})"}},
            },
        )
        cells.append(kept)
    files = _copy_files(entry, extra / "files" / entry.name)
    cells[:1] = _with_banner(cells[0].source if cells else f"# {title}", parts.add(_banner(entry, files, about)))
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    page = pages / "notebooks" / source.name
    page.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), page)


@dataclass(frozen=True)
class NotebookContext:
    """What every notebook's page is told."""

    scale: str
    seeds: int
    run_ids: Collection[str]
    paths: Mapping[str, str]
    """Machine path -> what stands for it."""

    def scrub(self, text: str) -> str:
        """A text without machine paths."""
        for path, name in self.paths.items():
            text = text.replace(path, name)
        return text


def _last_heading(source: str) -> str | None:
    found = re.findall(r"^#+ (.+)$", source, flags=re.MULTILINE)
    return found[-1].strip() if found else None


def _clean(output, about: NotebookContext):
    import nbformat

    data = json.loads(about.scrub(json.dumps(output, ensure_ascii=False)))
    if "data" in data:
        data["data"] = {kind: content for kind, content in data["data"].items() if kind in _SHOWN_OUTPUTS}
    if "text/html" in data.get("data", {}):
        markup = data["data"]["text/html"]
        data["data"]["text/html"] = link_runs("".join(markup), about.run_ids)
    return nbformat.from_dict(data)


def link_runs(markup: str, run_ids: Collection[str]) -> str:
    """Turn table cells that hold nothing but the id of a known run into links to the page of runs."""

    def linked(match: re.Match) -> str:
        text = unescape(match[2])
        if text not in run_ids:
            return match[0]
        return f'{match[1]}<a href="../runs.html#{quote(text)}">{escape(text)}</a></td>'

    return re.sub(r"(<td[^>]*>)([^<>]+)</td>", linked, markup)


def _copy_files(entry: Executed, target: Path) -> list[Path]:
    """What a notebook left, for readers; flat, since no two have one name.

    Data and pictures, and pages of their own (a viewer), which have no data file of their name beside them.
    """
    shutil.rmtree(target, ignore_errors=True)
    found = sorted(
        path
        for path in entry.files.rglob("*")
        if path.suffix in _SHOWN_FILES or (path.suffix == ".html" and not path.with_suffix(".csv").exists())
    )
    for path in found:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    return [target / path.name for path in found]


def _banner(entry: Executed, files: Sequence[Path], about: NotebookContext) -> Markup:
    origin = ""
    if entry.state != "not run":
        origin = (
            " Shown from committed records; nothing was trained." if about.seeds == 0 else f" SEEDS = {about.seeds}."
        )
    links = [
        {"href": f"../files/{quote(entry.name)}/{quote(path.name)}", "name": path.name, "own": path.suffix == ".html"}
        for path in files
    ]
    return html.part(
        "site",
        "banner",
        kind=entry.state.replace(" ", "-"),
        state=_STATES.get(entry.state, ""),
        detail="" if entry.state == "not run" else about.scrub(entry.message),
        badge=scale_badge(about.scale),
        origin=origin,
        own=[link for link in links if link["own"]],
        data=[link for link in links if not link["own"]],
    )


def scale_badge(scale: str) -> str:
    """What a scale is, in a few words."""
    return "paper scale" if scale == "paper" else f"scale {scale}: a miniature, not the paper’s"


def _with_banner(source: str, banner: str) -> list:
    """The first cell as its heading, the banner, and the rest."""
    import nbformat

    lines = source.splitlines()
    place = next((k for k, line in enumerate(lines) if line.startswith("# ")), -1)
    head, rest = "\n".join(lines[: place + 1]), "\n".join(lines[place + 1 :]).strip()
    parts = [head, banner, rest]
    return [nbformat.v4.new_markdown_cell(part) for part in parts if part]


# --- Documentation ---------------------------------------------------------------------------------------------------


def write_docs(root: Path, pages: Path) -> list[str]:
    """Copy the documentation with the files it links to; returns the pages' names without their endings."""
    wanted = [root / name for name in _ROOT_PAGES if (root / name).exists()]
    wanted += sorted((root / "docs").glob("*.md"))
    names = []
    for path in wanted:
        text, target = path.read_text(encoding="utf-8"), pages / path.relative_to(root)
        for link, _ in _LINK.findall(text):
            linked = (path.parent / link).resolve()
            if "://" not in link and linked.is_file() and linked.is_relative_to(root) and linked not in wanted:
                copy = pages / linked.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(linked, copy)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        names.append(path.relative_to(root).with_suffix("").as_posix())
    return names


# --- Runs ------------------------------------------------------------------------------------------------------------


def write_runs(found: Sequence[Record], pages: Path, scale: str, parts: Parts) -> None:
    """The page of every record: what was run on what, how much of it was asked, scored and failed, with what."""
    versions: dict[str, str] = {}
    evaluations = [entry for entry in found if entry.run.kind == "evaluation"]
    trainings = [entry for entry in found if entry.run.kind == "training"]
    lines = [
        [_evaluation(entry, versions) for entry in evaluations],
        [_training(entry, versions) for entry in trainings],
    ]
    sets = [(name, f"versions-{name}", [text]) for text, name in versions.items()]
    body = [
        "# Runs and where numbers come from",
        f"Every record behind the numbers of this site, {scale_badge(scale)}. A cell of a table names its runs when "
        "hovered, focused or tapped. A score is the mean of a run’s benchmarks with its 95 % interval over items; a "
        "sample that failed counts as wrong. Code is the commit that made the record, + where files were changed.",
        f"## Evaluations ({len(evaluations)})",
        parts.add(_table("evaluations", _EVALUATION, lines[0])),
        f"## Trainings ({len(trainings)})",
        parts.add(_table("trainings", _TRAINING, lines[1])),
        "## Versions",
        parts.add(_table("versions", ("set", "versions"), sets)),
    ]
    (pages / "runs.md").write_text("\n\n".join(body) + "\n", encoding="utf-8")


_EVALUATION = (
    "run", "score", "items", "asked", "scored", "failed", "benchmarks", "weights", "engine", "code", "versions",
    "finished", "record",
)  # fmt: skip
_TRAINING = (
    "run", "recipe", "seed", "method", "fidelity", "steps", "base", "seconds", "code", "versions", "finished", "record",
)  # fmt: skip


def _evaluation(entry: Record, versions: dict[str, str]) -> tuple[str, str, list[str]]:
    run, results = entry.run, entry.run.benchmarks.values()
    average = run.average
    if average is None:
        score = "–"
    else:
        mean, low, high = (100 * average[name] for name in ("mean", "low", "high"))
        score = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    engine = " ".join(str(part) for part in (run.engine["name"], run.engine.get("version")) if part)
    values = [
        score,
        *(str(sum(getattr(result, name) for result in results)) for name in ("num_items", "asked", "scored", "failed")),
        ", ".join(run.benchmarks),
        (run.model.get("weights") or run.model.get("revision") or "–")[:12],
        engine,
    ]
    return run.run_id, run.run_id, [*values, *_origin(entry, versions)]


def _training(entry: Record, versions: dict[str, str]) -> tuple[str, str, list[str]]:
    run = entry.run
    values = [str(run.recipe[name]) for name in ("name", "seed", "method", "fidelity")]
    base = (run.base.get("weights") or run.base.get("revision") or "–")[:12]
    seconds = run.timings.get("train_s")
    values += [str(run.num_steps), base, "–" if seconds is None else f"{seconds:.0f}"]
    return run.run_id, run.run_id, [*values, *_origin(entry, versions)]


def _origin(entry: Record, versions: dict[str, str]) -> list[str]:
    environment = entry.run.environment
    parts = [f"Python {environment.get('python', '?')}"]
    parts += [f"{name} {version}" for name, version in sorted(environment.get("packages", {}).items())]
    name = versions.setdefault(", ".join(parts), f"{len(versions) + 1}")
    return [code_of(entry.run), f"set {name}", (entry.run.finished or "not finished")[:16], entry.shown]


def _table(name: str, headings: Sequence[str], lines: Sequence[tuple[str, str, list[str]]]) -> Markup:
    """A table whose lines can be linked to: (label, anchor, cells); of lines with one anchor the first has it."""
    rows, used = [], set()
    for label, anchor, cells in lines:
        rows.append(
            {
                "label": label,
                "anchor": None if anchor in used else anchor,
                "cells": [{"text": cell, "set": _set_of(cell)} for cell in cells],
            }
        )
        used.add(anchor)
    return html.part("site", "runs", name=name, headings=headings, rows=rows)


def _set_of(cell: str) -> str | None:
    """The set of versions that a cell names."""
    return cell[4:] if re.fullmatch(r"set \d+", cell) else None


# --- Front page ------------------------------------------------------------------------------------------------------


def write_front(
    executed: Mapping[str, Executed],
    titles: Mapping[str, str],
    docs: Sequence[str],
    found: Sequence[Record],
    pages: Path,
    extra: Path,
    parts: Parts,
    *,
    scale: str,
    made: str,
) -> None:
    """The front page: what this is and is not, and every table and figure with its picture.

    Args:
        executed, titles: by notebook.
        docs: pages of the documentation.
        made: when and from which code the site was made.
    """
    groups: dict[str, list[str]] = {heading: [] for heading in _ORDER}
    for name in executed:
        groups[next(heading for heading, pattern in GROUPS.items() if pattern.match(name))].append(name)
    failed = [name for name, entry in executed.items() if entry.state == "failed"]
    body = ["# GPG, reproduced", _INTRODUCTION, _scale_note(scale), _counts(found)]
    if failed:
        body.append(
            "```{warning}\nNotebooks that failed: " + ", ".join(_doc_link(titles[n], n) for n in failed) + "\n```"
        )
    for heading in _ORDER:
        if groups[heading]:
            cards = [_card(executed[name], titles[name], extra) for name in groups[heading]]
            body += [f"## {heading}", parts.add(html.part("site", "cards", cards=cards))]
    body += ["## How to read it", _READING, f"*{made}*"]
    body += [_toctree(heading, [f"notebooks/{n}" for n in groups[heading]]) for heading in _ORDER if groups[heading]]
    body += [_toctree("Records", ["runs"]), _toctree("Documentation", docs)]
    (pages / "index.md").write_text("\n\n".join(body) + "\n", encoding="utf-8")


_INTRODUCTION = """\
**GPG** (Group Policy Gradient, [arXiv 2504.02546](https://arxiv.org/abs/2504.02546)) trains language models to reason
with the plain policy gradient: no value model, no reference model, no clipped ratio. For each question the model writes
a group of answers; an answer’s advantage is its reward minus the group’s mean, and one factor,
$\\alpha = \\frac{B}{B - M}$, makes up for the groups that are all right or all wrong.

This site puts each table and figure of the paper beside what this repository measured, and each claim beside what
supports it. Behind each score and difference of ours stand its counts, its interval and the runs it came from."""

_READING = """\
- **Sort** a table by any column: click its heading, or move to it with Tab and press Enter. A third time restores it.
- **Ask a number** what is behind it: hover, tap, or move there with Tab and the arrow keys. Counts, interval, code and
  the runs appear; Esc closes them.
- **Published and ours** never share a column. *Implied 95 %* is what the item counts alone say about a printed number.
- **Brackets** of ours are 95 % intervals over items; where they cover training seeds instead, the heading says so.
- **Where numbers come from**: [](runs.md) lists every record with its counts, versions and commit."""


_MINIATURE = """\
Models of under 2 M parameters, made from nothing on generated tasks, are trained and measured on CPU cores. It shows
that the method is implemented and what it does there. It says nothing about the scores of 1.5B or 7B models, and none
of its numbers stands under a benchmark’s name."""


def _scale_note(scale: str) -> str:
    if scale == "paper":
        return "```{note}\nScale paper: released checkpoints and real benchmarks.\n```"
    return f"```{{important}}\n**Scale {scale} is a miniature, not the paper’s experiment.** {_MINIATURE}\n```"


def _counts(found: Sequence[Record]) -> str:
    evaluations = [entry.run for entry in found if entry.run.kind == "evaluation"]
    completions = sum(result.asked for run in evaluations for result in run.benchmarks.values())
    failed = sum(result.failed for run in evaluations for result in run.benchmarks.values())
    return (
        f"Behind it: {len(found) - len(evaluations)} trainings and {len(evaluations)} evaluations with "
        f"{completions:,} graded completions, {failed:,} of which failed ([all runs](runs.md))."
    )


def _doc_link(title: str, name: str) -> str:
    return f"[{title}](notebooks/{name}.ipynb)"


def _card(entry: Executed, title: str, extra: Path) -> dict[str, str | None]:
    name, _, rest = title.partition(" · ")
    thumb = write_thumbnail(entry, extra)
    return {
        "href": f"notebooks/{quote(entry.name)}.html",
        "thumb": None if thumb is None else f"thumbs/{quote(thumb.name)}",
        "name": name,
        "rest": rest,
        "state": entry.state.replace(" ", "-"),
        "note": {"no records": "no records yet", "failed": "failed", "not run": "not run here"}.get(entry.state),
    }


def write_thumbnail(entry: Executed, extra: Path) -> Path | None:
    """A small copy of the picture that bears the notebook's name, else of its first; None where it drew none."""
    from PIL import Image, ImageChops

    from eval_harness.images import open_image, read_file

    own = entry.name.replace("_", "")
    found = sorted((entry.files / "figures").rglob("*.png"), key=lambda path: (path.stem != own, path.name))
    if entry.state == "not run" or not found:
        return None
    target = extra / "thumbs" / f"{entry.name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_image(read_file(found[0], found[0].name), found[0].name) as image:
        image = image.convert("RGB")
        white = Image.new("RGB", image.size, "white")
        image = image.crop(ImageChops.difference(image, white).getbbox())
        image.thumbnail((_THUMB_WIDTH, _THUMB_WIDTH), Image.Resampling.LANCZOS)
        image.quantize(128).save(target, optimize=True)
    return target


def _toctree(caption: str, names: Sequence[str]) -> str:
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```"
