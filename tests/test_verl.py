"""GPG inside verl. What needs its code is left out without it; `make test-verl` fetches it (docs/verl.md)."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

import gpg_repro.integrations
from eval_harness.errors import UserError
from gpg_repro.integrations.verl import (
    VERL_VERSION,
    compute_score,
    gpg_exact,
    gpg_exact_eq5,
    main,
    register,
    write_training_rows,
)
from gpg_repro.objective import F_NORMS, age_alpha, gpg_loss, group_advantages, valid_groups
from gpg_repro.recipe import load_recipe

CONFIG = Path(gpg_repro.integrations.__file__).parent / "verl_gpg_7b.yaml"
MIXED = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
"""Two groups of four without signal, two with: alpha = 2. Seven of the sixteen rewards are not 0."""


def batch_of(rewards: list[list[float]], dtype: torch.dtype = torch.float64, max_length: int = 9) -> SimpleNamespace:
    """A batch as verl has it: rows in random order, ragged masks, the reward on the last token of each response."""
    generator = random.Random(0)
    rows = [(f"uid-{group}", reward) for group, values in enumerate(rewards) for reward in values]
    order = generator.sample(range(len(rows)), len(rows))
    lengths = torch.tensor([generator.randint(1, max_length) for _ in rows])
    mask = (torch.arange(max_length) < lengths.unsqueeze(1)).long()
    scores = torch.zeros(len(rows), max_length, dtype=dtype)
    scores[torch.arange(len(rows)), lengths - 1] = torch.tensor([reward for _, reward in rows], dtype=dtype)
    return SimpleNamespace(
        order=order,
        back=torch.tensor(order).argsort(),
        rewards=scores[order],
        mask=mask[order],
        index=[rows[row][0] for row in order],
    )


def alpha_times_advantages(rewards: list[list[float]], f_norm: str = "none") -> torch.Tensor:
    flat, size = torch.tensor(rewards, dtype=torch.float64).flatten(), len(rewards[0])
    valid = valid_groups(flat, size)
    return age_alpha(len(valid), int((~valid).sum())) * group_advantages(flat, size, f_norm)


# The estimators, without verl ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("f_norm", F_NORMS)
def test_every_token_carries_alpha_times_the_advantage_of_its_response(f_norm):
    rewards = [[1, 1, 1, 1], [0.5, 0.1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [2, 2, 2, 0]]
    batch = batch_of(rewards)
    advantages, returns = gpg_exact(batch.rewards, batch.mask, batch.index, {"f_norm": f_norm})
    expected = alpha_times_advantages(rewards, f_norm)[batch.order].unsqueeze(1) * batch.mask
    assert torch.equal(advantages, expected) and torch.equal(returns, expected)
    assert expected.any() and 0 < batch.mask.sum() < batch.mask.numel()


def test_batch_std_is_that_of_all_rewards():
    batch = batch_of(MIXED)
    advantages, _ = gpg_exact(batch.rewards, batch.mask, batch.index, {"f_norm": "batch"})
    std = (7 * 9 / 16 / 15) ** 0.5  # of seven ones and nine zeros
    first_of_third_group = batch.order.index(8)
    assert advantages[first_of_third_group, 0].item() == pytest.approx(2 * 0.75 / (std + 1e-4), rel=1e-12)


@pytest.mark.parametrize("estimator", [gpg_exact, gpg_exact_eq5])
def test_padding_is_in_no_group_and_a_lost_response_in_no_mean(estimator):
    batch = batch_of([*MIXED, [0, 0]])
    # lost: the only right answer of the third group, which leaves it without signal, and one of two in the fourth
    lost = [batch.order.index(row) for row in (8, 12)]
    padding = [row for row, uid in enumerate(batch.index) if uid == "uid-4"]
    keep = [row for row in range(len(batch.index)) if row not in lost + padding]
    expected, _ = estimator(batch.rewards[keep], batch.mask[keep], [batch.index[row] for row in keep])
    batch.mask[lost + padding] = 0
    advantages, _ = estimator(batch.rewards, batch.mask, batch.index)
    assert torch.equal(advantages[keep], expected)
    assert advantages.count_nonzero() == expected.count_nonzero() > 0
    if estimator is gpg_exact:
        # one group of four is valid, not one of five, and its mean is 1/3
        assert advantages.max().item() == pytest.approx(4 * (1 - 1 / 3), rel=1e-12)


@pytest.mark.parametrize("estimator", [gpg_exact, gpg_exact_eq5])
def test_without_a_valid_group_there_is_no_gradient(estimator):
    batch = batch_of([[1, 1, 1], [0, 0, 0], [0.1, 0.1, 0.1]], torch.float32)
    advantages, _ = estimator(batch.rewards, batch.mask, batch.index)
    assert advantages.shape == batch.mask.shape and not advantages.any()
    assert not estimator(batch.rewards, torch.zeros_like(batch.mask), batch.index)[0].any()


@pytest.mark.parametrize("seed", range(5))
def test_summed_over_tokens_the_second_estimator_is_equation_5(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(2, (6, 4), generator=generator).double()
    rewards[0], rewards[1, 0], rewards[1, 1] = 1, 0, 1
    batch = batch_of(rewards.tolist())
    logps = -torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64)
    advantages, _ = gpg_exact_eq5(batch.rewards, batch.mask, batch.index)
    expected = gpg_loss(
        logps[batch.back], alpha_times_advantages(rewards.tolist()), batch.mask[batch.back], 4, normalization="group"
    )
    assert (-logps * advantages * batch.mask).sum().item() == pytest.approx(expected.item(), rel=1e-12)


def test_what_cannot_be_estimated_is_said():
    batch = batch_of(MIXED)
    with pytest.raises(UserError, match="no `uid`"):
        gpg_exact(batch.rewards, batch.mask)
    with pytest.raises(ValueError, match="f_norm='std'"):
        gpg_exact(batch.rewards, batch.mask, batch.index, {"f_norm": "std"})


def test_rewards_of_turns_tie_as_their_decimals_do():
    """0.1 + 0.2 + 0.4 in three turns against 0.7 in one: no signal, though their float32 sums differ. alpha = 2."""
    rewards = torch.tensor([[0.1, 0.2, 0.4], [0.0, 0.0, 0.7], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert rewards[0].sum() != rewards[1].sum()
    advantages, _ = gpg_exact(rewards, torch.ones(4, 3), ["a", "a", "b", "b"])
    assert advantages[:, 0].tolist() == [0.0, 0.0, 1.0, -1.0]


def test_a_kl_term_in_the_rewards_is_refused():
    batch = batch_of(MIXED)
    with pytest.raises(UserError, match="use_kl_in_reward=True .* every group counts as valid .* Set it to False"):
        gpg_exact(batch.rewards, batch.mask, batch.index, {"use_kl_in_reward": True})


@pytest.fixture
def fake_verl(tmp_path, monkeypatch):
    """Puts a package named verl with the given core_algos in the place of any other."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "verl"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)

    def install(core_algos: str) -> None:
        folder = tmp_path / "verl" / "trainer" / "ppo"
        folder.mkdir(parents=True)
        for package in (folder, folder.parent, folder.parent.parent):
            (package / "__init__.py").touch()
        (folder / "core_algos.py").write_text(core_algos)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "verl":
            del sys.modules[name]


