"""Methods beside GPG in the notation of `gpg_repro.objective`: what each makes of rewards, as a function.

Shapes are those of `objective`: N completions in groups of G adjacent rows, T tokens. GRPO, Dr. GRPO, DAPO and PPO's
clip term are in `objective` itself. docs/neighbours.md has all of them side by side, with what each drops and needs in
memory, and the switch under which it is GPG.

GVPO, REBEL, CoPG and APA are regressions on the log-ratio of a whole completion, log pi - log pi_sampled. At the policy
that sampled it is zero, and each has a gradient of the form `-sum_i w_i grad log pi(o_i)`.
"""

import torch
from torch import Tensor

from gpg_repro.objective import group_advantages, valid_groups

# Advantages: [N] rewards to [N] ---------------------------------------------------------------------------------------


def remax_advantages(rewards: Tensor, greedy_rewards: Tensor, num_generations: int) -> Tensor:
    """ReMax (arXiv 2310.10505): r minus the reward of the prompt's greedy completion.

    Args:
        rewards: [N].
        greedy_rewards: [B], of one more completion per prompt, decoded greedily and not trained on.
        num_generations: G.

    Raises:
        ValueError: not one greedy reward per group.
    """
    if greedy_rewards.numel() * num_generations != rewards.numel():
        raise ValueError(
            f"greedy_rewards of shape {list(greedy_rewards.shape)} for rewards of shape {list(rewards.shape)} with "
            f"num_generations={num_generations}: expected one per group."
        )
    return rewards - greedy_rewards.repeat_interleave(num_generations)


def rloo_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """RLOO (arXiv 2402.14740): r minus the mean of the other completions, which is G / (G - 1) times GPG's (Eq. 6).

    Raises:
        ValueError: a group of one has no others.
    """
    if num_generations < 2:
        raise ValueError(f"num_generations={num_generations}: expected at least 2, the baseline is the others' mean.")
    groups = rewards.view(-1, num_generations)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (num_generations - 1)
    return (groups - others).flatten()


def raft_weights(rewards: Tensor, right_from: float = 1.0) -> Tensor:
    """RAFT with 0/1 rewards (arXiv 2304.06767; in this form 2504.11343): 1 for a right completion, 0 for any other.

    As advantages of `gpg_loss` they give likelihood training on the right completions. All-wrong groups drop out,
    all-right ones do not.
    """
    return (rewards >= right_from).to(rewards.dtype)


def reinforce_rej_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """Reinforce-Rej (arXiv 2504.11343): the reward itself, 0 throughout a group that is all right or all wrong.

    The mean is over what is kept: multiply by `age_alpha`, as the groups without a signal are those of Eq. 7.
    """
    valid = valid_groups(rewards, num_generations).repeat_interleave(num_generations)
    return torch.where(valid, rewards, 0.0)


def agpo_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """AGPO (arXiv 2503.15952, first version): +1 throughout an all-right group, -1 throughout an all-wrong one, else
    GRPO's. Rewards are 0 or 1; its standard deviation has ddof 0, GRPO's here ddof 1."""
    groups = rewards.view(-1, num_generations)
    std = groups.std(dim=1, correction=0, keepdim=True)
    centred = group_advantages(rewards, num_generations).view_as(groups)
    same = ~valid_groups(rewards, num_generations).unsqueeze(1)
    return torch.where(same, 2 * groups - 1, centred / std.masked_fill(same, 1.0)).flatten()


# What others make of alpha --------------------------------------------------------------------------------------------


def verl_alpha(rewards: Tensor) -> float:
    """alpha of verl's estimator `gpg`: completions / completions with a reward other than 0 (at least 1 of them).

    It counts wrong answers where Eq. 7 counts groups without a signal.
    """
    return rewards.numel() / max(1, int(rewards.ne(0).sum()))


def capped_alpha(num_groups: int, num_invalid: int, cap: float = 20.0) -> float:
    """alpha of released generation R1: 1 / max(1 - M / B, 0.05)."""
    return 1 / max(1 - num_invalid / num_groups, 1 / cap)


