"""What an update on image prompts costs under GPG against TRL's own GRPOTrainer: time, and images sent to the model.

As ``update_step.py``, with a Qwen2-VL: both trainers live in one process on one torch thread, see the same images,
prompts, rewards and completions, and step in turn; their settings have one gradient. Rows of groups without a signal
never reach the vision tower, those of the others send it their image once (``patches_ratio`` counts). Ends in one JSON
line; ``ratio`` is the update's at alpha = 2 (lower is better). ``update_step.py --only sharing`` has longer prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import _paired as paired
import numpy as np
import torch
from _paired import Case, Workload
from datasets import Dataset
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from gpg_repro.tiny.tokenizer import CHARACTERS
from gpg_repro.tiny.vision_model import (
    CONTEXT,
    PATCH,
    VISION_TOKENS,
    build_processor,
    build_vision_model,
    build_vision_tokenizer,
)

TARGETS = {"alpha 1": 1.02, "alpha 2": 0.54, "alpha 4": 0.29}
FRAME_TOKENS = 5
"""Tokens of a prompt that are neither image nor text: of its user, around its image, and the model's turn."""


@dataclass(frozen=True)
class VisionWorkload(Workload):
    """A Qwen2-VL; every prompt is one image and as much text as makes `prompt_tokens`."""

    longest: int = 64
    prompt_tokens: int = 57
    image_side: int = 168  # pixels, a multiple of 28
    vision_width: int = 192
    vision_depth: int = 4
    vision_heads: int = 6

    @property
    def text_tokens(self) -> int:
        """Tokens of a prompt's text."""
        return self.prompt_tokens - (self.image_side // (2 * PATCH)) ** 2 - FRAME_TOKENS


PROTOTYPE = VisionWorkload()
"""On a CPU: 5 M parameters, 64 completions of 64 tokens, four micro-batches, 36 tokens per image."""
_STEP = {name: getattr(PROTOTYPE, name) for name in ("micro_batch_size", "prompt_tokens", "longest", "shortest")}
QWEN2_VL_2B = VisionWorkload(
    **asdict(paired.QWEN_1_5B) | _STEP,  # the language model is of that shape
    vision_width=1280,
    vision_depth=32,
    vision_heads=16,
)
"""For a GPU: the shape of Qwen2-VL-2B."""


def random_model(workload: VisionWorkload) -> Qwen2VLForConditionalGeneration:
    """The workload's model: the tiny world's where no vocabulary is given, else in the proportions of Qwen2-VL-2B."""
    tokenizer = build_vision_tokenizer()
    if workload.vocab_size is None:
        sizes = {"vision_width": workload.vision_width, "vision_depth": workload.vision_depth}
        return build_vision_model(tokenizer, workload.hidden_size, workload.num_layers, **sizes)
    quarter = workload.hidden_size // workload.num_heads // 8  # of a head's rotary frequencies
    text = {
        "vocab_size": workload.vocab_size,
        "hidden_size": workload.hidden_size,
        "intermediate_size": workload.intermediate_size,
        "num_hidden_layers": workload.num_layers,
        "num_attention_heads": workload.num_heads,
        "num_key_value_heads": workload.num_kv_heads,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [quarter, 3 * quarter // 2, 3 * quarter // 2],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {
        "embed_dim": workload.vision_width,
        "hidden_size": workload.hidden_size,
        "depth": workload.vision_depth,
        "num_heads": workload.vision_heads,
        "patch_size": PATCH,
    }
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    special = dict(zip(names, tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)), strict=True))
    with paired.fixed_weights():
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
        )
    return model.to(getattr(torch, workload.dtype))


def prompt_rows(workload: VisionWorkload, case_list: Sequence[Case], rounds: int) -> Dataset:
    """As `_paired.prompt_rows`, with a picture for every prompt."""
    rows = paired.prompt_rows(replace(workload, prompt_tokens=workload.text_tokens), case_list, rounds)
    shape = (workload.image_side, workload.image_side, 3)
    kept = [np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8) for index in range(64)]
    pictures = [Image.fromarray(kept[index % 64]) for index in range(len(rows))]
    return Dataset.from_list(
        [
            {**row, "prompt": [{"role": "user", "content": row["prompt"]}], "image": picture}
            for row, picture in zip(rows, pictures, strict=True)
        ]
    )


class _Scripted:
    """Completions are a function of the prompt and the place in the group; counts the patches the update looks at."""

    rows: dict[str, dict[str, Any]]  # by the text of the prompt
    patches = 0

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        tokenizer = self.processing_class.tokenizer
        letters = tokenizer.convert_tokens_to_ids(list(CHARACTERS))
        completions = []
        for number, ids in enumerate(prompt_ids):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            rng = random.Random(f"{text} {number % num_generations}")
            length = rng.randint(self.rows[text]["shortest"], self.rows[text]["longest"])
            completions.append([*rng.choices(letters, k=length - 1), tokenizer.eos_token_id])
        return completions, None

    def _count(self, inputs: dict[str, Any]) -> None:
        self.patches += int(inputs["image_grid_thw"].prod(dim=-1).sum())


class _Ours(_Scripted, paired.OursClocked):
    def _log_probs(self, model, batch):
        self._count(batch["inputs"])
        return super()._log_probs(model, batch)


class _Theirs(_Scripted, paired.TheirsClocked):
    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self._count(kwargs)
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


def trainer_of(kind: str, workload: VisionWorkload, rows: Dataset, folder: str, **settings: Any) -> Any:
    """A clocked trainer of the workload's model on scripted completions."""
    trainer = paired.make_trainer(
        kind,
        random_model(workload),
        rows,
        folder,
        rollout=None,
        trainer_class=_Ours if kind == "gpg" else _Theirs,
        processing_class=build_processor(),
        **paired.step_settings(workload, settings.pop("micro_batch_size", None)) | settings,
    )
    trainer.rows = {row["prompt"][0]["content"]: row for row in rows.remove_columns("image")}
    return trainer


def main() -> None:
    """Measure the cases, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each case, at least 6 for an interval")
    args = parser.parse_args()
    paired.quiet()
    cases = paired.cases(PROTOTYPE, (1.0, 2.0, 4.0))
    rows = prompt_rows(PROTOTYPE, cases, args.rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: trainer_of(kind, PROTOTYPE, rows, f"{folder}/{kind}") for kind in ("gpg", "grpo")}
        steps = paired.take_turns(trainers, len(cases))
    ours, theirs = (paired.by_case(steps[kind], len(cases)) for kind in ("gpg", "grpo"))
    line: dict = {"bench": "vision_update", "update": {}}
    for case, a, b in zip(cases, ours, theirs, strict=True):
        numbers = paired.ratio(a, b, "update") | {"same_gradient": paired.gradient_gap(a, b)}
        line["update"][case.name] = numbers
        print(f"update, {case.name}: {paired.shown(numbers)}, target {TARGETS[case.name]}")
    patches = trainers["gpg"].patches / trainers["grpo"].patches
    ideal = sum(case.num_valid for case in cases) / (len(cases) * PROTOTYPE.num_rows)
    print(f"patches through the vision tower: {patches:.4f} of TRL's; one image per group with a signal: {ideal:.4f}")
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
