"""What alpha, the share of valid groups and the spread of rewards do: closed forms, simulations, and AdamW.

A world with one number per prompt: the model answers a prompt right with probability p, its *accuracy*, and p is
Beta-distributed over prompts. G completions of a prompt are right independently, rewards are 0 or 1. Then the number k
of right ones among G is beta-binomial, and everything the paper plots in Figure 2 follows from its distribution.

Symbols: Q prompts per draw, G completions per prompt, k right ones in a group, B = Q groups in a step's batch, M of
them invalid (k = 0 or k = G), alpha = B / (B - M). Column names of simulated runs are those of a real run's steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from eval_harness.records import steps_frame

if TYPE_CHECKING:
    from gpg_repro.tables.base import RowRuns

STD_EPS = 1e-4  # as in gpg_repro.objective


@dataclass(frozen=True)
class Population:
    """Prompts whose accuracies are Beta-distributed, each answered G times.

    Attributes:
        mean: mean accuracy over prompts, in (0, 1).
        concentration: a + b of the Beta distribution. Small: most prompts are all right or all wrong; large: all
            prompts are alike.
        num_generations: G.

    Raises:
        ValueError: a value outside its range.
    """

    mean: float
    concentration: float
    num_generations: int

    def __post_init__(self):
        if not 0 < self.mean < 1 or not self.concentration > 0 or self.num_generations < 2:
            raise ValueError(
                f"{self}: expected a mean accuracy strictly between 0 and 1, a positive concentration and at least 2 "
                "completions per prompt."
            )

    @property
    def shape(self) -> tuple[float, float]:
        """a and b of the Beta distribution."""
        return self.mean * self.concentration, (1 - self.mean) * self.concentration

    @cached_property
    def num_right(self) -> np.ndarray:
        """[G + 1] probability of k = 0 … G right completions in a group."""
        return stats.betabinom.pmf(np.arange(self.num_generations + 1), self.num_generations, *self.shape)

    @property
    def hard(self) -> float:
        """Probability that all completions of a group are wrong."""
        return float(self.num_right[0])

    @property
    def easy(self) -> float:
        """Probability that all are right."""
        return float(self.num_right[-1])

    @property
    def valid(self) -> float:
        """Probability that a group carries a signal; its inverse is alpha of an infinite batch."""
        return float(self.num_right[1:-1].sum())

    @property
    def reward_std(self) -> float:
        """Expected within-group standard deviation (ddof 1), identical groups included: the paper's Figure 2, right."""
        return float(self.num_right @ std_of_k(self.num_generations))

    @property
    def std_of_valid(self) -> float:
        """The same over valid groups only."""
        return self.reward_std / self.valid

    def mean_advantage(self, f_norm: str = "none") -> float:
        """Expected |A| of a completion (Eq. 6), identical groups included."""
        return float(self.num_right @ advantage_of_k(self.num_generations, f_norm, self.mean))


def std_of_k(num_generations: int) -> np.ndarray:
    """[G + 1] sample standard deviation (ddof 1) of k ones among G: sqrt(k (G - k) / (G (G - 1)))."""
    k = np.arange(num_generations + 1)
    return np.sqrt(k * (num_generations - k) / (num_generations * (num_generations - 1)))


def advantage_of_k(num_generations: int, f_norm: str = "none", mean: float = 0.5) -> np.ndarray:
    """[G + 1] mean |A| over the completions of a group with k ones: 2 k (G - k) / G^2 over F_norm.

    Args:
        f_norm: `"none"`, `"group"` or `"batch"`.
        mean: mean reward of the batch, of which `"batch"` needs the standard deviation sqrt(mean (1 - mean)).

    Raises:
        ValueError: unknown `f_norm`.
    """
    if f_norm not in ("none", "group", "batch"):
        raise ValueError(f"f_norm={f_norm!r} is unknown: expected one of 'none', 'group', 'batch'.")
    k = np.arange(num_generations + 1)
    centred = 2 * k * (num_generations - k) / num_generations**2
    if f_norm == "group":
        return centred / (std_of_k(num_generations) + STD_EPS)
    return centred / (np.sqrt(mean * (1 - mean)) + STD_EPS) if f_norm == "batch" else centred


