"""GPG for verl: the paper's advantages in verl's registry, its reward, and the training rows in verl's columns.

verl has an estimator named ``gpg``, but its alpha is (responses) / (responses with a reward other than 0): it counts
wrong answers, not groups without signal, and has no F_norm. The two registered here follow `gpg_repro.objective`:

    ``gpg_exact``      alpha * A_i on every token of response i. The actor's ``loss_agg_mode`` is the normaliser:
                       ``token-mean`` is our "batch", ``seq-mean-token-mean`` our "sequence".
    ``gpg_exact_eq5``  the same, divided by (groups) * (tokens of the group). With ``loss_agg_mode: token-sum`` the loss
                       is Eq. 5 and 8, our "group", which verl has no mode for.

Both want the actor's ``policy_loss.loss_mode: gpg``, which is -log pi * A, and one update per batch
(``ppo_mini_batch_size`` equal to ``train_batch_size``). ``algorithm.f_norm`` is F_norm: none (default), group or batch.

Importing this module needs torch only. `gpg_repro.integrations.verl_plugin` is what verl imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval_harness.errors import UserError
from eval_harness.markup import shown_streams
from gpg_repro.batch import decimal_sum
from gpg_repro.objective import age_alpha, completion_weights, group_advantages, valid_groups

VERL_VERSION = "0.9.1"
"""The version this was written for and tested with."""
DATASET = "simplerl_level3to5"
REWARD = "accuracy_lv35"


def gpg_exact(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence | None = None,
    config: Mapping[str, Any] | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """alpha * A of Eq. 6 to 8, as verl calls an advantage estimator.

    Args:
        token_level_rewards: [bs, T]; the reward of a response is the sum of its row.
        response_mask: [bs, T], 1 where we train. Rows without a 1 are verl's padding: they are in no mean and in no
            group, and their advantage is 0.
        index: [bs] group ids, verl's ``uid``, in any order. Groups may differ in size, as when a response was lost.
        config: verl's ``algorithm`` section, for ``f_norm``.

    Returns:
        Advantages [bs, T], 0 outside the mask, and the same tensor again in the place of verl's returns.

    Raises:
        UserError: no group ids, or a KL term in the rewards.
        ValueError: unknown ``f_norm``, or a reward that is not finite.
    """
    return _estimate(token_level_rewards, response_mask, index, config, per_group=False)


def gpg_exact_eq5(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence | None = None,
    config: Mapping[str, Any] | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """As `gpg_exact`, with the denominators of Eq. 5 inside: for ``loss_agg_mode: token-sum``."""
    return _estimate(token_level_rewards, response_mask, index, config, per_group=True)


ESTIMATORS = {"gpg_exact": gpg_exact, "gpg_exact_eq5": gpg_exact_eq5}


def register() -> None:
    """Enter `ESTIMATORS` in verl's registry, under their names; a second call changes nothing.

    Raises:
        UserError: verl is missing, or its registry is not the one of `VERL_VERSION`.
    """
    try:
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "verl":
            raise UserError(f"verl cannot be imported, {error}. Install what it needs; see docs/verl.md.") from error
        raise UserError(
            f"verl's registry of advantage estimators was not found ({error}). Install verl=={VERL_VERSION}; see "
            "docs/verl.md."
        ) from error
    for name, estimator in ESTIMATORS.items():
        register_adv_est(name)(estimator)
        if get_adv_estimator_fn(name) is not estimator:
            raise UserError(
                f"verl did not take the estimator {name!r}. Install verl=={VERL_VERSION}; see docs/verl.md."
            )


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **unused: Any):
    """verl's ``custom_reward_function``: our `accuracy_lv35` of one response, 0.0 or 1.0."""
    from gpg_repro.rewards import get_reward

    return get_reward(REWARD)([solution_str], solution=[ground_truth])[0]


