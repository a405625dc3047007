"""Packed rows: the same log-probabilities and gradients as one by one, whatever they share; float64 and float32, text
and images; what falls back, and how rows are planned into passes. (Several processes, and FSDP: `test_distributed.py`
and `test_vision_training.py`; GPUs: `tests/gpu`.)
"""

from __future__ import annotations

import logging
import math
import pickle
import random
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import scripted
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted import UNSCORED, Float64Trainer, exact_log_probs, make_model, scripted_rollout
from test_distributed import relative_difference
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Qwen2Config, Qwen2ForCausalLM, set_seed
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from trl.experimental.async_grpo.packing import TreeRow
from trl.trainer.utils import add_fused_lm_head

import gpg_repro.packed_attention as packed_attention_module
from gpg_repro.batch import Sizes, collate_completions, distinct_tokens, padded_tokens, plan_passes
from gpg_repro.packed_attention import attention_for, log_probs, refusal
from gpg_repro.packing import Layout, build_trie, clusters, collate_packed, copy_rows
from gpg_repro.tiny.vision_model import build_processor, build_vision_model
from gpg_repro.trainer import SHARING_COST, GPGConfig, GPGTrainer

PAD = 0
# Prompts of several lengths, the shortest a single token; ragged completions, equal ones, and a lone one.
SHAPES = ((5, (3, 4, 1)), (1, (2, 6)), (7, (6,)), (12, (4, 4, 4)), (3, (1, 1)))


@pytest.fixture
def float64(monkeypatch):
    """Norms and rotary embeddings compute in float32 whatever the weights are."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def norm(self, hidden_states):
        return self.weight * hidden_states * torch.rsqrt(hidden_states.square().mean(-1, True) + self.variance_epsilon)

    for norm_class in (
        modeling_qwen2.Qwen2RMSNorm,
        modeling_qwen2_vl.Qwen2VLRMSNorm,
        modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm,
    ):
        monkeypatch.setattr(norm_class, "forward", norm)


def text_model(**settings) -> Qwen2ForCausalLM:
    """Two layers, four heads that share two pairs of keys and values."""
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"vocab_size": 40, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": PAD} | sizes
    return Qwen2ForCausalLM(Qwen2Config(**config | settings))


def text_rows() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for prompt_length, lengths in SHAPES:
        prompt = torch.randint(2, 40, (prompt_length,), generator=generator)
        for length in lengths:
            ids = torch.randint(2, 40, (length,), generator=generator)
            rows.append({"prompt_ids": prompt, "completion_ids": ids, "completion_mask": torch.ones_like(ids)})
    return rows


def vision_rows(dtype: torch.dtype = torch.float32) -> list[dict]:
    """Groups of one or two images of several sizes, and one without any."""
    processor, rows = build_processor(), []
    for group, sizes in enumerate((((56, 56),), ((112, 56), (56, 84)), ((84, 84),), ((112, 112),))):
        images = [
            Image.fromarray(np.random.default_rng(10 * group + i).integers(0, 256, (h, w, 3), dtype=np.uint8))
            for i, (w, h) in enumerate(sizes)
        ]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": f"{'what ' * group}{group}"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = dict(processor(text=[text], images=images, return_tensors="pt"))
        for place in range(3):
            ids = torch.tensor(random.Random(10 * group + place).choices(range(20, 60), k=1 + (group + place) % 4))
            kinds = torch.cat([inputs["mm_token_type_ids"][0], torch.zeros_like(ids)])
            rows.append(
                {
                    "prompt_ids": inputs["input_ids"][0],
                    "completion_ids": ids,
                    "completion_mask": torch.ones_like(ids),
                    "pixel_values": inputs["pixel_values"].to(dtype),
                    "image_grid_thw": inputs["image_grid_thw"],
                    "num_images": len(images),
                    "mm_token_type_ids": kinds,
                }
            )
    return rows


def vision_model(qwen2_5: bool):
    sizes = {"hidden_size": 64, "num_layers": 2, "vision_width": 32, "vision_depth": 2, "initializer_range": 0.2}
    return build_vision_model(build_processor().tokenizer, qwen2_5=qwen2_5, **sizes)


def weights_of(rows: list[dict]) -> torch.Tensor:
    """Any weights will do; 0 beyond a completion's end."""
    mask = collate_completions(rows, PAD)["completion_mask"]
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double) * mask


def gradients(model) -> dict[str, torch.Tensor]:
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return named


