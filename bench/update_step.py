"""What a training step costs under GPG against TRL's own GRPOTrainer: time of update and step, memory.

Both trainers live in one process on one torch thread, see the same prompts, rewards and completions, and step in turn
(`_paired`); their settings have one gradient (`same_gradient` is the largest relative difference of the norms). The
update is everything but sampling and scoring: packing, forward, backward, optimiser. Groups without a signal cost GPG
nothing, so the ideal ratio is 1 / alpha; prompts that are long beside their completions go through the model once per
group (`sharing`, text and Qwen2-VL, `ideal` is the part of the tokens that is left). Ends in one JSON line; `ratio` is
the update's at alpha = 2 (lower is better). `--plot` draws the sharing part of such a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _paired as paired
import matplotlib.pyplot as plt
import torch
import vision_update as vision
from _paired import Case, Workload
from matplotlib.axes import Axes

from eval_harness.style import BAND, GPG_BLUE, GPG_LIGHT, GRPO_GRAY, use_style

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


# One pass for the prompt of a group -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A row of the sharing part: tokens of a prompt and of a completion, and the share of groups with a signal."""

    prompt: int
    completion: int
    image_side: int  # pixels of the image that most of a vision prompt is
    targets: dict[str, float]
    alpha: int = 1

    @property
    def name(self) -> str:
        return f"{self.prompt}:{self.completion}" + (f", alpha {self.alpha}" if self.alpha > 1 else "")

    def workload(self, kind: str) -> Workload:
        """What `text` or `vision` trainers step through."""
        lengths = {"prompt_tokens": self.prompt, "longest": self.completion, "num_groups": 4, "micro_batch_size": 16}
        if kind == "text":
            return replace(paired.PROTOTYPE, **lengths)
        large = vision.QWEN2_VL_2B if torch.cuda.is_available() else vision.PROTOTYPE
        return replace(large, image_side=self.image_side, **lengths)

    def parts(self, num_generations: int) -> dict[str, float]:
        """Shares of the tokens that a pass per completion takes: what is left, copies of prompts, rows without signal.

        What is left is each prompt once and its completions, in groups with a signal: the ideal ratio.
        """
        whole = num_generations * (self.prompt + self.completion)
        left = self.prompt + num_generations * self.completion
        return {
            "useful": left / whole / self.alpha,
            "copies": (1 - left / whole) / self.alpha,
            "no signal": 1 - 1 / self.alpha,
        }


SHAPES = (
    Shape(64, 256, 168, {"text": 0.92, "vision": 0.82}),
    Shape(128, 128, 280, {"text": 0.65, "vision": 0.50}),
    Shape(512, 64, 616, {"text": 0.28, "vision": 0.20}),
    Shape(512, 64, 616, {"text": 0.16, "vision": 0.12}, alpha=2),
)
MEMORY_SHAPES = SHAPES[1:3]
PIECES = {
    "text": {"rows_of": paired.prompt_rows, "trainer_of": paired.scripted_trainer},
    "vision": {"rows_of": vision.prompt_rows, "trainer_of": vision.trainer_of},
}


def sharing(kind: str, shape: Shape, pairs: int) -> dict[str, Any]:
    """Update ratio of one row, `text` or `vision`; with groups to skip, also what skipping alone gives (`off`)."""
    workload, rows_of, trainer_of = shape.workload(kind), PIECES[kind]["rows_of"], PIECES[kind]["trainer_of"]
    num_valid = workload.num_groups // shape.alpha
    rows = rows_of(workload, [Case(shape.name, num_valid, shape.completion, shape.completion)], pairs + 1)
    settings = {"auto": ("gpg", {}), "grpo": ("grpo", {})}
    if shape.alpha > 1:
        settings["off"] = ("gpg", {"share_prompt": "off"})
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: trainer_of(trainer, workload, rows, f"{folder}/{name}", **more)
            for name, (trainer, more) in settings.items()
        }
        steps = {name: taken[1:] for name, taken in paired.take_turns(trainers).items()}
    # The last prompt token goes through the model with every completion, whose own last one does not.
    left = num_valid * (shape.prompt - 1 + workload.num_generations * shape.completion)
    # First tokens that completions of a group have in common are shared as well.
    assert all(s.logs["share_prompt"] and s.logs["tokens/forward"] <= left for s in steps["auto"]), "not shared"
    numbers = paired.ratio(steps["auto"], steps["grpo"], "update") | {
        "ideal": round(shape.parts(workload.num_generations)["useful"], 4),
        "target": shape.targets[kind],
        "groups": workload.num_groups,
        "same_gradient": paired.gradient_gap(steps["auto"], steps["grpo"]),
    }
    if "off" in steps:
        numbers["off"] = paired.ratio(steps["off"], steps["grpo"], "update")
    return numbers


