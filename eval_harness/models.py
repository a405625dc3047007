"""Is this a model we can load? Asked before anything expensive starts."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from eval_harness.errors import UserError, clipped
from eval_harness.inputs import open_regular, read_json_object

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
"""Any of these sets of files is a tokenizer."""
FILES = {
    "config.json": ("config.json", "quantize_config.json", "hf_quant_config.json"),
    "generation_config.json": ("generation_config.json",),
    "weights index": ("model.safetensors.index.json",),
    "tokenizer": (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "*.tiktoken",
        "added_tokens.json",
        "special_tokens_map.json",
    ),
    "chat template": ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    "image processor": (
        "preprocessor_config.json",
        "image_processor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
    ),
}
"""What engines read of a checkpoint beside its weights. ``tokenizer_config.json`` belongs to two: its ``chat_template``
to the template, the rest to the tokenizer."""
_OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_unreachable = False
"""The hub was found not to answer in this process."""
NO_CODE = {"trust_remote_code": False}
"""For every ``from_pretrained``: nothing that a checkpoint brings is run. Left to itself, transformers would ask on
standard input. There is no switch; a checkpoint that needs code of its own is refused (:func:`check_model`)."""
ONLY_WEIGHTS = {**NO_CODE, "use_safetensors": True}
"""The same for weights: pickles (``pytorch_model.bin``) are not opened, and there is no switch for that either."""
_DAMAGED = "The checkpoint is damaged or was edited: copy or download it again"
_OBJECTS = {
    **dict.fromkeys(("config.json", "generation_config.json", "adapter_config.json"), 16 << 20),
    **dict.fromkeys(("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), 16 << 20),
    **dict.fromkeys(("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"), 16 << 20),
    **dict.fromkeys(("chat_template.json", "model.safetensors.index.json"), 64 << 20),
    **dict.fromkeys(("tokenizer.json", "vocab.json"), 256 << 20),
}
"""JSON files that loading reads, each of which holds an object -> the most bytes it may have."""
_READ_BY_LOADING = (*_OBJECTS, "merges.txt", "tokenizer.model", "chat_template.jinja", "*.safetensors")
CONVERT = "convert a copy (docs/reliability.md, Trust, has the commands)"


def check_model(model: str, revision: str | None = None) -> dict[str, Any]:
    """Identity of a model: a local folder is fingerprinted by content, a hub id by its resolved commit.

    Everything that loading needs must be there: configuration, tokenizer, every weight file of the index. What a hub
    id lacks in the cache must be on the hub, with room for it on the disk; it is fetched when the engine starts.

    Args:
        model: folder with ``config.json`` and safetensors weights, or a hub id ``owner/name``.
        revision: hub revision; does not apply to a folder.

    Returns:
        ``{"name", "revision", "weights", "files", "context", "vision", "chat_template"}``; ``name`` is the folder's
        name (never its path) or the hub id, ``files`` what :func:`files_of` says of a folder (of a hub id nothing: its
        commit fixes them), ``vision`` whether the model takes images, ``chat_template`` whether its tokenizer brings
        one (None: not known before it is fetched).

    Raises:
        UserError: missing, unreadable or half-written checkpoint; unknown, gated or unreachable repository; a revision
            that is not there; a download that was not finished; no room for one.
    """
    path = Path(model).expanduser()
    if path.exists():
        return _check_folder(path)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"model {model!r} is neither an existing folder nor a hub id of the form owner/name.")
    config_path = fetch(model, "config.json", revision)
    config, snapshot = read_config(config_path), config_path.parent
    check_files(snapshot)
    missing = _missing_files(snapshot)
    if missing:
        _check_download(model, revision, snapshot, missing)
    for file in sorted(snapshot.glob("*.safetensors")):
        if file.exists():  # a link to what is not there yet is none
            check_weights(file, f"Fetch it again: {_download(model, revision)} --force-download")
    # the cache's folder is named by the commit the revision resolved to
    template = None if missing else has_chat_template(snapshot)
    facts = _facts(config)
    return {"name": model, "revision": snapshot.name, "weights": None, "files": {}, **facts, "chat_template": template}


def check_chat_template(identity: dict[str, Any], chat_template: str | None) -> None:
    """Refuse a model whose tokenizer has no chat template where none was given.

    Args:
        identity: from :func:`check_model`.
        chat_template: None: the model's own is wanted.

    Raises:
        UserError: there is none.
    """
    if chat_template is None and identity.get("chat_template") is False:
        raise UserError(
            f"the tokenizer of {identity['name']} has no chat template. Give one with --chat-template FILE, or "
            "--chat-template none to send the prompt as plain text."
        )


def is_cached(model: str, revision: str | None = None) -> bool:
    """Whether all that loading a hub id needs is on this disk."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return isinstance(config, str) and not _missing_files(Path(config).parent)