def row_by_row(model, rows: list[dict]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Log-probabilities of each row's completion and the gradient of their weighted sum; no padding, no batch."""
    logps, total = [], 0.0
    for row, weights in zip(rows, weights_of(rows), strict=True):
        ids, kept = torch.cat([row["prompt_ids"], row["completion_ids"]]).unsqueeze(0), len(row["completion_ids"])
        images = {key: row[key] for key in ("pixel_values", "image_grid_thw") if key in row}
        if images:
            images["mm_token_type_ids"] = row["mm_token_type_ids"].unsqueeze(0)
        logits = model(input_ids=ids, **images).logits[0, -kept - 1 : -1]
        logps.append(logits.log_softmax(-1).gather(1, ids[0, -kept:].unsqueeze(1)).squeeze(1))
        total = total + (logps[-1] * weights[:kept].to(logps[-1])).sum()
    total.backward()
    return logps, gradients(model)


def packed(
    model, rows: list[dict], log_probs=lambda *args: log_probs(*args)[0], share: bool = True
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same from one packed sequence."""
    batch = collate_packed(rows, model, PAD, share)
    with attention_for(model, batch):
        logps = log_probs(model, batch)
        (logps * weights_of(rows).to(logps)).sum().backward()
    return logps, gradients(model)


CALLS = {"a call for each parent": 0, "small subtrees whole": 4e6}


@pytest.fixture(params=CALLS)
def calls(request, monkeypatch):
    """Both ways to cut attention into SDPA calls, whatever the sizes."""
    monkeypatch.setattr(packed_attention_module, "_CALL_FLOP", CALLS[request.param])


CHECKPOINTING = {"none": None, "re-entrant": {"use_reentrant": True}, "not re-entrant": {"use_reentrant": False}}


def checkpointed(model, how: str):
    if CHECKPOINTING[how] is not None:
        model.train()
        model.gradient_checkpointing_enable(CHECKPOINTING[how])
        model.enable_input_require_grads()  # what re-entrant checkpoints need
    return model


# Exactness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("how", CHECKPOINTING)
def test_text_in_float64(float64, calls, how, share):
    rows = text_rows()
    expected, expected_gradients = row_by_row(text_model().double(), rows)
    logps, actual = packed(checkpointed(text_model().double(), how), rows, exact_log_probs, share)
    for row, values in zip(logps, expected, strict=True):
        assert (row[: len(values)] - values).abs().max() < 1e-12
    assert relative_difference(actual, expected_gradients) < 1e-10


@pytest.mark.parametrize("how", CHECKPOINTING)
@pytest.mark.parametrize("qwen2_5", [False, True], ids=["Qwen2-VL", "Qwen2.5-VL"])
def test_images_in_float64(float64, calls, qwen2_5, how):
    rows = vision_rows(torch.double)
    expected, expected_gradients = row_by_row(vision_model(qwen2_5).double(), rows)
    logps, actual = packed(checkpointed(vision_model(qwen2_5).double(), how), rows, exact_log_probs)
    for row, values in zip(logps, expected, strict=True):
        assert (row[: len(values)] - values).abs().max() < 1e-10
    assert set(actual) == set(expected_gradients)
    assert relative_difference(actual, expected_gradients) < 1e-9


@pytest.mark.parametrize("kind", ["text", "Qwen2-VL", "Qwen2.5-VL"])
def test_float32_with_the_head_that_training_uses(kind):
    rows = text_rows() if kind == "text" else vision_rows()
    model = text_model() if kind == "text" else vision_model(kind == "Qwen2.5-VL")
    expected, expected_gradients = row_by_row(model, rows)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    logps, actual = packed(model, rows)
    for row, values in zip(logps, expected, strict=True):
        assert (row[: len(values)] - values).abs().max() < 5e-6
    assert relative_difference(actual, expected_gradients) < 2e-6


def test_bfloat16_is_as_far_from_float32_as_the_unshared_form():
    rows, model = text_rows(), text_model()
    _, exact = row_by_row(model, rows)
    half = text_model().to(torch.bfloat16)
    errors = []
    for measure in (lambda: row_by_row(half, rows), lambda: packed(half, rows, exact_log_probs)):
        errors.append(relative_difference({k: v.float() for k, v in measure()[1].items()}, exact))
    assert errors[1] < 1.5 * errors[0] < 0.3


def test_a_completion_without_tokens_counts_for_nothing():
    rows, model = text_rows(), text_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    empty = rows[0] | {key: rows[0][key][:0] for key in ("completion_ids", "completion_mask")}
    _, expected = packed(model, rows)
    batch = collate_packed([empty, *rows], model, PAD)
    assert not batch["completion_mask"][0].any()
    with attention_for(model, batch):
        (log_probs(model, batch)[0][1:] * weights_of(rows)).sum().backward()
    assert relative_difference(gradients(model), expected) < 2e-6


def test_copies_of_keys_and_values_are_not_kept_for_the_backward_pass(monkeypatch):
    """Bytes that a forward pass leaves behind, with the copies and without."""
    monkeypatch.setattr(packed_attention_module, "_CALL_FLOP", 0)
    rows, model, left = text_rows(), text_model(), {}
    for kept in (True, False):
        batch = collate_packed(rows, model, PAD)
        batch["layout"].keep_copies = kept
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler,
            attention_for(model, batch),
        ):
            logps = exact_log_probs(model, batch)
        events = profiler.profiler.kineto_results.events()
        left[kept] = sum(event.nbytes() for event in events if event.name() == "[memory]")
        del logps
    copies = sum(len(lengths) * (prompt - 1) + sum(lengths) for prompt, lengths in SHAPES if prompt > 1)
    floats = 2 * 2 * 2 * 8 * copies  # layers, keys and values, their heads, the heads' width
    assert left[True] - left[False] >= 4 * floats


def test_what_offloads_activations_gets_them_all(monkeypatch):
    """Somebody else's hooks on saved tensors are not shut out by those that make copies again."""
    monkeypatch.setattr(packed_attention_module, "_CALL_FLOP", 0)
    rows, model, taken = text_rows(), text_model(), []
    _, expected = packed(model, rows, exact_log_probs)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: taken.append(t.shape) or t.clone(), lambda t: t):
        _, actual = packed(model, rows, exact_log_probs)
    assert relative_difference(actual, expected) == 0
    # Keys of two completions that have a prompt of 12 tokens and their first token in common: 11 + 1 + 3 of each.
    assert torch.Size([2, 2, 15, 8]) in taken


def num_prefixes(rows: list[dict]) -> int:
    """Beginnings of two and more tokens that differ: what has to go through the model, last tokens left out."""
    found, images = set(), clusters(rows)
    for row, values in enumerate(rows):
        ids = torch.cat([values["prompt_ids"], values["completion_ids"]]).tolist()
        if "mm_token_type_ids" in values:
            run = next(number for number, members in enumerate(images) if row in members)
            ids = [(i, run) if kind else i for i, kind in zip(ids, values["mm_token_type_ids"].tolist(), strict=True)]
        found |= {tuple(ids[:length]) for length in range(2, len(ids) + 1)}
    return len(found)


def test_every_prompt_and_picture_goes_through_the_model_once():
    rows, model = vision_rows(), vision_model(False)
    batch = collate_packed(rows, model, PAD)
    prompts = [rows[run[0]] for run in clusters(rows)]
    tokens = sum(len(p["prompt_ids"]) - 1 for p in prompts) + sum(len(row["completion_ids"]) for row in rows)
    # All prompts begin with the same tokens of the template, and some completions with the same token.
    assert batch["inputs"]["input_ids"].shape == (1, num_prefixes(rows)) and num_prefixes(rows) < tokens
    assert len(prompts) == 4
    assert len(batch["inputs"]["pixel_values"]) == sum(len(p["pixel_values"]) for p in prompts)


def test_a_picture_is_never_divided():
    """Prompts that part right behind a common picture: it goes through the vision tower twice, each time whole."""
    row = vision_rows()[0]
    rows = []
    for word in (20, 21):
        prompt, kinds = row["prompt_ids"].clone(), row["mm_token_type_ids"]
        last = int(kinds[: len(prompt)].nonzero()[-1])
        prompt[last + 1] = word
        rows.append(row | {"prompt_ids": prompt})
    model = vision_model(False)
    batch = collate_packed(rows, model, PAD)
    assert len(batch["inputs"]["pixel_values"]) == 2 * len(row["pixel_values"])
    expected, expected_gradients = row_by_row(model, rows)
    logps, actual = packed(model, rows, exact_log_probs)
    for values, wanted in zip(logps, expected, strict=True):
        assert (values[: len(wanted)] - wanted).abs().max() < 5e-6
    assert relative_difference(actual, expected_gradients) < 2e-6


def test_same_words_about_another_picture_are_another_prompt():
    rows = vision_rows()[:3]
    rows[1] = rows[1] | {"pixel_values": rows[1]["pixel_values"] + 1}
    assert clusters(rows) == [[0], [1], [2]]
    rows[1] = rows[0]
    assert clusters(rows) == [[0, 1, 2]]
    wide, tall = (
        {"prompt_ids": torch.ones(3), "image_grid_thw": torch.tensor([grid])} for grid in ([1, 2, 4], [1, 4, 2])
    )
    assert clusters([wide, tall, tall]) == [[0], [1, 2]]


def test_a_group_that_moves_takes_its_pictures_along_once():
    rows = vision_rows()
    copies = copy_rows(rows, "cpu")
    for row, copy in zip(rows, copies, strict=True):
        assert row.keys() == copy.keys()
        assert all(torch.equal(copy[k], v) if isinstance(v, torch.Tensor) else copy[k] == v for k, v in row.items())
        assert copy["pixel_values"].data_ptr() != row["pixel_values"].data_ptr()
    sent, once = (len(pickle.dumps(some)) for some in (copies, [copies[run[0]] for run in clusters(rows)]))
    assert sent < 1.2 * once


def test_attention_is_put_back_after_a_failure():
    model = text_model()
    batch = collate_packed(text_rows(), model, PAD)
    usual = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), attention_for(model, batch):
        assert model.config._attn_implementation != usual
        raise RuntimeError("stop")
    assert model.config._attn_implementation == usual and not hasattr(model.config, "_packed_layout")


