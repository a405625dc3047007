"""lighteval with our engine and our tasks: the same completions, marks and scores as ``eval_harness run``."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from interop_logs import write_problems

from eval_harness import records
from eval_harness.engines import Completion, Result
from eval_harness.errors import UserError
from eval_harness.interop import lighteval_model, lighteval_tasks
from eval_harness.interop.importers import import_logs
from eval_harness.records import Item, Sample
from eval_harness.runner import Overrides, evaluate

ROOT = Path(__file__).resolve().parent.parent
INTEROP = ROOT / "eval_harness" / "interop"
CASES = json.loads((ROOT / "tests" / "cases" / "math_graders.json").read_text(encoding="utf-8"))
TINY_BENCHMARKS = "lighteval.tasks.tasks.tiny_benchmarks"


def _lines(path: Path, kind: type) -> list[str]:
    return sorted(record.model_dump_json() for record in records.read_lines(path, kind))


@pytest.fixture
def offline_lighteval(monkeypatch, tmp_path):
    """lighteval's registry imports every task; this one downloads a file when it is imported. Its transformers back
    end turns gradients off for the whole process."""
    import datasets
    import torch

    monkeypatch.setitem(sys.modules, TINY_BENCHMARKS, types.ModuleType(TINY_BENCHMARKS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    yield
    torch.set_grad_enabled(True)


@pytest.mark.full("lighteval's pipeline and an engine")
def test_lighteval_and_the_harness_agree(random_checkpoint, offline_lighteval, monkeypatch, tmp_path):
    """The command line of lighteval on local data: items, completions, marks and both scores, then the import of its
    details, which is the harness's own record line by line."""
    from lighteval.main_custom import custom

    options = Overrides(samples=2, max_new_tokens=48, seed=7)

    def run(data, out):
        folder = evaluate(
            str(random_checkpoint), ["aime24"], engine="transformers", data_root=data, out=out, overrides=options,
            progress=False,
        )  # fmt: skip
        return records.read_run(folder), folder

    first, _ = run(write_problems(tmp_path / "guess"), tmp_path / "guessed")
    samples = records.read_lines(tmp_path / "guessed" / "samples" / "aime24.jsonl", Sample)
    read = {int(s.item_id): s.extracted for s in samples if (s.extracted or "").isdigit() and s.sample == 0}
    assert first.benchmarks["aime24"].score["mean"] < 1 and len(read) >= 3
    data = write_problems(tmp_path / "data", read)  # what the model happens to answer is right: marks of both kinds
    expected, folder = run(data, tmp_path / "run")
    score, strict = (getattr(expected.benchmarks["aime24"], name)["mean"] for name in ("score", "score_strict"))
    assert 0 < score < 1

    monkeypatch.setenv("EVAL_DATA_ROOT", str(data))
    monkeypatch.setenv(lighteval_model.OPTIONS, "--engine transformers --max-new-tokens 48 --seed 7")
    found = custom(
        model_name=str(random_checkpoint),
        model_definition_file_path=str(INTEROP / "lighteval_model.py"),
        tasks="gpg:aime24@n=2|0",
        custom_tasks=str(INTEROP / "lighteval_tasks.py"),
        output_dir=str(tmp_path / "lighteval"),
        save_details=True,
    )
    assert found["results"]["gpg:aime24:0"]["published@n"] == pytest.approx(score, abs=1e-12)
    assert found["results"]["gpg:aime24:0"]["strict@n"] == pytest.approx(strict, abs=1e-12)
    hashes = found["summary_tasks"]["gpg:aime24:0"].hashes
    assert hashes["hash_examples"] == expected.benchmarks["aime24"].prompts_hash

    (details,) = (tmp_path / "lighteval").glob("details/**/*.parquet")
    taken = import_logs("lighteval", [details], ["aime24"], tmp_path / "imported", data_root=data)
    for part, kind in (("items", Item), ("samples", Sample)):
        ours, theirs = (_lines(f / part / "aime24.jsonl", kind) for f in (folder, taken))
        assert ours == theirs and len(ours) == {"items": 30, "samples": 60}[part]
    imported = records.read_run(taken)
    assert imported.benchmarks["aime24"].model_dump() == expected.benchmarks["aime24"].model_dump()
    assert imported.model["name"] == random_checkpoint.name and not list(random_checkpoint.glob("*/"))


def test_the_published_grader_is_lightevals_metric_on_every_case(grading_pool):
    """``extractive_match`` as the release configures it, item by item (real golds: tests/test_graders.py)."""
    from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
    from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    golds = {"math_expression_gold": ExprExtractionConfig(), "math_latex_gold": LatexExtractionConfig()}
    metrics = {
        name: MultilingualExtractiveMatchMetric(
            gold_extraction_target=(target,),
            pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
            precision=5,
        )
        for name, target in golds.items()
    }
    cases = [case for case in CASES if case["grader"] in metrics and case.get("reason") != "timeout"]
    docs = [Doc(query="", choices=[case["gold"]], gold_index=0) for case in cases]
    marks = [
        metrics[case["grader"]].compute(doc, ModelResponse(text=[case["prediction"]]))
        for case, doc in zip(cases, docs, strict=True)
    ]
    verdicts = [grading_pool.grade(c["grader"], [(c["gold"], c["prediction"])])[0] for c in cases]
    assert [float(verdict.correct) for verdict in verdicts] == marks and 0 < sum(marks) < len(marks)