def fit_concentration(mean: float, valid: float, num_generations: int) -> float:
    """The concentration at which groups of a population of this mean accuracy are valid with this probability.

    Returns:
        A value in [0.01, 1000], at an end of the range if the share cannot be had inside it.
    """

    def excess(log_concentration: float) -> float:
        return Population(mean, np.exp(log_concentration), num_generations).valid - valid

    low, high = np.log(0.01), np.log(1000.0)
    if excess(low) >= 0:
        return 0.01
    return 1000.0 if excess(high) <= 0 else float(np.exp(optimize.brentq(excess, low, high)))


def fit_gain(mean: float, concentration: float, target: float) -> float:
    """What has to be added to the log-odds of every prompt for the mean accuracy to become `target`."""
    accuracies = stats.beta.ppf((np.arange(2000) + 0.5) / 2000, *Population(mean, concentration, 2).shape)
    odds = special.logit(np.clip(accuracies, 1e-12, 1 - 1e-12))
    return float(optimize.brentq(lambda gain: special.expit(odds + gain).mean() - target, -60, 60))


# Resampling by beta_th ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resampling:
    """What one step costs and holds when draws go on until beta_th * Q groups are valid. Exact, no simulation.

    Attributes:
        num_draws: [max_draws] probability of 1, 2, … draws.
        num_used: [Q + 1] probability of 0, 1, … Q valid groups in the batch.
        expected_dropped: expected valid groups drawn and not trained on.
        first: [Q + 1] probability of 0, 1, … valid groups in the first draw.
    """

    num_draws: np.ndarray
    num_used: np.ndarray
    expected_dropped: float
    first: np.ndarray

    @property
    def expected_draws(self) -> float:
        """Mean number of draws per step; times Q * G, the completions generated."""
        return float(self.num_draws @ np.arange(1, len(self.num_draws) + 1))

    @property
    def alpha(self) -> float:
        """Mean of B / (B - M) over steps whose batch has a valid group; NaN if none ever has."""
        return _mean_alpha(self.num_used)

    @property
    def first_alpha(self) -> float:
        """The same for the first draw alone, i.e. without resampling."""
        return _mean_alpha(self.first)


def _mean_alpha(num_valid: np.ndarray) -> float:
    num_groups = len(num_valid) - 1
    with_signal = num_valid[1:].sum()
    return float(num_valid[1:] @ (num_groups / np.arange(1, num_groups + 1)) / with_signal) if with_signal else np.nan


def resampling(valid: float, num_prompts: int, beta_th: float = 0.0, max_draws: int = 20) -> Resampling:
    """Distribution of draws and of valid groups in the batch, each group valid independently with probability `valid`.

    Args:
        valid: probability that a group is valid.
        num_prompts: Q.
        beta_th: least share of valid groups; 0 is one draw.
        max_draws: then the batch is taken as it is.

    Raises:
        ValueError: a value outside its range.
    """
    if not (0 <= valid <= 1 and num_prompts >= 1 and 0 <= beta_th <= 1 and max_draws >= 1):
        raise ValueError(
            f"valid={valid}, num_prompts={num_prompts}, beta_th={beta_th}, max_draws={max_draws}: expected shares in "
            "[0, 1] and at least one prompt and one draw."
        )
    counts = np.arange(num_prompts + 1)
    first = stats.binom.pmf(counts, num_prompts, valid)
    # `undecided[c]`: probability that the loop still runs with c valid groups in the pool. It stops at `needed`.
    reached = counts / num_prompts >= beta_th
    needed = int(np.argmax(reached))
    undecided, num_draws, num_used, dropped = np.eye(1, num_prompts + 1)[0], np.zeros(max_draws), 0.0, 0.0
    for draw in range(max_draws):
        pool = np.convolve(undecided, first)  # [2 Q + 1]: valid groups so far, at most needed - 1 before this draw
        stops = np.arange(len(pool)) >= needed if draw < max_draws - 1 else np.ones(len(pool), bool)
        ended = np.where(stops, pool, 0.0)
        num_draws[draw] = ended.sum()
        used = ended[: num_prompts + 1].copy()
        used[-1] += ended[num_prompts + 1 :].sum()
        num_used = num_used + used
        dropped += float(ended[num_prompts + 1 :] @ np.arange(1, num_prompts + 1))
        undecided = (pool - ended)[: num_prompts + 1]
    return Resampling(num_draws, num_used, dropped, first)


