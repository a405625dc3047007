"""Engines turn prompts into completions. The rest of the project sees only requests and results.

``vllm`` and ``transformers`` run in a subprocess of their own (:mod:`eval_harness.engines.process`): it is started once
per model, serves every benchmark, and gives its memory back when closed. Only ``engines/vllm.py`` imports vLLM.
``openai`` asks a server that runs already (:mod:`eval_harness.engines.openai`).
"""

from eval_harness.engines.base import Completion, EngineError, EngineSettings, Request, Result, Sampling, resolve_engine
from eval_harness.engines.process import EngineProcess

__all__ = [
    "Completion",
    "EngineError",
    "EngineProcess",
    "EngineSettings",
    "Request",
    "Result",
    "Sampling",
    "resolve_engine",
]
