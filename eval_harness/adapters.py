"""LoRA adapters: a folder of PEFT (or a hub id) that holds what was trained, and names the base it was trained on.

The base is the one that ``adapter_config.json`` names, a folder or a hub id, or another copy of it (``--base-model``).
Both engines compute with the base's weights and the adapter beside them, never merged: a merged weight is rounded to
the model's precision, in which a small update of a bfloat16 weight vanishes.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from eval_harness.errors import UserError, clipped
from eval_harness.models import CONVERT, NO_CODE, check_files, read_checkpoint_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PROMPT_LEARNING = ("PROMPT", "P_TUNING", "PREFIX", "CPT", "CARTRIDGE", "ADAPTION_PROMPT")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_KINDS = (
    ("base_model_name_or_path", str, "a folder or a hub id"),
    ("revision", str, "a revision"),
    ("r", int, "a number"),
    ("rank_pattern", dict, "an object"),
)
"""Keys that are read here, what they must be, and its name."""
_NOT_CONTENT = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
"""Keys of the configuration that do not say what the adapter computes."""
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM 0.31 can be told; it makes room for the next one."""
_BEYOND_VLLM = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "layer_replication")
"""Keys that vLLM 0.31 refuses, or takes no notice of."""


@dataclass(frozen=True)
class Source:
    """Where the parts of a model come from."""

    model: str
    """Weights and configuration."""
    revision: str | None
    adapter: Path | None = None
    rank: int = 0

    def holding(self, *names: str) -> tuple[str, str | None]:
        """Folder or hub id and revision to read tokenizer or processor from: the adapter's own, where it has one."""
        if self.adapter is not None and any((self.adapter / name).exists() for name in names):
            return str(self.adapter), None
        return self.model, self.revision

    @property
    def tokenizer(self) -> tuple[str, str | None]:
        """Where the tokenizer is read from."""
        return self.holding("tokenizer_config.json")

    @property
    def processor(self) -> tuple[str, str | None]:
        """Where tokenizer and image processor are read from."""
        return self.holding("preprocessor_config.json", "processor_config.json")

    @property
    def vllm_rank(self) -> int:
        """The adapter's rank as vLLM takes it."""
        return next(rank for rank in _VLLM_RANKS if rank >= self.rank)