def summary(
    population: Population, num_prompts: int, beta_th: float = 0.0, max_draws: int = 20, f_norm: str = "none"
) -> pd.Series:
    """The numbers behind one setting of the sliders, by name; all are expectations in closed form."""
    step = resampling(population.valid, num_prompts, beta_th, max_draws)
    return pd.Series(
        {
            "groups all right (easy)": population.easy,
            "groups all wrong (hard)": population.hard,
            "groups with a signal": population.valid,
            "α of one draw": step.first_alpha,
            "α of the batch trained on": step.alpha,
            "draws per step": step.expected_draws,
            "completions generated per step": step.expected_draws * num_prompts * population.num_generations,
            "valid groups dropped per step": step.expected_dropped,
            "share of steps that end below the threshold": _below(step, beta_th),
            "reward_std": population.reward_std,
            "reward_std / share of valid groups": population.std_of_valid,
            "mean |A| of a completion": population.mean_advantage(f_norm),
        }
    )


def _below(step: Resampling, beta_th: float) -> float:
    num_groups = len(step.num_used) - 1
    return float(step.num_used[np.arange(num_groups + 1) / num_groups < beta_th].sum())


# Simulated runs -----------------------------------------------------------------------------------------------------


def simulate_run(
    rng: np.random.Generator,
    mean: float,
    concentration: float,
    *,
    num_generations: int = 8,
    num_prompts: int = 16,
    beta_th: float = 0.0,
    max_draws: int = 20,
    num_steps: int = 100,
    gain: float = 0.0,
) -> pd.DataFrame:
    """A run of `num_steps` steps over an endless stream of prompts whose log-odds of a right answer rise by `gain`.

    Args:
        rng: all randomness comes from it.
        mean, concentration: the Beta distribution of accuracies at the first step.
        gain: what training adds to the log-odds of every prompt by the last step, evenly over the steps.

    Returns:
        One row per step with the columns of a real run's steps: step, reward, reward_std, alpha, inverse_alpha,
        frac_easy, frac_hard, frac_identical (first draw); batch/alpha, batch/inverse_alpha, num_draws,
        num_dropped_groups, prompts_consumed. alpha is 0.0 where no group is valid.
    """
    shape = Population(mean, concentration, num_generations).shape
    stds = std_of_k(num_generations)
    rows, consumed = [], 0
    for step in range(1, num_steps + 1):
        shift = gain * (step - 1) / max(num_steps - 1, 1)
        draws: list[np.ndarray] = []
        num_valid = 0
        while not draws or (num_valid / num_prompts < beta_th and len(draws) < max_draws):
            accuracy = special.expit(special.logit(rng.beta(*shape, size=num_prompts)) + shift)
            draws.append(rng.binomial(num_generations, accuracy))
            num_valid += int(((draws[-1] > 0) & (draws[-1] < num_generations)).sum())
        first = draws[0]
        easy, hard = float((first == num_generations).mean()), float((first == 0).mean())
        consumed += len(draws) * num_prompts
        used, valid = min(num_valid, num_prompts), round((1 - easy - hard) * num_prompts)
        rows.append(
            {
                "step": step,
                "reward": float(first.mean() / num_generations),
                "reward_std": float(stds[first].mean()),
                "alpha": num_prompts / valid if valid else 0.0,
                "inverse_alpha": valid / num_prompts,
                "frac_easy": easy,
                "frac_hard": hard,
                "frac_identical": easy + hard,
                "batch/alpha": num_prompts / used if used else 0.0,
                "batch/inverse_alpha": used / num_prompts,
                "num_draws": len(draws),
                "num_dropped_groups": num_valid - used,
                "prompts_consumed": consumed,
            }
        )
    return pd.DataFrame(rows)


