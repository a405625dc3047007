"""Pages made of records whose every text is hostile, in a real browser: no script of theirs runs, nothing is asked for.

The pages are those that people open: the site, a gallery, a viewer, the file of a table, a notebook's outputs. A canary
script in each text sets a flag, calls alert() and asks a host that a page must not ask.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from browsing import chromium, served
from hostile_records import TEXTS, hostile, hostile_run
from IPython.core.formatters import format_display_data
from IPython.display import Markdown
from PIL import Image

from eval_harness import compare, records
from eval_harness.benchmarks import get_benchmark
from eval_harness.markup import markdown_table
from gpg_repro import gallery, viewer
from gpg_repro.site import pages
from gpg_repro.site.build import run_sphinx
from gpg_repro.site.execute import Executed
from gpg_repro.site.mathml import mathml
from gpg_repro.tables.files import write_report
from gpg_repro.tables.numbers import code_of
from gpg_repro.tables.shown import Cell, shown, to_html

pytestmark = [pytest.mark.full("a browser over pages of hostile records"), pytest.mark.needs("chromium")]
NAMES = ("a", "b")


STEALING = "".join(
    f"```{{include}} {up}secret.txt\n```\n\n![x]({up}secret.png)\n\n{{download}}`{up}secret.txt`\n\n"
    f"```{{literalinclude}} {up}secret.txt\n```\n\n```{{raw}} html\n:file: {up}secret.txt\n```\n\n"
    for up in ("../", "../../")
)
"""Takes a file beside the sources, from a page of theirs and from a notebook's."""


def _frame(run: records.RunRecord) -> pd.DataFrame:
    """What tables show of a run: text, details, ids."""
    cell = Cell(hostile("cell"), 1.0, ((hostile("detail"), code_of(run)),), (run.run_id,))
    return shown([{(hostile("top"), hostile("heading")): cell, ("x", "y"): hostile("plain")}],
                 pd.Index([hostile("label")], name=hostile("index")))  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of every page there is: built as the builders build them, from two hostile records."""
    root = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), "green").save(stream, "PNG")
        patch.setattr(
            type(get_benchmark("math500")), "image_reader", lambda self, data, image: lambda item: [stream.getvalue()]
        )
        folders = [hostile_run(root / "runs" / name, images=True) for name in NAMES]
        runs = [records.read_run(folder) for folder in folders]
        out = root / "served"
        both = viewer.side_by_side(*folders)
        viewer.write_page(both, out / "viewer.html")
        cards = gallery.build(
            {"math500": dict(zip((hostile("x"), hostile("y")), folders, strict=True))}, title=hostile()
        )
        cards.write(out / "gallery.html")
        found = compare.compare(*(compare.open_side(str(folder)) for folder in folders), resamples=99)
        written = compare.write(found, root / "comparison")
        frame = _frame(runs[0])
        notes = [compare.text(found), *found.notes]
        write_report("table", hostile("heading"), [(hostile("title"), frame)], notes, "tiny", frame, out)
        (out / "comparison.svg").write_bytes(next(p for p in written if p.suffix == ".svg").read_bytes())

        shown_by_notebook = {
            "gallery": cards,
            "frame": frame,
            "plain frame": pd.DataFrame({hostile("c"): [hostile("d")]}, index=[hostile("i")]),
            "notes": Markdown("\n".join(f"- {note}" for note in found.notes)),
            "text": Markdown(compare.text(found)),
            "table": Markdown(markdown_table(pd.DataFrame({hostile("c"): [hostile("d")]}))),
            "widget": viewer.viewer(both).card.value,
        }
        outputs = [format_display_data(value)[0] for value in shown_by_notebook.values()]
        outputs[-1] = {"text/html": outputs[-1]["text/plain"] and shown_by_notebook["widget"]}
        # Worse than ours: Markdown that was never made safe, and a kind of output that runs.
        worst = [{"text/markdown": hostile(), "application/javascript": "window.__pwned = 1"}]
        worst += [{"text/markdown": text, "text/plain": text} for text in (*TEXTS.values(), STEALING)]
        bare = "".join(output.get("text/html", "") for output in outputs)  # as a trusted notebook puts it, no policy
        (out / "bare.html").write_text(f"<!doctype html><meta charset='utf-8'><title>bare</title>{bare}", "utf-8")
        (out / "bare_table.html").write_text(f"<!doctype html><meta charset='utf-8'>{to_html(frame)}", "utf-8")
        warnings = _build_site(root, out / "site", folders, {"own": outputs, "worst": worst})
        assert not [line for line in warnings if "own.ipynb" in line]  # there was nothing to hold back
        assert not (root / "canary").exists()
    return out


def _build_site(root: Path, out: Path, folders: list[Path], notebooks: dict[str, list[dict]]) -> list[str]:
    sources, extra, files = root / "pages", root / "extra", root / "files"
    for folder in (sources, extra, files):
        folder.mkdir()
    (root / "secret.txt").write_text("SECRET OF THIS MACHINE")
    Image.new("RGB", (8, 8)).save(root / "secret.png")
    found = [pages.Record(folder, records.read_run(folder), hostile("place")) for folder in folders]
    parts, v4 = pages.Parts(), nbformat.v4
    about = pages.NotebookContext("tiny", 0, {one.run.run_id for one in found}, {})
    executed = {}
    for name, outputs in notebooks.items():
        cells = [v4.new_markdown_cell(f"# {name} · of hostile records")]
        cells += [v4.new_code_cell("x", outputs=[v4.new_output("display_data", data=data)]) for data in outputs]
        cells += [v4.new_code_cell("x", outputs=[v4.new_output("stream", text=hostile("printed"))])]
        copy = root / f"{name}.ipynb"
        nbformat.write(v4.new_notebook(cells=cells), copy)
        executed[name] = Executed(name, copy, files, "failed", hostile("message"))
        pages.write_notebook(executed[name], copy, sources, extra, about, parts)
    pages.write_runs(found, sources, "tiny", parts)
    # A page that takes texts as they are, which none of ours does: what the settings of the site hold back.
    (sources / "docs.md").write_text("\n\n".join(["# Page", STEALING, *TEXTS.values()]), encoding="utf-8")
    titles = {name: f"{name} · x" for name in executed}
    pages.write_front(executed, titles, ["docs"], found, sources, extra, parts, scale="tiny", made="today")
    return run_sphinx(sources, extra, parts, out, root / "doctrees", 1, {})


@pytest.fixture(scope="module")
def base(made) -> Iterator[str]:
    with served(made) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


PAGES = (
    "viewer.html", "gallery.html", "bare.html", "bare_table.html", "tables/tiny/table.html", "comparison.svg",
    "site/index.html", "site/runs.html", "site/notebooks/own.html", "site/notebooks/worst.html", "site/docs.html",
    "canary.html",
)  # fmt: skip
AS_IT_IS = ("site/notebooks/worst.html", "site/docs.html")
"""Pages that hold Markdown which nothing of ours would write: there a link is a link, and runs nothing."""
FLAG = "return window.__pwned ?? null"
OWN = ("data:image/png", "data:image/svg+xml", "blob:")
HANDLERS = """
const bad = /^on|^(href|src|action|formaction|xlink:href)=\\s*(javascript|data:text)/i;
return [...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).map(a => `${a.name}=${a.value}`)
  .filter(a => bad.test(a));
