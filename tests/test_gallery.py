"""The gallery of answers: which items it shows, what stands on a card, and what it does without pictures."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image
from visual_records import evaluation, item, sample

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.images import ImageError
from gpg_repro import gallery
from gpg_repro.gallery import Card, build, choose


def png(colour: str = "white", size: tuple[int, int] = (112, 56)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def drawn(monkeypatch):
    """Images of every benchmark are one green rectangle, except item 1's, which is broken."""

    def reader(self, data_root, image_root):
        def read(wanted):
            if wanted.item_id == "1":
                raise ImageError("1.png: cut off")
            return [png("green")]

        return read

    monkeypatch.setattr(type(get_benchmark("geoqa")), "image_reader", reader)


def shown(made: gallery.Gallery) -> list[tuple[str, str]]:
    return [(card.item.item_id, card.kind) for card in made.cards]


def test_kinds():
    def kind(*marks):
        return Card("geoqa", item(0), {str(i): sample(0, *pair) for i, pair in enumerate(marks)}).kind

    assert kind((True, True), (True, False)) == "rules"
    assert kind((True, True), (False, False)) == "models"
    assert (kind((True, True)), kind((False, False))) == ("right", "wrong")
    assert kind((0.7, 0.701)) == "right" and kind((0.7, 0.6)) == "rules"  # IoUs differ by their formulas a little
    assert kind((0.45, 0.45), (0.55, 0.55)) == "models"


def test_disagreements_come_first_and_leave_room(tmp_path):
    """Items 0-4 right, 5-9 wrong, 10-19 disagreements: half of the cards are these, the others in turn."""
    marks = [(True, True)] * 5 + [(False, False)] * 5 + [(True, False)] * 10
    items, samples = [item(i) for i in range(20)], [sample(i, *pair) for i, pair in enumerate(marks)]
    folder = evaluation(tmp_path / "a", {"geoqa": (items, samples)})
    made = build({"geoqa": {"base": folder}}, num=6)
    assert shown(made) == [(str(i), "rules") for i in (10, 11, 12)] + [("5", "wrong"), ("0", "right"), ("6", "wrong")]
    assert len(build({"geoqa": {"base": folder}}, num=16).cards) == 16
    assert [kind for _, kind in shown(build({"geoqa": {"base": folder}}, num=18))].count("rules") == 9
    with pytest.raises(ValueError, match="negative"):
        choose([], -1)


def test_disagreements_fill_up_where_nothing_else_is_left(tmp_path):
    folder = evaluation(
        tmp_path / "a", {"geoqa": ([item(i) for i in range(4)], [sample(i, True, False) for i in range(4)])}
    )
    assert len(build({"geoqa": {"base": folder}}, num=4).cards) == 4


def test_groups_and_sets_take_turns(tmp_path):
    items = [item(i, "val" if i < 3 else "test") for i in range(6)]
    folders = {
        name: {"base": evaluation(tmp_path / name, {name: (items, [sample(i, True, True) for i in range(6)])})}
        for name in ("lisa", "geoqa")
    }
    made = build(folders, num=4)
    assert [(card.benchmark, card.item.group) for card in made.cards] == [
        ("lisa", "val"), ("lisa", "test"), ("geoqa", "val"), ("geoqa", "test"),
    ]  # fmt: skip


def test_only_items_that_all_models_answered(tmp_path):
    a = evaluation(tmp_path / "a", {"geoqa": ([item(i) for i in range(3)], [sample(i, True, True) for i in range(3)])})
    b = evaluation(tmp_path / "b", {"geoqa": ([item(2)], [sample(2, False, False)])})
    made = build({"geoqa": {"base": a, "GPG": b}, "lisa": {}})
    assert shown(made) == [("2", "models")] and list(made.cards[0].answers) == ["base", "GPG"]


def test_a_card_says_everything(tmp_path, drawn):
    said = sample(
        0,
        True,
        False,
        text="<think>10 · √2</think><answer>10√{2}</answer>",
        extracted="10",
        extracted_strict="10*sqrt(2)",
        reason_strict="mismatch",
        flags=("short_answer",),
    )
    folder = evaluation(tmp_path / "a", {"geoqa": ([item(0, gold="10√{3} & <b>")], [said])})
    page = build({"geoqa": {"GPG <R2>": folder}}, title="Table 5").html()
    for part in (
        "&lt;think&gt;10 · √2&lt;/think&gt;",  # never taken for HTML
        "10√{3} &amp; &lt;b&gt;",
        "1. GPG &lt;R2&gt;",
        f"background:{gallery.RIGHT}'>published: right (match, read: 10)",
        f"background:{gallery.WRONG}'>strict: wrong (mismatch, read: 10*sqrt(2))",
        "short_answer",
        "question 0?",
        "the two rules disagree",
    ):
        assert part in page, part
    (data,) = re.findall(r"data:image/png;base64,([^']+)'", page)
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (300, 150) and picture.getpixel((150, 75)) == (0, 128, 0)
    assert "gold;" not in page  # no boxes here


