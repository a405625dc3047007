"""A difference is one of models, not of settings: gains over the base under the row's own, or none and a note."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_harness import records
from eval_harness.benchmarks import get_benchmark
from eval_harness.checkpoints import Checkpoint, Settings, load_checkpoints
from eval_harness.records import BenchmarkResult, Decoding, Sample
from eval_harness.released import Job
from eval_harness.settings import in_words, settings_of, unequal_settings
from gpg_repro.tables import base as tables_base
from gpg_repro.tables import get_table
from gpg_repro.tables import runs as table_runs
from gpg_repro.tables.base import RowRuns
from gpg_repro.tables.numbers import difference, differences, gains, scores
from gpg_repro.tables.report import Report, notes_for
from gpg_repro.tables.settings import engine_note, refusals

TABLE = get_table(4)
ROWS = {row.key: row for row in TABLE.rows}
BASE_ID, OAT_ID = ROWS["base"].hub, ROWS["oat"].hub
GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4096}
ITEMS = 20


def measured(
    folder: Path,
    right: int,
    names=TABLE.benchmarks,
    engine: str = "vllm",
    max_model_len: int = 4096,
    template: str | None = None,
    version: int = 1,
    **decoding,
) -> Path:
    """A finished evaluation in which the first ``right`` of 20 items of each benchmark are right."""
    settings = Decoding(**{"top_k": 0, "samples": 1, "seed": 1234, "system_prompt": None, **GREEDY, **decoding})
    results = {}
    for name in names:
        lines = [
            Sample(
                item_id=str(i), sample=k, seed=k, status="scored", completion="x", finish_reason="stop",
                num_prompt_tokens=1, num_completion_tokens=1, correct=i < right, correct_strict=i < right,
                extracted=None, reason="match", gold_fallback=False,
            )
            for i in range(ITEMS) for k in range(settings.samples)
        ]  # fmt: skip
        records.append_lines(folder / "samples" / f"{name}.jsonl", lines)
        results[name] = BenchmarkResult(
            version=version, source="s", prompts_hash="h", decoding=settings, num_items=ITEMS, asked=len(lines),
            scored=len(lines), failed=0, score=None, score_strict=None, num_gold_fallback=0, num_truncated=0,
            num_no_answer=0, num_timeout=0, mean_completion_tokens=None,
        )  # fmt: skip
    record = records.RunRecord(
        run_id=folder.name, fingerprint="f", status="finished", created="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00", model={"name": folder.name, "weights": folder.name, "revision": None},
        engine={"name": engine, "version": "0", "dtype": "bfloat16", "max_model_len": max_model_len},
        settings={"limit": None, "dtype": "bfloat16", "max_model_len": max_model_len, "chat_template": template},
        benchmarks=results, average=None, timings={}, environment={},
    )  # fmt: skip
    records.write_json(folder / "run.json", record)
    return folder


def run(folder: Path, **settings):
    return records.read_run(measured(folder, 5, ["aime24"], **settings))


# Records --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"temperature": 0.6}, "temperature 0.0 against 0.6"),
        ({"samples": 4}, "samples 1 against 4"),
        ({"system_prompt": "think"}, "system prompt none against 'think'"),
        ({"template": "none"}, "chat template the model's own against none"),
        ({"template": "{{ messages }}"}, "chat template the model's own against a given one"),
        ({"max_model_len": 10240, "max_new_tokens": 8192}, "context 4096 against 10240, new tokens 4096 against 8192"),
        ({"max_new_tokens": 512}, "new tokens 4096 against 512"),
        ({"version": 2}, "benchmark version 1 against 2"),
    ],
)
def test_what_differs_is_named(tmp_path, changed, words):
    assert words in in_words(unequal_settings(run(tmp_path / "a"), run(tmp_path / "b", **changed), "aime24"))


def test_settings_without_an_effect_do_not_count(tmp_path):
    """Greedy decoding has no top-p and no seed; more tokens than the context holds cannot be written."""
    plain = run(tmp_path / "a")
    assert not unequal_settings(plain, run(tmp_path / "b", top_p=0.95, top_k=20, seed=7), "aime24")
    assert not unequal_settings(plain, run(tmp_path / "c", max_new_tokens=32768), "aime24")
    assert not unequal_settings(plain, run(tmp_path / "d", engine="transformers"), "aime24")
    sampled = [run(tmp_path / f"s{seed}", temperature=0.6, top_p=0.95, seed=seed) for seed in (1, 2)]
    assert unequal_settings(*sampled, "aime24") == {"seed": (1, 2)}


def test_what_a_record_does_not_hold_is_not_compared(tmp_path):
    """Records of earlier versions lack settings; a benchmark that one run lacks is none of both."""
    old = run(tmp_path / "old").model_copy(update={"settings": {}, "engine": {"name": "vllm"}})
    assert "dtype" not in settings_of(old) and not unequal_settings(old, run(tmp_path / "new"), "aime24")
    assert not unequal_settings(run(tmp_path / "x"), run(tmp_path / "y", temperature=1.0), "math500")


# Tables ---------------------------------------------------------------------------------------------------------------


def test_rows_of_other_settings_are_not_subtracted_and_a_note_says_why(tmp_path):
    base = RowRuns(ROWS["base"], {0: measured(tmp_path / "base", 8)})
    same = RowRuns(ROWS["gpg_released"], {0: measured(tmp_path / "same", 12)})
    other = RowRuns(ROWS["orz"], {0: measured(tmp_path / "orz", 14, max_model_len=10240, max_new_tokens=8192)})
    bare = RowRuns(ROWS["no_template"], {0: measured(tmp_path / "bare", 9, template="none")})
    entries = [base, bare, other, same]
    frame = gains(TABLE, entries, "paper")
    assert frame["row"].tolist() == ["gpg_released"] and frame["difference"].tolist() == [pytest.approx(20.0)]
    assert not frame["as_row"].any()
    assert difference(TABLE, same, other, "paper") is None and difference(TABLE, other, base, "paper") is None
    assert ("gpg_released", "orz") not in differences(TABLE, entries, "paper")[["row", "against"]].apply(
        tuple, 1
    ).tolist()
    notes = refusals(TABLE, entries, "paper")
    assert [note.split(":")[0] for note in notes] == [
        "Qwen2.5-Math-7B (no template) * − Qwen2.5-Math-7B",
        "OpenReasoner-Zero-7B @ 8k − Qwen2.5-Math-7B",
        "GPG-7B, released checkpoint − OpenReasoner-Zero-7B @ 8k",
    ]
    assert "context 4096 against 10240" in notes[2] and "chat template none against the model's own" in notes[0]
    assert set(notes) <= set(notes_for(TABLE, "paper", entries))
    assert not refusals(TABLE, [base, same], "paper")


def test_one_column_of_other_settings_spoils_the_average_but_not_the_others(tmp_path):
    mine = RowRuns(ROWS["gpg_released"], {0: measured(tmp_path / "a", 12)})
    folder = measured(tmp_path / "b", 8, TABLE.benchmarks[1:])
    extra = records.read_run(measured(tmp_path / "b-aime", 8, ["aime24"], samples=4))
    record = records.read_run(folder)
    records.write_json(
        folder / "run.json", record.model_copy(update={"benchmarks": extra.benchmarks | record.benchmarks})
    )
    (folder / "samples" / "aime24.jsonl").write_bytes((tmp_path / "b-aime/samples/aime24.jsonl").read_bytes())
    other = RowRuns(ROWS["eurus"], {0: folder})
    columns = {column.title: column for column in TABLE.columns}
    assert difference(TABLE, mine, other, "paper") is None
    assert difference(TABLE, mine, other, "paper", column=columns["AIME24"]) is None
    assert difference(TABLE, mine, other, "paper", column=columns["AMC23"])["difference"] == pytest.approx(20.0)


def test_a_gain_is_over_the_base_under_the_settings_of_the_row(tmp_path):
    """14 right against 6 of the base sampled, not against 8 of the base row's greedy answers: 40 points, not 30."""
    sampled = {"temperature": 0.6, "top_p": 0.95, "samples": 2}
    base = RowRuns(ROWS["base"], {0: measured(tmp_path / "base", 8)})
    again = RowRuns(ROWS["base"], {0: measured(tmp_path / "again", 6, **sampled)})
    row = RowRuns(ROWS["oat"], {0: measured(tmp_path / "oat", 14, **sampled)}, base=again)
    (gain,) = gains(TABLE, [base, row], "paper").itertuples()
    assert (gain.difference, gain.as_row) == (pytest.approx(40.0), True)
    assert not refusals(TABLE, [base, row], "paper")
    without = RowRuns(row.row, row.folders)
    assert not len(gains(TABLE, [base, without], "paper")) and len(refusals(TABLE, [base, without], "paper")) == 1
    frame = scores(TABLE, [base, row], "paper")
    report = Report(TABLE, "paper", [base, row], [], frame, None, frame, [], tmp_path)
    text = report.summary()
    assert "Our own base: 40.0 [" in text and ", 30.0 [" in text and "under the settings of Oat-Zero-7B" in text
    assert "published: 30.9 (beside, never subtracted)" in text and "+40.0 points over our own base under its" in text


