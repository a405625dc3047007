"""Train a recipe on many GPUs: the accelerate command of a strategy, vLLM's server beside it, and what to check first.

The strategies are the files of ``configs/accelerate``. Everything that a strategy must not decide (precision, gradient
checkpointing, accumulation, clipping) stays with the recipe. One call serves one node; on several, each runs the same
command with its own ``--node-rank`` (configs/slurm/train.sbatch).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval_harness import guard
from eval_harness.errors import UserError
from gpg_repro.costs import STRATEGIES
from gpg_repro.paths import STOP_FILE
from gpg_repro.recipe import Recipe, load_recipe

VLLM_MODES = ("off", "colocate", "server")
MAIN_PORT = 29500
"""Where the processes of a launch find each other, unless asked otherwise."""
WEIGHTS_PORT = 51216
"""Where TRL sends new weights to a vLLM server."""
SERVER_START_S = 900
"""Longest wait for a vLLM server to load its model."""
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "accelerate"
_ONLY_HERE = ("127.0.0.1", "localhost", "::1")
_ANYWHERE = "0.0.0.0"


@dataclass(frozen=True)
class Launch:
    """A training on ``nodes`` x ``processes / nodes`` GPUs, ready to be written down as commands."""

    recipe: Recipe
    name: str
    """What the recipe was asked for as: a name, or a path."""
    overrides: tuple[str, ...]
    strategy: str
    processes: int
    """On all nodes together."""
    nodes: int = 1
    main_address: str | None = None
    main_port: int = MAIN_PORT
    vllm_gpus: int = 1
    """GPUs of a vLLM server; they share one model."""
    options: tuple[str, ...] = ()
    """Passed on to ``train``: --root, --data-root, --image-root, --log-to."""

    @property
    def on_this_node(self) -> int:
        """Training processes of one node."""
        return self.processes // self.nodes

    @property
    def vllm(self) -> str:
        """One of ``VLLM_MODES``."""
        training = self.recipe.setup.training
        return training.vllm_mode if training.use_vllm else "off"

    @property
    def starts_server(self) -> bool:
        """Whether the vLLM server is this launch's own. On several nodes it is started apart, on one that is free."""
        return self.vllm == "server" and self.nodes == 1

    @property
    def gpus_needed(self) -> int:
        """GPUs of one node."""
        return self.on_this_node + (self.vllm_gpus if self.starts_server else 0)


def plan_launch(
    name: str,
    overrides: Sequence[str] = (),
    *,
    strategy: str,
    processes: int | None = None,
    nodes: int = 1,
    main_address: str | None = None,
    main_port: int = MAIN_PORT,
    vllm: str | None = None,
    vllm_gpus: int = 1,
    keep_batch: bool = False,
    options: Sequence[str] = (),
) -> Launch:
    """What to launch.

    Args:
        name: recipe, by name or path.
        overrides: ``key=value`` as for ``train``.
        strategy: one of ``STRATEGIES``.
        processes: on all nodes together; default: the recipe's.
        nodes: machines that take part.
        main_address, main_port: where the first node is found; the address is needed with several nodes only.
        vllm: one of ``VLLM_MODES``; default: as the recipe has it.
        vllm_gpus: GPUs of the vLLM server.
        keep_batch: set ``gradient_accumulation_steps`` so that a step keeps the recipe's completions.
        options: passed on to ``train`` as they are.

    Raises:
        UserError: what cannot be launched on any machine; all of it together, but for the recipe's own problems.
    """
    overrides = [*overrides, *_vllm_overrides(vllm)]
    recipe = load_recipe(name, overrides)
    processes = processes or recipe.setup.training.num_processes
    problems = []
    if processes % nodes:
        problems.append(f"{processes} processes cannot be spread evenly over {nodes} nodes: make it a multiple.")
    if nodes > 1 and main_address is None:
        problems.append("several nodes need --main-address, a name or address of the first one.")
    if nodes > 1 and recipe.setup.training.use_vllm and recipe.setup.training.vllm_mode == "server":
        host = recipe.setup.training.vllm_server_host
        if host in (*_ONLY_HERE, _ANYWHERE):
            problems.append(
                "on several nodes the vLLM server runs on one of its own: name it (vllm_server_host=HOST) and start it "
                "there with the command that --dry-run prints."
            )
    adapter = recipe.setup.adapter
    if adapter and adapter.quantization == "4bit" and strategy in ("fsdp", "zero3"):
        from gpg_repro.train import quantized_refusal  # takes seconds

        problems.append(quantized_refusal(strategy))
    if keep_batch:
        try:
            overrides += kept_batch(recipe, processes)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"recipe {recipe.name} ({recipe.scale}) cannot be launched:\n" + _listed(problems))
    load_recipe(name, [*overrides, f"num_processes={processes}"])  # its rules for this number of processes
    launch = Launch(
        load_recipe(name, overrides),
        name,
        tuple(overrides),
        strategy,
        processes,
        nodes,
        main_address,
        main_port,
        vllm_gpus,
        tuple(options),
    )
    if launch.starts_server and launch.recipe.setup.training.vllm_server_host == _ANYWHERE:
        overrides.append("vllm_server_host=127.0.0.1")
        launch = replace(launch, recipe=load_recipe(name, overrides), overrides=tuple(overrides))
    return launch


