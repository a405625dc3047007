"""A pytest plugin for `make mutate`: answers are graded in the test's own process.

Starting grading workers costs seconds, and coverage does not see what they do. Not for the tests of the pool itself.
"""

from __future__ import annotations

from concurrent.futures import Future

from eval_harness.errors import unknown
from eval_harness.graders.base import GRADERS, get_grader
from eval_harness.graders.nursery import _graded
from eval_harness.graders.pool import GradingPool


def _grade_async(self, grader, pairs):
    if grader not in GRADERS and ":" not in grader:
        raise unknown("grader", grader, GRADERS)
    future = Future()
    try:
        future.set_result([_graded(get_grader(grader), pair) for pair in pairs])
    except Exception as error:
        future.set_exception(RuntimeError(f"grader {grader} failed: {error}"))
    return future


GradingPool.grade_async = _grade_async
