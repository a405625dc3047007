"""Scripted training: rollouts, rewards and a model of one layer for tests that need every trainer to see one batch.

The first token of a completion is its reward, the rest is seeded by the prompt and the place in the group, so every
layout and every trainer sees the same batch.
"""

import os
import random

import torch

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback, set_seed
from trl import GRPOConfig

from gpg_repro.packed_attention import attention_for
from gpg_repro.trainer import GPGConfig, GPGTrainer, GRPOBaselineConfig, GRPOBaselineTrainer

NUM_GENERATIONS = 4
UNSCORED = 9  # the completion's first token when the reward function answers None

WORDS = ["<pad>", "<eos>", *(str(digit) for digit in range(10)), *"abcdefghij"]
PAD, EOS, DIGIT_0, LETTER_A = 0, 1, 2, 12


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model(seed: int = 0) -> Qwen2ForCausalLM:
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return Qwen2ForCausalLM(config)


def prompt_of(group: int) -> str:
    """ "a", "a b", …: prompts of different lengths; from the tenth group on, the tens come first ("2 a b")."""
    tens = [str(group // 10)] if group >= 10 else []
    return " ".join(tens + WORDS[LETTER_A : LETTER_A + group % 10 + 1])


def group_of(prompt: str) -> int:
    words = prompt.split()
    return 10 * int(words[0]) + len(words) - 2 if words[0].isdigit() else len(words) - 1


def completion_of(group: int, place: int, reward: int) -> list[int]:
    generator = random.Random(1000 * group + place)
    letters = [generator.randrange(LETTER_A, len(WORDS)) for _ in range(generator.randrange(1, 7))]
    return [DIGIT_0 + reward, *letters, EOS]


def scripted_rollout(rewards):
    def rollout(prompts, trainer):
        tokenizer, start = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        completion_ids = []
        for row, prompt in enumerate(prompts, start=start):
            group, place = group_of(prompt), row % trainer.num_generations
            completion_ids.append(completion_of(group, place, rewards[group][place]))
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    return rollout


def accuracy_reward(completion_ids, **kwargs):
    digits = [ids[0] - DIGIT_0 for ids in completion_ids]
    return [None if digit == UNSCORED else float(digit) for digit in digits]


def letter_accuracy(completion_ids, **kwargs):
    return [float(sum(ids) % 2) for ids in completion_ids]


def exact_log_probs(model, batch: dict) -> torch.Tensor:
    """What `gpg_repro.packed_attention.log_probs` returns, from logits: the fused head computes in float32."""
    inputs = {key: value for key, value in batch["inputs"].items() if key not in ("labels", "shift_labels")}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)
    logits = model(**inputs, use_cache=False).logits
    if "layout" in batch:
        labels = batch["inputs"]["shift_labels"]
    else:
        logits, labels = logits[:, :-1], batch["inputs"]["labels"][:, 1:]
    logps = logits.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(2)).flatten()
    return logps[batch["places"]]


class Float64Trainer(GPGTrainer):
    """Log-probabilities from the logits: TRL's fused head computes in float32."""

    def _log_probs(self, model, batch):
        with attention_for(self.accelerator.unwrap_model(model), batch):
            logps = exact_log_probs(model, batch)
        return logps, torch.zeros_like(logps)


QUIET = {
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
}
"""Settings of every short run on a CPU."""


class GradientRecorder(TrainerCallback):
    """Keeps a copy of the gradients of every optimiser step, by parameter name."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = model.module.named_parameters() if hasattr(model, "module") else model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def train(
    output_dir,
    trainer_class=GPGTrainer,
    rewards=((1, 1, 0, 0),),
    layout=(4, 1),
    reward_funcs=accuracy_reward,
    scripted=True,
    rollout=None,
    resume=None,
    model=None,
    callbacks=(),
    **settings,
):
    """One short run; returns the trainer and the recorded gradients. `settings` go to the trainer's config class."""
    ours = {GPGTrainer: GPGConfig, GRPOBaselineTrainer: GRPOBaselineConfig}
    config_class = next((made for kind, made in ours.items() if issubclass(trainer_class, kind)), GRPOConfig)
    settings = {
        "max_steps": 1,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": 8,
        "shuffle_dataset": False,
        **QUIET,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": layout[0],
        "gradient_accumulation_steps": layout[1],
    } | settings
    recorder = GradientRecorder()
    trainer = trainer_class(
        model=model or make_model(),
        reward_funcs=reward_funcs,
        args=config_class(output_dir=str(output_dir), **settings),
        train_dataset=Dataset.from_dict({"prompt": [prompt_of(group) for group in range(len(rewards))]}),
        processing_class=make_tokenizer(),
        callbacks=[recorder, *callbacks],
        rollout_func=(rollout or scripted_rollout(rewards)) if scripted else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, recorder.steps
