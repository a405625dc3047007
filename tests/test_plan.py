"""The planner: what a table needs, what of it is done, what the rest would cost; the arithmetic checked by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess

import pytest

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import load_checkpoints
from eval_harness.errors import UserError
from eval_harness.records import RunRecord, TrainingRecord
from eval_harness.runner import Overrides, decoding_of, parse_samples
from gpg_repro import costs, plan_text
from gpg_repro.__main__ import main
from gpg_repro.costs import Assumptions, Range
from gpg_repro.paths import ROOT
from gpg_repro.plan import Plan, build_plan, shape_of, subject_of, work_of
from gpg_repro.recipe import SCALES, load_recipe
from gpg_repro.tables import TABLES
from gpg_repro.tables.runs import REFERENCE

H100 = costs.GPUS["h100"]


@pytest.fixture(autouse=True)
def _nothing_done(tmp_path, monkeypatch):
    """No results, no hub cache, no local data: what the machine holds does not matter."""
    monkeypatch.setenv("GPG_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("EVAL_DATA_ROOT", raising=False)
    monkeypatch.setattr("gpg_repro.plan.cached_bytes", dict)


# --- Names and refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["3", "03", "table3", "Table 3", "table_03", "table-3", " TABLE03 "])
def test_a_table_answers_to_all_its_names(name):
    assert subject_of(name)[0] == "table3"


@pytest.mark.parametrize(
    ("name", "canonical"), [("figure 2", "figure2"), ("fig4", "figure4"), ("kl", "kl"), ("Control", "control")]
)
def test_figures_and_our_own_tables_have_names_too(name, canonical):
    assert subject_of(name)[0] == canonical


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tabel3", {}, "unknown table or figure 'tabel3'; did you mean 'table3'?"),
        ("table13", {}, "unknown table or figure 'table13'"),
        ("", {}, "unknown table or figure ''"),
        ("3", {"scale": "papr"}, "unknown scale 'papr'; did you mean 'paper'?"),
        ("3", {"gpu": "h10"}, "unknown GPU class 'h10'; did you mean 'h100'?"),
        ("3", {"seeds": 0}, "--seeds 0: expected at least 1"),
        ("3", {"samples": "0"}, "--samples 0: expected an integer of at least 1"),
        ("3", {"samples": "many"}, "--samples many"),
        ("3", {"samples": "geoqa=2"}, "unknown benchmark of table3 in --samples: 'geoqa'"),
        ("3", {"completion_tokens": {"geoqa": 5}}, "unknown benchmark of table3 in --completion-tokens: 'geoqa'"),
        ("3", {"generation": "vlm"}, "unknown way of generating 'vlm'; did you mean 'vllm'?"),
        ("3", {"strategy": "zero4"}, "unknown strategy 'zero4'"),
    ],
)
def test_what_cannot_be_planned_is_refused(name, options, message):
    with pytest.raises(UserError) as error:
        build_plan(name, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["decode=0.5"], "unknown assumption 'decode'"),
        (["decode_efficiency=0.6-0.2"], "both above 0"),
        (["decode_efficiency=fast"], "expected decode_efficiency=NUMBER"),
        (["valid_share=2"], "valid_share is a share"),
        (["concurrency=1-2"], "concurrency is one number"),
        (["foo=1", "step_seconds=-1"], "step_seconds=-1"),
    ],
)
def test_assumptions_that_mean_nothing_are_refused(given, message):
    with pytest.raises(UserError) as error:
        costs.parse_assumptions(given)
    assert message in str(error.value)


def test_assumptions_are_replaced_by_name():
    assumed = costs.parse_assumptions(["valid-share=0.5", "step_seconds=2-3", "concurrency=64"])
    assert (assumed.valid_share, assumed.step_seconds, assumed.concurrency) == (Range(0.5, 0.5), Range(2, 3), 64)
    assert assumed.training_efficiency == Assumptions().training_efficiency


@pytest.mark.parametrize("text", ["x", "aime24=", "aime24=-3", "0", "aime24=5,math500=nan"])
def test_lengths_that_are_no_numbers_are_refused(text):
    with pytest.raises(UserError, match="--completion-tokens"):
        plan_text.parse_lengths(text)


# --- Arithmetic by hand ---------------------------------------------------------------------------------------------


def test_ranges_stay_bounds():
    a, b = Range(1, 2), Range(3, 5)
    assert (a + b, a * b, b / a, 2 * a, a + 1) == (Range(4, 7), Range(3, 10), Range(1.5, 5), Range(2, 4), Range(2, 3))
    assert Range(1, 9).clip(2, 5) == Range(2, 5) and costs.total([]) == Range(0, 0)


def test_sizes_are_those_of_the_published_models():
    """7.62 and 1.78 billion parameters of two bytes; 28 layers x 2 x 4 (2) heads x 128 x two bytes a token."""
    seven, distill = costs.SHAPES["Qwen/Qwen2.5-Math-7B"], costs.SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]
    assert round(seven.weights / 1e9, 1) == 15.2 and seven.kv_bytes == 57_344
    assert round(distill.weights / 1e9, 2) == 3.55 and distill.kv_bytes == 28_672


@pytest.mark.parametrize("model", sorted({shape.parameters: name for name, shape in costs.SHAPES.items()}.values()))
def test_parameters_are_those_that_transformers_counts(model):
    """The configurations of the published models, built without memory."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )

    shape = costs.SHAPES[model]
    heads = shape.hidden // shape.head_dim
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": 152_064 if shape is costs.QWEN_7B else 151_936,
        "tie_word_embeddings": shape.vision,
    }
    with torch.device("meta"):
        if not shape.vision:
            built = Qwen2ForCausalLM(Qwen2Config(**text))
        elif shape is costs.QWEN2_VL_2B:
            vision = {"hidden_size": shape.hidden, "embed_dim": 1280, "depth": 32}
            config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
            built = Qwen2VLForConditionalGeneration(config)
        else:
            vision = {"hidden_size": 1280, "out_hidden_size": shape.hidden, "intermediate_size": 3420, "depth": 32}
            config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
            built = Qwen2_5_VLForConditionalGeneration(config)
    built.tie_weights()
    assert sum(p.numel() for p in built.parameters()) == shape.parameters


