"""The threshold beta_th = 0.6 against resampling until every group is valid, at equal numbers of valid groups per step.

Measured: both train the tiny base in turn on one thread (learning rate 0, so that both sample from one policy). The
thresholded batch holds more groups, so many that on average as many are valid as in the other's batch.

Simulated for 8 to 512 workers: groups (completion lengths and validity together) are drawn with replacement from
those the measured runs sampled. A decoding iteration takes the same time whatever the batch, so a draw lasts as long
as its longest completion on any worker, and all wait for it. The rival is simulated in three forms: draws of a batch,
draws large enough that one mostly suffices, and every worker resampling its own share. The simulation leaves out
prefill, the update and differences between machines. Ends in one JSON line; `ratio` is tokens per valid group,
threshold over every group valid (lower is better).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _paired as paired
import matplotlib
import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.stats import binom

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns

from eval_harness.style import EASY_GREEN, GPG_BLUE, GRPO_GRAY, HARD_RED, use_style

WORKERS = (8, 16, 32, 64, 128, 256, 512)
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of valid groups of the third panel."""
THRESHOLD, ALL_VALID, OWN = "beta_th = 0.6", "every group valid", "every group valid, each worker on its own"
LARGER = "every group valid, larger draws"
"""The rival at its best: the smallest draw that alone suffices in 95 % of the steps."""
COLORS = {THRESHOLD: GPG_BLUE, ALL_VALID: GRPO_GRAY, OWN: HARD_RED, LARGER: EASY_GREEN}


@dataclass(frozen=True)
class Groups:
    """What a policy samples: `lengths` [M, G] in tokens, `valid` [M]."""

    lengths: np.ndarray
    valid: np.ndarray

    def sample(self, num: int, rng: Generator, share: float | None = None) -> Groups:
        """`num` groups with replacement; `share` of them valid on average (default: as measured)."""
        weights = None
        if share is not None:
            weights = np.where(self.valid, share / self.valid.sum(), (1 - share) / (~self.valid).sum())
        chosen = rng.choice(len(self.valid), num, p=weights)
        return Groups(self.lengths[chosen], self.valid[chosen])


def matched_batch(num_valid: int, share: float, beta_th: float, rng: Generator, max_draws: int = 20) -> int:
    """The batch of groups that holds `num_valid` valid ones on average under the threshold; seeded Monte Carlo."""

    def mean_valid(num_groups: int) -> float:
        drawn = rng.binomial(num_groups, share, size=(4000, max_draws)).cumsum(axis=1)
        accepted = drawn >= beta_th * num_groups - 1e-9
        last = np.where(accepted.any(axis=1), accepted.argmax(axis=1), max_draws - 1)
        return np.minimum(drawn[np.arange(len(drawn)), last], num_groups).mean()

    low, high = num_valid, 2 * num_valid
    while mean_valid(high) < num_valid:
        high *= 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if mean_valid(middle) >= num_valid else (middle + 1, high)
    return low


def simulate_step(
    groups: Groups,
    num_workers: int,
    num_groups: int,
    beta_th: float,
    rng: Generator,
    share: float | None = None,
    max_draws: int = 20,
    draw_size: int | None = None,
) -> dict[str, float]:
    """One step with a common pool: draws of `draw_size` (default: of a batch) until beta_th of a batch is valid.

    Returns:
        `draws`, `tokens` generated, `time` in decoding iterations, `valid` groups in the batch and `idle`, the share of
        the workers' time in which they wait for the slowest.
    """
    tokens = time = busy = valid = draws = 0
    while draws < max_draws and (draws == 0 or valid < beta_th * num_groups - 1e-9):
        drawn = groups.sample(draw_size or num_groups, rng, share)
        longest = [part.max(initial=0) for part in np.array_split(drawn.lengths.max(axis=1), num_workers)]
        tokens, time, busy = tokens + drawn.lengths.sum(), time + max(longest), busy + np.mean(longest)
        valid, draws = valid + drawn.valid.sum(), draws + 1
    return {
        "draws": draws,
        "tokens": int(tokens),
        "time": int(time),
        "valid": int(min(valid, num_groups)),
        "idle": 1 - busy / time,
    }


