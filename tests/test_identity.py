"""What a run is made from: one input changed, and the same command starts anew or refuses and names what changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runs_here
from PIL import Image
from safetensors.numpy import save_file

from eval_harness import identity, records, released, runner
from eval_harness.benchmarks import Benchmark, DecodingDefaults, all_benchmarks
from eval_harness.checkpoints import get_checkpoint
from eval_harness.engines import EngineError
from eval_harness.errors import UserError
from eval_harness.models import check_model
from eval_harness.runner import Overrides, evaluate, verify
from eval_harness.shards import Shard, merge
from eval_harness.sources import Local
from gpg_repro import plan
from gpg_repro.claims.evidence import _newest
from gpg_repro.evaluate import _measured_before, _wanted

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


# --- Records that were made before ------------------------------------------------------------------------------------


def _as_version_4(folder: Path) -> None:
    """The record as it would have been before records held an identity."""
    raw = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    request = {key: raw["identity"][key] for key in ("model", "engine", "settings", "limit", "benchmarks")}
    del raw["identity"]
    raw |= runner.averages(records.read_run(folder).benchmarks, schema_version=4)
    records.write_json(folder / "run.json", raw | {"schema_version": 4, "fingerprint": identity.fingerprint(request)})


@pytest.mark.parametrize("stops_after", [2, None])
def test_an_earlier_record_is_read_and_not_continued(world, engine, stops_after):
    """Nothing tells whether its template, tokenizer and golds were these, so it is neither resumed nor taken."""
    engine.stops_after = stops_after
    if stops_after:
        with pytest.raises(EngineError):
            world.run(world.out)
        engine.stops_after = None
    else:
        world.run(world.out)
    _as_version_4(world.out)
    assert records.read_run(world.out).schema_version == 4
    before = _files(world.out)
    with pytest.raises(UserError, match="records before version 5 hold no hashes of chat template, tokenizer"):
        world.run(world.out)
    assert _files(world.out) == before
    if not stops_after:
        assert all(row["reproduced"] for row in verify(world.out).values())


# --- Is a run of this model there already? ----------------------------------------------------------------------------


def _model(world: World) -> dict:
    return check_model(str(world.model))


def _data(world: World) -> dict[str, str]:
    return runner.data_parts([BENCHMARK.name], data_root=world.data, image_root=world.data)


def test_a_record_knows_its_model_and_its_items(world):
    run = records.read_run(world.run(world.out))
    assert identity.model_changes(run, _model(world)) == [] == identity.data_changes(run, _data(world))
    _in_json("generation_config.json", eos_token_id=2)(world)
    _text("chat_template.jinja", "other")(world)
    _pixel(world)
    assert identity.model_changes(run, _model(world)) == ["generation_config.json", "chat template"]
    assert identity.data_changes(run, _data(world)) == ["pictures of pictured_sums"]
    _as_version_4(world.out)
    old = records.read_run(world.out)
    assert identity.model_changes(old, _model(world)) == [identity.NOT_KEPT]
    assert identity.data_changes(old, _data(world)) == ["pictures of pictured_sums"]  # its items are known
    _weight(world)
    assert identity.model_changes(old, _model(world)) == ["weights"]
    hub = {"name": "someone/model", "revision": "a" * 40, "weights": None, "files": {}}
    of_hub = run.model_copy(update={"model": dict(hub), "identity": {}})
    assert identity.model_changes(of_hub, hub) == []  # a commit says everything, in records of any version
    assert identity.model_changes(of_hub, hub | {"revision": "b" * 40}) == ["model revision"]


def test_readers_leave_out_what_is_known_to_be_of_another_checkpoint(world, monkeypatch):
    run = records.read_run(world.run(world.out))
    long_after, long_before = (
        run.model_copy(update={"created": f"{year}-01-01T00:00:00+00:00"}) for year in (2099, 2000)
    )
    read = []
    monkeypatch.setattr(identity, "check_model", lambda path: read.append(path) or check_model(path))
    assert identity.changed_since(long_after, world.model) == [] and read == []  # untouched weights are not read
    assert identity.changed_since(long_before, world.model) == [] and read == [str(world.model)]
    assert identity.changed_since(run, world.model / "gone") == []
    _text("chat_template.jinja", "other")(world)
    assert identity.changed_since(long_after, world.model) == ["chat template"] and len(read) == 1
    _as_version_4(world.out)
    old = records.read_run(world.out)
    assert identity.changed_since(old, world.model) == []  # nothing is known, and the record is only read
    _weight(world)
    assert identity.changed_since(old, world.model) == ["weights"]
    assert identity.changed_since(run, world.model) == ["weights", "chat template"]


def test_released_checkpoints_are_measured_anew_on_other_items(world, monkeypatch):
    job = released.Job(get_checkpoint("GD-ML/Open-RS1"))
    hub = {"name": job.checkpoint.id, "revision": job.checkpoint.revision, "weights": None, "files": {}}
    hub |= {"context": 32768, "vision": True, "chat_template": True}
    for module, name in ((released, "check_model"), (runner, "check_checkpoint")):
        monkeypatch.setattr(module, name, lambda *args: dict(hub))
    monkeypatch.setenv("EVAL_IMAGE_ROOT", str(world.data))

    def measured() -> Path:
        return released.evaluate_job(
            job, [BENCHMARK.name], engine="transformers", root=world.out, data_root=world.data, progress=False
        )

    first = measured()
    monkeypatch.setattr(released, "evaluate", lambda *args, **options: None)
    assert measured() == first
    _row(3, answer="7")(world)
    assert measured() is None
    _row(3, answer="6")(world)
    assert measured() == first
    hub["revision"] = "f" * 40
    assert measured() is None


def test_checkpoints_of_a_training_are_measured_anew_when_a_part_changed(world):
    root, run = world.out / "runs", world.out / "runs" / "train-mine"
    world.run(root / "eval-mine-step1-transformers-0a", label="mine-step1")
    wanted = _wanted([BENCHMARK.name], Overrides(), None, world.data)

    def found() -> Path | None:
        return _measured_before(root, run, "mine-step1", _model(world), "transformers", wanted, _data(world))

    assert found() == root / "eval-mine-step1-transformers-0a"
    for name in ("chat template in a file", "tokenizer.json", "config.json", "a gold", "one pixel"):
        kept = _files(world.out.parent)
        CHANGES[name][0](world)
        assert found() is None, name
        for path, data in kept.items():
            (world.out.parent / path).write_bytes(data)
    world.rows[3]["answer"] = "6"
    assert found() is not None


def test_plan_and_claims_leave_out_the_run_of_a_changed_checkpoint(world):
    root = world.out / "runs"
    shutil.copytree(world.model, root / "train-mine" / "checkpoint")
    world.run(root / "eval-mine-transformers", label="mine")
    planner = plan._Planner.__new__(plan._Planner)
    planner.root, planner._warnings = root, []
    assert len(planner._runs("mine", None, None)) == 1
    assert planner._small_runs("mine", [BENCHMARK.name], None) == {BENCHMARK.name}
    assert _newest(root, "mine", [BENCHMARK.name], None) == root / "eval-mine-transformers"
    assert _newest(root, "mine", [BENCHMARK.name], "f" * 40) is None  # of another revision
    (root / "train-mine" / "checkpoint" / "generation_config.json").unlink()
    assert planner._runs("mine", None, None) == [] == list(planner._small_runs("mine", [BENCHMARK.name], None))
    assert _newest(root, "mine", [BENCHMARK.name], None) is None


# --- verify -----------------------------------------------------------------------------------------------------------

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "tiny"


class Remembers(runs_here.GradingHere):
    """Grades here, and every answer once."""

    known: dict[str, object] = {}

    def grade(self, grader: str, answers) -> list:
        for answer in answers:
            if repr((grader, answer)) not in self.known:
                (self.known[repr((grader, answer))],) = super().grade(grader, [answer])
        return [self.known[repr((grader, answer))] for answer in answers]


def _change(file: str, *path: object, to: object) -> Callable[[Path], None]:
    """Set one value of a JSON file."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / file).read_text(encoding="utf-8"))
        place = raw
        for key in path[:-1]:
            place = place[key]
        assert place[path[-1]] != to
        place[path[-1]] = to
        (folder / file).write_text(json.dumps(raw), encoding="utf-8")

    return change


