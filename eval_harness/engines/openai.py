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

from eval_harness.engines import replies
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
from eval_harness.outside import clean, cleaned, for_message
from eval_harness.private import hide, hide_secrets, remember

ATTEMPTS = 7
"""Tries of one request; with the waits between them they last about a minute."""
BACKOFF_SECONDS = 1.0
"""Wait before the second try; doubles from try to try, and up to half of it is left away by chance."""
MAX_RETRY_AFTER_SECONDS = 600.0
"""A server that asks for a longer pause ends the run."""
REPLY_SECONDS = 3600.0
"""A long completion on a busy server may take most of an hour. Some send nothing before its end, some blanks all the
time; what has not come to its end by then is tried again."""
LIST_SECONDS = 60.0
"""The same for the list of models."""
REPLY_BYTES = 16 << 20
TOKEN_BYTES = 64
"""A reply may have so many bytes, and so many more for each token that was asked for."""
_EXCERPT_BYTES = 1 << 16
"""So much is read of an error page."""
_TIMEOUT = httpx.Timeout(REPLY_SECONDS, connect=10.0, pool=None)
_DROPPABLE = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Fields without effect at these values: left away once a server refuses them. Others that it refuses end the run."""
_UNIMPORTANT = ("seed", "return_token_ids")
"""Left away, whatever their value, once a server refuses them."""
_SHOWN_MODELS = 50
_MAX_MODELS = 20
"""Names of models that are recorded of one server."""
_MAX_CUTS = 4
"""So often a request may be made shorter before it counts as refused."""
_TOO_LONG = re.compile(r"context|too long|too many tokens|exceed|maximum[ \w]{0,20}(length|tokens)|max_\w*(len|tokens)")
_PRIVATE_NAMES = ("local", "localdomain", "localhost", "internal", "intranet", "lan", "corp", "home", "arpa", "svc")


class _Empty(Exception):
    """The server gives no completion for this prompt, however often it is asked."""


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
            headers=headers | {"Accept-Encoding": "gzip, deflate"},
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
            "remarks": {},
        }
        try:
            listed = await self._request("GET", "models", at_start=True)
        except _Refused as refusal:
            if refusal.status in (404, 405):  # no list of models: the first request will tell
                return description
            raise self._refusal(refusal) from None
        model = self._settings.model
        try:
            cards = replies.read_models(listed, model)
        except replies.Nonsense as error:
            raise self._garbage("/models", error, json.dumps(listed)) from None
        card = next((card for card in cards if card.id == model), None)
        if card is None:
            raise unknown("model on this server (--model is the served name):", model, _few(cards))
        told = card.context
        if told and self._context and told != self._context:
            raise UserError(f"--max-model-len {self._context}: the server has a context of {told}; leave it away.")
        self._context = told or self._context
        version = await self._version() if card.owned_by == "vllm" else None
        return description | {
            "version": version,
            "owned_by": card.owned_by,
            "max_model_len": self._context,
        }

    async def _version(self) -> str | None:
        url = self._url.copy_with(path=self._url.path.removesuffix("/v1") + "/version")
        with contextlib.suppress(httpx.HTTPError, TimeoutError, replies.Nonsense):
            _, _, data = await self._fetch("GET", url, None, 10.0)
            version = replies.parse(data).get("version")
            return replies.name(version) if isinstance(version, str) else None
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
            return "completions", body | {"prompt": clean(text)}
        messages = cleaned(request.messages)
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
                    reply = await self._completions(path, seeded | several, wanted)
                except _Refused as refusal:
                    if wanted == 1 or refusal.too_long:
                        raise
                    reply = await self._completions(path, seeded, 1)
                    self._one_by_one(f"refuses several completions per request ({refusal})")
                    wanted = 1
                if len(reply.completions) < wanted:
                    self._one_by_one(f"gave {len(reply.completions)} of {wanted} completions")
                completions += reply.completions
                prompt_tokens = reply.prompt_tokens
        except _Refused as refusal:
            if refusal.too_long:
                return Result(request.key, error=f"the server refused the prompt ({refusal})")
            raise self._refusal(refusal) from None
        except _Empty as error:
            return Result(request.key, error=str(error))
        return Result(request.key, completions, prompt_tokens)

    def _one_by_one(self, why: str) -> None:
        if self._several:
            self._several = False
            self._note(f"the server {why}; from now on one request per completion")

    async def _completions(self, path: str, payload: dict, wanted: int) -> replies.Reply:
        """The completions of one request; what is peculiar about them is counted."""
        answer, limit = await self._ask(path, payload)
        try:
            reply = replies.read(answer, wanted, limit)
        except replies.Nonsense as error:
            raise self._garbage("the request", error, json.dumps(answer)) from None
        known = self.description["reported_models"]
        model = reply.model and _name(reply.model)
        if model and model not in known and len(known) < _MAX_MODELS:
            known.append(model)
        remarks = self.description["remarks"]
        for what, times in reply.remarks.items():
            if what not in remarks:
                self._note(f"the server's replies: {what}; from now on counted only")
            remarks[what] = remarks.get(what, 0) + times
        return reply

    async def _ask(self, path: str, payload: dict) -> tuple[dict, int]:
        """One answer, in the dialect the server turns out to speak, and how many tokens it might have."""
        if self._context and payload["max_tokens"] >= self._context:  # would be refused for any prompt
            payload = payload | {"max_tokens": await self._room(path, payload)}
        cuts = 0
        while True:
            limit = payload["max_tokens"]
            sent = {name: value for name, value in payload.items() if name not in {*self._left_away, "max_tokens"}}
            sent[self._limit_field] = limit
            try:
                most = REPLY_BYTES + TOKEN_BYTES * limit * payload.get("n", 1)
                return await self._request("POST", path, sent, most=most), limit
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
                    room, cuts = await self._room(path, payload, refusal), cuts + 1
                    if room >= limit or cuts > _MAX_CUTS:
                        raise self._refusal(refusal) from None
                    payload = payload | {"max_tokens": room}
                else:
                    raise

    async def _room(self, path: str, payload: dict, refusal: _Refused | None = None) -> int:
        """Tokens of the context that the prompt leaves, from the prompt's count when one token is asked for."""
        single = {name: value for name, value in payload.items() if name not in ("n", "return_token_ids")}
        answer, _ = await self._ask(path, single | {"max_tokens": 1})
        used = replies.prompt_tokens(answer)
        if not self._context or used is None:
            raise UserError(
                f"the server does not take {payload['max_tokens']} new tokens for this prompt"
                f"{f', {refusal}' if refusal else ''}, and does not tell what would fit. Give the context by "
                "--max-model-len, or fewer tokens by --max-new-tokens."
            )
        return max(self._context - used, 1)

    async def _request(
        self, method: str, path: str, payload: dict | None = None, at_start: bool = False, most: int = REPLY_BYTES
    ) -> dict:
        """One answer as JSON, after as many tries as it takes.

        Raises:
            _Refused: 4xx, also one that came with status 200.
            _Empty: all tries gave a whole reply without a completion.
            EngineError: all tries failed, or the answer is no JSON object, or larger than ``most`` bytes.
            UserError: nobody listens, when ``at_start``.
        """
        url = self._url.copy_with(path=f"{self._url.path}/{path}")
        problem, is_empty = "", False
        for attempt in range(ATTEMPTS):
            pause, is_empty = 0.0, False
            try:
                seconds = LIST_SECONDS if at_start else REPLY_SECONDS
                status, headers, data = await self._fetch(method, url, payload, seconds, most)
            except TimeoutError:
                problem = f"no whole reply within {seconds:.0f} s"
            except httpx.TransportError as error:
                problem = self._excerpt(f"{type(error).__name__} {error}")
                if at_start and isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                    address = hide_secrets(str(url))
                    raise UserError(
                        f"no server answers at {address} ({problem}). Start it, or mend --base-url."
                    ) from None
            except (httpx.RequestError, replies.Nonsense) as error:
                raise self._garbage(path, error) from None
            else:
                if status == 200:
                    try:
                        answer = replies.parse(data)
                        replies.check_error(answer)
                    except replies.Nonsense as error:
                        raise self._garbage(path, error, _text(data)) from None
                    except replies.ReportedError as error:
                        status, told = error.status or 500, self._excerpt(str(error))
                        problem = f"status 200 with an error, {f'{error.status}: ' if error.status else ''}{told}"
                    else:
                        is_empty = method == "POST" and "choices" in answer and not answer["choices"]
                        if not is_empty and not replies.is_broken_off(answer):
                            return answer
                        problem = "a reply without a completion" if is_empty else "a completion that was broken off"
                else:
                    told = self._excerpt(_text(data))
                    problem = f"{status}: {told}"
                if status not in (200, 408, 429) and status < 500:
                    raise _Refused(status, told)
                pause = _retry_after(headers)
            if pause > MAX_RETRY_AFTER_SECONDS:
                raise EngineError(f"the server wants a pause of {pause:.0f} s ({problem})")
            if attempt + 1 < ATTEMPTS:
                pause = max(pause, BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1))
                self._note(f"try {attempt + 1} of {ATTEMPTS}: {problem}; again in {pause:.1f} s")
                await asyncio.sleep(pause)
        if is_empty:
            raise _Empty(f"the server gave no completion in {ATTEMPTS} tries (an empty list of choices)")
        raise EngineError(f"the server did not answer in {ATTEMPTS} tries; the last: {problem}")

    async def _fetch(
        self, method: str, url: httpx.URL, payload: dict | None, seconds: float, most: int = REPLY_BYTES
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one reply; of another status than 200 the beginning of the body.

        Raises:
            TimeoutError: it has not come to its end in ``seconds``.
            Nonsense: it has more than ``most`` bytes, or an encoding that was not asked for.
            httpx.RequestError: the line broke, or carried something else than HTTP.
        """
        async with asyncio.timeout(seconds), self._client.stream(method, url, json=payload) as response:
            is_good = response.status_code == 200
            coding = response.headers.get("content-encoding", "")
            try:
                data, whole = await replies.read_body(response.aiter_raw(), coding, most if is_good else _EXCERPT_BYTES)
            except replies.Nonsense as error:
                if is_good:
                    raise
                data, whole = str(error).encode(), False  # the status says enough
        if is_good and not whole:
            raise replies.Nonsense(f"more than {most >> 20} MiB")
        return response.status_code, response.headers, data

    def _garbage(self, what: str, why: Exception, text: str | None = None) -> EngineError:
        began = "" if text is None else f" It began: {self._excerpt(text)!r}"
        return EngineError(
            f"the server's answer to {what} is not what OpenAI's protocol has ({self._excerpt(str(why))}); is "
            f"--base-url the right one?{began}"
        )

    def _refusal(self, refusal: _Refused) -> UserError:
        advice = {
            401: "Name the variable that holds the key by --api-key-env.",
            403: "The key (--api-key-env) may not do this.",
            404: "Check --base-url and --model.",
        }.get(refusal.status, "Change what it names, here or on the server. Finished records stay.")
        return UserError(f"the server refuses the request, {refusal}. {advice}")

    @staticmethod
    def _excerpt(text: str) -> str:
        """The beginning of what a server said, for messages."""
        return for_message(hide_secrets(text))

    def _note(self, text: str) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(hide(f"{datetime.now(UTC).isoformat(timespec='seconds')} {clean(text)}\n"))

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
    if re.search(r"[@?#]", base_url):  # before anything is shown of it: a password may stand there in any spelling
        raise UserError("--base-url holds credentials or a query; give the key by --api-key-env NAME.")
    try:
        url = httpx.URL(base_url)
        port = url.port
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"--base-url is no URL ({error}); expected e.g. http://localhost:8000/v1.") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (80 if port is None else port) < 1 << 16:
        raise UserError(
            f"--base-url {for_message(base_url)}: expected http:// or https://, e.g. http://localhost:8000/v1."
        )
    return url.copy_with(path=url.path.rstrip("/") or "/v1")


def _key(variable: str | None) -> str | None:
    """The key, which is hidden from now on wherever it comes back."""
    if variable is None:
        return None
    if variable not in os.environ:  # not named: somebody may have given the key itself
        raise UserError(
            "--api-key-env: there is no environment variable of that name. Give the name of the variable that holds "
            "the key, not the key."
        )
    key = os.environ[variable].strip()
    if not key:
        raise UserError(f"--api-key-env {variable}: the variable is empty.")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"--api-key-env {variable}: its value holds characters that no key has.")
    remember(key)
    return key


def _name(model: str) -> str:
    """A served name for records: of a path, the last part."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model


def _few(cards: list[replies.Card]) -> list[str]:
    """Names for the message to whoever asked for another."""
    return [replies.name(card.id) for card in cards[:_SHOWN_MODELS]]


def _text(data: bytes) -> str:
    return data[:_EXCERPT_BYTES].decode("utf-8", "replace")


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds the server asks to wait, from a number or a date; 0 where it does not."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
        return seconds if seconds > 0 else 0.0  # a NaN is neither
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