def sufficient_draw(num_valid: int, share: float, probability: float = 0.95) -> int:
    """The smallest draw that holds at least `num_valid` valid groups with this probability."""
    size = num_valid
    while binom.sf(num_valid - 1, size, share) < probability:
        size += 1
    return size


def simulate_own_step(
    groups: Groups, num_workers: int, num_groups: int, rng: Generator, share: float | None = None, max_draws: int = 20
) -> dict[str, float]:
    """One step in which every worker draws until its own share of the batch is valid, and then waits for the others."""
    sizes = np.array([len(part) for part in np.array_split(np.arange(num_groups), num_workers)])
    times, valid, tokens, draws = np.zeros(num_workers), np.zeros(num_workers, dtype=int), 0, 0
    while draws < max_draws and (valid < sizes).any():
        (working,) = np.nonzero(valid < sizes)
        drawn = groups.sample(int(sizes[working].sum()), rng, share)
        bounds = sizes[working].cumsum()[:-1]
        times[working] += [part.max() for part in np.split(drawn.lengths.max(axis=1), bounds)]
        valid[working] += [part.sum() for part in np.split(drawn.valid, bounds)]
        tokens, draws = tokens + drawn.lengths.sum(), draws + 1
    return {
        "draws": draws,
        "tokens": int(tokens),
        "time": int(times.max()),
        "valid": int(np.minimum(valid, sizes).sum()),
        "idle": 1 - times.mean() / times.max(),
    }


def simulate(
    groups: Groups, num_workers: int, per_worker: int, num_steps: int, seed: int, share: float | None = None
) -> pd.DataFrame:
    """Steps of the four ways at equal valid groups: `per_worker` on each worker; columns of `simulate_step`."""
    rng, target = np.random.default_rng(seed), num_workers * per_worker
    true_share = groups.valid.mean() if share is None else share
    batch, larger = matched_batch(target, true_share, 0.6, rng), sufficient_draw(target, true_share)
    rows = []
    for _ in range(num_steps):
        rows += [
            {"way": THRESHOLD, **simulate_step(groups, num_workers, batch, 0.6, rng, share)},
            {"way": ALL_VALID, **simulate_step(groups, num_workers, target, 1.0, rng, share)},
            {"way": LARGER, **simulate_step(groups, num_workers, target, 1.0, rng, share, draw_size=larger)},
            {"way": OWN, **simulate_own_step(groups, num_workers, target, rng, share)},
        ]
    return pd.DataFrame(rows).assign(workers=num_workers, share=share)


# Measured -------------------------------------------------------------------------------------------------------------


def record_groups(trainer: Any, found: list[Groups]) -> None:
    """Appends what every draw of a GPGTrainer sampled."""
    as_draw = trainer._as_draw

    def recorded(batch, num_generations):
        draw = as_draw(batch, num_generations)
        found.append(Groups(draw.lengths.view(-1, num_generations).numpy(), np.array(draw.valid)))
        return draw

    trainer._as_draw = recorded


def own_task_trainer(num_groups: int, num_steps: int, beta_th: float, max_draws: int, seed: int, folder: str) -> Any:
    """A GPGTrainer of the tiny base, paid for right answers, on prompts in an order of its own."""
    from gpg_repro.rewards import get_reward

    return paired.tiny_trainer(
        "gpg",
        paired.tiny_rows(2000, [paired.Case("all", 2000, 0, 0)], 1),
        folder,
        reward_funcs=get_reward("accuracy"),
        per_device_train_batch_size=num_groups * 8,
        max_steps=num_steps,
        shuffle_dataset=True,
        seed=seed,
        beta_th=beta_th,
        max_draws=max_draws,
    )


