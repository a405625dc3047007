"""The claims page: every claim beside its printed evidence and what was found here. What the notebook calls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eval_harness.stats import holm
from gpg_repro.claims.checks import CHECKS
from gpg_repro.claims.data import KINDS, Claim, load_claims
from gpg_repro.claims.evidence import (
    Measured,
    Pair,
    Printed,
    Records,
    agrees,
    bound_of,
    pairs_of,
    printed,
    printed_cells,
)
from gpg_repro.claims.figure import Line, forest_figure
from gpg_repro.claims.rule import (
    LEVEL,
    PLACES,
    Direction,
    Finding,
    Outcome,
    Spread,
    Verdict,
    combine,
    corrected,
    judge,
    judge_range,
    labelled,
    outcomes,
    range_outcomes,
    resolved,
)
from gpg_repro.figures.base import published_range
from gpg_repro.paths import results as default_results
from gpg_repro.tables import TABLES
from gpg_repro.tables.base import BASE, source_name
from gpg_repro.tables.files import save_figure, write_report
from gpg_repro.tables.layouts import provenance
from gpg_repro.tables.numbers import MIN_SEEDS, count_notes
from gpg_repro.tables.runs import REFERENCE, check_scale

MINIATURE = "tiny"
"""Scale of the committed records; the page shows them at every SCALE."""
_SIGNS = {"greater": "> {}", "less": "< {}", "not greater": "≤ {}", "not less": "≥ {}"}


@dataclass(frozen=True)
class PairLine:
    """One pair of rows behind a claim: printed and measured, with its words."""

    claim: Claim
    test: int
    """Which test of the claim it belongs to."""
    pair: Pair
    bound: float
    printed: Printed
    measured: Mapping[str, Measured]
    """By place: ``miniature`` and ``paper``."""

    def word(self, place: str) -> Verdict:
        """The rule's word for this pair alone."""
        return judge(self.claim.compare.direction, self.measured[place].finding, _min_seeds(self.claim, place))

    @property
    def word_printed(self) -> Verdict:
        """The rule's word for the printed difference; training seeds are no part of what is printed."""
        return judge(self.claim.compare.direction, self.printed.finding)

    @property
    def key(self) -> tuple[Pair, float]:
        """What makes it one comparison, whichever claims use it."""
        return self.pair, self.bound


def _min_seeds(claim: Claim, place: str) -> int:
    return 1 if claim.about == "models" and place == "paper" else MIN_SEEDS


@dataclass(frozen=True)
class Row:
    """One claim with all its words. None: the place does not apply to it (an identity has no paper scale)."""

    claim: Claim
    lines: tuple[PairLine, ...]
    printed: str
    printed_verdict: Verdict
    printed_corrected: Verdict
    verdicts: Mapping[str, Verdict | None]
    """By place: ``computed``, ``miniature``, ``paper``."""
    corrected: Mapping[str, Verdict | None]
    """The same after Holm's correction for the number of comparisons."""
    measured: Mapping[str, str]
    """By place, what the words rest on."""
    outcomes: Mapping[Verdict, Outcome] = field(default_factory=dict)
    """What result earns each word; empty where nothing can be measured."""


