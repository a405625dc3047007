"""Run a recipe: base model, data, TRL trainer, checkpoint, records. One run is one folder, resumable after a kill.

run.json       what was asked, what ran (TrainingRecord)
steps.jsonl    one line of metrics per optimiser step
tensorboard/   the same metrics for TensorBoard, unless another logger was asked for
trainer/       TRL's checkpoints while training
checkpoint/    the final weights and tokenizer; appears only when it is whole
checkpoints/   those of earlier saves, where the recipe keeps them: checkpoint-<step>/, each only when it is whole

Several processes: start the caller with torchrun or accelerate (docs/recipes.md); every process calls `train`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import snapshot_download
from PIL import Image
from tqdm import tqdm
from transformers import BitsAndBytesConfig, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.utils import is_bitsandbytes_available

from eval_harness import private, records
from eval_harness.adapters import CONFIG as ADAPTER_CONFIG
from eval_harness.adapters import without_weights
from eval_harness.engines.base import CONCATENATE, with_images
from eval_harness.errors import UserError, disk_told, unknown
from eval_harness.images import ImageError
from eval_harness.locks import locked
from eval_harness.models import NO_CODE, ONLY_WEIGHTS, check_model, check_weights
from eval_harness.progress import progress_bar
from eval_harness.records import TrainingRecord
from gpg_repro.committed import refuse_work
from gpg_repro.datasets import check as check_data
from gpg_repro.datasets import content_of
from gpg_repro.paths import cache, results
from gpg_repro.prompts import SYSTEM_PROMPTS
from gpg_repro.recipe import VLLM_PLACE, Adapter, Recipe, Training, load_recipe
from gpg_repro.rewards import get_reward, unreadable_golds
from gpg_repro.stopping import StopWhenAsked, asked_by_signals

BASES_ON_THE_SPOT = ("tiny", "smoke")
_VISION_BASE = re.compile(r"(tiny|smoke)_vl_\w+")
"""Vision-language bases trained on the spot (gpg_repro.tiny.vision_warmup)."""
LOGGERS = ("tensorboard", "trackio", "wandb", "none")
PROJECT = "gpg-paper-companion"
"""Under which trackio and wandb file the runs."""
KEPT = "checkpoints"
"""Folder of a run with the weights of earlier saves: ``checkpoint-<step>/``."""
_COMPLETE = "complete"
_SAVES_AT_HAND = 2
"""Of TRL's checkpoints so many are kept while training."""
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
_IMAGES_AT_HAND = 256
"""Decoded training images kept in memory."""
_TRL_LOSS = {"sequence": "grpo", "local": "bnpo", "batch": "dapo", "constant": "dr_grpo"}
"""TRL's names of the normalisers; Eq. 5's group token mean has no counterpart there."""


def check_recipe(
    recipe: Recipe, processes: int | None = None, data_root: Path | None = None, image_root: Path | None = None
) -> None:
    """Find what the recipe itself cannot know and what would stop the run, before anything expensive.

    Args:
        recipe: resolved recipe.
        processes: how many will share the batch; default: those of this launch.
        data_root, image_root: local copies, as for ``train``.

    Raises:
        UserError: the base or a data set of one's own cannot be had, a package for the adapter is missing, or the
            launch's processes cannot share the batch; all problems together.
    """
    problems = []
    for look in (
        lambda: _base_exists(recipe),
        lambda: on_the_spot(recipe.setup.base) or check_targets(recipe, recipe.setup.base),
        lambda: check_data(recipe.setup.training_set(), data_root, image_root),
    ):
        try:
            look()
        except UserError as error:
            problems.append(str(error))
    problems += _adapter_refused(recipe.setup.adapter)
    t, processes = recipe.setup.training, processes or _launched_processes()
    rows = t.completions_per_step(processes)
    if rows % t.num_generations:
        problems.append(
            f"launched with {processes} processes, a step has {rows} completions, not a multiple of num_generations = "
            f"{t.num_generations}: change the launch, per_device_train_batch_size or gradient_accumulation_steps."
        )
    problems += _vllm_refused(t, processes)
    if problems:
        raise UserError(f"recipe {recipe.name} ({recipe.scale}) cannot run:\n" + "\n".join(f"- {p}" for p in problems))


