"""``compare``: intervals and p-values are scipy's on the same stored marks; what cannot be compared is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval_harness import compare, records
from eval_harness.__main__ import main
from eval_harness.benchmarks import get_benchmark
from eval_harness.errors import UserError
from eval_harness.records import Decoding, Item, Sample
from eval_harness.runner import summarise

matplotlib.use("agg")
REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "tiny"


def _run(folder: Path, marks: dict[str, list[list[int | None]]], *, temperature=0.0, prompt="{}?", strict=None) -> Path:
    """A finished run with these marks (benchmark -> items -> samples; None: the sample failed)."""
    results = {}
    for name, rows in marks.items():
        items = [Item(item_id=f"{i}", prompt=prompt.format(i), gold="1") for i in range(len(rows))]
        samples = [
            Sample(
                item_id=f"{i}",
                sample=k,
                seed=k,
                status="failed" if mark is None else "scored",
                completion=None if mark is None else "x",
                finish_reason=None if mark is None else "stop",
                num_prompt_tokens=1,
                num_completion_tokens=1,
                correct=None if mark is None else bool(mark),
                correct_strict=None if mark is None else bool(mark if strict is None else strict),
                extracted=None,
                reason="match" if mark else "mismatch",
                gold_fallback=False,
            )
            for i, row in enumerate(rows)
            for k, mark in enumerate(row)
        ]
        records.replace_lines(folder / "items" / f"{name}.jsonl", items)
        (folder / "samples").mkdir(exist_ok=True)
        records.replace_lines(folder / "samples" / f"{name}.jsonl", samples)
        decoding = Decoding(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            max_new_tokens=8,
            samples=len(rows[0]),
            seed=0,
            system_prompt=None,
        )
        results[name] = summarise(get_benchmark(name), items, decoding, samples)
    record = records.RunRecord(
        run_id=folder.name,
        fingerprint="f",
        status="finished",
        created="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:01+00:00",
        model={"name": "m", "weights": None, "revision": None},
        engine={"name": "scripted", "dtype": "float32"},
        settings={},
        benchmarks=results,
        average=None,
        timings={},
        environment={},
    )
    records.write_json(folder / "run.json", record)
    return folder


def _compare(a, b, **options) -> compare.Comparison:
    return compare.compare(compare.open_side(str(a)), compare.open_side(str(b)), **options)


def test_two_stored_runs_give_scipys_interval_and_p_value():
    """On committed records, read here without the project's own reader."""
    folders = [REFERENCE / name / "seed0" for name in ("table3_gpg_rs1", "table3_grpo_rs1")]
    found = _compare(*folders)

    def marks(folder, name):
        lines = (folder / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return {line["item_id"]: float(line["correct"]) for line in map(json.loads, lines)}

    gaps = {}
    for row in found.rows[:-1]:
        a, b = (marks(folder, row["benchmark"]) for folder in folders)
        gaps[row["benchmark"]] = np.array([a[key] - b[key] for key in a])
        better, worse = (int((gaps[row["benchmark"]] == sign).sum()) for sign in (1, -1))
        assert (row["num_better"], row["num_worse"], row["num_items"]) == (better, worse, 100)
        if better + worse:
            test = scipy_stats.ttest_rel([*a.values()], [b[key] for key in a])
            assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()))
            assert row["t_p_value"] == pytest.approx(test.pvalue)
            assert row["p_value"] == pytest.approx(scipy_stats.binomtest(better, better + worse).pvalue)
    mean = found.rows[-1]
    assert mean["difference"] == pytest.approx(np.mean([gap.mean() for gap in gaps.values()]))
    se = math.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps.values())) / len(gaps)
    assert mean["se"] == pytest.approx(se)
    boot = scipy_stats.bootstrap(
        list(gaps.values()),
        lambda *parts, axis: sum(part.mean(axis=axis) for part in parts) / len(parts),
        rng=np.random.default_rng(0),
    )
    assert (mean["boot_low"], mean["boot_high"]) == pytest.approx(tuple(boot.confidence_interval), abs=2e-3)
    drawn = scipy_stats.permutation_test(
        (np.concatenate(list(gaps.values())),), np.mean, permutation_type="samples", rng=np.random.default_rng(0)
    )
    assert mean["p_value"] == pytest.approx(drawn.pvalue, abs=0.02)
    assert found.as_dict() == _compare(*folders).as_dict()  # the same each time


def test_by_hand(tmp_path):
    # 6 items x 2 samples: gaps .5, .5, 0, 1, 0, -.5: mean .25; signs by lot of steps 1, 1, 2, 1 (half marks), sum 3
    a = _run(tmp_path / "a", {"tiny_sums": [[1, 0], [1, 1], [0, 0], [1, 1], [1, 1], [0, 0]]})
    b = _run(tmp_path / "b", {"tiny_sums": [[0, 0], [1, 0], [0, 0], [0, 0], [1, 1], [1, 0]]})
    (row,) = _compare(a, b).rows
    assert row["difference"] == pytest.approx(0.25) and row["p_kind"] == "exact"
    # of 16 sign patterns |sum| >= 3: sums 5 (1), 3 (three of one 1 flipped), and the same below: 8 of 16
    assert row["p_value"] == pytest.approx(0.5)
    assert (row["num_items"], row["num_samples"], row["a"]["mean"], row["b"]["mean"]) == (6, 12, 7 / 12, 4 / 12)
    # within: variances .5 (a: item 0) and .5, .5 (b: items 1, 5): 1.5/6 = .25; between: var(gaps) - .125
    between = np.var([0.5, 0.5, 0, 1, 0, -0.5], ddof=1) - 0.125
    room = 6 * (0.25 / 2.801585) ** 2 - between
    assert room < 0 and row["samples_to_resolve"] is None


