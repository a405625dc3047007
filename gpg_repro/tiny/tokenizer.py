"""A character-level tokenizer with byte fallback: any text goes in, the same text comes out.

One token per printable ASCII character, newline and tab; everything else becomes its UTF-8 bytes, one token each.
There are no merges and no normalisation, so `decode(encode(text)) == text` for every text that UTF-8 can express.

The think tags and `\\boxed{` are single tokens, but *ordinary* ones: special tokens vanish when completions are decoded
with `skip_special_tokens=True`, and with them the reasoning and the answer's box.

One oddity: for model type qwen2, transformers 5 lets `AutoTokenizer` ignore what `tokenizer.json` says and rebuild
Qwen's own pre-tokenizer around our vocabulary, which would drop every blank. `KEEP_OWN_BACKEND` is what makes it (and
so vLLM and TRL) load `tokenizer.json` as written; it survives `save_pretrained`, so checkpoints inherit it. No code is
ever loaded from the folder, and `trust_remote_code=True` must not be set.
"""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PAD_TOKEN, TURN_END = "<|pad|>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD_TOKEN, TURN_END, *ROLE_TOKENS)
ORDINARY_ADDED_TOKENS = ("<think>", "</think>", "\\boxed{")
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n\t"
MAX_LENGTH = 16_384
"""Context length in tokens, of tokenizer and model alike; the longest real benchmark question takes about 5,000."""

KEEP_OWN_BACKEND = {"AutoTokenizer": [None, "tokenizers.TokenizersBackend"]}
"""`auto_map` entry; with `trust_remote_code` off, its presence alone selects the `tokenizer_class` of the folder."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
"""Role token, text, end token; the generation prompt opens the thinking part, as current R1-distilled models do."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's tokenizer: 256 bytes, 97 characters, 5 special and 3 ordinary added tokens."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + list(CHARACTERS)
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], byte_fallback=True))
    backend.decoder = DecoderSequence([ByteFallback(), Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY_ADDED_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=TURN_END,
        additional_special_tokens=list(ROLE_TOKENS),
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        auto_map=KEEP_OWN_BACKEND,
    )
