"""Figures of training runs: numbers are those of the records; of the paper only its quoted ranges are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from eval_harness import records
from eval_harness.errors import UserError
from gpg_repro import plots
from gpg_repro.figures import figure_2, figure_4
from gpg_repro.figures.base import Curves, published_range, ranges
from gpg_repro.tables import runs as table_runs

matplotlib.use("agg")


def _training(folder: Path, steps: list[dict]) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i, **step}) + "\n" for i, step in enumerate(steps, start=1)]
    (folder / "steps.jsonl").write_text("".join(lines), encoding="utf-8")
    records.write_json(
        folder / "run.json",
        records.TrainingRecord(
            run_id="t",
            fingerprint="f",
            status="finished",
            created="2026-01-01T00:00:00+00:00",
            finished=None,
            recipe={},
            base={"name": "b", "weights": "w" * 32, "revision": None},
            checkpoint=None,
            num_steps=len(steps),
            timings={},
            environment={},
        ),
    )


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """Committed records of the recipes of both figures: 40 steps, three seeds, straight lines."""
    monkeypatch.setattr(table_runs, "REFERENCE", tmp_path / "reference")
    for recipe, offset in (("table1_gpg_age", 0.0), ("table3_gpg_rs1", 0.0), ("table3_grpo_rs1", 0.1)):
        for seed in range(3):
            steps = []
            for i in range(40):
                valid = 8 if i else 0  # no group with a signal in the first step
                steps.append(
                    {
                        "num_groups": 16,
                        "num_valid_groups": valid,
                        "alpha": 2.0 + seed if valid else 0.0,
                        "frac_easy": 0.1 + 0.02 * i,
                        "frac_hard": 0.9 - 0.02 * i,
                        "reward_std": 0.45 * valid / 16,
                        "loss": -0.1,
                        "reward": offset + 0.01 * i + 0.001 * seed,
                        "rewards/accuracy_reward": 0.01 * i,
                        "rewards/format_reward": 1.0,
                        "rewards/accuracy_reward/mean": 0.01 * i,
                        "completion_length": 20.0 + i,
                    }
                )
            _training(tmp_path / "reference" / "tiny" / recipe / f"seed{seed}" / "training", steps)
    return tmp_path


def test_ranges_by_hand():
    frames = {0: pd.DataFrame({"a": [1.0, 3.0]}), 1: pd.DataFrame({"a": [2.0, 6.0]})}
    (line,) = ranges(Curves("r", "here", {}, frames), {"a": "A"}).itertuples()
    assert (line.low, line.mean, line.high, line.num_steps, line.num_seeds) == (1.0, 3.0, 6.0, 4, 2)


def test_published_ranges():
    assert published_range("Figure 2", "alpha") == (1.5, 4.0)
    assert published_range("Figure 2", "reward_std") == (0.1, 0.35)
    with pytest.raises(UserError, match="unknown published range"):
        published_range("Figure 2", "loss")


def test_figure_2_states_what_the_records_say(committed):
    report = figure_2.build_figure("tiny", results=committed / "results", progress=False)
    numbers = report.numbers
    alpha = numbers.loc["α = B/(B−M)"]
    assert (alpha["low"], alpha["mean"], alpha["high"]) == (2.0, 3.0, 4.0)  # seeds 2, 3, 4; the first step has none
    assert (alpha["num_steps"], alpha["num_seeds"]) == (117, 3)
    assert numbers.loc["mean within-group reward std", "low"] == 0.0
    assert "α ran from 2.00 to 4.00 (mean 3.00) over 117 steps (3 training seeds), scale tiny" in report.text
    assert "100 % of our steps lie in that range" in report.text  # alpha
    assert "3 of all 120 steps had no group with a signal" in report.text
    # first ten steps: mean of 0.10 … 0.28; last ten: 0.70 … 0.88
    assert "all-right groups went from 0.19 to 0.79, that of all-wrong groups from 0.81 to 0.21" in report.text
    assert "share of valid groups is 0.45" in report.text
    assert any("caption swaps" in note for note in report.notes)
    assert {p.suffix for p in (committed / "results" / "figures" / "tiny").iterdir()} == {
        ".png",
        ".svg",
        ".md",
        ".csv",
        ".html",
    }
    plots.plt.close("all")


def test_figure_2_draws_the_quoted_ranges_as_bands_and_nothing_else_of_the_paper(committed):
    axes = figure_2.build_figure("tiny", results=committed / "results", progress=False).figure.axes
    for axis, band in ((axes[1], (1.5, 4.0)), (axes[2], (0.1, 0.35))):
        (patch,) = axis.patches
        assert (patch.get_y(), patch.get_y() + patch.get_height()) == pytest.approx(band)
        assert len(axis.lines) == 4  # three faint seeds and their mean
        assert [line.get_alpha() for line in axis.lines] == [0.25] * 3 + [None]
    assert not axes[0].patches and len(axes[0].lines) == 8
    assert axes[1].lines[3].get_ydata()[0] == pytest.approx(3.0)  # not pulled down by the step without alpha
    plots.plt.close("all")


def test_figure_2_needs_a_signal(committed):
    folder = committed / "reference" / "tiny" / "dull" / "seed0" / "training"
    _training(folder, [{"num_valid_groups": 0, "alpha": 0.0}])
    with pytest.raises(UserError, match="no step of dull"):
        figure_2.build_figure("tiny", recipe="dull", results=committed / "results", progress=False)


def test_figure_4_by_hand(committed):
    report = figure_4.build_figure("tiny", results=committed / "results", progress=False)
    reward = report.numbers.loc[("total reward", "GRPO")]
    # 0.1 + mean of 0 … 0.09 + mean of 0, .001, .002 = 0.146; thirty steps later 0.30 more, alike with every seed
    assert (reward["first"], reward["last"], reward["change"]) == pytest.approx((0.146, 0.446, 0.3))
    assert (reward["change_low"], reward["change_high"]) == pytest.approx((0.3, 0.3))
    assert (reward["num_seeds"], reward["num_steps"]) == (3, 120)
    assert "GPG − GRPO: -0.100, single seeds -0.100 … -0.100" in report.text
    assert any("cannot be compared in scale" in note for note in report.notes)
    plots.plt.close("all")


def test_figure_4_gives_each_loss_an_axis_of_its_own(committed):
    figure = figure_4.build_figure("tiny", results=committed / "results", progress=False).figure
    panels = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_title() for axis in panels] == [
        "loss of GPG (own scale)",
        "loss of GRPO (own scale)",
        "total reward",
        "reward: accuracy_reward",
        "reward: format_reward",
        "completion length, tokens",
    ]
    assert [len(axis.lines) for axis in panels] == [4, 4, 8, 8, 8, 8]  # a method has three seeds and a mean
    colors = {line.get_color() for line in panels[0].lines}, {line.get_color() for line in panels[1].lines}
    assert colors == ({plots.GPG_BLUE}, {plots.GRPO_GRAY})
    plots.plt.close("all")


def test_without_records_one_seed_is_trained(committed, monkeypatch):
    import gpg_repro.train

    trained = []
    monkeypatch.setattr(gpg_repro.train, "train", lambda recipe, **k: trained.append((recipe.scale, recipe.seed)))
    for scale, seeds in (("smoke", 0), ("tiny", 2)):
        table_runs.recipe_trainings("table1_gpg_age", scale, seeds=seeds, results=committed)
    assert trained == [("smoke", 0), ("tiny", 0), ("tiny", 1)]


def test_smoothing_leaves_out_steps_without_alpha():
    frame = pd.DataFrame({"step": range(1, 9), "alpha": [0.0, 2, 4, 0, 0, 0, 3, 3], "reward": range(8)})
    # a quarter of eight steps: windows of two, the step before and the step itself
    alpha = plots.smoothed(frame, "alpha", 10)
    assert alpha.iloc[1:4].tolist() == [2.0, 3.0, 4.0] and pd.isna(alpha.iloc[4])
    assert plots.smoothed(frame, "reward", 10).tolist() == [0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
