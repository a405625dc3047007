"""One forward and backward pass for the prompt of a group, with the gradient of one per completion.

The completions of a group have their prompt in common, and what a causal model computes for the prompt does not depend
on what follows. So a group is packed into one sequence without padding,

    prompt[:-1] | last prompt token, completion 1 without its last | last prompt token, completion 2 … | …

with positions as if each completion came alone, and an attention function under which a completion sees the prompt and
itself, not its neighbours. Every token's log-probability, and the gradient of any function of them, is that of the
padded batch; vision tower, embeddings and feed-forward layers meet each prompt once. Groups follow each other in the
same sequence. `places` tells where in it the prediction of each completion token is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gpg_repro.batch import MODEL_INPUT_KEYS, SEQUENCE_KEYS, Row, collate_rows, copy_row

SHARE_PROMPT = ("auto", "on", "off")
ARCHITECTURES = ("qwen2", "qwen2_vl", "qwen2_5_vl")
"""`model_type` of the models whose forward pass takes the packed sequence as it is."""
PLAIN_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention implementations that compute what the packed form computes."""
WORTHWHILE = 0.85
"""`auto` shares when at most this part of a batch's tokens is left: packing and its attention cost something, too."""

_ATTENTION = "gpg_shared_prompt"
_PROMPT_KEYS = tuple(key for key in MODEL_INPUT_KEYS if key not in SEQUENCE_KEYS)
"""Keys of a row's images; the others go on over the completion."""
_STATIC_ROPE = ("default", "linear", "yarn", "llama3", "mrope")
_ALIGNED = 16
"""Columns that a mask's rows are filled up to: 16 bytes or a multiple in every dtype."""


# Which models -------------------------------------------------------------------------------------------------------


def refusal(model: PreTrainedModel) -> str | None:
    """Why prompts cannot be shared in this model's forward pass; None where they can.

    Args:
        model: without the wrappers of data parallelism; may carry a PEFT adapter.
    """
    if isinstance(model, torch._dynamo.OptimizedModule):
        return "it is compiled"
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return "its PEFT adapter puts virtual tokens before every prompt"
    base = _base(model)
    text = base.config.get_text_config()
    if base.config.model_type not in ARCHITECTURES:
        return f"its architecture is {base.config.model_type}; known are {', '.join(ARCHITECTURES)}"
    other = {kind for kind in text.layer_types if kind != "full_attention"}
    if other:
        return f"some of its layers have {', '.join(sorted(other))}"
    if text._attn_implementation not in PLAIN_ATTENTION:
        return f"its attention is {text._attn_implementation!r}; known are {', '.join(PLAIN_ATTENTION)}"
    if getattr(base, "use_kernels", False):
        return "custom kernels replace its layers"
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        return f"its rotary embedding ({rope}) depends on the length of the sequence"
    if text.attention_dropout:
        return f"attention_dropout is {text.attention_dropout:g}"
    dropout = next((name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0), None)
    if dropout:
        return f"it has dropout ({dropout}), which would treat all copies of a prompt alike"
    return None


