"""Training sets by name, one file each: where the rows come from and how a row becomes a prompt and a gold."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from eval_harness.errors import UserError, unknown
from gpg_repro.datasets.base import TrainingSet
from gpg_repro.datasets.own import FORMS, Columns, check, content_of, own_set


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


def find_training_set(
    dataset: str,
    columns: Mapping[str, str | None] | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> TrainingSet:
    """A registered set by its name, or one's own by path or hub id (:mod:`gpg_repro.datasets.own`); nothing is read.

    Args:
        dataset: name, path or hub id, in this order.
        columns: what a column is for -> its name; not for registered sets, nor are the following.
        config, split, revision: of a hub id; split: of a folder with several, too.

    Raises:
        UserError: no such set, or settings that do not go with it.
    """
    if dataset in all_training_sets():
        given = {"columns": columns, "dataset_config": config, "dataset_split": split, "dataset_revision": revision}
        if unused := [key for key, value in given.items() if value is not None]:
            raise UserError(
                f"training set {dataset} is one of gpg_repro/datasets, which fixes {', '.join(unused)}: leave it out. "
                f"A path of that name is ./{dataset}."
            )
        return all_training_sets()[dataset]
    found = own_set(dataset, Columns.model_validate(columns or {}), config, split, revision)
    if found is None:
        raise UserError(f"{unknown('training set', dataset, all_training_sets())} Or give {FORMS}.")
    return found


__all__ = [
    "Columns",
    "TrainingSet",
    "all_training_sets",
    "check",
    "content_of",
    "find_training_set",
    "get_training_set",
]
