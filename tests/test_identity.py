"""What a run is made from: one input changed, and the same command starts anew or refuses and names what changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runs_here
from PIL import Image
from safetensors.numpy import save_file

from eval_harness import records, runner
from eval_harness.benchmarks import Benchmark, DecodingDefaults, all_benchmarks
from eval_harness.engines import EngineError
from eval_harness.errors import UserError
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.shards import Shard, merge
from eval_harness.sources import Local

BENCHMARK = Benchmark(
    name="pictured_sums",
    title="Sums with a picture",
    version=1,
    num_items=4,
    source=Local("sums", "sums.jsonl", ("question", "answer", "image"), "pictures", "It is written by this test."),
    prompt="{problem}",
    prompt_origin="this test",
    question_field="question",
    gold_field="answer",
    grader="boxed",
    decoding=DecodingDefaults(0.0, 1.0, 16),
    image_field="image",
)


class World:
    """A checkpoint with a file for every part, and a benchmark with pictures, all on disk."""

    def __init__(self, folder: Path):
        self.model, self.data, self.out = folder / "model", folder / "data", folder / "run"
        runs_here.checkpoint(self.model)
        self.write("config.json", {"model_type": "qwen2_vl", "max_position_embeddings": 4096, "vision_config": {}})
        self.write("generation_config.json", {"eos_token_id": 1})
        self.write("vocab.json", {"a": 0})
        self.write("preprocessor_config.json", {"min_pixels": 4})
        (self.model / "merges.txt").write_text("a b\n", encoding="utf-8")
        (self.model / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
        (self.data / "pictures").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(self.data / "pictures" / f"{i}.png")
        self.rows = [{"question": f"{i} + {i}?", "answer": f"{2 * i}", "image": f"{i}.png"} for i in range(4)]
        self.write_rows()

    def write(self, name: str, content: dict) -> None:
        (self.model / name).write_text(json.dumps(content), encoding="utf-8")

    def write_rows(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.data / "sums.jsonl").write_text(text, encoding="utf-8")

    def run(self, out: Path | None = None, **options) -> Path:
        """The same command, but for options that are given."""
        fixed = dict(engine="transformers", data_root=self.data, image_root=self.data, progress=False, label="mine")
        return evaluate(str(self.model), [BENCHMARK.name], out=out, **fixed | options)


@pytest.fixture
def engine(monkeypatch):
    """The scripted engine, which stops after ``stops_after`` requests."""

    class Stops(runs_here.use(monkeypatch)):
        stops_after: int | None = None

        def generate(self, requests):
            for number, result in enumerate(super().generate(requests)):
                if number == self.stops_after:
                    raise EngineError("it died")
                yield result

    monkeypatch.setattr(runner, "EngineProcess", Stops)
    return Stops


@pytest.fixture
def world(tmp_path, monkeypatch, engine) -> World:
    monkeypatch.setitem(all_benchmarks(), BENCHMARK.name, BENCHMARK)
    monkeypatch.chdir(tmp_path)  # the default folder of runs is below it
    return World(tmp_path)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _in_json(name: str, **changes) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.write(name, json.loads((world.model / name).read_text(encoding="utf-8")) | changes)

    return change


def _text(name: str, text: str) -> Callable[[World], None]:
    return lambda world: (world.model / name).write_text(text, encoding="utf-8") and None


def _row(number: int, **changes) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.rows[number] |= changes
        world.write_rows()

    return change


def _order(world: World) -> None:
    first, last = world.rows[0], world.rows[3]
    world.rows[0], world.rows[3] = last | {"image": first["image"]}, first | {"image": last["image"]}
    world.write_rows()


def _pixel(world: World) -> None:
    path = world.data / "pictures" / "3.png"  # of the last item, behind the images that are probed first
    image = Image.open(path).convert("RGB")
    image.putpixel((3, 3), (3, 0, 1))
    image.save(path)


def _weight(world: World) -> None:
    save_file({"weight": np.array([0, 0, 1], np.float32)}, world.model / "model.safetensors")


CHANGES = {
    "chat template in a file": (_text("chat_template.jinja", "{{ messages[0] }}"), "chat template"),
    "chat template in its JSON": (_in_json("tokenizer_config.json", chat_template="{{ m }}"), "chat template"),
    "another named chat template": (
        lambda w: (w.model / "chat_template.json").write_text('{"chat_template": ""}', encoding="utf-8") and None,
        "chat template",
    ),
    "tokenizer.json": (_in_json("tokenizer.json", version="2"), "tokenizer"),
    "tokenizer_config.json": (_in_json("tokenizer_config.json", add_bos_token=True), "tokenizer"),
    "vocab.json": (_in_json("vocab.json", b=1), "tokenizer"),
    "merges.txt": (_text("merges.txt", "b a\n"), "tokenizer"),
    "special tokens that are new": (_text("special_tokens_map.json", "{}"), "tokenizer"),
    "config.json": (_in_json("config.json", rope_theta=1e6), "config.json"),
    "generation_config.json": (_in_json("generation_config.json", eos_token_id=2), "generation_config.json"),
    "no generation_config.json": (lambda w: (w.model / "generation_config.json").unlink(), "generation_config.json"),
    "image processor": (_in_json("preprocessor_config.json", min_pixels=8), "image processor"),
    "weights": (_weight, "weights"),
    "a question": (_row(3, question="4 + 4?"), "items of pictured_sums"),
    "a gold": (_row(3, answer="7"), "items of pictured_sums"),
    "the order": (_order, "items of pictured_sums"),
    "one pixel": (_pixel, "pictures of pictured_sums"),
}  # fmt: skip
"""What is changed, and how the refusal names it."""


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_a_changed_input_is_another_run(world, engine, change, named):
    """Interrupted halfway, or finished: with ``--out`` the command refuses, without it starts anew."""
    engine.stops_after = 2
    for out in (world.out, None):
        with pytest.raises(EngineError):
            world.run(out)
    engine.stops_after = None
    (half,) = (world.out.parent / "results" / "runs").iterdir()
    finished = world.run(world.out.parent / "finished")
    before = {folder: _files(folder) for folder in (world.out, half, finished)}
    change(world)
    for folder in (world.out, finished):
        with pytest.raises(UserError) as refused:
            world.run(folder)
        told = str(refused.value).split("these are not the same now: ")[1].split(". Nothing was touched")[0].split("; ")
        assert told[-1] == named and not {name for _, name in CHANGES.values()} & set(told[:-1])
    engine.asked.clear()
    anew = world.run(None)
    assert anew not in (world.out, half) and len(engine.asked) == 4  # nothing of the earlier half is taken
    assert before == {folder: _files(folder) for folder in before}


def test_nothing_changed_goes_on(world, engine):
    """The control of the above: the same command, and a copy of everything elsewhere, continue."""
    engine.stops_after = 2
    with pytest.raises(EngineError):
        world.run(world.out)
    engine.stops_after = None
    engine.asked.clear()
    moved = shutil.copytree(world.model, world.model.parent / "elsewhere" / "model")
    world.model = moved
    run = records.read_run(world.run(world.out))
    assert len(engine.asked) == 2 and run.status == "finished" and run.benchmarks[BENCHMARK.name].asked == 4
    engine.asked.clear()
    world.run(world.out)
    assert engine.asked == []
    assert set(run.identity["parts"]) == {
        "weights", "config.json", "generation_config.json", "tokenizer", "chat template", "image processor",
        "items of pictured_sums", "pictures of pictured_sums",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"overrides": Overrides(system_prompt="Answer in one word.")}, "system_prompt: None and Answer in one word."),
        ({"overrides": Overrides(temperature=0.5)}, "temperature: 0.0 and 0.5"),
        ({"chat_template": "{{ messages }}!"}, "settings chat_template: None and {{ messages }}!"),
        ({"limit": 3}, "limit: None and 3"),
        ({"label": "yours"}, "run_id: mine and yours"),
    ],
)
def test_prompts_and_settings_are_named(world, engine, changes, named):
    """The text of a system prompt or of a template file is compared, wherever it was read from."""
    engine.stops_after = 2
    with pytest.raises(EngineError):
        world.run(world.out)
    with pytest.raises(UserError) as refused:
        world.run(world.out, **changes)
    assert named in str(refused.value)


def test_shards_of_other_inputs_are_not_one_run(world):
    shards = [world.run(world.out, shard=Shard(0, 2))]
    _row(3, answer="7")(world)  # of the other shard: the identity is that of the whole
    with pytest.raises(UserError, match="not the same now: items of pictured_sums"):
        world.run(world.out, shard=Shard(0, 2))
    shards.append(world.run(world.out, shard=Shard(1, 2)))
    with pytest.raises(UserError, match="they differ in items of pictured_sums"):
        merge(world.out)
    _row(3, answer="6")(world)
    shutil.rmtree(shards[1])
    world.run(world.out, shard=Shard(1, 2))
    _pixel(world)
    merge(world.out)  # of what was asked, whatever lies there now
    with pytest.raises(UserError, match="not the same now: pictures of pictured_sums"):
        world.run(world.out)
    assert all(row["reproduced"] for row in verify(world.out).values())


def test_of_a_served_model_items_are_known_and_the_server(world, monkeypatch):
    """Template, tokenizer and weights are the server's: nothing tells of them. Its version and context it tells."""
    description = {"name": "openai", "version": "1", "max_model_len": 64, "owned_by": "vllm", "dtype": None}

    class Served(runner.EngineProcess):
        def __init__(self, settings, log):
            super().__init__("openai", settings, log)
            self.description = dict(description)

    monkeypatch.setattr(runner, "OpenAIEngine", Served)
    served = dict(engine="openai", base_url="http://127.0.0.1:1/v1")
    Served.stops_after = 2
    with pytest.raises(EngineError):
        world.run(world.out, **served)
    Served.stops_after = None
    parts = records.read_run(world.out).identity["parts"]
    assert set(parts) == {"items of pictured_sums", "pictures of pictured_sums"}
    before = _files(world.out)["samples/pictured_sums.jsonl"]
    for name, other in (("version", "2"), ("max_model_len", 32), ("owned_by", "someone")):
        with monkeypatch.context() as patch:
            patch.setitem(description, name, other)
            with pytest.raises(UserError, match=f"another server .*{name}"):
                world.run(world.out, **served)
    assert _files(world.out)["samples/pictured_sums.jsonl"] == before
    _row(3, answer="7")(world)
    with pytest.raises(UserError, match="not the same now: items of pictured_sums"):
        world.run(world.out, **served)
    _row(3, answer="6")(world)
    assert records.read_run(world.run(world.out, **served)).status == "finished"