def write_training_rows(
    path: Path, dataset: str = DATASET, num: int | None = None, data_root: Path | None = None
) -> int:
    """Write a training set as the parquet file that verl reads; rows without a readable gold are left out.

    Args:
        path: the file; its folder is made.
        dataset: one of ours, with prompts that are used as they stand.
        num: first so many rows; all by default.
        data_root: folder of local copies instead of the hub.

    Returns:
        How many rows were written.

    Raises:
        UserError: no such set, or one whose prompts still need a chat template.
    """
    import pandas as pd

    from gpg_repro.datasets import get_training_set
    from gpg_repro.rewards import unreadable_golds

    rows = get_training_set(dataset).rows(None, num, 0, data_root)
    if any(not isinstance(row["prompt"], str) for row in rows):
        raise UserError(
            f"dataset {dataset!r}: its prompts are conversations, but the configuration gives prompts to the model as "
            "they stand. Use a set with ready-made prompts."
        )
    unreadable = unreadable_golds((row["solution"] for row in rows), [REWARD])
    table = [
        {
            "data_source": dataset,
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "reward_model": {"style": "rule", "ground_truth": row["solution"]},
        }
        for row in rows
        if row["solution"] not in unreadable
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(path, index=False)
    return len(table)


def _estimate(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence | None, config: Any, *, per_group: bool
) -> tuple[Tensor, Tensor]:
    if index is None:
        raise UserError("GPG's advantages need the group of every response: verl's batch has no `uid`.")
    if config is not None and config.get("use_kl_in_reward", False):
        raise UserError(
            "algorithm.use_kl_in_reward=True takes a KL term off every reward, so that no two are equal, every group "
            "counts as valid and alpha is 1. Set it to False; a KL term of the loss is actor.use_kl_loss."
        )
    f_norm = "none" if config is None else config.get("f_norm", "none")
    with torch.no_grad():
        # Rewards of several turns tie as their decimals do.
        sums = [decimal_sum((value, 1.0) for value in row[row != 0].tolist()) for row in token_level_rewards]
        rewards = torch.tensor(sums, dtype=torch.float64, device=token_level_rewards.device)
        lengths = response_mask.sum(dim=1)
        rows = lengths.nonzero().flatten()
        per_response = torch.zeros_like(rewards)
        if len(rows):
            slots, num_generations, num_groups = _slots([index[row] for row in rows.tolist()])

            def in_slots(values: Tensor) -> Tensor:
                grouped = values.new_zeros(num_groups * num_generations)
                grouped[slots] = values
                return grouped

            scored = in_slots(torch.ones_like(rows, dtype=torch.bool))
            grouped = in_slots(rewards[rows])
            advantages = group_advantages(grouped, num_generations, f_norm, scored=scored)
            num_valid = int(valid_groups(grouped, num_generations, scored=scored).sum())
            alpha = age_alpha(num_groups, num_groups - num_valid)
            if per_group:
                weights = completion_weights(
                    advantages, in_slots(lengths[rows]), num_generations, "group", alpha, scored=scored
                )
            else:
                weights = alpha * advantages
            per_response[rows] = weights[slots]
        advantages = per_response.to(token_level_rewards).unsqueeze(1) * response_mask
    return advantages, advantages


def _slots(index: Sequence) -> tuple[list[int], int, int]:
    """Rows in any order to places among adjacent groups: the place of each row, G of the largest group, groups."""
    members: dict[Any, int] = {}
    places: list[tuple[int, int]] = []
    groups: dict[Any, int] = {}
    for uid in index:
        places.append((groups.setdefault(uid, len(groups)), members.get(uid, 0)))
        members[uid] = places[-1][1] + 1
    num_generations = max(members.values())
    return [group * num_generations + place for group, place in places], num_generations, len(groups)


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """``python -m gpg_repro.integrations.verl OUT.parquet``: the training rows of GPG-7B for verl."""
    parser = argparse.ArgumentParser(prog="python -m gpg_repro.integrations.verl", description=main.__doc__)
    parser.add_argument("out", type=Path, help="the parquet file to write")
    parser.add_argument("--dataset", default=DATASET, help="one of our training sets with ready-made prompts")
    parser.add_argument("--num", type=int, help="first so many rows")
    parser.add_argument("--data-root", type=Path, help="folder of local copies instead of the hub")
    arguments = parser.parse_args(argv)
    try:
        num = write_training_rows(arguments.out, arguments.dataset, arguments.num, arguments.data_root)
    except UserError as error:
        parser.error(str(error))
    print(f"{num} rows in {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
