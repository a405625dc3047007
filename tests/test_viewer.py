"""Two runs side by side: what is matched, the four cells, and pages on which unchecked text stays text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from visual_records import evaluation, item, sample

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.records import Item, Sample
from gpg_repro import viewer
from gpg_repro.__main__ import main
from gpg_repro.viewer import Limits, build_page, cells, clip, pair_html, side_by_side, visible, write_page
from gpg_repro.viewer.page import counts_text
from gpg_repro.viewer.widget import kept

NASTY = "<script>alert(1)</script></pre><img src=x onerror='alert(2)'> &amp; \0 a\u202eb \"'`${x}` \r\n</textarea>"


def asked(index: int, prompt: str | None = None, gold: str = "g") -> Item:
    return Item(item_id=str(index), prompt=prompt or f"question {index}?", gold=gold)


def said(index: int, right: bool, strict: bool | None = None, text: str = "said", number: int = 0) -> Sample:
    made = sample(index, right, right if strict is None else strict, text)
    return made.model_copy(update={"sample": number})


def run(folder: Path, marks, name: str = "math500", first: int = 0) -> Path:
    """A run of one benchmark; marks are those of its items in order."""
    items = [asked(i) for i in range(first, first + len(marks))]
    return evaluation(folder, {name: (items, [said(first + i, mark) for i, mark in enumerate(marks)])})


@pytest.fixture
def six(tmp_path) -> tuple[Path, Path]:
    """Six items. First run right on 0, 1, 2, 5; second on 0, 3: only the first on 1, 2, 5, only the second on 3."""
    return (
        run(tmp_path / "a", [True, True, True, False, False, True]),
        run(tmp_path / "b", [True, False, False, True, False, False]),
    )


# Matching and counting ------------------------------------------------------------------------------------------------


def test_the_four_cells_by_hand(six):
    both = side_by_side(*six, labels=("A", "B"))
    (line,) = cells(both.pairs).to_dict("records")
    assert [line[c] for c in ("both", "first", "second", "neither", "num_items")] == [1, 3, 1, 1, 6]
    # 3 against 1 of four coins: P(3 or more) = (4 + 1)/16, twice that is 10/16
    assert line["p_value"] == pytest.approx(10 / 16)
    assert [pair.cell() for pair in both.pairs] == ["both", "first", "first", "second", "neither", "first"]
    assert [both.first(c).item.item_id for c in ("first", "second", "neither")] == ["1", "3", "4"]
    assert counts_text(cells(both.pairs).iloc[0], both.labels).startswith(
        "Of 6 items both are right on 1, only A on 3, only B on 1, neither on 1 "
    )
    assert both.notes == ()


def test_cells_of_several_benchmarks_are_summed_and_follow_the_rule(tmp_path):
    suites = [
        {"math500": ([asked(0), asked(1)], [said(0, a, b), said(1, True)]), "aime24": ([asked(0)], [said(0, c)])}
        for a, b, c in ((True, False, True), (False, False, True))
    ]
    both = side_by_side(*(evaluation(tmp_path / n, s) for n, s in zip("ab", suites, strict=True)))
    frame = cells(both.pairs).set_index("benchmark")
    assert list(frame.index) == ["math500", "aime24", "all"]  # as in the record
    assert frame.loc["all", ["both", "first", "second", "neither"]].tolist() == [2, 1, 0, 0]
    assert frame.loc["all", "p_value"] == 1.0  # one item tells nothing
    strict = cells(both.pairs, "strict").set_index("benchmark")
    assert strict.loc["math500", ["both", "first", "second", "neither"]].tolist() == [1, 0, 0, 1]
    assert both.first("first", "strict") is None
    assert [pair.rules_part for pair in both.pairs] == [True, False, False]
    with pytest.raises(UserError, match="unknown rule 'stict'; did you mean 'strict'"):
        cells(both.pairs, "stict")


def test_only_shared_items_and_what_differs_is_told(tmp_path):
    """A has 0-4, B 1-5. Item 2 was asked differently, 3 has another gold, 4 is not answered by B: 1 and 2 are left."""
    first = evaluation(tmp_path / "a", {"math500": ([asked(i) for i in range(5)], [said(i, True) for i in range(5)])})
    items = [asked(1), asked(2, prompt="another?"), asked(3, gold="other"), asked(4), asked(5)]
    second = evaluation(tmp_path / "b", {"math500": (items, [said(i, False) for i in (1, 2, 3, 5)])}, finished=False)
    both = side_by_side(first, second, labels=("A", "B"))
    assert [pair.item.item_id for pair in both.pairs] == ["1", "2"]
    assert [pair.other_prompt for pair in both.pairs] == [None, "another?"]
    told = "\n".join(both.notes)
    for sentence in (
        "1 of 5 items of A are not in the other run",
        "1 of 5 items of B are not in the other run",
        "1 items have one id but different golds",
        "1 items are not answered yet",
        "1 of 2 items were asked with different prompts",
    ):
        assert sentence in told
    assert "Asked with different prompts" in pair_html(both.pairs[1], both.labels)
    assert "Asked with different prompts" not in pair_html(both.pairs[0], both.labels)
    assert "different prompts" in build_page(both).html.split("</form>")[0]  # a filter of its own
    assert kept(both.pairs[1], show="prompts") and not kept(both.pairs[0], show="prompts")


def test_settings_that_differ_are_told(six):
    for folder, engine in zip(six, ("vllm", "openai"), strict=True):
        record = records.read_run(folder)
        records.write_json(folder / "run.json", record.model_copy(update={"engine": {"name": engine}}))
    assert side_by_side(*six).notes == ("MATH-500: settings differ: engine vllm against openai.",)


def test_samples_are_paired_by_number(tmp_path):
    first = evaluation(tmp_path / "a", {"math500": ([asked(0)], [said(0, True, text="a1", number=1), said(0, False)])})
    second = evaluation(tmp_path / "b", {"math500": ([asked(0)], [said(0, True)])})
    (pair,) = side_by_side(first, second, labels=("A", "B")).pairs
    assert [s.sample for s in pair.answers[0]] == [0, 1] and pair.num_samples == 2
    assert pair.cell() == "second"  # by the first completions
    text = pair_html(pair, ("A", "B"))
    assert "first completions: B right, A wrong; of all: A 1 of 2 right, B 1 of 1 right" in text
    assert text.count("class='answers'") == 2 and "no such sample" in text.split("data-sample='1'")[1]
    assert pair_html(pair, ("A", "B"), only=1).count("class='answers'") == 1


def test_what_cannot_be_compared_is_refused(six, tmp_path):
    first, second = six
    with pytest.raises(UserError, match="nowhere is not the folder of an evaluation"):
        side_by_side("nowhere", second, results=tmp_path)
    shutil.copytree(first, tmp_path / "runs" / "eval-mine")
    with pytest.raises(UserError, match="did you mean 'eval-mine'"):
        side_by_side("eval-mime", second, results=tmp_path)
    assert len(side_by_side("eval-mine", second, results=tmp_path).pairs) == 6
    with pytest.raises(UserError, match=r"unknown benchmark of a 'math50'; did you mean 'math500'"):
        side_by_side(first, second, ["math50"])
    with pytest.raises(UserError, match=r"no benchmark in common. a: math500; c: aime24"):
        side_by_side(first, run(tmp_path / "c", [True], "aime24"))
    with pytest.raises(UserError, match="no item in common. MATH-500: 6 of 6 items of a are not in the other run"):
        side_by_side(first, run(tmp_path / "d", [True], first=9))
    both = side_by_side(first, second)
    with pytest.raises(UserError, match=r"math500 has no item '7' that both runs answered; there are 0, 1, 2, 3, 4, 5"):
        both.pair("math500", "7")
    with pytest.raises(UserError, match="unknown benchmark of both runs 'aime24'"):
        both.pair("aime24", "0")
    assert both.pair("math500", "3").cell() == "second"
    training = records.TrainingRecord(
        run_id="t", fingerprint="f", status="finished", created="2026-01-01T00:00:00+00:00", finished=None, recipe={},
        base={}, checkpoint=None, num_steps=0, timings={}, environment={},
    )  # fmt: skip
    records.write_json(tmp_path / "t" / "run.json", training)
    with pytest.raises(UserError, match="is a training; name the folder of an evaluation"):
        side_by_side(tmp_path / "t", second)


def test_a_run_beside_itself_has_two_names(six):
    assert side_by_side(six[0], six[0]).labels == ("a (first)", "a (second)")


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\n\ttext √2 漢 é", "plain\n\ttext √2 漢 é"),
        ("a\0b\x1b[31m\x7f", "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+007F⟩"),
        ("a\r\nb\rc", "a\nb⟨U+000D⟩c"),
        ("1\u202e2\u2066\u200b\ufeff", "1⟨U+202E⟩2⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩"),
        ("\ud800 \u2028 \x85", "⟨U+D800⟩ ⟨U+2028⟩ ⟨U+0085⟩"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_nothing_is_invisible(text, seen):
    assert visible(text) == seen
    visible(text).encode()


def test_clipping_keeps_both_ends():
    assert clip("abcdefghij", 10) == "abcdefghij"
    # six of the beginning, four of the end, ten of twenty gone
    assert clip("abcdefghijklmnopqrst", 10) == "abcdef\n[… 10 characters left out …]\nqrst"
    assert clip("abc", 1) == "\n[… 2 characters left out …]\nc"


# Pages ----------------------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.texts: list[str] = []
        self._within: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within.append(tag)

    def handle_endtag(self, tag):
        if tag in self._within:
            while self._within.pop() != tag:
                pass

    def handle_data(self, data):
        at = self._within[-1] if self._within else ""
        self.raw.get(at, self.texts).append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def nasty(tmp_path):
    """Unchecked text wherever a record can hold some."""
    where = Item(item_id="0' onclick='alert(3)", prompt=f"Q {NASTY}", gold=f"G {NASTY}")
    answer = said(0, True, False, f"A {NASTY}").model_copy(
        update={"item_id": where.item_id, "extracted": f"E {NASTY}", "reason": f"R {NASTY}", "flags": (f"F {NASTY}",),
                "finish_reason": "<b>stop"}
    )  # fmt: skip
    failed = answer.model_copy(update={"status": "failed", "completion": None, "correct": None})
    folders = []
    for name, one in (("a", answer), ("b", failed)):
        prompt = where if name == "a" else where.model_copy(update={"prompt": f"P {NASTY}"})
        folders.append(evaluation(tmp_path / "nasty" / name, {"math500": ([prompt], [one])}))
    return side_by_side(*folders, labels=(f"L {NASTY}", "B"))


def test_unchecked_text_stays_text(nasty, tmp_path):
    write_page(nasty, tmp_path / "page.html", title=f"T {NASTY}")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = _Tags(page)
    assert len(tags.of("script")) == 1 and not tags.of("img") and not tags.of("textarea") and not tags.of("b")
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert "\0" not in page and "\u202e" not in page
    wanted = visible(NASTY)
    everything = "".join(tags.texts)
    for letter in "QGAERFPLT":  # each shown, and as it is
        assert f"{letter} {wanted}" in everything, letter
    (article,) = tags.of("article")
    assert article["data-item"] == "0' onclick='alert(3)"
    assert "alert" not in tags.raw["script"][0]


def test_a_page_needs_nothing_beside_it_and_runs_its_own_script_only(six, tmp_path):
    page = build_page(side_by_side(*six)).html
    tags = _Tags(page)
    assert not tags.of("link") and not tags.of("a") and not tags.of("iframe")
    assert not any("src" in attributes or "href" in attributes for _, attributes in tags.tags)
    assert not re.search(r"https?:|url\(|@import|fetch\(|innerHTML|eval\(", page)
    (policy,) = [m["content"] for m in tags.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    for kind in ("script", "style"):
        (text,) = tags.raw[kind]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "style=" not in page  # the policy would drop it


def test_a_page_is_bounded_and_says_what_is_left_out(six):
    both = side_by_side(*six)
    chosen = both.pair("math500", "4")
    page = build_page(both, chosen=chosen, limits=Limits(items=3))
    ids = [article["data-item"] for article in _Tags(page.html).of("article")]
    assert ids == ["1", "2", "4"]  # the chosen one, then where one is right, in the order of the records
    (note,) = page.left_out
    # 0, 3 and 5 are missing; on 3 and 5 one run is right and the other wrong
    assert note.startswith("3 of 6 items are not on this page, 2 of them with one run right") and note in page.html
    assert page.num_items == 3 and "Of 6 items both are right on 1" in page.html
    assert build_page(both, limits=Limits(bytes=1)).num_items == 1
    assert build_page(both).left_out == ()
    with pytest.raises(ValueError, match="at least one item"):
        Limits(items=0)


def test_long_and_many_completions_are_cut(tmp_path):
    answers = [said(0, True, text="x" * 50 + "END", number=k) for k in range(3)]
    folders = [evaluation(tmp_path / name, {"math500": ([asked(0)], answers)}) for name in "ab"]
    page = build_page(side_by_side(*folders), limits=Limits(samples=2, characters=10))
    assert page.html.count("class='answers'") == 2 and page.html.count("[… 43 characters left out …]\nxEND") == 4
    assert page.left_out == (
        "Of each item the first 2 of up to 3 completions.",
        "4 completions are longer than 10 characters; their middle is left out.",
    )


def test_images_are_drawn_up_to_a_number(tmp_path, monkeypatch):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(stream, "PNG")
    monkeypatch.setattr(
        type(get_benchmark("geoqa")), "image_reader", lambda self, data, image: lambda wanted: [stream.getvalue()]
    )
    folders = [
        evaluation(tmp_path / n, {"geoqa": ([item(i) for i in range(3)], [sample(i, True, True) for i in range(3)])})
        for n in "ab"
    ]
    page = build_page(side_by_side(*folders), limits=Limits(images=2))
    pictures = _Tags(page.html).of("img")
    assert len(pictures) == 2 and all(p["src"].startswith("data:image/png;base64,") for p in pictures)
    assert page.left_out == ("Images of 1 items are not drawn.",)


def test_an_imported_benchmark_has_no_images_to_read(tmp_path):
    suite = {"theirs": ([item(0)], [sample(0, True, True)])}
    folders = [evaluation(tmp_path / n, suite, finished=False) for n in "ab"]
    assert "image not to be had: unknown benchmark" in build_page(side_by_side(*folders)).html


@pytest.mark.full("a browser")
@pytest.mark.needs("chromium")
def test_the_page_in_a_browser(six, tmp_path):
    """Opened at the second item where only the first run is right: that one is shown, the others are hidden."""
    both = side_by_side(*six)
    write_page(both, tmp_path / "page.html", chosen=both.pair("math500", "2"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    tags = _Tags(done.stdout)
    assert [a["data-item"] for a in tags.of("article") if "hidden" not in a] == ["2"]
    assert all("hidden" not in form for form in tags.of("form"))
    assert "3 of 6 (6 in all)" in done.stdout
    assert len([o for o in tags.of("option") if o["value"].isdigit()]) >= 6


# Widget and command ---------------------------------------------------------------------------------------------------


def test_the_widget_filters_and_escapes(six, nasty):
    box = viewer.viewer(*six)
    items, show, search = (box.controls[name] for name in ("item", "show", "search"))
    assert [number for _, number in items.options] == [0, 1, 2, 3, 4, 5] and items.options[1][0] == "MATH-500 1"
    assert "item 0" in box.card.value
    show.value = "first"
    assert (
        [number for _, number in items.options] == [1, 2, 5]
        and "item 1" in box.card.value
        and box.count.value == "3 of 6 items"
    )
    show.value, search.value = "differ", "QUESTION 3"
    assert [number for _, number in items.options] == [3] and "question 3?" in box.card.value
    search.value = "nothing like it"
    assert box.count.value == "0 of 6 items" and "No item fits" in box.card.value
    search.value, show.value = "", "all"
    assert "item 1" in box.card.value  # the first that differs came back, and stays
    items.value = 4
    assert "item 4" in box.card.value
    tags = _Tags(viewer.viewer(nasty).card.value)
    assert not tags.of("script") and not tags.of("img")
    both = side_by_side(*six)
    assert "item 4" in viewer.viewer(both, chosen=both.pairs[4]).card.value


def test_the_widget_shows_one_sample(tmp_path):
    answers = [said(0, True, text=f"answer {k}", number=k) for k in range(2)]
    folders = [evaluation(tmp_path / name, {"math500": ([asked(0)], answers)}) for name in "ab"]
    box = viewer.viewer(*folders)
    assert "answer 0" in box.card.value and "answer 1" not in box.card.value
    box.controls["sample"].value = 1
    assert "answer 1" in box.card.value and "answer 0" not in box.card.value


def test_the_command(six, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GPG_RESULTS", str(tmp_path / "results"))
    first, second = map(str, six)
    assert main(["view", first, second, "--item", "3", "--labels", "G P/G,GRPO"]) == 0
    out = capsys.readouterr().out
    assert "MATH-500: Of 6 items both are right on 1, only G P/G on 3, only GRPO on 1, neither on 1" in out
    written = tmp_path / "results" / "figures" / "view" / "G-P-G~897f14b81c--GRPO~892f45a707.html"
    assert f"page: {written} (6 items)" in out
    (chosen,) = [a for a in _Tags(written.read_text(encoding="utf-8")).of("article") if a["data-chosen"] == "1"]
    assert chosen["data-item"] == "3"
    assert main(["view", first, second, "--items", "2", "--out", str(tmp_path / "p.html")]) == 0
    assert "note: 4 of 6 items are not on this page" in capsys.readouterr().out
    for bad, message in (
        (["--item", "9"], "math500 has no item '9'"),
        (["--benchmark", "aime24"], "unknown benchmark of a 'aime24'"),
        (["--labels", "one"], "expected two names"),
        (["--items", "0"], "expected at least 1"),
        (["--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["view", first, second, *bad]) == 2
        assert message in capsys.readouterr().err


def test_an_item_of_several_benchmarks_needs_its_benchmark(tmp_path, capsys):
    suites = {name: ([asked(0)], [said(0, True)]) for name in ("math500", "aime24")}
    folders = [str(evaluation(tmp_path / n, suites)) for n in "ab"]
    assert main(["view", *folders, "--item", "0", "--out", str(tmp_path / "p.html")]) == 2
    assert "item 0 is in math500, aime24; name one of them with --benchmark" in capsys.readouterr().err
    assert main(["view", *folders, "--item", "0", "--benchmark", "aime24", "--out", str(tmp_path / "p.html")]) == 0
