"""What the training benches share: trainers that take turns in one process, their phase times, ratios with intervals.

Timings of two trainers are comparable only if the machine treated them alike. So both live in one process, each in a
thread of its own, and step in rotation: while one works the other waits. Step i of one and step i of the other make a
pair; a ratio is the median over pairs. Beside wall time stands the CPU time of the process, which other work on the
machine disturbs less.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

import gc
import json
import logging
import random
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from datasets import Dataset
from scipy.stats import binom
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from eval_harness.graders.pool import available_cores
from gpg_repro.tiny.tokenizer import CHARACTERS, build_tokenizer
from gpg_repro.trainer import GPGConfig, GPGTrainer

_RESULT = "result: "


# Workloads ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """A randomly initialised Qwen2 and the shape of its training step; completions are scripted, not generated."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 8
    num_kv_heads: int = 8
    vocab_size: int | None = None  # None: the tiny tokenizer's
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    num_groups: int = 8
    num_generations: int = 8
    micro_batch_size: int = 16
    prompt_tokens: int = 16
    longest: int = 128  # tokens of a completion
    shortest: int = 16  # of the ragged ones

    @property
    def num_rows(self) -> int:
        """Completions per step."""
        return self.num_groups * self.num_generations


PROTOTYPE = Workload()
"""The reference on a CPU: 5 M parameters, 64 completions of 128 tokens, four micro-batches."""
QWEN_1_5B = Workload(
    hidden_size=1536,
    intermediate_size=8960,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    vocab_size=151_936,
    dtype="bfloat16",
    gradient_checkpointing=True,
    micro_batch_size=4,
    longest=2048,
    shortest=512,
)
"""For a GPU: the shape of Qwen2.5-1.5B, 64 completions of up to 2,048 tokens."""


@dataclass(frozen=True)
class Case:
    """One kind of step: how many of its groups carry a signal, and completion lengths (uniform between the two)."""

    name: str
    num_valid: int
    shortest: int
    longest: int


def cases(workload: Workload, alphas: Sequence[float]) -> list[Case]:
    """Steps whose completions all have full length, one case for each alpha that whole groups can make."""
    return [
        Case(f"alpha {alpha:g}", round(workload.num_groups / alpha), workload.longest, workload.longest)
        for alpha in alphas
    ]


def prompt_rows(workload: Workload, case_list: Sequence[Case], rounds: int) -> Dataset:
    """Rows for `rounds` rounds of one step per case; `signal` tells the groups whose rewards differ.

    Prompts are numbers, the last digit first, then filled up: two of them have hardly a beginning in common that could
    be shared, and no word of the vision tokenizer (1000) is in them.
    """
    rows = []
    for _ in range(rounds):
        for case in case_list:
            order = random.Random(len(rows)).sample(range(workload.num_groups), workload.num_groups)
            for place in order:
                rows.append(
                    {
                        "prompt": str(len(rows))[::-1].ljust(workload.prompt_tokens, "z"),
                        "signal": place < case.num_valid,
                        "shortest": case.shortest,
                        "longest": case.longest,
                    }
                )
    return Dataset.from_list(rows)


def half_right(prompts: list[Any], signal: list[bool], **kwargs: Any) -> list[float]:
    """Reward 1 for every other completion of a group with a signal, else 0; depends on nothing that was written."""
    return [float(place % 2) if valid else 0.0 for place, valid in enumerate(signal)]


def scripted(rows: Dataset) -> Callable[..., dict[str, Any]]:
    """A rollout function: the completion is a function of the prompt and the place in the group."""
    by_prompt = {row["prompt"]: row for row in rows}

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        letters = tokenizer.convert_tokens_to_ids(list(CHARACTERS))
        completion_ids = []
        for number, prompt in enumerate(prompts):
            generator = random.Random(f"{prompt} {number % trainer.num_generations}")
            length = generator.randint(by_prompt[prompt]["shortest"], by_prompt[prompt]["longest"])
            completion_ids.append([*generator.choices(letters, k=length - 1), tokenizer.eos_token_id])
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": completion_ids, "logprobs": None}

    return rollout


