"""Training recipes with images at smoke scale: GPG, SFT, resumption, pixel bounds, bad images."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eval_harness import records
from eval_harness.errors import UserError
from eval_harness.images import ImageError
from gpg_repro import train as train_module
from gpg_repro.datasets import TrainingSet, get_training_set
from gpg_repro.recipe import load_recipe
from gpg_repro.train import _Recorder, base_model, processor_of, train, training_rows
from gpg_repro.trainer import RestoredWeights


@pytest.fixture
def smoke(base_of):
    """Loads a recipe at smoke scale; its base is there."""

    def load(name: str, *overrides: str):
        recipe = load_recipe(name, overrides, scale="smoke")
        base_of(recipe.setup.base)
        return recipe

    return load


def weights(run: Path) -> dict:
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.mark.full("trains a recipe with images")
def test_an_interrupted_run_with_images_ends_with_the_same_weights(smoke, tmp_path, monkeypatch):
    recipe = smoke("table8_gpg_r2", "max_draws=2")
    whole = train(recipe, root=tmp_path / "whole", progress=False, log_to="none")
    saved = _Recorder.on_save

    def interrupt(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Recorder, "on_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, root=tmp_path / "cut", progress=False, log_to="none")
    cut = train(recipe, root=tmp_path / "cut", progress=False, log_to="none")
    expected, got = weights(whole), weights(cut)
    assert all((expected[key] == got[key]).all() for key in expected)
    columns = ["step", "reward", "loss", "num_draws", "prompts_consumed"]
    assert records.steps_frame(cut)[columns].equals(records.steps_frame(whole)[columns])


@pytest.mark.full("trains a recipe with images")
@pytest.mark.parametrize("name", ["table8_grpo", "table8_sft"])
def test_the_other_trainers_resume_from_their_weights_too(smoke, name, tmp_path, monkeypatch):
    """transformers' Trainer alone starts such a model over: see RestoredWeights."""
    recipe = smoke(name, "learning_rate=1e-3")
    loaded = []
    restore = RestoredWeights._load_from_checkpoint

    def spy(self, checkpoint, model=None):
        restore(self, checkpoint, model)
        saved = type(self.model).from_pretrained(checkpoint).state_dict()
        loaded.append(all(torch.equal(value, self.model.state_dict()[key]) for key, value in saved.items()))

    saved = _Recorder.on_save

    def interrupt(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Recorder, "on_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, root=tmp_path, progress=False, log_to="none")
    monkeypatch.setattr(RestoredWeights, "_load_from_checkpoint", spy)
    assert records.read_run(train(recipe, root=tmp_path, progress=False, log_to="none")).num_steps == 2
    assert loaded == [True]


@pytest.mark.full("trains a recipe with images")
def test_supervised_rows_learn_from_demonstrations(smoke, tmp_path):
    recipe = smoke("table6_pets37_sft", "max_steps=3", "learning_rate=1e-3")
    run = train(recipe, root=tmp_path, progress=False, log_to="none")
    steps = records.steps_frame(run)
    assert steps["loss"].iloc[-1] < steps["loss"].iloc[0]
    assert records.read_run(run).environment["prompts_used"] == 32
    base = load_file(Path(base_model(recipe, progress=False)) / "model.safetensors")
    got = weights(run)
    assert base.keys() == got.keys() and any((base[key] != got[key]).any() for key in base if "visual" in key)


def test_sets_without_demonstrations_are_refused(monkeypatch):
    recipe = load_recipe("table6_pets37_sft", scale="smoke")
    found = get_training_set("tiny_critters_4shot")
    bare = TrainingSet("bare", lambda num, seed: [{**r, "demonstration": ""} for r in found.source(num, seed)])
    rows = [{k: v for k, v in row.items() if k != "demonstration"} for row in bare.rows(None, 4, 0)]
    monkeypatch.setattr(TrainingSet, "rows", lambda *args, **kwargs: rows)
    with pytest.raises(UserError, match="tiny_critters_4shot holds no demonstrations"):
        training_rows(recipe, "unused")


@pytest.mark.full("needs a vision base")
def test_prompts_are_measured_with_their_image(smoke, monkeypatch):
    recipe = smoke("table5_gpg_r2", "num_prompts=4", "max_prompt_length=30")
    base = base_model(recipe, progress=False)
    with pytest.raises(UserError, match="no prompt is left.*'prompts_too_long': 4"):
        training_rows(recipe, base)
    _, counts = training_rows(recipe.model_copy(update={"setup": recipe.setup.model_copy(
        update={"training": recipe.setup.training.model_copy(update={"max_prompt_length": 200})})}), base)  # fmt: skip
    assert counts["prompts_used"] == 4
    processor = processor_of(recipe, base)
    prompt, image = [{"role": "user", "content": "How many?"}], Image.new("RGB", (224, 140))
    whole = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    expected = len(processor(text=[whole], images=[image])["input_ids"][0])
    assert train_module._num_tokens_seen(processor, prompt, image) == expected


@pytest.mark.full("needs a vision base")
def test_pixel_bounds_and_prompt_form_reach_the_processor(smoke):
    recipe = smoke("table5_gpg_r2", "max_pixels=3136", "prompt_form=concatenate")
    processor = processor_of(recipe, base_model(recipe, progress=False))
    image = Image.new("RGB", (112, 112))
    content = [{"type": "image"}, {"type": "text", "text": "as it stands"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|vision_start|><|image_pad|><|vision_end|>as it stands"
    ids = processor(text=[text], images=[image])["input_ids"][0]
    assert len(ids) == 4 + 2 + len(processor.tokenizer("as it stands")["input_ids"])


def test_an_unreadable_training_image_stops_the_run_before_it_starts(monkeypatch):
    recipe = load_recipe("table5_gpg_r2", scale="smoke")

    def broken():
        raise ImageError("7.png: damaged or cut off")

    row = {"prompt": [{"role": "user", "content": "?"}], "solution": "<answer>1</answer>"}
    rows = [{**row, "image": Image.new("RGB", (56, 56))}, {**row, "image": broken}]
    monkeypatch.setattr(TrainingSet, "rows", lambda *args, **kwargs: rows)
    with pytest.raises(UserError, match="training image 7.png: damaged.*fetch it again"):
        training_rows(recipe, "unused")


@pytest.mark.parametrize("launch", processes.LAUNCHERS)
def test_two_processes_train_on_pictures_with_resampling(launch, smoke, tmp_path):
    """The released loop (R2, threshold 0.4) as a recipe on two processes; a hang ends in the time limit."""
    smoke("table6_cars196_gpg_r2")
    command = ["-m", "gpg_repro", "train", "table6_cars196_gpg_r2", "scale=smoke", "max_draws=3"]
    done = launch(2, *command, "--root", str(tmp_path), folder=tmp_path / "printed", grades=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = tmp_path.glob("train-*")
    assert records.read_run(folder).environment["num_processes"] == 2
    assert len(records.steps_frame(folder)) == 2
