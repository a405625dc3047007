"""Data sets of one's own: files, folders and hub ids with columns named; what is wrong with them, before any work."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

import datasets
import pytest
import yaml
from PIL import Image

from eval_harness import records
from eval_harness.errors import UserError
from gpg_repro import train as train_module
from gpg_repro.datasets import content_of, own
from gpg_repro.recipe import RECIPES, load_recipe
from gpg_repro.train import build_trainer, check_recipe, load_image, train, training_rows

ROWS = [{"ask": f"{i}+1=?", "gold": str(i + 1), "note": "x"} for i in range(6)]
COLUMNS = "columns={question: ask, answer: gold}"


def written(folder: Path, kind: str, rows: list[dict] = ROWS) -> Path:
    """The rows as a file or folder of a kind."""
    path = folder / ("mine" if kind in ("folder", "splits") else f"mine.{kind}")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "folder":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        both = {"train": rows[:1], "rest": rows[1:]}
        datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in both.items()}).save_to_disk(path)
    return path


def recipe_of(path, *overrides: str):
    common = ["num_prompts=null", "rewards={accuracy_lv35: 1}", f"dataset={path}"]
    return load_recipe("table3_gpg_age_rs1", [*common, *overrides], scale="smoke")


def asked(rows) -> list[tuple[str, str]]:
    return [(row["prompt"][-1]["content"], row["solution"]) for row in rows]


EXPECTED = [(f"{i}+1=?", str(i + 1)) for i in range(6)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder"])
def test_rows_are_those_of_the_named_columns(kind, tmp_path):
    recipe = recipe_of(written(tmp_path, kind), COLUMNS)
    check_recipe(recipe.model_copy(update={"setup": recipe.setup.model_copy(update={"base": "smoke"})}))
    rows, counts = training_rows(recipe, "unused")
    assert asked(rows) == EXPECTED and counts["prompts_used"] == 6
    assert set(rows.column_names) == {"prompt", "solution"}
    assert (
        asked(training_rows(recipe_of(written(tmp_path, kind), COLUMNS, "num_prompts=2"), "unused")[0]) == EXPECTED[:2]
    )


def test_a_folder_of_several_splits(tmp_path):
    path = written(tmp_path, "splits")
    assert asked(training_rows(recipe_of(path, COLUMNS), "unused")[0]) == EXPECTED[:1]  # train
    recipe = recipe_of(path, COLUMNS, "dataset_split=rest", "columns.answer=gold")
    assert asked(training_rows(recipe, "unused")[0]) == EXPECTED[1:]
    with pytest.raises(UserError, match="has no split 'tset'; dataset_split can be train, rest"):
        check_recipe(recipe_of(path, COLUMNS, "dataset_split=tset"))


def test_usual_names_need_not_be_said_and_a_path_starts_in_the_current_folder(tmp_path, monkeypatch):
    rows = [{"question": ask, "answer": gold} for ask, gold in EXPECTED]
    written(tmp_path, "jsonl", rows)
    written(tmp_path, "folder", rows)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "./mine.jsonl", "mine"):
        assert asked(training_rows(recipe_of(name), "unused")[0]) == EXPECTED


def test_cells_keep_their_text(tmp_path):
    """007 of a CSV file is no seven; a number in JSON is a gold as it is printed."""
    path = tmp_path / "mine.csv"
    path.write_text('\ufeffask,gold\n"a, b\nc",007\nd,1.50\n', encoding="utf-8")
    assert asked(training_rows(recipe_of(path, COLUMNS), "unused")[0]) == [("a, b\nc", "007"), ("d", "1.50")]
    path = written(tmp_path, "jsonl", [{"ask": "a", "gold": 7}, {"ask": "b", "gold": -0.5}])
    assert asked(training_rows(recipe_of(path, COLUMNS), "unused")[0]) == [("a", "7"), ("b", "-0.5")]


def test_the_trainer_asks_exactly_these_prompts(tmp_path, random_checkpoint):
    """24 completions a step of 8 each: three prompts, and two steps are one epoch."""
    recipe = recipe_of(written(tmp_path, "parquet"), COLUMNS, "max_steps=2", "per_device_train_batch_size=24")
    trainer = build_trainer(recipe, str(random_checkpoint), training_rows(recipe, "unused")[0], tmp_path / "out")
    seen = []

    def reward(completions, prompts, solution, **columns):
        seen.extend((prompt[-1]["content"], gold) for prompt, gold in zip(prompts, solution, strict=True))
        return [float(len(text[0]["content"])) for text in completions]

    trainer.reward_funcs[0] = reward
    trainer.train()
    assert sorted(seen) == sorted(EXPECTED * 8)


# --- Images and demonstrations ---------------------------------------------------------------------------------------


def picture(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (i, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder", "names in parquet", "hub"])
def test_images_belong_to_their_rows(kind, tmp_path, monkeypatch):
    rows = [{"ask": "Red?", "gold": f"<answer> {i} </answer>", "shot": f"{i}.png"} for i in range(3)]
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    if kind in ("jsonl", "csv"):
        path = written(tmp_path, kind, rows)
    elif kind == "names in parquet":
        path = written(tmp_path, "parquet", rows)
    else:
        held = [row | {"shot": {"bytes": picture(i), "path": None}} for i, row in enumerate(rows)]
        data = datasets.Dataset.from_list(held).cast_column("shot", datasets.Image())
        path = tmp_path / ("mine" if kind == "folder" else "mine.parquet")
        data.save_to_disk(path) if kind == "folder" else data.to_parquet(path)
    if kind == "hub":
        monkeypatch.setattr(own, "load_from_hub", from_file(path))
    named = ["columns={question: ask, answer: gold, image: shot}", "base=smoke_vl_qwen2", "rewards={sat_accuracy: 1}"]
    recipe = recipe_of("me/mine" if kind == "hub" else path, *named)
    found = recipe.setup.training_set().rows(None, None, 0)
    assert [load_image(row["image"]).getpixel((0, 0))[0] for row in found] == [0, 1, 2]
    assert recipe.setup.image_column == "shot"
    rows, _ = training_rows(recipe, "unused")
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [0, 1, 2]


def test_images_may_lie_under_an_image_root(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(9))
    path = written(tmp_path, "jsonl", [{"ask": "Red?", "gold": "1", "shot": "a.png"}])
    found = recipe_of(path, "columns={question: ask, answer: gold, image: shot}").setup.training_set()
    (row,) = found.rows(None, None, 0, None, tmp_path / "pictures")
    assert row["image"]().getpixel((0, 0))[0] == 9
    (row,) = found.rows(None, None, 0)
    with pytest.raises(UserError, match="training image 'a.png'"):
        load_image(row["image"])


def supervised(path, *overrides: str):
    raw = yaml.safe_load((RECIPES / "table6_pets37_sft.yaml").read_text(encoding="utf-8"))
    raw |= {"extends": "table3_gpg_age_rs1", "objective": raw["objective"] | {"age": False}}
    recipe = path.parent / "sft.yaml"
    sft = {"rewards": {}, "training": {"num_generations": 1, "per_device_train_batch_size": 2, "max_steps": 2}}
    raw["scales"] = {"paper": None, "tiny": None, "smoke": {**sft, "dataset": str(path), "num_prompts": None}}
    recipe.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_recipe(str(recipe), overrides, scale="smoke")


def test_demonstrations_have_a_column_for_sft(tmp_path):
    rows = [{"ask": ask, "gold": gold, "shown": f"It is {gold}."} for ask, gold in EXPECTED]
    path = written(tmp_path, "jsonl", rows)
    data, _ = training_rows(supervised(path, "columns={question: ask, answer: gold, demonstration: shown}"), "unused")
    assert [row["completion"] for row in data] == [
        [{"role": "assistant", "content": f"It is {gold}."}] for _, gold in EXPECTED
    ]
    with pytest.raises(UserError, match="holds no demonstrations; method sft needs them"):
        training_rows(supervised(path, COLUMNS), "unused")
    with pytest.raises(UserError, match="columns.demonstration is for method sft; gpg learns from rewards"):
        recipe_of(path, COLUMNS, "columns.demonstration=shown")


# --- Hub -------------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def from_file(path: Path, asked: list | None = None):
    """Takes the place of the hub: whatever is asked for is this parquet file."""

    def load(repo, revision, **options):
        if asked is not None:
            asked.append((repo, revision, options))
        return datasets.load_dataset("parquet", data_files=str(path), split="train")

    return load


def test_a_hub_id_with_config_split_and_revision(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(own, "load_from_hub", from_file(written(tmp_path, "parquet"), calls))
    where = ["dataset_config=main", "dataset_split=test", f"dataset_revision={COMMIT}"]
    recipe = recipe_of("openai/gsm8k", COLUMNS, *where)
    assert asked(training_rows(recipe, "unused")[0]) == EXPECTED
    assert set(map(str, calls)) == {str(("openai/gsm8k", COMMIT, {"name": "main", "split": "test"}))}
    found = recipe.setup.training_set()
    assert found.describe() == "openai/gsm8k@01234567[test]" and content_of(found) == f"commit:{COMMIT}"
    with pytest.raises(UserError, match="does not tell its commit: name it with dataset_revision"):
        content_of(recipe_of("openai/gsm8k", COLUMNS).setup.training_set())
    # a local copy instead
    shutil.copy(written(tmp_path, "jsonl"), tmp_path / "gsm8k.jsonl")
    assert asked(training_rows(recipe, "unused", data_root=tmp_path)[0]) == EXPECTED
    assert content_of(found, tmp_path) == f"sha256:{sha256((tmp_path / 'gsm8k.jsonl').read_bytes()).hexdigest()}"


def test_a_hub_that_cannot_be_reached_and_one_that_wants_a_config(monkeypatch):
    with pytest.raises(UserError, match=r"me/mine@main\[train\] is neither cached nor reachable.*or give --data-root"):
        check_recipe(recipe_of("me/mine", COLUMNS))

    def missing(repo, revision, **options):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']")

    monkeypatch.setattr(own, "load_from_hub", missing)
    with pytest.raises(UserError, match=r"me/mine: Config name is missing. .*'socratic'\] Set dataset_config"):
        check_recipe(recipe_of("me/mine", COLUMNS))


# --- Records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_other_content_is_another_run(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "_train", lambda run: run)
    monkeypatch.setattr(train_module, "base_model", lambda recipe, progress: str(tmp_path))
    monkeypatch.setattr(train_module, "check_model", lambda *a: {"weights": "w", "name": "n", "revision": None})
    path = written(tmp_path, kind)
    run = train(recipe_of(path, COLUMNS), root=tmp_path / "runs", progress=False, log_to="none")
    same = train(recipe_of(path, COLUMNS), root=tmp_path / "runs", progress=False, log_to="none")
    assert same.folder == run.folder
    if kind != "folder":
        assert run.origin == {"dataset": f"sha256:{sha256(path.read_bytes()).hexdigest()}"}
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    written(tmp_path, kind, ROWS[:-1] + [{**ROWS[-1], "gold": "8"}])
    other = train(recipe_of(path, COLUMNS), root=tmp_path / "runs", progress=False, log_to="none")
    assert other.folder != run.folder and other.origin["dataset"].startswith("sha256:") and other.origin != run.origin
    assert asked(training_rows(recipe_of(path, COLUMNS), "unused")[0])[-1] == ("5+1=?", "8")  # no stale cache
    registered = train(load_recipe("table1_gpg", scale="smoke"), root=tmp_path / "runs", log_to="none")
    assert registered.origin == {}


def test_a_parquet_file_of_the_same_time_is_read_anew(tmp_path):
    path = written(tmp_path, "parquet")
    os.utime(path, (1, 1))
    training_rows(recipe_of(path, COLUMNS), "unused")
    written(tmp_path, "parquet", ROWS[:2])
    os.utime(path, (1, 1))
    assert asked(training_rows(recipe_of(path, COLUMNS), "unused")[0]) == EXPECTED[:2]


@pytest.mark.full("trains a recipe from the smoke base")
def test_a_run_records_its_data(smoke_base, tmp_path):
    path = written(tmp_path, "jsonl")
    recipe = recipe_of(path, COLUMNS, "max_steps=1", "per_device_train_batch_size=16")
    run = records.read_run(train(recipe, root=tmp_path / "runs", progress=False, log_to="none"))
    assert run.environment["dataset"] == f"sha256:{sha256(path.read_bytes()).hexdigest()}"
    assert run.environment["prompts_used"] == 6
    assert run.recipe["setup"]["columns"]["question"] == "ask" and recipe.describes(run.recipe)
    assert not recipe_of(path, "columns={question: note, answer: gold}").describes(run.recipe)


def test_the_shown_recipe_is_one(tmp_path):
    page = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"extends": "table1_gpg", "scales": {"smoke": yaml.safe_load(shown)}}))
    setup = load_recipe(str(recipe), scale="smoke").setup
    assert (setup.dataset, setup.image_column) == ("data/train.parquet", "picture")
    assert (setup.columns.question, setup.columns.answer, setup.rewards) == ("problem", "final", {"accuracy_lv35": 1.0})


# --- What is wrong, before any work ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (ROWS, ["columns={question: aks, answer: gold}"], r"no column 'aks' \(columns.question\); did you mean 'ask'"),
        (ROWS, [], r"'question' .*no column 'answer' .*Its columns: ask, gold, note"),
        (ROWS, [COLUMNS, "columns.image=shot"], r"no column 'shot' \(columns.image\)"),
        ([], [COLUMNS], "holds no rows"),
        ([{"ask": ["a"], "gold": "1"}], [COLUMNS], r"'ask' \(columns.question\) should hold text; row 0: list"),
        ([{"ask": "a", "gold": True}], [COLUMNS], "'gold' .*should hold text or a number; row 0: bool 'True'"),
        ([{"ask": "a", "gold": float("nan")}], [COLUMNS], "row 0: float 'nan'"),
        ([*ROWS, {"ask": "a"}, {"ask": "a", "gold": " "}], [COLUMNS], "2 rows, row 6 the first: nothing"),
        ([{"ask": 1, "gold": None}], [COLUMNS], r"row 0: int '1'\. column 'gold' .*row 0: nothing"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit(rows, overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_recipe(recipe_of(written(tmp_path, "jsonl", rows), *overrides))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", "line 1: not valid JSON"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", '{"rows": []}', "expected a list of JSON objects"),
        ("a.csv", "ask,gold\n1,2,3\n", "line 2: 3 cells under 2 names"),
        ("a.csv", 'ask,gold\n"1,2\n', "is not CSV in UTF-8"),
        ("a.csv", "ask,gold\n", "holds no rows"),
        ("a.parquet", "no parquet", "cannot be read .*damaged"),
        ("a.txt", "1", "another kind than .jsonl, .json, .csv, .parquet"),
    ],
)
def test_files_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        check_recipe(recipe_of(tmp_path / name, COLUMNS))


def test_a_column_of_no_images(tmp_path):
    path = written(tmp_path, "parquet", [{"ask": "a", "gold": "1", "shot": 7}])
    with pytest.raises(UserError, match="column 'shot' holds no images"):
        check_recipe(recipe_of(path, "columns={question: ask, answer: gold, image: shot}"))


def test_what_is_not_there(tmp_path):
    for name in ("none.jsonl", f"{tmp_path}/none", "./none"):
        with pytest.raises(UserError, match=r"none.* does not exist \(a relative path starts in the current folder\)"):
            check_recipe(recipe_of(name, COLUMNS))
    with pytest.raises(UserError, match=r"is a folder without dataset_info.json or dataset_dict.json"):
        check_recipe(recipe_of(tmp_path, COLUMNS))
    path = written(tmp_path, "folder")
    with pytest.raises(UserError, match="holds one split only"):
        check_recipe(recipe_of(path, COLUMNS, "dataset_split=train"))


@pytest.mark.parametrize(
    ("dataset", "overrides", "message"),
    [
        ("tiny_s2", [], "did you mean 'tiny_s1'.* Or give a hub id"),
        ("tiny_s1", [COLUMNS, "num_prompts=9"], "fixes columns: leave it out. A path of that name is ./tiny_s1"),
        ("tiny_s1", ["dataset_split=a", "dataset_config=b", "num_prompts=9"], "fixes dataset_config, dataset_split"),
        ("a.jsonl", ["dataset_revision=main"], "is a path, which has no dataset_revision"),
        ("a.jsonl", ["dataset_split=test", "dataset_config=a"], "no dataset_config and dataset_split"),
        ("a.jsonl", ["columns={qestion: a}"], r"columns.qestion: unknown key; did you mean 'question'"),
        ("a.jsonl", ["columns.qestion=a"], r"unknown recipe key 'columns.qestion'; did you mean 'question'\? Known in"),
        ("a.jsonl", ["columns=ask"], "setup.columns"),
        ("a.jsonl", ["dataset_revision=7"], "dataset_revision: .*valid string"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_a_set(dataset, overrides, message):
    with pytest.raises(UserError, match=message):
        recipe_of(dataset, *overrides)


def test_all_problems_come_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        check_recipe(recipe_of(tmp_path / "a.jsonl", "base=/nowhere"))
    assert "/nowhere" in str(error.value) and "a.jsonl does not exist" in str(error.value)