def _base(model: PreTrainedModel) -> PreTrainedModel:
    """The model under its PEFT adapter, if it has one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


# The packed sequence ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """A prompt and its completions in the packed sequence: `prefix` tokens from `start` on, then `lengths` tokens."""

    start: int
    prefix: int
    lengths: tuple[int, ...]

    @property
    def first(self) -> int:
        """Where the first completion starts."""
        return self.start + self.prefix

    @property
    def stop(self) -> int:
        return self.first + sum(self.lengths)


class Layout:
    """Where the groups lie in a packed sequence, and the index tensors and masks that attention needs, made once.

    Args:
        groups: (prompt tokens, tokens of each completion), in order; all at least 1.
        checkpointed: whether layers are run again in the backward pass, and keep nothing until then.
    """

    def __init__(self, groups: Sequence[tuple[int, Sequence[int]]], checkpointed: bool = False):
        self.checkpointed = checkpointed
        self.groups: list[_Group] = []
        for prompt, lengths in groups:
            start = self.groups[-1].stop if self.groups else 0
            self.groups.append(_Group(start, prompt - 1, tuple(lengths)))
        self._masks: dict[tuple, Tensor] = {}
        self._indices: dict[tuple, tuple[Tensor, Tensor]] = {}

    def mask(self, group: _Group, repeats: int, like: Tensor) -> Tensor:
        """[T * repeats, prefix + T] additive: everything before a completion's token, itself included.

        Made once for all layers. It starts at an aligned address and so does each of its rows: CUDA kernels read it in
        words of 16 bytes and look at its width alone ("misaligned address" for a slice of a larger mask).
        """
        prefix, width = group.prefix, max(group.lengths)
        key = (prefix, width, repeats, like.dtype, like.device)
        if key not in self._masks:
            columns = -(-(prefix + width) // _ALIGNED) * _ALIGNED
            hidden = torch.ones(width, columns, dtype=torch.bool, device=like.device).triu(prefix + 1)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask.repeat_interleave(repeats, dim=0)
        return self._masks[key][:, : prefix + width]

    def padding(self, group: _Group, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Indices that pad a group's completions to one width, and back; None where they have one width already."""
        width, num = max(group.lengths), len(group.lengths)
        if width == min(group.lengths):
            return None
        key = (group.lengths, device)
        if key not in self._indices:
            lengths = torch.tensor(group.lengths)
            kept = (torch.arange(width) < lengths.unsqueeze(1)).flatten()
            to_padded = torch.zeros(num * width, dtype=torch.long)
            to_padded[kept] = torch.arange(sum(group.lengths))
            self._indices[key] = to_padded.to(device), kept.nonzero().flatten().to(device)
        return self._indices[key]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Layout, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention over a packed sequence, as one of transformers' attention functions.

    Args:
        query: [1, heads, L, width]; key, value: [1, key-value heads, L, width].
        attention_mask: the layout of the L tokens.

    Returns:
        [1, L, heads, width], and no weights.
    """
    layout, outputs = attention_mask, []
    repeats = query.size(1) // key.size(1)
    for group in layout.groups:
        prefix = slice(group.start, group.first)
        if group.prefix:
            parts = (states[:, :, prefix] for states in (query, key, value))
            outputs.append(sdpa_attention_forward(module, *parts, None, scaling=scaling, is_causal=True)[0])
        padding = layout.padding(group, query.device)
        queries = _rows(query, group, padding, repeats)
        keys, values = (_side_by_side(states, group, padding) for states in (key, value))
        copies = [
            (queries, partial(_rows, query.detach(), group, padding, repeats)),
            *((t, partial(_side_by_side, s.detach(), group, padding)) for t, s in ((keys, key), (values, value))),
        ]
        with nullcontext() if layout.checkpointed else _made_again(copies):
            mask = layout.mask(group, repeats, query)
            output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
        output = output.unflatten(2, (-1, repeats)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        outputs.append((output if padding is None else output.index_select(0, padding[1])).unsqueeze(0))
    return torch.cat(outputs, dim=1), None


def _completions(states: Tensor, group: _Group, padding: tuple[Tensor, Tensor] | None) -> Tensor:
    """Of [1, heads, L, width], a group's completions: [completions, heads, T, width], padded on the right."""
    states = states[0, :, group.first : group.stop]
    if padding is not None:
        states = states.index_select(1, padding[0])
    return states.unflatten(1, (len(group.lengths), -1)).transpose(0, 1)


def _rows(query: Tensor, group: _Group, padding: tuple[Tensor, Tensor] | None, repeats: int) -> Tensor:
    """Queries of the completions, [completions, key-value heads, T * repeats, width].

    Heads that have a key-value head in common become rows of one attention, so that keys and values are not repeated.
    """
    queries = _completions(query, group, padding)
    return queries.unflatten(1, (-1, repeats)).transpose(2, 3).flatten(2, 3)


def _side_by_side(states: Tensor, group: _Group, padding: tuple[Tensor, Tensor] | None) -> Tensor:
    """Keys or values of prompt and completion, for every completion: [completions, heads, P + T, width]."""
    prompt = states[:, :, group.start : group.first].expand(len(group.lengths), -1, -1, -1)
    return torch.cat([prompt, _completions(states, group, padding)], dim=2)


def _made_again(copies: list[tuple[Tensor, Callable[[], Tensor]]]) -> saved_tensors_hooks:
    """Within it, autograd does not keep these tensors for the backward pass, which has them made again.

    They are copies of what other layers keep anyway, and with the prompt repeated they would be most of the memory.
    """
    makers = {tensor.data_ptr(): make for tensor, make in copies}

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        return makers.get(tensor.data_ptr(), tensor)

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    return saved_tensors_hooks(pack, unpack)


AttentionInterface.register(_ATTENTION, _attention)


