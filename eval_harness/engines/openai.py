"""Any server that speaks OpenAI's protocol: vLLM, SGLang, TGI, hosted services. Requests over HTTP, no subprocess.

Chat completions; plain text (``--chat-template none``, form ``concatenate``) goes to /completions. The sampling fields
are all sent, because servers fill in a model's own defaults for those that are missing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from eval_harness.engines.base import (
    Completion,
    EngineError,
    EngineSettings,
    Request,
    Result,
    images_of,
    plain_text,
    with_images,
)
from eval_harness.errors import UserError, unknown
from eval_harness.images import encode
from eval_harness.private import hide

ATTEMPTS = 7
"""Tries of one request; with the waits between them they last about a minute."""
BACKOFF_SECONDS = 1.0
"""Wait before the second try; doubles from try to try, and up to half of it is left away by chance."""
MAX_RETRY_AFTER_SECONDS = 600.0
"""A server that asks for a longer pause ends the run."""
_TIMEOUT = httpx.Timeout(3600.0, connect=10.0, pool=None)
"""A long completion on a busy server may take most of an hour, and nothing is sent before its end."""
_DROPPABLE = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Fields without effect at these values: left away once a server refuses them. Others that it refuses end the run."""
_UNIMPORTANT = ("seed", "return_token_ids")
"""Left away, whatever their value, once a server refuses them."""
_BROKEN_OFF = ("abort", "error")
"""Finish reasons of a completion that the server gave up, e.g. because it is shutting down."""
_TOO_LONG = re.compile(r"context|too long|too many tokens|exceed|maximum[ \w]{0,20}(length|tokens)|max_\w*(len|tokens)")
_PRIVATE_NAMES = ("local", "localdomain", "localhost", "internal", "intranet", "lan", "corp", "home", "arpa", "svc")


class _Refused(Exception):
    """The server answered 4xx: asking the same again is of no use."""

    def __init__(self, status: int, body: str):
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body

    @property
    def too_long(self) -> bool:
        """Whether prompt and completion do not fit the context, as far as the message tells."""
        return self.status in (400, 413, 422) and _TOO_LONG.search(self.body.lower()) is not None


def check_settings(settings: EngineSettings) -> dict[str, Any]:
    """Look at everything that can be wrong without asking the server.

    Returns:
        The model's identity as :func:`eval_harness.models.check_model` gives it; of a path served as a name, the last
        part. Weights and context are the server's and not known here.

    Raises:
        UserError: no or unusable URL, a key that is not there, an option that only the server can have.
    """
    _url(settings.base_url)
    _key(settings.api_key_env)
    if settings.concurrency < 1:
        raise UserError(f"--concurrency {settings.concurrency}: expected an integer of at least 1.")
    if settings.chat_template not in (None, "none"):
        raise UserError("--chat-template FILE cannot be sent to a server; start the server with it (or give none).")
    default = EngineSettings(settings.model)
    for name in ("revision", "dtype", "tensor_parallel_size", "min_pixels", "max_pixels"):
        if getattr(settings, name) != getattr(default, name):
            raise UserError(f"--{name.replace('_', '-')} is up to the server with --engine openai; start it so.")
    return {"name": _name(settings.model), "revision": None, "weights": None, "context": None, "vision": True}


def server_of(base_url: str) -> dict[str, Any]:
    """What records tell of a server: its host only if that is public; no credentials, path or query."""
    url = _url(base_url)
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    try:
        address = ipaddress.ip_address(url.host)
        public, loopback = address.is_global, address.is_loopback
    except ValueError:
        labels = url.host.lower().rstrip(".").split(".")
        public = len(labels) > 1 and labels[-1] not in _PRIVATE_NAMES
        loopback = labels[-1] == "localhost"
    return {"scheme": url.scheme, "host": url.host if public else None, "port": port, "loopback": loopback}