def _adapter_refused(adapter: Adapter | None) -> list[str]:
    """Why the recipe's adapter cannot be trained here."""
    if adapter is None:
        return []
    problems = []
    if importlib.util.find_spec("peft") is None:
        problems.append("adapter: the package peft is missing: `pip install 'gpg-paper-companion[lora]'`.")
    if adapter.quantization == "none":
        return problems
    if not is_bitsandbytes_available():
        problems.append(
            "adapter.quantization 4bit: the package bitsandbytes is missing or too old: `pip install -U bitsandbytes`, "
            "or set it to none (LoRA on unquantised weights)."
        )
    if not torch.cuda.is_available():
        problems.append(
            "adapter.quantization 4bit: it needs a GPU; on a CPU bitsandbytes may pack the weights for inference alone "
            "once the model has generated. Set it to none."
        )
    sharded = {"fsdp": "ACCELERATE_USE_FSDP", "zero3": "ACCELERATE_DEEPSPEED_ZERO_STAGE"}
    problems += [
        quantized_refusal(strategy)
        for strategy, name in sharded.items()
        if os.environ.get(name, "").lower() in ("true", "3")
    ]
    return problems


def quantized_refusal(strategy: str) -> str:
    """Why QLoRA is not trained under a strategy that shards the weights."""
    why = {
        "fsdp": "accelerate leaves packed 4-bit weights out of FSDP2's shards",
        "zero3": "ZeRO-3 shards 4-bit weights only in another storage type, which nobody has tried here",
    }[strategy]
    return f"adapter.quantization 4bit: {why}. Take ddp or zero2: every GPU holds half a byte a parameter there."


def check_targets(recipe: Recipe, base: str) -> None:
    """Refuse names of modules that a base does not have.

    Args:
        base: folder or hub id; it is there.

    Raises:
        UserError: says which names it has.
    """
    adapter = recipe.setup.adapter
    if adapter is None or adapter.target_modules == "all-linear":
        return
    model = without_weights(str(Path(base).expanduser()) if base.startswith("~") else base, recipe.setup.base_revision)
    if model is None:
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    missing = [t for t in adapter.target_modules if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if missing:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"adapter.target_modules: {Path(base).name} has no linear layer called {', '.join(missing)}. It has "
            f"{', '.join(known)}; all-linear takes all but the output layer."
        )


def _vllm_refused(t: Training, processes: int) -> list[str]:
    """Why the recipe's completions cannot come from vLLM here."""
    if not t.use_vllm:
        return []
    problems = []
    if importlib.util.find_spec("vllm") is None:
        problems.append("use_vllm: vLLM is not installed; install it (docs/environment.md) or leave use_vllm out.")
    if not torch.cuda.is_available():
        why = "cannot load new weights into vLLM" if t.vllm_mode == "colocate" else "sends weights over NCCL"
        problems.append(f"use_vllm: on a CPU TRL {why} (vllm_mode {t.vllm_mode}); it needs GPUs. Leave use_vllm out.")
    if t.vllm_mode == "colocate" and processes % t.vllm_tensor_parallel_size:
        problems.append(
            f"launched with {processes} processes, not a multiple of vllm_tensor_parallel_size = "
            f"{t.vllm_tensor_parallel_size}."
        )
    return problems


def _launched_processes() -> int:
    """Processes of this launch, as torchrun and accelerate tell them."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _base_exists(recipe: Recipe) -> None:
    if not on_the_spot(recipe.setup.base):
        check_model(recipe.setup.base, recipe.setup.base_revision)


def on_the_spot(base: str) -> bool:
    """Whether a recipe's base is trained here rather than loaded."""
    return base in BASES_ON_THE_SPOT or _VISION_BASE.fullmatch(base) is not None


def base_model(recipe: Recipe, progress: bool = True) -> str:
    """Path or hub id of the recipe's base; a tiny base is trained on the spot unless it is in the cache."""
    if not on_the_spot(recipe.setup.base):
        base = recipe.setup.base
        return str(Path(base).expanduser()) if base.startswith("~") else base
    if _VISION_BASE.fullmatch(recipe.setup.base):
        from gpg_repro.tiny.vision_warmup import build_vision_base

        return str(build_vision_base(recipe.setup.base, cache(), progress=progress))
    from gpg_repro.tiny.warmup import build_base

    return str(build_base(cache(), scale=recipe.setup.base, progress=progress))


