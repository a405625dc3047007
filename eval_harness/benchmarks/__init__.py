"""Registry: every module of this package that defines ``BENCHMARK``, found by file, loaded on first use.

A module may define ``VARIANTS`` beside it: the same items asked in another way, under names of their own. Benchmarks
whose items are generated from a seed exist once per seed: ``fresh_math`` has the default one, ``fresh_math_seed7``
another.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache

from eval_harness.benchmarks.base import Benchmark, DecodingDefaults, prompts_hash
from eval_harness.errors import unknown

__all__ = ["Benchmark", "DecodingDefaults", "all_benchmarks", "get_benchmark", "prompts_hash"]


_SEEDED = re.compile(r"(?P<name>.+)_seed(?P<seed>0|[1-9][0-9]{0,18})")


@cache
def all_benchmarks() -> dict[str, Benchmark]:
    """Name -> benchmark, sorted by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for benchmark in (getattr(loaded, "BENCHMARK", None), *getattr(loaded, "VARIANTS", ())):
            if benchmark is not None:
                found[benchmark.name] = benchmark
    return dict(sorted(found.items()))


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, with the seed it names.

    Raises:
        UserError: there is none; the message suggests the closest.
    """
    seeded = _SEEDED.fullmatch(name)
    if seeded and seeded["name"] in all_benchmarks():
        return all_benchmarks()[seeded["name"]].with_seed(int(seeded["seed"]))
    if name not in all_benchmarks():
        raise unknown("benchmark", name, all_benchmarks())
    return all_benchmarks()[name]
