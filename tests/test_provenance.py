"""What a run says about where its numbers come from, whether they follow from its files, and the deterministic mode."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import xxhash

from eval_harness import identity, private, provenance, records, runner
from eval_harness.__main__ import format_run, main
from eval_harness.benchmarks import get_benchmark
from eval_harness.engines import EngineProcess, EngineSettings, Request, Sampling
from eval_harness.errors import UserError
from eval_harness.graders import base as graders
from eval_harness.hardware import describe_hardware
from eval_harness.models import check_model
from eval_harness.records import Item, Sample
from eval_harness.runner import Overrides, decoding_of, evaluate, parse_samples, verify
from eval_harness.sources import Hub

ROOT = Path(__file__).resolve().parent.parent
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")


class InThisProcess:
    """The transformers engine without a process of its own; ``rows`` are the sequences of each batch."""

    def __init__(self, engine, settings, log):
        from eval_harness.engines.transformers import TransformersBackend

        self.backend = TransformersBackend(settings)
        self.description, self.start_seconds, self.rows = self.backend.describe(), 0.0, []
        generate = self.backend._model.generate
        self.backend._model.generate = lambda **inputs: self.rows.append(len(inputs["input_ids"])) or generate(**inputs)
        InThisProcess.last = self

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        import torch

        torch.use_deterministic_algorithms(False)

    def generate(self, requests):
        for request in requests:
            self.backend.add(request)
        while self.backend.has_unfinished():
            yield from self.backend.step()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runner, "EngineProcess", InThisProcess)
    return InThisProcess


# Samples --------------------------------------------------------------------------------------------------------------


def test_how_many_samples():
    aime, math500, sums = (get_benchmark(name) for name in ("aime24", "math500", "tiny_sums"))
    auto, greedy = Overrides(samples="auto"), Overrides(samples="auto", temperature=0.0)
    assert [decoding_of(b, auto).samples for b in (aime, math500)] == [16, 4]
    assert [decoding_of(b, greedy).samples for b in (aime, math500)] == [1, 1]
    assert decoding_of(aime, auto, {"temperature": 0.0}).samples == 1
    assert decoding_of(sums, auto).samples == 1 and sums.decoding.temperature == 0
    assert decoding_of(sums, Overrides(samples="auto", temperature=1.0)).samples == 16  # 100 items are few
    assert decoding_of(aime, Overrides(samples={"aime24": 7})).samples == 7
    assert decoding_of(math500, Overrides(samples={"aime24": 7})).samples == 1
    assert [parse_samples(text) for text in ("auto", "3", "aime24=16, math500=4")] == [
        "auto",
        3,
        {"aime24": 16, "math500": 4},
    ]
    for text, message in (("many", "expected auto"), ("aime24=x", "expected auto"), ("a=1,a=2", "twice")):
        with pytest.raises(UserError, match=message):
            parse_samples(text)


def test_a_checkpoint_ranks_between_the_benchmark_and_the_user():
    aime = get_benchmark("aime24")
    found = decoding_of(aime, Overrides(top_p=0.5), {"temperature": 0.1, "top_p": 0.8, "max_new_tokens": 100})
    assert (found.temperature, found.top_p, found.max_new_tokens, found.samples) == (0.1, 0.5, 100, 1)


def test_refusals_of_decoding_before_any_work(random_checkpoint, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        command = [
            "run",
            "--model",
            str(random_checkpoint),
            "--benchmarks",
            "tiny_sums",
            "--out",
            str(tmp_path / "never"),
        ]
        assert main([*command, *arguments]) == 2
        return capsys.readouterr().err

    assert "did you mean 'tiny_sums'" in refused("--samples", "tiny_sum=2")
    assert "--samples tiny_sums= 0" in refused("--samples", "tiny_sums=0")
    assert "context of 8192 tokens here" in refused("--max-new-tokens", "8193")
    assert "context of 64 tokens here" in refused("--max-new-tokens", "65", "--max-model-len", "64")
    assert "greedy with one sample" in refused("--deterministic", "--temperature", "0.5")
    assert "greedy with one sample" in refused("--deterministic", "--samples", "2")
    server = ("--engine", "openai", "--base-url", "http://localhost:1/v1")
    assert "up to the server" in refused("--deterministic", *server)
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        evaluate(str(random_checkpoint), ["tiny_sums"], out=tmp_path / "never", decoding={"temperatur": 1.0})
    with pytest.raises(UserError, match="--top-p 2"):
        evaluate(str(random_checkpoint), ["tiny_sums"], out=tmp_path / "never", decoding={"top_p": 2})
    assert not (tmp_path / "never").exists()


def _samples(marks: list[list[int]]) -> tuple[list[Item], list[Sample]]:
    items = [Item(item_id=str(i), prompt=f"p{i}", gold="1") for i in range(len(marks))]
    samples = [
        Sample(
            item_id=str(i), sample=k, seed=k, status="scored", completion="x", finish_reason="stop",
            num_prompt_tokens=1, num_completion_tokens=1, correct=bool(mark & 1), correct_strict=bool(mark & 2),
            extracted=None, reason="match", gold_fallback=False,
        )
        for i, of_item in enumerate(marks)
        for k, mark in enumerate(of_item)
    ]  # fmt: skip
    return items, samples


def test_the_single_sample_is_the_first_of_each_item():
    benchmark = get_benchmark("tiny_sums")
    items, samples = _samples([[3, 0], [0, 3], [2, 1], [0, 1]])
    several = decoding_of(benchmark, Overrides(samples=2))
    result = runner.summarise(benchmark, items, several, samples[::-1])  # lines come in any order
    assert result.score["mean"] == 0.5 and result.score_strict["mean"] == 0.375
    assert result.single["mean"] == 0.25 and result.single_strict["mean"] == 0.5
    assert result.single["num_samples"] == 4 and result.score["num_samples"] == 8
    items, samples = _samples([[3], [0]])
    one = runner.summarise(benchmark, items, decoding_of(benchmark, Overrides(samples=1)), samples)
    assert one.single is None and one.single_strict is None
    stray = samples[:1] + [samples[1].model_copy(update={"item_id": "no such item"})]
    with pytest.raises(UserError, match="2 samples on disk \\(1 of them of no item\\), 2 asked"):
        runner.summarise(benchmark, items, decoding_of(benchmark, Overrides(samples=1)), stray)
    means = runner.averages({"a": result, "b": one})
    assert means["average"]["mean"] == 0.5 and means["average_single"]["mean"] == 0.375
    assert runner.averages({"b": one})["average_single"] is None


# Provenance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/opt/x/bin/python3.11", "-m", "eval_harness", "run"], "python -m eval_harness run"),
        (["python", "--model", "/srv/jane/models/GPG-7B/"], "python --model GPG-7B"),
        (["python", "--model", "GD-ML/Open-RS1"], "python --model GD-ML/Open-RS1"),
        (["python", "--out=~/runs/x", "model=/srv/a b/c"], "python --out=x model=c"),
        (["python", "--files", "/a/b.txt,/c/d.txt"], "python --files b.txt,d.txt"),
        (["python", "--token", "hf_abcdefghijkl", "--seed", "1"], "python --token *** --seed 1"),
        (["python", "--hf-token=abc", "--api-key-env", "MY_KEY"], "python --hf-token=*** --api-key-env MY_KEY"),
        (["python", "--max-new-tokens", "5"], "python --max-new-tokens 5"),
        (["python", "--note", "with hf_abcdefghijkl inside"], "python --note with *** inside"),
        (["python", "--system-prompt", "Say a/b, 1/2 or /etc/hosts."], "python --system-prompt Say a/b, 1/2 or hosts."),
        (["python", "--base-url", "http://me:pw@10.0.0.5:8000/v1?k=1"], "python --base-url http://HOST:8000"),
        (["python", "--base-url", "http://127.0.0.1:8000/v1"], "python --base-url http://localhost:8000"),
        (["python", "--base-url", "https://api.example.org/v1"], "python --base-url https://api.example.org:443"),
    ],
)  # fmt: skip
def test_commands_are_recorded_without_what_is_private(words, expected):
    assert " ".join(provenance.command_line(words)) == expected


def test_existing_relative_paths_and_the_host_are_shortened(tmp_path, monkeypatch):
    (tmp_path / "jane" / "ckpt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    private._names.cache_clear()
    assert provenance.shown("jane/ckpt") == "ckpt" and provenance.shown("nobody/ckpt") == "nobody/ckpt"
    assert provenance.shown("on node17 here") == "on HOST here"
    private._names.cache_clear()


@pytest.mark.full("evaluations with lighteval's graders")
def test_a_run_says_where_its_numbers_come_from(random_checkpoint, own_data_root, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_value")
    monkeypatch.setattr(
        sys,
        "orig_argv",
        [sys.executable, "-m", "eval_harness", "run", "--data-root", str(own_data_root), "--token", "s3cret"],
    )
    home = tmp_path / "home-of-jane"
    out = evaluate(
        str(random_checkpoint), ["aime24", "tiny_sums"], engine="transformers", limit=2, out=home / "run",
        data_root=own_data_root, overrides=Overrides(max_new_tokens=4), decoding={"temperature": 0.5}, progress=False,
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )  # fmt: skip
    run = records.read_run(out)
    found, (session,) = run.provenance, run.provenance["sessions"]
    content = xxhash.xxh3_128((own_data_root / "aime_2024.jsonl").read_bytes()).hexdigest()
    aime = found["benchmarks"]["aime24"]
    assert aime["data"] == {"kind": "local", "file": "aime_2024.jsonl", "content_hash": content}
    assert aime["grader"]["name"] == "math_expression_gold" and aime["grader"]["version"] == 1
    assert aime["grader"]["strict"] == {"name": "strict_math", "version": 1}
    assert set(aime["grader"]["packages"]) == {"lighteval", "math-verify", "latex2sympy2_extended", "sympy", "mpmath"}
    assert aime["prompts_hash"] == run.benchmarks["aime24"].prompts_hash
    assert found["benchmarks"]["tiny_sums"]["data"]["kind"] == "generated"
    assert found["decoding"] == {"checkpoint": {"temperature": 0.5}, "overrides": {"max_new_tokens": 4}}
    assert found["seeds"]["decoding"] == {"aime24": 1234, "tiny_sums": 1234}
    assert session["hardware"]["cores"] >= 1 and session["hardware"]["memory_gib"] > 0
    assert session["engine"]["dtype"] == "float32" and session["engine"]["threads"] >= 1
    assert session["settings"]["seed"] == 1234 and session["settings"]["chat_template"].startswith("xxh3_64 ")
    assert session["command"][:4] == ["python", "-m", "eval_harness", "run"]
    assert session["command"][-1] == "***" and session["environment"] == run.environment
    text = json.dumps([found, run.environment, run.engine, run.model])
    for word in ("hf_secret", "s3cret", "jane", str(tmp_path), str(own_data_root), str(Path.home()), str(ROOT)):
        assert word not in text, word
    assert socket.gethostname() not in text and (getpass.getuser() == "root" or getpass.getuser() not in text)


def test_every_start_that_asked_the_engine_is_a_session(random_checkpoint, quick, tmp_path):
    options = dict(engine="transformers", limit=3, out=tmp_path / "run", progress=False)
    options["overrides"] = Overrides(max_new_tokens=4)
    out = evaluate(str(random_checkpoint), ["tiny_sums"], **options)
    whole = (out / "samples" / "tiny_sums.jsonl").read_text(encoding="utf-8")

    def killed() -> None:
        told = (out / "run.json").read_text(encoding="utf-8")
        (out / "run.json").write_text(told.replace('"finished",', '"running",'), encoding="utf-8")

    (out / "samples" / "tiny_sums.jsonl").write_text(whole.splitlines(keepends=True)[0], encoding="utf-8")
    killed()
    evaluate(str(random_checkpoint), ["tiny_sums"], **options)
    assert len(records.read_run(out).provenance["sessions"]) == 2
    killed()
    evaluate(str(random_checkpoint), ["tiny_sums"], **options)  # killed before the end: nothing is asked again
    again = records.read_run(out)
    assert len(again.provenance["sessions"]) == 2 and again.status == "finished"


def test_an_open_revision_is_recorded_as_the_commit_it_was(monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    pinned = Hub("a/b", "test", revision=commit, local_file="x", columns=("q",))
    assert pinned.commit() == commit

    class Data:
        class info:
            download_checksums = {f"hf://datasets/a/b@{commit}/data.jsonl": {}}

        cache_files = []

    class Cached:
        class info:
            download_checksums = None

        cache_files = [{"filename": f"/c/a___b/default/0.0.0/{commit}/b-test.arrow"}]

    class Silent(Cached):
        cache_files = []

    for data, expected in ((Data, commit), (Cached, commit), (Silent, None)):
        monkeypatch.setattr(Hub, "_load", lambda self, data=data: data)
        assert Hub("a/b", "test", revision=None, local_file="x", columns=("q",)).commit() == expected


def test_a_machine_without_gpus(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = describe_hardware()
    assert found["gpus"] == [] and found["cpu"] and found["cores"] <= os.cpu_count()


@pytest.mark.parametrize("name", ["table1_gpg_age", "table8_gpg_r0"])
def test_old_runs_keep_their_fingerprints(name):
    """The fingerprint of a committed run, made before these settings were, follows from its record."""
    run = records.read_run(ROOT / "results" / "reference" / "tiny" / name / "seed0")
    loaded = []
    for name, result in run.benchmarks.items():
        benchmark = get_benchmark(name)
        loaded.append((benchmark, benchmark.load(), result.decoding))
    asked = {name: run.settings[name] for name in ("dtype", "max_model_len", "chat_template")}
    settings = EngineSettings("anything", **asked)
    request = identity.request_of(run.model, run.engine["name"], settings, loaded, run.settings["limit"])
    assert identity.fingerprint(request) == run.fingerprint
    changed = EngineSettings("anything", **asked, deterministic=True)
    assert identity.request_of(run.model, run.engine["name"], changed, loaded, run.settings["limit"]) != request


# verify ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(random_checkpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "EngineProcess", InThisProcess)
        return evaluate(
            str(random_checkpoint), ["tiny_sums"], engine="transformers", limit=4, progress=False,
            out=tmp_path_factory.mktemp("finished") / "run", overrides=Overrides(samples=2, max_new_tokens=4),
        )  # fmt: skip


def _forge(source: Path, target: Path, file: str, old: str, new: str) -> Path:
    import shutil

    shutil.copytree(source, target)
    text = (target / file).read_text(encoding="utf-8")
    assert old in text
    (target / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    return target


SAMPLES, ITEMS = "samples/tiny_sums.jsonl", "items/tiny_sums.jsonl"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (SAMPLES, '"correct": false', '"correct": true', "1 marks changed"),
        (SAMPLES, '"correct_strict": false', '"correct_strict": true', "1 marks changed"),
        (SAMPLES, '"sample": 1', '"sample": 0', "1 of 8 samples are missing; 1 samples are of no item"),
        (ITEMS, '"prompt": "', '"prompt": " ', "prompts are not those of the record"),
        (ITEMS, '"gold": "$', '"gold": "$1', "golds or contexts are not"),
        ("run.json", '"scored": 8', '"scored": 7', "scored is 8"),
        ("run.json", '"score": {\n        "mean": 0.0', '"score": {\n        "mean": 0.5', "score differs"),
        ("run.json", '"single": {\n        "mean": 0.0', '"single": {\n        "mean": 0.5', "single differs"),
        ("run.json", '"average": {\n    "mean": 0.0', '"average": {\n    "mean": 0.5', "average is not the mean"),
    ],
)  # fmt: skip
def test_verify_finds_what_does_not_follow(finished, tmp_path, capsys, file, old, new, message):
    forged = _forge(finished, tmp_path / "forged", file, old, new)
    assert main(["verify", str(forged)]) == 1
    told = capsys.readouterr().out
    assert "NOT reproduced" in told and message in told


def test_verify_says_what_is_another_version_now(finished, tmp_path, capsys, monkeypatch):
    assert main(["verify", str(finished)]) == 0
    assert "versions differ" not in capsys.readouterr().out
    monkeypatch.setitem(graders.VERSIONS, "boxed", 2)
    package = records.read_run(finished).provenance["benchmarks"]["tiny_sums"]["grader"]["packages"]["math-verify"]
    old = _forge(finished, tmp_path / "old", "run.json", "{", "{")
    raw = json.loads((old / "run.json").read_text(encoding="utf-8"))
    raw["provenance"]["benchmarks"]["tiny_sums"]["grader"]["packages"]["math-verify"] = "0.0.1"
    records.write_json(old / "run.json", raw)
    assert main(["verify", str(old)]) == 0  # the marks are the same
    told = capsys.readouterr().out
    assert ": reproduced;" in told
    assert f"; versions differ: grader version 1 -> 2, math-verify 0.0.1 -> {package}" in told
    assert set(graders.VERSIONS) == set(graders.GRADERS)


def test_verify_says_that_an_earlier_record_has_another_strict_rule(finished, tmp_path, capsys):
    old = _forge(finished, tmp_path / "old", "run.json", "{", "{")
    raw = json.loads((old / "run.json").read_text(encoding="utf-8"))
    assert raw["provenance"]["benchmarks"]["tiny_sums"]["grader"].pop("strict") == {"name": "strict_math", "version": 1}
    records.write_json(old / "run.json", raw)
    assert main(["verify", str(old)]) == 0
    assert "; versions differ: strict rule of the grader -> strict_math 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("version", [2, 3, 4])
def test_records_of_earlier_versions_are_read_and_verified(finished, tmp_path, version):
    """With the intervals and the fingerprint of their time."""
    copy = _forge(finished, tmp_path / "copy", "run.json", '"schema_version": 5', f'"schema_version": {version}')
    raw = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    asked = {key: raw["identity"][key] for key in ("model", "engine", "settings", "limit", "benchmarks")}
    raw["fingerprint"] = identity.fingerprint(asked)
    raw["average"] |= {"low": 0.0, "high": 0.0}  # normal, from a standard error of 0
    raw["average_single"] |= {"low": 0.0, "high": 0.0}
    for name in ("identity", *(("provenance", "shard", "average_single") if version == 2 else ())):
        del raw[name]
    for name in ("single", "single_strict") if version == 2 else ():
        del raw["benchmarks"]["tiny_sums"][name]
    records.write_json(copy / "run.json", raw)
    assert (records.read_run(copy).provenance == {}) == (version == 2)
    report = verify(copy)
    assert list(report) == ["tiny_sums"] and report["tiny_sums"]["reproduced"]
    score = raw["benchmarks"]["tiny_sums"]["score"]
    score["low"] -= 0.01
    records.write_json(copy / "run.json", raw)
    assert verify(copy)["tiny_sums"]["problems"] == ["score differs"]
    score["low"] += 0.01
    raw["average"]["high"] = 0.01
    records.write_json(copy / "run.json", raw)
    assert verify(copy)["average"]["problems"] == ["average is not the mean of the benchmarks"]


def test_a_record_without_single_samples_shows_none(finished, tmp_path):
    copy = _forge(finished, tmp_path / "copy", "run.json", "{", "{")
    raw = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    raw["average_single"] = None
    for name in ("single", "single_strict"):
        del raw["benchmarks"]["tiny_sums"][name]
    records.write_json(copy / "run.json", raw)
    assert "single sample" in format_run(records.read_run(finished))
    assert "single sample" not in format_run(records.read_run(copy))


# Deterministic mode ---------------------------------------------------------------------------------------------------


@pytest.mark.full("an evaluation, three times")
def test_deterministic_completions_do_not_depend_on_company(random_checkpoint, quick, tmp_path):
    def completions(limit: int, **options) -> dict[str, str]:
        out = evaluate(
            str(random_checkpoint), ["tiny_sums", "tiny_chains"], engine="transformers", limit=limit, progress=False,
            out=tmp_path / f"{limit}{options}", overrides=Overrides(max_new_tokens=24), **options,
        )  # fmt: skip
        run = records.read_run(out)
        assert run.settings["deterministic"] is bool(options)
        assert ("deterministic" in run.engine) is bool(options)
        return {
            f"{name} {s.item_id}": s.completion
            for name in run.benchmarks
            for s in records.read_lines(out / "samples" / f"{name}.jsonl", Sample)
        }

    few = completions(5, deterministic=True)
    assert quick.last.rows == [1] * 10
    many = completions(20, deterministic=True)
    assert quick.last.rows == [1] * 40
    assert len(few) == 10 and few.items() <= many.items()
    run = records.read_run(next(tmp_path.glob("5*")))
    assert run.benchmarks["tiny_sums"].decoding.temperature == 0 and run.benchmarks["tiny_sums"].decoding.samples == 1
    completions(5)
    assert quick.last.rows != [1] * 10


@needs_vllm
@pytest.mark.full("a real vLLM engine")
def test_deterministic_vllm_where_there_are_no_such_kernels(random_checkpoint, tmp_path):
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=24, samples=1, seed=5)
    asked = [Request(str(i), [{"role": "user", "content": f"{i}+{7 * i}=?"}], greedy) for i in range(20)]
    settings = EngineSettings(str(random_checkpoint), deterministic=True)
    with EngineProcess("vllm", settings, tmp_path / "log") as engine:
        if engine.description["device"] == "cpu":
            assert engine.description["deterministic"] == "one sequence at a time"
            assert engine.description["concurrent_sequences"] == 1
        assert not engine.description["prefix_caching"]
        few = {r.key: r.completions for r in engine.generate(asked[:5])}
        many = {r.key: r.completions for r in engine.generate(asked)}
    assert few.items() <= many.items()


def test_identity_of_a_model_holds_no_path(random_checkpoint):
    assert str(random_checkpoint.parent) not in json.dumps(check_model(str(random_checkpoint)))


def test_a_folder_of_annotations_is_known_by_their_content(tmp_path):
    """ReasonSeg comes as a folder: names and annotations count, pictures do not."""
    folder = tmp_path / "reasonseg"
    (folder / "val").mkdir(parents=True)
    (folder / "val" / "a.json").write_text("{}", encoding="utf-8")
    found = [provenance._content_hash(folder)]
    (folder / "val" / "a.jpg").write_bytes(b"picture")
    assert provenance._content_hash(folder) == found[0]
    (folder / "val" / "a.json").write_text("[]", encoding="utf-8")
    found.append(provenance._content_hash(folder))
    (folder / "val" / "a.json").rename(folder / "val" / "b.json")
    found.append(provenance._content_hash(folder))
    assert len(set(found)) == 3