def offline_if_unreachable() -> None:
    """Ask the hub once whether it answers; if not, go on from the cache alone, engines included.

    Its client would try every single file again for half a minute.
    """
    global _unreachable
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        httpx.head(constants.ENDPOINT, timeout=10)
    except httpx.TransportError:
        _unreachable = constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the engine's process, and for datasets where it is imported later
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        print(f"{constants.ENDPOINT} does not answer; only what is cached can be used.", file=sys.stderr)


def fetch(model: str, name: str, revision: str | None = None) -> Path:
    """A small file of a model of the hub, from the cache or from the hub (or the mirror that HF_ENDPOINT names).

    Raises:
        UserError: says which it is, with the remedy: unknown id, gated, refused token, revision that is not there,
            file that is not there, offline and not cached, unreachable.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    what = f"model {model!r} (revision {revision or 'main'})"
    hub = constants.ENDPOINT
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except errors.GatedRepoError:
        raise UserError(
            f"{what} is gated: {hub} hands it only to accounts that accepted its terms. Accept them at {hub}/{model}, "
            "then log in (`hf auth login`) or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{what}: {hub} has the repository, but not this revision; it was removed, or never was. Give another "
            "--revision (main is the newest)."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what}: {hub} has no such repository, or hides it from you. Check owner and name for slips; for a "
            "private one log in (`hf auth login`) or set HF_TOKEN."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise _not_cached(what, model, name, revision) from None
    except errors.EntryNotFoundError:
        raise UserError(
            f"{what}: the repository holds no {name}; it is no checkpoint of transformers. Choose another."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "Its token is not accepted: renew HF_TOKEN." if status in (401, 403) else "Try again later."
        raise UserError(f"{what}: {hub} answered {status}. {remedy}") from None
    except Exception as error:  # what else the client raises (bad ids, broken proxies) is no bug of ours either
        problem = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{what} cannot be had from {hub} ({type(error).__name__}: {problem}).") from None


def _not_cached(what: str, model: str, name: str, revision: str | None) -> UserError:
    """No answer from the hub, and not on this disk: what the cache does hold, and how to fill it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and not _unreachable:
        why, other = "HF_HUB_OFFLINE is set, so the hub was not asked", "unset HF_HUB_OFFLINE"
    else:
        why, other = f"{constants.ENDPOINT} cannot be reached", "check the network and HF_ENDPOINT"
    folder = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    held = sorted(path.name[:8] for path in folder.glob("snapshots/*") if path.is_dir())
    cached = f"the cache holds other revisions of it ({', '.join(held)})" if held else "the cache has nothing of it"
    if (folder / "snapshots" / (revision or "")).is_dir() and revision:
        cached = f"its download was not finished ({name} is missing)"
    return UserError(
        f"{what} is neither here nor reachable: {why}, and {cached}. Fetch it where there is a network "
        f"(`{_download(model, revision)}`, then copy the folder {folder.name} into this cache), {other}, or give the "
        "path of a copy."
    )


def _download(model: str, revision: str | None) -> str:
    """The command that fetches, or goes on fetching, what loading needs."""
    of = f" --revision {revision}" if revision else ""
    return f"hf download {model}{of} --exclude '*.bin'"


