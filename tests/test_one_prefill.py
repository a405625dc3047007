"""One prefill per prompt in the transformers engine: the same completions as with one per sample, and fewer tokens."""

from __future__ import annotations

import base64
import io
import logging
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    MllamaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

from eval_harness.engines import EngineSettings, Request, Sampling
from eval_harness.engines.transformers import TransformersBackend, _obstacle
from gpg_repro.tiny.tokenizer import build_tokenizer
from gpg_repro.tiny.vision_model import build_processor, build_vision_model

TEXT, VISION = ("qwen2", "sliding"), ("qwen2_vl", "qwen2_5_vl")
NEW_TOKENS = 12
WIDE = 0.3
"""Standard deviation of the weights: completions then depend on prompts and pictures."""


def text_config(config_class, **changes):
    tokenizer = build_tokenizer()
    return config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=WIDE,
        **changes,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes a random checkpoint of a kind, once, and returns its folder."""
    root = tmp_path_factory.mktemp("one_prefill")

    def folder_of(kind: str):
        folder = root / kind
        if folder.exists():
            return folder
        processor = build_processor() if kind in VISION else build_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if kind == "qwen2":
                model = Qwen2ForCausalLM(text_config(Qwen2Config))
            elif kind == "sliding":  # one full layer and one whose window is shorter than the prompts
                sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
                model = Qwen2ForCausalLM(text_config(Qwen2Config, **sliding))
            elif kind == "hybrid":  # a convolution with a state and a full layer
                model = Lfm2ForCausalLM(text_config(Lfm2Config, full_attn_idxs=[1]))
            else:
                qwen2_5 = kind == "qwen2_5_vl"
                model = build_vision_model(processor.tokenizer, qwen2_5=qwen2_5, initializer_range=WIDE)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return folder_of


def requests(kind: str, samples: int, temperature: float, max_new_tokens: int = NEW_TOKENS) -> list[Request]:
    """Ragged prompts, with pictures of several sizes where the model sees, in both forms."""
    sampling = Sampling(temperature, 0.9 if temperature else 1.0, 0, max_new_tokens, samples, seed=7)
    shapes = [(112, 112), (56, 140), (84, 112), (112, 56)]
    return [
        Request(
            str(number),
            [{"role": "user", "content": "How many? " + "1+2" * 3 * number}],
            sampling,
            [picture(number, shape)] if kind in VISION else [],
            "concatenate" if number % 2 else "chat",
        )
        for number, shape in enumerate(shapes)
    ]


def picture(number: int, shape: tuple[int, int]) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


OTHER_NUMBER = pytest.mark.full("the same with another number of samples")


class Watched:
    """A backend whose logits are kept, step by step, and whose tokens and image patches are counted."""

    def __init__(self, folder, one_prefill: bool = True):
        self.backend = TransformersBackend(EngineSettings(str(folder)))
        self.logits: list[torch.Tensor] = []
        self.tokens = self.patches = 0
        model = self.backend._model
        if not one_prefill:
            self.backend._one_prefill = lambda *args: nullcontext()
        decoder = getattr(model.model, "language_model", model.model)
        decoder.layers[0].register_forward_pre_hook(self._count_tokens)
        if hasattr(model.model, "visual"):
            model.model.visual.patch_embed.register_forward_pre_hook(self._count_patches)
        generate = model.generate

        def generate_and_keep(**kwargs):
            kwargs["logits_processor"].insert(0, self._keep)
            return generate(**kwargs)

        model.generate = generate_and_keep

    def _count_tokens(self, module, args):
        self.tokens += args[0].shape[0] * args[0].shape[1]

    def _count_patches(self, module, args):
        self.patches += args[0].shape[0]

    def _keep(self, input_ids, scores):
        self.logits.append(scores.clone())
        self.ids = input_ids
        return scores

    def step(self, asked: list[Request]) -> dict[str, list]:
        """One batch of all that is asked."""
        for request in asked:
            self.backend.add(request)
        results = {result.key: result.completions for result in self.backend.step()}
        assert not self.backend.has_unfinished()
        return results


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("samples", [4, *(pytest.param(n, marks=OTHER_NUMBER) for n in (2, 8))])
@pytest.mark.parametrize("kind", [*TEXT, *VISION])
def test_completions_are_those_of_a_prefill_per_sample(kind, samples, temperature, checkpoint):
    once, every = Watched(checkpoint(kind)), Watched(checkpoint(kind), one_prefill=False)
    asked = requests(kind, samples, temperature)
    found = once.step(asked)
    assert found == every.step(asked)
    assert torch.equal(once.ids, every.ids)
    for ours, theirs in zip(once.logits, every.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len({found[key][0].text for key in found}) == len(asked)  # they depend on prompt and picture
    assert all(len({c.text for c in found[key]}) == (samples if temperature else 1) for key in found)


@pytest.mark.parametrize("kind, samples", [("qwen2", 8), ("sliding", 4), ("qwen2_vl", 8), ("qwen2_5_vl", 4)])
def test_each_prompt_and_each_picture_runs_once(kind, samples, checkpoint):
    once, every = Watched(checkpoint(kind)), Watched(checkpoint(kind), one_prefill=False)
    asked = requests(kind, samples, 1.0)
    once.step(asked), every.step(asked)
    steps, rows = len(once.logits), samples * len(asked)
    width = once.ids.shape[1] - steps + 1
    assert (steps, once.ids.shape[0]) == (NEW_TOKENS, rows)
    assert once.tokens == len(asked) * width + rows * (steps - 1)
    assert every.tokens == rows * width + rows * (steps - 1)
    patches = (64 + 40 + 48 + 32) if kind in VISION else 0  # 14 pixels a side: 8 x 8, 4 x 10, 6 x 8, 8 x 4
    assert (once.patches, every.patches) == (patches, samples * patches)


def test_a_single_sample_and_a_single_token(checkpoint):
    alone = Watched(checkpoint("qwen2"))
    asked = requests("qwen2", 1, 1.0)
    alone.backend._one_prefill = None  # is not asked for
    single = alone.step(asked)
    both = Watched(checkpoint("qwen2")).step(requests("qwen2", 2, 1.0))
    assert {key: found[:1] for key, found in both.items()} == single
    first = Watched(checkpoint("qwen2"))
    found = first.step(requests("qwen2", 4, 1.0, max_new_tokens=1))
    assert [len(completions) for completions in found.values()] == [4] * 4
    assert first.tokens == first.ids.numel() // 4


def test_a_model_with_a_state_runs_every_row_and_says_so_once(checkpoint, caplog):
    once, every = Watched(checkpoint("hybrid")), Watched(checkpoint("hybrid"), one_prefill=False)
    asked = requests("hybrid", 4, 1.0)
    with caplog.at_level(logging.WARNING, logger="eval_harness"):
        assert once.step(asked) == every.step(asked)
        once.step(asked), every.step(asked)
    assert once.tokens == every.tokens
    (record,) = [r for r in caplog.records if r.name.startswith("eval_harness")]
    expected = "Every sample runs its prompt through the model: its cache has layers of LinearAttentionLayer."
    assert record.getMessage() == expected


def test_what_stands_in_the_way():
    config = text_config(Qwen2Config)
    model = Qwen2ForCausalLM(config)
    rows = torch.ones(4, 3, dtype=torch.long)
    usual = {
        "input_ids": rows,
        "attention_mask": rows,
        "position_ids": rows,
        "mm_token_type_ids": rows,
        "past_key_values": DynamicCache(config=config),
        "pixel_values": rows,
        "logits_to_keep": 1,
        "inputs_embeds": None,
    }
    assert _obstacle(model, usual, {"pixel_values"}) is None
    assert _obstacle(model, usual, set()) == "which rows its input pixel_values belongs to is not known"
    assert "attention_mask" in _obstacle(model, usual | {"attention_mask": {"full": rows}}, {"pixel_values"})
    static = StaticCache(config=config, max_cache_len=8)
    assert _obstacle(model, usual | {"past_key_values": static}, {"pixel_values"}) == "its cache is a StaticCache"
    assert _obstacle(model, {"input_ids": rows}, set()) == "its cache is a NoneType"
    both = DynamicCache(config=config)
    both.layers[1] = LinearAttentionAndFullAttentionLayer()  # a DynamicLayer, with a state that would not be repeated
    expected = "its cache has layers of LinearAttentionAndFullAttentionLayer"
    assert _obstacle(model, usual | {"past_key_values": both}, {"pixel_values"}) == expected
    other = MllamaForConditionalGeneration.__new__(MllamaForConditionalGeneration)  # its class is all that is looked at
    assert "from token to token" in _obstacle(other, usual, {"pixel_values"})


def test_a_failed_batch_leaves_no_hook_behind(checkpoint, monkeypatch):
    watched = Watched(checkpoint("qwen2"))
    model = watched.backend._model

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    for target in (model, model.model):  # before the first forward pass, and in it
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            patch.setattr(target, "prepare_inputs_for_generation" if target is model else "forward", fail)
            watched.step(requests("qwen2", 2, 1.0))
        assert not model._forward_pre_hooks and not model._forward_hooks
    asked = requests("qwen2", 2, 1.0)
    assert watched.step(asked) == Watched(checkpoint("qwen2"), one_prefill=False).step(asked)
    assert not model._forward_pre_hooks and not model._forward_hooks
