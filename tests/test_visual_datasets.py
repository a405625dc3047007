"""Visual training sets: prompts to the character, golds, images, and rows that are left out."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.images import ImageError, encode
from eval_harness.sources import Hub
from gpg_repro.datasets import all_training_sets, get_training_set
from gpg_repro.datasets.base import HubFile
from gpg_repro.datasets.sat import listed

FOUR_SHOT = {"flowers102_4shot": 408, "pets37_4shot": 148, "fgvc_aircraft_4shot": 400, "cars196_4shot": 784}
BEFORE = (
    "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer.\nUser:  Answer in natural language. "
)
AFTER = " \nAssistant: Let me solve this step by step.\n<think>"


def picture(value) -> bytes:
    return encode(Image.new("RGB", (32, 24), (value, 0, 0)))


def shown(row) -> int:
    """The red value of a row's drawing, which says which image it is."""
    return row["image"]().getpixel((0, 0))[0]


def asked(row) -> str:
    """The text of the one turn that a ready-made prompt with an image is."""
    (turn,) = row["prompt"]
    assert turn["role"] == "user"
    return turn["content"]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts rows in the hub's place, through parquet."""
    import datasets

    def serve(rows, **features):
        path = tmp_path / f"{random.random()}.parquet"
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(path)

        def load(source):
            return datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "c"))

        for kind in (Hub, HubFile):
            monkeypatch.setattr(kind, "_load", load)

    return serve


def text():
    import datasets

    return datasets.Value("string")


# SAT ---------------------------------------------------------------------------------------------------------------


def sat_row(i, answers=("yes", "no", "it stays"), images=1):
    row = {"question": f"Question {i}?", "answers": list(answers), "question_type": "x", "correct_answer": answers[0]}
    return row | {"image_bytes": [picture(i)] * images}


@pytest.mark.parametrize("stored", ["bytes", "structure"])
def test_sat_from_the_hub(hub, stored):
    """Rows of several images are left out, and every other keeps its own image."""
    import datasets

    rows = [sat_row(i, images=2 if i % 3 == 1 else 1) for i in range(9)]
    if stored == "bytes":
        image = datasets.List(datasets.Value("binary"))
    else:
        image = datasets.List(datasets.Image())
        for row in rows:
            row["image_bytes"] = [{"bytes": data, "path": None} for data in row["image_bytes"]]
    hub(
        rows,
        question=text(),
        answers=datasets.List(text()),
        question_type=text(),
        correct_answer=text(),
        image_bytes=image,
    )
    found = get_training_set("sat").rows(None, None, 0)
    assert [shown(row) for row in found] == [0, 2, 3, 5, 6, 8]
    for row, i in zip(found, (0, 2, 3, 5, 6, 8), strict=True):
        assert asked(row).startswith(f"{BEFORE}Question {i}? Choose between the following options: ")
        assert asked(row).endswith(AFTER) and row["solution"] == "<answer>yes</answer>"


def test_sat_takes_the_first_rows(hub, monkeypatch):
    import datasets

    import gpg_repro.datasets.sat as sat

    hub(
        [sat_row(i) for i in range(6)],
        question=text(),
        answers=datasets.List(text()),
        question_type=text(),
        correct_answer=text(),
        image_bytes=datasets.List(datasets.Value("binary")),
    )
    assert sat.FIRST_ROWS == 15_000
    monkeypatch.setattr(sat, "FIRST_ROWS", 4)
    assert [shown(row) for row in get_training_set("sat").rows(None, None, 0)] == [0, 1, 2, 3]


REAL = pytest.mark.real_data("SAT's texts", "train/sat_sample.jsonl")


