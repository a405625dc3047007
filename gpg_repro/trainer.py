"""GPG training on TRL: `GPGTrainer` and `GPGConfig`, drop-in where `GRPOTrainer` and `GRPOConfig` are used.

The method is in `gpg_repro.objective`; TRL generates, scores and steps. This module sits between them: once per
generation batch it turns the gathered rewards and completion lengths of all processes into one weight per completion,
and the loss is the weighted sum of -log pi over the tokens. Because every denominator is inside the weights,
micro-batch size, gradient accumulation and the number of processes leave the gradient unchanged
(`normalization="local"` excepted, by definition).

Departures from the paper
 1. Thresholding and resampling (beta_th) are not available yet; every batch is one draw.
 2. A completion without any reward (every reward function returned None) leaves all means, counts and denominators; the
    paper does not meet the case. A group without a scored completion is not counted in B.

Departures from the authors' released code, which `fidelity="r0"` and `"r1"` otherwise follow
 3. alpha and the batch standard deviation come from the whole generation batch, all accumulation steps included, where
    the code takes each micro-batch by itself. There is one alpha per optimiser step.
 4. A group is invalid when its rewards are equal in float32, where the code tests its standard deviation; the
    advantages of such a group are exactly zero.
 5. No reference model is loaded; `open-rs` loads one to log a KL term it does not use.
 6. easy and hard groups are told from the accuracy reward, where the code looks for a total reward of 1 or 0.

Departures from TRL 1.16's GRPOTrainer
 7. No probability ratio, no clipping, no KL term and no reference model. Settings of TRL that would be ignored or would
    break the exactness above are refused, all of them in one error.
 8. The denominators are global. TRL's "grpo" and "bnpo" losses average micro-batch means, and all its losses keep the
    tokens of completions without a reward in the denominator.
 9. For `"local"` the micro-batches are those of arrival order, whole groups together as in the released code; TRL's
    "bnpo" shuffles completions over micro-batches first. With one micro-batch per process they are the same.
10. `logp_temperature="one"` takes log-probabilities from undivided logits, as the code behind the 1.5B rows does.
11. Prompts come in TRL's order also after resuming in a later epoch; TRL's sampler would start over with its first
    permutation. (`GRPOBaselineTrainer` shares this.)
12. `reward_std` is the mean over groups of the within-group standard deviation, as in the released code; TRL logs the
    standard deviation over all rewards under that name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head, get_config_model_id

from gpg_repro.objective import F_NORMS, NORMALIZATIONS, age_alpha, completion_weights, group_advantages, valid_groups

LOGP_TEMPERATURES = ("sampling", "one")

# What each released generation of the method does where the user leaves the choice open (None).
FIDELITY_DEFAULTS = {
    "paper": {"f_norm": "none", "age": True, "normalization": "group", "logp_temperature": "sampling"},
    "r0": {"f_norm": "group", "age": False, "normalization": "local", "logp_temperature": "one"},
    "r1": {"f_norm": "none", "age": True, "normalization": "local", "logp_temperature": "sampling"},
}
R1_MIN_INVERSE_ALPHA = 0.05  # R1 divides by max(1 - M/B, 0.05): alpha is at most 20

# TRL settings that GPG's loss would ignore or that break its exactness: the only value accepted, and the reason.
REQUIRED_SETTINGS: dict[str, tuple[Any, str]] = {
    "loss_type": ("gpg", "the loss is GPG's; choose its denominators with normalization"),
    "beta": (0.0, "GPG has no KL term and no reference model"),
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
    "router_aux_loss_coef": (0.0, "GPG has no auxiliary loss"),
}

# Keys of TRL's generation batch that the model's forward may need beside the token ids (images).
MODEL_INPUT_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


@dataclass
class GPGConfig(GRPOConfig):
    """Settings of `GPGTrainer`: TRL's `GRPOConfig` plus the switches of the method.

    `None` in `f_norm`, `age`, `normalization` or `logp_temperature` means "as `fidelity` has it" and is resolved on
    construction; a value that is given wins.

    Raises:
        ValueError: an unknown choice, a TRL setting that contradicts GPG, or `steps_per_generation` other than
            `gradient_accumulation_steps`. All problems are reported together.
    """

    fidelity: str = field(
        default="paper",
        metadata={"help": "Whose defaults: 'paper' (the equations), 'r0' or 'r1' (generations of released code)."},
    )
    f_norm: str | None = field(
        default=None,
        metadata={"help": "Divisor of the advantages, Eq. 6: 'none', 'group' or 'batch' (std). paper: 'none'."},
    )
    age: bool | None = field(
        default=None,
        metadata={"help": "Whether to multiply the loss by alpha = B/(B-M), Eq. 7 and 8. paper: True."},
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
            "help": "Name of the reward function that tells easy and hard groups. Default: the first whose name "
            "contains 'accuracy' or 'cosine', else the total reward."
        },
    )

    # TRL fields whose default has to differ; any other value is refused.
    loss_type: str = field(default="gpg", metadata={"help": "Fixed to 'gpg'; see normalization."})
    scale_rewards: str | None = field(default=None, metadata={"help": "Follows f_norm; set that instead."})
    vllm_importance_sampling_correction: bool = field(default=False, metadata={"help": "Fixed to False."})
    router_aux_loss_coef: float | None = field(default=0.0, metadata={"help": "Fixed to 0."})

    def __post_init__(self):
        problems = self._resolve_fidelity()
        super().__post_init__()
        problems += self._contradictions()
        if problems:
            raise ValueError("GPGConfig cannot be used as given:\n" + "\n".join(f"- {problem}" for problem in problems))
        self.scale_rewards = self.f_norm  # same vocabulary; makes the advantages that TRL logs the ones we use

    def _resolve_fidelity(self) -> list[str]:
        if self.fidelity == "r2":
            return ["fidelity='r2' needs the resampling loop, which is not available yet. Use 'paper', 'r0' or 'r1'."]
        if self.fidelity not in FIDELITY_DEFAULTS:
            return [f"fidelity={self.fidelity!r} is unknown: expected one of 'paper', 'r0', 'r1'."]
        for name, default in FIDELITY_DEFAULTS[self.fidelity].items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        return []

    def _contradictions(self) -> list[str]:
        choices = {"f_norm": F_NORMS, "normalization": NORMALIZATIONS, "logp_temperature": LOGP_TEMPERATURES}
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


def total_rewards(rewards_per_func: Tensor, reward_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rewards of each completion, and whether it has any.

    Args:
        rewards_per_func: [N, F] rewards; NaN where a reward function returned None.
        reward_weights: [F].

    Returns:
        [N] total over the reward functions that answered (0 where none did), and [N] bool, False where none did.
    """
    scored = ~rewards_per_func.isnan().all(dim=1)
    return (rewards_per_func * reward_weights.to(rewards_per_func)).nansum(dim=1), scored


