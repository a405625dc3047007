"""What a training step costs under GPG against TRL's own GRPOTrainer: time of update and step, memory.

Both trainers live in one process on one torch thread, see the same prompts, rewards and completions, and step in turn
(`_paired`); their settings have one gradient (`same_gradient` is the largest relative difference of the norms). The
update is everything but sampling and scoring: packing, forward, backward, optimiser. Groups without a signal cost GPG
nothing, so the ideal ratio is 1 / alpha. Ends in one JSON line; `ratio` is the update's at alpha = 2 (lower is better).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile

import _paired as paired
import torch
from _paired import Case, Workload

ALPHAS = (1.0, 4 / 3, 2.0, 4.0)
TARGETS = {"alpha 1": 1.01, "alpha 1.33": 0.78, "alpha 2": 0.53, "alpha 4": 0.28, "ragged": 0.42, "whole step": 0.72}
MEMORY_TARGETS = {"alpha 1": 1.0, "alpha 2": 0.6}


def update_cases(workload: Workload) -> list[Case]:
    """The alphas at full length, and ragged lengths at alpha = 2."""
    full = paired.cases(workload, ALPHAS)
    names = [f"alpha {alpha:.3g}" for alpha in ALPHAS]
    full = [Case(name, c.num_valid, c.shortest, c.longest) for name, c in zip(names, full, strict=True)]
    return [*full, Case("ragged", workload.num_groups // 2, workload.shortest, workload.longest)]


def update(workload: Workload, rounds: int, only: str | None = None) -> dict[str, dict]:
    """Update ratios by case, or of one case; the first round warms up and is left out."""
    case_list = [case for case in update_cases(workload) if only in (None, case.name)]
    rows = paired.prompt_rows(workload, case_list, rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: paired.scripted_trainer(kind, workload, rows, f"{folder}/{kind}") for kind in ("gpg", "grpo")}
        steps = paired.take_turns(trainers, len(case_list))
    ours, theirs = (paired.by_case(steps[kind], len(case_list)) for kind in ("gpg", "grpo"))
    return {
        case.name: paired.ratio(a, b, "update") | {"same_gradient": paired.gradient_gap(a, b)}
        for case, a, b in zip(case_list, ours, theirs, strict=True)
    }


def whole_step(rounds: int, num_prompts: int = 32) -> dict:
    """Whole step of the tiny base at alpha = 2: 256 completions, sampled by both trainers from the same seeds."""
    half = Case("alpha 2", num_prompts // 2, 0, 0)
    rows = paired.tiny_rows(num_prompts, [half], rounds + 1)
    settings = {"per_device_train_batch_size": 2 * num_prompts, "gradient_accumulation_steps": 4}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: paired.tiny_trainer(kind, rows, f"{folder}/{kind}", **settings) for kind in ("gpg", "grpo")}
        steps = paired.take_turns(trainers)
    ours, theirs = steps["gpg"][1:], steps["grpo"][1:]
    share = statistics.median(step.spent("learn")[1] / step.spent("step")[1] for step in theirs)
    tokens = sum(step.logs["tokens/generated"] for step in ours)
    return paired.ratio(ours, theirs, "step") | {
        "update_share": round(share, 3),  # of TRL's step, CPU time
        "limit": round(1 - share / 2, 3),
        "same_lengths": [a.logs["tokens/generated"] for a in ours] == [b.logs["tokens/generated"] for b in theirs],
        "mean_tokens": round(tokens / len(ours) / (8 * num_prompts), 1),
        "same_gradient": paired.gradient_gap(ours, theirs),
    }


WORKLOADS = {"prototype": paired.PROTOTYPE, "qwen": paired.QWEN_1_5B}


def memory(name: str, micro_batch_size: int) -> dict[str, dict]:
    """Peak memory of the update, each measurement in a fresh process; MiB and ratios to TRL's."""
    num_groups = WORKLOADS[name].num_groups
    runs = {"grpo": ("grpo", num_groups)} | {f"alpha {a}": ("gpg", num_groups // a) for a in (1, 2, 4)}
    mib = {
        key: paired.in_fresh_process(__file__, name, kind, str(num_valid), str(micro_batch_size))
        for key, (kind, num_valid) in runs.items()
    }
    measured = [key for key in mib["grpo"] if key != "persistent"]
    return {
        key: {f"{k}_mib": round(v) for k, v in values.items()}
        | {f"{k}_ratio": round(values[k] / mib["grpo"][k], 4) for k in measured}
        for key, values in mib.items()
    }


def one(name: str, kind: str, num_valid: str, micro_batch_size: str) -> None:
    """A memory measurement, in the process that makes it."""
    with tempfile.TemporaryDirectory() as folder:
        paired.print_result(
            paired.measure_memory(kind, WORKLOADS[name], int(num_valid), folder, micro_batch_size=int(micro_batch_size))
        )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of each case, at least 6 for an interval")
    parser.add_argument("--only", choices=("update", "step", "memory"), help="leave the others out")
    parser.add_argument("--case", choices=[case for case in TARGETS if case != "whole step"], help="this update alone")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        args.only = "update"
    paired.quiet()
    if args.one:
        one(*args.one)
        return
    on_gpu = torch.cuda.is_available()
    name = "qwen" if on_gpu else "prototype"
    workload, line = WORKLOADS[name], {"bench": "update_step"}
    if not on_gpu:
        print("gpu: no CUDA device here; the 1.5B workload in bf16 was not run", file=sys.stderr)
    kind = "wall" if on_gpu else "cpu"
    if args.only in (None, "update"):
        line["update"] = update(workload, args.rounds, args.case)
        for case, numbers in line["update"].items():
            print(f"update, {case}: {paired.shown(numbers)}, target {TARGETS[case]}")
        case = args.case or "alpha 2"
        line |= {"ratio": line["update"][case][f"{kind}_ratio"], "better": "lower", "target": TARGETS[case]}
    if args.only in (None, "step"):
        line["whole_step"] = whole_step(args.rounds)
        numbers = line["whole_step"]
        print(
            f"whole step, alpha 2: {paired.shown(numbers)}, target {TARGETS['whole step']}; update is "
            f"{numbers['update_share']:.0%} of TRL's step, limit {numbers['limit']}"
        )
    if args.only in (None, "memory"):
        whole = workload.micro_batch_size if on_gpu else workload.num_rows  # a GPU of any size takes the small ones
        line["memory_one_micro_batch" if not on_gpu else "memory"] = memory(name, whole)
        if not on_gpu:
            line["memory_accumulation_4"] = memory(name, workload.micro_batch_size)
        for key in (key for key in line if key.startswith("memory")):
            for case, numbers in line[key].items():
                target = f", target {MEMORY_TARGETS[case]}" if case in MEMORY_TARGETS and not on_gpu else ""
                print(f"{key}, {case}: {numbers}{target if key == 'memory_one_micro_batch' else ''}")
        if on_gpu:
            print("memory targets are for one micro-batch per step, which is measured on a CPU only")
    line |= {"gpu": "run" if on_gpu else "not run", "rounds": args.rounds, **paired.machine()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
