"""LoRA adapters: the adapted model is the merged one, its identity is content, what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runs_here
import torch
from engine_here import EngineHere
from safetensors.torch import load_file, save_file

from eval_harness import adapters, records
from eval_harness.adapters import CONFIG, WEIGHTS, check_checkpoint, check_engine, source_of
from eval_harness.engines import EngineProcess, EngineSettings, Request, Sampling
from eval_harness.engines.transformers import TransformersBackend
from eval_harness.errors import UserError
from eval_harness.models import check_model
from eval_harness.runner import evaluate

peft = pytest.importorskip("peft")
QUESTIONS = ("12+3", "what is 5*6?", "(3) - (14)", "7")


@pytest.fixture(scope="module")
def folders(random_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """A base that writes ASCII, a LoRA adapter of rank 6 on every linear module of it, and the two merged; float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("adapters")
    base, tokenizer = root / "base", AutoTokenizer.from_pretrained(random_checkpoint)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(random_checkpoint, dtype=torch.float32)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    with torch.no_grad():  # half a character: vLLM's text of it is another than the tokenizer's
        model.lm_head.weight[[not (text.isascii() and text.isprintable()) for text in texts]] = 0
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=6, lora_alpha=24, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(root / "adapter")
    adapted.merge_and_unload().save_pretrained(root / "merged")
    tokenizer.save_pretrained(root / "merged")
    return {name: root / name for name in ("base", "adapter", "merged")}


@pytest.fixture
def adapter(folders, tmp_path) -> Path:
    """A copy of the adapter, to be changed."""
    return shutil.copytree(folders["adapter"], tmp_path / "mine")


def configure(adapter: Path, **changes) -> None:
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    (adapter / CONFIG).write_text(json.dumps(config | changes), encoding="utf-8")


def requests() -> list[Request]:
    sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=24, samples=1, seed=0)
    return [Request(text, [{"role": "user", "content": text}], sampling) for text in QUESTIONS]


def completed(backend: TransformersBackend) -> dict[str, str]:
    for request in requests():
        backend.add(request)
    results = []
    while backend.has_unfinished():
        results += backend.step()
    return {result.key: result.completions[0].text for result in results}


def settings(model: Path | str, **changes) -> EngineSettings:
    return EngineSettings(str(model), dtype="float32", **changes)


@pytest.fixture(scope="module")
def merged(folders) -> dict[str, str]:
    """What the merged model answers, greedily."""
    return completed(TransformersBackend(settings(folders["merged"])))


# --- The adapted model is the merged one -----------------------------------------------------------------------------