def group_metrics(
    rewards_per_func: Tensor, reward_weights: Tensor, num_generations: int, accuracy_column: int | None = None
) -> dict[str, float]:
    """The group statistics of one generation batch, over all processes.

    A group is *identical* when its total rewards do not differ, *easy* when all its completions are right and *hard*
    when all are wrong (the paper's Figure 2 caption swaps the two). With an accuracy reward, right means a reward of at
    least 0.5: 1 of 0/1, or the upper branch of the cosine-scaled one. Without one, the total reward has to be 1 (easy)
    or 0 (hard).

    Args:
        rewards_per_func: [N, F] gathered rewards; NaN where a reward function returned None.
        reward_weights: [F].
        num_generations: G.
        accuracy_column: column of the accuracy reward, or None to judge by the total reward.

    Returns:
        `num_groups` (B, groups with a reward), `num_valid_groups` (B - M), `alpha` (B / (B - M), 0.0 if none is valid),
        `inverse_alpha`, `frac_identical`, `frac_easy`, `frac_hard` (shares of B), `reward_std` (mean over groups of the
        within-group sample standard deviation of the total reward, identical groups included) and
        `num_unscored_completions`. With B = 0, shares and standard deviation are NaN.
    """
    rewards, scored = total_rewards(rewards_per_func, reward_weights)
    num_valid = int(valid_groups(rewards, num_generations, scored=scored).sum())
    grouped, counted = rewards.view(-1, num_generations), scored.view(-1, num_generations)
    num_groups = int(counted.any(dim=1).sum())

    if accuracy_column is None:
        right, wrong, judged = grouped == 1, grouped == 0, counted
    else:
        accuracy = rewards_per_func[:, accuracy_column].view(-1, num_generations)
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


