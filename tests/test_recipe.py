"""Recipes: what they say, what overrides do, what is refused."""

import pytest
import yaml

from eval_harness.errors import UserError
from gpg_repro.__main__ import main
from gpg_repro.recipe import RECIPES, SCALES, load_recipe, recipe_names


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_and_checks_at_every_scale(name, scale, monkeypatch):
    from gpg_repro import train

    recipe = load_recipe(name, scale=scale)
    assert recipe.scale == scale and recipe.setup.training.prompts_per_step >= 1
    monkeypatch.setattr(train, "_base_exists", lambda recipe: None)  # the hub is not here
    train.check_recipe(recipe)


def test_rs1_is_the_released_setting():
    """Spec of the 1.5B run: 16 processes x 6 completions x 4 accumulation steps = 384 = 64 prompts x 6."""
    recipe = load_recipe("table3_gpg_rs1", scale="paper")
    t = recipe.setup.training
    assert (t.max_steps, t.num_generations, t.prompts_per_step) == (100, 6, 64)
    assert (t.learning_rate, t.temperature, t.top_k, t.max_completion_length) == (1e-6, 0.7, 50, 3584)
    assert recipe.setup.rewards == {"think_format": 1.0, "cosine": 2.0}
    o = recipe.objective
    assert (recipe.fidelity, o.f_norm, o.age, o.normalization) == ("r0", "group", False, "local")
    assert load_recipe("table3_gpg_rs3", scale="paper").setup.training.max_steps == 50
    assert load_recipe("table3_grpo_rs1", scale="paper").objective.beta_kl == 0.04
    assert load_recipe("table3_gpg_age_rs1", scale="paper").objective.age


def test_gpg_and_grpo_have_the_same_budget():
    for scale in SCALES:
        for data in ("rs1", "rs3"):
            gpg, grpo = (load_recipe(f"table3_{m}_{data}", scale=scale) for m in ("gpg", "grpo"))
            assert gpg.setup == grpo.setup


def test_overrides_by_name_and_path():
    recipe = load_recipe(
        "table3_gpg_rs1", ["max_steps=3", "training.learning_rate=1e-6", "scale=smoke", "seed=4", "age=true"]
    )
    assert (recipe.scale, recipe.seed, recipe.setup.training.max_steps) == ("smoke", 4, 3)
    assert recipe.setup.training.learning_rate == 1e-6 and recipe.objective.age is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_stps=3", "did you mean 'max_steps'"),
        ("trainin.max_steps=3", "unknown recipe key 'trainin.max_steps'"),
        ("scale=tny", "did you mean 'tiny'"),
        ("max_steps=0", "greater than or equal to 1"),
        ("num_generations=1", "greater than or equal to 2"),
        ("per_device_train_batch_size=100", "not a multiple of num_generations = 8"),
        ("f_norm=std", "'none', 'group' or 'batch'"),
        ("max_steps", "expected key=value"),
        ("learning_rate=fast", "valid number"),
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe("table3_gpg_rs1", [override])


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        load_recipe("table3_gpg_rs1", ["max_steps=0", "top_p=2", "f_norm=std"])
    assert all(name in str(error.value) for name in ("max_steps", "top_p", "f_norm"))
    with pytest.raises(UserError) as error:
        load_recipe("table3_gpg_rs1", ["max_stps=1", "lr=2"])
    assert "'max_stps'" in str(error.value) and "'lr'" in str(error.value)


def test_bad_files_are_named(tmp_path):
    raw = yaml.safe_load((RECIPES / "table3_gpg_rs1.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"

    def refused(content: str) -> str:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError) as error:
            load_recipe(str(path))
        return str(error.value)

    assert "not valid YAML" in refused("a: [1")
    assert "expected a mapping" in refused("- 1")
    assert "did you mean 'fidelity'" in refused(yaml.safe_dump(raw | {"fidelty": "paper"}))
    assert "missing key 'method'" in refused(yaml.safe_dump({k: v for k, v in raw.items() if k != "method"}))
    raw["scales"]["tiny"]["training"]["lerning_rate"] = 1
    assert "did you mean 'learning_rate'" in refused(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_check_reports_every_missing_piece():
    from gpg_repro.train import check_recipe

    recipe = load_recipe(
        "table3_gpg_rs1", ["dataset=tiny_s2", "rewards={acuracy: 1}", "system_prompt=opn_rs"], scale="paper"
    )
    with pytest.raises(UserError) as error:
        check_recipe(recipe)
    for part in ("did you mean 'tiny_s1'", "did you mean 'accuracy'", "did you mean 'open_rs'", "DeepSeek-R1-Distill"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="beta_kl must be 0"):
        check_recipe(load_recipe("table3_gpg_rs1", ["beta_kl=0.04"]))
    with pytest.raises(UserError, match="no normalization 'group'"):
        check_recipe(load_recipe("table3_grpo_rs1", ["normalization=group"]))


def test_commands(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipe_names()) and "never run at paper scale" in listed
    assert main(["train", "table3_gpg_rs9"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_fingerprint_moves_with_what_moves_weights():
    a = load_recipe("table3_gpg_rs1")
    same = load_recipe("table3_gpg_rs1", ["save_steps=7"])
    assert a.fingerprint("base") == same.fingerprint("base")
    for override in ("seed=1", "learning_rate=1e-3", "age=true", "num_prompts=7"):
        assert load_recipe("table3_gpg_rs1", [override]).fingerprint("base") != a.fingerprint("base")
    assert a.fingerprint("base") != a.fingerprint("other base")
