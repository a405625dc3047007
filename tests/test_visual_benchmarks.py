"""The seven visual benchmarks: prompts to the character, images, golds, counts, and wrong data."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from test_vision_engines import ENGINES, drawing, registered, vision_checkpoint  # noqa: F401

from eval_harness import class_lists, masks, records
from eval_harness.benchmarks import all_benchmarks, get_benchmark
from eval_harness.errors import UserError
from eval_harness.images import ImageError, decode, encode
from eval_harness.reasonseg import read_annotation
from eval_harness.records import Sample
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.sources import Hub, read_jsonl

CLASSIFICATION = ("flowers102", "pets37", "fgvc_aircraft", "cars196")
THINK = "Output the thinking process in <think> </think> and"

CV_CHOICES = ["3", "2", "1", "0"]
CV_PROMPT = "How many organs are in the image? Select from the following choices.\n(A) 3\n(B) 2\n(C) 1\n(D) 0"
BASE = (
    "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer.\n"
    f"User: {CV_PROMPT} \n"
    "Assistant: Let me solve this step by step.\n"
    "<think>"
)


def picture(colour, size=(32, 24)) -> bytes:
    return encode(Image.new("RGB", size, colour))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def cv_row(i=0, **changes) -> dict:
    parts = (("Count", "ADE20K"), ("Relation", "COCO"), ("Depth", "Omni3D"), ("Distance", "Omni3D"))
    task, source = parts[i % 4]
    row = {"idx": i, "type": "2D", "task": task, "question": "How many organs are in the image?", "choices": CV_CHOICES}
    row |= {"answer": "(C)", "prompt": CV_PROMPT, "filename": f"img/{task}_{i}.png", "source": source}
    row |= {"source_dataset": None, "source_filename": None, "target_class": None, "target_size": None, "bbox": None}
    return row | changes


def small(name, num, groups=None, **changes):
    """The benchmark with other expected counts, for a few drawn items in the data set's own form."""
    return replace(get_benchmark(name), num_items=num, groups=groups or {}, **changes)


@pytest.fixture
def cv_hub(tmp_path, monkeypatch):
    """Eight drawn rows in the hub's schema, as parquet."""
    import datasets

    rows = [cv_row(i) | {"image": {"bytes": picture((10 * i, 0, 0)), "path": None}} for i in range(8)]
    features = datasets.Features(
        {name: datasets.Value("string") for name in cv_row() if name not in ("idx", "choices", "bbox", "target_size")}
        | {"idx": datasets.Value("int64"), "choices": datasets.List(datasets.Value("string"))}
        | {"bbox": datasets.List(datasets.Value("float64")), "target_size": datasets.List(datasets.Value("int64"))}
        | {"image": datasets.Image()}
    )
    path = tmp_path / "test-00000.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    monkeypatch.setattr(
        Hub,
        "_load",
        lambda self: datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path)),
    )


# prompts -----------------------------------------------------------------------------------------------------------


def _cvbench_prompts(row, incomplete):
    benchmark = get_benchmark("cvbench")
    item = benchmark.item(0, row)
    assert item.prompt == BASE
    assert benchmark.item(0, row | {"prompt": None}) == item
    assert (item.gold, item.group, item.images) == ("(C)", "Count", ("img/2D/count/ade20k_10.png",))
    assert item.context == {"choices": CV_CHOICES, "source": "ADE20K"}
    assert len(incomplete) == 4
    for index, row in enumerate(incomplete, start=1):  # options and letters are not known: no question to ask
        with pytest.raises(UserError, match=f"cvbench, item {index} .*choices is None"):
            benchmark.item(index, row)


def test_cvbench_prompts_of_a_complete_row():
    """The prompt column is kept, and can be rebuilt from the options."""
    unknown = {"choices": None, "answer": None, "prompt": None}
    _cvbench_prompts(cv_row(filename="img/2D/count/ade20k_10.png"), [cv_row(i, **unknown) for i in range(1, 5)])


