"""transformers' own generation: the engine for platforms without vLLM, and the second opinion elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval_harness.adapters import source_of
from eval_harness.engines.base import (
    CONCATENATE,
    Completion,
    EngineSettings,
    Request,
    Result,
    chat_template_of,
    images_of,
    pixel_budget,
    pixel_options,
    plain_text,
    with_images,
)
from eval_harness.models import NO_CODE, ONLY_WEIGHTS

logger = logging.getLogger(__name__)
_BATCH_ROWS = 256
_BATCH_TOKENS = 1 << 17
"""Padded tokens (prompt + new) of a batch at most: bounds the key-value cache."""


class SeededSampling:
    """Draws each row's next token from its own generator, by the Gumbel-max rule, as a logits processor.

    Adding independent Gumbel noise to the processed logits and taking the arg max samples from their softmax. With one
    generator per row, a completion depends on its own seed and prompt alone, not on what shares its batch; global
    sampling in ``generate`` has no such option. Rows that have ended (``end_ids``) draw nothing.
    """

    def __init__(self, seeds: list[int], device: torch.device, warpers: list, end_ids: Collection[int] = ()):
        self._generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
        self._device, self._warpers = device, warpers
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)
        self._going, self._noise = list(range(len(seeds))), torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] -> the same plus noise."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        if not self._noise.numel():  # the first token: what input_ids ends with is the prompt
            self._noise = torch.ones(scores.shape)
        elif self._end_ids.numel():
            ended = torch.isin(input_ids[:, -1], self._end_ids).tolist()
            self._going = [row for row in self._going if not ended[row]]
        for row in self._going:
            self._noise[row].exponential_(generator=self._generators[row])
        return scores.float() - self._noise.log().to(self._device)  # -log(Exponential) is a Gumbel variable


@dataclass
class _Prepared:
    """A request with its prompt's token ids and what else the model takes (pixels, one row each)."""

    request: Request
    ids: list[int]
    inputs: dict[str, torch.Tensor]