def _vllm_overrides(vllm: str | None) -> list[str]:
    if vllm is None:
        return []
    return ["use_vllm=false"] if vllm == "off" else ["use_vllm=true", f"vllm_mode={vllm}"]


def kept_batch(recipe: Recipe, processes: int) -> list[str]:
    """Overrides with which a step of ``processes`` has the completions of the recipe's own number, none if it has.

    The gradient is the same: alpha and all denominators are those of the whole batch, and the micro-batches of
    ``normalization: local`` keep their size. (Fidelity r2 pools valid groups per process, as its code does.)

    Raises:
        UserError: no whole number of accumulation steps does it; says which numbers of processes have one.
    """
    t = recipe.setup.training
    if processes == t.num_processes:
        return []
    shares = t.gradient_accumulation_steps * t.num_processes  # micro-batches of a step
    if shares % processes:
        possible = [n for n in range(1, shares + 1) if shares % n == 0]
        raise UserError(
            f"{processes} processes cannot keep the batch of {t.completions_per_step()} completions: it is "
            f"{shares} x {t.per_device_train_batch_size} (per_device_train_batch_size). Use {_one_of(possible)} "
            "processes, or another per_device_train_batch_size."
        )
    return [f"gradient_accumulation_steps={shares // processes}", f"num_processes={processes}"]


