"""Tiny Qwen2-VL and Qwen2.5-VL: tokenizer, processor and model for 112 x 112 drawings.

The tokenizer is the text world's with the vision tokens and answer tags added. The vision tokens are *special*; the
tags are *ordinary* added tokens, because special ones vanish when completions are decoded. See
`gpg_repro.tiny.tokenizer` for why `auto_map` is there. An image becomes 16 tokens (patch 14, two by two merged).
"""

from __future__ import annotations

import torch
from tokenizers import AddedToken
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from gpg_repro.tiny.tokenizer import build_tokenizer

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TAGS = ("<answer>", "</answer>", "<image>")
_WORDS = """
red blue green gold pink black box dot gem the one what left right above below split nearer camera
How many Where seen from Which User: Assistant: words Answer Options: Look. (A) (B) (C) (D)
round thin violet sharp long short brown teal even swept lime flat dome amber
lume tarn bog ossy quill fenna marn pyrea ash nib tuf ear old mop kiri sno paw dap wee gog bru tan
Arrow Heron Bolo Ruva Tix Om
250 500 750 1000 cm ° √{2} π
"""
WORDS = tuple(_WORDS.split())
"""Words of the tiny visual world that are one token each: prompts and completions get half as long,
and names cannot grow tails, for which the published classification reward would pay."""
CONTEXT = 1024
"""Context length in tokens of the models, images included."""
MIN_PIXELS, MAX_PIXELS = 3136, 401408
"""Pixel budget of the processor, the paper's; drawings of 112 x 112 pass unscaled."""
ROPE_THETA = 10.0
"""Small, because the last two thirds of the rotary frequencies count rows and columns of an image, of which there are
four: with the usual 10,000 a step to the right would turn a head by less than a hundredth."""
HEAD_DIM = 32
PATCH = 14

_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% endif %}{% endfor %}{% endif %}"
)
CONCATENATE_TEMPLATE = "{% for message in messages %}" + _CONTENT + "{% endfor %}"
"""A pretrained model's: contents one after the other, no roles, no generation prompt."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>" + _CONTENT + "<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Role token, contents, end token; the model opens its own `<think>`."""


def build_vision_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """The character tokenizer with vision tokens, `<answer>`, `</answer>` and `<image>` added.

    Args:
        chat: with a chat template; otherwise contents are only concatenated, as pretrained models do.
    """
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*VISION_TOKENS]}, replace_extra_special_tokens=False)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (*TAGS, *WORDS)])
    tokenizer.model_max_length = CONTEXT
    tokenizer.chat_template = CHAT_TEMPLATE if chat else CONCATENATE_TEMPLATE
    return tokenizer


def build_processor(chat: bool = True) -> Qwen2VLProcessor:
    """Tokenizer and image processor in one; `save_pretrained` writes what AutoProcessor, TRL and vLLM load."""
    tokenizer = build_vision_tokenizer(chat)
    pixels = {"size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, "patch_size": PATCH}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        video_processor=Qwen2VLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def build_vision_model(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 128,
    num_layers: int = 3,
    vision_width: int = 96,
    vision_depth: int = 2,
    qwen2_5: bool = False,
    initializer_range: float = 0.02,
    seed: int = 0,
) -> Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised float32 model on the CPU, the same weights for the same seed.

    The caller's random state is left as it was. Heads are 32 wide (vLLM's smallest) in both towers, the feed-forward
    parts are three times as wide as their layer, input and output embeddings are shared.

    Args:
        tokenizer: from `build_vision_tokenizer`.
        hidden_size, num_layers: size of the language model.
        vision_width, vision_depth: size of the vision tower.
        qwen2_5: a Qwen2.5-VL instead of a Qwen2-VL.
        initializer_range: standard deviation of the initial weights.
        seed: seed of the initial weights.

    Raises:
        ValueError: a width is not a positive multiple of the head width.
    """
    for name, width in (("hidden_size", hidden_size), ("vision_width", vision_width)):
        if width < HEAD_DIM or width % HEAD_DIM:
            raise ValueError(f"{name} must be a positive multiple of {HEAD_DIM}, got {width}")
    num_heads = hidden_size // HEAD_DIM
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [4, 6, 6]},
        "initializer_range": initializer_range,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    vision = {
        "depth": vision_depth,
        "num_heads": vision_width // HEAD_DIM,
        "patch_size": PATCH,
        "initializer_range": initializer_range,
    }
    if qwen2_5:
        vision |= {
            "hidden_size": vision_width,
            "intermediate_size": 3 * vision_width,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [vision_depth - 1],
        }
    else:
        vision |= {"embed_dim": vision_width, "hidden_size": hidden_size, "mlp_ratio": 3}
    token_ids = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    start, end, image, video = token_ids
    config = (Qwen2_5_VLConfig if qwen2_5 else Qwen2VLConfig)(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model_class = Qwen2_5_VLForConditionalGeneration if qwen2_5 else Qwen2VLForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).to(torch.float32)
    model.generation_config.update(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
