"""The report in a real browser: headless Chromium of the system, on a site served from this machine.

The site is built of two notebooks, the runs and all documentation; executed copies stay in ``build/report_test_work``
until something they depend on changes. Pictures of what was seen: ``build/report_test_shots``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from browsing import chromium, needed, served

from gpg_repro.tables.runs import REFERENCE

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ["table_03", "figure_2"]
SHOTS = ROOT / "build" / "report_test_shots"
PHONE, DESKTOP = (390, 844), (1400, 1000)
pytestmark = [pytest.mark.full("a browser over a built report"), pytest.mark.needs("chromium")]


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def site() -> Path:
    """A site of two notebooks."""
    needed(shutil.which("chromium") or shutil.which("chromium-browser"), "Chromium")
    needed(_importable("selenium") and _importable("myst_nb"), "selenium or myst-nb")
    from gpg_repro.site import build_site

    built = build_site(ROOT / "build" / "report_test", only=NOTEBOOKS, progress=False)
    states = {entry.name: entry.state for entry in built.notebooks}
    assert "failed" not in states.values(), [entry.message for entry in built.failed]
    assert not built.warnings
    return built.out


@pytest.fixture(scope="module")
def base(site) -> Iterator[str]:
    """Address of the served site."""
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def browser(site):
    """Chromium that can reach this machine only."""
    with chromium() as driver:
        yield driver


def _open(browser, base: str, page: str, size=DESKTOP, scheme: str = "light") -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(urljoin(base, page))
    assert browser.execute_script("return document.documentElement.dataset.tables") == "ready"


def _shoot(browser, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SHOTS / f"{name}.png"))


def _pages(site: Path) -> list[str]:
    """The pages of the site itself."""
    found = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(path.as_posix() for path in found if path.parts[0] not in ("_static", "files"))


# --- Every page ------------------------------------------------------------------------------------------------------


def test_every_page_on_a_phone_without_errors_or_foreign_requests(site, base, browser):
    browser.get_log("browser"), browser.get_log("performance")
    problems = []
    for page in _pages(site):
        _open(browser, base, page, PHONE)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        if width > PHONE[0]:
            problems.append(f"{page}: {width} pixels wide on a phone of {PHONE[0]}")
        problems += [f"{page}: {entry['message']}" for entry in browser.get_log("browser")]
        for entry in browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith((base, "data:", "blob:")):
                    problems.append(f"{page}: asked for {url}")
        broken = browser.execute_script(
            "return [...document.images].filter(i => i.loading !== 'lazy' && !(i.complete && i.naturalWidth))"
            ".map(i => i.src)"
        )
        problems += [f"{page}: picture {source} does not show" for source in broken]
    assert not problems, "\n".join(problems)
    assert len(_pages(site)) > len(NOTEBOOKS) + 15  # the walk saw the documentation too


class _Links(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.links += [attrs[name] for name in ("href", "src") if attrs.get(name)]
        self.links += [f"{{root}}runs.html#{run}" for run in (attrs.get("data-runs") or "").split()]


def test_every_link_and_anchor_resolves(site):
    parsed = {page: _Links((site / page).read_text(encoding="utf-8")) for page in _pages(site)}
    dead, num_checked = [], 0
    for page, found in parsed.items():
        for link in found.links:
            root = "/".join([".."] * page.count("/")) + "/" if "/" in page else ""
            target, anchor = urldefrag(urljoin(f"site:/{page}", link.replace("{root}", root)))
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(urlsplit(urljoin(f"http://site/{page}", link.replace("{root}", root))).path).lstrip("/")
            num_checked += 1
            if not (site / path).is_file():
                dead.append(f"{page}: {link}")
            elif anchor and path in parsed and unquote(anchor) not in parsed[path].ids:
                dead.append(f"{page}: {link} (no such anchor)")
    assert not dead, "\n".join(dead)
    assert num_checked > 1000


# --- Sorting ---------------------------------------------------------------------------------------------------------

KEYS = {
    "48.4 [44.1, 52.7]": 48.4,
    "[44.1, 52.7]": 44.1,
    "+1.0": 1.0,
    "-1.5 [-2.0, -1.0]": -1.5,
    "−1.5": -1.5,
    ".5": 0.5,
    "2.5e-3": 0.0025,
    "1,234,567": 1234567.0,
    "12 %": 12.0,
    "65.0 (83)": 65.0,
    "3 × 500": 1500.0,
    "0.9…1.2": 0.9,
    "–": None,
    "": None,
    "nan": None,
    "7B model": "7b model",
    "12B": "12b",
    "1.2.3": "1.2.3",
    "1.5B": "1.5b",
    "GRPO": "grpo",
    "2026-11-21T01:50": 1795225800000.0,  # date -u -d 2026-11-21T01:50 +%s
}


def test_sort_keys(base, browser):
    _open(browser, base, "index.html")
    script = "return arguments[0].map(gpgReport.sortKey)"
    assert dict(zip(KEYS, browser.execute_script(script, list(KEYS)), strict=True)) == KEYS
    order = "return [3, null, 'b10', -1, 'b9', null].sort((a, b) => gpgReport.compare(a, b, arguments[0]))"
    assert browser.execute_script(order, 1) == [-1, 3, "b9", "b10", None, None]
    assert browser.execute_script(order, -1) == ["b10", "b9", 3, -1, None, None]


_COLUMN = """
const table = document.querySelectorAll("article table")[arguments[0]];
return [...table.tBodies[0].rows].map(row => [row.cells[0].textContent, row.cells[arguments[1]].textContent.trim(),
                                              row.cells[arguments[1]].dataset.sort ?? null]);
