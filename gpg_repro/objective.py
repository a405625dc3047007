"""The GPG method (arXiv 2504.02546) on one page of pure tensor functions, with the methods of its Table 9 beside it.

Sample G completions for each of Q prompts and score each completion with one scalar reward `r`. Then

    A_i    = (r_i - mean of r over its group) / F_norm                            Eq. 6   `group_advantages`
    alpha  = B / (B - M),  M of the B groups having one reward throughout         Eq. 7   `valid_groups`, `age_alpha`
    L_q    = sum_{i,t} -log pi(o_it) A_i / sum_i |o_i|,  i and t over the group   Eq. 5   `gpg_loss`
    loss   = alpha * mean over q of L_q                                           Eq. 8   `gpg_loss`

There is no critic, no reference model, no probability ratio and no clipping. alpha (accurate gradient estimation, AGE)
repairs one bias: a group whose rewards are all equal has zero advantages, hence zero gradient, yet counts in the mean
over groups; multiplying by B / (B - M) turns that mean into the mean over groups that do carry a signal.

Shapes and names
    Q   prompts in the batch behind one gradient, over all processes and accumulation steps
    G   completions per prompt, `num_generations`; the completions of a prompt are adjacent rows
    N   completions, N = Q * G
    T   padded completion length in tokens
    B   groups, B = Q; M of them are invalid. Every group has G completions, so B / (B - M) is the same number
        whether completions or groups are counted (the paper does both)
    `completion_mask` [N, T] is 1 where we train (up to and including the first EOS), else 0; |o_i| is its row sum
    `scored` [N] is True for a completion that has a reward; the others are left out of every mean and denominator

Normalisers (`normalization`): the same vocabulary everywhere
    "group"     token mean inside each group, then mean over groups: Eq. 5, the default
    "sequence"  token mean inside each completion, then mean over completions
    "batch"     one token mean over the whole generation batch
    "local"     token mean inside one process and micro-batch, then mean over those: the only one that depends on how
                the batch is laid out, and what the released math code does

B / (B - M) is exact for "group" and "sequence". For the token means "batch" and "local", whose denominators keep the
tokens of invalid groups, it is an approximation; the paper and the released code use it all the same.

All functions are pure, need only torch, run on any device and keep the dtype of their floating-point inputs. Losses are
to be minimised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

F_NORMS = ("none", "group", "batch")
NORMALIZATIONS = ("group", "sequence", "batch", "local")
STD_EPS = 1e-4  # added to a standard deviation before dividing by it (released code, as in TRL)


# Advantages and the correction for groups without signal ------------------------------------------------------------


def group_advantages(
    rewards: Tensor, num_generations: int, f_norm: str = "none", *, scored: Tensor | None = None
) -> Tensor:
    """Advantage of every completion over its group's mean reward (Eq. 6).

    Args:
        rewards: [N] total (weighted) reward of each completion.
        num_generations: G.
        f_norm: the divisor F_norm. `"none"` divides by 1, the method's default; `"group"` by the group's sample
            standard deviation (ddof 1) + 1e-4; `"batch"` by that of all N rewards + 1e-4. The baseline is always the
            group mean.
        scored: [N] bool, False for completions without a reward (their entry in `rewards` is ignored). Default: all
            True.

    Returns:
        [N] advantages. Exactly 0 for unscored completions and throughout an invalid group, where the floating-point
        difference between equal rewards and their mean need not be.

    Raises:
        ValueError: unknown `f_norm`, `rewards` not [N] with N a multiple of G, or a scored reward that is not finite.
    """
    _check_choice("f_norm", f_norm, F_NORMS)
    rewards, scored = _grouped_rewards(rewards, num_generations, scored)
    weights = scored.to(rewards.dtype)
    num_scored = weights.sum(dim=1, keepdim=True)
    mean = rewards.sum(dim=1, keepdim=True) / num_scored.clamp(min=1)
    advantages = (rewards - mean) * weights
    if f_norm == "group":
        variance = advantages.square().sum(dim=1, keepdim=True) / (num_scored - 1).clamp(min=1)
        advantages = advantages / (variance.sqrt() + STD_EPS)
    elif f_norm == "batch" and scored.sum() > 1:
        advantages = advantages / (rewards[scored].std() + STD_EPS)
    return torch.where(_has_spread(rewards, scored).unsqueeze(1), advantages, 0.0).flatten()


def grpo_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """GRPO (Table 9): (r - group mean) / (group std + 1e-4). [N] -> [N]. Eq. 24 lacks the std; Table 9 is followed."""
    return group_advantages(rewards, num_generations, f_norm="group")


def dr_grpo_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """Dr. GRPO (Table 9): r - group mean. [N] -> [N]."""
    return group_advantages(rewards, num_generations, f_norm="none")


def dapo_advantages(rewards: Tensor, num_generations: int) -> Tensor:
    """DAPO (Table 9): as GRPO, (r - group mean) / (group std + 1e-4). [N] -> [N]."""
    return group_advantages(rewards, num_generations, f_norm="group")


def valid_groups(
    rewards: Tensor, num_generations: int, *, scored: Tensor | None = None, trained: Tensor | None = None
) -> Tensor:
    """Which groups carry a signal: a trained token of theirs has an advantage. The complement counts M in Eq. 7.

    Decided on the rewards themselves, compared exactly, and never on standard deviations, whose rounding residue is not
    zero. "All right or all wrong" is the same thing only for a single 0/1 reward.

    Args:
        rewards: [N] total (weighted) reward of each completion.
        num_generations: G.
        scored: [N] bool, False for completions without a reward. A group with fewer than two scored completions is
            invalid.
        trained: [N] bool, False for completions without a token to train on (all masked). Their rewards count in the
            mean; a group whose other completions are at the mean, or that has no others, is invalid. Default: all True.

    Returns:
        [B] bool.

    Raises:
        ValueError: `rewards` not [N] with N a multiple of G, or a scored reward that is not finite.
    """
    grouped, counted = _grouped_rewards(rewards, num_generations, scored)
    spread = _has_spread(grouped, counted)
    if trained is None:
        return spread
    grouped = grouped.double()
    mean = (grouped * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp(min=1)
    # The mean of equal halves is rounded: a reward at the mean may be a few last digits away from it.
    off_mean = (grouped - mean).abs() > 1e-12 * grouped.abs().amax(dim=1, keepdim=True)
    return spread & (off_mean & counted & trained.view_as(counted)).any(dim=1)


def age_alpha(num_groups: int, num_invalid: int) -> float:
    """Correction factor alpha = B / (B - M) of Eq. 7.

    Args:
        num_groups: B, over all processes and accumulation steps.
        num_invalid: M, those of them without signal.

    Returns:
        A factor >= 1, or 0.0 when no group is valid: the gradient is zero then and must stay so.

    Raises:
        ValueError: unless 0 <= M <= B.
    """
    if not 0 <= num_invalid <= num_groups:
        raise ValueError(
            f"num_invalid={num_invalid} of num_groups={num_groups}: expected 0 <= num_invalid <= num_groups. Count "
            "both over the same batch of groups."
        )
    num_valid = num_groups - num_invalid
    return num_groups / num_valid if num_valid else 0.0


# What the released code makes of alpha ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReleasedBatch:
    """One step as released generation R2 assembles and scales it.

    Attributes:
        num_draws: rounds of sampling it took.
        groups: the (draw, group) pairs trained on, process after process; group counts over all processes.
        num_valid: valid groups among them, B - M.
        num_valid_drawn: valid groups seen in all draws, of which `num_valid_drawn - num_valid` were thrown away.
        alpha_released: the factor it applies, B / min(B, num_valid_drawn).
        alpha: B / (B - M) of Eq. 7 for the groups that are really in the batch.
    """

    num_draws: int
    groups: list[tuple[int, int]]
    num_valid: int
    num_valid_drawn: int
    alpha_released: float
    alpha: float


def released_r2_batch(valid_by_draw: Sequence[Sequence[bool]], num_processes: int, beta_th: float) -> ReleasedBatch:
    """The batch and the alpha of released generation R2, which counts valid groups that it has dropped.

    It draws until the valid groups *seen so far*, over all processes, reach beta_th * B. But a process only keeps what
    it sampled itself: its own valid groups, oldest first, then its own invalid ones of the last draw, cut to its share
    of B. A second valid group of a process that had its share already is dropped, yet stays in the count behind
    `alpha_released`, which is therefore too small; a pool over all processes, as Eq. 7 is written, would have used it.

    Args:
        valid_by_draw: for each draw, B flags, the groups of process 0 first, equally many on each process. The last one
            is the last the loop may make: its batch is taken whatever it holds.
        num_processes: how many there are.
        beta_th: the threshold; `min_inverse_alpha` in the released code.

    Raises:
        ValueError: no draw, draws of different sizes, or B not a multiple of `num_processes`.
    """
    sizes = {len(flags) for flags in valid_by_draw}
    if len(sizes) != 1 or num_processes < 1 or (num_groups := sizes.pop()) == 0 or num_groups % num_processes:
        raise ValueError(
            f"valid_by_draw holds draws of {[len(flags) for flags in valid_by_draw]} groups for {num_processes} "
            "processes: expected at least one draw, all of the same size, a positive multiple of num_processes."
        )
    num_valid_drawn = num_draws = 0
    for flags in valid_by_draw:
        num_draws, num_valid_drawn = num_draws + 1, num_valid_drawn + sum(map(bool, flags))
        if num_valid_drawn >= beta_th * num_groups:
            break
    share, last = num_groups // num_processes, num_draws - 1
    groups: list[tuple[int, int]] = []
    for start in range(0, num_groups, share):
        own = range(start, start + share)
        kept = [(draw, group) for draw in range(num_draws) for group in own if valid_by_draw[draw][group]]
        padding = [(last, group) for group in own if not valid_by_draw[last][group]]
        groups += (kept + padding)[:share]
    num_valid = sum(bool(valid_by_draw[draw][group]) for draw, group in groups)
    return ReleasedBatch(
        num_draws=num_draws,
        groups=groups,
        num_valid=num_valid,
        num_valid_drawn=num_valid_drawn,
        alpha_released=age_alpha(num_groups, num_groups - min(num_groups, num_valid_drawn)),
        alpha=age_alpha(num_groups, num_groups - num_valid),
    )


# The GPG loss -------------------------------------------------------------------------------------------------------


def gpg_loss(
    logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    num_generations: int,
    alpha: float | Tensor = 1.0,
    normalization: str = "group",
) -> Tensor:
    """The GPG loss: alpha times the normalised sum of -log pi(o_it) * A_i (Eq. 5 and 8).

    Args:
        logps: [N, T] log-probability, under the policy, of every sampled completion token. Values where the mask is 0
            are ignored, NaN included.
        advantages: [N], from `group_advantages`.
        completion_mask: [N, T], 1 where we train.
        num_generations: G.
        alpha: from `age_alpha`; 1.0 switches the correction off.
        normalization: see the module docstring. The N rows are the whole batch; for `"local"` they are one process's
            micro-batch, and the caller averages over processes and micro-batches.

    Returns:
        Scalar, to be minimised. A completion or group without tokens adds 0 and still counts in the mean.

    Raises:
        ValueError: unknown `normalization`, shapes that do not agree, or N not a multiple of G.
    """
    logps = _masked(logps, completion_mask)
    _check_rows("advantages", advantages, logps)
    return alpha * _normalize(-logps * advantages.unsqueeze(1), completion_mask, num_generations, normalization)


def completion_weights(
    advantages: Tensor,
    completion_lengths: Tensor,
    num_generations: int,
    normalization: str = "group",
    alpha: float | Tensor = 1.0,
    *,
    micro_batch_size: int | None = None,
    scored: Tensor | None = None,
) -> Tensor:
    """One weight per completion, such that `sum_i w_i sum_t -logp[i, t]` is `gpg_loss` of the whole batch.

    With the denominators inside the weights, computed once over all processes and accumulation steps, the rows may be
    shuffled, split and distributed at will: the summed gradient does not change.

    Args:
        advantages: [N], from `group_advantages`, in arrival order (groups adjacent).
        completion_lengths: [N] trained tokens of each completion, |o_i|.
        num_generations: G.
        normalization: see the module docstring.
        alpha: from `age_alpha`.
        micro_batch_size: rows in one process's micro-batch; required by, and only used for, `"local"`: consecutive
            blocks of that many rows are the micro-batches.
        scored: [N] bool, False for completions to leave out: they weigh nothing and their tokens are in no denominator.

    Returns:
        [N] weights in the dtype of `advantages`.

    Raises:
        ValueError: unknown `normalization`, shapes that do not agree, N not a multiple of G, or for `"local"` a missing
            `micro_batch_size` or one that does not divide N.
    """
    _check_choice("normalization", normalization, NORMALIZATIONS)
    num_groups = _num_groups(advantages, num_generations, "advantages")
    scored = torch.ones_like(advantages, dtype=torch.bool) if scored is None else scored
    for name, rows in (("completion_lengths", completion_lengths), ("scored", scored)):
        if rows.shape != advantages.shape:
            raise ValueError(f"{name} has shape {list(rows.shape)}, expected {list(advantages.shape)} as advantages.")
    lengths = completion_lengths.to(advantages.dtype) * scored

    def tokens_per_block(num_rows: int) -> Tensor:
        # [N]: for each completion, the tokens of the block of num_rows adjacent rows that holds it
        return lengths.view(-1, num_rows).sum(dim=1).clamp(min=1).repeat_interleave(num_rows)

    if normalization == "group":
        num_terms = scored.view(num_groups, -1).any(dim=1).sum().clamp(min=1)
        denominators = num_terms * tokens_per_block(num_generations)
    elif normalization == "sequence":
        denominators = scored.sum().clamp(min=1) * tokens_per_block(1)
    elif normalization == "batch":
        denominators = tokens_per_block(lengths.numel())
    else:
        if not micro_batch_size or micro_batch_size < 0 or lengths.numel() % micro_batch_size:
            raise ValueError(
                f"normalization='local' with micro_batch_size={micro_batch_size} for {lengths.numel()} completions: "
                "expected a positive number of rows that divides them. Pass the rows of one process's micro-batch."
            )
        denominators = lengths.numel() // micro_batch_size * tokens_per_block(micro_batch_size)
    return alpha * advantages * scored / denominators


# The other methods of Table 9, for comparison by hand ---------------------------------------------------------------
# rho = pi / pi_old per token. Clip ranges are the usual 0.2 (the paper does not state them).


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Per-token k3 estimate of KL(pi || pi_ref) (Appendix C): exp(d) - d - 1 with d = ref_logps - logps.

    Both arguments and the result are [N, T]. Non-negative, and unbiased when the tokens were sampled from pi.
    """
    difference = ref_logps - logps
    return torch.exp(difference) - difference - 1


