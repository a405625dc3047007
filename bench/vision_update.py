"""What an update on image prompts costs under GPG against TRL's own GRPOTrainer: time, and images sent to the model.

As ``update_step.py``, with a Qwen2-VL: both trainers live in one process on one torch thread, see the same images,
prompts, rewards and completions, and step in turn; their settings have one gradient. Rows of groups without a signal
never reach the vision tower (``patches_ratio`` counts what does). Ends in one JSON line; ``ratio`` is the update's at
alpha = 2 (lower is better).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile

import _paired as paired
import numpy as np
from _paired import Case, Workload
from datasets import Dataset
from PIL import Image
from transformers import PrinterCallback
from trl import GRPOConfig

from gpg_repro.tiny.tokenizer import CHARACTERS
from gpg_repro.tiny.vision_model import build_processor, build_vision_model
from gpg_repro.trainer import GPGConfig

TARGETS = {"alpha 1": 1.02, "alpha 2": 0.54, "alpha 4": 0.29}
WORKLOAD = Workload(longest=64, micro_batch_size=16)
"""64 completions of 64 tokens, four micro-batches."""
SIDE = 168
"""Pixels; 36 tokens per image."""


def rows_of(workload: Workload, cases: list[Case], rounds: int) -> Dataset:
    """`prompt_rows` with a picture for every prompt."""
    rows = paired.prompt_rows(workload, cases, rounds)
    kept = {
        index: np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for index in range(64)
    }
    pictures = [Image.fromarray(kept[index % 64]) for index in range(len(rows))]
    return Dataset.from_list(
        [
            {**row, "prompt": [{"role": "user", "content": row["prompt"]}], "image": picture}
            for row, picture in zip(rows, pictures, strict=True)
        ]
    )


class _Scripted:
    """Completions are a function of the prompt and the place in the group; counts the patches the update looks at."""

    patches = 0

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        tokenizer = self.processing_class.tokenizer
        letters = tokenizer.convert_tokens_to_ids(list(CHARACTERS))
        completions = []
        for number, ids in enumerate(prompt_ids):
            rng = random.Random(f"{tokenizer.decode(ids, skip_special_tokens=True)} {number % num_generations}")
            completions.append([*rng.choices(letters, k=self.args.max_completion_length - 1), tokenizer.eos_token_id])
        return completions, None

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.patches += int(kwargs["image_grid_thw"].prod(dim=-1).sum())
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


class _Ours(_Scripted, paired._OursClocked):
    pass


class _Theirs(_Scripted, paired._TheirsClocked):
    pass


def trainer_of(kind: str, workload: Workload, rows: Dataset, folder: str):
    """A clocked trainer of a random Qwen2-VL of 5 M parameters."""
    config_class, trainer_class = (GPGConfig, _Ours) if kind == "gpg" else (GRPOConfig, _Theirs)
    processor = build_processor()
    model = build_vision_model(processor.tokenizer, hidden_size=256, num_layers=6, vision_width=192, vision_depth=4)
    trainer = trainer_class(
        model=model,
        reward_funcs=paired.half_right,
        args=config_class(
            output_dir=folder,
            per_device_train_batch_size=workload.micro_batch_size,
            gradient_accumulation_steps=workload.num_rows // workload.micro_batch_size,
            num_generations=workload.num_generations,
            max_completion_length=workload.longest,
            learning_rate=0.0,
            shuffle_dataset=False,
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            **paired.SAME_MATHS[kind],
        ),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    """Measure the cases, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each case, at least 6 for an interval")
    args = parser.parse_args()
    paired.quiet()
    cases = paired.cases(WORKLOAD, (1.0, 2.0, 4.0))
    rows = rows_of(WORKLOAD, cases, args.rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: trainer_of(kind, WORKLOAD, rows, f"{folder}/{kind}") for kind in ("gpg", "grpo")}
        steps = paired.take_turns(trainers, len(cases))
    ours, theirs = (paired.by_case(steps[kind], len(cases)) for kind in ("gpg", "grpo"))
    line: dict = {"bench": "vision_update", "update": {}}
    for case, a, b in zip(cases, ours, theirs, strict=True):
        numbers = paired.ratio(a, b, "update") | {"same_gradient": paired.gradient_gap(a, b)}
        line["update"][case.name] = numbers
        print(f"update, {case.name}: {paired.shown(numbers)}, target {TARGETS[case.name]}")
    patches = trainers["gpg"].patches / trainers["grpo"].patches
    ideal = sum(case.num_valid for case in cases) / (len(cases) * WORKLOAD.num_groups)
    print(f"patches through the vision tower: {patches:.3f} of TRL's; groups with a signal: {ideal:.3f}")
    line |= {
        "ratio": line["update"]["alpha 2"]["cpu_ratio"],
        "better": "lower",
        "target": TARGETS["alpha 2"],
        "patches_ratio": round(patches, 4),
        "patches_ideal": round(ideal, 4),
        "rounds": args.rounds,
        **paired.machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
