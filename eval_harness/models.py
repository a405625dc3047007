"""Is this a model we can load? Asked before anything expensive starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from eval_harness.errors import UserError


def check_model(model: str, revision: str | None = None) -> dict[str, Any]:
    """Identity of a model: a local folder is fingerprinted by content, a hub id by its resolved commit.

    Args:
        model: folder with ``config.json`` and safetensors weights, or a hub id ``owner/name``.
        revision: hub revision; does not apply to a folder.

    Returns:
        ``{"name", "revision", "weights", "context", "vision"}``; ``name`` is the folder's name (never its path) or the
        hub id, ``vision`` whether the model takes images.

    Raises:
        UserError: missing, unreadable or half-written checkpoint; unknown, gated or unreachable repository.
    """
    path = Path(model).expanduser()
    if path.exists():
        return _check_folder(path)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"model {model!r} is neither an existing folder nor a hub id of the form owner/name.")
    from huggingface_hub import hf_hub_download

    try:
        config_path = Path(hf_hub_download(model, "config.json", revision=revision))
    except Exception as error:  # the client raises a family of types for gated, missing and offline
        raise UserError(
            f"model {model!r} (revision {revision or 'main'}) is neither a folder, nor in the hub's cache, nor "
            f"reachable ({type(error).__name__}). Check the id and the network; for a gated repository accept its "
            "terms and set HF_TOKEN; or give the path of a downloaded copy."
        ) from error
    config = _read_config(config_path)
    # the cache's folder is named by the commit the revision resolved to
    return {"name": model, "revision": config_path.parent.name, "weights": None, **_facts(config)}


def _check_folder(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_dir() or not (path / "config.json").exists():
        raise UserError(f"model {path} holds no config.json; a checkpoint folder of transformers was expected.")
    config = _read_config(path / "config.json")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        adapters = " It holds a LoRA adapter; merge it first." if (path / "adapter_config.json").exists() else ""
        raise UserError(f"model {path} holds no *.safetensors weights (other formats are not loaded).{adapters}")
    index = path / "model.safetensors.index.json"
    if index.exists():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(wanted - {f.name for f in files})
        if missing:
            raise UserError(f"model {path} is incomplete: missing {', '.join(missing)}. Download it again.")
    digest = xxhash.xxh3_128()
    for file in files:
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"checkpoint file {file} cannot be read ({error}). It is damaged or half-written: copy or "
                "train it again."
            ) from None
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return {"name": path.resolve().name, "revision": None, "weights": digest.hexdigest(), **_facts(config)}


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); the checkpoint is damaged.") from None
    if "model_type" not in config:
        raise UserError(f"{path} names no model_type; it is not a transformers checkpoint.")
    return config


def _facts(config: dict) -> dict[str, Any]:
    text = config.get("text_config") or config
    return {"context": text.get("max_position_embeddings"), "vision": "vision_config" in config}
