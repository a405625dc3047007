"""``python -m eval_harness list | run | released | grade | verify | compare | contamination | merge | import | …``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_harness import contamination, regrade, released
from eval_harness.errors import UserError, disk_told
from eval_harness.interop import commands as interop
from eval_harness.markup import shown_streams
from eval_harness.outside import check_arguments
from eval_harness.private import hide_secrets

if TYPE_CHECKING:
    from eval_harness.graders import Verdict
    from eval_harness.graders.pool import Answer, GradingPool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval_harness", description="Evaluate models on benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="benchmarks with item counts, data source, grader, version")

    run = commands.add_parser("run", help="evaluate a model; a killed run resumes with the same command")
    run.add_argument("--model", required=True, help="checkpoint folder or hub id; of a server, the name it serves")
    run.add_argument("--benchmarks", required=True, help="names, separated by commas")
    run.add_argument("--engine", default="auto", help="auto (default), vllm, transformers or openai")
    run.add_argument("--base-url", metavar="URL", help="openai: where the server answers (http://localhost:8000/v1)")
    run.add_argument("--concurrency", type=int, metavar="N", help="openai: requests at once (default 64)")
    run.add_argument("--api-key-env", metavar="NAME", help="openai: environment variable that holds the key")
    run.add_argument(
        "--samples",
        metavar="auto|K|NAME=K,...",
        help="completions per item; auto: 1 where decoding is greedy, else 16 for benchmarks of at most 100 items, 4 "
        "for larger ones (default: the benchmark's, as published)",
    )
    run.add_argument("--seed", type=int)
    run.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N items of each benchmark (of each group, where it has groups)",
    )
    run.add_argument("--data-root", type=Path, metavar="DIR", help="local copies of the data sets instead of the hub")
    run.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder with the image folders (default: data root)"
    )
    run.add_argument("--min-pixels", type=int, metavar="N", help="pixels of an image after scaling, at least")
    run.add_argument("--max-pixels", type=int, metavar="N", help="pixels of an image after scaling, at most")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default results/runs/...)")
    run.add_argument("--temperature", type=float, metavar="T")
    run.add_argument("--top-p", type=float, metavar="P")
    run.add_argument("--max-new-tokens", type=int, metavar="N")
    run.add_argument(
        "--max-model-len", type=int, metavar="N", help="context in tokens; openai: of a server that does not tell it"
    )
    run.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    run.add_argument("--revision", metavar="R", help="hub revision of the model")
    run.add_argument("--base-model", metavar="M", help="of a LoRA adapter: folder or hub id of its base, if it moved")
    run.add_argument("--system-prompt", metavar="S")
    run.add_argument("--chat-template", metavar="FILE|none")
    run.add_argument(
        "--data-parallel-size", type=int, default=1, metavar="N", help="engines on this machine that share the work"
    )
    run.add_argument(
        "--tensor-parallel-size", type=int, default=1, metavar="N", help="vllm: GPUs every layer is divided over"
    )
    run.add_argument(
        "--pipeline-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="vllm: groups of GPUs the layers are dealt to",
    )
    run.add_argument(
        "--distributed-executor-backend", choices=("mp", "ray"), help="vllm: mp on one node, ray over several"
    )
    run.add_argument(
        "--shard", metavar="I/N|auto", help="only items I, I+N, ... (0-based), into a folder inside --out; then merge"
    )
    run.add_argument(
        "--deterministic",
        action="store_true",
        help="greedy, one sample, and completions that do not depend on what is computed beside them",
    )

    grade = commands.add_parser("grade", help="grade stored answers: JSONL of gold and prediction")
    grade.add_argument("--benchmark", required=True, help="whose grader to use")
    grade.add_argument("--rule", choices=("published", "strict", "both"), default="published")
    grade.add_argument(
        "--input", required=True, type=Path, help="rows may also hold what the grader knows of an item (choices, ...)"
    )
    grade.add_argument("--output", required=True, type=Path, help="the rows with their marks")
    grade.add_argument("--explain", action="store_true", help="print what each rule read of every answer, and why")
    grade.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="of computing for one answer; past it, it is a timeout: wrong"
    )

    released.add_parser(commands)
    contamination.add_parser(commands)

    verify = commands.add_parser("verify", help="grade a stored run again and compare")
    verify.add_argument("run", type=Path)
    regrade.add_parser(commands)

    compare = commands.add_parser("compare", help="paired difference of two stored runs, with interval and p-value")
    compare.add_argument("run_a", help="run folder; several training seeds of one method separated by commas")
    compare.add_argument("run_b", help="what is subtracted; as many runs, or one")
    compare.add_argument("--benchmarks", help="only these, separated by commas (default: all that every run has)")
    compare.add_argument("--rule", choices=("published", "strict"), default="published")
    compare.add_argument("--seed", type=int, help="of the generator behind bootstrap and permutations")
    compare.add_argument(
        "--resamples", type=int, default=9999, metavar="N", help="draws of bootstrap and permutations (default 9999)"
    )
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="where table and plot go (default results/comparisons/...)"
    )

    merge = commands.add_parser("merge", help="make one run of the shards in a folder")
    merge.add_argument("out", type=Path, help="--out of the shards")

    interop.add_parsers(commands)
    return parser


@shown_streams()
def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 means that the user can mend what went wrong, 1 that a check failed or the engine died."""
    args = _parser().parse_args(argv)
    from eval_harness.engines.base import EngineError

    try:
        ours = {"list": _list, "run": _run, "grade": _grade, "verify": _verify, "compare": _compare, "merge": _merge}
        ours["regrade"] = lambda args: regrade.run(args.runs, dry_run=args.dry_run)
        ours |= {"released": released.run, "contamination": contamination.run}
        check_arguments(vars(args))
        with disk_told(Path.cwd(), verb="read or write"):
            return {**ours, **interop.COMMANDS}[args.command](args)
    except UserError as error:
        print(f"error: {hide_secrets(str(error))}", file=sys.stderr)
        return 2
    except EngineError as error:
        print(f"error: {hide_secrets(str(error))}", file=sys.stderr)
        print("Finished records were kept; the same command resumes the run.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished records were kept, the same command resumes the run.", file=sys.stderr)
        return 130


