"""Checkpoints, records and recipes of strangers: whatever lies in their place, one line says what is wrong where."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_records import TEXTS, hostile, hostile_run

from eval_harness import compare, records
from eval_harness.adapters import check_checkpoint, read_config
from eval_harness.checkpoints import load_checkpoints
from eval_harness.errors import UserError
from eval_harness.inputs import open_regular, parse_yaml, read_json_object, read_yaml_mapping
from eval_harness.interop import exporters
from eval_harness.models import check_model
from eval_harness.outside import clean
from gpg_repro.recipe import RECIPES, load_recipe

pytestmark = pytest.mark.timeout(60, func_only=True)  # what hangs has failed


# --- What stands in a file's place ------------------------------------------------------------------------------------


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be too long for one
        finally:
            os.close(here)


PLACES = {
    "a pipe": (_fifo, "is no regular file, but a pipe"),
    "a folder": (Path.mkdir, "is no regular file, but a folder"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file, but a device"),
    "a socket": (_socket, "is no regular file"),
    "a link to itself": (_loop, "is a link that leads in a circle"),
    "a list": (lambda path: path.write_text("[1]"), "holds a list, not an object"),
    "a number": (lambda path: path.write_text("7"), "holds a number, not an object"),
    "null": (lambda path: path.write_text("null"), "holds null, not an object"),
    "no UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "is not UTF-8 (byte 7)"),
    "nested": (lambda path: path.write_text('{"a":' * 101 + "1" + "}" * 101), "is nested deeper than 100 levels"),
    "beyond recursion": (lambda path: path.write_text("[" * 200_000), "is nested deeper than 100 levels"),
    "too large": (lambda path: path.write_text('{"a": "' + "x" * 2000 + '"}'), "is larger than 1,000 bytes"),
    "a huge number": (lambda path: path.write_text('{"a": ' + "9" * 900 + "e9" + "9" * 20 + "}"), None),
    "an integer of 5000 digits": (lambda path: path.write_text("1" * 999), "holds a number"),
    "half of it": (lambda path: path.write_text('{"a": '), "is not valid JSON"),
    "nothing": (lambda path: path.write_text(""), "is not valid JSON"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_json_object_is_read_or_refused_in_a_line(place, tmp_path):
    make, problem = PLACES[place]
    path = tmp_path / "config.json"
    make(path)
    if problem is None:
        assert read_json_object(path, 1000, "Mend it") == {"a": float("inf")}
        return
    with pytest.raises(UserError) as error:
        read_json_object(path, 10**6 if place == "beyond recursion" else 1000, "Mend it")
    told = str(error.value)
    assert told.startswith(f"{path} ") and problem in told and told.endswith(" Mend it.") and "\n" not in told


def test_the_bounds_are_the_last_that_pass(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a":' * 100 + "1" + "}" * 100)
    assert read_json_object(path, path.stat().st_size, "-")
    with pytest.raises(UserError, match="nested deeper than 99 levels"):
        read_json_object(path, 10_000, "-", max_depth=99)
    with pytest.raises(UserError, match="is larger than"):
        read_json_object(path, path.stat().st_size - 1, "-")
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none.json", 1000, "-")
    with pytest.raises(UserError, match="is no name of a file"), open_regular("a\0b"):
        pass


# --- Checkpoints ------------------------------------------------------------------------------------------------------

FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json",
    "model.safetensors.index.json", "preprocessor_config.json", "vocab.json",
)  # fmt: skip


@pytest.fixture
def checkpoint(random_checkpoint, tmp_path) -> Path:
    return shutil.copytree(random_checkpoint, tmp_path / "checkpoint")


def _replace(path: Path, make) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)


def _one_line(error: pytest.ExceptionInfo, name: str) -> None:
    told = str(error.value)
    assert name in told and "\n" not in told and len(told) < 600, told


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["a pipe", "a folder", "a device", "a list", "no UTF-8", "beyond recursion"])
def test_a_file_of_a_checkpoint_is_refused_by_name(name, place, checkpoint):
    check_model(str(checkpoint))
    _replace(checkpoint / name, PLACES[place][0])
    with pytest.raises(UserError, match=re.escape(PLACES[place][1])) as error:
        check_model(str(checkpoint))
    _one_line(error, name)


@pytest.mark.parametrize("name", ["model.safetensors", "merges.txt", "tokenizer.model", "chat_template.jinja"])
@pytest.mark.parametrize("place", ["a pipe", "a folder", "a device"])
def test_what_is_no_json_must_be_a_file_too(name, place, checkpoint):
    _replace(checkpoint / name, PLACES[place][0])
    with pytest.raises(UserError, match="is no regular file") as error:
        check_model(str(checkpoint))
    _one_line(error, name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"model_type": ["qwen2"]}, r"model_type is \['qwen2'\], expected a name"),
        ("config.json", {"model_type": None}, "names no model_type"),
        ("config.json", {"max_position_embeddings": "many"}, "max_position_embeddings is 'many', expected a number"),
        ("config.json", {"max_position_embeddings": True}, "max_position_embeddings is True"),
        ("config.json", {"text_config": [1]}, r"text_config is \[1\], expected an object"),
        ("config.json", {"text_config": {"max_position_embeddings": {}}}, "max_position_embeddings is {}"),
        ("config.json", {"vision_config": 3}, "vision_config is 3"),
        ("config.json", {"model_type": "x" * 10_000, "auto_map": 1}, "is Python code that comes with the checkpoint"),
        ("model.safetensors.index.json", {"weight_map": ["a"]}, r"weight_map is \['a'\], expected an object"),
        ("model.safetensors.index.json", {"weight_map": {"a": [1]}}, r"weight_map names \[1\] for a file"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../b\n\x1b[2J"}}, r"of its folder \('../b\\n\\x1b"),
        ("model.safetensors.index.json", {"weight_map": {"a": "a\0b"}}, "missing a.b"),
    ],
)  # fmt: skip
def test_fields_of_the_wrong_kind(name, change, message, checkpoint):
    path = checkpoint / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | change))
    with pytest.raises(UserError, match=message):
        check_model(str(checkpoint))


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": ["LORA"]}, {"peft_type": "LORA\n" * 500}, {"peft_type": "LORA", "task_type": {"a": 1}},
        {"peft_type": "LORA", "r": "8"}, {"peft_type": "LORA", "r": 8, "rank_pattern": [1]},
        {"peft_type": "LORA", "rank_pattern": {"q": [1]}}, {"peft_type": "LORA", "base_model_name_or_path": ["x"]},
        {"peft_type": "LORA", "revision": 3}, {"peft_type": "LORA", "base_model_name_or_path": "a\0/b"},
    ],
)  # fmt: skip
def test_an_adapter_configuration_of_the_wrong_shape(config, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
        check_checkpoint(str(tmp_path))
    _one_line(error, str(tmp_path))


@pytest.mark.parametrize("place", ["a pipe", "a folder", "a list", "nested", "nothing"])
def test_an_adapter_configuration_that_is_none(place, tmp_path):
    PLACES[place][0](tmp_path / "adapter_config.json")
    with pytest.raises(UserError, match=re.escape(PLACES[place][1])) as error:
        check_checkpoint(str(tmp_path))
    _one_line(error, "adapter_config.json")


# --- Recipes and the registry -----------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)
YAML = {
    "a bomb": (BOMB, "aliases unfold to more than 100,000 values"),
    "a bomb of mappings": (BOMB.replace("[", "{k: [").replace("]", "]}"), "aliases unfold|nested deeper"),
    "itself": ("a: &a {b: *a}", "an alias stands inside of what it names"),
    "levels": ("a: " + "[" * 31 + "]" * 31, "nested deeper than 30 levels"),
    "many levels": ("[" * 100_000, "nested deeper than 30 levels"),
    "many indented levels": ("".join(" " * k + "a:\n" for k in range(400)), "nested deeper than 30 levels"),
    "a constructor's own error": ("a: !!timestamp x", "a value does not fit its type"),
    "another": ("a: !!bool maybe", "a value does not fit its type"),
    "a date that is none": ("a: 2026-02-31", "a value does not fit its type"),
    "a number of 5000 digits": ("a: " + "9" * 5000, "a value does not fit its type"),
    "code": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a terminal's escape": ("a: \x1b[2J", "unacceptable character"),
    "a list for a key": ("? [a]\n: b", "unhashable"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_unfolds_or_means_more(name, tmp_path):
    text, message = YAML[name]
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    for read in (load_recipe, load_checkpoints):
        with pytest.raises(UserError, match=message) as error:
            read(str(path) if read is load_recipe else path)
        _one_line(error, str(path))


def test_aliases_that_stay_small_are_read():
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}}") == {"a": [1, 2], "b": [[1, 2]] * 2, "c": {"d": 1}}


@pytest.mark.parametrize("place", ["a pipe", "a folder", "a device", "a link to itself"])
def test_what_stands_in_a_recipes_place(place, tmp_path):
    PLACES[place][0](tmp_path / "mine.yaml")
    with pytest.raises(UserError, match=re.escape(PLACES[place][1])) as error:
        load_recipe(str(tmp_path / "mine.yaml"))
    _one_line(error, "recipe file")


def test_a_recipe_is_bounded(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# " + "x" * (1 << 20))
    with pytest.raises(UserError, match="is larger than 1,048,576 bytes"):
        read_yaml_mapping(path, "recipe file")
    with pytest.raises(UserError, match="the value is not valid YAML"):
        load_recipe("table3_gpg_rs1", ["max_steps=&a [*a]"])
    assert max(recipe.stat().st_size for recipe in RECIPES.glob("*.yaml")) < 1 << 15  # far below the bound


def test_commands_show_escapes_and_do_not_send_them(tmp_path):
    """In a process of its own, as a user starts it: no byte of the name reaches the terminal as a control character."""
    name = "x\x1b]0;pwned\x07\x9b2J\u202e"
    for command in (["eval_harness", "verify", name], ["gpg_repro", "train", name], ["gpg_repro", "view", name, name]):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 2 and b"Traceback" not in done.stderr
        told = (done.stdout + done.stderr).decode()
        assert "\\x1b]0;pwned\\x07\\x9b2J\\u202e" in told
        assert not set(told) & {"\x1b", "\x07", "\x9b", "\u202e"}


# --- Records ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    return hostile_run(tmp_path / "a")


def _edit(run: Path, **changes) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\0b", "a\nb", "x" * 101, "..", "", "a/b", "_a_", "`a`"])
def test_a_benchmark_whose_name_is_no_name_is_refused(name, run):
    """Items, samples, masks and exports are files named after it."""
    stored = json.loads((run / "run.json").read_text())["benchmarks"]
    _edit(run, benchmarks={name: stored["math500"]})
    with pytest.raises(UserError, match="is no name of a benchmark") as error:
        records.read_run(run)
    _one_line(error, "run.json")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("engine", {"name": 3}, "engine.name is 3, expected a text"),
        ("model", {"name": "m", "weights": 17}, "model.weights is 17"),
        ("environment", {"packages": []}, r"environment.packages is \[\], expected an object"),
        ("environment", {"commit": ["a"]}, "environment.commit"),
        ("settings", {"import": {"math500": []}}, r"settings.import holds \[\], expected an object for each benchmark"),
        ("provenance", {"benchmarks": 7}, "provenance.benchmarks is 7"),
    ],
)
def test_parts_of_a_record_of_the_wrong_kind(place, value, message, run):
    _edit(run, **{place: value})
    with pytest.raises(UserError, match=message):
        records.read_run(run)


@pytest.mark.parametrize("place", ["a pipe", "a folder", "a device", "nested", "no UTF-8", "nothing"])
def test_what_stands_in_a_records_place(place, run):
    _replace(run / "run.json", PLACES[place][0])
    with pytest.raises(UserError, match=re.escape(PLACES[place][1])):
        records.read_run(run)
    if place in ("a pipe", "a folder", "a device"):
        _replace(run / "samples" / "math500.jsonl", PLACES[place][0])
        with pytest.raises(UserError, match="is no regular file"):
            records.read_lines(run / "samples" / "math500.jsonl", records.Sample)
        _replace(run / "steps.jsonl", PLACES[place][0])
        with pytest.raises(UserError, match="is no regular file"):
            records.steps_frame(run)


@pytest.mark.parametrize(
    "line",
    ["[1]", "3", "{}", '{"step": "1"}', "[" * 5000, '{"step": 1, "x": "\\ud800"}', '{"step": ' + "1" * 5000 + "}"],
)
def test_steps_that_are_none(line, tmp_path):
    (tmp_path / "steps.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match="steps.jsonl is damaged"):
        records.steps_frame(tmp_path)


IDS = {
    "up": "../../../outside", "absolute": "/outside", "nul": "a\0b", "newline": "a\nb", "long": "x" * 400,
    "everything": hostile(), **{name: TEXTS[name] for name in ("raw", "terminal", "link")},
}  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_compare_writes_into_its_folder_whatever_an_id_says(name, tmp_path, monkeypatch):
    work = tmp_path / "deep" / "down" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    sides = []
    for place in ("a", "b"):
        folder = hostile_run(tmp_path / place)
        _edit(folder, run_id=f"eval-{IDS[name]}" if place == "a" else IDS[name])
        sides.append(compare.open_side(str(folder)))
    found = compare.compare(*sides, resamples=99)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(work)}
    written = compare.write(found, compare.default_folder(found))
    (folder,) = (work / "results" / "comparisons").iterdir()
    assert {path.resolve().parent for path in written} == {folder} and len(written) == 5
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(work)} == before
    # As it is, in the record, but for what no text may hold.
    assert json.loads((folder / "comparison.json").read_text())["b"] == [clean(IDS[name])]


def test_ids_that_differ_in_case_have_folders_of_their_own(tmp_path):
    folders = [hostile_run(tmp_path / name) for name in "abc"]
    for folder, run_id in zip(folders, ("Run", "run", "RUN"), strict=True):
        _edit(folder, run_id=run_id)
    sides = [compare.open_side(str(folder)) for folder in folders]
    pairs = [(sides[0], sides[2]), (sides[1], sides[2]), (sides[2], sides[0])]
    names = [compare.default_folder(compare.compare(*pair, resamples=99)).name.lower() for pair in pairs]
    assert len(set(names)) == 3


@pytest.mark.parametrize("model", ["../..", "a/..", "..", "./x", ".a/b", "a/b\n", "a/\0"])
def test_exports_by_hub_id_lead_nowhere_else(model, run, tmp_path):
    _edit(run, model={"name": model}, finished="2026-01-01T00:00:00+00:00")
    with pytest.raises(UserError, match="Give --model-id"):
        exporters.every_eval_ever(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exports_of_a_hostile_record(run, tmp_path):
    done = exporters.model_card(run, tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text()
    assert done.files == [tmp_path / "card" / "README.md"]
    outside = re.sub(r"(`+)(?!`).*?[^`]\1(?!`)", "", card.split("## Evaluation")[1])  # nothing hostile but in code
    assert "<script" not in outside and "![" not in outside and "passwd" not in outside and "{raw}" not in outside
    with pytest.raises(UserError, match="no time of ISO 8601"):
        exporters.every_eval_ever(run, tmp_path / "eee", model_id="owner/name")