@dataclass
class ClaimsReport:
    """Everything the notebook shows."""

    scale: str
    rows: list[Row]
    sections: list[tuple[str, pd.DataFrame]]
    """Heading and claims of one kind, as people read them."""
    tests: pd.DataFrame
    """Every pair of rows behind the comparisons, as people read it."""
    long: pd.DataFrame
    """One line per claim, as the CSV file holds it."""
    notes: list[str]
    provenance: pd.DataFrame
    results: Path

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All claims in one frame."""
        return pd.concat([frame for _, frame in self.sections])

    def counts(self) -> pd.DataFrame:
        """How often each word fell, place by place."""
        return _counts(self.rows)

    def summary(self) -> str:
        """What we see, computed from the words."""
        return _summary(self.rows)

    def figure(self) -> Figure:
        """Headline differences of trained rows; as the others, printed left, measured right, also written to
        ``results/figures/<scale>/``."""
        return self._forest("claims", "Trained rows against each other, headline numbers")

    def base_figure(self) -> Figure:
        """Headline differences from the untrained base, which are much larger."""
        return self._forest("claims_base", "Trained rows against the untrained base, headline numbers")

    def columns_figure(self) -> Figure:
        """Differences in single columns, for the claims about those."""
        return self._forest("claims_columns", "Single columns")

    def _forest(self, stem: str, title: str) -> Figure:
        place = "paper" if self.scale == "paper" else "miniature"
        drawn: dict[tuple[Pair, float], list[PairLine]] = {}
        for line in sorted(_distinct(self.rows), key=lambda line: list(TABLES).index(line.pair.table)):
            kind = "claims_columns" if line.pair.column else "claims_base" if line.pair.against == BASE else "claims"
            if kind == stem:
                drawn.setdefault(line.key, []).append(line)
        lines = [_drawn(lines, place) for lines in drawn.values()]
        return save_figure(forest_figure(lines, PLACES[place], title), stem, self.scale, self.results)


def build_claims(
    scale: str = "tiny",
    *,
    results: Path | None = None,
    reference: Path = REFERENCE,
    inspections: bool | None = None,
    rng: np.random.Generator | None = None,
) -> ClaimsReport:
    """Judge every claim and write ``claims.{md,csv,html}``. Nothing is trained and no model is measured.

    Args:
        scale: names the folder of the files, and chooses what the figures show on the right: the miniature, or
            (``paper``) this machine's runs at paper scale. The words are the same at every scale, but that at smoke
            scale the trainers are not inspected unless asked for.
        results: folder of this machine's runs, and for the files.
        reference: folder of the committed records, where the miniature numbers come from.
        inspections: build the trainers to see what they hold, which takes most of the time; without, the claims that
            need it are not tested. None: not at smoke scale.
        rng: for the checks that draw random batches.

    Raises:
        UserError: unknown scale, or a claim that refers to something that does not exist.
    """
    check_scale(scale, 0)
    results = results or default_results()
    sources = {
        "miniature": Records(MINIATURE, reference, results / "runs"),
        "paper": Records("paper", reference, results / "runs"),
    }
    rng = np.random.default_rng(0) if rng is None else rng
    inspections = scale != "smoke" if inspections is None else inspections
    drafts = [_lines(claim, sources) for claim in load_claims()]
    adjusted = _adjusted(drafts)
    rows = [
        _row(claim, lines, adjusted, sources, inspections, rng)
        for claim, lines in zip(load_claims(), drafts, strict=True)
    ]
    read = pd.concat(
        [
            provenance(entries).assign(place=PLACES[place], table=table)
            for place, source in sources.items()
            for table, entries in source.read.items()
            if entries
        ]
        or [pd.DataFrame(columns=["place", "table", "row", "seed", "run"])]
    )
    read = read.drop_duplicates(["place", "run"]).set_index(["place", "table", "row", "seed"])
    report = ClaimsReport(
        scale,
        rows,
        _sections(rows),
        _tests(rows, adjusted),
        _long(rows, scale),
        [*_notes(rows, scale), *_count_notes(sources)],
        read,
        results,
    )
    sections = [("How often each word fell", report.counts()), *report.sections, ("The comparisons", report.tests)]
    notes = [*report.summary().split("\n\n"), *report.notes]
    write_report("claims", "The paper's claims and what supports them", sections, notes, scale, report.long, results)
    return report


# Words --------------------------------------------------------------------------------------------------------------


def _lines(claim: Claim, sources: Mapping[str, Records]) -> tuple[PairLine, ...]:
    if not claim.compare:
        return ()
    bound = bound_of(claim)
    return tuple(
        PairLine(
            claim,
            number,
            pair,
            bound,
            printed(pair, bound),
            {place: source.measured(pair, bound) for place, source in sources.items()},
        )
        for number, pairs in enumerate(pairs_of(claim))
        for pair in pairs
    )


Adjusted = Mapping[str, Mapping[tuple[Pair, float], float]]
"""Place (``printed``, ``miniature``, ``paper``) -> comparison -> p-value after Holm's correction."""


def _adjusted(drafts: Sequence[Sequence[PairLine]]) -> Adjusted:
    """Each place is a family of its own: all its distinct comparisons that have what it takes to be decided."""
    families: dict[str, dict[tuple[Pair, float], float]] = {"printed": {}, "miniature": {}, "paper": {}}
    for line in (line for lines in drafts for line in lines):
        if line.printed.finding is not None:
            families["printed"][line.key] = line.printed.finding.p_value
        for place, found in line.measured.items():
            if found.finding is not None and found.finding.num_seeds >= _min_seeds(line.claim, place):
                families[place][line.key] = found.finding.p_value
    return {
        place: dict(zip(family, holm(list(family.values())), strict=True)) if family else {}
        for place, family in families.items()
    }


