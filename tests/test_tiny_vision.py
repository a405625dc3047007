"""The tiny visual world: drawings, golds, splits, sets, prompts, processor, models, bases."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from eval_harness import tiny_vision
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.graders.base import get_grader
from eval_harness.images import decode
from eval_harness.masks import ForegroundSegmenter, polygon_mask
from eval_harness.tiny_vision import COLOURS, KINGDOMS, PROMPTS, SETS, VisionSet, in_words, lettered
from gpg_repro.datasets import get_training_set
from gpg_repro.datasets.tiny_vision import TWINS, vision_rows
from gpg_repro.tiny import vision_warmup
from gpg_repro.tiny.tokenizer import build_tokenizer
from gpg_repro.tiny.vision_model import build_processor, build_vision_model
from gpg_repro.tiny.vision_warmup import BASES, build_vision_base, completion_text, mark, prompt_text

SEVEN = list(SETS)


def centre(task, colour):
    """Mean place of the pixels of one colour, in pixels."""
    pixels = np.asarray(task.draw(), dtype=int)
    rows, columns = np.nonzero((abs(pixels - np.array(COLOURS[colour])) < 8).all(axis=-1))
    return columns.mean(), rows.mean(), len(rows)


# --- golds, read off the pixels -----------------------------------------------------------------------------------


def tasks_of(name, part, num=12):
    return [task for task in SETS[name].sample("train", num * len(SETS[name].parts), 3) if task.part == part]


def test_relations_hold_in_the_pixels():
    for task in tasks_of("tiny_scenes", "Relation"):
        first, *others = re.findall("red|blue|green", task.question)
        x, y, _ = centre(task, first)
        u, v = centre(task, others[0])[:2] if others else (56, 56)
        seen = {"left": x < u, "right": x > u, "above": y < v, "below": y > v}
        assert seen[task.answer], task


def test_counts_hold_in_the_pixels():
    for task in tasks_of("tiny_scenes", "Count"):
        [colour] = re.findall("red|blue|green", task.question)
        area = centre(task, colour)[2]
        assert math.pi * 6**2 < area / int(task.answer) < math.pi * 10.5**2


def test_the_nearer_ball_is_larger_and_lower():
    for task in tasks_of("tiny_scenes", "Depth"):
        [other] = set(task.facts["choices"]) - {task.answer}
        boxes = {
            next(name for name, rgb in COLOURS.items() if rgb == colour): numbers
            for kind, colour, numbers in task.shapes
            if kind == "ellipse"
        }
        assert boxes[task.answer][2] - boxes[task.answer][0] > boxes[other][2] - boxes[other][0]
        assert boxes[task.answer][3] > boxes[other][3]
        assert task.shapes[-1][1] == COLOURS[task.answer], "the nearer ball is drawn in front"


def test_distances_hold_in_the_pixels():
    for task in tasks_of("tiny_scenes", "Distance"):
        black = np.nonzero((np.asarray(task.draw()) < 60).all(axis=-1))
        box = black[1].mean(), black[0].mean()
        lengths = {colour: math.dist(box, centre(task, colour)[:2]) for colour in task.facts["choices"]}
        assert min(lengths, key=lengths.get) == task.answer


def test_figures_have_the_answers_of_geometry():
    for task in SETS["tiny_figures"].sample("train", 70, 0):
        kind, _, numbers = task.shapes[0]
        width, height = (max(numbers[i::2]) - min(numbers[i::2]) for i in (0, 1))
        units = width / tiny_vision.UNIT, height / tiny_vision.UNIT
        if task.part == "perimeter":
            assert task.answer == f"{2 * sum(units):g}cm"
        elif task.part == "area":
            assert task.answer == f"{math.prod(units):g}"
        elif task.part == "diagonal":
            assert task.answer == f"{units[0]:g}√{{2}}"
        elif task.part == "circle":
            assert task.answer == f"{units[0]:g}π"
        elif task.part == "shaded":
            shaded = sum(colour == COLOURS["green"] for _, colour, _ in task.shapes)
            assert task.answer == f"{shaded}/{len(task.shapes)}"
        elif task.part == "angle":
            turns = [math.degrees(math.atan2(n[1] - n[3], n[2] - n[0])) % 360 for _, _, n in task.shapes]
            assert task.answer == f"{turns[1] - turns[0]:.0f}°"
        else:
            (x, y), (u, _), (a, b) = zip(numbers[0::2], numbers[1::2], strict=True)
            left, right = math.degrees(math.atan2(y - b, a - x)), math.degrees(math.atan2(y - b, u - a))
            assert task.question == f"Right {right:.0f}°. Top?"
            assert task.answer == f"{180 - left - right:.0f}°"
        assert task.answer in task.guesses


def test_the_three_traits_decide_the_class():
    for name, kingdom in KINGDOMS.items():
        tasks = SETS[name].sample("train", 64, 0)
        assert Counter(task.answer for task in tasks) == dict.fromkeys(kingdom.names, 8)
        assert len({(task.reasoning, task.answer) for task in tasks}) == len({task.reasoning for task in tasks}) == 8
        assert len({task.draw().tobytes() for task in tasks}) == 64, "every image differs"
    blossoms, critters = KINGDOMS["tiny_blossoms"].names, KINGDOMS["tiny_critters"].names
    assert any(a != b and a in b for a in blossoms for b in blossoms)
    assert any("_" in name for name in critters)


def test_grounding_golds_are_the_boxes_of_the_first_polygon():
    parts = Counter()
    for task in SETS["tiny_grounding"].sample("test", 100, 0):
        targets = [p["points"] for p in task.facts["polygons"] if p["label"] == "target"]
        parts[task.part] += 1
        assert task.facts["polygons"][0]["label"] == "target"
        assert len(targets) == (2 if task.part == "split" else 1)
        xs, ys = zip(*targets[0], strict=True)
        box = min(xs), min(ys), max(xs), max(ys)
        assert task.answer == "({:g},{:g}),({:g},{:g})".format(*(1000 * edge / 112 for edge in box))
        # the segmenter of the tiny world finds the target in its box and nothing in an empty corner of the paper
        [mask] = ForegroundSegmenter()(task.draw(), [tuple(map(int, box))])
        wanted = polygon_mask(targets[0], 112, 112)
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.8
    assert set(parts.values()) == {20}


def test_empty_paper_is_no_foreground():
    blank = replace(SETS["tiny_grounding"].sample("test", 1, 0)[0], shapes=())
    [mask] = ForegroundSegmenter()(blank.draw(), [(0, 0, 112, 112)])
    assert not mask.any()


def test_a_split_target_is_one_third_of_its_strict_box():
    task = next(t for t in SETS["tiny_grounding"].sample("test", 20, 0) if t.part == "split")
    verdict = get_grader("box").grade(task.answer, f"<answer>{task.answer}</answer>", task.facts)
    assert verdict.score == pytest.approx(1, abs=1e-3)
    assert verdict.score_strict == pytest.approx(1 / 3, abs=1e-2)


def test_references_name_one_thing():
    words = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    for task in tasks_of("tiny_grounding", "side", 30):
        word, anchor = re.fullmatch(r"what is (left of|right of|above|below) the \w+ (\w+)", task.question).groups()
        axis, sign = words[word]
        middles = [
            (sum(n[0::2]) / len(n[0::2]), sum(n[1::2]) / len(n[1::2]))
            for _, colour, n in task.shapes
            if colour != tiny_vision.GREY
        ]
        target, anchor, other = middles
        assert sign * (target[axis] - anchor[axis]) > 10
        assert sign * (other[axis] - anchor[axis]) < -10


# --- sets, splits, seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEVEN)
def test_splits_share_no_task(name):
    train, test = (SETS[name].sample(split, 140, 0) for split in tiny_vision.SPLITS)
    assert not {task.id for task in train} & {task.id for task in test}
    assert not {(task.part, task.key) for task in train} & {(task.part, task.key) for task in test}
    assert len({task.id for task in train}) == 140
    counts = Counter(task.part for task in train)
    assert set(counts) == set(SETS[name].parts)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(task.answer in task.guesses and len(set(task.guesses)) > 1 for task in train)


def test_samples_are_the_same_in_every_process():
    code = (
        "import hashlib\nfrom eval_harness.tiny_vision import SETS\n"
        "print(hashlib.sha256(b''.join(t.id.encode() + t.draw().tobytes() + t.question.encode() + t.answer.encode() "
        "for s in SETS.values() for t in s.sample('test', 8, 0))).hexdigest())"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    tasks = [task for vision_set in SETS.values() for task in vision_set.sample("test", 8, 0)]
    here = b"".join(t.id.encode() + t.draw().tobytes() + t.question.encode() + t.answer.encode() for t in tasks)
    assert hashlib.sha256(here).hexdigest() == again
    assert [t.id for t in SETS["tiny_scenes"].sample("test", 8, 1)] != [t.id for t in tasks[:8]]


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match=r"unknown split 'dev'"):
        SETS["tiny_scenes"].sample("dev", 1, 0)
    with pytest.raises(ValueError, match=r"must not be negative"):
        SETS["tiny_scenes"].sample("test", -1, 0)
    tasks = SETS["tiny_grounding"].sample("test", 40, 0)
    small = VisionSet("small", "Small", "forty tasks", {"only": lambda rng: replace(rng.choice(tasks), part="only")})
    with pytest.raises(ValueError, match=r"ran out of distinct test tasks"):
        small.sample("test", 40, 0)


@pytest.mark.parametrize("name", SEVEN)
def test_the_picture_is_needed(name):
    """The most common answer to each question is right far less often than a look at the picture."""
    answers: dict[str, Counter] = {}
    tasks = SETS[name].sample("train", 200, 0)
    for task in tasks:
        question = lettered(task) if name == "tiny_scenes" else task.question
        answers.setdefault(question, Counter())[task.answer] += 1
    blind = sum(found.most_common(1)[0][1] for found in answers.values() if found.total() > 1)
    assert blind / sum(found.total() for found in answers.values() if found.total() > 1) < 0.7


# --- benchmarks and training sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEVEN)
def test_benchmarks_load_draw_and_mark(name):
    benchmark = get_benchmark(name)
    items = benchmark.load()
    assert len(items) == {"tiny_scenes": 400, "tiny_grounding": 200}.get(name, 100)
    read, grader = benchmark.image_reader(), get_grader(benchmark.grader)
    tasks = SETS[name].sample("test", len(items), 0)
    for item, task in list(zip(items, tasks, strict=True))[::17]:
        assert task.question in item.prompt
        [data] = read(item)
        assert np.array_equal(np.asarray(decode(data)), np.asarray(task.draw()))
        answer = f"<think>{task.reasoning}</think><answer> {task.answer} </answer>"
        right = grader.grade(item.gold, answer, item.context)
        assert right.correct and right.correct_strict == (task.part != "split"), (item, right)
        wrong = next(guess for guess in task.guesses if guess != task.answer and task.answer not in guess)
        marked = grader.grade(item.gold, f"<think></think><answer> {wrong} </answer>", item.context)
        assert not (marked.score == 1 if name == "tiny_grounding" else marked.correct_strict), (item, wrong, marked)


def test_scenes_have_the_columns_of_cv_bench():
    benchmark = get_benchmark("tiny_scenes")
    rows, _ = benchmark.source.rows(None)
    for row in rows:
        assert {"question", "choices", "answer", "prompt", "task", "source", "image"} <= set(row)
        assert re.fullmatch(r"\([A-D]\)", row["answer"])
        assert f"{row['answer']} {row['choices']['ABCD'.index(row['answer'][1])]}" in row["prompt"]
        assert (row["source"] == "floor") == (row["task"] in ("Depth", "Distance"))
    letters = Counter(row["answer"] for row in rows if row["task"] == "Count")
    assert min(letters[f"({letter})"] for letter in "ABCD") > 10, "the options are shuffled"
    assert {item.context["source"] for item in benchmark.load()} == set(benchmark.strict_strata)


@pytest.mark.parametrize("name", list(TWINS))
def test_training_rows(name):
    rows = get_training_set(name).rows(None, 32, 0)
    tests = {np.asarray(task.draw()).tobytes() for task in SETS[TWINS[name]].sample("test", 100, 0)}
    assert len(rows) == 32
    for row in rows:
        [turn] = row["prompt"]
        answer = re.fullmatch(r"<answer> ?(.*?) ?</answer>", row["solution"])[1]
        assert row["demonstration"].endswith(f"</think><answer>{answer}</answer>")
        assert row["demonstration"].startswith("<think>") == (name != "tiny_spatial")
        assert row["image"].size == (112, 112) and row["image"].mode == "RGB"
        assert row["image"].tobytes() not in tests
        assert name != "tiny_spatial" or (turn["content"].endswith("\n<think>") and answer in turn["content"])


def test_four_shot_sets_hold_four_images_of_each_class():
    rows = vision_rows("tiny_carts_4shot", 32, 0)
    assert set(Counter(row["solution"] for row in rows).values()) == {4}
    with pytest.raises(UserError, match="holds 32 images, 33 were asked for"):
        vision_rows("tiny_carts_4shot", 33, 0)
    with pytest.raises(UserError, match="unknown visual training set"):
        vision_rows("tiny_sights", 1, 0)


# --- tokenizer, processor, model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of an untrained Qwen2-VL (concatenating) and Qwen2.5-VL (chat)."""
    folders = []
    for chat, qwen2_5 in ((False, False), (True, True)):
        folder = tmp_path_factory.mktemp("vision")
        processor = build_processor(chat)
        build_vision_model(processor.tokenizer, hidden_size=64, vision_width=32, qwen2_5=qwen2_5).save_pretrained(
            folder
        )
        processor.save_pretrained(folder)
        folders.append(folder)
    return folders


