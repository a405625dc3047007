"""Visual graders: hand-made cases, the real golds, hostile texts, geometry, and the ``grade`` command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import own_data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_harness.__main__ import main
from eval_harness.graders import box as boxes
from eval_harness.graders.base import UNFINISHED
from eval_harness.graders.number import read_quantity
from eval_harness.graders.tags import first_tag
from eval_harness.sources import read_jsonl

CASES = json.loads((Path(__file__).parent / "cases" / "visual_graders.json").read_text(encoding="utf-8"))
VISUAL = ("choice", "number", "class_name", "box", "default_extraction")
CLASS_LISTS = {"flowers102": 102, "oxford_pets37": 37, "fgvc_aircraft100": 100, "stanford_cars196": 196}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['grader']}: {c['why']}")
def test_case(case, grading_pool):
    (verdict,) = grading_pool.grade(case["grader"], [(case["gold"], case["prediction"], case.get("context", {}))])
    assert (verdict.correct, verdict.correct_strict) == (case["correct"], case["correct_strict"])
    assert verdict.gold_fallback is case.get("gold_fallback", False)
    assert verdict.flags == tuple(case.get("flags", ()))
    if "reason" in case:
        assert verdict.reason == case["reason"]
    if "reason_strict" in case:
        assert (verdict.reason_strict or verdict.reason) == case["reason_strict"]
    for name in ("extracted", "extracted_strict"):
        if name in case:
            assert getattr(verdict, name) == case[name]
    for name in ("score", "score_strict"):
        if name in case:
            assert getattr(verdict, name) == pytest.approx(case[name], abs=1e-6)
    if "tag" in case:
        assert verdict.extra == {"tag": case["tag"]}
    assert (verdict.reason == "match") is verdict.correct
    assert ((verdict.reason_strict or verdict.reason) == "match") is verdict.correct_strict


GEOQA = "geoqa_test_prompts.jsonl"
REAL_GEOQA = pytest.mark.real_data("GEOQA's golds", GEOQA)


@pytest.fixture(params=["hand_made", pytest.param("real", marks=REAL_GEOQA)])
def geoqa_golds(request) -> list[str]:
    """The golds of our 31 hand-made questions, and of the 754 real ones."""
    root = own_data.FOLDER if request.param == "hand_made" else request.getfixturevalue("data_root")
    golds = [row["ground_truth"] for row in read_jsonl(root / GEOQA)]
    assert len(golds) == {"hand_made": 31, "real": 754}[request.param]
    return golds


STYLES = (
    "<think>so</think> <answer> {} </answer>",
    "<answer>{}</answer>",
    "The answer is ${}$.",
    "We get x = {}, so \\boxed{{{}}}",
    "first 30 then {} degrees",
)


@pytest.mark.full("hundreds of golds through math-verify")
def test_geoqa_marks_are_those_of_math_verify(geoqa_golds, grading_pool):
    """The published rule against the library called as the release calls it, item by item."""
    from math_verify import parse, verify

    pairs = []
    for i, gold in enumerate(geoqa_golds[:: 6 if len(geoqa_golds) == 754 else 1]):
        said = gold.replace("√", "\\sqrt").replace("π", "\\pi").replace("°", "^\\circ")
        pairs += [(gold, STYLES[i % 5].replace("{}", said)), (gold, STYLES[(i + 2) % 5].replace("{}", gold))]
        pairs += [(geoqa_golds[i - 1], STYLES[(i + 1) % 5].replace("{}", gold))]
    expected = [bool(verify(parse(prediction), parse(gold))) for gold, prediction in pairs]
    verdicts = grading_pool.grade("number", pairs)
    assert [v.correct for v in verdicts] == expected
    assert 0.2 < sum(expected) / len(expected) < 0.8
    assert [v.correct for v in grading_pool.grade("default_extraction", pairs)] == expected


@pytest.mark.parametrize("choices", [["3", "2", "1", "0"], ["chair", "the table", "Sofa"], ["left", "right"]], ids=str)
def test_cvbench_marks_are_those_of_math_verify(choices, grading_pool):
    """As above, with the strings of the release in their order."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    strings = (*"ABCDEF", *"abcdef", *(f"({c})" for c in "abcdef"), *(f"({c})" for c in "ABCDEF"), *choices)
    config = [LatexExtractionConfig(), ExprExtractionConfig(), StringExtractionConfig(strings=strings)]
    said = [*choices, *(c.upper() for c in choices), "A", "b", "(C)", "(a)", "D.", "(B) 3", "A chair", "a", "E)", ""]
    forms = ("{}", "<answer>{}</answer>", "<answer> {}\n</answer>", "The answer is {}.", "not {}, a left one", "${}$")
    cases = [(f"({letter})", form.format(text)) for text in said for form in forms for letter in "ABC"[: len(choices)]]
    expected = []
    for gold, prediction in cases:
        option = choices["ABC".index(gold[1])]
        found = re.search(r"<answer>\s*(.*?)\s*</answer>", prediction)
        parsed = parse((found and found.group(1)) or prediction, extraction_config=config)
        accepted = [option.lower(), option, gold[1], gold[1].lower(), gold.lower(), gold]
        expected.append(bool(verify(gold=accepted, target=parsed)))
    verdicts = grading_pool.grade("choice", [(gold, text, {"choices": choices}) for gold, text in cases])
    assert [v.correct for v in verdicts] == expected
    assert 0.1 < sum(expected) / len(expected) < 0.6


