"""Runs as the hub's .eval_results, as Every Eval Ever records and as a model card."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from interop_logs import lm_eval_lines, write_lm_eval, write_problems, write_run

from eval_harness import records
from eval_harness.__main__ import main
from eval_harness.errors import UserError
from eval_harness.interop import cards, exporters
from eval_harness.interop.importers import import_logs
from eval_harness.stats import wilson

SCHEMAS = Path(__file__).resolve().parent / "cases" / "every_eval_ever"
AIME = [[i < 10, i < 5] for i in range(30)]
"""Ten problems right in the first sample, five in the second: avg@2 25 %, single 33.3 %."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """AIME24 whole with two samples, and eight items of a tiny suite."""
    return write_run(tmp_path_factory.mktemp("run"), {"aime24": AIME, "tiny_sums": [[True]] * 8})


def _validate(line: dict, schema: str) -> None:
    jsonschema.validate(line, json.loads((SCHEMAS / schema).read_text(encoding="utf-8")))


def test_eval_results(run_folder, tmp_path, capsys):
    """One file per benchmark with a hub data set, which the hub's own reader takes; no tiny suite."""
    command = ["export", str(run_folder), "--format", "eval-results", "--output", str(tmp_path)]
    assert main([*command, "--source-url", "https://example.org/run", "--task-id", "aime"]) == 0
    assert "tiny_sums: not written, a procedural tiny suite" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / ".eval_results").iterdir()] == ["aime24.yaml"]
    loaded = yaml.safe_load((tmp_path / ".eval_results" / "aime24.yaml").read_text(encoding="utf-8"))
    (entry,) = parse_eval_result_entries(loaded)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("HuggingFaceH4/aime_2024", "aime", 25.0)
    assert entry.dataset_revision == "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
    assert entry.date == "2026-11-21T21:00:00+00:00" and entry.source_url == "https://example.org/run"
    score = records.read_run(run_folder).benchmarks["aime24"].score
    interval = f"95 % interval [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    for part in (
        "avg@2",
        interval,
        "strict rule 16.7",
        "60 of 60 samples scored, 30 items",
        "zero-shot, temperature 0.6",
    ):
        assert part in entry.notes


