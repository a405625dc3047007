"""Shared fixtures: a tiny random checkpoint and benchmark files of our own; for the real ones see needs.py."""

from __future__ import annotations

import os
from pathlib import Path

import own_data
import pytest

pytest_plugins = ["tiers", "needs"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
def grading_pool():
    """One pool for the session: its workers take seconds to start."""
    from eval_harness.graders.pool import shared_pool

    return shared_pool()