def test_transformers_computes_the_merged_model(folders, merged):
    adapted = TransformersBackend(settings(folders["adapter"]))
    assert completed(adapted) == merged
    plain = TransformersBackend(settings(folders["base"]))
    assert completed(plain) != merged
    whole = TransformersBackend(settings(folders["merged"]))
    ids = torch.randint(3, 80, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got, without = (backend._model(ids).logits for backend in (whole, adapted, plain))
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max() < (without - expected).abs().max()
    assert any("lora_" in name for name, _ in adapted._model.named_parameters())  # beside the weights, not in them


@pytest.mark.full("starts a real vLLM engine")
def test_vllm_computes_the_merged_model(folders, merged, tmp_path):
    pytest.importorskip("vllm")
    adapter = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    base = shutil.move(shutil.copytree(folders["base"], tmp_path / "base"), tmp_path / "elsewhere")
    chosen = settings(adapter, base_model=str(base), max_model_len=256)
    with EngineProcess("vllm", chosen, tmp_path / "engine.log") as process:
        got = {result.key: result.completions[0].text for result in process.generate(requests())}
    assert got == merged


def test_an_evaluation_records_adapter_and_base(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("eval_harness.runner.EngineProcess", EngineHere)
    out = evaluate(
        str(folders["adapter"]), ["tiny_sums"], engine="transformers", limit=2, out=tmp_path / "run", progress=False
    )
    record = records.read_run(out)
    assert record.model["name"] == "adapter" and record.benchmarks["tiny_sums"].scored == 2
    assert record.model["base"] == {k: check_model(str(folders["base"]))[k] for k in ("name", "revision", "weights")}
    assert record.model["adapter"] == {"rank": 6, "modules": 14, "only_peft": []}
    assert str(tmp_path) not in (out / "run.json").read_text(encoding="utf-8")
    moved = shutil.copytree(folders["base"], tmp_path / "moved")
    again = evaluate(  # the same run, so nothing is generated
        str(folders["adapter"]),
        ["tiny_sums"],
        engine="transformers",
        limit=2,
        out=tmp_path / "run",
        progress=False,
        base_model=str(shutil.move(moved, tmp_path / "base")),
    )
    assert records.read_run(again).finished == record.finished


# --- Identity --------------------------------------------------------------------------------------------------------


def test_identity_is_the_content_of_adapter_and_base(folders, adapter, tmp_path):
    identity = check_checkpoint(str(folders["adapter"]))
    assert identity["context"] == 8192 and identity["chat_template"] and not identity["vision"]
    copy = check_checkpoint(str(adapter))
    assert copy["name"] == "mine" and copy["weights"] == identity["weights"]
    elsewhere = shutil.copytree(folders["base"], tmp_path / "elsewhere")
    configure(adapter, base_model_name_or_path="gone", peft_version="0.0")
    assert check_checkpoint(str(adapter), base_model=str(elsewhere))["weights"] == identity["weights"]
    configure(adapter, base_model_name_or_path=str(folders["merged"]))  # same shapes, other weights
    assert check_checkpoint(str(adapter))["weights"] != identity["weights"]
    configure(adapter, base_model_name_or_path=str(folders["base"]), lora_alpha=6)
    assert check_checkpoint(str(adapter))["weights"] != identity["weights"]
    assert check_checkpoint(str(folders["base"])) == check_model(str(folders["base"]))  # models are what they were


def test_a_changed_part_of_adapter_or_base_is_another_run(folders, adapter, tmp_path, monkeypatch):
    engine = runs_here.use(monkeypatch)
    base = shutil.copytree(folders["base"], tmp_path / "base")
    configure(adapter, base_model_name_or_path=str(base))

    def run() -> None:
        evaluate(
            str(adapter), ["tiny_sums"], engine="transformers", limit=2, out=tmp_path / "run", progress=False
        )  # fmt: skip

    def scaled(path: Path) -> None:
        save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})

    def end(path: Path) -> None:
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")

    run()
    asked = len(engine.asked)
    for folder, name, change, named in (
        (adapter, CONFIG, lambda path: configure(path.parent, lora_alpha=6), "adapter_config.json"),
        (adapter, WEIGHTS, scaled, "adapter weights"),
        (base, "model.safetensors", scaled, "base weights"),
        (base, "config.json", end, "config.json"),
        (base, "generation_config.json", end, "generation_config.json"),
        (base, "chat_template.jinja", end, "chat template"),
        (base, "tokenizer.json", end, "tokenizer"),
    ):
        kept = (folder / name).read_bytes()
        change(folder / name)
        with pytest.raises(UserError, match=f"not the same now: (model weights: .*; )?{named}[.]"):
            run()
        (folder / name).write_bytes(kept)
        run()
    for path in (*base.glob("*token*"), *base.glob("chat*")):
        shutil.copy(path, adapter)
    run()  # its own tokenizer, but the same
    end(base / "tokenizer.json")  # not read any more
    run()
    end(adapter / "tokenizer.json")
    with pytest.raises(UserError, match="not the same now: tokenizer[.]"):
        run()
    assert len(engine.asked) == asked


def test_the_adapters_own_tokenizer_is_taken(folders, adapter):
    assert source_of(str(adapter), None).tokenizer == (str(folders["base"]), None)
    for path in folders["base"].glob("*token*"):
        shutil.copy(path, adapter)
    assert source_of(str(adapter), None).tokenizer == (str(adapter), None)
    assert source_of(str(adapter), None).vllm_rank == 8
    assert check_checkpoint(str(adapter))["chat_template"] is False  # its template was left behind


# --- From the hub's cache --------------------------------------------------------------------------------------------


