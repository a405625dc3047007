"""The claims page: words come from the rule alone, numbers from published tables and records alone."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from test_tables import fake_evaluation, fake_training
from visual_records import evaluation, item, sample

import gpg_repro.__main__
from eval_harness.checkpoints import load_checkpoints
from eval_harness.errors import UserError
from eval_harness.released import Job
from gpg_repro import dynamics, objective, plots
from gpg_repro.claims import build_claims, checks, evidence, load_claims, report
from gpg_repro.claims.checks import CHECKS, NamedCheck
from gpg_repro.claims.data import KINDS
from gpg_repro.claims.evidence import Measured, Pair, Records, agrees, bound_of, pairs_of, printed, printed_cells
from gpg_repro.claims.rule import (
    PLACES,
    Finding,
    Interval,
    Spread,
    Verdict,
    combine,
    corrected,
    exact,
    interval,
    judge,
    judge_range,
    labelled,
    outcomes,
)
from gpg_repro.published import folder as published_folder
from gpg_repro.tables import get_table, table_02
from gpg_repro.tables.runs import REFERENCE
from gpg_repro.tables.table_02 import Inspection

matplotlib.use("agg")
YES, OPEN, NO, NONE = Verdict.SUPPORTED, Verdict.NOT_RESOLVED, Verdict.CONTRADICTED, Verdict.NOT_TESTED
CLAIMS = {claim.id: claim for claim in load_claims()}


# The rule -------------------------------------------------------------------------------------------------------------


def found(*ends: tuple[float, float], seeds: int | None = 3, bound: float = 0.0) -> Finding:
    """A finding with these intervals; its value is the first one's middle."""
    return Finding(sum(ends[0]) / 2, tuple(Interval("items", *pair, 0.01) for pair in ends), bound, seeds)


@pytest.mark.parametrize(
    ("direction", "finding", "word"),
    [
        ("greater", found((1, 3), (0.5, 4)), YES),
        ("greater", found((1, 3), (-0.5, 4)), OPEN),  # seeds hold zero
        ("greater", found((-3, -1), (-4, -0.5)), NO),
        ("greater", found((-3, -1), (-4, 0.5)), OPEN),
        ("greater", found((-3, -1), (1, 3)), OPEN),  # the two intervals contradict each other
        ("greater", found((0, 2)), OPEN),  # the bound itself is no gain
        ("greater", found((1, 3), seeds=2), OPEN),  # too few seeds to speak of methods
        ("greater", found((-3, -1), seeds=1), OPEN),
        ("greater", found((1, 3), seeds=None), YES),  # no training in it
        ("greater", found((1, math.nan)), OPEN),
        ("greater", found((math.nan, math.nan)), OPEN),
        ("greater", found((1, math.inf)), OPEN),
        ("greater", Finding(1.0, (), 0.0, 3), OPEN),  # no interval
        ("greater", None, NONE),
        ("greater", found((11, 13), bound=10), YES),  # a margin
        ("greater", found((9, 13), bound=10), OPEN),
        ("greater", found((1, 3), bound=10), NO),
        ("less", found((-3, -1)), YES),
        ("less", found((1, 3)), NO),
        ("less", found((-1, 1)), OPEN),
        ("not greater", found((-3, -1)), YES),
        ("not greater", found((0, 0)), YES),  # exactly on the bound
        ("not greater", found((-3, 1)), OPEN),  # no margin is assumed
        ("not greater", found((1, 3)), NO),
        ("not less", found((0, 3)), YES),
        ("not less", found((-3, -1)), NO),
        ("not less", found((-1, 3)), OPEN),
    ],
)
def test_the_word_for_one_number(direction, finding, word):
    assert judge(direction, finding) == word


def test_one_run_each_can_decide_between_named_models_only():
    one = found((1, 3), seeds=1)
    assert judge("greater", one) == OPEN and judge("greater", one, min_seeds=1) == YES
    assert report._min_seeds(CLAIMS["small-best"], "paper") == 1
    assert report._min_seeds(CLAIMS["small-best"], "miniature") == 3  # the miniature has none of these models
    assert report._min_seeds(CLAIMS["age-helps"], "paper") == 3


def spread(low: float, high: float, mean: tuple[float, float], seeds: int = 3) -> Spread:
    return Spread(low, high, found(mean, seeds=seeds), (1.5, 4.0))


@pytest.mark.parametrize(
    ("of", "word"),
    [
        (spread(1.5, 4.0, (2, 3)), YES),
        (spread(1.4, 3.0, (2, 3)), OPEN),  # one step lies outside, the mean inside
        (spread(1.0, 1.6, (1.1, 1.3)), NO),
        (spread(3.9, 9.0, (4.5, 5.0)), NO),
        (spread(1.0, 1.6, (1.1, 1.6)), OPEN),  # the mean may be inside
        (spread(1.5, 4.0, (2, 3), seeds=2), OPEN),
        (spread(math.nan, 4.0, (2, 3)), OPEN),
        (None, NONE),
    ],
)
def test_the_word_for_a_range(of, word):
    assert judge_range(of) == word