def adapter_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder of an adapter, from the hub's cache or the hub if it is an id; None: the model is none.

    Raises:
        UserError: the adapter's files cannot be fetched.
    """
    path = Path(model).expanduser()
    if path.exists():
        whole = any(file.name != WEIGHTS for file in path.glob("*.safetensors"))
        return path if (path / CONFIG).exists() and not whole else None
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache

    from eval_harness.models import offline_if_unreachable

    if isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str):
        return None
    offline_if_unreachable()
    try:
        found = Path(hf_hub_download(model, CONFIG, revision=revision))
    except Exception:  # no adapter, or none that can be had: what is wrong then is said of the model
        return None
    wanted = ["adapter_*", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(model, revision=found.parent.name, allow_patterns=wanted))
    except Exception as error:
        if (found.parent / WEIGHTS).exists():  # offline, and fetched before
            return found.parent
        raise UserError(
            f"adapter {model!r} (revision {revision or 'main'}) cannot be fetched ({type(error).__name__}). Check the "
            "network, or give the path of a downloaded copy."
        ) from error


def check_checkpoint(model: str, revision: str | None = None, base_model: str | None = None) -> dict[str, Any]:
    """Identity of a model or of an adapter on its base; see :func:`eval_harness.models.check_model`.

    Args:
        model: folder or hub id of either.
        base_model: folder or hub id to take for the base that the adapter names.

    Returns:
        What ``check_model`` returns. Of an adapter, ``weights`` is over adapter and base, ``files`` holds the parts of
        both, ``base`` the base's name, revision and weights, and ``adapter`` its rank, number of modules and what of it
        only peft understands.

    Raises:
        UserError: as ``check_model``; another kind of adapter; a base that cannot be had; ranks or shapes that do not
            fit the configuration or the base; weights that are missing or damaged.
    """
    from eval_harness.models import check_model

    folder = adapter_folder(model, revision)
    if folder is not None:
        return _check_adapter(model, folder, base_model)
    if base_model:
        raise UserError(f"--base-model goes with a LoRA adapter; {model} is none.")
    return check_model(model, revision)


def _check_adapter(model: str, folder: Path, base_model: str | None) -> dict[str, Any]:
    config = read_config(folder)
    shapes = _shapes(folder)
    base, revision = _base_of(config, folder, base_model)
    identity = _check_base(base, revision, folder, base_model)
    ranks = _check_ranks(config, shapes, folder)
    modules = _check_modules(base, revision, shapes, folder)
    features = [key for key in _BEYOND_VLLM if config.get(key)]
    features += ["bias"] if config.get("bias", "none") != "none" else []
    features += ["matrices beside lora_A and lora_B"] if len(shapes) > 2 * modules else []
    features += ["modules of the vision tower"] if any(".visual." in f".{key}" for key in shapes) else []
    content = {key: value for key, value in config.items() if key not in _NOT_CONTENT}
    digest = xxhash.xxh3_128(json.dumps(content, sort_keys=True))
    digest.update((folder / WEIGHTS).read_bytes())
    of_base = {key: identity[key] for key in ("name", "revision", "weights")}
    digest.update(of_base["weights"] or f"{of_base['name']}@{of_base['revision']}")
    local = Path(model).expanduser().exists()
    if (folder / "tokenizer_config.json").exists():
        from eval_harness.models import has_chat_template

        identity["chat_template"] = has_chat_template(folder)
    return {
        **identity,
        "files": {**identity["files"], **_own_files(folder, content)},
        "name": folder.resolve().name if local else model,
        "revision": None if local else folder.name,
        "weights": digest.hexdigest(),
        "base": of_base,
        "adapter": {"rank": max(ranks), "modules": modules, "only_peft": features},
    }


def _own_files(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    """Hashes of the adapter's own parts, with tokenizer and image processor where it has them (:class:`Source`)."""
    from eval_harness.models import files_of

    own = Source("", None, folder)
    places = {"tokenizer": own.tokenizer, "chat template": own.tokenizer, "image processor": own.processor}
    taken = [part for part, (place, _) in places.items() if place]
    held = files_of(folder)
    return {
        **{part: held.get(part, "none") for part in taken},
        CONFIG: xxhash.xxh3_128(json.dumps(content, sort_keys=True)).hexdigest(),
        "adapter weights": xxhash.xxh3_128((folder / WEIGHTS).read_bytes()).hexdigest(),
    }


def check_engine(identity: dict[str, Any], engine: str) -> None:
    """Refuse an adapter that an engine cannot compute with.

    Raises:
        UserError: vLLM would not take it or not heed all of it; peft is not installed.
    """
    adapter = identity.get("adapter")
    if adapter is None:
        return
    if engine == "vllm":
        problems = list(adapter["only_peft"])
        problems += [f"rank {adapter['rank']}"] if adapter["rank"] > _VLLM_RANKS[-1] else []
        if problems:
            raise UserError(
                f"adapter {identity['name']} has what vLLM cannot compute with ({', '.join(problems)}): use --engine "
                "transformers, or merge it into its base (peft's merge_and_unload) and evaluate the merged folder."
            )
    elif importlib.util.find_spec("peft") is None:
        raise UserError(
            f"adapter {identity['name']}: the transformers engine needs the package peft. `pip install "
            "'gpg-paper-companion[lora]'`, or use --engine vllm."
        )


def source_of(model: str, revision: str | None, base_model: str | None = None) -> Source:
    """Where an engine reads a checked model from: the model itself, or the base and the adapter on it."""
    folder = adapter_folder(model, revision)
    if folder is None:
        return Source(model, revision)
    config = read_config(folder)
    base, base_revision = _base_of(config, folder, base_model)
    return Source(base, base_revision, folder, max(_check_ranks(config, _shapes(folder), folder)))


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA adapter.

    Raises:
        UserError: damaged, or another kind of adapter.
    """
    check_files(folder, (CONFIG, WEIGHTS))
    config = read_checkpoint_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        learned = str(kind).startswith(_PROMPT_LEARNING)
        why = (
            "a learned prompt, which takes positions of the context and has no weights to add" if learned else "no LoRA"
        )
        raise UserError(
            f"adapter {folder} has peft_type {clipped(kind)}: {why}. Only LORA is evaluated; where peft can merge it "
            "(merge_and_unload), evaluate the merged folder."
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"adapter {folder} is made for task_type {clipped(config['task_type'])}; CAUSAL_LM was expected."
        )
    for name, types, what in _KINDS:
        if config.get(name) is not None and not isinstance(config[name], types):
            raise UserError(f"{folder / CONFIG}: {name} is {clipped(config[name])}, expected {what}; train it again.")
    if any(not isinstance(rank, int) for rank in (config.get("rank_pattern") or {}).values()):
        raise UserError(f"{folder / CONFIG}: a rank in rank_pattern is no number; train it again.")
    return config


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the adapter's matrices, from the file's header."""
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    if not file.exists():
        other = f" It has adapter_model.bin, a pickle, which is not loaded: {CONVERT}."
        raise UserError(
            f"adapter {folder} holds no {WEIGHTS}.{other if (folder / 'adapter_model.bin').exists() else ''}"
        )
    try:
        with safe_open(file, framework="np") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): damaged or half-written. Copy or train it again.") from None


