"""The worked example of docs/extending.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import eval_harness.benchmarks
import gpg_repro.rewards
from eval_harness import records
from eval_harness.runner import evaluate
from gpg_repro.recipe import load_recipe
from gpg_repro.train import train

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
FILES = {
    "eval_harness/benchmarks/tiny_stripes.py": eval_harness.benchmarks,
    "gpg_repro/rewards/brief.py": gpg_repro.rewards,
    "my_stripes.yaml": None,
}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The page's files, written where the packages find them."""
    blocks = re.findall(r"^`([\w/]+\.(?:py|yaml))`\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == list(FILES)
    for name, text in blocks:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if FILES[name] is not None:
            monkeypatch.setattr(FILES[name], "__path__", [*FILES[name].__path__, str(path.parent)])
    caches = (eval_harness.benchmarks.all_benchmarks, gpg_repro.rewards.all_rewards)
    for found in caches:
        found.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    for found in caches:
        found.cache_clear()


@pytest.mark.full("the commands of the documentation, each a process")
def test_the_worked_example(files, monkeypatch):
    monkeypatch.setenv("GPG_RESULTS", str(files / "results"))
    recipe = load_recipe(str(files / "my_stripes.yaml"), ["max_steps=1"], scale="smoke")
    assert "brief" in recipe.setup.rewards and recipe.objective.normalization == "group"
    run = train(recipe, root=files / "runs", progress=False, log_to="none")
    steps = records.steps_frame(run)
    assert 0 < steps["rewards/brief_reward"].iloc[0] < 1
    folder = evaluate(
        str(run / "checkpoint"), ["tiny_stripes"], engine="transformers", out=files / "eval", progress=False
    )
    result = records.read_run(folder).benchmarks["tiny_stripes"]
    assert (result.scored, set(result.groups)) == (10, {"upright", "level"})


def test_the_recipe_has_the_scales_it_says(files):
    raw = yaml.safe_load((files / "my_stripes.yaml").read_text())
    assert raw["scales"]["paper"] is None
    with pytest.raises(Exception, match="has no scale 'paper'; it has tiny, smoke"):
        load_recipe(str(files / "my_stripes.yaml"), scale="paper")