class GroupMetricsMixin:
    """Logs the group statistics of the paper beside TRL's metrics; changes nothing else. Put it before `GRPOTrainer`.

    Per generation batch, in training and evaluation: everything of `group_metrics` (its `reward_std` replaces TRL's),
    `alpha_applied` (the factor in this trainer's loss), `num_draws`, `num_dropped_groups` (valid groups sampled but not
    trained on), `completion_length` (mean tokens, EOS included) and `rewards/<name>` (mean of each reward function).

    Raises:
        ValueError: `accuracy_reward` of the config names no reward function.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._accuracy_column = self._find_accuracy_reward(getattr(self.args, "accuracy_reward", None))
        self._rewards_per_func: Tensor | None = None  # [N, F] gathered rewards of the latest generation batch

    def _find_accuracy_reward(self, name: str | None) -> int | None:
        names = self.reward_func_names
        if name is not None and name not in names:
            raise ValueError(f"accuracy_reward={name!r} is not a reward function: expected one of {names}.")
        candidates = [name] if name else [n for n in names if "accuracy" in n.lower() or "cosine" in n.lower()]
        return names.index(candidates[0]) if candidates else None

    def _calculate_rewards(self, *args, **kwargs) -> Tensor:
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        training = self.model.training
        num_generations = self.num_generations if training else self.num_generations_eval
        metrics = group_metrics(self._rewards_per_func, self.reward_weights, num_generations, self._accuracy_column)
        log = self._metrics["train" if training else "eval"]
        log["reward_std"].pop()  # TRL's, over all rewards
        metrics |= {
            "alpha_applied": self._alpha_applied(metrics["num_groups"], metrics["num_valid_groups"]),
            "num_draws": 1,
            "num_dropped_groups": 0,
            "completion_length": log["completions/mean_length"][-1],
        }
        metrics |= {f"rewards/{name}": log[f"rewards/{name}/mean"][-1] for name in self.reward_func_names}
        for name, value in metrics.items():
            log[name].append(value)
        return batch

    def _alpha_applied(self, num_groups: int, num_valid: int) -> float:
        """The factor by which this trainer's loss is corrected for groups without signal."""
        return 1.0


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


class ResumableOrderMixin:
    """Makes a run that is resumed in a later epoch see the prompts an undisturbed one would see."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        sampler = super()._get_train_sampler(dataset)
        # One chunk of batch_size prompts is one optimiser step, times the updates each generation batch serves.
        steps_per_generation = self.args.steps_per_generation * self.num_iterations
        steps_per_epoch = sampler.num_samples // sampler.batch_size * steps_per_generation
        steps_per_epoch //= self.args.gradient_accumulation_steps
        return EpochSampler(sampler, lambda: self.state.global_step // max(steps_per_epoch, 1))


class GRPOBaselineTrainer(GroupMetricsMixin, ResumableOrderMixin, GRPOTrainer):
    """TRL's own GRPOTrainer, logging the metrics of `GroupMetricsMixin`: the comparison rows."""


