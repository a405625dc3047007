"""Notebooks, executed side by side from committed records; a copy is kept until something it depends on changes."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from eval_harness.errors import UserError
from gpg_repro import fingerprints
from gpg_repro.committed import RECORDS_ONLY, NoRecords
from gpg_repro.paths import ROOT
from gpg_repro.published import folder as published_folder
from gpg_repro.site.kernels import forked_kernels, start_server

State = Literal["shown", "no records", "failed", "not run"]

TRAINING = ("00_start_here", "05_your_own_task")
"""Notebooks that train a model for minutes whatever is committed: shown with their code, not run."""
_SLOW_FIRST = (
    *("table_02", "02_alpha_and_std_dynamics", "table_06", "table_01", "03_paper_audit"),
    *("01_objective_by_hand", "04_claims"),
)
"""In this order. Table 2 makes the smoke base, which 01 trains, and asks the trainers, whose answers 04 reads: the two
come when it is done, and do not wait for it."""
_IPYTHON_CONFIG = """\
c = get_config()  # noqa: F821
c.InlineBackend.figure_formats = {"svg"}
c.InlineBackend.print_figure_kwargs = {"bbox_inches": None}  # figures are laid out already; trimming draws them twice
"""


@dataclass(frozen=True)
class Executed:
    """A notebook as it will be shown."""

    name: str
    """File name without its ending."""
    copy: Path
    """The executed copy; the source where it was not run."""
    files: Path
    """Folder of the files it wrote (``tables/<scale>/``, ``figures/<scale>/``)."""
    state: State
    message: str = ""
    """What went wrong, for people."""
    seconds: float = 0.0
    reused: bool = False


def execute(
    sources: Sequence[Path],
    work: Path,
    *,
    scale: str,
    seeds: int,
    jobs: int,
    root: Path = ROOT,
    report: Callable[[Executed], None] = lambda _: None,
) -> list[Executed]:
    """Run notebooks side by side, or find copies that still stand.

    Args:
        sources: notebooks; those named in ``TRAINING`` are not run.
        work: where executed copies, the files notebooks write and fingerprints are kept.
        seeds: 0 shows committed records only, whatever a notebook would do without them; above, notebooks train.
        jobs: notebooks at a time, each in a kernel process of its own.
        root: the checkout whose code and records a copy depends on.
        report: called with each notebook as it is done.

    Returns:
        One entry per source, in order.
    """
    results = work / "results"
    _write_ipython_config(work / "ipython")
    common = _common_fingerprint(root, scale)
    done: dict[str, Executed] = {}
    waiting: dict[str, tuple[Path, str]] = {}
    for source in sources:
        name = source.stem
        if name in TRAINING:
            done[name] = Executed(name, source, results / name, "not run", "It trains a model; run it yourself.")
            report(done[name])
            continue
        own = _digest([common, source.read_bytes(), f"{scale} {seeds}".encode()])
        # Trainings made here change while no file of the checkout does, so such a copy is never kept.
        if seeds == 0 and (kept := _kept(work, name, own)):
            done[name] = kept
            report(kept)
        else:
            waiting[name] = (source, own)
    order = [name for name in _SLOW_FIRST if name in waiting] + sorted(waiting.keys() - set(_SLOW_FIRST))
    if order:
        start_server(_environment(work))  # it imports while this process does
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        running = {pool.submit(_run, waiting[name][0], work, scale, seeds): name for name in order}
        for future in as_completed(running):
            entry = future.result()
            done[entry.name] = entry
            _keep(work, entry, waiting[entry.name][1])
            report(entry)
    return [done[source.stem] for source in sources]


def _run(source: Path, work: Path, scale: str, seeds: int) -> Executed:
    """Run one notebook; what went wrong is part of the answer."""
    from gpg_repro import notebooks

    copy, log = work / "notebooks" / source.name, work / "logs" / f"{source.stem}.log"
    files = work / "results" / source.stem
    for stale in (copy, log):
        stale.unlink(missing_ok=True)
    shutil.rmtree(files, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = _environment(work)
    if seeds == 0:  # what this notebook writes is told from what others write
        environment |= {RECORDS_ONLY: "1", "GPG_RESULTS": str(files)}
    state: State = "shown"
    message, began = "", time.monotonic()
    try:
        declared = notebooks.declared_parameters(source)
        parameters = {k: v for k, v in {"SCALE": scale, "SEEDS": seeds}.items() if k in declared}
        notebooks.run(source, parameters, copy, stream=False, kernels=forked_kernels(environment, log))
    except UserError as error:
        state, message = "failed", str(error).split("\n(executed notebook:")[0]
        if _error_name(copy) == NoRecords.__name__:
            state = "no records"
    except Exception as error:  # a bug in a notebook costs its page, not the site
        with log.open("a", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
        state, message = "failed", _error_text(copy) or f"{type(error).__name__}: {error}"
    shown = copy if copy.exists() else source
    return Executed(source.stem, shown, files, state, message, time.monotonic() - began)


def _environment(work: Path) -> dict[str, str]:
    return {"IPYTHONDIR": str(work / "ipython"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _errors(copy: Path) -> Iterator[dict[str, Any]]:
    if copy.exists():
        for cell in json.loads(copy.read_text(encoding="utf-8"))["cells"]:
            yield from (output for output in cell.get("outputs", []) if output["output_type"] == "error")


def _error_name(copy: Path) -> str | None:
    return next((output["ename"] for output in _errors(copy)), None)


def _error_text(copy: Path) -> str | None:
    return next((f"{output['ename']}: {output['evalue']}" for output in _errors(copy)), None)


def _write_ipython_config(folder: Path) -> None:
    """A profile of the site's own: plots as SVG, and nothing of the user's own start-up files."""
    profile = folder / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(_IPYTHON_CONFIG, encoding="utf-8")


# --- What a copy depends on ------------------------------------------------------------------------------------------


def _common_fingerprint(root: Path, scale: str) -> bytes:
    """Code of both packages (this one's site apart), published numbers, committed records, installed packages."""
    data = [
        *sorted(published_folder().glob("*.json")),
        *sorted((root / "results" / "reference" / scale).rglob("*.json*")),
    ]
    files = fingerprints.contents([*fingerprints.code(root), *data], root)
    return _digest([*files, *fingerprints.packages()]).encode()


def _digest(parts: Iterable[bytes]) -> str:
    return fingerprints.digest([_IPYTHON_CONFIG.encode(), *parts])


def _keep(work: Path, entry: Executed, own: str) -> None:
    """Note what a copy was made from; one that failed is made anew next time."""
    note = work / "notebooks" / f"{entry.name}.json"
    note.unlink(missing_ok=True)
    if entry.state in ("shown", "no records") and entry.copy.parent == note.parent:
        fields = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(entry).items()}
        note.write_text(json.dumps({"fingerprint": own, **fields}), encoding="utf-8")


def _kept(work: Path, name: str, own: str) -> Executed | None:
    note, copy = (work / "notebooks" / f"{name}.{suffix}" for suffix in ("json", "ipynb"))
    if not (note.exists() and copy.exists()):
        return None
    fields = json.loads(note.read_text(encoding="utf-8"))
    if fields.pop("fingerprint") != own:
        return None
    return Executed(**{**fields, "copy": copy, "files": work / "results" / name, "reused": True})
