"""The registry of released checkpoints agrees with the tables and the printed numbers; bad files are refused."""

from __future__ import annotations

import re

import pytest
import yaml
from jinja2 import Template

from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import AMC_SETS, REGISTRY, get_checkpoint, load_checkpoints
from eval_harness.errors import UserError
from eval_harness.records import BenchmarkResult, RunRecord
from eval_harness.released import Job, choose, implied, lines_of, table_of, write_tables
from eval_harness.runner import Overrides, decoding_of
from eval_harness.stats import mean_of_items
from gpg_repro.prompts import QWEN_BOXED
from gpg_repro.published import published_table
from gpg_repro.recipe import load_recipe, recipe_names
from gpg_repro.tables import get_table
from gpg_repro.tables.base import MATH_COLUMNS, published_scores
from gpg_repro.tables.printed import attainability, implied_interval

CHECKPOINTS = load_checkpoints()
COLUMNS = {column.title: "amc" if column.benchmark == "amc23" else column.benchmark for column in MATH_COLUMNS}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_rows_are_the_printed_ones(name):
    """Printed numbers, marks and sources are those of results/paper, and AMC numbers are counts of their set."""
    for row in CHECKPOINTS[name].rows:
        if row.amc:
            assert attainability(row.printed["amc"], row.amc) == "rounded", row.method
        else:
            assert attainability(row.printed["amc"], 40) == "none"
        if row.source == "readme-april-2025":  # stands in no file: the row the README had when the model appeared
            continue
        printed = published_table(f"Table {row.table}", row.source)
        line = printed[(printed.index == row.method) & (printed["mark"] == row.mark)]
        assert len(line) == 1, (row.method, row.mark)
        shown = {"average": line["Average"].item(), **{key: line[title].item() for title, key in COLUMNS.items()}}
        assert dict(row.printed) == shown


def test_every_hub_model_of_tables_3_and_4_is_registered():
    for number in (1, 3, 4, 10, 11, 12):
        table = get_table(number)
        for row in (row for row in table.rows if row.hub):
            entry = get_checkpoint(row.hub)
            assert row.hub_revision == entry.revision and entry.settings_of(row.variant)
            assert set(table.measured_on(row, "paper")) <= set(entry.benchmarks)
    known = {row.hub for number in (3, 4) for row in get_table(number).rows if row.hub}
    assert known == set(CHECKPOINTS)


def test_rows_of_the_tables_and_of_the_registry_agree():
    for number in (3, 4):
        for row in get_table(number).rows:
            if not (row.hub and row.published):
                continue
            rows = get_checkpoint(row.hub).rows_of(row.variant)
            (mine,) = (r for r in rows if r.method == row.published and row.published_mark in (None, r.mark))
            assert mine.source == row.published_source
            assert dict(row.published_items).get("AMC23", 40) == (mine.amc or 40)


def test_recipes_start_from_the_registered_commit():
    setups = [recipe.setup for name in recipe_names() if (recipe := _at_paper_scale(name))]
    bases = {(s.base, s.base_revision) for s in setups if s.base in CHECKPOINTS}
    assert bases == {(name, CHECKPOINTS[name].revision) for name, _ in bases} and len(bases) == 2


def _at_paper_scale(name: str):
    try:
        return load_recipe(name, scale="paper")
    except UserError:
        return None  # a row copied from another report


def test_settings_fit_the_context_and_the_documented_command():
    for entry in CHECKPOINTS.values():
        s = entry.settings
        assert s.max_new_tokens <= s.max_model_len <= entry.context
        assert all(get_benchmark(name).num_items for name in entry.benchmarks)
        if 3 in entry.tables:
            documented = get_benchmark("aime24").decoding
            assert s.decoding == {
                "temperature": documented.temperature,
                "top_p": documented.top_p,
                "max_new_tokens": documented.max_new_tokens,
            }
        else:
            assert s.temperature == 0 and set(AMC_SETS.values()) < set(entry.benchmarks)
    sampled = get_checkpoint("GD-ML/Qwen2.5-Math-7B-GPG").settings_of("sampled")
    assert (sampled.temperature, sampled.top_p, sampled.max_model_len) == (0.6, 0.95, 4096)


