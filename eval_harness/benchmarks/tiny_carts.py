"""Set ``tiny_carts`` of the tiny visual world; see docs/tiny_vision.md."""

from eval_harness.benchmarks._tiny_vision import tiny_vision

BENCHMARK = tiny_vision("tiny_carts", "class_name")
