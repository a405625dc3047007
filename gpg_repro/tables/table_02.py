"""Table 2: which components each method needs, published beside what our trainers really hold and do.

Nothing is taken from names or settings where behaviour can be asked: each trainer is built on the smoke base, makes one
optimiser step while its forward passes are counted, and its loss is then differentiated on the rows it trained on.

* value model: any module of the trainer with a scalar output per token;
* reference model: a second set of weights of the policy's size;
* surrogate loss: the gradient changes when the sampling policy's log-probabilities do (a ratio is used);
* policy constraint: the gradient vanishes where the ratio leaves the clip range, or a KL term is added.

PPO and TRPO are published only: both need a critic, TRL 1.16 has no trainer with one, and the paper compares with
neither by experiment.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from matplotlib.figure import Figure

from gpg_repro import fingerprints, plots
from gpg_repro.paths import cache
from gpg_repro.published import published_table
from gpg_repro.tables.files import save_figure, write_report

TITLE = "Table 2: components of each method"
RECIPES = {
    "GRPO": "table1_grpo",
    "Dr. GRPO": "table1_dr_grpo",
    "DAPO": "table9_dapo",
    "GPG": "table1_gpg_age",
    "GPG + KL (ablation)": "table12_gpg_kl",
}
COMPONENTS = {
    "Value Models": "value_model",
    "Reference Models": "reference_model",
    "Surrogate Loss": "surrogate",
    "Policy Constraint": "constraint",
}
"""Printed heading -> field of :class:`Inspection`."""
_SOURCES = Path(__file__).resolve().parents[2]
_SMALL_SHIFT, _LARGE_SHIFT = 0.05, 1.0  # of log pi_old: a ratio inside every clip range, and one far outside


@dataclass(frozen=True)
class Inspection:
    """What one trainer holds, does and costs."""

    method: str
    value_model: bool
    reference_model: bool
    surrogate: bool
    constraint: bool
    clips: bool
    kl: bool
    policy_parameters: int
    other_parameters: int
    """Of everything else the trainer holds: reference model, critic."""
    num_completions: int
    """Sampled in the counted step."""
    num_draws: int
    share_valid: float
    """Of the groups in the counted step's first draw."""
    passes_with_gradient: float
    """Rows put through the policy with gradient, per sampled completion, each with its prompt."""
    passes_without_gradient: float
    """Rows put through any model without gradient outside generation, per sampled completion."""


@functools.cache
def inspected(method: str) -> Inspection:
    """What the trainer of a method (a key of ``RECIPES``) holds and does.

    Table 2 and the claims page ask the same trainers, which takes most of their time, so an answer is kept in
    ``inspections/`` of the cache and read again until something it depends on changes: the code of both packages, the
    smoke base, Python, an installed package or the processor.
    """
    code = fingerprints.code(_SOURCES)
    if fingerprints.changed_since_start(code):  # this process may run what is no longer there: nothing is kept of it
        return inspect_method(method, RECIPES[method])
    folder = cache() / "inspections"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{RECIPES[method]}.json"
    more = [_processor().encode(), method.encode()]
    sources = fingerprints.digest([*fingerprints.contents(code, _SOURCES), *fingerprints.packages(), *more])
    with FileLock(note.with_suffix(".lock")):  # who comes second waits and reads
        if note.exists():
            kept = json.loads(note.read_text(encoding="utf-8"))
            if kept["fingerprint"] == _with_base(sources):
                return Inspection(**kept["inspection"])
        found = inspect_method(method, RECIPES[method])
        if not fingerprints.changed_since_start(code):
            unfinished = note.with_suffix(".unfinished")
            made = {"fingerprint": _with_base(sources), "inspection": asdict(found)}
            unfinished.write_text(json.dumps(made), encoding="utf-8")
            unfinished.replace(note)
    return found


def _processor() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()