def measure(num_valid: int, num_steps: int) -> tuple[Groups, dict[str, pd.DataFrame]]:
    """Groups that were sampled, and per way one row per step: tokens, valid groups, draws, wall and CPU seconds."""
    found: list[Groups] = []
    with tempfile.TemporaryDirectory() as folder:
        calibration = own_task_trainer(2 * num_valid, 4, 0.0, 1, 2, f"{folder}/calibration")
        record_groups(calibration, found)
        paired.take_turns({"calibration": calibration})
        share = np.concatenate([groups.valid for groups in found]).mean()
        batch = matched_batch(num_valid, share, 0.6, np.random.default_rng(0))
        trainers = {
            THRESHOLD: own_task_trainer(batch, num_steps + 1, 0.6, 100, 0, f"{folder}/threshold"),
            ALL_VALID: own_task_trainer(num_valid, num_steps + 1, 1.0, 100, 1, f"{folder}/all"),
        }
        for trainer in trainers.values():
            record_groups(trainer, found)
        steps = paired.take_turns(trainers)
    frames = {
        way: pd.DataFrame(
            {
                "tokens": [step.logs["tokens/generated"] for step in run],
                "valid": [step.logs["batch/num_valid_groups"] for step in run],
                "draws": [step.logs["num_draws"] for step in run],
                "batch": batch if way == THRESHOLD else num_valid,
                "wall_s": [step.spent("step")[0] for step in run],
                "cpu_s": [step.spent("step")[1] for step in run],
            }
        )
        for way, run in ((way, run[1:]) for way, run in steps.items())  # the first step warms up
    }
    return Groups(*(np.concatenate([getattr(g, name) for g in found]) for name in ("lengths", "valid"))), frames


def ratio_of_sums(ours: pd.DataFrame, theirs: pd.DataFrame, column: str, seed: int = 0) -> list[float]:
    """`column` per valid group, ours over theirs, with a 95 % bootstrap interval over steps."""
    rng = np.random.default_rng(seed)

    def per_valid(frame: pd.DataFrame, chosen: np.ndarray) -> np.ndarray:
        return frame[column].to_numpy()[chosen].sum(axis=-1) / frame["valid"].to_numpy()[chosen].sum(axis=-1)

    everything = [np.arange(len(frame)) for frame in (ours, theirs)]
    again = [rng.integers(len(frame), size=(4000, len(frame))) for frame in (ours, theirs)]
    value = per_valid(ours, everything[0]) / per_valid(theirs, everything[1])
    low, high = np.quantile(per_valid(ours, again[0]) / per_valid(theirs, again[1]), [0.025, 0.975])
    return [round(float(x), 3) for x in (value, low, high)]


def simulated_ratios(frame: pd.DataFrame, key: str, way: str, column: str) -> pd.DataFrame:
    """As `ratio_of_sums`, threshold over `way`, for every value of `key`; columns value, low and high."""
    rows = {
        value: ratio_of_sums(steps[steps["way"] == THRESHOLD], steps[steps["way"] == way], column)
        for value, steps in frame.groupby(key)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])


# Figure ---------------------------------------------------------------------------------------------------------------


def draw(ratios: dict[str, list[float]], by_workers: pd.DataFrame, by_share: pd.DataFrame, facts: str) -> plt.Figure:
    """Measured ratios left, simulated step time by workers, simulated ratios by the share of valid groups."""
    use_style()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 6), layout="constrained")
    for place, (value, low, high) in enumerate(ratios.values()):
        left.bar(place, value, color=COLORS[THRESHOLD], width=0.6)
        left.errorbar(place, value, [[value - low], [high - value]], color="0.2", capsize=4)
        left.text(place, 0.03, f"{value:.2f}", ha="center", color="white", fontweight="bold")
    left.axhline(1, color=COLORS[ALL_VALID], lw=2)
    left.set(
        title="Measured (miniature), per valid group",
        ylabel=f"{THRESHOLD} / {ALL_VALID}",
        xticks=range(len(ratios)),
        xticklabels=list(ratios),
    )
    sns.lineplot(
        by_workers, x="workers", y="time", hue="way", palette=COLORS, errorbar=("pi", 95), marker="o", ax=middle
    )
    middle.set_xscale("log", base=2)
    middle.set(
        title="Simulated: sampling time (bands: 95 % of steps)",
        xlabel="workers",
        ylabel="decoding iterations",
        ylim=(0, None),
        xticks=WORKERS,
        xticklabels=WORKERS,
    )
    middle.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2, frameon=False, fontsize=9)
    for column, style in (("tokens", "--"), ("time", "-")):
        for way in (ALL_VALID, LARGER, OWN):
            points = simulated_ratios(by_share, "share", way, column)
            right.plot(points.index, points["value"], style, marker="o", color=COLORS[way], label=f"{column}, {way}")
            right.fill_between(points.index, points["low"], points["high"], color=COLORS[way], alpha=0.2)
    right.axhline(1, color="0.5", lw=1)
    right.set(
        title=f"Simulated: per valid group, {by_share['workers'].iloc[0]} workers",
        xlabel="share of valid groups",
        ylabel=f"{THRESHOLD} / the other way",
        ylim=(0, None),
    )
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2, frameon=False, fontsize=8, handlelength=3.5)
    figure.suptitle(facts, fontsize=11, color="0.35")
    return figure


