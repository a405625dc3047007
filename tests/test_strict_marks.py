"""Strict rules for choices, numbers, names of classes and boxes: hand-decided cases, pairs near every gold, bounds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import own_data
import pytest

from eval_harness import provenance, runner
from eval_harness.__main__ import main
from eval_harness.benchmarks import get_benchmark
from eval_harness.graders import base, box, choice, class_name, number
from eval_harness.graders.text import plain, plain_signs, said
from eval_harness.sources import read_jsonl

CASES = json.loads((Path(__file__).parent / "cases" / "strict_visual.json").read_text(encoding="utf-8"))
GEOQA = "geoqa_test_prompts.jsonl"
LISTS = tuple(CASES["class_name"])
MARKS = {"choice": choice.mark, "number": number.mark, "class_name": class_name.mark, "box": box.mark}


# --- choices -------------------------------------------------------------------------------------------------------

_CHOICES = [
    pytest.param(group["choices"], f"<answer>{text}</answer>", None, option, id=f"{name}: {text}")
    for name, group in CASES["choice"].items()
    for text, option in group["rows"]
] + [
    pytest.param(group["choices"], text, finish_reason, option, id=f"untagged: {text}")
    for group in CASES["choice_free"]
    for text, finish_reason, option in group["rows"]
]


@pytest.mark.parametrize(("choices", "text", "finish_reason", "option"), _CHOICES)
def test_choice(choices, text, finish_reason, option):
    """The letter of the option; None: no answer; ``!``: an answer that is no option."""
    context = {"choices": choices, "finish_reason": finish_reason}
    found = choice.stated_option(text, tuple(choices), finish_reason)
    assert found[0] == (option if option != "!" else None), found
    for gold in "ABCD"[: len(choices) or 4]:
        mark = choice.mark(f"({gold})", text, context)
        assert mark.correct is (gold == option), mark
        if option is None or option == "!":
            assert mark.reason == ("no_answer" if option is None else "mismatch"), mark
        elif option not in "ABCD"[: len(choices) or 4]:
            assert mark.reason == "unknown_option"


@pytest.mark.parametrize("group", CASES["choice"].values(), ids=CASES["choice"])
def test_every_option_accepts_itself_and_refuses_its_neighbours(group):
    choices = group["choices"]
    for i, text in enumerate(choices):
        letter = "ABCD"[i]
        forms = [letter, f"({letter})", f"{letter}. {text}", f"**({letter}) {text}**", f"The answer is {letter}"]
        forms += [text, f"the {text}", f"{text}, not {choices[i - 1]}"] * (choices.count(text) == 1)
        for form in forms:
            for gold in "ABCD"[: len(choices)]:
                mark = choice.mark(f"({gold})", f"<answer>{form}</answer>", {"choices": choices})
                assert mark.correct is (gold == letter), (form, mark)


# --- numbers -------------------------------------------------------------------------------------------------------

_NUMBERS = [
    pytest.param(row["gold"], f"<answer>{text}</answer>", None, kind, id=f"{row['gold']}: {kind} {text}")
    for row in CASES["number"]
    for kind in ("right", "wrong", "none")
    for text in row.get(kind, ())
] + [pytest.param(*row, id=f"untagged: {row[1]}") for row in CASES["number_free"]]


@pytest.mark.parametrize(("gold", "text", "finish_reason", "kind"), _NUMBERS)
def test_number(gold, text, finish_reason, kind):
    mark = number.mark(gold, text, {"finish_reason": finish_reason})
    assert mark.correct is (kind == "right"), mark
    assert (mark.reason == "no_answer") is (kind == "none"), mark
    assert (mark.said == "") is (kind == "none") and mark.gold


def test_another_kind_of_unit_is_a_reason_of_its_own():
    assert number.mark("5cm", "<answer>5 degrees</answer>").reason == "wrong_unit"
    assert number.mark("5cm", "<answer>6 cm</answer>").reason == "mismatch"
    assert number.mark("none", "<answer>5</answer>").reason == "bad_gold"


@pytest.fixture(params=["hand_made", pytest.param("real", marks=pytest.mark.real_data("GEOQA's golds", GEOQA))])
def geoqa_golds(request) -> list[str]:
    root = own_data.FOLDER if request.param == "hand_made" else request.getfixturevalue("data_root")
    return [row["ground_truth"] for row in read_jsonl(root / GEOQA)]


def test_golds_of_geoqa_accept_themselves_and_refuse_their_neighbours(geoqa_golds):
    """A neighbour: another first number, another sign, a unit of another kind, the sum that makes it, two answers."""
    spellings = ("{}", "x = {}", "\\boxed{{{}}}", "**{}**", "The value is {}.", "{} (see the figure)")
    for gold in dict.fromkeys(geoqa_golds):
        for form in spellings:
            mark = number.mark(gold, f"<answer>{form.format(gold)}</answer>")
            assert mark.correct, (form, gold, mark)
        place = next((i for i, char in enumerate(gold) if char.isdigit()), None)
        near = [
            f"-{gold}",
            f"{gold} or 77",
            f"77, {gold}",
            f"not {gold}",
            f"77+{gold}=",
            f"({gold}, 77)",
            f"x > {gold}",
        ]
        if place is not None:
            digit = "1" if gold[place] == "2" else "2"
            near.append(gold[:place] + digit + gold[place + 1 :])
        for answer in near:
            assert not number.mark(gold, f"<answer>{answer}</answer>").correct, (gold, answer)


# --- names of classes ----------------------------------------------------------------------------------------------


def _classes(root: Path, name: str) -> list[str]:
    return (root / "classes" / f"{name}.txt").read_text(encoding="utf-8").split("\n")


REAL_CLASSES = pytest.mark.real_data("names of classes", *(f"classes/{name}.txt" for name in LISTS))


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        pytest.param(name, text, meant, marks=REAL_CLASSES, id=f"{name}: {text}")
        for name, rows in CASES["class_name"].items()
        for text, meant in rows
    ],
)
def test_class_name(name, text, meant, data_root):
    """The class; None: no answer; ``!``: an answer that is no class of the list."""
    classes = [each for each in _classes(data_root, name) if each]
    golds = [meant] if meant in classes else []
    golds += [each for each in classes if each != meant][:: 1 if len(classes) < 50 else 9]
    assert meant in (None, "!", *classes)
    for gold in golds:
        mark = class_name.mark(gold, f"<answer>{text}</answer>", {"classes": classes})
        assert mark.correct is (gold == meant), mark
        if meant in (None, "!"):
            assert mark.reason == ("no_answer" if meant is None else "mismatch"), mark


@pytest.mark.parametrize("root", ["own", pytest.param("real", marks=REAL_CLASSES)], indirect=True)
@pytest.mark.parametrize("name", LISTS)
def test_every_class_accepts_itself_and_refuses_its_neighbours(name, root):
    """In sentences, and beside the next class of the list; without the list any other name is one that is added."""
    classes = [each for each in _classes(root, name) if each]
    for one, other in zip(classes, [*classes[1:], classes[0]], strict=True):
        right = (one, f"The image shows a {one}.", f"**{one.upper()}**", f"{one}, not {other}")
        assert class_name.mark(one, f"<answer>not {other} but {one}</answer>", {"classes": classes}).correct
        wrong = (f"{one} or {other}", f"{other}", f"not {one}", f"maybe {one}", f"{one}x", f"great {one}")
        for texts, expected in ((right, True), (wrong, False)):
            for text in texts:
                for context in ({"classes": classes}, {}):
                    mark = class_name.mark(one, f"<answer>{text}</answer>", context)
                    assert mark.correct is expected, (text, context, mark)


def test_a_remark_may_not_name_another_class():
    text = "<answer>rose (less likely carnation)</answer>"
    assert class_name.mark("rose", text, {"classes": ["rose", "carnation"]}).reason == "no_answer"
    assert class_name.mark("rose", text).correct  # nothing says that the other is a class


def test_a_class_needs_the_tag():
    for text in ("rose", "The answer is rose", "<think>rose", "<answer>rose</answer> hm</think>"):
        assert class_name.mark("rose", text).reason == "no_answer"
    assert class_name.mark("rose", "<answer>carnation</answer></think><answer>rose</answer>").correct
    assert class_name.mark("rose", "<answer>rose", {"finish_reason": "stop"}).correct
    assert class_name.mark("rose", "<answer>rose", {"finish_reason": "length"}).reason == "no_answer"
    assert class_name.mark("_", "<answer>rose</answer>").reason == "bad_gold"


# --- boxes ---------------------------------------------------------------------------------------------------------

_BOXES = [pytest.param(f"<answer>{text}</answer>", None, wanted, id=text or "nothing") for text, wanted in CASES["box"]]
_BOXES += [pytest.param(*row, id=f"untagged: {row[0]}") for row in CASES["box_free"]]


@pytest.mark.parametrize(("text", "finish_reason", "wanted"), _BOXES)
def test_box(text, finish_reason, wanted):
    """Four thousandths, None for no answer, or what is wrong with the box."""
    found, why = box.stated_box(text, finish_reason)
    mark = box.mark("(0,0),(200,100)", text, {"finish_reason": finish_reason})
    if isinstance(wanted, str):
        assert (mark.score, mark.reason, box.problem(found)) == (0.0, wanted, wanted)
        assert box.strict_box(text, finish_reason) is None
        return
    assert (None if found is None else list(found)) == (wanted and [pytest.approx(side) for side in wanted]), why
    assert (mark.reason == "no_answer") is (wanted is None) and mark.detail
    if wanted == [0, 0, 200, 100]:
        assert mark.correct and mark.score == pytest.approx(1.0)
    elif wanted is not None:
        assert 0 <= mark.score < 1
        assert box.strict_box(text, finish_reason) == pytest.approx(tuple(wanted))


def test_boxes_accept_themselves_in_every_spelling_and_refuse_others():
    forms = ("({},{}),({},{})", "[{}, {}, {}, {}]", '{{"bbox_2d": [{}, {}, {}, {}]}}', "[[{}, {}], [{}, {}]]")
    for x in range(0, 900, 60):
        corners = (x, 900 - x, x + 100, 1000 - x)
        gold = forms[0].format(*corners)
        for form in forms:
            assert box.mark(gold, f"<answer>{form.format(*corners)}</answer>").score == 1.0
            tenths = form.format(*(side / 1000 for side in corners))
            assert box.mark(gold, f"<answer>{tenths}</answer>").score == pytest.approx(1.0)
            moved = form.format(corners[0] + 100, corners[1], corners[2] + 100, corners[3])
            assert box.mark(gold, f"<answer>{moved}</answer>").score == 0.0


# --- what they share -----------------------------------------------------------------------------------------------


def test_one_spelling():
    assert plain_signs("Ｂ\u2013\u201c\u00a0x\u200b\u201d") == 'B-" x"'
    assert plain("# **A** `b`  _c_ a_b \\text{d} $e$ \\boxed{\\textbf{f}} <b>g</b>\n\n h ") == "A b c a_b d e f g\nh"
    assert plain("\\left( 3 \\right)\\, 5\\%") == "( 3 ) 5%"


@pytest.mark.parametrize(
    ("text", "finish_reason", "wanted", "tagged"),
    [
        ("<answer> a </answer> <answer>b</answer>", None, "a", True),
        ("<think>a</think> b", None, " b", False),
        ("<think>a</think> b <think>c", "length", " b ", False),
        ("<answer>a", None, "a", True),
        ("<answer>a", "length", "<answer>a", False),
    ],
)
def test_where_the_answer_stands(text, finish_reason, wanted, tagged):
    found = said(text, finish_reason)
    assert (found.text, found.tagged, found.why) == (wanted, tagged, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [("<think>a", "thinking"), ("<answer> </answer>", "empty"), (" ", "no text"), ("a</think>", "no text")],
)
def test_why_nothing_is_said(text, why):
    found = said(text)
    assert found.text == "" and why in found.why


_LONG = 100_000


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize(
    "text",
    ["(" * _LONG, "A " * (_LONG // 2), "1+" * (_LONG // 2), "<think>" * (_LONG // 7), "<answer>" * (_LONG // 8)]
    + ["not " * (_LONG // 4), "[1,1,2,2]" * (_LONG // 9), "rose " * (_LONG // 5), "\\text{" * (_LONG // 6)]
    + ["*" * _LONG, " " * _LONG, "9" * _LONG, "(1,(1,1),(" * (_LONG // 10), "the answer is " * (_LONG // 14)],
    ids=lambda text: text[:10],
)
def test_long_texts_take_no_time(name, text):
    golds = {"choice": "(B)", "number": "10√{2}cm", "class_name": "rose", "box": "(1,1),(20,20)"}
    start = time.process_time()
    for form in ("{}", "<answer>{}</answer>"):
        mark = MARKS[name](golds[name], form.replace("{}", text), {"choices": ["rose", "not"]})
        assert mark.correct is (mark.reason == "match")
        assert len(mark.said) <= 500
    assert time.process_time() - start < 2


def test_rules_have_names_and_explanations(tmp_path, capsys):
    """``grade --explain`` shows what the strict rule read on both sides, and why."""
    rows = {
        "cvbench": {"gold": "(B)", "prediction": "<answer>A or B</answer>", "choices": ["table", "chair"]},
        "geoqa": {"gold": "140°", "prediction": "<answer>80+60</answer>"},
        "fgvc_aircraft": {"gold": "737-800", "prediction": "<answer>Boeing 737-800</answer>"},
        "lisa": {"gold": "(0,0),(200,100)", "prediction": "<answer>[0, 0, 200, 50]</answer>"},
    }
    told = {}
    for benchmark, row in rows.items():
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text(json.dumps(row) + "\n", encoding="utf-8")
        command = ["--benchmark", benchmark, "--rule", "both", "--input", str(source), "--output", str(target)]
        assert main(["grade", *command, "--explain"]) == 0
        told[benchmark] = capsys.readouterr().out.splitlines()[1]
        graded = json.loads(target.read_text(encoding="utf-8"))
        assert graded["rule_strict"] in told[benchmark]
    assert told == {
        "cvbench": "row 1, strict_choice 1, strict: wrong (no_answer); read nothing; gold B: chair; "
        "several options are named: A and B",
        "geoqa": "row 1, strict_number 1, strict: wrong (no_answer); read nothing; gold 140°; "
        "80+60: a sum that is not worked out",
        "fgvc_aircraft": "row 1, strict_class_name 1, strict: right (match); read Boeing 737-800; gold 737-800; "
        "737-800: the name with words that add nothing",
        "lisa": "row 1, strict_box 1, strict: right (match); read (0,0),(200,50); gold (0,0),(200,100); IoU 0.5000",
    }
    assert {base.STRICT_RULES[name]["name"] for name in MARKS} == {f"strict_{name}" for name in MARKS}


def test_a_record_keeps_the_classes_and_answers_are_held_against_them():
    benchmark = get_benchmark("tiny_blossoms")
    items = benchmark.load()
    known = provenance.of_benchmark(benchmark, items, None)
    assert known["classes"] == sorted({item.gold for item in items})
    assert known["grader"]["strict"] == {"name": "strict_class_name", "version": 1}
    part = provenance.of_benchmark(benchmark, items[:1], None, known["classes"])  # a shard
    assert part["classes"] == known["classes"]
    (answer,) = runner._answers("class_name", items[0], [("x", "stop")], known["classes"])
    assert answer[2] == {"finish_reason": "stop", "classes": known["classes"]}
    scenes = get_benchmark("tiny_scenes")
    assert "classes" not in provenance.of_benchmark(scenes, scenes.load(), None)


def test_classes_are_those_of_the_benchmark():
    assert base.classes_of("class_name", ["b", "a", "b"]) == ["a", "b"]
    assert base.classes_of("choice", ["b"]) is None
    assert base.context_for("class_name", {}, classes=["a"], question="?") == {"classes": ["a"]}
    assert base.context_for("number", {}, classes=["a"]) == {}


@pytest.mark.parametrize("text", ["x" + "\n" * 20_000 + "7 cm", "x" + " " * 20_000 + "7", "7" + " \n" * 10_000 + "y"])
def test_blanks_without_end_cost_no_time(text):
    """Found by `make fuzz`: minutes, before runs of blanks were one."""
    start = time.process_time()
    number.mark("7", text)
    number.mark("7", f"<answer>{text}</answer>")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["$</ANSWER>1$ $2 $$$$$ $3", "\\boxed{\\boxed{\\boxed}<answer></answer>"])
def test_a_mark_of_nothing_has_its_reason(text):
    found = number.mark("7", text, {"finish_reason": "length"})
    assert found.reason == "no_answer" and found.detail