def test_the_registry_knows_the_same_sizes():
    for name, entry in load_checkpoints().items():
        shape = shape_of(name, load_checkpoints())
        assert shape.parameters == entry.parameters
        assert entry.bytes >= 0.98 * shape.weights  # bf16, or more
    with pytest.raises(UserError, match="nothing is known about the size of 'nobody/nothing'"):
        shape_of("nobody/nothing", {})


def test_decoding_is_bound_by_reading_or_by_computing():
    """7B on an H100. 256 completions with 700 tokens in the cache: 15.2 + 10.3 GB at 3.35 TB/s are 7.6 ms a step."""
    seven = costs.QWEN_7B
    exact = Assumptions(decode_efficiency=Range(1, 1))
    step = (15_231_233_024 + 256 * 700 * 57_344) / 3.35e12
    assert costs.decode_rate(seven, H100, 256, 700, exact).low == pytest.approx(256 / step)
    assert 30_000 < 256 / step < 36_000
    many = costs.decode_rate(seven, H100, 4096, 1, exact).low  # 2 operations per parameter and token at 989 TFLOP/s
    assert many == pytest.approx(989e12 / (2 * 7_615_616_512))
    given = Assumptions(tokens_per_second=1000.0)
    assert costs.decode_rate(seven, H100, 256, 700, given, gpus=2) == Range(2000, 2000)


def test_what_fits_on_a_gpu():
    """0.8 x 80 - 2 GB - 15.2 GB leave 46.8 GB: 199 completions of 4,096 tokens; an A10 of 24 GB needs a second one."""
    seven, assumed = costs.QWEN_7B, Assumptions()
    assert costs.concurrency(seven, H100, 4096, assumed) == int((62e9 - seven.weights) / (57_344 * 4096)) == 199
    assert costs.concurrency(seven, costs.GPUS["a10"], 4096, assumed) == 8
    assert costs.gpus_needed(seven, H100, 4096, assumed) == 1
    assert costs.gpus_needed(seven, costs.GPUS["a10"], 131_072, assumed) == 2
    assert costs.gpus_needed(dataclasses.replace(seven, parameters=70_000_000_000), H100, 4096, assumed) == 4


