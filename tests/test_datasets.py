"""Training sets: columns, prompts, missing golds, repeats, and the real data where there is some."""

import json

import pytest

from eval_harness.errors import UserError
from eval_harness.sources import read_jsonl
from gpg_repro.datasets import all_training_sets, get_training_set
from gpg_repro.prompts import OPEN_R1_THINK, QWEN_BOXED
from gpg_repro.rewards import unreadable_golds


def _write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_sets_say_where_their_rows_come_from():
    described = {name: s.describe() for name, s in all_training_sets().items()}
    assert described["math_lighteval"] == "DigitalLearningGmbH/MATH-lighteval@0530c786[train]"
    assert described["simplerl_level3to5"] == "hkust-nlp/SimpleRL-Zoo-Data/simplelr_qwen_level3to5/train.parquet@main"
    assert described["dapo_math_17k"] == "BytedTsinghua-SIA/DAPO-Math-17k@65877096[train]"
    assert described["tiny_s1"] == "generated (tiny_s1)"


def test_math_lighteval(tmp_path):
    root = _write(
        tmp_path, "math_lighteval", [{"problem": "1+1?", "solution": "It is $\\boxed{2}$.", "type": "Algebra"}]
    )
    (row,) = get_training_set("math_lighteval").rows(OPEN_R1_THINK, 1, 0, root)
    assert row["prompt"] == [{"role": "system", "content": OPEN_R1_THINK}, {"role": "user", "content": "1+1?"}]
    assert row["solution"] == "It is $\\boxed{2}$."
    with pytest.raises(UserError, match="holds 1 rows, expected 7500"):
        get_training_set("math_lighteval").rows(None, None, 0, root)


def _with_answers(root, tmp_path):
    """A training file's rows as they are, and as read with the bare answer in the place of the solution they lack."""
    given = read_jsonl(root / "train" / "math_train.jsonl")
    copies = [{"problem": r["problem"], "solution": f"$\\boxed{{{r['answer'] or ''}}}$"} for r in given]
    rows = get_training_set("math_lighteval").rows(None, len(given), 0, _write(tmp_path, "math_lighteval", copies))
    assert [row["prompt"][-1]["content"] for row in rows] == [r["problem"] for r in given]
    return given, rows


def test_math_lighteval_keeps_texts_and_finds_the_gold_that_cannot_be_read(own_data_root, tmp_path):
    given, rows = _with_answers(own_data_root, tmp_path)
    assert [r["problem"] for r in given if not r["answer"]] == ["Which number was lost?"]
    assert unreadable_golds((row["solution"] for row in rows), ["accuracy"]) == {"$\\boxed{}$"}


@pytest.mark.real_data("MATH's training problems", "train/math_train.jsonl")
def test_math_lighteval_from_real_rows(data_root, tmp_path):
    """7,474 of the 7,500 real problems."""
    given, rows = _with_answers(data_root, tmp_path)
    empty = sum(not r["answer"] for r in given)
    unreadable = unreadable_golds((row["solution"] for row in rows[:400]), ["accuracy"])
    assert len(unreadable) <= 1 + empty and len(rows) == len(given) > 7000


def test_simplerl_brings_its_whole_prompt(tmp_path):
    text = QWEN_BOXED.replace("{question}", "1+1?")
    made = [{"prompt": [{"role": "user", "content": text}], "target": gold} for gold in ("2", "", None)]
    source = get_training_set("simplerl_level3to5")
    root = _write(tmp_path, "simplelr_qwen_level3to5", made)
    rows = source.rows(None, None, 0, root)
    assert rows[0] == {"prompt": text, "solution": "2"}
    assert [row["solution"] for row in rows] == ["2", "", ""]  # kept for the caller to count
    with pytest.raises(UserError, match="system_prompt must be null"):
        source.rows("Think.", None, 0, root)
    _write(tmp_path, "simplelr_qwen_level3to5", [{"prompt": [], "target": "2"}])
    with pytest.raises(UserError, match="row 0 .* is not built as expected"):
        source.rows(None, None, 0, root)


def test_dapo_questions_leave_their_frame_and_come_once(tmp_path):
    def row(question, gold):
        text = (
            "Solve the following math problem step by step. The last line of your response should be of the form "
            "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
            f'{question}\n\nRemember to put your answer on its own line after "Answer:".'
        )
        return {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": gold, "style": "rule"}}

    source = get_training_set("dapo_math_17k")
    root = _write(tmp_path, "dapo_math_17k", [row("1+1?", "2"), row("2+2?", "4"), row("1+1?", "3"), row("3+3?", "6")])
    rows = source.rows(None, None, 0, root)
    assert [(r["prompt"], r["solution"]) for r in rows] == [
        (QWEN_BOXED.replace("{question}", q), gold) for q, gold in (("1+1?", "2"), ("2+2?", "4"), ("3+3?", "6"))
    ]
    assert source.rows(None, 2, 0, root) == rows[:2]
    _write(tmp_path, "dapo_math_17k", [{"prompt": [{"content": "1+1?"}], "reward_model": {"ground_truth": "2"}}])
    with pytest.raises(UserError, match="lacks the frame"):
        source.rows(None, None, 0, root)


def test_a_missing_gold_is_an_error_where_none_is_known_to_be_missing(tmp_path):
    root = _write(tmp_path, "math_lighteval", [{"problem": "1+1?", "solution": " "}])
    with pytest.raises(UserError, match="row 0 .* gold is missing or empty"):
        get_training_set("math_lighteval").rows(None, 1, 0, root)


def test_hub_sets_name_what_is_missing():
    for name, wanted in (
        ("open_s1", r"knoveleng/open-s1.*--data-root DIR with a open_s1.jsonl"),
        ("simplerl_level3to5", r"level3to5/train.parquet.*--data-root DIR with a simplelr_qwen_level3to5.jsonl"),
        ("dapo_math_17k", r"DAPO-Math-17k.*--data-root DIR with a dapo_math_17k.jsonl"),
    ):
        with pytest.raises(UserError, match=wanted):
            get_training_set(name).rows(None, None, 0)