def train(
    recipe: Recipe,
    *,
    root: Path | None = None,
    data_root: Path | None = None,
    image_root: Path | None = None,
    progress: bool = True,
    log_to: str | None = None,
) -> Path:
    """Train and leave records; a finished run of the same recipe is returned at once, an interrupted one resumed.

    A recipe with ``alpha_from`` first trains the recipe it names, at the same scale and seed, unless that run is there.

    Args:
        recipe: resolved recipe.
        root: where run folders live.
        data_root: folder with local copies of hub data sets.
        image_root: folder with the image folders of local copies (default: the data root).
        progress: show a progress bar.
        log_to: ``tensorboard``, ``trackio``, ``wandb`` or ``none``, beside steps.jsonl; None is TensorBoard where it is
            installed. Nothing leaves the machine: wandb stays offline unless ``WANDB_MODE`` says otherwise.

    Returns:
        The run's folder.

    Raises:
        UserError: see :func:`check_recipe`; an unknown logger or one that is not installed; the run's folder is in use;
            it was asked to end (:mod:`gpg_repro.stopping`).
    """
    refuse_work(f"the training {recipe.name} at scale {recipe.scale}")
    log_to = check_logger(log_to)
    check_recipe(recipe, data_root=data_root, image_root=image_root)
    origin: dict[str, Any] = {}
    if recipe.objective.alpha_from is not None:
        source = load_recipe(recipe.objective.alpha_from, scale=recipe.scale, seed=recipe.seed)
        run = train(source, root=root, data_root=data_root, image_root=image_root, progress=progress, log_to=log_to)
        recipe = with_mean_alpha(recipe, run)
        origin = {"alpha_from_run": run.name}
    base = base_model(recipe, progress)
    identity = check_model(base, recipe.setup.base_revision)
    if on_the_spot(recipe.setup.base):
        check_targets(recipe, base)
    start = identity["weights"] or f"{identity['name']}@{identity['revision']}"
    if _launched_processes() != recipe.setup.training.num_processes:
        start += f", {_launched_processes()} processes"  # another batch, hence other weights
    if content := content_of(recipe.setup.training_set(), data_root):
        start += f", data {content}"
        origin |= {"dataset": content}
    fingerprint = recipe.fingerprint(start)
    folder = (root or results() / "runs") / f"train-{recipe.name}-{recipe.scale}-seed{recipe.seed}-{fingerprint[:8]}"
    if _finished(folder, fingerprint):
        _tidy(folder)
        return folder
    run = _Run(
        recipe,
        folder,
        base,
        identity,
        fingerprint,
        data_root,
        image_root,
        progress and _is_main_process(),
        log_to,
        origin,
    )
    with _threads(recipe), _wandb_settings(run):
        if not _is_main_process():  # the main process holds the lock
            return _train(run)
        _mention_other_launch(recipe)
        with locked(folder, "training"), disk_told(folder):
            return _train(run)


def check_logger(log_to: str | None) -> str:
    """The logger to use; None means TensorBoard where it is installed, else nothing beside steps.jsonl.

    Raises:
        UserError: unknown, or its package is missing.
    """
    if log_to is None:
        return "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
    if log_to not in LOGGERS:
        raise unknown("logger", log_to, LOGGERS)
    if log_to != "none" and importlib.util.find_spec(log_to) is None:
        raise UserError(f"--log-to {log_to} needs the package {log_to}: `pip install {log_to}`, or choose another.")
    return log_to


