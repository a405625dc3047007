"""GPG training on TRL: `GPGTrainer` and `GPGConfig`, drop-in where `GRPOTrainer` and `GRPOConfig` are used.

The method is in `gpg_repro.objective`, the bookkeeping of draws, rows and micro-batches in `gpg_repro.batch`; TRL
generates, scores and steps. This module sits between them. For every optimiser step it draws completions until enough
groups are valid, gives each completion one weight, and hands only those that carry a gradient to the model. The loss is
the weighted sum of -log pi over the tokens. Because every denominator is inside the weights, micro-batch size, gradient
accumulation, the number of processes and skipping leave the gradient unchanged (`normalization="local"` depends on the
layout, by definition, and on nothing else).

Departures from the paper
 1. The threshold test is the released code's, valid groups >= beta_th * Q; Algorithm 1 wants strictly more.
 2. After `max_draws` draws the batch is taken as it is, with a warning. The paper sets no limit.
 3. A completion without any reward (every reward function returned None) leaves all means, counts and denominators; the
    paper does not meet the case. A group without a scored completion is not counted in B.

Departures from the authors' released code, which `fidelity="r0"`, `"r1"` and `"r2"` otherwise follow
 4. alpha and the batch standard deviation come from the whole generation batch, all accumulation steps included, where
    the code takes each micro-batch by itself. There is one alpha per optimiser step, and one threshold test.
 5. A group is invalid when its rewards are equal in float32, where the code tests its standard deviation; the
    advantages of such a group are exactly zero.
 6. No reference model is loaded unless `beta` is set; `open-rs` loads one to log a KL term it does not use.
 7. easy and hard groups are told from the accuracy reward, where the code looks for a total reward of 1 or 0.
 8. Resampled prompts come from one stream in epoch order and the length of training is counted in optimiser steps; the
    math code uses up its epoch by resampling (the schedule never finishes), the multimodal code repeats the head of
    epoch 0.
 9. R2 of the math code aborts after 20 draws and counts one too few; here as in 2. The multimodal code adds 1e-5 to
    1/alpha; nothing is added here.
10. With `beta`, reference log-probabilities travel with their completions; R2 pairs them with other rows.

Departures from TRL 1.16's GRPOTrainer
11. No probability ratio and no clipping. Settings of TRL that would be ignored or would break the exactness above are
    refused, all of them in one error.
12. The denominators are global. TRL's "grpo" and "bnpo" losses average micro-batch means, and all its losses keep the
    tokens of completions without a reward in the denominator.
13. For `"local"` the micro-batches behind the denominators are those of arrival order, whole groups together as in the
    released code; TRL's "bnpo" shuffles completions over micro-batches first. With one micro-batch per process they are
    the same.
14. Completions of groups without signal get no forward and no backward pass; the others are spread evenly over
    processes. Metrics of the update (entropy, kl) are means over the tokens trained on.
15. `logp_temperature="one"` takes log-probabilities from undivided logits, as the code behind the 1.5B rows does.
16. Prompts come in TRL's order, but from `PromptStream` rather than the dataloader, which only counts steps; a resumed
    run continues with the next draw. (`GRPOBaselineTrainer` resumes in the right order too; TRL's sampler starts over
    with its first permutation.)
17. Passes are packed sequences without padding, and what rows begin with alike goes through the model once where that
    pays (`share_prompt`; `gpg_repro.packing`). TRL, and the authors' code, pad, and send a prompt once per completion.
    The gradient is the same up to rounding.
18. `reward_std` is the mean over groups of the within-group standard deviation, as in the released code; TRL logs the
    standard deviation over all rewards under that name. With several draws, metrics of sampling are the first draw's.
19. A group is valid if a trained token of it has an advantage; rewards tie as the decimals that they stand for. A
    subclass changes advantages in `adjust_advantages` (or in what `_generate_and_score_completions` returns) and the
    order of prompts in `prompt_order`; it may not override what this trainer does not call (`REFUSED_METHODS`).
20. `eval_loss` is the loss of the evaluation set as one batch, alpha included; TRL's is a mean over processes and
    batches, which depends on both.
21. The auxiliary loss of a mixture of experts is that of the tokens trained on. Passes count by their tokens, where TRL
    takes the mean of micro-batches; `eval_loss` is without it.

Collectives beside TRL's: one gather of lengths per draw, one reduction of logged sums per step (or evaluation batch),
one gather of row sums per evaluation batch, and, when processes hold unequal numbers of rows to train on, one exchange
of the surplus rows.
"""

import copy
import itertools
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import has_length
from trl import GRPOConfig, GRPOTrainer, SFTTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head, get_config_model_id

from eval_harness.models import ONLY_WEIGHTS
from gpg_repro.batch import (
    MODEL_INPUT_KEYS,
    SEQUENCE_KEYS,
    Plan,
    PromptStream,
    Row,
    Sizes,
    StreamedPrompts,
    copy_row,
    distinct_tokens,
    padded_tokens,
    plan_passes,
    reached,
    select_groups,
    select_groups_released,
    split_rows,
    total_rewards,
)
from gpg_repro.objective import (
    F_NORMS,
    NORMALIZATIONS,
    age_alpha,
    completion_weights,
    group_advantages,
    kl_k3,
    valid_groups,
)
from gpg_repro.packed_attention import attention_for, difference, probe_rows, refusal, token_scores
from gpg_repro.packing import base_model, collate_packed, collate_plain, copy_rows

logger = logging.getLogger(__name__)

LOGP_TEMPERATURES = ("sampling", "one")
SHARE_PROMPT = ("auto", "on", "off")

# What each released generation of the method does where the user leaves the choice open (None).
FIDELITY_DEFAULTS = {
    "paper": {"f_norm": "none", "age": True, "beta_th": 0.0, "normalization": "group", "logp_temperature": "sampling"},
    "r0": {"f_norm": "group", "age": False, "beta_th": 0.0, "normalization": "local", "logp_temperature": "one"},
    "r1": {"f_norm": "none", "age": True, "beta_th": 0.0, "normalization": "local", "logp_temperature": "sampling"},
    "r2": {"f_norm": "none", "age": True, "beta_th": 0.5, "normalization": "local", "logp_temperature": "sampling"},
}
SHARING_COST = {"cpu": (3e10, 2e-4), "cuda": (2.9e14, 2.2e-4)}
"""By device: FLOP per second that an update reaches, and seconds that sharing adds to a layer in one pass.

cuda: 0.37 of 783 TFLOP/s, and six more kernel launches (four gathers and their sums) of 36 us each, as measured on an
H200 (docs/efficiency.md). cpu: one thread of the machine of bench/results, and two more SDPA calls.
"""
R1_MIN_INVERSE_ALPHA = 0.05  # R1 divides by max(1 - M/B, 0.05): alpha is at most 20

# TRL settings that GPG's loss would ignore or that break its exactness: the only value accepted, and the reason.
REQUIRED_SETTINGS: dict[str, tuple[Any, str]] = {
    "loss_type": ("gpg", "the loss is GPG's; choose its denominators with normalization"),
    "num_iterations": (1, "GPG has no probability ratio, so completions serve one update"),
    "vllm_importance_sampling_correction": (False, "GPG has no probability ratio to correct"),
    "importance_sampling_level": ("token", "GPG has no probability ratio"),
    "epsilon": (0.2, "GPG does not clip"),
    "epsilon_high": (None, "GPG does not clip"),
    "delta": (None, "GPG does not clip"),
    "off_policy_mask_threshold": (None, "GPG has no off-policy mask"),
    "multi_objective_aggregation": ("sum_then_normalize", "advantages come from the weighted sum of rewards (Eq. 6)"),
    "top_entropy_quantile": (1.0, "GPG trains on every token"),
    "entropy_coef": (0.0, "GPG has no entropy bonus"),
    "use_adaptive_entropy": (False, "GPG has no entropy bonus"),
    "use_bias_correction_kl": (False, "GPG has no probability ratio to correct the KL term by"),
    "ignore_data_skip": (False, "a resumed run goes on with the next prompts of its stream"),
    "remove_unused_columns": (False, "reward functions get every column of the training set"),
}


