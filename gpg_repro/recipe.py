"""Recipes: one YAML file per experiment, named for the table row it serves, complete for each of its scales.

``load_recipe`` turns a file (or a name from ``gpg_repro/recipes``) plus ``key=value`` overrides into one resolved,
typed :class:`Recipe`. Unknown keys are errors; every problem of the file is reported at once, before a model is loaded.
What each key means: docs/recipes.md.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from eval_harness.errors import UserError, unknown
from eval_harness.inputs import parse_yaml, read_yaml_mapping
from gpg_repro.datasets import Columns, TrainingSet, all_training_sets, find_training_set
from gpg_repro.prompts import SYSTEM_PROMPTS
from gpg_repro.rewards import get_reward

Scale = Literal["smoke", "tiny", "paper"]
SCALES: tuple[str, ...] = get_args(Scale)
Method = Literal["gpg", "grpo", "dr_grpo", "dapo", "sft"]
"""``sft`` is supervised fine-tuning on the demonstrations of the training set (TRL's SFTTrainer)."""
RECIPES = Path(__file__).parent / "recipes"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(_Strict):
    """The switches of the method (spec of each: ``gpg_repro.trainer.GPGConfig``)."""

    f_norm: Literal["none", "group", "batch"]
    age: bool
    beta_th: float = Field(default=0.0, ge=0, le=1)
    """Smallest admissible share of valid groups; below it, further prompts are drawn. 0 is off."""
    max_draws: int = Field(default=20, ge=1)
    normalization: Literal["group", "sequence", "batch", "local", "constant"]
    """``constant`` divides by the generation limit (Dr. GRPO only)."""
    beta_kl: float = Field(ge=0)
    logp_temperature: Literal["sampling", "one"] = "sampling"
    fixed_alpha: float | None = Field(default=None, gt=0)
    """A constant in the place of alpha = B/(B-M)."""
    alpha_from: str | None = None
    """A recipe: fixed_alpha is the mean ``alpha_applied`` of its finished run at the same scale and seed."""
    epsilon: float = Field(default=0.2, gt=0)
    epsilon_high: float | None = Field(default=None, gt=0)
    """Clip range of the rivals' probability ratio, below and above 1; null: the same on both sides."""


def _switch(value: Any) -> Any:
    """YAML reads a bare `on` or `off` as a truth value."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Training(_Strict):
    """Optimisation and sampling. Batch sizes count completions."""

    max_steps: int = Field(ge=1)
    num_generations: int = Field(ge=1)
    """G; 1 for sft."""
    per_device_train_batch_size: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    num_processes: int = Field(ge=1)
    """What the batch is meant for; a launch with another number says so and goes on."""
    learning_rate: float = Field(gt=0)
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ]
    lr_scheduler_kwargs: dict[str, float] = {}
    warmup_steps: float = Field(ge=0)
    """A number of steps, or a share of max_steps when below 1."""
    weight_decay: float = Field(ge=0)
    adam_beta2: float = Field(gt=0, lt=1)
    adam_epsilon: float = Field(gt=0)
    max_grad_norm: float = Field(gt=0)
    max_prompt_length: int | None
    """Tokens; longer prompts are taken out and counted (the released code cuts them from the left)."""
    max_completion_length: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_k: int = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    mask_truncated_completions: bool = False
    """Train on no token of a completion that the generation limit cut off; gpg and its rivals."""
    bf16: bool
    gradient_checkpointing: bool
    share_prompt: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """Whether a group's prompt goes through the model once (docs/efficiency.md); gpg only."""
    use_vllm: bool = False
    """Completions from vLLM instead of the model's own generate (docs/scale.md); gpg and its rivals."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """Where vLLM runs: on the training GPUs, or as a server on others."""
    vllm_gpu_memory_utilization: float = Field(default=0.3, gt=0, le=1)
    """Share of a GPU's memory for a colocated vLLM."""
    vllm_tensor_parallel_size: int = Field(default=1, ge=1)
    """Training GPUs that share one colocated model."""
    vllm_server_host: str = "127.0.0.1"
    """Where a vLLM server listens and is asked: this machine alone, unless another name is given."""
    vllm_server_port: int = Field(default=8000, ge=1, le=65535)
    save_steps: int = Field(ge=1)
    keep_checkpoints: bool = False
    """Keep the weights of every save, not of the last one only. Files that say nothing: on below paper scale."""

    def completions_per_step(self, num_processes: int | None = None) -> int:
        """Completions in one optimiser step, of the recipe's number of processes or of another."""
        processes = num_processes or self.num_processes
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * processes

    @property
    def prompts_per_step(self) -> int:
        """Groups in one optimiser step."""
        return self.completions_per_step() // self.num_generations


def _names(value: Any) -> Any:
    """A single name for a list of one."""
    return [value] if isinstance(value, str) and value != "all-linear" else value


class Adapter(_Strict):
    """LoRA: matrices beside frozen weights, by PEFT. The run saves these alone."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """The matrices' product is scaled by alpha / r, with ``rslora`` by alpha / sqrt(r)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Annotated[
        Annotated[list[str], Field(min_length=1)] | Literal["all-linear"], BeforeValidator(_names)
    ] = "all-linear"
    """Last parts of modules' names; ``all-linear``: every linear layer but the output layer."""
    dora: bool = False
    rslora: bool = False
    quantization: Literal["none", "4bit"] = "none"
    """``4bit`` (QLoRA): the frozen weights as bitsandbytes' NF4 with double quantisation, computing in bfloat16."""