def test_a_given_rate_makes_the_hours_of_an_evaluation():
    """1,000 completions of 3,600 tokens at 1,000 a second are an hour; prompts of no length cost nothing."""
    assumed = Assumptions(tokens_per_second=1000.0)
    hours = costs.evaluation_hours(costs.QWEN_7B, H100, 1000, Range.of(0), Range.of(3600), assumed)
    assert (hours.low, hours.high) == pytest.approx((1.0, 1.0))
    prompts = costs.evaluation_hours(costs.QWEN_7B, H100, 1000, Range.of(500), Range.of(3600), assumed)
    reading = 1000 * 500 * 2 * 7_615_616_512 / 989e12 / 3600
    assert (prompts.low, prompts.high) == pytest.approx((1 + reading / 0.5, 1 + reading / 0.3))


def test_the_update_is_eight_operations_per_parameter_and_token():
    """Table 1's GRPO row: 117 steps of 512 completions, reference model: 8 + 2 operations; all groups in the loss."""
    exact = Assumptions(
        training_efficiency=Range(1, 1),
        completion_share=Range(0.5, 0.5),
        step_seconds=Range.of(1e-9),
        valid_share=Range(0.5, 0.5),
    )
    work = work_of(load_recipe("table1_grpo", scale="paper"), exact)
    work = dataclasses.replace(work, prompt_tokens=Range.of(288))
    assert (work.steps, work.completions_per_step, work.reference_model, work.valid_share) == (
        117,
        512,
        True,
        Range(1, 1),
    )
    cost = costs.training_cost(costs.QWEN_7B, H100, work, "transformers", exact)
    tokens = 117 * 512 * (288 + 512)
    assert cost.trained_tokens == Range(tokens, tokens)
    assert cost.update_hours.low == pytest.approx(10 * 7_615_616_512 * tokens / 989e12 / 3600, rel=1e-6)
    ours = dataclasses.replace(work_of(load_recipe("table1_gpg", scale="paper"), exact), prompt_tokens=Range.of(288))
    half = costs.training_cost(costs.QWEN_7B, H100, ours, "transformers", exact)
    assert half.trained_tokens.high == tokens / 2  # groups without a signal are left out
    assert half.trained_tokens.low == 117 * 256 * (36 + 512)  # and a prompt goes through once for eight completions
    assert half.update_hours.high == pytest.approx(8 / 10 / 2 * cost.update_hours.high, rel=1e-6)


def test_generate_takes_a_step_a_token_and_vllm_less():
    assumed = Assumptions(generate_token_seconds=Range(0.03, 0.03))
    work = work_of(load_recipe("table3_gpg_rs1", scale="paper"), assumed)
    slow = costs.training_cost(costs.DISTILL_1_5B, H100, work, "transformers", assumed).generate_hours
    assert slow.high == pytest.approx(100 * 3584 * 0.03 * 16 / 3600)  # 47.8 GPU-hours
    assert slow.low == pytest.approx(0.7 * slow.high)
    assert costs.training_cost(costs.DISTILL_1_5B, H100, work, "vllm", assumed).generate_hours.high < slow.low


@pytest.mark.parametrize(
    ("beta_th", "draws"), [(0.0, Range(1, 1)), (0.4, Range(1, 2)), (0.6, Range(1, 3)), (0.8, Range(2, 4))]
)
def test_draws_follow_the_papers_alpha(beta_th, draws):
    """alpha of 1.5 to 4.0 means that 0.67 to 0.25 of the groups are valid."""
    assert costs.num_draws(beta_th, 20, Range(0.25, 0.67)) == draws
    assert costs.num_draws(beta_th, 1, Range(0.25, 0.67)) == Range(1, 1)


def test_training_memory_by_strategy():
    """7B on 8 processes: 16 bytes a parameter and 2 to compute with under ddp; 2 + 14/8 under zero2; a reference model
    as the policy's weights are stored."""
    n = 7_615_616_512
    work = work_of(load_recipe("table1_gpg", scale="paper"), Assumptions())
    need = {s: costs.training_memory(costs.QWEN_7B, work, 16, s).low for s in costs.STRATEGIES}
    activations = need["ddp"] - 18 * n
    assert need["zero2"] - activations == pytest.approx(n * (2 + 14 / 8))
    assert need["zero3"] < need["zero2"] < need["ddp"]
    kl = dataclasses.replace(work, reference_model=True)
    for strategy, stored in (("zero2", 2), ("ddp", 4)):
        assert costs.training_memory(costs.QWEN_7B, kl, 16, strategy).low - need[strategy] == stored * n


