"""Importing this loads the graders and has each grade an answer, so that a worker's first is not a slow one.

Those that need lighteval are left to :mod:`eval_harness.graders.warm_lighteval`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from eval_harness.graders.base import GRADERS, LIGHTEVAL, get_grader

_GOLDS = {"choice": "(A)", "class_name": "rose", "box": "(1,1),(2,2)", "math_expression_gold": "7", "boxed_answer": "7"}


def warm(names: Iterable[str]) -> None:
    """Build graders and grade two answers with each."""
    logging.disable(logging.WARNING)
    for name in names:
        context = {"choices": ["a", "b"]} if name == "choice" else {}
        for answer in ("so $\\boxed{\\frac{1}{2}}$", "<answer> 7 </answer> is 3.5 cm (1,1),(2,2)"):
            get_grader(name).grade(_GOLDS.get(name, "$7$"), answer, context)


warm(name for name in GRADERS if name not in LIGHTEVAL)
