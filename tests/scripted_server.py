"""A server on loopback that speaks OpenAI's protocol, and whatever else a test has it answer; with its fixtures."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval_harness.engines import EngineSettings, Request, Sampling
from eval_harness.engines import openai as engine_module
from eval_harness.engines.openai import OpenAIEngine

KEY = "sk-0123456789-secret"
CONTEXT = 512
Answer = tuple[int, dict | str | bytes | Iterable[bytes], dict]
"""Status, content and headers; pieces of bytes are sent one by one, without a length, until they end."""


def completion(body: dict, texts: list[str], **changes) -> Answer:
    """A server's answer with these texts."""
    content = (lambda text: {"text": text}) if "prompt" in body else (lambda text: {"message": {"content": text}})
    choices = [{"index": i, "finish_reason": "stop", **content(text)} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 7, "completion_tokens": 3 * len(texts)}
    return 200, {"model": "served-2026", "choices": choices, "usage": usage, **changes}, {}


def sums(body: dict) -> list[str]:
    """n answers that tell their seed, so that it can be seen which request they come from."""
    return [f"\\boxed{{{body['seed'] + i}}}" for i in range(body.get("n", 1))]


def refuse(status: int, message: str, **headers: str) -> Answer:
    return status, {"error": {"message": message}}, headers


class Scripted:
    """A server whose answers come from ``answer(body)``; an answer of None closes the connection without a word."""

    def __init__(self) -> None:
        self.answer: Callable[[dict], Answer | None] = lambda body: completion(body, sums(body))
        self.models: Answer = (200, {"data": [{"id": "served", "owned_by": "test", "max_model_len": CONTEXT}]}, {})
        self.version: Answer = (404, "", {})
        self.asked: list[tuple[str, dict]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        lock, scripted = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                scripted.keys.append(self.headers.get("Authorization"))
                self.reply(scripted.version if self.path == "/version" else scripted.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    scripted.asked.append((self.path, body))
                    scripted.keys.append(self.headers.get("Authorization"))
                    scripted.at_once += 1
                    scripted.most_at_once = max(scripted.most_at_once, scripted.at_once)
                answer = scripted.answer(body)
                with lock:
                    scripted.at_once -= 1
                if answer is None:
                    self.close_connection = True
                else:
                    self.reply(answer)

            def reply(self, answer: Answer) -> None:
                status, content, headers = answer
                content = json.dumps(content) if isinstance(content, dict) else content
                pieces = [content.encode()] if isinstance(content, str) else content
                pieces = [pieces] if isinstance(pieces, bytes) else pieces
                self.close_connection = not isinstance(pieces, list)
                length = {} if self.close_connection else {"Content-Length": str(len(pieces[0]))}
                self.send_response(status)
                for name, value in {**length, **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for piece in pieces:
                        self.wfile.write(piece)
                if int(headers.get("Content_Length", 0)):  # more was promised
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def bodies(self) -> list[dict]:
        return [body for _, body in self.asked]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(engine_module, "BACKOFF_SECONDS", 0.01)


def request(key: str = "a", text: str = "1+1=?", **changes) -> Request:
    sampling = dict(temperature=0.6, top_p=0.95, top_k=0, max_new_tokens=16, samples=1, seed=5)
    form, images = changes.pop("form", "chat"), changes.pop("images", [])
    return Request(key, [{"role": "user", "content": text}], Sampling(**sampling | changes), images, form)


@pytest.fixture
def ask(server, short_waits, tmp_path):
    """Asks the scripted server; gives results by key and the engine's description."""

    def run(*requests: Request, **settings):
        with OpenAIEngine(EngineSettings("served", base_url=server.url, **settings), tmp_path / "log") as engine:
            return {result.key: result for result in engine.generate(requests)}, engine.description

    return run