# In the trainer -----------------------------------------------------------------------------------------------------

REWARDS = ((1, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 1))


def scripted_row(group: int, place: int, reward: int) -> dict:
    prompt = scripted.make_tokenizer()(scripted.prompt_of(group))["input_ids"]
    return {
        "prompt_ids": torch.tensor(prompt),
        "completion_ids": torch.tensor(scripted.completion_of(group, place, reward)),
    }


def both(tmp_path, trainer_class=GPGTrainer, adapter=None, **settings):
    """A run with sharing on and one with sharing off from the same weights: trainers and gradients."""
    settings = {"rewards": REWARDS, "layout": (20, 1)} | settings
    make_model().save_pretrained(tmp_path / "start")
    runs = {}
    for share in ("on", "off"):
        model = Qwen2ForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.float32)
        set_seed(0)
        model = peft.get_peft_model(model, adapter) if adapter else model
        runs[share] = scripted.train(tmp_path / share, trainer_class, share_prompt=share, model=model, **settings)
    return runs


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


OTHER_LAYOUT = pytest.mark.full("the same in another layout")


@pytest.mark.parametrize(
    "layout", [(5, 4), *(pytest.param(layout, marks=OTHER_LAYOUT) for layout in ((20, 1), (10, 2), (2, 10)))]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip_invalid_groups": False},
        {"normalization": "local"},
        {"normalization": "sequence", "f_norm": "group"},
        {"beta": 0.1},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"temperature": 0.7, "logp_temperature": "one"},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_trained_as_without_sharing(tmp_path, layout, settings):
    runs = both(tmp_path, layout=layout, max_steps=2, **settings)
    on, off = runs["on"], runs["off"]
    assert logged(on[0], "share_prompt") == [1, 1] and logged(off[0], "share_prompt") == [0, 0]
    assert relative_difference(on[1][0], off[1][0]) < 2e-6
    for name in ("loss", "grad_norm", "entropy", "tokens/trained", *(["kl"] if "beta" in settings else [])):
        assert logged(on[0], name) == pytest.approx(logged(off[0], name), rel=2e-5, abs=1e-7), name
    assert logged(on[0], "tokens/forward")[0] < logged(off[0], "tokens/forward")[0]