def test_no_published_base_beside_a_miniature(tmp_path):
    table = get_table(3)
    rows = {row.key: row for row in table.rows}
    names = table.benchmarks_at("tiny")
    entries = [RowRuns(rows[key], {0: measured(tmp_path / key, n, names)}) for key, n in (("base", 8), ("gpg_rs1", 12))]
    frame = scores(table, entries, "tiny")
    text = Report(table, "tiny", entries, [], frame, None, frame, [], tmp_path).summary()
    assert "Our own base: 40.0 [" in text and "published:" not in text.split("\n\n")[0]


def test_a_gain_needs_a_row_that_was_trained_from_this_base(tmp_path):
    base = RowRuns(ROWS["base"], {0: measured(tmp_path / "base", 8)})
    entries = [base, *(RowRuns(ROWS[key], {0: measured(tmp_path / key, 12)}) for key in ("oat", "orz", "simplerl"))]
    assert gains(TABLE, entries, "paper")["row"].tolist() == [
        "oat",
        "simplerl",
    ]  # the third is no child of the Math model


def test_engines_are_told(tmp_path):
    entries = [
        RowRuns(ROWS[key], {0: measured(tmp_path / key, 8, engine=engine)})
        for key, engine in (("base", "vllm"), ("oat", "transformers"))
    ]
    (note,) = engine_note(entries)
    assert "base: vllm; oat: transformers" in note and not engine_note(entries[:1])