# Regressions on the log-ratio of whole completions --------------------------------------------------------------------


def gvpo_loss(rewards: Tensor, log_ratios: Tensor, num_generations: int, beta: float) -> Tensor:
    """GVPO (arXiv 2504.19599): half the mean squared distance of centred implicit rewards from centred rewards.

    An implicit reward is beta (log pi - log pi_ref) of the completion; the reference is whatever sampled. Its gradient
    at log_ratios = 0 is -beta / N sum (r_i - group mean) grad log pi(o_i): GPG's for completions of one length.

    Args:
        rewards, log_ratios: [N].
        num_generations: G.
        beta: weight of the divergence in the problem it solves.
    """
    return (beta * _centred(log_ratios, num_generations) - _centred(rewards, num_generations)).square().mean() / 2


def rebel_loss(rewards: Tensor, log_ratios: Tensor, num_generations: int, eta: float) -> Tensor:
    """REBEL (arXiv 2404.16767) over all pairs of a group: mean of ((lr_i - lr_j) / eta - (r_i - r_j))^2, i != j.

    The paper has one pair per prompt. Over all pairs it is 4 G / (G - 1) times GVPO's loss with beta = 1 / eta.

    Args:
        rewards, log_ratios: [N]; log-ratios to the policy of the last iteration.
        num_generations: G.
        eta: step size.
    """
    gaps = (_pairs(log_ratios, num_generations) / eta - _pairs(rewards, num_generations)).square()
    return gaps.sum() / (rewards.numel() * (num_generations - 1))


def copg_weights(rewards: Tensor, log_ratios: Tensor, num_generations: int, beta: float) -> Tensor:
    """CoPG (arXiv 2406.19185) over all pairs of a group: weights w of its gradient -sum_i w_i grad log pi(o_i) / N.

    Each completion has the mean of the others' r - beta * log_ratio as baseline: with beta = 0 it is RLOO.

    Args:
        rewards, log_ratios: [N]; log-ratios to the reference model, without gradient.
    """
    return rloo_advantages(rewards - beta * log_ratios.detach(), num_generations)


def apa_loss(advantages: Tensor, log_ratios: Tensor, lam: float) -> Tensor:
    """APA (arXiv 2306.02231): mean of (log_ratio - A / lambda)^2.

    Its advantages come from a value model; with `group_advantages` the gradient at log_ratios = 0 is 2 / lambda times
    GPG's for completions of one length.

    Args:
        advantages, log_ratios: [N]; log-ratios to the policy that the update starts from.
        lam: weight of the divergence.
    """
    return (log_ratios - advantages / lam).square().mean()


def gspo_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, completion_mask: Tensor, eps_low: float, eps_high: float
) -> Tensor:
    """GSPO (arXiv 2507.18071): PPO's clip term with one ratio per completion, the geometric mean of its tokens'.

    Args:
        logps, old_logps: [N, T].
        advantages: [N], from `grpo_advantages`.
        completion_mask: [N, T], 1 where we train.
        eps_low, eps_high: the ratio is clipped to [1 - eps_low, 1 + eps_high].

    Returns:
        Scalar: mean over completions. On policy its gradient is that of GPG with `f_norm="group"`, alpha = 1 and the
        normaliser `"sequence"`.
    """
    lengths = completion_mask.sum(dim=1).clamp(min=1)
    log_ratios = (logps - old_logps).masked_fill(completion_mask == 0, 0.0).sum(dim=1) / lengths
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - eps_low, 1 + eps_high)
    return -torch.minimum(ratios * advantages, clipped * advantages).mean()


def _centred(values: Tensor, num_generations: int) -> Tensor:
    groups = values.view(-1, num_generations)
    return (groups - groups.mean(dim=1, keepdim=True)).flatten()


def _pairs(values: Tensor, num_generations: int) -> Tensor:
    """[N] to [B, G, G] differences v_i - v_j inside each group."""
    groups = values.view(-1, num_generations)
    return groups.unsqueeze(2) - groups.unsqueeze(1)