@pytest.mark.real_data("CV-Bench's one complete row", "cv_bench_examples.jsonl")
def test_cvbench_prompts_of_the_complete_real_row(data_root):
    """The same with the one row of the hub that is known in full."""
    row, *incomplete = read_jsonl(data_root / "cv_bench_examples.jsonl")
    _cvbench_prompts(row, incomplete)


def test_cvbench_variants_ask_the_same_items_otherwise():
    direct, instruct = get_benchmark("cvbench_direct"), get_benchmark("cvbench_instruct")
    assert direct.item(0, cv_row()).prompt == (
        "<image>A conversation between User and Assistant. The user asks a question about the image, and the Assistant "
        f"solves it.\nUser: {CV_PROMPT} \nAssistant: "
    )
    assert instruct.item(0, cv_row()).prompt == (f"{CV_PROMPT}\n{THINK} final answer in <answer> </answer> tags.")
    assert [get_benchmark(n).form for n in ("cvbench", "cvbench_direct", "cvbench_instruct")] == [
        "concatenate",
        "concatenate",
        "chat",
    ]


REAL_GEOQA = pytest.mark.real_data("GEOQA's questions", "geoqa_test_prompts.jsonl")


@pytest.mark.parametrize(
    ("root", "question", "gold"),
    [
        ("own", "As drawn, triangle PQR has the angles P = 50.0 and Q = 70.0, then the size of angle R is ()", "60°"),
        pytest.param(
            "real",
            "As shown in the figure, in triangle ABC, it is known that angle A = 80.0, angle B = 60.0, DE parallel  "
            "BC, then the size of angle CED is ()",
            "140°",
            marks=REAL_GEOQA,
        ),
    ],
    indirect=["root"],
    ids=["own", "real"],
)
def test_geoqa_loads_the_list(root, question, gold):
    items = get_benchmark("geoqa").load(root)
    assert len(items) == 754
    assert items[0].images == ("./Geo170K/images/test/0.png",) and items[0].gold == gold
    assert items[753].images == ("./Geo170K/images/test/753.png",)
    assert items[0].prompt == f"{question} {THINK} final answer (number) in <answer> </answer> tags."
    rows = read_jsonl(root / "geoqa_test_prompts.jsonl")
    assert [item.gold for item in items] == [row["ground_truth"] for row in rows]
    assert all(item.prompt.startswith(row["question"] + " Output") for item, row in zip(items, rows, strict=True))


@pytest.mark.parametrize(
    ("name", "noun", "kind"),
    [
        ("flowers102", "a plant", "species of the plant"),
        ("pets37", "a pet", "species of the pet"),
        ("fgvc_aircraft", "an aircraft", "model of the aircraft"),
        ("cars196", "a car", "model of the car"),
    ],
)
def test_classification_prompt(name, noun, kind):
    item = get_benchmark(name).item(0, {"image": "a.jpg", "label": 3, "class_name": "F-16A/B"})
    assert item.prompt == (
        "<image>\n"
        f"This is an image containing {noun}. Please identify the {kind} based on the image.\n"
        f"{THINK} final answer in <answer> </answer> tags.The output answer format should be as follows:\n"
        "<think> ... </think> <answer>species name</answer>\n"
        "Please strictly follow the format."
    )
    assert (item.gold, item.images) == ("F-16A/B", ("a.jpg",))


CLASS_LISTS = {
    "flowers102": ("flowers102_test.jsonl", 102, {"own": "made-up flower 000", "real": "passion flower"}),
    "pets37": ("oxford_pets37_test.jsonl", 37, {"own": "made_up_pet_000", "real": "abyssinian"}),
    "fgvc_aircraft": ("fgvc_aircraft100_test.jsonl", 100, {"own": "MX-000 A/B", "real": "707-320"}),
    "cars196": (
        "stanford_cars196_test.jsonl",
        196,
        {"own": "1990 Made-Up Model 000 Sedan", "real": "2007 Suzuki Aerio Sedan"},
    ),
}
"""Name -> (file, number of classes, class of the first item)."""
REAL_LISTS = pytest.mark.real_data(
    "the four class lists",
    *(file for file, *_ in CLASS_LISTS.values()),
    *(f"classes/{file.replace('_test.jsonl', '.txt')}" for file, *_ in CLASS_LISTS.values()),
)