def test_the_named_template_is_the_prompt_of_the_training_data():
    template = get_checkpoint("GD-ML/Qwen2.5-Math-7B-GPG").settings_of("training-template").template
    text = Template(template).render(messages=[{"role": "user", "content": "Q"}], add_generation_prompt=True)
    assert text == QWEN_BOXED.replace("{question}", "Q")


def _changed(tmp_path, change) -> str:
    raw = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    change(raw)
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_checkpoints(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["checkpoints"][4].pop("context"), r"entry 5 \(GD-ML/Open-RS1\): context: Field required"),
        (lambda raw: raw["checkpoints"][4].update(revison="main"), "revison: Extra inputs"),
        (lambda raw: raw["checkpoints"][4].update(revision="main"), "revision: String should match"),
        (lambda raw: raw["checkpoints"][4].update(revision_note=""), "null without a revision_note"),
        (lambda raw: raw["checkpoints"][4].update(context=4096), "32768 is more than its context of 4096"),
        (lambda raw: raw["checkpoints"][5]["settings"].update(chat_template="qwen_bxed"), "did you mean 'qwen_boxed'"),
        (lambda raw: raw["checkpoints"][5]["variants"]["sampled"].update(top_p=2), "less than or equal to 1"),
        (lambda raw: raw["checkpoints"][5]["rows"][0].update(variant="smapled"), "unknown variant 'smapled'"),
        (lambda raw: raw["checkpoints"].append(raw["checkpoints"][0]), "entry 13 .*stands there twice"),
        (lambda raw: raw.pop("checkpoints"), "not YAML with a list `checkpoints`"),
        (lambda raw: raw["checkpoints"].append("x"), "entry 13 .no mapping"),
    ],
)
def test_a_bad_registry_names_the_entry(tmp_path, change, message):
    assert re.search(message, _changed(tmp_path, change))


def test_no_registry_at_all(tmp_path):
    with pytest.raises(UserError, match="none.yaml does not exist"):
        load_checkpoints(tmp_path / "none.yaml")
    (tmp_path / "torn.yaml").write_text("checkpoints: [", encoding="utf-8")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_checkpoints(tmp_path / "torn.yaml")
    with pytest.raises(UserError, match="did you mean 'GD-ML/Open-RS1'"):
        get_checkpoint("GD-ML/OpenRS1")


# What is asked for ----------------------------------------------------------------------------------------------------


def test_choosing_jobs():
    assert [job.checkpoint.id for job in choose(table="3")] == [c for c, e in CHECKPOINTS.items() if e.tables == (3,)]
    assert choose(table="table4") == choose(table="4") and len(choose(table="4")) == 8
    qwen = choose(["Qwen/Qwen2.5-Math-7B"])
    assert [job.variant for job in qwen] == [None, "no-template"]  # each printed row has its settings measured
    assert [job.title for job in choose(variant="training-template")] == [
        "GD-ML/Qwen2.5-Math-7B-GPG (training-template)"
    ]
    for wrong, message in (
        ({"only": ["GD-ML/Open-RS"]}, "did you mean"),
        ({"table": "5"}, "Known: 3, 4"),
        ({"variant": "smapled"}, "did you mean 'sampled'"),
        ({"only": ["GD-ML/Open-RS1"], "table": "4"}, "none of these has a row"),
    ):
        with pytest.raises(UserError, match=message):
            choose(**wrong)


def _run(job: Job, right: dict[str, float], samples: str | int = "auto") -> RunRecord:
    """A run with the given shares of right first samples; further samples are all wrong."""
    results = {}
    for name, share in right.items():
        benchmark = get_benchmark(name)
        decoding = decoding_of(benchmark, Overrides(samples=samples), job.settings.decoding)
        first = [float(i < round(share * benchmark.num_items)) for i in range(benchmark.num_items)]
        marks = [[mark, *[0.0] * (decoding.samples - 1)] for mark in first]
        score = mean_of_items(marks).as_dict()
        single = mean_of_items([m[:1] for m in marks]).as_dict() if decoding.samples > 1 else None
        asked = sum(map(len, marks))
        results[name] = BenchmarkResult(
            version=1, source="s", prompts_hash="h", decoding=decoding, num_items=len(marks), asked=asked, scored=asked,
            failed=0, score=score, score_strict=score, single=single, single_strict=single, num_gold_fallback=0,
            num_truncated=0, num_no_answer=0, num_timeout=0, mean_completion_tokens=None,
        )  # fmt: skip
    return RunRecord(
        run_id="r", fingerprint="f", status="finished", created="", finished="", model={"revision": "c" * 40},
        engine={}, settings={}, benchmarks=results, average=None, timings={}, environment={},
    )  # fmt: skip


