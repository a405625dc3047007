"""LoRA and QLoRA as recipe keys: the code way's weights, the frozen base, saved, evaluated, resumed, refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from engine_here import EngineHere
from safetensors.torch import load_file

from eval_harness import records
from eval_harness.adapters import check_checkpoint
from eval_harness.errors import UserError
from gpg_repro import launch as launch_module
from gpg_repro import train as train_module
from gpg_repro.evaluate import evaluate_run
from gpg_repro.launch import plan_launch, train_command
from gpg_repro.recipe import load_recipe
from gpg_repro.train import (
    _Recorder,
    _weights_dtype,
    adapter_arguments,
    build_trainer,
    check_recipe,
    check_targets,
    train,
    training_rows,
)
from gpg_repro.trainer import GPGConfig, GPGTrainer

peft = pytest.importorskip("peft")

NAME = "table3_gpg_age_rs1"
SHORT = ("max_steps=2", "save_steps=1", "per_device_train_batch_size=16")
LORA = ("adapter={r: 4, alpha: 12, rslora: true, target_modules: [q_proj, down_proj]}", "learning_rate=1e-3")


def smoke(*overrides: str, name: str = NAME):
    return load_recipe(name, [*SHORT, *overrides], scale="smoke")


def lengths(completions, **columns) -> list[float]:
    """Differs within a group of whatever an untrained model writes."""
    return [float(len(completion[0]["content"])) for completion in completions]


def made(trainer) -> dict[str, torch.Tensor]:
    """Trains, and returns all weights."""
    trainer.reward_funcs[:] = [lengths] * len(trainer.reward_funcs)
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


# --- The code way ----------------------------------------------------------------------------------------------------


def test_two_steps_are_those_of_the_same_adapter_in_code(random_checkpoint, tmp_path):
    recipe = smoke(*LORA)
    rows, _ = training_rows(recipe, "unused")
    ours = made(build_trainer(recipe, str(random_checkpoint), rows, tmp_path / "recipe"))
    arguments = GPGConfig(
        output_dir=str(tmp_path / "code"),
        fidelity="paper",
        normalization="group",
        max_steps=2,
        per_device_train_batch_size=16,
        num_generations=8,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        max_grad_norm=0.3,
        max_completion_length=48,
        temperature=1.0,
        top_k=0,
        seed=0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    lora = {"r": 4, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}
    theirs = made(
        GPGTrainer(
            model=str(random_checkpoint),
            reward_funcs=[lengths],
            args=arguments,
            train_dataset=rows,
            peft_config=peft.LoraConfig(**lora, task_type="CAUSAL_LM"),
        )
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    moved = {name: value for name, value in ours.items() if "lora_B" in name}  # they start at zero
    assert len(moved) == 2 * 2 and all(value.abs().max() > 0 for value in moved.values())
    base = load_file(random_checkpoint / "model.safetensors")
    frozen = {n.removeprefix("base_model.model.").replace("base_layer.", ""): v for n, v in ours.items()}
    assert all(torch.equal(frozen[name], base[name]) for name in base)


@pytest.mark.parametrize("name", ["table1_gpg", "table1_grpo", "table1_dr_grpo", "table9_dapo"])
def test_every_method_trains_the_adapter_alone(name, random_checkpoint, tmp_path):
    recipe = smoke("adapter.r=3", "learning_rate=1e-3", "max_steps=1", name=name)
    trainer = build_trainer(recipe, str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    after = made(trainer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    # seven linear layers in each of the two blocks; of the matrices that start at zero every one has moved
    assert len([n for n in after if "lora_B" in n]) == 14 == len([n for n in changed if "lora_B" in n])
    assert all("lora_" in name for name in changed)
    assert {value.shape[0] for name, value in after.items() if "lora_A" in name} == {3}
    assert trainer.ref_model is None  # with beta_kl, the base without the adapter


def test_every_setting_reaches_peft():
    settings = "adapter={r: 2, alpha: 6, dropout: 0.25, dora: true, rslora: true, target_modules: v_proj}"
    (config,) = adapter_arguments(smoke(settings)).values()
    shown = (config.r, config.lora_alpha, config.lora_dropout, config.use_dora, config.use_rslora)
    assert shown == (2, 6, 0.25, True, True) and config.target_modules == {"v_proj"}
    (config,) = adapter_arguments(smoke("adapter={}")).values()
    shown = (config.r, config.lora_alpha, config.lora_dropout, config.use_dora, config.use_rslora)
    assert shown == (16, 32, 0.0, False, False) and config.target_modules == "all-linear"
    paper = load_recipe(NAME, ["adapter.r=8"], scale="paper")
    assert adapter_arguments(paper)["peft_config"].revision == paper.setup.base_revision  # what the harness loads


def test_a_frozen_base_is_held_as_it_computes(monkeypatch):
    """PEFT holds the adapter in float32 beside it."""
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    assert [_weights_dtype(bf16, frozen=True) for bf16 in (True, False)] == ["bfloat16", "float32"]
    assert _weights_dtype(True) == "float32"


# --- 4 bit -----------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_quantisation_reaches_the_loading_of_the_base(random_checkpoint, tmp_path, monkeypatch):
    """NF4, quantised twice, computing in bfloat16; no package and no GPU needed to ask for it."""
    from transformers import Qwen2ForCausalLM

    asked = {}

    def load(model, **kwargs):
        asked.update(kwargs)
        raise Stop

    monkeypatch.setattr(Qwen2ForCausalLM, "from_pretrained", load)
    recipe = smoke("adapter.quantization=4bit")
    with pytest.raises(Stop):
        build_trainer(recipe, str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path)
    c = asked["quantization_config"]
    assert (c.load_in_4bit, c.bnb_4bit_quant_type, c.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert c.bnb_4bit_compute_dtype is torch.bfloat16
    asked.clear()
    with pytest.raises(Stop):
        build_trainer(smoke("adapter.r=4"), str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path)
    assert "quantization_config" not in asked and asked["dtype"] is torch.float32


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed here")
def test_a_base_in_four_bits_is_trained_on(random_checkpoint, tmp_path, monkeypatch):
    # a CPU with AVX512-BF16 would pack the weights for inference once they have generated
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    recipe = smoke("adapter={r: 4, quantization: 4bit}", "learning_rate=1e-3")
    trainer = build_trainer(recipe, str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path)
    assert sum(type(value).__name__ == "Params4bit" for value in trainer.model.parameters()) == 14
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    after = made(trainer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert len([n for n in changed if "lora_B" in n]) == 14 and all("lora_" in name for name in changed)


def test_what_is_missing_for_it_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(train_module, "is_bitsandbytes_available", lambda: False)
    check_recipe(smoke("adapter.r=4"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as error:
        check_recipe(smoke("adapter.quantization=4bit"))
    assert "bitsandbytes is missing or too old: `pip install -U bitsandbytes`" in str(error.value)
    assert "it needs a GPU" in str(error.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package peft is missing: `pip install 'gpg-paper-companion\[lora\]'`"):
        check_recipe(smoke("adapter.r=4"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "leaves packed 4-bit weights out of FSDP2's shards. Take ddp or zero2"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "ZeRO-3 shards 4-bit weights only in another storage type"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", None),
    ],
)
def test_strategies_that_shard_four_bits_are_refused(variable, value, message, monkeypatch):
    monkeypatch.setattr(train_module, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(variable, value)
    check_recipe(smoke("adapter.r=4"))
    recipe = smoke("adapter.quantization=4bit")
    if message is None:
        check_recipe(recipe)
    else:
        with pytest.raises(UserError, match=message):
            check_recipe(recipe)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_launch_passes_adapter_and_data_on(strategy, monkeypatch):
    data = ("dataset=openai/gsm8k", "dataset_config=main", "columns={question: question, answer: answer}")
    overrides = ("scale=paper", "adapter.r=16", "mask_truncated_completions=true", *data)
    launch = plan_launch(NAME, overrides, strategy=strategy, options=("--data-root", "copies"))
    command = train_command(launch)
    assert tuple(command[command.index(NAME) + 1 :]) == (*overrides, "--data-root", "copies")
    quantized = [*overrides, "adapter.quantization=4bit"]
    if strategy in ("ddp", "zero2"):
        plan_launch(NAME, quantized, strategy=strategy)
    else:
        with pytest.raises(UserError, match="adapter.quantization 4bit: .*Take ddp or zero2"):
            plan_launch(NAME, quantized, strategy=strategy)
    checked = []
    monkeypatch.setattr(launch_module, "refusals", lambda *args: [])
    monkeypatch.setattr(launch_module, "_run", lambda *args: 0)
    monkeypatch.setattr(train_module, "check_recipe", lambda *args: checked.append(args))
    launch_module.run_launch(launch)
    assert checked == [(launch.recipe, 16, "copies", None)]


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.rank=4"], r"unknown recipe key 'adapter.rank'.* Known in adapter: r, alpha, dropout"),
        (["adapter={rr: 4}"], "adapter.rr: unknown key; did you mean 'r'"),
        (["adapter.r=0"], "adapter.r: .*greater than or equal to 1"),
        (["adapter.dropout=1"], "adapter.dropout: .*less than 1"),
        (["adapter.target_modules=[]"], "target_modules.*at least 1 item"),
        (["adapter.quantization=8bit"], "'none' or '4bit'"),
        (["adapter=16"], "setup.adapter: "),
        (["alpha=16"], "unknown recipe key 'alpha'"),
        (["adapter.quantization=4bit", "use_vllm=true"], "packed 4-bit weights to vLLM"),
    ],
)
def test_settings_that_do_not_fit(overrides, message):
    with pytest.raises(UserError, match=message):
        smoke(*overrides)


def test_modules_that_the_base_has_not(random_checkpoint):
    recipe = smoke(f"base={random_checkpoint}", "adapter.target_modules=[q_proj, qkv_proj, proj, self_attn]")
    message = "no linear layer called qkv_proj, proj, self_attn. It has down_proj, .*q_proj, .*all-linear"
    for check in (check_recipe, lambda recipe: check_targets(recipe, str(random_checkpoint))):
        with pytest.raises(UserError, match=message):
            check(recipe)
    check_targets(smoke("adapter.target_modules=[self_attn.q_proj, o_proj]"), str(random_checkpoint))


# --- What a run is ---------------------------------------------------------------------------------------------------


def test_runs_with_and_without_are_different_ones():
    plain, lora = smoke(), smoke("adapter.r=16")
    assert plain.fingerprint("base") == smoke("adapter=null", "mask_truncated_completions=false").fingerprint("base")
    others = [lora, smoke("adapter.r=8"), smoke("adapter.quantization=4bit"), smoke("adapter.target_modules=[q_proj]")]
    others += [smoke("mask_truncated_completions=true"), plain]
    assert len({recipe.fingerprint("base") for recipe in others}) == 6
    assert lora.fingerprint("base") == smoke("adapter={}").fingerprint("base")  # 16 is what nothing said means
    recorded = json.loads(json.dumps(others[3].model_dump()))
    assert others[3].describes(recorded) and not lora.describes(recorded) and not plain.describes(recorded)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def finished(smoke_base, results) -> Path:
    """Three steps with an adapter with dropout, from the smoke base."""
    return train(long_run(), root=results / "runs", progress=False, log_to="none")


def long_run():
    return smoke("max_steps=3", "per_device_train_batch_size=64", "adapter={r: 4, dropout: 0.1}", "learning_rate=1e-2")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


TRAINS = pytest.mark.full("trains a recipe from the smoke base")


@TRAINS
def test_a_run_saves_its_adapter_and_says_so(finished, smoke_base):
    files = contents(finished / "checkpoint")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files.keys()
    assert not {"model.safetensors", "README.md", "training_args.bin"} & files.keys()
    tensors = load_file(finished / "checkpoint" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in tensors.items() if "lora_B" in name)
    run = records.read_run(finished)
    assert run.recipe["setup"]["adapter"] | {"r": 4, "dropout": 0.1} == run.recipe["setup"]["adapter"]
    names = json.loads(files["adapter_config.json"])["target_modules"]
    assert names == sorted(names) and len(names) == 14
    identity = check_checkpoint(str(finished / "checkpoint"))
    assert identity["adapter"] == {"rank": 4, "modules": len(tensors) // 2, "only_peft": []}
    assert identity["base"]["weights"] == run.base["weights"]


@TRAINS
def test_a_killed_run_ends_with_the_same_adapter(finished, tmp_path, monkeypatch):
    saved = _Recorder.on_save

    def interrupt(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        raise KeyboardInterrupt

    for _ in range(2):  # after the first save, and after the second
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(_Recorder, "on_save", interrupt)
            train(long_run(), root=tmp_path, progress=False, log_to="none")
    cut = train(long_run(), root=tmp_path, progress=False, log_to="none")
    assert contents(cut / "checkpoint") == contents(finished / "checkpoint")
    columns = ["step", "reward", "loss", "prompts_consumed"]
    assert records.steps_frame(cut)[columns].equals(records.steps_frame(finished)[columns])


@TRAINS
def test_every_adapter_of_a_run_is_evaluated(finished, results, monkeypatch):
    monkeypatch.setattr("eval_harness.runner.EngineProcess", EngineHere)
    curve = evaluate_run(finished, ["tiny_sums"], limit=2, results=results, progress=False)
    assert [m.checkpoint.step for m in curve.measured] == [0, 1, 2, 3]
    runs = [records.read_run(m.folder) for m in curve.measured]
    assert [run.model.get("adapter", {}).get("rank") for run in runs] == [None, 4, 4, 4]
    assert len({run.model["weights"] for run in runs}) == 4
    assert all(run.model["base"]["weights"] == runs[0].model["weights"] for run in runs[1:])


@pytest.mark.full("trains recipes with images")
@pytest.mark.parametrize("name", ["table8_gpg_r2", "table6_pets37_sft"])
def test_a_model_with_images_trains_an_adapter(name, base_of, tmp_path):
    recipe = load_recipe(name, ["adapter.r=4", "max_steps=1", "max_draws=2", "learning_rate=1e-2"], scale="smoke")
    base_of(recipe.setup.base)
    run = train(recipe, root=tmp_path, progress=False, log_to="none")
    tensors = load_file(run / "checkpoint" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in tensors.items() if "lora_B" in name)
    identity = check_checkpoint(str(run / "checkpoint"))
    assert identity["vision"] and identity["adapter"]["modules"] == len(tensors) // 2


# --- Masking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [False, True])
def test_a_group_that_is_cut_off_trains_nothing_when_masked(mask, random_checkpoint, tmp_path):
    """Two groups with unlike rewards, of which one never ends: alpha is 2 / 2, masked 2 / 1."""
    recipe = smoke("max_steps=1", f"mask_truncated_completions={mask}")
    trainer = build_trainer(recipe, str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path)
    assert trainer.args.mask_truncated_completions is mask
    tokenizer = trainer.processing_class

    def rollout(prompts, trainer):
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        written = [tokenizer("1" * (i + 1))["input_ids"] for i in range(len(prompts))]
        ended = [[*w, tokenizer.eos_token_id] if i >= 8 else w for i, w in enumerate(written)]
        return {"prompt_ids": ids, "completion_ids": ended, "logprobs": None}

    trainer.rollout_func = rollout
    made(trainer)
    (log,) = [log for log in trainer.state.log_history if "alpha" in log]
    assert (log["alpha_applied"], log["num_groups"], log["num_valid_groups"]) == ((2, 2, 1) if mask else (1, 2, 2))


@pytest.mark.parametrize("name", ["table1_grpo", "table9_dapo"])
def test_masking_reaches_the_rivals(name, random_checkpoint, tmp_path):
    recipe = smoke("mask_truncated_completions=true", name=name)
    trainer = build_trainer(recipe, str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path)
    assert trainer.mask_truncated_completions is True


def test_masking_means_nothing_to_sft():
    with pytest.raises(UserError, match="method sft .*leave mask_truncated_completions out"):
        load_recipe("table6_pets37_sft", ["mask_truncated_completions=true"], scale="smoke")
