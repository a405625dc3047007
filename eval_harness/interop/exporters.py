"""A finished run for others to read: the hub's ``.eval_results``, Every Eval Ever, a model card.

Nothing is sent anywhere; files are written for the owner of a model to look at and publish. A score never leaves
without its interval, its counts and its settings. What is no benchmark (the procedural tiny suites), not the whole of
one (``--limit``, ``--partial``) or has failures is said, and, for the hub's leaderboards, held back.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from eval_harness import records
from eval_harness.benchmarks import Benchmark, get_benchmark
from eval_harness.errors import UserError, clipped
from eval_harness.interop.cards import Card, read_card
from eval_harness.markup import markdown_code, markdown_rows, markdown_text
from eval_harness.records import BenchmarkResult, Item, RunRecord, Sample
from eval_harness.sources import Generated, Hub
from eval_harness.stats import wilson

PACKAGE = "gpg-paper-companion"
EEE_SCHEMA_VERSION = "0.3.0"
_RULES = {
    "published": "the rule that made the paper's numbers",
    "strict": "what a careful reader would call correct",
}


@dataclass
class Exported:
    """Files that were written, and what their reader should know."""

    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


# --- the hub's .eval_results -------------------------------------------------------------------------------------


def eval_results(
    folder: Path, output: Path, *, model_id: str | None = None, task_id: str = "default", source_url: str | None = None
) -> Exported:
    """Write ``.eval_results/<benchmark>.yaml`` for a model's repository, one per benchmark with a data set on the hub.

    The value is the published rule's score in percent. Tiny suites, benchmarks without a hub data set, and scores over
    a part of the items are not written.

    Args:
        folder: a finished run.
        output: folder of the model's repository.
        model_id: not used; the repository the file lies in is the model.
        task_id: the task's id in the data set's ``eval.yaml``.
        source_url: where the run can be seen.

    Raises:
        UserError: no finished evaluation, or none of its scores can be published.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    run, done, entries = _finished(folder), Exported(), {}
    for name, result in run.benchmarks.items():
        benchmark = get_benchmark(name)
        why_not = _not_publishable(benchmark, result)
        if why_not:
            done.remarks.append(f"{name}: not written, {why_not}.")
            continue
        entries[name] = EvalResultEntry(
            dataset_id=benchmark.source.repo,
            task_id=task_id,
            value=round(100 * result.score["mean"], 2),
            dataset_revision=_data_revision(run, benchmark),
            date=run.finished,
            source_url=source_url,
            source_name="GPG paper companion" if source_url else None,
            notes=_notes(run, benchmark, result),
        )
        if result.failed:
            done.remarks.append(f"{name}: {_failures(result)}.")
    if not entries:
        raise UserError(f"{folder}: no score to publish. {' '.join(done.remarks)}")
    for name, entry in entries.items():
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=1000)
        done.files.append(_write(Path(output) / ".eval_results" / f"{name}.yaml", text))
    return done


def _not_publishable(benchmark: Benchmark, result: BenchmarkResult) -> str | None:
    if isinstance(benchmark.source, Generated):
        return "a procedural tiny suite is no public benchmark"
    if not isinstance(benchmark.source, Hub):
        return "it has no data set on the hub"
    if result.score is None:
        return "no completion was scored"
    if result.num_items < benchmark.num_items:
        return f"only {result.num_items} of {benchmark.num_items} items were asked"
    return None


def _notes(run: RunRecord, benchmark: Benchmark, result: BenchmarkResult) -> str:
    """The settings a number cannot be read without, in one line."""
    d = result.decoding
    score, strict = _percent(result.score), _percent(result.score_strict)
    parts = [
        f"avg@{d.samples}" if d.samples > 1 else "one sample per item",
        f"95 % interval {score['interval']}",
        f"strict rule {strict['mean']}",
        f"{result.scored} of {result.asked} samples scored, {result.num_items} items",
        f"{_prompts(run, benchmark)}, temperature {d.temperature:g}, top-p {d.top_p:g}, at most {d.max_new_tokens} new "
        "tokens",
        f"{PACKAGE} {_version()}, {benchmark.name} v{result.version}, grader {benchmark.grader}",
    ]
    if _data(run, benchmark).get("kind") == "local":
        parts.append("items from a local copy of the data")
    if _imported(run, benchmark.name):
        parts.append(f"completions from {_origin(run)}, graded again")
    return "; ".join(parts)


# --- Every Eval Ever ---------------------------------------------------------------------------------------------


