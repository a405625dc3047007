"""Inside the engine's process: ``python -m eval_harness.engines.worker vllm|transformers``.

Reads JSON lines from standard input, answers on a private copy of standard output (what libraries print goes to the
log). End of input means that the run is over: the process ends, and its guard (:mod:`eval_harness.guard`) ends what it
has started. The guard also sees what this process cannot while it imports or computes: that the run was killed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from dataclasses import asdict
from typing import Any

from eval_harness.engines.base import Backend, EngineSettings, Request, Result, Sampling


def main() -> None:
    """Load the model, then serve requests until the input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def reply(message: dict) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    inbox: queue.SimpleQueue[dict] = queue.SimpleQueue()
    threading.Thread(target=_read_input, args=(inbox,), daemon=True).start()
    settings = EngineSettings(**inbox.get()["settings"])
    try:
        backend = _load(sys.argv[1], settings)
        reply({"ready": backend.describe()})
    except Exception as error:
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {str(error)[:2000]}"})
        return
    while True:
        messages: list[dict[str, Any]] = []
        if not backend.has_unfinished():
            messages.append(inbox.get())
        while not inbox.empty():
            messages.append(inbox.get())
        results: list[Result] = []
        for message in messages:
            for raw in message["requests"]:
                request = Request(**{**raw, "sampling": Sampling(**raw["sampling"])})
                try:
                    backend.add(request)
                except ValueError as error:  # this request can never be served; the others can
                    results.append(Result(request.key, error=str(error)))
        if backend.has_unfinished():
            results += backend.step()
        if results:
            reply({"results": [asdict(result) for result in results]})


def _load(engine: str, settings: EngineSettings) -> Backend:
    if engine == "vllm":
        from eval_harness.engines.vllm import VLLMBackend

        return VLLMBackend(settings)
    from eval_harness.engines.transformers import TransformersBackend

    return TransformersBackend(settings)


def _read_input(inbox: queue.SimpleQueue) -> None:
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    status = 0
    try:
        main()
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # a normal exit would wait for the thread that is blocked on standard input
