"""Rewards and recipes as targets of :mod:`eval_harness.fuzz`: ``--also gpg_repro.fuzzing``.

Every reward must pay each completion one finite number in its range, whatever the completion. Symbolic graders run
inside the fuzzing worker here, which has the deadline; the rest of a reward has none in training, so it is also timed
alone, with verdicts that cost nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

import yaml

from eval_harness.errors import UserError
from eval_harness.fuzz import generate
from eval_harness.fuzz.targets import Target, in_every_file
from eval_harness.graders.base import Verdict, get_grader
from gpg_repro import recipe
from gpg_repro.recipe import RECIPES
from gpg_repro.rewards import _text, accuracy, all_rewards, cosine

MAX_SECONDS = 0.25
"""CPU time for the part of a reward that runs in the trainer's own process, for one completion of any length."""
_RANGES = {"cosine": (-0.5, 1.0), "giou": (-math.inf, math.inf)}
_FORMS = (
    "<think>%s</think>\n<answer>%s</answer>",
    "<think>\n%s\n</think>\n<answer>\n%s\n</answer>",
    "%s\n</think>\n%s",
)


class _Here:
    """A pool that grades in this process, or not at all."""

    def __init__(self, really: bool):
        self._really = really

    def grade(self, grader: str, pairs: list[tuple[str, str]]) -> list[Verdict]:
        if not self._really:
            return [Verdict(False, False, None, "mismatch") for _ in pairs]
        return [get_grader(grader).grade(*pair) for pair in pairs]


class OwnPart:
    """What of a reward is not the graders', as a grader: ``match`` when it pays more than nothing."""

    def __init__(self, name: str):
        self._name, self._reward = name, all_rewards()[name]

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Pay the prediction, as text and as a conversation; AssertionError for anything but a fair price in time."""
        chat = [{"role": "assistant", "content": prediction}]
        started = time.process_time()
        paid = self._paid([prediction, chat], gold, really=False)
        spent = (time.process_time() - started) / 2
        assert spent < MAX_SECONDS, f"{spent:.2f} s in the trainer's own process"
        assert paid is None or paid[0] == paid[1], paid
        return self._verdict(paid)

    def _paid(self, completions: list, gold: str, really: bool) -> list[float] | None:
        """Rewards, in their range; None: the reward refuses the gold."""
        pool = partial(_Here, really)
        with (
            mock.patch.object(_text, "shared_pool", pool),
            mock.patch.object(accuracy, "shared_pool", pool),
            mock.patch.object(cosine, "shared_pool", pool),
        ):
            try:
                rewards = self._reward(completions, solution=[gold] * len(completions))
            except UserError:
                return None
        assert len(rewards) == len(completions), rewards
        low, high = _RANGES.get(self._name, (0.0, 1.0))
        for paid in rewards:
            assert isinstance(paid, float) and math.isfinite(paid) and low <= paid <= high, paid
        return rewards

    @staticmethod
    def _verdict(paid: list[float] | None) -> Verdict:
        if paid is None:
            return Verdict(False, False, None, "bad_gold")
        return Verdict(paid[0] > 0, paid[0] > 0, str(paid[0]), "match" if paid[0] > 0 else "mismatch")


class Reward(OwnPart):
    """A whole reward, graders included."""

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """As :meth:`OwnPart.grade`; the mark is what the reward really pays."""
        super().grade(gold, prediction)
        return self._verdict(self._paid([prediction], gold, really=True))


def _draw(name: str):
    if name == "giou":
        return _giou_input
    if name in ("accuracy", "accuracy_lv35", "cosine"):
        return generate.math_input("plain" if name == "accuracy_lv35" else "latex")
    if "format" in name:
        return _format_input
    return generate.tag_input(("left", "B", "140°", "pink primrose"), "<answer> %s </answer>")


def _giou_input(d: generate.Draw, corpus) -> generate.Input:
    drawn = generate.box_input(d, corpus)
    return generate.Input(f"<answer> {drawn.gold} </answer>", drawn.prediction)


def _format_input(d: generate.Draw, corpus) -> generate.Input:
    text = d.of(_FORMS).replace("%s", generate.expression(d, 2))
    return generate.Input("", text if d.one_in(10) else generate.text_for(d, text, corpus))


class RecipeFile:
    """A text as a recipe's file, as a grader: ``match`` when it is a recipe, ``no_answer`` when it is refused."""

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Load it; raises what loading should not have raised."""
        with in_every_file(prediction):
            try:
                found = recipe.load_recipe("mine.yaml")
            except UserError as error:
                assert str(error), "a UserError without a message"
                return Verdict(False, False, str(error)[:500], "no_answer")
        return Verdict(True, True, found.name, "match")


REWARDS = {
    f"reward_{name}": Target(f"{__name__}:Reward:{name}", _draw(name), 1 if "format" in name else 2, judges=False)
    for name in all_rewards()
}
_FILES = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RECIPES.glob("*.yaml"))]
TARGETS = REWARDS | {
    "recipe": Target(f"{__name__}:RecipeFile", generate.yaml_input(_FILES), 2, judges=False),
}
