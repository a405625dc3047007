"""Importing this does for the graders that need lighteval what :mod:`eval_harness.graders.warm` does for the others."""

from __future__ import annotations

from eval_harness.graders.base import LIGHTEVAL
from eval_harness.graders.warm import warm

warm(LIGHTEVAL)