"""
LINKS = "return [...document.querySelectorAll('a')].filter(a => a.host.includes('canary')).map(a => a.href)"
ELEMENTS = """
return [...document.querySelectorAll('iframe, object, embed, base, meta[http-equiv=refresh], maction')]
  .map(e => e.outerHTML.slice(0, 80));
"""


def _watched(browser, address: str) -> dict[str, list[str]]:
    """What a page did: requests but for its own, dialogs, the flag; after every element was hovered and focused."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    browser.execute_script(
        """
        for (const e of document.querySelectorAll('*')) {
          for (const kind of ['mouseover', 'focus', 'pointerenter', 'error', 'load', 'begin'])
            e.dispatchEvent(new Event(kind));
          e.focus?.();
        }
        for (const e of document.querySelectorAll('details')) e.open = true;
        """
    )
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
        if message["method"] == "Page.javascriptDialogOpening":
            asked.append(f"dialog: {message['params']['message']}")
    base = address.rsplit("/", 1)[0].split("/site")[0].split("/tables")[0]
    return {
        "foreign": [url for url in asked if not url.startswith((base, *OWN))],
        "flag": [flag] if (flag := browser.execute_script(FLAG)) else [],
        "handlers": browser.execute_script(HANDLERS),
        "elements": browser.execute_script(ELEMENTS),
    }


def test_the_watch_sees_what_it_looks_for(made, base, browser):
    """The canary itself, on a page that does nothing against it."""
    (made / "canary.html").write_text(
        f"<!doctype html><title>x</title>{TEXTS['script']}{TEXTS['handler']}<iframe></iframe>".replace("alert(1); ", "")
    )
    seen = _watched(browser, f"{base}canary.html")
    assert all(seen.values()), seen
    assert any(url.startswith("http://canary.example") for url in seen["foreign"])


@pytest.mark.parametrize("page", [page for page in PAGES if page != "canary.html"])
def test_no_page_of_a_hostile_record_runs_or_asks_for_anything(page, made, base, browser):
    seen = _watched(browser, base + page)
    assert not any(seen.values()), seen
    if page not in AS_IT_IS:
        assert not browser.execute_script(LINKS)
    text = browser.execute_script("return document.documentElement.textContent")
    assert "window.__pwned" in text or page in ("site/index.html",)  # it is there, to be read
    assert "root:" not in text and "SECRET OF THIS MACHINE" not in text


def test_nothing_of_the_machine_is_copied_into_the_site(made):
    names = {path.name for path in (made / "site").rglob("*")}
    assert not {name for name in names if "secret" in name or "hostname" in name or "passwd" in name}
    for path in (made / "site").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"SECRET OF THIS MACHINE" not in data and b"root:x:" not in data, path


def test_every_page_of_the_site_has_its_policy(made):
    for path in (made / "site").glob("**/*.html"):
        if "_static" not in path.parts:
            head = path.read_text(encoding="utf-8").split("</head>")[0]
            policy = re.search(r'Content-Security-Policy" content="([^"]*)"', head)
            assert policy and "default-src 'none'; script-src 'self' 'sha256-" in policy[1], path
            assert "unsafe-inline" not in policy[1].split("style-src")[0]
            assert "<script" not in head.split(policy[0])[0]  # a policy holds from where it stands


def test_a_formula_is_mathml_or_text():
    for latex in (r"\text{<script>x</script>}", r"\mathrm{<img src=x onerror=x>}", r"a < b", r"\text{&lt;script&gt;}"):
        made = mathml(latex)
        assert "<script" not in made and "<img" not in made, made
    assert "&lt;script&gt;x&lt;/script&gt;" in mathml(r"\text{<script>x</script>}")
    assert mathml("a < b").count("&lt;") == 1
    for latex in (r"\href{javascript:alert(1)}{x}", r"\class{x}{y}", r"\style{color:red}{x}"):
        assert "href" not in re.sub(r"<code>.*</code>", "", mathml(latex)), latex