def test_work_is_read_off_the_recipe():
    """GPG-7B of Appendix B.1: 1,100 steps of 144 x 8, beta_th 0.6; RS1's reward is continuous, so its groups count."""
    work = work_of(load_recipe("table4_gpg_paper", scale="paper"), Assumptions())
    assert (work.steps, work.completions_per_step, work.generations, work.processes) == (1100, 1152, 8, 48)
    assert work.draws == Range(1, 3) and work.valid_share == Range(0.6, 0.67)
    rs1 = work_of(load_recipe("table3_gpg_rs1", scale="paper"), Assumptions())
    assert (rs1.completions_per_step, rs1.draws, rs1.valid_share) == (384, Range(1, 1), Range(0.9, 1.0))


# --- Plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", [*TABLES, "2", "9", "figure1", "figure2", "figure3", "figure4"])
def test_everything_can_be_planned_at_every_scale(name, scale):
    plan = build_plan(name, scale)
    assert plan.scale == scale and (plan.gpu is None) == (scale != "paper")
    assert bool(plan.note) == (not plan.trainings and not plan.evaluations)
    for job in (*plan.evaluations, *plan.trainings):
        assert 0 <= job.hours_remaining.low <= job.hours_remaining.high < math.inf
        assert job.hours_remaining == job.hours  # nothing is done
    text = plan_text.as_text(plan)
    assert text.startswith(plan.name) and ("ESTIMATES" in text) == (scale == "paper" and not plan.note)
    assert json.loads(json.dumps(plan_text.as_json(plan)))["hours"]["high"] == plan.hours.high


def test_table_3_counts_what_it_asks():
    """30 + 500 + 40 + 272 + 675 problems; 16 samples of the small two, 4 of the others."""
    plan = build_plan("table3")
    assert len(plan.evaluations) == 7 and len(plan.trainings) == 2  # five checkpoints of the hub, two recipes
    for evaluation in plan.evaluations:
        assert sum(m.items for m in evaluation.measurements) == 1_517
        assert sum(m.completions for m in evaluation.measurements) == 16 * (30 + 40) + 4 * (500 + 272 + 675) == 6_908
    single = build_plan("table3", samples="1")
    assert {sum(m.completions for m in e.measurements) for e in single.evaluations} == {1_517}
    assert single.hours.low < plan.hours.low and single.hours.high < plan.hours.high
    assert {t.recipe for t in plan.trainings} == {"table3_gpg_rs3", "table3_gpg_age_rs1"}
    assert plan.downloads.keys() >= {"GD-ML/Open-RS1", "knoveleng/Open-RS3"} and len(plan.downloads) == 5


def test_revisions_are_those_of_the_table_or_the_registry():
    base = build_plan("table1").evaluations[0]
    assert (base.model, base.revision) == ("Qwen/Qwen2.5-Math-7B", load_checkpoints()["Qwen/Qwen2.5-Math-7B"].revision)


def test_visual_tables_need_pictures_and_name_what_has_no_paper_scale():
    plan = build_plan("table8")
    assert any(line.startswith("SFT: printed only") for line in plan.unmeasured)
    assert plan.data["lisa"].startswith("to be fetched by hand")
    (lisa,) = plan.evaluations[0].measurements
    assert lisa.items == 979 and lisa.prompt_tokens.high > 1_300 and lisa.completion_tokens.high <= 128


def test_a_recipe_whose_alpha_comes_from_another_run_brings_that_run(monkeypatch):
    monkeypatch.setattr("gpg_repro.plan._figure_recipes", lambda: {"figure2": ("control_mean_clipped",)})
    assert [t.recipe for t in build_plan("figure2").trainings] == ["table1_gpg_age", "control_mean_clipped"]


