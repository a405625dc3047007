"""Training a recipe at smoke scale: records, caching, interruption, resumption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from eval_harness import records
from eval_harness.errors import UserError
from gpg_repro.datasets import get_training_set
from gpg_repro.recipe import load_recipe
from gpg_repro.train import base_model, train, training_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A GPG run at smoke scale."""
    return train(load_recipe("table3_gpg_age_rs1", scale="smoke"), root=tmp_path_factory.mktemp("runs"), progress=False)


def test_a_run_leaves_records_and_a_checkpoint(finished):
    run = records.read_run(finished)
    assert (run.kind, run.status, run.num_steps, run.checkpoint) == ("training", "finished", 4, "checkpoint")
    assert run.recipe["name"] == "table3_gpg_age_rs1" and run.environment["prompts_used"] == 200
    steps = records.steps_frame(finished)
    assert steps["step"].tolist() == [1, 2, 3, 4]
    needed = "reward reward_std alpha inverse_alpha frac_easy frac_hard frac_identical num_groups num_valid_groups"
    needed = {*needed.split(), "num_draws", "completion_length", "rewards/accuracy_reward", "loss"}
    assert needed <= set(steps.columns)
    assert (steps["num_groups"] == 8).all()
    valid = steps[steps["num_valid_groups"] > 0]
    assert (valid["alpha"] - 8 / valid["num_valid_groups"]).abs().max() < 1e-9
    assert not (finished / "trainer").exists() and not (finished / "checkpoint.partial").exists()


def test_weights_moved(finished):
    base = load_file(Path(base_model(load_recipe("table3_gpg_age_rs1", scale="smoke"))) / "model.safetensors")
    trained = load_file(finished / "checkpoint" / "model.safetensors")
    assert base.keys() == trained.keys() and any((base[k] != trained[k]).any() for k in base)


def test_a_finished_run_is_found_again(finished):
    before = (finished / "run.json").read_bytes()
    assert train(load_recipe("table3_gpg_age_rs1", scale="smoke"), root=finished.parent, progress=False) == finished
    assert (finished / "run.json").read_bytes() == before


def test_killed_and_restarted_ends_with_the_same_weights(finished, tmp_path):
    """SIGKILL after a checkpoint: the rest of the run is bit-identical on a CPU, and so are its metrics."""
    command = [sys.executable, "-m", "gpg_repro", "train", "table3_gpg_age_rs1", "scale=smoke", "--root", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("*/trainer/checkpoint-2/complete")):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder,) = tmp_path.glob("train-*")
    assert not (folder / "checkpoint").exists() and records.read_run(folder).status == "running"
    half = folder / "trainer" / "checkpoint-3"  # and a half-written checkpoint on top: it must not be loaded
    half.mkdir(exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")
    (half / "complete").unlink(missing_ok=True)
    assert train(load_recipe("table3_gpg_age_rs1", scale="smoke"), root=tmp_path, progress=False) == folder
    expected, got = (load_file(f / "checkpoint" / "model.safetensors") for f in (finished, folder))
    assert all((expected[k] == got[k]).all() for k in expected)
    columns = ["step", "reward", "alpha", "loss", "reward_std"]
    assert records.steps_frame(folder)[columns].equals(records.steps_frame(finished)[columns])


def test_grpo_baseline_logs_the_same_metrics(tmp_path):
    folder = train(load_recipe("table3_grpo_rs1", ["max_steps=1"], scale="smoke"), root=tmp_path, progress=False)
    steps = records.steps_frame(folder)
    assert {"alpha", "reward_std", "frac_easy", "kl"} <= set(steps.columns)
    assert steps["alpha_applied"].tolist() == [1.0]


def test_unreadable_golds_are_taken_out_under_paper_fidelity_only(monkeypatch):
    rows = [{"prompt": [{"role": "user", "content": "q"}], "solution": gold} for gold in ("$\\boxed{5}$", "5", "$7$")]
    monkeypatch.setattr(type(get_training_set("tiny_s1")), "rows", lambda self, *a, **k: list(rows))
    base = base_model(load_recipe("table3_gpg_rs1", scale="smoke"))
    paper, counts = training_rows(load_recipe("table3_gpg_age_rs1", scale="smoke"), base)
    assert len(paper) == 2 and counts == {"prompts_read": 3, "golds_unreadable": 1, "prompts_used": 2}
    released, counts = training_rows(load_recipe("table3_gpg_rs1", scale="smoke"), base)
    assert len(released) == 3 and counts["golds_unreadable"] == 1


def test_long_prompts_are_taken_out_and_counted(monkeypatch):
    rows = [{"prompt": [{"role": "user", "content": "x" * n}], "solution": "$5$"} for n in (5, 500)]
    monkeypatch.setattr(type(get_training_set("tiny_s1")), "rows", lambda self, *a, **k: list(rows))
    recipe = load_recipe("table3_gpg_rs1", ["max_prompt_length=100"], scale="smoke")
    kept, counts = training_rows(recipe, base_model(recipe))
    assert len(kept) == 1 and counts["prompts_too_long"] == 1


def test_hub_sets_name_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"knoveleng/open-s1.*--data-root DIR with a open_s1.jsonl"):
        get_training_set("open_s1").rows(None, None, 0)
    (tmp_path / "open_s1.jsonl").write_text('{"problem": "1+1?", "solution": "$\\\\boxed{2}$"}\n', encoding="utf-8")
    rows = get_training_set("open_s1").rows("Think.", 1, 0, tmp_path)
    assert rows == [
        {
            "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
            "solution": "$\\boxed{2}$",
        }
    ]
    with pytest.raises(UserError, match="holds 1 rows, expected 18615"):
        get_training_set("open_s1").rows(None, None, 0, tmp_path)
