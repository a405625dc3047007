"""Checks of claims that are no comparison of scores: each runs the real code, in seconds, and returns one number.

*Exact expectations*: a world of three prompts with one-token answers, right with probability 0.2, 0.5 and 0.9. Every
batch of prompts and every set of answers is enumerated and weighed with its probability, so an expected gradient is a
sum, not an estimate. *Random batches* have ragged lengths, groups without a signal and float64 logits. *Simulated
steps*: prompts as above, with answers of eight tokens of which the first decides. *Inspections* ask the trainers
themselves (``tables.table_02``), on the smoke base.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from eval_harness.stats import Z95
from gpg_repro import dynamics, objective
from gpg_repro.batch import reached, select_groups
from gpg_repro.claims.rule import Finding, exact, interval
from gpg_repro.figures.base import published_range
from gpg_repro.published import published_table
from gpg_repro.tables.table_02 import COMPONENTS, inspected

TOLERANCE = 1e-10
"""Relative size below which two gradients in float64 are equal."""
_ACCURACIES = (0.2, 0.5, 0.9)
_BATCHES = 40
_REPEATS = 400
_GROUPS, _SIZE, _TOKENS, _THRESHOLD = 8, 8, 8, 0.6
"""Of a simulated step: groups, completions of a group, tokens of a completion, beta_th."""
_PROMPTS = 64
"""Groups of a step in the recipes of Table 1, if they ran on eight processes."""


# Exact expectations -------------------------------------------------------------------------------------------------

Estimate = Callable[[Tensor, Tensor, int], Tensor]
"""(logps [N, T], rewards [N], G) -> loss, for N = Q * G completions of equal length."""
Pay = Callable[[Tensor], Tensor]
"""[N] marks, 0 or 1 -> [N] rewards."""


def _as_marked(marks: Tensor) -> Tensor:
    return marks


def _gpg(f_norm: str = "none", with_alpha: bool = False) -> Estimate:
    def loss(logps: Tensor, rewards: Tensor, num_generations: int) -> Tensor:
        valid = objective.valid_groups(rewards, num_generations)
        alpha = objective.age_alpha(len(valid), int((~valid).sum())) if with_alpha else 1.0
        advantages = objective.group_advantages(rewards, num_generations, f_norm)
        return objective.gpg_loss(logps, advantages, torch.ones_like(logps), num_generations, alpha)

    return loss


def _raw_rewards(logps: Tensor, rewards: Tensor, num_generations: int) -> Tensor:
    return objective.gpg_loss(logps, rewards, torch.ones_like(logps), num_generations)


def _logps(odds: Tensor, tokens: Tensor) -> Tensor:
    """[N, T] log-probability of tokens 0 and 1 under [N, T] log-odds of a 1."""
    return torch.nn.functional.logsigmoid(torch.where(tokens > 0, odds, -odds))


def _expected_gradient(
    estimate: Estimate, num_prompts: int = 1, num_generations: int = 4, pay: Pay = _as_marked, signal: bool = False
) -> Tensor:
    """[3] gradient of minus the estimate's loss, averaged over all batches of the enumerated world.

    Args:
        signal: over those alone of which a group carries a signal.
    """
    odds = torch.special.logit(torch.tensor(_ACCURACIES, dtype=torch.float64)).requires_grad_(True)
    outcomes = [
        torch.tensor(marks, dtype=torch.float64)
        for marks in itertools.product((0, 1), repeat=num_prompts * num_generations)
    ]
    whole, total = torch.zeros_like(odds), 0.0
    for drawn in itertools.product(range(len(_ACCURACIES)), repeat=num_prompts):
        prompts = torch.tensor(drawn).repeat_interleave(num_generations)
        for marks in outcomes:
            rewards = pay(marks)
            if signal and not any(len(set(group.tolist())) > 1 for group in rewards.view(num_prompts, -1)):
                continue
            logps = _logps(odds[prompts], marks).unsqueeze(1)
            weight = float(logps.detach().sum().exp()) / len(_ACCURACIES) ** num_prompts
            whole = whole + weight * torch.autograd.grad(-estimate(logps, rewards, num_generations), odds)[0]
            total += weight
    return whole / total


def _true_gradient() -> Tensor:
    """[3] gradient of the expected reward, mean over prompts: p (1 - p) / 3 with respect to each log-odds."""
    p = torch.tensor(_ACCURACIES, dtype=torch.float64)
    return p * (1 - p) / len(p)


def _turn(a: Tensor, b: Tensor) -> float:
    """1 - cosine, from the parts, so that rounding stays at the square of the machine's."""
    return float((a / a.norm() - b / b.norm()).square().sum() / 2)