def every_eval_ever(
    folder: Path,
    output: Path,
    *,
    model_id: str | None = None,
    organization: str = "unknown",
    relationship: str = "other",
) -> Exported:
    """Write Every Eval Ever records (schema 0.3.0), laid out as its data store has them.

    ``data/<benchmark>/<developer>/<model>/<uuid>.json`` with one result per rule (score, standard error, 95 %
    interval), and beside it ``<uuid>_samples.jsonl`` with every completion. The identifier is made from the run's
    fingerprint, so exporting twice gives the same files.

    Args:
        folder: a finished run.
        output: folder to write into.
        model_id: hub id of the model; needed when the run's model is a local folder.
        organization: who evaluated.
        relationship: of the organization to the model: first_party, third_party, collaborative or other.

    Raises:
        UserError: no finished evaluation, or no hub id.
    """
    run, done = _finished(folder), Exported()
    model_id = _model_id(run, model_id)
    for name, result in run.benchmarks.items():
        benchmark = get_benchmark(name)
        if result.score is None:
            done.remarks.append(f"{name}: not written, no completion was scored.")
            continue
        done.remarks += [f"{name}: {remark}." for remark in _remarks(benchmark, result)]
        digest = hashlib.sha256(f"{run.fingerprint}/{run.finished}/{name}/{model_id}".encode()).digest()
        stem = f"data/{name}/{model_id}/{uuid.UUID(bytes=digest[:16], version=4)}"
        evaluation_id = f"{name}/{model_id.replace('/', '_')}/{_epoch(run.finished)}"
        lines = [json.dumps(line, ensure_ascii=True, allow_nan=False) for line in _instances(
            Path(folder), benchmark, evaluation_id, model_id
        )]  # fmt: skip
        samples = "".join(line + "\n" for line in lines)
        record = _aggregate(run, benchmark, result, evaluation_id, model_id, organization, relationship)
        record["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": f"{stem}_samples.jsonl",
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(samples.encode()).hexdigest(),
            "total_rows": len(lines),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        done.files.append(_write(Path(output) / f"{stem}.json", text))
        done.files.append(_write(Path(output) / f"{stem}_samples.jsonl", samples))
    if not done.files:
        raise UserError(f"{folder}: no score to export. {' '.join(done.remarks)}")
    return done


def _aggregate(
    run: RunRecord,
    benchmark: Benchmark,
    result: BenchmarkResult,
    evaluation_id: str,
    model_id: str,
    organization: str,
    relationship: str,
) -> dict[str, Any]:
    settings = {k: v for k, v in run.settings.items() if k != "import" and v is not None}
    library = {"commit": run.environment.get("commit"), "completions_from": _origin(run), **_as_strings(settings)}
    engine = run.engine.get("version")
    return {
        "schema_version": EEE_SCHEMA_VERSION,
        "evaluation_id": evaluation_id,
        "evaluation_timestamp": run.finished,
        "retrieved_timestamp": str(_epoch(run.finished)),
        "source_metadata": {
            "source_name": "GPG paper companion",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": relationship,
        },
        "eval_library": {"name": PACKAGE, "version": _version(), "additional_details": _as_strings(library)},
        "model_info": {
            "name": run.model["name"],
            "id": model_id,
            "developer": model_id.split("/")[0],
            "inference_engine": _as_strings({"name": run.engine.get("tool") or run.engine["name"], "version": engine}),
            "additional_details": {
                "deployment_type": "externally_managed" if run.engine["name"] == "openai" else "self_deployed",
                "model_availability": "open_weights" if run.model.get("revision") else "unknown",
                **_as_strings({"revision": run.model.get("revision"), "weights_xxh3": run.model.get("weights")}),
            },
        },
        "evaluation_results": [
            _result(run, benchmark, result, rule, estimate)
            for rule, estimate in zip(_RULES, (result.score, result.score_strict), strict=True)
        ],
    }


def _result(
    run: RunRecord, benchmark: Benchmark, result: BenchmarkResult, rule: str, estimate: dict[str, float]
) -> dict[str, Any]:
    d = result.decoding
    remarks = {"remarks": "; ".join(_remarks(benchmark, result)) or None}
    return {
        "evaluation_result_id": f"{benchmark.name}/{rule}",
        "evaluation_name": f"{benchmark.title} ({rule} rule)",
        "evaluation_timestamp": run.finished,
        "source_data": _source_data(run, benchmark, result),
        "metric_config": {
            "evaluation_description": f"{benchmark.title}: {_RULES[rule]}",
            "metric_id": "accuracy",
            "metric_name": f"accuracy, mean of {d.samples} samples per item" if d.samples > 1 else "accuracy",
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "metric_parameters": {"samples_per_item": d.samples, "rule": rule, "grader": benchmark.grader},
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
        },
        "score_details": {
            "score": estimate["mean"],
            "details": _as_strings(
                {name: getattr(result, name) for name in ("num_items", "asked", "scored", "failed", "num_truncated")}
                | {"num_no_answer": result.num_no_answer, "num_timeout": result.num_timeout}
                | remarks
            ),
            "uncertainty": _uncertainty(benchmark, rule, estimate),
        },
        "generation_config": {
            "generation_args": {
                "temperature": d.temperature,
                "top_p": d.top_p,
                "top_k": d.top_k or None,
                "max_tokens": d.max_new_tokens,
                **({"prompt_template": benchmark.prompt} if _our_prompts(run, benchmark) else {}),
            },
            "additional_details": _as_strings(
                {
                    "samples_per_item": d.samples,
                    "seed": d.seed if d.seed >= 0 else None,
                    "system_prompt": d.system_prompt,
                    "prompts_hash": result.prompts_hash,
                    "benchmark_version": result.version,
                }
            ),
        },
    }


def _uncertainty(benchmark: Benchmark, rule: str, estimate: dict[str, float]) -> dict[str, Any]:
    """Standard error over items and 95 % interval, with the method that :mod:`eval_harness.stats` used."""
    items = int(estimate["num_items"])
    if rule == "strict" and benchmark.strict_strata:
        how, method = "analytic, stratified", "normal"
    else:
        how = "analytic, over the item means"
        score = wilson(round(estimate["mean"] * items), items)
        is_wilson = math.isclose(score[0], estimate["low"]) and math.isclose(score[1], estimate["high"])
        method = "Wilson score" if is_wilson else "Student's t over the item means, cut to [0, 1]"
    found: dict[str, Any] = {
        "confidence_interval": {
            "lower": estimate["low"],
            "upper": estimate["high"],
            "confidence_level": 0.95,
            "method": method,
        },
        "num_samples": items,
    }
    if math.isfinite(estimate["se"]):
        found["standard_error"] = {"value": estimate["se"], "method": how}
        found["standard_deviation"] = estimate["se"] * math.sqrt(items)
    return found


def _source_data(run: RunRecord, benchmark: Benchmark, result: BenchmarkResult) -> dict[str, Any]:
    source = benchmark.source
    data = _data(run, benchmark)
    details = _as_strings({key: data.get(key) for key in ("kind", "revision", "file", "content_hash")})
    if isinstance(source, Hub):
        return {
            "dataset_name": source.repo.split("/")[-1],
            "source_type": "hf_dataset",
            "hf_repo": source.repo,
            "hf_split": source.split,
            "samples_number": result.num_items,
            "additional_details": details,
        }
    return {"dataset_name": benchmark.name, "source_type": "other", "additional_details": details}


def _instances(folder: Path, benchmark: Benchmark, evaluation_id: str, model_id: str) -> Iterator[dict[str, Any]]:
    """One line per completion and rule, in the order of the items."""
    items = {i.item_id: i for i in records.read_lines(folder / "items" / f"{benchmark.name}.jsonl", Item)}
    samples = records.read_samples(folder, benchmark.name)
    order = {item_id: place for place, item_id in enumerate(items)}
    for sample in sorted(samples, key=lambda s: (order[s.item_id], s.sample)):
        for rule in _RULES:
            yield _instance(items[sample.item_id], sample, rule, benchmark, evaluation_id, model_id)


def _instance(
    item: Item, sample: Sample, rule: str, benchmark: Benchmark, evaluation_id: str, model_id: str
) -> dict[str, Any]:
    strict = rule == "strict"
    read = (sample.extracted_strict if strict else None) or sample.extracted
    tokens = sample.num_prompt_tokens, sample.num_completion_tokens
    line: dict[str, Any] = {
        "schema_version": EEE_SCHEMA_VERSION,
        "evaluation_id": evaluation_id,
        "model_id": model_id,
        "evaluation_name": f"{benchmark.title} ({rule} rule)",
        "evaluation_result_id": f"{benchmark.name}/{rule}",
        "sample_id": item.item_id,
        "sample_hash": hashlib.sha256((item.prompt + item.gold).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": item.prompt, "reference": [item.gold]},
        "output": {"raw": [] if sample.completion is None else [sample.completion]},
        "messages": None,
        "answer_attribution": []
        if read is None
        else [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": read,
                "extraction_method": f"{benchmark.grader} ({rule} rule)",
                "is_terminal": True,
            }
        ],
        "evaluation": {
            "score": sample.mark_strict if strict else sample.mark,
            "is_correct": bool(sample.correct_strict if strict else sample.correct),
        },
        "error": sample.reason if sample.status == "failed" else None,
        "metadata": _as_strings(
            {
                "sample": sample.sample,
                "seed": sample.seed if sample.seed >= 0 else None,
                "finish_reason": sample.finish_reason,
                "reason": (sample.reason_strict if strict else None) or sample.reason,
            }
        ),
    }
    if None not in tokens:
        line["token_usage"] = {"input_tokens": tokens[0], "output_tokens": tokens[1], "total_tokens": sum(tokens)}
    return line


# --- model card --------------------------------------------------------------------------------------------------


def model_card(folder: Path, output: Path, *, model_id: str | None = None, source_url: str | None = None) -> Exported:
    """Write an evaluation section and ``model-index`` metadata into the ``README.md`` of a model's repository.

    A card that is there keeps its text and its other metadata byte for byte (:mod:`eval_harness.interop.cards`); a
    section written before is replaced. Tiny suites stand in the table, labelled, and not in the metadata; so do scores
    over a part of the items.

    Args:
        folder: a finished run.
        output: folder of the model's repository.
        model_id: name of the model in the metadata (default: the run's).
        source_url: where the run can be seen.

    Raises:
        UserError: no finished evaluation, or a card whose metadata or markers cannot be read.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    run, done = _finished(folder), Exported()
    path = Path(output) / "README.md"
    name = model_id or run.model["name"]
    results = []
    for key, result in run.benchmarks.items():
        benchmark = get_benchmark(key)
        done.remarks += [f"{key}: {remark}." for remark in _remarks(benchmark, result)]
        if _not_publishable(benchmark, result):
            continue
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name=benchmark.title,
                dataset_type=benchmark.source.repo,
                dataset_name=benchmark.title,
                dataset_split=benchmark.source.split,
                dataset_revision=_data_revision(run, benchmark),
                metric_type="accuracy",
                metric_name=_metric_name(benchmark, result),
                metric_value=round(100 * result.score["mean"], 2),
                metric_args={k: v for k, v in result.decoding.model_dump().items() if v is not None},
                source_url=source_url,
                source_name="GPG paper companion" if source_url else None,
            )
        )
    card = read_card(path) if path.exists() else Card("", "", "", f"# {markdown_text(name.split('/')[-1])}\n")
    card = card.with_section(_section(run), path)
    if results:
        (mine,) = eval_results_to_model_index(name.split("/")[-1], results)
        card = card.with_model_index(_joined(card.data.get("model-index"), mine, path), path)
    done.files.append(_write(path, card.text()))
    return done


def _joined(there: Any, mine: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """A card's ``model-index`` with our results in place of those of the same data set and metric; others stay."""
    if there is None:
        return [mine]
    ours = {_names(result, metric) for result in mine["results"] for metric in result["metrics"]}
    try:
        first, *others = there
        kept = []
        for result in first.get("results") or []:
            metrics = [metric for metric in result["metrics"] if _names(result, metric) not in ours]
            kept += [{**result, "metrics": metrics}] if metrics else []
        return [{"name": mine["name"], **first, "results": kept + mine["results"]}, *others]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: its metadata cannot be read (model-index is not a list of models with results). Mend it between "
            "the ---. Nothing was written."
        ) from None


