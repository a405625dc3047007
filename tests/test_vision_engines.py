"""Images through the engines and the runner: a tiny random Qwen2-VL, drawn images, real vLLM where it is installed."""

from __future__ import annotations

import base64
import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval_harness import benchmarks, records
from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
from eval_harness.engines import EngineProcess, EngineSettings, Request, Sampling
from eval_harness.errors import UserError
from eval_harness.images import ImageError, encode
from eval_harness.records import Sample
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.sources import Generated, Local

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
VLLM = pytest.mark.full("a real vLLM engine")
ENGINE = pytest.mark.full("an engine in a process of its own")
ENGINES = [pytest.param("transformers", marks=ENGINE), pytest.param("vllm", marks=[needs_vllm, VLLM])]
NUM_ITEMS = 6


def drawing(number: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for i in range(number + 1):
        pen.ellipse((8 + 14 * i, 20, 18 + 14 * i, 30), fill=["red", "blue", "green"][number % 3])
    return image


@pytest.fixture(scope="module")
def vision_checkpoint(tmp_path_factory):
    import torch

    from gpg_repro.tiny.vision_model import build_processor, build_vision_model

    folder = tmp_path_factory.mktemp("vision") / "random-vl"
    processor = build_processor()
    # wide initial weights: two different pictures then lead to different texts
    model = build_vision_model(processor.tokenizer, initializer_range=0.3)
    with torch.no_grad():
        model.get_input_embeddings().weight[:256] = 0  # raw bytes: the engines decode cut-off characters differently
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def dots(source, **changes) -> Benchmark:
    fields = dict(
        name="dots",
        title="Dots",
        version=1,
        num_items=NUM_ITEMS,
        source=source,
        prompt="{problem}",
        prompt_origin="this test",
        question_field="question",
        gold_field="gold",
        grader="boxed",
        decoding=DecodingDefaults(temperature=0.0, top_p=1.0, max_new_tokens=8),
        image_field="image",
        group_field="colour",
    )
    return Benchmark(**{**fields, **changes})


def rows() -> list[dict]:
    colours = ["warm", "cold", "warm", "cold", "warm", "warm"]
    return [
        {"question": "How many?", "gold": f"${i}$", "image": f"{i}.png", "colour": c} for i, c in enumerate(colours)
    ]


@pytest.fixture
def registered(monkeypatch):
    """Registers benchmarks for one test."""

    def register(*found: Benchmark) -> None:
        known = {**benchmarks.all_benchmarks(), **{b.name: b for b in found}}
        monkeypatch.setattr(benchmarks, "all_benchmarks", lambda: known)

    return register


def requests(form: str = "chat", samples: int = 1, temperature: float = 0.0) -> list[Request]:
    sampling = Sampling(temperature, 1.0, 0, 8, samples, seed=1)
    images = [drawing(0), drawing(4), drawing(2, (224, 140))]
    return [
        Request(str(i), [{"role": "user", "content": "How many?"}], sampling, [as_text(encode(image))], form)
        for i, image in enumerate(images)
    ]


def question_tokens() -> int:
    from gpg_repro.tiny.vision_model import build_processor

    return len(build_processor().tokenizer("How many?")["input_ids"])


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@needs_vllm
@VLLM
def test_the_engines_agree_on_pictures(vision_checkpoint, tmp_path, kept_engines):
    answers, tokens = {}, {}
    wanted = requests() + [Request("c" + r.key, r.messages, r.sampling, r.images, "concatenate") for r in requests()]
    plain = Request("text", [{"role": "user", "content": "Hello"}], requests()[0].sampling)
    for engine in ("transformers", "vllm"):
        with kept_engines(engine, EngineSettings(str(vision_checkpoint)), tmp_path / f"{engine}.log") as process:
            results = {r.key: r for r in process.generate([*wanted, plain])}
            assert process.description["images"]["max_pixels"] == 401408
        assert all(r.error is None for r in results.values()), results
        answers[engine] = {key: r.completions[0].text for key, r in results.items()}
        tokens[engine] = {key: r.num_prompt_tokens for key, r in results.items()}
    assert answers["vllm"] == answers["transformers"]
    assert tokens["vllm"] == tokens["transformers"]
    assert tokens["vllm"]["0"] == question_tokens() + 3 + 16 + 2  # two roles and a turn end, patches, their brackets
    assert tokens["vllm"]["c0"] == question_tokens() + 16 + 2
    assert tokens["vllm"]["2"] == question_tokens() + 3 + 8 * 5 + 2
    assert len({answers["vllm"][key] for key in "012"}) == 3  # it sees them


@pytest.mark.parametrize("engine", ENGINES)
def test_pixel_bounds_and_bad_pictures(engine, vision_checkpoint, tmp_path):
    small = EngineSettings(str(vision_checkpoint), min_pixels=28 * 28, max_pixels=56 * 56)
    first, second, third = requests(samples=3, temperature=1.0)
    bad = [Request("bad", first.messages, first.sampling, [as_text(encode(drawing(1))[:200])])]
    bad.append(Request("strip", first.messages, first.sampling, [as_text(encode(drawing(1, (900, 2))))]))
    with EngineProcess(engine, small, tmp_path / "log") as process:
        results = {r.key: r for r in process.generate([first, *bad, second, third])}
        assert process.description["images"] == {
            "class": process.description["images"]["class"],
            "min_pixels": 784,
            "max_pixels": 3136,
            "patch_size": 14,
            "merge_size": 2,
        }
    assert results["0"].num_prompt_tokens == question_tokens() + 3 + 4 + 2
    assert len({c.text for c in results["0"].completions}) == 3
    assert "damaged or cut off" in results["bad"].error and "200 to 1" in results["strip"].error


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_with_images_has_groups_and_survives_bad_ones(
    engine, registered, vision_checkpoint, tmp_path, any_engine
):
    folder = tmp_path / "images" / "dots"
    folder.mkdir(parents=True)
    for i in range(NUM_ITEMS):
        (folder / f"{i}.png").write_bytes(encode(drawing(i)))
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes(b"no picture")
    (tmp_path / "dots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    columns = ("question", "gold", "image", "colour")
    registered(dots(Local("dots", "dots.jsonl", columns, "dots", "Draw them.")))
    arguments = dict(engine=engine, data_root=tmp_path, image_root=tmp_path / "images", progress=False)
    run = evaluate(str(vision_checkpoint), ["dots"], out=tmp_path / "run", **arguments)
    result = records.read_run(run).benchmarks["dots"]
    assert (result.asked, result.scored, result.failed) == (6, 4, 2)
    assert {name: (g.num_items, g.failed) for name, g in result.groups.items()} == {"warm": (4, 1), "cold": (2, 1)}
    failed = {
        s.item_id: s.reason for s in records.read_lines(run / "samples" / "dots.jsonl", Sample) if s.completion is None
    }
    assert "2.png" in failed["2"] and "not a readable image" in failed["3"]
    assert verify(run)["dots"]["reproduced"]


@ENGINE
def test_the_limit_counts_per_group(registered, vision_checkpoint, tmp_path, any_engine):
    registered(dots(Generated("dots", rows, lambda row: drawing(int(row["image"][0])))))
    run = evaluate(
        str(vision_checkpoint), ["dots"], engine="transformers", limit=2, out=tmp_path / "run", progress=False
    )
    assert {name: g.num_items for name, g in records.read_run(run).benchmarks["dots"].groups.items()} == {
        "warm": 2,
        "cold": 2,
    }


def test_a_picture_is_decoded_once_for_all_samples(vision_checkpoint, monkeypatch):
    from eval_harness.engines import base
    from eval_harness.engines.transformers import TransformersBackend

    decoded = []
    monkeypatch.setattr(base, "decode", lambda data, name: decoded.append(name) or drawing(1))
    backend = TransformersBackend(EngineSettings(str(vision_checkpoint)))
    backend.add(requests(samples=5, temperature=1.0)[0])
    (result,) = backend.step()
    assert len(result.completions) == 5 and len(decoded) == 1


def test_samples_of_a_picture_do_not_depend_on_the_batch(vision_checkpoint):
    from eval_harness.engines.transformers import TransformersBackend

    def answers(chosen: list[Request]) -> dict[str, list[str]]:
        backend, found = TransformersBackend(EngineSettings(str(vision_checkpoint))), {}
        for request in chosen:
            backend.add(request)
        while backend.has_unfinished():
            found |= {r.key: [c.text for c in r.completions] for r in backend.step()}
        return found

    together = answers(requests(samples=2, temperature=1.0))
    assert answers(requests(samples=2, temperature=1.0)[2:])["2"] == together["2"]


def test_what_is_wrong_with_the_whole_stops_before_the_engine(
    registered, random_checkpoint, vision_checkpoint, tmp_path
):
    source = Generated("dots", rows, lambda row: drawing(1))
    registered(
        dots(source),
        dots(source, name="counted", groups={"warm": 3, "cold": 3}),
        dots(Local("listed", "dots.jsonl", ("question",), "nowhere", "Draw them."), name="listed"),
    )
    (tmp_path / "dots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    with pytest.raises(UserError, match="is a text model, but dots shows images"):
        evaluate(str(random_checkpoint), ["dots"], out=tmp_path / "a")
    with pytest.raises(UserError, match="'cold': 2, 'warm': 4.* expected .*'warm': 3"):
        evaluate(str(vision_checkpoint), ["counted"], out=tmp_path / "a")
    with pytest.raises(UserError, match="no folder nowhere under the image root"):
        evaluate(str(vision_checkpoint), ["listed"], data_root=tmp_path, out=tmp_path / "a")
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(UserError, match="none of the first 5 images can be read.*0.png"):
        evaluate(str(vision_checkpoint), ["listed"], data_root=tmp_path, out=tmp_path / "a")
    with pytest.raises(UserError, match="--min-pixels 9 is more than --max-pixels 4"):
        evaluate(str(vision_checkpoint), ["dots"], min_pixels=9, max_pixels=4, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@ENGINE
def test_the_pixel_bounds_are_part_of_what_a_run_is(registered, vision_checkpoint, tmp_path, any_engine):
    registered(dots(Generated("dots", rows, lambda row: drawing(int(row["image"][0])))))
    arguments = dict(engine="transformers", limit=1, out=tmp_path / "run", progress=False, overrides=Overrides())
    evaluate(str(vision_checkpoint), ["dots"], **arguments)
    with pytest.raises(UserError, match="holds another run"):
        evaluate(str(vision_checkpoint), ["dots"], max_pixels=56 * 56, **arguments)


def test_names_cannot_lead_out_of_the_image_folder(tmp_path):
    from eval_harness.sources import folder_reader

    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(encode(drawing(1)))
    with pytest.raises(ImageError, match="leads out of the image folder"):
        folder_reader(tmp_path / "in")(0, "../secret.png")


def test_reading_images_again_gives_the_same_bytes():
    read = dots(Generated("dots", rows, lambda row: drawing(int(row["image"][0])))).image_reader()
    item = dots(Generated("dots", rows)).load()[3]
    assert read(item) == read(item)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(read(item)[0]))), np.asarray(drawing(3)))
