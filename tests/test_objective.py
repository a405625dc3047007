"""The objective against numbers worked by hand and against the identities of the paper.

Shape letters as in `gpg_repro.objective`. Everything runs in float64 unless a test is about float32.
"""

import itertools
import math
import random
import subprocess
import sys

import pytest
import torch

from gpg_repro.objective import (
    STD_EPS,
    age_alpha,
    completion_weights,
    dapo_advantages,
    dapo_loss,
    dr_grpo_advantages,
    dr_grpo_loss,
    gpg_loss,
    group_advantages,
    grpo_advantages,
    grpo_loss,
    kl_k3,
    ppo_clip_loss,
    released_r2_batch,
    valid_groups,
)

GLOBAL_NORMALIZATIONS = ("group", "sequence", "batch")


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_batch(rewards, num_generations: int, num_tokens: int = 5, seed: int = 0, f_norm: str = "none"):
    """Ragged log-probabilities [N, T] that require grad, advantages [N] and mask [N, T] for the given rewards."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(rewards)
    logps = -torch.rand(num_rows, num_tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, num_tokens + 1, (num_rows,), generator=generator)
    mask = (torch.arange(num_tokens) < lengths.unsqueeze(1)).long()
    return logps.requires_grad_(), group_advantages(tensor(rewards), num_generations, f_norm), mask


def gradient(loss: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logps)[0]


# Advantages (Eq. 6) -------------------------------------------------------------------------------------------------


def test_advantages_subtract_the_group_mean():
    # group 1: rewards 1 0 0 1, mean 1/2; group 2: rewards 2 0 0 0, mean 1/2
    advantages = group_advantages(tensor([1, 0, 0, 1, 2, 0, 0, 0]), 4)
    assert advantages.tolist() == [0.5, -0.5, -0.5, 0.5, 1.5, -0.5, -0.5, -0.5]


def test_group_std_is_the_sample_std_plus_a_small_constant():
    # group 1: squares 4 * 1/4 = 1, variance 1/3, std 0.57735; group 2: squares 9/4 + 3/4 = 3, variance 1, std 1
    advantages = group_advantages(tensor([1, 0, 0, 1, 2, 0, 0, 0]), 4, "group")
    first, second = math.sqrt(1 / 3) + 1e-4, 1 + 1e-4
    expected = [0.5 / first, -0.5 / first, -0.5 / first, 0.5 / first, 1.5 / second] + 3 * [-0.5 / second]
    torch.testing.assert_close(advantages, tensor(expected))


def test_batch_std_keeps_the_group_mean_as_baseline():
    # all rewards 1 0 0 1 2 0 0 0: mean 1/2, squares 2 * 1/4 + 9/4 + 5 * 1/4 = 4, variance 4/7
    advantages = group_advantages(tensor([1, 0, 0, 1, 2, 0, 0, 0]), 4, "batch")
    std = math.sqrt(4 / 7) + 1e-4
    torch.testing.assert_close(advantages, tensor([0.5, -0.5, -0.5, 0.5, 1.5, -0.5, -0.5, -0.5]) / std)
    # groups 4 2 | 1 1: group means 3 and 1, while the mean of all is 2; squares about 2: 4 + 0 + 1 + 1 = 6, variance 2
    advantages = group_advantages(tensor([4, 2, 1, 1]), 2, "batch")
    torch.testing.assert_close(advantages, tensor([1, -1, 0, 0]) / (math.sqrt(2) + 1e-4))


@pytest.mark.parametrize(
    ("num_correct", "std"), [(0, 0), (1, 0.3536), (2, 0.4629), (3, 0.5175), (4, 0.5345), (5, 0.5175), (8, 0)]
)
def test_group_std_of_k_correct_out_of_8(num_correct: int, std: float):
    # k ones among 8: squares k (8 - k) / 8, variance k (8 - k) / 56
    rewards = tensor([1.0] * num_correct + [0.0] * (8 - num_correct))
    centred, scaled = group_advantages(rewards, 8), group_advantages(rewards, 8, "group")
    if std == 0:
        assert scaled.tolist() == [0.0] * 8
    else:
        assert (centred / scaled - STD_EPS)[0].item() == pytest.approx(std, abs=5e-5)


@pytest.mark.parametrize("f_norm", ["none", "group", "batch"])
def test_permuting_a_group_permutes_its_advantages(f_norm: str):
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    permutation = torch.tensor([2, 0, 3, 1])
    permuted = torch.cat([rewards[:4], rewards[4:8][permutation], rewards[8:]])
    before, after = group_advantages(rewards, 4, f_norm), group_advantages(permuted, 4, f_norm)
    torch.testing.assert_close(after, torch.cat([before[:4], before[4:8][permutation], before[8:]]))


def test_equal_rewards_leave_no_rounding_residue():
    rewards = torch.full((7,), 0.1)  # in float32 the mean of seven 0.1 is not 0.1
    assert (rewards - rewards.sum() / 7).abs().max() > 0
    for f_norm in ("none", "group", "batch"):
        assert group_advantages(rewards, 7, f_norm).tolist() == [0.0] * 7


def test_unscored_completions_are_left_out():
    # group 1: 1 _ 0 _ has mean 1/2; group 2: 1 _ _ _ has one reward, hence no spread; group 3 has none
    nan = math.nan
    rewards = tensor([1, nan, 0, nan, 1, nan, nan, nan, nan, nan, nan, nan])
    scored = ~rewards.isnan()
    assert group_advantages(rewards, 4, scored=scored).tolist() == [0.5, 0, -0.5, 0] + [0] * 8
    assert valid_groups(rewards, 4, scored=scored).tolist() == [True, False, False]
    # std of {1, 0}: variance 1/2; std of all scored {1, 0, 1}: mean 2/3, squares 6/9, variance 1/3
    by_group = group_advantages(rewards, 4, "group", scored=scored)
    assert by_group[0].item() == pytest.approx(0.5 / (math.sqrt(1 / 2) + 1e-4))
    by_batch = group_advantages(rewards, 4, "batch", scored=scored)
    assert by_batch[0].item() == pytest.approx(0.5 / (math.sqrt(1 / 3) + 1e-4))


def test_advantages_of_the_other_methods():
    rewards = tensor([1, 0, 0, 1])
    std = math.sqrt(1 / 3) + 1e-4
    torch.testing.assert_close(grpo_advantages(rewards, 4), tensor([0.5, -0.5, -0.5, 0.5]) / std)
    torch.testing.assert_close(dapo_advantages(rewards, 4), tensor([0.5, -0.5, -0.5, 0.5]) / std)
    assert dr_grpo_advantages(rewards, 4).tolist() == [0.5, -0.5, -0.5, 0.5]


# Validity and alpha (Eq. 7) -----------------------------------------------------------------------------------------


def test_a_group_is_valid_when_its_rewards_differ():
    assert valid_groups(tensor([1, 1, 0, 0, 0, 1, 0.3, 0.3]), 2).tolist() == [False, False, True, False]
    # mean 1 without all being right: two rewards of 1.5 and 0.5 still differ
    assert valid_groups(tensor([1.5, 0.5]), 2).tolist() == [True]


def test_validity_is_exact_in_float32():
    next_after_tenth = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0)).item()
    assert valid_groups(torch.tensor([0.1, next_after_tenth]), 2).tolist() == [True]
    assert valid_groups(tensor([0.1, 0.1 + 1e-12]), 2).tolist() == [False]


def test_alpha_for_every_number_of_invalid_groups():
    assert [age_alpha(4, num_invalid) for num_invalid in range(5)] == [1.0, 4 / 3, 2.0, 4.0, 0.0]
    assert age_alpha(0, 0) == 0.0


@pytest.mark.parametrize(("num_groups", "num_invalid"), [(4, 5), (4, -1), (-1, 0)])
def test_alpha_refuses_impossible_counts(num_groups: int, num_invalid: int):
    with pytest.raises(ValueError, match=f"num_invalid={num_invalid} of num_groups={num_groups}"):
        age_alpha(num_groups, num_invalid)


# Released generation R2 ---------------------------------------------------------------------------------------------

# One line per draw: a process's groups side by side, valid ones marked x.
RELEASED_CASES = {
    # 16 processes with one group each, threshold 8. Draw 1 finds 5, draw 2 another 5, 3 of them on processes that have
    # one already: 10 seen, 7 in the batch. 16/10 is applied where 16/7 is right.
    "three of ten valid groups dropped": (
        ["x x x x x . . . . . . . . . . .", "x x x . . x x . . . . . . . . ."],
        *(0.5, 2, 10, 7, 16 / 10, 16 / 7),
    ),
    # The first draw is enough: nothing is dropped and both agree. The second is never made.
    "one draw": (["x . x .", "x x x x"], 0.5, 1, 2, 2, 2.0, 2.0),
    # Two groups per process: both of process 1's valid groups fit, nothing is dropped.
    "room on the process": ([".. .x", ".. x."], 0.5, 2, 2, 2, 2.0, 2.0),
    # 1 + 1 + 1 valid groups, all on process 0: one is kept, the count says 3 of 4.
    "all on one process": (["x . . .", "x . . .", "x . . ."], 0.75, 3, 3, 1, 4 / 3, 4.0),
    # More seen than the batch holds: released 1/alpha is cut at 1, although one process has nothing.
    "more than the batch holds": (["x x . .", "x x x ."], 1.0, 2, 5, 3, 1.0, 4 / 3),
    # Draws run out below the threshold: taken as it is.
    "given up": (["x . . .", ". . . ."], 0.5, 2, 1, 1, 4.0, 4.0),
    "no signal at all": ([". .", ". ."], 0.5, 2, 0, 0, 0.0, 0.0),
}


@pytest.mark.parametrize("case", RELEASED_CASES)
def test_released_r2_counts_valid_groups_that_it_dropped(case: str):
    lines, threshold, num_draws, num_seen, num_valid, alpha_released, alpha = RELEASED_CASES[case]
    valid = [[mark == "x" for mark in line.replace(" ", "")] for line in lines]
    batch = released_r2_batch(valid, len(lines[0].split()), threshold)
    assert (batch.num_draws, batch.num_valid_drawn, batch.num_valid) == (num_draws, num_seen, num_valid)
    assert (batch.alpha_released, batch.alpha) == pytest.approx((alpha_released, alpha))


def test_released_r2_keeps_a_process_to_its_own_groups():
    # processes hold groups 0 1 and 2 3. Draw 0: 0 valid; draw 1: 0 and 1 valid. Process 0 keeps its two oldest,
    # process 1 pads with its groups of the last draw.
    batch = released_r2_batch([[True, False, False, False], [True, True, False, False]], 2, 0.6)
    assert batch.groups == [(0, 0), (1, 0), (1, 2), (1, 3)]


def test_the_trainer_assembles_as_the_pure_function_does():
    from gpg_repro.batch import select_groups_released

    rng = random.Random(0)
    for _ in range(200):
        num_processes, share, num_draws = rng.randint(1, 4), rng.randint(1, 3), rng.randint(2, 4)
        rate = rng.choice((0.1, 0.4, 0.7))
        valid = [[rng.random() < rate for _ in range(num_processes * share)] for _ in range(num_draws)]
        pure = released_r2_batch(valid, num_processes, beta_th=math.inf)  # uses all draws
        selection = select_groups_released(valid, num_processes)
        assert (selection.groups, selection.num_valid) == (pure.groups, pure.num_valid)
        assert selection.num_dropped == pure.num_valid_drawn - pure.num_valid


# The loss (Eq. 5 and 8) ---------------------------------------------------------------------------------------------

# Two groups of two completions, T = 2. -log pi: group 1 rows (1, 2) and (3, masked); group 2 rows (4, 5) and (6, 7).
# Advantages 1, -1, 2, -2. Sums of -log pi * A: 3, -3 | 18, -26. Lengths: 2, 1 | 2, 2.
HAND_LOGPS = [[-1.0, -2.0], [-3.0, math.nan], [-4.0, -5.0], [-6.0, -7.0]]
HAND_MASK = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
HAND_ADVANTAGES = [1.0, -1.0, 2.0, -2.0]


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ("group", (0 / 3 + -8 / 4) / 2),  # groups: (3 - 3) / 3 tokens, (18 - 26) / 4 tokens
        ("sequence", (3 / 2 + -3 / 1 + 18 / 2 + -26 / 2) / 4),
        ("batch", (3 - 3 + 18 - 26) / 7),
        ("local", (3 - 3 + 18 - 26) / 7),  # all rows given are one micro-batch
    ],
)
def test_gpg_loss_by_hand(normalization: str, expected: float):
    logps, advantages = tensor(HAND_LOGPS), tensor(HAND_ADVANTAGES)
    loss = gpg_loss(logps, advantages, HAND_MASK, 2, normalization=normalization)
    assert loss.item() == pytest.approx(expected)
    assert gpg_loss(logps, advantages, HAND_MASK, 2, 1.5, normalization).item() == pytest.approx(1.5 * expected)


def test_gpg_gradient_by_hand():
    # d loss / d logp = -A / (group tokens * number of groups): -1/6, +1/6 | -2/8, +2/8, and 0 on the masked NaN
    logps = tensor(HAND_LOGPS).requires_grad_()
    grad = gradient(gpg_loss(logps, tensor(HAND_ADVANTAGES), HAND_MASK, 2), logps)
    torch.testing.assert_close(grad, tensor([[-1 / 6, -1 / 6], [1 / 6, 0], [-1 / 4, -1 / 4], [1 / 4, 1 / 4]]))


@pytest.mark.parametrize("normalization", ["group", "sequence", "batch", "local"])
@pytest.mark.parametrize("f_norm", ["none", "group", "batch"])
def test_gpg_gradcheck(normalization: str, f_norm: str):
    logps, advantages, mask = random_batch([1, 0, 0, 0, 1, 1], 2, 3, f_norm=f_norm)
    assert torch.autograd.gradcheck(lambda x: gpg_loss(x, advantages, mask, 2, 1.5, normalization), logps)


@pytest.mark.parametrize("normalization", ["group", "sequence", "batch", "local"])
def test_gpg_with_std_and_without_alpha_has_the_gradient_of_on_policy_grpo(normalization: str):
    # on-policy the ratio is 1 and unclipped, and d ratio = d log pi
    rewards = [1, 0, 0, 1, 1, 1, 1, 1, 0, 2, 0, 0]
    logps, advantages, mask = random_batch(rewards, 4, f_norm="group")
    torch.testing.assert_close(advantages, grpo_advantages(tensor(rewards), 4))
    gpg = gradient(gpg_loss(logps, advantages, mask, 4, 1.0, normalization), logps)
    clipped = gradient(dapo_loss(logps, logps.detach(), advantages, mask, 4, normalization=normalization), logps)
    assert gpg.abs().max() > 0.01
    torch.testing.assert_close(gpg, clipped, rtol=0, atol=0)
    if normalization == "sequence":
        grpo = gradient(grpo_loss(logps, logps.detach(), advantages, mask), logps)
        torch.testing.assert_close(gpg, grpo, rtol=0, atol=0)


@pytest.mark.parametrize("normalization", ["group", "sequence"])
@pytest.mark.parametrize("num_invalid", [0, 1, 2, 3])
def test_appendix_a_alpha_times_the_mean_over_workers_is_the_mean_over_valid_groups(
    normalization: str, num_invalid: int
):
    # 4 groups of 2, any placement of the invalid ones, any assignment of groups to 1, 2 or 4 workers
    for invalid in itertools.combinations(range(4), num_invalid):
        rewards = [reward for q in range(4) for reward in ((1, 1) if q in invalid else (1, 0))]
        logps, advantages, mask = random_batch(rewards, 2)
        rows = torch.arange(8).view(4, 2)
        valid = [q for q in range(4) if q not in invalid]
        assert valid_groups(tensor(rewards), 2).tolist() == [q in valid for q in range(4)]

        def mean_loss(groups, logps=logps, advantages=advantages, mask=mask, rows=rows):
            chosen = rows[list(groups)].flatten()
            return gpg_loss(logps[chosen], advantages[chosen], mask[chosen], 2, normalization=normalization)

        wanted = gradient(mean_loss(valid), logps)
        for num_workers, order in itertools.product((1, 2, 4), itertools.permutations(range(4))):
            shards = [order[i::num_workers] for i in range(num_workers)]
            usual = sum(mean_loss(shard) for shard in shards) / num_workers
            corrected = gradient(age_alpha(4, num_invalid) * usual, logps)
            torch.testing.assert_close(corrected, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("normalization", ["group", "sequence", "batch", "local"])
def test_a_batch_without_signal_has_alpha_zero_and_a_zero_gradient(normalization: str):
    for f_norm in ("none", "group", "batch"):
        rewards = [0.1, 0.1, 0.1, 0.7, 0.7, 0.7]
        logps, advantages, mask = random_batch(rewards, 3, f_norm=f_norm)
        num_invalid = int((~valid_groups(tensor(rewards), 3)).sum())
        alpha = age_alpha(2, num_invalid)
        assert (num_invalid, alpha) == (2, 0.0)
        loss = gpg_loss(logps, advantages, mask, 3, alpha, normalization)
        assert loss.item() == 0.0
        assert not gradient(loss, logps).any()


@pytest.mark.parametrize("normalization", ["group", "sequence", "batch", "local"])
def test_completions_and_groups_without_tokens_are_harmless(normalization: str):
    logps, advantages, _ = random_batch([1, 0, 1, 0], 2, 2)
    mask = torch.tensor([[0, 0], [0, 0], [1, 1], [0, 0]])
    loss = gpg_loss(logps, advantages, mask, 2, 1.0, normalization)
    # only row 2 speaks, A = 1/2, 2 tokens; it is one of 2 groups, 4 completions, or all of the tokens
    share = {"group": 2, "sequence": 4, "batch": 1, "local": 1}[normalization]
    assert loss.item() == pytest.approx(-0.5 * logps[2].sum().item() / 2 / share)
    weights = completion_weights(advantages, mask.sum(dim=1), 2, normalization, micro_batch_size=4)
    assert weights.isfinite().all()
    assert (weights.unsqueeze(1) * -logps * mask).sum().item() == pytest.approx(loss.item())
    assert gradient(loss, logps).isfinite().all()
    nothing = gpg_loss(logps, advantages, torch.zeros(4, 2), 2, 1.0, normalization)
    assert nothing.item() == 0.0


# One weight per completion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", GLOBAL_NORMALIZATIONS)
@pytest.mark.parametrize("f_norm", ["none", "group", "batch"])
def test_weights_give_the_loss_and_gradient_of_gpg_loss(normalization: str, f_norm: str):
    logps, advantages, mask = random_batch([1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0], 4, f_norm=f_norm)
    alpha = 1.5
    weights = completion_weights(advantages, mask.sum(dim=1), 4, normalization, alpha)
    weighted = (weights.unsqueeze(1) * -logps * mask).sum()
    loss = gpg_loss(logps, advantages, mask, 4, alpha, normalization)
    torch.testing.assert_close(weighted, loss, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(gradient(weighted, logps), gradient(loss, logps), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("micro_batch_size", [2, 3, 4, 6, 12])
def test_local_weights_are_the_mean_over_micro_batches_of_gpg_loss(micro_batch_size: int):
    logps, advantages, mask = random_batch([1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0], 4)
    lengths = mask.sum(dim=1)
    weights = completion_weights(advantages, lengths, 4, "local", 2.0, micro_batch_size=micro_batch_size)
    weighted = (weights.unsqueeze(1) * -logps * mask).sum()
    micro_losses = [
        gpg_loss(logps[rows], advantages[rows], mask[rows], 1, 2.0, "local")
        for rows in torch.arange(12).split(micro_batch_size)
    ]
    torch.testing.assert_close(weighted, torch.stack(micro_losses).mean(), rtol=1e-13, atol=1e-15)


def test_weights_by_hand():
    # lengths 2 1 | 2 2, advantages 1 -1 | 2 -2, alpha 2
    advantages, lengths = tensor(HAND_ADVANTAGES), HAND_MASK.sum(dim=1)
    # group: 2 A / (2 groups * tokens 3 or 4)
    expected = tensor([1 / 3, -1 / 3, 2 / 4, -2 / 4])
    torch.testing.assert_close(completion_weights(advantages, lengths, 2, alpha=2.0), expected)
    # one completion of group 1 unscored: it weighs 0 and its 2 tokens leave the group
    scored = torch.tensor([False, True, True, True])
    weights = completion_weights(advantages, lengths, 2, alpha=2.0, scored=scored)
    torch.testing.assert_close(weights, tensor([0, -1, 2 / 4, -2 / 4]))
    # the whole of group 1 unscored: group 2 is the mean's only term, 2 A / (1 group * 4 tokens)
    scored = torch.tensor([False, False, True, True])
    weights = completion_weights(advantages, lengths, 2, alpha=2.0, scored=scored)
    torch.testing.assert_close(weights, tensor([0, 0, 1.0, -1.0]))
    # sequence: 2 A / (2 completions * 2 tokens); batch: 2 A / 4 tokens
    for normalization in ("sequence", "batch"):
        weights = completion_weights(advantages, lengths, 2, normalization, 2.0, scored=scored)
        torch.testing.assert_close(weights, tensor([0, 0, 1.0, -1.0]))
    # a single completion scored is the only term of each mean: 2 A / (1 * 2 tokens)
    scored = torch.tensor([False, False, False, True])
    for normalization in ("group", "sequence", "batch"):
        weights = completion_weights(advantages, lengths, 2, normalization, 2.0, scored=scored)
        torch.testing.assert_close(weights, tensor([0, 0, 0, -2.0]))


# PPO, GRPO, Dr. GRPO, DAPO (Table 9) --------------------------------------------------------------------------------

# One completion per row, old log-probabilities 0, ratios 1.5, 0.5 | 1.1, masked; advantages 1 | -1; eps 0.2.
RATIOS = [[1.5, 0.5], [1.1, 9.0]]
RATIO_MASK = torch.tensor([[1, 1], [1, 0]])


def ratio_arguments(advantages=(1.0, -1.0)):
    return tensor(RATIOS).log(), torch.zeros(2, 2, dtype=torch.float64), tensor(list(advantages)), RATIO_MASK


def test_ppo_clip_loss_by_hand():
    # A = 1: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5; A = -1: min(-1.1, -1.1) = -1.1; mean over 3 tokens
    assert ppo_clip_loss(*ratio_arguments()).item() == pytest.approx(-(1.2 + 0.5 - 1.1) / 3)
    # A = -1 on the first row: min(-1.5, -1.2) = -1.5 and min(-0.5, -0.8) = -0.8; A = 1 on the second: 1.1
    assert ppo_clip_loss(*ratio_arguments((-1.0, 1.0))).item() == pytest.approx(-(-1.5 - 0.8 + 1.1) / 3)
    # an advantage per token, as from GAE: 2 * 1.2, 0 and -1.1
    logps, old_logps, _, mask = ratio_arguments()
    per_token = ppo_clip_loss(logps, old_logps, tensor([[2, 0], [-1, 5]]), mask)
    assert per_token.item() == pytest.approx(-(2.4 + 0 - 1.1) / 3)


def test_kl_k3_by_hand():
    # d = ref - logp = log 2: 2 - log 2 - 1; d = 0: 0
    estimate = kl_k3(tensor([[math.log(0.25), -1.0]]), tensor([[math.log(0.5), -1.0]]))
    torch.testing.assert_close(estimate, tensor([[1 - math.log(2), 0.0]]))


def test_grpo_loss_by_hand():
    # rows: (1.2 + 0.5) / 2 and -1.1 / 1, averaged over 2 completions
    policy = -((1.2 + 0.5) / 2 - 1.1) / 2
    assert grpo_loss(*ratio_arguments()).item() == pytest.approx(policy)
    # ref = 2 * policy probability everywhere: k3 = 1 - log 2 on each token, hence in each mean
    logps, old_logps, advantages, mask = ratio_arguments()
    loss = grpo_loss(logps, old_logps, advantages, mask, beta=0.5, ref_logps=logps + math.log(2))
    assert loss.item() == pytest.approx(policy + 0.5 * (1 - math.log(2)))
    # an odd number of completions is as good: the first row once more
    again = [torch.cat([rows, rows[:1]]) for rows in (logps, old_logps, advantages, mask)]
    assert grpo_loss(*again).item() == pytest.approx(-(2 * (1.2 + 0.5) / 2 - 1.1) / 3)


def test_dr_grpo_loss_by_hand():
    # sum of all tokens 1.2 + 0.5 - 1.1 = 0.6, over 2 completions * 10 tokens
    assert dr_grpo_loss(*ratio_arguments(), max_completion_length=10).item() == pytest.approx(-0.6 / 20)


def test_dapo_loss_by_hand():
    # upper bound 1.28: min(1.5, 1.28); both rows one group of 3 tokens
    assert dapo_loss(*ratio_arguments(), 2, 0.2, 0.28).item() == pytest.approx(-(1.28 + 0.5 - 1.1) / 3)
    # two groups of one completion: token means (1.28 + 0.5) / 2 and -1.1
    assert dapo_loss(*ratio_arguments(), 1, 0.2, 0.28).item() == pytest.approx(-((1.28 + 0.5) / 2 - 1.1) / 2)
    # lower bound 0.4 for A = -1: min(-0.5, -0.6)
    loss = dapo_loss(*ratio_arguments((-1.0, 1.0)), 2, 0.4, 0.2)
    assert loss.item() == pytest.approx(-(-1.5 - 0.6 + 1.1) / 3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, old, a, m: ppo_clip_loss(x, old, a, m),
        lambda x, old, a, m: grpo_loss(x, old, a, m, beta=0.1, ref_logps=old),
        lambda x, old, a, m: dr_grpo_loss(x, old, a, m, 8),
        lambda x, old, a, m: dapo_loss(x, old, a, m, 2, 0.2, 0.28),
    ],
)
def test_clipped_losses_gradcheck(loss):
    logps, old_logps, advantages, mask = ratio_arguments()
    assert torch.autograd.gradcheck(lambda x: loss(x, old_logps, advantages, mask), logps.requires_grad_())


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_advantages(torch.zeros(5), 2), r"rewards of shape \[5\] with num_generations=2"),
        (lambda: group_advantages(torch.zeros(0), 2), r"rewards of shape \[0\]"),
        (lambda: group_advantages(torch.zeros(2, 2), 2), r"rewards of shape \[2, 2\]"),
        (lambda: group_advantages(torch.zeros(4), 0), "num_generations=0"),
        (lambda: group_advantages(torch.zeros(4), 2, "std"), "f_norm='std'.*'none', 'group', 'batch'"),
        (lambda: group_advantages(torch.tensor([0.0, math.nan]), 2), r"rewards\[1\] is nan"),
        (lambda: valid_groups(torch.tensor([0.0, math.inf]), 2), r"rewards\[1\] is inf"),
        (lambda: valid_groups(torch.zeros(4), 2, scored=torch.ones(2)), r"scored has shape \[2\], expected \[4\]"),
        (lambda: released_r2_batch([], 2, 0.5), r"draws of \[\] groups for 2 processes"),
        (lambda: released_r2_batch([[True, False, True]], 2, 0.5), r"draws of \[3\] groups for 2 processes"),
        (lambda: released_r2_batch([[True], [True, False]], 1, 0.5), r"draws of \[1, 2\] groups"),
        (lambda: gpg_loss(torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 2), 2), r"\[4, 3\].*\[4, 2\]"),
        (lambda: gpg_loss(torch.zeros(4), torch.zeros(4), torch.ones(4), 2), r"expected the same \[N, T\]"),
        (lambda: gpg_loss(torch.zeros(4, 3), torch.zeros(3), torch.ones(4, 3), 2), r"advantages has shape \[3\]"),
        (lambda: gpg_loss(torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3), 3), "num_generations=3"),
        (
            lambda: gpg_loss(torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3), 2, 1.0, "token"),
            "normalization='token'.*'group', 'sequence', 'batch', 'local'",
        ),
        (lambda: completion_weights(torch.zeros(4), torch.ones(3), 2), r"completion_lengths has shape \[3\]"),
        (lambda: completion_weights(torch.zeros(4), torch.ones(4), 2, "local"), "micro_batch_size=None"),
        (
            lambda: completion_weights(torch.zeros(4), torch.ones(4), 2, "local", micro_batch_size=3),
            "micro_batch_size=3 for 4 completions",
        ),
        (lambda: completion_weights(torch.zeros(4), torch.ones(4), 2, "sum"), "normalization='sum'"),
        (
            lambda: grpo_loss(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3), beta=0.1),
            "beta=0.1 needs ref_logps",
        ),
        (
            lambda: dr_grpo_loss(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3), 0),
            "max_completion_length=0",
        ),
    ],
)
def test_bad_input_is_refused_with_what_arrived_and_what_was_expected(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_module_needs_only_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import gpg_repro.objective; "
        "print({m.split('.')[0] for m in set(sys.modules) - before} - {'gpg_repro', 'torch'})"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