@pytest.mark.parametrize(
    ("root", "num_single", "moved_between"),
    [("own", 48, (12, 37)), pytest.param("real", 83, (20, 65), marks=REAL)],
    indirect=["root"],
)
def test_sat_sample_formats_unchanged(root, num_single, moved_between, tmp_path):
    """Question and options to the character, in a shuffled order that stays. Of our 60 rows, 12 have two images."""
    path = root / "train" / "sat_sample.jsonl"
    given = [json.loads(line) for line in path.open(encoding="utf-8")]
    shutil.copy(path, tmp_path / "sat.jsonl")
    rows = get_training_set("sat").rows(None, None, 0, tmp_path)
    single = [row for row in given if len(row["images"]) == 1]
    assert len(rows) == len(single) == num_single
    moved = 0
    for row, source in zip(rows, single, strict=True):
        head = f"{BEFORE}{source['question']} Choose between the following options: "
        assert asked(row).startswith(head) and asked(row).endswith(AFTER)
        options = asked(row)[len(head) : -len(AFTER)]
        # the order is any permutation, joined with commas and a last "or"
        *before, last = options.split(", ") if len(source["answers"]) > 2 else [options]
        first, _, second = last.partition(" or ")
        assert sorted([*before, first, second]) == sorted(source["answers"])
        assert row["solution"] == f"<answer>{source['correct_answer']}</answer>"
        moved += not options.startswith(source["correct_answer"])
    assert moved_between[0] < moved < moved_between[1]  # the right answer, first in every source row, is anywhere
    again = get_training_set("sat").rows(None, 5, 1, tmp_path)
    assert [asked(row) for row in again] == [asked(row) for row in rows[:5]]


def test_sat_prompt_is_cvbenchs():
    assert listed(["a", "b"]) == "Choose between the following options: a or b"
    assert listed(["a", "b", "c"]) == "Choose between the following options: a, b or c"
    assert BEFORE.removesuffix(" Answer in natural language. ") + "{problem}" + AFTER == get_benchmark("cvbench").prompt


def test_wrong_sat_rows_are_named(tmp_path):
    rows = [{"question": "?", "answers": ["a", "b"], "correct_answer": "c", "images": ["0.png"]}]
    write_jsonl(tmp_path / "sat.jsonl", rows)
    with pytest.raises(UserError, match="sat, row 0 .*right answer 'c' is none of the options"):
        get_training_set("sat").rows(None, None, 0, tmp_path)
    write_jsonl(tmp_path / "sat.jsonl", [rows[0] | {"answers": None}])
    with pytest.raises(UserError, match="sat, row 0"):
        get_training_set("sat").rows(None, None, 0, tmp_path)
    with pytest.raises(UserError, match="system_prompt must be null"):
        get_training_set("sat").rows("Think.", None, 0, tmp_path)


def test_sat_from_a_local_copy(tmp_path):
    (tmp_path / "sat").mkdir()
    (tmp_path / "sat" / "0.png").write_bytes(picture(7))
    rows = [{"question": "?", "answers": ["a", "b"], "correct_answer": "a", "images": [n]} for n in ("0.png", "1.png")]
    write_jsonl(tmp_path / "sat.jsonl", rows)
    good, missing = get_training_set("sat").rows(None, None, 0, tmp_path)
    assert shown(good) == 7
    with pytest.raises(ImageError, match="1.png"):
        missing["image"]()


# GEOQA and the four-shot sets --------------------------------------------------------------------------------------


def test_geoqa_8k(hub):
    import datasets

    rows = [
        {"image": {"bytes": picture(i), "path": None}, "problem": f"Angle {i}?", "solution": f"<answer> {i}° </answer>"}
        for i in range(3)
    ]
    hub(rows, image=datasets.Image(), problem=text(), solution=text())
    found = get_training_set("geoqa_8k").rows(None, None, 0)
    assert [shown(row) for row in found] == [0, 1, 2]
    assert found[1]["prompt"] == [
        {
            "role": "user",
            "content": "Angle 1?  Output the thinking process in <think> </think> and final answer (number) in "
            "<answer> </answer> tags.",
        }
    ]
    assert found[1]["solution"] == "<answer> 1° </answer>"
    # the training question has two blanks, the test question one
    asked = get_benchmark("geoqa").item(0, {"image_path": "0.png", "question": "Angle 1?", "ground_truth": "1"})
    assert found[1]["prompt"][0]["content"] == asked.prompt.replace("? Output", "?  Output")