def test_a_training_that_several_rows_need_is_planned_once():
    recipes = [t.recipe for t in build_plan("control").trainings]
    assert "table1_gpg_age" in recipes and len(recipes) == len(set(recipes))


def test_figures_need_trainings_and_no_evaluation():
    plan = build_plan("figure4")
    assert [t.recipe for t in plan.trainings] == ["table3_gpg_rs1", "table3_grpo_rs1"] and not plan.evaluations


def test_the_recipes_of_the_figures_are_theirs():
    from gpg_repro.figures import figure_2, figure_4

    assert [t.recipe for t in build_plan("figure2").trainings] == [figure_2.RECIPE]
    assert [t.recipe for t in build_plan("figure4").trainings] == list(figure_4.RECIPES.values())


def test_a_better_gpu_costs_no_more_and_vllm_no_more_than_generate():
    hours = {gpu: build_plan("table1", gpu=gpu).hours.high for gpu in ("a100", "h100", "b200")}
    assert hours["a100"] > hours["h100"] > hours["b200"]
    by_vllm = build_plan("table1", generation="vllm")
    assert by_vllm.hours.high < build_plan("table1").hours.high
    assert "--strategy zero2 --vllm colocate" in plan_text.as_text(by_vllm)


def test_a_training_by_vllm_is_the_recipes(tmp_path):
    """vLLM draws the same completions faster; other settings than the recipe's make another run."""
    runs = tmp_path / "results" / "runs"
    train_folder(runs, load_recipe("table3_gpg_rs3", ["use_vllm=true", "learning_rate=0.1"], scale="paper"))
    assert build_plan("table3").trainings[0].state == "not started"
    shutil.rmtree(runs)
    train_folder(runs, load_recipe("table3_gpg_rs3", ["use_vllm=true"], scale="paper"))
    assert build_plan("table3").trainings[0].state.startswith("finished")


def test_given_lengths_and_prompts_at_hand_are_taken(own_data_root):
    plan = build_plan("table3", completion_tokens={"aime24": 9_000}, data_root=own_data_root)
    aime, math500 = (
        next(m for m in plan.evaluations[0].measurements if m.benchmark == n) for n in ("aime24", "math500")
    )
    assert (aime.completion_tokens, aime.completions_known) == (Range(9_000, 9_000), "given")
    assert math500.completions_known == "assumed" and math500.prompts_counted == "characters of its prompts"
    characters = sum(len(item.prompt) for item in get_benchmark("aime24").load(own_data_root)) / 30
    assert abs(characters - costs.PROMPT_CHARACTERS["aime24"]) > 100  # not the assumption
    assert aime.prompt_tokens.low == pytest.approx(characters / 3.5 + 30, abs=1)


@pytest.mark.real_data("length of AIME's prompts", "aime_2024.jsonl")
def test_the_assumed_length_is_that_of_the_real_prompts(data_root):
    assert sum(len(item.prompt) for item in get_benchmark("aime24").load(data_root)) / 30 == pytest.approx(664.2, abs=1)
    assert costs.PROMPT_CHARACTERS["aime24"] == pytest.approx(664.2, abs=1)


def test_prompts_are_counted_by_a_tokenizer_that_is_at_hand(own_data_root, random_checkpoint, monkeypatch):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(random_checkpoint)
    monkeypatch.setattr("gpg_repro.plan.local_tokenizer", lambda model, revision: tokenizer)
    found = build_plan("table3", data_root=own_data_root).evaluations[0].measurements[0]
    prompts = [item.prompt for item in get_benchmark("aime24").load(own_data_root)]
    mean = sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts) / 30
    assert found.prompts_counted == "its prompts, by the tokenizer" and found.prompt_tokens == Range.of(mean + 30)


def test_a_completion_is_never_longer_than_the_context_leaves():
    plan = build_plan("table1", completion_tokens={"": 100_000})
    for m in (m for e in plan.evaluations for m in e.measurements):
        assert m.completion_tokens.high + m.prompt_tokens.low <= 4_096 + 1


# --- What is done already --------------------------------------------------------------------------------------------