def _names(result: dict[str, Any], metric: dict[str, Any]) -> tuple[str, str | None]:
    return result["dataset"]["type"], metric.get("name")


def _metric_name(benchmark: Benchmark, result: BenchmarkResult) -> str:
    k = result.decoding.samples
    return f"{benchmark.title} accuracy, avg@{k}" if k > 1 else f"{benchmark.title} accuracy, one sample per item"


def _section(run: RunRecord) -> str:
    """The table: one row per benchmark, and below it what holds for all of them."""
    header = ("Benchmark", "Score (%)", "95 % interval", "Strict (%)", "Items × K", "Scored / asked", "Settings")
    rows, notes = [], []
    for name, result in run.benchmarks.items():
        benchmark, d = get_benchmark(name), result.decoding
        score = _percent(result.score) if result.score else {"mean": "none", "interval": ""}
        strict = _percent(result.score_strict)["mean"] if result.score_strict else ""
        settings = f"T {d.temperature:g}, top-p {d.top_p:g}, ≤ {d.max_new_tokens} tokens, v{result.version}"
        settings += "" if _our_prompts(run, benchmark) else f", {_prompts(run, benchmark)}"
        counts = f"{result.num_items} × {d.samples}", f"{result.scored} / {result.asked}"
        label = benchmark.title + (" (tiny suite)" if isinstance(benchmark.source, Generated) else "")
        rows.append((label, score["mean"], score["interval"], strict, *counts, settings))
        notes += [f"{benchmark.title}: {remark}." for remark in _remarks(benchmark, result)]
        if result.single and d.samples > 1:
            single = _percent(result.single)
            notes.append(f"{benchmark.title}, first sample alone: {single['mean']} {single['interval']}.")
    revision = run.model.get("revision") or (run.model.get("weights") and f"weights {run.model['weights'][:12]}")
    commit = run.environment.get("commit")
    about = [
        f"Model {markdown_code(run.model['name'])}" + (f" ({markdown_text(revision)})" if revision else ""),
        f"completions by {markdown_text(_origin(run) or run.engine['name'])}",
        f"measured with {PACKAGE} {_version()}" + (f" at {markdown_text(commit[:12])}" if commit else ""),
        f"finished {markdown_text(run.finished)}",
    ]
    notes += [
        "The interval is over items, K samples of an item count as one. *Strict* is the stricter reading of "
        "the same completions; failed samples count as wrong."
    ]
    return "\n".join(
        [
            "## Evaluation",
            "",
            markdown_rows([header, *rows]),
            "",
            "; ".join(about) + ".",
            "",
            *[f"- {note}" for note in notes],
        ]
    )


