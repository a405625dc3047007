"""Suite ``tiny_differences`` of the tiny world; see docs/tiny_world.md."""

from eval_harness.benchmarks._tiny import tiny_suite

BENCHMARK = tiny_suite("tiny_differences")
VARIANTS = (tiny_suite("tiny_differences", "train"),)