def finish_evaluation(
    folder, benchmarks, decodings, settings, lines=None, revision=None, status="finished", limit=None
):
    """An evaluation's folder as the harness leaves it, as far as the planner reads it."""
    results = {}
    for name in benchmarks:
        benchmark, decoding = get_benchmark(name), decodings[name]
        count = lines if lines is not None else benchmark.num_items * decoding.samples
        path = folder / "samples" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n" * count)
        results[name] = {
            "version": benchmark.version,
            "source": "test",
            "prompts_hash": "0",
            "decoding": decoding,
            "num_items": benchmark.num_items,
            "asked": count,
            "scored": count,
            "failed": 0,
            "score": None,
            "score_strict": None,
            "num_gold_fallback": 0,
            "num_truncated": 0,
            "num_no_answer": 0,
            "num_timeout": 0,
            "mean_completion_tokens": 1234.0,
        }
    record = RunRecord(
        run_id=folder.name,
        fingerprint="0",
        status=status,
        created=records.now(),
        finished=records.now(),
        model={"name": "x", "revision": revision, "weights": None},
        engine={"name": "vllm"},
        settings={
            "limit": limit,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "chat_template": settings.template,
        },
        benchmarks=results if status == "finished" else {},
        average=None,
        timings={},
        environment={},
    )
    records.write_json(folder / "run.json", record)


def evaluated(root, plan: Plan, row: int, **changes) -> None:
    """A folder of a run that is the planned one of a row, but for the changes."""
    evaluation = plan.evaluations[row]
    entry = load_checkpoints()[evaluation.model]
    settings = entry.settings_of(evaluation.variant)
    names = changes.pop("names", [m.benchmark for m in evaluation.measurements])
    overrides = Overrides(samples=parse_samples(plan.samples))
    decodings = {name: decoding_of(get_benchmark(name), overrides, settings.decoding) for name in names}
    if "samples" in changes:
        count = changes.pop("samples")
        decodings = {name: d.model_copy(update={"samples": count}) for name, d in decodings.items()}
    settings = settings.model_copy(update=changes.pop("settings", {}))
    label = changes.pop("label", entry.label + (f"-{evaluation.variant}" if evaluation.variant else ""))
    changes.setdefault("revision", entry.revision)
    finish_evaluation(root / f"eval-{label}-vllm-0a1b2c3d", names, decodings, settings, **changes)


def train_folder(root, recipe, steps=None):
    """A finished training of a recipe, or one that saved ``steps``."""
    folder = root / f"train-{recipe.name}-{recipe.scale}-seed{recipe.seed}-00000000"
    (folder / "checkpoint").mkdir(parents=True) if steps is None else None
    if steps is not None:
        (folder / "trainer" / f"checkpoint-{steps}").mkdir(parents=True)
        (folder / "trainer" / f"checkpoint-{steps}" / "complete").touch()
    record = TrainingRecord(
        run_id=folder.name,
        fingerprint="0",
        status="finished" if steps is None else "running",
        created=records.now(),
        finished=records.now() if steps is None else None,
        recipe=recipe.model_dump(),
        base={},
        checkpoint="checkpoint",
        num_steps=0,
        timings={},
        environment={},
    )
    records.write_json(folder / "run.json", record)
    return folder


def test_what_is_measured_is_not_planned_again(tmp_path):
    before = build_plan("table3")
    row = next(i for i, e in enumerate(before.evaluations) if e.model == "GD-ML/Open-RS1")
    evaluated(tmp_path / "results" / "runs", before, row)
    plan = build_plan("table3")
    done = plan.evaluations[row]
    assert done.finished and done.state == "finished" and done.hours_remaining == Range(0, 0)
    assert {m.completions_known for m in done.measurements} == {"recorded"}
    assert plan.hours_remaining.high < before.hours_remaining.high
    assert "GD-ML/Open-RS1" not in plan.downloads and "GD-ML/Open-RS1" in before.downloads


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 2},
        {"limit": 5},
        {"revision": "f" * 40},
        {"settings": {"max_model_len": 2048}},
        {"settings": {"chat_template": "none"}},
        {"label": "Qwen--Qwen2.5-Math-7B-no-template"},
        {"label": "Qwen--Qwen2.5-Math-7B-Instruct"},
    ],
    ids=str,
)
def test_a_run_of_another_model_or_other_settings_does_not_count(tmp_path, changes):
    before = build_plan("table1")
    assert before.evaluations[0].model == "Qwen/Qwen2.5-Math-7B"
    evaluated(tmp_path / "results" / "runs", before, 0, **changes)
    assert build_plan("table1").evaluations[0].state == "not started"