def ppo_clip_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, completion_mask: Tensor, eps: float = 0.2
) -> Tensor:
    """PPO's policy term (Table 9): -min(rho * A, clip(rho, 1 - eps, 1 + eps) * A), averaged over all tokens.

    The rest of PPO is a critic: a value model, usually as large as the policy, trained beside it, whose per-token
    values turn rewards into advantages by GAE. None is trained here. It would double the memory and add a second
    learning problem, the paper gives PPO as an equation (Tables 2 and 9) that GPG does without, and TRL 1.16, whose
    trainers run all our rivals, has no PPO trainer. With one reward at the end of a completion, no discount, lambda = 1
    and the group mean in the critic's place, GAE gives each token r - group mean, so `group_advantages` may be passed.

    Args:
        logps, old_logps: [N, T] log-probabilities under the policy and under the one that sampled.
        advantages: [N, T] as from GAE with a critic, or [N] for one value per completion.
        completion_mask: [N, T], 1 where we train.
        eps: clip range.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that do not agree.
    """
    per_token = _clipped_surrogate(logps, old_logps, advantages, completion_mask, eps, eps)
    return _normalize(per_token, completion_mask, 1, "batch")


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    eps: float = 0.2,
    beta: float = 0.0,
    ref_logps: Tensor | None = None,
) -> Tensor:
    """GRPO (Table 9, Appendix C): PPO's clip term plus beta * k3 KL, mean per completion, then over completions.

    The mean over completions is the paper's 1 / (G |o_i|) inside each group followed by the mean over groups.

    Args:
        logps, old_logps: [N, T] log-probabilities under the policy and under the one that sampled.
        advantages: [N], from `grpo_advantages`.
        completion_mask: [N, T], 1 where we train.
        eps: clip range.
        beta: coefficient of the KL term.
        ref_logps: [N, T] log-probabilities under the reference model; needed when beta is not 0.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that do not agree, or beta without `ref_logps`.
    """
    per_token = _clipped_surrogate(logps, old_logps, advantages, completion_mask, eps, eps)
    if beta != 0.0:
        if ref_logps is None:
            raise ValueError(f"beta={beta} needs ref_logps of shape {list(logps.shape)}; pass them or set beta=0.")
        per_token = per_token + beta * kl_k3(_masked(logps, completion_mask), _masked(ref_logps, completion_mask))
    return _normalize(per_token, completion_mask, 1, "sequence")