def direct_objective(rng: np.random.Generator) -> Finding:
    """1 - cosine of the expected plain GPG gradient with that of the expected reward."""
    expected, true = _expected_gradient(_gpg()), _true_gradient()
    detail = "1 − cosine of the expected gradient with that of the expected reward"
    return exact(_turn(expected, true), TOLERANCE, f"{detail}; {_length(expected, true)}", 0.0, 2.0)


def std_bias(rng: np.random.Generator) -> Finding:
    """The same with the group's standard deviation as divisor."""
    value = _turn(_expected_gradient(_gpg("group"), num_generations=8), _true_gradient())
    angle = math.degrees(math.acos(1 - value))
    detail = f"1 − cosine of the two expected gradients, {angle:.1f} degrees, groups of eight"
    return exact(value, TOLERANCE, detail, 0.0, 2.0)


def plain_mean_bias(rng: np.random.Generator, pay: Pay = _as_marked) -> Finding:
    """Relative distance of the expected plain gradient from that of a group that carries a signal.

    The paper's own quantity: what a batch is to estimate is the mean over such groups. Batches of two groups of three,
    of which one carries a signal at least.
    """
    return _from_valid_mean(False, pay)


def age_bias(rng: np.random.Generator, pay: Pay = _as_marked, with_alpha: bool = True) -> Finding:
    """The same with alpha = B / (B - M). A mean over a random number of groups need not be unbiased; this one is."""
    return _from_valid_mean(with_alpha, pay)


def _from_valid_mean(with_alpha: bool, pay: Pay) -> Finding:
    wanted = _expected_gradient(_gpg(), 1, 3, pay, signal=True)
    expected = _expected_gradient(_gpg(with_alpha=with_alpha), 2, 3, pay, signal=True)
    whole, true = _expected_gradient(_gpg(with_alpha=with_alpha), 2, 3, pay) * 3 / 2, _true_gradient()
    detail = (
        "relative distance of the expected gradient from that of a group with a signal; from the gradient of the "
        f"expected reward, which is another target, {_gap(whole, true):.0e} with G/(G−1) taken out "
        f"({_length(whole, true)}, 1 − cosine {_turn(whole, true):.0e})"
    )
    return exact(_gap(expected, wanted), TOLERANCE, detail, 0.0)


def _length(expected: Tensor, true: Tensor) -> str:
    return f"expected gradient {float(expected.norm() / true.norm()):.2f} times as long"


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# Identities on random batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Q groups of G completions of up to T tokens; ``logits`` [N, T] are log-odds of what was sampled."""

    rewards: Tensor
    mask: Tensor
    logits: Tensor
    num_generations: int

    @property
    def logps(self) -> Tensor:
        return torch.nn.functional.logsigmoid(self.logits)

    def rows(self, keep: Tensor) -> _Batch:
        """Some rows only."""
        return replace(self, rewards=self.rewards[keep], mask=self.mask[keep], logits=self.logits[keep])

    def loss(self, alpha: float = 1.0, normalization: str = "group", f_norm: str = "none") -> Tensor:
        advantages = objective.group_advantages(self.rewards, self.num_generations, f_norm)
        return objective.gpg_loss(self.logps, advantages, self.mask, self.num_generations, alpha, normalization)

    @property
    def valid(self) -> Tensor:
        """[N] whether the completion's group carries a signal, asked group by group."""
        groups = self.rewards.view(-1, self.num_generations)
        return torch.tensor([len(set(g.tolist())) > 1 for g in groups]).repeat_interleave(self.num_generations)


def _random_batches(rng: np.random.Generator, num_groups: int) -> Iterator[_Batch]:
    """Batches whose first group carries a signal and second none; equal rewards are often no binary fractions."""
    for _ in range(_BATCHES):
        size = int(rng.integers(2, 7))
        rewards = rng.choice([0.0, 0.1, 0.3, 1.0], size=(num_groups, size))
        same = rng.random(num_groups) < 0.4
        same[:2] = False, True
        rewards[same] = rng.choice([0.0, 0.1, 0.3, 1.0, 1.1], size=(int(same.sum()), 1))
        rewards[0, :2] = 0.0, 1.0
        lengths = rng.integers(1, 8, size=num_groups * size)
        yield _Batch(
            torch.from_numpy(rewards).flatten(),
            torch.from_numpy((np.arange(7) < lengths[:, None]).astype(float)),
            torch.from_numpy(rng.normal(size=(num_groups * size, 7))).requires_grad_(True),
            size,
        )