def _row(
    claim: Claim,
    lines: tuple[PairLine, ...],
    adjusted: Adjusted,
    sources: Mapping[str, Records],
    inspections: bool,
    rng: np.random.Generator,
) -> Row:
    if claim.compare:
        return _compared(claim, lines, adjusted)
    verdicts: dict[str, Verdict | None] = dict.fromkeys(PLACES)
    measured, possible = dict.fromkeys(PLACES, ""), {}
    if claim.check:
        check = CHECKS[claim.check.name]
        found = check.function(rng) if inspections or not check.inspects else None
        possible = _possible(claim.check.direction, found)
        verdicts[check.place] = judge(claim.check.direction, found)
        measured[check.place] = "the trainers were not inspected" if found is None else _checked(claim, found)
    elif claim.training:
        for place, source in sources.items():
            found = source.training(claim.training)
            if found is not None or not possible:
                possible = _possible(claim.training.direction, found, claim.training.quoted)
            verdicts[place] = judge_range(found) if claim.training.statistic == "range" else judge(
                claim.training.direction, found
            )  # fmt: skip
            measured[place] = _trained(claim, found)
    else:
        verdicts |= dict.fromkeys(("miniature", "paper"), judge("greater", None))
        measured = dict.fromkeys(PLACES, claim.untested)
    printed_word = judge("greater", None)
    return Row(claim, (), printed_cells(claim), printed_word, printed_word, verdicts, verdicts, measured, possible)


def _possible(
    direction: Direction, found: Finding | Spread | None, quoted: tuple[str, str] | None = None
) -> dict[Verdict, Outcome]:
    """What earns each word, given the bound and the ends of what was measured."""
    if direction == "within":
        return range_outcomes(*published_range(*quoted))
    return outcomes(direction) if found is None else outcomes(direction, found.bound, found.least, found.most)


def _compared(claim: Claim, lines: tuple[PairLine, ...], adjusted: Adjusted) -> Row:
    def words(word_of, family: Mapping | None = None) -> Verdict:
        by_test: dict[int, list[Verdict]] = {}
        for line in lines:
            word = word_of(line)
            if family is not None:
                word = corrected(word, family.get(line.key, math.nan))
            by_test.setdefault(line.test, []).append(word)
        return combine([combine(test) for test in by_test.values()], claim.compare.of)

    places = ("miniature", "paper")
    verdicts = {place: words(lambda line, p=place: line.word(p)) for place in places}
    after = {place: words(lambda line, p=place: line.word(p), adjusted[place]) for place in places}
    return Row(
        claim,
        lines,
        _printed_text(claim, lines),
        words(lambda line: line.word_printed),
        words(lambda line: line.word_printed, adjusted["printed"]),
        {"computed": None, **verdicts},
        {"computed": None, **after},
        {"computed": "", **{place: _measured_text(lines, place) for place in places}},
        outcomes(claim.compare.direction, bound_of(claim)),
    )


# Texts --------------------------------------------------------------------------------------------------------------


def _printed_text(claim: Claim, lines: Sequence[PairLine]) -> str:
    known = [line for line in lines if line.printed.difference is not None]
    if not known:
        return "no number is printed"
    if len(lines) == 1:
        return _printed_difference(lines[0])
    sides = [agrees(claim.compare.direction, line.printed, line.bound) for line in known]
    text = f"{sum(sides)} of {len(known)} differences on the claimed side"
    with_interval = [line for line in known if line.printed.finding is not None]
    if with_interval:
        words = Counter(line.word_printed for line in with_interval)
        text += f"; item counts resolve {words[Verdict.SUPPORTED]} so"
        text += f" and {words[Verdict.CONTRADICTED]} the other way" if words[Verdict.CONTRADICTED] else ""
    for reason, number in Counter(line.printed.why_not for line in lines if line.printed.why_not).items():
        text += f"; {number}: {reason}"
    return text


def _printed_difference(line: PairLine) -> str:
    shown = line.printed
    if shown.difference is None:
        return "–"
    digits = line.pair.spec.columns[0].digits
    text = f"{shown.difference:+.{digits}f}"
    if shown.finding is None:
        return f"{text}; {shown.why_not}"
    (found,) = shown.finding.intervals
    return f"{text} [{found.low:+.1f}, {found.high:+.1f}]"