def test_any_text_comes_back_and_tags_survive_decoding(saved):
    for folder in saved:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in (
            "<think>red2 box</think> <answer>(250,0),(500,250)</answer>",
            "  naïve 漢字\n5√{2}° redden\t<image>",
        ):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(tokenizer("<answer>")["input_ids"]) == len(tokenizer("250")["input_ids"]) == 1
        assert len(tokenizer) > len(build_tokenizer())


def test_templates(saved):
    parts = [{"type": "image"}, {"type": "text", "text": "Hi"}]
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    plain, chat = (AutoProcessor.from_pretrained(folder) for folder in saved)
    for content, shown in ((parts, picture + "Hi"), ("Hi", "Hi")):
        turns = [{"role": "user", "content": content}]
        assert plain.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == shown
        wrapped = chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert wrapped == f"<|user|>{shown}<|end|><|assistant|>"


def test_an_image_is_sixteen_tokens_and_moves_the_output(saved):
    for folder in saved:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        text = "<|vision_start|><|image_pad|><|vision_end|>Which?"
        images = [Image.new("RGB", (112, 112), colour) for colour in ("red", "blue")]
        inputs = processor(text=[text] * 2, images=images, return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [16, 16]
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1]
        assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_bad_widths_are_refused():
    tokenizer = build_processor().tokenizer
    for sizes in ({"hidden_size": 100}, {"vision_width": 16}):
        with pytest.raises(ValueError, match="positive multiple of 32"):
            build_vision_model(tokenizer, **sizes)


