"""What only a GPU can show: kernels, half precision, memory. `make test-gpu`, at most five minutes on one NVIDIA GPU.

Without a GPU the same tests run at toy size on the CPU, so that they are known to work. They need torch, transformers,
TRL, datasets and pytest alone: `python -m pytest --confcutdir tests/gpu tests/gpu`.

Gradients are held against those of the rows one by one in float64 on the same device. Packed rows may be as far away
as 1.5 times the rows one by one in the same dtype are, or as FLOORS says.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed
from trl.trainer.utils import add_fused_lm_head

from eval_harness.engines.base import EngineSettings, Request, Sampling
from eval_harness.engines.transformers import TransformersBackend
from gpg_repro import packed_attention
from gpg_repro.packed_attention import attention_for, log_probs
from gpg_repro.packing import collate_packed, collate_plain
from gpg_repro.tiny.tokenizer import build_tokenizer
from gpg_repro.tiny.vision_model import build_processor, build_vision_model
from gpg_repro.trainer import GPGConfig, GPGTrainer

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ROOT = Path(__file__).resolve().parents[2]
PAD, VOCABULARY = 0, 200
FLOORS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.full("the tests of a GPU, at toy size")


def random_layout(seed: int, longest: int) -> list[tuple[int, list[int]]]:
    """One to nine groups: tokens of the prompt, and of each completion."""
    draw = random.Random(seed)
    return [
        (draw.randint(1, longest), [draw.randint(1, longest // 3 + 1) for _ in range(draw.randint(1, 8))])
        for _ in range(1 + seed % 9)
    ]


LAYOUTS = {
    "equal": [(512, [64] * 8)],
    "equal, four groups": [(512, [64] * 8)] * 4,
    "one token of prompt": [(1, [5, 9, 1])],
    "no group": [(600, [64]), (1, [1]), (37, [250])],
    **{f"random {seed}": random_layout(seed, 600) for seed in range(9)},
}
if not ON_GPU:
    LAYOUTS = {"equal": [(12, [4] * 3)], "random": [(1, [5, 9, 1]), (7, [2, 3])]}


def text_model(dtype: torch.dtype, **settings) -> Qwen2ForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "initializer_range": 0.1, "pad_token_id": PAD}
    model = Qwen2ForCausalLM(Qwen2Config(**config | sizes | settings))
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model.to(DEVICE, dtype)


def text_rows(layout: list[tuple[int, list[int]]]) -> list[dict]:
    generator, rows = torch.Generator().manual_seed(1), []
    system = torch.randint(2, VOCABULARY, (3,), generator=generator)  # what all prompts begin with
    for prompt_length, lengths in layout:
        prompt = torch.randint(2, VOCABULARY, (prompt_length,), generator=generator)
        prompt[: min(3, prompt_length - 1)] = system[: min(3, prompt_length - 1)]
        for length in lengths:
            rows.append(row_of(prompt, torch.randint(2, VOCABULARY, (length,), generator=generator)))
    return rows


def row_of(prompt: torch.Tensor, completion: torch.Tensor, **more) -> dict:
    prompt, completion = prompt.to(DEVICE), completion.to(DEVICE)
    return {
        "prompt_ids": prompt,
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        **more,
    }


def vision_rows(processor, dtype: torch.dtype) -> list[dict]:
    """Groups of one picture of several sizes, three completions each."""
    rows = []
    for group, size in enumerate(((56, 56), (112, 84), (224, 224) if ON_GPU else (84, 56))):
        pixels = np.random.default_rng(group).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        content = [{"type": "image"}, {"type": "text", "text": f"what is {group}"}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = dict(processor(text=[text], images=[Image.fromarray(pixels)], return_tensors="pt"))
        for place in range(3):
            ids = torch.tensor(random.Random(10 * group + place).choices(range(20, 60), k=1 + 2 * place))
            kinds = torch.cat([inputs["mm_token_type_ids"][0], torch.zeros_like(ids)]).to(DEVICE)
            images = {key: inputs[key].to(DEVICE) for key in ("pixel_values", "image_grid_thw")}
            images["pixel_values"] = images["pixel_values"].to(dtype)
            rows.append(row_of(inputs["input_ids"][0], ids, num_images=1, mm_token_type_ids=kinds, **images))
    return rows


def gradient(model, batches: list[dict]) -> torch.Tensor:
    """Of a weighted sum of all log-probabilities, in float64, end to end."""
    masks = [batch["completion_mask"].bool().cpu() for batch in batches]
    drawn = torch.randn(sum(int(mask.sum()) for mask in masks), generator=torch.Generator().manual_seed(3))
    for batch, mask in zip(batches, masks, strict=True):
        weights = torch.zeros(mask.shape)
        weights[mask], drawn = drawn[: int(mask.sum())], drawn[int(mask.sum()) :]
        with attention_for(model, batch):
            (log_probs(model, batch)[0].double() * weights.to(DEVICE).double()).sum().backward()
    found = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def assert_as_exact(model_of, rows_of, dtype: torch.dtype) -> None:
    """Packed, shared and whole, against float64 row by row; no further away than row by row in this dtype."""
    exact = gradient(model_of(torch.float64), [collate_plain([row], PAD) for row in rows_of(torch.float64)])
    model, rows = model_of(dtype), rows_of(dtype)
    alone = gradient(model, [collate_plain([row], PAD) for row in rows])
    errors = {"row by row": float((alone - exact).norm() / exact.norm())}
    for name, share in (("shared", True), ("whole", False)):
        packed = gradient(model, [collate_packed(rows, model, PAD, share)])
        errors[name] = float((packed - exact).norm() / exact.norm())
    limit = max(1.5 * errors["row by row"], FLOORS[dtype])
    assert errors["row by row"] > 0 and max(errors.values()) <= limit, errors


DTYPES = pytest.mark.parametrize("dtype", FLOORS, ids=lambda dtype: str(dtype)[6:])


@DTYPES
@pytest.mark.parametrize("window", [None, 7], ids=["full", "sliding"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text(layout, window, dtype, monkeypatch):
    calls = []
    if packed_attention.varlen_attn is not None:
        kernel = packed_attention.varlen_attn
        monkeypatch.setattr(
            packed_attention, "varlen_attn", lambda *args, **more: calls.append(1) or kernel(*args, **more)
        )
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    assert_as_exact(lambda dtype: text_model(dtype, **sliding), lambda dtype: text_rows(LAYOUTS[layout]), dtype)
    assert bool(calls) == (ON_GPU and dtype != torch.float32), "the flash kernel in half precision, and only there"


@DTYPES
@pytest.mark.parametrize("qwen2_5", [False, True], ids=["Qwen2-VL", "Qwen2.5-VL"])
def test_pictures(qwen2_5, dtype):
    processor = build_processor()

    def model_of(dtype: torch.dtype):
        sizes = {"hidden_size": 64, "num_layers": 2, "vision_width": 32, "vision_depth": 2, "initializer_range": 0.1}
        model = build_vision_model(processor.tokenizer, qwen2_5=qwen2_5, **sizes)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        return model.to(DEVICE, dtype)

    assert_as_exact(model_of, lambda dtype: vision_rows(processor, dtype), dtype)


def trained(folder: Path, steps: int, resume: str | None = None, **settings) -> GPGTrainer:
    """A small model trained on sampled completions; rewards depend on what was sampled."""
    tokenizer = build_tokenizer()
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.save_pretrained(folder / "start")  # where a reference model comes from
    model = Qwen2ForCausalLM.from_pretrained(folder / "start", dtype=torch.float32)
    common = {
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "max_steps": steps,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not ON_GPU,
        "bf16": False,
    }
    trainer = GPGTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **columns: [float(sum(ids) % 2) for ids in completion_ids],
        args=GPGConfig(output_dir=str(folder), **common | settings),
        train_dataset=Dataset.from_list([{"prompt": f"{n} + {n + 1} ="} for n in range(40)]),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path):
    whole = trained(tmp_path / "whole", 4)
    again = trained(tmp_path / "again", 4, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.state.global_step == whole.state.global_step == 4
    for (name, mine), (_, theirs) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("share", ["on", "off"])
def test_mixed_precision_trains(tmp_path, share):
    trainer = trained(tmp_path, 2, bf16=True, gradient_checkpointing=True, share_prompt=share, beta=0.1)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2 and all(np.isfinite(float(log["grad_norm"])) and float(log["grad_norm"]) > 0 for log in logs)
    assert logs[0]["share_prompt"] == (share == "on") and trainer._cannot_pack is None


def test_the_engine_samples_what_generate_does(tmp_path):
    """Greedy, a batch of prompts of different lengths against one at a time."""
    tokenizer, model = build_tokenizer(), trained(tmp_path / "run", 1).model
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    engine = TransformersBackend(EngineSettings(str(tmp_path / "model"), dtype="float32", chat_template="none"))
    prompts = ["1 + 2 =", "1 + 2 + 3 + 4 + 5 =", "7 ="]
    for number, prompt in enumerate(prompts):
        sampling = Sampling(temperature=0, top_p=1.0, top_k=-1, max_new_tokens=8, samples=1, seed=0)
        engine.add(Request(str(number), [{"role": "user", "content": prompt}], sampling))
    results = {}
    while engine.has_unfinished():
        results |= {result.key: result for result in engine.step()}
    model.eval()
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt").to(DEVICE)
        output = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].size(1) :]
        expected = tokenizer.decode(output, skip_special_tokens=True)
        assert results[str(number)].completions[0].text == expected, results[str(number)].error


if ON_GPU:

    def test_peak_memory_of_a_shared_pass():
        """At most the part of the tokens that is left, and a tenth."""
        model = text_model(torch.bfloat16, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
        rows, peaks = text_rows([(2048, [512] * 8)]), {}
        for share in (True, False):
            batch = collate_packed(rows, model, PAD, share)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            gradient(model, [batch])
            peaks[share] = torch.cuda.max_memory_allocated() - before
        left = (2047 + 8 * 512) / (8 * 2559)
        weights = sum(p.numel() * 2 for p in model.parameters())
        assert (peaks[True] - weights) / (peaks[False] - weights) <= left + 0.1, peaks


@pytest.mark.parametrize("recipe", ["table3_gpg_rs1", "table5_gpg_r0"] if ON_GPU else ["table3_gpg_rs1"])
def test_a_recipe_trains_ten_steps(tmp_path, recipe):
    """`make reproduce-table3` begins with the first of these; it once ended in step 4 with "misaligned address"."""
    scale, steps = ("tiny", 10) if ON_GPU else ("smoke", 2)
    command = [sys.executable, "-m", "gpg_repro", "train", recipe, f"scale={scale}", f"max_steps={steps}"]
    done = subprocess.run(
        [*command, "--root", str(tmp_path), "--log-to", "none"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = tmp_path.glob("*/steps.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == steps and all(np.isfinite(line["loss"]) for line in lines)
