"""Attention over packed sequences, and which models take them.

Within `attention_for` every layer that goes through transformers' attention interface shows a token what
comes before it in its rows (`gpg_repro.packing.Layout`), and nothing else; full and sliding windows alike. On CUDA in
half precision that is one call of a flash kernel with variable lengths per layer. Elsewhere it is SDPA: segments with
one parent side by side, and small subtrees whole behind a mask. Soft-capped scores have no kernel in either: there the
weights are computed in the open.

No list of architectures: `refusal` names what is known to treat copies of a token alike or to depend on the length of
the sequence, and `difference` compares the loaded model with itself, packed against row by row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from gpg_repro.batch import Row
from gpg_repro.packing import Layout, base_model, collate_packed, collate_plain

try:  # torch 2.10 and later
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

PLAIN_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention implementations that compute what the packed form computes."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Mean difference of log-probabilities, packed against row by row, up to which a model counts as unchanged."""

_NAMES = {None: "gpg_packed", "sdpa": "gpg_packed_like_sdpa"}
_LAYERS = {"full_attention", "sliding_attention"}
_ROPE_BY_LENGTH = ("dynamic", "longrope")
_ALIGNED = 16
"""Columns that a mask's rows are filled up to: 16 bytes or a multiple in every dtype."""
_CALL_FLOP = 4e6
"""What one more SDPA call counts as, in floating-point operations of attention.

On a CPU (one thread, float32, models of 64 and 256 units, prompts and completions of 8 to 256 tokens) the updates' time
does not depend on it from 1e6 to 2e7.
"""


# Which models -------------------------------------------------------------------------------------------------------


def refusal(model: PreTrainedModel) -> str | None:
    """Why this model cannot be given packed sequences, as far as its settings say; None where nothing speaks against.

    Args:
        model: without the wrappers of data parallelism; may carry a PEFT adapter.
    """
    if isinstance(model, torch._dynamo.OptimizedModule):
        return "it is compiled"
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return "its PEFT adapter puts virtual tokens before every prompt"
    base = base_model(model)
    text = base.config.get_text_config()
    other = set(getattr(text, "layer_types", None) or ()) - _LAYERS
    if other:
        return f"some of its layers have {', '.join(sorted(other))}"
    if text._attn_implementation not in PLAIN_ATTENTION:
        return f"its attention is {text._attn_implementation!r}; known are {', '.join(PLAIN_ATTENTION)}"
    if getattr(base, "use_kernels", False):
        return "custom kernels replace its layers"
    rope = getattr(text, "rope_parameters", None) or {}
    for kind in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if kind.get("rope_type") in _ROPE_BY_LENGTH:
            return f"its rotary embedding ({kind['rope_type']}) depends on the length of the sequence"
    if getattr(text, "attention_dropout", None):
        return f"attention_dropout is {text.attention_dropout:g}"
    dropout = next((name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0), None)
    if dropout:
        return f"it has dropout ({dropout}), which would treat all copies of a prompt alike"
    return None


@torch.no_grad()
def difference(model: nn.Module, unwrapped: PreTrainedModel, rows: Sequence[Row], pad_token_id: int) -> str | None:
    """How a model's log-probabilities change in the packed form, beyond rounding; None where they do not.

    One packed forward pass, and one for each row. On several processes all have to call it.

    Args:
        model: with TRL's fused head, in whatever data parallelism wraps around it.
        unwrapped: the same without that.
        rows: a few short ones that share beginnings, such as `probe_rows`.
        pad_token_id: as `collate_packed` takes it.
    """
    batch = collate_packed(rows, unwrapped, pad_token_id)
    mask = batch["completion_mask"].bool()
    try:
        with attention_for(unwrapped, batch):
            together = log_probs(model, batch)[0][mask].float()
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError, IndexError) as error:
        return f"it does not take the packed form ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    if not batch["layout"].num_calls:
        return "its attention does not go through transformers' attention interface"
    alone = torch.cat([log_probs(model, collate_plain([row], pad_token_id))[0].flatten() for row in rows]).float()
    apart = (together - alone).abs().mean().item()
    dtype = torch.get_autocast_dtype(together.device.type) if torch.is_autocast_enabled(together.device.type) else None
    dtype = dtype or unwrapped.dtype
    limit = TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])
    if apart <= limit:
        return None
    return f"packed, its log-probabilities differ by {apart:.2g} on average ({str(dtype)[6:]}: at most {limit:g})"


