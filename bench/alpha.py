"""The gradient of one batch under everybody's alpha, against the mean over groups with a signal.

A random Qwen2 of 30,000 parameters, B groups of G completions of ragged length, 0/1 rewards of a population of prompts
in which a group carries a signal with probability 1 / alpha. Every variant sees the same batch; each is measured by its
distance from the mean over groups with a signal (Eq. 5 and 7), relative to that mean, and by its length and direction.
Ends in one JSON line; `--out` writes it to a file, `--table` prints the committed one as docs/alpha.md has it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from gpg_repro import dynamics, neighbours, objective

RESULT = Path(__file__).parent / "results" / "alpha.json"
ALPHAS = (1.5, 2.5, 4.0)
NUM_GROUPS, SIZE, PROMPT, COMPLETION, PROCESSES = 16, 8, 4, 12, 4
SEEDS = 5


@dataclass(frozen=True)
class Batch:
    """[N, PROMPT + COMPLETION] tokens, [N, COMPLETION] mask, [N] rewards."""

    tokens: torch.Tensor
    mask: torch.Tensor
    rewards: torch.Tensor


Loss = Callable[[torch.Tensor, Batch], torch.Tensor]
"""([N, COMPLETION] log-probabilities, batch) -> scalar."""


def _counts(batch: Batch) -> tuple[int, int]:
    valid = objective.valid_groups(batch.rewards, SIZE)
    return len(valid), int((~valid).sum())


def _loss(alpha: Callable[[Batch], float], f_norm: str = "none", normalization: str = "group") -> Loss:
    def loss(logps: torch.Tensor, batch: Batch) -> torch.Tensor:
        advantages = objective.group_advantages(batch.rewards, SIZE, f_norm)
        rows = len(logps) // PROCESSES if normalization == "local" else len(logps)
        parts = [
            objective.gpg_loss(logps[i : i + rows], advantages[i : i + rows], batch.mask[i : i + rows], SIZE,
                               alpha(batch), normalization)
            for i in range(0, len(logps), rows)
        ]  # fmt: skip
        return torch.stack(parts).mean()

    return loss


def _one(batch: Batch) -> float:
    return 1.0


def _exact(batch: Batch) -> float:
    return objective.age_alpha(*_counts(batch))


def _capped(batch: Batch) -> float:
    return neighbours.capped_alpha(*_counts(batch))


def _verl(batch: Batch) -> float:
    return neighbours.verl_alpha(batch.rewards)


VARIANTS: dict[str, Loss] = {
    "B/(B−M), Eq. 5 (this package)": _loss(_exact),
    "α = 1": _loss(_one),
    "R0: α = 1, group std, per process": _loss(_one, "group", "local"),
    "R1: B/(B−M) up to 20, per process": _loss(_capped, "none", "local"),
    "verl `gpg`, its α alone": _loss(_verl),
    "verl `gpg`, token mean": _loss(_verl, "none", "batch"),
    "TRL #6681 as described: B/(B−M), mean per completion": _loss(_exact, "none", "sequence"),
}


def draw(alpha: float, seed: int) -> Batch:
    """A batch whose groups carry a signal with probability 1 / alpha; one does and one does not at least."""
    rng = np.random.default_rng(seed)
    shape = dynamics.Population(0.5, dynamics.fit_concentration(0.5, 1 / alpha, SIZE), SIZE).shape
    while True:
        rewards = (rng.random((NUM_GROUPS, SIZE)) < rng.beta(*shape, size=(NUM_GROUPS, 1))).astype(float)
        if 0 < (rewards.std(axis=1) > 0).sum() < NUM_GROUPS:
            break
    lengths = rng.integers(2, COMPLETION + 1, size=(NUM_GROUPS * SIZE, 1))
    tokens = rng.integers(0, 64, size=(NUM_GROUPS * SIZE, PROMPT + COMPLETION))
    tokens[:, :PROMPT] = tokens[::SIZE, :PROMPT].repeat(SIZE, axis=0)
    mask = np.arange(COMPLETION) < lengths
    return Batch(torch.tensor(tokens), torch.tensor(mask.astype(int)), torch.tensor(rewards.flatten()))


def gradient(model: Qwen2ForCausalLM, loss: Loss, batch: Batch) -> torch.Tensor:
    """All parameters' gradient as one vector."""
    logits = model(batch.tokens).logits[:, PROMPT - 1 : -1]
    logps = logits.log_softmax(dim=-1).gather(2, batch.tokens[:, PROMPT:].unsqueeze(2)).squeeze(2)
    found = torch.autograd.grad(loss(logps, batch), list(model.parameters()))
    return torch.cat([part.flatten() for part in found])