def _told(row: Row) -> str:
    """Whether item counts resolve the printed evidence, and why not where nothing can be told."""
    if not row.lines:
        return "does not apply"
    text = resolved(row.printed_verdict)
    if row.printed_verdict == Verdict.NOT_TESTED:
        text += f": {'; '.join(dict.fromkeys(line.printed.why_not for line in row.lines))}"
    return text + (f" ({resolved(row.printed_corrected)} after Holm)" if _moved(row) else "")


def _moved(row: Row) -> bool:
    return row.printed_corrected != row.printed_verdict


def _measured_text(lines: Sequence[PairLine], place: str) -> str:
    known = [line for line in lines if line.measured[place].finding is not None]
    if not known:
        return _why_not([line.measured[place] for line in lines])
    if len(lines) == 1:
        return _measured_difference(lines[0].measured[place])
    words = Counter(line.word(place) for line in lines)
    counted = ", ".join(f"{words[word]} {word}" for word in Verdict if words[word])
    seeds = sorted({line.measured[place].finding.num_seeds for line in known})
    return f"{len(lines)} comparisons: {counted}; {_span(seeds)} training seed{'s' if seeds[-1] > 1 else ''}"


def _why_not(found: Sequence[Measured]) -> str:
    absent = ", ".join(dict.fromkeys(name for one in found for name in one.absent))
    others = dict.fromkeys(one.why_not for one in found if not one.absent)
    return "; ".join([*([f"no records of {absent}"] if absent else []), *others])


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _measured_difference(found: Measured) -> str:
    if found.finding is None:
        return "–" if found.absent else f"– ({found.why_not})"
    intervals = ", ".join(f"[{i.low:+.1f}, {i.high:+.1f}] over {_over(i.over, found)}" for i in found.finding.intervals)
    few = "" if found.finding.num_seeds > 1 else ", one training seed"
    return f"{found.finding.value:+.1f} {intervals}{few}"


def _over(over: str, found: Measured) -> str:
    return f"{found.numbers['num_items']} items" if over == "items" else f"{found.numbers['num_seeds']} training seeds"


def _checked(claim: Claim, found: Finding) -> str:
    spread = "".join(f" [{i.low:.2g}, {i.high:.2g}]" for i in found.intervals if i.low < i.high)
    sign = _SIGNS[claim.check.direction].format(f"{found.bound:g}")
    return f"{found.value:.2g}{spread}, claimed {sign}: {found.detail}"


def _trained(claim: Claim, found: Finding | Spread | None) -> str:
    if found is None:
        return f"no training of {claim.training.recipe} is recorded"
    mean = found.mean if isinstance(found, Spread) else found
    seeds = f"{mean.num_seeds} training seed{'' if mean.num_seeds == 1 else 's'}"
    if isinstance(found, Spread):
        return f"{found.low:.2f} to {found.high:.2f}, {mean.detail}: {mean.value:.2f}, {seeds}"
    interval = "".join(f" [{i.low:+.2f}, {i.high:+.2f}]" for i in mean.intervals)
    return f"{mean.value:+.2f}{interval} over {seeds}, {mean.detail}"


# Frames -------------------------------------------------------------------------------------------------------------


def _word(row: Row, place: str) -> str:
    """The word with its place in front; a dash where the place does not apply."""
    verdict = row.verdicts[place]
    if verdict is None:
        return "–"
    text = labelled(verdict, place)
    return text if row.corrected[place] == verdict else f"{text} ({row.corrected[place]} after Holm)"


def _rests_on(row: Row) -> str:
    parts = {place: text for place, text in row.measured.items() if text and row.verdicts[place] is not None}
    tested = {place: text for place, text in parts.items() if row.verdicts[place] != Verdict.NOT_TESTED}
    shown = tested or dict(list(parts.items())[:1])
    return "; ".join(f"{PLACES[place]}: {text}" if len(shown) > 1 else text for place, text in shown.items())


def _earns(row: Row) -> str:
    words = {word: row.outcomes[word].text for word in Verdict if word in row.outcomes}
    return "; ".join(f"{word}: {text}" for word, text in words.items()) or "–"


