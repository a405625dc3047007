"""What leaving out the KL term saves: GPG against TRL's GRPO with beta = 0.04 and its reference model.

Same model, prompts, rewards and completions, in turn on one torch thread (`_paired`). `learn` is the step without
generation and grading: the reference model's pass, packing, forward, backward, optimiser. Measured on scripted
completions of the 5 M prototype, all of one length, where the difference at alpha = 1 is the KL term alone, and as
whole steps of the tiny base, whose completions differ in length, so that GPG's trimmed micro-batches count too. At
alpha = 2 GPG also skips half of the groups, which a loss with a KL term cannot. Ends in one JSON line; `ratio` is the
prototype's `learn` at alpha = 1 (lower is better).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import _paired as paired
import torch
from _paired import Case, Step, Workload

BETA = 0.04
ALPHAS = (1, 2)
KL = {"gpg": {}, "grpo": {"beta": BETA}}
WORKLOADS = {"prototype": paired.PROTOTYPE, "qwen": paired.QWEN_1_5B}


def save_model(workload: Workload, folder: str) -> str:
    """Where TRL finds the model twice: the policy and its reference."""
    paired.random_model(workload).save_pretrained(folder)
    return folder


def learn(workload: Workload, rounds: int) -> dict[str, dict]:
    """Ratios of the step without generation and grading, by alpha."""
    case_list = paired.cases(workload, ALPHAS)
    rows = paired.prompt_rows(workload, case_list, rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(workload, f"{folder}/model")
        trainers = {
            kind: paired.scripted_trainer(
                kind,
                workload,
                rows,
                f"{folder}/{kind}",
                model=model,
                model_init_kwargs={"dtype": workload.dtype},
                **settings,
            )
            for kind, settings in KL.items()
        }
        steps = paired.take_turns(trainers, len(case_list))
    ours, theirs = (paired.by_case(steps[kind], len(case_list)) for kind in KL)
    return {case.name: paired.ratio(a, b, "learn") for case, a, b in zip(case_list, ours, theirs, strict=True)}


def whole_step(rounds: int, num_prompts: int = 32) -> dict[str, dict]:
    """Ratios of whole steps of the tiny base, 256 completions, and tokens per second, by alpha."""
    case_list = [Case(f"alpha {alpha}", num_prompts // alpha, 0, 0) for alpha in ALPHAS]
    rows = paired.tiny_rows(num_prompts, case_list, rounds + 1)
    shape = {"per_device_train_batch_size": 2 * num_prompts, "gradient_accumulation_steps": 4}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            kind: paired.tiny_trainer(kind, rows, f"{folder}/{kind}", **shape, **settings)
            for kind, settings in KL.items()
        }
        steps = paired.take_turns(trainers, len(case_list))
    ours, theirs = (paired.by_case(steps[kind], len(case_list)) for kind in KL)
    return {
        case.name: paired.ratio(a, b, "step")
        | {"learn": paired.ratio(a, b, "learn"), "tokens_per_s": [tokens_per_second(x) for x in (a, b)]}
        for case, a, b in zip(case_list, ours, theirs, strict=True)
    }


def tokens_per_second(steps: Sequence[Step]) -> dict[str, float]:
    """Generated tokens per second of the whole step, median over steps, in wall and (not on a GPU) CPU time."""
    kinds = {"wall": 0} if torch.cuda.is_available() else {"wall": 0, "cpu": 1}
    return {
        kind: round(statistics.median(s.logs["tokens/generated"] / s.spent("step")[index] for s in steps))
        for kind, index in kinds.items()
    }


def memory(name: str) -> dict[str, dict]:
    """Peak memory of the whole step at alpha = 1 and 2, one micro-batch per step, each in a fresh process; MiB."""
    num_groups = WORKLOADS[name].num_groups
    runs = {"grpo": ("grpo", num_groups)} | {f"alpha {a}": ("gpg", num_groups // a) for a in ALPHAS}
    mib = {key: paired.in_fresh_process(__file__, name, kind, str(valid)) for key, (kind, valid) in runs.items()}
    return {
        key: {f"{k}_mib": round(v) for k, v in values.items()}
        | {f"{k}_ratio": round(v / mib["grpo"][k], 4) for k, v in values.items()}
        for key, values in mib.items()
    }


def one(name: str, kind: str, num_valid: str) -> None:
    """A memory measurement, in the process that makes it."""
    workload: Workload = WORKLOADS[name]
    settings: dict[str, Any] = dict(KL[kind])
    if not torch.cuda.is_available():  # a GPU of any size takes the small micro-batches
        settings["micro_batch_size"] = workload.num_rows
    with tempfile.TemporaryDirectory() as folder:
        settings |= {
            "model": save_model(workload, f"{folder}/model"),
            "model_init_kwargs": {"dtype": workload.dtype},
        }
        paired.print_result(
            paired.measure_memory(kind, workload, int(num_valid), f"{folder}/run", whole_step=True, **settings)
        )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of each case, at least 6 for an interval")
    parser.add_argument("--only", choices=("learn", "step", "memory"), help="leave the others out")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    paired.quiet()
    if args.one:
        one(*args.one)
        return
    on_gpu = torch.cuda.is_available()
    name, line = "qwen" if on_gpu else "prototype", {"bench": "kl_cost"}
    if not on_gpu:
        print("gpu: no CUDA device here; the 1.5B workload in bf16 was not run", file=sys.stderr)
    if args.only in (None, "learn"):
        line["learn"] = learn(WORKLOADS[name], args.rounds)
        headline = line["learn"]["alpha 1"]
        kind = "wall" if on_gpu else "cpu"
        line |= {"ratio": headline[f"{kind}_ratio"], "better": "lower", "target": 1.0}
    if args.only in (None, "step"):
        line["whole_step"] = whole_step(args.rounds)
    for section in ("learn", "whole_step"):
        for case, numbers in line.get(section, {}).items():
            print(f"{section}, {case}: {paired.shown(numbers)}")
    if args.only in (None, "memory"):
        line["memory"] = memory(name)
        for case, numbers in line["memory"].items():
            print(f"memory, {case}: {numbers}")
    line |= {"beta": BETA, "gpu": "run" if on_gpu else "not run", "rounds": args.rounds, **paired.machine()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
