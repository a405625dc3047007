"""Training a recipe at smoke scale: records, caching, interruption, resumption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.locks import locked
from gpg_repro.datasets import get_training_set
from gpg_repro.paths import STOP_FILE
from gpg_repro.recipe import load_recipe
from gpg_repro.stopping import ASKING, asked_by_signals
from gpg_repro.train import (
    _last_whole_checkpoint,
    _Recorder,
    _wandb_settings,
    base_model,
    build_trainer,
    check_logger,
    objective_arguments,
    train,
    training_rows,
    whole_saves,
    with_mean_alpha,
)


@pytest.fixture(scope="module")
def finished(smoke_base, tmp_path_factory) -> Path:
    """A GPG run at smoke scale."""
    return train(load_recipe("table3_gpg_age_rs1", scale="smoke"), root=tmp_path_factory.mktemp("runs"), progress=False)


@pytest.mark.full("trains a recipe from the smoke base")
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


@pytest.mark.full("trains a recipe from the smoke base")
def test_weights_moved(finished, smoke_base):
    assert Path(base_model(load_recipe("table3_gpg_age_rs1", scale="smoke"))) == smoke_base
    base = load_file(smoke_base / "model.safetensors")
    trained = load_file(finished / "checkpoint" / "model.safetensors")
    assert base.keys() == trained.keys() and any((base[k] != trained[k]).any() for k in base)


@pytest.mark.full("trains a recipe from the smoke base")
def test_a_finished_run_is_found_again(finished):
    before = (finished / "run.json").read_bytes()
    assert train(load_recipe("table3_gpg_age_rs1", scale="smoke"), root=finished.parent, progress=False) == finished
    assert (finished / "run.json").read_bytes() == before


# --- What goes wrong (tests/torture kills it for good) ---------------------------------------------------------------


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (one, other))
    files, others = ({p.name: p.read_bytes() for p in (f / "checkpoint").iterdir()} for f in (one, other))
    assert (
        files.keys() == others.keys() and [n for n in files if n != "model.safetensors" and files[n] != others[n]] == []
    )
    return a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


METRICS = ["step", "reward", "alpha", "loss", "reward_std"]


@pytest.mark.full("trains a recipe from the smoke base")
@pytest.mark.needs("mounting")
def test_a_disk_that_fills_up_while_training(finished, tmp_path):
    """On a real file system with room for one save: told in one line; with more room the run ends as undisturbed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        recipe = load_recipe("table3_gpg_age_rs1", scale="smoke")
        with pytest.raises(
            UserError, match="cannot write .*: the disk is full.*start the same command again"
        ) as raised:
            train(recipe, root=disk, progress=False)
        assert "\n" not in str(raised.value)
        (folder,) = disk.glob("train-*")
        assert records.read_run(folder).status == "running" and not (folder / "checkpoint").exists()
        assert records.steps_frame(folder)["step"].tolist() == list(range(1, len(records.steps_frame(folder)) + 1))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert train(recipe, root=disk, progress=False) == folder
        assert same_weights(finished, folder)
        assert records.steps_frame(folder)[METRICS].equals(records.steps_frame(finished)[METRICS])
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.full("trains a recipe from the smoke base")
@pytest.mark.parametrize("cut", ["before the record", "while the saves are removed"])
def test_an_end_that_is_cut_short(cut, finished, tmp_path, monkeypatch):
    """The final weights are there; the saves go last, so the run need not be made again, and never from half a save."""
    recipe = load_recipe("table3_gpg_age_rs1", scale="smoke")
    removed, written = shutil.rmtree, records.write_json

    def remove(path, *args, **kwargs):
        if Path(path).name == "trainer":
            removed(Path(path) / "checkpoint-4")  # some of it
            raise KeyboardInterrupt
        removed(path, *args, **kwargs)

    def write(path, record):
        if record.status == "finished":
            raise KeyboardInterrupt
        written(path, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if cut == "before the record":
            patch.setattr(records, "write_json", write)
        else:
            patch.setattr(shutil, "rmtree", remove)
        train(recipe, root=tmp_path, progress=False)
    (folder,) = tmp_path.glob("train-*")
    assert (folder / "checkpoint").is_dir() and (folder / "trainer").is_dir()
    if cut != "before the record":
        monkeypatch.setattr("gpg_repro.train._train", lambda run: pytest.fail("trained again"))
    assert train(recipe, root=tmp_path, progress=False) == folder
    assert not (folder / "trainer").exists() and same_weights(finished, folder)
    assert records.steps_frame(folder)[METRICS].equals(records.steps_frame(finished)[METRICS])


@pytest.mark.full("trains a recipe from the smoke base")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1, "file"])
def test_a_training_that_is_asked_to_end_saves_its_step_and_goes_on(how, finished, tmp_path, monkeypatch):
    """Asked before its second step of four, between two regular saves; the end is that of an undisturbed run."""
    stop, before = tmp_path / "stop", [signal.getsignal(number) for number in ASKING]
    monkeypatch.setenv(STOP_FILE, str(stop))
    overrides = ["keep_checkpoints=true", "save_steps=3"]
    recipe = load_recipe("table3_gpg_age_rs1", overrides, scale="smoke")
    logged, seen = _Recorder.on_log, []

    def log(self, args, state, control, **more):
        logged(self, args, state, control, **more)
        seen.append((tmp_path / "stop.ready").read_text())
        if state.global_step == 1:
            stop.touch() if how == "file" else os.kill(os.getpid(), how)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="stopped after step 2 of 4, which is saved"):
        patch.setattr(_Recorder, "on_log", log)
        train(recipe, root=tmp_path, progress=False)
    assert set(seen) == {"0\n"} and [signal.getsignal(number) for number in ASKING] == before
    assert [(tmp_path / f"stop.{name}").read_text() for name in ("saved", "stopped")] == ["2\n", "2\n"]
    (folder,) = tmp_path.glob("train-*")
    assert list(whole_saves(folder / "trainer")) == [2] and records.read_run(folder).status == "running"
    for path in tmp_path.glob("stop*"):
        path.unlink()
    assert train(recipe, root=tmp_path, progress=False) == folder
    assert [(tmp_path / f"stop.{name}").exists() for name in ("ready", "saved", "stopped")] == [True, True, False]
    assert (tmp_path / "stop.ready").read_text() == "2\n"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-3"]  # none of the stop
    assert same_weights(finished, folder)
    assert records.steps_frame(folder)[METRICS].equals(records.steps_frame(finished)[METRICS])


