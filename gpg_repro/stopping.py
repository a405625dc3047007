"""Ending a training when somebody asks: after the step that it is in, with a save to go on from.

SIGTERM or SIGUSR1 to a training process ask, and so does the file that ``GPG_STOP_FILE`` names: `launch` and
configs/slurm/train.sbatch use it for several processes and nodes. Beside it a training leaves

.ready    since it looks at the file, on every node
.saved    number of the newest step that this start has saved
.stopped  number of the step after which it ended because it was asked

transformers' ``enable_jit_checkpoint`` (5.17.0) does not do here: every process decides for itself, by a timer, so two
of them may save at different steps and wait for each other for ever; it saves before the optimiser's step, whose
gradient is lost; and no callback hears of the save, so nothing marks it whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from eval_harness.records import write_whole
from gpg_repro.paths import STOP_FILE

ASKING = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def asked_by_signals() -> Iterator[Callable[[], bool]]:
    """Inside, whether a signal has asked for the end; a second SIGTERM does what the first did before."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are not for it
        yield lambda: False
        return

    def ask(number: int, _: object) -> None:
        came.append(number)
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in ASKING}
    for number in ASKING:
        signal.signal(number, ask)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopWhenAsked(TrainerCallback):
    """Saves and ends the training after the step in which any of its processes is asked.

    Args:
        asked: whether this process is.
    """

    stopped = False
    """It has ended the training."""

    def __init__(self, asked: Callable[[], bool]):
        self._asked, self._file = asked, os.environ.get(STOP_FILE)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_local_process_zero:
            self._tell("ready", state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            return
        asked = self._asked() or (self._file is not None and os.path.exists(self._file))
        if _any_process(asked):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._tell("saved", state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped and state.is_world_process_zero:
            self._tell("stopped", state.global_step)

    def _tell(self, what: str, step: int) -> None:
        if self._file is not None:
            write_whole(Path(f"{self._file}.{what}"), f"{step}\n")


def _any_process(asked: bool) -> bool:
    state = PartialState()
    if state.num_processes == 1:
        return asked
    return bool(reduce(torch.tensor([float(asked)], device=state.device), "sum").item())
