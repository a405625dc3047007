"""Engines forked from a warm process: the same answers, a group of their own, and nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from eval_harness.engines import EngineError, EngineProcess, EngineSettings, Request, Sampling, fork_server
from eval_harness.engines.fork_server import ForkedProcess, warm_engines

pytestmark = pytest.mark.full("engines in processes of their own")
SAMPLED = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=12, samples=2, seed=5)
ASKED = [Request(str(i), [{"role": "user", "content": f"{i}+{i}=?"}], SAMPLED) for i in range(20)]


@pytest.fixture(scope="module")
def warm():
    """The session's server, or one of our own."""
    with warm_engines():
        yield fork_server._active


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_same_answers_as_an_engine_that_was_started(warm, random_checkpoint, tmp_path, monkeypatch):
    settings = EngineSettings(str(random_checkpoint))
    with EngineProcess("transformers", settings, tmp_path / "a" / "log") as forked:
        assert isinstance(forked._process, ForkedProcess) and os.getpgid(forked._process.pid) == forked._process.pid
        found = {r.key: r for r in forked.generate(ASKED)}
        pid = forked._process.pid
    assert gone(pid)
    monkeypatch.setenv("TORCH_LOGS", "+dynamo")  # read by an import, so a fork would not see it
    with EngineProcess("transformers", settings, tmp_path / "b" / "log") as started:
        assert not isinstance(started._process, ForkedProcess)
        assert {r.key: r for r in started.generate(ASKED)} == found
        assert started.description == forked.description
    assert len(found) == 20 and found["0"].completions[0] != found["0"].completions[1]


def test_each_engine_has_its_folder_and_its_log(warm, random_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(random_checkpoint.parent)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as accelerate sets it under way
    with EngineProcess("transformers", EngineSettings(random_checkpoint.name), tmp_path / "log") as engine:
        assert isinstance(engine._process, ForkedProcess)
        assert Path(os.readlink(f"/proc/{engine._process.pid}/cwd")) == random_checkpoint.parent
    with pytest.raises(EngineError, match="could not load"):
        EngineProcess("transformers", EngineSettings(str(tmp_path)), tmp_path / "failed")
    assert "Traceback" in (tmp_path / "failed").read_text()


def test_a_killed_engine_is_reported_with_its_signal(warm, random_checkpoint, tmp_path):
    with EngineProcess("transformers", EngineSettings(str(random_checkpoint)), tmp_path / "log") as engine:
        assert engine._process.poll() is None
        os.killpg(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"engine stopped \(exit status -9\)"):
            list(engine.generate(ASKED))


def test_several_at_once_from_several_threads(warm, random_checkpoint, tmp_path):
    found = {}

    def ask(name: str) -> None:
        with EngineProcess("transformers", EngineSettings(str(random_checkpoint)), tmp_path / name) as engine:
            found[name] = (engine._process.pid, {r.key: r for r in engine.generate(ASKED)})

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({pid for pid, _ in found.values()}) == 3
    assert found["a"][1] == found["b"][1] == found["c"][1]


def test_the_process_ends_with_the_block_and_a_dead_one_is_done_without(random_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(fork_server, "_active", None)
    settings = EngineSettings(str(random_checkpoint))
    with warm_engines():
        server = fork_server._active
        with warm_engines():
            assert fork_server._active is server  # nested: the outer one's
        with EngineProcess("transformers", settings, tmp_path / "a") as engine:
            assert isinstance(engine._process, ForkedProcess)
        process = server._process
        process.kill()
        process.wait()
        with EngineProcess("transformers", settings, tmp_path / "b") as engine:
            assert not isinstance(engine._process, ForkedProcess)
    assert fork_server._active is None and process.poll() is not None