@pytest.mark.parametrize(
    ("core_algos", "message"),
    [
        ("import a_dependency_of_verl", "a_dependency_of_verl'.* Install what it needs"),
        ("def register_adv_est(name): ...", "registry of advantage estimators was not found.*verl=="),
        ("def get_adv_estimator_fn(name): ...\ndef register_adv_est(name): return lambda fn: fn", "did not take"),
    ],
)
def test_registration_says_what_is_wrong_with_verl(fake_verl, core_algos, message):
    fake_verl(core_algos)
    with pytest.raises(UserError, match=message):
        register()


def test_registration_without_verl(monkeypatch):
    for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"Install verl==0\.9\.1"):
        register()


def test_the_version_fetched_is_the_one_errors_name():
    lines = (Path(__file__).parent.parent / "requirements" / "verl.txt").read_text(encoding="utf-8").splitlines()
    assert f"verl=={VERL_VERSION}" in lines


# Reward, rows, configuration: without verl too ----------------------------------------------------------------------


def test_the_reward_is_ours():
    assert compute_score("any", r"so \boxed{\frac{1}{2}}", "0.5", extra_info={}) == 1.0
    assert compute_score("any", r"so \boxed{2}", "0.5") == 0.0


def test_training_rows_are_in_verls_columns(tmp_path, capsys):
    pd.DataFrame(
        {
            "prompt": [[{"role": "user", "content": text}] for text in ("<|im_start|>user\n1+1?", "b", "c", "d")],
            "target": ["2", None, "", "7"],
        }
    ).to_json(tmp_path / "simplelr_qwen_level3to5.jsonl", orient="records", lines=True)
    out = tmp_path / "verl" / "train.parquet"
    assert main([str(out), "--data-root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("2 rows in ")
    rows = pd.read_parquet(out)
    assert list(rows["prompt"][0]) == [{"role": "user", "content": "<|im_start|>user\n1+1?"}]
    assert [row["ground_truth"] for row in rows["reward_model"]] == ["2", "7"]
    assert set(rows["data_source"]) == {"simplerl_level3to5"}
    with pytest.raises(UserError, match="prompts are conversations"):
        write_training_rows(out, "tiny_s1", num=2)


def test_the_configuration_is_the_recipe():
    config, recipe = yaml.safe_load(CONFIG.read_text()), load_recipe("table4_gpg_paper", scale="paper")
    setup, training, objective = recipe.setup, recipe.setup.training, recipe.objective
    actor, rollout, trainer = (
        config["actor_rollout_ref"]["actor"],
        config["actor_rollout_ref"]["rollout"],
        config["trainer"],
    )
    processes = trainer["nnodes"] * trainer["n_gpus_per_node"]
    completions = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.num_processes
    assert config["data"]["train_batch_size"] * rollout["n"] == completions == 144 * 8
    assert actor["ppo_mini_batch_size"] == config["data"]["train_batch_size"]
    assert (rollout["n"], processes) == (training.num_generations, training.num_processes)
    assert trainer["total_training_steps"] == training.max_steps
    assert (actor["optim"]["lr"], actor["optim"]["weight_decay"]) == (training.learning_rate, training.weight_decay)
    assert actor["optim"]["lr_scheduler_type"] == training.lr_scheduler_type
    assert actor["grad_clip"] == training.max_grad_norm
    assert config["actor_rollout_ref"]["model"]["path"] == setup.base
    assert config["data"]["max_prompt_length"] == training.max_prompt_length
    assert config["data"]["max_response_length"] == training.max_completion_length
    assert (rollout["temperature"], rollout["top_p"]) == (training.temperature, training.top_p)
    sampler = trainer["v1"]["sampler"]["sampler_kwargs"]
    assert sampler == {"beta_th": objective.beta_th, "max_draws": objective.max_draws}
    assert config["algorithm"]["f_norm"] == objective.f_norm and objective.normalization == "group"
    assert dict(setup.rewards) == {"accuracy_lv35": 1.0}


# With verl ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core_algos():
    """verl's registry and losses, with our estimators registered."""
    register()
    return importlib.import_module("verl.trainer.ppo.core_algos")


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
@pytest.mark.parametrize("f_norm", F_NORMS)
def test_verl_dispatches_to_our_estimator(core_algos, f_norm):
    import numpy as np
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    register()  # again, as in every process that imports the plug-in twice
    batch = batch_of(MIXED)
    data = DataProto.from_dict(
        {"token_level_rewards": batch.rewards, "response_mask": batch.mask},
        non_tensors={"uid": np.array(batch.index, dtype=object)},
    )
    config = OmegaConf.create({"f_norm": f_norm})
    OmegaConf.set_struct(config, True)
    data = compute_advantage(data, "gpg_exact", config=config)
    expected = alpha_times_advantages(MIXED, f_norm)[batch.order].unsqueeze(1) * batch.mask
    assert torch.equal(data.batch["advantages"], expected) and torch.equal(data.batch["returns"], expected)


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
def test_verls_own_estimator_counts_wrong_answers_instead(core_algos):
    batch = batch_of(MIXED)
    advantages = {
        name: core_algos.get_adv_estimator_fn(name)(
            token_level_rewards=batch.rewards, response_mask=batch.mask, index=batch.index, config={}
        )[0][batch.back, 0]
        for name in ("gpg", "gpg_exact")
    }
    unscaled = group_advantages(torch.tensor(MIXED, dtype=torch.float64).flatten(), 4)
    torch.testing.assert_close(advantages["gpg_exact"], 2 * unscaled, rtol=0, atol=0)
    torch.testing.assert_close(advantages["gpg"], 16 / 7 * unscaled, rtol=1e-6, atol=1e-6)


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
@pytest.mark.parametrize(
    ("estimator", "loss_agg_mode", "normalization"),
    [
        ("gpg_exact_eq5", "token-sum", "group"),
        ("gpg_exact", "token-mean", "batch"),
        ("gpg_exact", "seq-mean-token-mean", "sequence"),
    ],
)
def test_verls_loss_is_ours_in_any_layout(core_algos, estimator, loss_agg_mode, normalization):
    batch = batch_of(MIXED)
    logps = -torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logps.requires_grad_()
    advantages, _ = core_algos.get_adv_estimator_fn(estimator)(
        token_level_rewards=batch.rewards, response_mask=batch.mask, index=batch.index, config={}
    )
    processes = [[range(0, 3), range(3, 8)], [range(8, 14), range(14, 16)]]  # two, with two micro-batches each
    info = {"dp_size": 2, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": 16, "loss_scale_factor": None}
    loss = 0.0
    for rows in [list(rows) for micro_batches in processes for rows in micro_batches]:
        part, _ = core_algos.get_policy_loss_fn("gpg")(
            old_log_prob=logps[rows].detach(),
            log_prob=logps[rows],
            advantages=advantages[rows],
            response_mask=batch.mask[rows],
            loss_agg_mode=loss_agg_mode,
            config=SimpleNamespace(global_batch_info=info),
        )
        loss = loss + part / 2  # data parallelism averages over processes
    expected = gpg_loss(
        logps[batch.back], alpha_times_advantages(MIXED), batch.mask[batch.back], 4, normalization=normalization
    )
    (gradient,) = torch.autograd.grad(loss, logps)
    (expected_gradient,) = torch.autograd.grad(expected, logps)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=0)
    assert gradient.any()


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
def test_verl_accepts_the_configuration(core_algos):
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    with initialize_config_module("gpg_repro.integrations", version_base=None):
        config = compose(CONFIG.stem, overrides=["data.train_files=train.parquet"])
    assert not need_critic(config) and not need_reference_policy(config)
    validate_config(config, use_reference_policy=False, use_critic=False)
    assert core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator) is gpg_exact_eq5
    assert core_algos.get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode)
    assert get_custom_reward_fn(config)(solution_str=r"\boxed{3}", ground_truth="3", data_source="") == 1.0
    environment = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env).env_vars
    assert environment.VERL_USE_EXTERNAL_MODULES == "gpg_repro.integrations.verl_plugin"
    assert "NCCL_DEBUG" in environment


