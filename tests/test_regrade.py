"""Stored runs under today's rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs_here
from test_faults import contents, run

from eval_harness import records, regrade, runner
from eval_harness.__main__ import main
from eval_harness.errors import UserError
from eval_harness.graders.base import rule_names
from eval_harness.provenance import rules_of
from eval_harness.records import Sample
from eval_harness.runner import averages, summarise, verify

NAME = "tiny_sums"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    runs_here.use(monkeypatch)
    monkeypatch.setattr(runner, "GradingPool", runs_here.GradingHere)
    monkeypatch.setattr(regrade, "GradingPool", runs_here.GradingHere)
    return run(runs_here.checkpoint(tmp_path / "model"), tmp_path / "run")


def marked_by_an_older_rule(folder: Path, num: int = 3, *, version: int = records.SCHEMA_VERSION) -> None:
    """As if a strict rule had refused the first answers that it accepts today."""
    record, path = records.read_run(folder), folder / "samples" / f"{NAME}.jsonl"
    samples = records.read_lines(path, Sample)
    right = [i for i, sample in enumerate(samples) if sample.correct_strict][:num]
    assert len(right) == num
    for i in right:
        samples[i] = samples[i].model_copy(update={"correct_strict": False, "reason_strict": "mismatch"})
    records.replace_lines(path, samples)
    items = records.read_lines(folder / "items" / f"{NAME}.jsonl", records.Item)
    benchmark, decoding = runner.get_benchmark(NAME), record.benchmarks[NAME].decoding
    results = {
        **record.benchmarks,
        NAME: summarise(benchmark, items, decoding, samples, schema_version=version),
    }
    update = {"benchmarks": results, "schema_version": version, **averages(results, schema_version=version)}
    if version < 3:
        update |= {"provenance": {}, "identity": {}}
    else:
        known = record.provenance["benchmarks"][NAME]
        known |= {"samples_hash": records.lines_hash(path), "grader": known["grader"] | {"version": 0}}
    records.write_json(folder / "run.json", record.model_copy(update=update))


@pytest.mark.parametrize("version", [1, records.SCHEMA_VERSION])
def test_marks_of_an_older_rule_become_those_of_today(folder, version, capsys):
    before, made = records.read_run(folder), contents(folder)
    marked_by_an_older_rule(folder, version=version)
    old = records.read_run(folder)
    lost = before.benchmarks[NAME].score_strict["mean"] - old.benchmarks[NAME].score_strict["mean"]
    assert lost == pytest.approx(3 / 40)  # three of forty answers: 20 items, two samples each
    assert main(["regrade", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{NAME}: 3 of 40 marks change" in said and "by boxed 1, published, strict_math 1, strict" in said
    after = records.read_run(folder)
    assert after.benchmarks[NAME].score_strict["mean"] == before.benchmarks[NAME].score_strict["mean"]
    assert after.benchmarks[NAME].score == old.benchmarks[NAME].score  # no published mark changed
    assert after.benchmarks["tiny_chains"] == old.benchmarks["tiny_chains"]
    assert (after.schema_version, after.fingerprint) == (version, before.fingerprint)
    known = after.provenance["benchmarks"][NAME]
    assert known["grader"]["strict"] == {"name": "strict_math", "version": 1}
    (told,) = after.provenance["regraded"]
    assert told["benchmarks"][NAME]["changed"] == 3
    assert contents(folder)[f"samples/{NAME}.jsonl"] == made[f"samples/{NAME}.jsonl"]
    assert set(contents(folder)) == set(made)
    report = verify(folder)
    assert all(row["changed"] == 0 and not row["versions"] for row in report.values()), report
    if version > 1:  # the fingerprint of version 1 was another one than this record has
        assert all(row["reproduced"] for row in report.values()), report


def test_a_dry_run_writes_nothing(folder, capsys):
    marked_by_an_older_rule(folder)
    before = contents(folder)
    assert main(["regrade", str(folder), "--dry-run"]) == 0
    assert "3 of 40 marks change" in capsys.readouterr().out
    assert contents(folder) == before


def test_without_a_change_no_number_moves(folder):
    before = records.read_run(folder)
    found = regrade.regrade(folder)
    assert [each.changed for each in found.values()] == [0, 0]
    after = records.read_run(folder)
    assert (after.benchmarks, after.average) == (before.benchmarks, before.average)


def test_edited_samples_get_no_new_hash(folder):
    path = folder / "samples" / f"{NAME}.jsonl"
    path.write_text(path.read_text().replace('"correct": false', '"correct": true'), encoding="utf-8")
    samples = records.read_lines(path, Sample)
    records.replace_lines(path, [s.model_copy(update={"completion": "\\boxed{1}"}) for s in samples])
    before = contents(folder)
    with pytest.raises(UserError, match=f"{NAME} does not fit its record .the samples are not those of the record"):
        regrade.regrade(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("moment", ["before the record", "after the record"])
def test_a_killed_command_can_be_given_again(folder, monkeypatch, moment):
    marked_by_an_older_rule(folder)

    def killed(*args):
        raise KeyboardInterrupt

    if moment == "before the record":
        monkeypatch.setattr(records, "write_json", killed)
    else:
        monkeypatch.setattr(regrade, "_forget", killed)
    with pytest.raises(KeyboardInterrupt):
        regrade.regrade(folder)
    monkeypatch.undo()
    monkeypatch.setattr(regrade, "GradingPool", runs_here.GradingHere)
    monkeypatch.setattr(runner, "GradingPool", runs_here.GradingHere)
    assert list((folder / "samples").glob("*.before"))
    found = regrade.regrade(folder)
    assert found[NAME].changed == (3 if moment == "before the record" else 0)
    assert not list((folder / "samples").glob("*.before"))
    report = verify(folder)
    assert all(row["reproduced"] for row in report.values()), report


def test_what_is_no_finished_evaluation_is_refused(tmp_path, folder):
    record = records.read_run(folder)
    records.write_json(folder / "run.json", record.model_copy(update={"status": "running", "finished": None}))
    with pytest.raises(UserError, match="is not a finished evaluation; finish it first"):
        regrade.regrade(folder)
    with pytest.raises(UserError, match="none is not a run folder"):
        regrade.regrade(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_committed_records_are_marked_by_todays_rules():
    """After a change of a rule: ``eval_harness regrade`` on all of them, and the differences in the changelog."""
    found = [(path, run) for path, run in records.find_runs(ROOT / "results" / "reference") if run.kind == "evaluation"]
    assert len(found) >= 100
    for path, record in found:
        for name in record.benchmarks:
            marked, today = rules_of(record, name), rule_names(runner.get_benchmark(name).grader)
            assert [f"{rule}, {kind}" for rule, kind in zip(marked, ("published", "strict"), strict=True)] == [
                *today
            ], path
