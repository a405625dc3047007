"""Vision-language models take the steps that TRL takes, also where prompts have different numbers of pictures.

Run as a script on every process, this file is the worker.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import peft
import processes
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image
from scripted import QUIET, GradientRecorder
from test_distributed import relative_difference
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from gpg_repro.tiny.vision_model import build_processor, build_vision_model, build_vision_tokenizer
from gpg_repro.trainer import GPGConfig, GPGTrainer

pytestmark = pytest.mark.full("models with pictures, and processes that train")
REWARDS = ((1, 0), (0, 1), (1, 0), (0, 1), (1, 1), (0, 0))
NUM_IMAGES = (1, 2, 2, 3, 1, 1)
"""Pictures of each prompt. The last two groups have no signal; of two processes, the first hands on a group."""


def idefics3():
    """Tensors of pictures have one slot for every picture of the widest row."""
    tokenizer = build_vision_tokenizer()
    marks = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    size = {"longest_edge": 28}
    images = transformers.Idefics3ImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4)
    processor.chat_template = tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "initializer_range": 0.3}
    config = transformers.Idefics3Config(
        vision_config={"image_size": 28, "patch_size": 7, "num_hidden_layers": 1, **shared},
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer), num_hidden_layers=2, num_key_value_heads=1, pad_token_id=0, **shared
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    set_seed(0)
    return transformers.Idefics3ForConditionalGeneration(config), processor


def qwen2_vl(**kind):
    processor = build_processor()
    sizes = {"hidden_size": 32, "num_layers": 2, "vision_width": 32, "vision_depth": 1, "initializer_range": 0.3}
    return build_vision_model(processor.tokenizer, **sizes, **kind), processor


def qwen2_5_vl():
    return qwen2_vl(qwen2_5=True)


FAMILIES = {make.__name__: make for make in (idefics3, qwen2_vl, qwen2_5_vl)}


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8))


def rows() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"what {group}"}],
                "images": [picture(10 * group + n) for n in range(number)],
            }
            for group, number in enumerate(NUM_IMAGES)
        ]
    )


class Given:
    """Completions are given."""

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations=2, **kwargs):
        tokenizer, ids = self.processing_class.tokenizer, []
        for row, prompt in enumerate(prompt_ids):
            text = tokenizer.decode(prompt, skip_special_tokens=True)
            group, place = int("".join(c for c in text if c.isdigit())), row % num_generations
            letters = random.Random(100 * group + place).choices("abcdefgh", k=1 + (group + place) % 4)
            ids.append(tokenizer(f"{REWARDS[group][place]}{''.join(letters)}")["input_ids"] + [tokenizer.eos_token_id])
        return ids, None


class GivenGPG(Given, GPGTrainer):
    pass


class GivenGRPO(Given, GRPOTrainer):
    pass


def first_digit(completions, **columns) -> list[float]:
    return [float(completion[-1]["content"][0]) for completion in completions]


SAME = {
    GivenGPG: {"normalization": "batch", "f_norm": "group", "age": False},
    GivenGRPO: {"loss_type": "dapo", "beta": 0.0, "scale_rewards": "group"},
}


def train(folder: Path, trainer_class: type, family: str, batch: int, adapter: bool = False, **settings):
    """Two steps of six groups; the trainer and the gradients of each step."""
    model, processor = FAMILIES[family]()
    if adapter:
        set_seed(1)
        lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(model, lora)
    config, recorder = GPGConfig if trainer_class is GivenGPG else GRPOConfig, GradientRecorder()
    world = int(os.environ.get("WORLD_SIZE", 1))
    arguments = config(
        output_dir=str(folder),
        num_generations=2,
        per_device_train_batch_size=batch,
        max_completion_length=8,
        shuffle_dataset=False,
        max_grad_norm=0.0,
        **{"max_steps": 2, "learning_rate": 1e-2, "optim": "sgd"} | settings | SAME[trainer_class],
        **({"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if world > 1 else {}),
        **QUIET,
    )
    trainer = trainer_class(
        model=model,
        reward_funcs=first_digit,
        args=arguments,
        train_dataset=rows(),
        processing_class=processor,
        callbacks=[recorder],
    )
    trainer.train()
    return trainer, recorder.steps


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "LoRA"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_are_those_of_trl(tmp_path, family, adapter):
    trainer, ours = train(tmp_path / "ours", GivenGPG, family, 12, adapter, share_prompt="on")
    assert trainer._cannot_pack is None
    _, theirs = train(tmp_path / "theirs", GivenGRPO, family, 12, adapter)
    assert len(ours) == len(theirs) == 2
    for actual, expected in zip(ours, theirs, strict=True):
        assert relative_difference(actual, expected) < 1e-4


def worker(folder: Path) -> None:
    trainer, (gradients,) = train(folder, GivenGPG, "idefics3", 6, max_steps=1, share_prompt="on")
    if trainer.accelerator.is_main_process:
        torch.save(gradients, folder / "gradients.pt")
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history[0]))


def test_rows_of_two_processes_meet(tmp_path):
    """A group of two pictures moves to the process whose own group has three."""
    done = processes.launch(2, __file__, str(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    _, (alone,) = train(tmp_path / "alone", GivenGPG, "idefics3", 12, max_steps=1, share_prompt="on")
    assert relative_difference(torch.load(tmp_path / "gradients.pt"), alone) < 1e-5
    assert json.loads((tmp_path / "log.json").read_text())["tokens/trained"] > 0


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
