"""The embedded world: procedural tasks, a tokenizer and a base model that trains on the spot.

Tasks live in `eval_harness.tiny_tasks` and `eval_harness.tiny_vision` (evaluation must not import training); this
package adds what training needs. `build_base` and `build_vision_base` come from `gpg_repro.tiny.warmup` and
`gpg_repro.tiny.vision_warmup` on first use, so that listing training sets does not load torch.
"""

from __future__ import annotations

from typing import Any

from eval_harness.tiny_tasks import SUITES, mixture

TRAIN_MIXTURES: dict[str, dict[str, float]] = {
    "tiny_s1": dict.fromkeys(SUITES, 1.0),
    "tiny_rs": {
        "tiny_sums/2": 1.0,
        "tiny_sums/3": 1.0,
        "tiny_differences/2": 1.0,
        "tiny_differences/3": 1.0,
        "tiny_products/1": 1.0,
        "tiny_products/2": 1.0,
        "tiny_chains/2": 1.0,
        "tiny_chains/3": 1.0,
        "tiny_remainders/2": 2.0,
    },
}
"""The training sets, as weights of `eval_harness.tiny_tasks.mixture`: miniatures of the roles that open-s1 (broad) and
open-rs (compact, harder) have in the paper's Table 3, not samples of them."""


def __getattr__(name: str) -> Any:
    if name == "build_base":
        from gpg_repro.tiny.warmup import build_base

        return build_base
    if name == "build_vision_base":
        from gpg_repro.tiny.vision_warmup import build_vision_base

        return build_vision_base
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def train_rows(name: str, num: int, seed: int) -> list[dict]:
    """`num` distinct training prompts of the training set `name`, the same ones for the same seed.

    Each row has `prompt` (one user turn), `solution` (gold text for a math grader, `$\\boxed{42}$`), `answer` (`42`),
    and `id`, `suite`, `difficulty` of the problem.

    Raises:
        ValueError: unknown training set, or more rows asked for than it has distinct problems.
    """
    if name not in TRAIN_MIXTURES:
        raise ValueError(f"unknown tiny training set {name!r}; expected one of {', '.join(TRAIN_MIXTURES)}")
    return [
        {
            "prompt": [{"role": "user", "content": problem.question}],
            "solution": f"$\\boxed{{{problem.answer}}}$",
            "answer": problem.answer,
            "id": problem.id,
            "suite": problem.suite,
            "difficulty": problem.difficulty,
        }
        for problem in mixture(TRAIN_MIXTURES[name], "train", num, seed)
    ]
