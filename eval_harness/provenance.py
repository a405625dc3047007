"""Where a run's numbers come from: command, machine, engine settings, data, graders, seeds. No secrets, no paths.

A run's ``provenance`` holds what its marks rest on (``benchmarks``, ``decoding``, ``seeds``) and one entry in
``sessions`` for every start that asked the engine: a run that was resumed, or merged from shards, has several.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xxhash

from eval_harness import outside, records
from eval_harness.benchmarks import Benchmark, prompts_hash
from eval_harness.engines.base import EngineSettings
from eval_harness.engines.openai import server_of
from eval_harness.errors import UserError
from eval_harness.graders.base import classes_of, grader_identity
from eval_harness.hardware import describe_hardware
from eval_harness.private import hide
from eval_harness.records import Item
from eval_harness.sources import Generated, Hub, Local

SEED_RULE = "sample i of an item: xxh3_64('<seed>/<benchmark>/<item>') mod 2^31, plus i"
_SECRET_NAME = re.compile(r"(token(?!s)|secret|passw|credential|api[-_]?key)(?!.*env)", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?<![\w.:/])(?:~[\w.-]*|[A-Za-z]:)?[/\\][^\s'\",;:=]+")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\",;]+", re.IGNORECASE)


def of_run(
    loaded: Sequence[tuple[Benchmark, list[Item], Any]],
    data_root: Path | None,
    checkpoint_decoding: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    classes: Mapping[str, list[str] | None] | None = None,
) -> dict[str, Any]:
    """What a run's marks rest on, known before the engine starts.

    Args:
        loaded: benchmark, items and decoding of each.
        data_root: folder of local data, None for the hub.
        checkpoint_decoding, overrides: what was given in place of documented decoding.
        classes: benchmark -> the names that its answers may be one of, in an undivided run.
    """
    classes = classes or {}
    return {
        "benchmarks": {b.name: of_benchmark(b, items, data_root, classes.get(b.name)) for b, items, _ in loaded},
        "decoding": {
            "checkpoint": dict(checkpoint_decoding or {}),
            "overrides": {name: value for name, value in overrides.items() if value is not None},
        },
        "seeds": {"decoding": {b.name: decoding.seed for b, _, decoding in loaded}, "rule": SEED_RULE},
        "sessions": [],
    }


def of_benchmark(
    benchmark: Benchmark, items: list[Item], data_root: Path | None, classes: list[str] | None = None
) -> dict[str, Any]:
    """Data, prompts and grader of one benchmark, with the list of classes that its answers are held against."""
    classes = classes or classes_of(benchmark.grader, (item.gold for item in items))
    return {
        "version": benchmark.version,
        "data": _data(benchmark, data_root),
        "prompts_hash": prompts_hash(items),
        "items_hash": items_hash(items),
        "grader": grader_identity(benchmark.grader),
        **({} if classes is None else {"classes": classes}),
    }


def rules_of(run: records.RunRecord, name: str) -> tuple[str, str] | None:
    """Published and strict rule, with their versions, that marked a benchmark of a stored run; None: not recorded."""
    grader = run.provenance.get("benchmarks", {}).get(name, {}).get("grader")
    if not grader:
        return None
    strict = grader.get("strict", grader)
    return tuple(f"{rule['name']} {rule['version']}" for rule in (grader, strict))


def with_samples(known: Mapping[str, Any], folder: Path, names: Collection[str]) -> dict[str, Any]:
    """A run's provenance with the hash of the samples that its scores were made from: ``samples_hash``."""
    benchmarks = {
        name: {**of_one, **({"samples_hash": records.lines_hash(path)} if name in names else {})}
        for name, of_one in known.get("benchmarks", {}).items()
        for path in [Path(folder) / "samples" / f"{name}.jsonl"]
    }
    return {**known, "benchmarks": benchmarks} if benchmarks else dict(known)


def _data(benchmark: Benchmark, data_root: Path | None) -> dict[str, Any]:
    source = benchmark.source
    if isinstance(source, Generated):
        return {"kind": "generated", "name": source.name}
    local = None if data_root is None else Path(data_root) / source.local_file
    if isinstance(source, Local) or (local is not None and local.exists()):
        return {"kind": "local", "file": source.local_file, "content_hash": _content_hash(local)}
    assert isinstance(source, Hub)
    return {"kind": "hub", "repo": source.repo, "split": source.split, "revision": source.commit()}


def _content_hash(data: Path) -> str:
    """xxh3_128 of a file; of a folder (ReasonSeg's), of its annotations and their names."""
    digest = xxhash.xxh3_128()
    for path in sorted(data.rglob("*.json")) if data.is_dir() else [data]:
        if path != data:
            digest.update(path.relative_to(data).as_posix().encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def items_hash(items: Sequence[Item]) -> str:
    """xxh3_128 over prompts, golds and whatever else the items hold, in their order."""
    digest = xxhash.xxh3_128()
    for item in items:
        digest.update(records.json_line(item))
    return digest.hexdigest()


def of_session(settings: EngineSettings, engine: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """One start of the engine.

    Args:
        settings: what was asked of it.
        engine: what it says it really uses.
        environment: see :func:`eval_harness.records.environment`.
    """
    asked = asdict(settings)
    for name in ("model", "api_key_env"):
        asked.pop(name)
    if settings.base_url:
        asked["base_url"] = server_of(settings.base_url)
    if settings.chat_template not in (None, "none"):
        asked["chat_template"] = f"xxh3_64 {xxhash.xxh3_64(settings.chat_template.encode()).hexdigest()}"
    # a path among settings that other modules add is shown as in a command
    asked = {name: shown(value) if isinstance(value, str) else value for name, value in asked.items()}
    return {
        "started": records.now(),
        "command": command_line(),
        "hardware": describe_hardware(),
        "settings": asked,
        "engine": dict(engine),
        "environment": dict(environment),
    }


def command_line(arguments: Sequence[str] | None = None) -> list[str]:
    """The command of this process, fit for a record: see :func:`shown`; secrets are ``***``."""
    words = [outside.clean(word) for word in (sys.orig_argv if arguments is None else arguments)]
    clean, hidden = [], False
    for place, word in enumerate(words):
        if place == 0:
            clean.append("python" if Path(word).name.startswith("python") else Path(word).name)
            continue
        name, equals, value = word.partition("=")
        option = name.lstrip("-") if equals or word.startswith("-") else ""
        if hidden:
            clean.append("***")
        elif equals and _SECRET_NAME.search(option):
            clean.append(f"{name}=***")
        elif equals and re.fullmatch(r"[\w.-]+", name):
            clean.append(f"{name}={shown(value)}")
        else:
            clean.append(shown(word))
        hidden = bool(word.startswith("--") and not equals and _SECRET_NAME.search(option))
    return clean


def shown(text: str) -> str:
    """Text without what tells about a machine: of paths the last part, of URLs public hosts only, no secrets."""
    whole = text.startswith(("/", "~")) and "," not in text or os.sep in text and _exists(text)
    text = _URL.sub(_public_url, text)
    text = hide(
        outside.clean(text)
    )  # first, so that of the home folder nothing but ~ is left to be the last part of a path
    if whole and "://" not in text:
        return Path(text).name or text
    return _ABSOLUTE.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1], text)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL, a user that is not
        return False


def _public_url(match: re.Match) -> str:
    parts = urlsplit(match.group())
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme}://{parts.path.rsplit('/', 1)[-1]}"
    try:
        server = server_of(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    except UserError:
        return f"{parts.scheme}://HOST"
    return f"{parts.scheme}://{server['host'] or ('localhost' if server['loopback'] else 'HOST')}:{server['port']}"