def _list(args: argparse.Namespace) -> int:
    from eval_harness.benchmarks import all_benchmarks
    from eval_harness.graders import GRADERS

    rows = [("name", "items", "version", "grader", "data")]
    rows += [
        (b.name, str(b.num_items), str(b.version), b.grader, b.source.describe()) for b in all_benchmarks().values()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for name, line in GRADERS.items():
        print(f"{name}: {line}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from eval_harness import records
    from eval_harness.runner import Overrides, evaluate, parse_samples
    from eval_harness.shards import parse_shard

    template = args.chat_template
    if template not in (None, "none"):
        try:
            template = Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: no UTF-8
            why = getattr(error, "strerror", None) or error
            raise UserError(f"--chat-template {template}: {why}; give a file or the word none.") from None
    samples = None if args.samples is None else parse_samples(args.samples)
    overrides = Overrides(samples, args.seed, args.temperature, args.top_p, args.max_new_tokens, args.system_prompt)
    folder = evaluate(
        args.model,
        [name.strip() for name in args.benchmarks.split(",") if name.strip()],
        engine=args.engine,
        out=args.out,
        data_root=args.data_root,
        limit=args.limit,
        overrides=overrides,
        revision=args.revision,
        base_model=args.base_model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        chat_template=template,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        distributed_executor_backend=args.distributed_executor_backend,
        data_parallel_size=args.data_parallel_size,
        deterministic=args.deterministic,
        shard=parse_shard(args.shard),
        image_root=args.image_root,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        base_url=args.base_url,
        concurrency=args.concurrency,
        api_key_env=args.api_key_env,
    )
    record = records.read_run(folder)
    print(format_run(record))
    print(f"records: {folder}")
    if record.shard:
        print(
            f"shard {record.shard['index']} of {record.shard['of']}; when all "
            f"are done: python -m eval_harness merge {folder.parent}"
        )
    return 0


def _merge(args: argparse.Namespace) -> int:
    from eval_harness import records
    from eval_harness.shards import merge

    print(format_run(records.read_run(merge(args.out))))
    print(f"records: {args.out}")
    return 0


def format_run(run) -> str:
    """Scores of a run as text: percent with 95 % interval, and the counts they rest on."""
    from eval_harness.records import WITHHELD

    lines = [f"{run.run_id} ({', '.join(filter(None, (run.engine['name'], run.engine.get('dtype'))))})"]
    for name, result in run.benchmarks.items():
        counts = f"asked {result.asked}, scored {result.scored}, failed {result.failed}"
        if result.score is None:
            lines.append(f"  {name:16} no score          {counts}")
            continue
        strict = 100 * result.score_strict["mean"]
        notes = [f"{result.num_truncated} cut at the token limit"] if result.num_truncated else []
        notes += [f"{result.num_timeout} grading timeouts"] if result.num_timeout else []
        notes += [f"{result.flags[end]} ended by {end}" for end in WITHHELD if end in result.flags]
        notes += [f"{result.num_gold_fallback} golds compared as text"] if result.num_gold_fallback else []
        lines.append(
            f"  {name:16} {_scored(result.score, result.single, result.decoding.samples)}  strict "
            f"{strict:.1f} %  {counts}{'; ' + ', '.join(notes) if notes else ''}"
        )
    if run.average:
        lines.append(f"  {'average':16} {_scored(run.average, run.average_single)}")
    return "\n".join(lines)


def _scored(score: dict[str, float], single: dict[str, float] | None, samples: int = 1) -> str:
    """A score in percent, and beside a mean over several samples that of a single one."""

    def text(of: dict[str, float]) -> str:
        mean, se, low, high = (100 * of[k] for k in ("mean", "se", "low", "high"))
        return f"{mean:5.1f} % ± {se:.1f} [{low:.1f}, {high:.1f}]"

    name = f"avg@{samples} " if samples > 1 else ""
    return name + text(score) + (f"; single sample {text(single).lstrip()}" if single else "")


def _grade(args: argparse.Namespace) -> int:
    from eval_harness.benchmarks import get_benchmark
    from eval_harness.graders.base import CONTEXT_KEYS, UNFINISHED, classes_of, rule_names
    from eval_harness.graders.pool import DEADLINE_SECONDS, GradingPool
    from eval_harness.records import write_whole
    from eval_harness.sources import read_jsonl

    benchmark = get_benchmark(args.benchmark)
    rows = read_jsonl(args.input, ("gold", "prediction"))
    for number, row in enumerate(rows, start=1):
        for key in ("gold", "prediction"):
            if not isinstance(row[key], str):
                raise UserError(f"{args.input}, row {number}: {key} must be a string, got {type(row[key]).__name__}.")
        if not row["gold"].strip():
            raise UserError(f"{args.input}, row {number}: the gold is empty; nothing can be graded against it.")
    if args.output.exists() and args.output.resolve() == args.input.resolve():
        raise UserError("--output is the input file; give another.")
    if args.deadline is not None and not args.deadline > 0:
        raise UserError(f"--deadline must be a positive number of seconds, got {args.deadline}.")
    known = {*benchmark.context_fields, *CONTEXT_KEYS.get(benchmark.grader, ())}
    classes = classes_of(benchmark.grader, (row["gold"] for row in rows))
    shared = {} if classes is None else {"classes": classes}
    contexts = (shared | {key: row[key] for key in sorted(known & row.keys())} for row in rows)
    answers = [(row["gold"], row["prediction"], context) for row, context in zip(rows, contexts, strict=True)]
    with GradingPool(deadline=args.deadline or DEADLINE_SECONDS) as pool:
        verdicts = pool.grade(benchmark.grader, answers)
        if args.explain:
            _explain(pool, benchmark.grader, answers, verdicts)
    names = rule_names(benchmark.grader)
    graded = [row | _marks(verdict, args.rule, names) for row, verdict in zip(rows, verdicts, strict=True)]
    write_whole(args.output, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in graded))

    def summary(suffix: str, rule: str) -> str:
        correct = sum(bool(row["correct" + suffix]) for row in graded)
        scores = [row["score" + suffix] for row in graded if row.get("score" + suffix) is not None]
        mean = f", mean score {sum(scores) / len(scores):.4f} of {len(scores)}" if scores else ""
        return f"{correct} of {len(rows)} correct ({rule} rule{mean})"

    parts = [summary("", "strict" if args.rule == "strict" else "published")]
    parts += [summary("_strict", "strict")] if args.rule == "both" else []
    unjudged = sum(verdict.reason == "bad_gold" for verdict in verdicts)
    parts += [f"{unjudged} not judged (unusable gold)"] if unjudged else []
    parts += [f"{sum(verdict.reason == 'timeout' for verdict in verdicts)} timeouts"]
    ended = sum(verdict.reason in UNFINISHED for verdict in verdicts if verdict.reason != "timeout")
    parts += [f"{ended} ended for memory or a crash"] if ended else []
    print(f"{', '.join(parts)}; written to {args.output}")
    return 0


def _explain(pool: GradingPool, grader: str, answers: list[Answer], verdicts: list[Verdict]) -> None:
    """Print what each rule read of every answer, and what the strict rule read of the gold."""
    from eval_harness.graders.base import STRICT_RULES, rule_names

    names = rule_names(grader)
    strict = f"eval_harness.graders.base:explainer:{grader}"
    readings = pool.grade(strict, answers) if grader in STRICT_RULES else []
    for number, verdict in enumerate(verdicts, start=1):
        told = _marks(verdict, "both", names)
        for suffix in ("", "_strict"):
            word = "right" if told["correct" + suffix] else "wrong"
            reason, read = told["reason" + suffix], told["extracted" + suffix]
            line = (
                f"row {number}, {told['rule' + suffix]}: {word} ({reason}); read {'nothing' if read is None else read}"
            )
            if suffix and readings:
                line += f"; gold {readings[number - 1].extracted}; {readings[number - 1].reason_strict}"
            print(line)


def _marks(verdict: Verdict, rule: str, names: tuple[str, str]) -> dict[str, Any]:
    """What ``grade`` writes of a verdict; marks are null where there is no gold to judge by."""
    reason_strict = verdict.reason_strict or verdict.reason
    read = None if reason_strict == "no_answer" else verdict.extracted_strict or verdict.extracted
    published = (verdict.correct, verdict.score, verdict.extracted, verdict.reason)
    strict = (verdict.correct_strict, verdict.score_strict, read, reason_strict)
    marks: dict[str, Any] = {}
    for suffix, name, (correct, score, extracted, reason) in (
        ("", names[1], strict) if rule == "strict" else ("", names[0], published),
        *([("_strict", names[1], strict)] if rule == "both" else []),
    ):
        judged = reason != "bad_gold"
        marks["correct" + suffix] = correct if judged else None
        if score is not None:
            marks["score" + suffix] = score if judged else None
        marks |= {"extracted" + suffix: extracted, "reason" + suffix: reason, "rule" + suffix: name}
    return marks | {"gold_fallback": verdict.gold_fallback, "flags": list(verdict.flags), "extra": verdict.extra}


def _verify(args: argparse.Namespace) -> int:
    from eval_harness.runner import verify

    report = verify(args.run)
    for name, row in report.items():
        word = "reproduced" if row["reproduced"] else "NOT reproduced"
        stored, regraded = ("none" if row[key] is None else f"{100 * row[key]:.2f} %" for key in ("stored", "regraded"))
        counts = [f"{name} {row[name]}" for name in ("asked", "scored", "failed") if name in row]
        notes = [", ".join(counts)] if counts else []
        notes += row["problems"] + ([f"versions differ: {', '.join(row['versions'])}"] if row["versions"] else [])
        print(
            f"{name:16} stored {stored}, graded again {regraded}, {row['changed']} marks changed: {word}"
            + "".join(f"; {note}" for note in notes)
        )
    return 0 if all(row["reproduced"] for row in report.values()) else 1


def _compare(args: argparse.Namespace) -> int:
    import numpy as np

    from eval_harness import compare as comparing

    if args.resamples < 99:
        raise UserError(f"--resamples {args.resamples}: expected at least 99 draws.")
    a, b = comparing.open_side(args.run_a), comparing.open_side(args.run_b)
    benchmarks = [name.strip() for name in args.benchmarks.split(",") if name.strip()] if args.benchmarks else None
    rng = np.random.default_rng(comparing.SEED if args.seed is None else args.seed)
    found = comparing.compare(a, b, rule=args.rule, benchmarks=benchmarks, rng=rng, resamples=args.resamples)
    print(comparing.text(found))
    files = comparing.write(found, args.out or comparing.default_folder(found))
    print(f"\nwritten: {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
