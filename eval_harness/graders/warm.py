"""Importing this loads every grader and has each grade an answer, so that a worker's first is not a slow one."""

from __future__ import annotations

import logging

from eval_harness.graders.base import GRADERS, get_grader

_GOLDS = {"choice": "(A)", "class_name": "rose", "box": "(1,1),(2,2)", "math_expression_gold": "7", "boxed_answer": "7"}

logging.disable(logging.WARNING)
for _name in GRADERS:
    for _answer in ("so $\\boxed{\\frac{1}{2}}$", "<answer> 7 </answer> is 3.5 cm (1,1),(2,2)"):
        get_grader(_name).grade(_GOLDS.get(_name, "$7$"), _answer, {"choices": ["a", "b"]} if _name == "choice" else {})