def test_mixed_precision(tmp_path):
    runs = both(tmp_path, bf16=True)
    exact = both(tmp_path / "exact")["off"][1][0]
    errors = {share: relative_difference(gradients[0], exact) for share, (_, gradients) in runs.items()}
    assert 0 < errors["on"] < 1.5 * errors["off"] < 0.1


def test_the_loss_can_be_asked_for_outside_a_step(tmp_path):
    trainer, _ = scripted.train(tmp_path, rewards=REWARDS, layout=(20, 1), model=make_model(), share_prompt="on")
    trainer.model.train()
    (inputs,) = trainer._sample_step()
    trainer._compute_loss(trainer.model, inputs).backward()
    assert any(p.grad.any() for p in trainer.model.parameters())


def test_groups_from_several_draws(tmp_path):
    rewards = ((0, 1, 1, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 1, 1), (1, 1, 1, 1), (0, 1, 0, 0))
    runs = both(tmp_path, rewards=rewards, layout=(8, 1), beta_th=1.0)
    assert logged(runs["on"][0], "num_draws") == [2]
    assert relative_difference(runs["on"][1][0], runs["off"][1][0]) < 2e-6
    # groups 0 and 3 with their prompts of one and of four tokens
    rows = [scripted_row(g, place, rewards[g][place]) for g in (0, 3) for place in range(4)]
    assert logged(runs["on"][0], "tokens/forward") == [num_prefixes(rows)]
    assert num_prefixes(rows) <= sum(len(row["completion_ids"]) for row in rows) + 0 + 3


def test_groups_that_lost_completions(tmp_path):
    rewards = ((1, UNSCORED, 0, 0), (UNSCORED, 1, 0, UNSCORED), (1, 1, 1, 1), (0, 1, 0, 1), (UNSCORED,) * 4)
    runs = both(tmp_path, rewards=rewards)
    assert relative_difference(runs["on"][1][0], runs["off"][1][0]) < 2e-6


def test_a_step_without_signal(tmp_path):
    runs = both(tmp_path, rewards=((1, 1, 1, 1), (0, 0, 0, 0)), layout=(8, 1))
    assert all(not g.any() for g in runs["on"][1][0].values())
    assert logged(runs["on"][0], "share_prompt") == [0]


def test_reference_model_meets_each_prompt_once(tmp_path):
    counts = {}
    for share, (trainer, _) in both(tmp_path, beta=0.1).items():
        tokens = counts[share] = []

        def count(module, inputs, output, tokens=tokens):
            tokens.append(inputs[0].numel())

        trainer.ref_model.model.embed_tokens.register_forward_hook(count)
        trainer.model.train()
        trainer._generate_and_score_completions(trainer._next_prompts())
    rows = [scripted_row(g, place, reward) for g, group in enumerate(REWARDS) for place, reward in enumerate(group)]
    assert counts["on"] == [num_prefixes(rows)]
    assert counts["off"] == [sum(len(row["prompt_ids"]) + len(row["completion_ids"]) - 1 for row in rows)]


@pytest.mark.parametrize("qwen2_5", [False, True], ids=["Qwen2-VL", "Qwen2.5-VL"])
def test_adapters(tmp_path, qwen2_5):
    """LoRA on the language model of a vision-language model: the gradient of the adapter is the unshared one."""
    rows, found = vision_rows(), []
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    for share in (True, False):
        set_seed(0)
        model = vision_model(qwen2_5)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        model = peft.get_peft_model(model, config)
        assert refusal(model) is None
        found.append((packed if share else row_by_row)(model, rows)[1])
    assert found[0] and all("lora" in name for name in found[0])
    assert relative_difference(*found) < 2e-6


def test_adapter_in_the_trainer(tmp_path):
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    runs = both(tmp_path, adapter=adapter, beta=0.1, max_steps=2)
    assert logged(runs["on"][0], "share_prompt") == [1, 1]
    assert relative_difference(runs["on"][1][1], runs["off"][1][1]) < 1e-5
    assert logged(runs["on"][0], "kl") == pytest.approx(logged(runs["off"][0], "kl"), rel=1e-3, abs=1e-7)


def test_evaluation(tmp_path):
    found = {}
    for share, (trainer, _) in both(tmp_path).items():
        trainer.args.per_device_eval_batch_size = 20
        found[share] = trainer.evaluate(trainer.train_dataset)
    assert found["on"]["eval_loss"] == pytest.approx(found["off"]["eval_loss"], rel=1e-5)
    assert found["on"]["eval_entropy"] == pytest.approx(found["off"]["eval_entropy"], rel=1e-5)


# Twenty steps -------------------------------------------------------------------------------------------------------