def shards_of(index: Path) -> set[str]:
    """Names of the weight files that an index names.

    Raises:
        UserError: it cannot be read, or names something else or files elsewhere.
    """
    named = _field(index, read_checkpoint_json(index), "weight_map", dict, "an object of names of files") or {}
    if strange := [name for name in named.values() if not isinstance(name, str)]:
        raise UserError(f"{index}: weight_map names {clipped(strange[0])} for a file. {_DAMAGED}.")
    shards = set(named.values())
    if outside := sorted(name for name in shards if Path(name).name != name or "\0" in name):
        raise UserError(f"{index} names weights outside of its folder ({clipped(outside[0])}); they are not read.")
    return shards


def _missing_files(folder: Path) -> list[str]:
    """Names of what loading needs and the folder lacks; a link whose file is gone is missing too."""
    missing = []
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = shards_of(index)
        missing += sorted(name for name in shards if not (folder / name).exists())
    elif not any(path.exists() for path in folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    if not any(all((folder / name).exists() for name in names) for names in _TOKENIZERS):
        missing.append("tokenizer.json")
    elif not (folder / "tokenizer_config.json").exists():
        missing.append("tokenizer_config.json")
    return missing


def _check_download(model: str, revision: str | None, snapshot: Path, missing: list[str]) -> None:
    """Whether what the cache lacks is on the hub, and fits on the disk."""
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(model, revision=snapshot.name, files_metadata=True)
    except Exception as error:  # offline, or the hub does not answer: then the cache is all there is
        partial = ", ".join(missing)
        raise UserError(
            f"model {model!r} (revision {revision or 'main'}) is in the cache in part only; missing: {partial}; and "
            f"{constants.ENDPOINT} was not asked or did not answer ({type(error).__name__}). Finish the download where "
            f"there is a network: {_download(model, revision)}"
        ) from None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if not any(name.endswith(".safetensors") and "/" not in name for name in sizes):
        others = ", ".join(sorted(name for name in sizes if name.endswith(_OTHER_WEIGHTS)))
        raise UserError(
            f"model {model!r} at {snapshot.name[:8]} holds no *.safetensors weights (but {others or 'nothing else'}); "
            "other formats are not loaded. Give a --revision that has them, or {CONVERT}."
        )
    if not any(all(name in sizes for name in names) for names in _TOKENIZERS):
        raise UserError(
            f"model {model!r} at {snapshot.name[:8]} holds no tokenizer. Give a --revision that has one, or a copy "
            "with the tokenizer of its base."
        )
    wanted = sum(
        size for name, size in sizes.items() if name.endswith(".safetensors") and not (snapshot / name).exists()
    )
    free = shutil.disk_usage(snapshot).free
    if wanted > free:
        raise UserError(
            f"model {model!r}: {wanted / 1e9:.1f} GB of weights are still to be fetched, {free / 1e9:.1f} GB are free "
            "where the hub's cache lies. Make room, or set HF_HOME to a larger disk."
        )


def _check_folder(path: Path) -> dict[str, Any]:
    if not path.is_dir() or not (path / "config.json").exists():
        adapter = " It holds a LoRA adapter, which can be evaluated; for all else merge it into its base first."
        raise UserError(
            f"model {path} holds no config.json; a checkpoint folder of transformers was expected."
            + (adapter if (path / "adapter_config.json").exists() else "")
        )
    check_files(path)
    config = read_config(path / "config.json")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        others = ", ".join(sorted(f.name for f in path.iterdir() if f.suffix in _OTHER_WEIGHTS))
        raise UserError(
            f"model {path} holds no *.safetensors weights (but {others or 'nothing else'}); other formats are not "
            f"loaded: {CONVERT}."
        )
    missing = _missing_files(path)
    if missing:
        raise UserError(f"model {path} is incomplete: missing {', '.join(missing)}. Copy or download it again.")
    digest = xxhash.xxh3_128()
    for file in files:
        check_weights(file, "Copy or train it again")
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return {
        "name": path.resolve().name,
        "revision": None,
        "weights": digest.hexdigest(),
        "files": files_of(path),
        **_facts(config),
        "chat_template": has_chat_template(path),
    }


def files_of(folder: Path) -> dict[str, str]:
    """Part of ``FILES`` -> xxh3_128 over names and bytes of its files; a part without files is left out."""
    found = {}
    for part, patterns in FILES.items():
        contents = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for pattern in patterns
            for path in sorted(folder.glob(pattern))
        }
        contents |= {name: data for name, data in _of_tokenizer_config(folder, part).items() if data}
        if contents:
            digest = xxhash.xxh3_128()
            for name, data in contents.items():
                digest.update(f"{name}\0{len(data)}\0".encode() + data)
            found[part] = digest.hexdigest()
    return found


