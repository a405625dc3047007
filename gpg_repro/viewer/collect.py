"""What two evaluations have in common, item by item. Reads records, asks no model, grades nothing again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
from scipy import stats

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError, unknown
from eval_harness.records import Item, RunRecord, Sample
from gpg_repro.paths import results as default_results
from gpg_repro.tables.base import RULES, SAME_MARK

Cell = Literal["both", "first", "second", "neither"]
CELLS: tuple[Cell, ...] = ("both", "first", "second", "neither")
"""Which of the two runs is right."""


@dataclass(frozen=True)
class RuleMark:
    """What one rule says about one completion."""

    rule: str
    correct: bool
    mark: float
    extracted: str | None
    reason: str
    graded: bool
    """The mark is a number between 0 and 1 (an IoU), not a yes or no."""

    @property
    def word(self) -> str:
        """``right``, ``wrong``, or with its mark ``right, 0.62``."""
        return ("right" if self.correct else "wrong") + (f", {self.mark:.2f}" if self.graded else "")


def marks_of(sample: Sample) -> tuple[RuleMark, RuleMark]:
    """The published and the strict verdict of a completion; one that failed is wrong under both."""
    return (
        RuleMark(
            "published",
            bool(sample.correct),
            sample.mark,
            sample.extracted,
            sample.reason,
            sample.score is not None,
        ),
        RuleMark(
            "strict",
            bool(sample.correct_strict),
            sample.mark_strict,
            sample.extracted if sample.extracted_strict is None else sample.extracted_strict,
            sample.reason_strict or sample.reason,
            sample.score_strict is not None,
        ),
    )


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    label: str
    folder: Path
    run: RunRecord


@dataclass(frozen=True)
class Pair:
    """One item and what each run made of it."""

    benchmark: str
    item: Item
    """As the first run asked it."""
    answers: tuple[tuple[Sample, ...], tuple[Sample, ...]]
    """Completions of each run, by sample number."""
    other_prompt: str | None = None
    """The prompt of the second run, where it is another one."""

    def cell(self, rule: str = "published") -> Cell:
        """Which run's first completion is right."""
        first, second = (marks_of(samples[0])[RULES.index(rule)].correct for samples in self.answers)
        return "both" if first and second else "first" if first else "second" if second else "neither"

    @property
    def rules_part(self) -> bool:
        """Whether the two rules mark some completion differently."""
        return any(abs(s.mark - s.mark_strict) > SAME_MARK for samples in self.answers for s in samples)

    @property
    def num_samples(self) -> int:
        """Completions of the run that has more of them."""
        return max(map(len, self.answers))


