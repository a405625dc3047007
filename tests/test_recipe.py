"""Recipes: what they say, what overrides do, what is refused, what was run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval_harness import records
from eval_harness.errors import UserError
from gpg_repro.__main__ import main
from gpg_repro.history import History
from gpg_repro.recipe import RECIPES, SCALES, load_recipe, recipe_names, recipe_scales

ROOT = Path(__file__).resolve().parent.parent
FAMILY = [
    name for name in recipe_names() if name.split("_")[0] in ("table1", "table9", "table10", "table11", "table12")
]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_at_every_scale(name, monkeypatch):
    from gpg_repro import train

    monkeypatch.setattr(train, "_base_exists", lambda recipe: None)  # the hub is not here
    scales = ["smoke", "tiny"] if name.endswith("_sft") else list(SCALES)  # settings of those rows are not stated
    assert recipe_scales(name) == scales
    for scale in scales:
        recipe = load_recipe(name, scale=scale)
        assert recipe.scale == scale and recipe.setup.training.prompts_per_step >= 1
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


def test_the_multimodal_recipes_are_the_released_settings():
    """Spec 2e-2h: R0 and R2 are two methods behind two sets of numbers; prompts per step, epochs, lengths, pixels."""
    expected = {  # prompts per step, steps, completion length, gradient checkpointing
        "table5": (16, 500, 256, False),
        "table6_flowers102": (16, 204, 256, False),
        "table6_pets37": (16, 222, 256, False),
        "table6_fgvc_aircraft": (16, 200, 256, False),
        "table6_cars196": (16, 392, 256, False),
        "table7": (4, 6000, 700, True),
        "table8": (16, 498, 256, True),
    }
    for stem, numbers in expected.items():
        r2 = load_recipe(f"{stem}_gpg_r2", scale="paper")
        t = r2.setup.training
        assert (t.prompts_per_step, t.max_steps, t.max_completion_length, t.gradient_checkpointing) == numbers
        assert (t.learning_rate, t.temperature, t.top_k, t.max_prompt_length) == (1e-6, 1.0, 50, 1024)
        assert (r2.setup.min_pixels, r2.setup.max_pixels) == (3136, 401408)
        o = r2.objective
        assert (r2.fidelity, o.f_norm, o.age, o.beta_th, o.normalization) == ("r2", "none", True, 0.4, "sequence")
        r0 = load_recipe(f"{stem}_gpg_r0", scale="paper")
        o = r0.objective
        assert (r0.fidelity, o.f_norm, o.age, o.beta_th, o.normalization) == ("r0", "group", False, 0.0, "sequence")
        grpo = load_recipe(f"{stem}_grpo", scale="paper")
        assert (grpo.method, grpo.objective.beta_kl, grpo.objective.f_norm) == ("grpo", 0.04, "group")
        assert r0.setup == r2.setup == grpo.setup


def test_supervised_recipes_take_no_rewards_and_no_advantages(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: table7_gpg_r2\nmethod: sft\nscales: {paper: null}\n")
    with pytest.raises(UserError, match="sft samples nothing") as error:
        load_recipe(str(path))
    assert "sft has no advantages" in str(error.value)


def test_a_null_scale_is_left_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: table5_gpg_r2\nscales: {paper: null}\n")
    assert recipe_scales(str(path)) == ["smoke", "tiny"]


def test_gpg_and_grpo_have_the_same_budget():
    for scale in SCALES:
        for data in ("rs1", "rs3"):
            gpg, grpo = (load_recipe(f"table3_{m}_{data}", scale=scale) for m in ("gpg", "grpo"))
            assert gpg.setup == grpo.setup


# (method, f_norm, age, beta_th, normalization, beta_kl, G) of every row of Tables 1, 9, 10, 11 and 12
ROWS = {
    "table1_gpg": ("gpg", "none", False, 0.0, "local", 0.0, 8),
    "table1_gpg_std": ("gpg", "group", False, 0.0, "local", 0.0, 8),
    "table1_gpg_age": ("gpg", "none", True, 0.0, "local", 0.0, 8),
    "table1_gpg_age_th": ("gpg", "none", True, 0.6, "local", 0.0, 8),
    "table1_grpo": ("grpo", "group", False, 0.0, "local", 0.04, 8),
    "table1_dr_grpo": ("dr_grpo", "none", False, 0.0, "constant", 0.0, 8),
    "table9_dapo": ("dapo", "group", False, 0.0, "batch", 0.0, 8),
    "table10_gpg_age_th08": ("gpg", "none", True, 0.8, "local", 0.0, 8),
    "table11_gpg_g2": ("gpg", "group", False, 0.0, "local", 0.0, 2),
    "table11_gpg_g4": ("gpg", "group", False, 0.0, "local", 0.0, 4),
    "table11_gpg_g16": ("gpg", "group", False, 0.0, "local", 0.0, 16),
    "table12_gpg_batch_std": ("gpg", "batch", False, 0.0, "local", 0.0, 8),
    "table12_gpg_kl": ("gpg", "group", False, 0.0, "local", 0.04, 8),
}


@pytest.mark.parametrize("scale", SCALES)
def test_the_7b_ablations_differ_in_their_switch_alone(scale):
    assert sorted(ROWS) == sorted(FAMILY)
    base = load_recipe("table1_gpg", scale=scale)
    for name, (method, f_norm, age, beta_th, normalization, beta_kl, generations) in ROWS.items():
        recipe = load_recipe(name, scale=scale)
        o, t = recipe.objective, recipe.setup.training
        assert (recipe.method, o.f_norm, o.age, o.beta_th) == (method, f_norm, age, beta_th)
        assert (o.normalization, o.beta_kl, t.num_generations) == (normalization, beta_kl, generations)
        assert recipe.fidelity == base.fidelity and o.epsilon_high == (0.28 if method == "dapo" else None)
        assert t.completions_per_step() == base.setup.training.completions_per_step()
        if scale == "paper":  # one epoch of 7,500 prompts, whatever G
            assert abs(t.max_steps * t.prompts_per_step - 7500) < t.prompts_per_step
        same = recipe.setup.model_dump() | {"training": {**t.model_dump(), "num_generations": 8}}
        if scale == "paper":
            same["training"]["max_steps"] = 117
        assert same == base.setup.model_dump()


def test_the_7b_ablations_are_the_released_setting():
    """Spec 2c: 8 processes x 16 completions x 4 accumulation steps = 512 = 64 prompts x 8."""
    s = load_recipe("table1_gpg", scale="paper").setup
    t = s.training
    assert (s.base, s.dataset, s.rewards) == ("Qwen/Qwen2.5-Math-7B", "math_lighteval", {"accuracy": 1.0})
    assert (t.completions_per_step(), t.prompts_per_step, t.max_steps) == (512, 64, 117)
    assert (t.learning_rate, t.lr_scheduler_type, t.warmup_steps) == (3e-6, "cosine", 0.1)
    assert (t.temperature, t.top_k, t.max_prompt_length, t.max_completion_length) == (0.9, 50, 512, 1024)
    assert s.system_prompt == "open_r1_think"


def test_gpg_7b_in_both_forms():
    """Appendix B.1: 144 prompts x 8, 1,100 steps, 48 devices. Launch: 16 x 8 x 4 = 512 = 64 prompts x 8."""
    paper, released = (load_recipe(f"table4_gpg_{form}", scale="paper") for form in ("paper", "released"))
    t = paper.setup.training
    assert (t.prompts_per_step, t.num_generations, t.max_steps, t.num_processes) == (144, 8, 1100, 48)
    assert (t.learning_rate, t.lr_scheduler_type, t.warmup_steps, t.weight_decay) == (1e-6, "constant", 0, 0.1)
    assert (paper.fidelity, paper.objective.beta_th, paper.objective.normalization) == ("paper", 0.6, "group")
    t = released.setup.training
    assert (t.prompts_per_step, t.num_processes, t.lr_scheduler_type) == (64, 16, "constant_with_warmup")
    assert (t.warmup_steps, t.weight_decay, t.top_k, t.max_completion_length) == (0.03, 0.0, 50, 2048)
    assert (released.fidelity, released.objective.beta_th, released.objective.normalization) == ("r2", 0.5, "local")
    for recipe in (paper, released):
        assert recipe.objective.age and recipe.objective.f_norm == "none" and recipe.objective.beta_kl == 0
        assert recipe.setup.rewards == {"accuracy_lv35": 1.0} and recipe.setup.dataset == "simplerl_level3to5"
    assert load_recipe("table4_gpg_paper", ["dataset=dapo_math_17k"], scale="paper").setup.system_prompt is None


def test_the_controls_cross_alpha_with_clipping():
    for scale in SCALES:
        clipped = load_recipe("table1_gpg", scale=scale).setup.training.max_grad_norm
        cells = {
            ("age", True): "table1_gpg_age",
            ("age", False): "control_age_unclipped",
            ("one", True): "table1_gpg",
            ("one", False): "control_one_unclipped",
            ("mean", True): "control_mean_clipped",
            ("mean", False): "control_mean_unclipped",
        }
        for (alpha, clips), name in cells.items():
            recipe = load_recipe(name, scale=scale)
            assert recipe.setup.training.max_grad_norm == (clipped if clips else 1e9)
            assert recipe.objective.age == (alpha == "age")
            assert recipe.objective.alpha_from == (cells["age", clips] if alpha == "mean" else None)


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
        ("num_generations=1", "a group needs at least 2 completions"),
        ("rewards={}", "name at least one reward"),
        ("dataset=sat", "prompt_form must be concatenate"),
        ("per_device_train_batch_size=100", "not a multiple of num_generations = 8"),
        ("f_norm=std", "'none', 'group' or 'batch'"),
        ("max_steps", "expected key=value"),
        ("learning_rate=fast", "valid number"),
        ("lr_scheduler_type=cosin", "'cosine'"),
        ("beta_th=1.2", "less than or equal to 1"),
        ("beta_th=-0.1", "greater than or equal to 0"),
        ("max_draws=0", "greater than or equal to 1"),
        ("fixed_alpha=0", "greater than 0"),
        ("epsilon_high=0.28", "no probability ratio to clip"),
        ("normalization=constant", "constant is Dr. GRPO's"),
        ("alpha_from=table1_gpg_ag", "did you mean 'table1_gpg_age'"),
        ("alpha_from=control_mean_clipped", "takes its own alpha from another run"),
        ("dataset=tiny_s2", "did you mean 'tiny_s1'"),
        ("num_prompts=null", "is generated: say num_prompts"),
        ("rewards={acuracy: 1}", "did you mean 'accuracy'"),
        ("system_prompt=opn_rs", "did you mean 'open_rs'"),
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe("table3_gpg_rs1", [override])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("table1_gpg_age", ["fixed_alpha=2"], "age and fixed_alpha each set the factor"),
        ("table1_gpg_age", ["alpha_from=table1_gpg"], "age and alpha_from each set the factor"),
        ("control_mean_clipped", ["fixed_alpha=2"], "fixed_alpha and alpha_from each set the factor"),
        ("table1_grpo", ["age=true", "beta_th=0.6"], "method grpo is TRL's own and has no age, beta_th"),
        ("table7_sft", ["logp_temperature=one"], "method sft divides no logits: leave logp_temperature out"),
        ("table9_dapo", ["alpha_from=table1_gpg_age"], "method dapo is TRL's own and has no alpha_from"),
        ("table9_dapo", ["share_prompt=on"], "method dapo is TRL's own and cannot share prompts"),
        ("table1_dr_grpo", ["normalization=group"], "no normalization group"),
        ("table1_dr_grpo", ["f_norm=group"], "method dr_grpo means f_norm none"),
        ("table9_dapo", ["normalization=constant"], "method dapo cannot have it"),
        ("table4_gpg_released", ["per_device_train_batch_size=4"], "whole groups on a device"),
        ("table4_gpg_released", ["system_prompt=open_r1_think"], "brings its whole prompt"),
    ],
)
def test_settings_that_exclude_each_other(name, overrides, message):
    scale = "paper" if name.startswith("table4") else "tiny"
    with pytest.raises(UserError, match=message):
        load_recipe(name, overrides, scale=scale)


def test_allowed_variants():
    assert load_recipe("table1_dr_grpo", ["normalization=local"]).objective.normalization == "local"
    assert load_recipe("table1_gpg_age", ["normalization=group", "beta_kl=0.04"]).objective.beta_kl == 0.04


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        load_recipe("table3_gpg_rs1", ["max_steps=0", "top_p=2", "f_norm=std", "max_stps=1", "nonsense", "epsilon=0.3"])
    for name in ("max_steps:", "top_p", "f_norm", "'max_stps'", "'nonsense'", "no probability ratio"):
        assert name in str(error.value)
    with pytest.raises(UserError) as error:
        load_recipe(
            "table1_grpo",
            ["age=true", "normalization=group", "per_device_train_batch_size=100", "dataset=tiny_s2", "rewards={a: 1}"],
        )
    for name in ("no age", "no normalization group", "not a multiple", "'tiny_s2'", "unknown reward 'a'"):
        assert name in str(error.value)


@pytest.fixture
def refused(tmp_path):
    """Writes a file and returns what load_recipe says against it."""

    def check(content, **kwargs) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(UserError) as error:
            load_recipe(str(path), **kwargs)
        return str(error.value)

    return check


def _raw(name: str = "table3_gpg_rs1") -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def test_bad_files_are_named(refused, tmp_path):
    assert "not valid YAML" in refused("a: [1")
    assert "expected a mapping" in refused("- 1")
    assert "did you mean 'fidelity'" in refused(_raw() | {"fidelty": "paper"})
    assert "missing key 'method'" in refused({k: v for k, v in _raw().items() if k != "method"})
    raw = _raw()
    raw["scales"]["tiny"]["training"]["lerning_rate"] = 1
    assert "did you mean 'learning_rate'" in refused(raw)
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_a_file_is_checked_whole(refused):
    """Unknown keys, missing keys, values, rules and the scales that were not asked for: one error."""
    raw = _raw() | {"fidelty": "paper", "method": "grpo"}
    del raw["serves"]
    raw["objective"] |= {"normalization": "group", "fixed_alpha": 2}
    raw["scales"]["tiny"]["training"]["top_p"] = 3
    raw["scales"]["paper"]["training"]["per_device_train_batch_size"] = 5
    raw["scales"]["paper"]["dataset"] = "open_s2"
    del raw["scales"]["smoke"]["training"]["bf16"]
    said = refused(raw)
    for part in (
        "unknown key 'fidelty'; did you mean 'fidelity'",
        "missing key 'serves'",
        "no normalization group",
        "has no fixed_alpha",
        "setup.training.top_p",
        "scale paper: 5 completions per device x 4 accumulation steps x 16 processes = 320",
        "did you mean 'open_s1'",
        "scale smoke: setup.training.bf16: Field required",
    ):
        assert part in said, part
    assert said.count("no normalization group") == 1


def test_extends_is_one_level_deep_and_merges(tmp_path, refused):
    assert yaml.safe_load((RECIPES / "table1_gpg_std.yaml").read_text(encoding="utf-8")).keys() == {
        "extends",
        "title",
        "serves",
        "objective",
    }
    child = {
        "extends": "table3_gpg_rs1",
        "title": "mine",
        "objective": {"age": True},
        "scales": {"paper": {"rewards": {"accuracy": 1.0}, "training": {"max_steps": 7, "lr_scheduler_kwargs": {}}}},
    }
    path = tmp_path / "child.yaml"
    path.write_text(yaml.safe_dump(child), encoding="utf-8")
    mine, parent = (load_recipe(name, scale="paper") for name in (str(path), "table3_gpg_rs1"))
    assert (mine.name, mine.title, mine.serves, mine.objective.age) == ("child", "mine", parent.serves, True)
    assert mine.objective.f_norm == parent.objective.f_norm == "group"
    assert mine.setup.rewards == {"accuracy": 1.0} and mine.setup.training.lr_scheduler_kwargs == {}  # replaced whole
    assert mine.setup.training.max_steps == 7
    assert mine.setup.training.learning_rate == parent.setup.training.learning_rate
    assert load_recipe(str(path), scale="tiny").setup == load_recipe("table3_gpg_rs1", scale="tiny").setup
    grandchild = tmp_path / "grandchild.yaml"  # a sibling file by its name
    grandchild.write_text("extends: child.yaml\ntitle: third\n", encoding="utf-8")
    with pytest.raises(UserError, match="only one level"):
        load_recipe(str(grandchild))
    assert "did you mean 'table1_gpg'" in refused({"extends": "table1_gpgg"})
    assert "extends names one recipe" in refused({"extends": ["table1_gpg"]})


def test_check_reports_what_the_recipe_cannot_know(monkeypatch):
    from gpg_repro.train import check_recipe

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError) as error:  # written for 2 x 24 = 3 groups of 16; 3 x 24 = 72 are 4.5
        check_recipe(
            load_recipe(
                "table11_gpg_g16",
                ["per_device_train_batch_size=24", "gradient_accumulation_steps=1", "num_processes=2"],
                scale="paper",
            )
        )
    assert "Qwen2.5-Math-7B" in str(error.value)
    assert "launched with 3 processes, a step has 72 completions, not a multiple" in str(error.value)


# --- The listing -----------------------------------------------------------------------------------------------------


def test_commands(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}\n" in listed for name in recipe_names()) and "paper: never run" in listed
    assert main(["train", "table3_gpg_rs9"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["train", "table3_gpg_rs1", "--log-to", "wandbb"]) == 2
    assert "did you mean 'wandb'" in capsys.readouterr().err


def test_one_recipe_is_printed_resolved(capsys):
    assert main(["recipes", "table11_gpg_g4", "scale=paper", "max_steps=3"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == load_recipe("table11_gpg_g4", ["max_steps=3"], scale="paper").model_dump(mode="json")
    assert shown["setup"]["training"]["learning_rate"] == 3e-6  # inherited
    assert main(["recipes", "table11_gpg_g5"]) == 2


@pytest.mark.parametrize("unbuffered", [True, False])
def test_a_reader_that_leaves_is_no_error(unbuffered):
    """What `recipes | head` does: the pipe is closed while lines are written, or before the one write at the end."""
    command = [sys.executable, *(["-u"] if unbuffered else []), "-m", "gpg_repro", "recipes"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if unbuffered:
        process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 141


def _record(folder: Path, recipe: dict, status: str = "finished", processes: int = 1) -> None:
    record = records.TrainingRecord(
        run_id=folder.name,
        fingerprint="0",
        status=status,
        created=records.now(),
        finished=None,
        recipe=recipe,
        base={},
        checkpoint=None,
        num_steps=4,
        timings={},
        environment={"num_processes": processes},
    )
    records.write_json(folder / "run.json", record)


def test_history_tells_what_was_run_and_where(tmp_path):
    reference, runs = tmp_path / "reference", tmp_path / "runs"
    for seed in range(3):
        recipe = load_recipe("table1_gpg", seed=seed).model_dump()
        _record(reference / "tiny" / "table1_gpg" / f"seed{seed}" / "training", recipe)
    old = load_recipe("table1_gpg", seed=5).model_dump() | {"status": "never run"}  # records of the first version
    for key in ("beta_th", "max_draws", "fixed_alpha", "alpha_from", "epsilon", "epsilon_high"):
        del old["objective"][key]
    _record(runs / "train-a", old)
    _record(runs / "train-b", load_recipe("table1_gpg", ["max_steps=9"]).model_dump())
    _record(runs / "train-c", load_recipe("table1_gpg", seed=6).model_dump(), status="running")
    _record(runs / "train-d", load_recipe("table1_gpg", seed=7).model_dump(), processes=2)
    measured = load_recipe("control_mean_clipped").model_dump()
    measured["objective"]["fixed_alpha"] = 1.7
    _record(runs / "train-e", measured)
    (runs / "torn").mkdir()
    (runs / "torn" / "run.json").write_text("{", encoding="utf-8")
    history = History.read([reference, runs])
    assert history.of(load_recipe("table1_gpg")) == (
        f"3 seeds in {reference}/tiny/table1_gpg; 1 seed, 2 runs with other settings, 1 unfinished run in {runs}"
    )
    assert history.of(load_recipe("control_mean_clipped")) == f"1 seed in {runs}"
    assert history.of(load_recipe("table1_gpg", scale="paper")) == "never run"
    assert len(history.unreadable) == 1 and "not valid JSON" in history.unreadable[0]


# --- Fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprint_moves_with_what_moves_weights():
    a = load_recipe("table3_gpg_rs1")
    same = load_recipe("table3_gpg_rs1", ["save_steps=7", "beta_th=0", "max_draws=20", "share_prompt=auto"])
    assert a.fingerprint("base") == same.fingerprint("base")
    for override in (
        "seed=1",
        "learning_rate=1e-3",
        "age=true",
        "num_prompts=7",
        "beta_th=0.5",
        "fixed_alpha=2",
        "share_prompt=off",
    ):
        assert load_recipe("table3_gpg_rs1", [override]).fingerprint("base") != a.fingerprint("base")
    assert a.fingerprint("base") != a.fingerprint("other base")


def test_committed_runs_keep_their_fingerprints():
    """Keys that came later must not orphan the records of Table 3."""
    found = [
        record
        for path in sorted((ROOT / "results" / "reference").glob("**/run.json"))
        if (record := json.loads(path.read_text(encoding="utf-8")))["kind"] == "training"
        and record["recipe"]["name"].startswith("table3_")
    ]
    assert len(found) >= 15
    for record in found:
        recipe = load_recipe(record["recipe"]["name"], scale=record["recipe"]["scale"], seed=record["recipe"]["seed"])
        assert recipe.fingerprint(record["base"]["weights"]) == record["fingerprint"]
        assert recipe.describes(record["recipe"])