def predicted_run(steps: pd.DataFrame, num_generations: int, window: int = 10) -> tuple[pd.DataFrame, float]:
    """What the Beta world says about a real run, from its reward curve and one number fitted to its first steps.

    The concentration is fitted to the first `window` steps; afterwards only the moving average of the reward goes in.

    Args:
        steps: a real run's steps (columns step, reward, inverse_alpha).
        num_generations: G of the run.
        window: steps of the centred moving average, and of the fit.

    Returns:
        Frame with columns step, inverse_alpha, reward_std, frac_easy, frac_hard; and the fitted concentration.
    """
    head = steps.iloc[:window]
    concentration = fit_concentration(_inside(head["reward"].mean()), head["inverse_alpha"].mean(), num_generations)
    smooth = steps["reward"].rolling(window, min_periods=1, center=True).mean()
    worlds = [Population(_inside(mean), concentration, num_generations) for mean in smooth]
    frame = pd.DataFrame(
        {
            "step": steps["step"].to_numpy(),
            "inverse_alpha": [world.valid for world in worlds],
            "reward_std": [world.reward_std for world in worlds],
            "frac_easy": [world.easy for world in worlds],
            "frac_hard": [world.hard for world in worlds],
        }
    )
    return frame, concentration


def runs_text(
    real: Sequence[pd.DataFrame],
    predicted: Sequence[pd.DataFrame],
    quoted: Mapping[str, tuple[float, float]],
    last: int = 10,
) -> str:
    """What real runs say beside the Beta world, computed: consistency of the two metrics, and whether prompts drift.

    Args:
        real: steps of each seed.
        predicted: `predicted_run` of each.
        quoted: ranges the paper's text quotes for `alpha` and `reward_std`.
        last: steps at the end that are compared.
    """
    pooled = pd.concat(real)
    valid = pooled[pooled["inverse_alpha"] > 0]
    counts = f"{len(pooled)} steps of {len(real)} training seed{'s' if len(real) > 1 else ''}"
    if not len(valid):
        return f"None of {counts} had a group with a signal."
    ratios = valid["reward_std"] / valid["inverse_alpha"]
    inside = {name: valid[name].between(*bounds).mean() for name, bounds in quoted.items()}
    text = (
        f"Over {counts}, reward_std / share of valid groups was {ratios.mean():.3f} on average (middle 95 % of steps "
        f"{ratios.quantile(0.025):.3f} to {ratios.quantile(0.975):.3f}). α lay in the paper's "
        f"{quoted['alpha'][0]:g} to {quoted['alpha'][1]:g} on {100 * inside['alpha']:.0f} % of the steps with a "
        f"signal, reward_std in {quoted['reward_std'][0]:g} to {quoted['reward_std'][1]:g} on "
        f"{100 * inside['reward_std']:.0f} %."
    )
    column = "inverse_alpha"
    ends = np.array(
        [(r[column].tail(last).mean(), p[column].tail(last).mean()) for r, p in zip(real, predicted, strict=True)]
    )
    gaps = ends[:, 0] - ends[:, 1]
    text += (
        f"\n\nIn the last {last} steps {100 * ends[:, 0].mean():.0f} % of the groups were valid, where the Beta world, "
        f"fitted to the first steps and given the reward curve, expects {100 * ends[:, 1].mean():.0f} %"
    )
    if len(gaps) < 3:
        return text + f"; {len(gaps)} training seed{'s are' if len(gaps) > 1 else ' is'} too few for an interval."
    half = float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    low, high = 100 * (gaps.mean() - half), 100 * (gaps.mean() + half)
    verdict = (
        "training drives prompts apart: more of them are answered always or never than a common rise of the log-odds "
        "leaves behind"
        if high < 0
        else "training brings prompts together"
        if low > 0
        else "the two cannot be told apart"
    )
    return text + (
        f": a difference of {100 * gaps.mean():+.1f} points, 95 % interval over {len(gaps)} seeds [{low:+.1f}, "
        f"{high:+.1f}]; {verdict}."
    )