@contextmanager
def fixed_weights():
    """Weights made in here are the same every time, and made on the GPU if there is one: a CPU takes minutes for 1.5 B.

    A device that the caller has chosen stays.
    """
    device = torch.get_default_device()
    if device.type == "cpu" and torch.cuda.is_available():
        device = torch.device("cuda")
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        yield


def random_model(workload: Workload) -> Qwen2ForCausalLM:
    """The workload's model, the same weights every time."""
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=workload.vocab_size or len(tokenizer),
        hidden_size=workload.hidden_size,
        intermediate_size=workload.intermediate_size,
        num_hidden_layers=workload.num_layers,
        num_attention_heads=workload.num_heads,
        num_key_value_heads=workload.num_kv_heads,
        max_position_embeddings=workload.prompt_tokens + workload.longest,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with fixed_weights():
        return Qwen2ForCausalLM(config).to(getattr(torch, workload.dtype))


# Trainers -------------------------------------------------------------------------------------------------------------


class Clocked:
    """Adds the seconds of TRL's phases to `phase_seconds`; put it before a trainer class."""

    phase_seconds: dict[str, list[float]]  # phase -> [wall, CPU]; reset by `Turns` at the start of a step

    def _generate(self, *args, **kwargs):
        with self._clock("generate"):
            return super()._generate(*args, **kwargs)

    def _calculate_rewards(self, *args, **kwargs):
        with self._clock("grade"):
            return super()._calculate_rewards(*args, **kwargs)

    @contextmanager
    def _clock(self, phase: str):
        start = now()
        yield
        sums = self.phase_seconds.setdefault(phase, [0.0, 0.0])
        for kind, (before, after) in enumerate(zip(start, now(), strict=True)):
            sums[kind] += after - before


class OursClocked(Clocked, GPGTrainer):
    def _generate_and_score_completions(self, inputs):
        with self._clock("rollout"):  # TRL's sampling and scoring alone: packing and our logging count as update
            return super()._generate_and_score_completions(inputs)


class TheirsClocked(Clocked, GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        with self._clock("rollout"):
            return super()._generate_and_score_completions(inputs)


def now() -> tuple[float, float]:
    """Wall and process CPU seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


SAME_MATHS = {
    "gpg": {"normalization": "batch", "f_norm": "group", "age": False, "beta_th": 0.0},
    "grpo": {"loss_type": "dapo", "scale_rewards": "group", "beta": 0.0},
}
"""Settings with which GPG and TRL's GRPO have one gradient on-policy."""


def make_trainer(
    kind: str,
    model: Any,
    rows: Dataset,
    folder: str,
    rollout: Callable | None,
    trainer_class: type | None = None,
    processing_class: Any = None,
    **settings: Any,
) -> Any:
    """A clocked GPGTrainer (`gpg`) or stock GRPOTrainer (`grpo`), for one epoch over `rows` in their order.

    The learning rate is 0: the work is the same, and both trainers keep the same weights, hence sample the same
    completions from the same seed.
    """
    config_class, usual_class = (GPGConfig, OursClocked) if kind == "gpg" else (GRPOConfig, TheirsClocked)
    on_gpu = torch.cuda.is_available()
    reward_funcs = settings.pop("reward_funcs", half_right)
    settings = SAME_MATHS[kind] | {
        "learning_rate": 0.0,
        "shuffle_dataset": False,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": False,
    } | settings  # fmt: skip
    if isinstance(model, Qwen2ForCausalLM):
        model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    trainer = (trainer_class or usual_class)(
        model=model,
        reward_funcs=reward_funcs,
        args=config_class(output_dir=folder, **settings),
        train_dataset=rows,
        processing_class=processing_class or build_tokenizer(),
        rollout_func=rollout,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def step_settings(workload: Workload, micro_batch_size: int | None = None) -> dict[str, Any]:
    """The trainers' settings for the shape of the workload's step."""
    micro = micro_batch_size or workload.micro_batch_size
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": workload.num_rows // micro,
        "num_generations": workload.num_generations,
        "max_completion_length": workload.longest,
        "gradient_checkpointing": workload.gradient_checkpointing,
    }


def scripted_trainer(kind: str, workload: Workload, rows: Dataset, folder: str, **settings: Any) -> Any:
    """A trainer of the workload's model on scripted completions."""
    settings = step_settings(workload, settings.pop("micro_batch_size", None)) | settings
    model = settings.pop("model", None) or random_model(workload)
    return make_trainer(kind, model, rows, folder, scripted(rows), **settings)


def tiny_rows(num_prompts: int, case_list: Sequence[Case], rounds: int) -> Dataset:
    """As `prompt_rows`, with real prompts of the tiny task; `num_valid` of a step's `num_prompts` have a signal."""
    from gpg_repro.datasets import get_training_set

    order = [case for _ in range(rounds) for case in case_list]
    rows = get_training_set("tiny_s1").rows(None, num_prompts * len(order), 0, None)
    return Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                "solution": row["solution"],
                # evenly spread: prompts of one difficulty may be neighbours
                "signal": number % num_prompts * order[number // num_prompts].num_valid % num_prompts
                < order[number // num_prompts].num_valid,
            }
            for number, row in enumerate(rows)
        ]
    )