@pytest.mark.parametrize(
    ("words", "every", "most"),
    [
        ([YES], YES, YES),
        ([YES, YES, YES], YES, YES),
        ([YES, YES, OPEN], OPEN, YES),
        ([YES, YES, NONE], OPEN, YES),
        ([YES, YES, NO], NO, YES),
        ([YES, NO], NO, NO),  # half is no majority, and none can be left
        ([YES, OPEN, NO], NO, OPEN),
        ([OPEN, NONE], OPEN, OPEN),
        ([NONE, NONE], NONE, NONE),
        ([NO, NONE, NONE], NO, OPEN),
    ],
)
def test_the_word_for_several_tests(words, every, most):
    assert (combine(words, "every"), combine(words, "most")) == (every, most)


def test_p_values_belong_to_the_intervals():
    values = np.array([0.5, 1.5, 2.0, 0.1, 1.2])
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    for bound in (0.0, 0.4, 2.0):
        of = interval("seeds", low, high, len(values) - 1, bound)
        assert of.p_value == pytest.approx(scipy_stats.ttest_1samp(values, bound).pvalue, rel=1e-9)
    # normal: half a width of 1.96 is a standard error of 1, so 2.5758 from the bound is one per cent
    assert interval("items", 2.5758 - 1.95996, 2.5758 + 1.95996, None).p_value == pytest.approx(0.01, rel=1e-3)
    assert interval("items", 1, 1, 5).p_value == 0.0 and interval("items", 0, 0, 5).p_value == 1.0
    assert math.isnan(interval("items", math.nan, math.nan, 5).p_value)
    both = replace(found((1, 3)), intervals=(Interval("items", 1, 3, 0.001), Interval("seeds", 1, 4, 0.04)))
    assert both.p_value == 0.04  # both have to exclude zero


def test_a_correction_takes_words_back_and_gives_none():
    assert [corrected(word, 0.051) for word in (YES, NO, OPEN, NONE)] == [OPEN, OPEN, OPEN, NONE]
    assert [corrected(word, 0.05) for word in (YES, NO, OPEN, NONE)] == [YES, NO, OPEN, NONE]
    assert corrected(YES, math.nan) == OPEN


@pytest.mark.parametrize(
    ("direction", "ends", "words"),
    [
        ("greater", (0.0, -math.inf, math.inf), {YES: 1, NO: -1, OPEN: 0}),
        ("greater", (0.0, 0.0, 1.0), {YES: 1, NO: 0, OPEN: 0}),  # a share: at its end it contradicts
        ("greater", (1e-10, 0.0, math.inf), {YES: 1, NO: 0, OPEN: 0}),
        ("less", (1.0, 0.0, math.inf), {YES: 0, NO: 2, OPEN: 1}),
        ("less", (0.0, -4.0, 0.0), {YES: -1, NO: 0, OPEN: 0}),
        ("not greater", (0.0, 0.0, math.inf), {YES: 0, NO: 1, OPEN: 0}),
        ("not less", (0.0, -100.0, 100.0), {YES: 1, NO: -1, OPEN: 0}),
        ("not greater", (1.0, 0.0, 1.0), {YES: 0}),  # nothing is above one: this claim would be a tautology
        ("less", (0.0, 0.0, 1.0), {NO: 1, OPEN: 0}),  # nor below nothing
    ],
)
def test_what_earns_each_word(direction, ends, words):
    found = outcomes(direction, *ends)
    assert set(found) == {*words, NONE} and found[NONE].result is None
    for word, value in words.items():
        of = found[word].result
        assert (judge(direction, of), of.bound) == (word, ends[0])
        assert ends[1] <= of.value <= ends[2] and all(ends[1] <= i.low <= i.high <= ends[2] for i in of.intervals)
        assert of.value == pytest.approx(value, abs=1e-9)


def test_a_quantity_at_its_end_contradicts_that_it_lies_beyond():
    share = replace(found((0, 0)), least=0.0, most=1.0)
    assert judge("greater", share) == NO and judge("greater", replace(share, least=-math.inf)) == OPEN
    assert judge("greater", replace(found((0, 0.1)), least=0.0)) == OPEN
    assert judge("less", replace(found((1, 1), bound=1), most=1.0)) == NO
    assert judge("greater", replace(found((0, 0), seeds=2), least=0.0)) == OPEN


# The claims -----------------------------------------------------------------------------------------------------------


def test_there_is_a_row_for_every_kind_of_claim_and_every_table_with_numbers():
    assert 40 <= len(CLAIMS) <= 80
    assert {claim.kind for claim in CLAIMS.values()} == set(KINDS)
    places = {place for claim in CLAIMS.values() for place in claim.places}
    assert {f"Table {number}" for number in range(1, 13)} <= places
    assert {"Abstract", "Appendix A", "Figure 1", "Figure 2", "Figure 3", "Figure 4"} <= places
    assert {check.name for claim in CLAIMS.values() if (check := claim.check)} == set(CHECKS)  # none is left over