def _inside(mean: float) -> float:
    return float(np.clip(mean, 1e-3, 1 - 1e-3))


# Real runs ----------------------------------------------------------------------------------------------------------


def real_runs(
    recipe: str, scale: str, seeds: int = 0, records_scale: str = "tiny", reference: Path | None = None
) -> tuple[dict[int, pd.DataFrame], str]:
    """Steps of a recipe's runs by training seed, and what they are, with counts.

    Args:
        recipe: name of the recipe.
        scale: scale to train at.
        seeds: 0 reads the committed records of `records_scale` and trains nothing; n trains n seeds here, at `scale`.
        reference: folder of the committed records.

    Returns:
        Seed -> steps, empty if there are no committed records; and a caption.
    """
    from gpg_repro.tables.runs import REFERENCE, recipe_trainings

    if seeds:
        folders, origin = recipe_trainings(recipe, scale, seeds=seeds)
    else:
        found = (reference or REFERENCE).joinpath(records_scale, recipe).glob("seed*/training/steps.jsonl")
        folders = {int(path.parents[1].name.removeprefix("seed")): path.parent for path in sorted(found)}
        scale, origin = records_scale, "committed records"
    frames = {seed: steps_frame(folder) for seed, folder in sorted(folders.items())}
    if not frames:
        return {}, f"No committed records of {recipe} at scale {scale}; set SEEDS to train some here."
    steps = "/".join(str(n) for n in sorted({len(frame) for frame in frames.values()}))
    kind = "Measured here" if scale == "paper" else f"Miniature ({scale}, not comparable with the paper's runs)"
    seeds_text = f"{len(frames)} training seed{'s' if len(frames) > 1 else ''}"
    return frames, f"{kind}: {recipe}, {origin}, {seeds_text} of {steps} steps"


def control_curves(runs: Sequence[RowRuns], scale: str) -> tuple[dict[str, list[pd.DataFrame]], dict[str, float], str]:
    """Steps and gradient limit of the control's trained rows, by row key, and a caption with the counts."""
    from eval_harness.records import read_run

    trained = [entry for entry in runs if entry.trainings]
    curves = {entry.row.key: [steps_frame(folder) for folder in entry.trainings.values()] for entry in trained}
    limits = {
        entry.row.key: float(
            read_run(next(iter(entry.trainings.values()))).recipe["setup"]["training"]["max_grad_norm"]
        )
        for entry in trained
    }
    seeds = "/".join(str(n) for n in sorted({len(frames) for frames in curves.values()}))
    steps = "/".join(str(n) for n in sorted({len(frame) for frames in curves.values() for frame in frames}))
    return curves, limits, f"Miniature ({scale}): {len(curves)} rows, {seeds} training seeds each, {steps} steps"


# What alpha does under AdamW ----------------------------------------------------------------------------------------


def adamw_path(
    gradients: np.ndarray, alphas: Sequence[float], max_grad_norm: float | None = None, learning_rate: float = 1e-2
) -> np.ndarray:
    """[T + 1, d] points that torch's own AdamW visits from the origin when step t has the gradient alpha_t * g_t.

    Args:
        gradients: [T, d], given: they do not depend on where the path leads.
        alphas: [T] factors.
        max_grad_norm: clip the norm of alpha_t * g_t to this; None: no clipping.
        learning_rate: of AdamW; betas 0.9 and 0.999, eps 1e-8, no weight decay.
    """
    import torch

    point = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([point], learning_rate, weight_decay=0.0)
    path = [point.detach().numpy().copy()]
    for gradient, alpha in zip(gradients, alphas, strict=True):
        point.grad = alpha * torch.from_numpy(gradient)
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([point], max_grad_norm)
        optimizer.step()
        path.append(point.detach().numpy().copy())
    return np.array(path)


