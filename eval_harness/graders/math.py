"""Math answers: the published evaluation rule and the accuracy reward.

Evaluation (:class:`ExtractiveMatch`) is lighteval's multilingual extractive match as open-rs configures it: English;
predictions by plain expression and LaTeX with boxes first; fallback to the first match's text; any match; precision 5;
5 s per parsing or comparing step. The functions below are called in the order of lighteval's own metric, which a test
holds against it; we call them ourselves to keep the extracted answer, the reason and whether the gold could be read.

Reward (:class:`BoxedAccuracy`) is math-verify with LaTeX extraction only, boxes first, no malformed operators.

Both use signals for their inner time limits, so they belong in the main thread of a worker process: see ``pool.py``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

from eval_harness.graders.base import STRICT_MATH, Grader, Verdict, with_strict
from eval_harness.graders.strict_math import mark as strict_mark

PRECISION = 5
STEP_SECONDS = 5
_MAX_EXTRACTED = 500


@cache
def _lighteval() -> SimpleNamespace:
    """What is used of lighteval, whose import takes eight seconds: the other graders do without it."""
    from lighteval.metrics.utils import extractive_match_utils as extraction
    from lighteval.metrics.utils.math_comparison import compare_gold_target
    from lighteval.tasks.requests import Doc
    from lighteval.utils.language import Language

    return SimpleNamespace(extraction=extraction, compare=compare_gold_target, Doc=Doc, english=Language.ENGLISH)


class ExtractiveMatch:
    """lighteval's extractive match with the configuration of the published math evaluation.

    A gold that extraction cannot read (409 bare golds of OlympiadBench) is compared as raw text: that is the published
    behaviour, flagged as ``gold_fallback``. The strict mark is :mod:`eval_harness.graders.strict_math`'s.

    Args:
        gold_as_latex: the gold is read as LaTeX, otherwise as a plain expression.
    """

    def __init__(self, gold_as_latex: bool):
        lib, kinds = _lighteval(), _lighteval().extraction
        document = lib.Doc(query="", choices=[""], gold_index=0)  # only needed for multiple-choice targets
        gold = kinds.LatexExtractionConfig() if gold_as_latex else kinds.ExprExtractionConfig()
        predicted = (kinds.ExprExtractionConfig(), kinds.LatexExtractionConfig(boxed_match_priority=0))
        self._gold_patterns = kinds.get_extraction_regexes(document, (gold,), lib.english)
        self._prediction_patterns = kinds.get_extraction_regexes(document, predicted, lib.english)
        # golds are long solutions, and every one meets K samples
        self._golds = lru_cache(4096)(lambda gold: self._extract(gold, self._gold_patterns))

    @staticmethod
    def _extract(text: str, patterns: list) -> list:
        extract = _lighteval().extraction.extract_target_from_pred
        return extract(text, patterns, "first_match", "any_match", STEP_SECONDS)

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules."""
        golds = self._golds(gold)
        fallback = not golds
        answers = self._extract(prediction, self._prediction_patterns)
        extracted = str(answers[-1])[:_MAX_EXTRACTED] if answers else None
        correct = bool(answers) and bool(
            _lighteval().compare(golds or [gold], answers, PRECISION, timeout_seconds=STEP_SECONDS)
        )
        reason = "match" if correct else "mismatch" if answers else "no_answer"
        published = Verdict(correct, correct, extracted, reason, gold_fallback=fallback)
        return with_strict(published, strict_mark(gold, prediction, context))


class BoxedAccuracy:
    """math-verify on LaTeX answers, boxes first (the accuracy reward of the 7B runs).

    The release swaps the verifier's two arguments; (gold, prediction) is used here (no difference on common forms).
    A gold without readable LaTeX is flagged as ``gold_fallback`` and never matches here; what a *reward* pays for it
    is the reward's decision.

    Args:
        boxed: normalisation of boxes: ``all`` takes their contents out; ``True``, what the released cosine reward
            passes, leaves them in place, so a box that shares its dollar signs with text often fails
            (``$\\boxed{5}.$`` is not read as 5).
        bare_gold: the gold is the answer itself (``42``): it is put into a box and read with math-verify's default
            extraction, LaTeX and plain expressions, as the release does for SimpleRL-Zoo. The release writes the box
            without braces and with a second backslash; of 1,869 MATH golds all but the empty one read the same.
        strict: the strict mark is :mod:`eval_harness.graders.strict_math`'s; otherwise it is the same mark.
    """

    def __init__(self, boxed: str | bool = "all", bare_gold: bool = False, strict: bool = False) -> None:
        import math_verify
        from latex2sympy2_extended import NormalizationConfig

        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs a traceback per unparsable answer
        self._lib = math_verify
        self._gold_config = [math_verify.LatexExtractionConfig()]
        self._bare_gold, self._strict = bare_gold, strict
        if bare_gold:
            self._gold_config.append(math_verify.ExprExtractionConfig())
        self._prediction_config = [
            math_verify.LatexExtractionConfig(
                normalization_config=NormalizationConfig(
                    nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed=boxed, units=True
                ),
                boxed_match_priority=0,
                try_extract_without_anchor=False,
            )
        ]

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer."""
        verdict = self._published(gold, prediction)
        return with_strict(verdict, strict_mark(gold, prediction, context)) if self._strict else verdict

    def _published(self, gold: str, prediction: str) -> Verdict:
        golds = self._parse(rf"$\boxed{{{gold}}}$" if self._bare_gold else gold, self._gold_config)
        if not golds:
            return Verdict(False, False, None, "no_answer", gold_fallback=True)
        answers = self._parse(prediction, self._prediction_config)
        if not answers:
            return Verdict(False, False, None, "no_answer")
        correct = False
        with contextlib.suppress(Exception):  # the released reward scores an exception of the verifier as wrong
            correct = bool(self._lib.verify(golds, answers))
        return Verdict(correct, correct, str(answers[-1])[:_MAX_EXTRACTED], "match" if correct else "mismatch")

    def _parse(self, text: str, config: list) -> list:
        return self._lib.parse(text, extraction_config=config, extraction_mode="first_match")


def build(name: str) -> Grader:
    """The grader of that name; used by :func:`eval_harness.graders.get_grader`."""
    if name in ("boxed", "boxed_in_place", "boxed_answer"):
        in_place, bare = name == "boxed_in_place", name == "boxed_answer"
        return BoxedAccuracy(True if in_place else "all", bare_gold=bare, strict=name in STRICT_MATH)
    return ExtractiveMatch(gold_as_latex=name != "math_expression_gold")
