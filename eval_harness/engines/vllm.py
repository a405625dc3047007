"""vLLM, through its offline engine with continuous batching. The only module that imports vLLM."""

from __future__ import annotations

import os
from typing import Any

from eval_harness.adapters import Source, source_of
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
from eval_harness.models import NO_CODE


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
            if settings.tensor_parallel_size * settings.pipeline_parallel_size == 1:
                _stay_in_this_process()
        kernels = settings.deterministic and _has_batch_invariant_kernels()
        if kernels:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"  # read when vLLM is imported
        import vllm

        self._vllm = vllm
        dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        source = source_of(settings.model, settings.revision, settings.base_model)
        config = AutoConfig.from_pretrained(source.model, revision=source.revision, **NO_CODE)
        context = _context_length(config)
        max_model_len = min(filter(None, (settings.max_model_len, context)), default=None)
        # On a CPU a prompt cut into chunks rewinds the request's generator, which CPU generators cannot do (vLLM 0.31)
        options = {} if on_gpu else {"enforce_eager": True, "enable_chunked_prefill": False}
        if settings.deterministic:
            options |= {"enable_prefix_caching": False} | ({} if kernels else {"max_num_seqs": 1})
        if settings.pipeline_parallel_size > 1:
            options["pipeline_parallel_size"] = settings.pipeline_parallel_size
        if settings.distributed_executor_backend:
            options["distributed_executor_backend"] = settings.distributed_executor_backend
        if source.adapter is not None:
            words, of_words = source.tokenizer
            options |= {"enable_lora": True, "max_lora_rank": source.vllm_rank, "max_loras": 1}
            options |= {"tokenizer": words, "tokenizer_revision": of_words}
        sees = hasattr(config, "vision_config")
        if sees:
            options |= {
                "limit_mm_per_prompt": {"image": 1, "video": 0},
                "mm_processor_kwargs": pixel_options(settings),
                "mm_processor_cache_gb": 0,  # an image is asked about once; the cache would keep the pixels of all
            }
        self._llm = vllm.LLM(
            model=source.model,
            revision=source.revision,
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=settings.tensor_parallel_size,
            seed=settings.seed,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            load_format="safetensors",  # the default, auto, opens pickles too
            **NO_CODE,
            **options,
        )
        self._adapter = self._load_adapter(source)
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
            **self._in_use(settings),
        }
        if settings.deterministic:
            self._description["deterministic"] = "batch-invariant kernels" if kernels else "one sequence at a time"
        if sees:
            self._description["images"] = pixel_budget(_image_processor(settings, source))

    def _in_use(self, settings: EngineSettings) -> dict[str, Any]:
        """Settings of the engine after its own choices."""
        config = self._llm.llm_engine.vllm_config
        return {
            "pipeline_parallel_size": settings.pipeline_parallel_size,
            "distributed_executor_backend": str(config.parallel_config.distributed_executor_backend),
            "concurrent_sequences": config.scheduler_config.max_num_seqs,
            "batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "cache_dtype": str(config.cache_config.cache_dtype),
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": config.model_config.enforce_eager,
        }

    def _load_adapter(self, source: Source) -> Any:
        """The adapter as requests name it, loaded now; None: there is none."""
        if source.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest("adapter", 1, str(source.adapter))
        if not self._llm.llm_engine.add_lora(adapter):
            raise ValueError(f"vLLM did not load the adapter {source.adapter}")
        return adapter

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
        common = {"lora_request": self._adapter, "use_tqdm": False}
        if request.images or request.form == "concatenate":
            parts = [{"type": "image_pil", "image_pil": image} for image in images_of(request)]
            bare = self._template is None or request.form in ("concatenate", "plain")
            override = CONCATENATE if bare else self._override
            messages = with_images(request.messages, parts)
            return self._llm.enqueue_chat(messages, params, chat_template=override, **common)
        if self._template is None or request.form == "plain":
            return self._llm.enqueue([plain_text(request.messages)], params, **common)
        return self._llm.enqueue_chat(request.messages, params, chat_template=self._override, **common)

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


def _has_batch_invariant_kernels() -> bool:
    """Whether vLLM's batch-invariant mode is made for this hardware: NVIDIA from compute capability 8.0 on.

    As vLLM 0.31 documents and implements it; it does not look itself, and installs its kernels on whatever is there.
    """
    from vllm.platforms import current_platform

    return current_platform.is_cuda() and current_platform.has_device_capability(80)


def _stay_in_this_process() -> None:
    """Keep vLLM's scheduler and model in this process, which is the engine's own already (before vLLM is imported).

    On a CPU it would start two more, each with imports of its own, and pass every step between them: half of the start
    and, with a small model, of generation. As with them, one core is left to the rest, here the graders;
    ``OMP_NUM_THREADS`` overrides that, and ``VLLM_CPU_OMP_THREADS_BIND`` with a list of cores needs the two.
    """
    import torch

    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") not in ("auto", "nobind"):
        return
    if os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0") == "0" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def _image_processor(settings: EngineSettings, source: Source):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(
        source.model, revision=source.revision, **pixel_options(settings), **NO_CODE
    )


def _context_length(config) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)