# --- common ------------------------------------------------------------------------------------------------------


def _finished(folder: Path) -> RunRecord:
    run = records.read_run(Path(folder))
    if run.kind != "evaluation":
        raise UserError(f"{folder} holds a {run.kind} run; evaluations are exported.")
    if run.status != "finished":
        raise UserError(f"{folder} is not finished: the command that started it resumes it. Nothing was written.")
    return records.read_finished(folder)


def _model_id(run: RunRecord, given: str | None) -> str:
    model_id = given or run.model["name"]
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model_id):  # which is a path too, and must not lead upwards
        raise UserError(
            f"the model of this run is called {model_id!r}; Every Eval Ever files results by hub id. Give --model-id "
            "OWNER/NAME."
        )
    return model_id


def _remarks(benchmark: Benchmark, result: BenchmarkResult) -> list[str]:
    """What keeps a score from being the benchmark's."""
    remarks = []
    if isinstance(benchmark.source, Generated):
        remarks.append("procedural tiny suite of this project, comparable with no published score")
    if result.num_items < benchmark.num_items:
        remarks.append(f"only {result.num_items} of {benchmark.num_items} items were asked")
    if result.failed:
        remarks.append(_failures(result))
    return remarks


def _failures(result: BenchmarkResult) -> str:
    return f"{result.failed} of {result.asked} samples failed and count as wrong"