class Store:
    """In the place of TransferQueue: prompts with their state, trajectories with their rewards."""

    def __init__(self, draws: list[list[list[float]]]):
        self.draws, self.num_drawn, self.polls = draws, 0, 0
        self.tags: dict[str, dict] = {}
        self.scores: dict[str, torch.Tensor] = {}

    def draw(self, num_prompts: int) -> None:
        groups = self.draws[self.num_drawn]
        assert len(groups) == num_prompts
        for group, rewards in enumerate(groups):
            uid = f"d{self.num_drawn}g{group}"
            self.tags[uid] = {"is_prompt": True, "status": "running", "global_steps": 1}
            self.scores |= {f"{uid}_{i}_0": torch.tensor([0.0, reward]) for i, reward in enumerate(rewards)}
        self.num_drawn += 1

    def kv_list(self) -> dict[str, dict]:
        self.polls += 1
        listing = {key: dict(tag) for key, tag in self.tags.items()}
        for uid, tag in list(self.tags.items()):  # what is running now is done at the next poll
            if tag.get("status") == "running":
                finished = [key for key in self.scores if key.split("_")[0] == uid]
                tag["status"] = "finished" if finished else "failure"
                self.tags |= {key: {"seq_len": 2} for key in finished}
        return {"train": listing}

    def kv_clear(self, partition_id: str, keys: list[str]) -> None:
        for key in keys:
            del self.tags[key]

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, list]:
        assert select_fields == ["rm_scores"]
        return {"rm_scores": [self.scores[key] for key in keys]}