def adamw_study(
    alphas: Sequence[float], seed: int = 0, num_parameters: int = 50, num_repeats: int = 20
) -> pd.DataFrame:
    """How far alpha moves the end of an AdamW path, for made-up gradients: a common direction plus noise.

    Three factors, `alphas` as given, their mean held fixed, and 1, each without clipping, with a limit that acts on
    every step and with one that acts on about half of the steps taken with `alphas`.

    Args:
        alphas: [T] factors of a run.
        seed: of the gradients; repeat i uses seed + i.
        num_parameters: d.
        num_repeats: independent sets of gradients.

    Returns:
        One row per clipping and factor: clipping ("off", "some steps", "every step"), factor ("1", "constant",
        "varying"), share_clipped, distance (mean over repeats of |end - end with factor 1| / |end with factor 1|),
        low and high (95 % interval of that mean, Student's t), num_repeats.
    """
    alphas = np.asarray(alphas, dtype=float)
    factors = {"1": np.ones_like(alphas), "constant": np.full_like(alphas, alphas.mean()), "varying": alphas}
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for repeat in range(num_repeats):
        rng = np.random.default_rng(seed + repeat)
        gradients = rng.normal(size=num_parameters) * 0.3 + rng.normal(size=(len(alphas), num_parameters))
        norms = np.linalg.norm(gradients, axis=1)
        limits = {"off": None, "some steps": float(np.median(alphas * norms)), "every step": 0.5 * float(norms.min())}
        for clipping, limit in limits.items():
            ends = {name: adamw_path(gradients, factor, limit)[-1] for name, factor in factors.items()}
            for name, factor in factors.items():
                clipped = 0.0 if limit is None else float((factor * norms > limit).mean())
                distance = float(np.linalg.norm(ends[name] - ends["1"]) / np.linalg.norm(ends["1"]))
                lines.setdefault((clipping, name), []).append((clipped, distance))
    rows = []
    for (clipping, name), values in lines.items():
        clipped, distances = np.array(values).T
        half = stats.t.ppf(0.975, num_repeats - 1) * distances.std(ddof=1) / np.sqrt(num_repeats)
        rows.append(
            {
                "clipping": clipping,
                "factor": name,
                "share_clipped": clipped.mean(),
                "distance": distances.mean(),
                "low": max(0.0, distances.mean() - half),
                "high": distances.mean() + half,
                "num_repeats": num_repeats,
            }
        )
    return pd.DataFrame(rows)


def adamw_text(study: pd.DataFrame) -> str:
    """The study in words, computed from it."""
    lines = study.set_index(["clipping", "factor"])

    def of(clipping: str, factor: str) -> str:
        line = lines.loc[(clipping, factor)]
        if line["distance"] < 1e-6:
            return f"{line['distance']:.0e} of the way, which is rounding"
        return f"{100 * line['distance']:.1f} % of the way [{100 * line['low']:.1f}, {100 * line['high']:.1f}]"

    share = 100 * lines.loc[("some steps", "varying"), "share_clipped"]
    return (
        f"Without clipping a constant α moves the end by {of('off', 'constant')}: AdamW divides it out. An α that "
        f"varies from batch to batch moves it by {of('off', 'varying')}: it changes what each batch weighs in the "
        f"averages. Clipped on every step, the varying α moves the end by {of('every step', 'varying')}: all gradients "
        f"have the same length anyway. Clipped on some steps ({share:.0f} % of those with the varying α), even a "
        f"constant α moves it by {of('some steps', 'constant')}, because it decides which steps are clipped; the "
        f"varying one by {of('some steps', 'varying')}. ({int(study['num_repeats'].iloc[0])} repeats; made-up "
        "gradients that do not depend on the path. Where the steps are equal, so are the points, and with them the "
        "gradients of a real run.)"
    )
