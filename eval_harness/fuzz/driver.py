"""Runs inputs through a grading pool, checks what comes back, minimises what fails, counts."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval_harness.fuzz.generate import Draw, Input
from eval_harness.fuzz.targets import Target, problem_of, says_nothing
from eval_harness.graders.base import UNFINISHED, Verdict
from eval_harness.graders.pool import GradingPool

BATCH = 64
"""Inputs of one target that are submitted together."""
_IN_FLIGHT = 6
_HANG_SECONDS = 60.0
"""Without a verdict for so long beyond all deadlines of a batch, the pool itself hangs."""
_SECOND_DEADLINE_SECONDS = 5.0
_COMPANION = 7
"""One input in so many is graded a second time, or with white space around."""
_SHRINKS = 300
_PAD = "\n"
_LOST_GOLD = "the gold itself is not"


@dataclass(frozen=True)
class Failure:
    """An input for which something did not hold."""

    target: str
    problem: str
    number: int
    """The input's number; with the seed it draws the input again."""
    input: Input


@dataclass
class Summary:
    """Counts of a run."""

    seed: int
    reasons: dict[str, Counter] = field(default_factory=dict)
    """Target -> reason of the published rule -> inputs."""
    checked: Counter = field(default_factory=Counter)
    """Comparisons made beside the form of each verdict, by kind."""
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0
    """Most resident bytes of a worker."""
    born_memory: int = 0
    """What of it a worker starts with."""

    @property
    def num_inputs(self) -> int:
        """Inputs that have been judged."""
        return sum(map(Counter.total, self.reasons.values()))

    def text(self) -> str:
        """A table by target and a line of totals."""
        columns = ("timeout", "grader_memory", "grader_crash", "no_answer", "match")
        lines = [f"{'':22}{'inputs':>9}" + "".join(f"{name.removeprefix('grader_'):>11}" for name in columns)]
        total: Counter = Counter()
        for name, reasons in self.reasons.items():
            total += reasons
            lines.append(f"{name:22}{reasons.total():>9}" + "".join(f"{reasons[column]:>11}" for column in columns))
        lines.append(f"{'all':22}{total.total():>9}" + "".join(f"{total[column]:>11}" for column in columns))
        checks = ", ".join(f"{count} {kind}" for kind, count in sorted(self.checked.items())) or "none"
        lines += [
            f"compared further: {checks}",
            f"seed {self.seed}: {total.total()} inputs in {self.seconds:.0f} s "
            f"({total.total() / max(self.seconds, 1e-9):.0f}/s), {total['timeout']} timeouts, "
            f"{total['grader_memory']} stopped for memory, {total['grader_crash']} crashes; largest worker "
            f"{self.peak_memory / 2**20:.0f} MiB, {self.born_memory / 2**20:.0f} of it from the start; "
            f"{len(self.failures)} failures",
        ]
        return "\n".join(lines)


def input_of(target: Target, seed: int, number: int, corpus: Sequence[str]) -> Input:
    """The input of that number: a function of seed and number alone, for one target and corpus."""
    return target.draw(Draw(np.random.default_rng([seed, number])), corpus)