class Setup(_Strict):
    """One scale of a recipe: model, data, rewards, training."""

    base: str
    """Hub id, folder, or ``tiny`` / ``smoke``: a base trained on the spot."""
    base_revision: str | None = None
    adapter: Adapter | None = None
    """None: all weights are trained."""
    dataset: str
    """A set of ``gpg_repro.datasets`` by name, a hub id, or a path relative to the current folder."""
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    columns: Columns | None = None
    """Of a hub id or path; null: the usual names."""
    num_prompts: int | None = Field(default=None, ge=1)
    system_prompt: str | None = None
    prompt_form: Literal["chat", "concatenate"] = "chat"
    """``concatenate``: image and text as they stand, without roles, as a pretrained model takes them."""
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    """Bounds of an image's size after scaling; null: the base's own."""
    rewards: dict[str, float]
    """Empty for sft."""
    training: Training

    def training_set(self) -> TrainingSet:
        """The set that ``dataset`` names.

        Raises:
            UserError: see :func:`gpg_repro.datasets.find_training_set`.
        """
        columns = self.columns and self.columns.model_dump()
        return find_training_set(self.dataset, columns, self.dataset_config, self.dataset_split, self.dataset_revision)

    @property
    def image_column(self) -> str | None:
        """Column of the images; None: a set of text. The data need not be there."""
        if self.dataset in all_training_sets():
            return all_training_sets()[self.dataset].image
        return self.columns.image if self.columns else None


_LATER_KEYS = ("beta_th", "max_draws", "fixed_alpha", "alpha_from", "epsilon", "epsilon_high")
_OWN_DATA = ("columns", "dataset_config", "dataset_split", "dataset_revision")
_LATER_SETUP_KEYS = ("prompt_form", "min_pixels", "max_pixels", "adapter", *_OWN_DATA)
_LATER_TRAINING_KEYS = ("share_prompt", "use_vllm", "mask_truncated_completions")
"""Keys that came after the first records: at their defaults they stay out of the fingerprint."""
VLLM_PLACE = tuple(key for key in Training.model_fields if key.startswith("vllm_"))
"""Where vLLM runs, not what it is asked: a run that is moved to other machines goes on."""


