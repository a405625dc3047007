"""Names of classes: either name within the other (published), or the same name (strict).

Published (Visual-RFT's classification evaluation): the first answer tag on one line; blanks and underscores out, lower
case; right if either text holds the other. So an empty tag is right for every class, ``737`` is every 737 and ``rose``
is a ``pink primrose``. No tag is wrong.

Strict: the same tag, over any number of lines; equal after removing white space, underscores, hyphens and a final full
stop, and folding case. Nothing else is forgiven: ``Acura TL Sedan 2012`` is not ``2012 Acura TL Sedan``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from eval_harness.graders.base import Verdict
from eval_harness.graders.tags import careful_answer, first_tag, shown, tag_flags

SHORT = 3
"""Characters below which an answer is flagged ``short_answer``."""
_DROPPED = re.compile(r"[\s_\-\u2010\u2011]+")


def published_name(name: str) -> str:
    """A name as the published rule compares it: no blanks, no underscores, lower case."""
    return name.replace(" ", "").replace("_", "").lower()


def strict_name(name: str) -> str:
    """A name as the strict rule compares it."""
    return _DROPPED.sub("", name.strip().removesuffix(".")).casefold()


def holds_either_way(gold: str, answer: str) -> bool:
    """The published comparison: either name, normalised, within the other."""
    gold, answer = published_name(gold), published_name(answer)
    return gold in answer or answer in gold


class ClassNameGrader:
    """Both rules for a class name; flags ``empty_answer`` and ``short_answer`` (one or two characters)."""

    def grade(self, gold: str, prediction: str, context: Mapping[str, Any] | None = None) -> Verdict:
        """Mark one answer under both rules."""
        answer, answer_strict = first_tag(prediction), careful_answer(prediction)
        flags = tag_flags(prediction)
        if answer is not None and not published_name(answer) and "empty_answer" not in flags:
            flags += ("empty_answer",)
        if answer is not None and 0 < len(published_name(answer)) < SHORT:
            flags += ("short_answer",)
        if not strict_name(gold):
            return Verdict(False, False, None, "bad_gold", flags=flags)
        correct = answer is not None and holds_either_way(gold, answer)
        correct_strict = bool(answer_strict) and strict_name(answer_strict) == strict_name(gold)
        reason, reason_strict = _reason(answer, correct), _reason(answer_strict or None, correct_strict)
        extracted = None if answer is None else shown(answer.strip())
        extracted_strict = None if answer_strict is None else shown(answer_strict)
        return Verdict(
            correct=correct,
            correct_strict=correct_strict,
            extracted=extracted,
            reason=reason,
            extracted_strict=extracted_strict if extracted_strict != extracted else None,
            reason_strict=reason_strict if reason_strict != reason else None,
            flags=flags,
        )


def _reason(answer: str | None, correct: bool) -> str:
    if answer is None:
        return "no_answer"
    return "match" if correct else "mismatch"
