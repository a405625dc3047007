"""What two measurements must share for a difference between them to be one of the models.

Decoding (temperature, top-p, top-k, token limit, samples, seed, system prompt), the chat template (the model's own,
none or a given one), dtype, context, the items asked and the benchmark's version. The engine is not among them: a
record names it, and tables say where rows were computed by different ones.
"""

from __future__ import annotations

from typing import Any

from eval_harness.markup import markdown_text
from eval_harness.records import RunRecord

_NAMES = {
    "chat_template": "chat template",
    "max_model_len": "context",
    "max_new_tokens": "new tokens",
    "system_prompt": "system prompt",
    "top_p": "top-p",
    "top_k": "top-k",
    "prompts_hash": "items",
    "limit": "item limit",
    "version": "benchmark version",
}


def settings_of(run: RunRecord, benchmark: str | None = None) -> dict[str, Any]:
    """The settings of a run, of one benchmark in it if named: what is known of them, unknown ones left out.

    Settings without an effect are made alike: greedy decoding has no top-p, top-k and seed, and no more tokens can be
    written than the context holds. dtype and context are those really used, where the record has them.
    """
    asked, used = run.settings, run.engine
    known = {"chat_template": asked["chat_template"]} if "chat_template" in asked else {}
    known |= {"limit": asked["limit"]} if "limit" in asked else {}
    known["deterministic"] = bool(asked.get("deterministic"))
    for name in ("dtype", "max_model_len"):
        value = used.get(name) or asked.get(name)
        known |= {name: value} if value not in (None, "auto") else {}
    for name in ("min_pixels", "max_pixels"):
        value = (used.get("images") or {}).get(name)
        known |= {name: value} if value is not None else {}
    result = run.benchmarks.get(benchmark) if benchmark else None
    if result is None:
        return known
    decoding = result.decoding.model_dump()
    if decoding["temperature"] == 0:
        for name in ("top_p", "top_k", "seed"):
            decoding.pop(name)
    if "max_model_len" in known:
        decoding["max_new_tokens"] = min(decoding["max_new_tokens"], known["max_model_len"])
    return known | decoding | {"version": result.version, "prompts_hash": result.prompts_hash}


def unequal_settings(a: RunRecord, b: RunRecord, benchmark: str | None = None) -> dict[str, tuple[Any, Any]]:
    """Settings known of both runs that differ: name -> (a's, b's). Empty: the two may be compared."""
    one, other = settings_of(a, benchmark), settings_of(b, benchmark)
    return {name: (one[name], other[name]) for name in one if name in other and one[name] != other[name]}


def in_words(unequal: dict[str, tuple[Any, Any]]) -> str:
    """``context 10240 against 4096, new tokens 8192 against 4096``."""
    return ", ".join(
        f"other {_NAMES[name]}" if name == "prompts_hash" else
        f"{_NAMES.get(name, name)} {_shown(name, mine)} against {_shown(name, other)}"
        for name, (mine, other) in unequal.items()
    )  # fmt: skip


def _shown(name: str, value: Any) -> str:
    if name == "chat_template":
        return {None: "the model's own", "none": "none"}.get(value, "a given one")
    if value is None:
        return "none"
    return markdown_text(repr(value[:40]) if isinstance(value, str) and name == "system_prompt" else value)
