"""Every kind of reply a server may give has one outcome: the table of docs/benchmarks.md, kind by kind, on loopback."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import gzip
import itertools
import json
import re
import time
import zlib
from pathlib import Path

import httpx
import pytest
from scripted_server import KEY, Scripted, ask, completion, refuse, request, server, short_waits, sums  # noqa: F401

from eval_harness import private, records
from eval_harness.__main__ import main
from eval_harness.engines import EngineError, replies
from eval_harness.engines import openai as engine_module
from eval_harness.errors import UserError
from eval_harness.records import Item, Sample
from eval_harness.runner import Overrides, evaluate, verify
from gpg_repro import gallery, viewer
from gpg_repro.site import pages

ROOT = Path(__file__).parents[1]
PART = {"type": "text", "text": "is 4"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
WITHOUT = {"usage": {"prompt_tokens": 7}}


def choice(message: dict | None = None, **changes) -> dict:
    """A reply of one choice."""
    found = {"index": 0, "finish_reason": "stop", "message": message or {"content": "4"}, **changes}
    return {"choices": [found], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


# --- What a completion is ---------------------------------------------------------------------------------------------

USED = {
    # name: reply, text, finish reason, remark
    "parts": (choice({"content": [{"type": "text", "text": "It "}, PART]}), "It is 4", "stop", None),
    "parts of plain text": (choice({"content": ["It ", "is 4"]}), "It is 4", "stop", None),
    "parts beside a picture": (
        choice({"content": [{"type": "image_url", "image_url": {"url": "x"}}, PART]}),
        "is 4", "stop", "parts that are no text, left out",
    ),
    "no parts": (choice({"content": []}), "", "stop", "empty completion"),
    "thinking part (Mistral)": (
        choice({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2 + 2"}]}, PART]}),
        "is 4", "stop", "reasoning beside the content, left out",
    ),
    "reasoning beside content": (
        choice({"content": "4", "reasoning_content": "2 + 2, so 5?"}),
        "4", "stop", "reasoning beside the content, left out",
    ),
    "null content beside reasoning_content (DeepSeek, SGLang)": (
        choice({"content": None, "reasoning_content": "It is 4"}),
        "It is 4", "stop", "reasoning without content, used as the text",
    ),
    "empty content beside reasoning (OpenRouter, vLLM)": (
        choice({"content": " ", "reasoning": "It is 4"}),
        "It is 4", "stop", "reasoning without content, used as the text",
    ),
    "reasoning cut at the limit": (
        choice({"content": None, "reasoning": "It is 4, or"}, finish_reason="length"),
        "<think>\nIt is 4, or", "length", "reasoning without content, used as the text",
    ),
    "null content": (choice({"content": None}), "", "stop", "empty completion"),
    "no content (Gemini)": (choice({"role": "assistant"}, finish_reason="length"), "", "length", None),
    "refusal": (choice({"content": None, "refusal": "I cannot help."}), "I cannot help.", "refusal", "refusal"),
    "refusal part": (
        choice({"content": [{"type": "refusal", "refusal": "I cannot help."}]}), "I cannot help.", "refusal", "refusal",
    ),
    "content filter": (
        choice({"content": ""}, finish_reason="content_filter"), "", "content_filter", "content_filter",
    ),
    "content filter in the middle": (
        choice({"content": "It is"}, finish_reason="content_filter"), "It is", "content_filter", "content_filter",
    ),
    "tool calls": (
        choice({"content": None, "tool_calls": [CALL]}, finish_reason="tool_calls"), "", "tool_calls", "tool_calls",
    ),
    "function call": (choice({"content": None, "function_call": CALL["function"]}), "", "tool_calls", "tool_calls"),
    "TGI's words": (choice(finish_reason="eos_token"), "4", "stop", None),
    "Mistral's words": (choice(finish_reason="model_length"), "4", "length", None),
    "another word": (choice(finish_reason="Repetition\x1b[31m"), "4", "Repetition\\x1b[31m", "unknown finish reason"),
    "no finish reason": (choice(finish_reason=None), "4", None, "no finish reason"),
    "no finish reason at the limit": (
        {**choice(finish_reason=None), "usage": {"completion_tokens": 16}}, "4", "length", None,
    ),
    "a finish reason that is a number": (choice(finish_reason=7), "4", None, "no finish reason"),
    "too many choices": (
        {"choices": [{"index": i, "finish_reason": "stop", "message": {"content": str(i)}} for i in (2, 0, 1)]},
        "0", "stop", None,
    ),
    "an index that is no number": (choice(index="zero"), "4", "stop", None),
}  # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_a_reply_that_is_used(name, server, ask, tmp_path):
    reply, text, end, remark = USED[name]
    server.answer = lambda body: (200, reply, {})
    results, description = ask(request())
    (found,) = results["a"].completions
    assert (found.text, found.finish_reason) == (text, end)
    assert len(server.asked) == 1
    assert list(description["remarks"].items()) == ([] if remark is None else [(remark, 1)])
    assert remark is None or remark in (tmp_path / "log").read_text(encoding="utf-8")


SEVERAL = {
    # indices of the choices as they come -> texts as they are kept of three that were asked for
    "in another order": ((2, 0, 1), ["1", "2", "0"], False),
    "counted from one": ((1, 3, 2), ["0", "2", "1"], False),
    "twice the same": ((0, 0, 1), ["0", "1", "2"], True),
    "none": ((None, None, None), ["0", "1", "2"], True),
    "texts": (("2", "1", "0"), ["0", "1", "2"], True),
    "below zero": ((-1, 1, 0), ["0", "1", "2"], True),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_choices_are_in_the_order_of_their_indices_where_each_has_one(name, server, ask):
    """Texts are numbered as they came."""
    places, expected, remarked = SEVERAL[name]
    choices = [{"index": p, "finish_reason": "stop", "message": {"content": str(i)}} for i, p in enumerate(places)]
    server.answer = lambda body: (200, {"choices": choices}, {})
    results, description = ask(request(samples=3))
    assert [completed.text for completed in results["a"].completions] == expected
    assert description["remarks"].get("choices without an index of their own", 0) == 3 * remarked


def test_more_choices_than_asked_are_left_and_fewer_are_asked_for(server, ask):
    server.answer = lambda body: completion(body, (sums(body) * 4)[: 2 if body.get("n", 1) == 3 else 4])
    results, _ = ask(request(samples=3))
    assert [body.get("n", 1) for body in server.bodies()] == [3, 1]
    # seeds 5 and 6 of the first request's two, 7 asked for alone; of four given then the first counts
    assert [c.text for c in results["a"].completions] == ["\\boxed{5}", "\\boxed{6}", "\\boxed{7}"]
    assert results["a"].completions[2].num_tokens is None  # the usage is of four


# --- What is asked for again ------------------------------------------------------------------------------------------

AGAIN = {
    "an error": ((200, {"error": {"message": "overloaded", "code": 502}}, {}), "502: overloaded"),
    "an error in words": ((200, {"error": "overloaded"}, {}), "overloaded"),
    "an error with a code in words": ((200, {"error": {"message": "slow", "code": "rate_limit"}}, {}), "slow"),
    "an error of another shape (SGLang)": ((200, {"object": "error", "message": "full", "code": 503}, {}), "503: full"),
    "an error and choices": ((200, {**choice(), "error": {"message": "half"}}, {}), "half"),
    "an error of a choice (OpenRouter)": ((200, choice(error={"code": 524, "message": "late"}), {}), "524: late"),
    "a completion given up": ((200, choice(finish_reason="error"), {}), "broken off"),
    "429": (refuse(429, "slow down"), "429"),
    "500 with a page": ((500, "<html>" + "x" * 100_000, {}), "500: <html>xxx"),
    "502 in an encoding of its own": ((502, b"x", {"Content-Encoding": "br"}), "502: content encoding 'br'"),
    "503 in damaged gzip": ((503, b"no gzip", {"Content-Encoding": "gzip"}), "503: compressed data that are damaged"),
    "408": (refuse(408, "late"), "408"),
    "a line that breaks before the end": ((200, '{"choices": [', {"Content_Length": "500"}), "RemoteProtocolError"),
    "no choices": ((200, {"choices": []}, {}), "without a completion"),
    "null choices": ((200, {"choices": None, **WITHOUT}, {}), "without a completion"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_reply_that_is_asked_for_again(name, server, ask, tmp_path):
    reply, said = AGAIN[name]
    troubles = iter([reply, reply])
    server.answer = lambda body: next(troubles, completion(body, ["4"]))
    results, _ = ask(request())
    assert results["a"].completions[0].text == "4" and len(server.asked) == 3
    assert (tmp_path / "log").read_text(encoding="utf-8").count(said) == 2


def test_an_error_that_stays_ends_the_run(server, ask):
    server.answer = lambda body: (200, {"error": {"message": "overloaded"}}, {})
    with pytest.raises(EngineError, match="7 tries; the last: status 200 with an error, overloaded"):
        ask(request())
    assert len(server.asked) == 7


@pytest.mark.parametrize("code", [400, "401"])
def test_a_refusal_with_status_200_is_a_refusal(code, server, ask):
    server.answer = lambda body: (200, {"error": {"message": "not so", "code": code}}, {})
    with pytest.raises(UserError, match=f"refuses the request, {code}: not so"):
        ask(request())
    assert len(server.asked) == 1


def test_a_prompt_that_is_never_answered_is_a_failed_item(server, ask):
    """A filter that takes the prompt would otherwise end every try of the run."""
    blocked = "bad words"
    server.answer = lambda body: (
        (200, {"choices": []}, {}) if body["messages"][0]["content"] == blocked else completion(body, ["4"])
    )
    results, _ = ask(request("a", blocked), request("b"))
    assert results["b"].completions[0].text == "4" and not results["a"].completions
    assert results["a"].error == "the server gave no completion in 7 tries (an empty list of choices)"
    assert len(server.asked) == 7 + 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), ("0.5", 0.5), ("-3", 0), ("nan", 0), ("soon", 0), ("Thu, 01 Jan 2015 00:00:00 GMT", 0),
     ("Thu, 01 Jan 99999999999 00:00:00 GMT", 0), ("Thu, 01 Jan 2015 00:00:00 -0000", 0), ("inf", float("inf"))],
)  # fmt: skip
def test_a_pause_that_is_asked_for(value, seconds):
    assert engine_module._retry_after(httpx.Headers({"Retry-After": value})) == seconds


# --- What is nonsense -------------------------------------------------------------------------------------------------

DEEP = "[" * 5000 + "]" * 5000
SHALLOWER = "[" * 100 + "]" * 100
NONSENSE = {
    "a page": ((200, "<html>welcome</html>", {}), "no JSON"),
    "nothing": ((200, "", {}), "no JSON"),
    "no object": ((200, '"4"', {}), "no JSON object"),
    "choices that are none": ((200, {"choices": {"0": "4"}}, {}), "no list of choices"),
    "choices of text": ((200, {"choices": ["4"]}, {}), "no list of choices"),
    "a message of text": ((200, choice() | {"choices": [{"message": "4"}]}, {}), "a message that is no object"),
    "a content that is a number": ((200, choice({"content": 4}), {}), "neither text nor parts"),
    "parts of nothing but pictures": ((200, choice({"content": [{"type": "image"}]}), {}), "none of them text"),
    "a text that is a list": ((200, {"choices": [{"text": ["4"]}]}, {}), "without a message or text"),
    "an empty message": ((200, {"choices": [{"message": {}}]}, {}), "a message without content"),
    "JSON that is deep": ((200, f'{{"choices": {DEEP}}}', {}), "nested too deeply"),
    "JSON that is less deep": ((200, f'{{"choices": {SHALLOWER}}}', {}), "nested too deeply"),
    "a number without end": ((200, f'{{"choices": {"9" * 5000}}}', {}), "no JSON"),
    "UTF-16": ((200, json.dumps(choice()).encode("utf-16"), {}), "no JSON"),
    "an encoding not asked for": ((200, b"x", {"Content-Encoding": "br"}), "content encoding 'br'"),
    "damaged gzip": ((200, b"no gzip", {"Content-Encoding": "gzip"}), "damaged"),
    "gzip cut off": ((200, gzip.compress(b"{}" * 99)[:-9], {"Content-Encoding": "gzip"}), "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_one_line_and_not_asked_for_again(name, server, ask):
    reply, said = NONSENSE[name]
    server.answer = lambda body: reply
    with pytest.raises(EngineError, match="is not what OpenAI's protocol has") as caught:
        ask(request())
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert len(server.asked) == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_replies_are_read(coding, server, ask):
    pack = gzip.compress if coding == "gzip" else zlib.compress
    server.answer = lambda body: (200, pack(json.dumps(choice()).encode()), {"Content-Encoding": coding})
    assert ask(request())[0]["a"].completions[0].text == "4"


def test_a_reply_may_begin_with_blanks_and_a_mark(server, ask):
    """DeepSeek and OpenRouter send blank lines while a model works."""
    server.answer = lambda body: (200, iter([b"\n"] * 9 + [json.dumps(choice()).encode()]), {})
    assert ask(request())[0]["a"].completions[0].text == "4"
    server.answer = lambda body: (200, b"\xef\xbb\xbf" + json.dumps(choice()).encode(), {})
    assert ask(request())[0]["a"].completions[0].text == "4"


# --- Bounds -----------------------------------------------------------------------------------------------------------


def bomb(size: int) -> bytes:
    """So many zeros as gzip, which takes a thousandth of them."""
    pack = zlib.compressobj(9, wbits=31)
    return b"".join([*(pack.compress(b"0" * (1 << 20)) for _ in range(size >> 20)), pack.flush()])


def empty_blocks(size: int) -> bytes:
    """Gzip of nothing, in so many bytes."""
    pack = zlib.compressobj(9, wbits=31)
    block = (pack.compress(b"") + pack.flush(zlib.Z_FULL_FLUSH))[-5:]
    return gzip.compress(b"")[:10] + block * (size // len(block))


LARGE = {
    "plain": lambda: ((200, b" " * (3 << 20), {})),
    "without a length": lambda: (200, iter([b" " * (1 << 16)] * 48), {}),
    "a bomb": lambda: (200, bomb(64 << 20), {"Content-Encoding": "gzip"}),
    "much that unpacks to nothing": lambda: (200, empty_blocks(3 << 20), {"Content-Encoding": "gzip"}),
}


@pytest.fixture
def unpacked(monkeypatch) -> list[int]:
    """Bytes of every piece that zlib unpacks."""
    sizes, real = [], zlib.decompressobj

    class Counted:
        def __init__(self, bits: int):
            self._real = real(bits)
            self.eof = False

        def decompress(self, data: bytes, most: int) -> bytes:
            found = self._real.decompress(data, most)
            sizes.append(len(found))
            return found

    monkeypatch.setattr(replies.zlib, "decompressobj", Counted)
    return sizes


@pytest.mark.parametrize("name", LARGE)
def test_a_reply_has_a_largest_size(name, server, ask, monkeypatch, unpacked):
    """2 MiB here; what is unpacked is counted, and what is received."""
    monkeypatch.setattr(engine_module, "REPLY_BYTES", 2 << 20)
    server.answer = lambda body: LARGE[name]()
    with pytest.raises(EngineError, match=r"more than 2 MiB"):
        ask(request())
    assert len(server.asked) == 1 and sum(unpacked) <= (2 << 20) + 64 * 16 + 1
    assert bool(sum(unpacked)) is (name == "a bomb")


def test_an_error_page_has_one_too(server, ask, tmp_path, unpacked):
    """64 KiB are read of each; what lies in the buffers between may be some megabytes."""
    sent = itertools.count()
    long = (next(sent) and b"x" * (1 << 16) or b"x" for _ in range(900))
    pages = iter([(500, bomb(64 << 20), {"Content-Encoding": "gzip"}), (500, long, {})])
    server.answer = lambda body: next(pages, completion(body, ["4"]))
    assert ask(request())[0]["a"].completions[0].text == "4"
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "500: 00000" in log and "500: xxxxx" in log and len(log) < 2000
    assert sum(unpacked) == (1 << 16) + 1 and next(sent) < 450


def test_more_tokens_may_take_more_bytes(server, ask, monkeypatch):
    """64 bytes for each: two samples of 4,096 may have 512 KiB beside the 1 KiB here, 16 tokens 1 KiB beside it."""
    monkeypatch.setattr(engine_module, "REPLY_BYTES", 1 << 10)
    text = "x" * 100_000
    server.models = (200, {"data": [{"id": "served"}]}, {})
    server.answer = lambda body: completion(body, [text] * body.get("n", 1))
    results, _ = ask(request(max_new_tokens=4096, samples=2))
    assert [len(completed.text) for completed in results["a"].completions] == [100_000] * 2
    with pytest.raises(EngineError, match="more than 0 MiB"):
        ask(request(max_new_tokens=16))


class Drip:
    """A piece every 20 ms, for ever."""

    def __init__(self, piece: bytes):
        self._piece = piece

    def __iter__(self):
        while True:
            time.sleep(0.02)
            yield self._piece


@pytest.mark.parametrize("piece", [b" ", b"\n", b'{"choices": ['])
def test_a_reply_that_drips_ends(piece, server, ask, monkeypatch):
    monkeypatch.setattr(engine_module, "REPLY_SECONDS", 0.15)
    answers = iter([(200, Drip(piece), {})])
    server.answer = lambda body: next(answers, completion(body, ["4"]))
    started = time.monotonic()
    assert ask(request())[0]["a"].completions[0].text == "4"
    assert time.monotonic() - started < 5 and len(server.asked) == 2


def test_a_list_of_models_that_drips_ends(server, ask, monkeypatch):
    monkeypatch.setattr(engine_module, "LIST_SECONDS", 0.1)
    monkeypatch.setattr(engine_module, "ATTEMPTS", 2)
    server.models = (200, Drip(b" "), {})
    with pytest.raises(EngineError, match="2 tries; the last: no whole reply within 0 s"):
        ask(request())


# --- What a server says of itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [-1, 0, 1, "512", 512.0, True, [512], 10**30, "x" * 10_000])
def test_a_context_that_is_none_is_one_line_of_error(context, server, ask):
    server.models = (200, {"data": [{"id": "served", "max_model_len": context}]}, {})
    with pytest.raises(EngineError, match=r"a context \(max_model_len\) of ") as caught:
        ask(request())
    assert len(str(caught.value)) < 900 and not server.asked


def test_the_context_of_another_model_is_not_looked_at(server, ask):
    server.models = (200, {"data": [{"id": "other", "max_model_len": -1}, {"id": "served", "max_model_len": 2}]}, {})
    results, description = ask(request(max_new_tokens=1))
    assert description["max_model_len"] == 2 and len(server.asked) == 1 and results["a"].completions


@pytest.mark.parametrize("count", [-1, "3", 3.0, True, [3], 10**30, float("nan"), {"total": 3}])
def test_a_usage_that_is_no_count_is_not_recorded(count, server, ask):
    server.answer = lambda body: completion(
        body, ["4"], usage={"prompt_tokens": count, "completion_tokens": count}
    )  # fmt: skip
    results, description = ask(request())
    assert (results["a"].num_prompt_tokens, results["a"].completions[0].num_tokens) == (None, None)
    assert description["remarks"] == {"usage that is no count": 2}


@pytest.mark.parametrize("usage", [[], "much", 3, None])
def test_a_usage_of_another_shape_is_none(usage, server, ask):
    server.answer = lambda body: completion(body, ["4"], usage=usage)
    results, _ = ask(request())
    assert (results["a"].num_prompt_tokens, results["a"].completions[0].num_tokens) == (None, None)


def test_a_server_that_refuses_every_length_is_not_asked_for_ever(server, ask):
    """Its prompt grows by one token with every answer, so there always seems to be room for one less."""
    used = itertools.count(7)
    server.answer = lambda body: (
        completion(body, ["4"], usage={"prompt_tokens": next(used)})
        if body["max_tokens"] == 1
        else refuse(400, "maximum context length exceeded")
    )
    with pytest.raises(UserError, match="maximum context length exceeded"):
        ask(request(max_new_tokens=600))
    assert len(server.asked) == 1 + 5 * 2  # its room, then five refusals and the room after each


def test_names_a_server_gives_are_short_and_few(server, ask):
    server.models = (200, {"data": [
        {"id": "served", "owned_by": "vllm", "max_model_len": 512},
        *({"id": f"{i:04} " * 60} for i in range(3000)),
    ]}, {})  # fmt: skip
    server.version = (200, {"version": "0.31\n\x1b[2J" + "9" * 3000}, {})
    names = itertools.count()
    server.answer = lambda body: completion(body, ["4"], model=f"m{next(names)} " + "x" * 3000)
    _, description = ask(*(request(str(i)) for i in range(30)))
    assert len(description["reported_models"]) == 20 and max(map(len, description["reported_models"])) == 200
    assert description["version"].startswith("0.31 \\x1b[2J999") and len(description["version"]) == 200
    del server.models[1]["data"][0]
    with pytest.raises(UserError, match="unknown model") as caught:
        ask(request())
    assert len(str(caught.value)) < 15_000


# --- Texts that no file can hold --------------------------------------------------------------------------------------

ODD = ["\ud800", "a\udfffb", "\0", "\udcff\ud800 and \0"]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_a_run_stays_readable_whatever_a_server_writes(odd, server, tmp_path, short_waits, monkeypatch):
    """In every field there is: resumed, verified, its items and samples as they were."""
    server.models = (200, {"data": [{"id": "served", "owned_by": odd, "max_model_len": 512}]}, {})

    def answer(body):
        reply = choice({"content": f"\\boxed{{4}}{odd}", "role": odd}, finish_reason=f"{odd}", odd=odd)
        return 200, reply | {"model": f"m{odd}", "usage": {"prompt_tokens": 3, odd: odd}}, {}

    server.answer = answer
    options = dict(engine="openai", base_url=server.url, out=tmp_path / "run", limit=4, progress=False)
    out = evaluate("served", ["tiny_sums"], **options)
    run = records.read_run(out)
    assert run.status == "finished" and run.benchmarks["tiny_sums"].scored == 4
    assert "\ufffd" in run.engine["reported_models"][0] and "\ufffd" in run.engine["owned_by"]
    assert all(row["reproduced"] for row in verify(out).values())
    samples = records.read_lines(out / "samples" / "tiny_sums.jsonl", Sample)
    assert {s.completion for s in samples} == {"\\boxed{4}" + re.sub("[\0\ud800-\udfff]", "\ufffd", odd)}
    asked = len(server.asked)
    assert evaluate("served", ["tiny_sums"], **options) == out and len(server.asked) == asked


def test_arguments_that_no_file_can_hold_are_one_line_of_error(server, tmp_path, capsys):
    common = ["run", "--benchmarks", "tiny_sums", "--engine", "openai", "--base-url", server.url, "--limit", "1"]
    out = ["--out", str(tmp_path / "run")]
    for changed, name in (
        (["--model", "ser\udcffved", *out], "model"),
        (["--model", "served", "--out", str(tmp_path / "r\udc80n")], "out"),
        (["--model", "served", *out, "--system-prompt", "be \ud800 kind"], "system-prompt"),
        (["--model", "served", *out, "--revision", "a\0b"], "revision"),
        (["--model", "served\nmore", *out], "--model"),
        (["--model", "served\x1b[31m", *out], "--model"),
        (["--model", "served", "--out", str(tmp_path / "\u202e")], "--out"),
    ):
        assert main([*common, *changed]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {name} holds ") and said.count("\n") == 1 and said.isascii(), said
    assert not list(tmp_path.iterdir()) and not server.asked


def test_a_name_that_is_too_long_for_a_folder_is_one_line_of_error(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "m" * 300
    server.models = (200, {"data": [{"id": name}]}, {})
    common = ["run", "--benchmarks", "tiny_sums", "--engine", "openai", "--base-url", server.url, "--limit", "1"]
    assert main([*common, "--model", name]) == 2
    said = capsys.readouterr().err
    assert "the name is too long" in said and said.count("\n") == 1
    assert main([*common, "--model", name, "--out", "short"]) == 0


def test_a_question_that_no_file_can_hold_is_asked_and_recorded(server, tmp_path, own_data_root, short_waits):
    """In a local copy, as JSON can write it: half a pair, a NUL, and a pair that is whole."""
    rows = [json.loads(line) for line in (own_data_root / "aime_2024.jsonl").read_text(encoding="utf-8").splitlines()]
    (question,) = [key for key in rows[0] if key in ("problem", "question")]
    for row, odd in zip(rows, ("\ud800", "\0", "\U0001f600", "\udc00\ud800"), strict=False):
        row[question] += odd
    (tmp_path / "data").mkdir()
    lines = [json.dumps(row) + "\n" for row in rows]
    assert "\\ud800" in lines[0]
    (tmp_path / "data" / "aime_2024.jsonl").write_text("".join(lines), encoding="ascii")
    out = evaluate(
        "served", ["aime24"], engine="openai", base_url=server.url, data_root=tmp_path / "data", out=tmp_path / "run",
        limit=4, overrides=Overrides(max_new_tokens=8, temperature=0.0, samples=1), progress=False,
    )  # fmt: skip
    ends = [item.prompt for item in records.read_lines(out / "items" / "aime24.jsonl", Item)]
    asked = {body["messages"][-1]["content"] for body in server.bodies()}
    assert set(ends) == asked and [text.count("\ufffd") for text in ends] == [1, 1, 0, 2] and "\U0001f600" in ends[2]


# --- Secrets ----------------------------------------------------------------------------------------------------------

CANARY = 'canary "7Q/9+z\\ 55'
"""No one would know it for a key: no prefix, a name of its variable that says nothing, and signs that JSON escapes."""


def _found(folder: Path, key: str) -> list[str]:
    """Files that hold a key, as it is or as JSON, a URL or base64 writes it; their names too."""
    private_forms = {form.encode() for form in private._keys} | {key.encode()}
    told = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes() + str(path.relative_to(folder)).encode()
        told += [path.name for form in private_forms if form in content]
    return told


def test_a_key_that_a_server_sends_back_is_in_no_byte(server, tmp_path, short_waits, monkeypatch, capsys):
    import base64
    from urllib.parse import quote

    monkeypatch.setattr(private, "_keys", set())
    monkeypatch.setenv("CALLME", CANARY)
    echo = f"{CANARY} {quote(CANARY, safe='')} {base64.b64encode(CANARY.encode()).decode()}"
    server.models = (200, {"data": [{"id": "served", "owned_by": "vllm", "max_model_len": 512}]}, {})
    server.models[1]["data"] += [{"id": echo, "owned_by": echo}]
    server.version = (200, {"version": echo}, {})
    troubles = iter([refuse(503, echo), (200, {"error": echo}, {}), (200, {"error": {"message": echo}}, {})])

    def answer(body):
        told = completion(body, [f"{echo} \\boxed{{4}}"], model=echo)
        told[1]["choices"][0]["finish_reason"] = echo
        return next(troubles, told)

    server.answer = answer
    common = ["run", "--benchmarks", "tiny_sums", "--engine", "openai", "--base-url", server.url, "--limit", "3"]
    common += ["--concurrency", "1", "--api-key-env", "CALLME"]
    assert main([*common, "--model", "served", "--out", str(tmp_path / "good")]) == 0
    assert server.keys[-1] == f"Bearer {CANARY}"
    run = records.read_run(tmp_path / "good")
    assert run.engine["reported_models"] == ["*** *** ***"] and run.engine["version"] == "*** *** ***"
    (sample, *_) = records.read_lines(tmp_path / "good" / "samples" / "tiny_sums.jsonl", Sample)
    assert sample.completion.startswith("*** *** ") and sample.finish_reason == "*** *** ***"
    assert (tmp_path / "good" / "engine.log").read_text(encoding="utf-8").count("***") >= 9
    for number, reply in enumerate((refuse(401, echo), (200, echo, {}), refuse(400, f"maximum context {echo}"))):
        server.answer = lambda body, reply=reply: reply
        assert main([*common, "--model", "served", "--out", str(tmp_path / f"bad{number}")]) in (0, 1, 2)
    assert main([*common, "--model", "server", "--out", str(tmp_path / "unlisted")]) == 2
    assert main(["compare", str(tmp_path / "good"), str(tmp_path / "good"), "--out", str(tmp_path / "report")]) == 0
    good = tmp_path / "good"
    for name in ("site", "pages"):
        (tmp_path / name).mkdir()
    parts = pages.Parts()
    pages.write_runs([pages.Record(good, records.read_run(good), "here")], tmp_path / "site", "tiny", parts)
    (tmp_path / "site" / "parts.html").write_text("\n".join(parts.markup.values()), encoding="utf-8")
    viewer.write_page(viewer.side_by_side(good, good), tmp_path / "pages" / "viewer.html")
    gallery.build({"tiny_sums": {"one": good, "other": good}}, title="x").write(tmp_path / "pages" / "gallery.html")
    assert all("***" in (tmp_path / "pages" / name).read_text("utf-8") for name in ("viewer.html", "gallery.html"))
    shown = capsys.readouterr()
    assert "unknown model" in shown.err and "***" in shown.err
    (tmp_path / "shown").write_text(shown.out + shown.err, encoding="utf-8")
    assert _found(tmp_path, CANARY) == []
    assert (tmp_path / "report").exists()


def test_a_placeholder_is_no_key(server, ask, monkeypatch):
    """vLLM's documentation gives EMPTY; hiding it would change answers."""
    monkeypatch.setenv("CALLME", "EMPTY")
    server.answer = lambda body: completion(body, ["an EMPTY set"])
    assert ask(request(), api_key_env="CALLME")[0]["a"].completions[0].text == "an EMPTY set"