class TransformersBackend:
    """Batches of queued requests, longest prompts together, left-padded."""

    def __init__(self, settings: EngineSettings):
        import transformers

        self._deterministic = settings.deterministic
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        on_gpu = torch.cuda.is_available()
        dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._transformers = transformers
        source = source_of(settings.model, settings.revision, settings.base_model)
        words, of_words = source.tokenizer
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            words, revision=of_words, padding_side="left", **NO_CODE
        )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        config = transformers.AutoConfig.from_pretrained(source.model, revision=source.revision, **NO_CODE)
        self._processor, load = None, transformers.AutoModelForCausalLM
        if hasattr(config, "vision_config"):
            load = transformers.AutoModelForImageTextToText
            pixels, of_pixels = source.processor
            self._processor = transformers.AutoProcessor.from_pretrained(
                pixels, revision=of_pixels, **pixel_options(settings), **NO_CODE
            )
        self._template = chat_template_of(self._processor or self._tokenizer, settings.chat_template)
        self._model = load.from_pretrained(
            source.model, revision=source.revision, dtype=getattr(torch, dtype), **ONLY_WEIGHTS
        )
        if source.adapter is not None:
            self._model = _with_adapter(self._model, source.adapter)
        self._model.to(self._device).eval()
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._max_model_len = min(filter(None, (settings.max_model_len, context)), default=1 << 30)
        self._queue: list[_Prepared] = []
        self._told = False  # why prompts run once per sample
        self._description = {
            "name": "transformers",
            "version": transformers.__version__,
            "device": str(self._device),
            "dtype": dtype,
            "max_model_len": self._max_model_len,
            "tensor_parallel_size": 1,
            "concurrent_sequences": 1 if settings.deterministic else _BATCH_ROWS,
            "attention": self._model.config._attn_implementation,
            "threads": torch.get_num_threads(),
        }
        if settings.deterministic:
            self._description["deterministic"] = "one sequence at a time, torch's deterministic algorithms"
        if self._processor is not None:
            self._description["images"] = pixel_budget(self._processor.image_processor)

    def describe(self) -> dict:
        """What was loaded."""
        return self._description

    def add(self, request: Request) -> None:
        """Queue a request; ValueError when its prompt does not fit the context or an image cannot be shown."""
        if self._processor is not None:
            ids, inputs = self._with_images(request)
        elif self._template is None or request.form in ("concatenate", "plain"):
            ids, inputs = self._tokenizer(plain_text(request.messages))["input_ids"], {}
        else:
            encoded = self._tokenizer.apply_chat_template(
                request.messages, chat_template=self._template, add_generation_prompt=True, return_dict=True
            )
            ids, inputs = encoded["input_ids"], {}
        if len(ids) >= self._max_model_len:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context only {self._max_model_len}")
        self._queue.append(_Prepared(request, list(ids), inputs))

    def _with_images(self, request: Request) -> tuple[list[int], dict[str, torch.Tensor]]:
        images = images_of(request)
        bare = self._template is None or request.form in ("concatenate", "plain")
        template = CONCATENATE if bare else self._template
        messages = with_images(request.messages, [{"type": "image"} for _ in images])
        text = self._processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        inputs = dict(self._processor(text=[text], images=images or None, return_tensors="pt"))
        inputs.pop("attention_mask")
        return inputs.pop("input_ids")[0].tolist(), inputs

    def has_unfinished(self) -> bool:
        """Whether requests are queued."""
        return bool(self._queue)

    def _next_batch(self) -> list[_Prepared]:
        self._queue.sort(key=lambda entry: len(entry.ids))  # pops the longest first: memory trouble shows at once
        first = self._queue[-1].request
        same = [e for e in self._queue if e.request.sampling.max_new_tokens == first.sampling.max_new_tokens]
        same = [e for e in same if _warping(e.request) == _warping(first) and _shape(e) == _shape(self._queue[-1])]
        width = min(len(self._queue[-1].ids) + first.sampling.max_new_tokens, self._max_model_len)
        limit = max(1, min(_BATCH_ROWS, _BATCH_TOKENS // width) // first.sampling.samples)
        if self._deterministic:  # a row's last bits depend on how many it is computed with
            limit = 1
        batch = same[-limit:]
        chosen = {id(entry) for entry in batch}
        self._queue = [e for e in self._queue if id(e) not in chosen]
        return batch

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Generate one batch to the end."""
        batch = self._next_batch()
        sampling = batch[0].request.sampling
        rows = [(entry.request, entry.ids, i) for entry in batch for i in range(sampling.samples)]
        padded = self._tokenizer.pad({"input_ids": [ids for _, ids, _ in rows]}, return_tensors="pt").to(self._device)
        width = padded["input_ids"].shape[1]
        inputs = self._stacked(batch, sampling.samples, width)
        processors = self._transformers.LogitsProcessorList()
        if sampling.temperature > 0:
            seeds = [request.sampling.seed + i for request, _, i in rows]
            processors.append(SeededSampling(seeds, self._device, self._warpers(sampling), self._eos_ids()))
        config = self._transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=min(sampling.max_new_tokens, self._max_model_len - width),
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=sorted(self._eos_ids()),
        )
        with self._one_prefill(batch, width) if sampling.samples > 1 else nullcontext():
            sequences = self._model.generate(**padded, **inputs, generation_config=config, logits_processor=processors)
        output = sequences[:, width:]
        eos_ids = self._eos_ids()
        results: dict[str, Result] = {}
        for (request, ids, _), tokens in zip(rows, output.tolist(), strict=True):
            completion = self._completion(tokens, eos_ids)
            result = results.setdefault(request.key, Result(request.key, [], len(ids)))
            result.completions.append(completion)
        return list(results.values())

    def _stacked(self, batch: list[_Prepared], samples: int, width: int) -> dict[str, torch.Tensor]:
        """The inputs beside the ids of a batch, each request's part ``samples`` times over."""
        stacked = {}
        for name in batch[0].inputs:
            values = [entry.inputs[name] for entry in batch]
            if _is_per_token(name):  # [1, prompt tokens]: padded on the left as the ids are
                values = [torch.nn.functional.pad(value, (width - value.shape[1], 0)) for value in values]
            stacked[name] = torch.cat([value for value in values for _ in range(samples)]).to(self._device)
        return stacked

    @contextmanager
    def _one_prefill(self, batch: list[_Prepared], width: int) -> Iterator[None]:
        """Let ``generate`` run each prompt once: its first forward pass gets one row of each request instead of all.

        Keys, values and logits of that pass are then repeated, and ``generate`` goes on as if it had run all rows.
        Where that could go wrong (see `_obstacle`), all rows run, and the log says why, once.
        """
        samples = batch[0].request.sampling.samples

        def shrink(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
            hooks.pop().remove()
            obstacle = _obstacle(model, kwargs, set(batch[0].inputs))
            if obstacle is None:
                hooks.append(model.register_forward_hook(grow))
                once = self._stacked(batch, 1, width)
                return args, {name: _once(name, value, samples, once) for name, value in kwargs.items()}
            if not self._told:
                logger.warning("Every sample runs its prompt through the model: %s.", obstacle)
                self._told = True
            return None

        def grow(model: torch.nn.Module, args: tuple, output: Any) -> None:
            hooks.pop().remove()
            output.past_key_values.batch_repeat_interleave(samples)
            output.logits = output.logits.repeat_interleave(samples, dim=0)

        hooks = [self._model.register_forward_pre_hook(shrink, with_kwargs=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _eos_ids(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        return {i for i in (*configured, self._tokenizer.eos_token_id) if i is not None}

    def _completion(self, tokens: list[int], eos_ids: set[int]) -> Completion:
        end = next((i for i, token in enumerate(tokens) if token in eos_ids), None)
        kept = tokens if end is None else tokens[: end + 1]
        reason = "stop" if end is not None else "length"
        text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(text=text, finish_reason=reason, num_tokens=len(kept))

    def _warpers(self, sampling) -> list:
        t = self._transformers
        warpers = [t.TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1 else []
        if sampling.top_k > 0:
            warpers.append(t.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(t.TopPLogitsWarper(sampling.top_p))
        return warpers


def _with_adapter(model: torch.nn.Module, adapter: Path) -> torch.nn.Module:
    """The model with a LoRA adapter beside its weights, not merged into them.

    Raises:
        ValueError: the adapter holds weights that found no place in the model.
    """
    import peft

    adapted = peft.PeftModel.from_pretrained(model, str(adapter))
    found = adapted.load_adapter(str(adapter), adapter_name="default")  # from_pretrained does not tell what it left out
    lost = [*found.unexpected_keys, *(key for key in found.missing_keys if "lora_" in key)]
    if lost:
        raise ValueError(f"adapter_config.json does not fit the adapter's weights: {', '.join(sorted(lost)[:3])}")
    return adapted.get_base_model().eval()


def _shape(entry: _Prepared) -> tuple:
    """Entries of one batch take the same inputs; those of fixed-size processors the same pixels, too."""
    per_patch = "image_grid_thw" in entry.inputs
    return tuple((name, () if per_patch else tuple(value.shape[2:])) for name, value in entry.inputs.items())


def _is_per_token(name: str) -> bool:
    """Whether an input has one row per sequence and one column per token."""
    return name in ("input_ids", "attention_mask") or name.endswith("token_type_ids")


def _obstacle(model: torch.nn.Module, kwargs: dict[str, Any], own: set[str]) -> str | None:
    """Why the first pass of ``generate`` cannot be made for one row per request; None: it can.

    Args:
        kwargs: what ``generate`` gives the model in this pass.
        own: names of the inputs that come from the requests.
    """
    from transformers import GenerationMixin
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = kwargs.get("past_key_values")
    if type(cache) is not DynamicCache:
        return f"its cache is a {type(cache).__name__}"
    # exact types: a layer with a recurrent state beside may be a DynamicLayer, whose keys and values alone get repeated
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    other = {type(layer).__name__ for layer in cache.layers if type(layer) not in plain}
    if other:
        return f"its cache has layers of {', '.join(sorted(other))}"
    if type(model)._update_model_kwargs_for_generation is not GenerationMixin._update_model_kwargs_for_generation:
        return "it carries more than its cache from token to token"
    for name, value in kwargs.items():
        understood = _is_per_token(name) or name == "position_ids" or name in own
        if isinstance(value, (dict, list, tuple)) or (isinstance(value, torch.Tensor) and not understood):
            return f"which rows its input {name} belongs to is not known"
    return None


def _once(name: str, value: Any, samples: int, once: dict[str, torch.Tensor]) -> Any:
    """One input of a forward pass, for the first of every ``samples`` rows."""
    if not isinstance(value, torch.Tensor):
        return value
    if _is_per_token(name):
        return value[::samples]
    return value[..., ::samples, :] if name == "position_ids" else once[name]  # [rows, tokens] or [axes, rows, tokens]


def _warping(request: Request) -> tuple:
    s = request.sampling
    return s.temperature, s.top_p, s.top_k, s.samples
