"""Closed forms by hand and against simulation; AdamW against what must cancel."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from gpg_repro.dynamics import (
    Population,
    adamw_path,
    adamw_study,
    adamw_text,
    advantage_of_k,
    control_curves,
    fit_concentration,
    fit_gain,
    predicted_run,
    real_runs,
    resampling,
    runs_text,
    simulate_run,
    std_of_k,
    summary,
)
from gpg_repro.objective import group_advantages

# One population -----------------------------------------------------------------------------------------------------


def test_uniform_accuracies_make_every_number_right_equally_likely():
    # Beta(1, 1): integral of C(8, k) p^k (1 - p)^(8 - k) is 1/9 for every k
    world = Population(0.5, 2.0, 8)
    assert world.shape == (1.0, 1.0)
    np.testing.assert_allclose(world.num_right, np.full(9, 1 / 9))
    assert (world.easy, world.hard, world.valid) == pytest.approx((1 / 9, 1 / 9, 7 / 9))
    # stds .3536 .4629 .5175 .5345 .5175 .4629 .3536 sum to 3.2026
    assert world.std_of_valid == pytest.approx(3.2026 / 7, abs=1e-4)
    assert world.reward_std == pytest.approx(3.2026 / 9, abs=1e-4)


def test_shares_are_the_integrals_over_accuracies():
    world = Population(0.3, 1.5, 8)
    density = stats.beta(*world.shape).pdf
    assert world.easy == pytest.approx(integrate.quad(lambda p: p**8 * density(p), 0, 1)[0], rel=1e-6)
    assert world.hard == pytest.approx(integrate.quad(lambda p: (1 - p) ** 8 * density(p), 0, 1)[0], rel=1e-4)
    assert world.easy + world.hard + world.valid == pytest.approx(1)
    assert world.num_right @ np.arange(9) / 8 == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("num_generations", "expected"),
    [(2, [0, math.sqrt(1 / 2), 0]), (8, [0, 0.3536, 0.4629, 0.5175, 0.5345, 0.5175, 0.4629, 0.3536, 0])],
)
def test_std_of_k(num_generations, expected):
    np.testing.assert_allclose(std_of_k(num_generations), expected, atol=5e-5)


@pytest.mark.parametrize("f_norm", ["none", "group", "batch"])
def test_advantages_of_k_are_those_of_the_objective(f_norm):
    import torch

    # one group of each k = 0 … 6: the mean reward is 1/2, its population std 1/2, its sample std sqrt(42 / 41) / 2
    rewards = torch.tensor([[1.0] * k + [0.0] * (6 - k) for k in range(7)], dtype=torch.float64)
    expected = group_advantages(rewards.flatten(), 6, f_norm).view(7, 6).abs().mean(dim=1).numpy()
    tolerance = math.sqrt(42 / 41) - 1 if f_norm == "batch" else 1e-12
    np.testing.assert_allclose(advantage_of_k(6, f_norm, 0.5), expected, rtol=tolerance)
    assert Population(0.5, 2.0, 6).mean_advantage(f_norm) == pytest.approx(expected.mean(), rel=tolerance)


def test_fit_concentration_inverts_the_share_of_valid_groups():
    for concentration in (0.3, 2.0, 15.0):
        valid = Population(0.4, concentration, 8).valid
        assert fit_concentration(0.4, valid, 8) == pytest.approx(concentration, rel=1e-6)
    assert fit_concentration(0.4, 1.0, 8) == 1000
    assert fit_concentration(0.4, 0.0, 8) == 0.01


def test_fit_gain_moves_the_mean_accuracy():
    assert fit_gain(0.4, 1.5, 0.4) == pytest.approx(0, abs=0.01)
    # prompts all alike: from 1/2 to 1 / (1 + 1/e) takes log-odds of 1
    assert fit_gain(0.5, 1e6, 1 / (1 + math.exp(-1))) == pytest.approx(1, abs=1e-3)
    # prompts apart: more is needed, as most of them are near 0 or 1
    gain = fit_gain(0.4, 1.5, 0.65)
    assert gain > math.log(0.65 / 0.35) - math.log(0.4 / 0.6)
    run = simulate_run(np.random.default_rng(0), 0.4, 1.5, num_prompts=4000, num_steps=2, gain=gain)
    assert run["reward"].tolist() == pytest.approx([0.4, 0.65], abs=0.02)


# Resampling ---------------------------------------------------------------------------------------------------------


def test_resampling_by_hand():
    # Q = 2, half of the groups valid, both wanted, at most 2 draws. First draw: 0, 1, 2 valid with 1/4, 1/2, 1/4.
    # It stops at once with 1/4. Second draw: from 0 (1/4): 0, 1, 2; from 1 (1/2): 1, 2, 3, the third one dropped.
    step = resampling(0.5, 2, 1.0, max_draws=2)
    np.testing.assert_allclose(step.first, [1 / 4, 1 / 2, 1 / 4])
    np.testing.assert_allclose(step.num_draws, [1 / 4, 3 / 4])
    np.testing.assert_allclose(step.num_used, [1 / 16, 1 / 8 + 1 / 8, 1 / 4 + 1 / 16 + 1 / 4 + 1 / 8])
    assert step.expected_draws == pytest.approx(7 / 4)
    assert step.expected_dropped == pytest.approx(1 / 8)
    # alpha: 2 with 1/4, 1 with 11/16, none with 1/16
    assert step.alpha == pytest.approx((2 * 1 / 4 + 11 / 16) / (15 / 16))
    assert step.first_alpha == pytest.approx((2 * 1 / 2 + 1 / 4) / (3 / 4))


def test_without_a_threshold_there_is_one_draw():
    step = resampling(0.3, 8, 0.0)
    np.testing.assert_allclose(step.num_draws, np.eye(1, 20)[0], atol=1e-12)
    np.testing.assert_allclose(step.num_used, stats.binom.pmf(range(9), 8, 0.3))
    assert step.expected_dropped == pytest.approx(0)


@pytest.mark.parametrize(("beta_th", "max_draws"), [(0.6, 20), (0.9, 3), (1.0, 20)])
def test_simulation_agrees_with_the_closed_forms(beta_th, max_draws):
    world, num_steps = Population(0.25, 0.8, 8), 3000
    run = simulate_run(
        np.random.default_rng(0), 0.25, 0.8, beta_th=beta_th, max_draws=max_draws, num_prompts=12, num_steps=num_steps
    )
    step = resampling(world.valid, 12, beta_th, max_draws)
    signal, batch = run[run["alpha"] > 0], run[run["batch/alpha"] > 0]
    for simulated, exact in (
        (run["frac_easy"], world.easy),
        (run["frac_hard"], world.hard),
        (run["frac_identical"], 1 - world.valid),
        (run["inverse_alpha"], world.valid),
        (run["reward"], 0.25),
        (run["reward_std"], world.reward_std),
        (run["num_draws"], step.expected_draws),
        (run["num_dropped_groups"], step.expected_dropped),
        (signal["alpha"], step.first_alpha),
        (batch["batch/alpha"], step.alpha),
        (batch["batch/inverse_alpha"], step.num_used @ np.arange(13) / 12 / (1 - step.num_used[0])),
    ):
        error = simulated.std() / math.sqrt(len(simulated))
        assert abs(simulated.mean() - exact) <= 4 * error + 1e-9, simulated.name
    np.testing.assert_allclose(run["batch/alpha"] * run["batch/inverse_alpha"], 1)
    assert run["prompts_consumed"].iloc[-1] == 12 * run["num_draws"].sum()
    assert run["num_draws"].max() <= max_draws


def test_simulation_depends_on_its_generator_alone():
    runs = [simulate_run(np.random.default_rng(7), 0.4, 1.0, beta_th=0.6, gain=1.0, num_steps=20) for _ in range(2)]
    pd.testing.assert_frame_equal(*runs)
    other = simulate_run(np.random.default_rng(8), 0.4, 1.0, beta_th=0.6, gain=1.0, num_steps=20)
    assert not other.equals(runs[0])


def test_gain_is_added_to_the_log_odds():
    run = simulate_run(np.random.default_rng(0), 0.5, 1000.0, num_prompts=2000, num_steps=3, gain=2.0)
    # all accuracies about 1/2: log-odds 0, 1, 2
    assert run["reward"].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))], abs=0.02)


def test_a_batch_without_signal_has_alpha_zero():
    run = simulate_run(np.random.default_rng(0), 0.001, 1.0, num_prompts=2, num_steps=20)
    assert (run["alpha"] == 0).any() and np.isfinite(run).all().all()
    assert math.isnan(resampling(0.0, 4, 0.5, 3).alpha)


def test_prediction_takes_only_the_reward_curve():
    run = simulate_run(np.random.default_rng(1), 0.4, 1.2, num_prompts=400, num_steps=40)
    predicted, concentration = predicted_run(run, 8)
    assert concentration == pytest.approx(1.2, rel=0.1)
    for column in ("inverse_alpha", "reward_std", "frac_easy", "frac_hard"):
        np.testing.assert_allclose(predicted[column].mean(), run[column].mean(), atol=0.01)
    later = run["inverse_alpha"].where(run["step"] <= 10, 0.0)  # only the first steps are fitted
    assert predicted_run(run.assign(inverse_alpha=later), 8)[1] == concentration
    better = run.assign(reward=0.8)
    assert predicted_run(better, 8)[0]["frac_easy"].iloc[-1] > 2 * predicted["frac_easy"].iloc[-1]


def test_summary_names_what_the_sliders_show():
    world = Population(0.4, 1.0, 8)
    numbers = summary(world, 16, 0.6, 20, "group")
    step = resampling(world.valid, 16, 0.6, 20)
    assert numbers["completions generated per step"] == pytest.approx(step.expected_draws * 16 * 8)
    assert numbers["mean |A| of a completion"] == world.mean_advantage("group")
    assert numbers["share of steps that end below the threshold"] < 1e-6
    # one draw of two groups, half valid, all wanted: 3 of 4 steps end below
    half = Population(0.5, fit_concentration(0.5, 0.5, 8), 8)
    assert summary(half, 2, 1.0, 1)["share of steps that end below the threshold"] == pytest.approx(3 / 4)


QUOTED = {"alpha": (1.5, 4.0), "reward_std": (0.1, 0.35)}


def steps_of(valid, num_steps: int = 20) -> pd.DataFrame:
    """Steps with the same reward throughout; `valid` is the share of valid groups, a number or one per step."""
    shares = np.broadcast_to(valid, num_steps).astype(float)
    alpha = np.divide(1, shares, out=np.zeros(num_steps), where=shares > 0)
    return pd.DataFrame(
        {
            "step": range(1, num_steps + 1),
            "reward": 0.5,
            "inverse_alpha": shares,
            "alpha": alpha,
            "reward_std": 0.45 * shares,
        }
    )


def test_committed_runs_are_read_by_seed_and_absence_is_told(tmp_path):
    for seed in (0, 1, 10):
        folder = tmp_path / "tiny" / "some_recipe" / f"seed{seed}" / "training"
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": step, "alpha": 1.0 + seed}) for step in (1, 2)]
        (folder / "steps.jsonl").write_text("\n".join(lines))
    frames, caption = real_runs("some_recipe", "smoke", reference=tmp_path)
    assert list(frames) == [0, 1, 10] and frames[10]["alpha"].tolist() == [11.0, 11.0]
    assert "tiny" in caption and "3 training seeds of 2 steps" in caption and "committed records" in caption
    frames, caption = real_runs("other", "tiny", reference=tmp_path)
    assert frames == {} and caption.startswith("No committed records of other at scale tiny")


def test_control_curves_come_with_their_limits(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from eval_harness import records

    (tmp_path / "steps.jsonl").write_text(json.dumps({"step": 1, "alpha": 2.0}))
    run = SimpleNamespace(recipe={"setup": {"training": {"max_grad_norm": 0.3}}})
    monkeypatch.setattr(records, "read_run", lambda folder: run)
    rows = [
        SimpleNamespace(row=SimpleNamespace(key="base"), trainings={}),
        SimpleNamespace(row=SimpleNamespace(key="age_clipped"), trainings={0: tmp_path, 1: tmp_path}),
    ]
    curves, limits, caption = control_curves(rows, "tiny")
    assert list(curves) == ["age_clipped"] and len(curves["age_clipped"]) == 2 and limits == {"age_clipped": 0.3}
    assert "1 rows, 2 training seeds each, 1 steps" in caption


@pytest.mark.parametrize(
    ("lasts", "expected"),
    [
        ((0.5, 0.52, 0.48), "-25.0 points, 95 % interval over 3 seeds .*; training drives prompts apart"),
        ((0.9, 0.95, 0.92), "training brings prompts together"),
        ((0.5, 0.9, 0.8), "the two cannot be told apart"),
        ((0.5, 0.5), "2 training seeds are too few for an interval"),
        ((0.5,), "1 training seed is too few"),
    ],
)
def test_text_about_runs_follows_the_numbers(lasts, expected):
    runs = [steps_of([0.75] * 10 + [last] * 10) for last in lasts]
    text = runs_text(runs, [predicted_run(run, 8)[0] for run in runs], QUOTED)
    assert re.search(expected, text, re.DOTALL)
    # 0.75 is alpha 4/3 and reward_std 0.34; 0.5 is alpha 2 and 0.225
    assert "was 0.450 on average" in text and f"Over {20 * len(lasts)} steps of {len(lasts)} training seed" in text
    if lasts == (0.5,):
        assert "4 on 50 % of the steps" in text and "0.35 on 100 %" in text


def test_text_about_runs_without_any_signal():
    runs = [steps_of(0.0)]
    assert runs_text(runs, runs, QUOTED) == "None of 20 steps of 1 training seed had a group with a signal."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Population(0.0, 1.0, 8), "mean=0.0.*strictly between 0 and 1"),
        (lambda: Population(0.5, 0.0, 8), "positive concentration"),
        (lambda: Population(0.5, 1.0, 1), "at least 2"),
        (lambda: advantage_of_k(8, "std"), "f_norm='std' is unknown"),
        (lambda: resampling(1.2, 8), "valid=1.2"),
        (lambda: resampling(0.5, 8, -0.1), "beta_th=-0.1"),
        (lambda: resampling(0.5, 8, 0.5, 0), "max_draws=0"),
    ],
)
def test_values_outside_their_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# AdamW --------------------------------------------------------------------------------------------------------------

GRADIENTS = np.random.default_rng(0).normal(size=(30, 5))
VARYING = np.random.default_rng(1).uniform(1, 4, size=30)


def relative(path: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(path - other) / np.linalg.norm(other))


def test_adamw_by_hand():
    # first step: m / (sqrt(v) + eps) is the gradient's sign, so each coordinate moves by the learning rate
    path = adamw_path(GRADIENTS[:1], [3.0], learning_rate=0.1)
    np.testing.assert_allclose(path, [np.zeros(5), -0.1 * np.sign(GRADIENTS[0])], atol=1e-6)


def test_a_constant_factor_cancels():
    plain, scaled = adamw_path(GRADIENTS, np.ones(30)), adamw_path(GRADIENTS, np.full(30, 2.5))
    assert 0 < relative(scaled, plain) < 1e-6  # AdamW's eps is what remains


def test_any_factor_cancels_where_every_step_is_clipped():
    limit = 0.1 * np.linalg.norm(GRADIENTS, axis=1).min()
    plain, scaled = adamw_path(GRADIENTS, np.ones(30), limit), adamw_path(GRADIENTS, VARYING, limit)
    assert relative(scaled, plain) < 1e-5
    never = 100 * np.linalg.norm(GRADIENTS, axis=1).max()
    np.testing.assert_array_equal(adamw_path(GRADIENTS, VARYING, never), adamw_path(GRADIENTS, VARYING))


def test_a_varying_factor_weighs_the_batches_where_nothing_is_clipped():
    plain, scaled = adamw_path(GRADIENTS, np.ones(30)), adamw_path(GRADIENTS, VARYING)
    assert relative(scaled, plain) > 0.05
    # after two steps momentum is .09 g_1 + .1 g_2, the second moment .000999 g_1^2 + .001 g_2^2, bias 0.19 and 0.001999
    two, alphas = GRADIENTS[:2], np.array([1.0, 3.0])
    g = alphas[:, None] * two
    step = (0.09 * g[0] + 0.1 * g[1]) / 0.19 / (np.sqrt((0.000999 * g[0] ** 2 + 0.001 * g[1] ** 2) / 0.001999) + 1e-8)
    path = adamw_path(two, alphas, learning_rate=0.1)
    np.testing.assert_allclose(path[2] - path[1], -0.1 * step, rtol=1e-9)


def test_the_study_finds_what_cancels():
    study = adamw_study(VARYING, num_parameters=10, num_repeats=5).set_index(["clipping", "factor"])
    distance, clipped = study["distance"], study["share_clipped"]
    assert (distance.xs("1", level="factor") == 0).all()
    assert distance["off", "constant"] < 1e-5 and distance["every step", "constant"] < 1e-5
    assert distance["every step", "varying"] < 1e-5
    assert distance["off", "varying"] > 0.01 and distance["some steps", "varying"] > 0.01
    assert (clipped["off"] == 0).all() and (clipped["every step"] == 1).all()
    assert clipped["some steps", "varying"] == pytest.approx(0.5, abs=0.1)
    assert ((study["low"] <= distance) & (distance <= study["high"])).all()
    assert (study["num_repeats"] == 5).all()


def test_text_about_adamw_follows_the_study():
    study = adamw_study(VARYING, num_parameters=10, num_repeats=5)
    moved = study.set_index(["clipping", "factor"])["distance"]
    text = adamw_text(study)
    assert f"varies from batch to batch moves it by {100 * moved['off', 'varying']:.1f} % of the way [" in text
    assert text.count("which is rounding") == 2 and "5 repeats" in text
    study.loc[(study["clipping"] == "every step") & (study["factor"] == "varying"), "distance"] = 0.25
    assert "Clipped on every step, the varying α moves the end by 25.0 % of the way" in adamw_text(study)