def test_metrics_read_the_whole_completion_and_take_the_mean(grading_pool):
    """Reasoning that lighteval cuts off counts as it did in the published evaluation; strictly it states nothing."""
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    def doc(gold, benchmark):
        return Doc(query="", choices=[gold], gold_index=0, specific={"benchmark": benchmark, "item_id": "0"})

    docs = [doc("7", "aime24"), doc("2", "olympiadbench")]
    responses = [
        ModelResponse(text=["<think>$\\boxed{7}$</think>", "none"], text_post_processed=["", "none"]),
        ModelResponse(text=["$\\boxed{2.0}$", "$\\boxed{2}$"]),
    ]
    published, strict = (lighteval_tasks.RuleMean(strict, n=2).compute(docs, responses) for strict in (False, True))
    assert published == [0.5, 0.5] and strict == [0.0, 1.0]


def test_tasks_are_the_text_benchmarks_of_the_hub():
    table = {task.name: task for task in lighteval_tasks.TASKS_TABLE}
    assert {"gpg:aime24", "gpg:math500", "gpg:amc23", "gpg:minerva", "gpg:olympiadbench"} <= set(table)
    for task in table.values():
        benchmark = lighteval_tasks.get_benchmark(task.name.removeprefix(lighteval_tasks.PREFIX))
        assert task.version == benchmark.version and benchmark.image_field is None
        row = {name: "7" for name in benchmark.source.columns} | {"__index": 3}
        doc = task.prompt_function(row, task.name)
        assert doc.query == benchmark.prompt.replace("{problem}", "7") and doc.get_golds() == ["7"]
        assert doc.specific == {"benchmark": benchmark.name, "item_id": "3"}
    hub = lighteval_tasks.task_of(lighteval_tasks.get_benchmark("aime24"))
    assert hub.hf_repo == "HuggingFaceH4/aime_2024" and len(hub.hf_revision) == 40


def test_the_model_file_holds_one_model():
    """lighteval takes the first subclass it finds in the file."""
    from lighteval.models.abstract_model import LightevalModel

    spec = importlib.util.spec_from_file_location("custom_model_module", INTEROP / "lighteval_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    models = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, LightevalModel)]
    assert [m.__name__ for m in models if m is not LightevalModel] == ["HarnessModel"]


def test_what_the_model_does_not_do_is_refused(random_checkpoint, monkeypatch, capsys):
    from lighteval.models.custom.custom_model import CustomModelConfig
    from lighteval.models.model_input import GenerationParameters
    from lighteval.tasks.requests import Doc

    def model(options="", name=str(random_checkpoint), **more):
        monkeypatch.setenv(lighteval_model.OPTIONS, options)
        return lighteval_model.HarnessModel(CustomModelConfig(model_name=name, model_definition_file_path="x", **more))

    for options, message in {
        "--limit 3": "--limit does not apply",
        "--samples 2": "--samples does not apply",
        "--temperature -1": "--temperature -1",
        "--engine vlm": "did you mean 'vllm'",
        "--chat-template nowhere.jinja": "give a file or none",
    }.items():
        with pytest.raises(UserError, match=message):
            model(options)
    with pytest.raises(SystemExit):
        model("--temprature 1")
    assert "unrecognized arguments: --temprature" in capsys.readouterr().err
    with pytest.raises(UserError, match="neither an existing folder"):
        model(name="nowhere")
    with pytest.raises(UserError, match="put them into"):
        model(generation_parameters=GenerationParameters(temperature=0.5))
    ours = model("--engine transformers")
    aime = Doc(query="q", choices=["1"], gold_index=0, task_name="gpg:aime24|1")
    aime.specific = {"benchmark": "aime24", "item_id": "0"}
    aime.fewshot_samples = [Doc(query="e", choices=["1"], gold_index=0)]
    with pytest.raises(UserError, match="without examples"):
        ours.greedy_until([aime])
    with pytest.raises(UserError, match="log-likelihood"):
        ours.loglikelihood([aime])
    with pytest.raises(UserError, match="images"):
        ours.greedy_until([Doc(query="q", choices=["1"], gold_index=0, images=["x"])])


@pytest.mark.full("lighteval's pipeline and an engine")
def test_other_tasks_of_lighteval_run_too(random_checkpoint, monkeypatch):
    """Their length, their stop strings, examples as turns; greedy; a prompt beyond the context is an empty answer."""
    from lighteval.models.custom.custom_model import CustomModelConfig
    from lighteval.tasks.requests import Doc

    monkeypatch.setenv(lighteval_model.OPTIONS, "--engine transformers --system-prompt hello")
    model = lighteval_model.HarnessModel(
        CustomModelConfig(model_name=str(random_checkpoint), model_definition_file_path="x")
    )

    def doc(query, **more):
        return Doc(query=query, choices=["7"], gold_index=0, id="4", task_name="gsm8k|1", generation_size=12, **more)

    example = doc("3+3=?")
    request = model._request("0", doc("3+4=?", fewshot_samples=[example]))
    assert [turn["role"] for turn in request.messages] == ["system", "user", "assistant", "user"]
    assert request.sampling.temperature == 0 and request.sampling.max_new_tokens == 12
    plain, again, long = model.greedy_until([doc("3+4=?"), doc("3+4=?"), doc("9" * 9000)])
    assert plain.text == again.text and long.text == [""] and len(plain.text[0]) > 2
    stopped = lighteval_model._response(
        doc("3+4=?", stop_sequences=["\n\n", "Question"]), Result("0", [Completion("7\n\nQuestion: 8", "stop", 9)])
    )
    assert stopped.text == ["7"]