def _changed(tmp_path: Path, **change) -> Path:
    claims = json.loads((published_folder() / "claims.json").read_text(encoding="utf-8"))
    entry = next(claim for claim in claims["claims"] if claim["id"] == "age-helps")
    entry.update(change)
    path = tmp_path / "claims.json"
    path.write_text(json.dumps(claims), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": "The correction brings 3.9 points."}, "holds a digit"),
        ({"remark": "In 3 seeds."}, "holds a digit"),
        ({"verdict": "supported"}, "Extra inputs are not permitted"),
        ({"untested": "No reason."}, "exactly one of"),
        ({"compare": None}, "exactly one of"),
        ({"id": "std-helps"}, "std-helps: the id stands 2 times"),
        ({"kind": "rumour"}, "kind"),
        ({"compare": {"direction": "greater", "tests": [{"table": "13", "rows": ["a", "b"]}]}}, "no table '13'"),
        ({"compare": {"direction": "greater", "tests": [{"table": "1", "rows": ["gpg", "ppo"]}]}}, "no row 'ppo'"),
        ({"compare": {"direction": "greater", "tests": [{"table": "1", "rows": ["gpg"]}]}}, "at least 2"),
        (
            {"compare": {"direction": "less", "tests": [{"table": "1", "rows": ["gpg", "grpo"], "columns": ["AMC"]}]}},
            "no column 'AMC'",
        ),
        (
            {
                "compare": {
                    "direction": "greater",
                    "margin": ["Section 3.3", "margin"],
                    "tests": [{"table": "1", "rows": ["gpg", "grpo"]}],
                }
            },
            "unknown published range",
        ),
        ({"compare": None, "check": {"name": "magic", "direction": "less"}}, "no check 'magic'"),
        ({"published": {"table": "Table 1", "rows": ["PPO"]}}, "prints no row 'PPO'"),
        ({"published": {"table": "Table 14"}}, "unknown published table"),
        (
            {"compare": None, "training": {"recipe": "r", "quantity": "alpha", "statistic": "range",
             "direction": "within"}},
            "no recipe 'r'",
        ),
    ],
)  # fmt: skip
def test_a_claim_that_refers_to_nothing_or_types_a_number_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_claims(_changed(tmp_path, **change))


def test_everything_wrong_is_named_at_once(tmp_path):
    tests = [{"table": "1", "rows": ["x", "grpo"]}, {"table": "13", "rows": ["a", "b"]}]
    with pytest.raises(UserError, match="2 references lead nowhere") as error:
        load_claims(_changed(tmp_path, compare={"direction": "greater", "tests": tests}))
    assert "no row 'x'" in str(error.value) and "no table '13'" in str(error.value)


