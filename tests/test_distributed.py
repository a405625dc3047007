"""GPGTrainer on gloo: 1, 2 and 3 processes, every layout, groups with and without signal.

Gradients are compared in float64 with the mean over valid groups (or completions) alone, worked out row by row without
padding: the right-hand side of Appendix A's identity. Run as a script on every process, this file is the worker.
"""

import collections
import gc
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from launched import RECIPE
from launched import run as launched_run
from safetensors.torch import load_file
from scripted import Float64Trainer, completion_of, make_model, make_tokenizer, prompt_of, train
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.models.qwen2 import modeling_qwen2

import gpg_repro.trainer
from eval_harness import records
from eval_harness.models import check_model
from gpg_repro.objective import age_alpha, completion_weights, group_advantages, valid_groups
from gpg_repro.recipe import load_recipe
from gpg_repro.train import base_model

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = (1, 2, 3)
LAYOUTS = {  # accumulation, micro-batch
    "corners": ((1, 8), (4, 2)),
    "whole": tuple(itertools.product((1, 4), (1, 2, 8))),
}
PATTERNS = ("mixed", "one rank has none", "none", "all")


# The batch ----------------------------------------------------------------------------------------------------------


def group_size(num_rows: int) -> int | None:
    return next((size for size in (4, 2, 3) if num_rows % size == 0), None)


def make_rewards(pattern: str, num_processes: int, num_rows: int) -> tuple[tuple[int, ...], ...] | None:
    """Rewards of the groups of one batch; None where the layout cannot hold the pattern."""
    size = group_size(num_rows)
    if size is None:
        return None  # a single completion is no group
    rng = random.Random(f"{pattern}/{num_processes}/{num_rows}")
    num_groups, share = num_rows // size, num_rows // num_processes
    if pattern == "mixed":
        valid = [rng.random() < 0.5 for _ in range(num_groups)]
    elif pattern == "one rank has none":
        valid = [group * size >= share for group in range(num_groups)]  # no row of a valid group on rank 0
        if num_processes == 1 or not any(valid):
            return None
    else:
        valid = [pattern == "all"] * num_groups

    def rewards(is_valid: bool) -> tuple[int, ...]:
        row = [rng.randrange(2) for _ in range(size)] if is_valid else [rng.randrange(2)] * size
        if is_valid and len(set(row)) == 1:
            row[rng.randrange(size)] = 1 - row[0]
        return tuple(row)

    return tuple(rewards(flag) for flag in valid)


# float64 throughout -------------------------------------------------------------------------------------------------


def use_float64() -> None:
    """Qwen2's norm and rotary embedding compute in float32 whatever the weights are."""

    def norm(self, hidden_states):
        return self.weight * hidden_states * torch.rsqrt(hidden_states.square().mean(-1, True) + self.variance_epsilon)

    def rotary(self, x, position_ids):
        angles = position_ids[:, :, None].double() * self.inv_freq.double()
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    modeling_qwen2.Qwen2RMSNorm.forward = norm
    modeling_qwen2.Qwen2RotaryEmbedding.forward = rotary


class CountingTrainer(Float64Trainer):
    """Counts its forward passes."""

    num_passes = 0

    def _log_probs(self, *args):
        self.num_passes += 1
        return super()._log_probs(*args)