def test_a_run_of_an_older_benchmark_does_not_count(tmp_path):
    evaluated(tmp_path / "results" / "runs", build_plan("table1"), 0)
    (path,) = (tmp_path / "results" / "runs").glob("eval-*/run.json")
    assert build_plan("table1").evaluations[0].finished
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    assert build_plan("table1").evaluations[0].state == "not started"


def test_an_interrupted_evaluation_counts_its_lines(tmp_path):
    before = build_plan("table3", samples="1")
    evaluated(tmp_path / "results" / "runs", before, 0, names=["aime24", "amc23"], lines=20, status="running")
    after = build_plan("table3", samples="1").evaluations[0]
    assert after.state == "40 completions done" and not after.finished
    aime, amc = (next(m for m in after.measurements if m.benchmark == name) for name in ("aime24", "amc23"))
    assert (aime.done, aime.remaining) == (20, 10)
    saved = after.hours.high - after.hours_remaining.high
    assert saved == pytest.approx(aime.hours.high * 20 / 30 + amc.hours.high * 20 / 40)


def test_table_4_measures_a_model_once_under_each_of_its_settings():
    """Two printed rows of one model are one evaluation; a variant is another. 1,517 problems and the 83 of the other
    AMC set, greedy, so one sample each; the checkpoint that was published needs no training."""
    plan = build_plan("table4")
    rows = {e.row: e for e in plan.evaluations}
    assert "Oat-Zero-7B; Oat-Zero-7B †" in rows
    assert [(e.model, e.variant) for e in plan.evaluations if e.model == "Qwen/Qwen2.5-Math-7B"] == [
        ("Qwen/Qwen2.5-Math-7B", None),
        ("Qwen/Qwen2.5-Math-7B", "no-template"),
    ]
    assert {sum(m.completions for m in e.measurements) for e in plan.evaluations} == {1_517 + 83}
    assert [t.recipe for t in plan.trainings] == ["table4_gpg_paper"]
    assert [line.split(":")[0] for line in plan.unmeasured] == ["rStar-Math-7B"]
    assert plan.trainings[0].cost.generated_tokens.low > 1100 * 1152 * 2048 * 0.4 - 1  # a billion


def test_trainings_are_finished_half_done_or_to_be_made(tmp_path):
    root = tmp_path / "results" / "runs"
    before = build_plan("table3")
    train_folder(root, load_recipe("table3_gpg_rs3", scale="paper"))
    train_folder(root, load_recipe("table3_gpg_age_rs1", scale="paper"), steps=50)
    plan = build_plan("table3")
    rs3, age = plan.trainings
    assert (rs3.steps_done, rs3.hours_remaining) == (50, Range(0, 0)) and rs3.state.startswith("finished")
    assert age.state == "50 of 100 steps saved" and age.hours_remaining == age.hours * 0.5
    states = {e.model: e.state for e in plan.evaluations if e.trained}
    assert states == {"table3_gpg_rs3": "not started", "table3_gpg_age_rs1": "needs its training"}
    kept = "checkpoints that stay"
    final = costs.DISTILL_1_5B.weights
    assert (before.disk[kept].low, plan.disk[kept].low) == (3 * final, 2 * final)  # RS1's recipe keeps steps 50 and 100
    assert "launch table3_gpg_rs3" not in plan_text.as_text(plan) and "launch table3_gpg_age_rs1" in plan_text.as_text(
        plan
    )


def test_a_damaged_record_is_named_and_left_out(tmp_path):
    folder = tmp_path / "results" / "runs" / "eval-GD-ML--Open-RS1-vllm"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    plan = build_plan("table3")
    assert any("is not valid JSON" in warning for warning in plan.warnings)
    assert "warning: left out" in plan_text.as_text(plan)


def test_a_damaged_training_is_named_and_left_out(tmp_path):
    folder = train_folder(tmp_path / "results" / "runs", load_recipe("table3_gpg_rs3", scale="paper"))
    (folder / "run.json").write_text("{")
    plan = build_plan("table3")
    assert plan.trainings[0].state == "not started" and any("is not valid JSON" in w for w in plan.warnings)