@pytest.mark.parametrize("name", FOUR_SHOT)
def test_four_shot_questions_are_the_rows_own(name, hub, tmp_path):
    import datasets

    num = FOUR_SHOT[name]
    rows = [
        {
            "image": {"bytes": picture(i % 256), "path": None},
            "problem": f" Which?\n{i}",
            "solution": "<answer>a</answer>",
        }
        for i in range(num)
    ]
    features = {"image": datasets.Image(), "problem": text(), "solution": text()}
    hub(rows, **features)
    found = get_training_set(name).rows(None, None, 0)
    assert len(found) == num and shown(found[3]) == 3
    assert found[3]["prompt"] == [{"role": "user", "content": " Which?\n3"}]
    assert found[3]["solution"] == "<answer>a</answer>"
    hub(rows[1:], **features)
    with pytest.raises(UserError, match=f"{name}: .* holds {num - 1} rows, expected {num}"):
        get_training_set(name).rows(None, None, 0)


def test_local_copies_hold_file_names(tmp_path):
    (tmp_path / "images" / "pets37_4shot").mkdir(parents=True)
    (tmp_path / "images" / "pets37_4shot" / "a.png").write_bytes(picture(5))
    write_jsonl(tmp_path / "pets37_4shot.jsonl", [{"image": "a.png", "problem": "Which?", "solution": "pug"}])
    (row,) = get_training_set("pets37_4shot").rows(None, 1, 0, tmp_path, tmp_path / "images")
    assert shown(row) == 5


def test_sets_say_where_they_come_from():
    described = {name: s.describe() for name, s in all_training_sets().items()}
    assert described["sat"] == "array/SAT/SAT_train.parquet@main"
    assert described["geoqa_8k"] == "leonardPKU/GEOQA_R1V_Train_8K@main[train]"
    assert described["flowers102_4shot"] == "laolao77/ViRFT_CLS_flower_4_shot@main[train]"
    assert described["pets37_4shot"] == "laolao77/ViRFT_CLS_pets37_4shot@main[train]"
    assert described["fgvc_aircraft_4shot"] == "laolao77/ViRFT_CLS_fgvc_aircraft_4_shot@main[train]"
    assert described["cars196_4shot"] == "laolao77/ViRFT_CLS_car196_4shot@main[train]"
    assert described["reasonseg"] == "local (reasonseg/{train})"
    for name in ("sat", "geoqa_8k", *FOUR_SHOT):
        with pytest.raises(UserError, match="neither cached nor reachable.*--data-root DIR"):
            get_training_set(name).rows(None, None, 0)


# ReasonSeg ---------------------------------------------------------------------------------------------------------


def _annotate(folder, stem, texts, shapes):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 200), (int(stem), 0, 0)).save(folder / f"{stem}.png")
    (folder / f"{stem}.json").write_text(json.dumps({"text": texts, "shapes": shapes}), encoding="utf-8")


def test_every_instruction_is_a_row(tmp_path):
    folder = tmp_path / "reasonseg" / "train"
    first = {"label": "target", "points": [[100, 20.5], [200, 10], [250.9, 190]]}
    other = {"label": "target", "points": [[0, 0], [1, 1], [2, 0]]}
    _annotate(folder, "0", ["the cup", "what holds tea"], [first, other])
    _annotate(folder, "1", ["nothing to see"], [])
    _annotate(folder, "2", ["the dot"], [other])
    reasonseg = get_training_set("reasonseg")
    with pytest.raises(UserError, match=r"reasonseg/\{train\}\) holds 3 images, expected 239"):
        reasonseg.rows(None, None, 0, tmp_path)
    small = replace(reasonseg, source=replace(reasonseg.source, num_images=3))
    rows = small.rows(None, None, 0, tmp_path)
    assert [row["image"]().getpixel((0, 0))[0] for row in rows] == [0, 0, 2]  # image 1 has no gold
    assert [row["prompt"][0]["content"] for row in rows] == [
        f"Output the bounding box in the image corresponding to the instruction: {instruction} Output the thinking "
        'process in <think> </think> and your grouding box. Following "<think> thinking process </think>\n'
        '<answer>(x1,y1),(x2,y2)</answer>)" format.'
        for instruction in ("the cup", "what holds tea", "the dot")
    ]
    # 100/300, 10/200, 250.9/300, 190/200 of a thousand, cut to whole numbers
    assert rows[0]["solution"] == rows[1]["solution"] == "<answer> (333,50),(836,950) </answer>"
    assert rows[2]["solution"] == "<answer> (0,0),(6,5) </answer>"
    with pytest.raises(UserError, match="needs --data-root DIR"):
        reasonseg.rows(None, None, 0)