def metrics_of(trainer) -> list[dict[str, float]]:
    """What was logged at every step, but for the clock and for what sharing is about."""
    other = ("time", "memory", "runtime", "per_second", "tokens/forward", "share_prompt")
    return [
        {k: v for k, v in entry.items() if not any(word in k for word in other)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def assert_same_run(on, off):
    ours, theirs = metrics_of(on), metrics_of(off)
    assert len(ours) == len(theirs) == 20
    assert sum(logged(on, "share_prompt")) > 15 and not any(logged(off, "share_prompt"))
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.pop("loss") == pytest.approx(b.pop("loss"), rel=1e-5, abs=1e-7)  # added up in float32
        assert a == pytest.approx(b, rel=1e-8, abs=1e-12), f"step {step + 1}"
    for (name, mine), (_, yours) in zip(on.model.named_parameters(), off.model.named_parameters(), strict=True):
        assert torch.allclose(mine, yours, rtol=1e-7, atol=1e-9), name


@pytest.mark.full("trains for many steps")
def test_twenty_steps_of_text(float64, tmp_path):
    """Completions are sampled by the model that is trained; one difference would change all that follow."""
    runs = {}
    for share in ("on", "off"):
        runs[share], _ = scripted.train(
            tmp_path / share,
            Float64Trainer,
            rewards=((0,) * 4,) * 8,  # eight prompts
            layout=(8, 2),
            model=make_model().double(),
            share_prompt=share,
            scripted=False,
            reward_funcs=scripted.letter_accuracy,
            max_steps=20,
            beta_th=0.5,
            gradient_checkpointing=True,
        )
    assert_same_run(runs["on"], runs["off"])


def train_on_images(output_dir, model, processor, share: str, trainer_class=GPGTrainer, **settings) -> GPGTrainer:
    """A run on eight prompts with pictures of two sizes; completions are sampled."""
    pictures = [
        Image.fromarray(np.random.default_rng(g).integers(0, 256, (56 + 28 * (g % 2), 84, 3), dtype=np.uint8))
        for g in range(8)
    ]
    rows = [
        {"prompt": [{"role": "user", "content": f"{'what ' * (g % 3)}{g}"}], "image": picture}
        for g, picture in enumerate(pictures)
    ]
    settings = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
    } | settings
    trainer = trainer_class(
        model=model,
        reward_funcs=lambda completion_ids, **columns: [float(sum(ids) % 2) for ids in completion_ids],
        args=GPGConfig(output_dir=str(output_dir), share_prompt=share, **scripted.QUIET | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )
    trainer.train()
    return trainer


def small_vision_model(processor):
    return build_vision_model(
        processor.tokenizer, hidden_size=32, num_layers=1, vision_width=32, vision_depth=1, initializer_range=0.3
    )


@pytest.mark.full("trains for many steps")
def test_twenty_steps_of_images(float64, tmp_path):
    runs = {}
    for share in ("on", "off"):
        set_seed(0)
        processor = build_processor()
        model = small_vision_model(processor).double()
        runs[share] = train_on_images(tmp_path / share, model, processor, share, Float64Trainer, max_steps=20)
    assert_same_run(runs["on"], runs["off"])


@pytest.mark.full("trains for many steps")
def test_reference_model_with_images(tmp_path):
    """Three steps with a KL term; a reference model that saw other positions or pictures would change it at once."""
    processor = build_processor()
    small_vision_model(processor).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    runs, patches = {}, {}
    for share in ("on", "off"):
        set_seed(0)
        trainer = train_on_images(
            tmp_path / share, str(tmp_path / "start"), processor, share, max_steps=3, beta=0.5, temperature=1.0
        )
        runs[share], seen = trainer, []
        trainer.ref_model.model.visual.patch_embed.register_forward_hook(lambda *call, seen=seen: seen.append(call[1]))
        trainer.model.train()
        trainer._generate_and_score_completions(trainer._next_prompts())
        patches[share] = sum(len(inputs[0]) for inputs in seen)
    assert patches["off"] == 4 * patches["on"] > 0
    for name in ("kl", "loss", "entropy"):
        assert logged(runs["on"], name) == pytest.approx(logged(runs["off"], name), rel=1e-4, abs=1e-6), name
    assert logged(runs["on"], "kl")[-1] > 1e-4


# What falls back ----------------------------------------------------------------------------------------------------


def qwen(**settings):
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"vocab_size": len(scripted.WORDS), "num_key_value_heads": 1, "pad_token_id": PAD, "eos_token_id": 1}
    return Qwen2ForCausalLM(Qwen2Config(**sizes | config | settings))


def patched_attention(forward):
    """A model whose only attention layer is changed: `forward(usual)` replaces it."""
    model = qwen()
    attention = model.model.layers[0].self_attn
    attention.forward = forward(attention.forward)
    return model


def broken():
    """Every token also sees the mean of the whole sequence: what no packed form can know."""

    def forward(usual):
        def mixed(hidden_states, *args, **kwargs):
            return usual(hidden_states + 3 * hidden_states.mean(dim=1, keepdim=True), *args, **kwargs)

        return mixed

    return patched_attention(forward)


def deaf():
    return patched_attention(lambda usual: lambda hidden_states, *args, **kwargs: (hidden_states, None))


def sinks():
    return patched_attention(lambda usual: lambda *args, **kwargs: usual(*args, **kwargs, s_aux=torch.zeros(2)))


def attention_dropout():
    return qwen(attention_dropout=0.1)


def growing_rotation():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return qwen(max_position_embeddings=4, rope_parameters=rope)


def own_attention():
    AttentionInterface.register("tests_own", sdpa_attention_forward)
    model = qwen()
    model.config._attn_implementation = "tests_own"
    return model


def custom_kernels():
    model = qwen()
    model._use_kernels = True
    return model


def adapter_with_dropout():
    return peft.get_peft_model(qwen(), peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1))


