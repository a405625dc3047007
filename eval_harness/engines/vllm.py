"""vLLM, through its offline engine with continuous batching. The only module that imports vLLM."""

from __future__ import annotations

import os

from eval_harness.engines.base import (
    CONCATENATE,
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
from eval_harness.engines.base import Completion as _Completion


class VLLMBackend:
    """One ``vllm.LLM``; requests join its running batch as they come, K samples through its own n-sampling.

    Prompts are rendered by vLLM's chat path, so special tokens are added once (the release's pinned lighteval adds the
    beginning-of-sequence token twice for tokenizers that add one themselves).
    """

    def __init__(self, settings: EngineSettings):
        import torch
        from transformers import AutoConfig

        on_gpu = torch.cuda.is_available()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if not on_gpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        import vllm

        self._vllm = vllm
        dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision)
        context = _context_length(config)
        max_model_len = min(filter(None, (settings.max_model_len, context)), default=None)
        # On a CPU a prompt cut into chunks rewinds the request's generator, which CPU generators cannot do (vLLM 0.31)
        options = {} if on_gpu else {"enforce_eager": True, "enable_chunked_prefill": False}
        sees = hasattr(config, "vision_config")
        if sees:
            options |= {
                "limit_mm_per_prompt": {"image": 1, "video": 0},
                "mm_processor_kwargs": pixel_options(settings),
                "mm_processor_cache_gb": 0,  # an image is asked about once; the cache would keep the pixels of all
            }
        self._llm = vllm.LLM(
            model=settings.model,
            revision=settings.revision,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=settings.tensor_parallel_size,
            seed=settings.seed,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            **options,
        )
        self._template = chat_template_of(self._llm.get_tokenizer(), settings.chat_template)
        self._override = settings.chat_template if settings.chat_template not in (None, "none") else None
        self._keys: dict[str, str] = {}
        model_config = self._llm.model_config
        self._max_model_len = model_config.max_model_len
        self._description = {
            "name": "vllm",
            "version": vllm.__version__,
            "device": "cuda" if on_gpu else "cpu",
            "dtype": str(model_config.dtype).removeprefix("torch."),
            "max_model_len": self._max_model_len,
            "tensor_parallel_size": settings.tensor_parallel_size,
        }
        if sees:
            self._description["images"] = pixel_budget(_image_processor(settings))

    def describe(self) -> dict:
        """What was loaded."""
        return self._description

    def add(self, request: Request) -> None:
        """Queue a request; ValueError when its prompt does not fit the context or an image cannot be shown."""
        from vllm.exceptions import VLLMClientError

        try:
            ids = self._enqueue(request)
        except VLLMClientError as error:  # not a ValueError where a prompt is a little too long
            raise ValueError(str(error)) from error
        # vLLM returns "<number>-<random>" here and the bare number in its outputs
        self._keys[ids[0].split("-")[0]] = request.key

    def _enqueue(self, request: Request) -> list[str]:
        s = request.sampling
        params = self._vllm.SamplingParams(
            n=s.samples,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            max_tokens=s.max_new_tokens,
            seed=s.seed,
        )
        if request.images or request.form == "concatenate":
            parts = [{"type": "image_pil", "image_pil": image} for image in images_of(request)]
            override = CONCATENATE if request.form == "concatenate" or self._template is None else self._override
            messages = with_images(request.messages, parts)
            return self._llm.enqueue_chat(messages, params, chat_template=override, use_tqdm=False)
        if self._template is None:
            return self._llm.enqueue([plain_text(request.messages)], params, use_tqdm=False)
        return self._llm.enqueue_chat(request.messages, params, chat_template=self._override, use_tqdm=False)

    def has_unfinished(self) -> bool:
        """Whether requests are queued or running."""
        return self._llm.llm_engine.has_unfinished_requests()

    def step(self) -> list[Result]:
        """One engine step: a token for every running request."""
        return [
            Result(
                key=self._keys.pop(output.request_id),
                completions=[
                    _Completion(text=o.text, finish_reason=str(o.finish_reason), num_tokens=len(o.token_ids))
                    for o in sorted(output.outputs, key=lambda o: o.index)
                ],
                num_prompt_tokens=len(output.prompt_token_ids or ()),
            )
            for output in self._llm.llm_engine.step()
            if output.finished
        ]


def _image_processor(settings: EngineSettings):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(settings.model, revision=settings.revision, **pixel_options(settings))


def _context_length(config) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)
