"""Pictures hold the numbers they are given; the sliders redraw."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gpg_repro import method_plots
from gpg_repro.dynamics import Population, adamw_study, predicted_run, resampling, simulate_run

QUOTED = {"alpha": (1.5, 4.0), "reward_std": (0.1, 0.35)}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts_of(figure) -> str:
    figure.canvas.draw()
    found = [text for axis in figure.axes for text in axis.findobj(matplotlib.text.Text)] + figure.findobj(
        matplotlib.text.Text
    )
    return "\n".join(text.get_text() for text in found)


def test_correction_figure_restores_the_mean_over_valid_groups():
    gradients = np.array([[1.0, 0.5], [0, 0], [0.5, -0.25], [0, 0]])
    figure = method_plots.correction_figure(gradients, [True, False, True, False])
    left, right = figure.axes
    tips = [arrow.xy for arrow in left.texts]
    assert len(tips) == 5 and tips[:2] == [(1.0, 0.5), (0.5, -0.25)]
    # wanted: (1.5, 0.25) / 2; corrected: the same; over all: (1.5, 0.25) / 4
    np.testing.assert_allclose(tips[2:], [(0.75, 0.125), (0.75, 0.125), (0.375, 0.0625)])
    assert "α = 4/2 = 2" in texts_of(figure)
    np.testing.assert_allclose(right.lines[0].get_ydata(), [1, 0.75, 0.5, 0.25])
    assert "α 4.00" in texts_of(figure)


def test_population_figure_shows_the_closed_forms():
    world = Population(0.4, 1.5, 8)
    figure = method_plots.population_figure(world, 16, 0.6, 20, "group", QUOTED)
    step, text = resampling(world.valid, 16, 0.6, 20), texts_of(figure)
    for expected in (
        f"all wrong {world.hard:.2f}",
        f"with a signal {world.valid:.2f}",
        f"F_norm = group std: mean {world.mean_advantage('group'):.2f}",
        f"here {step.alpha:.2f}",
        f"here {step.expected_draws:.2f}",
        f"cost: {step.expected_draws * 128:,.0f} completions per step",
    ):
        assert expected in text
    draws = figure.axes[5]
    costs = dict(zip(draws.lines[0].get_xdata(), draws.lines[0].get_ydata(), strict=True))
    assert costs[0.0] == pytest.approx(1) and costs[1.0] == pytest.approx(
        resampling(world.valid, 16, 1.0).expected_draws
    )


@pytest.mark.full("every position of the sliders is drawn")
def test_sliders_redraw_picture_and_numbers():
    plt.close("all")  # those that other tests left open
    box = method_plots.explorer(QUOTED)
    picture, table = bytes(box.picture.value), box.table.value
    assert picture.startswith(b"\x89PNG") and "draws per step" in table
    box.settings["mean"].value = 0.7
    assert bytes(box.picture.value) != picture and box.table.value != table
    world = Population(0.7, box.settings["concentration"].value, 8)
    assert f"{world.easy:.3g}" in box.table.value
    for name, value in (
        ("num_generations", 4),
        ("num_prompts", 64),
        ("beta_th", 0.0),
        ("max_draws", 2),
        ("f_norm", "batch"),
    ):
        picture, table = bytes(box.picture.value), box.table.value
        box.settings[name].value = value
        assert bytes(box.picture.value) != picture, name
        assert box.table.value != table or name == "max_draws", name
    assert set(box.settings) == {
        "mean",
        "concentration",
        "num_generations",
        "num_prompts",
        "beta_th",
        "max_draws",
        "f_norm",
    }
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "corner",
    [
        (0.02, 0.1, 2, 2, 0.0, 1, "none"),
        (0.98, 100.0, 32, 128, 1.0, 20, "batch"),
        (0.02, 0.1, 32, 128, 1.0, 1, "group"),
    ],
)
def test_corners_of_the_sliders_can_be_drawn(corner):
    assert bytes(method_plots.explorer(QUOTED, *corner).picture.value).startswith(b"\x89PNG")


def test_runs_figure_draws_every_seed():
    real = [simulate_run(np.random.default_rng(i), 0.4, 1.0, num_steps=12) for i in range(3)]
    predicted = [predicted_run(run, 8)[0] for run in real]
    figure = method_plots.runs_figure(real, predicted, real[0], QUOTED, "three made-up runs")
    reward, share, spread, both = figure.axes
    assert [len(axis.lines) for axis in (reward, share, spread, both)] == [4, 7, 7, 4]
    assert "three made-up runs" in texts_of(figure)
    assert len(both.lines[0].get_xdata()) == 12


def test_adamw_figure_names_every_case():
    alphas = np.linspace(1, 3, 10)
    figure = method_plots.adamw_figure(adamw_study(alphas, num_parameters=4, num_repeats=3), alphas)
    text = texts_of(figure)
    for clipping in ("off", "some steps", "every step"):
        assert f"clipping: {clipping}\nvarying α" in text and f"clipping: {clipping}\nconstant α" in text
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(heights, alphas / 2)


def test_control_figure_draws_limit_and_runs():
    run = simulate_run(np.random.default_rng(0), 0.4, 1.0, num_steps=8).assign(grad_norm=0.2, alpha_applied=1.5)
    curves = {"age_clipped": [run, run], "one_unclipped": [run]}
    figure = method_plots.control_figure(curves, {"age_clipped": 0.3, "one_unclipped": 1e9}, "two rows")
    assert [len(axis.lines) for axis in figure.axes] == [3, 4, 3]
    text = texts_of(figure)
    assert "limit of the gradient norm, 0.3" in text and "α = 1, not clipped" in text and "α = B/(B−M), clipped" in text
