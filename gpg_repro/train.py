"""Run a recipe: base model, data, TRL trainer, checkpoint, records. One run is one folder, resumable after a kill.

run.json       what was asked, what ran (TrainingRecord)
steps.jsonl    one line of metrics per optimiser step
trainer/       TRL's checkpoints while training
checkpoint/    the final weights and tokenizer; appears only when it is whole
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from eval_harness import records
from eval_harness.errors import UserError, unknown
from eval_harness.graders.pool import shared_pool
from eval_harness.models import check_model
from eval_harness.progress import progress_bar
from eval_harness.records import TrainingRecord
from gpg_repro.datasets import get_training_set
from gpg_repro.paths import cache, results
from gpg_repro.prompts import SYSTEM_PROMPTS
from gpg_repro.recipe import Recipe
from gpg_repro.rewards import get_reward

BASES_ON_THE_SPOT = ("tiny", "smoke")
_COMPLETE = "complete"
_GRPO_LOSS = {"sequence": "grpo", "local": "bnpo", "batch": "dapo"}
"""TRL's names of the normalisers; Eq. 5's group token mean has no counterpart there."""


def check_recipe(recipe: Recipe) -> None:
    """Find what would stop the run, before anything expensive.

    Raises:
        UserError: unknown data set, reward or system prompt; a setting the method cannot have; all problems together.
    """
    problems = []
    for check in (
        lambda: get_training_set(recipe.setup.dataset),
        *(lambda name=name: get_reward(name) for name in recipe.setup.rewards),
        lambda: _system_prompt(recipe),
        lambda: _base_exists(recipe),
    ):
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if recipe.method == "gpg" and recipe.objective.beta_kl:
        problems.append("beta_kl must be 0 with method gpg: it has no reference model.")
    if recipe.method == "grpo" and recipe.objective.normalization not in _GRPO_LOSS:
        problems.append(
            f"TRL's GRPO has no normalization {recipe.objective.normalization!r}; it has {', '.join(_GRPO_LOSS)}."
        )
    if problems:
        raise UserError(f"recipe {recipe.name} ({recipe.scale}) cannot run:\n" + "\n".join(f"- {p}" for p in problems))


def _system_prompt(recipe: Recipe) -> str | None:
    name = recipe.setup.system_prompt
    if name is not None and name not in SYSTEM_PROMPTS:
        raise unknown("system prompt", name, SYSTEM_PROMPTS)
    return SYSTEM_PROMPTS[name] if name else None


def _base_exists(recipe: Recipe) -> None:
    if recipe.setup.base not in BASES_ON_THE_SPOT:
        check_model(recipe.setup.base, recipe.setup.base_revision)


def base_model(recipe: Recipe, progress: bool = True) -> str:
    """Path or hub id of the recipe's base; a tiny base is trained on the spot unless it is in the cache."""
    if recipe.setup.base not in BASES_ON_THE_SPOT:
        return recipe.setup.base
    from gpg_repro.tiny.warmup import build_base

    return str(build_base(cache(), scale=recipe.setup.base, progress=progress))


def train(recipe: Recipe, *, root: Path | None = None, data_root: Path | None = None, progress: bool = True) -> Path:
    """Train and leave records; a finished run of the same recipe is returned at once, an interrupted one resumed.

    Args:
        recipe: resolved recipe.
        root: where run folders live.
        data_root: folder with local copies of hub data sets.
        progress: show a progress bar.

    Returns:
        The run's folder.

    Raises:
        UserError: see :func:`check_recipe`; also when the run's folder is in use.
    """
    check_recipe(recipe)
    base = base_model(recipe, progress)
    identity = check_model(base, recipe.setup.base_revision)
    fingerprint = recipe.fingerprint(identity["weights"] or f"{identity['name']}@{identity['revision']}")
    folder = (root or results() / "runs") / f"train-{recipe.name}-{recipe.scale}-seed{recipe.seed}-{fingerprint[:8]}"
    if _finished(folder, fingerprint):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":  # torchrun / accelerate: the main process holds the lock
        return _train(recipe, folder, base, identity, fingerprint, data_root, progress=False)
    try:
        with FileLock(folder / ".lock").acquire(timeout=0), _threads(recipe):
            return _train(recipe, folder, base, identity, fingerprint, data_root, progress)
    except Timeout:
        raise UserError(f"another process is training in {folder}; wait for it.") from None