def virtual_tokens():
    return peft.get_peft_model(qwen(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (broken, "packed, its log-probabilities differ by"),
        (deaf, "its attention does not go through transformers' attention interface"),
        (sinks, "attention sinks and position biases have no packed form"),
        (attention_dropout, "attention_dropout is 0.1"),
        (growing_rotation, "its rotary embedding (dynamic) depends on the length of the sequence"),
        (own_attention, "its attention is 'tests_own'"),
        (custom_kernels, "custom kernels replace its layers"),
        (adapter_with_dropout, "which would treat all copies of a prompt alike"),
        (virtual_tokens, "its PEFT adapter puts virtual tokens before every prompt"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_that_fall_back(tmp_path, caplog, make, reason):
    """One line says why, and training is the one without sharing."""
    found = []
    for share in ("auto", "off"):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="gpg_repro"):
            set_seed(1)
            trainer, gradients = scripted.train(
                tmp_path / share, rewards=REWARDS, layout=(20, 1), share_prompt=share, model=make(), seed=1
            )
        lines = [r.getMessage() for r in caplog.records if "share_prompt" in r.getMessage()]
        assert [r.levelname for r in caplog.records if "share_prompt" in r.getMessage()] == ["WARNING"] * (
            share != "off"
        )
        assert len(lines) == (share != "off")
        assert all(reason in line for line in lines)
        assert logged(trainer, "share_prompt") == [0]
        found.append(gradients[0])
    assert relative_difference(*found) == 0


def test_what_is_refused_by_its_settings():
    assert refusal(torch.compile(qwen())) == "it is compiled"
    model = qwen()
    model.config.layer_types = ["linear_attention"]
    assert refusal(model) == "some of its layers have linear_attention"
    model = qwen()
    model.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}}
    assert refusal(model) == "its rotary embedding (longrope) depends on the length of the sequence"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_attentions_do_not_fall_back(attention):
    model = qwen()
    model.config._attn_implementation = attention
    assert refusal(model) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"torch_compile": True}, "it is compiled"),
        ({"use_liger_kernel": True}, "Liger kernels replace its layers"),
        ({"neftune_noise_alpha": 5.0}, "NEFTune would add the same noise to all copies of a prompt"),
        ({"tools": True}, "tools may put images into completions"),
        ({"parallel": "cp_enabled"}, "sequences are split over devices"),
        ({"parallel": "sp_enabled"}, "sequences are split over devices"),
    ],
    ids=str,
)
def test_settings_that_fall_back(tmp_path, settings, reason):
    """What the trainer asks before it asks the model; these cannot all be run here."""
    trainer, _ = scripted.train(tmp_path, rewards=REWARDS, layout=(20, 1), model=make_model())
    assert trainer._packing_refused() is None
    if "tools" in settings:
        trainer.tools = [print]
    elif "parallel" in settings:
        flags = {"cp_enabled": False, "sp_enabled": False, settings["parallel"]: True}
        trainer.accelerator.state.parallelism_config = SimpleNamespace(**flags)
    else:
        for name, value in settings.items():
            setattr(trainer.args, name, value)
    try:
        assert trainer._packing_refused() == reason
    finally:
        trainer.accelerator.state.parallelism_config = None


@pytest.mark.parametrize("shared", [0, 1])
def test_auto_shares_where_it_pays(tmp_path, monkeypatch, shared):
    """Four prompts of one to four tokens, four completions each: 18 of 104 tokens are copies."""
    saved, flop_per_token = 3 * (0 + 1 + 2 + 3), 18 * 16 * 32
    seconds = saved * flop_per_token / 1e9 * (0.9 if shared else 1.1)
    monkeypatch.setitem(SHARING_COST, "cpu", (1e9, seconds))

    def rollout(prompts, trainer):
        done = scripted_rollout(((1, 0, 1, 0),) * 4)(prompts, trainer)
        # A first token of their own, so that completions of a group share nothing.
        return done | {"completion_ids": [[2 + n % 4, *[12] * 2, 1] for n, _ in enumerate(done["completion_ids"])]}

    trainer, _ = scripted.train(
        tmp_path,
        rewards=((1, 0, 1, 0),) * 4,
        layout=(16, 1),
        model=make_model(),
        rollout=rollout,
        reward_funcs=lambda completion_ids, **columns: [float(ids[0] % 2) for ids in completion_ids],
        max_completion_length=64,
    )
    assert logged(trainer, "share_prompt") == [shared]
    everything = 4 * (1 + 2 + 3 + 4) - 16 + 16 * 4
    # Prompts "a", "a b", …: the longest one holds the others, and last prompt tokens stand before completions.
    assert logged(trainer, "tokens/forward") == [3 + 16 * 4 if shared else everything]


def test_a_pass_has_no_more_tokens_than_unshared_rows_may_have(tmp_path):
    """One completion per pass, so a group is cut: each of its rows brings the prompt along, in a pass of its own."""
    rewards = ((1, 1, 1, 1),) * 9 + ((1, 0, 0, 0),)
    lengths = [len(scripted.completion_of(9, place, reward)) for place, reward in enumerate(rewards[9])]
    assert lengths == [5, 3, 5, 7]  # 10 + 7 tokens in the longest row: room for 9 + 5 + 3, but not for 9 + 5 + 7
    passes = []
    model = make_model()
    model.model.embed_tokens.register_forward_hook(
        lambda *call: passes.append(call[1][0].numel()) if torch.is_grad_enabled() else None
    )
    trainer, _ = scripted.train(tmp_path, rewards=rewards, layout=(1, 40), model=model, share_prompt="on")
    assert logged(trainer, "tokens/forward") == [sum(passes)] == [3 * 9 + sum(lengths)]
    assert len(passes) == 3 and max(passes) == 9 + 5 + 3


def test_unknown_choice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="share_prompt='yes' is unknown: expected one of 'auto', 'on', 'off'"):
        GPGConfig(output_dir=str(tmp_path), share_prompt="yes", use_cpu=True, bf16=False)