def test_a_second_sigterm_does_what_it_did_before():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("second"))
    try:
        with asked_by_signals() as asked:
            assert not asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked() and not came
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == ["second"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == ["second"] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_training_in_a_thread_leaves_signals_alone():
    before, told = signal.getsignal(signal.SIGUSR1), []

    def ask():
        with asked_by_signals() as asked:
            told.append((asked(), signal.getsignal(signal.SIGUSR1) is before))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert told == [(False, True)]


def saves(trainer: Path, *steps: int) -> None:
    """Saves as the trainer leaves them, in small."""
    for step in steps:
        folder = trainer / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
        torch.save({"state": step}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}), encoding="utf-8")
        (folder / "complete").touch()


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_save_is_not_loaded(damaged, tmp_path, capsys):
    saves(tmp_path, 2, 4, 6)
    (tmp_path / "checkpoint-6" / "complete").unlink()
    (tmp_path / "checkpoint-1.removed").mkdir()
    assert _last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    for step in (4, 2):
        file = tmp_path / f"checkpoint-{step}" / damaged
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if step == 4:
            assert _last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
            told = capsys.readouterr().err
            assert told.count("\n") == 1 and damaged in told and "going on from an earlier one" in told
    with pytest.raises(UserError, match=f"checkpoint-4/{damaged} cannot be read.*Nothing was touched"):
        _last_whole_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_the_newest_saves_are_those_of_the_last_steps_whatever_the_clock_says(tmp_path):
    """The clock went back an hour before each save: the newest by time is the oldest."""
    recorder = _Recorder(tmp_path, load_recipe("table1_gpg"), progress=False)
    args = types.SimpleNamespace(output_dir=str(tmp_path / "trainer"))
    for hours, step in enumerate((2, 4, 10, 12)):
        saves(tmp_path / "trainer", step)
        then = time.time() - 3600 * hours
        os.utime(tmp_path / "trainer" / f"checkpoint-{step}", (then, then))
        recorder.on_save(args, types.SimpleNamespace(is_world_process_zero=True, global_step=step), None)
    assert list(whole_saves(tmp_path / "trainer")) == [10, 12]
    assert sorted(path.name for path in (tmp_path / "trainer").iterdir()) == ["checkpoint-10", "checkpoint-12"]


