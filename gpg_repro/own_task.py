"""A task of your own: a check of one answer becomes a reward for training and a mark for measuring. Notebook 05."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eval_harness.engines import EngineSettings, Request, Sampling
from eval_harness.errors import UserError
from eval_harness.stats import Estimate, mean_of_items
from gpg_repro.rewards._text import text_of
from gpg_repro.tiny.warmup import last_box

Row = Mapping[str, Any]
"""One row of a data set: ``prompt`` (a conversation) and whatever the check looks at."""


class OwnReward:
    """The reward function a trainer calls, made from a check of one answer.

    Args:
        check: (text of a completion, its row) -> a number, or True and False for 1 and 0.
        name: under which the trainer logs it. "accuracy" in it lets the trainer tell easy and hard groups by it.
    """

    def __init__(self, check: Callable[[str, Row], float], name: str = "accuracy_reward"):
        self.check, self.__name__ = check, name

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Rewards of N completions; the data set's columns arrive as lists of N values."""
        per_row = {name: values for name, values in columns.items() if _is_column(values, len(completions))}
        return [
            self.score(text_of(completion), {name: values[i] for name, values in per_row.items()})
            for i, completion in enumerate(completions)
        ]

    def score(self, text: str, row: Row) -> float:
        """The reward of one answer.

        Raises:
            UserError: the check gave something that is not a finite number.
        """
        value = self.check(text, row)
        if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
            raise UserError(f"the check returned {value!r} for {text!r}: expected a finite number, True or False.")
        return float(value)


def _is_column(values: Any, num_rows: int) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == num_rows


def boxed_number(text: str) -> float:
    """The whole number in the last box of an answer; NaN, which no comparison accepts, if there is none."""
    content = last_box(text)
    return float(content) if content and content.isascii() and content.isdigit() else math.nan


@dataclass(frozen=True)
class Measured:
    """Held-out score of a model.

    Attributes:
        estimate: share of right answers (a reward of 1), with its interval.
        answers: one row per item: question, answer, reward.
    """

    estimate: Estimate
    answers: pd.DataFrame


def measure(model: str | Path, rows: Sequence[Row], reward: OwnReward, max_new_tokens: int) -> Measured:
    """Ask a model every row once, greedily, through the harness's transformers engine, and mark the answers.

    Args:
        model: folder or hub id.
        rows: held-out rows.
        reward: marks an answer; only a reward of 1 counts as right.
        max_new_tokens: generation limit, in tokens.

    Raises:
        UserError: no rows, or a prompt that does not fit the model's context.
    """
    from eval_harness.engines.transformers import TransformersBackend

    if not rows:
        raise UserError("there are no held-out rows to measure on; keep some back from training.")
    backend = TransformersBackend(EngineSettings(str(model)))
    sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens, samples=1, seed=0)
    texts: dict[str, str] = {}
    for number, row in enumerate(rows):
        try:
            backend.add(Request(str(number), list(row["prompt"]), sampling))
        except ValueError as error:
            raise UserError(f"held-out row {number}: {error}") from None
    while backend.has_unfinished():
        texts |= {result.key: result.completions[0].text for result in backend.step()}
    answers = pd.DataFrame(
        [
            {
                "question": row["prompt"][-1]["content"],
                "answer": texts[str(number)],
                "reward": reward.score(texts[str(number)], row),
            }
            for number, row in enumerate(rows)
        ]
    )
    return Measured(mean_of_items([[float(mark == 1)] for mark in answers["reward"]]), answers)
