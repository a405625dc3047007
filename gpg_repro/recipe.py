"""Recipes: one YAML file per experiment, named for the table row it serves, complete for each of its scales.

``load_recipe`` turns a file (or a name from ``gpg_repro/recipes``) plus ``key=value`` overrides into one resolved,
typed :class:`Recipe`. Unknown keys are errors; every problem is reported at once, before a model is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eval_harness.errors import UserError, unknown

Scale = Literal["smoke", "tiny", "paper"]
SCALES: tuple[str, ...] = get_args(Scale)
RECIPES = Path(__file__).parent / "recipes"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(_Strict):
    """The switches of the method (spec of each: ``gpg_repro.trainer.GPGConfig``)."""

    f_norm: Literal["none", "group", "batch"]
    age: bool
    normalization: Literal["group", "sequence", "batch", "local"]
    beta_kl: float = Field(ge=0)
    logp_temperature: Literal["sampling", "one"] = "sampling"


class Training(_Strict):
    """Optimisation and sampling. Batch sizes count completions."""

    max_steps: int = Field(ge=1)
    num_generations: int = Field(ge=2)
    per_device_train_batch_size: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    num_processes: int = Field(ge=1)
    """What the batch is meant for; a launch with another number says so and goes on."""
    learning_rate: float = Field(gt=0)
    lr_scheduler_type: str
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
    bf16: bool
    gradient_checkpointing: bool
    save_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _whole_groups(self) -> Training:
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes
        if rows % self.num_generations:
            raise ValueError(
                f"{self.per_device_train_batch_size} completions per device x {self.gradient_accumulation_steps} "
                f"accumulation steps x {self.num_processes} processes = {rows} is not a multiple of num_generations = "
                f"{self.num_generations}"
            )
        return self

    @property
    def prompts_per_step(self) -> int:
        """Groups in one optimiser step."""
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes
        return rows // self.num_generations


class Setup(_Strict):
    """One scale of a recipe: model, data, rewards, training."""

    base: str
    """Hub id, folder, or ``tiny`` / ``smoke``: a base trained on the spot."""
    base_revision: str | None = None
    dataset: str
    num_prompts: int | None = Field(default=None, ge=1)
    system_prompt: str | None = None
    rewards: dict[str, float] = Field(min_length=1)
    training: Training


class Recipe(_Strict):
    """A recipe at one scale, with nothing left to default."""

    name: str
    title: str
    serves: str
    method: Literal["gpg", "grpo"]
    fidelity: Literal["paper", "r0", "r1", "r2"]
    status: str
    scale: Scale
    seed: int = Field(ge=0)
    objective: Objective
    setup: Setup

    def fingerprint(self, base_identity: str) -> str:
        """Hash of everything that can move the trained weights."""
        moving = self.model_dump(exclude={"title", "serves", "status"})
        moving["setup"]["training"].pop("save_steps")
        return hashlib.sha256(json.dumps([moving, base_identity], sort_keys=True).encode()).hexdigest()[:12]


_FILE_KEYS = ("title", "serves", "method", "fidelity", "status", "objective", "scales")


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str, overrides: Iterable[str] = (), *, scale: str = "tiny", seed: int = 0) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: packaged name, or path of a YAML file.
        overrides: ``key=value`` strings: ``scale``, ``seed``, any key of the setup, its training or the objective, by
            its bare name (``max_steps=5``) or its path (``training.max_steps=5``). Values are read as YAML.
        scale, seed: used unless overridden.

    Raises:
        UserError: unknown recipe, scale or key, or values that do not fit; all problems together.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in recipe_names():
            raise unknown("recipe", name, recipe_names())
        path = RECIPES / f"{name}.yaml"
    raw = _read_yaml(path)
    settings = [_split(override) for override in overrides]
    top = dict(s for s in settings if s[0] in ("scale", "seed"))
    scale, seed = top.get("scale", scale), top.get("seed", seed)
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale not in raw["scales"]:
        raise UserError(f"recipe {path.stem} has no scale {scale!r}; it has {', '.join(raw['scales'])}.")
    resolved: dict[str, Any] = {
        **{key: raw[key] for key in _FILE_KEYS if key != "scales"},
        "name": path.stem,
        "scale": scale,
        "seed": seed,
        "setup": raw["scales"][scale],
    }
    problems = []
    for key, value in settings:
        if key not in top:
            problems += _override(resolved, key, value)
    if problems:
        raise UserError("\n".join(problems))
    try:
        return Recipe.model_validate(resolved)
    except ValidationError as error:
        lines = [f"- {_where(problem)}: {_what(problem)}" for problem in error.errors()]
        raise UserError(f"recipe {path.stem} ({scale}) cannot be used:\n" + "\n".join(lines)) from None


def _read_yaml(path: Path) -> dict:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"recipe file {path} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {path} is not valid YAML: {error}") from None
    if not isinstance(raw, Mapping) or not isinstance(raw.get("scales"), Mapping):
        raise UserError(f"recipe file {path}: expected a mapping with the keys {', '.join(_FILE_KEYS)}.")
    problems = [f"unknown key {key!r}{_closest(key, _FILE_KEYS)}" for key in raw if key not in _FILE_KEYS]
    problems += [f"missing key {key!r}" for key in _FILE_KEYS if key not in raw]
    problems += [f"unknown scale {key!r}{_closest(key, SCALES)}" for key in raw["scales"] if key not in SCALES]
    if problems:
        raise UserError(f"recipe file {path}:\n" + "\n".join(f"- {p}" for p in problems))
    return dict(raw)


def _split(override: str) -> tuple[str, Any]:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r}: expected key=value, e.g. max_steps=20.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML.") from None
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            parsed = float(parsed)  # YAML reads 1e-6 (no point) as text
    return key, parsed


def _override(resolved: dict, key: str, value: Any) -> list[str]:
    """Set one key; returns what is wrong with it, if anything."""
    sections = {
        "training": (resolved["setup"].get("training") or {}, Training.model_fields),
        "objective": (resolved["objective"], Objective.model_fields),
        "setup": (resolved["setup"], Setup.model_fields),
    }
    section, _, leaf = key.rpartition(".")
    places = [section.removeprefix("setup.")] if section else list(sections)
    for place in places:
        target, fields = sections.get(place, ({}, {}))
        if leaf in fields:
            target[leaf] = value
            return []
    known = ["scale", "seed", *(f for _, fields in sections.values() for f in fields if f != "training")]
    return [f"unknown recipe key {key!r}{_closest(leaf, known)} Known: {', '.join(known)}."]


def _closest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _where(problem: dict) -> str:
    return ".".join(map(str, problem["loc"])) or "recipe"


def _what(problem: dict) -> str:
    if problem["type"] == "extra_forbidden":
        models = {"setup": Setup, "training": Training, "objective": Objective}
        parent = problem["loc"][-2] if len(problem["loc"]) > 1 else None
        fields = models[parent].model_fields if parent in models else Recipe.model_fields
        return f"unknown key{_closest(str(problem['loc'][-1]), fields)}"
    given = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
    return f"{problem['msg'].removeprefix('Value error, ')}{given if not isinstance(problem['input'], dict) else ''}"