def _with_base(sources: str) -> str:
    """A fingerprint with the weights of the smoke base, which the first inspection makes where it is missing."""
    weights = sorted(cache().glob("tiny-base-smoke-*/*.safetensors"))
    return fingerprints.digest([sources.encode(), *fingerprints.contents(weights, cache())])


def inspect_method(method: str, recipe_name: str, seed: int = 0) -> Inspection:
    """Build a recipe's trainer on the smoke base, take one step, and ask it."""
    from transformers import PrinterCallback  # these take seconds

    from gpg_repro.recipe import load_recipe
    from gpg_repro.tiny.warmup import one_thread
    from gpg_repro.train import base_model, build_trainer, training_rows

    recipe = load_recipe(recipe_name, ["max_steps=1"], scale="smoke", seed=seed)
    base = base_model(recipe, progress=False)
    dataset, _ = training_rows(recipe, base)
    with tempfile.TemporaryDirectory() as folder, one_thread():  # the same numbers on any number of cores
        trainer = build_trainer(recipe, base, dataset, Path(folder))
        trainer.args.save_strategy = "no"
        trainer.remove_callback(PrinterCallback)
        with _counting(trainer) as count:
            trainer.train()
        logged = next(line for line in trainer.state.log_history if "num_groups" in line)
        probe = _Probe(trainer, count.inputs)
        modules = _modules(trainer)
    policy = sum(p.numel() for p in trainer.model.parameters())
    held = {id(p): p.numel() for module in modules for p in module.parameters()}
    num_completions = int(logged["num_groups"] * recipe.setup.training.num_generations * logged["num_draws"])
    return Inspection(
        method=method,
        value_model=any(_has_scalar_head(module) for module in modules),
        reference_model=sum(held.values()) - policy >= policy,
        surrogate=probe.uses_ratio(),
        constraint=probe.clips() or probe.has_kl(),
        clips=probe.clips(),
        kl=probe.has_kl(),
        policy_parameters=policy,
        other_parameters=sum(held.values()) - policy,
        num_completions=num_completions,
        num_draws=int(logged["num_draws"]),
        share_valid=logged["num_valid_groups"] / logged["num_groups"],
        passes_with_gradient=count.rows[True] / num_completions,
        passes_without_gradient=count.rows[False] / num_completions,
    )


@dataclass
class _Count:
    rows: dict[bool, int]
    """Rows forwarded outside generation, by whether gradients were recorded."""
    inputs: dict[str, Any] | None = None
    """What the last loss was computed from."""
    apart: bool = False
    """Whether what happens now is not counted."""


@contextlib.contextmanager
def _counting(trainer: Any) -> Iterator[_Count]:
    """Counts rows through the trainer's models, generation apart, and keeps the rows of the last loss."""
    count = _Count({True: 0, False: 0})

    def seen(module, args, kwargs) -> None:
        if not count.apart:
            ids = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else args[0]
            packed = getattr(module.config.get_text_config(), "_packed_layout", None)
            count.rows[torch.is_grad_enabled()] += packed.num_rows if packed else len(ids)

    def apart(function):
        def called(*args, **kwargs):
            count.apart = True
            try:
                return function(*args, **kwargs)
            finally:
                count.apart = False

        return called

    compute_loss = trainer._compute_loss

    def computing(model, inputs):
        count.inputs = inputs
        return compute_loss(model, inputs)

    models = [trainer.model, *([trainer.ref_model] if trainer.ref_model is not None else [])]
    hooks = [model.base_model.register_forward_pre_hook(seen, with_kwargs=True) for model in models]
    trainer.model.generate, trainer._compute_loss = apart(trainer.model.generate), computing
    probes = hasattr(trainer, "_probe")  # GPGTrainer's question before the first pass
    if probes:
        trainer._probe = apart(trainer._probe)
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
        del trainer.model.generate, trainer._compute_loss
        if probes:
            del trainer._probe