def test_long_answers_and_failures(tmp_path, drawn):
    failed = sample(0, False, False).model_copy(
        update={"status": "failed", "completion": None, "reason": "1.png: cut off"}
    )
    items, samples = [item(0), item(2)], [failed, sample(2, True, True, text="x" * 5000, extracted="y" * 500)]
    page = build({"geoqa": {"base": evaluation(tmp_path / "a", {"geoqa": (items, samples)})}}).html()
    assert "no answer: 1.png: cut off" in page and "(5000 characters)" in page
    assert "x" * 901 not in page and "y" * 81 not in page


def test_pictures_that_are_not_to_be_had(tmp_path, drawn, monkeypatch):
    items, samples = [item(1)], [sample(1, True, True)]
    folder = evaluation(tmp_path / "a", {"geoqa": (items, samples)})
    assert "image not to be had: 1.png: cut off" in build({"geoqa": {"base": folder}}).html()
    monkeypatch.undo()
    for name in ("EVAL_DATA_ROOT", "EVAL_IMAGE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    lost = evaluation(tmp_path / "b", {"geoqa": ([item(0)], [sample(0, True, True)])})
    page = build({"geoqa": {"base": lost}}, data_root=tmp_path / "nothing").html()
    assert "image not to be had" in page and "question 0?" in page


def test_pictures_of_another_version_are_not_shown(tmp_path, drawn):
    """A generated set that has changed would draw other pictures than the model saw."""
    folder = evaluation(tmp_path / "a", {"geoqa": ([item(0)], [sample(0, True, True)])})
    result = records.BenchmarkResult(
        version=0,
        source="x",
        prompts_hash="h",
        decoding=records.Decoding(
            temperature=0, top_p=1, top_k=0, max_new_tokens=1, samples=1, seed=0, system_prompt=None
        ),
        num_items=1,
        asked=1,
        scored=1,
        failed=0,
        score=None,
        score_strict=None,
        num_gold_fallback=0,
        num_truncated=0,
        num_no_answer=0,
        num_timeout=0,
        mean_completion_tokens=None,
    )
    run = records.read_run(folder)
    records.write_json(folder / "run.json", run.model_copy(update={"benchmarks": {"geoqa": result}}))
    page = build({"geoqa": {"base": folder}}).html()
    assert "the records are of version 0 of geoqa" in page and "base64" not in page


def test_boxes_are_drawn_where_they_are(tmp_path):
    """Gold a quarter to three quarters each way; the model's box in the upper left, in thousandths."""
    wanted = item(0, "val", gold="(250,250),(750,750)", gold_box=[0.25, 0.25, 0.75, 0.75])
    answers = {
        "base": sample(0, 0.1, 0.1, text="no box"),
        "GPG": sample(0, 0.1, 0.1, text="<answer>(100,100),(500,400)</answer>"),
    }
    card = Card("lisa", wanted, answers)
    assert gallery.predicted_boxes(card) == [(2, "GPG", (0.1, 0.1, 0.5, 0.4))]
    image = gallery.picture(Image.new("RGB", (50, 50), "white"), card)
    assert image.getpixel((225, 150)) == (0, 0, 0) and image.getpixel((150, 225)) == (0, 0, 0)
    assert image.getpixel((31, 100)) == (37, 99, 171) and image.getpixel((200, 200)) == (255, 255, 255)
    upside_down = Card("lisa", wanted, {"base": sample(0, 0.0, 0.0, text="(500,400),(100,100)")})
    assert gallery.picture(Image.new("RGB", (50, 50), "white"), upside_down).getpixel((31, 100)) == (199, 91, 0)
    plain = Card("lisa", item(0, "val", gold="(250,250),(750,750)"), answers)
    assert gallery.gold_box(plain) == (0.25, 0.25, 0.75, 0.75)
    legend = gallery.picture_html(card, lambda wanted: [png()])
    assert "black: gold; 2, blue: GPG" in legend


def test_a_page_of_its_own(tmp_path, drawn):
    folder = evaluation(tmp_path / "a", {"geoqa": ([item(0)], [sample(0, True, True)])})
    made = build({"geoqa": {"base": folder}}, title="Table 5 & more")
    page = made.write(tmp_path / "pages" / "gallery.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Table 5 &amp; more: some answers" in page
    assert made._repr_html_() == made.html() and "Nothing was measured" in build({}).html()