def dr_grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    max_completion_length: int,
    eps: float = 0.2,
) -> Tensor:
    """Dr. GRPO (Table 9): PPO's clip term, summed over tokens and divided by a constant, so length has no influence.

    Args:
        logps, old_logps: [N, T] log-probabilities under the policy and under the one that sampled.
        advantages: [N], from `dr_grpo_advantages`.
        completion_mask: [N, T], 1 where we train.
        max_completion_length: the constant, in tokens: the generation limit, not the padded length T.
        eps: clip range.

    Returns:
        Scalar: the sum over tokens / (N * max_completion_length).

    Raises:
        ValueError: shapes that do not agree, or a `max_completion_length` below 1.
    """
    if max_completion_length < 1:
        raise ValueError(
            f"max_completion_length={max_completion_length}: expected the generation limit, at least 1 token."
        )
    per_token = _clipped_surrogate(logps, old_logps, advantages, completion_mask, eps, eps)
    return per_token.sum() / (per_token.shape[0] * max_completion_length)


def dapo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    num_generations: int,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    normalization: str = "group",
) -> Tensor:
    """DAPO (Table 9): PPO's clip term with separate bounds, token mean inside each group.

    Args:
        logps, old_logps: [N, T] log-probabilities under the policy and under the one that sampled.
        advantages: [N], from `dapo_advantages`.
        completion_mask: [N, T], 1 where we train.
        num_generations: G.
        eps_low, eps_high: rho is clipped to [1 - eps_low, 1 + eps_high]; DAPO raises the upper one.
        normalization: DAPO's equation is `"group"`; TRL's loss of that name is `"batch"`.

    Returns:
        Scalar.

    Raises:
        ValueError: unknown `normalization`, shapes that do not agree, or N not a multiple of G.
    """
    per_token = _clipped_surrogate(logps, old_logps, advantages, completion_mask, eps_low, eps_high)
    return _normalize(per_token, completion_mask, num_generations, normalization)


