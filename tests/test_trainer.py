"""GPGTrainer against plain-torch references, against TRL's own trainer, and against itself in other layouts.

Rollouts are scripted (`scripted.py`). Run as a script on both processes, this file is the worker of the two-process
tests.
"""

import json
import math
import os
import sys
from pathlib import Path

import processes
import pytest
import scripted
import torch
from datasets import Dataset
from scripted import (
    DIGIT_0,
    LETTER_A,
    NUM_GENERATIONS,
    UNSCORED,
    WORDS,
    accuracy_reward,
    completion_of,
    group_of,
    letter_accuracy,
    make_model,
    make_tokenizer,
    prompt_of,
    scripted_rollout,
)
from transformers import Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from gpg_repro.objective import age_alpha, gpg_loss, group_advantages, kl_k3, valid_groups
from gpg_repro.trainer import (
    REQUIRED_SETTINGS,
    GPGConfig,
    GPGTrainer,
    GRPOBaselineConfig,
    GRPOBaselineTrainer,
    group_metrics,
)

# Rewards of 5 groups of 4: mixed, all right, all wrong, mixed, mixed. B = 5, M = 2, alpha = 5/3.
REWARDS = ((1, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 1))
NO_SIGNAL = ((1, 1, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0), (0, 0, 0, 0))
# (per-device micro-batch, accumulation) for the 20 completions
ONE_PROCESS_LAYOUTS = [(20, 1), (10, 2), (5, 4), (2, 10)]
TWO_PROCESS_LAYOUTS = [(10, 1), (5, 2), (2, 5)]


def rare_reward(completion_ids, **kwargs):
    return [float(sum(ids) % 5 == 0) for ids in completion_ids]


def short_reward(completion_ids, **kwargs):
    return [1 / len(ids) for ids in completion_ids]


def train(output_dir, trainer_class=GPGTrainer, rewards=REWARDS, layout=(20, 1), **settings):
    """`scripted.train` on this module's batch of 20 completions."""
    return scripted.train(output_dir, trainer_class, rewards=rewards, layout=layout, **settings)


def logged(trainer, step: int = 1) -> dict[str, float]:
    return next(entry for entry in trainer.state.log_history if entry["step"] == step and "loss" in entry)


def forward_logps(model, rewards=REWARDS, temperature: float = 1.0):
    """[N, T] log-probabilities and mask of the scripted batch, from the model's plain logits, row by row."""
    tokenizer = make_tokenizer()
    rows = []
    for group, group_rewards in enumerate(rewards):
        prompt = tokenizer(prompt_of(group))["input_ids"]
        for place, reward in enumerate(group_rewards):
            completion = torch.tensor(completion_of(group, place, reward))
            logits = model(torch.tensor([prompt + completion.tolist()])).logits[0, len(prompt) - 1 : -1]
            rows.append((logits / temperature).log_softmax(-1).gather(1, completion.unsqueeze(1)).squeeze(1))
    logps = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return logps, torch.arange(logps.size(1)) < lengths.unsqueeze(1)


def reference_gradient(normalization="group", f_norm="none", age=True, temperature=1.0, micro_batch_size=20):
    """Gradient of `gpg_loss` of the whole scripted batch; for "local", of its mean over micro-batches."""
    model = make_model()
    logps, mask = forward_logps(model, temperature=temperature)
    rewards = torch.tensor(REWARDS).float().flatten()
    advantages = group_advantages(rewards, NUM_GENERATIONS, f_norm)
    num_invalid = int((~valid_groups(rewards, NUM_GENERATIONS)).sum())
    alpha = age_alpha(len(REWARDS), num_invalid) if age else 1.0
    if normalization == "local":
        micro_batches = torch.arange(len(rewards)).split(micro_batch_size)
        losses = [gpg_loss(logps[i], advantages[i], mask[i], 1, alpha, "local") for i in micro_batches]
        loss = torch.stack(losses).mean()
    else:
        loss = gpg_loss(logps, advantages, mask, NUM_GENERATIONS, alpha, normalization)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, loss.item()