def _one_of(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _listed(problems: Sequence[str]) -> str:
    return "\n".join(f"- {problem}" for problem in problems)


# --- Commands --------------------------------------------------------------------------------------------------------


def train_command(launch: Launch, node_rank: int = 0) -> list[str]:
    """The accelerate command of one node."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(config_file(launch.strategy)), "--num_processes", str(launch.processes)]
    command += ["--num_machines", str(launch.nodes)]
    if launch.nodes > 1:
        command += ["--machine_rank", str(node_rank), "--main_process_ip", str(launch.main_address)]
        command += ["--rdzv_backend", "c10d"]  # the nodes may start in any order, and one that is late is waited for
    command += ["--main_process_port", str(launch.main_port)]
    return [*command, "-m", "gpg_repro", "train", launch.name, *launch.overrides, *launch.options]


def config_file(strategy: str) -> Path:
    """The accelerate configuration of a strategy, relative to the current folder where it lies below.

    Raises:
        UserError: it is not there.
    """
    path = CONFIGS / f"{strategy}.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing: the accelerate configurations come with a checkout of the repository.")
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return path


def server_command(launch: Launch, base: str | None = None) -> list[str]:
    """The ``trl vllm-serve`` command of a launch in server mode.

    Args:
        launch: what is launched.
        base: folder of a base that was made on the spot.
    """
    setup, t = launch.recipe.setup, launch.recipe.setup.training
    command = [sys.executable, "-c", "from trl.cli import main; main()", "vllm-serve", "--model", base or setup.base]
    if setup.base_revision and base is None:
        command += ["--revision", setup.base_revision]
    command += ["--host", t.vllm_server_host, "--port", str(t.vllm_server_port)]
    command += ["--tensor-parallel-size", str(launch.vllm_gpus), "--dtype", "bfloat16" if t.bf16 else "float32"]
    if t.max_prompt_length is not None:
        command += ["--max-model-len", str(t.max_prompt_length + t.max_completion_length)]
    return command


def shown(command: Sequence[str], devices: Sequence[str] | None = None) -> str:
    """A command as one types it, with the GPUs it gets."""
    words = list(command)
    if words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]:
        words[:3] = ["accelerate", "launch"]
    elif words[:2] == [sys.executable, "-c"]:
        words[:3] = ["trl"]
    line = shlex.join(words)
    return line if devices is None else f"CUDA_VISIBLE_DEVICES={','.join(devices)} {line}"


def split_gpus(launch: Launch, gpus: Sequence[str]) -> tuple[list[str], list[str]]:
    """This node's GPUs for training and for the vLLM server."""
    return list(gpus[: launch.on_this_node]), list(gpus[launch.on_this_node : launch.gpus_needed])


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [str(index) for index in range(count)] if chosen is None else chosen.split(",")[:count]


# --- Checks ----------------------------------------------------------------------------------------------------------


def refusals(launch: Launch, gpus: Sequence[str], node_rank: int = 0) -> list[str]:
    """What this machine lacks for a launch, each with its remedy; empty if nothing."""
    t = launch.recipe.setup.training
    problems = []
    if launch.strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        problems.append(f"strategy {launch.strategy} needs DeepSpeed: `pip install deepspeed`, or --strategy fsdp.")
    if not gpus:
        problems += _without_gpus(launch)
    elif len(gpus) < launch.gpus_needed:
        problems.append(_too_few_gpus(launch, len(gpus)))
    if launch.vllm != "off" and importlib.util.find_spec("vllm") is None:
        problems.append("vLLM is not installed: install it (docs/environment.md), or --vllm off.")
    if launch.vllm == "colocate" and launch.processes % t.vllm_tensor_parallel_size:
        problems.append(
            f"{launch.processes} processes cannot be split into groups of vllm_tensor_parallel_size = "
            f"{t.vllm_tensor_parallel_size}: make it a divisor."
        )
    ports = {"--main-port": launch.main_port} if node_rank == 0 else {}
    if launch.starts_server:
        ports |= {"vllm_server_port": t.vllm_server_port, "TRL's port for weights": WEIGHTS_PORT}
    problems += [
        f"port {port} is in use ({what}): choose another, or end what listens there."
        for what, port in ports.items()
        if not _is_free(port)
    ]
    return problems


def _without_gpus(launch: Launch) -> list[str]:
    problems = []
    if launch.recipe.scale == "paper":
        problems.append("no GPU is visible, and scale paper needs them.")
    if launch.strategy != "ddp":
        problems.append(
            f"strategy {launch.strategy} needs GPUs: on a CPU accelerate shards nothing and does not say so. "
            "Use --strategy ddp."
        )
    if launch.vllm == "colocate":
        problems.append("TRL cannot load new weights into a vLLM on the CPU (colocate): --vllm off.")
    if launch.vllm == "server":
        problems.append("TRL sends weights to a vLLM server over NCCL, which needs GPUs: --vllm off.")
    return problems


def _too_few_gpus(launch: Launch, found: int) -> str:
    server = f" and {launch.vllm_gpus} for the vLLM server" if launch.starts_server else ""
    problem = f"{launch.on_this_node} GPUs{server} are needed on a node, {found} are visible here."
    room = found - (launch.vllm_gpus if launch.starts_server else 0)
    for count in range(room, 0, -1):
        with contextlib.suppress(UserError):
            changes = kept_batch(launch.recipe, count * launch.nodes)
            return (
                f"{problem} --processes {count * launch.nodes} --keep-batch keeps the batch"
                f" ({changes[0] if changes else 'as it is'})."
            )
    return problem


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


# --- Running ---------------------------------------------------------------------------------------------------------


def describe(launch: Launch, gpus: Sequence[str], base: str | None = None) -> str:
    """Every command of a launch, on a line each, with notes."""
    t = launch.recipe.setup.training
    completions = t.completions_per_step(launch.processes)
    lines = [
        f"# {launch.recipe.name} ({launch.recipe.scale}): {launch.processes} processes on {launch.nodes} node(s), "
        f"{completions // t.num_generations} prompts, {completions} completions a step"
    ]
    if completions != t.completions_per_step():
        lines.append(f"# the recipe has {t.completions_per_step()} completions a step; --keep-batch keeps them")
    enough = len(gpus) >= launch.gpus_needed
    training, serving = split_gpus(launch, gpus)
    if launch.vllm == "server":
        where = "" if launch.starts_server else f" (on {t.vllm_server_host}, before the others)"
        lines += [f"# vLLM{where}", shown(server_command(launch, base), serving if enough and serving else None)]
    for node in range(launch.nodes):
        lines += [f"# node {node}"] if launch.nodes > 1 else []
        lines.append(shown(train_command(launch, node), training if enough and launch.starts_server else None))
    return "\n".join(lines)


def run_launch(launch: Launch, node_rank: int = 0) -> int:
    """Check, start, wait; returns the exit status of the training.

    Raises:
        UserError: what this machine lacks, all of it together; a vLLM server that does not start.
    """
    gpus = visible_gpus()
    problems = refusals(launch, gpus, node_rank)
    if problems:
        raise UserError(f"recipe {launch.recipe.name} ({launch.recipe.scale}) cannot start:\n" + _listed(problems))
    from gpg_repro.train import base_model, check_recipe, on_the_spot

    given = dict(zip(launch.options[::2], launch.options[1::2], strict=True))
    check_recipe(launch.recipe, launch.processes, given.get("--data-root"), given.get("--image-root"))
    if not launch.starts_server:
        return _run(train_command(launch, node_rank), os.environ)
    base = base_model(launch.recipe) if on_the_spot(launch.recipe.setup.base) else None
    training, serving = split_gpus(launch, gpus)
    with _server(launch, base, serving):
        return _run(train_command(launch, node_rank), os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(training)})


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """A command in the foreground. What ends us ends it, too, with the time it needs to leave its GPUs.

    SIGKILL alone leaves it no time. A training that has begun is asked to save and end after its step first
    (:mod:`gpg_repro.stopping`): its launcher would end it at once, or in the middle of a step after half a minute.
    """
    with tempfile.TemporaryDirectory(prefix="gpg-launch-") as folder:
        stop = Path(environment.get(STOP_FILE) or Path(folder, "stop"))
        process = subprocess.Popen([*guard.command(None), *command], env={**environment, STOP_FILE: str(stop)})
        asked = []

        def end(number: int) -> None:
            if not asked and stop.with_name(f"{stop.name}.ready").exists():
                asked.append(stop.touch())
            elif number != signal.SIGUSR1:
                process.send_signal(number)

        with _when_ended(end, signal.SIGUSR1):
            try:
                status = process.wait()
            except KeyboardInterrupt:  # the terminal told it as well
                process.wait()
                raise
    return status if status >= 0 else 128 - status  # as a shell reports a signal