def _change_line(file: str, number: int, **changes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
        lines[number] = json.dumps(json.loads(lines[number]) | changes)
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


def _drop_line(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        lines = (folder / file).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / file).write_text("".join(lines[:-1]), encoding="utf-8")

    return change


def _gold_of_a_wrong_answer(benchmark: str) -> Callable[[Path], None]:
    """Another gold where the answer was wrong and stays wrong, so that no mark tells."""

    def change(folder: Path) -> None:
        samples = records.read_lines(folder / "samples" / f"{benchmark}.jsonl", records.Sample)
        wrong = next(sample.item_id for sample in samples if not sample.correct and not sample.correct_strict)
        items = records.read_lines(folder / "items" / f"{benchmark}.jsonl", records.Item)
        (number,) = (i for i, item in enumerate(items) if item.item_id == wrong)
        _change_line(f"items/{benchmark}.jsonl", number, gold="$-1$")(folder)

    return change


OF_FINGERPRINT = "model, weights, engine, settings, decoding or prompts are not those of the fingerprint"
V1, V2, V3 = "table1_gpg_age/seed0", "table8_gpg_r0/seed0", "table4_gpg_paper/seed0"
SUMS, GROUNDING = ("benchmarks", "tiny_sums"), ("benchmarks", "tiny_grounding")
FORGED = {
    "v1 a gold": (V1, _gold_of_a_wrong_answer("tiny_products"), "golds or contexts"),
    "v2 a context": (V2, _change_line("items/tiny_grounding.jsonl", 0, context={}), "golds or contexts"),
    "v3 a gold": (V3, _gold_of_a_wrong_answer("tiny_products"), "golds or contexts"),
    "v1 an interval": (V1, _change("run.json", *SUMS, "score", "low", to=0.5), "score differs"),
    "v2 an interval": (V2, _change("run.json", *GROUNDING, "score", "high", to=0.6), "score differs"),
    "v2 an interval of a group": (
        V2, _change("run.json", *GROUNDING, "groups", "val", "score", "low", to=0.5), "group val differs"
    ),
    "v3 an interval": (V3, _change("run.json", *SUMS, "score_strict", "low", to=0.5), "strict differs"),
    "v1 the interval of the average": (V1, _change("run.json", "average", "low", to=0.5), "average is not the mean"),
    "v1 weights": (V1, _change("run.json", "model", "weights", to="0" * 32), OF_FINGERPRINT),
    "v3 weights": (V3, _change("run.json", "model", "weights", to="0" * 32), OF_FINGERPRINT),
    "v1 run id": (V1, _change("run.json", "run_id", to="table1_gpg-tiny-seed0-f95a1d1c"), "run_id is not that of its"),
    "v1 run id of a base": ("base/a57e4864/seed0", _change("run.json", "run_id", to="base-tiny-0a0a0a0a"), "run_id is"),
    "v1 settings": (V1, _change("run.json", "settings", "dtype", to="bfloat16"), OF_FINGERPRINT),
    "v2 settings": (V2, _change("run.json", "settings", "limit", to=5), OF_FINGERPRINT),
    "v3 settings": (V3, _change("run.json", "settings", "chat_template", to="none"), OF_FINGERPRINT),
    "v3 decoding": (
        V3, _change("run.json", *SUMS, "decoding", "temperature", to=0.6), OF_FINGERPRINT
    ),
    "v1 a training step is gone": (V1, _drop_line("training/steps.jsonl"), "training: .*steps.jsonl holds 59 lines"),
    "v3 number of training steps": (V3, _change("training/run.json", "num_steps", to=61), "of the 61 steps"),
    "v1 training of another run": (V1, _change("training/run.json", "fingerprint", to="0" * 12), "run_id and"),
}  # fmt: skip
"""Which committed record, what is changed in a copy of it, and what ``verify`` says then."""


@pytest.mark.parametrize(("record", "forge", "message"), FORGED.values(), ids=FORGED)
def test_verify_names_what_was_changed_in_a_committed_record(tmp_path, monkeypatch, record, forge, message):
    monkeypatch.setattr(runner, "GradingPool", Remembers)
    copy = shutil.copytree(REFERENCE / record, tmp_path / "copy")
    report = verify(copy)
    assert all(row["reproduced"] for row in report.values()) and "record" not in report
    forge(copy)
    report = verify(copy)
    problems = [problem for row in report.values() for problem in row["problems"]]
    assert len(problems) == 1 and re.search(message, problems[0]), problems
    assert sum(row["changed"] for row in report.values()) == 0  # the marks alone tell nothing


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("run_id",), "yours", "run_id: mine and yours (identity, record)"),
        (("model", "weights"), "0" * 32, "model weights: "),
        (("engine", "name"), "vllm", "engine: transformers and vllm"),
        (("settings", "dtype"), "bfloat16", "setting dtype: auto and bfloat16"),
        (("settings", "deterministic"), True, "setting deterministic: False and True"),
        (("settings", "limit"), 4, "limit: None and 4"),
        (("benchmarks", BENCHMARK.name, "decoding", "seed"), 1, "pictured_sums decoding seed: 1234 and 1"),
        (("identity", "parts", "tokenizer"), "0" * 32, "the fingerprint is not that of the identity"),
        (("identity",), {}, "it holds no identity"),
        (("fingerprint",), "0" * 12, "the fingerprint is not that of the identity"),
    ],
    ids=str,
)
def test_verify_holds_a_record_against_its_identity(world, path, to, message):
    world.run(world.out)
    assert "record" not in verify(world.out)
    _change("run.json", *path, to=to)(world.out)
    (problem,) = verify(world.out)["record"]["problems"]
    assert problem.startswith(message)


@pytest.mark.parametrize("broken", [{"settings": 5}, {"benchmarks": {BENCHMARK.name: []}}, {"parts": [1]}])
def test_verify_of_an_identity_of_another_shape(world, broken):
    world.run(world.out)
    raw = json.loads((world.out / "run.json").read_text(encoding="utf-8"))
    records.write_json(world.out / "run.json", raw | {"identity": raw["identity"] | broken})
    assert verify(world.out)["record"]["problems"]


def test_verify_knows_the_steps_of_a_new_training(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GradingPool", Remembers)
    copy = shutil.copytree(REFERENCE / V1, tmp_path / "copy")
    steps = copy / "training" / "steps.jsonl"
    _change("training/run.json", "schema_version", to=5)(copy)
    raw = json.loads((copy / "training" / "run.json").read_text(encoding="utf-8"))
    records.write_json(copy / "training" / "run.json", raw | {"steps_hash": records.lines_hash(steps)})
    assert "record" not in verify(copy)
    _change_line("training/steps.jsonl", 3, reward=1.0)(copy)
    (problem,) = verify(copy)["record"]["problems"]
    assert "steps_hash" in problem
