"""GPG on image rows: exact gradients under 1 and 2 processes, with skipping and resampling; run as a script, this file
is the worker. Gradients are compared in float64 with the mean over valid groups, worked out row by row.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

from datasets import Dataset
from PIL import Image
from scripted import Float64Trainer
from test_distributed import relative_difference
from transformers import TrainerCallback
from transformers.models.qwen2_vl import modeling_qwen2_vl

from gpg_repro.tiny.vision_model import build_processor, build_vision_model
from gpg_repro.trainer import GPGConfig

pytestmark = pytest.mark.full("processes that train")
NUM_GENERATIONS = 2
SIZES = [(56, 56), (112, 56), (84, 84), (112, 112)]
PATCHES = [(w // 14) * (h // 14) for w, h in SIZES]

# Two draws of four groups; the first has too few valid ones for beta_th = 0.75, so the batch holds groups 0, 3, 5, 7.
RESAMPLED = ((0, 1), (1, 1), (0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0))
# One draw: rank 0 of two has the only valid group.
LOPSIDED = ((0, 1), (1, 1), (0, 0), (1, 1))
NOTHING = ((0, 0), (1, 1), (0, 0), (1, 1))


def picture(group: int) -> Image.Image:
    width, height = SIZES[group % len(SIZES)]
    pixels = np.random.default_rng(group).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def question(group: int) -> str:
    return f"{'what ' * (group % 3)}{group}"


def completion(tokenizer, group: int, place: int, reward: int) -> list[int]:
    letters = random.Random(100 * group + place).choices("abcdefgh", k=1 + (group + place) % 4)
    return tokenizer(f"{reward}{''.join(letters)}")["input_ids"] + [tokenizer.eos_token_id]


def first_digit(completions, **columns) -> list[float]:
    return [float(c[-1]["content"][0]) for c in completions]


def use_float64() -> None:
    """Qwen2-VL's norm and rotary embeddings compute in float32 whatever the weights are."""
    torch.Tensor.float = torch.Tensor.double

    def norm(self, hidden_states):
        return self.weight * hidden_states * torch.rsqrt(hidden_states.square().mean(-1, True) + self.variance_epsilon)

    modeling_qwen2_vl.Qwen2VLRMSNorm.forward = norm


def small_model(processor):
    return build_vision_model(
        processor.tokenizer, hidden_size=32, num_layers=1, vision_width=32, vision_depth=1, initializer_range=0.3
    )


class ScriptedTrainer(Float64Trainer):
    """Completions are given."""

    rewards: tuple = ()

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        tokenizer = self.processing_class.tokenizer
        start = self.accelerator.process_index * len(prompt_ids)
        ids = []
        for row, prompt in enumerate(prompt_ids, start=start):
            text = tokenizer.decode(prompt, skip_special_tokens=True)
            group, place = int("".join(c for c in text if c.isdigit())), row % num_generations
            ids.append(completion(tokenizer, group, place, self.rewards[group][place]))
        return ids, None


class Recorder(TrainerCallback):
    def __init__(self):
        self.gradients, self.logs, self.patches = None, [], 0

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = model.module.named_parameters() if hasattr(model, "module") else model.named_parameters()
        self.gradients = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)


