"""Records: what is written is read back; what is damaged is named."""

import json

import pytest

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.records import Item, Sample


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
