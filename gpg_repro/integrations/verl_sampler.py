"""beta_th (section 2.3) for verl's synchronous V1 trainer: a replay buffer that draws until enough groups are valid.

verl's own ``algorithm.filter_groups`` replaces every group without signal, so its batches have alpha = 1 and beta_th
is fixed at 1. This one is named in ``trainer.v1.sampler.custom_sampler``; it imports verl, so only verl imports it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from eval_harness.errors import UserError
from gpg_repro.batch import reached, select_groups
from gpg_repro.objective import valid_groups

logger = logging.getLogger(__name__)


class ThresholdReplayBuffer(ReplayBuffer):
    """Groups of one step: the valid ones of all draws, oldest first, then invalid ones of the last draw.

    A draw is one batch of prompts, the first of which verl's trainer submits itself. Drawing stops when the valid
    groups reach ``beta_th`` of the batch or after ``max_draws``; what the step does not use is thrown away.

    Args:
        sampler_kwargs: ``beta_th`` in [0, 1] and ``max_draws`` (20), from ``trainer.v1.sampler.sampler_kwargs``.
        arguments: those verl gives to every sampler.

    Raises:
        UserError: another trainer mode than sync, or unknown or impossible `sampler_kwargs`.
    """

    def __init__(self, *, sampler_kwargs: Any, **arguments: Any):
        super().__init__(sampler_kwargs=sampler_kwargs, **arguments)
        settings = {"beta_th": None, "max_draws": 20, **dict(sampler_kwargs)}
        self.beta_th, self.max_draws = settings.pop("beta_th"), settings.pop("max_draws")
        if self.trainer_mode != "sync":
            raise UserError(
                f"trainer.v1.trainer_mode={self.trainer_mode!r}: beta_th is for trainer_mode=sync, where a draw is one "
                "batch of one policy."
            )
        possible = isinstance(self.beta_th, int | float) and 0 <= self.beta_th <= 1
        if settings or not possible or not isinstance(self.max_draws, int) or self.max_draws < 1:
            raise UserError(
                f"trainer.v1.sampler.sampler_kwargs={dict(sampler_kwargs)}: expected beta_th, a share in [0, 1], and "
                "optionally max_draws, at least 1."
            )

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, float]]:
        """The `batch_size` groups of one step, and how they came about; validation is left to verl."""
        if partition_id == "val":
            return super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        draws, valid = [], []
        while not (draws and reached(sum(map(sum, valid)), batch_size, self.beta_th)) and len(draws) < self.max_draws:
            if draws:
                self.refill_fn(batch_size)
            draws.append(self._wait_for_draw(partition_id, {uid for draw in draws for uid in draw}, batch_size))
            valid.append(self._valid(partition_id, draws[-1]))
        selection = select_groups(valid)
        if not reached(selection.num_valid, batch_size, self.beta_th):
            logger.warning(
                "Step %d: %d of %d groups are valid after %d draws, short of beta_th=%g. Taken as it is.",
                global_steps,
                selection.num_valid,
                batch_size,
                len(draws),
                self.beta_th,
            )
        chosen = [draws[draw][group] for draw, group in selection.groups]
        self._clear_groups(partition_id, {uid for draw in draws for uid in draw} - set(chosen))
        metrics = {
            "training/gpg/draws": len(draws),
            "training/gpg/valid_groups": selection.num_valid,
            "training/gpg/dropped_valid_groups": selection.num_dropped,
        }
        return self._materialize_batch(partition_id, chosen, dict(self.partitions[partition_id])), metrics

    def _wait_for_draw(self, partition_id: str, earlier: Collection[str], batch_size: int) -> list[str]:
        """Group ids of the draw under way, once all of it is generated."""
        last_debug_time = time.time()
        while True:
            self._sync_metadata_from_transfer_queue()
            draw = [uid for uid in self.prompt_global_steps[partition_id] if uid not in earlier]
            under_way = self.pending_keys[partition_id] | self.running_keys[partition_id]
            if len(draw) >= batch_size and not under_way:
                return draw
            last_debug_time = self._wait_for_next_poll(partition_id, last_debug_time)

    def _valid(self, partition_id: str, draw: list[str]) -> list[bool]:
        """Do the rewards of each group differ? A group that failed has none and is invalid."""
        rewards: dict[str, list[torch.Tensor]] = {uid: [] for uid in draw}
        keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in rewards]
        if keys:
            scores = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=["rm_scores"])["rm_scores"]
            for key, score in zip(keys, scores, strict=True):
                rewards[key.split("_")[0]].append(score.sum())
        return [bool(group) and bool(valid_groups(torch.stack(group), len(group))) for group in rewards.values()]