def test_every_geoqa_gold_is_its_own_right_answer(geoqa_golds, grading_pool):
    verdicts = grading_pool.grade("number", [(gold, f"so <answer>{gold}</answer>") for gold in geoqa_golds])
    assert [g for g, v in zip(geoqa_golds, verdicts, strict=True) if not v.correct_strict] == []
    assert all(read_quantity(gold) is not None for gold in geoqa_golds)


def test_counts_of_the_published_geoqa_rule(geoqa_golds, grading_pool):
    """17 golds are not read; of 60 others with a root or pi only the leading coefficient is left.

    Of ours, 7 are not read: √{2}, √{10}, π, (√{2}+3)小时 and three fractions with a root above the line; and 10 others
    begin with a coefficient: 49π, 11√{2}, 55πcm^{2}, 7√{3}米, 15√{2}海里, 5/6 π, 7/2 √{3}, 5√{2}-5, 35√{3}+2, 2√{19}.
    """
    unread, with_coefficient = {31: (7, 10), 754: (17, 60)}[len(geoqa_golds)]
    verdicts = grading_pool.grade("number", [(gold, f"= {gold}") for gold in geoqa_golds])
    assert sum(v.gold_fallback for v in verdicts) == unread
    assert sum(v.correct for v in verdicts) == len(geoqa_golds) - unread
    coefficients = [(g, re.match(r"\\frac\{\d+\}\{\d+\}|[\d.]+", g)) for g in geoqa_golds if re.search("[√π]", g)]
    pairs = [(gold, f"<answer> {found.group()} </answer>") for gold, found in coefficients if found]
    collapsed = grading_pool.grade("number", pairs)
    assert sum(v.correct for v in collapsed) == with_coefficient
    assert not any(v.correct_strict for v in collapsed)


def test_neighbours_are_wrong_answers(geoqa_golds, grading_pool):
    """An answer to another question, with another value, is never right under the strict rule."""
    pairs = [(a, f"<answer>{b}</answer>") for a, b in zip(geoqa_golds, geoqa_golds[1:], strict=False)]
    for (gold, answer), verdict in zip(pairs, grading_pool.grade("number", pairs), strict=True):
        close = read_quantity(gold).equals(read_quantity(answer))
        assert verdict.correct_strict is close
        assert not close or gold[0] == answer[len("<answer>")]


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("10*sqrt(2)", 14.142136, None),
        ("the area is $27\\text{ cm}^2$.", 27, "length^2"),
        ("\\boxed{140^{\\circ}}", 140, "angle"),
        ("∠CED = 140 degrees.", 140, "angle"),
        ("1,234.5 m", 1234.5, "length"),
        ("面积是140平方厘米", 140, "length^2"),
        ("\\dfrac{\\sqrt3}{2}", 0.8660254, None),
        ("2(3+1)", 8, None),
        ("-5", -5, None),
        ("- 5", 5, None),
        ("3*4=12", 12, None),
        ("84÷6", 14, None),
        ("5 cm³", 5, "length^3"),
        ("(so the angle is 140)", 140, None),
        ("2^3", 8, None),
        ("about 14.14", 14.14, None),
        ("**140**", 140, None),
        ("2**3", None, None),
        ("10√2 is about 14.14 m", 14.14, "length"),
        ("60√{3}+1", 104.923048, None),
        ("5x", None, None),
        ("x2", None, None),
        ("2π r", None, None),
        ("9^9^9", None, None),
        ("\\frac{1}{0}", None, None),
        ("sqrt(-4)", None, None),
        ("٣", None, None),
        ("nan", None, None),
        ("", None, None),
    ],
)
def test_read_quantity(text, value, unit):
    found = read_quantity(text)
    if value is None:
        assert found is None
    else:
        assert (found.value, found.unit) == (pytest.approx(value), unit)