@pytest.mark.parametrize("root", ["own", pytest.param("real", marks=REAL_LISTS)], indirect=True)
@pytest.mark.parametrize("name", CLASS_LISTS)
def test_class_lists_load(name, root, tmp_path, request):
    file, classes, firsts = CLASS_LISTS[name]
    benchmark, first = get_benchmark(name), firsts[request.node.callspec.params["root"]]
    items = benchmark.load(root)
    assert (len(items), len({item.gold for item in items})) == (benchmark.num_items, classes)
    assert items[0].gold == first
    listed = (root / "classes" / file.replace("_test.jsonl", ".txt")).read_text(encoding="utf-8").splitlines()
    assert {item.gold for item in items} == set(listed)
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    (tmp_path / file).write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"{len(items) - 1} items, expected {len(items)}"):
        benchmark.load(tmp_path)
    rows = [json.loads(line) for line in lines]
    write_jsonl(tmp_path / file, [row | {"class_name": row["class_name"].replace(first, "x")} for row in rows[::-1]])
    assert len(benchmark.load(tmp_path)) == len(items)  # as many classes as before
    write_jsonl(tmp_path / file, [row | {"class_name": first} for row in rows])
    with pytest.raises(UserError, match=f"names 1 classes, expected {classes}"):
        benchmark.load(tmp_path)


def test_lisa_prompt():
    row = {"instruction": "the food", "gold": "(1,2),(3,4)", "split": "val", "image": "val/0.jpg"}
    row |= {"width": 10, "height": 10, "polygons": [], "gold_box": [0.001, 0.002, 0.003, 0.004]}
    benchmark = get_benchmark("lisa")
    assert benchmark.item(0, row).prompt == (
        "Output the bounding box in the image corresponding to the instruction: the food. Output the thinking process "
        'in <think> </think> and your grouding box. Following "<think> thinking process </think>\n'
        '<answer>(x1,y1),(x2,y2)</answer>)" format.'
    )
    assert benchmark.decoding.system_prompt.startswith("A conversation between User and Assistant. The user asks a")
    assert benchmark.decoding.system_prompt.endswith("process here </think><answer> answer here </answer>")
    from gpg_repro.prompts import PAPER_B3

    assert benchmark.decoding.system_prompt == PAPER_B3


def test_decoding_and_counts_are_the_documented_ones():
    tokens = {"cvbench": 1024, "cvbench_direct": 1024, "cvbench_instruct": 1024, "geoqa": 1024, "lisa": 128}
    tokens |= dict.fromkeys(CLASSIFICATION, 1024)
    for name, expected in tokens.items():
        d = get_benchmark(name).decoding
        assert (d.temperature, d.max_new_tokens, d.samples, d.seed) == (0.0, expected, 1, 1234)
        assert (d.system_prompt is None) == (name != "lisa")
    counts = {name: all_benchmarks()[name].num_items for name in tokens}
    assert [counts[n] for n in CLASSIFICATION] == [2463, 3669, 3333, 8041]
    assert (counts["cvbench"], counts["geoqa"], counts["lisa"]) == (2638, 754, 979)
    for name in ("cvbench", "lisa"):
        assert sum(get_benchmark(name).groups.values()) == counts[name]


# CV-Bench -----------------------------------------------------------------------------------------------------------


def test_cvbench_from_the_hub(cv_hub):
    benchmark = small("cvbench", 8, {"Count": 2, "Relation": 2, "Depth": 2, "Distance": 2})
    items = benchmark.load()
    assert [item.prompt for item in items] == [BASE] * 8
    assert [item.group for item in items] == ["Count", "Relation", "Depth", "Distance"] * 2
    read = benchmark.image_reader()
    assert [decode(*read(item)).getpixel((0, 0)) for item in items] == [(10 * i, 0, 0) for i in range(8)]
    with pytest.raises(UserError, match="cvbench: .* holds 8 items, expected 2638"):
        get_benchmark("cvbench").load()
    with pytest.raises(UserError, match="by task, expected .*'Count': 3"):
        replace(benchmark, groups=benchmark.groups | {"Count": 3, "Depth": 1}).load()