def _imported(run: RunRecord, benchmark: str) -> dict[str, Any]:
    return run.settings.get("import", {}).get(benchmark, {})


def _our_prompts(run: RunRecord, benchmark: Benchmark) -> bool:
    return _imported(run, benchmark.name).get("same_prompts", True)


def _prompts(run: RunRecord, benchmark: Benchmark) -> str:
    """How the items were asked; our benchmarks show no examples, what another tool showed is not known."""
    return "zero-shot" if _our_prompts(run, benchmark) else f"prompts of {run.engine['tool']}"


def _origin(run: RunRecord) -> str | None:
    """The tool an imported run's completions came from."""
    if run.engine["name"] != "imported":
        return None
    return " ".join(filter(None, (run.engine["tool"], run.engine.get("version"))))


def _data(run: RunRecord, benchmark: Benchmark) -> dict[str, Any]:
    """Which data the items came from: ``kind``, and the commit on the hub or the hash of a local copy."""
    told = run.provenance.get("benchmarks", {}).get(benchmark.name, {}).get("data")
    if told:
        return told
    from_hub = run.settings.get("data") == "hub" and isinstance(benchmark.source, Hub)
    return {"kind": "hub", "revision": benchmark.source.revision} if from_hub else {}


def _data_revision(run: RunRecord, benchmark: Benchmark) -> str | None:
    """The commit of the data on the hub; None for a local copy, whose commit nobody knows."""
    return _data(run, benchmark).get("revision")


def _percent(estimate: dict[str, float]) -> dict[str, str]:
    mean, low, high = (f"{100 * estimate[name]:.1f}" for name in ("mean", "low", "high"))
    return {"mean": mean, "interval": f"[{low}, {high}]"}


def _as_strings(values: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }


def _epoch(time: str) -> int:
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"the run was finished at {clipped(time)}, which is no time of ISO 8601: its record was edited."
        ) from None


def _version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"


def _write(path: Path, text: str) -> Path:
    records.write_whole(path, text)
    return path
