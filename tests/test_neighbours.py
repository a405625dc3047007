"""Neighbours of GPG: values worked by hand, identities with GPG's own functions, and TRL's losses where it has them."""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import alpha as bench_alpha

from gpg_repro import neighbours, objective

ROOT = Path(__file__).resolve().parent.parent
G = 4
# Groups: mixed, all right, all wrong, mixed: B = 4, M = 2, alpha = 2.
REWARDS = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0]).double()


def a_batch(seed: int = 0, even: bool = False):
    """[16, 5] log-probabilities with gradient, others near them, and a mask of ragged (or full) length."""
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(16, 5, generator=generator).double()
    old = logps + 0.6 * (torch.rand(16, 5, generator=generator).double() - 0.5)
    lengths = torch.full((16,), 5) if even else torch.randint(1, 6, (16,), generator=generator)
    mask = (torch.arange(5) < lengths.unsqueeze(1)).long()
    return logps.requires_grad_(True), old, mask


def gradient(loss, logps):
    return torch.autograd.grad(loss, logps)[0]


# Values by hand -------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    # leave-one-out in (1, 1, 0, 0): 1 - (1 + 0 + 0) / 3 = 2/3, 0 - 2/3; in (1, 0, 0, 0): 1 - 0, 0 - 1/3
    rloo = neighbours.rloo_advantages(REWARDS, G)
    assert rloo.tolist() == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3, *[0] * 8, 1, -1 / 3, -1 / 3, -1 / 3])
    greedy = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    remax = neighbours.remax_advantages(REWARDS, greedy, G)
    assert remax.tolist() == [0, 0, -1, -1, *[0] * 8, 1, 0, 0, 0]
    assert neighbours.raft_weights(REWARDS).tolist() == REWARDS.tolist()
    assert neighbours.raft_weights(torch.tensor([0.5, 1.9, 1.0]), 1.0).tolist() == [0, 1, 1]
    rejected = neighbours.reinforce_rej_advantages(REWARDS, G)
    assert rejected.tolist() == [1, 1, 0, 0, *[0] * 8, 1, 0, 0, 0]
    # (1, 1, 0, 0) has the standard deviation 1/2; (1, 0, 0, 0) sqrt(3) / 4, so 3/4 over it is sqrt(3)
    agpo = neighbours.agpo_advantages(REWARDS, G)
    third = 1 / 3**0.5
    assert agpo.tolist() == pytest.approx([1, 1, -1, -1, *[1] * 4, *[-1] * 4, 3**0.5, -third, -third, -third])


def test_alphas_by_hand():
    assert neighbours.verl_alpha(REWARDS) == pytest.approx(16 / 7)  # seven right answers
    assert neighbours.verl_alpha(torch.zeros(4)) == 4
    assert neighbours.capped_alpha(4, 2) == pytest.approx(2) and neighbours.capped_alpha(64, 63) == pytest.approx(20)
    assert neighbours.capped_alpha(4, 4) == pytest.approx(20)  # where nothing is to be corrected


def test_regressions_by_hand():
    # one pair, r = (1, 0), lr = (0.2, -0.2), G = 2: implicit rewards centred 0.2 b, -0.2 b; rewards 1/2, -1/2
    rewards, log_ratios = torch.tensor([1.0, 0.0]), torch.tensor([0.2, -0.2])
    # (0.4 - 0.5)^2 / 2, and (0.4 * 2 - 1)^2 for the pair, twice over two ordered pairs
    assert neighbours.gvpo_loss(rewards, log_ratios, 2, 2.0).item() == pytest.approx(0.005)
    assert neighbours.rebel_loss(rewards, log_ratios, 2, 0.5).item() == pytest.approx(0.04)
    assert neighbours.copg_weights(rewards, log_ratios, 2, 2.0).tolist() == pytest.approx([0.2, -0.2])
    assert not neighbours.copg_weights(rewards, log_ratios.requires_grad_(True), 2, 2.0).requires_grad
    log_ratios = log_ratios.detach()
    # ((0.2 - 0.5 / 0.5)^2 + (-0.2 + 1)^2) / 2
    assert neighbours.apa_loss(torch.tensor([0.5, -0.5]), log_ratios, 0.5).item() == pytest.approx(0.64)


