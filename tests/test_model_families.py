"""Models of many families take packed rows: no list of architectures, but a probe of the loaded model."""

from __future__ import annotations

import peft
import pytest
import scripted
import torch
import transformers
from test_packing import PAD, gradients, text_rows, weights_of
from transformers import set_seed
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from gpg_repro.packed_attention import TOLERANCES, attention_for, difference, log_probs, probe_rows, refusal
from gpg_repro.packing import collate_packed, collate_plain
from gpg_repro.trainer import GPGTrainer

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "max_position_embeddings": 128,
}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
SOFT = SLIDING | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Gemma": {},
    "Gemma2": SOFT,
    "Gemma3": SLIDING | {"query_pre_attn_scalar": 8},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Phi3": {},
    "Olmo2": {},
    "Granite": {"attention_multiplier": 0.35, "logits_scaling": 2.0},
    "Cohere2": SLIDING,
    "StableLm": {},
    "Starcoder2": {"sliding_window": 6},
    "Glm4": {},
    "GPTNeoX": {},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "OPT": {"dropout": 0.0, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
MORE = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"), "GPT2": ("GPT2Config", "GPT2LMHeadModel")}


def bare_model_of(family: str) -> transformers.PreTrainedModel:
    config, model = MORE.get(family, (f"{family}Config", f"{family}ForCausalLM"))
    set_seed(0)
    model = getattr(transformers, model)(getattr(transformers, config)(**SMALL | FAMILIES[family]))
    if family == "GPTNeoX":  # no initializer_range reaches its query-key-value weights
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return model


def model_of(family: str) -> transformers.PreTrainedModel:
    model = bare_model_of(family)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model.eval()


def measured(model, batches) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of all completion tokens end to end, and the gradient of a weighted sum of them."""
    logps = []
    for batch, weights in batches:
        with attention_for(model, batch):
            values = log_probs(model, batch)[0]
            mask = batch["completion_mask"].bool()
            logps.append(values[mask].detach())
            (values[mask] * weights[:, : mask.size(1)][mask].to(values)).sum().backward()
    return torch.cat(logps), gradients(model)


@pytest.mark.parametrize(
    ("family", "attention"), [*((family, "sdpa") for family in FAMILIES), ("Gemma2", "eager"), ("Qwen3", "eager")]
)
def test_packed_rows_are_rows_one_by_one(family, attention):
    rows, model = text_rows(), model_of(family)
    model.set_attn_implementation(attention)
    assert refusal(model) is None
    assert difference(model, model, probe_rows(48, [PAD, 1], "cpu"), PAD) is None
    weights = weights_of(rows)
    batch = collate_packed(rows, model, PAD)
    together, actual = measured(model, [(batch, weights)])
    assert batch["layout"].num_calls == 2
    alone, expected = measured(model, [(collate_plain([row], PAD), weights[n : n + 1]) for n, row in enumerate(rows)])
    assert (together - alone).abs().max() < 2e-5
    assert actual.keys() == expected.keys()
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert torch.cat([(actual[k] - expected[k]).flatten() for k in expected]).norm() < 5e-6 * norm
    # What another mask would do is far above the tolerance: tokens that see their neighbours, too.
    with torch.no_grad():
        mixed = log_probs(model, batch)[0]
    assert (mixed[batch["completion_mask"].bool()] - alone).abs().mean() > 10 * TOLERANCES[torch.float32]


# With pictures ------------------------------------------------------------------------------------------------------

IMAGE = 3
TEXT = {key: value for key, value in SMALL.items() if key not in ("bos_token_id", "eos_token_id")}


def qwen3_vl():
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    tokens = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    config = transformers.Qwen3VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **tokens)
    return transformers.Qwen3VLForConditionalGeneration(config)


def llava():
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=16, patch_size=4, projection_dim=32, **vision)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=vision, image_token_id=IMAGE
    )
    return transformers.LlavaForConditionalGeneration(config)


def intern_vl():
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.InternVLVisionConfig(image_size=[16, 16], patch_size=[4, 4], **vision),
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )
    return transformers.InternVLForConditionalGeneration(config)


def gemma3():
    """Tokens of one picture see each other in both directions, which no causal trie can do."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT | FAMILIES["Gemma3"]),
        vision_config=transformers.SiglipVisionConfig(image_size=16, patch_size=4, **vision),
        image_token_id=IMAGE,
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


PICTURES = {qwen3_vl: 4, llava: 16, intern_vl: 4, gemma3: 4}
"""Tokens of a picture, by model."""


def pictured_rows(make) -> list[dict]:
    """Two prompts of one picture each, the second of them with two pictures; three completions of each."""
    generator, rows = torch.Generator().manual_seed(5), []
    for num_images in (1, 2):
        before, between, after = (torch.randint(7, 48, (n,), generator=generator) for n in (3, 2, 4))
        image = torch.full((PICTURES[make],), IMAGE)
        prompt = torch.cat([before, image, *([between, image] if num_images == 2 else []), after])
        if make is qwen3_vl:
            images = {
                "pixel_values": torch.randn(16 * num_images, 3 * 2 * 4 * 4, generator=generator),
                "image_grid_thw": torch.tensor([[1, 4, 4]] * num_images),
            }
        else:
            images = {"pixel_values": torch.randn(num_images, 3, 16, 16, generator=generator)}
        for length in (3, 5, 1):
            ids = torch.randint(7, 48, (length,), generator=generator)
            kinds = (torch.cat([prompt, ids]) == IMAGE).long()
            name = "token_type_ids" if make is gemma3 else "mm_token_type_ids"
            more = {name: kinds} if make in (qwen3_vl, gemma3) else {}
            rows.append(
                {
                    "prompt_ids": prompt,
                    "completion_ids": ids,
                    "completion_mask": torch.ones_like(ids),
                    "num_images": num_images,
                    **images,
                    **more,
                }
            )
    return rows


@pytest.mark.parametrize("make", PICTURES)
def test_pictures_of_other_families(make):
    set_seed(0)
    rows, model = pictured_rows(make), make()
    for name, parameter in model.named_parameters():  # so that a picture makes a difference
        if parameter.dim() > 1 and "language_model" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.eval()
    if make is gemma3:
        assert difference(model, model, rows, PAD).startswith("packed, its log-probabilities differ by")
        return
    assert refusal(model) is None and difference(model, model, rows, PAD) is None
    weights = weights_of(rows)
    batch = collate_packed(rows, model, PAD)
    assert len(batch["inputs"]["pixel_values"]) == sum(len(rows[n]["pixel_values"]) for n in (0, 3))
    together, actual = measured(model, [(batch, weights)])
    plain = [(collate_plain([row], PAD), weights[n : n + 1]) for n, row in enumerate(rows)]
    alone, expected = measured(model, plain)
    assert (together - alone).abs().max() < 2e-5
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert torch.cat([(actual[k] - expected[k]).flatten() for k in expected]).norm() < 1e-5 * norm
    # Another picture is another number.
    other = [row | {"pixel_values": -row["pixel_values"]} for row in rows]
    changed, _ = measured(model, [(collate_packed(other, model, PAD), weights)])
    assert (changed - together).abs().mean() > 1e-3


# In the trainer -----------------------------------------------------------------------------------------------------

REWARDS = ((1, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 1))
SAME = {
    GPGTrainer: {"normalization": "batch", "f_norm": "group", "age": False, "share_prompt": "on"},
    GRPOTrainer: {"loss_type": "dapo", "beta": 0.0, "scale_rewards": "group"},
}


@pytest.mark.full("every family trains with both trainers")
@pytest.mark.parametrize("adapter", [None, "LoRA"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "GPT2"])
def test_two_steps_are_those_of_trl(tmp_path, family, adapter):
    """The same gradients, rows packed here and padded there. (TRL's fused head takes no GPT-2.)"""
    found = {}
    for trainer, same in SAME.items():
        model = bare_model_of(family)
        if adapter:
            set_seed(1)
            targets = ["query_key_value"] if family == "GPTNeoX" else ["qkv_proj"] if family == "Phi3" else ["v_proj"]
            model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        run, found[trainer] = scripted.train(
            tmp_path / trainer.__name__,
            trainer,
            REWARDS,
            (10, 2),
            model=model,
            max_steps=2,
            learning_rate=1e-2,
            optim="sgd",
            router_aux_loss_coef=0.0,  # of tokens without a signal too in TRL; a test of its own
            **same,
        )
        if trainer is GPGTrainer:
            assert run._cannot_pack is None
    for ours, theirs in zip(*found.values(), strict=True):
        assert ours.keys() == theirs.keys()
        norm = torch.cat([g.flatten() for g in theirs.values()]).norm()
        assert norm > 0 and torch.cat([(ours[k] - theirs[k]).flatten() for k in theirs]).norm() < 1e-4 * norm


AUXILIARY = {"router_aux_loss_coef": 0.5, "output_router_logits": False}


@pytest.mark.full("every kind of pass with both trainers")
@pytest.mark.parametrize("adapter", [None, "LoRA"])
@pytest.mark.parametrize("share_prompt", ["on", "off", "padded"])
@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral"])
def test_the_auxiliary_loss_of_experts_is_that_of_trl(tmp_path, family, share_prompt, adapter):
    """The model's own coefficient; every token counts once per row that has it, padding never."""
    found = {}
    kinds = {
        GRPOTrainer: {"loss_type": "dapo", "beta": 0.0, "scale_rewards": "group"},
        GPGTrainer: SAME[GPGTrainer] | {"skip_invalid_groups": False, "share_prompt": share_prompt},
    }
    if share_prompt == "padded":
        kinds[GPGTrainer] |= {"share_prompt": "on"}
    for trainer, settings in kinds.items():
        model = bare_model_of(family)
        vars(model.config).update(AUXILIARY)
        if adapter:
            set_seed(1)
            lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            model = peft.get_peft_model(model, lora)
        if share_prompt == "padded" and trainer is GPGTrainer:
            model.config._attn_implementation = "eager"
            trainer = type("Padded", (GPGTrainer,), {"_packing_refused": lambda self: "a test"})
        run, steps = scripted.train(
            tmp_path / trainer.__name__,
            trainer,
            REWARDS,
            (20, 1),
            model=model,
            max_steps=2,
            learning_rate=1e-2,
            optim="sgd",
            **settings,
        )
        assert run.router_aux_loss_coef == 0.5 and run.aux_loss_enabled
        found[trainer] = steps, [entry["aux_loss"] for entry in run.state.log_history if "aux_loss" in entry]
    (theirs, their_logs), (ours, our_logs) = found.values()
    assert len(our_logs) == 2 and our_logs == pytest.approx(their_logs, rel=1e-4)
    for actual, expected in zip(ours, theirs, strict=True):
        norm = torch.cat([g.flatten() for g in expected.values()]).norm()
        assert norm > 0 and torch.cat([(actual[k] - expected[k]).flatten() for k in expected]).norm() < 1e-4 * norm


ALONE = SAME[GPGTrainer] | {"share_prompt": "off"}


class Auxiliary(GPGTrainer):
    """Keeps the weight and the tokens of every pass."""

    def _compute_loss(self, model, inputs):
        self.kept = [
            *getattr(self, "kept", []),
            (inputs["aux_weight"], inputs["inputs"]["attention_mask"].sum().item()),
        ]
        return super()._compute_loss(model, inputs)


def test_passes_count_by_their_tokens_in_the_auxiliary_loss(tmp_path):
    model = bare_model_of("Qwen3Moe")
    run, steps = scripted.train(tmp_path, Auxiliary, REWARDS, (5, 4), model=model, router_aux_loss_coef=0.5, **ALONE)
    # Three of five groups have a signal: prompts of 1, 4 and 5 tokens, four rows each, and completions of 69.
    weights, uses = (torch.tensor(values) for values in zip(*run.kept, strict=True))
    assert uses.sum() == 4 * (1 + 4 + 5) + 69 and len(set(uses.tolist())) > 1
    assert torch.allclose(weights, uses / 109)
    _, without = scripted.train(
        tmp_path,
        GPGTrainer,
        REWARDS,
        (10, 2),
        model=bare_model_of("Qwen3Moe"),
        router_aux_loss_coef=0.0,
        **SAME[GPGTrainer],
    )
    gates = [name for name in without[0] if name.endswith("mlp.gate.weight")]
    assert gates and all((steps[0][name] - without[0][name]).norm() > 0.1 * without[0][name].norm() for name in gates)


def test_a_hook_that_drops_the_auxiliary_loss_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="Float64Trainer._log_probs left no 'aux_loss' in the batch"):
        scripted.train(
            tmp_path,
            scripted.Float64Trainer,
            REWARDS,
            (20, 1),
            model=bare_model_of("Qwen3Moe"),
            router_aux_loss_coef=0.5,
            **SAME[GPGTrainer],
        )
