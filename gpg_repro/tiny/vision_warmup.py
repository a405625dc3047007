"""Tiny vision bases: supervised steps from nothing to a middling accuracy, so that RL has room to improve.

There is one base for each family of `eval_harness.tiny_vision`. The corpus holds three habits. Most demonstrations say
what is to be seen (counts, places, traits) and answer by it. In the last stretch some are *hasty*: they say nothing and
pick one of the plausible answers at random. Some are *loose*: they leave the answer tags out. The base has all three
habits; RL can remove the hasty and the loose one, and teach it to look more carefully. Of the groups of G completions
some are all right, some mixed, some all wrong, which is what the correction alpha (Eq. 7) is about.

The result is a function of the seed, the name and the sources: the optimisation runs on one CPU thread (the order of
floating-point sums depends on the number of threads), and the folder is named by a hash of all that could change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from eval_harness import tiny_vision
from eval_harness.errors import unknown
from eval_harness.graders.box import iou, strict_box
from eval_harness.progress import progress_bar
from eval_harness.tiny_vision import KINGDOMS, PROMPTS, SETS, Task, in_words, lettered
from gpg_repro.tiny import tokenizer as tokenizer_source
from gpg_repro.tiny import vision_model as model_source
from gpg_repro.tiny.vision_model import build_processor, build_vision_model
from gpg_repro.tiny.warmup import _publish, one_thread

MAX_NEW_TOKENS = 40
"""Enough for the longest model solution of any set with its end-of-turn token."""


VisionModel = Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration
Batch = list[tuple[str, Task]]
"""Tasks with the names of their sets."""


@dataclass(frozen=True)
class VisionWarmup:
    """What makes a base, apart from the seed.

    Attributes:
        sets: the sets the base has seen, in turn; one named twice is seen twice as often.
        chat: chat prompts; otherwise a pretrained model's, image and text as they stand.
        qwen2_5: a Qwen2.5-VL instead of a Qwen2-VL.
        num_sight_steps: optimiser steps of the vision tower alone, on the places and colours of cells.
        num_careful_steps: optimiser steps on demonstrations that all say what is to be seen.
        num_mixed_steps: further steps with the other two habits among them.
        hasty_share, loose_share: share of these habits in the mixed steps.
        batch_size: demonstrations per optimiser step.
        sight_lr: peak learning rate of AdamW for the vision tower alone.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon, for the matrices of the layers.
        initializer_range: standard deviation of the initial weights.
        num_eval_tasks: test tasks per set behind the accuracies in `base.json`.
    """

    sets: tuple[str, ...]
    chat: bool = True
    qwen2_5: bool = False
    num_sight_steps: int = 80
    num_careful_steps: int = 220
    num_mixed_steps: int = 30
    hasty_share: float = 0.55
    loose_share: float = 0.1
    batch_size: int = 32
    sight_lr: float = 2e-3
    lr: float = 1e-3
    muon_lr: float = 0.01
    initializer_range: float = 0.08
    num_eval_tasks: int = 100

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        return self.num_careful_steps + self.num_mixed_steps


_TINY = {
    "scenes": VisionWarmup(("tiny_scenes",), chat=False, num_careful_steps=320, hasty_share=0.5),
    "figures": VisionWarmup(("tiny_figures",), qwen2_5=True),
    "species": VisionWarmup((*KINGDOMS, "tiny_critters", "tiny_carts"), num_careful_steps=260, hasty_share=0.5),
    "grounding": VisionWarmup(("tiny_grounding",), num_careful_steps=260, hasty_share=0.4),
}
_SMOKE = {
    "num_sight_steps": 10,
    "num_careful_steps": 35,
    "num_mixed_steps": 5,
    "batch_size": 16,
    "num_eval_tasks": 8,
}
BASES: dict[str, VisionWarmup] = {
    **{f"tiny_vl_{family}": config for family, config in _TINY.items()},
    **{f"smoke_vl_{family}": replace(config, **_SMOKE) for family, config in _TINY.items()},
}


def build_vision_base(
    name: str, cache_dir: str | os.PathLike | None = None, seed: int = 0, progress: bool = True
) -> Path:
    """Train a base, or find it in the cache, and return its folder.

    The folder holds the model (safetensors), the processor and `base.json`: settings, versions, and marks per part of
    each set on test tasks (greedy and sampled at temperature 1) with counts. An interrupted build leaves nothing behind
    that looks finished: the folder gets its name when it is complete.

    Args:
        name: `tiny_vl_scenes`, `tiny_vl_figures`, `tiny_vl_species`, `tiny_vl_grounding` (one to two minutes each), or
            the same with `smoke` for `tiny` (seconds; barely ever right).
        cache_dir: parent folder of the cache; default `$GPG_CACHE`, else `.cache/gpg_repro` in the working directory.
        seed: seed of the initial weights and of the corpus.
        progress: show a progress bar.

    Raises:
        UserError: unknown base.
    """
    if name not in BASES:
        raise unknown("vision base", name, BASES)
    config = BASES[name]
    parent = Path(cache_dir or os.environ.get("GPG_CACHE") or Path(".cache", "gpg_repro"))
    folder = parent / f"{name.replace('_', '-')}-seed{seed}-{_fingerprint(config)}"
    if (folder / "base.json").is_file():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        processor = build_processor(config.chat)
        started = time.perf_counter()
        with one_thread():
            model = warm_up(processor, config, seed, progress)
            train_seconds = time.perf_counter() - started
            tasks = [
                (n, task)
                for n in dict.fromkeys(config.sets)
                for task in SETS[n].sample("test", config.num_eval_tasks, seed=0)
            ]
            marks = {d: marks_by_part(model, processor, tasks, d == "sampled", seed) for d in ("greedy", "sampled")}
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        facts = {
            "name": name,
            "seed": seed,
            "config": asdict(config),
            "num_parameters": model.num_parameters(),
            "marks": marks,
            "train_seconds": round(train_seconds, 1),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        (unfinished / "base.json").write_text(json.dumps(facts, indent=2) + "\n")
        _publish(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _fingerprint(config: VisionWarmup) -> str:
    """Hash of everything but the seed that decides the weights: settings, sources, versions of the libraries."""
    sources = [Path(module.__file__).read_text() for module in (tiny_vision, tokenizer_source, model_source)]
    parts = [json.dumps(asdict(config), sort_keys=True), *sources, Path(__file__).read_text()]
    parts += [torch.__version__, transformers.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def prompt_text(processor: Qwen2VLProcessor, name: str, task: Task, question: str | None = None) -> str:
    """The prompt as the model sees it, with one image placeholder."""
    question = question or (lettered(task) if name == "tiny_scenes" else task.question)
    content = [{"type": "image"}, {"type": "text", "text": PROMPTS[name].replace("{problem}", question)}]
    turns = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def completion_text(name: str, task: Task, habit: str, rng: random.Random) -> str:
    """A demonstration's completion in one of the three habits, without an end-of-turn token.

    Half of the figures' answers have blanks inside the tags, without which the published rule reads no number.
    """
    opening = "" if name == "tiny_scenes" else "<think>"
    answer = rng.choice(task.guesses) if habit == "hasty" else task.answer
    blank = " " if name == "tiny_figures" and rng.random() < 0.5 else ""
    tagged = answer if habit == "loose" else f"<answer>{blank}{answer}{blank}</answer>"
    return f"{opening}{'' if habit == 'hasty' else task.reasoning}</think>{tagged}"


def warm_up(processor: Qwen2VLProcessor, config: VisionWarmup, seed: int, progress: bool = False) -> VisionModel:
    """Train a new model on demonstrations of the train split; token-mean cross-entropy of the completions."""
    model = build_vision_model(
        processor.tokenizer, qwen2_5=config.qwen2_5, initializer_range=config.initializer_range, seed=seed
    )
    streams = {name: SETS[name].stream("train", f"warm-up/{seed}") for name in config.sets}
    batches = ([(name, next(streams[name])) for name in islice(cycle(config.sets), config.batch_size)] for _ in count())
    rng = random.Random(f"vision warm-up/{seed}")
    _teach_sight(model, processor, config, batches)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedulers = [_schedule(optimizer, config.num_steps, config.num_steps // 15) for optimizer in optimizers]
    model.train()
    for step in progress_bar(
        range(config.num_steps), "warming up a tiny vision base", config.num_steps, disable=not progress
    ):
        batch = next(batches)
        mixed = step >= config.num_careful_steps
        loss = _loss(model, processor, config, batch, mixed, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return model.eval()


def _teach_sight(
    model: VisionModel, processor: Qwen2VLProcessor, config: VisionWarmup, batches: Iterator[Batch]
) -> None:
    """Train the vision tower alone: from each image token, the place of its cell and the colours in it.

    Without it a model from nothing takes several times as long until it looks at the picture at all.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = torch.nn.Linear(model.config.text_config.hidden_size, 4 + 4 + 12)
    parameters = [*model.model.visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.sight_lr, betas=(0.9, 0.98), weight_decay=0.0)
    scheduler = _schedule(optimizer, config.num_sight_steps, 10)
    columns, rows = torch.arange(16) % 4, torch.arange(16) // 4
    for batch in islice(batches, config.num_sight_steps):
        inputs = processor.image_processor(images=[task.draw() for _, task in batch], return_tensors="pt")
        seen = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        guess = probe(seen).reshape(len(batch), 16, -1)
        # a cell's four patches follow one another, each as channel by (time, row, column)
        colours = inputs["pixel_values"].reshape(len(batch), 16, 4, 3, -1).mean(-1).flatten(2)
        loss = torch.nn.functional.mse_loss(guess[..., 8:], colours)
        for logits, place in ((guess[..., :4], columns), (guess[..., 4:8], rows)):
            loss = loss + torch.nn.functional.cross_entropy(logits.flatten(0, 1), place.repeat(len(batch)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def _schedule(
    optimizer: torch.optim.Optimizer, num_steps: int, num_ramp_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A ramp up, then down to a tenth along a straight line."""
    ramp = max(1, num_ramp_steps)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / ramp) * (1 - 0.9 * step / num_steps)
    )


def _loss(
    model: VisionModel,
    processor: Qwen2VLProcessor,
    config: VisionWarmup,
    batch: Sequence[tuple[str, Task]],
    mixed: bool,
    rng: random.Random,
) -> torch.Tensor:
    shares = (config.hasty_share, config.loose_share) if mixed else (0.0, 0.0)
    weights = [1 - sum(shares), *shares]
    prompts, completions = [], []
    for name, task in batch:
        habit = rng.choices(("careful", "hasty", "loose"), weights)[0]
        question = in_words(task) if name == "tiny_scenes" and rng.random() < 0.5 else None
        prompts.append(prompt_text(processor, name, task, question))
        completions.append(completion_text(name, task, habit, rng) + processor.tokenizer.eos_token)
    lengths = [len(ids) for ids in processor.tokenizer(completions)["input_ids"]]
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    inputs = processor(text=texts, images=[task.draw() for _, task in batch], padding=True, return_tensors="pt")
    ids = inputs["input_ids"]
    is_target = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths)[:, None]
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[is_target[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][is_target[:, 1:]])


# --- accuracy -----------------------------------------------------------------------------------------------------


def mark(name: str, answer: str, text: str) -> float:
    """1.0 for the exact answer between answer tags, for grounding the IoU with the right box; else 0.0."""
    found = re.search(r"<answer>(.*?)</answer>", text)
    if not found:
        return 0.0
    if name != "tiny_grounding":
        return float(found[1].strip() == answer)
    box = strict_box(found[1])
    return iou(box, strict_box(answer)) if box else 0.0


@torch.no_grad()
def complete(
    model: VisionModel,
    processor: Qwen2VLProcessor,
    tasks: Sequence[tuple[str, Task]],
    sampled: bool = False,
    seed: int = 0,
    batch_size: int = 100,
) -> list[str]:
    """One completion for each (set, task); `sampled` draws at temperature 1, otherwise decoding is greedy.

    The global random state is left as it was.
    """
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    )
    texts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(tasks), batch_size):
            batch = tasks[start : start + batch_size]
            prompts = [prompt_text(processor, name, task) for name, task in batch]
            inputs = processor(text=prompts, images=[t.draw() for _, t in batch], padding=True, return_tensors="pt")
            sequences = model.generate(**inputs, **sampling, max_new_tokens=MAX_NEW_TOKENS)
            completions = sequences[:, inputs["input_ids"].shape[1] :]
            texts += processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts


def marks_by_part(
    model: VisionModel,
    processor: Qwen2VLProcessor,
    tasks: Sequence[tuple[str, Task]],
    sampled: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """`{set: {part: {"asked": n, "marks": sum of marks}}}`, see `mark`.

    For warming up and tuning; scores that are reported come from `eval_harness`.
    """
    counts: dict[str, dict[str, dict[str, float]]] = {}
    for (name, task), text in zip(tasks, complete(model, processor, tasks, sampled, seed), strict=True):
        count = counts.setdefault(name, {}).setdefault(task.part, {"asked": 0, "marks": 0.0})
        count["asked"] += 1
        count["marks"] = round(count["marks"] + mark(name, task.answer, text), 4)
    return counts
