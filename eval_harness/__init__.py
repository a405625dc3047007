"""Evaluation harness of the GPG paper companion: benchmarks, engines, graders, records.

The public entry points are :func:`eval_harness.runner.evaluate` (also ``python -m eval_harness run``),
:func:`eval_harness.runner.verify` and the readers in :mod:`eval_harness.records`. Nothing here imports ``gpg_repro``.
"""

__version__ = "0.1.0"
