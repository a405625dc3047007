"""The audit, finished: findings, readings, their files and figures. What the command and the notebook call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eval_harness import records
from eval_harness.markup import csv_table
from gpg_repro.audit import fourth, plots
from gpg_repro.audit.facts import Facts, read_facts
from gpg_repro.audit.frames import checked, find, findings_frame, power, rounding_styles, scores_frame, sets_frame
from gpg_repro.audit.readings import (
    INSIDE,
    NO_INTERVAL,
    NOT_COMPARABLE,
    NOT_PRINTED,
    OUTSIDE,
    VERDICTS,
    Reading,
    Trend,
    read_all,
    read_trend,
    readings_frame,
    stated_findings,
)
from gpg_repro.audit.rules import KINDS, SEVERITIES, Finding
from gpg_repro.counts import shown
from gpg_repro.paths import results as default_results
from gpg_repro.published import SOURCES, PrintedRow, printed_rows, published_facts
from gpg_repro.tables.files import save_figure, write_report

STEM = "paper_audit"
HEADING = "Audit of the printed numbers"


@dataclass
class Audit:
    """Everything found and read."""

    rows: dict[str, tuple[PrintedRow, ...]]
    facts: Facts
    findings: list[Finding]
    readings: list[Reading]
    trends: list[Trend]
    remarks: dict
    results: Path

    def findings_layout(self, severity: str | None = None) -> pd.DataFrame:
        """The findings as people read them: one line for the same finding in several places, gravest first."""
        merged: dict[tuple, list[Finding]] = {}
        for one in self.findings:
            if severity in (None, one.severity):
                merged.setdefault((one.severity, one.kind, one.table, one.column, one.text), []).append(one)
        order = list(SEVERITIES)
        lines = [
            {
                "finding": name,
                "what": KINDS[kind],
                "table": table,
                "row": same[0].method,
                "column": column,
                "printed in": ", ".join(dict.fromkeys(source for one in same for source in one.sources)),
                "printed": same[0].printed,
                "expected": same[0].expected,
                "working": text,
            }
            for (name, kind, table, column, text), same in merged.items()
        ]
        frame = pd.DataFrame(
            lines,
            columns=["finding", "what", "table", "row", "column", "printed in", "printed", "expected", "working"],
        )
        key = frame.apply(lambda line: (order.index(line["finding"]), _natural(line["table"])), axis=1)
        return frame.loc[sorted(frame.index, key=lambda i: key[i])].set_index("finding") if len(frame) else frame

    def readings_layout(self) -> pd.DataFrame:
        """The readings as people read them."""
        lines = []
        for one in self.readings:
            digits = self.facts.digits_of(one.column)
            interval = "–" if one.low is None else f"[{shown(one.low, 1, True)}, {shown(one.high, 1, True)}]"
            lines.append(
                {
                    "topic": one.topic,
                    "table": one.table,
                    "difference of": one.pair,
                    "column": one.column,
                    "printed": f"{shown(one.value, digits)} − {shown(one.other, digits)}",
                    "difference": shown(one.difference, digits, sign=True),
                    "as stated": _stated(one, digits),
                    "implied 95 %, unpaired": interval,
                    "zero is": one.verdict,
                    "K": "–" if one.times is None else f"{one.times:,}{' × items' if one.greedy else ''}",
                    "found with 80 %": "–" if one.detectable is None else f"{one.detectable:.1f}",
                    "note": one.note,
                }
            )
        return pd.DataFrame(lines).set_index("topic")

    def trends_layout(self) -> pd.DataFrame:
        """The straight lines."""
        lines = [
            {
                "table": one.table,
                "column": one.column,
                "values": ", ".join(f"{value:.1f}" for value in one.values),
                f"per {one.x_name}": _with_bounds(one),
                "zero is": one.verdict,
                "rise at every step": ", ".join(one.rising) or "none",
                "do not": ", ".join(one.not_rising) or "none",
            }
            for one in self.trends
        ]
        return pd.DataFrame(lines).set_index("table")

    def dated_layout(self) -> pd.DataFrame:
        """Printed numbers and the state of the code that can have produced them."""
        lines = [
            {
                "table": one.table,
                "rows": ", ".join(one.methods),
                "printed in": ", ".join(one.sources),
                "first seen": one.first_seen,
                "generation": one.name,
                "origin": one.origin,
                "why": one.why,
                "what it does": self.facts.generations[one.generation],
            }
            for one in self.facts.dated
        ]
        return pd.DataFrame(lines).set_index("table")

    def power_layout(self) -> pd.DataFrame:
        """What the test of single scores can see."""
        frame = power(self.facts)
        frame["step"] = frame["step"].map("{:.3f}".format)
        frame["passes"] = frame["passes"].map("{:.0%}".format)
        return frame.set_index("column")

    def sets_layout(self) -> pd.DataFrame:
        """Which of several sizes the printed scores fit."""
        return sets_frame(self.rows, self.facts).set_index("column")

    def rounding_layout(self) -> pd.DataFrame:
        """Rows that cut digits, and how many of their numbers tell."""
        return rounding_styles(self.rows, self.facts).set_index("source")

    def remarks_layout(self) -> pd.DataFrame:
        """Facts read, not computed."""
        return pd.DataFrame(self.remarks["read"]).set_index("about")

    def differences_figure(self) -> Figure:
        """Headline differences with the intervals their item counts imply."""
        headline = {*self.facts.summaries, "GEOQA_Test", "mIoU_test", "mIoU_val", "gIoU_test"}
        chosen = [one for one in self.readings if one.column in headline or one.column.startswith("mean without")]
        images = [one for one in chosen if one.topic.startswith("images")]
        panels = [("Mathematics", [one for one in chosen if one not in images]), ("Images", images)]
        digits = {name: about.digits for name, about in (*self.facts.columns.items(), *self.facts.summaries.items())}
        return save_figure(plots.differences_figure(panels, digits), f"{STEM}_differences", "", self.results)

    def attainability_figure(self) -> Figure:
        """How far each printed score lies from the nearest count."""
        figure = plots.attainability_figure(scores_frame(self.rows, self.facts), power(self.facts))
        return save_figure(figure, f"{STEM}_attainability", "", self.results)

    def summary(self) -> str:
        """What was found, in sentences computed from the numbers."""
        return "\n\n".join([self._counts_text(), self._findings_text(), self._readings_text(), self._fourth_text()])

    def _fourth_text(self) -> str:
        known = fourth.known_rows()
        return fourth.summary(self.fourth_frame(), fourth.own_findings(known, self.facts), known)

    def fourth_frame(self) -> pd.DataFrame:
        """Every known cell of the fourth version beside what the sources print for it."""
        return fourth.differences(fourth.known_rows(), self.rows)

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        return [
            "Printed numbers are results/paper/{paper-v3,readme,poster}.json; test sets, marks, dates and comparisons "
            "lie beside them. Nothing else enters.",
            f"The fourth version is known through {published_facts(fourth.SOURCE)['known_through']}. It is compared "
            "and enters no other rule.",
            *(f"{name}: {meaning}." for name, meaning in SEVERITIES.items()),
            *(f"Zero is {name}: {meaning}." for name, meaning in VERDICTS.items()),
            "Implied 95 %: each item one sample, variance p(1−p)/N, rows unpaired. Both rows answered the same items, "
            "so a paired interval, which needs the marks per item, would be narrower. Training seeds are not in it.",
            "K: the smallest number of samples of each item at which the interval would leave zero, were the "
            "difference to stay as printed and the items fixed; p(1−p) is the most that a sample can vary, so fewer "
            "can do. Where decoding is greedy, samples of one item are equal, and K is how many times the items it "
            "would take.",
            "Found with 80 %: the smallest true difference that one such pair of measurements finds with that "
            "probability (two-sided, 5 %).",
            f"{len(self._with_interval())} intervals are read side by side without correction: of so many true zeros, "
            f"about {0.05 * len(self._with_interval()):.0f} would lie outside by chance.",
            *(f"Not established: {text}" for text in self.remarks["not_established"]),
        ]

    def write(self) -> dict[str, Path]:
        """``paper_audit.md``, ``.html``; ``.csv`` (findings), ``_differences.csv``, ``_scores.csv``, ``_v4.csv``."""
        sections = [
            *((f"{name}: {meaning}", self.findings_layout(name)) for name, meaning in SEVERITIES.items()),
            ("Printed differences", self.readings_layout()),
            ("Trends", self.trends_layout()),
            ("Numbers and states of the code", self.dated_layout()),
            ("What the test of single scores can see", self.power_layout()),
            ("Which set the scores fit", self.sets_layout()),
            ("Rows that cut digits", self.rounding_layout()),
            ("Facts read, not computed", self.remarks_layout()),
            ("Fourth version (v4), through a close reading: every known cell", fourth.layout(self.fourth_frame())),
            ("Fourth version: pairs of Tables 12 and 19", fourth.pairs_layout(fourth.known_rows())),
            ("Fourth version: GPG over DAPO, counted, by share of groups with a signal", fourth.costs_layout()),
            ("Fourth version: what else is known", fourth.says_layout()),
        ]
        sections = [(title, frame) for title, frame in sections if len(frame)]
        paths = write_report(STEM, HEADING, sections, self.notes(), "", findings_frame(self.findings), self.results)
        for name, frame in (
            ("differences", readings_frame(self.readings)),
            ("scores", scores_frame(self.rows, self.facts)),
            ("v4", self.fourth_frame()),
        ):
            paths[name] = paths["csv"].with_name(f"{STEM}_{name}.csv")
            records.write_whole(paths[name], csv_table(frame))
        return paths

    def _with_interval(self) -> list[Reading]:
        return [one for one in self.readings if one.low is not None]

    def _counts_text(self) -> str:
        looked = checked(self.rows, self.facts)
        listed = ", ".join(f"{number} {what}" for what, number in looked.items())
        return f"Looked at: {listed} ({', '.join(self.rows)})."

    def _findings_text(self) -> str:
        frame, lines = self.findings_layout(), []
        for name, meaning in SEVERITIES.items():
            part = frame[frame.index == name]
            if len(part):
                places = sum(one.severity == name for one in self.findings)
                cells = dict.fromkeys(_cell(line) for _, line in part.iterrows())
                lines.append(f"- **{name}** ({meaning}), {len(part)} in {places} places: {'; '.join(cells)}")
        return "Found:\n\n" + "\n".join(lines)

    def _readings_text(self) -> str:
        tally = {verdict: [one for one in self.readings if one.verdict == verdict] for verdict in VERDICTS}
        stated = [one for one in self.readings if one.holds is not None]
        apart, within, without, across, dashes = (
            len(tally[name]) for name in (OUTSIDE, INSIDE, NO_INTERVAL, NOT_COMPARABLE, NOT_PRINTED)
        )
        text = (
            f"Of {len(self.readings)} differences read, {apart} have a 95 % interval (implied by item counts, "
            f"unpaired) that leaves out zero, {within} one that holds it, {without} are of means of IoUs and have "
            f"none, {across} are between different sets or meet a row that contradicts itself, {dashes} meet a dash. "
            f"{sum(one.holds for one in stated)} of the {len(stated)} differences that the text states follow from the "
            "printed numbers."
        )
        lines = []
        for topic in dict.fromkeys(one.topic for one in self.readings):
            part = [one for one in self.readings if one.topic == topic and one.low is not None]
            if part:
                inside = [one for one in part if one.verdict == INSIDE]
                times = [one.times for one in inside if one.times is not None]
                needs = f", K = {'–'.join(f'{k:,}' for k in sorted({min(times), max(times)}))}" if times else ""
                lines.append(f"- {topic}: {len(inside)} of {len(part)} hold zero{needs}")
        for one in self.trends:
            lines.append(
                f"- {one.table}, {one.column} per {one.x_name}: {_with_bounds(one)}, zero is {one.verdict}; "
                f"{len(one.rising)} of {len(one.rising) + len(one.not_rising)} benchmarks rise at every step"
            )
        return text + "\n\n" + "\n".join(lines)


def build_audit(results: Path | None = None) -> Audit:
    """Find and read everything; nothing is written before :meth:`Audit.write`.

    Args:
        results: where files and figures go (default: the results folder).
    """
    rows, facts = {source: printed_rows(source) for source in SOURCES}, read_facts()
    read = published_facts("comparisons")
    readings = read_all(rows, facts, read["comparisons"])
    return Audit(
        rows=rows,
        facts=facts,
        findings=[*find(rows, facts), *stated_findings(readings, facts)],
        readings=readings,
        trends=[read_trend(rows, facts, entry) for entry in read["trends"]],
        remarks=published_facts("remarks"),
        results=results or default_results(),
    )


def run(results: Path | None = None) -> str:
    """The whole audit with its files and figures; returns the summary and where they lie."""
    made = build_audit(results)
    paths = made.write()
    made.differences_figure()
    made.attainability_figure()
    files = "\n".join(f"{name}: {path}" for name, path in paths.items())
    return f"{made.summary()}\n\n{files}\nfigures: {made.results / 'figures'}/{STEM}_*"


def _cell(line: pd.Series) -> str:
    """``Table 1, GRPO, Minerva 30.2``."""
    return ", ".join(
        part for part in (line["table"], line["row"], f"{line['column']} {line['printed']}".strip()) if part
    )


def _stated(one: Reading, digits: int) -> str:
    if one.holds is None:
        return "–"
    return f"{shown(one.stated, digits)}: {'follows' if one.holds else 'does not follow'}"


def _with_bounds(one: Trend) -> str:
    return f"{shown(one.slope, 2, True)} [{shown(one.low, 2, True)}, {shown(one.high, 2, True)}]"


def _natural(text: str) -> Sequence[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