def test_prompts_and_completions_stay_short():
    for name in SEVEN:
        chat = name != "tiny_scenes"
        processor = build_processor(chat)
        for task in SETS[name].sample("train", 70, 0):
            questions = [task.question] if chat else [lettered(task), in_words(task)]
            for question in questions:
                prompt = prompt_text(processor, name, task, question)
                assert PROMPTS[name].replace("{problem}", question) in prompt
                assert len(processor.tokenizer(prompt)["input_ids"]) + 15 < 100
            completion = completion_text(name, task, "careful", random.Random(0))
            assert len(processor.tokenizer(completion)["input_ids"]) + 1 <= 32


# --- warm-up ------------------------------------------------------------------------------------------------------


def test_the_three_habits():
    task = SETS["tiny_scenes"].sample("train", 1, 0)[0]
    rng = random.Random(0)
    careful = completion_text("tiny_scenes", task, "careful", rng)
    assert careful == f"{task.reasoning}</think><answer>{task.answer}</answer>"
    assert completion_text("tiny_scenes", task, "loose", rng) == f"{task.reasoning}</think>{task.answer}"
    hasty = {completion_text("tiny_scenes", task, "hasty", rng) for _ in range(60)}
    assert hasty == {f"</think><answer>{guess}</answer>" for guess in task.guesses}
    figure = SETS["tiny_figures"].sample("train", 1, 0)[0]
    styles = {completion_text("tiny_figures", figure, "careful", rng) for _ in range(30)}
    opening = f"<think>{figure.reasoning}</think>"
    answer = figure.answer
    assert styles == {f"{opening}<answer>{answer}</answer>", f"{opening}<answer> {answer} </answer>"}