@pytest.mark.parametrize(
    "url",
    ["me:hunter2222@localhost:8000", "http://me:hunter2222@localhost:8000", "localhost:8000/v1?key=hunter2222",
     "http://localhost:8000/#hunter2222", "http://me:hunter2222/@localhost", "://me:hunter2222@h", "me:hunter2222@"],
)  # fmt: skip
def test_a_password_in_a_url_is_not_printed(url, tmp_path, capsys):
    command = ["run", "--model", "m", "--benchmarks", "tiny_sums", "--engine", "openai", "--out", str(tmp_path / "x")]
    assert main([*command, "--base-url", url]) == 2
    said = capsys.readouterr().err
    assert "--base-url" in said and "hunter" not in said and said.count("\n") == 1


@pytest.mark.parametrize("url", ["http://localhost:99999999/v1", "http://[::1", "http://localhost:port", "http://:0"])
def test_a_url_that_is_none_is_one_line_of_error(url, tmp_path, capsys):
    command = ["run", "--model", "m", "--benchmarks", "tiny_sums", "--engine", "openai", "--out", str(tmp_path / "x")]
    assert main([*command, "--base-url", url]) == 2
    said = capsys.readouterr().err
    assert "--base-url" in said and said.count("\n") == 1


def test_a_key_given_for_the_name_of_its_variable_is_not_printed(tmp_path, capsys):
    command = ["run", "--model", "m", "--benchmarks", "tiny_sums", "--engine", "openai", "--out", str(tmp_path / "x")]
    assert main([*command, "--base-url", "http://localhost:1", "--api-key-env", "s3cr3tvalue"]) == 2
    said = capsys.readouterr().err
    assert "--api-key-env: there is no environment variable of that name" in said and "s3cr3t" not in said