def test_cvbench_from_a_local_copy(tmp_path):
    write_jsonl(tmp_path / "cv_bench.jsonl", [cv_row(i) for i in range(4)])
    folder = tmp_path / "cv_bench" / "img"
    folder.mkdir(parents=True)
    (folder / "Count_0.png").write_bytes(picture((1, 2, 3)))
    benchmark = small("cvbench", 4)
    items = benchmark.load(tmp_path)
    read = benchmark.image_reader(tmp_path)
    assert decode(*read(items[0])).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(ImageError, match=r"img/Relation_1\.png.*No such file"):
        read(items[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "(E)"}, r"item 1 of cv_bench.jsonl: the gold '\(E\)' is none of its 4 options, \(A\) to \(D\)"),
        ({"answer": "C"}, "gold 'C' is none"),
        ({"answer": None}, "item 1 .* gold .* is empty"),
        ({"choices": ["3"]}, "item 1 .*choices is .*expected 2 to 6"),
        ({"choices": list("abcdefg")}, "expected 2 to 6"),
        ({"choices": ["1", None]}, "expected 2 to 6"),
        ({"choices": "1, 2"}, "expected 2 to 6"),
        ({"prompt": None, "question": None}, "item 1 .*neither prompt nor question"),
        ({"prompt": " "}, "item 1 .*neither prompt nor question"),
    ],
)
def test_cvbench_names_a_wrong_row(changes, message, tmp_path):
    write_jsonl(tmp_path / "cv_bench.jsonl", [cv_row(0), cv_row(1, **changes)])
    with pytest.raises(UserError, match=message):
        small("cvbench", 2).load(tmp_path)


# local lists -------------------------------------------------------------------------------------------------------


def test_local_lists_say_how_to_get_them(tmp_path):
    for name in ("geoqa", *CLASSIFICATION):
        benchmark = get_benchmark(name)
        with pytest.raises(UserError, match=f"{name} needs --data-root DIR .*{benchmark.source.local_file}"):
            benchmark.load(tmp_path)
        with pytest.raises(UserError, match="needs --data-root DIR"):
            benchmark.load()
    with pytest.raises(UserError, match="python -m eval_harness.class_lists pets37 --from DIR"):
        get_benchmark("pets37").load()
    with pytest.raises(UserError, match="pets37: the images are missing: no folder oxford_pets37 .*EVAL_IMAGE_ROOT"):
        get_benchmark("pets37").image_reader(tmp_path)


def test_geoqa_images_under_an_image_root(tmp_path):
    images = tmp_path / "images" / "Geo170K" / "images" / "test"
    images.mkdir(parents=True)
    (images / "0.png").write_bytes(picture((9, 9, 9)))
    row = {"image_path": "./Geo170K/images/test/0.png", "question": "x?", "ground_truth": "140°"}
    write_jsonl(tmp_path / "geoqa_test_prompts.jsonl", [row])
    benchmark = small("geoqa", 1)
    (item,) = benchmark.load(tmp_path)
    assert decode(*benchmark.image_reader(tmp_path, tmp_path / "images")(item)).getpixel((0, 0)) == (9, 9, 9)


# class lists -------------------------------------------------------------------------------------------------------


def _pets_distribution(root, rows):
    (root / "annotations").mkdir(parents=True)
    text = "#Image CLASS-ID SPECIES BREED ID\n"  # the published list.txt has such a head
    text += "".join(f"{row['image'][7:-4]} {row['label'] + 1} 1 1\n" for row in rows)
    (root / "annotations" / "test.txt").write_text(text, encoding="utf-8")


def _fgvc_distribution(root, rows):
    (root / "data").mkdir(parents=True)
    names = dict(sorted((row["label"], row["class_name"]) for row in rows))
    (root / "data" / "variants.txt").write_text("\n".join(names.values()) + "\n", encoding="utf-8")
    lines = [f"{row['image'][7:-4]} {row['class_name']}\n" for row in rows]
    (root / "data" / "images_variant_test.txt").write_text("".join(lines), encoding="utf-8")