def valid_only_mean(rewards, normalization: str, micro_batch_size: int) -> dict[str, torch.Tensor]:
    """Gradient of the mean over valid groups ("group") or their completions ("sequence"), without any alpha.

    For "batch" and "local", where B/(B-M) is not exact, alpha times the gradient of the plain token means.
    """
    model, tokenizer = make_model().double(), make_tokenizer()
    size, values = len(rewards[0]), torch.tensor(rewards).double().flatten()
    lengths, sums = [], []
    for group, places in enumerate(rewards):
        prompt = tokenizer(prompt_of(group))["input_ids"]
        for place, reward in enumerate(places):
            ids = torch.tensor(completion_of(group, place, reward))
            logits = model(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
            lengths.append(len(ids))
            sums.append(logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).sum())
    advantages, losses = group_advantages(values, size), -torch.stack(sums)
    lengths = torch.tensor(lengths)
    valid = valid_groups(values, size)
    if normalization in ("group", "sequence"):
        terms = []
        for group in valid.nonzero().flatten().tolist():
            rows = slice(group * size, (group + 1) * size)
            if normalization == "group":
                terms.append((losses[rows] * advantages[rows]).sum() / lengths[rows].sum())
            else:
                terms += list(losses[rows] * advantages[rows] / lengths[rows])
        loss = torch.stack(terms).mean() if terms else 0 * losses.sum()
    else:
        alpha = age_alpha(len(valid), int((~valid).sum()))
        weights = completion_weights(advantages, lengths, size, normalization, alpha, micro_batch_size=micro_batch_size)
        loss = (weights * losses).sum()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_difference(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = torch.cat([(actual[name] - expected[name]).flatten() for name in expected]).norm()
    norm = torch.cat([value.flatten() for value in expected.values()]).norm()
    return (difference / norm if norm else difference).item()


# The worker ---------------------------------------------------------------------------------------------------------


def gradients_worker(output_dir: Path, part: str) -> list[dict]:
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    normalizations = itertools.cycle(("sequence", "batch", "local"))
    measured = []
    for (accumulation, micro_batch), pattern in itertools.product(LAYOUTS[part], PATTERNS):
        rewards = make_rewards(pattern, world, world * accumulation * micro_batch)
        if rewards is None:
            continue
        for normalization, skip, share in (
            ("group", True, "off"),
            ("group", False, "off"),
            (next(normalizations), True, "off"),
            ("group", True, "on"),
        ):
            trainer, gradients = train(
                output_dir,
                CountingTrainer,
                rewards=rewards,
                layout=(micro_batch, accumulation),
                model=make_model().double(),
                num_generations=len(rewards[0]),
                normalization=normalization,
                skip_invalid_groups=skip,
                share_prompt=share,
                **({"ddp_backend": "gloo"} if world > 1 else {}),
            )
            passes = trainer.accelerator.gather(torch.tensor([trainer.num_passes])).tolist()
            if rank == 0:
                expected = valid_only_mean(rewards, normalization, micro_batch)
                measured.append(
                    {
                        "case": f"accumulation {accumulation}, micro-batch {micro_batch}, {pattern}, {normalization}, "
                        f"{'skipping' if skip else 'dense'}, prompts shared: {share}",
                        "error": relative_difference(gradients[0], expected),
                        "passes": passes,
                        "valid_rows": sum(len(set(row)) > 1 for row in rewards) * len(rewards[0]),
                        "rows": len(rewards) * len(rewards[0]),
                        "layout": [accumulation, micro_batch, world],
                        "skip": skip,
                        "share": share,
                        "shared": [log["share_prompt"] for log in trainer.state.log_history if "share_prompt" in log],
                    }
                )
    return measured


def sharded_worker(output_dir: Path) -> list[dict]:
    """The same with FSDP2 on two processes. accelerate falls back to DDP on a CPU, so the model is sharded by hand."""

    def prepare_model(self, model, *args, **kwargs):
        for layer in model.model.layers:
            fully_shard(layer)
        return fully_shard(model)

    Accelerator.prepare_model = prepare_model
    measured = []
    for (accumulation, micro_batch), pattern, share in itertools.product(LAYOUTS["corners"], PATTERNS, ("on", "off")):
        rewards = make_rewards(pattern, 2, 2 * accumulation * micro_batch)
        _, gradients = train(
            output_dir,
            CountingTrainer,
            rewards=rewards,
            layout=(micro_batch, accumulation),
            model=make_model().double(),
            num_generations=len(rewards[0]),
            share_prompt=share,
            ddp_backend="gloo",
        )
        whole = {name: gradient.full_tensor() for name, gradient in gradients[0].items()}
        expected = valid_only_mean(rewards, "group", micro_batch)
        measured.append({"pattern": pattern, "share": share, "error": relative_difference(whole, expected)})
    return measured


class Scores(TrainerCallback):
    """Collects what is logged at every step."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "alpha" in logs:
            self.logs.append(dict(logs))


def resampling_worker(output_dir: Path) -> dict:
    """Two draws of two groups on two processes; valid are only those of rank 0 (paper and r2 tell them apart)."""
    rewards = ((0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 0))  # draws: (valid, all right), (valid, all wrong), …
    result = {}
    for fidelity in ("paper", "r2"):
        scores = Scores()
        _, gradients = train(
            output_dir,
            CountingTrainer,
            rewards=rewards,
            layout=(2, 1),
            model=make_model().double(),
            num_generations=2,
            fidelity=fidelity,
            normalization="group",
            beta_th=1.0,
            callbacks=[scores],
            ddp_backend="gloo",
        )
        kept = (0, 2) if fidelity == "paper" else (0,)
        blank = tuple(row if group in kept else (0, 0) for group, row in enumerate(rewards))
        expected = valid_only_mean(blank, "group", 2)
        result[fidelity] = scores.logs[0] | {"error": relative_difference(gradients[0], expected)}
        scale = {name: value / 2 for name, value in expected.items()}  # r2 divides by 1 where a half is right
        result[fidelity]["error_if_half"] = relative_difference(gradients[0], scale)
    return result


def collectives_worker(output_dir: Path) -> dict:
    """How often this package's own code calls a collective in one step, for balanced and for unbalanced batches."""
    counts = collections.Counter()

    def counted(name, function):
        def wrapper(*args, **kwargs):
            if sys._getframe(1).f_globals is vars(gpg_repro.trainer):
                counts[name] += 1
            return function(*args, **kwargs)

        return wrapper

    Accelerator.gather = counted("gather", Accelerator.gather)
    Accelerator.reduce = counted("reduce", Accelerator.reduce)
    gpg_repro.trainer.gather_object = counted("exchange", gpg_repro.trainer.gather_object)
    result = {}
    for name, rewards in {
        "balanced": ((0, 1), (1, 1), (1, 0), (0, 0)),
        "unbalanced": ((0, 1), (1, 0), (1, 1), (0, 0)),
    }.items():
        counts.clear()
        train(output_dir, rewards=rewards, layout=(2, 2), num_generations=2, ddp_backend="gloo")
        result[name] = dict(counts)
    return result


def worker(output_dir: Path, part: str) -> None:
    extras = part == "corners" and os.environ["WORLD_SIZE"] == "2"
    measured = {}
    if extras:
        measured["collectives"] = collectives_worker(output_dir)
    use_float64()
    if extras:
        measured["resampling"] = resampling_worker(output_dir)
    measured["gradients"] = gradients_worker(output_dir, part)
    if extras:
        measured["sharded"] = sharded_worker(output_dir)
    if os.environ["RANK"] == "0":
        (output_dir / "measured.json").write_text(json.dumps(measured))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a number of processes measured of a part of the matrix; every launch is made when it is first asked for."""
    done = {}

    def measure(num_processes: int, part: str = "corners", launch=processes.launch) -> dict:
        key = (num_processes, part, launch)
        if key not in done:
            output_dir = tmp_path_factory.mktemp(f"{part}{num_processes}")
            run = launch(num_processes, __file__, str(output_dir), part, folder=output_dir)
            assert run.returncode == 0, run.stderr[-4000:]
            done[key] = json.loads((output_dir / "measured.json").read_text())
        return done[key]

    return measure


# Tests --------------------------------------------------------------------------------------------------------------


CORNERS, WHOLE = pytest.mark.full("processes that train"), pytest.mark.long("every layout")
MATRIX = [
    *(pytest.param(n, "corners", processes.launch, marks=CORNERS, id=f"{n}-corners") for n in PROCESSES),
    *(pytest.param(n, "whole", processes.launch, marks=WHOLE, id=f"{n}-whole") for n in (1, 3)),
    pytest.param(2, "whole", processes.torchrun, marks=WHOLE, id="2-whole-torchrun"),
]


@pytest.mark.parametrize(("num_processes", "part", "launch"), MATRIX)
def test_gradient_is_the_mean_over_valid_groups_in_every_layout(measured, num_processes, part, launch):
    cases = measured(num_processes, part, launch)["gradients"]
    layouts = {tuple(case["layout"][:2]) for case in cases}
    assert layouts == {layout for layout in LAYOUTS[part] if group_size(num_processes * layout[0] * layout[1])}
    assert {pattern for pattern in PATTERNS for case in cases if pattern in case["case"]} == {
        pattern for pattern in PATTERNS if num_processes > 1 or pattern != "one rank has none"
    }
    wrong = [case for case in cases if not case["error"] < 1e-10]
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize(("num_processes", "part", "launch"), MATRIX)
def test_every_process_makes_the_same_passes_and_only_those_of_valid_rows(measured, num_processes, part, launch):
    for case in measured(num_processes, part, launch)["gradients"]:
        accumulation, micro_batch, world = case["layout"]
        rows = -(-(case["valid_rows"] if case["skip"] else case["rows"]) // world)  # on the fullest process
        assert case["passes"][0] <= accumulation
        assert len(set(case["passes"])) == 1, case["case"]
        if case["share"] == "off":  # fewer where rows are short
            assert 1 <= case["passes"][0] <= max(1, -(-rows // micro_batch)), case["case"]
        else:
            assert case["shared"] == [bool(case["valid_rows"])], case["case"]


@pytest.mark.full("two processes that train")
def test_sharded_parameters_get_the_same_gradient(measured):
    cases = measured(2)["sharded"]
    assert {(case["pattern"], case["share"]) for case in cases} == set(itertools.product(PATTERNS, ("on", "off")))
    assert not [case for case in cases if not case["error"] < 1e-10]


@pytest.mark.full("two processes that train")
def test_r2_undercounts_where_paper_does_not(measured):
    """Rank 0 draws a valid group twice, rank 1 never does: the released loop counts two and trains on one."""
    result = measured(2)["resampling"]
    for log in result.values():
        assert (log["num_draws"], log["alpha"], log["prompts_consumed"]) == (2, 2, 4)  # alpha of the first draw
    paper, released = result["paper"], result["r2"]
    assert (paper["batch/num_valid_groups"], paper["num_dropped_groups"], paper["alpha_applied"]) == (2, 0, 1)
    assert paper["error"] < 1e-10
    # R2 leaves the second valid group on rank 0, which has no room for it, and counts it all the same.
    assert (released["batch/num_valid_groups"], released["num_dropped_groups"]) == (1, 1)
    assert (released["batch/alpha"], released["alpha_applied"]) == (2, 1)
    assert released["error_if_half"] < 1e-10 < 0.4 < released["error"]


@pytest.mark.full("two processes that train")
def test_two_small_collectives_and_an_exchange_where_ranks_are_unequal(measured):
    collectives = measured(2)["collectives"]
    assert collectives["balanced"] == {"gather": 1, "reduce": 1}
    assert collectives["unbalanced"] == {"gather": 1, "reduce": 1, "exchange": 1}


# Recipes under accelerate launch -------------------------------------------------------------------------------------


def accelerate_launch(strategy: str, runs: Path, *arguments: str) -> int:
    """Exit status of launched.py on two processes, by the configuration of a strategy."""
    command = [sys.executable, "-m", *accelerate_words(strategy), str(runs), *arguments]
    done = subprocess.run(
        command, env=processes.environment(), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    (runs / f"log{len(arguments)}.txt").write_text(done.stderr)
    return done.returncode


def accelerate_words(strategy: str) -> list[str]:
    config = ROOT / "configs" / "accelerate" / f"{strategy}.yaml"
    words = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    return [*words, "--main_process_port", "0", str(ROOT / "tests" / "launched.py")]


def forked_launch(strategy: str, runs: Path, *arguments: str) -> int:
    """The same by forks, with the variables that accelerate's launcher makes of the configuration."""
    words = launch_command_parser().parse_args([*accelerate_words(strategy)[1:], str(runs), *arguments])
    changes = prepare_multi_gpu_env(_validate_launch_command(words)[0])
    changes = {name: value for name, value in changes.items() if os.environ.get(name) != value}
    script = str(ROOT / "tests" / "launched.py")
    done = processes.launch(2, script, str(runs), *arguments, folder=runs / "printed", changes=changes, grades=True)
    (runs / f"log{len(arguments)}.txt").write_text(done.stderr)
    return done.returncode


STRATEGIES = ("ddp", "fsdp")
FORKED, LAUNCHED = pytest.mark.full("two processes that train"), pytest.mark.long("the same under accelerate launch")


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((name, forked_launch), marks=FORKED, id=name) for name in STRATEGIES),
        *(pytest.param((name, accelerate_launch), marks=LAUNCHED, id=f"{name}-accelerate") for name in STRATEGIES),
    ],
)
def launched(request, tmp_path_factory):
    """Three runs of a recipe by one strategy; of the third, the first launch was killed in its last step."""
    strategy, launch = request.param
    runs = tmp_path_factory.mktemp(strategy)
    assert launch(strategy, runs, "4") != 0
    (killed,) = (runs / "killed").glob("train-*")
    assert records.read_run(killed).status == "running" and not (killed / "checkpoint").exists()
    assert launch(strategy, runs) == 0, (runs / "log0.txt").read_text()[-4000:]
    return strategy, runs