def test_data_that_cannot_be_read_costs_its_count_alone(tmp_path):
    plan = build_plan("table3", data_root=tmp_path)
    assert len(plan.warnings) == 5 and all("were not counted" in warning for warning in plan.warnings)
    assert {m.prompts_counted for m in plan.evaluations[0].measurements} == {"characters as counted for this project"}


def test_models_in_the_cache_need_no_download(monkeypatch):
    monkeypatch.setattr("gpg_repro.plan.cached_bytes", lambda: {"GD-ML/Open-RS1": 3.6e9, "knoveleng/Open-RS3": 1e9})
    plan = build_plan("table3")
    size, there = plan.downloads["GD-ML/Open-RS1"]
    assert size == there and plan.downloads["knoveleng/Open-RS3"][1] == 1e9
    assert plan.disk["models to download"].low == pytest.approx(sum(s - t for s, t in plan.downloads.values()))
    assert "GD-ML/Open-RS1                             3.6 GB  in the cache" in plan_text.as_text(plan)


# --- Recorded times --------------------------------------------------------------------------------------------------


def test_tiny_times_are_those_of_the_committed_records():
    plan = build_plan("table3", "tiny")
    (rs1,) = (t for t in plan.trainings if t.recipe == "table3_gpg_rs1")
    runs = [records.read_run(p.parent) for p in (REFERENCE / "tiny" / "table3_gpg_rs1").glob("seed*/training/run.json")]
    hours = sorted(sum(run.timings.values()) / 3600 for run in runs)
    assert len(hours) == 3 and (rs1.recorded.low, rs1.recorded.high) == (hours[0], hours[-1])
    assert not plan.warnings and plan.hours.low > 0.1  # README: about eleven minutes


def test_times_that_nobody_recorded_are_said_to_be_missing():
    plan = build_plan("table3", "smoke")
    (warning,) = plan.warnings
    assert warning.startswith("smoke scale: no time recorded, counted as nothing: ") and "table3_gpg_rs1" in warning
    assert "never recorded" in plan_text.as_text(plan)


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_text_or_json(capsys):
    assert main(["plan", "03", "--samples", "1"]) == 0
    text = capsys.readouterr().out
    for piece in (
        "ESTIMATES for NVIDIA H100",
        "1,517 items",
        "GPU-hours left",
        "decode_efficiency",
        "reproduce-table3",
    ):
        assert piece in text, piece
    assert main(["plan", "03", "--samples", "1", "--json", "--gpu", "A100", "--assume", "step_seconds=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimates"] is True and found["gpu"]["name"] == "a100"
    assert found["assumptions"]["step_seconds"] == {"low": 2.0, "high": 2.0}
    assert [m["completions"] for m in found["evaluations"][0]["measurements"]] == [30, 500, 40, 272, 675]


def test_the_command_says_what_is_wrong(capsys):
    assert main(["plan", "tabel3"]) == 2
    assert "error: unknown table or figure 'tabel3'; did you mean 'table3'?" in capsys.readouterr().err
    assert main(["plan", "3", "--tokens-per-second", "0"]) == 2
    assert "tokens_per_second=0.0" in capsys.readouterr().err


def test_make_plans_at_paper_scale_unless_another_is_asked_for():
    handed_down = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "SCALE", "ENGINE", "SEEDS", "DEVICE")
    clean = {name: value for name, value in os.environ.items() if name not in handed_down}

    def make(*arguments, **variables):
        command = ["make", "--dry-run", "plan", *arguments]
        return subprocess.run(command, cwd=ROOT, env=clean | variables, capture_output=True, text=True, timeout=60)

    assert "plan 'table4' --scale 'paper'" in make("TABLE=table4").stdout
    assert "--scale 'tiny' --gpu a100" in make("TABLE=4", "SCALE=tiny", "ARGS=--gpu a100").stdout
    assert "--scale 'smoke'" in make("TABLE=4", SCALE="smoke").stdout
    refused = make()
    assert refused.returncode != 0 and "plan needs TABLE" in refused.stderr
