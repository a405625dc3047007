"""The harness end to end: real engines on a tiny checkpoint, interruption, resumption, refusals."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from engine_here import EngineHere

from eval_harness import records, runner
from eval_harness.__main__ import main
from eval_harness.engines import EngineError, EngineProcess, EngineSettings, Request, Sampling
from eval_harness.errors import UserError
from eval_harness.records import Item, Sample
from eval_harness.runner import Overrides, evaluate, verify

ROOT = Path(__file__).resolve().parent.parent
FIVE = ["aime24", "math500", "amc23", "minerva", "olympiadbench"]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
VLLM = pytest.mark.full("a real vLLM engine")
ENGINE = pytest.mark.full("an engine in a process of its own")
ENGINES = [pytest.param("transformers", marks=ENGINE), pytest.param("vllm", marks=[needs_vllm, VLLM])]


def _lines(folder: Path) -> dict[str, list[str]]:
    """Sample lines per benchmark, sorted: what must be equal after a resume."""
    return {
        path.stem: sorted(path.read_text(encoding="utf-8").splitlines())
        for path in (folder / "samples").glob("*.jsonl")
    }


@needs_vllm
@VLLM
def test_the_five_text_benchmarks_through_vllm(random_checkpoint, own_data_root, tmp_path, any_engine):
    out = evaluate(
        str(random_checkpoint), FIVE, engine="vllm", data_root=own_data_root, limit=6, out=tmp_path / "run",
        overrides=Overrides(samples=2, max_new_tokens=24), progress=False,
    )  # fmt: skip
    run = records.read_run(out)
    assert run.status == "finished" and run.engine["name"] == "vllm" and run.engine["dtype"] == "float32"
    assert list(run.benchmarks) == FIVE
    for name, result in run.benchmarks.items():
        assert (result.asked, result.scored, result.failed, result.num_items) == (12, 12, 0, 6)
        assert result.score["num_items"] == 6 and result.score["num_samples"] == 12
        assert result.decoding.temperature == 0.6 and result.decoding.samples == 2
        items = records.read_lines(out / "items" / f"{name}.jsonl", Item)
        samples = records.read_lines(out / "samples" / f"{name}.jsonl", Sample)
        assert len(items) == 6 and all("\\boxed{ANSWER}" in item.prompt for item in items)
        assert {(s.item_id, s.sample) for s in samples} == {(str(i), k) for i in range(6) for k in (0, 1)}
        by_item = {(s.item_id, s.sample): s for s in samples}
        assert by_item["0", 1].seed == by_item["0", 0].seed + 1
        assert by_item["0", 0].completion != by_item["0", 1].completion
    frame = records.samples_frame(out)
    assert len(frame) == 60 and set(frame.benchmark) == set(FIVE)
    assert all(row["reproduced"] for row in verify(out).values())


@needs_vllm
@VLLM
def test_prompts_beyond_the_context_fail_alone(random_checkpoint, tmp_path, kept_engines):
    """Far beyond it, and by little: vLLM refuses the two in different ways."""
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=12, samples=1, seed=5)
    asked = [Request(str(n), [{"role": "user", "content": "y" * n}], greedy) for n in (9000, 8300, 30)]
    with kept_engines("vllm", EngineSettings(str(random_checkpoint)), tmp_path / "log") as engine:
        results = {r.key: r for r in engine.generate(asked)}
    for key in ("9000", "8300"):
        assert "context" in results[key].error and not results[key].completions
    assert results["30"].error is None and len(results["30"].completions) == 1


@ENGINE
def test_the_same_request_gives_the_same_completion_in_any_company(random_checkpoint, tmp_path, kept_engines):
    """transformers: a sample depends on its own seed, not on its batch; greedy agrees with plain generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sampled = Sampling(temperature=0.9, top_p=0.9, top_k=50, max_new_tokens=12, samples=2, seed=5)
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=12, samples=1, seed=5)
    ask = [{"role": "user", "content": "12+30=?"}]
    others = [Request(f"o{i}", [{"role": "user", "content": "x" * (3 + 7 * i)}], sampled) for i in range(5)]
    with kept_engines("transformers", EngineSettings(str(random_checkpoint)), tmp_path / "log") as engine:
        (alone,) = engine.generate([Request("a", ask, sampled)])
        company = {r.key: r for r in engine.generate([*others, Request("a", ask, sampled)])}
        (greedy_result,) = engine.generate([Request("g", ask, greedy)])
        (too_long,) = engine.generate([Request("l", [{"role": "user", "content": "y" * 9000}], greedy)])
    assert [c.text for c in company["a"].completions] == [c.text for c in alone.completions]
    assert alone.completions[0].text != alone.completions[1].text
    assert "context" in too_long.error and not too_long.completions
    tokenizer = AutoTokenizer.from_pretrained(random_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(random_checkpoint)
    ids = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reference = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    assert greedy_result.completions[0].text == tokenizer.decode(reference, skip_special_tokens=True)


def test_seeded_sampling_draws_from_the_softmax():
    from eval_harness.engines.transformers import SeededSampling

    logits = torch.tensor([0.5, 1.5, -1.0, 0.0])
    draws = torch.zeros(4)
    sampler = SeededSampling(list(range(2000)), torch.device("cpu"), [])
    for _ in range(5):
        draws += torch.bincount(sampler(None, logits.expand(2000, 4)).argmax(-1), minlength=4)
    expected = torch.softmax(logits, -1)
    assert torch.allclose(draws / draws.sum(), expected, atol=0.02)  # 10,000 draws: se under 0.005


def test_rows_that_have_ended_draw_nothing_and_the_others_the_same():
    from eval_harness.engines.transformers import SeededSampling

    logits, cpu = torch.zeros(3, 5), torch.device("cpu")
    every, going = (SeededSampling([7, 8, 9], cpu, [], end_ids) for end_ids in ((), (4,)))
    last = [[4, 0, 0], [1, 4, 4], [4, 4, 2], [4, 4, 2]]  # first of the prompts, whose 4 ends nothing; then of each step
    noise = {name: [sampler(torch.tensor([tokens]).T, logits) for tokens in last] for name, sampler in
             (("every", every), ("going", going))}  # fmt: skip
    assert torch.equal(noise["every"][0], noise["going"][0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(noise["every"][:2], noise["going"][:2], strict=True))
    assert torch.equal(noise["going"][1][1:], noise["going"][0][1:])  # ended: nothing new is drawn
    assert not torch.equal(noise["every"][1][1:], noise["every"][0][1:])
    assert torch.equal(noise["going"][3], noise["going"][1])  # a row that goes on with 2 after its end stays ended


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, ("0", 1)),
        ({"OMP_NUM_THREADS": "2"}, ("0", None)),
        ({"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, ("1", None)),
        ({"VLLM_CPU_OMP_THREADS_BIND": "0,1"}, (None, None)),
    ],
)
def test_on_a_cpu_vllm_stays_in_the_process_of_its_engine_unless_told_otherwise(given, kept, monkeypatch):
    from eval_harness.engines.vllm import _stay_in_this_process

    for name in ("OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    _stay_in_this_process()
    assert (os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING"), threads[0] if threads else None) == kept


def _command(model: Path, engine: str, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "eval_harness", "run", "--model", str(model), "--engine", engine, "--out", str(out),
        "--benchmarks", "tiny_sums,tiny_chains", "--samples", "2", "--temperature", "1", "--max-new-tokens", "48",
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_and_restarted_equals_undisturbed(engine, random_checkpoint, tmp_path, any_engine, capsys):
    """One process is killed; the runs before and after it take a kept engine."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert main(_command(random_checkpoint, engine, undisturbed)[3:]) == 0
    process = subprocess.Popen(
        _command(random_checkpoint, engine, disturbed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    samples = disturbed / "samples" / "tiny_sums.jsonl"
    deadline = time.monotonic() + 240
    while not (samples.exists() and samples.stat().st_size > 2000):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=30)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE], "orphans are left"
    before = _lines(disturbed)
    done = sum(map(len, before.values()))
    assert 0 < done < 400
    with open(samples, "ab") as file:  # and a torn line on top, as a kill inside a write leaves it
        file.write(b'{"item_id": "9')
    assert main(_command(random_checkpoint, engine, disturbed)[3:]) == 0, capsys.readouterr().err
    assert _lines(disturbed) == _lines(undisturbed)
    first, second = records.read_run(undisturbed), records.read_run(disturbed)
    assert first.benchmarks == second.benchmarks and first.fingerprint == second.fingerprint
    finished = (disturbed / "run.json").read_bytes()
    assert main(_command(random_checkpoint, engine, disturbed)[3:]) == 0
    assert (disturbed / "run.json").read_bytes() == finished  # a finished run is only read


@ENGINE
def test_a_dead_engine_is_reported_and_what_was_done_stays(random_checkpoint, tmp_path, monkeypatch, kept_engines):
    real = runner.EngineProcess.generate

    def dies_in_its_second_batch(self, requests):
        for i, result in enumerate(real(self, requests)):
            if i == 0:
                os.killpg(self._process.pid, signal.SIGKILL)
            yield result

    several = Overrides(samples=2, temperature=1.0, max_new_tokens=48)  # more than a batch holds
    options = dict(engine="transformers", out=tmp_path / "run", progress=False, overrides=several)
    monkeypatch.setattr(runner.EngineProcess, "generate", dies_in_its_second_batch)
    with pytest.raises(EngineError, match="engine stopped"):
        evaluate(str(random_checkpoint), ["tiny_sums", "tiny_chains"], **options)
    kept = sum(map(len, _lines(tmp_path / "run").values()))
    assert kept >= 10 and records.read_run(tmp_path / "run").status == "running"
    monkeypatch.setattr(runner, "EngineProcess", kept_engines)
    monkeypatch.setattr(EngineProcess, "generate", real)
    evaluate(str(random_checkpoint), ["tiny_sums", "tiny_chains"], **options)
    assert sum(map(len, _lines(tmp_path / "run").values())) == 400


def test_failed_items_stay_in_the_denominator(random_checkpoint, tmp_path, monkeypatch):
    """A context too short for some questions: they fail, are counted, and count as wrong."""
    monkeypatch.setattr(runner, "EngineProcess", EngineHere)
    out = evaluate(
        str(random_checkpoint), ["tiny_chains"], engine="transformers", out=tmp_path / "run", max_model_len=34,
        overrides=Overrides(max_new_tokens=2), progress=False,
    )  # fmt: skip
    result = records.read_run(out).benchmarks["tiny_chains"]
    assert 0 < result.failed < result.asked == 100 == result.scored + result.failed
    assert result.score["num_items"] == 100
    failed = [s for s in records.read_lines(out / "samples" / "tiny_chains.jsonl", Sample) if s.status == "failed"]
    assert failed[0].correct is None and "context" in failed[0].reason


def test_refusals_before_any_work(random_checkpoint, tmp_path, capsys):
    model = str(random_checkpoint)

    def refused(*arguments: str) -> str:
        assert main(["run", "--out", str(tmp_path / "never"), *arguments]) == 2
        return capsys.readouterr().err

    assert "did you mean 'aime24'" in refused("--model", model, "--benchmarks", "aime42")
    assert "--samples 0" in refused("--model", model, "--benchmarks", "tiny_sums", "--samples", "0")
    assert "--temperature -1" in refused("--model", model, "--benchmarks", "tiny_sums", "--temperature", "-1")
    assert "--top-p 0" in refused("--model", model, "--benchmarks", "tiny_sums", "--top-p", "0")
    assert "--limit 0" in refused("--model", model, "--benchmarks", "tiny_sums", "--limit", "0")
    assert "unknown engine" in refused("--model", model, "--benchmarks", "tiny_sums", "--engine", "vlm")
    assert "neither an existing folder" in refused("--model", "no/such/folder", "--benchmarks", "tiny_sums")
    assert "nor reachable" in refused("--model", "nobody/nothing", "--benchmarks", "tiny_sums")
    assert "does not exist" in refused("--model", model, "--benchmarks", "aime24", "--data-root", str(tmp_path))
    assert "context of 8192" in refused("--model", model, "--benchmarks", "tiny_sums", "--max-model-len", "9999")
    assert "give a file" in refused("--model", model, "--benchmarks", "tiny_sums", "--chat-template", "nowhere.jinja")
    assert "no benchmark given" in refused("--model", model, "--benchmarks", ",")
    assert not (tmp_path / "never").exists()


def test_unreadable_checkpoints_are_named(random_checkpoint, tmp_path):
    from eval_harness.models import check_model

    for damage, message in (
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
            "half-written",
        ),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(random_checkpoint, copy)
        damage(copy)
        with pytest.raises(UserError, match=message):
            check_model(str(copy))


def test_a_model_without_chat_template_says_so(random_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "EngineProcess", EngineHere)
    copy = tmp_path / "no-template"
    shutil.copytree(random_checkpoint, copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    options = dict(engine="transformers", limit=2, overrides=Overrides(max_new_tokens=4), progress=False)
    with pytest.raises(UserError, match="--chat-template none"):
        evaluate(str(copy), ["tiny_sums"], out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
    out = evaluate(str(copy), ["tiny_sums"], out=tmp_path / "b", chat_template="none", **options)
    assert records.read_run(out).benchmarks["tiny_sums"].scored == 2


@ENGINE
def test_a_folder_with_another_run_is_left_alone(random_checkpoint, tmp_path, any_engine):
    options = dict(engine="transformers", limit=2, out=tmp_path / "run", progress=False)
    evaluate(str(random_checkpoint), ["tiny_sums"], overrides=Overrides(max_new_tokens=4), **options)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UserError, match="another run"):
        evaluate(str(random_checkpoint), ["tiny_sums"], overrides=Overrides(max_new_tokens=5), **options)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        evaluate(str(random_checkpoint), ["tiny_sums"], **options | {"out": tmp_path / "stuff"})


def test_grade_command(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"gold": "2", "prediction": "$\\boxed{2.0}$", "id": 7},
        {"gold": "2", "prediction": "$\\boxed{2}$"},
        {"gold": "$x^2$", "prediction": ""},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["grade", "--benchmark", "olympiadbench", "--input", str(source), "--output", str(target)]

    def graded(*more: str) -> list[dict]:
        assert main([*command, *more]) == 0
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]

    published, strict, both = graded(), graded("--rule", "strict"), graded("--rule", "both")
    assert [row["correct"] for row in published] == [False, True, False]
    assert [row["correct"] for row in strict] == [True, True, False]
    assert [(row["correct"], row["correct_strict"]) for row in both] == [(False, True), (True, True), (False, False)]
    assert "correct_strict" not in published[0] and published[0]["id"] == 7
    assert both[2]["reason"] == "no_answer" and both[2]["extracted"] is None
    for bad, message in (
        ('{"gold": "2"}', "missing 'prediction'"),
        ('{"gold": "", "prediction": "2"}', "row 1: the gold is empty"),
        ('{"gold": 2, "prediction": "2"}', "row 1: gold must be a string"),
        ("{", "line 1: not valid JSON"),
    ):
        source.write_text(bad + "\n", encoding="utf-8")
        capsys.readouterr()
        assert main(command) == 2
        assert message in capsys.readouterr().err


def test_list_names_every_benchmark(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in FIVE) and "675" in out and "HuggingFaceH4/MATH-500@6e4ed1a2[test]" in out


@ENGINE
def test_verify_sees_a_forged_mark(random_checkpoint, tmp_path, capsys, any_engine):
    out = evaluate(
        str(random_checkpoint), ["tiny_sums"], engine="transformers", limit=5, out=tmp_path / "run", progress=False,
        overrides=Overrides(max_new_tokens=4),
    )  # fmt: skip
    assert main(["verify", str(out)]) == 0
    stored = json.loads((out / "run.json").read_text(encoding="utf-8"))
    for rule in ("score", "score_strict"):
        forged = copy.deepcopy(stored)
        forged["benchmarks"]["tiny_sums"][rule]["mean"] += 0.125
        records.write_json(out / "run.json", forged)
        assert f"{rule} differs" in verify(out)["tiny_sums"]["problems"]
    records.write_json(out / "run.json", stored)
    path = out / "samples" / "tiny_sums.jsonl"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"correct": false', '"correct": true', 1), encoding="utf-8"
    )
    assert main(["verify", str(out)]) == 1
    assert "NOT reproduced" in capsys.readouterr().out
