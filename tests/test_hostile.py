"""The hostile corpus through every grader, parser and reward: none hangs, falls, believes it or does what it says."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from eval_harness.errors import UserError
from eval_harness.fuzz.corpus import Hostile, built, read_corpus
from eval_harness.fuzz.targets import all_targets, problem_of
from eval_harness.graders.base import GRADERS, UNFINISHED
from eval_harness.graders.pool import GradingPool
from gpg_repro.fuzzing import REWARDS

CASES = Path(__file__).parent / "cases" / "hostile.json"
CORPUS = read_corpus(CASES)
GOLDS = {"choice": "(C)", "class_name": "Egyptian mau", "box": "(101,202),(303,404)"} | dict.fromkeys(
    ("math_expression_gold", "boxed_answer", "number"), "7319"
)
"""By grader, a gold that no text of the corpus states unless it says so; ``$7319$`` for the others."""
CHOICES = {"choices": ["alder", "birch", "cedar", "dogwood"]}
LONG = ("math_expression_gold", "boxed", "number", "choice", "class_name", "box")
"""One grader of each library and rule; the others read texts in the same way, and here only the shorter ones."""
PARSERS = {name: target for name, target in all_targets().items() if not target.judges}
REWARD_GOLDS = {"reward_giou": "<answer> (101,202),(303,404) </answer>", "reward_accuracy_lv35": "7319"}


@pytest.fixture(scope="module")
def pool():
    """Impatient, so that what is slow costs little; what ends so is a recorded zero."""
    with GradingPool(deadline=0.2, memory=512 << 20, patience=50) as pool:
        yield pool


@pytest.fixture
def canary(tmp_path):
    """A file that much of the corpus would make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists() and not Path("CANARY").exists()


def _answer(grader: str, entry: Hostile, canary: Path) -> tuple:
    context = CHOICES if grader == "choice" else {}
    return entry.gold or GOLDS.get(grader, "$7319$"), entry.text.replace("CANARY", str(canary)), context