def _of_tokenizer_config(folder: Path, part: str) -> dict[str, bytes]:
    """What of ``tokenizer_config.json`` belongs to a part."""
    path = folder / "tokenizer_config.json"
    if part not in ("tokenizer", "chat template") or not path.exists():
        return {}
    config = dict(read_checkpoint_json(path))
    template = config.pop("chat_template", None)
    if part == "chat template":
        return {path.name: b"" if template is None else json.dumps(template).encode()}
    return {path.name: json.dumps(config).encode()}


def check_weights(file: Path, remedy: str) -> None:
    """Refuse a safetensors file that is not whole.

    Args:
        remedy: what to do, for the message.

    Raises:
        UserError: it cannot be read, or is shorter than its header says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"checkpoint file {file} cannot be read ({error}). It is damaged or half-written. {remedy}."
        ) from None


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder brings a chat template."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(read_checkpoint_json(path).get("chat_template"))


def read_checkpoint_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint, which holds an object.

    Raises:
        UserError: it is gone, no regular file, too large, or holds something else.
    """
    try:
        return read_json_object(path, _OBJECTS[path.name], _DAMAGED)
    except FileNotFoundError:
        raise UserError(f"{path} is not there, or a link to nothing. {_DAMAGED}.") from None


def _field(path: Path, holder: Mapping[str, Any], name: str, kind: type | types.UnionType, what: str) -> Any:
    """A field of a checkpoint's JSON file; None where it is missing or null.

    Raises:
        UserError: it is of another type than ``kind``, which is called ``what``.
    """
    value = holder.get(name)
    if value is None or (isinstance(value, kind) and not (isinstance(value, bool) and kind is int)):
        return value
    raise UserError(f"{path}: {name} is {clipped(value)}, expected {what}. {_DAMAGED}.")


def check_files(folder: Path, names: Sequence[str] = _READ_BY_LOADING) -> None:
    """Whether all that loading would open in a folder are regular files, and the JSON files among them objects.

    Files that are not there are none of its business.

    Args:
        names: the files, ``*`` for any part of a name.

    Raises:
        UserError: the first that is something else.
    """
    for path in (path for name in names for path in sorted(folder.glob(name))):
        try:
            if path.name in _OBJECTS:
                read_json_object(path, _OBJECTS[path.name], _DAMAGED)
            else:
                with open_regular(path, _DAMAGED):
                    pass
        except FileNotFoundError:  # a link of the hub's cache to what is not fetched yet
            continue


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint.

    Raises:
        UserError: it cannot be read, is none of transformers, or its model is code of its own.
    """
    config = read_checkpoint_json(path)
    if _field(path, config, "model_type", str, "a name") is None:
        raise UserError(f"{path} names no model_type; it is not a transformers checkpoint.")
    for name in ("text_config", "vision_config"):
        _field(path, config, name, dict, "an object")
    _field(path, config.get("text_config") or config, "max_position_embeddings", int, "a number of tokens")
    if "auto_map" in config:
        _refuse_code(path, config["model_type"])
    return config


def _refuse_code(path: Path, model_type: str) -> None:
    """Refuse a checkpoint whose model is code of its own. One that transformers knows too is loaded by transformers."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{path}: the model ({model_type}) is Python code that comes with the checkpoint, and code of others is "
            f"never run here (trust_remote_code is off). transformers {transformers.__version__} has no such model; "
            "take a checkpoint of one it has, or serve this one elsewhere and use --engine openai."
        )


def _facts(config: dict) -> dict[str, Any]:
    text = config.get("text_config") or config
    return {"context": text.get("max_position_embeddings"), "vision": "vision_config" in config}