def test_the_library_removes_no_saves(build):
    """It would go by the time of files."""
    assert build("table1_gpg").args.save_total_limit is None


def test_steps_are_rewritten_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "steps.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in (1, 2, 3)) + '{"st', encoding="utf-8")
    before = (tmp_path / "steps.jsonl").read_bytes()
    recorder = _Recorder(tmp_path, load_recipe("table1_gpg"), progress=False)
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=2, max_steps=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        recorder.on_train_begin(None, state, None)
    assert (tmp_path / "steps.jsonl").read_bytes() == before
    recorder.on_train_begin(None, state, None)
    assert (tmp_path / "steps.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def test_a_folder_in_use_is_refused_with_who_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("gpg_repro.train._train", lambda run: run.folder)
    recipe = load_recipe("table1_gpg", scale="smoke")
    folder = train(recipe, root=tmp_path, progress=False)
    with locked(folder, "training"), pytest.raises(UserError, match=f"process {os.getpid()} here .*training"):
        train(recipe, root=tmp_path, progress=False)
    assert train(recipe, root=tmp_path, progress=False) == folder


@pytest.mark.full("trains a recipe from the smoke base")
def test_grpo_baseline_logs_the_same_metrics(smoke_base, tmp_path):
    folder = train(load_recipe("table3_grpo_rs1", ["max_steps=1"], scale="smoke"), root=tmp_path, progress=False)
    steps = records.steps_frame(folder)
    assert {"alpha", "reward_std", "frac_easy", "kl"} <= set(steps.columns)
    assert steps["alpha_applied"].tolist() == [1.0]


def test_unreadable_golds_are_taken_out_under_paper_fidelity_only(random_checkpoint, monkeypatch):
    rows = [
        {"prompt": [{"role": "user", "content": "q"}], "solution": gold} for gold in ("$\\boxed{5}$", "5", "$7$", "")
    ]
    monkeypatch.setattr(type(get_training_set("tiny_s1")), "rows", lambda self, *a, **k: list(rows))
    base = str(random_checkpoint)
    paper, counts = training_rows(load_recipe("table3_gpg_age_rs1", scale="smoke"), base)
    expected = {"prompts_read": 4, "golds_missing": 1, "golds_unreadable": 1}
    assert len(paper) == 2 and counts == expected | {"prompts_used": 2}
    released, counts = training_rows(load_recipe("table3_gpg_rs1", scale="smoke"), base)
    assert len(released) == 3 and counts == expected | {"prompts_used": 3}
    # the bare-answer reward boxes every gold first: 5 is readable
    bare, counts = training_rows(
        load_recipe("table3_gpg_age_rs1", ["rewards={accuracy_lv35: 1, think_format: 1}"], scale="smoke"), base
    )
    assert len(bare) == 3 and counts["golds_unreadable"] == 0


def test_long_prompts_are_taken_out_and_counted(random_checkpoint, monkeypatch):
    rows = [{"prompt": [{"role": "user", "content": "x" * n}], "solution": "$5$"} for n in (5, 500)]
    rows += [{"prompt": "x" * n, "solution": "$5$"} for n in (5, 99, 101)]  # ready-made text: one token a character
    monkeypatch.setattr(type(get_training_set("tiny_s1")), "rows", lambda self, *a, **k: list(rows))
    recipe = load_recipe("table3_gpg_rs1", ["max_prompt_length=100"], scale="smoke")
    monkeypatch.setattr("datasets.Dataset.from_list", staticmethod(list))  # a column of one type, in real sets
    kept, counts = training_rows(recipe, str(random_checkpoint))
    assert [len(row["prompt"]) for row in kept] == [1, 5, 99] and counts["prompts_too_long"] == 2


@pytest.mark.full("trains a recipe from the smoke base")
def test_a_set_with_ready_made_prompts_trains(smoke_base, tmp_path):
    """Plain text in, plain text out: no chat template, and the reward for bare answers."""
    rows = [{"prompt": [{"content": f"{i}+1=?", "role": "user"}], "target": str(i + 1) if i else ""} for i in range(30)]
    data = tmp_path / "simplelr_qwen_level3to5.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = load_recipe(
        "table4_gpg_paper",
        [
            "dataset=simplerl_level3to5",
            "rewards={accuracy_lv35: 1}",
            "max_steps=1",
            "max_draws=1",
            "max_prompt_length=9",
        ],
        scale="smoke",
    )
    folder = train(recipe, root=tmp_path, data_root=tmp_path, progress=False, log_to="none")
    environment = records.read_run(folder).environment
    assert {key: environment[key] for key in ("prompts_read", "golds_missing", "prompts_used")} == {
        "prompts_read": 30,
        "golds_missing": 1,
        "prompts_used": 29,
    }
    assert "rewards/accuracy_lv35_reward" in records.steps_frame(folder)