SHARES = {"aime24": 0.3, "math500": 0.8, "amc23": 0.6, "minerva": 0.3, "olympiadbench": 0.4, "amc_83": 0.5}


def test_amc_stands_beside_its_own_set():
    """50.6 is a count of 83: it stands beside amc_83, and so does the Average that holds it."""
    job = Job(get_checkpoint("Qwen/Qwen2.5-Math-7B-Instruct"))
    lines = {line.column: line for line in lines_of(job, _run(job, SHARES))}
    assert lines["amc_83"].published == 50.6 and lines["amc23"].published is None
    assert lines["amc23"].note == "printed 50.6 is of the 83 problems"
    mean = sum(
        round(SHARES[n] * get_benchmark(n).num_items) / get_benchmark(n).num_items for n in SHARES if n != "amc23"
    )
    assert lines["average"].measured == pytest.approx(100 * mean / 5) and lines["average"].note == "with amc_83"

    job = Job(get_checkpoint("GD-ML/Qwen2.5-Math-7B-GPG"))
    lines = lines_of(job, _run(job, SHARES))
    assert [(line.row, line.published) for line in lines if line.column == "average"] == [
        ("GPG-7B", 57.7),
        ("GPG-7B, README of April 2025", 51.0),
    ]
    assert [line.published for line in lines if line.column == "amc23"] == [82.5, 65.0]
    assert all(line.published is None for line in lines if line.column == "amc_83")
    mean = sum(
        round(SHARES[n] * get_benchmark(n).num_items) / get_benchmark(n).num_items for n in SHARES if n != "amc_83"
    )
    assert lines[-1].measured == pytest.approx(100 * mean / 5)


def test_without_one_of_the_five_there_is_no_average():
    job = Job(get_checkpoint("GD-ML/Open-RS1"))
    part = {name: SHARES[name] for name in ("aime24", "amc23")}
    assert [line.column for line in lines_of(job, _run(job, part))] == ["aime24", "amc23"]


def test_the_single_sample_stands_beside_the_mean(tmp_path):
    job = Job(get_checkpoint("GD-ML/Open-RS1"))
    five = {name: share for name, share in SHARES.items() if name != "amc_83"}
    lines = lines_of(job, _run(job, five))
    by_column = {line.column: line for line in lines}
    assert (by_column["aime24"].samples, by_column["math500"].samples, by_column["average"].samples) == (
        "16",
        "4",
        "4/16",
    )
    assert by_column["aime24"].single == pytest.approx(30.0)
    assert by_column["aime24"].measured == pytest.approx(30.0 / 16)
    assert by_column["average"].single == pytest.approx(100 * sum(five.values()) / 5, abs=0.1)
    markdown, table = write_tables(lines, [job], tmp_path)
    text = markdown.read_text(encoding="utf-8")
    assert "| avg@16 1.9 [" in text and "| 30.0 [16.7, 47.9] |" in text and "33.3 [19.2, 51.2] | GPG-RS1" in text
    assert "AIME24 30.0 on one GPU" in text  # what the checkpoint is believed to be
    assert table.read_text(encoding="utf-8").splitlines()[0].startswith("checkpoint,variant,revision,column,samples")
    assert len(table_of(lines)) == 7


def test_implied_intervals_are_those_of_the_tables():
    """The Average's, computed from the registry, is the tables' own; AMC counts with its set."""
    for number in (3, 4):
        table = get_table(number)
        for row in (row for row in table.rows if row.hub and row.published):
            entry = get_checkpoint(row.hub)
            printed = next(
                r
                for r in entry.rows_of(row.variant)
                if r.method == row.published and row.published_mark in (None, r.mark)
            )
            assert implied("average", printed) == pytest.approx(
                implied_interval(table, published_scores(table).loc[row.key]), abs=1e-9
            )
    low, high = implied("amc_83", next(r for r in get_checkpoint("Qwen/Qwen2.5-Math-7B-Instruct").rows))
    assert low < 50.6 < high and high - low == pytest.approx(21.0, abs=0.5)  # 42 of 83; of 40 it would be 29.6