def _cars_distribution(root, rows):
    """The devkit's two files; a name ends with the year there."""
    from scipy.io import savemat

    (root / "devkit").mkdir(parents=True)
    published = {row["label"]: " ".join([*row["class_name"].split()[1:], row["class_name"].split()[0]]) for row in rows}
    names = np.array([published[label] for label in sorted(published)], dtype=object).reshape(1, -1)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, row in enumerate(rows):
        annotations[0, i] = (1, 2, 3, 4, row["label"] + 1, row["image"].removeprefix("cars_test/"))
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": annotations})


def _flowers_distribution(root, rows):
    root.mkdir(parents=True)
    test = [[row["image"].removeprefix("jpg/"), row["label"], row["class_name"]] for row in rows]
    split = {"train": [["image_00001.jpg", 0, "x"]], "val": [], "test": test}
    (root / "split_zhou_OxfordFlowers.json").write_text(json.dumps(split), encoding="utf-8")


DISTRIBUTIONS = {
    "pets37": _pets_distribution,
    "fgvc_aircraft": _fgvc_distribution,
    "cars196": _cars_distribution,
    "flowers102": _flowers_distribution,
}


@pytest.mark.parametrize("root", ["own", pytest.param("real", marks=REAL_LISTS)], indirect=True)
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_lists_are_built_from_the_distributions(name, root, tmp_path, capsys):
    """A distribution of the public form that holds a list's content gives that list back, line for line."""
    benchmark = get_benchmark(name)
    rows = read_jsonl(root / benchmark.source.local_file)
    DISTRIBUTIONS[name](tmp_path / "dist", rows)
    out = tmp_path / "lists" / benchmark.source.local_file
    assert class_lists.main([name, "--from", str(tmp_path / "dist"), "--out", str(out)]) == 0
    assert f"{len(rows)} items of {benchmark.num_classes} classes" in capsys.readouterr().out
    assert [json.loads(line) for line in out.open(encoding="utf-8")] == rows
    assert benchmark.load(out.parent) == benchmark.load(root)


def test_lists_in_small(tmp_path, monkeypatch):
    """The same without the real lists: names, labels and order of a few lines as published."""
    rows = {
        "pets37": [("images/Egyptian_Mau_167.jpg", 0, "egyptian_mau"), ("images/pug_1.jpg", 1, "pug")],
        "fgvc_aircraft": [("images/0056978.jpg", 1, "F-16A/B"), ("images/1514522.jpg", 0, "737 200")],
        "cars196": [("cars_test/00002.jpg", 1, "2012 Acura TL Sedan"), ("cars_test/00001.jpg", 0, "1994 Audi S6")],
        "flowers102": [("jpg/image_00172.jpg", 1, "passion flower"), ("jpg/image_00130.jpg", 0, "rose")],
    }
    for name, published in rows.items():
        expected = [dict(zip(("image", "label", "class_name"), row, strict=True)) for row in published]
        DISTRIBUTIONS[name](tmp_path / name, expected)
        benchmark = replace(get_benchmark(name), num_items=2, num_classes=2)
        monkeypatch.setattr(class_lists, "get_benchmark", lambda _, b=benchmark: b)
        assert class_lists.build(name, tmp_path / name) == expected
        monkeypatch.setattr(class_lists, "get_benchmark", get_benchmark)
        with pytest.raises(UserError, match=f"{name}: the distribution gives 2 items, expected"):
            class_lists.build(name, tmp_path / name)