def test_the_four_words_stand_in_the_rule_alone():
    """No other module of the package and no claim holds one as a value of its own."""
    words = {str(word) for word in Verdict}
    for path in Path(report.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert (words & constants == words) == (path.name == "rule.py") and (
            path.name == "rule.py" or not words & constants
        )
    assert not any(f'"{word}"' in (published_folder() / "claims.json").read_text(encoding="utf-8") for word in words)


# Printed evidence -----------------------------------------------------------------------------------------------------


def test_printed_column_by_hand():
    shown = printed(Pair("3", "gpg_rs1", "grpo_rs1", "AMC23"))
    # 77.5 and 67.5 of 40 problems: se = sqrt(0.775 x 0.225 / 40 + 0.675 x 0.325 / 40) = 9.922 points
    assert shown.difference == pytest.approx(10.0)
    (of,) = shown.finding.intervals
    assert (of.low, of.high) == pytest.approx((10 - 1.95996 * 9.9216, 10 + 1.95996 * 9.9216), abs=1e-3)
    assert of.p_value == pytest.approx(2 * scipy_stats.norm.sf(10 / 9.9216), rel=1e-3)


def test_printed_headline_is_that_of_the_table():
    from gpg_repro.tables.base import published_scores
    from gpg_repro.tables.printed import implied_difference

    table = get_table("1")
    scores = published_scores(table)
    gap, low, high = implied_difference(table, scores.loc["gpg"], scores.loc["grpo"])
    (of,) = printed(Pair("1", "gpg", "grpo", None)).finding.intervals
    assert (of.low, of.high) == (low, high) and printed(Pair("1", "gpg", "grpo", None)).difference == gap


@pytest.mark.parametrize(
    ("pair", "gap", "why"),
    [
        (Pair("4", "gpg_paper", "oat", None), 6.3, "different test sets"),
        (Pair("4", "gpg_paper", "oat", "AMC23"), 19.8, "different test sets"),
        (Pair("8", "gpg_r0", "grpo", "mIoU_val"), 19.0, "no counts"),
        (Pair("8", "gpg_r0", "grpo", None), 13.9, "no counts"),
        (Pair("kl", "gpg_kl", "gpg_std", None), None, "not printed"),
        (Pair("4", "gpg_paper", "rstar", None), None, "not printed"),  # its average is a dash
    ],
)
def test_what_item_counts_cannot_tell(pair, gap, why):
    shown = printed(pair)
    assert shown.finding is None and why in shown.why_not
    assert shown.difference == (None if gap is None else pytest.approx(gap))


def test_other_columns_of_those_models_can_be_told():
    assert printed(Pair("4", "gpg_paper", "oat", "AIME24")).finding is not None


def test_printed_sides():
    gain = printed(Pair("1", "gpg", "grpo", None))  # +0.2, far inside its interval
    assert agrees("greater", gain) and not agrees("less", gain) and not agrees("greater", gain, 10.0)
    assert agrees("not greater", gain)  # a gain that item counts do not resolve is none
    large = printed(Pair("1", "gpg_age_th", "base", None))
    assert not agrees("not greater", large) and agrees("not less", large)
    assert agrees("greater", printed(Pair("kl", "gpg_kl", "gpg_std", None))) is None


def test_a_chain_is_one_test_and_columns_are_several():
    average, columns = pairs_of(CLAIMS["group-size-average"]), pairs_of(CLAIMS["group-size-columns"])
    assert [[(p.row, p.against) for p in test] for test in average] == [[("g16", "g8"), ("g8", "g4"), ("g4", "g2")]]
    assert [test[0].column for test in columns] == ["AIME24", "MATH-500", "AMC23", "Minerva", "OlympiadBench"]
    assert bound_of(CLAIMS["grounding"]) == 10 and bound_of(CLAIMS["cvbench"]) == 0


def test_printed_cells_are_looked_up():
    assert printed_cells(CLAIMS["no-critic"]) == "Table 2: GPG: Value Models no"
    assert "PPO: Value Models yes" in printed_cells(CLAIMS["ppo-trpo-components"])
    assert printed_cells(CLAIMS["alpha-range"]) == "text: 1.5 to 4; no values of the curve"
    assert printed_cells(CLAIMS["zero-gradient"]) == "no number is printed"


# Measured evidence ----------------------------------------------------------------------------------------------------


@pytest.fixture
def committed(tmp_path):
    """Committed records: GPG right on 12, 13, 14 of 20 items of every suite with seeds 0 to 2, GRPO on 6 always."""
    root = tmp_path / "reference"
    for recipe, right in (("table1_gpg", (12, 13, 14)), ("table1_grpo", (6, 6, 6)), ("table1_gpg_age", (14,))):
        for seed, count in enumerate(right):
            fake_evaluation(root / "tiny" / recipe / f"seed{seed}", count)
            steps = [{"frac_easy": 0.01 * (step + seed), "alpha": 2.0 + seed} for step in range(20)]
            steps[3] |= {"num_valid_groups": 0, "alpha": 0.0}  # no group with a signal, so no alpha
            fake_training(root / "tiny" / recipe / f"seed{seed}" / "training", steps)
    return root


def test_measured_by_hand(committed):
    source = Records("tiny", committed, committed / "none")
    measured = source.measured(Pair("1", "gpg", "grpo", None))
    items, seeds = measured.finding.intervals
    # 13 of 20 on average against 6 of 20
    assert measured.finding.value == pytest.approx(35.0) and measured.finding.num_seeds == 3
    # seeds: +30, +35, +40, so 35 +- t(0.975, 2) x 5 / sqrt 3
    half = scipy_stats.t.ppf(0.975, 2) * 5 / math.sqrt(3)
    assert (seeds.low, seeds.high) == pytest.approx((35 - half, 35 + half))
    assert seeds.p_value == pytest.approx(scipy_stats.ttest_1samp([30, 35, 40], 0).pvalue)
    assert (items.over, seeds.over) == ("items", "seeds") and items.low > 0
    assert judge("greater", measured.finding) == YES and judge("less", measured.finding) == NO


def test_one_seed_decides_nothing(committed):
    measured = Records("tiny", committed, committed / "none").measured(Pair("1", "gpg_age", "grpo", None))
    assert measured.finding.num_seeds == 1 and [i.over for i in measured.finding.intervals] == ["items"]
    assert measured.finding.intervals[0].low > 0 and judge("greater", measured.finding) == OPEN


def test_missing_rows_and_other_bases_are_not_tested(committed):
    source = Records("tiny", committed, committed / "none")
    missing = source.measured(Pair("1", "gpg_std", "dr_grpo", None))
    assert missing.finding is None and missing.absent == ("GPG (F_norm = std, α = 1)", "Dr. GRPO")
    for path in (committed / "tiny" / "table1_grpo").glob("seed*/training/run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("base-weights", "other-weights"), encoding="utf-8")
    other = Records("tiny", committed, committed / "none").measured(Pair("1", "gpg", "grpo", None))
    assert other.finding is None and "same base" in other.why_not and judge("greater", other.finding) == NONE


def test_training_quantities_by_hand(committed):
    source = Records("tiny", committed, committed / "none")

    def of(quantity, statistic, direction="greater", quoted=None):
        claim = CLAIMS["easy-grows"].training
        change = {"recipe": "table1_gpg", "quantity": quantity, "statistic": statistic, "direction": direction}
        return source.training(claim.model_copy(update={**change, "quoted": quoted}))

    change = of("frac_easy", "change")
    assert change.value == pytest.approx(0.1) and change.num_seeds == 3  # steps 10 … 19 minus 0 … 9, 0.01 a step
    mean = of("frac_easy", "mean")
    # seed means 0.095, 0.105, 0.115
    half = scipy_stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert (mean.intervals[0].low, mean.intervals[0].high) == pytest.approx((0.105 - half, 0.105 + half))
    alpha = of("alpha", "range", "within", ("Figure 2", "alpha"))
    assert (alpha.low, alpha.high, alpha.mean.value, alpha.claimed) == (2.0, 4.0, 3.0, (1.5, 4.0))
    assert judge_range(alpha) == YES
    assert of("nothing", "mean") is None and source.training(CLAIMS["reward-rises"].training) is None


def _paper_run(root: Path, label: str, right: int, finished: str, benchmarks=("aime24",), limit=None) -> Path:
    suites = {name: ([item(i) for i in range(30)], [sample(i, i < right, i < right) for i in range(30)])
              for name in ("aime24", "math500", "amc23", "minerva", "olympiadbench")}  # fmt: skip
    folder = evaluation(root / f"eval-{label}-vllm-0a1b2c3d", {name: suites[name] for name in benchmarks})
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    decoding = {"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": 1, "samples": 1, "seed": 0}
    result = {"version": 1, "source": "s", "prompts_hash": "h", "decoding": {**decoding, "system_prompt": None}}
    counts = dict.fromkeys(("num_gold_fallback", "num_truncated", "num_no_answer", "num_timeout", "failed"), 0)
    counts |= {"num_items": 30, "asked": 30, "scored": 30, "mean_completion_tokens": 1.0}
    run["benchmarks"] = {name: {**result, **counts, "score": None, "score_strict": None} for name in benchmarks}
    run |= {"finished": finished, "settings": {"limit": limit}}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def test_runs_at_paper_scale_are_found_and_nothing_less(tmp_path):
    whole = ("aime24", "math500", "amc23", "minerva", "olympiadbench")
    labels = [Job(load_checkpoints()[hub], None).label for hub in ("GD-ML/Open-RS1", "knoveleng/Open-RS1")]
    pair = Pair("3", "gpg_rs1", "grpo_rs1", None)
    _paper_run(tmp_path, labels[0], 25, "2026-01-01", whole)
    part = _paper_run(tmp_path, labels[1], 5, "2026-01-01", whole[:4])
    assert Records("paper", tmp_path, tmp_path).measured(pair).absent == ("Open-RS1 (GRPO on open-s1)",)
    for path in (part, *part.rglob("*")):
        if path.is_file():
            path.unlink()
    _paper_run(tmp_path, labels[1], 5, "2026-01-01", whole, limit=30)
    assert Records("paper", tmp_path, tmp_path).measured(pair).absent  # a part of the items is no measurement
    path = part / "run.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"limit": 30', '"limit": null'), encoding="utf-8")
    measured = Records("paper", tmp_path, tmp_path).measured(pair)
    assert measured.finding.value == pytest.approx(100 * 20 / 30) and measured.finding.num_seeds == 1
    assert judge("greater", measured.finding, report._min_seeds(CLAIMS["small-best"], "paper")) == YES
    assert judge("greater", measured.finding, report._min_seeds(CLAIMS["consistent"], "paper")) == OPEN


# Checks ---------------------------------------------------------------------------------------------------------------


def word_of(name: str, seed: int = 0) -> Verdict:
    """The word that the claim with this check gets."""
    (claim,) = (claim for claim in CLAIMS.values() if claim.check and claim.check.name == name)
    return judge(claim.check.direction, CHECKS[name].function(np.random.default_rng(seed)))


EXPECTED = {
    "direct_objective": YES,
    "std_bias": YES,
    "plain_mean_bias": YES,
    "age_bias": YES,
    "zero_gradient": YES,
    "age_is_valid_mean": YES,
    "age_over_processes": YES,
    "std_makes_up": OPEN,
    "baseline_variance": YES,
    "threshold_variance": YES,
    "full_resampling": YES,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_checks_of_the_real_code(name):
    assert word_of(name, seed=1) == EXPECTED[name]


def test_expected_lengths_by_hand():
    """E[g] = (G-1)/G of the true gradient; with alpha (1 - P(no group valid)) / P(valid) times that.

    Given that one of two groups is valid, the plain mean is P(valid) / (1 - P(none)) of a valid group's gradient."""
    p = np.array(checks._ACCURACIES)
    valid = float((1 - p**3 - (1 - p) ** 3).mean())  # of a group of three: 0.5
    factor = (1 - (1 - valid) ** 2) / valid
    assert valid == pytest.approx(0.5) and factor == pytest.approx(1.5)
    rng = np.random.default_rng(0)
    assert CHECKS["plain_mean_bias"].function(rng).value == pytest.approx(1 - 1 / factor)
    assert "5e-01 with G/(G−1) taken out (expected gradient 1.50 times" in CHECKS["age_bias"].function(rng).detail
    assert "0.75 times" in CHECKS["direct_objective"].function(rng).detail


def _untied(marks):
    """Rewards that never tie, as the cosine reward's do."""
    return marks + torch.arange(len(marks)) / 100


@pytest.mark.parametrize(
    ("name", "world", "word"),
    [
        ("plain_mean_bias", {"pay": _untied}, NO),  # no group is without a signal
        ("age_bias", {"with_alpha": False}, NO),
        ("std_makes_up", {"alphas": (1.02,)}, NO),  # there is nothing to correct
        ("std_makes_up", {"alphas": (2.0, 4.0)}, YES),
        ("full_resampling", {"num_groups": 8, "alphas": (4.0,)}, NO),  # one draw of eight has few valid groups, or one
        ("full_resampling", {"num_groups": 8, "alphas": (1.5, 4.0)}, OPEN),
    ],
)
def test_a_check_comes_out_otherwise_in_another_world(name, world, word):
    (claim,) = (claim for claim in CLAIMS.values() if claim.check and claim.check.name == name)
    assert (
        judge(claim.check.direction, CHECKS[name].function(np.random.default_rng(2), **world)) == word != EXPECTED[name]
    )


def test_distances_from_the_mean_over_valid_groups_by_hand():
    """Groups (1, 0), (1, 1) and (0, 0): alpha = 3. The plain gradient is a third of the wanted one, so 2/3 away. The
    std of (1, 0) is sqrt(1/2), so the divided one is sqrt(2) / 3 of it: 0.529 away."""
    rewards, logits = torch.tensor([1.0, 0, 1, 1, 0, 0]).double(), torch.zeros(6, 1).double().requires_grad_(True)
    plain, divided = checks._distances(checks._Batch(rewards, torch.ones(6, 1).double(), logits, 2))
    assert plain == pytest.approx(2 / 3) and divided == pytest.approx(1 - math.sqrt(2) / 3, abs=1e-3)


def test_completions_for_one_variance_by_hand():
    """One group a step, valid every second time: two draws on average. One corrected draw, if valid, is as good."""
    found = checks.full_resampling(None, 1, (2.0,))
    assert found.value == pytest.approx(2.0)


def _uncentred(rewards, num_generations, f_norm="none", **_):
    return rewards.double()


def _divided(rewards, num_generations, f_norm="none", **_):
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + 1e-4)).flatten()  # and rounding is left in equal groups


def _undivided(rewards, num_generations, f_norm="none", **_):
    return real_advantages(rewards, num_generations)


def _multiplied(rewards, num_generations, f_norm="none", **_):
    """Times the standard deviation where it should be over it."""
    centred = real_advantages(rewards, num_generations)
    std = rewards.view(-1, num_generations).std(dim=1).repeat_interleave(num_generations)
    return centred * std if f_norm == "group" else centred


def _over_valid(logps, advantages, completion_mask, num_generations, alpha=1.0, normalization="group"):
    """The mean over groups with a signal, whatever alpha is."""
    num_groups, num_valid = len(logps) // num_generations, advantages.view(-1, num_generations).ne(0).any(dim=1).sum()
    return real_loss(logps, advantages, completion_mask, num_generations) * num_groups / num_valid.clamp(min=1)


def _without_log(logps, advantages, completion_mask, num_generations, alpha=1.0, normalization="group"):
    return -(logps.exp() * advantages[:, None]).sum()


real_advantages, real_loss = objective.group_advantages, objective.gpg_loss


@pytest.mark.parametrize(
    ("name", "attribute", "broken"),
    [
        ("direct_objective", "group_advantages", _divided),
        ("direct_objective", "gpg_loss", _without_log),
        ("zero_gradient", "group_advantages", _uncentred),
        ("zero_gradient", "group_advantages", _divided),
        ("age_is_valid_mean", "age_alpha", lambda num_groups, num_invalid: 1.0),
        ("age_is_valid_mean", "valid_groups", lambda r, g: torch.ones(len(r) // g, dtype=torch.bool)),
        ("age_over_processes", "age_alpha", lambda num_groups, num_invalid: num_groups / max(1, num_invalid)),
        ("std_bias", "group_advantages", _undivided),
        ("plain_mean_bias", "gpg_loss", _over_valid),
        ("age_bias", "age_alpha", lambda num_groups, num_invalid: 1.0),
        ("std_makes_up", "group_advantages", _multiplied),
        ("baseline_variance", "group_advantages", _uncentred),
    ],
)  # fmt: skip
def test_a_check_notices_broken_code(monkeypatch, name, attribute, broken):
    monkeypatch.setattr(objective, attribute, broken)
    assert word_of(name) != EXPECTED[name]


def test_the_threshold_and_resampling_checks_notice_broken_code(monkeypatch):
    monkeypatch.setattr(checks, "reached", lambda *_: True)  # never draws again
    assert word_of("threshold_variance") != YES
    monkeypatch.setattr(
        dynamics, "resampling", lambda *_, **__: type("R", (), {"expected_draws": 1.0, "first_alpha": 1.5})
    )
    assert word_of("full_resampling") != YES


def _inspection(method: str, **change) -> Inspection:
    rival = method != "GPG"
    held = {"value_model": False, "reference_model": method == "GRPO", "surrogate": rival, "constraint": rival}
    cost = {"policy_parameters": 10, "other_parameters": 10 if method == "GRPO" else 0, "num_completions": 64}
    passes = {"passes_with_gradient": 1.0 if rival else 0.25, "passes_without_gradient": float(method == "GRPO")}
    more = {"clips": rival, "kl": method == "GRPO", "num_draws": 1, "share_valid": 0.25}
    return Inspection(method=method, **{**held, **cost, **passes, **more, **change})


@pytest.mark.parametrize(
    ("name", "method", "change"),
    [
        ("value_model", "GPG", {"value_model": True}),
        ("reference_model", "GPG", {"reference_model": True}),
        ("surrogate", "GPG", {"surrogate": True}),
        ("constraint", "GPG", {"constraint": True}),
        ("grpo_components", "GRPO", {"reference_model": False}),
        ("fewest_components", "Dr. GRPO", {"surrogate": False, "constraint": False}),
        ("cost_of_a_step", "GPG", {"passes_with_gradient": 2.5}),
        ("cost_of_a_step", "GPG", {"other_parameters": 10}),
    ],
)
def test_checks_of_what_trainers_hold(monkeypatch, name, method, change):
    """On what the real trainers hold (test_inspection_of_table_2 asks them), and on one that holds something else."""
    monkeypatch.setattr(checks, "inspected", _inspection)
    assert word_of(name) == YES
    monkeypatch.setattr(checks, "inspected", lambda m: _inspection(m, **(change if m == method else {})))
    assert word_of(name) != YES


def test_the_trainers_themselves_are_asked(monkeypatch, tmp_path):
    asked = _inspection("GPG")
    monkeypatch.setenv("GPG_CACHE", str(tmp_path))
    monkeypatch.setattr(
        table_02, "inspect_method", lambda method, recipe: {("GPG", "table1_gpg_age"): asked}[method, recipe]
    )
    checks.inspected.cache_clear()
    assert checks.inspected is table_02.inspected and checks.inspected("GPG") is asked
    checks.inspected.cache_clear()


def test_no_rule_is_a_tautology(monkeypatch):
    """Whatever a claim is measured by, results exist that earn it each of the four words, and the rule gives them."""
    monkeypatch.setattr(checks, "inspected", _inspection)
    source, rng = Records("tiny", REFERENCE, Path("none")), np.random.default_rng(0)
    for claim in CLAIMS.values():
        if claim.untested:
            continue
        way, quoted, measured = claim.check or claim.training or claim.compare, None, None
        if claim.check:
            measured = CHECKS[claim.check.name].function(rng)
            assert measured.least <= measured.value <= measured.most
        elif claim.training:
            measured, quoted = source.training(claim.training), claim.training.quoted
            assert measured is not None
        else:
            measured = Finding(0.0, (), bound_of(claim))
        possible = report._possible(way.direction, measured, quoted)
        assert set(possible) == set(Verdict), claim.id
        for word, outcome in possible.items():
            judged = judge_range if way.direction == "within" else partial(judge, way.direction)
            assert judged(outcome.result) == word, claim.id
        assert len({outcome.text for outcome in possible.values()}) == 4


def test_simulated_checks_draw_from_the_generator_that_is_passed_in():
    one, again, other = (checks.baseline_variance(np.random.default_rng(seed)).value for seed in (3, 3, 4))
    assert one == again != other


# The page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page from the committed records, without building trainers."""
    return build_claims("tiny", results=tmp_path_factory.mktemp("results"), inspections=False)


@pytest.mark.full("judges every claim on all committed records")
def test_the_page_has_a_row_for_every_claim_and_every_word_says_where_it_was_earned(page):
    assert sorted(page.frame.index) == sorted(CLAIMS)
    starts = {title: [text for text in page.frame["this repository", column] if text != "–"] for title, column in (
        ("by computation", "by computation"),
        ("in miniature", "in miniature (not the paper's models)"),
        ("at paper scale", "at paper scale"),
    )}  # fmt: skip
    for place, cells in starts.items():
        assert cells and all(cell.startswith(f"{place}: ") for cell in cells)
    for place, title in PLACES.items():
        assert all(not cell or cell.startswith(f"{title}: ") for cell in page.long[f"word_{place}"])
    assert labelled(YES, "miniature") == "in miniature: supported"


def test_what_the_page_says_of_some_claims(page):
    rows = {row.claim.id: row for row in page.rows}
    assert rows["age-helps"].printed_verdict == OPEN  # +3.9 inside its implied interval
    assert rows["cvbench"].printed_verdict == YES
    assert rows["grounding"].printed_verdict == NONE and "no counts" in report._told(rows["grounding"])
    assert "different test sets" in rows["large-best"].printed
    assert rows["small-math-olympiad"].printed.startswith("2 of 4 differences on the claimed side")
    assert rows["group-size-columns"].printed.startswith("13 of 15")
    assert rows["kl-hurts"].printed == "no number is printed"
    assert rows["case-study"].verdicts == {"computed": None, "miniature": NONE, "paper": NONE}
    assert rows["zero-gradient"].verdicts == {"computed": YES, "miniature": None, "paper": None}
    assert rows["no-critic"].verdicts["computed"] == NONE  # the trainers were left out
    assert rows["std-corrects"].verdicts == {"computed": None, "miniature": OPEN, "paper": None}
    assert report._earns(rows["age-helps"]).startswith(
        "supported: every interval above 0; not resolved: an interval on"
    )
    assert "contradicted: every interval at 0" in report._earns(rows["alpha-needed"])
    assert report._earns(rows["case-study"]) == "–"
    assert (
        rows["cvbench"].verdicts["miniature"] == OPEN and "one training seed" in rows["cvbench"].measured["miniature"]
    )
    assert all(row.verdicts["paper"] in (NONE, None) for row in page.rows)  # no runs of that scale in the folder


@pytest.fixture
def quick_checks(monkeypatch):
    """Checks that find 0 at once, for tests that are about something else."""
    quick = {name: NamedCheck(lambda rng: exact(0.0), check.place, check.inspects) for name, check in CHECKS.items()}
    monkeypatch.setattr(report, "CHECKS", quick)


@pytest.mark.full("judges every claim on all committed records")
def test_every_word_follows_the_rule(monkeypatch, tmp_path, quick_checks):
    """With the rule replaced, each word that rests on a number is the replacement's."""
    monkeypatch.setattr(report, "judge", lambda direction, found, *_: NO if found is not None else NONE)
    monkeypatch.setattr(report, "judge_range", lambda found, *_: NO if found is not None else NONE)
    monkeypatch.setattr(report, "corrected", lambda word, p: word)
    for row in build_claims("tiny", results=tmp_path, inspections=True).rows:
        words = [row.printed_verdict, *row.verdicts.values()]
        assert set(words) <= {NO, NONE, None}
        if row.claim.check:
            assert NO in words
        if row.claim.untested:
            assert NO not in words


def test_holm_takes_back_a_word(page):
    """Three comparisons at p = 0.03 each: Holm makes 3 x 0.03 = 0.09 of the smallest, and no word is left."""
    claim = CLAIMS["group-size-average"]
    one = Finding(1.0, (Interval("items", 0.1, 1.9, 0.03), Interval("seeds", 0.2, 1.8, 0.02)), 0.0, 3)
    (row,) = (row for row in page.rows if row.claim is claim)
    measured = {"miniature": Measured(one, {}), "paper": Measured(None)}
    lines = tuple(replace(line, measured=measured) for line in row.lines)
    adjusted = report._adjusted([lines])
    assert list(adjusted["miniature"].values()) == pytest.approx([0.09] * 3) and not adjusted["paper"]
    monkey = replace(row, **_words(claim, lines, adjusted))
    assert (monkey.verdicts["miniature"], monkey.corrected["miniature"]) == (YES, OPEN)
    assert report._word(monkey, "miniature") == "in miniature: supported (not resolved after Holm)"
    few = replace(one, num_seeds=1)
    lines = tuple(replace(line, measured={**measured, "miniature": Measured(few, {})}) for line in row.lines)
    assert not report._adjusted([lines])["miniature"]  # cannot be decided, so it is no comparison that was read


def _words(claim, lines, adjusted) -> dict:
    seen = {line.pair: line for line in lines}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_measured_text", lambda lines, place: "")
        made = report._compared(claim, tuple(seen.values()), adjusted)
    return {"verdicts": made.verdicts, "corrected": made.corrected}


def test_a_comparison_of_several_claims_is_read_once(page):
    used = [line.key for row in page.rows for line in row.lines]
    family = report._adjusted([row.lines for row in page.rows])["printed"]
    assert len(used) > len(set(used)) >= len(family)


@pytest.mark.full("judges every claim on all committed records")
def test_files_and_figures(page):
    tables, figures = (page.results / kind / "tiny" for kind in ("tables", "figures"))
    assert {path.name for path in tables.iterdir()} == {"claims.md", "claims.csv", "claims.html"}
    text = (tables / "claims.md").read_text(encoding="utf-8")
    assert all(f"| {name} " in text for name in CLAIMS) and "never one about the paper's models" in text
    drawn = page.figure()
    left, right = drawn.axes
    assert "Printed" in left.get_title() and "in miniature" in right.get_title()
    labels = [tick.get_text().rsplit("   ", 1)[0] for tick in left.get_yticklabels()]  # without the claimed side
    assert len(labels) == len(set(labels)) and any(label.startswith("Table 8") for label in labels)
    assert not any("base" in tick.get_text() for tick in right.get_yticklabels())  # they have a picture of their own
    page.base_figure(), page.columns_figure()
    names = ("claims", "claims_base", "claims_columns")
    assert {path.name for path in figures.iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg")}
    plots.plt.close("all")


def test_provenance_names_the_runs(page):
    assert set(page.provenance.index.get_level_values("place")) == {"in miniature"}
    assert page.provenance["run"].is_unique


def test_without_any_record_nothing_is_told_of_any_scale(tmp_path, quick_checks):
    made = build_claims("smoke", results=tmp_path, reference=tmp_path / "none")
    for row in made.rows:
        if row.lines or row.claim.training:
            assert (row.verdicts["miniature"], row.verdicts["paper"]) == (NONE, NONE)
    assert any("scale smoke" in note for note in made.notes)


@pytest.mark.full("judges every claim on all committed records")
def test_command(tmp_path, monkeypatch, capsys, quick_checks):
    monkeypatch.setenv("GPG_RESULTS", str(tmp_path))
    monkeypatch.setattr(evidence, "reference_runs", lambda *_: [])
    assert gpg_repro.__main__.main(["claims", "--scale", "paper", "--no-inspections"]) == 0
    assert "at paper scale" in capsys.readouterr().out and (tmp_path / "tables" / "paper" / "claims.csv").exists()
    assert gpg_repro.__main__.main(["claims", "--scale", "large"]) == 2
    assert "unknown scale" in capsys.readouterr().err
