"""The tiny base model: supervised steps from nothing to a middling accuracy, so that RL has room to improve.

The corpus holds correct solutions only, in two habits that real corpora have too: most demonstrations show their
working inside the think tags; in the last stretch some, more of the harder ones, state the bare answer. A model this
small cannot do the sums in its head, so the base, which has both habits, is right about a third of the time. RL can
teach it to work problems out, and to work with more care. Hard problems stay mostly wrong and some easy ones are always
right: of the groups of G completions some are all right, some mixed, some all wrong, which is what the correction alpha
(Eq. 7) is about.

The result is a function of the seed, the scale and the source of the tiny world: the optimisation runs on one CPU
thread (the order of floating-point sums depends on the number of threads) and the folder is named by a hash of all
that could change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

import eval_harness.tiny_tasks as tiny_tasks
from eval_harness.progress import progress_bar
from eval_harness.tiny_tasks import SUITES, Problem, mixture
from gpg_repro.tiny import model as model_source
from gpg_repro.tiny import tokenizer as tokenizer_source
from gpg_repro.tiny.model import build_model
from gpg_repro.tiny.tokenizer import build_tokenizer

MAX_NEW_TOKENS = 64
"""Enough for the longest model solution of any suite (about 50 tokens) with its end-of-turn token."""


@dataclass(frozen=True)
class WarmupConfig:
    """What makes a base model, apart from the seed.

    Attributes:
        hidden_size, num_layers: size of the Qwen2.
        num_worked_steps: optimiser steps on demonstrations that all show their working.
        num_mixed_steps: further steps on demonstrations some of which are bare; they form the second habit quickly,
            and earlier they would only slow down the first.
        batch_size: demonstrations per optimiser step.
        micro_batch_size: demonstrations per forward pass; a matter of speed (batches are sorted by length).
        num_demonstrations: distinct train problems in the corpus, shared evenly by the suites.
        bare_shares: share of bare demonstrations in the mixed steps, for difficulty 1, 2 and 3.
        muon_lr: peak learning rate of Muon, for the weight matrices of the layers.
        adamw_lr: peak learning rate of AdamW, for embeddings, biases and norms.
        eval_problems_per_suite: test problems per suite behind the accuracies in `base.json`.
    """

    hidden_size: int = 128
    num_layers: int = 3
    num_worked_steps: int = 480
    num_mixed_steps: int = 60
    batch_size: int = 32
    micro_batch_size: int = 8
    num_demonstrations: int = 8000
    bare_shares: tuple[float, float, float] = (0.1, 0.5, 0.7)
    muon_lr: float = 0.014
    adamw_lr: float = 2e-3
    eval_problems_per_suite: int = 100

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        return self.num_worked_steps + self.num_mixed_steps


SCALES = {
    "tiny": WarmupConfig(),
    "smoke": WarmupConfig(
        hidden_size=64,
        num_layers=2,
        num_worked_steps=84,
        num_mixed_steps=6,
        batch_size=16,
        micro_batch_size=16,
        num_demonstrations=800,
        muon_lr=0.03,
        adamw_lr=6e-3,
        eval_problems_per_suite=20,
    ),
}


def build_base(
    cache_dir: str | os.PathLike | None = None, seed: int = 0, scale: str = "tiny", progress: bool = True
) -> Path:
    """Train the base model, or find it in the cache, and return its folder.

    The folder holds the model (safetensors), the tokenizer and `base.json`: settings, versions, and accuracy per suite
    on test problems (greedy and sampled at temperature 1) with counts. An interrupted build leaves nothing behind that
    looks finished: the folder gets its name when it is complete.

    Args:
        cache_dir: parent folder of the cache; default `$GPG_CACHE`, else `.cache/gpg_repro` in the working directory.
        seed: seed of the initial weights and of the corpus.
        scale: `tiny` (one to two minutes) or `smoke` (seconds; a model of 0.13 M parameters that is barely ever right).
        progress: show a progress bar.

    Raises:
        ValueError: unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r} for a tiny base; expected one of {', '.join(SCALES)}")
    config = SCALES[scale]
    parent = Path(cache_dir or os.environ.get("GPG_CACHE") or Path(".cache", "gpg_repro"))
    folder = parent / f"tiny-base-{scale}-seed{seed}-{_fingerprint(config)}"
    if (folder / "base.json").is_file():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        tokenizer = build_tokenizer()
        started = time.perf_counter()
        with one_thread():
            model = warm_up(tokenizer, config, seed, progress)
            train_seconds = time.perf_counter() - started
            problems = [problem for suite in SUITES.values() for problem in _eval_set(suite, config)]
            accuracy = {
                decoding: accuracy_by_suite(model, tokenizer, problems, sampled=decoding == "sampled", seed=seed)
                for decoding in ("greedy", "sampled")
            }
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        facts = {
            "scale": scale,
            "seed": seed,
            "config": asdict(config),
            "num_parameters": model.num_parameters(),
            "accuracy": accuracy,
            "train_seconds": round(train_seconds, 1),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        (unfinished / "base.json").write_text(json.dumps(facts, indent=2) + "\n")
        _publish(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def warm_up(
    tokenizer: PreTrainedTokenizerFast, config: WarmupConfig, seed: int, progress: bool = False
) -> Qwen2ForCausalLM:
    """Train a new model on demonstrations of the train split; token-mean cross-entropy of the completions."""
    model = build_model(tokenizer, config.hidden_size, config.num_layers, seed)
    batches = chain(
        islice(_batches(_demonstrations(tokenizer, config, seed, bare=False), config, seed), config.num_worked_steps),
        islice(_batches(_demonstrations(tokenizer, config, seed, bare=True), config, seed), config.num_mixed_steps),
    )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    num_ramp_steps = max(1, config.num_steps // 15)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / num_ramp_steps) * (1 - 0.9 * step / config.num_steps)
        )
        for optimizer in optimizers
    ]
    model.train()
    for batch in progress_bar(batches, "warming up the tiny base", config.num_steps, disable=not progress):
        num_target_tokens = sum(len(completion) for _, completion in batch)
        for start in range(0, len(batch), config.micro_batch_size):
            loss = _completion_loss(model, batch[start : start + config.micro_batch_size]) / num_target_tokens
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return model.eval()


@torch.no_grad()
def accuracy_by_suite(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    sampled: bool = False,
    seed: int = 0,
    batch_size: int = 250,
) -> dict[str, dict[str, int]]:
    """Exact-match accuracy of the last box, per suite: `{suite: {"asked": n, "correct": k}}`.

    For warming up and tuning; scores that are reported come from `eval_harness`. `sampled` draws at temperature 1
    from the whole distribution, otherwise decoding is greedy. The global random state is left as it was.
    """
    counts = {problem.suite: {"asked": 0, "correct": 0} for problem in problems}
    by_length = sorted(problems, key=lambda problem: len(problem.question))
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            prompts = tokenizer([_prompt(tokenizer, p) for p in batch], padding=True, return_tensors="pt")
            sequences = model.generate(**prompts, **sampling, max_new_tokens=MAX_NEW_TOKENS)
            completions = sequences[:, prompts["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            for problem, text in zip(batch, texts, strict=True):
                counts[problem.suite]["asked"] += 1
                counts[problem.suite]["correct"] += last_box(text) == problem.answer
    return counts


def last_box(text: str) -> str | None:
    """Content of the last closed, unnested `\\boxed{...}`, or None."""
    _, box, tail = text.rpartition("\\boxed{")
    content, brace, _ = tail.partition("}")
    return content if box and brace else None


# --- corpus -------------------------------------------------------------------------------------------------------


def _prompt(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> str:
    turns = [{"role": "user", "content": problem.question}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


Demonstration = tuple[list[int], list[int]]
"""Prompt ids and completion ids; the completion ends with the end-of-turn token."""


def _demonstrations(
    tokenizer: PreTrainedTokenizerFast, config: WarmupConfig, seed: int, bare: bool
) -> list[Demonstration]:
    """The corpus; with `bare`, some demonstrations leave out the working, as `bare_shares` says."""
    shown = mixture(dict.fromkeys(SUITES, 1), "train", config.num_demonstrations, seed)
    if bare:
        rng = random.Random(f"bare demonstrations/{seed}")
        shown = [replace(p, reasoning="") if rng.random() < config.bare_shares[p.difficulty - 1] else p for p in shown]
    prompts = tokenizer([_prompt(tokenizer, p) for p in shown])["input_ids"]
    completions = tokenizer([p.solution + tokenizer.eos_token for p in shown])["input_ids"]
    return list(zip(prompts, completions, strict=True))


def _batches(demonstrations: list[Demonstration], config: WarmupConfig, seed: int) -> Iterator[list[Demonstration]]:
    """Endless batches, each sorted by length; every pass over the corpus has a new order."""
    rng = random.Random(f"warm-up batches/{seed}")
    queue: list[Demonstration] = []
    while True:
        while len(queue) < config.batch_size:
            queue += rng.sample(demonstrations, len(demonstrations))
        batch, queue = queue[: config.batch_size], queue[config.batch_size :]
        yield sorted(batch, key=lambda pair: len(pair[0]) + len(pair[1]))


def _completion_loss(model: Qwen2ForCausalLM, pairs: list[Demonstration]) -> torch.Tensor:
    """Summed cross-entropy of the completion tokens. Right padding needs no mask: causal rows never look at it."""
    length = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    is_target = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        is_target[row, len(prompt) : end] = True
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[is_target[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][is_target[:, 1:]], reduction="sum")


# --- cache --------------------------------------------------------------------------------------------------------


def _eval_set(suite: tiny_tasks.Suite, config: WarmupConfig) -> list[Problem]:
    return suite.sample("test", config.eval_problems_per_suite, seed=0)


def _fingerprint(config: WarmupConfig) -> str:
    """Hash of everything but the seed that decides the weights: settings, sources, versions of the libraries."""
    sources = [Path(module.__file__).read_text() for module in (tiny_tasks, tokenizer_source, model_source)]
    parts = [json.dumps(asdict(config), sort_keys=True), *sources, Path(__file__).read_text()]
    parts += [torch.__version__, transformers.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _publish(unfinished: Path, folder: Path) -> None:
    """Give the finished folder its name; if another process was first, its identical folder stays."""
    unfinished.chmod(0o755)
    try:
        unfinished.rename(folder)
    except OSError:
        if not (folder / "base.json").is_file():
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread: sums in a fixed order, and no spinning on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
