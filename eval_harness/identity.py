"""What makes a run this run and no other: model, engine, settings, decoding, items with golds, pictures.

Whoever asks "is this run there already?" asks here. A run's ``identity`` is all that can move a mark; its hash is the
run's fingerprint. ``parts`` in it holds one hash for each input: of a checkpoint in a folder its weights,
``config.json``, ``generation_config.json``, tokenizer, chat template, image processor and adapter
(:func:`eval_harness.models.files_of`), of each benchmark its items (prompts, golds, contexts, their order) and its
pictures. A model of the hub is known by its commit, which fixes every file of it. A served model shows none of its
parts: its name and the server's public host are all that is known of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import xxhash

from eval_harness import records
from eval_harness.benchmarks import Benchmark, get_benchmark, prompts_hash
from eval_harness.engines.base import EngineSettings
from eval_harness.engines.openai import server_of
from eval_harness.images import ImageError
from eval_harness.models import check_model, files_of
from eval_harness.provenance import items_hash
from eval_harness.records import Item, RunRecord

ReadImages = Callable[[Item], list[bytes]]
_ALWAYS = ("revision", "dtype", "max_model_len", "chat_template", "tensor_parallel_size", "seed")
_NEVER = (
    "model",  # its identity is there
    "gpu_memory_utilization",
    "base_url",
    "concurrency",
    "api_key_env",
    "pipeline_parallel_size",
    "distributed_executor_backend",
    "base_model",  # of an adapter; its identity is in the adapter's
)
"""Settings of the engine in neither list count when they are not the default, so that new ones leave old runs alone."""
NOT_KEPT = (
    f"records before version {records.IDENTITY_SINCE} hold no hashes of chat template, tokenizer, configuration, "
    "adapter, golds and pictures"
)
_WORDS = {"revision": "model revision", "weights": "weights", "name": "model name"}


# --- Made once, before the engine starts ------------------------------------------------------------------------------


def request_of(
    model: Mapping[str, Any],
    engine: str,
    settings: EngineSettings,
    loaded: Sequence[tuple[Benchmark, list[Item], records.Decoding]],
    limit: int | None,
    *,
    run_id: str | None = None,
    parts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that can move a mark, as JSON has it.

    Args:
        model: from :func:`eval_harness.adapters.check_checkpoint`, or a record's ``model``.
        loaded: benchmark, all its items (not those of a shard alone) and decoding of each.
        run_id, parts: name and :func:`parts_of` the run; None: as records before version 5 have it.
    """
    plain = EngineSettings(settings.model)
    request = {
        "model": {k: model[k] for k in ("name", "revision", "weights")},
        "engine": engine,
        "settings": {
            k: v for k, v in asdict(settings).items() if k in _ALWAYS or (k not in _NEVER and v != getattr(plain, k))
        },
        # a server of one's own may move to another port or machine between two tries
        **({"server": server_of(settings.base_url)["host"]} if settings.base_url else {}),
        "limit": limit,
        "benchmarks": {
            b.name: [b.version, b.grader, prompts_hash(items), decoding.model_dump()] for b, items, decoding in loaded
        },
    }
    return request if parts is None else {**request, "run_id": run_id, "parts": dict(parts)}