def test_what_is_no_benchmark_score_is_not_published(tmp_path, run_folder):
    few = write_run(tmp_path / "few", {"aime24": AIME[:6]})
    with pytest.raises(UserError, match="only 6 of 30 items were asked"):
        exporters.eval_results(few, tmp_path / "out")
    tiny = write_run(tmp_path / "tiny", {"tiny_sums": [[True]] * 8})
    with pytest.raises(UserError, match="no score to publish.*tiny suite"):
        exporters.eval_results(tiny, tmp_path / "out")
    nothing = write_run(tmp_path / "nothing", {"aime24": AIME}, failed=60)
    with pytest.raises(UserError, match="no completion was scored"):
        exporters.eval_results(nothing, tmp_path / "out")
    unfinished = write_run(tmp_path / "unfinished", {"aime24": AIME}, status="running")
    for export in (exporters.eval_results, exporters.every_eval_ever, exporters.model_card):
        with pytest.raises(UserError, match="not finished"):
            export(unfinished, tmp_path / "out")
    with pytest.raises(UserError, match="not a run folder"):
        exporters.model_card(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    local = write_run(tmp_path / "local", {"aime24": AIME}, settings={"limit": None, "data": "local copy"})
    (file,) = exporters.eval_results(local, tmp_path / "out").files
    assert "revision" not in file.read_text(encoding="utf-8")  # nobody knows which commit a local copy is


def test_failures_are_told(tmp_path):
    folder = write_run(tmp_path / "run", {"aime24": AIME}, failed=3)
    done = exporters.eval_results(folder, tmp_path / "out")
    assert done.remarks == ["aime24: 3 of 60 samples failed and count as wrong."]
    assert "57 of 60 samples scored" in done.files[0].read_text(encoding="utf-8")
    card = exporters.model_card(folder, tmp_path / "out")
    assert "- AIME24: 3 of 60 samples failed and count as wrong." in card.files[0].read_text(encoding="utf-8")
    aggregate, samples = exporters.every_eval_ever(folder, tmp_path / "out").files
    details = json.loads(aggregate.read_text(encoding="utf-8"))["evaluation_results"][0]["score_details"]["details"]
    assert details["failed"] == "3" and "3 of 60" in details["remarks"]
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        _validate(line, "instance_level_eval.schema.json")
    assert [line["error"] for line in lines].count("the engine said no") == 6  # three samples, two rules
    assert lines[0]["output"] == {"raw": []} and lines[0]["evaluation"] == {"score": 0.0, "is_correct": False}


def test_every_eval_ever(run_folder, tmp_path):
    """Both files of each benchmark fit the published schemas and each other; the numbers are the run's."""
    done = exporters.every_eval_ever(run_folder, tmp_path, organization="Us", relationship="third_party")
    assert done.files == exporters.every_eval_ever(run_folder, tmp_path).files and len(done.files) == 4
    assert [line.split(":")[0] for line in done.remarks] == ["tiny_sums", "tiny_sums"]
    exporters.every_eval_ever(run_folder, tmp_path, organization="Us", relationship="third_party")
    run = records.read_run(run_folder)
    for name, aggregate, samples in (("aime24", *done.files[:2]), ("tiny_sums", *done.files[2:])):
        data = json.loads(aggregate.read_text(encoding="utf-8"))
        _validate(data, "eval.schema.json")
        where = aggregate.relative_to(tmp_path)
        assert where.parts[:-1] == ("data", name, "someone", "some-model")
        reference = data["detailed_evaluation_results"]
        assert tmp_path / reference["file_path"] == samples and samples.stem == f"{aggregate.stem}_samples"
        assert reference["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest()
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        assert len(lines) == reference["total_rows"] == 2 * run.benchmarks[name].asked
        for line in lines:
            _validate(line, "instance_level_eval.schema.json")
            assert line["evaluation_id"] == data["evaluation_id"] and line["model_id"] == data["model_info"]["id"]
        result = run.benchmarks[name]
        for found, estimate in zip(data["evaluation_results"], (result.score, result.score_strict), strict=True):
            own = [
                x["evaluation"]["score"] for x in lines if x["evaluation_result_id"] == found["evaluation_result_id"]
            ]
            uncertainty = found["score_details"]["uncertainty"]
            assert found["score_details"]["score"] == estimate["mean"] == pytest.approx(sum(own) / len(own))
            interval = uncertainty["confidence_interval"]
            assert (interval["lower"], interval["upper"]) == (estimate["low"], estimate["high"])
            assert interval["confidence_level"] == 0.95 and uncertainty["num_samples"] == result.num_items
            assert uncertainty["standard_error"]["value"] == estimate["se"]
            deviation = uncertainty["standard_deviation"]
            assert deviation / math.sqrt(result.num_items) == pytest.approx(estimate["se"])
    aime, tiny = (json.loads(done.files[i].read_text(encoding="utf-8"))["evaluation_results"][0] for i in (0, 2))
    assert "Student" in aime["score_details"]["uncertainty"]["confidence_interval"]["method"]
    assert "Wilson" in tiny["score_details"]["uncertainty"]["confidence_interval"]["method"]
    assert tiny["score_details"]["uncertainty"]["confidence_interval"]["lower"] == wilson(8, 8)[0]
    assert "tiny suite" in tiny["score_details"]["details"]["remarks"] and tiny["source_data"]["source_type"] == "other"
    assert aime["source_data"]["hf_repo"] == "HuggingFaceH4/aime_2024"
    assert aime["generation_config"]["generation_args"]["temperature"] == 0.6


def test_one_item_has_no_standard_error(tmp_path):
    """NaN is no JSON."""
    folder = write_run(tmp_path / "run", {"tiny_sums": [[True]]})
    aggregate, _ = exporters.every_eval_ever(folder, tmp_path / "out").files
    data = json.loads(aggregate.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    _validate(data, "eval.schema.json")
    assert "standard_error" not in data["evaluation_results"][0]["score_details"]["uncertainty"]


def test_a_local_model_needs_a_hub_id(tmp_path):
    folder = write_run(tmp_path / "run", {"aime24": AIME}, model={"name": "final", "weights": "c" * 32})
    with pytest.raises(UserError, match="--model-id OWNER/NAME"):
        exporters.every_eval_ever(folder, tmp_path / "out")
    command = ["export", str(folder), "--format", "every-eval-ever", "--output", str(tmp_path), "--model-id"]
    assert main([*command, "me/final"]) == 0
    (aggregate,) = (p for p in tmp_path.glob("data/aime24/me/final/*.json"))
    assert json.loads(aggregate.read_text(encoding="utf-8"))["model_info"]["name"] == "final"
    assert main([*command, "final"]) == 2


def test_an_imported_run_says_so(tmp_path):
    log = write_lm_eval(tmp_path / "log", lm_eval_lines())
    data = write_problems(tmp_path / "data")
    folder = import_logs("lm-eval", [log], ["aime24"], tmp_path / "run", data_root=data)
    (file,) = exporters.eval_results(folder, tmp_path / "out").files
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert entry.value == 50.0 and entry.notes.endswith("completions from lm-eval 0.4.13, graded again")
    assert entry.dataset_revision is None and "items from a local copy of the data" in entry.notes
    aggregate, _ = exporters.every_eval_ever(folder, tmp_path / "out").files
    record = json.loads(aggregate.read_text(encoding="utf-8"))
    _validate(record, "eval.schema.json")
    assert record["eval_library"]["additional_details"]["completions_from"] == "lm-eval 0.4.13"
    assert "prompts of lm-eval" in entry.notes and "zero-shot" not in entry.notes
    (card,) = exporters.model_card(folder, tmp_path / "out").files
    assert "prompts of lm-eval" in card.read_text(encoding="utf-8")
    assert "prompt_template" not in record["evaluation_results"][0]["generation_config"]["generation_args"]
    assert record["evaluation_results"][0]["source_data"]["additional_details"]["file"] == "aime_2024.jsonl"


def test_model_card(run_folder, tmp_path, capsys):
    """A new card: the table for people, model-index for machines, without the tiny suite."""
    assert main(["export", str(run_folder), "--format", "model-card", "--output", str(tmp_path)]) == 0
    assert "tiny_sums: procedural tiny suite" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_value) == ("HuggingFaceH4/aime_2024", 25.0)
    assert result.metric_name == "AIME24 accuracy, avg@2" and result.metric_args["temperature"] == 0.6
    score = records.read_run(run_folder).benchmarks["aime24"].score
    interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    assert f"| AIME24 | 25.0 | {interval} | 16.7 | 30 × 2 | 60 / 60 |" in card.text
    assert "(tiny suite) | 100.0 |" in card.text and "first sample alone: 33.3" in card.text
    assert "a" * 40 in card.text and "b" * 12 in card.text


def test_a_model_card_that_is_there_keeps_the_rest(run_folder, tmp_path):
    """Text and metadata of others stay; the section is replaced, however often."""
    path = tmp_path / "README.md"
    other = {"task": {"type": "text-generation"}, "dataset": {"name": "GSM8K", "type": "openai/gsm8k"}}
    index = [{"name": "mine", "results": [other | {"metrics": [{"type": "accuracy", "value": 12.5}]}]}]
    head = yaml.safe_dump({"license": "apache-2.0", "tags": ["math"], "model-index": index})
    path.write_text(f"---\n{head}---\n\n# Mine\n\nMy words.\n", encoding="utf-8")
    exporters.model_card(run_folder, tmp_path)
    once = path.read_text(encoding="utf-8")
    path.write_text(once + "\nMore of my words.\n", encoding="utf-8")
    better = write_run(tmp_path / "better", {"aime24": [[True, True]] * 30})
    exporters.model_card(better, tmp_path)
    exporters.model_card(better, tmp_path)
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0" and card.data.tags == ["math"] and card.data.model_name == "mine"
    assert {r.dataset_type: r.metric_value for r in card.data.eval_results} == {
        "openai/gsm8k": 12.5,
        "HuggingFaceH4/aime_2024": 100.0,
    }
    assert "My words." in card.text and "More of my words." in card.text
    assert card.text.count("## Evaluation") == 1 and "| AIME24 | 100.0 |" in card.text and "25.0" not in card.text
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(cards.SECTION[1], ""), encoding="utf-8")
    with pytest.raises(UserError, match="do not stand there once each"):
        exporters.model_card(better, tmp_path)
    path.write_text("---\n: [\n---\n", encoding="utf-8")
    with pytest.raises(UserError, match="metadata cannot be read"):
        exporters.model_card(better, tmp_path)
