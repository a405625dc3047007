"""How much a score hangs on the prompt: one model, the same items and seeds, other templates and system prompts.

Every setting is an ordinary run with records of its own, all through one engine. A difference is paired on the items
and always against the default: the model's own chat template without a system prompt, which is how the benchmarks are
asked (in plain text, for a model that has no template).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from eval_harness import records
from eval_harness.adapters import check_checkpoint
from eval_harness.engines import resolve_engine
from eval_harness.engines.shared import SharedEngine
from eval_harness.errors import UserError, unknown
from eval_harness.identity import model_parts
from eval_harness.records import Sample
from eval_harness.runner import DEFAULT_OUT, Overrides, evaluate
from eval_harness.stats import Estimate, holm, item_differences, mean_of_differences, mean_of_estimates, mean_of_items

TEMPLATES: dict[str, str | None] = {"own": None, "none": "none"}
"""Name -> chat template as ``evaluate`` takes it."""
NO_PROMPT = "none"
"""Name of the setting without a system prompt."""
AVERAGE = "average"


@dataclass(frozen=True)
class Setting:
    """One way to ask."""

    template: str
    """``own`` or ``none``."""
    system: str
    """Name of a system prompt, or ``none``."""

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"template-{self.template}_system-{self.system}"

    @property
    def title(self) -> str:
        """Name for people."""
        template = "own template" if self.template == "own" else "no template"
        return f"{template}, {'no system prompt' if self.system == NO_PROMPT else self.system}"


def grid(prompts: Mapping[str, str], has_template: bool = True) -> list[Setting]:
    """All settings, the default first: templates (outer) times no system prompt and each of ``prompts``."""
    templates = list(TEMPLATES) if has_template else ["none"]
    return [Setting(template, system) for template in templates for system in (NO_PROMPT, *prompts)]


@dataclass(frozen=True)
class Sensitivity:
    """The runs of one model."""

    model: str
    """Name in records."""
    folder: Path
    folders: dict[Setting, Path]
    """The default setting first."""
    benchmarks: tuple[str, ...]

    @property
    def default(self) -> Setting:
        """What the others are compared with."""
        return next(iter(self.folders))


def measure(
    model: str,
    benchmarks: Sequence[str],
    prompts: Mapping[str, str],
    *,
    out: Path | None = None,
    engine: str = "auto",
    overrides: Overrides | None = None,
    only: Sequence[str] = (),
    shared: SharedEngine | None = None,
    progress: bool = True,
    **options: Any,
) -> Sensitivity:
    """Run a model under every setting; finished runs are read, interrupted ones resumed.

    Args:
        prompts: name -> system prompt.
        out: folder of the run folders; default ``results/runs/sensitivity-<model>-<hash of what was asked>``.
        overrides: as for ``evaluate``, without a system prompt: the same for every setting.
        only: names of system prompts (and ``none``) to take; the default setting is always there.
        shared: an engine that other runs use, too; default: one for this grid.
        options: further arguments of :func:`eval_harness.runner.evaluate` but ``chat_template`` and ``label``.

    Raises:
        UserError: see ``evaluate``; an unknown system prompt; ``overrides`` with one of its own.
        EngineError: the engine died; what was finished is kept, the same call resumes.
    """
    engine, overrides = resolve_engine(engine), overrides or Overrides()
    if overrides.system_prompt is not None:
        raise UserError("the system prompts are what is varied here; leave --system-prompt away.")
    for name in only:
        if name not in (NO_PROMPT, *prompts):
            raise unknown("system prompt", name, (NO_PROMPT, *prompts))
    if engine == "openai":
        identity = {"name": model, "revision": None, "weights": None, "chat_template": True}
    else:
        identity = check_checkpoint(model, options.get("revision"), options.get("base_model"))
    settings = grid(prompts, identity.get("chat_template") is not False)
    kept = [s for s in settings if not only or s.system in only or s == settings[0]]
    label = identity["name"].replace("/", "--")
    asked = [
        {"name": identity["name"], **model_parts(identity)},
        engine,
        list(benchmarks),
        vars(overrides),
        {name: value for name, value in sorted(options.items()) if not isinstance(value, Path)},
    ]
    digest = xxhash.xxh3_64(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]
    folder = Path(out) if out is not None else DEFAULT_OUT / f"sensitivity-{label}-{digest}"
    folders = {}
    with nullcontext(shared) if shared else SharedEngine() as one_engine:
        for setting in kept:
            system = None if setting.system == NO_PROMPT else prompts[setting.system]
            folders[setting] = evaluate(
                model,
                benchmarks,
                engine=engine,
                out=folder / setting.name,
                overrides=replace(overrides, system_prompt=system),
                chat_template=TEMPLATES[setting.template],
                label=label,
                shared=None if engine == "openai" else one_engine,  # a server takes no time to start
                progress=progress,
                **options,
            )
    return Sensitivity(label, folder, folders, tuple(dict.fromkeys(benchmarks)))


def rows(found: Sensitivity, seed: int = 0, rule: str = "published") -> list[dict[str, Any]]:
    """Scores and paired differences from the default, one dictionary per setting and benchmark, then the average.

    Args:
        seed: of the generator behind permutation tests that are not exact.
        rule: ``published`` or ``strict``.

    Returns:
        Dictionaries with setting, template, system, is_default, benchmark (``average`` for the plain mean of several),
        mean, low, high, num_items, num_samples, failed, truncated, no_answer, difference, difference_low,
        difference_high, p_value, p_kind and p_holm (adjusted over all settings of one benchmark; None for the default
        itself). Scores and differences are fractions.
    """
    rng = np.random.default_rng(seed)
    samples = {setting: _samples(folder, found.benchmarks) for setting, folder in found.folders.items()}
    marks = {setting: {b: _marks(of, rule) for b, of in by_name.items()} for setting, by_name in samples.items()}
    columns: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in found.benchmarks]
    if len(found.benchmarks) > 1:
        columns.append((AVERAGE, found.benchmarks))
    lines = []
    for column, names in columns:
        block = []
        for setting in found.folders:
            mine, default = marks[setting], marks[found.default]
            estimate = _mean([mean_of_items(mine[name]) for name in names])
            line = {
                "setting": setting.title,
                "template": setting.template,
                "system": setting.system,
                "is_default": setting == found.default,
                "benchmark": column,
                **{key: getattr(estimate, key) for key in ("mean", "low", "high", "num_items", "num_samples")},
                **_counts([sample for name in names for sample in samples[setting][name]]),
            }
            line |= dict.fromkeys(("difference", "difference_low", "difference_high", "p_value", "p_kind", "p_holm"))
            if setting != found.default:
                d = mean_of_differences([item_differences(mine[n], default[n]) for n in names], rng=rng)
                line |= {"difference": d.difference, "difference_low": d.low, "difference_high": d.high}
                line |= {"p_value": d.p_value, "p_kind": d.p_kind}
            block.append(line)
        others = [line for line in block if not line["is_default"]]
        for line, adjusted in zip(others, holm([line["p_value"] for line in others]), strict=True):
            line["p_holm"] = adjusted
        lines += block
    return lines


def _mean(estimates: list[Estimate]) -> Estimate:
    return estimates[0] if len(estimates) == 1 else mean_of_estimates(estimates)


def _samples(folder: Path, names: Sequence[str]) -> dict[str, list[Sample]]:
    order: Callable[[Sample], tuple] = lambda s: (int(s.item_id), s.sample)  # noqa: E731
    return {name: sorted(records.read_samples(folder, name), key=order) for name in names}


def _marks(samples: Sequence[Sample], rule: str) -> list[list[float]]:
    by_item: dict[str, list[float]] = {}
    for sample in samples:
        by_item.setdefault(sample.item_id, []).append(sample.mark if rule == "published" else sample.mark_strict)
    return list(by_item.values())


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    return {
        "failed": sum(s.status == "failed" for s in samples),
        "truncated": sum(s.finish_reason == "length" for s in samples),
        "no_answer": sum(s.reason == "no_answer" for s in samples),
    }