def _sections(rows: Sequence[Row]) -> list[tuple[str, pd.DataFrame]]:
    found = []
    for kind, heading in KINDS.items():
        mine = [row for row in rows if row.claim.kind == kind]
        lines = [
            {
                ("the paper", "claim"): row.claim.claim,
                ("the paper", "where"): ", ".join(row.claim.places),
                ("printed evidence", "what is printed"): row.printed,
                ("printed evidence", "resolved by its item counts?"): _told(row),
                ("this repository", PLACES["computed"]): _word(row, "computed"),
                ("this repository", f"{PLACES['miniature']} (not the paper's models)"): _word(row, "miniature"),
                ("this repository", PLACES["paper"]): _word(row, "paper"),
                ("this repository", "what this rests on"): _rests_on(row),
                ("this repository", "what would earn each word"): _earns(row),
                ("this repository", "remark"): row.claim.remark,
            }
            for row in mine
        ]
        if lines:
            frame = pd.DataFrame(lines, index=pd.Index([row.claim.id for row in mine], name="id"))
            frame.columns = pd.MultiIndex.from_tuples(frame.columns)
            found.append((heading, frame))
    return found


def _distinct(rows: Sequence[Row]) -> list[PairLine]:
    """Every comparison once per direction and bound, in the order of the claims."""
    found = {}
    for line in (line for row in rows for line in row.lines):
        found.setdefault((line.key, line.claim.compare.direction), line)
    return list(found.values())


def _tests(rows: Sequence[Row], adjusted: Adjusted) -> pd.DataFrame:
    lines = [
        {
            ("comparison", "table"): line.pair.spec.name,
            ("comparison", "rows"): line.pair.label_at("paper"),
            ("comparison", "number"): line.pair.number_at("paper"),
            ("comparison", "claimed"): _SIGNS[line.claim.compare.direction].format(f"{line.bound:g}"),
            ("printed, points", "source"): _source(line),
            ("printed, points", "difference [implied 95 %]"): _printed_difference(line),
            ("printed, points", "resolved?"): resolved(line.word_printed),
            ("in miniature, points (not comparable)", "number"): line.pair.number_at(MINIATURE),
            ("in miniature, points (not comparable)", "difference [95 %]"): _measured_difference(
                line.measured["miniature"]
            ),
            ("in miniature, points (not comparable)", "p (after Holm)"): _p_value(line, adjusted["miniature"]),
            ("in miniature, points (not comparable)", "word"): labelled(line.word("miniature"), "miniature"),
            ("at paper scale, points", "difference [95 %]"): _measured_difference(line.measured["paper"]),
            ("at paper scale, points", "word"): labelled(line.word("paper"), "paper"),
        }
        for line in _distinct(rows)
    ]
    frame = pd.DataFrame(lines)
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame.set_index(("comparison", "table")).rename_axis("table")


def _p_value(line: PairLine, adjusted: Mapping[tuple[Pair, float], float]) -> str:
    if line.key not in adjusted:
        return "–"
    return f"{line.measured['miniature'].finding.p_value:.2g} ({adjusted[line.key]:.2g})"


def _source(line: PairLine) -> str:
    by_key = {row.key: row for row in line.pair.spec.rows}
    return ", ".join(dict.fromkeys(source_name(by_key[key]) for key in (line.pair.row, line.pair.against)))


def _long(rows: Sequence[Row], scale: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "page_scale": scale,
                "id": row.claim.id,
                "kind": row.claim.kind,
                "claim": row.claim.claim,
                "places": ", ".join(row.claim.places),
                "printed": row.printed,
                "printed_resolved": _told(row),
                **{f"word_{place}": _cell(row.verdicts[place], place) for place in PLACES},
                **{f"word_{place}_after_holm": _cell(row.corrected[place], place) for place in PLACES},
                **{f"rests_on_{place}": row.measured[place] for place in PLACES},
                "what_earns_each_word": _earns(row),
                "miniature_scale": MINIATURE,
                "remark": row.claim.remark,
            }
            for row in rows
        ]
    )


def _cell(verdict: Verdict | None, place: str) -> str:
    return "" if verdict is None else labelled(verdict, place)


def _counts(rows: Sequence[Row]) -> pd.DataFrame:
    counted = {
        f"{PLACES[place]}": Counter(row.verdicts[place] for row in rows if row.verdicts[place] is not None)
        for place in PLACES
    }
    frame = pd.DataFrame({title: {str(word): words[word] for word in Verdict} for title, words in counted.items()})
    return frame.T.rename_axis("claims")