def _threads(recipe: Recipe) -> contextlib.AbstractContextManager:
    """One torch thread for the tiny models on a CPU: a second one only spins, and on a busy machine it costs dearly."""
    from gpg_repro.tiny.warmup import one_thread

    return contextlib.nullcontext() if recipe.scale == "paper" else one_thread()


def _finished(folder: Path, fingerprint: str) -> bool:
    if not (folder / "run.json").exists():
        return False
    run = records.read_run(folder)
    return run.fingerprint == fingerprint and run.status == "finished" and (folder / "checkpoint").is_dir()


def _train(recipe, folder, base, identity, fingerprint, data_root, progress) -> Path:
    started = time.monotonic()
    dataset, counts = training_rows(recipe, base, data_root)
    trainer = build_trainer(recipe, base, dataset, folder / "trainer")
    main = trainer.accelerator.is_main_process
    checkpoint = _last_whole_checkpoint(folder / "trainer")
    trainer.add_callback(_Recorder(folder, recipe, progress))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    record = TrainingRecord(
        run_id=folder.name,
        fingerprint=fingerprint,
        status="running",
        created=records.now(),
        finished=None,
        recipe=recipe.model_dump(),
        base=identity,
        checkpoint=None,
        num_steps=0,
        timings={},
        environment=records.environment()
        | {
            "num_processes": trainer.accelerator.num_processes,
            "device": trainer.accelerator.device.type,
            "torch_threads": torch.get_num_threads(),
            **counts,
        },
    )
    if main:
        records.write_json(folder / "run.json", record)
    loaded = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained = time.monotonic()
    partial = folder / "checkpoint.partial"
    trainer.save_model(str(partial))
    if main:
        trainer.processing_class.save_pretrained(partial)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        partial.rename(folder / "checkpoint")
        shutil.rmtree(folder / "trainer", ignore_errors=True)
        timings = {"prepare_s": round(loaded - started, 2), "train_s": round(trained - loaded, 2)}
        records.write_json(
            folder / "run.json",
            record.model_copy(
                update={
                    "status": "finished",
                    "finished": records.now(),
                    "checkpoint": "checkpoint",
                    "num_steps": trainer.state.global_step,
                    "timings": timings,
                }
            ),
        )
    trainer.accelerator.wait_for_everyone()
    return folder


def training_rows(recipe: Recipe, base: str, data_root: Path | None = None) -> tuple[Any, dict[str, int]]:
    """The recipe's rows as a ``datasets.Dataset``, and how many were taken out and why.

    Under ``fidelity: paper`` prompts whose gold the reward cannot read are taken out (the released code pays every
    response to them 1.0, which makes false easy groups). Prompts over ``max_prompt_length`` tokens are taken out.
    """
    import datasets
    from transformers import AutoTokenizer

    setup = recipe.setup
    rows = get_training_set(setup.dataset).rows(_system_prompt(recipe), setup.num_prompts, recipe.seed, data_root)
    golds = sorted({row["solution"] for row in rows})
    verdicts = shared_pool().grade("boxed", [(gold, "") for gold in golds])
    unreadable = {gold for gold, verdict in zip(golds, verdicts, strict=True) if verdict.gold_fallback}
    counts = {"prompts_read": len(rows), "golds_unreadable": sum(row["solution"] in unreadable for row in rows)}
    if recipe.fidelity == "paper":
        rows = [row for row in rows if row["solution"] not in unreadable]
    if setup.training.max_prompt_length is not None:
        tokenizer = AutoTokenizer.from_pretrained(base, revision=setup.base_revision)
        limit = setup.training.max_prompt_length
        lengths = [
            len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"])
            for row in rows
        ]
        counts["prompts_too_long"] = sum(length > limit for length in lengths)
        rows = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    counts["prompts_used"] = len(rows)
    if not rows:
        raise UserError(f"recipe {recipe.name}: no prompt is left to train on ({counts}).")
    return datasets.Dataset.from_list(rows), counts