def main() -> None:
    """Measure, simulate, draw."""
    from gpg_repro.paths import results

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--valid-groups", type=int, default=16, help="valid groups per step")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each way")
    parser.add_argument("--simulated-steps", type=int, default=200)
    parser.add_argument("--per-worker", type=int, default=2, help="simulated valid groups per worker")
    args = parser.parse_args()
    paired.quiet()
    groups, frames = measure(args.valid_groups, args.steps)
    ratios = {
        name: ratio_of_sums(frames[THRESHOLD], frames[ALL_VALID], column)
        for name, column in (("tokens", "tokens"), ("wall time", "wall_s"), ("CPU time", "cpu_s"))
    }
    by_workers = pd.concat(
        simulate(groups, workers, args.per_worker, args.simulated_steps, seed=workers) for workers in WORKERS
    )
    by_share = pd.concat(
        simulate(groups, 64, args.per_worker, args.simulated_steps, seed=i, share=share)
        for i, share in enumerate(SHARES)
    )
    share = groups.valid.mean()
    facts = (
        f"Tiny base, {len(groups.valid)} groups sampled, {share:.0%} valid, {groups.lengths.mean():.1f} tokens a "
        f"completion; {args.steps} measured, {args.simulated_steps} simulated steps of each way, 95 % intervals"
    )
    path = results() / "figures" / "tiny" / "resampling.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(ratios, by_workers, by_share, facts).savefig(path, dpi=110)
    print(json.dumps(line(groups, frames, ratios, by_workers, by_share, args.steps, path)))


def line(
    groups: Groups,
    frames: dict[str, pd.DataFrame],
    ratios: dict[str, list[float]],
    by_workers: pd.DataFrame,
    by_share: pd.DataFrame,
    num_steps: int,
    path: Path,
) -> dict[str, Any]:
    """The closing JSON line."""

    def simulated(frame: pd.DataFrame, key: str) -> dict[str, Any]:
        idle = frame.groupby([key, "way"])["idle"].mean().round(3)
        points = {
            (way, column): simulated_ratios(frame, key, way, column)
            for way in (ALL_VALID, LARGER, OWN)
            for column in ("time", "tokens")
        }
        return {
            f"{value:g}": {
                f"{column}, against {way}": list(found.loc[value]) for (way, column), found in points.items()
            }
            | {"idle": idle[value].to_dict()}
            for value in frame[key].unique()
        }

    measured: Sequence[str] = ("tokens", "valid", "draws", "batch", "wall_s", "cpu_s")
    return {
        "bench": "resampling",
        "ratio": ratios["tokens"][0],
        "better": "lower",
        "target": 1.0,
        "measured_ratios": ratios,
        "measured_means": {way: frame[list(measured)].mean().round(2).to_dict() for way, frame in frames.items()},
        "steps": num_steps,
        "groups_sampled": len(groups.valid),
        "valid_share": round(float(groups.valid.mean()), 3),
        "simulated_by_workers": simulated(by_workers, "workers"),
        "simulated_by_share_64_workers": simulated(by_share, "share"),
        "figure": path.name,
        **paired.machine(),
    }


if __name__ == "__main__":
    main()