def relative_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of the expectation, all parameters taken as one vector."""
    assert actual.keys() == expected.keys()
    difference = torch.cat([(actual[name] - expected[name]).flatten() for name in expected])
    norm = torch.cat([value.flatten() for value in expected.values()]).norm()
    assert norm > 1e-2
    return (difference.norm() / norm).item()


# The gradient -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ONE_PROCESS_LAYOUTS)
@pytest.mark.parametrize("normalization", ["group", "sequence", "batch", "local"])
def test_gradient_is_that_of_the_objective_in_every_layout(tmp_path, normalization, layout):
    trainer, gradients = train(tmp_path, normalization=normalization, layout=layout)
    expected, loss = reference_gradient(normalization, micro_batch_size=layout[0])
    assert relative_error(gradients[0], expected) < 1e-6
    assert logged(trainer)["loss"] == pytest.approx(loss, abs=1e-4)  # HF rounds the logged loss


@pytest.mark.parametrize(("f_norm", "age"), [("group", True), ("batch", True), ("none", False)])
def test_switches_are_independent(tmp_path, f_norm, age):
    _, gradients = train(tmp_path, f_norm=f_norm, age=age, layout=(10, 2))
    assert relative_error(gradients[0], reference_gradient(f_norm=f_norm, age=age)[0]) < 1e-6


@pytest.mark.parametrize(
    ("loss_type", "normalization", "layout"),
    [
        ("grpo", "sequence", (20, 1)),
        ("grpo", "sequence", (5, 4)),
        ("dapo", "batch", (5, 4)),
        ("bnpo", "local", (20, 1)),
    ],
)
def test_on_policy_gradient_equals_that_of_trl(tmp_path, loss_type, normalization, layout):
    _, grpo = train(tmp_path, GRPOTrainer, layout=layout, loss_type=loss_type, beta=0.0)
    _, gpg = train(tmp_path, f_norm="group", age=False, layout=layout, normalization=normalization)
    assert relative_error(gpg[0], grpo[0]) < 1e-6


@pytest.mark.parametrize(("logp_temperature", "temperature"), [("sampling", 0.7), ("one", 1.0)])
def test_logp_temperature(tmp_path, logp_temperature, temperature):
    _, gradients = train(tmp_path, temperature=0.7, logp_temperature=logp_temperature)
    assert relative_error(gradients[0], reference_gradient(temperature=temperature)[0]) < 1e-6


def test_gradient_checkpointing_changes_nothing(tmp_path):
    _, gradients = train(tmp_path, gradient_checkpointing=True, layout=(5, 4))
    assert relative_error(gradients[0], reference_gradient()[0]) < 1e-6


def test_completions_without_a_reward_are_left_out(tmp_path):
    # group 2 keeps rewards 1 0; group 3 has none and is not a group: B = 4, M = 1 (group 4), alpha = 4/3
    x = UNSCORED
    rewards = ((1, 1, 0, 0), (1, x, 0, x), (x, x, x, x), (1, 1, 1, 1), (0, 1, 1, 1))
    trainer, gradients = train(tmp_path, rewards=rewards, layout=(5, 4))
    model = make_model()
    logps, mask = forward_logps(model, rewards)
    kept = {0: [0, 1, 2, 3], 1: [4, 6], 4: [16, 17, 18, 19]}
    losses = []
    for group, rows in kept.items():
        values = torch.tensor([float(r) for r in rewards[group] if r != x])
        losses.append(gpg_loss(logps[rows], group_advantages(values, len(rows)), mask[rows], len(rows)))
    (4 / 3 * torch.stack(losses).sum() / 4).backward()
    assert relative_error(gradients[0], {name: p.grad for name, p in model.named_parameters()}) < 1e-6
    log = logged(trainer)
    assert (log["num_groups"], log["num_valid_groups"], log["num_unscored_completions"]) == (4, 3, 6)
    assert log["alpha"] == pytest.approx(4 / 3)


def test_a_batch_without_signal_has_a_zero_gradient_and_finite_logs(tmp_path):
    trainer, gradients = train(tmp_path, rewards=NO_SIGNAL, layout=(5, 4))
    assert all(not gradient.any() for gradient in gradients[0].values())
    log = logged(trainer)
    assert (log["alpha"], log["alpha_applied"], log["inverse_alpha"], log["num_valid_groups"]) == (0, 0, 0, 0)
    assert log["loss"] == 0
    assert all(value is not None and math.isfinite(value) for value in log.values())


# Resampling ---------------------------------------------------------------------------------------------------------

# Draws of two groups: (all right, valid), (all wrong, valid), (valid, valid).
DRAWS = ((1, 1, 1, 1), (1, 0, 0, 0), (0, 0, 0, 0), (1, 1, 0, 0), (0, 1, 1, 1), (1, 0, 1, 0))


def kept_gradient(kept, num_groups, alpha, rewards=DRAWS):
    """Gradient of alpha times the mean over `num_groups` groups of which only `kept` carry a signal."""
    model = make_model()
    logps, mask = forward_logps(model, rewards)
    losses = []
    for group in kept:
        rows = slice(4 * group, 4 * group + 4)
        advantages = group_advantages(torch.tensor(rewards[group]).float(), 4)
        losses.append(gpg_loss(logps[rows], advantages, mask[rows], 4))
    (alpha * torch.stack(losses).sum() / num_groups).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("beta_th", "kept", "alpha", "num_draws", "dropped"),
    [(0.5, (1,), 2.0, 1, 0), (0.6, (1, 3), 1.0, 2, 0), (1.0, (1, 3), 1.0, 2, 0)],
)
@pytest.mark.parametrize("layout", [(8, 1), (2, 4)])
def test_draws_again_until_the_share_is_reached(tmp_path, beta_th, kept, alpha, num_draws, dropped, layout):
    trainer, gradients = train(tmp_path, rewards=DRAWS, layout=layout, beta_th=beta_th)
    assert relative_error(gradients[0], kept_gradient(kept, 2, alpha)) < 1e-6
    log = logged(trainer)
    assert (log["alpha"], log["num_valid_groups"], log["frac_easy"]) == (2, 1, 0.5)  # always the first draw's
    assert (log["alpha_applied"], log["batch/alpha"], log["batch/num_valid_groups"]) == (alpha, alpha, len(kept))
    assert (log["num_draws"], log["num_dropped_groups"]) == (num_draws, dropped)
    assert log["prompts_consumed"] == 2 * num_draws
    assert log["tokens/generated"] == sum(
        len(completion_of(group, place, DRAWS[group][place])) for group in range(2 * num_draws) for place in range(4)
    )
    assert log["tokens/trained"] == sum(
        len(completion_of(group, place, DRAWS[group][place])) for group in kept for place in range(4)
    )
    assert log["batch/reward"] == pytest.approx(5 / 8 if num_draws == 1 else 3 / 8)


def test_valid_groups_beyond_the_batch_are_dropped_and_counted(tmp_path):
    rewards = ((1, 0, 0, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 1))  # one valid of two, then two of two
    trainer, gradients = train(tmp_path, rewards=rewards, layout=(8, 1), beta_th=0.9)
    assert relative_error(gradients[0], kept_gradient((0, 2), 2, 1.0, rewards)) < 1e-6
    assert logged(trainer)["num_dropped_groups"] == 1


def test_the_next_step_goes_on_where_the_last_draw_ended(tmp_path):
    trainer, gradients = train(tmp_path, rewards=DRAWS, layout=(8, 1), beta_th=1.0, max_steps=2, learning_rate=0.0)
    assert relative_error(gradients[1], kept_gradient((4, 5), 2, 1.0)) < 1e-6
    assert [logged(trainer, step)["prompts_consumed"] for step in (1, 2)] == [4, 6]


def test_resampling_neither_shortens_nor_lengthens_training(tmp_path):
    # 3 draws an epoch; 2 epochs are 6 steps whatever they consume, and the schedule ends at zero
    settings = {"rewards": DRAWS, "layout": (8, 1), "max_steps": -1, "num_train_epochs": 2}
    for beta_th in (0.0, 1.0):
        trainer, gradients = train(tmp_path, beta_th=beta_th, **settings)
        assert len(gradients) == trainer.state.global_step == 6
        assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}
    assert logged(trainer, 6)["prompts_consumed"] > 12


def test_draws_end_at_the_limit_with_a_warning_and_a_whole_step(tmp_path, caplog):
    settings = {"rewards": NO_SIGNAL[:2], "layout": (8, 1), "beta_th": 0.6, "max_draws": 3, "max_steps": 2}
    trainer, gradients = train(tmp_path, **settings)
    assert len(gradients) == 2 and all(not g.any() for step in gradients for g in step.values())
    assert "Step 1: 0 of 2 groups are valid after 3 draws, short of beta_th=0.6" in caplog.text
    log = logged(trainer)
    assert (log["num_draws"], log["prompts_consumed"], log["alpha_applied"], log["loss"]) == (3, 6, 0, 0)
    assert all(math.isfinite(value) for value in log.values())
    caplog.clear()
    trainer, gradients = train(tmp_path, **settings | {"rewards": (*DRAWS[:4], *DRAWS[:2]), "max_draws": 1})
    assert relative_error(gradients[0], kept_gradient((1,), 2, 2.0)) < 1e-6
    assert "Step 1: 1 of 2 groups are valid after 1 draws" in caplog.text


# The KL ablation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["paper", "r1"])
def test_kl_term_is_added_for_every_completion(tmp_path, monkeypatch, fidelity):
    """The second step's gradient: the first has no distance to the initial model."""
    start, ends = tmp_path / "initial", []
    make_model().save_pretrained(start)
    reference = make_model()
    for beta in (0.0, 0.5):
        settings = {"max_steps": 2, "max_grad_norm": 0.0, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
        model = Qwen2ForCausalLM.from_pretrained(start)
        trainer, gradients = train(
            tmp_path / str(beta), model=model, beta=beta, fidelity=fidelity, normalization="group", **settings
        )
        ends.append((trainer, gradients))
    (_, plain), (trainer, with_kl) = ends
    assert relative_error(with_kl[0], plain[0]) < 1e-5  # k3 and its gradient are zero at the start
    log = logged(trainer, 2)
    assert log["kl"] > 0

    model = Qwen2ForCausalLM.from_pretrained(start)  # after the first step of AdamW
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for name, parameter in model.named_parameters():
        parameter.grad = with_kl[0][name].clone()
    optimizer.step()
    optimizer.zero_grad()
    logps, mask = forward_logps(model)
    with torch.no_grad():
        ref_logps, _ = forward_logps(reference)
    rewards = torch.tensor(REWARDS).float().flatten()
    loss = gpg_loss(logps, group_advantages(rewards, 4), mask, 4, 5 / 3)
    kl = kl_k3(logps, ref_logps).masked_fill(~mask, 0)
    per_group = kl.view(5, -1).sum(1) / mask.view(5, -1).sum(1)
    (loss + 0.5 * (1.0 if fidelity == "paper" else 5 / 3) * per_group.mean()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert relative_error(with_kl[1], expected) < 1e-5
    assert log["tokens/trained"] == log["tokens/generated"]  # nothing is skipped: groups without signal have a KL


# Two processes ------------------------------------------------------------------------------------------------------


def two_process_worker(output_dir: Path) -> None:
    """Every normalisation and layout on two gloo processes, then a resume; the main process writes the measurements."""
    for normalization in ("group", "sequence", "batch", "local"):
        for layout in TWO_PROCESS_LAYOUTS:
            trainer, gradients = train(output_dir, normalization=normalization, layout=layout, ddp_backend="gloo")
            if trainer.accelerator.is_main_process:
                name = f"{normalization}-{layout[0]}"
                torch.save(gradients[0], output_dir / f"{name}.pt")
                (output_dir / f"{name}.json").write_text(json.dumps(logged(trainer)))
    # Transformers maps the optimizer state to "cpu:0" here, a location that torch cannot restore by itself.
    torch.serialization.register_package(
        0, lambda storage: None, lambda storage, location: storage if location == "cpu:0" else None
    )
    assert_resumes_identically(output_dir, 3, layout=(2, 2), ddp_backend="gloo")
    losses = {name: evaluated_by_hand(output_dir, 2, normalization=name, ddp_backend="gloo") for name in EVALUATED}
    (output_dir / f"evaluated.{os.environ['RANK']}.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("two_processes")
    run = processes.launch(2, __file__, str(output_dir), folder=output_dir)
    assert run.returncode == 0, run.stderr[-4000:]
    return output_dir


@pytest.mark.full("two processes that train")
@pytest.mark.parametrize("layout", TWO_PROCESS_LAYOUTS)
@pytest.mark.parametrize("normalization", ["group", "sequence", "batch", "local"])
def test_two_processes_give_the_gradient_of_one(two_processes, normalization, layout):
    # 5 groups on 2 processes: the middle one is split between them
    gradients = torch.load(two_processes / f"{normalization}-{layout[0]}.pt")
    expected, loss = reference_gradient(normalization, micro_batch_size=layout[0])
    assert relative_error(gradients, expected) < 1e-6
    log = json.loads((two_processes / f"{normalization}-{layout[0]}.json").read_text())
    assert log["loss"] == pytest.approx(loss, abs=1e-4)
    assert log["alpha"] == log["alpha_applied"] == pytest.approx(5 / 3)
    assert (log["num_groups"], log["num_valid_groups"]) == (5, 3)
    assert log["rewards/accuracy_reward"] == pytest.approx(10 / 20)


# Metrics ------------------------------------------------------------------------------------------------------------


def test_logged_metrics_by_hand(tmp_path):
    trainer, _ = train(tmp_path, layout=(5, 4))
    log = logged(trainer)
    assert log["alpha"] == log["alpha_applied"] == pytest.approx(5 / 3)
    assert log["inverse_alpha"] == pytest.approx(3 / 5)
    assert (log["num_groups"], log["num_valid_groups"], log["num_draws"], log["num_dropped_groups"]) == (5, 3, 1, 0)
    # easy: the all-right group; hard: the all-wrong one
    assert (log["frac_easy"], log["frac_hard"], log["frac_identical"]) == (1 / 5, 1 / 5, 2 / 5)
    # sample std of 2 of 4: sqrt(1/3); of 1 or 3 of 4: 3/4 squares, sqrt(1/4)
    assert log["reward_std"] == pytest.approx((math.sqrt(1 / 3) + 2 * math.sqrt(1 / 4)) / 5)
    assert log["reward"] == log["rewards/accuracy_reward"] == pytest.approx((2 + 4 + 0 + 1 + 3) / 20)
    lengths = [len(completion_of(g, k, r)) for g, rewards in enumerate(REWARDS) for k, r in enumerate(rewards)]
    assert log["completion_length"] == pytest.approx(sum(lengths) / 20)


def test_clipped_says_whether_the_norm_is_over_the_limit(tmp_path):
    norm = logged(train(tmp_path)[0])["grad_norm"]
    for factor, clipped in ((0.75, 1), (1.5, 0), (0, 0)):  # a limit of 0 is none
        log = logged(train(tmp_path, max_grad_norm=factor * norm)[0])
        assert (log["clipped"], log["grad_norm"]) == (clipped, pytest.approx(norm))


def test_a_row_that_only_keeps_processes_in_step_is_counted_nowhere(tmp_path):
    log = logged(train(tmp_path, rewards=NO_SIGNAL)[0])
    assert log["tokens/trained"] == 0 and "entropy" not in log


def test_entropy_is_the_token_mean_over_all_micro_batches(tmp_path):
    entropies = [logged(train(tmp_path, layout=layout)[0])["entropy"] for layout in ONE_PROCESS_LAYOUTS]
    assert entropies == pytest.approx([entropies[0]] * len(entropies))
    assert 0 < entropies[0] < math.log(len(WORDS))


def test_sampler_gap_is_logged_when_the_sampler_gives_log_probabilities(tmp_path):
    logps, mask = forward_logps(make_model())
    logprobs = [(row[keep] + 0.25).tolist() for row, keep in zip(logps.detach(), mask, strict=True)]
    logprobs[0][0] = None  # vLLM's way to say that it has no value

    def rollout(prompts, trainer):
        return scripted_rollout(REWARDS)(prompts, trainer) | {"logprobs": logprobs}

    trainer, _ = train(tmp_path, rollout=rollout, layout=(5, 4))
    assert logged(trainer)["sampling/sampling_logp_difference/mean"] == pytest.approx(0.25, abs=1e-5)


def test_easy_and_hard_follow_the_accuracy_reward_alone():
    # columns: cosine-scaled accuracy (right >= 0.5, wrong <= 0), format. Groups of 2.
    nan = math.nan
    rewards = torch.tensor(
        [
            *([0.9, 1.0], [0.6, 0.0]),  # both right; totals 1.9 0.6: easy, valid
            *([-0.4, 1.0], [0.0, 0.0]),  # both wrong: hard, valid
            *([0.5, 0.0], [-0.5, 1.0]),  # totals 0.5 0.5: identical, neither easy nor hard
            *([nan, 1.0], [nan, 0.0]),  # accuracy could not be judged: valid, neither easy nor hard
            *([nan, nan], [nan, nan]),  # no reward at all: not a group
        ]
    )
    metrics = group_metrics(rewards, torch.tensor([1.0, 1.0]), 2, accuracy_column=0)
    assert (metrics["num_groups"], metrics["num_valid_groups"], metrics["num_unscored_completions"]) == (4, 3, 2)
    assert (metrics["frac_easy"], metrics["frac_hard"], metrics["frac_identical"]) == (1 / 4, 1 / 4, 1 / 4)
    assert metrics["alpha"] == pytest.approx(4 / 3)
    # sample std of two numbers is their distance / sqrt(2): 1.3, 0.6, 0, 1
    assert metrics["reward_std"] == pytest.approx((1.3 + 0.6 + 0 + 1) / math.sqrt(2) / 4)
    # weights 1, 2: totals 2.9 0.6 | 1.6 0 | 0.5 1.5 | 2 0
    metrics = group_metrics(rewards, torch.tensor([1.0, 2.0]), 2, accuracy_column=0)
    assert metrics["num_valid_groups"] == 4
    # by the total reward instead: no group has 1 or 0 throughout
    metrics = group_metrics(rewards, torch.tensor([1.0, 1.0]), 2)
    assert (metrics["frac_easy"], metrics["frac_hard"]) == (0, 0)
    metrics = group_metrics(torch.tensor([[1.0], [1.0], [0.0], [0.0]]), torch.ones(1), 2)
    assert (metrics["frac_easy"], metrics["frac_hard"]) == (1 / 2, 1 / 2)


def test_a_completion_without_a_reward_is_in_no_standard_deviation():
    # 1 and 0: sqrt(1/2); the third, unscored, would add a square of 1/4 about the mean of 1/2
    rewards = torch.tensor([[1.0], [0.0], [math.nan]])
    assert group_metrics(rewards, torch.ones(1), 3)["reward_std"] == pytest.approx(math.sqrt(1 / 2))


def test_metrics_of_a_batch_without_any_reward():
    metrics = group_metrics(torch.full((4, 1), math.nan), torch.ones(1), 2)
    assert (metrics["num_groups"], metrics["alpha"], metrics["num_unscored_completions"]) == (0, 0.0, 4)
    assert math.isnan(metrics["reward_std"]) and math.isnan(metrics["frac_easy"])


def test_accuracy_reward_is_found_by_name(tmp_path):
    trainer, _ = train(tmp_path, reward_funcs=[short_reward, accuracy_reward])
    assert trainer._accuracy_column == 1
    log = logged(trainer)
    assert (log["frac_easy"], log["frac_hard"]) == (1 / 5, 1 / 5)
    assert log["rewards/short_reward"] == log["rewards/short_reward/mean"]
    trainer, _ = train(tmp_path, reward_funcs=[short_reward, accuracy_reward], accuracy_reward="short_reward")
    assert trainer._accuracy_column == 0
    with pytest.raises(ValueError, match=r"accuracy_reward='exact'.*\['accuracy_reward'\]"):
        train(tmp_path, accuracy_reward="exact")


def test_a_reward_can_say_what_counts_as_right(tmp_path):
    # A reward of 2 and 1 (never 1 and 0 throughout a group), right from 1.5 on; the last group was not judged.
    def overlap(completion_ids, **kwargs):
        return [1 + value for value in accuracy_reward(completion_ids)]

    trainer, _ = train(tmp_path, reward_funcs=[short_reward, overlap])
    assert trainer._accuracy_column is None and trainer._marks is None
    assert (logged(trainer)["frac_easy"], logged(trainer)["frac_hard"]) == (0, 0)
    seen = []

    def right(completion_ids, **columns):
        seen.append(sorted(columns))
        judged = [value > 1.5 for value in overlap(completion_ids)]
        return [*judged[:-4], None, None, None, None]

    overlap.right = right
    for trainer_class in (GPGTrainer, GRPOBaselineTrainer):
        trainer, _ = train(tmp_path, trainer_class, reward_funcs=[short_reward, overlap])
        # of five groups one is all right, one all wrong; see REWARDS
        assert trainer._accuracy_column == 1 and trainer._marks.tolist()[:4] == [1, 1, 0, 0]
        assert (logged(trainer)["frac_easy"], logged(trainer)["frac_hard"]) == (1 / 5, 1 / 5)
    assert seen == [["completions", "prompts"]] * 2


def test_marks_are_those_of_the_groups_in_a_batch_of_several_draws(tmp_path):
    # 2 groups a draw, beta_th = 1: draw 1 has a valid first group, draw 2 a valid second one. Total rewards are never 0
    # or 1 throughout a group, and marks say that valid groups are all right: both of the batch, one of the first draw.
    def overlap(completion_ids, **kwargs):
        return [1 + value for value in accuracy_reward(completion_ids)]

    overlap.right = lambda completion_ids, **_: [
        len(set(accuracy_reward(completion_ids[i // 4 * 4 : i // 4 * 4 + 4]))) > 1 for i in range(len(completion_ids))
    ]
    rewards = ((1, 1, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 0, 0))
    trainer, _ = train(tmp_path, rewards=rewards, layout=(8, 1), reward_funcs=overlap, beta_th=1.0)
    log = logged(trainer)
    assert (log["num_draws"], log["frac_easy"], log["batch/frac_easy"], log["batch/frac_hard"]) == (2, 1 / 2, 1, 0)


def test_baseline_trainer_changes_nothing_but_logging(tmp_path):
    settings = {"layout": (4, 2), "scripted": False, "shuffle_dataset": True, "max_steps": 5}  # 2 steps an epoch
    settings |= {"reward_funcs": letter_accuracy, "temperature": 0.7}
    trainer, baseline = train(tmp_path, GRPOBaselineTrainer, **settings)
    stock_trainer, stock = train(tmp_path, GRPOTrainer, **settings)
    for step in range(5):
        assert all(torch.equal(baseline[step][name], stock[step][name]) for name in stock[step])
    scripted, _ = train(tmp_path, GRPOBaselineTrainer)
    gpg, _ = train(tmp_path)
    names = ["reward_std", "frac_easy", "frac_hard", "frac_identical", "alpha", "inverse_alpha", "num_groups"]
    assert [logged(scripted)[name] for name in names] == [logged(gpg)[name] for name in names]
    assert logged(scripted)["alpha_applied"] == 1.0
    unchanged = set(logged(stock_trainer)) - {"reward_std", "step_time"}
    assert {name: logged(trainer)[name] for name in unchanged} == {n: logged(stock_trainer)[n] for n in unchanged}


LARGE = {"max_steps": 4, "learning_rate": 0.05, "optim": "sgd", "beta": 0.3, "rewards": ((1, 1, 0, 0), (1, 0, 0, 0))}


def distances(found: list[dict], expected: list[dict]) -> list[float]:
    """Relative distance of the gradients of two runs, step by step."""
    flat = [[torch.cat([g.flatten() for g in step.values()]) for step in steps] for steps in (found, expected)]
    return [((a - b).norm() / b.norm()).item() for a, b in zip(*flat, strict=True)]


@pytest.mark.parametrize("logp_temperature", ["sampling", "one"])
def test_gpg_with_std_and_kl_is_the_baseline(tmp_path, logp_temperature):
    """Section 3.1 and Appendix C, beyond the first step, where every KL term has gradient zero."""
    make_model().save_pretrained(tmp_path / "initial")

    def gradients(*args, **more):
        model = Qwen2ForCausalLM.from_pretrained(tmp_path / "initial")
        settings = LARGE | {"layout": (8, 1), "temperature": 0.7, "logp_temperature": logp_temperature}
        return train(tmp_path, *args, model=model, **settings, **more)[1]

    gpg = gradients(f_norm="group", age=False, normalization="sequence")
    grpo = gradients(GRPOBaselineTrainer, loss_type="grpo", use_bias_correction_kl=False)
    assert max(distances(gpg, grpo)) < 2e-5
    # TRL's default multiplies the term by the probability ratio: the same at step 1, another gradient later.
    stock = gradients(GRPOBaselineTrainer, loss_type="grpo")
    apart = distances(stock, grpo)
    assert apart[0] < 1e-5 and max(apart) > 1e-2


def test_the_temperature_of_the_baseline(tmp_path):
    settings = LARGE | {"layout": (8, 1), "temperature": 0.7, "beta": 0.0}
    (divided, undivided), stock = (
        [train(tmp_path, GRPOBaselineTrainer, logp_temperature=value, **settings)[1] for value in ("sampling", "one")],
        train(tmp_path, GRPOTrainer, **settings)[1],
    )
    assert max(distances(divided, stock)) == 0 and min(distances(undivided, stock)) > 1e-2
    _, at_one = train(tmp_path, GRPOTrainer, **settings | {"temperature": 1.0})
    assert max(distances(undivided, at_one)) < 1e-5


def test_a_baseline_takes_its_own_settings_alone(tmp_path):
    with pytest.raises(TypeError, match="got args of type GRPOConfig: expected a GRPOBaselineConfig"):
        GRPOBaselineTrainer(make_model(), accuracy_reward, GRPOConfig(str(tmp_path), bf16=False, use_cpu=True))
    with pytest.raises(ValueError, match="logp_temperature='two' is unknown: expected one of 'sampling', 'one'"):
        GRPOBaselineConfig(str(tmp_path), bf16=False, use_cpu=True, logp_temperature="two")


def test_evaluation_runs_with_its_own_group_size(tmp_path):
    trainer, _ = train(tmp_path, scripted=False, num_generations_eval=2, per_device_eval_batch_size=2)
    metrics = trainer.evaluate(Dataset.from_dict({"prompt": [prompt_of(0), prompt_of(1)]}))
    assert math.isfinite(metrics["eval_loss"])
    trainer.num_generations_eval = 1  # one completion per prompt: no baseline, hence no signal
    assert trainer.evaluate(Dataset.from_dict({"prompt": [prompt_of(0), prompt_of(1)]}))["eval_loss"] == 0


def uniform_model() -> Qwen2ForCausalLM:
    """Gives every one of the 22 tokens the same probability."""
    model = make_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def evaluated_by_hand(output_dir, batch_size: int, **settings) -> float:
    """eval_loss of three groups of two, the second without signal; completions of 3, 1 | 2, 2 | 1, 5 tokens."""
    rewards, lengths = ((1, 0), (0, 0), (0, 1)), ((3, 1), (2, 2), (1, 5))

    def rollout(prompts, trainer):
        start = trainer.accelerator.process_index * len(prompts)
        places = [(group_of(prompt), row % 2) for row, prompt in enumerate(prompts, start)]
        ids = [[DIGIT_0 + rewards[g][k], *[LETTER_A] * (lengths[g][k] - 1)] for g, k in places]
        prompt_ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

    trainer, _ = train(
        output_dir,
        rewards=rewards,
        layout=(2, 1),
        model=uniform_model(),
        rollout=rollout,
        num_generations=2,
        per_device_eval_batch_size=batch_size,
        learning_rate=0.0,
        **settings,
    )
    return trainer.evaluate(trainer.train_dataset)["eval_loss"]


# -log pi of every token is log 22. Advantages 1/2, -1/2 | 0, 0 | -1/2, 1/2; token means over a group, in log 22:
# (3 - 1)/2/4 = 1/4 | 0 | (5 - 1)/2/6 = 1/3. alpha = 3/2 makes it the mean of two groups: (1/4 + 1/3)/2 = 7/24.
# By tokens of the whole set: 3/2 * (1 + 0 + 2)/14 = 9/28.
EVALUATED = {"group": 7 / 24, "batch": 9 / 28, "local": 9 / 28}


@pytest.mark.full("two processes that train")
def test_eval_loss_of_two_processes_is_that_of_one(two_processes):
    # two groups on two processes, then the third beside a copy of the first that fills up the batch
    for rank in (0, 1):
        losses = json.loads((two_processes / f"evaluated.{rank}.json").read_text())
        assert losses == pytest.approx({name: value * math.log(22) for name, value in EVALUATED.items()}, abs=1e-6)


@pytest.mark.parametrize("batch_size", [2, 4, 6])  # one group a batch; two and one; all
@pytest.mark.parametrize("normalization", EVALUATED)
def test_eval_loss_by_hand_is_that_of_the_whole_set_as_one_batch(tmp_path, normalization, batch_size):
    loss = evaluated_by_hand(tmp_path, batch_size, normalization=normalization)
    assert loss == pytest.approx(EVALUATED[normalization] * math.log(22), abs=1e-6)


@pytest.mark.parametrize("fidelity", ["paper", "r1"])
def test_eval_loss_has_the_kl_term(tmp_path, fidelity):
    make_model().save_pretrained(tmp_path / "initial")
    model = Qwen2ForCausalLM.from_pretrained(tmp_path / "initial")
    settings = {"beta": 0.5, "fidelity": fidelity, "normalization": "group", "per_device_eval_batch_size": 8}
    trainer, _ = train(tmp_path, model=model, **settings)  # one step away from the initial model
    metrics = trainer.evaluate(trainer.train_dataset)
    moved = make_model()
    moved.load_state_dict(trainer.model.state_dict())
    with torch.no_grad():
        (logps, mask), (ref_logps, _) = forward_logps(moved), forward_logps(make_model())
    loss = gpg_loss(logps, group_advantages(torch.tensor(REWARDS).float().flatten(), 4), mask, 4, 5 / 3)
    kl = kl_k3(logps, ref_logps).masked_fill(~mask, 0)
    penalty = 0.5 * (1.0 if fidelity == "paper" else 5 / 3) * (kl.view(5, -1).sum(1) / mask.view(5, -1).sum(1)).mean()
    assert penalty > 1e-3
    assert metrics["eval_loss"] == pytest.approx((loss + penalty).item(), abs=1e-5)


# Running ------------------------------------------------------------------------------------------------------------


def resume_settings(**settings):
    # 5 prompts, 2 a step: 2 steps an epoch
    return {
        "reward_funcs": letter_accuracy,
        "scripted": False,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "shuffle_dataset": True,
    } | settings


def assert_resumes_identically(output_dir, checkpoint_step: int, whole=None, **settings):
    """Compares gradients and final weights of a whole run with those of one resumed after `checkpoint_step` steps."""
    trainer, gradients = whole or train(output_dir, **resume_settings(**settings))
    assert len(gradients) == 4 and all(any(g.any() for g in step.values()) for step in gradients)
    checkpoint = str(output_dir / f"checkpoint-{checkpoint_step}")
    resumed, resumed_gradients = train(output_dir, resume=checkpoint, **resume_settings(**settings))
    assert len(resumed_gradients) == 4 - checkpoint_step
    for before, after in zip(gradients[checkpoint_step:], resumed_gradients, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    weights, resumed_weights = trainer.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("trainer_class", "extra"),
    [(GPGTrainer, {}), (GRPOBaselineTrainer, {}), (GPGTrainer, {"beta_th": 1.0, "reward_funcs": rare_reward})],
)
def test_resumed_training_is_bit_identical(tmp_path, trainer_class, extra):
    settings = {"trainer_class": trainer_class, "layout": (4, 2), **extra}
    whole = train(tmp_path, **resume_settings(**settings))
    if extra:  # the stream is ahead of the steps
        assert logged(whole[0], 4)["prompts_consumed"] > 2 * 4
    for checkpoint_step in (1, 2, 3):  # inside the first epoch, between two, inside the second
        assert_resumes_identically(tmp_path, checkpoint_step, whole, **settings)


# Configuration ------------------------------------------------------------------------------------------------------


def config(**settings) -> GPGConfig:
    return GPGConfig("unused", **({"bf16": False, "use_cpu": True, "report_to": []} | settings))


@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [
        ("paper", ("none", True, "group", "sampling")),
        ("r0", ("group", False, "local", "one")),
        ("r1", ("none", True, "local", "sampling")),
        ("r2", ("none", True, "local", "sampling")),
    ],
)
def test_fidelity_gives_defaults_that_the_user_can_override(fidelity, expected):
    resolved = config(fidelity=fidelity)
    assert (resolved.f_norm, resolved.age, resolved.normalization, resolved.logp_temperature) == expected
    assert resolved.scale_rewards == resolved.f_norm
    assert resolved.beta_th == (0.5 if fidelity == "r2" else 0.0)
    assert config(fidelity=fidelity, beta_th=0.25).beta_th == 0.25
    overridden = config(fidelity=fidelity, f_norm="batch", age=not expected[1], normalization="sequence")
    assert (overridden.f_norm, overridden.age, overridden.normalization) == ("batch", not expected[1], "sequence")
    assert overridden.logp_temperature == expected[3]


def test_r1_caps_alpha_at_20(tmp_path):
    trainer, _ = train(tmp_path, fidelity="r1")
    assert trainer._alpha_applied(5, 3, 3) == pytest.approx(5 / 3)
    assert trainer._alpha_applied(100, 1, 1) == pytest.approx(20)
    assert trainer._alpha_applied(20, 1, 1) == pytest.approx(20)
    assert logged(trainer)["alpha_applied"] == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fidelity": "r2"}, "per_device_train_batch_size=8 is no multiple of num_generations=16.*whole groups"),
        ({"beta_th": 1.5}, r"beta_th=1.5: expected a share in \(0, 1\], or 0 for a single draw"),
        ({"beta_th": -0.1}, r"beta_th=-0.1: expected a share in \(0, 1\]"),
        ({"max_draws": 0}, "max_draws=0: expected at least 1"),
        ({"fixed_alpha": 2.0, "age": True}, "fixed_alpha and age=True contradict each other"),
        ({"fixed_alpha": 0.0}, "fixed_alpha=0.0: expected a positive factor"),
        ({"beta": -0.1}, "beta=-0.1: expected a KL coefficient of at least 0"),
        ({"fidelity": "r3"}, "fidelity='r3' is unknown: expected one of 'paper', 'r0', 'r1'"),
        ({"f_norm": "std"}, "f_norm='std' is unknown: expected one of 'none', 'group', 'batch'"),
        ({"normalization": "token"}, "normalization='token' is unknown"),
        ({"logp_temperature": "two"}, "logp_temperature='two' is unknown: expected one of 'sampling', 'one'"),
        ({"loss_type": "dapo"}, "loss_type='dapo': expected 'gpg'; .* normalization"),
        ({"num_iterations": 2}, "num_iterations=2: expected 1"),
        ({"vllm_importance_sampling_correction": True}, "vllm_importance_sampling_correction=True: expected False"),
        ({"epsilon": 0.3}, "epsilon=0.3: expected 0.2; GPG does not clip"),
        ({"scale_rewards": "group"}, "scale_rewards='group' contradicts f_norm='none'"),
        ({"steps_per_generation": 4}, "steps_per_generation=4 differs from gradient_accumulation_steps=1"),
        ({"generation_batch_size": 16}, "steps_per_generation=2 differs from gradient_accumulation_steps=1"),
        ({"num_generations": 1}, "at least 2 generations"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    if settings.get("fidelity") == "r2":
        settings = settings | {"num_generations": 16, "gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match=message):
        config(**settings)


# A value that TRL takes for each setting of its own that GPG has no use for.
REFUSED = {
    "loss_type": "dapo",
    "num_iterations": 2,
    "vllm_importance_sampling_correction": True,
    "importance_sampling_level": "sequence",
    "epsilon": 0.3,
    "epsilon_high": 0.28,
    "delta": 2.0,
    "off_policy_mask_threshold": 0.5,
    "multi_objective_aggregation": "normalize_then_sum",
    "top_entropy_quantile": 0.2,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "use_bias_correction_kl": True,
    "ignore_data_skip": True,
    "remove_unused_columns": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_setting_of_trl_that_gpg_ignores_is_refused(name):
    with pytest.raises(ValueError, match=rf"- {name}={REFUSED[name]!r}: expected .*; .*\. Remove the setting\."):
        config(**{name: REFUSED[name]})


def test_the_refused_settings_are_these_and_no_others():
    assert set(REQUIRED_SETTINGS) == set(REFUSED)


def test_all_problems_are_reported_together():
    with pytest.raises(ValueError, match="(?s)beta_th=2.*f_norm='std'.*loss_type='grpo'"):
        config(f_norm="std", beta_th=2, loss_type="grpo")


def test_trl_config_is_refused(tmp_path):
    with pytest.raises(TypeError, match="args of type GRPOConfig: expected a GPGConfig"):
        GPGTrainer(make_model(), accuracy_reward, GRPOConfig(str(tmp_path), bf16=False, use_cpu=True))


if __name__ == "__main__":
    two_process_worker(Path(sys.argv[1]))