"""


def _headings(browser, table: int = 0) -> list:
    return browser.execute_script(
        "return [...document.querySelectorAll('article table')[arguments[0]].querySelectorAll('button.sort')]", table
    )


def _click(browser, element) -> None:
    """A real click, with the element clear of the rows' names that stay in sight."""
    where = "{block: 'center', inline: 'center', behavior: 'instant'}"
    browser.execute_script(f"arguments[0].scrollIntoView({where})", element)
    element.click()


def test_a_table_sorts_by_mouse_and_keyboard(base, browser):
    from selenium.webdriver.common.keys import Keys

    _open(browser, base, "notebooks/table_03.html")
    buttons = _headings(browser)
    names = [button.text.strip() for button in buttons]
    column = names.index("Tiny Products")
    written = browser.execute_script(_COLUMN, 0, column)
    assert len(written) == 6 and all(sort is not None for _, _, sort in written)
    _click(browser, buttons[column])
    ascending = browser.execute_script(_COLUMN, 0, column)
    assert ascending == sorted(written, key=lambda line: float(line[2])) != written
    assert buttons[column].find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    buttons[column].send_keys(Keys.ENTER)
    descending = browser.execute_script(_COLUMN, 0, column)
    assert [line[2] for line in descending] == [line[2] for line in ascending][::-1]
    _shoot(browser, "table_sorted")
    buttons[column].send_keys(Keys.SPACE)
    assert browser.execute_script(_COLUMN, 0, column) == written
    # A published column has a dash where the paper prints nothing: last, whichever way.
    published = names.index("AIME24")
    for _ in range(2):
        _click(browser, buttons[published])
        assert browser.execute_script(_COLUMN, 0, published)[-1][1] == "–"
    assert not buttons[column].find_element("xpath", "..").get_attribute("aria-sort")


def test_plain_frames_of_pandas_sort_too(base, browser):
    _open(browser, base, "notebooks/figure_2.html")
    buttons = _headings(browser)
    names = [button.text.strip() for button in buttons]
    assert names[0] == "name"  # pandas' row of index names is merged into the headings
    column = names.index("mean")
    _click(browser, buttons[column])
    values = [float(line[1]) for line in browser.execute_script(_COLUMN, 0, column)]
    assert len(values) == 4 and values == sorted(values)


def test_rows_are_filtered(base, browser):
    _open(browser, base, "runs.html")
    browser.find_element("css selector", "input.filter").send_keys("table3 grpo_rs1")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#evaluations-table tbody tr')].filter(r => r.offsetHeight)"
        ".map(r => r.id)"
    )
    assert len(shown) == 3 and all(name.startswith("table3_grpo_rs1-tiny-seed") for name in shown)


# --- What is behind a number -----------------------------------------------------------------------------------------


def _cell(browser, row: str, heading: str):
    """A body cell of the page's first table."""
    return browser.execute_script(
        """
        const table = document.querySelector("article table");
        const headings = [...table.querySelectorAll("button.sort")].map(b => b.textContent.trim());
        const row = [...table.tBodies[0].rows].find(r => r.cells[0].textContent.trim() === arguments[0]);
        const cell = row.cells[headings.indexOf(arguments[1])];
        cell.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
        return cell;
        """,
        row,
        heading,
    )


def _tip(browser) -> str | None:
    tip = browser.find_element("id", "behind")
    return tip.text if tip.is_displayed() else None