# The registry ---------------------------------------------------------------------------------------------------------


def with_settings(name: str, **changed) -> dict[str, Checkpoint]:
    registry = load_checkpoints()
    own = registry[name]
    settings = Settings(**{**own.settings.model_dump(), **changed})
    return registry | {name: own.model_copy(update={"settings": settings})}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"source": "elsewhere"}, None),
        ({"temperature": 0.6, "top_p": 0.95}, Job(load_checkpoints()[BASE_ID], "sampled")),
        ({"temperature": 0.3}, "like"),
        ({"max_model_len": 10240}, None),  # the base has 4,096 positions
    ],
)
def test_the_base_is_measured_again_where_a_row_has_settings_of_its_own(monkeypatch, changed, expected):
    registry = with_settings(OAT_ID, **changed)
    monkeypatch.setattr(tables_base, "load_checkpoints", lambda: registry)
    job = table_runs.base_under_settings_of(ROWS["oat"], ROWS["base"])
    if expected == "like":
        assert job.checkpoint.id == BASE_ID and job.settings == registry[OAT_ID].settings
        assert job.label == "Qwen--Qwen2.5-Math-7B-as-sail--Qwen2.5-Math-7B-Oat-Zero"
    else:
        assert job == expected


def test_rows_with_the_settings_of_the_base_need_no_other():
    for number in (3, 4):
        table = get_table(number)
        base = next(row for row in table.rows if row.key == "base")
        assert all(table_runs.base_under_settings_of(row, base) is None for row in table.rows)


def test_a_table_at_paper_scale_measures_the_base_as_the_row(tmp_path, monkeypatch):
    """From the registry to the gain, with evaluations that leave records by hand."""
    registry = with_settings(OAT_ID, temperature=0.3)
    monkeypatch.setattr(tables_base, "load_checkpoints", lambda: registry)
    monkeypatch.setattr(table_runs.released, "missing_models", lambda jobs: [])
    monkeypatch.setattr(table_runs, "offline_if_unreachable", lambda: None)
    monkeypatch.setattr(table_runs, "resolve_engine", lambda name: "vllm")

    class Here:
        image_field = None

        def load(self, *_):
            return []

        def image_reader(self, *_):
            return None

    monkeypatch.setattr(table_runs, "get_benchmark", lambda name: Here())
    asked = []

    def evaluate_job(job, benchmarks, **_):
        asked.append(job.label)
        right = {BASE_ID: 6 if job.like else 8, OAT_ID: 14}.get(job.checkpoint.id, 10)
        s = job.settings
        return measured(
            tmp_path / f"{len(asked)}", right, benchmarks, max_model_len=s.max_model_len, template=s.template,
            temperature=s.temperature, top_p=s.top_p, max_new_tokens=s.max_new_tokens,
        )  # fmt: skip

    monkeypatch.setattr(table_runs.released, "evaluate_job", evaluate_job)
    found = table_runs.run_table(TABLE, "paper", results=tmp_path / "results", progress=False)
    assert [label for label in asked if "-as-" in label] == [
        "Qwen--Qwen2.5-Math-7B-as-sail--Qwen2.5-Math-7B-Oat-Zero"
    ] * 2  # for both rows of that model; a real second call finds the first's records
    frame = gains(TABLE, found, "paper").set_index("row")
    assert frame.loc["oat", "difference"] == pytest.approx(40.0) and frame.loc["oat", "as_row"]
    assert frame.loc["eurus", "difference"] == pytest.approx(10.0) and not frame.loc["eurus", "as_row"]
    assert "orz" not in frame.index and "no_template" not in frame.index
    assert get_benchmark("aime24").num_items == 30  # the registry itself was left alone