class GPGTrainer(GroupMetricsMixin, ResumableOrderMixin, GRPOTrainer):
    """Trains with the GPG loss. Arguments are those of TRL's `GRPOTrainer`, with `args` a `GPGConfig`.

    Raises:
        TypeError: `args` is not a `GPGConfig`.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "gpg"]
    _name = "GPG"
    _paper: ClassVar[dict[str, str]] = {
        "title": "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning",
        "id": "2504.02546",
    }

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
        super().__init__(model, reward_funcs, args, *remaining, **kwargs)
        if args.logp_temperature == "one" and args.temperature != 1.0:
            # Replaces the head TRL added: same log-probabilities and entropies, from logits not divided by temperature.
            add_fused_lm_head(
                self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model,
                temperature=1.0,
                cast_lm_head_to_fp32=args.cast_lm_head_to_fp32,
                outputs=("log_probs", "entropy"),
            )
        # Sums over the micro-batches of one optimiser step, reduced over processes at its end by `_log_token_mean`.
        self._token_sums: dict[str, Tensor] = {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self._weigh_completions(super()._generate_and_score_completions(inputs))

    def _weigh_completions(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turns the scored generation batch into what is trained on: the one place between scoring and the loss.

        Args:
            batch: this process's rows as TRL leaves them, in arrival order (before shuffling and splitting). The
                gathered rewards of all processes are in `self._rewards_per_func`.

        Returns:
            The batch with `advantages` (Eq. 6) replaced and `loss_weights` added, both [rows of this process].
        """
        training = self.model.training
        num_generations = self.num_generations if training else self.num_generations_eval
        rewards, scored = total_rewards(self._rewards_per_func, self.reward_weights)
        lengths = self.accelerator.gather(_loss_mask(batch).sum(dim=1))
        num_local = len(batch["completion_ids"])
        valid = valid_groups(rewards, num_generations, scored=scored)
        num_groups = int(scored.view(-1, num_generations).any(dim=1).sum())

        advantages = group_advantages(rewards, num_generations, self.args.f_norm, scored=scored)
        weights = completion_weights(
            advantages,
            lengths,
            num_generations,
            self.args.normalization,
            self._alpha_applied(num_groups, int(valid.sum())),
            micro_batch_size=num_local // self.args.steps_per_generation if training else num_local,
            scored=scored,
        )
        start = self.accelerator.process_index * num_local
        local = slice(start, start + num_local)
        # Data parallelism averages gradients over processes; the weights are those of a sum.
        loss_weights = weights[local] * self.accelerator.num_processes
        return {**batch, "advantages": advantages[local], "loss_weights": loss_weights}

    def _alpha_applied(self, num_groups: int, num_valid: int) -> float:
        if not self.args.age:
            return 1.0
        if self.args.fidelity == "r1":
            return 1 / max(num_valid / max(num_groups, 1), R1_MIN_INVERSE_ALPHA)
        return age_alpha(num_groups, num_groups - num_valid)

    def _compute_loss(self, model, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's part of the GPG loss (times the number of processes): sum_i w_i sum_t -log pi(o_it)."""
        completion_ids = inputs["completion_ids"]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], completion_ids], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            completion_ids.size(1),
            compute_entropy=True,
            **{key: inputs.get(key) for key in MODEL_INPUT_KEYS},
        )
        mask = _loss_mask(inputs)
        self._log_token_mean("entropy", entropies, mask)
        if "sampling_per_token_logps" in inputs:  # engine and trainer disagree a little; NaN where the engine gave none
            gap = (logps.detach() - inputs["sampling_per_token_logps"]).abs()
            self._log_token_mean("sampling/sampling_logp_difference/mean", gap.nan_to_num(), mask * ~gap.isnan())
        return -(logps * mask * inputs["loss_weights"].unsqueeze(1)).sum()

    def _log_token_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Logs the mean of [rows, T] values over the tokens of the whole step, one collective per optimiser step."""
        sums = torch.stack([(values.detach() * mask).sum(), mask.sum().to(values.dtype)])
        if not self.model.training:
            total, count = self.accelerator.reduce(sums).tolist()
            self._metrics["eval"][name].append(total / max(count, 1.0))
            return
        self._token_sums[name] = self._token_sums.get(name, 0) + sums
        if self.accelerator.sync_gradients:
            total, count = self.accelerator.reduce(self._token_sums.pop(name)).tolist()
            self._metrics["train"][name].append(total / max(count, 1.0))


def _loss_mask(batch: dict[str, Any]) -> Tensor:
    """[rows, T], 1 where we train: tokens the model wrote, up to and including the first EOS."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]