def tiny_trainer(kind: str, rows: Dataset, folder: str, **settings: Any) -> Any:
    """A trainer of the tiny base; Hugging Face's `generate` samples eight completions of up to 48 tokens per prompt."""
    from gpg_repro.paths import cache
    from gpg_repro.tiny.warmup import build_base

    settings = {"num_generations": 8, "max_completion_length": 48, "top_k": 0} | settings
    return make_trainer(kind, str(build_base(cache(), progress=False)), rows, folder, None, **settings)


# Taking turns ---------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One optimiser step: [wall, CPU] seconds of all of it and of TRL's phases, and what it did."""

    seconds: dict[str, tuple[float, float]]
    logs: dict[str, float]

    def spent(self, phase: str) -> tuple[float, float]:
        """[wall, CPU] seconds of `step`, `generate`, `grade` or `rollout`, or of what is left without them: `update`
        is the step without sampling and scoring, `learn` without generation and grading (a reference model is in it).
        """
        without = {"update": ("rollout",), "learn": ("generate", "grade")}.get(phase)
        if without is None:
            return self.seconds[phase]
        wall, cpu = self.seconds["step"]
        for name in without:
            wall, cpu = wall - self.seconds[name][0], cpu - self.seconds[name][1]
        return wall, cpu


class _TurnCallback(TrainerCallback):
    def __init__(self, trainer: Any, place: int, turns: _Rotation, hold: int, over: Callable[[], bool] | None):
        self.trainer, self.place, self.turns, self.steps = trainer, place, turns, []
        self.hold, self.over = hold, over

    def on_step_begin(self, args, state, control, **kwargs):
        if len(self.steps) % self.hold == 0:
            self.turns.next(self.place)
        set_seed(state.global_step)
        self.trainer.phase_seconds = {}
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        whole = tuple(after - before for before, after in zip(self.start, now(), strict=True))
        seconds = {"step": whole} | {k: tuple(v) for k, v in self.trainer.phase_seconds.items()}
        self.steps.append(Step(seconds, {}))
        if self.over is not None and self.over():
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in logs:  # not the last log, which sums the run up
            generated = logs["completions/mean_length"] * args.generation_batch_size  # TRL has no such metric
            self.steps[-1].logs = {"tokens/generated": generated} | logs


