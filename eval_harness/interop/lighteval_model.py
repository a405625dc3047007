"""Our engines as lighteval's custom model: ``lighteval custom MODEL eval_harness/interop/lighteval_model.py TASKS``.

MODEL is what ``eval_harness run --model`` takes. Its other options come from ``EVAL_LIGHTEVAL_OPTIONS``, written as on
that command line (``--engine transformers --temperature 0 --max-new-tokens 512``); what lighteval itself decides
(samples, items, data, output) is refused there. On our tasks (lighteval_tasks.py) prompts, decoding and the seed of
every sample are those of ``eval_harness run``, so the completions are, too. Other generative tasks of lighteval run as
well: greedy unless the options say otherwise, lengths and stop strings as the task has them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from lighteval.models.abstract_model import LightevalModel
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc

from eval_harness.__main__ import _parser
from eval_harness.adapters import check_checkpoint, check_engine
from eval_harness.benchmarks import get_benchmark
from eval_harness.engines import EngineProcess, EngineSettings, Request, Result, Sampling, resolve_engine
from eval_harness.engines.openai import OpenAIEngine, check_settings
from eval_harness.errors import UserError
from eval_harness.models import NO_CODE, check_chat_template
from eval_harness.outside import clean
from eval_harness.records import Decoding
from eval_harness.runner import Overrides, decoding_of, item_seed

OPTIONS = "EVAL_LIGHTEVAL_OPTIONS"
_LOADING = (
    "revision",
    "base_model",
    "dtype",
    "max_model_len",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "distributed_executor_backend",
    "base_url",
    "concurrency",
    "api_key_env",
)
_DECODING = ("seed", "temperature", "top_p", "max_new_tokens", "system_prompt")
_SEED = 1234
_MAX_NEW_TOKENS = 32768

logger = logging.getLogger(__name__)


class HarnessModel(LightevalModel):
    """One engine of the harness behind lighteval's interface.

    Raises:
        UserError: the model cannot be loaded, or an option is unknown here; before lighteval generates anything.
    """

    def __init__(self, config: CustomModelConfig):
        if config.generation_parameters != GenerationParameters() or config.system_prompt is not None:
            raise UserError(
                "generation_parameters and system_prompt of CustomModelConfig are not read here; put them into "
                f"{OPTIONS} as options of `eval_harness run`."
            )
        self.config, self._cache, self._tokenizer = config, _NoCache(), None
        options = read_options(config.model_name)
        self.overrides = Overrides(**{name: getattr(options, name) for name in _DECODING})
        self.overrides.check()
        self.engine = resolve_engine(options.engine)
        loading = {name: getattr(options, name) for name in _LOADING}
        loading = {name: value for name, value in loading.items() if value is not None}
        self.settings = EngineSettings(config.model_name, chat_template=_template(options.chat_template), **loading)
        if self.engine == "openai":
            identity = check_settings(self.settings)
        else:
            identity = check_checkpoint(config.model_name, options.revision, options.base_model)
        check_engine(identity, self.engine)
        check_chat_template(identity, self.settings.chat_template)
        self._context = identity["context"]

    @property
    def tokenizer(self):
        """The model's tokenizer, for metrics that count tokens."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(
                self.settings.model, revision=self.settings.revision, **NO_CODE
            )
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """The engines add special tokens once, through the chat template."""
        return False

    @property
    def max_length(self) -> int | None:
        """Context in tokens, where it is known."""
        return self._context

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Complete documents; the name is lighteval's, the decoding is the benchmark's.

        A document the engine could not complete gets empty texts, which no grader marks as right, and a warning.

        Raises:
            UserError: a document with images, or one of our benchmarks with examples (they are zero-shot).
            EngineError: the engine could not start, or died.
        """
        # in the order of `eval_harness run`, so that batches and with them the last bits of the logits are the same
        order = sorted(range(len(docs)), key=lambda i: (docs[i].task_name, _place(docs[i]), i))
        requests = [self._request(str(i), docs[i]) for i in order]
        responses: list[ModelResponse | None] = [None] * len(docs)
        failed = 0
        with self._start() as engine:
            for result in engine.generate(requests):
                doc = docs[int(result.key)]
                failed += result.error is not None
                responses[int(result.key)] = _response(doc, result)
                self._annotate(doc, result)
        if failed:
            logger.warning("%d of %d documents could not be completed; they count as wrong.", failed, len(docs))
        return responses

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Not offered.

        Raises:
            UserError: always.
        """
        names = ", ".join(sorted({doc.task_name for doc in docs}))
        raise UserError(f"{names}: scored by log-likelihood, but these engines only generate. Use lighteval's own.")

    loglikelihood_rolling = loglikelihood

    def _start(self) -> AbstractContextManager:
        log = Path(tempfile.mkdtemp(prefix="eval_harness-")) / "engine.log"
        logger.info("Starting %s (log: %s)", self.engine, log)
        if self.engine == "openai":
            return OpenAIEngine(self.settings, log)
        return EngineProcess(self.engine, self.settings, log)

    def _request(self, key: str, doc: Doc) -> Request:
        if doc.images:
            raise UserError(f"{doc.task_name}: documents with images are not passed on; use `eval_harness run`.")
        name, item_id, decoding = self._decoding(doc)
        messages = PromptManager(system_prompt=decoding.system_prompt).prepare_prompt_api(doc)
        seed = item_seed(decoding.seed, name, item_id)
        sampling = Sampling(
            decoding.temperature, decoding.top_p, decoding.top_k, decoding.max_new_tokens, doc.num_samples, seed
        )
        return Request(key, messages, sampling)

    def _annotate(self, doc: Doc, result: Result) -> None:
        """Leave in lighteval's details what `eval_harness import` needs to make our records of them again."""
        name, item_id, decoding = self._decoding(doc)
        told = {
            "decoding": decoding.model_copy(update={"samples": doc.num_samples}).model_dump(),
            "seed": item_seed(decoding.seed, name, item_id),
            "finish_reasons": [completion.finish_reason for completion in result.completions],
            "num_completion_tokens": [completion.num_tokens for completion in result.completions],
            "num_prompt_tokens": result.num_prompt_tokens,
            "error": result.error,
        }
        doc.specific = {**(doc.specific or {}), "eval_harness": json.dumps(told)}

    def _decoding(self, doc: Doc) -> tuple[str, str, Decoding]:
        """Benchmark, item and decoding of a document; for a task of lighteval's own, the nearest thing to them."""
        if doc.specific and "benchmark" in doc.specific:
            benchmark = get_benchmark(doc.specific["benchmark"])
            if doc.fewshot_samples:
                raise UserError(f"{doc.task_name}: {benchmark.name} is asked without examples; write gpg:NAME|0.")
            return benchmark.name, doc.specific["item_id"], decoding_of(benchmark, self.overrides)
        chosen = {name: value for name in _DECODING if (value := getattr(self.overrides, name)) is not None}
        defaults = {
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_new_tokens": doc.generation_size or _MAX_NEW_TOKENS,
            "samples": doc.num_samples,
            "seed": _SEED,
            "system_prompt": None,
        }
        return doc.task_name, doc.id, Decoding(**defaults | chosen)