def sharing_memory(kind: str, shape: Shape) -> dict[str, Any]:
    """Peak memory of the update, each trainer in a fresh process; MiB of both, and ratios to TRL's."""
    number = str(SHAPES.index(shape))
    ours, theirs = (paired.in_fresh_process(__file__, kind, trainer, number, "16") for trainer in ("gpg", "grpo"))
    measured = [key for key in ours if key != "persistent"]
    return {f"{key}_mib": [round(ours[key]), round(theirs[key])] for key in ours} | {
        f"{key}_ratio": round(ours[key] / theirs[key], 4) for key in measured
    }


# Memory ---------------------------------------------------------------------------------------------------------------


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


def one(name: str, trainer: str, number: str, micro_batch_size: str) -> None:
    """A memory measurement, in the process that makes it; `number` is that of valid groups, or of the shape."""
    if name in PIECES:
        workload, more = SHAPES[int(number)].workload(name), PIECES[name]
        num_valid = workload.num_groups
    else:
        workload, num_valid, more = WORKLOADS[name], int(number), {}
    with tempfile.TemporaryDirectory() as folder:
        paired.print_result(
            paired.measure_memory(trainer, workload, num_valid, folder, micro_batch_size=int(micro_batch_size), **more)
        )


# Pictures -------------------------------------------------------------------------------------------------------------


COLORS = {"useful": GPG_BLUE, "copies": BAND, "no signal": GRPO_GRAY}
LABELS = {
    "useful": "what is left: each prompt once, completions with a signal",
    "copies": "copies of prompts",
    "no signal": "groups without a signal",
}
PANELS = {"text": "Qwen2, text", "vision": "Qwen2-VL, a picture in every prompt"}


def draw_ratios(line: dict[str, Any]) -> plt.Figure:
    """Measured ratios of time and memory beside the part of the tokens that is left; text left, vision right."""
    clock, rows = "wall" if line["gpu"] == "run" else "cpu", line["sharing"]
    figure, axes = _panels(line, height=5.6)
    for kind, axis in axes.items():
        for place, shape in enumerate(SHAPES):
            numbers = rows[f"{kind} {shape.name}"]
            value = numbers[f"{clock}_ratio"]
            axis.bar(place - 0.27, numbers["ideal"], 0.25, color=GPG_LIGHT, label="tokens left (arithmetic)")
            axis.bar(place, value, 0.25, color=GPG_BLUE, label="time of the update (measured)")
            low, high = numbers[f"{clock}_interval"] or (value, value)
            axis.errorbar(place, value, [[value - low], [high - value]], color="0.2", capsize=4)
            marks = [(place - 0.27, numbers["ideal"], numbers["ideal"]), (place, value, high)]
            peak = line["sharing_memory"].get(f"{kind} {shape.name}")
            if peak:
                memory_ratio = peak.get("resident_ratio", peak["allocated_ratio"])
                axis.bar(place + 0.27, memory_ratio, 0.25, color=BAND, label="peak memory of the update (measured)")
                marks.append((place + 0.27, memory_ratio, memory_ratio))
            for x, shown, top in marks:
                axis.text(x, top + 0.015, f"{shown:.2f}", ha="center", fontsize=9)
        axis.axhline(1, color="0.4", lw=1.2)
        axis.text(len(SHAPES) - 0.62, 1.015, "TRL's GRPOTrainer", ha="right", fontsize=9, color="0.35")
        axis.set_xlim(-0.6, len(SHAPES) - 0.5)
        axis.set(title=PANELS[kind], ylim=(0, 1.12), xticks=range(len(SHAPES)))
        axis.set_xticklabels([shape.name.replace(", alpha ", "\nα = ") for shape in SHAPES])
        axis.set_xlabel("tokens of prompt : completion")
        axis.grid(axis="x", visible=False)
    figure.axes[0].set_ylabel("GPGTrainer / GRPOTrainer")
    return _with_legend(figure, line)


