"""Training sets by name, one file each: where the rows come from and how a row becomes a prompt and a gold."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from eval_harness.errors import unknown
from gpg_repro.datasets.base import TrainingSet


@cache
def all_training_sets() -> dict[str, TrainingSet]:
    """Name -> training set."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [d for module in modules for d in getattr(module, "TRAINING_SETS", ())]
    return {d.name: d for d in sorted(found, key=lambda d: d.name)}


def get_training_set(name: str) -> TrainingSet:
    """The training set of that name.

    Raises:
        UserError: no such set.
    """
    if name not in all_training_sets():
        raise unknown("training set", name, all_training_sets())
    return all_training_sets()[name]


__all__ = ["TrainingSet", "all_training_sets", "get_training_set"]