class Recipe(_Strict):
    """A recipe at one scale, with nothing left to default."""

    name: str
    title: str
    serves: str
    method: Method
    fidelity: Literal["paper", "r0", "r1", "r2"]
    scale: Scale
    seed: int = Field(ge=0)
    objective: Objective
    setup: Setup

    def fingerprint(self, base_identity: str) -> str:
        """Hash of everything that can move the trained weights."""
        return hashlib.sha256(
            json.dumps([_moving(self.model_dump()), base_identity], sort_keys=True).encode()
        ).hexdigest()[:12]

    def describes(self, recorded: Mapping[str, Any]) -> bool:
        """Whether a run's recorded recipe differs from this one in nothing but its seed and what drew its samples."""
        ours, theirs = (_moving(copy.deepcopy(dict(r))) for r in (self.model_dump(), recorded))
        for one in (ours, theirs):
            one.pop("seed", None)
            one["setup"]["training"].pop("use_vllm", None)
            if one.get("objective", {}).get("alpha_from"):
                one["objective"].pop("fixed_alpha", None)  # measured when the run was made
        return ours == theirs


def _moving(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a dumped recipe can move the trained weights."""
    for key in ("title", "serves", "status"):
        recipe.pop(key, None)
    for key in ("save_steps", "keep_checkpoints", *VLLM_PLACE):
        recipe["setup"]["training"].pop(key, None)
    setup = recipe["setup"]
    if recipe["method"] != "gpg" and setup["training"]["temperature"] == 1.0:
        # Nothing is divided. The rivals' choice came after their records.
        recipe["objective"]["logp_temperature"] = "sampling"
    for part, model, later in (
        (recipe["objective"], Objective, _LATER_KEYS),
        (setup, Setup, _LATER_SETUP_KEYS),
        (setup["training"], Training, _LATER_TRAINING_KEYS),
    ):
        for key in later:
            if key in part and part[key] == model.model_fields[key].default:
                del part[key]
    return recipe


# --- Rules between fields --------------------------------------------------------------------------------------------

_RULES: list[tuple[tuple[str, ...], Callable[..., str | None]]] = []


def _rule(*fields: str) -> Callable:
    """Registers a check of these fields' values. It returns what is wrong, or None, and is left out when one of the
    values is itself unusable."""

    def register(check: Callable[..., str | None]) -> Callable[..., str | None]:
        _RULES.append((fields, check))
        return check

    return register


_BATCH = tuple(
    f"training.{key}"
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes", "num_generations")
)


@_rule(*_BATCH)
def _whole_groups(per_device: int, accumulation: int, processes: int, generations: int) -> str | None:
    rows = per_device * accumulation * processes
    if rows % generations == 0:
        return None
    return (
        f"{per_device} completions per device x {accumulation} accumulation steps x {processes} processes = {rows} is "
        f"not a multiple of num_generations = {generations}: make it one."
    )


@_rule("fidelity", "training.per_device_train_batch_size", "training.num_generations")
def _r2_holds_groups(fidelity: str, per_device: int, generations: int) -> str | None:
    if fidelity != "r2" or per_device % generations == 0:
        return None
    return (
        f"fidelity r2 keeps whole groups on a device: per_device_train_batch_size = {per_device} has to be a multiple "
        f"of num_generations = {generations}."
    )


@_rule("objective.age", "objective.fixed_alpha", "objective.alpha_from")
def _one_alpha(age: bool, fixed_alpha: float | None, alpha_from: str | None) -> str | None:
    given = [name for name, on in (("age", age), ("fixed_alpha", fixed_alpha), ("alpha_from", alpha_from)) if on]
    if len(given) < 2:
        return None
    return f"{' and '.join(given)} each set the factor of the loss: keep one of them."


@_rule("method", "objective.normalization")
def _normalizer(method: str, normalization: str) -> str | None:
    if method == "sft":
        return None
    if normalization == "constant" and method != "dr_grpo":
        return f"normalization constant is Dr. GRPO's; method {method} cannot have it."
    if normalization == "group" and method != "gpg":
        return f"TRL has no normalization group (Eq. 5) for method {method}; use local, sequence or batch."
    return None


@_rule(
    "method",
    "objective.age",
    "objective.beta_th",
    "objective.fixed_alpha",
    "objective.alpha_from",
)
def _rivals(method: str, age: bool, beta_th: float, alpha: float | None, alpha_from: str | None) -> str | None:
    if method in ("gpg", "sft"):
        return None
    switches = {"age": age, "beta_th": beta_th, "fixed_alpha": alpha, "alpha_from": alpha_from}
    given = [name for name, value in switches.items() if value]
    return f"method {method} is TRL's own and has no {', '.join(given)}: only gpg does." if given else None


@_rule("method", "training.share_prompt")
def _sharing(method: str, share_prompt: str) -> str | None:
    if method == "gpg" or share_prompt == "auto":
        return None
    return f"method {method} is TRL's own and cannot share prompts: leave share_prompt out."


@_rule("method", "training.use_vllm")
def _sampling(method: str, use_vllm: bool) -> str | None:
    return "method sft samples nothing: leave use_vllm out." if method == "sft" and use_vllm else None


@_rule("method", "training.mask_truncated_completions")
def _masking(method: str, mask: bool) -> str | None:
    if method != "sft" or not mask:
        return None
    return "method sft learns from demonstrations, which nothing cuts off: leave mask_truncated_completions out."


@_rule("training.use_vllm", "training.vllm_mode", "training.vllm_tensor_parallel_size", "training.num_processes")
def _vllm_share(use_vllm: bool, mode: str, size: int, processes: int) -> str | None:
    if not use_vllm or mode != "colocate" or processes % size == 0:
        return None
    return (
        f"{processes} processes cannot be split into groups of vllm_tensor_parallel_size = {size}: make it a divisor."
    )


@_rule("method", "objective.epsilon", "objective.epsilon_high")
def _clip_range(method: str, epsilon: float, epsilon_high: float | None) -> str | None:
    if method == "gpg" and (epsilon, epsilon_high) != (0.2, None):
        return "gpg has no probability ratio to clip: leave epsilon and epsilon_high out."
    return None


@_rule("method", "objective.f_norm")
def _rivals_f_norm(method: str, f_norm: str) -> str | None:
    if method == "sft":
        return None
    own = {"dr_grpo": "none", "dapo": "group"}.get(method, f_norm)
    return None if f_norm == own else f"method {method} means f_norm {own}, got {f_norm}."


@_rule("method", "objective.f_norm", "objective.age", "objective.beta_th", "objective.fixed_alpha", "objective.beta_kl")
def _supervised(method: str, f_norm: str, age: bool, beta_th: float, alpha: float | None, beta_kl: float) -> str | None:
    if method != "sft" or (f_norm, age, beta_th, alpha, beta_kl) == ("none", False, 0.0, None, 0.0):
        return None
    return "method sft has no advantages: its objective must be f_norm none, age false, beta_th 0, beta_kl 0."


@_rule("method", "objective.logp_temperature")
def _supervised_temperature(method: str, temperature: str) -> str | None:
    if method != "sft" or temperature == "sampling":
        return None
    return "method sft divides no logits: leave logp_temperature out."


@_rule("method", "setup.rewards", "training.num_generations")
def _rewards_or_demonstrations(method: str, rewards: Mapping[str, float], generations: int) -> str | None:
    if method == "sft":
        good = not rewards and generations == 1
        return None if good else "method sft samples nothing: rewards must be {} and num_generations 1."
    if not rewards:
        return "rewards is empty: name at least one reward and its weight."
    return None if generations > 1 else "num_generations 1: a group needs at least 2 completions to compare."


@_rule("setup.min_pixels", "setup.max_pixels")
def _pixels(low: int | None, high: int | None) -> str | None:
    return f"min_pixels {low} is more than max_pixels {high}." if low and high and low > high else None


@_rule("objective.alpha_from", "scale")
def _alpha_source(alpha_from: str | None, scale: str) -> str | None:
    if alpha_from is None:
        return None
    if alpha_from not in recipe_names():
        return f"alpha_from: {unknown('recipe', alpha_from, recipe_names())}"
    source = _read(RECIPES / f"{alpha_from}.yaml")[0]
    if source["objective"].get("alpha_from"):
        return f"alpha_from {alpha_from}: that recipe takes its own alpha from another run; name one that measures it."
    return None if scale in source["scales"] else f"alpha_from {alpha_from}: that recipe has no scale {scale}."


@_rule("method", "setup.dataset", *(f"setup.{key}" for key in _OWN_DATA), "setup.num_prompts", "setup.system_prompt")
def _data(
    method: str,
    dataset: str,
    columns: Mapping[str, str] | None,
    config: str | None,
    split: str | None,
    revision: str | None,
    num_prompts: int | None,
    system_prompt: str | None,
) -> str | None:
    try:
        found = find_training_set(dataset, columns, config, split, revision)
    except UserError as error:
        return str(error)
    if callable(found.source) and num_prompts is None:
        return f"training set {dataset} is generated: say num_prompts."
    if found.ready_made and system_prompt:
        return f"training set {dataset} brings its whole prompt: system_prompt must be null."
    if method != "sft" and found.demonstration:
        return f"columns.demonstration is for method sft; {method} learns from rewards. Leave it out."
    return None


@_rule("setup.dataset", "setup.prompt_form")
def _whole_prompt(dataset: str, prompt_form: str) -> str | None:
    found = all_training_sets().get(dataset)
    if found and found.ready_made and found.image and prompt_form != "concatenate":
        return f"training set {dataset} brings its whole prompt beside the image: prompt_form must be concatenate."
    return None


@_rule("setup.adapter", "training.use_vllm")
def _quantized_sampling(adapter: Mapping[str, Any] | None, use_vllm: bool) -> str | None:
    if not use_vllm or not adapter or adapter.get("quantization", "none") == "none":
        return None
    return (
        "adapter.quantization: TRL sends the packed 4-bit weights to vLLM, which cannot load them. Set it to none, or "
        "leave use_vllm out."
    )


@_rule("setup.system_prompt")
def _prompt_exists(name: str | None) -> str | None:
    return None if name is None or name in SYSTEM_PROMPTS else str(unknown("system prompt", name, SYSTEM_PROMPTS))


@_rule("setup.rewards")
def _rewards_exist(rewards: Mapping[str, float]) -> str | None:
    problems = []
    for name in rewards:
        try:
            get_reward(name)
        except UserError as error:
            problems.append(str(error))
    return " ".join(problems) or None


# --- Reading ---------------------------------------------------------------------------------------------------------

_FILE_KEYS = ("title", "serves", "method", "fidelity", "objective", "scales")
_REPLACED_WHOLE = ("rewards", "lr_scheduler_kwargs")
"""Mappings whose keys are names of the user's choosing: a file that extends another replaces them whole."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_scales(name: str) -> list[str]:
    """The scales a recipe has, in the order smoke, tiny, paper."""
    raw = _read(_path(name))[0]
    return [scale for scale in SCALES if scale in raw["scales"]]


def load_recipe(name: str, overrides: Iterable[str] = (), *, scale: str = "tiny", seed: int = 0) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: packaged name, or path of a YAML file.
        overrides: ``key=value`` strings: ``scale``, ``seed``, any key of the setup, its training or the objective, by
            its bare name (``max_steps=5``) or its path (``training.max_steps=5``); keys of ``adapter`` and ``columns``
            by their path alone. Values are read as YAML.
        scale, seed: used unless overridden.

    Raises:
        UserError: unknown recipe, scale or key, or values that do not fit. All problems of the file (every scale of it)
            and of the overrides come together.
    """
    path = _path(name)
    raw, problems = _read(path)
    settings = []
    for override in overrides:
        try:
            settings.append(_split(override))
        except UserError as error:
            problems.append(str(error))
    top = dict(s for s in settings if s[0] in ("scale", "seed"))
    scale, seed = top.get("scale", scale), top.get("seed", seed)
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale not in raw["scales"]:
        raise UserError(f"recipe {path.stem} has no scale {scale!r}; it has {', '.join(raw['scales'])}.")

    recipe, seen = None, set()
    for each in [scale, *(s for s in SCALES if s in raw["scales"] and s != scale)]:
        resolved: dict[str, Any] = {
            **{key: copy.deepcopy(raw[key]) for key in _FILE_KEYS if key in raw and key != "scales"},
            "name": path.stem,
            "scale": each,
            "seed": seed,
            "setup": copy.deepcopy(raw["scales"][each]),
        }
        _keep_small_checkpoints(resolved)
        if each == scale:
            for key, value in settings:
                if key not in top:
                    problems += _override(resolved, key, value)
        checked, found = _check(resolved)
        recipe = recipe or (checked if each == scale else None)
        label = "" if each == scale else f"scale {each}: "
        problems += [label + problem for problem in found if problem not in seen]
        seen |= set(found)
    if problems:
        raise UserError(f"recipe {path.stem} ({scale}) cannot be used:\n" + "\n".join(f"- {p}" for p in problems))
    return recipe


def _path(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    return RECIPES / f"{name}.yaml"


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A recipe file with what it extends merged in, and what is wrong with its top-level keys."""
    raw = _read_yaml(path)
    if "extends" in raw:
        parent_name = raw.pop("extends")
        parent = _read_yaml(_parent_path(path, parent_name))
        if "extends" in parent:
            raise UserError(
                f"recipe file {path}: extends {parent_name}, which extends {parent['extends']} itself; only one level "
                "is allowed."
            )
        raw = _merge(parent, raw)
        if isinstance(raw.get("scales"), Mapping):  # a scale set to null is one the file that extends does without
            raw["scales"] = {key: value for key, value in raw["scales"].items() if value is not None}
    if not isinstance(raw.get("scales"), Mapping):
        raise UserError(f"recipe file {path}: expected a mapping with the keys {', '.join(_FILE_KEYS)}.")
    known = (*_FILE_KEYS, "extends")
    problems = [f"unknown key {key!r}{_closest(key, known)}" for key in raw if key not in known]
    problems += [f"missing key {key!r}" for key in _FILE_KEYS if key not in raw]
    problems += [f"unknown scale {key!r}{_closest(key, SCALES)}" for key in raw["scales"] if key not in SCALES]
    return raw, problems


def _parent_path(path: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise UserError(f"recipe file {path}: extends names one recipe, got {name!r}.")
    return path.parent / name if name.endswith((".yaml", ".yml")) else _path(name)


def _read_yaml(path: Path) -> dict[str, Any]:
    return read_yaml_mapping(path, "recipe file", f" with the keys {', '.join(_FILE_KEYS)}")


def _merge(parent: Any, child: Any) -> Any:
    """The child laid over the parent, mapping by mapping; everything else is the child's."""
    if not (isinstance(parent, Mapping) and isinstance(child, Mapping)):
        return child
    merged = dict(parent)
    for key, value in child.items():
        merged[key] = value if key in _REPLACED_WHOLE or key not in parent else _merge(parent[key], value)
    return merged


def _split(override: str) -> tuple[str, Any]:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: expected key=value, e.g. max_steps=20.")
    try:
        parsed = parse_yaml(value)
    except ValueError:
        raise UserError(f"override {override!r}: the value is not valid YAML.") from None
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            parsed = float(parsed)  # YAML reads 1e-6 (no point) as text
    return key, parsed


def _keep_small_checkpoints(resolved: dict) -> None:
    """Below paper scale a checkpoint takes a few megabytes: they are kept unless the file says otherwise."""
    setup = resolved["setup"]
    training = setup.get("training") if isinstance(setup, dict) else None
    if isinstance(training, dict):
        training.setdefault("keep_checkpoints", resolved["scale"] != "paper")


def _override(resolved: dict, key: str, value: Any) -> list[str]:
    """Set one key; returns what is wrong with it, if anything."""
    setup = resolved["setup"] if isinstance(resolved.get("setup"), dict) else {}
    sections = {
        "training": (setup.get("training"), Training.model_fields),
        "objective": (resolved.get("objective"), Objective.model_fields),
        "setup": (setup, Setup.model_fields),
    }
    section, _, leaf = key.rpartition(".")
    place = section.removeprefix("setup.")
    if place in _PARTS:  # not by their bare names: `alpha` is not only LoRA's
        if leaf not in (fields := _PARTS[place].model_fields):
            return [f"unknown recipe key {key!r}{_closest(leaf, fields)} Known in {place}: {', '.join(fields)}."]
        if setup.get(place) is None:
            setup[place] = {}
        sections[place] = (setup[place], fields)
    for one in [place] if section else list(sections):
        target, fields = sections.get(one, ({}, {}))
        if leaf in fields:
            if isinstance(target, dict):  # what is no mapping is reported as such
                target[leaf] = value
            return []
    known = ["scale", "seed", *(f for _, fields in sections.values() for f in fields if f != "training")]
    return [f"unknown recipe key {key!r}{_closest(leaf, known)} Known: {', '.join(known)}."]


_PARTS: dict[str, type[BaseModel]] = {"adapter": Adapter, "columns": Columns}
"""Optional sections of a setup."""


# --- Checking --------------------------------------------------------------------------------------------------------


def _check(resolved: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe if its values fit, and everything that is wrong with them."""
    errors: list[dict[str, Any]] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(resolved)
    except ValidationError as error:
        errors = error.errors()
    unusable = [".".join(map(str, error["loc"])) for error in errors]
    problems = [
        f"{_where(error)}: {_what(error)}"
        for error in errors
        if not (error["type"] == "missing" and len(error["loc"]) == 1)  # the file's own list names it
    ]
    values = recipe.model_dump() if recipe else resolved
    for fields, check in _RULES:
        places = [field.replace("training.", "setup.training.") for field in fields]
        if any(_touches(place, bad) for place in places for bad in unusable):
            continue
        with contextlib.suppress(TypeError):  # a number written as text: checked once the rest fits
            found = check(*(_value(values, place) for place in places))
            problems += [found] if found else []
    return recipe, problems


def _touches(place: str, bad: str) -> bool:
    """Whether an unusable value lies at, under or above a place."""
    return f"{place}.".startswith(f"{bad}.") or f"{bad}.".startswith(f"{place}.")


def _value(recipe: Mapping[str, Any], place: str) -> Any:
    *sections, leaf = place.split(".")
    models = {"objective": Objective, "setup": Setup, "training": Training}
    for section in sections:
        recipe = recipe[section]
    if leaf in recipe:
        return recipe[leaf]
    return models[sections[-1]].model_fields[leaf].default


def _closest(key: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _where(problem: dict) -> str:
    return ".".join(map(str, problem["loc"])) or "recipe"


def _what(problem: dict) -> str:
    if problem["type"] == "extra_forbidden":
        models = {"setup": Setup, "training": Training, "objective": Objective, **_PARTS}
        parent = problem["loc"][-2] if len(problem["loc"]) > 1 else None
        fields = models[parent].model_fields if parent in models else Recipe.model_fields
        return f"unknown key{_closest(str(problem['loc'][-1]), fields)}"
    given = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
    return f"{problem['msg']}{given if not isinstance(problem['input'], dict) else ''}"
