"""Per-sample logs of lm-evaluation-harness, inspect and lighteval as run folders of ours, graded by our graders.

A log's rows are matched with a benchmark's items by the text of the problem; where a tool rewrote it, by the row's
place, and then only if its gold is the item's. What does not fit is named and refused, or, with ``partial``, left out
and counted. The record keeps the prompt as the other tool put it, that tool's own scores, and where it all came from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import xxhash

from eval_harness import provenance, records
from eval_harness.benchmarks import Benchmark, get_benchmark
from eval_harness.errors import UserError, unknown
from eval_harness.graders.base import Verdict, classes_of, context_for
from eval_harness.graders.pool import GradingPool, shared_pool
from eval_harness.outside import clean, parse_json
from eval_harness.records import BenchmarkResult, Decoding, Item, RunRecord, Sample
from eval_harness.runner import averages, summarise
from eval_harness.sources import default_data_root, read_jsonl

UNKNOWN_SEED = -1
"""Seed of a sample whose log does not tell it."""
_NAMED = 8
"""So many culprits are named in a message."""
_MIN_CONTAINED = 20
"""A question of fewer characters is not looked for inside longer texts."""


@dataclass(frozen=True)
class Answer:
    """One completion of a log; ``error`` instead of a text where the tool has none."""

    text: str | None
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    error: str | None = None


@dataclass
class Row:
    """One question of a log with its answers, in the words of its tool."""

    name: str
    """What the log calls it."""
    index: int | None
    """0-based place in the tool's data set, where the log tells it."""
    texts: tuple[str, ...]
    """Where the problem may stand alone: columns of the row, the input before any template."""
    prompt: str
    """The user's turn as asked."""
    gold: str | None
    answers: list[Answer]
    seed: int | None = None
    """Seed of the first answer, where the log tells it."""


@dataclass
class Log:
    """One log file: its rows and what it tells about the run. ``decoding`` holds what is known of Decoding's fields."""

    tool: str
    version: str | None
    task: str | None
    model: str | None
    decoding: dict[str, Any]
    rows: list[Row]
    scores: dict[str, float] = field(default_factory=dict)
    """The tool's own scores, by metric."""


# --- readers -----------------------------------------------------------------------------------------------------


def _reader(read: Callable[[Path], Log]) -> Callable[[Path], Log]:
    """A reader that says of which file it could not make sense, and hands on nothing of another type than it says."""

    @wraps(read)
    def checked(path: Path) -> Log:
        try:
            log = read(path)
            _check(log)
            return log
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not laid out as its tool writes it ({type(error).__name__}: {str(error)[:200]}). Was it "
                "edited, or written by a version that this reader does not know?"
            ) from error

    return checked


def _check(log: Log) -> None:
    """Raises TypeError where a log holds something else than its fields say."""
    text, whole = (str, type(None)), (int, type(None))
    _expect("model and task", (log.model, log.task, log.version), text)
    for row in log.rows:
        _expect(f"{row.name}: prompt", (row.prompt, *row.texts), str)
        _expect(f"{row.name}: gold", (row.gold,), text)
        _expect(f"{row.name}: place and seed", (row.index, row.seed), whole)
        for answer in row.answers:
            _expect(f"{row.name}: answer", (answer.text, answer.finish_reason, answer.error), text)
            _expect(f"{row.name}: tokens", (answer.num_prompt_tokens, answer.num_completion_tokens), whole)


def _expect(what: str, values: Sequence[Any], kinds: type | tuple[type, ...]) -> None:
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{what} is {type(value).__name__}")


