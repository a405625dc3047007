"""Records: what is written is read back; what is damaged is named."""

import json
import subprocess
from importlib import metadata

import pandas as pd
import pytest

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.records import Item, RunRecord, Sample


def _sample(i: int, **changes) -> Sample:
    values = {
        "item_id": str(i), "sample": 0, "seed": 7, "status": "scored", "completion": "a\u2028b \ud800 \x00 é",
        "finish_reason": "stop", "num_prompt_tokens": 3, "num_completion_tokens": 2, "correct": True,
        "correct_strict": True, "extracted": "5", "reason": "match", "gold_fallback": False,
    }  # fmt: skip
    return Sample(**values | changes)


def test_lines_round_trip_with_awkward_characters(tmp_path):
    path = tmp_path / "samples" / "x.jsonl"
    written = [_sample(i, completion="line\nbreak \u2028 \x00 é") for i in range(3)]
    records.append_lines(path, written[:2])
    records.append_lines(path, written[2:])
    assert records.read_lines(path, Sample) == written
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("odd", ["\ud800", "a\udfff\ud800b", "\U0001f600 \udc80"])
def test_half_a_surrogate_pair_in_any_field_can_be_read_back(odd, tmp_path):
    """A grader may find one in what an engine wrote; every other character stays, a whole pair too."""
    fields = ("item_id", "completion", "finish_reason", "extracted", "extracted_strict", "reason", "reason_strict")
    records.append_lines(tmp_path / "x.jsonl", [_sample(0, **dict.fromkeys(fields, odd), flags=(odd,))])
    (read,) = records.read_lines(tmp_path / "x.jsonl", Sample)
    expected = {"\ud800": "\ufffd", "a\udfff\ud800b": "a\ufffd\ufffdb", "\U0001f600 \udc80": "\U0001f600 \ufffd"}[odd]
    assert {getattr(read, name) for name in fields} == set(read.flags) == {expected}
    records.write_json(tmp_path / "x.json", {odd: [odd]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {expected: [expected]}


def test_a_torn_tail_is_refused_or_repaired(tmp_path):
    path = tmp_path / "x.jsonl"
    records.append_lines(path, [_sample(0, completion="a"), _sample(1, completion="b")])
    whole = path.read_bytes()
    for cut in (1, 20, 100):
        path.write_bytes(whole[:-cut])
        with pytest.raises(UserError, match="torn"):
            records.read_lines(path, Sample)
        assert [s.item_id for s in records.read_lines(path, Sample, repair=True)] == ["0"]
        assert [s.item_id for s in records.read_lines(path, Sample)] == ["0"]


@pytest.mark.parametrize(
    "line", ["not json", "[]", '{"item_id": "1"}', json.dumps({"item_id": "1", "prompt": "p", "gold": "g", "extra": 1})]
)
def test_an_edited_line_is_named(tmp_path, line):
    path = tmp_path / "items.jsonl"
    records.append_lines(path, [Item(item_id="0", prompt="p", gold="g")])
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 2"):
        records.read_lines(path, Item)


def test_run_json_errors(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        records.read_run(tmp_path)
    run = tmp_path / "run.json"
    for text, message in (
        ("{", "not valid JSON"),
        ('{"schema_version": 99, "kind": "evaluation"}', "schema version 99"),
        ('{"schema_version": 1, "kind": "poem"}', "poem"),
        ('{"schema_version": 1, "kind": "evaluation"}', "does not fit"),
    ):
        run.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            records.read_run(tmp_path)


def test_write_json_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        records.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_environment_names_versions_and_nothing_private(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_value")
    text = json.dumps(records.environment())
    assert "transformers" in text and "python" in text
    assert "hf_secret_token_value" not in text and "/" not in json.dumps(records.environment()["packages"])


def test_the_environment_names_what_decides_a_mark():
    packages = records.environment()["packages"]
    for name in ("torch", "transformers", "trl", "math-verify", "latex2sympy2_extended", "sympy", "numpy"):
        assert packages[name] == metadata.version(name)


def test_the_code_revision_is_the_commit_and_whether_it_was_changed(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "code.py").write_text("1")
    assert records._code_revision(tmp_path) == {"commit": None, "uncommitted_changes": None}
    git("init")
    git("add", "code.py")
    git("commit", "--message", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "notes").write_text("not under version control")
    assert records._code_revision(tmp_path) == {"commit": commit, "uncommitted_changes": False}
    (tmp_path / "code.py").write_text("2")
    assert records._code_revision(tmp_path) == {"commit": commit, "uncommitted_changes": True}


def test_what_a_line_of_the_first_schema_leaves_out():
    """A group or a strict reason that nobody gave is none, not an empty one."""
    item = Item.model_validate({"item_id": "0", "prompt": "p", "gold": "g"})
    assert (item.group, item.images, item.context) == (None, (), {})
    sample = _sample(0)
    assert (sample.reason_strict, sample.extracted_strict, sample.score, sample.score_strict) == (None,) * 4
    assert (sample.flags, sample.extra, sample.mark, sample.mark_strict) == ((), {}, 1.0, 1.0)


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / "x.jsonl"
    records.append_lines(path, [_sample(i, completion="a") for i in range(3)])
    with open(path, "a", encoding="utf-8") as file:
        file.write("{}\n")
    lines = records.iter_lines(path, Sample)
    assert [next(lines).item_id for _ in range(3)] == ["0", "1", "2"]  # what is good is there before the bad one's turn
    with pytest.raises(UserError, match="line 4: not a valid Sample line"):
        next(lines)
    assert list(records.iter_lines(tmp_path / "none.jsonl", Sample)) == []


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 16])
def test_the_end_of_the_last_line_is_found_block_by_block(tmp_path, block):
    for content in (b"", b"abc", b"\n", b"ab\ncdefgh", b"ab\ncd\n", b"\n" + b"x" * 20):
        (tmp_path / "x").write_bytes(content)
        with open(tmp_path / "x", "rb") as file:
            assert records._end_of_last_line(file, block) == content.rfind(b"\n") + 1


def _run(folder, **samples):
    for name, of_name in samples.items():
        records.append_lines(folder / "samples" / f"{name}.jsonl", of_name)
    result = {
        "version": 1, "source": "s", "prompts_hash": "h", "num_items": 1, "score": None, "score_strict": None,
        "num_gold_fallback": 0, "num_truncated": 0, "num_no_answer": 0, "num_timeout": 0,
        "mean_completion_tokens": None,
        "decoding": {"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": 1, "samples": 1, "seed": 0,
                     "system_prompt": None},
    }  # fmt: skip
    counts = {}
    for name, of_name in samples.items():
        scored = sum(sample.status == "scored" for sample in of_name)
        counts[name] = {"asked": len(of_name), "scored": scored, "failed": len(of_name) - scored}
    run = RunRecord(
        run_id="r", fingerprint="f", status="finished", created="", finished="", model={}, engine={}, settings={},
        benchmarks={name: result | counts[name] for name in samples}, average=None, timings={}, environment={},
    )  # fmt: skip
    records.write_json(folder / "run.json", run)
    return folder


def test_the_frame_is_what_one_made_of_all_rows_at_once_would_be(tmp_path, monkeypatch):
    """Blocks of two rows, so that every kind of column crosses one: all there, none there, some there."""
    monkeypatch.setattr(records._Column, "_BLOCK", 2)
    failed = {"status": "failed", "completion": None, "correct": None, "num_completion_tokens": None}
    a = [_sample(i, completion=f"text {i}", extracted=None, flags=("x",) if i == 3 else ()) for i in range(5)]
    b = [_sample(9, **failed), _sample(10, completion="b", extra={"iou": 0.5}), _sample(11, completion="c")]
    a[0] = _sample(0, extracted=None, completion=None)
    a[1] = _sample(1, extracted=None, completion=None)  # a whole block without a text
    folder = _run(tmp_path / "run", a=a, b=b)
    rows = [{"benchmark": name, **s.model_dump()} for name, of_name in (("a", a), ("b", b)) for s in of_name]
    expected = pd.DataFrame(rows, columns=["benchmark", *Sample.model_fields])
    pd.testing.assert_frame_equal(records.samples_frame(folder), expected)
    chosen = ["correct", "benchmark", "completion"]
    pd.testing.assert_frame_equal(records.samples_frame(folder, chosen), expected[chosen])
    with pytest.raises(UserError, match="did you mean 'correct'"):
        records.samples_frame(folder, ["corect"])
    empty = records.samples_frame(_run(tmp_path / "empty", a=[]))
    assert list(empty.columns) == list(expected.columns) and len(empty) == 0
