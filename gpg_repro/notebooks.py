"""Run notebooks: ``python -m gpg_repro.notebooks run NOTEBOOK --parameters SCALE=smoke`` and ``prepare`` for tests.

papermill only warns about an unknown parameter; here it is an error. Notebooks run in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from eval_harness import private
from eval_harness.errors import UserError, disk_told, unknown
from eval_harness.inputs import parse_yaml
from eval_harness.markup import shown_streams
from eval_harness.progress import TEXT_PROGRESS
from gpg_repro.paths import results

_PICTURES = ("image/png", "image/jpeg")


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names a notebook declares in its parameters cell.

    Raises:
        UserError: no such notebook, or it has no parameters cell.
    """
    import papermill

    if not notebook.exists():
        known = sorted(p.stem for p in notebook.parent.glob("*.ipynb"))
        raise UserError(f"notebook {notebook} does not exist. There are: {', '.join(known) or 'none'}.")
    declared = papermill.inspect_notebook(str(notebook))
    if not declared:
        raise UserError(f"notebook {notebook} has no cell tagged 'parameters'.")
    return declared


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters the notebook does not declare."""
    declared = declared_parameters(notebook)
    for name in parameters:
        if name not in declared:
            raise unknown(f"parameter of {notebook.name}", name, declared)


def run(
    notebook: Path,
    parameters: dict[str, Any],
    out: Path | None = None,
    *,
    stream: bool = True,
    kernels: type | None = None,
) -> Path:
    """Execute a notebook with papermill; the executed copy is kept, also when a cell fails.

    Args:
        stream: print the notebook's output as it comes.
        kernels: class of jupyter's kernel manager; None is its own.

    Raises:
        UserError: unknown notebook or parameter, or a UserError raised in a cell.
    """
    import papermill

    check_parameters(notebook, parameters)
    os.environ.setdefault(TEXT_PROGRESS, "1")  # inherited by the kernel: a terminal is watching
    scale = parameters.get("SCALE", "tiny")
    out = out or results() / "notebooks" / str(scale) / notebook.name
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(out),
            parameters=parameters,
            kernel_name="python3",
            log_output=stream,
            progress_bar=False,
            **({"stdout_file": sys.stdout, "stderr_file": sys.stderr} if stream else {}),
            **({"kernel_manager_class": kernels} if kernels else {}),
        )
    except papermill.PapermillExecutionError as error:
        if error.ename in ("UserError", "NoRecords", "EngineError"):
            raise UserError(f"{error.evalue}\n(executed notebook: {out})") from None
        raise
    finally:
        if out.exists():
            _clean(out)
    return out


def _clean(path: Path) -> None:
    """Take out of an executed notebook what is private, and progress bars: they were for the terminal, and bury the
    results."""
    import nbformat

    widget = "application/vnd.jupyter.widget-view+json"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and widget not in output.get("data", {})
            ]
            cell.outputs = [nbformat.from_dict(_without_private(output)) for output in cell.outputs]
            if "injected-parameters" in cell.metadata.get("tags", ()):
                cell.source = private.hide(cell.source)
    notebook.metadata = nbformat.from_dict(private.hidden(notebook.metadata))
    nbformat.write(notebook, path)


def _without_private(output: dict[str, Any]) -> dict[str, Any]:
    """An output without what is private; pictures stay as they are."""
    pictures = {kind: data for kind, data in output.get("data", {}).items() if kind in _PICTURES}
    cleaned = private.hidden({**output, **({"data": {}} if pictures else {})})
    if pictures:
        others = {kind: data for kind, data in output["data"].items() if kind not in _PICTURES}
        cleaned["data"] = private.hidden(others) | pictures
    return cleaned


def prepare(
    scale: str,
    out: Path,
    source: Path = Path("notebooks"),
    *,
    engine: str = "auto",
    auto: Collection[str] = (),
) -> list[Path]:
    """Copies of all notebooks with their parameters set to a scale, for nbval.

    Args:
        engine: for notebooks that have a parameter ENGINE.
        auto: names, without ending, of notebooks that choose their engine themselves whatever ``engine`` is.

    Raises:
        UserError: a name of ``auto`` is no notebook.
    """
    import nbformat
    import papermill
    from papermill.parameterize import parameterize_notebook

    for name in auto:
        if not (source / f"{name}.ipynb").exists():
            raise unknown("notebook", name, [path.stem for path in sorted(source.glob("*.ipynb"))])
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(source.glob("*.ipynb")):
        notebook = papermill.iorw.load_notebook_node(str(path))
        given = {"SCALE": scale, "ENGINE": "auto" if path.stem in auto else engine}
        values = {name: given[name] for name in declared_parameters(path) if name in given}
        nbformat.write(
            parameterize_notebook(notebook, values, kernel_name="python3", language="python"), out / path.name
        )
        written.append(out / path.name)
    return written


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gpg_repro.notebooks")
    commands = parser.add_subparsers(dest="command", required=True)
    execute = commands.add_parser("run", help="execute a notebook")
    execute.add_argument("notebook", type=Path)
    execute.add_argument("--out", type=Path)
    execute.add_argument("--parameters", nargs="*", default=[], metavar="NAME=value")
    copies = commands.add_parser("prepare", help="write copies at a scale, for nbval")
    copies.add_argument("--scale", default="smoke")
    copies.add_argument("--out", type=Path, required=True)
    copies.add_argument("--engine", default="auto")
    copies.add_argument("--auto", nargs="*", default=[], metavar="NAME", help="notebooks that keep ENGINE=auto")
    args = parser.parse_args(argv)
    try:
        if args.command == "prepare":
            for path in prepare(args.scale, args.out, engine=args.engine, auto=args.auto):
                print(path)
            return 0
        parameters = {}
        for pair in args.parameters:
            name, separator, value = pair.partition("=")
            if not separator:
                raise UserError(f"parameter {pair!r}: expected NAME=value.")
            try:
                parameters[name] = parse_yaml(value)
            except ValueError as error:
                raise UserError(f"parameter {pair!r}: the value is not valid YAML ({error}).") from None
        with disk_told(args.out or results(), verb="read or write"):
            print(f"executed notebook: {run(args.notebook, parameters, args.out)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
