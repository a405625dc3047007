"""One run in several processes: shards and their merging, several engines on one machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from eval_harness import records, runner
from eval_harness.__main__ import main
from eval_harness.engines import EngineError, EngineProcess, EngineSettings, Request, Sampling
from eval_harness.engines.parallel import EngineGroup, placements
from eval_harness.engines.transformers import TransformersBackend
from eval_harness.errors import UserError
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.shards import Shard, merge, parse_shard

BENCHMARKS = ["tiny_sums", "tiny_chains"]
OPTIONS = dict(
    engine="transformers",
    limit=7,
    progress=False,
    overrides=Overrides(samples=2, temperature=1.0, max_new_tokens=8),
)


class InThisProcess:
    """The transformers engine without a process of its own, which takes seconds to start."""

    starts = 0
    dies_after: int | None = None

    def __init__(self, engine, settings, log):
        self._backend = TransformersBackend(settings)
        self.description, self.start_seconds = self._backend.describe(), 0.0
        InThisProcess.starts += 1

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def generate(self, requests):
        for number, request in enumerate(requests):
            if number == self.dies_after:
                raise EngineError("it died")
            self._backend.add(request)
            yield from self._backend.step()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runner, "EngineProcess", InThisProcess)
    monkeypatch.setattr(InThisProcess, "dies_after", None)
    return InThisProcess


@pytest.fixture(scope="module")
def undivided(random_checkpoint, tmp_path_factory):
    """The run that shards and several engines must reproduce, made by an engine of its own."""
    return evaluate(str(random_checkpoint), BENCHMARKS, out=tmp_path_factory.mktemp("undivided") / "run", **OPTIONS)


def _lines(folder: Path, kind: str = "samples") -> dict[str, list[str]]:
    return {
        path.stem: sorted(path.read_text(encoding="utf-8").splitlines()) for path in (folder / kind).glob("*.jsonl")
    }


def _write_shards(model, out: Path, of: int, **changes) -> list[Path]:
    return [evaluate(str(model), BENCHMARKS, out=out, shard=Shard(i, of), **OPTIONS | changes) for i in range(of)]


@pytest.mark.full("an engine in a process of its own")
def test_merged_shards_are_the_undivided_run(random_checkpoint, undivided, quick, tmp_path, capsys):
    """Seven items over three shards, one of which dies and is started again."""
    out = tmp_path / "run"
    quick.dies_after = 3
    with pytest.raises(EngineError):
        evaluate(str(random_checkpoint), BENCHMARKS, out=out, shard=Shard(0, 3), **OPTIONS)
    quick.dies_after = None
    evaluate(str(random_checkpoint), BENCHMARKS, out=out, shard=Shard(2, 3), **OPTIONS)
    assert main(["merge", str(out)]) == 2
    told = capsys.readouterr().err
    assert "shard 0/3 is unfinished" in told and "shard 1/3 is missing" in told and "shard 2/3 is" not in told
    with pytest.raises(UserError, match="holds shards of a run"):
        evaluate(str(random_checkpoint), BENCHMARKS, out=out, **OPTIONS)
    before = quick.starts
    shards = _write_shards(random_checkpoint, out, 3)
    assert quick.starts == before + 2  # the finished one was only read
    assert [len(records.read_lines(s / "items" / "tiny_sums.jsonl", records.Item)) for s in shards] == [3, 2, 2]
    assert list(records.find_runs(out)) == []  # parts are no runs
    assert main(["merge", str(out)]) == 0
    assert "asked 14, scored 14, failed 0" in capsys.readouterr().out
    merged, whole = records.read_run(out), records.read_run(undivided)
    assert _lines(out) == _lines(undivided)
    for name in BENCHMARKS:
        assert (out / "items" / f"{name}.jsonl").read_bytes() == (undivided / "items" / f"{name}.jsonl").read_bytes()
    for field in ("fingerprint", "benchmarks", "average", "average_single", "status", "settings", "model", "shard"):
        assert getattr(merged, field) == getattr(whole, field), field
    assert merged.provenance["benchmarks"] == whole.provenance["benchmarks"]
    assert [s["shard"] for s in merged.provenance["sessions"]] == ["0/3", "0/3", "1/3", "2/3"]
    assert all(row["reproduced"] for row in verify(out).values())
    stored, before = (out / "run.json").read_bytes(), quick.starts
    evaluate(str(random_checkpoint), BENCHMARKS, out=out, **OPTIONS)  # a finished run is only read
    assert (out / "run.json").read_bytes() == stored and quick.starts == before
    assert [folder for folder, _ in records.find_runs(out)] == [out]


def test_more_shards_than_items(random_checkpoint, quick, tmp_path):
    before = quick.starts
    shards = _write_shards(random_checkpoint, tmp_path / "run", 3, limit=2)
    assert quick.starts == before + 2
    assert records.read_run(shards[2]).status == "finished" and not records.read_run(shards[2]).benchmarks
    assert records.read_run(merge(tmp_path / "run")).benchmarks["tiny_chains"].asked == 4


@pytest.mark.parametrize(("there", "asked"), [((2, 8), (0, 1)), ((0, 1), (3, 8)), ((1, 4), (1, 2))])
def test_a_shard_of_another_division_is_refused(there, asked, random_checkpoint, quick, tmp_path):
    out = tmp_path / "run"
    (out / Shard(*there).folder).mkdir(parents=True)
    before = quick.starts
    with pytest.raises(UserError, match=f"holds shards of {there[1]}, and this is shard {asked[0]}/{asked[1]}"):
        evaluate(str(random_checkpoint), BENCHMARKS, out=out, shard=Shard(*asked), **OPTIONS)
    assert quick.starts == before and len(list(out.iterdir())) == 1


def _again(folder: Path, **changes) -> None:
    """Change fields of a run record."""
    raw = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    records.write_json(folder / "run.json", raw | changes)


def test_shards_that_do_not_belong_together_are_refused(random_checkpoint, quick, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="holds no shards"):
        merge(tmp_path)
    one, two = _write_shards(random_checkpoint, out, 2, limit=2)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            merge(out)
        assert not (out / "run.json").exists() and not (out / "samples").exists()

    samples = two / "samples" / "tiny_sums.jsonl"
    good = samples.read_bytes()
    samples.write_bytes(good + good.splitlines(keepends=True)[0])
    refused("there twice")
    samples.write_bytes(good.splitlines(keepends=True)[0])
    refused("1 samples, 2 were asked")
    samples.write_bytes(good)
    items = two / "items" / "tiny_sums.jsonl"
    good = items.read_bytes()
    items.write_bytes((one / "items" / "tiny_sums.jsonl").read_bytes())
    refused("item 0 is in two shards")
    items.write_bytes(good.replace(b'"prompt": "', b'"prompt": "please, '))
    refused("not those of the undivided run")
    items.write_bytes(good)
    engine = records.read_run(two).engine
    _again(two, engine=engine | {"dtype": "bfloat16"})
    refused("engine dtype: float32 and bfloat16")
    _again(two, engine=engine)
    two.rename(out / "shard-1-of-3")
    refused("shards of 2 and of 3")
    (out / "shard-1-of-3").rename(two)
    shutil.rmtree(two)
    other = OPTIONS | {"limit": 2, "overrides": Overrides(samples=2, temperature=1.0, max_new_tokens=9)}
    evaluate(str(random_checkpoint), BENCHMARKS, out=out, shard=Shard(1, 2), **other)
    refused("max_new_tokens: 8 and 9")


SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}


AGAIN = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "3"}
"""Task 3 of an array, submitted again alone."""


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/4", {}, "0/4"),
        (" 3/4", {}, "3/4"),
        ("auto", SLURM, "3/4"),
        ("auto", {"RANK": "0", "WORLD_SIZE": "2"}, "0/2"),
        ("auto", {**SLURM, "RANK": "0", "WORLD_SIZE": "1"}, "3/4"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_STEP": "2"}, "2/3"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_STEP": "2", **SLURM}, "11/12"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_STEP": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "9/12"),
        ("auto", {**ARRAY, "EVAL_SHARDS": "8"}, "5/8"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "EVAL_SHARDS": "8"}, "3/8"),
        ("auto", {**AGAIN, "EVAL_SHARDS": "8"}, "3/8"),
        ("auto", {**AGAIN, "EVAL_SHARDS": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "7/16"),
        ("auto", {**AGAIN, "EVAL_SHARDS": "3"}, "array task 3 of 3 shards: tasks are numbered from 0 to 2"),
        ("auto", {"EVAL_SHARDS": "8", **SLURM}, "3/4"),
        ("4/4", {}, "shards 0 to 3 of 4"),
        ("0/0", {}, "N is 0"),
        ("1", {}, "expected I/N"),
        ("-1/4", {}, "expected I/N"),
        ("auto", {}, "SLURM_PROCID"),
        ("auto", {"RANK": "0"}, "WORLD_SIZE"),
        ("auto", {"SLURM_PROCID": "x", "SLURM_NTASKS": "2"}, "SLURM_PROCID is 'x'"),
    ],
)
def test_which_shard(text, environment, expected):
    try:
        found = str(parse_shard(text, environment))
    except UserError as error:
        found = str(error)
        assert expected in found
    else:
        assert found == expected


@pytest.mark.full("an engine in a process of its own")
def test_two_engines_write_the_records_of_one(random_checkpoint, undivided, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = evaluate(str(random_checkpoint), BENCHMARKS, out=tmp_path / "run", data_parallel_size=2, **OPTIONS)
    two, one = records.read_run(out), records.read_run(undivided)
    assert _lines(out) == _lines(undivided)
    assert two.benchmarks == one.benchmarks and two.fingerprint == one.fingerprint
    assert two.engine["data_parallel_size"] == 2 and two.engine["threads_per_engine"] >= 1
    assert two.engine["threads"] == two.engine["threads_per_engine"]  # what torch says it uses
    assert all((out / f"engine-{i}.log").exists() for i in (0, 1))


@pytest.mark.full("an engine in a process of its own")
def test_requests_of_a_dead_engine_go_to_the_others(random_checkpoint, tmp_path):
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=16, samples=1, seed=5)
    asked = [Request(str(i), [{"role": "user", "content": f"{i}+{i}=?"}], greedy) for i in range(600)]
    with EngineProcess("transformers", EngineSettings(str(random_checkpoint)), tmp_path / "log") as engine:
        expected = {r.key: r for r in engine.generate(asked)}
    settings = EngineSettings(str(random_checkpoint))
    with EngineGroup("transformers", settings, tmp_path / "group.log", [{"OMP_NUM_THREADS": "1"}] * 2) as group:
        found, worked = {}, set()
        for result in group.generate(asked):
            if not found:
                worked = {number for number in (0, 1) if group._unfinished[number]}
                os.killpg(group._engines[1]._process.pid, signal.SIGKILL)
            assert result.key not in found
            found[result.key] = result
        assert worked == {0, 1}
        assert found == expected
        assert group.description["lost_engines"] == 1
        assert "the others take over" in (tmp_path / "group-0.log").read_text(encoding="utf-8")
        os.killpg(group._engines[0]._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="engine stopped"):
            list(group.generate(asked))


@pytest.mark.full("an engine in a process of its own")
def test_an_engine_that_cannot_start_ends_the_group(tmp_path):
    with pytest.raises(EngineError, match="could not load"):
        EngineGroup("transformers", EngineSettings(str(tmp_path)), tmp_path / "log", [{}, {}])


@pytest.fixture
def four_gpus(tmp_path, monkeypatch):
    """A driver that lists four GPUs."""
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    rows = "".join(f"{i}, GPU-{i}aaa-bbb, NVIDIA H100, 81559, 570.1\n" for i in range(4))
    command.write_text(f"#!/bin/sh\ncat <<'E'\n{rows}E\n", encoding="utf-8")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "size", "options", "expected"),
    [
        (None, 1, {}, [None]),
        (None, 2, {}, ["0", "1"]),
        (None, 2, {"tensor_parallel_size": 2}, ["0,1", "2,3"]),
        ("3,1", 2, {}, ["3", "1"]),
        ("GPU-2aaa-bbb,GPU-0", 2, {}, ["GPU-2aaa-bbb", "GPU-0"]),
        ("2,1,3,0", 2, {"pipeline_parallel_size": 2}, ["2,1", "3,0"]),
        (None, 2, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "need 8, but 4"),
        ("1", 2, {}, "need 2, but 1"),
        ("3,-1,0", 2, {}, "need 2, but 1"),
        (None, 1, {"tensor_parallel_size": 8}, "need 8, but 4"),
        (None, 3, {"tensor_parallel_size": 8, "distributed_executor_backend": "ray"}, [None] * 3),
        (None, 0, {}, "--data-parallel-size 0"),
        (None, 1, {"tensor_parallel_size": 0}, "--tensor-parallel-size 0"),
    ],
)
def test_every_engine_gets_gpus_of_its_own(four_gpus, monkeypatch, visible, size, options, expected):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = EngineSettings("m", **options)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            placements("vllm", settings, size)
    else:
        assert [place.get("CUDA_VISIBLE_DEVICES") for place in placements("vllm", settings, size)] == expected


def test_without_gpus_engines_share_the_cores(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4, 5, 6}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    plain = EngineSettings("m")
    assert placements("transformers", plain, 2) == [{"OMP_NUM_THREADS": "2"}] * 2
    assert [p["VLLM_CPU_OMP_THREADS_BIND"] for p in placements("vllm", plain, 2)] == ["2,3", "4,5"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert [p["VLLM_CPU_OMP_THREADS_BIND"] for p in placements("vllm", plain, 2)] == ["2,3,4,5", "nobind"]
    assert placements("transformers", plain, 9)[8] == {"OMP_NUM_THREADS": "4"}
    with pytest.raises(UserError, match="are vLLM's"):
        placements("transformers", EngineSettings("m", tensor_parallel_size=2), 1)
    for settings, size in ((plain, 2), (EngineSettings("m", pipeline_parallel_size=2), 1)):
        with pytest.raises(UserError, match="up to the server"):
            placements("openai", settings, size)
