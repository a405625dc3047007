"""The tiny world's model: an ordinary Qwen2, small enough to train in a minute on a laptop."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from gpg_repro.tiny.tokenizer import MAX_LENGTH


def build_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised float32 Qwen2 on the CPU, the same weights for the same seed.

    The caller's random state is left as it was. Heads are 32 wide (vLLM's smallest), the feed-forward part is three
    times the hidden size, input and output embeddings are shared.

    Raises:
        ValueError: `hidden_size` is not a positive multiple of the head width.
    """
    head_dim = 32
    if hidden_size < head_dim or hidden_size % head_dim:
        raise ValueError(f"hidden_size must be a positive multiple of {head_dim}, got {hidden_size}")
    num_heads = hidden_size // head_dim
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.02,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return model
