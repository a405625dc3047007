"""math-verify with its default extraction, as the released visual graders and rewards use it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from functools import lru_cache

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, verify
from math_verify.parser import extract_target_from_pred, get_extraction_regexes

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs a traceback per unparsable answer

STEP_SECONDS = 3
"""math-verify's default limit of one parsing step."""


@lru_cache(4096)
def _patterns(strings: tuple[str, ...]) -> list:
    targets = [LatexExtractionConfig(), ExprExtractionConfig()]
    return get_extraction_regexes([*targets, StringExtractionConfig(strings=strings)] if strings else targets)


def parse(text: str, strings: tuple[str, ...] = ()) -> list:
    """math-verify's ``parse`` with its default extraction (LaTeX and expressions), and with ``strings`` if given.

    Returns:
        The parsed answer and the text it came from, or an empty list. Never raises; must run in a main thread.
    """
    with contextlib.suppress(Exception):
        return extract_target_from_pred(
            text, _patterns(strings), STEP_SECONDS, fallback_mode="first_match", extraction_mode="any_match"
        )
    return []


def equal(first: Sequence, second: Sequence) -> bool:
    """math-verify's ``verify``; an exception counts as unequal. Not symmetric in everything: mind the order."""
    with contextlib.suppress(Exception):
        return bool(verify(list(first), list(second)))
    return False