def test_wrong_distributions_are_named(tmp_path, capsys):
    for name, file in (
        ("pets37", "test.txt"),
        ("fgvc_aircraft", "variants.txt"),
        ("cars196", "cars_meta.mat"),
        ("flowers102", "split_zhou"),
    ):
        with pytest.raises(UserError, match=f"(?s){file}.*unpacked distribution"):
            class_lists.build(name, tmp_path)
    assert class_lists.main(["pets37", "--from", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "error:" in capsys.readouterr().err and not (tmp_path / "x").exists()
    (tmp_path / "annotations").mkdir()
    pets = tmp_path / "annotations" / "test.txt"
    pets.write_text("Abyssinian_201 one 1 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="test.txt, line 1: expected name, class"):
        class_lists.build("pets37", tmp_path)
    pets.write_text("Abyssinian_201 1 1 1\nBengal_7 1 1 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="class 0 is 'abyssinian' and, at images/Bengal_7.jpg, 'bengal'"):
        class_lists.build("pets37", tmp_path)
    pets.write_bytes(b"Abyssinian\xff_201 1 1 1\n")
    with pytest.raises(UserError, match="test.txt is not UTF-8"):
        class_lists.build("pets37", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "variants.txt").write_text("737-200\n", encoding="utf-8")
    (tmp_path / "data" / "images_variant_test.txt").write_text("0056978 737-300\n", encoding="utf-8")
    with pytest.raises(UserError, match="images_variant_test.txt, line 1: expected .*variants.txt"):
        class_lists.build("fgvc_aircraft", tmp_path)
    (tmp_path / "cars_meta.mat").write_bytes(b"no matlab")
    with pytest.raises(UserError, match="cars_meta.mat is not as published"):
        class_lists.build("cars196", tmp_path)
    (tmp_path / "split_zhou_OxfordFlowers.json").write_text('{"train": []}', encoding="utf-8")
    with pytest.raises(UserError, match="not CoOp's split"):
        class_lists.build("flowers102", tmp_path)


# ReasonSeg ---------------------------------------------------------------------------------------------------------

SQUARE = {"label": "target", "points": [[10, 5], [30, 5], [30, 20], [10, 20]]}
OTHER = {"label": "ignore", "points": [[0, 0], [3, 0], [3, 3]]}


def annotate(folder, stem, *, text=("the red thing",), shapes=(SQUARE,), image=True, encoding="utf-8", exif=None):
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        options = {} if exif is None else {"exif": exif}
        Image.new("RGB", (40, 20), "white").save(folder / f"{stem}.jpg", **options)
    annotation = {"text": list(text), "is_sentence": False, "shapes": list(shapes)}
    (folder / f"{stem}.json").write_bytes(json.dumps(annotation, ensure_ascii=False).encode(encoding))


@pytest.fixture
def reasonseg(tmp_path):
    """Two val and three test images of 40 x 20 pixels."""
    folder = tmp_path / "reasonseg"
    annotate(folder / "val", "a", text=("first", "second"))
    annotate(folder / "val", "b", shapes=(OTHER, SQUARE))
    annotate(folder / "test", "0", text=("the café’s sign",), encoding="cp1252")
    annotate(folder / "test", "1", shapes=())
    annotate(folder / "test", "2", text=("la façade",))
    return tmp_path


def lisa(val=2, test=3):
    return small("lisa", val + test, {"val": val, "test": test})


def test_lisa_items(reasonseg):
    items = lisa().load(reasonseg)
    assert [(i.group, i.images) for i in items] == [
        ("val", ("val/a.jpg",)),
        ("val", ("val/b.jpg",)),
        ("test", ("test/0.jpg",)),
        ("test", ("test/1.jpg",)),
        ("test", ("test/2.jpg",)),
    ]
    assert "instruction: first. Output" in items[0].prompt
    assert "instruction: the café’s sign. Output" in items[2].prompt
    assert "instruction: la façade. Output" in items[4].prompt
    assert items[0].gold == "(250,250),(750,1000)"
    assert items[0].context == {
        "width": 40,
        "height": 20,
        "polygons": [{"label": "target", "points": [[10.0, 5.0], [30.0, 5.0], [30.0, 20.0], [10.0, 20.0]]}],
        "gold_box": [0.25, 0.25, 0.75, 1.0],
    }
    assert items[1].gold == "(0,0),(75,150)"  # the first polygon, whatever it is labelled
    assert (items[3].gold, items[3].context["gold_box"]) == ("", None)  # stays in, nobody can get it right
    read = lisa().image_reader(reasonseg)
    assert decode(*read(items[0])).size == (40, 20)


def test_lisa_measures_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 x 20, seen 20 x 40
    annotate(tmp_path / "reasonseg" / "val", "a", exif=exif)
    annotate(tmp_path / "reasonseg" / "test", "a")
    item = lisa(1, 1).load(tmp_path)[0]
    assert (item.context["width"], item.context["height"]) == (20, 40)
    assert item.gold == "(500,125),(1500,500)"


def test_a_bad_image_costs_its_item_only(reasonseg):
    folder = reasonseg / "reasonseg" / "test"
    (folder / "0.jpg").write_bytes(b"no image")
    (folder / "2.jpg").unlink()
    items = lisa().load(reasonseg)
    read = lisa().image_reader(reasonseg)
    for item in (items[2], items[4]):
        assert (item.gold, item.context["width"]) == ("", None)
        with pytest.raises(ImageError, match="test/.*jpg"):
            decode(*read(item), item.images[0])


def test_wrong_reasonseg_is_named(reasonseg, tmp_path):
    with pytest.raises(UserError, match="lisa: .* holds 5 items, expected 979"):
        get_benchmark("lisa").load(reasonseg)
    with pytest.raises(UserError, match=r"by split, expected \{'val': 3, 'test': 2\}"):
        lisa(3, 2).load(reasonseg)
    (reasonseg / "reasonseg" / "val" / "a.json").rename(reasonseg / "a.json")
    with pytest.raises(UserError, match=r"val: a\.jpg has no annotation beside it"):
        lisa().load(reasonseg)
    with pytest.raises(UserError, match="needs --data-root DIR .*dvlab-research/LISA"):
        lisa().load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs --data-root DIR"):
        lisa().load()
    shutil.rmtree(reasonseg / "reasonseg" / "test")
    (reasonseg / "reasonseg" / "test").mkdir()
    (reasonseg / "a.json").rename(reasonseg / "reasonseg" / "val" / "a.json")
    with pytest.raises(UserError, match="test holds no annotations"):
        lisa().load(reasonseg)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": ["a"', r"not valid JSON \(.*line 1\)"),
        (b"", "not valid JSON"),
        (b"[]", "a JSON object was expected"),
        (b'{"text": ["caf\x81"]}', r"neither UTF-8 nor Windows-1252 \(byte 14\)"),
        (b'{"shapes": []}', "no instruction"),
        (b'{"text": []}', "no instruction"),
        (b'{"text": [" "]}', "an instruction .* empty"),
        (b'{"text": [3]}', "an instruction .* no text"),
        (b'{"text": ["a"], "shapes": {"label": "target"}}', "shapes is no list"),
        (b'{"text": ["a"], "shapes": [{"label": "target"}]}', "shape 0 lacks"),
        (b'{"text": ["a"], "shapes": [{"points": [[1, 2]]}]}', "shape 0 lacks"),
        (b'{"text": ["a"], "shapes": [{"label": "t", "points": [[1, 2, 3]]}]}', "shape 0 lacks"),
        (b'{"text": ["a"], "shapes": [{"label": "t", "points": [["x", 2]]}]}', "shape 0 lacks"),
        (b'{"text": ["a"], "shapes": [{"label": "t", "points": []}]}', "shape 0 has no points"),
        (b'{"text": ["a"], "shapes": [{"label": "t", "points": [[NaN, 2]]}]}', "shape 0 has no points"),
    ],
)
def test_damaged_annotations_are_named(content, problem, tmp_path):
    path = tmp_path / "reasonseg" / "val" / "7.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"reasonseg/val/7\.json is damaged: ({problem})"):
        read_annotation(path)


def test_annotations_with_a_mark_and_a_bare_instruction(tmp_path):
    path = tmp_path / "0.json"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one", "shapes": null}')
    assert read_annotation(path) == {"text": ["one"], "polygons": []}


def test_lisa_without_a_polygon_scores_nothing(reasonseg):
    from eval_harness.graders.box import BoxGrader

    (reasonseg / "reasonseg" / "test" / "2.jpg").unlink()
    answer = "<answer>(250,250),(750,1000)</answer>"
    scores = [
        (v.score, v.score_strict)
        for v in (BoxGrader().grade(item.gold, answer, item.context) for item in lisa().load(reasonseg))
    ]
    assert scores == [pytest.approx(pair, abs=1e-4) for pair in ((1, 1), (0, 1), (1, 1), (0, 0), (0, 0))]


# end to end --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Served(Hub):
    """The hub's copy, also where the other benchmarks of a run read local lists."""

    def rows(self, data_root):
        return super().rows(None)

    def image_reader(self, data_root, image_root):
        return super().image_reader(None, None)


def _drawn_lists(root):
    """A few items of each list, and their images, where each benchmark looks for them."""
    species = {
        "flowers102": "rose",
        "oxford_pets37": "pug",
        "fgvc_aircraft100": "737-200",
        "stanford_cars196": "2012 A",
    }
    (root / "Geo170K" / "images" / "test").mkdir(parents=True)
    for i in range(2):
        drawing(i).save(root / "Geo170K" / "images" / "test" / f"{i}.png")
    geoqa = [
        {"image_path": f"./Geo170K/images/test/{i}.png", "question": "x?", "ground_truth": f"{i}°"} for i in (0, 1)
    ]
    write_jsonl(root / "geoqa_test_prompts.jsonl", geoqa)
    for folder, name in species.items():
        (root / folder).mkdir()
        drawing(2).save(root / folder / "a.jpg")
        rows = [{"image": image, "label": 0, "class_name": name} for image in ("a.jpg", "missing.jpg")]
        write_jsonl(root / f"{folder}_test.jsonl", rows)


@pytest.mark.full("an engine in a process of its own")
@pytest.mark.parametrize("engine", ENGINES)
def test_all_seven_run_end_to_end(
    engine,
    registered,  # noqa: F811
    vision_checkpoint,  # noqa: F811
    cv_hub,
    reasonseg,
    tmp_path,
):
    """Drawn data in each data set's own form, through a real engine, the graders, the records and the masks."""
    _drawn_lists(tmp_path)
    cvbench = small("cvbench", 8, {"Count": 2, "Relation": 2, "Depth": 2, "Distance": 2})
    served = _Served(**vars(cvbench.source))
    registered(
        replace(cvbench, source=served),
        small("cvbench_instruct", 8, source=served),
        small("geoqa", 2),
        lisa(),
        *(small(name, 2, num_classes=1) for name in CLASSIFICATION),
    )
    names = ["cvbench", "cvbench_instruct", "geoqa", "lisa", *CLASSIFICATION]
    run = evaluate(
        str(vision_checkpoint),
        names,
        engine=engine,
        out=tmp_path / "run",
        data_root=tmp_path,
        image_root=tmp_path,
        overrides=Overrides(max_new_tokens=4),
        progress=False,
    )
    record = records.read_run(run)
    assert record.status == "finished" and list(record.benchmarks) == names
    failed = {name: result.failed for name, result in record.benchmarks.items()}
    assert failed == dict.fromkeys(names, 0) | dict.fromkeys(CLASSIFICATION, 1)  # the missing images
    assert set(record.benchmarks["cvbench"].groups) == {"Count", "Relation", "Depth", "Distance"}
    assert {name: g.num_items for name, g in record.benchmarks["lisa"].groups.items()} == {"val": 2, "test": 3}
    for name in CLASSIFICATION:
        (bad,) = (s for s in records.read_lines(run / "samples" / f"{name}.jsonl", Sample) if s.status == "failed")
        assert bad.item_id == "1" and "missing.jpg" in bad.reason
    assert all(row["reproduced"] for row in verify(run).values())
    assert masks.main([str(run), "--foreground", "--data-root", str(tmp_path)]) == 0
    extra = records.read_run(run).benchmarks["lisa"].groups["test"].extra
    assert extra["mask_iou"]["num_items"] == 2  # one image has no polygon