class _Rotation:
    """Whose turn it is among threads; a thread that ends, or fails, leaves the rotation.

    The order is turned round after every `num_cases` rounds, so that going first favours nobody: in one order GPG and
    TRL at alpha = 1 came out at 1.006, in the other at 0.997. The round before the first step is the trainers' set-up.
    """

    def __init__(self, num: int, num_cases: int):
        self.order, self.num_cases = list(range(num)), num_cases
        self.failure: BaseException | None = None
        self._at = self._round = 0
        self._condition = threading.Condition()

    def wait(self, place: int) -> None:
        """Until it is this thread's turn.

        Raises:
            RuntimeError: another thread failed.
        """
        with self._condition:
            self._condition.wait_for(lambda: self.failure is not None or self.order[self._at] == place)
            if self.failure is not None:
                raise RuntimeError("another trainer failed") from self.failure

    def next(self, place: int) -> None:
        """Pass the turn on and wait for the next one."""
        with self._condition:
            self._at += 1
            self._begin_round()
            self._condition.notify_all()
        self.wait(place)

    def _begin_round(self) -> None:
        if self._at < len(self.order):
            return
        if self._round % self.num_cases == 0:
            self.order.reverse()
        self._at, self._round = 0, self._round + 1

    def leave(self, failure: BaseException | None = None) -> None:
        """End of the thread whose turn it is."""
        with self._condition:
            self.failure = self.failure or failure
            self.order.pop(self._at)  # the turn is now the following one's
            self._begin_round()
            self._condition.notify_all()