class _Probe:
    """Differentiates a trainer's loss on rows it trained on, for chosen log-probabilities of the sampling policy."""

    def __init__(self, trainer: Any, inputs: dict[str, Any]):
        self._trainer, self._inputs = trainer, dict(inputs)
        ones = torch.ones(len(inputs["completion_ids"]), device=inputs["completion_ids"].device)
        # Positive throughout, so that a large ratio is clipped in every row, and no row is without a signal.
        self._inputs |= {name: ones for name in ("advantages", "loss_weights", "kl_weights")}
        with torch.no_grad():
            if "inputs" in inputs:  # GPGTrainer's packed rows
                self._logps, _ = trainer._log_probs(trainer.model, inputs)
            else:
                self._logps, _, _ = trainer._get_per_token_logps_and_entropies(
                    trainer.model,
                    torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                    torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                    inputs["completion_ids"].size(1),
                )
        self._gradients: dict[tuple[float, bool], torch.Tensor] = {}

    def _gradient(self, log_ratio: float, with_kl: bool) -> torch.Tensor:
        """Gradient of the loss when every token is exp(log_ratio) times as likely as when it was sampled."""
        asked = (log_ratio, with_kl)
        if asked not in self._gradients:
            self._gradients[asked] = self._differentiate(*asked)
        return self._gradients[asked]

    def _differentiate(self, log_ratio: float, with_kl: bool) -> torch.Tensor:
        trainer, beta = self._trainer, self._trainer.beta
        trainer.model.zero_grad()
        inputs = {**self._inputs, "old_per_token_logps": self._logps - log_ratio}
        if with_kl and "ref_per_token_logps" in inputs:  # on the first step the policy is its own reference
            inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] - 1.0
        trainer.beta = beta if with_kl else 0.0
        try:
            with torch.enable_grad():
                trainer._compute_loss(trainer.model, inputs).backward()
        finally:
            trainer.beta = beta
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    def uses_ratio(self) -> bool:
        """Does the policy term depend on the policy that sampled?"""
        on_policy = self._gradient(0.0, with_kl=False)
        return _relative_gap(self._gradient(_SMALL_SHIFT, with_kl=False), on_policy) > 1e-3

    def clips(self) -> bool:
        """Does the policy term vanish where the ratio is far outside the clip range?"""
        on_policy = self._gradient(0.0, with_kl=False)
        return float(self._gradient(_LARGE_SHIFT, with_kl=False).norm()) <= 1e-6 * float(on_policy.norm())

    def has_kl(self) -> bool:
        """Does the gradient hold a KL term?"""
        return _relative_gap(self._gradient(0.0, with_kl=True), self._gradient(0.0, with_kl=False)) > 1e-6


def _relative_gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _modules(trainer: Any) -> list[torch.nn.Module]:
    """Every module the trainer holds, each once."""
    found = {id(value): value for value in vars(trainer).values() if isinstance(value, torch.nn.Module)}
    return list(found.values())


def _has_scalar_head(module: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.Linear) and part.out_features == 1 for part in module.modules())


@dataclass
class Matrix:
    """What the notebook shows."""

    frame: pd.DataFrame
    cost: pd.DataFrame
    text: str
    notes: list[str]
    figure: Figure


def build_matrix(scale: str = "tiny", *, results: Path | None = None) -> Matrix:
    """Ask what every trainer was found to be, compare with the printed matrix, write ``table02.{md,csv,html,png}``.

    The inspection runs on the smoke base at every scale: components do not depend on size.
    """
    published = published_table("Table 2")
    found = {method: inspected(method) for method in RECIPES}
    columns = list(COMPONENTS)
    lines = {}
    for method in dict.fromkeys([*published.index, *found]):
        printed = published.loc[method] if method in published.index else None
        ours = found.get(method)
        lines[method] = {
            **{("published (paper v3)", c): "–" if printed is None else _mark(printed[c]) for c in columns},
            **{("our code, found by inspection", c): "–" if ours is None else _mark(getattr(ours, COMPONENTS[c]))
               for c in columns},
        }  # fmt: skip
    frame = pd.DataFrame(lines).T.rename_axis("method")
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    cost = pd.DataFrame({method: _cost(entry) for method, entry in found.items()}).T.rename_axis("method")
    text, notes = _text(published, found), _notes(found)
    long = pd.DataFrame([{"scale": "smoke", "recipe": RECIPES[m], **vars(entry)} for m, entry in found.items()])
    sections = [(None, frame), ("Cost of one step (smoke base)", cost)]
    write_report("table02", TITLE, sections, [*text.split("\n\n"), *notes], scale, long, results)
    figure = save_figure(plots.components_figure(frame, _passes(found)), "table02", scale, results)
    return Matrix(frame, cost, text, notes, figure)