def with_mean_alpha(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with ``fixed_alpha`` set to the mean ``alpha_applied`` of a finished run, its steps with a signal.

    Raises:
        UserError: no step of the run had a valid group.
    """
    applied = records.steps_frame(run)["alpha_applied"]
    applied = applied[applied > 0]  # 0 marks a step without a valid group, which trained nothing
    if applied.empty:
        raise UserError(f"alpha_from {recipe.objective.alpha_from}: no step of {run.name} had a valid group.")
    objective = recipe.objective.model_copy(update={"fixed_alpha": float(applied.mean())})
    return recipe.model_copy(update={"objective": objective})


def _mention_other_launch(recipe: Recipe) -> None:
    t, processes = recipe.setup.training, _launched_processes()
    if processes != t.num_processes:
        prompts = t.completions_per_step(processes) // t.num_generations
        print(
            f"{recipe.name} ({recipe.scale}): the recipe's number of processes is {t.num_processes}, this launch's is "
            f"{processes}; {prompts} prompts per step instead of {t.prompts_per_step}.",
            file=sys.stderr,
        )


def _threads(recipe: Recipe) -> contextlib.AbstractContextManager:
    """One torch thread for the tiny models on a CPU: a second one only spins, and on a busy machine it costs dearly."""
    from gpg_repro.tiny.warmup import one_thread

    return contextlib.nullcontext() if recipe.scale == "paper" else one_thread()


def _finished(folder: Path, fingerprint: str) -> bool:
    if not (folder / "run.json").exists():
        return False
    run = records.read_run(folder)
    return run.fingerprint == fingerprint and run.status == "finished" and (folder / "checkpoint").is_dir()


def _tidy(folder: Path) -> None:
    """Remove what a finished run needs no more, where it was killed before it could."""
    if (folder / "trainer").exists() and _is_main_process():
        with contextlib.suppress(UserError), locked(folder, "training"):  # in use or read-only: it does no harm
            shutil.rmtree(folder / "trainer", ignore_errors=True)


@dataclass(frozen=True)
class _Run:
    """One call of ``train``, checked."""

    recipe: Recipe
    folder: Path
    base: str
    identity: dict[str, Any]
    fingerprint: str
    data_root: Path | None
    image_root: Path | None
    progress: bool
    log_to: str
    origin: dict[str, Any]


def _train(run: _Run) -> Path:
    started = time.monotonic()
    folder, recipe = run.folder, run.recipe
    dataset, counts = training_rows(recipe, run.base, run.data_root, run.image_root)
    trainer = build_trainer(recipe, run.base, dataset, folder / "trainer", log_to=run.log_to, run_name=folder.name)
    main = trainer.accelerator.is_main_process
    (checkpoint,) = broadcast_object_list([_last_whole_checkpoint(folder / "trainer") if main else None])
    if recipe.setup.training.keep_checkpoints:
        trainer.add_callback(_Keeper(folder / KEPT, trainer))
    trainer.add_callback(_Recorder(folder, recipe, run.progress))  # after the keeper: what is marked whole is kept too
    if run.log_to == "tensorboard":
        trainer.add_callback(_TensorBoard(folder / "tensorboard"))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    record = TrainingRecord(
        run_id=folder.name,
        fingerprint=run.fingerprint,
        status="running",
        created=_created(folder),
        finished=None,
        recipe=private.hidden(recipe.model_dump()),  # a base in the home folder is found again by its ~
        base=run.identity,
        checkpoint=None,
        num_steps=0,
        timings={},
        environment=records.environment()
        | {
            "num_processes": trainer.accelerator.num_processes,
            "device": trainer.accelerator.device.type,
            "distributed": trainer.accelerator.distributed_type.value,
            "torch_threads": torch.get_num_threads(),
            **counts,
            **run.origin,
        },
    )
    if main:
        records.write_json(folder / "run.json", record)
    loaded = time.monotonic()
    with asked_by_signals() as asked, contextlib.suppress(_NothingLeft):
        stop = StopWhenAsked(asked)
        trainer.add_callback(stop)  # after the recorder: it tells of saves that are marked whole
        trainer.add_callback(_End())  # the last one: the others have begun when it raises
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.stopped:
        trainer.accelerator.wait_for_everyone()  # the first process that ends with an error ends the others
        raise UserError(
            f"{recipe.name} ({recipe.scale}) was asked to end: stopped after step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}, which is saved. The same command goes on from there."
        )
    trained = time.monotonic()
    _save_whole(trainer, folder / "checkpoint")
    if main:
        timings = {"prepare_s": round(loaded - started, 2), "train_s": round(trained - loaded, 2)}
        records.write_json(
            folder / "run.json",
            record.model_copy(
                update={
                    "status": "finished",
                    "finished": records.now(not_before=record.created),
                    "checkpoint": "checkpoint",
                    "num_steps": trainer.state.global_step,
                    "steps_hash": records.lines_hash(steps) if (steps := folder / "steps.jsonl").exists() else None,
                    "timings": timings,
                }
            ),
        )
        # after the record: a save of which part is removed must not be what a killed run goes on from
        shutil.rmtree(folder / "trainer", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return folder


def _created(folder: Path) -> str:
    """When a run was started first."""
    return records.read_run(folder).created if (folder / "run.json").exists() else records.now()


def _save_whole(trainer: Any, target: Path) -> None:
    """Weights, configuration and tokenizer into a folder that appears when it is whole; every process calls this.

    Raises:
        UserError: DeepSpeed was told not to gather its shards.
    """
    partial = target.with_name(f"{target.name}.partial")
    main = trainer.accelerator.is_main_process
    if main:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed try left
    trainer.accelerator.wait_for_everyone()
    _forget_last_call(trainer.processing_class)
    with _shards_gathered(trainer):
        trainer.save_model(str(partial))
    if main:
        if not any(partial.glob("*.safetensors")):
            raise UserError(
                f"{target.name}: DeepSpeed saved shards only. Set zero3_save_16bit_model: true in the accelerate "
                "configuration and start again: the run resumes from its last checkpoint."
            )
        trainer.processing_class.save_pretrained(partial)
        for unwanted in ("training_args.bin", "README.md"):  # of an adapter: a form, and where its base lies
            (partial / unwanted).unlink(missing_ok=True)
        _settle_adapter(partial / ADAPTER_CONFIG)
        _remove(target)
        partial.rename(target)
    trainer.accelerator.wait_for_everyone()


def _settle_adapter(config: Path) -> None:
    """PEFT writes the names of the modules in an order that differs between processes: sorted, here."""
    if config.exists():
        content = json.loads(config.read_text(encoding="utf-8"))
        if isinstance(content.get("target_modules"), list):
            content["target_modules"].sort()
        config.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def _forget_last_call(processor: Any) -> None:
    """Tokenizers save how they last padded and cut, which depends on what came before in this process."""
    backend = getattr(getattr(processor, "tokenizer", processor), "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()


@contextlib.contextmanager
def _shards_gathered(trainer: Any) -> Iterator[None]:
    """FSDP's weights in one piece, whatever its configuration keeps for resuming: its shards only FSDP reads."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    configured = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(configured)


def training_rows(
    recipe: Recipe, base: str, data_root: Path | None = None, image_root: Path | None = None
) -> tuple[Any, dict[str, int]]:
    """The recipe's rows as a ``datasets.Dataset``, and how many were taken out and why.

    Under ``fidelity: paper`` prompts whose gold one of the rewards cannot read are taken out (the released code pays
    every response to them 1.0, which makes false easy groups); the released fidelities keep and count them. Prompts
    over ``max_prompt_length`` tokens and rows without any gold are taken out always. Images are read when a row is
    asked for; an unreadable one is found here.

    Raises:
        UserError: nothing to train on, no demonstrations for sft, or images that cannot be read.
    """
    setup = recipe.setup
    system_prompt = SYSTEM_PROMPTS[setup.system_prompt] if setup.system_prompt else None
    rows = setup.training_set().rows(system_prompt, setup.num_prompts, recipe.seed, data_root, image_root)
    counts = {"prompts_read": len(rows), "golds_missing": sum(not row["solution"] for row in rows)}
    rows = [row for row in rows if row["solution"]]
    unreadable = unreadable_golds((row["solution"] for row in rows), setup.rewards)
    counts["golds_unreadable"] = sum(row["solution"] in unreadable for row in rows)
    if recipe.fidelity == "paper":
        rows = [row for row in rows if row["solution"] not in unreadable]
    if setup.training.max_prompt_length is not None:
        rows, counts["prompts_too_long"] = _short_enough(recipe, base, rows)
    counts["prompts_used"] = len(rows)
    if not rows:
        raise UserError(f"recipe {recipe.name}: no prompt is left to train on ({counts}).")
    if recipe.method == "sft":
        rows = [_demonstration(recipe, row) for row in rows]
    return _as_dataset(recipe, rows), counts


def _short_enough(recipe: Recipe, base: str, rows: list[dict]) -> tuple[list[dict], int]:
    """Rows whose prompt, its image included, has at most ``max_prompt_length`` tokens; and how many had more."""
    from transformers import AutoTokenizer

    limit = recipe.setup.training.max_prompt_length
    if "image" in rows[0]:
        processor = processor_of(recipe, base)
        lengths = [_num_tokens_seen(processor, row["prompt"], load_image(row["image"])) for row in rows]
    else:
        tokenizer = AutoTokenizer.from_pretrained(base, revision=recipe.setup.base_revision, **NO_CODE)
        lengths = [_num_tokens(tokenizer, row["prompt"]) for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    return kept, len(rows) - len(kept)


def _num_tokens(tokenizer: Any, prompt: str | list[dict[str, str]]) -> int:
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def _num_tokens_seen(processor: Any, prompt: list[dict[str, str]], image: Image.Image) -> int:
    """Tokens of a prompt with one image, the image's patches included; its pixels are not computed."""
    text = processor.apply_chat_template(
        with_images(prompt, [{"type": "image"}]), add_generation_prompt=True, tokenize=False
    )
    sizes = processor._get_num_multimodal_tokens(image_sizes=[(image.height, image.width)])
    return len(processor.tokenizer(text)["input_ids"]) - 1 + sizes["num_image_tokens"][0]


def load_image(cell: Image.Image | Callable[[], Image.Image]) -> Image.Image:
    """The image of a training row, read now if it was not yet.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return cell() if callable(cell) else cell
    except ImageError as error:
        raise UserError(f"training image {error}. The data set itself is wrong: fetch it again.") from None


def _demonstration(recipe: Recipe, row: dict) -> dict:
    if "demonstration" not in row:
        raise UserError(
            f"recipe {recipe.name}: training set {recipe.setup.dataset} holds no demonstrations; method sft needs them."
        )
    completion = [{"role": "assistant", "content": row["demonstration"]}]
    return {"prompt": row["prompt"], "completion": completion, **({"image": row["image"]} if "image" in row else {})}


def _as_dataset(recipe: Recipe, rows: list[dict]) -> Any:
    """Text columns in memory; images are read when their row is asked for, the latest ones kept at hand."""
    import datasets

    if "image" not in rows[0]:
        return datasets.Dataset.from_list(rows)
    cells = [row["image"] for row in rows]
    for cell in cells:
        if callable(cell):
            load_image(cell)  # found now, not in the middle of the training
    read = lru_cache(_IMAGES_AT_HAND)(lambda index: load_image(cells[index]))
    texts = [{key: value for key, value in row.items() if key != "image"} for row in rows]
    data = datasets.Dataset.from_list([{**row, "image": index} for index, row in enumerate(texts)])
    return data.with_transform(lambda batch: {**batch, "image": [read(index) for index in batch["image"]]})


def processor_of(recipe: Recipe, base: str) -> Any:
    """Tokenizer and image processor of a vision-language base, with the recipe's pixel bounds and prompt form."""
    from transformers import AutoProcessor

    setup = recipe.setup
    bounds = {"min_pixels": setup.min_pixels, "max_pixels": setup.max_pixels}
    processor = AutoProcessor.from_pretrained(
        base,
        revision=setup.base_revision,
        padding_side="left",
        **{k: v for k, v in bounds.items() if v is not None},
        **NO_CODE,
    )
    if setup.prompt_form == "concatenate":
        processor.chat_template = processor.tokenizer.chat_template = CONCATENATE
    return processor


def objective_arguments(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's method and objective mean to `GPGConfig` (method gpg) or `GRPOBaselineConfig` (the rivals)."""
    o = recipe.objective
    if recipe.method != "gpg":
        return {
            "beta": o.beta_kl,
            "scale_rewards": o.f_norm,
            "loss_type": _TRL_LOSS[o.normalization],
            "epsilon": o.epsilon,
            "epsilon_high": o.epsilon_high,
            "vllm_importance_sampling_correction": False,
            "logp_temperature": o.logp_temperature,
        }
    return {
        "fidelity": recipe.fidelity,
        "f_norm": o.f_norm,
        "age": o.age,
        "beta_th": o.beta_th,
        "max_draws": o.max_draws,
        "normalization": o.normalization,
        "beta": o.beta_kl,
        "logp_temperature": o.logp_temperature,
        "fixed_alpha": o.fixed_alpha,
    }


def build_trainer(
    recipe: Recipe, base: str, dataset: Any, output_dir: Path, *, log_to: str = "none", run_name: str | None = None
) -> Any:
    """The TRL trainer of a recipe: GPGTrainer, or TRL's own GRPO with the same logging and budget.

    Args:
        recipe: resolved recipe.
        base: path or hub id of the base model.
        dataset: rows of `training_rows`.
        output_dir: where TRL keeps its checkpoints.
        log_to: ``trackio`` or ``wandb`` to report there; TensorBoard is a callback of ``train``.
        run_name: name of the run there.
    """
    from gpg_repro.trainer import GPGConfig, GPGTrainer, GRPOBaselineConfig, GRPOBaselineTrainer

    t = recipe.setup.training
    on_gpu = torch.cuda.is_available()
    if not on_gpu:  # of several processes accelerate says cpu:0, where transformers cannot load an optimiser again
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
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
        "mask_truncated_completions": t.mask_truncated_completions,
        "bf16": t.bf16 and on_gpu,
        "gradient_checkpointing": t.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": t.save_steps,
        # the library's own limit goes by the time of files: where the clock went back, it removes the newest
        "save_total_limit": None,
        "logging_steps": 1,
        "report_to": [log_to] if log_to in ("trackio", "wandb") else [],
        "run_name": run_name,
        "project": PROJECT,
        "trackio_static_space_id": False,  # trackio would publish the run on the hub when training ends
        "disable_tqdm": True,
        "reward_weights": list(recipe.setup.rewards.values()),
        "model_init_kwargs": {
            "dtype": _weights_dtype(t.bf16 and on_gpu, frozen=recipe.setup.adapter is not None),
            "revision": recipe.setup.base_revision,
            **ONLY_WEIGHTS,
        },
    }
    more = {"processing_class": processor_of(recipe, base)} if "image" in dataset.column_names else {}
    if recipe.setup.adapter is not None:
        more |= adapter_arguments(recipe)
    if t.use_vllm and recipe.setup.base_revision and not Path(base).is_dir():
        # TRL tells vLLM the name alone: it gets a folder
        base = snapshot_download(base, revision=recipe.setup.base_revision, allow_patterns=_MODEL_FILES)
    if recipe.method == "sft":
        return _supervised_trainer(base, dataset, common, more)
    sharing = {"share_prompt": t.share_prompt} if recipe.method == "gpg" else {}
    generation = _vllm_arguments(t) if t.use_vllm else {}
    config, trainer = (GPGConfig, GPGTrainer) if recipe.method == "gpg" else (GRPOBaselineConfig, GRPOBaselineTrainer)
    return trainer(
        model=base,
        reward_funcs=[get_reward(name) for name in recipe.setup.rewards],
        args=config(**objective_arguments(recipe), **sharing, **generation, **common),
        train_dataset=dataset,
        **more,
    )


def adapter_arguments(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's adapter means to TRL's trainers: ``peft_config`` and, for QLoRA, ``quantization_config``."""
    from peft import LoraConfig  # an extra: not everybody has it

    a = recipe.setup.adapter
    arguments: dict[str, Any] = {
        "peft_config": LoraConfig(
            r=a.r,
            lora_alpha=a.alpha,
            lora_dropout=a.dropout,
            target_modules=a.target_modules,
            use_dora=a.dora,
            use_rslora=a.rslora,
            task_type="CAUSAL_LM",
            revision=recipe.setup.base_revision,
        )
    }
    if a.quantization == "4bit":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return arguments


def _weights_dtype(bf16: bool, frozen: bool = False) -> str:
    """In what the optimiser holds the weights: at a learning rate of 1e-6 most of its steps are lost in bfloat16.

    DeepSpeed keeps float32 copies of its own and is given what it computes with, and so are frozen weights, beside
    which PEFT holds an adapter in float32.
    """
    if frozen:
        return "bfloat16" if bf16 else "float32"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return "bfloat16" if bf16 and deepspeed else "float32"


def _vllm_arguments(t: Training) -> dict[str, Any]:
    """TRL's settings of generation through vLLM; its context is no longer than prompts and completions need."""
    needed = None if t.max_prompt_length is None else t.max_prompt_length + t.max_completion_length
    return {"use_vllm": True, "vllm_max_model_length": needed, **{key: getattr(t, key) for key in VLLM_PLACE}}


_SAMPLING = (
    "num_generations",
    "max_completion_length",
    "temperature",
    "top_k",
    "top_p",
    "reward_weights",
    "mask_truncated_completions",
)


def _supervised_trainer(base: str, dataset: Any, common: dict[str, Any], more: dict[str, Any]) -> Any:
    """TRL's SFTTrainer on the demonstrations: cross-entropy of the completion tokens."""
    from trl import SFTConfig

    from gpg_repro.trainer import SupervisedTrainer

    shared = {key: value for key, value in common.items() if key not in _SAMPLING}
    arguments = SFTConfig(completion_only_loss=True, max_length=None, **shared)
    return SupervisedTrainer(model=base, args=arguments, train_dataset=dataset, **more)


@contextlib.contextmanager
def _wandb_settings(run: _Run) -> Iterator[None]:
    """Where wandb writes, unless the user's environment says; and one wandb run per training run."""
    if run.log_to != "wandb":
        yield
        return
    # offline: `wandb sync` sends it later, WANDB_MODE=online at once
    wanted = {"WANDB_MODE": "offline", "WANDB_DIR": str(run.folder), "WANDB_PROJECT": PROJECT}
    ours = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        import wandb

        wandb.finish()
        wandb.teardown()  # it reads WANDB_DIR once per process otherwise
        for key in ours:
            del os.environ[key]


class _TensorBoard(TensorBoardCallback):
    """Writes every logged metric into the run's folder, and nothing else: the library adds all arguments, paths
    included, and names folder and file for the host."""

    def __init__(self, folder: Path):
        super().__init__()
        self.logging_dir = str(folder)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.tb_writer is None:
            self._init_summary_writer(args)

    def _init_summary_writer(self, args):
        from tensorboard.summary.writer import event_file_writer

        before = event_file_writer.socket
        event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")
        try:
            super()._init_summary_writer(args)
        finally:
            event_file_writer.socket = before


def _last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end and can be read; half-written ones are removed.

    Raises:
        UserError: there are checkpoints, and none of them can be read.
    """
    for path in output_dir.glob("checkpoint-*"):  # called by the main process
        if path.suffix or not (path / _COMPLETE).exists():
            shutil.rmtree(path)
    problems = []
    for path in reversed(whole_saves(output_dir).values()):
        problem = _unreadable(path)
        if problem is None:
            return path
        problems.append(problem)
        print(f"{problem} It is not loaded; going on from an earlier one.", file=sys.stderr)
    if problems:
        raise UserError(
            f"{problems[0]} No earlier one can be read either. Nothing was touched: restore it, or move {output_dir} "
            "away to start this training from its first step."
        )
    return None


def _unreadable(save: Path) -> str | None:
    """Why a save that was once written to its end cannot be loaded; None: it can, as far as its files tell."""
    try:
        for path in save.glob("*.safetensors"):
            check_weights(path, "It was damaged after it was saved")
        for path in (*save.glob("*.pt"), *save.glob("*.pth"), *save.glob("*.bin")):
            if not zipfile.is_zipfile(path):
                raise UserError(f"checkpoint file {path} cannot be read. It was damaged after it was saved.")
        for path in save.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
    except UserError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"checkpoint file {path} cannot be read ({error}). It was damaged after it was saved."
    return None


def whole_saves(trainer_folder: Path) -> dict[int, Path]:
    """TRL's checkpoints of a training that were written to their end, by step."""
    found = {path.parent for path in trainer_folder.glob(f"checkpoint-*/{_COMPLETE}") if not path.parent.suffix}
    return dict(sorted((int(path.name.rsplit("-", 1)[1]), path) for path in found))


def _remove(folder: Path) -> None:
    """Remove a folder; at no moment does part of it stand under its name."""
    if folder.exists():
        condemned = folder.with_name(f"{folder.name}.removed")
        shutil.rmtree(condemned, ignore_errors=True)
        folder.rename(condemned)
        shutil.rmtree(condemned, ignore_errors=True)


class _NothingLeft(Exception):
    """A resumed training has made all its steps."""


class _End(TrainerCallback):
    """Ends a training that resumes from its last step, with weights restored: the trainer would make one more."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise _NothingLeft


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
            records.write_whole(path, "".join(line + "\n" for line in kept))
            name = f"{self._recipe.name} ({self._recipe.scale}, seed {self._recipe.seed})"
            self._bar = progress_bar(
                total=state.max_steps, initial=state.global_step, desc=name, unit="step", disable=not self._progress
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:  # the last log sums the run up
            return
        line = json.dumps({"step": state.global_step, **logs}) + "\n"
        records.append_bytes(self._folder / "steps.jsonl", line.encode("utf-8"))
        if self._bar is not None:
            shown = {key: f"{logs[key]:.2f}" for key in ("reward", "alpha") if key in logs}
            self._bar.set_postfix(shown, refresh=False)

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # every process writes a part of it
        if state.is_world_process_zero:
            output_dir = Path(args.output_dir)
            (output_dir / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
            for path in list(whole_saves(output_dir).values())[:-_SAVES_AT_HAND]:
                _remove(path)

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.close()


class _Keeper(TrainerCallback):
    """Keeps the weights of every save but the last, which becomes the run's checkpoint."""

    def __init__(self, folder: Path, trainer: Any):
        self._folder, self._trainer = folder, trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            for path in self._folder.glob("checkpoint-*"):  # saves that are made again, or were never finished
                if path.suffix:
                    shutil.rmtree(path)
                elif int(path.name.rsplit("-", 1)[1]) > state.global_step:
                    _remove(path)

    def on_save(self, args, state, control, **kwargs):
        if (
            state.global_step < state.max_steps and state.global_step % state.save_steps == 0
        ):  # not where it was stopped
            _save_whole(self._trainer, self._folder / f"checkpoint-{state.global_step}")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a torn line: the step is run again