def _base_of(config: dict, folder: Path, base_model: str | None) -> tuple[str, str | None]:
    if base_model:
        return base_model, None
    if not config.get("base_model_name_or_path"):
        raise UserError(f"adapter {folder} names no base model; say which with --base-model.")
    return config["base_model_name_or_path"], config.get("revision")


def _check_base(base: str, revision: str | None, folder: Path, base_model: str | None) -> dict[str, Any]:
    from eval_harness.models import check_model

    if adapter_folder(base, revision) is not None:
        raise UserError(f"the base {base} of adapter {folder} is an adapter itself: merge that one first.")
    try:
        return check_model(base, revision)
    except UserError as error:
        remedy = "" if base_model else " If the base lies elsewhere now, say where with --base-model."
        raise UserError(f"adapter {folder} cannot be used without its base {base}: {error}{remedy}") from None


def _check_ranks(config: dict, shapes: dict[str, tuple], folder: Path) -> set[int]:
    """The ranks in use, after a look at whether matrices and configuration agree."""
    pairs: dict[str, dict[str, int]] = {}
    for module, side, shape in _matrices(shapes):
        pairs.setdefault(module, {})[side] = shape[0] if side == "A" else shape[1]
    if not pairs:
        raise UserError(
            f"adapter {folder}: {WEIGHTS} holds no LoRA matrices (base_model.model.<module>.lora_A.weight)."
        )
    stated = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    for module, ranks in sorted(pairs.items()):
        if len(ranks) < 2 or len(set(ranks.values())) > 1:
            raise UserError(f"adapter {folder}: lora_A and lora_B of {module} do not belong together ({ranks}).")
        if ranks["A"] not in stated:
            raise UserError(
                f"adapter {folder}: {CONFIG} says rank {config.get('r')}, the matrices of {module} have rank "
                f"{ranks['A']}. The two files are not of one training: copy both again."
            )
    return {ranks["A"] for ranks in pairs.values()}


def _check_modules(base: str, revision: str | None, shapes: dict[str, tuple], folder: Path) -> int:
    """The number of modules with an adapter, after a look at whether the base has them in these shapes."""
    sizes: dict[str, dict[str, int]] = {}
    for module, side, shape in _matrices(shapes):
        sizes.setdefault(module, {})["in" if side == "A" else "out"] = shape[1] if side == "A" else shape[0]
    model = without_weights(base, revision)
    modules = dict(model.named_modules()) if model is not None else None
    for module, size in sorted(sizes.items()) if modules is not None else ():
        of_base = modules.get(module)
        here = {"in": getattr(of_base, "in_features", None), "out": getattr(of_base, "out_features", None)}
        if of_base is None or (None not in here.values() and here != size):
            have = "has no such module" if of_base is None else f"has {here['in']} -> {here['out']} there"
            raise UserError(
                f"adapter {folder} does not fit the base {base}: it changes {module} ({size['in']} -> {size['out']}), "
                f"the base {have}. Give the base it was trained on with --base-model."
            )
    return len(sizes)


def _matrices(shapes: dict[str, tuple]) -> Iterator[tuple[str, str, tuple]]:
    for key, shape in shapes.items():
        if match := _KEY.fullmatch(key):
            yield match["module"], match["side"], shape


def without_weights(base: str, revision: str | None) -> Any:
    """A model's modules on the meta device; None: transformers does not know this architecture."""
    import torch
    import transformers

    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(base, revision=revision, **NO_CODE)
            sees = hasattr(config, "vision_config")
            kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            with torch.device("meta"):
                return kind.from_config(config)
        except (ValueError, KeyError, ImportError):
            return None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