@_reader
def read_lm_eval(path: Path) -> Log:
    """``samples_<task>_<date>.jsonl`` of lm-evaluation-harness (``--log_samples``); the results file beside it, if any.

    Raises:
        UserError: not such a file, or one of a task that is scored by log-likelihood.
    """
    rows: list[Row] = []
    by_filter: dict[Any, dict[str | None, Row]] = defaultdict(dict)
    settings: dict[str, Any] = {}
    metrics: dict[str, list[float]] = defaultdict(list)
    for line in read_jsonl(path, ("doc_id", "doc", "arguments", "resps", "target")):
        responses = line["resps"][0] if line["resps"] else []
        if len(line["resps"]) > 1 or not all(isinstance(text, str) for text in responses):
            raise UserError(
                f"{path}, doc_id {line['doc_id']}: no generated text but log-likelihoods of options. Only logs of "
                "generative tasks (output_type generate_until) can be graded again."
            )
        filter_name = line.get("filter")
        for metric in line.get("metrics", ()):
            if isinstance(line.get(metric), int | float):
                several = filter_name not in (None, "none")
                metrics[f"{metric},{filter_name}" if several else metric].append(float(line[metric]))
        prompt, asked = _lm_eval_request(line["arguments"])
        settings = settings or asked
        doc = line["doc"] if isinstance(line["doc"], dict) else {}
        row = Row(
            name=f"doc_id {line['doc_id']}",
            index=line["doc_id"] if isinstance(line["doc_id"], int) else None,
            texts=tuple(value for value in doc.values() if isinstance(value, str)),
            prompt=_user_turn(prompt),
            gold=str(line["target"]),
            answers=[Answer(text) for text in responses],
        )
        others = by_filter[line["doc_id"]]
        # every filter of a task repeats its rows with the same responses
        repeated = filter_name not in others and any(other.answers == row.answers for other in others.values())
        others.setdefault(filter_name, row)
        if not repeated:
            rows.append(row)
    stem = re.fullmatch(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[\d.:-]+)", path.stem)
    results = path.with_name(f"results_{stem['date']}.json") if stem else None
    about = _json(results) if results is not None and results.exists() else {}
    greedy = settings.get("do_sample") is False or settings.get("temperature") == 0
    return Log(
        tool="lm-eval",
        version=about.get("lm_eval_version"),
        task=stem["task"] if stem else None,
        model=about.get("model_name"),
        decoding=_known(
            temperature=0.0 if greedy else settings.get("temperature"),
            top_p=1.0 if greedy else settings.get("top_p"),
            top_k=settings.get("top_k"),
            max_new_tokens=settings.get("max_gen_toks"),
        ),
        rows=rows,
        scores=_means(metrics),
    )