def take_turns(
    trainers: Mapping[str, Any],
    num_cases: int = 1,
    hold: Mapping[str, int] | None = None,
    over: Callable[[], bool] | None = None,
) -> dict[str, list[Step]]:
    """Train all of them to the end, one optimiser step each in rotation, and return their steps.

    Args:
        trainers: by name.
        num_cases: kinds of steps that follow each other in one round of the data.
        hold: steps that a trainer makes in one turn, by name; 1 unless given.
        over: ends the training of whoever asks after a step; trainers may then differ by a turn.

    Raises:
        RuntimeError: one of them failed.
    """
    rotation = _Rotation(len(trainers), num_cases)
    callbacks = {}

    def work(place: int, trainer: Any) -> None:
        try:
            rotation.wait(place)
            torch.set_num_threads(1)  # holds for the calling thread alone
            trainer.train()
        except BaseException as error:  # a thread that dies in silence would leave the others waiting
            rotation.leave(error)
        else:
            rotation.leave()

    threads = []
    for place, (name, trainer) in enumerate(trainers.items()):
        callbacks[name] = _TurnCallback(trainer, place, rotation, (hold or {}).get(name, 1), over)
        trainer.add_callback(callbacks[name])
        threads.append(threading.Thread(target=work, args=(place, trainer), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if rotation.failure is not None:
        raise RuntimeError("a trainer failed") from rotation.failure
    return {name: callback.steps for name, callback in callbacks.items()}


# Numbers --------------------------------------------------------------------------------------------------------------


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its distribution-free 95 % interval: the innermost order statistics that cover it so often.

    Below six values no pair of order statistics does, and the interval is NaN.
    """
    ordered, n = sorted(values), len(values)
    k = 0  # x_(k) .. x_(n+1-k) covers the median with probability 1 - 2 P(Binomial(n, 1/2) < k)
    while k < n // 2 and 2 * binom.cdf(k, n, 0.5) <= 0.05:
        k += 1
    low, high = (ordered[k - 1], ordered[n - k]) if k else (float("nan"), float("nan"))
    return statistics.median(ordered), low, high


def ratio(ours: Sequence[Step], theirs: Sequence[Step], phase: str) -> dict[str, Any]:
    """Median over pairs of ours over theirs in a phase, with interval, in CPU time (not on a GPU) and in wall time."""
    numbers: dict[str, Any] = {}
    kinds = {"wall": 0} if torch.cuda.is_available() else {"cpu": 1, "wall": 0}
    for kind, index in kinds.items():
        pairs = [a.spent(phase)[index] / b.spent(phase)[index] for a, b in zip(ours, theirs, strict=True)]
        middle, *interval = (round(value, 4) for value in median_interval(pairs))
        numbers |= {f"{kind}_ratio": middle, f"{kind}_interval": interval if len(pairs) >= 6 else None}
        numbers[f"{kind}_range"] = [round(min(pairs), 4), round(max(pairs), 4)]
        numbers[f"{kind}_s"] = [round(statistics.median(s.spent(phase)[index] for s in x), 3) for x in (ours, theirs)]
    return numbers | {"pairs": len(ours)}


def by_case(steps: Sequence[Step], num_cases: int) -> list[list[Step]]:
    """The steps of every case, without the first round, which warms up."""
    return [list(steps[place::num_cases])[1:] for place in range(num_cases)]


def shown(numbers: Mapping[str, Any]) -> str:
    """A ratio with its interval for people: CPU time, on a GPU wall time."""
    kind = "cpu" if "cpu_ratio" in numbers else "wall"
    interval = numbers[f"{kind}_interval"]
    return f"{kind} {numbers[f'{kind}_ratio']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def gradient_gap(ours: Sequence[Step], theirs: Sequence[Step]) -> float:
    """Largest relative difference between the gradient norms of a pair: small when both did the same work."""
    return max(abs(a.logs["grad_norm"] / b.logs["grad_norm"] - 1) for a, b in zip(ours, theirs, strict=True))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": 1,
        "cores": available_cores(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


def quiet() -> None:
    """Keep the libraries' notices out of a bench's output."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


# Memory ---------------------------------------------------------------------------------------------------------------


class Watched(TrainerCallback):
    """Calls `watch` when sampling and scoring are done and the update begins, or at the beginning of the step.

    Whatever it finds goes into `result`.
    """

    def __init__(self, trainer: Any, whole_step: bool = False):
        self.trainer, self.whole_step, self.result = trainer, whole_step, {}
        if not whole_step:
            sample = trainer._generate_and_score_completions

            def sample_then_watch(inputs):
                batch = sample(inputs)
                self.watch()
                return batch

            trainer._generate_and_score_completions = sample_then_watch

    def on_step_begin(self, args, state, control, **kwargs):
        if self.whole_step:
            self.watch()

    def watch(self) -> None:
        raise NotImplementedError


class PeakMemory(Watched):
    """Peak MiB of one optimiser step's update, or of the whole step.

    The first step makes the optimiser's state. The second gives `resident`, the growth of the process's resident size
    (CPU, Linux), or on a GPU `allocated`, the caching allocator's maximum, and `persistent`, what it held before. On a
    CPU a third gives `allocated`: live bytes of torch's allocator as its profiler counts them, on top of the
    `persistent` ones (weights, gradients, optimiser state). That counts memory asked for and never touched, which
    `resident` does not: TRL's fused head asks for a scratch tile 32,768 tokens of vocabulary wide, whatever the
    vocabulary.
    """

    def watch(self) -> None:
        steps_done, on_gpu = self.trainer.state.global_step, torch.cuda.is_available()
        if on_gpu and steps_done == 1:
            torch.cuda.reset_peak_memory_stats()
            self.result["persistent"] = torch.cuda.memory_allocated() / 2**20
        elif steps_done == 1:
            gc.collect()
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # forgets the largest resident size so far
            self._resident = process_memory("VmRSS")
        elif steps_done == 2 and not on_gpu:
            self._persistent = persistent_bytes(self.trainer)
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
            )
            self._profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        steps_done, on_gpu = state.global_step, torch.cuda.is_available()
        if on_gpu and steps_done == 2:
            self.result["allocated"] = torch.cuda.max_memory_allocated() / 2**20
        elif steps_done == 2:
            self.result["resident"] = (process_memory("VmHWM") - self._resident) / 2**20
        elif steps_done == 3 and not on_gpu:
            self._profiler.stop()
            self.result["allocated"] = (self._persistent + peak_of_events(self._profiler)) / 2**20
            self.result["persistent"] = self._persistent / 2**20


def persistent_bytes(trainer: Any) -> int:
    """Bytes of weights, gradients and optimiser state, a reference model's weights included."""
    tensors = [p for model in (trainer.model, getattr(trainer, "ref_model", None)) if model for p in model.parameters()]
    tensors += [p.grad for p in tensors if p.grad is not None]
    for state in trainer.optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    return sum(t.numel() * t.element_size() for t in tensors)


def peak_of_events(profiler: torch.profiler.profile) -> int:
    """Largest sum of live bytes on the CPU, relative to the start of the profile."""
    live = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def process_memory(field: str) -> int:
    """Bytes: `VmRSS`, the process's resident size, or `VmHWM`, its largest so far. Linux."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


class Launches(Watched):
    """What one update, the third, starts on the device: `launches` of kernels, `device_s` in which any of them ran.

    Without a GPU it counts operators and their time instead.
    """

    def watch(self) -> None:
        if self.trainer.state.global_step == 2:
            now()
            kinds = torch.profiler.supported_activities()
            self._profiler = torch.profiler.profile(activities=kinds, acc_events=True)
            self._profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            now()
            self._profiler.stop()
            self.result |= work_of_events(self._profiler.profiler.kineto_results.events(), torch.cuda.is_available())


def work_of_events(events: Sequence[Any], on_gpu: bool) -> dict[str, float]:
    """`launches` and `device_s` of a profile's events: those of the device, on a CPU those of torch's operators.

    Ranges that only name others are left out. Copies and fills of memory count in the time alone, where overlapping
    work counts once.
    """
    device = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    kept = [e for e in events if e.device_type() == device and not e.is_user_annotation()]
    if not on_gpu:
        kept = [e for e in kept if e.name().startswith("aten::")]
    busy, end = 0, 0
    for event in sorted(kept, key=lambda e: e.start_ns()):
        stop = event.start_ns() + event.duration_ns()
        busy += max(0, stop - max(end, event.start_ns()))
        end = max(end, stop)
    launches = [e for e in kept if not e.name().startswith(("Memcpy", "Memset"))]
    return {"launches": len(launches), "device_s": busy / 1e9}


def measure_memory(
    kind: str, workload: Workload, num_valid: int, folder: str, whole_step: bool = False, **settings: Any
) -> dict[str, float]:
    """Peak memory of one trainer's step in this process; see `PeakMemory`. Call it in a fresh one (`in_fresh_process`),
    or on a GPU.
    """
    return watch_steps(partial(PeakMemory, whole_step=whole_step), kind, workload, num_valid, folder, **settings)


def watch_steps(
    watched: Callable[[Any], Watched],
    kind: str,
    workload: Workload,
    num_valid: int,
    folder: str,
    rows_of: Callable[..., Dataset] = prompt_rows,
    trainer_of: Callable[..., Any] = scripted_trainer,
    **settings: Any,
) -> dict[str, float]:
    """What a callback finds in three steps of one trainer.

    The first of them has short completions, so that little is resident already when the second begins.
    """
    warm = Case("warm-up", workload.num_groups, 4, 4)
    measured = Case("measured", num_valid, workload.longest, workload.longest)
    rows = rows_of(workload, [warm, measured, measured], 1)
    torch.set_num_threads(1)
    trainer = trainer_of(kind, workload, rows, folder, **settings)
    callback = watched(trainer)
    trainer.phase_seconds = {}
    trainer.add_callback(callback)
    trainer.train()
    return callback.result


def in_fresh_process(script: str, *arguments: str) -> Any:
    """What `print_result` gets in `python script --one arguments`."""
    # Freed tensors go back to the system at once, or the resident size would be that of the past.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, "--one", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith(_RESULT))
    return json.loads(line.removeprefix(_RESULT))


def print_result(value: Any) -> None:
    """Hand a value to the process that called `in_fresh_process`."""
    print(_RESULT + json.dumps(value), flush=True)