def over_valid(logps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean over groups with a signal, from those rows alone."""
    kept = objective.valid_groups(batch.rewards, SIZE).repeat_interleave(SIZE)
    advantages = objective.group_advantages(batch.rewards[kept], SIZE)
    return objective.gpg_loss(logps[kept], advantages, batch.mask[kept], SIZE)


def measure(alphas=ALPHAS, num_seeds: int = SEEDS) -> dict[str, dict[str, dict[str, list[float]]]]:
    """alpha -> variant -> distance, length and cosine, one per seed, and the factor M gives."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).double()
    found: dict = {}
    for alpha in alphas:
        for seed in range(num_seeds):
            batch = draw(alpha, seed)
            wanted = gradient(model, over_valid, batch)
            for name, loss in VARIANTS.items():
                other = gradient(model, loss, batch)
                numbers = {
                    "distance": float((other - wanted).norm() / wanted.norm()),
                    "length": float(other.norm() / wanted.norm()),
                    "cosine": float(other @ wanted / other.norm() / wanted.norm()),
                }
                into = found.setdefault(f"{alpha:g}", {}).setdefault(name, {})
                for key, value in numbers.items():
                    into.setdefault(key, []).append(round(value, 12))
            found[f"{alpha:g}"].setdefault("alpha of the batch", []).append(round(_exact(batch), 4))
    return found


def dropped() -> dict[str, float]:
    """R2's undercorrection where a second valid group of a process is dropped: 16 processes of one group, draws of 5
    valid groups each, 3 of the second draw on processes that have one. Its factor over that of what it trains on."""
    first = [i < 5 for i in range(16)]
    second = [2 <= i < 7 for i in range(16)]
    batch = objective.released_r2_batch([first, second], 16, 0.5)
    return {"alpha_released": batch.alpha_released, "alpha": batch.alpha, "length": batch.alpha_released / batch.alpha}


def table(result: dict) -> str:
    """The committed numbers as Markdown: medians over seeds, of the batches' own B / (B - M) too."""
    alphas = [np.median(by_variant["alpha of the batch"]) for by_variant in result["batches"].values()]
    lines = ["| variant | " + " | ".join(f"B/(B−M) = {alpha:.1f}" for alpha in alphas) + " |"]
    lines.append("| --- |" + " --- |" * len(result["batches"]))
    for name in VARIANTS:
        cells = []
        for by_variant in result["batches"].values():
            distance, length, cosine = (np.median(by_variant[name][key]) for key in ("distance", "length", "cosine"))
            degrees = math.degrees(math.acos(min(1.0, cosine)))
            cells.append("0" if distance < 1e-9 else f"{distance:.2f} ({length:.2f} ×, {degrees:.0f}°)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed result as Markdown")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(RESULT.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    result = {
        "bench": "alpha",
        "batches": measure(),
        "released_r2": dropped(),
        "groups": NUM_GROUPS,
        "generations": SIZE,
        "processes": PROCESSES,
        "seeds": SEEDS,
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "command": "python bench/alpha.py --out bench/results/alpha.json",
        "device": "cpu",
        "dtype": "float64",
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