def test_marks():
    assert mark("tiny_scenes", "left", "x</think><answer> left </answer>") == 1
    assert mark("tiny_scenes", "left", "left") == 0
    box = "(0,0),(500,500)"
    assert mark("tiny_grounding", box, f"<answer>{box}</answer>") == 1
    assert mark("tiny_grounding", box, "<answer>(0,0),(250,500)</answer>") == pytest.approx(0.5)
    assert mark("tiny_grounding", box, "<answer>(500,500),(1000,1000)</answer>") == 0
    assert mark("tiny_grounding", box, "<answer>nowhere</answer>") == 0


@pytest.mark.full("trains a base")
def test_a_smoke_base_is_cached_complete_and_the_same_again(base_of, tmp_path):
    folder = base_of("smoke_vl_species")
    facts = json.loads((folder / "base.json").read_text())
    assert sum(p["asked"] for parts in facts["marks"]["greedy"].values() for p in parts.values()) == 32
    stamp = (folder / "base.json").stat().st_mtime_ns
    assert build_vision_base("smoke_vl_species", folder.parent, progress=False) == folder
    assert (folder / "base.json").stat().st_mtime_ns == stamp
    torch.rand(3)  # the caller's random state must not matter
    again = build_vision_base("smoke_vl_species", tmp_path, progress=False)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]
    AutoProcessor.from_pretrained(folder)


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(vision_warmup, "warm_up", stop)
    with pytest.raises(KeyboardInterrupt):
        build_vision_base("smoke_vl_scenes", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_unknown_bases_are_named():
    with pytest.raises(UserError, match="tiny_vl_scenes"):
        build_vision_base("tiny_vl_scene")
    assert {name.split("_")[0] for name in BASES} == {"tiny", "smoke"}
    assert BASES["tiny_vl_figures"].qwen2_5 and not BASES["tiny_vl_scenes"].chat