@given(st.integers(1, 300), st.integers(2, 50), st.sampled_from(["", "°", "cm", "m^{2}", "米", "海里", "小时"]))
@settings(max_examples=60, deadline=None)
def test_spellings_of_a_root_are_one_number(factor, radicand, unit):
    spellings = (
        f"{factor}√{{{radicand}}}{unit}",
        f"{factor}√{radicand}{unit}",
        f"${factor}\\sqrt{{{radicand}}}$ {unit}",
    )
    read = [read_quantity(text) for text in spellings]
    assert all(q.value == pytest.approx(factor * radicand**0.5) and q.unit == read[0].unit for q in read)
    assert (read[0].unit is None) is (unit == "")
    assert not read[0].equals(read_quantity(f"{factor}{unit}"))


REAL_CLASSES = pytest.mark.real_data("names of classes", *(f"classes/{name}.txt" for name in CLASS_LISTS))


@pytest.mark.full("every class name against every other")
@pytest.mark.parametrize(
    ("root", "at_most", "pairs"), [("own", 20, 3), pytest.param("real", 200, 6, marks=REAL_CLASSES)], indirect=["root"]
)
def test_class_names_stay_apart_and_are_their_own_answers(root, at_most, pairs, grading_pool):
    """Under the strict rule no two classes are one; under the published rule some pairs of flowers are: six of the real
    ones, and each two of our bell, blue bell and blue bell tree."""
    shared = {}
    for name, in_list in CLASS_LISTS.items():
        path, count = root / "classes" / f"{name}.txt", min(in_list, at_most)
        classes = path.read_text(encoding="utf-8").split("\n")[:count]
        verdicts = grading_pool.grade("class_name", [(a, f"<answer>{b}</answer>") for a in classes for b in classes])
        assert sum(v.correct_strict for v in verdicts) == count
        shared[name] = (sum(v.correct for v in verdicts) - count) // 2
        assert all(v.correct_strict for v in verdicts[:: count + 1])
    assert shared == {name: pairs if name == "flowers102" else 0 for name in CLASS_LISTS}


def _hostile() -> dict[str, str]:
    long = 100_000
    return {
        "letters": "x" * long,
        "digits": "9" * long,
        "opened": "(" * long,
        "tags": "<answer>" * (long // 8),
        "closed": "</answer>" * (long // 9),
        "boxes": "(1,1),(2,2) " * (long // 12),
        "half boxes": "(1,(1,1),(" * (long // 10),
        "long box": f"({'9' * 5000},1),(2,2)",
        "huge box": f"<answer>({'9' * 300},1),({'9' * 301},2)</answer>",
        "NUL": "\0<answer>\0</answer>\0",
        "surrogates": "\ud800<answer>\udfff(1,1),(2,2)\ud800</answer>",
        "other digits": "<answer>(١,٢),(٣,٤)</answer>",
        "superscripts": "<answer>²³ ½ Ⅷ</answer>",
        "sums": "<answer>" + "1+" * 20_000 + "</answer>",
        "fractions": "<answer>" + "\\frac{" * 10_000 + "</answer>",
        "powers": "<answer> 9^9^9^9^9 </answer>",
        "nothing": "",
    }


@pytest.mark.long("hostile texts at every length")
@pytest.mark.parametrize("grader", VISUAL)
def test_hostile_texts_end_in_a_verdict(grader, grading_pool):
    golds = {"choice": "(B)", "number": "10√{2}cm", "class_name": "rose", "box": "(1,1),(20,20)"}
    context = {"choices": ["(", "\ud800"]} if grader == "choice" else {}
    pairs = [(golds.get(grader, "10"), text, context) for text in _hostile().values()]
    for name, verdict in zip(_hostile(), grading_pool.grade(grader, pairs), strict=True):
        assert verdict.reason in {"match", "mismatch", "no_answer", *UNFINISHED}, name
        assert verdict.extracted is None or len(verdict.extracted) <= 500
        assert verdict.score is None or 0 <= verdict.score <= 1
    swapped = [(text, golds.get(grader, "10"), context) for text in list(_hostile().values())[3:]]
    assert len(grading_pool.grade(grader, swapped)) == len(swapped)


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "a", "\n", " "]), max_size=12).map("".join))
@settings(deadline=None)
def test_first_tag_is_the_released_pattern(text):
    for one_line, pattern in ((True, r"<answer>(.*?)</answer>"), (False, r"(?s)<answer>(.*?)</answer>")):
        found = re.search(pattern, text)
        assert first_tag(text, one_line) == (found and found.group(1))


def _boxes():
    side = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted)
    return st.tuples(side, side).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


@given(_boxes(), _boxes())
@settings(deadline=None)
def test_geometry(a, b):
    whole = [(x, y) for x in range(a[0], a[2], 97) for y in range(a[1], a[3], 97)]
    assert 0 <= boxes.iou(a, b) == boxes.iou(b, a) <= 1
    assert -1 <= boxes.giou(a, b) <= boxes.iou(a, b) + 1e-12
    assert boxes.area(a) == 0 or boxes.iou(a, a) == boxes.giou(a, a) == 1
    around = boxes.merged_box([a, b])
    assert boxes.intersection(a, around) == boxes.area(a)
    if any(b[0] <= x and b[1] <= y and b[2] > x and b[3] > y for x, y in whole):
        assert boxes.iou(a, b) > 0