# --- What a recipe means to the trainers -----------------------------------------------------------------------------


@pytest.fixture
def build(random_checkpoint, tmp_path):
    """Builds a recipe's trainer at smoke scale, from an untrained base."""
    return partial(_trainer, str(random_checkpoint), tmp_path)


def _trainer(base: str, folder: Path, name: str, *overrides: str, **kwargs):
    recipe = load_recipe(name, overrides, scale="smoke")
    return build_trainer(recipe, base, training_rows(recipe, base)[0], folder, **kwargs)


def _shown(args, *names: str) -> tuple:
    return tuple(getattr(args, name) for name in names)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        # fidelity, f_norm, age, beta_th, normalization, beta, fixed_alpha
        ("table1_gpg", [], ("paper", "none", False, 0.0, "local", 0.0, None)),
        ("table1_gpg_std", ["normalization=group"], ("paper", "group", False, 0.0, "group", 0.0, None)),
        ("table1_gpg_age_th", [], ("paper", "none", True, 0.6, "local", 0.0, None)),
        ("table12_gpg_kl", [], ("paper", "group", False, 0.0, "local", 0.04, None)),
        ("table1_gpg", ["fixed_alpha=1.5"], ("paper", "none", False, 0.0, "local", 0.0, 1.5)),
        ("table4_gpg_released", [], ("r2", "none", True, 0.5, "local", 0.0, None)),
        ("table4_gpg_released", ["beta_th=0"], ("r2", "none", True, 0.0, "local", 0.0, None)),  # off wins over R2's 0.5
        ("table3_gpg_rs1", [], ("r0", "group", False, 0.0, "local", 0.0, None)),
    ],
)
def test_gpg_recipes_reach_the_trainer(name, overrides, expected, build):
    from gpg_repro.trainer import GPGTrainer

    trainer = build(name, *overrides)
    assert isinstance(trainer, GPGTrainer)
    switches = _shown(trainer.args, "fidelity", "f_norm", "age", "beta_th", "normalization", "beta", "fixed_alpha")
    assert switches == expected
    assert (trainer.ref_model is not None) == (expected[5] > 0)
    assert trainer.args.max_draws == 20


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        # loss_type, scale_rewards, beta, epsilon, epsilon_high
        ("table1_grpo", [], ("bnpo", "group", 0.04, 0.2, 0.2)),
        ("table1_grpo", ["normalization=sequence"], ("grpo", "group", 0.04, 0.2, 0.2)),
        ("table1_dr_grpo", [], ("dr_grpo", "none", 0.0, 0.2, 0.2)),
        ("table1_dr_grpo", ["normalization=local"], ("bnpo", "none", 0.0, 0.2, 0.2)),
        ("table9_dapo", [], ("dapo", "group", 0.0, 0.2, 0.28)),
    ],
)
def test_rivals_reach_the_trainer(name, overrides, expected, build):
    from gpg_repro.trainer import GRPOBaselineTrainer

    trainer = build(name, *overrides)
    assert isinstance(trainer, GRPOBaselineTrainer)
    args = trainer.args
    # TRL keeps an epsilon_high of None and clips at epsilon on both sides then
    assert _shown(trainer, "epsilon_low", "epsilon_high") == expected[3:]
    assert _shown(args, "loss_type", "scale_rewards", "beta") == expected[:3]
    assert (trainer.ref_model is not None) == (args.beta > 0)
    assert args.vllm_importance_sampling_correction is False