def run_in(folder: Path) -> Path:
    (run,) = folder.glob("train-*")
    return run


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one.keys() & other.keys())


def test_a_launched_recipe_leaves_the_records_of_its_processes(launched):
    strategy, runs = launched
    for name in ("scripted", "whole", "killed"):
        run = records.read_run(run_in(runs / name))
        assert (run.status, run.num_steps, run.environment["num_processes"]) == ("finished", 4, 2)
        assert run.environment["distributed"] == {"ddp": "MULTI_CPU", "fsdp": "FSDP"}[strategy]
        assert records.steps_frame(run_in(runs / name))["step"].tolist() == [1, 2, 3, 4]


def test_fsdp_shards_every_parameter_and_ddp_none(launched):
    strategy, runs = launched
    processes = [json.loads((runs / "whole" / f"process.{rank}.json").read_text()) for rank in (0, 1)]
    held = sum(process["numbers_here"] for process in processes)
    for process in processes:
        assert process["sharded"] == (process["parameters"] if strategy == "fsdp" else 0)
        assert held == process["numbers"] * (1 if strategy == "fsdp" else 2)
        assert process["numbers_here"] < 0.51 * process["numbers"] or strategy == "ddp"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Final weights of the scripted run in this process alone, accumulating to the batch of two."""
    return weights_of(launched_run(tmp_path_factory.mktemp("one"), "gradient_accumulation_steps=2", script=True))


def test_two_processes_end_with_the_weights_of_one(launched, one_process):
    """The same completions in the same batch: float32 sums in another order are all that may differ."""
    _, runs = launched
    one, two = one_process, weights_of(run_in(runs / "scripted"))
    base = load_file(Path(base_model(load_recipe(RECIPE, scale="smoke"))) / "model.safetensors")
    assert largest_difference(one, base) > 3e-4  # four steps of 1e-4
    assert largest_difference(one, two) < 1e-6


def test_a_killed_launch_resumes_to_the_bit(launched):
    _, runs = launched
    assert json.loads((runs / "killed" / "process.1.json").read_text())["resumed_at"] == 2
    whole, killed = run_in(runs / "whole"), run_in(runs / "killed")
    assert largest_difference(weights_of(whole), weights_of(killed)) == 0
    columns = ["reward", "alpha", "loss", "completion_length"]
    assert records.steps_frame(whole)[columns].equals(records.steps_frame(killed)[columns])


@pytest.mark.full("two processes that train")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_end_with_the_adapter_of_one(strategy, tmp_path):
    """LoRA: matrices sharded with the frozen weights, saved whole, and the frozen weights saved by nobody."""
    lora = ("adapter.r=4", "learning_rate=1e-3")
    one = launched_run(tmp_path / "one", "gradient_accumulation_steps=2", *lora, script=True)
    assert forked_launch(strategy, tmp_path, "scripted", *lora) == 0, (tmp_path / "log3.txt").read_text()[-4000:]
    two = run_in(tmp_path / "scripted")
    one, two = (load_file(run / "checkpoint" / "adapter_model.safetensors") for run in (one, two))
    assert one.keys() == two.keys() and all("lora_" in name for name in two)
    assert max(value.abs().max() for name, value in two.items() if "lora_B" in name) > 3e-3  # four steps of 1e-3
    assert largest_difference(one, two) < 1e-5
    spread = json.loads((tmp_path / "scripted" / "process.1.json").read_text())
    assert spread["sharded"] == (spread["parameters"] if strategy == "fsdp" else 0)


@pytest.mark.full("a launch of two processes")
def test_a_fork_is_what_accelerate_launch_starts(tmp_path):
    """The same sampled training under the real launcher, to the bit, so the other tests may do without it."""
    for launch in (forked_launch, accelerate_launch):
        runs = tmp_path / launch.__name__
        runs.mkdir()
        assert launch("fsdp", runs, "whole") == 0, (runs / "log1.txt").read_text()[-4000:]
    forked, real = (run_in(tmp_path / launch.__name__ / "whole") for launch in (forked_launch, accelerate_launch))
    assert largest_difference(weights_of(forked), weights_of(real)) == 0
    assert records.steps_frame(forked)["loss"].equals(records.steps_frame(real)["loss"])
    (spread,) = {(run.parent / "process.1.json").read_text() for run in (forked, real)}
    assert json.loads(spread)["sharded"] == json.loads(spread)["parameters"]


@pytest.mark.parametrize(
    "saved", ["whole/{}/checkpoint", "whole/{}/checkpoints/checkpoint-2", "scripted/{}/checkpoint"]
)
def test_what_a_launch_saves_is_whole(launched, saved):
    """Sharded or not, every save can be evaluated: by the harness's own check, and as transformers loads it."""
    run, inside = saved.split("/{}/")
    folder = run_in(launched[1] / run) / inside
    assert check_model(str(folder))["weights"]
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert largest_difference(model.state_dict(), load_file(folder / "model.safetensors")) == 0


if __name__ == "__main__":
    gc.freeze()  # as in conftest
    worker(Path(sys.argv[1]), sys.argv[2])
