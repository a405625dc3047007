"""Whether a model lost more than its base where the questions are new: ``python -m eval_harness contamination``.

A raw drop from one set to another says nothing: the sets differ in difficulty. The base model meets the same two sets,
so what counts is how much *more* the trained model drops than its base, which is its gain over the base on the old set
minus its gain on the new one. A training whose gain is real has about the same gain on both; one that has seen the old
questions has more there. The bases' own pretraining is not tested by this: what they have seen, both have.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.records import RunRecord, Sample
from eval_harness.settings import in_words, unequal_settings
from eval_harness.stats import Marks, holm, item_differences, mean_of_differences, mean_of_items

REAL_SETS = ("aime24", "math500", "amc23", "minerva", "olympiadbench")
PAIRS = (("aime24", "aime25"), *((name, "fresh_math") for name in REAL_SETS), ("+".join(REAL_SETS), "fresh_math"))
"""Old sets, new sets: what is read where a run has both. Several sets are joined by ``+`` and weigh alike."""


@dataclass(frozen=True)
class ExcessDrop:
    """How much more a model drops from an old set to a new one than its base. Fractions.

    ``excess`` = (old - new of the model) - (old - new of the base) = gain on the old set - gain on the new set.
    """

    old: str
    new: str
    drop: float
    base_drop: float
    gain_old: float
    gain_old_low: float
    gain_old_high: float
    gain_new: float
    gain_new_low: float
    gain_new_high: float
    """Gains over the base with 95 % intervals, paired on the items."""
    excess: float
    low: float
    high: float
    """95 % interval: Student's t, paired on the items within each set, Welch-Satterthwaite over the two sets."""
    p_value: float
    """Two-sided, of that t; NaN where no item's marks differ between model and base."""
    num_items_old: int
    num_items_new: int
    num_samples: int
    """Completions of the model behind both sets together."""

    @property
    def reading(self) -> str:
        """In words: what the interval allows to say."""
        if not self.low > 0 and not self.high < 0:
            return "not resolved"
        return "gains more on the old set" if self.excess > 0 else "gains more on the new set"


def excess_drop(old: Mapping[str, tuple[Marks, Marks]], new: Mapping[str, tuple[Marks, Marks]]) -> ExcessDrop:
    """Difference in differences of marks; several sets on one side weigh alike.

    Args:
        old: name of a set -> the model's marks and the base's, one sequence per item: the same items in the same order
            with as many samples.
        new: the same for the new sets.

    Raises:
        ValueError: other items or numbers of samples on one set, or fewer than two items.
    """
    gaps = [[item_differences(mine, base) for mine, base in side.values()] for side in (old, new)]
    if min(len(gap) for side in gaps for gap in side) < 2:
        raise ValueError("a difference in differences needs two items of each set")
    gains = [mean_of_differences(side, permute=False) for side in gaps]
    weights = [sign / len(side) for side, sign in zip(gaps, (1.0, -1.0), strict=True) for _ in side]
    found = mean_of_differences([*gaps[0], *gaps[1]], weights=weights, permute=False)

    def mean(side: Mapping[str, tuple[Marks, Marks]], which: int) -> float:
        return sum(mean_of_items(marks[which]).mean for marks in side.values()) / len(side)

    return ExcessDrop(
        "+".join(old),
        "+".join(new),
        drop=mean(old, 0) - mean(new, 0),
        base_drop=mean(old, 1) - mean(new, 1),
        gain_old=gains[0].difference,
        gain_old_low=gains[0].low,
        gain_old_high=gains[0].high,
        gain_new=gains[1].difference,
        gain_new_low=gains[1].low,
        gain_new_high=gains[1].high,
        excess=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.t_p_value,
        num_items_old=gains[0].num_items,
        num_items_new=gains[1].num_items,
        num_samples=sum(len(of_item) for side in (old, new) for mine, _ in side.values() for of_item in mine),
    )


def read_marks(folder: Path, benchmark: str, rule: str = "published") -> dict[str, list[float]]:
    """Marks of every item of one benchmark in a run, item by item in the order of the file.

    Raises:
        UserError: the run does not hold the benchmark.
    """
    path = Path(folder) / "samples" / f"{benchmark}.jsonl"
    marks: dict[str, list[float]] = {}
    for sample in sorted(records.read_lines(path, Sample), key=lambda s: (int(s.item_id), s.sample)):
        marks.setdefault(sample.item_id, []).append(sample.mark if rule == "published" else sample.mark_strict)
    if not marks:
        raise UserError(f"{folder} holds no samples of {benchmark}.")
    return marks


