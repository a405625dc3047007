"""Controls: one engine for several settings, prompt sensitivity, contamination; see docs/controls.md."""

from __future__ import annotations

import pytest
from engine_here import EngineHere

from eval_harness import records, runner
from eval_harness.engines.shared import SharedEngine
from eval_harness.runner import Overrides, evaluate

SUITES = ["tiny_sums", "tiny_chains"]


@pytest.fixture
def engines_here(monkeypatch):
    """Engines without processes; the list of what was started."""
    started = []

    class Counted(EngineHere):
        def __init__(self, engine, settings, log, environment=None):
            started.append(settings)
            super().__init__(engine, settings, log, environment)

    monkeypatch.setattr(runner, "EngineProcess", Counted)
    return started


def lines(folder):
    return {
        path.stem: sorted(path.read_text(encoding="utf-8").splitlines())
        for path in (folder / "samples").glob("*.jsonl")
    }


# One engine -----------------------------------------------------------------------------------------------------------


def test_a_shared_engine_starts_once_and_changes_nothing(random_checkpoint, tmp_path, engines_here):
    """Own template, plain text, with a system prompt: each run equals the one with an engine of its own."""
    wanted = {
        "own": {},
        "plain": {"chat_template": "none"},
        "plain-system": {"chat_template": "none", "overrides": Overrides(max_new_tokens=12, system_prompt="be brief")},
        "own-system": {"overrides": Overrides(max_new_tokens=12, system_prompt="be brief")},
    }
    common = {"engine": "transformers", "limit": 4, "progress": False, "overrides": Overrides(max_new_tokens=12)}

    def run(name, **more):
        return evaluate(
            str(random_checkpoint), SUITES, out=tmp_path / name, **common | wanted[name.split("/")[1]] | more
        )

    with SharedEngine() as shared:
        together = {name: run(f"together/{name}", shared=shared) for name in wanted}
        assert len(engines_here) == 1 and engines_here[0].chat_template is None
    alone = {name: run(f"alone/{name}") for name in wanted}
    assert len(engines_here) == 5
    found = [lines(together[name]) for name in wanted]
    assert found == [lines(alone[name]) for name in wanted]
    assert all(found[i] != found[j] for i in range(4) for j in range(i))
    for name in wanted:
        one, other = records.read_run(together[name]), records.read_run(alone[name])
        assert (one.fingerprint, one.benchmarks, one.settings) == (other.fingerprint, other.benchmarks, other.settings)
    assert [records.read_run(folder).provenance["sessions"][0]["settings"]["chat_template"]
            for folder in together.values()] == [None, "none", "none", None]  # fmt: skip
    with SharedEngine() as shared:  # finished runs ask nothing, so nothing is started
        run("together/own", shared=shared)
    assert len(engines_here) == 5


def test_a_shared_engine_refuses_another_way_of_loading(random_checkpoint, tmp_path, engines_here):
    common = {"engine": "transformers", "limit": 1, "progress": False, "overrides": Overrides(max_new_tokens=2)}
    with SharedEngine() as shared:
        evaluate(str(random_checkpoint), SUITES[:1], out=tmp_path / "a", shared=shared, **common)
        with pytest.raises(ValueError, match="load the model alike"):
            evaluate(str(random_checkpoint), SUITES[:1], out=tmp_path / "b", shared=shared, max_model_len=256, **common)