def draw_parts(line: dict[str, Any]) -> plt.Figure:
    """Where TRL's update goes, by count of tokens and as measured: what is left, copies, groups without a signal."""
    clock, rows = "wall" if line["gpu"] == "run" else "cpu", line["sharing"]
    figure, axes = _panels(line, height=5)
    for kind, axis in axes.items():
        for place, shape in enumerate(reversed(SHAPES)):
            numbers = rows[f"{kind} {shape.name}"]
            left, unshared = numbers[f"{clock}_ratio"], numbers.get("off", {}).get(f"{clock}_ratio", 1.0)
            measured = {"useful": left, "copies": unshared - left, "no signal": 1 - unshared}
            counted = shape.parts(line["samples"])
            for y, parts, name in ((place + 0.2, counted, "tokens"), (place - 0.2, measured, "time")):
                start = 0.0
                for part, width in parts.items():
                    axis.barh(y, width, 0.36, left=start, color=COLORS[part], label=LABELS[part])
                    if width > 0.06:
                        color = "0.15" if part == "copies" else "white"
                        percent = f"{100 * width:.0f} %"
                        axis.text(start + width / 2, y, percent, ha="center", va="center", color=color, fontsize=9)
                    start += width
                axis.text(1.01, y, name, va="center", fontsize=9, color="0.35")
        axis.set(title=PANELS[kind], xlim=(0, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1], yticks=range(len(SHAPES)))
        axis.set_xticklabels(["0", "25 %", "50 %", "75 %", "100 %"])
        axis.set_yticklabels([shape.name.replace(", alpha ", "\nα = ") for shape in reversed(SHAPES)])
        axis.set_xlabel("of the update of TRL's GRPOTrainer")
        axis.grid(axis="y", visible=False)
    figure.axes[0].set_ylabel("tokens of prompt : completion")
    return _with_legend(figure, line)


def _panels(line: dict[str, Any], height: float) -> tuple[plt.Figure, dict[str, Axes]]:
    """An axis for each kind of model in the line."""
    kinds = [kind for kind in PANELS if f"{kind} {SHAPES[0].name}" in line["sharing"]]
    use_style()
    size = (6.5 * len(kinds), height)
    figure, axes = plt.subplots(1, len(kinds), figsize=size, layout="constrained", sharey=True, squeeze=False)
    return figure, dict(zip(kinds, axes[0], strict=True))


def _with_legend(figure: plt.Figure, line: dict[str, Any]) -> plt.Figure:
    """Each label once below, how it was measured above."""
    handles = dict(zip(*figure.axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncol=3, frameon=False, fontsize=10)
    numbers = next(iter(line["sharing"].values()))
    clock = "wall time" if line["gpu"] == "run" else "CPU time, one thread"
    facts = (
        f"{clock}; median of {numbers['pairs']} interleaved pairs with 95 % intervals; {numbers['groups']} groups of "
        f"{line['samples']}; {line['device']}, {line['cores']} cores, torch {line['torch']}"
    )
    figure.suptitle(facts, fontsize=10, color="0.35")
    return figure


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of each case, at least 6 for an interval")
    parser.add_argument("--only", choices=("update", "step", "memory", "sharing"), help="leave the others out")
    parser.add_argument("--case", choices=[case for case in TARGETS if case != "whole step"], help="this update alone")
    parser.add_argument(
        "--plot", nargs=2, metavar=("FOLDER", "LINE.json"), help="draw a saved line and measure nothing"
    )
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plot:
        line = json.loads(Path(args.plot[1]).read_text(encoding="utf-8"))
        for name, draw in (("efficiency", draw_ratios), ("efficiency_parts", draw_parts)):
            draw(line).savefig(Path(args.plot[0]) / f"{name}.png", dpi=110)
        return
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
        print("gpu: no CUDA device here; the workloads of 1.5B and VL-2B in bf16 were not run", file=sys.stderr)
    clock = "wall" if on_gpu else "cpu"
    if args.only in (None, "update"):
        line["update"] = update(workload, args.rounds, args.case)
        for case, numbers in line["update"].items():
            print(f"update, {case}: {paired.shown(numbers)}, target {TARGETS[case]}")
        case = args.case or "alpha 2"
        line |= {"ratio": line["update"][case][f"{clock}_ratio"], "better": "lower", "target": TARGETS[case]}
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
    if args.only in (None, "sharing"):
        kinds = ("vision",) if on_gpu else ("text", "vision")
        line |= {"sharing": {}, "sharing_memory": {}, "samples": paired.PROTOTYPE.num_generations}
        for kind in kinds:
            for shape in SHAPES:
                numbers = line["sharing"][f"{kind} {shape.name}"] = sharing(kind, shape, min(args.rounds, 7))
                print(
                    f"sharing, {kind} {shape.name}: {paired.shown(numbers)}, tokens {numbers['ideal']:.3f}, target "
                    f"{numbers['target']}"
                    + (f"; skipping alone {paired.shown(numbers['off'])}" if "off" in numbers else ""),
                    flush=True,
                )
            for shape in MEMORY_SHAPES:
                numbers = line["sharing_memory"][f"{kind} {shape.name}"] = sharing_memory(kind, shape)
                limit = line["sharing"][f"{kind} {shape.name}"][f"{clock}_ratio"] + 0.05
                print(f"sharing, memory, {kind} {shape.name}: {numbers}, target {limit:.3f}", flush=True)
        if args.only:
            row = line["sharing"][f"{kinds[0]} 512:64"]
            line |= {"ratio": row[f"{clock}_ratio"], "better": "lower", "target": row["target"]}
    line |= {"gpu": "run" if on_gpu else "not run", "rounds": args.rounds, **paired.machine()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