def test_the_corpus_holds_what_it_should():
    assert len(CORPUS) >= 140
    texts = {entry.name: entry.text for entry in CORPUS}
    assert sum(len(text) >= 10**6 for text in texts.values()) >= 8
    assert texts["deep braces"] == "{" * 10_000 + "1" + "}" * 10_000
    everything = "".join(texts.values())
    for character in ("\0", "\u200b", "\u202e", "\ud800", "٧", "७", "７", "\x1b"):
        assert character in everything
    assert CASES.stat().st_size < 40_000
    assert built(["a", ["bc", 3], "d"]) == "abcbcbcd" and built("x") == "x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ('[{"name": "a", "why": ""}]', "needs name, why and text"),
        ('[{"name": "a", "why": "", "text": "", "colour": 1}]', "needs name, why and text"),
        ('[{"name": "a", "why": "", "text": ""}, {"name": "a", "why": "", "text": ""}]', "two entries of one name: a"),
    ],
)
def test_a_damaged_corpus_is_refused(content, message, tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_corpus(path)
    with pytest.raises(UserError, match="does not exist"):
        read_corpus(tmp_path / "none.json")


@pytest.mark.full("the whole hostile corpus")
@pytest.mark.parametrize("grader", GRADERS)
def test_no_hostile_text_is_believed(grader, pool, canary):
    longest = 10**7 if grader in LONG else 20_000
    entries = [e for e in CORPUS if grader in (e.graders or GRADERS) and len(e.text) <= longest]
    verdicts = pool.grade(grader, [_answer(grader, entry, canary) for entry in entries])
    target = all_targets()[grader]
    for entry, verdict in zip(entries, verdicts, strict=True):
        assert problem_of(verdict, target) is None, entry.name
        assert verdict.reason != "grader_crash", entry.name
        if verdict.reason not in UNFINISHED:
            marks = (entry.correct.get(grader, False), entry.correct_strict.get(grader, False))
            assert (verdict.correct, verdict.correct_strict) == marks, (entry.name, verdict)
    ended = [verdict for verdict in verdicts if verdict.reason in UNFINISHED]
    assert len(ended) < len(entries) / 3  # the corpus is hostile, but most of it is quick


@pytest.mark.parametrize("entry", [e for e in CORPUS if e.correct or e.correct_strict], ids=lambda e: e.name)
def test_what_is_right_after_all(entry, grading_pool, canary):
    """With time enough: the verdicts that the corpus defines are reached, not ended."""
    for grader in sorted({*entry.correct, *entry.correct_strict}):
        (verdict,) = grading_pool.grade(grader, [_answer(grader, entry, canary)])
        marks = (entry.correct.get(grader, False), entry.correct_strict.get(grader, False))
        assert (verdict.correct, verdict.correct_strict) == marks, verdict


@pytest.mark.long("the hostile corpus as golds")
@pytest.mark.parametrize("grader", ["boxed", "number", "choice", "class_name", "box"])
def test_hostile_golds_are_no_danger_either(grader, pool, canary):
    """A data set may be as odd as a model."""
    entries = [entry for entry in CORPUS if 0 < len(entry.text) < 5000]
    golds = [entry.text.replace("CANARY", str(canary)) for entry in entries]
    verdicts = pool.grade(grader, [(gold, "so $\\boxed{5}$ <answer>5</answer>") for gold in golds])
    for entry, verdict in zip(entries, verdicts, strict=True):
        assert problem_of(verdict, all_targets()[grader]) is None and verdict.reason != "grader_crash", entry.name


@pytest.mark.full("the whole hostile corpus")
def test_parsers_refuse_or_read_it_in_time(grading_pool, canary):
    """They run in the caller's process in real use, so none may take long: 5 s for 10^6 characters."""
    answers = [("", entry.text.replace("CANARY", str(canary))) for entry in CORPUS]
    futures = {name: grading_pool.grade_async(target.grader, answers) for name, target in PARSERS.items()}
    for name, future in futures.items():
        for entry, verdict in zip(CORPUS, future.result(), strict=True):
            assert verdict.reason in ("match", "no_answer"), (name, entry.name, verdict)


@pytest.mark.full("the whole hostile corpus")
@pytest.mark.parametrize("name", REWARDS)
def test_rewards_pay_a_number_in_time(name, grading_pool, canary):
    """What of a reward runs in the trainer's own process: a quarter of a second of computing at most."""
    answers = [
        (REWARD_GOLDS.get(name, "<answer> $7319$ </answer>"), e.text.replace("CANARY", str(canary))) for e in CORPUS
    ]
    verdicts = grading_pool.grade(REWARDS[name].grader.replace(":Reward:", ":OwnPart:"), answers)
    for entry, verdict in zip(CORPUS, verdicts, strict=True):
        assert verdict.reason in ("match", "mismatch"), (entry.name, verdict)


def test_the_caller_is_as_it_was(pool, canary):
    before = _state()
    codes = [entry for entry in CORPUS if "CANARY" in entry.text]
    assert len(codes) >= 10
    pool.grade("math_latex_gold", [("$1$", entry.text.replace("CANARY", str(canary))) for entry in codes])
    assert _state() == before


def _state() -> tuple:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    names = {thread.name for thread in threading.enumerate()} - {"grading-pool"}
    return handlers, os.getcwd(), dict(os.environ), names, os.umask(os.umask(0o022) or 0o022)


@pytest.mark.full("the commands, each a process")
def test_the_commands_take_it(tmp_path, pool, monkeypatch, capsys, canary):
    """The whole corpus as a file for ``grade``: every row comes back, in order, as valid JSON."""
    from eval_harness import __main__ as commands
    from eval_harness.graders import pool as pools

    class Quick(GradingPool):
        def __init__(self, deadline: float) -> None:
            super().__init__(deadline=deadline, patience=20)

    monkeypatch.setattr(pools, "GradingPool", Quick)
    entries = [entry for entry in CORPUS if len(entry.text) < 300]
    right = sum(entry.correct.get("math_latex_gold", False) for entry in entries)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"gold": "$7319$", "prediction": e.text.replace("CANARY", str(canary)), "name": e.name} for e in entries]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    grade = ["grade", "--benchmark", "math500", "--input", str(source), "--output", str(target)]
    assert commands.main([*grade, "--deadline", "0.4"]) == 0
    said = capsys.readouterr().out
    assert right and f"{right} of {len(rows)} correct" in said and "timeouts" in said
    graded = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]
    assert [row["name"] for row in graded] == [entry.name for entry in entries]
    assert all({"correct", "reason", "extracted"} <= row.keys() for row in graded)
    assert commands.main([*grade, "--deadline", "0"]) == 2 and "positive" in capsys.readouterr().err