def build_trainer(recipe: Recipe, base: str, dataset: Any, output_dir: Path) -> Any:
    """The TRL trainer of a recipe: GPGTrainer, or TRL's own GRPO with the same logging and budget."""
    from gpg_repro.trainer import GPGConfig, GPGTrainer, GRPOBaselineTrainer, GRPOConfig

    t, o = recipe.setup.training, recipe.objective
    on_gpu = torch.cuda.is_available()
    common: dict[str, Any] = {
        "output_dir": str(output_dir),
        "seed": recipe.seed,
        "max_steps": t.max_steps,
        "use_cpu": not on_gpu,
        "per_device_train_batch_size": t.per_device_train_batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "num_generations": t.num_generations,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_scheduler_type,
        "lr_scheduler_kwargs": dict(t.lr_scheduler_kwargs),
        "warmup_steps": t.warmup_steps,
        "weight_decay": t.weight_decay,
        "adam_beta2": t.adam_beta2,
        "adam_epsilon": t.adam_epsilon,
        "max_grad_norm": t.max_grad_norm,
        "max_completion_length": t.max_completion_length,
        "temperature": t.temperature,
        "top_k": t.top_k,
        "top_p": t.top_p,
        "bf16": t.bf16 and on_gpu,
        "gradient_checkpointing": t.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": t.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "reward_weights": list(recipe.setup.rewards.values()),
        "model_init_kwargs": {
            "dtype": "bfloat16" if t.bf16 and on_gpu else "float32",
            "revision": recipe.setup.base_revision,
        },
    }
    rewards = [get_reward(name) for name in recipe.setup.rewards]
    if recipe.method == "grpo":
        args = GRPOConfig(
            beta=o.beta_kl,
            scale_rewards=o.f_norm,
            loss_type=_GRPO_LOSS[o.normalization],
            vllm_importance_sampling_correction=False,
            **common,
        )
        return GRPOBaselineTrainer(model=base, reward_funcs=rewards, args=args, train_dataset=dataset)
    args = GPGConfig(
        fidelity=recipe.fidelity,
        f_norm=o.f_norm,
        age=o.age,
        normalization=o.normalization,
        logp_temperature=o.logp_temperature,
        **common,
    )
    return GPGTrainer(model=base, reward_funcs=rewards, args=args, train_dataset=dataset)


def _last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    found = sorted(output_dir.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    for path in found:
        if not (path / _COMPLETE).exists():
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return whole[-1] if whole else None


class _Recorder(TrainerCallback):
    """Writes steps.jsonl, marks whole checkpoints, shows a bar with the reward."""

    def __init__(self, folder: Path, recipe: Recipe, progress: bool):
        self._folder, self._recipe, self._progress = folder, recipe, progress
        self._bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = self._folder / "steps.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            kept = [line for line in lines if _step_of(line) <= state.global_step]  # steps after the checkpoint re-run
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            name = f"{self._recipe.name} ({self._recipe.scale}, seed {self._recipe.seed})"
            self._bar = progress_bar(
                total=state.max_steps, initial=state.global_step, desc=name, unit="step", disable=not self._progress
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "reward" in logs:
            with open(self._folder / "steps.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            if self._bar is not None:
                self._bar.set_postfix(reward=f"{logs['reward']:.2f}", alpha=f"{logs['alpha']:.2f}", refresh=False)

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a torn line: the step is run again