# --- Counted and said -------------------------------------------------------------------------------------------------


def test_withheld_answers_are_counted_and_said(server, tmp_path, short_waits, capsys):
    """Of eight: two refused, one filtered, one a call of a tool; all are graded, none of them is a failed sample."""
    ends = iter([
        choice({"content": None, "refusal": "No."}), choice({"content": None, "refusal": "No."}),
        choice({"content": ""}, finish_reason="content_filter"), choice({"content": None, "tool_calls": [CALL]}),
    ])  # fmt: skip
    server.answer = lambda body: (200, next(ends, choice()), {})
    command = ["run", "--model", "served", "--benchmarks", "tiny_sums", "--engine", "openai", "--base-url", server.url]
    assert main([*command, "--limit", "8", "--out", str(tmp_path / "run")]) == 0
    result = records.read_run(tmp_path / "run").benchmarks["tiny_sums"]
    assert (result.asked, result.scored, result.failed) == (8, 8, 0)
    assert {name: result.flags[name] for name in ("content_filter", "refusal", "tool_calls")} == {
        "content_filter": 1, "refusal": 2, "tool_calls": 1,
    }  # fmt: skip
    assert "; 1 ended by content_filter, 2 ended by refusal, 1 ended by tool_calls" in capsys.readouterr().out
    assert all(row["reproduced"] for row in verify(tmp_path / "run").values())


def test_every_kind_of_reply_stands_in_the_table():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = page[page.index("### What a reply counts as") :].split("\n## ")[0]
    remarks = {remark for *_, remark in USED.values() if remark} | {"choices without an index of their own"}
    missing = [remark for remark in sorted(remarks | {"usage that is no count"}) if f"`{remark}`" not in table]
    assert missing == []
