"""Trains a recipe under `accelerate launch`, as the worker of test_distributed: FOLDER [KILL_AT_STEP | RUN KEY=VALUE].

Three runs, of which a second call finds the first two finished and resumes the third: one with scripted completions,
one with the model's own, and the same again, in which one process kills itself. With RUN: that one alone.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import gpg_repro.train
from gpg_repro.recipe import load_recipe

RECIPE = "table1_gpg_age"
OVERRIDES = ("max_steps=4", "per_device_train_batch_size=32")


def shard_on_cpu() -> None:
    """accelerate 1.15 makes DDP of FSDP on a CPU, unless it takes the processes for those of GPUs."""
    make = PartialState.__init__

    def make_sharding(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = make_sharding


def scripted(prompts, trainer) -> dict:
    """Completions that depend on the prompt and the place in its group alone: whole groups right, wrong, and mixed."""
    tokenizer, start = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
    solutions = {json.dumps(row["prompt"]): row["solution"] for row in trainer.train_dataset}
    prompt_ids, completion_ids = [], []
    for row, prompt in enumerate(prompts, start=start):
        key = json.dumps(prompt)
        kind, place = random.Random(key).randrange(4), row % trainer.num_generations
        words = random.Random(f"{key}/{place}")
        right = kind == 0 or (kind > 1 and words.random() < 0.5)
        text = "".join(words.choices("0123456789+-= ", k=words.randrange(1, 20)))
        text += solutions[key] if right else "$\\boxed{x}$"
        prompt_ids.append(
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        )
        completion_ids.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


class Watch(TrainerCallback):
    """Writes down how the model is spread over processes, and kills one of them where it is asked to."""

    def __init__(self, file: Path, kill_at: int | None):
        self.file, self.kill_at = file, kill_at

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        parameters = list(model.parameters())
        sharded = [p for p in parameters if isinstance(p, DTensor)]
        here = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
        spread = {"parameters": len(parameters), "sharded": len(sharded), "resumed_at": state.global_step}
        spread |= {"numbers": sum(p.numel() for p in parameters), "numbers_here": here}
        self.file.with_suffix(f".{args.process_index}.json").write_text(json.dumps(spread))

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.kill_at and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, *overrides: str, script: bool = False, kill_at: int | None = None) -> Path:
    """One training of the recipe in a folder of its own."""
    build = gpg_repro.train.build_trainer

    def watched(*args, **kwargs):
        trainer = build(*args, **kwargs)
        trainer.rollout_func = scripted if script else None
        trainer.add_callback(Watch(folder / "process", kill_at))
        return trainer

    folder.mkdir(parents=True, exist_ok=True)
    gpg_repro.train.build_trainer = watched
    try:
        recipe = load_recipe(RECIPE, [*OVERRIDES, *overrides], scale="smoke")
        return gpg_repro.train.train(recipe, root=folder, progress=False, log_to="none")
    finally:
        gpg_repro.train.build_trainer = build


def main(root: Path, *overrides: str, kill_at: int | None = None, only: str | None = None) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    configured = os.environ.get("FSDP_STATE_DICT_TYPE", "")
    for name in [only] if only else ["scripted", "whole", "killed"]:
        # a user's own choice in one of them: what is kept is whole all the same
        os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT" if name == "scripted" else configured
        run(root / name, *overrides, script=name == "scripted", kill_at=kill_at if name == "killed" else None)


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    if rest and rest[0].isdigit():
        main(Path(folder), kill_at=int(rest[0]))
    else:
        main(Path(folder), *rest[1:], only=rest[0] if rest else None)