def _summary(rows: Sequence[Row]) -> str:
    counts = _counts(rows)
    compared = [row for row in rows if row.lines]
    printed_words = Counter(row.printed_verdict for row in compared)
    answers = ", ".join(f"{resolved(word)}: {printed_words[word]}" for word in Verdict if printed_words[word])
    against = [row.claim.id for row in rows if Verdict.CONTRADICTED in row.verdicts.values()]
    moved = {
        "printed": [row.claim.id for row in compared if _moved(row)],
        **{
            place: [row.claim.id for row in rows if row.corrected[place] != row.verdicts[place]]
            for place in ("miniature", "paper")
        },
    }
    lines = [
        f"{len(rows)} claims, {len(compared)} of them comparisons of rows. Do the item counts alone resolve what is "
        f"printed? {answers}.",
        *(
            f"{title[0].upper()}{title[1:]}: "
            + ", ".join(f"{count} {word}" for word, count in line.items() if count)
            + "."
            for title, line in counts.iterrows()
        ),
        f"Contradicted somewhere: {', '.join(against) or 'none'}.",
        "Words that Holm's correction for the number of comparisons changes: "
        + "; ".join(f"{PLACES.get(place, place)}: {', '.join(ids) or 'none'}" for place, ids in moved.items())
        + ".",
    ]
    return "\n\n".join(lines)


def _notes(rows: Sequence[Row], scale: str) -> list[str]:
    decidable = [line for line in _distinct(rows) if line.measured["miniature"].finding is not None]
    one_seed = [line for line in decidable if line.measured["miniature"].finding.num_seeds < MIN_SEEDS]
    return [
        "Words come from gpg_repro/claims/rule.py alone: supported, every interval lies on the claimed side; "
        "contradicted, every interval lies on the other; not resolved, an interval holds the bound, or there are fewer "
        f"than {MIN_SEEDS} training seeds; not tested, nothing was measured. docs/claims.md has it in full.",
        f"In miniature: models of under 2 M parameters on generated tasks (committed records, scale {MINIATURE}, "
        "whatever SCALE the page is made at) or simulated steps. Such a word is about the method in miniature; it is "
        "never one about the paper's models, and a miniature that contradicts a claim does not refute it.",
        "By computation: identities and expectations worked out with the real code, and what the trainers hold; true "
        "at any size.",
        "At paper scale: finished runs of this machine; nothing is trained or measured for this page.",
        "Printed differences are unpaired with one sample per item, and one training stands behind each row: where the "
        "item counts resolve one, these checkpoints differ, which does not say that the methods do.",
        f"Several comparisons are read at once; words after Holm's correction (level {LEVEL:g}, each place a family, "
        "the larger of the p-values over items and over seeds) stand in brackets where they differ.",
        f"{len(one_seed)} of {len(decidable)} comparisons measured in miniature have fewer than {MIN_SEEDS} training "
        "seeds and cannot be resolved however large they are.",
        "Marks by the published rule; each table's notebook has the strict rule beside it.",
        "Claims are paraphrases; numbers are looked up in the published tables.",
        *(
            ["Made at scale smoke: from the committed records all the same, but the trainers are not inspected."]
            if scale == "smoke"
            else []
        ),
    ]


def _count_notes(sources: Mapping[str, Records]) -> list[str]:
    """Denominators of the records behind the words."""
    return [
        note
        for place, source in sources.items()
        for note in count_notes(PLACES[place], [e for entries in source.read.values() for e in entries], source.scale)
    ]


def _drawn(lines: Sequence[PairLine], place: str) -> Line:
    """One comparison for the figure; where claims name different sides of it, its look is the first one's."""
    line, scale = lines[0], "paper" if place == "paper" else MINIATURE
    signs = dict.fromkeys(_SIGNS[line.claim.compare.direction].format(f"{line.bound:g}") for line in lines)
    column = f", {line.pair.column}" if line.pair.column else ""
    own = f", {line.pair.number_at(scale)}" if line.pair.column else ""
    table = line.pair.spec
    return Line(
        label=f"{table.name if table.number else 'KL ablation'}{column}: {line.pair.label_at('paper')}",
        label_measured=f"{line.pair.label_at(scale)}{own}",
        claimed=", ".join(signs),
        bound=line.bound,
        printed=line.printed.difference,
        printed_finding=line.printed.finding,
        printed_verdict=line.word_printed,
        measured=line.measured[place].finding,
        measured_verdict=line.word(place),
    )