def probe_rows(vocabulary: int, avoid: Sequence[int], device: torch.device | str) -> list[Row]:
    """Six rows of a few tokens that share prompts and first tokens of completions, drawn from the vocabulary.

    Args:
        vocabulary: tokens below it are drawn.
        avoid: tokens with a meaning of their own.
        device: of the tensors.
    """
    random = np.random.default_rng(0)
    usual = np.setdiff1d(np.arange(vocabulary), np.array([*avoid, -1]))

    def drawn(num: int) -> list[int]:
        return random.choice(usual, num).tolist()

    system, start = drawn(4), drawn(3)
    group, *others = system + drawn(9), system + drawn(5), drawn(6)
    ends = [start + drawn(5), start + drawn(2), drawn(7), drawn(4), drawn(6), drawn(8)]
    rows = []
    for prompt, end in zip([group] * 4 + others, ends, strict=True):
        ids = torch.tensor(end, device=device)
        rows.append(
            {
                "prompt_ids": torch.tensor(prompt, device=device),
                "completion_ids": ids,
                "completion_mask": torch.ones_like(ids),
            }
        )
    return rows


# Forward passes -----------------------------------------------------------------------------------------------------


@contextmanager
def attention_for(model: PreTrainedModel, batch: dict[str, Any]) -> Iterator[None]:
    """The attention that a collated batch needs, forward *and backward*: checkpointed layers run again there.

    Args:
        model: without the wrappers of data parallelism; may carry a PEFT adapter.
        batch: from `collate_packed` or `collate_plain`.
    """
    config = base_model(model).config.get_text_config()
    if "layout" not in batch or getattr(config, "_packed_layout", None) is batch["layout"]:
        yield
        return
    usual = config._attn_implementation
    config._attn_implementation, config._packed_layout = _NAMES.get(usual, _NAMES[None]), batch["layout"]
    try:
        yield
    finally:
        config._attn_implementation = usual
        del config._packed_layout