@pytest.fixture
def sampler(core_algos, monkeypatch):
    """Makes a store with the given draws, the first one under way, and the replay buffer on it."""
    import transfer_queue
    from verl.utils.import_utils import load_extern_object

    def make(draws: list, trainer_mode: str = "sync", **sampler_kwargs):
        store = Store(draws)
        store.draw(len(draws[0]))
        for name in ("kv_list", "kv_clear", "kv_batch_get"):
            monkeypatch.setattr(transfer_queue, name, getattr(store, name))
        hook = yaml.safe_load(CONFIG.read_text())["trainer"]["v1"]["sampler"]["custom_sampler"]
        buffer = load_extern_object(hook["path"], hook["name"])(
            trainer_mode=trainer_mode,
            trainer_config={},
            max_off_policy_threshold=8,
            max_off_policy_strategy="drop",
            sampler_kwargs=sampler_kwargs,
            refill_fn=store.draw,
            poll_interval=0.0,
        )
        return store, buffer

    return make


EASY, HARD, VALID, HALF = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.1, 0.1]


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
@pytest.mark.parametrize(
    ("beta_th", "chosen", "metrics"),
    [
        (0.0, ["d0g0", "d0g1", "d0g2", "d0g3"], (1, 1, 0)),
        (0.25, ["d0g0", "d0g1", "d0g2", "d0g3"], (1, 1, 0)),
        (0.6, ["d0g2", "d1g0", "d1g3", "d1g1"], (2, 3, 0)),
        (1.0, ["d0g2", "d1g0", "d1g3", "d2g0"], (3, 4, 1)),
    ],
)
def test_draws_go_on_until_the_threshold(sampler, beta_th, chosen, metrics):
    store, buffer = sampler(
        [[EASY, HALF, VALID, HARD], [VALID, HARD, EASY, VALID], [VALID, VALID, EASY, EASY]], beta_th=beta_th
    )
    batch, report = buffer.sample(global_steps=1, partition_id="train", batch_size=4)
    assert [key.split("_")[0] for key in batch.keys] == [uid for uid in sorted(chosen) for _ in range(2)]
    assert (
        tuple(report[f"training/gpg/{name}"] for name in ("draws", "valid_groups", "dropped_valid_groups")) == metrics
    )
    assert set(store.tags) == set(batch.keys)  # nothing else is left behind for the next step
    assert store.polls == 2 * metrics[0]  # each draw was waited for


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
def test_after_max_draws_the_batch_is_taken_as_it_is(sampler, caplog):
    store, buffer = sampler([[HARD, HARD], [HARD, []], [VALID, VALID]], beta_th=0.5, max_draws=2)
    batch, report = buffer.sample(global_steps=7, partition_id="train", batch_size=2)
    assert (store.num_drawn, report["training/gpg/valid_groups"]) == (2, 0)
    assert batch.keys == ["d1g0_0_0", "d1g0_1_0"]  # the failed group has no trajectory; verl pads
    assert "Step 7: 0 of 2 groups are valid after 2 draws" in caplog.text


@pytest.mark.needs("verl")
@pytest.mark.long("needs verl, whose imports take long")
@pytest.mark.parametrize(
    ("trainer_mode", "settings", "message"),
    [
        ("colocate_async", {"beta_th": 0.6}, "trainer_mode=sync"),
        ("sync", {}, "expected beta_th"),
        ("sync", {"beta_th": 60}, "expected beta_th"),
        ("sync", {"beta_th": 0.6, "max_draw": 3}, "expected beta_th"),
        ("sync", {"beta_th": 0.6, "max_draws": 0}, "at least 1"),
    ],
)
def test_impossible_thresholds(sampler, trainer_mode, settings, message):
    with pytest.raises(UserError, match=message):
        sampler([[VALID]], trainer_mode, **settings)