@contextmanager
def shared_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it, forward *and backward* passes of the language model take packed sequences, and nothing else.

    Checkpointed layers run again in the backward pass, so that has to be inside, too.
    """
    config = _base(model).config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual


def same_prompt(row: Row, other: Row) -> bool:
    """Whether two rows have the same prompt: the same tokens, and the same images."""
    if not torch.equal(row["prompt_ids"], other["prompt_ids"]):
        return False
    for key in _PROMPT_KEYS:
        mine, theirs = row.get(key), other.get(key)
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            if not torch.equal(mine, theirs):
                return False
        elif not isinstance(mine, Tensor | None) or not isinstance(theirs, Tensor | None):
            if mine != theirs:
                return False
        elif mine is not theirs:
            return False
    return True


def copy_rows(rows: Sequence[Row], device: torch.device | str) -> list[Row]:
    """Rows on `device`, with one copy of the prompt for neighbours that have it in common: pickled, it is sent once."""
    copies = [copy_row(row, device) for row in rows]
    for run in clusters(rows):
        head = copies[run[0]]
        kept = {key: head[key] for key in ("prompt_ids", *_PROMPT_KEYS) if key in head}
        for number in run[1:]:
            copies[number] |= kept
    return copies


def clusters(rows: Sequence[Row]) -> list[list[int]]:
    """Numbers of the rows in runs of one prompt; rows of a prompt are taken for one where they follow each other."""
    runs: list[list[int]] = []
    for number, row in enumerate(rows):
        if runs and same_prompt(rows[runs[-1][0]], row):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def collate_shared(rows: Sequence[Row], model: PreTrainedModel, pad_token_id: int) -> dict[str, Any]:
    """As `gpg_repro.batch.collate_rows`, with each prompt once: under `packed` what the model takes.

    Args:
        rows: those of one prompt next to each other.
        model: for its rotary positions of images.
        pad_token_id: stands in for the completion of a row that has none; its prediction counts for nothing.
    """
    runs = clusters(rows)
    batch = collate_rows([{k: v for k, v in row.items() if k not in MODEL_INPUT_KEYS} for row in rows], pad_token_id)
    heads = [rows[run[0]] for run in runs]
    images = collate_rows(heads, pad_token_id)
    ids, labels, positions, lengths = [], [], [], []
    for run, head in zip(runs, heads, strict=True):
        prompt = head["prompt_ids"]
        completions = [rows[number]["completion_ids"] for number in run]
        completions = [c if len(c) else prompt.new_full((1,), pad_token_id) for c in completions]
        lengths.append((len(prompt), [len(c) for c in completions]))
        ids += [prompt[:-1], *(part for c in completions for part in (prompt[-1:], c[:-1]))]
        labels += [torch.full_like(prompt[:-1], -100), *completions]
        before, after = _positions(head, model)
        steps = [torch.arange(len(c) - 1, device=prompt.device) for c in completions]
        positions += [before[:, :-1], *(part for s in steps for part in (before[:, -1:], after + s))]
    layout, position_ids = Layout(lengths, model.is_gradient_checkpointing), torch.cat(positions, dim=1)
    batch["packed"] = {
        "input_ids": torch.cat(ids).unsqueeze(0),
        # [1, L], or [3, 1, L] with rows and columns of images.
        "position_ids": position_ids if len(position_ids) == 1 else position_ids.unsqueeze(1),
        "shift_labels": torch.cat(labels).unsqueeze(0),
        "attention_mask": {"full_attention": layout},
        **{key: images[key] for key in ("pixel_values", "image_grid_thw") if images.get(key) is not None},
    }
    batch["places"] = _places(layout, batch["completion_ids"].size(1)).to(batch["completion_ids"].device)
    return batch


def _positions(head: Row, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Positions of a prompt's tokens, [1 or 3, P], and of the first completion token after it, [1 or 3, 1]."""
    prompt, grid = head["prompt_ids"], head.get("image_grid_thw")
    if grid is None or not len(grid):
        positions = torch.arange(len(prompt) + 1, device=prompt.device).unsqueeze(0)
        if hasattr(model.config, "vision_config"):
            positions = positions.expand(3, -1)
    else:
        kinds = head["mm_token_type_ids"][: len(prompt)]
        positions, _ = _base(model).model.get_rope_index(
            torch.cat([prompt, prompt[-1:]]).unsqueeze(0),  # any text token, for the one after the prompt
            mm_token_type_ids=torch.cat([kinds, torch.zeros_like(kinds[:1])]).unsqueeze(0),
            image_grid_thw=grid,
        )
        positions = positions[:, 0]
    return positions[:, :-1], positions[:, -1:]


def _places(layout: Layout, width: int) -> Tensor:
    """[rows, width]: where in the packed sequence each completion token is predicted; 0 beyond a completion's end."""
    places = torch.zeros(sum(len(group.lengths) for group in layout.groups), width, dtype=torch.long)
    row = 0
    for group in layout.groups:
        start = group.first
        for length in group.lengths:
            places[row, :length] = torch.arange(start, start + length)
            start, row = start + length, row + 1
    return places


def shared_log_probs(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the completion tokens of a batch from `collate_shared`, and entropies if the model's head
    computes any; both [rows, T].

    Call it, and the backward pass, within `shared_attention`. What stands beyond a completion's end means nothing.

    Args:
        model: with TRL's fused head, in whatever data parallelism wraps around it.
        batch: from `collate_shared`.
    """
    outputs = model(**batch["packed"], fused_lm_head=True)
    places, entropy = batch["places"], outputs.entropy
    return outputs.log_probs[0][places], None if entropy is None else entropy[0][places]