# Plans --------------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw):
    """A full batch of groups on some processes, of which some rows are left out."""
    size, micro, passes = draw(st.integers(2, 8)), draw(st.integers(1, 16)), draw(st.integers(1, 4))
    processes = draw(st.integers(1, 4))
    total = micro * passes * processes
    groups, rows, owners = max(total // size, 1), [], []
    total = groups * size
    if total > micro * passes * processes:
        micro = math.ceil(total / passes / processes)
    for group in range(groups):
        prompt = draw(st.integers(1, 50))
        for place in range(size):
            if draw(st.booleans()):
                rows.append(Sizes(group, prompt, draw(st.integers(0, 30))))
                owners.append((group * size + place) * processes // total)
    return rows, owners, processes, micro, passes


@given(batches(), st.sampled_from([distinct_tokens, padded_tokens]))
def test_plans_hold_every_row_once_within_the_limits(batch, count):
    rows, owners, processes, micro, passes = batch
    if not rows:
        return
    if count is padded_tokens:
        rows = [Sizes(number, row.prompt, row.completion) for number, row in enumerate(rows)]
    limit = micro * max(row.prompt + max(row.completion, 1) for row in rows)
    plan = plan_passes(rows, owners, processes, limit, passes, count)
    assert sorted(n for share in plan.passes for part in share for n in part) == list(range(len(rows)))
    assert len(plan.passes) == processes
    assert len({len(share) for share in plan.passes}) == 1 <= len(plan.passes[0]) <= passes
    tokens = 0
    for process, share in enumerate(plan.passes):
        for part in share:
            assert all(plan.targets[n] == process for n in part)
            assert count([rows[n] for n in part]) <= limit
            runs = [rows[n].group for i, n in enumerate(part) if i == 0 or rows[part[i - 1]].group != rows[n].group]
            assert len(runs) == len(set(runs))  # a prompt's rows are neighbours
            tokens += count([rows[n] for n in part])
    assert tokens == plan.num_tokens


def test_groups_stay_whole_where_they_fit():
    rows = [Sizes(group, 100, 10) for group in range(4) for _ in range(8)]
    owners = [group // 2 for group in range(4) for _ in range(8)]
    plan = plan_passes(rows, owners, 2, 8 * 110, 2)
    assert plan.passes == [[list(range(16))], [list(range(16, 32))]]  # 2 * 179 of 880 tokens: one pass
    assert plan.num_tokens == 4 * (99 + 80)
    assert plan_passes(rows, owners, 2, 200, 2).passes == [
        [list(range(8)), list(range(8, 16))],
        [list(range(16, 24)), list(range(24, 32))],
    ]


def test_passes_are_even():
    rows = [Sizes(group, 100, 10) for group in range(4) for _ in range(4)]
    plan = plan_passes(rows, [0] * 16, 1, 3 * 139, 2)  # three groups would fit
    assert [len(part) for part in plan.passes[0]] == [8, 8]


def test_groups_move_as_one():
    """Rank 0 holds both valid groups: one of them goes to rank 1, not those rows that even out the tokens best."""
    rows = [Sizes(place // 4, 100, length) for place, length in enumerate((10, 10, 10, 10, 1, 1, 30, 30))]
    plan = plan_passes(rows, [0] * 8, 2, 4 * 130, 2)
    assert sorted(plan.passes) == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert plan.num_tokens == 2 * 99 + 102


def test_long_completions_are_dealt_row_by_row():
    """Where the prompt is short, even shares are worth one more prompt."""
    rows = [Sizes(group, 2, 100) for group in range(3) for _ in range(4)]
    plan = plan_passes(rows, [0] * 12, 2, 8 * 102, 2)
    assert [sum(map(len, share)) for share in plan.passes] == [6, 6]


def test_groups_are_cut_where_whole_ones_need_too_many_passes():
    rows = [Sizes(group, 10, 10) for group in range(3) for _ in range(8)]  # a group has 89 tokens
    plan = plan_passes(rows, [0] * 24, 1, 140, 2)
    assert [len(part) for part in plan.passes[0]] == [12, 12]
    assert plan.num_tokens == 4 * 9 + 240


def test_plain_rows_of_like_length_share_a_pass():
    rows = [Sizes(number, 2, length) for number, length in enumerate((8, 1, 7, 1))]
    plan = plan_passes(rows, [0] * 4, 1, 20, 2, padded_tokens)
    assert plan.passes == [[[0, 2], [1, 3]]] and plan.num_tokens == 2 * 10 + 2 * 3


# The trie -----------------------------------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(2, 4), min_size=2, max_size=9)


def trl_row(sequences: list[list[int]]) -> TreeRow:
    tree = TreeRow()
    for ids in sequences:
        mask = torch.tensor([0] + [1] * (len(ids) - 1))
        tree.add({"input_ids": torch.tensor(ids), "completion_mask": mask, "group_id": 0})
    return tree


@given(st.lists(TOKENS, min_size=1, max_size=8))
def test_the_trie_has_the_tokens_of_trls(sequences):
    """TRL's also forwards the last token of every distinct sample, which predicts nothing."""
    segments = build_trie([np.array(ids) for ids in sequences])
    layout, last_tokens = Layout(segments), len({tuple(ids) for ids in sequences})
    assert len(layout) == len(trl_row(sequences).tokens) - last_tokens
    for ids, places in zip(sequences, layout.places(len(sequences)), strict=True):
        assert len(places) == len(ids) - 1 and (np.diff(places) > 0).all()
    # A place stands for one beginning, next token included, and each beginning has one place.
    found = {}
    for ids, places in zip(sequences, layout.places(len(sequences)), strict=True):
        for depth, place in enumerate(places.tolist()):
            assert found.setdefault(place, tuple(ids[: depth + 2])) == tuple(ids[: depth + 2])
    assert len(set(found.values())) == len(found) == len(layout)


def some_rows(sequences: list[list[int]], prompt: int) -> list[dict]:
    rows = []
    for ids in sequences:
        at = min(prompt, len(ids) - 1)
        completion = torch.tensor(ids[at:])
        rows.append(
            {
                "prompt_ids": torch.tensor(ids[:at]),
                "completion_ids": completion,
                "completion_mask": torch.ones_like(completion),
            }
        )
    return rows


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=st.lists(TOKENS, min_size=1, max_size=7),
    prompt=st.integers(1, 3),
    window=st.sampled_from([None, 1, 3]),
    call_flop=st.sampled_from([0, 5e5, 4e6]),
)
def test_whatever_rows_share(float64, sequences, prompt, window, call_flop):
    more = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    rows, model = some_rows(sequences, prompt), text_model(**more).double()
    expected, expected_gradients = row_by_row(model, rows)
    usual, packed_attention_module._CALL_FLOP = packed_attention_module._CALL_FLOP, call_flop
    try:
        logps, actual = packed(model, rows, exact_log_probs)
    finally:
        packed_attention_module._CALL_FLOP = usual
    for row, values in zip(logps, expected, strict=True):
        assert (row[: len(values)] - values).abs().max() < 1e-11
    assert relative_difference(actual, expected_gradients) < 1e-9


def flash_by_hand(query, key, value, cu_queries, cu_keys, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What torch documents of `varlen_attn`: segments apart, aligned at their ends, a window to the left."""
    assert (max_q, max_k) == (cu_queries.diff().max(), cu_keys.diff().max()) and window_size[1] == 0
    assert cu_queries.dtype == cu_keys.dtype == torch.int32 and (enable_gqa or query.size(1) == key.size(1))
    outputs = []
    for (q0, q1), (k0, k1) in zip(cu_queries.unfold(0, 2, 1).tolist(), cu_keys.unfold(0, 2, 1).tolist(), strict=True):
        q, k, v = (t.transpose(0, 1) for t in (query[q0:q1], key[k0:k1], value[k0:k1]))
        k, v = (t.repeat_interleave(q.size(0) // t.size(0), 0) for t in (k, v))
        back = torch.arange(k1 - k0 - (q1 - q0), k1 - k0).unsqueeze(1) - torch.arange(k1 - k0)
        hidden = (back < 0) | (back > window_size[0] if window_size[0] >= 0 else back < 0)
        outputs.append(((q @ k.mT * scale).masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("gqa", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("share", [True, False])
def test_the_flash_kernel_is_given_each_segments_path(float64, monkeypatch, share, window, gqa):
    """On CUDA one call per layer; here the kernel is written out."""
    calls = []

    def kernel(*args, **kwargs):
        calls.append(args)
        return flash_by_hand(*args, **kwargs)

    monkeypatch.setattr(packed_attention_module, "varlen_attn", kernel)
    monkeypatch.setattr(packed_attention_module, "_HAS_GQA", gqa)
    monkeypatch.setattr(packed_attention_module, "_has_kernel", lambda query, value: True)
    more = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    rows = text_rows() + some_rows([[5, 6, 7, 8], [5, 6, 7, 9, 4], [5, 6, 2]], 2)
    model = text_model(**more).double()
    expected, expected_gradients = row_by_row(model, rows)
    logps, actual = packed(model, rows, exact_log_probs, share)
    for row, values in zip(logps, expected, strict=True):
        assert (row[: len(values)] - values).abs().max() < 1e-12
    assert relative_difference(actual, expected_gradients) < 1e-10
    assert len(calls) == 2  # layers


# Alignment ----------------------------------------------------------------------------------------------------------


@given(
    sequences=st.lists(st.lists(st.integers(2, 4), min_size=2, max_size=90), min_size=1, max_size=9),
    repeats=st.integers(1, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    window=st.sampled_from([None, 4]),
    softcap=st.sampled_from([None, 30.0]),
    call_flop=st.sampled_from([0, 1e5, 4e6]),
)
def test_masks_that_reach_a_kernel_are_aligned(sequences, repeats, dtype, window, softcap, call_flop):
    """CUDA kernels read masks in words of 16 bytes; a slice of a larger mask ends in "misaligned address" there."""
    layout = Layout(build_trie([np.array(ids) for ids in sequences]))
    key, value = torch.zeros(2, 1, 2, len(layout), 8, dtype=dtype)
    query = torch.zeros(1, 2 * repeats, len(layout), 8, dtype=dtype)
    masks, usual = [], scaled_dot_product_attention

    def kernel(query, key, value, attn_mask=None, **kwargs):
        if attn_mask is not None:
            masks.append(attn_mask)
            assert attn_mask.shape == (query.size(2), key.size(2))
        return usual(query, key, value, attn_mask=attn_mask, **kwargs)

    module, before = packed_attention_module, packed_attention_module._CALL_FLOP
    module.scaled_dot_product_attention, module._CALL_FLOP = kernel, call_flop
    try:
        layer = SimpleNamespace(config=SimpleNamespace(_packed_layout=layout))
        module._attention(layer, query, key, value, None, sliding_window=window, softcap=softcap)
    finally:
        module.scaled_dot_product_attention, module._CALL_FLOP = usual, before
    for mask in masks:
        assert mask.data_ptr() % 16 == 0 and mask.stride(1) == 1 and mask.stride(0) * mask.element_size() % 16 == 0
        assert mask.dtype == dtype and ((mask == 0) | mask.isneginf()).all() and (mask == 0).any(dim=1).all()