def test_failures_count_as_wrong_and_are_told(tmp_path, capsys):
    a = _run(tmp_path / "a", {"tiny_sums": [[1], [1], [None], [1]]})
    b = _run(tmp_path / "b", {"tiny_sums": [[1], [0], [1], [0]]})
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "a: 4 samples asked, 3 scored, 1 failed, which count as wrong." in told and "+25.0" in told
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert found["rows"][0]["failed_a"] == 1 and found["rows"][0]["difference"] == 0.25
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".md", ".csv", ".png", ".svg"}


def test_the_strict_rule(tmp_path):
    a = _run(tmp_path / "a", {"tiny_sums": [[1], [1], [0]]}, strict=0)
    b = _run(tmp_path / "b", {"tiny_sums": [[0], [0], [0]]}, strict=1)
    assert _compare(a, b).rows[0]["difference"] == pytest.approx(2 / 3)
    assert _compare(a, b, rule="strict").rows[0]["difference"] == -1


def test_what_is_not_the_same_on_both_sides(tmp_path):
    a = _run(tmp_path / "a", {"tiny_sums": [[1, 0], [1, 1], [0, 0]], "tiny_products": [[1], [0]]}, temperature=0.6)
    b = _run(tmp_path / "b", {"tiny_sums": [[1], [0]]})
    found = _compare(a, b)
    notes = " ".join(found.notes)
    assert "left out: tiny_products" in notes and "1 items are not in every run" in notes
    assert "the first 1 of each are compared" in notes and "temperature 0.6 / 0.0" in notes
    assert found.rows[0]["difference"] == 0.5 and found.rows[0]["num_samples"] == 2  # first samples: 1, 1 against 1, 0
    other = _run(tmp_path / "c", {"tiny_sums": [[1], [0]]}, prompt="other {}?")
    with pytest.raises(UserError, match="other words or hold another gold"):
        _compare(b, other)
    with pytest.raises(UserError, match="share no benchmark"):
        _compare(b, _run(tmp_path / "d", {"tiny_products": [[1]]}))
    with pytest.raises(UserError, match="not in every run: tiny_products"):
        _compare(a, b, benchmarks=["tiny_products"])
    with pytest.raises(UserError, match="not a run folder"):
        _compare(a, tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a finished evaluation"):
        _compare(a, REFERENCE / "table3_gpg_rs1" / "seed0" / "training")
    assert main(["compare", str(a), str(tmp_path / "nowhere")]) == 2


def test_seeds_are_a_second_level(tmp_path):
    rng, sides = np.random.default_rng(0), {}
    for side, p in (("a", 0.7), ("b", 0.4)):
        sides[side] = [
            _run(tmp_path / f"{side}{k}", {"tiny_sums": rng.binomial(1, p, size=(30, 1)).tolist()}) for k in range(3)
        ]
    a, b = (",".join(map(str, side)) for side in sides.values())
    found = _compare(a, b)
    (row,) = found.rows
    marks = {
        side: np.array([records.samples_frame(f)["correct"].to_numpy(dtype=float) for f in folders])
        for side, folders in sides.items()
    }
    assert row["seeds"] == pytest.approx((marks["a"] - marks["b"]).mean(axis=1).tolist())
    assert row["difference"] == pytest.approx(float((marks["a"] - marks["b"]).mean()))
    assert row["two_level"]["low"] < row["difference"] < row["two_level"]["high"] and row["num_seeds"] == 3
    assert not any("not training seeds" in note for note in found.notes)
    against_one = _compare(a, sides["b"][0])
    assert against_one.rows[0]["seeds"] == pytest.approx((marks["a"] - marks["b"][0]).mean(axis=1).tolist())
    assert any("3 runs against 1" in note for note in against_one.notes)
    with pytest.raises(UserError, match="3 runs against 2"):
        _compare(a, ",".join(map(str, sides["b"][:2])))


def test_several_benchmarks_are_corrected_for(tmp_path):
    rows = [[1]] * 9 + [[0]]
    a = _run(tmp_path / "a", {"tiny_sums": rows, "tiny_products": rows})
    b = _run(tmp_path / "b", {"tiny_sums": [[0]] * 10, "tiny_products": rows})
    found = _compare(a, b).rows
    # nine better, none worse: 2/512; Holm doubles it; no difference at all: 1
    assert [row["p_value"] for row in found[:2]] == [pytest.approx(2 / 512), 1.0]
    assert [row["p_holm"] for row in found] == [pytest.approx(4 / 512), 1.0, None]
    # nothing differs on ten items: Wilson leaves 0 of 10 up to .2775
    assert found[1]["high"] == pytest.approx(0.2775, abs=1e-4) and found[1]["detectable"] is None