def _gradient(loss: Tensor, batch: _Batch) -> Tensor:
    return torch.autograd.grad(loss, batch.logits)[0]


def zero_gradient(rng: np.random.Generator) -> Finding:
    """Largest gradient that reaches a token of a group with equal rewards, over divisors and normalisers."""
    largest = 0.0
    for batch in _random_batches(rng, 6):
        for f_norm, normalization in itertools.product(("none", "group", "batch"), ("group", "sequence", "batch")):
            gradient = _gradient(batch.loss(1.0, normalization, f_norm), batch)
            largest = max(largest, float(gradient[~batch.valid].abs().max()))
    return exact(largest, 0.0, f"largest gradient of a token of such a group, {_BATCHES} random batches", 0.0)


def age_is_valid_mean(rng: np.random.Generator) -> Finding:
    """Relative distance of alpha times the mean over all groups from the mean over groups with a signal."""
    worst = 0.0
    for batch, normalization in itertools.product(_random_batches(rng, 6), ("group", "sequence")):
        wanted = _gradient(batch.rows(batch.valid).loss(1.0, normalization), batch)
        worst = max(worst, _gap(_gradient(batch.loss(_alpha(batch), normalization), batch), wanted))
    return exact(worst, TOLERANCE, f"largest relative distance of the two gradients, {_BATCHES} random batches", 0.0)


def age_over_processes(rng: np.random.Generator) -> Finding:
    """The same with the groups dealt at random to processes that average their own and know the global alpha only."""
    worst = 0.0
    for batch, num_processes in itertools.product(_random_batches(rng, 6), (2, 3, 6)):
        size = batch.num_generations
        shares = torch.from_numpy(rng.permutation(6)).view(num_processes, -1)
        own = [(share.unsqueeze(1) * size + torch.arange(size)).flatten() for share in shares]
        alpha = _alpha(batch)
        loss = torch.stack([batch.rows(rows).loss(alpha) for rows in own]).mean()
        worst = max(worst, _gap(_gradient(loss, batch), _gradient(batch.rows(batch.valid).loss(), batch)))
    detail = f"largest relative distance, {_BATCHES} random batches on 2, 3 and 6 processes"
    return exact(worst, TOLERANCE, detail, 0.0)


def _alpha(batch: _Batch) -> float:
    valid = objective.valid_groups(batch.rewards, batch.num_generations)
    return objective.age_alpha(len(valid), int((~valid).sum()))


# Variances, by simulation -------------------------------------------------------------------------------------------


def _simulate(
    rng: np.random.Generator, accuracies: np.ndarray, estimate: Estimate, beta_th: float = 0.0, max_draws: int = 20
) -> tuple[np.ndarray, float]:
    """Gradients of repeated steps, and the mean number of draws.

    Args:
        accuracies: the population of prompts. The first token of an answer decides; the others are a fair coin's.
        beta_th: draw until that share of the groups is valid.

    Returns:
        [repeats, prompts * T] gradients with respect to the log-odds of every token.
    """
    odds = torch.zeros(len(accuracies), _TOKENS, dtype=torch.float64)
    odds[:, 0] = torch.special.logit(torch.from_numpy(accuracies))
    odds.requires_grad_(True)
    chances, gradients, num_draws = odds.detach().sigmoid().numpy(), [], 0
    for _ in range(_REPEATS):
        draws: list[tuple[np.ndarray, np.ndarray]] = []
        flags: list[list[bool]] = []
        while not flags or (not reached(sum(map(sum, flags)), _GROUPS, beta_th) and len(flags) < max_draws):
            prompts = rng.integers(len(accuracies), size=_GROUPS)
            tokens = (rng.random((_GROUPS, _SIZE, _TOKENS)) < chances[prompts][:, None]).astype(float)
            draws.append((prompts, tokens))
            flags.append(objective.valid_groups(torch.from_numpy(tokens[..., 0]).flatten(), _SIZE).tolist())
        num_draws += len(flags)
        chosen = select_groups(flags).groups
        tokens = torch.from_numpy(np.concatenate([draws[draw][1][group] for draw, group in chosen]))
        asked = torch.tensor([draws[draw][0][group] for draw, group in chosen]).repeat_interleave(_SIZE)
        loss = estimate(_logps(odds[asked], tokens), tokens[:, 0], _SIZE)
        gradients.append(torch.autograd.grad(-loss, odds)[0].flatten().numpy())
    return np.array(gradients), num_draws / _REPEATS


