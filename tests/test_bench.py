"""The benches' pieces at their smallest: what they compute, not how fast anything is."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import _paired as paired
import data_parallel
import eval_peers
import gpu
import kl_cost
import resampling
import update_step
import vision_update
from _paired import Case, Workload
from resampling import ALL_VALID, LARGER, OWN, THRESHOLD, Groups
from update_step import Shape

from eval_harness import records
from gpg_repro.trainer import SHARING_COST

SMALL = Workload(
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    num_groups=4,
    num_generations=2,
    micro_batch_size=4,
    longest=9,
    shortest=3,
)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_median_interval_is_the_innermost_pair_of_order_statistics():
    # P(Binomial(9, 1/2) <= 1) = 10/512: (x_2, x_8) covers with 96.1 %; for n = 7 only (x_1, x_7) does, with 98.4 %.
    assert paired.median_interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (5, 2, 8)
    assert paired.median_interval(range(1, 8)) == (4, 1, 7)
    middle, low, high = paired.median_interval([1, 2, 3, 4, 5])
    assert middle == 3 and math.isnan(low) and math.isnan(high)


def test_a_phase_is_the_step_without_what_is_not_in_it():
    step = paired.Step({"step": (10.0, 8.0), "rollout": (4.0, 3.0), "generate": (2.5, 2.0), "grade": (0.5, 0.5)}, {})
    assert step.spent("update") == (6.0, 5.0)
    assert step.spent("learn") == (7.0, 5.5)
    assert step.spent("generate") == (2.5, 2.0)


def test_ratios_are_medians_over_pairs():
    def steps(*seconds):
        return [paired.Step({"step": (s, 2 * s), "rollout": (0.0, 0.0)}, {}) for s in seconds]

    numbers = paired.ratio(steps(1, 1, 9), steps(2, 2, 3), "update")
    assert numbers["wall_ratio"] == 0.5 and numbers["wall_interval"] is None and numbers["pairs"] == 3
    assert numbers["wall_range"] == [0.5, 3.0]


# Workloads ------------------------------------------------------------------------------------------------------------


def test_every_step_has_the_groups_its_case_says():
    case_list = update_step.update_cases(paired.PROTOTYPE)
    assert [(case.name, case.num_valid) for case in case_list] == [
        ("alpha 1", 8),
        ("alpha 1.33", 6),
        ("alpha 2", 4),
        ("alpha 4", 2),
        ("ragged", 4),
    ]
    assert set(update_step.TARGETS) >= {case.name for case in case_list}
    signal = paired.prompt_rows(paired.PROTOTYPE, case_list, 2)["signal"]
    assert [sum(signal[start : start + 8]) for start in range(0, 80, 8)] == 2 * [8, 6, 4, 2, 4]


@pytest.mark.parametrize("num_valid", [0, 3, 8])
def test_real_prompts_too_have_the_groups_their_case_says(num_valid):
    rows = paired.tiny_rows(8, [Case("some", num_valid, 0, 0), Case("all", 8, 0, 0)], 2)
    assert [sum(rows["signal"][start : start + 8]) for start in range(0, 32, 8)] == 2 * [num_valid, 8]


def test_prompts_of_a_step_have_no_beginning_in_common():
    # 0 to 9 differ in the first token, 10 to 19 from them in the second.
    prompts = paired.prompt_rows(paired.PROTOTYPE, [Case("alpha 1", 8, 9, 9)], 3)["prompt"]
    common = [len(os.path.commonprefix(pair)) for pair in itertools.combinations(prompts, 2)]
    assert len(set(prompts)) == 24 and {len(prompt) for prompt in prompts} == {16}
    assert max(common) == 1 and sum(common) == 18  # 0 10 20, … 3 13 23: three pairs each; 4 14, … 9 19: one each


def test_rewards_differ_inside_groups_with_a_signal_only():
    assert paired.half_right(["p"] * 4, signal=[True, True, False, False]) == [0, 1, 0, 0]


# Trainers taking turns ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """Four steps of both trainers: full length at alpha 1 and ragged at alpha 2, twice; and who began when."""
    rows = paired.prompt_rows(SMALL, [Case("alpha 1", 4, 9, 9), Case("ragged", 2, 3, 9)], 2)
    trainers, order, batches = {}, [], {"gpg": [], "grpo": []}
    for kind in ("gpg", "grpo"):
        trainers[kind] = paired.scripted_trainer(kind, SMALL, rows, str(tmp_path_factory.mktemp(kind)))
        sample = trainers[kind]._generate_and_score_completions

        def noted(inputs, kind=kind, sample=sample):
            order.append(kind)
            batch = sample(inputs)
            batches[kind].append(batch["completion_ids"].clone())
            return batch

        trainers[kind]._generate_and_score_completions = noted
    return paired.take_turns(trainers, num_cases=2), order, batches, trainers


def test_trainers_step_in_rotation_and_going_first_changes(turns):
    steps, order, _, _ = turns
    assert order == ["grpo", "gpg"] * 2 + ["gpg", "grpo"] * 2  # two cases to a round of the data
    assert {kind: len(run) for kind, run in steps.items()} == {"gpg": 4, "grpo": 4}


def test_both_see_the_same_completions_of_the_lengths_asked_for(turns):
    _, _, batches, trainers = turns
    tokenizer = trainers["gpg"].processing_class
    for ours, theirs in zip(batches["gpg"], batches["grpo"], strict=True):
        assert torch.equal(ours, theirs)
    lengths = [(batch != tokenizer.pad_token_id).sum(dim=1) for batch in batches["gpg"]]
    assert (lengths[0] == 9).all()
    assert lengths[1].min() >= 3 and lengths[1].max() <= 9 and len(set(lengths[1].tolist())) > 1


def test_both_do_the_same_work(turns):
    steps, _, _, trainers = turns
    assert paired.gradient_gap(steps["gpg"], steps["grpo"]) < 1e-4
    assert all(step.logs["grad_norm"] > 0 for step in steps["gpg"])
    for ours, theirs in zip(trainers["gpg"].model.parameters(), trainers["grpo"].model.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # learning rate 0: the next step is the same too


def test_phases_add_up(turns):
    steps, *_ = turns
    for step in (*steps["gpg"], *steps["grpo"]):
        assert step.spent("step")[0] > step.spent("learn")[0] >= step.spent("update")[0] > 0
        assert step.logs["tokens/generated"] > 0


def test_the_first_round_of_every_case_is_left_out():
    steps = list("abABxy")
    assert paired.by_case(steps, 2) == [["A", "x"], ["B", "y"]]


def test_a_trainer_may_hold_its_turn_and_ends_when_the_time_is_over(tmp_path):
    rows = {"gpg": paired.prompt_rows(SMALL, [Case("alpha 1", 4, 9, 9)], 6)}
    rows["grpo"] = rows["gpg"].select(range(3 * SMALL.num_groups))
    trainers = {k: paired.scripted_trainer(k, SMALL, rows[k], str(tmp_path / k)) for k in rows}
    order = []
    for kind, trainer in trainers.items():
        sample = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda inputs, kind=kind, sample=sample: (
            order.append(kind) or sample(inputs)
        )
    steps = paired.take_turns(trainers, hold={"gpg": 2}, over=lambda: len(order) >= 5)
    assert order == ["grpo", "gpg", "gpg", "gpg", "gpg", "grpo"]  # the fifth ends ours; TRL's ends after its own
    assert {kind: len(of_kind) for kind, of_kind in steps.items()} == {"gpg": 4, "grpo": 2}


@pytest.mark.timeout(60)
def test_a_trainer_that_fails_does_not_leave_the_other_waiting(tmp_path):
    rows = paired.prompt_rows(SMALL, [Case("alpha 1", 4, 9, 9)], 3)
    trainers = {kind: paired.scripted_trainer(kind, SMALL, rows, str(tmp_path / kind)) for kind in ("gpg", "grpo")}

    def broken(inputs):
        raise ZeroDivisionError

    trainers["grpo"]._calculate_rewards = broken
    with pytest.raises(RuntimeError, match="failed") as raised:
        paired.take_turns(trainers)
    assert raised.value.__cause__ is not None


def test_the_kl_bench_loads_a_reference_model_for_its_rival_alone(tmp_path):
    rows = paired.prompt_rows(SMALL, [Case("alpha 1", 4, 9, 9)], 1)
    model = kl_cost.save_model(SMALL, str(tmp_path / "model"))
    for kind, settings in kl_cost.KL.items():
        trainer = paired.scripted_trainer(kind, SMALL, rows, str(tmp_path / kind), model=model, **settings)
        assert (trainer.ref_model is not None) == (kind == "grpo")


# Memory ---------------------------------------------------------------------------------------------------------------


def test_peak_of_events_counts_live_bytes():
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        first = torch.empty(2**20)  # 4 MiB
        del first
        second, third = torch.empty(2**19), torch.empty(2**18)  # 3 MiB together
        del second, third
    assert paired.peak_of_events(profiler) == 2**22


def test_memory_is_measured_in_the_step_that_was_asked_for(tmp_path):
    result = paired.measure_memory("gpg", SMALL, 2, str(tmp_path))
    assert set(result) == {"allocated", "persistent"} | (set() if torch.cuda.is_available() else {"resident"})
    assert result["allocated"] > result["persistent"] > 0


# One pass for the prompt of a group -----------------------------------------------------------------------------------

SMALL_VISION = replace(
    vision_update.PROTOTYPE, hidden_size=32, num_layers=1, vision_width=32, vision_depth=1, num_generations=4
)
SMALL_2B = replace(
    vision_update.QWEN2_VL_2B,
    hidden_size=64,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    vocab_size=512,
    dtype="float32",
    vision_width=32,
    vision_depth=1,
    vision_heads=1,
    num_generations=4,
)


def test_parts_of_a_shape_by_hand():
    # 8 x (512 + 64) = 4,608 tokens a group; the prompt once and eight completions are 1,024.
    shape = Shape(512, 64, 616, {})
    assert shape.name == "512:64"
    assert shape.parts(8) == pytest.approx({"useful": 1024 / 4608, "copies": 3584 / 4608, "no signal": 0})
    half = replace(shape, alpha=2)
    assert half.name == "512:64, alpha 2"
    assert half.parts(8) == pytest.approx({"useful": 512 / 4608, "copies": 1792 / 4608, "no signal": 0.5})


def test_the_large_vision_workload_is_qwen2_vl_2b():
    with torch.device("meta"):
        model = vision_update.random_model(vision_update.QWEN2_VL_2B)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_208_985_600  # as published


@pytest.mark.full("trains both ways")
@pytest.mark.parametrize(
    ("kind", "small"), [("text", replace(SMALL, num_generations=4)), ("vision", SMALL_VISION), ("vision", SMALL_2B)]
)
def test_a_row_of_the_sharing_part(kind, small, monkeypatch):
    shape = Shape(33, 5, 56, {kind: 0.5}, alpha=2)
    monkeypatch.setattr(
        Shape,
        "workload",
        lambda self, kind: replace(
            small,
            prompt_tokens=self.prompt,
            longest=self.completion,
            micro_batch_size=8,
            **({"image_side": self.image_side} if kind == "vision" else {}),
        ),
    )
    monkeypatch.setitem(SHARING_COST, "cpu", (1e9, 0.0))
    numbers = update_step.sharing(kind, shape, 1)
    assert numbers["same_gradient"] < 1e-4 and numbers["ideal"] == round((33 + 4 * 5) / (4 * 38) / 2, 4)
    assert numbers["target"] == 0.5 and numbers["groups"] == small.num_groups
    assert numbers["pairs"] == numbers["off"]["pairs"] == 1
    monkeypatch.setitem(SHARING_COST, "cpu", (1e9, 60.0))
    with pytest.raises(AssertionError, match="not shared"):
        update_step.sharing(kind, shape, 1)


def test_a_vision_prompt_has_the_tokens_asked_for_and_lengths_are_the_cases(tmp_path):
    workload = replace(SMALL_VISION, prompt_tokens=33, image_side=56, longest=9)
    assert workload.text_tokens == 33 - 4 - 5
    rows = vision_update.prompt_rows(workload, [Case("ragged", 8, 3, 9)], 1)
    trainer = vision_update.trainer_of("grpo", workload, rows, str(tmp_path), micro_batch_size=workload.num_rows)
    seen, sample = [], trainer._generate_and_score_completions

    def noted(inputs):
        seen.append(sample(inputs))
        return seen[-1]

    trainer._generate_and_score_completions = noted
    trainer.phase_seconds = {}
    trainer.train()
    (batch,) = seen
    assert batch["prompt_mask"].sum(dim=1).tolist() == [33] * workload.num_rows
    lengths = set(batch["completion_mask"].sum(dim=1).tolist())
    assert min(lengths) == 3 and max(lengths) == 9
    assert trainer.patches == 16 * workload.num_rows  # four by four


def test_memory_of_vision_trainers_is_measured_in_the_same_way(tmp_path):
    workload = replace(SMALL_VISION, prompt_tokens=33, image_side=56, longest=5)
    result = paired.measure_memory("gpg", workload, 8, str(tmp_path), **update_step.PIECES["vision"])
    assert result["allocated"] > 0


def test_pictures_of_the_sharing_part():
    numbers = {"cpu_ratio": 0.5, "cpu_interval": [0.4, 0.7], "pairs": 7, "groups": 4, "ideal": 0.3}
    line = {"gpu": "not run", "samples": 8, "sharing": {}, "sharing_memory": {}, "torch": "2"} | paired.machine()
    for kind in ("text", "vision"):
        line["sharing"] |= {f"{kind} {shape.name}": numbers for shape in update_step.SHAPES}
        line["sharing_memory"][f"{kind} 128:128"] = {"resident_ratio": 0.6, "allocated_ratio": 0.65}
    line["sharing"]["text 512:64, alpha 2"] = numbers | {"off": {"cpu_ratio": 0.75}}
    ratios = update_step.draw_ratios(line)
    text, _ = ratios.axes
    assert sorted(bar.get_height() for bar in text.patches) == 4 * [0.3] + 4 * [0.5] + [0.6]
    parts = update_step.draw_parts(line)
    text, vision = parts.axes
    # Two bars of three parts for each shape; the last shape comes first, its tokens above its time.
    widths = [bar.get_width() for bar in text.patches]
    assert len(widths) == 24 and widths[:6] == pytest.approx([512 / 4608, 1792 / 4608, 0.5, 0.5, 0.25, 0.25])
    assert [bar.get_width() for bar in vision.patches][3:6] == pytest.approx([0.5, 0.5, 0])  # skipping not measured


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """What a whole toy run prints, and its JSON line."""
    saved, printed = tmp_path_factory.mktemp("gpu") / "line.json", io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu.paired, "quiet", lambda: None)  # it silences logging for good
        status = gpu.main(["--toy", "--minutes", "60", "--out", str(saved)])
    *lines, last = printed.getvalue().splitlines()
    assert saved.read_text(encoding="utf-8") == last + "\n" and status == 0
    return lines, json.loads(last)


@pytest.mark.full("trains every shape of the GPU bench in small")
def test_a_toy_run_of_the_gpu_bench_has_every_row(toy):
    lines, line = toy
    assert [row["name"] for row in line["rows"]] == list(gpu.WANTED)
    assert all(row["value"] > 0 and row["verdict"] in ("ok", "missed", "no target") for row in line["rows"])
    for text, row in zip(lines, line["rows"], strict=True):
        assert text.startswith(f"toy: {row['name']}: {row['value']:.3f}") and row["verdict"] in text
    assert line["toy"] is True and line["complete"] is True and line["bench"] == "gpu"
    assert line["device"] == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    assert line["command"] == "python bench/gpu.py --minutes 60 --pairs 3 --toy"
    assert line["ratio"] == next(r["value"] for r in line["rows"] if r["name"] == "shared 4 x 8, 512:512")


@pytest.mark.full("trains every shape of the GPU bench in small")
def test_both_sides_of_the_gpu_bench_do_the_same_work(toy):
    compared = [row for row in toy[1]["rows"] if "seconds" in row]
    assert {row["pairs"] for row in compared} == {3, 5}
    gaps = [row["same_gradient"] for row in compared]
    # Every comparison's first alpha; that of TRL's tree too, whose log-probabilities come from the trie.
    assert sum(gap is not None for gap in gaps) == 10 and max(gap for gap in gaps if gap is not None) < 1e-4


@pytest.mark.full("trains every shape of the GPU bench in small")
def test_tokens_left_by_hand(toy):
    rows = {row["name"]: row for row in toy[1]["rows"]}
    # 512:64 in small is 32:4. TRL: 8 x 36 = 288 a group. Prompt once, eight completions: 32 + 8 x 4 = 64.
    row = rows["shared 16 x 8, 512:64"]
    assert (row["prompt"], row["completion"], row["arithmetic"]) == (32, 4, 0.2222)
    # Its last token begins every completion, whose own last one is left out: 31 + 8 x 4; equal beginnings are fewer.
    assert row["shared"] and 55 / 288 < row["tokens_left"] <= 0.2188
    half = rows["shared 16 x 8, 512:64, alpha 2"]
    assert half["arithmetic"] == 0.1111 and half["tokens_left"] <= 0.1094
    memory = rows["peak memory 4 x 8, 2048:512"]  # 128:32: (128 + 8 x 32) / (8 x 160) = 0.3
    assert (memory["tokens_left"], memory["target"]) == (0.3, 0.4)
    ours, theirs = rows["tokens beside TRL's tree"]["tokens"]
    # 32:32. TRL's trie keeps the last tokens: 31 + 8 + 8 x 32 a group, less what completions have in common.
    assert ours <= theirs <= 4 * 295


@pytest.mark.full("trains every shape of the GPU bench in small")
def test_nothing_is_alive_after_the_gpu_bench(toy):
    gc.collect()  # two trainers of the large model for every row would not fit
    assert not [trainer for trainer in gc.get_objects() if type(trainer) is gpu.TreeClocked]


@pytest.mark.full("imports TRL in a process of its own")
def test_the_gpu_bench_needs_no_engine_and_no_grader():
    # What is missing on the machine it was written for, TRL's own guess about vLLM included.
    code = f"""