def run(output_dir: Path, rewards, layout: tuple[int, int], **settings) -> tuple[Recorder, ScriptedTrainer]:
    processor, recorder = build_processor(), Recorder()
    ScriptedTrainer.rewards = rewards
    world = int(os.environ.get("WORLD_SIZE", 1))
    config = GPGConfig(
        output_dir=str(output_dir),
        share_prompt=settings.pop("share_prompt", "off"),
        max_steps=1,
        num_generations=NUM_GENERATIONS,
        per_device_train_batch_size=layout[0],
        gradient_accumulation_steps=layout[1],
        max_completion_length=8,
        shuffle_dataset=False,
        max_grad_norm=0.0,
        save_strategy="no",
        gradient_checkpointing=settings.pop("gradient_checkpointing", False),
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        **({"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if world > 1 else {}),
        **settings,
    )
    rows = [
        {"prompt": [{"role": "user", "content": question(g)}], "image": picture(g), "group": g}
        for g in range(len(rewards))
    ]
    trainer = ScriptedTrainer(
        model=small_model(processor).double(),
        reward_funcs=first_digit,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        callbacks=[recorder],
    )

    def count(module, args, kwargs):
        if module.training:  # not what asks before the first pass whether rows can be packed
            recorder.patches += int(kwargs.get("grid_thw", args[1] if len(args) > 1 else None).prod(dim=-1).sum())

    trainer.model.model.visual.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    return recorder, trainer


def expected(rewards, groups: list[int]) -> dict[str, torch.Tensor]:
    """Gradient of the mean over the given groups of Eq. 5's group token mean; no padding, no batching, no alpha."""
    processor = build_processor()
    model = small_model(processor).double()
    terms = []
    for group in groups:
        values = torch.tensor(rewards[group], dtype=torch.float64)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question(group)}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = dict(processor(text=[text], images=[picture(group)], return_tensors="pt"))
        total = tokens = 0
        for place, advantage in enumerate(values - values.mean()):
            ids = torch.tensor([completion(processor.tokenizer, group, place, int(values[place]))])
            whole = torch.cat([inputs["input_ids"], ids], dim=1)
            kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
            logits = model(
                input_ids=whole,
                pixel_values=inputs["pixel_values"].double(),
                image_grid_thw=inputs["image_grid_thw"],
                mm_token_type_ids=kinds,
            ).logits[:, inputs["input_ids"].size(1) - 1 : -1]
            total = total - advantage * logits.log_softmax(-1).gather(2, ids.unsqueeze(2)).sum()
            tokens += ids.size(1)
        terms.append(total / tokens)
    torch.stack(terms).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def worker(output_dir: Path) -> None:
    use_float64()
    world, measured = int(os.environ["WORLD_SIZE"]), {}
    rows = 8 // world
    for name, rewards, layout, kept, settings in (
        ("resampled", RESAMPLED, (rows, 1), [0, 3, 5, 7], {"beta_th": 0.75}),
        ("accumulated", RESAMPLED, (rows // 2, 2), [0, 3, 5, 7], {"beta_th": 0.75}),
        ("checkpointed", RESAMPLED, (rows // 2, 2), [0, 3, 5, 7], {"beta_th": 0.75, "gradient_checkpointing": True}),
        ("lopsided", LOPSIDED, (rows // 2, 2), [0], {}),
        ("dense", LOPSIDED, (rows, 1), [0], {"skip_invalid_groups": False}),
        ("nothing", NOTHING, (rows, 1), [], {}),
        ("shared", RESAMPLED, (rows // 2, 2), [0, 3, 5, 7], {"beta_th": 0.75, "share_prompt": "on"}),
        (
            "shared, checkpointed",
            RESAMPLED,
            (rows // 2, 2),
            [0, 3, 5, 7],
            {"beta_th": 0.75, "gradient_checkpointing": True, "share_prompt": "on"},
        ),
        ("shared, lopsided", LOPSIDED, (rows // 2, 2), [0], {"share_prompt": "on"}),
        ("shared, dense", LOPSIDED, (rows, 1), [0], {"skip_invalid_groups": False, "share_prompt": "on"}),
    ):
        recorder, trainer = run(output_dir, rewards, layout, **settings)
        patches = int(trainer.accelerator.reduce(torch.tensor(recorder.patches)))
        if trainer.accelerator.is_main_process:
            gradients = recorder.gradients
            if kept:
                error = relative_difference(gradients, expected(rewards, kept))
            else:
                error = max(g.abs().max().item() for g in gradients.values())
            log = next(log for log in recorder.logs if "alpha_applied" in log)
            measured[name] = {
                "error": error,
                "patches": patches,
                "kept": NUM_GENERATIONS * sum(PATCHES[group % len(PATCHES)] for group in kept),
                "log": {key: log[key] for key in ("num_draws", "alpha_applied", "prompts_consumed")},
                "share": log["share_prompt"],
            }
    if os.environ["RANK"] == "0":
        (output_dir / "measured.json").write_text(json.dumps(measured))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2])
def measured(request, tmp_path_factory):
    """What was measured with one and with two processes; a hang ends in the time limit."""
    output_dir = tmp_path_factory.mktemp(f"processes{request.param}")
    done = processes.launch(request.param, __file__, str(output_dir), folder=output_dir)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((output_dir / "measured.json").read_text())


def test_image_rows_have_the_exact_gradient(measured):
    wrong = {name: case["error"] for name, case in measured.items() if not case["error"] < 1e-10}
    assert not wrong
    unshared = {"resampled", "accumulated", "checkpointed", "lopsided", "dense", "nothing"}
    assert set(measured) == unshared | {f"shared{end}" for end in ("", ", checkpointed", ", lopsided", ", dense")}
    assert all(case["share"] == name.startswith("shared") for name, case in measured.items())


def test_resampling_with_images(measured):
    for name in ("resampled", "accumulated", "checkpointed", "shared", "shared, checkpointed"):
        assert measured[name]["log"] == {"num_draws": 2, "alpha_applied": 1, "prompts_consumed": 8}
    assert measured["lopsided"]["log"] == {"num_draws": 1, "alpha_applied": 4, "prompts_consumed": 4}
    assert measured["nothing"]["log"]["alpha_applied"] == 0


def test_only_images_of_valid_groups_reach_the_vision_tower(measured):
    for name in ("resampled", "accumulated", "lopsided"):
        idle = measured[name]["patches"] - measured[name]["kept"]
        assert idle == 0, (name, measured[name])
    assert measured["dense"]["patches"] == NUM_GENERATIONS * sum(PATCHES)


def test_a_group_sends_its_image_once(measured):
    for name in ("shared", "shared, lopsided"):
        assert measured[name]["patches"] in (
            measured[name]["kept"] // NUM_GENERATIONS,
            # the process without rows sends one of weight zero along
            measured[name]["kept"] // NUM_GENERATIONS + min(PATCHES),
        )
    assert measured["shared, dense"]["patches"] == sum(PATCHES)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
