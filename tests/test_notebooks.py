"""The notebook runner: refuses what papermill only warns about; notebooks are thin and clean."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from eval_harness.errors import UserError
from gpg_repro import notebooks

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
ALL = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_thin_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    assert "SCALE" in notebooks.declared_parameters(path)


def _notebook(path: Path, source: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell("SCALE = 'tiny'\nN = 1", metadata={"tags": ["parameters"]})
    notebook.cells = [parameters, nbformat.v4.new_code_cell(source)]
    nbformat.write(notebook, path)
    return path


def test_runs_with_parameters(tmp_path):
    out = notebooks.run(
        _notebook(tmp_path / "a.ipynb", "print(SCALE, N + 1)"), {"SCALE": "smoke", "N": 41}, tmp_path / "out.ipynb"
    )
    assert "smoke 42" in out.read_text(encoding="utf-8")


def test_progress_is_for_the_terminal_only(tmp_path):
    source = "import sys\nprint('50%|', file=sys.stderr)\nprint('kept')"
    out = notebooks.run(_notebook(tmp_path / "a.ipynb", source), {}, tmp_path / "out.ipynb")
    assert "kept" in out.read_text(encoding="utf-8") and "50%|\\n" not in out.read_text(encoding="utf-8")


def test_undeclared_parameters_and_missing_notebooks_are_refused(tmp_path):
    path = _notebook(tmp_path / "a.ipynb", "pass")
    with pytest.raises(UserError, match="did you mean 'SCALE'"):
        notebooks.run(path, {"SCAEL": "smoke"}, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()
    with pytest.raises(UserError, match="There are: a"):
        notebooks.run(tmp_path / "b.ipynb", {})
    assert notebooks.main(["run", str(path), "--parameters", "SCALE"]) == 2


def test_a_users_mistake_in_a_cell_is_told_without_a_traceback(tmp_path, capsys):
    path = _notebook(
        tmp_path / "a.ipynb", "from eval_harness.errors import UserError\nraise UserError('no such thing')"
    )
    assert notebooks.main(["run", str(path), "--out", str(tmp_path / "out.ipynb")]) == 2
    err = capsys.readouterr().err
    assert "error: no such thing" in err and (tmp_path / "out.ipynb").exists()


def test_prepare_sets_the_scale(tmp_path):
    written = notebooks.prepare("smoke", tmp_path, FOLDER)
    assert [p.name for p in written] == [p.name for p in ALL]
    for path in written:
        text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        assert 'SCALE = "smoke"' in text


def test_prepare_sets_the_engine_of_all_but_those_named(tmp_path):
    notebooks.prepare("smoke", tmp_path, FOLDER, engine="transformers", auto=["table_03"])
    for name, engine in (("table_03", "auto"), ("table_04", "transformers"), ("01_objective_by_hand", None)):
        assert notebooks.declared_parameters(tmp_path / f"{name}.ipynb").get("ENGINE") is not None or engine is None
        cells = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells
        injected = next(cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", []))
        assert (f'ENGINE = "{engine}"' in injected.source) == (engine is not None)
    with pytest.raises(UserError, match="unknown notebook 'table_3'"):
        notebooks.prepare("smoke", tmp_path, FOLDER, auto=["table_3"])