# Shared pieces ------------------------------------------------------------------------------------------------------


def _clipped_surrogate(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, completion_mask: Tensor, eps_low: float, eps_high: float
) -> Tensor:
    """[N, T] values of -min(rho * A, clip(rho, 1 - eps_low, 1 + eps_high) * A), 0 outside the mask."""
    ratios = torch.exp(_masked(logps, completion_mask) - _masked(old_logps, completion_mask))
    if advantages.shape != logps.shape:
        _check_rows("advantages", advantages, logps)
        advantages = advantages.unsqueeze(1)
    clipped = ratios.clamp(1 - eps_low, 1 + eps_high)
    return -torch.minimum(ratios * advantages, clipped * advantages).masked_fill(completion_mask == 0, 0.0)


def _normalize(per_token: Tensor, completion_mask: Tensor, num_generations: int, normalization: str) -> Tensor:
    """[N, T] per-token losses, 0 outside the mask, to their scalar mean in the sense of `normalization`."""
    _check_choice("normalization", normalization, NORMALIZATIONS)
    num_groups = _num_groups(per_token[:, 0], num_generations, "completions")
    loss_sums, lengths = per_token.sum(dim=1), completion_mask.sum(dim=1).to(per_token.dtype)
    if normalization == "group":
        loss_sums, lengths = loss_sums.view(num_groups, -1).sum(dim=1), lengths.view(num_groups, -1).sum(dim=1)
    elif normalization != "sequence":
        loss_sums, lengths = loss_sums.sum(), lengths.sum()
    return (loss_sums / lengths.clamp(min=1)).mean()


