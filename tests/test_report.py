"""The report without a browser: cells that know what is behind them, notebooks run and kept, pages free of paths.

What a reader sees is tested in test_report_browser.py.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from eval_harness.errors import UserError
from gpg_repro.__main__ import main
from gpg_repro.committed import RECORDS_ONLY, NoRecords
from gpg_repro.tables import get_table
from gpg_repro.tables.printed import implied_count
from gpg_repro.tables.report import build_table
from gpg_repro.tables.runs import REFERENCE, recipe_trainings, run_table
from gpg_repro.tables.shown import Cell, explained, shown, to_html

ROOT = Path(__file__).resolve().parent.parent


class Cells(HTMLParser):
    """The cells of a table: [tag, attributes, text], row by row."""

    def __init__(self, markup: str):
        super().__init__()
        self.rows: list[list[list]] = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1][2] += data


# --- Cells -----------------------------------------------------------------------------------------------------------


def test_a_cell_carries_its_number_details_and_runs():
    cell = Cell("48.4 [44.1, 52.7]", 48.4, (("items", "500"), ("note", 'a "b" <c>')), ("run-1", "run-2"))
    frame = shown([{("ours", "Average"): cell, ("ours", "n"): "1 × 500"}], pd.Index(["GPG & co"], name="row"))
    assert frame.loc["GPG & co", ("ours", "Average")] == "48.4 [44.1, 52.7]" and isinstance(frame.iloc[0, 0], str)
    top, foot, body = Cells(to_html(frame)).rows
    assert top[1] == ["th", {"scope": "colgroup", "colspan": "2"}, "ours"]
    assert [text for _, _, text in foot] == ["row", "Average", "n"]
    assert body[0][::2] == ["th", "GPG & co"]
    assert body[1][1] == {"data-sort": "48.4", "title": 'items: 500\nnote: a "b" <c>', "data-runs": "run-1 run-2"}
    assert body[2] == ["td", {}, "1 × 500"]
    assert to_html(frame) == frame._repr_html_()


def test_headings_merge_only_under_one_parent():
    columns = pd.MultiIndex.from_tuples([("a", "x", "1"), ("a", "x", "2"), ("b", "x", "1")])
    rows = Cells(to_html(pd.DataFrame([[1, 2, 3]], columns=columns))).rows
    assert [(cell[2], cell[1].get("colspan")) for cell in rows[1]][1:] == [("x", "2"), ("x", None)]


def test_what_is_computed_from_a_shown_frame_has_no_cells():
    frame = shown([{"a": Cell("1", 1.0)}, {"a": Cell("2", 2.0)}], pd.Index(["x", "y"]))
    reversed_ = frame.iloc[::-1]  # the places of the cells would be wrong here
    assert type(reversed_) is pd.DataFrame and "data-sort" not in to_html(reversed_)


def test_explained_numbers_stay_numbers():
    frame = explained(pd.DataFrame({"low": [0.25], "n": [3]}), [((("steps", "180"),), ("run-1",))])
    assert frame["low"].sum() == 0.25
    low, n = Cells(to_html(frame)).rows[1][1:]
    assert low == ["td", {"data-sort": "0.25", "title": "steps: 180", "data-runs": "run-1"}, "0.250"]
    assert n == ["td", {}, "3"]


def test_implied_count():
    # 43.3 % of 30 is 13 (43.33); Wilson, z = 1.96: centre (13 + 1.92) / 33.84 = 0.4409, half width 0.1666
    count, low, high = implied_count(43.3, 30)
    assert count == 13 and low == pytest.approx(27.4, abs=0.05) and high == pytest.approx(60.8, abs=0.05)
    assert implied_count(28.8, 30) == (None, None, None)  # 8/30 is 26.7, 9/30 is 30.0


def test_cells_of_a_table_agree_with_its_records(tmp_path):
    report = build_table(3, "tiny", results=tmp_path, progress=False)
    markup = (tmp_path / "tables" / "tiny" / "table03.html").read_text(encoding="utf-8")
    rows = Cells(markup).rows
    foot = [cell[2] for cell in rows[1]]
    body = next(row for row in rows if row[0][2] == "GPG on tiny_s1")
    sums = body[foot.index("Tiny Sums")]
    stored = [
        json.loads((REFERENCE / "tiny" / "table3_gpg_rs1" / f"seed{k}" / "run.json").read_text()) for k in (0, 1, 2)
    ]
    means = [run["benchmarks"]["tiny_sums"]["score"]["mean"] for run in stored]
    assert float(sums[1]["data-sort"]) == pytest.approx(100 * sum(means) / 3)
    assert sums[1]["data-runs"].split() == [run["run_id"] for run in stored]
    assert "items: 100\ncompletions: 300\ntraining seeds: 3\n" in sums[1]["title"]
    assert f"single seeds: {100 * min(means):.1f} to {100 * max(means):.1f}" in sums[1]["title"]
    assert f"code: {stored[0]['environment']['commit'][:10]}" in sums[1]["title"]
    assert re.search(r"95 % over items: (\[[\d., ]+\])", sums[1]["title"])[1] in sums[2]
    printed = body[foot.index("AIME24")]
    assert printed[1]["title"].startswith("printed in: paper v3, Table 3\nitems: 30\ncount: 10 of 30\n95 %")
    with (tmp_path / "tables" / "tiny" / "table03.csv").open(encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if (line["row"], line["column"]) == ("gpg_rs1", "tiny_sums")]
    assert {line["runs"] for line in lines} == {sums[1]["data-runs"]}
    comparison = next(
        cell for row in Cells(to_html(report.comparisons())).rows for cell in row if "data-runs" in cell[1]
    )
    assert "paired on: 500 items" in comparison[1]["title"]


# --- Nothing is trained on the way -----------------------------------------------------------------------------------


def test_records_only(monkeypatch, tmp_path):
    monkeypatch.setenv(RECORDS_ONLY, "1")
    monkeypatch.setattr("gpg_repro.train.base_model", lambda *_: pytest.fail("a base was made"))
    with pytest.raises(NoRecords, match="Table 3 at scale tiny"):
        run_table(get_table(3), "tiny", results=tmp_path)
    with pytest.raises(NoRecords, match="Table 3 at scale paper"):
        run_table(get_table(3), "paper", results=tmp_path)
    with pytest.raises(NoRecords, match="table3_gpg_rs1 at scale smoke"):
        recipe_trainings("table3_gpg_rs1", "smoke", results=tmp_path)
    from gpg_repro.recipe import load_recipe
    from gpg_repro.train import train

    with pytest.raises(NoRecords, match="table3_gpg_rs1"):
        train(load_recipe("table3_gpg_rs1", scale="smoke"), root=tmp_path)
    committed, origin = recipe_trainings("table3_gpg_rs1", "tiny", results=tmp_path)
    assert origin == "committed records" and sorted(committed) == [0, 1, 2]


# --- A site of hand-made notebooks -----------------------------------------------------------------------------------

pytest.importorskip("myst_nb", reason="the tools of the report are not installed")

from gpg_repro.site import execute as execution  # noqa: E402
from gpg_repro.site import pages  # noqa: E402
from gpg_repro.site.build import build_site, machine_paths  # noqa: E402
from gpg_repro.site.mathml import mathml  # noqa: E402


def _notebook(folder: Path, name: str, *cells: str, title: str) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell("SCALE = 'tiny'\nSEEDS = 1", metadata={"tags": ["parameters"]})
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# {title}\n\nAbout $\\frac12$ of it."),
        parameters,
        *(nbformat.v4.new_code_cell(cell) for cell in cells),
    ]
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """A checkout of three notebooks, its site, and what it was told on the way."""
    root = tmp_path_factory.mktemp("mini")
    (root / "notebooks").mkdir()
    (root / "docs").mkdir()
    (root / "docs" / "guide.md").write_text("# Guide\n\nSee [the readme](../README.md) and [data](../data.csv).\n")
    (root / "README.md").write_text("# Mini\n\n[Guide](docs/guide.md)\n")
    (root / "data.csv").write_text("a,b\n1,2\n")
    run_id = json.loads((REFERENCE / "tiny" / "table3_gpg_rs1" / "seed0" / "run.json").read_text())["run_id"]
    _notebook(
        root,
        "table_31",
        "import os\nimport gpg_repro\nimport pandas as pd\n"
        "print(gpg_repro.__file__, os.environ['GPG_RESULTS'], SCALE, SEEDS)\n"
        "from pathlib import Path\n"
        "folder = Path(os.environ['GPG_RESULTS']) / 'figures' / SCALE\n"
        "folder.mkdir(parents=True)\n"
        "for name in ('table31.csv', 'table31.html', 'viewer.html'):\n"
        "    (folder / name).write_text('x')\n"
        "import matplotlib.pyplot as plt\n"
        "plt.plot([0, 1])\n"
        f"pd.DataFrame({{'run': [{run_id!r}], 'x': ['5 [4, 6]']}})",
        title="Table 31 · one that works",
    )
    _notebook(root, "table_32", "print('before')", "1 / 0", "print('after')", title="Table 32 · one that fails")
    _notebook(
        root,
        "table_33",
        "from gpg_repro.committed import refuse_work\nrefuse_work('Table 33')\nraise SystemError('it went on')",
        title="Table 33 · one without records",
    )
    return root, build_site(root / "site", root=root, progress=False)


def _page(site, name: str) -> str:
    return (site.out / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.full("executed notebooks")
def test_states_of_notebooks(mini):
    _, site = mini
    assert {entry.name: entry.state for entry in site.notebooks} == {
        "table_31": "shown",
        "table_32": "failed",
        "table_33": "no records",
    }
    assert [entry.message for entry in site.failed] == ["ZeroDivisionError: division by zero"]
    assert not site.warnings
    failed, without = _page(site, "notebooks/table_32"), _page(site, "notebooks/table_33")
    assert "This notebook failed" in failed and "division by zero" in failed and ">before" in failed
    assert "Traceback" not in failed and ">after" not in failed
    assert "No records of this are committed yet" in without and "This notebook failed" not in without
    front = _page(site, "index")
    assert "Notebooks that failed" in front and "no records yet" in front and "is a miniature, not the paper" in front


@pytest.mark.full("executed notebooks")
def test_a_page_shows_outputs_parameters_and_links(mini):
    root, site = mini
    page = _page(site, "notebooks/table_31")
    # The checkout and the work folder go by other names.
    assert "./gpg_repro/__init__.py build/results/table_31 tiny 0" in page
    (plot,) = re.findall(r'src="\.\./(_images/[^"]+\.svg)"', page)  # shown by the kernel, whatever was imported before
    assert "<svg" in (site.out / plot).read_text(encoding="utf-8")
    assert re.search(r'<td><a href="../runs.html#([^"]+)">\1</a></td>', page)
    assert "<mfrac><mn>1</mn><mn>2</mn></mfrac>" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=.(https?:)?//", page)
    assert sorted(path.name for path in (site.out / "files" / "table_31").iterdir()) == ["table31.csv", "viewer.html"]
    assert 'href="../files/table_31/viewer.html">viewer.html' in page
    assert 'href="../files/table_31/table31.csv" download>' in page
    assert "Show the source" in page and "scale tiny: a miniature" in page
    guide = _page(site, "docs/guide")
    assert 'href="../README.html"' in guide and re.search(r'href="(\.\./_downloads/[^"]+/data\.csv)"', guide)


@pytest.mark.full("executed notebooks")
def test_runs_page_counts_what_is_committed(mini):
    _, site = mini
    page = _page(site, "runs")
    stored = [json.loads(path.read_text()) for path in (REFERENCE / "tiny").rglob("run.json")]
    evaluations = [run for run in stored if run["kind"] == "evaluation"]
    assert f"Evaluations ({len(evaluations)})" in page
    assert f"Trainings ({len(stored) - len(evaluations)})" in page
    assert all(f'id="{run["run_id"]}"' in page for run in stored)
    asked = sum(result["asked"] for run in evaluations for result in run["benchmarks"].values())
    assert f"{asked:,} graded completions" in _page(site, "index")


@pytest.mark.full("executed notebooks")
def test_no_path_of_the_machine(mini):
    root, site = mini
    known = [str(root), str(ROOT), str(Path.home()) + "/"]
    assert list(machine_paths(site.out, known)) == []
    leak = site.out / "leak.html"
    leak.write_text(f"<p>{root}/x</p>")
    try:
        assert list(machine_paths(site.out, known)) == [f"leak.html: {root}"]
    finally:
        leak.unlink()


@pytest.mark.full("executed notebooks")
def test_copies_are_kept_until_something_changes(mini):
    root, site = mini
    work, notebooks = site.out.with_name("site_work"), root / "notebooks"
    options = {"scale": "tiny", "seeds": 0, "jobs": 1, "root": root}
    sound = [notebooks / "table_31.ipynb", notebooks / "table_33.ipynb"]
    again = execution.execute(sound, work, **options)
    assert [(entry.state, entry.reused) for entry in again] == [("shown", True), ("no records", True)]
    common = execution._common_fingerprint(root, "tiny")
    own = execution._digest([common, sound[0].read_bytes(), b"tiny 0"])
    assert execution._kept(work, "table_31", own) is not None
    assert execution._kept(work, "table_32", execution._digest([common, b"", b"tiny 0"])) is None  # it failed
    assert execution._kept(work, "table_31", execution._digest([common, b"other", b"tiny 0"])) is None


def test_what_a_copy_depends_on(tmp_path):
    def digest() -> bytes:
        return execution._common_fingerprint(tmp_path, "tiny")

    for name in ("gpg_repro/a.py", "eval_harness/b.yaml", "results/reference/tiny/r/run.json", "gpg_repro/site/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
        before = digest()
        (tmp_path / name).write_text("2")
        assert (digest() == before) == ("site" in name), name
    before = digest()
    (tmp_path / "gpg_repro/a.py").rename(tmp_path / "gpg_repro/z.py")
    assert digest() != before


def test_formulas():
    assert "<mfrac><mrow><mi>B</mi></mrow><mrow><mi>B</mi>" in mathml(r"\frac{B}{B-M}")
    assert 'display="block"' in mathml("x", block=True)
    assert mathml(r"\nosuchcommand x < 1") == r"<code>\nosuchcommand x &lt; 1</code>"


def test_only_ids_of_known_runs_become_links():
    markup = pages.link_runs("<td>run-1</td><td>run-2</td><td class='x'>a run-1</td>", {"run-1"})
    assert markup == "<td><a href=\"../runs.html#run-1\">run-1</a></td><td>run-2</td><td class='x'>a run-1</td>"


def test_bad_requests(tmp_path, capsys):
    with pytest.raises(UserError, match="did you mean 'table_03'"):
        build_site(tmp_path / "out", only=["table_3"])
    assert main(["report", "--scale", "tny", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
    with pytest.raises(UserError, match="there are none here"):
        build_site(tmp_path / "out", root=tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds no site"):
        build_site(tmp_path / "mine", only=["table_03"])
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.full("a process that imports everything")
def test_what_kernels_are_forked_from():
    """It has no thread of its own, nothing that takes long and serves few, and nothing that needs to see its kernel."""
    left_out = ("trl", "transformers", "vllm", "matplotlib_inline.backend_inline", "IPython.core.pylabtools")
    script = (
        "import sys, threading, gpg_repro.site.preloaded\n"
        f"print([name for name in {left_out} if name in sys.modules], threading.active_count(), 'torch' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (made.stdout, made.stderr) == ("[] 1 True\n", "")


def test_kernels_may_start_from_several_threads(monkeypatch):
    """Each start sets a variable of the whole process for a moment; without turns, one takes away what another set."""
    import os
    import threading
    import time

    from gpg_repro.site import kernels

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(kernels.forkserver, "ensure_running", lambda: time.sleep(0.02))
    errors = []

    def start() -> None:
        try:
            kernels.start_server({"OMP_NUM_THREADS": "1"})
        except KeyError as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and "OMP_NUM_THREADS" not in os.environ