def cached(cache: Path, model: str, content: Path) -> str:
    """Put a folder into a hub cache as the repository's only revision; returns its commit."""
    commit = (model.encode().hex() + "0" * 40)[:40]
    repository = cache / f"models--{model.replace('/', '--')}"
    shutil.copytree(content, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    return commit


def test_an_adapter_on_the_hub_with_its_base_there(folders, adapter, tmp_path, monkeypatch, merged):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    configure(adapter, base_model_name_or_path="someone/base")
    commit = cached(tmp_path / "hub", "someone/adapter", adapter)
    with pytest.raises(UserError, match="cannot be used without its base someone/base"):
        check_checkpoint("someone/adapter")
    of_base = cached(tmp_path / "hub", "someone/base", folders["base"])
    identity = check_checkpoint("someone/adapter")
    assert (identity["name"], identity["revision"]) == ("someone/adapter", commit)
    assert identity["base"] == {"name": "someone/base", "revision": of_base, "weights": None}
    source = source_of("someone/adapter", None)
    assert (source.model, source.rank, source.adapter.name) == ("someone/base", 6, commit)
    assert check_checkpoint("someone/base")["name"] == "someone/base"  # no adapter is looked for beside a model
    (source.adapter / WEIGHTS).unlink()
    with pytest.raises(UserError, match="cannot be fetched"):
        check_checkpoint("someone/adapter")


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_model_name_or_path": "/nowhere/base"},
            "cannot be used without its base .* say where with --base-model",
        ),
        ({"base_model_name_or_path": None}, "names no base model; say which with --base-model"),
        ({"r": 8}, r"says rank 8, the matrices of model\.layers\.0\.mlp\.down_proj have rank 6"),
        ({"peft_type": "PROMPT_TUNING"}, "a learned prompt"),
        ({"peft_type": "PREFIX_TUNING"}, "a learned prompt"),
        ({"peft_type": "IA3"}, "peft_type 'IA3': no LoRA"),
        ({"task_type": "SEQ_CLS"}, "made for task_type 'SEQ_CLS'"),
    ],
)
def test_configurations_that_do_not_fit(changes, message, adapter):
    configure(adapter, **changes)
    with pytest.raises(UserError, match=message):
        check_checkpoint(str(adapter))


def without_side(tensors: dict) -> dict:
    return {key: value for key, value in tensors.items() if "layers.1.mlp.up_proj.lora_B" not in key}


def renamed(tensors: dict) -> dict:
    return {key.replace("layers.1.", "layers.5."): value for key, value in tensors.items()}


def wider(tensors: dict) -> dict:
    key = next(key for key in tensors if key.endswith("q_proj.lora_A.weight"))
    return tensors | {key: torch.zeros(6, 96)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {"weight": torch.zeros(1)}, "holds no LoRA matrices"),
        (without_side, r"lora_A and lora_B of model\.layers\.1\.mlp\.up_proj do not belong together"),
        (renamed, r"changes model\.layers\.5.*the base has no such module"),
        (wider, r"q_proj \(96 -> 64\), the base has 64 -> 64 there"),
    ],
)
def test_weights_that_do_not_fit(change, message, adapter):
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    with pytest.raises(UserError, match=message):
        check_checkpoint(str(adapter))


def test_damaged_or_pickled_weights(adapter):
    (adapter / WEIGHTS).write_bytes(b"half")
    with pytest.raises(UserError, match="damaged or half-written"):
        check_checkpoint(str(adapter))
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="a pickle, which is not loaded"):
        check_checkpoint(str(adapter))


def test_what_an_engine_cannot_compute_with(folders, adapter, monkeypatch):
    configure(adapter, use_dora=True, alpha_pattern={"q_proj": 3})
    identity = check_checkpoint(str(adapter))
    with pytest.raises(UserError, match=r"cannot compute with \(use_dora, alpha_pattern\): use --engine transformers"):
        check_engine(identity, "vllm")
    check_engine(identity, "transformers")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package peft. `pip install 'gpg-paper-companion\[lora\]'`"):
        check_engine(identity, "transformers")
    check_engine(check_model(str(folders["base"])), "transformers")  # a plain model needs no peft
    large = identity | {"adapter": {"rank": 600, "modules": 1, "only_peft": []}}
    with pytest.raises(UserError, match="rank 600"):
        check_engine(large, "vllm")


def test_weights_that_the_configuration_leaves_out(adapter):
    """peft would pass them over in silence: another model than the one that was trained."""
    configure(adapter, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="does not fit the adapter's weights"):
        TransformersBackend(settings(adapter))


def test_an_adapter_is_no_base_to_train_from_or_to_adapt(folders, adapter):
    with pytest.raises(UserError, match="It holds a LoRA adapter"):
        check_model(str(adapter))
    configure(adapter, base_model_name_or_path=str(folders["adapter"]))
    with pytest.raises(UserError, match="is an adapter itself"):
        check_checkpoint(str(adapter))
    with pytest.raises(UserError, match="--base-model goes with a LoRA adapter"):
        check_checkpoint(str(folders["base"]), base_model="other")
    assert adapters.adapter_folder(str(folders["merged"])) is None