def _variance_ratio(a: np.ndarray, b: np.ndarray, detail: str) -> Finding:
    """Ratio of the total variances of two sets of gradients; its interval is the delta method's, on the logarithm."""
    logs, errors = [], []
    for gradients in (a, b):
        squares = np.square(gradients - gradients.mean(axis=0)).sum(axis=1)
        logs.append(math.log(squares.mean()))
        errors.append(squares.std(ddof=1) / math.sqrt(len(squares)) / squares.mean())
    value, half = logs[0] - logs[1], Z95 * math.hypot(*errors)
    of_log = interval("repeats", value - half, value + half, None)
    found = replace(of_log, low=math.exp(of_log.low), high=math.exp(of_log.high))
    return Finding(math.exp(value), (found,), 1.0, None, f"ratio of variances; {detail}", 0.0)


def baseline_variance(rng: np.random.Generator) -> Finding:
    """Variance of the gradient with the group's mean subtracted, over that with raw rewards."""
    accuracies = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    (centred, _), (raw, _) = (_simulate(rng, accuracies, estimate) for estimate in (_gpg(), _raw_rewards))
    longer = _SIZE / (_SIZE - 1)  # is the expected gradient of raw rewards
    return _variance_ratio(centred * longer, raw, f"{_REPEATS} simulated steps each")


def threshold_variance(rng: np.random.Generator) -> Finding:
    """Variance of the corrected gradient with beta_th = 0.6 over that without, at a low share of valid groups."""
    accuracies, estimate = np.array([0.01, 0.02, 0.05, 0.95, 0.99]), _gpg(with_alpha=True)
    kept, draws = _simulate(rng, accuracies, estimate, _THRESHOLD)
    plain, _ = _simulate(rng, accuracies, estimate)
    return _variance_ratio(kept, plain, f"{_REPEATS} simulated steps each, {draws:.1f} times the completions")


def std_makes_up(rng: np.random.Generator, alphas: Sequence[float] | None = None) -> Finding:
    """Relative distance from the mean over groups with a signal: of the gradient divided by the group's standard
    deviation, minus that of the plain one. Negative: the divisor takes the gradient nearer, as the correction does.

    Args:
        alphas: expected B / (B - M) of the simulated batches, an interval each; None: the ends of the quoted range.
    """
    found, texts = [], []
    for alpha in published_range("Figure 2", "alpha") if alphas is None else alphas:
        far = np.array([_distances(batch) for batch in _simulated_batches(rng, 1 / alpha)])
        low, high = stats.t.interval(0.95, len(far) - 1, *_mean_and_error(far[:, 1] - far[:, 0]))
        found.append(interval("repeats", low, high, len(far) - 1))
        texts.append(f"{far[:, 0].mean():.2f} without the divisor and {far[:, 1].mean():.2f} with it at α = {alpha:g}")
    value = float(np.mean([(i.low + i.high) / 2 for i in found]))
    detail = f"relative distance from the mean over groups with a signal: {'; '.join(texts)}"
    return Finding(value, tuple(found), 0.0, None, f"{detail}; {_REPEATS} simulated batches of {_PROMPTS} groups each")


def _simulated_batches(rng: np.random.Generator, valid: float) -> Iterator[_Batch]:
    """Batches of 0/1 rewards from Beta-distributed accuracies, a group carrying a signal with this probability."""
    concentration = dynamics.fit_concentration(0.5, valid, _SIZE)
    shape = dynamics.Population(0.5, concentration, _SIZE).shape
    for _ in range(_REPEATS):
        rewards = (rng.random((_PROMPTS, _SIZE)) < rng.beta(*shape, size=(_PROMPTS, 1))).astype(float)
        yield _Batch(
            torch.from_numpy(rewards).flatten(),
            torch.ones(_PROMPTS * _SIZE, 1, dtype=torch.float64),
            torch.from_numpy(rng.normal(size=(_PROMPTS * _SIZE, 1))).requires_grad_(True),
            _SIZE,
        )