def _passes(found: dict[str, Inspection]) -> dict[str, tuple[float, float, float]]:
    return {
        m: (e.passes_with_gradient, e.passes_without_gradient, 1 + e.other_parameters / e.policy_parameters)
        for m, e in found.items()
    }


def _mark(value: bool) -> str:
    return "yes" if value else "no"


def _cost(entry: Inspection) -> dict[str, str]:
    total = entry.policy_parameters + entry.other_parameters
    return {
        "parameters held": f"{total:,}",
        "× policy": f"{total / entry.policy_parameters:.2f}",
        "forward passes per completion, with gradient": f"{entry.passes_with_gradient:.2f}",
        "without gradient": f"{entry.passes_without_gradient:.2f}",
        "share of valid groups": f"{entry.share_valid:.2f}",
        "completions counted": str(entry.num_completions),
    }


def _text(published: pd.DataFrame, found: dict[str, Inspection]) -> str:
    lines = []
    for method in published.index:
        if method not in found:
            lines.append(f"{method}: published only; no critic is trained here.")
            continue
        differing = [
            c for c, name in COMPONENTS.items() if bool(published.loc[method, c]) != getattr(found[method], name)
        ]
        lines.append(
            f"{method}: our trainer "
            + ("has exactly the printed components." if not differing else f"differs in {', '.join(differing)}.")
        )
    rivals = [m for m in found if m not in published.index]
    lines.append(f"{', '.join(rivals)}: not in the printed table.")
    constraint = {m: [n for n, has in (("clipping", e.clips), ("KL", e.kl)) if has] for m, e in found.items()}
    lines.append(
        "What constrains the policy: "
        + "; ".join(f"{m}: {' and '.join(c) or 'nothing'}" for m, c in constraint.items())
        + "."
    )
    gpg, grpo = found["GPG"], found["GRPO"]
    held = {
        m: (e.policy_parameters + e.other_parameters) / e.policy_parameters for m, e in (("GPG", gpg), ("GRPO", grpo))
    }
    lines.append(
        f"Cost of one step on the smoke base: GPG holds {held['GPG']:.2f} times the policy's parameters and makes "
        f"{gpg.passes_with_gradient + gpg.passes_without_gradient:.2f} forward passes per completion "
        f"({100 * gpg.share_valid:.0f} % of its groups were valid), GRPO {held['GRPO']:.2f} times and "
        f"{grpo.passes_with_gradient + grpo.passes_without_gradient:.2f} passes."
    )
    return "\n\n".join(lines)


def _notes(found: dict[str, Inspection]) -> list[str]:
    return [
        "Published: Table 2 of arXiv 2504.02546v3.",
        "PPO and TRPO need a value model; TRL 1.16 has no trainer with one and the paper's experiments hold neither.",
        "TRPO's printed row has no reference model though its constraint is a KL divergence (to the previous policy).",
        "On-policy training with one update per batch makes every ratio 1: the surrogate and its clipping are there in "
        "GRPO, Dr. GRPO and DAPO, and never act. The KL term of GRPO does.",
        "Cost: one optimiser step on the smoke base; generation is left out of the passes, being the same for all. GPG "
        "puts only groups with a signal through the model; with a KL term every row carries a gradient.",
        "GPG + KL is our ablation (recipe table12_gpg_kl), not the method.",
    ]