@dataclass(frozen=True)
class SideBySide:
    """Everything two runs have in common."""

    sides: tuple[Side, Side]
    pairs: tuple[Pair, ...]
    """In the order of the first run's items, benchmark by benchmark."""
    notes: tuple[str, ...]
    """What was left out, and what was asked differently."""

    @property
    def labels(self) -> tuple[str, str]:
        """What the two runs are called."""
        return self.sides[0].label, self.sides[1].label

    @cached_property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that have pairs."""
        return tuple(dict.fromkeys(pair.benchmark for pair in self.pairs))

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], Pair]:
        return {(pair.benchmark, pair.item.item_id): pair for pair in self.pairs}

    def pair(self, benchmark: str, item_id: str) -> Pair:
        """One item.

        Raises:
            UserError: the two runs have no such benchmark, or no such item, in common.
        """
        if benchmark not in self.benchmarks:
            raise unknown("benchmark of both runs", benchmark, self.benchmarks)
        if (benchmark, str(item_id)) not in self._by_key:
            ids = [pair.item.item_id for pair in self.pairs if pair.benchmark == benchmark]
            shown = ", ".join(ids[:8]) + (f" … {ids[-1]}" if len(ids) > 8 else "")
            raise UserError(f"{benchmark} has no item {item_id!r} that both runs answered; there are {shown}.")
        return self._by_key[benchmark, str(item_id)]

    def first(self, cell: Cell, rule: str = "published") -> Pair | None:
        """The first item in this cell, in the order of the records; None: there is none."""
        return next((pair for pair in self.pairs if pair.cell(rule) == cell), None)


def find_evaluation(run: str | Path, results: Path | None = None) -> Path:
    """Folder of an evaluation, given by its path or by its name under ``results/runs``.

    Raises:
        UserError: there is none, or it holds a training.
    """
    root = (results or default_results()) / "runs"
    folder = next((path for path in (Path(run), root / run) if (path / "run.json").exists()), None)
    if folder is None:
        known = sorted(path.parent.name for path in root.glob("*/run.json") if path.parent.name.startswith("eval-"))
        if known:
            raise unknown("evaluation", str(run), known)
        raise UserError(
            f"{run} is not the folder of an evaluation (it has no run.json), and there are none in results/runs. "
            "Records of earlier runs are in results/reference/tiny/<recipe>/seed0."
        )
    if records.read_run(folder).kind != "evaluation":
        raise UserError(f"{run} is a training; name the folder of an evaluation, which holds samples/.")
    return folder


def side_by_side(
    first: str | Path,
    second: str | Path,
    benchmarks: Sequence[str] | None = None,
    *,
    labels: tuple[str, str] | None = None,
    results: Path | None = None,
) -> SideBySide:
    """Read two evaluations and match their items.

    Items are matched by benchmark and id, and only where gold and images are the same: two items with one id and
    different golds are different questions. A different prompt for the same gold is kept and told.

    Args:
        first, second: folders, or names under ``results/runs``.
        benchmarks: only these; None: all that both have.
        labels: what to call the runs (default: their ids).

    Raises:
        UserError: no such run, a training, an unknown benchmark, or nothing in common.
    """
    folders = [find_evaluation(run, results) for run in (first, second)]
    runs = [records.read_run(folder) for folder in folders]
    names = labels or (runs[0].run_id, runs[1].run_id)
    if names[0] == names[1]:
        names = (f"{names[0]} (first)", f"{names[1]} (second)")
    sides = tuple(Side(label, folder, run) for label, folder, run in zip(names, folders, runs, strict=True))
    have = [_benchmarks(side) for side in sides]
    for side, known in zip(sides, have, strict=True):
        if missing := next((name for name in benchmarks or () if name not in known), None):
            raise unknown(f"benchmark of {side.label}", missing, known)
    shared = [name for name in have[0] if name in have[1] and (benchmarks is None or name in benchmarks)]
    if not shared:
        told = [f"{s.label}: {', '.join(known) or 'none'}" for s, known in zip(sides, have, strict=True)]
        raise UserError(f"the two runs have no benchmark in common. {'; '.join(told)}.")
    notes = [f"{side.label} is not finished: only what it answered so far is here." for side in sides
             if side.run.status != "finished"]  # fmt: skip
    if alone := [f"{name} ({side.label})" for side, known, other in zip(sides, have, reversed(have), strict=True)
                 for name in known if name not in other]:  # fmt: skip
        notes.append(f"Benchmarks that only one run has are left out: {', '.join(alone)}.")
    pairs: list[Pair] = []
    for name in shared:
        matched, told = _match(name, sides)
        pairs += matched
        notes += told + _settings_notes(name, sides)
    if not pairs:
        raise UserError("the two runs have no item in common. " + " ".join(notes))
    return SideBySide(sides, tuple(pairs), tuple(dict.fromkeys(notes)))


def _benchmarks(side: Side) -> list[str]:
    """In the order of the run's record; then what lies there beside."""
    there = sorted(path.stem for path in (side.folder / "samples").glob("*.jsonl"))
    return [name for name in side.run.benchmarks if name in there] + [n for n in there if n not in side.run.benchmarks]


def title_of(benchmark: str) -> str:
    """The benchmark's title; of one that is not registered (an imported run), its name."""
    try:
        return get_benchmark(benchmark).title
    except UserError:
        return benchmark