def _distances(batch: _Batch) -> tuple[float, float]:
    """From the mean over groups with a signal: of the plain gradient, and of that with the group's std as divisor."""
    wanted = _gradient(batch.rows(batch.valid).loss(), batch)
    plain, divided = (_gap(_gradient(batch.loss(f_norm=f_norm), batch), wanted) for f_norm in ("none", "group"))
    return plain, divided


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def full_resampling(
    rng: np.random.Generator, num_groups: int = _PROMPTS, alphas: Sequence[float] | None = None
) -> Finding:
    """Completions to sample for one variance of the gradient if every group is to carry a signal, over those if one
    draw is corrected. The variance of a mean over n groups is taken as one over n.

    Args:
        num_groups: of a step.
        alphas: B / (B - M), an interval each; None: the ends of the quoted range.
    """
    factors, draws = [], []
    for alpha in published_range("Figure 2", "alpha") if alphas is None else alphas:
        step = dynamics.resampling(1 / alpha, num_groups, beta_th=1.0, max_draws=1000)
        draws.append(step.expected_draws)
        factors.append(step.expected_draws / step.first_alpha)  # variances: 1 / B against E[1 / (B - M)]
    shown, sampled = (" and ".join(f"{value:.2f}" for value in values) for values in (factors, draws))
    detail = (
        f"completions for one variance, {shown} times; in one step {sampled} times; {num_groups} groups, closed form"
    )
    parts = tuple(exact(factor, 1.0).intervals[0] for factor in factors)
    return Finding(float(np.mean(factors)), parts, 1.0, None, detail, 0.0)


# Inspections of the trainers ----------------------------------------------------------------------------------------


def _component(name: str) -> Callable[[np.random.Generator], Finding]:
    def check(rng: np.random.Generator) -> Finding:
        has = getattr(inspected("GPG"), name)
        return exact(has, 0.0, "found in the trainer" if has else "not found in the trainer", 0.0, 1.0)

    check.__doc__ = f"1 if the GPG trainer has a {name.replace('_', ' ')}, else 0."
    return check


def grpo_components(rng: np.random.Generator) -> Finding:
    """Components in which the GRPO trainer differs from the printed row."""
    printed, found = published_table("Table 2").loc["GRPO"], inspected("GRPO")
    differing = [title for title, name in COMPONENTS.items() if bool(printed[title]) != getattr(found, name)]
    return exact(len(differing), 0.0, f"differs in: {', '.join(differing) or 'nothing'}", 0.0)


def fewest_components(rng: np.random.Generator) -> Finding:
    """Components of GPG minus those of the rival that has fewest."""
    num = {m: sum(getattr(inspected(m), n) for n in COMPONENTS.values()) for m in ("GPG", "GRPO", "Dr. GRPO", "DAPO")}
    return exact(num.pop("GPG") - min(num.values()), 0.0, "; ".join(f"{m} {count}" for m, count in num.items()))


def cost_of_a_step(rng: np.random.Generator) -> Finding:
    """The larger of GPG's forward passes over GRPO's and parameters held over GRPO's, in one step."""
    own, other = inspected("GPG"), inspected("GRPO")
    passes = [i.passes_with_gradient + i.passes_without_gradient for i in (own, other)]
    held = [(i.policy_parameters + i.other_parameters) / i.policy_parameters for i in (own, other)]
    detail = (
        f"forward passes per completion {passes[0]:.2f} against {passes[1]:.2f} ({own.share_valid:.0%} of the groups "
        f"carry a signal), parameters {held[0]:.0f} against {held[1]:.0f} times the policy's; one step, smoke base"
    )
    return exact(max(passes[0] / passes[1], held[0] / held[1]), 1.0, detail, 0.0)


@dataclass(frozen=True)
class NamedCheck:
    """A check and where its word counts."""

    function: Callable[[np.random.Generator], Finding]
    place: Literal["computed", "miniature"] = "computed"
    """``computed``: true at any size; ``miniature``: the number is that of a small model or of a simulated world."""
    inspects: bool = False
    """It builds trainers, which takes most of the time."""


CHECKS = {
    "direct_objective": NamedCheck(direct_objective),
    "std_bias": NamedCheck(std_bias),
    "plain_mean_bias": NamedCheck(plain_mean_bias),
    "age_bias": NamedCheck(age_bias),
    "zero_gradient": NamedCheck(zero_gradient),
    "age_is_valid_mean": NamedCheck(age_is_valid_mean),
    "age_over_processes": NamedCheck(age_over_processes),
    "std_makes_up": NamedCheck(std_makes_up, "miniature"),
    "baseline_variance": NamedCheck(baseline_variance, "miniature"),
    "threshold_variance": NamedCheck(threshold_variance, "miniature"),
    "full_resampling": NamedCheck(full_resampling),
    **{name: NamedCheck(_component(name), inspects=True) for name in COMPONENTS.values()},
    "grpo_components": NamedCheck(grpo_components, inspects=True),
    "fewest_components": NamedCheck(fewest_components, inspects=True),
    "cost_of_a_step": NamedCheck(cost_of_a_step, "miniature", inspects=True),
}
