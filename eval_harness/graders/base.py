"""What a grader is, and the list of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any, Protocol

from eval_harness.errors import unknown
from eval_harness.graders.tags import MAX_EXTRACTED


@dataclass(frozen=True)
class Verdict:
    """Marks of one answer under both rules, and why.

    ``correct`` follows the rule that produced the paper's numbers, ``correct_strict`` what a careful reader would call
    correct. ``reason`` is one of match, mismatch, no_answer (nothing could be extracted), timeout, grader_memory.
    """

    correct: bool
    correct_strict: bool
    extracted: str | None
    reason: str
    gold_fallback: bool = False
    score: float | None = None
    """Mark of the published rule in [0, 1] where it is no yes or no (IoU)."""
    score_strict: float | None = None
    extracted_strict: str | None = None
    """What the strict rule read, where it reads something else than the published one."""
    reason_strict: str | None = None
    """Why the strict mark is what it is, where the reason differs."""
    flags: tuple[str, ...] = ()
    """Peculiarities worth counting."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further marks in [0, 1] by name."""


TIMED_OUT = Verdict(False, False, None, "timeout")
TOO_LARGE = Verdict(False, False, None, "grader_memory")
CRASHED = Verdict(False, False, None, "grader_crash")
UNFINISHED = frozenset(verdict.reason for verdict in (TIMED_OUT, TOO_LARGE, CRASHED))
"""Reasons of answers whose grading was ended: zeros by both rules, counted apart."""


@dataclass(frozen=True)
class Mark:
    """The strict mark of an answer, and what was read on both sides."""

    correct: bool
    reason: str
    """match, mismatch, wrong_unit, unknown_option, inverted_box, out_of_range, no_answer or bad_gold."""
    said: str
    gold: str
    detail: str = ""
    """The reason in words."""
    score: float | None = None


def with_strict(published: Verdict, strict: Mark) -> Verdict:
    """The verdict of the published rule with the strict rule's mark."""
    return replace(
        published,
        correct_strict=strict.correct,
        extracted_strict=strict.said if strict.said and strict.said != published.extracted else None,
        reason_strict=strict.reason if strict.reason != published.reason else None,
        score_strict=strict.score,
    )


class Grader(Protocol):
    """Pure: the same gold and prediction always give the same verdict."""

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer. Bad predictions are marked, never raised.

        Args:
            gold: the right answer, in the form the benchmark has it.
            prediction: what the model wrote.
            context: what else the benchmark knows about the item (options, polygons, image size).
        """
        ...


GRADERS = {
    "math_expression_gold": "lighteval's extractive match; gold read as a plain expression (AIME24, AMC23)",
    "math_latex_gold": "lighteval's extractive match; gold read as LaTeX (MATH-500, Minerva, OlympiadBench)",
    "boxed": "math-verify on the boxed or other LaTeX answer; the accuracy reward of the 7B runs and the tiny suites",
    "boxed_in_place": "the same without taking boxes apart first; the correctness test inside the 1.5B cosine reward",
    "boxed_answer": "the boxed rule for a gold that is the bare answer; the accuracy_lv35 reward of GPG-7B as released",
    "choice": "option of a question: any letter or option text that parses; strict: the option stated (CV-Bench)",
    "number": "number by math-verify over the whole output; strict: value and unit of the stated answer (GEOQA)",
    "class_name": "class name, either within the other; strict: the one class named (Flower102, Pets37, FGVC, Cars196)",
    "box": "IoU of the first box with the first polygon's; strict: the one box stated with all targets' (LISA)",
    "default_extraction": "math-verify's default extraction on both texts; first rule of the released visual rewards",
}
"""Name -> one line for ``list``."""

VERSIONS = dict.fromkeys(GRADERS, 1)
"""Name -> version, raised when a grader's own rule changes so that a mark can change. Stored in run records."""
_SYMBOLIC = ("lighteval", "math-verify", "latex2sympy2_extended", "sympy")
_LIBRARIES = {
    **dict.fromkeys(("math_expression_gold", "math_latex_gold"), (*_SYMBOLIC, "mpmath")),
    **dict.fromkeys(("boxed", "number"), (*_SYMBOLIC[1:], "mpmath")),
    **dict.fromkeys(("boxed_in_place", "boxed_answer", "choice", "default_extraction"), _SYMBOLIC[1:]),
}
"""Packages that decide a grader's marks together with it."""

LIGHTEVAL = frozenset({"math_expression_gold", "math_latex_gold"})
"""Graders that import lighteval, which takes longer than all the rest."""

