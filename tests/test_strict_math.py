"""The strict rule for mathematics: other people's golds, pairs near every gold, cases of the specification, bounds."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path

import own_data
import pytest
from strict_pairs import neighbours, respelled

from eval_harness import runner
from eval_harness.__main__ import main
from eval_harness.graders import base
from eval_harness.graders.formula import Unreadable, evaluate, parse, tidy, tokens
from eval_harness.graders.strict_math import find_answer, mark
from eval_harness.graders.units import read_unit
from eval_harness.records import Item
from eval_harness.sources import read_jsonl

CASES = Path(__file__).parent / "cases"
SECTIONS = json.loads((CASES / "strict_math.json").read_text(encoding="utf-8"))
ARGUABLE = json.loads((CASES / "strict_math_arguable.json").read_text(encoding="utf-8"))
FILES = ("aime_2024.jsonl", "amc_23.jsonl", "math_500.jsonl", "minerva_math.jsonl", "olympiad_bench.jsonl")
OTHER_GOLDS = "minerva_math_alt_gold.jsonl"


# --- cases ---------------------------------------------------------------------------------------------------------

ROWS = [
    pytest.param(section, row, id=f"{name}: {row['gold']}")
    for section, groups in SECTIONS.items()
    for name, rows in groups.items()
    for row in rows
]


@pytest.mark.parametrize(("section", "row"), ROWS)
def test_cases(section, row):
    """``right`` and ``wrong`` answers to a gold, and texts that state ``none``."""
    context = {key: row[key] for key in ("question", "finish_reason") if key in row}
    for kind in ("right", "wrong", "none"):
        for answer in row.get(kind, ()):
            text = f"So $\\boxed{{{answer}}}$." if section == "boxed" else answer
            found = mark(row["gold"], text, context)
            assert found.correct is (kind == "right"), (answer, found)
            assert (found.reason == "no_answer") is (kind == "none") or found.correct or kind == "wrong", (
                answer,
                found,
            )


def test_there_are_cases_enough():
    kinds = Counter()
    for groups in SECTIONS.values():
        for rows in groups.values():
            for row in rows:
                kinds.update({kind: len(row.get(kind, ())) for kind in ("right", "wrong", "none")})
    assert kinds.total() >= 300 and min(kinds.values()) >= 15


# --- golds ---------------------------------------------------------------------------------------------------------


@pytest.mark.real_data("golds of Minerva in two notations", OTHER_GOLDS)
def test_golds_in_another_notation(data_root):
    """90 rows are marked as the same value, 41 as close or different; one of the 90 differs in a sign (arguable)."""
    rows = read_jsonl(data_root / OTHER_GOLDS)
    same = [row for row in rows if row["relation"] == "same value, other notation"]
    assert (len(rows), len(same)) == (131, 90)
    arguable = {entry["idx"] for entry in ARGUABLE["minerva_math_alt_gold"]}
    assert len(arguable) == 1
    for row in rows:
        if row["idx"] in arguable:
            continue
        for gold, answer in ((row["answer"], row["alt_answer"]), (row["alt_answer"], row["answer"])):
            found = mark(gold, f"So $\\boxed{{{answer}}}$.")
            assert found.correct is (row in same), (row, found)


def _pairs(folder, files):
    for file in files:
        for row in read_jsonl(folder / file):
            gold = row["answer"]
            yield from ((gold, True, what, answer) for what, answer in respelled(gold))
            yield from ((gold, False, what, answer) for what, answer in neighbours(gold))


def _check_pairs(pairs):
    arguable = {(entry["gold"], entry["answer"]) for entry in ARGUABLE["pairs"]}
    counts = Counter()
    for gold, right, what, answer in pairs:
        if (gold, answer) in arguable:
            continue
        found = mark(gold, f"Hence $\\boxed{{{answer}}}$")
        assert found.correct is right, (gold, what, answer, found)
        counts[right] += 1
    return counts


@pytest.mark.real_data("pairs near every gold of the five sets", *FILES)
def test_every_gold_accepts_itself_and_refuses_its_neighbours(data_root):
    counts = _check_pairs(_pairs(data_root, FILES))
    assert counts[True] >= 8000 and counts[False] >= 4000


def test_hand_made_golds_accept_themselves_and_refuse_their_neighbours():
    rows = [row for name in own_data.TEXT for row in own_data.hand_made(name)]
    answers = [row["answer"] for row in rows if "answer" in row]
    pairs = [(gold, True, *pair) for gold in answers for pair in respelled(gold)]
    pairs += [(gold, False, *pair) for gold in answers for pair in neighbours(gold)]
    counts = _check_pairs(pairs)
    assert min(counts[True], counts[False]) >= 50


@pytest.mark.real_data("golds as whole solutions", "math_500.jsonl", "minerva_math.jsonl")
def test_golds_are_read_from_solutions(data_root):
    """The last box counts; a unit behind it belongs to the gold."""
    for file in ("math_500.jsonl", "minerva_math.jsonl"):
        for row in read_jsonl(data_root / file):
            found = mark(row["solution"], f"So \\boxed{{{row['answer']}}}")
            assert found.correct, (row["answer"], found)
    assert mark(r"is $\boxed{1.6} \mathrm{~cm}$", r"\boxed{16 \text{ mm}}").correct
    assert mark(r"is $\boxed{1.6} \mathrm{~cm}$", r"\boxed{1.6 \text{ m}}").reason == "wrong_unit"
    assert mark(r"one way \boxed{15\frac{39}{40}}, or \boxed{\frac{639}{40}} inches", r"\boxed{15.975}").correct


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("<think>\\boxed{1}</think> so \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{}", "1"),
        ("\\boxed{1} and \\boxed{2}", r"1 \text{and} 2"),
        ("The answer is $x=4$ since $y=3$.", "x=4"),
        ("The answer is 4. Next $y=3$", "4"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}} units", "\\frac{1}{\\sqrt{2}}"),
        ("so $\\boxed{3}$ km", "3 \\text{km}"),
        ("Question 2. Answer:\n\n$$\n5\n$$", "\n5\n"),
        ("Of 30 children **14** walk, **9** ride.", "9"),
        ("The roots are **3** and **5**.", "3 and 5"),
        ("**Direction**: it is west.", "west"),
        ("Final Answer: The sum is 16.", "16"),
    ],
)
def test_what_is_stated(text, stated):
    assert find_answer(text).text == stated


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<think>$n=9$", "thinking"),
        ("\\boxed{}", "empty"),
        ("It is not \\boxed{3}", "negated"),
        ("", "no text"),
        ("the case $n=9$ and then", "breaks off"),
        ("so $n=9$ and the other", "breaks off"),
        ("we get $n=9$ and:\n\n$$", "no answer"),
    ],
)
def test_why_nothing_is_stated(text, why):
    stated = find_answer(text)
    assert stated.text == "" and why in stated.why


@pytest.mark.parametrize(
    ("text", "kind", "size"),
    [
        ("cm", "m", "1/100"),  # a hundredth of a metre
        ("square feet", "m^2", "145161/1562500"),  # 0.3048^2 = 0.09290304
        ("\\text{km}/\\text{h}", "m s^-1", "5/18"),  # 1000 m in 3600 s
        ("\\text{erg} \\cdot \\text{s}^{-1}", "kg m^2 s^-3", "1/10000000"),
        ("kmh", "m s^-1", "5/18"),
        ("cents", "money", "1/100"),
    ],
)
def test_units(text, kind, size):
    unit = read_unit(text)
    assert (unit.kind, str(unit.size)) == (kind, size)


def test_what_is_no_unit():
    assert [text for text in ("apples", "units", "x", "m n", "", "^2") if read_unit(text)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1\\frac{4}{5}", "9/5"),
        ("2\\frac{5}{4}", "5/2"),  # no proper fraction: a product
        ("0.1\\overline{6}", "1/6"),
        ("-2^2", "-4"),
        ("2^{3^2}", "512"),
        ("1/2\\cdot 3", "3/2"),
        ("\\frac43", "4/3"),
        ("5!/3!", "20"),
        ("\\sqrt[3]{27}", "3"),
        ("\\binom{5}{2}", "10"),
        ("3.5e-2", "7/200"),
        ("\\lfloor -3/2 \\rfloor", "-2"),
    ],
)
def test_values(text, value):
    assert str(evaluate(parse(tokens(tidy(text))))) == value


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9^{9^9}}}", "(10^6)!", "((5!)!)!", "1/0", "0^0", "e^{10^{20}}", "1e999999999", "(" * 500 + "1" + ")" * 500]
    + [
        "\\frac{" * 300 + "1",
        "1+" * 900 + "1",
        "7" * 1990 + "^{99}",
        "\\binom{10^9}{10^8}",
        "\\sin(10^{99})",
        "x!!!!!!",
    ],
)
def test_what_is_too_large_is_refused_at_once(text):
    start = time.perf_counter()
    with contextlib.suppress(Unreadable):
        evaluate(parse(tokens(tidy(text))))
    found = mark("$5$", f"\\boxed{{{text}}}")
    assert not found.correct
    assert mark(f"${text}$", f"\\boxed{{{text}}}").reason in ("match", "no_answer")  # the same text all the same
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(" * 61 + "1" + ")" * 61, "nested"),
        ("2^{10^8}\\sqrt{2}", "power"),
        ("10001!", "factorial"),
        ("1+" * 1001, "long"),
    ],
)
def test_bounds(text, why):
    with pytest.raises(Unreadable, match=why):
        evaluate(parse(tokens(text)))


def test_brackets_are_counted_before_anything_is_read():
    with pytest.raises(Unreadable, match="nested"):
        tokens("(" * 61)
    assert len(tokens("(" * 60)) == 60


def test_another_unit_is_a_reason_of_its_own():
    assert mark(r"5 \text{ km}", r"\boxed{5 \text{ kg}}").reason == "wrong_unit"
    assert mark(r"5 \text{ km}", r"\boxed{6 \text{ km}}").reason == "mismatch"


# --- how it is wired in --------------------------------------------------------------------------------------------


def test_the_rule_is_stored_with_the_grader():
    for name in base.GRADERS:
        identity = base.grader_identity(name)
        assert identity.get("strict") == base.STRICT_RULES.get(name)
    assert {base.STRICT_RULES[name]["name"] for name in base.STRICT_MATH} == {"strict_math"}
    assert base.STRICT_RULES["number"] == {"name": "strict_number", "version": 1}
    assert base.rule_names("math_latex_gold") == ("math_latex_gold 1, published", "strict_math 1, strict")
    assert base.rule_names("number")[1] == "strict_number 1, strict"
    assert base.rule_names("default_extraction")[1] == "default_extraction 1, strict"


def test_question_and_end_reach_the_rule_alone():
    known = {"question": "How many?", "finish_reason": None}
    assert base.context_for("math_latex_gold", {"level": 1}, **known) == {"level": 1, "question": "How many?"}
    assert base.context_for("number", {}, **known) == {}
    assert base.context_for("number", {}, question="?", finish_reason="stop") == {"finish_reason": "stop"}
    assert base.context_for("default_extraction", {}, question="?", finish_reason="stop") == {}


def test_a_run_hands_both_over():
    item = Item(item_id="0", prompt="How many percent?", gold="$20$")
    found = runner._answers("math_latex_gold", item, [("20", "stop")])
    assert found == [("$20$", "20", {"question": "How many percent?", "finish_reason": "stop"})]
    assert runner._answers("number", item, [("20", "stop")]) == [("$20$", "20", {"finish_reason": "stop"})]
    assert runner._answers("default_extraction", item, [("20", "stop")]) == [("$20$", "20")]


def test_both_rules_mark_an_answer(grading_pool):
    verdict, cut = grading_pool.grade(
        "math_latex_gold",
        [
            ("$5 \\text{ km}$", "So $\\boxed{5 \\text{ m}}$"),
            ("$5$", "First $n = 5$ holds.", {"finish_reason": "length"}),
        ],
    )
    assert (verdict.correct, verdict.correct_strict, verdict.reason_strict) == (True, False, "wrong_unit")
    assert (cut.correct, cut.correct_strict, cut.reason_strict) == (True, False, "no_answer")


def test_explain_shows_both_sides(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"gold": "$\\\\frac{1}{2}$", "prediction": "The answer is 0.5 or 0.6."}\n', encoding="utf-8")
    command = ["grade", "--benchmark", "math500", "--rule", "both", "--input", str(source), "--output", str(target)]
    assert main([*command, "--explain"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("row 1, math_latex_gold 1, published: right (match); read ")
    assert told[1] == (
        "row 1, strict_math 1, strict: wrong (no_answer); read nothing; gold \\frac{1}{2}; "
        "0.5 or 0.6: several answers are offered"
    )
    row = json.loads(target.read_text(encoding="utf-8"))
    assert (row["rule"], row["rule_strict"]) == ("math_latex_gold 1, published", "strict_math 1, strict")
    assert main(command) == 0 and len(capsys.readouterr().out.splitlines()) == 1
