"""What a server's reply says: every kind has one outcome, which docs/benchmarks.md ("What a reply counts as") lists.

Nothing here asks a server. Texts are clean and without the key in use when they leave this module; numbers have the
types and ranges that records expect.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eval_harness.engines.base import Completion
from eval_harness.outside import for_message, parse_json
from eval_harness.private import hide, hide_keys

MAX_COUNT = 10**9
"""Tokens; a larger count is none."""
MAX_CONTEXT = 10**9
_MAX_NAME = 200
_MAX_CARDS = 1000
_CODINGS = ("gzip", "x-gzip", "deflate")
_BROKEN_OFF = ("abort", "error")
"""Finish reasons of a completion that the server gave up, e.g. because it is shutting down."""
_ENDS = {
    "eos_token": "stop",  # TGI
    "stop_sequence": "stop",
    "end_turn": "stop",  # Anthropic, through gateways
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "function_call": "tool_calls",
}
"""Other servers' words for the finish reasons of OpenAI's protocol."""
_KNOWN_ENDS = ("stop", "length", "content_filter", "refusal", "tool_calls")
_THOUGHTS = ("reasoning_content", "reasoning")
"""Where servers put thinking: DeepSeek, SGLang and earlier vLLM; OpenRouter and vLLM."""


class Nonsense(ValueError):
    """This is not what OpenAI's protocol has; the message says what is wrong, in one line."""


class NoChoices(Exception):
    """A whole reply without any completion: ``"choices": []`` or null."""


class ReportedError(Exception):
    """An error that came with status 200.

    Args:
        status: the HTTP status it would have had, where its code is one.
    """

    def __init__(self, status: int | None, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """What a reply to a request for completions holds."""

    completions: list[Completion]
    prompt_tokens: int | None
    model: str | None
    """Name the server gives the model."""
    remarks: Counter[str] = field(default_factory=Counter)
    """What was peculiar -> number of completions."""


async def read_body(chunks: AsyncIterator[bytes], coding: str, most: int) -> tuple[bytes, bool]:
    """The bytes of a reply, decompressed no further than to ``most`` of them.

    Args:
        chunks: as they came over the line.
        coding: the header Content-Encoding.
        most: bytes, before and after decompression.

    Returns:
        The bytes, and whether that is all of them.

    Raises:
        Nonsense: an encoding that was not asked for, or damaged.
    """
    coding = coding.strip().lower()
    if coding not in ("", "identity", *_CODINGS):
        raise Nonsense(f"content encoding {for_message(coding, 40)!r}, which was not asked for")
    decoder = zlib.decompressobj(32 + zlib.MAX_WBITS) if coding in _CODINGS else None
    data, received = bytearray(), 0
    async for chunk in chunks:
        received += len(chunk)
        try:
            data += chunk if decoder is None else decoder.decompress(chunk, most + 1 - len(data))
        except zlib.error as error:
            raise Nonsense(f"compressed data that are damaged ({error})") from None
        if max(len(data), received) > most:
            return bytes(data[:most]), False
    if decoder is not None and not decoder.eof:
        raise Nonsense("compressed data that are cut off")
    return bytes(data), True


def parse(data: bytes) -> dict[str, Any]:
    """A reply as a JSON object; bytes that are no UTF-8 are U+FFFD in its texts.

    Raises:
        Nonsense: no JSON, no object, or nested too deeply.
    """
    try:
        found = parse_json(data.decode("utf-8-sig", "replace"))
    except ValueError as error:
        raise Nonsense(f"no JSON ({error})") from None
    if not isinstance(found, dict):
        raise Nonsense("no JSON object")
    return found


def check_error(answer: Mapping[str, Any]) -> None:
    """Raises ReportedError where a reply is an error in spite of its status, of one of its choices too."""
    error = answer.get("error")
    if not error and answer.get("object") == "error":  # SGLang, earlier vLLM
        error = answer
    if not error and isinstance(answer.get("choices"), list):
        error = next((c["error"] for c in answer["choices"] if isinstance(c, dict) and c.get("error")), None)
    if not error:
        return
    about = error if isinstance(error, dict) else {"message": error}
    code = about.get("code", about.get("status"))
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:9])
    is_status = isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600
    message = about.get("message")
    raise ReportedError(code if is_status else None, message if isinstance(message, str) and message else str(about))


def is_broken_off(answer: Mapping[str, Any]) -> bool:
    """Whether the server gave up one of the completions."""
    choices = answer.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") in _BROKEN_OFF for choice in choices
    )


def read(answer: Mapping[str, Any], wanted: int, limit: int) -> Reply:
    """The completions of a reply, at most as many as wanted.

    Args:
        answer: from :func:`parse`.
        wanted: completions that were asked for.
        limit: tokens that each might have.

    Raises:
        NoChoices: there are none.
        Nonsense: it is no reply to a request for completions.
    """
    choices = answer.get("choices", ...)
    if choices is None or choices == []:
        raise NoChoices
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Nonsense("no list of choices")
    remarks: Counter[str] = Counter()
    choices = _in_order(choices, remarks)[:wanted]
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    told = _count(usage.get("completion_tokens"), remarks)
    counted = told if wanted == 1 and len(answer["choices"]) == 1 else None  # otherwise it is of several
    completions = [_completion(choice, counted, limit, remarks) for choice in choices]
    model = answer.get("model")
    return Reply(
        completions,
        _count(usage.get("prompt_tokens"), remarks),
        name(model) if isinstance(model, str) and model else None,
        remarks,
    )


def prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt, where a reply tells a possible number."""
    usage = answer.get("usage")
    return _count(usage.get("prompt_tokens"), Counter()) if isinstance(usage, dict) else None


@dataclass(frozen=True)
class Card:
    """An entry of a server's list of models."""

    id: str
    """Not fit for a record: see :func:`name`."""
    owned_by: str | None
    context: int | None
    """Tokens; None: not told."""


def read_models(answer: Mapping[str, Any], wanted: str) -> list[Card]:
    """The server's list of models, at most a thousand, and the one that is wanted if it is listed at all.

    Raises:
        Nonsense: no such list, or a context that cannot be one.
    """
    entries = answer.get("data")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
        raise Nonsense("no list of models")
    kept = [entry for entry in entries if entry["id"] == wanted][:1] + entries[:_MAX_CARDS]
    cards = []
    for entry in kept:
        context = entry.get("max_model_len")
        if context is not None and entry["id"] == wanted and not _is_whole(context, 2, MAX_CONTEXT):
            raise Nonsense(f"a context (max_model_len) of {for_message(ascii(context), 40)} tokens")
        owner = entry.get("owned_by")
        owner = name(owner) if isinstance(owner, str) else None
        cards.append(Card(entry["id"], owner, context if _is_whole(context, 2, MAX_CONTEXT) else None))
    return cards


def name(text: str) -> str:
    """A name that a server gave something, for records and messages: one line without the key."""
    return for_message(hide(text[: 50 * _MAX_NAME]), _MAX_NAME)


def _in_order(choices: list[dict], remarks: Counter[str]) -> list[dict]:
    """By index where each has one of its own, otherwise as they came."""
    places = [choice.get("index") for choice in choices]
    if all(_is_whole(place, 0, MAX_COUNT) for place in places) and len(set(places)) == len(places):
        return sorted(choices, key=lambda choice: choice["index"])
    if len(choices) > 1:
        remarks["choices without an index of their own"] += len(choices)
    return choices


def _completion(choice: dict, counted: int | None, limit: int, remarks: Counter[str]) -> Completion:
    ids = choice.get("token_ids")
    count = len(ids) if isinstance(ids, list) else counted
    end = _end(choice.get("finish_reason"), count, limit, remarks)
    if "message" not in choice:
        text = choice.get("text", ...)
        if text is not None and not isinstance(text, str):
            raise Nonsense("a choice without a message or text")
        said, instead = text or "", None
    else:
        said, instead = _message(choice, end, remarks)
    end = instead or end
    if not said.strip() and end in ("stop", None):
        remarks["empty completion"] += 1
    if end in _KNOWN_ENDS[2:]:
        remarks[end] += 1
    return Completion(hide_keys(said), end, count)


def _message(choice: dict, end: str | None, remarks: Counter[str]) -> tuple[str, str | None]:
    """What a message says, and its end where that is another than the server's finish reason."""
    message = choice["message"]
    if not isinstance(message, dict):
        raise Nonsense("a message that is no object")
    said, thought, refused = _parts(message.get("content"), remarks)
    thought = thought or next((text for key in _THOUGHTS if (text := _joined(message.get(key)))), "")
    refusal = message.get("refusal")
    refused = refused or (refusal if isinstance(refusal, str) else "")
    if said.strip():
        if thought:
            remarks["reasoning beside the content, left out"] += 1
        return said, None
    if refused.strip():
        return refused, "refusal"
    if thought.strip():
        remarks["reasoning without content, used as the text"] += 1
        finished = end == "stop" or thought.lstrip().startswith("<think>")
        return thought if finished else f"<think>\n{thought}", None
    if message.get("tool_calls") or message.get("function_call"):
        return "", "tool_calls"
    if "content" not in message and end is None:
        raise Nonsense("a message without content")
    return said, None


def _parts(content: Any, remarks: Counter[str]) -> tuple[str, str, str]:
    """What a content says, thinks and refuses; parts of one kind are joined as they stand."""
    if content is None or isinstance(content, str):
        return content or "", "", ""
    if not isinstance(content, list):
        raise Nonsense("a content that is neither text nor parts")
    found: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": []}
    others = 0
    for part in content:
        if isinstance(part, str):
            found["text"].append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        kind = {"output_text": "text", "reasoning": "thinking"}.get(kind, kind) if isinstance(kind, str) else None
        inside = None if kind not in found else part.get(kind, part.get("text"))
        if kind == "thinking":
            inside = _joined(inside)
        if isinstance(inside, str):
            found[kind].append(inside)
        else:
            others += 1
    if others == len(content) > 0:
        raise Nonsense("a content of parts, none of them text")
    if others:
        remarks["parts that are no text, left out"] += others
    return tuple("".join(texts) for texts in found.values())


def _joined(thought: Any) -> str:
    """Thinking as one text; of a list (Mistral's) the texts of its parts."""
    if isinstance(thought, list):
        return "".join(p["text"] for p in thought if isinstance(p, dict) and isinstance(p.get("text"), str))
    return thought if isinstance(thought, str) else ""


def _end(reason: Any, count: int | None, limit: int, remarks: Counter[str]) -> str | None:
    """The finish reason in OpenAI's words; another server's own word where there is none for it; None: not told."""
    if isinstance(reason, str) and reason.strip():
        word = reason.strip().lower()
        word = _ENDS.get(word, word)
        if word in _KNOWN_ENDS:
            return word
        remarks["unknown finish reason"] += 1
        return for_message(hide(reason[: 50 * _MAX_NAME]), 40)
    if count is not None and count >= limit:
        return "length"
    remarks["no finish reason"] += 1
    return None


def _count(value: Any, remarks: Counter[str]) -> int | None:
    """A number of tokens, where it can be one."""
    if value is None:
        return None
    if _is_whole(value, 0, MAX_COUNT):
        return value
    remarks["usage that is no count"] += 1
    return None


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