def compare_drops(
    model: Path, base: Path, pairs: Sequence[tuple[str, str]] | None = None, rule: str = "published"
) -> list[ExcessDrop]:
    """Excess drops of a model over its base, from two finished runs under the same settings.

    Args:
        model, base: run folders.
        pairs: (old set, new set); None: those of ``PAIRS`` that both runs hold. A seeded set stands for its unseeded
            name there (``fresh_math_seed7`` for ``fresh_math``).
        rule: ``published`` or ``strict``.

    Raises:
        UserError: a folder holds no finished evaluation, a set is missing, or the two runs differ in settings: the
            message names them.
    """
    runs = [_finished(folder) for folder in (model, base)]
    chosen = list(pairs) if pairs is not None else default_pairs(runs[0], runs[1])
    if not chosen:
        raise UserError(
            f"{model} and {base} have no old and new set in common. Evaluate both on aime24,aime25 or on "
            "a real set and fresh_math, or name the sets with --pairs OLD:NEW,..."
        )
    for name in dict.fromkeys(name for pair in chosen for side in pair for name in side.split("+")):
        for folder, run in zip((model, base), runs, strict=True):
            if name not in run.benchmarks:
                raise UserError(f"{folder} was not measured on {name}; it holds {', '.join(run.benchmarks)}.")
        if unequal := unequal_settings(*runs, name):
            raise UserError(
                f"{name}: the two runs differ in settings ({in_words(unequal)}), so their difference is not one of "
                "the models. Measure the base again under the model's settings."
            )

    def marks(side: str) -> dict[str, tuple[Marks, Marks]]:
        found = {}
        for name in side.split("+"):
            mine, other = (read_marks(folder, name, rule) for folder in (model, base))
            if mine.keys() != other.keys():
                raise UserError(f"{name}: the two runs hold different items; finish both.")
            found[name] = (list(mine.values()), list(other.values()))
        return found

    try:
        return [excess_drop(marks(old), marks(new)) for old, new in chosen]
    except ValueError as error:
        raise UserError(f"{error}.") from None


def default_pairs(model: RunRecord, base: RunRecord) -> list[tuple[str, str]]:
    """The pairs of ``PAIRS`` that both runs hold, each seed of a seeded new set for itself."""
    both = [name for name in model.benchmarks if name in base.benchmarks]

    def stands_for(name: str, new: str) -> bool:
        return name == new or name.startswith(f"{new}_seed")

    return [
        (old, name) for old, new in PAIRS for name in both if set(old.split("+")) <= set(both) and stands_for(name, new)
    ]


def _finished(folder: Path) -> RunRecord:
    run = records.read_run(folder)
    if run.kind != "evaluation" or run.status != "finished":
        raise UserError(f"{folder} is not a finished evaluation; finish it first.")
    return run


def table_of(drops: Sequence[ExcessDrop]) -> list[list[str]]:
    """The drops as people read them, heading first; percentage points."""
    head = [
        "old set",
        "new set",
        "items",
        "gain on old [95 %]",
        "gain on new [95 %]",
        "excess drop [95 %]",
        "p",
        "p (Holm)",
    ]
    rows = [[*head, "reading"]]
    for drop, adjusted in zip(drops, holm([d.p_value for d in drops]), strict=True):
        rows.append(
            [
                titles(drop.old),
                titles(drop.new),
                f"{drop.num_items_old} / {drop.num_items_new}",
                points(drop.gain_old, drop.gain_old_low, drop.gain_old_high),
                points(drop.gain_new, drop.gain_new_low, drop.gain_new_high),
                points(drop.excess, drop.low, drop.high),
                "–" if math.isnan(drop.p_value) else f"{drop.p_value:.3f}",
                "–" if math.isnan(adjusted) else f"{adjusted:.3f}",
                drop.reading,
            ]
        )
    return rows


def points(value: float, low: float, high: float) -> str:
    """``+3.2 [-1.0, +7.4]``, of fractions."""
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def titles(sets: str) -> str:
    """``AIME24``; of several sets the mean: ``mean of AIME24, MATH-500``."""
    names = [get_benchmark(name).title for name in sets.split("+")]
    return names[0] if len(names) == 1 else f"mean of {', '.join(names)}"


def as_rows(drops: Sequence[ExcessDrop]) -> list[dict[str, Any]]:
    """One dictionary per drop, fractions, for a CSV file."""
    adjusted = holm([drop.p_value for drop in drops])
    return [{**asdict(d), "p_holm": p, "reading": d.reading} for d, p in zip(drops, adjusted, strict=True)]


def add_parser(commands: Any) -> None:
    """Add ``contamination`` to the harness's commands."""
    parser = commands.add_parser(
        "contamination", help="does a model gain more over its base on old questions than on new ones? Two stored runs"
    )
    parser.add_argument("model", type=Path, help="run folder of the trained model")
    parser.add_argument("base", type=Path, help="run folder of its base, under the same settings")
    parser.add_argument("--pairs", metavar="OLD:NEW,...", help="sets to compare (default: aime24:aime25, real:fresh)")
    parser.add_argument("--rule", choices=("published", "strict"), default="published")


def run(args: argparse.Namespace) -> int:
    """``python -m eval_harness contamination MODEL BASE``."""
    from eval_harness.released import aligned

    pairs = None
    if args.pairs is not None:
        pairs = [tuple(part.strip().split(":")) for part in args.pairs.split(",") if part.strip()]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"--pairs {args.pairs}: expected OLD:NEW,... such as aime24:aime25,math500:fresh_math.")
    print(aligned(table_of(compare_drops(args.model, args.base, pairs, args.rule))))
    print(
        "Excess drop: (old - new of the model) - (old - new of the base), percentage points. Sets differ in "
        "difficulty; the base's own drop is what takes that out."
    )
    return 0