def _match(name: str, sides: tuple[Side, Side]) -> tuple[list[Pair], list[str]]:
    items = [
        {item.item_id: item for item in records.read_lines(side.folder / "items" / f"{name}.jsonl", Item)}
        for side in sides
    ]
    answers: list[dict[str, list[Sample]]] = []
    for side in sides:
        by_item: dict[str, list[Sample]] = {}
        for sample in records.read_lines(side.folder / "samples" / f"{name}.jsonl", Sample):
            by_item.setdefault(sample.item_id, []).append(sample)
        answers.append(by_item)
    pairs, others, unanswered = [], 0, 0
    for item_id, item in items[0].items():
        other = items[1].get(item_id)
        if other is None:
            continue
        if (item.gold, item.images) != (other.gold, other.images):
            others += 1
        elif item_id not in answers[0] or item_id not in answers[1]:
            unanswered += 1
        else:
            ordered = tuple(tuple(sorted(a[item_id], key=lambda sample: sample.sample)) for a in answers)
            pairs.append(Pair(name, item, ordered, None if other.prompt == item.prompt else other.prompt))
    title, notes = title_of(name), []
    for side, mine, theirs in zip(sides, items, reversed(items), strict=True):
        if alone := len(set(mine) - set(theirs)):
            notes.append(f"{title}: {alone} of {len(mine)} items of {side.label} are not in the other run; left out.")
    if others:
        notes.append(f"{title}: {others} items have one id but different golds or images in the two runs; left out.")
    if unanswered:
        notes.append(f"{title}: {unanswered} items are not answered yet in one of the runs; left out.")
    if changed := sum(pair.other_prompt is not None for pair in pairs):
        notes.append(f"{title}: {changed} of {len(pairs)} items were asked with different prompts.")
    return pairs, notes


def _settings_notes(name: str, sides: tuple[Side, Side]) -> list[str]:
    """Settings of one benchmark that are not the same in both runs."""
    found = []
    for side in sides:
        result, of_run = side.run.benchmarks.get(name), side.run
        found.append(
            {
                **({} if result is None else {"version": result.version, **result.decoding.model_dump()}),
                "chat template": of_run.settings.get("chat_template"),
                "engine": of_run.engine.get("name"),
                "dtype": of_run.engine.get("dtype"),
                "context": of_run.engine.get("max_model_len"),
            }
        )
    keys = [key for key in dict.fromkeys([*found[0], *found[1]]) if found[0].get(key) != found[1].get(key)]
    if not keys:
        return []
    told = [f"{key.replace('_', ' ')} {_brief(found[0].get(key))} against {_brief(found[1].get(key))}" for key in keys]
    return [f"{title_of(name)}: settings differ: {'; '.join(told)}."]


def _brief(value: object) -> str:
    text = "none" if value is None else str(value)
    return repr(text[:60] + "…") if len(text) > 60 else text


def cells(pairs: Sequence[Pair], rule: str = "published") -> pd.DataFrame:
    """How often both, one or neither is right, by the first completion of each run, one line per benchmark and the sum.

    Returns:
        Columns benchmark, title, both, first, second, neither, num_items, p_value: of the exact sign test (McNemar)
        that the two one-sided cells are equally likely, two-sided; 1.0 where both are empty. The sum (benchmark
        ``all``) stands last where there are several benchmarks.

    Raises:
        UserError: unknown rule.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    counted: dict[str, dict[str, int]] = {}
    for pair in pairs:
        line = counted.setdefault(pair.benchmark, dict.fromkeys(CELLS, 0))
        line[pair.cell(rule)] += 1
    lines = [{"benchmark": name, "title": title_of(name), **line} for name, line in counted.items()]
    if len(lines) > 1:
        lines.append({"benchmark": "all", "title": "all", **{c: sum(line[c] for line in lines) for c in CELLS}})
    for line in lines:
        line["num_items"] = sum(line[c] for c in CELLS)
        line["p_value"] = sign_test(line["first"], line["second"])
    return pd.DataFrame(lines, columns=["benchmark", "title", *CELLS, "num_items", "p_value"])


def sign_test(first: int, second: int) -> float:
    """Two-sided exact p-value of ``first`` against ``second`` discordant items, each as likely; 1.0 without any."""
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