import importlib.util, sys
missing, find = {{"vllm", "lighteval", "math_verify"}}, importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split(".")[0] in missing else find(name, *args)
sys.modules |= dict.fromkeys(missing)
sys.path.insert(0, {str(Path(gpu.__file__).parent)!r})
import gpu
sys.exit(gpu.main(["--toy", "--only", "flops"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["name"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]] == ["model FLOPs, alpha 1"]


class Clock:
    """Seconds that pass when a part is measured."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def part(clock: Clock, name: str, expected: float, taken: float, error: Exception | None = None) -> gpu.Part:
    def measure(bench):
        clock.seconds += taken
        if error:
            raise error
        return [{"name": name, "value": 0.5}]

    return gpu.Part(name, (name,), expected, measure)


def test_rows_that_do_not_fit_are_left_out_by_name(monkeypatch):
    monkeypatch.setattr(gpu, "WANTED", {name: gpu.Wanted(0.4) for name in "abcd"})
    clock, rows = Clock(), []
    # 60 s. The first takes twice what was expected: 20 s. The second, 25 s, would take 50 s; the third, 15 s, takes 30.
    # Now 10 s are left and parts take 50/25 of what was expected: the last, 6 s, does not fit.
    parts = [part(clock, *what) for what in (("a", 10, 20), ("b", 25, 0), ("c", 15, 30), ("d", 6, 1))]
    gpu.measure(parts, gpu.Bench(True, 3), gpu.Budget(1, 0, clock), rows.append)
    assert [(row["name"], row["verdict"]) for row in rows] == [
        ("a", "missed"),
        ("b", "not measured: out of time"),
        ("c", "missed"),
        ("d", "not measured: out of time"),
    ]
    assert gpu.shown(rows[1], False) == "b: not measured: out of time"


def test_a_row_that_fails_does_not_end_the_gpu_bench(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "WANTED", {name: gpu.Wanted(0.4) for name in "abc"})
    clock, rows = Clock(), []
    parts = [
        part(clock, "a", 1, 1, RuntimeError("misaligned address\nmore")),
        part(clock, "b", 1, 1, gpu.OutOfTime("out of time after 2 pairs")),
        part(clock, "c", 1, 1),
    ]
    gpu.measure(parts, gpu.Bench(True, 3), gpu.Budget(1, 0, clock), rows.append)
    assert [row["verdict"] for row in rows] == [
        "failed: RuntimeError: misaligned address",
        "not measured: out of time after 2 pairs",
        "missed",
    ]
    assert "misaligned address" in capsys.readouterr().err


def test_a_target_missed_is_said():
    row = gpu.judged({"name": "alpha 2", "value": 0.52, "range": [0.5, 0.6]})
    assert gpu.shown(row, False) == "alpha 2: 0.520 [0.500, 0.600], target <= 0.51: missed; before 0.508"
    assert gpu.judged({"name": "alpha 2", "value": 0.51})["verdict"] == "ok"
    verdicts = [gpu.judged({"name": "model FLOPs, alpha 1", "value": v})["verdict"] for v in (0.44, 0.45)]
    assert verdicts == ["missed", "ok"]
    other = gpu.judged({"name": "alpha 2", "value": 0.1, "same_work": False, "same_gradient": 0.3})
    assert other["verdict"] == "not the same work: gradient norms differ by 0.3"
    assert gpu.judged({"name": "peak memory 4 x 8, 2048:512", "value": 0.5, "target": 0.4})["verdict"] == "missed"


def test_too_few_pairs_are_no_row():
    step = paired.Step({"step": (1.0, 1.0), "rollout": (0.0, 0.0)}, {"tokens/forward": 2, "grad_norm": 1.0})
    step.logs["share_prompt"] = 1
    setup = replace(gpu.SHARED["512:64"], groups=1)
    bench, workload = gpu.Bench(True, 3), setup.workload(True)
    # The first of the shape does not count: four steps are three pairs, whatever the other has made beyond.
    assert bench._compared(setup, workload, 1, [step] * 4, [step] * 5).numbers["pairs"] == 3
    with pytest.raises(gpu.OutOfTime, match="after 2 pairs"):
        bench._compared(setup, workload, 1, [step] * 3, [step] * 4)


def test_one_round_of_the_gpu_bench_has_the_same_prompts_for_every_alpha():
    setup = replace(gpu.ALPHAS.toy(), groups=4)
    ours, theirs = gpu.rows_for(setup, setup.workload(True), 2)
    assert (len(ours), len(theirs)) == (4 * 3 * 4, 3 * 4)  # groups x (opening and two rounds) x alphas
    for number in range(2):
        round_of_ours, of_theirs = ours.select(range(16 * (1 + number), 16 * (2 + number))), theirs[4 + 4 * number :]
        assert round_of_ours["prompt"] == 4 * of_theirs["prompt"][:4]
        signals = [sum(round_of_ours["signal"][start : start + 4]) for start in range(0, 16, 4)]
        assert signals == [4, 3, 2, 1] and of_theirs["signal"][:4] == [True] * 4


def test_model_flops_by_hand():
    # One layer of width 8, two heads, one for keys and values, 10 in between, 16 words; one row of 3 + 5 tokens.
    workload = replace(
        gpu.TOY, hidden_size=8, intermediate_size=10, num_heads=2, num_kv_heads=1, vocab_size=16,
        num_groups=1, num_generations=1,
    )  # fmt: skip
    # Weights: q and o 64 each, k and v 32 each, three of 80: 432. Times 2 x 8 tokens: 6,912. Head: 2 x 128 x 5: 1,280.
    # Attention: scores and values, 8 x 8 / 2 pairs of tokens x 2 x 8 each: 2 x 512 = 1,024.
    assert gpu.model_flops(workload, 3, 5) == 3 * (6_912 + 1_280 + 1_024)


def test_the_mask_of_a_tree_by_hand():
    # A segment of two tokens; two of one token each behind it, whose paths are 0 1 2 and 0 1 3.
    assert gpu.tree_mask([0, 2, 3, 4], [0, 2, 5, 8]).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]


def test_kernels_are_counted_and_overlapping_time_once():
    def event(name, start, duration, device="CUDA", annotation=False):
        return SimpleNamespace(
            name=lambda: name,
            start_ns=lambda: start,
            duration_ns=lambda: duration,
            device_type=lambda: getattr(torch.autograd.DeviceType, device),
            is_user_annotation=lambda: annotation,
        )

    events = [
        event("second", 150, 100),  # 100 to 250 with the first
        event("first", 100, 100),
        event("inside", 160, 10),
        event("Memcpy HtoD", 300, 50),  # takes time, is no launch
        event("Optimizer.step", 0, 1000, annotation=True),
        event("aten::mm", 0, 20, "CPU"),
        event("cudaLaunchKernel", 0, 20, "CPU"),
    ]
    assert paired.work_of_events(events, on_gpu=True) == {"launches": 3, "device_s": 200e-9}
    assert paired.work_of_events(events, on_gpu=False) == {"launches": 1, "device_s": 20e-9}


# Resampling -----------------------------------------------------------------------------------------------------------


LENGTHS = np.array([[3, 5], [2, 2], [7, 1], [4, 4]])


def groups(*valid: bool) -> Groups:
    return Groups(LENGTHS, np.array(valid))


class InOrder(Groups):
    """Samples the groups in their order, for steps worked by hand."""

    def sample(self, num, rng, share=None):
        chosen = np.arange(num) % len(self.valid)
        return Groups(self.lengths[chosen], self.valid[chosen])


def test_a_step_of_one_draw_by_hand():
    step = resampling.simulate_step(InOrder(LENGTHS, np.ones(4, dtype=bool)), 2, 4, 1.0, None)
    # Worker 0 decodes 5 iterations (groups 0 and 1), worker 1 decodes 7: all wait for 7, busy 6 on average.
    assert step == {"draws": 1, "tokens": 28, "time": 7, "valid": 4, "idle": pytest.approx(1 / 7)}


def test_draws_go_on_until_the_threshold_and_no_further():
    half = InOrder(LENGTHS, np.array([True, False, True, False]))
    assert resampling.simulate_step(half, 2, 4, 0.5, None)["draws"] == 1
    assert resampling.simulate_step(half, 2, 4, 0.6, None) == {
        "draws": 2, "tokens": 56, "time": 14, "valid": 4, "idle": pytest.approx(1 / 7)
    }  # fmt: skip
    none = InOrder(LENGTHS, np.zeros(4, dtype=bool))
    assert resampling.simulate_step(none, 2, 4, 0.6, None, max_draws=5)["draws"] == 5


def test_a_worker_on_its_own_goes_on_until_its_share_is_valid():
    # Two workers with two groups each; worker 0 gets two valid ones at once, worker 1 one per draw.
    step = resampling.simulate_own_step(InOrder(LENGTHS, np.array([True, True, True, False])), 2, 4, None)
    # Second draw: worker 1 alone, with groups 0 and 1 (two valid, 5 iterations). Its 7 + 5 against worker 0's 5.
    assert step == {"draws": 2, "tokens": 40, "time": 12, "valid": 4, "idle": pytest.approx(1 - 8.5 / 12)}


def test_the_share_of_valid_groups_can_be_set():
    sampled = groups(True, False, False, False).sample(4000, np.random.default_rng(0), share=0.8)
    assert abs(sampled.valid.mean() - 0.8) < 0.03
    again = groups(True, False, False, False).sample(4000, np.random.default_rng(0), share=0.8)
    assert (sampled.lengths == again.lengths).all()


def test_the_matched_batch_holds_as_many_valid_groups():
    rng = np.random.default_rng(0)
    assert resampling.matched_batch(16, 1.0, 0.6, rng) == 16
    assert resampling.matched_batch(64, 0.75, 0.6, rng) == pytest.approx(64 / 0.75, abs=2)  # one draw nearly always
    assert resampling.matched_batch(16, 0.4, 1.0, rng) == 16


def test_a_larger_draw_fills_a_batch_at_once():
    half = InOrder(LENGTHS, np.array([True, False, True, False]))
    step = resampling.simulate_step(half, 2, 4, 1.0, None, draw_size=8)
    assert (step["draws"], step["tokens"], step["valid"]) == (1, 56, 4)
    # P(at least 1 valid of 4) = 1 - 1/16 = 0.9375, of 5: 0.969
    assert resampling.sufficient_draw(1, 0.5) == 5
    assert resampling.sufficient_draw(16, 1.0) == 16


def test_ratios_are_per_valid_group():
    ours = pd.DataFrame({"tokens": [100.0, 100.0], "valid": [5, 5]})
    theirs = pd.DataFrame({"tokens": [100.0, 100.0], "valid": [4, 4]})
    assert resampling.ratio_of_sums(ours, theirs, "tokens") == [0.8, 0.8, 0.8]


def test_simulated_ratios_put_the_threshold_over_the_other_way():
    frame = pd.DataFrame(
        {"way": [THRESHOLD, OWN], "time": [10.0, 40.0], "valid": [5, 10], "workers": [8, 8]}  # 2 and 4 a group
    )
    assert resampling.simulated_ratios(frame, "workers", OWN, "time").loc[8].tolist() == [0.5, 0.5, 0.5]


def test_figure_and_line_of_the_resampling_bench():
    measured = groups(True, True, False, True)
    by_workers = pd.concat(resampling.simulate(measured, workers, 2, 3, seed=0) for workers in (2, 4))
    by_share = pd.concat(resampling.simulate(measured, 2, 2, 3, seed=0, share=share) for share in (0.5, 0.8))
    assert set(by_workers["way"]) == {THRESHOLD, ALL_VALID, LARGER, OWN}
    assert (
        by_workers[by_workers["way"] != THRESHOLD]["valid"] == 2 * by_workers[by_workers["way"] != THRESHOLD]["workers"]
    ).all()
    figure = resampling.draw({"tokens": [0.8, 0.7, 0.9]}, by_workers, by_share, "facts")
    assert [bool(axis.get_title()) for axis in figure.axes] == [True, True, True]
    frame = pd.DataFrame({name: [1.0, 2.0] for name in ("tokens", "valid", "draws", "batch", "wall_s", "cpu_s")})
    frames = {THRESHOLD: frame, ALL_VALID: frame}
    line = resampling.line(measured, frames, {"tokens": [0.8, 0.7, 0.9]}, by_workers, by_share, 2, Path("x.png"))
    assert line["ratio"] == 0.8 and set(line["simulated_by_workers"]) == {"2", "4"}
    low, high = line["simulated_by_share_64_workers"]["0.8"][f"tokens, against {ALL_VALID}"][1:]
    assert low <= high


# Data parallel --------------------------------------------------------------------------------------------------------


@pytest.mark.full("starts three engines")
def test_one_and_two_engines_take_turns_at_the_same_work(random_checkpoint, tmp_path, monkeypatch):
    starts = []
    real = data_parallel.start_engines
    monkeypatch.setattr(data_parallel, "start_engines", lambda *args: starts.append(args) or real(*args))
    numbers = data_parallel.measure(str(random_checkpoint), tmp_path, rounds=1, samples=2, limit=3)
    assert len(starts) == 1 and numbers["pairs"] == 1 and numbers["interval"] is None
    assert numbers["completions"] == 2 * 3 * len(data_parallel.SUITES) and numbers["same_records"]
    assert numbers["ratio"] == pytest.approx(numbers["wall_s"]["one"] / numbers["wall_s"]["two"], rel=0.1)
    for name, engines in (("one", None), ("two", 2)):
        run = records.read_run(tmp_path / f"{name}-1")
        assert run.engine.get("data_parallel_size") == engines and run.engine["threads"] == 1


# The harness beside its peers -----------------------------------------------------------------------------------------


def peer_run(start: float, done: float) -> dict:
    return {"ready": {"wall": start, "cpu": start}, "done": {"wall": done, "cpu": done}, "marks": {}, "lengths": {}}


def test_a_start_per_suite_is_five_processes_whose_times_are_added(monkeypatch):
    asked = []
    monkeypatch.setattr(eval_peers, "one_run", lambda *args: asked.append(args) or peer_run(3, 4))
    work = eval_peers.Workload("model")
    assert eval_peers.measure("vllm", work)["seconds"]["total"] == {"wall": 4, "cpu": 4}
    assert asked == [("vllm", work, list(eval_peers.SUITES))]
    seconds = eval_peers.measure("vllm each", work)["seconds"]
    assert asked[1:] == [("vllm", work, [suite]) for suite in eval_peers.SUITES]
    assert seconds == {phase: {"wall": s, "cpu": s} for phase, s in (("start", 15), ("work", 5), ("total", 20))}


def test_peers_are_compared_round_by_round():
    def row(ours: float, theirs: float) -> dict:
        return {way: {"seconds": {"work": {"wall": s, "cpu": 2 * s}}} for way, s in (("a", ours), ("b", theirs))}

    numbers = eval_peers.compare([row(1, 2), row(3, 4), row(1, 10)], "a", "b", "work")
    assert numbers["wall_ratio"] == numbers["cpu_ratio"] == 0.5 and numbers["wall_interval"] is None
    assert (numbers["wall_s"], numbers["cpu_s"], numbers["pairs"]) == ([1, 4], [2, 8], 3)
    assert eval_peers.compare([row(1, 2)] * 6, "a", "b", "work")["wall_interval"] == [0.5, 0.5]


def test_scores_are_compared_item_by_item_and_lengths_told():
    gap, error = eval_peers.difference({"x": [1.0, 0.5], "y": [0.0]}, {"x": [0.5, 0.5], "y": [0.25]})
    assert (gap, error) == (pytest.approx(0.25 / 3), pytest.approx(np.std([0.5, 0, -0.25], ddof=1) / 3**0.5))
    lengths = eval_peers.spread([*range(1, 10), 64], limit=64)
    assert lengths == {"mean": 10.9, "deciles": [*range(2, 10), 64], "longest": 64, "cut": 0.1}


def test_cpu_time_of_a_descendant_that_has_ended_still_counts():
    spin = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.6: pass"
    with eval_peers.Clock() as clock:
        before = clock.read()
        subprocess.run([sys.executable, "-c", spin], check=True)
        after = clock.read()
    assert after["cpu"] - before["cpu"] > 0.4
    assert after["wall"] > before["wall"] + 0.6


@pytest.mark.long("a process of lighteval and one of ours")
def test_the_peers_do_the_same_work(random_checkpoint):
    options = ["--rounds", "1", "--items", "2", "--samples", "2", "--max-new-tokens", "5", "--batch-size", "3"]
    command = [sys.executable, eval_peers.__file__, "--model", str(random_checkpoint), *options]
    command += ["--ways", "transformers,lighteval"]  # both compare their prompts with those expected
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["completions"] == 5 * 2 * 2 and line["rounds"] == 1
    for way in ("transformers", "lighteval"):
        assert line["lengths"][way]["longest"] == 5  # hardly a random completion ends by itself
        assert set(line["scores"][way]) >= {*eval_peers.SUITES, "average"}
        seconds = line["seconds"][way]
        assert seconds["total"]["wall"] == pytest.approx(seconds["start"]["wall"] + seconds["work"]["wall"], abs=0.02)
        assert min(of_phase[kind] for of_phase in seconds.values() for kind in ("wall", "cpu")) > 0
    ours, theirs = line["transformers over lighteval"]["wall_s"]
    assert line["ratio"] == pytest.approx(ours / theirs, rel=0.05)
    assert not list(random_checkpoint.glob("*/"))  # completions that lighteval would take again