def test_gspo_by_hand():
    # two tokens, log-ratios 0.3 and -0.1: ratio exp(0.1) = 1.105, clipped to 1.1 for A = 1 and not for A = -1
    logps, old = torch.tensor([[0.3, -0.1, 9.0]] * 2), torch.zeros(2, 3)
    mask, advantages = torch.tensor([[1, 1, 0]] * 2), torch.tensor([1.0, -1.0])
    found = neighbours.gspo_loss(logps, old, advantages, mask, 0.3, 0.1)
    assert found.item() == pytest.approx((-1.1 + 1.1051709) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighbours.rloo_advantages(torch.ones(3), 1), "at least 2"),
        (lambda: neighbours.remax_advantages(torch.ones(4), torch.ones(3), 2), "one per group"),
        (lambda: neighbours.remax_advantages(torch.ones(4), torch.ones(1), 2), "one per group"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Where they are GPG ---------------------------------------------------------------------------------------------------


def test_rloo_is_a_multiple_of_gpg():
    torch.testing.assert_close(
        neighbours.rloo_advantages(REWARDS, G), G / (G - 1) * objective.group_advantages(REWARDS, G)
    )


def test_remax_is_gpg_when_the_greedy_reward_is_the_group_mean():
    means = REWARDS.view(-1, G).mean(dim=1)
    torch.testing.assert_close(neighbours.remax_advantages(REWARDS, means, G), objective.group_advantages(REWARDS, G))
    assert not torch.allclose(
        neighbours.remax_advantages(REWARDS, means.round(), G), objective.group_advantages(REWARDS, G)
    )


def test_reinforce_rej_is_gpg_with_alpha_but_for_the_baseline():
    """With alpha, both are means over the kept groups; they differ by the group mean on every kept completion."""
    logps, _, mask = a_batch()
    rejected, alpha = neighbours.reinforce_rej_advantages(REWARDS, G), objective.age_alpha(4, 2)
    kept = objective.valid_groups(REWARDS, G).repeat_interleave(G)
    over_kept = objective.gpg_loss(logps[kept], REWARDS[kept], mask[kept], G)
    torch.testing.assert_close(objective.gpg_loss(logps, rejected, mask, G, alpha), over_kept)
    means = REWARDS.view(-1, G).mean(dim=1).repeat_interleave(G)
    torch.testing.assert_close(rejected - means * kept, objective.group_advantages(REWARDS, G))


def test_agpo_is_grpo_on_groups_with_a_signal_alone():
    valid = objective.valid_groups(REWARDS, G).repeat_interleave(G)
    ours = objective.grpo_advantages(REWARDS, G) * (G / (G - 1)) ** 0.5  # ddof 1 against 0
    torch.testing.assert_close(neighbours.agpo_advantages(REWARDS, G)[valid], ours[valid], atol=1e-3, rtol=0)
    assert (ours[~valid] == 0).all() and (neighbours.agpo_advantages(REWARDS, G)[~valid].abs() == 1).all()


@pytest.mark.parametrize("even", [True, False])
def test_regressions_have_the_gradient_of_gpg_where_they_start(even):
    """At log-ratio 0 and one length L: GPG's is -1/(N L) sum_i A_i grad sum_t logp; these lack the L."""
    logps, _, mask = a_batch(even=even)
    advantages = objective.group_advantages(REWARDS, G)
    gpg = gradient(objective.gpg_loss(logps, advantages, mask, G), logps)
    beta, length = 0.3, 5

    def of(loss):
        """Gradient of a loss of [16] log-ratios."""
        return gradient(loss(((logps - logps.detach()) * mask).sum(dim=1)), logps)

    found = {
        "gvpo": of(lambda lr: neighbours.gvpo_loss(REWARDS, lr, G, beta)) / beta,
        "rebel": of(lambda lr: neighbours.rebel_loss(REWARDS, lr, G, 1 / beta)) / beta * (G - 1) / G / 4,
        "apa": of(lambda lr: neighbours.apa_loss(advantages, lr, beta)) * beta / 2,
        "copg": of(lambda lr: -(neighbours.copg_weights(REWARDS, lr, G, beta) * lr).mean()) * (G - 1) / G,
    }
    for name, other in found.items():
        same = torch.allclose(other / length, gpg, atol=1e-12)
        assert same == even, name


def test_away_from_the_start_the_regressions_pull_back():
    """Beyond the reward's worth in log-ratio the sign turns; GPG has no such end."""
    rewards = torch.tensor([1.0, 0.0]).double()
    near, far = (torch.tensor([x, -x]).double() for x in (0.0, 3.0))
    assert neighbours.copg_weights(rewards, near, 2, 0.5)[0] > 0 > neighbours.copg_weights(rewards, far, 2, 0.5)[0]
    for loss in (neighbours.gvpo_loss, lambda r, lr, g, b: neighbours.rebel_loss(r, lr, g, 1 / b)):
        signs = []
        for at in (near, far):
            at = at.clone().requires_grad_(True)
            signs.append(gradient(loss(rewards, at, 2, 0.5), at)[0].sign().item())
        assert signs == [-1, 1]


def test_gspo_on_policy_is_gpg_with_std_per_sequence():
    logps, _, mask = a_batch()
    advantages = objective.grpo_advantages(REWARDS, G)
    found = gradient(neighbours.gspo_loss(logps, logps.detach(), advantages, mask, 0.2, 0.2), logps)
    wanted = gradient(objective.gpg_loss(logps, advantages, mask, G, normalization="sequence"), logps)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("loss", "normalization"), [("grpo", "sequence"), ("dapo", "group"), ("dr_grpo", "tokens")])