STRICT_MATH = frozenset({"math_expression_gold", "math_latex_gold", "boxed"})
"""Graders with the strict rule of mathematics: those of benchmarks. ``boxed_in_place`` and ``boxed_answer`` are
rewards."""
_OWN_STRICT = ("choice", "number", "class_name", "box")
STRICT_RULES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(STRICT_MATH, {"name": "strict_math", "version": 1}),
    **{name: {"name": f"strict_{name}", "version": 1} for name in _OWN_STRICT},
}
"""Grader -> its strict rule, stored beside the grader; the version is raised when one of the rule's marks can change.
The other graders have one rule only."""
_MARKS = {
    **dict.fromkeys(STRICT_MATH, "eval_harness.graders.strict_math"),
    **{name: f"eval_harness.graders.{name}" for name in _OWN_STRICT},
}
"""Grader -> module whose ``mark(gold, prediction, context)`` is its strict rule."""

CONTEXT_KEYS = {
    "choice": ("choices", "finish_reason"),
    "number": ("finish_reason",),
    "class_name": ("classes", "finish_reason"),
    "box": ("width", "height", "polygons", "gold_box", "finish_reason"),
    **dict.fromkeys(STRICT_MATH, ("question", "finish_reason")),
}
"""What each grader looks for in the context."""


def classes_of(grader: str, golds: Iterable[str]) -> list[str] | None:
    """The names that an answer may be one of, from a benchmark's golds; None where the grader has no use for them."""
    return sorted(set(golds)) if "classes" in CONTEXT_KEYS.get(grader, ()) else None


def context_for(grader: str, context: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """An item's context with what else is known of an answer, where the grader looks for it.

    Args:
        grader: its name.
        context: of the item.
        known: ``question``, ``finish_reason`` and ``classes``, None where unknown.
    """
    keys = CONTEXT_KEYS.get(grader, ())
    return {**context, **{key: value for key, value in known.items() if key in keys and value is not None}}


def grader_identity(name: str) -> dict[str, Any]:
    """Name, version, strict rule if it has a version of its own, and packages that decide the marks, for a record."""
    libraries = {package: metadata.version(package) for package in _LIBRARIES.get(name, ())}
    strict = {"strict": STRICT_RULES[name]} if name in STRICT_RULES else {}
    return {"name": name, "version": VERSIONS[name], **strict, "packages": libraries}


def rule_names(name: str) -> tuple[str, str]:
    """The published and the strict rule of a grader, each with its version: ``number 1, published``."""
    strict = STRICT_RULES.get(name, {"name": name, "version": VERSIONS[name]})
    return f"{name} {VERSIONS[name]}, published", f"{strict['name']} {strict['version']}, strict"


@cache
def get_grader(name: str) -> Grader:
    """Build the grader of that name (heavy imports happen here, in the worker).

    Args:
        name: one of ``GRADERS``, or ``module:factory`` or ``module:factory:argument`` for one that is not on the list:
            the factory is called with the argument, if there is one.

    Raises:
        UserError: no such grader.
    """
    if ":" in name:
        module, factory, *arguments = name.split(":", 2)
        return getattr(importlib.import_module(module), factory)(*arguments)
    if name not in GRADERS:
        raise unknown("grader", name, GRADERS)
    if name == "choice":
        from eval_harness.graders.choice import ChoiceGrader

        return ChoiceGrader()
    if name in ("number", "default_extraction"):
        from eval_harness.graders.number import DefaultExtraction, NumberGrader

        return NumberGrader() if name == "number" else DefaultExtraction()
    if name == "class_name":
        from eval_harness.graders.class_name import ClassNameGrader

        return ClassNameGrader()
    if name == "box":
        from eval_harness.graders.box import BoxGrader

        return BoxGrader()
    from eval_harness.graders import math

    return math.build(name)


class Explainer:
    """A strict rule alone, as a grader whose verdict holds both readings and the reason in words."""

    def __init__(self, mark: Callable[[str, str, Mapping[str, Any] | None], Mark]) -> None:
        self._mark = mark

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """``extracted`` is the gold as read, ``extracted_strict`` the answer, ``reason_strict`` the reason in words."""
        found = self._mark(gold, prediction, context)
        return Verdict(
            correct=found.correct,
            correct_strict=found.correct,
            extracted=found.gold,
            reason=found.reason,
            extracted_strict=found.said,
            reason_strict=found.detail[:MAX_EXTRACTED],
        )


def explainer(name: str) -> Explainer:
    """The strict rule of a grader alone; for the pool ``eval_harness.graders.base:explainer:NAME``."""
    return Explainer(importlib.import_module(_MARKS[name]).mark)