@contextlib.contextmanager
def _when_ended(act: Callable[[int], object], *more: signal.Signals) -> Iterator[None]:
    """What happens inside when somebody ends this process, instead of its end."""
    numbers = (signal.SIGTERM, signal.SIGHUP, *more)
    before = {number: signal.signal(number, lambda given, _: act(given)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _server(launch: Launch, base: str | None, gpus: Sequence[str]) -> Iterator[None]:
    """A vLLM server that answers; ended with the block."""
    t = launch.recipe.setup.training
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    command = [*guard.command(None), *server_command(launch, base)]
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        with _when_ended(lambda number: sys.exit(128 + number)):
            _wait_for(server, f"http://{t.vllm_server_host}:{t.vllm_server_port}/health")
            yield
    finally:
        server.terminate()  # its guard ends the engine processes after it
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(server: subprocess.Popen, url: str) -> None:
    import httpx

    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"the vLLM server ended with status {server.returncode} before it answered; see above.")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5, trust_env=False).is_success:  # never by a proxy
                return
        time.sleep(1)
    raise UserError(f"the vLLM server did not answer at {url} within {SERVER_START_S} s; see above.")


# --- Command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m gpg_repro launch``."""
    parser.add_argument("recipe", help="name from `recipes`, or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. scale=paper seed=1")
    parser.add_argument("--strategy", required=True, choices=STRATEGIES, help="file of configs/accelerate")
    parser.add_argument(
        "--processes", type=_positive, metavar="N", help="on all nodes together (default: the recipe's)"
    )
    parser.add_argument("--nodes", type=_positive, default=1, metavar="N", help="machines (default 1)")
    parser.add_argument("--node-rank", type=int, default=0, metavar="R", help="which of them this is, from 0")
    parser.add_argument("--main-address", metavar="HOST", help="the first node; needed with several")
    parser.add_argument("--main-port", type=_positive, default=MAIN_PORT, metavar="P", help=f"default {MAIN_PORT}")
    parser.add_argument("--vllm", choices=VLLM_MODES, help="where completions come from (default: as the recipe says)")
    parser.add_argument(
        "--vllm-gpus", type=_positive, default=1, metavar="N", help="GPUs of the vLLM server (default 1)"
    )
    parser.add_argument(
        "--keep-batch", action="store_true", help="on another number of processes: accumulate to the recipe's batch"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands and what this machine lacks; no more"
    )
    for option in _TRAIN_OPTIONS:
        parser.add_argument(option, help="as for train")


_TRAIN_OPTIONS = ("--root", "--data-root", "--image-root", "--log-to")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """``python -m gpg_repro launch``.

    Raises:
        UserError: see :func:`plan_launch` and :func:`run_launch`.
    """
    given = {option: getattr(args, option.strip("-").replace("-", "_")) for option in _TRAIN_OPTIONS}
    launch = plan_launch(
        args.recipe,
        args.overrides,
        strategy=args.strategy,
        processes=args.processes,
        nodes=args.nodes,
        main_address=args.main_address,
        main_port=args.main_port,
        vllm=args.vllm,
        vllm_gpus=args.vllm_gpus,
        keep_batch=args.keep_batch,
        options=[word for option, value in given.items() if value is not None for word in (option, value)],
    )
    if not 0 <= args.node_rank < launch.nodes:
        raise UserError(
            f"--node-rank {args.node_rank}: {launch.nodes} nodes are numbered from 0 to {launch.nodes - 1}."
        )
    if not args.dry_run:
        return run_launch(launch, args.node_rank)
    gpus = visible_gpus()
    print(describe(launch, gpus))
    for problem in refusals(launch, gpus, args.node_rank):
        print(f"# here: {problem}", file=sys.stderr)
    return 0