def fingerprint(identity: Any) -> str:
    """Twelve hexadecimal digits for a run's identity."""
    return xxhash.xxh3_64(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def fingerprint_of_shard(whole: str, index: int, of: int) -> str:
    """The fingerprint of a part of the run with this one."""
    return fingerprint([whole, index, of])


def parts_of(
    model: Mapping[str, Any],
    loaded: Sequence[tuple[Benchmark, list[Item], Any]],
    readers: Mapping[str, ReadImages],
) -> dict[str, str]:
    """Name -> hash of every input of a run. Pictures are read, all of them, once.

    Args:
        model: from :func:`eval_harness.adapters.check_checkpoint`.
        loaded: benchmark, items and decoding of each.
        readers: reader of a benchmark's images, by its name.
    """
    parts = model_parts(model)
    for benchmark, items, _ in loaded:
        parts |= data_parts(benchmark, items, readers[benchmark.name])
    return parts


def model_parts(model: Mapping[str, Any]) -> dict[str, str]:
    """The model's parts: of a folder one for each kind of file, of the hub the commit, of a server none."""
    base = model.get("base")
    parts = {} if base else {"revision": model["revision"], "weights": model["weights"]}
    parts |= {"base revision": base["revision"], "base weights": base["weights"]} if base else {}
    return {name: value for name, value in (parts | dict(model.get("files") or {})).items() if value is not None}


def data_parts(benchmark: Benchmark, items: list[Item], read: ReadImages) -> dict[str, str]:
    """The parts of one benchmark: its items, and its pictures if it has any."""
    parts = {f"items of {benchmark.name}": items_hash(items)}
    if benchmark.image_field:
        parts[f"pictures of {benchmark.name}"] = pictures_hash(items, read)
    return parts


def pictures_hash(items: Sequence[Item], read: ReadImages) -> str:
    """xxh3_128 over the encoded images of the items, in their order; one that cannot be read counts as that."""
    digest = xxhash.xxh3_128()
    for item in items:
        try:
            images = read(item)
        except ImageError:
            digest.update(b"unreadable\0")
            continue
        for data in images:
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


# --- Held against a record --------------------------------------------------------------------------------------------


def identity_of(run: RunRecord) -> dict[str, Any]:
    """A record's identity; of a shard that of the whole run. Empty where it holds none (earlier versions, imports)."""
    return run.identity or (run.shard or {}).get("request") or {}


def changes(run: RunRecord, identity: Mapping[str, Any]) -> list[str]:
    """What of a recorded run is another now, in words; of a record without an identity, that nothing is known."""
    then = identity_of(run)
    return differences(then, identity) if then.get("parts") else [NOT_KEPT]


def model_changes(run: RunRecord, model: Mapping[str, Any]) -> list[str]:
    """Parts of a model that are not those a run was made with; empty: it is the same model.

    Args:
        model: from :func:`eval_harness.adapters.check_checkpoint` now. Of a folder, a record without an identity never
            says enough; of the hub, name and commit do.
    """
    if model["weights"] is None:
        keys = ("name", "revision")
        return [_WORDS[key] for key in keys if run.model.get(key) != model[key]]
    then = recorded_parts(run)
    if not then:
        return ["weights"] if run.model.get("weights") != model["weights"] else [NOT_KEPT]
    return _other(_of_model(then), model_parts(model))


def changed_since(run: RunRecord, checkpoint: Path) -> list[str]:
    """Parts of the checkpoint in a folder that are known to be others than when a run was made, for readers of records.

    A folder that is gone says nothing, nor does a record without an identity whose weights are these. Weights are read
    only if a file of them was touched since the run began.
    """
    if not (checkpoint / "config.json").exists():
        return []
    if _touched_since(run.created, checkpoint):
        model = check_model(str(checkpoint))
    else:
        model = {"revision": None, "weights": run.model.get("weights"), "files": files_of(checkpoint)}
    found = model_changes(run, model)
    return [] if found == [NOT_KEPT] else found


def _touched_since(time: str, folder: Path) -> bool:
    try:
        then = datetime.fromisoformat(time).timestamp()
    except ValueError:
        return True
    times = [path.stat() for path in folder.glob("*.safetensors")]
    return any(max(of.st_mtime, of.st_ctime) >= then for of in times)


def data_changes(run: RunRecord, parts: Mapping[str, str]) -> list[str]:
    """Which of these parts of benchmarks (:func:`data_parts`) are not those a run was made with.

    Records of versions 3 and 4 hold the hashes of items, none of pictures.
    """
    then = recorded_parts(run) or {
        f"items of {name}": known["items_hash"]
        for name, known in run.provenance.get("benchmarks", {}).items()
        if "items_hash" in known
    }
    return [name for name, value in parts.items() if then.get(name) != value]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """What differs between two identities, in words; of hashes the part's name alone."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = []
        for key in dict.fromkeys([*one, *other]):
            if key == "parts" and not path:
                found += _other(*({} if not isinstance(of.get(key), Mapping) else of[key] for of in (one, other)))
            else:
                found += differences(one.get(key), other.get(key), f"{path} {key}".strip())
        return list(dict.fromkeys(found))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for mine, theirs in zip(one, other, strict=True) for d in differences(mine, theirs, path)]
    return [] if one == other else [f"{path}: {str(one)[:60]} and {str(other)[:60]}"]


def _other(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]


def recorded_parts(run: RunRecord) -> dict[str, str]:
    """A record's parts by name; none where it holds none."""
    parts = identity_of(run).get("parts")
    return dict(parts) if isinstance(parts, Mapping) else {}


def _of_model(parts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parts.items() if not name.startswith(("items of ", "pictures of "))}


# --- Does a record fit its own fingerprint? ---------------------------------------------------------------------------


def misfits(run: RunRecord) -> list[str]:
    """What of a finished record does not follow from its identity and fingerprint; empty: it all fits.

    Records before version 5 hold no identity; there, what the fingerprint was made from is put together again from
    the record's other fields.
    """
    if run.engine.get("name") == "imported":
        return []
    try:
        return _misfits(run)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return ["its identity, engine or settings do not have the shape of a record's"]


def _misfits(run: RunRecord) -> list[str]:
    if run.schema_version < records.IDENTITY_SINCE:
        return [] if run.fingerprint in _earlier_fingerprints(run) else [
            "model, weights, engine, settings, decoding or prompts are not those of the fingerprint"
        ]  # fmt: skip
    known = identity_of(run)
    if not known:
        return ["it holds no identity"]
    whole = fingerprint(known)
    if run.shard is not None:
        whole = fingerprint_of_shard(whole, run.shard["index"], run.shard["of"])
    problems = [] if whole == run.fingerprint else ["the fingerprint is not that of the identity"]
    shown = {
        "run_id": run.run_id,
        "model": {key: run.model.get(key) for key in ("name", "revision", "weights")},
        "engine": run.engine["name"],
        "limit": run.settings.get("limit"),
        **{f"setting {key}": run.settings.get(key) for key in _SHOWN},
    }
    held = {
        **{key: known.get(key) for key in ("run_id", "model", "engine", "limit")},
        **{f"setting {key}": known["settings"].get(key, _SHOWN[key]) for key in _SHOWN},
    }
    for name, result in run.benchmarks.items():
        version, _, prompts, decoding = known["benchmarks"].get(name, [None] * 4)
        shown |= {f"{name} version": result.version, f"{name} decoding": result.decoding.model_dump()}
        held |= {f"{name} version": version, f"{name} decoding": decoding}
        if run.shard is None:
            shown[f"{name} prompts_hash"], held[f"{name} prompts_hash"] = result.prompts_hash, prompts
    return problems + [f"{what} (identity, record)" for what in differences(held, shown)]


_SHOWN = {"dtype": None, "max_model_len": None, "chat_template": None, "deterministic": False}
"""Settings that a record shows and its identity holds, with what stands for one that the identity leaves out."""


def _earlier_fingerprints(run: RunRecord) -> set[str]:
    """What the fingerprint of a record before version 5 may be, from its other fields."""
    if run.shard is not None:
        whole = fingerprint(run.shard["request"])
        return {fingerprint_of_shard(whole, run.shard["index"], run.shard["of"])}
    sessions = run.provenance.get("sessions") or []
    fields = EngineSettings.__dataclass_fields__
    told = {key: value for key, value in (sessions[-1]["settings"] if sessions else {}).items() if key in fields}
    server = told.pop("base_url", None)
    told |= {key: run.settings.get(key) for key in ("dtype", "max_model_len", "chat_template")}
    found = set()
    for guess in [{}] if sessions else _guesses(run):
        settings = EngineSettings("", **(told | guess))
        request = request_of(run.model, run.engine["name"], settings, [], run.settings.get("limit"))
        if server is not None:
            request["server"] = server["host"]
        request["benchmarks"] = {
            name: [result.version, _grader(run, name), result.prompts_hash, result.decoding.model_dump()]
            for name, result in run.benchmarks.items()
        }
        found.add(fingerprint(request))
    return found


def _guesses(run: RunRecord) -> list[dict[str, Any]]:
    """Settings that records before version 3 do not hold: asked for as they were used, or left to their defaults."""
    known = {"tensor_parallel_size": run.engine.get("tensor_parallel_size", 1)}
    pixels = {key: (run.engine.get("images") or {}).get(key) for key in ("min_pixels", "max_pixels")}
    revision = run.model.get("revision")
    return [
        known | ({"revision": revision} if asked else {}) | {k: v for k, v in pixels.items() if k in bounds}
        for asked in (False, True)
        for bounds in ((), ("min_pixels",), ("max_pixels",), ("min_pixels", "max_pixels"))
    ]


def _grader(run: RunRecord, benchmark: str) -> str:
    known = run.provenance.get("benchmarks", {}).get(benchmark, {}).get("grader")
    return known["name"] if known else get_benchmark(benchmark).grader