def _lm_eval_request(arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Prompt and generation settings of a row; in older versions a list of pairs, now named arguments."""
    if isinstance(arguments, dict):
        request = arguments.get("gen_args_0", {})
        pair = request.get("arg_0", ""), request.get("arg_1")
    else:
        pair = tuple(arguments[0]) if arguments else ("",)
    settings = pair[1] if len(pair) > 1 and isinstance(pair[1], dict) else {}
    return pair[0], settings


@_reader
def read_inspect(path: Path) -> Log:
    """An inspect log, ``.eval`` or ``.json``, through inspect_ai's own reader. Epochs become samples.

    Raises:
        UserError: inspect_ai cannot read it, or it holds no samples.
    """
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(str(path), resolve_attachments=True)
    except Exception as error:  # zip, JSON and pydantic errors of several libraries
        problem = next(iter(str(error).splitlines()), "")
        raise UserError(f"{path}: inspect_ai cannot read it ({type(error).__name__}: {problem}).") from None
    if not log.samples:
        raise UserError(f"{path} holds no samples (status {log.status}); was it written with log_samples off?")
    place = {sample_id: i for i, sample_id in enumerate(log.eval.dataset.sample_ids or ())}
    rows: dict[tuple, Row] = {}
    metrics: dict[str, list[float]] = defaultdict(list)
    system: set[str | None] = set()
    seen: set[tuple] = set()
    for sample in log.samples:
        turns = {m.role: m.text for m in reversed(sample.messages) if m.role in ("system", "user")}
        system.add(turns.get("system"))
        text = sample.input if isinstance(sample.input, str) else sample.input[-1].text
        target = sample.target if isinstance(sample.target, str) else next(iter(sample.target), None)
        answer = _inspect_answer(sample)
        for name, score in (sample.scores or {}).items():
            value = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}.get(score.value, score.value)
            if isinstance(value, int | float):
                metrics[name].append(float(value))
        row = Row(f"id {sample.id!r}", place.get(sample.id), (text,), turns.get("user", text), target, [answer])
        if (sample.id, sample.epoch) in seen:  # the same epoch twice is a row of its own, found as a duplicate
            rows[sample.id, sample.epoch] = row
        elif (sample.id,) in rows:
            rows[sample.id,].answers.append(answer)
        else:
            rows[sample.id,] = row
        seen.add((sample.id, sample.epoch))
    config = log.eval.model_generate_config.model_dump(exclude_none=True)
    config |= log.plan.config.model_dump(exclude_none=True)  # the evaluation's settings go over the model's
    greedy = config.get("temperature") == 0
    return Log(
        tool="inspect",
        version=log.eval.packages.get("inspect_ai"),
        task=log.eval.task,
        model=log.eval.model,
        decoding=_known(
            temperature=config.get("temperature"),
            top_p=1.0 if greedy else config.get("top_p"),
            top_k=config.get("top_k"),
            max_new_tokens=config.get("max_tokens"),
            seed=config.get("seed"),
            system_prompt=next(iter(system)) if len(system) == 1 else None,
        ),
        rows=list(rows.values()),
        scores=_means(metrics),
    )


def _inspect_answer(sample: Any) -> Answer:
    usage = sample.output.usage
    if sample.error is not None or not sample.output.choices:
        problem = sample.error.message if sample.error is not None else "no output"
        return Answer(None, error=next(iter(problem.splitlines()), "error")[:300])
    reason = sample.output.stop_reason
    return Answer(
        sample.output.completion,
        "length" if reason in ("max_tokens", "model_length") else reason,
        usage.input_tokens if usage else None,
        usage.output_tokens if usage else None,
    )


@_reader
def read_lighteval(path: Path) -> Log:
    """``details_<task>_<date>.parquet`` of lighteval (``--save-details``); its results file, if it is where it was.

    Raises:
        UserError: not such a file.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file ({next(iter(str(error).splitlines()), '')}).") from None
    if not table or not {"doc", "model_response", "metric"} <= table[0].keys():
        raise UserError(
            f"{path}: lighteval details with columns doc, model_response and metric were expected "
            f"(lighteval 0.13), got {', '.join(table[0]) if table else 'no rows'}."
        )
    rows = []
    metrics: dict[str, list[float]] = defaultdict(list)
    for line in table:
        doc, response = line["doc"], line["model_response"]
        for name, value in (line["metric"] or {}).items():
            if isinstance(value, int | float):
                metrics[name].append(float(value))
        told = _told(doc)
        rows.append(
            Row(
                name=f"doc {doc['id']}",
                index=int(doc["id"]) if str(doc["id"]).isdigit() else None,
                texts=(doc["query"],),
                prompt=doc["query"],
                gold=_lighteval_gold(doc),
                answers=_lighteval_answers(response["text"], told),
                seed=told.get("seed"),
            )
        )
    stem = re.fullmatch(r"details_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T.+)", path.stem)
    about = _lighteval_results(path, stem["date"]) if stem else {}
    parameters = (about.get("model_config") or {}).get("generation_parameters") or {}
    temperature = parameters.get("temperature")
    decoding = _known(
        temperature=temperature,
        top_p=1.0 if temperature == 0 else parameters.get("top_p"),
        top_k=parameters.get("top_k"),
        max_new_tokens=parameters.get("max_new_tokens") or doc.get("generation_size"),
        seed=parameters.get("seed"),
        system_prompt=(about.get("model_config") or {}).get("system_prompt"),
    )
    if (about.get("model_config") or {}).get("model_definition_file_path"):
        decoding = {}  # a custom model samples as it likes; lighteval's parameters say nothing about it
    return Log(
        tool="lighteval",
        version=None,
        task=stem["task"] if stem else doc["task_name"],
        model=about.get("model_name"),
        decoding=_known(**told["decoding"]) if told else decoding,
        rows=rows,
        scores=_means(metrics),
    )


def _lighteval_gold(doc: Mapping[str, Any]) -> str | None:
    index = doc["gold_index"][0] if isinstance(doc["gold_index"], list) else doc["gold_index"]
    gold = doc["choices"][index] if doc["choices"] else None
    return ", ".join(map(str, gold)) if isinstance(gold, list) else gold


def _told(doc: Mapping[str, Any]) -> dict[str, Any]:
    """What our own engine left in a document's details (see lighteval_model.py); of other models nothing."""
    specific = doc.get("specific")
    return parse_json(specific["eval_harness"]) if isinstance(specific, dict) and "eval_harness" in specific else {}


def _lighteval_answers(texts: Sequence[str], told: Mapping[str, Any]) -> list[Answer]:
    if told.get("error"):
        return [Answer(None, num_prompt_tokens=told["num_prompt_tokens"], error=told["error"]) for _ in texts]
    if not told:
        return [Answer(text) for text in texts]
    details = zip(texts, told["finish_reasons"], told["num_completion_tokens"], strict=True)
    return [Answer(text, reason, told["num_prompt_tokens"], tokens) for text, reason, tokens in details]


def _lighteval_results(path: Path, date: str) -> dict[str, Any]:
    """``config_general`` of ``results/<model>/results_<date>.json``, for a file under ``details/<model>/<date>/``."""
    for root in path.parents:
        if root.name == "details":
            model = path.parent.parent.relative_to(root)
            results = root.parent / "results" / model / f"results_{date}.json"
            return _json(results).get("config_general", {}) if results.exists() else {}
    return {}


READERS: dict[str, Callable[[Path], Log]] = {
    "lm-eval": read_lm_eval,
    "inspect": read_inspect,
    "lighteval": read_lighteval,
}


# --- matching ----------------------------------------------------------------------------------------------------


@dataclass
class Matched:
    """Rows by the item they belong to, and what did not fit."""

    rows: dict[str, Row]
    by: Counter
    unmatched: list[str]
    missing: list[str]
    duplicates: list[str]
    gold_differs: list[str]
    incomplete: list[str]
    """Items with fewer answers than the others."""


def match(log: Log, benchmark: Benchmark, items: Sequence[Item], pool: GradingPool) -> Matched:
    """Find the item of every row: by the problem's text, else by place where the gold is the same."""
    before, _, after = benchmark.prompt.partition("{problem}")
    questions = {i.item_id: _plain(i.prompt[len(before) : len(i.prompt) - len(after)]) for i in items}
    by_text: dict[str, list[str]] = defaultdict(list)
    for item in items:
        for text in {questions[item.item_id], _plain(item.prompt)}:
            by_text[text].append(item.item_id)
    golds = _same_golds(log.rows, items, benchmark, pool)
    out = Matched({}, Counter(), [], [], [], [], [])
    for row, same_gold in zip(log.rows, golds, strict=True):
        exact = [item_id for text in row.texts for item_id in by_text.get(_plain(text), ())]
        found = exact or _contained(_plain(row.prompt), questions)
        place = str(row.index) if row.index is not None and 0 <= row.index < len(items) else None
        if len(set(found)) > 1:  # the same question of several pictures
            found = [place] if place in found else []
        how = "text" if found else "index"
        if not found and place is not None and same_gold(place):
            found = [place]
        if not found:
            out.unmatched.append(row.name)
        elif found[0] in out.rows:
            out.duplicates.append(f"{row.name} (item {found[0]})")
        else:
            out.rows[found[0]] = row
            out.by[how] += 1
            if row.gold is not None and not same_gold(found[0]):
                out.gold_differs.append(found[0])
    most = max((len(row.answers) for row in out.rows.values()), default=0)
    out.missing = [item.item_id for item in items if item.item_id not in out.rows]
    out.incomplete = [item_id for item_id, row in out.rows.items() if len(row.answers) < most]
    return out


def _same_golds(
    rows: Sequence[Row], items: Sequence[Item], benchmark: Benchmark, pool: GradingPool
) -> list[Callable[[str], bool]]:
    """For each row whether its gold is that of an item: as text, or, boxed, right by the benchmark's strict rule."""
    by_id = {item.item_id: item for item in items}

    def same(gold: str | None, item_id: str) -> bool:
        item = by_id[item_id]
        if gold is None or _plain(gold) == _plain(item.gold):
            return gold is not None
        bare = gold.strip().strip("$")
        answers = [(item.gold, text, item.context) for text in (gold, rf"$\boxed{{{bare}}}$")]
        return any(verdict.correct_strict for verdict in pool.grade(benchmark.grader, answers))

    return [lambda item_id, gold=row.gold: same(gold, item_id) for row in rows]


def _contained(prompt: str, questions: Mapping[str, str]) -> list[str]:
    """The items whose question stands in a prompt; of questions that contain each other, the longest."""
    inside = [(i, q) for i, q in questions.items() if len(q) >= _MIN_CONTAINED and q in prompt]
    longest = max((q for _, q in inside), key=len, default="")
    return [i for i, q in inside if q == longest] if all(q in longest for _, q in inside) else []


def _plain(text: str) -> str:
    return " ".join(text.split())


# --- import ------------------------------------------------------------------------------------------------------


def import_logs(
    tool: str,
    files: Sequence[Path],
    benchmarks: Sequence[str],
    out: Path,
    *,
    model: str | None = None,
    decoding: Mapping[str, Any] | None = None,
    data_root: Path | None = None,
    partial: bool = False,
) -> Path:
    """Turn logs of another tool into one finished run folder.

    Args:
        tool: ``lm-eval``, ``inspect`` or ``lighteval``.
        files: one log per benchmark.
        benchmarks: the benchmark of each.
        out: run folder to make; it must not exist, or be empty.
        model: its name, where the log has none or a wrong one.
        decoding: settings the logs do not tell (``temperature``, ``top_p``, ``max_new_tokens``); they override.
        data_root: local copies of the data sets (default ``EVAL_DATA_ROOT``, else the hub).
        partial: leave out what does not fit instead of refusing it; the record counts it.

    Returns:
        The folder.

    Raises:
        UserError: an unreadable log, rows and items that do not fit, or something the record needs and no log tells;
            nothing has been written then.
    """
    if tool not in READERS:
        raise unknown("tool", tool, READERS)
    if not files or len(files) != len(benchmarks):
        raise UserError(f"{len(files)} --input and {len(benchmarks)} --benchmark given; one of each belong together.")
    if len(set(benchmarks)) < len(benchmarks):
        raise UserError("a benchmark stands there twice; import its logs into different run folders.")
    chosen = [get_benchmark(name) for name in benchmarks]
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; give another --out.")
    logs = [READERS[tool](_existing(file)) for file in files]
    name = model or _one_model(logs, files)
    root = data_root or default_data_root()
    results, contents, notes = {}, {}, {}
    pool = shared_pool()
    for benchmark, file, log in zip(chosen, files, logs, strict=True):
        settings = _decoding_of(log, file, decoding or {})
        all_items = benchmark.load(root)
        matched = match(log, benchmark, all_items, pool)
        _refuse(matched, benchmark, file, partial)
        items, samples = _records_of(matched, benchmark, all_items, pool)
        settings = settings.model_copy(update={"samples": len(samples) // len(items)})
        contents[benchmark.name] = items, samples
        results[benchmark.name] = summarise(benchmark, items, settings, samples)
        notes[benchmark.name] = _notes(log, Path(file), matched, items, all_items)
    origin = {
        "benchmarks": {b.name: provenance.of_benchmark(b, contents[b.name][0], root) for b in chosen},
        "command": provenance.command_line(),
        "sessions": [],
    }
    return _write(out, tool, name, results, contents, notes, origin, logs)


def _existing(file: Path) -> Path:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--input {path}: no such file.")
    return path


def _one_model(logs: Sequence[Log], files: Sequence[Path]) -> str:
    names = {log.model.rstrip("/") for log in logs if log.model}
    if len(names) != 1:
        found = f"they name several ({', '.join(sorted(names))})" if names else "none is named in or beside them"
        raise UserError(f"{', '.join(Path(f).name for f in files)}: which model? {found}; give --model NAME.")
    name = names.pop()
    return Path(name).name if name.startswith(("/", ".", "~")) else name  # records hold no paths


def _decoding_of(log: Log, file: Path, given: Mapping[str, Any]) -> Decoding:
    known = log.decoding | {key: value for key, value in given.items() if value is not None}
    if known.get("temperature") == 0:
        known.setdefault("top_p", 1.0)
    options = {"temperature": "--temperature T", "top_p": "--top-p P", "max_new_tokens": "--max-new-tokens N"}
    lacking = [option for key, option in options.items() if key not in known]
    if lacking:
        raise UserError(
            f"{Path(file).name}: the log does not tell how was sampled; a score without that compares with nothing. "
            f"Give {', '.join(lacking)}."
        )
    return Decoding(**{"top_k": 0, "seed": UNKNOWN_SEED, "system_prompt": None, "samples": 1} | known)


def _refuse(matched: Matched, benchmark: Benchmark, file: Path, partial: bool) -> None:
    problems = {
        f"rows that are no item of {benchmark.name}": matched.unmatched,
        "items without a row": matched.missing,
        "rows of an item that has one already": matched.duplicates,
        "items with fewer answers than others": matched.incomplete,
    }
    found = [f"{len(who)} {what} ({_some(who)})" for what, who in problems.items() if who]
    name = Path(file).name
    if not matched.rows:
        raise UserError(
            f"{name}: none of its {len(matched.unmatched)} rows is an item of {benchmark.name}; is it another "
            "benchmark's log, or another edition of the data?"
        )
    if not any(row.answers for row in matched.rows.values()):
        raise UserError(f"{name}: its rows hold no completions; was it written with a dry run?")
    if found and not partial:
        raise UserError(
            f"{name}: {'; '.join(found)}. Mend the log or the --benchmark, or give --partial: then they are left out, "
            "absent answers count as failed, and the record says so."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _records_of(
    matched: Matched, benchmark: Benchmark, items: Sequence[Item], pool: GradingPool
) -> tuple[list[Item], list[Sample]]:
    """Items as they were asked, and their answers with our marks."""
    asked = [
        item.model_copy(update={"prompt": matched.rows[item.item_id].prompt})
        for item in items
        if item.item_id in matched.rows
    ]
    most = max(len(matched.rows[item.item_id].answers) for item in asked)
    absent = Answer(None, error="not in the log")
    answers = [
        (item, i, answer)
        for item in asked
        for i, answer in enumerate([*matched.rows[item.item_id].answers, *[absent] * most][:most])
    ]
    graded = [(item, i, a) for item, i, a in answers if a.text is not None]
    grader = benchmark.grader
    classes = classes_of(grader, (item.gold for item in asked))

    def known(item: Item, answer: Answer) -> dict[str, Any]:
        told = {"question": item.prompt, "finish_reason": answer.finish_reason, "classes": classes}
        return context_for(grader, item.context, **told)

    context = [(item.gold, clean(a.text), known(item, a)) for item, _, a in graded]
    verdicts = {
        (item.item_id, i): verdict for (item, i, _), verdict in zip(graded, pool.grade(grader, context), strict=True)
    }
    seeds = {item_id: row.seed for item_id, row in matched.rows.items()}
    return asked, [
        _sample(item, i, answer, verdicts.get((item.item_id, i)), seeds[item.item_id]) for item, i, answer in answers
    ]


def _sample(item: Item, index: int, answer: Answer, verdict: Verdict | None, seed: int | None) -> Sample:
    known = {
        "item_id": item.item_id,
        "sample": index,
        "seed": UNKNOWN_SEED if seed is None else seed + index,
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_completion_tokens": answer.num_completion_tokens,
    }
    if verdict is None:
        nothing = dict.fromkeys(("completion", "correct", "correct_strict", "extracted"))
        return Sample(**known, status="failed", reason=answer.error or "no text", gold_fallback=False, **nothing)
    text = clean(answer.text)
    return Sample(**known, status="scored", completion=text, **asdict(verdict))


def _notes(log: Log, file: Path, matched: Matched, items: Sequence[Item], all_items: Sequence[Item]) -> dict[str, Any]:
    prompts = {item.item_id: item.prompt for item in all_items}
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "task": log.task,
        "rows": len(log.rows),
        "matched_by": dict(matched.by),
        "items_of_benchmark": len(all_items),
        "missing": len(matched.missing),
        "unmatched": len(matched.unmatched),
        "duplicates": len(matched.duplicates),
        "incomplete": len(matched.incomplete),
        "gold_differs": matched.gold_differs,
        "same_prompts": all(item.prompt == prompts[item.item_id] for item in items),
        "scores_of_tool": log.scores,
    }


def _write(
    out: Path,
    tool: str,
    name: str,
    results: dict[str, BenchmarkResult],
    contents: dict[str, tuple[list[Item], list[Sample]]],
    notes: dict[str, dict[str, Any]],
    origin: dict[str, Any],
    logs: Sequence[Log],
) -> Path:
    versions = sorted({log.version for log in logs if log.version})
    request = {"tool": tool, "model": name, "files": {b: note["sha256"] for b, note in notes.items()}} | {
        "decoding": {b: result.decoding.model_dump() for b, result in results.items()}
    }
    now = records.now()
    run = RunRecord(
        run_id=name.replace("/", "--"),
        fingerprint=xxhash.xxh3_64(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12],
        status="finished",
        created=now,
        finished=now,
        model={"name": name, "revision": None, "weights": None, "context": None, "vision": None},
        engine={"name": "imported", "tool": tool, "version": ", ".join(versions) or None},
        settings={"limit": None, "import": notes},
        benchmarks=results,
        **averages(results),
        timings={},
        environment=records.environment(),
        provenance=origin,
    )
    for benchmark, (items, samples) in contents.items():
        records.append_lines(out / "items" / f"{benchmark}.jsonl", items)
        records.append_lines(out / "samples" / f"{benchmark}.jsonl", samples)
    whole = run.model_copy(update={"provenance": provenance.with_samples(origin, out, results)})
    records.write_json(out / "run.json", whole)
    return out


def describe(run: RunRecord) -> str:
    """What was imported, one line per benchmark: how rows were matched, what was left out, the tool's own scores."""
    lines = []
    for name, note in run.settings["import"].items():
        how = ", ".join(f"{count} by {by}" for by, count in note["matched_by"].items())
        left = [f"{note[key]} {key}" for key in ("unmatched", "missing", "duplicates", "incomplete") if note[key]]
        left += [f"{len(note['gold_differs'])} golds differ"] if note["gold_differs"] else []
        prompts = "our prompts" if note["same_prompts"] else "prompts of its own"
        scores = ", ".join(f"{metric} {100 * value:.1f} %" for metric, value in note["scores_of_tool"].items())
        lines.append(
            f"  {name:16} {note['file']}: {note['rows']} rows, matched {how}"
            + (f"; {', '.join(left)}" if left else "")
            + f"; {prompts}"
            + (f"; {run.engine['tool']} itself: {scores}" if scores else "")
        )
    return "\n".join(lines)


# --- small helpers -----------------------------------------------------------------------------------------------


def _known(**values: Any) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if value is not None}
    kinds = {"temperature": float, "top_p": float, "top_k": int, "max_new_tokens": int, "seed": int}
    return {name: kinds[name](value) if name in kinds else value for name, value in kept.items()}


def _means(values: Mapping[str, list[float]]) -> dict[str, float]:
    means = {name: sum(of) / len(of) for name, of in values.items() if of}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _user_turn(prompt: Any) -> str:
    """The last user's turn of a prompt that is text, or a chat as lm-eval writes it (a JSON list in a string)."""
    text = prompt[0] if isinstance(prompt, list) and prompt and isinstance(prompt[0], str) else prompt
    if isinstance(text, str):
        try:
            turns = parse_json(text) if text.lstrip().startswith("[{") else None
        except ValueError:
            turns = None
    else:
        turns, text = text, json.dumps(text)
    if isinstance(turns, list):
        asked = [t.get("content") for t in turns if isinstance(t, dict) and t.get("role") == "user"]
        if asked and isinstance(asked[-1], str):
            return asked[-1]
    return text


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, no UTF-8, or beyond what Python reads
        raise UserError(f"{path} is not valid JSON ({error}); move it away or fetch it again.") from None
    return loaded if isinstance(loaded, dict) else {}