def test_clipped_neighbours_on_policy_are_gpg(loss, normalization):
    logps, _, mask = a_batch()
    old = logps.detach()
    if loss == "dr_grpo":
        advantages = objective.dr_grpo_advantages(REWARDS, G)
        found = objective.dr_grpo_loss(logps, old, advantages, mask, max_completion_length=7)
        wanted = objective.gpg_loss(logps, advantages, mask, G, normalization="batch") * mask.sum() / (16 * 7)
    else:
        advantages = objective.grpo_advantages(REWARDS, G)
        arguments = (G,) if loss == "dapo" else ()
        found = getattr(objective, f"{loss}_loss")(logps, old, advantages, mask, *arguments)
        wanted = objective.gpg_loss(logps, advantages, mask, G, normalization=normalization)
    torch.testing.assert_close(gradient(found, logps), gradient(wanted, logps))


# TRL's own losses -----------------------------------------------------------------------------------------------------


def trl_loss(logps, old, mask, advantages, loss_type: str, level: str, eps_low=0.2, eps_high=0.2):
    """TRL's `_compute_loss` on these log-probabilities; the trainer around it is a stand-in without a model."""
    trainer = MagicMock(
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        loss_type=loss_type,
        epsilon_low=eps_low,
        epsilon_high=eps_high,
        beta=0.0,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=7,
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
    )
    trainer.args.delta = None
    trainer.args.steps_per_generation = 1
    trainer.accelerator.num_processes = 1
    trainer.accelerator.gather = lambda value: value
    trainer._get_per_token_logps_and_entropies.return_value = (logps, torch.zeros_like(logps), None)
    ids = torch.zeros_like(mask)
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": mask}
    inputs |= {"advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum()}
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def ours(name, logps, old, mask, advantages):
    if name == "gspo":
        return neighbours.gspo_loss(logps, old, advantages, mask, 0.2, 0.3)
    if name == "dr_grpo":
        return objective.dr_grpo_loss(logps, old, advantages, mask, max_completion_length=7)
    if name == "dapo":
        return objective.dapo_loss(logps, old, advantages, mask, G, 0.2, 0.3, normalization="batch")
    return objective.grpo_loss(logps, old, advantages, mask)


@pytest.mark.parametrize(
    ("name", "loss_type", "level", "eps_high"),
    [
        ("grpo", "grpo", "token", 0.2),
        ("dr_grpo", "dr_grpo", "token", 0.2),
        ("dapo", "dapo", "token", 0.3),
        ("gspo", "grpo", "sequence", 0.3),
    ],
)
def test_losses_are_those_of_trl(name, loss_type, level, eps_high):
    """Value and gradient, with ratios on both sides of the clip range."""
    logps, old, mask = a_batch()
    advantages = objective.grpo_advantages(REWARDS, G)
    theirs = trl_loss(logps, old, mask, advantages, loss_type, level, eps_high=eps_high)
    mine = ours(name, logps, old, mask, advantages)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(gradient(mine, logps), gradient(theirs, logps))
    ratios = ((logps - old) * mask).exp()
    assert (ratios > 1 + eps_high).any() or name == "gspo"


# The bench of alphas --------------------------------------------------------------------------------------------------


def test_the_page_has_the_committed_numbers():
    result, page = json.loads(bench_alpha.RESULT.read_text(encoding="utf-8")), ROOT / "docs" / "alpha.md"
    text = page.read_text(encoding="utf-8")
    assert bench_alpha.table(result) in text and not result["commit"].endswith("dirty")
    assert result["released_r2"] == bench_alpha.dropped()
    found = result["released_r2"]
    # 10 of 16 groups seen, 7 of them trained on
    assert (found["alpha_released"], found["alpha"]) == (pytest.approx(16 / 10), pytest.approx(16 / 7))
    assert f"{found['length']:.2f} of its length" in text


def test_distances_of_one_batch():
    """alpha = 1 is 1 - 1/alpha away and on the line; so is verl's, at its own alpha over the exact one."""
    found = bench_alpha.measure((2.5,), 1)["2.5"]
    (exact,) = found["alpha of the batch"]
    rewards = bench_alpha.draw(2.5, 0).rewards
    for name, ratio in (("α = 1", 1 / exact), ("verl `gpg`, its α alone", neighbours.verl_alpha(rewards) / exact)):
        assert found[name]["length"] == [pytest.approx(ratio, rel=1e-3)]
        assert found[name]["distance"] == [pytest.approx(abs(ratio - 1), rel=1e-3)]
        assert found[name]["cosine"] == [pytest.approx(1, abs=1e-9)]
    assert found["B/(B−M), Eq. 5 (this package)"]["distance"] == [pytest.approx(0, abs=1e-9)]
    assert found["R0: α = 1, group std, per process"]["cosine"][0] < 0.999
    valid = np.mean(objective.valid_groups(rewards, 8).numpy())
    assert exact == pytest.approx(1 / valid, abs=1e-4)
