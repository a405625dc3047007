"""Shared fixtures: a tiny random checkpoint and benchmark files of our own; for the real ones see needs.py."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis  # imported early: it asks who refers to trio's random generator, and a frozen module does not show
import own_data
import pytest

pytest_plugins = ["tiers", "needs"]
# No test is timed: on a busy machine one drawn input takes longer than Hypothesis' 200 ms.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores; torch reads it when it is imported


@pytest.fixture(scope="session", autouse=True)
def warm_processes():
    """What engines and grading workers are forked from lasts as long as the session: imports are paid once."""
    from eval_harness.engines.fork_server import warm_engines
    from eval_harness.graders import nursery

    nursery.LINGER_SECONDS = 3600.0
    with warm_engines():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect no garbage while modules are imported: there is none to speak of, and looking for it takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Exempt what is loaded by now from garbage collection. Every training collects all of it at its end, and for the
    modules of torch, transformers and TRL that takes half a second, ten times as long as a small training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def own_data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a file of our own for each benchmark, in the hub's columns and of the expected length."""
    folder = tmp_path_factory.mktemp("own_data")
    own_data.write(folder)
    return folder


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Path:
    """By its parameter: ``own`` as above, ``hand_made`` (short files, without the generated rows), or ``real``."""
    if request.param == "hand_made":
        return own_data.FOLDER
    return request.getfixturevalue({"own": "own_data_root", "real": "data_root"}[request.param])


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 0.1 M random parameters with the tiny world's tokenizer, context 8192."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from gpg_repro.tiny.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # head dimension 32, the smallest vLLM's CPU attention has
        num_key_value_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "random-qwen2"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_of() -> Iterator[Callable[[str], Path]]:
    """Gives the base of scale smoke that recipes train from, by its name: trained by the first process that asks, and
    the same afterwards, which is checked (root may write into files that are read-only)."""
    from filelock import FileLock

    from gpg_repro.paths import cache
    from gpg_repro.tiny import build_base
    from gpg_repro.tiny.vision_warmup import BASES, build_vision_base

    def content(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    given: dict[Path, dict[str, str]] = {}

    def build(name: str) -> Path:
        cache().mkdir(parents=True, exist_ok=True)
        with FileLock(cache() / ".tests.lock"):
            if name in BASES:
                folder = build_vision_base(name, cache(), progress=False)
            else:
                folder = build_base(cache(), scale=name, progress=False)
            for path in folder.iterdir():
                path.chmod(0o444)
        given.setdefault(folder, content(folder))
        return folder

    yield build
    for folder, before in given.items():
        assert content(folder) == before, f"a test wrote into {folder}, which others train from"


@pytest.fixture(scope="session")
def smoke_base(base_of) -> Path:
    """The text base of scale smoke."""
    return base_of("smoke")


@pytest.fixture(scope="session")
def grading_pool():
    """One pool for the session: its workers take seconds to start."""
    from eval_harness.graders.pool import shared_pool

    return shared_pool()


@pytest.fixture(scope="session")
def kept_engines():
    """Real engines, each started once in a session, for tests that need one but not one of their own."""
    from kept_engines import KeptEngines

    engines = KeptEngines()
    yield engines
    engines.close()


@pytest.fixture
def any_engine(kept_engines, monkeypatch):
    """Evaluations of this test take a kept engine."""
    from eval_harness import runner

    monkeypatch.setattr(runner, "EngineProcess", kept_engines)
    return kept_engines
