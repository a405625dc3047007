"""tiny_s1 and tiny_rs: generated twins of open-s1 (broad) and open-rs (smaller, harder). See docs/tiny_world.md."""

from functools import partial

from gpg_repro.datasets.base import TrainingSet
from gpg_repro.tiny import TRAIN_MIXTURES, train_rows

TRAINING_SETS = tuple(TrainingSet(name=name, source=partial(train_rows, name)) for name in TRAIN_MIXTURES)
