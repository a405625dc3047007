"""Requests, results and settings: plain data that crosses the pipe between a run and its engine."""

from __future__ import annotations

import base64
import importlib.util
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from eval_harness.errors import UserError, unknown
from eval_harness.images import decode

ENGINES = ("vllm", "transformers", "openai")
CONCATENATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""Chat template of a pretrained Qwen2-VL: contents one after the other, no roles, no generation prompt."""


class EngineError(RuntimeError):
    """The engine could not start, or died. What it had finished before is kept by the run."""


@dataclass(frozen=True)
class Sampling:
    """How to draw the K completions of one request."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    samples: int
    seed: int
    """Seed of the first sample; sample i uses seed + i, so a completion depends on its request alone."""


@dataclass(frozen=True)
class Request:
    """One conversation to complete. ``key`` comes back with the result."""

    key: str
    messages: list[dict]
    """Turns with text contents; the images belong to the last turn, before its text."""
    sampling: Sampling
    images: list[str] = field(default_factory=list)
    """Encoded images (JPEG, PNG, ...) in base64."""
    form: str = "chat"
    """``concatenate``: images and texts are joined as they stand, without roles (see :data:`CONCATENATE`). ``plain``:
    as if the engine had no chat template."""


@dataclass(frozen=True)
class Completion:
    """One completion: decoded text without special tokens."""

    text: str
    finish_reason: str | None
    """None: a server did not tell."""
    num_tokens: int | None
    """None: a server did not tell."""


@dataclass(frozen=True)
class Result:
    """The K completions of a request, or the reason why there are none."""

    key: str
    completions: list[Completion] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class EngineSettings:
    """What decides how a model is loaded. ``None`` leaves the choice to the engine, which reports what it chose."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    """auto is float32 on a CPU and bfloat16 on a GPU."""
    max_model_len: int | None = None
    chat_template: str | None = None
    """None: the model's own; ``none``: plain text; otherwise the template's text."""
    tensor_parallel_size: int = 1
    min_pixels: int | None = None
    """Smallest and largest number of pixels of an image after scaling; None: the processor's own."""
    max_pixels: int | None = None
    gpu_memory_utilization: float = 0.8
    seed: int = 1234
    pipeline_parallel_size: int = 1
    distributed_executor_backend: str | None = None
    """vLLM alone: ``mp`` (one node), ``ray`` (several); None: its own choice."""
    deterministic: bool = False
    """A completion depends on its own prompt alone, to the last bit: kernels or batches that do not look at others."""
    base_url: str | None = None
    """Of the ``openai`` engine alone, as the two below: where the server answers."""
    concurrency: int = 64
    """Requests at the server at once."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    base_model: str | None = None
    """Of a LoRA adapter: folder or hub id to take for the base that it names."""


class Backend(Protocol):
    """What runs inside the engine's process."""

    def describe(self) -> dict:
        """What was really loaded: engine, version, dtype, context length, device."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError if it can never be served (e.g. the prompt is too long)."""
        ...

    def has_unfinished(self) -> bool:
        """Whether step() has work."""
        ...

    def step(self) -> list[Result]:
        """Do a bounded piece of work and return what finished."""
        ...


def resolve_engine(name: str) -> str:
    """``auto`` is vLLM when it is installed, transformers otherwise.

    Raises:
        UserError: unknown engine, or vLLM asked for and not installed.
    """
    has_vllm = importlib.util.find_spec("vllm") is not None
    if name == "auto":
        return "vllm" if has_vllm else "transformers"
    if name not in ENGINES:
        raise unknown("engine", name, ("auto", *ENGINES))
    if name == "vllm" and not has_vllm:
        raise UserError(
            "--engine vllm: vLLM is not installed here (there is no wheel for this platform, or `make "
            "install` was not run). Use --engine transformers."
        )
    return name


def pixel_options(settings: EngineSettings) -> dict[str, int]:
    """The bounds on image size that were asked for, as an image processor takes them."""
    bounds = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    return {name: pixels for name, pixels in bounds.items() if pixels is not None}


def pixel_budget(image_processor: Any) -> dict[str, Any]:
    """What of an image processor decides how an image is scaled and cut, for the record."""
    named = {
        name: getattr(image_processor, name, None) for name in ("min_pixels", "max_pixels", "patch_size", "merge_size")
    }
    size = dict(getattr(image_processor, "size", None) or {})
    # transformers 5 keeps the bounds of Qwen's processors in `size`, as the area of the shortest and longest edge
    named["min_pixels"] = named["min_pixels"] or size.get("shortest_edge")
    named["max_pixels"] = named["max_pixels"] or size.get("longest_edge")
    return {
        "class": type(image_processor).__name__,
        **{name: value for name, value in named.items() if value is not None},
    }


def images_of(request: Request) -> list[Image.Image]:
    """The request's images, decoded (once, however many samples are drawn).

    Raises:
        ImageError: one of them cannot be shown.
    """
    return [decode(base64.b64decode(data), f"image {i}") for i, data in enumerate(request.images, start=1)]


def with_images(messages: list[dict], parts: list[dict]) -> list[dict]:
    """The conversation with image parts put before the text of its last turn."""
    *before, last = messages
    return [*before, {**last, "content": [*parts, {"type": "text", "text": last["content"]}]}]


def chat_template_of(tokenizer, chat_template: str | None) -> str | None:
    """The template text to use, None for plain text.

    Raises:
        ValueError: the model has no template and none was given.
    """
    if chat_template == "none":
        return None
    template = chat_template or tokenizer.chat_template
    if not template:
        raise ValueError(
            "the tokenizer has no chat template; give one with --chat-template FILE, or --chat-template "
            "none to send the prompt as plain text"
        )
    return template


def plain_text(messages: list[dict]) -> str:
    """The conversation without a template: contents joined by blank lines."""
    return "\n\n".join(message["content"] for message in messages)