def log_probs(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of `token_scores`, without a request for the auxiliary loss."""
    return token_scores(model, batch)[:2]


def token_scores(
    model: nn.Module, batch: dict[str, Any], auxiliary: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probabilities of the completion tokens of a collated batch, and entropies if the model's head computes any.

    Call it, and the backward pass, within `attention_for`.

    Args:
        model: with TRL's fused head, in whatever data parallelism wraps around it.
        batch: from `collate_packed` or `collate_plain`.
        auxiliary: also the load-balancing loss of a mixture of experts, a scalar; packed batches need `uses`.

    Returns:
        Both [rows, T], of which values beyond a completion's end mean nothing; and the auxiliary loss or None.
    """
    more = {"output_router_logits": True} if auxiliary else {}
    outputs = model(**batch["inputs"], **more, fused_lm_head=True)
    # One prediction for every token of a packed sequence; for every token but the first of plain rows, whatever an
    # adapter puts before them.
    width = batch["inputs"]["input_ids"].size(1) - ("layout" not in batch)
    entropy, places = outputs.entropy, batch["places"]
    values = outputs.log_probs[:, -width:].flatten()[places]
    return values, None if entropy is None else entropy[:, -width:].flatten()[places], outputs.aux_loss


# Attention ----------------------------------------------------------------------------------------------------------


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed sequence, as one of transformers' attention functions.

    Args:
        query: [1, heads, L, width]; key, value: [1, key-value heads, L, width].
        sliding_window: tokens that a token sees, itself included; None for all before it.

    Returns:
        [1, L, heads, width], and no weights.

    Raises:
        NotImplementedError: an attention that no packed form is known for.
    """
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention sinks and position biases have no packed form")
    if not getattr(module, "is_causal", True):
        raise NotImplementedError("its attention is not causal")
    layout = module.config._packed_layout
    layout.num_calls += 1
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    if _has_kernel(query, value) and not softcap:
        return _variable_lengths(query, key, value, layout, scaling, sliding_window), None
    return _Calls(layout, query, key, value, scaling, sliding_window, softcap).output(), None


def _attention_like_sdpa(*args: Any, softcap: float | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' SDPA leaves out soft-capping, so a model that is loaded with it has none."""
    return _attention(*args, **kwargs)


for _name, _function in zip(_NAMES.values(), (_attention, _attention_like_sdpa), strict=True):
    AttentionInterface.register(_name, _function)


def _has_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether torch's flash kernel with variable lengths takes these."""
    width = query.size(-1)
    return (
        varlen_attn is not None
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and width == value.size(-1)
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _variable_lengths(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None
) -> Tensor:
    """One call for all segments: queries of a segment over the keys of its path; [1, L, heads, width]."""
    where, cu_queries, cu_keys, max_queries, max_keys = layout.once(
        ("lengths", query.device), partial(_lengths, layout, query.device)
    )
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    kept, more = nullcontext(), {}
    if query.size(1) != key.size(1):
        if _HAS_GQA:
            more["enable_gqa"] = True
        else:
            key, value = (states.repeat_interleave(query.size(1) // key.size(1), dim=1) for states in (key, value))
    if where is not None:
        sources = (key, value)
        key, value = (states.index_select(0, where) for states in sources)
        if not _copies_are_kept(layout):
            makers = [partial(source.detach().index_select, 0, where) for source in sources]
            kept = _made_again(list(zip((key, value), makers, strict=True)))
    with kept:
        output = varlen_attn(
            query.contiguous(),
            key,
            value,
            cu_queries,
            cu_keys,
            max_queries,
            max_keys,
            scale=scaling,
            window_size=(window - 1, 0) if window else (-1, 0),
            **more,
        )
    return output.unsqueeze(0)


_HAS_GQA = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters


def _lengths(layout: Layout, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor, int, int]:
    """Places of all segments' keys end to end (None: the sequence itself), bounds of queries and keys, longest of both.

    Bounds are int32, [segments + 1], as the kernel wants them.
    """
    queries = [segment.length for segment in layout.segments]
    keys = [segment.depth + segment.length for segment in layout.segments]
    where = None
    if any(segment.parent is not None for segment in layout.segments):
        paths = np.concatenate([layout.path(number) for number in range(len(layout.segments))])
        where = torch.from_numpy(paths).to(device)
    bounds = (torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)).to(device) for lengths in (queries, keys))
    return where, *bounds, max(queries), max(keys)


# SDPA: which calls --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """One SDPA call: some stretches of the sequence, each over what comes before them and over itself.

    Attributes:
        places: [stretches, width] queries; a short stretch is filled up with its last place.
        lengths: of each stretch.
        before: [A] places of what comes before all of them.
        segments: of which the only stretch consists, where it is more than one; empty for plain stretches.
    """

    places: np.ndarray
    lengths: tuple[int, ...]
    before: np.ndarray
    segments: tuple[int, ...] = ()


def _plan_calls(layout: Layout, max_waste: float) -> list[_Call]:
    """The calls for a layout; `max_waste` pairs of tokens cost as much as one more call."""
    calls: list[_Call] = []

    def exact(number: int) -> tuple[int, int, int]:
        """Of a subtree: tokens, pairs that attention needs, calls that they take."""
        segment = layout.segments[number]
        tokens, pairs, num = segment.length, segment.length * (segment.depth + segment.length), 0
        below = layout.children.get(number, [])
        for child in below:
            more = sizes[child]
            tokens, pairs, num = tokens + more[0], pairs + more[1], num + more[2]
        return tokens, pairs, num + bool(below)

    sizes: dict[int, tuple[int, int, int]] = {}
    for number in reversed(range(len(layout.segments))):
        sizes[number] = exact(number)

    def side_by_side(numbers: list[int], before: np.ndarray) -> None:
        """Segments behind one path, those of like length in one call."""
        numbers = sorted(numbers, key=lambda n: -layout.segments[n].length)
        while numbers:
            width = layout.segments[numbers[0]].length
            costs = [layout.segments[n].length * (len(before) + layout.segments[n].length) for n in numbers]
            fit = [
                n for n, cost in zip(numbers, costs, strict=True) if width * (len(before) + width) - cost <= max_waste
            ]
            numbers = [n for n in numbers if n not in set(fit)]
            fit.sort()
            segments = [layout.segments[n] for n in fit]
            starts, lengths = (np.array([getattr(s, name) for s in segments]) for name in ("start", "length"))
            places = starts[:, None] + np.minimum(np.arange(width), lengths[:, None] - 1)
            calls.append(_Call(places, tuple(lengths.tolist()), before))

    def visit(numbers: list[int], parent: int | None) -> None:
        """All subtrees behind `parent`."""
        before = layout.path(parent)
        tokens, pairs, num = (sum(column) for column in zip(*(sizes[n] for n in numbers), strict=True))
        if num and tokens * (len(before) + tokens) <= pairs + num * max_waste:
            # Depth first, subtrees lie next to each other.
            inside = range(numbers[0], _last(layout, numbers[-1]) + 1)
            start = layout.segments[numbers[0]].start
            calls.append(_Call(np.arange(start, start + tokens)[None], (tokens,), before, tuple(inside)))
            return
        side_by_side(numbers, before)
        for number in numbers:
            if number in layout.children:
                visit(layout.children[number], number)

    roots = layout.children[None]
    side_by_side_roots: list[int] = []
    for root in roots:
        tokens, pairs, num = sizes[root]
        if num and tokens * tokens <= pairs + (num + 1) * max_waste:
            start = layout.segments[root].start
            inside = range(root, _last(layout, root) + 1)
            calls.append(_Call(np.arange(start, start + tokens)[None], (tokens,), np.arange(0), tuple(inside)))
            continue
        side_by_side_roots.append(root)
        if root in layout.children:
            visit(layout.children[root], root)
    if side_by_side_roots:
        side_by_side(side_by_side_roots, np.arange(0))
    return sorted(calls, key=lambda call: int(call.places[0, 0]))


def _last(layout: Layout, number: int) -> int:
    """The last segment of a subtree."""
    while number in layout.children:
        number = layout.children[number][-1]
    return number


class _Calls:
    """Attention over a packed sequence by SDPA calls."""

    def __init__(
        self,
        layout: Layout,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ):
        self.layout, self.query, self.key, self.value = layout, query, key, value
        self.scaling, self.window, self.softcap = scaling, window, softcap
        self.repeats = query.size(1) // key.size(1)
        self.device = query.device
        # Two products forward and five backward, each of a multiplication and an addition per entry.
        flop_per_pair = 14 * query.size(1) * query.size(-1)
        self.max_waste = _CALL_FLOP / flop_per_pair

    def output(self) -> Tensor:
        """[1, L, heads, width]."""
        calls = self.layout.once(("calls", self.max_waste), partial(_plan_calls, self.layout, self.max_waste))
        outputs = torch.cat([self._run(number, call) for number, call in enumerate(calls)])
        order = self.layout.once(("order", self.max_waste, self.device), partial(_order, calls, self.device))
        return (outputs if order is None else outputs.index_select(0, order)).unsqueeze(0)

    def _run(self, number: int, call: _Call) -> Tensor:
        """[tokens of the call's stretches, heads, width]."""
        where = self.layout.once((number, self.max_waste, self.device), partial(_where, call, self.device))
        make_keys = [partial(self._side_by_side, states, where) for states in (self.key, self.value)]
        if not len(call.before) and not call.segments and not self.softcap and self._sees_all(call):
            queries = _stretches(self.query, where)
            # Transformers' choice for plain causal rows; what is filled up comes last, and nobody sees it.
            keys, values = (make() for make in make_keys)
            output = scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=self.scaling, enable_gqa=self.repeats > 1
            )
            output = output.transpose(1, 2).flatten(0, 1)
        else:
            queries = self._rows(self.query, where)
            keys, values = (make() for make in make_keys)
            makers = [
                partial(self._rows, self.query.detach(), where),
                *(partial(self._side_by_side, states.detach(), where) for states in (self.key, self.value)),
            ]
            copies = list(zip((queries, keys, values), makers, strict=True))
            mask = self._mask(number, call)
            with nullcontext() if _copies_are_kept(self.layout) else _made_again(copies):
                if self.softcap:
                    scores = self.softcap * torch.tanh(queries @ keys.mT * (self.scaling / self.softcap)) + mask
                    output = scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
                else:
                    output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self.scaling)
            output = output.unflatten(2, (-1, self.repeats)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return output if where.kept is None else output.index_select(0, where.kept)

    def _sees_all(self, call: _Call) -> bool:
        return self.window is None or self.window >= call.places.shape[1]

    def _rows(self, states: Tensor, where: _Where) -> Tensor:
        """Queries as [stretches, key-value heads, width * repeats, width of a head].

        Heads that have a key-value head in common become rows of one attention, so that keys and values are not
        repeated.
        """
        queries = _stretches(states, where)
        return queries.unflatten(1, (-1, self.repeats)).transpose(2, 3).flatten(2, 3)

    def _side_by_side(self, states: Tensor, where: _Where) -> Tensor:
        """Keys or values of what comes before, and of each stretch: [stretches, heads, A + width, width of a head]."""
        own = _stretches(states, where)
        if where.before is None:
            return own
        before = states[:, :, where.before] if isinstance(where.before, slice) else states.index_select(2, where.before)
        return torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)

    def _mask(self, number: int, call: _Call) -> Tensor:
        """[width * repeats, A + width] additive.

        Made once for all layers. It starts at an aligned address and so does each of its rows: CUDA kernels read it in
        words of 16 bytes and look at its width alone ("misaligned address" for a slice of a larger mask).
        """
        width = len(call.before) + call.places.shape[1]
        # Plain stretches of one shape have one mask.
        shape = ("segments", number, self.max_waste) if call.segments else ("plain", len(call.before), width)
        key = (*shape, self.window, self.repeats, self.query.dtype, self.device)
        return self.layout.once(key, partial(self._new_mask, call))[:, :width]

    def _new_mask(self, call: _Call) -> Tensor:
        seen = torch.from_numpy(_seen(self.layout, call, self.window)).to(self.device)
        columns = -(-seen.size(1) // _ALIGNED) * _ALIGNED
        mask = torch.full((len(seen), columns), float("-inf"), dtype=self.query.dtype, device=self.device)
        mask[:, : seen.size(1)].masked_fill_(seen, 0.0)
        return mask.repeat_interleave(self.repeats, dim=0)


def _seen(layout: Layout, call: _Call, window: int | None) -> np.ndarray:
    """[width, A + width] bool: which of what comes before and of its stretch a token sees."""
    num_before, width = len(call.before), call.places.shape[1]
    if call.segments:
        inside = {number: place for place, number in enumerate(call.segments)}
        segments = [layout.segments[number] for number in call.segments]
        lengths = [segment.length for segment in segments]
        above = np.eye(len(segments), dtype=bool)
        for place, segment in enumerate(segments):
            if segment.parent in inside:
                above[place] |= above[inside[segment.parent]]
        own = np.repeat(np.repeat(above, lengths, axis=0), lengths, axis=1)
        depths = np.concatenate([np.arange(s.depth, s.depth + s.length) for s in segments])
    else:
        own, depths = np.ones((width, width), dtype=bool), num_before + np.arange(width)
    depths_before = np.concatenate([np.arange(num_before), depths])
    seen = np.concatenate([np.ones((width, num_before), dtype=bool), own], axis=1)
    seen &= depths_before <= depths[:, None]
    if window is not None:
        seen &= depths_before > depths[:, None] - window
    return seen


@dataclass(frozen=True)
class _Where:
    """A call's places as attention takes them from the sequence: slices where they lie next to each other."""

    own: slice | Tensor
    num: int
    before: slice | Tensor | None
    kept: Tensor | None  # of the call's output, what is not filled up


def _where(call: _Call, device: torch.device) -> _Where:
    width = call.places.shape[1]
    kept = None
    if min(call.lengths) < width:
        kept = (np.arange(width) < np.array(call.lengths)[:, None]).ravel().nonzero()[0]
        kept = torch.from_numpy(kept).to(device)
    before = _slice(call.before, device) if len(call.before) else None
    return _Where(_slice(call.places.ravel(), device), len(call.places), before, kept)


def _slice(places: np.ndarray, device: torch.device) -> slice | Tensor:
    start, stop = int(places[0]), int(places[-1]) + 1
    if stop - start == len(places) and (np.diff(places) == 1).all():
        return slice(start, stop)
    return torch.from_numpy(places).to(device)


def _stretches(states: Tensor, where: _Where) -> Tensor:
    """Of [1, heads, L, width of a head], a call's stretches: [stretches, heads, width, width of a head]."""
    states = states[0, :, where.own] if isinstance(where.own, slice) else states[0].index_select(1, where.own)
    return states.unflatten(1, (where.num, -1)).transpose(0, 1)


def _order(calls: Sequence[_Call], device: torch.device) -> Tensor | None:
    """Where each token of the sequence is in the calls' outputs, end to end; None where they are in order."""
    found = [call.places[row, :length] for call in calls for row, length in enumerate(call.lengths)]
    places = np.concatenate(found)
    if (np.diff(places) == 1).all():
        return None
    return torch.from_numpy(np.argsort(places)).to(device)


def _copies_are_kept(layout: Layout) -> bool:
    """Whether copies need not be made again: nothing is kept here, or somebody else takes what is (offloading)."""
    return layout.keep_copies or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _made_again(copies: list[tuple[Tensor, Callable[[], Tensor]]]) -> saved_tensors_hooks:
    """Within it, autograd does not keep these tensors for the backward pass, which has them made again.

    They are copies of what other layers keep anyway, and with the prompt repeated they would be most of the memory.
    """

    def identity(tensor: Tensor) -> tuple:
        return tensor.data_ptr(), tensor.shape, tensor.stride()

    makers = {identity(tensor): make for tensor, make in copies}

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        return makers.get(identity(tensor), tensor)

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    return saved_tensors_hooks(pack, unpack)