def test_a_number_tells_what_is_behind_it(base, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    run = json.loads((REFERENCE / "tiny" / "table3_gpg_rs1" / "seed0" / "run.json").read_text())
    _open(browser, base, "notebooks/table_03.html")
    assert _tip(browser) is None
    cell = _cell(browser, "GPG on tiny_s1", "Tiny Sums")
    ActionChains(browser).move_to_element(cell).perform()
    text = _tip(browser)
    assert text.startswith("GPG on tiny_s1, Tiny Sums")
    for part in ("items\n100", "completions\n300", "training seeds\n3", "95 % over items\n[", "vllm", run["run_id"]):
        assert part in text, (part, text)
    _shoot(browser, "behind_a_number")
    # Keyboard: arrows move between cells, Enter goes to the first run, Escape comes back, Escape again closes.
    browser.execute_script("arguments[0].click()", cell)
    cell.send_keys(Keys.ARROW_LEFT)
    assert _tip(browser).startswith("GPG on tiny_s1, OlympiadBench") and "paper v3, Table 3" in _tip(browser)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert _tip(browser).startswith("GPG on tiny_rs, Tiny Sums")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    link = browser.switch_to.active_element
    assert link.tag_name == "a"
    link.send_keys(Keys.ESCAPE)
    assert _tip(browser) is None and browser.switch_to.active_element.tag_name == "td"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wanted = browser.switch_to.active_element.text
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.current_url == f"{base}runs.html#{wanted}"
    assert browser.execute_script("return document.querySelector(':target').textContent").startswith(wanted)


def test_a_tap_pins_it_on_a_phone(base, browser):
    _open(browser, base, "notebooks/table_03.html", PHONE)
    cell = _cell(browser, "GRPO on tiny_s1", "Average")
    browser.execute_script("arguments[0].click()", cell)
    assert "items\n" in _tip(browser)
    box = browser.find_element("id", "behind").rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0]
    _shoot(browser, "phone_behind_a_number")
    browser.execute_script("document.querySelector('h1').click()")
    assert _tip(browser) is None


# --- Reading ---------------------------------------------------------------------------------------------------------

_BACKGROUND = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
_INK = (
    "return getComputedStyle(document.querySelector('article table td')).color.match(/\\d+/g).slice(0, 3).map(Number)"
)


@pytest.mark.parametrize("size", (DESKTOP, PHONE), ids=("desktop", "phone"))
def test_light_and_dark(size, base, browser):
    name = "phone" if size == PHONE else "desktop"
    for scheme in ("light", "dark"):
        _open(browser, base, "index.html", size, scheme)
        browser.execute_script("localStorage.clear()")
        _shoot(browser, f"{name}_{scheme}_front")
        _open(browser, base, "notebooks/table_03.html", size, scheme)
        background, ink = (sum(browser.execute_script(script)) / 3 for script in (_BACKGROUND, _INK))
        assert (background > 200 > 100 > ink) if scheme == "light" else (background < 60 < 150 < ink), (scheme, ink)
        browser.execute_script("document.querySelector('#the-table').scrollIntoView({behavior: 'instant'})")
        _shoot(browser, f"{name}_{scheme}_table")
    _open(browser, base, "notebooks/figure_2.html", size, "dark")
    _shoot(browser, f"{name}_dark_figure")


def test_the_toggle_changes_colours(base, browser):
    _open(browser, base, "index.html")
    browser.execute_script("localStorage.clear()")
    _open(browser, base, "index.html")
    seen = {tuple(browser.execute_script(_BACKGROUND))}
    for _ in range(3):
        browser.execute_script(
            "[...document.querySelectorAll('button.theme-toggle')].find(b => b.offsetHeight).click()"
        )
        seen.add(tuple(browser.execute_script(_BACKGROUND)))
    browser.execute_script("localStorage.clear()")
    assert len(seen) == 2


def test_wide_tables_scroll_in_their_own_box_with_the_rows_name_in_sight(base, browser):
    _open(browser, base, "notebooks/table_03.html", PHONE)
    left, scrolled, overflow = browser.execute_script(
        """
        const table = document.querySelector("article table");
        let box = table.parentElement;
        while (box && getComputedStyle(box).overflowX !== "auto") box = box.parentElement;
        box.scrollLeft = 400;
        return [table.tBodies[0].rows[0].cells[0].getBoundingClientRect().left - box.getBoundingClientRect().left,
                box.scrollLeft, table.offsetWidth - box.clientWidth];
        """
    )
    assert overflow > 400 and scrolled == 400 and abs(left) < 2


def test_tables_plots_formulas_and_folded_code_show(base, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    _open(browser, base, "notebooks/table_03.html")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('article table')]"
        ".map(t => [t.tBodies[0].rows.length, t.offsetWidth, t.offsetHeight])"
    )
    assert len(sizes) == 4 and all(rows >= 4 and width > 300 and height > 100 for rows, width, height in sizes)
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.cell_output img')].map(i => [i.src, i.naturalWidth, i.alt])"
    )
    assert len(plots) == 3
    assert all(source.endswith(".svg") and width > 500 and alt.startswith("Table 3") for source, width, alt in plots)
    code = browser.find_elements("css selector", ".cell_input")
    assert code and not any(part.is_displayed() for part in code)
    browser.find_elements("css selector", "details.hide summary")[0].click()
    WebDriverWait(browser, 5).until(lambda _: code[0].is_displayed())  # it fades in
    _open(browser, base, "index.html")
    height = browser.execute_script("return document.querySelector('math mfrac').getBoundingClientRect().height")
    assert height > 15


def test_search_finds_a_page(base, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    _open(browser, base, "search.html?q=olympiadbench")
    found = WebDriverWait(browser, 20).until(lambda d: d.find_elements("css selector", "#search-results li a"))
    assert found