def test_iou_is_the_share_of_pixels():
    a, b = (2, 3, 12, 9), (5, 1, 20, 7)
    cells = [{(x, y) for x in range(k[0], k[2]) for y in range(k[1], k[3])} for k in (a, b)]
    assert boxes.iou(a, b) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))
    union, around = len(cells[0] | cells[1]), 18 * 8
    assert boxes.giou(a, b) == pytest.approx(boxes.iou(a, b) - (around - union) / around)


def test_what_masks_read():
    text = "at (1,2),(3,4) <answer>(10.5,20),(30,40)</answer>"
    assert boxes.first_box(text) == (1, 2, 3, 4)
    assert boxes.strict_box(text) == (10.5, 20, 30, 40)
    assert boxes.strict_box("<answer>(30,20),(10,40)</answer>") is None
    assert boxes.strict_box("<answer>(30,20),(1001,40)</answer>") is None
    assert boxes.first_box("none") is None is boxes.strict_box("none")


def _grade(tmp_path, capsys, benchmark: str, rows: list[dict], *more: str) -> tuple[list[dict], str]:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["grade", "--benchmark", benchmark, "--input", str(source), "--output", str(target), *more]) == 0
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()], capsys.readouterr().out


def test_grade_geoqa(tmp_path, capsys):
    rows = [
        {"gold": "10√{2}", "prediction": "<answer> 10 </answer>", "id": "a"},
        {"gold": "10√{2}", "prediction": "<answer>10√2</answer>", "id": "b"},
    ]
    both, out = _grade(tmp_path, capsys, "geoqa", rows, "--rule", "both")
    assert [(row["id"], row["correct"], row["correct_strict"]) for row in both] == [
        ("a", True, False),
        ("b", False, True),
    ]
    assert both[0]["extra"] == {"tag": 1.0} and both[1]["extracted_strict"] == "10\\sqrt{2}"
    assert "1 of 2 correct (published rule), 1 of 2 correct (strict rule)" in out
    strict, _ = _grade(tmp_path, capsys, "geoqa", rows, "--rule", "strict")
    assert [row["correct"] for row in strict] == [False, True] and "correct_strict" not in strict[0]


def test_grade_cvbench_with_and_without_choices(tmp_path, capsys):
    rows = [
        {"gold": "(B)", "prediction": "<answer>chair</answer>", "choices": ["table", "chair"]},
        {"gold": "(B)", "prediction": "<answer>chair</answer>"},
        {"gold": "(F)", "prediction": "<answer>(F)</answer>", "choices": ["table", "chair"]},
    ]
    graded, out = _grade(tmp_path, capsys, "cvbench", rows)
    assert [row["correct"] for row in graded] == [True, False, None]
    assert graded[2]["reason"] == "bad_gold" and graded[0]["choices"] == ["table", "chair"]
    assert "1 of 3 correct" in out and "1 not judged" in out


def test_letters_one_after_the_other_without_choices(grading_pool):
    """The one stated last, under the strict rule."""
    (verdict,) = grading_pool.grade("choice", [("(C)", "It is (A) or (B); no, (C).")])
    assert verdict.correct_strict and verdict.extracted_strict in (None, "(C)", "C")


def test_grade_lisa(tmp_path, capsys):
    polygon = {"label": "target", "points": [[0, 0], [50, 0], [50, 50]]}
    rows = [
        {"gold": "(0,0),(500,500)", "prediction": "<answer>(0,0),(500,250)</answer>"},
        {"gold": "?", "prediction": "(0,0),(500,500)", "width": 100, "height": 100, "polygons": [polygon]},
        {"gold": "?", "prediction": "(0,0),(500,500)"},
    ]
    graded, out = _grade(tmp_path, capsys, "lisa", rows, "--rule", "both")
    assert [row["score_strict"] for row in graded] == [pytest.approx(0.5), 1.0, None]
    assert [row["correct"] for row in graded] == [False, True, None]  # 1e-6 takes the first below one half
    assert "mean score 0.7500 of 2" in out


@pytest.mark.parametrize("name", ["flowers102", "pets37", "fgvc_aircraft", "cars196"])
def test_grade_classes(name, tmp_path, capsys):
    graded, _ = _grade(tmp_path, capsys, name, [{"gold": "rose", "prediction": "<answer></answer>"}], "--rule", "both")
    assert graded[0]["correct"] and not graded[0]["correct_strict"] and graded[0]["flags"] == ["empty_answer"]
