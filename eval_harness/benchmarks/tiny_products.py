"""Suite ``tiny_products`` of the tiny world; see docs/tiny_world.md."""

from eval_harness.benchmarks._tiny import tiny_suite

BENCHMARK = tiny_suite("tiny_products")
VARIANTS = (tiny_suite("tiny_products", "train"),)