def _masked(values: Tensor, completion_mask: Tensor) -> Tensor:
    """[N, T] values with 0 outside the mask: what padding holds reaches neither the loss nor the gradient."""
    if values.dim() != 2 or values.shape != completion_mask.shape:
        raise ValueError(
            f"log-probabilities of shape {list(values.shape)} with a completion_mask of shape "
            f"{list(completion_mask.shape)}: expected the same [N, T] for both."
        )
    return values.masked_fill(completion_mask == 0, 0.0)


def _grouped_rewards(rewards: Tensor, num_generations: int, scored: Tensor | None) -> tuple[Tensor, Tensor]:
    """[N] rewards and flags to floating-point [B, G] rewards, 0 where unscored, and bool [B, G] flags; both checked."""
    num_groups = _num_groups(rewards, num_generations, "rewards")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    scored = torch.ones_like(rewards, dtype=torch.bool) if scored is None else scored.bool()
    if scored.shape != rewards.shape:
        raise ValueError(f"scored has shape {list(scored.shape)}, expected {list(rewards.shape)} as rewards.")
    rewards = rewards.masked_fill(~scored, 0.0)
    if not rewards.isfinite().all():
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(
            f"rewards[{row}] is {rewards[row].item()}: expected finite rewards. Mark completions without a reward in "
            "`scored`."
        )
    return rewards.view(num_groups, num_generations), scored.view(num_groups, num_generations)


def _has_spread(rewards: Tensor, scored: Tensor) -> Tensor:
    """[B, G] rewards and flags to [B] bool: do the scored rewards of the group differ in float32?"""
    rewards = rewards.float()
    highest = rewards.masked_fill(~scored, -torch.inf).amax(dim=1)
    lowest = rewards.masked_fill(~scored, torch.inf).amin(dim=1)
    return highest > lowest


def _num_groups(rows: Tensor, num_generations: int, name: str) -> int:
    """B = N / G for [N] rows, checked."""
    num_rows = rows.numel()
    if rows.dim() != 1 or num_generations < 1 or num_rows == 0 or num_rows % num_generations:
        raise ValueError(
            f"{name} of shape {list(rows.shape)} with num_generations={num_generations}: expected a non-empty [N] with "
            "N a multiple of num_generations, the completions of a prompt in adjacent rows."
        )
    return num_rows // num_generations


def _check_rows(name: str, rows: Tensor, logps: Tensor) -> None:
    if rows.shape != logps.shape[:1]:
        raise ValueError(
            f"{name} has shape {list(rows.shape)}, expected [N] = {list(logps.shape[:1])} as log-probabilities."
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Unknown {name}={value!r}: expected one of {', '.join(map(repr, choices))}.")