def schedule(targets: Mapping[str, Target], num_inputs: int) -> Iterator[tuple[str, range]]:
    """Target and numbers of one batch after the other, each target in the proportion of its weight."""
    rounds = [name for name, target in targets.items() for _ in range(target.weight)]
    size = min(BATCH, max(1, num_inputs // len(rounds)))  # every target has its turn
    start = 0
    while start < num_inputs:
        for name in rounds:
            stop = min(start + size, num_inputs)
            if start < stop:
                yield name, range(start, stop)
            start = stop


class Fuzzer:
    """Fuzzes targets in one pool.

    Args:
        pool: where everything runs.
        targets: what.
        corpus: hostile texts to draw and mutate.
        seed: of all inputs.
        say: called with a line whenever something fails.
    """

    def __init__(
        self,
        pool: GradingPool,
        targets: Mapping[str, Target],
        corpus: Sequence[str],
        seed: int,
        say: Callable[[str], None] = print,
    ):
        self.pool, self.targets, self.corpus, self.say = pool, targets, corpus, say
        self.summary = Summary(seed, {name: Counter() for name in targets})

    def run(self, num_inputs: int, progress: Callable[[Summary], None] = lambda summary: None) -> Summary:
        """Judge so many inputs. What was counted before an interruption stays in ``summary``."""
        started = time.monotonic()
        flying: deque[tuple[str, range, list[Input], list[Input | None], Future, Future]] = deque()
        try:
            for name, numbers in schedule(self.targets, num_inputs):
                flying.append(self._submit(name, numbers))
                if len(flying) >= _IN_FLIGHT:
                    self._land(*flying.popleft())
                    self.summary.seconds = time.monotonic() - started
                    progress(self.summary)
            while flying:
                self._land(*flying.popleft())
        finally:
            self.summary.seconds = time.monotonic() - started
            self.summary.peak_memory = self.pool.peak_memory
            self.summary.born_memory = self.pool.born_memory
        return self.summary

    def _submit(self, name: str, numbers: range) -> tuple:
        target = self.targets[name]
        inputs = [input_of(target, self.summary.seed, number, self.corpus) for number in numbers]
        companions = [self._companion(target, number, one) for number, one in zip(numbers, inputs, strict=True)]
        futures = (
            self.pool.grade_async(target.grader, [one.answer() for one in inputs]),
            self.pool.grade_async(alias(target.grader), [one.answer() for one in companions if one is not None]),
        )
        return name, numbers, inputs, companions, *futures

    def _companion(self, target: Target, number: int, one: Input) -> Input | None:
        """Sometimes the same input again, or with white space around the answer."""
        if not target.judges or number % _COMPANION:
            return None
        padded = target.symmetric and number % (2 * _COMPANION)
        return replace(one, prediction=f"{_PAD}{one.prediction}{_PAD}") if padded else one

    def _land(
        self,
        name: str,
        numbers: range,
        inputs: list[Input],
        companions: list[Input | None],
        first: Future,
        second: Future,
    ) -> None:
        target = self.targets[name]
        verdicts = self._verdicts(target, inputs, first)
        others = iter(self._verdicts(target, [one for one in companions if one is not None], second))
        for number, one, companion, verdict in zip(numbers, inputs, companions, verdicts, strict=True):
            other = None if companion is None else next(others)
            self.summary.reasons[name][getattr(verdict, "reason", "failed")] += 1
            problem = self._problem(target, one, verdict)
            if problem is None and companion is not None:
                problem = self._difference(target, one, companion, verdict, other)
            if problem is not None:
                self._record(name, problem, number, one)

    def _verdicts(self, target: Target, inputs: list[Input], future: Future | None = None) -> list[Verdict | str]:
        """The verdict of each input, or what went wrong with it."""
        future = future or self.pool.grade_async(target.grader, [one.answer() for one in inputs])
        try:
            return future.result(
                timeout=self.pool.deadline * self.pool.patience * 2 * (_IN_FLIGHT + 1) * BATCH + _HANG_SECONDS
            )
        except FutureTimeout:
            return ["the pool gives no verdict: it hangs"] * len(inputs)
        except RuntimeError as error:
            if len(inputs) == 1:
                return [str(error)]
        half = len(inputs) // 2  # one of them fails all: find it
        return self._verdicts(target, inputs[:half]) + self._verdicts(target, inputs[half:])

    def _problem(self, target: Target, one: Input, verdict: Verdict | str) -> str | None:
        if isinstance(verdict, str):
            return verdict
        if problem := problem_of(verdict, target):
            return problem
        if verdict.reason == "grader_crash":
            return "the worker crashes"
        if verdict.reason in UNFINISHED:
            return None if target.judges or self._finishes(target, one) else f"{verdict.reason}, outside any deadline"
        if one.honest and target.honest:
            self.summary.checked["honest answers"] += 1
            lost = [mark for mark in target.honest if not getattr(verdict, mark)]
            if lost:
                return f"{_LOST_GOLD} {lost[0]}"
        if target.numeric and says_nothing(one.prediction) and any(c in "0123456789" for c in one.gold):
            self.summary.checked["answers that say nothing"] += 1
            if verdict.correct or verdict.correct_strict:
                return "right without a number"
        return None

    def _finishes(self, target: Target, one: Input) -> bool:
        """Whether a parser gets there with more time: on a busy machine half a second is little."""
        with GradingPool(workers=1, deadline=_SECOND_DEADLINE_SECONDS) as pool:
            return pool.grade(target.grader, [one.answer()])[0].reason not in UNFINISHED

    def _difference(
        self, target: Target, one: Input, companion: Input, verdict: Verdict | str, other: Verdict | str
    ) -> str | None:
        if isinstance(verdict, str) or isinstance(other, str):
            return None if isinstance(verdict, str) else other
        if verdict.reason in UNFINISHED or other.reason in UNFINISHED:
            return None
        if companion is one:
            self.summary.checked["repeats"] += 1
            return None if verdict == other else f"graded again it is another verdict: {verdict} {other}"
        self.summary.checked["with white space around"] += 1
        moved = [mark for mark in target.symmetric if getattr(verdict, mark) is not getattr(other, mark)]
        return f"white space around the answer moves {moved[0]}" if moved else None

    def _record(self, name: str, problem: str, number: int, one: Input) -> None:
        self.say(f"{name}, input {number}: {problem[:300]}")
        self.summary.failures.append(Failure(name, problem, number, one))

    # --- making a failing input small ----------------------------------------------------------------------------

    def minimised(self, failure: Failure) -> Failure:
        """The same kind of failure with less text, as far as ``_SHRINKS`` tries lead."""
        target, kind, tries = self.targets[failure.target], _kind(failure.problem), 0

        def still_fails(one: Input) -> bool:
            (verdict,) = self._verdicts(target, [one])
            problem = self._problem(target, one, verdict)
            if problem is None and target.judges:
                padded = replace(one, prediction=f"{_PAD}{one.prediction}{_PAD}")
                for companion in (one, padded) if target.symmetric else (one,):
                    (other,) = self._verdicts(replace(target, grader=alias(target.grader)), [companion])
                    problem = problem or self._difference(target, one, companion, verdict, other)
            return problem is not None and _kind(problem) == kind

        smallest = failure.input
        sides = () if failure.problem.startswith(_LOST_GOLD) else ("prediction", "gold")  # shorter, it is not honest
        for side in sides:
            text = getattr(smallest, side)
            step = max(1, len(text) // 2)
            while step and tries < _SHRINKS:
                start = 0
                while start < len(text) and tries < _SHRINKS:
                    shorter = text[:start] + text[start + step :]
                    tries += 1
                    if still_fails(replace(smallest, **{side: shorter})):
                        text, smallest = shorter, replace(smallest, **{side: shorter})
                    else:
                        start += step
                step //= 2
        return replace(failure, input=smallest)

    def save(self, failure: Failure, folder: Path) -> Path:
        """Write a failing input, as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "target": failure.target,
            "grader": self.targets[failure.target].grader,
            "problem": failure.problem[:2000],
            "seed": self.summary.seed,
            "number": failure.number,
            "gold": failure.input.gold,
            "prediction": failure.input.prediction,
            "context": failure.input.context,
        }
        text = json.dumps(content, indent=1) + "\n"
        path = folder / f"{failure.target}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
        path.write_text(text, encoding="utf-8")
        return path


def alias(grader: str) -> str:
    """Another name of a grader, under which the cache does not know its verdicts."""
    return f"eval_harness.graders.base:get_grader:{grader}"


def _kind(problem: str) -> str:
    return problem.partition(": ")[0] + problem.partition(": ")[2].partition(":")[0].partition("(")[0]