# Families of TRL settings of which GPG uses none: their defaults alone are accepted.
UNUSED_FAMILIES: dict[str, str] = {
    "sapo_": "GPG has no probability ratio",
    "vespo_": "GPG has no probability ratio",
    "vllm_importance_sampling_": "GPG has no probability ratio to correct",
    "entropy_": "GPG has no entropy bonus",
}

# Methods of TRL's GRPOTrainer that users override and GPGTrainer does not call, and the way out.
REFUSED_METHODS: dict[str, str] = {
    "_get_train_sampler": "prompts come from a stream that a resumed run continues; override prompt_order(epoch)",
    "get_train_dataloader": "prompts come from a stream that a resumed run continues; override prompt_order(epoch)",
    "_prepare_inputs": "a step is sampled as a whole; override _generate_and_score_completions",
    "_get_per_token_logps_and_entropies": "updates run on packed rows; override _log_probs(model, batch)",
    "get_off_policy_mask": "GPG has no off-policy mask; override adjust_advantages",
    "get_gamma_weights": "GPG has no such weights; override adjust_advantages",
    "get_high_entropy_mask": "GPG trains on every token; mask tokens with tool_mask in a rollout function",
}


@dataclass
class GPGConfig(GRPOConfig):
    """Settings of `GPGTrainer`: TRL's `GRPOConfig` plus the switches of the method.

    `None` in `f_norm`, `age`, `beta_th`, `normalization` or `logp_temperature` means "as `fidelity` has it" and is
    resolved on construction; a value that is given wins. `beta` > 0 adds a k3 KL term against the initial model, for
    the paper's ablation; GPG has none.

    Raises:
        ValueError: an unknown choice, a TRL setting that contradicts GPG, or `steps_per_generation` other than
            `gradient_accumulation_steps`. All problems are reported together.
    """

    fidelity: str = field(
        default="paper",
        metadata={
            "help": "Whose defaults: 'paper' (the equations), or a generation of released code: 'r0' (no AGE), 'r1' "
            "(AGE, alpha at most 20) or 'r2' (AGE and resampling, alpha counts valid groups that were dropped)."
        },
    )
    f_norm: str | None = field(
        default=None,
        metadata={"help": "Divisor of the advantages, Eq. 6: 'none', 'group' or 'batch' (std). paper: 'none'."},
    )
    age: bool | None = field(
        default=None,
        metadata={"help": "Whether to multiply the loss by alpha = B/(B-M), Eq. 7 and 8. paper: True."},
    )
    beta_th: float | None = field(
        default=None,
        metadata={
            "help": "Least share of valid groups in a step's batch, in (0, 1]: below it the valid ones are kept and "
            "more prompts drawn (section 2.3). 0: one draw. paper, r0, r1: 0; r2: 0.5."
        },
    )
    max_draws: int = field(
        default=20, metadata={"help": "Draws per step after which the batch is accepted with a warning."}
    )
    fixed_alpha: float | None = field(
        default=None, metadata={"help": "A constant in place of alpha = B/(B-M), for comparison; switches age off."}
    )
    skip_invalid_groups: bool = field(
        default=True,
        metadata={
            "help": "Whether completions of groups without signal skip forward and backward. Their gradient is zero; "
            "with beta > 0 it is not, and nothing is skipped."
        },
    )
    share_prompt: str = field(
        default="auto",
        metadata={
            "help": "Whether what rows begin with alike, above all a group's prompt, goes through the model once "
            "instead of once per completion; the gradient is the same. 'on', 'off', or 'auto': in steps where it saves "
            "more time than it costs. A model that does not take packed rows is trained on padded ones, with a "
            "warning (docs/efficiency.md)."
        },
    )
    normalization: str | None = field(
        default=None,
        metadata={"help": "Denominators of the loss: 'group' (Eq. 5), 'sequence', 'batch' or 'local'. paper: 'group'."},
    )
    logp_temperature: str | None = field(
        default=None,
        metadata={
            "help": "Temperature the logits are divided by in the loss: 'sampling' (that of generation, as in TRL) or "
            "'one'. paper: 'sampling'."
        },
    )
    accuracy_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function that tells easy and hard groups. Default: the first that has a "
            "`right` or whose name contains 'accuracy' or 'cosine', else the total reward."
        },
    )

    # TRL fields whose default has to differ; any other value is refused.
    loss_type: str = field(default="gpg", metadata={"help": "Fixed to 'gpg'; see normalization."})
    scale_rewards: str | None = field(default=None, metadata={"help": "Follows f_norm; set that instead."})
    vllm_importance_sampling_correction: bool = field(default=False, metadata={"help": "Fixed to False."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Fixed to False: k3, as it is."})

    def __post_init__(self):
        problems = self._resolve_fidelity()
        super().__post_init__()
        problems += self._contradictions()
        if problems:
            raise ValueError("GPGConfig cannot be used as given:\n" + "\n".join(f"- {problem}" for problem in problems))
        self.scale_rewards = self.f_norm  # same vocabulary; makes the advantages that TRL logs the ones we use

    def _resolve_fidelity(self) -> list[str]:
        if self.fidelity not in FIDELITY_DEFAULTS:
            return [
                f"fidelity={self.fidelity!r} is unknown: expected one of {', '.join(map(repr, FIDELITY_DEFAULTS))}."
            ]
        problems = []
        if self.fixed_alpha is not None:
            if self.age:
                problems.append("fixed_alpha and age=True contradict each other: give one of them.")
            if not self.fixed_alpha > 0:
                problems.append(f"fixed_alpha={self.fixed_alpha!r}: expected a positive factor.")
            self.age = False
        for name, default in FIDELITY_DEFAULTS[self.fidelity].items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        if not 0 <= self.beta_th <= 1:
            problems.append(f"beta_th={self.beta_th!r}: expected a share in (0, 1], or 0 for a single draw.")
        if self.max_draws < 1:
            problems.append(f"max_draws={self.max_draws!r}: expected at least 1.")
        return problems

    def _contradictions(self) -> list[str]:
        choices = {
            "f_norm": F_NORMS,
            "normalization": NORMALIZATIONS,
            "logp_temperature": LOGP_TEMPERATURES,
            "share_prompt": SHARE_PROMPT,
        }
        problems = [
            f"{name}={value!r} is unknown: expected one of {', '.join(map(repr, allowed))}."
            for name, allowed in choices.items()
            if (value := getattr(self, name)) is not None and value not in allowed
        ]
        problems += [
            f"{name}={value!r}: expected {required!r}; {reason}. Remove the setting."
            for name, (required, reason) in REQUIRED_SETTINGS.items()
            if (value := getattr(self, name)) != required
        ]
        for entry in fields(GRPOConfig):
            reason = next((why for start, why in UNUSED_FAMILIES.items() if entry.name.startswith(start)), None)
            if reason is None or entry.name in REQUIRED_SETTINGS or entry.default is MISSING:
                continue
            if (value := getattr(self, entry.name)) != entry.default:
                problems.append(f"{entry.name}={value!r} would be without effect; {reason}. Remove the setting.")
        if self.beta < 0:
            problems.append(f"beta={self.beta!r}: expected a KL coefficient of at least 0.")
        if self.fidelity == "r2" and self.per_device_train_batch_size % self.num_generations:
            problems.append(
                f"per_device_train_batch_size={self.per_device_train_batch_size} is no multiple of num_generations="
                f"{self.num_generations}: fidelity 'r2' keeps whole groups on a process."
            )
        if self.scale_rewards not in (None, self.f_norm):
            problems.append(
                f"scale_rewards={self.scale_rewards!r} contradicts f_norm={self.f_norm!r}: set f_norm alone."
            )
        if self.steps_per_generation != self.gradient_accumulation_steps:
            problems.append(
                f"steps_per_generation={self.steps_per_generation} differs from gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: one generation batch has to be one optimiser step. Set neither "
                "steps_per_generation nor generation_batch_size."
            )
        return problems


def group_metrics(
    rewards_per_func: Tensor,
    reward_weights: Tensor,
    num_generations: int,
    accuracy_column: int | None = None,
    valid: Tensor | None = None,
    marks: Tensor | None = None,
) -> dict[str, float]:
    """The group statistics of one generation batch, over all processes.

    A group is *identical* when its total rewards do not differ, *easy* when all its completions are right and *hard*
    when all are wrong (the paper's Figure 2 caption swaps the two). With an accuracy reward, right means a reward of at
    least 0.5: 1 of 0/1, or the upper branch of the cosine-scaled one. A reward that is no mark (GIoU + 1) needs
    `marks`. Without either, the total reward has to be 1 (easy) or 0 (hard).

    Args:
        rewards_per_func: [N, F] gathered rewards; NaN where a reward function returned None.
        reward_weights: [F].
        num_generations: G.
        accuracy_column: column of the accuracy reward, or None to judge by the total reward.
        valid: [B] bool, which groups carry a signal, where more than the rewards decides that; default: the rewards.
        marks: [N] 1 right, 0 wrong, NaN not judged; they take the place of the accuracy reward.

    Returns:
        `num_groups` (B, groups with a reward), `num_valid_groups` (B - M), `alpha` (B / (B - M), 0.0 if none is valid),
        `inverse_alpha`, `frac_identical`, `frac_easy`, `frac_hard` (shares of B), `reward_std` (mean over groups of the
        within-group sample standard deviation of the total reward, identical groups included) and
        `num_unscored_completions`. With B = 0, shares and standard deviation are NaN.
    """
    rewards, scored = total_rewards(rewards_per_func, reward_weights)
    rewards_per_func = rewards_per_func.cpu()
    num_valid = int((valid_groups(rewards, num_generations, scored=scored) if valid is None else valid).sum())
    grouped, counted = rewards.view(-1, num_generations), scored.view(-1, num_generations)
    num_groups = int(counted.any(dim=1).sum())

    if marks is None and accuracy_column is not None:
        marks = rewards_per_func[:, accuracy_column]
    if marks is None:
        right, wrong, judged = grouped == 1, grouped == 0, counted
    else:
        accuracy = marks.cpu().view(-1, num_generations)
        right, wrong, judged = accuracy >= 0.5, accuracy < 0.5, ~accuracy.isnan()
    num_easy = int(((right | ~judged).all(dim=1) & judged.any(dim=1)).sum())
    num_hard = int(((wrong | ~judged).all(dim=1) & judged.any(dim=1)).sum())
    num_scored = counted.sum(dim=1)
    means = grouped.sum(dim=1) / num_scored.clamp(min=1)
    squares = ((grouped - means.unsqueeze(1)).square() * counted).sum(dim=1)
    stds = (squares / (num_scored - 1).clamp(min=1)).sqrt()[num_scored > 1]

    def share(count: int) -> float:
        return count / num_groups if num_groups else float("nan")

    return {
        "num_groups": num_groups,
        "num_valid_groups": num_valid,
        "alpha": age_alpha(num_groups, num_groups - num_valid),
        "inverse_alpha": share(num_valid),
        "frac_identical": share(num_groups - num_valid),
        "frac_easy": share(num_easy),
        "frac_hard": share(num_hard),
        "reward_std": stds.mean().item(),
        "num_unscored_completions": int((~scored).sum()),
    }


class RestoredWeights:
    """Really loads the weights of a checkpoint on resuming. Put it before a transformers `Trainer`.

    transformers 5 saves vision-language models under the names of the hub's files and renames them on loading, but its
    Trainer resumes without renaming: nothing fits, a warning is logged, and training goes on from the initial weights.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        saved = _names_in(resume_from_checkpoint)
        if self.is_fsdp_enabled or saved <= set(model.state_dict()):
            return  # restored as shards, or under its own names; an adapter has no such file
        restored = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype, **ONLY_WEIGHTS)
        model.load_state_dict(restored.state_dict())

    def _load_best_model(self) -> None:
        """transformers' does not rename either: the best weights would be left out, and training end with the last."""
        super()._load_best_model()
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(model, "peft_config"):
            return
        best = self.state.best_model_checkpoint
        if not _names_in(best) <= set(model.state_dict()):
            restored = type(model).from_pretrained(best, dtype=model.dtype, **ONLY_WEIGHTS)
            model.load_state_dict(restored.state_dict())


def _names_in(checkpoint: str) -> set[str]:
    """Names of the tensors in a checkpoint's safetensors files; empty if it holds none."""
    names: set[str] = set()
    for path in Path(checkpoint).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


class GroupMetricsMixin(RestoredWeights):
    """Logs the group statistics of the paper beside TRL's metrics; changes nothing else. Put it before `GRPOTrainer`.

    Per optimiser step, over all processes:
        of the first draw (unbiased), in training and evaluation: everything of `group_metrics` (its `reward_std`
            replaces TRL's), `completion_length` (mean tokens, EOS included) and `rewards/<name>`;
        of the batch that is trained on: `batch/reward` and, of `group_metrics`, `batch/num_groups`,
            `batch/num_valid_groups`, `batch/alpha`, `batch/inverse_alpha`, `batch/frac_identical`, `batch/frac_easy`,
            `batch/frac_hard`, `batch/reward_std`; the same numbers unless groups were resampled;
        `alpha_applied` (the factor in this trainer's loss), `num_draws`, `num_dropped_groups` (valid groups sampled but
            not trained on), `prompts_consumed` (since the start of the run), `clipped` (1 where clipping changed the
            gradient; `grad_norm` is the norm before);
        `tokens/generated` and `tokens/trained` (completion tokens), `time/generate`, `time/grade` and `time/update`
            (seconds of this process; on a GPU, kernels still queued count for the phase that waits for them) and
            `peak_memory_mib` (of the device; on a CPU, the process's largest resident size so far).

    A reward function may say what counts as right, where its value does not: as an attribute `right`, a function of the
    same arguments that returns True, False or None (not judged) for each completion.

    Raises:
        ValueError: `accuracy_reward` of the config names no reward function.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._accuracy_column = self._find_accuracy_reward(getattr(self.args, "accuracy_reward", None))
        self._rewards_per_func: Tensor | None = None  # [N, F] gathered rewards of the latest draw
        self._marks: Tensor | None = None  # [N] gathered marks of that draw, if the accuracy reward has `right`
        self._seconds = dict.fromkeys(("generate", "grade", "rollout"), 0.0)
        self.add_callback(_PhaseTimes(self))
        # Around whatever a subclass makes of it: the rewards that TRL goes on with are ours, too.
        self._calculate_rewards = self._with_rewards_kept(self._calculate_rewards)

    def _undivide_logits(self) -> None:
        """With `logp_temperature="one"`: log-probabilities and entropies from logits not divided by the temperature."""
        if self.args.logp_temperature != "one" or self.args.temperature == 1.0:
            return
        for policy in filter(None, (self.model, self.ref_model)):  # replaces the head that TRL added
            add_fused_lm_head(
                base_model(self.accelerator.unwrap_model(policy)),
                temperature=1.0,
                cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32,
                outputs=("log_probs", "entropy"),
            )

    def _find_accuracy_reward(self, name: str | None) -> int | None:
        names = self.reward_func_names
        if name is not None and name not in names:
            raise ValueError(f"accuracy_reward={name!r} is not a reward function: expected one of {names}.")
        candidates = [name] if name else [
            n
            for n, function in zip(names, self.reward_funcs, strict=True)
            if hasattr(function, "right") or "accuracy" in n.lower() or "cosine" in n.lower()
        ]  # fmt: skip
        return names.index(candidates[0]) if candidates else None

    def _judge(self, inputs: list[dict], prompts: list, completions: list, completion_ids: list) -> Tensor | None:
        """[N] gathered marks of the accuracy reward; None if it has no `right`."""
        column = self._accuracy_column
        right = None if column is None else getattr(self.reward_funcs[column], "right", None)
        if right is None:
            return None
        keys = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
        columns = {key: [row[key] for row in inputs] for key in keys}
        found = right(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        marks = [float("nan") if mark is None else float(mark) for mark in found]
        return self.accelerator.gather(torch.tensor(marks, device=self.accelerator.device))

    def _generate(self, *args, **kwargs):
        with _Timed(self._seconds, "generate"):
            return super()._generate(*args, **kwargs)

    def _with_rewards_kept(self, calculate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def calculated(*args, **kwargs) -> Tensor:
            with _Timed(self._seconds, "grade"):
                rewards = calculate(*args, **kwargs)
            endless = rewards.isinf().sum(dim=0).tolist()
            if any(endless):
                found = [
                    f"{name} ({n} of {len(rewards)})"
                    for name, n in zip(self.reward_func_names, endless, strict=True)
                    if n
                ]
                raise ValueError(
                    f"A reward is infinite: {', '.join(found)}. Expected finite numbers, or None for a completion that "
                    "cannot be scored."
                )
            self._rewards_per_func, self._marks = rewards, self._judge(*args, **kwargs)
            return rewards

        return calculated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with _Timed(self._seconds, "rollout"):
            batch = super()._generate_and_score_completions(inputs)
            num_generations = self.num_generations if self.model.training else self.num_generations_eval
            rewards, scored = total_rewards(self._rewards_per_func, self.reward_weights)
            trained = self.accelerator.gather(_loss_mask(batch).any(dim=1)).cpu()
            metrics = self._log_draw(valid_groups(rewards, num_generations, scored=scored, trained=trained))
            if self.model.training:
                self._log_batch(metrics, num_valid_drawn=metrics["num_valid_groups"])
        return batch

    def _log_draw(self, valid: Tensor) -> dict[str, float]:
        """Adds the statistics of the draw that TRL has just logged to its metrics, and returns them.

        Args:
            valid: [B] bool, which groups carry a signal.
        """
        log = self._metrics["train" if self.model.training else "eval"]
        num_generations = self.num_generations if self.model.training else self.num_generations_eval
        log["reward_std"].pop()  # TRL's, over all rewards
        statistics = group_metrics(
            self._rewards_per_func, self.reward_weights, num_generations, self._accuracy_column, valid, self._marks
        )
        metrics = statistics | {"completion_length": log["completions/mean_length"][-1]}
        metrics |= {f"rewards/{name}": log[f"rewards/{name}/mean"][-1] for name in self.reward_func_names}
        for name, value in metrics.items():
            log[name].append(value)
        return statistics | {"reward": log["reward"][-1]}

    def _log_batch(
        self, metrics: dict[str, float], num_valid_drawn: int, num_draws: int = 1, alpha: float | None = None
    ) -> None:
        """Logs the statistics of the batch that is trained on."""
        log = self._metrics["train"]
        num_tokens = log["completions/mean_length"][-1] * self.args.generation_batch_size
        per_draw = self.args.generation_batch_size // self.num_generations
        values = {f"batch/{name}": value for name, value in metrics.items() if name != "num_unscored_completions"} | {
            "alpha_applied": self._alpha_applied(metrics["num_groups"], metrics["num_valid_groups"], num_valid_drawn)
            if alpha is None
            else alpha,
            "num_draws": num_draws,
            "num_dropped_groups": num_valid_drawn - metrics["num_valid_groups"],
            "prompts_consumed": self._draws_made() * per_draw,
        }
        if num_draws == 1:
            values["tokens/generated"] = num_tokens
        for name, value in values.items():
            log[name].append(value)

    def _draws_made(self) -> int:
        """Draws since the start of the run, this step's included."""
        return self.state.global_step + 1

    def _alpha_applied(self, num_groups: int, num_valid: int, num_valid_drawn: int) -> float:
        """The factor by which this trainer's loss is corrected for groups without signal."""
        return 1.0

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            limit = self.args.max_grad_norm
            self._metrics["train"]["clipped"].append(float(0 < limit < float(norm)))
        return norm


class _Timed:
    """Adds the seconds spent inside a `with` block to an entry of a dictionary."""

    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error) -> None:
        self.seconds[self.name] += time.perf_counter() - self.start


class _PhaseTimes(TrainerCallback):
    """Pushes times and peak memory of every optimiser step into the trainer's metrics."""

    def __init__(self, trainer: GroupMetricsMixin):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()
        for name in self.trainer._seconds:
            self.trainer._seconds[name] = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        seconds, log = self.trainer._seconds, self.trainer._metrics["train"]
        log["time/generate"].append(seconds["generate"])
        log["time/grade"].append(seconds["grade"])
        log["time/update"].append(time.perf_counter() - self.start - seconds["rollout"])
        log["peak_memory_mib"].append(_peak_memory_mib())


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class EpochSampler(Sampler[int]):
    """TRL's `RepeatSampler`, giving each epoch its own permutation whether or not this process saw the earlier epochs.

    Args:
        sampler: the sampler whose order is kept.
        epoch: returns the 0-based epoch about to start or to be resumed.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            generator = self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.epoch()):  # the sampler draws one permutation per epoch
                torch.randperm(self.sampler.num_samples, generator=generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


@dataclass
class GRPOBaselineConfig(GRPOConfig):
    """TRL's `GRPOConfig` with GPG's choice of `logp_temperature`.

    Raises:
        ValueError: an unknown `logp_temperature`.
    """

    logp_temperature: str = field(default="sampling", metadata={"help": "As GPGConfig's."})

    def __post_init__(self):
        super().__post_init__()
        if self.logp_temperature not in LOGP_TEMPERATURES:
            raise ValueError(
                f"logp_temperature={self.logp_temperature!r} is unknown: expected one of "
                f"{', '.join(map(repr, LOGP_TEMPERATURES))}."
            )


class GRPOBaselineTrainer(GroupMetricsMixin, GRPOTrainer):
    """TRL's own GRPOTrainer, logging the metrics of `GroupMetricsMixin`: the comparison rows.

    A run that is resumed in a later epoch sees the prompts an undisturbed one would see. `args` is a
    `GRPOBaselineConfig`.
    """

    def __init__(self, model, reward_funcs=None, args: GRPOBaselineConfig | None = None, *remaining, **kwargs):
        if not isinstance(args, GRPOBaselineConfig):
            raise TypeError(
                f"GRPOBaselineTrainer got args of type {type(args).__name__}: expected a GRPOBaselineConfig."
            )
        super().__init__(model, reward_funcs, args, *remaining, **kwargs)
        self._undivide_logits()

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        sampler = super()._get_train_sampler(dataset)
        # One chunk of batch_size prompts is one optimiser step, times the updates each generation batch serves.
        steps_per_generation = self.args.steps_per_generation * self.num_iterations
        steps_per_epoch = sampler.num_samples // sampler.batch_size * steps_per_generation
        steps_per_epoch //= self.args.gradient_accumulation_steps
        return EpochSampler(sampler, lambda: self.state.global_step // max(steps_per_epoch, 1))


class SupervisedTrainer(RestoredWeights, SFTTrainer):
    """TRL's own SFTTrainer: the supervised rows. A run with images resumes from its weights."""


@dataclass
class _Draw:
    """One round of sampling. Global tensors cover the N rows of all processes; `rows` are this process's own."""

    rewards_per_func: Tensor  # [N, F]
    marks: Tensor | None  # [N], where the accuracy reward has `right`
    rewards: Tensor  # [N] float64, weighted sum
    scored: Tensor  # [N] bool
    lengths: Tensor  # [N] trained tokens
    advantages: Tensor  # [N] float64
    sizes: list[tuple[int, int]]  # [N] tokens of prompt and completion
    valid: list[bool]  # [Q]
    rows: dict[int, Row]  # by row number in the draw


class _Steps(TorchDataset):
    """What the dataloader counts: as many entries as the training set, which the prompt stream reads instead."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


class _DrawRows(TorchDataset):
    """The rows of one process for each draw. Every completion has a row of its own, as in TRL: graders and environments
    may change theirs.
    """

    def __init__(self, dataset: Dataset, stream: PromptStream | StreamedPrompts, num_generations: int, rows: range):
        self.dataset, self.stream, self.num_generations, self.rows = dataset, stream, num_generations, rows

    def __getitem__(self, position: int) -> list[dict[str, Any]]:
        drawn = self.stream.chunk(position)
        chunk = [drawn[row // self.num_generations] for row in self.rows]
        return [copy.deepcopy(row if isinstance(row, dict) else self.dataset[row]) for row in chunk]


def _as_it_is(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


class GPGTrainer(GroupMetricsMixin, GRPOTrainer):
    """Trains with the GPG loss. Arguments are those of TRL's `GRPOTrainer`, with `args` a `GPGConfig`.

    Raises:
        TypeError: `args` is not a `GPGConfig`.
        TypeError: a subclass overrides a method that is never called.
        ValueError: a stream is used in a way that needs a length; when training, a set too small for one draw.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "gpg"]
    _name = "GPG"
    _paper: ClassVar[dict[str, str]] = {
        "title": "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning",
        "id": "2504.02546",
    }
    _STREAM_FILE = "prompt_stream.json"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Callable | list[Callable] | None = None,
        args: GPGConfig | None = None,
        *remaining,
        **kwargs,
    ):
        if args is None:
            model_id = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GPGConfig(f"{model_id.split('/')[-1]}-GPG")
        if not isinstance(args, GPGConfig):
            raise TypeError(f"GPGTrainer got args of type {type(args).__name__}: expected a GPGConfig.")
        self._refuse_overrides()
        super().__init__(model, reward_funcs, args, *remaining, **kwargs)
        if self.train_dataset is not None and self._streams():
            self._refuse_for_streams()
        self._undivide_logits()
        self._stream: PromptStream | None = None
        self._stream_position: int | None = None  # draws made since the start of the run
        self._passes: list[dict[str, Any] | None] = []  # one entry per accumulation step; None: nothing to do
        # Sums over the passes of one optimiser step, reduced over processes at its end by `_log_token_means`.
        self._token_sums: Tensor | None = None
        # Of the evaluation in progress, batch by batch: its rows over all processes, and [N, 2] sums of their tokens'
        # -log pi and KL.
        self._evaluated: list[_Draw] = []
        self._evaluated_sums: list[Tensor] = []
        self._sharing_told: set[bool] = set()  # outcomes of "auto" the log has named
        self._probed = False
        self._cannot_pack: str | None = None
        self._set_cannot_pack(self._packing_refused())

    def _set_cannot_pack(self, reason: str | None) -> None:
        self._cannot_pack = reason
        if reason and self.args.share_prompt != "off":
            logger.warning(
                "share_prompt=%r: not with this model: %s. Rows are padded, and each brings its prompt along.",
                self.args.share_prompt,
                reason,
            )

    def _refuse_overrides(self) -> None:
        """Methods of TRL's that this trainer does not call: a subclass that overrides one would be ignored."""
        own = type(self).__mro__[: type(self).__mro__.index(GPGTrainer)]
        problems = [
            f"{cls.__name__}.{name}: {reason}."
            for cls in own
            for name, reason in REFUSED_METHODS.items()
            if name in cls.__dict__
        ]
        if problems:
            raise TypeError("GPGTrainer does not call these methods:\n" + "\n".join(f"- {p}" for p in problems))

    def _refuse_for_streams(self) -> None:
        """What needs a training set with a length."""
        problems = []
        if type(self).prompt_order is not GPGTrainer.prompt_order:
            problems.append("prompt_order names rows by number, and a stream has none: order the stream itself.")
        if self.args.max_steps <= 0:
            problems.append(f"max_steps={self.args.max_steps}: a stream has no length. Give the number of steps.")
        if problems:
            raise ValueError(
                "A streaming training set cannot be used like this:\n" + "\n".join(f"- {p}" for p in problems)
            )

    def _packing_refused(self) -> str | None:
        """Why rows are not packed, before the model is asked; None where nothing speaks against it."""
        if self.tools:
            return "tools may put images into completions"
        if getattr(self.args, "use_liger_kernel", False):
            return "Liger kernels replace its layers"
        if self.args.torch_compile:
            return "it is compiled"
        parallel = getattr(self.accelerator, "parallelism_config", None)
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            return "sequences are split over devices"
        if self.args.neftune_noise_alpha:
            return "NEFTune would add the same noise to all copies of a prompt"
        return refusal(self.accelerator.unwrap_model(self.model))

    def _probe(self, model, rows: list[Row]) -> None:
        """Before the first pass: whether this model computes the same for packed rows as for each alone.

        Args:
            rows: any of the step's, for their pictures; the same number on every process.
        """
        self._probed = True
        if self._cannot_pack:
            return
        unwrapped, tokenizer = self.accelerator.unwrap_model(model), self._tokenizer
        text = unwrapped.config.get_text_config()
        probe = probe_rows(min(text.vocab_size, len(tokenizer)), tokenizer.all_special_ids, self.accelerator.device)
        pictured = next((row for row in rows if row.get("pixel_values") is not None), None)
        if pictured is not None:
            probe = [pictured | {key: row[key] for key in ("completion_ids", "completion_mask")} for row in probe[:2]]
            for row in probe:
                for key in set(SEQUENCE_KEYS) & row.keys():
                    kinds = row[key][: len(row["prompt_ids"])]
                    row[key] = torch.cat([kinds, torch.zeros_like(row["completion_ids"])])
        training = model.training
        model.eval()
        with self.accelerator.autocast():
            self._set_cannot_pack(difference(model, unwrapped, probe, tokenizer.pad_token_id))
        model.train(training)

    # Prompts --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self):
        """A dataloader that counts steps and epochs; prompts come from the stream, as those of resampling do."""
        # A run starts clean, whatever an earlier one was doing when it failed.
        self._stream_position, self._prompts, self._passes, self._token_sums, self._step = None, None, [], None, 0
        self._metrics["train"].clear()
        own_order = type(self).prompt_order is not GPGTrainer.prompt_order
        chunk_size = self.args.generation_batch_size // self.num_generations
        if self._streams():
            self._stream, num_rows = StreamedPrompts(self.train_dataset, chunk_size), chunk_size * self.args.max_steps
        else:
            num_rows = len(self.train_dataset)
            order = self.prompt_order if own_order else None
            self._stream = PromptStream(num_rows, chunk_size, self.args.seed, self.shuffle_dataset, order)
        return self._get_dataloader(
            dataset=_Steps(num_rows),
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _streams(self) -> bool:
        return isinstance(self.train_dataset, IterableDataset) or not hasattr(self.train_dataset, "__len__")

    def _next_prompts(self) -> list[dict[str, Any]]:
        """This process's rows of the next draw, each prompt G times over all processes."""
        if self._stream_position is None:  # a run that starts, or continues where one draw was one step
            self._stream_position = self.state.global_step
        if self._prompts is None:
            self._prompts = self._prompts_from(self._stream_position)
        self._stream_position += 1
        return next(self._prompts)

    def _prompts_from(self, position: int) -> Iterator[list[dict[str, Any]]]:
        """This process's rows of all draws from `position` on, fetched ahead by `dataloader_num_workers` processes."""
        share = self._train_batch_size * self.args.steps_per_generation
        start = self.accelerator.process_index * share
        draws = _DrawRows(self.train_dataset, self._stream, self.num_generations, range(start, start + share))
        if not self.args.dataloader_num_workers:
            return (draws[number] for number in itertools.count(position))
        loader = DataLoader(
            draws,
            batch_size=None,
            sampler=itertools.count(position),
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # the run's own random numbers stay as they are without workers
            collate_fn=_as_it_is,
        )
        return iter(loader)

    def _draws_made(self) -> int:
        return self._stream_position

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            with open(os.path.join(folder, self._STREAM_FILE), "w", encoding="utf-8") as file:
                json.dump({"draws": self._stream_position}, file)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, self._STREAM_FILE)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self._stream_position, self._prompts = json.load(file)["draws"], None
        elif self.args.beta_th:
            logger.warning(
                "%s has no %s: how many draws its run made is unknown, so some prompts will be seen again.",
                checkpoint,
                self._STREAM_FILE,
            )

    # From draws to passes -------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """One accumulation step: the first samples the step's batch, those without a pass cost nothing."""
        slot = self._step % self.args.gradient_accumulation_steps
        if slot == 0 or not self._passes:
            start = time.perf_counter()
            model.train()
            with _Timed(self._seconds, "rollout"):
                self._passes = self._sample_step()
            self._current_train_step_time += time.perf_counter() - start
        if self._passes[slot] is None:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        unwrapped = self.accelerator.unwrap_model(model)
        with attention_for(unwrapped, self._passes[slot]):  # checkpointed layers run again in the backward pass
            return super().training_step(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, generation_batch):
        if self.model.training:
            return self._passes[self._step % self.args.gradient_accumulation_steps]
        return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:  # `_sample_step` logs and weighs once all draws are made
            batch = GRPOTrainer._generate_and_score_completions(self, inputs)
            self._own_advantages = batch["advantages"].clone()  # a subclass may hand on others
            return batch
        batch = super()._generate_and_score_completions(inputs)
        self._own_advantages = batch["advantages"]
        self._evaluated.append(self._as_draw(batch, self.num_generations_eval))
        rows = [row | {"loss_weights": 1.0, "kl_weights": 1.0} for row in split_rows(batch)]
        return self._collate(rows, self.args.share_prompt != "off")  # `evaluation_loop` weighs the whole set's rows

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """TRL's, with the loss of the whole set as one batch, whatever the processes and the evaluation batch size.

        TRL's is a mean over processes and batches, in which rows that only fill up the last batch count too.
        """
        self._evaluated, self._evaluated_sums = [], []
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        num_rows = len(dataloader.dataset) * self.num_generations_eval if has_length(dataloader.dataset) else None
        if self._evaluated:
            output.metrics[f"{metric_key_prefix}_loss"] = self._evaluated_loss(num_rows)
        return output

    def _evaluated_loss(self, num_rows: int | None) -> float:
        """Loss of the first `num_rows` rows evaluated; None for all of them."""
        rewards, scored, lengths, advantages = (
            torch.cat([getattr(draw, name) for draw in self._evaluated])[:num_rows]
            for name in ("rewards", "scored", "lengths", "advantages")
        )
        valid = torch.tensor([flag for draw in self._evaluated for flag in draw.valid])
        valid = valid[: len(rewards) // self.num_generations_eval]
        if self.args.f_norm == "batch" and not self._edited:
            advantages = group_advantages(rewards, self.num_generations_eval, "batch", scored=scored)
        policy, kl = torch.cat(self._evaluated_sums)[:num_rows].T
        _, weights, kl_weights = self._weigh(
            valid, advantages, scored, lengths, self.num_generations_eval, micro_batch_size=len(rewards)
        )
        return (weights @ policy + self.beta * kl_weights @ kl).item()

    def _sample_step(self) -> list[dict[str, Any] | None]:
        """Algorithm 1 up to the loss: draw until enough groups are valid, weigh, and pack what carries a gradient."""
        draws: list[_Draw] = []
        num_groups = self.args.generation_batch_size // self.num_generations
        first: dict[str, float] = {}
        shown: list[dict[str, list]] = []  # of each draw, what the table of completions shows
        num_tokens = num_valid = 0
        while not draws or (self.args.beta_th and not reached(num_valid, num_groups, self.args.beta_th)):
            if len(draws) == self.args.max_draws:
                logger.warning(
                    "Step %d: %d of %d groups are valid after %d draws, short of beta_th=%g. Taken as it is%s.",
                    self.state.global_step + 1,
                    num_valid,
                    num_groups,
                    len(draws),
                    self.args.beta_th,
                    "" if num_valid else "; no group has a signal, so the gradient is zero",
                )
                break
            log, logged = self._metrics["train"], {name: len(values) for name, values in self._metrics["train"].items()}
            batch = self._generate_and_score_completions(self._next_prompts())
            draw = self._as_draw(batch, self.num_generations)
            num_tokens += log["completions/mean_length"][-1] * self.args.generation_batch_size
            if not draws:
                first = self._log_draw(torch.tensor(draw.valid))
            else:  # the first draw is the unbiased one
                for name, values in log.items():
                    del values[logged.get(name, 0) :]
                self._drop_rows_without_signal(draws[-1])
            draws.append(draw)
            if self.log_completions:
                shown.append({name: list(values)[-len(draw.rewards) :] for name, values in self._shown_columns()})
            num_valid += sum(draws[-1].valid)
        if len(draws) > 1:
            self._metrics["train"]["tokens/generated"].append(num_tokens)
        return self._pack(draws, first, shown)

    def _shown_columns(self) -> list[tuple[str, Any]]:
        """Columns of TRL's table of completions, each a queue with an entry per completion of all processes."""
        columns = [(name, values) for name, values in self._logs.items() if not isinstance(values, dict)]
        nested = [(name, values) for name, values in self._logs.items() if isinstance(values, dict)]
        return [c for c in columns + [(f"{n}/{k}", v) for n, d in nested for k, v in d.items()] if len(c[1])]

    def _show(self, shown: list[dict[str, list]], order: list[int]) -> None:
        """Puts the completions that are trained on into the table, where those of the last draw would be."""
        num_rows = max(map(len, shown[0].values()), default=0)
        for name, values in self._shown_columns():
            rows = [draw.get(name, []) for draw in shown]
            if all(len(column) == num_rows for column in rows):
                values.clear()
                values.extend(rows[number // num_rows][number % num_rows] for number in order)

    def _as_draw(self, batch: dict[str, Any], num_generations: int) -> _Draw:
        """What all processes need to know about a scored batch (one collective), and this process's rows of it."""
        rewards, scored = total_rewards(self._rewards_per_func, self.reward_weights)
        masks = (_loss_mask(batch), batch["prompt_mask"], batch["completion_mask"])
        found = batch["advantages"]
        if found.shape != (len(masks[0]),):
            raise ValueError(
                f"_generate_and_score_completions returned advantages of shape {tuple(found.shape)}: expected one for "
                f"each of its {len(masks[0])} completions."
            )
        edited = torch.full_like(masks[0][:, 0], int(not torch.equal(found, self._own_advantages)))
        lengths, prompts, completions, edited = (
            self.accelerator.gather(torch.stack([*(m.sum(dim=1) for m in masks), edited], dim=1)).cpu().T
        )
        self._edited = bool(edited.any()) or type(self).adjust_advantages is not GPGTrainer.adjust_advantages
        if edited.any():
            advantages = self.accelerator.gather(found).cpu().double()
        else:
            advantages = group_advantages(rewards, num_generations, self.args.f_norm, scored=scored)
        if self._edited:
            advantages = self.adjust_advantages(advantages, rewards, lengths)
            valid = (advantages.ne(0) & scored & lengths.gt(0)).view(-1, num_generations).any(dim=1)
        else:
            valid = valid_groups(rewards, num_generations, scored=scored, trained=lengths > 0)
        rows = split_rows(batch) if self.model.training else []
        start = self.accelerator.process_index * len(rows)
        return _Draw(
            rewards_per_func=self._rewards_per_func,
            marks=self._marks,
            rewards=rewards,
            scored=scored,
            lengths=lengths,
            advantages=advantages,
            sizes=list(zip(prompts.tolist(), completions.tolist(), strict=True)),
            valid=valid.tolist(),
            rows=dict(enumerate(rows, start)),
        )

    def adjust_advantages(self, advantages: Tensor, rewards: Tensor, lengths: Tensor) -> Tensor:
        """For subclasses: the advantages of one draw. What comes back decides which groups are valid, and so alpha.

        Args:
            advantages: [N] float64 of all processes (Eq. 6), groups next to each other.
            rewards: [N] float64, the weighted sums.
            lengths: [N] tokens trained on.

        Returns:
            [N], the same on every process.
        """
        return advantages

    def prompt_order(self, epoch: int) -> Sequence[int]:
        """For subclasses (a curriculum): row indices of the training set in the order in which an epoch sees them.

        It has to be a function of `epoch` alone, so that a resumed run sees the same prompts, and at least as long as
        the draws of an epoch.
        """
        raise NotImplementedError

    def _drop_rows_without_signal(self, draw: _Draw) -> None:
        """Keeps a draw's valid rows only, in memory of their own: padding comes from the last draw."""
        draw.rows = {
            row: copy_row(parts) for row, parts in draw.rows.items() if draw.valid[row // self.num_generations]
        }

    def _pack(
        self, draws: list[_Draw], first: dict[str, float], shown: list[dict[str, list]]
    ) -> list[dict[str, Any] | None]:
        """The passes of one step, one entry per accumulation step: those without work first, then the micro-batches."""
        num_generations, num_processes = self.num_generations, self.accelerator.num_processes
        num_rows = len(draws[0].rewards)
        flags = [draw.valid for draw in draws]
        num_valid_drawn = sum(map(sum, flags))
        # r2: valid groups stay with the process that sampled them; the rest is dropped.
        released = self.args.fidelity == "r2"
        selection = select_groups_released(flags, num_processes) if released else select_groups(flags)
        # Numbers of the rows in batch order, counting through all draws: draw * N + row.
        order = torch.tensor(
            [
                draw * num_rows + group * num_generations + place
                for draw, group in selection.groups
                for place in range(num_generations)
            ]
        )
        rewards, scored, lengths, advantages = (
            torch.cat([getattr(draw, name) for draw in draws])[order]
            for name in ("rewards", "scored", "lengths", "advantages")
        )
        valid = torch.tensor([flags[draw][group] for draw, group in selection.groups])
        if len(draws) > 1 and shown:
            self._show(shown, order.tolist())
        if len(draws) == 1:
            metrics = first
        else:
            chosen = order.to(self.accelerator.device)
            rewards_per_func = torch.cat([draw.rewards_per_func for draw in draws])[chosen]
            marks = None if draws[0].marks is None else torch.cat([draw.marks for draw in draws])[chosen]
            metrics = group_metrics(
                rewards_per_func, self.reward_weights, num_generations, self._accuracy_column, valid, marks
            )
            metrics["reward"] = rewards[scored].mean().item()
        if self.args.f_norm == "batch" and not self._edited:  # over the batch that is trained on, not over each draw
            advantages = group_advantages(rewards, num_generations, "batch", scored=scored)
        alpha, weights, kl_weights = self._weigh(
            valid,
            advantages,
            scored,
            lengths,
            num_generations,
            micro_batch_size=num_rows // num_processes // self.args.steps_per_generation,
            num_valid_drawn=num_valid_drawn,
        )
        self._log_batch(metrics, num_valid_drawn, len(draws), alpha)

        keep = torch.ones_like(scored)
        if self.args.skip_invalid_groups and self.beta == 0.0:
            keep = valid.repeat_interleave(num_generations) & scored & (lengths > 0)
        numbers = order[keep].tolist()
        owners = [number % num_rows * num_processes // num_rows for number in numbers]
        sizes = [Sizes(n // num_generations, *draws[n // num_rows].sizes[n % num_rows]) for n in numbers]
        if not self._probed:
            self._probe(self.model_wrapped, list(draws[-1].rows.values()))
        plan, shared = self._plan(sizes, owners)
        mine = self._exchange(draws, numbers, owners, plan.targets)
        for number, weight, kl_weight in zip(order.tolist(), weights.tolist(), kl_weights.tolist(), strict=True):
            if number in mine:
                # Data parallelism averages gradients over processes; the weights are those of a sum.
                mine[number] |= {"loss_weights": weight * num_processes, "kl_weights": kl_weight * num_processes}
        batches = [[mine[numbers[i]] for i in part] for part in plan.passes[self.accelerator.process_index]]
        # Every process makes the same number of passes, or collectives inside them would wait forever; one without
        # rows for a pass, and all of them where no group has a signal, send a short row of weight zero.
        idle = min(draws[-1].rows.values(), key=_num_tokens) | {"loss_weights": 0.0, "kl_weights": 0.0}
        passes = [self._collate(batch or [idle], shared) for batch in batches or [[]]]
        num_tokens = sum(size.prompt + size.completion for size in sizes)
        for made, batch in zip(passes, batches or [[]], strict=True):
            made["aux_weight"] = num_processes * sum(map(_num_tokens, batch)) / max(num_tokens, 1)
        # Gradients are reduced in the last accumulation step: it must not be an empty one.
        return [None] * (self.args.gradient_accumulation_steps - len(passes)) + passes

    def _plan(self, sizes: list[Sizes], owners: list[int]) -> tuple[Plan, bool]:
        """The passes of a step's rows, and whether those that begin alike share it. Logs which."""
        alone = [replace(size, group=number) for number, size in enumerate(sizes)]
        # What an unshared pass of per_device_train_batch_size rows may have.
        longest = max((size.prompt + max(size.completion, 1) for size in sizes), default=0)
        limits = {
            "num_processes": self.accelerator.num_processes,
            "max_tokens": self.args.per_device_train_batch_size * longest,
            "max_passes": self.args.gradient_accumulation_steps,
        }
        shared, plan = False, None
        if sizes and self.args.share_prompt != "off" and not self._cannot_pack:
            plan = plan_passes(sizes, owners, **limits)
            saved = distinct_tokens(alone) - plan.num_tokens
            shared = self.args.share_prompt == "on" or self._pays(saved, sum(map(len, plan.passes)))
            if self.args.share_prompt == "auto" and shared not in self._sharing_told:
                self._sharing_told.add(shared)
                logger.info(
                    "Step %d: rows that begin alike %s. Sharing leaves at most %d of %d tokens.",
                    self.state.global_step + 1,
                    "share their beginning" if shared else "do not share it, as that would not pay",
                    plan.num_tokens,
                    distinct_tokens(alone),
                )
        if not shared:
            plan = plan_passes(alone, owners, **limits, count=padded_tokens if self._cannot_pack else distinct_tokens)
        self._metrics["train"]["share_prompt"].append(float(shared))
        return plan, shared

    def _pays(self, saved: int, num_passes: int) -> bool:
        """Whether sharing saves more time than it costs, by `SHARING_COST` of this device."""
        flop, cost = SHARING_COST.get(self.accelerator.device.type, SHARING_COST["cuda"])
        text = self.accelerator.unwrap_model(self.model).config.get_text_config()
        # Forward and backward, of the feed-forward part alone: three products.
        flop_per_token = 6 * 3 * text.hidden_size * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
        return saved * flop_per_token / flop > num_passes * cost

    def _collate(self, rows: list[Row], shared: bool) -> dict[str, Any]:
        pad = self._tokenizer.pad_token_id
        if self._cannot_pack:
            return collate_plain(rows, pad)
        model = self.accelerator.unwrap_model(self.model)
        return collate_packed(rows, model, pad, shared, uses=self.aux_loss_enabled)

    def _weigh(
        self,
        valid: Tensor,
        advantages: Tensor,
        scored: Tensor,
        lengths: Tensor,
        num_generations: int,
        micro_batch_size: int,
        num_valid_drawn: int | None = None,
    ) -> tuple[float, Tensor, Tensor]:
        """alpha, and for each of the [N] completions of the whole batch its weights in the loss and in the KL term."""
        num_valid = int(valid.sum())
        num_groups = int(scored.view(-1, num_generations).any(dim=1).sum())
        alpha = self._alpha_applied(num_groups, num_valid, num_valid if num_valid_drawn is None else num_valid_drawn)
        layout = {"micro_batch_size": micro_batch_size, "scored": scored}
        settings = (lengths, num_generations, self.args.normalization)
        weights = completion_weights(advantages, *settings, alpha, **layout)
        # alpha corrects for groups whose gradient is zero, which that of the KL term is not; released code scales both.
        kl_alpha = 1.0 if self.args.fidelity == "paper" else alpha
        kl_weights = completion_weights(torch.ones_like(advantages), *settings, kl_alpha, **layout)
        return alpha, weights, kl_weights

    def _alpha_applied(self, num_groups: int, num_valid: int, num_valid_drawn: int) -> float:
        if self.args.fixed_alpha is not None:
            return self.args.fixed_alpha
        if not self.args.age:
            return 1.0
        if self.args.fidelity == "r1":  # caps alpha
            return 1 / max(num_valid / max(num_groups, 1), R1_MIN_INVERSE_ALPHA)
        if self.args.fidelity == "r2":  # counts valid groups that were dropped
            return age_alpha(num_groups, num_groups - min(num_groups, num_valid_drawn))
        return age_alpha(num_groups, num_groups - num_valid)

    def _exchange(
        self, draws: list[_Draw], numbers: list[int], owners: list[int], targets: list[int]
    ) -> dict[int, Row]:
        """The rows this process trains on, by number; one collective if any row changes hands."""
        num_rows, rank = len(draws[0].rewards), self.accelerator.process_index
        held = {
            number: draws[number // num_rows].rows[number % num_rows]
            for number, owner in zip(numbers, owners, strict=True)
            if owner == rank
        }
        moves = {n: target for n, owner, target in zip(numbers, owners, targets, strict=True) if owner != target}
        mine = {number: dict(row) for number, row in held.items() if number not in moves}
        if moves:
            leaving = {number: row for number, row in held.items() if number in moves}
            for number, row in gather_object(list(zip(leaving, copy_rows(list(leaving.values()), "cpu"), strict=True))):
                if moves[number] == rank:
                    mine[number] = copy_row(row, self.accelerator.device)
        return mine

    # The loss -------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs: dict[str, Any]) -> Tensor:
        """This pass's part of the GPG loss (times the number of processes): sum_i w_i sum_t -log pi(o_it)."""
        logps, entropies = self._log_probs(model, inputs)
        mask = _loss_mask(inputs)
        terms = -logps * mask * _column(inputs["loss_weights"], logps)
        kl_terms = torch.zeros_like(terms)
        loss = terms.sum()
        counted = mask * _column(inputs["kl_weights"] != 0, mask)  # all but the rows that only keep processes in step
        sums = {"entropy": (entropies, counted), "tokens/trained": (torch.ones_like(logps), counted)}
        if self.aux_loss_enabled and "aux_weight" in inputs:
            if "aux_loss" not in inputs:
                raise RuntimeError(
                    f"{type(self).__name__}._log_probs left no 'aux_loss' in the batch, but router_aux_loss_coef is "
                    f"{self.router_aux_loss_coef:g}. Call the parent's _log_probs, or set router_aux_loss_coef=0.0."
                )
            auxiliary, weight = inputs.pop("aux_loss"), inputs["aux_weight"]
            loss = loss + self.router_aux_loss_coef * weight * auxiliary
            sums["aux_loss"] = (auxiliary, torch.full_like(auxiliary, weight))
        if self.model.training:
            sums["tokens/forward"] = (counted.any().double() * inputs["num_tokens"], torch.ones((), device=mask.device))
        if "ref_per_token_logps" in inputs:
            kl = kl_k3(logps, inputs["ref_per_token_logps"])
            kl_terms = kl * mask * _column(inputs["kl_weights"], logps)
            loss = loss + self.beta * kl_terms.sum()
            sums["kl"] = (kl, counted)
        if "sampling_per_token_logps" in inputs:  # engine and trainer disagree a little; NaN where the engine gave none
            gap = (logps.detach() - inputs["sampling_per_token_logps"]).abs()
            sums["sampling/sampling_logp_difference/mean"] = (gap.nan_to_num(), counted * ~gap.isnan())
        self._log_token_means(sums)
        if not self.model.training:
            row_sums = torch.stack([terms.detach().sum(dim=1), kl_terms.detach().sum(dim=1)], dim=1)
            self._evaluated_sums.append(self.accelerator.gather(row_sums).cpu().double())
        return loss

    def _log_probs(self, model, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies of a collated batch, [rows, T].

        In training it leaves the auxiliary loss of a mixture of experts, a scalar, in the batch as `aux_loss`.
        """
        auxiliary = self.aux_loss_enabled and "aux_weight" in batch
        with attention_for(self.accelerator.unwrap_model(model), batch), self.accelerator.autocast():
            logps, entropies, loss = token_scores(model, batch, auxiliary)
        if auxiliary:
            batch["aux_loss"] = loss
        return logps, entropies

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """TRL's, of its padded batches (a reference model, evaluation), by the passes of an update."""
        prompt = slice(0, input_ids.size(1) - logits_to_keep)
        completion = slice(prompt.stop, None)
        images = {key: value for key, value in kwargs.items() if key in MODEL_INPUT_KEYS and value is not None}
        rows = split_rows(
            {
                "prompt_ids": input_ids[:, prompt],
                "prompt_mask": attention_mask[:, prompt],
                "completion_ids": input_ids[:, completion],
                "completion_mask": attention_mask[:, completion],
                **images,
            }
        )
        if not self._probed:
            self._probe(model, rows)
        logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        entropies, step = torch.zeros_like(logps), batch_size or len(rows)
        for start in range(0, len(rows), step):
            batch = self._collate(rows[start : start + step], self.args.share_prompt != "off")
            mask = batch["completion_mask"]
            for whole, part in zip((logps, entropies), self._log_probs(model, batch), strict=True):
                if part is not None:
                    whole[start : start + step, : mask.size(1)] = part * mask
        return logps, entropies if compute_entropy else None, None

    def _log_token_means(self, values: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Logs means of [rows, T] values over the masked tokens of the whole step; one collective per step."""
        sums = torch.stack(
            [torch.stack([(v.detach() * m).sum().double(), m.sum().double()]) for v, m in values.values()]
        )
        training = self.model.training
        if training:
            self._token_sums = sums if self._token_sums is None else self._token_sums + sums
            if not self.accelerator.sync_gradients:
                return
            sums, self._token_sums = self._token_sums, None
        for name, (total, count) in zip(values, self.accelerator.reduce(sums).tolist(), strict=True):
            log = self._metrics["train" if training else "eval"]
            if name.startswith("tokens/"):
                log[name].append(total)
            elif count:
                log[name].append(total / count)


def _loss_mask(batch: dict[str, Any]) -> Tensor:
    """[rows, T], 1 where we train: tokens the model wrote, up to and including the first EOS."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]


def _num_tokens(row: Row) -> int:
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def _column(weights: Tensor, logps: Tensor) -> Tensor:
    """[rows] values as [rows, 1] beside [rows, T] ones; cast before they move, as not every device has float64."""
    return weights.to(logps.dtype).to(logps.device).unsqueeze(1)