def test_training_settings_reach_the_trainer(build):
    args = build("table4_gpg_released", "weight_decay=0.1", "temperature=0.7", "top_k=9").args
    t = load_recipe("table4_gpg_released", scale="smoke").setup.training
    names = ("per_device_train_batch_size", "num_generations", "max_steps", "learning_rate", "adam_beta2")
    assert _shown(args, *names) == _shown(t, *names)
    assert _shown(args, "weight_decay", "temperature", "top_k", "max_grad_norm") == (0.1, 0.7, 9, 0.3)


# --- alpha_from ------------------------------------------------------------------------------------------------------


def test_the_mean_alpha_is_that_of_steps_with_a_signal(tmp_path):
    recipe = load_recipe("control_mean_clipped")
    (tmp_path / "steps.jsonl").write_text(
        "".join(json.dumps({"step": i, "alpha_applied": a}) + "\n" for i, a in enumerate((2.0, 0.0, 1.0))),
        encoding="utf-8",
    )
    assert with_mean_alpha(recipe, tmp_path).objective.fixed_alpha == 1.5  # (2 + 1) / 2
    (tmp_path / "steps.jsonl").write_text('{"step": 1, "alpha_applied": 0.0}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no step .* had a valid group"):
        with_mean_alpha(recipe, tmp_path)


@pytest.mark.full("trains a recipe from the smoke base")
def test_alpha_from_trains_its_source_first_and_uses_its_mean(smoke_base, tmp_path):
    recipe = load_recipe("control_mean_clipped", ["max_steps=1"], scale="smoke", seed=3)
    folder = train(recipe, root=tmp_path, progress=False, log_to="none")
    (source,) = tmp_path.glob("train-table1_gpg_age-smoke-seed3-*")
    run = records.read_run(folder)
    applied = records.steps_frame(source)["alpha_applied"]
    mean = applied[applied > 0].mean()
    assert records.read_run(source).status == "finished" and len(applied) == 4
    assert run.recipe["objective"]["fixed_alpha"] == pytest.approx(mean)
    assert run.environment["alpha_from_run"] == source.name
    assert records.steps_frame(folder)["alpha_applied"].tolist() == pytest.approx([mean])
    before = (source / "run.json").read_bytes()
    assert train(recipe, root=tmp_path, progress=False, log_to="none") == folder  # both are found again
    assert (source / "run.json").read_bytes() == before


# --- Logging ---------------------------------------------------------------------------------------------------------


def test_loggers_are_checked_before_anything_expensive(monkeypatch):
    monkeypatch.setattr("gpg_repro.train.base_model", lambda *a, **k: pytest.fail("too late"))
    recipe = load_recipe("table1_gpg", scale="smoke")
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        train(recipe, log_to="tensorbord")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package trackio: `pip install trackio`"):
        train(recipe, log_to="trackio")
    assert check_logger(None) == "none" and check_logger("none") == "none"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert check_logger(None) == "tensorboard" and check_logger("wandb") == "wandb"


@pytest.mark.full("trains a recipe from the smoke base")
def test_tensorboard_gets_every_metric(smoke_base, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(load_recipe("table1_gpg_age", ["max_steps=2"], scale="smoke"), root=tmp_path, progress=False)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    steps = records.steps_frame(folder)
    for name in ("reward", "alpha", "grad_norm", "frac_easy", "num_draws"):
        assert [e.value for e in events.Scalars(f"train/{name}")] == pytest.approx(steps[name].tolist())


def test_external_loggers_stay_on_this_machine(build):
    args = build("table1_gpg", run_name="mine").args
    assert args.report_to == [] and args.run_name == "mine"
    assert args.trackio_space_id is None and args.trackio_static_space_id is False and not args.push_to_hub


def test_wandb_is_offline_and_keeps_the_users_settings(monkeypatch, tmp_path):
    seen = []
    fake = types.ModuleType("wandb")
    fake.finish, fake.teardown = (lambda: seen.append("finish")), (lambda: seen.append("teardown"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    run = types.SimpleNamespace(log_to="wandb", folder=tmp_path)
    with pytest.raises(KeyError), _wandb_settings(run):
        assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("offline", str(tmp_path))
        assert os.environ["WANDB_PROJECT"] == "theirs"
        raise KeyError  # also when training fails
    assert "WANDB_MODE" not in os.environ and os.environ["WANDB_PROJECT"] == "theirs" and seen == ["finish", "teardown"]
    with _wandb_settings(types.SimpleNamespace(log_to="none", folder=tmp_path)):
        assert "WANDB_MODE" not in os.environ


def test_the_recorder_takes_any_step_and_not_the_summary(tmp_path):
    recorder = _Recorder(tmp_path, load_recipe("table1_gpg"), progress=False)
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=3)
    recorder.on_train_begin(None, state, None)
    for step, logs in enumerate(({"loss": 0.0}, {"reward": 0.5, "alpha": 2.0}, {"train_runtime": 1.0}, None), start=1):
        state.global_step = step
        recorder.on_log(None, state, None, logs=logs)
    recorder.on_train_end(None, state, None)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 1, "loss": 0.0}, {"step": 2, "reward": 0.5, "alpha": 2.0}]


# --- Several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch", processes.LAUNCHERS)
def test_two_processes_train_one_run(launch, smoke_base, tmp_path):
    command = ["-m", "gpg_repro", "train", "table1_gpg_age", "scale=smoke", "max_steps=2", "--root", str(tmp_path)]
    done = launch(2, *command, folder=tmp_path / "printed", grades=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = tmp_path.glob("train-*")
    run = records.read_run(folder)
    assert (run.status, run.num_steps, run.environment["num_processes"]) == ("finished", 2, 2)
    assert (records.steps_frame(folder)["num_groups"] == 16).all()  # 2 x 64 completions of groups of 8
    told = "number of processes is 1, this launch's is 2; 16 prompts per step instead of 8."
    assert done.stderr.count(told) == 1 and done.stdout.count(f"run: {folder}") == 1


ASKED = """
import os, signal, sys
from pathlib import Path
from eval_harness.errors import UserError
from gpg_repro import train as module
from gpg_repro.recipe import load_recipe
logged = module._Recorder.on_log
def log(self, args, state, control, **more):
    logged(self, args, state, control, **more)
    if os.environ["RANK"] == "1" and state.global_step == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
module._Recorder.on_log = log
recipe = load_recipe("table1_gpg_age", ["max_steps=3", "save_steps=3"], scale="smoke")
try:
    module.train(recipe, root=Path(sys.argv[1]), progress=False)
except UserError as error:
    Path(sys.argv[1], "told." + os.environ["RANK"]).write_text(str(error))
"""


@pytest.mark.full("two processes that train")
def test_one_of_two_processes_is_asked_to_end(smoke_base, tmp_path):
    """The other one is not: both end after the same step, and the save is whole."""
    (tmp_path / "asked.py").write_text(ASKED)
    command = [str(tmp_path / "asked.py"), str(tmp_path)]
    done = processes.launch(2, *command, folder=tmp_path / "printed", grades=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = {(tmp_path / f"told.{rank}").read_text() for rank in (0, 1)}
    assert len(told) == 1 and "stopped after step 2 of 3" in told.pop()
    (folder,) = tmp_path.glob("train-*")
    assert list(whole_saves(folder / "trainer")) == [2] and records.read_run(folder).status == "running"


def test_another_number_of_processes_is_another_run(monkeypatch, tmp_path):
    """Its batch differs, and so do its weights: a finished run of one process must not stand for one of two."""
    monkeypatch.setattr("gpg_repro.train._train", lambda run: run.folder)
    recipe = load_recipe("table1_gpg", scale="smoke")
    one = train(recipe, root=tmp_path, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train(recipe, root=tmp_path, progress=False) != one


@pytest.mark.parametrize("row", ["rs1", "rs3"])
def test_table_3_compares_rows_of_one_temperature(row):
    """Departure 30 of the released code: the library under both rows divides no logits, at a temperature of 0.7."""
    gpg, grpo = (load_recipe(f"table3_{method}_{row}", scale="paper") for method in ("gpg", "grpo"))
    assert objective_arguments(gpg)["logp_temperature"] == objective_arguments(grpo)["logp_temperature"] == "one"
    assert gpg.setup.training.temperature == grpo.setup.training.temperature == 0.7
