"""Notebooks, executed side by side from committed records; a copy is kept until something it depends on changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from eval_harness.errors import UserError
from gpg_repro.committed import RECORDS_ONLY, NoRecords
from gpg_repro.paths import ROOT
from gpg_repro.published import folder as published_folder

State = Literal["shown", "no records", "failed", "not run"]

TRAINING = ("00_start_here", "05_your_own_task")
"""Notebooks that train a model for minutes whatever is committed: shown with their code, not run."""
_SLOW_FIRST = ("table_06", "table_07", "table_08", "table_05", "table_02")
_IPYTHON_CONFIG = 'c = get_config()  # noqa: F821\nc.InlineBackend.figure_formats = {"svg"}\n'


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
    """Run notebooks in separate processes, or find copies that still stand.

    Args:
        sources: notebooks; those named in ``TRAINING`` are not run.
        work: where executed copies, the files notebooks write and fingerprints are kept.
        seeds: 0 shows committed records only, whatever a notebook would do without them; above, notebooks train.
        jobs: notebooks at a time.
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
    order = sorted(waiting, key=lambda name: (name not in _SLOW_FIRST, name))
    if order:
        with _pool(min(jobs, len(order)), work, seeds) as pool:
            running = {
                pool.submit(_run, str(waiting[name][0]), str(work), scale, seeds): (name, waiting[name][1])
                for name in order
            }
            for future in as_completed(running):
                name, own = running[future]
                done[name] = Executed(**future.result())
                _keep(work, done[name], own)
                report(done[name])
    return [done[source.stem] for source in sources]


def _pool(jobs: int, work: Path, seeds: int) -> ProcessPoolExecutor:
    """Processes of their own: papermill's event loops and a changed environment stay out of ours."""
    environment = {"IPYTHONDIR": str(work / "ipython"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if seeds == 0:
        environment[RECORDS_ONLY] = "1"
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_prepare, initargs=(environment,))


def _prepare(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def _run(source: str, work: str, scale: str, seeds: int) -> dict[str, Any]:
    """Run one notebook in this process's kernel; what went wrong is returned, not raised."""
    from gpg_repro import notebooks

    path, folder = Path(source), Path(work)
    copy, log = folder / "notebooks" / path.name, folder / "logs" / f"{path.stem}.log"
    files = folder / "results" / path.stem
    for stale in (copy, log):
        stale.unlink(missing_ok=True)
    shutil.rmtree(files, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    if seeds == 0:
        os.environ["GPG_RESULTS"] = str(files)  # what this notebook writes is told from what others write
    state: State = "shown"
    message, began = "", time.monotonic()
    with _output_to(log):
        try:
            declared = notebooks.declared_parameters(path)
            wanted = {"SCALE": scale, "SEEDS": seeds}
            notebooks.run(path, {name: value for name, value in wanted.items() if name in declared}, copy)
        except UserError as error:
            missing = isinstance(error, NoRecords) or _error_name(copy) == NoRecords.__name__
            state, message = ("no records" if missing else "failed"), str(error).split("\n(executed notebook:")[0]
        except Exception as error:  # a bug in a notebook costs its page, not the site
            traceback.print_exc(file=sys.stderr)
            state, message = "failed", _error_text(copy) or f"{type(error).__name__}: {error}"
    return {
        "name": path.stem,
        "copy": copy if copy.exists() else path,
        "files": files,
        "state": state,
        "message": message,
        "seconds": time.monotonic() - began,
    }


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Everything this process and the kernels it starts print goes to a file."""
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("w", encoding="utf-8") as stream:
        try:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
            yield
        finally:
            for number, before in zip((1, 2), kept, strict=True):
                (sys.stdout, sys.stderr)[number - 1].flush()
                os.dup2(before, number)
                os.close(before)


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
    code = [
        path
        for package in ("gpg_repro", "eval_harness")
        for path in sorted((root / package).rglob("*"))
        if path.suffix in (".py", ".yaml", ".json") and root / "gpg_repro" / "site" not in path.parents
    ]
    data = [
        *sorted(published_folder().glob("*.json")),
        *sorted((root / "results" / "reference" / scale).rglob("*.json*")),
    ]
    return _digest([*_contents(code, root), *_contents(data, root), *_packages(), sys.version.encode()]).encode()


def _contents(paths: Iterable[Path], root: Path) -> Iterator[bytes]:
    for path in paths:
        yield str(path.relative_to(root) if path.is_relative_to(root) else path.name).encode()
        yield path.read_bytes()


@cache
def _packages() -> tuple[bytes, ...]:
    return tuple(sorted({f"{found.name} {found.version}".encode() for found in metadata.distributions()}))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(_IPYTHON_CONFIG.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


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