class _NoCache:
    """lighteval's own cache is keyed without our options, and would lie inside a checkpoint given by its path."""

    def _init_registry(self, registry: object) -> None:
        pass


def read_options(model: str) -> argparse.Namespace:
    """The options of ``eval_harness run`` that ``EVAL_LIGHTEVAL_OPTIONS`` holds.

    Raises:
        UserError: one that lighteval decides.
        SystemExit: one that does not exist; argparse has said so.
    """
    base = ["run", "--model", model, "--benchmarks", "-"]
    plain = vars(_parser().parse_args(base))
    options = _parser().parse_args([*base, *shlex.split(os.environ.get(OPTIONS, ""))])
    known = {"engine", "chat_template", *_LOADING, *_DECODING}
    foreign = sorted(name for name, value in vars(options).items() if value != plain[name] and name not in known)
    if foreign:
        names = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise UserError(
            f"{OPTIONS}: {names} does not apply under lighteval, which decides tasks, items, samples (TASK@n=K|0) and "
            "output itself. Remove it."
        )
    return options


def _template(chat_template: str | None) -> str | None:
    if chat_template in (None, "none"):
        return chat_template
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{OPTIONS}: --chat-template {chat_template}: {error.strerror}; give a file or none.") from None


def _place(doc: Doc) -> int:
    return int(doc.id) if doc.id.isdigit() else 0


def _response(doc: Doc, result: Result) -> ModelResponse:
    texts = [clean(completion.text) for completion in result.completions] or [""] * doc.num_samples
    for stop in filter(None, doc.stop_sequences or ()):
        texts = [text.split(stop)[0] for text in texts]
    return ModelResponse(input=[{"role": "user", "content": doc.query}], text=texts)
