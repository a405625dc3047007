"""Graders turn a completion into a mark. The same grader gives the training reward and the evaluation score.

A grader is a name, so that it can be sent to a worker process; :func:`get_grader` builds it there. Use
:class:`eval_harness.graders.pool.GradingPool` for anything a model wrote: it has the deadline.
"""

from eval_harness.graders.base import GRADERS, Grader, Verdict, get_grader

__all__ = ["GRADERS", "Grader", "Verdict", "get_grader"]