class OpenAIEngine:
    """A running server, with the interface of :class:`eval_harness.engines.EngineProcess`.

    Args:
        settings: ``model`` is the served name; ``max_model_len`` the context of a server that does not tell it.
        log: file for retries and for what the server does not take.

    Raises:
        UserError: nobody listens there, the key is refused, the model is not served.
        EngineError: what listens there is no such server, or does not get ready.
    """

    def __init__(self, settings: EngineSettings, log: Path):
        self.log = Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        self._settings, self._url, self._key = settings, _url(settings.base_url), _key(settings.api_key_env)
        self._left_away: set[str] = set()
        self._limit_field = "max_tokens"
        self._several = True  # whether the server gives several completions per request
        self._context = settings.max_model_len
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.description: dict = self._call(self._connect()).result()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.monotonic() - started

    def _call(self, coroutine) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _connect(self) -> dict:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._settings.concurrency)
        server = server_of(self._settings.base_url)
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=_TIMEOUT,
            limits=limits,
            trust_env=not server["loopback"],  # no proxy to one's own machine
        )
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        description = {
            "name": "openai",
            "version": None,
            "dtype": None,
            "server": server,
            "owned_by": None,
            "max_model_len": self._context,
            "concurrency": self._settings.concurrency,
            "reported_models": [],
            "fields_left_away": [],
        }
        try:
            listed = await self._request("GET", "models", at_start=True)
        except _Refused as refusal:
            if refusal.status in (404, 405):  # no list of models: the first request will tell
                return description
            raise self._refusal(refusal) from None
        cards = listed.get("data")
        if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
            raise self._garbage("/models", json.dumps(listed))
        model = self._settings.model
        card = next((card for card in cards if card["id"] == model), None)
        if card is None:
            raise unknown("model on this server (--model is the served name):", model, (c["id"] for c in cards))
        told = card.get("max_model_len")
        if told and self._context and told != self._context:
            raise UserError(f"--max-model-len {self._context}: the server has a context of {told}; leave it away.")
        self._context = told or self._context
        version = await self._version() if card.get("owned_by") == "vllm" else None
        return description | {
            "version": version,
            "owned_by": card.get("owned_by"),
            "max_model_len": self._context,
        }

    async def _version(self) -> str | None:
        with contextlib.suppress(httpx.HTTPError, ValueError, AttributeError):
            path = self._url.path.removesuffix("/v1") + "/version"
            return (await self._client.get(self._url.copy_with(path=path), timeout=10)).json().get("version")
        return None

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Complete requests, yielding results in the order they finish.

        Raises:
            EngineError: the server died or answers nonsense; results yielded before are good.
            UserError: the server refuses what is asked.
        """
        source, done = iter(requests), queue.SimpleQueue()
        running: set[Future] = set()
        try:
            while True:
                while len(running) < 2 * self._settings.concurrency and (request := next(source, None)) is not None:
                    try:
                        path, body = self._body(request)
                    except ValueError as error:  # this request can never be served; the others can
                        yield Result(request.key, error=str(error))
                        continue
                    future = self._call(self._in_turn(request, path, body))
                    running.add(future)
                    future.add_done_callback(done.put)
                if not running:
                    return
                failure = None
                finished = [done.get()]
                while not done.empty():
                    finished.append(done.get())
                for future in finished:
                    running.remove(future)
                    try:
                        result = future.result()
                    except (EngineError, UserError) as error:
                        failure = failure or error
                        continue
                    yield result
                if failure is not None:
                    raise failure
        finally:
            for future in running:
                future.cancel()  # closes the connection, at which servers stop generating

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Path and body of a request without seed and number of completions."""
        s = request.sampling
        body: dict[str, Any] = {
            "model": self._settings.model,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": s.max_new_tokens,
        }
        if request.form in ("concatenate", "plain") or self._settings.chat_template == "none":
            if request.images:
                raise ValueError("images and text without roles cannot be asked of a server; use --engine vllm")
            joined = request.form == "concatenate"
            text = "".join(m["content"] for m in request.messages) if joined else plain_text(request.messages)
            return "completions", body | {"prompt": text}
        messages = request.messages
        if request.images:
            # lossless, upright and in RGB: every server sees the pixels that the other engines see
            urls = ["data:image/png;base64," + base64.b64encode(encode(i)).decode("ascii") for i in images_of(request)]
            messages = with_images(messages, [{"type": "image_url", "image_url": {"url": url}} for url in urls])
        return "chat/completions", body | {"messages": messages}

    async def _in_turn(self, request: Request, path: str, body: dict) -> Result:
        async with self._slots:  # kept while waiting, so that a busy server gets less to do
            return await self._complete(request, path, body)

    async def _complete(self, request: Request, path: str, body: dict) -> Result:
        s = request.sampling
        completions: list[Completion] = []
        prompt_tokens = None
        try:
            while len(completions) < s.samples:
                left = s.samples - len(completions)
                wanted = left if self._several and s.temperature > 0 else 1  # servers refuse several greedy ones
                seeded = body | {"seed": s.seed + len(completions)}
                try:
                    several = {"n": wanted, "return_token_ids": True} if wanted > 1 else {}
                    answer = await self._ask(path, seeded | several)
                except _Refused as refusal:
                    if wanted == 1 or refusal.too_long:
                        raise
                    answer = await self._ask(path, seeded)
                    self._one_by_one(f"refuses several completions per request ({refusal})")
                    wanted = 1
                got, prompt_tokens = self._read(answer, wanted)
                if len(got) < wanted:
                    self._one_by_one(f"gave {len(got)} of {wanted} completions")
                completions += got
        except _Refused as refusal:
            if refusal.too_long:
                return Result(request.key, error=f"the server refused the prompt ({refusal})")
            raise self._refusal(refusal) from None
        return Result(request.key, completions, prompt_tokens)

    def _one_by_one(self, why: str) -> None:
        if self._several:
            self._several = False
            self._note(f"the server {why}; from now on one request per completion")

    def _read(self, answer: dict, wanted: int) -> tuple[list[Completion], int | None]:
        """Completions (at most as many as wanted) and the prompt's tokens of a server's answer."""
        try:
            usage = answer.get("usage") or {}
            choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))[:wanted]
            if not choices:
                raise KeyError("choices")
            completions = []
            for choice in choices:
                text = choice["message"]["content"] if "message" in choice else choice["text"]
                tokens = choice.get("token_ids")
                count = len(tokens) if tokens is not None else usage.get("completion_tokens") if wanted == 1 else None
                completions.append(Completion(str(text or ""), str(choice.get("finish_reason")), count))
        except (KeyError, TypeError, AttributeError):
            raise self._garbage("the request", json.dumps(answer)) from None
        model = answer.get("model")
        if isinstance(model, str) and (name := _name(model)) not in self.description["reported_models"]:
            self.description["reported_models"].append(name)
        return completions, usage.get("prompt_tokens")

    async def _ask(self, path: str, payload: dict) -> dict:
        """One answer, in the dialect the server turns out to speak, with at most the tokens its context has left."""
        if self._context and payload["max_tokens"] >= self._context:  # would be refused for any prompt
            payload = payload | {"max_tokens": await self._room(path, payload)}
        while True:
            limit = payload["max_tokens"]
            sent = {name: value for name, value in payload.items() if name not in {*self._left_away, "max_tokens"}}
            sent[self._limit_field] = limit
            try:
                return await self._request("POST", path, sent)
            except _Refused as refusal:
                fields = {name for name, value in _DROPPABLE.items() if sent.get(name) == value}
                fields |= {name for name in _UNIMPORTANT if name in sent}
                named = {name for name in fields if re.search(rf"\b{name}\b", refusal.body)}
                if refusal.status in (400, 422) and named:
                    if new := named - self._left_away:
                        self._left_away |= named
                        self.description["fields_left_away"] = sorted(self._left_away)
                        self._note(f"the server does not take {', '.join(sorted(new))} ({refusal}); left away")
                elif "max_tokens" in sent and re.search(r"use\W+max_completion_tokens", refusal.body.lower()):
                    self._limit_field = "max_completion_tokens"
                elif refusal.too_long and limit > 1:
                    room = await self._room(path, payload, refusal)
                    if room >= limit:
                        raise self._refusal(refusal) from None
                    payload = payload | {"max_tokens": room}
                else:
                    raise

    async def _room(self, path: str, payload: dict, refusal: _Refused | None = None) -> int:
        """Tokens of the context that the prompt leaves, from the prompt's count when one token is asked for."""
        single = {name: value for name, value in payload.items() if name not in ("n", "return_token_ids")}
        answer = await self._ask(path, single | {"max_tokens": 1})
        used = (answer.get("usage") or {}).get("prompt_tokens")
        if not self._context or used is None:
            raise UserError(
                f"the server does not take {payload['max_tokens']} new tokens for this prompt"
                f"{f', {refusal}' if refusal else ''}, and does not tell what would fit. Give the context by "
                "--max-model-len, or fewer tokens by --max-new-tokens."
            )
        return max(self._context - used, 1)

    async def _request(self, method: str, path: str, payload: dict | None = None, at_start: bool = False) -> dict:
        """One answer as JSON, after as many tries as it takes.

        Raises:
            _Refused: 4xx.
            EngineError: all tries failed, or the answer is no JSON object.
            UserError: nobody listens, when ``at_start``.
        """
        url = self._url.copy_with(path=f"{self._url.path}/{path}")
        problem = ""
        for attempt in range(ATTEMPTS):
            pause = 0.0
            try:
                response = await self._client.request(method, url, json=payload)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
                if at_start and isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                    raise UserError(f"no server answers at {url} ({problem}). Start it, or mend --base-url.") from None
            except httpx.RequestError as error:
                raise self._garbage(path, f"{type(error).__name__} {error}") from None
            else:
                if response.status_code == 200:
                    answer = self._json(path, response)
                    if not _broken_off(answer):
                        return answer
                    problem = "the completion was broken off by the server"
                elif response.status_code in (408, 429) or response.status_code >= 500:
                    problem = f"{response.status_code}: {self._excerpt(response.text)}"
                    pause = _retry_after(response)
                else:
                    raise _Refused(response.status_code, self._excerpt(response.text))
            if pause > MAX_RETRY_AFTER_SECONDS:
                raise EngineError(f"the server wants a pause of {pause:.0f} s ({problem})")
            if attempt + 1 < ATTEMPTS:
                pause = max(pause, BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1))
                self._note(f"try {attempt + 1} of {ATTEMPTS}: {problem}; again in {pause:.1f} s")
                await asyncio.sleep(pause)
        raise EngineError(f"the server did not answer in {ATTEMPTS} tries; the last: {problem}")

    def _json(self, path: str, response: httpx.Response) -> dict:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._garbage(path, response.text)
        return answer

    def _garbage(self, what: str, text: str) -> EngineError:
        return EngineError(
            f"the server's answer to {what} is not what OpenAI's protocol has; is --base-url the right one? It began: "
            f"{self._excerpt(text)!r}"
        )

    def _refusal(self, refusal: _Refused) -> UserError:
        advice = {
            401: "Name the variable that holds the key by --api-key-env.",
            403: "The key (--api-key-env) may not do this.",
            404: "Check --base-url and --model.",
        }.get(refusal.status, "Change what it names, here or on the server. Finished records stay.")
        return UserError(f"the server refuses the request, {refusal}. {advice}")

    def _excerpt(self, text: str) -> str:
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:500]

    def _note(self, text: str) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(hide(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n"))

    def close(self) -> None:
        """Close all connections; the server stays."""

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.aclose()

        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                self._call(end()).result(timeout=10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            if not self._loop.is_running():
                self._loop.close()

    def __enter__(self) -> OpenAIEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _url(base_url: str | None) -> httpx.URL:
    """The address that paths are joined to; /v1 where no path is given."""
    if not base_url:
        raise UserError("--engine openai needs --base-url, e.g. http://localhost:8000/v1.")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise UserError(f"--base-url is no URL ({error}); expected e.g. http://localhost:8000/v1.") from None
    if url.userinfo or url.query or url.fragment:
        raise UserError("--base-url holds credentials or a query; give the key by --api-key-env NAME.")
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"--base-url {base_url}: expected http:// or https://, e.g. http://localhost:8000/v1.")
    return url.copy_with(path=url.path.rstrip("/") or "/v1")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"--api-key-env {variable}: there is no such environment variable, or it is empty.")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"--api-key-env {variable}: its value holds characters that no key has.")
    return key


def _name(model: str) -> str:
    """A served name for records: of a path, the last part."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model


def _broken_off(answer: dict) -> bool:
    choices = answer.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") in _BROKEN_OFF for choice in choices
    )


def _retry_after(response: httpx.Response) -> float:
    """Seconds the server asks to wait, from a number or a date; 0 where it does not."""
    value = response.headers.get("retry-after", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
